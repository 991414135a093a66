"""Each ATen call becomes the canonical op that it is, and changes in place are followed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphs import Function, assert_agrees, captured, only, ops
from sightline.errors import CaptureError
from sightline.graph.capture import capture
from sightline.graph.ir import ACTIVATIONS
from sightline.graph.rules import reference, rule_of
from traps import TRAPS

# -- canonical forms --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "dilation"), [((4, 2), 1), ((3, 5), 1), ((4, 3), (3, 2)), (1, 1)])
def test_same_padding_is_made_explicit(kernel: Any, dilation: Any) -> None:
    model = nn.Conv2d(3, 4, kernel, padding="same", dilation=dilation)
    graph = capture(model, torch.zeros(1, 3, 12, 13))
    node = only(graph, "conv2d")
    top, bottom, left, right = node.attrs["padding"]
    assert (top + bottom, left + right) == tuple(d * (k - 1) for d, k in zip(model.dilation, model.kernel_size, strict=True))
    assert node.shape == (1, 4, 12, 13)
    assert_agrees(model, graph, torch.randn(1, 3, 12, 13))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_of_convolutions(mode: Any) -> None:
    model = nn.Conv2d(3, 4, (3, 5), stride=2, padding=(1, 3), padding_mode=mode)
    graph = capture(model, torch.zeros(2, 3, 9, 10))
    assert ops(graph) == ["conv2d"]
    assert (only(graph, "conv2d").attrs["padding_mode"], only(graph, "conv2d").attrs["padding"]) == (mode, (1, 1, 3, 3))
    assert_agrees(model, graph, torch.randn(2, 3, 9, 10))


@pytest.mark.parametrize(
    "options", [{"stride": 2, "output_padding": 1}, {"stride": (3, 2), "padding": (1, 0), "dilation": 2}, {"groups": 2}]
)
def test_transposed_convolution(options: dict[str, Any]) -> None:
    model = nn.ConvTranspose2d(4, 6, (3, 4), **options)
    graph = capture(model, torch.zeros(1, 4, 7, 5))
    node = only(graph, "conv2d")
    assert node.attrs["transposed"]
    assert node.attrs["output_padding"] == model.output_padding
    assert_agrees(model, graph, torch.randn(1, 4, 7, 5))
    out = math.prod(node.shape or ())
    assert rule_of(node).macs(node) == 7 * 5 * 4 * (6 // model.groups) * 12
    assert out > 0


def test_pads_join_the_op_behind_them() -> None:
    weight = torch.randn(2, 4, 3, 3)
    graph = captured(lambda x: F.conv2d(F.pad(x, (1, 2, 0, 3)), weight.to(x), padding=1))
    assert ops(graph) == ["conv2d"]
    assert only(graph, "conv2d").attrs["padding"] == (1, 4, 2, 3)
    graph = captured(lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2))
    assert only(graph, "max_pool2d").attrs["padding"] == (0, 1, 0, 1)
    graph = captured(lambda x: F.avg_pool2d(F.pad(x, (2, 1, 2, 1)), 3, 2, count_include_pad=False))
    assert ops(graph) == ["avg_pool2d"]
    assert only(graph, "avg_pool2d").attrs["count_include_pad"] is True


def test_pads_that_mean_something_else_stay() -> None:
    weight = torch.randn(2, 4, 3, 3)
    assert ops(captured(lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), weight.to(x)))) == ["pad", "conv2d"]
    assert ops(captured(lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3))) == ["pad", "max_pool2d"]
    assert ops(captured(lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, padding=1, count_include_pad=False))) == ["pad", "avg_pool2d"]

    def read_twice(x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1))
        return F.conv2d(padded, weight.to(x)) + padded[:, :2, 1:-1, 1:-1]

    assert ops(captured(read_twice))[:2] == ["pad", "conv2d"]


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_pad_modes(mode: str) -> None:
    node = only(captured(lambda x: F.pad(x, (1, 2, 3, 0), mode)), "pad")
    assert (node.attrs["padding"], node.attrs["mode"]) == ((3, 0, 1, 2), mode)


def test_pads_of_other_axes_are_not_pads_of_maps() -> None:
    assert ops(captured(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)))) == ["torch"]
    assert ops(captured(lambda x: F.pad(x, (-1, 0, 0, 0)))) == ["torch"]
    assert only(captured(lambda x: F.pad(x, (1, 2))), "pad").attrs["padding"] == (0, 0, 1, 2)


def test_batch_norm_becomes_affine_in_float64() -> None:
    model = nn.BatchNorm2d(4)
    model.running_mean, model.running_var = torch.randn(4) * 100, torch.rand(4) * 1e-4
    nn.init.normal_(model.weight)
    graph = capture(model, torch.zeros(1, 4, 5, 5))
    node = only(graph, "affine")
    exact = model.weight.double() / (model.running_var.double() + model.eps).sqrt()
    assert torch.equal(node.attrs["scale"], exact.detach().float())
    assert torch.equal(node.attrs["shift"], (model.bias.double() - model.running_mean.double() * exact).detach().float())


def test_batch_norm_without_statistics_stays() -> None:
    model = nn.BatchNorm2d(4, track_running_stats=False)
    graph = capture(model, torch.zeros(2, 4, 5, 5))
    assert "torch" in ops(graph)
    assert_agrees(model, graph, torch.randn(2, 4, 5, 5))


ACTS: list[tuple[Callable[[Tensor], Tensor], str, tuple[float, ...]]] = [
    (F.relu, "relu", ()),
    (F.relu6, "clamp", (0.0, 6.0)),
    (F.hardtanh, "clamp", (-1.0, 1.0)),
    (lambda x: x.clamp(-0.5, 0.25), "clamp", (-0.5, 0.25)),
    (lambda x: x.clamp(min=0), "relu", ()),
    (lambda x: x.clamp(max=1), "clamp", (-math.inf, 1.0)),
    (lambda x: torch.clamp_min(x, 0.5), "clamp", (0.5, math.inf)),
    (lambda x: torch.maximum(x, torch.tensor(0.0)), "relu", ()),
    (lambda x: F.leaky_relu(x, 0.2), "leaky_relu", (0.2,)),
    (lambda x: F.rrelu(x, 0.1, 0.3), "leaky_relu", (0.2,)),
    (F.silu, "silu", ()),
    (F.hardswish, "hardswish", ()),
    (torch.sigmoid, "sigmoid", ()),
    (F.hardsigmoid, "hardsigmoid", ()),
    (F.gelu, "gelu", ()),
    (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh", ()),
    (torch.tanh, "tanh", ()),
    (lambda x: F.elu(x, 0.5), "elu", (0.5,)),
    (F.celu, "elu", (1.0,)),
    (F.mish, "mish", ()),
    (lambda x: F.softplus(x, 2.0, 10.0), "softplus", (2.0, 10.0)),
    (torch.exp, "exp", ()),
    (torch.abs, "abs", ()),
    (lambda x: -x, "neg", ()),
]


@pytest.mark.parametrize(("function", "kind", "params"), ACTS)
def test_activations(function: Callable[[Tensor], Tensor], kind: str, params: tuple[float, ...]) -> None:
    graph = captured(function)
    assert ops(graph) == ["act"]
    attrs = only(graph, "act").attrs
    assert attrs["kind"] == kind
    assert attrs["params"] == pytest.approx(params)


def test_every_activation_is_covered() -> None:
    assert {kind for _, kind, _ in ACTS} | {"prelu", "sqrt"} == set(ACTIVATIONS)
    assert [node.attrs.get("kind") for node in captured(lambda x: x.abs().sqrt())] == [None, "abs", "sqrt"]


@pytest.mark.parametrize("slopes", [1, 4])
def test_prelu(slopes: int) -> None:
    model = nn.PReLU(slopes)
    graph = capture(model, torch.zeros(1, 4, 5, 5))
    assert only(graph, "act").attrs["slope"].shape == (slopes,)
    assert_agrees(model, graph, torch.randn(1, 4, 5, 5))


ARITHMETIC: list[tuple[Callable[[Tensor], Tensor], list[str]]] = [
    (lambda x: torch.add(x, 3, alpha=2), ["scalar"]),
    (lambda x: torch.sub(x, 3, alpha=0.5), ["scalar"]),
    (lambda x: 3 - x, ["scalar"]),
    (lambda x: torch.rsub(x, 3, alpha=2), ["scalar", "scalar"]),
    (lambda x: 2 / (x.abs() + 1), ["act", "scalar", "scalar", "scalar"]),  # torch itself takes the reciprocal, then twice that
    (lambda x: x / 3, ["scalar"]),
    (lambda x: x**2, ["scalar"]),
    (torch.square, ["scalar"]),
    (lambda x: x * torch.tensor(2.5), ["scalar"]),
    (lambda x: torch.tensor(2.5) - x, ["scalar"]),
    (lambda x: torch.add(x, x.tanh(), alpha=-0.5), ["act", "scalar", "add"]),
    (lambda x: torch.sub(x, x.tanh(), alpha=2), ["act", "scalar", "sub"]),
    (lambda x: x / x.exp(), ["act", "div"]),
    (lambda x: torch.minimum(x, x.tanh()), ["act", "minimum"]),
    (lambda x: x * torch.arange(4.0).view(4, 1, 1), ["affine"]),
    (lambda x: x + torch.arange(4).view(1, 4, 1, 1), ["affine"]),
    (lambda x: torch.arange(4.0).view(4, 1, 1) - x, ["affine"]),
    (lambda x: torch.sub(x, torch.arange(4.0).view(4, 1, 1), alpha=3), ["affine"]),
    (lambda x: torch.add(torch.arange(4.0).view(4, 1, 1), x, alpha=3), ["affine"]),
    (lambda x: x / torch.arange(1.0, 5).view(4, 1, 1), ["affine"]),
    (lambda x: torch.arange(1.0, 5).view(4, 1, 1) / x.exp(), ["act", "constant", "div"]),
    (lambda x: x * torch.arange(6.0), ["constant", "mul"]),
    (lambda x: torch.add(x, torch.arange(6.0), alpha=2), ["constant", "scalar", "add"]),
    (lambda x: x.mean((2, 3), keepdim=True).expand_as(x) * x, ["global_avg_pool", "mul"]),
    (
        lambda x: x.mean((2, 3), keepdim=True).expand(2, 4, 8, 6) * x.mean((2, 3), keepdim=True),
        ["global_avg_pool", "torch", "global_avg_pool", "mul"],
    ),
]


@pytest.mark.parametrize("case", range(len(ARITHMETIC)))
def test_arithmetic(case: int) -> None:
    function, wanted = ARITHMETIC[case]
    assert ops(captured(function)) == wanted


STRUCTURE: list[tuple[Callable[[Tensor], Any], list[str]]] = [
    (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), ["global_avg_pool", "flatten"]),
    (lambda x: x.mean((-1, -2)), ["global_avg_pool"]),
    (lambda x: F.adaptive_avg_pool2d(x, (3, 2)), ["adaptive_avg_pool2d"]),
    (lambda x: F.adaptive_max_pool2d(x, (3, 2)), ["adaptive_max_pool2d"]),
    (lambda x: F.adaptive_max_pool2d(x, (3, 2), return_indices=True)[1].float(), ["torch", "item", "torch"]),
    (lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1), ["global_avg_pool", "flatten"]),
    (lambda x: x.reshape(2, -1), ["flatten"]),
    (lambda x: x.reshape(2, -1).view(2, 4, 8, 6) + 1, ["scalar"]),
    (lambda x: x.unsqueeze(1).squeeze(1).relu(), ["act"]),
    (lambda x: x.view(2, 2, 2, 8, 6).transpose(1, 2).contiguous().view(2, 4, 8, 6), ["channel_shuffle"]),
    (lambda x: x.reshape(2, 2, 2, 8, 6).permute(0, 2, 1, 3, 4).flatten(1, 2), ["channel_shuffle"]),
    (lambda x: F.channel_shuffle(x, 2), ["channel_shuffle"]),
    (lambda x: x.view(2, 2, 2, 8, 6).transpose(2, 1).reshape(2, 8, 4, 6), ["torch", "torch", "torch"]),
    (lambda x: F.pixel_shuffle(x, 2), ["pixel_shuffle"]),
    (lambda x: F.pixel_unshuffle(x, 2), ["pixel_unshuffle"]),
    (lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), ["slice", "slice", "cat"]),
    (lambda x: torch.cat(x.split([1, 3], 1)[::-1], -3), ["slice", "slice", "cat"]),
    (lambda x: torch.cat([x[:, :, 1::2, :-1], x[:, :, ::2, 1:]], 3), ["slice", "slice", "slice", "slice", "cat"]),
    (lambda x: x.narrow(2, 3, 4), ["slice"]),
    (lambda x: x[:, 1].unsqueeze(1) + x[:, 2:3], ["slice", "slice", "add"]),
    (lambda x: x[:, 0] - x.unbind(1)[2], ["slice", "torch", "slice", "torch", "sub"]),
    (lambda x: x[:, :, :100] + 1, ["scalar"]),
    (lambda x: x.softmax(1), ["softmax"]),
    (lambda x: F.interpolate(x, scale_factor=2), ["upsample"]),
    (lambda x: F.interpolate(x, size=(5, 13), mode="bilinear", align_corners=True), ["upsample"]),
    (lambda x: F.interpolate(x, scale_factor=(1.5, 0.7), mode="bilinear"), ["upsample"]),
    (lambda x: F.interpolate(x, size=(12, 7), mode="bicubic"), ["upsample"]),
    (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), ["max_pool2d"]),
    (lambda x: F.max_pool2d(x, 3, return_indices=True)[0], ["max_pool2d"]),
    (lambda x: F.avg_pool2d(x, (3, 2), divisor_override=5), ["avg_pool2d"]),
    (lambda x: F.dropout(F.dropout2d(x, training=False), 0.0).contiguous().clone().detach().to(torch.float32).relu(), ["act"]),
    (lambda x: x.roll(1, 2), ["torch"]),
    (lambda x: x.double().float(), ["torch", "torch"]),
    (lambda x: torch.nn.functional.linear(x, torch.eye(6).to(x)), ["linear"]),
    (lambda x: x @ torch.ones(6, 3).to(x), ["linear"]),
    (lambda x: torch.cat([x, torch.ones(2, 1, 8, 6)], 1), ["constant", "cat"]),
    (lambda x: x + torch.zeros_like(x).fill_(2.0), ["constant", "add"]),
    (lambda x: x + x.new_ones(8, 6), ["constant", "add"]),
]


@pytest.mark.parametrize("case", range(len(STRUCTURE)))
def test_structure(case: int) -> None:
    function, wanted = STRUCTURE[case]
    assert ops(captured(function)) == wanted


def test_constants_are_computed_once() -> None:
    def positions(x: Tensor) -> Tensor:
        rows, cols = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
        grid = torch.stack([rows, cols]).div(7).sin()
        grid[0] += 1
        return torch.cat([x, grid[None].expand(2, -1, -1, -1)], 1)

    graph = captured(positions)
    assert ops(graph) == ["constant", "cat"]


def test_one_dimensional_convolution_is_kept_as_it_is() -> None:
    conv = nn.Conv1d(4, 5, 3)
    model = Function(lambda x: conv(x.flatten(2)).mean(-1), conv=conv)
    graph = capture(model, torch.zeros(2, 4, 8, 6))
    node = next(node for node in graph if node.name == "conv")
    assert node.op == "torch"
    assert rule_of(node).macs(node) == 2 * 5 * 46 * 12


def test_attention_runs_as_it_is() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            mixed: Tensor = self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
            return mixed

    model = Tokens()
    graph = capture(model, torch.zeros(2, 8, 3, 4))
    assert_agrees(model, graph, torch.randn(2, 8, 3, 4))
    macs = {node.name: rule_of(node).macs(node) for node in graph if node.op != "input"}
    assert sum(macs.values()) == 2 * 12 * 8 * 8 * 4 + 2 * 12 * 12 * 8 * 2


# -- changes in place -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", TRAPS)
def test_changes_in_place_are_seen(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 4, 8, 6)
    graph = capture(Function(function), x)
    given = x.clone()
    assert torch.equal(reference(graph, given)[0], function(x.clone()))
    assert torch.equal(given, x)
    again = torch.randn(2, 4, 8, 6)
    assert torch.equal(reference(graph, again)[0], function(again.clone()))


class Counting(nn.Module):
    seen: Tensor

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.seen if self.read else x * 2
        self.seen += 1
        return y


def test_a_counter_nobody_reads_is_left_out() -> None:
    model = Counting(read=False)
    graph = capture(model, torch.zeros(1, 2, 3, 4))
    assert ops(graph) == ["scalar"]
    assert float(model.seen) == 0


def test_state_is_an_error() -> None:
    model = Counting(read=True)
    with pytest.raises(CaptureError, match=r"Counting.*buffer or parameter 'seen'.*keep no state"):
        capture(model, torch.zeros(1, 2, 3, 4))
    assert float(model.seen) == 0


def test_modes_inside_a_model_are_seen_through() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.relu()
        with torch.autocast("cpu", enabled=False):
            return y.sigmoid()

    assert ops(captured(function)) == ["act", "act"]
