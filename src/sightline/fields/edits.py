"""Edits of a network: what they are, what a captured graph looks like after them, and a module to which they were applied.

What belongs here: `Edit`, `edited` (on the graph, on the meta device: nothing is computed), `apply` (on a copy of the user's module).
What does not: which edits are worth it (`suggest.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sightline.errors import CaptureError, ShapeError
from sightline.fields.opaque import arguments, call_name
from sightline.graph.ir import Graph, Node
from sightline.graph.rules import rule_of, windows

if TYPE_CHECKING:
    from sightline.fields.suggest import Suggestion

Action = Literal["stride", "remove", "kernel", "pool", "cut", "resize"]


@dataclass(frozen=True)
class Edit:
    """One change of a network, plain data.

    Attributes:
        action: "stride": give these convolutions the stride `value`; "remove": take these pools out; "kernel": give these convolutions a
            kernel of `value`, padding so that maps keep their sizes; "pool": a 2 x 2 max pool behind this module; "cut": take these
            modules out, one after the other; "resize": let this layer take `value` channels, as a consequence of a cut.
        layers: names of call sites, or paths of modules.
        value: per axis, or a number of channels; () where there is none.
    """

    action: Action
    layers: tuple[str, ...]
    value: tuple[int, ...] = ()

    def __str__(self) -> str:
        names = ", ".join(self.layers) if len(self.layers) <= 3 else f"{self.layers[0]} ... {self.layers[-1]} ({len(self.layers)})"
        size = " x ".join(map(str, self.value))
        return {
            "stride": f"stride {size} at {names}",
            "remove": f"remove {names}",
            "kernel": f"kernel {size} at {names}",
            "pool": f"add a 2 x 2 max pool behind {names}",
            "cut": f"cut {names}",
            "resize": f"{names} takes {size} channels",
        }[self.action]

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {"action": self.action, "layers": list(self.layers), "value": list(self.value)}


# -- on the graph -----------------------------------------------------------------------------------------------------------------


class Canvas:
    """A network to try edits on: its graph on the meta device, where nothing is computed, and who stands where in it.

    Attributes:
        graph: the network; not modified by edits.
        users: for every node, those that read it.
        order: position of every node.
    """

    def __init__(self, graph: Graph) -> None:
        table: dict[Node, Node] = {}
        for node in graph.nodes:
            attrs = {key: _meta(value) for key, value in node.attrs.items()}
            table[node] = replace(node, inputs=[table[operand] for operand in node.inputs], attrs=attrs)
        self.graph = Graph(list(table.values()), [table[node] for node in graph.outputs], graph.output_tree, graph.name)
        self.users = self.graph.users()
        self.order = {node: number for number, node in enumerate(self.graph.nodes)}
        self.modules: dict[str, dict[Node, None]] = {}
        for node in self.graph.nodes:
            if node.op not in {"input", "constant"}:
                for name in dict.fromkeys((node.module, node.name.partition(":")[0])):
                    parts = name.split(".") if name else []
                    for end in range(1, len(parts) + 1):
                        self.modules.setdefault(".".join(parts[:end]), {})[node] = None
        self._regions: dict[str, tuple[Node, Node] | None] = {}

    def inside(self, path: str) -> dict[Node, None]:
        """Nodes that stand in a module, in order."""
        return self.modules.get(path, {})

    def region(self, path: str) -> tuple[Node, Node] | None:
        """The one value that a module reads and the one that it gives, both maps; None if there are others."""
        if path not in self._regions:
            self._regions[path] = self._region(self.inside(path))
        return self._regions[path]

    def _region(self, own: Mapping[Node, None]) -> tuple[Node, Node] | None:
        entries = {operand for node in own for operand in node.inputs if operand not in own and operand.op != "constant"}
        exits = [node for node in own if node in self.graph.outputs or any(user not in own for user in self.users[node])]
        if len(entries) != 1 or len(exits) != 1 or any(len(node.shape or ()) != 4 for node in (*entries, *exits)):
            return None
        return entries.pop(), exits[0]


def _meta(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def edited(canvas: Canvas, edits: Sequence[Edit], resolution: Sequence[int], origin: str = "input") -> tuple[Graph, list[Edit]]:
    """The graph after some edits, for an input of another size.

    Args:
        canvas: the network.
        edits: in any order.
        resolution: size of the input per axis.
        origin: name of the input whose size changes.

    Returns:
        The graph, and the "resize" edits that a cut brought with it.

    Raises:
        ShapeError: maps do not fit together any more, or become empty.
    """
    graph = canvas.graph
    skipped: dict[Node, Node] = {}
    removed: set[Node] = set()
    pools: dict[Node, Edit] = {}
    changes: dict[str, Edit] = {}
    for edit in edits:
        for layer in edit.layers:
            if edit.action in {"cut", "pool"}:
                found = canvas.region(layer)
                if found is None:
                    raise ShapeError(f"edits: {layer!r} does not read one map and give one map")
                if edit.action == "pool":
                    pools[found[1]] = edit
                else:
                    skipped[found[1]] = found[0]
                    removed |= set(canvas.inside(layer))
            elif edit.action == "remove":
                node = next(node for node in graph.nodes if node.name == layer)
                skipped[node] = node.inputs[0]
                removed.add(node)
            else:
                changes[layer] = edit
    builder = _Builder(tuple(resolution), origin, cut=bool(removed))
    for node in graph.nodes:
        if node not in removed:
            builder.add(node, changes.get(node.name))
            if node in pools:
                builder.add_pool(node, pools[node])
        elif node in skipped:
            builder.table[node] = builder.table[skipped[node]]
    alive = _reaching([builder.table[node] for node in graph.outputs])
    nodes = [node for node in builder.nodes if node in alive or node.op == "input"]
    return Graph(nodes, [builder.table[node] for node in graph.outputs], graph.output_tree, graph.name), builder.resized


def _reaching(outputs: Sequence[Node]) -> set[Node]:
    seen: set[Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.inputs)
    return seen


class _Builder:
    """Copies nodes one by one, each with the shape that it has at the new size."""

    def __init__(self, resolution: tuple[int, ...], origin: str, *, cut: bool) -> None:
        self.table: dict[Node, Node] = {}
        self.nodes: list[Node] = []
        self.resized: list[Edit] = []
        self._several: dict[Node, Any] = {}
        self._resolution = resolution
        self._origin = origin
        self._cut = cut

    def add(self, node: Node, edit: Edit | None) -> None:
        """Copy a node behind the copies of its operands."""
        attrs = dict(node.attrs)
        if node.op == "input":
            shape = (*(node.shape or ())[:2], *self._resolution) if node.name == self._origin else node.shape or ()
            self._enter(node, replace(node, shape=shape))
            return
        if node.op == "constant":
            self._enter(node, node)
            return
        inputs = [self.table[operand] for operand in node.inputs]
        if edit is not None:
            attrs |= _changed(attrs, edit)
        fresh = replace(node, inputs=inputs, attrs=attrs)
        if self._cut:
            self._fit(fresh)
        try:
            result = _shape(fresh)
            if result is None:
                value = rule_of(fresh).run(fresh, [self._value(operand) for operand in inputs])
                result = tuple(value.shape) if isinstance(value, Tensor) else None
                if result is None:
                    self._several[fresh] = value
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raise ShapeError(f"edits: {node.name} cannot be run after them: {str(error).partition(chr(10))[0]}") from error
        if result is not None and (0 in result or (node.shape is not None and len(result) != len(node.shape))):
            raise ShapeError(f"edits: {node.name} gets an empty map")
        fresh.shape = result
        self._enter(node, fresh)

    def add_pool(self, node: Node, edit: Edit) -> None:
        """A 2 x 2 max pool behind a node that was added."""
        before = self.table[node]
        n, c, h, w = before.shape or ()
        if min(h, w) < 2:
            raise ShapeError(f"edits: the map behind {edit.layers[0]} is too small for a pool")
        attrs = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1), "ceil_mode": False}
        pool = Node(f"{edit.layers[0]}.pool", "max_pool2d", [before], attrs, (n, c, h // 2, w // 2), before.dtype, edit.layers[0])
        self._enter(node, pool)

    def _enter(self, old: Node, new: Node) -> None:
        self.table[old] = new
        self.nodes.append(new)

    def _value(self, node: Node) -> Any:
        """Something of the shape of a node's value."""
        if node.op == "constant":
            return node.attrs["value"]
        return self._several[node] if node in self._several else torch.empty(node.shape or (), dtype=node.dtype, device="meta")

    def _fit(self, node: Node) -> None:
        """Let a layer behind a cut take the channels that come now."""
        shape = node.inputs[0].shape or ()
        attrs, wanted = node.attrs, 0
        if node.op == "linear" and shape[-1] != attrs["weight"].shape[1]:
            wanted = shape[-1]
            attrs["weight"] = torch.empty(attrs["weight"].shape[0], wanted, device="meta", dtype=attrs["weight"].dtype)
        elif node.op == "conv2d" and attrs["groups"] == 1 and not attrs["transposed"] and shape[1] != attrs["weight"].shape[1]:
            wanted = shape[1]
            out, _, *kernel = attrs["weight"].shape
            attrs["weight"] = torch.empty(out, wanted, *kernel, device="meta", dtype=attrs["weight"].dtype)
        elif node.op == "affine" and shape[1] != attrs["scale"].numel():
            wanted = shape[1]
            attrs |= {key: torch.empty(wanted, device="meta", dtype=attrs[key].dtype) for key in ("scale", "shift")}
        elif call_name(node) == "layer_norm" and list(shape[-1:]) != list(arguments(node)["normalized_shape"]):
            wanted = shape[-1]
            size = torch.empty(wanted, device="meta", dtype=node.dtype)
            attrs["args"] = (attrs["args"][0], [wanted], *attrs["args"][2:])
            for position, operand in enumerate(node.inputs[1:], start=1):
                node.inputs[position] = constant = replace(operand, attrs={"value": size}, shape=(wanted,))
                self.nodes.append(constant)
        if wanted:
            self.resized.append(Edit("resize", (node.name.removesuffix(".layer_norm"),), (wanted,)))


def _shape(node: Node) -> tuple[int, ...] | None:
    """Shape of the result of the common ops, without running them; None for others."""
    first = node.inputs[0].shape
    if first is None:
        return None
    if node.op in {"act", "affine", "scalar", "identity"}:
        return first
    if node.op in {"add", "sub", "mul", "div", "maximum", "minimum"}:
        shapes = [operand.shape for operand in node.inputs]
        return first if all(shape == first for shape in shapes) else tuple(torch.broadcast_shapes(*(shape or () for shape in shapes)))
    if node.op in {"conv2d", "max_pool2d", "avg_pool2d"}:
        ceil = bool(node.attrs.get("ceil_mode", False))
        places = tuple(window.out_size(n, ceil_mode=ceil) for window, n in zip(windows(node), first[2:], strict=True))
        if node.op != "conv2d":
            return (*first[:2], *places)
        weight, groups, transposed = node.attrs["weight"].shape, node.attrs["groups"], node.attrs["transposed"]
        if first[1] != (weight[0] if transposed else weight[1] * groups):
            raise ShapeError(f"expected {weight[1] * groups} channels, got {first[1]}")
        return (first[0], weight[1] * groups if transposed else weight[0], *places)
    return None


def _changed(attrs: Mapping[str, Any], edit: Edit) -> dict[str, Any]:
    if edit.action == "stride":
        return {"stride": edit.value}
    weight = attrs["weight"]
    padding = list(attrs["padding"])
    for axis, (old, new) in enumerate(zip(weight.shape[2:], edit.value, strict=True)):
        less = (old - new) * attrs["dilation"][axis]
        padding[2 * axis] = max(0, padding[2 * axis] - less // 2)
        padding[2 * axis + 1] = max(0, padding[2 * axis + 1] - (less - less // 2))
    size = (*weight.shape[:2], *edit.value)
    return {"weight": torch.empty(size, dtype=weight.dtype, device="meta"), "padding": tuple(padding)}


# -- on the module ----------------------------------------------------------------------------------------------------------------


def apply(model: nn.Module, suggestion: Suggestion) -> nn.Module:
    """A copy of a model with the edits of a suggestion, ready to be trained.

    What it will be worth is a hypothesis until it has been trained. Weights are carried over where shapes allow: a smaller kernel keeps
    the middle of the old one; a layer that takes another number of channels starts anew, by its own initialisation.

    Args:
        model: the one that was analysed; not modified.
        suggestion: from ``report.suggest(...)``.

    Returns:
        A new module of the same class, with the flags, device and element type of the old one.

    Raises:
        CaptureError: the model is no ``nn.Module``, has no such layer, or does not run after the edits.

    Example:
        >>> import sightline as sl
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3))
        >>> best = sl.analyze(net, (1, 3, 64, 64)).suggest(16)[0]
        >>> len(sl.analyze(sl.fields.apply(net, best), (1, 3, 16, 16)).unproductive())
        0
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model: expected the torch.nn.Module that was analysed, got {type(model).__name__}; edit other kinds by hand")
    new = copy.deepcopy(model)
    with torch.no_grad():
        for edit in (*suggestion.edits, *suggestion.consequences):
            for layer in edit.layers:
                _APPLY[edit.action](new, layer, edit.value)
    from sightline.fields.analysis import graph_of

    try:
        graph_of(new, suggestion.input_shape)
    except CaptureError as error:
        raise CaptureError(f"model: it does not run after the edits ({suggestion}); apply them by hand: {error}") from error
    return new


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise CaptureError(f"model: it has no module {path!r}; pass the model that was analysed") from error


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    _module(model, parent)._modules[name] = module.train(_module(model, path).training)


def _set_stride(model: nn.Module, path: str, value: tuple[int, ...]) -> None:
    _module(model, path).stride = value  # type: ignore[assignment]


def _remove(model: nn.Module, path: str, _: tuple[int, ...]) -> None:
    _put(model, path, nn.Identity())


def _add_pool(model: nn.Module, path: str, _: tuple[int, ...]) -> None:
    _put(model, path, nn.Sequential(_module(model, path), nn.MaxPool2d(2)))


def _set_kernel(model: nn.Module, path: str, value: tuple[int, ...]) -> None:
    conv: Any = _module(model, path)
    old, low = tuple(conv.weight.shape[2:]), tuple((was - now) // 2 for was, now in zip(conv.weight.shape[2:], value, strict=True))
    middle = conv.weight[:, :, low[0] : low[0] + value[0], low[1] : low[1] + value[1]]
    conv.weight = nn.Parameter(middle.clone(), requires_grad=conv.weight.requires_grad)
    conv.kernel_size = value
    if not isinstance(conv.padding, str):
        less = [(was - now) * d // 2 for was, now, d in zip(old, value, conv.dilation, strict=True)]
        conv.padding = tuple(max(0, pad - part) for pad, part in zip(conv.padding, less, strict=True))
        conv._reversed_padding_repeated_twice = [pad for pad in reversed(conv.padding) for _ in range(2)]


def _resize(model: nn.Module, path: str, value: tuple[int, ...]) -> None:
    layer: Any = _module(model, path)
    size = value[0]
    some = next(layer.parameters(), None)
    where: dict[str, Any] = {} if some is None else {"device": some.device, "dtype": some.dtype}
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.weight = size, nn.Parameter(torch.empty(layer.out_features, size, **where))
    elif isinstance(layer, nn.Conv2d):
        layer.in_channels, layer.weight = size, nn.Parameter(torch.empty(layer.out_channels, size, *layer.kernel_size, **where))
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (size,)
        _renew_norm(layer, size, where)
    elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
        layer.num_features = size
        _renew_norm(layer, size, where)
        for name, buffer in (("running_mean", torch.zeros), ("running_var", torch.ones)):
            if getattr(layer, name) is not None:
                setattr(layer, name, buffer(size, **where))
    else:
        raise CaptureError(f"model: {path!r} is a {type(layer).__name__}, whose number of channels cannot be changed here")
    if isinstance(layer, nn.Linear | nn.Conv2d):
        layer.reset_parameters()


def _renew_norm(layer: Any, size: int, where: dict[str, Any]) -> None:
    for name, fill in (("weight", torch.ones), ("bias", torch.zeros)):
        if getattr(layer, name) is not None:
            setattr(layer, name, nn.Parameter(fill(size, **where)))


_APPLY: dict[Action, Callable[[nn.Module, str, tuple[int, ...]], None]] = {
    "stride": _set_stride,
    "remove": _remove,
    "cut": _remove,
    "kernel": _set_kernel,
    "pool": _add_pool,
    "resize": _resize,
}
