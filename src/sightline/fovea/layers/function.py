"""k-nearest-neighbour operators as PyTorch knows them: `torch.ops.sightline.knn_*`, with shapes for tracing and gradients of every order.

Maps have the logical shape (B, C, N). Results are node-major: `y.permute(2, 0, 1)` is contiguous. Inputs may have any strides; one that is
node-major is read where it lies. Tables are tensors like any other, so one traced program serves all tables of a shape.

What belongs here: registration and checks. What does not: arithmetic (`gathered` in PyTorch, `native` in C++) and modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.errors import DeviceError, DTypeError, ShapeError
from sightline.fovea.layers import gathered, native

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def node_major(x: Tensor) -> Tensor:
    """(B, C, N) as (N, B, C), contiguous: a view where it lies so already."""
    return x.permute(2, 0, 1).contiguous()


def as_map(rows: Tensor) -> Tensor:
    """(N, B, C) as (B, C, N), a view."""
    return rows.permute(1, 2, 0)


def _new_map(like: Tensor, batch: Any, channels: Any, nodes: Any) -> Tensor:
    return like.new_empty((nodes, batch, channels)).permute(1, 2, 0)


def _wide(*tensors: Tensor | None) -> list[Any]:
    """Half-precision maps and weights are summed in float32 and rounded once."""
    return [t if t is None or t.dtype in {torch.float32, torch.float64} else t.float() for t in tensors]


# -- checks ---------------------------------------------------------------------------------------------------------------------------


def _check_map(name: str, x: Tensor) -> None:
    if x.dim() != 3:
        raise ShapeError(f"{name}: expected a map (batch, channels, nodes), got shape {tuple(x.shape)}")
    if x.dtype not in _FLOATS:
        raise DTypeError(f"{name}: expected floating-point values, got {x.dtype}; call {name}.float()")


def _check_table(x: Tensor, index: Tensor, cell: Tensor | None) -> None:
    for name, table in (("index", index), ("cell", cell)):
        if table is None:
            continue
        if table.dim() != 2 or table.shape != index.shape:
            raise ShapeError(f"{name}: expected a table (nodes, k), both tables alike, got {tuple(table.shape)} and {tuple(index.shape)}")
        if table.dtype != torch.int32:
            raise DTypeError(f"{name}: expected int32, got {table.dtype}")
        if table.device != x.device:
            raise DeviceError(f"{name} is on {table.device}, the map on {x.device}; move the layer with .to({str(x.device)!r})")


def _check_same(name: str, value: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ShapeError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
    if value.dtype != x.dtype:
        raise DTypeError(f"{name} is {value.dtype}, the map is {x.dtype}; convert one of them")
    if value.device != x.device:
        raise DeviceError(f"{name} is on {value.device}, the map on {x.device}")


def _check_conv(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, cell: Tensor) -> None:
    _check_map("x", x)
    _check_table(x, index, cell)
    if weight.dim() != 2 or x.shape[1] == 0 or weight.shape[1] % x.shape[1]:
        raise ShapeError(
            f"weight: expected (out_channels, {x.shape[1]} * cells) for a map of {x.shape[1]} channels, got {tuple(weight.shape)}"
        )
    _check_same("weight", weight, x, tuple(weight.shape))
    if bias is not None:
        _check_same("bias", bias, x, (weight.shape[0],))


# -- convolution ----------------------------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "sightline::knn_conv", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias, Tensor index, Tensor cell) -> Tensor"
)
def knn_conv(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, cell: Tensor) -> Tensor:
    """y[b, o, n] = bias[o] + sum over c, j of x[b, c, index[n, j]] * weight[o, c * V + cell[n, j]]; nodes without inputs are zero."""
    _check_conv(x, weight, bias, index, cell)
    rows, kernel, shift = _wide(node_major(x), weight, bias)
    run = native.conv if native.usable(rows) else gathered.conv
    return as_map(run(rows, kernel, shift, index, cell).to(x.dtype))


@knn_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, cell: Tensor) -> Tensor:
    del bias, cell
    return _new_map(x, x.shape[0], weight.shape[0], index.shape[0])


@torch.library.custom_op(
    "sightline::knn_conv_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor index, Tensor cell, bool want_x, bool want_weight, bool want_bias)"
    " -> (Tensor, Tensor, Tensor)",
)
def knn_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, cell: Tensor, want_x: bool, want_weight: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, weight and bias; empty tensors for those that are not wanted."""
    _check_conv(x, weight, None, index, cell)
    _check_same("grad", grad, x, (x.shape[0], weight.shape[0], index.shape[0]))
    wanted = (want_x, want_weight, want_bias)
    back, rows, kernel = _wide(node_major(grad), node_major(x), weight)
    run = native.conv_backward if native.usable(rows) else gathered.conv_backward
    gx, gw, gb = run(back, rows, kernel, index, cell, wanted)
    return (
        x.new_empty(0) if gx is None else as_map(gx.to(x.dtype)),
        x.new_empty(0) if gw is None else gw.to(x.dtype),
        x.new_empty(0) if gb is None else gb.to(x.dtype),
    )


@knn_conv_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, cell: Tensor, want_x: bool, want_weight: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    del grad, index, cell
    return (
        _new_map(x, x.shape[0], x.shape[1], x.shape[2]) if want_x else x.new_empty(0),
        x.new_empty(weight.shape) if want_weight else x.new_empty(0),
        x.new_empty(weight.shape[0]) if want_bias else x.new_empty(0),
    )


def _keep_conv(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    x, weight, bias, index, cell = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, weight, index, cell)


def _conv_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, index, cell = ctx.saved_tensors
    want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
    wanted = (want_x, want_weight, want_bias and ctx.biased)
    found = knn_conv_backward(grad, x, weight, index, cell, *wanted)
    return (*(value if want else None for value, want in zip(found, wanted, strict=True)), None, None)


def _keep_conv_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    ctx.wanted = inputs[5:]
    ctx.save_for_backward(*inputs[:5])


def _conv_second_gradient(ctx: Any, ggx: Tensor | None, ggw: Tensor | None, ggb: Tensor | None) -> tuple[Any, ...]:
    """The convolution is linear in x, in weight and in bias, so its gradient's gradient is made of the same two operators."""
    grad, x, weight, index, cell = ctx.saved_tensors
    ggx, ggw, ggb = (value if want else None for value, want in zip((ggx, ggw, ggb), ctx.wanted, strict=True))
    want_grad, want_x, want_weight = ctx.needs_input_grad[:3]
    on_grad = on_x = on_weight = None
    if want_grad:
        parts = []
        if ggx is not None:
            parts.append(knn_conv(ggx, weight, ggb, index, cell))
        if ggw is not None:
            parts.append(knn_conv(x, ggw, ggb if ggx is None else None, index, cell))
        if not parts and ggb is not None:
            parts.append(ggb[:, None] * gathered.read_nodes(index).to(ggb.dtype))
            parts[0] = parts[0].expand_as(grad)
        on_grad = sum(parts[1:], parts[0]) if parts else None
    if want_x and ggw is not None:
        on_x = knn_conv_backward(grad, x, ggw, index, cell, True, False, False)[0]
    if want_weight and ggx is not None:
        on_weight = knn_conv_backward(grad, ggx, weight, index, cell, False, True, False)[1]
    return on_grad, on_x, on_weight, None, None, None, None, None


knn_conv.register_autograd(_conv_gradient, setup_context=_keep_conv)
knn_conv_backward.register_autograd(_conv_second_gradient, setup_context=_keep_conv_backward)


# -- depthwise convolution ------------------------------------------------------------------------------------------------------------


def _check_depthwise(x: Tensor, weight: Tensor, index: Tensor, cell: Tensor) -> None:
    _check_map("x", x)
    _check_table(x, index, cell)
    if weight.dim() != 3:
        raise ShapeError(f"weight: expected (channels, cells, multiplier), got {tuple(weight.shape)}")
    _check_same("weight", weight, x, (x.shape[1], *weight.shape[1:]))


@torch.library.custom_op(
    "sightline::knn_depthwise", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor index, Tensor cell) -> Tensor"
)
def knn_depthwise(x: Tensor, weight: Tensor, index: Tensor, cell: Tensor) -> Tensor:
    """y[b, c * G + g, n] = sum over j of x[b, c, index[n, j]] * weight[c, cell[n, j], g]."""
    _check_depthwise(x, weight, index, cell)
    wide = _wide(x, weight)
    return as_map(gathered.depthwise(node_major(wide[0]), wide[1], index, cell).to(x.dtype))


@knn_depthwise.register_fake
def _(x: Tensor, weight: Tensor, index: Tensor, cell: Tensor) -> Tensor:
    del cell
    return _new_map(x, x.shape[0], weight.shape[0] * weight.shape[2], index.shape[0])


@torch.library.custom_op(
    "sightline::knn_depthwise_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor index, Tensor cell, bool want_x, bool want_weight) -> (Tensor, Tensor)",
)
def knn_depthwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, cell: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x and weight; empty tensors for those that are not wanted."""
    _check_depthwise(x, weight, index, cell)
    _check_same("grad", grad, x, (x.shape[0], weight.shape[0] * weight.shape[2], index.shape[0]))
    wide = _wide(grad, x, weight)
    gx, gw = gathered.depthwise_backward(node_major(wide[0]), node_major(wide[1]), wide[2], index, cell, (want_x, want_weight))
    return (
        x.new_empty(0) if gx is None else as_map(gx.to(x.dtype)),
        x.new_empty(0) if gw is None else gw.to(x.dtype),
    )


@knn_depthwise_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, cell: Tensor, want_x: bool, want_weight: bool) -> tuple[Tensor, Tensor]:
    del grad, index, cell
    return (
        _new_map(x, x.shape[0], x.shape[1], x.shape[2]) if want_x else x.new_empty(0),
        x.new_empty(weight.shape) if want_weight else x.new_empty(0),
    )


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))


def _depthwise_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, index, cell = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    found = knn_depthwise_backward(grad, x, weight, index, cell, *wanted)
    return (*(value if want else None for value, want in zip(found, wanted, strict=True)), None, None)


def _depthwise_second_gradient(ctx: Any, ggx: Tensor | None, ggw: Tensor | None) -> tuple[Any, ...]:
    grad, x, weight, index, cell = ctx.saved_tensors
    ggx, ggw = (value if want else None for value, want in zip((ggx, ggw), ctx.wanted, strict=True))
    want_grad, want_x, want_weight = ctx.needs_input_grad[:3]
    on_grad = on_x = on_weight = None
    if want_grad:
        parts = [knn_depthwise(*pair, index, cell) for pair in ((ggx, weight), (x, ggw)) if pair[0] is not None and pair[1] is not None]
        on_grad = sum(parts[1:], parts[0]) if parts else None
    if want_x and ggw is not None:
        on_x = knn_depthwise_backward(grad, x, ggw, index, cell, True, False)[0]
    if want_weight and ggx is not None:
        on_weight = knn_depthwise_backward(grad, ggx, weight, index, cell, False, True)[1]
    return on_grad, on_x, on_weight, None, None, None, None


knn_depthwise.register_autograd(_depthwise_gradient, setup_context=_keep_inputs)
knn_depthwise_backward.register_autograd(_depthwise_second_gradient, setup_context=_keep_conv_backward)


# -- pooling --------------------------------------------------------------------------------------------------------------------------


def _check_pool(x: Tensor, index: Tensor, weights: Tensor | None = None) -> None:
    _check_map("x", x)
    _check_table(x, index, None)
    if weights is not None:
        if weights.shape != index.shape or not weights.is_floating_point():
            raise ShapeError(f"weights: expected floating-point {tuple(index.shape)}, got {weights.dtype} {tuple(weights.shape)}")
        if weights.device != x.device:
            raise DeviceError(f"weights are on {weights.device}, the map on {x.device}")


def _shares(index: Tensor, weights: Tensor | None, mean: bool, dtype: torch.dtype) -> Tensor:
    """(N_out, k): what each neighbour is multiplied by."""
    reads = index >= 0
    found = reads.to(dtype) if weights is None else weights.to(dtype).masked_fill(~reads, 0)
    return found / reads.sum(1, keepdim=True).clamp_min(1) if mean else found


@torch.library.custom_op("sightline::knn_max_pool", mutates_args=(), schema="(Tensor x, Tensor index) -> Tensor")
def knn_max_pool(x: Tensor, index: Tensor) -> Tensor:
    """Maxima of neighbours; NaN wins, padding does not take part, nodes without inputs are zero."""
    _check_pool(x, index)
    (rows,) = _wide(node_major(x))
    return as_map((native.max_pool(rows, index) if native.usable(rows) else gathered.max_pool(rows, index)[0]).to(x.dtype))


@torch.library.custom_op("sightline::knn_max_pool_backward", mutates_args=(), schema="(Tensor grad, Tensor x, Tensor index) -> Tensor")
def knn_max_pool_backward(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """Gradient with respect to x: each node's goes to the first neighbour that holds its maximum."""
    _check_pool(x, index)
    _check_same("grad", grad, x, (*x.shape[:2], index.shape[0]))
    back, rows = _wide(node_major(grad), node_major(x))
    run = native.max_pool_backward if native.usable(rows) else gathered.max_pool_backward
    return as_map(run(back, rows, index).to(x.dtype))


@torch.library.custom_op("sightline::knn_max_pool_pick", mutates_args=(), schema="(Tensor values, Tensor x, Tensor index) -> Tensor")
def knn_max_pool_pick(values: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """What `values` holds where x has each maximum. The adjoint of the gradient above."""
    _check_pool(x, index)
    _check_same("values", values, x, tuple(x.shape))
    return as_map(gathered.max_pool_pick(node_major(values), node_major(x), index))


@torch.library.custom_op(
    "sightline::knn_sum_pool", mutates_args=(), schema="(Tensor x, Tensor index, Tensor? weights, bool mean) -> Tensor"
)
def knn_sum_pool(x: Tensor, index: Tensor, weights: Tensor | None, mean: bool) -> Tensor:
    """Sums of neighbours, times `weights` (N_out, k) if given, divided by their number if `mean`; padding does not take part."""
    _check_pool(x, index, weights)
    (rows,) = _wide(node_major(x))
    run = native.sum_pool if native.usable(rows) else gathered.sum_pool
    return as_map(run(rows, index, _shares(index, weights, mean, rows.dtype)).to(x.dtype))


@torch.library.custom_op(
    "sightline::knn_sum_pool_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor index, Tensor? weights, bool mean, SymInt nodes) -> Tensor",
)
def knn_sum_pool_backward(grad: Tensor, index: Tensor, weights: Tensor | None, mean: bool, nodes: int) -> Tensor:
    """Gradient with respect to an input of `nodes` nodes."""
    _check_pool(grad, index, weights)
    (rows,) = _wide(node_major(grad))
    run = native.sum_pool_backward if native.usable(rows) else gathered.sum_pool_backward
    return as_map(run(rows, index, _shares(index, weights, mean, rows.dtype), nodes).to(grad.dtype))


@knn_max_pool.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return _new_map(x, x.shape[0], x.shape[1], index.shape[0])


@knn_max_pool_backward.register_fake
def _(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    del grad, index
    return _new_map(x, x.shape[0], x.shape[1], x.shape[2])


@knn_max_pool_pick.register_fake
def _(values: Tensor, x: Tensor, index: Tensor) -> Tensor:
    del values
    return _new_map(x, x.shape[0], x.shape[1], index.shape[0])


@knn_sum_pool.register_fake
def _(x: Tensor, index: Tensor, weights: Tensor | None, mean: bool) -> Tensor:
    del weights, mean
    return _new_map(x, x.shape[0], x.shape[1], index.shape[0])


@knn_sum_pool_backward.register_fake
def _(grad: Tensor, index: Tensor, weights: Tensor | None, mean: bool, nodes: Any) -> Tensor:
    del index, weights, mean
    return _new_map(grad, grad.shape[0], grad.shape[1], nodes)


def _max_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, index = ctx.saved_tensors
    return (knn_max_pool_backward(grad, x, index) if ctx.needs_input_grad[0] else None), None


def _max_second_gradient(ctx: Any, ggx: Tensor) -> tuple[Any, ...]:
    _, x, index = ctx.saved_tensors
    # which input is the largest does not change under small changes of x
    return (knn_max_pool_pick(ggx, x, index) if ctx.needs_input_grad[0] else None), None, None


def _max_pick_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    _, x, index = ctx.saved_tensors
    return (knn_max_pool_backward(grad, x, index) if ctx.needs_input_grad[0] else None), None, None


def _keep_sum(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    x, index, weights, ctx.mean = inputs[:4]
    ctx.nodes = x.shape[2]
    ctx.save_for_backward(index, weights)


def _sum_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Weights belong to the table: they get no gradient."""
    index, weights = ctx.saved_tensors
    wants = ctx.needs_input_grad[0]
    return (knn_sum_pool_backward(grad, index, weights, ctx.mean, ctx.nodes) if wants else None), None, None, None


def _keep_sum_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del output
    _, index, weights, ctx.mean, _ = inputs
    ctx.save_for_backward(index, weights)


def _sum_second_gradient(ctx: Any, ggx: Tensor) -> tuple[Any, ...]:
    index, weights = ctx.saved_tensors
    return (knn_sum_pool(ggx, index, weights, ctx.mean) if ctx.needs_input_grad[0] else None), None, None, None, None


knn_max_pool.register_autograd(_max_gradient, setup_context=_keep_inputs)
knn_max_pool_backward.register_autograd(_max_second_gradient, setup_context=_keep_inputs)
knn_max_pool_pick.register_autograd(_max_pick_gradient, setup_context=_keep_inputs)
knn_sum_pool.register_autograd(_sum_gradient, setup_context=_keep_sum)
knn_sum_pool_backward.register_autograd(_sum_second_gradient, setup_context=_keep_sum_backward)
