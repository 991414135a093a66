"""A convolution that computes only inside an area."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sightline import ops
from sightline.errors import DTypeError
from sightline.ops import arguments
from sightline.ops.arguments import Padding, Pair
from sightline.sites import Sites


@runtime_checkable
class HasSites(Protocol):
    """Anything that says where to compute on a map of any resolution, such as an area of interest."""

    def sites(self, h: int, w: int) -> Sites:
        """The area on a map of h rows and w columns."""


Area = HasSites | Sites | Tensor


class FocusedConv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` that computes its output inside an area only, and trains there.

    A drop-in for the dense layer: same constructor, same parameters, same state dict. Windows at the edge of the area see the true
    input around it. In a stack of such layers, give each layer the area that the next one reads (`Sites.grow`), or the halo is zero.

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
        area: where to compute: `Sites` or a bool mask (h, w) or (n, h, w) of any resolution (an output is in the area if it
            overlaps any cell that is), or an object with ``sites(h, w)``, which is asked at every call; None: everywhere, the
            dense convolution. May be set later, as ``layer.area``. A mask is a buffer that moves with the module but is not in
            its state dict.

    Raises:
        DTypeError: an area that is none of these.

    Example:
        >>> import torch
        >>> dense = torch.nn.Conv2d(3, 8, 3, padding=1)
        >>> corner = torch.zeros(16, 16, dtype=torch.bool)
        >>> corner[:4, :4] = True
        >>> focused = FocusedConv2d.from_dense(dense, area=corner)
        >>> x = torch.randn(1, 3, 16, 16)
        >>> y = focused(x)
        >>> torch.allclose(y[..., :4, :4], dense(x)[..., :4, :4], atol=1e-5), y[..., 4:, :].abs().max().item()
        (True, 0.0)
        >>> focused.weight is dense.weight
        True
    """

    area_mask: Tensor | None
    _area: HasSites | Sites | None

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1,
        groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Any = None, dtype: torch.dtype | None = None, *,
        area: Area | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)  # type: ignore[arg-type]
        self.register_buffer("area_mask", None, persistent=False)
        self._area = None
        self.area = area

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, *, area: Area | None = None) -> FocusedConv2d:
        """A layer with the geometry of a dense one and the same Parameters: training either trains both.

        Args:
            conv: the dense layer.
            area: as in the constructor.

        Raises:
            DTypeError: not a ``torch.nn.Conv2d``.
        """
        if not isinstance(conv, nn.Conv2d):
            raise DTypeError(f"conv: expected torch.nn.Conv2d, got {type(conv).__name__}")
        made = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,  # type: ignore[arg-type]
            conv.bias is not None, conv.padding_mode, "meta", area=area,
        )  # fmt: skip
        made.weight, made.bias = conv.weight, conv.bias
        if made.area_mask is not None:
            made.area_mask = made.area_mask.to(conv.weight.device)
        return made.train(conv.training)

    @property
    def area(self) -> Area | None:
        """Where to compute; None: everywhere."""
        return self.area_mask if self.area_mask is not None else self._area

    @area.setter
    def area(self, value: Area | None) -> None:
        if isinstance(value, Tensor):
            arguments.sites_mask(value, 1 if value.dim() == 2 else value.shape[0])
        elif value is not None and not isinstance(value, (Sites, HasSites)):
            raise DTypeError(f"area: expected sl.Sites, a bool mask or an object with sites(h, w), got {type(value).__name__}")
        self.area_mask = value.clone() if isinstance(value, Tensor) else None
        self._area = None if isinstance(value, Tensor) else value

    def forward(self, input: Tensor, held: Tensor | None = None) -> Tensor:
        """The convolution inside the area; elsewhere `held`, or zero.

        Args:
            input: map (n, c_in, h, w).
            held: what the output is outside, (n, c_out, h_out, w_out); None: zero. Without an area it is not read.

        Returns:
            (n, c_out, h_out, w_out).

        Raises:
            ShapeError: an area for another batch size, or as `sightline.ops.conv2d_at`.
        """
        if self.area is None:
            return super().forward(input)
        arguments.check_map(input)
        stride, dilation = list(self.stride), list(self.dilation)
        pads = arguments.paddings(self.padding, list(self.kernel_size), stride, dilation)  # type: ignore[arg-type]
        h, w = arguments.out_size(input.shape[2:], self.kernel_size, stride, pads, dilation)
        return ops.conv2d_at(
            input, self.weight, self.bias, sites=self._mask(h, w, input.device), held=held, stride=self.stride, padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation, groups=self.groups, padding_mode=self.padding_mode,  # type: ignore[arg-type]
        )  # fmt: skip

    def _mask(self, h: int, w: int, device: torch.device) -> Tensor:
        """The area on the output's grid."""
        if self.area_mask is not None:
            mask = self.area_mask
        else:
            area = self._area
            found = area if isinstance(area, Sites) else area.sites(h, w)  # type: ignore[union-attr]
            if not isinstance(found, Sites):
                raise DTypeError(f"area: sites(h, w) must return sl.Sites, got {type(found).__name__}")
            mask = found.mask
        if tuple(mask.shape[-2:]) != (h, w):
            mask = Sites.from_mask(mask).resize(h, w).mask
        return mask.to(device)

    def extra_repr(self) -> str:
        """The geometry, and what kind of area."""
        return f"{super().extra_repr()}, area={type(self.area).__name__ if self.area is not None else None}"  # type: ignore[no-untyped-call]
