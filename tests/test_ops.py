"""Operators at chosen sites: values and gradients against float64, on every backend, layout and instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import sightline as sl
from op_cases import CASES, LAYOUTS, Case, laid_out, random_mask, read_by
from oracle import assert_bits_equal, assert_law, assert_sums_law
from sightline import kernels, ops
from sightline.ops import gather, native
from sightline.ops.plane import _plane, plane

BEST = kernels.isa()
BY_NAME = {case.name: case for case in CASES}


def backends() -> list[str]:
    status = kernels.native_status()
    return ["torch", *status["isas"]]


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test on "torch" (the fallback, for float32 too) or on one instruction set."""
    name: str = request.param
    if name == "torch":
        monkeypatch.setattr(native, "usable", lambda *_: False)
    else:
        monkeypatch.setattr(kernels, "isa", lambda: name)
    _plane.cache_clear()
    yield name
    _plane.cache_clear()


Three = tuple[Tensor, Tensor | None, Tensor | None]


def typed(three: Three, dtype: torch.dtype) -> Three:
    """x, weight and bias in another type."""
    x, weight, bias = three
    return x.to(dtype), weight if weight is None else weight.to(dtype), bias if bias is None else bias.to(dtype)


def leaves(three: Three) -> tuple[Three, list[Tensor]]:
    """The same values as leaves of a graph, and those that are there."""
    x, weight, bias = (None if value is None else value.detach().requires_grad_() for value in three)
    assert x is not None
    return (x, weight, bias), [value for value in (x, weight, bias) if value is not None]


def results(case: Case, three: Three, mask: Tensor, grad: Tensor, ours: bool) -> list[Tensor]:
    """Output at the sites (zero elsewhere), then the gradients with respect to x, weight and bias."""
    (x, weight, bias), given = leaves(three)
    y = case.at(x, weight, bias, mask) if ours else torch.where(mask[:, None], case.dense(x, weight, bias), 0)
    return [y.detach(), *torch.autograd.grad(y, given, grad)]


def run_case(case: Case, dtype: torch.dtype, layout: str, density: float, seed: int = 0) -> None:
    low = typed(case.tensors(seed), dtype)
    high = typed(low, torch.float64)  # the same values for all contestants
    y = case.dense(*high)
    mask = random_mask(y, density, seed)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).to(dtype)

    exact = results(case, high, mask, grad.double(), ours=False)
    plain = results(case, low, mask, grad, ours=False)
    # what no site reads is NaN, and so is the gradient where there is no site
    poisoned = torch.where(read_by(case, high[0], high[1], mask), low[0], torch.nan)
    bad_grad = torch.where(mask[:, None], grad, torch.nan)
    ours = results(case, (laid_out(poisoned, layout), *low[1:]), mask, laid_out(bad_grad, layout), ours=True)
    x, weight, bias = high
    sizes = (x.abs(), weight if weight is None else weight.abs(), bias if bias is None else bias.abs())
    assert_sums_law(ours, plain, exact, results(case, sizes, mask, grad.double().abs(), ours=False), f"{case.name}, {dtype}, {layout}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", backends(), indirect=True)
def test_values_and_gradients_obey_the_law(case: Case, backend: str) -> None:
    for index, layout in enumerate(LAYOUTS if backend in ("torch", BEST) else LAYOUTS[:2]):
        run_case(case, torch.float32, layout, (0.3, 1.0, 0.1)[index % 3], seed=index)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case.name)
def test_other_types_obey_the_law(case: Case, dtype: torch.dtype) -> None:
    for layout in LAYOUTS[:2]:
        run_case(case, dtype, layout, 0.4)


def test_float16_pool_of_infinities_gives_them_back() -> None:
    x = torch.full((1, 2, 4, 4), -torch.inf)
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert_bits_equal(ops.max_pool2d_at(x, 2, sites=mask), F.max_pool2d(x, 2))


@pytest.mark.parametrize("backend", backends(), indirect=True)
@pytest.mark.usefixtures("backend")
def test_max_pool_has_torchs_bits_and_choices() -> None:
    x = torch.randn(2, 19, 9, 10).round()  # many ties
    x[0, 3, 2, 2] = x[1, :, 4, 4] = torch.nan
    x[1, 7, :3, :3] = -torch.inf
    x.requires_grad_()
    dense = F.max_pool2d(x, 3, 2, 1)
    grad = torch.randn_like(dense)
    ours = ops.max_pool2d_at(x, 3, sites=torch.ones(dense.shape[2:], dtype=torch.bool), stride=2, padding=1)
    assert_bits_equal(ours, dense)
    torch.testing.assert_close(torch.autograd.grad(ours, x, grad), torch.autograd.grad(dense, x, grad), rtol=0, atol=1e-6)


# -- held, empty, full --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["conv 3x3", "conv depthwise", "transposed stride 2", "max 2", "avg 2"])
def test_elsewhere_the_output_is_what_is_held(name: str, layout: str) -> None:
    case = BY_NAME[name]
    three = typed(case.tensors(), torch.float32)
    dense = case.dense(*three)
    mask = random_mask(dense, 0.3, 1)
    held = torch.randn_like(dense)
    held[:, :, 0, 0] = torch.tensor(float("nan"))
    given = laid_out(held, layout).requires_grad_()
    y = case.at(*three, mask, given)
    where = mask[:, None].expand_as(y)
    assert_bits_equal(y[~where], held[~where])
    assert_law(y[where], dense[where], case.dense(*typed(three, torch.float64))[where])
    grad = torch.randn_like(y)
    (back,) = torch.autograd.grad(y, given, grad)
    assert_bits_equal(back, torch.where(where, 0.0, grad))
    assert y.data_ptr() != given.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_sites_give_zero_and_no_gradient(case: Case, dtype: torch.dtype) -> None:
    x, weight, bias = typed(case.tensors(), dtype)
    dense = case.dense(x, weight, bias)
    three, given = leaves((torch.full_like(x, torch.nan), weight, bias))
    y = case.at(*three, torch.zeros(dense.shape[2:], dtype=torch.bool))
    assert_bits_equal(y, torch.zeros_like(dense))
    for value, back in zip(given, torch.autograd.grad(y, given, torch.ones_like(y)), strict=True):
        assert_bits_equal(back, torch.zeros_like(value))


def test_sites_and_masks_are_the_same() -> None:
    x, weight = torch.randn(3, 4, 6, 7), torch.randn(5, 4, 3, 3)
    mask = torch.rand(6, 7) < 0.5
    want = ops.conv2d_at(x, weight, sites=mask.expand(3, -1, -1), padding=1)
    for sites in (mask, mask[None], sl.Sites.from_mask(mask), sl.Sites.from_mask(mask, sl.Grid(3, 6, 7))):
        assert_bits_equal(ops.conv2d_at(x, weight, sites=sites, padding=1), want)


def test_results_follow_the_inputs_memory_format() -> None:
    x, weight, mask = torch.randn(2, 4, 6, 7), torch.randn(5, 4, 3, 3), torch.ones(6, 7, dtype=torch.bool)
    for form in (torch.contiguous_format, torch.channels_last):
        for dtype in (torch.float32, torch.float64):
            given = x.to(dtype).contiguous(memory_format=form).requires_grad_()
            y = ops.conv2d_at(given, weight.to(dtype), sites=mask, padding=1)
            (back,) = torch.autograd.grad(y.sum(), given)  # an expanded gradient
            assert y.is_contiguous(memory_format=form) and back.is_contiguous(memory_format=form)


def test_inputs_stay_as_they_are() -> None:
    x, weight, bias, held = torch.randn(1, 4, 6, 7), torch.randn(4, 4, 3, 3), torch.randn(4), torch.randn(1, 4, 6, 7)
    mask = torch.rand(6, 7) < 0.5
    before = [value.clone() for value in (x, weight, bias, held, mask)]
    ops.conv2d_at(x, weight, bias, sites=mask, held=held, padding=1).zero_()
    for value, old in zip((x, weight, bias, held, mask), before, strict=True):
        assert torch.equal(value, old)


def test_autocast_computes_in_its_type() -> None:
    x, weight, mask = torch.randn(1, 4, 6, 7), torch.randn(4, 4, 3, 3, requires_grad=True), torch.rand(6, 7) < 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.conv2d_at(x, weight, sites=mask, padding=1)
    assert y.dtype == torch.bfloat16
    assert torch.autograd.grad(y.sum(), weight)[0].dtype == torch.float32


# -- threads and work ---------------------------------------------------------------------------------------------------------------

THREADED = [
    Case("conv", "conv", (2, 40, 30, 40), (70, 40, 3, 3), {"padding": 1}),
    Case("groups", "conv", (2, 64, 30, 40), (64, 16, 3, 3), {"groups": 4, "stride": 2}),
    Case("depthwise", "conv", (2, 80, 60, 60), (80, 1, 5, 5), {"groups": 80}),
    Case("transposed", "transposed", (2, 40, 20, 30), (40, 33, 4, 4), {"stride": 2}),
    Case("max", "max", (2, 80, 60, 60), None, {"kernel_size": 3, "stride": 1}),
    Case("avg", "avg", (2, 80, 60, 60), None, {"kernel_size": 3, "stride": 1}),
]


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("case", THREADED, ids=lambda case: case.name)
def test_results_do_not_depend_on_the_number_of_threads(case: Case, layout: str) -> None:
    if kernels.native() is None:
        pytest.skip("threads are those of the compiled kernels")
    x, weight, bias = typed(case.tensors(), torch.float32)
    dense = case.dense(x, weight, bias)
    mask = random_mask(dense, 0.5, 3)
    grad = torch.randn_like(dense)
    before, found = sl.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            sl.set_num_threads(threads)
            found.append(results(case, (laid_out(x, layout), weight, bias), mask, grad, ours=True))
    finally:
        sl.set_num_threads(before)
    assert_bits_equal(found[1], found[0], "2 threads")
    assert_bits_equal(found[2], found[0], "3 threads")


def test_work_follows_the_number_of_sites() -> None:
    where = plane((20, 30), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    x, weight, grad = torch.randn(1, 8, 20, 30), torch.randn(16, 8, 3, 3), torch.randn(1, 16, 20, 30)
    for sites in (0, 7, 60):
        mask = torch.zeros(1, 20, 30, dtype=torch.bool)
        mask.view(-1)[torch.randperm(600)[:sites]] = True
        with FlopCounterMode(display=False) as forward:
            gather.conv(where, x, weight, None, mask, 1, False, torch.zeros(1, 16, 20, 30))
        assert forward.get_total_flops() == 2 * sites * 16 * 8 * 9
        with FlopCounterMode(display=False) as backward:
            gather.conv_backward(where, grad, x, weight, mask, 1, False, (True, True, True))
        assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_sites_are_taken_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "BATCH", 100)
    for name in ("conv 3x3", "transposed stride 2", "max 3, stride 2, padding 1", "avg 2"):
        run_case(BY_NAME[name], torch.float64, "contiguous", 0.5)


# -- properties -----------------------------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Case, float, int]:
    transposed = draw(st.booleans())
    groups = draw(st.integers(1, 3))
    cin, cout = groups * draw(st.integers(1, 6)), groups * draw(st.integers(1, 20))
    kernel, stride, dilation, padding = (
        tuple(draw(st.integers(low, high)) for _ in range(2)) for low, high in ((1, 4), (1, 3), (1, 3), (0, 3))
    )
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
    size = [draw(st.integers(max(1, spans[i] - (0 if transposed else 2 * padding[i])), 14)) for i in range(2)]
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    if transposed:
        options["padding"] = tuple(min(padding[i], (spans[i] - 1) // 2) for i in range(2))
        options["output_padding"] = tuple(draw(st.integers(0, max(stride[i], dilation[i]) - 1)) for i in range(2))
    weight = (cin, cout // groups, *kernel) if transposed else (cout, cin // groups, *kernel)
    shape = (draw(st.integers(1, 2)), cin, *size)
    case = Case("drawn", "transposed" if transposed else "conv", shape, weight, options)  # type: ignore[arg-type]
    return case, draw(st.sampled_from([0.05, 0.3, 1.0])), draw(st.integers(0, 1000))


@given(convolutions(), st.sampled_from(LAYOUTS), st.sampled_from([torch.float32, torch.float64]))
def test_any_convolution_obeys_the_law(drawn: tuple[Case, float, int], layout: str, dtype: torch.dtype) -> None:
    case, density, seed = drawn
    run_case(case, dtype, layout, density, seed)


@given(
    st.sampled_from(["max", "avg"]), st.integers(1, 40), st.tuples(*[st.integers(6, 14)] * 2), st.tuples(*[st.integers(1, 5)] * 2),
    st.tuples(*[st.integers(1, 4)] * 2), st.booleans(), st.booleans(), st.integers(0, 1000), st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_any_pooling_obeys_the_law(
    kind: str, c: int, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padded: bool, ceil_mode: bool, seed: int,
    layout: str,
) -> None:  # fmt: skip
    padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
    case = Case("drawn", kind, (2, c, *size), None, {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode})
    run_case(case, torch.float32, layout, 0.3, seed)
