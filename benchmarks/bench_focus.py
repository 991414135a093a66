"""An area of interest against dense peers: a centred box of some share of the picture, both modes of `focus`.

"zero d": every layer computes the box (share d of the picture) as it lies on its own grid, whole networks with their heads. "exact d": the
trunk alone (a head reads everything), every layer computes what the box on the last map needs; `macs_share` is what the backward walk
predicts, and `over_macs` how much more than that share of Sightline's own dense run it took. "blobs d": ellipses instead of a box.
"moving": the box is elsewhere at every call, so the masks of all layers are worked out within the time. Every call is a new picture to
`focus`: nothing is kept from the one before.
"""

from __future__ import annotations

import argparse
import copy
import sys
from typing import Any

import torch
from harness import Contestant, MissingPeer, blob_mask, main, must_agree, parser, race, show
from torch import Tensor

import networks
import sightline as sl
from sightline.graph.executor import run_chain

SHARES = (0.25, 0.1, 0.05)
NETWORKS = {"VGG16": networks.vgg16, "ResNet-50": networks.resnet50, "MobileNetV2": networks.mobilenet_v2}
PEERS = {
    "eager": (networks.eager, False),
    "eager, contiguous": (networks.eager_contiguous, False),
    "onnxruntime": networks.PEERS["onnxruntime"],
    "openvino": networks.PEERS["openvino"],
}


def centred(size: tuple[int, int], share: float, shift: int = 0) -> sl.AreaOfInterest:
    """A box of this share of the picture, of its proportions, in its middle or some pixels below and right of it."""
    h, w = size
    high, wide = round(h * share**0.5), round(w * share**0.5)
    y, x = (h - high) // 2 + shift, (w - wide) // 2 + shift
    return sl.AreaOfInterest.from_boxes([(y, x, y + high, x + wide)], size)


def check_steps(focused: sl.Focused, what: str) -> float:
    """Recomputes every step densely in PyTorch from the maps that it read; at its sites they agree, elsewhere it holds 0."""
    running: Any = focused._running
    executor, worst = running.executor, 0.0
    inside: dict[Any, Tensor] = {}  # values of steps that are not held

    def read(node: Any) -> Any:
        return inside[node] if node in inside else executor.value(node)

    for step in running.plan.steps:
        if step.head.op in {"input", "constant"} or executor.where(step)[1] == "a view":
            continue
        want, got = run_chain(step.nodes, read), executor.value(step.output)
        if not executor.holds(step):
            inside[step.output] = want * running.masks[step][:, None] if running.masks else want
            continue
        if want.dim() == 4:
            sites = executor.sites_mask(step)[:, None].expand_as(want)
            if bool(got[~sites].any()):
                must_agree(f"{what}, step {step.name} is not 0 outside", torch.ones(1), torch.zeros(1))
            want, got = want[sites], got[sites]
        worst = max(worst, must_agree(f"{what}, step {step.name}", got, want))
    return worst


def check_inside(focused: sl.Focused, frame: Tensor, want: Tensor, what: str) -> float:
    """Exact mode: inside the area the output is the dense one."""
    mask = focused.aoi.sites(*want.shape[2:]).mask[:, None].expand_as(want)
    return must_agree(what, focused(frame)[mask], want[mask])


def _contestant(name: str, focused: sl.Focused, area: sl.AreaOfInterest, frame: Tensor, **extra: Any) -> Contestant:
    def prepare() -> None:
        focused.aoi = area
        focused(frame)

    prepare()
    return Contestant(name, lambda: focused(frame), prepare=prepare, extra={"macs_share": focused.explain().macs_share, **extra})


def _moving(focused: sl.Focused, size: tuple[int, int], share: float, frame: Tensor) -> Contestant:
    areas, turn = [centred(size, share), centred(size, share, 8)], [0]

    def run() -> None:
        turn[0] ^= 1
        focused.aoi = areas[turn[0]]
        focused(frame)

    return Contestant(f"{focused.mode} {share:g}, moving", run)


def dense_contestants(model: torch.nn.Module, frame: Tensor, arguments: argparse.Namespace, notes: list[str]) -> list[Contestant]:
    made, want = [], model(frame)
    for name, (build, own_threads) in PEERS.items():
        if arguments.peers and name not in arguments.peers.split(";"):
            continue
        try:
            run = build(copy.deepcopy(model), frame, arguments.threads)
        except MissingPeer as error:
            notes.append(f"{name}: {error}")
            continue
        must_agree(name, run(frame), want, 1e-3)
        made.append(Contestant(name, lambda run=run: run(frame), own_threads=own_threads))  # type: ignore[misc]
    return made


def run_zero(case: str, model: torch.nn.Module, frame: Tensor, arguments: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    size = (frame.shape[2], frame.shape[3])
    whole = sl.AreaOfInterest(torch.ones(1, 1))
    focused = sl.focus(model, whole, mode="zero", backend="native", example=frame)
    worst = must_agree(f"{case}: the whole picture", focused(frame), model(frame))
    rivals = [*dense_contestants(model, frame, arguments, notes), _contestant("zero 1", focused, whole, frame, share=1.0)]
    areas = {f"zero {share:g}": centred(size, share) for share in SHARES}
    areas["zero blobs 0.25"] = sl.AreaOfInterest(blob_mask(*size, 0.25))
    for name, area in areas.items():
        rivals.append(_contestant(name, focused, area, frame, share=area.size()))
        worst = max(worst, check_steps(focused, f"{case}: {name}"))
    rivals.append(_moving(focused, size, 0.1, frame))
    return _finish(case, rivals, worst, arguments)


def run_exact(case: str, model: torch.nn.Module, frame: Tensor, arguments: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    model, size = networks.trunk(model), (frame.shape[2], frame.shape[3])
    whole = sl.AreaOfInterest(torch.ones(1, 1))
    focused = sl.focus(model, whole, mode="exact", backend="native", example=frame)
    want = model(frame)
    worst = must_agree(f"{case}: the whole picture", focused(frame), want)
    rivals = [*dense_contestants(model, frame, arguments, notes), _contestant("exact 1", focused, whole, frame, share=1.0)]
    for share in SHARES:
        rivals.append(_contestant(f"exact {share:g}", focused, centred(size, share), frame, share=share))
        worst = max(worst, check_inside(focused, frame, want, f"{case}: exact {share:g}"))
    rivals.append(_moving(focused, size, 0.1, frame))
    result = _finish(case, rivals, worst, arguments)
    dense = next(row["seconds"]["median"] for row in result["rows"] if row["contestant"] == "exact 1")
    for row in result["rows"]:
        if row["contestant"].startswith("exact") and row.get("macs_share"):
            row["over_macs"] = row["seconds"]["median"] / dense / row["macs_share"] - 1
            print(f"  {row['contestant']}: {row['macs_share']:.3f} of the MACs, {row['over_macs']:+.1%} of time beyond that", flush=True)
    return result


def _finish(case: str, rivals: list[Contestant], worst: float, arguments: argparse.Namespace) -> dict[str, Any]:
    rounds = 3 if arguments.quick else arguments.rounds
    rows = race(rivals, threads=arguments.threads, rounds=rounds, burst=1, budget=arguments.budget)
    show(case, rows)
    time = {row["contestant"]: row["seconds"]["median"] for row in rows}
    dense = {name: time[name] for name in PEERS if name in time}
    if dense:
        best = min(dense, key=lambda name: dense[name])
        ratios = "  ".join(f"{name} {dense[best] / t:.2f}" for name, t in time.items() if name not in dense)
        print(f"  against {best}: {ratios}", flush=True)
    return {"case": case, "relative_error": worst, "rows": rows}


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    cases: list[dict[str, Any]] = []
    notes: list[str] = []
    size = (64, 96) if arguments.quick else (480, 640)
    if arguments.quick and not arguments.peers:
        arguments.peers = "eager;onnxruntime"
        notes.append("quick: eager, contiguous and openvino left out")
    for name, build in NETWORKS.items():
        if arguments.quick and name != "MobileNetV2":
            continue
        for mode, run in (("zero", run_zero), ("exact", run_exact)):
            case = f"{name} {size[0]}x{size[1]} {mode}"
            if arguments.only in case:
                torch.manual_seed(0)
                cases.append(run(case, build(), torch.rand(1, 3, *size), arguments, notes))
    return cases, list(dict.fromkeys(notes))


if __name__ == "__main__":
    command = parser("focus", __doc__ or "")
    command.add_argument("--peers", default="", help="dense peers, separated by semicolons; default: all of " + "; ".join(PEERS))
    command.add_argument("--rounds", type=int, default=7, help="turns of every contestant")
    command.add_argument("--budget", type=float, default=150.0, help="seconds per case after which no new round starts")
    sys.exit(main(command.parse_args(), measure))
