"""Calibrated cameras: which direction each pixel looks, and where a direction falls.

What belongs here: lenses. How an eye turns and samples through one belongs to `gaze.py`.

Camera coordinates: X to the right, Y down, Z forward. Pixels: (x, y) with whole numbers at their centres, as in OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

_STEPS = 12  # of Newton's method
_REACHED = 1e-3  # pixels that an inversion may be off


@dataclass(frozen=True)
class CalibratedCamera:
    """A pinhole or fisheye camera with OpenCV's distortion models.

    Args:
        model: "pinhole" (radial and tangential distortion) or "fisheye" (the angle through a polynomial).
        image_size: (height, width) in pixels.
        intrinsics: (fx, fy, cx, cy) in pixels.
        distortion: pinhole: (), (k1, k2, p1, p2), with k3, or with k3, k4, k5, k6; fisheye: () or (k1, k2, k3, k4).
        image_circle: (x, y, radius) of the disc that the lens lights; None: the whole image.
        max_angle: degrees from the optical axis up to which the calibration holds; pinhole: at most 90, fisheye: below 180.

    Raises:
        ValueError: numbers that make no camera.

    Source: the camera models of OpenCV's calib3d (pinhole: Brown 1966; fisheye: Kannala and Brandt 2006).
    """

    model: str
    image_size: tuple[int, int]
    intrinsics: tuple[float, float, float, float]
    distortion: tuple[float, ...] = ()
    image_circle: tuple[float, float, float] | None = None
    max_angle: float = 90.0

    def __post_init__(self) -> None:
        for name in ("image_size", "intrinsics", "distortion", "image_circle"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        lengths = {"pinhole": (0, 4, 5, 8), "fisheye": (0, 4)}
        if self.model not in lengths:
            raise ValueError(f"`model` must be 'pinhole' or 'fisheye', got {self.model!r}")
        _finite("image_size", self.image_size, 2, positive=2)
        _finite("intrinsics", self.intrinsics, 4, positive=2)
        if len(self.distortion) not in lengths[self.model]:
            wanted = ", ".join(map(str, lengths[self.model]))
            raise ValueError(f"`distortion` of a {self.model} camera has {wanted} coefficients, got {len(self.distortion)}")
        _finite("distortion", self.distortion, len(self.distortion))
        if self.image_circle is not None:
            _finite("image_circle", self.image_circle, 3)
            if self.image_circle[2] <= 0:
                raise ValueError(f"the radius of `image_circle` must be above 0, got {self.image_circle[2]!r}")
        highest = 90.0 if self.model == "pinhole" else 180.0
        if not 0 < self.max_angle <= highest or (self.model == "fisheye" and self.max_angle == highest):
            raise ValueError(
                f"`max_angle` of a {self.model} camera must be above 0 and at most {highest:g} degrees, got {self.max_angle!r}"
            )

    # ------------------------------------------------------------------------------------------ directions and pixels
    def project(self, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where directions fall.

        Args:
            directions: (..., 3), any length but 0.

        Returns:
            Pixels (..., 2) as (x, y), and whether they can be seen (...,) bool: in the image, in its circle, within `max_angle`.
        """
        lateral = torch.linalg.vector_norm(directions[..., :2], dim=-1)
        depth = directions[..., 2]
        angle = torch.atan2(lateral, depth)
        tiny = torch.finfo(directions.dtype).eps
        if self.model == "pinhole":
            plane = self._distorted(directions[..., :2] / depth.clamp_min(tiny)[..., None])
        else:
            axis = lateral <= tiny
            scale = torch.where(axis, 1 / depth.abs().clamp_min(tiny), self._polynomial(angle)[0] / torch.where(axis, 1.0, lateral))
            plane = directions[..., :2] * scale[..., None]
        focal, centre = self._intrinsics(directions)
        pixels = plane * focal + centre
        seen = self.holds(pixels) & (angle <= math.radians(self.max_angle) + tiny)
        return pixels, seen & (depth > 0) if self.model == "pinhole" else seen

    def unproject(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which direction pixels look, by Newton's method.

        Args:
            pixels: (..., 2) as (x, y).

        Returns:
            Unit directions (..., 3), and whether they are right (...,) bool: projected again they must come within 0.001 pixels.
        """
        focal, centre = self._intrinsics(pixels)
        plane = (pixels - centre) / focal
        if self.model == "pinhole":
            straight = self._undistorted(plane)
            directions = torch.nn.functional.normalize(torch.cat((straight, torch.ones_like(straight[..., :1])), dim=-1), dim=-1)
        else:
            radius = torch.linalg.vector_norm(plane, dim=-1)
            angle = radius
            for _ in range(_STEPS):
                mapped, slope = self._polynomial(angle)
                angle = angle - (mapped - radius) / slope.clamp_min(torch.finfo(pixels.dtype).eps)
            axis = radius <= torch.finfo(pixels.dtype).eps
            scale = torch.where(axis, 1.0, torch.sin(angle) / torch.where(axis, 1.0, radius))
            directions = torch.cat((plane * scale[..., None], torch.cos(angle)[..., None]), dim=-1)
        again, seen = self.project(directions)
        return directions, seen & ((again - pixels).abs().amax(-1) < _REACHED)

    def holds(self, pixels: torch.Tensor) -> torch.Tensor:
        """(...,) bool: whether pixels (..., 2) lie in the image and in its circle."""
        height, width = self.image_size
        x, y = pixels.unbind(-1)
        inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)  # NaN is not
        if self.image_circle is not None:
            middle_x, middle_y, radius = self.image_circle
            inside = inside & ((x - middle_x) ** 2 + (y - middle_y) ** 2 <= radius**2)
        return inside

    def resized(self, image_size: tuple[int, int]) -> CalibratedCamera:
        """The same camera behind a resize of whole images to (height, width). Crops and rotations need other intrinsics.

        Raises:
            ValueError: a camera with an image circle, and a resize that would make an ellipse of it.
        """
        down, across = image_size[0] / self.image_size[0], image_size[1] / self.image_size[1]
        fx, fy, cx, cy = self.intrinsics
        circle = self.image_circle
        if circle is not None:
            if not math.isclose(down, across):
                raise ValueError(f"a camera with an image circle must keep its proportions, got {self.image_size} to {tuple(image_size)}")
            circle = ((circle[0] + 0.5) * across - 0.5, (circle[1] + 0.5) * down - 0.5, circle[2] * across)
        moved = (fx * across, fy * down, (cx + 0.5) * across - 0.5, (cy + 0.5) * down - 0.5)
        return replace(self, image_size=image_size, intrinsics=moved, image_circle=circle)

    # ------------------------------------------------------------------------------------------ lenses
    def _intrinsics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fx, fy, cx, cy = self.intrinsics
        return like.new_tensor([fx, fy]), like.new_tensor([cx, cy])

    def _coefficients(self) -> tuple[float, ...]:
        return (*self.distortion, *(0.0,) * (8 - len(self.distortion)))

    def _radial(self, square: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The radial factor at squared radii, and its derivative by the squared radius."""
        k1, k2, _, _, k3, k4, k5, k6 = self._coefficients()
        above = 1 + square * (k1 + square * (k2 + square * k3))
        below = 1 + square * (k4 + square * (k5 + square * k6))
        above_slope = k1 + square * (2 * k2 + square * 3 * k3)
        below_slope = k4 + square * (2 * k5 + square * 3 * k6)
        factor = above / below
        return factor, (above_slope - factor * below_slope) / below

    def _distorted(self, plane: torch.Tensor) -> torch.Tensor:
        if not self.distortion:
            return plane
        _, _, p1, p2, *_ = self._coefficients()
        x, y = plane.unbind(-1)
        square = x * x + y * y
        factor, _ = self._radial(square)
        shift_x = 2 * p1 * x * y + p2 * (square + 2 * x * x)
        shift_y = p1 * (square + 2 * y * y) + 2 * p2 * x * y
        return torch.stack((x * factor + shift_x, y * factor + shift_y), dim=-1)

    def _undistorted(self, wanted: torch.Tensor) -> torch.Tensor:
        if not self.distortion:
            return wanted
        _, _, p1, p2, *_ = self._coefficients()
        plane = wanted
        tiny = torch.finfo(wanted.dtype).eps
        for _ in range(_STEPS):
            x, y = plane.unbind(-1)
            factor, slope = self._radial(x * x + y * y)
            xx = factor + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
            yy = factor + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x
            xy = 2 * (x * y * slope + p1 * x + p2 * y)
            determinant = xx * yy - xy * xy
            determinant = torch.where(determinant.abs() > tiny, determinant, tiny)
            off_x, off_y = (self._distorted(plane) - wanted).unbind(-1)
            plane = plane - torch.stack((yy * off_x - xy * off_y, xx * off_y - xy * off_x), dim=-1) / determinant[..., None]
        return plane

    def _polynomial(self, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A fisheye's radius in the image at angles, and its derivative."""
        k1, k2, k3, k4 = self.distortion or (0.0, 0.0, 0.0, 0.0)
        square = angle * angle
        radius = angle * (1 + square * (k1 + square * (k2 + square * (k3 + square * k4))))
        slope = 1 + square * (3 * k1 + square * (5 * k2 + square * (7 * k3 + square * 9 * k4)))
        return radius, slope


def _finite(name: str, values: Sequence[float], count: int, positive: int = 0) -> None:
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise ValueError(f"`{name}` must be {count} finite numbers, got {values!r}")
    if any(value <= 0 for value in values[:positive]):
        raise ValueError(f"the first {positive} numbers of `{name}` must be above 0, got {values!r}")
