"""A picture anchored to the scene, on which frames of a moving camera are laid.

As long as the camera moves within the margin, what shows the same part of the scene lies at the same place of the canvas. When a frame
would leave the margin, the whole canvas is shifted by a multiple of the network's strides, and held maps can be shifted with it.
Around the frame lies what was last seen there; what was never seen continues the nearest pixel that was.

What belongs here: placing pixels. What does not: how the camera moves (`motion.py`), and held maps (`sightline.graph.shift`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.camera.motion import Pose

Pair = tuple[int, int]


def canvas_size(frame: Pair, stride: Pair, least: int = 32) -> Pair:
    """Size (h, w) of a canvas with a margin for a frame (h, w): room for one stride, or for `least` pixels if that is more.

    >>> canvas_size((270, 480), (32, 32)), canvas_size((64, 64), (1, 1))
    ((320, 512), (96, 96))
    """
    sizes = []
    for size, step in zip(frame, stride, strict=True):
        margin = max(step, -(-least // step) * step)
        sizes.append(-(-(size + margin) // step) * step)
    return sizes[0], sizes[1]


class Canvas:
    """Lays frames down and says where.

    Args:
        frame: size (h, w) of the frames.
        size: size (h, w) of the canvas. Where it has no room for a whole stride of movement, the frame reaches over its border by up to
            half of what is missing; what lies beyond is not taken.
        stride: (y, x), of which shifts are multiples.

    Attributes:
        pixels: (1, c, h, w), what the network sees; None before the first frame. It is written to by every `place`.
        offset: (y, x), where the frame's first pixel lies on the canvas.
        base: (y, x), where the canvas' first pixel lies in the scene.
    """

    def __init__(self, frame: Pair, size: Pair, stride: Pair) -> None:
        self.frame, self.size, self.stride = frame, size, stride
        self.pixels: Tensor | None = None
        self.offset: Pair = (0, 0)
        self.base: Pair = (0, 0)
        self._range = [_allowed(canvas - own, step) for own, canvas, step in zip(frame, size, stride, strict=True)]

    def reset(self) -> None:
        """Forgets what was seen."""
        self.pixels = None

    def start(self, frame: Tensor) -> None:
        """Forgets what was seen and begins with this frame in the middle; its place in the scene is (0, 0)."""
        self.offset = (self._middle(0), self._middle(1))
        self.base = (-self.offset[0], -self.offset[1])
        h, w = self.size
        rows = (torch.arange(h, device=frame.device) - self.offset[0]).clamp(0, self.frame[0] - 1)
        cols = (torch.arange(w, device=frame.device) - self.offset[1]).clamp(0, self.frame[1] - 1)
        self.pixels = frame[:, :, rows[:, None], cols]

    def _middle(self, axis: int) -> int:
        low, high = self._range[axis]
        return (low + high) // 2

    def plan(self, place: Pair) -> Pair:
        """The shift (dy, dx) that `place` will do for a frame at this place (y, x) in the scene; multiples of the strides."""
        shift = [0, 0]
        for axis in (0, 1):
            low, high = self._range[axis]
            offset = place[axis] - self.base[axis]
            if not low <= offset <= high:
                step = self.stride[axis]
                shift[axis] = round((offset - (low + high) / 2) / step) * step
        return shift[0], shift[1]

    def place(self, frame: Tensor, place: Pair) -> Pair:
        """Lays a frame down, whole pixels, and returns the shift (dy, dx) that it took.

        What lay at (y + dy, x + dx) of the canvas lies at (y, x) afterwards; what came in continues its border.
        """
        shift = self._move_to(place)
        pixels = self._pixels()
        (y0, y1), (x0, x1) = (
            (max(0, offset), min(size, offset + own)) for offset, size, own in zip(self.offset, self.size, self.frame, strict=True)
        )
        oy, ox = self.offset
        pixels[:, :, y0:y1, x0:x1] = frame[:, :, y0 - oy : y1 - oy, x0 - ox : x1 - ox]
        return shift

    def warp(self, frame: Tensor, pose: Pose) -> Pair:
        """Lays a frame down under an affine pose, between pixels bilinearly; as `place` for the rest."""
        middle = torch.tensor([(size - 1) / 2 for size in self.frame], dtype=torch.float64)
        corner = pose(middle) - middle
        whole = corner.round().long().tolist()
        shift = self._move_to((whole[0], whole[1]))
        if pose.translates:
            self._lay_between(frame, (float(corner[0]), float(corner[1])))
            return shift
        pixels = self._pixels()
        points = grid_points(pose.inverse, self.size, base=self.base)
        inside = ((points >= 0) & (points <= torch.tensor([size - 1 for size in self.frame]))).all(-1).to(frame.device)
        pixels[:] = torch.where(inside, resampled(frame, points), pixels)
        return shift

    def _lay_between(self, frame: Tensor, corner: tuple[float, float]) -> None:
        """Lays a frame down whose first pixel falls between those of the scene: the same as `resampled`, axis by axis."""
        pixels, start = self._pixels(), []
        for axis in (0, 1):
            first = math.ceil(corner[axis] - 1e-6)
            part = first - corner[axis]
            if part > 1e-6:
                dim, size = 2 + axis, frame.shape[2 + axis]
                frame = torch.lerp(frame.narrow(dim, 0, size - 1), frame.narrow(dim, 1, size - 1), part)
            start.append(first - self.base[axis])
        (y0, y1), (x0, x1) = (
            (max(0, first), min(size, first + frame.shape[2 + axis]))
            for axis, (first, size) in enumerate(zip(start, self.size, strict=True))
        )
        pixels[:, :, y0:y1, x0:x1] = frame[:, :, y0 - start[0] : y1 - start[0], x0 - start[1] : x1 - start[1]]

    def _pixels(self) -> Tensor:
        if self.pixels is None:
            raise ValueError("the canvas is empty; call start() with the first frame.")
        return self.pixels

    def _move_to(self, place: Pair) -> Pair:
        shift = self.plan(place)
        pixels = self._pixels()
        if any(shift):
            h, w = self.size
            rows = (torch.arange(h, device=pixels.device) + shift[0]).clamp(0, h - 1)
            cols = (torch.arange(w, device=pixels.device) + shift[1]).clamp(0, w - 1)
            self.pixels = pixels[:, :, rows[:, None], cols]
            self.base = (self.base[0] + shift[0], self.base[1] + shift[1])
        self.offset = (place[0] - self.base[0], place[1] - self.base[1])
        return shift


def _allowed(margin: int, stride: int) -> Pair:
    """Offsets between which a frame may lie; at least a stride apart, so that every place can be reached."""
    if margin >= stride:
        return 0, margin
    low = -((stride - margin) // 2)
    return low, low + stride


def resampled(value: Tensor, points: Tensor) -> Tensor:
    """Values of maps at given places, bilinearly; beyond the border its cells go on.

    Args:
        value: (n, c, h, w).
        points: float32 (h', w', 2), (y, x) in cells.

    Returns:
        (n, c, h', w').
    """
    h, w = value.shape[-2:]
    scale = torch.tensor([2 / max(h - 1, 1), 2 / max(w - 1, 1)])
    dtype = value.dtype if value.dtype in {torch.float32, torch.float64} else torch.float32
    grid = (points * scale - 1).flip(-1).to(value.device, dtype)
    return F.grid_sample(value.to(dtype), grid.expand(len(value), *grid.shape), padding_mode="border", align_corners=True).to(value.dtype)


def grid_points(pose: Pose, size: Pair, step: tuple[float, float] = (1.0, 1.0), base: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Where the cells of a map lie under a pose, float32 (h, w, 2): cell (i, j) is the pixel ``base + ((i, j) + 0.5) * step - 0.5``."""
    rows, cols = (base[axis] + (torch.arange(size[axis], dtype=torch.float64) + 0.5) * step[axis] - 0.5 for axis in (0, 1))
    a = pose.linear
    return torch.stack([rows[:, None] * a[i, 0] + cols * a[i, 1] + pose.origin[i] for i in (0, 1)], -1).float()
