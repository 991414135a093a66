"""Foveated sensors and retinas: making a sensor, and sampling images with it; against fovi where it is installed.

One thread, samples of 256 x 256 images by the 4085-point sensor of fovi's tutorial, in eval mode. Ours are written nodes-first in memory,
which is one transposition more than fovi does. Sensors are made anew each time: what is kept between equal ones is thrown away.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from harness import Contestant, MissingPeer, main, must_agree, parser, race
from torch import Tensor

from sightline.fovea import RetinalTransform, SensorGrid
from sightline.fovea.sensor.geometry import build
from sightline.fovea.sensor.manifold import _heights
from sightline.fovea.sensor.matching import num_points
from sightline.fovea.sensor.rings import ring_counts
from sightline.torchvision_import import import_torchvision

SAMPLERS = {"nearest": "grid_nn", "bilinear": "grid_bilinear", "pooling": "pooling"}
# A sample that lies between two pixels may be either's in float32: pictures are so smooth that this does not matter, and pooling adds
# that ties between neighbours are decided by rounding.
TOLERANCE = 0.05


def fovi_sensing() -> tuple[Any, Any]:
    """fovi's modules of sensors and retinas.

    Raises:
        MissingPeer: fovi is not installed.
    """
    try:
        import_torchvision()
        from fovi.sensing import coords, retina
    except ImportError as error:
        raise MissingPeer(f"fovi is not installed ({error.name}); only ours was timed.") from error
    return coords, retina


def smooth_images(batch: int, side: int, dtype: torch.dtype) -> Tensor:
    """(batch, 3, side, side) of slow waves, from 0 to 1, or to 255."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True).clamp(0, 1)
    return (images * 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)


def forget() -> None:
    """Throws away everything that is kept between equal sensors."""
    for kept in (build, num_points, ring_counts, _heights):
        kept.cache_clear()


def construction(resolution: int, manifold: str, peers: tuple[Any, Any] | None) -> tuple[str, list[Contestant], float]:
    """Making a sensor with everything that it has."""

    def ours() -> Tensor:
        grid = SensorGrid(16, 0.5, resolution, manifold=manifold)
        everything = (grid.polar, grid.plotting, grid.cortical, grid.pad_cartesian, grid.pad_cortical)
        assert all(part is not None for part in everything)
        return grid.cartesian

    contestants, error = [Contestant("ours", ours, before=forget)], 0.0
    if peers is not None:
        coords = peers[0]

        def theirs() -> Tensor:
            made: Tensor = coords.SamplingCoords(16, 0.5, resolution, field_geometry=manifold).cartesian
            return made

        error = must_agree(f"sensor of {resolution} rings", ours(), theirs(), 1e-5)
        contestants.append(Contestant("fovi", theirs))
    return f"sensor {len(ours())} points {manifold}", contestants, error


def sampling(side: int, batch: int, dtype: torch.dtype, mode: str, peers: tuple[Any, Any] | None) -> tuple[str, list[Contestant], float]:
    """Sampling a batch of images, each at its own fixation."""
    images = smooth_images(batch, 256, dtype)
    fixations = 0.25 + 0.5 * torch.rand(batch, 2, generator=torch.Generator().manual_seed(1))
    retina = RetinalTransform(SensorGrid.matched(16, 0.5, side, float32_recipe=True), sampler=mode).eval()

    def ours() -> Tensor:
        found: Tensor = retina(images, fixations)
        return found

    contestants, error = [Contestant("ours", ours)], 0.0
    if peers is not None:
        peer = peers[1].RetinalTransform(side, 256, 16, 0.5, device="cpu", sampler=SAMPLERS[mode]).eval()

        def theirs() -> Tensor:
            found: Tensor = peer(images, fixations)
            return found

        error = must_agree(f"{mode} {dtype}", ours(), theirs(), TOLERANCE)
        contestants.append(Contestant("fovi", theirs))
    return f"{mode} {str(dtype).removeprefix('torch.')} batch {batch}", contestants, error


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    notes = []
    try:
        peers: tuple[Any, Any] | None = fovi_sensing()
    except MissingPeer as error:
        peers = None
        notes.append(str(error))
    quick = arguments.quick
    makers: list[tuple[str, Callable[[], tuple[str, list[Contestant], float]]]] = [
        (f"sensor {manifold}", lambda r=rings, m=manifold: construction(r, m, peers))
        for rings, manifold in (((7, "planar"),) if quick else ((53, "planar"), (185, "planar"), (185, "legacy")))
    ]
    for mode in SAMPLERS:
        for dtype in (torch.float32, torch.uint8):
            for batch in (1,) if quick else (1, 16):
                size = 8 if quick else 64
                makers.append((mode, lambda s=size, b=batch, d=dtype, m=mode: sampling(s, b, d, m, peers)))
    cases = []
    for kind, make in makers:
        if arguments.only not in kind:
            continue
        name, contestants, error = make()
        rounds, burst = (3, 1) if quick or kind.startswith("sensor") else (25, 5)
        rows = race(contestants, threads=arguments.threads, rounds=rounds, burst=burst, budget=60)
        time = {row["contestant"]: row["seconds"]["median"] for row in rows}
        against = f"  {time['fovi'] / time['ours']:6.2f} times as fast as fovi ({time['fovi'] * 1e3:.3f} ms)" if "fovi" in time else ""
        print(f"{name:<32} {time['ours'] * 1e3:9.3f} ms{against}", flush=True)
        cases.append({"case": name, "relative_error": error, "rows": rows})
    return cases, notes


if __name__ == "__main__":
    sys.exit(main(parser("retina", __doc__ or "").parse_args(), measure))
