"""Layers on sensors: ``fovi.arch.knn``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.compat.fovi._defaults import device_or_default
from sightline.compat.fovi.sensing.coords import SamplingCoords, sensors_of
from sightline.errors import ConfigError
from sightline.fovea.layers import KNNConv, KNNDepthwiseConv, KNNDepthwiseSeparableConv, KNNPool
from sightline.fovea.layers.base import KNNLayer as KNNBaseLayer
from sightline.fovea.networks.ladder import reference_side

_Device = torch.device | str | None

__all__ = [
    "KNN_CONV_REGISTRY", "KNNBaseLayer", "KNNConvLayer", "KNNDepthwiseConvLayer", "KNNDepthwiseSeparableConvLayer", "KNNGetterLayer",
    "KNNPoolingLayer", "compute_binary_receptive_field", "compute_receptive_field", "get_in_out_coords", "get_knn_conv_layer",
]  # fmt: skip

get_in_out_coords = sensors_of


class _Tables(KNNBaseLayer):
    """fovi's views of the table, and its printed form."""

    @property
    def knn_indices_pad_token(self) -> Tensor:
        """(k, N_out) int64 neighbours; the number of inputs stands for padding."""
        index = self.index.long()
        return index.masked_fill(index < 0, len(self.in_coords)).t()

    knn_indices = knn_indices_pad_token

    @property
    def knn_indices_pad_mask(self) -> Tensor:
        """(k, N_out) bool: padding."""
        return (self.index < 0).t()

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.index.device

    def _lines(self, **first: Any) -> str:
        values = {**first, "in_coords": self.in_coords, "out_coords": self.out_coords, "sample_cortex": self.sample_cortex}
        return type(self).__name__ + "(\n" + "".join(f"\t{name}={value}\n" for name, value in values.items()) + ")"


def _side(ref_frame_side_length: int | None, side: int | None, k: int, inputs: int, arch_flag: str | None) -> int | None:
    asked = ref_frame_side_length if side is None else side
    return reference_side(min(k, inputs), None, arch_flag) if asked is None else asked


class _Convolution(_Tables):
    """What convolutions share: their kernels' cells."""

    side: int
    cell: Tensor
    in_channels: int
    out_channels: int

    @property
    def ref_coords(self) -> Tensor:
        """(side**2, 2) x and y of the kernel's cells in [-1, 1], x slowest."""
        axis = torch.linspace(-1, 1, self.side, device=self.cell.device)
        return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)

    @property
    def local_rf(self) -> Tensor:
        """(N_out, k, side**2) one-hot: the cell that each neighbour meets. Made anew at every use; large."""
        return nn.functional.one_hot(self.cell.long(), self.side**2).float()

    def clear_optimized_cache(self) -> None:
        """Nothing is cached."""

    def __repr__(self) -> str:
        return self._lines(in_channels=self.in_channels, out_channels=self.out_channels, k=self.k, n_ref=self.side**2)


class KNNConvLayer(_Convolution, KNNConv):
    """`KNNConv` by fovi's arguments.

    Args:
        in_channels, out_channels, k, in_coords, out_coords, sample_cortex, bias: as in `KNNConv`.
        device: of parameters and tables.
        arch_flag: "doubleres" doubles the side of the reference kernel, unless it is given.
        ref_frame_side_length: side of the reference kernel.
        batch_size, kernel_backend: have no effect.
        side, ties: as in `KNNConv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        k: int,
        in_coords: SamplingCoords,
        out_coords: SamplingCoords,
        device: _Device = None,
        arch_flag: str | None = "",
        sample_cortex: Any = True,
        bias: bool = False,
        ref_frame_side_length: int | None = None,
        batch_size: int | None = None,
        kernel_backend: str = "auto",
        *,
        side: int | None = None,
        ties: Any = "fovi",
    ) -> None:
        del batch_size, kernel_backend
        KNNConv.__init__(
            self, in_channels, out_channels, k, in_coords, out_coords,
            side=_side(ref_frame_side_length, side, k, len(in_coords), arch_flag), bias=bias, sample_cortex=sample_cortex, ties=ties,
            device=device_or_default(device),
        )  # fmt: skip

    def load_conv2d_weights(self, conv2d: nn.Conv2d, strict: bool = False, preserve_kernel_norm: bool = False) -> None:
        """Take over a dense convolution's weights, see `KNNConv.load_conv_weights`."""
        self.load_conv_weights(conv2d, strict=strict, preserve_kernel_norm=preserve_kernel_norm)

    def load_conv3d_weights(self, conv3d: nn.Conv3d, temporal_strategy: str = "average", strict: bool = False) -> None:
        """The same for a convolution over frames, whose mean ("average") or first ("select_first") is taken."""
        self.load_conv_weights(conv3d, strict=strict, temporal_strategy=temporal_strategy)


class KNNDepthwiseConvLayer(_Convolution, KNNDepthwiseConv):
    """`KNNDepthwiseConv` by fovi's arguments, which are those of `KNNConvLayer`."""

    def __init__(
        self, in_channels: int, out_channels: int, k: int, in_coords: SamplingCoords, out_coords: SamplingCoords, device: _Device = None,
        arch_flag: str | None = "", sample_cortex: Any = True, bias: bool = False, batch_size: int | None = None,
        ref_frame_side_length: int | None = None, *, side: int | None = None, ties: Any = "fovi",
    ) -> None:  # fmt: skip
        del batch_size
        KNNDepthwiseConv.__init__(
            self, in_channels, out_channels, k, in_coords, out_coords,
            side=_side(ref_frame_side_length, side, k, len(in_coords), arch_flag), bias=bias, sample_cortex=sample_cortex, ties=ties,
            device=device_or_default(device),
        )  # fmt: skip


class KNNDepthwiseSeparableConvLayer(_Convolution, KNNDepthwiseSeparableConv):
    """`KNNDepthwiseSeparableConv` by fovi's arguments, which are those of `KNNConvLayer`."""

    def __init__(
        self, in_channels: int, out_channels: int, k: int, in_coords: SamplingCoords, out_coords: SamplingCoords, device: _Device = None,
        arch_flag: str | None = "", sample_cortex: Any = True, bias: bool = False, batch_size: int | None = None,
        ref_frame_side_length: int | None = None, *, side: int | None = None, ties: Any = "fovi",
    ) -> None:  # fmt: skip
        del batch_size
        KNNDepthwiseSeparableConv.__init__(
            self, in_channels, out_channels, k, in_coords, out_coords,
            side=_side(ref_frame_side_length, side, k, len(in_coords), arch_flag), bias=bias, sample_cortex=sample_cortex, ties=ties,
            device=device_or_default(device),
        )  # fmt: skip


class KNNPoolingLayer(_Tables, KNNPool):
    """`KNNPool` by fovi's arguments.

    Args:
        k, in_coords, out_coords, mode, gauss_sigma, sample_cortex, ties: as in `KNNPool`.
        device: of the table.
        batch_size: has no effect.
    """

    def __init__(
        self,
        k: int,
        in_coords: SamplingCoords,
        out_coords: SamplingCoords,
        mode: Any = "max",
        device: _Device = None,
        sample_cortex: Any = True,
        gauss_sigma: float = 10,
        batch_size: int | None = None,
        *,
        ties: Any = "fovi",
    ) -> None:
        del batch_size
        KNNPool.__init__(
            self, k, in_coords, out_coords, mode, gauss_sigma=gauss_sigma, sample_cortex=sample_cortex, ties=ties,
            device=device_or_default(device),
        )  # fmt: skip

    def __repr__(self) -> str:
        return self._lines(mode=self.mode, k=self.k)


class KNNGetterLayer(KNNPoolingLayer):
    """The neighbours themselves: (B, C, N_in) to (B, C, k, N_out), NaN where padding. Arguments as in `KNNPoolingLayer`."""

    def __init__(
        self, k: int, in_coords: SamplingCoords, out_coords: SamplingCoords, device: _Device = None, sample_cortex: Any = True,
        batch_size: int | None = None, *, ties: Any = "fovi",
    ) -> None:  # fmt: skip
        super().__init__(k, in_coords, out_coords, "max", device, sample_cortex, batch_size=batch_size, ties=ties)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, k, N_out)."""
        self._check_input(x)
        taken = x[:, :, self.index.clamp_min(0).long().t()]
        return taken.masked_fill(self.knn_indices_pad_mask, float("nan"))


KNN_CONV_REGISTRY: dict[str, Any] = {
    "default": KNNConvLayer,
    "dwsep": KNNDepthwiseSeparableConvLayer,
    "dw": KNNDepthwiseConvLayer,
}


def get_knn_conv_layer(name: str) -> Any:
    """The class of a convolution by name: "default", "dwsep" or "dw"."""
    if name not in KNN_CONV_REGISTRY:
        raise ConfigError(f"a convolution on sensors is one of {', '.join(KNN_CONV_REGISTRY)}, not {name!r}")
    return KNN_CONV_REGISTRY[name]


def _reach(knn_indices_list: Sequence[Any], layer: int, unit: int, plot_layer: int, sizes: list[int]) -> np.ndarray[Any, Any]:
    counts = np.zeros(sizes[layer + 1], dtype=np.int64)
    counts[unit] = 1
    for index in range(layer, plot_layer - 1, -1):
        table = np.asarray(torch.as_tensor(knn_indices_list[index]).cpu())
        before = np.zeros(sizes[index] + 1, dtype=np.int64)  # the last one takes padding
        np.add.at(before, np.minimum(table, sizes[index]), counts[None, :])
        counts = before[:-1]
    return counts


def compute_receptive_field(
    knn_indices_list: Sequence[Any], layer_of_interest: int, unit_of_interest: int, input_size: int, plot_layer: int = 0
) -> np.ndarray[Any, Any]:
    """By how many paths each unit of a layer's input reaches a unit.

    Args:
        knn_indices_list: (k, N_out) tables of the layers in order, with the number of inputs for padding.
        layer_of_interest: the unit's layer.
        unit_of_interest: its number.
        input_size: units in front of ``plot_layer``.
        plot_layer: the layer whose inputs are counted.

    Returns:
        (input_size,) counts. (The original drops the last real unit where there is no padding.)
    """
    sizes = [input_size, *(int(torch.as_tensor(table).shape[1]) for table in knn_indices_list[plot_layer:])]
    shifted = [0] * plot_layer + sizes
    return _reach(knn_indices_list, layer_of_interest, unit_of_interest, plot_layer, shifted)


def compute_binary_receptive_field(
    knn_indices_list: Sequence[Any], layer_of_interest: int, unit_of_interest: int, input_size: int, plot_layer: int = 0
) -> np.ndarray[Any, Any]:
    """Which units of a layer's input reach a unit at all: (input_size,) of 0 and 1; arguments as in `compute_receptive_field`."""
    counts = compute_receptive_field(knn_indices_list, layer_of_interest, unit_of_interest, input_size, plot_layer)
    return (counts > 0).astype(np.int64)
