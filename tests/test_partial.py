"""Models that cannot be captured whole: their largest parts stream, the rest runs as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sightline as sl


def trunk() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1))


class Detector(nn.Module):
    """Boxes depend on values, and the head runs on two maps: what torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()
        self.head = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU())
        self.twin = self.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        fine, coarse = self.head(features), self.twin(features[:, :, ::2, ::2])
        if float(fine.amax()) > 1e6:
            return {"fine": fine}
        return {"fine": fine, "coarse": coarse, "boxes": (fine > fine.mean()).nonzero()}


@pytest.fixture
def model() -> Detector:
    torch.manual_seed(0)
    return Detector()


def video(count: int, size: int = 32) -> list[Tensor]:
    torch.manual_seed(1)
    frame = torch.rand(1, 3, size, size)
    frames = [frame]
    for i in range(count - 1):
        frame = frame.clone()
        frame[:, :, i : i + 4, 3:8] = torch.rand(1, 3, 4, 5)
        frames.append(frame)
    return frames


def dense(model: Detector, frame: Tensor) -> dict[str, Tensor]:
    flag = model.training
    model.eval()
    with torch.no_grad():
        result: dict[str, Tensor] = model(frame)
    model.train(flag)
    return result


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-6)


def test_a_detector_streams_in_parts_and_equals_dense(model: Detector) -> None:
    stream = sl.stream(model)
    for index, frame in enumerate(video(5)):
        assert_equal(stream(frame), dense(model, frame))
        share = stream.stats.last.macs_share
        assert share == 1 if index == 0 else 0 < share < 0.3
    stream(video(5)[-1])
    assert stream.stats.last.macs_done == 0


def test_the_model_is_left_alone(model: Detector) -> None:
    model.train()
    calls: list[int] = []
    handle = model.head.register_forward_hook(lambda *_: calls.append(1))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    stream = sl.stream(model)
    for frame in video(3):
        stream(frame)
    assert model.training and model.trunk.training
    assert model.twin is model.head
    assert isinstance(model.trunk, nn.Sequential)
    assert len(model.head._forward_hooks) == 1
    assert not model.trunk._forward_pre_hooks
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    handle.remove()


def test_names_thresholds_and_tables(model: Detector) -> None:
    stream = sl.stream(model, threshold=0.05)
    frames = video(4)
    stream(frames[0])
    stream(frames[1])
    rows = {row["site"]: row for row in stream.explain().rows}
    assert "cannot be traced" in rows["(outside the parts below)"]["note"]
    assert {"trunk.input", "trunk.0", "trunk.3", "head.0", "head:2.0"} <= set(rows)
    assert set(stream.thresholds) == {"trunk.input", "trunk.0", "head.input", "head:2.input"}
    assert set(stream.thresholds.values()) == {0.05}
    for name in stream.thresholds:
        stream.thresholds[name] = 0.0
    assert_equal(stream(frames[2]), dense(model, frames[2]))
    assert stream.last_sites("head:2.0").shape == (1, 8, 8)
    assert stream.last_sites().any()
    memory = stream.memory()
    assert memory["total"] == sum(memory["tensors"].values()) > 0


def test_reset_clone_and_another_size(model: Detector) -> None:
    stream = sl.stream(model)
    frames, larger = video(3), video(3, 40)
    stream(frames[0])
    twin = stream.clone()
    stream(frames[1])
    assert_equal(twin(frames[2]), dense(model, frames[2]))
    with pytest.raises(sl.ShapeError):
        stream(larger[0])
    assert_equal(stream(frames[2]), dense(model, frames[2]))
    stream.reset()
    for frame in larger:
        assert_equal(stream(frame), dense(model, frame))


def test_a_bad_frame_leaves_the_stream_usable(model: Detector) -> None:
    stream = sl.stream(model)
    frames = video(3)
    stream(frames[0])
    bad = frames[1].clone()
    bad[0, 0, 3, 3] = float("nan")
    with pytest.raises(sl.FrameError):
        stream(bad)
    assert_equal(stream(frames[2]), dense(model, frames[2]))


class Hopeless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_model_without_parts_is_an_error_that_says_why() -> None:
    with pytest.raises(sl.CaptureError, match="Hopeless"):
        sl.stream(Hopeless())(torch.rand(1, 3, 8, 8))


def test_native_only_refuses_parts(model: Detector) -> None:
    with pytest.raises(sl.CaptureError):
        sl.stream(model, backend="native")(torch.rand(1, 3, 32, 32))
