"""How large one grey level of an 8-bit picture is in the units of a network's input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_ENOUGH = 32  # distinct values of a channel from which its smallest step is taken for a grey level


def pixel_scale_of(frames: Sequence[torch.Tensor], given: float | Sequence[float] | None = None) -> torch.Tensor:
    """One grey level per channel, (c, 1, 1).

    Args:
        frames: (n, c, h, w) each.
        given: what the user says; None: inferred. Frames that were made from 8-bit pictures hold at most 256 values per channel: their
            smallest step is the grey level, whatever was subtracted and divided. Otherwise the range decides: 0..1, 0..255, -1..1, and
            for anything else the 255th part of it.

    Raises:
        ValueError: `given` is not positive, or has another number of channels.

    >>> pixel_scale_of([torch.arange(256.0).reshape(1, 1, 16, 16) / 127.5 - 1]).item()
    0.0078...
    """
    channels = frames[0].shape[1]
    if given is not None:
        values = [float(value) for value in given] if isinstance(given, Sequence) else [float(given)] * channels
        if len(values) != channels or not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError(f"`pixel_scale` must be a positive number, or {channels} of them (one per channel); got {given!r}.")
        return torch.tensor(values).view(-1, 1, 1)
    sample = [frames[0], frames[len(frames) // 2], frames[-1]]
    steps = [_step(torch.cat([frame[:, channel].flatten().float() for frame in sample])) for channel in range(channels)]
    if all(step is not None for step in steps):
        return torch.tensor([float(step) for step in steps if step is not None]).view(-1, 1, 1)
    low = min(float(frame.min()) for frame in sample)
    high = max(float(frame.max()) for frame in sample)
    return torch.full((channels, 1, 1), _of_range(low, high))


def _step(values: torch.Tensor) -> float | None:
    """Grey level of one channel, if its values lie on at most 256 levels."""
    distinct = values.unique()
    gaps = distinct[1:] - distinct[:-1]
    gaps = gaps[gaps > 1e-3 * (distinct[-1] - distinct[0])]  # closer ones are the same level, rounded otherwise
    return float(gaps.min()) if _ENOUGH <= len(gaps) + 1 <= 256 else None


def _of_range(low: float, high: float) -> float:
    slack = 1e-3
    if low >= -slack and high <= 1 + slack:
        return 1 / 255
    if low >= -slack and 8 < high <= 255 + slack:
        return 1.0
    if low >= -1 - slack and high <= 1 + slack:
        return 2 / 255
    return max(high - low, 1e-6) / 255
