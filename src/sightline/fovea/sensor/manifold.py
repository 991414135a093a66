"""The cortical surface: a surface of revolution on which a foveated sensor is evenly dense.

What belongs here: mapping points of the visual field to that surface (3-D). Which points there are belongs to the sensor.

With magnification m(r) = k / (a + r), a point at eccentricity r and angle theta lies at (rho cos theta, rho sin theta, z), where rho is
such that a ring of the visual field has its magnified length, and dz/dr = sqrt(m^2 - rho'^2), so that radial lengths are magnified by m
too (Rovamo and Virsu 1984).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

MANIFOLDS = ("planar", "legacy", "spherical")
SCALE_MM = 10.0
_DEGREES = 180 / math.pi
_MESH = 1e-4  # degrees between the nodes of the numerical integral


def radius_limit(cmf_a: float) -> float:
    """Largest eccentricity in degrees at which the surface over the sphere exists (m^2 >= rho'^2).

    It is the root of (a + r) cos(r / 2) = (180 / pi) sin(r / 2) between 90 and 180 degrees, by bisection, less 1e-4.
    """

    def slack(r: float) -> float:
        half = math.radians(r / 2)
        return (cmf_a + r) * math.cos(half) - _DEGREES * math.sin(half)

    low, high = 90.0, 180.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        low, high = (middle, high) if slack(middle) > 0 else (low, middle)
    return low - _MESH


def to_surface(points: Floats, fov: float, cmf_a: float, manifold: str = "planar") -> Floats:
    """Maps points of the visual field to the cortical surface.

    Args:
        points: (N, 2) x and y, 1 = fov / 2; float64, or float32, in which everything is then computed as fovi 2.4 does.
        fov: field of view, degrees.
        cmf_a: the constant a of the magnification, degrees.
        manifold: "planar": rho = m r, z in closed form, any eccentricity. "legacy" and "spherical": rho = m sin(r) in degrees, z integrated
            by trapezoids of 1e-4 degrees.

    Returns:
        (N, 3) x, y, z in mm (k = 10).

    Raises:
        ValueError: an eccentricity at which the surface over the sphere does not exist.
    """
    degrees = points * (fov / 2)
    x, y = degrees[:, 0], degrees[:, 1]
    r = np.sqrt(_squared(x) + _squared(y))
    angle = np.arctan2(y, x)
    m = SCALE_MM / (cmf_a + r)
    if manifold == "planar":
        rho = m * r
        relative = r / cmf_a
        if points.dtype == np.float64:
            t = np.sqrt(relative * (relative + 2))
        else:
            t = np.sqrt(np.maximum(_squared(relative + 1) - 1, 0))  # the same, but it cancels at the fovea
        z = SCALE_MM * (np.arcsinh(t) - t / np.sqrt(1 + t * t))
    else:
        rho = m * np.sin(np.deg2rad(r)) * _DEGREES
        z = _integrated(r, fov, cmf_a)
    return np.stack((rho * np.cos(angle), rho * np.sin(angle), z), axis=1)


def _squared(values: Floats) -> Floats:
    if values.dtype == np.float64:
        return values * values
    # NumPy squares a float32 scalar by powf, which is not always the rounded product; fovi goes point by point.
    return np.array([value**2 for value in values], dtype=np.float32)


def _integrated(r: Floats, fov: float, cmf_a: float) -> Floats:
    """z (float64) at eccentricities r."""
    furthest = float(r.max(initial=0.0))
    limit = radius_limit(cmf_a)
    if furthest > limit:
        raise ValueError(
            f"the cortical surface over the sphere ends at {limit:.4g} degrees for cmf_a={cmf_a:g}, and the sensor with its padding "
            f"reaches {furthest:.4g} degrees at fov={fov:g}; take a smaller fov, more rings, or manifold='planar'"
        )
    nodes, heights = _heights(cmf_a, math.ceil(furthest) + 1)
    return np.interp(r, nodes, heights)


@lru_cache(maxsize=4)
def _heights(cmf_a: float, extent: int) -> tuple[Floats, Floats]:
    """Eccentricities (degrees) and the integral of dz/dr up to each."""
    r = np.arange(0, extent, _MESH)
    m = SCALE_MM / (cmf_a + r)
    sine = np.deg2rad(r)
    slope = -SCALE_MM * ((cmf_a + r) ** -2) * np.sin(sine) * _DEGREES + m * np.cos(sine)
    # Beyond the limit there is no surface; nobody asks for those nodes.
    rate = np.sqrt(np.maximum(m * m - slope * slope, 0))
    return r, np.concatenate(([0.0], np.cumsum(np.diff(r) * (rate[1:] + rate[:-1]) / 2.0)))
