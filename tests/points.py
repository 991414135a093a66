"""Networks on sensor points for tests of the engine: random tables, plain layers, a video of points.

What belongs here: set-up. What does not: the layers themselves (`sightline.fovea`) and tests.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.fovea.layers.function import knn_conv, knn_max_pool, knn_sum_pool


def table(points_in: int, points_out: int, k: int, seed: int, empty: bool = False) -> Tensor:
    """(points_out, k): neighbours on a line, some of them padding; with `empty`, the first output point has none at all."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.linspace(0, points_in - 1, points_out).round().long()[:, None]
    index = centre + torch.randint(-k, k + 1, (points_out, k), generator=generator)
    index = torch.where((index < 0) | (index >= points_in), -1, index)
    if empty:
        index[0] = -1
    return index.to(torch.int32)


class Conv(nn.Module):
    """A convolution on points over random tables; two neighbours may meet the same part of the weight."""

    index: Tensor
    cell: Tensor

    def __init__(self, c: int, o: int, points_in: int, points_out: int, k: int, side: int, seed: int, **options: bool) -> None:
        super().__init__()
        bias, empty = options.get("bias", True), options.get("empty", False)
        self.weight = nn.Parameter(torch.randn(o, c * side * side) / math.sqrt(c * k))
        self.bias = nn.Parameter(torch.randn(o)) if bias else None
        index = table(points_in, points_out, k, seed, empty)
        cell = torch.randint(0, side * side, index.shape, generator=torch.Generator().manual_seed(seed + 1))
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("cell", cell.to(torch.int32), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return knn_conv(x, self.weight, self.bias, self.index, self.cell)


class Pool(nn.Module):
    def __init__(self, points_in: int, points_out: int, k: int, mode: str, seed: int, empty: bool = False) -> None:
        super().__init__()
        index = table(points_in, points_out, k, seed, empty)
        self.mode = mode
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("factors", torch.rand(index.shape) if mode == "gaussian" else None, persistent=False)

    def forward(self, x: Tensor) -> Any:
        if self.mode == "max":
            return knn_max_pool(x, self.index)
        return knn_sum_pool(x, self.index, self.factors, self.mode == "avg")


class NodeMajorNorm(nn.BatchNorm1d):
    """Batch norm that works on points as pixels of one row, and the linear layer and norm that work on the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, count = x.shape
        pixels = x.permute(2, 0, 1).contiguous().view(1, count * n, 1, c).permute(0, 3, 1, 2)
        rows = F.relu(super().forward(pixels)).permute(0, 2, 3, 1).reshape(count, n, c)
        return rows.permute(1, 2, 0)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class Rows(nn.Module):
    """A norm and a linear layer over the channels of each point."""

    def __init__(self, c: int, o: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(c), nn.Linear(c, o)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.mix(self.norm(x.permute(2, 0, 1).contiguous()))).permute(1, 2, 0)


class Net(nn.Module):
    """Points (n, c, 1, 90) or (n, c, 90) through every kind of layer on points."""

    def __init__(self, pool: str = "max", empty: bool = False) -> None:
        super().__init__()
        self.stem = Conv(3, 12, 90, 60, 7, 3, 1, bias=False, empty=empty)
        self.norm = nn.BatchNorm1d(12)
        self.first = Conv(12, 12, 60, 60, 5, 2, 2)
        self.pool = Pool(60, 24, 5, pool, 3, empty)
        self.wide = Conv(12, 70, 24, 24, 4, 3, 4, empty=empty)
        self.last = Pool(24, 4, 6, "avg", 5)
        self.head = nn.Linear(70 * 4, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.stem(x.flatten(2))))
        x = F.relu(self.first(x) + x)
        deep = F.silu(self.wide(self.pool(x)))
        return {"points": deep, "mean": x.mean(-1), "scores": self.head(self.last(deep).flatten(1))}


def net(pool: str = "max", empty: bool = False) -> Net:
    with torch.random.fork_rng([]):
        torch.manual_seed(6)
        model = Net(pool, empty).eval()
        assert model.norm.running_var is not None and model.norm.running_mean is not None
        nn.init.uniform_(model.norm.weight, 0.5, 1.5)
        model.norm.running_var.uniform_(0.5, 1.5)
        model.norm.running_mean.normal_()
        nn.init.normal_(model.norm.bias)
    return model


def video(shape: tuple[int, ...], frames: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Points of which a few change from frame to frame, in one batch element or in all."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(shape, generator=generator)
    result = [frame.to(dtype)]
    for index in range(1, frames):
        frame = frame.clone()
        at = int(torch.randint(0, shape[-1] - 6, (), generator=generator))
        image = slice(None) if index % 3 == 0 else index % shape[0]
        frame[image, ..., at : at + 1 + index % 6] += torch.randn((), generator=generator)
        result.append(frame.to(dtype))
    return result
