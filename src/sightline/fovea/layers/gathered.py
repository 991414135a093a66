"""The arithmetic of k-nearest-neighbour layers in PyTorch: any device and type, no custom code; the reference for the compiled kernels.

What belongs here: rows in, rows out. Maps are node-major, (nodes, batch, channels), contiguous; tables are (nodes, k) with -1 for padding.
A pair is one (neighbour, node) entry of a table that is not padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_FEW = 16  # channels up to which gathering into the kernel's frame beats one product per cell
_FRAME = 8_000_000  # elements of that frame held at a time


def _in_own_type(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Without autocast, which would round the operands of products once more: the caller has chosen their type."""

    @functools.wraps(compute)
    def wrapped(first: Tensor, *others: Any) -> Any:
        kind = first.device.type
        if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
            return compute(first, *others)
        with torch.autocast(kind, enabled=False):
            return compute(first, *others)

    return wrapped


class Pairs:
    """The pairs of a table, sorted by kernel cell.

    Attributes:
        source, node, cell: (pairs,) int64.
        counts: per cell.
    """

    def __init__(self, index: Tensor, cell: Tensor, cells: int) -> None:
        node, slot = torch.nonzero(index >= 0, as_tuple=True)
        at = cell[node, slot].long()
        order = torch.sort(at, stable=True).indices
        self.cell, self.node = at[order], node[order]
        self.source = index[node, slot].long()[order]
        self.counts: list[int] = torch.bincount(at, minlength=cells).tolist()

    def by_cell(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(cell, sources, nodes) of each cell that has pairs."""
        begin = 0
        for cell, count in enumerate(self.counts):
            if count:
                yield cell, self.source[begin : begin + count], self.node[begin : begin + count]
            begin += count


def filters(weight: Tensor, channels: int) -> Tensor:
    """(O, C * V) as (V, C, O)."""
    return weight.reshape(weight.shape[0], channels, -1).permute(2, 1, 0)


def read_nodes(index: Tensor) -> Tensor:
    """(N_out,) bool: nodes that read at least one input."""
    return (index >= 0).any(1)


@_in_own_type
def conv(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, cell: Tensor) -> Tensor:
    """(N_in, B, C) and (O, C * V) to (N_out, B, O); nodes without inputs are zero, bias and all."""
    _, batch, channels = x.shape
    kernel = filters(weight, channels)
    if channels <= _FEW:
        flat = kernel.reshape(-1, kernel.shape[2])
        parts = [frame @ flat for frame in _frames(x, index, cell, len(kernel))]
        out = torch.cat(parts) if parts else x.new_zeros(0, batch, kernel.shape[2])
    else:
        out = x.new_zeros(len(index), batch, kernel.shape[2])
        for at, source, node in Pairs(index, cell, len(kernel)).by_cell():
            out.index_add_(0, node, x[source] @ kernel[at])
    return out if bias is None else out + bias * read_nodes(index)[:, None, None].to(bias.dtype)


def _frames(x: Tensor, index: Tensor, cell: Tensor, cells: int) -> Iterator[Tensor]:
    """Inputs gathered into the frame of the kernel, (some nodes, B, V * C), until all nodes are through."""
    _, batch, channels = x.shape
    step = max(1, _FRAME // (cells * batch * channels))
    for table, places in zip(index.split(step), cell.split(step), strict=True):
        node, slot = torch.nonzero(table >= 0, as_tuple=True)
        rows = node * cells + places[node, slot].long()
        frame = x.new_zeros(len(table) * cells, batch, channels)
        frame.index_add_(0, rows, x[table[node, slot].long()])
        yield frame.reshape(len(table), cells, batch, channels).transpose(1, 2).reshape(len(table), batch, cells * channels)


@_in_own_type
def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, cell: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x (N_in, B, C), weight (O, C * V) and bias (O,), None where not wanted."""
    channels = x.shape[2]
    kernel = filters(weight, channels)
    gx = x.new_zeros(x.shape) if wanted[0] else None
    gw = kernel.new_zeros(kernel.shape) if wanted[1] else None
    if wanted[0] or wanted[1]:
        for at, source, node in Pairs(index, cell, len(kernel)).by_cell():
            rows = grad[node]
            if gx is not None:
                gx.index_add_(0, source, rows @ kernel[at].t())
            if gw is not None:
                gw[at] = x[source].reshape(-1, channels).t() @ rows.reshape(-1, rows.shape[2])
    found = None if gw is None else gw.permute(2, 1, 0).reshape(weight.shape)
    gb = grad[read_nodes(index)].sum((0, 1)) if wanted[2] else None
    return gx, found, gb


def depthwise(x: Tensor, weight: Tensor, index: Tensor, cell: Tensor) -> Tensor:
    """(N_in, B, C) and (C, V, G) to (N_out, B, C * G)."""
    channels, _, multiplier = weight.shape
    kernel = weight.permute(1, 0, 2)
    out = x.new_zeros(len(index), x.shape[1], channels, multiplier)
    for slot in range(index.shape[1]):
        out += _rows(x, index[:, slot])[..., None] * kernel[cell[:, slot].long()][:, None]
    return out.flatten(2)


def depthwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, cell: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and weight, None where not wanted."""
    channels, cells, multiplier = weight.shape
    kernel, grad = weight.permute(1, 0, 2), grad.unflatten(2, (channels, multiplier))
    gx = x.new_zeros(x.shape) if wanted[0] else None
    gw = weight.new_zeros(cells, channels, multiplier) if wanted[1] else None
    for slot in range(index.shape[1]):
        reads = index[:, slot] >= 0
        source, at, rows = index[reads, slot].long(), cell[reads, slot].long(), grad[reads]
        if gx is not None:
            gx.index_add_(0, source, (rows * kernel[at][:, None]).sum(-1))
        if gw is not None:
            gw.index_add_(0, at, (x[source][..., None] * rows).sum(1))
    return gx, None if gw is None else gw.permute(1, 0, 2).contiguous()


def _rows(x: Tensor, source: Tensor) -> Tensor:
    """Rows of x, zeros where the source is padding."""
    found = x[source.clamp_min(0).long()]
    return torch.where((source >= 0)[:, None, None], found, torch.zeros((), dtype=x.dtype, device=x.device))


def max_pool(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima of neighbours and the slots that hold them first, (N_out, B, C) each; NaN wins; without inputs: zero."""
    out = x.new_full((len(index), *x.shape[1:]), -torch.inf)
    best = torch.zeros(out.shape, dtype=torch.int64, device=x.device)
    for slot in range(index.shape[1]):
        source = index[:, slot]
        value = torch.where((source >= 0)[:, None, None], x[source.clamp_min(0).long()], out.new_full((), -torch.inf))
        better = (value > out) | value.isnan()
        out, best = torch.where(better, value, out), best.masked_fill(better, slot)
    # a node whose inputs are all -inf has chosen none: its first neighbour that is not padding holds the maximum
    first = (index >= 0).to(torch.int8).argmax(1)[:, None, None]
    best = torch.where(torch.isneginf(out), first, best)
    return out.masked_fill(~read_nodes(index)[:, None, None], 0), best


def _chosen(best: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The input node of each maximum, and whether there is one."""
    source = index.long()[:, :, None].expand(-1, -1, best[0].numel()).gather(1, best.flatten(1)[:, None])[:, 0].view(best.shape)
    return source.clamp_min(0), source >= 0


def max_pool_backward(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """Each node's gradient at the input that holds its maximum."""
    source, reads = _chosen(max_pool(x, index)[1], index)
    gx = grad.new_zeros(x.shape).flatten(1)
    return gx.scatter_add_(0, source.flatten(1), torch.where(reads, grad, torch.zeros_like(grad)).flatten(1)).view(x.shape)


def max_pool_pick(values: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """What `values` holds where x has each maximum."""
    source, reads = _chosen(max_pool(x, index)[1], index)
    found = values.flatten(1).gather(0, source.flatten(1)).view(source.shape)
    return torch.where(reads, found, torch.zeros_like(found))


def sum_pool(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sums of neighbours times weights (N_out, k)."""
    out = x.new_zeros(len(index), *x.shape[1:])
    for slot in range(index.shape[1]):
        out += _rows(x, index[:, slot]) * weights[:, slot, None, None]
    return out


def sum_pool_backward(grad: Tensor, index: Tensor, weights: Tensor, nodes: int) -> Tensor:
    """The gradient of x, (nodes, B, C)."""
    gx = grad.new_zeros(nodes, *grad.shape[1:])
    for slot in range(index.shape[1]):
        reads = index[:, slot] >= 0
        gx.index_add_(0, index[reads, slot].long(), grad[reads] * weights[reads, slot, None, None])
    return gx
