"""What `stream.memory()` says against what the process gains, in a fresh process per network.

A first stream runs the frames, so that code, packed weights and thread pools are in memory; then a clone of it runs the same frames, and
the growth of the process's resident memory is that clone's state.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from harness import Disagreement, main, parser

import networks
import sightline as sl

NETWORKS = {"ResNet-50": networks.resnet50, "MobileNetV2": networks.mobilenet_v2}
SIZES = ((224, 224), (480, 640), (1080, 1920))
ALLOWED = 0.05  # the promise: reported within 5 % of what is held


def resident() -> int:
    """Bytes of this process that are in memory, after everything that is free has gone back to the system."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import psutil

        return int(psutil.Process().memory_info().rss)


def child(name: str, h: int, w: int) -> dict[str, Any]:
    """Runs in the fresh process: bytes reported and bytes gained."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    frames = [torch.rand(1, 3, h, w)]
    for i in range(4):
        frames.append(frames[-1].clone())
        frames[-1][:, :, i * h // 8 : i * h // 8 + h // 4, : w // 2] = torch.rand(1, 3, h // 4, w // 2)
    first = sl.stream(model, example=frames[0])
    for frame in frames:
        first(frame)
    twin = first.clone()
    before = resident()
    for frame in frames:
        twin(frame)
    gained, found = resident() - before, twin.memory()
    maps = sum(size for entry, size in found["tensors"].items() if entry != "masks and scratch")
    return {"gained": gained, "reported": found["total"], "maps": maps, "weights": found["shared_weights"]}


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    cases = []
    for name in ("MobileNetV2",) if arguments.quick else NETWORKS:
        for h, w in ((96, 96),) if arguments.quick else SIZES:
            case = f"{name} {h}x{w}"
            if arguments.only not in case:
                continue
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--child", name, str(h), str(w)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise Disagreement(f"{case}: the measuring process failed: {run.stderr.strip().splitlines()[-1:]}")
            found = json.loads(run.stdout.splitlines()[-1])
            ratio = found["reported"] / found["gained"] if found["gained"] else 0.0
            cases.append({"case": case, **found, "ratio": ratio, "within": abs(ratio - 1) <= ALLOWED})
            reported, gained = found["reported"] / 2**20, found["gained"] / 2**20
            print(
                f"{case:<24} reported {reported:8.1f} MiB   gained {gained:8.1f} MiB   ratio {ratio:.3f}   "
                f"{found['reported'] / found['maps']:.3f} x maps",
                flush=True,
            )
    return cases, []


if __name__ == "__main__":
    command_line = parser("memory", __doc__ or "")
    command_line.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parsed = command_line.parse_args()
    if parsed.child:
        torch.set_num_threads(parsed.threads)
        with torch.no_grad():
            print(json.dumps(child(parsed.child[0], int(parsed.child[1]), int(parsed.child[2]))))
        sys.exit(0)
    sys.exit(main(parsed, measure))
