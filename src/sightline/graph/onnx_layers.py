"""What ONNX's computing ops mean: convolution, pooling, normalisation, activations, arithmetic, reductions, products.

What belongs here: one handler per op or family, which maps a call onto canonical ops where they say the same, and onto a ``torch``
node otherwise. What does not: ops that only move or select elements (`onnx_structure.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sightline.geometry import Window
from sightline.graph import onnx_functions as fn
from sightline.graph.ir import Node
from sightline.graph.onnx_builder import Const, Site, Value, handles, shape_of

# -- convolution and pooling --------------------------------------------------------------------------------------------------


_AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def _spread(s: Site, name: str, axes: int, default: int) -> tuple[int, ...]:
    """An attribute with one integer per spatial axis."""
    values = s.attr(name)
    return tuple(values) if values else (default,) * axes


def _pads(s: Site, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Padding before each spatial axis, then after each, with auto_pad worked out for this size."""
    axes, auto = len(sizes), s.choice("auto_pad", "NOTSET", _AUTO_PADS)
    if auto == "NOTSET":
        return _spread(s, "pads", 2 * axes, 0)
    if auto == "VALID":
        return (0,) * (2 * axes)
    before, after = [], []
    for size, k, step, d in zip(sizes, kernel, stride, dilation, strict=True):
        total = max(0, (-(-size // step) - 1) * step + d * (k - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return (*before, *after)


def _canonical_pads(pads: Sequence[int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) to (top, bottom, left, right)."""
    return pads[0], pads[2], pads[1], pads[3]


@handles("Conv")
def _conv(s: Site) -> Value:
    sizes, kernel = shape_of(s.value(0))[2:], shape_of(s.value(1))[2:]
    axes = len(kernel)
    stride, dilation, groups = _spread(s, "strides", axes, 1), _spread(s, "dilations", axes, 1), int(s.attr("group", 1))
    pads = _pads(s, sizes, kernel, stride, dilation)
    weight, bias = s.const(1), s.const(2)
    if axes != 2 or weight is None or (s.has(2) and bias is None):
        if axes not in (1, 2, 3):
            s.fail(f"is a convolution over {axes} axes; expected 1 to 3")
        return s.apply(fn.convolution, s.value(0), s.value(1), s.value(2) if s.has(2) else None, stride, pads, dilation, groups)
    x = s.node(0)
    _check_channels(s, shape_of(x)[1], weight.shape[1] * groups)
    return s.emit(
        "conv2d", [x], weight=weight, bias=bias, stride=stride, padding=_canonical_pads(pads), dilation=dilation, groups=groups,
        padding_mode="zeros", transposed=False, output_padding=(0, 0),
    )  # fmt: skip


@handles("ConvTranspose")
def _conv_transpose(s: Site) -> Value:
    sizes, kernel = shape_of(s.value(0))[2:], shape_of(s.value(1))[2:]
    axes = len(kernel)
    stride, dilation, groups = _spread(s, "strides", axes, 1), _spread(s, "dilations", axes, 1), int(s.attr("group", 1))
    extra = _spread(s, "output_padding", axes, 0)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    full = [step * (size - 1) + r + e for step, size, r, e in zip(stride, sizes, reach, extra, strict=True)]
    wanted, auto = s.attr("output_shape"), s.choice("auto_pad", "NOTSET", _AUTO_PADS)
    if wanted:
        wanted = list(wanted)[-axes:]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * step for size, step in zip(sizes, stride, strict=True)]
    pads, more = _transposed_pads(full, wanted, auto) if wanted else (_pads(s, sizes, kernel, stride, dilation), [0] * axes)
    extra = tuple(e + m for e, m in zip(extra, more, strict=True))
    weight, bias = s.const(1), s.const(2)
    unusual = any(e >= max(step, d) for e, step, d in zip(extra, stride, dilation, strict=True))
    if axes != 2 or weight is None or (s.has(2) and bias is None) or unusual:
        if axes not in (1, 2, 3):
            s.fail(f"is a convolution over {axes} axes; expected 1 to 3")
        last = s.value(2) if s.has(2) else None
        return s.apply(fn.conv_transpose, s.value(0), s.value(1), last, stride, pads, dilation, groups, extra)
    x = s.node(0)
    _check_channels(s, shape_of(x)[1], weight.shape[0])
    return s.emit(
        "conv2d", [x], weight=weight, bias=bias, stride=stride, padding=_canonical_pads(pads), dilation=dilation, groups=groups,
        padding_mode="zeros", transposed=True, output_padding=extra,
    )  # fmt: skip


def _transposed_pads(full: Sequence[int], wanted: Sequence[int], auto: str) -> tuple[tuple[int, ...], list[int]]:
    """Cells to cut off before and after each axis so that ``wanted`` remain of ``full``, and cells to add where it is short."""
    cut = [max(0, f - w) for f, w in zip(full, wanted, strict=True)]
    small, large = [c // 2 for c in cut], [c - c // 2 for c in cut]
    pads = (*small, *large) if auto == "SAME_UPPER" else (*large, *small)
    return pads, [max(0, w - f) for f, w in zip(full, wanted, strict=True)]


def _check_channels(s: Site, have: int, wanted: int) -> None:
    if have != wanted:
        raise ValueError(f"its weights take {wanted} channels and its input has {have}")


@handles("MaxPool", "AveragePool")
def _pool(s: Site) -> Value:
    x = s.node(0)
    shape = shape_of(x)
    if len(shape) != 4:
        s.fail(f"pools over {len(shape) - 2} axes; only maps (n, c, h, w) are supported")
    kernel, stride, dilation = tuple(s.attr("kernel_shape")), _spread(s, "strides", 2, 1), _spread(s, "dilations", 2, 1)
    pads = _pads(s, shape[2:], kernel, stride, dilation)
    ceil_mode = bool(s.attr("ceil_mode", 0)) and s.attr("auto_pad", "NOTSET") == "NOTSET"
    windows = [Window(kernel[i], stride[i], (pads[i], pads[2 + i]), dilation[i]) for i in (0, 1)]
    floors, counts = (
        tuple(window.out_size(shape[2 + i], ceil_mode=mode) for i, window in enumerate(windows)) for mode in (False, ceil_mode)
    )
    include = bool(s.attr("count_include_pad", 0))
    if counts != floors and (s.op == "MaxPool" or not include):
        # Padding that no maximum and no divisor counts says the same as ceil_mode, without a special case downstream.
        short = [(counts[i] - 1) * stride[i] + windows[i].extent - shape[2 + i] - pads[i] for i in (0, 1)]
        pads = (pads[0], pads[1], max(pads[2], short[0]), max(pads[3], short[1]))
    if kernel == shape[2:] and not any(pads) and dilation == (1, 1) and counts == (1, 1):
        return s.emit("adaptive_max_pool2d", [x], output_size=(1, 1)) if s.op == "MaxPool" else s.emit("global_avg_pool", [x], keepdim=True)
    padding = _canonical_pads(pads)
    if s.op == "MaxPool":
        return s.emit("max_pool2d", [x], kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=False)
    if dilation != (1, 1) or (counts != floors and include):
        return s.apply(fn.average_pool, x, kernel, stride, padding, dilation, counts, include)
    return s.emit(
        "avg_pool2d", [x], kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=False,
        count_include_pad=include, divisor_override=None,
    )  # fmt: skip


@handles("GlobalAveragePool")
def _global_average(s: Site) -> Value:
    shape = shape_of(s.value(0))
    if len(shape) == 4:
        return s.emit("global_avg_pool", [s.node(0)], keepdim=True)
    return s.apply(fn.reduce, "Mean", s.value(0), tuple(range(2, len(shape))), True)


@handles("GlobalMaxPool")
def _global_max(s: Site) -> Value:
    shape = shape_of(s.value(0))
    if len(shape) == 4:
        return s.emit("adaptive_max_pool2d", [s.node(0)], output_size=(1, 1))
    return s.apply(fn.reduce, "Max", s.value(0), tuple(range(2, len(shape))), True)


# -- normalisation ------------------------------------------------------------------------------------------------------------


@handles("BatchNormalization")
def _batch_norm(s: Site) -> Value:
    gamma, beta, mean, variance = (s.known(i, "parameters").double() for i in range(1, 5))
    scale = gamma / torch.sqrt(variance + float(s.attr("epsilon", 1e-5)))
    shift = beta - mean * scale
    shape = shape_of(s.value(0))
    _check_channels(s, shape[1], scale.numel())
    if len(shape) in (2, 4):
        return s.emit("affine", [s.node(0)], scale=scale.float(), shift=shift.float())
    name = s.call.name
    return s.apply(fn.batch_norm, s.value(0), Const(scale.float(), f"{name}.scale"), Const(shift.float(), f"{name}.shift"))


@handles("InstanceNormalization")
def _instance_norm(s: Site) -> Value:
    return s.apply(fn.instance_norm, s.value(0), s.value(1), s.value(2), float(s.attr("epsilon", 1e-5)))


@handles("GroupNormalization")
def _group_norm(s: Site) -> Value:
    return s.apply(fn.group_norm, s.value(0), s.value(1), s.value(2), int(s.attr("num_groups")), float(s.attr("epsilon", 1e-5)))


@handles("LayerNormalization")
def _layer_norm(s: Site) -> Value:
    axis = int(s.attr("axis", -1)) % len(shape_of(s.value(0)))
    return s.apply(fn.layer_norm, s.value(0), s.value(1), s.value(2) if s.has(2) else None, axis, float(s.attr("epsilon", 1e-5)))


@handles("MeanVarianceNormalization")
def _mean_variance_norm(s: Site) -> Value:
    return s.apply(fn.mean_variance_norm, s.value(0), tuple(s.attr("axes", (0, 2, 3))))


@handles("LpNormalization")
def _lp_norm(s: Site) -> Value:
    return s.apply(fn.lp_norm, s.value(0), int(s.attr("p", 2)), int(s.attr("axis", -1)))


@handles("LRN")
def _local_response_norm(s: Site) -> Value:
    alpha, beta, bias = float(s.attr("alpha", 1e-4)), float(s.attr("beta", 0.75)), float(s.attr("bias", 1.0))
    return s.apply(fn.local_response_norm, s.value(0), int(s.attr("size")), alpha, beta, bias)


@handles("Softmax", "LogSoftmax")
def _softmax(s: Site) -> Value:
    shape = shape_of(s.value(0))
    flat = s.version < 13
    axis = int(s.attr("axis", 1 if flat else -1)) % len(shape)
    flat = flat and math.prod(shape[axis + 1 :]) != 1
    if s.op == "LogSoftmax":
        return s.apply(fn.log_softmax, s.value(0), axis, flat)
    if flat:
        return s.apply(fn.softmax_flat, s.value(0), axis)
    return s.emit("softmax", [s.node(0)], dim=axis)


# -- activations --------------------------------------------------------------------------------------------------------------

_SIMPLE = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Exp": "exp",
    "Sqrt": "sqrt",
    "Abs": "abs",
    "Neg": "neg",
}


def _is_float(node: Node) -> bool:
    return node.dtype is not None and node.dtype.is_floating_point


def _act(s: Site, x: Node, kind: str, *params: float, part: str = "") -> Node:
    return s.emit("act", [x], part=part, kind=kind, params=params)


@handles(*_SIMPLE)
def _simple(s: Site) -> Value:
    if isinstance(s.value(0), Const) or not _is_float(s.node(0)):
        return s.apply(fn.elementwise, s.op, s.value(0))
    return _act(s, s.node(0), _SIMPLE[s.op])


@handles("HardSwish", "Mish", "Softplus", "LeakyRelu", "Elu", "Gelu", "Swish")
def _parametric(s: Site) -> Value:
    x, op = s.node(0), s.op
    if op == "HardSwish":
        return _act(s, x, "hardswish")
    if op == "Mish":
        return _act(s, x, "mish")
    if op == "Softplus":
        return _act(s, x, "softplus", 1.0, 20.0)
    if op == "LeakyRelu":
        return _act(s, x, "leaky_relu", float(s.attr("alpha", 0.01)))
    if op == "Elu":
        return _act(s, x, "elu", float(s.attr("alpha", 1.0)))
    if op == "Gelu":
        return _act(s, x, "gelu" if s.choice("approximate", "none", ("none", "tanh")) == "none" else "gelu_tanh")
    alpha = float(s.attr("alpha", 1.0))
    if alpha == 1.0:
        return _act(s, x, "silu")
    gate = _act(s, s.emit("scalar", [x], part=".scale", kind="mul", value=alpha), "sigmoid", part=".gate")
    return s.emit("mul", [x, gate])


@handles("HardSigmoid")
def _hard_sigmoid(s: Site) -> Value:
    alpha, beta, x = float(s.attr("alpha", 0.2)), float(s.attr("beta", 0.5)), s.node(0)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return _act(s, x, "hardsigmoid")
    line = s.emit("scalar", [x], part=".slope", kind="mul", value=alpha)
    return _act(s, s.emit("scalar", [line], part=".shift", kind="add", value=beta), "clamp", 0.0, 1.0)


@handles("Selu")
def _selu(s: Site) -> Value:
    return s.apply(
        fn.selu, s.value(0), float(s.attr("alpha", 1.67326319217681884765625)), float(s.attr("gamma", 1.05070102214813232421875))
    )


@handles("Celu")
def _celu(s: Site) -> Value:
    return s.apply(fn.celu, s.value(0), float(s.attr("alpha", 1.0)))


@handles("ThresholdedRelu")
def _thresholded_relu(s: Site) -> Value:
    return s.apply(fn.thresholded_relu, s.value(0), float(s.attr("alpha", 1.0)))


@handles("PRelu")
def _prelu(s: Site) -> Value:
    x, slope = s.node(0), s.const(1)
    per_channel = None if slope is None else _per_channel(slope, shape_of(x))
    if per_channel is None:
        return s.apply(fn.prelu, x, s.value(1))
    return s.emit("act", [x], kind="prelu", params=(), slope=per_channel)


@handles("Clip")
def _clip(s: Site) -> Value:
    limits = [s.attr("min"), s.attr("max")]
    for index, limit in enumerate((s.const(1), s.const(2))):
        limits[index] = limit.item() if limit is not None else limits[index]
    dynamic = any(s.has(i) and s.const(i) is None for i in (1, 2))
    if dynamic or isinstance(s.value(0), Const) or not _is_float(s.node(0)):
        low, high = (s.value(i) if s.has(i) else limits[i - 1] for i in (1, 2))
        return s.apply(fn.clip, s.value(0), low, high)
    low, high = (float(bound if limit is None else limit) for limit, bound in zip(limits, (-math.inf, math.inf), strict=True))
    return _clamp(s, s.node(0), low, high)


def _clamp(s: Site, x: Node, low: float, high: float) -> Value:
    if (low, high) == (-math.inf, math.inf):
        return x
    return _act(s, x, "relu") if (low, high) == (0.0, math.inf) else _act(s, x, "clamp", low, high)


# -- arithmetic ---------------------------------------------------------------------------------------------------------------

_TWO = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Max": "maximum", "Min": "minimum"}
_TURNED = {"add": "add", "mul": "mul", "sub": "rsub", "div": "rdiv"}  # the scalar kind if the constant stands first


@handles("Floor", "Ceil", "Round", "Sign", "Log", "Erf", "Sin", "Cos", "Atan", "Softsign", "Reciprocal", "Not", "Equal", "Greater",
         "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Where")  # fmt: skip
def _elementwise(s: Site) -> Value:
    return s.apply(fn.elementwise, s.op, *(s.value(i) for i in range(len(s.inputs))))


@handles("Mod")
def _mod(s: Site) -> Value:
    return s.apply(fn.elementwise, "FloatMod" if s.attr("fmod", 0) else "Mod", s.value(0), s.value(1))


@handles("Add", "Sub", "Mul", "Div", "Pow")
def _binary(s: Site) -> Value:
    return _combine(s, s.op, s.value(0), s.value(1))


@handles("Max", "Min", "Sum", "Mean")
def _variadic(s: Site) -> Value:
    op = {"Sum": "Add", "Mean": "Add"}.get(s.op, s.op)
    result = s.value(0)
    for index in range(1, len(s.inputs)):
        result = _combine(s, op, result, s.value(index))
    if s.op == "Mean":
        result = _combine(s, "Div", result, Const(torch.tensor(float(len(s.inputs))), s.call.name))
    return result


def _combine(s: Site, op: str, a: Value, b: Value) -> Value:
    """One binary op on two values."""
    if isinstance(a, Const) and isinstance(b, Const):
        return s.apply(fn.elementwise, op, a, b)
    if isinstance(a, Const) or isinstance(b, Const):
        value, known = (b, a) if isinstance(a, Const) else (a, b)
        node = s.builder.node(value)
        if _is_float(node) and isinstance(known, Const):
            result = _with_constant(s, op, node, known.tensor, first=known is a)
            if result is not None:
                return result
    left, right = s.builder.node(a), s.builder.node(b)
    if op == "Pow" or not _is_float(left) or not _is_float(right):
        return s.apply(fn.elementwise, op, left, right)
    if op == "Mul":
        fused = _gated(s, left, right) or _gated(s, right, left)
        if fused is not None:
            return fused
    return s.emit(_TWO[op], [left, right])


def _with_constant(s: Site, op: str, x: Node, known: Tensor, first: bool) -> Value | None:
    """x combined with a constant as ``scalar``, ``affine``, ``act`` or ``linear``; None if it takes a general op."""
    shape = shape_of(x)
    if known.numel() == 1 and known.dim() <= len(shape):
        return _with_scalar(s, op, x, float(known.item()), first)
    if s.op == "Add" and _is_bias(known, x) and s.only_read_here(1 if first else 0):
        return s.emit("linear", x.inputs, weight=x.attrs["weight"], bias=known.reshape(-1))
    vector = _per_channel(known, shape)
    if vector is None or op in ("Pow", "Max", "Min") or (op == "Div" and first):
        return None
    one, none = torch.ones_like(vector), torch.zeros_like(vector)
    if op in ("Add", "Sub"):
        scale, shift = (-one if op == "Sub" and first else one), (-vector if op == "Sub" and not first else vector)
    else:
        scale, shift = (vector if op == "Mul" else 1 / vector), none
    return s.emit("affine", [x], scale=scale, shift=shift)


def _is_bias(known: Tensor, x: Node) -> bool:
    """Whether adding the constant to x gives a linear layer its bias."""
    shape = shape_of(x)
    wide = known.dim() <= len(shape) and known.numel() == shape[-1] == known.shape[-1]
    return wide and x.op == "linear" and x.attrs["bias"] is None


def _per_channel(known: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The constant as (c,) or (1,) if it broadcasts to a map or vector of this shape along its channels only, else None."""
    if known.numel() == 1 and known.dim() <= len(shape):
        return known.reshape(1)
    aligned = (1,) * (len(shape) - known.dim()) + tuple(known.shape)
    if len(shape) not in (2, 4) or aligned != (1, shape[1]) + (1,) * (len(shape) - 2):
        return None
    return known.reshape(-1)


def _with_scalar(s: Site, op: str, x: Node, value: float, first: bool) -> Value | None:
    if op == "Max":
        return _clamp(s, x, value, math.inf)
    if op == "Min":
        return _clamp(s, x, -math.inf, value)
    if op == "Pow":
        return None if first else s.emit("scalar", [x], kind="pow", value=value)
    kind = _TWO[op]
    if value == 1.0 and (kind == "mul" or (kind == "div" and not first)):
        return x
    kind = _TURNED[kind] if first else kind
    return _recognised(s, x, kind, value) or s.emit("scalar", [x], kind=kind, value=value)


# -- activations that exporters write as several ops --------------------------------------------------------------------------


def _scaled_by(node: Node, factor: float) -> Node | None:
    """What the node multiplies by ``factor``, or None."""
    if node.op != "scalar" or node.attrs["kind"] not in ("mul", "div"):
        return None
    value = node.attrs["value"]
    value = 1 / value if node.attrs["kind"] == "div" and value else value
    return node.inputs[0] if math.isclose(value, factor, rel_tol=1e-5) else None


def _is_act(node: Node, kind: str, *params: float) -> bool:
    return node.op == "act" and node.attrs["kind"] == kind and node.attrs["params"] == params


def _shifted_by(node: Node, value: float) -> Node | None:
    if node.op == "scalar" and node.attrs["kind"] == "add" and node.attrs["value"] == value:
        return node.inputs[0]
    return None


def _ramp(node: Node) -> Node | None:
    """x if the node is clamp(x + 3, 0, 6)."""
    return _shifted_by(node.inputs[0], 3.0) if _is_act(node, "clamp", 0.0, 6.0) else None


def _erf_gate(node: Node) -> Node | None:
    """x if the node is 1 + erf(x / sqrt(2))."""
    erf = _shifted_by(node, 1.0)
    if erf is None or erf.op != "torch" or erf.attrs["target"] is not fn.elementwise or erf.attrs["args"][0] != "Erf":
        return None
    return _scaled_by(erf.inputs[0], 1 / math.sqrt(2))


def _gated(s: Site, x: Node, gate: Node) -> Node | None:
    """x * gate as one activation: silu, hardswish, mish, gelu; None if it is none of them."""
    if gate.op == "act" and gate.inputs[0] is x and gate.attrs["kind"] in ("sigmoid", "hardsigmoid"):
        return _act(s, x, "silu" if gate.attrs["kind"] == "sigmoid" else "hardswish")
    if _is_act(gate, "tanh") and _is_act(gate.inputs[0], "softplus", 1.0, 20.0) and gate.inputs[0].inputs[0] is x:
        return _act(s, x, "mish")
    source = _erf_gate(gate)
    if source is not None and source is _scaled_by(x, 0.5):
        return _act(s, source, "gelu")
    half = _scaled_by(gate, 0.5)
    if half is not None and _erf_gate(half) is x:
        return _act(s, x, "gelu")
    return None


def _recognised(s: Site, x: Node, kind: str, value: float) -> Node | None:
    """A scalar multiple that completes an activation: hardsigmoid, hardswish, gelu; None if it does not."""
    factor = {"mul": value, "div": 1 / value if value else math.inf}.get(kind)
    if factor is None:
        return None
    if math.isclose(factor, 1 / 6, rel_tol=1e-5):
        source = _ramp(x)
        if source is not None:
            return _act(s, source, "hardsigmoid")
        for a, b in ((0, 1), (1, 0)) if x.op == "mul" else ():
            if _ramp(x.inputs[b]) is x.inputs[a]:
                return _act(s, x.inputs[a], "hardswish")
    if factor == 0.5 and x.op == "mul":
        for a, b in ((0, 1), (1, 0)):
            if _erf_gate(x.inputs[b]) is x.inputs[a]:
                return _act(s, x.inputs[a], "gelu")
    return None


# -- reductions and products --------------------------------------------------------------------------------------------------


@handles("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
         "ReduceLogSumExp")  # fmt: skip
def _reduce(s: Site) -> Value:
    shape = shape_of(s.value(0))
    rank, keepdim, kind = len(shape), bool(s.attr("keepdims", 1)), s.op.removeprefix("Reduce")
    given = s.numbers("axes", 1)
    axes = tuple(sorted(axis % rank for axis in given)) if given else ()
    if not axes and not s.attr("noop_with_empty_axes", 0):
        axes = tuple(range(rank))
    if rank == 4 and axes == (2, 3) and kind in ("Mean", "Sum", "Max") and not isinstance(s.value(0), Const) and _is_float(s.node(0)):
        if kind == "Max":
            top = s.emit("adaptive_max_pool2d", [s.node(0)], output_size=(1, 1), part="" if keepdim else ".max")
            return top if keepdim else s.emit("flatten", [top])
        mean = s.emit("global_avg_pool", [s.node(0)], keepdim=keepdim, part="" if kind == "Mean" else ".mean")
        return mean if kind == "Mean" else s.emit("scalar", [mean], kind="mul", value=float(shape[2] * shape[3]))
    return s.apply(fn.reduce, kind, s.value(0), axes, keepdim)


@handles("ArgMax", "ArgMin")
def _arg_extreme(s: Site) -> Value:
    axis = int(s.attr("axis", 0)) % len(shape_of(s.value(0)))
    last = bool(s.attr("select_last_index", 0))
    return s.apply(fn.arg_extreme, s.value(0), s.op == "ArgMax", axis, bool(s.attr("keepdims", 1)), last)


@handles("Gemm")
def _gemm(s: Site) -> Value:
    alpha, beta = float(s.attr("alpha", 1.0)), float(s.attr("beta", 1.0))
    trans_a, trans_b = bool(s.attr("transA", 0)), bool(s.attr("transB", 0))
    weight, bias = s.const(1), s.const(2)
    if weight is not None and not trans_a and (bias is not None or not s.has(2)) and not isinstance(s.value(0), Const):
        weight = (weight if trans_b else weight.t()) * alpha if alpha != 1.0 else (weight if trans_b else weight.t())
        outputs = weight.shape[0]
        if bias is None or tuple(bias.shape) in ((), (1,), (outputs,), (1, outputs), (1, 1)):
            bias = None if bias is None else (bias.reshape(-1) * beta).expand(outputs).contiguous()
            _check_features(shape_of(s.value(0))[-1], weight)
            return s.emit("linear", [s.node(0)], weight=weight.contiguous(), bias=bias)
    last = s.value(2) if s.has(2) else None
    return s.apply(fn.gemm, s.value(0), s.value(1), last, alpha, beta, trans_a, trans_b)


@handles("MatMul")
def _matmul(s: Site) -> Value:
    weight, shape = s.const(1), shape_of(s.value(0))
    if weight is None or weight.dim() != 2 or isinstance(s.value(0), Const) or len(shape) < 2 or not _is_float(s.node(0)):
        return s.apply(fn.matmul, s.value(0), s.value(1))
    _check_features(shape[-1], weight.t())
    return s.emit("linear", [s.node(0)], weight=weight.t().contiguous(), bias=None)


def _check_features(have: int, weight: Tensor) -> None:
    if have != weight.shape[1]:
        raise ValueError(f"its weights take {weight.shape[1]} features and its input has {have}")
