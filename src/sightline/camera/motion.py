"""How the camera has moved: a translation or an affine map from each frame to the first one's coordinates.

A few dozen small tiles with texture are remembered from a frame (the *anchor*), with their gradients. In a new frame each tile is looked
for around where the camera's motion so far puts it (Lucas and Kanade, inverse compositional: the gradients are those of the anchor, so an
iteration is one sampling and two sums per tile). One motion is then fitted to what the tiles found, with weights that fall to
nothing for tiles that disagree: those lie on objects that move by themselves. Where most tiles find nothing, as after a sudden
pan, a phase correlation of the two frames at low resolution says where to start again. Motion is measured against the anchor and
not against the frame before, so its errors do not add up while the anchor is in sight.

What belongs here: estimation, on plain tensors. What does not: where frames are put (`canvas.py`) and what is done with held maps.
Source: Lucas and Kanade 1981; Baker and Matthews, "Lucas-Kanade 20 years on" (inverse composition); Kuglin and Hines 1975 (phase
correlation).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 24  # pixels
_COLUMNS, _ROWS = 6, 4  # of the grid that spreads the tiles over the frame
_SMALL = 160  # cells of the longer side at low resolution
_ITERATIONS = 6
_STILL = 0.05  # pixels: a correction that is smaller ends the search
_ALIKE = 0.8  # correlation from which a tile counts as found
_ENOUGH = 0.35  # share of the tiles in sight that must be found and agree
_IN_SIGHT = 0.3  # share of the anchor's tiles that must be in sight
_RENEW = 0.6  # share of the anchor's tiles that agree, below which the frame becomes the next anchor
_SOFT = 1.0  # pixels, least scale of the disagreement that is forgiven
_LIMITS = 0.7, 1.4, 0.35  # least and largest zoom, largest rotation (radians) of an affine map


_Point = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Pose:
    """Where a frame lies: its point (y, x) is the point ``linear @ (y, x) + origin`` of the first frame.

    Attributes:
        linear: (2, 2), float64; the identity for a translation.
        origin: (2,), float64, pixels.
    """

    linear: Tensor
    origin: Tensor

    @classmethod
    def start(cls) -> Pose:
        """The first frame's own."""
        return cls(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))

    def after(self, inner: Pose) -> Pose:
        """First `inner`, then this."""
        return Pose(self.linear @ inner.linear, self.linear @ inner.origin + self.origin)

    @property
    def inverse(self) -> Pose:
        """The map back."""
        back = torch.linalg.inv(self.linear)
        return Pose(back, -back @ self.origin)

    def __call__(self, points: Tensor) -> Tensor:
        """Maps points (..., 2) in the order (y, x)."""
        return points @ self.linear.T + self.origin

    @property
    def translates(self) -> bool:
        """Whether the linear part is the identity."""
        return bool(torch.equal(self.linear, torch.eye(2, dtype=torch.float64)))


@dataclass(eq=False)
class _Anchor:
    """Tiles of one frame.

    Attributes:
        pose: of the frame.
        centres: of the tiles, pixels (y, x).
        points: float32 (t * TILE**2, 2), their pixels (x, y).
        rows: float32 (t, 3, TILE**2); its product with a patch is the displacement (y, x) that explains it, and its likeness.
        zero: of the displacements, those of the patches themselves.
        size: norms of the patches.
    """

    pose: Pose
    centres: list[_Point]
    points: Tensor
    rows: Tensor
    zero: list[_Point]
    size: list[float]


class MotionEstimator:
    """Follows one camera.

    Use: ``pose = estimator(frame)`` for every frame. The first one has the pose 0.

    Args:
        model: "translation" or "affine".

    Attributes:
        restarted: the last frame could not be related to those before, so its pose is that of a first frame.

    Exact when: never; on textured pictures it errs by a few hundredths of a pixel.
    Cost: 2 to 3 ms on one core for a frame of 480x640, whatever the network.

    Example:
        >>> scene = F.avg_pool2d(torch.rand(1, 1, 200, 240, generator=torch.Generator().manual_seed(0)), 5, 1, 2)
        >>> estimator = MotionEstimator("translation")
        >>> for x in (0, 3, 7):
        ...     pose = estimator(scene[..., 20:180, 20 + x : 200 + x])
        >>> [round(float(v), 1) + 0 for v in pose.origin]
        [0.0, 7.0]
    """

    def __init__(self, model: str = "translation") -> None:
        self._affine = model == "affine"
        self._anchor: _Anchor | None = None
        self._pose = Pose.start()
        self._speed = Pose.start()  # from a frame's coordinates to those of the frame before
        self._small: Tensor | None = None
        self.restarted = True

    def reset(self) -> None:
        """Forgets all frames."""
        self._anchor, self._small, self.restarted = None, None, True
        self._pose = self._speed = Pose.start()

    def __call__(self, frame: Tensor) -> Pose:
        """The pose of the next frame.

        Args:
            frame: float (1, c, h, w), finite, in any units; only its middle channel is looked at.
        """
        luma = frame[0, frame.shape[1] // 2].float()
        factor = max(1, math.ceil(max(luma.shape) / _SMALL))
        small = F.avg_pool2d(luma[None, None], factor)[0, 0] if min(luma.shape) >= factor else luma
        before, self._small = self._small, small
        self.restarted = self._anchor is None
        if self._anchor is None or before is None:
            self._take_anchor(luma, Pose.start())
            return self._pose
        found = self._search(luma, self._pose.after(self._speed))
        if found is None:
            found = self._search(luma, self._pose)
        if found is None:
            jump = phase_correlation(before, small) * factor
            found = self._search(luma, Pose(self._pose.linear, self._pose.origin + self._pose.linear @ jump))
        if found is None:
            self.restarted = True
            self._take_anchor(luma, Pose.start())
            return self._pose
        pose, agreeing = found
        self._speed = self._pose.inverse.after(pose)
        self._pose = pose
        if agreeing < _RENEW:
            self._take_anchor(luma, pose)
        return pose

    # -- tiles ------------------------------------------------------------------------------------------------------------

    def _take_anchor(self, luma: Tensor, pose: Pose) -> None:
        """Remembers tiles of a frame, one per cell of a coarse grid, where its texture is strongest in both directions."""
        if bool(self.restarted):
            self._speed = Pose.start()
        self._pose = pose
        h, w = luma.shape
        centres = _textured(luma) if min(h, w) >= TILE + 4 else torch.zeros(0, 2, dtype=torch.long)
        if not len(centres):
            self._anchor = _Anchor(pose, [], torch.zeros(0, 2), torch.zeros(0, 3, 1), [], [])
            return
        flat, local = luma.reshape(-1), _grid(TILE, TILE) - TILE // 2
        index = (centres[:, None, None, 0] + local[..., 0]) * w + centres[:, None, None, 1] + local[..., 1]
        patches = flat[index].flatten(1)
        slopes = torch.stack([(flat[index + step] - flat[index - step]).flatten(1) / 2 for step in (w, 1)], 1)
        slopes = slopes - slopes.mean(2, keepdim=True)
        square = slopes @ slopes.transpose(1, 2)
        scale = square.diagonal(dim1=1, dim2=2).mean(1)
        steps = torch.linalg.solve(square + 1e-6 * scale[:, None, None].clamp(min=1e-12) * torch.eye(2), slopes)
        patches = patches - patches.mean(1, keepdim=True)
        self._anchor = _Anchor(
            pose,
            [(y - 0.5, x - 0.5) for y, x in centres.tolist()],  # the middle of TILE pixels from -TILE // 2 on
            (centres[:, None, None] + local).reshape(-1, 2).flip(1).float(),
            torch.cat([steps, patches[:, None]], 1),
            [(y, x) for y, x in (steps @ patches[..., None])[..., 0].tolist()],
            patches.norm(dim=1).tolist(),
        )

    def _search(self, luma: Tensor, pose: Pose) -> tuple[Pose, float] | None:
        """The pose that fits the tiles, started from a guess, and the share of tiles that agree; None if too few are found.

        The numbers of tiles and their displacements are so few that plain floats are faster than tensors.
        """
        anchor = self._anchor
        assert anchor is not None
        count = len(anchor.centres)
        relative = _Affine.of(anchor.pose.inverse.after(pose))
        h, w = luma.shape
        reach = TILE / 2 + 1
        for _ in range(_ITERATIONS):
            back = relative.inverse()
            places = [back(centre) for centre in anchor.centres]
            seen = [reach <= y <= h - 1 - reach and reach <= x <= w - 1 - reach for y, x in places]
            if sum(seen) < max(4, _IN_SIGHT * count):
                return None
            steps, alike = self._look(luma, anchor, back)
            found = [s and a > _ALIKE for s, a in zip(seen, alike, strict=True)]
            weights = [max(a, 0.0) if s else 0.0 for s, a in zip(seen, alike, strict=True)]
            if not any(weights):
                return None
            targets = [(c[0] + d[0], c[1] + d[1]) for c, d in zip(anchor.centres, steps, strict=True)]
            updated = _fit(places, targets, weights, self._affine and sum(found) >= 6)
            change = max(math.dist(updated(p), relative(p)) for p, s in zip(places, seen, strict=True) if s)
            relative = updated
            if change < _STILL:
                break
        result = anchor.pose.after(relative.pose())
        if self._affine and not _plausible(result.linear):
            return None
        agree = sum(f and math.dist(relative(p), t) < 2 * _SOFT for f, p, t in zip(found, places, targets, strict=True))
        if agree < max(3, _ENOUGH * sum(seen)):
            return None
        return result, agree / count

    @staticmethod
    def _look(luma: Tensor, anchor: _Anchor, back: _Affine) -> tuple[list[_Point], list[float]]:
        """For every tile: by how much it is off where it was looked for, and its correlation with what lies there (-1 to 1)."""
        h, w = luma.shape
        sx, sy = 2 / (w - 1), 2 / (h - 1)
        turn = torch.tensor([[back.xx * sx, back.yx * sy], [back.xy * sx, back.yy * sy]])
        grid = torch.addmm(torch.tensor([back.x * sx - 1, back.y * sy - 1]), anchor.points, turn)
        sampled = F.grid_sample(luma[None, None], grid.view(1, len(anchor.size), -1, 2), padding_mode="border", align_corners=True)
        patches = sampled[0, 0]
        products = (anchor.rows @ patches[..., None])[..., 0].tolist()
        sizes = (patches.var(1, correction=0) * patches.shape[1]).sqrt().tolist()
        steps, alike = [], []
        for (y, x, likeness), (y0, x0), mine, theirs in zip(products, anchor.zero, anchor.size, sizes, strict=True):
            dy, dx = y - y0, x - x0
            length = math.hypot(dy, dx)
            least = min(1.0, TILE / 8 / length) if length > 0 else 1.0  # far from the solution a tile says little but the direction
            steps.append((dy * least, dx * least))
            alike.append(likeness / max(mine * theirs, 1e-12))
        return steps, alike


@dataclass(frozen=True)
class _Affine:
    """A pose in plain floats: (y, x) goes to (yy * y + yx * x + y0, xy * y + xx * x + x0)."""

    yy: float
    yx: float
    xy: float
    xx: float
    y: float
    x: float

    @classmethod
    def of(cls, pose: Pose) -> _Affine:
        (yy, yx), (xy, xx) = pose.linear.tolist()
        return cls(yy, yx, xy, xx, *pose.origin.tolist())

    def pose(self) -> Pose:
        linear = torch.tensor([[self.yy, self.yx], [self.xy, self.xx]], dtype=torch.float64)
        return Pose(linear, torch.tensor([self.y, self.x], dtype=torch.float64))

    def __call__(self, point: _Point) -> _Point:
        y, x = point
        return self.yy * y + self.yx * x + self.y, self.xy * y + self.xx * x + self.x

    def inverse(self) -> _Affine:
        det = self.yy * self.xx - self.yx * self.xy
        yy, yx, xy, xx = self.xx / det, -self.yx / det, -self.xy / det, self.yy / det
        return _Affine(yy, yx, xy, xx, -(yy * self.y + yx * self.x), -(xy * self.y + xx * self.x))


def _grid(h: int, w: int) -> Tensor:
    """(h, w, 2) of (y, x)."""
    return torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1)


def _textured(luma: Tensor) -> Tensor:
    """Centres (t, 2) of tiles whose weaker direction of texture is the strongest of their neighbourhood."""
    h, w = luma.shape
    step = 4
    rows = luma[1:-1:step]
    dy = (luma[2::step][: len(rows)] - luma[:-2:step][: len(rows)])[:, 1:-1:step]
    dx = rows[:, 2::step][:, : dy.shape[1]] - rows[:, :-2:step][:, : dy.shape[1]]
    products = torch.stack([dy * dy, dx * dx, dy * dx])[None]
    yy, xx, yx = F.avg_pool2d(products, TILE // step, 1)[0]
    weaker = (yy + xx) / 2 - ((yy - xx).square() / 4 + yx * yx).sqrt()
    reach = TILE // 2 + 2
    found = []
    threshold = 1e-4 * float((yy + xx).mean())
    for band in _bands(weaker.shape[0], _ROWS):
        for column in _bands(weaker.shape[1], _COLUMNS):
            part = weaker[band[0] : band[1], column[0] : column[1]]
            best = int(part.argmax())
            if float(part.flatten()[best]) > threshold:
                y, x = band[0] + best // part.shape[1], column[0] + best % part.shape[1]
                found.append((min(max(y * step + reach, reach), h - reach - 1), min(max(x * step + reach, reach), w - reach - 1)))
    return torch.tensor(found, dtype=torch.long).reshape(-1, 2)


def _bands(size: int, parts: int) -> list[tuple[int, int]]:
    edges = [round(i * size / parts) for i in range(parts + 1)]
    return [(low, high) for low, high in itertools.pairwise(edges) if high > low]


def _fit(places: list[_Point], targets: list[_Point], weights: list[float], affine: bool) -> _Affine:
    """The map that takes places to targets, by least squares with weights that fall with the distance (Tukey's biweight)."""
    rows = [(*p, *t, weight) for p, t, weight in zip(places, targets, weights, strict=True) if weight > 0]
    fit = _Affine(1.0, 0.0, 0.0, 1.0, median([ty - y for y, _, ty, _, _ in rows]), median([tx - x for _, x, _, tx, _ in rows]))
    for _ in range(4):
        apart = [math.dist(fit((y, x)), (ty, tx)) for y, x, ty, tx, _ in rows]
        scale = max(_SOFT, 3 * median(apart))
        used = [(row, row[4] * (1 - (d / scale) ** 2) ** 2) for row, d in zip(rows, apart, strict=True) if d < scale]
        total = sum(weight for _, weight in used)
        if total <= 0:
            break
        my, mx, ny, nx = (sum(row[i] * weight for row, weight in used) / total for i in range(4))
        yy, yx, xy, xx = 1.0, 0.0, 0.0, 1.0
        if affine and len(used) >= 4:
            around = [(y - my, x - mx, ty - ny, tx - nx, weight) for (y, x, ty, tx, _), weight in used]
            a = sum(weight * y * y for y, _, _, _, weight in around)
            b = sum(weight * y * x for y, x, _, _, weight in around)
            c = sum(weight * x * x for _, x, _, _, weight in around)
            det = a * c - b * b
            if det > 1e-6 * (a + c) ** 2:
                yy, yx = _solve(a, b, c, det, [(y, x, ty, weight) for y, x, ty, _, weight in around])
                xy, xx = _solve(a, b, c, det, [(y, x, tx, weight) for y, x, _, tx, weight in around])
        fit = _Affine(yy, yx, xy, xx, ny - yy * my - yx * mx, nx - xy * my - xx * mx)
    return fit


def _solve(a: float, b: float, c: float, det: float, rows: list[tuple[float, float, float, float]]) -> _Point:
    """The two numbers of one row of the linear part, from the normal equations [[a, b], [b, c]]."""
    p = sum(weight * y * target for y, _, target, weight in rows)
    q = sum(weight * x * target for _, x, target, weight in rows)
    return (c * p - b * q) / det, (a * q - b * p) / det


def _plausible(linear: Tensor) -> bool:
    values = torch.linalg.svdvals(linear)
    angle = abs(math.atan2(float(linear[1, 0] - linear[0, 1]), float(linear[0, 0] + linear[1, 1])))
    return bool(values.min() > _LIMITS[0] and values.max() < _LIMITS[1]) and angle < _LIMITS[2]


def phase_correlation(before: Tensor, after: Tensor) -> Tensor:
    """How the picture moved between two maps (h, w): what lies at (y, x) in `after` lay at (y, x) + result in `before`.

    Whole cells, up to half the map in each direction. Float64 (2,).
    """
    window = torch.outer(*(torch.hann_window(size, periodic=False) for size in before.shape))
    first, second = (torch.fft.rfft2((value - value.mean()) * window) for value in (before, after))
    cross = first * second.conj()
    peak = int(torch.fft.irfft2(cross / cross.abs().clamp(min=1e-9), s=before.shape).argmax())
    h, w = before.shape
    y, x = divmod(peak, w)
    return torch.tensor([y - h * (y > h // 2), x - w * (x > w // 2)], dtype=torch.float64)
