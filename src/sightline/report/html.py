"""The HTML page of a job: one file without any reference to the network, readable from disk, in light and dark.

What belongs here: turning a `RunReport` and some pictures into a page; charts are drawn as SVG here, so that the page shows
them without scripts (scripts only sort the table and read values off the charts). What does not: measuring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sightline.report.data import CheckRecord, RunReport
from sightline.report.page import Thumbnail, engineering, markup, render_page

_WIDTH, _HEIGHT = 960, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 20, 36
_POINTS = 1200  # more than a screen has columns; longer runs are thinned, peaks kept


@dataclass
class Line:
    """One line of a chart.

    Attributes:
        name: for the legend.
        style: CSS class that colours it.
        x, y: points, in the chart's own units.
        dots: draw points instead of a line.
    """

    name: str
    style: str
    x: list[float]
    y: list[float]
    dots: bool = False


def render(report: RunReport, thumbnails: Sequence[Thumbnail] = ()) -> str:
    """The page.

    Args:
        report: what was measured.
        thumbnails: pictures to embed as JPEG.

    Returns:
        HTML, complete in itself.

    Raises:
        MissingPackageError: without jinja2 or Pillow.
    """
    most = max((work(row) for row in report.layers), default=0.0)
    facts = [("Settings", report.settings), ("Source", report.source), ("Network", report.model), ("Versions and machine", report.versions)]
    charts = [(title, markup(svg), legend, across) for title, svg, legend, across in _charts(report)]
    layers = [layer_row(row, most) for row in report.layers]
    return render_page("template.html.j2", report, thumbnails, facts, charts=charts, layers=layers)


def _charts(report: RunReport) -> list[tuple[str, str, list[tuple[str, str]], str]]:
    """Title, SVG, legend (name, style) of each chart, and what lies along it."""
    index = [float(frame.index) for frame in report.frames]
    work = [
        Line("work done, % of the dense MACs", "c1", index, [100 * frame.mac_share for frame in report.frames]),
        Line("input changed, % of positions", "c2", index, [100 * frame.input_density for frame in report.frames]),
    ]
    steady = report.steady
    times = [Line("streamed, ms", "c1", [float(frame.index) for frame in steady], [1000 * frame.seconds for frame in steady])]
    if report.samples:
        dense = [1000 * sample.dense_seconds for sample in report.samples]
        times.append(
            Line("dense on sampled frames of the same run, ms", "c3", [float(sample.index) for sample in report.samples], dense, dots=True)
        )
    charts: list[tuple[str, list[Line], float | None, str]] = [
        ("Density over time", work, 100.0, "frame"),
        ("Time of the network per frame, first frame left out", times, None, "frame"),
        *_error_charts(report),
    ]
    return [
        (title, line_chart(lines, title, top, across), [(line.name, line.style) for line in lines], across)
        for title, lines, top, across in charts
    ]


def _error_charts(report: RunReport) -> list[tuple[str, list[Line], float | None, str]]:
    """What checks, budget and tuning add."""
    charts: list[tuple[str, list[Line], float | None, str]] = []
    first, last = (float(report.frames[at].index) if report.frames else 0.0 for at in (0, -1))
    unit = report.check_unit
    finite = [check for check in report.checks if math.isfinite(check.error)]
    if finite:
        lines = [Line(f"error, {unit}", "c1", [float(check.index) for check in finite], [check.error for check in finite], dots=True)]
        if report.budget is not None and report.budget["metric"] != "seconds":
            lines.append(Line("budget", "c2", [first, last], [report.budget["goal"]] * 2))
        charts.append((f"Error against dense, {unit}", lines, None, "frame"))
    factors = [(float(frame.index), frame.factor) for frame in report.frames if frame.factor is not None]
    if factors:
        x, y = [place for place, _ in factors], [factor for _, factor in factors]
        charts.append(("Factor on all thresholds", [Line("factor", "c1", x, y)], None, "frame"))
    frontier = _frontier(report, finite)
    return [*charts, frontier] if frontier is not None else charts


def _frontier(report: RunReport, checks: Sequence[CheckRecord]) -> tuple[str, list[Line], float | None, str] | None:
    """Work that is left against error: what the tuning measured, what the checks of this run did; None if neither is there."""
    lines = []
    tuning = report.tuning or {}
    metric = {"noise units": "noise", "relative L2": "relative"}[report.check_unit]
    points = sorted((float(point["error"]), 100 * float(point["work"])) for point in tuning.get("frontier", []))
    if points:
        metric = str(tuning.get("metric"))
        lines.append(Line("tuning, on held-back frames", "c2", [error for error, _ in points], [work for _, work in points]))
    unit = {"noise": "noise units", "relative": "relative L2"}.get(metric, metric)
    if checks and unit == report.check_unit:
        work = [100 * check.mac_share for check in checks]
        lines.append(Line("this run, between checks", "c1", [check.error for check in checks], work, dots=True))
    if not lines:
        return None
    what = "time" if tuning.get("objective") == "seconds" else "work"
    return f"Saving against error: {what} left, % of dense, over the error in {unit}", lines, None, "error"


def line_chart(lines: Sequence[Line], title: str, top: float | None = None, across: str = "frame") -> str:
    """A line chart as SVG; colours come from the page's CSS.

    Args:
        lines: what to draw.
        title: what it shows, for those who cannot see it.
        top: end of the y axis; None: from the data.
        across: what x is: "frame", a whole number, from the first to the last; or anything else that starts at 0.

    Returns:
        An ``<svg>`` element; its points stand in ``data-`` attributes for the script that reads values off it.
    """
    xs = [x for line in lines for x in line.x] or [0.0]
    ys = [y for line in lines for y in line.y] or [0.0]
    whole = across == "frame"
    low = min(xs) if whole else 0.0
    high = max(low + 1, *xs) if whole else axis_ticks(max(1e-6, *xs))[-1]
    ticks = axis_ticks(max(1e-6, *ys) if top is None else top)
    top = ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)
        return round(across, 1), round(_TOP + (1 - min(y, top) / top) * (_HEIGHT - _TOP - _BOTTOM), 1)

    sides = f'data-left="{_LEFT}" data-right="{_WIDTH - _RIGHT}" data-low="{low:g}" data-high="{high:g}" data-across="{across}"'
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}" {sides}>']
    for tick in ticks:
        y = place(low, tick)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in axis_ticks(high):
        if low <= tick <= high and (not whole or tick == int(tick)):
            x = place(tick, 0)[0]
            parts.append(f'<text class="tick" x="{x}" y="{_HEIGHT - 8}" text-anchor="middle">{tick:g}</text>')
    for line in lines:
        points = thin(list(zip(line.x, line.y, strict=True)))
        drawn = [place(x, y) for x, y in points]
        values = " ".join(f"{x:g},{y:.4g}" for x, y in points)
        attributes = f'data-name="{line.name}" data-values="{values}"'
        if line.dots or len(points) == 1:
            dots = "".join(f'<circle cx="{x}" cy="{y}" r="4"/>' for x, y in drawn)
            parts.append(f'<g class="dots {line.style}" {attributes}>{dots}</g>')
        else:
            path = " ".join(f"{x},{y}" for x, y in drawn)
            parts.append(f'<polyline class="line {line.style}" {attributes} points="{path}"/>')
    parts.append(f'<line class="cursor" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" x1="0" x2="0"/></svg>')
    return "".join(parts)


def axis_ticks(top: float) -> list[float]:
    """Round numbers from 0 to at least ``top``, four to six steps.

    >>> axis_ticks(87.0)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    rough = top / 5
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    return [round(step * count, 10) for count in range(math.ceil(top / step - 1e-9) + 1)]


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep at most about `_POINTS` points: of each group the lowest and the highest, in order."""
    if len(points) <= _POINTS:
        return points
    size = math.ceil(2 * len(points) / _POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        extremes = {min(group, key=lambda point: point[1]), max(group, key=lambda point: point[1])}
        kept.extend(sorted(extremes))
    return kept


def layer_row(row: dict[str, Any], most: float) -> dict[str, Any]:
    """A table row: values to sort by, and how they are shown."""
    density, macs, share = (float(row.get(key) or 0.0) for key in ("density", "macs", "share"))
    return {
        "site": str(row.get("site", "")),
        "kind": str(row.get("kind", "")),
        "executor": str(row.get("executor", "")),
        "density": density,
        "density_text": f"{100 * density:.1f} %",
        "macs": macs,
        "macs_text": engineering(macs),
        "share": share,
        "share_text": f"{100 * share:.1f} %",
        "work": work(row),
        "work_text": f"{100 * work(row):.2f} %",
        "bar": 100 * work(row) / most if most else 0.0,
        "note": str(row.get("note") or ""),
    }


def work(row: dict[str, Any]) -> float:
    """Work done at a call site, as a share of the dense network's."""
    return float(row.get("density") or 0.0) * float(row.get("share") or 0.0)
