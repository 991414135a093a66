"""Turns a parsed ONNX block into the canonical graph: values, constants, shapes, names and errors.

What belongs here: the parsed form (`Block`, `Call`), and the `Builder` that runs over it and that handlers talk to through a
`Site`. What does not: the meaning of single ops (`onnx_layers.py`, `onnx_structure.py`) and the ONNX file (`onnx_import.py`).

A value is a `Const` (it does not depend on the frame: computed while building), an ir.Node, or a `View`: the result of Reshape,
Transpose and the like, kept open until something that is not a view reads it, because several of them together often are one
canonical op.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sightline.errors import CaptureError, ShapeError
from sightline.geometry import Window
from sightline.graph import onnx_functions as fn
from sightline.graph.ir import Graph, Namer, Node, Operand
from sightline.graph.onnx_layout import Layout, name_steps


@dataclass(frozen=True)
class Call:
    """One ONNX node, parsed.

    Attributes:
        op: op type.
        domain: "" for ONNX's own.
        version: version of the domain's op set that the file asks for.
        name: call-site name: the node's own, or its first output's.
        inputs: value names, "" for an optional input that is absent.
        outputs: value names, "" likewise.
        attrs: attributes; tensors as torch tensors, sub-graphs as `Block`.
    """

    op: str
    domain: str
    version: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]

    def reads(self) -> Iterable[str]:
        """Names of all values that it reads, also from inside its sub-graphs."""
        yield from filter(None, self.inputs)
        for value in self.attrs.values():
            if isinstance(value, Block):
                for call in value.calls:
                    yield from call.reads()
                yield from value.outputs


@dataclass(frozen=True)
class Block:
    """A parsed ONNX graph or sub-graph.

    Attributes:
        calls: in execution order.
        constants: initializers by name.
        outputs: value names.
    """

    calls: tuple[Call, ...]
    constants: dict[str, Tensor]
    outputs: tuple[str, ...]


@dataclass(eq=False)
class Const:
    """A value that does not depend on the frame."""

    tensor: Tensor
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.tensor.shape)


@dataclass(eq=False)
class View:
    """A strided view of a node's value that no node computes yet.

    Attributes:
        source: the node.
        layout: which of its elements, in which shape.
        parent: the value that the ONNX node reads.
        target: with ``args``, what the ONNX node does to its parent's value, if no better name is found.
        args: see ``target``.
        name: call-site name.
        node: the node that computes it, once there is one.
    """

    source: Node
    layout: Layout
    parent: Node | View
    target: Callable[..., Any]
    args: tuple[Any, ...]
    name: str
    node: Node | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        return self.layout.shape


Value: TypeAlias = Const | Node | View
Handler = Callable[["Site"], Value | Sequence[Value]]
HANDLERS: dict[str, Handler] = {}


def handles(*ops: str) -> Callable[[Handler], Handler]:
    """Register a function that translates calls of these ops."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(ops, handler))
        return handler

    return register


def shape_of(value: Value) -> tuple[int, ...]:
    """Shape of a value."""
    shape = value.shape
    if shape is None:
        raise CaptureError(f"the value of {value.name!r} is not one tensor")
    return shape


def result_shape(op: str, attrs: dict[str, Any], shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of the result of a canonical op whose shape follows from its attributes and its inputs' shapes."""
    first = shapes[0]
    if op in ("act", "affine", "scalar", "softmax", "identity", "channel_shuffle"):
        return first
    if op == "conv2d":
        weight = attrs["weight"]
        channels = weight.shape[1] * attrs["groups"] if attrs["transposed"] else weight.shape[0]
        return (first[0], channels, *_windows(attrs, first, weight.shape[2:]))
    if op in ("max_pool2d", "avg_pool2d"):
        return first[:2] + _windows(attrs, first, attrs["kernel"])
    if op == "cat":
        dim = attrs["dim"]
        return (*first[:dim], sum(shape[dim] for shape in shapes), *first[dim + 1 :])
    if op == "slice":
        dim = attrs["dim"]
        return (*first[:dim], len(range(attrs["start"], attrs["stop"], attrs["step"])), *first[dim + 1 :])
    if op == "pad":
        top, bottom, left, right = attrs["padding"]
        return (*first[:2], first[2] + top + bottom, first[3] + left + right)
    if op in ("pixel_shuffle", "pixel_unshuffle"):
        r = attrs["factor"]
        n, c, h, w = first
        return (n, c // (r * r), h * r, w * r) if op == "pixel_shuffle" else (n, c * r * r, h // r, w // r)
    if op == "flatten":
        return (first[0], math.prod(first[1:]))
    if op == "linear":
        return (*first[:-1], attrs["weight"].shape[0])
    if op in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        return first[:2] + tuple(attrs["output_size"])
    if op == "global_avg_pool":
        return first[:2] + ((1, 1) if attrs["keepdim"] else ())
    return tuple(torch.broadcast_shapes(*shapes))


def _windows(attrs: dict[str, Any], shape: tuple[int, ...], kernel: Sequence[int]) -> tuple[int, ...]:
    """Height and width of what a sliding window leaves of a map."""
    transposed, extra, pads = attrs.get("transposed", False), attrs.get("output_padding", (0, 0)), attrs["padding"]
    windows = [
        Window(kernel[i], attrs["stride"][i], (pads[2 * i], pads[2 * i + 1]), attrs["dilation"][i], transposed, extra[i]) for i in (0, 1)
    ]
    return tuple(window.out_size(shape[2 + i], ceil_mode=attrs.get("ceil_mode", False)) for i, window in enumerate(windows))


@dataclass
class Builder:
    """Builds one graph for one input size.

    Attributes:
        file: name of the ONNX file, for messages.
        size: (n, c, h, w) of the frame.
        declared: the shape that the file declares, for messages.
        values: all values so far by ONNX name.
        nodes: all nodes so far.
        uses: how often each ONNX value is read.
    """

    file: str
    size: tuple[int, int, int, int]
    declared: tuple[int | None, ...]
    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    uses: Counter[str] = field(default_factory=Counter)
    _namer: Namer = field(default_factory=Namer)
    _constants: dict[Const, Node] = field(default_factory=dict)
    _absent: dict[str, str] = field(default_factory=dict)

    def build(self, block: Block, input_name: str, channels_last: bool) -> Graph:
        """Translate the whole network.

        Args:
            block: the main graph.
            input_name: the ONNX value that is the frame.
            channels_last: whether the network expects (n, h, w, c); the graph's own input is (n, c, h, w) all the same.

        Returns:
            The graph, without nodes that no output needs.
        """
        self.uses = Counter(name for call in block.calls for name in call.reads()) + Counter(block.outputs)
        frame = self._append(Node(self._namer("input"), "input", shape=self.size, dtype=torch.float32))
        self.values[input_name] = frame
        if channels_last:
            order = (0, 2, 3, 1)
            layout = Layout.of(self.size).permute(order)
            self.values[input_name] = View(frame, layout, frame, fn.permute, (order,), "input.channels_last")
        results = [self.node(value) for value in self.run(block)]
        tree = None if len(results) == 1 else pytree.tree_structure(tuple(range(len(results))))
        return Graph(_live(self.nodes, results), results, tree, self.file)

    def run(self, block: Block) -> list[Value]:
        """Translate a block; its outer values must be in `values`."""
        self.values.update({name: Const(tensor, name) for name, tensor in block.constants.items()})
        for call in block.calls:
            self._translate(call)
        return [self._lookup(name, f"its outputs include {name!r}") for name in block.outputs]

    def _translate(self, call: Call) -> None:
        what = f"node {call.name!r} ({call.op})"
        site = Site(self, call, [self._lookup(name, f"{what} reads {name!r}") if name else None for name in call.inputs])
        try:
            results = HANDLERS[call.op](site)
        except CaptureError:
            raise
        except Exception as error:  # a wrong size or a damaged attribute can make torch raise anything
            if isinstance(error, ShapeError) and str(error).startswith(f"{self.file}: "):
                raise  # from inside the branch of an If, where it was already told
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ShapeError(self._misfit(what, site, reason)) from error
        listed = [results] if isinstance(results, (Const, Node, View)) else list(results)
        self.values.update({name: value for name, value in zip(call.outputs, listed, strict=False) if name})
        for name in call.outputs[len(listed) :]:
            self._absent[name] = f"which is a result of {call.op} that is not supported"

    def _misfit(self, what: str, site: Site, reason: str) -> str:
        sizes = ", ".join("none" if value is None else "x".join(map(str, shape_of(value))) or "scalar" for value in site.inputs)
        size = "x".join(map(str, self.size))
        message = f"{self.file}: {what} cannot be computed for an input of {size}: its inputs are {sizes}: {reason}; "
        if all(side is not None for side in self.declared):
            declared = "x".join(map(str, self.declared))
            return message + f"use sides that the network divides evenly (often multiples of 32), or the {declared} it was exported for"
        return message + "use sides that the network divides evenly (often multiples of 32)"

    def _lookup(self, name: str, reader: str) -> Value:
        if name not in self.values:
            reason = self._absent.get(name, "which nothing produces (the file is incomplete or out of order)")
            raise CaptureError(f"{self.file}: {reader}, {reason}")
        return self.values[name]

    def _append(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def emit(self, name: str, op: str, inputs: Sequence[Node], attrs: dict[str, Any], shape: tuple[int, ...] | None = None) -> Node:
        """Append a node of a canonical op; its shape is derived unless given."""
        if shape is None:
            shape = result_shape(op, attrs, [shape_of(node) for node in inputs])
        if min(shape, default=1) < 1:
            raise ValueError(f"its result would be {'x'.join(map(str, shape))}, which holds nothing")
        return self._append(Node(self._namer(name), op, list(inputs), attrs, shape, inputs[0].dtype))

    def call(self, name: str, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Apply a function: at once if nothing that it reads depends on the frame, else as a ``torch`` node."""
        leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, (Const, Node, View)))
        if not any(isinstance(leaf, (Node, View)) for leaf in leaves):
            known = [leaf.tensor if isinstance(leaf, Const) else leaf for leaf in leaves]
            args, kwargs = pytree.tree_unflatten(known, spec)
            return Const(target(*args, **kwargs), name)
        inputs: list[Node] = []
        metas: list[Any] = list(leaves)
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, (Const, Node, View)):
                node = self.node(leaf)
                if node not in inputs:
                    inputs.append(node)
                leaves[place] = Operand(inputs.index(node))
                metas[place] = torch.empty(shape_of(node), dtype=node.dtype, device="meta")
        meta_args, meta_kwargs = pytree.tree_unflatten(metas, spec)
        result = target(*meta_args, **meta_kwargs)
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        attrs = {"target": target, "args": args, "kwargs": kwargs}
        return self._append(Node(self._namer(name), "torch", inputs, attrs, tuple(result.shape), result.dtype))

    def node(self, value: Value) -> Node:
        """The node that computes a value, made if there is none yet."""
        if isinstance(value, Node):
            return value
        if isinstance(value, Const):
            if value not in self._constants:
                attrs = {"value": value.tensor}
                made = Node(self._namer(value.name), "constant", [], attrs, value.shape, value.tensor.dtype)
                self._constants[value] = self._append(made)
            return self._constants[value]
        if value.node is None:
            value.node = self._settle(value)
        return value.node

    def steps(self, view: View) -> list[tuple[str, dict[str, Any]]] | None:
        """Canonical ops that a view amounts to, or None."""
        return name_steps(shape_of(view.source), view.layout)

    def _settle(self, view: View) -> Node:
        steps = self.steps(view)
        if steps is None:
            result = self.call(view.name, view.target, (self.node(view.parent), *view.args), {})
            return self.node(result)
        node = view.source
        for place, (op, attrs) in enumerate(steps):
            name = view.name if place == len(steps) - 1 else f"{view.name}.{op}"
            if op == "take":
                order = Const(torch.tensor(attrs["order"]), f"{view.name}.order")
                node = self.node(self.call(name, fn.take, (node, order, 1), {}))
            else:
                node = self.emit(name, op, [node], attrs)
        return node


def _live(nodes: list[Node], outputs: list[Node]) -> list[Node]:
    """The input and all nodes that an output depends on, in order."""
    needed = {id(node) for node in outputs}
    for node in reversed(nodes):
        if id(node) in needed:
            needed.update(id(operand) for operand in node.inputs)
    return [node for node in nodes if id(node) in needed or node.op == "input"]


class Site:
    """What the handler of one call sees: its inputs and attributes, and ways to produce values.

    Attributes:
        builder: the builder.
        call: the ONNX node.
        inputs: its input values, None where absent.
    """

    def __init__(self, builder: Builder, call: Call, inputs: list[Value | None]) -> None:
        self.builder = builder
        self.call = call
        self.inputs = inputs

    @property
    def op(self) -> str:
        """Op type."""
        return self.call.op

    @property
    def version(self) -> int:
        """Version of ONNX's op set."""
        return self.call.version

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or ``default``."""
        return self.call.attrs.get(name, default)

    def fail(self, reason: str) -> NoReturn:
        """Refuse the call: ``reason`` completes the sentence "file: node 'x' (Op) ..."."""
        raise CaptureError(f"{self.builder.file}: node {self.call.name!r} ({self.op}) {reason}")

    def choice(self, name: str, default: str, options: Sequence[str]) -> str:
        """An attribute that is one of a few words; an error if it is another."""
        word = str(self.attr(name, default))
        if word not in options:
            self.fail(f"has {name} {word!r}, which is not supported; expected one of {', '.join(options)}")
        return word

    def has(self, index: int) -> bool:
        """Whether an input is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """An input; an error if it is absent."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            self.fail(f"has no input {index}; the file is damaged")
        return value

    def node(self, index: int) -> Node:
        """An input as a node."""
        return self.builder.node(self.value(index))

    def const(self, index: int) -> Tensor | None:
        """An input's tensor if it is there and does not depend on the frame."""
        value = self.inputs[index] if self.has(index) else None
        return value.tensor if isinstance(value, Const) else None

    def known(self, index: int, what: str) -> Tensor:
        """An input's tensor; an error if it depends on the frame's content."""
        tensor = self.const(index)
        if tensor is None:
            self.fail(f"takes its {what} from the content of the frame, which is not supported; export the network with fixed ones")
        return tensor

    def numbers(self, name: str, index: int | None = None) -> list[int] | None:
        """Integers given as an attribute or, since some version of the op, as an input; None if neither is there."""
        if name in self.call.attrs:
            given = self.call.attrs[name]
            return list(given) if isinstance(given, (list, tuple)) else [given]
        if index is None or not self.has(index):
            return None
        return [int(v) for v in self.known(index, name).reshape(-1).tolist()]

    def only_read_here(self, index: int) -> bool:
        """Whether nothing else reads this input."""
        return self.builder.uses[self.call.inputs[index]] == 1

    def emit(self, op: str, inputs: Sequence[Node], shape: tuple[int, ...] | None = None, part: str = "", **attrs: Any) -> Node:
        """Append a node of a canonical op, named like the call (``part`` for one that is only a step of it)."""
        return self.builder.emit(self.call.name + part, op, inputs, attrs, shape)

    def apply(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        """Apply a function of `onnx_functions` (values may stand anywhere in the arguments)."""
        return self.builder.call(self.call.name, target, args, kwargs)

    def view(self, change: Callable[[Layout], Layout | None], target: Callable[..., Any], *args: Any) -> Value:
        """View the first input; ``target(input, *args)`` must compute what ``change`` does to its layout."""
        value = self.value(0)
        if isinstance(value, Const):
            return self.apply(target, value, *args)
        source, layout = (value.source, value.layout) if isinstance(value, View) else (value, Layout.of(shape_of(value)))
        changed = change(layout)
        if changed is None:
            return self.apply(target, value, *args)
        if changed == Layout.of(shape_of(source)):
            return source
        return View(source, changed, value, target, args, self.call.name)
