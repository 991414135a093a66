"""Holding an error budget while a stream runs: now and then a frame is run densely too, and both outputs are compared.

What belongs here: what is compared with what, and in which unit. What does not: what follows for the thresholds (`sightline.budget`), and
how a network is run (`sightline.stream`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from sightline.budget import Control, starting_thresholds
from sightline.difference import same_form, squares
from sightline.graph.executor import Executor
from sightline.pixels import pixel_scale_of

UNLIKE = (
    "the outputs of this network change in size from frame to frame and cannot be subtracted, so no error is known; "
    "use budget=sightline.Budget(seconds=...), or tune thresholds with metric='detection_f1'"
)
NUMB = "the output does not react to noise of one grey level; check `pixel_scale`, or use metric='relative'"


class Checks:
    """Compares a stream with dense runs of the same frames.

    Args:
        control: of the stream; told what is measured.
    """

    def __init__(self, control: Control) -> None:
        self.control = control
        self._generator = torch.Generator().manual_seed(control.budget.seed)
        self._noise: float | None = None  # squared change that noise of one grey level makes
        self._scale: torch.Tensor | None = None

    def check(self, frame: torch.Tensor, streamed: Callable[[], Any], run: Callable[[torch.Tensor], Any]) -> Any:
        """Compares one frame.

        Args:
            frame: (n, c, h, w).
            streamed: gives the outputs of the stream for it, as far as they can be compared; called behind the dense runs.
            run: dense outputs of a frame; the last call is the one after which the stream goes on.

        Returns:
            The dense outputs.
        """
        stats = self.control.stats
        noisy = None
        if self.control.unit_due:
            noisy = run(frame + self._grey_noise(frame))
            stats.dense_runs += 1
        dense = run(frame)
        stats.dense_runs += 1
        kept = streamed()
        if not same_form(dense, kept) or (noisy is not None and not same_form(dense, noisy)):
            self.control.skipped(UNLIKE)
            return dense
        wrong, there = squares(dense, kept)
        if noisy is not None:
            self._take_unit(squares(dense, noisy)[0], there)
        if self.control.budget.metric == "noise":
            if not self._noise:
                self.control.skipped(NUMB)
                return dense
            there = self._noise
        self.control.measured(math.sqrt(wrong / there) if there > 0 else math.inf if wrong > 0 else 0.0)
        return dense

    def _take_unit(self, change: float, there: float) -> None:
        if change > 0:  # half the new one, half the old ones: a single frame's scatters
            self._noise = change if not self._noise else (self._noise + change) / 2
            self.control.stats.noise_unit = math.sqrt(self._noise / there) if there > 0 else None

    def starting_thresholds(self, executor: Executor, frame: torch.Tensor, unit: str) -> dict[str, float]:
        """Mild thresholds to put in the place of zeros, after the first frame."""
        steps = {step.name: step for step in executor.plan.steps if step.truncates}
        deviations = {name: executor.std(step) for name, step in steps.items()}
        gates = [name for name, step in steps.items() if executor.positions(step) <= frame.shape[0]]
        grey = float(self.grey_level(frame).mean()) / deviations["input"] if deviations.get("input") else 0.02
        values = starting_thresholds(list(steps), gates, grey)
        return {name: value * deviations[name] if unit == "absolute" else value for name, value in values.items()}

    def grey_level(self, frame: torch.Tensor) -> torch.Tensor:
        """One grey level per channel, (c, 1, 1), from the first frame that this is asked for."""
        if self._scale is None:
            self._scale = pixel_scale_of([frame.detach().cpu()], self.control.budget.pixel_scale)
        return self._scale

    def _grey_noise(self, frame: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(frame.shape, generator=self._generator) * self.grey_level(frame)
        return noise.to(frame.device, frame.dtype)
