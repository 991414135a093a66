"""Layers on foveated sensors: convolution, pooling, their gradients, tables; against fovi where it is installed, and dense layers.

One thread, the layers of the packaged AlexNet (4085 samples per image) and the first one of fovi's tutorial, random weights: the same in
ours and fovi's. Ours take and give node-major maps. The dense control is the same layer on a square map of about as many pixels. Peak
memory is that of inference with the whole AlexNet backbone over what the process held before the call, each in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_fovea import forget, fovi_networks, makers, trained
from harness import Contestant, Disagreement, MissingPeer, main, must_agree, parser, race
from torch import Tensor, nn

from sightline.fovea import KNNConv, KNNPool, SensorGrid
from sightline.fovea.neighbours import neighbour_table

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Layer:
    """One layer: rings of its sensors, neighbours, kernel cells per axis, channels; the dense one's map, kernel and stride."""

    name: str
    rings: tuple[int, int]
    k: int
    side: int
    channels: tuple[int, int]
    dense: tuple[int, int, int]

    @property
    def pool(self) -> bool:
        """Whether it is a pool."""
        return self.side == 0

    def ours(self) -> nn.Module:
        """Our layer."""
        source, target = (SensorGrid(16, 0.5, rings) for rings in self.rings)
        if self.pool:
            return KNNPool(self.k, source, target, ties="fovi")
        return KNNConv(*self.channels, self.k, source, target, side=self.side, ties="fovi")

    def fovi(self) -> nn.Module:
        """fovi's."""
        from fovi.arch.knn import KNNConvLayer, KNNPoolingLayer
        from fovi.sensing.coords import SamplingCoords

        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source, target = (SamplingCoords(16, 0.5, rings, device="cpu") for rings in self.rings)
            if self.pool:
                made: nn.Module = KNNPoolingLayer(self.k, source, target, device="cpu")
            else:
                made = KNNConvLayer(*self.channels, self.k, source, target, device="cpu", ref_frame_side_length=self.side)
        return made

    def control(self) -> nn.Module:
        """The dense one."""
        _, kernel, stride = self.dense
        if self.pool:
            return nn.MaxPool2d(kernel, stride, kernel // 2)
        return nn.Conv2d(*self.channels, kernel, stride, kernel // 2, bias=False)


LAYERS = (
    Layer("tutorial 3-128, 4085 to 4085", (53, 53), 49, 14, (3, 128), (64, 7, 1)),
    Layer("conv1 3-96, 4085 to 964", (53, 26), 121, 22, (3, 96), (64, 11, 2)),
    Layer("conv2 96-256, 230 to 230", (13, 13), 25, 10, (96, 256), (16, 5, 1)),
    Layer("conv3 256-384, 60 to 60", (7, 7), 9, 6, (256, 384), (8, 3, 1)),
    Layer("conv4 384-384, 60 to 60", (7, 7), 9, 6, (384, 384), (8, 3, 1)),
    Layer("conv5 384-256, 60 to 60", (7, 7), 9, 6, (384, 256), (8, 3, 1)),
    Layer("max pool 128, 4085 to 964", (53, 26), 9, 0, (128, 128), (64, 3, 2)),
    Layer("max pool 96, 964 to 230", (26, 13), 9, 0, (96, 96), (32, 3, 2)),
)
QUICK = (Layer("quick 3-8, 60 to 16", (7, 4), 9, 6, (3, 8), (8, 3, 2)), Layer("quick pool 8, 60 to 16", (7, 4), 9, 0, (8, 8), (8, 3, 2)))


def running(layer: Layer, batch: int, training: bool, with_fovi: bool) -> tuple[list[Contestant], float]:
    """Contestants that run one layer, and by how much ours differs from fovi."""
    makers = {"ours": layer.ours, **({"fovi": layer.fovi} if with_fovi else {}), "dense": layer.control}
    nets = {who: make().train(training) for who, make in makers.items()}
    points, channels = len(nets["ours"].in_coords), layer.channels[0]  # type: ignore[arg-type]
    samples = torch.randn(points, batch, channels, generator=torch.Generator().manual_seed(0)).permute(1, 2, 0)
    inputs = {"ours": samples, "fovi": samples.contiguous(), "dense": torch.randn(batch, channels, layer.dense[0], layer.dense[0])}
    error = 0.0
    if with_fovi:
        nets["ours"].load_state_dict(nets["fovi"].state_dict())
        error = must_agree(layer.name, nets["ours"](samples), nets["fovi"](inputs["fovi"]), TOLERANCE)
    # the first layer of a network gets no gradient of its input
    wants = training and channels > 3

    def run(net: nn.Module, x: Tensor) -> Tensor:
        if not training:
            return net(x)  # type: ignore[no-any-return]
        return trained(net, x.detach().requires_grad_(wants))

    return [Contestant(who, lambda n=net, x=inputs[who]: run(n, x)) for who, net in nets.items()], error


def tables(rings: int) -> tuple[list[Contestant], float]:
    """A sensor and the table of a layer from it to itself, from nothing."""

    def ours() -> None:
        sensor = SensorGrid(16, 0.5, rings)
        neighbour_table(sensor, sensor, 49)

    return [Contestant("ours", ours, before=forget)], 0.0


def peak(name: str, batch: int) -> float:
    """MiB at the highest over what was held before; runs in a process of its own."""
    torch.manual_seed(0)
    peers = fovi_networks() if name == "fovi" else None
    net = makers("AlexNet", 64, peers)[name]().eval()
    x = torch.randn((batch, 3, 64, 64) if name == "dense" else (batch, 3, 4085))

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

    with torch.no_grad():
        net(x)
        net(x)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = status("VmRSS")
        net(x)
    return (status("VmHWM") - before) / 1024


def memory(arguments: argparse.Namespace, with_fovi: bool) -> list[dict[str, Any]]:
    """Peaks of the AlexNet backbone."""
    cases = []
    for batch in (1,) if arguments.quick else (1, 16):
        case = f"AlexNet inference, batch {batch}"
        found = {}
        for name in ("ours", *(("fovi",) if with_fovi else ()), "dense"):
            command = [sys.executable, __file__, "--child", name, str(batch)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise Disagreement(f"{case}: the measuring process failed: {run.stderr.strip().splitlines()[-1:]}")
            found[name] = float(json.loads(run.stdout.splitlines()[-1]))
        print(f"{case:<60} MiB {found}", flush=True)
        cases.append({"case": case, "rows": [], "peak_mib": found})
    return cases


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    notes = []
    try:
        fovi_networks()
        with_fovi = True
    except MissingPeer as error:
        with_fovi = False
        notes.append(str(error))
    quick = arguments.quick
    jobs: list[tuple[str, Callable[[], tuple[list[Contestant], float]]]] = []
    for layer in QUICK if quick else LAYERS:
        for batch, training in ((2, False), (2, True)) if quick else ((1, False), (16, False), (16, True)):
            what = f"{layer.name}, {'forward and backward' if training else 'inference'}, batch {batch}"
            jobs.append((what, lambda one=layer, b=batch, t=training: running(one, b, t, with_fovi)))
    jobs += [
        (f"sensor and table, {count} points", lambda r=rings: tables(r))
        for count, rings in ((60, 7),) + (() if quick else ((4085, 53), (49877, 184)))
    ]
    cases = []
    for what, make in jobs:
        if arguments.only not in what:
            continue
        found, error = make()
        rows = race(found, threads=arguments.threads, rounds=3, burst=1, budget=30)
        time = {row["contestant"]: row["seconds"]["median"] for row in rows}
        beside = "".join(f"  {who} {time[who] * 1e3:9.2f} ms" for who in ("fovi", "dense") if who in time)
        print(f"{what:<60} {time['ours'] * 1e3:9.2f} ms{beside}", flush=True)
        cases.append({"case": what, "relative_error": error, "rows": rows})
    if not arguments.only and Path("/proc/self/clear_refs").exists():
        cases += memory(arguments, with_fovi)
    return cases, notes


if __name__ == "__main__":
    if "--child" in sys.argv:
        kind, images = sys.argv[sys.argv.index("--child") + 1 :]
        torch.set_num_threads(1)
        print(json.dumps(peak(kind, int(images))))
        sys.exit(0)
    sys.exit(main(parser("fovea_layers", __doc__ or "").parse_args(), measure))
