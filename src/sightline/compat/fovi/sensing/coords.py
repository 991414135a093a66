"""Sensors: ``fovi.sensing.coords``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.compat.fovi._defaults import device_or_default
from sightline.errors import ConfigError
from sightline.fovea.sensor import SensorGrid, match_resolution, num_points

_Device = torch.device | str | None

__all__ = [
    "SamplingCoords", "auto_match_num_coords", "cart_to_polar", "find_desired_res", "num_sampling_coords",
    "num_sampling_coords_isotropic", "polar_to_cart",
]  # fmt: skip


class SamplingCoords(SensorGrid):
    """`SensorGrid` by fovi's name and arguments, with its float32 coordinates.

    Args:
        fov, cmf_a: degrees.
        res: rings, or the side of a lattice.
        device: of the coordinates.
        style: as in `SensorGrid`, with "_as_grid" appended for maps.
        dtype: of the coordinates.
        max_val: radius of the outermost points.
        isotropic_plotting_type, fov_type, field_geometry, radius_norm: ``plotting``, ``field``, ``manifold`` and ``radius_norm`` of
            `SensorGrid`.
        float32_recipe: False takes exact coordinates, rounded once.

    Example:
        >>> SamplingCoords(16, 0.5, 53)
        SamplingCoords(length=4085, fov=16, cmf_a=0.5, resolution=53, style=isotropic)
    """

    def __init__(
        self,
        fov: float,
        cmf_a: float | None,
        res: int,
        device: _Device = "cpu",
        style: str = "isotropic",
        dtype: torch.dtype = torch.float32,
        max_val: float = 1,
        isotropic_plotting_type: str = "v1like",
        fov_type: str = "circular",
        field_geometry: str = "planar",
        radius_norm: float = 2.0,
        *,
        float32_recipe: bool = True,
    ) -> None:
        super().__init__(
            fov, 1.0 if cmf_a is None else cmf_a, res, style=style, manifold=field_geometry, field=fov_type, radius_norm=radius_norm,
            max_radius=float(max_val), plotting=isotropic_plotting_type, device=device, dtype=dtype, float32_recipe=float32_recipe,
        )  # fmt: skip

    @classmethod
    def make(cls, fov: float, cmf_a: float, resolution: int, **options: Any) -> SamplingCoords:
        """A sensor from the arguments of `SensorGrid`."""
        names = {"max_radius": "max_val", "plotting": "isotropic_plotting_type", "field": "fov_type", "manifold": "field_geometry"}
        return cls(fov, cmf_a, resolution, **{names.get(name, name): value for name, value in options.items()})

    @property
    def field_geometry(self) -> str:
        """The manifold."""
        return self.manifold

    @property
    def fov_type(self) -> str:
        """The shape of the field."""
        return self.field

    @property
    def cartesian_pad_coords(self) -> Tensor:
        """Points around the sensor, (P, 2)."""
        return self.pad_cartesian

    @property
    def cortical_pad_coords(self) -> Tensor | None:
        """The same on the manifold."""
        return self.pad_cortical

    @property
    def fov_padding_coords(self) -> Tensor:
        """Points that a square field left out."""
        return self.field_padding

    def get_scatter_sizes(self) -> Tensor:
        """Sizes for scatter plots."""
        return self.scatter_sizes()

    def get_strided_coords(
        self,
        stride: float,
        auto_match_cart_resources: int = 0,
        in_cart_res: int | None = None,
        force_less_than: bool = True,
        max_val: float = 1,
    ) -> tuple[SamplingCoords, int, int | None]:
        """The coarser sensor behind a stride.

        Args:
            stride: at least 1.
            auto_match_cart_resources: above 0: matched to a square image of side ``in_cart_res // stride``.
            in_cart_res: side of the image that this sensor stands for.
            force_less_than: at most as many points as that image; False: just more.
            max_val: radius of the outermost points.

        Returns:
            The sensor, its rings, and the side of its image (None without a match).
        """
        cart_res = None if in_cart_res is None else int(in_cart_res // stride)
        match = auto_match_cart_resources > 0 or "fixn" in self.style
        if match and cart_res is not None:
            other, cart_res = self.strided(1, in_cart_res=max(cart_res, 0), at_most=force_less_than, max_radius=float(max_val))
        else:
            other, cart_res = self.strided(int(stride), match=False, max_radius=float(max_val))
        return _renamed(other), other.resolution, cart_res

    def __repr__(self) -> str:
        return f"SamplingCoords(length={len(self)}, fov={self.fov}, cmf_a={self.cmf_a}, resolution={self.resolution}, style={self.style})"


def _renamed(sensor: SensorGrid) -> SamplingCoords:
    return SamplingCoords(
        sensor.fov, sensor.cmf_a, sensor.resolution, sensor.device, sensor.style, sensor.dtype, sensor.max_radius, sensor.layout,
        sensor.field, sensor.manifold, sensor.radius_norm, float32_recipe=sensor.float32_recipe,
    )  # fmt: skip


def find_desired_res(
    fov: float,
    cmf_a: float,
    n_points_desired: int,
    style: str,
    device: _Device = None,
    bounds: tuple[int, int] = (1, 1000),
    force_less_than: bool = False,
    quiet: bool = False,
    fov_type: str = "circular",
    field_geometry: str = "planar",
    radius_norm: float = 2.0,
) -> tuple[int, int]:
    """The resolution whose number of points comes nearest to a target, and that number; see `match_resolution`.

    Args:
        fov: degrees.
        cmf_a: degrees.
        n_points_desired: the target.
        style: of the sensor.
        device: has no effect, as
        bounds: and
        quiet: and
        radius_norm: have none.
        force_less_than: at most that many; False: just more.
        fov_type: of the sensor.
        field_geometry: of the sensor.
    """
    del device, bounds, quiet, radius_norm
    return match_resolution(fov, cmf_a, n_points_desired, style=style, at_most=force_less_than, field=fov_type, manifold=field_geometry)


def auto_match_num_coords(
    fov: float,
    cmf_a: float,
    cart_res: int,
    style: str,
    auto_match_cart_resources: int,
    device: _Device = None,
    force_less_than: bool = True,
    quiet: bool = False,
    fov_type: str = "circular",
    field_geometry: str = "planar",
    radius_norm: float = 2.0,
) -> tuple[int, int]:
    """Rings of the sensor that stands for a square image of side ``cart_res``, and that side; unmatched, the side twice.

    Args:
        fov: degrees.
        cmf_a: degrees.
        cart_res: side of the image.
        style: of the sensor.
        auto_match_cart_resources: 0: nothing is matched.
        device: has no effect, as
        quiet: and
        radius_norm: have none.
        force_less_than: at most that many points; False: just more.
        fov_type: of the sensor.
        field_geometry: of the sensor.
    """
    if "fixn" in style or not auto_match_cart_resources:
        return cart_res, cart_res
    res, _ = find_desired_res(
        fov, cmf_a, cart_res**2, style, device, force_less_than=force_less_than, fov_type=fov_type, field_geometry=field_geometry
    )
    return res, cart_res


def num_sampling_coords(
    fov: float, cmf_a: float, res: int, style: str = "isotropic", device: _Device = None, fov_type: str = "circular",
    field_geometry: str = "planar", **unused: Any,
) -> int:  # fmt: skip
    """The number of points of a sensor, without building it."""
    del device, unused
    return num_points(fov, cmf_a, res, style, field=fov_type, manifold=field_geometry)


num_sampling_coords_isotropic = num_sampling_coords


def cart_to_polar(cartesian: Tensor) -> Tensor:
    """(n, 2) x and y to radius and angle."""
    points = torch.as_tensor(cartesian)
    return torch.stack((torch.linalg.vector_norm(points, dim=1), torch.atan2(points[:, 1], points[:, 0])), dim=1)


def polar_to_cart(polar: Tensor) -> Tensor:
    """(n, 2) radius and angle to x and y."""
    radius, angle = torch.as_tensor(polar).unbind(1)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)


def sensors_of(
    in_res: int,
    fov: float,
    cmf_a: float,
    stride: float,
    style: str = "isotropic",
    auto_match_cart_resources: int = 1,
    in_cart_res: int | None = None,
    device: _Device = None,
    in_coords: SamplingCoords | None = None,
    force_out_match_less_than: bool = True,
    max_out_coord_val: float | str = 1,
    isotropic_plotting_type: str = "v1like",
    fov_type: str = "circular",
    field_geometry: str = "planar",
    radius_norm: float = 2.0,
) -> tuple[SamplingCoords, SamplingCoords, int | None]:
    """The sensors in front of and behind a layer; ``fovi.arch.knn.get_in_out_coords``, where its arguments are described."""
    if in_coords is None:
        if auto_match_cart_resources:
            in_cart_res = in_res if in_cart_res is None else in_cart_res
            in_res, _ = auto_match_num_coords(
                fov, cmf_a, in_cart_res, style, auto_match_cart_resources, fov_type=fov_type, field_geometry=field_geometry
            )
        in_coords = SamplingCoords(
            fov, cmf_a, in_res, device_or_default(device), style, isotropic_plotting_type=isotropic_plotting_type, fov_type=fov_type,
            field_geometry=field_geometry, radius_norm=radius_norm,
        )  # fmt: skip
    elif in_coords.manifold != field_geometry:
        raise ConfigError(f"in_coords lies on the {in_coords.manifold} manifold, and field_geometry says {field_geometry}: give the same")

    def behind(max_val: float) -> tuple[SamplingCoords, int | None]:
        out, _, cart_res = in_coords.get_strided_coords(stride, auto_match_cart_resources, in_cart_res, force_out_match_less_than, max_val)
        return out, cart_res

    out_coords, out_cart_res = behind(1.0 if isinstance(max_out_coord_val, str) else float(max_out_coord_val))
    if max_out_coord_val == "auto":
        radii = torch.unique(out_coords.polar[:, 0])
        if len(radii) > 1:
            out_coords, out_cart_res = behind(float((radii[-1] + radii[-2]) / 2))
    return in_coords, out_coords, out_cart_res
