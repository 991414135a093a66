"""A fovea over video: what a stream of a network that looks promises, at fixations that rest and that move."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import sightline as sl
from sightline import fovea
from sightline.errors import FrameError, ShapeError
from sightline.fovea import FoviNet, KNNAlexNet, RetinalTransform, compose
from sightline.media import open_source
from streams import Backend, assert_equals_dense, both_executors

SMALL = ["saccades.resize_size=20", "model.channel_mult=0.1", "model.mlp=24-16", "data.num_classes=5"]
PLACES = torch.tensor([[[0.5, 0.5], [0.3, 0.7], [0.8, 0.2]]])


def network(*settings: str) -> FoviNet:
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        net = FoviNet(compose("fovi_alexnet", [*SMALL, *settings]))
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return net


def clip(count: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Pictures in which a square moves."""
    generator = torch.Generator().manual_seed(3)
    still = torch.rand((batch, 3, 60, 80), generator=generator)
    frames = []
    for index in range(count):
        frame = still.clone()
        frame[:, :, 20:30, 10 + 5 * index : 20 + 5 * index] = 1.0
        frames.append((frame * 255).round().to(torch.uint8) if dtype == torch.uint8 else frame.to(dtype))
    return frames


def full(net: FoviNet, frame: Tensor, video: fovea.FoveaStream, dtype: torch.dtype = torch.float32) -> Any:
    with torch.no_grad():
        samples = copy.deepcopy(net.retinal_transform).eval()(frame, video.fixations, video.sizes)
        whole = copy.deepcopy(net).eval().to(dtype)
        return whole(samples.to(dtype), fixated_inputs=True)


@both_executors
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_equals_the_full_run_at_every_frame_while_fixations_move(backend: Backend, dtype: torch.dtype) -> None:
    net = network()
    video = fovea.stream(net, backend=backend.name)
    places = PLACES.expand(2, -1, -1).clone()
    for index, frame in enumerate(clip(7, 2, dtype)):
        places[index % 2, index % 3] = torch.rand(2)
        answer, layers, samples = video(frame, places.clone())
        wanted = full(net, frame, video)
        oracle.assert_bits_equal(samples, wanted[2])
        oracle.assert_law([answer, layers], list(wanted[:2]), list(full(net, frame, video, torch.float64)[:2]), f"frame {index}")
        assert index == 0 or 0 < video.stats.last.macs_share < 0.7
    assert net.training  # as it was


@both_executors
def test_equals_its_own_dense_run_to_the_bit(backend: Backend) -> None:
    video = fovea.stream(network(), backend=backend.name)
    for index, frame in enumerate(clip(5)):
        places = PLACES.clone()
        places[0, 1] = torch.tensor([0.1 * index, 0.4])
        got, fresh = video(frame, places), video.clone()(frame, places)
        if backend.name == "native":
            oracle.assert_bits_equal(list(got), list(fresh))
        else:
            torch.testing.assert_close(got, fresh)


def test_a_fixation_that_moves_leaves_the_others_alone() -> None:
    video = fovea.stream(network())
    frame = clip(1)[0]
    video(frame, PLACES)
    moved = PLACES.clone()
    moved[0, 1] = torch.tensor([0.45, 0.55])
    video(frame, moved)
    for name, density in video.stats.last.density.items():
        sites = video.network.last_sites(name)
        assert not sites[0].any() and not sites[2].any(), name
        assert density <= 1 / 3
    assert video.network.last_sites("network.backbone.layers.0.conv")[1].all()
    assert video.fixations is not None and torch.equal(video.fixations, moved)


def test_a_static_frame_costs_nothing_and_a_far_change_neither() -> None:
    video = fovea.stream(network())
    frame = clip(1)[0]
    first = video(frame, [(0.5, 0.5)], fixation_size=20)
    video(frame.clone())
    assert video.stats.last.macs_done == 0
    frame[:, :, :8] += 1  # outside the field of view
    again = video(frame)
    assert video.stats.last.macs_done == 0
    oracle.assert_bits_equal(list(again), list(first))


def test_fixations_rest_until_the_policy_is_asked_again() -> None:
    video = fovea.stream(network("saccades.seed=4"))
    frame = clip(1)[0]
    video(frame, n_fixations=2)
    first = video.fixations
    assert first is not None and first.shape == (1, 2, 2)
    video(frame)
    assert video.fixations is first or torch.equal(video.fixations, first)  # type: ignore[arg-type]
    video.look_again()
    video(frame, n_fixations=2)
    assert video.fixations is not None and not torch.equal(video.fixations, first)


def test_what_does_not_fit_is_refused_and_the_stream_goes_on() -> None:
    video = fovea.stream(network())
    frame = clip(1)[0]
    first = video(frame, PLACES)
    for bad in ([(0.5, 1.5)] * 3, [(0.5, float("nan"))] * 3):
        with pytest.raises(ValueError, match="fixations"):
            video(frame, bad)
    with pytest.raises(ShapeError, match="reset"):
        video(frame, PLACES[:, :2])
    with pytest.raises(ShapeError, match="images"):
        video(frame[0])
    with pytest.raises(FrameError):
        video(torch.full_like(frame, float("nan")))
    assert torch.equal(video.fixations, PLACES)  # type: ignore[arg-type]
    oracle.assert_bits_equal(list(video(frame)), list(first))
    assert video.stats.last.macs_done == 0
    video.reset()
    assert video(frame, PLACES[:, :2])[2].shape[1] == 2
    with pytest.raises(ShapeError, match="retina"):
        fovea.stream(nn.Conv2d(3, 4, 3))
    net = network()
    with pytest.raises(ShapeError, match="its own"):
        fovea.stream(net, retina=net.retinal_transform)  # type: ignore[arg-type]


def test_thresholds_hold_per_point_and_save_work() -> None:
    exact, mild = fovea.stream(network()), fovea.stream(network(), 0.1)
    noise = torch.Generator().manual_seed(0)
    for frame in clip(4):
        seen = frame + 0.01 * torch.randn(frame.shape, generator=noise)
        right, near = exact(seen, PLACES)[1][0], mild(seen, PLACES)[1][0]
    assert mild.stats.last.macs_share < 0.8 * exact.stats.last.macs_share
    assert 0 < float((right - near).norm() / right.norm()) < 0.2
    assert len(mild.thresholds) and "input" in mild.thresholds


@both_executors
def test_other_networks_with_a_retina(backend: Backend) -> None:
    net = KNNAlexNet(16, 3, [8, 8], [1, 1], [0], [9, 9], n_classes=4, auto_match_cart_resources=1)
    video = fovea.stream(net, retina=RetinalTransform(net.in_coords, fixation_size=50), backend=backend.name)
    retina = RetinalTransform(net.in_coords, fixation_size=50)
    for frame in clip(3):
        got = video(frame, PLACES)
        assert got.shape == (1, 3, 4)
        assert_equals_dense(got.flatten(0, 1), net, retina(frame, PLACES).flatten(0, 1))


@both_executors
def test_residual_networks_stream_points_natively(backend: Backend) -> None:
    torch.manual_seed(1)
    net = _resnet()
    stream = sl.stream(net, backend=backend.name)
    samples = torch.rand(2, 3, len(net.in_coords))
    stream(samples)
    for _ in range(3):
        samples = samples.clone()
        samples[0, :, 40:60] += 0.5
        assert_equals_dense(stream(samples), net, samples)
    assert 0 < stream.stats.last.macs_share < 0.55  # the second element rests
    rows = stream.explain().rows
    assert rows[-1]["site"] == "avgpool.points"  # only the output's own order of axes is made by torch
    assert all(row["executor"] == backend.name for row in rows[:-1])


@both_executors
@pytest.mark.parametrize("kind", ["convnext", "depthwise separable"])
def test_depthwise_layers_and_response_norms_stream_points_natively(backend: Backend, kind: str) -> None:
    torch.manual_seed(2)
    net: Any
    if kind == "convnext":
        net = FoviNet(compose("fovi_convnext", ["saccades.resize_size=32", "data.num_classes=4"])).network.backbone
    else:
        net = KNNAlexNet(16, 3, [9, 18], [1, 1], [0], [9, 9], n_classes=4, auto_match_cart_resources=1, layer_cls="dwsep")
    for name, parameter in net.named_parameters():
        if name.endswith(("gamma", "beta", "bias")):
            nn.init.normal_(parameter, 0, 0.3)
    stream = sl.stream(net, backend=backend.name)
    samples = torch.rand(2, 3, len(net.in_coords))
    for index in range(3):
        samples = samples.clone()
        samples[0, :, 40:44] += 0.5
        assert_equals_dense(stream(samples), net, samples)
        assert index == 0 or 0 < stream.stats.last.macs_share < 0.6  # the second element rests
        if backend.name == "native":
            oracle.assert_bits_equal(stream(samples), stream.clone()(samples))
    on_torch = [row["op"] for row in stream.explain().rows if row["executor"] == "torch"]
    assert backend.name == "torch" or on_torch == (["aten.layer_norm.default", "aten.reshape.default"] if kind == "convnext" else [])


def _resnet() -> Any:
    config = ["saccades.resize_size=32", "model.channel_mult=0.1", "model.mlp=16", "data.num_classes=4"]
    return FoviNet(compose("fovi_resnet18_rf1", config)).network.backbone


def test_frames_of_points_have_no_neighbours() -> None:
    net = KNNAlexNet(16, 3, [8], [1], [], [9], auto_match_cart_resources=1)
    points = torch.rand(1, 3, len(net.in_coords))
    for options in ({"noise": "block"}, {"motion": "translation"}, {"exposure": "global"}):
        with pytest.raises(ValueError, match="pictures"):
            sl.stream(net, **options)(points)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"frame\[None\]"):
        sl.stream(nn.Conv2d(3, 4, 3))(points)
    stream = sl.stream(net, example=points)
    assert stream(points).shape == net(points).shape
    stream.reset()
    assert stream(points[:, :, :].clone()).shape == net(points).shape


def test_real_video(shared_data: Path) -> None:
    """Twelve frames of a still camera: equal to the full run; with a threshold, for a fraction of its work."""
    net = network("saccades.resize_size=64")
    video, mild = fovea.stream(net), fovea.stream(net, 0.1)
    with open_source(str(shared_data / "videos" / "vtest.avi"), frames=12) as source:
        for item in source:
            frame = torch.from_numpy(item.rgb()).permute(2, 0, 1)[None]
            answer, _, samples = video(frame, PLACES, fixation_size=500)
            if item.index % 4 == 3:
                wanted = copy.deepcopy(net).eval()(samples, fixated_inputs=True)[0]
                torch.testing.assert_close(answer, wanted.detach(), rtol=1e-4, atol=1e-5)
            near = mild(frame, PLACES, fixation_size=500)[0]
            assert item.index == 0 or mild.stats.last.macs_share < 0.9
            assert float((near - answer).norm() / answer.norm()) < 0.1
