"""A layer whose filters are summed over channels only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sightline import ops
from sightline.errors import DTypeError, ShapeError
from sightline.ops import arguments
from sightline.ops.arguments import Padding, Pair


class ChannelSumConv2d(nn.Module):
    """Filters times every window, summed over channels but not over the window; see `sightline.ops.channel_sum_conv2d`.

    The constructor is that of ``torch.nn.Conv2d``; groups, a bias and other paddings than zeros have no meaning here.

    Args:
        in_channels: channels of the input.
        out_channels: number of filters.
        kernel_size: int or (y, x).
        stride: int or (y, x).
        padding: int, (y, x), "same" or "valid".
        dilation: int or (y, x).
        groups: 1.
        bias: False.
        padding_mode: "zeros".
        device: of the weight.
        dtype: of the weight.

    Raises:
        ShapeError: another value where only one is listed, or a size below 1.

    Example:
        >>> import torch
        >>> layer = ChannelSumConv2d(5, 2, 3, stride=3)
        >>> layer(torch.randn(1, 5, 12, 12)).shape
        torch.Size([1, 2, 16, 3, 3])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1,
        groups: int = 1, bias: bool = False, padding_mode: str = "zeros", device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value, only in (("groups", groups, 1), ("bias", bias, False), ("padding_mode", padding_mode, "zeros")):
            if value != only:
                raise ShapeError(f"{name}: a sum over channels only takes {only!r}, got {value!r}")
        self.in_channels, self.out_channels = arguments.pair("(in_channels, out_channels)", (in_channels, out_channels))
        self.kernel_size = arguments.pair("kernel_size", kernel_size)
        self.stride, self.dilation = arguments.pair("stride", stride), arguments.pair("dilation", dilation)
        arguments.paddings(padding, self.kernel_size, self.stride, self.dilation)
        self.padding = padding
        self.weight = nn.Parameter(torch.empty(self.out_channels, self.in_channels, *self.kernel_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weight as ``torch.nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    @classmethod
    def from_dense(cls, conv: nn.Conv2d) -> ChannelSumConv2d:
        """A layer with the geometry of a dense convolution and the same weight Parameter.

        Summed over its last two axes, the result is the convolution without its bias, which has no place here.

        Args:
            conv: the dense layer, with one group and zero padding.

        Raises:
            DTypeError: not a ``torch.nn.Conv2d``.
            ShapeError: several groups, or another padding mode.
        """
        if not isinstance(conv, nn.Conv2d):
            raise DTypeError(f"conv: expected torch.nn.Conv2d, got {type(conv).__name__}")
        made = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, False,  # type: ignore[arg-type]
            conv.padding_mode, "meta",
        )  # fmt: skip
        made.weight = conv.weight  # type: ignore[assignment]
        return made.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(n, out_channels, windows, kh, kw) of a map (n, in_channels, h, w)."""
        return ops.channel_sum_conv2d(x, self.weight, tuple(self.stride), self.padding, tuple(self.dilation))  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """The geometry."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={tuple(self.kernel_size)}, stride={tuple(self.stride)}, "
            f"padding={self.padding}, dilation={tuple(self.dilation)}"
        )
