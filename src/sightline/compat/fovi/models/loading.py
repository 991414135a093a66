"""Saved networks: ``fovi.models.loading``. Folders on this machine only; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sightline.compat.fovi._defaults import device_or_default
from sightline.fovea import load as saved

__all__ = ["find_config", "get_model_from_base_fn", "load_config"]


def load_config(base_fn: str, load: bool, folder: str | Path, device: Any = None) -> Any:
    """`sightline.fovea.load_config` with fovi's default device."""
    return saved.load_config(base_fn, load, folder, device_or_default(device))


def find_config(base_fn: str, load: bool, model_dirs: Sequence[str | Path] | None = None, device: Any = None) -> Any:
    """`sightline.fovea.find_config` with fovi's default device."""
    return saved.find_config(base_fn, load, model_dirs, device_or_default(device))


def get_model_from_base_fn(base_fn: str, *args: Any, **options: Any) -> nn.Module:
    """`sightline.fovea.get_model_from_base_fn`, which makes this package's `FoviNet`."""
    from sightline.compat.fovi.models.fovinet import FoviNet

    if len(args) < 6:
        options.setdefault("fovinet_cls", FoviNet)
    if len(args) < 4:
        options["device"] = device_or_default(options.get("device"))
    return saved.get_model_from_base_fn(base_fn, *args, **options)
