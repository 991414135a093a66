"""A stand-in for `sightline.stream` with its interface: runs the network densely and keeps count as if it had not.

It makes tests of what surrounds a stream fast and exact; tests of the whole use the real one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class FakeStats:
    density: dict[str, float] = field(default_factory=dict)
    macs_done: float = 0.0
    macs_dense: float = 1000.0
    seconds: float = 0.0
    frames: int = 0
    restarts: int = 0
    refreshes: int = 0


@dataclass
class FakeRunning:
    last: FakeStats = field(default_factory=FakeStats)
    total: FakeStats = field(default_factory=FakeStats)
    budget: None = None


@dataclass
class FakeTable:
    rows: list[dict[str, Any]]


class FakeStream:
    """Streams nothing: the mask of changed input pixels is real, the rest follows from it."""

    def __init__(self, model: Callable[[torch.Tensor], Any], threshold: float = 0.0, **settings: Any) -> None:
        self.model = model
        self.threshold = threshold
        self.settings = settings
        self.stats = FakeRunning()
        self._held: torch.Tensor | None = None
        self._mask = torch.ones(1, 1, 1, dtype=torch.bool)

    def __call__(self, frame: torch.Tensor) -> Any:
        began = time.perf_counter()
        with torch.inference_mode():
            output = self.model(frame)
        if self._held is None:
            self._mask = torch.ones(frame.shape[0], *frame.shape[2:], dtype=torch.bool)
        else:
            self._mask = (frame - self._held).abs().amax(1) > 0.05
        self._held = frame.clone()
        density = float(self._mask.float().mean())
        self.stats.last = FakeStats({"input": density, "conv": density}, 1000.0 * density, 1000.0, time.perf_counter() - began)
        self.stats.total.frames += 1
        return output

    def last_sites(self, name: str = "input") -> torch.Tensor:
        if name == "input":
            return self._mask
        if name == "conv":
            return self._mask[:, ::2, ::2]
        raise KeyError(name)

    def explain(self) -> FakeTable:
        rows = [("conv", "window", "native", 0.25, 900.0, 0.9, ""), ("fc", "global", "torch", 1.0, 100.0, 0.1, "computed whole: <global>")]
        keys = ("site", "kind", "executor", "density", "macs", "share", "note")
        return FakeTable([dict(zip(keys, row, strict=True)) for row in rows])

    def memory(self) -> dict[str, Any]:
        return {"total": 3 << 20, "tensors": {"conv": 3 << 20}}
