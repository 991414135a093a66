"""Depthwise and depthwise-separable convolution over nearest neighbours (fovi has them too, but 2.4 fails when they are called)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import ShapeError
from sightline.fovea.layers.base import KNNLayer, cast_alike, factory
from sightline.fovea.layers.function import knn_depthwise
from sightline.fovea.layers.gathered import read_nodes
from sightline.fovea.neighbours import Space, Ties, neighbour_table
from sightline.fovea.sensor import SensorGrid


class _Depthwise(KNNLayer):
    """What both share: the table and the check of channels."""

    cell: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, k: int, in_coords: SensorGrid, out_coords: SensorGrid, side: int | None,
        sample_cortex: Space, ties: Ties, device: Any,
    ) -> None:  # fmt: skip
        super().__init__(k, in_coords, out_coords, sample_cortex, ties)
        if in_channels < 1 or out_channels % in_channels:
            raise ShapeError(f"out_channels: expected a multiple of in_channels = {in_channels}, got {out_channels}")
        table = neighbour_table(in_coords, out_coords, self.k, side, sample_cortex, ties)
        self.in_channels, self.out_channels, self.side = in_channels, out_channels, table.side
        self._table("index", table.index, device)
        self._table("cell", table.cell, device)

    def _with_bias(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """Adds the bias at nodes that read at least one input."""
        return y if bias is None else y + bias[:, None] * read_nodes(self.index).to(bias.dtype)

    def extra_repr(self) -> str:
        """What the layer is, in one line."""
        return f"{self.in_channels}, {self.out_channels}, {self._neighbours_repr()}, side={self.side}"


class KNNDepthwiseConv(_Depthwise):
    """Convolution of every channel by itself: output ``c * G + g`` reads channel c only, G = out_channels / in_channels.

    Use it as `Conv2d` with ``groups=in_channels``. Arguments, neighbours and padding are those of `KNNConv`.

    Attributes:
        weight: (in_channels, side**2, G), as fovi's; uniform in +-1 / (in_channels * k) at first.
        bias: (out_channels,) or None.

    Shape:
        (B, in_channels, N_in) to (B, out_channels, N_out), node-major in memory.

    Raises:
        ShapeError: out_channels is no multiple of in_channels; otherwise as `KNNConv`.

    Cost: 2 * N_out * k * out_channels operations per image, in PyTorch.
    """

    bias: nn.Parameter | None

    def __init__(
        self, in_channels: int, out_channels: int, k: int, in_coords: SensorGrid, out_coords: SensorGrid, *, side: int | None = None,
        bias: bool = False, sample_cortex: Space = True, ties: Ties = "stable", device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, k, in_coords, out_coords, side, sample_cortex, ties, device)
        made = factory(device, dtype)
        self.weight = nn.Parameter(torch.empty(in_channels, self.side**2, out_channels // in_channels, **made))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels, **made)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights, zero bias."""
        bound = 1 / (self.in_channels * self.k)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, N_in) to (B, out_channels, N_out)."""
        self._check_input(x, self.in_channels)
        x, weight, bias = cast_alike(x, self.weight, self.bias)
        return self._with_bias(knn_depthwise(x, weight, self.index, self.cell), bias)


class KNNDepthwiseSeparableConv(_Depthwise):
    """A depthwise convolution followed by a linear map of the channels of every node.

    Arguments, neighbours and padding are those of `KNNConv`.

    Attributes:
        dw_conv: (in_channels, side**2, G), p_conv: `Linear` of out_channels to out_channels, both named as in fovi.

    Shape:
        (B, in_channels, N_in) to (B, out_channels, N_out), node-major in memory.

    Raises:
        ShapeError: out_channels is no multiple of in_channels; otherwise as `KNNConv`.

    Cost: 2 * N_out * out_channels * (k + out_channels) operations per image, in PyTorch.
    """

    def __init__(
        self, in_channels: int, out_channels: int, k: int, in_coords: SensorGrid, out_coords: SensorGrid, *, side: int | None = None,
        bias: bool = False, sample_cortex: Space = True, ties: Ties = "stable", device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, k, in_coords, out_coords, side, sample_cortex, ties, device)
        made = factory(device, dtype)
        self.dw_conv = nn.Parameter(torch.empty(in_channels, self.side**2, out_channels // in_channels, **made))
        self.p_conv = nn.Linear(out_channels, out_channels, bias=bias, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights, zero bias."""
        bound = 1 / (self.in_channels * self.k)
        nn.init.uniform_(self.dw_conv, -bound, bound)
        nn.init.uniform_(self.p_conv.weight, -bound, bound)
        if self.p_conv.bias is not None:
            nn.init.zeros_(self.p_conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, N_in) to (B, out_channels, N_out)."""
        self._check_input(x, self.in_channels)
        x, weight, bias = cast_alike(x, self.dw_conv, self.p_conv.bias)
        spread = knn_depthwise(x, weight, self.index, self.cell)
        mixed = nn.functional.linear(spread.permute(2, 0, 1), self.p_conv.weight).permute(1, 2, 0)
        return self._with_bias(mixed, bias)
