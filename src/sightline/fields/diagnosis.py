"""Which layers do not pay at an input resolution: named rules, their cost, and the seed's own colours for comparison.

The rules look at weight layers whose window spans more than one cell; a 1 x 1 convolution or a linear layer mixes channels, which no
receptive field says anything about. Each axis along which the window spans more than one cell is judged by itself:

===================  ===============================================================================================================
``unproductive``     what the layer reads sees the whole input already, through its *shortest* path: on every judged axis
``saturated``        the same through its *longest* path (weaker: the shortest may still gain)
``critical``         not unproductive, and behind it even the shortest path sees more than the input: on every judged axis
``partial``          neither, but on some judged axis the shortest path sees more than the input
``small_map``        the map that it reads is smaller than its window, so that some of its weights meet nothing but padding
===================  ===============================================================================================================

What belongs here: judging. What does not: fields themselves, advice (`suggest.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sightline.errors import ShapeError

if TYPE_CHECKING:
    from sightline.fields.layer import AxisField
    from sightline.fields.report import Report

Rule = Literal["unproductive", "saturated", "critical", "partial", "small_map"]
RULES: tuple[Rule, ...] = ("unproductive", "saturated", "critical", "partial", "small_map")


@dataclass(frozen=True)
class Verdict:
    """What the rules say of one layer.

    Attributes:
        layer: its name.
        rules: those that it breaks.
        macs: its multiply-accumulates at that resolution.
        params: its parameters.
        map_size: size of the map that it reads, per axis.
    """

    layer: str
    rules: tuple[Rule, ...]
    macs: int
    params: int
    map_size: tuple[int, ...]


@dataclass(frozen=True)
class Diagnosis:
    """All verdicts at one resolution.

    Attributes:
        resolution: size of the input per axis.
        verdicts: one per judged layer, in execution order, those without a complaint included.
        macs: of the whole network at that resolution.
        params: of the whole network.
        undecided: layers whose field is unknown.
    """

    resolution: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    macs: int
    params: int
    undecided: tuple[str, ...]

    def broken(self, rule: Rule) -> tuple[Verdict, ...]:
        """Verdicts that name this rule."""
        if rule not in RULES:
            raise ShapeError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
        return tuple(verdict for verdict in self.verdicts if rule in verdict.rules)

    @property
    def wasted_macs(self) -> int:
        """Multiply-accumulates of the unproductive layers."""
        return sum(verdict.macs for verdict in self.broken("unproductive"))

    @property
    def wasted_params(self) -> int:
        """Parameters of the unproductive layers."""
        return sum(verdict.params for verdict in self.broken("unproductive"))

    @property
    def wasted_share(self) -> float:
        """Wasted multiply-accumulates as a share of all, 0 to 1."""
        return self.wasted_macs / self.macs if self.macs else 0.0


def resolution_of(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """A resolution as one size per axis."""
    sizes = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(sizes) != axes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ShapeError(f"resolution: expected a positive int or {axes} of them (h, w), got {value!r}")
    return sizes


def diagnose(report: Report, resolution: int | Sequence[int]) -> Diagnosis:
    """Judge every layer at a resolution; see the module's table. Sizes of maps are computed for it, fields stay as they are."""
    sizes = resolution_of(resolution, report.axes)
    maps, macs = report.map_sizes(sizes), report.macs_at(sizes)
    verdicts, undecided = [], []
    for layer in report.layers.values():
        if not layer.is_weight_layer or "transpose" in layer.op or max(layer.kernel, default=1) == 1 or not layer.inputs:
            continue
        before = report.layers[layer.inputs[0]]
        if "unknown" in {layer.status, before.status}:
            undecided.append(layer.name)
            continue
        map_size = maps[before.name] or sizes
        rules = _rules(layer.axes, before.axes, layer.kernel, sizes, map_size)
        verdicts.append(Verdict(layer.name, rules, macs[layer.name], layer.params, map_size))
    return Diagnosis(sizes, tuple(verdicts), sum(macs.values()), report.params, tuple(undecided))


def _rules(
    own: Sequence[AxisField], before: Sequence[AxisField], kernel: Sequence[int], sizes: Sequence[int], map_size: Sequence[int]
) -> tuple[Rule, ...]:
    judged = [axis for axis, extent in enumerate(kernel) if extent > 1]
    rules: list[Rule] = []

    def covers(value: float | None, axis: int) -> bool:
        return value is not None and value >= sizes[axis]

    if all(covers(before[axis].min_size, axis) for axis in judged):
        rules.append("unproductive")
    if all(covers(before[axis].size, axis) for axis in judged):
        rules.append("saturated")
    beyond = [(own[axis].min_size or 0) > sizes[axis] for axis in judged]
    if "unproductive" not in rules and any(beyond):
        rules.append("critical" if all(beyond) else "partial")
    if any(map_size[axis] < kernel[axis] for axis in judged):
        rules.append("small_map")
    return tuple(rules)


# -- the seed's own numbers -------------------------------------------------------------------------------------------------------

Colour = Literal["red", "orange", "yellow", "white"]
_Path = tuple[float, int]  # receptive-field size, product of strides


@dataclass(frozen=True)
class SeedNode:
    """One node as rfa_toolbox 1.7.0 counts: per axis the set of (size, product of strides) over all paths.

    Attributes:
        name: of the layer.
        paths: per axis.
        before: for every predecessor its paths per axis.
        kernel: extent without dilation, per axis; inf for a global operation.
    """

    name: str
    paths: tuple[frozenset[_Path], ...]
    before: tuple[tuple[frozenset[_Path], ...], ...]
    kernel: tuple[float, ...]

    @property
    def smallest(self) -> tuple[float, ...]:
        """Smallest field per axis."""
        return tuple(min(size for size, _ in axis) for axis in self.paths)

    def colour(self, resolution: Sequence[int], *, filter_kernel_size_1: bool = False) -> Colour:
        """Its colour in that library: red unproductive, orange critical, yellow beyond the input on one axis."""
        own, kernels = self.smallest, self.kernel
        fields = [tuple(min(size for size, _ in axis) for axis in paths) for paths in self.before]
        red = all(r <= size for paths in fields for r, size in zip(resolution, paths, strict=True))
        red = red and bool(fields) and all(r < size for r, size in zip(resolution, own, strict=True))
        red = red and not (filter_kernel_size_1 and all(kernel == 1 for kernel in kernels))
        if not red and fields and math.inf not in kernels:
            scales = [tuple(max(scale for _, scale in axis) for axis in paths) for paths in self.before]
            red = all(r // m <= k for scale in scales for r, m, k in zip(resolution, scale, kernels, strict=True))
        if red:
            return "red"
        beyond = [size > r for size, r in zip(own, resolution, strict=True)]
        return "orange" if all(beyond) else "yellow" if any(beyond) else "white"


def seed_range(
    nodes: Sequence[SeedNode],
    *,
    filter_all_inf_rf: bool = True,
    filter_kernel_size_1: bool = False,
    lower_bound: bool = False,
    feature_map_rule: bool = True,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Feasible input sizes by the rules of rfa_toolbox 1.7.0; see `sightline.fields.Report.resolution_range`."""
    finite = [node for node in nodes if math.inf not in node.smallest]
    if not finite:
        raise ShapeError("resolution_range: no layer has a finite receptive field; a network without convolutions has no such range")
    axes = range(len(finite[0].paths))
    upper = tuple(int(max(size for node in finite for size, _ in node.paths[axis] if size != math.inf)) for axis in axes)
    spatial = [node for node in finite if math.inf not in node.kernel and not (filter_kernel_size_1 and max(node.kernel) == 1)]
    lower = []
    for axis in axes:
        scaled = [node.kernel[axis] * max(scale for _, scale in node.paths[axis]) for node in spatial] if feature_map_rule else []
        if filter_all_inf_rf and not lower_bound:
            fields = [node.smallest[axis] for node in spatial]
        else:
            wide = [node for node in spatial if not lower_bound or max(node.kernel) > 1]
            fields = [min(size for size, _ in paths[axis]) for node in wide for paths in node.before]
        lower.append(int(max([size for size in (*fields, *scaled) if size != math.inf], default=1)))
    return tuple(lower), upper
