"""Distances along the planar manifold's surface, in closed form.

What belongs here: the geometry of that one surface. Who is whose neighbour belongs to `neighbours`.

The surface is one of revolution with radius rho(r) = k r / (a + r) and conformal to the visual field, ds = k / (a + r) |dp|. Along a
geodesic Clairaut's p = rho sin(angle to the meridian) stays the same. The angle turned and the length from the point where the
geodesic comes closest to the axis (rho = p) are

    angle(rho) = arccos(p / rho) + p I(rho),      length(rho) = k**2 I(rho) - k arcosh(rho / p),
    I(rho) = integral from p to rho of dt / ((k - t) sqrt(t**2 - p**2))
           = 2 / sqrt(k**2 - p**2) * artanh(sqrt((k + p) (rho - p) / ((k - p) (rho + p)))).

Between two points the geodesic either leaves the axis all the way (differences of these) or comes closest in between (sums).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RADIUS = 10.0  # k, mm: the radius that the surface approaches far out
_STEPS = 12


def planar_distances(a: Tensor, b: Tensor) -> Tensor:
    """Lengths of the geodesics between points of the planar manifold.

    Args:
        a: (..., 3) points on the surface, mm, as in `SensorGrid.cortical`; float64.
        b: (..., 3), broadcast against a.

    Returns:
        (...) mm, at least the chord.

    Cost: about 1 microsecond per pair.
    """
    a, b = torch.broadcast_tensors(a.double(), b.double())
    radii = torch.stack((torch.linalg.vector_norm(a[..., :2], dim=-1), torch.linalg.vector_norm(b[..., :2], dim=-1)))
    near, far = radii.amin(0), radii.amax(0)
    turn = torch.atan2(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0], (a[..., :2] * b[..., :2]).sum(-1)).abs()
    along = RADIUS * torch.log((RADIUS - near) / (RADIUS - far))  # the length along a meridian
    tiny = 1e-9
    straight = (near < tiny) | (turn < tiny)
    near, far = near.clamp_min(tiny), far.clamp_min(tiny)
    outwards = turn <= _from_axis(near, far)[0]  # what the geodesic that starts at a right angle turns
    # The angle grows with p on the way outwards, and falls with it where the geodesic dips towards the axis: one root each, found by
    # false position in arcsin(p / near), where angles are almost straight lines.
    sign = torch.where(outwards, 1.0, -1.0)
    low, high = torch.zeros_like(near), torch.full_like(near, math.pi / 2)
    at_low, at_high = (sign * (_between(near * end.sin(), near, far, outwards)[0] - turn) for end in (low, high))
    for _ in range(_STEPS):
        middle = (low * at_high - high * at_low) / (at_high - at_low).clamp_min(1e-300)
        middle = torch.minimum(torch.maximum(middle, low), high)
        at_middle = sign * (_between(near * middle.sin(), near, far, outwards)[0] - turn)
        below = at_middle < 0
        # the value at an end that stays is halved (Illinois), or that end would stay for ever
        at_low, at_high = torch.where(below, at_middle, at_low / 2), torch.where(below, at_high / 2, at_middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    p = near * middle.sin()
    angle, length = _between(p, near, far, outwards)
    length = length + p * (turn - angle)  # first variation: dlength = p dangle
    chord = torch.linalg.vector_norm(a - b, dim=-1)
    return torch.maximum(torch.where(straight, along, length), chord)


def _from_axis(p: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """(angle, length) from the point closest to the axis, at radius p, out to radius rho."""
    p = torch.minimum(p, rho).clamp_min(1e-12)
    inner = ((RADIUS + p) * (rho - p) / ((RADIUS - p) * (rho + p))).sqrt()
    rest = 2 * p * (RADIUS - rho) / ((RADIUS - p) * (rho + p))  # 1 - inner**2, without cancellation
    integral = (2 * inner.log1p() - rest.log()) / (RADIUS**2 - p**2).sqrt()  # 2 artanh(inner) / ...
    return torch.acos(p / rho) + p * integral, RADIUS**2 * integral - RADIUS * torch.acosh(rho / p)


def _between(p: Tensor, near: Tensor, far: Tensor, outwards: Tensor) -> tuple[Tensor, Tensor]:
    """(angle, length) of the geodesic with this p between two radii."""
    first, last = _from_axis(p, near), _from_axis(p, far)
    sign = torch.where(outwards, -1.0, 1.0)
    return last[0] + sign * first[0], last[1] + sign * first[1]
