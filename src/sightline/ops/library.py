"""The operators as PyTorch knows them: `torch.ops.sightline.*`, with shapes for tracing and gradients of every order.

Each has a schema, an implementation (native where it can, else gathered in PyTorch), a fake one that knows shapes and strides only,
and a formula for its gradient, which is again one of these operators wherever gradients of gradients exist. The mask is a tensor like
any other, so compiled code takes changing masks without compiling again.

What belongs here: registration. What does not: arguments as users write them (`sightline.ops.convolution` and its neighbours).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.errors import ShapeError
from sightline.ops import arguments, gather, native
from sightline.ops.plane import Plane, plane

_WINDOW = "int[] stride, int[] padding, int[] dilation, int groups, str padding_mode, bool transposed, int[] output_padding"
_POOL = "int[] kernel, int[] stride, int[] padding"


def _channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.stride(1) == 1


def _start(x: Tensor, held: Tensor | None, mask: Tensor, channels: int) -> Tensor:
    """The output before any site is computed."""
    shape = (x.shape[0], channels, *mask.shape[1:])
    if held is not None:
        arguments.check_like("held", held, x, shape)
    out = _new_map(x, shape)
    return out.zero_() if held is None else out.copy_(held)


def _new_map(like: Tensor, shape: tuple[Any, ...]) -> Tensor:
    form = torch.channels_last if _channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)


def _as_map(rows: Tensor, like: Tensor) -> Tensor:
    """(n, h, w, c), contiguous, as (n, c, h, w) in the memory format of results for `like`."""
    moved = rows.permute(0, 3, 1, 2)
    return moved.contiguous(memory_format=torch.channels_last if _channels_last(like) else torch.contiguous_format)


# -- convolution ------------------------------------------------------------------------------------------------------------------


def _out_channels(weight: Tensor, groups: int, transposed: bool) -> Any:
    return weight.shape[1] * groups if transposed else weight.shape[0]


def conv_plane(
    x: Tensor, weight: Tensor, mask: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int, padding_mode: str,
    transposed: bool, output_padding: list[int],
) -> Plane:  # fmt: skip
    """Checks what a convolution is given and returns its geometry.

    Raises:
        SightlineError: as `arguments.check_map`, `check_weight` and `check_sites`, and as `plane`.
    """
    arguments.check_map(x)
    arguments.check_weight(x, weight, groups, transposed=transposed)
    found = plane(
        x.shape[2:], weight.shape[2:], stride, padding, dilation, transposed=transposed, output_padding=output_padding, mode=padding_mode
    )
    arguments.check_sites(mask, x, found.out_size)
    return found


@torch.library.custom_op(
    "sightline::conv2d_at",
    mutates_args=(),
    schema=f"(Tensor x, Tensor weight, Tensor? bias, Tensor mask, Tensor? held, {_WINDOW}) -> Tensor",
)
def conv2d_at(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, held: Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], groups: int, padding_mode: str, transposed: bool, output_padding: list[int],
) -> Tensor:  # fmt: skip
    """Convolution or transposed convolution at the mask's positions, `held` or zero elsewhere."""
    where = conv_plane(x, weight, mask, stride, padding, dilation, groups, padding_mode, transposed, output_padding)
    channels = _out_channels(weight, groups, transposed)
    if bias is not None:
        arguments.check_like("bias", bias, x, (channels,))
    out = _start(x, held, mask, channels)
    run = native.conv if native.usable(where, x, weight, out) else gather.conv
    run(where, x, weight, bias, mask, groups, transposed, out)
    return out


@conv2d_at.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, held: Tensor | None, stride: Any, padding: Any, dilation: Any,
      groups: int, padding_mode: str, transposed: bool, output_padding: Any) -> Tensor:  # fmt: skip
    del bias, held, stride, padding, dilation, padding_mode, output_padding
    return _new_map(x, (x.shape[0], _out_channels(weight, groups, transposed), *mask.shape[1:]))


@torch.library.custom_op(
    "sightline::conv2d_at_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor weight, Tensor mask, {_WINDOW}, bool want_x, bool want_weight, bool want_bias)"
    " -> (Tensor, Tensor, Tensor)",
)
def conv2d_at_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int,
    padding_mode: str, transposed: bool, output_padding: list[int], want_x: bool, want_weight: bool, want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to x, weight and bias; empty tensors for those that are not wanted."""
    where = conv_plane(x, weight, mask, stride, padding, dilation, groups, padding_mode, transposed, output_padding)
    arguments.check_like("grad", grad, x, (x.shape[0], _out_channels(weight, groups, transposed), *mask.shape[1:]))
    if native.usable(where, grad, x, weight):
        gx = _new_map(x, tuple(x.shape)).zero_() if want_x else None
        gw, gb = native.conv_backward(where, grad, x, weight, mask, groups, transposed, gx, (want_weight, want_bias))
    else:
        rows, gw, gb = gather.conv_backward(where, grad, x, weight, mask, groups, transposed, (want_x, want_weight, want_bias))
        gx = None if rows is None else _as_map(rows, x)
        gw = None if gw is None else gw.contiguous()
    return tuple(x.new_empty(0) if found is None else found for found in (gx, gw, gb))  # type: ignore[return-value]


@conv2d_at_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, padding_mode: str,
    transposed: bool, output_padding: Any, want_x: bool, want_weight: bool, want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    del mask, stride, padding, dilation, groups, padding_mode, transposed, output_padding
    return (
        _new_map(x, tuple(x.shape)) if want_x else x.new_empty(0),
        weight.new_empty(weight.shape) if want_weight else x.new_empty(0),
        x.new_empty(grad.shape[1]) if want_bias else x.new_empty(0),
    )


def _keep_conv(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    x, weight, bias, mask, held, *ctx.geometry = inputs
    ctx.biased, ctx.holds = bias is not None, held is not None
    ctx.save_for_backward(x, weight, mask)


def _conv_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, mask = ctx.saved_tensors
    want_x, want_weight, want_bias, _, want_held = ctx.needs_input_grad[:5]
    wanted = (want_x, want_weight, want_bias and ctx.biased)
    gx, gw, gb = conv2d_at_backward(grad, x, weight, mask, *ctx.geometry, *wanted) if any(wanted) else (None, None, None)
    gh = grad.masked_fill(mask[:, None], 0) if want_held and ctx.holds else None
    found = (value if want else None for value, want in zip((gx, gw, gb), wanted, strict=True))
    return (*found, None, gh, *(None for _ in ctx.geometry))


def _keep_conv_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    grad, x, weight, mask, *geometry = inputs
    ctx.geometry, ctx.wanted = geometry[:-3], geometry[-3:]
    ctx.save_for_backward(grad, x, weight, mask)


def _conv_second_gradient(ctx: Any, ggx: Tensor | None, ggw: Tensor | None, ggb: Tensor | None) -> tuple[Any, ...]:
    """The convolution is linear in x, in weight and in bias, so its gradient's gradient is made of the same two operators."""
    grad, x, weight, mask = ctx.saved_tensors
    ggx, ggw, ggb = (value if want else None for value, want in zip((ggx, ggw, ggb), ctx.wanted, strict=True))
    want_grad, want_x, want_weight = ctx.needs_input_grad[:3]
    on_grad = on_x = on_weight = None
    if want_grad:
        parts = []
        if ggx is not None:
            parts.append(conv2d_at(ggx, weight, ggb, mask, None, *ctx.geometry))
        if ggw is not None:
            parts.append(conv2d_at(x, ggw, ggb if ggx is None else None, mask, None, *ctx.geometry))
        if not parts and ggb is not None:
            parts.append(torch.where(mask[:, None], ggb[:, None, None], torch.zeros_like(grad)))
        on_grad = sum(parts[1:], parts[0]) if parts else None
    if want_x and ggw is not None:
        on_x = conv2d_at_backward(grad, x, ggw, mask, *ctx.geometry, True, False, False)[0]
    if want_weight and ggx is not None:
        on_weight = conv2d_at_backward(grad, ggx, weight, mask, *ctx.geometry, False, True, False)[1]
    return on_grad, on_x, on_weight, None, *(None for _ in range(len(ctx.geometry) + 3))


conv2d_at.register_autograd(_conv_gradient, setup_context=_keep_conv)
conv2d_at_backward.register_autograd(_conv_second_gradient, setup_context=_keep_conv_backward)


# -- pooling ----------------------------------------------------------------------------------------------------------------------


def pool_plane(
    x: Tensor, mask: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Plane:
    """Checks what a pooling is given and returns its geometry.

    Raises:
        SightlineError: as `arguments.check_map` and `check_sites`, and as `plane`.
        ShapeError: padding beyond half the kernel, where a window could lie outside the map.
    """
    arguments.check_map(x)
    if padding[0] > kernel[0] // 2 or padding[2] > kernel[1] // 2:
        raise ShapeError(f"padding: at most half the kernel_size {tuple(kernel)}, got {(padding[0], padding[2])}")
    found = plane(x.shape[2:], kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    arguments.check_sites(mask, x, found.out_size)
    return found


@torch.library.custom_op(
    "sightline::max_pool2d_at",
    mutates_args=(),
    schema=f"(Tensor x, Tensor mask, Tensor? held, {_POOL}, int[] dilation, bool ceil_mode) -> Tensor",
)
def max_pool2d_at(
    x: Tensor, mask: Tensor, held: Tensor | None, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int],
    ceil_mode: bool,
) -> Tensor:  # fmt: skip
    """Maxima of windows at the mask's positions, `held` or zero elsewhere."""
    where = pool_plane(x, mask, kernel, stride, padding, dilation, ceil_mode)
    out = _start(x, held, mask, x.shape[1])
    run = native.max_pool if native.usable(where, x, out) else gather.max_pool
    run(where, x, mask, out)
    return out


@torch.library.custom_op(
    "sightline::max_pool2d_at_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor mask, {_POOL}, int[] dilation, bool ceil_mode) -> Tensor",
)
def max_pool2d_at_backward(
    grad: Tensor, x: Tensor, mask: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    """Gradient with respect to x: each site's goes to the input that holds its maximum."""
    where = pool_plane(x, mask, kernel, stride, padding, dilation, ceil_mode)
    arguments.check_like("grad", grad, x, (*x.shape[:2], *mask.shape[1:]))
    if not native.usable(where, grad, x):
        return _as_map(gather.max_pool_backward(where, grad, x, mask), x)
    gx = _new_map(x, tuple(x.shape)).zero_()
    native.max_pool_backward(where, grad, x, mask, gx)
    return gx


@torch.library.custom_op(
    "sightline::max_pool2d_at_pick",
    mutates_args=(),
    schema=f"(Tensor values, Tensor x, Tensor mask, {_POOL}, int[] dilation, bool ceil_mode) -> Tensor",
)
def max_pool2d_at_pick(
    values: Tensor, x: Tensor, mask: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    """What `values` holds where x has the maximum of each window; zero outside the mask. The adjoint of the gradient above."""
    where = pool_plane(x, mask, kernel, stride, padding, dilation, ceil_mode)
    arguments.check_like("values", values, x, x.shape)
    out = _start(x, None, mask, x.shape[1])
    gather.max_pool(where, x, mask, out, values)
    return out


@max_pool2d_at.register_fake
def _(x: Tensor, mask: Tensor, held: Tensor | None, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    del held, kernel, stride, padding, dilation, ceil_mode
    return _new_map(x, (*x.shape[:2], *mask.shape[1:]))


@max_pool2d_at_backward.register_fake
def _(grad: Tensor, x: Tensor, mask: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    del grad, mask, kernel, stride, padding, dilation, ceil_mode
    return _new_map(x, tuple(x.shape))


@max_pool2d_at_pick.register_fake
def _(values: Tensor, x: Tensor, mask: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    del values, kernel, stride, padding, dilation, ceil_mode
    return _new_map(x, (*x.shape[:2], *mask.shape[1:]))


def _keep_max(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    x, mask, _, *ctx.geometry = inputs
    ctx.save_for_backward(x, mask)


def _max_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, mask = ctx.saved_tensors
    want_x, _, want_held = ctx.needs_input_grad[:3]
    gx = max_pool2d_at_backward(grad, x, mask, *ctx.geometry) if want_x else None
    return gx, None, grad.masked_fill(mask[:, None], 0) if want_held else None, *(None for _ in ctx.geometry)


def _keep_max_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    _, x, mask, *ctx.geometry = inputs
    ctx.save_for_backward(x, mask)


def _max_second_gradient(ctx: Any, ggx: Tensor) -> tuple[Any, ...]:
    x, mask = ctx.saved_tensors
    on_grad = max_pool2d_at_pick(ggx, x, mask, *ctx.geometry) if ctx.needs_input_grad[0] else None
    # which input is the largest does not change under small changes of x
    return on_grad, None, None, *(None for _ in ctx.geometry)


def _max_pick_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, mask = ctx.saved_tensors
    on_values = max_pool2d_at_backward(grad, x, mask, *ctx.geometry) if ctx.needs_input_grad[0] else None
    return on_values, None, None, *(None for _ in ctx.geometry)


max_pool2d_at.register_autograd(_max_gradient, setup_context=_keep_max)
max_pool2d_at_backward.register_autograd(_max_second_gradient, setup_context=_keep_max_backward)
max_pool2d_at_pick.register_autograd(_max_pick_gradient, setup_context=_keep_max_backward)


@torch.library.custom_op(
    "sightline::avg_pool2d_at",
    mutates_args=(),
    schema=f"(Tensor x, Tensor mask, Tensor? held, {_POOL}, bool ceil_mode, bool count_include_pad, int? divisor) -> Tensor",
)
def avg_pool2d_at(
    x: Tensor, mask: Tensor, held: Tensor | None, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool,
    count_include_pad: bool, divisor: int | None,
) -> Tensor:  # fmt: skip
    """Means of windows at the mask's positions, `held` or zero elsewhere."""
    where = pool_plane(x, mask, kernel, stride, padding, [1, 1], ceil_mode)
    out, divisors = _start(x, held, mask, x.shape[1]), where.divisors(count_include_pad, divisor)
    if native.usable(where, x, out):
        native.avg_pool(where, x, mask, divisors, out)
    else:
        gather.avg_pool(where, x, mask, (_on(divisors[0], x), _on(divisors[1], x)), out)
    return out


@torch.library.custom_op(
    "sightline::avg_pool2d_at_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor mask, {_POOL}, bool ceil_mode, bool count_include_pad, int? divisor) -> Tensor",
)
def avg_pool2d_at_backward(
    grad: Tensor, x: Tensor, mask: Tensor, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool,
    count_include_pad: bool, divisor: int | None,
) -> Tensor:  # fmt: skip
    """Gradient with respect to x, of which only the shape is read."""
    where = pool_plane(x, mask, kernel, stride, padding, [1, 1], ceil_mode)
    arguments.check_like("grad", grad, x, (*x.shape[:2], *mask.shape[1:]))
    divisors = where.divisors(count_include_pad, divisor)
    if not native.usable(where, grad, x):
        return _as_map(gather.avg_pool_backward(where, grad, mask, (_on(divisors[0], x), _on(divisors[1], x))), x)
    gx = _new_map(x, tuple(x.shape)).zero_()
    native.avg_pool_backward(where, grad, mask, divisors, gx)
    return gx


def _on(values: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(values).to(x.device)


@avg_pool2d_at.register_fake
def _(x: Tensor, mask: Tensor, held: Tensor | None, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool,
      divisor: Any) -> Tensor:  # fmt: skip
    del held, kernel, stride, padding, ceil_mode, count_include_pad, divisor
    return _new_map(x, (*x.shape[:2], *mask.shape[1:]))


@avg_pool2d_at_backward.register_fake
def _(grad: Tensor, x: Tensor, mask: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool,
      divisor: Any) -> Tensor:  # fmt: skip
    del grad, mask, kernel, stride, padding, ceil_mode, count_include_pad, divisor
    return _new_map(x, tuple(x.shape))


def _avg_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, mask = ctx.saved_tensors
    want_x, _, want_held = ctx.needs_input_grad[:3]
    gx = avg_pool2d_at_backward(grad, x, mask, *ctx.geometry) if want_x else None
    return gx, None, grad.masked_fill(mask[:, None], 0) if want_held else None, *(None for _ in ctx.geometry)


def _avg_second_gradient(ctx: Any, ggx: Tensor) -> tuple[Any, ...]:
    _, mask = ctx.saved_tensors
    on_grad = avg_pool2d_at(ggx, mask, None, *ctx.geometry) if ctx.needs_input_grad[0] else None
    return on_grad, None, None, *(None for _ in ctx.geometry)


avg_pool2d_at.register_autograd(_avg_gradient, setup_context=_keep_max)
avg_pool2d_at_backward.register_autograd(_avg_second_gradient, setup_context=_keep_max_backward)
