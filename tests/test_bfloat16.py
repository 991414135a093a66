"""Streams in bfloat16: what goes in and comes out, what it costs, what is said of it.

What belongs here: bfloat16 as a user of `stream` meets it. Every layer in bfloat16 is in test_native.py, random networks in test_fuzz.py,
the laws in test_laws.py.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import oracle
import sightline as sl
from cases import Apply
from networks import video
from sightline import kernels
from sightline.errors import BackendError, FrameError
from sightline.graph.capture import capture
from sightline.graph.lower import lower
from sightline.graph.native import NativeExecutor
from sightline.graph.plan import make_plan
from streams import SHAPE, dense, executor_of, net

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(not kernels.native_status()["available"], reason=str(kernels.native_status()["reason"]))


@pytest.mark.parametrize("opaque", [False, True], ids=["all rules", "with a torch step"])
def test_a_float32_model_is_computed_in_bfloat16(opaque: bool) -> None:
    """Outputs are bfloat16 and as exact as PyTorch's in bfloat16; the model stays as it was."""
    model = net(opaque)
    before = copy.deepcopy(model.state_dict())
    stream = sl.stream(model, backend="native", dtype=BF16)
    for index, frame in enumerate(video(SHAPE, 5, 1)):
        got = stream(frame)
        assert {value.dtype for value in oracle.tensors(got)} == {BF16}
        wanted = dense(copy.deepcopy(model).to(BF16), frame.to(BF16))
        oracle.assert_law(got, wanted, dense(copy.deepcopy(model).double(), frame.double()), f"frame {index}")
        oracle.assert_bits_equal(_plus_zero(got), _plus_zero(stream.clone()(frame)), "its own dense run")
        assert index == 0 or 0 < stream.stats.last.macs_share < 0.9
    oracle.assert_bits_equal(model.state_dict(), before)


def _plus_zero(value: object) -> list[Tensor]:
    return [tensor + 0 for tensor in oracle.tensors(value)]


def test_frames_are_rounded_before_they_are_compared() -> None:
    """float32, float64 and bfloat16 frames that round alike give the same bits, and a change that rounds away is none."""
    model = nn.Sequential(nn.Conv2d(3, 7, 3, 2), nn.SiLU(), nn.Conv2d(7, 20, 3)).eval()
    frames = video(SHAPE, 4, 2)
    results = {}
    for dtype in (torch.float32, BF16, torch.float64):
        stream = sl.stream(copy.deepcopy(model).to(BF16).to(dtype), backend="native", dtype=BF16)
        results[dtype] = [stream(frame.to(BF16).to(dtype)) for frame in frames]
        assert stream.stats.last.macs_share < 1
    oracle.assert_bits_equal(results[BF16], results[torch.float32])
    oracle.assert_bits_equal(results[torch.float64], results[torch.float32])
    stream = sl.stream(model, dtype=BF16)
    frame = frames[0].to(BF16).float()
    stream(frame)
    stream(frame * (1 + 2**-12))
    assert stream.stats.last.macs_done == 0
    stream(frame * (1 + 2**-6))
    assert stream.stats.last.macs_done > 0


def test_other_models_can_be_computed_in_float32() -> None:
    """The reverse: weights and frames of another type, computed in float32."""
    model = net(opaque=True).to(BF16)
    for dtype in (BF16, torch.float64):
        model = model.to(dtype)
        stream = sl.stream(model, backend="native", dtype=torch.float32)
        for frame in video(SHAPE, 3, 1, dtype):
            got = stream(frame)
            oracle.assert_law(got, dense(copy.deepcopy(model).float(), frame.float()), dense(copy.deepcopy(model).double(), frame.double()))


@pytest.mark.parametrize("frame", ["strided", "channels last", "planes apart"])
def test_strided_frames(frame: str) -> None:
    """Rows of a float32 frame are rounded plane by plane, wherever they lie."""
    model = nn.Conv2d(3, 5, 3, padding=1)
    makers: dict[str, Callable[[], Tensor]] = {
        "strided": lambda: torch.randn(2, 3, 40, 60)[:, :, 3:29, 11:33],
        "channels last": lambda: torch.randn(SHAPE).to(memory_format=torch.channels_last),
        "planes apart": lambda: torch.randn(2, 6, 26, 22)[:, ::2],
    }
    stream = sl.stream(model, dtype=BF16)
    for _ in range(2):
        given = makers[frame]()
        oracle.assert_bits_equal(stream(given), sl.stream(model, dtype=BF16)(given.contiguous()))


@pytest.mark.parametrize("noise", ["vote", "block"])
@pytest.mark.parametrize("norm", ["rms", "max", "l2"])
def test_input_thresholds_and_noise(noise: str, norm: str) -> None:
    """Which pixels count is what the torch executor says, where no distance lies at the threshold."""
    base = torch.randn(SHAPE)
    streams = [
        sl.stream(nn.ReLU(), 0.5, threshold_unit="absolute", norm=norm, noise=noise, backend=backend, dtype=BF16)
        for backend in ("native", "torch")
    ]
    for step in range(3):
        frame = base.clone()
        frame[:, :, 4 + step : 12, 3:9] += 2.0
        masks = []
        for stream in streams:
            stream(frame + 0.01 * step)
            masks.append(stream.last_sites())
        assert torch.equal(*masks)
        assert step == 0 or 0 < int(masks[0].sum()) < masks[0].numel()


def test_state_and_weights_halve() -> None:
    """Maps and convolution weights; masks do not."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.MaxPool2d(2)).eval()
    full, half = sl.stream(model, scene_cuts=False), sl.stream(model, dtype=BF16, scene_cuts=False)
    for stream in (full, half):
        stream(torch.rand(1, 3, 64, 64))
    maps = [{k: v for k, v in s.memory()["tensors"].items() if k not in {"masks and scratch", "returned outputs"}} for s in (full, half)]
    assert maps[0].keys() == maps[1].keys()
    assert all(2 * maps[1][name] == size for name, size in maps[0].items())
    assert half.memory()["shared_weights"] < 0.55 * full.memory()["shared_weights"]
    assert half.memory()["total"] < 0.7 * full.memory()["total"]


def test_a_value_that_rounds_to_infinity_is_a_bad_frame() -> None:
    stream = sl.stream(net(), dtype=BF16)
    frames = video(SHAPE, 2, 1)
    stream(frames[0])
    bad = frames[1].clone()
    bad[0, 1, 5, 7] = 3.4e38  # finite in float32 only
    with pytest.raises(FrameError, match="nan_to_num"):
        stream(bad)
    oracle.assert_bits_equal(_plus_zero(stream(frames[1])), _plus_zero(sl.stream(net(), dtype=BF16)(frames[1])))


def test_infinities_inside_stay_where_they_are() -> None:
    """An overflow in one channel must not leak into pixels or channels that do not read it, nor into an odd last pair."""
    spread, same, last = nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.Conv2d(3, 2, 3, padding=1)
    spread.weight.data[:] = torch.tensor([1.0, 1e30, 1.0])[:, None, None, None]
    last.weight.data[0, 1] = 0
    last.weight.data[0, 1, 1, 1] = 1
    model = nn.Sequential(spread, same, last).eval()
    frame = torch.ones(1, 1, 9, 9)
    frame[0, 0, 4, 4] = 1e30
    for dtype in (torch.float32, BF16):
        got = sl.stream(model, dtype=dtype)(frame).float()
        outside = torch.ones(9, 9, dtype=torch.bool)
        outside[3:6, 3:6] = False
        assert got[0, :, outside].isfinite().all()
        assert not got[0, 0, 4, 4].isfinite()


def test_float16_that_is_asked_for_runs_on_torch_or_says_why_not() -> None:
    frame = torch.rand(1, 3, 8, 8)
    model = nn.Conv2d(3, 4, 3)
    stream = sl.stream(model, dtype=torch.float16)
    assert stream(frame).dtype == torch.float16
    assert stream.explain().rows[1]["executor"] == "torch"
    with pytest.raises(BackendError, match=r"float16.*float32 or bfloat16"):
        sl.stream(model, dtype=torch.float16, backend="native")(frame)
    assert sl.stream(copy.deepcopy(model).half(), backend="native", dtype=BF16)(frame.half()).dtype == BF16


def test_it_is_said_whether_it_is_emulated() -> None:
    stream = sl.stream(net(), dtype=BF16)
    stream(torch.randn(SHAPE))
    status = kernels.native_status()["bfloat16"]
    assert stream.explain().rows[0]["note"] == f"bfloat16, {status}"
    assert ("emulated" in status) == kernels.native().emulates_bfloat16(kernels.isa())  # type: ignore[union-attr]
    for isa in ("avx2", "baseline"):
        if isa in kernels.native_status()["isas"]:
            assert kernels.native().emulates_bfloat16(isa)  # type: ignore[union-attr]
    plain = sl.stream(net())
    plain(torch.randn(SHAPE))
    assert not plain.explain().rows[0]["note"]


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_a_forced_instruction_set_emulates(isa: str, tmp_path: Path) -> None:
    """In a process of its own, as a user would force it; results agree with this process's up to rounding."""
    if isa not in kernels.native_status()["isas"]:
        pytest.skip(f"this CPU has no {isa}")
    code = f"""
import json, torch, sightline as sl
from sightline.cli.doctor import executors
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 9, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(9, 4, 3)).eval()
stream = sl.stream(model, dtype=torch.bfloat16, backend="native")
frame = torch.rand(1, 3, 20, 20)
stream(frame)
frame[:, :, 5:9, 5:9] += 1
got = stream(frame)
torch.save((model.state_dict(), frame, got), {str(tmp_path / "result.pt")!r})
print(json.dumps([stream.explain().rows[0]["note"], executors()[1]["reason"], torch.equal(got, stream.clone()(frame))]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env={**os.environ, "SIGHTLINE_ISA": isa}, check=False
    )
    assert run.returncode == 0, run.stderr
    note, reason, equal = json.loads(run.stdout)
    assert "emulated" in note and "bfloat16 emulated" in reason and f"instruction set {isa}" in reason and equal
    state, frame, got = torch.load(tmp_path / "result.pt")
    model = nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 4, 3)).eval()
    model.load_state_dict(state)
    wanted = dense(copy.deepcopy(model).to(BF16), frame.to(BF16))
    oracle.assert_law(got, wanted, dense(copy.deepcopy(model).double(), frame.double()))


def test_instruction_sets_agree_up_to_rounding() -> None:
    """Products by instruction and by emulation differ in the order of additions only."""
    model = nn.Sequential(nn.Conv2d(3, 33, 7, 2, 3), nn.SiLU(), nn.Conv2d(33, 20, 3, groups=1, padding=1)).eval()
    frame = torch.randn(1, 3, 24, 22)
    plan = make_plan(capture(model, frame))
    module = kernels.native()
    assert module is not None
    values = []
    for isa in module.usable_isas():
        executor = NativeExecutor(lower(plan, module, isa, BF16), "rms", None)
        executor.run(frame)
        values.append(executor.value(plan.graph.outputs[0]).float())  # type: ignore[attr-defined]
    for value in values[1:]:
        assert float((value - values[0]).abs().max()) <= 2**-7 * float(values[0].abs().max())


def test_constants_and_torch_steps_meet_bfloat16() -> None:
    """Constants of the model that no native step takes are rounded too, or PyTorch would make float32 of what they meet."""
    model = Apply(lambda x, f, g: (f(x).flatten(2) @ g.weight).cumsum(-1) * 2, nn.Conv2d(3, 5, 3, padding=1), nn.Linear(7, 30)).eval()
    stream = sl.stream(model, backend="native", dtype=BF16)
    for frame in video((1, 3, 5, 6), 3, 1):
        got = stream(frame)
        assert got.dtype == BF16
        oracle.assert_law(got, dense(copy.deepcopy(model).to(BF16), frame.to(BF16)), dense(copy.deepcopy(model).double(), frame.double()))


def test_parts_of_a_model_compute_in_bfloat16() -> None:
    """What stands between the parts keeps the model's own type, and so do its outputs."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
            self.head = nn.Conv2d(8, 4, 3)
            self.scale = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(self.trunk(x) + 0.25)
            result: Tensor = self.scale(y.mean((2, 3)))
            return result if float(y.amax()) < 1e6 else result * 0

    model = Detector().eval()
    stream = sl.stream(model, dtype=BF16)
    for frame in video((1, 3, 16, 18), 3, 1):
        got = stream(frame)
        assert got.dtype == torch.float32
        wanted = dense(model, frame)
        assert 0 < oracle.error(got, wanted) < 0.02
    assert {row["executor"] for row in stream.explain().rows if row["op"] == "conv2d"} == {"native"}


def test_clones_share_weights_and_give_the_same_bits() -> None:
    stream = sl.stream(net(), 0.02, dtype=BF16)
    frames = video(SHAPE, 4, 3)
    first = [stream(frame) for frame in frames]
    twin = stream.clone()
    oracle.assert_bits_equal([twin(frame) for frame in frames], first)
    assert twin.memory()["shared_weights"] == stream.memory()["shared_weights"]
    assert executor_of(twin)._lowered is executor_of(stream)._lowered  # type: ignore[attr-defined]


def test_deep_sums_are_as_exact_as_plain_pytorch() -> None:
    """Root mean square error over thousands of products: rounding of the result must be all that is seen."""
    for kernel, channels in ((1, 2048), (3, 63), (3, 512), (5, 129)):
        model = nn.Conv2d(channels, 32, kernel).eval().to(BF16)
        frame = torch.randn(1, channels, 8, 8).to(BF16)
        with torch.no_grad():
            exact, plain = copy.deepcopy(model).double()(frame.double()), model(frame)
        got = sl.stream(model)(frame)
        ours, theirs = (float((value.double() - exact).square().mean().sqrt()) for value in (got, plain))
        assert ours <= 1.1 * theirs, f"{kernel}x{kernel} of {channels} channels: {ours / theirs:.2f} times the error"
