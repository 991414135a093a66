"""What a streaming job measured, as plain data: the same numbers for JSON, for the HTML page and for the closing table.

What belongs here: the records, their sums, and the sentences that follow from them. What does not: torch, drawing, HTML.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 1
"""Version of the JSON; raised when a key changes its meaning or goes."""


@dataclass
class FrameRecord:
    """One streamed frame.

    Attributes:
        index: position in the source.
        seconds: time of the network alone, without decoding and drawing.
        input_density: share of the input positions that counted as changed, 0 to 1.
        mac_share: multiply-accumulates done, as a share of the dense network's, 0 to 1.
        note: what was found in it, in a few words.
        factor: on all thresholds, with a budget; else None.
    """

    index: int
    seconds: float
    input_density: float
    mac_share: float
    note: str = ""
    factor: float | None = None


@dataclass
class SampleRecord:
    """One frame on which the dense network ran too.

    Attributes:
        index: position in the source.
        dense_seconds, streamed_seconds: times of both on this frame.
        relative_l2: L2 norm of the difference of all outputs over that of the dense ones.
        max_abs: largest absolute difference.
        agreement: what the task counted on this frame.
    """

    index: int
    dense_seconds: float
    streamed_seconds: float
    relative_l2: float
    max_abs: float
    agreement: dict[str, float] = field(default_factory=dict)


@dataclass
class CheckRecord:
    """One frame on which the error was measured in noise units, or in the metric of the budget.

    Attributes:
        index: position in the source.
        error: against dense.
        mac_share: mean share of the dense work of the frames since the check before.
        dense_output: the output of this frame is that of the dense run (checks of a budget).
    """

    index: int
    error: float
    mac_share: float
    dense_output: bool = False


@dataclass
class MeasureRecord:
    """One number of the task's over all samples.

    Attributes:
        key: name in JSON.
        label: name in tables.
        value: the number.
        text: the number as tables show it.
    """

    key: str
    label: str
    value: float
    text: str


@dataclass(kw_only=True)
class JobReport:
    """What every job measures.

    Attributes:
        title: one line.
        source: name and kind of what was read, and more about it.
        model: name, input width and height, task.
        settings: what the user chose, name to value.
        versions: name to version, and the machine.
        layers: a row per call site.
        measures: the task's numbers.
        dense_engine: what ran the dense network.
        macs_dense: multiply-accumulates of one dense frame or picture.
        restarts, refreshes: frames that were computed whole at scene cuts (or after a change of exposure), and because it was asked for.
        wall_seconds: the whole job, with decoding, drawing and writing.
        warnings: what went wrong without stopping the job.
        interrupted: whether the user stopped it early.
        outputs: kind of file to path.
    """

    title: str
    source: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str]
    layers: list[dict[str, Any]] = field(default_factory=list)
    measures: list[MeasureRecord] = field(default_factory=list)
    dense_engine: str = ""
    macs_dense: float = 0.0
    restarts: int = 0
    refreshes: int = 0
    wall_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False
    outputs: dict[str, str] = field(default_factory=dict)

    def summary(self) -> list[tuple[str, str]]:
        """Rows of the closing table, (name, value)."""
        raise NotImplementedError

    def figures(self) -> dict[str, Any]:
        """The numbers derived from the records."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types: the records, and under "summary" the numbers derived from them."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "summary": self.figures()}

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(plain(self.to_dict()), indent=2, allow_nan=False) + "\n"


@dataclass(kw_only=True)
class RunReport(JobReport):
    """Everything that a streaming job measured.

    Attributes:
        frames: one record per streamed frame, in order; the first one is computed whole.
        layers: rows of ``stream.explain()``: site, kind, executor, density, macs, share, note.
        samples: frames compared with the dense network; empty without a comparison.
        measures: over the samples.
        state_bytes: memory that the stream holds.
        checks: frames on which the error was measured in noise units.
        budget: how the stream's budget stands at the end, see `sightline.BudgetStats`; None without one.
        tuning: what the thresholds file says about its tuning; None without one.
    """

    frames: list[FrameRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)
    state_bytes: int = 0
    checks: list[CheckRecord] = field(default_factory=list)
    budget: dict[str, Any] | None = None
    tuning: dict[str, Any] | None = None

    @property
    def steady(self) -> list[FrameRecord]:
        """The frames after the first, which is computed whole; all of them if there is only one."""
        return self.frames[1:] or self.frames

    @property
    def input_density(self) -> float:
        """Mean share of changed input positions after the first frame."""
        return mean([frame.input_density for frame in self.steady])

    @property
    def mac_share(self) -> float:
        """Mean share of the dense work after the first frame."""
        return mean([frame.mac_share for frame in self.steady])

    @property
    def streamed_seconds(self) -> float:
        """Median time of the network per streamed frame, after the first."""
        return median([frame.seconds for frame in self.steady])

    @property
    def dense_seconds(self) -> float | None:
        """Median time of the dense network per frame, over the samples."""
        return median([sample.dense_seconds for sample in self.samples]) if self.samples else None

    @property
    def speedup(self) -> float | None:
        """Dense time over streamed time on the same frames (medians); None without a comparison."""
        usable = [sample for sample in self.samples if self.frames and sample.index != self.frames[0].index] or self.samples
        streamed = median([sample.streamed_seconds for sample in usable])
        return median([sample.dense_seconds for sample in usable]) / streamed if usable and streamed > 0 else None

    @property
    def verdict(self) -> str:
        """One sentence: what streaming saved here, or that it does not pay."""
        saved = f"Streaming left out {percent(1 - self.mac_share)} of the network's multiply-accumulates after the first frame"
        if self.speedup is None:
            return saved + "."
        if self.speedup < 1.0:
            return (
                f"Streaming does not pay here: it took {1 / self.speedup:.2f} times as long as the dense network "
                f"although it left out {percent(1 - self.mac_share)} of the multiply-accumulates."
            )
        return f"{saved} and ran {self.speedup:.1f} times as fast as the dense network on the same frames ({self.dense_engine})."

    def summary(self) -> list[tuple[str, str]]:
        """Rows of the closing table, (name, value)."""
        rows = [
            ("frames", f"{len(self.frames)}{' (stopped early)' if self.interrupted else ''}"),
            ("input changed", percent(self.input_density)),
            ("MACs saved", percent(1 - self.mac_share)),
            ("network, streamed", f"{1000 * self.streamed_seconds:.1f} ms a frame"),
        ]
        if self.restarts or self.refreshes:
            rows.append(("computed whole again", f"{self.restarts} at scene cuts, {self.refreshes} refreshes"))
        if self.dense_seconds is not None:
            rows.append(("network, dense", f"{1000 * self.dense_seconds:.1f} ms a frame ({self.dense_engine})"))
        if self.speedup is not None:
            rows.append(("speed-up", f"{self.speedup:.2f}x"))
        if self.samples:
            rows.append(
                (f"error on {len(self.samples)} frames", f"{median([s.relative_l2 for s in self.samples]):.3g} relative L2 (median)")
            )
        rows.extend(self._checked())
        rows.extend((measure.label, measure.text) for measure in self.measures)
        if self.wall_seconds > 0:
            rows.append(("whole job", f"{self.wall_seconds:.1f} s, {len(self.frames) / self.wall_seconds:.1f} frames a second"))
        rows.append(("state held", f"{self.state_bytes / 2**20:.1f} MiB"))
        return rows

    @property
    def check_unit(self) -> str:
        """What the errors of the checks are counted in."""
        return "relative L2" if self.budget is not None and self.budget["metric"] == "relative" else "noise units"

    @property
    def checked_error(self) -> float | None:
        """Root of the mean square of the errors of the checks; None without any."""
        return math.sqrt(mean([check.error**2 for check in self.checks])) if self.checks else None

    def _checked(self) -> list[tuple[str, str]]:
        """Rows about checks and budget."""
        rows = []
        if self.checked_error is not None:
            count = len(self.checks)
            rows.append((f"error at {count} check{'' if count == 1 else 's'}", f"{self.checked_error:.3g} {self.check_unit}"))
        if self.budget is not None:
            runs = f", {self.budget['dense_runs']} dense runs for its checks" if self.budget["dense_runs"] else ""
            rows.append(("budget", f"{self.budget['target']}; thresholds x {self.budget['factor']:.3g} at the end{runs}"))
        return rows

    def figures(self) -> dict[str, Any]:
        """The numbers derived from the records."""
        return {
            "frames": len(self.frames),
            "input_density": self.input_density,
            "mac_share": self.mac_share,
            "streamed_seconds_median": self.streamed_seconds,
            "first_frame_seconds": self.frames[0].seconds if self.frames else None,
            "dense_seconds_median": self.dense_seconds,
            "speedup": self.speedup,
            "relative_l2_median": median([sample.relative_l2 for sample in self.samples]) if self.samples else None,
            "relative_l2_max": max((sample.relative_l2 for sample in self.samples), default=None),
            "max_abs_max": max((sample.max_abs for sample in self.samples), default=None),
            "checked_error": self.checked_error,
            "check_unit": self.check_unit,
            "measures": {measure.key: measure.value for measure in self.measures},
            "verdict": self.verdict,
        }


def plain(value: Any) -> Any:
    """The value in JSON's own types; JSON has no infinity and no NaN, so these become null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def mean(values: list[float]) -> float:
    """Arithmetic mean; 0 of nothing."""
    return statistics.fmean(values) if values else 0.0


def median(values: list[float]) -> float:
    """Median; 0 of nothing."""
    return statistics.median(values) if values else 0.0


def percent(share: float) -> str:
    """A share as tables show it."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
