"""Stretches on (n, h, w, c) become maps: norms over channels, one-pixel convolutions, no permutations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracle
import sightline as sl
from cases import Apply
from networks import video
from sightline.graph.capture import capture
from sightline.graph.rules import reference
from sightline.graph.simplify import simplify
from streams import Backend, every_backend

SHAPE = (2, 6, 17, 13)


class Block(nn.Module):
    """As in ConvNeXt: depthwise, then norm and linear layers on the last axis, then back and a scale per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6, eps=1e-6)
        self.wide, self.narrow = nn.Linear(6, 20), nn.Linear(20, 6, bias=False)
        self.scale = nn.Parameter(torch.randn(6))
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        last = self.narrow(F.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + (self.scale * last).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Global(nn.Module):
    """Global response normalization, as in ConvNeXt V2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(6, 9, 1), nn.Conv2d(9, 6, 1)
        self.weight, self.bias = nn.Parameter(torch.randn(1, 9, 1, 1)), nn.Parameter(torch.randn(1, 9, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        size = torch.linalg.vector_norm(x, 2, (2, 3), keepdim=True)
        return self.last(x + torch.addcmul(self.bias, self.weight, x * (size / (size.mean(1, keepdim=True) + 1e-6))))  # type: ignore[no-any-return]


def last(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Apply(lambda x: function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


CASES: dict[str, Callable[[], nn.Module]] = {
    "block": lambda: nn.Sequential(Block(), Block()),
    "norm without parameters": lambda: last(lambda x: F.layer_norm(x, (6,))),
    "norm with another epsilon": lambda: last(lambda x: F.layer_norm(0.01 * x, (6,), torch.linspace(-1, 2, 6), None, 0.5)),
    "constants per channel": lambda: last(lambda x: torch.linspace(0, 1, 6) * x + torch.linspace(-1, 1, 6)),
    "two maps": lambda: last(lambda x: torch.maximum(x.relu(), x.sin()) - x.sigmoid()),
    "scalars": lambda: last(lambda x: 2 * x + 1),
    "read in both layouts": lambda: Apply(
        lambda x: (F.layer_norm(x.permute(0, 2, 3, 1), (6,)).relu().flatten(1, 2).mean(1), F.layer_norm(x.permute(0, 2, 3, 1), (6,)))
    ),
    "there and nowhere": lambda: Apply(lambda x: x.relu().permute(0, 2, 3, 1)),
    "over more than channels": lambda: last(lambda x: F.layer_norm(x, (13, 6))),
    "global response": Global,
}
NATIVE = ("block", "norm without parameters", "norm with another epsilon", "constants per channel", "scalars", "global response")


@pytest.mark.parametrize("name", CASES)
def test_the_rewritten_graph_computes_the_same(name: str) -> None:
    model = CASES[name]().eval()
    frame = torch.randn(SHAPE)
    graph = capture(model, frame)
    with torch.no_grad():
        oracle.assert_law(reference(simplify(graph), frame), oracle.tensors(model(frame)), reference(graph, frame.double()), name)


@pytest.mark.parametrize("name", NATIVE)
def test_no_torch_node_is_left(name: str) -> None:
    graph = simplify(capture(CASES[name]().eval(), torch.randn(SHAPE)))
    left = [node for node in graph if node.op == "torch"]
    assert [node.shape for node in left] in ([], [(2, 1, 1, 1)]), left  # the mean over channels of a vector


@every_backend
@pytest.mark.parametrize("name", ["block", "read in both layouts", "global response"])
def test_streams(name: str, backend: Backend) -> None:
    model = CASES[name]().to(backend.dtype).eval()
    graph = capture(model, torch.randn(SHAPE, dtype=backend.dtype))
    stream = sl.stream(model, backend=backend.name)
    for index, frame in enumerate(video(SHAPE, 4, 1, backend.dtype)):
        got: Any = stream(frame)
        with torch.no_grad():
            plain, truth = model(frame), reference(graph, frame.double())
        oracle.assert_law(oracle.tensors(got), oracle.tensors(plain), truth, f"frame {index}")
    stream(frame)
    assert stream.stats.last.macs_done == 0


def test_values_with_a_large_mean_keep_their_variance() -> None:
    """Two passes: the mean is taken off before squares are summed."""
    model = Apply(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2))
    frame = torch.randn(SHAPE) + 3000
    got = sl.stream(model)(frame)
    want = F.layer_norm(frame.double().permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2)
    plain = F.layer_norm(frame.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2)
    oracle.assert_law(got, plain, want)
