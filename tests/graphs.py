"""What the tests of captured graphs share: models from functions, running a graph, the tolerance law."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sightline.graph.capture import capture
from sightline.graph.ir import Graph, Node
from sightline.graph.rules import reference

FLOOR = 2e-6  # of the largest output, for float32: a few roundings beside what PyTorch itself has


def flat(output: Any) -> list[Tensor]:
    """Tensors of a model's output, in order."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def rebuilt(graph: Graph, x: Tensor) -> Any:
    """What the model returns, from the graph."""
    outputs = reference(graph, x)
    return outputs[0] if graph.output_tree is None else pytree.tree_unflatten(outputs, graph.output_tree)


def assert_agrees(model: nn.Module, graph: Graph, x: Tensor) -> None:
    """The tolerance law: the graph's error against float64 is at most twice that of the model itself, plus a floor."""
    exact = copy.deepcopy(model).eval().double()
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        wanted, plain, got = flat(exact(x.double())), flat(model(x.clone())), reference(graph, x)
    assert len(wanted) == len(got)
    for exact_y, plain_y, y in zip(wanted, plain, got, strict=True):
        assert y.shape == exact_y.shape
        assert y.dtype == plain_y.dtype
        scale = float(exact_y.abs().max()) if exact_y.numel() else 0.0
        allowed = 2 * (plain_y - exact_y).abs().max() + FLOOR * scale
        assert (y - exact_y).abs().max() <= allowed


def only(graph: Graph, op: str) -> Node:
    """The one node of that op."""
    (node,) = [node for node in graph if node.op == op]
    return node


def ops(graph: Graph) -> list[str]:
    """Ops in order, with the frame left out."""
    return [node.op for node in graph if node.op != "input"]


class Function(nn.Module):
    """A model from a function of the frame."""

    def __init__(self, function: Callable[[Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def captured(function: Callable[[Tensor], Any], shape: tuple[int, ...] = (2, 4, 8, 6)) -> Graph:
    """Capture a function and check the graph on other values than it was captured with."""
    model = Function(function)
    graph = capture(model, torch.randn(shape))
    assert_agrees(model, graph, torch.randn(shape))
    return graph
