"""Passes over the clip: how much work a setting leaves and what error it makes.

What belongs here: streams, the dense outputs that they are compared with, the noise unit, the memory of finished passes. What does
not: which setting to try next (`search`, `greedy`).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.errors import SightlineError
from sightline.kernels import get_num_threads
from sightline.pixels import pixel_scale_of
from sightline.stream import Stream
from sightline.tune.checkpoint import Checkpoint
from sightline.tune.metrics import Metric, Pair, make_metric, same_form, squares, task_metric, tensors_of
from sightline.tune.report import Point, TuneProgress


@dataclass(frozen=True)
class Trial:
    """A setting: the input filter, and a threshold per call site in standard deviations."""

    noise: str | None
    values: tuple[float, ...]

    def scaled(self, factor: float, but: int | None = None) -> Trial:
        """All thresholds times a factor, but one if its index is given."""
        return Trial(self.noise, tuple(value if index == but else value * factor for index, value in enumerate(self.values)))

    def moved(self, factors: Sequence[float]) -> Trial:
        """Each threshold times its own factor."""
        return Trial(self.noise, tuple(value * factor for value, factor in zip(self.values, factors, strict=True)))


@dataclass(frozen=True)
class Outcome:
    """What a pass has shown.

    Attributes:
        work: share of dense in the objective.
        error: in the metric; on the verification clip the larger one of its two parts.
        smooth: an error that moves with every threshold: noise units where outputs can be subtracted, else `error`.
        macs, seconds: share of the multiply-accumulates; per frame.
        held: on the verification clip, the error on the held-back frames alone.
        relative, task: other errors; None where there is none. `task` on the verification clip only.
    """

    work: float
    error: float
    smooth: float
    macs: float
    seconds: float
    held: float
    relative: float | None
    task: float | None


@dataclass(frozen=True)
class Settings:
    """What `Measurer` is told, beside network and frames."""

    metric: str | Callable[[Any, Any], float]
    objective: str
    tuned: int
    norm: str = "rms"
    backend: str = "auto"
    dtype: torch.dtype | None = None
    pixel_scale: float | Sequence[float] | None = None
    seed: int = 0
    checkpoint: Path | None = None
    identity: tuple[Any, ...] = ()


class Measurer:
    """Streams the clip under a setting and compares with dense.

    Holds the dense outputs of all frames.
    """

    def __init__(
        self, model: Any, frames: Sequence[torch.Tensor], settings: Settings, progress: Callable[[TuneProgress], None] = lambda told: None
    ) -> None:
        self.frames, self.settings, self.progress = frames, settings, progress
        self.size = (int(frames[0].shape[3]), int(frames[0].shape[2]))
        self.metric = make_metric(settings.metric, self.size)
        self.scale = pixel_scale_of(frames, settings.pixel_scale)
        self.base = Stream(model, 0.0, norm=settings.norm, backend=settings.backend, dtype=settings.dtype)
        self.stage, self.expected, self.best = "dense frames", 0, 1.0
        self.points: list[Point] = []
        self.passes = self.frames_run = 0
        self._seen: set[str] = set()
        self._streams: dict[str | None, Stream] = {}
        self._run_dense()
        self._memory = Checkpoint(settings.checkpoint, self._identity())

    # -- dense ------------------------------------------------------------------------------------------------------------

    def _run_dense(self) -> None:
        self.dense: list[Any] = []
        self.deviations: list[float] = []
        self.gates: frozenset[str] = frozenset()
        seconds = []
        for frame in self.frames:
            _forget(self.base)
            start = _clock()
            self.dense.append(self.base(frame))
            seconds.append(_clock() - start)
            if not self.deviations:
                self.names = list(self.base.thresholds)
                found = _steps(self.base)
                self.deviations = [found[name][0] for name in self.names]
                self.gates = frozenset(name for name in self.names if found[name][1] <= frame.shape[0])
        if not self.names:
            raise ValueError("this network has no call site that takes a threshold; there is nothing to tune.")
        self.seconds_dense = sum(seconds[1:]) / (len(seconds) - 1)
        task = task_metric(self.dense[0], self.size)
        self.task: Metric | None = make_metric(task, self.size) if task is not None else None
        self.noise: list[float] | None = self._run_noise()
        self.base.reset()
        if self.noise is None and self.metric.root:
            raise ValueError(
                f"metric={self.metric.name!r}: the outputs of this network change in size from frame to frame and cannot be subtracted; "
                "use metric='detection_f1' or a callable."
            )
        if self.noise is not None and not sum(self.noise) > 0 and self.metric.name == "noise":
            raise ValueError(
                "metric='noise': the output does not react to noise of one grey level; check `pixel_scale`, or use 'relative'."
            )

    def _run_noise(self) -> list[float] | None:
        """Per frame, the squared change that Gaussian noise of one grey level makes; None if outputs cannot be subtracted."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        changes = []
        for frame, dense in zip(self.frames, self.dense, strict=True):
            noise = torch.randn(frame.shape, generator=generator) * self.scale
            _forget(self.base)
            noisy = self.base(frame + noise.to(frame.device, frame.dtype))
            if not same_form(dense, noisy):
                return None
            changes.append(squares(dense, noisy)[0])
        return changes

    @property
    def settled(self) -> int:
        """The first frame that counts.

        The very first is dense for everybody, and for a while after it everything that is held is young and nearer to the truth than it
        will be later: if those frames counted, holding everything would look good on a short clip.
        """
        return max(1, self.settings.tuned // 4)

    @property
    def frame(self) -> int | None:
        """Which of the call sites is the frame; None where the model is captured in parts."""
        return self.names.index("input") if "input" in self.names else None

    @property
    def grey(self) -> float:
        """One grey level in standard deviations of the frame."""
        deviation = self.deviations[self.frame] if self.frame is not None else 0.0
        return float(self.scale.mean()) / deviation if deviation > 0 else 0.02

    @property
    def noise_unit(self) -> float | None:
        """The relative L2 change of the dense output that one noise unit stands for, on the held-back frames."""
        if self.noise is None:
            return None
        first = self.settings.tuned
        there = sum(squares(dense, dense)[1] for dense in self.dense[first:])
        return math.sqrt(sum(self.noise[first:]) / there) if there > 0 else None

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for frame in self.frames:
            digest.update(frame.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        first = [f"{float(value.double().norm()):.4g}" for value in tensors_of(self.dense[0])]
        settings = self.settings
        metric = settings.metric if isinstance(settings.metric, str) else getattr(settings.metric, "__qualname__", "callable")
        return {
            "network": hashlib.sha256(json.dumps([self.names, first]).encode()).hexdigest()[:16],
            "frames": digest.hexdigest()[:16],
            "settings": [metric, settings.objective, settings.tuned, settings.norm, settings.backend, str(settings.dtype), settings.seed,
                         self.scale.flatten().tolist(), *settings.identity],
        }  # fmt: skip

    # -- streamed -------------------------------------------------------------------------------------------------------------

    @property
    def resumed(self) -> int:
        """Passes that were in the checkpoint."""
        return self._memory.resumed

    def measure(self, trial: Trial, verify: bool = False, factor: float | None = None) -> Outcome:
        """One pass, or the memory of it.

        Args:
            trial: the setting.
            verify: over the whole clip, errors and work on the held-back frames (else over the tuning frames).
            factor: noted in the point, for the frontier.
        """
        trial = Trial(trial.noise, tuple(float(f"{value:.6g}") for value in trial.values))
        key = hashlib.sha256(json.dumps([verify, trial.noise, trial.values]).encode()).hexdigest()[:20]
        if key not in self._memory.entries:
            self._memory.add(key, vars(self._pass(trial, verify)))
        outcome = Outcome(**self._memory.entries[key])
        if key not in self._seen:
            self._seen.add(key)
            self.passes += 1
            self.frames_run += len(self.frames) if verify else self.settings.tuned
            self.points.append(Point(outcome.work, outcome.error, verify, trial.noise, factor))
        self.progress(TuneProgress(self.stage, self.passes, max(self.expected, self.passes), self.best))
        return outcome

    def _pass(self, trial: Trial, verify: bool) -> Outcome:
        stream = self._stream(trial.noise)
        stream.reset()
        for name, value in zip(self.names, trial.values, strict=True):
            stream.thresholds[name] = value
        stop = len(self.frames) if verify else self.settings.tuned
        pairs: list[Pair] = []
        tasks: list[Pair] = []
        differences: list[Pair] = []
        seconds: list[float] = []
        done, whole = [], []
        for index in range(stop):
            start = _clock()
            output = stream(self.frames[index])
            seconds.append(_clock() - start)
            last = stream.stats.last
            done.append(last.macs_done)
            whole.append(last.macs_dense)
            dense = self.dense[index]
            if self.noise is not None:
                differences.append(squares(dense, output))
            pairs.append(self._pair(index, dense, output, differences))
            if self.task is not None and verify:  # reading detections can take longer than finding them
                tasks.append(pairs[-1] if self.task.name == self.metric.name else self.task.compare(dense, output))
        stream.reset()
        return self._sum_up(pairs, tasks, differences, seconds, done, whole, self.settings.tuned if verify else self.settled)

    def _pair(self, index: int, dense: Any, output: Any, differences: list[Pair]) -> Pair:
        if not self.metric.root:
            return self.metric.compare(dense, output)
        assert self.noise is not None
        wrong, there = differences[-1]
        return (wrong, self.noise[index]) if self.metric.name == "noise" else (wrong, there)

    def _sum_up(
        self,
        pairs: list[Pair],
        tasks: list[Pair],
        differences: list[Pair],
        seconds: list[float],
        done: list[int],
        whole: list[int],
        first: int,
    ) -> Outcome:
        """Figures over the frames from `first` on."""
        held = self.metric.error(pairs[first:])
        error = max(held, self.metric.error(pairs[self.settled : first])) if first > self.settled else held
        smooth, relative = error, None
        if self.noise is not None:
            wrong = math.fsum(pair[0] for pair in differences[first:])
            noise = math.fsum(self.noise[first : len(differences)])
            there = math.fsum(pair[1] for pair in differences[first:])
            smooth = math.sqrt(wrong / noise) if noise > 0 else error
            relative = math.sqrt(wrong / there) if there > 0 else None
        macs = sum(done[first:]) / max(sum(whole[first:]), 1)
        spent = sum(seconds[first:]) / len(seconds[first:])
        work = macs if self.settings.objective == "macs" else spent / self.seconds_dense
        task = self.task.error(tasks[first:]) if self.task is not None and tasks else None
        return Outcome(work, error, smooth, macs, spent, held, relative, task)

    def _stream(self, noise: str | None) -> Stream:
        if noise not in self._streams:
            twin = self.base.clone()
            twin._noise = noise  # same package; the rest of the settings is the same
            if twin._partial is None and not twin.thresholds.fixed:
                twin(self.frames[0])  # captured in parts: names are known after a frame
            self._streams[noise] = twin
        return self._streams[noise]


def _clock() -> float:
    """Seconds: of this thread where only it works, else of the wall."""
    return time.thread_time() if get_num_threads() == 1 else time.perf_counter()


def _forget(stream: Stream) -> None:
    """The next frame is computed densely."""
    if stream._executor is not None:
        stream._executor.reset()  # same package: keeps its memory, which reset() gives back
    elif stream._signature is not None:
        stream.reset()


def _steps(stream: Stream) -> dict[str, tuple[float, int]]:
    """Call site -> (standard deviation of its map in the frame that was just run, positions of the map)."""
    found: dict[str, tuple[float, int]] = {}
    parts = [("", stream)] if stream._partial is None else [(f"{prefix}.", part) for prefix, part in stream._partial.streams()]
    for prefix, part in parts:
        executor = part._executor
        if part._plan is None or executor is None:
            raise SightlineError("a part of the model has not been run; it cannot be tuned.")
        for step in part._plan.steps:
            if step.truncates:
                found[f"{prefix}{step.name}"] = (executor.std(step), executor.positions(step))
    return found
