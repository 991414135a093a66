"""DeltaCNN's thresholds: one per truncating layer, in the order in which the layers first ran, and its file format.

What belongs here: `DCThreshold`, `DCTruncation`, `DCBackend`. What does not: where thresholds apply (`program.py`).
"""

from __future__ import annotations

import enum
import json
import math
import weakref
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from torch import nn

from sightline.errors import BackendError, MediaError
from sightline.thresholds import ThresholdError

_LARGEST = 3.4e38  # executors keep thresholds as float32


class DCTruncation(enum.IntEnum):
    """How the size of a change is measured over the channels of a pixel."""

    none = -1
    """Never truncate."""
    max = 0
    """The largest absolute change (the default)."""
    norm = 1
    """The Euclidean norm."""
    rms = 2
    """The root mean square."""


class DCBackend(enum.Enum):
    """What a DeltaCNN network runs on; set ``DCConv2d.backend``.

    `cudnn`: plain dense PyTorch, on whatever device, with gradients. `deltacnn`: streamed. `delta_cudnn`: the same as `deltacnn` here (in
    the original: slower than dense, made for training thresholds).
    """

    cudnn = "cudnn"
    deltacnn = "deltacnn"
    delta_cudnn = "delta_cudnn"


def checked(value: Any, what: str) -> float:
    """The value as a float.

    Raises:
        ValueError: not a number, negative, NaN, or larger than float32 can hold.
    """
    number = float("nan") if isinstance(value, bool | str | bytes) else float(value)
    if math.isnan(number) or number < 0:
        raise ValueError(f"{what} must be a number >= 0; got {value!r}.")
    if number > _LARGEST:
        raise ValueError(
            f"{what} must be at most {_LARGEST}; got {value!r}. A tuning loop that comes here raised the threshold of a layer whose "
            "truncation never made the loss too large: end the loop at a largest threshold."
        )
    return number


class _LayerThresholds(MutableMapping[nn.Module, float]):
    """Layer -> threshold, in order of registration; layers that no longer exist drop out by themselves."""

    def __init__(self) -> None:
        self._values: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()

    def __getitem__(self, layer: nn.Module) -> float:
        try:
            return self._values[layer]
        except (KeyError, TypeError):
            raise ThresholdError(
                f"{label(layer)} has no threshold yet: layers register when they first run, and only DCSparsify and DCActivation have one."
            ) from None

    def __setitem__(self, layer: nn.Module, value: float) -> None:
        if not isinstance(layer, nn.Module) or not hasattr(layer, "delta_threshold"):
            raise ThresholdError(f"{label(layer)} takes no threshold: keys are the DCSparsify and DCActivation layers of a network.")
        self._values[layer] = checked(value, f"threshold of {label(layer)}")

    def __delitem__(self, layer: nn.Module) -> None:
        self[layer]
        del self._values[layer]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(list(self._values.keys()))

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{label(layer)}: {value}" for layer, value in self.items()) + "}"


def label(layer: object) -> str:
    """What a message calls a layer."""
    name = getattr(layer, "name", "")
    return f"{type(layer).__name__} '{name}'" if name else f"{type(layer).__name__}"


class DCThreshold:
    """All thresholds of the process, by layer; used as a class, never instantiated.

    A layer registers when it first runs: with its own ``delta_threshold`` if it has one, else with `t_default`. Thresholds are absolute, in
    units of the layer's output, and may be edited between any two frames.

    Attributes:
        t_default: threshold of layers that have none of their own; read when a layer first runs. 0 is exact.
        t: layer instance -> threshold, in the order of first calls. Only layers that are still alive.
        path: the file that `load_thresholds` reads.
        scale: factor on every threshold while running; files hold thresholds without it.
        initialized: whether thresholds were loaded from a file since the start or the last `reset`.
    """

    t_default: float = 0.0
    t: MutableMapping[nn.Module, float] = _LayerThresholds()
    path: str | Path | None = None
    scale: float = 1.0
    initialized: bool = False

    @classmethod
    def get(cls, key: nn.Module) -> float:
        """The threshold of a layer; of one that has not run yet, the one that it will start with.

        Raises:
            ValueError: `t_default` or the layer's own threshold is not a number >= 0.
        """
        if key in cls.t:
            return cls.t[key]
        own = getattr(key, "delta_threshold", None)
        return checked(cls.t_default, "DCThreshold.t_default") if own is None else checked(own, f"delta_threshold of {label(key)}")

    @classmethod
    def set(cls, key: nn.Module, val: float) -> None:
        """Sets the threshold of a layer, from the next frame on (in the original: only the first time).

        Raises:
            ThresholdError: the layer is not one that truncates.
            ValueError: the value is negative, NaN or infinite.
        """
        cls.t[key] = val

    @classmethod
    def register(cls, key: nn.Module) -> None:
        """Gives a layer that runs for the first time its place and its threshold."""
        if key not in cls.t:
            cls.t[key] = cls.get(key)

    @classmethod
    def effective(cls, key: nn.Module) -> float:
        """What a layer is run with: its threshold times `scale`."""
        return checked(cls.get(key) * cls.scale, f"threshold of {label(key)} times DCThreshold.scale")

    @classmethod
    def load_thresholds(cls, model: nn.Module | None = None) -> None:
        """Reads the file at `path`: JSON ``{"0": threshold, "1": ...}``, by order of first calls. All or nothing.

        Call it after the first frame, when all layers are known.

        Args:
            model: take only its layers; None: all layers in the process.

        Raises:
            ThresholdError: no layer is known yet, or the file has other keys than "0" to "n - 1" for the n layers.
            MediaError: the file cannot be read, or is none of thresholds.
            ValueError: a threshold is negative, NaN or infinite.
        """
        if cls.path is None:
            raise ThresholdError("DCThreshold.path is not set; set it to a file that save_thresholds wrote.")
        layers = cls._layers(model)
        if not layers:
            raise ThresholdError("no layer has a threshold yet: load thresholds after the first frame.")
        try:
            content = json.loads(Path(cls.path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MediaError(f"cannot read thresholds from '{cls.path}': {error}.") from error
        if not isinstance(content, dict) or not all(isinstance(value, int | float) for value in content.values()):
            raise MediaError(f"'{cls.path}' is not a DeltaCNN thresholds file: expected a JSON object of numbers.")
        expected = [str(index) for index in range(len(layers))]
        odd = sorted(set(content) ^ set(expected))
        if odd:
            raise ThresholdError(
                f"'{cls.path}' holds {len(content)} thresholds, the network has {len(layers)} layers that truncate; the first key that "
                f"does not fit is '{odd[0]}'. It was saved for another network, or another model in this process takes part: pass model=."
            )
        values = [checked(content[key], f"threshold '{key}' in '{cls.path}'") for key in expected]
        for layer, value in zip(layers, values, strict=True):
            cls.t[layer] = value
        cls.initialized = True

    @classmethod
    def save_thresholds(cls, name: str, model: nn.Module | None = None) -> None:
        """Writes ``thresholds_{name}.json``; `name` may begin with a folder.

        Args:
            name: what tells the file from others.
            model: write only its layers; None: all layers in the process.

        Raises:
            ThresholdError: no layer is known yet.
            MediaError: the file cannot be written.
        """
        layers = cls._layers(model)
        if not layers:
            raise ThresholdError("no layer has a threshold yet: save thresholds after the first frame.")
        named = Path(name)
        path = named.with_name(f"thresholds_{named.name}.json")
        try:
            path.write_text(json.dumps({str(index): cls.t[layer] for index, layer in enumerate(layers)}) + "\n", encoding="utf-8")
        except OSError as error:
            raise MediaError(f"cannot write thresholds to '{path}': {error.strerror or error}. Choose a writable path.") from error

    @classmethod
    def reset(cls) -> None:
        """Forgets all thresholds; layers register again, as if new, with the next frame."""
        cls.t.clear()
        cls.initialized = False

    @classmethod
    def create_trainable_parameters(cls, device: Any = None) -> None:
        """Not done here.

        Raises:
            BackendError: always. (In the original, thresholds that can be trained did not improve on tuned ones.)
        """
        raise BackendError("thresholds cannot be trained here; tune them, as in the loop over DCThreshold.t.")

    @classmethod
    def _layers(cls, model: nn.Module | None) -> list[nn.Module]:
        inside = None if model is None else set(model.modules())
        return [layer for layer in cls.t if inside is None or layer in inside]
