"""Sizes of all maps at any input size, from one captured graph.

Every node gets a *recipe*, plain data that a page can follow as well as this file can: `size_at` is the reference of the few lines
of JavaScript that do the same.

======================================================================  =====================================================
``{"rule": "input"}``                                                     the input size
``{"rule": "same", "of": i}``                                             as node i
``{"rule": "window", "of": i, "axes": [[k, s, before, after, d, t, o]...], "ceil": bool}``   a window per axis: kernel, stride,
                                                                          padding, dilation, 1 if transposed, output padding
``{"rule": "times", "of": i, "by": [[p, q]...]}``                         n * p / q per axis, rounded down if p >= q, else up
``{"rule": "sum", "of": [i, j, ...], "axis": a}``                         as node i, but along axis a the sum of all
``{"rule": "fixed", "size": [h, w]}``                                     always the same
``{"rule": "share", "by": [[h, H], [w, W]]}``                             round(R * h / H), at least 1: nobody knows better
``{"rule": "none"}``                                                      not a map: its work does not depend on the input size
======================================================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from sightline.errors import ShapeError
from sightline.geometry import Window
from sightline.graph.ir import Graph, Node
from sightline.graph.rules import windows

Recipe = Mapping[str, Any]
Size = tuple[int, ...]


def recipes(graph: Graph, origin: Node) -> list[dict[str, Any]]:
    """One recipe per node of the graph, numbered as in ``graph.nodes``.

    Args:
        graph: the network.
        origin: the input whose size may change.

    Returns:
        Recipes that agree with the captured shapes at the captured size.
    """
    index = {node: number for number, node in enumerate(graph.nodes)}
    table: list[dict[str, Any]] = []
    base = tuple((origin.shape or ())[2:])
    sizes: list[Size | None] = []
    for node in graph.nodes:
        recipe: dict[str, Any] = {"rule": "input"} if node is origin else _recipe(node, origin, index, table)
        size = (node.shape or ())[2:]
        if recipe["rule"] not in {"none", "input"} and _size(recipe, sizes, base, base) != tuple(size):
            recipe = _share(node, base)
        table.append(recipe)
        sizes.append(_size(recipe, sizes, base, base))
    return table


def _recipe(node: Node, origin: Node, index: Mapping[Node, int], table: Sequence[Recipe]) -> dict[str, Any]:
    axes, shape = len(origin.shape or ()) - 2, node.shape or ()
    if len(shape) != axes + 2 or not axes:
        return {"rule": "none"}
    maps = [operand for operand in node.inputs if len(operand.shape or ()) == axes + 2 and table[index[operand]]["rule"] != "none"]
    if not maps:
        return {"rule": "fixed", "size": list(shape[2:])}
    first, size = maps[0], tuple(shape[2:])
    if node.op in {"conv2d", "max_pool2d", "avg_pool2d"}:
        rows = [[w.kernel, w.stride, w.before, w.after, w.dilation, int(w.transposed), w.output_padding] for w in windows(node)]
        return {"rule": "window", "of": index[first], "axes": rows, "ceil": bool(node.attrs.get("ceil_mode", False))}
    if node.op == "pad":
        top, bottom, left, right = node.attrs["padding"]
        return {"rule": "window", "of": index[first], "axes": [[1, 1, top, bottom, 1, 0, 0], [1, 1, left, right, 1, 0, 0]], "ceil": False}
    if node.op in {"global_avg_pool", "adaptive_avg_pool2d", "adaptive_max_pool2d"}:
        return {"rule": "fixed", "size": list(size)}
    if node.op in {"pixel_shuffle", "pixel_unshuffle"}:
        factor = node.attrs["factor"]
        pair = [factor, 1] if node.op == "pixel_shuffle" else [1, factor]
        return {"rule": "times", "of": index[first], "by": [pair, pair]}
    if node.op == "upsample" and node.attrs["scales"] is not None:
        pairs = [Fraction(scale).limit_denominator(4096) for scale in node.attrs["scales"]]
        return {"rule": "times", "of": index[first], "by": [[pair.numerator, pair.denominator] for pair in pairs]}
    if node.op == "cat" and node.attrs["dim"] >= 2 and len(maps) == len(node.inputs):
        return {"rule": "sum", "of": [index[part] for part in maps], "axis": node.attrs["dim"] - 2}
    if node.op == "slice" and node.attrs["dim"] >= 2 and node.attrs["start"] < node.attrs["step"]:
        pairs_of = [[1, 1]] * axes
        pairs_of[node.attrs["dim"] - 2] = [1, node.attrs["step"]]
        return {"rule": "times", "of": index[first], "by": pairs_of}
    for operand in sorted(maps, key=lambda operand: -sum((operand.shape or ())[2:])):
        if tuple((operand.shape or ())[2:]) == size:
            return {"rule": "same", "of": index[operand]}
    return {"rule": "share", "by": [[part, whole] for part, whole in zip(size, (origin.shape or ())[2:], strict=True)]}


def _share(node: Node, base: Size) -> dict[str, Any]:
    return {"rule": "share", "by": [[part, whole] for part, whole in zip((node.shape or ())[2:], base, strict=True)]}


def size_at(table: Sequence[Recipe], resolution: Size, captured: Size) -> list[Size | None]:
    """Map size of every node when the input has another size.

    Args:
        table: from `recipes`.
        resolution: size of the input per axis.
        captured: size that the graph was captured with.

    Returns:
        Per node the size per axis; None where it is not a map. A map that a window larger than itself would leave empty has size 0.
    """
    sizes: list[Size | None] = []
    for recipe in table:
        sizes.append(_size(recipe, sizes, resolution, captured))
    return sizes


def _size(recipe: Recipe, sizes: Sequence[Size | None], resolution: Size, captured: Size) -> Size | None:
    rule = recipe["rule"]
    if rule == "input":
        return resolution
    if rule == "none":
        return None
    if rule == "fixed":
        return tuple(recipe["size"])
    if rule == "share":
        return tuple(max(1, (2 * r * part + whole) // (2 * whole)) for r, (part, whole) in zip(resolution, recipe["by"], strict=True))
    if rule == "sum":
        parts = [sizes[i] or captured for i in recipe["of"]]
        axis = recipe["axis"]
        return tuple(sum(part[axis] for part in parts) if number == axis else n for number, n in enumerate(parts[0]))
    before = sizes[recipe["of"]] or captured
    if rule == "same":
        return before
    if rule == "times":
        return tuple(n * p // q if p >= q else -(-n * p // q) for n, (p, q) in zip(before, recipe["by"], strict=True))
    return tuple(_windowed(n, row, ceil=recipe["ceil"]) for n, row in zip(before, recipe["axes"], strict=True))


def _windowed(n: int, row: Sequence[int], *, ceil: bool) -> int:
    kernel, stride, before, after, dilation, transposed, extra = row
    if n < 1:
        return 0
    try:
        return Window(kernel, stride, (before, after), dilation, bool(transposed), extra).out_size(n, ceil_mode=ceil)
    except ShapeError:
        return 0
