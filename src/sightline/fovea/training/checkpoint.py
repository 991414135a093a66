"""Checkpoints of training: everything that a run needs to go on as if it had not stopped.

What belongs here: what a checkpoint holds, writing it whole or not at all, and refusing one that does not belong to the run. What does
not: when one is written (`sightline.fovea.training.loop`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.errors import CheckpointError
from sightline.fovea.layers.weights import geometry_of

FORMAT = 1
_MAY_CHANGE = {
    "logging",
    "validation",
    "training.stop_early_epoch",
    "training.eval_freq",
    "training.eval_only",
    "data.num_workers",
    "data.in_memory",
    "data.download",
}
"""What may be set otherwise when a run goes on: nothing of it changes the weights."""


def random_state(generators: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's global generators, and of these.

    Args:
        generators: by name.
    """
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is what is saved
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "generators": {name: generator.get_state() for name, generator in generators.items()},
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any], generators: Mapping[str, torch.Generator]) -> None:
    """Puts back what `random_state` returned.

    Args:
        state: of as many processes and devices.
        generators: of the same names.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for key, generator in generators.items():
        generator.set_state(state["generators"][key])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint beside its place and moves it there: a run that is killed leaves the one before.

    Args:
        path: its folder is there.
        content: tensors, plain values, and mappings and lists of them.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save({"format": FORMAT, **content}, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: there is none, or it is none of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint; start without --resume")
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever the unpickler stumbles over
        raise CheckpointError(f"{path}: this file is no readable checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: this is no checkpoint of `sightline fovea train` (of format {FORMAT})")
    return content


def check_geometry(path: Path, content: Mapping[str, Any], network: nn.Module) -> None:
    """Refuses a checkpoint whose sensors are others than the network's: the weights would load and mean something else.

    Raises:
        CheckpointError: naming the first layer that differs, and both geometries.
    """
    theirs, ours = content["geometry"], geometry_of(network)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if theirs.get(name) != ours.get(name):
            there, here = (which.get(name, "no such layer") for which in (theirs, ours))
            raise CheckpointError(
                f"{path}: the checkpoint is of another geometry: {name or 'the network'} has {there} in it, and {here} here"
            )


def check_settings(path: Path, content: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuses to go on with other settings than the run began with, where they matter.

    Raises:
        CheckpointError: naming the first setting that differs, and both values.
    """
    theirs, ours = flat(content["settings"]), flat(settings)
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name) and not ({name, name.partition(".")[0]} & _MAY_CHANGE):
            raise CheckpointError(
                f"{path}: the run began with {name}={theirs.get(name)!r}, and is to go on with {ours.get(name)!r}: "
                f"set it back, or start anew in another folder"
            )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and values; tuples become lists, as files have them.

    >>> flat({"a": {"b": 1}, "c": (2, 3)})
    {'a.b': 1, 'c': [2, 3]}
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return values


def plain(tree: Any) -> Any:
    """Nested settings as dictionaries, lists and values, which load without executing anything."""
    if isinstance(tree, Mapping):
        return {str(key): plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree
