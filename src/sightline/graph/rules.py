"""One rule per canonical op: how to run it, what it reads, how much work it is.

`RULES` maps the ops of `ir.py` to their `Rule`. The functions that run an op are the reference that every executor must agree with:
plain PyTorch, dense, on any device and in the element type of the inputs. `reference` runs a whole graph with them.

What belongs here: the meaning of each canonical op. What does not: sparse execution, fusion, buffers (`plan.py` and the executors),
arithmetic of windows (`sightline.geometry`) and tables of taps (`sightline.footprint`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.errors import CaptureError, DTypeError, ShapeError
from sightline.footprint import AxisTaps, Footprint, Global, Pointwise, WindowFootprint
from sightline.geometry import PaddingMode, Window
from sightline.graph.ir import Graph, Node, Operand
from sightline.sites import Grid

Kind = Literal["window", "pointwise", "union", "structure", "resample", "global", "opaque"]
"""How outputs depend on inputs: a sliding *window*; the same place (*pointwise*), of several inputs (*union*); elements only moved
(*structure*); tables of places (*resample*); everything (*global*); unknown (*opaque*)."""


def _no_macs(_: Node) -> int:
    return 0


def _no_footprint(_node: Node, _operand: int) -> Footprint | None:
    return None


@dataclass(frozen=True)
class Rule:
    """What a canonical op is.

    Attributes:
        kind: see `Kind`.
        compute: ``compute(node, inputs)``, the dense result; use `run`.
        work: multiply-accumulates; use `macs`.
        reads: footprint for one operand; use `footprint`.
    """

    kind: Kind
    compute: Callable[[Node, Sequence[Any]], Any]
    work: Callable[[Node], int] = _no_macs
    reads: Callable[[Node, int], Footprint | None] = _no_footprint

    def run(self, node: Node, inputs: Sequence[Any]) -> Any:
        """Compute the whole value of a node.

        Args:
            node: a node of this op.
            inputs: values of ``node.inputs``, on one device; weights are cast to their element type and device.

        Returns:
            The value: a tensor, which may be an input itself or share its memory; several tensors for some ``torch`` nodes.
        """
        return self.compute(node, inputs)

    def macs(self, node: Node) -> int:
        """Multiply-accumulates of the node's full output: convolution, linear and matrix products; 0 for everything else."""
        return self.work(node)

    def footprint(self, node: Node, operand: int = 0) -> Footprint | None:
        """What the node reads of one of its inputs.

        A map (n, c, h, w) has the grid (n, h, w), a vector (n, c) the grid (n, 1, 1).

        Args:
            node: a node of this op.
            operand: which of ``node.inputs``; they may differ (a gate of 1 x 1 that multiplies a map).

        Returns:
            The footprint, or None: the op is opaque, one of the two is neither a map nor a vector, or the batch is mixed or
            repeated. A ``constant`` operand of batch 1 under a larger batch has None too; it never changes.
        """
        return self.reads(node, operand)


# -- footprints -------------------------------------------------------------------------------------------------------------------


def positions_of(node: Node) -> tuple[int, int, int]:
    """Positions of a node's value as (n, h, w); anything but a map counts as one position per batch element."""
    shape = node.shape or (1,)
    return (shape[0], shape[2], shape[3]) if len(shape) == 4 else (shape[0], 1, 1)


def grid_of(node: Node) -> Grid | None:
    """The positions of a map or a vector as a grid; None for anything else."""
    return Grid(*positions_of(node)) if node.shape is not None and len(node.shape) in {2, 4} else None


def _grids(node: Node, operand: int) -> tuple[Grid, Grid] | None:
    """Positions of an operand and of the result, if both have some and batch elements stay apart."""
    source, target = grid_of(node.inputs[operand]), grid_of(node)
    return (source, target) if source is not None and target is not None and source.n == target.n else None


def _same_place(node: Node, operand: int) -> Footprint | None:
    """Pointwise, with broadcasting."""
    grids = _grids(node, operand)
    if grids is None:
        return None
    source, target = grids
    if source == target:
        return Pointwise(target)
    if (source.h, source.w) == (1, 1):
        return Global(source, target)
    rows, cols = (
        AxisTaps.gather(np.arange(n_out) if n_in == n_out else np.zeros(n_out, np.int32), n_in)
        for n_in, n_out in ((source.h, target.h), (source.w, target.w))
    )
    return WindowFootprint.separable(rows, cols, source.n)


def _everything(node: Node, operand: int) -> Footprint | None:
    grids = _grids(node, operand)
    return None if grids is None else Global(*grids)


def windows(node: Node) -> tuple[Window, Window]:
    """Vertical and horizontal window of a ``conv2d``, ``max_pool2d`` or ``avg_pool2d`` node."""
    attrs = node.attrs
    top, bottom, left, right = attrs["padding"]
    kernel = attrs["weight"].shape[2:] if node.op == "conv2d" else attrs["kernel"]
    transposed = bool(attrs.get("transposed", False))
    extra = attrs["output_padding"] if transposed else (0, 0)
    y, x = (
        Window(int(kernel[axis]), attrs["stride"][axis], pads, attrs["dilation"][axis], transposed, extra[axis])
        for axis, pads in enumerate(((top, bottom), (left, right)))
    )
    return y, x


def _window(node: Node, operand: int) -> Footprint | None:
    source = grid_of(node.inputs[operand])
    if source is None:
        return None
    mode = cast("PaddingMode", node.attrs.get("padding_mode", "zeros"))
    ceil_mode = bool(node.attrs.get("ceil_mode", False))
    return WindowFootprint.from_windows(*windows(node), source.n, source.h, source.w, mode, ceil_mode=ceil_mode)


def _pad_reads(node: Node, operand: int) -> Footprint | None:
    source = grid_of(node.inputs[operand])
    if source is None:
        return None
    top, bottom, left, right = node.attrs["padding"]
    mode = cast("PaddingMode", "zeros" if node.attrs["mode"] == "constant" else node.attrs["mode"])
    y, x = Window(1, padding=(top, bottom)), Window(1, padding=(left, right))
    return WindowFootprint.from_windows(y, x, source.n, source.h, source.w, mode)


def _along(node: Node, operand: int, sources: Callable[[int, int], np.ndarray[Any, Any]]) -> Footprint | None:
    """Footprint of an op that moves cells along axis ``dim`` of a map; along the channels nothing moves between places."""
    grids, dim = _grids(node, operand), node.attrs["dim"]
    if grids is None or dim == 0:
        return None
    source, target = grids
    if dim == 1:
        return Pointwise(target) if source == target else None
    tables = [AxisTaps.gather(np.arange(size), size) for size in (source.h, source.w)]
    n_in, n_out = ((source.h, target.h), (source.w, target.w))[dim - 2]
    tables[dim - 2] = AxisTaps.gather(sources(n_in, n_out), n_in)
    return WindowFootprint.separable(tables[0], tables[1], source.n)


def _slice_reads(node: Node, operand: int) -> Footprint | None:
    attrs = node.attrs
    return _along(node, operand, lambda _n_in, n_out: attrs["start"] + attrs["step"] * np.arange(n_out))


def _cat_reads(node: Node, operand: int) -> Footprint | None:
    before = sum((other.shape or ())[node.attrs["dim"]] for other in node.inputs[:operand])

    def sources(n_in: int, n_out: int) -> np.ndarray[Any, Any]:
        own = np.arange(n_out) - before
        return np.where((own >= 0) & (own < n_in), own, -1)

    return _along(node, operand, sources)


def _pixel_reads(node: Node, operand: int) -> Footprint | None:
    source, factor = grid_of(node.inputs[operand]), node.attrs["factor"]
    if source is None:
        return None
    if node.op == "pixel_unshuffle":
        block = Window(factor, stride=factor)
        return WindowFootprint.from_windows(block, block, source.n, source.h, source.w)
    rows, cols = (AxisTaps.gather(np.arange(size * factor) // factor, size) for size in (source.h, source.w))
    return WindowFootprint.separable(rows, cols, source.n)


def _upsample_reads(node: Node, operand: int) -> Footprint | None:
    grids = _grids(node, operand)
    if grids is None:
        return None
    attrs, dtype = node.attrs, np.float64 if node.dtype == torch.float64 else np.float32
    size = (grids[1].h, grids[1].w)
    return WindowFootprint.resample(
        attrs["mode"], grids[0], size, align_corners=attrs["align_corners"], scales=attrs["scales"], dtype=dtype
    )


def _adaptive_reads(node: Node, operand: int) -> Footprint | None:
    source = grid_of(node.inputs[operand])
    return None if source is None else WindowFootprint.adaptive(source, node.attrs["output_size"])


def _points_reads(node: Node, operand: int) -> Footprint | None:
    """Sensor points as a map of one row: a window along the columns, whose taps are the layer's table."""
    source = grid_of(node.inputs[operand])
    if source is None or len(node.shape or ()) != 4:
        return None
    taps = node.attrs.get("_taps")
    if taps is None or taps.n_in != source.w:
        taps = node.attrs["_taps"] = AxisTaps(node.attrs["index"].cpu().numpy(), source.w)
    return WindowFootprint.separable(AxisTaps.gather([0], 1), taps, source.n)


def _softmax_reads(node: Node, operand: int) -> Footprint | None:
    return _same_place(node, operand) if node.attrs["dim"] == 1 else None if node.attrs["dim"] == 0 else _everything(node, operand)


def _vector_reads(node: Node, operand: int) -> Footprint | None:
    return _everything(node, operand) if len(node.inputs[operand].shape or ()) == 2 else None


# -- running ----------------------------------------------------------------------------------------------------------------------


def on_points(node: Node, x: Tensor, index: Tensor, cell: Tensor | None, weight: Tensor | None) -> Tensor:
    """A ``knn_conv``, ``knn_depthwise`` or ``knn_pool`` with other tables, at some of its output points, say.

    Args:
        node: the layer.
        x: (n, c, N).
        index: (points, k), -1 for none.
        cell: (points, k); None for a pool.
        weight: (points, k) of a pool that has weights; else None.

    Returns:
        (n, o, points).
    """
    index = index.to(x.device)
    ops, mode = torch.ops.sightline, node.attrs.get("mode")
    result: Tensor
    if node.op == "knn_depthwise":
        assert cell is not None
        result = ops.knn_depthwise(x, _cast(node.attrs["weight"], x), index, cell.to(x.device))
    elif cell is not None:
        result = ops.knn_conv(x, _cast(node.attrs["weight"], x), _cast(node.attrs["bias"], x), index, cell.to(x.device))
    elif mode == "max":
        result = ops.knn_max_pool(x, index)
    else:
        result = ops.knn_sum_pool(x, index, _cast(weight, x), mode == "avg")
    return result


def _run_points(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    x, attrs = inputs[0], node.attrs
    weight = attrs["weight"] if node.op == "knn_pool" else None
    result = on_points(node, x.flatten(2), attrs["index"], attrs.get("cell"), weight)
    return result[:, :, None] if x.dim() == 4 else result


def _cast(value: Tensor | None, x: Tensor) -> Tensor | None:
    return None if value is None else value.to(device=x.device, dtype=x.dtype)


def _sides(padding: Sequence[int]) -> list[int]:
    """Padding in the order of torch.nn.functional.pad."""
    top, bottom, left, right = padding
    return [left, right, top, bottom]


def _run_conv(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    x, attrs = inputs[0], node.attrs
    weight, bias = _cast(attrs["weight"], x), _cast(attrs["bias"], x)
    assert weight is not None
    top, bottom, left, right = attrs["padding"]
    if attrs["transposed"]:
        return _run_transposed(node, x, weight, bias)
    if attrs["padding_mode"] == "zeros" and (top, left) == (bottom, right):
        padding = (top, left)
    else:
        mode = "constant" if attrs["padding_mode"] == "zeros" else attrs["padding_mode"]
        x, padding = F.pad(x, _sides(attrs["padding"]), mode), (0, 0)
    return F.conv2d(x, weight, bias, attrs["stride"], padding, attrs["dilation"], attrs["groups"])


def _run_transposed(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    attrs = node.attrs
    top, bottom, left, right = attrs["padding"]
    common, extra = (top, left), attrs["output_padding"]
    if (top, left) == (bottom, right):
        return F.conv_transpose2d(x, weight, bias, attrs["stride"], common, extra, attrs["groups"], attrs["dilation"])
    full = F.conv_transpose2d(x, weight, None, attrs["stride"], 0, 0, attrs["groups"], attrs["dilation"])
    # cells appended beyond what the end cuts off are reached by the bias only
    full = F.pad(full, [0, max(extra[1] - right, 0), 0, max(extra[0] - bottom, 0)])
    full = full if bias is None else full + bias[:, None, None]
    window_y, window_x = windows(node)
    height, width = window_y.out_size(x.shape[2]), window_x.out_size(x.shape[3])
    return full[:, :, top : top + height, left : left + width]


def _run_linear(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    weight = _cast(node.attrs["weight"], inputs[0])
    assert weight is not None
    return F.linear(inputs[0], weight, _cast(node.attrs["bias"], inputs[0]))


def _run_affine(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    x, scale, shift = inputs[0], node.attrs["scale"], node.attrs["shift"]
    dtype, shape = torch.promote_types(x.dtype, scale.dtype), (1, -1) + (1,) * (x.dim() - 2)
    scale, shift = (value.to(device=x.device, dtype=dtype).reshape(shape) for value in (scale, shift))
    result: Tensor = (x.to(dtype) * scale + shift).to(x.dtype)
    return result


def _run_channel_norm(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    x, attrs = inputs[0], node.attrs
    last = F.layer_norm(x.movedim(1, -1), (x.shape[1],), _cast(attrs["scale"], x), _cast(attrs["shift"], x), attrs["epsilon"])
    return last.movedim(-1, 1)


_ACT: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "clamp": torch.clamp,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "elu": F.elu,
    "mish": F.mish,
    "softplus": F.softplus,
    "exp": torch.exp,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "neg": torch.neg,
}


def _run_act(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    if node.attrs["kind"] == "prelu":
        slope = _cast(node.attrs["slope"], inputs[0])
        assert slope is not None
        return F.prelu(inputs[0], slope)
    function = _ACT[node.attrs["kind"]]
    return function(inputs[0], *node.attrs["params"])


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}

_SCALAR: dict[str, Callable[[Tensor, float], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "rsub": lambda x, value: value - x,
    "mul": torch.mul,
    "div": torch.div,
    "rdiv": lambda x, value: value / x,
    "pow": torch.pow,
}


def _crop(pooled: Tensor, node: Node, x: Tensor) -> Tensor:
    """Drop the outputs that rounding up may add to an input that was padded by hand."""
    height, width = (
        window.out_size(size, ceil_mode=node.attrs["ceil_mode"]) for window, size in zip(windows(node), x.shape[2:], strict=True)
    )
    return pooled[:, :, :height, :width]


def _native_padding(node: Node) -> tuple[int, int] | None:
    """(y, x) if torch's pooling takes the padding of the node itself."""
    top, bottom, left, right = node.attrs["padding"]
    fits = top * 2 <= node.attrs["kernel"][0] and left * 2 <= node.attrs["kernel"][1]
    return (top, left) if fits and (top, left) == (bottom, right) else None


def _run_max_pool(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    x, attrs, padding = inputs[0], node.attrs, _native_padding(node)
    options = attrs["dilation"], attrs["ceil_mode"]
    if padding is not None:
        return F.max_pool2d(x, attrs["kernel"], attrs["stride"], padding, *options)
    padded = F.pad(x, _sides(attrs["padding"]), value=-math.inf)
    return _crop(F.max_pool2d(padded, attrs["kernel"], attrs["stride"], 0, *options), node, x)


def _run_avg_pool(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    x, attrs, padding = inputs[0], node.attrs, _native_padding(node)
    kernel, stride, ceil_mode, divisor = attrs["kernel"], attrs["stride"], attrs["ceil_mode"], attrs["divisor_override"]
    if padding is not None:
        return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, attrs["count_include_pad"], divisor)
    sides = _sides(attrs["padding"])
    padded = F.pad(x, sides)
    if attrs["count_include_pad"] or divisor is not None:
        return _crop(F.avg_pool2d(padded, kernel, stride, 0, ceil_mode, True, divisor), node, x)
    ones = F.pad(torch.ones_like(x[:1, :1]), sides)
    sums, counts = (F.avg_pool2d(value, kernel, stride, 0, ceil_mode, divisor_override=1) for value in (padded, ones))
    return _crop(sums / counts, node, x)


def _run_upsample(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    attrs, aten = node.attrs, torch.ops.aten
    assert node.shape is not None
    size, scales = list(node.shape[2:]), attrs["scales"] or (None, None)
    if attrs["mode"] == "nearest":
        nearest: Tensor = aten.upsample_nearest2d.default(inputs[0], size, *scales)
        return nearest
    target = aten.upsample_bilinear2d.default if attrs["mode"] == "bilinear" else aten.upsample_bicubic2d.default
    result: Tensor = target(inputs[0], size, attrs["align_corners"], *scales)
    return result


def _run_slice(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    attrs = node.attrs
    index = [slice(None)] * attrs["dim"] + [slice(attrs["start"], attrs["stop"], attrs["step"])]
    return inputs[0][tuple(index)]


def _run_pad(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    mode, sides = node.attrs["mode"], _sides(node.attrs["padding"])
    return F.pad(inputs[0], sides, mode, node.attrs["value"]) if mode == "constant" else F.pad(inputs[0], sides, mode)


def _run_channel_shuffle(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    x, groups = inputs[0], node.attrs["groups"]
    return x.reshape(x.shape[0], groups, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def _filled(value: Any, inputs: Sequence[Any], captured: torch.dtype | None, actual: torch.dtype | None) -> Any:
    """Arguments of a ``torch`` node with the operands in place, in the element type that the graph is run in."""
    if isinstance(value, Operand):
        return inputs[value.index]
    if isinstance(value, (tuple, list)):
        return type(value)(_filled(item, inputs, captured, actual) for item in value)
    if isinstance(value, dict):
        return {key: _filled(item, inputs, captured, actual) for key, item in value.items()}
    return actual if actual is not None and isinstance(value, torch.dtype) and value == captured else value


def _run_torch(node: Node, inputs: Sequence[Any]) -> Any:
    captured = next((operand.dtype for operand in node.inputs if operand.dtype is not None and operand.dtype.is_floating_point), None)
    actual = next((value.dtype for value in inputs if isinstance(value, Tensor) and value.is_floating_point()), None)
    target = node.attrs["target"]
    if getattr(target, "__name__", "").startswith("as_strided"):
        inputs = [value.contiguous() for value in inputs]
    args, kwargs = _filled((node.attrs["args"], node.attrs["kwargs"]), inputs, captured, actual)
    return target(*args, **kwargs)


# -- work -------------------------------------------------------------------------------------------------------------------------


def _conv_macs(node: Node) -> int:
    weight = node.attrs["weight"]
    over = node.inputs[0].shape if node.attrs["transposed"] else node.shape
    return math.prod(over or (0,)) * int(weight[0].numel())


def _knn_macs(node: Node) -> int:
    """Of the neighbours that there are: padding costs nothing."""
    shape, source = node.shape or (0, 0), node.inputs[0].shape or (0, 0)
    return int((node.attrs["index"] >= 0).sum()) * shape[0] * shape[1] * (source[1] if node.op == "knn_conv" else 1)


def _linear_macs(node: Node) -> int:
    return math.prod(node.shape or (0,)) * int(node.attrs["weight"].shape[1])


def _torch_macs(node: Node) -> int:
    """Matrix products, attention and convolutions that have no canonical op; 0 for any other call."""
    name = str(getattr(node.attrs["target"], "__name__", "")).partition(".")[0]
    shapes = [node.inputs[value.index].shape or () for value in node.attrs["args"] if isinstance(value, Operand)]
    out = math.prod(node.shape) if node.shape is not None else 0
    if name in {"matmul", "mm", "bmm", "mv"} and len(shapes) == 2:
        return out * shapes[0][-1]
    if name in {"addmm", "baddbmm"} and len(shapes) == 3:
        return out * shapes[1][-1]
    if name == "scaled_dot_product_attention" and len(shapes) >= 3:
        query, key, value = shapes[:3]
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if name in {"conv1d", "conv2d", "conv3d", "convolution"} and len(shapes) >= 2:
        return out * math.prod(shapes[1][1:])
    return 0


# -- the table --------------------------------------------------------------------------------------------------------------------

RULES: dict[str, Rule] = {
    "constant": Rule("structure", lambda node, _: node.attrs["value"]),
    "conv2d": Rule("window", _run_conv, _conv_macs, _window),
    "max_pool2d": Rule("window", _run_max_pool, reads=_window),
    "avg_pool2d": Rule("window", _run_avg_pool, reads=_window),
    "affine": Rule("pointwise", _run_affine, reads=_same_place),
    "channel_norm": Rule("pointwise", _run_channel_norm, reads=_same_place),
    "act": Rule("pointwise", _run_act, reads=_same_place),
    "scalar": Rule("pointwise", lambda node, x: _SCALAR[node.attrs["kind"]](x[0], node.attrs["value"]), reads=_same_place),
    "identity": Rule("pointwise", lambda _, x: x[0], reads=_same_place),
    **{op: Rule("union", lambda node, x: _BINARY[node.op](x[0], x[1]), reads=_same_place) for op in _BINARY},
    "cat": Rule("union", lambda node, x: torch.cat(list(x), node.attrs["dim"]), reads=_cat_reads),
    "slice": Rule("structure", _run_slice, reads=_slice_reads),
    "pad": Rule("structure", _run_pad, reads=_pad_reads),
    "channel_shuffle": Rule("structure", _run_channel_shuffle, reads=_same_place),
    "pixel_shuffle": Rule("structure", lambda node, x: F.pixel_shuffle(x[0], node.attrs["factor"]), reads=_pixel_reads),
    "pixel_unshuffle": Rule("structure", lambda node, x: F.pixel_unshuffle(x[0], node.attrs["factor"]), reads=_pixel_reads),
    "upsample": Rule("resample", _run_upsample, reads=_upsample_reads),
    "adaptive_avg_pool2d": Rule("resample", lambda node, x: F.adaptive_avg_pool2d(x[0], node.attrs["output_size"]), reads=_adaptive_reads),
    "adaptive_max_pool2d": Rule("resample", lambda node, x: F.adaptive_max_pool2d(x[0], node.attrs["output_size"]), reads=_adaptive_reads),
    "global_avg_pool": Rule("global", lambda node, x: x[0].mean((2, 3), keepdim=node.attrs["keepdim"]), reads=_everything),
    "flatten": Rule("global", lambda _, x: x[0].flatten(1), reads=_everything),
    "linear": Rule("global", _run_linear, _linear_macs, _vector_reads),
    "knn_conv": Rule("window", _run_points, _knn_macs, _points_reads),
    "knn_depthwise": Rule("window", _run_points, _knn_macs, _points_reads),
    "knn_pool": Rule("window", _run_points, reads=_points_reads),
    "softmax": Rule("global", lambda node, x: torch.softmax(x[0], node.attrs["dim"]), reads=_softmax_reads),
    "torch": Rule("opaque", _run_torch, _torch_macs),
    "item": Rule("opaque", lambda node, x: x[0][node.attrs["index"]]),
}


def rule_of(node: Node) -> Rule:
    """The rule of a node.

    Raises:
        CaptureError: the op is not a canonical one (or is ``input``, which nothing computes).
    """
    rule = RULES.get(node.op)
    if rule is None:
        raise CaptureError(f"node {node.name!r}: op {node.op!r} has no rule; expected one of {', '.join(sorted(RULES))}")
    return rule


def reference(graph: Graph, frame: Tensor) -> list[Tensor]:
    """Run a graph densely, node by node: slow, plain, and what everything else is compared with.

    Args:
        graph: as captured.
        frame: tensor of the shape that the graph was captured with, on any device; float64 (whatever the model's own element type)
            makes it an oracle, since constants and weights are then cast.

    Returns:
        One tensor per output of the graph; they may share memory with each other, with the frame and with weights.

    Raises:
        ShapeError: another shape than the graph was captured with.
        DTypeError: the frame is not of a floating-point type.

    Example:
        >>> from sightline.graph.capture import capture
        >>> graph = capture(torch.nn.ReLU(), torch.zeros(1, 3, 4, 4))
        >>> reference(graph, torch.full((1, 3, 4, 4), -1.0))[0].max().item()
        0.0
    """
    if tuple(frame.shape) != graph.input.shape:
        raise ShapeError(f"frame: expected shape {graph.input.shape}, got {tuple(frame.shape)}; capture again for another size")
    if not frame.is_floating_point():
        raise DTypeError(f"frame: expected a floating-point tensor, got {frame.dtype}; convert it with frame.float()")
    last_use = {operand: index for index, node in enumerate(graph.nodes) for operand in node.inputs}
    kept, values = set(graph.outputs), {graph.input: frame}
    with torch.no_grad():
        for index, node in enumerate(graph.nodes):
            if node.op == "constant":
                value = node.attrs["value"]
                dtype = frame.dtype if value.dtype == graph.input.dtype else value.dtype
                values[node] = value.to(device=frame.device, dtype=dtype)
            elif node.op != "input":
                values[node] = rule_of(node).run(node, [values[operand] for operand in node.inputs])
            for operand in node.inputs:
                if last_use[operand] == index and operand not in kept:
                    values.pop(operand, None)
        return [values[node] for node in graph.outputs]
