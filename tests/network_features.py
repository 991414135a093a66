"""What a network exercises, as words: which native steps, in which variants, on which geometry.

What belongs here: naming the features of a lowered plan, and the list of those that random networks must show. What does not: drawing
networks (networks.py) and running them (random_cases.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sightline.graph import lower as lowering
from sightline.graph.blocks import is_depthwise
from sightline.graph.ir import Node
from sightline.graph.lower import Lowered
from sightline.graph.plan import Step

_BINARY = set(lowering._BINARY)


def features(lowered: Lowered) -> set[str]:
    """Everything that one lowered plan exercises."""
    found = set(_of_graph(lowered))
    for step in lowered.plan.steps:
        if step in lowered.reasons:
            found.add("torch step")
            continue
        found.add(step.head.op)
        found.update(_of_step(lowered, step))
    return found


def wanted() -> set[str]:
    """What the generator must draw: every step that the lowering can emit, every activation and binary op, and the variants below."""
    emitted = {name.removeprefix("_emit_") for name in vars(lowering._Lowering) if name.startswith("_emit_")} - {"binary"}
    emitted -= {"knn_conv", "knn_depthwise", "knn_pool"}  # on sensor points, not maps: networks of test_points.py
    acts = {f"act {kind}" for kind in lowering._ACTS if kind != "none"}
    return emitted | acts | _BINARY | {"input", "constant"} | _VARIANTS


_VARIANTS = {
    "batch", "odd channels", "one row", "one column", "several outputs", "branch", "module called twice", "torch step",
    "between torch steps", "residual", "residual after act", "residual and act", "act alone",
    "conv 1x1", "conv stride", "conv stride remainder", "conv kernel larger than map", "conv dilation", "conv groups", "conv narrow groups",
    "depthwise", "depthwise stride", "depthwise dilation", "conv no bias", "conv uneven kernel", "conv merged rows", "conv deep",
    "conv padding zeros", "conv padding reflect", "conv padding replicate", "conv padding circular",
    "block", "block before", "block after",
    "transposed", "transposed groups", "transposed dilation", "transposed output padding", "transposed kernel smaller than stride",
    "pool ceil", "pool stride remainder", "max_pool2d dilation", "avg_pool2d counts padding", "avg_pool2d divisor",
    "adaptive uneven", "adaptive larger",
    "upsample nearest", "upsample bilinear", "upsample bicubic", "upsample bilinear corners", "upsample bicubic corners",
    "upsample smaller", "upsample uneven",
    "cat 1", "cat 2", "cat 3", "cat part twice", "cat in place", "cat copied", "cat of cat",
    "slice channels", "slice channels step", "slice rows", "slice rows step", "slice columns",
    "pad constant", "pad reflect", "pad replicate", "pad circular", "pad value",
    "pixel_shuffle 2", "pixel_shuffle 3", "pixel_unshuffle 2", "pixel_unshuffle 3",
    "binary gate", "binary constant", "binary constant per channel", "binary constant map",
    "mean keepdim", "mean vector", "linear of vector", "linear of map", "act on vector", "affine vector", "affine map",
}  # fmt: skip


def _of_graph(lowered: Lowered) -> Iterator[str]:
    graph = lowered.plan.graph
    n, _, h, w = graph.input.shape  # type: ignore[misc]
    if n > 1:
        yield "batch"
    if w == 1:
        yield "one column"
    if h == 1:
        yield "one row"
    if len(graph.outputs) > 1:
        yield "several outputs"
    if any(len(users) > 1 for users in graph.users().values()):
        yield "branch"
    if any(node.name.endswith(":2") and node.module for node in graph.nodes):
        yield "module called twice"
    if sum(segment.torch_step is None for segment in lowered.segments) > 1:
        yield "between torch steps"
    if any(view[2][3] % 4 for view in lowered.views.values()):
        yield "odd channels"


def _of_block(lowered: Lowered, step: Step) -> Iterator[str]:
    parts = [part for part in lowered.plan.steps if part.inside is step]
    if len(parts) == 2:
        yield "block"
    elif parts:
        yield "block after" if is_depthwise(parts[0]) else "block before"


def _of_step(lowered: Lowered, step: Step) -> Iterator[str]:
    node, kind = step.head, step.head.op
    yield from _of_block(lowered, step)
    vector = len(node.shape or ()) == 2
    if step.act is not None:
        yield f"act {step.act.attrs['kind']}"
        if step.head is step.act:
            yield "act alone"
            if vector:
                yield "act on vector"
    if step.residual is not None:
        yield "residual after act" if step.residual_after_act else "residual"
        if step.act is not None:
            yield "residual and act"
    if kind == "affine":
        yield "affine vector" if vector else "affine map"
    if kind in _BINARY:
        yield from _of_binary(node)
    yield from {
        "conv2d": _of_conv, "max_pool2d": _of_pool, "avg_pool2d": _of_pool, "adaptive_avg_pool2d": _of_adaptive,
        "adaptive_max_pool2d": _of_adaptive, "upsample": _of_upsample, "slice": _of_slice, "pad": _of_pad,
    }.get(kind, lambda _: ())(node)  # fmt: skip
    if kind == "cat":
        yield from _of_cat(lowered, node)
    elif kind == "global_avg_pool":
        yield "mean keepdim" if len(node.shape or ()) == 4 else "mean vector"
    elif kind == "linear":
        yield "linear of map" if node.inputs[0] in lowered.flat else "linear of vector"
    elif kind in {"pixel_shuffle", "pixel_unshuffle"}:
        yield f"{kind} {node.attrs['factor']}"


def _geometry(node: Node) -> Iterator[tuple[int, int, int, int]]:
    """Per axis: (size with padding, reach of the kernel, stride, dilation)."""
    a: dict[str, Any] = node.attrs
    size = node.inputs[0].shape[2:]  # type: ignore[index]
    kernel = a["weight"].shape[2:] if "weight" in a else a["kernel"]
    for axis in (0, 1):
        dilation = a["dilation"][axis] if "dilation" in a else 1
        padded = size[axis] + a["padding"][2 * axis] + a["padding"][2 * axis + 1]
        yield padded, (kernel[axis] - 1) * dilation + 1, a["stride"][axis], dilation


def _of_conv(node: Node) -> Iterator[str]:
    a = node.attrs
    groups, weight = a["groups"], a["weight"]
    cin, size = node.inputs[0].shape[1], node.inputs[0].shape[2:]  # type: ignore[index]
    axes = list(_geometry(node))
    if a.get("transposed"):
        yield "transposed"
        if 1 < groups:
            yield "transposed groups"
        if max(a["dilation"]) > 1:
            yield "transposed dilation"
        if any(a["output_padding"]):
            yield "transposed output padding"
        if any(k < s for k, s in zip(weight.shape[2:], a["stride"], strict=True)):
            yield "transposed kernel smaller than stride"
        return
    cout, _, kh, kw = weight.shape
    depthwise = groups == cin == cout and groups > 1
    name = "depthwise" if depthwise else "conv"
    if depthwise:
        yield "depthwise"
    elif kh == kw == 1:
        yield "conv 1x1"
    elif kw > 1 and a["dilation"][1] == 1 and cin <= 64:
        yield "conv merged rows"
    if max(a["stride"]) > 1:
        yield f"{name} stride"
    if max(a["dilation"]) > 1:
        yield f"{name} dilation"
    if any((padded - reach) % stride for padded, reach, stride, _ in axes):
        yield "conv stride remainder"
    if any(reach > have for (_, reach, _, _), have in zip(axes, size, strict=True)):
        yield "conv kernel larger than map"
    if groups > 1 and not depthwise:
        yield "conv groups"
        if cout // groups < 4:
            yield "conv narrow groups"
    if a.get("bias") is None:
        yield "conv no bias"
    if kh != kw:
        yield "conv uneven kernel"
    if weight[0].numel() > 512:
        yield "conv deep"
    yield f"conv padding {a.get('padding_mode', 'zeros')}"


def _of_pool(node: Node) -> Iterator[str]:
    if node.attrs.get("ceil_mode"):
        yield "pool ceil"
    if any((padded - reach) % stride for padded, reach, stride, _ in _geometry(node)):
        yield "pool stride remainder"
    if node.op == "max_pool2d" and max(node.attrs["dilation"]) > 1:
        yield "max_pool2d dilation"
    if node.attrs.get("count_include_pad") and any(node.attrs["padding"]):
        yield "avg_pool2d counts padding"
    if node.attrs.get("divisor_override"):
        yield "avg_pool2d divisor"


def _of_adaptive(node: Node) -> Iterator[str]:
    pairs = list(zip(node.inputs[0].shape[2:], node.shape[2:], strict=True))  # type: ignore[index]
    if any(have % want for have, want in pairs):
        yield "adaptive uneven"
    if any(have < want for have, want in pairs):
        yield "adaptive larger"


def _of_upsample(node: Node) -> Iterator[str]:
    mode = node.attrs["mode"]
    yield f"upsample {mode}"
    if node.attrs.get("align_corners"):
        yield f"upsample {mode} corners"
    pairs = list(zip(node.inputs[0].shape[2:], node.shape[2:], strict=True))  # type: ignore[index]
    if any(have > want for have, want in pairs):
        yield "upsample smaller"
    if any(want % have for have, want in pairs):
        yield "upsample uneven"


def _of_slice(node: Node) -> Iterator[str]:
    step, dim = node.attrs.get("step", 1), node.attrs["dim"]
    what = {1: "channels", 2: "rows", 3: "columns"}.get(dim, "batch")
    yield f"slice {what} step" if step != 1 else f"slice {what}"


def _of_pad(node: Node) -> Iterator[str]:
    yield f"pad {node.attrs['mode']}"
    if node.attrs.get("value"):
        yield "pad value"


def _of_binary(node: Node) -> Iterator[str]:
    shapes = [tuple(operand.shape or ()) for operand in node.inputs]
    if any(len(shape) == 4 and shape[2:] == (1, 1) and other[2:] != (1, 1) for shape, other in (shapes, shapes[::-1])):
        yield "binary gate"
    for operand in node.inputs:
        if operand.op == "constant":
            yield "binary constant"
            shape = tuple(operand.shape or ())
            if len(shape) >= 3 and shape[-3] > 1 and shape[-2:] == (1, 1):
                yield "binary constant per channel"
            if len(shape) >= 2 and shape[-2] > 1 and shape[-1] > 1:
                yield "binary constant map"


def _of_cat(lowered: Lowered, node: Node) -> Iterator[str]:
    yield f"cat {node.attrs['dim']}"
    if len(set(node.inputs)) < len(node.inputs):
        yield "cat part twice"
    if node.attrs["dim"] != 1:
        return
    storage = lowered.views[lowered.tensors[node]][0]
    for part in node.inputs:
        yield "cat in place" if lowered.views[lowered.tensors[part]][0] == storage else "cat copied"
        if part.op == "cat":
            yield "cat of cat"
