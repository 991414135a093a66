"""The contract of a stream beside the laws (test_laws.py): reset, clone, thresholds, noise, statistics, arguments."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracle
import sightline as sl
from cases import Apply
from networks import video
from sightline import kernels
from sightline.errors import BackendError, CaptureError, DTypeError, MediaError, ShapeError, SightlineError
from sightline.thresholds import ThresholdError, Thresholds
from streams import SHAPE, Backend, assert_equals_dense, both_executors, dense, every_backend, executor_of, net, small

# -- the rest of the contract: reset, clone ---------------------------------------------------------------------------------------


@every_backend
def test_reset_forgets_and_allows_another_size(backend: Backend) -> None:
    model = net().to(backend.dtype)
    stream = sl.stream(model, backend=backend.name)
    for shape in (SHAPE, (1, 3, 17, 30), SHAPE):
        for frame in video(shape, 3, 1, backend.dtype):
            assert_equals_dense(stream(frame), model, frame, str(shape))
        assert stream.stats.total.frames == 3
        assert stream.last_sites().shape == (shape[0], *shape[2:])
        stream.reset()
        assert stream.stats.total.frames == 0 and stream.stats.total.macs_dense == 0
        with pytest.raises(ValueError, match="no frame"):
            stream.last_sites()


@both_executors
def test_reset_at_the_same_size_starts_as_the_first_time(backend: Backend) -> None:
    stream = sl.stream(net(opaque=True), 0.1, backend=backend.name)
    frames = video(SHAPE, 4, 1)
    first = [stream(frame) for frame in frames]
    stream.reset()
    again = [stream(frame) for frame in frames]
    oracle.assert_bits_equal(first, again)
    assert stream.stats.total.frames == 4


@both_executors
def test_clone_shares_weights_and_nothing_else(backend: Backend) -> None:
    model = net()
    stream = sl.stream(model, 0.05, input_threshold=0.2, norm="max", backend=backend.name)
    frames = video(SHAPE, 4, 1)
    stream(frames[0])
    stream.thresholds["down"] = 0.5
    twin = stream.clone()
    assert dict(twin.thresholds) == dict(stream.thresholds) and twin.thresholds["down"] == 0.5
    assert twin.stats.total.frames == 0
    with pytest.raises(ThresholdError):
        twin.thresholds["no such site"] = 1.0
    twin.thresholds["down"] = 0.0
    assert stream.thresholds["down"] == 0.5
    twin.thresholds["down"] = 0.5
    stream.reset()
    for frame in frames:
        oracle.assert_bits_equal(twin(frame), stream(frame))
    assert stream._plan is twin._plan
    if backend.name == "native":
        assert stream._lowered is twin._lowered


def test_clone_before_the_first_frame() -> None:
    stream = sl.stream(net(), 0.05)
    stream.thresholds["down"] = 0.4
    twin = stream.clone()
    twin(torch.randn(SHAPE))
    assert twin.thresholds["down"] == 0.4 and twin.thresholds["side"] == 0.05


# -- thresholds -------------------------------------------------------------------------------------------------------------------


@both_executors
def test_thresholds_are_named_after_call_sites_and_can_be_edited(backend: Backend) -> None:
    stream = sl.stream(net(), 0.05, backend=backend.name)
    assert len(stream.thresholds) == 0
    frames = video(SHAPE, 6, 1)
    stream(frames[0])
    assert {"input", "stem.0", "depthwise", "down", "side"} <= set(stream.thresholds)
    assert set(stream.thresholds.values()) == {0.05}
    stream(frames[1])
    assert stream.stats.last.density["down"] > 0
    stream.thresholds["input"] = 1e6
    stream(frames[2])
    assert stream.stats.last.density["input"] == 0 or stream.stats.last.density["down"] == 0
    stream.thresholds["input"] = 0
    stream(frames[3])
    assert stream.stats.last.density["down"] > 0
    with pytest.raises(ThresholdError, match="no call site 'dwon'"):
        stream.thresholds["dwon"] = 0.1
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="at least 0"):
            stream.thresholds["down"] = bad
    with pytest.raises(ThresholdError):
        del stream.thresholds["down"]
    with pytest.raises(KeyError):
        stream.thresholds["nowhere"]


def test_thresholds_set_before_the_first_frame_hold() -> None:
    stream = sl.stream(net(), 0.05)
    stream.thresholds["down"] = 0.7
    stream(torch.randn(SHAPE))
    assert stream.thresholds["down"] == 0.7 and stream.thresholds["side"] == 0.05
    wrong = sl.stream(net(), 0.05)
    wrong.thresholds["nowhere"] = 0.7
    for _ in range(2):
        with pytest.raises(ThresholdError, match="nowhere"):
            wrong(torch.randn(SHAPE))


def test_thresholds_as_a_mapping() -> None:
    stream = sl.stream(net(), {"down": 0.3, "input": 0.1})
    stream(torch.randn(SHAPE))
    assert {name: value for name, value in stream.thresholds.items() if value} == {"down": 0.3, "input": 0.1}
    wrong = sl.stream(net(), {"dwon": 0.3})
    for _ in range(2):
        with pytest.raises(ThresholdError, match="dwon"):
            wrong(torch.randn(SHAPE))


def test_thresholds_bring_their_unit() -> None:
    source = sl.stream(net(), 0.25, threshold_unit="absolute", example=torch.zeros(SHAPE))
    stream = sl.stream(net(), source.thresholds)
    stream(torch.randn(SHAPE))
    assert stream.thresholds.unit == "absolute" and stream.thresholds["down"] == 0.25


def test_thresholds_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    stream = sl.stream(net(), 0.05, example=torch.zeros(SHAPE))
    stream.thresholds["down"] = 0.125
    stream.thresholds.save(path)
    for example in (torch.zeros(SHAPE), None):  # before and after the names are known
        other = sl.stream(net(), example=example)
        other.thresholds.load(path)
        other(torch.randn(SHAPE))
        assert dict(other.thresholds) == dict(stream.thresholds)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, MediaError, "cannot read"),
        ("not json", MediaError, "cannot read"),
        ("[]", MediaError, "not a thresholds file"),
        ('{"format": "sightline-thresholds", "thresholds": {"nowhere": 1}, "unit": "std"}', ThresholdError, "another network"),
        ('{"format": "sightline-thresholds", "thresholds": {}, "unit": "std"}', ThresholdError, "another network"),
    ],
)
def test_thresholds_of_another_network_are_refused_whole(tmp_path: Path, content: str | None, error: type[Exception], words: str) -> None:
    path = tmp_path / "thresholds.json"
    if content is not None:
        path.write_text(content)
    stream = sl.stream(net(), 0.05, example=torch.zeros(SHAPE))
    before = dict(stream.thresholds)
    with pytest.raises(error, match=words):
        stream.thresholds.load(path)
    assert dict(stream.thresholds) == before


def test_thresholds_in_another_unit_or_with_bad_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    stream = sl.stream(net(), 0.05, example=torch.zeros(SHAPE))
    stream.thresholds.save(path)
    with pytest.raises(ThresholdError, match="unit"):
        sl.stream(net(), 0.05, threshold_unit="absolute", example=torch.zeros(SHAPE)).thresholds.load(path)
    content = json.loads(path.read_text())
    for bad in (-1, "x", None):
        content["thresholds"]["down"] = bad
        path.write_text(json.dumps(content))
        with pytest.raises(MediaError, match="thresholds"):
            stream.thresholds.load(path)
        assert stream.thresholds["down"] == 0.05
    with pytest.raises(MediaError, match="cannot write"):
        stream.thresholds.save(tmp_path / "no folder" / "x.json")


@both_executors
def test_input_threshold(backend: Backend) -> None:
    model = nn.Conv2d(3, 4, 3, padding=1)
    frame = 255 * torch.rand(1, 3, 12, 12)
    for given, unit, below, above in (
        ("15abs", "std", 14.9, 15.1),
        ("15abs", "absolute", 14.9, 15.1),
        (15.0, "absolute", 14.9, 15.1),
        (0.1, "std", 0.099 * float(frame.double().std()), 0.102 * float(frame.double().std())),
        ("0.1", "std", 0.099 * float(frame.double().std()), 0.102 * float(frame.double().std())),
    ):
        stream = sl.stream(model, input_threshold=given, threshold_unit=unit, backend=backend.name)
        stream(frame)
        for step, changed in ((below, False), (above, True)):
            moved = frame.clone()
            moved[0, :, 4, 5] += step
            stream(moved)
            assert bool(stream.last_sites()[0, 4, 5]) == changed, (given, unit, step)
            stream.reset()
            stream(frame)


@both_executors
def test_input_threshold_in_absolute_units_can_be_edited(backend: Backend) -> None:
    """The mapping shows it in the stream's unit once that is known; setting the entry takes over."""
    frame = 255 * torch.rand(1, 3, 12, 12)
    stream = sl.stream(nn.Conv2d(3, 4, 1), 0.5, input_threshold="15abs", backend=backend.name)
    stream(frame)
    assert stream.thresholds["input"] == pytest.approx(15 / float(frame.double().std(correction=0)))
    assert stream.clone().thresholds["input"] == stream.thresholds["input"]
    stream(frame + 14)
    assert not stream.last_sites().any()
    stream.thresholds["input"] = 0.0
    stream(frame + 1)
    assert stream.last_sites().all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"threshold": -1}, ValueError, "threshold"),
        ({"threshold": float("nan")}, ValueError, "threshold"),
        ({"threshold": "much"}, ValueError, "threshold"),
        ({"threshold": True}, ValueError, "threshold"),
        ({"threshold_unit": "percent"}, ValueError, "threshold_unit"),
        ({"input_threshold": "15px"}, ValueError, "15abs"),
        ({"input_threshold": "-3abs"}, ValueError, "input_threshold"),
        ({"input_threshold": "nan"}, ValueError, "input_threshold"),
        ({"norm": "l1"}, ValueError, "norm"),
        ({"noise": "gauss"}, ValueError, "noise"),
        ({"backend": "cuda"}, ValueError, "backend"),
        ({"dtype": torch.int8}, DTypeError, "dtype"),
        ({"example": torch.zeros(3, 8, 8)}, ShapeError, "frame"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sl.stream(nn.Conv2d(3, 4, 1), **options)


def test_backend_native_says_why_it_cannot() -> None:
    if not kernels.native_status()["available"]:
        pytest.skip(str(kernels.native_status()["reason"]))
    with pytest.raises(BackendError, match="float64"):
        sl.stream(nn.Conv2d(3, 4, 1).double(), backend="native")(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    with pytest.raises(BackendError, match="float64"):
        sl.stream(nn.Conv2d(3, 4, 1), backend="native", dtype=torch.float64)(torch.zeros(1, 3, 4, 4))


def test_models_and_frames_that_do_not_fit() -> None:
    with pytest.raises(CaptureError):
        sl.stream("resnet50")(torch.zeros(1, 3, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match="weights"):
        sl.stream(nn.Conv2d(3, 4, 1))(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(SightlineError):
        sl.stream(nn.Conv2d(3, 4, 1))(torch.zeros(1, 5, 8, 8))


# -- noise, dtype, memory, sites --------------------------------------------------------------------------------------------------


@both_executors
def test_noise_block_takes_whole_blocks(backend: Backend) -> None:
    model = nn.Conv2d(3, 4, 3, padding=1)
    stream = sl.stream(model, input_threshold="0.5abs", noise="block", backend=backend.name)
    frame = torch.randn(2, 3, 20, 21)
    stream(frame)
    moved = frame + 0.1
    moved[1, 0, 9, 17] += 5
    got = stream(moved)
    sites = torch.zeros(2, 20, 21, dtype=torch.bool)
    sites[1, 8:16, 16:21] = True
    assert torch.equal(stream.last_sites(), sites)
    assert_equals_dense(got, model, torch.where(sites[:, None], moved, frame))


@both_executors
def test_noise_vote_drops_specks_and_keeps_regions(backend: Backend) -> None:
    stream = sl.stream(nn.Conv2d(1, 4, 1), noise="vote", backend=backend.name)
    frame = torch.zeros(2, 1, 16, 18)
    stream(frame)
    frame[0, 0, 3, 3] = 1  # one pixel
    frame[1, 0, 8:12, 0:4] = 1  # a region at the rim
    frame[1, 0, 15, 14:18] = 1  # four in a corner: one too few
    stream(frame)
    sites = stream.last_sites()
    votes = F.conv2d(frame.ne(0).float(), torch.ones(1, 1, 5, 5), padding=2)[:, 0]
    assert torch.equal(sites, votes >= 5)
    assert not sites[0].any() and sites[1, 8:12, 0:4].all() and not sites[1, 14:].any()


@both_executors
@pytest.mark.parametrize("noise", ["vote", "block"])
def test_noise_filters_agree_between_executors_and_on_still_frames(backend: Backend, noise: str) -> None:
    model = small(torch.float32)
    stream, other = sl.stream(model, 0.05, noise=noise, backend=backend.name), sl.stream(model, 0.05, noise=noise, backend="torch")
    for frame in video(SHAPE, 5, 3):
        noisy = frame + 0.02 * torch.randn(SHAPE)
        stream(noisy)
        other(noisy)
        assert torch.equal(stream.last_sites(), other.last_sites())
    if noise == "block":
        stream.thresholds["input"] = 0.0
        stream(noisy)
        stream(noisy)
        assert not stream.last_sites().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtype_is_what_the_network_is_computed_in(dtype: torch.dtype) -> None:
    """Also with constants of the model and with ops that have no rule."""
    model = Apply(
        lambda x, f, g: (g(F.relu(f(x)).flatten(2).transpose(1, 2)).softmax(-1) @ g.weight) * 2 + 0.1, nn.Conv2d(3, 6, 3), nn.Linear(6, 6)
    ).eval()
    stream = sl.stream(model, dtype=dtype)
    for frame in video((2, 3, 9, 9), 3, 1):
        got = stream(frame)
        assert got.dtype == dtype
        oracle.assert_law(got, dense(copy.deepcopy(model).to(dtype), frame.to(dtype)), dense(copy.deepcopy(model).double(), frame.double()))
    native = dtype == torch.bfloat16 and kernels.native_status()["available"]
    assert stream.explain().rows[0]["executor"] == ("native" if native else "torch")


@both_executors
def test_memory_counts_every_map_once(backend: Backend) -> None:
    stream = sl.stream(net(), backend=backend.name, scene_cuts=False)
    assert stream.memory()["total"] == 0
    for frame in video(SHAPE, 3, 1):
        stream(frame)
    memory = stream.memory()
    assert memory["total"] == sum(memory["tensors"].values())
    executor = executor_of(stream)
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in (executor.value(step.output) for step in executor.plan.steps if executor.holds(step))
        if isinstance(value, Tensor)
    }
    maps = memory["total"] - memory["tensors"]["masks and scratch"]
    assert maps == pytest.approx(sum(storages.values()), rel=0.05)
    assert (memory["shared_weights"] > 0) == (backend.name == "native")
    twin = stream.clone()
    twin(torch.randn(SHAPE))
    assert twin.memory()["shared_weights"] == memory["shared_weights"]


@both_executors
def test_last_sites_say_what_was_computed(backend: Backend) -> None:
    stream = sl.stream(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2)), backend=backend.name)
    frame = torch.randn(2, 1, 10, 12)
    stream(frame)
    assert stream.last_sites().all() and stream.last_sites("1").shape == (2, 5, 6)
    frame[1, 0, 4, 7] += 1
    stream(frame)
    wanted = torch.zeros(2, 10, 12, dtype=torch.bool)
    wanted[1, 4, 7] = True
    assert torch.equal(stream.last_sites(), wanted)
    wanted[1, 3:6, 6:9] = True
    assert torch.equal(stream.last_sites("0"), wanted)
    kept = stream.last_sites("0")
    stream(frame)
    assert torch.equal(kept, wanted), "the mask given out earlier changed"
    with pytest.raises(KeyError, match="explain"):
        stream.last_sites("nowhere")


@both_executors
def test_stats_add_up(backend: Backend) -> None:
    stream = sl.stream(net(), backend=backend.name)
    done = dense_macs = 0
    shares = []
    for frame in video(SHAPE, 5, 1):
        stream(frame)
        last = stream.stats.last
        done, dense_macs = done + last.macs_done, dense_macs + last.macs_dense
        shares.append(last.density["down"])
        assert last.frames == 1 and last.seconds > 0 and 0 <= last.macs_share <= 1
    total = stream.stats.total
    assert (total.frames, total.macs_dense) == (5, dense_macs)
    assert total.macs_done == pytest.approx(done, abs=20)  # each frame rounds to whole MACs
    assert total.density["down"] == pytest.approx(sum(shares) / 5)
    assert json.loads(json.dumps(stream.stats.to_dict()))["total"]["frames"] == 5


@both_executors
def test_outputs_keep_the_structure_of_the_model(backend: Backend) -> None:
    class Pair(NamedTuple):
        left: Tensor
        right: Any

    for function in (
        lambda x: [x * 2, (x + 1, {"deep": x - 1})],
        lambda x: Pair(x * 2, [x + 1]),
        lambda x: {"b": x * 2, "a": x + 1},
        lambda x: (x * 2,),
        lambda x: (x * 2, x[:, :0]),
    ):
        stream = sl.stream(Apply(function), backend=backend.name)
        for frame in video((1, 3, 6, 7), 2, 1):
            got, wanted = stream(frame), function(frame)
            assert type(got) is type(wanted)
            assert str(torch.utils._pytree.tree_structure(got)) == str(torch.utils._pytree.tree_structure(wanted))
            oracle.assert_law(got, wanted, wanted)


def test_threads_do_not_change_bits_of_a_stream() -> None:
    if not kernels.native_status()["available"]:
        pytest.skip(str(kernels.native_status()["reason"]))
    before = kernels.get_num_threads()
    model = net(opaque=True)
    shape = (1, 3, 96, 80)
    results = {}
    try:
        for threads in (1, 2, 3):
            sl.set_num_threads(threads)
            assert sl.get_num_threads() == threads
            stream = sl.stream(model, 0.02)
            results[threads] = [stream(frame) for frame in video(shape, 4, 1)]
        for bad in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                sl.set_num_threads(bad)
    finally:
        sl.set_num_threads(before)
    oracle.assert_bits_equal(results[2], results[1])
    oracle.assert_bits_equal(results[3], results[1])


def test_repr_and_example() -> None:
    stream = sl.stream(net())
    assert "not captured" in repr(stream)
    with pytest.raises(ValueError, match="captured"):
        stream.explain()
    ready = sl.stream(net(), example=torch.zeros(SHAPE))
    assert "0 frames" in repr(ready) and len(ready.explain().rows) > 5 and isinstance(ready.thresholds, Thresholds)
    with pytest.raises(ShapeError):
        ready(torch.zeros(1, 3, 4, 4))
