"""What ONNX's structural ops mean: shapes, reshaping, selecting, joining, padding, resizing, constants, control flow.

What belongs here: one handler per op that moves, selects or makes elements without computing on them, and Resize. What does not:
ops that compute (`onnx_layers.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sightline.graph import onnx_functions as fn
from sightline.graph.onnx_builder import Block, Const, Site, Value, View, handles, shape_of
from sightline.graph.onnx_layout import name_order

# ONNX's numbers of element types. Every float becomes float32, every integer that torch does not compute with becomes int64.
DTYPES = {
    1: torch.float32, 10: torch.float32, 11: torch.float32, 16: torch.float32,
    2: torch.uint8, 3: torch.int8, 4: torch.int64, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    12: torch.int64, 13: torch.int64,
}  # fmt: skip

_LONGEST = 1 << 20  # elements on one axis; more comes from damaged files only, and would fill the memory

# -- constants and shapes -----------------------------------------------------------------------------------------------------


@handles("Constant")
def _constant(s: Site) -> Value:
    kinds = {
        "value": None,
        "value_float": torch.float32,
        "value_floats": torch.float32,
        "value_int": torch.int64,
        "value_ints": torch.int64,
    }
    name, value = next(iter(s.call.attrs.items()), ("", None))
    if name not in kinds or value is None:
        s.fail(f"holds a constant of a kind that is not supported ({name or 'none at all'})")
    return Const(value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=kinds[name]), s.call.name)


@handles("ConstantOfShape")
def _constant_of_shape(s: Site) -> Value:
    shape = s.known(0, "shape").tolist()
    if math.prod(shape) > _LONGEST << 8:
        raise ValueError(f"it asks for a constant of the shape {tuple(shape)}")
    value = s.attr("value", torch.zeros(1))
    return Const(value.reshape(()).expand(shape).contiguous(), s.call.name)


@handles("Shape")
def _shape(s: Site) -> Value:
    shape = shape_of(s.value(0))
    start, end = s.attr("start", 0), s.attr("end")
    return Const(torch.tensor(shape[start:end], dtype=torch.int64), s.call.name)


@handles("Size")
def _size(s: Site) -> Value:
    return Const(torch.tensor(math.prod(shape_of(s.value(0)))), s.call.name)


@handles("Range")
def _range(s: Site) -> Value:
    start, stop, step = (s.known(i, "limits") for i in range(3))
    if abs(stop - start) > abs(step) * _LONGEST:
        raise ValueError(f"it asks for the numbers from {start.item()} to {stop.item()} in steps of {step.item()}")
    return Const(torch.arange(start.item(), stop.item(), step.item(), dtype=start.dtype), s.call.name)


@handles("NonZero")
def _non_zero(s: Site) -> Value:
    return Const(s.known(0, "positions").nonzero().t().contiguous(), s.call.name)


@handles("Cast", "CastLike")
def _cast(s: Site) -> Value:
    value = s.value(0)
    if s.op == "Cast":
        dtype = DTYPES.get(int(s.attr("to")))
        if dtype is None:
            s.fail(f"casts to ONNX's element type number {s.attr('to')}, which is not supported")
    else:
        like = s.value(1)
        dtype = like.tensor.dtype if isinstance(like, Const) else s.builder.node(like).dtype
    have = value.tensor.dtype if isinstance(value, Const) else (value.source if isinstance(value, View) else value).dtype
    return value if have == dtype else s.apply(fn.cast, value, dtype)


@handles("Identity", "Dropout")
def _identity(s: Site) -> Value:
    return s.value(0)


@handles("If")
def _if(s: Site) -> list[Value]:
    taken = s.attr("then_branch" if bool(s.known(0, "condition")) else "else_branch")
    if not isinstance(taken, Block):
        s.fail("has no branch to take; the file is damaged")
    return s.builder.run(taken)


# -- another shape, another order ---------------------------------------------------------------------------------------------


def _reshaped(s: Site, shape: Sequence[int]) -> Value:
    have = shape_of(s.value(0))
    if math.prod(have) != math.prod(shape):
        raise ValueError(f"{math.prod(have)} elements do not fill the shape {tuple(shape)} that the file fixes")
    return s.view(lambda layout: layout.reshape(shape), fn.reshape, tuple(shape))


@handles("Reshape")
def _reshape(s: Site) -> Value:
    have = shape_of(s.value(0))
    wanted = s.numbers("shape", 1)
    if wanted is None:
        s.fail("says no shape; the file is damaged")
    shape = [have[i] if v == 0 and not s.attr("allowzero", 0) else v for i, v in enumerate(wanted)]
    if -1 in shape:
        rest = math.prod(v for v in shape if v != -1)
        shape[shape.index(-1)] = math.prod(have) // rest if rest else 0
    return _reshaped(s, shape)


@handles("Flatten")
def _flatten(s: Site) -> Value:
    have = shape_of(s.value(0))
    axis = int(s.attr("axis", 1))
    axis = axis + len(have) if axis < 0 else axis
    return _reshaped(s, (math.prod(have[:axis]), math.prod(have[axis:])))


@handles("Squeeze")
def _squeeze(s: Site) -> Value:
    have = shape_of(s.value(0))
    given = s.numbers("axes", 1)
    axes = [i for i, size in enumerate(have) if size == 1] if given is None else [axis % len(have) for axis in given]
    return _reshaped(s, [size for i, size in enumerate(have) if i not in axes])


@handles("Unsqueeze")
def _unsqueeze(s: Site) -> Value:
    shape = list(shape_of(s.value(0)))
    axes = s.numbers("axes", 1) or []
    rank = len(shape) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return _reshaped(s, shape)


@handles("Transpose")
def _transpose(s: Site) -> Value:
    rank = len(shape_of(s.value(0)))
    order = tuple(s.attr("perm") or reversed(range(rank)))
    return s.view(lambda layout: layout.permute(order), fn.permute, order)


@handles("DepthToSpace", "SpaceToDepth")
def _blocks(s: Site) -> Value:
    r, x = int(s.attr("blocksize")), s.node(0)
    c = shape_of(x)[1]
    deeper = s.op == "SpaceToDepth"
    ordered = s.op == "DepthToSpace" and s.choice("mode", "DCR", ("DCR", "CRD")) == "CRD"
    if any(side % r for side in shape_of(x)[2:]) if deeper else c % (r * r):
        raise ValueError(f"blocks of {r} x {r} do not divide it")
    # ONNX counts the place in the block first and the channel second, torch the other way round: a shuffle turns one into the other.
    if deeper:
        x = s.emit("pixel_unshuffle", [x], factor=r, part="" if c == 1 else ".pixel_unshuffle")
        return x if c == 1 else s.emit("channel_shuffle", [x], groups=c)
    if not ordered and c != r * r:
        x = s.emit("channel_shuffle", [x], groups=r * r, part=".channel_shuffle")
    return s.emit("pixel_shuffle", [x], factor=r)


# -- selecting and joining ----------------------------------------------------------------------------------------------------


def _cut(s: Site, value: Value, axis: int, start: int, stop: int, step: int, part: str = "") -> Value:
    """Elements start, start + step, ... before stop (both already within the axis) of one axis."""
    if (start, step) == (0, 1) and stop >= shape_of(value)[axis]:
        return value
    if isinstance(value, Const) or step < 0 or not range(start, stop, step):
        return s.apply(fn.cut, value, axis, start, stop, step)
    return s.emit("slice", [s.builder.node(value)], dim=axis, start=start, stop=stop, step=step, part=part)


@handles("Slice")
def _slice(s: Site) -> Value:
    value, rank = s.value(0), len(shape_of(s.value(0)))
    starts, stops = s.numbers("starts", 1), s.numbers("ends", 2)
    if starts is None or stops is None:
        s.fail("says no limits; the file is damaged")
    axes = s.numbers("axes", 3) or list(range(len(starts)))
    steps = s.numbers("steps", 4) or [1] * len(starts)
    for place, (start, stop, given, step) in enumerate(zip(starts, stops, axes, steps, strict=True)):
        axis = given % rank
        size = shape_of(value)[axis]
        limits = slice(start, stop, step).indices(size)
        value = _cut(s, value, axis, *limits, part="" if place == len(starts) - 1 else f".axis{axis}")
    return value


@handles("Split")
def _split(s: Site) -> list[Value]:
    shape = shape_of(s.value(0))
    axis, count = int(s.attr("axis", 0)) % len(shape), len(s.call.outputs)
    sizes = s.numbers("split", 1)
    if sizes is None:
        count = int(s.attr("num_outputs", count))
        each = -(-shape[axis] // count)
        sizes = [each] * (count - 1) + [shape[axis] - each * (count - 1)]
    if sum(sizes) != shape[axis]:
        raise ValueError(f"parts of {sizes} do not add up to {shape[axis]}")
    starts = np.cumsum([0, *sizes]).tolist()
    return [_cut(s, s.value(0), axis, start, start + size, 1) for start, size in zip(starts, sizes, strict=False)]


@handles("Gather")
def _gather(s: Site) -> Value:
    shape, index = shape_of(s.value(0)), s.const(1)
    axis = int(s.attr("axis", 0)) % len(shape)
    if index is None or isinstance(s.value(0), Const):
        return s.apply(fn.take, s.value(0), s.value(1), axis)
    if (index >= shape[axis]).any() or (index < -shape[axis]).any():
        raise IndexError(f"it takes element {int(index.max())} of {shape[axis]}")
    if index.dim() == 0:
        place = int(index) % shape[axis]
        return s.view(lambda layout: layout.select(axis, place), fn.pick, axis, place)
    steps = name_order((index % shape[axis]).tolist(), shape[axis]) if index.dim() == 1 else [("take", {})]
    if not steps:
        return s.value(0)
    ((op, attrs),) = steps
    if op == "slice":
        return s.emit("slice", [s.node(0)], **{**attrs, "dim": axis})
    if op == "channel_shuffle" and axis == 1 and len(shape) == 4:
        return s.emit(op, [s.node(0)], **attrs)
    return s.apply(fn.take, s.value(0), s.value(1), axis)


@handles("GatherElements")
def _gather_elements(s: Site) -> Value:
    axis = int(s.attr("axis", 0)) % len(shape_of(s.value(0)))
    return s.apply(fn.take_along, s.value(0), s.value(1), axis)


@handles("ScatterND")
def _scatter(s: Site) -> Value:
    if s.attr("reduction", "none") != "none":
        s.fail(f"reduces with {s.attr('reduction')!r}; only 'none' is supported")
    return s.apply(fn.scatter, s.value(0), s.value(1), s.value(2))


@handles("CumSum")
def _cumulative_sum(s: Site) -> Value:
    axis = int(s.known(1, "axis")) % len(shape_of(s.value(0)))
    return s.apply(fn.cumulative_sum, s.value(0), axis, bool(s.attr("exclusive", 0)), bool(s.attr("reverse", 0)))


@handles("Concat")
def _concat(s: Site) -> Value:
    values = [s.value(i) for i in range(len(s.inputs))]
    axis = int(s.attr("axis")) % len(shape_of(values[0]))
    if len(values) == 1:
        return values[0]
    if all(isinstance(value, Const) for value in values):
        return s.apply(fn.concat, values, axis)
    shapes = [shape_of(value) for value in values]
    if len({shape[:axis] + shape[axis + 1 :] for shape in shapes}) > 1:
        raise ValueError(f"parts of different sizes cannot be joined along axis {axis}")
    return s.emit("cat", [s.builder.node(value) for value in values], dim=axis)


@handles("Expand")
def _expand(s: Site) -> Value:
    wanted = tuple(int(v) for v in s.known(1, "shape").tolist())
    if torch.broadcast_shapes(shape_of(s.value(0)), wanted) == shape_of(s.value(0)):
        return s.value(0)
    return s.apply(fn.expand, s.value(0), wanted)


@handles("Tile")
def _tile(s: Site) -> Value:
    return s.apply(fn.tile, s.value(0), tuple(int(v) for v in s.known(1, "repeats").tolist()))


@handles("Pad")
def _pad(s: Site) -> Value:
    shape = shape_of(s.value(0))
    rank, mode = len(shape), s.choice("mode", "constant", ("constant", "reflect", "edge", "wrap"))
    given = s.numbers("pads", 1)
    if given is None:
        s.fail("says no padding; the file is damaged")
    axes = s.numbers("axes", 3) or list(range(rank))
    pads = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        pads[axis % rank], pads[rank + axis % rank] = given[place], given[place + len(axes)]
    value = float(s.known(2, "value").item()) if s.has(2) else float(s.attr("value", 0.0))
    if not any(pads):
        return s.value(0)
    elsewhere = rank != 4 or any(pads[i] for i in (0, 1, 4, 5)) or min(pads) < 0
    folds = mode == "reflect" and (max(pads[2], pads[6]) >= shape[2] or max(pads[3], pads[7]) >= shape[3]) if rank == 4 else False
    wraps = mode == "wrap" and (max(pads[2], pads[6]) > shape[2] or max(pads[3], pads[7]) > shape[3]) if rank == 4 else False
    if elsewhere or folds or wraps or isinstance(s.value(0), Const):
        return s.apply(fn.pad, s.value(0), tuple(pads), mode, value)
    name = {"edge": "replicate", "wrap": "circular"}.get(mode, mode)
    return s.emit("pad", [s.node(0)], padding=(pads[2], pads[6], pads[3], pads[7]), mode=name, value=value)


# -- resizing -----------------------------------------------------------------------------------------------------------------

_TORCH_MODES = {"nearest": ("nearest", (None,)), "linear": ("bilinear", (False, True)), "cubic": ("bicubic", (False, True))}


_TRANSFORMS = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric")
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@handles("Resize", "Upsample")
def _resize(s: Site) -> Value:
    shape = shape_of(s.value(0))
    if len(shape) != 4:
        s.fail(f"resizes a tensor of {len(shape)} axes; only maps (n, c, h, w) are supported")
    sizes, scales, stated = _targets(s, shape)
    if sizes[:2] != list(shape[:2]):
        s.fail(f"resizes over the batch or the channels ({shape} to {tuple(sizes)}), which is not supported")
    if not 1 <= min(sizes[2:]) <= max(sizes[2:]) <= _LONGEST:
        raise ValueError(f"it asks for maps of {sizes[2]} x {sizes[3]}")
    options = _resize_options(s)
    taps = [fn.axis_taps(shape[i], sizes[i], scales[i], **options) for i in (2, 3)]
    x, mode = s.node(0), options["mode"]
    name, corners = _TORCH_MODES[mode]
    pair = (scales[2], scales[3])
    for align in corners:
        for given in (pair, None) if stated else (None,):
            parts = zip((2, 3), given or (None, None), taps, strict=True)
            if all(fn.agrees_with_torch(name, align, shape[i], scale, tap) for i, scale, tap in parts):
                # Corners pin the positions, so there the scales say nothing beyond the sizes.
                kept = None if align else given
                return s.emit("upsample", [x], shape=tuple(sizes), mode=name, align_corners=bool(align), scales=kept)
    label = s.call.name
    tensors = [Const(part, f"{label}.{axis}_{what}") for axis, tap in zip(("row", "column"), taps, strict=True)
               for what, part in zip(("taps", "weights"), tap, strict=True)]  # fmt: skip
    return s.apply(fn.resample, x, *tensors)


def _targets(s: Site, shape: tuple[int, ...]) -> tuple[list[int], list[float], bool]:
    """Output size and scale per axis, and whether the file states the scales (else the sizes)."""
    scale_input, size_input = (1, None) if s.op == "Upsample" or s.version < 11 else (2, 3)
    axes = [axis % 4 for axis in s.attr("axes", range(4))]
    sizes, scales = list(shape), [1.0] * 4
    if s.attr("scales") is not None:
        known = torch.tensor(s.attr("scales"))
    else:
        known = s.known(scale_input, "scales") if s.has(scale_input) else torch.zeros(0)
    if known.numel():
        for axis, scale in zip(axes, known.tolist(), strict=True):
            scales[axis], sizes[axis] = scale, math.floor(shape[axis] * scale)
        return sizes, scales, True
    if size_input is None or not s.has(size_input):
        s.fail("says neither scales nor sizes; the file is damaged")
    wanted = [int(v) for v in s.known(size_input, "sizes").tolist()]
    policy = s.choice("keep_aspect_ratio_policy", "stretch", ("stretch", "not_larger", "not_smaller"))
    ratios = [size / shape[axis] for axis, size in zip(axes, wanted, strict=True)]
    if policy != "stretch":
        ratios = [min(ratios) if policy == "not_larger" else max(ratios)] * len(axes)
        wanted = [math.floor(ratio * shape[axis] + 0.5) for axis, ratio in zip(axes, ratios, strict=True)]
    for axis, size, ratio in zip(axes, wanted, ratios, strict=True):
        sizes[axis], scales[axis] = size, ratio
    return sizes, scales, False


def _resize_options(s: Site) -> dict[str, Any]:
    """Arguments for `axis_taps`."""
    mode = s.choice("mode", "nearest", (*_TORCH_MODES, "bilinear")).removeprefix("bi")
    old = s.op == "Upsample" or s.version < 11
    transform = s.choice("coordinate_transformation_mode", "asymmetric" if old else "half_pixel", _TRANSFORMS)
    return {
        "mode": mode,
        "transform": transform,
        "rounding": "simple" if old else s.choice("nearest_mode", "round_prefer_floor", _ROUNDINGS),
        "cubic": float(s.attr("cubic_coeff_a", -0.75)),
        "exclude_outside": bool(s.attr("exclude_outside", 0)),
        "antialias": bool(s.attr("antialias", 0)),
    }


@handles("GridSample")
def _grid_sample(s: Site) -> Value:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(str(s.attr("mode", "bilinear")), str(s.attr("mode", "bilinear")))
    return s.apply(fn.grid_sample, s.value(0), s.value(1), mode, str(s.attr("padding_mode", "zeros")), bool(s.attr("align_corners", 0)))
