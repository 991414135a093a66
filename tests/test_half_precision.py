"""float16 models and frames: computed natively in float32, or on the torch executor in float16; outputs are float16 either way.

What belongs here: float16, and which combinations of element types are taken. bfloat16 alone is in test_bfloat16.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import sightline as sl
from cases import CASES, Case
from networks import video
from sightline import kernels
from sightline.errors import BackendError, DTypeError, FrameError
from sightline.stream import Stream
from streams import SHAPE, dense, net
from test_partial import Detector

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
NATIVE = kernels.native_status()["available"]
native_only = pytest.mark.skipif(not NATIVE, reason=str(kernels.native_status()["reason"]))


def outputs_of(value: Any) -> set[torch.dtype]:
    return {tensor.dtype for tensor in oracle.tensors(value)}


# model, frame, `dtype`, backend -> executor and type of the outputs, or what the error says
COMBINATIONS: list[tuple[torch.dtype, torch.dtype, torch.dtype | None, str, tuple[str, torch.dtype] | str]] = [
    (F16, F16, None, "auto", ("native", F16)),
    (F16, F16, None, "native", ("native", F16)),
    (F16, F16, None, "torch", ("torch", F16)),
    (F16, F16, F32, "auto", ("native", F32)),
    (F16, F16, BF16, "auto", ("native", BF16)),
    (F16, F16, F16, "auto", ("torch", F16)),
    (F16, F16, F16, "native", "computes in float32 or bfloat16"),
    (F32, F32, F16, "auto", ("torch", F16)),
    (F32, F16, None, "auto", "`frame` is torch.float16 but the model's weights are torch.float32. Convert one of them"),
    (F16, F32, None, "auto", "`frame` is torch.float32 but the model's weights are torch.float16. Convert one of them"),
    (BF16, F16, None, "auto", "Convert one of them"),
    (BF16, BF16, None, "auto", ("native", BF16)),
    (BF16, BF16, None, "torch", ("torch", BF16)),
    (BF16, BF16, F32, "native", ("native", F32)),
    (F64, F64, None, "auto", ("torch", F64)),
    (F64, F64, F32, "native", ("native", F32)),
]


@native_only
@pytest.mark.parametrize(("model", "frame", "dtype", "backend", "result"), COMBINATIONS, ids=lambda v: str(v).removeprefix("torch.")[:30])
def test_which_types_go_where(model: torch.dtype, frame: torch.dtype, dtype: torch.dtype | None, backend: str, result: Any) -> None:
    network = net().to(model)
    picture = video(SHAPE, 1)[0].to(frame)
    if isinstance(result, str):
        with pytest.raises((DTypeError, BackendError), match=result):
            sl.stream(network, dtype=dtype, backend=backend)(picture)
        return
    stream = sl.stream(network, dtype=dtype, backend=backend)
    assert outputs_of(stream(picture)) == {result[1]}
    assert stream._executor is not None
    assert stream._executor.name == result[0]


@pytest.mark.parametrize("opaque", [False, True], ids=["all rules", "with a torch step"])
@pytest.mark.parametrize("backend", [pytest.param("native", marks=native_only), "torch"])
def test_streaming_a_float16_model(backend: str, opaque: bool) -> None:
    model = net(opaque).to(F16)
    before = copy.deepcopy(model.state_dict())
    stream = sl.stream(model, backend=backend)
    for index, frame in enumerate(video(SHAPE, 5, 1, F16)):
        kept = frame.clone()
        got = stream(frame)
        truth = dense(copy.deepcopy(model).double(), frame.double())
        oracle.assert_law(got, dense(model, frame), truth, f"frame {index}")
        if backend == "native":
            oracle.assert_bits_equal(got, stream.clone()(frame), "its own dense run")
            plain = dense(copy.deepcopy(model).float(), frame.float())
            for ours, wide, exact in zip(*map(oracle.tensors, (got, plain, truth)), strict=True):
                rounded = (wide.half().double() - exact).abs().max()
                assert (ours.double() - exact).abs().max() <= 1.1 * rounded + 1e-6, "no worse than float32, rounded once"
        assert torch.equal(kept, frame)
        assert index == 0 or 0 < stream.stats.last.macs_share < 0.9
    stream(frame)
    assert stream.stats.last.macs_done == 0
    oracle.assert_bits_equal(model.state_dict(), before)


@native_only
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_layer(case: Case) -> None:
    model = case.model().to(F16)
    frames = video(case.shape, 3, 1, F16)
    try:
        wanted = [dense(model, frame) for frame in frames]
    except RuntimeError as error:
        pytest.skip(f"PyTorch itself: {error}")
    stream = sl.stream(model, backend="native")
    for frame, plain in zip(frames, wanted, strict=True):
        oracle.assert_law(stream(frame), plain, dense(copy.deepcopy(model).double(), frame.double()), case.name)


@native_only
def test_what_is_said_of_it() -> None:
    stream = sl.stream(nn.Conv2d(3, 4, 3).to(F16), example=torch.zeros(SHAPE, dtype=F16))
    assert stream.explain().rows[0]["note"] == "float16, computed in float32"


def test_bad_frames_leave_the_stream_as_it_was() -> None:
    model = net().to(F16)
    stream = sl.stream(model)
    frame = video(SHAPE, 1, 1, F16)[0]
    first = stream(frame)
    with pytest.raises(FrameError):
        stream(torch.full(SHAPE, 70000.0).to(F16))  # Inf
    with pytest.raises(DTypeError):
        stream(frame.float())
    oracle.assert_bits_equal(stream(frame), first)
    assert stream.stats.last.macs_done == 0


def test_parts_of_a_model() -> None:
    """What runs between streamed parts sees float16, as in the model."""
    model = Detector().eval().to(F16)
    frame = torch.rand(1, 3, 32, 32).to(F16)
    stream: Stream = sl.stream(model)
    with torch.no_grad():
        want = model(frame)
    got = stream(frame)
    assert outputs_of(got) == outputs_of(want)
    for ours, theirs in zip(oracle.tensors(got), oracle.tensors(want), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.02, atol=0.02)


def test_thresholds_and_values_that_only_float32_holds() -> None:
    """A sum beyond 65504 does not overflow inside; what is returned does."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)).to(F16)
    with torch.no_grad():
        model[0].weight.fill_(1000.0)  # type: ignore[operator]
        model[1].weight.fill_(0.001)  # type: ignore[operator]
    frame: Tensor = torch.full((1, 1, 4, 4), 100.0, dtype=F16)
    with torch.no_grad():
        assert torch.isinf(model(frame)).all()
    if NATIVE:
        torch.testing.assert_close(sl.stream(model)(frame), torch.full_like(frame, 100.0), rtol=2e-3, atol=0.0)
    stream = sl.stream(model, 0.5, threshold_unit="absolute")
    stream(frame)
    stream(frame + 0.25)
    assert stream.stats.last.macs_done == 0
