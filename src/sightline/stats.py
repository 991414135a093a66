"""Counters of a stream: what the last frame cost, and all frames together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class FrameStats:
    """Cost of one frame, or of all frames since the last reset.

    Attributes:
        frames: number of frames counted.
        density: call-site name -> share of its positions that were computed, 0 to 1 (mean over the frames counted).
        macs_done: multiply-accumulates that were computed.
        macs_dense: multiply-accumulates that a dense run would have computed.
        seconds: wall time inside the stream, capture and planning not included.
    """

    frames: int = 0
    density: dict[str, float] = field(default_factory=dict)
    macs_done: int = 0
    macs_dense: int = 0
    seconds: float = 0.0

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
            "density": dict(self.density),
        }


@dataclass
class Stats:
    """`last`: the last frame. `total`: all frames since the start or the last reset, the first (dense) one included."""

    last: FrameStats = field(default_factory=FrameStats)
    total: FrameStats = field(default_factory=FrameStats)

    def add(self, frame: FrameStats) -> None:
        """Counts one more frame."""
        before = self.total
        n = before.frames
        self.total = FrameStats(
            frames=n + 1,
            density={name: (before.density.get(name, 0.0) * n + d) / (n + 1) for name, d in frame.density.items()},
            macs_done=before.macs_done + frame.macs_done,
            macs_dense=before.macs_dense + frame.macs_dense,
            seconds=before.seconds + frame.seconds,
        )
        self.last = frame

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {"last": self.last.to_dict(), "total": self.total.to_dict()}
