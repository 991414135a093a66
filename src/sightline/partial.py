"""Models that cannot be captured whole: stream the largest parts that can, run the rest as it is.

Detectors are the usual case: their boxes depend on values, which no capture follows, but trunk, pyramid and heads are ordinary
convolutional networks. `PartialModel` works on a copy of the module tree that shares all parameters and buffers, so the user's model
is not touched.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sightline.errors import CaptureError, ShapeError

if TYPE_CHECKING:
    from sightline.stream import Stream

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class _Streamed(nn.Module):
    """Stands in for a captured part: one stream per call within a frame, since a part may be called on several maps."""

    def __init__(self, path: str, part: nn.Module, first: Stream, make: Callable[[nn.Module], Stream]) -> None:
        super().__init__()
        self.path = path
        self._part = [part]  # in a list, so that it is not a sub-module
        self._make = make
        self._calls = 0
        self.streams = [first]

    def start_frame(self) -> None:
        self._calls = 0

    def forward(self, x: torch.Tensor) -> Any:
        if self._calls == len(self.streams):
            self.streams.append(self._make(self._part[0]))
        stream = self.streams[self._calls]
        self._calls += 1
        try:
            result = stream(x)
        except ShapeError:
            # A detector may resize its maps from frame to frame; start again at the new size.
            stream.reset()
            result = stream(x)
        # A stream's outputs are in the type that it computes in; the code around this part counts on the model's own.
        computed = stream._dtype  # same package
        return result if computed in (None, x.dtype) else pytree.tree_map(lambda value: _in_type(value, computed, x.dtype), result)

    def named_streams(self) -> Iterator[tuple[str, Stream]]:
        for i, stream in enumerate(self.streams):
            yield (self.path if i == 0 else f"{self.path}:{i + 1}"), stream


def _in_type(value: Any, computed: torch.dtype | None, wanted: torch.dtype) -> Any:
    return value.to(wanted) if isinstance(value, torch.Tensor) and value.dtype == computed else value


class PartialModel:
    """A copy of a model in which every part that can be captured is streamed.

    Args:
        model: the user's module; not modified.
        frame: an example (n, c, h, w); the model is run on it once, densely, to see what its parts are called with.
        make: makes a stream of a captured part.
        reason: why the whole model could not be captured.

    Raises:
        CaptureError: the model does not run on the frame, or none of its parts with convolutions can be captured.
    """

    def __init__(self, model: nn.Module, frame: torch.Tensor, make: Callable[[nn.Module], Stream], reason: CaptureError) -> None:
        self.reason = str(reason)
        self.model = copy_tree(model, {})
        self.model.eval()
        self.parts: list[_Streamed] = []
        self._lock = threading.Lock()
        calls = _record_calls(self.model, frame, reason)
        self._replace(self.model, "", calls, make)
        if not self.parts:
            raise reason

    def _replace(
        self, module: nn.Module, prefix: str, calls: dict[nn.Module, torch.Tensor | None], make: Callable[[nn.Module], Stream]
    ) -> None:
        for name in list(module._modules):
            child = module._modules[name]  # read late: a shared module may have been replaced under its other name
            if child is None or isinstance(child, _Streamed):
                continue
            path = f"{prefix}{name}"
            example = calls.get(child)
            convolves = any(isinstance(m, _CONVOLUTIONS) for m in child.modules())
            stream = _prepared(child, example, make) if example is not None and convolves else None
            if stream is not None:
                part = _Streamed(path, child, stream, make)
                self.parts.append(part)
                for owner in self.model.modules():  # a shared module is one part wherever it hangs
                    for key, value in owner._modules.items():
                        if value is child:
                            owner._modules[key] = part
            else:
                self._replace(child, f"{path}.", calls, make)

    def run(self, frame: torch.Tensor) -> Any:
        """Runs the copy on a frame; captured parts stream."""
        with self._lock:
            for part in self.parts:
                part.start_frame()
            return self.model(frame)

    def reset(self) -> None:
        """Forgets all frames."""
        for part in self.parts:
            for stream in part.streams:
                stream.reset()

    def streams(self) -> Iterator[tuple[str, Stream]]:
        """(call-site prefix, stream) of every call of every part so far; the first one exists from the start."""
        for part in self.parts:
            yield from part.named_streams()


def _prepared(module: nn.Module, example: torch.Tensor, make: Callable[[nn.Module], Stream]) -> Stream | None:
    """A stream of the module, captured and packed, or None if it cannot be captured."""
    stream = make(module)
    try:
        stream._prepare(stream._checked(example))  # same package
    except (CaptureError, ShapeError, TypeError, ValueError):
        return None
    return stream


def copy_tree(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Copies modules, shares parameters and buffers; a module that hangs in two places stays one module."""
    if module in done:
        return done[module]
    twin = copy.copy(module)
    done[module] = twin
    state = twin.__dict__
    for key in ("_parameters", "_buffers", "_modules"):
        state[key] = dict(state[key])
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else copy_tree(child, done)
    return twin


def _record_calls(model: nn.Module, frame: torch.Tensor, reason: CaptureError) -> dict[nn.Module, torch.Tensor | None]:
    """Runs the model once; module -> the map it was first called with, or None if it was called with anything else."""
    calls: dict[nn.Module, torch.Tensor | None] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        plain = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor) and args[0].dim() == 4 and args[0].is_floating_point()
        if not plain:
            calls[module] = None
        elif module not in calls:
            calls[module] = args[0].detach()

    for module in model.modules():  # hooks of the copy: the user's own hooks stay where they are
        module._forward_pre_hooks = type(module._forward_pre_hooks)(module._forward_pre_hooks)
        module._forward_pre_hooks_with_kwargs = type(module._forward_pre_hooks_with_kwargs)(module._forward_pre_hooks_with_kwargs)
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        with torch.no_grad():
            model(frame)
    except Exception as error:
        raise CaptureError(f"{reason} The model does not run on this frame either: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls
