"""The points of a sensor, from its parameters: computed once for equal parameters, in float64.

What belongs here: which points, paddings and cortical coordinates a style, a field and a manifold make. `SensorGrid` gives them to users.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch

from sightline.fovea.sensor.lattices import Warp, log_polar, polar_of, uniform, warped
from sightline.fovea.sensor.manifold import radius_limit, to_surface
from sightline.fovea.sensor.matching import inside_field, match_resolution, missing_corners
from sightline.fovea.sensor.rings import cartesian_of, exact_radii, fixed_counts, padding_rings, points_on_rings, ring_counts

_CPU = torch.device("cpu")


class SensorKey(NamedTuple):
    """All that the points depend on. Equal keys: equal points."""

    fov: float
    cmf_a: float
    resolution: int
    style: str  # without "_as_grid"
    manifold: str
    field: str
    radius_norm: float
    extent: float
    seed: int
    float32_recipe: bool

    @property
    def dtype(self) -> torch.dtype:
        """The type in which points are computed."""
        return torch.float32 if self.float32_recipe else torch.float64

    @property
    def warp(self) -> Warp:
        """How a warped Cartesian lattice is stretched."""
        return Warp.of(self.fov, self.cmf_a, self.radius_norm, self.field, self.extent)


class Geometry(NamedTuple):
    """Points on the CPU, float64 (values of float32 where the recipe was asked for). Shared between equal sensors: read only.

    cartesian, polar (N, 2); cortical (N, 3), (N, 2) or None; valid_mask (N,) bool; field_padding (Q, 2): ring points that a square field
    left out; pad_cartesian (P, 2) with `field_padding` first; pad_cortical (P, 3), (P, 2) or None.
    """

    cartesian: torch.Tensor
    polar: torch.Tensor
    cortical: torch.Tensor | None
    valid_mask: torch.Tensor
    field_padding: torch.Tensor
    pad_cartesian: torch.Tensor
    pad_cortical: torch.Tensor | None


@lru_cache(maxsize=64)
def build(key: SensorKey) -> Geometry:
    """The points for a key; the latest 64 are kept (a sensor of 4,000 points takes 0.3 MB)."""
    if key.resolution == 1:
        return _one_point(key)
    if key.style in {"isotropic", "isotropic_fixn"}:
        geometry = _rings(key)
    else:
        geometry = _lattice(key)
    wide = [None if part is None else part if part.dtype == torch.bool else part.double() for part in geometry]
    return Geometry(*wide)  # type: ignore[arg-type]  # the fields that are never None stay so


def _one_point(key: SensorKey) -> Geometry:
    def zeros(rows: int, columns: int) -> torch.Tensor:
        return torch.zeros(rows, columns, dtype=torch.float64, device=_CPU)

    width = {"uniform": 0, "logpolar": 2, "warped_cartesian": 2}.get(key.style, 3)
    return Geometry(
        cartesian=zeros(1, 2),
        polar=zeros(1, 2),
        cortical=zeros(1, width) if width else None,
        valid_mask=torch.ones(1, dtype=torch.bool, device=_CPU),
        field_padding=zeros(0, 2),
        pad_cartesian=zeros(0, 2),
        pad_cortical=zeros(0, width) if width else None,
    )


def _rings(key: SensorKey) -> Geometry:
    rings, total = key.resolution, None
    if key.style == "isotropic_fixn":
        total = key.resolution**2
        rings = match_resolution(key.fov, key.cmf_a, total, at_most=False, field=key.field, manifold=key.manifold)[0]
    recipe, counts = ring_counts(key.fov, key.cmf_a, rings, key.field, key.manifold)
    if total is not None and key.field == "circular":
        counts = fixed_counts(counts, total, key.seed)
    # Which points a square field keeps is always the float32 recipe's choice, so that their number is fovi's.
    judged = points_on_rings(recipe * key.extent, counts)
    polar = judged if key.float32_recipe else points_on_rings(exact_radii(key.fov, key.cmf_a, rings, key.field) * key.extent, counts)
    points, outside = cartesian_of(polar), polar.new_zeros(0, 2)
    valid = inside_field(cartesian_of(judged), key.field, key.extent)
    if key.field == "square" and rings > 1:
        corners = missing_corners(cartesian_of(judged), key.extent).to(polar.dtype)
        points, polar = torch.cat((points, corners)), torch.cat((polar, polar_of(corners)))
        valid = torch.cat((valid, torch.ones(len(corners), dtype=torch.bool, device=_CPU)))
        points, polar, outside = points[valid], polar[valid], points[~valid]
        valid = torch.ones(len(points), dtype=torch.bool, device=_CPU)
        if total is not None:
            kept = _thinned(points, total, key.extent)
            points, polar, valid = points[kept], polar[kept], valid[kept]
    elif not key.float32_recipe:
        valid = torch.ones_like(valid)
    padding = torch.cat((outside, padding_rings(polar[:, 0], key.resolution, key.manifold == "spherical")))
    if key.manifold == "spherical":
        _check_reach(key, float(torch.linalg.vector_norm(padding, dim=1).max()))
    return Geometry(points, polar, _surface(points, key), valid, outside, padding, _surface(padding, key))


def _surface(points: torch.Tensor, key: SensorKey) -> torch.Tensor:
    surface = torch.from_numpy(to_surface(points.numpy(), key.fov, key.cmf_a, key.manifold))
    return surface.float() if key.float32_recipe else surface


def _check_reach(key: SensorKey, extent: float) -> None:
    limit = radius_limit(key.cmf_a)
    if extent * key.fov / 2 > limit:
        raise ValueError(
            f"fov={key.fov:g} with its padding reaches {extent * key.fov / 2:.4g} degrees, and the spherical manifold ends at {limit:.4g} "
            f"for cmf_a={key.cmf_a:g}; take a fov of at most {2 * limit / extent:.4g}, more rings, or manifold='planar'"
        )


def _thinned(points: torch.Tensor, total: int, extent: float) -> torch.Tensor:
    """(total,) indices of points, evenly taken from all but the four corners, which stay."""
    if len(points) < total:
        raise ValueError(f"the square field has {len(points)} points where {total} are wanted; take style='isotropic'")
    is_corner = torch.isclose(points.abs(), torch.full_like(points, extent), rtol=1e-5, atol=1e-6).all(dim=1)
    corners, others = torch.where(is_corner)[0], torch.where(~is_corner)[0]
    taken = torch.linspace(0, len(others) - 1, total - len(corners), dtype=torch.float32, device=_CPU).round().long()
    return torch.cat((others[taken], corners)).sort().values


def _lattice(key: SensorKey) -> Geometry:
    if key.style == "uniform":
        made = uniform(key.resolution, key.extent, key.dtype)
    elif key.style == "logpolar":
        made = log_polar(key.fov, key.cmf_a, key.resolution, key.field, key.extent, key.dtype)
    else:
        made = warped(key.warp, key.resolution, key.extent, key.dtype)
    valid = torch.ones(len(made.cartesian), dtype=torch.bool, device=_CPU)
    if key.style != "uniform":
        valid = inside_field(made.cartesian, key.field, key.extent)
        if key.style == "logpolar" and key.field == "circular" and not key.float32_recipe:
            valid = torch.ones_like(valid)
    if key.manifold == "spherical" and key.style == "warped_cartesian":
        furthest = float(made.polar[valid, 0].max()) * key.fov / 2
        if furthest >= 180:
            raise ValueError(f"fov={key.fov:g} reaches {furthest:.4g} degrees of eccentricity; on a sphere it must stay below 180")
    none = made.cartesian.new_zeros(0, 2)
    return Geometry(made.cartesian, made.polar, made.cortical, valid, none, made.pad_cartesian, made.pad_cortical)


def check_parameters(key: SensorKey) -> None:
    """Raises ValueError for parameters that make no sensor."""
    for name, number in (("fov", key.fov), ("cmf_a", key.cmf_a), ("max_radius", key.extent)):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"`{name}` must be a finite number above 0, got {number!r}")
    if key.resolution < 1:
        raise ValueError(f"`resolution` must be an integer of at least 1 (rings, or the side of a lattice), got {key.resolution!r}")
    warped_style = key.style == "warped_cartesian"
    if key.field == "wang" and not warped_style:
        raise ValueError(f"field='wang' belongs to style='warped_cartesian', got style={key.style!r}; take 'circular' or 'square'")
    if key.radius_norm not in {2.0, math.inf}:
        raise ValueError(f"`radius_norm` must be 2.0 or inf, got {key.radius_norm!r}")
    if key.radius_norm == math.inf and (not warped_style or key.field == "wang"):
        raise ValueError("radius_norm=inf belongs to style='warped_cartesian' with a circular or square field; take 2.0")
    if key.manifold == "spherical":
        if key.style == "logpolar":
            raise ValueError("manifold='spherical' does not go with style='logpolar', which has no angular rings; take 'planar'")
        if key.fov > 180:
            raise ValueError(f"`fov` must be at most 180 degrees on a sphere, got {key.fov:g}")
