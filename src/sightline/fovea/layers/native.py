"""k-nearest-neighbour layers in C++, for float32 on the CPU: the one place that hands out addresses.

What belongs here: turning checked, contiguous tensors into addresses. The caller (`function`) has checked shapes, types and devices; the
values of tables are checked in C++.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline import kernels

_MOST = 2**31 - 1  # rows, which C++ counts in 32 bits


def usable(rows: Tensor) -> bool:
    """Whether such node-major rows (N, B, C), and weights of their type, can go to the compiled kernels."""
    return (
        rows.dtype == torch.float32 and rows.device.type == "cpu" and rows.shape[0] * rows.shape[1] < _MOST and kernels.native() is not None
    )


def _module() -> Any:
    kernels.apply_num_threads()
    return kernels.native()


def _plain(tensor: Tensor) -> Tensor:
    """Values in order, without lazy negation; the caller keeps it alive during the call."""
    return tensor.detach().resolve_neg().contiguous()


def _table(index: Tensor, cell: Tensor | None, sources: int) -> tuple[int, int, int, int, int]:
    """Of contiguous tables, which the caller keeps alive."""
    return *index.shape, sources, index.data_ptr(), 0 if cell is None else cell.data_ptr()


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, cell: Tensor) -> Tensor:
    """(N_in, B, C) and (O, C * V) to (N_out, B, O)."""
    sources, batch, channels = x.shape
    x, weight, index, cell = _plain(x), _plain(weight), index.contiguous(), cell.contiguous()
    shift = None if bias is None else _plain(bias)
    out = x.new_empty(index.shape[0], batch, weight.shape[0])
    _module().knn_conv(
        kernels.isa(), (batch, channels, weight.shape[0], weight.shape[1] // channels), _table(index, cell, sources),
        x.data_ptr(), weight.data_ptr(), 0 if shift is None else shift.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, cell: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x (N_in, B, C), weight (O, C * V) and bias (O,), None where not wanted."""
    sources, batch, channels = x.shape
    outputs = weight.shape[0]
    grad, x, weight, index, cell = _plain(grad), _plain(x), _plain(weight), index.contiguous(), cell.contiguous()
    made = (torch.empty_like(x), torch.empty_like(weight), x.new_empty(outputs))
    found = [value if want else None for value, want in zip(made, wanted, strict=True)]
    _module().knn_conv_backward(
        kernels.isa(), (batch, channels, outputs, weight.shape[1] // channels), _table(index, cell, sources),
        grad.data_ptr(), x.data_ptr(), weight.data_ptr(), *(0 if value is None else value.data_ptr() for value in found),
    )  # fmt: skip
    return found[0], found[1], found[2]


def max_pool(x: Tensor, index: Tensor) -> Tensor:
    """(N_in, B, C) to (N_out, B, C)."""
    x, index = _plain(x), index.contiguous()
    out = x.new_empty(index.shape[0], *x.shape[1:])
    _module().knn_max_pool(kernels.isa(), _table(index, None, x.shape[0]), x[0].numel(), x.data_ptr(), out.data_ptr())
    return out


def max_pool_backward(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """The gradient of x."""
    grad, x, index = _plain(grad), _plain(x), index.contiguous()
    gx = torch.empty_like(x)
    table = _table(index, None, x.shape[0])
    _module().knn_max_pool_backward(kernels.isa(), table, x[0].numel(), grad.data_ptr(), x.data_ptr(), gx.data_ptr())
    return gx


def sum_pool(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """(N_in, B, C) to (N_out, B, C); weights (N_out, k)."""
    x, index, weights = _plain(x), index.contiguous(), _plain(weights)
    out = x.new_empty(index.shape[0], *x.shape[1:])
    table = _table(index, None, x.shape[0])
    _module().knn_sum_pool(kernels.isa(), table, weights.data_ptr(), x[0].numel(), x.data_ptr(), out.data_ptr())
    return out


def sum_pool_backward(grad: Tensor, index: Tensor, weights: Tensor, nodes: int) -> Tensor:
    """The gradient of an input of `nodes` nodes."""
    grad, index, weights = _plain(grad), index.contiguous(), _plain(weights)
    gx = grad.new_empty(nodes, *grad.shape[1:])
    table = _table(index, None, nodes)
    _module().knn_sum_pool_backward(kernels.isa(), table, weights.data_ptr(), gx[0].numel(), grad.data_ptr(), gx.data_ptr())
    return gx
