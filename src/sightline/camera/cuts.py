"""Scene cuts: whether a frame shows something else than the one before.

What belongs here: the decision, from a few thousand pixels. What does not: what a stream does about it.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

import torch

from sightline.camera.sample import sampled

_SAMPLES = 4096  # pixels
_CHANGE = 0.4  # mean change in units of the picture's mean deviation; 1.4 between pictures that have nothing in common
_SUDDEN = 2.5  # times the usual change of late
_RISE = 1.5  # times the last change: a camera that starts to pan gets faster step by step
_DENSITY = 0.5  # share of values that changed at all
_ALIKE = 0.7  # correlation from which two pictures show the same, at another exposure perhaps


class CutDetector:
    """Looks at each frame of a video, cheaply, before anything is computed.

    A frame is a cut iff it differs much from the one before, in most places, suddenly, and is not that one (or, after a flash, the one
    before it) at another exposure. A panning camera differs much, but not suddenly. Of a batch, most elements must have changed.

    Cost: some thousand pixels are read; no more than 0.1 ms.
    """

    def __init__(self) -> None:
        self._before: deque[_Picture] = deque(maxlen=2)
        self._changes: deque[float] = deque(maxlen=8)
        self._seen: tuple[_Picture, float] | None = None

    def look(self, frame: torch.Tensor, limit: float = 0.0) -> bool:
        """Whether a frame, float (n, c, h, w), is the first of another scene. Nothing is remembered before `keep`.

        Args:
            frame: of the same size as those before.
            limit: smaller changes of the frame's values do not count as changes.
        """
        picture = _Picture(frame)
        if not self._before:
            self._seen = picture, math.nan
            return False
        last = self._before[-1]
        if torch.equal(picture.values, last.values):
            self._seen = picture, 0.0
            return False
        changes = picture.changes_from(last)
        change = statistics.median_low(changes)
        self._seen = picture, change
        usual = statistics.median(self._changes) if self._changes else 0.0
        if not (_CHANGE < change < math.inf and change > max(_SUDDEN * usual, _RISE * (self._changes or [0.0])[-1])):  # NaN: no
            return False
        if statistics.median_low(picture.density_of_changes(last, limit)) < _DENSITY:
            return False
        return all(_median(picture.likeness(earlier)) < _ALIKE for earlier in self._before)

    def keep(self) -> None:
        """The frame that was looked at has become part of the video."""
        if self._seen is not None:
            picture, change = self._seen
            self._before.append(picture)
            if math.isfinite(change):
                self._changes.append(change)
            self._seen = None

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        return sum(picture.nbytes for picture in self._before)

    def reset(self) -> None:
        """Forgets all frames."""
        self._before.clear()
        self._changes.clear()
        self._seen = None


class _Picture:
    """Some pixels of a frame, one row per batch element."""

    def __init__(self, frame: torch.Tensor) -> None:
        self.values = sampled(frame, _SAMPLES).to(torch.float32).flatten(1).clone()
        self._deviation: list[float] | None = None
        self._centred: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self._centred is None else self._centred.nbytes)

    @property
    def centred(self) -> torch.Tensor:
        if self._centred is None:
            self._centred = self.values - self.values.mean(1, keepdim=True)
        return self._centred

    @property
    def deviation(self) -> list[float]:
        """Mean absolute deviation from the mean."""
        if self._deviation is None:
            self._deviation = self.centred.abs().mean(1).tolist()
        return self._deviation

    def changes_from(self, other: _Picture) -> list[float]:
        """Mean absolute change per element, in units of the larger of the deviations."""
        changes = (self.values - other.values).abs_().mean(1).tolist()
        return [
            change / max(a, b) if change > 0 and max(a, b) > 0 else (0.0 if change == 0 else math.nan if change != change else 2.0)  # noqa: PLR0124
            for change, a, b in zip(changes, self.deviation, other.deviation, strict=True)
        ]

    def density_of_changes(self, other: _Picture, limit: float) -> list[float]:
        """Share of values per element that changed by more than a tenth of the larger of the deviations, and than the limit."""
        least = torch.tensor(
            [max(0.1 * a, 0.1 * b, limit) for a, b in zip(self.deviation, other.deviation, strict=True)], device=self.values.device
        )
        shares: list[float] = ((self.values - other.values).abs() > least[:, None]).float().mean(1).tolist()
        return shares

    def likeness(self, other: _Picture) -> list[float]:
        """Correlation per element; 0 where one of the two is of one colour."""
        a, b = self.centred, other.centred
        norm = (a.square().sum(1) * b.square().sum(1)).sqrt()
        correlations: list[float] = ((a * b).sum(1) / norm).nan_to_num(0.0, 0.0, 0.0).tolist()
        return correlations


def _median(values: list[float]) -> float:
    return statistics.median_low(values)
