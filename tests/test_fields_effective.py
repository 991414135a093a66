"""Effective receptive fields: known widths, figures of the heat map, the drawing, and a model that stays as it was."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from sightline.errors import CaptureError, MediaError, ShapeError
from sightline.fields import analyze
from sightline.fields.effective import SHARES, EffectiveField, measure


def chain(count: int, kernel: int, channels: int = 1) -> nn.Sequential:
    """Equal weights, no padding."""
    net = nn.Sequential(*(nn.Conv2d(channels if i else 1, channels, kernel, bias=False) for i in range(count)))
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    return net.double()


@pytest.mark.parametrize(("count", "kernel", "extent"), [(10, 3, 13), (40, 3, 25), (4, 5, None), (1, 3, 3)])
def test_equal_weights_give_the_known_gaussian(count: int, kernel: int, extent: int | None) -> None:
    size = count * (kernel - 1) + 21
    found = measure(chain(count, kernel), str(count - 1), input_shape=(1, 1, size, size), count=1)
    sigma = math.sqrt(count * (kernel**2 - 1) / 12)
    assert found.sigma == pytest.approx((sigma, sigma), rel=1e-9)
    if extent is not None:
        assert found.extent == (extent, extent)
    assert found.mean == pytest.approx((size // 2, size // 2))
    whole = count * (kernel - 1) + 1
    assert found.theoretical is not None
    y0, x0, y1, x1 = found.theoretical
    assert (y1 - y0, x1 - x0) == (whole, whole) and (y0 + y1 - 1) / 2 == size // 2
    if count >= 10:
        assert found.fit > 0.99
    outside = found.heat.copy()
    outside[y0:y1, x0:x1] = 0
    assert outside.sum() == 0 and found.heat.sum() == pytest.approx(1.0)


def test_fields_that_are_not_square() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, (3, 1), bias=False), nn.Conv2d(1, 1, (3, 7), bias=False))
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    found = measure(net, input_shape=(1, 1, 30, 40), count=1)
    assert found.layer == "output"
    assert found.sigma == pytest.approx((math.sqrt(2 * 8 / 12), math.sqrt(48 / 12)))
    assert found.extent == (5, 7) and found.share == pytest.approx(1.0)


def test_squares_hold_what_they_say() -> None:
    found = measure(chain(10, 3), "9", input_shape=(1, 1, 41, 41), count=1)
    assert list(found.squares) == list(SHARES)
    middle = 20
    for share, side in found.squares.items():
        half = side // 2
        held = found.heat[middle - half : middle + half + 1, middle - half : middle + half + 1].sum()
        inner = found.heat[middle - half + 1 : middle + half, middle - half + 1 : middle + half].sum() if half else 0.0
        assert held >= share - 1e-9 > inner - 1e-9
    assert found.square(1.0) == 21
    with pytest.raises(ShapeError, match="share"):
        found.square(0.0)


def test_images_are_averaged_and_noise_is_repeatable() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    first, second = torch.randn(1, 2, 12, 12), torch.randn(1, 2, 12, 12)
    apart = [measure(net, "2", image, unit=(6, 6)) for image in (first, second)]
    raw = []
    for image in (first, second):
        x = image.clone().requires_grad_(True)
        net[:3](x)[0, :, 6, 6].sum().backward()
        assert x.grad is not None
        raw.append(x.grad.abs().sum((0, 1)).double().numpy())
    both = measure(net, "2", torch.cat([first, second]), unit=(6, 6))
    assert both.images == 2
    np.testing.assert_allclose(both.heat, sum(raw) / sum(map(np.sum, raw)), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(apart[0].heat, raw[0] / raw[0].sum(), rtol=1e-5, atol=1e-12)
    noise = [measure(net, "2", input_shape=(1, 2, 12, 12), count=2, seed=seed).heat for seed in (0, 0, 1)]
    assert np.array_equal(noise[0], noise[1]) and not np.array_equal(noise[0], noise[2])


def test_positive_leaves_out_what_counts_against_the_unit() -> None:
    net = nn.Conv2d(1, 1, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])[None, None])
    absolute = measure(net, input_shape=(1, 1, 9, 9), count=1)
    positive = measure(net, input_shape=(1, 1, 9, 9), count=1, magnitude="positive")
    assert absolute.extent == (3, 3) and positive.extent == (3, 1)


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    net.train()
    image = torch.randn(2, 3, 10, 10)
    before, kept, state = copy.deepcopy(net.state_dict()), image.clone(), torch.get_rng_state()
    found = measure(net, "1", image)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(image, kept) and not image.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and all(module.training for module in net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert found.extent == (3, 3), "a ReLU in place behind the layer does not change what is asked"


def test_layers_are_named_as_in_the_report() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.conv(self.conv(self.conv(x)))}

    net = Twice()
    report = analyze(net, (1, 1, 21, 21))
    for name in ("conv", "conv:2", "conv:3"):
        found = measure(net, name, input_shape=(1, 1, 21, 21), count=1, unit=(10, 10))
        assert found.theoretical == report.box(name, (10, 10))
        assert found.extent[0] <= report[name].size[0]  # type: ignore[operator]
    assert measure(net, input_shape=(1, 1, 21, 21), count=1).theoretical == report.box("conv:3", (10, 10))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_real_networks_see_the_middle_most(name: str) -> None:
    net = zoo.build(name)
    layer = {"resnet18": "layer2.0.conv1", "mobilenet_v3_small": "features.2.block.1.0"}[name]
    found = measure(net, layer, input_shape=(1, 3, 96, 96), count=2)
    assert found.theoretical is not None
    y0, x0, y1, x1 = found.theoretical
    assert found.squares[0.5] < (y1 - y0) and found.square(0.2) <= found.square(0.5) <= found.square(0.99)
    inside = found.heat[max(y0, 0) : y1, max(x0, 0) : x1].sum()
    assert inside == pytest.approx(1.0) or analyze(net, (1, 3, 96, 96))[layer].status == "global"


# -- drawing ----------------------------------------------------------------------------------------------------------------------


def test_overlay_shows_heat_squares_and_the_box(tmp_path: Path) -> None:
    found = measure(chain(5, 3), "4", input_shape=(1, 1, 41, 61), count=1)
    plain = found.overlay(width=610)
    assert plain.shape == (410, 610, 3) and plain.dtype == np.uint8
    assert plain[205, 305].sum() > plain[5, 5].sum() + 200, "hot in the middle"
    assert found.theoretical is not None
    y0, x0, _, _ = found.theoretical
    assert (plain[y0 * 10, x0 * 10 + 3] == 255).all(), "white around the theoretical field"
    picture = np.full((20, 30, 3), (0, 0, 250), np.uint8)
    assert found.overlay(picture, width=610)[5, 5].tolist() == [0, 0, 138]
    found.to_png(tmp_path / "field.png", picture)
    from PIL import Image

    with Image.open(tmp_path / "field.png") as opened:
        assert opened.size == (610, 410)
    with pytest.raises(MediaError, match="cannot be written"):
        found.to_png(tmp_path / "missing" / "field.png")


def test_figures_as_text_and_data() -> None:
    found = measure(chain(10, 3), "9", input_shape=(1, 1, 41, 41), count=1)
    assert "theoretical field 21 x 21, effective 13 x 13" in str(found)
    data = found.to_dict()
    assert data["theoretical"] == [10, 10, 31, 31] and set(data["squares"]) == {"20%", "30%", "50%", "99%"}


# -- what cannot be done ----------------------------------------------------------------------------------------------------------


def test_clear_errors() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    small = (1, 1, 8, 8)
    with pytest.raises(CaptureError, match="no module '00'"):
        measure(net, "00", input_shape=small)
    with pytest.raises(CaptureError, match="called 1 times"):
        measure(net, "0:2", input_shape=small)
    with pytest.raises(ShapeError, match="not a map"):
        measure(net, "4", input_shape=small)
    with pytest.raises(ShapeError, match="within the map 6 x 6"):
        measure(net, "0", input_shape=small, unit=(6, 0))
    with pytest.raises(CaptureError, match="fails on an input of shape"):
        measure(net, "0", input_shape=(1, 3, 8, 8))
    with pytest.raises(ShapeError, match="images: expected float"):
        measure(net, "0", torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="one size"):
        measure(net, "0", [torch.randn(1, 1, 8, 8), torch.randn(1, 1, 9, 9)])
    with pytest.raises(ShapeError, match="at least one image"):
        measure(net, "0", [])
    with pytest.raises(ShapeError, match="magnitude"):
        measure(net, "0", input_shape=small, magnitude="both")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="at least 1"):
        measure(net, "0", input_shape=small, count=0)
    with pytest.raises(CaptureError, match="meta"):
        measure(copy.deepcopy(net).to("meta"), "0", input_shape=small)
    with pytest.raises(CaptureError, match="expected a torch"):
        measure("model.onnx", "0")  # type: ignore[arg-type]
    nn.init.zeros_(next(net.parameters()))
    with pytest.raises(ShapeError, match="does not depend on the input"):
        measure(net, "0", input_shape=small)


def test_without_a_capture_the_heat_is_still_measured() -> None:
    class Unseen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 5, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * float(x.sum() > -1e9)  # type: ignore[no-any-return]

    found = measure(Unseen(), "conv", input_shape=(1, 1, 15, 15), count=1)
    assert isinstance(found, EffectiveField)
    assert found.theoretical is None and found.share is None and found.extent == (5, 5)
    assert found.center == pytest.approx(found.mean)
