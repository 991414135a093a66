"""The operators as PyTorch sees them: numerical gradients of both orders, opcheck, one compiled graph for changing masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import sightline as sl
from op_cases import Case, random_mask
from oracle import assert_bits_equal
from sightline import ops
from sightline.ops import channel_sum, library

SMALL = [
    Case("conv", "conv", (2, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}),
    Case("groups, stride, dilation", "conv", (1, 4, 7, 6), (6, 2, 2, 3), {"padding": (0, 2), "stride": 2, "dilation": (1, 2), "groups": 2}),
    Case("reflect, depthwise", "conv", (1, 3, 5, 4), (3, 1, 3, 3), {"padding": (1, 1), "groups": 3, "padding_mode": "reflect"}),
    Case("transposed", "transposed", (1, 3, 3, 4), (3, 2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    Case("max", "max", (1, 3, 5, 6), None, {"kernel_size": 3, "stride": 2, "padding": 1}),
    Case("avg", "avg", (1, 3, 5, 6), None, {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
]


def prepared(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], Tensor]:
    """A function of (x, held, weight, bias), its arguments, and the mask."""
    x, weight, bias = case.tensors()
    dense = case.dense(x, weight, bias)
    mask = random_mask(dense, 0.4, 1)
    given = [value.to(dtype).requires_grad_() for value in (x, torch.randn_like(dense), weight, bias) if value is not None]

    def run(x: Tensor, held: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return case.at(x, weight, bias, mask, held)

    return run, tuple(given), mask


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_gradients_of_both_orders(case: Case) -> None:
    run, given, _ = prepared(case)
    assert gradcheck(run, given, fast_mode=True)
    assert gradgradcheck(run, given, fast_mode=True)


def test_numerical_gradients_in_full() -> None:
    run, given, _ = prepared(Case("small", "conv", (1, 2, 4, 3), (2, 1, 2, 2), {"groups": 2, "padding": (0, 1), "stride": (2, 1)}))
    assert gradcheck(run, given)
    assert gradgradcheck(run, given)


@pytest.mark.parametrize("several", [False, True])
def test_gradients_of_channel_sums(several: bool) -> None:
    x, weight = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.randn(2, 3, 2, 3, dtype=torch.float64)
    given = (x.requires_grad_(), (weight if several else weight[0]).clone().requires_grad_())
    for options in ({}, {"stride": 2, "padding": (1, 2)}, {"dilation": 2, "padding": "same"}):
        assert gradcheck(lambda x, w, o=options: ops.channel_sum_conv2d(x, w, **o), given, fast_mode=True)
        assert gradgradcheck(lambda x, w, o=options: ops.channel_sum_conv2d(x, w, **o), given, fast_mode=True)


def test_float32_has_the_same_second_order() -> None:
    for case in SMALL:
        run, given, _ = prepared(case)
        found = []
        for dtype in (torch.float64, torch.float32):
            values = [value.detach().to(dtype).requires_grad_() for value in given]
            first = torch.autograd.grad(run(*values).square().sum(), values, create_graph=True)
            second = torch.autograd.grad(torch.stack([part.square().sum() for part in first]).sum(), values)
            found.append([*first, *second])
        for exact, ours in zip(*found, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.detach().abs().max()), msg=case.name)


# -- registration ---------------------------------------------------------------------------------------------------------------------

WINDOW = ([2, 1], [1, 0, 2, 1], [1, 2])


def conv_arguments(dtype: torch.dtype, form: torch.memory_format, transposed: bool = False, held: bool = True) -> tuple[Any, ...]:
    x = torch.randn(2, 4, 7, 8, dtype=dtype).contiguous(memory_format=form).requires_grad_()
    weight = torch.randn(*((4, 3) if transposed else (6, 2)), 3, 2, dtype=dtype, requires_grad=True)
    size = (14, 9) if transposed else (3, 9)
    pads = [1, 0, 0, 1] if transposed else WINDOW[1]
    bias = torch.randn(6, dtype=dtype, requires_grad=True) if held else None
    other = torch.randn(2, 6, *size, dtype=dtype, requires_grad=True) if held else None
    return x, weight, bias, torch.rand(2, *size) < 0.5, other, WINDOW[0], pads, WINDOW[2], 2, "zeros", transposed, [0, 0]


def all_operators(dtype: torch.dtype, form: torch.memory_format) -> list[tuple[Any, tuple[Any, ...]]]:
    conv, bare, transposed = (conv_arguments(dtype, form, *o) for o in ((False, True), (False, False), (True, True)))
    x, weight, _, mask, *_ = conv
    window = conv[5:]
    grad = torch.randn(2, 6, *mask.shape[1:], dtype=dtype, requires_grad=True)
    pooled = torch.rand(2, 4, 4) < 0.5
    pool = ([3, 3], [2, 2], [1, 1, 1, 1])
    share = torch.randn(2, 4, 4, 4, dtype=dtype, requires_grad=True)
    kept = torch.randn(2, 4, 4, 4, dtype=dtype, requires_grad=True)
    filters = torch.randn(2, 4, 3, 2, dtype=dtype, requires_grad=True)
    sums = torch.randn(2, 2, 27, 3, 2, dtype=dtype, requires_grad=True)
    return [
        (library.conv2d_at, conv),
        (library.conv2d_at, bare),
        (library.conv2d_at, transposed),
        (library.conv2d_at_backward, (grad, x, weight, mask, *window, True, True, True)),
        (library.conv2d_at_backward, (grad, x, weight, mask, *window, False, True, False)),
        (library.max_pool2d_at, (x, pooled, kept, *pool, [1, 1], False)),
        (library.max_pool2d_at, (x, pooled, None, *pool, [1, 1], False)),
        (library.max_pool2d_at_backward, (share, x.detach(), pooled, *pool, [1, 1], False)),
        (library.max_pool2d_at_pick, (x, x.detach(), pooled, *pool, [1, 1], False)),
        (library.avg_pool2d_at, (x, pooled, kept, *pool, False, True, None)),
        (library.avg_pool2d_at_backward, (share, x.detach(), pooled, *pool, False, False, 3)),
        (channel_sum._channel_sum, (x, filters, *WINDOW)),
        (channel_sum._channel_sum_backward, (sums, x, filters, *WINDOW, True, True)),
    ]


@pytest.mark.parametrize("index", range(13))
def test_opcheck(index: int) -> None:
    for dtype, form in ((torch.float32, torch.contiguous_format), (torch.float64, torch.channels_last)):
        operator, given = all_operators(dtype, form)[index]
        if given[-1] is False and operator is library.conv2d_at_backward:  # what is not wanted is empty, and has no gradient
            given = tuple(value.detach() if isinstance(value, Tensor) else value for value in given)
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(13))
def test_opcheck_through_aot_with_symbolic_shapes(index: int) -> None:
    operator, given = all_operators(torch.float32, torch.contiguous_format)[index]
    torch.library.opcheck(operator, given, test_utils=("test_aot_dispatch_dynamic",))


def test_meta_tensors_have_shapes() -> None:
    x, weight = torch.empty(2, 4, 8, 9, device="meta"), torch.empty(6, 4, 3, 3, device="meta")
    mask = torch.empty(8, 9, dtype=torch.bool, device="meta")
    assert ops.conv2d_at(x, weight, sites=mask, padding=1).shape == (2, 6, 8, 9)
    assert ops.channel_sum_conv2d(x, weight).shape == (2, 6, 42, 3, 3)


# -- compiled -------------------------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Everything that this package offers, in one model; the mask is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = sl.nn.FocusedConv2d(3, 6, 3, padding=1)
        self.up = nn.Parameter(torch.randn(6, 4, 2, 2) * 0.3)
        self.last = sl.nn.ChannelSumConv2d(4, 2, 3, stride=2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = ops.conv2d_at(x, self.first.weight, self.first.bias, sites=mask, padding=1).relu()
        y = ops.max_pool2d_at(y, 2, sites=mask[::2, ::2]) + ops.avg_pool2d_at(y, 2, sites=mask[1::2, 1::2])
        y = ops.conv_transpose2d_at(y, self.up, sites=mask, stride=2)
        return self.last(y).square().mean((0, 2, 3, 4))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_graph_for_changing_masks() -> None:
    torch._dynamo.reset()
    network = Network()
    from torch._dynamo.testing import CompileCounterWithBackend  # loads the compiler, which other tests do without

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    for seed in range(4):
        x, mask = torch.randn(2, 3, 8, 10), random_mask(torch.empty(1, 1, 8, 10), 0.2 * seed, seed)[0]
        want, got = network(x, mask), compiled(x, mask)
        torch.testing.assert_close(got, want)
        parameters = list(network.parameters())
        for ours, theirs in zip(torch.autograd.grad(got.sum(), parameters), torch.autograd.grad(want.sum(), parameters), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert counter.frame_count == 1
    torch._dynamo.reset()


class Asked:
    """An area of interest, as a layer sees it."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def sites(self, h: int, w: int) -> sl.Sites:
        return sl.Sites.from_mask(self.mask).resize(h, w)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("area", ["mask", "coarse mask", "object"])
def test_a_focused_layer_is_one_graph_whose_area_may_change(area: str) -> None:
    torch._dynamo.reset()
    from torch._dynamo.testing import CompileCounterWithBackend

    mask = torch.rand(*((2, 3) if area == "coarse mask" else (4, 5))) < 0.5
    asked = Asked(mask)
    layer = sl.nn.FocusedConv2d(3, 5, 3, stride=2, padding=1, area=asked if area == "object" else mask)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    x = torch.randn(2, 3, 8, 10)
    for _ in range(3):
        assert_bits_equal(compiled(x), layer(x))
        if layer.area_mask is not None:
            layer.area_mask.logical_not_()  # edited in place: the next call sees it
        asked.mask = ~asked.mask
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_graph_for_changing_sizes() -> None:
    torch._dynamo.reset()
    from torch._dynamo.testing import CompileCounterWithBackend

    weight = torch.randn(5, 3, 3, 3)

    def run(x: Tensor, mask: Tensor) -> Tensor:
        return ops.conv2d_at(x, weight, sites=mask, padding="same").relu()

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for size in ((8, 10), (9, 12), (20, 7)):
        x, mask = torch.randn(2, 3, *size, requires_grad=True), torch.rand(*size) < 0.5
        y = compiled(x, mask)
        assert_bits_equal(y, run(x, mask))
        assert_bits_equal(torch.autograd.grad(y.sum(), x), torch.autograd.grad(run(x, mask).sum(), x))
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_a_stream_runs_a_model_with_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), sl.nn.FocusedConv2d(4, 5, 3, padding=1, area=torch.rand(8, 10) < 0.5)).eval()
    stream = sl.stream(model)
    for _ in range(3):
        frame = torch.randn(1, 3, 8, 10)
        with torch.no_grad():
            torch.testing.assert_close(stream(frame), model(frame), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_runs_it() -> None:
    torch._dynamo.reset()
    network, x, mask = Network(), torch.randn(2, 3, 8, 10), torch.rand(8, 10) < 0.5
    torch.testing.assert_close(torch.compile(network, fullgraph=True)(x, mask), network(x, mask), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
