"""`KNNConv`: convolution over nearest neighbours on a sensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sightline.fovea.layers.base import KNNLayer, cast_alike, factory
from sightline.fovea.layers.function import knn_conv
from sightline.fovea.layers.weights import kernel_from_conv
from sightline.fovea.neighbours import Space, Ties, neighbour_table
from sightline.fovea.sensor import SensorGrid


class KNNConv(KNNLayer):
    """Convolution in which every output node reads its k nearest inputs, each through the kernel cell that lies nearest.

    Use it where a `Conv2d` would stand in a network on images. It does not interpolate: a neighbour meets one cell of a ``side x side``
    kernel, which is upright in the visual field and stretched over the neighbourhood. Padding points add nothing, and a node all of whose
    neighbours are padding is zero, bias and all.

    ``y[b, o, n] = bias[o] + sum over c, j of x[b, c, index[n, j]] * weight[o, c * side**2 + cell[n, j]]``

    Args:
        in_channels, out_channels: at least 1.
        k: neighbours per node, at least 1. At most as many as the input has points are taken (the attribute `k` says how many).
        in_coords, out_coords: the sensors that inputs and outputs lie on.
        side: cells of the kernel per axis; default ceil(sqrt(k)). Twice that aligns neighbours more finely at the same cost.
        bias: add a learned value per channel.
        sample_cortex: True: neighbours by distance on the cortical surface; False: in the visual field; "geodesic": along the surface.
        ties: "stable", or "fovi" for checkpoints trained by fovi (see `sightline.fovea.neighbours`).
        device, dtype: of the parameters.

    Attributes:
        weight: (out_channels, in_channels * side**2), named and shaped as fovi's; kaiming normal at first.
        bias: (out_channels,) or None; zero at first.
        index, cell: (N_out, k) int32 buffers outside the state dict.

    Shape:
        (B, in_channels, N_in) to (B, out_channels, N_out), node-major in memory: give the output to the next layer as it is. float32 on
        the CPU runs in C++; other types and devices in PyTorch; half precision is summed in float32.

    Raises:
        ShapeError: a map of another shape; k or side below 1; a sensor without cortical coordinates where they are needed.
        DTypeError, DeviceError: map and weight differ.

    Cost: 2 * N_out * k * in_channels * out_channels operations per image, whatever `side` is. Memory beside the output: about 1 MB.
    Source: Blauch, Alvarez and Konkle 2026 (fovi).

    Example:
        >>> from sightline.fovea import SensorGrid
        >>> grid, coarse = SensorGrid(16, 0.5, 13), SensorGrid(16, 0.5, 7)
        >>> KNNConv(3, 8, 9, grid, coarse)(torch.zeros(2, 3, len(grid))).shape
        torch.Size([2, 8, 60])
    """

    cell: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        k: int,
        in_coords: SensorGrid,
        out_coords: SensorGrid,
        *,
        side: int | None = None,
        bias: bool = False,
        sample_cortex: Space = True,
        ties: Ties = "stable",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(k, in_coords, out_coords, sample_cortex, ties)
        table = neighbour_table(in_coords, out_coords, self.k, side, sample_cortex, ties)
        self.in_channels, self.out_channels, self.side = in_channels, out_channels, table.side
        made = factory(device, dtype)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels * table.side**2, **made))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels, **made)) if bias else None)
        self._table("index", table.index, device)
        self._table("cell", table.cell, device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming normal weights, zero bias."""
        nn.init.kaiming_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, N_in) to (B, out_channels, N_out)."""
        self._check_input(x, self.in_channels)
        x, weight, bias = cast_alike(x, self.weight, self.bias)
        y: Tensor = knn_conv(x, weight, bias, self.index, self.cell)
        return y

    @torch.no_grad()
    def load_conv_weights(self, conv: nn.Conv2d | nn.Conv3d, **options: Any) -> None:
        """Takes over the weights of a dense convolution; see `kernel_from_conv` for the options.

        Raises:
            ShapeError: other channels, groups, or a bias that this layer has no place for.
        """
        weight, bias = kernel_from_conv(conv, self.out_channels, self.in_channels, self.side, has_bias=self.bias is not None, **options)
        self.weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def extra_repr(self) -> str:
        """What the layer is, in one line."""
        return f"{self.in_channels}, {self.out_channels}, {self._neighbours_repr()}, side={self.side}, bias={self.bias is not None}"
