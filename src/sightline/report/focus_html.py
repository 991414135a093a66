"""The HTML page of a focus job: one file without any reference to the network, in the style of the streaming report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sightline.report.data import percent
from sightline.report.focus_data import FocusReport
from sightline.report.page import Thumbnail, engineering, render_page


def render_focus(report: FocusReport, thumbnails: Sequence[Thumbnail] = ()) -> str:
    """The page.

    Args:
        report: what was measured.
        thumbnails: pictures to embed as JPEG.

    Returns:
        HTML, complete in itself.

    Raises:
        MissingPackageError: without jinja2 or Pillow.
    """
    total = sum(float(row["macs"]) for row in report.layers)
    most = max((float(row["macs_done"]) for row in report.layers), default=0.0)
    return render_page(
        "focus.html.j2",
        report,
        thumbnails,
        _facts(report),
        images=[_image_row(image) for image in report.images],
        agreement=sorted({key for image in report.images for key in image.agreement}),
        layers=[_layer_row(row, total, most) for row in report.layers],
    )


def _image_row(image: Any) -> dict[str, Any]:
    """A table row: what is shown per picture."""
    return {
        "name": image.name,
        "area": percent(image.area),
        "macs": percent(image.mac_share),
        "focused": f"{1000 * image.focused_seconds:.1f}",
        "dense": f"{1000 * image.dense_seconds:.1f}",
        "focused_cpu": f"{1000 * image.focused_cpu_seconds:.1f}",
        "dense_cpu": f"{1000 * image.dense_cpu_seconds:.1f}",
        "error": "" if image.relative_l2 is None else f"{image.relative_l2:.3g}",
        "largest": "" if image.max_abs is None else f"{image.max_abs:.3g}",
        "agreement": image.agreement,
        "notes": " · ".join(dict.fromkeys(f"{name}: {note}" for name, note in _notes(image) if note)),
    }


def _notes(image: Any) -> list[tuple[str, str]]:
    return [("focused", image.focused_note), ("dense", image.dense_note)]


def _layer_row(row: dict[str, Any], total: float, most: float) -> dict[str, Any]:
    macs, done, share = float(row["macs"]), float(row["macs_done"]), float(row["share"])
    return {
        **row,
        "share_text": percent(share),
        "bar": 100 * done / most if most else 0.0,
        "macs_text": engineering(macs) if macs else "",
        "part": percent(macs / total) if total and macs else "",
        "work": percent(done / total) if total and macs else "",
    }


def _facts(report: FocusReport) -> list[tuple[str, dict[str, Any]]]:
    timing = {
        "runs": f"{report.runs} per picture, focused and dense in turns; medians",
        "CPU time": report.clock,
        "dense network": report.dense_engine,
        "whole job": f"{report.wall_seconds:.1f} s",
    }
    skipped = report.source.get("skipped", {})
    source = {"name": report.source.get("name"), "kind": report.source.get("kind"), **{f"skipped {k}": v for k, v in skipped.items()}}
    return [
        ("Settings", {"area": report.area, "mode": report.mode, **report.settings}),
        ("Timing", timing),
        ("Source", source),
        ("Network", report.model),
        ("Versions and machine", report.versions),
    ]
