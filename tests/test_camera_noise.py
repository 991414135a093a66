"""The temporal noise filter: what it does to pixels, its two forms, and streams that use it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import sightline as sl
from sightline import kernels
from sightline.camera.noise import TemporalFilter, TemporalNoise, parse_noise
from sightline.errors import FrameError, MediaError
from sightline.thresholds import Thresholds
from streams import SHAPE, Backend, both_executors, net

NATIVE = [
    pytest.param(True, marks=pytest.mark.skipif(not kernels.native_status()["available"], reason="no compiled module"), id="native"),
    pytest.param(False, id="torch"),
]
forms = pytest.mark.parametrize("native", NATIVE)


def noisy(shape: tuple[int, ...], frames: int, sigma: float = 1.0, patch: bool = True) -> tuple[Tensor, list[Tensor]]:
    """A still picture, and frames of it with noise that is new every time and, if wanted, a bright patch that moves."""
    generator = torch.Generator().manual_seed(sum(shape))
    picture = 100 * torch.rand(shape, generator=generator)
    result = []
    for index in range(frames):
        frame = picture + sigma * torch.randn(shape, generator=generator)
        if patch:
            frame[:, :, 5:12, 3 + index : 10 + index] += 60
        result.append(frame)
    return picture, result


def codec(shape: tuple[int, ...], frames: int) -> list[Tensor]:
    """A still picture whose 8x8 blocks are sent again now and then, each time with another error, which then stays."""
    generator = torch.Generator().manual_seed(0)
    frame = 100 * torch.rand(shape, generator=generator)
    picture, result = frame.clone(), []
    for _ in range(frames):
        sent = torch.rand(shape[0], 1, shape[2] // 8, shape[3] // 8, generator=generator) < 0.3
        sent = sent.repeat_interleave(8, 2).repeat_interleave(8, 3)
        frame = torch.where(sent, picture + torch.randn(shape, generator=generator), frame)
        result.append(frame.clone())
    return result


@pytest.mark.skipif(not kernels.native_status()["available"], reason="no compiled module")
@pytest.mark.parametrize("shape", [(1, 3, 37, 53), (2, 1, 70, 33), (3, 5, 9, 7), (1, 3, 1, 40), (1, 2, 150, 3)])
@pytest.mark.parametrize("dilation", [0, 1, 5])
def test_both_forms_agree_with_float64(shape: tuple[int, ...], dilation: int) -> None:
    settings = TemporalNoise(dilation=dilation)
    ours, plain, exact = TemporalFilter(settings), TemporalFilter(settings, native=False), TemporalFilter(settings)
    for frame in noisy(shape, 9)[1]:
        got, torchs, wanted = ours(frame, 0.5), plain(frame, 0.5), exact(frame.double(), 0.5)
        assert wanted.dtype == torch.float64
        if exact.moved is not None:
            assert ours.moved is not None and torch.equal(ours.moved, exact.moved)
            assert plain.moved is not None and torch.equal(plain.moved, exact.moved)
        oracle.assert_law(got, torchs, wanted)


@pytest.mark.skipif(not kernels.native_status()["available"], reason="no compiled module")
def test_threads_and_layouts_do_not_change_the_bits() -> None:
    before = kernels.get_num_threads()
    frames = noisy((2, 3, 200, 45), 5)[1]
    results: list[list[Tensor]] = []
    try:
        for threads in (1, 2, 3):
            sl.set_num_threads(threads)
            filtered = TemporalFilter(TemporalNoise())
            last = threads == 3
            results.append([filtered(f.to(memory_format=torch.channels_last) if last else f).clone() for f in frames])
    finally:
        sl.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@forms
def test_still_pixels_tend_to_the_truth_and_moving_ones_pass(native: bool) -> None:
    picture, frames = noisy((1, 3, 48, 64), 40)
    filtered = TemporalFilter(TemporalNoise(), native=native)
    for frame in frames:
        out = filtered(frame)
    assert filtered.moved is not None
    assert filtered.moved[:, 5:12, 42].all() and filtered.moved[:, 5:12, 48].all()  # within the patch, nothing changes
    assert ((out - picture)[:, :, 5:12, 42:49] - 60).abs().max() < 6
    moved = filtered.moved[:, None].expand_as(out)
    assert torch.equal(out[moved], frames[-1][moved])
    away = torch.ones(1, 48, 64, dtype=torch.bool)
    away[:, :16] = False
    assert filtered.moved[away].float().mean() < 0.01
    off = (out - picture)[:, :, 20:]
    assert off.std() < 0.4  # of noise of 1
    assert filtered.gain[0] < 0.15


@forms
def test_the_noise_of_a_codec_is_not_averaged(native: bool) -> None:
    filtered = TemporalFilter(TemporalNoise(), native=native)
    for frame in codec((1, 3, 128, 128), 20):
        assert (filtered(frame) - frame).square().mean() < 0.01  # of noise of 1
    assert filtered.gain[0] > 0.5


@pytest.mark.parametrize(("wander", "sensor", "least", "most"), [(1.0, 0.0, 0.95, 1.0), (0.0, 1.0, 0.0, 0.1), (0.5, 1.0, 0.3, 0.5)])
def test_memory_is_as_long_as_the_noise_allows(wander: float, sensor: float, least: float, most: float) -> None:
    """A picture that wanders a little under noise that is new every time; Kalman's gain for q = 0.25, r = 1 is 0.39."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.zeros(1, 3, 96, 96)
    filtered = TemporalFilter(TemporalNoise(strength=6.0))
    for _ in range(60):
        picture += wander * torch.randn(picture.shape, generator=generator)
        filtered(picture + sensor * torch.randn(picture.shape, generator=generator))
    assert least <= filtered.gain[0] <= most


@forms
def test_specks_stay_out_and_rims_come_in(native: bool) -> None:
    picture, frames = noisy((1, 1, 40, 40), 12, 0.1, patch=False)
    filtered = TemporalFilter(TemporalNoise(dilation=3), native=native)
    for frame in frames:
        filtered(frame)
    last = picture.clone()
    last[0, 0, 5, 5] += 50  # alone
    last[0, 0, 20:25, 20:25] += 50
    out = filtered(last)
    assert filtered.moved is not None
    assert not filtered.moved[0, :15, :15].any()
    assert (out - picture)[0, 0, 5, 5].abs() < 0.75 * 50
    expected = torch.zeros(40, 40, dtype=torch.bool)
    votes = nn.functional.avg_pool2d((last - picture > 1).float(), 5, 1, 2, divisor_override=1) > 2.5
    expected |= (nn.functional.max_pool2d(votes.float(), 7, 1, 3) > 0)[0, 0]
    assert torch.equal(filtered.moved[0], expected)


@forms
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_frame_leaves_no_trace(native: bool, bad: float) -> None:
    frames = noisy((2, 3, 70, 30), 6)[1]
    good, hit = TemporalFilter(TemporalNoise(), native=native), TemporalFilter(TemporalNoise(), native=native)
    for frame in frames:
        wrong = frame.clone()
        wrong[1, 2, 66, 29] = bad
        with pytest.raises(FrameError, match="NaN or Inf"):
            hit(wrong)
        assert torch.equal(good(frame), hit(frame))


@forms
def test_batch_elements_are_videos_of_their_own(native: bool) -> None:
    first, second = noisy((1, 3, 32, 40), 10)[1], codec((1, 3, 32, 40), 10)
    alone = [TemporalFilter(TemporalNoise(), native=native) for _ in range(2)]
    both = TemporalFilter(TemporalNoise(), native=native)
    for a, b in zip(first, second, strict=True):
        wanted = torch.cat([alone[0](a), alone[1](b)])
        assert torch.equal(both(torch.cat([a, b])), wanted)
    both.reset()
    assert both.moved is None and both.nbytes == 0
    assert torch.equal(both(first[0].repeat(2, 1, 1, 1)), first[0].repeat(2, 1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_averaged_in_float32(dtype: torch.dtype) -> None:
    _, frames = noisy((1, 3, 32, 32), 8)
    half, full = TemporalFilter(TemporalNoise()), TemporalFilter(TemporalNoise())
    for frame in frames:
        out = half(frame.to(dtype))
        assert out.dtype == torch.float32
        assert torch.equal(out, full(frame.to(dtype).float()))


# -- settings -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{}, {"strength": 4.5}, {"dilation": 0}, {"memory": 16.0}, {"strength": 2.0, "dilation": 3, "memory": 1.0}]
)
def test_settings_have_a_name_that_reads_back(given: dict[str, Any], tmp_path: Any) -> None:
    settings = TemporalNoise(**given)
    assert parse_noise(str(settings)) == settings
    stream = sl.stream(net(), 0.05, noise=settings, example=torch.zeros(SHAPE))
    stream.thresholds.save(tmp_path / "t.json")
    again = sl.stream(net(), Thresholds.read(tmp_path / "t.json"), example=torch.zeros(SHAPE))
    assert parse_noise(again._noise) == settings


@pytest.mark.parametrize(
    "given", [{"strength": 0}, {"strength": float("nan")}, {"dilation": -1}, {"dilation": 1.5}, {"dilation": 17}, {"memory": 0.5}]
)
def test_settings_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` must"):
        TemporalNoise(**given)


@pytest.mark.parametrize("name", ["temporal(", "temporal(depth=3)", "temporal(strength=x)", "loud", 3])
def test_names_of_no_filter_are_refused(name: Any, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="`noise`"):
        sl.stream(net(), noise=name)
    path = tmp_path / "t.json"
    path.write_text('{"format": "sightline-thresholds", "unit": "std", "noise": "%s", "thresholds": {}}' % name)  # noqa: UP031
    with pytest.raises(MediaError, match="`noise`"):
        Thresholds.read(path)


# -- streams ------------------------------------------------------------------------------------------------------------------


def error_and_work(stream: sl.Stream, model: nn.Module, frames: list[Tensor]) -> tuple[float, float]:
    wrong, work = 0.0, 0.0
    with torch.no_grad():
        for index, frame in enumerate(frames):
            got, wanted = oracle.tensors(stream(frame)), oracle.tensors(model(frame))
            if index >= len(frames) // 2:
                wrong += sum(float((a - b).square().sum()) for a, b in zip(got, wanted, strict=True))
                work += stream.stats.last.macs_share
    return wrong, work


@both_executors
def test_on_a_noisy_sensor_it_saves_more_at_less_error(backend: Backend) -> None:
    """Than a threshold that just lets the noise pass by."""
    model = net()
    frames = [frame / 20 for frame in noisy((1, 3, 64, 64), 20)[1]]
    found: dict[str | None, tuple[float, float]] = {}
    for noise, threshold in (("temporal", "0.03abs"), (None, "0.13abs")):
        stream = sl.stream(model, 0.02, input_threshold=threshold, noise=noise, backend=backend.name)
        found[noise] = error_and_work(stream, model, frames)
    assert found["temporal"][0] < found[None][0] and found["temporal"][1] < 0.7 * found[None][1], found


@both_executors
def test_a_stream_with_it_resets_clones_and_counts_memory(backend: Backend) -> None:
    model = net()
    frames = noisy(SHAPE, 6)[1]
    stream = sl.stream(model, 0.05, noise=TemporalNoise(dilation=2), backend=backend.name)
    first = [stream(frame) for frame in frames]
    assert stream.memory()["tensors"]["noise filter"] > 2 * frames[0].nbytes * (backend.name == "native")
    assert stream.thresholds.noise == "temporal(dilation=2)"
    twin = stream.clone()
    stream.reset()
    oracle.assert_bits_equal(first, [stream(frame) for frame in frames])
    oracle.assert_bits_equal(first, [twin(frame) for frame in frames])
    with pytest.raises(FrameError):
        stream(torch.full(SHAPE, float("nan")))
    oracle.assert_bits_equal(stream(frames[-1]), twin(frames[-1]))


class Passes(nn.Module):
    """Cannot be captured whole, and returns what it was given beside a map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x, self.body(x)) if float(x.sum()) > -1e9 else (x, x)


def test_models_in_parts_filter_the_frame_and_not_their_maps() -> None:
    frames = noisy((1, 3, 32, 32), 6)[1]
    stream = sl.stream(Passes(), 0.0, noise="temporal")
    plain = TemporalFilter(TemporalNoise())
    seen = [stream(frame)[0] for frame in frames]
    for got, frame in zip(seen, frames, strict=True):
        assert torch.equal(got, plain(frame))  # and later frames have not written to it
    assert [part._noise for _, part in stream._partial.streams()] == [None]  # type: ignore[union-attr]
