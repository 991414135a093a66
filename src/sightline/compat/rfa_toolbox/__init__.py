"""The names of rfa_toolbox 1.7.0 on top of Sightline: change the import line, keep the rest.

    from sightline.compat.rfa_toolbox import create_graph_from_pytorch_model, visualize_architecture

Numbers are those of that library's rules, where its importer works: dilation, padding and upsampling do not exist for it, gates are
left out. Differences, all for the better: models are left as they were (the original rewrites batch norm statistics), loops,
functional calls, dict outputs and modern Python work, Keras 3 is read, every node is named after its module. The original's
README gives (75, 75) as the smallest resolution of ResNet-50; its version 1.7.0, and this module, give (96, 96).
``sightline.analyze`` answers the same questions with right numbers for any operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sightline.compat.rfa_toolbox.drawing import Drawing, visualize_architecture
from sightline.compat.rfa_toolbox.graphs import (
    KNOWN_FILTER_MAPPING,
    EnrichedNetworkNode,
    LayerDefinition,
    ReceptiveFieldInfo,
    RFFilter,
    obtain_all_critical_layers,
    obtain_all_nodes,
    obtain_border_layers,
)
from sightline.fields.analysis import graph_of, op_name
from sightline.fields.diagnosis import seed_range
from sightline.fields.seed_rules import kernel_and_stride, without_gate
from sightline.graph.ir import Graph, Node

__all__ = [
    "KNOWN_FILTER_MAPPING",
    "Drawing",
    "EnrichedNetworkNode",
    "LayerDefinition",
    "ReceptiveFieldInfo",
    "create_graph_from_pytorch_model",
    "create_graph_from_tensorflow_model",
    "input_resolution_range",
    "obtain_all_critical_layers",
    "obtain_all_nodes",
    "obtain_border_layers",
    "visualize_architecture",
]


def create_graph_from_pytorch_model(
    model: Any,
    filter_rf: RFFilter | str | None = None,
    input_res: Sequence[int] = (1, 3, 399, 399),
    custom_layers: Sequence[str] | None = None,
    display_se_modules: bool = False,
) -> EnrichedNetworkNode:
    """A network as a graph of nodes.

    Args:
        model: an ``nn.Module``; captured in eval mode and left as it was.
        filter_rf: thins out the fields of all paths: a function, "inf", or None.
        input_res: (n, c, h, w) to capture it with.
        custom_layers: without effect: nothing has to be hidden from the importer here.
        display_se_modules: keep the nodes of squeeze-excite gates in the graph (they never count).

    Returns:
        The node of the first output; its ``all_layers`` are the network.

    Raises:
        CaptureError: the model cannot be captured, for instance because it takes another size than `input_res`.
        ValueError: an unknown name of a filter.
    """
    del custom_layers
    return _convert(graph_of(model, tuple(input_res)), filter_rf, gates=display_se_modules)


def create_graph_from_tensorflow_model(model: Any, filter_rf: RFFilter | str | None = None) -> EnrichedNetworkNode:
    """A Keras 3 model, functional or sequential, as a graph of nodes.

    Args:
        model: built.
        filter_rf: see `create_graph_from_pytorch_model`.

    Returns:
        The node of its first output.

    Raises:
        CaptureError: a subclassed model, or one with several inputs.
    """
    return _convert(graph_of(model), filter_rf, gates=False)


def input_resolution_range(
    graph: EnrichedNetworkNode,
    filter_all_inf_rf: bool = True,
    filter_kernel_size_1: bool = False,
    cardinality: int = 2,
    lower_bound: bool = False,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Smallest and largest input size that let the network use all of its layers.

    Args:
        graph: the output of a network.
        filter_all_inf_rf: judge layers by their own smallest fields, where finite; else by those of their predecessors.
        filter_kernel_size_1: leave out layers with a kernel of 1 (the original raises an error).
        cardinality: number of axes in the result.
        lower_bound: only layers with a kernel above 1, by what their predecessors see (the original mixes up axes here).

    Returns:
        (smallest, largest), each per axis.

    Raises:
        ShapeError: no layer has a finite field.

    Example:
        >>> conv = EnrichedNetworkNode("conv", LayerDefinition("Conv", 3, 1), [])
        >>> input_resolution_range(EnrichedNetworkNode("conv2", LayerDefinition("Conv", 5, 1), [conv]))
        ((7, 7), (7, 7))
    """
    nodes = [node.seed for node in graph.all_layers]
    smallest, largest = seed_range(
        nodes, filter_all_inf_rf=filter_all_inf_rf, filter_kernel_size_1=filter_kernel_size_1, lower_bound=lower_bound
    )
    return smallest[:cardinality], largest[:cardinality]


def _convert(graph: Graph, filter_rf: RFFilter | str | None, *, gates: bool) -> EnrichedNetworkNode:
    if not callable(filter_rf) and filter_rf not in KNOWN_FILTER_MAPPING:
        raise ValueError(f"filter_rf: expected a function, 'inf' or None, got {filter_rf!r}")
    chosen = filter_rf if callable(filter_rf) else KNOWN_FILTER_MAPPING[filter_rf]
    table: dict[Node, EnrichedNetworkNode] = {}
    for node in graph.nodes:
        if node.op == "constant":
            continue
        before = [operand for operand in node.inputs if operand in table]
        if not before and node.op != "input":
            continue
        kept = without_gate(node, before, lambda operand: table[operand].paths)
        left_out = [table[operand] for operand in before if operand not in kept] if gates else []
        predecessors = [table[operand] for operand in kept]
        table[node] = EnrichedNetworkNode(node.name, _layer(node), predecessors, chosen, left_out)
    return table[graph.outputs[0]]


def _layer(node: Node) -> LayerDefinition:
    kernel, stride = kernel_and_stride(node)
    label = op_name(node)
    if node.op == "conv2d":
        label = f"Conv2d {int(kernel[0])}x{int(kernel[1])}"
    sizes = None if kernel[0] == float("inf") else tuple(int(k) for k in kernel)
    filters = int((node.shape or (0, 0))[1]) if node.op == "conv2d" else None
    units = int((node.shape or (0,))[-1]) if node.op == "linear" else None
    return LayerDefinition(label, sizes, stride, filters, units)
