"""What a tuning found, and what it tells while it runs: plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TuneProgress:
    """Told after every pass.

    Attributes:
        stage: what is being done, in a few words.
        passes: passes over the clip so far.
        expected: about how many there will be.
        work: best work so far that keeps the budget on the tuning frames, as a share of dense.
    """

    stage: str
    passes: int
    expected: int
    work: float


@dataclass(frozen=True)
class Point:
    """One measured setting.

    Attributes:
        work: share of the dense work, over the frames that count (not the first ones, in which all that is held is young).
        error: in the metric of the tuning.
        verified: measured on held-back frames (else on the tuning frames).
        noise: the input filter.
        scale: factor on the final thresholds, where the point belongs to their frontier.
    """

    work: float
    error: float
    verified: bool
    noise: str | None = None
    scale: float | None = None


@dataclass
class TuneReport:
    """Result of a tuning; all figures but `points` on the held-back frames.

    Attributes:
        method, metric, budget, objective: as asked for.
        noise: the input filter that was chosen.
        work: share of the dense work that is left ("macs": multiply-accumulates; "seconds": time).
        macs_share: the same in multiply-accumulates, whatever the objective.
        seconds, seconds_dense: per frame, streamed and dense, in this process.
        error: in the metric; at most `budget`.
        error_noise: in noise units (None where outputs change in size).
        error_relative: relative L2 error (None likewise).
        noise_unit: the relative L2 change that one noise unit stands for.
        pixel_scale: one grey level in units of the input, per channel, as given or inferred.
        task: name of the task's own metric, or None where the task is not known.
        task_error: its error.
        passes: streamed passes that search and verification took; dense ones, two, and those of the frontier are not among them.
        frames_run: frames streamed in these passes.
        frontier_passes: passes for the frontier.
        resumed: passes that came from the checkpoint.
        frames_tuned, frames_held_back: how the frames were split.
        points: everything that was measured.
        met: whether the budget is kept with any saving; if not, all thresholds are 0.
    """

    method: str
    metric: str
    budget: float
    objective: str
    noise: str | None
    work: float
    macs_share: float
    seconds: float
    seconds_dense: float
    error: float
    error_noise: float | None
    error_relative: float | None
    noise_unit: float | None
    pixel_scale: list[float]
    task: str | None
    task_error: float | None
    passes: int
    frames_run: int
    frontier_passes: int
    resumed: int
    frames_tuned: int
    frames_held_back: int
    met: bool
    points: list[Point] = field(default_factory=list)

    @property
    def saving(self) -> float:
        """1 / work: how many times less work than dense."""
        return 1 / self.work if self.work > 0 else float("inf")

    @property
    def frontier(self) -> list[Point]:
        """The measured points on the held-back frames that no other one beats in both work and error, by growing error."""
        best: list[Point] = []
        for point in sorted((p for p in self.points if p.verified), key=lambda p: (p.error, p.work)):
            if not best or point.work < best[-1].work:
                best.append(point)
        return best

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON (an infinite saving is None)."""
        saving = self.saving if self.work > 0 else None
        return {**asdict(self), "saving": saving, "frontier": [asdict(point) for point in self.frontier]}

    def brief(self) -> dict[str, Any]:
        """What a thresholds file keeps: the choice, and the frontier that it was chosen from."""
        kept = {name: getattr(self, name) for name in ("metric", "budget", "error", "work", "objective", "frames_held_back")}
        return {**kept, "frontier": [{"error": point.error, "work": point.work} for point in self.frontier]}

    def __str__(self) -> str:
        task = "" if self.task is None or self.task == self.metric else f", {self.task} error {self.task_error:.4g}"
        noise = "" if self.error_noise is None or self.metric == "noise" else f", {self.error_noise:.3g} noise units"
        return (
            f"{100 * self.work:.1f} % of the dense work at {self.metric} error {self.error:.3g} (budget {self.budget:g}{noise}{task}), "
            f"noise filter {self.noise or 'none'}, {self.passes} passes"
        )
