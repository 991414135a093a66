"""Convolution and transposed convolution at chosen sites."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.errors import ShapeError
from sightline.ops import arguments, library
from sightline.ops.arguments import Padding, Pair


def conv2d_at(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, sites: Any, held: Tensor | None = None, stride: Pair = 1,
    padding: Padding = 0, dilation: Pair = 1, groups: int = 1, padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    """``F.conv2d`` computed at the given output positions only.

    Use it to spend work only where it matters, in inference and in training; the input is a whole, valid map, so windows at the edge of
    the sites see their true surroundings. It is not for whole networks (`sightline.stream` knows what changed and fuses layers).

    Args:
        x: map (n, c_in, h, w), any floating dtype, device and strides. What no site reads may hold anything, NaN too.
        weight: (c_out, c_in / groups, kh, kw), dtype and device of x.
        bias: (c_out,) or None.
        sites: where to compute: `sightline.Sites` on the output's grid, or a bool mask (h_out, w_out), (1, h_out, w_out) or
            (n, h_out, w_out).
        held: what the output is elsewhere, (n, c_out, h_out, w_out); None: zero.
        stride: int or (y, x), at least 1.
        padding: int, (y, x), "same" (stride 1) or "valid".
        dilation: int or (y, x), at least 1.
        groups: as in ``F.conv2d``.
        padding_mode: "zeros", "reflect", "replicate" or "circular", as in ``torch.nn.Conv2d``.

    Returns:
        (n, c_out, h_out, w_out): the convolution at the sites; elsewhere `held` bit for bit, or zero. Channels last if x is.

    Raises:
        ShapeError: shapes, sites, groups or geometry that do not fit.
        DTypeError: a dtype that is not accepted, or two that differ.
        DeviceError: tensors on different devices.

    *Exact when*: always, to rounding; full sites give the dense convolution. Differentiable to any order in x, weight and bias, and in
    held outside the sites; gradients at the other positions of the output do not reach x, weight or bias. *Cost*: forward
    ``sites * c_out * c_in / groups * kh * kw`` MACs, backward twice that, plus one pass over the output (backward: over x) for what
    is not computed. Native for float32 on the CPU, gathered windows times a matrix in PyTorch otherwise.

    Example:
        The edges of an image inside a box only (Sobel):

        >>> import torch, sightline as sl
        >>> image = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> sobel = torch.tensor([[[[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]], [[[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]]]])
        >>> box = sl.Sites.from_boxes(sl.Grid(1, 8, 8), [(2, 2, 5, 6)])
        >>> edges = conv2d_at(image, sobel, sites=box, padding=1)
        >>> edges.shape, edges[0, :, 3, 3].tolist(), edges[0, :, 0, 0].tolist()
        (torch.Size([1, 2, 8, 8]), [8.0, 64.0], [0.0, 0.0])
        >>> int((edges[0, 1] != 0).sum()) == box.count()
        True
    """
    return _convolve(x, weight, bias, sites, held, stride, padding, dilation, groups, padding_mode, False, [0, 0])


def conv_transpose2d_at(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, sites: Any, held: Tensor | None = None, stride: Pair = 1, padding: Pair = 0,
    output_padding: Pair = 0, groups: int = 1, dilation: Pair = 1,
) -> Tensor:  # fmt: skip
    """``F.conv_transpose2d`` computed at the given output positions only; everything else as in `conv2d_at`.

    Args:
        x: map (n, c_in, h, w).
        weight: (c_in, c_out / groups, kh, kw).
        bias: (c_out,) or None.
        sites: where to compute, on the output's grid.
        held: what the output is elsewhere; None: zero.
        stride: int or (y, x), at least 1.
        padding: int or (y, x): cells cut off the full result.
        output_padding: int or (y, x): cells appended, fewer than stride or dilation.
        groups: as in ``F.conv_transpose2d``.
        dilation: int or (y, x), at least 1.

    Returns:
        (n, c_out, h_out, w_out).

    Raises:
        ShapeError: shapes, sites, groups or geometry that do not fit.
        DTypeError: a dtype that is not accepted, or two that differ.
        DeviceError: tensors on different devices.

    *Cost*: about ``sites * c_out * c_in / groups * kh * kw / (stride_y * stride_x)`` MACs natively; the gathered form in PyTorch
    also multiplies the zeros between the inputs. Backward twice that.

    Example:
        >>> import torch
        >>> x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        >>> mask = torch.tensor([[True, False, False, False]] + [[False] * 4] * 2 + [[False, False, False, True]])
        >>> conv_transpose2d_at(x, weight, sites=mask, stride=2)[0, 0].sum().item()
        2.0
    """
    extra = arguments.pair("output_padding", output_padding, minimum=0)
    if isinstance(padding, str):
        raise ShapeError(f"padding: expected an int or a pair, got {padding!r}; a transposed convolution has no 'same'")
    return _convolve(x, weight, bias, sites, held, stride, padding, dilation, groups, "zeros", True, extra)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, sites: Any, held: Tensor | None, stride: Pair, padding: Padding, dilation: Pair,
    groups: int, mode: str, transposed: bool, output_padding: list[int],
) -> Tensor:  # fmt: skip
    arguments.check_map(x)
    x, weight, bias, held = arguments.autocast(x, weight, bias, held)
    arguments.check_weight(x, weight, groups, transposed=transposed)
    strides, dilations = arguments.pair("stride", stride), arguments.pair("dilation", dilation)
    geometry = (
        strides,
        arguments.paddings(padding, list(weight.shape[2:]), strides, dilations),
        dilations,
        groups,
        arguments.padding_mode(mode),
        transposed,
        output_padding,
    )
    mask = arguments.sites_mask(sites, x.shape[0])
    if not torch.compiler.is_compiling():  # compiled code checks when it runs, in the operator
        library.conv_plane(x, weight, mask, *geometry)
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    if bias is not None:
        arguments.check_like("bias", bias, x, (channels,))
    if held is not None:
        arguments.check_like("held", held, x, (x.shape[0], channels, mask.shape[1], mask.shape[2]))
    return library.conv2d_at(x, weight, bias, mask, held, *geometry)  # type: ignore[no-any-return]
