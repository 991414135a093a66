"""Several streams in several Python threads over one pool; this file also runs under the sanitizers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
from networks import RandomNetwork, video
from random_cases import outputs
from sightline import kernels
from sightline.graph.capture import capture
from sightline.graph.lower import Lowered, lower
from sightline.graph.native import NativeExecutor
from sightline.graph.plan import make_plan

pytestmark = pytest.mark.skipif(not kernels.native_status()["available"], reason=str(kernels.native_status()["reason"]))
STREAMS = 8


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = kernels.get_num_threads()
    yield
    kernels.set_num_threads(before)


def lowered(model: nn.Module, shape: tuple[int, ...]) -> Lowered:
    return lower(make_plan(capture(model, torch.zeros(shape))), kernels.native(), kernels.isa())  # type: ignore[arg-type]


class Net(nn.Module):
    """Wide enough that every kind of step is shared out among threads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 3, 2, 1)
        self.depthwise = nn.Conv2d(48, 48, 5, padding=2, groups=48)
        self.gate = nn.Conv2d(48, 48, 1)
        self.wide = nn.Conv2d(48, 130, 3, padding=1)
        self.head = nn.Linear(130, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        x = x + nn.functional.silu(self.depthwise(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = nn.functional.max_pool2d(torch.relu(self.wide(x)), 2)
        return nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear"), self.head(x.mean((2, 3)))


def at_once(jobs: list[Callable[[], None]]) -> None:
    """Runs every job in a thread of its own, all from the same moment on; re-raises what one of them raised."""
    barrier, raised = threading.Barrier(len(jobs)), []

    def work(job: Callable[[], None]) -> None:
        barrier.wait()
        try:
            job()
        except BaseException as error:
            raised.append(error)

    workers = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if raised:
        raise raised[0]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_streams_of_one_program_run_at_once(threads: int, threshold: float) -> None:
    """Eight streams share packed weights and the pool; each gets the bits that it gets alone."""
    shape = (1, 3, 40, 44)
    program = lowered(Net().eval(), shape)
    videos = [video(shape, 5, seed) for seed in range(STREAMS)]

    def run(frames: list[Tensor], into: list[list[Tensor]]) -> None:
        executor = NativeExecutor(program, "rms", None)
        for frame in frames:
            executor.run(frame)
            into.append(outputs(executor))
            if threshold and len(into) == 1:
                for step in executor.plan.steps:
                    executor.set_threshold(step, threshold * executor.std(step))

    kernels.set_num_threads(1)
    alone: list[list[list[Tensor]]] = [[] for _ in videos]
    for frames, into in zip(videos, alone, strict=True):
        run(frames, into)
    kernels.set_num_threads(threads)
    together: list[list[list[Tensor]]] = [[] for _ in videos]
    at_once([lambda frames=frames, into=into: run(frames, into) for frames, into in zip(videos, together, strict=True)])  # type: ignore[misc]
    for index, (got, wanted) in enumerate(zip(together, alone, strict=True)):
        for frame, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
            oracle.assert_bits_equal(ours, theirs, f"stream {index}, frame {frame}")


def test_streams_of_different_programs_run_at_once() -> None:
    """Random networks, some with torch steps between native ones."""
    networks = [RandomNetwork(seed) for seed in range(STREAMS)]
    programs = [lowered(network, network.shape) for network in networks]
    videos = [video(network.shape, 4, seed) for seed, network in enumerate(networks)]

    def run(index: int, into: list[list[Tensor]]) -> None:
        executor = NativeExecutor(programs[index], "rms", None)
        for frame in videos[index]:
            executor.run(frame)
            into.append(outputs(executor))

    def jobs(found: list[list[list[Tensor]]]) -> list[Callable[[], None]]:
        return [lambda index=index: run(index, found[index]) for index in range(STREAMS)]  # type: ignore[misc]

    alone: list[list[list[Tensor]]] = [[] for _ in programs]
    together: list[list[list[Tensor]]] = [[] for _ in programs]
    kernels.set_num_threads(1)
    for job in jobs(alone):
        job()
    kernels.set_num_threads(2)
    at_once(jobs(together))
    for index in range(STREAMS):
        for ours, theirs in zip(together[index], alone[index], strict=True):
            oracle.assert_bits_equal(ours, theirs, f"network {index}")


def test_number_of_threads_can_change_while_streams_run() -> None:
    """`set_num_threads` waits for the loop that is running; the bits stay."""
    shape = (1, 3, 40, 44)
    program = lowered(Net().eval(), shape)
    frames = video(shape, 12, 5)
    wanted: list[list[Tensor]] = []
    executor = NativeExecutor(program, "rms", None)
    for frame in frames:
        executor.run(frame)
        wanted.append(outputs(executor))

    def run() -> None:
        executor = NativeExecutor(program, "rms", None)
        for frame, values in zip(frames, wanted, strict=True):
            executor.run(frame)
            oracle.assert_bits_equal(outputs(executor), values)

    def change() -> None:
        for number in random.Random(1).choices([1, 2, 3, 4], k=30):
            kernels.set_num_threads(number)
            time.sleep(0.0005)

    at_once([run, run, run, change])


def ticks_during(call: Callable[[], Any]) -> int:
    """How often a Python thread moved in the middle of a call: not in its first and last tenth, which the caller's own Python may share."""
    times: list[float] = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            times.append(time.perf_counter())
            time.sleep(0.0002)

    counter = threading.Thread(target=count)
    counter.start()
    while not times:
        time.sleep(0.001)
    start = time.perf_counter()
    call()
    end = time.perf_counter()
    stop.set()
    counter.join()
    margin = 0.1 * (end - start)
    return sum(start + margin < moment < end - margin for moment in times)


def test_other_python_threads_go_on_during_a_frame() -> None:
    """The interpreter's lock is free while a frame is computed."""
    model = nn.Sequential(nn.Conv2d(3, 96, 3, padding=1), nn.Conv2d(96, 96, 3, padding=1)).eval()
    executor = NativeExecutor(lowered(model, (1, 3, 128, 128)), "rms", None)
    frame = torch.rand(1, 3, 128, 128)

    def whole_frame() -> None:
        executor.reset()
        executor.run(frame)

    # a busy machine may leave the other thread no core for one frame, but not for ten; a held lock leaves it none in any
    assert any(ticks_during(whole_frame) >= 3 for _ in range(10))


def test_a_held_lock_would_be_seen() -> None:
    """Sorting a list holds the interpreter's lock from beginning to end."""
    numbers = [random.random() for _ in range(300_000)]
    assert ticks_during(lambda: sorted(numbers)) < 3
