"""``report.verify()`` agrees with right reports, sees wrong ones, and says what it could not check."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from sightline.fields import Report, analyze
from sightline.fields.units import Units


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "dla46_c"])
@pytest.mark.parametrize("ignore_gates", [False, True])
def test_networks_agree_on_strips(name: str, ignore_gates: bool) -> None:
    result = analyze(zoo.build(name), (1, 3, *zoo.ZOO[name].size), ignore_gates=ignore_gates).verify()
    assert result.ok and not result.unchecked
    assert len(result.agreeing) > 20
    assert {check.reason for check in result.checks.values()} == {"on strips"}


@pytest.mark.parametrize(
    ("name", "ignore_gates"),
    [
        *((name, False) for name in ("convnext_tiny", "vit_tiny_patch16_224", "edgenext_xx_small", "resnest14d", "skresnet18")),
        *((name, True) for name in ("resnest14d", "skresnet18", "ecaresnet26t")),
    ],
)
def test_networks_agree_on_whole_maps(name: str, ignore_gates: bool) -> None:
    result = analyze(zoo.build(name), (1, 3, *zoo.ZOO[name].size), ignore_gates=ignore_gates).verify()
    assert result.ok, str(result)
    assert len(result.agreeing) > 20
    assert "on whole maps" in {check.reason for check in result.checks.values()}


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.ZOO)
def test_no_network_of_the_zoo_differs(name: str) -> None:
    report = analyze(zoo.build(name), (1, 3, *zoo.ZOO[name].size))
    assert report.verify().differing == ()


def tampered(report: Report, name: str, units: Units) -> Report:
    """The report with other units on the second axis of a layer."""
    layer = report.layers[name]
    axes = (layer.axes[0], replace(layer.axes[1], units=units))
    return Report(report.graph, report.layers | {name: replace(layer, axes=axes)}, origin=report.origin)


def test_wrong_reports_are_seen() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, dilation=2, padding=2))
    shuffled = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.PixelShuffle(2), nn.Conv2d(1, 4, 3, dilation=2, padding=2))
    for model in (net, shuffled):
        report = analyze(model, (1, 3, 32, 32))
        assert report.verify(["2"]).ok
        right = report.layers["2"].axes[1].units
        assert right is not None
        lo, mask = right.phases[0]
        for wrong in (
            replace(right, phases=((lo, mask | mask << 4), *right.phases[1:])),
            replace(right, phases=tuple((first - 1, bits) for first, bits in right.phases)),
        ):
            result = tampered(report, "2", wrong).verify(["2"])
            assert result.differing == ("2",) and not result.ok
            assert "reported" in str(result) and "measured" in str(result)


def test_a_wrong_stride_is_seen_on_strips() -> None:
    report = analyze(nn.Conv2d(3, 4, 3, 2, 1), (1, 3, 32, 32))
    name = report.outputs[0].name
    right = report.layers[name].axes[1].units
    assert right is not None
    middle = 16 * 3 // 2  # of the strip: as long as three fields need, then the unit in the middle has the right box by chance
    for step in (1, 3):
        wrong = Units(step, tuple((lo + (right.step - step) * middle, mask) for lo, mask in right.phases))
        assert tampered(report, name, wrong).verify([name]).differing == (name,)


def test_a_finite_field_called_global_is_seen() -> None:
    report = analyze(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)), (1, 3, 64, 64))
    layer = report.layers["1"]
    axes = (layer.axes[0], replace(layer.axes[1], status="global", units=None))
    wrong = Report(report.graph, report.layers | {"1": replace(layer, status="global", axes=axes)}, origin=report.origin)
    assert wrong.verify(["1"]).differing == ("1",)


def test_what_cannot_be_checked_is_said() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(F.grid_sample(self.a(x), torch.zeros(1, 8, 8, 2), align_corners=False))
            return y

    result = analyze(Net(), (1, 3, 16, 16)).verify()
    assert result.agreeing == ("a",)
    assert result.unchecked == ("b",)
    assert "grid_sampl" in result.checks["b"].reason
    assert "not checked: b" in str(result)


def test_odd_sizes_tables_and_resampling() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d((5, 7)), nn.Upsample((11, 13), mode="bilinear"), nn.Conv2d(4, 4, 3, padding=1)
    )  # fmt: skip
    assert analyze(net, (1, 3, 21, 33)).verify().ok
    crossed = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding_mode="circular", padding=1), nn.ZeroPad2d((-2, 1, 0, -3)), nn.Conv2d(4, 4, 3, padding=1)
    )
    assert analyze(crossed, (1, 3, 24, 24)).verify().ok
