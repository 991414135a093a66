"""The HTML page of a job: one file without any reference to the network, readable from disk, in light and dark.

What belongs here: turning a `RunReport` and some pictures into a page; charts are drawn as SVG here, so that the page shows
them without scripts (scripts only sort the table and read values off the charts). What does not: measuring.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from typing import Any

from sightline.extras import need
from sightline.media import Image
from sightline.report.camera_path import path_chart, path_length
from sightline.report.data import RunReport

_WIDTH, _HEIGHT = 960, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 20, 36
_POINTS = 1200  # more than a screen has columns; longer runs are thinned, peaks kept


@dataclass
class Thumbnail:
    """A picture for the page.

    Attributes:
        image: (h, w, 3) RGB.
        caption: a line below it.
    """

    image: Image
    caption: str


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
    environment, markup = page_templates()
    most = max((work(row) for row in report.layers), default=0.0)
    page: str = environment.get_template("template.html.j2").render(
        report=report,
        source_name=PurePath(str(report.source.get("name", ""))).name,
        summary=report.summary(),
        charts=[(title, markup(svg), legend) for title, svg, legend in _charts(report)],
        camera=markup(path_chart(report.frames, _view(report))) if any(frame.camera for frame in report.frames) else None,
        camera_words=_camera_words(report),
        layers=[layer_row(row, most) for row in report.layers],
        thumbnails=[(data_uri(thumbnail.image), thumbnail.caption, thumbnail.image.shape) for thumbnail in thumbnails],
        facts=_facts(report),
    )
    return page


def page_templates() -> tuple[Any, Any]:
    """The environment that finds this package's templates, and the class of text that they take as it is.

    Raises:
        MissingPackageError: without jinja2.
    """
    jinja2 = need("jinja2", "write the HTML report")
    folder = resources.files("sightline.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
    )  # fmt: skip
    markup = jinja2.filters.Markup if hasattr(jinja2.filters, "Markup") else need("markupsafe", "write the HTML report").Markup
    return environment, markup


def _view(report: RunReport) -> tuple[float, float]:
    return float(report.model["input_width"]), float(report.model["input_height"])


def _camera_words(report: RunReport) -> str:
    """A sentence on the camera's path."""
    restarts = sum(frame.restart for frame in report.frames)
    lost = f"; it was lost at {restarts} frame{'s' * (restarts != 1)} (dots), where the picture began anew" if restarts else ""
    return f"The middle of the view moved {path_length(report.frames):.0f} pixels of the network's input in all{lost}."


def _charts(report: RunReport) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Title, SVG and legend (name, style) of each chart."""
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
    charts = [("Density over time", work, 100.0), ("Time of the network per frame, first frame left out", times, None)]
    return [(title, line_chart(lines, title, top), [(line.name, line.style) for line in lines]) for title, lines, top in charts]


def line_chart(lines: Sequence[Line], title: str, top: float | None = None) -> str:
    """A line chart over frame numbers as SVG; colours come from the page's CSS.

    Args:
        lines: what to draw.
        title: what it shows, for those who cannot see it.
        top: end of the y axis; None: from the data.

    Returns:
        An ``<svg>`` element; its points stand in ``data-`` attributes for the script that reads values off it.
    """
    xs = [x for line in lines for x in line.x] or [0.0]
    ys = [y for line in lines for y in line.y] or [0.0]
    low = min(xs)
    high = max(low + 1, *xs)
    ticks = axis_ticks(max(1e-6, *ys) if top is None else top)
    top = ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)
        return round(across, 1), round(_TOP + (1 - min(y, top) / top) * (_HEIGHT - _TOP - _BOTTOM), 1)

    sides = f'data-left="{_LEFT}" data-right="{_WIDTH - _RIGHT}"'
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}" {sides}>']
    for tick in ticks:
        y = place(low, tick)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in axis_ticks(high):
        if low <= tick <= high and tick == int(tick):
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


def engineering(number: float) -> str:
    """A large number with three digits and k, M or G."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {suffix}"
    return f"{number:.3g}"


def _facts(report: RunReport) -> list[tuple[str, list[tuple[str, str]]]]:
    """The tables at the end: title, rows."""
    groups: list[tuple[str, dict[str, Any]]] = [
        ("Settings", report.settings),
        ("Source", report.source),
        ("Network", report.model),
        ("Versions and machine", report.versions),
    ]
    return [(title, [(str(key).replace("_", " "), shown(value)) for key, value in table.items()]) for title, table in groups]


def shown(value: Any) -> str:
    """A setting as tables show it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value)
    return "none" if value is None or value == "" else str(value)


def data_uri(image: Image) -> str:
    """A picture as the address of itself, to stand in a page."""
    buffer = io.BytesIO()
    need("PIL.Image", "write the HTML report").fromarray(image).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
