"""Tuned thresholds on real networks and clips: ours against the front-to-back greedy search at the same budget.

Thresholds are tuned on the first third of a clip and measured on the rest. Needs the folder of clips and models that lies beside the
checkout (or that SIGHTLINE_DATA names); without it the script says so and writes nothing. Errors are against the same network run densely.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from bench_video import JOBS, Job
from harness import clock_for, main, parser, show, summary
from torch import Tensor

import networks
import sightline as sl
from sightline import media
from sightline.models import load_model
from sightline.pixels import pixel_scale_of
from sightline.tune.metrics import make_metric, squares, task_metric

MOTORWAY = Job("classes, motorway", "efficientnet_lite0_fp16.safetensors", "traffic_camera.mp4", (224, 224), (127.5,) * 3, (127.5,) * 3)
CASES = (*JOBS[:1], *JOBS[2:5], MOTORWAY)


def model_of(job: Job, folder: Path) -> Any:
    path = folder / "models" / job.model
    if path.suffix == ".onnx":
        return load_model(str(path)).model
    from safetensors.torch import load_file

    model = load_model("timm:tf_efficientnet_lite0").model
    model.load_state_dict(_renamed(load_file(str(path)), model), strict=True)
    return model.eval()


def _renamed(stored: dict[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """Tensors under timm's names; the file has those of efficientnet_lite_pytorch, whose blocks are counted through."""
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]  # type: ignore[arg-type, union-attr]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    inner = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # the first block does not expand
    named = {}
    for name, value in stored.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            parts = [blocks[int(parts[1])], (plain if parts[1] == "0" else inner)[parts[2]], *parts[3:]]
        else:
            parts[0] = outer[parts[0]]
        named[".".join(parts)] = value.float() if value.is_floating_point() else value
    return {**model.state_dict(), **named}


def clip_of(job: Job, folder: Path, arguments: argparse.Namespace) -> tuple[list[Tensor], list[Tensor]]:
    """Frames to tune on, from the start of the clip, and frames to measure on, from the end of its first third."""
    with media.open_source(str(folder / "videos" / job.video)) as source:
        count = source.count or 3 * (arguments.tuning + arguments.frames)
    first = max(count // 3, arguments.tuning)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (job.mean, job.std))
    pieces = []
    for start, length in ((0, arguments.tuning), (first, arguments.frames)):
        with media.open_source(str(folder / "videos" / job.video), start=start, frames=length) as source:
            pictures = [torch.from_numpy(frame.rgb(job.size)).permute(2, 0, 1)[None].float() for frame in source]
        pieces.append([((p.flip(1) if job.bgr else p) - mean) / std for p in pictures])
    return pieces[0], pieces[1]


class Truth:
    """The dense outputs of the frames to measure on, and what noise of one grey level does to them."""

    def __init__(self, model: Any, frames: list[Tensor], scale: Tensor, threads: int) -> None:
        dense = sl.stream(model, example=frames[0])
        read = clock_for(threads, False)[1]
        generator = torch.Generator().manual_seed(1)
        self.frames, self.outputs, self.seconds, self.noise, self.read = frames, [], [], 0.0, read
        for frame in frames:
            dense._executor.reset()  # type: ignore[union-attr]
            start = read()
            output = dense(frame)
            self.seconds.append((read() - start) * 1e-9)
            self.outputs.append(output)
            dense._executor.reset()  # type: ignore[union-attr]
            noisy = dense(frame + torch.randn(frame.shape, generator=generator) * scale)
            self.noise += squares(output, noisy)[0] if len(self.outputs) > 1 else 0.0

    def row(self, name: str, model: Any, thresholds: Any, clock: str) -> dict[str, Any]:
        """Streams the clip with these thresholds and compares."""
        size = (int(self.frames[0].shape[3]), int(self.frames[0].shape[2]))
        task = task_metric(self.outputs[0], size)
        metric = make_metric(task, size) if task else None
        stream = sl.stream(model, thresholds)
        stream(self.frames[0])
        wrong = there = 0.0
        done = whole = 0
        pairs, seconds = [], []
        for frame, dense in zip(self.frames[1:], self.outputs[1:], strict=True):
            start = self.read()
            output = stream(frame)
            seconds.append((self.read() - start) * 1e-9)
            last = stream.stats.last
            done, whole = done + last.macs_done, whole + last.macs_dense
            change, norm = squares(dense, output)
            wrong, there = wrong + change, there + norm
            if metric is not None:
                pairs.append(metric.compare(dense, output))
        return {
            "contestant": name, "clock": clock, "seconds": summary(seconds), "macs_share": done / whole,
            "error_noise_units": (wrong / self.noise) ** 0.5, "relative_l2": (wrong / there) ** 0.5, "task": task,
            "task_error": metric.error(pairs) if metric is not None else None, "speedup": sum(self.seconds[1:]) / sum(seconds),
        }  # fmt: skip


def run_job(job: Job, folder: Path, arguments: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    model = model_of(job, folder)
    tuning, rest = clip_of(job, folder, arguments)
    truth = Truth(model, rest, pixel_scale_of(tuning), arguments.threads)
    clock = clock_for(arguments.threads, False)[0]
    rows: list[dict[str, Any]] = [{"contestant": "sightline dense", "clock": clock, "seconds": summary(truth.seconds[1:])}]
    rows.append(truth.row("untuned 0.03", model, 0.03, clock))
    for method in ("knapsack", "greedy"):
        thresholds = sl.tune(model, tuning, arguments.budget, method=method, frontier=False, progress=False)
        report = thresholds.report
        row = truth.row(method, model, thresholds, clock)
        tuned = {"passes": report.passes, "frames_run": report.frames_run, "noise": report.noise, "met": report.met}
        rows.append({**row, **tuned, "held_back_share": report.macs_share, "held_back_error": report.error})
    show(job.name, rows)
    for row in rows[1:]:
        print(
            f"  {row['contestant']:<14} MACs {row['macs_share']:.3f}  error {row['error_noise_units']:.2f} units, {row['task']} "
            f"{row['task_error']}  {row['speedup']:.2f}x dense  passes {row.get('passes', '-')}  filter {row.get('noise')}"
            f"  held back: {row.get('held_back_share', 0):.3f} at {row.get('held_back_error', 0):.2f}",
            flush=True,
        )  # fmt: skip
    if rows[2]["macs_share"] >= rows[3]["macs_share"]:
        notes.append(f"{job.name}: the greedy search saved as much or more")
    return {
        "case": job.name, "model": job.model, "video": job.video, "size": list(job.size), "budget": arguments.budget,
        "frames_tuned": len(tuning), "frames_measured": len(rest), "rows": rows,
    }  # fmt: skip


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    folder = networks.data_folder()
    if folder is None:
        return [], ["skipped: no shared/data folder beside the checkout, and SIGHTLINE_DATA names none"]
    if arguments.quick:
        arguments.tuning, arguments.frames, arguments.budget = 6, 4, 3.0
    notes: list[str] = []
    jobs = [job for job in CASES if arguments.only in job.name]
    return [run_job(job, folder, arguments, notes) for job in (jobs[-1:] if arguments.quick else jobs)], notes


if __name__ == "__main__":
    command = parser("tune", __doc__ or "")
    command.add_argument("--tuning", type=int, default=32, help="frames to tune on, a quarter of them held back")
    command.add_argument("--frames", type=int, default=40, help="frames to measure on")
    command.add_argument("--budget", type=float, default=1.0, help="noise units")
    sys.exit(main(command.parse_args(), measure))
