"""Layers over nearest neighbours in C++: the tolerance law, bits that depend on nothing else, all instruction sets, wrong tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sightline as sl
from knn_cases import KNN_CASES, KnnCase, loop_conv, loop_pool
from oracle import assert_bits_equal, assert_law
from sightline import kernels
from sightline.fovea.layers import function, gathered
from sightline.fovea.neighbours import search_in_torch

module = kernels.native()
pytestmark = pytest.mark.skipif(module is None, reason="the native library is not built")
ISAS = list(module.usable_isas()) if module is not None else []


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that this CPU has."""
    monkeypatch.setattr(kernels, "isa", lambda: request.param)
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = sl.get_num_threads()
    yield
    sl.set_num_threads(before)


def conv_and_gradients(case: KnnCase, given: tuple[Tensor, ...], table: tuple[Tensor, Tensor], grad: Tensor) -> list[Tensor]:
    x, weight, bias = (value.detach().requires_grad_() for value in given)
    y = function.knn_conv(x, weight, bias, *table)
    return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), grad.to(y.dtype))]


def plain_conv(given: tuple[Tensor, ...], table: tuple[Tensor, Tensor], grad: Tensor) -> list[Tensor]:
    """The same in PyTorch, in the type given."""
    x, weight, bias = given
    rows, back = function.node_major(x), function.node_major(grad.to(x.dtype))
    gx, gw, gb = gathered.conv_backward(back, rows, weight, *table, (True, True, True))
    assert gx is not None and gw is not None and gb is not None
    return [function.as_map(gathered.conv(rows, weight, bias, *table)), function.as_map(gx), gw, gb]


@pytest.mark.parametrize("case", KNN_CASES, ids=lambda case: case.name)
def test_convolution_and_gradients_keep_the_law(case: KnnCase, isa: str) -> None:
    table, given = case.table(), case.tensors()
    exact_given = tuple(value.double() for value in given)
    grad = torch.randn(case.batch, case.cout, case.nodes)
    exact = plain_conv(exact_given, table, grad)
    torch.testing.assert_close(exact[0], loop_conv(exact_given[0], exact_given[1], exact_given[2], *table))
    for name, ours, plain, want in zip(
        ("y", "x", "weight", "bias"), conv_and_gradients(case, given, table, grad), plain_conv(given, table, grad), exact, strict=True
    ):
        assert_law(ours, plain, want, f"{isa} {name}")


@pytest.mark.parametrize("case", KNN_CASES, ids=lambda case: case.name)
def test_pooling_and_gradients(case: KnnCase, isa: str) -> None:
    del isa
    index, _ = case.table(3)
    x, weights = case.tensors()[0], torch.rand(index.shape, generator=torch.Generator().manual_seed(1))
    for mode, shares in (("max", None), ("avg", None), ("sum", None), ("sum", weights)):
        found = []
        for dtype in (torch.float32, torch.float64):
            at = x.to(dtype).requires_grad_()
            y = function.knn_max_pool(at, index) if mode == "max" else function.knn_sum_pool(at, index, shares, mode == "avg")
            found.append((y.detach(), *torch.autograd.grad(y, at, torch.ones_like(y).cumsum(2))))
        torch.testing.assert_close(found[1][0], loop_pool(x.double(), index, mode, None if shares is None else shares.double()))
        for ours, exact in zip(*found, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", KNN_CASES, ids=lambda case: case.name)
def test_bits_do_not_depend_on_threads(case: KnnCase, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    del threads, monkeypatch
    table, given, grad = case.table(), case.tensors(), torch.randn(case.batch * 8, case.cout, case.nodes)
    given = (given[0].repeat(8, 1, 1), *given[1:])  # large enough for the pool
    results = []
    for count in (1, 2, 5):
        sl.set_num_threads(count)
        x = given[0].detach().requires_grad_()
        pooled = function.knn_max_pool(x, table[0])
        results.append([*conv_and_gradients(case, given, table, grad), pooled.detach(), *torch.autograd.grad(pooled.sum(), x)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_bits_equal(a, b)


@pytest.mark.parametrize("case", KNN_CASES, ids=lambda case: case.name)
def test_a_row_does_not_depend_on_its_neighbours_in_the_call(case: KnnCase, isa: str) -> None:
    """Neither on other nodes nor on other images: what a stream computes alone is what the dense run computes."""
    del isa
    (index, cell), (x, weight, bias) = case.table(), case.tensors()
    whole = function.knn_conv(x, weight, bias, index, cell)
    some = torch.randperm(case.nodes, generator=torch.Generator().manual_seed(0))[: max(1, case.nodes // 2)]
    assert_bits_equal(function.knn_conv(x, weight, bias, index[some], cell[some]), whole[:, :, some])
    assert_bits_equal(function.knn_conv(x[-1:], weight, bias, index, cell), whole[-1:])


def test_strides_of_inputs_do_not_matter() -> None:
    case = KNN_CASES[4]
    table, (x, weight, bias) = case.table(), case.tensors()
    want = function.knn_conv(x, weight, bias, *table)
    assert want.permute(2, 0, 1).is_contiguous()
    node_major = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for other in (node_major, x.transpose(0, 2).contiguous().transpose(0, 2), torch.cat((x, x), 1)[:, : case.cin]):
        assert_bits_equal(function.knn_conv(other, weight, bias, *table), want)
    wide = torch.empty(weight.shape[1], weight.shape[0]).t().copy_(weight)
    assert_bits_equal(function.knn_conv(x, wide, bias, table[0].t().contiguous().t(), table[1]), want)


def test_one_nan_reaches_its_readers_only() -> None:
    case = KNN_CASES[5]
    (index, cell), (x, weight, bias) = case.table(), case.tensors()
    x[1, 3, 7] = torch.nan
    y = function.knn_conv(x, weight, bias, index, cell)
    reads = (index == 7).any(1)
    assert reads.any() and not reads.all()
    assert y[1][:, reads].isnan().all() and not y[1][:, ~reads].isnan().any() and not y[0].isnan().any()
    pooled = function.knn_max_pool(x, index)
    assert pooled[1, 3][reads].isnan().all() and pooled.isnan().sum() == reads.sum()
    assert function.knn_sum_pool(x, index, None, True)[1, 3][reads].isnan().all()


def test_empty_batches_and_tables() -> None:
    case = KNN_CASES[4]
    (index, cell), (x, weight, bias) = case.table(), case.tensors()
    assert function.knn_conv(x[:0], weight, bias, index, cell).shape == (0, case.cout, case.nodes)
    assert function.knn_conv(x, weight, bias, index[:0], cell[:0]).shape == (case.batch, case.cout, 0)
    nothing = torch.full_like(index, -1)
    assert not function.knn_conv(x, weight, bias, nothing, cell).any() and not function.knn_max_pool(x, nothing).any()
    gx, gw, gb = function.knn_conv_backward(torch.ones(case.batch, case.cout, case.nodes), x, weight, nothing, cell, True, True, True)
    assert not gx.any() and not gw.any() and not gb.any()


@pytest.mark.parametrize("value", [-2, 30, 2**31 - 1])
def test_tables_that_point_outside_are_refused(value: int) -> None:
    case = KNN_CASES[0]
    (index, cell), (x, weight, bias) = case.table(), case.tensors()
    wrong = index.clone()
    wrong[3, 2] = value
    with pytest.raises(IndexError, match="30 nodes"):
        function.knn_conv(x, weight, bias, wrong, cell)
    with pytest.raises(IndexError, match="30 nodes"):
        function.knn_max_pool(x, wrong)
    cell[3, 2] = -1 if value == -2 else value
    with pytest.raises(IndexError, match="16"):
        function.knn_conv(x, weight, bias, index, cell)


@given(st.integers(1, 3), st.integers(1, 90), st.integers(1, 40), st.integers(0, 2**31), st.booleans())
def test_the_search_is_the_brute_force_one(axes: int, sources: int, queries: int, seed: int, lattice: bool) -> None:
    """Also with many equal distances, as on lattices."""
    assert module is not None
    g = torch.Generator().manual_seed(seed)
    points = torch.rand(sources, axes, generator=g, dtype=torch.float64)
    targets = torch.rand(queries, axes, generator=g, dtype=torch.float64)
    if lattice:
        points, targets = (points * 4).round(), (targets * 4).round()
    k = 1 + seed % sources
    want = search_in_torch(points, targets, k)
    index, distance = torch.empty(queries, k, dtype=torch.int64), torch.empty(queries, k, dtype=torch.float64)
    module.knn_search((sources, queries, axes, k), points.data_ptr(), targets.data_ptr(), index.data_ptr(), distance.data_ptr())
    assert torch.equal(index, want[0])
    torch.testing.assert_close(distance, want[1], rtol=1e-15, atol=0)
