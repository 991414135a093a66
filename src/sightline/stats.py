"""Counters of a stream: what the last frame cost, and all frames together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.budget import BudgetStats


@dataclass(frozen=True)
class Site:
    """What is counted at one call site: its name, its number of positions, the multiply-accumulates of a dense run, if it is a gate."""

    name: str
    positions: int
    macs: int
    gate: bool = False


@dataclass
class FrameStats:
    """Cost of one frame, or of all frames since the last reset.

    Attributes:
        frames: number of frames counted.
        density: call-site name -> share of its positions that were computed, 0 to 1 (mean over the frames counted).
        macs_done: multiply-accumulates that were computed.
        macs_dense: multiply-accumulates that a dense run would have computed.
        seconds: wall time inside the stream, capture and planning not included.
        gates: call-site name of a global gate (a value without positions that is multiplied, added or spread over a whole map) -> share
            of the frames in which it moved, 0 to 1; the first frame counts as one.
        restarts: how often the video was started anew within: at a scene cut, or at another exposure that lasted.
        refreshes: how often everything was computed again because it was asked for.
    """

    frames: int = 0
    density: dict[str, float] = field(default_factory=dict)
    macs_done: int = 0
    macs_dense: int = 0
    seconds: float = 0.0
    gates: dict[str, float] = field(default_factory=dict)
    restarts: int = 0
    refreshes: int = 0

    @property
    def restarted(self) -> bool:
        """Whether the video was started anew within."""
        return self.restarts > 0

    @property
    def macs_share(self) -> float:
        """macs_done / macs_dense; 0 if there is nothing to count."""
        return self.macs_done / self.macs_dense if self.macs_dense else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {
            "frames": self.frames,
            "macs_done": self.macs_done,
            "macs_dense": self.macs_dense,
            "macs_share": self.macs_share,
            "seconds": self.seconds,
            "restarts": self.restarts,
            "refreshes": self.refreshes,
            "density": dict(self.density),
            "gates": dict(self.gates),
        }


class Stats:
    """`last`: the last frame. `total`: all frames since the start or the last reset, the first (dense) one included.

    `budget`: how a budget stands (`BudgetStats`), None without one. A frame that is checked against dense counts that work too, so its
    densities and shares are above 1.

    Adding a frame only adds up integers; names and shares are worked out when somebody looks.
    """

    def __init__(self) -> None:
        self._sites: Sequence[Site] = ()
        self._last: list[int] = []
        self._sum: list[int] = []
        self._gates: list[str] = []
        self._moved: list[int] = []
        self._moved_sum: list[int] = []
        self._frames = 0
        self._last_seconds = 0.0
        self._seconds = 0.0
        self.budget: BudgetStats | None = None
        self._last_starts = (0, 0)
        self._starts = (0, 0)

    def add(
        self,
        sites: Sequence[Site],
        counts: list[int],
        seconds: float,
        moved: Sequence[bool] = (),
        *,
        restarted: bool = False,
        refreshed: bool = False,
    ) -> None:
        """Counts one more frame.

        Args:
            sites: the call sites, in a fixed order; the same object as long as the network is the same.
            counts: for each, how many positions were computed.
            seconds: wall time.
            moved: of the sites that are gates, in their order, whether they moved.
            restarted: the frame started the video anew.
            refreshed: everything was computed again because it was asked for.
        """
        if sites is not self._sites:  # the set of parts of a model may grow
            known = dict(zip((site.name for site in self._sites), self._sum, strict=True))
            self._sites, self._sum = sites, [known.get(site.name, 0) for site in sites]
            known = dict(zip(self._gates, self._moved_sum, strict=True))
            self._gates = [site.name for site in sites if site.gate]
            self._moved_sum = [known.get(name, 0) for name in self._gates]
        self._last = counts
        self._sum = [a + b for a, b in zip(self._sum, counts, strict=True)]
        self._moved = [int(value) for value in moved] if moved else [0] * len(self._gates)
        self._moved_sum = [a + b for a, b in zip(self._moved_sum, self._moved, strict=True)]
        self._frames += 1
        self._last_seconds = seconds
        self._seconds += seconds
        self._last_starts = (int(restarted), int(refreshed))
        self._starts = (self._starts[0] + restarted, self._starts[1] + refreshed)

    def add_to_last(self, counts: list[int], seconds: float) -> None:
        """Counts more work for the last frame."""
        self._last = [a + b for a, b in zip(self._last, counts, strict=True)]
        self._sum = [a + b for a, b in zip(self._sum, counts, strict=True)]
        self._last_seconds += seconds
        self._seconds += seconds

    @property
    def last_share(self) -> float:
        """``last.macs_share`` without the rest."""
        done = sum(site.macs * count / max(site.positions, 1) for site, count in zip(self._sites, self._last, strict=True))
        return done / max(sum(site.macs for site in self._sites), 1)

    @property
    def last_counts(self) -> list[int]:
        """Positions computed in the last frame, in the order of the call sites."""
        return self._last

    @property
    def last_moved(self) -> list[bool]:
        """Whether each gate moved in the last frame, in the order of the call sites."""
        return [bool(value) for value in self._moved]

    @property
    def last(self) -> FrameStats:
        """Cost of the last frame."""
        return self._stats(self._last, self._moved, min(self._frames, 1), self._last_seconds, self._last_starts)

    @property
    def total(self) -> FrameStats:
        """Cost of all frames together; densities are means."""
        return self._stats(self._sum, self._moved_sum, self._frames, self._seconds, self._starts)

    def _stats(self, counts: list[int], moved: list[int], frames: int, seconds: float, starts: tuple[int, int]) -> FrameStats:
        if not frames:
            return FrameStats()
        shares = [count / max(site.positions, 1) for site, count in zip(self._sites, counts, strict=True)]
        return FrameStats(
            frames,
            {site.name: share / frames for site, share in zip(self._sites, shares, strict=True)},
            sum(round(site.macs * share) for site, share in zip(self._sites, shares, strict=True)),
            sum(site.macs for site in self._sites) * frames,
            seconds,
            {name: count / frames for name, count in zip(self._gates, moved, strict=True)},
            *starts,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        budget = {} if self.budget is None else {"budget": self.budget.to_dict()}
        return {"last": self.last.to_dict(), "total": self.total.to_dict(), **budget}
