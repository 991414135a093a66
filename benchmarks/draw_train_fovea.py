"""Draws docs/images/train-fovea.svg from the result file of train_fovea.py: ``draw_train_fovea.py [RESULTS [PICTURE]]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TESTS = {
    "learned": ("looks where answers become certain", "#d62728"),
    "contrast": ("looks at contrast", "#ff7f0e"),
    "random": ("looks anywhere", "#1f77b4"),
}
GREYS = {1: "#aaaaaa", 4: "#777777", 8: "#333333"}


def draw(results: Path, picture: Path) -> None:
    """To the left learning, to the right what more fixations bring."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "sightline"  # equal results give equal files
    from matplotlib import pyplot as plt

    cases = json.loads(results.read_text(encoding="utf-8"))["cases"]
    figure, (learning, looking) = plt.subplots(1, 2, figsize=(9.6, 4.4), sharey=True)
    foveated = [case for case in cases if case["case"] == "foveated, learned"]
    _learning(learning, foveated, lambda val: max(val, key=int), "#d62728", "foveated, 4 fixations")
    for count, colour in GREYS.items():
        dense = _better([case for case in cases if case["case"].startswith(f"dense, {count} x")])
        if dense:
            _learning(learning, dense, lambda val: max(val, key=int), colour, f"dense, {dense[0]['side']}x{dense[0]['side']}")
            mean = 100 * sum(case["top1"] for case in dense) / len(dense)
            looking.plot([count], [mean], "s", color=colour, label=f"dense, {dense[0]['side']}x{dense[0]['side']}, as many samples")
    for test, (words, colour) in TESTS.items():
        counts = sorted(map(int, foveated[0]["tests"][test]["top1"]))
        values = [[100 * case["tests"][test]["top1"][str(count)] for count in counts] for case in foveated]
        _band(looking, counts, values, colour, words)
    blind = [case for case in cases if case["case"] == "foveated, random"]
    if blind:
        counts = sorted(map(int, blind[0]["tests"]["random"]["top1"]))
        values = [[100 * case["tests"]["random"]["top1"][str(count)] for count in counts] for case in blind]
        _band(looking, counts, values, "#17becf", "trained and tested looking anywhere")
    learning.set_xlabel("epoch")
    learning.set_ylabel("right answers in %, digits not trained on")
    looking.set_xlabel(f"fixations ({foveated[0]['samples']} samples each)")
    for panel in (learning, looking):
        panel.set_ylim(0, 100)
        panel.grid(visible=True, color="#dddddd", linewidth=0.6)
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)  # below: nothing is covered
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)
    plt.close(figure)


def _better(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the two ends of a control the one that all seeds have."""
    ends = {case["end"]: [other for other in cases if other["end"] == case["end"]] for case in cases}
    return max(ends.values(), key=lambda group: (len(group), group[0]["top1"]), default=[])


def _learning(panel: Any, cases: list[dict[str, Any]], which: Any, colour: str, label: str) -> None:
    epochs = [entry["epoch"] for entry in cases[0]["history"] if "val" in entry]
    values = [[100 * e["val"]["top1"][which(e["val"]["top1"])] for e in case["history"] if "val" in e] for case in cases]
    _band(panel, epochs, values, colour, label)


def _band(panel: Any, places: list[int], values: list[list[float]], colour: str, label: str) -> None:
    """The mean over seeds, and the range."""
    columns = list(zip(*values, strict=True))
    panel.plot(places, [sum(column) / len(column) for column in columns], "-o", color=colour, markersize=3, label=label)
    if len(values) > 1:
        panel.fill_between(
            places, [min(column) for column in columns], [max(column) for column in columns], color=colour, alpha=0.15, linewidth=0
        )


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    defaults = [ROOT / "benchmarks" / "results" / "train-fovea-1.json", ROOT / "docs" / "images" / "train-fovea.svg"]
    draw(*(arguments + defaults[len(arguments) :]))
