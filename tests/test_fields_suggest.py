"""Suggestions: found on ResNet-18 as its users found them by hand, predicted right, applied to a copy, never to the model."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
import zoo
from sightline.errors import CaptureError
from sightline.fields import Edit, Report, Sketch, Suggestion, analyze, apply
from sightline.fields.suggest import HYPOTHESIS


def chain(*strides: int, kernel: int = 3) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 4, kernel, 2, kernel // 2), nn.ReLU()]
    for stride in strides:
        layers += [nn.Conv2d(4, 4, 3, stride, 1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return zoo.build("resnet18")


@pytest.fixture(scope="module")
def report(model: nn.Module) -> Report:
    return analyze(model, (1, 3, 224, 224))


@pytest.fixture(scope="module")
def efficient(report: Report) -> list[Suggestion]:
    return report.suggest(16)


def assert_as_predicted(model: nn.Module, suggestion: Suggestion) -> nn.Module:
    """The edited module has the figures that were promised, and runs."""
    new = apply(model, suggestion)
    report = analyze(new, suggestion.input_shape)
    assert len(report.unproductive()) == suggestion.after.unproductive
    assert len(report.critical()) == suggestion.after.critical
    assert report.macs == suggestion.after.macs
    assert report.params == suggestion.after.params
    with torch.no_grad():
        assert new(torch.randn(suggestion.input_shape)).isfinite().all()
    return new


def test_the_design_of_the_seed_comes_first(efficient: Sequence[Suggestion]) -> None:
    best = efficient[0]
    assert set(best.edits) == {Edit("kernel", ("conv1",), (3, 3)), Edit("cut", ("layer2.1", "layer3", "layer4"))}
    assert best.consequences == (Edit("resize", ("fc",), (128,)),)
    assert best.macs_ratio == pytest.approx(0.219, abs=5e-4)
    assert best.params_ratio == pytest.approx(0.0435, abs=5e-4)
    assert (best.before.unproductive, best.after.unproductive) == (8, 0)
    assert best.before.macs == pytest.approx(16.06e6, rel=1e-3)
    assert best.after.macs == pytest.approx(3.515e6, rel=1e-3)
    assert best.after.params == 508968


def test_it_is_found_within_a_minute_and_progress_is_told(report: Report) -> None:
    told: list[tuple[int, int]] = []
    start = time.perf_counter()
    report.suggest(16, progress=lambda done, total: told.append((done, total)))
    assert time.perf_counter() - start < 60
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert {total for _, total in told} == {len(told)}


def test_suggestions_are_ranked_and_none_is_beaten_by_another(efficient: Sequence[Suggestion]) -> None:
    keys = [(one.after.unproductive, one.after.macs) for one in efficient]
    assert keys == sorted(keys)
    for one in efficient:
        for other in efficient:
            a, b = one.after, other.after
            if one is not other:
                better = (b.unproductive <= a.unproductive, b.macs <= a.macs, b.layers >= a.layers, len(other.edits) <= len(one.edits))
                assert not all(better)


def test_performance_keeps_the_depth(report: Report, model: nn.Module) -> None:
    best = report.suggest(32, goal="performance", limit=2)[0]
    assert best.after.unproductive == 0
    assert best.after.layers == best.before.layers
    assert best.macs_ratio == pytest.approx(4.97, abs=0.05)
    assert_as_predicted(model, best)


def test_every_suggestion_keeps_its_promises(model: nn.Module, efficient: Sequence[Suggestion]) -> None:
    for suggestion in efficient[:6]:
        assert_as_predicted(model, suggestion)


def test_the_promise_can_be_broken(model: nn.Module, efficient: Sequence[Suggestion]) -> None:
    wrong = copy.copy(efficient[0])
    object.__setattr__(wrong, "edits", wrong.edits[:1])
    object.__setattr__(wrong, "consequences", ())
    with pytest.raises(AssertionError):
        assert_as_predicted(model, wrong)


def test_weights_are_carried_over_and_the_model_stays(model: nn.Module, efficient: Sequence[Suggestion]) -> None:
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    new = apply(model, efficient[0])
    assert type(new) is type(model)
    assert not new.training
    state = new.state_dict()
    assert torch.equal(state["conv1.weight"], before["conv1.weight"][:, :, 2:5, 2:5])
    assert state["fc.weight"].shape == (1000, 128)
    for name in state.keys() - {"conv1.weight", "fc.weight", "fc.bias"}:
        assert torch.equal(state[name], before[name]), name
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert dict(model.named_modules()) == modules
    shared = {parameter.data_ptr() for parameter in model.parameters()} & {parameter.data_ptr() for parameter in new.parameters()}
    assert not shared


def test_the_new_model_can_be_trained(model: nn.Module, efficient: Sequence[Suggestion]) -> None:
    new = apply(model, efficient[0]).train()
    new(torch.randn(4, 3, 16, 16)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in new.parameters())


def test_it_is_called_a_hypothesis(efficient: Sequence[Suggestion]) -> None:
    best = efficient[0]
    assert HYPOTHESIS in str(best) and "train" in best.hypothesis
    assert "kernel 3 x 3 at conv1" in str(best) and "0.219 x MACs" in str(best)
    data = json.loads(json.dumps(best.to_dict()))
    assert data["note"] == HYPOTHESIS
    assert data["edits"][0] == {"action": "kernel", "layers": ["conv1"], "value": [3, 3]}
    assert data["after"]["unproductive"] == 0


def test_other_networks() -> None:
    small = chain(1, 2, 1, 1, 2, kernel=7)
    found = analyze(small, (1, 3, 64, 64)).suggest(16)
    assert found and found[0].after.unproductive < found[0].before.unproductive
    for suggestion in found:
        assert_as_predicted(small, suggestion)
    vgg = zoo.build("vgg11_bn")
    best = analyze(vgg, (1, 3, 32, 32)).suggest(32, limit=3)
    assert best[0].after.unproductive == 0
    for suggestion in best:
        assert_as_predicted(vgg, suggestion)


def test_networks_with_a_convolution_as_classifier() -> None:
    model = zoo.build("squeezenet1_1")
    for suggestion in analyze(model, (1, 3, 64, 64)).suggest(24, seconds=5.0, limit=3):
        assert assert_as_predicted(model, suggestion)(torch.zeros(suggestion.input_shape)).shape == (1, 1000)


def test_a_network_that_fits_gets_no_suggestion() -> None:
    assert analyze(chain(1), (1, 3, 32, 32)).suggest(64) == []


def test_the_search_ends_in_time(report: Report) -> None:
    start = time.perf_counter()
    report.suggest(16, seconds=0.2)
    assert time.perf_counter() - start < 5


def test_graphs_without_a_module_get_suggestions_too() -> None:
    sketch = Sketch("chain", size=(32, 32))
    for number in range(6):
        sketch.add(f"conv{number}", "conv", kernel=5 if number == 0 else 3, stride=2 if number == 2 else 1, channels=8)
    sketch.add("pool", "global_pool")
    sketch.add("fc", "linear", units=10)
    found = analyze(sketch).suggest(16)
    assert found and found[0].after.unproductive == 0
    with pytest.raises(CaptureError, match="that was analysed, got Sketch"):
        apply(sketch, found[0])  # type: ignore[arg-type]


def test_another_model_is_refused(efficient: Sequence[Suggestion]) -> None:
    with pytest.raises(CaptureError, match="pass the model that was analysed"):
        apply(chain(1), efficient[0])


def test_a_module_that_cannot_be_skipped_is_told(report: Report) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.b(self.a(x)).mean((2, 3)))
            return y

    figures = report.suggest(16, limit=1, seconds=0.0)
    base = figures[0].before if figures else None
    assert base is not None
    wrong = Suggestion((Edit("cut", ("b",)),), (), base, base, (1, 3, 16, 16))
    with pytest.raises(CaptureError, match="does not run after the edits"):
        sl.fields.apply(Odd(), wrong)
    right = Suggestion((Edit("cut", ("b",)),), (Edit("resize", ("head",), (4,)),), base, base, (1, 3, 16, 16))
    assert sl.fields.apply(Odd(), right)(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
