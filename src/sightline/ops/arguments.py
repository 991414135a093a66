"""What users may pass, brought into one form and checked: pairs, padding, sites, tensors that must fit each other.

What belongs here: everything that a caller can get wrong. Written so that torch.compile can trace what every call runs through.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as as_index
from typing import Any, get_args

import torch
from torch import Tensor

from sightline.errors import DeviceError, DTypeError, ShapeError
from sightline.geometry import PaddingMode
from sightline.sites import Sites

Pair = int | tuple[int, int]
Padding = int | tuple[int, int] | str

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pair(name: str, value: int | Sequence[int], minimum: int = 1) -> list[int]:
    """[y, x] of an int or a pair of ints.

    Raises:
        DTypeError: not integers.
        ShapeError: not one or two of them, or below the minimum.
    """
    both: list[Any] = list(value) if isinstance(value, (tuple, list)) else [value, value]
    if len(both) == 1:  # torch takes (k,) for both axes
        both = both * 2
    for number in both:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise DTypeError(f"{name}: expected an int or a pair of ints (y, x), got {value!r}")
    both = [number if isinstance(number, int) else as_index(number) for number in both]
    if len(both) != 2 or min(both) < minimum:
        raise ShapeError(f"{name}: expected an int or a pair (y, x) of at least {minimum}, got {value!r}")
    return both


def paddings(padding: Padding, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """[top, bottom, left, right] of an int, a pair, "valid" or "same" (as torch splits it: the larger half behind).

    Raises:
        ShapeError: another word, a negative number, or "same" with a stride.
    """
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding == "same":
        if max(stride) != 1:
            raise ShapeError(f"padding: 'same' needs stride 1, got stride {tuple(stride)}; give the padding as numbers")
        spans = [dilation[i] * (kernel[i] - 1) for i in range(2)]
        return [spans[0] // 2, spans[0] - spans[0] // 2, spans[1] // 2, spans[1] - spans[1] // 2]
    if isinstance(padding, str):
        raise ShapeError(f"padding: expected an int, a pair, 'same' or 'valid', got {padding!r}")
    y, x = pair("padding", padding, minimum=0)
    return [y, y, x, x]


def out_size(size: Sequence[Any], kernel: Sequence[Any], stride: Sequence[int], pads: Sequence[int], dilation: Sequence[int]) -> list[Any]:
    """[h, w] of a convolution's output, also of symbolic sizes, which `sightline.geometry` would pin down to numbers."""
    return [(size[i] + pads[2 * i] + pads[2 * i + 1] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]


def padding_mode(mode: str) -> str:
    """The mode, if it is one."""
    if mode not in get_args(PaddingMode):
        raise ShapeError(f"padding_mode: expected one of {', '.join(get_args(PaddingMode))}, got {mode!r}")
    return mode


def sites_mask(sites: Any, n: int) -> Tensor:
    """Bool (n, h, w) of sites or of a mask (h, w), (1, h, w) or (n, h, w); may share their memory.

    Raises:
        DTypeError: neither sites nor a bool tensor.
        ShapeError: another rank, or another batch size.
    """
    mask = sites.mask if isinstance(sites, Sites) else sites
    if not isinstance(mask, Tensor):
        raise DTypeError(f"sites: expected sl.Sites or a bool torch.Tensor, got {type(sites).__name__}")
    if mask.dtype != torch.bool:
        raise DTypeError(f"sites: expected a mask of torch.bool, got {mask.dtype}; pass `mask != 0`, or `mask > level` for a soft mask")
    if mask.dim() not in (2, 3):
        raise ShapeError(f"sites: expected a mask (h, w) or (n, h, w), got {tuple(mask.shape)}; drop the channel axis, e.g. `mask.any(1)`")
    if mask.dim() == 2:
        mask = mask[None]
    if mask.shape[0] != n:
        if mask.shape[0] != 1:
            raise ShapeError(f"sites: expected 1 or {n} batch elements as in x, got {mask.shape[0]}")
        mask = mask.expand(n, -1, -1)
    return mask


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """All tensors in the type of an enclosing ``torch.autocast``, as torch's own convolutions have it; unchanged without one."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return (x, *others)
    dtype = torch.get_autocast_dtype(kind)
    return tuple(value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in (x, *others))


def check_map(x: Any) -> None:
    """X is a map of floats.

    Raises:
        DTypeError: not a tensor of floats.
        ShapeError: not (n, c, h, w), or empty.
    """
    if not isinstance(x, Tensor):
        raise DTypeError(f"x: expected a torch.Tensor (n, c, h, w), got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise DTypeError(f"x: expected a floating-point tensor, got {x.dtype}; call x.float()")
    if x.dim() != 4:
        raise ShapeError(f"x: expected (n, c, h, w), got {tuple(x.shape)}; add the batch axis with x[None]")
    if 0 in x.shape:
        raise ShapeError(f"x: expected at least one value per axis, got {tuple(x.shape)}")


def check_like(name: str, value: Any, x: Tensor, shape: Sequence[int]) -> None:
    """`value` has the shape given, and the dtype and device of x.

    Raises:
        DTypeError: not a tensor, or of another dtype than x.
        ShapeError: of another shape.
        DeviceError: on another device than x.
    """
    if not isinstance(value, Tensor):
        raise DTypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype != x.dtype:
        raise DTypeError(f"{name}: expected the dtype of x, {x.dtype}, got {value.dtype}; call {name}.to(x.dtype)")
    if value.device != x.device:
        raise DeviceError(f"{name}: expected the device of x, {x.device}, got {value.device}; call {name}.to(x.device)")
    if tuple(value.shape) != tuple(shape):
        raise ShapeError(f"{name}: expected {tuple(shape)}, got {tuple(value.shape)}")


def check_sites(mask: Tensor, x: Tensor, out_size: Sequence[int]) -> None:
    """The mask lies on the output's grid and on x's device.

    Raises:
        DeviceError: on another device than x.
        ShapeError: of another size.
    """
    if mask.device != x.device:
        raise DeviceError(f"sites: expected the device of x, {x.device}, got {mask.device}; call sites.to(x.device)")
    if mask.dtype != torch.bool or tuple(mask.shape) != (x.shape[0], *out_size):
        raise ShapeError(
            f"sites: expected the grid of the output, {out_size[0]} x {out_size[1]}, got {tuple(mask.shape[-2:])}; "
            f"bring sl.Sites over with sites.resize({out_size[0]}, {out_size[1]})"
        )


def check_weight(x: Tensor, weight: Any, groups: Any, *, transposed: bool) -> None:
    """Weight (cout, cin / groups, kh, kw), transposed (cin, cout / groups, kh, kw), and groups fit x.

    Raises:
        DTypeError: groups is not an int, or weight no tensor of x's dtype.
        ShapeError: they do not fit.
    """
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise DTypeError(f"groups: expected an int, got {groups!r}")
    if not isinstance(weight, Tensor):
        raise DTypeError(f"weight: expected a torch.Tensor, got {type(weight).__name__}")
    if weight.dim() != 4 or 0 in weight.shape:
        layout = "(c_in, c_out / groups, kh, kw)" if transposed else "(c_out, c_in / groups, kh, kw)"
        raise ShapeError(f"weight: expected {layout}, got {tuple(weight.shape)}")
    check_like("weight", weight, x, weight.shape)
    if groups < 1 or weight.shape[0] % groups or x.shape[1] % groups:
        raise ShapeError(f"groups: must divide x's {x.shape[1]} channels and weight's {weight.shape[0]}, got {groups}")
    if transposed and weight.shape[0] != x.shape[1]:
        raise ShapeError(
            f"weight: expected {x.shape[1]} input channels as in x, got {weight.shape[0]}; the layout is (c_in, c_out / groups, kh, kw)"
        )
    if not transposed and weight.shape[1] * groups != x.shape[1]:
        expected = f"(c_out, {x.shape[1] // groups}, kh, kw)"
        raise ShapeError(f"weight: x has {x.shape[1]} channels in {groups} groups, so expected {expected}, got {tuple(weight.shape)}")
