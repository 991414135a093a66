"""What the tests of areas share: boxes, and results cut to an area as it lies on their own grids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import oracle
import sightline as sl
from sightline.graph.ir import Node
from sightline.graph.needed import area_on, over


def box(size: tuple[int, int], y0: int, x0: int, y1: int, x1: int) -> sl.AreaOfInterest:
    return sl.AreaOfInterest.from_boxes([(y0, x0, y1, x1)], size)


def masked(area: Tensor, value: Tensor) -> Tensor:
    """The value with 0 outside the area."""
    if value.dim() == 4:
        n, _, h, w = value.shape
    else:
        n, h, w = (value.shape[0] if value.dim() else 1), 1, 1
    mask = area_on(area, Node("", "x", shape=(n, 1, h, w)))
    return torch.where(mask.reshape(over(mask, value)), value, torch.zeros((), dtype=value.dtype))


def cut(area: Tensor, result: Any) -> list[Tensor]:
    """All tensors of a result, with 0 outside the area."""
    return [masked(area, value) for value in oracle.tensors(result)]
