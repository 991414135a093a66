"""Where to compute: `Sites`, an immutable set of positions on a `Grid`.

What does not belong here: which positions another layer needs (`sightline.footprint`), and lists or tiles made from a mask for
one executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index as as_index
from typing import Literal

import torch
from torch.nn import functional

from sightline.errors import DeviceError, DTypeError, ShapeError
from sightline.geometry import Interval, adaptive_bins

Box = tuple[int, int, int, int]
"""Half-open ``(y0, x0, y1, x1)``."""


@dataclass(frozen=True)
class Grid:
    """The positions of a map: `n` batch elements of `h` rows and `w` columns (channels are not positions).

    Raises:
        ShapeError: a size below 1.
        DTypeError: a size that is not an int.

    Example:
        >>> Grid(2, 3, 4).size
        24
    """

    n: int
    h: int
    w: int

    def __post_init__(self) -> None:
        for name in ("n", "h", "w"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise DTypeError(f"Grid.{name}: expected an int, got {value!r}")
            if value < 1:
                raise ShapeError(f"Grid.{name}: expected at least 1, got {value}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(n, h, w)``."""
        return self.n, self.h, self.w

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.n * self.h * self.w


class Sites:
    """An immutable set of positions on a grid: the outputs to compute, or the inputs that changed.

    Build one with `from_mask`, `from_boxes`, `full` or `empty`, and combine with ``& | ~ -``. Sets are exact per pixel and live on any
    device; two that are combined must share grid and device. They are compared by content, so they cannot be dictionary keys.
    Unless a method says that it waits for the device, it does not.

    Example:
        >>> grid = Grid(1, 4, 6)
        >>> left = Sites.from_boxes(grid, [(0, 0, 4, 2)])
        >>> left
        Sites(n=1, h=4, w=6, device='cpu')
        >>> left.count(), (~left).box, left.grow(1).density
        (8, (0, 2, 4, 6), 0.5)
    """

    __slots__ = ("_grid", "_mask")

    _grid: Grid
    _mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        """Take over a bool mask (n, h, w) without a copy; prefer `from_mask`, which copies.

        Args:
            mask: bool (n, h, w); the caller must not write to it any more.
        """
        if mask.dtype != torch.bool:
            raise DTypeError(f"mask: expected torch.bool, got {mask.dtype}; pass `mask != 0`")
        if mask.dim() != 3:
            raise ShapeError(f"mask: expected (n, h, w), got {tuple(mask.shape)}")
        self._grid = Grid(*mask.shape)
        self._mask = mask.detach()

    # -- making one ---------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_mask(cls, mask: torch.Tensor, grid: Grid | None = None) -> Sites:
        """The positions where a mask is True; the mask is copied.

        Args:
            mask: bool tensor (h, w) or (n, h, w).
            grid: where the positions lie; None: the mask's own size, with n = 1 for (h, w). A mask (h, w) or (1, h, w) stands for
                every batch element of the grid.

        Returns:
            The set, on the mask's device.

        Raises:
            DTypeError: not a bool tensor.
            ShapeError: neither (h, w) nor (n, h, w), or not the grid's size.

        Example:
            >>> Sites.from_mask(torch.tensor([[True, False]]), Grid(3, 1, 2)).count()
            3
        """
        if not isinstance(mask, torch.Tensor):
            raise DTypeError(f"mask: expected a bool torch.Tensor, got {type(mask).__name__}; wrap it in torch.as_tensor")
        if mask.dtype != torch.bool:
            raise DTypeError(f"mask: expected torch.bool, got {mask.dtype}; pass `mask != 0`, or `mask > level` for a soft mask")
        if mask.dim() not in (2, 3):
            raise ShapeError(f"mask: expected (h, w) or (n, h, w), got {tuple(mask.shape)}; drop the channel axis, e.g. `mask.any(1)`")
        full = mask if mask.dim() == 3 else mask[None]
        if grid is not None:
            if tuple(full.shape[1:]) != (grid.h, grid.w):
                raise ShapeError(
                    f"mask: expected {grid.h} x {grid.w} as in the grid, got {full.shape[1]} x {full.shape[2]}; "
                    "build it without a grid and call resize(h, w)"
                )
            if full.shape[0] not in (1, grid.n):
                raise ShapeError(f"mask: expected 1 or {grid.n} batch elements as in the grid, got {full.shape[0]}")
            full = full.expand(grid.n, -1, -1)
        return cls(full.clone(memory_format=torch.contiguous_format))

    @classmethod
    def from_boxes(cls, grid: Grid, boxes: Sequence[Sequence[int]] | torch.Tensor, device: torch.device | str | None = None) -> Sites:
        """All positions inside at least one box.

        Args:
            grid: where the positions lie.
            boxes: half-open ``(y0, x0, y1, x1)`` for every batch element, or ``(b, y0, x0, y1, x1)`` for batch element b only; a
                sequence or an integer tensor (k, 4) or (k, 5) (read on the host, which waits for the device). What
                lies outside the grid is cut off. No boxes: the empty set.
            device: of the result; None: the CPU.

        Returns:
            The set.

        Raises:
            ShapeError: a box of another length, with its end before its start, or of a batch element that does not exist.
            DTypeError: a coordinate that is not an integer.

        Example:
            >>> Sites.from_boxes(Grid(2, 4, 4), [(1, 0, 0, 2, 2), (0, 3, 1, 9)]).count()
            6
        """
        mask = torch.zeros(grid.shape, dtype=torch.bool)
        for box in boxes.tolist() if isinstance(boxes, torch.Tensor) else boxes:
            if len(box) not in (4, 5):
                raise ShapeError(f"boxes: expected (y0, x0, y1, x1) or (b, y0, x0, y1, x1), got {tuple(box)}")
            try:
                y0, x0, y1, x1 = (as_index(value) for value in box[-4:])
                first = as_index(box[0]) if len(box) == 5 else None
            except TypeError:
                raise DTypeError(f"boxes: expected integers, got {tuple(box)}; round the start down and the end up") from None
            if y1 < y0 or x1 < x0:
                raise ShapeError(f"boxes: (y0, x0, y1, x1) must have y0 <= y1 and x0 <= x1, got {(y0, x0, y1, x1)}; is it (x, y) order?")
            if first is not None and not 0 <= first < grid.n:
                raise ShapeError(f"boxes: batch element {first} does not exist on {grid}")
            images = slice(None) if first is None else first
            mask[images, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
        return cls(mask if device is None else mask.to(device))

    @classmethod
    def full(cls, grid: Grid, device: torch.device | str | None = None) -> Sites:
        """Every position of the grid."""
        return cls(torch.ones(grid.shape, dtype=torch.bool, device=device))

    @classmethod
    def empty(cls, grid: Grid, device: torch.device | str | None = None) -> Sites:
        """No position of the grid."""
        return cls(torch.zeros(grid.shape, dtype=torch.bool, device=device))

    # -- reading it ---------------------------------------------------------------------------------------------------------------

    @property
    def grid(self) -> Grid:
        """Where the positions lie."""
        return self._grid

    @property
    def device(self) -> torch.device:
        """Device of the mask."""
        return self._mask.device

    @property
    def mask(self) -> torch.Tensor:
        """Bool (n, h, w), True at the positions of the set. It is the set's own storage: read it, never write to it."""
        return self._mask

    @property
    def density(self) -> float:
        """Fraction of the grid's positions in the set, 0 to 1. Waits for the device."""
        return self.count() / self._grid.size

    @property
    def box(self) -> Box | None:
        """Smallest box (y0, x0, y1, x1), half-open, around the positions of all batch elements; None if empty. Waits for the device."""
        seen = self._mask.any(0)
        rows, columns = seen.any(1).nonzero().flatten().tolist(), seen.any(0).nonzero().flatten().tolist()
        return (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if rows else None

    def count(self) -> int:
        """Number of positions in the set. Waits for the device."""
        return int(self._mask.count_nonzero())

    def index(self) -> torch.Tensor:
        """The positions as int64 (k, 3), each row (n, y, x), in ascending order. Waits for the device."""
        return self._mask.nonzero()

    def to(self, device: torch.device | str) -> Sites:
        """The same set on another device; itself if it is there already."""
        moved = self._mask.to(device)
        return self if moved is self._mask else Sites(moved)

    def __repr__(self) -> str:
        n, h, w = self._grid.shape
        return f"Sites(n={n}, h={h}, w={w}, device='{self.device}')"

    # -- algebra ------------------------------------------------------------------------------------------------------------------

    def _same(self, other: Sites) -> torch.Tensor:
        if self._grid != other._grid:
            raise ShapeError(f"sites: both sets must lie on one grid, got {self._grid} and {other._grid}; bring one over with resize(h, w)")
        if self.device != other.device:
            raise DeviceError(
                f"sites: both sets must be on one device, got {self.device} and {other.device}; call .to({str(self.device)!r})"
            )
        return other._mask

    def __and__(self, other: Sites) -> Sites:
        return Sites(self._mask & self._same(other)) if isinstance(other, Sites) else NotImplemented

    def __or__(self, other: Sites) -> Sites:
        return Sites(self._mask | self._same(other)) if isinstance(other, Sites) else NotImplemented

    def __sub__(self, other: Sites) -> Sites:
        return Sites(self._mask & ~self._same(other)) if isinstance(other, Sites) else NotImplemented

    def __invert__(self) -> Sites:
        return Sites(~self._mask)

    def __eq__(self, other: object) -> bool:
        """Same grid and same positions, on whatever devices. Waits for the device."""
        if not isinstance(other, Sites):
            return NotImplemented
        return self._grid == other._grid and torch.equal(self._mask, other._mask.to(self.device))

    __hash__ = None  # type: ignore[assignment]  # a hash of the content would have to wait for the device

    # -- other grids --------------------------------------------------------------------------------------------------------------

    def resize(self, h: int, w: int, mode: Literal["any", "nearest"] = "any") -> Sites:
        """The same area on a grid of another resolution, finer or coarser.

        Args:
            h: rows of the new grid.
            w: columns of the new grid.
            mode: "any": a new cell is in the set if it overlaps any old one that is, by however little, so that nothing is lost.
                "nearest": the old cell that ``torch.nn.functional.interpolate(mode="nearest")`` picks, which may lose small areas.

        Returns:
            The set on ``Grid(n, h, w)``.

        Raises:
            ShapeError: a size below 1, or an unknown mode.

        Example:
            >>> pixel = Sites.from_boxes(Grid(1, 8, 8), [(3, 3, 4, 4)])
            >>> pixel.resize(4, 4).box, pixel.resize(4, 4, mode="nearest").box, pixel.resize(16, 16).box
            ((1, 1, 2, 2), None, (6, 6, 8, 8))
        """
        grid = Grid(self._grid.n, h, w)
        if mode == "any":
            rows = _any_between(self._mask, 1, adaptive_bins(self._grid.h, grid.h))
            return Sites(_any_between(rows, 2, adaptive_bins(self._grid.w, grid.w)))
        if mode == "nearest":
            bytes_ = self._mask[:, None].to(torch.uint8)
            return Sites(functional.interpolate(bytes_, size=(grid.h, grid.w), mode="nearest")[:, 0] != 0)
        raise ShapeError(f"mode: expected 'any' or 'nearest', got {mode!r}")

    def grow(self, radius: int | tuple[int, int]) -> Sites:
        """The set and everything within a number of rows and columns of it (a rectangular dilation).

        Args:
            radius: cells in every direction, or (rows, columns); at least 0.

        Returns:
            The larger set, on the same grid.

        Raises:
            ShapeError: a negative radius, or not one or two numbers.

        Example:
            >>> Sites.from_boxes(Grid(1, 9, 9), [(4, 4, 5, 5)]).grow((1, 3)).box
            (3, 1, 6, 8)
        """
        pair = radius if isinstance(radius, tuple) else (radius, radius)
        if len(pair) != 2 or min(pair) < 0:
            raise ShapeError(f"radius: expected a number of at least 0 or a pair (rows, columns), got {radius!r}")
        mask = self._mask
        for dim, (n, r) in enumerate(zip(self._grid.shape[1:], pair, strict=True), start=1):
            if r:
                mask = _any_between(mask, dim, [(max(i - r, 0), min(i + r + 1, n)) for i in range(n)])
        return Sites(mask)


def _any_between(mask: torch.Tensor, dim: int, intervals: Sequence[Interval]) -> torch.Tensor:
    """For each half-open interval along `dim`: is any cell of the mask in it True?

    The difference of two running counts answers that at a cost that does not depend on the intervals' lengths.
    """
    ends = torch.tensor(intervals, device=mask.device).T
    counts = functional.pad(mask.cumsum(dim, dtype=torch.int32), (0, 0, 1, 0) if dim == 1 else (1, 0))
    return counts.index_select(dim, ends[1]) > counts.index_select(dim, ends[0])
