"""`tune`: arguments checked, frames split, a search started, its result verified on held-back frames."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from sightline.errors import ShapeError
from sightline.graph.prepare import check_frame
from sightline.thresholds import Thresholds
from sightline.tune.greedy import greedy
from sightline.tune.measure import Measurer, Outcome, Settings, Trial
from sightline.tune.metrics import SHARES
from sightline.tune.report import TuneProgress, TuneReport
from sightline.tune.search import Fit, fit, knapsack

METHODS = ("knapsack", "greedy")
OBJECTIVES = ("macs", "seconds")
NOISES = ("search", None, "vote", "block")
_LEAST_TUNED, _LEAST_HELD = 4, 2
_FRONTIER = (0.25, 0.5, 0.75, 1.5, 2.5)


def tune(
    model: Any,
    frames: Iterable[torch.Tensor] | torch.Tensor,
    budget: float = 1.0,
    metric: str | Callable[[Any, Any], float] = "noise",
    method: str = "knapsack",
    *,
    holdout: float | int = 0.25,
    objective: str = "macs",
    noise: str | None = "search",
    threshold_unit: str = "std",
    norm: str = "rms",
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    pixel_scale: float | Sequence[float] | None = None,
    rounds: int = 2,
    frontier: bool = True,
    progress: bool | Callable[[TuneProgress], None] = True,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> Thresholds:
    """Finds thresholds per call site, for the frame too, and the input filter, that save most while the error stays within a budget.

    Use it on a piece of video like the one to come: the same camera, with the movement that matters. It is no training: the network
    stays as it is.

    Args:
        model: as for `stream`.
        frames: consecutive frames (n, c, h, w) as the network takes them, all kept in memory; or one tensor (frames, c, h, w). At least 6.
        budget: largest error on the held-back frames, in units of the metric, > 0.
        metric: what an error is, 0 where streamed and dense agree. "noise": L2 distance to the dense outputs over that which Gaussian noise
            of one grey level (1/255 of the pixel range) on the same frames makes; "relative": over their L2 norm; "top1": share of pictures
            with another best class; "iou": 1 - mean intersection over union of the classes of a map; "detection_f1": 1 - F1 of the boxes;
            "keypoints": mean distance of peaks in heat-map cells (torchvision: pixels); or a function f(dense, streamed) -> number >= 0,
            averaged over frames.
        method: "knapsack" (sensitivities, then a choice over all sites, see `tune.search`) or "greedy" (front to back, as DeltaCNN).
        holdout: share (or number) of frames at the end on which nothing is searched, only verified: the thresholds are scaled
            together until both the tuning frames and these keep the budget.
        objective: what is saved: "macs", the share of multiply-accumulates, or "seconds", measured.
        noise: the input filter: "search" tries all ("greedy": none), or one of None, "vote", "block".
        threshold_unit: of the result, "std" or "absolute", see `stream`.
        norm: over the channels of a site, see `stream`.
        backend: see `stream`.
        dtype: see `stream`.
        pixel_scale: one grey level in units of the input, also one per channel; default: inferred from the frames' values.
        rounds: of sensitivities ("knapsack"); each takes about one pass per call site, at most 32, and 9 more.
        frontier: measure the final thresholds at some other scales too, for the picture of saving against error.
        progress: a function called after each pass; True: a line on standard error, where that is a terminal; False: nothing.
        checkpoint: a JSON file that every finished pass is written to. If it is there, the tuning goes on from it.
        seed: of the noise.

    Returns:
        The thresholds, with `noise`, `norm` and `report` (a `TuneReport`); ``sl.stream(model, thresholds)`` uses them.

    Raises:
        ValueError: an argument is outside its range, or the metric does not fit the outputs.
        ShapeError: too few frames, or of different sizes.
        MediaError: the checkpoint cannot be used, or belongs to another tuning.

    Exact when: never; if nothing can be saved within the budget, all thresholds are 0 and ``report.met`` is False.
    Cost: about 140 passes over the tuning frames, however deep the network ("greedy": 3 to 8 per call site), and two dense ones; the
    outputs of all frames in memory.
    Source: own; "greedy" after DeltaCNN (arXiv 2203.03996).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3))
        >>> frames = [torch.rand(1, 1, 24, 24).mul(8).round() / 255 + (torch.arange(24) == i) for i in range(12)]
        >>> thresholds = tune(model, frames, budget=4.0, progress=False)
        >>> thresholds.report.error <= 4.0, list(thresholds)
        (True, ['input', '0'])
    """
    clip = _checked_frames(frames)
    _check(budget, metric, method, objective, noise, threshold_unit, rounds)
    tuned = len(clip) - _held_back(holdout, len(clip))
    search = noise == "search"
    identity = (method, budget, holdout, noise, rounds)
    settings = Settings(
        metric, objective, tuned, norm, backend, dtype, pixel_scale, seed, Path(checkpoint) if checkpoint is not None else None, identity
    )
    measurer = Measurer(model, clip, settings, _teller(progress))
    if method == "greedy":
        trial = greedy(measurer, budget, None if search else noise)
    else:
        trial = knapsack(measurer, budget, (None, "vote", "block") if search else (noise,), rounds)
    found = _verified(measurer, trial, budget)
    passes, frames_run = measurer.passes, measurer.frames_run
    if frontier and found.factor > 0:
        measurer.stage = "frontier"
        for factor in _FRONTIER:
            measurer.measure(found.trial.scaled(factor), verify=True, factor=factor)
    report = _report(measurer, found, budget, method, passes, frames_run)
    return _result(measurer, found.trial, threshold_unit, norm, report)


def _verified(measurer: Measurer, trial: Trial, budget: float) -> Fit:
    """The setting, scaled until held-back frames keep the budget too."""
    measurer.stage = "verification on held-back frames"
    for share in (1.0, 0.6, 0.3, 0.1, 0.0):  # of the frame's threshold, which no factor moves
        index = measurer.frame
        scaled = trial if index is None else trial.moved([share if place == index else 1.0 for place in range(len(trial.values))])
        found = fit(measurer, scaled, budget, verify=True, passes=8)
        if found.factor > 0:
            return found
        if index is None:
            break
    zero = Trial(None, tuple(0.0 for _ in trial.values))
    return Fit(zero, measurer.measure(zero, verify=True), 0.0)


def _report(measurer: Measurer, found: Fit, budget: float, method: str, passes: int, frames_run: int) -> TuneReport:
    outcome: Outcome = found.outcome
    return TuneReport(
        method=method,
        metric=measurer.metric.name,
        budget=budget,
        objective=measurer.settings.objective,
        noise=found.trial.noise,
        work=outcome.work,
        macs_share=outcome.macs,
        seconds=outcome.seconds,
        seconds_dense=measurer.seconds_dense,
        error=outcome.held,
        error_noise=outcome.smooth if measurer.noise is not None else None,
        error_relative=outcome.relative,
        noise_unit=measurer.noise_unit,
        pixel_scale=measurer.scale.flatten().tolist(),
        task=measurer.task.name if measurer.task is not None else None,
        task_error=outcome.task,
        passes=passes,
        frames_run=frames_run,
        frontier_passes=measurer.passes - passes,
        resumed=measurer.resumed,
        frames_tuned=measurer.settings.tuned,
        frames_held_back=len(measurer.frames) - measurer.settings.tuned,
        met=found.factor > 0,
        points=measurer.points,
    )


def _result(measurer: Measurer, trial: Trial, unit: str, norm: str, report: TuneReport) -> Thresholds:
    factors = measurer.deviations if unit == "absolute" else [1.0] * len(measurer.names)
    values = {name: value * factor for name, value, factor in zip(measurer.names, trial.values, factors, strict=True)}
    thresholds = Thresholds(values, unit)
    thresholds.noise, thresholds.norm, thresholds.report, thresholds.tuning = trial.noise, norm, report, report.brief()
    thresholds._fix()
    return thresholds


def _checked_frames(frames: Iterable[torch.Tensor] | torch.Tensor) -> list[torch.Tensor]:
    if isinstance(frames, torch.Tensor) and frames.dim() == 4:
        frames = frames.split(1)
    clip = [check_frame(frame).detach() for frame in frames]
    if len(clip) < _LEAST_TUNED + _LEAST_HELD:
        raise ShapeError(
            f"`frames` must be at least {_LEAST_TUNED + _LEAST_HELD} consecutive frames ({_LEAST_TUNED} to tune on, "
            f"{_LEAST_HELD} held back); got {len(clip)}. Give a longer clip."
        )
    for index, frame in enumerate(clip):
        if frame.shape != clip[0].shape:
            raise ShapeError(f"`frames` must have one size; frame {index} is {tuple(frame.shape)}, the first {tuple(clip[0].shape)}.")
    return clip


def _held_back(holdout: float | int, count: int) -> int:
    whole = isinstance(holdout, int) and not isinstance(holdout, bool)
    if isinstance(holdout, bool) or not isinstance(holdout, int | float) or not (holdout >= 1 if whole else 0 < holdout < 1):
        raise ValueError(f"`holdout` must be a share between 0 and 1, or a number of frames; got {holdout!r}.")
    held = max(int(holdout) if whole else round(holdout * count), _LEAST_HELD)
    if count - held < _LEAST_TUNED:
        raise ShapeError(f"`holdout`={holdout} leaves {count - held} of {count} frames to tune on; at least {_LEAST_TUNED} are needed.")
    return held


def check_budget(budget: float, metric: object) -> None:
    """Raises ValueError for a budget that makes no sense with a metric."""
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not math.isfinite(budget) or budget <= 0:
        raise ValueError(f"`budget` must be a finite number > 0; got {budget!r}.")
    if isinstance(metric, str) and metric in SHARES and budget >= 1:
        raise ValueError(f"metric={metric!r} is a share between 0 and 1, so `budget` must be below 1, for example 0.02; got {budget!r}.")


def _check(budget: float, metric: object, method: str, objective: str, noise: object, unit: str, rounds: int) -> None:
    check_budget(budget, metric)
    for name, value, allowed in (
        ("method", method, METHODS), ("objective", objective, OBJECTIVES), ("noise", noise, NOISES),
        ("threshold_unit", unit, ("std", "absolute")),
    ):  # fmt: skip
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"`rounds` must be a whole number >= 0; got {rounds!r}.")


def _teller(progress: bool | Callable[[TuneProgress], None]) -> Callable[[TuneProgress], None]:
    if callable(progress):
        return progress
    if not progress or not sys.stderr.isatty():
        return lambda told: None

    def tell(told: TuneProgress) -> None:
        line = f"tuning: pass {told.passes} of about {told.expected}, {100 * told.work:.1f} % of the work ({told.stage})"
        sys.stderr.write(f"\r{line:<110.110}")
        sys.stderr.flush()

    return tell
