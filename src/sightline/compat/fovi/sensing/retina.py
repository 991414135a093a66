"""From images to samples: ``fovi.sensing.retina``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sightline.compat.fovi._defaults import device_or_default
from sightline.compat.fovi.sensing.coords import SamplingCoords
from sightline.errors import ConfigError
from sightline.fovea.color import ColorDecay
from sightline.fovea.looking import SAMPLERS
from sightline.fovea.networks.ladder import Ladder
from sightline.fovea.retina import RetinalTransform as _RetinalTransform
from sightline.fovea.sensor import SensorGrid, smallest_cmf_a

_Device = torch.device | str | None

__all__ = ["GaussianColorDecay", "RetinalTransform", "get_min_cmf_a"]


class GaussianColorDecay(ColorDecay):
    """`ColorDecay` by fovi's name: colour fades with eccentricity, lightness stays (the original darkens everything)."""


class RetinalTransform(_RetinalTransform):
    """`sightline.fovea.RetinalTransform` by fovi's arguments.

    Args:
        resolution: side of the square image that the sensor is matched to, or its rings.
        start_res: pixels that the field of view covers, unless ``fixation_size`` says otherwise.
        fov, cmf_a, style: of the sensor.
        sampler: "grid_nn", "grid_bilinear", "pooling" or "gaussian_pooling".
        fixation_size: pixels that the field of view covers.
        device: of the sensor.
        dtype: of its coordinates.
        auto_match_cart_resources: False: ``resolution`` is the number of rings.
        pre_transforms, post_transforms: as in the base class.
        sigma: of `GaussianColorDecay`; None: colour does not fade.
        no_color_val: grey samples in evaluation.
        isotropic_plotting_type, fov_type, field_geometry, radius_norm: of the sensor.
        sensor: one that is there already.
        sampler_kwargs: accepted for fovi's back ends; ``color_mean`` and ``color_std`` go to the base class.
    """

    def __init__(
        self,
        resolution: int = 64,
        start_res: float = 256,
        fov: float = 16,
        cmf_a: float = 0.5,
        style: str = "isotropic",
        sampler: str = "grid_nn",
        fixation_size: Any = None,
        device: _Device = None,
        dtype: torch.dtype = torch.float32,
        auto_match_cart_resources: bool = True,
        pre_transforms: Callable[[Tensor], Tensor] | None = None,
        post_transforms: Callable[[Tensor], Tensor] | None = None,
        sigma: float | None = None,
        no_color_val: bool = False,
        isotropic_plotting_type: str = "v1like",
        fov_type: str = "circular",
        field_geometry: str = "planar",
        radius_norm: float = 2.0,
        *,
        sensor: SensorGrid | None = None,
        **sampler_kwargs: Any,
    ) -> None:
        if sampler_kwargs.get("camera_model") is not None:
            raise ConfigError("camera_model is not taken here: make a sightline.fovea.RetinalTransform(camera=) for a calibrated camera")
        where = device_or_default(device)
        if sensor is None:
            ladder = Ladder(
                fov, cmf_a, style, field_geometry, fov_type, radius_norm, isotropic_plotting_type, int(auto_match_cart_resources), "fovi",
                where, SamplingCoords.make,
            )  # fmt: skip
            sensor = ladder.start(resolution).sensor
        super().__init__(
            sensor, sampler=SAMPLERS.get(sampler, sampler), fixation_size=start_res if fixation_size is None else fixation_size,
            color_sigma=sigma, gray_in_eval=bool(no_color_val), pre_transforms=pre_transforms, post_transforms=post_transforms,
        )  # fmt: skip
        self.foveal_color = GaussianColorDecay(sigma, mean=sampler_kwargs.get("color_mean"), std=sampler_kwargs.get("color_std"))
        self.dtype, self.device = dtype, where
        self.to(where)

    @classmethod
    def around(cls, sensor: SensorGrid, *, sampler: str, color_sigma: float | None, gray_in_eval: bool, **options: Any) -> RetinalTransform:
        """One around a sensor that is there already, from the arguments of the base class."""
        return cls(sensor=sensor, sampler=sampler, sigma=color_sigma, no_color_val=gray_in_eval, device=sensor.device, **options)

    @property
    def coords(self) -> SensorGrid:
        """The sensor."""
        return self.sensor


def get_min_cmf_a(
    fixation_size: float,
    output_res: int,
    start_res: float = 5496,
    fov: float = 65,
    *unused: Any,
    use_scaled_fov: bool = True,
    **ignored: Any,
) -> float:
    """The strongest foveation at which no two rings are closer than a pixel; see `sightline.fovea.sensor.smallest_cmf_a`.

    Args:
        fixation_size: pixels that the field of view covers.
        output_res: side of the grid that the sensor is matched to.
        start_res: pixels that ``fov`` covers.
        fov: degrees.
        unused: fovi's options of its search.
        use_scaled_fov: False: ``fov`` is what ``fixation_size`` covers.
        ignored: the same.
    """
    del unused, ignored
    return smallest_cmf_a(fixation_size, output_res, fov=fov, image_size=start_res if use_scaled_fov else fixation_size)
