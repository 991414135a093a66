"""What a focus job measured, as plain data: the same numbers for JSON, for the HTML page and for the closing table.

What belongs here: the records, their sums, and the sentences that follow from them. What does not: torch, drawing, HTML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sightline.report.data import JobReport, median, percent


@dataclass
class ImageRecord:
    """One picture, run focused and dense.

    Attributes:
        name: of the file.
        width, height: in pixels.
        area: share of the picture inside the area, 0 to 1.
        mac_share: multiply-accumulates done, as a share of the dense network's, 0 to 1.
        focused_seconds, dense_seconds: wall time of the network alone, medians over the runs.
        focused_cpu_seconds, dense_cpu_seconds: the same in CPU time.
        relative_l2: L2 norm of the difference inside the area over that of the dense output there; None where nothing is inside.
        max_abs: largest absolute difference inside the area; None as above.
        agreement: what the task counted inside the area.
        focused_note, dense_note: what was found, in a few words.
        brightness: least, median, 90 % quantile and largest, where brightness decides the area.
    """

    name: str
    width: int
    height: int
    area: float
    mac_share: float
    focused_seconds: float
    dense_seconds: float
    focused_cpu_seconds: float
    dense_cpu_seconds: float
    relative_l2: float | None
    max_abs: float | None
    agreement: dict[str, float] = field(default_factory=dict)
    focused_note: str = ""
    dense_note: str = ""
    brightness: list[float] = field(default_factory=list)


@dataclass(kw_only=True)
class FocusReport(JobReport):
    """Everything that a focus job measured.

    Attributes:
        source: with skipped: name of each file that could not be used, and why.
        area: where it came from, in words.
        mode: "zero" or "exact".
        clock: what the CPU times count, in words.
        runs: timed runs per picture, focused and dense in turns.
        images: one record per picture.
        layers: per call site: site, kind, executor, share (mean of its positions computed), macs (dense), macs_done (mean), note.
        measures: over the pictures.
    """

    area: str
    mode: str
    clock: str = ""
    runs: int = 0
    images: list[ImageRecord] = field(default_factory=list)

    @property
    def area_size(self) -> float:
        """Mean share of the pictures inside the area."""
        return sum(image.area for image in self.images) / max(len(self.images), 1)

    @property
    def mac_share(self) -> float:
        """Mean share of the dense work."""
        return sum(image.mac_share for image in self.images) / max(len(self.images), 1)

    @property
    def relative_l2(self) -> float | None:
        """Median error inside the area, over the pictures that have any."""
        errors = [image.relative_l2 for image in self.images if image.relative_l2 is not None]
        return median(errors) if errors else None

    @property
    def speedup(self) -> float | None:
        """Median over the pictures of dense CPU time over focused CPU time."""
        return self._ratio("cpu_seconds")

    @property
    def wall_speedup(self) -> float | None:
        """The same in wall time."""
        return self._ratio("seconds")

    def _ratio(self, unit: str) -> float | None:
        pairs = [(getattr(image, f"dense_{unit}"), getattr(image, f"focused_{unit}")) for image in self.images]
        ratios = [dense / focused for dense, focused in pairs if focused > 0]
        return median(ratios) if ratios else None

    @property
    def verdict(self) -> str:
        """One sentence: what focusing saved here, and at what price; or that it does not pay."""
        if self.images and all(image.area == 0 for image in self.images):
            return "Nothing was inside the area, so nothing was computed."
        saved = f"Focusing left out {percent(1 - self.mac_share)} of the network's multiply-accumulates"
        error = "" if self.relative_l2 is None else f", with an error of {self.relative_l2:.2g} (relative L2) inside the area"
        if self.speedup is None:
            return f"{saved}{error}."
        if self.speedup < 1.0:
            return f"Focusing does not pay here: it took {1 / self.speedup:.2f} times as long as the dense network{error}."
        return f"{saved} and took {1 / self.speedup:.2f} of the dense network's time ({self.dense_engine}){error}."

    def summary(self) -> list[tuple[str, str]]:
        """Rows of the closing table, (name, value)."""
        count = len(self.images)
        skipped = len(self.source.get("skipped", {}))
        rows = [
            ("images", f"{count}{f', {skipped} skipped' if skipped else ''}{' (stopped early)' if self.interrupted else ''}"),
            ("area", f"{percent(self.area_size)} of the picture ({self.area})"),
            ("MACs saved", percent(1 - self.mac_share)),
        ]
        bright = [image.brightness for image in self.images if image.brightness]
        if bright:
            low, middle, high, top = (median([values[i] for values in bright]) for i in range(4))
            rows.append(("brightness", f"{low:.4g} to {top:.4g}; half of the positions below {middle:.4g}, nine tenths below {high:.4g}"))
        for name in ("focused", "dense"):
            wall = 1000 * median([getattr(image, f"{name}_seconds") for image in self.images])
            cpu = 1000 * median([getattr(image, f"{name}_cpu_seconds") for image in self.images])
            engine = f" ({self.dense_engine})" if name == "dense" else ""
            rows.append((f"network, {name}", f"{cpu:.1f} ms {self.clock}, {wall:.1f} ms wall time{engine}"))
        if self.speedup is not None and self.wall_speedup is not None:
            rows.append(("speed-up", f"{self.speedup:.2f}x in {self.clock}, {self.wall_speedup:.2f}x in wall time"))
        if self.relative_l2 is not None:
            largest = max(image.max_abs or 0.0 for image in self.images)
            rows.append(("error inside the area", f"{self.relative_l2:.3g} relative L2 (median), largest difference {largest:.3g}"))
        rows.extend((measure.label, measure.text) for measure in self.measures)
        return rows

    def figures(self) -> dict[str, Any]:
        """The numbers derived from the records."""
        return {
            "images": len(self.images),
            "skipped": len(self.source.get("skipped", {})),
            "area_size": self.area_size,
            "mac_share": self.mac_share,
            "speedup_cpu": self.speedup,
            "speedup_wall": self.wall_speedup,
            "relative_l2_median": self.relative_l2,
            "relative_l2_max": max((image.relative_l2 for image in self.images if image.relative_l2 is not None), default=None),
            "max_abs_max": max((image.max_abs for image in self.images if image.max_abs is not None), default=None),
            "measures": {measure.key: measure.value for measure in self.measures},
            "verdict": self.verdict,
        }
