"""Memory for the maps of a stream, in one piece, on huge pages where the system has them.

A stream goes through all of its maps once per frame, and they are larger than any cache. With pages of 4 KiB, looking up where they lie
costs as much as reading them, and no processor fetches ahead across their ends. numpy asks the system for huge pages for large arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_LINE = 64  # bytes of a cache line


def arena(sizes: Sequence[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Vectors of these many elements, with any content; each begins at a cache line and is a storage of its own.

    Args:
        sizes: elements of each; 0 gives an empty vector.
        dtype: their type.
    """
    item = torch.empty(0, dtype=dtype).element_size()
    starts, end = [], _LINE
    for size in sizes:
        starts.append(end)
        end += -(-size * item // _LINE) * _LINE
    memory = np.empty(end, dtype=np.uint8)
    shift = -int(memory.ctypes.data) % _LINE - _LINE
    return [
        torch.from_numpy(memory[shift + start : shift + start + size * item]).view(dtype) if size else torch.empty(0, dtype=dtype)
        for size, start in zip(sizes, starts, strict=True)
    ]
