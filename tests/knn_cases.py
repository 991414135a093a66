"""Layers over nearest neighbours as loops in float64, and random tables to try them on.

What belongs here: cases and references. What is said of them belongs to the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KnnCase:
    """Sizes of a convolution over neighbours: nodes in and out, neighbours, cells, batch, channels in and out."""

    name: str
    sources: int
    nodes: int
    k: int
    cells: int
    batch: int
    cin: int
    cout: int

    def table(self, seed: int = 0, padding: float = 0.2) -> tuple[Tensor, Tensor]:
        """Random (index, cell); one node in the middle reads nothing, and cells are shared."""
        g = torch.Generator().manual_seed(seed)
        index = torch.randint(0, self.sources, (self.nodes, self.k), generator=g, dtype=torch.int32)
        index[torch.rand(index.shape, generator=g) < padding] = -1
        index[self.nodes // 2] = -1
        return index, torch.randint(0, self.cells, index.shape, generator=g, dtype=torch.int32)

    def tensors(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, N_in), weight (O, C * V) and bias (O,)."""
        g = torch.Generator().manual_seed(seed + 1)
        shapes = ((self.batch, self.cin, self.sources), (self.cout, self.cin * self.cells), (self.cout,))
        x, weight, bias = (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes)
        return x, weight, bias


# Channels around the blocks of all instruction sets, few and many (16 is the border), one cell and more than a cache line of them.
KNN_CASES = [
    KnnCase("stem", 30, 20, 9, 16, 5, 3, 96),
    KnnCase("one image", 30, 20, 9, 16, 1, 3, 33),
    KnnCase("border below", 20, 13, 5, 4, 2, 16, 70),
    KnnCase("border above", 20, 13, 5, 4, 2, 17, 70),
    KnnCase("wide", 25, 30, 9, 36, 3, 150, 130),
    KnnCase("many cells", 40, 40, 25, 100, 7, 40, 48),
    KnnCase("same cell", 6, 9, 6, 1, 4, 20, 16),
    KnnCase("one of all", 2, 3, 2, 1, 1, 1, 1),
    KnnCase("one output", 9, 4, 9, 9, 13, 33, 1),
]


def loop_conv(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, cell: Tensor) -> Tensor:
    """The definition, one neighbour at a time."""
    kernel = weight.reshape(weight.shape[0], x.shape[1], -1)
    columns = []
    for at, cells in zip(index.tolist(), cell.tolist(), strict=True):
        read = [(m, v) for m, v in zip(at, cells, strict=True) if m >= 0]
        total = x.new_zeros(x.shape[0], weight.shape[0])
        for m, v in read:
            total = total + x[:, :, m] @ kernel[:, :, v].T
        columns.append(total + bias if read and bias is not None else total)
    return torch.stack(columns, dim=2)


def loop_depthwise(x: Tensor, weight: Tensor, index: Tensor, cell: Tensor) -> Tensor:
    """Every channel by itself; weight (C, V, G)."""
    out = x.new_zeros(x.shape[0], *weight.shape[::2], len(index))
    for n, (at, cells) in enumerate(zip(index.tolist(), cell.tolist(), strict=True)):
        for m, v in zip(at, cells, strict=True):
            if m >= 0:
                out[..., n] += x[:, :, m, None] * weight[None, :, v]
    return out.flatten(1, 2)


def loop_pool(x: Tensor, index: Tensor, mode: str, weights: Tensor | None = None) -> Tensor:
    """max, avg, sum, or a sum with weights (N_out, k)."""
    columns = []
    for n, at in enumerate(index.tolist()):
        read = [j for j, m in enumerate(at) if m >= 0]
        if not read:
            columns.append(x.new_zeros(x.shape[:2]))
            continue
        values = x[:, :, [at[j] for j in read]]
        if mode == "max":
            columns.append(values.amax(2))
        else:
            share = torch.ones(len(read), dtype=x.dtype) if weights is None else weights[n, read]
            columns.append((values * share).sum(2) / (len(read) if mode == "avg" else 1))
    return torch.stack(columns, dim=2)
