"""What an output reads, on whole maps: from changed inputs to outputs, and from wanted outputs to inputs.

A *footprint* has two methods, adjoint to each other: ``outputs_of(sites)``, the outputs that can change if these inputs change, and
``inputs_of(sites)``, the inputs that these outputs need. There are three kinds: `Pointwise`, `Global`, and `WindowFootprint`, which is
separable (a table of taps per axis) and covers everything from convolution to bicubic upsampling. The tables are built here; those
that interpolate carry their weights too, so that an executor computes exactly what the footprint says it reads.

What does not belong here: which footprint a node of a graph has (`sightline.graph.rules`), and integer window arithmetic
(`sightline.geometry`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch.nn import functional

from sightline.errors import DTypeError, ShapeError
from sightline.geometry import PaddingMode, Window, adaptive_bins
from sightline.sites import Grid, Sites

ResampleMode = Literal["nearest", "bilinear", "bicubic"]
"""The modes of ``torch.nn.functional.interpolate`` that have tables here."""


@dataclass(frozen=True, eq=False)
class AxisTaps:
    """For every output of one axis, the inputs that it reads.

    Args:
        index: int32 (n_out, k), made read-only: input read by tap j of output o, or -1 for none. An input may occur twice in a row.
        n_in: number of inputs.
        weights: floating (n_out, k), the factor of each tap where the table itself says it (interpolation); else None.

    Raises:
        ShapeError: a table without outputs or taps, with an index outside -1 ... n_in - 1, or weights of another shape.
        DTypeError: an index that is not made of integers.

    Example:
        >>> AxisTaps.window(Window(3, stride=2, padding=1), 4).index.tolist()
        [[-1, 0, 1], [1, 2, 3]]
    """

    index: NDArray[np.int32]
    n_in: int
    weights: NDArray[np.floating[Any]] | None = None
    _on_device: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        given = np.asarray(self.index)
        if not np.issubdtype(given.dtype, np.integer):
            raise DTypeError(f"index: expected integers, got {given.dtype}")
        if given.ndim != 2 or 0 in given.shape:
            raise ShapeError(f"index: expected (n_out, k) with at least one output and one tap, got {given.shape}")
        if given.min() < -1 or given.max() >= self.n_in:
            raise ShapeError(f"index: expected numbers from -1 to {self.n_in - 1}, got {given.min()} to {given.max()}")
        if self.weights is not None and self.weights.shape != given.shape:
            raise ShapeError(f"weights: expected the shape of index, {given.shape}, got {self.weights.shape}")
        table = np.array(given, dtype=np.int32, order="C")
        table.setflags(write=False)
        object.__setattr__(self, "index", table)

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return int(self.index.shape[0])

    @property
    def k(self) -> int:
        """Number of taps."""
        return int(self.index.shape[1])

    # -- tables -------------------------------------------------------------------------------------------------------------------

    @classmethod
    def window(cls, window: Window, n_in: int, n_out: int | None = None, mode: PaddingMode = "zeros") -> AxisTaps:
        """The taps of a `Window`: convolution, pooling, pad, crop, strided slice; see `Window.taps` for arguments and errors."""
        return cls(np.array(window.taps(n_in, n_out, mode), np.int32), n_in)

    @classmethod
    def gather(cls, source: ArrayLike, n_in: int) -> AxisTaps:
        """One tap per output, as listed: roll, flip, pixel shuffle (``np.arange(n * r) // r``), broadcasting.

        Args:
            source: integers (n_out,), the input that each output copies, or -1.
            n_in: number of inputs.

        Example:
            >>> AxisTaps.gather(np.roll(np.arange(4), 1), 4).index.ravel().tolist()
            [3, 0, 1, 2]
        """
        return cls(np.asarray(source).reshape(-1, 1), n_in)

    @classmethod
    def adaptive(cls, n_in: int, n_out: int) -> AxisTaps:
        """The bins of adaptive pooling, the shorter ones filled up with -1; see `sightline.geometry.adaptive_bins`.

        Example:
            >>> AxisTaps.adaptive(5, 2).index.tolist(), AxisTaps.adaptive(4, 3).k
            ([[0, 1, 2], [2, 3, 4]], 2)
        """
        lo, hi = np.array(adaptive_bins(n_in, n_out)).T[:, :, None]
        index = lo + np.arange((hi - lo).max())
        return cls(np.where(index < hi, index, -1), n_in)

    @classmethod
    def nearest(cls, n_in: int, n_out: int, scale: float | None = None, *, small: bool = True, dtype: DTypeLike = np.float32) -> AxisTaps:
        """One tap per output, as ``interpolate(mode="nearest")`` picks it on the CPU.

        torch has two kernels that round ``floor(o * n_in / n_out)`` differently. The one for small maps takes float32 always, and
        exact halves if an axis keeps or doubles its size, whatever the scale. The other rounds in the map's own precision. They
        disagree where a given scale contradicts the sizes (2.125 from 5 to 10), and for float64 maps at a few sizes (45 to 129).

        Args:
            n_in: number of inputs.
            n_out: number of outputs.
            scale: the scale factor if the caller gave one to torch (it is then used in place of n_out / n_in); else None.
            small: torch takes the kernel for small maps: output rows + columns are at most 128, or the map lies channels-last in memory
                and has more than 3 channels.
            dtype: float32 or float64, of the map; without effect if `small`. torch takes float32 for half-precision maps.

        Raises:
            ShapeError: a size below 1, or a scale that is not positive.
            DTypeError: another dtype.

        Example:
            >>> AxisTaps.nearest(2, 5).index.ravel().tolist()
            [0, 0, 0, 1, 1]
        """
        precision = np.dtype(np.float32) if small else _floating(dtype)
        ratio = _ratio(n_in, n_out, scale, precision)
        if small and n_out in (n_in, 2 * n_in):
            return cls.gather(np.arange(n_out) // (n_out // n_in), n_in)
        position = np.arange(n_out, dtype=precision) * precision.type(ratio)
        # torch calls the float32 floor even for float64 positions, which lifts one that is a hair below a whole number
        return cls.gather(np.minimum(np.floor(position.astype(np.float32)).astype(np.int64), n_in - 1), n_in)

    @classmethod
    def linear(
        cls, n_in: int, n_out: int, *, align_corners: bool = False, scale: float | None = None, dtype: DTypeLike = np.float32
    ) -> AxisTaps:
        """Two taps and their weights per output, as one axis of ``interpolate(mode="bilinear")`` has them.

        Args:
            n_in: number of inputs.
            n_out: number of outputs.
            align_corners: the end cells of both sides coincide, instead of their outer edges.
            scale: the scale factor if the caller gave one to torch; else None. Without effect with `align_corners`.
            dtype: float32 or float64, in which positions are rounded and weights returned. torch takes float32 for half-precision maps.

        Returns:
            A table with weights. An input may appear with weight 0, and torch multiplies it all the same (NaN spreads).

        Raises:
            ShapeError: a size below 1, or a scale that is not positive.
            DTypeError: another dtype.

        Example:
            >>> taps = AxisTaps.linear(2, 4)
            >>> taps.index.tolist()
            [[0, 1], [0, 1], [0, 1], [1, 1]]
            >>> taps.weights.tolist()
            [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.75, 0.25]]
        """
        first, part = _source(n_in, n_out, align_corners, scale, _floating(dtype), clamp=True)
        if n_in == n_out:  # torch copies then, whatever the scale, and reads no neighbour
            first, part = np.arange(n_out), np.zeros_like(part)
            return cls(np.stack([first, first], axis=1), n_in, np.stack([1 - part, part], axis=1))
        return cls(np.stack([first, np.minimum(first + 1, n_in - 1)], axis=1), n_in, np.stack([1 - part, part], axis=1))

    @classmethod
    def cubic(
        cls, n_in: int, n_out: int, *, align_corners: bool = False, scale: float | None = None, dtype: DTypeLike = np.float32
    ) -> AxisTaps:
        """Four taps and their weights per output, as one axis of ``interpolate(mode="bicubic")`` has them (Keys' kernel, a = -0.75).

        Arguments, results and errors as for `linear`; at the ends taps fall on the same input and their weights add up.

        Example:
            >>> taps = AxisTaps.cubic(4, 8)
            >>> taps.index[3].tolist(), taps.weights[3].tolist()
            ([0, 1, 2, 3], [-0.10546875, 0.87890625, 0.26171875, -0.03515625])
        """
        first, part = _source(n_in, n_out, align_corners, scale, _floating(dtype), clamp=False)
        offsets = np.arange(-1, 3)
        distance = np.abs(part[:, None] - offsets.astype(part.dtype))
        near = (1.25 * distance - 2.25) * distance * distance + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        weights = np.where((offsets == 0) | (offsets == 1), near, far)
        return cls(np.clip(first[:, None] + offsets, 0, n_in - 1), n_in, weights.astype(part.dtype))

    # -- use ----------------------------------------------------------------------------------------------------------------------

    @cached_property
    def inverse(self) -> AxisTaps:
        """The same relation from the other side: for every input, the outputs that read it; no weights."""
        outputs, taps = np.nonzero(self.index >= 0)
        pairs = np.unique(self.index[outputs, taps].astype(np.int64) * self.n_out + outputs)
        inputs, outputs = pairs // self.n_out, pairs % self.n_out
        counts = np.bincount(inputs, minlength=self.n_in)
        slot = np.arange(len(inputs)) - np.repeat(np.cumsum(counts) - counts, counts)
        index = np.full((self.n_in, max(int(counts.max()), 1)), -1, np.int32)
        index[inputs, slot] = outputs
        return AxisTaps(index, self.n_out)

    @cached_property
    def is_identity(self) -> bool:
        """Every output reads just the input of its own number."""
        own = np.arange(self.n_out)[:, None]
        return self.n_in == self.n_out and bool(np.all(self.index == own))

    def any(self, mask: torch.Tensor, dim: int) -> torch.Tensor:
        """Along `dim`, for every output: is the mask True at any input that it reads?

        Args:
            mask: bool, with n_in cells along `dim`; any device.
            dim: not negative.

        Returns:
            Bool, with n_out cells along `dim`; may be `mask` itself.
        """
        if self.is_identity:
            return mask
        table = self._on_device.get(mask.device)
        if table is None:
            # a tap that reads nothing reads the cell of zeros that is appended below
            rows = np.where(self.index < 0, self.n_in, self.index).T
            table = self._on_device[mask.device] = torch.from_numpy(rows.astype(np.int32)).to(mask.device)
        if int(self.index.min()) < 0:
            mask = functional.pad(mask, [0, 0] * (mask.dim() - 1 - dim) + [0, 1])
        if self.k > 32:  # many taps, few outputs (adaptive pooling): one gather instead of a loop
            taken = mask.index_select(dim, table.T.reshape(-1))
            return taken.reshape(*mask.shape[:dim], self.n_out, self.k, *mask.shape[dim + 1 :]).any(dim + 1)
        result = mask.index_select(dim, table[0])
        for row in table[1:]:
            result |= mask.index_select(dim, row)
        return result


def _ratio(n_in: int, n_out: int, scale: float | None, dtype: np.dtype[Any]) -> float:
    """Inputs per output in the given precision, after checking the arguments that all tables share."""
    if n_in < 1 or n_out < 1:
        raise ShapeError(f"n_in, n_out: expected at least 1 each, got {n_in} and {n_out}")
    if scale is not None and not scale > 0:
        raise ShapeError(f"scale: expected a positive factor or None, got {scale}")
    if scale is None:
        return float(dtype.type(n_in) / dtype.type(n_out))
    return float(dtype.type(1.0 / scale))


def _floating(dtype: DTypeLike) -> np.dtype[Any]:
    result = np.dtype(dtype)
    if result not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise DTypeError(f"dtype: expected float32 or float64, got {result}; torch takes float32 for half-precision maps")
    return result


def _source(
    n_in: int, n_out: int, align_corners: bool, scale: float | None, dtype: np.dtype[Any], clamp: bool
) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
    """Cell in front of each output's position on the input axis, and how far behind it the position lies (0 to 1, in `dtype`)."""
    ratio = _ratio(n_in, n_out, scale, dtype)
    output = np.arange(n_out, dtype=np.float64)
    if align_corners:
        step = dtype.type(n_in - 1) / dtype.type(n_out - 1) if n_out > 1 else dtype.type(0)
        position = (output * float(step)).astype(dtype)
    else:
        # float32: double here and rounded once, which is what the fused multiply-add of torch's kernels does
        position = (ratio * (output + 0.5) - 0.5).astype(dtype)
    if clamp:
        position = np.maximum(position, dtype.type(0))
    first = np.minimum(np.floor(position).astype(np.int64), n_in - 1)
    return first, np.clip(position - first.astype(dtype), 0, 1).astype(dtype)


class Footprint(Protocol):
    """What an op reads: the relation between the positions of its input and those of its output, seen from both sides."""

    @property
    def in_grid(self) -> Grid:
        """Positions of the input."""

    @property
    def out_grid(self) -> Grid:
        """Positions of the output."""

    def outputs_of(self, sites: Sites) -> Sites:
        """Outputs that read any of these inputs, so that can change if they change."""

    def inputs_of(self, sites: Sites) -> Sites:
        """Inputs that any of these outputs reads, so that must be valid to compute them."""


def _check(sites: Sites, grid: Grid, side: str) -> Sites:
    if sites.grid != grid:
        raise ShapeError(f"sites: expected sites on the {side} {grid}, got {sites.grid}; bring them over with resize(h, w)")
    return sites


@dataclass(frozen=True)
class Pointwise:
    """Output (y, x) reads input (y, x): activations, arithmetic, per-channel scale, channel shuffles."""

    grid: Grid

    @property
    def in_grid(self) -> Grid:
        """Positions of the input."""
        return self.grid

    @property
    def out_grid(self) -> Grid:
        """Positions of the output: the same."""
        return self.grid

    def outputs_of(self, sites: Sites) -> Sites:
        """The same positions."""
        return _check(sites, self.grid, "input")

    def inputs_of(self, sites: Sites) -> Sites:
        """The same positions."""
        return _check(sites, self.grid, "output")


@dataclass(frozen=True)
class Global:
    """Every output of a batch element reads every input of it: global pooling, attention, a gate spread over a map.

    Raises:
        ShapeError: the grids have different batch sizes.

    Example:
        >>> pool = Global(Grid(2, 8, 8), Grid(2, 1, 1))
        >>> pool.outputs_of(Sites.from_boxes(pool.in_grid, [(1, 5, 5, 6, 6)])).index().tolist()
        [[1, 0, 0]]
    """

    in_grid: Grid
    out_grid: Grid

    def __post_init__(self) -> None:
        _check_batch(self.in_grid, self.out_grid)

    def outputs_of(self, sites: Sites) -> Sites:
        """All outputs of the batch elements that have any of these inputs."""
        return self._spread(_check(sites, self.in_grid, "input"), self.out_grid)

    def inputs_of(self, sites: Sites) -> Sites:
        """All inputs of the batch elements that have any of these outputs."""
        return self._spread(_check(sites, self.out_grid, "output"), self.in_grid)

    @staticmethod
    def _spread(sites: Sites, grid: Grid) -> Sites:
        return Sites(sites.mask.flatten(1).any(1)[:, None, None].expand(grid.shape).contiguous())


def _check_batch(in_grid: Grid, out_grid: Grid) -> None:
    if in_grid.n != out_grid.n:
        raise ShapeError(f"out_grid: expected the batch size of in_grid, {in_grid.n}, got {out_grid.n}")


@dataclass(frozen=True, eq=False)
class WindowFootprint:
    """Output (y, x) reads the inputs (rows.index[y][i], cols.index[x][j]) for all i and j, in its own batch element.

    Args:
        rows: taps of the vertical axis.
        cols: taps of the horizontal axis.
        in_grid: positions of the input.
        out_grid: positions of the output.

    Raises:
        ShapeError: the tables do not belong to the grids, or the grids have different batch sizes.

    *Exact when* every weight may be non-zero. *Cost*: one pass over a bool map per tap and axis, no reading back from the device.

    Example:
        >>> conv = WindowFootprint.from_windows(Window(3, padding=1), Window(3, padding=1), n=1, h=8, w=8)
        >>> pixel = Sites.from_boxes(conv.in_grid, [(4, 0, 5, 1)])
        >>> conv.outputs_of(pixel).box, conv.inputs_of(pixel).box
        ((3, 0, 6, 2), (3, 0, 6, 2))
    """

    rows: AxisTaps
    cols: AxisTaps
    in_grid: Grid
    out_grid: Grid

    def __post_init__(self) -> None:
        _check_batch(self.in_grid, self.out_grid)
        tables = (self.rows.n_in, self.cols.n_in), (self.rows.n_out, self.cols.n_out)
        grids = (self.in_grid.h, self.in_grid.w), (self.out_grid.h, self.out_grid.w)
        if tables != grids:
            raise ShapeError(f"rows, cols: the tables lead from {tables[0]} to {tables[1]}, the grids from {grids[0]} to {grids[1]}")

    @classmethod
    def separable(cls, rows: AxisTaps, cols: AxisTaps, n: int) -> WindowFootprint:
        """From one table per axis and the batch size; the grids follow from the tables."""
        return cls(rows, cols, Grid(n, rows.n_in, cols.n_in), Grid(n, rows.n_out, cols.n_out))

    @classmethod
    def from_windows(
        cls, window_y: Window, window_x: Window, n: int, h: int, w: int, mode: PaddingMode = "zeros", *, ceil_mode: bool = False
    ) -> WindowFootprint:
        """Convolution, pooling, transposed convolution, pad, crop or strided slice of a map.

        Args:
            window_y: vertical window.
            window_x: horizontal window.
            n: batch size.
            h: rows of the input.
            w: columns of the input.
            mode: what stands in the padding, as in `Window.taps`.
            ceil_mode: round the output size up (pooling).

        Raises:
            ShapeError: as `Window.out_size` and `Window.taps`.
        """
        rows, cols = (
            AxisTaps.window(window, size, window.out_size(size, ceil_mode=ceil_mode), mode)
            for window, size in ((window_y, h), (window_x, w))
        )
        return cls.separable(rows, cols, n)

    @classmethod
    def resample(
        cls,
        mode: ResampleMode,
        in_grid: Grid,
        size: tuple[int, int],
        *,
        align_corners: bool = False,
        scales: tuple[float | None, float | None] | None = None,
        dtype: DTypeLike = np.float32,
        channels_last: bool = False,
    ) -> WindowFootprint:
        """``torch.nn.functional.interpolate`` to a size; bilinear and bicubic tables carry weights.

        Args:
            mode: "nearest", "bilinear" or "bicubic".
            in_grid: positions of the input.
            size: (h, w) of the output.
            align_corners: as in torch; not for nearest.
            scales: (y, x) scale factors if torch got them instead of a size; None: from the sizes.
            dtype: float32 or float64: of the weights, as in `AxisTaps.linear`, and of the map, as in `AxisTaps.nearest`.
            channels_last: the map lies channels-last in memory and has more than 3 channels; matters to "nearest" only.

        Raises:
            ShapeError: an unknown mode, a size below 1, or a scale that is not positive.

        Example:
            >>> up = WindowFootprint.resample("nearest", Grid(1, 4, 4), (8, 8))
            >>> up.outputs_of(Sites.from_boxes(up.in_grid, [(1, 1, 2, 2)])).box
            (2, 2, 4, 4)
        """
        factors = scales if scales is not None else (None, None)
        axes = list(zip((in_grid.h, in_grid.w), size, factors, strict=True))
        if mode == "nearest":
            small = channels_last or sum(size) <= 128
            rows, cols = (AxisTaps.nearest(n_in, n_out, scale, small=small, dtype=dtype) for n_in, n_out, scale in axes)
        elif mode in ("bilinear", "bicubic"):
            table = AxisTaps.linear if mode == "bilinear" else AxisTaps.cubic
            rows, cols = (table(n_in, n_out, align_corners=align_corners, scale=scale, dtype=dtype) for n_in, n_out, scale in axes)
        else:
            raise ShapeError(f"mode: expected 'nearest', 'bilinear' or 'bicubic', got {mode!r}")
        return cls.separable(rows, cols, in_grid.n)

    @classmethod
    def adaptive(cls, in_grid: Grid, size: tuple[int, int]) -> WindowFootprint:
        """Adaptive pooling to ``(h, w)``."""
        return cls.separable(AxisTaps.adaptive(in_grid.h, size[0]), AxisTaps.adaptive(in_grid.w, size[1]), in_grid.n)

    def outputs_of(self, sites: Sites) -> Sites:
        """Outputs that read any of these inputs."""
        mask = _check(sites, self.in_grid, "input").mask
        return Sites(self.cols.any(self.rows.any(mask, 1), 2))

    def inputs_of(self, sites: Sites) -> Sites:
        """Inputs that any of these outputs reads."""
        mask = _check(sites, self.out_grid, "output").mask
        return Sites(self.cols.inverse.any(self.rows.inverse.any(mask, 1), 2))


def union(sites: Iterable[Sites]) -> Sites:
    """All positions that are in at least one of the sets: where an op with several operands (add, cat) can change.

    Args:
        sites: at least one set, all on one grid and device.

    Returns:
        The union.

    Raises:
        ShapeError: none given, or different grids.
        DeviceError: different devices.

    Example:
        >>> grid = Grid(1, 2, 2)
        >>> union([Sites.empty(grid), Sites.full(grid)]).density
        1.0
    """
    parts = iter(sites)
    result = next(parts, None)
    if result is None:
        raise ShapeError("sites: expected at least one set, got none; use Sites.empty(grid)")
    for part in parts:
        result = result | part
    return result
