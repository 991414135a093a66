"""The recursion of rfa_toolbox 1.7.0 on a captured graph, to compare with.

It knows kernels and strides of convolutions and pools, and global operations; dilation, padding, transposed convolution and
upsampling do not exist for it, and squeeze-excite gates are left out. `sightline.fields.propagate` is right where this is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sightline.fields.diagnosis import SeedNode
from sightline.graph.ir import Graph, Node

Paths = tuple[frozenset[tuple[float, int]], ...]
_GLOBAL = frozenset({"global_avg_pool", "adaptive_avg_pool2d", "adaptive_max_pool2d", "flatten"})


def kernel_and_stride(node: Node) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Kernel, inf for a global operation, and stride of a node, per axis."""
    if node.op == "conv2d":
        return tuple(float(size) for size in node.attrs["weight"].shape[2:]), tuple(node.attrs["stride"])
    if node.op in {"max_pool2d", "avg_pool2d"}:
        return tuple(float(size) for size in node.attrs["kernel"]), tuple(node.attrs["stride"])
    return ((math.inf, math.inf), (1, 1)) if node.op in _GLOBAL else ((1.0, 1.0), (1, 1))


def behind(before: Sequence[Paths], kernel: Sequence[float], stride: Sequence[int]) -> Paths:
    """Paths behind one layer."""
    result = []
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True)):
        joint = frozenset().union(*(paths[axis] for paths in before))
        result.append(frozenset({(math.inf, 1)}) if k == math.inf else frozenset((size + (k - 1) * m, m * s) for size, m in joint))
    return tuple(_bounds(axis) for axis in result)


def _bounds(paths: frozenset[tuple[float, int]]) -> frozenset[tuple[float, int]]:
    """Only the smallest and largest size per product of strides matter for what is asked."""
    kept = set()
    for scale in {m for _, m in paths}:
        sizes = [size for size, m in paths if m == scale]
        kept |= {(min(sizes), scale), (max(sizes), scale)}
    return frozenset(kept)


def without_gate(node: Node, operands: Sequence[Node], paths_of: Callable[[Node], Paths]) -> list[Node]:
    """Operands of a node, of a product only those that do not see everything: the rest are gates."""
    if node.op not in {"mul", "div"} or len(operands) != 2:
        return list(operands)
    finite = [operand for operand in operands if any(size != math.inf for axis in paths_of(operand) for size, _ in axis)]
    return finite or list(operands)


def seed_nodes(graph: Graph) -> list[SeedNode]:
    """Every node as that library counts it."""
    table: dict[Node, Paths] = {}
    nodes = []
    for node in graph.nodes:
        if node.op == "constant" or len(node.inputs) == 0:
            if node.op == "input":
                table[node] = (frozenset({(1.0, 1)}),) * 2
            continue
        known = [operand for operand in node.inputs if operand in table]
        before = [table[operand] for operand in without_gate(node, known, table.__getitem__)]
        if not before:
            continue
        kernel, stride = kernel_and_stride(node)
        table[node] = behind(before, kernel, stride)
        nodes.append(SeedNode(node.name, table[node], tuple(before), kernel))
    return nodes
