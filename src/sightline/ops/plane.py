"""The geometry of one operator on maps of one size: tables of taps, worked out once and kept.

What belongs here: sizes and tables. What does not: values (`sightline.ops.gather`, `sightline.ops.native`).
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline import kernels
from sightline.footprint import AxisTaps
from sightline.geometry import PaddingMode, Window


class Plane:
    """A window along both axes over maps of `size`.

    Args:
        windows: (vertical, horizontal).
        size: (h, w) of the input.
        mode: what stands in the padding.
        ceil_mode: round output sizes up (pooling).

    Raises:
        ShapeError: the window does not fit the input.
    """

    def __init__(self, windows: tuple[Window, Window], size: tuple[int, int], mode: PaddingMode = "zeros", ceil_mode: bool = False) -> None:
        self.windows, self.size = windows, size
        self.rows, self.cols = (
            AxisTaps.window(window, n, window.out_size(n, ceil_mode=ceil_mode), mode) for window, n in zip(windows, size, strict=True)
        )
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def out_size(self) -> tuple[int, int]:
        """(h, w) of the output."""
        return self.rows.n_out, self.cols.n_out

    @property
    def taps(self) -> int:
        """Inputs per output."""
        return self.rows.k * self.cols.k

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows (h_out, kh) and columns (w_out, kw) that are read, -1 for none, as int64 on a device."""
        if device not in self._tables:
            self._tables[device] = tuple(torch.from_numpy(axis.index.astype(np.int64)).to(device) for axis in (self.rows, self.cols))  # type: ignore[assignment]
        return self._tables[device]

    @cached_property
    def native(self) -> Any:
        """The compiled counterpart, or None where the library cannot be used or the map is too large for it."""
        module = kernels.native()
        if module is None or max(self.out_size) > 65535:
            return None
        periods = [window.stride if window.transposed else 1 for window in self.windows]
        return module.EagerWindow(
            kernels.isa(), *self.size, *self.out_size, self.rows.k, self.cols.k,
            self.rows.index.ctypes.data, self.cols.index.ctypes.data, *periods,
        )  # fmt: skip

    def divisors(self, count_include_pad: bool, override: int | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What average pooling divides the sum of output (y, x) by, as one factor per row and one per column."""
        if override is not None:
            return np.full(self.out_size[0], override, np.float32), np.ones(self.out_size[1], np.float32)
        found = []
        for axis, window, n in zip((self.rows, self.cols), self.windows, self.size, strict=True):
            if count_include_pad:  # the padding counts, what ceil_mode adds behind it does not
                start = np.arange(axis.n_out) * window.stride - window.before
                found.append((np.minimum(start + window.kernel, n + window.after) - start).astype(np.float32))
            else:
                found.append((axis.index >= 0).sum(1).astype(np.float32))
        return found[0], found[1]


@functools.lru_cache(maxsize=256)
def _plane(
    geometry: tuple[tuple[int, int, int, int, int, int], ...], size: tuple[int, int], transposed: bool, mode: PaddingMode, ceil_mode: bool
) -> Plane:
    windows = tuple(
        Window(kernel, stride, (before, after), dilation, transposed, output_padding)
        for kernel, stride, before, after, dilation, output_padding in geometry
    )
    return Plane(windows, size, mode, ceil_mode)  # type: ignore[arg-type]


# Compiled counterparts must go before the interpreter does.
atexit.register(_plane.cache_clear)


def plane(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    transposed: bool = False,
    output_padding: Sequence[int] = (0, 0),
    mode: str = "zeros",
    ceil_mode: bool = False,
) -> Plane:
    """The `Plane` of an operator; the same one for the same arguments.

    Args:
        size: (h, w) of the input.
        kernel: (kh, kw).
        stride: (y, x).
        padding: (top, bottom, left, right).
        dilation: (y, x).
        transposed: of a transposed convolution.
        output_padding: (y, x), transposed only.
        mode: what stands in the padding.
        ceil_mode: round output sizes up.

    Raises:
        ShapeError: an argument out of range, or no output would be left.
    """
    geometry = tuple(
        (int(kernel[i]), int(stride[i]), int(padding[2 * i]), int(padding[2 * i + 1]), int(dilation[i]), int(output_padding[i]))
        for i in range(2)
    )
    return _plane(geometry, (int(size[0]), int(size[1])), transposed, mode, ceil_mode)
