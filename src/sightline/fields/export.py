"""A report in other forms: JSON (the data of the HTML page), DOT, and a plain table.

What belongs here: turning a report into text. What does not: drawing (`svg.py`), HTML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from sightline.fields.diagnosis import RULES

if TYPE_CHECKING:
    from sightline.fields.layer import AxisField, LayerField
    from sightline.fields.report import Report

SCHEMA_VERSION = 1
COLOURS = {"unproductive": "#e5534b", "critical": "#f0883e", "partial": "#e3c448", "small_map": "#b083d6"}
"""Fill of a judged layer, by the first of its rules in this order."""


def document(report: Report, resolution: int | Sequence[int] | None = None) -> dict[str, Any]:
    """The report as plain data: what a page needs to show it and to judge it again at any other resolution by itself.

    Numbers are ints and floats; an infinite one is the string ``"inf"``, an unknown one null, a fraction ``[p, q]``. Every list per
    axis is in the order (row, col).

    ``schema_version`` 1. ``name``; ``input_shape``; ``resolution`` (captured size per axis); ``axes`` (their number); ``macs``;
    ``params``; ``ignore_gates``; ``outputs`` (ids); ``nodes``; ``edges`` (``[from id, to id]``); ``diagnosis`` (at the resolution asked
    for). The id of a node is its position in ``nodes``, in execution order; constants are among them, for the ids to agree with recipes.

    A node has:

    * ``name``, ``op``, ``module``, ``source``, ``shape``, ``params``, ``macs`` (as captured), ``inputs`` (ids), ``status``,
      ``notes``, ``hidden`` (true for constants, which a page leaves out);
    * ``fields``: per axis ``{"status", "size", "min_size", "stride", "start", "support", "phases"}``; ``phases`` are
      ``[[lo, hi], ...]`` of unit 0, 1, ... up to where they repeat, ``stride * len(phases)`` cells further; null without a pattern.
      The box of unit u is ``phases[u mod n]`` moved by ``floor(u / n) * stride * n``;
    * ``table``: per axis ``[[lo, hi], ...]`` of every unit where units do not all follow the pattern (it then goes first), else null;
    * ``grid``: how its map size follows from that of the input, see `sightline.fields.grids`. Its MACs at another resolution are
      ``macs * area / captured area``, where the area is that of its own map, or for ``conv_transpose2d`` of its first input's;
    * ``judged``: null, or for a layer to which the rules apply ``{"kernel": extents per axis, "input": id}``.

    The rules, with R the resolution, over the axes where ``kernel`` is above 1, ``before`` = node ``input``, null as not covering:

    * unproductive: ``before.min_size >= R`` on all; saturated: ``before.size >= R`` on all;
    * critical: not unproductive, own ``min_size > R`` on all; partial: neither, own ``min_size > R`` on some;
    * small_map: the map of ``before`` is smaller than ``kernel`` on some.

    A layer whose own or ``before`` status is "unknown" is not judged. Wasted is what the unproductive layers cost.

    ``diagnosis``: ``{"resolution", "macs", "params", "wasted_macs", "wasted_params", "wasted_share", "undecided": [ids],
    "layers": {id: [rules]}}``, judged layers only.
    """
    diagnosis = report.diagnose(resolution)
    ids = {node.name: number for number, node in enumerate(report.graph.nodes)}
    nodes = []
    for number, node in enumerate(report.graph.nodes):
        layer = report.layers.get(node.name)
        entry: dict[str, Any] = {
            "name": node.name,
            "op": node.op if layer is None else layer.op,
            "module": node.module,
            "source": node.source,
            "shape": None if node.shape is None else list(node.shape),
            "inputs": [ids[operand.name] for operand in node.inputs],
            "grid": report.recipes[number],
            "hidden": layer is None,
        }
        entry |= _figures(layer, ids) if layer is not None else {}
        nodes.append(entry)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": report.name,
        "input_shape": list(report.input_shape),
        "resolution": list(report.resolution),
        "axes": report.axes,
        "macs": report.macs,
        "params": report.params,
        "ignore_gates": report.ignore_gates,
        "outputs": [ids[node.name] for node in report.graph.outputs],
        "nodes": nodes,
        "edges": [[ids[operand.name], ids[node.name]] for node in report.graph.nodes for operand in node.inputs],
        "diagnosis": {
            "resolution": list(diagnosis.resolution),
            "macs": diagnosis.macs,
            "params": diagnosis.params,
            "wasted_macs": diagnosis.wasted_macs,
            "wasted_params": diagnosis.wasted_params,
            "wasted_share": diagnosis.wasted_share,
            "undecided": [ids[name] for name in diagnosis.undecided],
            "layers": {str(ids[verdict.layer]): list(verdict.rules) for verdict in diagnosis.verdicts},
        },
    }


def _figures(layer: LayerField, ids: dict[str, int]) -> dict[str, Any]:
    judged = None
    if layer.is_weight_layer and "transpose" not in layer.op and max(layer.kernel, default=1) > 1 and layer.inputs:
        judged = {"kernel": list(layer.kernel), "input": ids[layer.inputs[0]]}
    return {
        "params": layer.params,
        "macs": layer.macs,
        "status": layer.status,
        "notes": list(layer.notes),
        "fields": [_axis(axis) for axis in layer.axes],
        "table": [_table(axis) for axis in layer.axes],
        "judged": judged,
    }


def _axis(axis: AxisField) -> dict[str, Any]:
    field = axis.field
    return {
        "status": axis.status,
        "size": _number(axis.size),
        "min_size": _number(axis.min_size),
        "stride": _number(axis.stride),
        "start": axis.start,
        "support": axis.support,
        "phases": None if field is None else [list(phase) for phase in field.phases],
    }


def _table(axis: AxisField) -> list[list[int]] | None:
    if axis.units is None or axis.units.table is None:
        return None
    return [list(axis.units.box(unit)) for unit in range(axis.count)]


def _number(value: float | Fraction | None) -> Any:
    if isinstance(value, Fraction):
        return [value.numerator, value.denominator]
    return "inf" if value == math.inf else value


def to_json(report: Report, resolution: int | Sequence[int] | None = None, *, indent: int | None = None) -> str:
    """The `document` as JSON text."""
    return json.dumps(document(report, resolution), indent=indent, allow_nan=False)


# -- text -----------------------------------------------------------------------------------------------------------------------------


def shown(values: Sequence[float | Fraction | None]) -> str:
    """Figures per axis for readers: one number if they agree."""
    words = ["?" if value is None else "all" if value == math.inf else str(value) for value in values]
    return words[0] if len(set(words)) == 1 else " x ".join(words)


def rows(report: Report, resolution: int | Sequence[int] | None = None) -> list[dict[str, str]]:
    """What the table shows: weight layers, pools and outputs, one row each, as text."""
    diagnosis = report.diagnose(resolution)
    rules = {verdict.layer: verdict.rules for verdict in diagnosis.verdicts}
    macs = report.macs_at(diagnosis.resolution)
    chosen = {layer.name for layer in report.outputs}
    result = []
    for layer in report.layers.values():
        if not (layer.is_weight_layer or layer.kernel or "pool" in layer.op or layer.name in chosen or layer.status == "unknown"):
            continue
        result.append(
            {
                "layer": layer.name,
                "op": layer.op,
                "field": shown(layer.size),
                "shortest": shown(layer.min_size),
                "stride": shown(layer.stride),
                "start": shown(layer.start),
                "status": layer.status,
                "MACs": amount(macs[layer.name]),
                "parameters": amount(layer.params),
                "at this size": " ".join(rules.get(layer.name, ())),
            }
        )
    return result


def amount(value: float) -> str:
    """A number with a unit prefix: 1.82 G.

    >>> amount(1820000000), amount(999), amount(25557032)
    ('1.82 G', '999', '25.6 M')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.0f}"


def summary(report: Report, resolution: int | Sequence[int] | None = None) -> str:
    """The verdict in one or two sentences."""
    diagnosis = report.diagnose(resolution)
    size = " x ".join(map(str, diagnosis.resolution))
    counts = {rule: len(diagnosis.broken(rule)) for rule in RULES}
    text = (
        f"At {size}: {counts['unproductive']} of {len(diagnosis.verdicts)} convolutions unproductive, {counts['critical']} critical, "
        f"{counts['partial']} partly beyond the input, {counts['small_map']} larger than their map; "
        f"{diagnosis.wasted_share:.1%} of {amount(diagnosis.macs)} MACs and {amount(diagnosis.wasted_params)} of "
        f"{amount(diagnosis.params)} parameters wasted."
    )
    return text + (f" Not judged, because unknown: {len(diagnosis.undecided)}." if diagnosis.undecided else "")


def table(report: Report, resolution: int | Sequence[int] | None = None) -> str:
    """The report as plain text."""
    lines = rows(report, resolution)
    head = f"{report.name}, input {report.input_shape}"
    if not lines:
        return f"{head}: no layer to show"
    widths = {key: max(len(key), *(len(line[key]) for line in lines)) for key in lines[0]}
    text = ["  ".join(key.ljust(width) for key, width in widths.items()).rstrip()]
    text += ["  ".join(line[key].ljust(width) for key, width in widths.items()).rstrip() for line in lines]
    return "\n".join([head, *text, summary(report, resolution)])


def fill(rules: Sequence[str]) -> str | None:
    """Colour of a layer that breaks these rules."""
    return next((colour for rule, colour in COLOURS.items() if rule in rules), None)


def to_dot(report: Report, resolution: int | Sequence[int] | None = None) -> str:
    """The network as a Graphviz graph."""
    diagnosis = report.diagnose(resolution)
    rules = {verdict.layer: verdict.rules for verdict in diagnosis.verdicts}
    ids = {name: f"n{number}" for number, name in enumerate(report.layers)}
    lines = [f"digraph {_quoted(report.name)} {{", '  node [shape=box, style="rounded,filled", fillcolor=white, fontname=Helvetica];']
    for name, layer in report.layers.items():
        colour = fill(rules.get(name, ()))
        label = f"{name}\n{layer.op}\nfield {shown(layer.size)} (shortest {shown(layer.min_size)})\nstride {shown(layer.stride)}"
        lines.append(f"  {ids[name]} [label={_quoted(label)}{f', fillcolor={_quoted(colour)}' if colour else ''}];")
    lines += [f"  {ids[operand]} -> {ids[name]};" for name, layer in report.layers.items() for operand in layer.inputs]
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
