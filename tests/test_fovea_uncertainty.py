"""`UncertaintySaccades`: the map that it learns, and where it looks next."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sightline.errors import ShapeError
from sightline.fovea import KNNBatchNorm, KNNConv, KNNPool, RetinalTransform, SensorGrid
from sightline.fovea.layers import KNNDepthwiseConv, KNNDepthwiseSeparableConv
from sightline.fovea.saccades import Glimpses
from sightline.fovea.saccades.uncertainty import UncertaintySaccades, certainty

SIDE = 64


def policy(**options: Any) -> UncertaintySaccades:
    retina = RetinalTransform(SensorGrid.matched(16, 1.0, 8), sampler="pooling", fixation_size=96)
    return UncertaintySaccades(retina, 3, **{"in_channels": 1, "channels": 8, "grid": 16, "classes": 10, **options})


def discs(count: int, seed: int, radius: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with one bright disc and one dark one; the bright one matters. And where it is."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    images, places = 0.05 * torch.randn(count, 1, SIDE, SIDE, generator=generator), []
    for index in range(count):
        for value in (-1.0, 1.0):
            row, col = (torch.randint(radius, SIDE - radius, (2,), generator=generator)).tolist()
            images[index, 0][(rows - row) ** 2 + (cols - col) ** 2 <= radius**2] = value
        places.append(((row + 0.5) / SIDE, (col + 0.5) / SIDE))
    return images, torch.tensor(places)


def certain_near(fixations: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """What a network would be that reads the bright disc where it looks at it."""
    distance = (fixations - places[:, None]).norm(dim=-1) * SIDE
    return torch.where(distance < 8, 0.95, 0.1)


def found(looking: UncertaintySaccades, images: torch.Tensor, places: torch.Tensor, count: int = 3) -> float:
    fixations = looking(images, n_fixations=count).fixations
    return float(((fixations - places[:, None]).norm(dim=-1) * SIDE < 8).any(1).float().mean())


def test_learns_to_look_where_answers_are_certain() -> None:
    """The dark disc has as much contrast; only what came of looking tells the two apart."""
    torch.manual_seed(0)
    looking = policy()
    images, places = discs(96, 1)
    assert found(looking.eval(), images, places) < 0.5
    optimizer = torch.optim.Adam(looking.parameters(), lr=0.01)
    looking.train()
    losses = []
    for step in range(40):
        looking.explore = max(0.2, 1 - step / 30)
        batch, where = discs(32, 100 + step)
        with torch.no_grad():
            glimpses = looking(batch)
        loss = looking.loss(glimpses, certain_near(glimpses.fixations, where), (SIDE, SIDE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert found(looking.eval(), images, places) > 0.85
    looking.follow = "contrast"
    assert 0.2 < found(looking, images, places) < 0.7, "contrast finds one of the two discs first"


def test_evaluation_begins_in_the_middle_and_repeats_itself() -> None:
    looking = policy().eval()
    images, _ = discs(5, 0)
    one, other = looking(images), looking(images, generator=torch.Generator().manual_seed(3))
    assert torch.equal(one.fixations, other.fixations)
    assert torch.equal(one.fixations[:, 0], torch.full((5, 2), 0.5))
    assert torch.equal(looking(images, n_fixations=2).fixations, one.fixations[:, :2])


def test_no_place_is_looked_at_again() -> None:
    looking = policy(return_radius=0.1).eval()
    fixations = looking(discs(4, 0)[0], n_fixations=8).fixations
    distance = torch.cdist(fixations, fixations) + torch.eye(8)
    assert float(distance.min()) >= 0.1 - 1e-6


def test_draws_come_from_the_generator() -> None:
    looking = policy().train()
    images, _ = discs(6, 0)
    state = torch.get_rng_state()
    one = looking(images, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.fixations, looking(images, generator=torch.Generator().manual_seed(3)).fixations)
    assert not torch.equal(one.fixations, looking(images, generator=torch.Generator().manual_seed(4)).fixations)
    assert len({tuple(fixation.tolist()) for fixation in one.fixations[:, 0]}) == 6
    assert bool(((one.fixations >= 0) & (one.fixations <= 1)).all())


def test_images_of_a_batch_do_not_see_each_other() -> None:
    looking = policy().eval()
    images, _ = discs(6, 2)
    together = looking(images).fixations
    for index in range(6):
        assert torch.equal(looking(images[index : index + 1]).fixations[0], together[index])


def test_looking_does_not_change_the_policy() -> None:
    """Running averages of the norms are learned in `loss` alone."""
    looking = policy().train()
    before = {name: value.clone() for name, value in looking.state_dict().items()}
    looking(discs(4, 0)[0])
    for name, value in looking.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert looking.expectation.training


def test_nodes_of_the_table_are_the_nearest_in_the_image() -> None:
    looking = policy().eval()
    fixation = torch.tensor([[[0.3, 0.6]]])
    glimpse = Glimpses(torch.zeros(1, 1, 1, len(looking.retina.sensor)), fixation, torch.full((1, 1, 2), 96.0), torch.zeros(1, 1, 2))
    nodes, weight = looking._at(looking.cells[None], glimpse, (SIDE, SIDE))
    points = looking.retina.sensor.cartesian
    place = torch.stack([fixation[0, 0, 0] * SIDE - points[:, 1] * 48, fixation[0, 0, 1] * SIDE + points[:, 0] * 48], 1)
    distance = torch.cdist(looking.cells * SIDE, place)
    # The table has cells of three quarters of a pixel.
    assert float((distance.gather(1, nodes[0, 0][:, None])[:, 0] - distance.amin(1)).max()) < 1.1
    offset = (looking.cells - fixation[0]) * SIDE
    outside = offset.norm(dim=1) > 48 + 1
    assert bool((weight[0, 0][outside] == 0).all()) and bool((weight[0, 0][offset.norm(dim=1) < 47] > 0).all())


def test_unseen_cells_have_the_prior() -> None:
    retina = RetinalTransform(SensorGrid.matched(16, 1.0, 8), fixation_size=20)
    looking = UncertaintySaccades(retina, 2, in_channels=1, grid=16)
    history = looking.look(torch.rand(1, 1, SIDE, SIDE), torch.full((1, 1, 2), 0.5), torch.full((1, 1, 2), 20.0))
    cells = looking.map(torch.full((1, 1, len(retina.sensor)), 7.0), history, (SIDE, SIDE), -1.0).view(16, 16)
    assert cells[0, 0] == -1 and cells[8, 8] == 7


def test_nan_in_an_image_does_not_stop_looking() -> None:
    images, _ = discs(3, 0)
    images[1] = torch.nan
    for looking in (policy().eval(), policy().train()):
        fixations = looking(images, generator=torch.Generator().manual_seed(0)).fixations
        assert bool(fixations.isfinite().all())
    clean = policy().eval()
    kept = clean(images[:1]).fixations
    assert torch.equal(clean(images).fixations[:1], kept)


def test_certainty() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]], requires_grad=True)
    free = certainty(logits)
    assert free[0, 0] == pytest.approx(0, abs=1e-6) and free[0, 1] > 0.99 and not free.requires_grad
    right = certainty(logits, torch.tensor([1]))
    torch.testing.assert_close(right, logits.detach().softmax(-1)[..., 1])


def test_what_cannot_be_is_refused() -> None:
    grid = RetinalTransform(SensorGrid(16, 1.0, 8, style="logpolar_as_grid"))
    with pytest.raises(ShapeError, match="needs a sensor of points"):
        UncertaintySaccades(grid)
    with pytest.raises(ValueError, match="`follow` must be"):
        policy(follow="faces")
    looking = policy()
    glimpses = looking(discs(2, 0)[0])
    with pytest.raises(ShapeError, match="a certainty per fixation"):
        looking.loss(glimpses, torch.zeros(2, 1), (SIDE, SIDE))


# ------------------------------------------------------------------------------------------------ layers in training


@pytest.mark.parametrize("node_major", [True, False])
@pytest.mark.parametrize("shape", [(24, 4, 33), (3, 2, 5), (64, 24, 123), (1, 3, 7), (5, 1, 7)])
def test_batch_norm_has_the_gradients_of_pytorch(shape: tuple[int, int, int], node_major: bool) -> None:
    batch, channels, nodes = shape

    def laid_out() -> torch.Tensor:
        return torch.randn(nodes, batch, channels).permute(1, 2, 0) if node_major else torch.randn(shape)

    ours, reference = KNNBatchNorm(nodes, channels), torch.nn.BatchNorm1d(channels).double()
    x = laid_out().requires_grad_()
    wide = x.detach().double().contiguous().requires_grad_()
    for gradient in (laid_out(), torch.randn(shape)):
        for leaf in (x, wide, *ours.parameters(), *reference.parameters()):
            leaf.grad = None
        ours(x).backward(gradient)
        reference(wide).backward(gradient.double())
        for one, other in ((x, wide), (ours.weight, reference.weight), (ours.bias, reference.bias)):
            assert one.grad is not None and other.grad is not None
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [KNNConv, KNNDepthwiseConv, KNNDepthwiseSeparableConv])
def test_layers_follow_autocast(kind: Any) -> None:
    """As PyTorch's convolutions: bfloat16 in and out, gradients of float32 parameters in float32."""
    sensor = SensorGrid.matched(16, 0.5, 8)
    for channels in (2, 32):
        layer = kind(channels, channels, 9, sensor, sensor, bias=True)
        x = torch.rand(3, channels, len(sensor), requires_grad=True)
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = layer(x)
        assert rounded.dtype == torch.bfloat16 and exact.dtype == torch.float32
        assert ((rounded - exact).norm() / exact.norm()).item() < 0.02
        rounded.float().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in layer.parameters())
        assert x.grad is not None and bool(x.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_max_pool_has_gradients_in_half_precision(dtype: torch.dtype) -> None:
    sensor = SensorGrid.matched(16, 0.5, 8)
    pool = KNNPool(9, sensor, SensorGrid.matched(16, 0.5, 4))
    x = torch.randperm(2 * 3 * len(sensor)).view(2, 3, -1).remainder(251).to(dtype)  # exact in half precision
    half, single = x.clone().requires_grad_(), x.float().requires_grad_()
    pool(half).sum().backward()
    pool(single).sum().backward()
    assert half.grad is not None and single.grad is not None
    assert half.grad.dtype == dtype and torch.equal(half.grad.float(), single.grad)
