"""What a camera does to a stream, and what the answers to it cost and bring: budgets at run time, flicker, cuts, sensor noise.

Four kinds of cases. "budget": an error target of one noise unit held on long clips, checked from outside on every tenth frame. "flicker":
a lamp's 8 % on a clip, with and without `exposure`. "cuts": frames after the cuts of a clip, against dense frames. "noise": Gaussian noise
of four grey levels, new in every frame, on a clip; the share of the MACs that each filter needs for the same distance from the dense
outputs of the frames without noise. Needs the folder of clips (see bench_video.py).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_tune import CASES, model_of
from bench_video import Job, frames_of
from harness import clock_for, main, parser, show, summary
from torch import Tensor

import networks
import sightline as sl
from sightline import media
from sightline.tune.metrics import squares

FACES_HALL, FACES_WEBCAM, OBJECTS_MOTORWAY, FACES_MOVING = (
    next(case for case in CASES if case.name == name)
    for name in ("faces, hall", "faces, webcam", "objects, motorway", "faces, moving camera")
)
WALKING = 160  # first frame of the hall in which somebody is there
FLICKER, PERIOD = 0.08, 7  # of the brightness; frames
SENSOR = 4.0  # grey levels
FILTERS = (None, "vote", "block", "temporal")
LEVELS = (0.03, 0.04, 0.05, 0.065, 0.08, 0.12)


def frames_as_read(job: Job, folder: Path, count: int) -> Iterator[Tensor]:
    """The frames of a clip, one at a time: whole clips do not fit into memory."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (job.mean, job.std))
    with media.open_source(str(folder / "videos" / job.video), start=job.start, frames=count) as source:
        for frame in source:
            pixels = torch.from_numpy(frame.rgb(job.size)).permute(2, 0, 1)[None].float()
            yield ((pixels.flip(1) if job.bgr else pixels) - mean) / std


def dense_run(model: Any, example: Tensor) -> Callable[[Tensor], Any]:
    """The same executor, every frame as a first one."""
    stream = sl.stream(model, example=example)

    def run(frame: Tensor) -> Any:
        stream._executor.reset()  # type: ignore[union-attr]
        return stream(frame)

    return run


def one_grey_level(job: Job) -> Tensor:
    return 1 / torch.tensor(job.std).view(1, 3, 1, 1)


class Meter:
    """Work, seconds and errors of one stream, the first frame left out."""

    def __init__(self, stream: Any, threads: int) -> None:
        self.stream = stream
        self.clock, self._read = clock_for(threads, False)
        self.seconds: list[float] = []
        self.done = self.whole = self.frames = 0
        self.wrong = 0.0

    def run(self, frame: Tensor, truth: Any = None) -> None:
        """Takes a frame; errors are counted where its dense outputs are given."""
        start = self._read()
        output = self.stream(frame)
        seconds = (self._read() - start) * 1e-9
        self.frames += 1
        if self.frames == 1:
            return
        last = self.stream.stats.last
        self.seconds.append(seconds)
        self.done, self.whole = self.done + last.macs_done, self.whole + last.macs_dense
        if truth is not None:
            self.wrong += squares(truth, output)[0]

    def row(self, name: str, noise: float | None = None, **extra: Any) -> dict[str, Any]:
        """The contestant as it stands in the results; `noise`: squared distance that one grey level of noise makes."""
        error = {} if noise is None else {"error_noise_units": math.sqrt(self.wrong / noise)}
        return {
            "contestant": name, "clock": self.clock, "seconds": summary(self.seconds),
            "mean_seconds": sum(self.seconds) / len(self.seconds), "macs_share": self.done / self.whole, **error, **extra,
        }  # fmt: skip


def budget_case(job: Job, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    model, generator = model_of(job, folder), torch.Generator().manual_seed(1)
    rows: dict[str, Meter] = {}
    noise, count = 0.0, 0
    dense: Any = None
    for count, frame in enumerate(frames_as_read(job, folder, arguments.long)):
        if dense is None:
            dense = dense_run(model, frame)
            rows = {
                "budget 1.0": Meter(sl.stream(model, budget=1.0, example=frame), arguments.threads),
                "threshold 0.03": Meter(sl.stream(model, 0.03, example=frame), arguments.threads),
            }
        truth = None
        if count and count % 10 == 0:
            truth = dense(frame)
            noise += squares(truth, dense(frame + torch.randn(frame.shape, generator=generator) * one_grey_level(job)))[0]
        for meter in rows.values():
            meter.run(frame, truth)
    found = [meter.row(name, noise) for name, meter in rows.items()]
    show(f"budget: {job.name}", found)
    return {"case": f"budget: {job.name}", "kind": "budget", "frames": count + 1, "rows": found}


def flicker_case(job: Job, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    model, frames = model_of(job, folder), frames_of(job, folder, arguments.frames)
    gains = [1 + FLICKER * math.sin(2 * math.pi * i / PERIOD) for i in range(len(frames))]
    shaken = [(frame * gain).clamp(0, 255) for frame, gain in zip(frames, gains, strict=True)]  # mean 0, std 1: bytes
    contestants: tuple[tuple[str, list[Tensor], str | None], ...] = (
        ("steady lamp", frames, None), ("flicker", shaken, None), ("flicker, exposure", shaken, "global"),
    )  # fmt: skip
    rows = []
    for name, shown, exposure in contestants:
        meter = Meter(sl.stream(model, 0.03, exposure=exposure, example=frames[0]), arguments.threads)
        for frame in shown:
            meter.run(frame)
        rows.append(meter.row(name))
    show(f"flicker: {job.name}", rows)
    return {"case": f"flicker: {job.name}", "kind": "flicker", "frames": len(frames), "rows": rows}


def cuts_case(job: Job, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    model = model_of(job, folder)
    meters: dict[str, Meter] = {}
    cuts: list[int] = []
    for index, frame in enumerate(frames_as_read(job, folder, arguments.long)):
        if not meters:
            meters = {"with cuts": Meter(sl.stream(model, 0.03, example=frame), arguments.threads)}
            meters["without"] = Meter(sl.stream(model, 0.03, scene_cuts=False, example=frame), arguments.threads)
            meters["dense"] = Meter(sl.stream(model, example=frame), arguments.threads)
        meters["dense"].stream._executor.reset()
        for meter in meters.values():
            meter.run(frame)
        if index and meters["with cuts"].stream.stats.last.restarts:
            cuts.append(index)
    rows = [meter.row(name, at_cuts=[meter.seconds[index - 1] for index in cuts]) for name, meter in meters.items()]
    show(f"cuts: {job.name}", rows)
    return {"case": f"cuts: {job.name}", "kind": "cuts", "frames": meters["dense"].frames, "cuts": cuts, "rows": rows}


def noise_case(job: Job, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    model, clean = model_of(job, folder), frames_of(job, folder, arguments.frames)
    generator = torch.Generator().manual_seed(2)
    grey = one_grey_level(job)
    noisy = [frame + SENSOR * grey * torch.randn(frame.shape, generator=generator) for frame in clean]
    dense = dense_run(model, clean[0])
    truths = [dense(frame) for frame in clean]
    noise = sum(
        squares(truth, dense(frame + grey * torch.randn(frame.shape, generator=generator)))[0]
        for frame, truth in zip(clean[1:], truths[1:], strict=True)
    )
    unfiltered = sum(squares(truth, dense(frame))[0] for frame, truth in zip(noisy[1:], truths[1:], strict=True))
    rows = []
    for name in FILTERS:
        for level in LEVELS:
            stream = sl.stream(model, level, input_threshold=3 * level, noise=name, example=clean[0])
            meter = Meter(stream, arguments.threads)
            for frame, truth in zip(noisy, truths, strict=True):
                meter.run(frame, truth)
            rows.append(meter.row(f"{name or 'no filter'} {level:g}", noise, filter=name or "none", level=level))
    show(f"noise: {job.name}", rows)
    return {
        "case": f"noise: {job.name}", "kind": "noise", "frames": len(clean),
        "dense_error_noise_units": math.sqrt(unfiltered / noise), "rows": rows,
    }  # fmt: skip


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    folder = networks.data_folder()
    if folder is None:
        return [], ["skipped: no shared/data folder beside the checkout, and SIGHTLINE_DATA names none"]
    if arguments.quick:
        arguments.frames, arguments.long = 6, 12
    wanted: Iterable[tuple[Callable[..., dict[str, Any]], str, Job]] = (
        *((budget_case, "budget", job) for job in (FACES_HALL, OBJECTS_MOTORWAY, FACES_WEBCAM)),
        (flicker_case, "flicker", replace(FACES_HALL, start=WALKING)),
        (cuts_case, "cuts", FACES_MOVING),
        *((noise_case, "noise", job) for job in (replace(FACES_HALL, start=WALKING), OBJECTS_MOTORWAY)),
    )
    return [run(job, folder, arguments) for run, kind, job in wanted if arguments.only in f"{kind}: {job.name}"], []


if __name__ == "__main__":
    command = parser("camera", __doc__ or "")
    command.add_argument("--frames", type=int, default=40, help="frames of the clips with flicker and noise")
    command.add_argument("--long", type=int, default=1000, help="frames of the clips with budgets and cuts")
    sys.exit(main(command.parse_args(), measure))
