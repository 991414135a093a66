"""Draws docs/images/roofline.png from the result file of bench_roofline.py: ``draw_roofline.py [RESULTS [PICTURE]]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TITLES = {"avx512": "AVX-512", "avx2": "AVX2"}
COLOURS = {"1x1": "#1f77b4", "3x3": "#d62728", "7x7": "#9467bd", "depthwise": "#2ca02c", "linear": "#7f7f7f"}
MARKERS = ("o", "^")


def draw(results: Path, picture: Path) -> None:
    """One panel per instruction set; a point per layer, coloured by kind, shaped by network."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    document = json.loads(results.read_text(encoding="utf-8"))
    machine = next(case for case in document["cases"] if case["case"] == "machine")
    cases = [case for case in document["cases"] if case["rows"] and "flops" in case["rows"][0]]
    names = list(dict.fromkeys(case["case"] for case in cases))
    isas = [isa for isa in TITLES if any(case["isa"] == isa for case in cases)]
    figure, panels = plt.subplots(1, len(isas), figsize=(5.2 * len(isas), 4.2), sharey=True, squeeze=False)
    for isa, panel in zip(isas, panels[0], strict=True):
        _roof(panel, machine["peak_gflops"][isa]["best"], machine["copy_gbytes"]["best"])
        panel.set_title(f"{TITLES[isa]}, one core")
        panel.set_xlabel("intensity (FLOP per byte, every map moved once)")
        for case in cases:
            if case["isa"] == isa:
                _points(panel, case, MARKERS[names.index(case["case"]) % len(MARKERS)])
    panels[0][0].set_ylabel("GFLOP/s at 100 %")
    kinds = [kind for kind in COLOURS if any(row["kind"] == kind for case in cases for row in case["rows"])]
    handles = [plt.Line2D([], [], marker="s", linestyle="", color=COLOURS[kind], label=kind) for kind in kinds]
    for mark, name in zip(MARKERS, names, strict=False):
        handles.append(plt.Line2D([], [], marker=mark, linestyle="", color="#444444", label=name))
    panels[0][-1].legend(handles=handles, loc="lower right", fontsize=8)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _roof(panel: Any, peak: float, bandwidth: float) -> None:
    low, high = 0.3, 400.0
    panel.plot([low, peak / bandwidth, high], [low * bandwidth, peak, peak], color="black", linewidth=1.2)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(low, high)
    panel.set_ylim(3, 250)
    panel.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    panel.annotate(f"{peak:.0f} GFLOP/s", (high * 0.9, peak * 1.07), ha="right", fontsize=9)
    place = (low * 1.15, low * 1.15 * bandwidth * 1.3)
    panel.annotate(f"{bandwidth:.0f} GB/s copied", place, fontsize=9, rotation=44, rotation_mode="anchor")


def _points(panel: Any, case: dict[str, Any], marker: str) -> None:
    for row in case["rows"]:
        x = row["flops"] / row["bytes"]
        panel.plot(x, row["gflops"], marker=marker, markersize=5, alpha=0.65, linestyle="", color=COLOURS.get(row["kind"], "#7f7f7f"))


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    source = given[0] if given else ROOT / "benchmarks" / "results" / "roofline-1.json"
    draw(source, given[1] if len(given) > 1 else ROOT / "docs" / "images" / "roofline.png")
