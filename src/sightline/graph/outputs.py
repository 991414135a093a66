"""Memory for what is returned to the user, used again once nobody looks at it any more.

Fresh memory for a large map costs more than filling it: the system hands it out page by page, and clears every page. So a stream
remembers the last tensors that it returned, and takes one whose memory nobody else holds: no tensor, no view, no array.
"""

from __future__ import annotations

import sys

import torch

_LEAST_BYTES = 1 << 18  # below this, allocators keep memory themselves
_MOST = 3  # the one being filled, the one that the caller's variable still holds, and one to spare


class Outputs:
    """Tensors of one shape and type."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._shape, self._dtype = shape, dtype
        self._known: list[torch.UntypedStorage] = []

    def take(self) -> torch.Tensor:
        """A contiguous tensor with any content, whose memory nobody else holds."""
        for i in range(len(self._known)):
            # two references: the list's, and the one in the call
            if sys.getrefcount(self._known[i]) <= 2 and _holders(self._known[i]) == 1:
                return torch.empty(0, dtype=self._dtype).set_(self._known[i], 0, self._shape)  # type: ignore[call-overload,no-any-return]
        fresh = torch.empty(self._shape, dtype=self._dtype)
        storage = fresh.untyped_storage()
        if storage.nbytes() >= _LEAST_BYTES and len(self._known) < _MOST and _holders(storage) is not None:
            self._known.append(storage)
        return fresh

    @property
    def nbytes(self) -> int:
        """Memory that is kept."""
        return sum(storage.nbytes() for storage in self._known)


def _holders(storage: torch.UntypedStorage) -> int | None:
    """How many tensors and storages share this memory, ourselves included; None where torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return None if count is None else int(count(storage._cdata))
