"""The retina that a configuration describes, and the one of controls that see the whole image.

What belongs here: from settings to `RetinalTransform`. What does not: sampling itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.fovea.config.schema import Section
from sightline.fovea.networks.ladder import Ladder
from sightline.fovea.retina import RetinalTransform
from sightline.fovea.sensor import SensorGrid

SAMPLERS = {"grid_nn": "nearest", "grid_bilinear": "bilinear"}
"""Samplers' names in configurations, where they differ from those of `RetinalTransform`."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class IdentityRetina(nn.Module):
    """For controls that see the whole image: every fixation is the image.

    Args:
        fixation_size: kept for policies; nothing is cut out.
    """

    def __init__(self, fixation_size: float | Sequence[float]) -> None:
        super().__init__()
        self.fixation_size = fixation_size
        self.camera = None  # policies ask: with a calibrated one, sizes in pixels would mean nothing

    @property
    def default_size(self) -> tuple[float, float]:
        """Height and width that policies work with."""
        size = self.fixation_size
        height, width = (size, size) if isinstance(size, int | float) else size
        return float(height), float(width)

    def forward(self, images: Tensor, fixations: Any = None, sizes: Any = None) -> Tensor:
        """(B, C, H, W), or (B, F, C, H, W) for fixations (B, F, 2); uint8 is divided by 255."""
        del sizes
        images = images / 255.0 if images.dtype == torch.uint8 else images
        if isinstance(fixations, Tensor) and fixations.ndim == 3:
            return images[:, None].expand(-1, fixations.shape[1], -1, -1, -1)
        return images


def retina_for(see: Section, sensor: SensorGrid | None, retina: Any = RetinalTransform, make: Any = SensorGrid) -> nn.Module:
    """What looks, for a configuration.

    Args:
        see: complete settings.
        sensor: the one that the network's first layer reads; None: the network is dense.
        retina: class of the retina.
        make: class of a dense network's sensor.

    Raises:
        ConfigError: a foveated network on a grid, or a dense one on points.
    """
    mode = see.saccades.mode
    if mode is None:
        if sensor is not None:
            raise ConfigError(f"model.arch {see.model.arch} reads a sensor: saccades.mode must not be null")
        return IdentityRetina(see.saccades.fixation_size)
    if sensor is None:
        if not mode.endswith("_as_grid"):
            lattice = mode if mode in {"logpolar", "warped_cartesian"} else "uniform"
            raise ConfigError(f"model.arch {see.model.arch} reads a grid: take saccades.mode={lattice}_as_grid, or a foveated network")
        sensor = _grid(see, make)
    elif mode.endswith("_as_grid"):
        raise ConfigError(f"model.arch {see.model.arch} reads points: take saccades.mode={mode.removesuffix('_as_grid')}")
    normalized = bool(see.transforms.normalize) and see.model.in_channels == 3
    made: nn.Module = retina(
        sensor,
        sampler=SAMPLERS.get(see.saccades.sampler, see.saccades.sampler),
        fixation_size=see.saccades.fixation_size,
        color_sigma=see.saccades.color_sigma,
        color_mean=IMAGENET_MEAN if normalized else None,
        color_std=IMAGENET_STD if normalized else None,
        gray_in_eval=bool(see.validation.no_color),
        pool_factor=see.saccades.pool_factor,
    )
    return made


def _grid(see: Section, make: Any) -> SensorGrid:
    look = see.saccades
    cmf_a = 1.0 if look.cmf_a is None else look.cmf_a  # a uniform grid has none
    ladder = Ladder(
        look.fov, cmf_a, look.mode, look.field_geometry, look.fov_type, float(look.radius_norm), look.isotropic_plotting_type,
        look.auto_match_cart_resources, look.ties, None, make,
    )  # fmt: skip
    return ladder.start(look.resize_size).sensor
