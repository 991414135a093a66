"""The seed's search: front to back, each threshold as large as its part of the budget lets it be.

Source: the loop in the README of DeltaCNN (arXiv 2203.03996). There, each threshold is doubled from a small number until the loss has
grown by more than a fixed factor. Streaming's error starts at 0, of which no factor can be taken; so the allowed error grows from call site
to call site such that each may add the same square, and what one leaves unused the next ones may use.
"""

from __future__ import annotations

import math

from sightline.tune.measure import Measurer, Trial

_FIRST = 0.01  # standard deviations
_FACTOR = 2.0
_LARGEST = 8.0


def greedy(measurer: Measurer, budget: float, noise: str | None) -> Trial:
    """The setting that the front-to-back search finds on the tuning frames.

    Args:
        measurer: makes the passes.
        budget: largest error.
        noise: the input filter; it is not searched.
    """
    count = len(measurer.names)
    measurer.stage, measurer.expected = "front to back", 5 * count + 9
    values = [0.0] * count
    for index in range(count):
        allowed = budget * math.sqrt((index + 1) / count)
        threshold, held = _FIRST, 0.0
        while threshold <= _LARGEST:
            values[index] = threshold
            outcome = measurer.measure(Trial(noise, tuple(values)))
            if outcome.error > allowed:
                break
            measurer.best = min(measurer.best, outcome.work)
            held = threshold
            threshold *= _FACTOR
        values[index] = held
    return Trial(noise, tuple(values))
