"""What fovi's names leave open: the device, and whose ties."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

_Device = torch.device | str | None


def device_or_default(device: _Device) -> torch.device:
    """The device that is asked for, or a GPU where there is one, or the CPU."""
    if device is not None:
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def filled(init: Callable[..., None], args: tuple[Any, ...], options: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Keyword arguments with fovi's ties and the default device where nothing else is said.

    Args:
        init: an unbound ``__init__`` with a parameter ``device``.
        args: positional arguments behind ``self``.
        options: keyword arguments.
        defaults: further arguments, for where nothing else is said.
    """
    given = inspect.signature(init).bind_partial(None, *args, **options).arguments
    result = {**{name: value for name, value in defaults.items() if name not in given}, **options}
    if "device" not in given:
        result["device"] = device_or_default(None)
    if "ties" not in given and "ladder" not in given:
        result["ties"] = "fovi"
    return result
