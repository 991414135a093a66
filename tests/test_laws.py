"""The laws of docs/design.md (what must always hold), one by one, on every backend and element type."""

from __future__ import annotations

import copy
import logging
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracle
import sightline as sl
from cases import Apply
from networks import RandomNetwork, video
from sightline import kernels
from sightline.errors import DeviceError, DTypeError, FrameError, ShapeError, SightlineError
from streams import SHAPE, Backend, absolute_thresholds, assert_equals_dense, both_executors, dense, every_backend, executor_of, net, small

# -- law 1: exact, no drift, static frames are free -------------------------------------------------------------------------------


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


# -- law 2: every map within its threshold ----------------------------------------------------------------------------------------


@both_executors
@pytest.mark.parametrize("norm", ["rms", "max", "l2"])
@pytest.mark.parametrize("unit", ["std", "absolute"])
@pytest.mark.parametrize("threshold", [0.02, 0.3])
def test_law_2_every_map_within_its_threshold(backend: Backend, norm: str, unit: str, threshold: float) -> None:
    stream = sl.stream(net(opaque=True), threshold, threshold_unit=unit, norm=norm, backend=backend.name)
    first: dict[str, float] = {}
    for index, frame in enumerate(video(SHAPE, 6, 5)):
        noisy = frame + 0.05 * torch.randn(SHAPE)  # noise everywhere: most sites are computed and left alone
        stream(noisy)
        executor = executor_of(stream)
        steps = {step.name: step for step in executor.plan.steps}
        if index == 0:
            first = {name: float(executor.value(steps[name].output).double().std(correction=0)) for name in stream.thresholds}  # type: ignore[attr-defined]
            continue
        limits = {steps[name]: value * (first[name] if unit == "std" else 1.0) for name, value in stream.thresholds.items()}
        assert min(limits.values()) > 0
        oracle.assert_within(executor, limits, norm, f"frame {index}")
        held = executor.value(steps["input"].output)
        assert float(oracle.distance((noisy - held).double(), norm).max()) <= limits[steps["input"]] * (1 + 1e-6)  # type: ignore[operator]
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


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_law_2_random_networks(first: int) -> None:
    """Thresholds are edited in the middle; noise comes and goes."""
    for seed in range(first, first + 10):
        rng, network = random.Random(seed), RandomNetwork(1000 + seed)
        norm, threshold = ["rms", "max", "l2"][seed % 3], [0.01, 0.1, 0.5][seed // 3 % 3]
        for backend in ("native", "torch") if kernels.native_status()["available"] else ("torch",):
            stream = sl.stream(network, threshold, norm=norm, backend=backend)
            for index, frame in enumerate(video(network.shape, 6, seed)):
                if index == 3:
                    for name in stream.thresholds:
                        stream.thresholds[name] *= rng.choice([0, 0.3, 1, 2])
                stream(frame + rng.choice([0, 0.02]) * torch.randn(network.shape))
                if index:
                    oracle.assert_within(executor_of(stream), absolute_thresholds(stream), norm, f"seed {seed}, {backend}, frame {index}")


# -- law 3: see benchmarks; here only that the report says so ---------------------------------------------------------------------


@both_executors
def test_law_3_everything_new_costs_what_dense_costs(backend: Backend) -> None:
    stream = sl.stream(net(), backend=backend.name)
    stream(torch.randn(SHAPE))
    stream(torch.randn(SHAPE))
    assert stream.stats.last.macs_done == stream.stats.last.macs_dense
    assert stream.stats.total.macs_share == 1.0


# -- law 4: nothing of the caller's is touched ------------------------------------------------------------------------------------


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
    "a value and its slice": lambda x: [y := F.relu(x), y[:, :1], y],
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


# -- law 5: bad frames ------------------------------------------------------------------------------------------------------------


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
    model = small(backend.dtype)
    stream, twin = (sl.stream(model, threshold, backend=backend.name) for _ in range(2))
    frames = video(SHAPE, 4, 1, backend.dtype)
    for frame in frames[:2]:
        stream(frame)
        twin(frame)
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


# -- law 6: independence ----------------------------------------------------------------------------------------------------------


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


# -- law 7: what is slower than it could be is said -------------------------------------------------------------------------------


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
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env={**os.environ, **environment}, check=False
    )


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
