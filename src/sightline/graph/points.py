"""Turns values on sensor points, (n, c, N), into maps (n, c, 1, N) of one row.

A layer of k nearest neighbours reads some points of its input for each point of its output. On a map of one row that is a window along
the columns whose taps are the layer's own table, so everything that maps have holds for points too: footprints, sites, thresholds,
native steps. What lies between such layers and works on each point for itself follows them, in whichever order of axes it does so; where
another op reads or makes the points, they are regrouped, which costs little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sightline.graph.aten_base import RESHAPE
from sightline.graph.channels_last import norm_over_last, pointwise_convolution
from sightline.graph.ir import Graph, Node, Operand

_LAYERS = ("knn_conv", "knn_depthwise", "knn_pool")
_ANYWHERE = ("act", "scalar", "identity")
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
_MEAN = torch.ops.aten.mean.dim
_PERMUTE = torch.ops.aten.permute.default
_VECTOR_NORM = torch.ops.aten.linalg_vector_norm.default


def points(x: Tensor) -> Tensor:
    """(n, c, N) of a map of one row."""
    return x[:, :, 0]


def nodes_first(x: Tensor) -> Tensor:
    """(N, n, c) of a map of one row."""
    return x[:, :, 0].permute(2, 0, 1)


def pixels_last(x: Tensor) -> Tensor:
    """(1, N * n, 1, c) of a map of one row."""
    return nodes_first(x).reshape(1, -1, 1, x.shape[1])


def pixels(x: Tensor) -> Tensor:
    """(1, c, N * n, 1) of a map of one row."""
    return pixels_last(x).permute(0, 3, 1, 2)


Form = Callable[[Tensor], Tensor]
_CHANNELS_SECOND = (points, pixels)
_PERMUTATIONS: dict[tuple[Form, tuple[int, ...]], Form] = {
    (points, (2, 0, 1)): nodes_first,
    (nodes_first, (1, 2, 0)): points,
    (pixels_last, (0, 3, 1, 2)): pixels,
    (pixels, (0, 2, 3, 1)): pixels_last,
}


def as_maps(graph: Graph) -> None:
    """Rewrites a graph in place; one without such layers stays as it is."""
    if any(node.op in _LAYERS and len(node.shape or ()) == 3 for node in graph.nodes):
        _Rewriting(graph).run()


class _Rewriting:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.known: dict[Node, tuple[Node, Form]] = {}  # value -> the map with the same numbers, and how they are ordered in the value
        self.same: dict[Node, Node] = {}  # a map that was regrouped from points -> the map that they are now
        self.nodes: list[Node] = []

    def run(self) -> None:
        for node in self.graph.nodes:
            node.inputs = [self.same.get(i, i) for i in node.inputs]
            if "own_threshold" in node.attrs or not (self._renames(node) or self._follows(node)):
                self.nodes.append(node)
        self.graph.outputs = [self.same.get(node, node) for node in self.graph.outputs]
        read = set(self.graph.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if node in read or node.op == "input":
                kept.append(node)
                read.update(node.inputs)
        self.graph.nodes = kept[::-1]

    # -- ops that move no value from point to point ---------------------------------------------------------------------------

    def _renames(self, node: Node) -> bool:
        """Notes what is only ordered otherwise, and rewrites what gathers the points of a map."""
        source = self.known.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if source is None:
            return False
        twin, form = source
        assert twin.shape is not None
        n, c, _, count = twin.shape
        shape, target = node.shape or (), node.attrs.get("target")
        if target is _PERMUTE:
            order = tuple(int(axis) % len(shape) for axis in node.attrs["args"][1])
            if (form, order) in _PERMUTATIONS:
                self.known[node] = twin, _PERMUTATIONS[form, order]
        elif target is RESHAPE and form is nodes_first and shape == (1, count * n, 1, c):
            self.known[node] = twin, pixels_last
        elif target is RESHAPE and form is pixels_last and shape == (count, n, c):
            self.known[node] = twin, nodes_first
        elif target is RESHAPE and form is points and shape == twin.shape:
            self.same[node] = twin
        elif target is RESHAPE and form is points and shape == (n, math.prod(twin.shape[1:])):
            node.op, node.inputs, node.attrs = "flatten", [twin], {}
        elif target is _MEAN and form is points and shape == (n, c) and [int(axis) % 3 for axis in node.attrs["args"][1]] == [2]:
            node.op, node.inputs, node.attrs = "global_avg_pool", [twin], {"keepdim": False}
        else:
            return False
        self.nodes.append(node)
        return True

    # -- ops on each point for itself -----------------------------------------------------------------------------------------

    def _follows(self, node: Node) -> bool:
        """Puts the ops that do on the map what this one does on the points in front of it, if there are such."""
        found = self._gathered(node) or self._on_map(node)
        if found is None:
            return False
        chain, form = found
        last = chain[-1]
        last.name = node.name
        self.nodes += [*chain, node]
        self.known[node] = last, form
        node.name = f"{node.name}.{form.__name__}"
        node.op, node.inputs, node.attrs = "torch", [last], {"target": form, "args": (Operand(0),), "kwargs": {}}
        return True

    @staticmethod
    def _twin(node: Node, op: str, sources: list[Node], attrs: dict[str, Any], shape: tuple[int, ...]) -> Node:
        return Node(f"{node.name}.{op}", op, sources, attrs, shape, node.dtype, node.module, node.source)

    def _on_map(self, node: Node) -> tuple[list[Node], Form] | None:
        shape = node.shape or ()
        if node.op in _LAYERS:
            if len(shape) != 3:
                return None
            n, c, count = shape
            return [self._twin(node, node.op, [self._map_of(node.inputs[0])], node.attrs, (n, c, 1, count))], points
        source = next((self.known[i] for i in node.inputs if i in self.known), None)
        if source is None or source[0].shape is None or node.dtype != source[0].dtype:
            return None
        form = source[1]
        op, sources, attrs = self._same_place(node, form)
        if not op:
            return None
        if form in {points, nodes_first}:
            n, c, count = shape if form is points else (shape[1], shape[2], shape[0])
        else:
            (n, _, _, count), c = source[0].shape, shape[1] if form is pixels else shape[3]
        return [self._twin(node, op, sources, attrs, (n, c, 1, count))], form

    def _same_place(self, node: Node, form: Form) -> tuple[str, list[Node], dict[str, Any]]:
        """(op, its operands, attributes) on the map; "" where there is none."""
        sources = [self.known[i][0] for i in node.inputs if i in self.known and self.known[i][1] is form]
        all_known, first_known = len(sources) == len(node.inputs), node.inputs[0] in self.known
        if node.op in _ANYWHERE and (node.attrs.get("kind") != "prelu" or form in _CHANNELS_SECOND):
            return node.op, sources, node.attrs
        if node.op == "affine" and form in _CHANNELS_SECOND:
            return node.op, sources, node.attrs
        if node.op in {"cat", "slice"} and form is points and node.attrs["dim"] == 1 and all_known:
            return node.op, sources, node.attrs
        if node.op in _BINARY:
            return self._arithmetic(node, form, all_known)
        if node.op == "linear" and form is nodes_first:
            return "conv2d", sources, pointwise_convolution(node)
        attrs = norm_over_last(node) if form is nodes_first and first_known else None
        return ("", [], {}) if attrs is None else ("channel_norm", sources, attrs)

    def _arithmetic(self, node: Node, form: Form, all_known: bool) -> tuple[str, list[Node], dict[str, Any]]:
        """Of two values on points, one of which may be a constant, or broadcast along points or channels."""
        if any(i.dtype != node.dtype for i in node.inputs):
            return "", [], {}
        if form not in {points, nodes_first}:
            same = all_known and all(i.shape == node.shape for i in node.inputs)
            return (node.op, [self.known[i][0] for i in node.inputs], {}) if same else ("", [], {})
        sources = [self.known[i][0] if i in self.known and self.known[i][1] is form else self._constant(i, form) for i in node.inputs]
        other = next((s for s in sources if s is not None and s.op == "constant"), None)
        if None in sources or other is None:
            return ("", [], {}) if None in sources else (node.op, [s for s in sources if s is not None], {})
        value = other.attrs["value"]
        x = next(s for s in sources if s is not None and s is not other)
        channels = (x.shape or (0, 0))[1]
        if value.shape[3] == 1 and node.op in {"add", "mul"} and (x.shape or ())[1:] == self._map_size(node, form)[1:]:
            value = value.reshape(-1).expand(channels).contiguous()
            plain = torch.ones_like(value) if node.op == "add" else torch.zeros_like(value)
            scale, shift = (plain, value) if node.op == "add" else (value, plain)
            return "affine", [x], {"scale": scale, "shift": shift}
        self.nodes.append(other)
        return node.op, [s for s in sources if s is not None], {}

    @staticmethod
    def _map_size(node: Node, form: Form) -> tuple[int, ...]:
        a, b, c = node.shape or (0, 0, 0)
        return (a, b, 1, c) if form is points else (b, c, 1, a)

    @staticmethod
    def _constant(node: Node, form: Form) -> Node | None:
        """A constant that is the same for all batch elements, as it lies on the map."""
        value = node.attrs.get("value") if node.op == "constant" else None
        if not isinstance(value, Tensor) or value.dim() > 3:
            return None
        value = value.reshape((1,) * (3 - value.dim()) + tuple(value.shape))
        value = value[:, :, None] if form is points else value.permute(1, 2, 0)[:, :, None]
        if value.shape[0] != 1:
            return None
        return Node(f"{node.name}.map", "constant", [], {"value": value}, tuple(value.shape), node.dtype, node.module, node.source)

    # -- ops over all points, or all channels ----------------------------------------------------------------------------------

    def _gathered(self, node: Node) -> tuple[list[Node], Form] | None:
        """The root of the sum of squares over all points, and the mean over channels, which global response normalization takes."""
        source = self.known.get(node.inputs[0]) if len(node.inputs) == 1 and node.op == "torch" else None
        if source is None or source[1] is not nodes_first or node.attrs["kwargs"]:
            return None
        x, target, args = source[0], node.attrs["target"], node.attrs["args"]
        assert x.shape is not None
        n, c, _, count = x.shape
        if target is _VECTOR_NORM and tuple(node.shape or ()) == (1, n, c) and args[1] == 2 and list(args[2]) == [0]:
            square = self._twin(node, "mul", [x, x], {}, x.shape)
            mean = self._twin(node, "global_avg_pool", [square], {"keepdim": True}, (n, c, 1, 1))
            total = self._twin(node, "scalar", [mean], {"kind": "mul", "value": float(count)}, (n, c, 1, 1))
            return [square, mean, total, self._twin(node, "act", [total], {"kind": "sqrt", "params": ()}, (n, c, 1, 1))], nodes_first
        if target is _MEAN and tuple(node.shape or ()) == (count, n, 1) and [int(axis) % 3 for axis in args[1]] == [2]:
            weight = torch.full((1, c, 1, 1), 1.0 / c, dtype=node.dtype)
            attrs = {
                "weight": weight, "bias": None, "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1,
                "padding_mode": "zeros", "transposed": False, "output_padding": (0, 0),
            }  # fmt: skip
            return [self._twin(node, "conv2d", [x], attrs, (n, 1, 1, count))], nodes_first
        return None

    def _map_of(self, node: Node) -> Node:
        """The map with the numbers of some points."""
        if node not in self.known or self.known[node][1] is not points:
            assert node.shape is not None
            n, c, count = node.shape
            shape = (n, c, 1, count)
            regrouped = node.op == "torch" and node.attrs["target"] is RESHAPE and node.inputs[0].shape == shape
            twin = node.inputs[0] if regrouped else None
            if twin is None:
                attrs = {"target": RESHAPE, "args": (Operand(0), list(shape)), "kwargs": {}}
                twin = Node(f"{node.name}.map", "torch", [node], attrs, shape, node.dtype, node.module, node.source)
                self.nodes.append(twin)
            self.known[node] = twin, points
        return self.known[node][0]
