"""Programs that torch.export saved give the graphs that their models give."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphs import Function, assert_agrees, ops, rebuilt
from sightline.errors import CaptureError
from sightline.graph.capture import capture, load_exported
from sightline.graph.rules import reference
from traps import TRAPS
from zoo import build, frame


def exported(model: nn.Module, x: Tensor, **options: Any) -> Any:
    """Exported, saved and loaded."""
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model.eval(), (x,), strict=False, **options), buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


def test_exported_programs_give_the_same_graph() -> None:
    model = build("mobilenet_v3_small")
    x = frame("mobilenet_v3_small")
    direct, loaded = capture(model, x), load_exported(exported(model, x))
    assert [repr(node) for node in direct] == [repr(node) for node in loaded]
    assert loaded.name == "MobileNetV3"
    assert_agrees(model, loaded, frame("mobilenet_v3_small", 1))


def test_exported_outputs_are_rebuilt() -> None:
    program = exported(Function(lambda x: {"a": x + 1, "b": (None, 3, x)}), torch.zeros(1, 2, 3, 4))
    graph = load_exported(program)
    x = torch.randn(1, 2, 3, 4)
    got = rebuilt(graph, x)
    assert torch.equal(got["a"], x + 1)
    assert got["b"][:2] == (None, 3)
    assert torch.equal(got["b"][2], x)


@pytest.mark.parametrize("function", TRAPS)
def test_exported_changes_in_place_are_seen(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 4, 8, 6)
    program = exported(Function(function), x)
    before = str(program.graph)
    assert torch.equal(reference(load_exported(program), x)[0], function(x.clone()))
    assert str(program.graph) == before


def test_exported_with_dynamic_sizes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sizes = ({2: torch.export.Dim("h", min=8, max=64), 3: torch.export.Dim("w", min=8, max=64)},)
    graph = load_exported(exported(model, torch.zeros(1, 3, 16, 20), dynamic_shapes=sizes))
    assert graph.input.shape == (1, 3, 16, 20)
    assert ops(graph) == ["conv2d", "act", "global_avg_pool", "flatten"]
    assert_agrees(model, graph, torch.randn(1, 3, 16, 20))


def test_exported_with_two_inputs_is_named() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    program = torch.export.export(Two(), (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)))
    with pytest.raises(CaptureError, match="one tensor input"):
        load_exported(program)
    flat_program = torch.export.export(nn.ReLU(), (torch.zeros(3, 4),))
    with pytest.raises(CaptureError, match=r"\(n, c, h, w\)"):
        load_exported(flat_program)
