"""What the tests of streams share: a network with a bit of everything, the backends and element types, comparison with dense.

What belongs here: set-up. What does not: tests (test_laws.py, test_stream.py) and assert helpers on plain values (oracle.py).
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracle
from sightline import kernels
from sightline.graph.executor import Executor
from sightline.stream import Stream

SHAPE = (2, 3, 26, 22)


class Net(nn.Module):
    """A bit of everything that real networks have; returns a dictionary."""

    def __init__(self, opaque: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, 12, 1)
        self.gate = nn.Conv2d(12, 12, 1)
        self.down = nn.Conv2d(12, 20, 3, 2, 1)
        self.side = nn.Conv2d(12, 7, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(20, 5)
        self.opaque = opaque

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x)
        x = F.relu(self.project(F.hardswish(self.depthwise(x))) + x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        if self.opaque:
            x = torch.sin(x)
        deep = self.drop(F.silu(self.down(x)))
        up = F.interpolate(deep, size=x.shape[2:], mode="bilinear")
        joined = torch.cat([self.side(x), up], 1)
        return {"map": F.max_pool2d(joined, 2), "scores": (self.head(deep.mean((2, 3))), up[:, 3:5])}


def net(opaque: bool = False) -> Net:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = Net(opaque).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0, (1.5 / max(parameter[0].numel(), 8)) ** 0.5)
        assert isinstance(model.stem[1], nn.BatchNorm2d) and model.stem[1].running_var is not None
        model.stem[1].weight.data.uniform_(0.5, 1.5)
        model.stem[1].running_var.uniform_(0.5, 1.5)
    return model


class Backend(NamedTuple):
    name: str
    dtype: torch.dtype


_needs_native = pytest.mark.skipif(not kernels.native_status()["available"], reason=str(kernels.native_status()["reason"]))
FLOAT32 = [pytest.param(Backend("native", torch.float32), marks=_needs_native), pytest.param(Backend("torch", torch.float32))]
OTHERS = [
    pytest.param(Backend("native", torch.bfloat16), marks=_needs_native),
    *(pytest.param(Backend("torch", dtype)) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
]


def _shown(value: object) -> str:
    return f"{value.name}-{str(value.dtype).removeprefix('torch.')}" if isinstance(value, Backend) else str(value)


every_backend = pytest.mark.parametrize("backend", FLOAT32 + OTHERS, ids=_shown)
both_executors = pytest.mark.parametrize("backend", FLOAT32, ids=_shown)


def dense(model: nn.Module, frame: Tensor) -> Any:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(frame)


def assert_equals_dense(got: Any, model: nn.Module, frame: Tensor, where: str = "") -> None:
    oracle.assert_law(got, dense(model, frame), dense(copy.deepcopy(model).double(), frame.double()), where)


def executor_of(stream: Stream) -> Executor:
    executor = stream._executor
    assert executor is not None
    return executor


def small(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        return (
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 12 * 10, 3))
            .to(dtype)
            .eval()
        )


def absolute_thresholds(stream: Stream) -> dict[Any, float]:
    """What each step may be off by, in its own units, worked out anew from what the stream was told."""
    executor = executor_of(stream)
    result = {}
    for step in executor.plan.steps:
        value = stream.thresholds.get(step.name, 0.0)
        result[step] = value * (stream._units.std.get(step, 0.0) if stream.thresholds.unit == "std" else 1.0)
    return result
