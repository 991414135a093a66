"""Losses, learning rates and optimisers of training, against formulas written out in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sightline.errors import ConfigError, ShapeError
from sightline.fovea.training.losses import BarlowTwinsLoss, SimCLRLoss, VICRegLoss, gather_of, make_loss
from sightline.fovea.training.schedule import LARS, learning_rate, make_optimizer, parameter_groups

Pair = tuple[torch.Tensor, torch.Tensor]


def views(images: int = 6, features: int = 5, seed: int = 0) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(images, features, generator=generator, dtype=torch.float64)
    return first, first + 0.3 * torch.randn(images, features, generator=generator, dtype=torch.float64)


# Written with loops and numbers, as the papers have them.


def simclr(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    rows = [view / view.norm() for view in [*first, *second]]
    total = 0.0
    for i, row in enumerate(rows):
        partner = (i + len(first)) % len(rows)
        others = [math.exp(float(row @ rows[j]) / temperature) for j in range(len(rows)) if j != i]
        total -= math.log(math.exp(float(row @ rows[partner]) / temperature) / sum(others))
    return total / len(rows)


def vicreg(first: torch.Tensor, second: torch.Tensor, sim: float, std: float, cov: float) -> float:
    images, features = first.shape
    total = sim * sum(float((first[i, j] - second[i, j]) ** 2) for i in range(images) for j in range(features)) / (images * features)
    for view in (first, second):
        means = [sum(float(view[i, j]) for i in range(images)) / images for j in range(features)]

        def covariance(a: int, b: int, view: torch.Tensor = view, means: list[float] = means) -> float:
            return sum((float(view[i, a]) - means[a]) * (float(view[i, b]) - means[b]) for i in range(images)) / (images - 1)

        hinge = sum(max(0.0, 1 - math.sqrt(covariance(j, j) + 1e-4)) for j in range(features)) / features
        total += std * hinge / 2
        total += cov * sum(covariance(a, b) ** 2 for a in range(features) for b in range(features) if a != b) / features
    return total


def barlow(first: torch.Tensor, second: torch.Tensor, lambd: float) -> float:
    images, features = first.shape

    def standard(view: torch.Tensor) -> list[list[float]]:
        columns = []
        for j in range(features):
            column = [float(view[i, j]) for i in range(images)]
            mean = sum(column) / images
            deviation = math.sqrt(sum((value - mean) ** 2 for value in column) / images + 1e-5)
            columns.append([(value - mean) / deviation for value in column])
        return columns

    one, other = standard(first), standard(second)
    total = 0.0
    for a in range(features):
        for b in range(features):
            correlation = sum(x * y for x, y in zip(one[a], other[b], strict=True)) / images
            total += (correlation - 1) ** 2 if a == b else lambd * correlation**2
    return total


LOSSES: list[tuple[nn.Module, Callable[[torch.Tensor, torch.Tensor], float]]] = [
    (SimCLRLoss(0.2), lambda first, second: simclr(first, second, 0.2)),
    (VICRegLoss(25, 15, 2), lambda first, second: vicreg(first, second, 25, 15, 2)),
    (BarlowTwinsLoss(0.01), lambda first, second: barlow(first, second, 0.01)),
]


@pytest.mark.parametrize(("loss", "formula"), LOSSES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_formula(loss: nn.Module, formula: Callable[[torch.Tensor, torch.Tensor], float], seed: int) -> None:
    first, second = views(seed=seed)
    assert float(loss(first, second)) == pytest.approx(formula(first, second), rel=2e-5)


@pytest.mark.parametrize(("loss", "formula"), LOSSES, ids=lambda value: type(value).__name__)
def test_gradient_is_that_of_the_formula(loss: nn.Module, formula: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
    first, second = views(4, 3)
    first.requires_grad_()
    loss(first, second).backward()
    assert first.grad is not None
    for place in ((0, 0), (2, 1), (3, 2)):
        step = torch.zeros_like(first)
        step[place] = 1e-4
        slope = (formula(first.detach() + step, second) - formula(first.detach() - step, second)) / 2e-4
        assert float(first.grad[place]) == pytest.approx(slope, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize(("loss", "formula"), LOSSES, ids=lambda value: type(value).__name__)
def test_equal_views_are_better_than_exchanged_ones(loss: nn.Module, formula: Any) -> None:
    del formula
    first, second = views(16)
    assert float(loss(first, second)) < float(loss(first, second.roll(1, 0)))


@pytest.mark.parametrize("loss", [SimCLRLoss(), VICRegLoss(), BarlowTwinsLoss()], ids=lambda loss: type(loss).__name__)
def test_half_precision_embeddings_are_summed_in_single(loss: nn.Module) -> None:
    first, second = (view.to(torch.bfloat16) for view in views(32, 8))
    got = loss(first, second)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(float(loss(first.double(), second.double())), rel=1e-4)


def test_views_of_other_shapes_are_refused() -> None:
    first, second = views()
    with pytest.raises(ShapeError, match=r"got \(6, 5\) and \(5, 5\)"):
        SimCLRLoss()(first, second[:5])
    for loss in (VICRegLoss(), BarlowTwinsLoss()):
        with pytest.raises(ShapeError, match="at least 2 images"):
            loss(first[:1], second[:1])
    with pytest.raises(ConfigError, match="temperature must be greater than 0"):
        SimCLRLoss(0.0)


# ------------------------------------------------------------------------------------------------ many processes


def two_processes(fabric: Any, loss: Any, first: torch.Tensor, second: torch.Tensor, weights: torch.Tensor, results: Any) -> None:
    layer = nn.Linear(5, 5, bias=False)
    layer.weight.data.copy_(weights)
    module = fabric.setup_module(layer)
    loss.gather = gather_of(fabric)
    half = slice(3 * fabric.global_rank, 3 * fabric.global_rank + 3)
    value = loss(*module(torch.cat([first[half], second[half]])).split(3))
    fabric.backward(value)
    assert layer.weight.grad is not None
    results[fabric.global_rank] = (value.item(), layer.weight.grad.tolist())


@pytest.mark.filterwarnings("ignore")  # of forking with threads, and of deprecated names inside the peers
def test_two_processes_have_the_loss_and_gradient_of_the_whole_batch() -> None:
    fabric_package = pytest.importorskip("lightning_fabric")
    first, second = (view.float() for view in views(6))
    weights = torch.randn(5, 5)
    manager = torch.multiprocessing.get_context("fork").Manager()
    for make in (lambda: SimCLRLoss(0.2), VICRegLoss, BarlowTwinsLoss):
        layer = nn.Linear(5, 5, bias=False)
        layer.weight.data.copy_(weights)
        alone = make()(layer(first), layer(second))
        alone.backward()
        results = manager.dict()
        fabric = fabric_package.Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
        fabric.launch(two_processes, make(), first, second, weights, results)
        assert set(results.keys()) == {0, 1}
        for value, gradient in results.values():
            assert value == pytest.approx(alone.item(), rel=1e-5)
            torch.testing.assert_close(torch.tensor(gradient), layer.weight.grad, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- rates and optimisers


@given(warmup=st.integers(0, 20), rest=st.integers(1, 50), peak=st.floats(1e-4, 10), end=st.floats(0, 1))
def test_rate_rises_then_falls(warmup: int, rest: int, peak: float, end: float) -> None:
    total = warmup + rest
    rates = [learning_rate(step, peak=peak, warmup_steps=warmup, total_steps=total, end_ratio=end) for step in range(total + 3)]
    assert all(0 <= rate <= peak * (1 + 1e-12) for rate in rates)
    assert all(a < b for a, b in itertools.pairwise(rates[:warmup]))
    assert all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(rates[warmup:]))
    if warmup:
        assert rates[warmup - 1] == pytest.approx(peak)
    assert rates[-1] == pytest.approx(peak * end)


def test_lars_is_the_formula() -> None:
    """Two steps by hand: momentum over scaled gradients; vectors as in plain SGD, without decay."""
    matrix, vector = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([2.0]))
    optimizer = LARS([matrix, vector], lr=0.5, momentum=0.9, weight_decay=0.1, eta=0.01)
    expected, moment = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    plain, plain_moment = 2.0, 0.0
    for slope in (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])):
        matrix.grad, vector.grad = slope.clone(), torch.tensor([1.0])
        optimizer.step()
        decayed = slope.double() + 0.1 * expected
        moment = 0.9 * moment + decayed * 0.01 * expected.norm() / decayed.norm()
        expected = expected - 0.5 * moment
        plain_moment = 0.9 * plain_moment + 1.0
        plain -= 0.5 * plain_moment
    torch.testing.assert_close(matrix.data.double(), expected, rtol=1e-5, atol=1e-6)
    assert vector.item() == pytest.approx(plain)


def test_lars_moves_weights_that_are_zero() -> None:
    matrix = nn.Parameter(torch.zeros(1, 2))
    matrix.grad = torch.ones(1, 2)
    LARS([matrix], lr=1.0).step()
    assert torch.equal(matrix.data, -torch.ones(1, 2))
    with pytest.raises(ConfigError, match="momentum in"):
        LARS([matrix], lr=1.0, momentum=1.0)


def test_vectors_are_not_decayed() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    net[0].weight.requires_grad_(False)
    matrices, vectors = parameter_groups([net, net], 0.1)
    assert matrices["params"] == [] and matrices["weight_decay"] == 0.1
    assert [id(p) for p in vectors["params"]] == [id(p) for p in (net[0].bias, net[1].weight, net[1].bias)] and vectors["weight_decay"] == 0
    net.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter to train"):
        make_optimizer({"weight_decay": 0.1, "optimizer": "adamw", "base_lr": 1.0, "eps": 1e-8}, [net])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="one of supervised, simclr, vicreg, barlow"):
        make_loss({"training": {"loss": "ipcl"}})
    with pytest.raises(ConfigError, match="one of adamw, sgd, lars"):
        make_optimizer({"weight_decay": 0.1, "optimizer": "adam", "base_lr": 1.0}, [nn.Linear(2, 2)])
