"""A module whose positions move between devices but keep their precision.

What belongs here: that one rule. `module.half()` is meant for values; positions in half precision would be pixels away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class PreciseBuffers(nn.Module):
    """An nn.Module whose own floating buffers follow `.to(device)` and ignore `.half()`, `.bfloat16()` and `.double()`."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse=recurse)  # type: ignore[no-untyped-call]  # torch has no types there
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and old.dtype != new.dtype:
                self._buffers[name] = old.to(new.device)
        return self
