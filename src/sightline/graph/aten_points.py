"""From calls of our own operators on sensor points (k nearest neighbours) to canonical ops; the third part of the table.

A sensor is a set of N points in no grid; a value on it is (n, c, N). Its layers are operators of this project, one call per layer, with
their tables as constants. See `aten.py` for how such a function looks, and `points.py` for what becomes of these values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.graph.aten_base import Call, Emitter, Value, aten
from sightline.graph.ir import Node

OPERATORS = frozenset(f"sightline::knn_{name}" for name in ("conv", "depthwise", "max_pool", "sum_pool"))
"""Qualified names of the operators outside ATen that have canonical ops."""


def _table(value: Value) -> Tensor | None:
    """A constant table of integers (points, k)."""
    if not isinstance(value, Tensor) or value.dim() != 2 or value.is_floating_point():
        return None
    return value.to(torch.int32)


@aten("knn_conv")
def _knn_conv(e: Emitter, call: Call) -> Value:
    x, weight, bias = call["x"], call["weight"], call.get("bias")
    index, cell = _table(call["index"]), _table(call["cell"])
    if not isinstance(x, Node) or index is None or cell is None or not isinstance(weight, Tensor):
        return None
    if bias is not None and not isinstance(bias, Tensor):
        return None
    return e.emit("knn_conv", [x], call.result, weight=weight, bias=bias, index=index, cell=cell)


@aten("knn_depthwise")
def _knn_depthwise(e: Emitter, call: Call) -> Value:
    x, weight, index, cell = call["x"], call["weight"], _table(call["index"]), _table(call["cell"])
    if not isinstance(x, Node) or index is None or cell is None or not isinstance(weight, Tensor):
        return None
    return e.emit("knn_depthwise", [x], call.result, weight=weight, index=index, cell=cell)


@aten("knn_max_pool", "knn_sum_pool")
def _knn_pool(e: Emitter, call: Call) -> Value:
    x, index, weight = call["x"], _table(call["index"]), call.get("weights")
    if not isinstance(x, Node) or index is None or (weight is not None and not isinstance(weight, Tensor)):
        return None
    mode = "max" if call.name == "knn_max_pool" else "avg" if call["mean"] else "sum"
    return e.emit("knn_pool", [x], call.result, index=index, mode=mode, weight=weight)
