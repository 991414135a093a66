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

_LAYERS = ("knn_conv", "knn_pool")
_ANYWHERE = ("act", "scalar", "identity")
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
_MEAN = torch.ops.aten.mean.dim
_PERMUTE = torch.ops.aten.permute.default


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
        """Puts the op that does on the map what this one does on the points in front of it, if there is one."""
        found = self._on_map(node)
        if found is None:
            return False
        op, sources, attrs, form = found
        assert node.shape is not None
        assert sources[0].shape is not None
        n, _, _, count = sources[0].shape
        count = node.shape[2] if op in _LAYERS else count
        channels = node.shape[1] if form in _CHANNELS_SECOND else node.shape[-1]
        twin = Node(node.name, op, sources, attrs, (n, channels, 1, count), node.dtype, node.module, node.source)
        self.nodes += [twin, node]
        self.known[node] = twin, form
        node.name = f"{twin.name}.{form.__name__}"
        node.op, node.inputs, node.attrs = "torch", [twin], {"target": form, "args": (Operand(0),), "kwargs": {}}
        return True

    def _on_map(self, node: Node) -> tuple[str, list[Node], dict[str, Any], Form] | None:
        if node.op in _LAYERS:
            return None if len(node.shape or ()) != 3 else (node.op, [self._map_of(node.inputs[0])], node.attrs, points)
        if not node.inputs or node.shape is None or any(i not in self.known for i in node.inputs[:1]):
            return None
        form = self.known[node.inputs[0]][1]
        if node.dtype != node.inputs[0].dtype or (node.op != "torch" and any(i.op == "constant" for i in node.inputs)):
            return None
        sources = [self.known[i][0] for i in node.inputs if i in self.known and self.known[i][1] is form]
        if node.op in _ANYWHERE and (node.attrs.get("kind") != "prelu" or form in _CHANNELS_SECOND):
            return node.op, sources, node.attrs, form
        if node.op == "affine" and form in _CHANNELS_SECOND:
            return node.op, sources, node.attrs, form
        if node.op in _BINARY and len(sources) == 2 and all(i.shape == node.shape and i.dtype == node.dtype for i in node.inputs):
            return node.op, sources, node.attrs, form
        if node.op in {"cat", "slice"} and form is points and node.attrs["dim"] == 1 and len(sources) == len(node.inputs):
            return node.op, sources, node.attrs, form
        if node.op == "linear" and form is nodes_first:
            return "conv2d", sources, pointwise_convolution(node), form
        attrs = norm_over_last(node) if form is nodes_first else None
        return None if attrs is None else ("channel_norm", sources, attrs, form)

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
