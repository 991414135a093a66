"""What a shift of the picture does to held maps: which move, by how many cells, and what must then be computed again.

When a camera pans, what was held lies elsewhere, but is otherwise still right. If the picture moves by a multiple of a map's stride,
the map moves by whole cells. A moved cell is right iff it reads, at its new place, exactly what it read at its old one; the tables
of taps say where that is not so: at cells that come from outside the map, where the padding that a window reads has moved, where
factors of an interpolation differ, and wherever a map that moves meets one that does not. Those are computed again, and only those.

What belongs here: this arithmetic, for one plan. What does not: moving memory (the executors), and how far the picture moves
(`sightline.camera`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sightline.footprint import AxisTaps, Global, Pointwise, WindowFootprint
from sightline.graph import rules
from sightline.graph.ir import Node
from sightline.graph.plan import Plan, Step

LARGEST_STRIDE = 64
"""Maps of a larger stride are so small that they are computed again instead of moved."""

_WINDOWS = {"conv2d", "max_pool2d", "avg_pool2d"}
_SAME_PLACE = {"affine", "act", "scalar", "identity", "add", "sub", "mul", "div", "maximum", "minimum", "channel_shuffle", "softmax"}

_Stride = Fraction | None  # pixels of the frame per cell along one axis; None: the map stays where it is


@dataclass(frozen=True, eq=False)
class Move:
    """What becomes of one step's value.

    Attributes:
        by: cells (y, x): the new cell (y, x) holds what cell (y + by[0], x + by[1]) held, where there is such a cell.
        rows, cols: bool (h,) and (w,): a cell is computed again iff its row or its column is marked.
    """

    by: tuple[int, int]
    rows: NDArray[np.bool_]
    cols: NDArray[np.bool_]

    @property
    def stale(self) -> bool:
        """Whether anything must be computed again."""
        return bool(self.rows.any() or self.cols.any())

    def mask(self) -> torch.Tensor:
        """Bool (h, w): what must be computed again."""
        return torch.from_numpy(self.rows[:, None] | self.cols[None, :])


class Shifts:
    """Moves of all steps of one plan.

    Attributes:
        plan: the plan.
        stride: (y, x), of which a shift must be a multiple: the least common multiple of the strides of all maps that move.

    Example:
        >>> from sightline.graph.capture import capture
        >>> from sightline.graph.plan import make_plan
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, 2, 1), torch.nn.Conv2d(1, 1, 3, 1, 1))
        >>> plan = make_plan(capture(net, torch.zeros(1, 1, 16, 16)))
        >>> shifts = Shifts(plan)
        >>> shifts.stride
        (2, 2)
        >>> move = shifts.moves(4, 0)[plan.steps[-1]]
        >>> move.by, move.rows.nonzero()[0].tolist(), bool(move.cols.any())  # row 0 read padding before it moved away from the border
        ((2, 0), [0, 5, 6, 7], False)
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._strides: dict[Node, tuple[_Stride, _Stride]] = {}
        fixed: set[Node] = set()
        while True:
            self._find_strides(fixed)
            torn = self._torn_apart()
            if not torn - fixed:
                break
            fixed |= torn
        self.stride = self._common(0), self._common(1)
        self._known: dict[tuple[int, int], dict[Step, Move]] = {}

    def stride_of(self, node: Node) -> tuple[Fraction | None, Fraction | None]:
        """Pixels of the frame per cell of a step's value, (y, x); None along an axis where it does not move with the picture."""
        return self._strides[node]

    def moves(self, dy: int, dx: int) -> dict[Step, Move]:
        """What a shift does: what lay at pixel (y + dy, x + dx) of the frame lies at (y, x) afterwards.

        Args:
            dy: pixels; a multiple of ``stride[0]``.
            dx: pixels; a multiple of ``stride[1]``.

        Raises:
            ValueError: they are not.
        """
        if dy % self.stride[0] or dx % self.stride[1]:
            raise ValueError(f"a shift must be a multiple of {self.stride} pixels; got ({dy}, {dx}).")
        if (dy, dx) not in self._known:
            by = {node: (_cells(dy, strides[0]), _cells(dx, strides[1])) for node, strides in self._strides.items()}
            moves: dict[Step, Move] = {}
            for step in self.plan.steps:
                moves[step] = self._move(step, by, moves)
            self._known[dy, dx] = moves
        return self._known[dy, dx]

    # -- strides ----------------------------------------------------------------------------------------------------------

    def _find_strides(self, fixed: set[Node]) -> None:
        self._strides = {}
        for step in self.plan.steps:
            both = self._stride(step, 0), self._stride(step, 1)
            self._strides[step.output] = (None, None) if step.output in fixed else both

    def _stride(self, step: Step, axis: int) -> _Stride:
        head = step.head
        if len(step.output.shape or ()) != 4 or _size(step.output)[axis] == 1:
            return None
        if head.op == "input":
            return Fraction(1)
        slope = _slope(head, axis)
        if slope is None:
            return None
        sources = (self._strides[node][axis] for node in step.inputs)
        source = next((stride for stride in sources if stride is not None), None)
        stride = None if source is None else source * slope
        return None if stride is None or stride.numerator > LARGEST_STRIDE else stride

    def _torn_apart(self) -> set[Node]:
        """Values that may share memory (parts of a concatenation, slices of channels) and would not move together."""
        found: set[Node] = set()
        for step in self.plan.steps:
            if step.head.op in {"cat", "slice"} and step.head.attrs["dim"] == 1:
                together = {step.output, *(node for node in step.inputs if node.op != "constant")}
                if len({self._strides[node] for node in together}) > 1:
                    found |= together
        return found

    def _common(self, axis: int) -> int:
        return math.lcm(*(strides[axis].numerator for strides in self._strides.values() if strides[axis] is not None))  # type: ignore[union-attr]

    # -- what must be computed again ----------------------------------------------------------------------------------------

    def _move(self, step: Step, by: dict[Node, tuple[int, int]], before: dict[Step, Move]) -> Move:
        h, w = _size(step.output)
        mine = by[step.output]
        stale = [_from_outside(size, d) for size, d in zip((h, w), mine, strict=True)]
        if step.head.op not in {"input", "constant"}:
            for operand, node in enumerate(step.inputs):
                self._compare(step, operand, node, mine, by, stale)
                source = before[self.plan.by_output[node]]
                if node.op == "flatten" and source.stale:  # an executor may read the map itself, which has moved unseen
                    stale[0][:] = True
            if step.residual is not None:
                _unless_together(mine, by[step.residual], stale)
        return Move(mine, stale[0], stale[1])

    @staticmethod
    def _compare(
        step: Step,
        operand: int,
        node: Node,
        mine: tuple[int, int],
        by: dict[Node, tuple[int, int]],
        stale: list[NDArray[np.bool_]],
    ) -> None:
        head, theirs = step.head, by[node]
        if node.op == "constant" and head.op in _SAME_PLACE:
            sizes = (1, 1, *(node.shape or ()))[-2:]
            for axis in (0, 1):
                if mine[axis] and sizes[axis] != 1:
                    stale[axis][:] = True
            return
        footprint = rules.rule_of(head).footprint(head, operand)
        if isinstance(footprint, Pointwise):
            _unless_together(mine, theirs, stale)
        elif isinstance(footprint, WindowFootprint):
            for axis, taps in enumerate((footprint.rows, footprint.cols)):
                stale[axis] |= _reads_otherwise(taps, mine[axis], theirs[axis])
        elif not isinstance(footprint, Global) or any(theirs) or (any(mine) and head.op not in _SAME_PLACE):
            stale[0][:] = True  # reads everything, or nobody knows what


def shifts_of(plan: Plan) -> Shifts:
    """The shifts of a plan, worked out once for all streams that run it."""
    known = plan.__dict__.get("_shifts")
    if known is None:
        known = plan.__dict__["_shifts"] = Shifts(plan)
    assert isinstance(known, Shifts)
    return known


def _size(node: Node) -> tuple[int, int]:
    """Cells (y, x) of a map; anything else counts as one."""
    shape = node.shape or ()
    return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)


def _cells(pixels: int, stride: _Stride) -> int:
    return 0 if stride is None else int(pixels / stride)


def _from_outside(size: int, d: int) -> NDArray[np.bool_]:
    source = np.arange(size) + d
    return (source < 0) | (source >= size)


def _unless_together(mine: Sequence[int], theirs: Sequence[int], stale: list[NDArray[np.bool_]]) -> None:
    for axis in (0, 1):
        if mine[axis] != theirs[axis]:
            stale[axis][:] = True


def _reads_otherwise(taps: AxisTaps, mine: int, theirs: int) -> NDArray[np.bool_]:
    """Bool (n_out,): outputs that do not read the same at their new place as at their old one."""
    result = _from_outside(taps.n_out, mine)
    if not mine and not theirs:
        return result
    place = np.flatnonzero(~result)
    now, then = taps.index[place], taps.index[place + mine]
    same = np.where(now < 0, then < 0, (then >= 0) & (then == now + theirs)).all(1)
    if taps.weights is not None:
        same &= (taps.weights[place] == taps.weights[place + mine]).all(1)
    result[place] = ~same
    return result


def _slope(head: Node, axis: int) -> Fraction | None:
    """Cells of the input per cell of the output; None where nothing is known. A wrong one costs time, not correctness."""
    a: dict[str, Any] = head.attrs
    if head.op in _SAME_PLACE:
        return None if head.op == "softmax" and a["dim"] != 1 else Fraction(1)
    if head.op in {"pad", "cat"}:
        return Fraction(1)
    if head.op in _WINDOWS:
        stride = Fraction(int(a["stride"][axis]))
        return 1 / stride if a.get("transposed", False) else stride
    if head.op == "slice":
        return Fraction(int(a.get("step", 1))) if a["dim"] == 2 + axis else Fraction(1)
    if head.op in {"pixel_shuffle", "pixel_unshuffle"}:
        factor = Fraction(int(a["factor"]))
        return factor if head.op == "pixel_unshuffle" else 1 / factor
    if head.op in {"upsample", "adaptive_avg_pool2d", "adaptive_max_pool2d"}:
        source, target = _size(head.inputs[0])[axis], _size(head)[axis]
        scale = (a.get("scales") or (None, None))[axis]
        ratio = target / source if scale is None else float(scale)
        return 1 / Fraction(round(ratio)) if ratio >= 1 else Fraction(round(1 / ratio))
    return None
