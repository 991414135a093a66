"""Networks on foveated sensors: building, inference, forward with backward; against fovi where it is installed, and dense controls.

One thread, backbones as in the packaged configurations, 4085 samples per image (a 64 x 64 grid's worth), random weights: the same in ours
and fovi's. Samples of ours lie nodes-first in memory, as a retina returns them. The dense control is the same network on 64 x 64 pixels.
Networks are built anew each time, with nothing kept from the last; those that run break ties as fovi does, so that outputs are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from harness import Contestant, MissingPeer, main, must_agree, parser, race
from torch import Tensor, nn

from sightline.fovea import DenseAlexNet, DenseResNet, KNNAlexNet, KNNResNet
from sightline.fovea.neighbours import _find, _table
from sightline.fovea.sensor.geometry import build
from sightline.fovea.sensor.matching import num_points
from sightline.torchvision_import import import_torchvision

TOLERANCE = 1e-5
ALEXNET: tuple[Any, ...] = ([96, 256, 384, 384, 256], [2, 1, 1, 1, 1], [0, 1, 4], [121, 25, 9, 9, 9])
SHARED: dict[str, Any] = {"auto_match_cart_resources": 1, "out_res": 1}


def fovi_networks() -> tuple[Any, Any]:
    """fovi's AlexNet and ResNet.

    Raises:
        MissingPeer: fovi is not installed, or not its extra for networks.
    """
    try:
        import_torchvision()
        from fovi.models.knnalexnet import KNNAlexNet as Theirs
        from fovi.models.knnresnet import KNNResNet as TheirResNet
    except ImportError as error:
        raise MissingPeer(f"fovi's networks are not installed ({error}); only ours and the dense controls were timed.") from error
    return Theirs, TheirResNet


def makers(name: str, side: int, peers: tuple[Any, Any] | None, ties: str = "fovi") -> dict[str, Callable[[], nn.Module]]:
    """How each contestant builds a backbone."""
    alexnet = name == "AlexNet"

    def ours() -> nn.Module:
        if alexnet:
            return KNNAlexNet(side, 3, *ALEXNET, ref_frame_mult=2, ties=ties, **SHARED)
        return KNNResNet.of_depth(18, in_res=side, ties=ties, **SHARED)

    def theirs() -> nn.Module:
        assert peers is not None
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: nn.Module = (
                peers[0](side, 3, *ALEXNET, ref_frame_mult=2, device="cpu", **SHARED)
                if alexnet
                else peers[1](in_res=side, device="cpu", **SHARED)
            )
        return made

    def dense() -> nn.Module:
        return DenseAlexNet("base_lowres", grid=side) if alexnet else DenseResNet(18)

    return {"ours": ours, **({"fovi": theirs} if peers is not None else {}), "dense": dense}


def forget() -> None:
    """Throws away everything that is kept between equal sensors."""
    for kept in (build, num_points, _find, _table):
        kept.cache_clear()


def trained(net: nn.Module, x: Tensor) -> Tensor:
    """Forward and backward; the sum of the output."""
    with torch.enable_grad():
        total: Tensor = net(x).sum()
        total.backward()
    net.zero_grad()
    return total


def running(name: str, batch: int, side: int, peers: tuple[Any, Any] | None, training: bool) -> tuple[list[Contestant], float]:
    """Contestants that run a network, and by how much ours differs from fovi."""
    nets = {who: make().train(training) for who, make in makers(name, side, peers).items()}
    points = len(nets["ours"].in_coords)  # type: ignore[arg-type]
    # In memory: nodes, images, channels.
    samples = torch.rand(points, batch, 3, generator=torch.Generator().manual_seed(0)).permute(1, 2, 0)
    inputs = {"ours": samples, "fovi": samples.contiguous(), "dense": torch.rand(batch, 3, side, side)}
    error = 0.0
    if "fovi" in nets:
        nets["ours"].load_state_dict(nets["fovi"].state_dict())
        outputs = [nets[who].eval()(inputs[who]) for who in ("ours", "fovi")]
        error = must_agree(f"{name}, batch {batch}", outputs[0], outputs[1], TOLERANCE)
        for net in nets.values():
            net.train(training)
    run: Callable[[nn.Module, Tensor], Tensor] = trained if training else lambda net, x: net(x)
    return [Contestant(who, lambda n=net, x=inputs[who]: run(n, x)) for who, net in nets.items()], error


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    notes = []
    try:
        peers: tuple[Any, Any] | None = fovi_networks()
    except MissingPeer as error:
        peers = None
        notes.append(str(error))
    quick = arguments.quick
    side = 32 if quick else 64
    cases = []
    for name in ("AlexNet", "ResNet-18"):
        jobs: list[tuple[str, Callable[[], tuple[list[Contestant], float]]]] = []
        for batch in (2,) if quick else (1, 16):
            for training in (False, True):
                what = f"{name} {'forward and backward' if training else 'inference'}, batch {batch}"
                jobs.append((what, lambda b=batch, t=training, n=name: running(n, b, side, peers, t)))
        builders = {**makers(name, side, peers, "stable"), "ours, ties=fovi": makers(name, side, peers)["ours"]}
        contestants = [Contestant(who, make, before=forget) for who, make in builders.items() if who != "dense"]
        jobs.append((f"{name} built", lambda c=contestants: (c, 0.0)))
        for what, make in jobs:
            if arguments.only not in what:
                continue
            found, error = make()
            rows = race(found, threads=arguments.threads, rounds=3 if quick else 9, burst=1, budget=60)
            time = {row["contestant"]: row["seconds"]["median"] for row in rows}
            beside = "".join(f"  {who} {time[who] * 1e3:9.2f} ms" for who in ("fovi", "dense") if who in time)
            print(f"{what:<40} {time['ours'] * 1e3:9.2f} ms{beside}", flush=True)
            cases.append({"case": what, "relative_error": error, "rows": rows})
    return cases, notes


if __name__ == "__main__":
    sys.exit(main(parser("fovea", __doc__ or "").parse_args(), measure))
