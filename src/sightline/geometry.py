"""Integer arithmetic of sliding windows, one axis at a time: output sizes, taps and receptive fields.

Every spatial rule of the project (masks, halos, plans, receptive-field analysis) asks the objects of this file, so that the
arithmetic of kernel, stride, padding and dilation is written once; output sizes in particular are computed nowhere else.
Intervals are half-open, ``[lo, hi)``, and an empty one is ``(lo, lo)``.

What does not belong here: tensors, arrays, two axes at once, anything that rounds floating-point numbers (interpolation
tables live in `sightline.footprint`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor, gcd, lcm
from operator import index as as_index
from typing import Literal, get_args

from sightline.errors import DTypeError, ShapeError

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
"""How a tap that falls outside the input finds its value; the names of ``torch.nn.Conv2d(padding_mode=...)``."""

Interval = tuple[int, int]
"""Half-open ``(lo, hi)``; empty when ``lo == hi``."""


def _integer(name: str, value: object, minimum: int | None = None) -> int:
    """Return `value` as an int, or raise naming the argument."""
    try:
        result = as_index(value)  # type: ignore[arg-type]
    except TypeError:
        raise DTypeError(f"{name}: expected one integer for this axis, got {value!r}; pass one Window per axis") from None
    if minimum is not None and result < minimum:
        raise ShapeError(f"{name}: expected an integer of at least {minimum}, got {result}")
    return result


def _hull(intervals: Iterable[Interval], fallback: int) -> Interval:
    """The smallest interval that holds all the non-empty ones; ``(fallback, fallback)`` if there is none."""
    solid = [(lo, hi) for lo, hi in intervals if lo < hi]
    if not solid:
        return fallback, fallback
    return min(lo for lo, _ in solid), max(hi for _, hi in solid)


@dataclass(frozen=True)
class Window:
    """A sliding window along one axis: what convolution, pooling, their transposed forms, padding, cropping and slicing share.

    Output ``o`` reads inputs ``o*stride - before + t*dilation`` for tap ``t`` in ``range(kernel)``. With `transposed`, input ``i``
    is read by outputs ``i*stride - before + t*dilation``: the same window with the two sides swapped, as in
    ``torch.nn.ConvTranspose2d``. ``Window(1, padding=(a, b))`` is a pad, with negative numbers a crop, and
    ``Window(1, stride=step)`` a strided slice.

    Args:
        kernel: number of taps, at least 1.
        stride: distance of neighbouring windows in input cells (transposed: in output cells), at least 1.
        padding: cells added before and after the input; an int or a pair. Negative numbers take cells away. Transposed: cells cut
            off the full result, as in torch. Stored as a pair; read `before` and `after`.
        dilation: distance of neighbouring taps, at least 1.
        transposed: see above.
        output_padding: cells appended to a transposed output; as in torch less than stride or less than dilation.

    Raises:
        DTypeError: an argument is not an integer (a pair of kernel sizes, say).
        ShapeError: an argument is out of range.

    Example:
        >>> stem = Window(7, stride=2, padding=3)
        >>> stem.padding, stem.extent, stem.out_size(224)
        ((3, 3), 7, 112)
        >>> stem.reads(0, 1), stem.touches(0, 1)
        ((-3, 4), (-1, 2))
    """

    kernel: int
    stride: int = 1
    padding: int | tuple[int, int] = 0
    dilation: int = 1
    transposed: bool = False
    output_padding: int = 0

    def __post_init__(self) -> None:
        pair = self.padding if isinstance(self.padding, (tuple, list)) else (self.padding, self.padding)
        if len(pair) != 2:
            raise ShapeError(f"padding: expected an int or a (before, after) pair for one axis, got {self.padding!r}")
        normal: dict[str, object] = {name: _integer(name, getattr(self, name), 1) for name in ("kernel", "stride", "dilation")}
        normal["padding"] = (_integer("padding", pair[0]), _integer("padding", pair[1]))
        normal["output_padding"] = _integer("output_padding", self.output_padding, 0)
        normal["transposed"] = bool(self.transposed)
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        if self.output_padding and not self.transposed:
            raise ShapeError(f"output_padding: only a transposed window has one, got {self.output_padding}; pass 0 or transposed=True")
        if self.output_padding and self.output_padding >= max(self.stride, self.dilation):
            raise ShapeError(
                f"output_padding: must be smaller than stride {self.stride} or dilation {self.dilation}, got {self.output_padding}"
            )

    @property
    def before(self) -> int:
        """Padding in front of the first cell."""
        assert isinstance(self.padding, tuple)  # normalised in __post_init__; only the type checker needs to hear it
        return self.padding[0]

    @property
    def after(self) -> int:
        """Padding behind the last cell."""
        assert isinstance(self.padding, tuple)
        return self.padding[1]

    @property
    def extent(self) -> int:
        """Cells from the first tap to the last, both counted."""
        return self.dilation * (self.kernel - 1) + 1

    def out_size(self, n: int, *, ceil_mode: bool = False) -> int:
        """Number of outputs for `n` inputs, exactly as torch counts them.

        Args:
            n: number of inputs, at least 1.
            ceil_mode: round up, as torch's pooling may; a last window that would start behind the input and the padding in front
                of it is dropped.

        Returns:
            The number of outputs, at least 1.

        Raises:
            ShapeError: nothing would be left, because the window is larger than the padded input.

        Example:
            >>> Window(3, stride=2).out_size(6), Window(3, stride=2).out_size(6, ceil_mode=True)
            (2, 3)
            >>> Window(4, stride=2, padding=1, transposed=True).out_size(16)
            32
        """
        n = _integer("n", n, 1)
        pads = self.before + self.after
        if self.transposed:
            if ceil_mode:
                raise ShapeError("ceil_mode: a transposed window has none; leave it out")
            size = (n - 1) * self.stride - pads + self.extent + self.output_padding
        else:
            span = n + pads - self.extent
            size = (span + (self.stride - 1 if ceil_mode else 0)) // self.stride + 1
            if ceil_mode and (size - 1) * self.stride >= n + self.before:
                size -= 1
        if size < 1:
            raise ShapeError(
                f"n: {self} leaves no output of an input of {n} cells; its window spans {self.extent}, "
                f"{n} cells with padding {self.padding} are {n + pads}; use a larger input, more padding or a smaller kernel"
            )
        return size

    def reads(self, lo: int, hi: int) -> Interval:
        """Smallest interval of inputs that holds everything read by outputs ``[lo, hi)``.

        Not clipped: negative numbers and numbers past the end are padding (for the other padding modes than zeros, `taps` says
        which inputs stand there). Inside the interval there may be inputs that no tap hits (dilation, stride larger than kernel).

        Args:
            lo: first output.
            hi: one past the last output; an empty range reads nothing.

        Returns:
            Half-open ``(lo, hi)``; empty when nothing is read.

        Example:
            >>> Window(3, stride=2, padding=1).reads(0, 4)
            (-1, 8)
            >>> Window(4, stride=2, padding=1, transposed=True).reads(0, 2)
            (-1, 2)
        """
        return self._gather(lo, hi) if self.transposed else self._spread(lo, hi)

    def touches(self, lo: int, hi: int) -> Interval:
        """Smallest interval of outputs that holds every one that reads any of the inputs ``[lo, hi)``; the adjoint of `reads`.

        Args:
            lo: first input.
            hi: one past the last input; an empty range touches nothing.

        Returns:
            Half-open ``(lo, hi)``, not clipped to the outputs that exist; empty when no output reads them. Inside the interval there
            may be outputs that read none of them.

        Example:
            >>> Window(3, stride=2, padding=1).touches(3, 4)
            (1, 3)
            >>> Window(1, stride=3).touches(1, 3)  # the window steps over both
            (0, 0)
        """
        return self._spread(lo, hi) if self.transposed else self._gather(lo, hi)

    def _spread(self, lo: int, hi: int) -> Interval:
        """From the coarse side to the fine one: cell i stands over i*stride - before ... + extent."""
        first = lo * self.stride - self.before
        return (first, (hi - 1) * self.stride - self.before + self.extent) if lo < hi else (first, first)

    def _gather(self, lo: int, hi: int) -> Interval:
        """From the fine side to the coarse one, the reverse of `_spread`; tap by tap, since between the taps there may be holes."""
        spans = []
        for t in range(self.kernel):
            shift = self.before - t * self.dilation
            spans.append((-((-lo - shift) // self.stride), (hi - 1 + shift) // self.stride + 1))
        return _hull(spans if lo < hi else (), fallback=(lo + self.before) // self.stride)

    def taps(self, n_in: int, n_out: int | None = None, mode: PaddingMode = "zeros") -> list[tuple[int, ...]]:
        """For every output, the input that each tap reads, in tap order.

        Args:
            n_in: number of inputs, at least 1.
            n_out: number of outputs; None: ``out_size(n_in)``. Pass the size from ``out_size(..., ceil_mode=True)`` for a
                pooling that rounds up.
            mode: what stands in the padding. With "zeros" a tap outside reads nothing.

        Returns:
            `n_out` tuples of `kernel` numbers, each in ``range(n_in)``, or -1 for a tap that reads nothing (outside with zeros; not
            aligned with an input if transposed).

        Raises:
            ShapeError: the window does not fit the input; the padding is too wide for the mode (reflect: less than `n_in`; circular:
                at most `n_in`); `n_out` reaches past the padding in a mode other than zeros; an unknown mode; a mode other than zeros
                for a transposed window (torch has none).

        Example:
            >>> Window(3, padding=1).taps(3)
            [(-1, 0, 1), (0, 1, 2), (1, 2, -1)]
            >>> Window(3, padding=1).taps(3, mode="reflect")
            [(1, 0, 1), (0, 1, 2), (1, 2, 1)]
            >>> Window(2, stride=2, transposed=True).taps(2)
            [(0, -1), (-1, 0), (1, -1), (-1, 1)]
        """
        size = self.out_size(n_in) if n_out is None else _integer("n_out", n_out, 1)
        self._check_mode(n_in, size, mode)
        if self.transposed:
            # position p of the full result meets tap t at input (p - t*dilation) / stride: lay the inputs out `stride` apart
            low = self.before - (self.extent - 1)
            lookup = [
                p // self.stride if p % self.stride == 0 and 0 <= p // self.stride < n_in else -1 for p in range(low, self.before + size)
            ]
            return [tuple(lookup[o : o + self.extent : self.dilation][::-1]) for o in range(size)]
        end = (size - 1) * self.stride + self.extent
        lookup = _padded_indices(n_in, -self.before, end - self.before, mode)
        return [tuple(lookup[o : o + self.extent : self.dilation]) for o in range(0, size * self.stride, self.stride)]

    def _check_mode(self, n_in: int, n_out: int, mode: str) -> None:
        if mode not in get_args(PaddingMode):
            raise ShapeError(f"mode: expected one of {', '.join(get_args(PaddingMode))}, got {mode!r}")
        if mode == "zeros":
            return
        if self.transposed:
            raise ShapeError(f"mode: a transposed window pads with zeros only, got {mode!r}")
        if n_out > self.out_size(n_in):
            raise ShapeError(f"n_out: mode {mode!r} has values for {self.out_size(n_in)} outputs only, got {n_out}")
        limit = {"reflect": n_in - 1, "circular": n_in}.get(mode)
        if limit is not None and max(self.before, self.after) > limit:
            raise ShapeError(
                f"padding: mode {mode!r} on {n_in} cells takes at most {limit} a side, got {self.padding}; "
                "use a larger input or mode 'replicate'"
            )

    def _phases(self) -> tuple[list[tuple[int, ...]], int]:
        """The pattern of taps that repeats for ever: inputs read by output 0, 1, ..., and the input shift per repetition."""
        if not self.transposed:
            return [tuple(t * self.dilation - self.before for t in range(self.kernel))], self.stride
        offsets = [t * self.dilation - self.before for t in range(self.kernel)]
        return [
            tuple((phase - offset) // self.stride for offset in offsets if (phase - offset) % self.stride == 0)
            for phase in range(self.stride)
        ], 1


def _padded_indices(n: int, lo: int, hi: int, mode: PaddingMode) -> list[int]:
    """For every position of ``range(lo, hi)`` the cell of ``range(n)`` whose value stands there, -1 for none."""
    if mode == "circular":
        return [p % n for p in range(lo, hi)]
    if mode == "replicate":
        return [min(max(p, 0), n - 1) for p in range(lo, hi)]
    if mode == "reflect":
        return [n - 1 - abs(n - 1 - abs(p)) for p in range(lo, hi)]
    return [p if 0 <= p < n else -1 for p in range(lo, hi)]


def adaptive_bins(n_in: int, n_out: int) -> list[Interval]:
    """The bins of adaptive pooling: bin i is ``[floor(i*n_in/n_out), ceil((i+1)*n_in/n_out))``.

    These are also the source cells that each target cell overlaps when a map is resized, in either direction.

    Args:
        n_in: number of inputs, at least 1.
        n_out: number of bins, at least 1; may exceed `n_in`.

    Returns:
        `n_out` half-open, non-empty intervals inside ``range(n_in)``; neighbours may overlap by one cell.

    Raises:
        ShapeError: a size below 1.

    Example:
        >>> adaptive_bins(7, 3)
        [(0, 3), (2, 5), (4, 7)]
        >>> adaptive_bins(2, 4)
        [(0, 1), (0, 1), (1, 2), (1, 2)]
    """
    n_in, n_out = _integer("n_in", n_in, 1), _integer("n_out", n_out, 1)
    return [(i * n_in // n_out, -(-(i + 1) * n_in // n_out)) for i in range(n_out)]


@dataclass(frozen=True)
class ReceptiveField:
    """Where on the input axis each unit of a later layer looks.

    Unit ``u`` of a plain chain of windows sees ``[start + u*stride, start + u*stride + size)``. Behind an upsampling the size
    depends on the phase of the unit; `box` is exact for every unit all the same, `size` is then the largest one. Nothing is clipped:
    a negative start means that the unit looks at padding. The field of the network's input is ``ReceptiveField(1, 1, 0)``.

    Args:
        size: number of input cells from the first to the last one seen, at least 0 (0: sees nothing).
        stride: input cells between neighbouring units; a Fraction behind an upsampling. A Fraction with denominator 1 becomes an int.
        start: first input cell that unit 0 sees.
        phases: the interval of unit 0, 1, ... up to the point from which they repeat; left out: all units see `size` cells, starting
            at ``floor(start + u*stride)``.

    Raises:
        ShapeError: a stride that is not positive, a negative size, or phases that do not repeat after a whole number of cells.

    Example:
        >>> field = ReceptiveField(1, 1, 0).through(Window(3, stride=2, padding=1)).through(Window(3, padding=1))
        >>> field
        ReceptiveField(size=7, stride=2, start=-3)
        >>> field.box(10)
        (17, 24)
    """

    size: int
    stride: int | Fraction
    start: int
    phases: tuple[Interval, ...] = field(default=(), repr=False, kw_only=True)

    def __post_init__(self) -> None:
        size, start, stride = _integer("size", self.size, 0), _integer("start", self.start), Fraction(self.stride)
        if stride <= 0:
            raise ShapeError(f"stride: expected a positive number of input cells, got {self.stride}")
        phases = self.phases
        if not phases:
            lows = [floor(start + unit * stride) for unit in range(stride.denominator)]
            phases = tuple((low, low + size) for low in lows)
        if (stride * len(phases)).denominator != 1:
            raise ShapeError(f"phases: {len(phases)} of them at stride {stride} do not repeat after a whole number of cells")
        whole = stride.numerator if stride.denominator == 1 else stride
        for name, value in (("size", size), ("start", start), ("stride", whole), ("phases", phases)):
            object.__setattr__(self, name, value)

    @classmethod
    def _from_phases(cls, stride: Fraction, phases: list[Interval]) -> ReceptiveField:
        """Build from one interval per phase, with the shortest period that says the same."""
        for period in range(1, len(phases)):
            if len(phases) % period == 0 and (stride * period).denominator == 1:
                step = int(stride * period)
                if all(late == (lo + step, hi + step) for (lo, hi), late in zip(phases, phases[period:], strict=False)):
                    phases = phases[:period]
                    break
        return cls(max(hi - lo for lo, hi in phases), stride, phases[0][0], phases=tuple(phases))

    def through(self, window: Window) -> ReceptiveField:
        """The field of the units behind one more window.

        Args:
            window: the next layer on this axis.

        Returns:
            The composed field, exact for each unit (the smallest interval around all that it sees).

        Example:
            >>> coarse = ReceptiveField(1, 1, 0).through(Window(3, stride=2, padding=1))
            >>> coarse.through(Window(4, stride=2, padding=1, transposed=True)).through(Window(3, padding=1)).size
            7
        """
        return self.through_phases(*window._phases())

    def through_phases(self, taps: Sequence[Sequence[int]], shift: int = 1) -> ReceptiveField:
        """The field behind any layer that repeats itself: pixel shuffle, fixed upsampling, strided slices.

        Args:
            taps: for outputs 0, 1, ... ``len(taps) - 1`` the units that each one reads.
            shift: how many units further the next `len(taps)` outputs read, at least 1.

        Returns:
            The composed field; its stride is ``stride * shift / len(taps)``.

        Raises:
            ShapeError: no taps, or a shift below 1.

        Example:
            >>> unit = ReceptiveField(1, 1, 0)
            >>> unit.through_phases([(0,), (0,)])  # nearest, twice as large
            ReceptiveField(size=1, stride=Fraction(1, 2), start=0)
            >>> unit.through_phases([(-1, 0), (0, 1)]).box(3)  # bilinear, twice as large
            (1, 3)
        """
        if not taps:
            raise ShapeError("taps: expected the reads of at least one output, got none")
        shift = _integer("shift", shift, 1)
        stride = Fraction(self.stride) * shift / len(taps)
        phases = []
        for output in range(len(taps) * (len(self.phases) // gcd(len(self.phases), shift))):
            repeat, phase = divmod(output, len(taps))
            seen = (self.box(unit + repeat * shift) for unit in taps[phase])
            phases.append(_hull(seen, fallback=floor(self.start + output * stride)))
        return self._from_phases(stride, phases)

    def box(self, unit: int) -> Interval:
        """Input cells that one unit sees, as a half-open interval; not clipped to the input.

        Args:
            unit: index of the unit; may be negative.

        Returns:
            ``(lo, hi)``, the smallest interval around all cells seen; empty if there is none.
        """
        repeat, phase = divmod(unit, len(self.phases))
        offset = int(repeat * len(self.phases) * self.stride)
        lo, hi = self.phases[phase]
        return lo + offset, hi + offset

    def centre(self, unit: int = 0) -> Fraction:
        """Middle of what one unit sees, in input cells (cell i spans i - 1/2 to i + 1/2).

        Example:
            >>> ReceptiveField(4, 2, -1).centre()
            Fraction(1, 2)
        """
        lo, hi = self.box(unit)
        return Fraction(lo + hi - 1, 2)

    def union(self, other: ReceptiveField) -> ReceptiveField:
        """The field of a unit that reads the same unit of two branches (add, cat, multiply).

        It is the union of the two intervals, which is larger than either if the branches are not aligned.

        Args:
            other: the field of the other branch.

        Returns:
            The joint field.

        Raises:
            ShapeError: the two have different strides, so that they cannot be maps of one size.

        Example:
            >>> ReceptiveField(5, 1, 0).union(ReceptiveField(3, 1, 4))
            ReceptiveField(size=7, stride=1, start=0)
        """
        if self.stride != other.stride:
            raise ShapeError(f"other: expected a field of stride {self.stride}, got {other.stride}; branches that meet share one stride")
        phases = []
        for unit in range(lcm(len(self.phases), len(other.phases))):
            boxes = self.box(unit), other.box(unit)
            phases.append(_hull(boxes, fallback=min(lo for lo, _ in boxes)))
        return self._from_phases(Fraction(self.stride), phases)
