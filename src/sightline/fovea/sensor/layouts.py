"""Flat layouts of a sensor's points for pictures.

What belongs here: where to draw a point. Drawing belongs to `sightline.fovea.pictures`.
"""

from __future__ import annotations

import math

import torch

LAYOUTS = ("v1like", "schwartz", "warp")


def plotting_layout(cartesian: torch.Tensor, polar: torch.Tensor, fov: float, cmf_a: float, layout: str) -> torch.Tensor:
    """Where to draw the points of a sensor.

    Args:
        cartesian: (N, 2) x and y of the points.
        polar: (N, 2) their radius and angle.
        fov: degrees.
        cmf_a: degrees.
        layout: "v1like": the two halves of the visual field as the complex logarithm shows them in the left and right visual cortex,
            back to back and upside down; "schwartz": the same upright, the fovea in the middle; "warp": a disc, the fovea in its middle.

    Returns:
        (N, 2) x and y.

    Source: Schwartz 1980, w = ln(|x| + i y + a).
    """
    half = fov / 2
    if layout == "warp":
        radius = torch.log((polar[:, 0] * half + cmf_a) / cmf_a) / math.log((half + cmf_a) / cmf_a)
        return torch.stack((radius * torch.cos(polar[:, 1]), radius * torch.sin(polar[:, 1])), dim=1)
    degrees = cartesian * half
    w = torch.log(torch.complex(degrees[:, 0].abs() + cmf_a, degrees[:, 1]))
    spread = 0.5 * w.real.std() if len(w) > 1 else w.real.new_zeros(())
    left = cartesian[:, 0] < -1e-7 if cartesian.dtype == torch.float64 else cartesian[:, 0] < 0
    if layout == "v1like":
        offset = spread + math.log(half + cmf_a)
        return torch.stack((torch.where(left, offset - w.real, w.real - offset), -w.imag), dim=1)
    inner = w.real - math.log(cmf_a) + 0.1 * spread
    return torch.stack((torch.where(left, -inner, inner), w.imag), dim=1)
