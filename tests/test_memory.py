"""What `stream.memory()` says against what was allocated, and what streams of one model share."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline import kernels
from sightline.graph.native import NativeExecutor
from streams import executor_of, net

pytestmark = pytest.mark.skipif(not kernels.native_status()["available"], reason=str(kernels.native_status()["reason"]))
SHAPE = (1, 3, 232, 312)


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def allocated() -> int:
    """Bytes that this process holds from malloc, to the byte; mapped blocks included."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("needs glibc's mallinfo2")
    library.mallinfo2.restype = _Mallinfo
    gc.collect()
    found = library.mallinfo2()
    return int(found.uordblks + found.hblkhd)


def frames() -> list[Tensor]:
    first = torch.rand(SHAPE)
    second = first.clone()
    second[:, :, 40:90, 50:120] = torch.rand(1, 3, 50, 70)
    return [first, second, first]


def test_memory_is_what_was_allocated() -> None:
    """In a process of its own: what other tests left behind may go at any time."""
    allocated()  # skips where it cannot be measured
    script = "import test_memory; test_memory.compare_with_malloc()"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compare_with_malloc() -> None:
    """A clone's maps, masks and scratch memory: what it reports is what malloc has given, but for headers and Python's own objects."""
    parent = sl.stream(net(), backend="native", example=frames()[0])
    video = frames()
    for frame in video:
        parent(frame)
    before = allocated()
    twin = parent.clone()
    for frame in video:
        twin(frame)
    gained, reported = allocated() - before, twin.memory()["total"]
    assert reported > 2**22
    assert abs(gained - reported) < 0.01 * reported, f"reported {reported}, allocated {gained}"


def test_memory_names_every_map_with_its_exact_size() -> None:
    stream = sl.stream(net(), backend="native", scene_cuts=False, example=frames()[0])
    executor = executor_of(stream)
    assert isinstance(executor, NativeExecutor)
    for frame in frames():
        stream(frame)
    table = dict(stream.memory()["tensors"])
    assert stream.memory()["total"] == sum(table.values())
    table.pop("masks and scratch")
    assert table.pop("returned outputs") == sum(outputs.nbytes for outputs in executor._outputs.values()) > 0
    own = [storage for index, storage in enumerate(executor._storages) if index not in executor._lowered.constants]
    assert sorted(table.values()) == sorted(storage.nbytes for storage in own)
    slack = 64 * 4 * len(own)  # floats that vector loads may read behind the last pixel
    values = {step.output for step in executor.plan.steps if step in executor._lowered.step_ids}
    maps = sum(4 * torch.Size(node.shape or ()).numel() for node in values)
    assert sum(table.values()) <= maps + slack  # concatenated maps count twice in `maps`, once in memory


def test_state_is_little_more_than_the_maps() -> None:
    """Masks, lists and scratch memory are a small part where maps have as many channels as real ones do."""
    layers = [nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 256, 1)]
    stream = sl.stream(nn.Sequential(*layers).eval(), backend="native")
    for frame in frames():
        stream(frame)
    table = stream.memory()["tensors"]
    maps = sum(size for name, size in table.items() if name != "masks and scratch")
    assert stream.memory()["total"] < 1.3 * maps


def test_streams_of_one_model_share_their_weights() -> None:
    """A second stream costs its maps, not another copy of the packed weights."""
    layers = [nn.Conv2d(3, 200, 3, 4), nn.ReLU(), nn.Conv2d(200, 512, 3, 2), nn.ReLU(), nn.Conv2d(512, 256, 3, 2)]
    model = nn.Sequential(*layers).eval()
    frame = torch.rand(1, 3, 48, 48)
    parent = sl.stream(model, backend="native", example=frame)
    parent(frame)
    weights = parent.memory()["shared_weights"]
    assert weights >= 4 * sum(parameter.numel() for parameter in model.parameters())
    before = allocated()
    twins = [parent.clone() for _ in range(3)]
    for twin in twins:
        twin(frame)
        assert twin.memory()["shared_weights"] == weights
    gained = allocated() - before
    assert gained < 0.5 * weights
    assert gained == pytest.approx(sum(twin.memory()["total"] for twin in twins), rel=0.05)
