"""`DCModule`, the base class of DeltaCNN networks and layers: an ordinary module whose outermost call is streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sightline.compat.deltacnn import program
from sightline.compat.deltacnn.thresholds import DCBackend
from sightline.errors import DTypeError
from sightline.stream import Stream


class DCModule(nn.Module):
    """Base class of networks that are written with DeltaCNN's layers.

    Called on a frame (n, c, h, w), the outermost DCModule captures itself once and streams: it computes what changed since the frame
    before, and returns what its forward returns, as dense tensors. Always in eval mode and without gradients. A frame of another size, type
    or device starts a video of its own; the last four are kept. Weights that change start it anew.

    Example:
        >>> class Net(DCModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = nn.Conv2d(3, 4, 3)
        ...
        ...     def forward(self, x):
        ...         return self.conv(x)
        >>> net = Net()
        >>> net.process_filters()
        >>> net(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 4, 6, 6])
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Streams if this is the outermost call; else, and when somebody traces the network, computes `forward`."""
        call = super().__call__
        if program.inside() or torch.compiler.is_compiling() or _is_dense():
            return call(*args, **kwargs)
        if "_runner" not in self.__dict__:
            self.__dict__["_runner"] = program.Runner(self)
        return self.__dict__["_runner"](lambda: call(*args, **kwargs), args, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have no past."""
        return {key: value for key, value in self.__dict__.items() if key != "_runner"}

    def process_filters(self) -> None:
        """Nothing has to be done: weights stay in PyTorch's layout, so it may be forgotten, or called twice."""

    def reset_layers(self) -> None:
        """Forgets all frames, here and in all modules inside; the next frame is computed densely. Thresholds stay."""
        for runner in self._runners():
            runner.reset()

    def reset(self) -> None:
        """The same as `reset_layers`."""
        self.reset_layers()

    def get_temp_buffer_numel(self) -> int:
        """Size of the state, in elements of 4 bytes."""
        return sum(runner.memory() for runner in self._runners()) // 4

    @property
    def stream(self) -> Stream | None:
        """The `sightline.Stream` that took the last frame, with its `stats` and `explain()`; None before, and without one."""
        runner = self.__dict__.get("_runner")
        return None if runner is None else runner.stream

    def _runners(self) -> Iterator[program.Runner]:
        for part in self.modules():
            runner = part.__dict__.get("_runner")
            if runner is not None:
                yield runner


def process_filters(module: nn.Module) -> None:
    """As `DCModule.process_filters`, for any module: nothing has to be done.

    Raises:
        DTypeError: it is not a module.
    """
    if not isinstance(module, nn.Module):
        raise DTypeError(f"`module` must be a torch.nn.Module; got {type(module).__name__}.")


def _is_dense() -> bool:
    from sightline.compat.deltacnn.layers import DCConv2d  # its class attribute is the switch; layers are made of this class

    backend = DCConv2d.backend
    if not isinstance(backend, DCBackend):
        raise DTypeError(f"DCConv2d.backend must be a DCBackend; got {backend!r}.")
    return backend is DCBackend.cudnn
