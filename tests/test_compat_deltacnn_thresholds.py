"""DeltaCNN's thresholds: what each of them does, their files, and the documented tuning loop."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oracle
from deltacnn_networks import (
    LOADING,
    SIMPLIFIED,
    TUNING,
    Plain,
    Small,
    executed,
    fresh_layers,
    reference,
    video,
)
from sightline.compat.deltacnn import (
    DCActivation,
    DCBackend,
    DCBatchNorm2d,
    DCConcatenate,
    DCConv2d,
    DCDensify,
    DCModule,
    DCSparsify,
    DCThreshold,
    DCTruncation,
)
from sightline.errors import BackendError, MediaError
from sightline.thresholds import ThresholdError


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield from fresh_layers()


# -- thresholds -------------------------------------------------------------------------------------------------------------------


def test_every_threshold_does_what_the_original_does() -> None:
    model, frames = Small(delta_threshold=0.05), video(6, noise=0.02)
    DCThreshold.t_default = 0.06
    limits = {"sparsify": 0.05, "relu1": 0.06, "conv2": 0.06, "conv3": 0.06}
    for frame, want in zip(frames, reference(model, frames, limits), strict=True):
        torch.testing.assert_close(list(model(frame)), want)
    assert model.stream is not None
    assert model.stream.stats.last.macs_share < 0.9
    assert list(DCThreshold.t.values()) == list(limits.values())
    exact = model.dense(frames[-1])[0]
    assert (model(frames[-1])[0] - exact).abs().max() > 1e-4  # the thresholds did something


@pytest.mark.parametrize("layer", ["sparsify", "relu1", "conv2", "conv3"])
def test_one_threshold_alone(layer: str) -> None:
    model, frames = Small(), video(4, noise=0.02)
    getattr(model, layer).delta_threshold = 0.1
    limits = {name: 0.1 if name == layer else 0.0 for name in ("sparsify", "relu1", "conv2", "conv3")}
    off = 0.0
    for frame, want in zip(frames, reference(model, frames, limits), strict=True):
        torch.testing.assert_close(list(model(frame)), want)
        off = max(off, oracle.error(want[0], model.dense(frame)[0]))
    assert off > 1e-4


class Mode(DCModule):
    """One activation of a mode between two convolutions, and one at the end, which only a `Hold` can truncate."""

    def __init__(self, mode: DCTruncation | int | None, dilation: int = -1) -> None:
        super().__init__()
        self.sparsify = DCSparsify(dilation=dilation)
        self.conv = DCConv2d(3, 6, 1)
        self.act = DCActivation(activation="relu", truncation_mode=mode)
        self.last = DCConv2d(6, 4, 1)
        self.end = DCActivation(activation="sigmoid", truncation_mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last(self.act(self.conv(self.sparsify(x)))))  # type: ignore[no-any-return]


SIZES: dict[Any, Callable[[Tensor], Tensor]] = {
    DCTruncation.max: lambda d: d.abs().amax(1, keepdim=True),
    DCTruncation.norm: lambda d: d.square().sum(1, keepdim=True).sqrt(),
    DCTruncation.rms: lambda d: d.square().mean(1, keepdim=True).sqrt(),
    DCTruncation.none: lambda d: torch.full_like(d[:, :1], math.inf),
}


@pytest.mark.parametrize("mode", list(SIZES), ids=str)
@pytest.mark.parametrize("dilation", [-1, 5])
def test_modes_and_dilation(mode: DCTruncation, dilation: int) -> None:
    model, frames = Mode(int(mode), dilation), video(6, noise=0.03)
    model.sparsify.delta_threshold, model.act.delta_threshold, model.end.delta_threshold = 0.2, 0.08, 0.01
    held: dict[str, Tensor] = {}

    def publish(name: str, value: Tensor, limit: float, size: Callable[[Tensor], Tensor], window: int = 1) -> Tensor:
        if name in held:
            moved = F.max_pool2d(size(value - held[name]), window, 1, window // 2) > limit
            value = torch.where(moved, value, held[name])
        held[name] = value
        return value

    for frame in frames:
        with torch.no_grad():
            x = publish("sparsify", frame, 0.2, SIZES[DCTruncation.max], max(dilation, 1))
            x = publish("act", F.relu(F.conv2d(x, model.conv.weight, model.conv.bias)), 0.08, SIZES[mode])
            want = publish("end", torch.sigmoid(F.conv2d(x, model.last.weight, model.last.bias)), 0.01, SIZES[mode])
        torch.testing.assert_close(model(frame), want)
    assert len(DCThreshold.t) == 3


def test_thresholds_may_be_edited_at_any_time() -> None:
    model, frames = Mode(None), video(2, noise=0.02)
    DCThreshold.t_default = 5.0
    first = model(frames[0])
    assert torch.equal(model(frames[1]), first)  # nothing moves that far
    for value in (0.0, 1e-12):
        for layer in DCThreshold.t:
            DCThreshold.set(layer, value)
        plain = torch.sigmoid(
            model.last._conv_forward(
                F.relu(model.conv._conv_forward(frames[1], model.conv.weight, model.conv.bias)), model.last.weight, model.last.bias
            )
        )
        torch.testing.assert_close(model(frames[1]), plain)
        for layer in DCThreshold.t:
            DCThreshold.t[layer] = 5.0
        model.reset_layers()
        assert not torch.equal(model(frames[0]), plain)
        model.act.delta_threshold = 2.0
        assert DCThreshold.get(model.act) == 2.0
    DCThreshold.scale = 0.0
    torch.testing.assert_close(model(frames[1]), plain)


def test_maps_that_only_move_values_and_several_truncations_in_a_row() -> None:
    class Moves(DCModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.crop, self.again = DCSparsify(), DCSparsify(delta_threshold=0.3), DCSparsify(delta_threshold=0.6)
            self.wide, self.narrow, self.cat = DCConv2d(3, 4, 3), DCConv2d(4, 4, 1), DCConcatenate()
            self.act = DCActivation(delta_threshold=0.2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            cropped = self.again(self.crop(self.first(x)[:, :, 2:, 3:]))
            y = self.act(self.wide(cropped))
            return self.cat(y, self.narrow(y)), y, self.wide(x)

    model, frames = Moves(), video(5, noise=0.1)
    held: list[Tensor | None] = [None, None, None]

    def publish(index: int, value: Tensor, limit: float) -> Tensor:
        old = held[index]
        held[index] = value = value if old is None else torch.where((value - old).abs().amax(1, keepdim=True) > limit, value, old)
        return value

    with torch.no_grad():
        for frame in frames:
            got = model(frame)
            cropped = publish(1, publish(0, frame[:, :, 2:, 3:], 0.3), 0.6)
            y = publish(2, F.relu(model.wide._conv_forward(cropped, model.wide.weight, model.wide.bias)), 0.2)
            narrow = model.narrow._conv_forward(y, model.narrow.weight, model.narrow.bias)
            wide = model.wide._conv_forward(frame, model.wide.weight, model.wide.bias)
            torch.testing.assert_close(got, (torch.cat([y, narrow], 1), y, wide))


def test_wide_maps_inside_blocks_keep_their_thresholds() -> None:
    """The stream does not hold what lies around a large depthwise convolution; a layer with a threshold must be held."""

    class Block(DCModule):
        def __init__(self) -> None:
            super().__init__()
            self.sparsify, self.widen = DCSparsify(), DCConv2d(3, 96, 1, activation="relu6")
            self.depthwise = DCConv2d(96, 96, 3, padding=1, groups=96, activation="relu6")
            self.narrow = DCConv2d(96, 8, 1, dense_out=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.narrow(self.depthwise(self.widen(self.sparsify(x))))  # type: ignore[no-any-return]

    model, frame = Block(), torch.rand(1, 3, 64, 64)
    first = model(frame)
    assert model.stream is not None and model.stream._plan is not None
    assert not any(step.head.op == "torch" or step.inside for step in model.stream._plan.steps)
    DCThreshold.t[model.widen.activation] = 1e6  # type: ignore[index]
    assert torch.equal(model(frame + 0.5), first)
    DCThreshold.t[model.widen.activation] = 0.0  # type: ignore[index]
    DCThreshold.t[model.depthwise.activation] = 1e6  # type: ignore[index]
    model(frame)
    second = model(frame)
    assert torch.equal(model(frame + 0.5), second)


class Folds(DCModule):
    """Truncations in places that the stream would fold or fuse away: before and after a batch norm, within a gate and a scaling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.last = DCConv2d(3, 4, 3), DCBatchNorm2d(4), DCConv2d(4, 2, 3)
        self.places = nn.ModuleList(DCSparsify() for _ in range(4))
        self.gate = DCActivation(activation="sigmoid")
        assert self.bn.running_mean is not None
        self.bn.running_mean.normal_()

    def forward(self, x: Tensor, publish: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        def at(index: int, value: Tensor) -> Tensor:
            return self.places[index](value) if publish is None else publish(index, value)

        y = at(0, self.conv(x))
        y = at(1, self.bn(y))
        gate = self.gate(y) if publish is None else publish(4, torch.sigmoid(y))
        y = at(2, y * gate)
        result: Tensor = self.last(at(3, y * 0.5))
        return result


@pytest.mark.parametrize("place", range(5))
def test_nothing_is_folded_across_a_truncation(place: int) -> None:
    model, frames = Folds(), video(4, noise=0.05)
    layer: Any = [*model.places, model.gate][place]
    layer.delta_threshold = limit = 0.1
    held: dict[int, Tensor] = {}

    def publish(index: int, value: Tensor) -> Tensor:
        if index == place and index in held:
            value = torch.where((value - held[index]).abs().amax(1, keepdim=True) > limit, value, held[index])
        held[index] = value
        return value

    off = 0.0
    for frame in frames:
        got = model(frame)
        DCConv2d.backend = DCBackend.cudnn
        with torch.no_grad():
            torch.testing.assert_close(got, model.forward(frame, publish))
            off = max(off, oracle.error(got, model(frame)))
        DCConv2d.backend = DCBackend.deltacnn
    assert off > 1e-3
    assert not any(node.op == "torch" for step in model.stream._plan.steps for node in step.nodes)  # type: ignore[union-attr]


# -- files ------------------------------------------------------------------------------------------------------------------------


def test_files_have_the_originals_form_and_apply_in_call_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, frames = Small(), video(4, noise=0.02)
    model(frames[0])
    layers = [model.sparsify, model.relu1, model.conv2.activation, model.conv3.activation]
    assert list(DCThreshold.t) == layers
    for index, layer in enumerate(layers):
        DCThreshold.t[layer] = index / 8  # type: ignore[index]
    DCThreshold.save_thresholds("small")
    assert json.loads((tmp_path / "thresholds_small.json").read_text()) == {"0": 0.0, "1": 0.125, "2": 0.25, "3": 0.375}
    (tmp_path / "thresholds_new.json").write_text('{"2": 0.03, "0": 0.05, "1": 0.04, "3": 0.02}')

    class User:
        def __init__(self, model: DCModule) -> None:
            self.model = model

    twin = Small()
    del model
    gc.collect()
    DCThreshold.reset()
    scope = executed(
        LOADING, video=frames, device="cpu", torch=torch, DCThreshold=DCThreshold, threshold_path=tmp_path / "thresholds_new.json"
    )
    got = scope["run"](User(twin))
    assert [DCThreshold.t[layer] for layer in DCThreshold.t] == [0.05, 0.04, 0.03, 0.02]
    assert DCThreshold.initialized
    limits = {"sparsify": 0.05, "relu1": 0.04, "conv2": 0.03, "conv3": 0.02}
    torch.testing.assert_close(list(got), reference(twin, frames, limits)[-1])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"0": 0.1, "1": 0.1}', ThresholdError, "another network"),
        ('{"0": 0.1, "1": 0.1, "2": 0.1, "3": 0.1, "4": 0.1}', ThresholdError, "another network"),
        ('{"0": 0.1, "1": 0.1, "2": 0.1, "conv3": 0.1}', ThresholdError, "does not fit is '3'"),
        ('{"0": 0.1, "1": 0.1, "2": 0.1, "3": -1}', ValueError, "threshold '3'"),
        ('{"0": 0.1, "1": NaN, "2": 0.1, "3": 0}', ValueError, "threshold '1'"),
        ('{"0": 0.1, "1": "x", "2": 0.1, "3": 0}', MediaError, "not a DeltaCNN thresholds file"),
        ("[0, 1, 2, 3]", MediaError, "not a DeltaCNN thresholds file"),
        ("{", MediaError, "cannot read"),
        (None, MediaError, "cannot read"),
    ],
)
def test_bad_files_change_nothing(text: str | None, error: type[Exception], message: str, tmp_path: Path) -> None:
    model = Small(delta_threshold=0.7)
    model(video(1)[0])
    DCThreshold.path = tmp_path / "file.json"
    if text is not None:
        DCThreshold.path.write_text(text)
    with pytest.raises(error, match=message):
        DCThreshold.load_thresholds()
    assert list(DCThreshold.t.values()) == [0.7, 0, 0, 0]
    assert not DCThreshold.initialized


def test_files_need_a_path_and_a_first_frame(tmp_path: Path) -> None:
    with pytest.raises(ThresholdError, match="path is not set"):
        DCThreshold.load_thresholds()
    DCThreshold.path = tmp_path / "file.json"
    model = Small()
    with pytest.raises(ThresholdError, match="after the first frame"):
        DCThreshold.load_thresholds()
    with pytest.raises(ThresholdError, match="after the first frame"):
        DCThreshold.save_thresholds(str(tmp_path / "x"))
    model(video(1)[0])
    with pytest.raises(MediaError, match="Choose a writable path"):
        DCThreshold.save_thresholds(str(tmp_path / "missing" / "x"))


def test_two_models_do_not_mix_and_leave_nothing_behind(tmp_path: Path) -> None:
    one, two = Small(), Mode(None)
    one(video(1)[0]), two(video(1)[0])
    assert len(DCThreshold.t) == 7
    DCThreshold.save_thresholds(str(tmp_path / "two"), model=two)
    DCThreshold.path = tmp_path / "thresholds_two.json"
    assert json.loads(DCThreshold.path.read_text()) == {"0": 0.0, "1": 0.0, "2": 0.0}
    with pytest.raises(ThresholdError, match="model="):
        DCThreshold.load_thresholds()
    DCThreshold.load_thresholds(model=two)
    del one
    gc.collect()
    assert len(DCThreshold.t) == 3
    DCThreshold.reset()
    assert not len(DCThreshold.t)
    two(video(1)[0])
    assert list(DCThreshold.t) == [two.sparsify, two.act, two.end]


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "0.1", 1e39])
def test_bad_thresholds(value: Any) -> None:
    layer = DCSparsify()
    with pytest.raises(ValueError, match="must be"):
        DCThreshold.t[layer] = value
    with pytest.raises(ValueError, match="must be"):
        layer.delta_threshold = value
    with pytest.raises(ValueError, match="must be"):
        DCActivation(delta_threshold=value)
    DCThreshold.t_default = value
    with pytest.raises(ValueError, match="t_default"):
        DCThreshold.get(layer)


def test_only_truncating_layers_take_thresholds() -> None:
    for key in (DCDensify(), nn.ReLU(), "conv1", 0):
        with pytest.raises(ThresholdError, match="takes no threshold"):
            DCThreshold.t[key] = 0.1  # type: ignore[index]
    with pytest.raises(ThresholdError, match="no threshold yet"):
        DCThreshold.t[DCSparsify()]
    with pytest.raises(ValueError, match="does not truncate"):
        DCConv2d(1, 1, 1, activation="relu", dense_out=True).delta_threshold = 0.1
    with pytest.raises(BackendError, match="tune them"):
        DCThreshold.create_trainable_parameters("cpu")


# -- tuning -----------------------------------------------------------------------------------------------------------------------


def test_the_seeds_tuning_loop_finds_thresholds() -> None:
    frames = video(5, noise=0.005)
    network: Any = executed(SIMPLIFIED)["CNN"]()
    plain = Plain().eval()
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        wanted = [plain(frame) for frame in frames]

    def calc_loss(model: DCModule, sequence: list[Tensor]) -> float:
        model.reset_layers()
        return 1 + sum(float((model(frame) - want).abs().mean()) for frame, want in zip(sequence, wanted, strict=True))

    scope = executed(TUNING, DCThreshold=DCThreshold, load_video=lambda: frames, init_model=lambda: network, calc_loss=calc_loss)
    found = list(DCThreshold.t.values())
    assert len(found) == 3 and all(0 < value < 10 for value in found)
    loss = calc_loss(network, frames)
    assert scope["ref_loss"] < loss < scope["ref_loss"] * 1.001**3
    tuned = network.stream.stats.total.macs_share
    for key in DCThreshold.t:
        DCThreshold.t[key] = 0.0
    calc_loss(network, frames)
    assert tuned < 0.95 * network.stream.stats.total.macs_share


def test_a_tuning_loop_without_end_is_ended() -> None:
    model = Small()
    model(video(1)[0])

    def climb() -> None:
        while True:
            DCThreshold.t[model.relu1] = (DCThreshold.t[model.relu1] or 0.001) * 2

    with pytest.raises(ValueError, match="tuning loop"):
        climb()
