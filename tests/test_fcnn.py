"""fCNN: the area found by brightness, used by the later layers, per batch element; and the choice of the threshold."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracle
import sightline as sl
from areas import masked
from cases import Apply
from sightline.errors import CaptureError, ShapeError
from streams import Backend, both_executors

SHAPE = (3, 3, 32, 24)


class Small(nn.Module):
    """Shaped like VGG: features in one Sequential, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(True), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(True), nn.Conv2d(12, 12, 3, stride=2, padding=1), nn.ReLU(True),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(48, 5))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return result


class Residual(nn.Module):
    """Layers that do not stand in one Sequential, and a connection that jumps over where the area is found."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.block = nn.Conv2d(6, 6, 3, padding=1)
        self.deep = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = F.relu(self.stem(x))
        second = self.block(first)
        deep = self.deep(F.relu(second)) + first
        return {"map": self.head(deep), "scores": deep.mean((2, 3))}


def made(model: type[nn.Module]) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        return model().eval()


def pictures(n: int = 3) -> Tensor:
    """A dim ground with one bright patch each, of another size in another place."""
    generator = torch.Generator().manual_seed(2)
    images = 0.05 * torch.rand((n, *SHAPE[1:]), generator=generator)
    for i in range(n):
        images[i, :, 3 + 7 * i : 9 + 8 * i, 2 + 5 * i : 8 + 5 * i] += 2
    return images


def split(model: Any, at: int = 4) -> tuple[nn.Module, nn.Module]:
    return model.features[:at], model.features[at:]


def middle(model: Any, images: Tensor, at: int = 4) -> Tensor:
    """Brightness after the first layers, dense."""
    with torch.no_grad():
        brightness: Tensor = model.features[:at](images).sum(1)
    return brightness


def by_definition(model: Any, images: Tensor, threshold: float, at: int = 4) -> tuple[Tensor, Tensor]:
    """(output, area) in float64, layer by layer."""
    model, x = copy.deepcopy(model).double(), images.double()
    with torch.no_grad():
        x = model.features[:at](x)
        area = x.sum(1) >= threshold
        area |= ~area.flatten(1).any(1)[:, None, None]
        for layer in model.features[at:]:
            x = masked(area, layer(x))
        return model.classifier(torch.flatten(model.pool(x), 1)), area


# -- what is computed ---------------------------------------------------------------------------------------------------------------


@both_executors
@pytest.mark.parametrize("given", ["its own layers", "copies", "a list"])
def test_an_fcnn_is_what_it_says(backend: Backend, given: str) -> None:
    model, images = made(Small), pictures()
    threshold = float(middle(model, images).quantile(0.8))
    top, rest = split(copy.deepcopy(model) if given == "copies" else model)
    if given == "a list":
        top, rest = list(top.children()), list(rest.children())  # type: ignore[assignment]
    fcnn, aoi = sl.build_focused_model(model, top, threshold, rest, backend=backend.name)
    assert aoi.size() == 1.0  # before the first forward: everything
    got = fcnn(images)
    want, area = by_definition(model, images, threshold)
    assert torch.equal(aoi.mask, area) and 0.05 < aoi.size() < 0.5
    assert fcnn.aoi is aoi
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, model(images), atol=1e-3)
    shares = {row["site"]: row["share"] for row in fcnn.explain().rows}
    assert shares["features.0"] == shares["features.2"] == shares["classifier.1"] == 1.0
    assert shares["features.5"] < 0.6
    assert fcnn.stats.last.macs_share == pytest.approx(fcnn.explain().macs_share)


@both_executors
def test_every_picture_and_every_batch_element_has_its_own_area(backend: Backend) -> None:
    model, images = made(Small), pictures()
    threshold = float(middle(model, images).quantile(0.9))
    fcnn, aoi = sl.build_focused_model(model, *split(model)[:1], threshold, split(model)[1], backend=backend.name)
    together = fcnn(images)
    masks = aoi.mask.clone()
    assert masks.shape == (3, 32, 24)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 3
    for order in ([0, 1, 2], [2, 0, 1, 1]):
        for i in order:
            alone = fcnn(images[i : i + 1])
            assert torch.equal(aoi.mask[0], masks[i])
            torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-6)


def test_the_sum_of_raw_values_counts_inclusively() -> None:
    """Before the next layer's in-place ReLU, as the first layers returned it; equal to the threshold is inside."""
    conv = nn.Conv2d(2, 2, 1, bias=False)
    conv.weight.data = torch.eye(2)[:, :, None, None].clone()
    model = nn.Sequential(conv, nn.ReLU(True), nn.Conv2d(2, 1, 1)).eval()
    frame = torch.tensor([[[[3.0, 1.0, 2.0]], [[-2.0, 0.0, 0.0]]]])  # sums 1, 1, 2
    for threshold, want in ((1.0, [True] * 3), (1.5, [False, False, True]), (2.0, [False, False, True])):
        fcnn, aoi = sl.build_focused_model(model, model[0], threshold, model[1:])
        fcnn(frame)
        assert aoi.mask.flatten().tolist() == want
        assert fcnn.last_brightness().flatten().tolist() == [1.0, 1.0, 2.0]


def test_a_sum_of_nan_is_outside() -> None:
    model = nn.Sequential(Apply(torch.sqrt), nn.Conv2d(1, 1, 1)).eval()
    fcnn, aoi = sl.build_focused_model(model, model[0], 0.5, model[1])
    got = fcnn(torch.tensor([[[[1.0, -1.0, 4.0, 0.01]]]]))
    assert aoi.mask.flatten().tolist() == [True, False, True, False]
    assert got.isfinite().all()


@both_executors
def test_layers_that_are_not_in_one_sequential(backend: Backend) -> None:
    """Only the given layers are focused; what jumps over the border is whole."""
    model, images = made(Residual), pictures()
    with torch.no_grad():
        brightness = model.block(F.relu(model.stem(images))).sum(1)
    threshold = float(brightness.quantile(0.85))
    fcnn, aoi = sl.build_focused_model(model, [model.stem, model.block], threshold, model.deep, backend=backend.name)
    got = fcnn(images)
    area = brightness >= threshold
    assert torch.equal(aoi.mask, area)
    with torch.no_grad():
        first = F.relu(model.stem(images))
        deep = masked(area, F.relu(model.deep[0](F.relu(model.block(first))))) + first
        torch.testing.assert_close(got["map"], model.head(deep), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got["scores"], deep.mean((2, 3)), rtol=1e-4, atol=1e-5)
    shares = {row["site"]: row["share"] for row in fcnn.explain().rows}
    assert shares["deep.0"] < 0.2 and shares["head"] == 1.0


def test_a_map_returned_by_focused_layers_is_zero_outside_or_held() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).eval()
    images = pictures(2)
    threshold = float(model[:2](images).detach().sum(1).quantile(0.9))
    zero, aoi = sl.build_focused_model(model, model[:2], threshold, model[2:])
    hold, _ = sl.build_focused_model(model, model[:2], threshold, model[2:], outside="hold")
    first, held_first = zero(images[:1]), hold(images[:1])
    oracle.assert_bits_equal(first, held_first)
    second, held = zero(images[1:]), hold(images[1:])
    inside = aoi.mask[:, None].expand_as(second)
    assert (second[~inside] == 0).all()
    assert torch.equal(held, torch.where(inside, second, first))


# -- thresholds that keep nothing or everything ---------------------------------------------------------------------------------------


@both_executors
@pytest.mark.parametrize("threshold", [1e9, float("inf"), float("-inf"), -1e9])
def test_nothing_or_everything_bright_is_the_dense_model(backend: Backend, threshold: float) -> None:
    model, images = made(Small), pictures()
    fcnn, aoi = sl.build_focused_model(model, *split(model)[:1], float(middle(model, images).quantile(0.9)), split(model)[1])
    fcnn(images)
    fcnn.threshold = threshold
    got = fcnn(images)
    assert aoi.size() == 1.0
    oracle.assert_law(got, model(images).detach(), copy.deepcopy(model).double()(images.double()).detach())
    assert fcnn.stats.last.macs_share == 1.0


def test_a_batch_element_where_nothing_is_bright_is_computed_everywhere() -> None:
    model, images = made(Small), pictures()
    brightness = middle(model, images)
    images[1] *= 0.01
    threshold = float(middle(model, images)[1].max()) + 0.5 * float(brightness[0].max() - middle(model, images)[1].max())
    fcnn, aoi = sl.build_focused_model(model, *split(model)[:1], threshold, split(model)[1])
    got = fcnn(images)
    assert aoi.mask[1].all() and not aoi.mask[0].all()
    torch.testing.assert_close(got[1], model(images)[1].detach(), rtol=1e-4, atol=1e-5)


# -- the model ---------------------------------------------------------------------------------------------------------------------------


def test_the_model_is_not_touched_and_copies_are_used_as_they_are() -> None:
    model, images = made(Small), pictures()
    before = copy.deepcopy(model.state_dict())
    children = list(model.features)
    top, rest = split(copy.deepcopy(model))
    with torch.no_grad():
        rest[1].weight.mul_(0.5)  # type: ignore[index]
    fcnn, _ = sl.build_focused_model(model, top, float("-inf"), rest)
    got = fcnn(images)
    assert list(model.features) == children
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.features[5].weight.mul_(0.5)
        torch.testing.assert_close(got, changed(images), rtol=1e-4, atol=1e-5)
    parameters = {id(parameter) for parameter in fcnn.parameters()}
    assert {id(p) for p in rest.parameters()} <= parameters and id(model.classifier[1].weight) in parameters
    assert not model._forward_hooks and not any(module._forward_hooks for module in fcnn.modules())


def test_the_readme_example_of_focusedconv() -> None:
    """Its steps, with its misnamed variables set right, on a small network."""
    original = made(Small)
    focused = copy.deepcopy(original)
    early, remaining = copy.deepcopy(original.features[0:4]), copy.deepcopy(original.features[4:])
    fcnn, aoi = sl.build_focused_model(focused, early, 90, remaining)
    got = fcnn(pictures())
    assert got.shape == (3, 5) and isinstance(aoi.size(), float)


def test_another_size_and_threads() -> None:
    model = made(Small)
    images = pictures()
    fcnn, aoi = sl.build_focused_model(model, *split(model)[:1], float(middle(model, images).quantile(0.9)), split(model)[1])
    wanted = [fcnn(images[i : i + 1]) for i in range(3)]
    assert fcnn(torch.rand(1, 3, 17, 40)).shape == (1, 5) and aoi.mask.shape == (1, 17, 40)
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            if not torch.allclose(fcnn(images[i : i + 1]), wanted[i], rtol=1e-4, atol=1e-6):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_bad_layers() -> None:
    model = made(Small)
    top, rest = split(model)
    for wrong in (nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1))):
        with pytest.raises(CaptureError, match="modules of `model`"):
            sl.build_focused_model(model, wrong, 1.0, rest)
    with pytest.raises(CaptureError, match="modules of `model`"):
        sl.build_focused_model(made(Residual), nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1)), 1.0, nn.Sequential(nn.ReLU()))
    nothing: list[Any] = [[], nn.Sequential(), "features", None]
    for empty in nothing:
        with pytest.raises(ShapeError, match="top_layers"):
            sl.build_focused_model(model, empty, 1.0, rest)
    with pytest.raises(ValueError, match="NaN"):
        sl.build_focused_model(model, top, float("nan"), rest)
    with pytest.raises(CaptureError, match="end with a map"):
        sl.build_focused_model(model, [model.features, model.classifier], 1.0, model.pool)[0](pictures())
    whole = copy.deepcopy(model.features)
    with pytest.raises(CaptureError, match="Pass its own layers"):
        sl.build_focused_model(whole, copy.deepcopy(whole[:4]), 1.0, copy.deepcopy(whole[4:]))


# -- calibration ---------------------------------------------------------------------------------------------------------------------------


def test_calibrate_to_a_size() -> None:
    model, images = made(Small), pictures(6)
    fcnn, aoi = sl.build_focused_model(model, *split(model)[:1], 1.0, split(model)[1])
    for target in (0.1, 0.9):
        found = sl.calibrate_brightness(fcnn, [images[:3], images[3:]], target_size=target)
        assert fcnn.threshold == 1.0  # as it was
        assert target - 0.1 < found.size <= target
        fcnn.threshold = float(found)
        fcnn(images)
        assert aoi.size() == pytest.approx(found.size, abs=1e-6)
        assert found.agreement <= 1.0
        fcnn.threshold = 1.0
    assert found.threshold in found.thresholds and list(found.thresholds) == sorted(found.thresholds)
    assert found.sizes[0] == 1.0 and found.agreements[0] == 1.0


def test_calibrate_to_an_agreement() -> None:
    model, images = made(Small), pictures(6)
    fcnn, _ = sl.build_focused_model(model, *split(model)[:1], 1.0, split(model)[1])

    def closeness(focused: Tensor, dense: Tensor) -> float:
        return 1 - min(1.0, float((focused - dense).abs().mean() / dense.abs().mean()))

    loose, tight = (sl.calibrate_brightness(fcnn, images, target_agreement=t, agreement=closeness) for t in (0.3, 0.999))
    assert loose.agreement >= 0.3 and tight.agreement >= 0.999
    assert loose.size < tight.size
    fcnn.threshold = loose.threshold
    assert closeness(fcnn(images), model(images).detach()) == pytest.approx(loose.agreement, abs=1e-6)
    top1 = sl.calibrate_brightness(fcnn, images, target_agreement=1.0)
    fcnn.threshold = top1.threshold
    assert torch.equal(fcnn(images).argmax(1), model(images).argmax(1))


def test_calibrations_are_drawn() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = sl.Calibration(2.0, 0.4, 0.9, (float("-inf"), 2.0, 3.0), (1.0, 0.4, 0.1), (1.0, 0.9, 0.2))
    axes = found.plot().axes[0]
    curve = axes.lines[0].get_xydata().tolist()
    assert curve == [[0.1, 0.2], [0.4, 0.9], [1.0, 1.0]]
    assert axes.lines[1].get_xydata().tolist() == [[0.4, 0.9]]
    assert "2" in axes.texts[0].get_text()
    pyplot.close("all")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "one of"),
        ({"target_size": 0.5, "target_agreement": 0.5}, ValueError, "one of"),
        ({"target_size": 1.5}, ValueError, "0 to 1"),
        ({"target_agreement": float("nan")}, ValueError, "0 to 1"),
        ({"target_size": 0.0}, ValueError, "Raise `target_size`"),
        ({"target_size": 0.5, "images": []}, ShapeError, "images"),
        ({"target_size": 0.5, "model": nn.ReLU()}, TypeError, "build_focused_model"),
    ],
)
def test_bad_calibrations(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    model = made(Small)
    fcnn, _ = sl.build_focused_model(model, *split(model)[:1], 1.0, split(model)[1])
    with pytest.raises(error, match=text):
        sl.calibrate_brightness(**{"model": fcnn, "images": pictures(1), **arguments})
