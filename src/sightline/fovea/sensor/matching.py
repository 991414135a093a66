"""How many points a sensor has, and which resolution gives as many as a square image.

What belongs here: counting and searching without building sensors.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from sightline.fovea.sensor.rings import cartesian_of, ring_counts

_CPU = torch.device("cpu")
LATTICES = ("logpolar", "warped_cartesian", "uniform")


def inside_field(points: torch.Tensor, field: str, extent: float) -> torch.Tensor:
    """(N,) bool: which points lie in the field, with the tolerance of float32 for those on its rim."""
    limit = extent + 16 * torch.finfo(torch.float32).eps
    if field == "wang":
        return torch.ones(len(points), dtype=torch.bool, device=points.device)
    if field == "square":
        return points.abs().amax(dim=1) <= limit
    inside: torch.Tensor = torch.linalg.vector_norm(points, dim=1) <= limit
    return inside


def missing_corners(points: torch.Tensor, extent: float) -> torch.Tensor:
    """(0 to 4, 2) corners of the square field at which none of the points lies."""
    corners = torch.tensor([[-extent, -extent], [-extent, extent], [extent, -extent], [extent, extent]], dtype=points.dtype, device=_CPU)
    close = torch.isclose(points[None], corners[:, None], rtol=1e-5, atol=1e-6).all(dim=2).any(dim=1)
    return corners[~close]


@lru_cache(maxsize=4096)
def num_points(
    fov: float, cmf_a: float, resolution: int, style: str = "isotropic", *, field: str = "circular", manifold: str = "planar"
) -> int:
    """Number of points of a sensor, as fovi 2.4 counts them.

    Args:
        fov: degrees.
        cmf_a: degrees.
        resolution: rings, or the side of a lattice.
        style: as in `SensorGrid`.
        field: as in `SensorGrid`.
        manifold: as in `SensorGrid`.

    Cost: microseconds; nothing is built, but for square fields.
    """
    if style.removesuffix("_as_grid") in LATTICES or style == "isotropic_fixn":
        return resolution**2
    if resolution == 1:
        return 1
    radii, counts = ring_counts(float(fov), float(cmf_a), resolution, field, manifold)
    if field == "circular":
        return int(counts.sum())
    # Here fovi divides 2 pi by the number of points in float32.
    starts = torch.cumsum(counts, 0) - counts
    index = torch.arange(int(counts.sum()), device=_CPU) - starts.repeat_interleave(counts)
    step = torch.tensor(2 * torch.pi, dtype=torch.float32, device=_CPU) / counts
    polar = torch.stack((radii.repeat_interleave(counts), index.float() * step.repeat_interleave(counts)), dim=1)
    points = cartesian_of(polar)
    return int(inside_field(points, field, 1.0).sum()) + len(missing_corners(points[starts[-1] :], 1.0))


def match_resolution(
    fov: float,
    cmf_a: float,
    n_points: int,
    *,
    style: str = "isotropic",
    at_most: bool = True,
    field: str = "circular",
    manifold: str = "planar",
    bounds: tuple[int, int] = (1, 1000),
) -> tuple[int, int]:
    """Finds the resolution whose number of points is nearest to a wanted one.

    Use it to give a sensor the budget of a square image: ``n_points = side**2``.

    Args:
        fov: degrees.
        cmf_a: degrees.
        n_points: wanted number of points, at least 1.
        style: as in `SensorGrid`.
        at_most: True: never more points than wanted; False: never fewer.
        field: as in `SensorGrid`.
        manifold: as in `SensorGrid`.
        bounds: resolutions between which the nearest is searched.

    Returns:
        The resolution and its number of points.

    Raises:
        ValueError: `n_points` is below 1.

    Cost: about ten counts, well under a millisecond each.
    Source: the binary search of fovi 2.4, so that sensors match.
    """
    if n_points < 1:
        raise ValueError(f"n_points must be at least 1, got {n_points}; a sensor has at least one point")

    def count(resolution: int) -> int:
        return num_points(float(fov), float(cmf_a), resolution, style, field=field, manifold=manifold)

    low, high = bounds
    best, best_gap = low, float("inf")
    while low <= high:
        middle = (low + high) // 2
        n = count(middle)
        if abs(n - n_points) < best_gap:
            best, best_gap = middle, abs(n - n_points)
        low, high = (middle + 1, high) if n < n_points else (low, middle - 1)
    step = -1 if at_most else 1
    while (count(best) - n_points) * step < 0:
        best += step
    return best, count(best)
