"""`RetinalTransform`: from images and fixations to what a foveated sensor sees.

What belongs here: sampler, colour and augmentation put together. Where to look belongs to `saccades`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from sightline.fovea.buffers import PreciseBuffers
from sightline.fovea.color import ColorDecay, luma_of
from sightline.fovea.gaze import CameraSampler
from sightline.fovea.lens import CalibratedCamera
from sightline.fovea.pooling import PoolingSampler
from sightline.fovea.sampling import Fixation, batch_of_fixations, batch_of_sizes, check_images, sample
from sightline.fovea.sensor import SensorGrid

SAMPLERS = ("nearest", "bilinear", "pooling", "gaussian_pooling")
Transform = Callable[[torch.Tensor], torch.Tensor]


class GridSampler(PreciseBuffers):
    """Reads single points of an image, see `sample`.

    Args:
        sensor: where.
        mode: "nearest" or "bilinear".
    """

    points: torch.Tensor

    def __init__(self, sensor: SensorGrid, mode: str = "nearest") -> None:
        super().__init__()
        self.sensor, self.mode = sensor, mode
        self.register_buffer("points", sensor.cartesian.clone(), persistent=False)

    def forward(self, images: torch.Tensor, fixations: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """(B, F, C, N) of images (B, C, H, W), fixations (B, F, 2) and sizes (B, F or 1, 2)."""
        return sample(images, self.points.to(fixations.dtype), fixations, sizes, self.mode)

    def extra_repr(self) -> str:
        """For print()."""
        grid = self.sensor
        return f"fov={grid.fov}, cmf_a={grid.cmf_a}, style={grid.style}, resolution={grid.resolution}, mode={self.mode}, n={len(grid)}"


class RetinalTransform(PreciseBuffers):
    """What a sensor sees of images at given fixations.

    Args:
        sensor: where to sample. `SensorGrid.matched` makes one with the budget of a square image.
        sampler: "nearest": the nearest pixel. "bilinear": four pixels, differentiable in the fixation too. "pooling": means over the
            nearest points of a denser sensor (photoreceptors to ganglion cells). "gaussian_pooling": means weighted by distance.
        fixation_size: pixels that the field of view covers in the image: one number or (height, width).
        color_sigma: eccentricity (1 = rim) over which colour fades, see `ColorDecay`; None: it does not.
        color_mean: per channel, and
        color_std: per channel: what images were normalised with, for `color_sigma`.
        gray_in_eval: grey samples in eval mode.
        pre_transforms: called with the images (B, C, H, W) before sampling, in training mode only. uint8 images are divided by 255 first.
        post_transforms: called with the samples (B * F, C, N, 1) after sampling, in training mode only.
        pool_factor: rings of the denser sensor per ring, for the pooling samplers.
        pool_k: points per mean; None: as many as there are per sample.
        gauss_sigma: of "gaussian_pooling", in units of the span of a sample's distances.
        camera: the calibrated camera that images come from: the field of view is then an angle, and samples are taken along rays, see
            `CameraSampler`. For "nearest" and "bilinear". None: the image is the visual field.
        gaze: how the eye turns in front of a camera: "camera_xyz" or "pan_tilt", see `gaze_rotation`.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> retina = RetinalTransform(SensorGrid.matched(16, 0.5, 64))
        >>> retina(torch.zeros(2, 3, 256, 256)).shape
        torch.Size([2, 3, 4085])
    """

    radius: torch.Tensor
    valid_mask: torch.Tensor

    def __init__(
        self,
        sensor: SensorGrid,
        *,
        sampler: str = "nearest",
        fixation_size: float | Sequence[float] = 256,
        color_sigma: float | None = None,
        color_mean: Sequence[float] | None = None,
        color_std: Sequence[float] | None = None,
        gray_in_eval: bool = False,
        pre_transforms: Transform | None = None,
        post_transforms: Transform | None = None,
        pool_factor: float = 3.0,
        pool_k: int | None = None,
        gauss_sigma: float = 0.5,
        camera: CalibratedCamera | None = None,
        gaze: str = "camera_xyz",
    ) -> None:
        super().__init__()
        if sampler not in SAMPLERS:
            raise ValueError(f"`sampler` must be one of {', '.join(map(repr, SAMPLERS))}; got {sampler!r}")
        self.sensor = sensor
        self.fixation_size = fixation_size
        self.gray_in_eval = gray_in_eval
        self.pre_transforms, self.post_transforms = pre_transforms, post_transforms
        self.foveal_color = ColorDecay(color_sigma, mean=color_mean, std=color_std)
        self.camera = camera
        self.sampler: nn.Module
        if camera is not None:
            if sampler not in {"nearest", "bilinear"}:
                raise ValueError(f"a calibrated camera is sampled by 'nearest' or 'bilinear', got sampler={sampler!r}")
            self.sampler = CameraSampler(sensor, camera, sampler, gaze)
        elif sampler in {"nearest", "bilinear"}:
            self.sampler = GridSampler(sensor, sampler)
        else:
            sigma = gauss_sigma if sampler == "gaussian_pooling" else None
            self.sampler = PoolingSampler(sensor, factor=pool_factor, k=pool_k, gauss_sigma=sigma)
        self.register_buffer("radius", sensor.polar[:, 0].clone(), persistent=False)
        self.register_buffer("valid_mask", sensor.valid_mask.clone(), persistent=False)
        self._all_valid = bool(sensor.exact.valid_mask.all())

    @property
    def default_size(self) -> tuple[float, float]:
        """(height, width) in pixels that the field of view covers where nothing else is said."""
        size = self.fixation_size
        height, width = (size, size) if isinstance(size, (int, float)) else size
        return float(height), float(width)

    def forward(self, images: torch.Tensor, fixations: Fixation = None, sizes: Fixation = None) -> torch.Tensor:
        """Samples images at fixations.

        Args:
            images: (B, C, H, W) of any size; floating, or uint8, which is divided by 255 after sampling.
            fixations: (row, col) from 0 to 1 of the image: None (the centre), a number, a pair, (B, 2), or (B, F, 2) for F fixations each.
            sizes: pixels that the field of view covers: None (`fixation_size`), a number, (height, width), (B, 2) or (B, F, 2). With a
                `camera` the field is an angle, and None the only choice.

        Returns:
            (B, C, N), or (B, F, C, N) for fixations (B, F, 2); float32 of uint8, else the images' type. In memory the nodes come first:
            ``x.permute(2, 0, 1)`` is contiguous. For sensors of a style "..._as_grid": (B, C, side, side), or with F. Points outside the
            image, and cells outside the field, are 0; NaN stays.

        Raises:
            ShapeError: images or fixations of another shape.
            DTypeError: integers other than uint8.
            ValueError: fixations that are NaN or outside the image; sizes that are not above 0, or given with a camera.

        Differentiable in the images, and in fixations and sizes with "bilinear".
        Cost: B F N C values, whatever the images' size.
        """
        check_images(images)
        if sizes is not None and self.camera is not None:
            raise ValueError("`sizes` in pixels mean nothing with a calibrated camera: its field of view is an angle; leave them out")
        fixed = batch_of_fixations(fixations, images)
        size = batch_of_sizes(sizes, images, self.default_size)
        one_each = not (isinstance(fixations, torch.Tensor) and fixations.ndim == 3)
        if size.shape[1] not in {1, fixed.shape[1]}:
            fixed = fixed.expand(-1, size.shape[1], -1)
            one_each = False
        if self.training and self.pre_transforms is not None:
            images = self.pre_transforms(images / 255.0 if images.dtype == torch.uint8 else images)
        samples: torch.Tensor = self.sampler(images, fixed, size)
        if images.dtype == torch.uint8:
            samples = samples / 255.0
        samples = self._finished(samples)
        if one_each:
            samples = samples[:, 0]
        return self.sensor.as_grid(samples) if self.sensor.returns_maps else samples

    def _finished(self, samples: torch.Tensor) -> torch.Tensor:
        """Everything after sampling; (B, F, C, N)."""
        if self.training and self.post_transforms is not None:
            batch, glances = samples.shape[:2]
            samples = self.post_transforms(samples.flatten(0, 1).unsqueeze(-1)).squeeze(-1).unflatten(0, (batch, glances))
        samples = self.foveal_color(samples, self.radius)
        if self.gray_in_eval and not self.training and samples.shape[-2] == 3:
            samples = luma_of(samples).expand_as(samples)
        if not self._all_valid:
            samples = torch.where(self.valid_mask, samples, 0)
        return samples
