"""From ATen calls to canonical ops: the table, one small function per family of calls.

A function gets an `Emitter` (to add nodes) and a `Call` (what is called, with which operands) and returns the value that
stands for the call's result: a `Node`, a constant tensor, a list of these for a call with several results, or None if the call
is outside what the canonical op can express; it then becomes a ``torch`` node. A call that is not in the table becomes one too.

What belongs here: the meaning of single ATen calls. What does not: walking a traced program, aliasing and in-place calls,
evaluation of constants, names (all in `aten_walk.py`); calls that only move elements (`aten_layout.py`).

To add an op: write a function, decorate it with the ATen names that it takes (in-place names are found by themselves).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sightline.graph.aten_base import Call, Emitter, Value, aten, four, pair
from sightline.graph.ir import Node


def _weights(call: Call, rank: int) -> bool:
    """Whether weight and bias are constants, the weight of that rank, in the frame's element type."""
    weight, bias = call["weight"], call.get("bias")
    return isinstance(weight, Tensor) and weight.dim() == rank and (bias is None or isinstance(bias, Tensor))


# -- convolution and linear ---------------------------------------------------------------------------------------------


@aten("conv2d", "conv_transpose2d", "convolution", "_convolution")
def _convolution(e: Emitter, call: Call) -> Value:
    x = call.map()
    if x is None or not _weights(call, 4):
        return None
    weight, dilation = call["weight"], pair(call["dilation"], 1)
    padding: Any = call["padding"]
    if padding == "valid":
        padding = (0, 0, 0, 0)
    elif padding == "same":
        extra = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = (extra[0] // 2, extra[0] - extra[0] // 2, extra[1] // 2, extra[1] - extra[1] // 2)
    else:
        padding = four(padding)
    transposed = bool(call.get("transposed", call.name == "conv_transpose2d"))
    return e.emit(
        "conv2d",
        [x],
        call.result,
        weight=weight,
        bias=call.get("bias"),
        stride=pair(call["stride"], 1),
        padding=padding,
        dilation=dilation,
        groups=int(call["groups"]),
        padding_mode="zeros",
        transposed=transposed,
        output_padding=pair(call.get("output_padding", 0), 0) if transposed else (0, 0),
    )


@aten("linear")
def _linear(e: Emitter, call: Call) -> Value:
    x = call["input"]
    if not isinstance(x, Node) or not _weights(call, 2):
        return None
    return e.emit("linear", [x], call.result, weight=call["weight"], bias=call.get("bias"))


@aten("mm", "matmul", "addmm")
def _matmul(e: Emitter, call: Call) -> Value:
    bias, x, matrix = (None, call[0], call[1]) if call.name != "addmm" else (call[0], call[1], call[2])
    if not isinstance(x, Node) or not isinstance(matrix, Tensor) or matrix.dim() != 2 or x.dtype != matrix.dtype:
        return None
    if call.name == "addmm" and (call["beta"] != 1 or call["alpha"] != 1 or not isinstance(bias, Tensor) or bias.dim() != 1):
        return None
    return e.emit("linear", [x], call.result, weight=matrix.t(), bias=bias)


# -- normalisation ------------------------------------------------------------------------------------------------------


def _exact(value: Tensor) -> Tensor:
    """In float64, on a device that has it."""
    return (value.cpu() if value.device.type == "mps" else value).double()


@aten("batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "native_batch_norm", "cudnn_batch_norm")
def _batch_norm(e: Emitter, call: Call) -> Value:
    several = isinstance(call.result, (list, tuple))
    x, result = call[0], call.result[0] if several else call.result
    weight, bias = call.get("weight"), call.get("bias")
    mean, var = call.get("running_mean"), call.get("running_var")
    eps = call.get("eps", call.get("epsilon", 1e-5))
    if not isinstance(x, Node) or any(isinstance(value, Node) for value in (weight, bias, mean, var)):
        return None
    if call.get("training", False) or mean is None or var is None:
        # statistics of the batch itself; running statistics are withheld, or each run would update the user's own
        target = torch.ops.aten.batch_norm.default
        node = e.torch(target, (x, weight, bias, None, None, True, 0.0, eps, False), {}, result)
    else:
        factor = torch.rsqrt(_exact(var) + eps) * (1 if weight is None else _exact(weight))
        shift = (0 if bias is None else _exact(bias)) - _exact(mean) * factor
        # half types keep float32 here, as torch itself computes their batch norm
        dtype = torch.promote_types(result.dtype, torch.float32)
        scale, shift = (value.to(device=var.device, dtype=dtype) for value in (factor, shift))
        node = e.emit("affine", [x], result, scale=scale, shift=shift)
    return [node] + [None] * (len(call.result) - 1) if several else node


@aten("native_layer_norm")
def _layer_norm(e: Emitter, call: Call) -> Value:
    if not call.used <= {0}:
        return None
    args = (call["input"], list(call["normalized_shape"]), call.get("weight"), call.get("bias"), call["eps"])
    return [e.torch(torch.ops.aten.layer_norm.default, args, {}, call.result[0]), None, None]


# -- activations --------------------------------------------------------------------------------------------------------

_PLAIN = ("relu", "silu", "hardswish", "sigmoid", "hardsigmoid", "tanh", "mish", "exp", "sqrt", "abs", "neg")


def _activation(e: Emitter, call: Call, kind: str, *params: float, **attrs: Any) -> Value:
    x = call[0]
    if not isinstance(x, Node) or x.dtype != call.result.dtype or not call.result.dtype.is_floating_point:
        return None
    return e.emit("act", [x], call.result, kind=kind, params=tuple(float(value) for value in params), **attrs)


@aten(*_PLAIN)
def _plain_activation(e: Emitter, call: Call) -> Value:
    return _activation(e, call, call.name)


def _clamp_between(e: Emitter, call: Call, low: Any, high: Any) -> Value:
    """Clamp with number bounds, where None is no bound."""
    if any(isinstance(bound, (Node, Tensor)) for bound in (low, high)):
        return None
    if low == 0 and high is None:
        return _activation(e, call, "relu")
    return _activation(e, call, "clamp", -math.inf if low is None else low, math.inf if high is None else high)


@aten("hardtanh", "clamp", "clip")
def _clamp(e: Emitter, call: Call) -> Value:
    return _clamp_between(e, call, call.get("min", call.get("min_val")), call.get("max", call.get("max_val")))


@aten("relu6")
def _relu6(e: Emitter, call: Call) -> Value:
    return _clamp_between(e, call, 0, 6)


@aten("clamp_min")
def _clamp_min(e: Emitter, call: Call) -> Value:
    return _clamp_between(e, call, call["min"], None)


@aten("clamp_max")
def _clamp_max(e: Emitter, call: Call) -> Value:
    return _clamp_between(e, call, None, call["max"])


@aten("leaky_relu")
def _leaky_relu(e: Emitter, call: Call) -> Value:
    return _activation(e, call, "leaky_relu", call["negative_slope"])


@aten("rrelu")
def _rrelu(e: Emitter, call: Call) -> Value:
    return None if call["training"] else _activation(e, call, "leaky_relu", (call["lower"] + call["upper"]) / 2)


@aten("prelu", "_prelu_kernel")
def _prelu(e: Emitter, call: Call) -> Value:
    slope = call["weight"]
    if not isinstance(slope, Tensor) or not isinstance(call[0], Node) or len(call[0].shape or ()) < 2:
        return None
    return _activation(e, call, "prelu", slope=slope.reshape(-1))


@aten("gelu")
def _gelu(e: Emitter, call: Call) -> Value:
    return _activation(e, call, "gelu" if call.get("approximate", "none") == "none" else "gelu_tanh")


@aten("elu", "celu")
def _elu(e: Emitter, call: Call) -> Value:
    if call.get("scale", 1) != 1 or call.get("input_scale", 1) != 1 or (call.name == "celu" and call["alpha"] != 1):
        return None
    return _activation(e, call, "elu", call["alpha"])


@aten("softplus")
def _softplus(e: Emitter, call: Call) -> Value:
    return _activation(e, call, "softplus", call["beta"], call["threshold"])


@aten("softmax", "_softmax")
def _softmax(e: Emitter, call: Call) -> Value:
    x = call[0]
    if not isinstance(x, Node) or x.dtype != call.result.dtype or x.shape is None:
        return None
    return e.emit("softmax", [x], call.result, dim=int(call["dim"]) % len(x.shape))


# -- arithmetic ---------------------------------------------------------------------------------------------------------


def _number(value: Value) -> float | None:
    """The one number that `value` is, or None. A tensor of one element on no axis counts; meta tensors have no values."""
    if isinstance(value, Tensor):
        return float(value.item()) if value.dim() == 0 and value.device.type != "meta" else None
    return float(value) if isinstance(value, (int, float)) else None


def _per_channel(value: Value, x: Value, result: Tensor) -> Tensor | None:
    """`value` as (c,) in the result's element type, if it is a constant that differs between channels of `x` only."""
    if not isinstance(value, Tensor) or not isinstance(x, Node) or x.shape != tuple(result.shape) or len(x.shape) not in {2, 4}:
        return None
    shape = (1,) * (len(x.shape) - value.dim()) + tuple(value.shape)
    if len(shape) != len(x.shape) or shape != (1, x.shape[1]) + (1,) * (len(x.shape) - 2):
        return None
    return value.reshape(-1).to(result.dtype)


def _affine(e: Emitter, kind: str, x: Node, constant: Tensor, result: Tensor, *, swapped: bool, alpha: float) -> Value:
    one = torch.ones_like(constant)
    if kind == "mul":
        scale, shift = constant, torch.zeros_like(constant)
    elif kind == "div" and not swapped:
        scale, shift = _exact(constant).reciprocal().to(constant), torch.zeros_like(constant)
    elif kind == "add":
        scale, shift = (one * alpha, constant) if swapped else (one, constant * alpha)
    elif kind == "sub":
        scale, shift = (-one * alpha, constant) if swapped else (one, -constant * alpha)
    else:
        return None
    return e.emit("affine", [x], result, scale=scale, shift=shift)


def _unexpanded(value: Value, other: Value, result: Tensor) -> Value:
    """What `value` was before it was expanded, if the op that reads it beside `other` broadcasts to the same result by itself."""
    if not isinstance(value, Node) or value.op != "torch" or value.attrs["target"] is not torch.ops.aten.expand.default:
        return value
    small = value.inputs[0]
    shapes = [tuple(small.shape or ()), tuple(getattr(other, "shape", ()))]
    return small if torch.broadcast_shapes(*shapes) == result.shape and len(shapes[0]) == result.dim() else value


_SCALED = {"add": "add", "sub": "sub", "mul": "mul", "div": "div", "maximum": "", "minimum": ""}
_REVERSED = {"add": "add", "sub": "rsub", "mul": "mul", "div": "rdiv", "maximum": "", "minimum": ""}


def _arithmetic(e: Emitter, call: Call, kind: str, a: Value, b: Value, alpha: float = 1.0) -> Value:
    """``a kind (alpha * b)`` where at least one of the two is a node."""
    result: Tensor = call.result
    a = _unexpanded(a, b, result)
    b = _unexpanded(b, a, result)
    swapped = not isinstance(a, Node)
    x, other = (b, a) if swapped else (a, b)
    if not result.dtype.is_floating_point or not isinstance(x, Node) or x.dtype != result.dtype:
        return None
    number = _number(other)
    if number is not None:
        if kind in {"maximum", "minimum"}:
            bounds = (number, None) if kind == "maximum" else (None, number)
            return _clamp_between(e, call, *bounds)
        if swapped and alpha != 1:
            x = e.emit("scalar", [x], x, kind="mul", value=alpha)
        value = number if swapped else number * alpha
        return e.emit("scalar", [x], result, kind=(_REVERSED if swapped else _SCALED)[kind], value=float(value))
    constant = _per_channel(other, x, result)
    if constant is not None:
        node = _affine(e, kind, x, constant, result, swapped=swapped, alpha=alpha)
        if node is not None:
            return node
    if isinstance(other, Tensor) and other.dtype != result.dtype:
        other = other.to(result.dtype)
    left, right = (e.operand(other), x) if swapped else (x, e.operand(other))
    if left.dtype != right.dtype:
        return None
    if alpha != 1:
        right = e.emit("scalar", [right], right, kind="mul", value=float(alpha))
    return e.emit(kind, [left, right], result)


@aten("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "maximum", "minimum", "max", "min")
def _binary(e: Emitter, call: Call) -> Value:
    kind = {"subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div", "max": "maximum", "min": "minimum"}
    if len(call.values) < 2 or "dim" in call.values or call.get("rounding_mode") is not None:
        return None  # max and min over an axis; division that rounds
    return _arithmetic(e, call, kind.get(call.name, call.name), call[0], call[1], call.get("alpha", 1))


@aten("addcmul")
def _addcmul(e: Emitter, call: Call) -> Value:
    """base + value * a * b, where only one of them is not a constant per channel."""
    base, a, b = call[0], call[1], call[2]
    x, other = (b, a) if isinstance(a, Tensor) else (a, b)
    shift, scale = _per_channel(base, x, call.result), _per_channel(other, x, call.result)
    if shift is None or scale is None or not isinstance(x, Node) or x.dtype != call.result.dtype:
        return None
    return e.emit("affine", [x], call.result, scale=scale * float(call.get("value", 1)), shift=shift)


@aten("rsub")
def _rsub(e: Emitter, call: Call) -> Value:
    return _arithmetic(e, call, "sub", call[1], call[0], call.get("alpha", 1))


def _scalar(e: Emitter, call: Call, kind: str, value: Value) -> Value:
    x, number = call[0], _number(value)
    if not isinstance(x, Node) or number is None or x.dtype != call.result.dtype or not call.result.dtype.is_floating_point:
        return None
    return e.emit("scalar", [x], call.result, kind=kind, value=number)


@aten("pow")
def _pow(e: Emitter, call: Call) -> Value:
    return _scalar(e, call, "pow", call["exponent"])


@aten("square")
def _square(e: Emitter, call: Call) -> Value:
    return _scalar(e, call, "pow", 2.0)


@aten("reciprocal")
def _reciprocal(e: Emitter, call: Call) -> Value:
    return _scalar(e, call, "rdiv", 1.0)


# -- pooling and resampling ---------------------------------------------------------------------------------------------


@aten("max_pool2d", "max_pool2d_with_indices")
def _max_pool(e: Emitter, call: Call) -> Value:
    x = call.map()
    several = isinstance(call.result, (list, tuple))
    if x is None or (several and not call.used <= {0}):
        return None
    kernel = pair(call["kernel_size"])
    node = e.emit(
        "max_pool2d",
        [x],
        call.result[0] if several else call.result,
        kernel=kernel,
        stride=pair(call["stride"]) if call["stride"] else kernel,
        padding=four(call["padding"]),
        dilation=pair(call["dilation"], 1),
        ceil_mode=bool(call["ceil_mode"]),
    )
    return [node, None] if several else node


@aten("avg_pool2d")
def _avg_pool(e: Emitter, call: Call) -> Value:
    x = call.map()
    if x is None:
        return None
    kernel = pair(call["kernel_size"])
    return e.emit(
        "avg_pool2d",
        [x],
        call.result,
        kernel=kernel,
        stride=pair(call["stride"]) if call["stride"] else kernel,
        padding=four(call["padding"]),
        dilation=(1, 1),
        ceil_mode=bool(call["ceil_mode"]),
        count_include_pad=bool(call["count_include_pad"]),
        divisor_override=call.get("divisor_override"),
    )


@aten("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool(e: Emitter, call: Call) -> Value:
    x = call.map()
    if x is None:
        return None
    size = (int(call.result.shape[2]), int(call.result.shape[3]))
    if size == (1, 1):
        return e.emit("global_avg_pool", [x], call.result, keepdim=True)
    return e.emit("adaptive_avg_pool2d", [x], call.result, output_size=size)


@aten("adaptive_max_pool2d")
def _adaptive_max_pool(e: Emitter, call: Call) -> Value:
    x = call.map()
    if x is None or not call.used <= {0}:
        return None
    size = (int(call.result[0].shape[2]), int(call.result[0].shape[3]))
    return [e.emit("adaptive_max_pool2d", [x], call.result[0], output_size=size), None]


@aten("mean")
def _mean(e: Emitter, call: Call) -> Value:
    x, dims = call.map(), call.get("dim")
    if x is None or dims is None:
        return None
    axes = {int(dim) % 4 for dim in ([dims] if isinstance(dims, int) else dims)}
    return e.emit("global_avg_pool", [x], call.result, keepdim=bool(call["keepdim"])) if axes == {2, 3} else None


@aten("linalg_vector_norm")
def _vector_norm(e: Emitter, call: Call) -> Value:
    """The root of the sum of squares over a map, which global response normalization takes."""
    x, dims, result = call.map(), call.get("dim"), call.result
    if x is None or x.shape is None or dims is None or call.get("dtype") is not None or _number(call.get("ord", 2)) != 2:
        return None
    if {int(dim) % 4 for dim in ([dims] if isinstance(dims, int) else dims)} != {2, 3}:
        return None
    mean = e.emit("global_avg_pool", [e.emit("mul", [x, x], x)], result, keepdim=bool(call["keepdim"]))
    total = e.emit("scalar", [mean], result, kind="mul", value=float(x.shape[2] * x.shape[3]))
    return e.emit("act", [total], result, kind="sqrt", params=())


@aten("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")
def _upsample(e: Emitter, call: Call) -> Value:
    x = call.map()
    if x is None:
        return None
    scales = call.get("scale_factors")
    if scales is None and call.get("scales_h") is not None and call.get("scales_w") is not None:
        scales = (call["scales_h"], call["scales_w"])
    return e.emit(
        "upsample",
        [x],
        call.result,
        mode=call.name.removeprefix("upsample_").removesuffix("2d"),
        align_corners=bool(call.get("align_corners", False)),
        scales=None if scales is None else (float(scales[0]), float(scales[1])),
    )
