"""What the units of one axis read: the sets of input cells behind every position of a feature map.

A `sightline.geometry.ReceptiveField` knows the first and the last cell that a unit sees. `Units` knows every cell in between as
well (dilation leaves holes), and also maps that do not repeat themselves (rolled, flipped, glued together, pooled to uneven bins).

What belongs here: sets of cells along one axis. What does not: which layer reads which units (`sightline.fields.views` and
`sightline.fields.propagate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

from sightline.geometry import Interval, ReceptiveField, Window

Cells = tuple[int, int]
"""``(lo, mask)``: bit i of the mask says that cell lo + i is read. An empty set has mask 0."""

Taps = Sequence[Sequence[int]]
"""For outputs 0, 1, ... the units that each reads; see `Units.through`."""


def pattern_of(window: Window) -> tuple[list[tuple[int, ...]], int]:
    """Units read by outputs 0, 1, ... until the pattern repeats, and by how many units it has moved then.

    >>> pattern_of(Window(3, stride=2, padding=1)), pattern_of(Window(2, stride=2, transposed=True))
    (([(-1, 0, 1)], 2), ([(0,), (0,)], 1))
    """
    offsets = [tap * window.dilation - window.before for tap in range(window.kernel)]
    if not window.transposed:
        return [tuple(offsets)], window.stride
    stride = window.stride
    reads = [tuple((phase - offset) // stride for offset in offsets if (phase - offset) % stride == 0) for phase in range(stride)]
    return reads, 1


def _joined(sets: Iterable[Cells]) -> Cells:
    solid = [cells for cells in sets if cells[1]]
    if not solid:
        return 0, 0
    lo = min(first for first, _ in solid)
    mask = 0
    for first, bits in solid:
        mask |= bits << (first - lo)
    return lo, mask


def _hull(cells: Cells) -> Interval:
    lo, mask = cells
    return (lo, lo + mask.bit_length())


@dataclass(frozen=True)
class Units:
    """The cells that each unit of an axis reads.

    Attributes:
        step: input cells by which one repetition of the pattern moves on; 0 without a pattern.
        phases: cells of unit 0, 1, ... up to the point from which they repeat; empty if they never do.
        table: cells of every unit that exists, where units near the border (or all) do not follow the pattern; else None.
            One of pattern and table is always there.

    Example:
        >>> units = Units(1, ((0, 1),)).through([(-1, 0, 1)], 2, 8)
        >>> units.box(3), units.size, units.stride
        ((5, 8), 3, Fraction(2, 1))
    """

    step: int
    phases: tuple[Cells, ...]
    table: tuple[Cells, ...] | None = None

    @property
    def stride(self) -> Fraction | None:
        """Input cells between neighbouring units; None without a pattern."""
        return Fraction(self.step, len(self.phases)) if self.phases else None

    @property
    def size(self) -> int:
        """Most cells from the first to the last that one unit reads; of the pattern where there is one."""
        return max((mask.bit_length() for _, mask in self.phases or self.table or ()), default=0)

    @property
    def density(self) -> float:
        """Share of the cells inside the box that are really read, for the unit of the pattern where it is smallest."""
        return min((mask.bit_count() / mask.bit_length() for _, mask in self.phases or self.table or () if mask), default=1.0)

    def field(self) -> ReceptiveField | None:
        """The same without holes, as the engine's own object; None without a pattern."""
        if not self.phases:
            return None
        hulls = tuple(_hull(cells) for cells in self.phases)
        return ReceptiveField(self.size, Fraction(self.step, len(hulls)), hulls[0][0], phases=hulls)

    def pattern_cells(self, unit: int) -> Cells:
        """Cells of a unit by the pattern, whether it exists or not."""
        repeat, phase = divmod(unit, len(self.phases))
        lo, mask = self.phases[phase]
        return lo + repeat * self.step, mask

    def cells(self, unit: int) -> Cells:
        """Cells that one unit reads, not clipped to the input; none for a unit outside the table, where there is one."""
        if self.table is None:
            return self.pattern_cells(unit)
        return self.table[unit] if 0 <= unit < len(self.table) else (0, 0)

    def box(self, unit: int, clip: int | None = None) -> Interval:
        """Smallest half-open interval around the cells that one unit reads, those of an input of `clip` cells only; empty if none."""
        lo, mask = self.cells(unit)
        if clip is not None:
            lo, mask = (lo, mask) if lo >= 0 else (0, mask >> -lo)
            mask &= (1 << max(0, clip - lo)) - 1
            empty = (mask & -mask).bit_length() - 1  # cells in front of the first that is left
            lo, mask = (lo + empty, mask >> empty) if mask else (0, 0)
        return _hull((lo, mask))

    def through(self, taps: Taps, shift: int, n_out: int) -> Units:
        """The units of a layer that reads these units in a pattern that repeats.

        Args:
            taps: for outputs 0, 1, ... ``len(taps) - 1`` the units that each reads.
            shift: how many units further the next ``len(taps)`` outputs read; positive.
            n_out: number of outputs that exist (matters for tables only).

        Returns:
            The composed units.
        """
        step, phases = self._composed(taps, shift) if self.phases else (0, ())
        table = None
        if self.table is not None:
            repeats = (divmod(output, len(taps)) for output in range(n_out))
            table = tuple(_joined(self.cells(tap + repeat * shift) for tap in taps[phase]) for repeat, phase in repeats)
        return Units(step, phases, table)

    def _composed(self, taps: Taps, shift: int) -> tuple[int, tuple[Cells, ...]]:
        count = len(self.phases)
        repeats = count // gcd(count, shift)
        step = shift // gcd(count, shift) * self.step
        phases = []
        for output in range(len(taps) * repeats):
            repeat, phase = divmod(output, len(taps))
            phases.append(_joined([self.pattern_cells(tap + repeat * shift) for tap in taps[phase]]))
        return _shortest_period(step, phases)

    def gather(self, index: Taps) -> Units:
        """The units of a layer that reads these units as listed, one entry per output; negative numbers read nothing."""
        return Units(0, (), tuple(_joined(self.cells(unit) for unit in units if unit >= 0) for units in index))

    def with_table(self, other: Units) -> Units:
        """The same pattern, with the table of another."""
        return Units(self.step, self.phases, other.table)

    def union(self, other: Units, n: int) -> Units:
        """The units of a layer that reads the same unit of both.

        Args:
            other: the other branch.
            n: number of units that exist.

        Returns:
            The union; without a pattern if the two do not move on at the same speed.
        """
        if self == other:
            return self
        step, phases = self._joint_pattern(other)
        if phases and self.table is None and other.table is None:
            return Units(step, phases)
        return Units(step, phases, tuple(_joined((self.cells(unit), other.cells(unit))) for unit in range(n)))

    def _joint_pattern(self, other: Units) -> tuple[int, tuple[Cells, ...]]:
        if not self.phases or not other.phases or self.stride != other.stride:
            return 0, ()
        count = lcm(len(self.phases), len(other.phases))
        step = self.step * (count // len(self.phases))
        return _shortest_period(step, [_joined((self.pattern_cells(u), other.pattern_cells(u))) for u in range(count)])


def _shortest_period(step: int, phases: Sequence[Cells]) -> tuple[int, tuple[Cells, ...]]:
    total = len(phases)
    for period in range(1, total):
        if total % period or step * period % total:
            continue
        move = step * period // total
        if all(late == (early[0] + move if early[1] else 0, early[1]) for early, late in zip(phases, phases[period:], strict=False)):
            return move, tuple(phases[:period])
    return step, tuple(phases)


IDENTITY = Units(1, ((0, 1),))
"""The pixels of the input: each sees itself."""
