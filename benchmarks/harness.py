"""What every benchmark shares: interleaved timing, masks, machine and version metadata, result files, the command line.

What belongs here: how something is timed and written down. What is timed belongs to the `bench_*.py` scripts; how it is shown,
to `render_tables.py`.

Timing. Figures for one thread are CPU time: the calling thread's where a contestant runs in it, the process's where it brings
threads of its own. CPU time does not count what other programs on the machine do. Figures for several threads can only be wall time.
All contestants of a case take turns, so that a slow minute of the machine hits all of them; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

SCHEMA = 1
RESULTS = Path(__file__).resolve().parent / "results"
TOLERANCE = 1e-4  # largest relative error (max norm, against the largest value of the dense output) before a run is thrown away


class Disagreement(Exception):  # noqa: N818  (what it is, in one word)
    """Two contestants that must compute the same thing do not."""


class MissingPeer(Exception):  # noqa: N818
    """A contestant's package is not installed."""


@dataclass
class Contestant:
    """One thing to time.

    Attributes:
        name: shown in tables and results.
        run: does the work once.
        prepare: called before each turn, not timed.
        before: called before each timed run, not timed.
        own_threads: runs in threads of its own, so that only the process's CPU time sees it.
        extra: goes into the results as it is.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    before: Callable[[], object] = lambda: None
    own_threads: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def clock_for(threads: int, own_threads: bool) -> tuple[str, Callable[[], int]]:
    """Name and function of the clock (nanoseconds) that is right for a contestant."""
    if threads > 1:
        return "wall", time.perf_counter_ns
    return ("process", time.process_time_ns) if own_threads else ("thread", time.thread_time_ns)


def clock_cost(read: Callable[[], int]) -> float:
    """Median of what a clock says about nothing, in nanoseconds; subtracted from every sample."""
    costs = []
    for _ in range(101):
        start = read()
        costs.append(read() - start)
    return statistics.median(costs)


def race(contestants: Sequence[Contestant], *, threads: int, rounds: int, burst: int, budget: float = float("inf")) -> list[dict[str, Any]]:
    """Times all contestants in turns.

    Args:
        contestants: who takes part, in this order.
        threads: 1 for CPU time, more for wall time.
        rounds: how often everybody gets a turn; at least 3 are run whatever the budget says.
        burst: timed runs per turn, after one that is not timed (what others left in the caches is not this one's fault).
        budget: seconds of wall time after which no new round starts.

    Returns:
        One row per contestant: name, clock, seconds {median, q1, q3, min, runs}, and its `extra`.
    """
    clocks = [clock_for(threads, c.own_threads) for c in contestants]
    costs = [clock_cost(read) for _, read in clocks]
    samples: list[list[float]] = [[] for _ in contestants]
    began = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - began > budget:
            break
        for i, contestant in enumerate(contestants):
            read = clocks[i][1]
            contestant.prepare()
            for shot in range(burst + 1):
                contestant.before()
                start = read()
                contestant.run()
                elapsed = read() - start
                if shot:
                    samples[i].append(max(0.0, elapsed - costs[i]) * 1e-9)
    return [
        {"contestant": c.name, "clock": clock, "seconds": summary(taken), **c.extra}
        for c, (clock, _), taken in zip(contestants, clocks, samples, strict=True)
    ]


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, minimum and number of samples."""
    q1, median, q3 = np.percentile(samples, [25, 50, 75])
    return {"median": float(median), "q1": float(q1), "q3": float(q3), "min": float(min(samples)), "runs": len(samples)}


# -- what is computed --------------------------------------------------------------------------------------------------


def blob_mask(h: int, w: int, density: float, seed: int = 0, blobs: int = 6) -> torch.Tensor:
    """Bool (h, w) with round(density * h * w) positions set, at least one, in about `blobs` ellipses."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w] + 0.5
    distance = np.full((h, w), np.inf)
    for _ in range(blobs):
        cy, cx = rng.uniform(0.1, 0.9, 2) * (h, w)
        ry, rx = rng.uniform(0.5, 1.5, 2) * (h, w)
        np.minimum(distance, ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2, out=distance)
    count = max(1, round(density * h * w))
    mask = np.zeros(h * w, dtype=bool)
    mask[np.argsort(distance, axis=None, kind="stable")[:count]] = True
    return torch.from_numpy(mask.reshape(h, w))


def disagreement(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference relative to the largest value of `want`; inf where anything is not finite."""
    got, want = got.double(), want.double()
    if got.shape != want.shape or not torch.isfinite(got).all():
        return float("inf")
    scale = want.abs().max().item() if want.numel() else 0.0
    return (got - want).abs().max().item() / max(scale, 1e-30) if want.numel() else 0.0


def must_agree(what: str, got: torch.Tensor, want: torch.Tensor, tolerance: float = TOLERANCE) -> float:
    """The disagreement, if it is within the tolerance.

    Raises:
        Disagreement: it is not; nothing of the run is then written.
    """
    error = disagreement(got, want)
    if not error <= tolerance:
        raise Disagreement(f"{what}: relative error {error:.3g}, allowed {tolerance:.3g}; no results were written.")
    return error


# -- results -------------------------------------------------------------------------------------------------------------


def metadata(threads: int) -> dict[str, Any]:
    """Machine and versions, without names of hosts, users or folders."""
    return {"machine": _machine(), "versions": _versions(), "threads": threads}


def _machine() -> dict[str, Any]:
    model, flags = "", ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = model or value.strip()
        elif key.strip() == "flags":
            flags = flags or value
    from sightline import kernels

    wanted = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "features": [name for name in wanted if name in flags.split()],
        "sightline_isa": kernels.isa(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("sightline", "torch", "numpy", "onnxruntime", "openvino"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_results(path: Path, benchmark: str, arguments: argparse.Namespace, cases: list[dict[str, Any]], notes: Iterable[str]) -> None:
    """Writes one result file, whole or not at all."""
    document = {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "quick": bool(arguments.quick),
        **metadata(arguments.threads),
        "notes": list(notes),
        "cases": cases,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


# -- command line ------------------------------------------------------------------------------------------------------


def parser(benchmark: str, description: str) -> argparse.ArgumentParser:
    """The arguments that every script takes."""
    made = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    made.add_argument("--quick", action="store_true", help="tiny sizes, few runs: shows that the script works, measures nothing")
    made.add_argument("--threads", type=int, default=1, help="1 (default): CPU time; more: wall time")
    made.add_argument("--output", type=Path, help=f"result file; default: results/{benchmark}-THREADS.json beside this script")
    made.add_argument("--only", default="", help="run only the cases whose name contains this text")
    made.set_defaults(benchmark=benchmark)
    return made


def main(parsed: argparse.Namespace, measure: Callable[[argparse.Namespace], tuple[list[dict[str, Any]], list[str]]]) -> int:
    """Sets the threads, runs `measure`, writes the results; returns the exit code."""
    import sightline

    if parsed.threads < 1:
        print("--threads must be at least 1", file=sys.stderr)
        return 2
    if parsed.threads > 1 and "OMP_WAIT_POLICY" not in os.environ:
        # Waiting threads must sleep: beside other work, spinning turns every parallel region into tens of milliseconds. OpenMP reads this
        # when it loads, that is with torch, so the script starts again.
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    torch.set_num_threads(parsed.threads)
    sightline.set_num_threads(parsed.threads)
    output = parsed.output or RESULTS / f"{parsed.benchmark}-{parsed.threads}.json"
    try:
        with torch.no_grad():
            cases, notes = measure(parsed)
    except Disagreement as error:
        print(error, file=sys.stderr)
        return 1
    if not cases:
        print("; ".join(notes) or "nothing to measure", file=sys.stderr)
        return 0
    write_results(output, parsed.benchmark, parsed, cases, notes)
    return 0


def show(case: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints one case while the benchmark runs."""
    print(f"\n{case}", flush=True)
    for row in rows:
        seconds = row["seconds"]
        median, least = seconds["median"] * 1e3, seconds["min"] * 1e3
        print(f"  {row['contestant']:<28} {median:10.4f} ms   min {least:10.4f}   ({row['clock']})", flush=True)
