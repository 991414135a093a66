"""The operators in C++, for float32 on the CPU: the one place that hands out addresses.

What belongs here: turning checked tensors into addresses and strides. The callers (`sightline.ops.library`) have checked shapes,
types and devices. Nothing here copies a map: the kernels take any strides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline import kernels
from sightline.ops.plane import Plane

NOTHING = (0, 0, 0, 0, 0)


def usable(plane: Plane, *maps: Tensor) -> bool:
    """Whether these maps can go to the compiled kernels."""
    return (
        all(m.dtype == torch.float32 and m.device.type == "cpu" and m.layout == torch.strided for m in maps)
        and all(m.shape[0] * m.shape[2] * m.shape[3] < 2**31 for m in maps if m.dim() == 4)
        and plane.native is not None
    )


def _map(tensor: Tensor) -> tuple[int, int, int, int, int]:
    n, c, h, w = tensor.stride()
    return tensor.data_ptr(), n, c, h, w


def _channels(weight: Tensor, groups: int, transposed: bool) -> tuple[int, int, int, int, int, int]:
    """(cin, cout, groups, strides of group, output channel and input channel) of a contiguous weight."""
    first, second, taps = weight.shape[0] // groups, weight.shape[1], weight.shape[2] * weight.shape[3]
    if transposed:  # (cin, cout / groups, ...)
        return first * groups, second * groups, groups, first * second * taps, taps, second * taps
    return second * groups, first * groups, groups, first * second * taps, second * taps, taps


def _plain(tensor: Tensor | None) -> Tensor | None:
    """Values in order, without lazy negation or conjugation; the caller keeps it alive during the call."""
    return None if tensor is None else tensor.detach().resolve_neg().contiguous()


def _address(array: Tensor | NDArray[np.float32] | None) -> int:
    if array is None:
        return 0
    return array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data


def _ready(plane: Plane) -> Any:
    kernels.apply_num_threads()
    return plane.native


def conv(plane: Plane, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, groups: int, transposed: bool, out: Tensor) -> None:
    """Convolution at the mask's positions, written to out; the rest of out stays."""
    packed, offsets, sites = _plain(weight), _plain(bias), mask.contiguous()
    assert packed is not None
    _ready(plane).conv(
        x.shape[0], _map(x), _map(out), _channels(packed, groups, transposed), _address(packed), _address(offsets), _address(sites)
    )


def conv_backward(
    plane: Plane,
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    groups: int,
    transposed: bool,
    gx: Tensor | None,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Adds the sites' share to gx, which holds zeros; returns the gradients of weight and bias, None where not wanted."""
    packed, sites = _plain(weight), mask.contiguous()
    assert packed is not None
    gw = torch.empty_like(packed) if wanted[0] else None
    gb = torch.empty(gy.shape[1]) if wanted[1] else None
    _ready(plane).conv_backward(
        x.shape[0], _map(gy), _map(x), _channels(packed, groups, transposed), _address(packed), _address(sites),
        NOTHING if gx is None else _map(gx), _address(gw), _address(gb),
    )  # fmt: skip
    return gw, gb


def max_pool(plane: Plane, x: Tensor, mask: Tensor, out: Tensor) -> None:
    """Maxima at the mask's positions, written to out."""
    sites = mask.contiguous()
    _ready(plane).max_pool(x.shape[0], x.shape[1], _map(x), _map(out), _address(sites))


def max_pool_backward(plane: Plane, gy: Tensor, x: Tensor, mask: Tensor, gx: Tensor) -> None:
    """Adds the sites' share to gx, which holds zeros."""
    sites = mask.contiguous()
    _ready(plane).max_pool_backward(x.shape[0], x.shape[1], _map(gy), _map(x), _map(gx), _address(sites))


def avg_pool(plane: Plane, x: Tensor, mask: Tensor, divisors: tuple[NDArray[np.float32], NDArray[np.float32]], out: Tensor) -> None:
    """Means at the mask's positions, written to out."""
    sites = mask.contiguous()
    _ready(plane).avg_pool(x.shape[0], x.shape[1], _map(x), _map(out), _address(sites), *map(_address, divisors))


def avg_pool_backward(
    plane: Plane, gy: Tensor, mask: Tensor, divisors: tuple[NDArray[np.float32], NDArray[np.float32]], gx: Tensor
) -> None:
    """Adds the sites' share to gx, which holds zeros."""
    sites = mask.contiguous()
    _ready(plane).avg_pool_backward(gx.shape[0], gx.shape[1], _map(gy), _map(gx), _address(sites), *map(_address, divisors))


def channel_sum(plane: Plane, x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Products summed over channels, for all windows, written to out (n, filters, windows, kh, kw), contiguous."""
    packed = _plain(weight)
    _ready(plane).channel_sum(x.shape[0], x.shape[1], weight.shape[0], _map(x), _address(packed), _address(out))


def channel_sum_backward(plane: Plane, gy: Tensor, x: Tensor, weight: Tensor, gx: Tensor | None, gw: Tensor | None) -> None:
    """Adds the gradient to gx, which holds zeros, and writes gw, contiguous; either may be None: not wanted."""
    packed, given = _plain(weight), _plain(gy)
    _ready(plane).channel_sum_backward(
        x.shape[0],
        x.shape[1],
        weight.shape[0],
        _address(given),
        _map(x),
        _address(packed),
        NOTHING if gx is None else _map(gx),
        _address(gw),
    )
