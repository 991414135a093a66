"""From ATen calls to canonical ops, second part: cutting, joining, padding, regrouping, and calls that change nothing.

See `aten.py` for how such a function looks. What does not belong here: arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sightline.graph.aten_base import RESHAPE, Call, Emitter, Value, aten
from sightline.graph.ir import Node, Operand


@aten("cat", "concat", "concatenate")
def _cat(e: Emitter, call: Call) -> Value:
    parts, result = [part for part in call[0] if tuple(part.shape or ()) != (0,)], call.result
    if any(len(part.shape) != result.dim() or part.dtype != result.dtype for part in parts):
        return None
    if len(parts) == 1:
        return parts[0]
    return e.emit("cat", [e.operand(part) for part in parts], result, dim=int(call["dim"]) % result.dim())


def slice_node(e: Emitter, x: Node, dim: int, start: int, stop: int, step: int, like: Any) -> Node:
    """``x[start:stop:step]`` on axis `dim`, bounds already inside the axis; `x` itself if that is all of it."""
    assert x.shape is not None
    if (start, step) == (0, 1) and stop >= x.shape[dim]:
        return x
    return e.emit("slice", [x], like, dim=dim, start=start, stop=stop, step=step)


@aten("slice", "narrow")
def _slice(e: Emitter, call: Call) -> Value:
    x = call[0]
    if not isinstance(x, Node) or x.shape is None or isinstance(call.get("start"), (Node, Tensor)):
        return None
    dim = int(call["dim"]) % len(x.shape)
    end = call.get("end")
    if call.name == "narrow":
        end = (call["start"] + x.shape[dim] if call["start"] < 0 else call["start"]) + call["length"]
    start, stop, step = slice(call.get("start"), end, call.get("step", 1)).indices(x.shape[dim])
    return slice_node(e, x, dim, start, max(start, stop), step, call.result)


@aten("select")
def _select(e: Emitter, call: Call) -> Value:
    x = call[0]
    if not isinstance(x, Node) or x.shape is None or not isinstance(call["index"], int):
        return None
    dim = int(call["dim"]) % len(x.shape)
    return _part(e, x, dim, call["index"] % x.shape[dim], call.result)


def _part(e: Emitter, x: Node, dim: int, index: int, result: Tensor) -> Node:
    """One index of an axis, as a slice of length 1 that is then regrouped (which a later unsqueeze undoes)."""
    assert x.shape is not None
    row = slice_node(e, x, dim, index, index + 1, 1, result.unsqueeze(dim))
    return e.emit("torch", [row], result, target=RESHAPE, args=(Operand(0), list(result.shape)), kwargs={})


@aten("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "unbind")
def _split(e: Emitter, call: Call) -> Value:
    x = call[0]
    if not isinstance(x, Node) or x.shape is None or isinstance(call[1], (Node, Tensor)):
        return None
    dim, start, parts = int(call["dim"]) % len(x.shape), 0, []
    for index, part in enumerate(call.result):
        if call.name == "unbind":
            parts.append(_part(e, x, dim, index, part))
            continue
        stop = start + int(part.shape[dim])
        parts.append(slice_node(e, x, dim, start, stop, 1, part))
        start = stop
    return parts


@aten("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def _pad(e: Emitter, call: Call) -> Value:
    x, amounts = call.map(), [int(amount) for amount in call.get("pad", call.get("padding"))]
    mode = {"reflection_pad2d": "reflect", "replication_pad2d": "replicate"}.get(call.name, call.get("mode", "constant"))
    amounts += [0] * (8 - len(amounts))
    if x is None or any(amounts[4:]) or min(amounts) < 0:
        return None
    if not any(amounts):
        return x
    left, right, top, bottom = amounts[:4]
    value = float(call.get("value", 0.0))
    return e.emit("pad", [x], call.result, padding=(top, bottom, left, right), mode=mode, value=value)


@aten("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(e: Emitter, call: Call) -> Value:
    x = call.map()
    return None if x is None else e.emit("channel_shuffle", [x], call.result, groups=int(call["groups"]))


@aten("pixel_shuffle", "pixel_unshuffle")
def _pixel_shuffle(e: Emitter, call: Call) -> Value:
    x = call.map()
    return None if x is None else e.emit(call.name, [x], call.result, factor=int(call[1]))


def _target(node: Node) -> Any:
    return node.attrs["target"] if node.op == "torch" else None


def _shuffled(base: Node, shape: tuple[int, ...]) -> tuple[Node, int] | None:
    """The map and the groups, if `base` regrouped to `shape` is a channel shuffle written as view, transpose, view."""
    if _target(base) is torch.ops.aten.transpose.int:
        first, second = (int(dim) % 5 for dim in base.attrs["args"][1:3])
        swapped = {first, second} == {1, 2}
    elif _target(base) is torch.ops.aten.permute.default:
        swapped = [int(dim) % 5 for dim in base.attrs["args"][1]] == [0, 2, 1, 3, 4]
    else:
        return None
    grouped = base.inputs[0]
    if not swapped or _target(grouped) is not RESHAPE or grouped.shape is None or len(grouped.shape) != 5:
        return None
    x = grouped.inputs[0]
    n, groups, per_group, *size = grouped.shape
    return (x, groups) if x.shape == shape == (n, groups * per_group, *size) else None


@aten("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel")
def _reshape(e: Emitter, call: Call) -> Value:
    base = call[0]
    if not isinstance(base, Node) or base.dtype != call.result.dtype:
        return None
    shape = tuple(int(size) for size in call.result.shape)
    while base.op == "flatten" or _target(base) is RESHAPE:
        base = base.inputs[0]
    source = base.shape or ()
    if source == shape:
        return base
    if len(source) == 4 and shape == (source[0], math.prod(source[1:])):
        return e.emit("flatten", [base], call.result)
    shuffled = _shuffled(base, shape)
    if shuffled is not None:
        return e.emit("channel_shuffle", [shuffled[0]], call.result, groups=shuffled[1])
    return e.emit("torch", [base], call.result, target=RESHAPE, args=(Operand(0), list(shape)), kwargs={})


# -- calls that change nothing ------------------------------------------------------------------------------------------

DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")


def is_idle_dropout(name: str, values: dict[str, Value]) -> bool:
    """Whether the call is a dropout that is switched off, which returns its operand itself."""
    return name in DROPOUTS and (values.get("train") is False or values.get("p") == 0)


@aten(*DROPOUTS)
def _dropout(_: Emitter, call: Call) -> Value:
    if not is_idle_dropout(call.name, call.values):
        return None
    return [call[0], None] if isinstance(call.result, (list, tuple)) else call[0]


@aten("alias", "detach", "contiguous", "clone", "lift_fresh", "lift_fresh_copy", "to", "_to_copy", "type_as", "positive")
@aten("expand", "expand_as", "broadcast_to", "resolve_conj", "resolve_neg", "cpu", "cuda", "float", "half", "double", "bfloat16")
def _identity(e: Emitter, call: Call) -> Value:
    x, result = call[0], call.result
    if x.dtype == result.dtype and tuple(x.shape) == tuple(result.shape):
        return x
    if call.name in {"expand", "expand_as", "broadcast_to"}:
        return e.torch(torch.ops.aten.expand.default, (x, list(result.shape)), {}, result)
    return None


@aten("copy")
def _copy(_: Emitter, call: Call) -> Value:
    source = call[1]
    if source.dtype != call.result.dtype or tuple(source.shape) != tuple(call.result.shape):
        return None
    return source.clone() if isinstance(source, Tensor) else source  # a later in-place call must not reach the source
