"""From what a user hands over, a model and a frame, to a graph.

What belongs here: checks and dispatch that all front doors share. What does not: how a module is traced (`capture`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sightline.errors import CaptureError, DTypeError, ShapeError
from sightline.graph.capture import capture, is_exported, load_exported
from sightline.graph.ir import Graph
from sightline.graph.plan import Step

_CAPTURING = threading.Lock()  # torch.export changes state of the process while it traces


def check_frame(frame: object) -> torch.Tensor:
    """The frame, detached, if it is a float tensor (n, c, h, w).

    Raises:
        DTypeError: not a tensor, or not of a floating-point type.
        ShapeError: another number of axes, or an empty one.
    """
    if not isinstance(frame, torch.Tensor):
        raise DTypeError(f"`frame` must be a torch.Tensor (n, c, h, w); got {type(frame).__name__}.")
    if frame.dim() != 4 or 0 in frame.shape:
        hint = " Add the batch axis with frame[None]." if frame.dim() == 3 else ""
        raise ShapeError(f"`frame` must be (n, c, h, w) with no empty axis; got {tuple(frame.shape)}.{hint}")
    if not frame.is_floating_point():
        raise DTypeError(f"`frame` must be a float tensor, as the model takes it; got {frame.dtype}. Convert it, e.g. frame.float() / 255.")
    return frame.detach()


def graph_of(model: Any, frame: torch.Tensor) -> Graph:
    """Captures a model for frames of one size and type.

    Args:
        model: an nn.Module, a `Graph`, an exported program or an `OnnxModel`.
        frame: an example (n, c, h, w).

    Raises:
        CaptureError: it cannot be captured, or is none of these.
        ShapeError, DTypeError: the frame does not fit the model or the graph.
    """
    if isinstance(model, nn.Module):
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        if parameter is not None and parameter.dtype != frame.dtype:
            raise DTypeError(f"`frame` is {frame.dtype} but the model's weights are {parameter.dtype}. Convert one of them.")
        with _CAPTURING:
            return capture(model, frame)
    if isinstance(model, Graph):
        graph = model
    elif is_exported(model):
        graph = load_exported(model)
    elif hasattr(model, "graph") and hasattr(model, "opset"):
        graph = model.graph(*frame.shape)
    else:
        raise CaptureError(f"`model` must be an nn.Module, a Graph, an exported program or an OnnxModel; got {type(model).__name__}.")
    if graph.input.shape != tuple(frame.shape):
        raise ShapeError(f"`frame` has shape {tuple(frame.shape)}, but the graph was made for {graph.input.shape}. Capture it again.")
    if graph.input.dtype != frame.dtype:
        raise DTypeError(f"`frame` is {frame.dtype}, but the graph was made for {graph.input.dtype}. Convert the frame.")
    return graph


def copy_weights(steps: Iterable[Step]) -> None:
    """Gives torch steps weights of their own, as packed ones are: later changes of the model must not reach held maps."""
    copies: dict[int, torch.Tensor] = {}
    for node in (node for step in steps for node in step.nodes):
        for key, value in node.attrs.items():
            if isinstance(value, torch.Tensor):
                if id(value) not in copies:
                    copies[id(value)] = value.detach().clone()
                node.attrs[key] = copies[id(value)]
