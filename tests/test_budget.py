"""`sl.stream(..., budget=...)`: the target is held, changes of the scene are answered, checks stay within their bound."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import oracle
import sightline as sl
from sightline.budget import LARGEST, SMALLEST, Budget, Control
from sightline.difference import squares
from sightline.errors import CaptureError, FrameError
from streams import Backend, both_executors, executor_of

GREY = 1 / 255


def network(seed: int = 0, width: int = 12) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate([(3, width), (width, width), (width, width)]):
            layers += [nn.Conv2d(before, after, 3, stride=2 if index == 1 else 1, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(width, 4, 1)).eval()


def frames(count: int, sigma: float = 1.0, seed: int = 0, side: int = 32) -> Iterator[Tensor]:
    """8-bit frames 0..1: a still picture with sensor noise of `sigma` grey levels and a square that moves."""
    generator = torch.Generator().manual_seed(seed)
    still = nn.functional.interpolate(torch.rand(1, 3, 6, 6, generator=generator), size=side, mode="bilinear") * 200
    for index in range(count):
        frame = still + torch.randn(still.shape, generator=generator) * sigma
        place = index % (side - 10)
        frame[:, :, 10:20, place : place + 10] = 240
        yield frame.round().clamp(0, 255) / 255


class Truth:
    """Errors in noise units, measured outside the stream on some frames."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.generator = torch.Generator().manual_seed(5)
        self.wrong: list[float] = []
        self.noise: list[float] = []

    def add(self, frame: Tensor, output: Tensor) -> None:
        with torch.no_grad():
            dense = self.model(frame)
            noisy = self.model(frame + torch.randn(frame.shape, generator=self.generator) * GREY)
        self.wrong.append(squares(dense, output)[0])
        self.noise.append(squares(dense, noisy)[0])

    @property
    def error(self) -> float:
        return math.sqrt(sum(self.wrong) / sum(self.noise))


def stats_of(stream: sl.Stream) -> sl.BudgetStats:
    assert stream.stats.budget is not None
    return stream.stats.budget


# -- the controller ----------------------------------------------------------------------------------------------------


def drive(control: Control, count: int, error: Callable[[float], float], share: float = 0.3) -> list[float]:
    """Frames whose errors follow from the factor; what was measured."""
    measured = []
    for _ in range(count):
        if control.due:
            measured.append(error(control.factor))
            control.measured(measured[-1])
        control.frame(0.01, share)
    return measured


@given(power=st.floats(0.4, 1.2), level=st.floats(0.3, 20), scatter=st.floats(0, 0.2), seed=st.integers(0, 999))
def test_the_error_is_held_whatever_the_network(power: float, level: float, scatter: float, seed: int) -> None:
    """Error of level * factor ** power, with a scatter of up to 20 %: held in the mean, and not far below."""
    rng = random.Random(seed)
    control = Control(Budget(error=2.0, every=5))
    measured = drive(control, 60 * 5, lambda factor: level * factor**power * math.exp(rng.gauss(0, scatter)))
    late = measured[30:]
    assert len(late) >= 29
    mean = math.sqrt(sum(error**2 for error in late) / len(late))
    assert 0.75 * 2.0 < mean <= 1.05 * 2.0
    assert SMALLEST < control.factor < LARGEST


def test_it_falls_at_once_and_rises_in_steps() -> None:
    control = Control(Budget(error=1.0, every=4))
    control.measured(4.0)
    fallen = control.factor
    assert fallen < 0.2
    drive(control, 3, lambda factor: 0.1)
    factors = [fallen]
    for _ in range(4):
        drive(control, 4, lambda factor: 0.1)
        factors.append(control.factor)
    assert all(1 < later / before <= 1.36 for before, later in itertools.pairwise(factors))


def test_it_does_not_rise_while_nothing_is_computed() -> None:
    control = Control(Budget(error=1.0, every=4))
    assert len(drive(control, 400, lambda factor: 0.0, share=0.001)) == 99
    assert control.factor == 1.0
    drive(control, 8, lambda factor: 0.0, share=0.01)
    assert control.factor > 1.0


def test_an_error_that_cannot_be_held_is_said() -> None:
    control = Control(Budget(error=1e-9, every=4))
    drive(control, 80, lambda factor: 1e-3)
    assert control.factor == SMALLEST and "cannot be held" in control.stats.remark
    drive(control, 8, lambda factor: 0.0)
    assert control.stats.remark == "" and control.factor > SMALLEST


@pytest.mark.parametrize("every", [2, 3, 16, 100])
@pytest.mark.parametrize("metric", ["noise", "relative"])
def test_the_cost_stays_within_its_bound(every: int, metric: str) -> None:
    control = Control(Budget(error=1.0, metric=metric, every=every))
    runs = 0
    for count in range(1, 1000):
        if control.due:
            runs += 1 + control.unit_due
            control.stats.noise_unit = 0.1
            control.measured(1.0)
        control.frame(0.01, 0.3)
        assert runs <= 1.1 * count / every + math.log2(every) + 1
    assert control.stats.checks >= 999 // every - 1


# -- streams -----------------------------------------------------------------------------------------------------------


@both_executors
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_stream_holds_the_error(backend: Backend, threshold: float) -> None:
    """Too high thresholds and none at all: after the first checks the error is near the target, also where nobody checks."""
    model = network()
    stream = sl.stream(model, threshold, budget=sl.Budget(error=1.0, every=20), backend=backend.name)
    truth, shares = Truth(model), []
    for index, frame in enumerate(frames(200)):
        output = stream(frame)
        if index >= 40 and index % 10 == 5:
            truth.add(frame, output)
            shares.append(stream.stats.last.macs_share)
    stats = stats_of(stream)
    assert truth.error <= 1.2
    assert truth.error > 0.4 and max(shares) < 0.98  # not by doing everything
    assert stats.checks >= 10 and stats.error is not None and stats.noise_unit is not None and not stats.remark
    assert stats.dense_runs <= 1.1 * 200 / 20 + math.log2(20) + 1


@both_executors
def test_a_checked_frame_is_the_dense_one_and_costs_what_it_says(backend: Backend) -> None:
    model = network()
    stream = sl.stream(model, 0.2, budget=sl.Budget(error=1.0, every=10), backend=backend.name)
    dense = sl.stream(model, backend=backend.name)
    checks, runs = 0, 0
    for frame in frames(30):
        output = stream(frame)
        stats, last = stats_of(stream), stream.stats.last
        dense.reset()
        if stats.checks > checks:
            oracle.assert_bits_equal(output, dense(frame))
            assert last.macs_share >= stats.dense_runs - runs  # that many whole networks, and the frame itself
            assert bool(stream.last_sites().all())
        elif stats.checks:
            assert last.macs_share <= 1
            assert not torch.equal(output, dense(frame))
        checks, runs = stats.checks, stats.dense_runs
    assert checks == 4


@both_executors
def test_the_frame_after_a_check_is_not_computed_whole(backend: Backend) -> None:
    """Lower thresholds are usually followed by a whole frame; a check is that frame itself."""
    still = next(iter(frames(1)))
    stream = sl.stream(network(), 5.0, budget=sl.Budget(error=1e-3, every=4), backend=backend.name)
    factors = set()
    for index in range(20):
        moved = still.clone()
        moved[..., :4, :4] = 0.1 * (index % 7)
        stream(moved)
        factors.add(stats_of(stream).factor)
        assert index % 4 == 0 or stream.stats.last.macs_share < 0.3
    assert len(factors) > 3


def test_a_relative_error_is_held_without_noise_runs() -> None:
    model = network()
    stream = sl.stream(model, 0.1, budget=sl.Budget(error=0.02, metric="relative", every=10))
    wrong = there = 0.0
    for index, frame in enumerate(frames(120)):
        output = stream(frame)
        if index > 30 and index % 10 == 7:
            with torch.no_grad():
                pair = squares(model(frame), output)
            wrong, there = wrong + pair[0], there + pair[1]
    stats = stats_of(stream)
    assert 0.4 * 0.02 < math.sqrt(wrong / there) <= 1.2 * 0.02
    assert stats.noise_unit is None and stats.dense_runs == stats.checks


def test_more_noise_is_answered_at_the_next_check() -> None:
    """Thresholds that fit a quiet camera are far too high for a noisy one; and back."""
    model = network()
    stream = sl.stream(model, 0.02, budget=sl.Budget(error=1.0, every=10))
    quiet, loud, again = Truth(model), Truth(model), Truth(model)
    for index, frame in enumerate(frames(150, sigma=0.5)):
        output = stream(frame)
        if index % 10 == 3 and index > 60:
            quiet.add(frame, output)
    calm = stats_of(stream).factor
    fixed = sl.stream(model, {name: value * calm for name, value in stream.thresholds.items()})
    alone = Truth(model)
    for index, frame in enumerate(frames(150, sigma=3.0)):
        output, left_alone = stream(frame), fixed(frame)
        if index % 10 == 3 and index > 30:
            loud.add(frame, output)
            alone.add(frame, left_alone)
    assert stats_of(stream).factor < calm
    low = stats_of(stream).factor
    for index, frame in enumerate(frames(200, sigma=0.5)):
        output = stream(frame)
        if index % 10 == 3:
            again.add(frame, output)
    assert alone.error > 1.4, "the test must need the answer"
    assert max(quiet.error, loud.error, again.error) <= 1.2
    assert stats_of(stream).factor > low


def test_another_scene_is_answered() -> None:
    """Morning comes: changes that were small against the thresholds of the night are not any more."""
    model = network()
    stream = sl.stream(model, 0.1, budget=sl.Budget(error=0.02, metric="relative", every=10), scene_cuts=False)
    for frame in frames(80):
        stream(frame * 0.15)
    night = stats_of(stream).factor
    fixed = sl.stream(model, {name: value * night for name, value in stream.thresholds.items()}, example=frame, scene_cuts=False)
    fixed(next(iter(frames(1))) * 0.15)
    errors: list[float] = []
    alone: list[float] = []
    for index, frame in enumerate(frames(120, seed=1)):
        output, left_alone = stream(frame), fixed(frame)
        if index > 40 and index % 10 == 7:
            with torch.no_grad():
                dense = model(frame)
            for value, found in ((output, errors), (left_alone, alone)):
                wrong, there = squares(dense, value)
                found.append(wrong / there)
    assert math.sqrt(sum(alone) / len(alone)) > 1.4 * 0.02, "the test must need the answer"
    assert stats_of(stream).factor < night
    assert math.sqrt(sum(errors) / len(errors)) <= 1.2 * 0.02


def test_thresholds_keep_their_proportions_and_zeros() -> None:
    model = network()
    values = {"input": 0.05, "0": 0.4, "2": 0.0, "4": 0.1}
    stream = sl.stream(model, values, budget=sl.Budget(error=0.5, every=4))
    for frame in frames(42):
        stream(frame)
    factor = stats_of(stream).factor
    assert factor != 1 and dict(stream.thresholds) == values
    executor = executor_of(stream)
    told: dict[str, float] = {}
    executor.set_threshold = lambda step, value: told.__setitem__(step.name, value)  # type: ignore[method-assign]
    stream.thresholds["4"] = 0.2
    stream(frame)
    for step in executor.plan.steps:
        value = {**values, "4": 0.2}.get(step.name, 0.0)
        assert told[step.name] == pytest.approx(value * factor * stream._units.std.get(step, 0.0))


def test_none_given_means_a_mild_family_in_either_unit() -> None:
    model, clip = network(), list(frames(3))
    relative = sl.stream(model, budget=1.0)
    absolute = sl.stream(model, threshold_unit="absolute", budget=1.0)
    for frame in clip:
        relative(frame)
        absolute(frame)
    executor = executor_of(relative)
    assert relative.thresholds["input"] > 0 and relative.thresholds["0"] > relative.thresholds["4"] > 0
    for step in executor.plan.steps:
        if step.truncates:
            wanted = relative.thresholds[step.name] * relative._units.std[step]
            assert absolute.thresholds[step.name] == pytest.approx(wanted, rel=0.05)
    assert absolute.thresholds["input"] == pytest.approx(0.4 * GREY, rel=1e-3)


def test_an_absolute_input_threshold_is_scaled_too() -> None:
    model = network()
    stream = sl.stream(model, 0.1, input_threshold="0.02abs", budget=sl.Budget(error=0.2, every=4))
    for frame in frames(30):
        stream(frame)
    executor = executor_of(stream)
    told: dict[str, float] = {}
    executor.set_threshold = lambda step, value: told.__setitem__(step.name, value)  # type: ignore[method-assign]
    stream._units.again()
    stream(frame)
    assert stats_of(stream).factor < 0.9
    assert told["input"] == pytest.approx(0.02 * stats_of(stream).factor)


@both_executors
def test_with_an_area_only_the_inside_counts(backend: Backend) -> None:
    model = network()
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[4:24, 4:24] = True
    stream = sl.stream(model, 0.1, aoi=sl.AreaOfInterest(mask), budget=sl.Budget(error=1.0, every=5), backend=backend.name)
    inside = sl.AreaOfInterest(mask).sites(16, 16).mask[0]
    checks = 0
    for frame in frames(60):
        outside = torch.rand(frame.shape)
        output = stream(torch.where(mask, frame, outside))
        stats = stats_of(stream)
        if stats.checks > checks:
            checks = stats.checks
            with torch.no_grad():
                dense = model(torch.where(mask, frame, outside))
            assert (output - dense)[:, :, inside].abs().max() < 1e-5
            assert bool((output[:, :, ~inside] == 0).all())
            assert stats.error is not None and stats.error < 6
    assert checks > 10


# -- times -------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that only the work moves: each run takes `floor` and `dense` times the share that it computes."""

    def __init__(self, stream: sl.Stream, floor: float, dense: float) -> None:
        self.now = 0.0
        self.taken: list[float] = []
        inner = stream._run

        def run(executor: Any, frame: Tensor, **settings: bool) -> None:
            inner(executor, frame, **settings)
            macs = [
                step.macs * count / executor.positions(step) for step, count in zip(executor.counted, executor.site_counts(), strict=True)
            ]
            self.taken.append(floor + dense * sum(macs) / sum(step.macs for step in executor.counted))
            self.now += self.taken[-1]

        stream._run = run  # type: ignore[method-assign]
        stream._clock = lambda: self.now


@both_executors
@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_a_time_is_held_from_above_and_from_below(backend: Backend, threshold: float) -> None:
    stream = sl.stream(network(), threshold, budget=sl.Budget(seconds=0.012, every=10), backend=backend.name)
    clock = Clock(stream, 0.002, 0.020)
    for frame in frames(400):
        stream(frame)
    stats = stats_of(stream)
    late = clock.taken[200:]
    # Frames behind a reduction are computed whole; at most every tenth frame is one.
    whole = sum(taken > 0.0215 for taken in late)
    assert whole <= len(late) / 10
    usual = [taken for taken in late if taken <= 0.0215]
    assert 0.6 * 0.012 < sum(usual) / len(usual) <= 1.1 * 0.012
    assert stats.checks == stats.dense_runs == 0 and stats.error is None and not stats.remark
    assert len(clock.taken) == 400, "no run beside the frames"


def test_a_time_below_the_floor_is_said() -> None:
    stream = sl.stream(network(), budget=sl.Budget(seconds=0.001, every=10))
    Clock(stream, 0.002, 0.020)
    for frame in frames(200):
        stream(frame)
    remark = stats_of(stream).remark
    assert "cannot be reached" in remark and "1 ms" in remark
    assert remark in str(stream.stats.to_dict()["budget"]["remark"])


# -- starts, clones, errors ----------------------------------------------------------------------------------------------


def test_reset_and_clone_keep_the_factor_and_nothing_else() -> None:
    stream = sl.stream(network(), 0.3, budget=sl.Budget(error=0.5, every=4))
    clip = list(frames(20))
    for frame in clip:
        stream(frame)
    factor = stats_of(stream).factor
    assert factor < 0.9
    twin = stream.clone()
    assert stats_of(twin).factor == factor and stats_of(twin).checks == 0
    stream.reset()
    assert stats_of(stream).factor == factor and stats_of(stream).checks == stats_of(stream).dense_runs == 0
    for frame in clip:
        oracle.assert_bits_equal(stream(frame), twin(frame))
    assert stats_of(stream).to_dict() == stats_of(twin).to_dict()
    for frame in clip:
        twin(frame)
    assert stats_of(twin).checks > stats_of(stream).checks
    stream.reset()
    larger = [nn.functional.interpolate(frame, size=40) for frame in clip]
    for frame in larger:
        stream(frame)
    assert stats_of(stream).checks > 1


@both_executors
def test_a_bad_frame_and_a_stop_in_a_check_leave_a_usable_stream(backend: Backend) -> None:
    model = network()
    stream = sl.stream(model, 0.1, budget=sl.Budget(error=1.0, every=4), backend=backend.name)
    clip = list(frames(30))
    for frame in clip[:4]:
        stream(frame)
    with pytest.raises(FrameError):
        stream(clip[4] * math.nan)
    inner, calls = stream._run, 0

    def stopping(executor: Any, frame: Tensor, **settings: bool) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            executor.reset()
            raise KeyboardInterrupt
        inner(executor, frame, **settings)

    stream._run = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stream(clip[4])
    for frame in clip[5:]:
        output = stream(frame)
    assert stats_of(stream).checks > 3
    with torch.no_grad():
        dense = model(frame)
    assert (output - dense).norm() / dense.norm() < 0.5


def test_a_frame_that_is_computed_whole_says_nothing() -> None:
    stream = sl.stream(network(), 0.1, budget=sl.Budget(error=1.0, every=4), refresh=4)
    for frame in frames(13):  # refreshes at 4, 8 and 12, where checks would come
        stream(frame)
    assert (stats_of(stream).checks, stats_of(stream).factor, stream.stats.total.refreshes) == (0, 1.0, 3)

    timed = sl.stream(network(), 0.1, budget=sl.Budget(seconds=1e-9, every=2), refresh=1)  # no frame but whole ones
    for frame in frames(20):
        timed(frame)
    assert stats_of(timed).seconds is None and stats_of(timed).factor == 1.0


def test_after_a_cut_checks_come_soon() -> None:
    stream = sl.stream(network(), {"4": 0.1}, budget=sl.Budget(error=1.0, every=64))
    still = list(frames(2))
    for _ in range(40):  # checks at 4, 8, 16, 32
        stream(still[0])
    before = stats_of(stream).checks
    stream(torch.rand(still[0].shape, generator=torch.Generator().manual_seed(7)))
    assert stream.stats.last.restarted and stats_of(stream).checks == before
    for frame in list(frames(6))[1:]:
        stream(frame)
    assert stats_of(stream).checks > before


def test_a_network_that_does_not_react_is_said() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(nn.functional.conv2d(x, torch.full((2, 3, 3, 3), -1.0)))

    stream = sl.stream(Constant().eval(), 0.1, budget=sl.Budget(error=1.0, every=4))
    for frame in frames(12):
        stream(frame)
    assert "does not react" in stats_of(stream).remark and stats_of(stream).checks == 0


def test_models_in_parts_are_refused() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return y[:, :2] if bool(y.mean() > 0) else y

    stream = sl.stream(Branches(), budget=1.0)
    with pytest.raises(CaptureError, match="budget"):
        stream(next(iter(frames(1))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sl.Budget, "exactly one"),
        (lambda: sl.Budget(error=1.0, seconds=0.1), "exactly one"),
        (lambda: sl.Budget(error=0.0), "error must be a finite number > 0"),
        (lambda: sl.Budget(error=math.nan), "error must be"),
        (lambda: sl.Budget(seconds=-1), "seconds must be"),
        (lambda: sl.Budget(seconds=math.inf), "seconds must be"),
        (lambda: sl.Budget(error=True), "error must be"),
        (lambda: sl.Budget(error=1, metric="top1"), "metric must be one of 'noise', 'relative'"),
        (lambda: sl.Budget(error=1, every=1), "every must be"),
        (lambda: sl.Budget(error=1, every=2.5), "every must be"),  # type: ignore[arg-type]
        (lambda: sl.Budget(error=1, seed=-1), "seed must be"),
        (lambda: sl.Budget(error=1, pixel_scale=0.0), "pixel_scale"),
        (lambda: sl.Budget(error=1, pixel_scale=[1.0, math.nan]), "pixel_scale"),
        (lambda: sl.stream(network(), budget=-1), "error must be"),
        (lambda: sl.stream(network(), budget="1"), "a number > 0"),  # type: ignore[arg-type]
        (lambda: sl.stream(network(), budget=False), "a number > 0"),
    ],
)
def test_wrong_budgets(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -- real clips ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "clip", "size", "mean", "std", "bgr", "count"),
    [
        ("ultralight_face_rfb640.onnx", "asl_book.mkv", (640, 480), 127.0, 128.0, False, 109),
        ("fastestdet_coco.onnx", "vtest.avi", (352, 352), 0.0, 255.0, True, 200),
        ("centerface.onnx", "sports2d_demo.mp4", (448, 256), 0.0, 1.0, False, 120),
    ],
)
def test_real_clips_keep_the_budget(
    shared_data: Path, model: str, clip: str, size: tuple[int, int], mean: float, std: float, bgr: bool, count: int
) -> None:
    """Every tenth frame against dense and in noise units, both computed here: within 1.2 of the target, with less work than dense."""
    from sightline.media import open_source
    from sightline.models import load_model

    network = load_model(str(shared_data / "models" / model)).model
    stream, dense = sl.stream(network, budget=1.0), sl.stream(network)
    generator = torch.Generator().manual_seed(1)
    wrong = noise = 0.0
    with open_source(str(shared_data / "videos" / clip), frames=count) as source:
        for index, picture in enumerate(source):
            pixels = torch.from_numpy(picture.rgb(size)).permute(2, 0, 1)[None].float()
            frame = ((pixels.flip(1) if bgr else pixels) - mean) / std
            output = stream(frame)
            if index % 10 == 5:
                dense.reset()
                want = dense(frame)
                dense.reset()
                wrong += squares(want, output)[0]
                noise += squares(want, dense(frame + torch.randn(frame.shape, generator=generator) / std))[0]
    assert 0.5 < math.sqrt(wrong / noise) <= 1.2
    total, stats = stream.stats.total, stats_of(stream)
    assert (total.macs_done - (1 + stats.dense_runs) * total.macs_dense / count) / total.macs_dense < 0.95
