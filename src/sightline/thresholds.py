"""Thresholds by call site: a mapping that can be edited, saved and loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from sightline.camera.noise import parse_noise
from sightline.errors import MediaError, SightlineError
from sightline.files import whole_file

HELD_GATE = 0.25
"""Threshold of gates with `global_ops="hold"`, in standard deviations of a gate's values. Measured: see docs/models.md."""
_FORMAT = "sightline-thresholds"


class ThresholdError(SightlineError, KeyError):
    """A threshold for a call site that the network does not have."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class Thresholds(MutableMapping[str, float]):
    """Call-site name -> threshold (finite, at least 0), in the unit of the stream.

    Once a stream has seen its first frame, the set of names is fixed: setting another name is an error, and so is loading a file
    that was saved for another network.

    Example:
        >>> thresholds = Thresholds({"input": 0.1, "conv1": 0.03})
        >>> thresholds["conv1"] = 0.05
        >>> dict(thresholds)
        {'input': 0.1, 'conv1': 0.05}

    Attributes:
        unit: "std" or "absolute", see `stream`.
        noise, norm: the input filter and the norm that the values were tuned with, which a stream made from them uses; None: not known.
        report: of `tune`, where they come from it; not saved.
        tuning: what `tune` measured, as plain numbers (metric, budget, error, work, objective, and the points of saving against error under
            "frontier"); saved with the thresholds; None: not tuned.
    """

    def __init__(self, values: Mapping[str, float] | None = None, unit: str = "std") -> None:
        self._values: dict[str, float] = {}
        self._fixed = False
        self.unit = unit
        self.version = 0  # counts edits, so that a stream sees them without comparing
        self.noise: str | None = None
        self.norm: str | None = None
        self.report: Any = None
        self.tuning: dict[str, Any] | None = None
        for name, value in (values or {}).items():
            self[name] = value

    def _fix(self) -> None:
        self._fixed = True

    @property
    def fixed(self) -> bool:
        """Whether the set of names is that of a network."""
        return self._fixed

    def __getitem__(self, name: str) -> float:
        if name not in self._values:
            raise ThresholdError(self._unknown(name))
        return self._values[name]

    def __setitem__(self, name: str, value: float) -> None:
        if self._fixed and name not in self._values:
            raise ThresholdError(self._unknown(name))
        try:
            number = math.nan if isinstance(value, str | bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or number < 0:
            raise ValueError(f"threshold of '{name}' must be a finite number, at least 0; got {value!r}.")
        self._values[name] = number
        self.version += 1

    def __delitem__(self, name: str) -> None:
        if self._fixed:
            raise ThresholdError("thresholds cannot be removed from a running stream; set them to 0 instead.")
        del self._values[name]
        self.version += 1

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Thresholds({len(self)} call sites, unit={self.unit!r})"

    def _unknown(self, name: str) -> str:
        near = [known for known in self._values if name in known or known in name][:3]
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        return f"there is no call site '{name}' that takes a threshold.{hint} `stream.explain()` lists them all."

    def save(self, path: str | Path) -> None:
        """Writes the thresholds as JSON, keyed by call-site name; the file appears whole or not at all.

        Raises:
            MediaError: the file cannot be written.
        """
        tuned = {} if self.norm is None else {"noise": self.noise, "norm": self.norm}
        content: dict[str, Any] = {"format": _FORMAT, "version": 1, "unit": self.unit, **tuned, "thresholds": self._values}
        if self.tuning is not None:
            content["tuning"] = self.tuning
        try:
            with whole_file(path) as partial:
                partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise MediaError(f"cannot write thresholds to '{path}': {error.strerror or error}. Choose a writable path.") from error

    def load(self, path: str | Path) -> None:
        """Reads thresholds from JSON; all or nothing.

        Raises:
            MediaError: the file cannot be read or is not a thresholds file.
            ThresholdError: it was saved for another network (names missing or unknown), or in another unit.
        """
        content, values = _read(path)
        if content.get("unit") != self.unit:
            raise ThresholdError(f"'{path}' holds thresholds in unit '{content.get('unit')}', this stream uses '{self.unit}'.")
        for key in ("norm", "noise") if self.fixed and self.norm is not None and "norm" in content else ():
            if content.get(key) != getattr(self, key):
                raise ThresholdError(
                    f"'{path}' was tuned with {key}={content.get(key)!r}, this stream uses {getattr(self, key)!r}. "
                    "Make the stream from Thresholds.read(path)."
                )
        if self._fixed and set(values) != set(self):
            raise self._foreign(values, f"'{path}' was")
        self._values = values
        self.version += 1

    @classmethod
    def read(cls, path: str | Path) -> Thresholds:
        """Thresholds from a file, with their unit and what they were tuned with; a stream made from them checks that the network fits.

        Raises:
            MediaError: the file cannot be read or is not a thresholds file.
        """
        content, values = _read(path)
        thresholds = cls(values, str(content.get("unit")))
        thresholds.noise, thresholds.norm, thresholds.tuning = content.get("noise"), content.get("norm"), content.get("tuning")
        thresholds._fix()
        return thresholds

    def check_names(self, names: Iterable[str]) -> None:
        """Compares with the call sites of a network, if the set of names is fixed.

        Raises:
            ThresholdError: they are those of another network.
        """
        names = set(names)
        if self._fixed and names != set(self):
            raise self._foreign(names, "these thresholds were")

    def _foreign(self, names: Iterable[str], what: str) -> ThresholdError:
        odd = sorted(set(names) ^ set(self))
        return ThresholdError(f"{what} saved for another network: {len(odd)} call sites differ, the first is '{odd[0]}'.")


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The whole content of a thresholds file, and its values, checked."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MediaError(f"cannot read thresholds from '{path}': {error.strerror or error}. Check the path.") from error
    except ValueError as error:
        raise MediaError(
            f"cannot read thresholds from '{path}': it is damaged or no JSON ({error}); write it anew, or tune again."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("thresholds"), dict):
        raise MediaError(f"'{path}' is not a thresholds file; write one with `stream.thresholds.save(path)`.")
    try:
        parse_noise(content.get("noise"))
    except ValueError as error:
        raise MediaError(f"cannot read thresholds from '{path}': {error}") from error
    for key, allowed in (("unit", ("std", "absolute")), ("norm", (None, "rms", "max", "l2"))):
        if content.get(key) not in allowed:
            raise MediaError(f"cannot read thresholds from '{path}': '{key}' is {content.get(key)!r}, expected one of {allowed}.")
    if not _is_tuning(content.get("tuning")):
        raise MediaError(f"cannot read thresholds from '{path}': what it says of its tuning is damaged; tune again, or remove 'tuning'.")
    try:
        return content, dict(Thresholds(content["thresholds"]))
    except ValueError as error:
        raise MediaError(f"cannot read thresholds from '{path}': {error}") from error


def _is_tuning(content: Any) -> bool:
    """Whether this is nothing, or an object whose frontier, if it has one, is a list of points with two numbers each."""
    if content is None:
        return True
    points = content.get("frontier", []) if isinstance(content, dict) else None
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        return False
    numbers = [point.get(key) for point in points for key in ("error", "work")]
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
