"""A moving camera: where it looks, and what of the scene has been seen.

`MovingCamera` brings estimation (`motion.py`) and placing (`canvas.py`) together: it takes frames and gives the picture of the scene that
a network is to see, and how far that picture has been shifted since the frame before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.camera.canvas import Canvas, Pair
from sightline.camera.motion import MotionEstimator, Pose

MODES = ("translation", "affine")
_HYSTERESIS = 0.6  # pixels: a frame is laid at another place only if the one before is further off than this
_TREMBLE = 0.2  # pixels at the corners of the frame


class MovingCamera:
    """What a moving camera looks at.

    Not to be made by hand: ``stream.camera`` is one, in a stream with ``motion=``.

    Attributes:
        mode: "translation": frames are laid down at whole pixels, none is changed. "affine": they are turned, scaled and moved between
            pixels, bilinearly.
        pose: where the last frame lies, in the coordinates of the first one since `restarts` last grew.
        restarts: how often a frame could not be related to those before it, the first frame not counted.
        canvas: what the network sees.
    """

    def __init__(self, mode: str, canvas: Canvas) -> None:
        self.mode = mode
        self.canvas = canvas
        self.pose = Pose.start()
        self.restarts = 0
        self._motion = MotionEstimator(mode)
        self._place: Pair = (0, 0)

    def __repr__(self) -> str:
        y, x = self.position
        return f"MovingCamera({self.mode}, at ({y:.2f}, {x:.2f}), {self.restarts} restarts)"

    @property
    def position(self) -> tuple[float, float]:
        """(y, x), pixels: how far the middle of the view has moved since the first frame, or since the last restart."""
        middle = torch.tensor([(size - 1) / 2 for size in self.canvas.frame], dtype=torch.float64)
        y, x = (self.pose(middle) - middle).tolist()
        return y, x

    @property
    def offset(self) -> Pair:
        """(y, x): where the frame's first pixel lies on the canvas; for "affine" that of an unturned frame with the same middle."""
        return self.canvas.offset

    def reset(self) -> None:
        """Forgets all frames."""
        self._motion.reset()
        self.canvas.reset()
        self.pose, self.restarts, self._place = Pose.start(), 0, (0, 0)

    def __call__(self, frame: Tensor) -> Pair:
        """Takes the next frame, (1, c, h, w) and finite; ``canvas.pixels`` is what the network is to see.

        Returns:
            The shift (dy, dx) since the frame before: what lay at (y + dy, x + dx) lies at (y, x) now.
        """
        first = self.canvas.pixels is None
        self.pose = self._motion(frame)
        if first or self._motion.restarted:
            self.restarts += not first
            self._place = (0, 0)
            self.canvas.start(frame)
            return 0, 0
        if self.mode == "affine":
            self.pose = self._straightened(self.pose)
            return self.canvas.warp(frame, self.pose)
        place = self._rounded()
        if place != self._place and self._is_nearer(frame, place):
            self._place = place
        return self.canvas.place(frame, self._place)

    def _straightened(self, pose: Pose) -> Pose:
        """The pose without a turn or zoom that hardly moves the corners: estimates tremble by as much, and moving alone is cheaper."""
        middle = torch.tensor([(size - 1) / 2 for size in self.canvas.frame], dtype=torch.float64)
        straight = Pose(torch.eye(2, dtype=torch.float64), pose(middle) - middle)
        corners = torch.stack([-middle, middle, middle * torch.tensor([1, -1])]) + middle
        return straight if float((pose(corners) - straight(corners)).norm(dim=1).max()) < _TREMBLE else pose

    def _rounded(self) -> Pair:
        """The nearest whole pixels; the place before, where that is hardly further."""
        near = [
            before if abs(value - before) <= _HYSTERESIS else round(value)
            for value, before in zip(self.pose.origin.tolist(), self._place, strict=True)
        ]
        return near[0], near[1]

    def _is_nearer(self, frame: Tensor, place: Pair) -> bool:
        """Whether a frame differs less from what was seen if it lies here than if it lies where the last one did."""
        return self._difference(frame, place) < self._difference(frame, self._place)

    def _difference(self, frame: Tensor, place: Pair) -> float:
        """Mean distance of some rows from what was seen, where both show the scene; infinite where they do not meet."""
        pixels = self.canvas.pixels
        assert pixels is not None
        spans = []
        for axis in (0, 1):
            moved, size = place[axis] - self._place[axis], self.canvas.size[axis]
            start, own = self.canvas.offset[axis], self.canvas.frame[axis]
            low, high = max(start, start + moved, 0), min(start, start + moved) + own
            high = min(high, size)
            if high <= low:
                return float("inf")
            spans.append((low, high, start + moved))
        (y0, y1, y), (x0, x1, x) = spans
        seen, now = pixels[:, :, y0:y1:8, x0:x1], frame[:, :, y0 - y : y1 - y : 8, x0 - x : x1 - x]
        return float((now - seen).abs().mean())

    # -- coordinates ------------------------------------------------------------------------------------------------------------

    def to_frame(self, points: Tensor) -> Tensor:
        """Where points of the canvas (y, x), float64 (..., 2) in pixels, lie in the last frame."""
        if self.mode == "affine":
            return self.pose.inverse(points + torch.tensor(self.canvas.base, dtype=torch.float64))
        return points - torch.tensor(self.offset, dtype=torch.float64)
