"""Moving cameras: what is estimated, where frames are laid, and what a stream promises when they move."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracle
import sightline as sl
from random_cases import outputs
from sightline.camera.canvas import Canvas, canvas_size
from sightline.camera.motion import MotionEstimator, phase_correlation
from sightline.errors import CaptureError, FrameError, ShapeError
from sightline.graph.executor import Executor
from sightline.graph.native import NativeExecutor
from sightline.graph.torch_executor import TorchExecutor
from sightline.stream import Stream
from streams import net


def scene(h: int = 360, w: int = 480, channels: int = 3, seed: int = 0, grain: int = 4) -> Tensor:
    """Texture of several scales, in grey levels."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        F.interpolate(torch.randn(1, channels, -(-h // s) + 2, -(-w // s) + 2, generator=generator), scale_factor=s, mode="bicubic")
        for s in (grain, 3 * grain, 9 * grain)
    ]
    return (40 * torch.stack([part[:, :, :h, :w] for part in parts]).sum(0) + 128).round()


def view(picture: Tensor, y: int, x: int, h: int = 96, w: int = 128) -> Tensor:
    return picture[:, :, y : y + h, x : x + w].contiguous()


def between(picture: Tensor, y: float, x: float, h: int = 96, w: int = 128, angle: float = 0.0, zoom: float = 1.0) -> Tensor:
    """A view whose middle lies between pixels, turned by `angle` (radians) and scaled."""
    turn = zoom * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = torch.tensor([(h - 1) / 2, (w - 1) / 2])
    cells = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1) - middle
    points = cells @ turn.T + middle + torch.tensor([y, x])
    size = torch.tensor([picture.shape[2] - 1, picture.shape[3] - 1])
    return F.grid_sample(picture, (points / size * 2 - 1).flip(-1)[None], mode="bicubic", align_corners=True)


# -- estimation -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [(0.0, 0.0), (0.0, 3.0), (2.0, -5.0), (0.4, 1.7), (0.0, 0.05)])
def test_translations_are_found_to_a_tenth_of_a_pixel(speed: tuple[float, float]) -> None:
    picture, estimator = scene(), MotionEstimator()
    noise = torch.Generator().manual_seed(1)
    for i in range(8):
        y, x = 100 + speed[0] * i, 150 + speed[1] * i
        frame = between(picture, y, x, 160, 208)
        pose = estimator(frame + torch.randn(frame.shape, generator=noise))
        assert (pose.origin - torch.tensor([y - 100, x - 150])).abs().max() < 0.1, i
        assert not estimator.restarted or i == 0


def test_a_large_object_that_moves_by_itself_is_not_followed() -> None:
    picture, other, estimator = scene(), scene(seed=5), MotionEstimator()
    for i in range(6):
        frame = view(picture, 50, 60 + 2 * i, 160, 208)
        frame[:, :, 20:130, 10 + 6 * i : 90 + 6 * i] = other[:, :, :110, :80]
        pose = estimator(frame)
        assert (pose.origin - torch.tensor([0.0, 2.0 * i])).abs().max() < 0.1


def test_a_sudden_pan_is_found_and_a_cut_is_not_taken_for_one() -> None:
    picture, estimator = scene(), MotionEstimator()
    for i, x in enumerate((60, 60, 100, 101, 140)):
        pose = estimator(view(picture, 80, x, 160, 208))
        assert (pose.origin - torch.tensor([0.0, x - 60.0])).abs().max() < 0.1
        assert estimator.restarted == (i == 0)
    pose = estimator(view(scene(seed=9), 0, 0, 160, 208))
    assert estimator.restarted
    assert not pose.origin.any()


def test_rotation_and_zoom_are_found() -> None:
    picture, estimator = scene(), MotionEstimator("affine")
    for i in range(8):
        pose = estimator(between(picture, 90 + i, 120 - 1.5 * i, 160, 208, 0.008 * i, 1 + 0.004 * i))
        middle = torch.tensor([79.5, 103.5], dtype=torch.float64)
        assert (pose(middle) - middle - torch.tensor([i, -1.5 * i])).abs().max() < 0.15
        assert abs(float(pose.linear[1, 0]) - math.sin(0.008 * i) * (1 + 0.004 * i)) < 0.002
        assert pose.inverse(pose(middle)).allclose(middle)


@pytest.mark.parametrize("picture", [torch.full((1, 3, 64, 80), 7.0), torch.zeros(1, 1, 5, 6)])
def test_nothing_to_see_is_no_motion(picture: Tensor) -> None:
    estimator = MotionEstimator()
    for _ in range(3):
        assert not estimator(picture).origin.any()


def test_phase_correlation() -> None:
    picture = scene(90, 120, 1)[0, 0]
    assert phase_correlation(picture[10:70, 10:90], picture[17:77, 5:85]).tolist() == [7, -5]


# -- the canvas --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 160), (64, 96), (65, 97)])
def test_a_canvas_shows_the_scene(size: tuple[int, int]) -> None:
    """Wherever the camera wanders: the frame lies where it is said to lie, and all else that was seen stays in its place."""
    picture = scene()
    canvas = Canvas((64, 96), size, (32, 32))
    place = torch.tensor([150, 190])
    start, seen = place.clone(), torch.zeros(picture.shape[2:], dtype=torch.bool)
    generator = torch.Generator().manual_seed(3)
    for i in range(40):
        frame = view(picture, int(place[0]), int(place[1]), 64, 96)
        y, x = (place - start).tolist()
        if i == 0:
            canvas.start(frame)
        else:
            base = canvas.base
            shift = canvas.place(frame, (y, x))
            assert (canvas.base[0] - base[0], canvas.base[1] - base[1]) == shift
            assert shift[0] % 32 == shift[1] % 32 == 0
        assert canvas.pixels is not None
        assert tuple(canvas.pixels.shape[2:]) == size
        assert (canvas.base[0] + canvas.offset[0], canvas.base[1] + canvas.offset[1]) == (y, x)
        top, left = (int(s) + b for s, b in zip(start, canvas.base, strict=True))
        fresh = torch.zeros_like(seen)
        fresh[int(place[0]) : int(place[0]) + 64, int(place[1]) : int(place[1]) + 96] = True
        on_canvas = torch.zeros_like(seen)
        on_canvas[max(0, top) : top + size[0], max(0, left) : left + size[1]] = True
        seen = (seen & on_canvas) | (fresh & on_canvas)
        known = seen[top : top + size[0], left : left + size[1]]
        assert torch.equal(canvas.pixels[0][:, known], picture[0][:, top : top + size[0], left : left + size[1]][:, known])
        step = torch.randint(-9, 10, (2,), generator=generator)
        place = (place + step).clamp(min=torch.tensor([100, 100]), max=torch.tensor([220, 280]))


def test_a_canvas_with_a_margin_shows_the_whole_frame() -> None:
    size = canvas_size((64, 96), (32, 16))
    assert size == (96, 128)
    canvas = Canvas((64, 96), size, (32, 16))
    picture = scene()
    canvas.start(view(picture, 100, 100, 64, 96))
    for x in range(0, 90, 7):
        canvas.place(view(picture, 100, 100 + x, 64, 96), (0, x))
        oy, ox = canvas.offset
        assert canvas.pixels is not None
        assert torch.equal(canvas.pixels[:, :, oy : oy + 64, ox : ox + 96], view(picture, 100, 100 + x, 64, 96))


# -- streams -----------------------------------------------------------------------------------------------------------------------


def pyramid(seed: int = 0) -> nn.Module:
    """A small network with strides, depthwise layers and a path back up; returns a map of stride 4 and one of stride 2."""

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.wide = nn.Conv2d(8, 24, 1)
            self.deep = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
            self.down = nn.Conv2d(24, 16, 3, 2, 1)
            self.side = nn.Conv2d(8, 16, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = F.relu(self.stem(x))
            z = F.relu(self.down(F.relu(self.deep(F.relu(self.wide(y))))))
            up = F.interpolate(z, scale_factor=2.0, mode="bilinear")
            return z, torch.cat([up, self.side(y)], 1)

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Pyramid().eval()


def dense_on_canvas(stream: Stream) -> list[Tensor]:
    """What the stream's network gives for the canvas as it lies, without a past."""
    executor, camera = stream._executor, stream.camera
    assert executor is not None
    assert camera is not None
    assert camera.canvas.pixels is not None
    again: Executor = TorchExecutor(executor.plan, "rms", None, stream._dtype)
    if isinstance(executor, NativeExecutor):
        again = NativeExecutor(executor._lowered, "rms", None)
    again.run(camera.canvas.pixels)
    return outputs(again)


def held(stream: Stream) -> list[Tensor]:
    """The outputs on the whole canvas."""
    assert stream._executor is not None
    return outputs(stream._executor)


@pytest.mark.parametrize("motion", ["translation", "affine"])
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_threshold_0_is_the_dense_run_on_the_canvas(motion: str, backend: str, dtype: torch.dtype | None) -> None:
    picture = scene()
    stream = sl.stream(pyramid(), backend=backend, motion=motion, dtype=dtype)
    shifted = 0
    for i in range(16):
        frame = view(picture, 100 + 3 * i, 200 - 5 * i if i < 9 else 155 + 5 * (i - 9))
        if i % 3:
            frame[:, :, 30:40, 10 + i : 30 + i] = 255
        kept = frame.clone()
        base = stream.camera.canvas.base if stream.camera is not None else (0, 0)
        returned = stream(frame)
        assert torch.equal(frame, kept)
        assert stream.camera is not None
        assert stream.camera.restarts == 0
        shifted += i > 0 and stream.camera.canvas.base != base
        for mine, dense in zip(held(stream), dense_on_canvas(stream), strict=True):
            if backend == "native":
                oracle.assert_bits_equal(mine + 0, dense + 0, f"frame {i}")
            else:
                assert torch.allclose(mine.float(), dense.float(), atol=1e-3 if dtype is None else 0.5), i
        assert [tuple(y.shape) for y in returned] == [(1, 16, 24, 32), (1, 32, 48, 64)]
    assert shifted >= 3


def test_a_pan_costs_what_comes_into_view() -> None:
    picture, model = scene(), pyramid()
    still, moving = sl.stream(model), sl.stream(model, motion="translation")
    for i in range(12):
        frame = view(picture, 100, 100 + 4 * i)
        still(frame), moving(frame)
    assert still.stats.total.macs_done > 0.95 * still.stats.total.macs_dense
    rest = moving.stats.total.macs_done - moving.stats.total.macs_dense / 12
    assert rest < 0.35 * 11 / 12 * still.stats.total.macs_dense


def test_a_camera_that_stands_still_costs_nothing() -> None:
    frame = view(scene(), 10, 10)
    stream = sl.stream(pyramid(), motion="translation")
    for i in range(4):
        stream(frame)
        assert (stream.stats.last.macs_done == 0) == (i > 0)


def test_outputs_lie_where_the_shift_says() -> None:
    """A spot that stands still in the scene, seen by a camera that moves, read off a map of stride 8."""
    model = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(1, 1, 1))
    nn.init.ones_(model[1].weight)  # type: ignore[arg-type]
    picture = scene(channels=1) / 10
    picture[:, :, 150:158, 200:208] = 4000
    stream = sl.stream(model, motion="translation")
    for i in range(14):
        y, x = 120 - 2 * i, 140 + 3 * i
        out = stream(view(picture, y, x, 96, 128))
        assert tuple(out.shape) == (1, 1, 12, 16)
        heat = out[0, 0].clamp(min=out.max() / 20)
        heat = heat - heat.min()
        rows, cols = (torch.arange(size) * 8 + 3.5 for size in heat.shape)
        found = torch.stack([(heat.sum(1) * rows).sum(), (heat.sum(0) * cols).sum()]) / heat.sum()
        assert (found + torch.tensor(stream.output_shift) - torch.tensor([153.5 - y, 203.5 - x])).abs().max() < 0.6


def test_a_network_without_strides_gives_the_frames_own_output() -> None:
    """Away from the border, where a window reads padding in one case and the scene in the other."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1))
    picture, stream = scene() / 255, sl.stream(model, motion="translation")
    for i in range(8):
        frame = view(picture, 100 + i, 100 - 6 * i)
        out, plain = stream(frame), model(frame).detach()
        assert stream.output_shift == (0.0, 0.0)
        assert torch.allclose(out[..., 2:-2, 2:-2], plain[..., 2:-2, 2:-2], atol=1e-5)


def test_affine_maps_are_turned_back() -> None:
    model = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 2, 1))
    picture, stream = scene() / 255, sl.stream(model, motion="affine")
    for i in range(8):
        frame = between(picture, 100, 150, angle=0.01 * i, zoom=1 + 0.004 * i)
        out, plain = stream(frame), model(frame).detach()
        error = (out - plain)[..., 1:-1, 1:-1].square().mean().sqrt() / plain.std()
        assert error < 0.15, i
        if i > 1:
            assert stream.stats.last.density["input"] < 0.999
    assert stream.camera is not None
    assert stream.camera.restarts == 0


def test_an_affine_pan_saves_work_at_a_threshold() -> None:
    picture, model = scene(grain=8) / 255, pyramid()
    turned, still = sl.stream(model, 0.1, motion="affine"), sl.stream(model, 0.1)
    for i in range(10):
        frame = between(picture, 100 + i, 150, angle=0.01 * i)
        turned(frame), still(frame)
    assert turned.stats.total.macs_done < 0.6 * still.stats.total.macs_done


def test_a_classifier_runs_on_a_canvas_of_the_frames_size() -> None:
    picture, model = scene() / 255, net()
    stream = sl.stream(model, motion="translation")
    for i in range(10):
        out = stream(view(picture, 100, 100 + 4 * i))
        assert stream.camera is not None
        assert stream.camera.canvas.size == (96, 128)
        for mine, dense in zip(held(stream), dense_on_canvas(stream), strict=True):
            oracle.assert_bits_equal(mine + 0, dense + 0, f"frame {i}")
        assert tuple(out["scores"][0].shape) == (1, 5)


def test_a_cut_starts_again() -> None:
    model = pyramid()
    stream = sl.stream(model, motion="translation")
    first, second = scene(), scene(seed=4)
    for i in range(3):
        stream(view(first, 50, 50 + 5 * i))
    stream(view(second, 50, 50))
    assert stream.camera is not None
    assert stream.camera.restarts == 1
    assert stream.camera.position == (0.0, 0.0)
    fresh = sl.stream(model, motion="translation")
    assert all(map(torch.equal, stream(view(second, 50, 53)), (fresh(view(second, 50, 50)), fresh(view(second, 50, 53)))[1]))


def test_a_bad_frame_moves_nothing() -> None:
    picture, model = scene(), pyramid()
    stream, twin = sl.stream(model, motion="translation"), sl.stream(model, motion="translation")
    for i in range(12):
        frame = view(picture, 100, 100 + 6 * i)
        if i in {0, 5}:
            bad = frame.clone()
            bad[0, 1, 3, 3] = float("nan")
            with pytest.raises(FrameError):
                stream(bad)
        assert all(map(torch.equal, stream(frame), twin(frame)))


def test_reset_and_clone_begin_anew() -> None:
    picture = scene()
    stream = sl.stream(pyramid(), motion="translation")
    first = [stream(view(picture, 100, 100 + 5 * i)) for i in range(6)]
    twin = stream.clone()
    assert twin.camera is None
    stream.reset()
    for i in range(6):
        for again in (stream, twin):
            assert all(map(torch.equal, again(view(picture, 100, 100 + 5 * i)), first[i]))


def test_sites_of_a_frame_are_shown_in_the_frame() -> None:
    stream = sl.stream(pyramid(), motion="translation")
    frame = view(scene(), 100, 100)
    stream(frame)
    frame[:, :, 40:44, 60:70] += 20
    stream(frame)
    mask = stream.last_sites()
    assert tuple(mask.shape) == (1, 96, 128)
    assert mask.sum() == 40
    assert mask[0, 40:44, 60:70].all()
    assert tuple(stream.last_sites("down").shape) == (1, 24, 32)


def test_budgets_gates_and_filters_work_on_the_canvas() -> None:
    """A budget's checks run densely what the network sees: with thresholds of 0 they find no error."""
    picture, model = scene() / 255, net()
    budget = sl.Budget(1.0, every=4) if hasattr(sl, "Budget") else 1.0
    stream = sl.stream(model, motion="translation", budget=budget, global_ops="hold", noise="block")
    plain = sl.stream(model, motion="translation")
    for i in range(14):
        frame = view(picture, 100 + i, 100 + 4 * i)
        out, exact = stream(frame), plain(frame)
        assert stream.output_shift == plain.output_shift
        assert out["map"].shape == exact["map"].shape
        assert (out["map"] - exact["map"]).norm() < 0.2 * exact["map"].norm()


def test_what_cannot_be_combined_says_so() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y[:, :, : int(x.sum()) % 3 + 2]

    with pytest.raises(ValueError, match="`motion` must be one of"):
        sl.stream(pyramid(), motion="homography")
    with pytest.raises(ValueError, match="`aoi` and `motion`"):
        sl.stream(pyramid(), motion="translation", aoi=sl.AreaOfInterest(torch.ones(4, 4)))
    with pytest.raises(ValueError, match="noise='temporal' and `motion`"):
        sl.stream(pyramid(), motion="translation", noise="temporal")
    with pytest.raises(ValueError, match="`exposure` and `motion`"):
        sl.stream(pyramid(), motion="translation", exposure="global")
    with pytest.raises(ShapeError, match="a stream of its own"):
        sl.stream(pyramid(), motion="translation")(torch.zeros(2, 3, 64, 64))
    with pytest.raises(CaptureError, match="With `motion`"):
        sl.stream(Counts(), motion="translation")(torch.rand(1, 3, 64, 64))
