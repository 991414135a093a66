"""Many frames: memory and error stay where they were; many streams in many threads: the bits stay.

500 frames in every run, 10 000 with the marker ``slow``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import sightline as sl
from sightline import kernels
from streams import SHAPE, dense, net

pytestmark = pytest.mark.skipif(not kernels.native_status()["available"], reason=str(kernels.native_status()["reason"]))
FRAMES = [pytest.param(500, id="500"), pytest.param(10_000, marks=pytest.mark.slow, id="10000")]
FILTERS: dict[str, Any] = {"noise": "temporal"}
WARM_UP = 50  # frames after which nothing may grow any more


def endless_video(frames: int, seed: int = 0, sensor: float = 0.0) -> Iterator[Tensor]:
    """A patch that wanders over a still picture whose brightness drifts, and a sensor's noise: changes of every size, at every place."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randn(SHAPE, generator=generator)
    _, _, h, w = SHAPE
    for index in range(frames):
        y, x = (3 * index) % (h - 6), (5 * index) % (w - 6)
        picture[index % SHAPE[0], :, y : y + 6, x : x + 6] = torch.randn(SHAPE[1], 6, 6, generator=generator)
        if index % 7 == 0:
            picture[:, :, : h // 2] += 0.01 * torch.randn((), generator=generator)  # the slow drift that thresholds must not lose
        yield picture + sensor * torch.randn(SHAPE, generator=generator)


def resident() -> int:
    """Bytes of this process that are in memory, after everything that is free has gone back to the system."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads the process's memory from /proc")
@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize(("threshold", "filters"), [(0.0, {}), (0.1, {}), (0.1, FILTERS)], ids=["exact", "threshold", "filters"])
def test_memory_stays_flat(frames: int, threshold: float, filters: dict[str, Any]) -> None:
    """Resident memory after the last frame is that after frame 50, within 1 %; so is what the stream reports, to the byte."""
    stream = sl.stream(net(), threshold, backend="native", **filters)
    before = reported = 0
    for index, frame in enumerate(endless_video(frames, sensor=0.05 if filters else 0.0)):
        stream(frame)
        if index == WARM_UP:
            before, reported = resident(), stream.memory()["total"]
    assert resident() <= 1.01 * before
    assert stream.memory()["total"] == reported


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads the process's memory from /proc")
def test_a_leak_would_be_seen() -> None:
    """32 KiB lost per frame are more than 1 % after 500 frames (after 10 000, 2 KiB are)."""
    before = resident()
    lost = [torch.ones(8192) for _ in range(500)]
    assert resident() > 1.01 * before
    assert len(lost) == 500


@pytest.mark.parametrize("frames", FRAMES)
def test_no_drift_at_threshold_0(frames: int) -> None:
    """Bit-equal to its own dense run, at the beginning as at the end; plain PyTorch within the tolerance law."""
    model = net()
    double = net().double()
    stream, fresh = sl.stream(model, backend="native"), sl.stream(model, backend="native")
    every = frames // 25
    for index, frame in enumerate(endless_video(frames)):
        got = stream(frame)
        if index % every and index != frames - 1:
            continue
        fresh.reset()
        wanted = fresh(frame)
        for ours, theirs in zip(oracle.tensors(got), oracle.tensors(wanted), strict=True):
            oracle.assert_bits_equal(ours + 0, theirs + 0, f"frame {index}")  # + 0: either zero may be held, they are equal
        with torch.no_grad():
            oracle.assert_law(got, dense(model, frame), double(frame.double()), f"frame {index}")


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("filters", [{}, FILTERS], ids=["plain", "filters"])
def test_error_stays_flat_with_a_threshold(frames: int, filters: dict[str, Any]) -> None:
    """The error against dense over the last 20 frames is at most twice that over the 20 frames around frame 10, and is not nothing."""
    model = net()
    stream = sl.stream(model, 0.1, backend="native", **filters)
    early: list[Tensor] = []
    late: list[Tensor] = []
    for index, frame in enumerate(endless_video(frames, sensor=0.05 if filters else 0.0)):
        got = stream(frame)
        if 1 <= index <= 20 or index >= frames - 20:
            pairs = zip(oracle.tensors(got), oracle.tensors(dense(model, frame)), strict=True)
            off = torch.stack([(a - b).square().mean().sqrt() / b.std() for a, b in pairs])
            (early if index <= 20 else late).append(off)
    first, last = torch.stack(early).mean(0), torch.stack(late).mean(0)
    assert (last <= 2 * first).all(), f"error per output {first.tolist()} at first, {last.tolist()} in the end"
    assert (first > 1e-4).all()  # the threshold does something, or this test would say nothing


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_eight_streams_in_eight_threads(threshold: float) -> None:
    """Streams that run at once return the bits that they return one after the other; half of them are clones."""
    before = kernels.get_num_threads()
    models = [net(), net(opaque=True)]
    videos = [list(endless_video(12, seed)) for seed in range(8)]

    def streams() -> list[sl.Stream]:
        parents = [sl.stream(model, threshold, backend="native", example=videos[0][0]) for model in models]
        return [stream for parent in parents for stream in (parent, *(parent.clone() for _ in range(3)))]

    alone: list[list[Any]] = [[stream(frame) for frame in frames] for stream, frames in zip(streams(), videos, strict=True)]
    together: list[list[Any]] = [[] for _ in videos]
    barrier = threading.Barrier(8)

    def run(stream: sl.Stream, frames: list[Tensor], into: list[Any]) -> None:
        barrier.wait()
        into.extend(stream(frame) for frame in frames)

    try:
        sl.set_num_threads(2)
        workers = [threading.Thread(target=run, args=given) for given in zip(streams(), videos, together, strict=True)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sl.set_num_threads(before)
    for index, (ours, theirs) in enumerate(zip(together, alone, strict=True)):
        assert len(ours) == 12
        oracle.assert_bits_equal(ours, theirs, f"stream {index}")
