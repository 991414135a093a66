"""Turns values on sensor points, (n, c, N), into maps (n, c, 1, N) of one row.

A layer of k nearest neighbours reads some points of its input for each point of its output. On a map of one row that is a window along
the columns whose taps are the layer's own table, so everything that maps have holds for points too: footprints, sites, thresholds,
native steps. What lies between such layers and works on each point for itself follows them; where another op reads or makes
the points, they are regrouped, which costs nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sightline.graph.aten_base import RESHAPE
from sightline.graph.ir import Graph, Node, Operand

_LAYERS = ("knn_conv", "knn_pool")
_ALONE = ("act", "scalar", "affine", "identity")
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
_MEAN = torch.ops.aten.mean.dim


def as_maps(graph: Graph) -> None:
    """Rewrites a graph in place; one without such layers stays as it is."""
    if any(node.op in _LAYERS and len(node.shape or ()) == 3 for node in graph.nodes):
        _Rewriting(graph).run()


class _Rewriting:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.twins: dict[Node, Node] = {}  # value (n, c, N) -> the map (n, c, 1, N) with the same numbers
        self.same: dict[Node, Node] = {}  # a map that was regrouped from points -> the map that they are now
        self.nodes: list[Node] = []

    def run(self) -> None:
        for node in self.graph.nodes:
            node.inputs = [self.same.get(i, i) for i in node.inputs]
            self._rewrite(node)
        self.graph.outputs = [self.same.get(node, node) for node in self.graph.outputs]
        read = set(self.graph.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if node in read or not (node in self.twins or node in self.same):
                kept.append(node)
                read.update(node.inputs)
        self.graph.nodes = kept[::-1]

    def _rewrite(self, node: Node) -> None:
        known = self.twins.get(node.inputs[0]) if node.inputs else None
        shape, own = node.shape or (), "own_threshold" in node.attrs
        if known is not None and not own and _regroups(node):
            assert known.shape is not None
            if shape == known.shape:
                self.same[node] = known
            elif len(shape) == 2 and shape == (known.shape[0], math.prod(known.shape[1:])):
                node.op, node.inputs, node.attrs = "flatten", [known], {}
        elif known is not None and not own and _averages(node):
            node.op, node.inputs = "global_avg_pool", [known]
            node.attrs = {"keepdim": False}
        elif not own and self._follows(node):
            self._lift(node)
            return
        self.nodes.append(node)

    def _follows(self, node: Node) -> bool:
        """Whether the node does on the map of one row what it does on the points."""
        if len(node.shape or ()) != 3 or not node.inputs:
            return False
        known = [i in self.twins for i in node.inputs]
        if node.op in _LAYERS:
            return True
        if node.op in _ALONE:
            return all(known)
        if node.op in _BINARY:
            return any(known) and all(i.op != "constant" and i.shape == node.shape and i.dtype == node.dtype for i in node.inputs)
        if node.op in {"cat", "slice"}:
            return any(known) and node.attrs["dim"] == 1 and all(i.op != "constant" for i in node.inputs)
        return False

    def _lift(self, node: Node) -> None:
        sources = [self._map_of(i) for i in node.inputs]
        assert node.shape is not None
        n, c, points = node.shape
        twin = Node(node.name, node.op, sources, node.attrs, (n, c, 1, points), node.dtype, node.module, node.source)
        self.nodes += [twin, node]
        self.twins[node] = twin
        node.name = f"{twin.name}.points"
        node.op, node.inputs, node.attrs = "torch", [twin], _regrouping(node.shape)

    def _map_of(self, node: Node) -> Node:
        """The map with the numbers of some points."""
        if node in self.twins:
            return self.twins[node]
        assert node.shape is not None
        n, c, points = node.shape
        shape = (n, c, 1, points)
        twin = node.inputs[0] if _regroups(node) else None
        if twin is None or twin.shape != shape:
            twin = Node(f"{node.name}.map", "torch", [node], _regrouping(shape), shape, node.dtype, node.module, node.source)
            self.nodes.append(twin)
        self.twins[node] = twin
        return twin


def _regrouping(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"target": RESHAPE, "args": (Operand(0), list(shape)), "kwargs": {}}


def _regroups(node: Node) -> bool:
    return node.op == "torch" and node.attrs["target"] is RESHAPE


def _averages(node: Node) -> bool:
    """A mean over all points, which leaves a vector."""
    if node.op != "torch" or node.attrs["target"] is not _MEAN or len(node.shape or ()) != 2:
        return False
    dims = node.attrs["args"][1]
    return [int(dim) % 3 for dim in dims] == [2] and node.dtype == node.inputs[0].dtype
