"""Every layer of two networks against what the machine can do: the roofline, per instruction set.

Peak multiply-adds (from registers, fma_peak.c) and copy bandwidth are measured between the rounds of the same run. A layer's bound is the
smaller of the peak and bandwidth times intensity; its intensity counts every map and weight once, as if nothing stayed in a cache: layers
whose maps do stay there can lie above the slope. Whole frames are run, step by step, so that caches are as they are inside a program.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Contestant, main, parser, race

import networks
from sightline import kernels
from sightline.graph.capture import capture
from sightline.graph.lower import lower
from sightline.graph.native import NativeExecutor
from sightline.graph.plan import Step, make_plan

NETWORKS = {"ResNet-50": networks.resnet50, "MobileNetV2": networks.mobilenet_v2}
ISAS = ("avx512", "avx2")
# 3x3 layers whose share of the peak is watched: name, channels, height, width
WATCHED = (
    ("64@56", 64, 56, 56), ("128@28", 128, 28, 28), ("256@14", 256, 14, 14), ("64@120x160", 64, 120, 160), ("256@30x40", 256, 30, 40),
)  # fmt: skip
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "roofline.png"


# -- the machine -----------------------------------------------------------------------------------------------------------


class Machine:
    """Measures peak and bandwidth, again and again during a run; the best of all is the machine's."""

    def __init__(self, isas: tuple[str, ...], quick: bool) -> None:
        self.isas = isas
        self.rounds = 20_000 if quick else 1_000_000
        self.gflops: dict[str, list[float]] = {isa: [] for isa in isas}
        self.gbytes: list[float] = []
        self.memory = torch.zeros((8 if quick else 64) * 2**20), torch.ones((8 if quick else 64) * 2**20)
        self.folder = tempfile.TemporaryDirectory()
        library = Path(self.folder.name) / "fma_peak.so"
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
        if compiler is None:
            raise SystemExit("bench_roofline.py needs a C compiler (gcc or clang) for the peak of this machine; set CC.")
        source = Path(__file__).with_name("fma_peak.c")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-mavx512f", str(source), "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))

    def measure(self) -> None:
        """One sample of everything."""
        for isa in self.isas:
            function = getattr(self.library, f"fma_{isa}")
            function.restype, function.argtypes = ctypes.c_double, [ctypes.c_long]
            start = time.thread_time_ns()
            operations = function(self.rounds)
            self.gflops[isa].append(operations / (time.thread_time_ns() - start))
        target, source = self.memory
        start = time.thread_time_ns()
        target.copy_(source)
        self.gbytes.append(2 * target.nbytes / (time.thread_time_ns() - start))

    def peak(self, isa: str) -> float:
        """GFLOP/s of one core."""
        return max(self.gflops[isa])

    @property
    def bandwidth(self) -> float:
        """GB/s of one core, read and written."""
        return max(self.gbytes)

    def row(self) -> dict[str, Any]:
        """For the result file."""
        spread = {isa: {"best": max(found), "median": statistics.median(found)} for isa, found in self.gflops.items()}
        return {"peak_gflops": spread, "copy_gbytes": {"best": self.bandwidth, "median": statistics.median(self.gbytes)}}


# -- the layers --------------------------------------------------------------------------------------------------------------


def kind_of(step: Step) -> str:
    """The word in the picture's legend."""
    if step.head.op == "linear":
        return "linear"
    weight = step.head.attrs["weight"]
    if step.head.attrs["groups"] == weight.shape[0] > 1:
        return "depthwise"
    return f"{weight.shape[2]}x{weight.shape[3]}"


def bytes_of(step: Step) -> int:
    """Compulsory traffic: inputs, residual and weights read, output written; float32."""
    values = [*step.reads, step.output]
    numbers = sum(torch.Size(node.shape or ()).numel() for node in values)
    return 4 * (numbers + step.head.attrs["weight"].numel())


def run_network(name: str, size: tuple[int, int], machine: Machine, rounds: int) -> list[dict[str, Any]]:
    """One case per instruction set."""
    torch.manual_seed(0)
    plan = make_plan(capture(NETWORKS[name](), torch.zeros(1, 3, *size)))
    frame = torch.rand(1, 3, *size)
    programs = {isa: lower(plan, kernels.native(), isa) for isa in machine.isas}  # type: ignore[arg-type]
    executors: dict[str, Any] = {isa: NativeExecutor(program, "rms", None) for isa, program in programs.items()}
    steps = [step for step in plan.steps if step.macs and step.head.op in {"conv2d", "linear"}]
    taken: dict[str, dict[Step, list[int]]] = {isa: {step: [] for step in steps} for isa in machine.isas}
    for turn in range(rounds + 1):
        machine.measure()
        for isa, executor in executors.items():
            executor.reset()
            state, ids = executor._state, programs[isa].step_ids
            image, plane, row, _ = frame.stride()
            state.begin(frame.data_ptr(), image, plane, row)
            for step, native_id in sorted(ids.items(), key=lambda item: item[1]):
                start = time.thread_time_ns()
                state.run(native_id, native_id + 1)
                elapsed = time.thread_time_ns() - start
                if turn and step in taken[isa]:
                    taken[isa][step].append(elapsed)
            state.end()
    return [
        {"case": f"{name} {size[0]}x{size[1]}", "isa": isa, "rows": [_layer(step, taken[isa][step], machine, isa) for step in steps]}
        for isa in machine.isas
    ]


def _layer(step: Step, nanoseconds: list[int], machine: Machine, isa: str) -> dict[str, Any]:
    flops, traffic = 2 * step.macs, bytes_of(step)
    gflops = flops / max(statistics.median(nanoseconds), 1)
    bound = min(machine.peak(isa), machine.bandwidth * flops / traffic)
    return {
        "layer": step.name, "kind": kind_of(step), "flops": flops, "bytes": traffic, "gflops": gflops, "bound": bound,
        "seconds": statistics.median(nanoseconds) * 1e-9, "share": gflops / bound,
    }  # fmt: skip


def run_watched(machine: Machine, rounds: int) -> list[dict[str, Any]]:
    """3x3 layers alone, at 100 %, against the peak of each instruction set; all taking turns."""
    cases = []
    for name, channels, h, w in WATCHED:
        torch.manual_seed(0)
        plan = make_plan(capture(torch.nn.Conv2d(channels, channels, 3, padding=1).eval(), torch.zeros(1, channels, h, w)))
        frame = torch.rand(1, channels, h, w)
        rivals = []
        for isa in machine.isas:
            executor = NativeExecutor(lower(plan, kernels.native(), isa), "rms", None)  # type: ignore[arg-type]
            executor.run(frame)
            rivals.append(Contestant(isa, _whole(executor, plan.steps[-1]), prepare=machine.measure))
        for row in race(rivals, threads=1, rounds=rounds, burst=4, budget=20):
            gflops = 2e-9 * plan.macs / row["seconds"]["median"]
            isa = row["contestant"]
            found = {"layer": name, "gflops": gflops, "peak": machine.peak(isa), "share": gflops / machine.peak(isa)}
            cases.append({"case": f"3x3 {name}", "isa": isa, "rows": [found]})
            print(f"3x3 {name:<12} {isa:<7} {gflops:6.1f} GFLOP/s, {100 * found['share']:5.1f} % of the peak", flush=True)
    return cases


def _whole(executor: NativeExecutor, step: Step) -> Callable[[], None]:
    """Computes the step at all its sites and publishes them, as in a frame in which everything changed."""
    native_id = executor._lowered.step_ids[step]
    executor.force_sites(step, torch.ones(executor.grid(step), dtype=torch.bool))
    return lambda: executor._state.run(native_id, native_id + 1)


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    if arguments.threads != 1:
        raise SystemExit("bench_roofline.py: one thread against the peak of one core; leave out --threads.")
    isas = tuple(isa for isa in ISAS if isa in kernels.native_status()["isas"])
    if not isas:
        return [], ["roofline: needs the native executor on x86"]
    machine = Machine(isas, arguments.quick)
    cases = run_watched(machine, 3 if arguments.quick else 15)
    for name in ("MobileNetV2",) if arguments.quick else NETWORKS:
        cases += run_network(name, (64, 64) if arguments.quick else (480, 640), machine, 3 if arguments.quick else 12)
    for case in cases:  # the machine's best, known only now
        for row in case["rows"]:
            peak = machine.peak(case["isa"])
            if "flops" in row:
                row["bound"] = min(peak, machine.bandwidth * row["flops"] / row["bytes"])
                row["share"] = row["gflops"] / row["bound"]
            else:
                row["peak"], row["share"] = peak, row["gflops"] / peak
    cases.append({"case": "machine", **machine.row(), "rows": []})
    print({isa: f"{machine.peak(isa):.0f} GFLOP/s" for isa in isas}, f"{machine.bandwidth:.1f} GB/s")
    return cases, ["bound = min(peak, copy bandwidth x intensity), one core; intensity: every map and weight moved once"]


if __name__ == "__main__":
    command_line = parser("roofline", __doc__ or "")
    command_line.add_argument("--picture", type=Path, default=PICTURE, help="where the picture goes; not drawn by a quick run")
    parsed = command_line.parse_args()
    code = main(parsed, measure)
    if code == 0 and not parsed.quick:
        from draw_roofline import draw
        from harness import RESULTS

        draw(parsed.output or RESULTS / "roofline-1.json", parsed.picture)
    sys.exit(code)
