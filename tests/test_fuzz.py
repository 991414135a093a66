"""Random networks on random videos: 300 seeds in every run, each on some of the executors; `make fuzz` runs more seeds on all of them.

A failure names its seed; ``python tests/fuzz.py --seed N`` shows that network and checks it alone.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from network_features import features, wanted
from networks import RandomNetwork
from random_cases import blocks_on_small_maps, check, check_bfloat16
from sightline import kernels
from sightline.graph.capture import capture
from sightline.graph.lower import lower
from sightline.graph.plan import make_plan

CASES, PER_TEST = 300, 10
DRAWN = 160  # networks among which every feature must come up


@pytest.mark.parametrize("first", range(0, CASES, PER_TEST))
def test_random_networks(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        check(seed)
        if seed % 5 == 0:
            check_bfloat16(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(CASES, 2 * CASES, PER_TEST))
def test_random_networks_on_everything(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        check(seed, everything=True)
        check_bfloat16(seed)


def test_a_wrong_weight_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: one weight that is off by a thousandth of the largest."""
    from sightline.graph import simplify

    original = simplify._fold_affine
    touched: set[int] = set()
    seen: set[int] = set()

    def wrong(graph: object) -> None:
        original(graph)  # type: ignore[arg-type]
        for node in graph.nodes:  # type: ignore[attr-defined]
            if node.op == "conv2d":
                touched.add(seed)
                weight = node.attrs["weight"].detach().clone()
                weight.view(-1)[0] += 0.001 * weight.abs().max() + 0.001
                node.attrs["weight"] = weight

    monkeypatch.setattr(simplify, "_fold_affine", wrong)
    for seed in range(16):
        try:
            check(seed)
        except AssertionError:
            seen.add(seed)
    assert seen <= touched and len(touched) > 6
    assert len(seen) > 0.6 * len(touched)  # not all: the weight may meet nothing but padding


def test_a_threshold_that_is_not_kept_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: an executor that is told three times the threshold."""
    import random_cases

    original = random_cases._Case.executor

    def careless(case: random_cases._Case, name: str, norm: str = "rms") -> object:
        executor = original(case, name, norm)
        told = executor.set_threshold
        executor.set_threshold = lambda step, value: told(step, 3 * value)  # type: ignore[method-assign]
        return executor

    monkeypatch.setattr(random_cases._Case, "executor", careless)
    seen = 0
    for seed in range(12):
        try:
            check(seed)
        except AssertionError:
            seen += 1
    assert seen >= 4


def test_a_wrong_weight_is_seen_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights of which one is off by a twentieth of the largest: five units in the last place."""
    if kernels.native() is None:
        pytest.skip(str(kernels.native_status()["reason"]))
    from sightline.graph import lower as lowering

    original = lowering._floats

    def wrong(tensor: Tensor | None) -> Tensor | None:
        value = original(tensor)
        if value is None or value.dim() != 4:
            return value
        value = value.clone()
        value.view(-1)[0] += 0.05 * value.abs().max() + 0.05
        return value

    monkeypatch.setattr(lowering, "_floats", wrong)
    seen = 0
    for seed in range(24):
        try:
            check_bfloat16(seed)
        except AssertionError:
            seen += 1
    assert seen >= 6


def test_the_generator_draws_everything() -> None:
    """Every native step, activation, binary op and variant comes up; all-native networks, and torch steps between native ones, too."""
    module = kernels.native()
    if module is None:
        pytest.skip(str(kernels.native_status()["reason"]))
    seen: Counter[str] = Counter()
    for seed in range(DRAWN):
        network = RandomNetwork(seed)
        with blocks_on_small_maps(seed):
            plan = make_plan(capture(network, torch.zeros(network.shape)))
        seen.update(features(lower(plan, module, "baseline")))
    assert wanted() - set(seen) == set()
    assert 0.1 * DRAWN < seen["torch step"] < 0.6 * DRAWN and seen["between torch steps"] > 0.05 * DRAWN


def test_features_are_told_apart() -> None:
    """A network without a feature is not credited with it."""
    module = kernels.native()
    if module is None:
        pytest.skip(str(kernels.native_status()["reason"]))
    plan = make_plan(capture(torch.nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, 3, 8, 8)))
    found = features(lower(plan, module, "baseline"))
    assert found == {"input", "conv2d", "conv merged rows", "conv padding zeros", "odd channels"}
