"""Networks written down by hand: layers by name, without weights, as a graph to analyse.

What belongs here: `Sketch`. What does not: what the layers do (`sightline.graph`, `sightline.fields.propagate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from sightline.errors import CaptureError, ShapeError
from sightline.geometry import Window
from sightline.graph.ir import Graph, Node, Operand

Op = Literal[
    "conv", "depthwise", "conv_transpose", "max_pool", "avg_pool", "global_pool", "adaptive_pool", "upsample", "pad", "crop", "add",
    "mul", "cat", "norm", "act", "softmax", "flatten", "linear", "as_map", "unknown",
]  # fmt: skip
Sizes = int | Sequence[int]
Padding = Literal["same", "valid"] | int | Sequence[int]


@dataclass(frozen=True)
class _Layer:
    name: str
    op: str
    inputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def _pair(layer: str, name: str, value: Any, least: int = 1) -> tuple[int, int]:
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(sizes) == 1:
        sizes *= 2
    if len(sizes) != 2 or any(not isinstance(size, int) or isinstance(size, bool) or size < least for size in sizes):
        raise ShapeError(f"{name} of layer {layer!r}: expected an int of at least {least}, or two (rows, columns), got {value!r}")
    return sizes[0], sizes[1]


class Sketch:
    """A network written down layer by layer.

    Args:
        name: for reports.
        channels: of the input.
        size: of the input, (h, w), where the analysis names none.

    Example:
        >>> from sightline.fields import analyze
        >>> net = Sketch("tiny", size=(32, 32))
        >>> stem = net.add("stem", "conv", kernel=7, stride=2, channels=16)
        >>> left, right = net.add("left", "conv", stem, kernel=3), net.add("right", "conv", stem, kernel=5)
        >>> both = net.add("both", "add", [left, right])
        >>> report = analyze(net)
        >>> report.layers["both"].size, report.layers["both"].min_size
        ((15, 15), (11, 11))
    """

    def __init__(self, name: str = "sketch", *, channels: int = 3, size: Sizes = 224) -> None:
        self.name = name
        self.channels = channels
        self.size = _pair("input", "size", size)
        self._layers: dict[str, _Layer] = {}
        self._last = "input"

    def add(self, name: str, op: Op, inputs: str | Sequence[str] | None = None, **options: Any) -> str:
        """Add a layer.

        Args:
            name: of the layer; any that is not taken.
            op: "conv", "conv_transpose" (kernel, stride, padding, dilation, channels, groups); "depthwise" (the same, with
                multiplier: channels out per channel in); "max_pool", "avg_pool" (kernel, stride, padding, dilation, ceil);
                "global_pool" (keep: as a map of one cell); "adaptive_pool" (size); "upsample" (factor, mode: nearest or bilinear);
                "pad", "crop" (amount: one for all sides, or top, bottom, left, right); "add", "mul", "cat" of several inputs;
                "norm", "act"; "softmax"; "flatten"; "linear" (units); "as_map" (a vector as a map of one cell); "unknown".
            inputs: names of what it reads, also of layers that are added later; None: the layer added before this one, or "input".
            **options: see `op`. kernel, stride, dilation: an int or (rows, columns); stride is 1 for convolutions, else the kernel.
                padding: "same" (the default of convolutions: maps keep ceil(n / stride) cells), "valid" (the default of pools), or
                numbers as for "pad". channels: as many as its input has, by default. bias: whether there is one, for the count of
                parameters; True by default.

        Returns:
            The name.

        Raises:
            ShapeError: a name that is taken, an op that does not exist, a kernel or stride below 1.
        """
        if name == "input" or name in self._layers:
            raise ShapeError(f"name: {name!r} is taken; every layer needs a name of its own")
        if op not in _BUILDERS:
            raise ShapeError(f"op of layer {name!r}: expected one of {', '.join(_BUILDERS)}, got {op!r}")
        unknown = set(options) - set(_OPTIONS.get(op, ()))
        if unknown:
            raise ShapeError(
                f"layer {name!r}: {op} has no option {sorted(unknown)[0]!r}; it has {', '.join(_OPTIONS.get(op, ())) or 'none'}"
            )
        for key in ("kernel", "stride", "dilation", "size", "factor"):
            if key in options:
                _pair(name, key, options[key])
        if "kernel" in _OPTIONS.get(op, ()) and "kernel" not in options:
            raise ShapeError(f"layer {name!r}: {op} needs a kernel")
        reads = (self._last,) if inputs is None else (inputs,) if isinstance(inputs, str) else tuple(inputs)
        if not reads:
            raise ShapeError(f"inputs of layer {name!r}: expected at least one name; the first layer reads 'input'")
        self._layers[name] = _Layer(name, op, reads, dict(options))
        self._last = name
        return name

    def to_graph(self, input_shape: Sequence[int] | None = None) -> Graph:
        """The graph, its weights on the meta device.

        Args:
            input_shape: (n, c, h, w); None: (1, channels, *size).

        Returns:
            The graph; its outputs are the layers that nothing reads.

        Raises:
            CaptureError: a layer reads one that does not exist, or layers read each other in a circle.
            ShapeError: maps that do not fit together, or a window larger than its map.
        """
        shape = (1, self.channels, *self.size) if input_shape is None else tuple(input_shape)
        if len(shape) != 4 or any(size < 1 for size in shape):
            raise ShapeError(f"input_shape: expected (n, c, h, w), got {shape}")
        table = {"input": Node("input", "input", shape=shape, dtype=torch.float32)}
        nodes = [table["input"]]
        for layer in self._ordered():
            reads = [table[name] for name in layer.inputs]
            made = _BUILDERS[layer.op](layer, reads)
            made.inputs, made.name, made.module, made.dtype = reads, layer.name, layer.name, torch.float32
            if made.shape is not None and 0 in made.shape:
                raise ShapeError(f"layer {layer.name!r}: its map is empty; the input {shape} is too small")
            table[layer.name] = made
            nodes.append(made)
        read = {name for layer in self._layers.values() for name in layer.inputs}
        outputs = [table[name] for name in self._layers if name not in read]
        return Graph(nodes, outputs or nodes[:1], None, self.name)

    def _ordered(self) -> list[_Layer]:
        """Layers behind those that they read."""
        done, order = {"input"}, []
        waiting = dict(self._layers)
        for layer in waiting.values():
            for name in layer.inputs:
                if name != "input" and name not in waiting:
                    raise CaptureError(f"layer {layer.name!r} reads {name!r}, which does not exist; add it, or read 'input'")
        while waiting:
            ready = [layer for layer in waiting.values() if done.issuperset(layer.inputs)]
            if not ready:
                raise CaptureError(
                    f"layers read each other in a circle: {' <- '.join(_circle(waiting))}; a network must lead from input to output"
                )
            for layer in ready:
                done.add(layer.name)
                order.append(layer)
                del waiting[layer.name]
        return order


def _circle(waiting: dict[str, _Layer]) -> list[str]:
    path = [next(iter(waiting))]
    while True:
        name = next(name for name in waiting[path[-1]].inputs if name in waiting)
        if name in path:
            return [*path[path.index(name) :], name]
        path.append(name)


# -- one function per op ----------------------------------------------------------------------------------------------------------


def _map(layer: _Layer, node: Node) -> tuple[int, int, int, int]:
    shape = node.shape or ()
    if len(shape) != 4:
        raise ShapeError(f"layer {layer.name!r}: {layer.op} reads a map (n, c, h, w), but {node.name!r} gives {shape}")
    return shape[0], shape[1], shape[2], shape[3]


def _sides(layer: _Layer, amount: Any) -> tuple[int, int, int, int]:
    values = (amount,) * 4 if isinstance(amount, int) else tuple(amount)
    if len(values) == 2:
        values = (values[0], values[0], values[1], values[1])
    if len(values) != 4 or any(not isinstance(value, int) or value < 0 for value in values):
        raise ShapeError(
            f"padding of layer {layer.name!r}: expected one amount, or top, bottom, left, right, none negative, got {amount!r}"
        )
    return values[0], values[1], values[2], values[3]


def _window_attrs(layer: _Layer, node: Node, padding: Padding) -> tuple[dict[str, Any], list[Window]]:
    _, _, *places = _map(layer, node)
    options = layer.options
    kernel = _pair(layer.name, "kernel", options["kernel"])
    stride = _pair(layer.name, "stride", options.get("stride", kernel if "pool" in layer.op else 1))
    dilation = _pair(layer.name, "dilation", options.get("dilation", 1))
    transposed = layer.op == "conv_transpose"
    chosen = options.get("padding", padding)
    sides: list[int] = []
    if isinstance(chosen, str):
        for n, k, s, d in zip(places, kernel, stride, dilation, strict=True):
            extent = d * (k - 1) + 1
            total = max(extent - s, 0) if transposed else max((-(-n // s) - 1) * s + extent - n, 0)
            sides += [total // 2, total - total // 2] if chosen == "same" else [0, 0]
    else:
        sides = list(_sides(layer, chosen))
    windows = []
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        extra = max(0, s - d * (k - 1) - 1) if transposed and chosen == "same" else 0  # a window shorter than its stride leaves room
        windows.append(Window(k, s, (sides[2 * axis], sides[2 * axis + 1]), d, transposed, extra))
    return {"kernel": kernel, "stride": stride, "padding": tuple(sides), "dilation": dilation}, windows


def _conv(layer: _Layer, reads: list[Node]) -> Node:
    n, c, *places = _map(layer, reads[0])
    attrs, windows = _window_attrs(layer, reads[0], "same")
    out, groups = int(layer.options.get("channels", c)), int(layer.options.get("groups", 1))
    if layer.op == "depthwise":
        out, groups = c * int(layer.options.get("multiplier", 1)), c
    transposed = layer.op == "conv_transpose"
    if out < 1 or groups < 1 or c % groups or out % groups:
        raise ShapeError(f"layer {layer.name!r}: {c} channels in and {out} out cannot be split into {groups} groups")
    size = (c, out // groups) if transposed else (out, c // groups)
    bias = torch.empty(out, device="meta") if layer.options.get("bias", True) else None
    attrs |= {"weight": torch.empty(*size, *attrs.pop("kernel"), device="meta"), "bias": bias, "groups": groups}
    attrs |= {"padding_mode": "zeros", "transposed": transposed, "output_padding": tuple(window.output_padding for window in windows)}
    return Node("", "conv2d", attrs=attrs, shape=(n, out, *(w.out_size(size) for w, size in zip(windows, places, strict=True))))


def _pool(layer: _Layer, reads: list[Node]) -> Node:
    n, c, *places = _map(layer, reads[0])
    attrs, windows = _window_attrs(layer, reads[0], "valid")
    ceil = bool(layer.options.get("ceil", False))
    attrs["ceil_mode"] = ceil
    if layer.op == "avg_pool":
        attrs |= {"count_include_pad": True, "divisor_override": None}
    shape = (n, c, *(w.out_size(size, ceil_mode=ceil) for w, size in zip(windows, places, strict=True)))
    return Node("", f"{layer.op}2d", attrs=attrs, shape=shape)


def _global_pool(layer: _Layer, reads: list[Node]) -> Node:
    n, c, *_ = _map(layer, reads[0])
    keep = bool(layer.options.get("keep", False))
    return Node("", "global_avg_pool", attrs={"keepdim": keep}, shape=(n, c, 1, 1) if keep else (n, c))


def _adaptive_pool(layer: _Layer, reads: list[Node]) -> Node:
    n, c, *_ = _map(layer, reads[0])
    size = _pair(layer.name, "size", layer.options.get("size", 1))
    return Node("", "adaptive_avg_pool2d", attrs={"output_size": size}, shape=(n, c, *size))


def _upsample(layer: _Layer, reads: list[Node]) -> Node:
    n, c, h, w = _map(layer, reads[0])
    factor = _pair(layer.name, "factor", layer.options.get("factor", 2))
    mode = layer.options.get("mode", "nearest")
    if mode not in {"nearest", "bilinear"}:
        raise ShapeError(f"mode of layer {layer.name!r}: expected 'nearest' or 'bilinear', got {mode!r}")
    attrs = {"mode": mode, "align_corners": False, "scales": tuple(float(value) for value in factor)}
    return Node("", "upsample", attrs=attrs, shape=(n, c, h * factor[0], w * factor[1]))


def _pad(layer: _Layer, reads: list[Node]) -> Node:
    n, c, h, w = _map(layer, reads[0])
    sign = -1 if layer.op == "crop" else 1
    top, bottom, left, right = (sign * side for side in _sides(layer, layer.options.get("amount", 1)))
    shape = (n, c, max(0, h + top + bottom), max(0, w + left + right))
    return Node("", "pad", attrs={"padding": (top, bottom, left, right), "mode": "constant", "value": 0.0}, shape=shape)


def _join(layer: _Layer, reads: list[Node]) -> Node:
    try:
        shape = tuple(torch.broadcast_shapes(*(node.shape or () for node in reads)))
    except RuntimeError as error:
        sizes = ", ".join(f"{node.name} {node.shape}" for node in reads)
        raise ShapeError(f"layer {layer.name!r}: its inputs do not fit together: {sizes}") from error
    if len(reads) == 1:
        return Node("", "identity", shape=shape)
    if len(reads) == 2:
        return Node("", layer.op, shape=shape)
    return Node("", "torch", attrs=_call(elementwise, len(reads)), shape=shape)


def _call(target: Callable[..., Any], count: int) -> dict[str, Any]:
    return {"target": target, "args": tuple(Operand(number) for number in range(count)), "kwargs": {}}


def _cat(layer: _Layer, reads: list[Node]) -> Node:
    shapes = [_map(layer, node) if len(node.shape or ()) == 4 else node.shape or () for node in reads]
    if len({(shape[0], *shape[2:]) for shape in shapes}) != 1:
        sizes = ", ".join(f"{node.name} {node.shape}" for node in reads)
        raise ShapeError(f"layer {layer.name!r}: its inputs do not fit together: {sizes}")
    return Node("", "cat", attrs={"dim": 1}, shape=(shapes[0][0], sum(shape[1] for shape in shapes), *shapes[0][2:]))


def _norm(layer: _Layer, reads: list[Node]) -> Node:
    del layer
    c = (reads[0].shape or (1, 1))[1]
    attrs = {"scale": torch.empty(c, device="meta"), "shift": torch.empty(c, device="meta")}
    return Node("", "affine", attrs=attrs, shape=reads[0].shape)


def _act(layer: _Layer, reads: list[Node]) -> Node:
    del layer
    return Node("", "act", attrs={"kind": "relu", "params": ()}, shape=reads[0].shape)


def _softmax(layer: _Layer, reads: list[Node]) -> Node:
    del layer
    return Node("", "softmax", attrs={"dim": 1}, shape=reads[0].shape)


def _flatten(layer: _Layer, reads: list[Node]) -> Node:
    del layer
    shape = reads[0].shape or (1,)
    return Node("", "flatten", shape=(shape[0], math.prod(shape[1:])))


def _linear(layer: _Layer, reads: list[Node]) -> Node:
    shape = reads[0].shape or ()
    units = layer.options.get("units")
    if not isinstance(units, int) or units < 1 or len(shape) < 2:
        raise ShapeError(f"units of layer {layer.name!r}: expected a positive int, got {units!r}")
    weight = torch.empty(units, shape[-1], device="meta")
    bias = torch.empty(units, device="meta") if layer.options.get("bias", True) else None
    return Node("", "linear", attrs={"weight": weight, "bias": bias}, shape=(*shape[:-1], units))


def elementwise(*values: Any) -> Any:
    """What joins of more than two inputs call; known by its name."""
    return values


def _as_map(layer: _Layer, reads: list[Node]) -> Node:
    shape = reads[0].shape or ()
    if len(shape) != 2:
        raise ShapeError(f"layer {layer.name!r}: as_map reads a vector (n, c), but {reads[0].name!r} gives {shape}")
    attrs = {"target": torch.reshape, "args": (Operand(0), (*shape, 1, 1)), "kwargs": {}}
    return Node("", "torch", attrs=attrs, shape=(*shape, 1, 1))


def unfollowed(*values: Any) -> Any:
    """What "unknown" layers call: an operation of which nothing is known."""
    return values


def _unknown(layer: _Layer, reads: list[Node]) -> Node:
    del layer
    return Node("", "torch", attrs=_call(unfollowed, len(reads)), shape=reads[0].shape)


_WINDOWED = ("kernel", "stride", "padding", "dilation")
_OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("conv", "conv_transpose"), (*_WINDOWED, "channels", "groups", "bias")),
    "depthwise": (*_WINDOWED, "multiplier", "bias"),
    **dict.fromkeys(("max_pool", "avg_pool"), (*_WINDOWED, "ceil")),
    "global_pool": ("keep",),
    "adaptive_pool": ("size",),
    "upsample": ("factor", "mode"),
    **dict.fromkeys(("pad", "crop"), ("amount",)),
    "linear": ("units", "bias"),
}
_BUILDERS: dict[str, Callable[[_Layer, list[Node]], Node]] = {
    **dict.fromkeys(("conv", "depthwise", "conv_transpose"), _conv),
    **dict.fromkeys(("max_pool", "avg_pool"), _pool),
    "global_pool": _global_pool,
    "adaptive_pool": _adaptive_pool,
    "upsample": _upsample,
    **dict.fromkeys(("pad", "crop"), _pad),
    **dict.fromkeys(("add", "mul"), _join),
    "cat": _cat,
    "norm": _norm,
    "act": _act,
    "softmax": _softmax,
    "flatten": _flatten,
    "linear": _linear,
    "as_map": _as_map,
    "unknown": _unknown,
}
