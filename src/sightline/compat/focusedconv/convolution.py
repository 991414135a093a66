"""The focused convolution under its name and with its arguments in focusedconv."""

from __future__ import annotations

import copy
import enum
from typing import Any

import torch
from torch import Tensor, nn

from sightline.compat.focusedconv.areaofinterest import AoI
from sightline.errors import DTypeError
from sightline.nn import FocusedConv2d as _FocusedConv2d
from sightline.ops.arguments import Padding, Pair
from sightline.sites import Sites


class FOCUSED_CONV_OP_MODES(enum.Enum):  # noqa: N801 - the name in that library
    """What of an area is computed: its true shape, or its bounding box."""

    AOI_GENERAL_MODE = 0
    AOI_RECT_MODE = 1


class _Where:
    """An area as a layer with a mode sees it."""

    def __init__(self, aoi: AoI, rect: bool) -> None:
        self.aoi, self.rect = aoi, rect

    def sites(self, h: int, w: int) -> Sites:
        return self.aoi.sites(h, w, self.rect)


class FocusedConv2d(_FocusedConv2d):
    """``torch.nn.Conv2d`` that computes only inside an `AoI`; 0 outside, where the bias is not added either.

    Args:
        in_channels: as in ``torch.nn.Conv2d``, as is everything up to `dtype`.
        out_channels: channels of the output.
        kernel_size: int or (y, x).
        stride: int or (y, x).
        padding: int, (y, x), "same" or "valid".
        dilation: int or (y, x).
        groups: groups of channels.
        bias: whether a bias is added, inside the area.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: of the parameters.
        dtype: of the parameters.
        aoi: the area; None: everything, the dense convolution.
        focused_conv_op_mode: a member of `FOCUSED_CONV_OP_MODES`, or its number.

    Raises:
        ValueError: an unknown mode.
        DTypeError: `aoi` is not an `AoI`.

    Example:
        >>> layer = FocusedConv2d(3, 8, 3, padding=1, aoi=AoI(torch.tensor([[1, 0], [0, 0]])))
        >>> y = layer(torch.rand(1, 3, 8, 8))
        >>> int((y != 0).any(1).sum()), y[..., 4:].abs().max().item()
        (16, 0.0)
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1,
        groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Any = None, dtype: torch.dtype | None = None,
        aoi: AoI | None = None, focused_conv_op_mode: FOCUSED_CONV_OP_MODES | int = FOCUSED_CONV_OP_MODES.AOI_RECT_MODE,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        self._focus(aoi, focused_conv_op_mode)

    @classmethod
    def of(cls, conv: nn.Conv2d, aoi: AoI) -> FocusedConv2d:
        """The focused twin of a dense layer: the same Parameters, buffers, hooks and flags, other than `from_dense` of the parent."""
        made = cls.__new__(cls)
        made.__dict__ = {name: copy.copy(value) if isinstance(value, dict) else value for name, value in conv.__dict__.items()}
        made.register_buffer("area_mask", None, persistent=False)
        made._area = None
        made._focus(aoi, FOCUSED_CONV_OP_MODES.AOI_RECT_MODE)
        return made

    def _focus(self, aoi: AoI | None, mode: FOCUSED_CONV_OP_MODES | int) -> None:
        if aoi is not None and not isinstance(aoi, AoI):
            raise DTypeError(f"aoi: expected an AoI or None, got {type(aoi).__name__}; wrap a mask: AoI(mask)")
        self._mode = FOCUSED_CONV_OP_MODES(mode)
        self._aoi = aoi
        self.area = None if aoi is None else _Where(aoi, self._mode is FOCUSED_CONV_OP_MODES.AOI_RECT_MODE)

    @property
    def aoi(self) -> AoI | None:
        """The area; may be set."""
        return self._aoi

    @aoi.setter
    def aoi(self, aoi: AoI | None) -> None:
        self._focus(aoi, self._mode)

    @property
    def focused_conv_op_mode(self) -> FOCUSED_CONV_OP_MODES:
        """What of the area is computed; may be set."""
        return self._mode

    @focused_conv_op_mode.setter
    def focused_conv_op_mode(self, mode: FOCUSED_CONV_OP_MODES | int) -> None:
        self._focus(self._aoi, mode)

    def forward(self, input: Tensor, held: Tensor | None = None) -> Tensor:
        """The convolution inside the area of a map (n, c, h, w) or (c, h, w); elsewhere 0, or `held`.

        Raises:
            ShapeError: the area has masks for another number of batch elements, or the input does not fit.
        """
        if self._aoi is None or self._aoi.everything(self._mode is FOCUSED_CONV_OP_MODES.AOI_RECT_MODE):
            return nn.Conv2d.forward(self, input)
        if input.dim() == 3:
            return super().forward(input[None], None if held is None else held[None])[0]
        return super().forward(input, held)

    def extra_repr(self) -> str:
        """The geometry, the mode and the area."""
        return f"{nn.Conv2d.extra_repr(self)}, {self._mode.name}, aoi={self._aoi!r}"
