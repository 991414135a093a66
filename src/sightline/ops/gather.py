"""The operators in plain PyTorch: gather what the sites read, multiply, put the results in place. Any device, any float type.

Work and memory follow the number of sites; sites are taken in batches so that what is gathered stays small. Half-precision maps are
computed in float32 and rounded once. `sightline.ops.native` does the same in C++ for float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.ops.plane import Plane

BATCH = 1 << 22  # values gathered at once


@dataclass(frozen=True)
class Taps:
    """Some sites (k of them) and what they read.

    Attributes:
        site: indices (image, row, column) of the outputs, (k,) each.
        source: indices (image, row, column) of the inputs, each broadcastable to (k, kh, kw); inside the map everywhere.
        valid: bool (k, kh, kw), False where the tap reads nothing.
    """

    site: tuple[Tensor, Tensor, Tensor]
    source: tuple[Tensor, Tensor, Tensor]
    valid: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """What is read, (k, taps, c), zeros where a tap reads nothing (whatever lies at the index that stands in for it)."""
        found = x.permute(0, 2, 3, 1)[self.source]
        return torch.where(self.valid[..., None], found, 0).flatten(1, 2)

    def rows(self, y: Tensor) -> Tensor:
        """(k, c) at the sites of an output map."""
        image, row, column = self.site
        return y.permute(0, 2, 3, 1)[image, row, column]

    def add(self, values: Tensor, total: Tensor) -> None:
        """Adds (k, taps, c) to the pixels that were read, in `total` (n, h, w, c), contiguous."""
        _, h, w, c = total.shape
        image, row, column = self.source
        place = ((image * h + row) * w + column).reshape(-1)
        valid = self.valid.reshape(-1)
        total.view(-1, c).index_add_(0, place[valid], values.reshape(-1, c)[valid])


def batches(plane: Plane, mask: Tensor, channels: int) -> Iterator[Taps]:
    """All sites of a mask (n, h, w), some at a time."""
    sites = mask.nonzero()
    rows, cols = plane.tables(mask.device)
    for part in sites.split(max(1, BATCH // (plane.taps * channels))):
        if not len(part):
            return
        image, y, x = part.unbind(1)
        row, column = rows[y][:, :, None], cols[x][:, None, :]
        valid = (row >= 0) & (column >= 0)
        yield Taps((image, y, x), (image[:, None, None], row.clamp_min(0), column.clamp_min(0)), valid)


def computed_in(x: Tensor) -> torch.dtype:
    """The type to add up in."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def put(out: Tensor, taps: Taps, rows: Tensor) -> None:
    """Writes (k, c) to the sites of out (n, c, h, w)."""
    image, y, x = taps.site
    out.permute(0, 2, 3, 1).index_put_((image, y, x), rows.to(out.dtype))


def weight_matrix(weight: Tensor, groups: int, transposed: bool, dtype: torch.dtype) -> Tensor:
    """(groups, taps, cin / groups, cout / groups)."""
    grouped: Tensor = weight.to(dtype).unflatten(0, (groups, -1)).flatten(3)
    return grouped.permute((0, 3, 1, 2) if transposed else (0, 3, 2, 1))


def weight_from_matrix(matrix: Tensor, like: Tensor, transposed: bool) -> Tensor:
    """The inverse of `weight_matrix`."""
    order = (0, 2, 3, 1) if transposed else (0, 3, 2, 1)
    return matrix.permute(order).reshape(like.shape).to(like.dtype)


def _split(values: Tensor, groups: int) -> Tensor:
    """(k, ..., c) as (groups, k, ..., c / groups), flattened to three axes: one matrix per group."""
    matrices: Tensor = values.unflatten(-1, (groups, -1)).movedim(-2, 0).flatten(2)
    return matrices


def conv(plane: Plane, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, groups: int, transposed: bool, out: Tensor) -> None:
    """Convolution at the mask's positions, written to out; the rest of out stays."""
    dtype = computed_in(x)
    matrix = weight_matrix(weight, groups, transposed, dtype)
    depthwise = matrix.shape[2] == matrix.shape[3] == 1
    for taps in batches(plane, mask, x.shape[1]):
        patches = taps.gather(x).to(dtype)
        if depthwise:  # a matrix of one number per group would be slow
            rows = (patches * matrix[:, :, 0, 0].T).sum(1)
        else:
            rows = (_split(patches, groups) @ matrix.flatten(1, 2)).transpose(0, 1).flatten(1)
        put(out, taps, rows if bias is None else rows + bias.to(dtype))


def conv_backward(
    plane: Plane, gy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, groups: int, transposed: bool, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients with respect to x (as (n, h, w, c)), weight and bias, of what the sites contribute; None where not wanted."""
    dtype, (n, c, h, w) = computed_in(x), x.shape
    matrix = weight_matrix(weight, groups, transposed, dtype)
    depthwise = matrix.shape[2] == matrix.shape[3] == 1
    back = matrix.flatten(1, 2).transpose(1, 2)  # (groups, cout / groups, taps * cin / groups)
    gx = torch.zeros((n, h, w, c), dtype=dtype, device=x.device) if wanted[0] else None
    gw = torch.zeros_like(matrix, memory_format=torch.contiguous_format) if wanted[1] else None
    gb = torch.zeros(gy.shape[1], dtype=dtype, device=x.device) if wanted[2] else None
    for taps in batches(plane, mask, max(c, gy.shape[1])):
        rows = taps.rows(gy).to(dtype)
        grouped = _split(rows, groups)
        if gx is not None and depthwise:
            taps.add(rows[:, None] * matrix[:, :, 0, 0].T, gx)
        elif gx is not None:
            taps.add((grouped @ back).unflatten(2, (plane.taps, -1)).permute(1, 2, 0, 3).flatten(2), gx)
        if gw is not None and depthwise:
            gw[:, :, 0, 0] += (taps.gather(x).to(dtype) * rows[:, None]).sum(0).T
        elif gw is not None:
            gw += (_split(taps.gather(x).to(dtype), groups).transpose(1, 2) @ grouped).unflatten(1, (plane.taps, -1))
        if gb is not None:
            gb += rows.sum(0)
    return (
        None if gx is None else gx.to(x.dtype),
        None if gw is None else weight_from_matrix(gw, weight, transposed),
        None if gb is None else gb.to(x.dtype),
    )


def _best(taps: Taps, x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum (k, c) of every window and the tap that holds it: a NaN wins, and of equal values the first, as in torch."""
    found, valid = taps.gather(x), taps.valid.flatten(1)
    best = found.new_full((found.shape[0], found.shape[2]), -torch.inf)
    tap = torch.full_like(best, -1, dtype=torch.int64)
    for t in range(found.shape[1]):
        value = found[:, t]
        better = ((value > best) | value.isnan() | (tap < 0)) & valid[:, t, None]
        best, tap = torch.where(better, value, best), torch.where(better, t, tap)
    return best, tap


def max_pool(plane: Plane, x: Tensor, mask: Tensor, out: Tensor, values: Tensor | None = None) -> None:
    """Maxima at the mask's positions, written to out; with `values`, what stands there where x has its maximum."""
    for taps in batches(plane, mask, x.shape[1]):
        best, tap = _best(taps, x)
        if values is not None:
            best = taps.gather(values).gather(1, tap.clamp_min(0)[:, None])[:, 0].masked_fill(tap < 0, 0)
        put(out, taps, best)


def max_pool_backward(plane: Plane, gy: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Gradient (n, h, w, c) with respect to x."""
    n, c, h, w = x.shape
    gx = torch.zeros((n, h, w, c), dtype=computed_in(x), device=x.device)
    for taps in batches(plane, mask, c):
        _, tap = _best(taps, x)
        chosen = tap[:, None] == torch.arange(plane.taps, device=x.device)[:, None]
        taps.add(torch.where(chosen, taps.rows(gy)[:, None], 0).to(gx.dtype), gx)
    return gx.to(x.dtype)


def _divisors(taps: Taps, divisors: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    _, y, x = taps.site
    return (divisors[0][y] * divisors[1][x]).to(dtype)[:, None]


def avg_pool(plane: Plane, x: Tensor, mask: Tensor, divisors: tuple[Tensor, Tensor], out: Tensor) -> None:
    """Means at the mask's positions, written to out."""
    dtype = computed_in(x)
    for taps in batches(plane, mask, x.shape[1]):
        put(out, taps, taps.gather(x).to(dtype).sum(1) / _divisors(taps, divisors, dtype))


def avg_pool_backward(plane: Plane, gy: Tensor, mask: Tensor, divisors: tuple[Tensor, Tensor]) -> Tensor:
    """Gradient (n, h, w, c) with respect to the input."""
    n, c = gy.shape[:2]
    gx = torch.zeros((n, *plane.size, c), dtype=computed_in(gy), device=gy.device)
    for taps in batches(plane, mask, c):
        share = taps.rows(gy).to(gx.dtype) / _divisors(taps, divisors, gx.dtype)
        taps.add(share[:, None].expand(-1, plane.taps, -1), gx)
    return gx.to(gy.dtype)
