"""Are the fields right? Checked by back-propagation in float64 through the captured graph.

Every operation is replaced by a positive one that reads the same cells: activations and norms pass on, maxima become means, weights
become equal. The gradient of one unit is then above 0 exactly at the cells that it sees. Where channels carry no places, which is so
in most convolutional networks, one channel on a strip as long as the fields need stands for all of them (`Strip`), once per axis.
Else whole maps are taken, at the size that the graph was captured with (`sightline.fields.verify_maps`), and boxes are compared where
they meet the input.

What belongs here: the comparison, and strips. What does not: computing fields (`propagate.py`); nothing of it is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.errors import ShapeError
from sightline.fields.layer import AxisField, LayerField, box_of
from sightline.footprint import AxisTaps
from sightline.geometry import Window
from sightline.graph.ir import Node
from sightline.graph.rules import windows

if TYPE_CHECKING:
    from sightline.fields.report import Report

Outcome = Literal["agrees", "differs", "unchecked"]
LONGEST = 1 << 14
"""Cells of the longest strip."""


@dataclass(frozen=True)
class Check:
    """What back-propagation says of one layer.

    Attributes:
        layer: its name.
        outcome: "agrees", "differs", or "unchecked".
        reported: per axis what the report says of the unit that was tried, as cells (lo, hi).
        measured: per axis the cells that have a gradient, from the first to the last.
        reason: why it is unchecked; or how it was checked.
    """

    layer: str
    outcome: Outcome
    reported: tuple[tuple[float, float], ...] = ()
    measured: tuple[tuple[float, float], ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Verification:
    """All checks of one report."""

    checks: dict[str, Check] = field(default_factory=dict)

    def _of(self, outcome: Outcome) -> tuple[str, ...]:
        return tuple(name for name, check in self.checks.items() if check.outcome == outcome)

    @property
    def agreeing(self) -> tuple[str, ...]:
        """Layers whose fields are as back-propagation finds them."""
        return self._of("agrees")

    @property
    def differing(self) -> tuple[str, ...]:
        """Layers whose fields are not."""
        return self._of("differs")

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Layers behind something that has no positive stand-in, or of unknown field."""
        return self._of("unchecked")

    @property
    def ok(self) -> bool:
        """Whether at least one layer was checked and none differs."""
        return bool(self.agreeing) and not self.differing

    def __str__(self) -> str:
        text = f"{len(self.agreeing)} of {len(self.checks)} layers agree with back-propagation"
        for name in self.differing:
            check = self.checks[name]
            text += f"\n  {name}: reported {check.reported}, measured {check.measured}"
        if self.unchecked:
            text += f"\n  not checked: {', '.join(self.unchecked[:8])}{' ...' if len(self.unchecked) > 8 else ''}"
        return text


def verify(report: Report, layers: Sequence[str] | None = None) -> Verification:
    """Compare the fields of a report with gradients.

    Args:
        report: of any network.
        layers: which to check; None: convolutions, pools and outputs.

    Returns:
        One check per layer.

    Raises:
        ShapeError: there is no layer of that name.
    """
    from sightline.fields.verify_maps import check_maps

    if layers is None:
        outputs = {layer.name for layer in report.outputs}
        layers = [n for n, layer in report.layers.items() if layer.is_weight_layer or "pool" in layer.op or n in outputs]
    chosen = [report[name] for name in layers]
    with torch.enable_grad():
        try:
            checks = _check_strips(report, chosen)
        except _NoStripError:
            checks = check_maps(report, chosen)
    return Verification({layer.name: checks[layer.name] for layer in chosen})


# -- strips -----------------------------------------------------------------------------------------------------------------------


class _NoStripError(Exception):
    """Channels carry places: one of them cannot stand for all."""


class Strip:
    """Values of all nodes on a strip along one axis: tensors (1, 1, cells), of one cell where places are gone; None for constants.

    Args:
        report: of the network.
        axis: 0 rows, 1 columns.
        length: cells of the input.
    """

    def __init__(self, report: Report, axis: int, length: int) -> None:
        self.axis = axis
        self.gates = gates(report)
        self.captured = length == report.resolution[axis]
        self.x = torch.ones(1, 1, length, dtype=torch.float64, requires_grad=True)
        self.values: dict[Node, Tensor | None] = {}
        for node in report.graph.nodes:
            self.values[node] = self.x if node is report.origin else self._value(node)

    def _value(self, node: Node) -> Tensor | None:
        inputs = [self.values[operand] for operand in node.inputs]
        if node.op in {"input", "constant"} or all(value is None for value in inputs):
            return None
        run = _STRIPS.get(node.op)
        if run is None:
            raise _NoStripError
        return run(self, node, inputs)

    def span(self, node: Node, unit: int | None) -> tuple[int, int]:
        """Cells with a gradient from one unit, or from all, half-open; (0, 0) if there are none."""
        value = self.values[node]
        if value is None:
            return 0, 0
        part = value.sum() if unit is None else value[0, 0, min(unit, value.shape[2] - 1)]
        (gradient,) = torch.autograd.grad(part, self.x, retain_graph=True)
        cells = gradient[0, 0].nonzero()
        return (int(cells[0]), int(cells[-1]) + 1) if len(cells) else (0, 0)


_Run = Callable[[Strip, Node, Sequence["Tensor | None"]], "Tensor | None"]


def _mean_window(x: Tensor, window: Window, mode: str, n_out: int) -> Tensor:
    kernel = torch.full((1, 1, window.kernel), 1 / window.kernel, dtype=x.dtype)
    if window.transposed:
        full = F.conv_transpose1d(x, kernel, stride=window.stride, dilation=window.dilation)
        return F.pad(full, (-window.before, n_out - full.shape[2] + window.before))
    if window.before or window.after:
        x = F.pad(x, (window.before, window.after), "constant" if mode == "zeros" else mode)
    needed = (n_out - 1) * window.stride + window.extent
    return F.conv1d(F.pad(x, (0, max(0, needed - x.shape[2]))), kernel, stride=window.stride, dilation=window.dilation)


def _windowed(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    x = cast("Tensor", inputs[0])
    window = windows(node)[strip.axis]
    n_out = window.out_size(x.shape[2], ceil_mode=bool(node.attrs.get("ceil_mode", False)))
    return _mean_window(x, window, node.attrs.get("padding_mode", "zeros"), n_out)


def _padded(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    before, after = node.attrs["padding"][2 * strip.axis : 2 * strip.axis + 2]
    mode = node.attrs["mode"]
    return F.pad(cast("Tensor", inputs[0]), (before, after), mode) if before or after else inputs[0]


def _everything(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    del strip, node
    return cast("Tensor", inputs[0]).mean(2, keepdim=True)


def _first(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    del strip, node
    return inputs[0]


def _adaptive(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    return F.adaptive_avg_pool1d(cast("Tensor", inputs[0]), node.attrs["output_size"][strip.axis])


def _sum(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in inputs if value is not None]
    if node in strip.gates and len(present) == 2:
        return inputs[1 - strip.gates[node]]
    total = present[0]
    for value in present[1:]:
        total = total + value
    return total


def _cat(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    if node.attrs["dim"] != 2 + strip.axis:
        return _sum(strip, node, inputs)
    if any(value is None for value in inputs):
        raise _NoStripError
    return torch.cat([value for value in inputs if value is not None], 2)


def _slice(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    attrs, x = node.attrs, cast("Tensor", inputs[0])
    if attrs["dim"] != 2 + strip.axis:
        return x
    whole = attrs["stop"] >= (node.inputs[0].shape or ())[attrs["dim"]]
    if not whole and not strip.captured:
        raise _NoStripError
    return x[:, :, attrs["start"] : None if whole else attrs["stop"] : attrs["step"]]


def _upsample(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    attrs, x = node.attrs, cast("Tensor", inputs[0])
    n_in, before, after = (x.shape[2], *(((n.shape or ())[2 + strip.axis]) for n in (node.inputs[0], node)))
    n_out = round(n_in * after / before)
    scale = None if attrs["scales"] is None else attrs["scales"][strip.axis]
    if attrs["mode"] == "nearest":
        taps = AxisTaps.nearest(n_in, n_out, scale)
    else:
        kind = AxisTaps.linear if attrs["mode"] == "bilinear" else AxisTaps.cubic
        taps = kind(n_in, n_out, align_corners=bool(attrs["align_corners"]), scale=scale, dtype="float64")
    weights = torch.ones(taps.index.shape) if taps.weights is None else torch.from_numpy(abs(taps.weights))
    read = x[0, 0][torch.from_numpy(taps.index.clip(0).astype("int64"))]
    return (read * weights.to(x.dtype)).sum(1)[None, None]


def _softmax(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    x = cast("Tensor", inputs[0])
    return x if node.attrs["dim"] != 2 + strip.axis else x.mean(2, keepdim=True).expand_as(x)


def _linear(strip: Strip, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    del strip
    if len(node.shape or ()) != 2:
        raise _NoStripError
    return inputs[0]


_STRIPS: dict[str, _Run] = {
    **dict.fromkeys(("conv2d", "max_pool2d", "avg_pool2d"), _windowed),
    **dict.fromkeys(("affine", "act", "scalar", "identity", "channel_shuffle"), _first),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), _sum),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive),
    **dict.fromkeys(("global_avg_pool", "flatten"), _everything),
    "pad": _padded,
    "cat": _cat,
    "slice": _slice,
    "upsample": _upsample,
    "softmax": _softmax,
    "linear": _linear,
}


def _check_strips(report: Report, layers: Sequence[LayerField]) -> dict[str, Check]:
    if report.axes != 2 or any(node.op == "input" and node is not report.origin for node in report.graph.nodes):
        raise _NoStripError
    nodes = {node.name: node for node in report.graph.nodes}
    reported: dict[str, list[tuple[float, float]]] = {layer.name: [] for layer in layers}
    measured: dict[str, list[tuple[float, float]]] = {layer.name: [] for layer in layers}
    for axis in (0, 1):
        strip = _strip(report, layers, axis)
        length = strip.x.shape[2]
        for layer in layers:
            own = layer.axes[axis]
            value = strip.values[nodes[layer.name]]
            if own.status == "unknown" or value is None:
                continue
            for unit in _units(own, value.shape[2]):
                if own.status == "global":
                    reported[layer.name].append(whole(strip.span(nodes[layer.name], None), length))
                else:
                    reported[layer.name].append(_predicted(own, unit, length, captured=strip.captured))
                measured[layer.name].append(strip.span(nodes[layer.name], unit))
    result = {}
    for layer in layers:
        said, found = tuple(reported[layer.name]), tuple(measured[layer.name])
        if not said or layer.status in {"unknown", "bounded"}:
            result[layer.name] = Check(layer.name, "unchecked", reason="its field is unknown, or depends on nothing")
        else:
            result[layer.name] = Check(layer.name, "agrees" if said == found else "differs", said, found, "on strips")
    return result


def _strip(report: Report, layers: Sequence[LayerField], axis: int) -> Strip:
    """The shortest strip on which no finite field meets the border, where the network runs on it; else as captured."""
    captured = report.resolution[axis]
    finite = [float(layer.axes[axis].size or 0) for layer in layers if layer.axes[axis].status == "exact"]
    length = captured
    while length < 3 * max(finite, default=0) and 2 * length <= LONGEST:
        length *= 2
    if not any(_depends_on_size(layer.axes[axis], layer) for layer in layers):
        try:
            return Strip(report, axis, length)
        except (RuntimeError, ShapeError, _NoStripError):
            pass
    return Strip(report, axis, captured)


def _depends_on_size(own: AxisField, layer: LayerField) -> bool:
    return own.status == "exact" and own.units is not None and (own.units.table is not None or any("input size" in n for n in layer.notes))


def _units(own: AxisField, count: int) -> Iterator[int]:
    """The unit in the middle and those after it, one for every phase and one more for the stride."""
    phases = len(own.units.phases) if own.units is not None and own.units.phases else 1
    yield from range(count // 2, min(count // 2 + phases + 1, count))


def _predicted(own: AxisField, unit: int, length: int, *, captured: bool) -> tuple[float, float]:
    if own.units is None:
        return 0, 0
    return own.units.box(unit, length if captured else None)


def whole(reach: tuple[float, float], length: int) -> tuple[float, float]:
    """All that a layer can see by any of its units; strides may leave cells at the end that nothing reads."""
    return reach if reach[1] - reach[0] > length // 2 else (0, length)


def gates(report: Report) -> dict[Node, int]:
    """Products of which one operand was left out as a gate, with the number of that operand."""
    found: dict[Node, int] = {}
    for node in report.graph.nodes if report.ignore_gates else ():
        if node.op in {"mul", "div"} and len(node.inputs) == 2:
            layers = [report.layers.get(operand.name) for operand in node.inputs]
            everything = [layer is not None and all(axis.status == "global" for axis in layer.axes) for layer in layers]
            if sum(everything) == 1 and None not in layers:
                found[node] = everything.index(True)
    return found


def clipped_box(layer: LayerField, unit: Sequence[int], extent: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """What the report says of a unit, per axis, clipped to the input."""
    box = box_of(layer, unit, extent, clip=True)
    half = len(box) // 2
    return tuple((box[i], box[i + half]) if box[i] < box[i + half] else (0, 0) for i in range(half))
