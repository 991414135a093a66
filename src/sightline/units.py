"""From thresholds as a user states them to the absolute numbers that an executor takes.

What belongs here: standard deviations as a unit, the frame's own threshold, held gates, the factor of a budget. What does not: the mapping
itself (`thresholds.py`), and what happens when a threshold is crossed (the executors).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sightline.graph.executor import Executor
from sightline.graph.plan import Step
from sightline.thresholds import HELD_GATE, Thresholds


class Units:
    """The units of one stream's thresholds.

    Args:
        default: one threshold for all call sites, or a mapping by name.
        input_threshold: of the frame, as `stream` takes it.
        unit: "std" or "absolute".
        holds_gates: global gates have thresholds of their own.

    Attributes:
        std: standard deviations of maps that have been asked for.
        factor: what all thresholds were multiplied by when they were last applied.
        frame: absolute threshold of the frame.
        keep: the next frame is computed whole, but units stay as they are.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self, default: float | Mapping[str, float], input_threshold: float | str | None, unit: str, *, holds_gates: bool = False
    ) -> None:
        if isinstance(default, Mapping):
            Thresholds(default)  # values that make no sense are told now, names when the network is known
        self.default = default if isinstance(default, Mapping) else _number("threshold", default)
        self._input, suffix = _parse_input_threshold(input_threshold)
        if suffix == "std" and unit == "absolute":
            raise ValueError(f"`input_threshold` is {input_threshold!r}, but the thresholds are absolute; give a plain number.")
        self._input_absolute = suffix == "abs" and unit != "absolute"  # else: the same unit as all others
        self._input_shown: float | None = None  # what the mapping shows for an absolute `input_threshold`
        self._holds_gates = holds_gates
        self._unset_gates: dict[str, float] = {}  # absolute thresholds of held gates whose unit is not known yet -> what they show
        self._unitless = False  # with an area: a map has a threshold but no deviation yet, since nothing of it was ever needed
        self._version = -1  # of the mapping, when it was last applied
        self.std: dict[Step, float] = {}
        self.factor = 1.0
        self.frame = 0.0
        self.keep = False

    def twin(self, unit: str) -> Units:
        """The same for another stream that has seen nothing."""
        twin = Units(self.default, None, unit, holds_gates=self._holds_gates)
        twin._input, twin._input_absolute, twin._input_shown = self._input, self._input_absolute, self._input_shown
        twin._unset_gates = dict(self._unset_gates)
        return twin

    def start(self, steps: Iterable[Step], edited: Thresholds, *, strict: bool) -> Thresholds:
        """The mapping for a network.

        Args:
            steps: all steps of its plan.
            edited: what was set before the first frame, or at another size.
            strict: names that the network does not have are an error.

        Raises:
            ThresholdError: there are such names, or the thresholds are another network's.
        """
        cut = [step for step in steps if step.truncates]
        names = [step.name for step in cut]
        if edited.fixed and list(edited) == names:
            return edited
        given = self.default if isinstance(self.default, Mapping) else dict.fromkeys(names, self.default)
        if isinstance(given, Thresholds):
            given.check_names(names)
        values = {name: float(given.get(name, 0.0)) for name in names}
        self._hold_gates(cut, values, edited.unit)
        if self._input is not None and not self._input_absolute and "input" in values:
            values["input"] = self._input
        fresh = Thresholds({name: edited.get(name, value) for name, value in values.items()}, edited.unit)
        fresh._fix()  # same package
        for name in [*given, *(() if edited.fixed else edited)] if strict else ():
            fresh[name]
        self._input_shown = fresh.get("input")
        return fresh

    def _hold_gates(self, steps: Iterable[Step], values: dict[str, float], unit: str) -> None:
        """Gives held gates their own thresholds, but those that the user's mapping names."""
        named = self.default if isinstance(self.default, Mapping) else ()
        self._unset_gates.clear()
        for step in steps:
            if not self._holds_gates or not step.gate or step.name in named:
                continue
            if unit == "std":
                values[step.name] = max(values[step.name], HELD_GATE)
            else:
                self._unset_gates[step.name] = values[step.name]

    def again(self) -> None:
        """Lets `apply` go over all thresholds once more."""
        self._version = -1

    def begun(self) -> None:
        """The first frame has been computed whole, or one that was to be like it: deviations are measured anew unless they are kept."""
        if not self.keep:
            self.std.clear()
        self.keep = False
        self.again()

    def forget(self) -> None:
        """All frames are forgotten."""
        self.std.clear()
        self.again()

    def is_current(self, thresholds: Thresholds) -> bool:
        """Whether the mapping has not been edited since `apply` or `seen`."""
        return self._version == thresholds.version

    def seen(self, thresholds: Thresholds) -> None:
        """The mapping has been applied by others."""
        self._version = thresholds.version

    def apply(self, thresholds: Thresholds, executor: Executor, *, factor: float = 1.0, area: bool = False) -> None:
        """Sets the executor's thresholds, if anything has been edited since the last time.

        Args:
            thresholds: the mapping; entries whose unit becomes known are written to it.
            executor: on its first frame, thresholds in standard deviations stay unset.
            factor: on all thresholds.
            area: maps may not have been computed yet, since nothing of them was needed.
        """
        if self.is_current(thresholds) and not self._unitless:
            return
        self._unitless = False
        self.factor = factor
        steps = executor.plan.steps
        if self._unset_gates and not executor.fresh:
            self._show_held_gates(thresholds, executor, steps)
        for step in steps:
            value = thresholds[step.name] * factor if step.truncates else 0.0
            if step.head.op == "input" and self._input_absolute and thresholds.get(step.name) == self._input_shown:
                value = self._show_input_threshold(thresholds, executor, step) * factor
            elif value > 0 and thresholds.unit == "std":
                if executor.fresh:
                    continue  # the first frame is published whole; its statistics give the unit
                deviation = self.std.get(step, 0.0) or executor.std(step)
                if deviation > 0 or not area:
                    self.std[step] = deviation
                else:
                    self._unitless = True
                value *= deviation
            executor.set_threshold(step, value)
            if step.head.op == "input":
                self.frame = value
        self.seen(thresholds)

    def _show_held_gates(self, thresholds: Thresholds, executor: Executor, steps: Iterable[Step]) -> None:
        """Absolute thresholds of held gates, as soon as the standard deviations are known."""
        for step in steps:
            shown = self._unset_gates.pop(step.name, None)
            if shown is not None and thresholds[step.name] == shown:
                thresholds[step.name] = max(shown, HELD_GATE * executor.std(step))

    def _show_input_threshold(self, thresholds: Thresholds, executor: Executor, step: Step) -> float:
        """The absolute threshold of the frame; once its unit is known, the mapping shows it, so that editing that entry takes over."""
        value = self._input or 0.0
        if not executor.fresh and step.truncates:
            if step not in self.std:
                self.std[step] = executor.std(step)
            if self.std[step] > 0:
                thresholds[step.name] = value / self.std[step]
            self._input_shown = thresholds[step.name]
        return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a finite number >= 0; got {value!r}.")
    return float(value)


def _parse_input_threshold(value: float | str | None) -> tuple[float | None, str]:
    """(number, suffix): the suffix is "abs", "std" or ""."""
    if value is None:
        return None, ""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(abs|std)?\s*", value)
        try:
            number = float(match[1]) if match else None
        except ValueError:
            number = None
        if match is None or number is None:
            raise ValueError(f"`input_threshold` must be a number or a string like '15abs'; got {value!r}.")
        return _number("input_threshold", number), match[2] or ""
    return _number("input_threshold", value), ""
