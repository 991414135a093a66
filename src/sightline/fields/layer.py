"""One layer of a report: its receptive field on every axis, its cost and where it comes from.

What belongs here: `LayerField` and how it is read off a `View`. What does not: how views come about (`propagate.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from sightline.errors import ShapeError
from sightline.fields import views
from sightline.fields.units import Units
from sightline.fields.views import Atom, Term, View
from sightline.geometry import Interval, ReceptiveField

Status = Literal["exact", "bounded", "global", "unknown"]
_ORDER: tuple[Status, ...] = ("exact", "bounded", "global", "unknown")

Extent = int | float | None
"""Cells along one axis; ``math.inf``: the whole input, whatever its size; None: not known."""


@dataclass(frozen=True, eq=False)
class AxisField:
    """What a layer sees along one axis of the input.

    Attributes:
        status: see `LayerField`.
        size: cells from the first to the last that one unit sees, by all paths together.
        min_size: the same by the path that sees least.
        stride: input cells between neighbouring units; a Fraction behind an upsampling; None where units do not follow a pattern.
        start: first cell that unit 0 sees, negative in the padding; None where not known.
        support: share of the cells of the box that are really read (1 unless dilation or a large stride leaves holes).
        units: the cells of every unit, if they are known.
        count: number of units.
    """

    status: Status
    size: Extent
    min_size: Extent
    stride: int | Fraction | None
    start: int | None
    support: float | None
    units: Units | None = field(repr=False, default=None)
    count: int = 1

    @property
    def field(self) -> ReceptiveField | None:
        """The engine's object for it, where units follow a pattern."""
        return None if self.units is None else self.units.field()


@dataclass(frozen=True, eq=False)
class LayerField:
    """One call site of the network.

    Sizes, strides and starts are per axis, (row, col) for images.

    Attributes:
        name: call-site name: the module path where there is one, ":2" appended for the second call of a module.
        op: canonical op, or the name of the call.
        status: of the worst axis: "exact": `box` gives the smallest interval around what each unit sees (next to the border it may
            be larger, by units of inner maps that would stand beyond them); "bounded": a unit sees no more than `size` cells in a
            row, where is not known; "global": units see the whole input; "unknown": an operation without a rule stands before it,
            and no numbers are given.
        size: cells seen by one unit (the largest one, away from the border); inf: all of them; None: unknown.
        min_size: the same through the path that sees least; inf if all paths see everything, None where that is not known.
        stride: input cells between neighbouring units.
        start: first cell that unit 0 sees.
        support: share of the cells in the box that are really read.
        axes: all of this axis by axis.
        macs: multiply-accumulates of this call.
        params: parameters of this layer; 0 at later calls of the same one.
        module: path of the module in whose forward the call stands.
        source: "file:line", or "".
        shape: of its result, None if it is not one tensor.
        inputs: names of the layers that it reads.
        kernel: extent of its window (dilation counted) per axis, () for layers without one.
        notes: "wraps around ...", "branches are not aligned", "depends on the input size", the reason of an unknown.
    """

    name: str
    op: str
    status: Status
    axes: tuple[AxisField, ...]
    macs: int
    params: int
    module: str
    source: str
    shape: tuple[int, ...] | None
    inputs: tuple[str, ...]
    kernel: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[Extent, ...]:
        """Cells seen per axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def min_size(self) -> tuple[Extent, ...]:
        """Cells seen per axis through the shortest path."""
        return tuple(axis.min_size for axis in self.axes)

    @property
    def stride(self) -> tuple[int | Fraction | None, ...]:
        """Input cells between neighbouring units, per axis."""
        return tuple(axis.stride for axis in self.axes)

    @property
    def start(self) -> tuple[int | None, ...]:
        """First cell seen by unit 0, per axis."""
        return tuple(axis.start for axis in self.axes)

    @property
    def support(self) -> tuple[float | None, ...]:
        """Share of cells in the box that are read, per axis."""
        return tuple(axis.support for axis in self.axes)

    @property
    def is_weight_layer(self) -> bool:
        """Whether it is a convolution or a linear layer."""
        return self.op in WEIGHT_OPS


WEIGHT_OPS = frozenset({"conv2d", "conv_transpose2d", "linear", "conv1d", "conv3d", "conv_transpose1d", "conv_transpose3d"})


def worst(statuses: Sequence[Status]) -> Status:
    """The status of a whole from those of its parts."""
    return max(statuses, key=_ORDER.index, default="exact")


def axis_fields(view: View) -> tuple[AxisField, ...]:
    """The fields of a tensor's elements, one per axis of the input."""
    count = len(view.axes)
    if len(view.dims) == count + 2 and any(_beside_channels(view, axis) for axis in view.axes):
        view = views.mixed(view, [1])  # the unit of a map is all its channels
    view = views.solid(views.merged(view))
    return tuple(_axis_field(view, number) for number in range(count))


def _beside_channels(view: View, axis: views.AxisView) -> bool:
    """Whether places of an axis stand in dimension 1 and elsewhere (shuffled pixels); all in dimension 1 are rows, channels last."""
    used = {atom for term in axis.terms for atom in term.weights}
    return not used.isdisjoint(view.dims[1]) and any(not used.isdisjoint(dim) for dim in view.dims[2:])


def _axis_field(view: View, number: int) -> AxisField:
    axis = view.axes[number]
    if axis.unknown:
        return AxisField("unknown", None, None, None, None, None)
    if axis.constant:
        return AxisField("exact", 0, 0, None, None, 1.0)
    if axis.loose:
        largest = max(term.largest.size for term in axis.terms) if axis.terms else math.inf
        smallest = min((term.shortest.size for term in axis.terms), default=math.inf)
        if axis.everything:
            return AxisField("global", math.inf, None if axis.terms else math.inf, None, None, 1.0)
        return AxisField("bounded", largest, smallest, None, None, None)
    units = shortest = None
    if axis.terms:
        used = {atom for term in axis.terms for atom in term.weights}
        run = sorted((a for dim in view.dims for a in dim if a in used), key=lambda a: -max(t.weights.get(a, 0) for t in axis.terms))
        units, shortest, count = _joint(axis.terms, run)
    if axis.everything or units is None or shortest is None:
        return AxisField("global", math.inf, math.inf if shortest is None else shortest.size, None, None, 1.0)
    stride = units.stride
    whole = None if stride is None else int(stride) if stride.denominator == 1 else stride
    first = units.phases[0] if units.phases else next((cells for cells in units.table or () if cells[1]), (0, 0))
    return AxisField("exact", units.size, shortest.size, whole, first[0], units.density, units, count)


def _joint(terms: Sequence[Term], run: Sequence[Atom]) -> tuple[Units, Units, int]:
    """All terms as one, numbered by the joint index of their atoms."""
    whole = Atom(math.prod(atom.size for atom in run))
    if run:
        terms = [views.reindexed(term, run, whole) for term in terms]
    largest, shortest = terms[0].largest, terms[0].shortest
    for term in terms[1:]:
        largest = largest.union(term.largest, whole.size)
        shortest = min(shortest, term.shortest, key=lambda units: units.size)
    return largest, shortest, whole.size


def box_of(layer: LayerField, unit: Sequence[int], extent: Sequence[int], *, clip: bool = False) -> tuple[int, ...]:
    """Cells that one unit sees, (y0, x0, y1, x1) for images; see `sightline.fields.Report.box`."""
    if len(unit) != len(layer.axes):
        raise ShapeError(f"unit: expected {len(layer.axes)} indices (row, col) for {layer.name!r}, got {tuple(unit)}")
    spans = []
    for axis, position, size in zip(layer.axes, unit, extent, strict=True):
        if axis.status in {"unknown", "bounded"}:
            reason = layer.notes[-1] if layer.notes else "an operation before it cannot be followed"
            raise ShapeError(f"layer: where the units of {layer.name!r} look is {axis.status} ({reason}); choose an earlier layer")
        if axis.status == "global":
            spans.append((0, size))
        elif axis.units is None:
            spans.append((0, 0))
        else:
            spans.append(axis.units.box(position, size if clip else None))
    return (*(lo for lo, _ in spans), *(hi for _, hi in spans))


def touching(layer: LayerField, axis: AxisField, span: Interval) -> Interval:
    """Smallest interval of existing units of which each end sees some cell of a span."""
    lo, hi = span
    if axis.status in {"unknown", "bounded"}:
        raise ShapeError(f"layer: where the units of {layer.name!r} look is {axis.status}; choose an earlier layer")
    if lo >= hi or axis.size == 0:
        return 0, 0
    if axis.units is None:
        return 0, axis.count
    wanted = (1 << (hi - lo)) - 1
    hits = []
    for unit in range(axis.count):
        first, mask = axis.units.cells(unit)
        if (mask >> (lo - first) if first <= lo else mask << (first - lo)) & wanted:
            hits.append(unit)
    return (hits[0], hits[-1] + 1) if hits else (0, 0)
