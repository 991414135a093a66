"""Checking fields on whole maps: for networks whose channels carry places (shuffled pixels, tokens, windows of attention).

The graph is run in float64 at the size that it was captured with, every operation as a positive stand-in. Operations that only move
elements run as they are. A layer behind an operation without a stand-in is not checked.

What belongs here: stand-ins on whole tensors. What does not: strips and the report of it all (`verify.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.fields.layer import LayerField
from sightline.fields.opaque import MOVES, POINTWISE, arguments, call_name, dims_of
from sightline.graph.ir import Node
from sightline.graph.rules import rule_of

if TYPE_CHECKING:
    from sightline.fields.report import Report
    from sightline.fields.verify import Check

Stand = Callable[[Node, list[Any]], Any]


class _NoStandInError(Exception):
    """An operation without a positive stand-in."""


def check_maps(report: Report, layers: Sequence[LayerField]) -> dict[str, Check]:
    """Compare the unit in the middle of every layer with its gradient.

    Args:
        report: of the network.
        layers: which to check.

    Returns:
        One check per layer.
    """
    from sightline.fields.verify import Check, clipped_box

    values, reasons, x = _run(report)
    nodes = {node.name: node for node in report.graph.nodes}
    result = {}
    for layer in layers:
        value = values.get(nodes[layer.name])
        if layer.status in {"unknown", "bounded"} or not isinstance(value, Tensor) or not value.requires_grad:
            reason = reasons.get(nodes[layer.name], f"its field is {layer.status}" if layer.status != "exact" else "it depends on nothing")
            result[layer.name] = Check(layer.name, "unchecked", reason=reason)
            continue
        tries = []
        for unit, part in _middles(value, layer):
            found = _spans(part, x)
            said = list(clipped_box(layer, unit, report.resolution))
            for number, axis in enumerate(layer.axes):
                if axis.status == "global":
                    said[number] = found[number] if _most(found[number], report.resolution[number]) else (0, report.resolution[number])
            tries.append(Check(layer.name, "agrees" if tuple(said) == found else "differs", tuple(said), found, "on whole maps"))
        best = next((check for check in tries if check.outcome == "agrees"), tries[0] if tries else None)
        result[layer.name] = best or Check(layer.name, "unchecked", reason="neither a map nor a row of tokens")
    return result


def _most(span: tuple[float, float], size: int) -> bool:
    """Nearly all of an axis: strides on the way may leave cells at its end that this unit does not read."""
    return span[1] - span[0] > 0.75 * size


def _middles(value: Tensor, layer: LayerField) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """The unit in the middle, with its elements: of a map, of one with channels last, of tokens; whichever the sizes allow."""
    axes = len(layer.axes)
    counts = tuple(axis.count if axis.units is not None else None for axis in layer.axes)
    if value.dim() == axes + 2:
        for places, first in ((value.shape[2:], 2), (value.shape[1:-1], 1)):
            if all(count in {None, size} for count, size in zip(counts, places, strict=True)):
                unit = tuple(size // 2 for size in places)
                yield unit, value[0].movedim(0, -1)[unit] if first == 2 else value[0][unit]
    elif None not in counts and value.dim() == 3 and value.shape[1] == math.prod(axis.count for axis in layer.axes):
        unit = tuple(axis.count // 2 for axis in layer.axes)
        place = 0
        for axis, position in zip(layer.axes, unit, strict=True):
            place = place * axis.count + position
        yield unit, value[0, place]
    elif all(axis.status == "global" for axis in layer.axes):
        yield (0,) * axes, value[(0,) * (value.dim() - 1)]


def _spans(part: Tensor, x: Tensor) -> tuple[tuple[float, float], ...]:
    (gradient,) = torch.autograd.grad(part.sum(), x, retain_graph=True)
    spans: list[tuple[float, float]] = []
    for axis in range(2, x.dim()):
        cells = gradient.abs().sum([dim for dim in range(x.dim()) if dim != axis]).nonzero()
        spans.append((int(cells[0]), int(cells[-1]) + 1) if len(cells) else (0, 0))
    return tuple(spans)


def _run(report: Report) -> tuple[dict[Node, Any], dict[Node, str], Tensor]:
    x = torch.ones(report.input_shape, dtype=torch.float64, requires_grad=True)
    from sightline.fields.verify import gates

    left_out = gates(report)
    values: dict[Node, Any] = {}
    reasons: dict[Node, str] = {}
    for node in report.graph.nodes:
        if node is report.origin:
            values[node] = x
        elif node.op == "input":
            values[node] = torch.ones(node.shape or (), dtype=torch.float64)
        elif node.op == "constant":
            values[node] = node.attrs["value"]
        else:
            behind = next((reasons[operand] for operand in node.inputs if operand in reasons), "")
            try:
                if behind:
                    raise _NoStandInError(behind)  # noqa: TRY301 - one way out for both
                inputs = [values[operand] for operand in node.inputs]
                if node in left_out:
                    inputs[left_out[node]] = torch.zeros_like(inputs[left_out[node]]).detach()
                values[node] = _value(node, inputs, ignore_gates=report.ignore_gates)
            except _NoStandInError as error:
                reasons[node] = str(error)
            except (RuntimeError, TypeError, KeyError, IndexError) as error:
                reasons[node] = f"{node.name} could not be run ({type(error).__name__})"
    return values, reasons, x


def _value(node: Node, inputs: list[Any], *, ignore_gates: bool) -> Any:
    name = call_name(node) if node.op in {"torch", "item"} else node.op
    if not any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
        return _constant(node)
    if name in {"group_norm", "native_group_norm", "instance_norm"} and ignore_gates:
        return inputs[0]
    stand = _STANDS.get(name)
    if stand is not None:
        return stand(node, inputs)
    if name in POINTWISE or (node.op == "torch" and torch.Tag.pointwise in getattr(node.attrs["target"], "tags", ())):
        return _sum(node, inputs)
    if name in MOVES or node.op in {"slice", "pad", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "flatten", "cat"}:
        return rule_of(node).run(node, inputs)
    raise _NoStandInError(f"{node.name}: {name} has no positive stand-in")


def _constant(node: Node) -> Tensor:
    if node.shape is None:
        raise _NoStandInError(f"{node.name}: several results")
    return torch.ones(node.shape, dtype=torch.float64)


def _sum(_: Node, inputs: list[Any]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for value in inputs:
        if isinstance(value, Tensor):
            total = total + (value if value.requires_grad else torch.zeros(value.shape, dtype=torch.float64))
    return total


def _first(_: Node, inputs: list[Any]) -> Any:
    return inputs[0]


def _plain_conv(node: Node, inputs: list[Any]) -> Any:
    """Convolutions without a canonical op, with equal weights."""
    x, weight, *bias = inputs
    if weight.requires_grad:
        raise _NoStandInError(f"{node.name}: weights that depend on the input")
    ones = torch.full(weight.shape, 1 / weight[0].numel(), dtype=torch.float64)
    return rule_of(node).run(node, [x, ones, *(torch.zeros(b.shape, dtype=torch.float64) for b in bias)])


def _conv(node: Node, inputs: list[Any]) -> Any:
    """Every group from the mean of its channels, weights equal."""
    if node.op == "torch":
        return _plain_conv(node, inputs)
    x, groups = inputs[0], node.attrs["groups"]
    n, c, h, w = x.shape
    folded = x.reshape(n, groups, c // groups, h, w).mean(2)
    weight = torch.ones(groups, 1, *node.attrs["weight"].shape[2:], dtype=x.dtype)
    plain = Node(node.name, "conv2d", attrs=node.attrs | {"weight": weight / weight[0].numel(), "bias": None})
    y = rule_of(node).run(plain, [folded])
    out = (node.shape or ())[1] // groups
    return torch.as_tensor(y).repeat_interleave(out, 1)


def _pool(node: Node, inputs: list[Any]) -> Any:
    if node.op == "avg_pool2d":
        return rule_of(node).run(node, inputs)
    attrs = node.attrs | {"weight": torch.ones(inputs[0].shape[1], 1, *node.attrs["kernel"], dtype=torch.float64), "bias": None}
    top, bottom, left, right = node.attrs["padding"]
    if node.attrs["ceil_mode"]:
        (_, _, h, w), (kh, kw), (sh, sw), (dh, dw) = node.shape or (), node.attrs["kernel"], node.attrs["stride"], node.attrs["dilation"]
        bottom = max(bottom, (h - 1) * sh + dh * (kh - 1) + 1 - inputs[0].shape[2] - top)
        right = max(right, (w - 1) * sw + dw * (kw - 1) + 1 - inputs[0].shape[3] - left)
    padded = F.pad(inputs[0], (left, right, top, bottom))
    y = F.conv2d(padded, attrs["weight"], None, attrs["stride"], 0, attrs["dilation"], inputs[0].shape[1])
    return y[:, :, : (node.shape or ())[2], : (node.shape or ())[3]]


def _upsample(node: Node, inputs: list[Any]) -> Any:
    mode = "bilinear" if node.attrs["mode"] == "bicubic" else node.attrs["mode"]
    if mode != node.attrs["mode"]:
        raise _NoStandInError(f"{node.name}: bicubic weights are not positive")
    return rule_of(node).run(node, inputs)


def _adaptive(node: Node, inputs: list[Any]) -> Tensor:
    return F.adaptive_avg_pool2d(inputs[0], node.attrs["output_size"])


def _global(node: Node, inputs: list[Any]) -> Any:
    return rule_of(node).run(node, inputs)


def _linear(node: Node, inputs: list[Any]) -> Tensor:
    size = (node.shape or ())[-1]
    return inputs[0].mean(-1, keepdim=True).expand(*inputs[0].shape[:-1], size)  # type: ignore[no-any-return]


def _softmax(node: Node, inputs: list[Any]) -> Tensor:
    dim = node.attrs["dim"] if node.op == "softmax" else arguments(node).get("dim", -1)
    return inputs[0].mean(dim, keepdim=True).expand_as(inputs[0])  # type: ignore[no-any-return]


def _layer_norm(node: Node, inputs: list[Any]) -> Tensor:
    given = arguments(node)
    rank = inputs[0].dim()
    first = given["axis"] % rank if "axis" in given else rank - len(given["normalized_shape"])
    return inputs[0] + inputs[0].mean(list(range(first, rank)), keepdim=True)  # type: ignore[no-any-return]


def _group_norm(_: Node, inputs: list[Any]) -> Tensor:
    return inputs[0] + inputs[0].mean(list(range(1, inputs[0].dim())), keepdim=True)  # type: ignore[no-any-return]


def _reduce(node: Node, inputs: list[Any]) -> Tensor:
    given = arguments(node)
    x: Tensor = inputs[0]
    if node.shape is None:
        raise _NoStandInError(f"{node.name}: several results")
    dims = dims_of(next((given[key] for key in ("dim", "axes", "axis") if key in given), None), x.dim())
    return x.mean(dims, keepdim=len(node.shape) == x.dim())


def _product(a: Tensor, b: Tensor) -> Tensor:
    ones_a, ones_b = (torch.ones(value.shape, dtype=torch.float64) for value in (a, b))
    parts = [torch.matmul(a, ones_b)] if a.requires_grad else []
    parts += [torch.matmul(ones_a, b)] if b.requires_grad else []
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _matmul(_: Node, inputs: list[Any]) -> Tensor:
    return _product(inputs[0], inputs[-1])


def _addmm(node: Node, inputs: list[Any]) -> Tensor:
    return _sum(node, [inputs[0], _product(inputs[1], inputs[2])])


def _einsum(node: Node, inputs: list[Any]) -> Tensor:
    equation = str(arguments(node)["equation"])
    ones = [torch.ones(value.shape, dtype=torch.float64) for value in inputs]
    own = [number for number, value in enumerate(inputs) if value.requires_grad]
    parts = [torch.einsum(equation, [*ones[:number], inputs[number], *ones[number + 1 :]]) for number in own]
    return _sum(node, parts)


def _attention(node: Node, inputs: list[Any]) -> Tensor:
    query, key, value = inputs[:3]
    return _product(_sum(node, [_product(query, key.transpose(-1, -2)), *inputs[3:]]), value)


_STANDS: dict[str, Stand] = {
    "conv2d": _conv,
    **dict.fromkeys(("max_pool2d", "avg_pool2d"), _pool),
    **dict.fromkeys(("affine", "act", "scalar", "identity"), _first),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), _sum),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive),
    "global_avg_pool": _global,
    "upsample": _upsample,
    "linear": _linear,
    **dict.fromkeys(("softmax", "_softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("group_norm", "instance_norm"), _group_norm),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "std", "var", "linalg_vector_norm", "norm", "logsumexp"), _reduce),
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("conv1d", "conv3d", "conv_transpose1d", "conv_transpose3d", "convolution"), _plain_conv),
}
