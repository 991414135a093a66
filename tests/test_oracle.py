"""The assert helpers can fail."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import cases
import networks
import oracle
from sightline.graph.capture import capture
from sightline.graph.plan import make_plan
from sightline.graph.torch_executor import TorchExecutor


@pytest.mark.parametrize("dtype", list(oracle.FLOORS))
def test_law_sees_an_error_beyond_its_floor(dtype: torch.dtype) -> None:
    exact = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    plain = exact.to(dtype)
    allowed = oracle.allowed(plain, exact)
    oracle.assert_law(plain, plain, exact)
    wrong = plain.clone()
    wrong[1, 2] += 4 * max(allowed, torch.finfo(dtype).eps)
    with pytest.raises(AssertionError, match="output 0"):
        oracle.assert_law(wrong, plain, exact)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_law_sees_values_that_are_not_finite(bad: float) -> None:
    exact = torch.ones(2, 2, dtype=torch.float64)
    wrong = torch.ones(2, 2)
    wrong[0, 0] = bad
    with pytest.raises(AssertionError):
        oracle.assert_law(wrong, torch.ones(2, 2), exact)
    exact[0, 0] = bad
    oracle.assert_law(wrong, wrong, exact)


def test_law_allows_twice_the_error_of_plain_and_no_more() -> None:
    exact = torch.zeros(3, dtype=torch.float64)
    oracle.assert_law(torch.full((3,), 2.0), torch.ones(3), exact)
    with pytest.raises(AssertionError):
        oracle.assert_law(torch.full((3,), 2.1), torch.ones(3), exact)


def test_law_of_a_whole_video_allows_what_its_worst_frame_does_and_no_more() -> None:
    exact = torch.zeros(3, dtype=torch.float64)
    oracle.assert_law(torch.full((3,), 5.0), torch.ones(3), exact, limits=[6.0])
    oracle.assert_law(torch.full((3,), 2.0), torch.ones(3), exact, limits=[0.5])
    with pytest.raises(AssertionError):
        oracle.assert_law(torch.full((3,), 6.1), torch.ones(3), exact, limits=[6.0])


def test_law_compares_structure() -> None:
    one = torch.ones(2)
    for got, wanted in (((one,), (one, one)), (one.double(), one), (one[:1], one), ((), ())):
        with pytest.raises(AssertionError):
            oracle.assert_law(got, wanted, wanted)
    with pytest.raises(AssertionError, match="not of floats"):
        oracle.assert_law(torch.tensor([1]), torch.tensor([2]), torch.tensor([2]))


def test_law_of_sums_has_a_floor_of_the_terms_and_no_more() -> None:
    exact, size = torch.tensor([1e-9], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)
    plain = exact.float()
    floor = 4 * oracle.FLOORS[torch.float32]
    oracle.assert_sums_law(plain + 0.9 * floor, plain, exact, size)
    for bad in (plain + 1.2 * floor, plain * float("nan"), (plain + 0.0).double()):
        with pytest.raises(AssertionError):
            oracle.assert_sums_law(bad, plain, exact, size)
    with pytest.raises(AssertionError, match="tensors"):
        oracle.assert_sums_law([plain, plain], plain, exact, size)


def test_bits_sees_the_sign_of_zero() -> None:
    oracle.assert_bits_equal({"a": torch.tensor([0.0, float("nan")])}, {"a": torch.tensor([0.0, float("nan")])})
    with pytest.raises(AssertionError, match="1 of 1"):
        oracle.assert_bits_equal(torch.tensor([0.0]), torch.tensor([-0.0]))


@pytest.mark.parametrize("norm", ["rms", "max", "l2"])
def test_within_sees_a_map_that_is_too_far_away(norm: str) -> None:
    graph = capture(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()).eval(), torch.zeros(1, 2, 6, 6))
    executor = TorchExecutor(make_plan(graph), norm, None)
    executor.run(torch.randn(1, 2, 6, 6))
    oracle.assert_within(executor, {}, norm)
    held = executor.value(graph.outputs[0] if graph.outputs[0] in executor.plan.by_output else executor.plan.steps[-1].output)
    assert isinstance(held, torch.Tensor)
    held[0, :, 2, 2] += 0.5
    size = {"rms": 0.5, "max": 0.5, "l2": 1.0}[norm]
    oracle.assert_within(executor, {executor.plan.steps[-1]: size * 1.001}, norm)
    with pytest.raises(AssertionError, match="away"):
        oracle.assert_within(executor, {executor.plan.steps[-1]: size * 0.999}, norm)


def test_outside_sees_a_value_that_moved() -> None:
    graph = capture(nn.ReLU(), torch.zeros(1, 2, 6, 6))
    executor = TorchExecutor(make_plan(graph), "rms", None)
    executor.run(torch.rand(1, 2, 6, 6))
    before = oracle.snapshot(executor)
    executor.run(executor.value(executor.plan.steps[0].output).clone())  # type: ignore[attr-defined]
    oracle.assert_untouched_outside_sites(executor, before)
    executor.value(executor.plan.steps[-1].output)[0, 1, 3, 3] *= 1.00001  # type: ignore[index]
    with pytest.raises(AssertionError, match="outside"):
        oracle.assert_untouched_outside_sites(executor, before)


def test_case_names_are_unique() -> None:
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)


def test_networks_follow_from_their_seed() -> None:
    first, second = networks.RandomNetwork(5), networks.RandomNetwork(5)
    frame = networks.video(first.shape, 1, 5)[0]
    assert str(first) == str(second)
    oracle.assert_bits_equal(first(frame), second(frame))
    assert str(first) != str(networks.RandomNetwork(6))


def test_networks_use_everything() -> None:
    text = "\n".join(str(networks.RandomNetwork(seed)) for seed in range(600))
    for word in (
        "Conv2d", "ConvTranspose2d", "groups=", "dilation=", "reflect", "replicate", "circular", "output_padding", "MaxPool2d",
        "AvgPool2d", "ceil_mode=True", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "nearest", "bilinear", "bicubic", "cat of",
        "cat along", "channels ", "rows ", "channel shuffle", "pixel shuffle", "pixel unshuffle", "squeeze and excite", "again",
        "add of", "mul of", "div of", "Linear", "flatten", "PReLU", "SiLU", "GELU", "Mish", "sine", "attention",
        "kernel_size=(11", "frame (3",
    ):  # fmt: skip
        assert word in text, word


def test_videos_move_a_little() -> None:
    frames = networks.video((2, 3, 12, 12), 5, 1)
    for before, after in itertools.pairwise(frames):
        share = float((before != after).any(1).double().mean())
        assert 0 < share < 0.3
