"""k-nearest-neighbour layers in C++, for float32 on the CPU: the one place that hands out addresses.

What belongs here: turning checked, contiguous tensors into addresses. The caller (`function`) has checked shapes, types and devices.
"""

from __future__ import annotations

from torch import Tensor


def usable(*maps: Tensor) -> bool:
    """Whether these tensors can go to the compiled kernels."""
    del maps
    return False
