#!/usr/bin/env python3
"""Streams every convolutional network of torchvision, and many of timm, for three frames and compares with dense PyTorch.

Writes one JSON line per network; a second run does those that are missing. One process per network, with limits of time and memory.
Weights are random but lively, thresholds 0; the law of tests/oracle.py decides (against float64), or for networks above 150 million weights
a relative error of 1e-3 against float32. Where lively weights make PyTorch's own float32 result wrong by more than a thousandth, the
network's own initial weights are taken ("tame"). Detectors: the same relative error, box by box; no box is thrown away for a low score,
so that there are some.

    python scripts/sweep_models.py results.jsonl [--only NAME ...] [--limit-seconds 120] [--stop-after 900] [--shard 0/2]
    python scripts/sweep_models.py results.jsonl --table benchmarks/results/models-1.json

Prints a line per network and, at the end, what failed. Exit code 1 if anything did.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import re
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from torch import Tensor, nn

import oracle
import sightline as sl
import zoo
from sightline.graph.prepare import graph_of
from sightline.torchvision_import import import_torchvision

PER_FILE = 5  # networks per source file of timm, spread over the names of all but the largest sizes
LARGE_NAMES = re.compile(
    r"xlarge|huge|giant|_large|large_|enormous|_xl|_l\b|_x\b|_xx?l|base|101|152|200|269|270|350|420|600|_b[4-8]|_f[2-7]|_r160|_128|_160|_320|_640|_08|_12|_04|_06"
)
GIBIBYTES = 10  # of memory per network
LARGE = 150_000_000  # weights above which no float64 copy is made
HUGE = 700_000_000  # weights above which a network is left out: more memory than time
TIMM_FILES = [
    "byobnet", "convmixer", "convnext", "cspnet", "densenet", "dla", "dpn", "edgenext", "efficientnet", "efficientvit_mit",
    "efficientformer", "fasternet", "fastvit", "ghostnet", "hardcorenas", "hgnet", "hrnet", "inception_next",
    "inception_resnet_v2", "inception_v3", "inception_v4", "mambaout", "metaformer", "mobilenetv3", "mobilenetv5", "mobilevit",
    "nasnet", "nfnet", "pnasnet", "rdnet", "regnet", "repghost", "repvit", "res2net", "resnest", "resnet", "resnetv2", "rexnet",
    "selecsls", "senet", "shvit", "sknet", "starnet", "swiftformer", "tresnet", "vgg", "vovnet", "xception", "xception_aligned",
    "csatv2", "davit", "focalnet",
]  # fmt: skip


def names() -> dict[str, str]:
    """Network -> kind."""
    import timm
    from torchvision import models

    table = {f"torchvision:{name}": "classification" for name in models.list_models(models)}
    for kind in ("segmentation", "detection"):
        table.update({f"torchvision:{name}": kind for name in models.list_models(getattr(models, kind))})
    for file in TIMM_FILES:
        try:
            found = timm.list_models(module=file)
        except Exception:
            found = []
        found = [name for name in found if not LARGE_NAMES.search(name)] or found
        step = max(1, -(-len(found) // PER_FILE))
        table.update({f"timm:{name}": "classification" for name in found[::step]})
    return table


def build(name: str, kind: str) -> tuple[nn.Module, tuple[int, int]]:
    """The network in eval mode and the size of its frames."""
    library, _, plain = name.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "timm":
            import timm

            model: nn.Module = timm.create_model(plain, pretrained=False)
            fixed = any(part in plain for part in ("vit", "davit", "focal", "efficientformer"))
            return model.eval(), tuple(model.default_cfg["input_size"][1:]) if fixed else (96, 96)  # type: ignore[arg-type, index]
        from torchvision import models

        options: dict[str, Any] = {"weights": None}
        if kind == "detection":
            options["weights_backbone"] = None
            if not plain.startswith("ssd"):
                options |= {"min_size": 96, "max_size": 128}
            rcnn = "rcnn" in plain
            options |= {"box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 30} if rcnn else {"score_thresh": 0.0, "topk_candidates": 30}
            options |= {"box_detections_per_img": 20} if rcnn else {"detections_per_img": 20}
        elif kind == "segmentation":
            options["weights_backbone"] = None
        elif plain in {"googlenet", "inception_v3"}:
            options |= {"init_weights": False, "aux_logits": False}
        model = models.get_model(plain, **options).eval()
        fixed = plain.startswith(("vit_", "maxvit"))
        return model, (224, 224) if fixed else (96, 96)


def decide(model: nn.Module) -> None:
    """Lets a fresh detector have opinions: where all scores are nearly equal, rounding would choose the boxes."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and any(
            part in name for part in ("cls_logits", "cls_score", "classification_head.m")
        ):
            module.weight.data.normal_(0, 4 * module.weight[0].numel() ** -0.5)


def moving(size: tuple[int, int]) -> list[Tensor]:
    """Three frames: a still picture with a patch that moves."""
    still, patch = torch.rand(1, 3, *size), torch.rand(1, 3, size[0] // 6, size[1] // 6)
    frames = []
    for index in range(3):
        frame = still.clone()
        y, x = size[0] // 4 * index, size[1] // 4 * index
        frame[:, :, y : y + patch.shape[2], x : x + patch.shape[3]] = patch
        frames.append(frame)
    return frames


def relative(got: Any, want: Any) -> float:
    """Largest error of all tensors, each relative to its largest value; infinite if shapes differ."""
    ours, theirs = oracle.tensors(got), oracle.tensors(want)
    if [value.shape for value in ours] != [value.shape for value in theirs]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True) if b.numel()]
    return max((float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs), default=0.0)


def obey_law(results: list[Any], model: nn.Module, exact: nn.Module, frames: list[Tensor], relative_error: float) -> None:
    """Fails unless all frames obey the tolerance law; how exact PyTorch happens to be is taken over all of them."""
    with torch.no_grad():
        truths = [oracle.tensors(exact(frame.double())) for frame in frames]
        plains = [oracle.plain_results(model, frame, truth) for frame, truth in zip(frames, truths, strict=True)]
    limits = [max(map(oracle.allowed, *pair)) for pair in zip(zip(*plains, strict=True), zip(*truths, strict=True), strict=True)]
    for index, (got, plain, truth) in enumerate(zip(results, plains, truths, strict=True)):
        oracle.assert_law(oracle.tensors(got), plain, truth, f"frame {index}, relative error {relative_error:.2g}", limits)


def keypoints_apart(got: Any, want: Any) -> float:
    """The largest distance in pixels of a detector's keypoints, which are taken out of both results.

    Each is the place of a maximum, and rounding decides between neighbours that are as good.
    """
    if not (isinstance(got, list) and got and isinstance(got[0], dict) and "keypoints" in got[0]):
        return 0.0
    pairs = [(a.pop("keypoints"), b.pop("keypoints")) for a, b in zip(got, want, strict=True)]
    return max(float((a - b).abs().max()) for a, b in pairs)


def sound(model: nn.Module, exact: nn.Module, frame: Tensor) -> bool:
    """Whether PyTorch's own result in float32 is right to a thousandth; some deep networks amplify rounding until nothing else is left."""
    with torch.no_grad():
        return relative(model(frame), exact(frame.double())) <= 1e-3


def macs_of(model: nn.Module, frame: Tensor) -> int:
    """Multiply-accumulates of a whole model, also of what cannot be captured."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(frame)
    return counter.get_total_flops() // 2


def judge(name: str, kind: str) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    model, size = build(name, kind)
    weights = sum(p.numel() for p in model.parameters())
    row: dict[str, Any] = {"weights": weights, "size": size}
    if weights > HUGE:
        return row | {"status": "left out", "why": f"{weights / 1e6:.0f} million weights"}
    frames = moving(size)
    if kind == "detection":
        decide(model)
    else:
        zoo.enliven(model, size)
    exact = copy.deepcopy(model).double() if kind != "detection" and weights <= LARGE else None
    if exact is not None and not sound(model, exact, frames[0]):
        torch.manual_seed(0)
        model, row["tame"] = build(name, kind)[0], True
        exact = copy.deepcopy(model).double()
        assert sound(model, exact, frames[0]), "PyTorch's own float32 result is noise"
    stream = sl.stream(model)
    results, shares = [], []
    for frame in frames:
        results.append(stream(frame))
        shares.append(stream.stats.last.macs_share)
    with torch.no_grad():
        dense = [model(frame) for frame in frames]
    far = max(keypoints_apart(*pair) for pair in zip(results, dense, strict=True))
    assert far <= 1, f"keypoints are {far:.3g} pixels apart"
    worst = max(relative(*pair) for pair in zip(results, dense, strict=True))
    if exact is None:
        assert worst <= 1e-3, f"relative error {worst:.3g}, {[tuple(v.shape) for v in oracle.tensors(results[-1])]}"
    else:
        obey_law(results, model, exact, frames, worst)
    rows = stream.explain().rows
    if all(r["executor"] == "native" for r in rows) and stream._partial is None:
        oracle.assert_bits_equal(results[-1], stream.clone()(frames[-1]), "against the stream's own dense run")
    stream(frames[-1])
    assert stream.stats.last.macs_done == 0, f"a static frame costs {stream.stats.last.macs_share:.1%} of the work"
    on_torch = sorted({str(r["op"]) for r in rows if r["executor"] != "native"})
    macs = macs_of(model, frames[-1]) if stream._partial is not None else sum(r["macs"] for r in rows)
    if kind == "detection":
        assert sum(value.shape[0] for value in oracle.tensors(results[-1])) > 0, "nothing was detected, so nothing was compared"
    native = sum(r["macs"] for r in rows if r["executor"] == "native")
    return row | {
        "status": "ok", "relative_error": worst, "macs_share": shares, "macs": macs, "native_macs_share": native / max(macs, 1),
        "call_sites": len(rows), "parts": stream._partial is not None,
        "on_torch": sum(r["executor"] != "native" for r in rows), "ops_on_torch": on_torch,
    }  # fmt: skip


def child(name: str, kind: str, pipe: Any) -> None:
    """Runs in a process of its own."""
    start = time.perf_counter()
    resource.setrlimit(resource.RLIMIT_DATA, (GIBIBYTES << 30, GIBIBYTES << 30))
    try:
        row = judge(name, kind)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        row = {"status": type(error).__name__, "why": " ".join(str(error).split())[:400], "at": f"{Path(last.filename).name}:{last.lineno}"}
    pipe.send(row | {"seconds": round(time.perf_counter() - start, 1)})


def write_table(source: Path, target: Path) -> int:
    """The rows of a finished sweep as a result file for render_tables.py, without what the tables do not show."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
    from harness import write_results

    rows = {row["name"]: row for row in map(json.loads, source.read_text().splitlines())}
    cases = []
    for name in sorted(rows):
        row = {key: value for key, value in rows[name].items() if key not in {"macs_share", "seconds", "at"}}
        for key in ("relative_error", "native_macs_share"):
            if key in row:
                row[key] = float(f"{row[key]:.4g}")
        cases.append(row)
    write_results(target, "models", argparse.Namespace(quick=False, threads=1), cases, ["random weights, thresholds 0"])
    return 0


def main() -> int:
    """Runs what is missing in the file."""
    parser = argparse.ArgumentParser(description="Stream the networks of torchvision and timm and compare with dense PyTorch.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="networks, e.g. timm:regnetx_002")
    parser.add_argument("--limit-seconds", type=float, default=120)
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds")
    parser.add_argument("--shard", default="0/1", help="0/2 and 1/2: halves of the work, for two processes with a file each")
    parser.add_argument("--skip", type=Path, nargs="*", default=[], help="files of other runs, whose networks are left out")
    parser.add_argument("--table", type=Path, help="run nothing; write the results as one JSON file for docs/models.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table is not None:
        return write_table(arguments.output, arguments.table)
    import_torchvision()
    table = names()
    done = (
        {json.loads(line)["name"]: json.loads(line) for line in arguments.output.read_text().splitlines()}
        if arguments.output.exists()
        else {}
    )
    table.update({name: "classification" for name in arguments.only if name not in table})
    elsewhere = {json.loads(line)["name"] for path in arguments.skip for line in path.read_text().splitlines()}
    # mixed: a run that is cut short has some of all
    wanted = arguments.only or sorted(set(table) - set(done) - elsewhere, key=lambda name: name[::-1])
    shard, shards = map(int, arguments.shard.split("/"))
    wanted = wanted[shard::shards]
    # What tracing imports is imported once, here.
    graph_of(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    context, start = multiprocessing.get_context("fork"), time.monotonic()
    for name in wanted:
        if time.monotonic() - start > arguments.stop_after:
            break
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(name, table[name], send))
        process.start()
        send.close()
        try:
            row = receive.recv() if receive.poll(arguments.limit_seconds) else {"status": "timeout", "seconds": arguments.limit_seconds}
        except EOFError:
            row = {"status": "died", "why": f"exit code {process.exitcode}"}
        process.kill()
        process.join()
        row = {"name": name, "kind": table[name], **row}
        with arguments.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done[name] = row
        print(f"{name:50} {row['status']:14} {row.get('seconds', 0):6.1f} s  {row.get('why', '')[:150]}", flush=True)
    bad = [row for row in done.values() if row["status"] not in {"ok", "left out"}]
    print(f"{len(done)} of {len(table)} networks, {sum(row['status'] == 'ok' for row in done.values())} equal dense, {len(bad)} do not")
    for row in bad:
        print(f"  {row['name']}: {row['status']}: {row.get('why', '')}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
