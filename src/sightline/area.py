"""`AreaOfInterest`: the part of a picture that matters, at any resolution, editable at any time.

What belongs here: making an area from what users have (masks, boxes, polygons, detections, saliency maps), looking at it, bringing it to
another resolution. What does not: what a network must compute for it (`sightline.graph.needed`), and running networks.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sightline.errors import DTypeError, FrameError, ShapeError
from sightline.extras import need
from sightline.sites import Grid, Sites

How = Literal["any", "nearest"]
_VERSIONS = itertools.count(1)


class AreaOfInterest:
    """Where to look: a mask that is not zero inside the area.

    Give one to `sightline.focus` or `sightline.stream`. The mask may have any resolution; every layer of a network reads it on its own
    grid. It is live: edit `mask` in place, or set another one, and the next forward sees it. One area may serve several models and threads:
    each forward works with the area as it is at its start. A mask may be larger than the picture; it always stands for the whole of it.

    Args:
        mask: (h, w) for every batch element, or (n, h, w) with one mask per element; bool or numbers, not zero = inside, on any device. The
            tensor itself is kept, not a copy; a NumPy array shares its memory too.

    Attributes:
        mask: the tensor.

    Raises:
        ShapeError: another number of axes, or an empty one.
        DTypeError: not a tensor or array of bools or real numbers.
        FrameError: the mask holds NaN (also raised by whatever reads an area whose mask was edited so).

    Example:
        >>> area = AreaOfInterest(torch.tensor([[1, 0], [0, 0]]))
        >>> area.size()
        0.25
        >>> area.mask[0, 1] = 1
        >>> area.size(), area.sites(4, 4).box
        (0.5, (0, 0, 2, 4))
    """

    def __init__(self, mask: torch.Tensor | NDArray[Any] | Sequence[Any]) -> None:
        self._lock = threading.Lock()
        self._inside: torch.Tensor | None = None
        self._seen: tuple[int, int] | None = None
        self._version = 0
        self.mask = mask

    @property
    def mask(self) -> torch.Tensor:
        """(h, w) or (n, h, w), not zero = inside; edit it in place, or set another one."""
        return self._mask

    @mask.setter
    def mask(self, mask: torch.Tensor | NDArray[Any] | Sequence[Any]) -> None:
        checked = _checked(mask)
        _inside(checked)
        self._mask = checked

    def current(self) -> tuple[int, torch.Tensor]:
        """The area as it is now.

        Returns:
            A number that differs whenever the content does, between areas too; and bool (n, h, w), never written to again.

        Raises:
            FrameError: the mask holds NaN.
        """
        with self._lock:
            mask = self._mask
            if mask.device.type == "cpu" or mask.is_inference():  # may have been edited through NumPy: look at the content
                inside = _inside(mask)
                same = self._inside is not None and self._inside.shape == inside.shape and bool(torch.equal(self._inside, inside))
            else:
                seen = (id(mask), mask._version)
                same, self._seen = self._seen == seen, seen
                inside = self._inside if same and self._inside is not None else _inside(mask)
            if not same or self._inside is None or self._inside.device != inside.device:
                self._inside, self._version = inside, next(_VERSIONS)
            return self._version, self._inside

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the mask."""
        return {"mask": self._mask}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Counterpart of `__getstate__`."""
        self.__init__(state["mask"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"AreaOfInterest({' x '.join(map(str, self._mask.shape))}, size {self.size():.1%})"

    # -- other ways to make one -----------------------------------------------------------------------------------------------

    @classmethod
    def from_boxes(cls, boxes: Sequence[Sequence[int]] | torch.Tensor, size: tuple[int, int], *, n: int = 1) -> AreaOfInterest:
        """All pixels inside at least one box.

        Args:
            boxes: half-open ``(y0, x0, y1, x1)`` in pixels, or ``(b, y0, x0, y1, x1)`` for batch element b only. What lies outside the
                picture is cut off; boxes wholly outside, or none, give an empty area.
            size: (h, w) of the picture.
            n: number of masks, for boxes of single batch elements.

        Raises:
            ShapeError: a box of another length, with its end before its start, or of a batch element that does not exist.
            DTypeError: a coordinate that is not an integer.

        Example:
            >>> AreaOfInterest.from_boxes([(0, 0, 2, 4), (3, 3, 9, 9)], (4, 4)).size()
            0.5625
        """
        sites = Sites.from_boxes(Grid(n, *_size(size)), boxes)
        return cls(sites.mask[0] if n == 1 else sites.mask)

    @classmethod
    def from_polygons(cls, polygons: Sequence[Any], size: tuple[int, int]) -> AreaOfInterest:
        """All pixels that at least one polygon overlaps, by however little.

        Args:
            polygons: each a sequence of at least 3 points ``(y, x)`` in pixels; pixel (0, 0) reaches from (0, 0) to (1, 1). The last point
                is joined to the first; where a polygon crosses itself, inside is what an odd number of turns encloses.
            size: (h, w) of the picture.

        Raises:
            ShapeError: a polygon that is not at least 3 points of 2 finite coordinates.

        Example:
            >>> AreaOfInterest.from_polygons([[(0, 0), (0, 3), (3, 0)]], (4, 4)).mask.int().tolist()
            [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
        """
        h, w = _size(size)
        mask = np.zeros((h, w), dtype=bool)
        for polygon in polygons:
            points = np.asarray(polygon, dtype=np.float64)
            if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
                raise ShapeError(f"polygons: expected at least 3 finite points (y, x) each, got an array of shape {points.shape}")
            mask |= _overlapped(points, h, w)
        return cls(torch.from_numpy(mask))

    @classmethod
    def from_detections(
        cls, boxes: Any, scores: Any = None, *, size: tuple[int, int], threshold: float = 0.5, margin: float = 0
    ) -> AreaOfInterest:
        """What a detector found.

        Args:
            boxes: (k, 4), ``(x0, y0, x1, y1)`` in pixels as detectors give them; fractions of a pixel are rounded outwards. Or a list
                with one such tensor per batch element.
            scores: (k,), or a list of them; None: every box counts.
            size: (h, w) of the picture.
            threshold: boxes with a score of at least this count; a score of NaN does not.
            margin: pixels to add on every side, at least 0.

        Raises:
            ShapeError: boxes or scores of another shape, or a negative margin.
            FrameError: a coordinate that is not finite.

        Example:
            >>> found = torch.tensor([[1.0, 0.0, 2.5, 1.0], [0.0, 0.0, 4.0, 4.0]])
            >>> AreaOfInterest.from_detections(found, torch.tensor([0.9, 0.1]), size=(4, 4)).mask.int().tolist()
            [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
        """
        if not margin >= 0 or margin == math.inf:
            raise ShapeError(f"margin: expected a number of pixels of at least 0, got {margin}")
        h, w = _size(size)
        batch = isinstance(boxes, list | tuple) and all(isinstance(item, torch.Tensor | np.ndarray) for item in boxes)
        per_image = list(boxes) if batch and len(boxes) else [boxes]
        if scores is None:
            per_score: list[Any] = [None] * len(per_image)
        else:
            per_score = list(scores) if batch and len(boxes) else [scores]
        if len(per_score) != len(per_image):
            raise ShapeError(f"scores: expected one tensor per batch element, {len(per_image)}, got {len(per_score)}")
        masks = [_detected(b, s, (h, w), threshold, margin) for b, s in zip(per_image, per_score, strict=True)]
        return cls(torch.stack(masks) if batch and len(boxes) else masks[0])

    @classmethod
    def from_saliency(cls, saliency: torch.Tensor, threshold: float) -> AreaOfInterest:
        """Where a map of numbers (saliency, attention, brightness, motion) is at least a threshold.

        Args:
            saliency: (h, w), (n, h, w) or (n, 1, h, w), of any real type. NaN is outside.
            threshold: in the map's units; what equals it is inside.

        Raises:
            ShapeError: another shape.

        Example:
            >>> AreaOfInterest.from_saliency(torch.tensor([[0.2, 0.5], [float("nan"), 0.9]]), 0.5).mask.tolist()
            [[False, True], [False, True]]
        """
        values = torch.as_tensor(saliency)
        if values.dim() == 4 and values.shape[1] == 1:
            values = values[:, 0]
        return cls(values.detach() >= threshold)

    # -- looking at it -------------------------------------------------------------------------------------------------------------

    def size(self) -> float:
        """Fraction of the mask that is inside, 0 to 1; the mean over batch elements."""
        inside = self.current()[1]
        return int(inside.sum()) / inside.numel()

    def sites(self, h: int, w: int, how: How = "any") -> Sites:
        """The area on a grid of another resolution.

        Args:
            h: rows of the grid.
            w: columns of the grid.
            how: "any": every cell that the area overlaps, by however little, so that nothing is lost; what networks are run with.
                "nearest": the cells whose nearest mask cell is inside, as ``torch.nn.functional.interpolate``; small areas may be lost.

        Returns:
            The positions, on ``Grid(n, h, w)`` with the mask's n (1 for a mask (h, w)).

        Raises:
            ShapeError: a size below 1, or an unknown `how`.
        """
        _one_of_how(how)
        return Sites(self.current()[1]).resize(h, w, how)

    def resize(self, h: int, w: int, how: How = "any") -> AreaOfInterest:
        """A new area of another resolution; arguments as for `sites`."""
        return self._like(self.sites(h, w, how).mask)

    def dilate(self, pixels: int | tuple[int, int]) -> AreaOfInterest:
        """A new area with a margin: everything within a number of mask cells, in rows and columns.

        Args:
            pixels: cells of the mask in every direction, or (rows, columns); at least 0.

        Raises:
            ShapeError: a negative number, or not one or two.

        Example:
            >>> AreaOfInterest.from_boxes([(2, 2, 3, 3)], (5, 5)).dilate(1).size()
            0.36
        """
        return self._like(Sites(self.current()[1]).grow(pixels).mask)

    def _like(self, inside: torch.Tensor) -> AreaOfInterest:
        return AreaOfInterest(inside.clone() if self._mask.dim() == 3 else inside[0].clone())

    def show(self, image: torch.Tensor | NDArray[Any] | None = None) -> Any:
        """Draws the area, one panel per batch element.

        Args:
            image: the picture to draw it on, dimmed outside: (c, h, w) or (n, c, h, w), floats of 0 to 1 or bytes, c of 1 or 3; any
                resolution. None: the mask alone, white inside.

        Returns:
            A matplotlib figure, which notebooks display; in a script, ``matplotlib.pyplot.show()`` opens it or ``savefig`` writes it.

        Raises:
            MissingPackageError: matplotlib is not installed (extra "plots").
            ShapeError: the image is not a picture, or there are not as many as masks.
        """
        pyplot = need("matplotlib.pyplot", "draw an area")
        inside = self.current()[1].cpu()
        pictures = _pictures(image, inside.shape[0])
        count = inside.shape[0] if pictures is None else max(inside.shape[0], len(pictures))
        figure, axes = pyplot.subplots(1, count, squeeze=False, figsize=(4 * count, 4), layout="constrained")
        for i, axis in enumerate(axes[0]):
            mask = inside[i if inside.shape[0] > 1 else 0]
            if pictures is None:
                axis.imshow(mask.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:
                picture = pictures[i if len(pictures) > 1 else 0]
                on_image = Sites(mask[None]).resize(*picture.shape[:2]).mask[0, :, :, None].numpy()
                axis.imshow(np.where(on_image, picture, 0.3 * picture))
            axis.set_title(f"{float(mask.float().mean()):.1%}")
            axis.set_axis_off()
        return figure


# -- masks ---------------------------------------------------------------------------------------------------------------------------------


def _checked(mask: object) -> torch.Tensor:
    if not isinstance(mask, torch.Tensor):
        try:
            mask = torch.as_tensor(mask)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DTypeError(f"mask: expected a tensor (h, w) or (n, h, w), got {type(mask).__name__} ({error})") from None
    if mask.is_complex() or mask.is_quantized or mask.layout != torch.strided:
        raise DTypeError(f"mask: expected bools or real numbers in a dense tensor, got {mask.dtype}, {mask.layout}")
    if mask.dim() not in (2, 3) or 0 in mask.shape:
        hint = "; drop the channel axis, e.g. mask[:, 0]" if mask.dim() == 4 else ""
        raise ShapeError(f"mask: expected (h, w) or (n, h, w) with no empty axis, got {tuple(mask.shape)}{hint}")
    return mask


def _inside(mask: torch.Tensor) -> torch.Tensor:
    mask = mask.detach()
    if mask.is_floating_point() and bool(mask.isnan().any()):
        raise FrameError("`mask` holds NaN, so that it does not say what is inside. Use AreaOfInterest.from_saliency, or nan_to_num.")
    inside = mask != 0
    return inside if inside.dim() == 3 else inside[None]


def _size(size: tuple[int, int]) -> tuple[int, int]:
    if len(tuple(size)) != 2:
        raise ShapeError(f"size: expected (h, w) of the picture, got {tuple(size)}")
    grid = Grid(1, *size)
    return grid.h, grid.w


def _one_of_how(how: str) -> None:
    if how not in {"any", "nearest"}:
        raise ShapeError(f"how: expected 'any' or 'nearest', got {how!r}")


def _detected(boxes: Any, scores: Any, size: tuple[int, int], threshold: float, margin: float) -> torch.Tensor:
    corners = torch.as_tensor(boxes).detach().cpu().to(torch.float64)
    corners = corners.reshape(0, 4) if not corners.numel() else corners
    if corners.dim() != 2 or corners.shape[1] != 4:
        raise ShapeError(f"boxes: expected (k, 4) as (x0, y0, x1, y1), got {tuple(corners.shape)}")
    if scores is not None:
        given = torch.as_tensor(scores).detach().cpu().reshape(-1)
        if len(given) != len(corners):
            raise ShapeError(f"scores: expected one per box, {len(corners)}, got {len(given)}")
        corners = corners[given >= threshold]
    if not bool(corners.isfinite().all()):
        raise FrameError("`boxes` holds NaN or Inf. Drop these boxes, e.g. boxes[boxes.isfinite().all(1)].")
    h, w = size
    limits = torch.tensor([w, h, w, h], dtype=torch.float64)
    low, high = (corners[:, :2] - margin).floor(), (corners[:, 2:] + margin).ceil()
    clipped = torch.cat([low, high], 1).clamp(min=0).minimum(limits).long()
    mask = torch.zeros(size, dtype=torch.bool)
    for x0, y0, x1, y1 in clipped.tolist():
        mask[y0:y1, x0:x1] = True
    return mask


def _overlapped(points: NDArray[np.float64], h: int, w: int) -> NDArray[np.bool_]:
    """Cells whose inside a polygon overlaps: those whose centre it holds, and those through which its outline runs."""
    crossings = np.zeros((h, w + 1), dtype=np.int64)
    outline = np.zeros((h, w), dtype=bool)
    for (y0, x0), (y1, x1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            first, last = sorted((y0, y1))
            rows = np.arange(max(math.ceil(first - 0.5), 0), min(math.ceil(last - 0.5), h))
            at = x0 + (rows + 0.5 - y0) / (y1 - y0) * (x1 - x0)
            np.add.at(crossings, (rows, np.clip(np.ceil(at - 0.5), 0, w).astype(np.int64)), 1)
        cells = _passed(y0, x0, y1, x1, h, w)
        outline[cells[:, 0], cells[:, 1]] = True
    inside: NDArray[np.bool_] = np.cumsum(crossings, axis=1)[:, :w] % 2 == 1
    return inside | outline


def _passed(y0: float, x0: float, y1: float, x1: float, h: int, w: int) -> NDArray[np.int64]:
    """Cells (k, 2) through whose inside a line runs; a line along an edge between cells runs through none."""
    cuts = [np.array([0.0, 1.0])]
    for start, end, size in ((y0, y1, h), (x0, x1, w)):
        if start == end:
            if start == math.floor(start):
                return np.zeros((0, 2), dtype=np.int64)
            continue
        low, high = sorted((start, end))
        lines = np.arange(max(math.ceil(low), 0), min(math.floor(high), size) + 1)
        cuts.append((lines - start) / (end - start))
    t = np.unique(np.clip(np.concatenate(cuts), 0, 1))
    middle = (t[1:] + t[:-1])[t[1:] - t[:-1] > 1e-12] / 2
    cells = np.stack([np.floor(y0 + middle * (y1 - y0)), np.floor(x0 + middle * (x1 - x0))], 1).astype(np.int64)
    found: NDArray[np.int64] = cells[((cells >= 0) & (cells < (h, w))).all(1)]
    return found


def _pictures(image: Any, masks: int) -> list[NDArray[np.float64]] | None:
    """Images as (h, w, 3) of 0 to 1."""
    if image is None:
        return None
    values = torch.as_tensor(image).detach().cpu()
    values = values if values.dim() == 4 else values[None]
    if values.dim() != 4 or values.shape[1] not in (1, 3) or (masks > 1 and values.shape[0] not in (1, masks)):
        raise ShapeError(f"image: expected (c, h, w) or ({masks}, c, h, w) with c of 1 or 3, got {tuple(torch.as_tensor(image).shape)}")
    scaled = values.double() / 255 if values.dtype == torch.uint8 else values.double().clamp(0, 1)
    return list(scaled.expand(-1, 3, -1, -1).movedim(1, -1).numpy())
