"""Memory for the maps of a stream, on huge pages where the system has them.

A stream goes through all of its maps once per frame, which are larger than any cache. With pages of 4 KiB, looking up where they lie
costs as much as reading them, and no processor prefetches across their ends.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch

_HUGE = 1 << 21  # bytes of a huge page
_LINE = 64  # bytes


def arena(sizes: Sequence[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Vectors of these many elements, with any content; each is a storage of its own.

    Args:
        sizes: elements of each; 0 gives an empty vector.
        dtype: their type.
    """
    item = torch.empty(0, dtype=dtype).element_size()
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size * item // _LINE) * _LINE
    if end < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return [torch.empty(size, dtype=dtype) for size in sizes]
    memory = mmap.mmap(-1, -(-end // _HUGE) * _HUGE + _HUGE)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a system without them
        return [torch.empty(size, dtype=dtype) for size in sizes]
    first = -torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr() % _HUGE
    return [
        torch.frombuffer(memory, dtype=dtype, count=size, offset=first + start) if size else torch.empty(0, dtype=dtype)
        for size, start in zip(sizes, starts, strict=True)
    ]
