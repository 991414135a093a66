"""What ONNX ops compute, as plain functions on tensors: the targets of ``torch`` nodes and the evaluator of constants.

What belongs here: functions that take tensors and plain values, return tensors, can be pickled, and run on any device, the meta
device included (that is how the shape of a result is found). What does not: anything about the graph or the ONNX file.

An op that has a canonical op in `sightline.graph.ir` is here only if ONNX allows forms of it that the canonical op does not have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

# -- arithmetic ---------------------------------------------------------------------------------------------------------------


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, rounded towards zero for integers as ONNX does."""
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divide,
    "Pow": torch.pow,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mod": torch.remainder,
    "FloatMod": torch.fmod,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Not": torch.logical_not,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Where": torch.where,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Reciprocal": torch.reciprocal,
    "Erf": torch.erf,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Atan": torch.atan,
    "Softsign": F.softsign,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}


def elementwise(kind: str, *operands: Tensor) -> Tensor:
    """Apply one function element by element, with broadcasting.

    Args:
        kind: a key of `ELEMENTWISE`, named as in ONNX.
        operands: tensors that broadcast against each other.

    Returns:
        A tensor of the broadcast shape.
    """
    return ELEMENTWISE[kind](*operands)


def clip(x: Tensor, low: Tensor | float | None, high: Tensor | float | None) -> Tensor:
    """Limit x to [low, high]; None for no limit."""
    if low is not None:
        x = torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
    if high is not None:
        x = torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))
    return x


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """gamma * (x if x > 0 else alpha * (exp(x) - 1))."""
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


def celu(x: Tensor, alpha: float) -> Tensor:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return F.celu(x, alpha)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """x where x > alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x where x >= 0, else slope * x, with a slope that broadcasts to x."""
    return torch.where(x >= 0, x, x * slope)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert the element type (floats to integers towards zero)."""
    return x.to(dtype)


# -- linear algebra and convolution -------------------------------------------------------------------------------------------


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product with broadcasting, as numpy.matmul."""
    return torch.matmul(a, b)


def gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, trans_a: bool, trans_b: bool) -> Tensor:
    """alpha * a @ b + beta * c, with a and b (2-D) transposed on request."""
    y = alpha * torch.matmul(a.t() if trans_a else a, b.t() if trans_b else b)
    return y if c is None else y + beta * c


_CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_CONV_TRANSPOSE = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    pads: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Convolution in one to three dimensions.

    Args:
        x: (n, c, ...) with one to three spatial axes.
        weight: (o, c / groups, ...).
        bias: (o,) or None.
        stride: per spatial axis.
        pads: zeros before each spatial axis, then after each, as ONNX orders them.
        dilation: per spatial axis.
        groups: number of groups of channels.

    Returns:
        (n, o, ...).
    """
    return _CONV[x.dim()](F.pad(x, _torch_pads(pads)), weight, bias, stride, 0, dilation, groups)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    pads: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    output_padding: tuple[int, ...],
) -> Tensor:
    """Transposed convolution in one to three dimensions; arguments as for `convolution`, weight (c, o / groups, ...)."""
    axes = len(stride)
    full = _CONV_TRANSPOSE[x.dim()](x, weight, None, stride, 0, 0, groups, dilation)
    ends = tuple(extra - cut for extra, cut in zip(output_padding, pads[axes:], strict=True))
    y = F.pad(full, _torch_pads(tuple(-p for p in pads[:axes]) + ends))
    return y if bias is None else y + bias.view(-1, *[1] * axes)


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX order (all begins, all ends) to torch's (last axis first, begin and end together)."""
    half = len(pads) // 2
    return [pads[side * half + axis] for axis in reversed(range(half)) for side in (0, 1)]


def average_pool(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    count_include_pad: bool,
) -> Tensor:
    """Average pooling with dilation, any padding and an output size fixed beforehand (ceil_mode).

    Args:
        x: (n, c, h, w).
        kernel: (ky, kx).
        stride: (sy, sx).
        padding: (top, bottom, left, right).
        dilation: (dy, dx).
        size: (h, w) of the result; cells that the windows read beyond the padding count for nothing.
        count_include_pad: whether padding cells count in the divisor.

    Returns:
        (n, c, *size).
    """
    top, bottom, left, right = padding
    ones = torch.ones_like(x[:1, :1])
    padded = F.pad(x, [left, right, top, bottom])
    counted = F.pad(ones, [left, right, top, bottom], value=1.0 if count_include_pad else 0.0)
    spans = [(out - 1) * s + (k - 1) * d + 1 for out, s, k, d in zip(size, stride, kernel, dilation, strict=True)]
    room = [0, max(0, spans[1] - padded.shape[3]), 0, max(0, spans[0] - padded.shape[2])]
    window = x.new_ones(1, 1, *kernel)
    sums = F.conv2d(F.pad(padded, room).flatten(0, 1).unsqueeze(1), window, None, stride, 0, dilation)
    counts = F.conv2d(F.pad(counted, room), window, None, stride, 0, dilation)
    means = (sums / counts)[:, 0, : size[0], : size[1]]
    return means.reshape(*x.shape[:2], *size)


# -- normalisation and reduction ----------------------------------------------------------------------------------------------


def batch_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift along axis 1, for any number of axes."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return x * scale.view(shape) + shift.view(shape)


def instance_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Normalise every channel of every element over its spatial axes."""
    return F.instance_norm(x, weight=scale, bias=shift, eps=eps)


def group_norm(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
    """Normalise groups of channels; scale and shift are per channel, or per group as in ONNX 18."""
    if scale.shape[0] != x.shape[1]:
        scale, shift = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, shift))
    return F.group_norm(x, groups, scale, shift, eps)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor | None, axis: int, eps: float) -> Tensor:
    """Normalise over all axes from ``axis`` on; scale and shift broadcast to them."""
    y = F.layer_norm(x, x.shape[axis:], eps=eps) * scale
    return y if shift is None else y + shift


def mean_variance_norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """(x - mean) / standard deviation over ``axes``."""
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)


def lp_norm(x: Tensor, p: int, axis: int) -> Tensor:
    """x divided by its p-norm along ``axis``."""
    return torch.div(x, torch.linalg.vector_norm(x, p, axis, keepdim=True))


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """x / (bias + alpha / size * sum of squares over ``size`` neighbouring channels) ** beta."""
    before = (size - 1) // 2
    squares = F.pad(x.square().flatten(2), [0, 0, before, size - 1 - before])
    sums = sum(squares.narrow(1, k, x.shape[1]) for k in range(size))
    return x / (bias + alpha / size * torch.as_tensor(sums).view(x.shape)) ** beta


def softmax_flat(x: Tensor, axis: int) -> Tensor:
    """Softmax over all axes from ``axis`` on together (ONNX before opset 13)."""
    return torch.softmax(x.flatten(axis), dim=axis).reshape(x.shape)


def log_softmax(x: Tensor, axis: int, flat: bool) -> Tensor:
    """Logarithm of the softmax along ``axis``, or over all axes from it on if ``flat``."""
    return torch.log_softmax(x.flatten(axis), dim=axis).reshape(x.shape) if flat else torch.log_softmax(x, dim=axis)


def reduce(kind: str, x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    """Reduce over some axes.

    Args:
        kind: "Mean", "Sum", "SumSquare", "Max", "Min", "Prod", "L1", "L2", "LogSum" or "LogSumExp".
        x: any tensor.
        axes: not negative; none means nothing to do.
        keepdim: keep reduced axes with size 1.

    Returns:
        The reduced tensor.
    """
    if not axes:
        return x
    if kind == "Prod":
        for axis in sorted(axes, reverse=True):
            x = torch.prod(x, axis, keepdim=keepdim)
        return x
    x = x * x if kind in ("SumSquare", "L2") else x.abs() if kind == "L1" else x
    y = _REDUCE.get(kind, torch.sum)(x, axes, keepdim)
    return torch.sqrt(y) if kind == "L2" else torch.log(y) if kind == "LogSum" else y


_REDUCE: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "Mean": torch.mean,
    "Max": torch.amax,
    "Min": torch.amin,
    "LogSumExp": torch.logsumexp,
}


def arg_extreme(x: Tensor, largest: bool, axis: int, keepdim: bool, last: bool) -> Tensor:
    """Index of the largest (or smallest) value along ``axis``; of the last one among equals if ``last``."""
    find = torch.argmax if largest else torch.argmin
    if not last:
        return find(x, axis, keepdim)
    return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim)


# -- structure ----------------------------------------------------------------------------------------------------------------


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same elements, in the same order, in another shape."""
    return x.reshape(shape)


def permute(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Reorder the axes."""
    return x.permute(axes)


def concat(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Join tensors along an axis."""
    return torch.cat(list(parts), axis)


def expand(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Broadcast to ``shape`` (which may itself be broadcast to x, as in ONNX)."""
    return x.expand(torch.broadcast_shapes(x.shape, shape)).contiguous()


def tile(x: Tensor, repeats: tuple[int, ...]) -> Tensor:
    """Repeat whole tensors along each axis."""
    return x.repeat(repeats)


def take(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Elements at ``index`` (any shape, negative counts from the end) along ``axis``, in place of that axis."""
    index = torch.where(index < 0, index + x.shape[axis], index)
    shape = x.shape[:axis] + index.shape + x.shape[axis + 1 :]
    return x.index_select(axis, index.reshape(-1)).reshape(shape)


def pick(x: Tensor, axis: int, index: int) -> Tensor:
    """One element along ``axis``, without that axis."""
    return x.select(axis, index).contiguous()


def take_along(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Elements at ``index`` (of x's rank) along ``axis``, one index per element."""
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def cut(x: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    """Elements start, start + step, ... of ``axis``, as ``range`` counts: with a negative step, ``stop`` -1 ends at element 0."""
    index = torch.tensor(list(range(start, stop, step)), dtype=torch.int64, device=x.device)
    return x.index_select(axis, index)


def pad(x: Tensor, pads: tuple[int, ...], mode: str, value: float) -> Tensor:
    """Pad or (where negative) crop any axes.

    Args:
        x: any tensor.
        pads: cells before each axis, then after each.
        mode: "constant", "reflect", "edge" or "wrap".
        value: for "constant".

    Returns:
        The padded tensor.
    """
    if mode == "constant":
        return F.pad(x, _torch_pads(pads), value=value)
    for axis in range(x.dim()):
        before, after, size = pads[axis], pads[axis + x.dim()], x.shape[axis]
        if before or after:
            place = torch.arange(-before, size + after, device=x.device)
            if mode == "edge":
                place = place.clamp(0, size - 1)
            elif mode == "wrap":
                place = place.remainder(size)
            else:
                period = max(1, 2 * (size - 1))
                place = place.remainder(period)
                place = torch.minimum(place, period - place)
            x = x.index_select(axis, place)
    return x


def cumulative_sum(x: Tensor, axis: int, exclusive: bool, backward: bool) -> Tensor:
    """Running sum along ``axis``, without the element itself if ``exclusive``, from the end if ``backward``."""
    x = x.flip(axis) if backward else x
    total = torch.cumsum(x, axis, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(axis) if backward else total


def scatter(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """A copy of x in which the elements that the last axis of ``index`` points at are ``updates``."""
    return x.index_put(tuple(index.unbind(-1)), updates)


def grid_sample(x: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """Sample maps (n, c, h, w) at the relative positions of ``grid`` (n, y, x, 2)."""
    return F.grid_sample(x, grid, mode, padding_mode, align_corners)


# -- resampling ---------------------------------------------------------------------------------------------------------------


def resample(x: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor) -> Tensor:
    """Resample a map with a few taps per output row and per output column.

    Args:
        x: (n, c, h, w).
        rows: (out_h, k) int64, input rows that each output row reads.
        row_weights: (out_h, k), their weights.
        columns: (out_w, k') int64.
        column_weights: (out_w, k').

    Returns:
        (n, c, out_h, out_w).
    """
    y = sum(x.index_select(2, rows[:, k]) * row_weights[:, k].view(-1, 1) for k in range(rows.shape[1]))
    y = torch.as_tensor(y)
    return torch.as_tensor(sum(y.index_select(3, columns[:, k]) * column_weights[:, k] for k in range(columns.shape[1])))


def axis_taps(
    n_in: int,
    n_out: int,
    scale: float,
    *,
    mode: str,
    transform: str,
    rounding: str = "round_prefer_floor",
    cubic: float = -0.75,
    exclude_outside: bool = False,
    antialias: bool = False,
) -> tuple[Tensor, Tensor]:
    """Input cells and weights of every output cell along one axis, as ONNX Resize defines them.

    Args:
        n_in: size of the input.
        n_out: size of the output.
        scale: factor of enlargement as the model states it (n_out / n_in if it states sizes).
        mode: "nearest", "linear" or "cubic".
        transform: "asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners" or "half_pixel_symmetric".
        rounding: for "nearest": "round_prefer_floor", "round_prefer_ceil", "floor", "ceil", or "simple": what onnxruntime does before
            opset 11, where ONNX says nothing, ceil when making smaller and floor otherwise.
        cubic: coefficient a of the cubic kernel.
        exclude_outside: give cells outside the input no weight, instead of the value at the border.
        antialias: widen the kernel when making smaller.

    Returns:
        index (n_out, k) int64 and weight (n_out, k) float32.
    """
    place = _source_positions(n_in, n_out, np.float32(scale), transform)
    if mode == "nearest":
        half = np.float32(0.5 if rounding.startswith("round") else 0.0)
        down = rounding in ("floor", "round_prefer_ceil") or (rounding == "simple" and scale >= 1)
        whole = np.floor(place + half) if down else np.ceil(place - half)
        index = np.clip(whole, 0, n_in - 1).astype(np.int64)[:, None]
        return torch.from_numpy(index), torch.ones(n_out, 1)
    stretch = max(1.0, 1.0 / scale) if antialias else 1.0
    radius = (1 if mode == "linear" else 2) * stretch
    first = np.floor(place - radius).astype(np.int64) + 1
    index = first[:, None] + np.arange(math.ceil(2 * radius))
    distance = np.abs(index - place[:, None].astype(np.float64)) / stretch
    weight = np.maximum(0.0, 1.0 - distance) if mode == "linear" else _cubic_kernel(distance, cubic)
    if exclude_outside:
        weight = np.where((index >= 0) & (index < n_in), weight, 0.0)
    if exclude_outside or antialias:
        weight = weight / weight.sum(1, keepdims=True)
    return torch.from_numpy(np.clip(index, 0, n_in - 1)), torch.from_numpy(weight.astype(np.float32))


def _source_positions(n_in: int, n_out: int, scale: np.float32, transform: str) -> Array:
    """Where each output cell lies on the input axis, in float32 because ties are decided by its rounding."""
    cell, half = np.arange(n_out, dtype=np.float32), np.float32(0.5)
    if transform == "align_corners":
        return np.asarray(cell * np.float32(n_in - 1) / np.float32(max(1, n_out - 1)), dtype=np.float32)
    if transform == "asymmetric":
        return np.asarray(cell / scale, dtype=np.float32)
    if transform == "pytorch_half_pixel" and n_out == 1:
        return cell
    if transform == "half_pixel_symmetric":
        adjustment = np.float32(n_out) / (scale * np.float32(n_in))
        offset = np.float32(n_in) / 2 * (1 - adjustment)
        return np.asarray(offset + (cell + half) / scale - half, dtype=np.float32)
    return np.asarray((cell + half) / scale - half, dtype=np.float32)


def _cubic_kernel(distance: Array, a: float) -> Array:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def agrees_with_torch(mode: str, align_corners: bool | None, n_in: int, scale: float | None, taps: tuple[Tensor, Tensor]) -> bool:
    """Whether ``torch.nn.functional.interpolate`` computes the same along one axis as ``taps``.

    Asked of torch itself rather than deduced from ONNX's options: the two differ in small ways that depend on the sizes.

    Args:
        mode: "nearest", "bilinear" or "bicubic".
        align_corners: as for interpolate; None for nearest.
        n_in: size of the input.
        scale: the factor that interpolate would be given, or None if it would be given the size.
        taps: what `axis_taps` returned.

    Returns:
        True if every output cell is the same, up to 1e-5 of rounding in the weights.
    """
    index, weight = taps
    n_out = index.shape[0]
    probe = torch.arange(n_in, dtype=torch.float32).view(1, 1, 1, -1) if mode == "nearest" else torch.eye(n_in)[None, :, None, :]
    given: dict[str, Any] = {"size": (1, n_out)} if scale is None else {"scale_factor": (1.0, scale)}
    theirs = F.interpolate(probe, mode=mode, align_corners=align_corners, **given)
    if theirs.shape[-1] != n_out:
        return False
    if mode == "nearest":
        return torch.equal(theirs.view(-1).to(torch.int64), index[:, 0])
    ours = torch.zeros(n_out, n_in).scatter_add_(1, index, weight)
    return torch.allclose(theirs[0, :, 0].t(), ours, rtol=0.0, atol=1e-5)
