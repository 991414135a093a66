"""Global gates on real clips: what holding them saves and costs, at the same thresholds.

Squeeze-excite networks of three families. No weights of theirs are at hand, so they are random, with batch-norm statistics measured on
frames of the clip: the shares say what gates do to the spread of changes, not what a trained network would save. Errors are against
the same network run densely, in units of what noise of one grey level does to it. Needs the folder of clips (see bench_video.py).
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from bench_video import Job, frames_of
from harness import clock_for, main, parser, show, summary
from torch import Tensor, nn

import networks
import sightline as sl
from sightline.models import load_model
from sightline.tune.metrics import squares

NETWORKS = ("torchvision:mobilenet_v3_large", "timm:efficientnet_b0", "timm:regnety_002")
CLIPS = ("traffic_camera.mp4", "asl_book.mkv", "one-by-one-person-detection.mp4", "vtest.avi")
THRESHOLDS = ((0.0, 0.1), (0.03, 0.03), (0.1, 0.1))  # of all call sites, of the frame
HELD = (0.1, 0.25, 0.5, 1.0)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def network(name: str, frames: list[Tensor]) -> nn.Module:
    """Random weights; batch norms take the statistics of these frames."""
    torch.manual_seed(1)
    model = load_model(name).model
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    model(torch.cat(frames))
    return model.eval()  # type: ignore[no-any-return]


def measure_row(name: str, stream: Any, frames: list[Tensor], dense: list[Any], noise: float, threads: int) -> dict[str, Any]:
    clock, read = clock_for(threads, False)
    stream(frames[0])
    gates = list(stream.stats.last.gates)
    done = whole = 0
    wrong, moved, seconds = 0.0, 0.0, []
    for frame, truth in zip(frames[1:], dense[1:], strict=True):
        start = read()
        output = stream(frame)
        seconds.append((read() - start) * 1e-9)
        last = stream.stats.last
        done, whole = done + last.macs_done, whole + last.macs_dense
        moved += sum(last.gates.values()) / len(gates)
        wrong += squares(truth, output)[0]
    return {
        "contestant": name, "clock": clock, "seconds": summary(seconds), "macs_share": done / whole, "gates": len(gates),
        "gates_moved": moved / (len(frames) - 1), "error_noise_units": math.sqrt(wrong / noise),
    }  # fmt: skip


def run_case(name: str, video: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    job = Job(name, name, video, (224, 224), MEAN, STD)
    frames = frames_of(job, folder, arguments.frames)
    model = network(name, frames[:: max(len(frames) // 4, 1)])
    read = clock_for(arguments.threads, False)[1]
    generator = torch.Generator().manual_seed(1)
    base = sl.stream(model, example=frames[0])
    grey = 1 / torch.tensor(STD).view(1, 3, 1, 1)
    dense, seconds, noise = [], [], 0.0
    for frame in frames:
        base._executor.reset()  # type: ignore[union-attr]
        start = read()
        dense.append(base(frame))
        seconds.append((read() - start) * 1e-9)
        base._executor.reset()  # type: ignore[union-attr]
        noisy = base(frame + torch.randn(frame.shape, generator=generator) * grey)
        noise += squares(dense[-1], noisy)[0] if len(dense) > 1 else 0.0
    rows: list[dict[str, Any]] = [{"contestant": "dense", "clock": clock_for(arguments.threads, False)[0], "seconds": summary(seconds[1:])}]
    for threshold, frame_threshold in THRESHOLDS:
        rows.append(
            measure_row(
                f"{threshold} exact", sl.stream(model, threshold, input_threshold=frame_threshold), frames, dense, noise, arguments.threads
            )
        )
        for held in HELD[:1] if arguments.quick else HELD:
            stream = sl.stream(model, threshold, input_threshold=frame_threshold, global_ops="hold", example=frames[0])
            for step in stream._plan.steps:  # type: ignore[union-attr]
                if step.gate:
                    stream.thresholds[step.name] = max(held, threshold)
            rows.append(measure_row(f"{threshold} hold {held}", stream, frames, dense, noise, arguments.threads))
    show(f"{name}, {video}", rows)
    for row in rows[1:]:
        print(
            f"  {row['contestant']:<16} MACs {row['macs_share']:.3f}  error {row['error_noise_units']:.2f} units  "
            f"{row['gates']} gates moved in {row['gates_moved']:.2f} of the frames", flush=True,
        )  # fmt: skip
    return {"case": f"{name}, {video}", "network": name, "video": video, "weights": "random", "frames": len(frames), "rows": rows}


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    folder = networks.data_folder()
    if folder is None:
        return [], ["skipped: no shared/data folder beside the checkout, and SIGHTLINE_DATA names none"]
    if arguments.quick:
        arguments.frames = 3
    wanted = [(name, video) for video in CLIPS for name in NETWORKS if arguments.only in f"{name}, {video}"]
    cases = [run_case(name, video, folder, arguments) for name, video in (wanted[:1] if arguments.quick else wanted)]
    return cases, ["weights are random, batch norms measured on the clip"]


if __name__ == "__main__":
    command = parser("gates", __doc__ or "")
    command.add_argument("--frames", type=int, default=16)
    sys.exit(main(command.parse_args(), measure))
