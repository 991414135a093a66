"""DeltaCNN's names: documented examples run unchanged, exact at threshold 0, on any size, with good and bad input."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oracle
import sightline as sl
from deltacnn_networks import (
    LAYOUT,
    NETWORK,
    NORMALIZE,
    SIMPLIFIED,
    Plain,
    Small,
    assert_exact,
    executed,
    fresh_layers,
    video,
)
from sightline.compat import deltacnn
from sightline.compat.deltacnn import (
    DCActivation,
    DCAdd,
    DCBackend,
    DCBatchNorm2d,
    DCConv2d,
    DCConvTranspose2d,
    DCDensify,
    DCMaxPooling,
    DCModule,
    DCSparsify,
    DCThreshold,
    process_filters,
)
from sightline.errors import DTypeError, FrameError, ShapeError


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield from fresh_layers()


# -- its documented examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "registered"), [(NETWORK, 4), (SIMPLIFIED, 3)])
def test_the_seeds_networks_take_plain_weights_and_equal_the_plain_network(code: str, registered: int) -> None:
    plain = Plain().eval()
    used: list[nn.Module] = []

    def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
        model.load_state_dict(weights)
        used.append(model)

    frames = video()
    network = executed(code)["CNN"]
    scope = executed(
        LAYOUT, MyDCModel=network, load_weights=load_weights, weights_path=plain.state_dict(), video=frames, device="cpu", torch=torch
    )
    model = used[0]
    assert isinstance(model, DCModule) and model.stream is not None
    assert set(model.state_dict()) == set(plain.state_dict())
    with torch.no_grad():
        oracle.assert_law(scope["out"], plain(frames[-1]), copy.deepcopy(plain).double()(frames[-1].double()))
    assert len(DCThreshold.t) == registered
    assert 0 < model.stream.stats.last.macs_share < 1
    model(frames[-1])
    assert model.stream.stats.last.macs_done == 0


def test_the_seeds_custom_operation_in_the_middle_of_a_network() -> None:
    normalize = executed(NORMALIZE)["Normalize"]

    class Net(DCModule):
        def __init__(self) -> None:
            super().__init__()
            self.conv = DCConv2d(3, 4, 3, activation="relu")
            self.normalize = normalize()
            self.last = DCConv2d(4, 2, 3, dense_out=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.normalize(self.conv(x)))  # type: ignore[no-any-return]

    model = Net()
    with torch.no_grad():
        for frame in video():
            got = model(frame)
            x = F.relu(F.conv2d(frame, model.conv.weight, model.conv.bias))
            torch.testing.assert_close(got, F.conv2d(x / x.max(), model.last.weight, model.last.bias))
    assert list(DCThreshold.t) == [model.conv.activation, model.normalize.sparsify]


# -- exact at threshold 0 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threshold_zero_is_exact(dtype: torch.dtype) -> None:
    model = Small().to(dtype)
    assert_exact(model, video(5, dtype=dtype, batch=2))
    assert model.stream is not None and model.stream.stats.last.macs_share < 1
    assert model.stream._plan is not None
    assert not any(step.head.op == "torch" for step in model.stream._plan.steps)  # every threshold is the stream's own


def test_channels_last_strided_and_half_precision_frames() -> None:
    frames = video(3)
    model = Small()
    wanted = [model(frame) for frame in frames]
    model.reset_layers()
    for frame, want in zip(frames, wanted, strict=True):
        wide = torch.zeros(1, 3, 24, 40)
        wide[..., ::2] = frame
        oracle.assert_bits_equal(model(wide[..., ::2].contiguous(memory_format=torch.channels_last)), want)
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(model).to(dtype)
        for frame, want in zip(frames, wanted, strict=True):
            for got, value in zip(half(frame.to(dtype)), want, strict=True):
                assert got.dtype == dtype
                torch.testing.assert_close(got.float(), value, atol=0.05, rtol=0.05)
        half(frame.to(dtype))
        assert half.stream is not None and half.stream.stats.last.density["input"] == 0  # a static frame


def test_several_resolutions_and_batch_sizes_and_reset() -> None:
    model = Small()
    one, other, wide = video(3), video(3, (30, 26)), video(3, batch=2)
    for frames in zip(one, other, wide, strict=True):  # interleaved
        assert_exact(model, list(frames))
    assert model.stream is not None and model.stream.stats.last.macs_share < 1  # each size is a video of its own
    assert model.get_temp_buffer_numel() > 0
    model.reset_layers()
    assert_exact(model, [other[2]])
    assert model.stream.stats.last.macs_share == 1
    model.reset()
    for size in range(24, 24 + 2 * 6, 2):
        model(torch.rand(1, 3, size, size))
    assert len(model.__dict__["_runner"]._programs) == 4


def test_inputs_outputs_and_copies_are_independent() -> None:
    model = Small()
    frame = video(1)[0]
    before = frame.clone()
    first = model(frame)
    kept = [value.clone() for value in first]
    for value in first:
        value.zero_()
    assert torch.equal(frame, before)
    oracle.assert_bits_equal(model(frame), kept)
    twin = copy.deepcopy(model)
    assert twin.stream is None and model.stream is not None
    twin.conv1.weight.data.zero_()
    twin(frame)
    oracle.assert_bits_equal(model(frame), kept)


def test_new_weights_are_seen() -> None:
    model, frames = Small(), video(3)
    model(frames[0])
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})
    assert_exact(model, [frames[0]])
    with torch.no_grad():
        model.conv1.weight.mul_(2)
    assert_exact(model, [frames[1]])
    model.conv3.bias = nn.Parameter(torch.ones(8))
    assert_exact(model, [frames[2]])


def test_layers_called_twice_and_used_twice_keep_bias_and_values() -> None:
    class Shared(DCModule):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.add = DCConv2d(3, 3, 3, padding=1), DCActivation(inplace=True), DCAdd()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y = self.add(y, self.act(y))
            return self.act(self.conv(y))  # type: ignore[no-any-return]

    model = Shared()
    nn.init.ones_(model.conv.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        for frame in video():
            got = model(frame)
            y = model.conv._conv_forward(frame, model.conv.weight, model.conv.bias)
            torch.testing.assert_close(got, F.relu(model.conv._conv_forward(y + F.relu(y), model.conv.weight, model.conv.bias)))
    assert list(DCThreshold.t) == [model.act]


def test_backend_switches_to_dense_with_gradients_and_back() -> None:
    model, frames = Small(), video(3)
    streamed = model(frames[0])
    DCConv2d.backend = DCBackend.cudnn
    dense = model(frames[0])
    torch.testing.assert_close(dense, streamed)
    dense[0].sum().backward()
    assert model.conv1.weight.grad is not None
    DCConv2d.backend = DCBackend.delta_cudnn
    assert_exact(model, frames[1:])
    DCConv2d.backend = "cudnn"  # type: ignore[assignment]
    with pytest.raises(DTypeError, match="DCBackend"):
        model(frames[0])


def test_it_is_an_ordinary_model_for_others() -> None:
    model, frames = Small(), video(2)
    stream = sl.stream(model)
    for frame in frames:
        with torch.no_grad():
            torch.testing.assert_close(stream(frame), model.dense(frame))
    assert not len(DCThreshold.t)


# -- what cannot be streamed ------------------------------------------------------------------------------------------------------


class Branching(DCModule):
    """Its forward depends on values, so that no capture can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.sparsify, self.drop = DCSparsify(delta_threshold=0.2), nn.Dropout(0.9)
        self.conv = DCConv2d(3, 4, 3, activation="relu", delta_threshold=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.sparsify(x))
        return self.drop(x) if float(x.sum()) > 0 else x


def test_a_network_that_cannot_be_captured_runs_densely_with_its_thresholds() -> None:
    model, frames = Branching(), video(4, noise=0.1)
    held: list[Tensor | None] = [None, None]

    def publish(index: int, value: Tensor, limit: float) -> Tensor:
        old = held[index]
        held[index] = value = value if old is None else torch.where((value - old).abs().amax(1, keepdim=True) > limit, value, old)
        return value

    for index, frame in enumerate(frames):
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            got = model(frame)
            x = publish(0, frame, 0.2)
            want = publish(1, F.relu(F.conv2d(x, model.conv.weight, model.conv.bias)), 0.1)
        assert [w.category for w in caught] == [RuntimeWarning] * (index == 0)  # once, and no other
        assert index or ("without any saving" in str(caught[0].message) and "Branching" in str(caught[0].message))
        torch.testing.assert_close(got, want)
    assert model.stream is None and model.training
    assert list(DCThreshold.t.values()) == [0.2, 0.1]
    model.reset_layers()
    torch.testing.assert_close(model(frames[0]), F.relu(F.conv2d(frames[0], model.conv.weight, model.conv.bias)))


def test_several_inputs_run_densely() -> None:
    class Two(DCModule):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.add = DCSparsify(), DCSparsify(), DCAdd()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.add(self.a(x), self.b(y))  # type: ignore[no-any-return]

    model, x = Two(), torch.rand(1, 2, 4, 4)
    with pytest.warns(RuntimeWarning, match="something else than one tensor"):
        assert torch.equal(model(x, x), x + x)
    with pytest.raises(FrameError):
        model(x, x / 0)
    assert torch.equal(model(x, y=x), x + x)


def test_parts_of_an_ordinary_module_are_streams_of_their_own() -> None:
    parts = nn.Sequential(DCSparsify(delta_threshold=0.2), DCConv2d(3, 4, 3, activation="relu"), DCMaxPooling(2, 2), DCDensify())
    frames = video(3, noise=0.03)
    still = frames[0].clone()
    for frame in frames:
        still = torch.where((frame - still).abs().amax(1, keepdim=True) > 0.2, frame, still)
        conv: Any = parts[1]
        with torch.no_grad():
            torch.testing.assert_close(parts(frame), F.max_pool2d(F.relu(F.conv2d(still, conv.weight, conv.bias)), 2))
    assert conv.stream.stats.last.macs_share < 0.7
    a = torch.rand(1, 4, 5, 5)
    assert torch.equal(DCAdd()(a, a), a + a)  # nothing to save, nothing to warn of


# -- bad input --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (torch.rand(3, 24, 20), ShapeError),
        (torch.rand(1, 3, 0, 20), ShapeError),
        (torch.zeros(1, 3, 24, 20, dtype=torch.uint8), DTypeError),
        (torch.rand(1, 3, 24, 20).double(), DTypeError),
        ("frame", DTypeError),
        (torch.full((1, 3, 24, 20), math.nan), FrameError),
        (torch.full((1, 3, 24, 20), math.inf), FrameError),
        (torch.rand(1, 5, 24, 20), RuntimeError),
    ],
)
def test_bad_frames_leave_the_model_usable(frame: Any, error: type[Exception]) -> None:
    model, frames = Small(), video(2)
    for good in frames:
        with pytest.raises(error):  # and no warning: they are errors
            model(frame)
        assert_exact(model, [good])
    assert model.stream is not None and model.stream.stats.last.macs_share < 1


def test_bad_arguments() -> None:
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: DCSparsify(dilation=4), ValueError, "odd"),
        (lambda: DCActivation(activation="gelu"), ValueError, "relu6"),
        (lambda: DCConv2d(3, 4, 3, activation="elu"), ValueError, "relu6"),
        (lambda: DCActivation(truncation_mode=7), ValueError, "DCTruncation"),
        (lambda: DCBatchNorm2d(3, track_running_stats=False), ValueError, "track_running_stats"),
        (lambda: process_filters("model"), DTypeError, "Module"),  # type: ignore[arg-type]
        (lambda: DCConv2d(3, 4, 3, frobnicate=1), TypeError, "frobnicate"),  # type: ignore[call-arg]
    ]
    for action, error, message in cases:
        with pytest.raises(error, match=message):
            action()


def test_filters_that_the_original_has_reordered_are_taken() -> None:
    conv, other = DCConv2d(3, 8, 3), DCConv2d(3, 8, 3)
    state = {name: value.clone() for name, value in conv.state_dict().items()}
    state["weight"] = state["weight"].permute(1, 2, 3, 0).contiguous()
    other.load_state_dict(state)
    assert torch.equal(other.weight, conv.weight)
    conv.process_filters()
    process_filters(conv)
    assert torch.equal(other.weight, conv.weight)
    with pytest.raises(DTypeError, match="process_filters"):
        DCConv2d(3, 8, 3).half().load_state_dict({name: value.half() for name, value in state.items()})
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict({**state, "weight": torch.zeros(8, 4, 3, 3)})


def test_transposed_convolutions_and_other_paddings() -> None:
    class Up(DCModule):
        def __init__(self) -> None:
            super().__init__()
            self.conv = DCConv2d(3, 4, 3, padding=(1, 2, 0, 1), padding_mode="reflect", activation="relu")
            self.up = DCConvTranspose2d(4, 2, 4, 2, 1, activation="sigmoid", dense_out=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.conv(x))  # type: ignore[no-any-return]

    model = Up()
    with torch.no_grad():
        for frame in video(3):
            x = F.relu(F.conv2d(F.pad(frame, (1, 2, 0, 1), "reflect"), model.conv.weight, model.conv.bias))
            torch.testing.assert_close(model(frame), torch.sigmoid(F.conv_transpose2d(x, model.up.weight, model.up.bias, 2, 1)))


def test_every_name_is_there() -> None:
    assert all(hasattr(deltacnn, name) for name in deltacnn.__all__)
    assert deltacnn.__doc__ is not None and "What the original does wrong" in deltacnn.__doc__
