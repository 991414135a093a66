"""Between a moving camera and a network: how large the canvas is, which multiples it is shifted by, and what of an output shows the frame.

What belongs here: what a stream with ``motion=`` needs to know of its network. What does not: the camera (`sightline.camera`) and
shifting held maps (`sightline.graph.shift`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch

from sightline.camera.canvas import Canvas, Pair, canvas_size, grid_points, resampled
from sightline.camera.motion import Pose
from sightline.camera.moving import MovingCamera
from sightline.errors import CaptureError, DTypeError, ShapeError
from sightline.graph.ir import Node
from sightline.graph.plan import Plan
from sightline.graph.shift import Shifts, shifts_of


@dataclass(frozen=True, eq=False)
class Layout:
    """How one network is run on a canvas.

    Attributes:
        plan: of the network at the canvas' size.
        frame: size (h, w) of the frames.
        canvas: size (h, w) of the canvas.
        stride: (y, x), of which shifts are multiples.
        shapes: of the outputs for a frame; None for those that are no maps that move with the picture, which refer to the canvas.
        steps: pixels of the frame per cell, (y, x), of the same outputs.
    """

    plan: Plan
    frame: Pair
    canvas: Pair
    stride: Pair
    shapes: tuple[tuple[int, ...] | None, ...]
    steps: tuple[tuple[Fraction, Fraction] | None, ...]

    def camera(self, mode: str) -> MovingCamera:
        """A camera that has seen nothing."""
        return MovingCamera(mode, Canvas(self.frame, self.canvas, self.stride))


def lay_out(plan: Plan, resize: Callable[[torch.Tensor], Plan] | None, frame: torch.Tensor) -> Layout:
    """Decides how a network runs on a canvas.

    Where all outputs are maps that move with the picture and the network takes other sizes, the canvas has a margin and the outputs are
    cut out of it. Otherwise the canvas is as large as the frame.

    Args:
        plan: of the network at the frame's size.
        resize: makes a plan for another example; None: the network takes no other size.
        frame: an example.

    Raises:
        ShapeError: more than one batch element.
    """
    if frame.shape[0] != 1:
        raise ShapeError(
            f"`frame` has {frame.shape[0]} batch elements; with `motion` each video needs a stream of its own (clone() shares the weights)."
        )
    layout = _laid_out(plan, resize, frame)
    shifts = shifts_of(layout.plan)
    for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)):  # worked out now, not in the middle of the video
        shifts.moves(dy * layout.stride[0], dx * layout.stride[1])
    return layout


def _laid_out(plan: Plan, resize: Callable[[torch.Tensor], Plan] | None, frame: torch.Tensor) -> Layout:
    small = shifts_of(plan)
    size = (frame.shape[2], frame.shape[3])
    outputs = plan.graph.outputs
    moving = [_steps(small, node) for node in outputs]
    if resize is not None and all(step is not None for step in moving):
        wanted = canvas_size(size, small.stride)
        try:
            large = resize(frame.new_zeros(frame.shape[0], frame.shape[1], *wanted))
        except (CaptureError, ShapeError, DTypeError):
            large = None
        if large is not None:
            shifts = shifts_of(large)
            steps = [_steps(shifts, node) for node in large.graph.outputs]
            if steps == moving and all(s % t == 0 for s, t in zip(small.stride, shifts.stride, strict=True)):
                return Layout(large, size, wanted, small.stride, tuple(node.shape for node in outputs), tuple(steps))
    shapes = tuple(node.shape if step is not None else None for node, step in zip(outputs, moving, strict=True))
    return Layout(plan, size, size, small.stride, shapes, tuple(moving))


def _steps(shifts: Shifts, node: Node) -> tuple[Fraction, Fraction] | None:
    y, x = shifts.stride_of(node) if node in shifts.plan.by_output else (None, None)
    return None if y is None or x is None else (y, x)


class View:
    """What of the outputs shows the last frame.

    Attributes:
        shift: (y, x) pixels to be added to coordinates that were read off the outputs, to get coordinates in the frame.
    """

    def __init__(self, layout: Layout, camera: MovingCamera) -> None:
        self._layout, self._camera = layout, camera
        self._corner = self._corners()
        maps = any(step is not None for step in layout.steps)
        self.shift: tuple[float, float] = (0.0, 0.0)
        if camera.mode == "translation" or not maps:
            y, x = camera.offset
            self.shift = (float(self._corner[0] - y), float(self._corner[1] - x))

    def _corners(self) -> Pair:
        """The canvas pixel with which all maps begin: a multiple of all their strides, as near to the frame's as can be."""
        corner = [0, 0]
        for axis in (0, 1):
            steps = [step[axis] for step in self._layout.steps if step is not None]
            if steps:
                coarse = math.lcm(*(step.numerator for step in steps))
                corner[axis] = round(self._camera.offset[axis] / coarse) * coarse
        return corner[0], corner[1]

    def of(self, index: int, value: object) -> object:
        """What of the index-th output is returned: a copy that belongs to the caller."""
        shape, step = self._layout.shapes[index], self._layout.steps[index]
        if not isinstance(value, torch.Tensor):
            return value
        if shape is None or step is None:
            return value.clone(memory_format=torch.contiguous_format)
        size = (shape[2], shape[3])
        if self._camera.mode == "affine" and not self._camera.pose.translates:
            return resampled(value, self._cells(size, step)).contiguous()
        for axis in (0, 1):
            value = self._cut(value, axis, size[axis], step[axis])
        return value.clone(memory_format=torch.contiguous_format)

    def _cut(self, value: torch.Tensor, axis: int, size: int, step: Fraction) -> torch.Tensor:
        """The cells along one axis that show the frame; those of "affine" lie between two."""
        if self._camera.mode == "affine":
            start = (float(self._camera.pose.origin[axis]) - self._camera.canvas.base[axis]) / float(step)
            first = math.floor(start)
            if start - first > 1e-6:
                near, far = (_cells_from(value, axis, size, first + i) for i in (0, 1))
                return torch.lerp(near, far, start - first)
            return _cells_from(value, axis, size, first)
        return _cells_from(value, axis, size, int(self._corner[axis] / step))

    def _cells(self, size: Pair, step: tuple[Fraction, Fraction]) -> torch.Tensor:
        """Where the cells of the frame's own map lie on that of the canvas, in cells."""
        factors = (float(step[0]), float(step[1]))
        pose, base = self._camera.pose, torch.tensor(self._camera.canvas.base, dtype=torch.float64)
        points = grid_points(Pose(pose.linear, pose.origin - base), size, factors)
        return (points + 0.5) / torch.tensor(factors) - 0.5

    def mask(self, mask: torch.Tensor) -> torch.Tensor:
        """What of a mask (n, h, w) of the canvas, at any resolution, lies in the frame."""
        spans = []
        for axis in (0, 1):
            cells = mask.shape[1 + axis]
            scale = cells / self._layout.canvas[axis]
            size = max(1, round(self._layout.frame[axis] * scale))
            first = min(max(round(self._camera.offset[axis] * scale), 0), cells - size)
            spans.append(slice(first, first + size))
        return mask[:, spans[0], spans[1]]


def _cells_from(value: torch.Tensor, axis: int, size: int, first: int) -> torch.Tensor:
    """So many cells along an axis of a map, from one on; beyond the map, its border goes on."""
    if 0 <= first <= value.shape[2 + axis] - size:
        return value.narrow(2 + axis, first, size)
    return value.index_select(2 + axis, (torch.arange(size, device=value.device) + first).clamp(0, value.shape[2 + axis] - 1))
