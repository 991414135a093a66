"""Products of a filter with every window, summed over channels only, so that each window gives a (kh, kw) map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.errors import DTypeError, ShapeError
from sightline.geometry import Interval
from sightline.ops import arguments, native
from sightline.ops.arguments import Padding, Pair
from sightline.ops.gather import computed_in
from sightline.ops.plane import Plane, plane


def channel_sum_conv2d(x: Tensor, weight: Tensor, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1) -> Tensor:
    """Element-wise product of a filter with every sliding window, summed over channels but not over the window.

    A convolution keeps one number per window and filter; this keeps the whole (kh, kw) map whose sum that number is. No patches are
    made: beyond the output, memory is needed for one more copy of x, whatever the size of the kernel.

    Args:
        x: map (n, c, h, w), any floating dtype, device and strides.
        weight: one filter (c, kh, kw), or several (f, c, kh, kw); dtype and device of x.
        stride: int or (y, x), at least 1.
        padding: int, (y, x), "same" (stride 1) or "valid"; padded cells are zero.
        dilation: int or (y, x), at least 1.

    Returns:
        (n, windows, kh, kw) for one filter, (n, f, windows, kh, kw) for several; windows in row-major order, as many as the outputs
        of ``F.conv2d``. Contiguous.

    Raises:
        ShapeError: shapes or geometry that do not fit.
        DTypeError: a dtype that is not accepted, or two that differ.
        DeviceError: tensors on different devices.

    *Exact when*: always, to rounding; the sum over the last two axes is the convolution. Differentiable in both arguments. *Cost*:
    ``windows * f * c * kh * kw`` MACs, as the convolution; backward twice that.

    Example:
        A filter over an image of 5 channels, window by window:

        >>> import torch
        >>> image, filt = torch.randn(1, 5, 12, 12), torch.randn(5, 3, 3)
        >>> result = channel_sum_conv2d(image, filt, stride=3)
        >>> result.shape
        torch.Size([1, 16, 3, 3])
        >>> torch.allclose(result[0, 5], (image[0, :, 3:6, 3:6] * filt).sum(0), atol=1e-5)
        True
        >>> dense = torch.nn.functional.conv2d(image, filt[None], stride=3)
        >>> torch.allclose(result.sum((2, 3)).reshape(1, 1, 4, 4), dense, atol=1e-5)
        True
    """
    arguments.check_map(x)
    if not isinstance(weight, Tensor):
        raise DTypeError(f"weight: expected a torch.Tensor, got {type(weight).__name__}")
    if weight.dim() not in (3, 4):
        raise ShapeError(f"weight: expected (c, kh, kw) or (f, c, kh, kw), got {tuple(weight.shape)}")
    filters = weight if weight.dim() == 4 else weight[None]
    arguments.check_weight(x, filters, 1, transposed=False)
    strides, dilations = arguments.pair("stride", stride), arguments.pair("dilation", dilation)
    pads = arguments.paddings(padding, list(filters.shape[2:]), strides, dilations)
    if not torch.compiler.is_compiling():
        plane(x.shape[2:], filters.shape[2:], strides, pads, dilations)
    result = _channel_sum(x, filters, strides, pads, dilations)
    return result if weight.dim() == 4 else result[:, 0]  # type: ignore[no-any-return]


# -- in PyTorch -------------------------------------------------------------------------------------------------------------------


def _slices(where: Plane, axis: int, tap: int) -> tuple[Interval, slice]:
    """Outputs along an axis whose tap lies inside the map, and the inputs that it reads there."""
    window, n_in, n_out = where.windows[axis], where.size[axis], where.out_size[axis]
    offset = tap * window.dilation - window.before  # output o reads o * stride + offset
    first = min(max(0, -(offset // window.stride)), n_out)
    last = max(first, min(n_out, (n_in - 1 - offset) // window.stride + 1))
    start = first * window.stride + offset
    return (first, last), slice(start, max(start, (last - 1) * window.stride + offset + 1), window.stride)


def forward(where: Plane, x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Fills out (n, f, windows, kh, kw), one tap after the other."""
    dtype = computed_in(x)
    maps = out.unflatten(2, where.out_size)
    for i in range(weight.shape[2]):
        (y0, y1), rows = _slices(where, 0, i)
        for j in range(weight.shape[3]):
            (x0, x1), cols = _slices(where, 1, j)
            target = maps[:, :, :, :, i, j]
            target.zero_()
            if y0 < y1 and x0 < x1:
                found = torch.einsum("nchw,fc->nfhw", x[:, :, rows, cols].to(dtype), weight[:, :, i, j].to(dtype))
                target[:, :, y0:y1, x0:x1] = found


def backward(where: Plane, grad: Tensor, x: Tensor, weight: Tensor, gx: Tensor | None, gw: Tensor | None) -> None:
    """Adds to gx and fills gw, one tap after the other."""
    dtype = computed_in(x)
    maps = grad.unflatten(2, where.out_size)
    for i in range(weight.shape[2]):
        (y0, y1), rows = _slices(where, 0, i)
        for j in range(weight.shape[3]):
            (x0, x1), cols = _slices(where, 1, j)
            if y0 >= y1 or x0 >= x1:
                if gw is not None:
                    gw[:, :, i, j] = 0
                continue
            part = maps[:, :, y0:y1, x0:x1, i, j].to(dtype)
            if gx is not None:
                gx[:, :, rows, cols] += torch.einsum("nfhw,fc->nchw", part, weight[:, :, i, j].to(dtype))
            if gw is not None:
                gw[:, :, i, j] = torch.einsum("nfhw,nchw->fc", part, x[:, :, rows, cols].to(dtype))


# -- as an operator of PyTorch ------------------------------------------------------------------------------------------------------

_WINDOW = "int[] stride, int[] padding, int[] dilation"


def _checked(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Plane:
    arguments.check_map(x)
    arguments.check_weight(x, weight, 1, transposed=False)
    return plane(x.shape[2:], weight.shape[2:], stride, padding, dilation)


@torch.library.custom_op("sightline::channel_sum_conv2d", mutates_args=(), schema=f"(Tensor x, Tensor weight, {_WINDOW}) -> Tensor")
def _channel_sum(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    where = _checked(x, weight, stride, padding, dilation)
    filters, _, kh, kw = weight.shape
    out = x.new_empty((x.shape[0], filters, where.out_size[0] * where.out_size[1], kh, kw))
    run = native.channel_sum if native.usable(where, x, weight) else forward
    run(where, x, weight, out)
    return out


@torch.library.custom_op(
    "sightline::channel_sum_conv2d_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor weight, {_WINDOW}, bool want_x, bool want_weight) -> (Tensor, Tensor)",
)
def _channel_sum_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor]:
    where = _checked(x, weight, stride, padding, dilation)
    filters, _, kh, kw = weight.shape
    arguments.check_like("grad", grad, x, (x.shape[0], filters, where.out_size[0] * where.out_size[1], kh, kw))
    compiled = native.usable(where, x, weight)
    dtype = computed_in(x)
    gx = torch.zeros(x.shape, dtype=dtype, device=x.device) if want_x else None
    gw = torch.empty(weight.shape, dtype=dtype, device=x.device) if want_weight else None
    (native.channel_sum_backward if compiled else backward)(where, grad, x, weight, gx, gw)
    return tuple(x.new_empty(0) if found is None else found.to(x.dtype) for found in (gx, gw))  # type: ignore[return-value]


@_channel_sum.register_fake
def _(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    h, w = arguments.out_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return x.new_empty((x.shape[0], weight.shape[0], h * w, weight.shape[2], weight.shape[3]))


@_channel_sum_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor]:
    del grad, stride, padding, dilation
    return x.new_empty(x.shape if want_x else 0), x.new_empty(weight.shape if want_weight else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    x, weight, *ctx.geometry = inputs
    ctx.save_for_backward(x, weight)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    found = _channel_sum_backward(grad, x, weight, *ctx.geometry, *wanted)
    return *(value if want else None for value, want in zip(found, wanted, strict=True)), None, None, None


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    grad, x, weight, *geometry = inputs
    ctx.geometry, ctx.wanted = geometry[:-2], geometry[-2:]
    ctx.save_for_backward(grad, x, weight)


def _second_gradient(ctx: Any, ggx: Tensor | None, ggw: Tensor | None) -> tuple[Any, ...]:
    """Linear in x and in weight, so the gradient's gradient is made of the same two operators."""
    grad, x, weight = ctx.saved_tensors
    ggx, ggw = (value if want else None for value, want in zip((ggx, ggw), ctx.wanted, strict=True))
    want_grad, want_x, want_weight = ctx.needs_input_grad[:3]
    on_grad = on_x = on_weight = None
    if want_grad:
        parts = [_channel_sum(a, b, *ctx.geometry) for a, b in ((ggx, weight), (x, ggw)) if a is not None and b is not None]
        on_grad = sum(parts[1:], parts[0]) if parts else None
    if want_x and ggw is not None:
        on_x = _channel_sum_backward(grad, x, ggw, *ctx.geometry, True, False)[0]
    if want_weight and ggx is not None:
        on_weight = _channel_sum_backward(grad, ggx, weight, *ctx.geometry, False, True)[1]
    return on_grad, on_x, on_weight, *(None for _ in range(5))


_channel_sum.register_autograd(_gradient, setup_context=_keep)
_channel_sum_backward.register_autograd(_second_gradient, setup_context=_keep_backward)
