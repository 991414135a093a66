"""A target that a running stream holds: the error that it may make, or the time that a frame may take.

What belongs here: what a user states, and the controller, which knows numbers only: measured errors and times in, one common factor on all
thresholds out. What does not: running networks and comparing their outputs (`sightline.stream`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

METRICS = ("noise", "relative")
SMALLEST, LARGEST = 2.0**-12, 2.0**12
"""Range of the factor."""

_AIM = 0.95  # of the target: where corrections go
_CONTENT = 0.9  # of the target: from here up to the target nothing is changed
_POWER = 0.8  # the error grows at most with about this power of the thresholds, often slower: falls come near, and the next one nearer
_DEEPEST_FALL = 1 / 16
_RISE, _FIRST_RISE = 1.35, 2.0  # at most, at one check; while the first checks still come in quick succession
_FIRST_CHECK = 4  # frames after a start; the next ones come after twice as many each, until `every` is reached
_UNIT_EVERY = 10  # checks: how often the noise unit is measured again
_IDLE = 0.005  # share of the dense work below which higher thresholds have nothing to save
_WINDOW = 8  # frames whose times are looked at together
_TIME_RISE, _TIME_FALL = 4.0, 1.25


@dataclass(frozen=True)
class Budget:
    """What a stream is to hold; for ``sl.stream(..., budget=...)``. Exactly one of `error` and `seconds`.

    Attributes:
        error: largest error, in units of the metric, > 0; held in the mean over checks.
        metric: "noise": L2 distance to the dense outputs over that which Gaussian noise of one grey level (1/255 of the pixel range) on
            the same frame makes; "relative": over the L2 norm of the dense outputs.
        seconds: time per frame inside the stream, > 0; held in the mean over a few frames. Nothing is known about the error then.
        every: with `error`, frames between two checks, 2 or more; with `seconds`, at least so many frames lie between two reductions of the
            thresholds, each of which costs about one dense frame.
        pixel_scale: one grey level in units of the input, also one per channel; None: inferred from the first frame's values.
        seed: of the noise.

    Raises:
        ValueError: an argument is outside its range, or not exactly one of `error` and `seconds` is given.

    Cost: with `error`, one dense run per check, and one more at the first and then at every tenth check ("noise" only). Checks come at
    frames 4, 8, 16 ... after a start or a scene cut, until `every` frames lie between them: ``1.1 n / every + log2(every) + 1`` dense
    runs in n frames at most, and ``log2(every)`` more per cut. With `seconds`: none but those after reductions.

    >>> Budget(seconds=0.02).text
    '20 ms per frame'
    """

    error: float | None = None
    metric: str = "noise"
    seconds: float | None = None
    every: int = 100
    pixel_scale: float | Sequence[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.error is None) == (self.seconds is None):
            raise ValueError(f"`budget` needs exactly one of error and seconds; got error={self.error!r}, seconds={self.seconds!r}.")
        for name in ("error", "seconds"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise ValueError(f"`budget`: {name} must be a finite number > 0; got {value!r}.")
        if self.metric not in METRICS:
            raise ValueError(f"`budget`: metric must be one of {', '.join(map(repr, METRICS))}; got {self.metric!r}.")
        for name, least in (("every", 2), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not (isinstance(value, int) and value >= least):
                raise ValueError(f"`budget`: {name} must be a whole number, {least} or more; got {value!r}.")

        scale = self.pixel_scale
        values = [scale] if isinstance(scale, int | float) else () if scale is None else list(scale)
        if not all(_is_number(value) and 0 < value < math.inf for value in values) or (scale is not None and not values):
            raise ValueError(f"`budget`: pixel_scale must be a positive number, or one per channel; got {scale!r}.")

    @classmethod
    def of(cls, value: float | Budget | None) -> Budget | None:
        """What `sl.stream` is given: a number is an error in noise units.

        Raises:
            ValueError: neither a number > 0 nor a `Budget`.
        """
        if value is None or isinstance(value, Budget):
            return value
        if not _is_number(value):
            raise ValueError(f"`budget` must be a number > 0 (noise units), a sightline.Budget or None; got {value!r}.")
        return cls(error=float(value))

    @property
    def text(self) -> str:
        """The target in words."""
        if self.seconds is not None:
            return f"{1000 * self.seconds:g} ms per frame"
        unit = {"noise": "noise unit" if self.error == 1 else "noise units", "relative": "relative L2 error"}[self.metric]
        return f"{self.error:g} {unit}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass
class BudgetStats:
    """How a budget stands; ``stream.stats.budget``.

    Attributes:
        target: in words.
        metric: "noise", "relative" or "seconds".
        goal: the target as a number, in units of the metric.
        factor: on all thresholds of ``stream.thresholds`` now.
        error: measured at the last check, in units of the metric; None before the first one, and with a time target.
        mean_error: root of the mean square of the errors of all checks since the start.
        noise_unit: relative L2 change of the dense output that one noise unit stands for, as measured last; None if it is not needed.
        seconds: mean time of the last frames, with a time target; None before there are enough.
        checks: comparisons with dense since the start.
        dense_runs: dense runs that were spent on checks and noise units.
        remark: why the target cannot be reached, or ""; in words.
    """

    target: str
    metric: str
    goal: float
    factor: float = 1.0
    error: float | None = None
    mean_error: float | None = None
    noise_unit: float | None = None
    seconds: float | None = None
    checks: int = 0
    dense_runs: int = 0
    remark: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)


class Control:
    """Turns what is measured into the factor on all thresholds.

    The factor falls at once where the error is too large, as far as the error's usual growth with thresholds asks for, and rises in small
    steps: the error of single frames scatters, and one that is too large counts for more than one that is too small.

    Args:
        budget: the target.
        factor: to start from.
    """

    def __init__(self, budget: Budget, factor: float = 1.0) -> None:
        self.budget = budget
        metric, goal = (budget.metric, budget.error) if budget.error is not None else ("seconds", budget.seconds or 0.0)
        self.stats = BudgetStats(budget.text, metric, goal, factor)
        self._frames = 0  # since the start
        self._next = min(_FIRST_CHECK, budget.every)
        self._gap = self._next
        self._squares = 0.0
        # Shares of the dense work, of the frames since the last decision.
        self._shares: deque[float] = deque(maxlen=_WINDOW if budget.error is None else budget.every)
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self._fell = 0  # frame at which the thresholds were reduced last
        self._whole = True  # the next frame is computed whole: its time says nothing

    @property
    def factor(self) -> float:
        """On all thresholds."""
        return self.stats.factor

    # -- errors ---------------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the frame that has just been streamed is to be compared with a dense run."""
        return self.budget.error is not None and self._frames == self._next

    @property
    def unit_due(self) -> bool:
        """Whether the noise unit is to be measured at this check."""
        return self.budget.metric == "noise" and (self.stats.noise_unit is None or self.stats.checks % _UNIT_EVERY == 0)

    def measured(self, error: float) -> None:
        """Takes the error of a check and moves the factor.

        Args:
            error: in units of the metric; inf where it cannot be told.
        """
        stats, target = self.stats, self.budget.error
        assert target is not None
        stats.checks += 1
        stats.error = error
        self._squares += min(error, 1e6 * target) ** 2
        stats.mean_error = math.sqrt(self._squares / stats.checks)
        quickly = self._gap < self.budget.every
        self._schedule()
        ratio = error / target
        if ratio > 1:
            self._move(max((_AIM / ratio) ** (1 / _POWER), _DEEPEST_FALL))
        elif ratio < _CONTENT and self._saves:
            self._move(min((_AIM / max(ratio, 1e-9)) ** 0.6, _FIRST_RISE if quickly else _RISE))
        self._shares.clear()
        unreached = ratio > 1 and stats.factor <= SMALLEST
        reason = f"the error cannot be held: it is {error:.3g} with thresholds next to 0; use threshold=0 without a budget"
        stats.remark = reason if unreached else ""

    def skipped(self, reason: str) -> None:
        """Takes note that a check could not tell the error; the factor stays."""
        self.stats.remark = reason
        self._schedule()

    def _schedule(self) -> None:
        self._next = self._frames + self._gap
        self._gap = min(2 * self._gap, self.budget.every)

    @property
    def _saves(self) -> bool:
        """Whether there has been any work that higher thresholds could save; else they would rise without limit while nothing moves."""
        return bool(self._shares) and sum(self._shares) / len(self._shares) > _IDLE

    def _move(self, ratio: float) -> None:
        self.stats.factor = min(max(self.stats.factor * ratio, SMALLEST), LARGEST)

    def begun_anew(self, *, another_scene: bool) -> None:
        """The frame that has just been streamed was computed whole: neither its time nor its error says anything.

        Args:
            another_scene: what was measured before may not hold any more, so checks come in quick succession again.
        """
        self._whole = True
        if another_scene:
            self._gap = min(_FIRST_CHECK, self.budget.every)
        if another_scene or self.due:
            self._schedule()

    # -- frames and times -----------------------------------------------------------------------------------------------

    def frame(self, seconds: float, share: float) -> None:
        """Takes the cost of a frame; with a time target, moves the factor.

        Args:
            seconds: time of the frame.
            share: of the dense work that it took, 0 to 1.
        """
        self._frames += 1
        self._shares.append(share)
        if self.budget.seconds is None:
            return
        if self._whole:
            self._whole = False
            self._shares.clear()
            return
        self._times.append(seconds)
        if len(self._times) == _WINDOW:
            self._hold_time(self.budget.seconds)

    def _hold_time(self, target: float) -> None:
        stats = self.stats
        stats.seconds = sum(self._times) / _WINDOW
        ratio = stats.seconds / target
        stats.remark = ""
        if ratio > 1:
            if self._saves and stats.factor < LARGEST:
                self._move(min((ratio / _AIM) ** 2, _TIME_RISE))
            else:
                stats.remark = (
                    f"the target of {1000 * target:.3g} ms cannot be reached: a frame takes {1000 * stats.seconds:.3g} ms although "
                    f"{100 * sum(self._shares) / len(self._shares):.2g} % of the dense work is left"
                )
        elif ratio < _CONTENT and stats.factor > SMALLEST and self._frames - self._fell >= self.budget.every:
            self._move(1 / _TIME_FALL)
            self._fell, self._whole = self._frames, True
        else:
            return
        self._times.clear()
        self._shares.clear()

    # -- starts -----------------------------------------------------------------------------------------------------------

    def restarted(self) -> Control:
        """A controller for another start: the same factor, nothing measured."""
        return Control(self.budget, self.factor)


def starting_thresholds(names: Sequence[str], gates: Sequence[str], grey: float) -> dict[str, float]:
    """Thresholds to begin with where none are given: a low level, from which the first checks rise fast, falling along the network.

    Args:
        names: call sites that take a threshold, in execution order.
        gates: those of them without positions (means, squeeze-excite): if one moves, a whole map is recomputed.
        grey: one grey level in standard deviations of the frame.

    Returns:
        Name -> threshold in standard deviations.
    """
    last = max(len(names) - 1, 1)
    level = {name: 0.01 * 0.5 ** (index / last - 0.5) * (4.0 if name in gates else 1.0) for index, name in enumerate(names)}
    return {name: 0.4 * grey if name == "input" else value for name, value in level.items()}
