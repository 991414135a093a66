"""Renders the tables in README.md and in docs/ from benchmarks/results/*.json.

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table -->``; NAME is one of `TABLES`, followed by the number of threads where
that is not 1 (``layers-2``). A marker whose results are missing becomes one sentence that says so. ``--check`` writes nothing and
fails if a file is not up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    ROOT / "README.md",
    ROOT / "docs" / "benchmarks.md",
    ROOT / "docs" / "fovea.md",
    ROOT / "docs" / "models.md",
    ROOT / "docs" / "fovea_training.md",
)
MARKER = re.compile(r"(<!-- table:([\w.-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
SCHEMA = 1
DENSE = ("eager", "torch.compile", "onnxruntime", "openvino")

Result = dict[str, Any]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, all others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def medians(case: dict[str, Any]) -> dict[str, float]:
    return {row["contestant"]: row["seconds"]["median"] for row in case["rows"]}


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def layers(result: Result) -> str:
    """Speed of the dense runs and speed-ups over the prepacked peer."""
    names = [row["contestant"] for row in result["cases"][0]["rows"] if row["contestant"].startswith("sightline")]
    head = ["layer", "`F.conv2d` GFLOP/s", "prepacked GFLOP/s", "ours, 100 %, GFLOP/s"]
    head += [f"x at {percent(float(name.split()[1]))}" for name in names]
    rows = []
    for case in result["cases"]:
        time = medians(case)
        speed = [f"{2e-9 * case['macs'] / time[name]:.0f}" for name in ("F.conv2d", "prepacked", "sightline 1")]
        rows.append([case["case"], *speed, *(ratio(time["prepacked"] / time[name]) for name in names)])
    return table(head, rows)


def networks(result: Result) -> str:
    """Milliseconds of everybody, one column per network."""
    cases = result["cases"]
    names = list(dict.fromkeys(row["contestant"] for case in cases for row in case["rows"]))
    times = [medians(case) for case in cases]
    return table(
        ["ms per frame", *(case["case"] for case in cases)], [[name, *(milliseconds(time.get(name)) for time in times)] for name in names]
    )


def speedups(result: Result) -> str:
    """Ours against the best dense peer of the same run, and against eager PyTorch."""
    head, columns = ["speed-up over the best dense peer / over eager"], []
    for case in result["cases"]:
        time = medians(case)
        dense = {name: time[name] for name in DENSE if name in time}
        best = min(dense, key=lambda name: dense[name])
        head.append(f"{case['case']} (best: {best})")
        ours = {name: t for name, t in time.items() if name not in DENSE}
        columns.append({name: (dense[best] / t, dense["eager"] / t if "eager" in dense else None) for name, t in ours.items()})
    names = list(dict.fromkeys(name for column in columns for name in column if not name.startswith("static")))
    cells = [[name, *(f"{ratio(c[name][0])} / {ratio(c[name][1])}" if name in c else "-" for c in columns)] for name in names]
    return table(head, cells)


def video(result: Result) -> str:
    """Dense against streamed on real clips."""
    rows = []
    for case in result["cases"]:
        time = medians(case)
        for row in case["rows"]:
            if "threshold" not in row:
                continue
            streamed = row["seconds"]["median"]
            rows.append([
                f"{case['case']} ({case['model'].removesuffix('.onnx')}, {case['size'][0]}x{case['size'][1]})",
                f"{row['threshold']:g}",
                percent(row["macs_share"]),
                milliseconds(time["sightline dense"]),
                milliseconds(time.get("onnxruntime")),
                milliseconds(streamed),
                ratio(time["sightline dense"] / streamed),
                ratio(time["onnxruntime"] / streamed) if "onnxruntime" in time else "-",
                f"{row['relative_l2']:.2g}",
            ])  # fmt: skip
    head = ["clip", "threshold", "MACs", "dense ms", "onnxruntime ms", "streamed ms", "x dense", "x onnxruntime", "relative L2 error"]
    return table(head, rows)


def motion(result: Result) -> str:
    """What following the camera saves at equal error, MACs and time, against the own dense run and against the frame's."""
    cases = [case for case in result["cases"] if "gains" in case]
    levels = sorted({gain["level"] for case in cases for key in ("gains", "gains_frame") for gain in case[key]})
    rows = []
    for case in cases:
        name = f"{case['case']} ({case['model'].split('.')[0].split('_')[0]}, {case['size'][0]}x{case['size'][1]})"
        for against, key in (("own", "gains"), ("frame", "gains_frame")):
            for mode in dict.fromkeys(gain["motion"] for gain in case[key]):
                cells = {g["level"]: f"{ratio(g['gain_macs'])} / {ratio(g['gain_time'])}" for g in case[key] if g["motion"] == mode}
                rows.append([name, mode, against, *(cells.get(level, "-") for level in levels)])
    return table(["clip", "motion", "dense run", *(f"{level:g} units" for level in levels)], rows)


def fovea_video(result: Result) -> str:
    """Work and time per frame of a network that looks, by threshold."""
    rows = []
    for case in result["cases"]:
        found = {row["contestant"]: row for row in case["rows"]}
        network, whole = (found[name]["mean_seconds"] for name in ("network", "computed whole"))
        cells = [case["case"], milliseconds(network), milliseconds(whole)]
        for row in case["rows"]:
            if "macs_share" in row:
                cells.append(f"{percent(row['macs_share'])} / {ratio(network / row['mean_seconds'])} / {row['relative_l2']:.1g}")
        rows.append(cells)
    thresholds = [row["contestant"] for row in result["cases"][0]["rows"] if "macs_share" in row]
    return table(["clip", "network ms", "computed whole ms", *thresholds], rows)


def motion_cost(result: Result) -> str:
    """Milliseconds of the estimator beside a dense network."""
    case = result["cases"][0]
    return table(["480x640", "ms"], [[row["contestant"], milliseconds(row["seconds"]["median"])] for row in case["rows"]])


def tune(result: Result) -> str:
    """Tuned thresholds on the frames after those that they were tuned on; times are means over frames."""
    rows = []
    for case in result["cases"]:
        time = {row["contestant"]: row["seconds"]["mean"] for row in case["rows"]}
        peers = {name: time[name] for name in ("onnxruntime", "openvino") if name in time}
        best = min(peers, key=lambda name: peers[name]) if peers else None
        for row in case["rows"]:
            if "error_noise_units" not in row or row["contestant"] in {"sightline dense", *peers}:
                continue
            streamed = time[row["contestant"]]
            rows.append([
                f"{case['case']} ({case['model'].partition('.')[0]}, {case['size'][0]}x{case['size'][1]})",
                row["contestant"],
                percent(row["macs_share"]),
                ratio(1 / row["macs_share"]) if row["macs_share"] > 0 else "-",
                f"{milliseconds(time[best])} ({best})" if best else "-",
                milliseconds(streamed),
                ratio(time[best] / streamed) if best else "-",
                ratio(time["sightline dense"] / streamed),
                f"{row['error_noise_units']:.2f}",
                f"{row['relative_l2']:.2g}",
                f"{row['task']} {row['task_error']:.3f}" if row["task"] else "-",
                str(row.get("passes", "-")),
            ])  # fmt: skip
    head = ["clip", "thresholds", "MACs", "saving", "best dense peer, ms", "streamed ms", "x peer", "x our dense", "error, noise units",
            "relative L2", "task error", "passes"]  # fmt: skip
    return table(head, rows)


def focus(result: Result) -> str:
    """Speed-up inside an area over the best dense peer of the same run; for exact answers also the share of the multiply-accumulates."""
    cases = [case for case in result["cases"] if case["rows"]]
    columns = []
    for case in cases:
        time = medians(case)
        ours = [row for row in case["rows"] if row["contestant"].startswith(("zero", "exact"))]
        best = min(t for name, t in time.items() if name not in {row["contestant"] for row in ours})
        mode = case["case"].rsplit(" ", 1)[1]
        cells = {}
        for row in ours:
            share = f" ({percent(row['macs_share'])})" if mode == "exact" and "macs_share" in row else ""
            cells[row["contestant"].removeprefix(mode).strip()] = ratio(best / time[row["contestant"]]) + share
        columns.append(cells)
    names = list(dict.fromkeys(name for column in columns for name in column))
    return table(["share of the picture", *(case["case"] for case in cases)], [[n, *(c.get(n, "-") for c in columns)] for n in names])


def operators(result: Result) -> str:
    """Forward and backward together, over the faster of the two dense memory formats."""
    names = list(dict.fromkeys(name for case in result["cases"] for name in case["speedup_forward_and_backward"]))
    names = [name for name in names if not name.startswith("dense")]
    rows = []
    for case in result["cases"]:
        speed = case["speedup_forward_and_backward"]
        rows.append([case["case"], *(ratio(speed[name]) if name in speed else "-" for name in names)])
    return table(["layer", *names], rows)


def memory(result: Result) -> str:
    """State as reported and as the process grew."""

    def mib(count: int) -> str:
        return f"{count / 2**20:.1f}"

    rows = [[c["case"], mib(c["reported"]), mib(c["gained"]), f"{c['ratio']:.3f}", mib(c["weights"])] for c in result["cases"]]
    return table(["state", "reported MiB", "gained MiB", "ratio", "shared weights MiB"], rows)


def retina(result: Result) -> str:
    """Times beside fovi's."""
    rows = []
    for case in result["cases"]:
        time = medians(case)
        faster = ratio(time["fovi"] / time["ours"]) if "fovi" in time else "-"
        rows.append([case["case"], milliseconds(time["ours"]), milliseconds(time.get("fovi")), faster])
    return table(["", "ours ms", "fovi 2.4.0 ms", "times as fast"], rows)


def fovea(result: Result) -> str:
    """Foveated networks, or their layers, beside fovi's and dense ones."""
    rows = []
    for case in result["cases"]:
        time = medians(case)
        if not time:
            continue
        faster = ratio(time["fovi"] / time["ours"]) if "fovi" in time else "-"
        rows.append([case["case"], milliseconds(time["ours"]), milliseconds(time.get("fovi")), faster, milliseconds(time.get("dense"))])
    return table(["", "ours ms", "fovi 2.4.0 ms", "times as fast", "dense ms"], rows)


def fovea_memory(result: Result) -> str:
    """Peaks of memory beside fovi's and a dense network's."""
    rows = []
    for case in result["cases"]:
        if "peak_mib" in case:
            peak = case["peak_mib"]
            share = ratio(peak["fovi"] / peak["ours"]) if "fovi" in peak else "-"
            rows.append(
                [case["case"], *(f"{peak[who]:.1f}" if who in peak else "-" for who in ("ours", "fovi")), share, f"{peak['dense']:.1f}"]
            )
    return table(["peak, MiB", "ours", "fovi 2.4.0", "times as much", "dense"], rows)


def gates(result: Result) -> str:
    """Global gates: exact against held, at the same thresholds."""
    rows = []
    for case in result["cases"]:
        found = {row["contestant"]: row for row in case["rows"]}
        for threshold, frame in (("0.0", "0.1"), ("0.03", "0.03"), ("0.1", "0.1")):
            pair = [found[f"{threshold} {what}"] for what in ("exact", "hold 0.25")]
            rows.append([
                case["network"].partition(":")[2],
                case["video"].partition(".")[0],
                f"{float(threshold):g} ({frame})",
                *(" / ".join(show(row[key]) for row in pair) for key, show in (
                    ("gates_moved", percent), ("macs_share", percent), ("error_noise_units", lambda value: f"{value:.2f}"),
                )),
            ])  # fmt: skip
    return table(["network", "clip", "thresholds (frame)", "gates moved", "MACs", "error, noise units"], rows)


def camera(result: Result) -> str:
    """Budgets, flicker and cuts: work, time and error of each contestant."""
    rows = []
    for case in result["cases"]:
        if case["kind"] == "noise":
            continue
        for row in case["rows"]:
            at_cuts = row.get("at_cuts")
            rows.append([
                f"{case['case']} ({case['frames']} frames)",
                row["contestant"],
                percent(row["macs_share"]),
                milliseconds(row["mean_seconds"]),
                f"{row['error_noise_units']:.2f}" if "error_noise_units" in row else "-",
                milliseconds(max(at_cuts)) if at_cuts else "-",
            ])  # fmt: skip
    return table(["case", "contestant", "MACs", "mean ms per frame", "error, noise units", "slowest frame after a cut, ms"], rows)


def sensor_noise(result: Result) -> str:
    """Share of the MACs that each filter needs on noisy frames, at equal distance from the dense outputs of the clean ones."""
    rows = []
    for case in result["cases"]:
        if case["kind"] != "noise":
            continue
        dense = case["dense_error_noise_units"]
        for name in dict.fromkeys(row["filter"] for row in case["rows"]):
            line = sorted((row["error_noise_units"], row["macs_share"]) for row in case["rows"] if row["filter"] == name)
            shares = [_at(line, dense * factor) for factor in (1.0, 1.25, 1.5)]
            rows.append([case["case"], name, *("-" if share is None else percent(share) for share in shares)])
    return table(["case", "filter", "MACs at 1.0x the dense error", "at 1.25x", "at 1.5x"], rows)


def _at(line: list[tuple[float, float]], error: float) -> float | None:
    """Smallest share of the work with at most this error, between measured points in a straight line; None: no point is that good."""
    best = None
    for index, (here, share) in enumerate(line):
        if here <= error:
            best = share if best is None else min(best, share)
        elif index and line[index - 1][0] <= error:
            before, more = line[index - 1]
            between = more + (share - more) * (error - before) / (here - before)
            best = between if best is None else min(best, between)
    return best


def sweep_summary(result: Result) -> str:
    """How many networks of which library and kind stream as PyTorch computes them."""
    rows = []
    for library in ("torchvision", "timm"):
        for kind in ("classification", "segmentation", "detection"):
            cases = [c for c in result["cases"] if c["name"].startswith(library) and c["kind"] == kind]
            if not cases:
                continue
            good = [c for c in cases if c["status"] == "ok"]
            whole = sum(c["native_macs_share"] >= 0.999 for c in good)
            left = sum(c["status"] == "left out" for c in cases)
            rows.append([f"{library}, {kind}", *map(str, (len(cases), len(good), len(cases) - len(good) - left, left, whole))])
    return table(["networks", "tried", "equal", "not equal", "left out", "all MACs native"], rows)


def sweep(result: Result) -> str:
    """Every network of the sweep, by name."""
    rows = []
    for case in sorted(result["cases"], key=lambda c: c["name"]):
        name, size = case["name"], f"{case['size'][0]}x{case['size'][1]}" if "size" in case else "-"
        millions = f"{case['weights'] / 1e6:.1f}" if "weights" in case else "-"
        if case["status"] != "ok":
            rows.append([name, millions, size, "-", "-", "-", f"{case['status']}: {case.get('why', '')}".replace("|", "/")])
            continue
        ops = ", ".join(op.removeprefix("aten.").rpartition(".")[0] or op for op in case["ops_on_torch"])
        sites = f"{case['on_torch']} of {case['call_sites']}"
        rows.append([name, millions, size, f"{case['relative_error']:.1e}", percent(case["native_macs_share"]), sites, ops])
    return table(["network", "weights, M", "frame", "relative error", "MACs native", "call sites on torch", "ops there"], rows)


def conditions(result: Result) -> str:
    """One sentence: machine, versions, clock."""
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "openvino", "numpy") if name in versions)
    clock = "CPU time of one thread" if result["threads"] == 1 else f"wall time, {result['threads']} threads"
    quick = " QUICK RUN: shows only that the script works." if result["quick"] else ""
    return f"{machine['cpu']} ({machine['sightline_isa']}), {machine['cores']} cores; {packages}; medians, {clock}.{quick}\n"


def fovea_training(result: Result) -> str:
    """Right answers on digits that were not trained on: mean over seeds, and the range."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for case in result["cases"]:
        by_name.setdefault(case["case"], []).append(case)

    def cell(values: list[float]) -> str:
        mean = 100 * sum(values) / len(values)
        return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"

    def trained(cases: list[dict[str, Any]]) -> list[str]:
        return [f"{sum(case['cpu_seconds'] for case in cases) / len(cases):.0f}", str(len(cases))]

    counts = ("1", "2", "4", "8")
    rows = []
    for name, test, words in (
        ("foveated, learned", "learned", "foveated, looks where answers become certain"),
        ("foveated, learned", "contrast", "the same network, looks at contrast"),
        ("foveated, learned", "random", "the same network, looks anywhere"),
        ("foveated, random", "random", "foveated, trained and tested looking anywhere"),
    ):
        cases = by_name.get(name, [])
        if cases:
            samples = f"{cases[0]['samples']} per fixation"
            rows.append([words, samples, *(cell([case["tests"][test]["top1"][n] for case in cases]) for n in counts), *trained(cases)])
    for count in counts:
        ends = {name: cases for name, cases in by_name.items() if name.startswith(f"dense, {count} x")}
        if ends:
            # Of the two ends the one that was better on the first seed was trained with the others too.
            cases = max(ends.values(), key=lambda cases: (len(cases), cases[0]["top1"]))
            words = f"dense, whole scene at {cases[0]['side']}x{cases[0]['side']}"
            row = [words, f"{cases[0]['samples']} in all", *("" for _ in counts), *trained(cases)]
            row[2 + counts.index(count)] = cell([case["top1"] for case in cases])
            rows.append(row)
    head = ["right answers in %", "samples", *("1 fixation" if n == "1" else f"{n} fixations" for n in counts)]
    return table([*head, "CPU s per training", "seeds"], rows)


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    # name: (benchmark whose results it shows, how)
    "layers": ("layers", layers),
    "networks": ("networks", networks),
    "speedups": ("networks", speedups),
    "bfloat16": ("bfloat16", networks),
    "bfloat16speedups": ("bfloat16", speedups),
    "focus": ("focus", focus),
    "ops": ("ops", operators),
    "video": ("video", video),
    "motion": ("motion", motion),
    "motioncost": ("motion", motion_cost),
    "foveavideo": ("fovea_video", fovea_video),
    "tune": ("tune", tune),
    "memory": ("memory", memory),
    "gates": ("gates", gates),
    "retina": ("retina", retina),
    "fovea": ("fovea", fovea),
    "fovealayers": ("fovea_layers", fovea),
    "foveamemory": ("fovea_layers", fovea_memory),
    "camera": ("camera", camera),
    "sensornoise": ("camera", sensor_noise),
    "sweep": ("models", sweep),
    "sweepsummary": ("models", sweep_summary),
    "foveatraining": ("train-fovea", fovea_training),
    "foveatraining16": ("train-fovea16", fovea_training),
    "conditions": ("networks", conditions),
}


def load(path: Path) -> Result:
    """A result file.

    Raises:
        ValueError: it was written by another version of the scripts, or is incomplete.
    """
    result: Result = json.loads(path.read_text(encoding="utf-8"))
    missing = {"schema", "benchmark", "quick", "machine", "versions", "threads", "cases"} - result.keys()
    if missing or result["schema"] != SCHEMA:
        raise ValueError(f"{path.name} does not fit this script ({sorted(missing) or result['schema']}); run the benchmark again.")
    return result


def render(text: str, results: Path) -> str:
    """The text with all its tables replaced.

    Raises:
        ValueError: a marker names no table, or its result file does not fit.
    """

    def replace(match: re.Match[str]) -> str:
        opening, name, closing = match.groups()
        kind, _, threads = name.partition("-")
        if kind not in TABLES:
            raise ValueError(f"no table is called '{kind}'; there are {', '.join(TABLES)}.")
        benchmark, draw = TABLES[kind]
        path = results / f"{benchmark}-{threads or '1'}.json"
        absent = f"Not measured yet: run `benchmarks/bench_{benchmark}.py --threads {threads or '1'}`.\n"
        body = draw(load(path)) if path.is_file() else absent
        return f"{opening}{body}{closing}"

    return MARKER.sub(replace, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is not up to date")
    parser.add_argument("--results", type=Path, default=Path(__file__).resolve().parent / "results", help="folder of the result files")
    parser.add_argument(
        "files", nargs="*", type=Path, default=FILES, help="Markdown files; default: README.md and those in docs/ that hold tables"
    )
    arguments = parser.parse_args()
    stale = []
    for file in arguments.files:
        if not file.is_file():
            continue
        before = file.read_text(encoding="utf-8")
        try:
            after = render(before, arguments.results)
        except ValueError as error:
            print(f"{file.name}: {error}", file=sys.stderr)
            return 1
        if after != before:
            stale.append(file.name)
            if not arguments.check:
                file.write_text(after, encoding="utf-8")
    if stale:
        print(("not up to date: " if arguments.check else "rendered: ") + ", ".join(stale))
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
