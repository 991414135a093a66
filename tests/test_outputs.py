"""Returned outputs are the caller's own, although their memory is used again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from networks import video
from sightline import kernels
from sightline.graph.outputs import Outputs

SHAPE = (1, 3, 96, 96)


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 19, 3, padding=1), nn.ReLU(), nn.Conv2d(19, 19, 1)).eval()


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    outputs = Outputs((4, 5, 128, 128), torch.float32)
    first, second = outputs.take(), outputs.take()
    assert first.shape == (4, 5, 128, 128) and first.is_contiguous()
    assert first.data_ptr() != second.data_ptr()
    address = first.data_ptr()
    del first
    assert outputs.take().data_ptr() == address
    assert outputs.nbytes == 2 * second.nbytes


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda y: y, "view": lambda y: y[0, 1], "detached": lambda y: y.detach(), "array": lambda y: y.numpy(),
    "flat": lambda y: y.view(-1)[3:], "storage": lambda y: y.untyped_storage(), "tuple": lambda y: (y, 1), "transposed": lambda y: y.mT,
}  # fmt: skip


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_that_somebody_holds_is_left_alone(holder: str) -> None:
    outputs = Outputs((4, 5, 128, 128), torch.float32)
    taken = outputs.take()
    address = taken.data_ptr()
    kept = HOLDERS[holder](taken)
    del taken
    assert address not in {outputs.take().data_ptr() for _ in range(6)}
    del kept
    assert outputs.take().data_ptr() == address


def test_small_outputs_are_always_fresh() -> None:
    outputs = Outputs((1, 8), torch.float32)
    outputs.take()
    assert outputs.nbytes == 0


def test_outputs_kept_edited_and_dropped_by_the_caller() -> None:
    if kernels.native() is None:
        pytest.skip(str(kernels.native_status()["reason"]))
    net, frames = model(), video(SHAPE, 9, 1)
    stream = sl.stream(net, backend="native")
    with torch.no_grad():
        want = [net(frame) for frame in frames]
    kept: list[Tensor] = []
    for index, frame in enumerate(frames):
        y = stream(frame)
        assert y.is_contiguous()
        torch.testing.assert_close(y, want[index])
        if index % 3 == 0:
            kept.append(y)
        else:
            y.numpy()[:] = -1.0  # theirs to spoil
    for y, index in zip(kept, range(0, 9, 3), strict=True):
        torch.testing.assert_close(y, want[index])
    assert stream.memory()["tensors"]["returned outputs"] == 3 * want[0].nbytes


@pytest.mark.parametrize("channels", [1, 3, 16, 19, 40])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_channels(channels: int, threads: int) -> None:
    if kernels.native() is None:
        pytest.skip(str(kernels.native_status()["reason"]))
    net = nn.Conv2d(3, channels, 1).eval()
    before = kernels.get_num_threads()
    kernels.set_num_threads(threads)
    try:
        frame = torch.randn(2, 3, 70, 67)
        torch.testing.assert_close(sl.stream(net, backend="native")(frame), net(frame).detach())
    finally:
        kernels.set_num_threads(before)
