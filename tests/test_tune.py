"""`tune`: the budget is kept, more is saved than front to back, metrics are right, a killed run goes on."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sightline as sl
from sightline.pixels import pixel_scale_of
from sightline.thresholds import ThresholdError
from sightline.tune.checkpoint import Checkpoint
from sightline.tune.measure import Measurer, Outcome, Settings, Trial
from sightline.tune.metrics import detection_f1, make_metric, task_metric
from sightline.tune.picture import draw_frontier
from sightline.tune.report import Point, TuneReport
from sightline.tune.search import choose, fit


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate([(3, 8), (8, 16), (16, 16), (16, 16), (16, 8)]):
        layers += [nn.Conv2d(before, after, 3, stride=2 if index == 1 else 1, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 1)).eval()


def clip(count: int = 16, side: int = 32, seed: int = 0) -> list[torch.Tensor]:
    """8-bit frames 0..1: a still picture with sensor noise and a square that moves."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    still = nn.functional.interpolate(coarse, size=side, mode="bilinear") * 200
    frames = []
    for index in range(count):
        frame = still + torch.randn(still.shape, generator=generator) * 1.2
        frame[:, :, 10:20, index : index + 10] = 240
        frames.append(frame.round().clamp(0, 255) / 255)
    return frames


@pytest.fixture(scope="module")
def tuned() -> dict[str, sl.Thresholds]:
    frames = clip()
    return {method: sl.tune(network(), frames, budget=3.0, method=method, progress=False) for method in ("knapsack", "greedy")}


def report_of(thresholds: sl.Thresholds) -> TuneReport:
    report = thresholds.report
    assert isinstance(report, TuneReport)
    return report


# -- what it promises --------------------------------------------------------------------------------------------------


def test_budget_is_kept_on_held_back_frames(tuned: dict[str, sl.Thresholds]) -> None:
    """The report's figures are those of an independent run with the thresholds that were returned."""
    frames, model = clip(), network()
    for thresholds in tuned.values():
        report = report_of(thresholds)
        assert report.met and 0 < report.error <= 3.0
        stream = sl.stream(model, thresholds)
        generator = torch.Generator().manual_seed(0)
        wrong = noise = done = dense_macs = 0.0
        for index, frame in enumerate(frames):
            noisy = frame + torch.randn(frame.shape, generator=generator) / 255
            streamed = stream(frame)
            with torch.no_grad():
                dense = model(frame)
                if index >= report.frames_tuned:
                    wrong += float((streamed - dense).square().sum())
                    noise += float((model(noisy) - dense).square().sum())
                    done += stream.stats.last.macs_done
                    dense_macs += stream.stats.last.macs_dense
        assert math.sqrt(wrong / noise) == pytest.approx(report.error, rel=1e-3)
        assert done / dense_macs == pytest.approx(report.macs_share, rel=1e-6)
        assert report.work == report.macs_share and report.saving == pytest.approx(1 / report.work)


def test_better_than_front_to_back_with_fewer_passes(tuned: dict[str, sl.Thresholds]) -> None:
    ours, theirs = report_of(tuned["knapsack"]), report_of(tuned["greedy"])
    assert ours.work <= theirs.work
    assert theirs.work < 1  # a real opponent
    torch.manual_seed(0)
    deep = nn.Sequential(*(layer for _ in range(24) for layer in (nn.Conv2d(3, 3, 1), nn.LeakyReLU(0.5))), nn.Conv2d(3, 2, 1))
    passes = {}
    for method in ("knapsack", "greedy"):
        passes[method] = report_of(sl.tune(deep, clip(8, 24), 3.0, method=method, frontier=False, rounds=1, progress=False)).passes
    assert passes["knapsack"] < passes["greedy"]


def test_report_counts_what_was_done(tuned: dict[str, sl.Thresholds]) -> None:
    report = report_of(tuned["knapsack"])
    assert report.frames_tuned == 12 and report.frames_held_back == 4
    assert len(report.points) == report.passes + report.frontier_passes and report.resumed == 0
    assert report.frames_run < report.passes * 16
    assert report.task == "iou" and report.task_error is not None and 0 <= report.task_error < 1
    assert report.pixel_scale == pytest.approx([1 / 255] * 3) and report.noise_unit is not None
    line = report.frontier
    assert len(line) >= 3
    assert all(a.error <= b.error and a.work > b.work for a, b in itertools.pairwise(line))
    assert json.loads(json.dumps(report.to_dict()))["saving"] == report.saving
    assert "passes" in str(report)


def test_thresholds_travel_through_a_file(tuned: dict[str, sl.Thresholds], tmp_path: Path) -> None:
    thresholds = tuned["knapsack"]
    thresholds.noise = "block"
    path = tmp_path / "thresholds.json"
    thresholds.save(path)
    read = sl.Thresholds.read(path)
    assert dict(read) == dict(thresholds) and (read.unit, read.noise, read.norm) == ("std", "block", "rms")
    frames = clip(4)
    stream = sl.stream(network(), read)
    stream(frames[0])
    assert dict(stream.thresholds) == dict(thresholds) and stream._noise == "block"
    other = sl.stream(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), read)
    with pytest.raises(ThresholdError, match="another network"):
        other(frames[0])
    plain = sl.stream(network())
    plain(frames[0])
    with pytest.raises(ThresholdError, match="noise='block'"):
        plain.thresholds.load(path)
    path.write_text(path.read_text().replace('"rms"', '"median"'))
    with pytest.raises(sl.MediaError, match="norm"):
        sl.Thresholds.read(path)


def test_absolute_unit_is_the_same_setting() -> None:
    frames, model = clip(10), network()
    options: dict[str, Any] = {"budget": 3.0, "rounds": 0, "noise": None, "frontier": False, "progress": False}
    relative = sl.tune(model, frames, **options)
    absolute = sl.tune(model, frames, threshold_unit="absolute", **options)
    runs = [sl.stream(model, thresholds) for thresholds in (relative, absolute)]
    assert runs[1].thresholds.unit == "absolute"
    shares = [[(run(frame), run.stats.last.macs_share)[1] for frame in frames] for run in runs]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_other_metrics_objective_and_settings() -> None:
    frames, model = clip(8, 32), network()
    classifier = nn.Sequential(network(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cases: list[tuple[nn.Module, dict[str, Any]]] = [
        (model, {"metric": "relative", "budget": 0.05, "objective": "seconds"}),
        (classifier, {"metric": "top1", "budget": 0.4, "noise": "vote"}),
        (model, {"metric": "iou", "budget": 0.1, "holdout": 3}),
        (model, {"metric": lambda dense, streamed: float((dense - streamed).abs().max()), "budget": 0.1, "norm": "max"}),
    ]
    for module, options in cases:
        thresholds = sl.tune(module, torch.cat(frames), rounds=0, frontier=False, progress=False, **options)
        report = report_of(thresholds)
        assert report.error <= options["budget"] and thresholds.norm == options.get("norm", "rms"), options
        assert report.metric == (options["metric"] if isinstance(options["metric"], str) else "callable")


def test_nothing_can_be_saved_is_said() -> None:
    still = torch.rand(1, 3, 24, 24)
    frames = [still + index for index in range(8)]
    report = report_of(sl.tune(network(), frames, budget=1e-9, noise=None, rounds=0, pixel_scale=1e-3, frontier=False, progress=False))
    assert report.error <= 1e-9


# -- the parts -----------------------------------------------------------------------------------------------------------


def test_choice_keeps_the_predicted_error() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        work = (-torch.rand(12, generator=generator)).tolist()
        error = torch.rand(12, generator=generator).tolist()
        moves = choose(work, error, 3.0)
        assert sum(e * (3**move - 1) / 2 for e, move in zip(error, moves, strict=True)) <= 1e-9
        assert sum(w * move for w, move in zip(work, moves, strict=True)) <= 0  # and work falls
    assert choose([-1.0, 0.5], [-0.1, 0.0], 3.0) == [1.0, -1.0]  # both gain: no trade needed
    assert choose([0.1, 0.01], [-0.1, -0.1], 1 / 3) == choose([-0.1, -0.01], [0.3, 0.3], 3.0)  # measured downwards: the same answer


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.arange(256.0).reshape(1, 1, 16, 16), 1.0),
        (torch.arange(256.0).reshape(1, 1, 16, 16) / 255, 1 / 255),
        ((torch.arange(256.0).reshape(1, 1, 16, 16) - 127) / 128, 1 / 128),
        (torch.stack([torch.arange(256.0) / 255, torch.arange(256.0) / 255 + 3e-8]).reshape(1, 1, 16, 32), 1 / 255),  # rounded twice
        (torch.linspace(0, 1, 1024).reshape(1, 1, 32, 32), 1 / 255),
        (torch.linspace(0, 255, 1024).reshape(1, 1, 32, 32), 1.0),
        (torch.linspace(-1, 1, 1024).reshape(1, 1, 32, 32), 2 / 255),
        (torch.linspace(-2, 3, 1024).reshape(1, 1, 32, 32), 5 / 255),
        (torch.tensor([0.0, 1.0]).repeat(8).reshape(1, 1, 4, 4), 1 / 255),
    ],
)
def test_grey_level_is_inferred(values: torch.Tensor, expected: float) -> None:
    assert float(pixel_scale_of([values])) == pytest.approx(expected, rel=1e-3)


def boxes(*rows: tuple[float, ...], scores: tuple[float, ...], labels: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {"boxes": torch.tensor(rows), "scores": torch.tensor(scores), "labels": torch.tensor(labels)}


def test_metrics_by_hand() -> None:
    size = (100, 100)

    def error(name: str, dense: Any, streamed: Any) -> float:
        metric = make_metric(name, size)
        return metric.error([metric.compare(dense, streamed)])

    assert error("relative", torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(0.2)
    assert error("top1", torch.eye(4), torch.eye(4)[[0, 1, 2, 2]]) == 0.25
    one = torch.zeros(1, 2, 2, 2)
    one[0, 1, 0] = 1  # upper row class 1
    other = torch.zeros(1, 2, 2, 2)
    other[0, 1, 0, 0] = 1
    assert error("iou", one, other) == pytest.approx(1 - (1 / 2 + 2 / 3) / 2)
    first = [boxes((0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 60, 60), scores=(0.9, 0.8, 0.1), labels=(1, 2, 1))]
    second = [boxes((1, 0, 11, 10), (20, 20, 30, 30), (70, 70, 80, 80), scores=(0.9, 0.8, 0.7), labels=(1, 1, 1))]
    # found: 2 and 3, of which one pair agrees (the second pair has another class, the weak one does not count)
    assert error("detection_f1", first, second) == pytest.approx(1 - 2 / 5)
    assert error("detection_f1", first, first) == 0
    heat = torch.zeros(1, 2, 8, 8)
    heat[0, 0, 1, 1] = heat[0, 1, 4, 4] = 1
    moved = torch.zeros(1, 2, 8, 8)
    moved[0, 0, 4, 5] = moved[0, 1, 4, 4] = 1
    assert error("keypoints", heat, moved) == pytest.approx(2.5)
    points = {**first[0], "keypoints": torch.zeros(3, 2, 3)}
    shifted = {**first[0], "keypoints": torch.tensor([3.0, 4.0, 1.0]).expand(3, 2, 3)}
    assert error("keypoints", [points], [shifted]) == pytest.approx(5.0)
    assert make_metric("top1", size).error([]) == 0.0 and make_metric("noise", size).error([(1.0, 0.0)]) == math.inf


def test_detectors_of_known_forms_are_read() -> None:
    scores = torch.zeros(1, 3, 2)
    scores[0, :, 1] = torch.tensor([0.9, 0.85, 0.1])
    ssd = (scores, torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.52, 0.5], [0.6, 0.6, 0.9, 0.9]]]))  # the second is the first again
    grid = torch.zeros(1, 85, 4, 4)
    grid[0, 0, 1, 2] = grid[0, 7, 1, 2] = 0.9
    for output, count in ((ssd, 1), (grid, 1)):
        metric = make_metric("detection_f1", (64, 64))
        assert task_metric(output, (64, 64)) == "detection_f1"
        assert metric.compare(output, output) == (0.0, 2.0 * count)
        gone = tuple(torch.zeros_like(value) for value in output) if isinstance(output, tuple) else torch.zeros_like(output)
        assert metric.compare(output, gone) == (1.0, 1.0)
    from sightline.tune.detections import read_detections

    (found,) = read_detections(grid, (64, 64))
    assert found.boxes.tolist() == [[0.25, 0.0, 0.75, 0.5]] or found.boxes[0].tolist() == pytest.approx([0.25, 0.0, 0.75, 0.5], abs=0.26)
    assert found.labels.tolist() == [2.0] and found.scores[0] == pytest.approx(0.9)
    assert task_metric(torch.zeros(1, 10), (8, 8)) == "top1"
    assert task_metric(torch.zeros(1, 19, 8, 8), (64, 64)) == "iou"
    assert task_metric(torch.zeros(1, 3, 64, 64), (64, 64)) is None


def test_noise_error_is_in_noise_units() -> None:
    """A network that returns its input: an error of one grey level at every pixel is one noise unit."""
    torch.manual_seed(0)
    base = (torch.rand(1, 3, 64, 64) * 200).round() / 255
    frames = [base + index % 2 / 255 for index in range(8)]
    measurer = Measurer(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), frames, Settings("noise", "macs", 6))
    held = measurer.measure(Trial(None, (1e3,) * len(measurer.names)))  # nothing is ever taken: every other frame is off by one level
    diagonal = Measurer(Twice(), frames, Settings("noise", "macs", 6))
    outcome = diagonal.measure(Trial(None, (1e3,) * len(diagonal.names)))
    assert outcome.error == pytest.approx(math.sqrt(3 / 5), rel=0.05) and outcome.macs == held.macs == 0  # 3 of frames 1..5
    assert outcome.relative == pytest.approx(outcome.error * float(diagonal.noise_unit or 0), rel=0.3)


def test_young_frames_do_not_count() -> None:
    """A picture that drifts by one level per frame, held for ever: frame i is off by i levels, and the first quarter is left out."""
    torch.manual_seed(0)
    base = (torch.rand(1, 3, 64, 64) * 200).round() / 255
    measurer = Measurer(Twice(), [base + index / 255 for index in range(11)], Settings("noise", "macs", 8))
    never = Trial(None, (1e3,) * len(measurer.names))
    assert measurer.settled == 2
    assert measurer.measure(never).error == pytest.approx(math.sqrt(sum(i * i for i in range(2, 8)) / 6), rel=0.03)
    verified = measurer.measure(never, verify=True)
    assert verified.error == verified.held == pytest.approx(math.sqrt((64 + 81 + 100) / 3), rel=0.03)


def test_faces_of_ultralight_are_read_from_logits_and_anchors() -> None:
    from sightline.tune.detections import is_detection, read_detections, ultralight_anchors

    size = (64, 48)
    count = len(ultralight_anchors(size))
    assert count == 8 * 6 * 3 + 4 * 3 * 2 + 2 * 2 * 2 + 1 * 1 * 3
    logits, offsets = torch.zeros(1, count, 2), torch.zeros(1, count, 4)
    logits[..., 0], logits[..., 1] = 4.0, -4.0
    face = (1 * 8 + 2) * 3 + 1  # row 1, column 2 of the finest grid, the middle one of its three sizes: 16 pixels
    logits[0, face] = torch.tensor([-2.0, 2.0])
    (found,) = read_detections((logits, offsets), size)
    assert found.boxes.tolist() == [pytest.approx([(20 - 8) / 64, (12 - 8) / 48, (20 + 8) / 64, (12 + 8) / 48])]
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-4))]) and found.labels.tolist() == [0.0]
    offsets[0, face] = torch.tensor([10.0, 0.0, 5 * math.log(2), 0.0])  # one width to the right, twice as wide
    (moved,) = read_detections((logits, offsets), size)
    assert moved.boxes[0].tolist() == pytest.approx([(36 - 16) / 64, 4 / 48, (36 + 16) / 64, 20 / 48])
    assert detection_f1((logits, offsets), (logits, torch.zeros_like(offsets)), size) == (2.0, 2.0)
    assert is_detection((torch.rand(1, 7, 3), torch.rand(1, 7, 4)), size) and not is_detection(
        (torch.rand(1, 7, 2), torch.rand(1, 6, 4)), size
    )


class Plateau:
    """Stands for a `Measurer`: up to a threshold of 0.01 the error grows, beyond everything is held and it stays just above 1."""

    frame = None

    def __init__(self) -> None:
        self.tried: list[float] = []

    def measure(self, trial: Trial, verify: bool = False) -> Outcome:
        del verify
        (value,) = trial.values
        self.tried.append(value)
        error, work = min(100 * value, 1.0) * 1.02, 1 / (1 + 1000 * value)
        return Outcome(work, error, error, work, 0.0, error, None, None)


@pytest.mark.parametrize("value", [16.0, 1.0, 0.02])
def test_a_setting_that_holds_everything_is_brought_to_the_budget(value: float) -> None:
    """Where the error does not move with the factor, small steps would never reach the place where it does."""
    measurer = Plateau()
    found = fit(measurer, Trial(None, (value,)), 1.0, verify=True)  # type: ignore[arg-type]
    assert found.factor > 0 and 0.5 <= found.outcome.error <= 1.0, measurer.tried
    assert len(measurer.tried) <= 10


class Twice(nn.Module):
    """Each channel for itself, so that the change of one grey level stays one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        twice: torch.Tensor = self.conv(self.conv(x) * 1.0)
        return twice


# -- resuming --------------------------------------------------------------------------------------------------------------

_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import sightline as sl
sl.set_num_threads(1)
from test_tune import clip, network
tell = lambda told: print(told.passes, flush=True)
sl.tune(network(), clip(8), budget=3.0, rounds=0, frontier=False, progress=tell, checkpoint=sys.argv[1])
print("done", flush=True)
"""


def test_killed_run_goes_on(tmp_path: Path) -> None:
    """SIGKILL in mid-search: the file is whole, no finished pass is run again, and the result is that of an undisturbed run."""
    path = tmp_path / "tuning.json"
    with subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "12":
                process.send_signal(signal.SIGKILL)
                break
        process.wait(60)
    assert process.returncode == -signal.SIGKILL
    finished = len(json.loads(path.read_text())["entries"])
    assert finished >= 12
    resumed = sl.tune(network(), clip(8), budget=3.0, rounds=0, frontier=False, progress=False, checkpoint=path)
    whole = sl.tune(network(), clip(8), budget=3.0, rounds=0, frontier=False, progress=False)
    assert dict(resumed) == dict(whole) and resumed.noise == whole.noise
    assert report_of(resumed).resumed == finished and report_of(resumed).passes == report_of(whole).passes
    assert not [file for file in tmp_path.glob("*.partial*") if str(process.pid) not in file.name]
    with pytest.raises(sl.MediaError, match="another tuning"):
        sl.tune(network(), clip(8, seed=1), budget=3.0, rounds=0, frontier=False, progress=False, checkpoint=path)
    with pytest.raises(sl.MediaError, match="network"):
        sl.tune(network(1), clip(8), budget=3.0, rounds=0, frontier=False, progress=False, checkpoint=path)


def test_interrupt_keeps_what_was_finished(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"

    def stop(told: sl.TuneProgress) -> None:
        if told.passes == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sl.tune(network(), clip(8, 24), budget=3.0, progress=stop, checkpoint=path)
    assert len(json.loads(path.read_text())["entries"]) == 5


def test_bad_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text("{")
    with pytest.raises(sl.MediaError, match="cannot read the checkpoint"):
        Checkpoint(path, {})
    path.write_text("{}")
    with pytest.raises(sl.MediaError, match="not a checkpoint"):
        Checkpoint(path, {})
    with pytest.raises(sl.MediaError, match="cannot write"):
        Checkpoint(tmp_path / "nowhere" / "tuning.json", {})


# -- bad input -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget"), ({"budget": -1.0}, "budget"), ({"budget": math.nan}, "budget"),
        ({"budget": math.inf}, "budget"),
        ({"metric": "accuracy"}, "metric"), ({"metric": "top1"}, "below 1"), ({"method": "magic"}, "method"),
        ({"objective": "watts"}, "objective"), ({"noise": "median"}, "noise"), ({"holdout": 0.0}, "holdout"),
        ({"holdout": True}, "holdout"),
        ({"holdout": 6}, "leaves 2 of 8"), ({"pixel_scale": 0.0}, "pixel_scale"), ({"pixel_scale": [1.0]}, "pixel_scale"),
        ({"rounds": -1}, "rounds"),
        ({"threshold_unit": "bits"}, "threshold_unit"), ({"metric": "detection_f1", "budget": 0.1}, "cannot read"),
        ({"metric": lambda dense, streamed: -1.0}, "number >= 0"),
    ],
)  # fmt: skip
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sl.tune(network(), clip(8, 24), progress=False, **options)


def test_bad_frames() -> None:
    with pytest.raises(sl.ShapeError, match="at least 6"):
        sl.tune(network(), clip(5, 24), progress=False)
    with pytest.raises(sl.ShapeError, match="one size"):
        sl.tune(network(), [*clip(7, 24), *clip(1, 32)], progress=False)
    with pytest.raises(ValueError, match="does not react"):
        sl.tune(nn.Sequential(nn.ReLU(), nn.Threshold(1e9, 0.0), nn.Conv2d(3, 2, 1)), clip(8, 24), progress=False)


def test_bad_values_in_files(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    for text in ('{"input": -1}', '{"input": NaN}', '{"input": "much"}'):
        path.write_text(f'{{"format": "sightline-thresholds", "version": 1, "unit": "std", "thresholds": {text}}}')
        with pytest.raises(sl.MediaError, match="cannot read thresholds"):
            sl.Thresholds.read(path)


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = TuneReport(
        "knapsack", "noise", 1.0, "macs", None, 0.3, 0.3, 0.1, 0.2, 0.9, 0.9, 0.01, 0.01, [1.0], None, None, 3, 30, 0, 0, 8, 4, True,
        [Point(0.3, 0.9, True), Point(0.5, 0.4, True), Point(0.2, 1.4, True), Point(0.6, 0.9, False), Point(0.6, 0.5, True)],
    )  # fmt: skip
    assert [point.work for point in report.frontier] == [0.5, 0.3, 0.2]
    for name in ("frontier.png", "frontier.svg"):
        draw_frontier(report, tmp_path / name, "a title")
        assert (tmp_path / name).stat().st_size > 2000
    assert b"budget 1" in (tmp_path / "frontier.svg").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["frontier.png", "frontier.svg"]
    with pytest.raises(sl.MediaError, match=r"\.gif"):
        draw_frontier(report, tmp_path / "frontier.gif")


def test_seconds_are_measured() -> None:
    began = time.perf_counter()
    report = report_of(sl.tune(network(), clip(8, 48), 3.0, noise=None, rounds=0, frontier=False, objective="seconds", progress=False))
    assert 0 < report.seconds < time.perf_counter() - began and report.work == pytest.approx(report.seconds / report.seconds_dense)
