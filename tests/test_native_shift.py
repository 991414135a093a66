"""Shifted maps: after any shifts, a frame gives what it gives without a past, on random networks and every executor.

What belongs here: executors. What does not: how cameras move (test_motion.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import oracle
from networks import RandomNetwork, video
from random_cases import _unsigned_zeros, blocks_on_small_maps, outputs, threads
from sightline import kernels
from sightline.graph.capture import capture
from sightline.graph.executor import Executor
from sightline.graph.lower import lower
from sightline.graph.native import NativeExecutor
from sightline.graph.plan import Plan, make_plan
from sightline.graph.shift import Shifts
from sightline.graph.torch_executor import TorchExecutor

CASES, PER_TEST = 80, 20


def _plan(seed: int) -> tuple[Plan, tuple[int, int, int, int]]:
    network = RandomNetwork(seed)
    with blocks_on_small_maps(seed):
        return make_plan(capture(network, torch.zeros(network.shape))), network.shape


def _native(plan: Plan, dtype: torch.dtype = torch.float32) -> Callable[[], Executor]:
    module = kernels.native()
    if module is None:
        pytest.skip(str(kernels.native_status()["reason"]))
    lowered = lower(plan, module, kernels.isa(), dtype)
    return lambda: NativeExecutor(lowered, "rms", None)


def _by(rng: random.Random, plan: Plan, shape: tuple[int, int, int, int]) -> tuple[int, int]:
    """A multiple of the strides, often in one direction only, at times further than the frame is large."""
    sy, sx = Shifts(plan).stride
    most = [max(1, size // stride) for size, stride in zip(shape[2:], (sy, sx), strict=True)]
    return sy * rng.choice([0, 0, 1, -1, rng.randint(-most[0], most[0])]), sx * rng.choice([0, 1, -1, rng.randint(-most[1], most[1])])


def _panned(frame: Tensor, dy: int, dx: int) -> Tensor:
    """The scene moves; what comes into view wraps around."""
    return frame.roll((-dy, -dx), (2, 3))


@pytest.mark.parametrize("first", range(0, CASES, PER_TEST))
def test_a_frame_after_shifts_is_a_frame_without_a_past(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        plan, shape = _plan(seed)
        rng = random.Random(seed)
        dtype = torch.bfloat16 if seed % 4 == 3 else torch.float32
        make = _native(plan, dtype)
        executor = make()
        with threads(1 + seed % 3):
            for index, still in enumerate(video(shape, 4, seed)):
                frame = still
                shifts = [_by(rng, plan, shape) for _ in range(rng.choice([0, 1, 1, 2]))]
                for dy, dx in shifts:
                    executor.shift(dy, dx)
                    frame = _panned(frame, dy, dx)
                where = f"seed {seed}, frame {index}, shifts {shifts}"
                executor.run(frame)
                dense = make()
                dense.run(frame)
                ours, theirs = (list(map(_unsigned_zeros, outputs(e))) for e in (executor, dense))
                oracle.assert_bits_equal(ours, theirs, where)
            executor.run(frame.clone())
            assert not any(executor.site_counts()), f"seed {seed}: a static frame is not free"


@pytest.mark.parametrize("first", range(0, CASES // 2, PER_TEST))
@pytest.mark.parametrize("name", ["torch", "native"])
def test_thresholds_hold_after_shifts(first: int, name: str) -> None:
    for seed in range(first, first + PER_TEST):
        plan, shape = _plan(seed)
        rng = random.Random(seed)
        executor = TorchExecutor(plan, "rms", None) if name == "torch" else _native(plan)()
        share = rng.choice([0.0, 0.1, 0.4])
        limits = {}
        for index, frame in enumerate(video(shape, 3, seed)):
            dy, dx = _by(rng, plan, shape)
            executor.shift(dy, dx)
            executor.run(_panned(frame, dy, dx))
            if index == 0:
                limits = {step: share * executor.std(step) for step in plan.steps}
                for step, limit in limits.items():
                    executor.set_threshold(step, limit)
            else:
                oracle.assert_within(executor, limits, "rms", f"seed {seed}, {name}, {share} deviations, frame {index}, shift {dy, dx}")


@pytest.mark.parametrize("name", ["torch", "native"])
def test_a_shift_costs_the_new_strip_and_the_border(name: str) -> None:
    """The scene is larger than the frame and only moves: what is computed is what came into view, and where padding moved."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))
    scene = torch.randn(1, 2, 32, 80)
    plan = make_plan(capture(net, scene[..., :64]))
    executor = TorchExecutor(plan, "rms", None) if name == "torch" else _native(plan)()
    assert executor.shifts.stride == (4, 4)
    executor.run(scene[..., :64])
    executor.shift(0, 8)
    executor.run(scene[..., 8:72])
    by_name = dict(zip((step.name for step in executor.counted), executor.site_counts(), strict=True))
    # of 16x32 and 8x16 cells: 4 columns that came in and the first one, which read padding before; then 2, one that they reach, and 1
    assert list(by_name.values()) == [32 * 8, 16 * (4 + 1), 8 * (2 + 1)]


def test_shifts_are_whole_cells() -> None:
    plan = make_plan(capture(nn.Conv2d(1, 1, 3, 2, 1), torch.zeros(1, 1, 8, 8)))
    executor = TorchExecutor(plan, "rms", None)
    executor.run(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="multiple of"):
        executor.shift(1, 0)


@pytest.mark.parametrize("name", ["torch", "native"])
def test_no_shift_under_an_area(name: str) -> None:
    plan = make_plan(capture(nn.Conv2d(1, 1, 3, 1, 1), torch.zeros(1, 1, 8, 8)))
    executor = TorchExecutor(plan, "rms", None) if name == "torch" else _native(plan)()
    executor.run(torch.zeros(1, 1, 8, 8))
    executor.set_needed(plan.steps[1], torch.ones(1, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="area"):
        executor.shift(1, 0)


def test_a_position_that_matters_is_seen() -> None:
    """A constant of the map's size, interpolation with uneven factors, a flattened head: computed again wherever they differ."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, padding=1)
            self.where = nn.Parameter(torch.randn(1, 3, 12, 12))
            self.head = nn.Linear(3 * 12 * 12, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.conv(x)
            up = nn.functional.interpolate(y, size=(17, 36), mode="bilinear")
            return y + self.where, up, self.head(y.flatten(1))

    frame = torch.randn(1, 2, 12, 12)
    plan = make_plan(capture(Positions().eval(), frame))
    make = _native(plan)
    for dy, dx in ((2, 0), (0, -3), (-1, 1), (12, 0)):
        executor, dense = make(), make()
        executor.run(frame)
        executor.shift(dy, dx)
        executor.run(_panned(frame, dy, dx))
        dense.run(_panned(frame, dy, dx))
        oracle.assert_bits_equal(outputs(executor), outputs(dense), f"shift {dy, dx}")
