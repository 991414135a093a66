"""Our search: a small family to start from, about one perturbed pass per call site, then a knapsack-like choice; repeat.

Errors of call sites add up roughly in squares and slowly change with the thresholds of others; work does not add up at all (what is
dropped early is not computed late). So everything is measured *near the operating point*: from a setting that just keeps the budget, all
thresholds are moved up and down together in an orthogonal design, which shows what each does to work and squared error. Moves are then
chosen so that the predicted squared error stays and the predicted work is least: a Lagrangian whose multiplier is found by bisection.
The prediction is only trusted for its direction: half the move, the move and more are measured, each brought back to the budget by one
common factor, and the best goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sightline.tune.measure import Measurer, Outcome, Trial

_START = 0.03  # standard deviations
_LARGEST = 16.0  # standard deviations: nothing passes any more
_GROUPS = 31  # one less than a power of two, see `sensitivities`; call sites of large networks are moved in groups of neighbours
_STEPS = (3.0, 2.0)  # of the first round and of later ones
_MOVES = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
_GREYS = (0.0, 0.7, 1.2, 1.8, 2.6, 4.0, 6.0, 9.0)  # thresholds of the frame in grey levels; pixels are whole levels, so few differ


@dataclass(frozen=True)
class Shape:
    """How thresholds lie to each other before every site is looked at alone.

    Attributes:
        grey: threshold of the frame, as an index of `_GREYS`.
        slope: last threshold over the first; they fall geometrically along the network.
        gates: factor on values without positions (means, squeeze-excite): if one of them moves, a whole map is recomputed.
    """

    grey: int = 2
    slope: float = 0.5
    gates: float = 4.0


@dataclass(frozen=True)
class Fit:
    """A setting brought to the budget by one common factor (the frame's threshold left alone)."""

    trial: Trial
    outcome: Outcome
    factor: float


def knapsack(measurer: Measurer, budget: float, noises: Sequence[str | None], rounds: int = 2) -> Trial:
    """The best setting found on the tuning frames.

    Args:
        measurer: makes the passes.
        budget: largest error.
        noises: input filters to try.
        rounds: how often sensitivities are measured.
    """
    groups = groups_of(len(measurer.names))
    measurer.expected = 11 * len(noises) + 22 + rounds * (len(hadamard(len(groups) + 1)) + 9) + 9
    best = _family(measurer, budget, noises)
    for index in range(rounds):
        best = _improve(measurer, budget, best, groups, _STEPS[min(index, 1)], f"sensitivities, round {index + 1} of {rounds}")
    return best.trial


def groups_of(count: int) -> list[range]:
    """Call sites that are moved together: each alone, or at most 31 groups of neighbours.

    >>> groups_of(3)
    [range(0, 1), range(1, 2), range(2, 3)]
    >>> len(groups_of(200)), sum(len(group) for group in groups_of(200))
    (29, 200)
    """
    width = math.ceil(count / _GROUPS)
    return [range(first, min(first + width, count)) for first in range(0, count, width)]


def family(measurer: Measurer, noise: str | None, shape: Shape) -> Trial:
    """Thresholds of a shape around `_START`, in standard deviations."""
    last = max(len(measurer.names) - 1, 1)
    values = []
    for index, name in enumerate(measurer.names):
        value = _START * shape.slope ** (index / last - 0.5) * (shape.gates if name in measurer.gates else 1.0)
        values.append(_GREYS[shape.grey] * measurer.grey if index == measurer.frame else value)
    return Trial(noise, tuple(values))


def fit(measurer: Measurer, trial: Trial, budget: float, *, verify: bool = False, passes: int = 5, guess: float = 1.0) -> Fit:
    """The largest common factor under which a setting keeps the budget, within a few passes; factor 0 if there is none.

    The frame's threshold is left alone: pixels are whole grey levels, so the error would jump with it. Otherwise the error grows with the
    factor, slowly and not always steadily, so brackets are narrowed on logarithms and the best of what was measured counts.
    """
    kept: Fit | None = None
    since = 0  # turns since there is something to keep
    broken: tuple[float, float] | None = None  # (factor, error)
    factor, before, power = guess, None, 0.6
    for turn in range(2 * passes):
        tried = _limited(trial.scaled(factor, but=measurer.frame))
        outcome = measurer.measure(tried, verify)
        if outcome.error <= budget:
            kept = Fit(tried, outcome, factor) if kept is None or outcome.work <= kept.outcome.work else kept
            if outcome.error >= 0.97 * budget or outcome.work < 1e-4 or factor > 1e4:
                break
        elif broken is None or factor < broken[0]:
            broken = (factor, outcome.error)
        if kept is not None:
            since += 1
            if turn + 1 >= passes and since >= min(passes, 3):
                break
        if before is not None and outcome.error > 0 and before[1] > 0 and outcome.error != before[1]:
            power = min(max(math.log(outcome.error / before[1]) / math.log(factor / before[0]), 0.2), 2.0)
        before = (factor, outcome.error)
        factor = _next_factor(factor, outcome.error, budget, power, kept.factor if kept else None, broken[0] if broken else None)
        if kept is None:  # far out, where everything is held, the error does not move at all: then by ever larger steps
            factor = min(factor, before[0] / 2**turn)
            if factor < 1e-6:
                break
    if kept is None:
        zero = trial.scaled(0.0)
        return Fit(zero, measurer.measure(zero, verify), 0.0)
    return kept


def _next_factor(factor: float, error: float, budget: float, power: float, low: float | None, high: float | None) -> float:
    ratio = 0.985 * budget / error if error > 0 else 64.0
    wanted = float(factor * min(max(ratio ** (1 / power), 1 / 6), 6.0))
    if low is not None and high is not None and low < high:
        place = math.log(max(wanted, 1e-12) / low) / math.log(high / low)
        return float(low * (high / low) ** min(max(place, 0.2), 0.8))
    if high is not None and wanted >= high:
        return high / 2
    return wanted


def _limited(trial: Trial) -> Trial:
    return Trial(trial.noise, tuple(min(value, _LARGEST) for value in trial.values))


def _family(measurer: Measurer, budget: float, noises: Sequence[str | None]) -> Fit:
    """The best of a few settings of the family, each at the budget."""
    measurer.stage = "level, slope and input filter"
    best, shape, filters, level = None, Shape(), noises[0], 1.0
    for noise in noises:
        for grey in (1, 4):
            other = Shape(grey=grey)
            found = fit(measurer, family(measurer, noise, other), budget, guess=level)
            if _better(measurer, best, found) is found:
                best, shape, filters, level = found, other, noise, found.factor or level
    assert best is not None
    ladders: list[tuple[str, Sequence[Any]]] = [
        ("gates", (32.0, 256.0) if measurer.gates else ()),
        ("grey", range(shape.grey + 1, len(_GREYS))),
        ("grey", range(shape.grey - 1, -1, -1)),
        ("slope", (1.5, 4.0)),
        ("slope", (0.15, 0.04)),
    ]
    for name, candidates in ladders:
        for candidate in candidates:  # of growing boldness: where one does not help, the next will not
            other = replace(shape, **{name: candidate})
            found = fit(measurer, family(measurer, filters, other), budget, passes=4, guess=level)
            if _better(measurer, best, found) is not found:
                break
            best, shape, level = found, other, found.factor or level
    return best


def _better(measurer: Measurer, best: Fit | None, found: Fit) -> Fit:
    """The one that leaves less work; nothing can be said about a fit with factor 0 but that it is exact."""
    if best is None or (found.factor > 0 and found.outcome.work < best.outcome.work) or best.factor == 0:
        measurer.best = min(measurer.best, found.outcome.work)
        return found
    return best


def _improve(measurer: Measurer, budget: float, start: Fit, groups: Sequence[range], step: float, stage: str) -> Fit:
    """One round: the sensitivities around a setting, the choice, and what is measured of it."""
    if start.factor == 0:
        return start
    measurer.stage = stage
    work, error = sensitivities(measurer, start.trial, groups, step)
    moves = choose(work, error, step)
    measurer.stage = f"{stage}: choice"
    best = start
    for share in (1.0, 2.0, 0.5):
        moved = start.trial.moved(_factors(measurer, groups, moves, step**share))
        best = _better(measurer, best, fit(measurer, moved, budget, passes=3))
    return best


def sensitivities(measurer: Measurer, trial: Trial, groups: Sequence[range], step: float) -> tuple[list[float], list[float]]:
    """What each group's threshold does to work and squared error, when it is multiplied by `step`.

    In every pass all groups move at once, half of them up and half down by the root of `step`, in the signs of a Hadamard matrix: each
    effect is a mean over all passes, so its error is as small as if all passes had been spent on this group alone.
    """
    signs = hadamard(len(groups) + 1)
    outcomes = []
    for row in signs:
        moved = trial.moved(_factors(measurer, groups, [float(sign) for sign in row[1 : len(groups) + 1]], step**0.5))
        outcomes.append(measurer.measure(_limited(moved)))
    count = len(signs)
    work = [2 * sum(row[i] * o.work for row, o in zip(signs, outcomes, strict=True)) / count for i in range(1, len(groups) + 1)]
    error = [2 * sum(row[i] * o.smooth**2 for row, o in zip(signs, outcomes, strict=True)) / count for i in range(1, len(groups) + 1)]
    # A threshold that is raised neither adds work nor takes error away: what looks so is chance, and small values are half chance too.
    typical = max(sum(error) / len(error), 1e-9)
    return [min(value, 0.0) for value in work], [0.75 * max(value, 0.0) + 0.25 * typical for value in error]


def hadamard(least: int) -> list[list[int]]:
    """A Hadamard matrix (rows and columns of signs, orthogonal) of at least this order, a power of two.

    >>> hadamard(2)
    [[1, 1], [1, -1]]
    >>> len(hadamard(5))
    8
    """
    matrix = [[1]]
    while len(matrix) < least:
        matrix = [row + row for row in matrix] + [row + [-value for value in row] for row in matrix]
    return matrix


def _factors(measurer: Measurer, groups: Sequence[range], moves: Sequence[float], step: float) -> list[float]:
    factors = [1.0] * len(measurer.names)
    for group, move in zip(groups, moves, strict=True):
        for index in group:
            factors[index] = step**move
    return factors


def choose(work: Sequence[float], error: Sequence[float], step: float) -> list[float]:
    """Which way to move each threshold so that the work falls most while the squared error stays.

    Args:
        work: change of the work when this threshold alone is multiplied by `step`.
        error: change of the squared error likewise.
        step: the factor.

    Returns:
        Moves, -1 to 1, as exponents of ``max(step, 1 / step)``.

    >>> choose([-0.10, -0.01], [0.1, 0.1], 3.0)  # the first saves more per error, so the second pays for it
    [0.25, -1.0]
    """
    up = max(step, 1 / step)
    sign = 1.0 if step > 1 else -1.0

    def growth(move: float) -> float:  # of the squared error, which grows with a threshold about linearly; 1 at the measured move
        return float((up**move - 1) / (up**sign - 1))

    def best(price: float) -> list[float]:
        return [
            min(_MOVES, key=lambda move: (w * move * sign + price * e * growth(move), abs(move)))
            for w, e in zip(work, error, strict=True)
        ]  # fmt: skip

    def predicted(moves: Sequence[float]) -> float:
        return sum(e * growth(move) for e, move in zip(error, moves, strict=True))

    low, high = 0.0, 1.0
    if predicted(best(low)) <= 0:
        return best(low)
    while predicted(best(high)) > 0 and high < 1e12:
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        if predicted(best(middle)) > 0:
            low = middle
        else:
            high = middle
    return best(high)
