"""A fovea over video: what a network that looks costs per frame when only what changed is computed.

The network is the AlexNet of `fovi_alexnet` (4085 points per fixation, 360 million multiply-accumulates), with random weights and
batch norms that have seen frames of the clip, so that activations are of the usual size. Four fixations either rest, or one of them moves
at every fifth frame. Everybody sees every frame, in turns: the network as it is, the stream computed whole, and streams with thresholds.
Errors are those of the features behind the last pool, against the network itself.

Needs the folder of clips that lies beside the checkout (or that SIGHTLINE_DATA names); without it the script says so and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import clock_for, main, must_agree, parser, show, summary
from torch import Tensor, nn

from sightline import fovea
from sightline.media import open_source

CLIPS = (("pedestrians", "vtest.avi", 40), ("motorway", "traffic_camera.mp4", 20), ("corridor", "one-by-one-person-detection.mp4", 150),
         ("webcam", "asl_book.mkv", 10))  # fmt: skip
THRESHOLDS = (0.0, 0.03, 0.1)
PLACES = ((0.5, 0.5), (0.35, 0.3), (0.65, 0.7), (0.4, 0.75))


def frames_of(path: Path, start: int, count: int) -> list[Tensor]:
    """(1, 3, h, w) uint8."""
    with open_source(str(path), start=start, frames=count) as source:
        return [torch.from_numpy(frame.rgb()).permute(2, 0, 1)[None].contiguous() for frame in source]


def network(frames: list[Tensor]) -> fovea.FoviNet:
    """With batch norms that have seen the clip."""
    torch.manual_seed(0)
    net = fovea.FoviNet(fovea.compose("fovi_alexnet")).train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # type: ignore[assignment]  # plain means
    for frame in frames[:: max(1, len(frames) // 4)]:
        net(frame, n_fixations=8)
    return net.eval()


def eyes(mode: str, count: int) -> list[Tensor]:
    """Fixations of every frame, (1, 4, 2)."""
    generator = torch.Generator().manual_seed(1)
    places = torch.tensor([PLACES])
    result = []
    for index in range(count):
        if mode == "moving" and index and index % 5 == 0:
            places = places.clone()
            places[0, index // 5 % 4] = 0.25 + 0.5 * torch.rand(2, generator=generator)
        result.append(places)
    return result


def measure_clip(name: str, mode: str, frames: list[Tensor], threads: int) -> dict[str, Any]:
    net = network(frames)
    size = float(min(frames[0].shape[2:]))
    whole = fovea.stream(net)
    streams = {f"threshold {value:g}": fovea.stream(net, value) for value in THRESHOLDS}

    def run_whole(frame: Tensor, places: Tensor) -> Any:
        whole.network.refresh()
        return whole(frame, places, fixation_size=size)

    runs: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "network": lambda frame, places: net(frame, fixations=places, fixation_size=size),
        "computed whole": run_whole,
        **{key: (lambda frame, places, video=video: video(frame, places, fixation_size=size)) for key, video in streams.items()},
    }
    clock, read = clock_for(threads, own_threads=False)
    taken: dict[str, list[float]] = {key: [] for key in runs}
    errors: dict[str, list[float]] = {key: [] for key in runs}
    shares: dict[str, list[float]] = {key: [] for key in streams}
    for index, (frame, places) in enumerate(zip(frames, eyes(mode, len(frames)), strict=True)):
        wanted = None
        for key, run in runs.items():
            start = read()
            outputs = run(frame, places)
            seconds = (read() - start) * 1e-9
            features = outputs[1][0]
            wanted = features if wanted is None else wanted
            if index == 0:
                continue  # capture, and a first frame that is whole for everybody
            taken[key].append(seconds)
            errors[key].append(float((features - wanted).norm() / wanted.norm()))
            if key in streams:
                shares[key].append(streams[key].stats.last.macs_share)
        must_agree(f"{name}, frame {index}", features_of(streams["threshold 0"], frame, places, size), wanted)
    rows = []
    for key in runs:
        extra = {"macs_share": sum(shares[key]) / len(shares[key])} if key in shares else {}
        rows.append({"contestant": key, "clock": clock, "seconds": summary(taken[key]), "mean_seconds": sum(taken[key]) / len(taken[key]),
                     "relative_l2": max(errors[key]), **extra})  # fmt: skip
    return {"case": f"{name}, eye {mode}", "frames": len(frames), "fixations": len(PLACES), "rows": rows}


def features_of(video: fovea.FoveaStream, frame: Tensor, places: Tensor, size: float) -> Tensor:
    """What a stream holds for this frame; computes nothing."""
    found: Tensor = video(frame, places, fixation_size=size)[1][0]
    return found


def measure(parsed: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    named = os.environ.get("SIGHTLINE_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        return [], ["there is no folder of clips; set SIGHTLINE_DATA"]
    cases = []
    for name, file, start in CLIPS:
        frames = frames_of(folder / "videos" / file, start, 4 if parsed.quick else 41)
        for mode in ("resting", "moving"):
            if parsed.only in f"{name}, eye {mode}":
                cases.append(measure_clip(name, mode, frames, parsed.threads))
                show(cases[-1]["case"], cases[-1]["rows"])
                print(
                    [round(row.get("macs_share", 1.0), 3) for row in cases[-1]["rows"]],
                    [f"{row['relative_l2']:.2g}" for row in cases[-1]["rows"]],
                )
    return cases, ["random weights; batch norms have seen frames of the clip"]


if __name__ == "__main__":
    sys.exit(main(parser("fovea_video", __doc__ or "").parse_args(), measure))
