"""Looking through a calibrated camera: an eye that turns, and samples along rays.

What belongs here: from points on the retina and fixations to pixels, by way of directions. Lenses belong to `lens.py`.
"""

from __future__ import annotations

import math

import torch

from sightline.errors import ShapeError
from sightline.fovea.buffers import PreciseBuffers
from sightline.fovea.lens import CalibratedCamera
from sightline.fovea.sampling import sample_at
from sightline.fovea.sensor import SensorGrid

CONVENTIONS = ("camera_xyz", "pan_tilt")


def retinal_rays(points: torch.Tensor, fov: float) -> torch.Tensor:
    """Unit directions (N, 3) of retinal points (N, 2): X to the right, Y down, Z where the eye looks; radius 1 is fov / 2 away from Z."""
    angle = torch.linalg.vector_norm(points, dim=-1) * math.radians(fov / 2)
    lateral = math.radians(fov / 2) * torch.sinc(angle / math.pi)
    x, y = points.unbind(-1)
    return torch.stack((x * lateral, -y * lateral, torch.cos(angle)), dim=-1)


def gaze_rotation(directions: torch.Tensor, convention: str = "camera_xyz") -> torch.Tensor:
    """The rotation that turns an eye from straight ahead to a direction.

    Args:
        directions: (..., 3) in the camera's coordinates.
        convention: how the eye turns, and so what is upright for it: "camera_xyz": by a pitch about Y within a roll about X, Rx Ry.
            "pan_tilt": by a tilt about X within a pan about Y, Ry Rx, as a head on a tripod.

    Returns:
        (..., 3, 3), to be multiplied from the left.
    """
    x, y, z = directions.unbind(-1)
    if convention == "camera_xyz":
        about_y, about_x = torch.atan2(x, torch.sqrt(y * y + z * z)), torch.atan2(-y, z)
        return _about_x(about_x) @ _about_y(about_y)
    about_y, about_x = torch.atan2(x, z), torch.atan2(-y, torch.sqrt(x * x + z * z))
    return _about_y(about_y) @ _about_x(about_x)


def _about_x(angle: torch.Tensor) -> torch.Tensor:
    c, s, one, zero = torch.cos(angle), torch.sin(angle), torch.ones_like(angle), torch.zeros_like(angle)
    return torch.stack((one, zero, zero, zero, c, -s, zero, s, c), dim=-1).reshape(*angle.shape, 3, 3)


def _about_y(angle: torch.Tensor) -> torch.Tensor:
    c, s, one, zero = torch.cos(angle), torch.sin(angle), torch.ones_like(angle), torch.zeros_like(angle)
    return torch.stack((c, zero, s, zero, one, zero, -s, zero, c), dim=-1).reshape(*angle.shape, 3, 3)


class CameraSampler(PreciseBuffers):
    """Samples images of a calibrated camera along the rays of an eye that turns to the fixation.

    The field of view is an angle here, so sizes in pixels have no meaning; the field keeps its angle wherever the eye looks, as a plain
    sampler's field keeps its pixels.

    Args:
        sensor: points whose radius 1 is fov / 2 degrees from the line of sight.
        camera: which images.
        mode: "nearest" or "bilinear".
        convention: see `gaze_rotation`.

    Raises:
        ValueError: an unknown convention, or a field of view above 360 degrees.
    """

    rays: torch.Tensor

    def __init__(self, sensor: SensorGrid, camera: CalibratedCamera, mode: str = "nearest", convention: str = "camera_xyz") -> None:
        super().__init__()
        if convention not in CONVENTIONS:
            raise ValueError(f"`gaze` must be one of {', '.join(map(repr, CONVENTIONS))}; got {convention!r}")
        if sensor.key.fov > 360:
            raise ValueError(f"`fov` must be at most 360 degrees to be looked at through a camera, got {sensor.key.fov:g}")
        self.sensor, self.camera, self.mode, self.convention = sensor, camera, mode, convention
        # Cells outside a lattice's field may lie behind the eye, or more than once around; they are masked anyway.
        points = sensor.exact.cartesian * sensor.exact.valid_mask[:, None]
        self.register_buffer("rays", retinal_rays(points, sensor.key.fov).to(sensor.device), persistent=False)

    def pixels(self, fixations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the points fall: pixels (..., N, 2) as (x, y) and whether they are seen (..., N), for fixations (..., 2)."""
        height, width = self.camera.image_size
        target = torch.stack((fixations[..., 1] * width - 0.5, fixations[..., 0] * height - 0.5), dim=-1)
        direction, known = self.camera.unproject(target)
        directions = self.rays.to(fixations.dtype) @ gaze_rotation(direction, self.convention).transpose(-1, -2)
        pixels, seen = self.camera.project(directions)
        return pixels, seen & known[..., None]

    def forward(self, images: torch.Tensor, fixations: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        """(B, F, C, N) of images (B, C, H, W) at fixations (B, F, 2); `sizes` does not matter. What the camera does not see is 0."""
        if tuple(images.shape[2:]) != self.camera.image_size:
            raise ShapeError(
                f"`images` of this camera are {self.camera.image_size}, got {tuple(images.shape[2:])}; take camera.resized(...) where "
                "images were resized whole"
            )
        pixels, seen = self.pixels(fixations)
        return sample_at(images, torch.where(seen[..., None], pixels, -10.0).movedim(-1, 0), self.mode)

    def extra_repr(self) -> str:
        """For print()."""
        grid = self.sensor
        return (
            f"fov={grid.fov}, cmf_a={grid.cmf_a}, resolution={grid.resolution}, camera={self.camera.model}, mode={self.mode}, n={len(grid)}"
        )
