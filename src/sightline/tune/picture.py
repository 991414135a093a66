"""The frontier as a picture: saving against error."""

from __future__ import annotations

from pathlib import Path

from sightline.errors import MediaError
from sightline.extras import need
from sightline.files import whole_file
from sightline.tune.report import TuneReport

SUFFIXES = (".png", ".svg", ".pdf")


def draw_frontier(report: TuneReport, path: str | Path, title: str = "") -> None:
    """Draws what was measured: every pass faintly, the frontier on held-back frames as a line, the choice as a star.

    Args:
        report: of a tuning.
        path: .png, .svg or .pdf.
        title: above the picture.

    Raises:
        MissingPackageError: matplotlib is not installed.
        MediaError: the picture cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise MediaError(f"'{path}': the frontier can be drawn as {', '.join(SUFFIXES)}; got '{path.suffix}'.")
    need("matplotlib", "draw the frontier")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    tried = [point for point in report.points if not point.verified and point.error <= 3 * report.budget]
    axes.scatter([p.error for p in tried], [100 * p.work for p in tried], s=12, color="0.75", label="tried on the tuning frames")
    line = [point for point in report.frontier if point.error <= 3 * report.budget]
    axes.plot([p.error for p in line], [100 * p.work for p in line], "o-", color="tab:blue", label="frontier on held-back frames")
    axes.plot([report.error], [100 * report.work], "*", markersize=14, color="tab:red", label=f"chosen: {100 * report.work:.1f} %")
    axes.axvline(report.budget, color="0.4", linestyle="--", linewidth=1, label=f"budget {report.budget:g}")
    unit = {"noise": "noise units", "keypoints": "cells"}.get(report.metric, "share")
    axes.set_xlabel(f"error against dense, {report.metric} ({unit})")
    axes.set_ylabel(f"{'multiply-accumulates' if report.objective == 'macs' else 'time'} left, % of dense")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    if title:
        axes.set_title(title)
    try:
        with whole_file(path) as partial:
            figure.savefig(partial)
    except OSError as error:
        raise MediaError(f"cannot write the picture '{path}': {error.strerror or error}. Choose a writable path.") from error
