"""Layers for hand-written models, and the example that trains them."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sightline as sl
from oracle import assert_bits_equal
from sightline.errors import DTypeError, ShapeError
from sightline.nn import ChannelSumConv2d, FocusedConv2d

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "finetune_in_area.py"


class Area:
    """What an area of interest offers to a layer."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask
        self.asked: list[tuple[int, int]] = []

    def sites(self, h: int, w: int) -> sl.Sites:
        self.asked.append((h, w))
        return sl.Sites.from_mask(self.mask).resize(h, w)


GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (3, 5), "stride": 2, "padding": (1, 2), "bias": False},
    {"kernel_size": 3, "padding": "same", "dilation": 2, "groups": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 5, "padding": (2, 1), "stride": (2, 1), "padding_mode": "circular"},
    {"kernel_size": 3, "padding": "valid", "padding_mode": "replicate"},
]


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_it_equals_the_dense_layer_inside(options: dict[str, Any]) -> None:
    dense = nn.Conv2d(4, 6, **options)
    x = torch.randn(2, 4, 12, 14)
    want = dense(x)
    mask = torch.rand(2, *want.shape[2:]) < 0.5
    layer = FocusedConv2d.from_dense(dense, area=mask)
    where = mask[:, None].expand_as(want)
    y = layer(x)
    torch.testing.assert_close(y[where], want[where], rtol=1e-4, atol=1e-5)
    assert not y[~where].any()
    held = torch.randn_like(want)
    assert_bits_equal(layer(x, held)[~where], held[~where])
    layer.area = None
    assert_bits_equal(layer(x), want)


def test_the_constructor_is_that_of_the_dense_layer() -> None:
    given = (4, 6, 3, 2, 1, 1, 2, False, "zeros", "cpu", torch.float64)
    ours, dense = FocusedConv2d(*given), nn.Conv2d(*given)  # type: ignore[arg-type]
    assert isinstance(ours, nn.Conv2d) and ours.weight.shape == dense.weight.shape and ours.weight.dtype == torch.float64
    assert ours.state_dict().keys() == dense.state_dict().keys() == FocusedConv2d(*given, area=torch.ones(2, 2).bool()).state_dict().keys()
    ours.load_state_dict(dense.state_dict())
    assert "area=None" in repr(ours)


def test_parameters_are_shared_with_the_dense_layer() -> None:
    dense = nn.Conv2d(3, 5, 3, padding=1).eval()
    layer = FocusedConv2d.from_dense(dense, area=torch.ones(6, 6, dtype=torch.bool))
    assert layer.weight is dense.weight and layer.bias is dense.bias and not layer.training
    layer(torch.randn(1, 3, 6, 6)).square().sum().backward()
    assert dense.weight.grad is not None and dense.bias is not None and dense.bias.grad is not None


def test_areas_of_every_kind() -> None:
    layer = FocusedConv2d(3, 5, 3, stride=2, padding=1)
    x, coarse = torch.randn(2, 3, 16, 16), torch.tensor([[True, False], [False, False]])
    layer.area = torch.zeros(8, 8, dtype=torch.bool)
    layer.area[:4, :4] = True  # type: ignore[index, operator, call-overload, unused-ignore]
    want = layer(x)
    assert want[..., :4, :4].any() and not want[..., 4:, :].any() and not want[..., :, 4:].any()
    asked = Area(coarse)
    for area in (coarse, coarse.expand(2, -1, -1), sl.Sites.from_mask(coarse), asked):
        layer.area = area
        assert_bits_equal(layer(x), want)
    assert asked.asked == [(8, 8)] and layer.area is asked
    asked.mask = ~asked.mask  # edited in place: the next forward sees it
    assert not layer(x)[..., :4, :4].any()


def test_a_mask_moves_with_the_layer_and_is_its_own() -> None:
    mask = torch.rand(6, 6) < 0.5
    layer = FocusedConv2d(3, 5, 3, padding=1, area=mask)
    x = torch.randn(1, 3, 6, 6)
    want = layer(x)
    mask.logical_not_()
    assert_bits_equal(layer(x), want)
    assert copy.deepcopy(layer).area_mask is not layer.area_mask
    assert layer.to("meta").area_mask.device.type == "meta"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("area", "kind", "message"),
    [
        ("box", DTypeError, "area: expected sl.Sites, a bool mask or an object with sites"),
        (torch.ones(4, 4), DTypeError, "expected a mask of torch.bool"),
        (torch.ones(1, 1, 4, 4, dtype=torch.bool), ShapeError, "expected a mask"),
    ],
)
def test_bad_areas(area: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        FocusedConv2d(3, 5, 3, area=area)
    layer = FocusedConv2d(3, 5, 3)
    with pytest.raises(kind, match=message):
        layer.area = area


def test_bad_use() -> None:
    layer = FocusedConv2d(3, 5, 3, area=torch.ones(3, 4, 4, dtype=torch.bool))
    with pytest.raises(ShapeError, match="expected 1 or 2 batch elements"):
        layer(torch.randn(2, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"x\[None\]"):
        layer(torch.randn(3, 8, 8))

    class Wrong:
        def sites(self, h: int, w: int) -> Any:
            return torch.ones(h, w, dtype=torch.bool)

    layer.area = Wrong()
    with pytest.raises(DTypeError, match=r"sites\(h, w\) must return sl.Sites"):
        layer(torch.randn(2, 3, 8, 8))
    with pytest.raises(DTypeError, match=r"conv: expected torch\.nn\.Conv2d, got Linear"):
        FocusedConv2d.from_dense(nn.Linear(2, 2))  # type: ignore[arg-type]


# -- channel sums -----------------------------------------------------------------------------------------------------------------------


def test_channel_sums_share_the_weight_of_a_dense_layer() -> None:
    dense = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    layer = ChannelSumConv2d.from_dense(dense)
    x = torch.randn(2, 4, 9, 10)
    assert layer.weight is dense.weight
    torch.testing.assert_close(layer(x).sum((3, 4)).unflatten(2, (5, 5)), dense(x), rtol=1e-4, atol=1e-5)
    layer(x).sum().backward()
    assert dense.weight.grad is not None
    assert "stride=(2, 2)" in repr(layer) and list(layer.state_dict()) == ["weight"]


def test_channel_sums_draw_their_weight_like_a_dense_layer() -> None:
    torch.manual_seed(3)
    ours = ChannelSumConv2d(4, 6, (3, 2), dtype=torch.float64)
    torch.manual_seed(3)
    assert_bits_equal(ours.weight, nn.Conv2d(4, 6, (3, 2), bias=False, dtype=torch.float64).weight)


def test_bad_channel_sums() -> None:
    for wrong, message in (
        ({"groups": 2}, "groups: a sum over channels only takes 1, got 2"),
        ({"bias": True}, "bias: "),
        ({"padding_mode": "reflect"}, "padding_mode: "),
        ({"stride": 0}, "stride: "),
        ({"padding": "same", "stride": 2}, "padding: 'same'"),
    ):
        with pytest.raises(ShapeError, match=message):
            ChannelSumConv2d(4, 6, 3, **wrong)
    with pytest.raises(ShapeError, match="groups"):
        ChannelSumConv2d.from_dense(nn.Conv2d(4, 6, 3, groups=2))
    with pytest.raises(DTypeError, match="conv: expected"):
        ChannelSumConv2d.from_dense(nn.ReLU())  # type: ignore[arg-type]


# -- the example ------------------------------------------------------------------------------------------------------------------------


def test_the_example_learns_as_dense_training_does(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("finetune_in_area", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    figures = module.main(["--steps", "12"])
    assert figures["last loss"] < 0.5 * figures["first loss"]
    assert figures["weights apart"] < 1e-3 and figures["last loss"] == pytest.approx(figures["dense last loss"], rel=1e-3)
    assert "loss inside the area" in capsys.readouterr().out
