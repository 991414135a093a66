"""Values at scattered points as pixels: each pixel shows the value of the nearest point.

What belongs here: which point each pixel of a visual or cortical view shows. What does not: colours and axes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sightline.fovea.sensor import SensorGrid

VIEWS = ("visual", "cortical")
_PAIRS = 4_000_000  # distances computed at a time

Box = tuple[float, float, float, float]
"""(left, right, bottom, top), as matplotlib's `extent`."""


def layout_of(sensor: SensorGrid, view: str) -> torch.Tensor:
    """(N, 2) where a view shows the points: degrees of the visual field, or the flat cortical layout.

    Raises:
        ValueError: another view.
    """
    if view not in VIEWS:
        raise ValueError(f"`view` must be one of {', '.join(VIEWS)}; got {view!r}")
    return (sensor.cartesian.double() * (sensor.fov / 2) if view == "visual" else sensor.plotting.double()).cpu()


def shown_points(sensor: SensorGrid, view: str, side: int = 240, reach: float | None = None) -> tuple[NDArray[np.int64], Box]:
    """Which point each pixel of a view shows.

    Args:
        sensor: whose points.
        view: "visual" or "cortical".
        side: pixels along the longer edge.
        reach: half the width of a visual view in degrees; None: the whole field.

    Returns:
        (rows, columns) indices of points, -1 where there is none, the first row on top; and where the picture lies.
    """
    return _shown_points(sensor, view, side, reach)


@lru_cache(maxsize=32)
def _shown_points(sensor: SensorGrid, view: str, side: int, reach: float | None) -> tuple[NDArray[np.int64], Box]:
    points = layout_of(sensor, view)
    if view == "visual":
        half = sensor.fov / 2 if reach is None else reach
        box: Box = (-half, half, -half, half)
    else:
        low, high = points.amin(0), points.amax(0)
        margin = 0.02 * float((high - low).max().clamp(min=1e-6))
        box = (float(low[0]) - margin, float(high[0]) + margin, float(low[1]) - margin, float(high[1]) + margin)
    width, height = box[1] - box[0], box[3] - box[2]
    columns, rows = (max(1, round(side * edge / max(width, height))) for edge in (width, height))
    xs = box[0] + (torch.arange(columns, dtype=torch.float64) + 0.5) * width / columns
    ys = box[3] - (torch.arange(rows, dtype=torch.float64) + 0.5) * height / rows
    pixels = torch.stack([xs.repeat(rows), ys.repeat_interleave(columns)], 1)
    index, distance = _nearest(pixels, points)
    if view == "visual":
        size = pixels / (sensor.fov / 2)
        inside = size.abs().amax(1) <= 1 if sensor.field != "circular" or sensor.is_lattice else size.norm(dim=1) <= 1
    else:
        inside = distance <= 1.1 * _spacing(points)
    return np.where(inside.numpy(), index.numpy(), -1).reshape(rows, columns), box


def _nearest(pixels: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    index, distance = [], []
    for part in pixels.split(max(1, _PAIRS // len(points))):
        # squared distances but for |part|^2, which is the same for all points; float32 tells points apart that pixels do
        apart = torch.addmm(points.square().sum(1)[None].float(), part.float(), points.T.float(), alpha=-2)
        index.append(apart.argmin(1))
        distance.append((part - points[index[-1]]).norm(dim=1))
    return torch.cat(index), torch.cat(distance)


def _spacing(points: torch.Tensor) -> float:
    """How far neighbouring points usually lie apart."""
    if len(points) < 2:
        return 1.0
    chosen = torch.arange(0, len(points), max(1, len(points) // 500))
    apart = torch.cdist(points[chosen], points)
    apart[torch.arange(len(chosen)), chosen] = torch.inf
    return float(apart.topk(min(4, len(points) - 1), dim=1, largest=False).values.mean())


def paint(shown: NDArray[np.int64], colours: NDArray[Any]) -> NDArray[np.float64]:
    """Pixels (rows, columns, 4) from colours (N, 3) of points; transparent where there is none."""
    filled = np.concatenate([np.concatenate([colours, np.ones((len(colours), 1))], 1), np.zeros((1, 4))])
    return np.asarray(filled[shown])
