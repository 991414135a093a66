"""Turns stretches of a graph that work on (n, h, w, c) back into maps (n, c, h, w).

ConvNeXt and its kin permute a map, apply layer norm and linear layers to its last axis, and permute back. On a map these are a norm over
channels and convolutions of one pixel, for which there are native steps and footprints; the permutations vanish.
"""

from __future__ import annotations

from typing import Any

import torch

from sightline.graph import onnx_functions as onnx
from sightline.graph.ir import Graph, Node, Operand

_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_PERMUTE = torch.ops.aten.permute.default
_NORM = torch.ops.aten.layer_norm.default
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")


def as_maps(graph: Graph) -> None:
    """Rewrites a graph in place.

    A value (n, h, w, c) that somebody else reads too (a window attention, say) stays, as a permutation of the map.
    """
    twins: dict[Node, Node] = {}  # value (n, h, w, c) -> the map with the same numbers
    same: dict[Node, Node] = {}  # permutation back to a map -> that map
    nodes: list[Node] = []
    for node in graph.nodes:
        node.inputs = [same.get(i, i) for i in node.inputs]
        nodes.append(node)
        if _permutes(node, _TO_LAST) and len(node.inputs[0].shape or ()) == 4 and "own_threshold" not in node.attrs:
            twins[node] = node.inputs[0]
        elif _permutes(node, _TO_FIRST) and node.inputs[0] in twins and "own_threshold" not in node.attrs:
            same[node] = twins[node.inputs[0]]
        else:
            twin = _twin(node, twins)
            if twin is not None:
                nodes.insert(-1, twin)
                twins[node] = twin
                node.name, node.op, node.inputs = f"{twin.name}.channels_last", "torch", [twin]
                node.attrs = {"target": _PERMUTE, "args": (Operand(0), _TO_LAST), "kwargs": {}}
    if not twins:
        return
    graph.outputs = [same.get(node, node) for node in graph.outputs]
    read = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(nodes):
        if node in read or not (node in twins or node in same or node.op == "constant"):
            kept.append(node)
            read.update(node.inputs)
    graph.nodes = kept[::-1]


def _permutes(node: Node, order: list[int]) -> bool:
    return node.op == "torch" and node.attrs["target"] in {_PERMUTE, onnx.permute} and [int(v) % 4 for v in node.attrs["args"][1]] == order


def _twin(node: Node, twins: dict[Node, Node]) -> Node | None:
    """The op on maps that gives the same numbers as this one on (n, h, w, c), if there is one."""
    x = next((i for i in node.inputs if i in twins), None)
    if x is None or node.shape is None or len(node.shape) != 4 or "own_threshold" in node.attrs or node.dtype != x.dtype:
        return None
    found: tuple[str, list[Node], dict[str, Any]] | None = None
    if node.op in {"act", "scalar", "identity"} and node.attrs.get("kind") != "prelu":
        found = node.op, [twins[x]], dict(node.attrs)
    elif node.op == "linear":
        found = "conv2d", [twins[x]], pointwise_convolution(node)
    elif node.op in _BINARY:
        found = _arithmetic(node, x, twins)
    elif x is node.inputs[0]:
        attrs = norm_over_last(node)
        found = None if attrs is None else ("channel_norm", [twins[x]], attrs)
    if found is None:
        return None
    n, h, w, c = node.shape
    return Node(node.name, found[0], found[1], found[2], (n, c, h, w), node.dtype, node.module, node.source)


def pointwise_convolution(node: Node) -> dict[str, Any]:
    """Attributes of the convolution of one pixel that a linear layer on the last axis is."""
    return {
        "weight": node.attrs["weight"][:, :, None, None], "bias": node.attrs.get("bias"), "stride": (1, 1), "padding": (0, 0, 0, 0),
        "dilation": (1, 1), "groups": 1, "padding_mode": "zeros", "transposed": False, "output_padding": (0, 0),
    }  # fmt: skip


def norm_over_last(node: Node) -> dict[str, Any] | None:
    """Attributes of the ``channel_norm`` that a layer norm over the last axis is; None if the node is none."""
    if node.op != "torch" or node.attrs["target"] not in {_NORM, onnx.layer_norm}:
        return None
    arguments = node.attrs["args"]
    assert node.shape is not None
    channels = node.shape[-1]
    if node.attrs["target"] is onnx.layer_norm:
        _, weight, bias, axis, epsilon = arguments
        if axis % len(node.shape) != len(node.shape) - 1:
            return None
    else:
        _, over, weight, bias, epsilon = (*arguments, None, None, None)[:5]
        if list(over) != [channels] or node.attrs["kwargs"]:
            return None
    parameters = []
    for given, default in ((weight, 1.0), (bias, 0.0)):
        value = torch.full((channels,), default) if given is None else given
        if isinstance(given, Operand):
            value = node.inputs[given.index].attrs.get("value")
        if not isinstance(value, torch.Tensor):
            return None
        parameters.append(value)
    return {"scale": parameters[0], "shift": parameters[1], "epsilon": 1e-5 if epsilon is None else float(epsilon)}


def _arithmetic(node: Node, x: Node, twins: dict[Node, Node]) -> tuple[str, list[Node], dict[str, Any]] | None:
    """Of two maps of one size, or of a map and a constant per channel."""
    if all(i in twins and i.shape == node.shape for i in node.inputs):
        return node.op, [twins[i] for i in node.inputs], {}
    other = node.inputs[1] if node.inputs[0] is x else node.inputs[0]
    value = other.attrs.get("value")
    assert node.shape is not None
    if node.op not in {"add", "mul"} or not isinstance(value, torch.Tensor) or x.shape != node.shape:
        return None
    if value.numel() != node.shape[-1] or value.shape[-1] != node.shape[-1]:
        return None
    value = value.reshape(-1)
    plain = torch.ones_like(value) if node.op == "add" else torch.zeros_like(value)
    return "affine", [twins[x]], {"scale": plain, "shift": value} if node.op == "add" else {"scale": value, "shift": plain}
