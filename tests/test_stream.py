"""What a stream promises: the laws of docs/design.md, one by one, on every backend and element type; then the rest of its contract."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracle
import sightline as sl
from cases import Apply
from networks import RandomNetwork, video
from sightline import kernels
from sightline.errors import BackendError, CaptureError, DeviceError, DTypeError, FrameError, MediaError, ShapeError, SightlineError
from sightline.graph.executor import Executor
from sightline.stream import Stream
from sightline.thresholds import ThresholdError, Thresholds

SHAPE = (2, 3, 26, 22)


class Net(nn.Module):
    """A bit of everything that real networks have; returns a dictionary."""

    def __init__(self, opaque: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, 12, 1)
        self.gate = nn.Conv2d(12, 12, 1)
        self.down = nn.Conv2d(12, 20, 3, 2, 1)
        self.side = nn.Conv2d(12, 7, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(20, 5)
        self.opaque = opaque

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x)
        x = F.relu(self.project(F.hardswish(self.depthwise(x))) + x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        if self.opaque:
            x = torch.sin(x)
        deep = self.drop(F.silu(self.down(x)))
        up = F.interpolate(deep, size=x.shape[2:], mode="bilinear")
        joined = torch.cat([self.side(x), up], 1)
        return {"map": F.max_pool2d(joined, 2), "scores": (self.head(deep.mean((2, 3))), up[:, 3:5])}


def net(opaque: bool = False) -> Net:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = Net(opaque).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0, (1.5 / max(parameter[0].numel(), 8)) ** 0.5)
        assert isinstance(model.stem[1], nn.BatchNorm2d) and model.stem[1].running_var is not None
        model.stem[1].weight.data.uniform_(0.5, 1.5)
        model.stem[1].running_var.uniform_(0.5, 1.5)
    return model


class Backend(NamedTuple):
    name: str
    dtype: torch.dtype


BACKENDS = [
    Backend("native", torch.float32),
    Backend("torch", torch.float32),
    Backend("torch", torch.float64),
    Backend("torch", torch.bfloat16),
    Backend("torch", torch.float16),
]
FLOAT32 = BACKENDS[:2]


def _shown(value: object) -> str:
    return f"{value.name}-{str(value.dtype).removeprefix('torch.')}" if isinstance(value, Backend) else str(value)


every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=_shown)
both_executors = pytest.mark.parametrize("backend", FLOAT32, ids=_shown)


@pytest.fixture(autouse=True)
def _native_where_asked(request: pytest.FixtureRequest) -> None:
    backend = request.node.callspec.params.get("backend") if hasattr(request.node, "callspec") else None
    if isinstance(backend, Backend) and backend.name == "native" and not kernels.native_status()["available"]:
        pytest.skip(str(kernels.native_status()["reason"]))


def dense(model: nn.Module, frame: Tensor) -> Any:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(frame)


def assert_equals_dense(got: Any, model: nn.Module, frame: Tensor, where: str = "") -> None:
    oracle.assert_law(got, dense(model, frame), dense(copy.deepcopy(model).double(), frame.double()), where)


def executor_of(stream: Stream) -> Executor:
    executor = stream._executor
    assert executor is not None
    return executor


# -- law 1: exact, no drift, static frames are free -----------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("opaque", [False, True], ids=["all rules", "with a torch step"])
def test_law_1_threshold_0_equals_dense_at_every_frame(backend: Backend, opaque: bool) -> None:
    model = net(opaque).to(backend.dtype)
    stream = sl.stream(model, backend=backend.name)
    for index, frame in enumerate(video(SHAPE, 8, 1, backend.dtype)):
        got = stream(frame)
        assert list(got) == ["map", "scores"] and isinstance(got["scores"], tuple)
        assert_equals_dense(got, model, frame, f"frame {index}")
        assert index == 0 or 0 < stream.stats.last.macs_share < 0.9


@both_executors
def test_law_1_native_equals_its_own_dense_run_to_the_bit(backend: Backend) -> None:
    model = net(opaque=True)
    stream = sl.stream(model, backend=backend.name)
    for frame in video(SHAPE, 6, 4):
        got = stream(frame)
        fresh = stream.clone()(frame)
        if backend.name == "native":
            oracle.assert_bits_equal(got, fresh)
        else:
            oracle.assert_law(got, fresh, dense(copy.deepcopy(model).double(), frame.double()))


@both_executors
def test_law_1_no_drift(backend: Backend) -> None:
    """After 150 frames the error is what it was after the first."""
    model = net()
    stream = sl.stream(model, backend=backend.name)
    frames = video(SHAPE, 150, 2)
    for frame in frames:
        got = stream(frame)
    assert_equals_dense(got, model, frames[-1])


@every_backend
@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_law_1_a_static_frame_costs_nothing(backend: Backend, threshold: float) -> None:
    stream = sl.stream(net(opaque=True).to(backend.dtype), threshold, backend=backend.name)
    frame = video(SHAPE, 1, 1, backend.dtype)[0]
    first = stream(frame)
    again = stream(frame.clone())
    oracle.assert_bits_equal(again, first)
    last = stream.stats.last
    assert last.macs_done == 0 and last.macs_dense > 0
    assert set(last.density.values()) == {0.0}
    assert not stream.last_sites("input").any() and not stream.last_sites("down").any()
    assert stream.stats.total.frames == 2


def test_law_1_relu_that_stays_at_zero_stops_the_spread() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    assert isinstance(model[0], nn.Conv2d) and model[0].bias is not None
    nn.init.constant_(model[0].bias, -100.0)
    stream = sl.stream(model)
    stream(torch.zeros(1, 1, 8, 8))
    frame = torch.zeros(1, 1, 8, 8)
    frame[0, 0, 3, 3] = 1
    stream(frame)
    assert stream.stats.last.density["0"] == 1 / 64
    assert stream.stats.last.density["2"] == 0


# -- law 2: every map within its threshold ----------------------------------------------------------------------------------------------


def absolute_thresholds(stream: Stream) -> dict[Any, float]:
    """What each step may be off by, in its own units, worked out anew from what the stream was told."""
    executor = executor_of(stream)
    result = {}
    for step in executor.plan.steps:
        value = stream.thresholds[step.name] if step.name in stream.thresholds else 0.0
        result[step] = value * (stream._std.get(step, 0.0) if stream.thresholds.unit == "std" else 1.0)
    return result


@both_executors
@pytest.mark.parametrize("norm", ["rms", "max", "l2"])
@pytest.mark.parametrize("unit", ["std", "absolute"])
@pytest.mark.parametrize("threshold", [0.02, 0.3])
def test_law_2_every_map_within_its_threshold(backend: Backend, norm: str, unit: str, threshold: float) -> None:
    stream = sl.stream(net(opaque=True), threshold, threshold_unit=unit, norm=norm, backend=backend.name)
    first: dict[str, float] = {}
    for index, frame in enumerate(video(SHAPE, 6, 5)):
        frame = frame + 0.05 * torch.randn(SHAPE)  # noise everywhere: most sites are computed and left alone
        stream(frame)
        executor = executor_of(stream)
        steps = {step.name: step for step in executor.plan.steps}
        if index == 0:
            first = {name: float(executor.value(steps[name].output).double().std(correction=0)) for name in stream.thresholds}  # type: ignore[attr-defined]
            continue
        limits = {steps[name]: value * (first[name] if unit == "std" else 1.0) for name, value in stream.thresholds.items()}
        assert min(limits.values()) > 0
        oracle.assert_within(executor, limits, norm, f"frame {index}")
        held = executor.value(steps["input"].output)
        assert float(oracle.distance((frame - held).double(), norm).max()) <= limits[steps["input"]] * (1 + 1e-6)  # type: ignore[operator]
    assert threshold < 0.1 or stream.stats.last.macs_share < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_law_2_in_other_types(dtype: torch.dtype) -> None:
    stream = sl.stream(net().to(dtype), 0.1)
    for index, frame in enumerate(video(SHAPE, 5, 5, dtype)):
        stream(frame)
        if index:
            oracle.assert_within(executor_of(stream), absolute_thresholds(stream), "rms", f"frame {index}")


@both_executors
def test_law_2_a_threshold_that_is_lowered_holds_from_the_next_frame_on(backend: Backend) -> None:
    """Also for sites that were left alone under the old one, and whose inputs do not change any more."""
    model = net(opaque=True)
    stream = sl.stream(model, 1.0, backend=backend.name)
    frames = video(SHAPE, 4, 6)
    for frame in frames:
        got = stream(frame + 0.1 * torch.randn(SHAPE))
    frame = frames[-1]
    got = stream(frame)
    assert oracle.error(got["map"], dense(model, frame)["map"]) > 0.01
    for name in stream.thresholds:
        stream.thresholds[name] = 0.0
    assert_equals_dense(stream(frame), model, frame)
    stream(frame)
    assert stream.stats.last.macs_done == 0


@both_executors
def test_law_2_slow_ramps_are_caught(backend: Backend) -> None:
    """Each frame differs from the one before by less than the threshold; the sum does not get lost."""
    model = nn.Conv2d(3, 4, 3, padding=1).eval()
    stream = sl.stream(model, {"input": 0.1}, threshold_unit="absolute", backend=backend.name)
    frame = torch.randn(1, 3, 10, 10)
    for _ in range(40):
        frame = frame + 0.03
        got = stream(frame)
    most = 0.1 * float(model.weight.detach().abs().sum((1, 2, 3)).max()) * 3**0.5
    assert float((got - dense(model, frame)).abs().max()) <= most


# -- law 3: see benchmarks; here only that the report says so ---------------------------------------------------------------------------


@both_executors
def test_law_3_everything_new_costs_what_dense_costs(backend: Backend) -> None:
    stream = sl.stream(net(), backend=backend.name)
    stream(torch.randn(SHAPE))
    stream(torch.randn(SHAPE))
    assert stream.stats.last.macs_done == stream.stats.last.macs_dense
    assert stream.stats.total.macs_share == 1.0


# -- law 4: nothing of the caller's is touched -----------------------------------------------------------------------------------------------


@every_backend
def test_law_4_outputs_belong_to_the_caller(backend: Backend) -> None:
    model = net().to(backend.dtype)
    stream = sl.stream(model, backend=backend.name)
    frames = video(SHAPE, 3, 1, backend.dtype)
    kept = stream(frames[0])
    copies = [value.clone() for value in oracle.tensors(kept)]
    second = stream(frames[1])
    oracle.assert_bits_equal(oracle.tensors(kept), copies, "an output changed with the next frame")
    for value in oracle.tensors(second):
        assert value.is_contiguous() and not value.requires_grad
        value.fill_(float("nan"))
    assert_equals_dense(stream(frames[2]), model, frames[2])


SHARING: dict[str, Callable[[Tensor], Any]] = {
    "the frame itself": lambda x: x,
    "the frame twice": lambda x: (x, x),
    "a slice of the frame": lambda x: x[:, 1:],
    "a value and its slice": lambda x: (lambda y: [y, y[:, :1], y])(F.relu(x)),
    "a reshaped map": lambda x: F.relu(x).flatten(2),
    "a transposed frame": lambda x: x.permute(0, 2, 3, 1),
}


@every_backend
@pytest.mark.parametrize("name", list(SHARING))
def test_law_4_outputs_that_share_memory_are_copied(backend: Backend, name: str) -> None:
    function = SHARING[name]
    model = Apply(function)
    frames = video(SHAPE, 3, 1, backend.dtype)
    stream = sl.stream(model, backend=backend.name)
    for frame in frames:
        original = frame.clone()
        got = stream(frame)
        oracle.assert_bits_equal(got, function(frame), name)
        assert len({value.data_ptr() for value in oracle.tensors(got)}) == len(oracle.tensors(got))
        for value in oracle.tensors(got):
            value.zero_()
        oracle.assert_bits_equal(frame, original, "the frame was written to")


@both_executors
def test_law_4_the_model_is_left_alone(backend: Backend) -> None:
    model = net()
    model.train()
    model.drop.eval()  # a flag of its own
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.side.weight.requires_grad_(False)
    calls: list[str] = []
    model.down.register_forward_hook(lambda *_: calls.append("hook"))
    hooks = dict(model.down._forward_hooks)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    parameters = {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()}
    random_state = torch.random.get_rng_state()
    stream = sl.stream(model, 0.05, backend=backend.name)
    for frame in video(SHAPE, 3, 1):
        original = frame.clone().requires_grad_(False)
        stream(frame)
        oracle.assert_bits_equal(frame, original)
        assert frame.grad is None
    oracle.assert_bits_equal(model.state_dict(), state, "weights or statistics changed")
    assert [module.training for module in model.modules()] == flags
    assert {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()} == parameters
    assert dict(model.down._forward_hooks) == hooks
    assert torch.equal(torch.random.get_rng_state(), random_state)


@both_executors
def test_law_4_a_model_in_training_runs_as_in_eval(backend: Backend) -> None:
    model = net().train()
    stream = sl.stream(model, backend=backend.name)
    for frame in video(SHAPE, 3, 1):
        assert_equals_dense(stream(frame), model, frame)
    assert model.training


@both_executors
@pytest.mark.parametrize("opaque", [False, True])
def test_law_4_weights_are_copied(backend: Backend, opaque: bool) -> None:
    """Training on while a stream runs does not mix two models in its maps."""
    model = net(opaque)
    before = copy.deepcopy(model)
    stream = sl.stream(model, backend=backend.name)
    frames = video(SHAPE, 4, 1)
    stream(frames[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    for frame in frames[1:]:
        assert_equals_dense(stream(frame), before, frame)


@both_executors
def test_law_4_frames_that_need_gradients_or_are_strided(backend: Backend) -> None:
    model = net()
    stream = sl.stream(model, backend=backend.name)
    wide = torch.randn(2, 3, 26, 44)
    for frame in (
        torch.randn(SHAPE, requires_grad=True),
        torch.randn(SHAPE).to(memory_format=torch.channels_last),
        wide[..., 11:33],
        wide[..., ::2],
        torch.randn(2, 1, 26, 22).expand(SHAPE),
        torch.randn(3, 2, 22, 26).permute(1, 0, 3, 2),
        nn.Parameter(torch.randn(SHAPE)),
    ):
        assert_equals_dense(stream(frame), model, frame.detach())


# -- law 5: bad frames ---------------------------------------------------------------------------------------------------------------------


def _with(frame: Tensor, value: float) -> Tensor:
    bad = frame.clone()
    bad[-1, 1, 5, 7] = value
    return bad


BAD_FRAMES: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "nan": (lambda x: _with(x, float("nan")), FrameError, "nan_to_num"),
    "inf": (lambda x: _with(x, float("inf")), FrameError, "nan_to_num"),
    "minus inf": (lambda x: _with(x, -float("inf")), FrameError, "skip it"),
    "all nan": (lambda x: torch.full_like(x, float("nan")), FrameError, "NaN"),
    "channels": (lambda x: x[:, :2], ShapeError, r"reset\(\)"),
    "size": (lambda x: x[:, :, 1:], ShapeError, r"reset\(\)"),
    "batch": (lambda x: x[:1], ShapeError, r"reset\(\)"),
    "no batch": (lambda x: x[0], ShapeError, r"frame\[None\]"),
    "five axes": (lambda x: x[None], ShapeError, r"\(n, c, h, w\)"),
    "empty": (lambda x: x[:, :, :0], ShapeError, "empty"),
    "integers": (lambda x: x.to(torch.uint8), DTypeError, r"float\(\)"),
    "other floats": (lambda x: x.to(torch.float16 if x.dtype != torch.float16 else torch.float32), DTypeError, "Convert it"),
    "complex": (lambda x: x.to(torch.complex64), DTypeError, "float"),
    "device": (lambda x: x.to("meta"), DeviceError, "Move it"),
    "numpy": (lambda x: x.float().numpy(), DTypeError, "torch.Tensor"),
    "list": (lambda x: x.tolist(), DTypeError, "torch.Tensor"),
    "None": (lambda _: None, DTypeError, "torch.Tensor"),
}


@every_backend
@pytest.mark.parametrize("bad", list(BAD_FRAMES))
@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_law_5_bad_frames_leave_the_stream_as_it_was(backend: Backend, bad: str, threshold: float) -> None:
    make, error, remedy = BAD_FRAMES[bad]
    model = _small(backend.dtype)
    stream, twin = (sl.stream(model, threshold, backend=backend.name) for _ in range(2))
    frames = video(SHAPE, 4, 1, backend.dtype)
    for frame in frames[:2]:
        stream(frame), twin(frame)
    before, stats = oracle.snapshot(executor_of(stream)), stream.stats.to_dict()
    sites = stream.last_sites("input")
    with pytest.raises(error, match=remedy) as caught:
        stream(make(frames[2]))
    assert isinstance(caught.value, SightlineError) and "`frame`" in str(caught.value)
    for step, value in oracle.snapshot(executor_of(stream)).items():
        oracle.assert_bits_equal(value, before[step], step.name)
    assert stream.stats.to_dict() == stats
    assert torch.equal(stream.last_sites("input"), sites) and sites.any()
    for frame in frames[2:]:
        got = stream(frame)
        oracle.assert_bits_equal(got, twin(frame))
        if threshold == 0:
            assert_equals_dense(got, model, frame)


def _small(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 12 * 10, 3)).to(dtype).eval()


@every_backend
@pytest.mark.parametrize("bad", ["nan", "integers", "no batch"])
def test_law_5_a_bad_first_frame(backend: Backend, bad: str) -> None:
    make, error, _ = BAD_FRAMES[bad]
    model = nn.Conv2d(3, 4, 3).to(backend.dtype)
    stream = sl.stream(model, backend=backend.name)
    frames = video((1, 3, 9, 9), 2, 1, backend.dtype)
    with pytest.raises(error):
        stream(make(torch.randn(SHAPE, dtype=backend.dtype)))
    for frame in frames:  # of another size: a bad frame fixes nothing
        assert_equals_dense(stream(frame), model, frame)


@both_executors
def test_law_5_an_operator_that_raises_in_mid_frame(backend: Backend) -> None:
    """Half a frame has been computed then: the next one starts afresh instead of mixing two frames."""
    model = Apply(lambda x, f: f(torch.linalg.inv(f(x))), nn.Conv2d(2, 2, 1, bias=False)).eval()
    stream = sl.stream(model, backend=backend.name)
    good = torch.randn(1, 2, 5, 5) + 3 * torch.eye(5)
    assert_equals_dense(stream(good), model, good)
    with pytest.raises(RuntimeError, match="singular"):
        stream(torch.zeros(1, 2, 5, 5))
    nearly = good.clone()
    nearly[0, 0, 0, 0] += 0.5
    got = stream(nearly)
    oracle.assert_law(got, stream.clone()(nearly), dense(copy.deepcopy(model).double(), nearly.double()))


@both_executors
def test_law_5_nan_that_the_network_makes_itself(backend: Backend) -> None:
    """Counts as changed, spreads as in PyTorch, and goes away again."""
    model = Apply(lambda x, f: f(torch.sqrt(x)), nn.Conv2d(1, 2, 3, padding=1)).eval()
    for threshold in (0.0, 0.2):
        stream = sl.stream(model, threshold, threshold_unit="absolute", backend=backend.name)
        frames = [torch.full((1, 1, 8, 8), 1.0) for _ in range(4)]
        frames[1][0, 0, 3, 3] = -1
        frames[2][0, 0, 3, 4] = -1
        for index, frame in enumerate(frames):
            got = stream(frame)
            assert torch.equal(got.isnan(), dense(model, frame).isnan()), f"frame {index}"
        assert_equals_dense(got, model, frames[3])


# -- law 6: independence --------------------------------------------------------------------------------------------------------------------------


@both_executors
@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_law_6_batch_elements_are_independent(backend: Backend, threshold: float) -> None:
    model = net(opaque=True)
    together = sl.stream(model, threshold, threshold_unit="absolute", backend=backend.name)
    alone = [sl.stream(model, threshold, threshold_unit="absolute", backend=backend.name) for _ in range(3)]
    for frame in video((3, *SHAPE[1:]), 5, 7):
        all_of_them = oracle.tensors(together(frame))
        for image, stream in enumerate(alone):
            one = oracle.tensors(stream(frame[image : image + 1]))
            for ours, theirs in zip(all_of_them, one, strict=True):
                if backend.name == "native":
                    oracle.assert_bits_equal(ours[image : image + 1], theirs)
                else:
                    assert oracle.error(ours[image : image + 1], theirs) < 1e-5
    sites = together.last_sites("down")
    assert sites.flatten(1).any(1).sum() < 3  # the patch moves in one or two of the three


@both_executors
def test_law_6_interleaved_streams_are_independent(backend: Backend) -> None:
    model = net(opaque=True)
    videos = [video(SHAPE, 4, seed) for seed in (1, 2, 3)]
    parent = sl.stream(model, 0.05, backend=backend.name, example=videos[0][0])
    streams = [parent.clone() for _ in videos]
    wanted = [[stream(frame) for frame in frames] for stream, frames in zip((parent.clone() for _ in videos), videos, strict=True)]
    for index in range(4):
        for stream, frames, results in zip(streams, videos, wanted, strict=True):
            oracle.assert_bits_equal(stream(frames[index]), results[index])


def _in_threads(jobs: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.fixture
def three_threads() -> Any:
    before = kernels.get_num_threads()
    sl.set_num_threads(3)
    yield
    sl.set_num_threads(before)


@both_executors
def test_law_6_several_streams_in_several_threads(backend: Backend, three_threads: None) -> None:
    model = net(opaque=True)
    shape = (1, 3, 64, 60)
    parent = sl.stream(model, 0.02, backend=backend.name, example=torch.zeros(shape))
    videos = [video(shape, 8, seed) for seed in range(4)]
    wanted = [[stream(frame) for frame in frames] for stream, frames in zip((parent.clone() for _ in videos), videos, strict=True)]
    found: list[list[Any]] = [[] for _ in videos]

    def job(number: int) -> Callable[[], None]:
        stream = parent.clone()
        return lambda: found[number].extend(stream(frame) for frame in videos[number])

    _in_threads([job(number) for number in range(4)])
    for ours, theirs in zip(found, wanted, strict=True):
        assert len(ours) == len(theirs) == 8
        for a, b in zip(ours, theirs, strict=True):
            oracle.assert_bits_equal(a, b)


@both_executors
def test_law_6_one_stream_from_several_threads(backend: Backend, three_threads: None) -> None:
    """Frames are taken one after the other; each caller gets the answer to its own."""
    model = net(opaque=True)
    stream = sl.stream(model, backend=backend.name)
    videos = [video(SHAPE, 6, seed) for seed in range(4)]

    def job(frames: list[Tensor]) -> None:
        for frame in frames:
            assert_equals_dense(stream(frame), model, frame)

    _in_threads([lambda frames=frames: job(frames) for frames in videos])  # type: ignore[misc]
    assert stream.stats.total.frames == 24


@both_executors
def test_law_6_first_frames_in_several_threads(backend: Backend) -> None:
    """Captures of one model at the same time neither fail nor leave a mark on it."""
    model = net().train()

    def job(seed: int) -> None:
        frame = video(SHAPE, 1, seed)[0]
        got = sl.stream(model, backend=backend.name)(frame)
        results[seed] = (frame, got)

    results: dict[int, Any] = {}
    _in_threads([lambda seed=seed: job(seed) for seed in range(4)])  # type: ignore[misc]
    for frame, got in results.values():
        assert_equals_dense(got, model, frame)
    assert len(results) == 4 and all(module.training for module in model.modules())


# -- law 7: what is slower than it could be is said ----------------------------------------------------------------------------------------------------


@both_executors
def test_law_7_explain_names_what_is_dense(backend: Backend) -> None:
    stream = sl.stream(net(opaque=True), backend=backend.name)
    for frame in video(SHAPE, 3, 1):
        stream(frame)
    table = stream.explain()
    rows = {row["site"]: row for row in table.rows}
    assert "stem.0" in rows and rows["stem.0"]["kind"] == "window"
    assert abs(sum(row["share"] for row in table.rows) - 1) < 1e-9
    assert all(0 <= row["density"] <= 1 for row in table.rows)
    assert [row for row in table.dense if "sin" in row["op"] and row["note"]], "the op without a rule is not named"
    assert str(table).count("\n") == len(table.rows)
    assert rows["stem.0"]["executor"] == backend.name
    fused = {name for row in table.rows for name in row["fused"]}
    assert fused and not fused & set(rows)


def _run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env={**os.environ, **environment}, check=False)


def test_law_7_without_the_native_library_it_says_so_once_and_works() -> None:
    code = """
import torch, sightline as sl
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU()).eval()
for _ in range(2):
    stream = sl.stream(model)
    for _ in range(2):
        frame = torch.rand(1, 3, 8, 8)
        assert torch.allclose(stream(frame), model(frame), atol=1e-5)
assert stream.explain().rows[1]["executor"] == "torch"
try:
    sl.stream(model, backend="native")(frame)
except sl.errors.BackendError as error:
    assert "SIGHTLINE_NO_NATIVE" in str(error), error
else:
    raise SystemExit("backend='native' did not fail")
print("done")
"""
    result = _run_python(code, SIGHTLINE_NO_NATIVE="1")
    assert result.returncode == 0 and result.stdout.strip() == "done", result.stderr
    assert result.stderr.count("The native executor is not available") == 1, result.stderr


def test_law_7_with_the_native_library_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    if not kernels.native_status()["available"]:
        pytest.skip(str(kernels.native_status()["reason"]))
    with caplog.at_level(logging.INFO, "sightline"):
        sl.stream(net())(torch.randn(SHAPE))
    assert not [record for record in caplog.records if record.name.startswith("sightline")]


# -- the rest of the contract: reset, clone ---------------------------------------------------------------------------------------------------------------


@every_backend
def test_reset_forgets_and_allows_another_size(backend: Backend) -> None:
    model = net().to(backend.dtype)
    stream = sl.stream(model, backend=backend.name)
    for shape in (SHAPE, (1, 3, 17, 30), SHAPE):
        for frame in video(shape, 3, 1, backend.dtype):
            assert_equals_dense(stream(frame), model, frame, str(shape))
        assert stream.stats.total.frames == 3
        assert stream.last_sites().shape == (shape[0], *shape[2:])
        stream.reset()
        assert stream.stats.total.frames == 0 and stream.stats.total.macs_dense == 0
        with pytest.raises(ValueError, match="no frame"):
            stream.last_sites()


@both_executors
def test_reset_at_the_same_size_starts_as_the_first_time(backend: Backend) -> None:
    stream = sl.stream(net(opaque=True), 0.1, backend=backend.name)
    frames = video(SHAPE, 4, 1)
    first = [stream(frame) for frame in frames]
    stream.reset()
    again = [stream(frame) for frame in frames]
    oracle.assert_bits_equal(first, again)
    assert stream.stats.total.frames == 4


@both_executors
def test_clone_shares_weights_and_nothing_else(backend: Backend) -> None:
    model = net()
    stream = sl.stream(model, 0.05, input_threshold=0.2, norm="max", backend=backend.name)
    frames = video(SHAPE, 4, 1)
    stream(frames[0])
    stream.thresholds["down"] = 0.5
    twin = stream.clone()
    assert dict(twin.thresholds) == dict(stream.thresholds) and twin.thresholds["down"] == 0.5
    assert twin.stats.total.frames == 0
    with pytest.raises(ThresholdError):
        twin.thresholds["no such site"] = 1.0
    twin.thresholds["down"] = 0.0
    assert stream.thresholds["down"] == 0.5
    twin.thresholds["down"] = 0.5
    stream.reset()
    for frame in frames:
        oracle.assert_bits_equal(twin(frame), stream(frame))
    assert stream._plan is twin._plan
    if backend.name == "native":
        assert stream._lowered is twin._lowered


def test_clone_before_the_first_frame() -> None:
    stream = sl.stream(net(), 0.05)
    stream.thresholds["down"] = 0.4
    twin = stream.clone()
    twin(torch.randn(SHAPE))
    assert twin.thresholds["down"] == 0.4 and twin.thresholds["side"] == 0.05


# -- thresholds -----------------------------------------------------------------------------------------------------------------------------------------


@both_executors
def test_thresholds_are_named_after_call_sites_and_can_be_edited(backend: Backend) -> None:
    stream = sl.stream(net(), 0.05, backend=backend.name)
    assert len(stream.thresholds) == 0
    frames = video(SHAPE, 6, 1)
    stream(frames[0])
    assert {"input", "stem.0", "depthwise", "down", "side"} <= set(stream.thresholds)
    assert set(stream.thresholds.values()) == {0.05}
    stream(frames[1])
    assert stream.stats.last.density["down"] > 0
    stream.thresholds["input"] = 1e6
    stream(frames[2])
    assert stream.stats.last.density["input"] == 0 or stream.stats.last.density["down"] == 0
    stream.thresholds["input"] = 0
    stream(frames[3])
    assert stream.stats.last.density["down"] > 0
    with pytest.raises(ThresholdError, match="no call site 'dwon'"):
        stream.thresholds["dwon"] = 0.1
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="at least 0"):
            stream.thresholds["down"] = bad
    with pytest.raises(ThresholdError):
        del stream.thresholds["down"]
    with pytest.raises(KeyError):
        stream.thresholds["nowhere"]


def test_thresholds_set_before_the_first_frame_hold() -> None:
    stream = sl.stream(net(), 0.05)
    stream.thresholds["down"] = 0.7
    stream(torch.randn(SHAPE))
    assert stream.thresholds["down"] == 0.7 and stream.thresholds["side"] == 0.05
    wrong = sl.stream(net(), 0.05)
    wrong.thresholds["nowhere"] = 0.7
    for _ in range(2):
        with pytest.raises(ThresholdError, match="nowhere"):
            wrong(torch.randn(SHAPE))


def test_thresholds_as_a_mapping() -> None:
    stream = sl.stream(net(), {"down": 0.3, "input": 0.1})
    stream(torch.randn(SHAPE))
    assert {name: value for name, value in stream.thresholds.items() if value} == {"down": 0.3, "input": 0.1}
    wrong = sl.stream(net(), {"dwon": 0.3})
    for _ in range(2):
        with pytest.raises(ThresholdError, match="dwon"):
            wrong(torch.randn(SHAPE))


def test_thresholds_bring_their_unit() -> None:
    source = sl.stream(net(), 0.25, threshold_unit="absolute", example=torch.zeros(SHAPE))
    stream = sl.stream(net(), source.thresholds)
    stream(torch.randn(SHAPE))
    assert stream.thresholds.unit == "absolute" and stream.thresholds["down"] == 0.25


def test_thresholds_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    stream = sl.stream(net(), 0.05, example=torch.zeros(SHAPE))
    stream.thresholds["down"] = 0.125
    stream.thresholds.save(path)
    for example in (torch.zeros(SHAPE), None):  # before and after the names are known
        other = sl.stream(net(), example=example)
        other.thresholds.load(path)
        other(torch.randn(SHAPE))
        assert dict(other.thresholds) == dict(stream.thresholds)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, MediaError, "cannot read"),
        ("not json", MediaError, "cannot read"),
        ("[]", MediaError, "not a thresholds file"),
        ('{"format": "sightline-thresholds", "thresholds": {"nowhere": 1}, "unit": "std"}', ThresholdError, "another network"),
        ('{"format": "sightline-thresholds", "thresholds": {}, "unit": "std"}', ThresholdError, "another network"),
    ],
)
def test_thresholds_of_another_network_are_refused_whole(tmp_path: Path, content: str | None, error: type[Exception], words: str) -> None:
    path = tmp_path / "thresholds.json"
    if content is not None:
        path.write_text(content)
    stream = sl.stream(net(), 0.05, example=torch.zeros(SHAPE))
    before = dict(stream.thresholds)
    with pytest.raises(error, match=words):
        stream.thresholds.load(path)
    assert dict(stream.thresholds) == before


def test_thresholds_in_another_unit_or_with_bad_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    stream = sl.stream(net(), 0.05, example=torch.zeros(SHAPE))
    stream.thresholds.save(path)
    with pytest.raises(ThresholdError, match="unit"):
        sl.stream(net(), 0.05, threshold_unit="absolute", example=torch.zeros(SHAPE)).thresholds.load(path)
    content = json.loads(path.read_text())
    for bad in (-1, "x", None):
        content["thresholds"]["down"] = bad
        path.write_text(json.dumps(content))
        with pytest.raises(MediaError, match="thresholds"):
            stream.thresholds.load(path)
        assert stream.thresholds["down"] == 0.05
    with pytest.raises(MediaError, match="cannot write"):
        stream.thresholds.save(tmp_path / "no folder" / "x.json")


@both_executors
def test_input_threshold(backend: Backend) -> None:
    model = nn.Conv2d(3, 4, 3, padding=1)
    frame = 255 * torch.rand(1, 3, 12, 12)
    for given, unit, below, above in (
        ("15abs", "std", 14.9, 15.1),
        ("15abs", "absolute", 14.9, 15.1),
        (15.0, "absolute", 14.9, 15.1),
        (0.1, "std", 0.099 * float(frame.double().std()), 0.102 * float(frame.double().std())),
        ("0.1", "std", 0.099 * float(frame.double().std()), 0.102 * float(frame.double().std())),
    ):
        stream = sl.stream(model, input_threshold=given, threshold_unit=unit, backend=backend.name)
        stream(frame)
        for step, changed in ((below, False), (above, True)):
            moved = frame.clone()
            moved[0, :, 4, 5] += step
            stream(moved)
            assert bool(stream.last_sites()[0, 4, 5]) == changed, (given, unit, step)
            stream.reset()
            stream(frame)


@both_executors
def test_input_threshold_in_absolute_units_can_be_edited(backend: Backend) -> None:
    """The mapping shows it in the stream's unit once that is known; setting the entry takes over."""
    frame = 255 * torch.rand(1, 3, 12, 12)
    stream = sl.stream(nn.Conv2d(3, 4, 1), 0.5, input_threshold="15abs", backend=backend.name)
    stream(frame)
    assert stream.thresholds["input"] == pytest.approx(15 / float(frame.double().std(correction=0)))
    assert stream.clone().thresholds["input"] == stream.thresholds["input"]
    stream(frame + 14)
    assert not stream.last_sites().any()
    stream.thresholds["input"] = 0.0
    stream(frame + 1)
    assert stream.last_sites().all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"threshold": -1}, ValueError, "threshold"),
        ({"threshold": float("nan")}, ValueError, "threshold"),
        ({"threshold": "much"}, ValueError, "threshold"),
        ({"threshold": True}, ValueError, "threshold"),
        ({"threshold_unit": "percent"}, ValueError, "threshold_unit"),
        ({"input_threshold": "15px"}, ValueError, "15abs"),
        ({"input_threshold": "-3abs"}, ValueError, "input_threshold"),
        ({"input_threshold": "nan"}, ValueError, "input_threshold"),
        ({"norm": "l1"}, ValueError, "norm"),
        ({"noise": "gauss"}, ValueError, "noise"),
        ({"backend": "cuda"}, ValueError, "backend"),
        ({"dtype": torch.int8}, DTypeError, "dtype"),
        ({"example": torch.zeros(3, 8, 8)}, ShapeError, "frame"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sl.stream(nn.Conv2d(3, 4, 1), **options)


def test_backend_native_says_why_it_cannot() -> None:
    if not kernels.native_status()["available"]:
        pytest.skip(str(kernels.native_status()["reason"]))
    with pytest.raises(BackendError, match="float64"):
        sl.stream(nn.Conv2d(3, 4, 1).double(), backend="native")(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    with pytest.raises(BackendError, match="float64"):
        sl.stream(nn.Conv2d(3, 4, 1), backend="native", dtype=torch.float64)(torch.zeros(1, 3, 4, 4))


def test_models_and_frames_that_do_not_fit() -> None:
    with pytest.raises(CaptureError):
        sl.stream("resnet50")(torch.zeros(1, 3, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match="weights"):
        sl.stream(nn.Conv2d(3, 4, 1))(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(SightlineError):
        sl.stream(nn.Conv2d(3, 4, 1))(torch.zeros(1, 5, 8, 8))


# -- noise, dtype, memory, sites ---------------------------------------------------------------------------------------------------------------------------


@both_executors
def test_noise_block_takes_whole_blocks(backend: Backend) -> None:
    model = nn.Conv2d(3, 4, 3, padding=1)
    stream = sl.stream(model, input_threshold="0.5abs", noise="block", backend=backend.name)
    frame = torch.randn(2, 3, 20, 21)
    stream(frame)
    moved = frame + 0.1
    moved[1, 0, 9, 17] += 5
    got = stream(moved)
    sites = torch.zeros(2, 20, 21, dtype=torch.bool)
    sites[1, 8:16, 16:21] = True
    assert torch.equal(stream.last_sites(), sites)
    assert_equals_dense(got, model, torch.where(sites[:, None], moved, frame))


@both_executors
def test_noise_vote_drops_specks_and_keeps_regions(backend: Backend) -> None:
    stream = sl.stream(nn.Conv2d(1, 4, 1), noise="vote", backend=backend.name)
    frame = torch.zeros(2, 1, 16, 18)
    stream(frame)
    frame[0, 0, 3, 3] = 1  # one pixel
    frame[1, 0, 8:12, 0:4] = 1  # a region at the rim
    frame[1, 0, 15, 14:18] = 1  # four in a corner: one too few
    stream(frame)
    sites = stream.last_sites()
    votes = F.conv2d(frame.ne(0).float(), torch.ones(1, 1, 5, 5), padding=2)[:, 0]
    assert torch.equal(sites, votes >= 5)
    assert not sites[0].any() and sites[1, 8:12, 0:4].all() and not sites[1, 14:].any()


@both_executors
@pytest.mark.parametrize("noise", ["vote", "block"])
def test_noise_filters_agree_between_executors_and_on_still_frames(backend: Backend, noise: str) -> None:
    model = _small(torch.float32)
    stream, other = sl.stream(model, 0.05, noise=noise, backend=backend.name), sl.stream(model, 0.05, noise=noise, backend="torch")
    for frame in video(SHAPE, 5, 3):
        frame = frame + 0.02 * torch.randn(SHAPE)
        stream(frame), other(frame)
        assert torch.equal(stream.last_sites(), other.last_sites())
    stream.thresholds["input"] = 0.0
    stream(frame)
    stream(frame)
    assert not (noise == "block" and stream.last_sites().any())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtype_is_what_the_network_is_computed_in(dtype: torch.dtype) -> None:
    """Also with constants of the model and with ops that have no rule."""
    model = Apply(lambda x, f, g: (g(F.relu(f(x)).flatten(2).transpose(1, 2)).softmax(-1) @ g.weight) * 2 + 0.1, nn.Conv2d(3, 6, 3), nn.Linear(6, 6)).eval()
    stream = sl.stream(model, dtype=dtype)
    for frame in video((2, 3, 9, 9), 3, 1):
        got = stream(frame)
        assert got.dtype == dtype
        oracle.assert_law(got, dense(copy.deepcopy(model).to(dtype), frame.to(dtype)), dense(copy.deepcopy(model).double(), frame.double()))
    assert stream.explain().rows[0]["executor"] == "torch"


@both_executors
def test_memory_counts_every_map_once(backend: Backend) -> None:
    stream = sl.stream(net(), backend=backend.name)
    assert stream.memory()["total"] == 0
    for frame in video(SHAPE, 3, 1):
        stream(frame)
    memory = stream.memory()
    assert memory["total"] == sum(memory["tensors"].values())
    executor = executor_of(stream)
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in (executor.value(step.output) for step in executor.plan.steps)
        if isinstance(value, Tensor)
    }
    maps = memory["total"] - memory["tensors"]["masks and scratch"]
    assert maps == pytest.approx(sum(storages.values()), rel=0.05)
    assert (memory["shared_weights"] > 0) == (backend.name == "native")
    twin = stream.clone()
    twin(torch.randn(SHAPE))
    assert twin.memory()["shared_weights"] == memory["shared_weights"]


@both_executors
def test_last_sites_say_what_was_computed(backend: Backend) -> None:
    stream = sl.stream(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2)), backend=backend.name)
    frame = torch.randn(2, 1, 10, 12)
    stream(frame)
    assert stream.last_sites().all() and stream.last_sites("1").shape == (2, 5, 6)
    frame[1, 0, 4, 7] += 1
    stream(frame)
    wanted = torch.zeros(2, 10, 12, dtype=torch.bool)
    wanted[1, 4, 7] = True
    assert torch.equal(stream.last_sites(), wanted)
    wanted[1, 3:6, 6:9] = True
    assert torch.equal(stream.last_sites("0"), wanted)
    kept = stream.last_sites("0")
    stream(frame)
    assert torch.equal(kept, wanted), "the mask given out earlier changed"
    with pytest.raises(KeyError, match="explain"):
        stream.last_sites("nowhere")


@both_executors
def test_stats_add_up(backend: Backend) -> None:
    stream = sl.stream(net(), backend=backend.name)
    done = dense_macs = 0
    shares = []
    for frame in video(SHAPE, 5, 1):
        stream(frame)
        last = stream.stats.last
        done, dense_macs = done + last.macs_done, dense_macs + last.macs_dense
        shares.append(last.density["down"])
        assert last.frames == 1 and last.seconds > 0 and 0 <= last.macs_share <= 1
    total = stream.stats.total
    assert (total.frames, total.macs_dense) == (5, dense_macs)
    assert total.macs_done == pytest.approx(done, abs=20)  # each frame rounds to whole MACs
    assert total.density["down"] == pytest.approx(sum(shares) / 5)
    assert json.loads(json.dumps(stream.stats.to_dict()))["total"]["frames"] == 5


@both_executors
def test_outputs_keep_the_structure_of_the_model(backend: Backend) -> None:
    class Pair(NamedTuple):
        left: Tensor
        right: Any

    for function in (
        lambda x: [x * 2, (x + 1, {"deep": x - 1})],
        lambda x: Pair(x * 2, [x + 1]),
        lambda x: {"b": x * 2, "a": x + 1},
        lambda x: (x * 2,),
        lambda x: (x * 2, x[:, :0]),
    ):
        stream = sl.stream(Apply(function), backend=backend.name)
        for frame in video((1, 3, 6, 7), 2, 1):
            got, wanted = stream(frame), function(frame)
            assert type(got) is type(wanted)
            assert str(torch.utils._pytree.tree_structure(got)) == str(torch.utils._pytree.tree_structure(wanted))
            oracle.assert_law(got, wanted, wanted)


def test_threads_do_not_change_bits_of_a_stream() -> None:
    if not kernels.native_status()["available"]:
        pytest.skip(str(kernels.native_status()["reason"]))
    before = kernels.get_num_threads()
    model = net(opaque=True)
    shape = (1, 3, 96, 80)
    results = {}
    try:
        for threads in (1, 2, 3):
            sl.set_num_threads(threads)
            assert sl.get_num_threads() == threads
            stream = sl.stream(model, 0.02)
            results[threads] = [stream(frame) for frame in video(shape, 4, 1)]
        for bad in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                sl.set_num_threads(bad)
    finally:
        sl.set_num_threads(before)
    oracle.assert_bits_equal(results[2], results[1])
    oracle.assert_bits_equal(results[3], results[1])


def test_repr_and_example() -> None:
    stream = sl.stream(net())
    assert "not captured" in repr(stream)
    with pytest.raises(ValueError, match="captured"):
        stream.explain()
    ready = sl.stream(net(), example=torch.zeros(SHAPE))
    assert "0 frames" in repr(ready) and len(ready.explain().rows) > 5 and isinstance(ready.thresholds, Thresholds)
    with pytest.raises(ShapeError):
        ready(torch.zeros(1, 3, 4, 4))


def test_random_networks_with_thresholds_obey_law_2() -> None:
    for seed in range(12):
        network = RandomNetwork(1000 + seed)
        for backend in ("native", "torch") if kernels.native_status()["available"] else ("torch",):
            stream = sl.stream(network, 0.1, norm=["rms", "max", "l2"][seed % 3], backend=backend)
            for index, frame in enumerate(video(network.shape, 4, seed)):
                stream(frame)
                if index:
                    oracle.assert_within(executor_of(stream), absolute_thresholds(stream), ["rms", "max", "l2"][seed % 3], f"seed {seed}, {backend}")
