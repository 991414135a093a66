"""Whole networks: the strongest dense peers, and Sightline with every layer at one density, with a real moving box, and standing still.

"uniform d": every step of the network computes the same share d of its positions, in blobs (one mask per resolution), and the frame
changes in such a blob; this measures the engine, not what a video would need. "exact box": a box of 5 % of the frame moves, the
threshold is 0, and all masks follow from it. "static": the same frame again. All of these time `stream(frame)` as a user calls it;
"program" rows time the native call alone. `bench_bfloat16.py` is the same in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from harness import TOLERANCE, Contestant, MissingPeer, blob_mask, main, must_agree, parser, race, show
from torch import Tensor

import networks
import sightline as sl
from sightline.graph.executor import run_chain
from sightline.graph.rules import positions_of

DENSITIES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01)
SMALL, LARGE = (224, 224), (480, 640)
NETWORKS: dict[str, tuple[Callable[[], Any], tuple[tuple[int, int], ...]]] = {
    "ResNet-50": (networks.resnet50, (SMALL, LARGE)),
    "MobileNetV2": (networks.mobilenet_v2, (SMALL, LARGE)),
    "EfficientNet-Lite0": (networks.efficientnet_lite0, (LARGE,)),
    "segmentation pyramid": (networks.pyramid, (LARGE,)),
    "CenterFace": (networks.face_detector, (LARGE,)),
    "UltraLight": (networks.small_face_detector, (LARGE,)),
    "FastestDet": (networks.object_detector, ((352, 352),)),
    "SINet": (networks.portrait_segmentation, (SMALL,)),
}
BFLOAT16 = 0.1  # largest relative error of one network in bfloat16 against another: digits lost in 50 layers, not mistakes
BFLOAT16_STEP = 0.016  # of one step: two units in the last place of the largest value


def first(output: Any) -> Tensor:
    """The output, or the first of several."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


class Alternating:
    """Two frames in turns, so that every call sees a change."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.frames = (first, second)
        self.turn = 0

    def __call__(self) -> Tensor:
        """The other one."""
        self.turn ^= 1
        return self.frames[self.turn]


def changed(frame: Tensor, mask: Tensor) -> Tensor:
    """The frame with other values where the mask is set."""
    other = torch.rand(frame.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(mask, other, frame)


def force(stream: sl.Stream, density: float) -> None:
    """Makes every map of the network but the frame compute exactly a blob of this density; vectors are computed whole."""
    executor: Any = stream._executor
    for step in executor.plan.steps:
        if step.head.op == "input":
            continue
        n, h, w = positions_of(step.output)
        mask = blob_mask(h, w, density if h * w > 1 else 1.0)
        executor.force_sites(step, mask.expand(n, h, w))


def check_steps(stream: sl.Stream, what: str) -> float:
    """Recomputes every step densely in PyTorch from the maps that it read; returns the largest relative error at its sites."""
    executor: Any = stream._executor
    tolerance = BFLOAT16_STEP if stream._dtype == torch.bfloat16 else TOLERANCE
    worst = 0.0
    for step in executor.plan.steps:
        if step.head.op in {"input", "constant"} or executor.where(step)[1] == "a view" or not executor.holds(step):
            continue
        want, got = run_chain(executor.chain(step), executor._read), executor.value(step.output)
        if want.dim() == 4:
            sites = executor.sites_mask(step)[:, None].expand_as(want)
            want, got = want[sites], got[sites]
        worst = max(worst, must_agree(f"{what}, step {step.name}", got, want, tolerance))
    return worst


def _peers(arguments: argparse.Namespace) -> dict[str, Any]:
    return networks.PEERS_BFLOAT16 if arguments.dtype == "bfloat16" else networks.PEERS


def dense_contestants(model: Any, frames: Alternating, arguments: argparse.Namespace, notes: list[str]) -> list[Contestant]:
    made = []
    want = model(frames.frames[0])
    for name, (build, own_threads) in _peers(arguments).items():
        if arguments.peers and name not in arguments.peers.split(","):
            continue
        try:
            if isinstance(model, networks.OnnxFile):
                if name not in {"onnxruntime", "openvino"}:
                    continue
                run = build(networks.with_shape(model.path, frames.frames[0]), frames.frames[0], arguments.threads)
            else:
                run = build(copy.deepcopy(model), frames.frames[0], arguments.threads)
        except MissingPeer as error:
            notes.append(f"{name}: {error}")
            continue
        must_agree(name, run(frames.frames[0]), want, BFLOAT16 if arguments.dtype == "bfloat16" else 1e-3)
        made.append(Contestant(name, lambda run=run: run(frames()), own_threads=own_threads))  # type: ignore[misc]
    return made


def uniform_contestants(stream: sl.Stream, frame: Tensor, what: str) -> tuple[list[Contestant], float]:
    made, worst = [], 0.0
    stream(frame)
    for density in DENSITIES:
        frames = Alternating(frame, changed(frame, blob_mask(*frame.shape[2:], density)))

        def prepare(density: float = density, frames: Alternating = frames) -> None:
            force(stream, density)
            frames.turn = 0
            stream(frames.frames[0])

        prepare()
        stream(frames())
        worst = max(worst, check_steps(stream, f"{what} at density {density}"))
        macs = stream.stats.last.macs_done / stream.stats.last.macs_dense
        run: Callable[[], object] = lambda frames=frames: stream(frames())  # noqa: E731
        made.append(Contestant(f"uniform {density:g}", run, prepare=prepare, extra={"density": density, "macs_share": macs}))
    return made, worst


def real_contestants(stream: sl.Stream, model: Callable[[Tensor], Any], frame: Tensor, what: str) -> tuple[list[Contestant], float]:
    """A moving box at threshold 0, a static frame, and the program call alone with nothing to do."""
    h, w = frame.shape[2:]
    side_h, side_w = round(h * 0.05**0.5), round(w * 0.05**0.5)
    box = torch.zeros(h, w, dtype=torch.bool)
    box[h // 3 : h // 3 + side_h, w // 3 : w // 3 + side_w] = True
    frames = Alternating(frame, changed(frame, box))
    stream(frame)
    worst, tolerance = 0.0, BFLOAT16 if stream._dtype == torch.bfloat16 else TOLERANCE
    for _ in range(2):
        current = frames()
        worst = max(worst, must_agree(f"{what}: exact box", first(stream(current)), model(current), tolerance))
    macs = stream.stats.last.macs_done / stream.stats.last.macs_dense
    executor: Any = stream._executor
    made = [
        Contestant("exact box 5%", lambda: stream(frames()), extra={"macs_share": macs, "input_density": 0.05}),
        Contestant("static", lambda: stream(frame), prepare=lambda: stream(frame), extra={"macs_share": 0.0}),
        Contestant("static, program", lambda: executor.run(frame), prepare=lambda: stream(frame), extra={"macs_share": 0.0}),
    ]
    stream(frame)
    stream(frame)
    if stream.stats.last.macs_done:
        must_agree(f"{what}: a static frame computed something", torch.ones(1), torch.zeros(1))
    return made, worst


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    cases: list[dict[str, Any]] = []
    notes: list[str] = []
    if arguments.quick and not arguments.peers:
        arguments.peers = "eager" if arguments.dtype == "bfloat16" else "eager,onnxruntime"
        notes.append("quick: torch.compile and openvino left out")
    for name, (build, sizes) in NETWORKS.items():
        for h, w in ((64, 64),) if arguments.quick else sizes:
            case = f"{name} {h}x{w}"
            if arguments.only not in case or (arguments.quick and name != "MobileNetV2"):
                continue
            try:
                cases.append(run_case(case, build(), (h, w), arguments, notes))
            except MissingPeer as error:
                notes.append(str(error))
    return cases, list(dict.fromkeys(notes))


def run_case(case: str, model: Any, size: tuple[int, int], arguments: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    torch.manual_seed(0)
    frame = torch.rand(1, 3, *size)
    stream = sl.stream(
        model.graph() if isinstance(model, networks.OnnxFile) else model,
        backend="native",
        example=frame,
        dtype=torch.bfloat16 if arguments.dtype == "bfloat16" else None,
        scene_cuts=False,  # the masks are forced: a frame that looks like another scene is meant to be streamed all the same
    )
    uniform, worst_uniform = uniform_contestants(stream, frame, case)
    real, worst_real = real_contestants(stream.clone(), model, frame, case)
    full = Alternating(frame, changed(frame, torch.ones(size, dtype=torch.bool)))
    rivals = [*dense_contestants(model, full, arguments, notes), *uniform, *real]
    rounds, burst = (3, 1) if arguments.quick else (arguments.rounds, 2 if size[0] > 300 else 4)
    rows = race(rivals, threads=arguments.threads, rounds=rounds, burst=burst, budget=arguments.budget)
    show(case, rows)
    summarise(rows, _peers(arguments))
    return {
        "case": case,
        "macs": stream.stats.total.macs_dense // max(1, stream.stats.total.frames),
        "relative_error": max(worst_uniform, worst_real),
        "rows": rows,
    }


def summarise(rows: list[dict[str, Any]], peers: Iterable[str]) -> None:
    """Prints speed-ups over the best dense peer."""
    time = {row["contestant"]: row["seconds"]["median"] for row in rows}
    dense = {name: time[name] for name in peers if name in time}
    if dense:
        best = min(dense, key=lambda name: dense[name])
        ratios = "  ".join(f"{name} {dense[best] / t:.2f}" for name, t in time.items() if name not in dense)
        print(f"  against {best}: {ratios}", flush=True)


def run(benchmark: str, description: str, dtype: str) -> int:
    """The command line; `dtype` is what everybody computes in, "float32" or "bfloat16"."""
    command = parser(benchmark, description)
    command.set_defaults(dtype=dtype)
    command.add_argument("--peers", default="", help="comma-separated dense peers; default: all")
    command.add_argument("--rounds", type=int, default=9, help="turns of every contestant")
    command.add_argument("--budget", type=float, default=150.0, help="seconds per network and size after which no new round starts")
    return main(command.parse_args(), measure)


if __name__ == "__main__":
    sys.exit(run("networks", __doc__ or "", "float32"))
