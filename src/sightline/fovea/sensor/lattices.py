"""Sensors that are square lattices: uniform, warped Cartesian and log-polar; their points, cortical coordinates and padding.

What belongs here: points that have a row and a column. Rings with as many points as fit belong to `rings.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from sightline.fovea.sensor.rings import cartesian_of, exact_radii, padding_rings, ring_counts

_CPU = torch.device("cpu")


class Lattice(NamedTuple):
    """Points of a lattice sensor: (N, 2) tensors, and the same for its padding; `cortical` is None where distances are visual."""

    cartesian: torch.Tensor
    polar: torch.Tensor
    cortical: torch.Tensor | None
    pad_cartesian: torch.Tensor
    pad_cortical: torch.Tensor | None


class Warp(NamedTuple):
    """The radial warp of a Cartesian lattice: visual radius = a * expm1(native radius / normalizer * rate) / (fov / 2).

    Both radii are measured in `norm`: 2 makes circles of equal eccentricity, infinity squares.
    """

    fov: float
    cmf_a: float
    norm: float
    normalizer: float
    rate: float

    @classmethod
    def of(cls, fov: float, cmf_a: float, norm: float, field: str, extent: float) -> Warp:
        """`field="wang"`: the middle of the lattice's side lies on the middle of the side of the square around the field."""
        half = fov / 2
        if norm == math.inf:
            return cls(fov, cmf_a, norm, extent, math.log1p(extent * half / cmf_a))
        rate = math.log1p(half / cmf_a)
        normalizer = extent / (math.log1p(extent * half / cmf_a) / rate) if field == "wang" else 1.0
        return cls(fov, cmf_a, norm, normalizer, rate)

    def radius(self, points: torch.Tensor) -> torch.Tensor:
        """(..., 1) distance of (..., 2) points from the centre, in the warp's norm."""
        if self.norm == math.inf:
            return points.abs().amax(dim=-1, keepdim=True)
        length: torch.Tensor = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        return length

    def visual_radius(self, native: torch.Tensor) -> torch.Tensor:
        """(..., 1) eccentricity of lattice coordinates (..., 2), in the warp's norm."""
        return self.cmf_a * torch.expm1(self.radius(native) / self.normalizer * self.rate) / (self.fov / 2)

    def to_visual(self, native: torch.Tensor) -> torch.Tensor:
        """Lattice coordinates (..., 2) to visual ones."""
        radius, visual = self.radius(native), self.visual_radius(native)
        at_centre = self.cmf_a * self.rate / (self.normalizer * self.fov / 2)
        return native * torch.where(radius > 0, visual / radius.clamp_min(torch.finfo(radius.dtype).tiny), at_centre)

    def to_native(self, visual: torch.Tensor) -> torch.Tensor:
        """Visual coordinates (..., 2) to lattice ones."""
        radius = self.radius(visual)
        native = self.normalizer * torch.log1p(radius * (self.fov / 2) / self.cmf_a) / self.rate
        at_centre = self.normalizer * (self.fov / 2) / self.cmf_a / self.rate
        return visual * torch.where(radius > 0, native / radius.clamp_min(torch.finfo(radius.dtype).tiny), at_centre)


def cell_centres(resolution: int, extent: float, dtype: torch.dtype) -> torch.Tensor:
    """(resolution,) centres of equal cells between -extent and extent."""
    step = extent / resolution
    return torch.linspace(-extent + step, extent - step, resolution, dtype=dtype, device=_CPU)


def pairs(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(len(first) * len(second), 2) pairs, the first slow."""
    return torch.stack(torch.meshgrid(first, second, indexing="ij"), dim=-1).reshape(-1, 2)


def polar_of(cartesian: torch.Tensor) -> torch.Tensor:
    """(N, 2) radius and angle (-pi to pi) of x and y."""
    x, y = cartesian.unbind(1)
    return torch.stack((torch.sqrt(x * x + y * y), torch.atan2(y, x)), dim=1)


def uniform(resolution: int, extent: float, dtype: torch.dtype) -> Lattice:
    """A plain square lattice, x slow."""
    axis = cell_centres(resolution, extent, dtype)
    points = pairs(axis, axis)
    polar = polar_of(points)
    # Of points at the same distance only one radius may remain, or rounding would be taken for the distance between rings.
    radii = torch.unique(polar[:, 0]) if dtype == torch.float32 else torch.unique(polar[:, 0].float()).double()
    return Lattice(points, polar, None, padding_rings(radii, resolution, spherical=False).to(dtype), None)


def warped(warp: Warp, resolution: int, extent: float, dtype: torch.dtype, reach: float = 0.5) -> Lattice:
    """A square lattice stretched by `warp`, x slow; padding: whole layers of cells, at least `reach` wide."""
    axis = cell_centres(resolution, extent, dtype)
    native = pairs(axis, axis)
    points = warp.to_visual(native)
    step = 2 * extent / resolution
    layers = max(1, math.ceil(reach / step))
    offsets = torch.arange(-layers, resolution + layers, dtype=dtype, device=_CPU)
    inside = (offsets >= 0) & (offsets < resolution)
    around = pairs(axis[0] + offsets * step, axis[0] + offsets * step)[~(inside[:, None] & inside[None, :]).reshape(-1)]
    # Either is the length of the points; to the last bit, these are fovi's.
    radius = warp.visual_radius(native) if warp.norm == 2 else torch.linalg.vector_norm(points, dim=1, keepdim=True)
    polar = torch.cat((radius, torch.atan2(points[:, 1:], points[:, :1])), dim=1)
    return Lattice(points, polar, native, warp.to_visual(around), around)


def log_polar(fov: float, cmf_a: float, resolution: int, field: str, extent: float, dtype: torch.dtype, reach: float = 0.5) -> Lattice:
    """Rings with `resolution` points each, angle by angle; cortical: (log radius from 0 to 1, angle from 0 to 1 with period 1)."""
    recipe = ring_counts(fov, cmf_a, resolution, field, "planar")[0]
    radii = (recipe if dtype == torch.float32 else exact_radii(fov, cmf_a, resolution, field)) * extent
    angles = torch.arange(resolution, dtype=dtype, device=_CPU) * (2 * torch.pi / resolution)
    polar = pairs(angles, radii).flip(1)
    points = cartesian_of(polar)

    def log_radius(radius: torch.Tensor) -> torch.Tensor:
        return torch.log((radius * fov / 2 + cmf_a) / cmf_a)

    measured = torch.sqrt(points[:, 0] ** 2 + points[:, 1] ** 2)
    rho = log_radius(measured) / log_radius(measured.max())
    cortical = torch.stack((rho, polar[:, 1] / (2 * torch.pi)), dim=1)

    step = 1.0 / (resolution - 1)
    layers = max(1, math.ceil(reach / step))
    steps = torch.arange(1, layers + 1, dtype=dtype, device=_CPU)
    around = torch.cat((-step * steps.flip(0), 1.0 + step * steps))
    pad_cortical = pairs(around, torch.arange(resolution, dtype=dtype, device=_CPU) / resolution)
    radius = cmf_a * torch.expm1(pad_cortical[:, 0] * log_radius(radii.max())) / (fov / 2)
    pad = cartesian_of(torch.stack((radius, pad_cortical[:, 1] * (2 * torch.pi)), dim=1))
    return Lattice(points, polar, cortical, pad, pad_cortical)
