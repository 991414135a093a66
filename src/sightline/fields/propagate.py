"""What each canonical op does to the description of a tensor: one small function per family of ops.

`view_of` gives the `View` of a node from those of its inputs. Ops without a canonical form are in `sightline.fields.opaque`. To
add an op: write a function that takes a `Step` and returns a `View`, and enter it in `_TABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import cast

from sightline.fields import views
from sightline.fields.units import pattern_of
from sightline.fields.views import AxisView, View
from sightline.footprint import AxisTaps, ResampleMode
from sightline.geometry import PaddingMode, Window, adaptive_bins
from sightline.graph.ir import Node
from sightline.graph.rules import windows

SIZED = "depends on the input size"
WRAPS = "wraps around: units at the border also see the opposite side"


@dataclass(frozen=True)
class Step:
    """One node with the views of its inputs.

    Attributes:
        node: the node.
        inputs: one view per operand.
        axes: number of axes of the model's input.
        ignore_gates: take products with a global operand, and statistics over a whole map, as if they were not there.
    """

    node: Node
    inputs: Sequence[View]
    axes: int
    ignore_gates: bool = False

    @property
    def x(self) -> View:
        """The first operand."""
        return self.inputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.node.shape or ()

    def unknown(self, reason: str) -> View:
        """Give up: nothing can be said about the result, unless no operand depends on the input."""
        if all(view.constant for view in self.inputs):
            return views.blank(self.shape, self.axes)
        return views.unknown(self.shape, self.axes, f"{self.node.name}: {reason}")


Rule = Callable[[Step], View]


def with_statistics(step: Step, view: View, dims: Sequence[int]) -> View:
    """A norm whose mean and variance are taken over these dimensions."""
    if step.ignore_gates and any(_is_place(view, dim) for dim in dims):
        return view
    return views.mixed(view, dims)


def _is_place(view: View, dim: int) -> bool:
    return any(atom in term.weights for atom in view.dims[dim] for axis in view.axes for term in axis.terms)


# -- windows ----------------------------------------------------------------------------------------------------------------------


def through_window(view: View, dim: int, window: Window, n_out: int, what: str, mode: PaddingMode = "zeros") -> View:
    """One window along one dimension of a map."""
    taps, shift = pattern_of(window)
    n_in = view.shape[dim]
    far = 2 * max(window.before, window.after) > window.dilation * (window.kernel - 1)
    if mode == "circular" or (mode == "reflect" and far):
        table = window.taps(n_in, n_out, mode)
        wrapped = views.along(view, dim, n_out, lambda units: units.through(taps, shift, n_out).with_table(units.gather(table)), what)
        return views.noted(wrapped, WRAPS) if mode == "circular" and (window.before or window.after) else wrapped
    return views.along(view, dim, n_out, lambda units: units.through(taps, shift, n_out), what)


def through_table(view: View, dim: int, index: Sequence[Sequence[int]], what: str) -> View:
    """A layer that reads units as listed, without a pattern."""
    return views.along(view, dim, len(index), lambda units: units.gather(index), what)


def _window(step: Step) -> View:
    node, view = step.node, views.mixed(views.merged(step.x), [1])
    mode = cast("PaddingMode", node.attrs.get("padding_mode", "zeros"))
    for dim, window in enumerate(windows(node), start=2):
        view = through_window(view, dim, window, step.shape[dim], node.name, mode)
    return View((view.dims[0], views.fresh(step.shape[1]), *view.dims[2:]), view.axes)


def _adaptive(step: Step) -> View:
    view = views.mixed(views.merged(step.x), [1])
    for dim, n_out in enumerate(step.node.attrs["output_size"], start=2):
        n_in = view.shape[dim]
        if n_out == 1:
            view = views.reduced(view, [dim], keepdim=True)
        elif n_in % n_out == 0:
            ratio = n_in // n_out
            view = through_window(view, dim, Window(ratio, stride=ratio), n_out, step.node.name)
        else:
            view = through_table(view, dim, [range(lo, hi) for lo, hi in adaptive_bins(n_in, n_out)], step.node.name)
    return views.noted(view, SIZED)


def _global_pool(step: Step) -> View:
    return views.reduced(step.x, [2, 3], keepdim=bool(step.node.attrs["keepdim"]))


def _pad(step: Step) -> View:
    attrs, view = step.node.attrs, step.x
    top, bottom, left, right = attrs["padding"]
    mode = cast("PaddingMode", "zeros" if attrs["mode"] == "constant" else attrs["mode"])
    for dim, pads in ((2, (top, bottom)), (3, (left, right))):
        if any(pads):
            view = through_window(view, dim, Window(1, padding=pads), step.shape[dim], step.node.name, mode)
    return view


def resampled(view: View, dim: int, n_out: int, mode: str, what: str, scale: float | None = None, *, align_corners: bool = False) -> View:
    """Nearest, bilinear or bicubic interpolation along one dimension."""
    n_in = view.shape[dim]
    if n_in == n_out and scale in {None, 1.0}:
        return view
    ratio = Fraction(n_in, n_out)
    if scale is not None and not align_corners:
        exact = 1 / Fraction(scale).limit_denominator(4096)
        if abs(float(exact) * scale - 1) > 1e-9 or n_out > n_in / exact:
            return _by_table(view, dim, n_out, mode, what, scale, align_corners=False)
        ratio = exact
    elif align_corners and mode != "nearest":
        ratio = Fraction(n_in - 1, n_out - 1) if n_out > 1 else Fraction(0)
    if ratio == 0 or ratio.denominator > 512:
        return _by_table(view, dim, n_out, mode, what, scale, align_corners=align_corners)
    taps = [_neighbours(output, ratio, mode, align_corners=align_corners) for output in range(ratio.denominator)]
    moved = views.along(view, dim, n_out, lambda units: units.through(taps, ratio.numerator, n_out), what)
    whole = ratio.numerator == 1 or ratio.denominator == 1
    return moved if whole and not align_corners else views.noted(moved, SIZED)


def _neighbours(output: int, ratio: Fraction, mode: str, *, align_corners: bool) -> tuple[int, ...]:
    """Units that one output interpolates between, far from the border."""
    if mode == "nearest":
        return (output * ratio.numerator // ratio.denominator,)
    position = output * ratio if align_corners else (output + Fraction(1, 2)) * ratio - Fraction(1, 2)
    low = position.numerator // position.denominator
    if position == low:
        return (low,)
    return (low, low + 1) if mode == "bilinear" else (low - 1, low, low + 1, low + 2)


def _by_table(view: View, dim: int, n_out: int, mode: str, what: str, scale: float | None, *, align_corners: bool) -> View:
    if mode == "nearest":
        taps = AxisTaps.nearest(view.shape[dim], n_out, scale)
    else:
        kind = AxisTaps.linear if mode == "bilinear" else AxisTaps.cubic
        taps = kind(view.shape[dim], n_out, align_corners=align_corners, scale=scale)
    weights = taps.weights
    index = [
        [int(unit) for j, unit in enumerate(row) if unit >= 0 and (weights is None or weights[output, j] != 0)]
        for output, row in enumerate(taps.index)
    ]
    return views.noted(through_table(view, dim, index, what), SIZED)


def _upsample(step: Step) -> View:
    attrs, view = step.node.attrs, views.mixed(views.merged(step.x), [1])
    mode = cast("ResampleMode", attrs["mode"])
    for axis, dim in enumerate((2, 3)):
        scale = None if attrs["scales"] is None else attrs["scales"][axis]
        align = bool(attrs["align_corners"])
        view = resampled(view, dim, step.shape[dim], mode, step.node.name, scale, align_corners=align)
    return view


# -- element-wise, joins ------------------------------------------------------------------------------------------------------------


def same(step: Step) -> View:
    """Element by element, of one operand."""
    return step.x


def join(step: Step) -> View:
    """Element by element, of several operands."""
    inputs = list(step.inputs)
    if step.ignore_gates and step.node.op in {"mul", "div"} and len(inputs) == 2:
        inputs = list(_without_gate(*inputs))
    view = views.joined(inputs)
    for axis, parts in enumerate(zip(*(operand.axes for operand in inputs), strict=True)):
        if misaligned(parts):
            axes = list(view.axes)
            axes[axis] = replace(axes[axis], notes=axes[axis].notes | {"branches are not aligned"})
            view = View(view.dims, tuple(axes))
    return view


def misaligned(parts: Sequence[AxisView]) -> bool:
    """Whether branches that meet look at different places: the centres of their fields differ."""
    fields = [axis.terms[0].largest for axis in parts if len(axis.terms) == 1 and not axis.everything]
    if len(fields) < 2 or any(len(units.phases) != 1 or units.table is not None for units in fields):
        return False
    return len({2 * units.phases[0][0] + units.phases[0][1].bit_length() for units in fields}) > 1


def _without_gate(left: View, right: View) -> tuple[View, View]:
    axes = list(left.axes), list(right.axes)
    for number, (a, b) in enumerate(zip(left.axes, right.axes, strict=True)):
        for gate, other, own in ((a, b, axes[0]), (b, a, axes[1])):
            if gate.everything and other.terms and not other.everything:
                own[number] = AxisView(notes=frozenset({"a gate was left out"}))
    return View(left.dims, tuple(axes[0])), View(right.dims, tuple(axes[1]))


def _cat(step: Step) -> View:
    dim = step.node.attrs["dim"]
    view = views.concatenated(step.inputs, dim)
    for axis, parts in enumerate(zip(*(operand.axes for operand in step.inputs), strict=True)):
        if misaligned(parts):
            axes = list(view.axes)
            axes[axis] = replace(axes[axis], notes=axes[axis].notes | {"branches are not aligned"})
            view = View(view.dims, tuple(axes))
    return view


# -- structure ----------------------------------------------------------------------------------------------------------------------


def _slice(step: Step) -> View:
    attrs = step.node.attrs
    size = step.x.shape[attrs["dim"]]
    return views.sliced(step.x, attrs["dim"], attrs["start"], min(attrs["stop"], size), attrs["step"])


def _channel_shuffle(step: Step) -> View:
    n, c, *places = step.x.shape
    groups = step.node.attrs["groups"]
    apart = views.reshaped(step.x, (n, groups, c // groups, *places))
    return views.reshaped(views.permuted(apart, (0, 2, 1, *range(3, len(apart.dims)))), step.shape)


def _pixel_shuffle(step: Step) -> View:
    n, c, h, w = step.x.shape
    r = step.node.attrs["factor"]
    apart = views.reshaped(step.x, (n, c // (r * r), r, r, h, w))
    return views.solid(views.merged(views.reshaped(views.permuted(apart, (0, 1, 4, 2, 5, 3)), step.shape)))


def _pixel_unshuffle(step: Step) -> View:
    n, c, h, w = step.x.shape
    r = step.node.attrs["factor"]
    apart = views.reshaped(views.merged(step.x), (n, c, h // r, r, w // r, r))
    return views.reshaped(views.permuted(apart, (0, 1, 3, 5, 2, 4)), step.shape)


def _flatten(step: Step) -> View:
    return views.reshaped(step.x, step.shape)


def _linear(step: Step) -> View:
    return views.contracted(step.x, len(step.x.dims) - 1, step.shape[-1])


def _softmax(step: Step) -> View:
    return views.mixed(step.x, [step.node.attrs["dim"]])


_TABLE: dict[str, Rule] = {
    "conv2d": _window,
    "max_pool2d": _window,
    "avg_pool2d": _window,
    "adaptive_avg_pool2d": _adaptive,
    "adaptive_max_pool2d": _adaptive,
    "global_avg_pool": _global_pool,
    "pad": _pad,
    "upsample": _upsample,
    **dict.fromkeys(("affine", "act", "scalar", "identity"), same),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), join),
    "cat": _cat,
    "slice": _slice,
    "channel_shuffle": _channel_shuffle,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "flatten": _flatten,
    "linear": _linear,
    "softmax": _softmax,
}


def view_of(step: Step) -> View:
    """What the elements of a node's value read, given what those of its inputs read.

    Args:
        step: the node and its inputs' views.

    Returns:
        The view. Unknown where the op has no rule, where it is used in a form that cannot be followed, or behind an unknown one.
    """
    from sightline.fields.opaque import opaque_rule

    node = step.node
    if all(view.constant for view in step.inputs):
        return views.blank(step.shape, step.axes)
    rule = _TABLE.get(node.op) or opaque_rule(node)
    if rule is None:
        return step.unknown("no rule for this operation")
    view = rule(step)
    if view.shape != step.shape:
        return step.unknown(f"its result has shape {step.shape}, not {view.shape}")
    return view
