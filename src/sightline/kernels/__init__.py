"""Compiled kernels: loading them, choosing the instruction set, and saying why if they cannot be used.

What belongs here: everything about *whether and how* the native library runs. What does not: what it computes for a network
(`sightline.graph.native`).

Two environment variables are read, once, when the library is first needed:

- ``SIGHTLINE_ISA``: ``avx512``, ``avx2`` or ``baseline``: use this instruction set instead of the best one (for tests and doubt).
- ``SIGHTLINE_NO_NATIVE``: any value but ``0``: behave as if the library had not been built.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType
from typing import Any

logger = logging.getLogger("sightline")


@functools.cache
def _load() -> tuple[ModuleType | None, str, str]:
    """Returns (module, instruction set, reason): the module is None where the reason is not empty."""
    if os.environ.get("SIGHTLINE_NO_NATIVE", "0") not in {"", "0"}:
        return None, "", "switched off by the environment variable SIGHTLINE_NO_NATIVE"
    try:
        module = importlib.import_module("sightline.kernels._native")
    except ImportError as error:
        return None, "", f"the compiled module is missing or does not load ({error}); reinstall sightline where a C++ compiler is present"
    usable = list(module.usable_isas())
    wanted = os.environ.get("SIGHTLINE_ISA", "")
    if wanted and wanted not in usable:
        return None, "", f"SIGHTLINE_ISA={wanted} cannot be used here; this CPU runs {', '.join(usable)}"
    return module, wanted or usable[0], ""


def native() -> ModuleType | None:
    """The compiled module, or None where it cannot be used (`native_status` says why)."""
    module, _, reason = _load()
    if module is None:
        _say_once(reason)
    return module


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning("The native executor is not available: %s. Everything runs on PyTorch instead, which is much slower.", reason)


def isa() -> str:
    """The instruction set in use ("avx512", "avx2", "baseline"), or "" without the library."""
    return _load()[1]


def bfloat16_status() -> str:
    """How products of bfloat16 are computed, in words: by instructions of this CPU, or emulated; "" without the library."""
    module, chosen, _ = _load()
    if module is None:
        return ""
    return "emulated (correct, but slower than float32)" if module.emulates_bfloat16(chosen) else "by instructions of this CPU"


def native_status() -> dict[str, Any]:
    """What `sightline doctor` prints about the native executor.

    Returns:
        available (bool), reason (why not, or ""), isa (in use), isas (usable on this CPU, best first), bfloat16 (how it is computed),
        threads.
    """
    module, chosen, reason = _load()
    return {
        "available": module is not None,
        "reason": reason,
        "isa": chosen,
        "isas": list(module.usable_isas()) if module else [],
        "bfloat16": bfloat16_status(),
        "threads": get_num_threads(),
    }


_threads: int | None = None


def set_num_threads(n: int) -> None:
    """Sets how many threads the native executor uses, the calling one included.

    Args:
        n: at least 1. Applies to all streams of the process.

    Raises:
        ValueError: n is below 1.
    """
    global _threads  # noqa: PLW0603  (one pool per process, as in torch)
    if n < 1:
        raise ValueError(f"`n` must be at least 1; got {n}.")
    _threads = n
    module = _load()[0]
    if module is not None:
        module.set_num_threads(n)


def get_num_threads() -> int:
    """How many threads the native executor uses: what `set_num_threads` said, else torch's number when this is first asked.

    Torch's number is not asked for again: it differs from one Python thread to the next, and there is one pool.
    """
    global _threads  # noqa: PLW0603
    if _threads is None:
        import torch

        _threads = torch.get_num_threads()
    return _threads


def apply_num_threads() -> None:
    """Brings the pool to the number of threads asked for; called before every frame, free when nothing changed."""
    module = _load()[0]
    if module is not None and module.get_num_threads() != get_num_threads():
        module.set_num_threads(get_num_threads())
