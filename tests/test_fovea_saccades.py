"""Saccade policies: reproducible by generator, within their ranges, what they look at, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sightline as sl
from sightline.fovea import (
    Glimpses,
    InhibitedSaccades,
    NoSaccades,
    PrioritySaccades,
    RandomSaccades,
    RetinalTransform,
    SaccadePolicy,
    SaliencySaccades,
    SensorGrid,
)
from sightline.fovea.saccades import inhibition, random_crops, spectral_residual

RETINA = RetinalTransform(SensorGrid(16, 0.5, 7), fixation_size=32)
IMAGES = torch.rand(3, 3, 40, 60, generator=torch.Generator().manual_seed(0))


def policies() -> list[SaccadePolicy]:
    return [
        NoSaccades(RETINA, 2),
        RandomSaccades(RETINA, 4),
        RandomSaccades(RETINA, 3, near_center=0.25, area_range=(0.2, 0.6), aspect_range=(3 / 4, 4 / 3)),
        RandomSaccades(RETINA, 3, first_at_center=True),
        InhibitedSaccades(RETINA, 5),
        SaliencySaccades(RETINA, 3),
        SaliencySaccades(RETINA, 3, draw=True, recovery=2.0),
        Follower(RETINA, 4),
    ]


class Follower(SaccadePolicy):
    """Asks the model, step by step: looks down and to the right of where it looked before, by what the model says."""

    def next(
        self, images: torch.Tensor, history: Glimpses | None, model: Any = None, *, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        where = self.centre(images)[:, 0] * 0.2
        if history is not None:
            where = history.fixations[:, -1] + (0.1 if model is None else model(history))
        return where, self.usual_sizes(images, 1)[:, 0]


@pytest.mark.parametrize("policy", policies(), ids=lambda policy: type(policy).__name__)
def test_glimpses_are_what_the_retina_sees(policy: SaccadePolicy) -> None:
    for training in (True, False):
        policy.train(training)
        before = IMAGES.clone()
        seen = policy(IMAGES, generator=torch.Generator().manual_seed(3))
        count = policy.n_fixations
        assert seen.samples.shape == (3, count, 3, 60)
        assert seen.fixations.shape == seen.sizes.shape == seen.deltas.shape == (3, count, 2)
        assert seen.fixations.dtype == torch.float32
        assert bool(((seen.fixations >= 0) & (seen.fixations <= 1)).all())
        assert torch.equal(seen.samples, policy.retina(IMAGES, seen.fixations, seen.sizes))
        assert seen.samples.permute(3, 1, 0, 2).is_contiguous()
        assert not bool(seen.deltas[:, 0].any())
        torch.testing.assert_close(seen.deltas[:, 1:], seen.fixations[:, 1:] - seen.fixations[:, :-1])
        assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("policy", policies(), ids=lambda policy: type(policy).__name__)
def test_generators_make_policies_reproducible(policy: SaccadePolicy) -> None:
    first = policy(IMAGES, 6, generator=torch.Generator().manual_seed(5))
    torch.rand(10)
    again = policy(IMAGES, 6, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.manual_seed(11)
    by_global = policy(IMAGES, 6)
    torch.manual_seed(11)
    assert torch.equal(policy(IMAGES, 6).fixations, by_global.fixations)
    random = isinstance(policy, RandomSaccades | InhibitedSaccades) or getattr(policy, "draw", False)
    other = policy(IMAGES, 6, generator=torch.Generator().manual_seed(6))
    assert torch.equal(other.fixations, first.fixations) is not random
    # A generator's numbers do not depend on the global one, nor change it.
    state = torch.get_rng_state()
    policy(IMAGES, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("policy", policies(), ids=lambda policy: type(policy).__name__)
def test_given_fixations_are_taken_and_not_changed(policy: SaccadePolicy) -> None:
    given_list = [torch.tensor([0.2, 0.3]), torch.rand(3, 2), (0.5, 0.6)]
    copies = [torch.as_tensor(one).clone() for one in given_list]
    seen = policy(IMAGES, fixations=given_list, fixation_size=20)
    assert seen.samples.shape[1] == 3
    for f, one in enumerate(copies):
        torch.testing.assert_close(seen.fixations[:, f], one.expand(3, 2))
        assert torch.equal(torch.as_tensor(given_list[f]), one)
    assert bool((seen.sizes == 20).all())
    tensor = torch.rand(3, 2, 2)
    assert torch.equal(policy(IMAGES, 2, tensor).fixations, tensor)
    with pytest.raises(sl.ShapeError, match="2 fixations"):
        policy(IMAGES, 3, tensor)
    with pytest.raises(sl.ShapeError, match="list of F"):
        policy(IMAGES, fixations=torch.rand(3, 2))
    with pytest.raises(ValueError, match="NaN"):
        policy(IMAGES, fixations=[(0.5, math.nan)])
    with pytest.raises(ValueError, match="0 to 1"):
        policy(IMAGES, fixations=[(0.5, 1.5)])
    with pytest.raises(sl.ShapeError, match="batch, channels"):
        policy(IMAGES[0])


def test_step_by_step_is_the_same_as_planned() -> None:
    policy = SaliencySaccades(RETINA, 4)
    planned = policy(IMAGES)
    history: Glimpses | None = None
    for _ in range(4):
        where, size = policy.next(IMAGES, history)
        glimpse = policy.look(IMAGES, where[:, None], size[:, None])
        history = glimpse if history is None else Glimpses.joined((history, glimpse))
    assert history is not None
    assert all(torch.equal(a, b) for a, b in zip(planned, history, strict=True))


def test_a_policy_may_ask_the_model() -> None:
    asked: list[int] = []

    def model(history: Glimpses) -> torch.Tensor:
        asked.append(history.samples.shape[1])
        return torch.tensor([0.0, 0.2])

    seen = Follower(RETINA, 4)(IMAGES, model=model)
    assert asked == [1, 2, 3]
    torch.testing.assert_close(seen.fixations[0], torch.tensor([[0.1, 0.1], [0.1, 0.3], [0.1, 0.5], [0.1, 0.7]]))


class Flat(PrioritySaccades):
    def priority(self, images: torch.Tensor, history: Glimpses | None, model: Any) -> torch.Tensor:
        return torch.full((len(images), 9, 9), math.nan)


def test_flat_and_nan_maps_give_the_middle_then_cover_the_image() -> None:
    seen = Flat(RETINA, 9, radius=0.1)(IMAGES)
    torch.testing.assert_close(seen.fixations[:, 0], torch.full((3, 2), 0.5))
    assert len({tuple(place) for place in seen.fixations[0].tolist()}) == 9
    with pytest.raises(NotImplementedError, match="priority"):
        PrioritySaccades(RETINA)(IMAGES)
    with pytest.raises(NotImplementedError, match="plan"):
        SaccadePolicy(RETINA)(IMAGES)


# ------------------------------------------------------------------------------------------------ random

_SHARE = st.floats(0.02, 1.5)


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    areas=st.tuples(_SHARE, _SHARE).map(sorted),
    aspects=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted),
)
def test_crops_lie_within_the_image(seed: int, height: int, width: int, areas: list[float], aspects: list[float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    middle, size = random_crops((2, 3), height, width, (areas[0], areas[1]), (aspects[0], aspects[1]), generator)
    image = torch.tensor([height, width], dtype=torch.float64)
    assert bool((size >= 0).all())
    assert bool((size == size.round()).all())
    low, high = middle * image - size / 2, middle * image + size / 2
    assert bool((low >= -1e-9).all())
    assert bool((high <= image + 1e-9).all())


def test_crops_have_the_areas_and_aspects_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    middle, size = random_crops((400, 5), 1000, 1000, (0.1, 0.5), (0.5, 2.0), generator)
    area = size.prod(-1) / 1e6
    aspect = (size[..., 1] / size[..., 0]).log()
    assert float(area.min()) > 0.0995
    assert float(area.max()) < 0.501
    assert float(area.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(aspect.abs().max()) < math.log(2) + 0.01
    assert float(aspect.mean()) == pytest.approx(0, abs=0.02)
    assert middle.mean((0, 1)).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    # Corners are even: the room left is used from one end to the other.
    room = (middle[..., 0] * 1000 - size[..., 0] / 2) / (1000 - size[..., 0])
    assert float(room.min()) < 0.01
    assert float(room.max()) > 0.99
    # Where nothing fits, the middle of the image.
    middle, size = random_crops((2, 2), 100, 200, (3.0, 3.0), (1.0, 1.0), generator)
    assert size.flatten().unique().tolist() == [100]
    assert middle.flatten().unique().tolist() == [0.5]


def test_random_settings() -> None:
    images = torch.zeros(200, 1, 64, 64)
    near = RandomSaccades(RETINA, 5, near_center=0.25, area_range=(0.25, 1.0), area_in_eval=0.36)
    seen = near.train()(images)
    assert float((seen.fixations - 0.5).abs().max()) == pytest.approx(0.25, abs=0.005)
    assert 32 <= float(seen.sizes.min()) < 36
    assert 60 < float(seen.sizes.max()) <= 64
    assert torch.equal(seen.sizes[..., 0], seen.sizes[..., 1])
    assert near.eval()(images).sizes.unique().tolist() == [38]
    assert near(images, area_range=0.25).sizes.unique().tolist() == [32]
    first = RandomSaccades(RETINA, 3, first_at_center=True)(images)
    assert first.fixations[:, 0].unique().tolist() == [0.5]
    assert len(first.fixations[:, 1].unique()) > 10
    still = RandomSaccades(RETINA, 3, center_in_eval=True)
    assert still.eval()(images).fixations.unique().tolist() == [0.5]
    assert len(still.train()(images).fixations.unique()) > 10
    # Elements of a batch look at different places.
    assert len(seen.fixations[:, 0, 0].unique()) > 190


# ------------------------------------------------------------------------------------------------ inhibition and saliency


def test_inhibition_against_its_formula() -> None:
    visited = torch.rand(2, 3, 2, dtype=torch.float64)
    found = inhibition(visited, (5, 7), 1.5, 0.2, strength=0.8, recovery=2.0)
    for b in range(2):
        for i in range(5):
            for j in range(7):
                wanted = 1.0
                for age, (row, col) in enumerate(reversed(visited[b].tolist())):
                    d2 = ((i + 0.5) / 5 - row) ** 2 + (1.5 * ((j + 0.5) / 7 - col)) ** 2
                    wanted *= 1 - 0.8 * math.exp(-age / 2) * math.exp(-d2 / (2 * 0.04))
                assert float(found[b, i, j]) == pytest.approx(wanted, abs=1e-12)
    assert torch.equal(inhibition(visited[:, :0], (5, 7), 1.0, 0.2), torch.ones(2, 5, 7, dtype=torch.float64))
    tall = inhibition(visited.flip(-1), (7, 5), 1 / 1.5, 0.2, strength=0.8, recovery=2.0)
    torch.testing.assert_close(tall.transpose(1, 2), found)


def test_inhibited_fixations_keep_apart() -> None:
    images = torch.zeros(100, 1, 64, 64)

    def nearest(policy: SaccadePolicy) -> float:
        places = policy(images, generator=torch.Generator().manual_seed(0)).fixations
        return float((torch.cdist(places, places) + 10 * torch.eye(6)).amin((1, 2)).mean())

    free, held = nearest(InhibitedSaccades(RETINA, 6, strength=0)), nearest(InhibitedSaccades(RETINA, 6, radius=0.15))
    assert held > 1.4 * free
    bounded = InhibitedSaccades(RETINA, 6, margin=0.3)(images).fixations
    assert float((bounded - 0.5).abs().max()) < 0.21


def scene(row: int, col: int, seed: int) -> torch.Tensor:
    """Noise of one brightness everywhere, and a disc of 20 pixels with another pattern."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    picture = 0.5 + 0.1 * torch.rand(3, 256, 256, generator=generator)
    disc = ((y - row) ** 2 + (x - col) ** 2) < 400
    picture[:, disc] += torch.tensor([0.3, -0.1, -0.1])[:, None]
    return picture


def test_what_stands_out_is_looked_at_first() -> None:
    generator = torch.Generator().manual_seed(4)
    places = torch.randint(30, 226, (20, 2), generator=generator)
    images = torch.stack([scene(int(row), int(col), seed) for seed, (row, col) in enumerate(places)])
    for kind in (images, (images * 255).to(torch.uint8), images.mean(1, keepdim=True)):
        seen = SaliencySaccades(RETINA, 1)(kind).fixations[:, 0]
        missed = (seen * 256 - places).norm(dim=1)
        assert int((missed < 25).sum()) >= 19
    chance = RandomSaccades(RETINA, 1, near_center=0.5)(images).fixations[:, 0]
    assert int(((chance * 256 - places).norm(dim=1) < 25).sum()) <= 3


def test_two_things_are_looked_at_one_after_the_other() -> None:
    images = torch.full((1, 3, 200, 300), 0.5)
    images[0, :, 40:60, 60:80] = 1.0
    images[0, :, 140:160, 220:240] = 0.1
    seen = SaliencySaccades(RETINA, 2)(images).fixations[0] * torch.tensor([200.0, 300.0])
    wanted = torch.tensor([[50.0, 70.0], [150.0, 230.0]])
    gaps = torch.cdist(seen, wanted)
    assert float(gaps.amin(1).max()) < 22
    assert sorted(gaps.argmin(1).tolist()) == [0, 1]


def test_saliency_maps_are_finite_and_mean_one() -> None:
    cases = [torch.zeros(2, 3, 50, 70), torch.full((2, 1, 9, 9), 0.3), torch.rand(2, 5, 30, 30), torch.rand(2, 3, 300, 20).mul(1e6)]
    broken = torch.rand(2, 3, 64, 64)
    broken[0, 0, 3] = math.nan
    broken[1, 1, :, 5] = math.inf
    for images in (*cases, broken, (255 * torch.rand(2, 3, 40, 40)).to(torch.uint8), torch.rand(2, 3, 40, 40).half()):
        found = spectral_residual(images)
        assert found.shape == (2, 64, 64)
        assert bool(found.isfinite().all())
        assert bool((found >= 0).all())
        assert found.mean((1, 2)).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert torch.equal(spectral_residual(cases[0]), torch.ones(2, 64, 64))
    # Brightness and contrast of the whole image do not matter, nor do other images of the batch.
    images = torch.rand(2, 3, 80, 80)
    torch.testing.assert_close(spectral_residual(images * 0.5 + 0.2), spectral_residual(images), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(spectral_residual(images[1:]), spectral_residual(images)[1:], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="side"):
        spectral_residual(images, side=4)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: NoSaccades(RETINA, 0), "n_fixations"),
        (lambda: RandomSaccades(RETINA, area_range=(0.5, 0.1)), "area_range"),
        (lambda: RandomSaccades(RETINA, area_range=0), "area_range"),
        (lambda: RandomSaccades(RETINA, aspect_range=(-1, 2)), "aspect_range"),
        (lambda: RandomSaccades(RETINA, area_in_eval=math.nan), "area_in_eval"),
        (lambda: RandomSaccades(RETINA, near_center=0.7), "near_center"),
        (lambda: InhibitedSaccades(RETINA, radius=0), "radius"),
        (lambda: InhibitedSaccades(RETINA, strength=2), "strength"),
        (lambda: SaliencySaccades(RETINA, recovery=0), "recovery"),
        (lambda: SaliencySaccades(RETINA, margin=0.5), "margin"),
    ],
)
def test_bad_settings_are_refused(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_policies_print_their_settings() -> None:
    shown = repr(RandomSaccades(RETINA, 4, near_center=0.25))
    assert shown.startswith("RandomSaccades(\n  retinal_transform=RetinalTransform(")
    assert "n_fixations=4" in shown
    assert "near_center=0.25" in shown
    assert "radius=0.15" in repr(SaliencySaccades(RETINA))
