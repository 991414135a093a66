"""Rings of a retina-like sensor: how many there are points on each, and where they lie.

What belongs here: radii, numbers of points and points of concentric rings whose spacing grows with eccentricity, and the padding rings
around them. What is done with rings (styles, fields, matching) belongs to the other files of this folder.

Radii are evenly spaced in cortical radius w = ln(r + a) (magnification M(r) = 1 / (r + a), Schwartz 1980), and the points of a ring as
far apart as the rings are, so the sampling is locally isotropic. The numbers of points are those of fovi 2.4, which computes in float32:
where a quotient lies next to an integer its rounding decides, so the same float32 operations are done in the same order. Positions do
not need that and are computed in float64, unless the float32 recipe is asked for.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

_CPU = torch.device("cpu")


def outermost(fov: float, field: str) -> float:
    """Radius of the last ring in degrees: half of the field, or half of its diagonal where the field is a square."""
    radius = fov / 2
    return radius * float(np.sqrt(2.0)) if field == "square" else radius


@lru_cache(maxsize=1024)
def ring_counts(fov: float, cmf_a: float, rings: int, field: str, manifold: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Radii (rings,) float32, 1 = fov / 2, and numbers of points (rings,) int64, by the float32 recipe."""
    if rings == 1:
        return torch.zeros(1, dtype=torch.float32, device=_CPU), torch.ones(1, dtype=torch.int64, device=_CPU)
    low, high = np.log(cmf_a), np.log(outermost(fov, field) + cmf_a)
    # One ring beyond the last: its distance enters the number of points of the last.
    w = torch.linspace(float(low), float(high + (high - low) / (rings - 1)), rings + 1, dtype=torch.float32, device=_CPU)
    radius = torch.exp(w) - cmf_a
    spacing = ((radius[1:-1] - radius[:-2]) + (radius[2:] - radius[1:-1])) / 2
    inner = radius[1:-1]
    if manifold == "spherical":
        inner = torch.rad2deg(torch.sin(torch.deg2rad(inner)))
    quotient = (2 * torch.pi * inner).double() / spacing.double()
    counts = torch.cat((torch.ones(1, dtype=torch.int64, device=_CPU), torch.ceil(quotient).long()))
    return radius[:-1] / (fov / 2), counts


def exact_radii(fov: float, cmf_a: float, rings: int, field: str) -> torch.Tensor:
    """Radii (rings,) float64 in closed form: a * expm1(i * delta), 1 = fov / 2."""
    if rings == 1:
        return torch.zeros(1, dtype=torch.float64, device=_CPU)
    delta = math.log1p(outermost(fov, field) / cmf_a) / (rings - 1)
    steps = torch.arange(rings, dtype=torch.float64, device=_CPU)
    return cmf_a * torch.expm1(steps * delta) / (fov / 2)


def points_on_rings(radii: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Polar coordinates (N, 2), ring by ring, angles 2 pi j / n from 0, in the type of the radii."""
    starts = torch.cumsum(counts, 0) - counts
    index = torch.arange(int(counts.sum()), device=_CPU) - starts.repeat_interleave(counts)
    step = ((2 * torch.pi) / counts.double()).to(radii.dtype)
    angle = index.to(radii.dtype) * step.repeat_interleave(counts)
    return torch.stack((radii.repeat_interleave(counts), angle), dim=1)


def cartesian_of(polar: torch.Tensor) -> torch.Tensor:
    """(N, 2) x and y of (N, 2) radius and angle."""
    radius, angle = polar.unbind(1)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)


def fixed_counts(counts: torch.Tensor, total: int, seed: int) -> torch.Tensor:
    """Numbers of points per ring that add up to `total`: one angle is taken from (or given to) rings drawn at random.

    The innermost fifth of the rings is left alone; a ring is drawn again only after all others were, and the last angle of a ring is
    never taken.
    """
    counts = counts.clone()
    generator = torch.Generator(device="cpu").manual_seed(seed)
    first = int(0.2 * len(counts))
    missing = total - int(counts.sum())
    while missing:
        drawn = first + torch.randperm(len(counts) - first, generator=generator)
        if missing < 0:
            drawn = drawn[counts[drawn] > 1]
        drawn = drawn[: abs(missing)]
        counts[drawn] += 1 if missing > 0 else -1
        missing = total - int(counts.sum())
    return counts


def padding_rings(radii: torch.Tensor, rings: int, spherical: bool, reach: float = 0.5) -> torch.Tensor:
    """Points (P, 2) around a sensor, as far apart as its last two rings: what lies there counts as zero in layers.

    Args:
        radii: all radii of the sensor's points, any order, with repetitions; float32 or float64.
        rings: the sensor's resolution; used where all points have one radius.
        spherical: rings end `reach` from the rim (at least one stays); otherwise `reach` from the first padding ring.
        reach: how far out, in units of half the field.
    """
    distinct = torch.unique(radii)  # sorted
    last = distinct[-1]
    step = last - distinct[-2] if len(distinct) > 1 else last / max(rings - 1, 1)
    counted = _padding_recipe(last.float(), step.float(), spherical, reach)
    if radii.dtype == torch.float32:
        padding, angles = counted
    else:
        # The same numbers of rings and angles as the float32 recipe has, at exact places. Where float32 has no digits left to tell two
        # rings apart (a much larger than the field), it could not say how many.
        padding = last + step * (1 + torch.arange(len(counted[0]), dtype=radii.dtype, device=_CPU))
        angles = step * torch.arange(len(counted[1]), dtype=radii.dtype, device=_CPU)
    polar = torch.stack((padding.repeat_interleave(len(angles)), angles.repeat(len(padding))), dim=1)
    return cartesian_of(polar)


def _padding_recipe(last: torch.Tensor, step: torch.Tensor, spherical: bool, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Radii and angles of padding rings, float32."""
    first = last + step
    padding = torch.arange(first.item(), (first + reach).item(), step.item(), dtype=torch.float32, device=_CPU)
    if spherical:
        padding = padding[(padding <= last + reach) | (padding == first)]
    return padding, torch.arange(0, 2 * math.pi, step.item(), dtype=torch.float32, device=_CPU)
