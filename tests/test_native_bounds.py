"""No kernel reads or writes beyond what a map's memory may hold: every map ends where memory ends that the process may touch."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cases import CASES
from networks import video
from sightline import kernels
from sightline.graph import native
from sightline.graph.capture import capture
from sightline.graph.lower import lower
from sightline.graph.native import NativeExecutor
from sightline.graph.plan import make_plan

GROUPS = 12
_PAGE = mmap.PAGESIZE
_guarded: list[mmap.mmap] = []


def _guarded_arena(sizes: Sequence[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """As `arena`, but whoever touches the byte behind one of the vectors ends the process."""
    item = torch.empty(0, dtype=dtype).element_size()
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    result = []
    for size in sizes:
        length = -(-size * item // _PAGE) * _PAGE
        block = mmap.mmap(-1, length + _PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        assert protect(ctypes.c_void_p(address + length), ctypes.c_size_t(_PAGE), 0) == 0, ctypes.get_errno()
        _guarded.append(block)  # never unmapped: a page of it is not to be touched
        result.append(
            torch.frombuffer(block, dtype=dtype, count=size, offset=length - size * item) if size else torch.empty(0, dtype=dtype)
        )
    return result


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    found = kernels.native()
    if found is None:
        pytest.skip(str(kernels.native_status()["reason"]))
    if not hasattr(ctypes.CDLL(None), "mprotect"):
        pytest.skip("needs mprotect")
    monkeypatch.setattr(native, "arena", _guarded_arena)
    return found


@pytest.mark.parametrize("group", range(GROUPS))
def test_nothing_behind_a_map_is_touched(module: ModuleType, group: int) -> None:
    for case in CASES[group::GROUPS]:
        plan = make_plan(capture(case.model(), torch.zeros(case.shape)))
        for isa in module.usable_isas():
            for dtype in (torch.float32, torch.bfloat16):
                executor = NativeExecutor(lower(plan, module, isa, dtype), "rms", None)
                for step in plan.steps[len(case.name) % 2 :: 2]:
                    executor.set_threshold(step, 1e-6)
                for frame in video(case.shape, 3, 1):
                    executor.run(frame)


def test_the_guard_works(module: ModuleType) -> None:
    (block,) = _guarded_arena([5], torch.float32)
    block.fill_(1.0)
    table = Path("/proc/self/maps")
    maps = [line.split() for line in table.read_text().splitlines()] if table.exists() else []
    end = block.data_ptr() + block.nbytes
    behind = [fields for fields in maps if int(fields[0].partition("-")[0], 16) <= end < int(fields[0].partition("-")[2], 16)]
    assert not maps or behind[0][1].startswith("---")
