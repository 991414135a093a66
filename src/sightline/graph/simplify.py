"""Rewrites a captured graph into an equal one with fewer, larger ops: batch norm folded, x * sigmoid(x) named.

Only rewrites that hold for every executor live here. What is fused into one step is decided in `plan.py`.
"""

from __future__ import annotations

import torch

from sightline.graph import channels_last, points
from sightline.graph.ir import Graph, Node


def simplify(graph: Graph) -> Graph:
    """Returns an equal graph; the given one is not modified.

    Folded: an `affine` behind a `conv2d`, `knn_conv` or `linear` that nobody else reads, `scalar` arithmetic into `affine`,
    x * sigmoid(x) into silu, x * hardsigmoid(x) into hardswish; stretches on (n, h, w, c), and values on sensor points, become maps.
    Weights are folded in float64 and rounded once.
    """
    copies: dict[Node, Node] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        copy = Node(
            node.name, node.op, [copies[i] for i in node.inputs], dict(node.attrs), node.shape, node.dtype, node.module, node.source
        )
        copies[node] = copy
        nodes.append(copy)
    result = Graph(nodes, [copies[n] for n in graph.outputs], graph.output_tree, graph.name)
    points.as_maps(result)
    channels_last.as_maps(result)
    _name_gates(result)
    _scalars_to_affine(result)
    _fold_affine(result)
    return result


def _replace(graph: Graph, old: Node, new: Node) -> None:
    """Lets every reader of `old` read `new`, and drops `old`."""
    for node in graph.nodes:
        if node is not new:
            node.inputs = [new if i is old else i for i in node.inputs]
    graph.outputs = [new if n is old else n for n in graph.outputs]
    graph.nodes.remove(old)


def _has_own_threshold(*nodes: Node) -> bool:
    return any("own_threshold" in node.attrs for node in nodes)


def _name_gates(graph: Graph) -> None:
    """x * sigmoid(x) -> silu, x * hardsigmoid(x) -> hardswish."""
    names = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
    for node in list(graph.nodes):
        if node.op != "mul" or len(node.inputs) != 2 or _has_own_threshold(node, *node.inputs):
            continue
        for gate, x in (node.inputs, node.inputs[::-1]):
            kind = names.get(gate.attrs.get("kind", "")) if gate.op == "act" else None
            if kind and gate.inputs[0] is x and gate not in graph.outputs and len(graph.users()[gate]) == 1:
                node.op, node.inputs, node.attrs = "act", [x], {"kind": kind, "params": ()}
                graph.nodes.remove(gate)
                break


def _scalars_to_affine(graph: Graph) -> None:
    """x + 3, x * 2, 1 - x and their like become one op, on maps and vectors of floats."""
    for node in graph.nodes:
        if (
            node.op != "scalar"
            or _has_own_threshold(node)
            or node.shape is None
            or len(node.shape) not in {2, 4}
            or node.dtype is None
            or not node.dtype.is_floating_point
        ):
            continue
        value = float(node.attrs["value"])
        table = {"add": (1.0, value), "sub": (1.0, -value), "rsub": (-1.0, value), "mul": (value, 0.0)}
        if node.attrs["kind"] == "div" and value != 0:
            table["div"] = (1.0 / value, 0.0)
        pair = table.get(node.attrs["kind"])
        if pair is not None:
            channels = node.shape[1]
            node.op = "affine"
            # at least float32: half precision would round the scalar, which torch does not
            wide = torch.promote_types(node.dtype, torch.float32)
            node.attrs = {"scale": torch.full((channels,), pair[0], dtype=wide), "shift": torch.full((channels,), pair[1], dtype=wide)}


def _fold_affine(graph: Graph) -> None:
    """Moves an affine into the convolution or linear layer before it."""
    for node in list(graph.nodes):
        if node.op != "affine":
            continue
        before = node.inputs[0]
        if before in graph.outputs or _has_own_threshold(node, before) or len(graph.users()[before]) != 1:
            continue
        if before.op == "knn_conv" and bool((before.attrs["index"] < 0).all(1).any()):
            continue  # a point that reads none is 0 before the affine, bias or not
        if before.op in {"conv2d", "knn_conv"} or (before.op == "linear" and before.shape is not None and len(before.shape) == 2):
            weight, bias = before.attrs["weight"], before.attrs.get("bias")
            scale, shift = (node.attrs[key].to(device=weight.device, dtype=torch.float64) for key in ("scale", "shift"))
            folded = weight.detach().to(torch.float64)
            if before.op == "conv2d" and before.attrs.get("transposed"):
                groups = before.attrs["groups"]
                per_group = folded.shape[1]
                folded = folded.reshape(groups, -1, *folded.shape[1:]) * scale.reshape(groups, 1, per_group, 1, 1)
                folded = folded.reshape(weight.shape)
            else:
                folded = folded * scale.reshape(-1, *[1] * (folded.dim() - 1))
            offset = shift if bias is None else bias.detach().to(torch.float64) * scale + shift
            wide = torch.promote_types(weight.dtype, torch.float32)  # rounded to half precision by whoever computes in it, not before
            before.attrs = {**before.attrs, "weight": folded.to(wide), "bias": offset.to(wide)}
            _replace(graph, node, before)
