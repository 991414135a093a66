"""Pooling at chosen sites."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.errors import DTypeError, ShapeError
from sightline.ops import arguments, library
from sightline.ops.arguments import Pair


def max_pool2d_at(
    x: Tensor, kernel_size: Pair, *, sites: Any, held: Tensor | None = None, stride: Pair | None = None, padding: Pair = 0,
    dilation: Pair = 1, ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    """``F.max_pool2d`` computed at the given output positions only.

    Args:
        x: map (n, c, h, w), any floating dtype, device and strides.
        kernel_size: int or (y, x).
        sites: where to compute: `sightline.Sites` on the output's grid, or a bool mask (h_out, w_out), (1, ...) or (n, ...).
        held: what the output is elsewhere, (n, c, h_out, w_out); None: zero.
        stride: int or (y, x); None: kernel_size.
        padding: int or (y, x), at most half the kernel; padded cells never win.
        dilation: int or (y, x).
        ceil_mode: round the output size up.

    Returns:
        (n, c, h_out, w_out); elsewhere than at the sites `held` bit for bit, or zero.

    Raises:
        ShapeError: sites, held or geometry that do not fit.
        DTypeError: a dtype that is not accepted, or two that differ.
        DeviceError: tensors on different devices.

    *Exact when*: always, bit for bit; NaN wins as in torch. The gradient goes to the first of equal maxima, as in torch. *Cost*: as many
    comparisons as the sites' windows have cells, plus a pass over the output.

    Example:
        >>> import torch
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> max_pool2d_at(x, 2, sites=torch.tensor([[True, False], [False, True]]))[0, 0].tolist()
        [[5.0, 0.0], [0.0, 15.0]]
    """
    arguments.check_map(x)
    kernel, strides, pads = _windows(kernel_size, stride, padding)
    dilations = arguments.pair("dilation", dilation)
    mask = arguments.sites_mask(sites, x.shape[0])
    if not torch.compiler.is_compiling():
        library.pool_plane(x, mask, kernel, strides, pads, dilations, bool(ceil_mode))
    _check_held(held, x, mask)
    return library.max_pool2d_at(x, mask, held, kernel, strides, pads, dilations, bool(ceil_mode))  # type: ignore[no-any-return]


def avg_pool2d_at(
    x: Tensor, kernel_size: Pair, *, sites: Any, held: Tensor | None = None, stride: Pair | None = None, padding: Pair = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """``F.avg_pool2d`` computed at the given output positions only.

    Args:
        x: map (n, c, h, w), any floating dtype, device and strides.
        kernel_size: int or (y, x).
        sites: where to compute: `sightline.Sites` on the output's grid, or a bool mask (h_out, w_out), (1, ...) or (n, ...).
        held: what the output is elsewhere, (n, c, h_out, w_out); None: zero.
        stride: int or (y, x); None: kernel_size.
        padding: int or (y, x), at most half the kernel.
        ceil_mode: round the output size up.
        count_include_pad: divide by the whole window, padded cells included.
        divisor_override: divide by this number instead, not 0.

    Returns:
        (n, c, h_out, w_out); elsewhere than at the sites `held` bit for bit, or zero.

    Raises:
        ShapeError: sites, held or geometry that do not fit.
        DTypeError: a dtype that is not accepted, or two that differ.
        DeviceError: tensors on different devices.

    *Exact when*: always, to rounding. *Cost*: as many additions as the sites' windows have cells, plus a pass over the output.

    Example:
        >>> import torch
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> avg_pool2d_at(x, 2, sites=torch.tensor([[True, False], [False, True]]))[0, 0].tolist()
        [[2.5, 0.0], [0.0, 12.5]]
    """
    arguments.check_map(x)
    kernel, strides, pads = _windows(kernel_size, stride, padding)
    if divisor_override is not None:
        if not isinstance(divisor_override, int) or isinstance(divisor_override, bool):
            raise DTypeError(f"divisor_override: expected an int or None, got {divisor_override!r}")
        if divisor_override == 0:
            raise ShapeError("divisor_override: expected a number other than 0, got 0")
    mask = arguments.sites_mask(sites, x.shape[0])
    if not torch.compiler.is_compiling():
        library.pool_plane(x, mask, kernel, strides, pads, [1, 1], bool(ceil_mode))
    _check_held(held, x, mask)
    return library.avg_pool2d_at(  # type: ignore[no-any-return]
        x, mask, held, kernel, strides, pads, bool(ceil_mode), bool(count_include_pad), divisor_override
    )


def _windows(kernel_size: Pair, stride: Pair | None, padding: Pair) -> tuple[list[int], list[int], list[int]]:
    kernel = arguments.pair("kernel_size", kernel_size)
    strides = kernel if stride is None else arguments.pair("stride", stride)
    y, x = arguments.pair("padding", padding, minimum=0)
    return kernel, list(strides), [y, y, x, x]


def _check_held(held: Tensor | None, x: Tensor, mask: Tensor) -> None:
    if held is not None:
        arguments.check_like("held", held, x, (x.shape[0], x.shape[1], mask.shape[1], mask.shape[2]))
