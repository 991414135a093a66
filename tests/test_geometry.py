"""Windows and receptive fields against torch's own operators and against walking through the taps one by one."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sightline.errors import DTypeError, ShapeError
from sightline.geometry import Interval, PaddingMode, ReceptiveField, Window, adaptive_bins

few = settings(max_examples=150, deadline=None)


@st.composite
def windows(draw: st.DrawFn, transposed: bool | None = None, crop: bool = False) -> Window:
    turned = draw(st.booleans()) if transposed is None else transposed
    stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    side = st.integers(-2 if crop else 0, 4)
    spare = draw(st.integers(0, max(stride, dilation) - 1)) if turned else 0
    return Window(draw(st.integers(1, 5)), stride, (draw(side), draw(side)), dilation, turned, spare)


def reads_one(window: Window, output: int) -> set[int]:
    """What an output reads, straight from the definition in the docstring of Window, on an endless axis."""
    offsets = [t * window.dilation - window.before for t in range(window.kernel)]
    if not window.transposed:
        return {output * window.stride + offset for offset in offsets}
    return {(output - offset) // window.stride for offset in offsets if (output - offset) % window.stride == 0}


def hull(cells: set[int]) -> Interval | None:
    return (min(cells), max(cells) + 1) if cells else None


def solid(interval: Interval) -> Interval | None:
    return interval if interval[0] < interval[1] else None


def size_or_error(call: Callable[[], Any], *errors: type[Exception]) -> int | None:
    try:
        result = call()
    except errors:
        return None
    return int(result if isinstance(result, int) else result.shape[2])


# -- output sizes ---------------------------------------------------------------------------------------------------------------------


@few
@given(n=st.integers(1, 20), k=st.integers(1, 7), s=st.integers(1, 4), p=st.integers(0, 5), d=st.integers(1, 3))
def test_conv_size_is_torchs(n: int, k: int, s: int, p: int, d: int) -> None:
    theirs = size_or_error(lambda: functional.conv1d(torch.zeros(1, 1, n), torch.zeros(1, 1, k), None, s, p, d), RuntimeError)
    assert size_or_error(lambda: Window(k, s, p, d).out_size(n), ShapeError) == theirs


@few
@given(n=st.integers(1, 20), k=st.integers(1, 7), s=st.integers(1, 6), d=st.integers(1, 3), ceil=st.booleans(), data=st.data())
@example(n=1, k=2, s=3, d=1, ceil=True, data=None)
@example(n=2, k=3, s=2, d=1, ceil=True, data=None)
def test_pool_size_is_torchs(n: int, k: int, s: int, d: int, ceil: bool, data: st.DataObject | None) -> None:
    p = data.draw(st.integers(0, k // 2)) if data else k // 2
    x = torch.zeros(1, 1, n, 1)
    theirs = size_or_error(lambda: functional.max_pool2d(x, (k, 1), (s, 1), (p, 0), (d, 1), ceil), RuntimeError)
    assert size_or_error(lambda: Window(k, s, p, d).out_size(n, ceil_mode=ceil), ShapeError) == theirs
    if d == 1:
        theirs = size_or_error(lambda: functional.avg_pool2d(x, (k, 1), (s, 1), (p, 0), ceil), RuntimeError)
        assert size_or_error(lambda: Window(k, s, p).out_size(n, ceil_mode=ceil), ShapeError) == theirs


@few
@given(n=st.integers(1, 12), k=st.integers(1, 5), s=st.integers(1, 4), p=st.integers(0, 4), d=st.integers(1, 3), data=st.data())
def test_transposed_size_is_torchs(n: int, k: int, s: int, p: int, d: int, data: st.DataObject) -> None:
    extra = data.draw(st.integers(0, max(s, d) - 1))
    x, weight = torch.zeros(1, 1, n), torch.zeros(1, 1, k)
    theirs = size_or_error(lambda: functional.conv_transpose1d(x, weight, None, s, p, extra, 1, d), RuntimeError)
    # torch versions differ in whether nothing left is an error or an empty map; for us it is always an error
    assert size_or_error(lambda: Window(k, s, p, d, True, extra).out_size(n), ShapeError) == (theirs or None)


def test_last_ceil_window_must_start_inside() -> None:
    assert Window(2, stride=2).out_size(5, ceil_mode=True) == 3
    assert Window(1, stride=3).out_size(5, ceil_mode=True) == 2  # a third window would start at 6, behind the input
    assert Window(2, stride=2, padding=1).out_size(1, ceil_mode=True) == 1  # a second one would start in the padding behind
    assert functional.max_pool2d(torch.zeros(1, 1, 1, 1), 2, 2, 1, ceil_mode=True).shape == (1, 1, 1, 1)


# -- taps -----------------------------------------------------------------------------------------------------------------------------


@few
@given(n=st.integers(1, 12), window=windows(transposed=False), mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
@example(n=1, window=Window(3, padding=1), mode="replicate")
@example(n=2, window=Window(7, 2, (3, 4)), mode="zeros")
def test_taps_are_those_of_a_padded_unfold(n: int, window: Window, mode: PaddingMode) -> None:
    cells = torch.arange(n, dtype=torch.float32).view(1, 1, n)
    pads = [window.before, window.after]
    try:
        padded = functional.pad(cells, pads, value=-1.0) if mode == "zeros" else functional.pad(cells, pads, mode=mode)
        theirs = padded[0, 0].unfold(0, window.extent, window.stride)[:, :: window.dilation].int().tolist()
    except RuntimeError:
        with pytest.raises(ShapeError):
            window.taps(n, mode=mode)
        return
    assert window.taps(n, mode=mode) == list(map(tuple, theirs))


@few
@given(n=st.integers(1, 8), window=windows(transposed=True))
@example(n=4, window=Window(1, stride=2, padding=1, transposed=True))  # the crop takes away rows that inputs 0 and 3 wrote
def test_transposed_taps_are_those_of_torch(n: int, window: Window) -> None:
    size = size_or_error(lambda: window.out_size(n), ShapeError)
    if size is None:
        return
    cells = torch.arange(1, n + 1, dtype=torch.float32).view(1, 1, n)
    each_tap = torch.eye(window.kernel)[None]  # (1 in, kernel out, kernel): output channel t shows what tap t reads
    full = functional.conv_transpose1d(cells, each_tap, None, window.stride, 0, 0, 1, window.dilation)
    full = functional.pad(full, (0, window.output_padding))[:, :, window.before : window.before + size]
    theirs = full[0].T.int() - 1
    assert window.taps(n) == list(map(tuple, theirs.tolist()))


@few
@given(n=st.integers(1, 10), window=windows(crop=True), more=st.integers(0, 3))
def test_taps_follow_the_definition(n: int, window: Window, more: int) -> None:
    size = size_or_error(lambda: window.out_size(n), ShapeError)
    if size is None:
        return
    for output, taps in enumerate(window.taps(n, size + more)):
        assert len(taps) == window.kernel
        assert {cell for cell in taps if cell >= 0} == {cell for cell in reads_one(window, output) if 0 <= cell < n}


# -- reads and touches ----------------------------------------------------------------------------------------------------------------


@few
@given(window=windows(crop=True), lo=st.integers(-8, 8), length=st.integers(0, 6))
@example(window=Window(2, stride=2, dilation=2), lo=1, length=1)  # stepped over: no output reads cell 1
def test_reads_and_touches_are_the_smallest_intervals(window: Window, lo: int, length: int) -> None:
    asked = range(lo, lo + length)
    assert solid(window.reads(lo, lo + length)) == hull({cell for output in asked for cell in reads_one(window, output)})
    touching = {output for output in range(-80, 80) if reads_one(window, output) & set(asked)}
    assert solid(window.touches(lo, lo + length)) == hull(touching)


# -- receptive fields -----------------------------------------------------------------------------------------------------------------


@few
@given(chain=st.lists(windows(), max_size=4), unit=st.integers(-20, 20))
@example(chain=[Window(3, 2, 1), Window(4, 2, 1, transposed=True), Window(3, 1, 1)], unit=1)
@example(chain=[Window(1, 3, 0, transposed=True), Window(2)], unit=0)
def test_field_equals_walking_the_chain(chain: list[Window], unit: int) -> None:
    field, stride = ReceptiveField(1, 1, 0), Fraction(1)
    for window in chain:
        field = field.through(window)
        stride = stride / window.stride if window.transposed else stride * window.stride
    boxes = []
    for start in (unit, *range(len(field.phases))):
        cells = {start}
        for window in reversed(chain):
            cells = {cell for output in cells for cell in reads_one(window, output)}
        assert solid(field.box(start)) == hull(cells)
        boxes.append(field.box(start))
    assert field.stride == stride
    assert field.size == max(hi - lo for lo, hi in boxes)
    assert field.start == field.box(0)[0]


@few
@given(chain=st.lists(windows(), min_size=1, max_size=3), n=st.integers(4, 24), data=st.data())
def test_what_autograd_sees_lies_inside_the_box(chain: list[Window], n: int, data: st.DataObject) -> None:
    x = torch.zeros(1, 1, n, dtype=torch.float64, requires_grad=True)
    y, field = x, ReceptiveField(1, 1, 0)
    for window in chain:
        size = size_or_error(lambda w=window, m=y.shape[2]: w.out_size(m), ShapeError)  # type: ignore[misc]
        if size is None:
            return
        weight = torch.ones(1, 1, window.kernel, dtype=torch.float64)
        if window.transposed:
            y = functional.conv_transpose1d(y, weight, None, window.stride, 0, 0, 1, window.dilation)
            y = functional.pad(y, (0, window.output_padding))[:, :, window.before : window.before + size]
        else:
            y = functional.conv1d(functional.pad(y, list(window.padding)), weight, None, window.stride, 0, window.dilation)  # type: ignore[arg-type]
        field = field.through(window)
    unit = data.draw(st.integers(0, y.shape[2] - 1))
    y[0, 0, unit].backward()
    assert x.grad is not None
    lo, hi = field.box(unit)
    assert all(lo <= cell < hi for cell in x.grad[0, 0].nonzero().flatten().tolist())


@few
@given(one=st.lists(windows(), max_size=3), two=st.lists(windows(), max_size=3), unit=st.integers(-9, 9))
@example(  # units 1 and 3 see nothing in either branch, and the two branches place that nothing differently
    one=[Window(1, 2, transposed=True)] * 2, two=[Window(3, 2, transposed=True), Window(1, 2, transposed=True)], unit=1
)
def test_union_holds_both_branches(one: list[Window], two: list[Window], unit: int) -> None:
    fields = []
    for chain in (one, two):
        field = ReceptiveField(1, 1, 0)
        for window in chain:
            field = field.through(window)
        fields.append(field)
    a, b = fields
    if a.stride != b.stride:
        with pytest.raises(ShapeError, match="stride"):
            a.union(b)
        return
    cells = {cell for field in fields for cell in range(*field.box(unit))}
    assert solid(a.union(b).box(unit)) == hull(cells)
    assert a.union(b) == b.union(a)
    assert a.union(a) == a


def test_known_fields() -> None:
    def last(*chain: Window) -> tuple[int, int | Fraction, int]:
        field = ReceptiveField(1, 1, 0)
        for window in chain:
            field = field.through(window)
        return field.size, field.stride, field.start

    conv3, pool = Window(3, padding=1), Window(2, stride=2)
    sizes, field = [], ReceptiveField(1, 1, 0)
    for window in [conv3, conv3, pool] * 2 + [conv3, conv3, conv3, pool] * 3:
        field = field.through(window)
        sizes.append(field.size)
    assert sizes == [3, 5, 6, 10, 14, 16, 24, 32, 40, 44, 60, 76, 92, 100, 132, 164, 196, 212]
    alexnet = [Window(11, 4, 2), Window(3, 2), Window(5, 1, 2), Window(3, 2), conv3, conv3, conv3]
    assert last(*alexnet) == (163, 16, -66)
    resnet50 = [Window(7, 2, 3), Window(3, 2, 1)] + [conv3] * 3
    for blocks in (4, 6, 3):
        resnet50 += [Window(3, 2, 1)] + [conv3] * (blocks - 1)
    assert last(*resnet50) == (427, 32, -213)
    assert last(Window(3, dilation=1), Window(3, dilation=2), Window(3, dilation=4))[0] == 15
    assert last(Window(3, 2, 1), Window(4, 2, 1, transposed=True), conv3)[0] == 7
    assert last(Window(3, 2, 1), Window(4, 2, 1, transposed=True))[1] == 1


def test_fractional_stride_without_phases_is_nearest_upsampling() -> None:
    field = ReceptiveField(1, Fraction(2, 3), 0)
    assert [field.box(unit)[0] for unit in range(-1, 6)] == [-1, 0, 0, 1, 2, 2, 3]
    assert field == ReceptiveField(1, 1, 0).through_phases([(0,), (0,), (1,)], shift=2)
    twice = [(0,), (0,), (1,), (2,), (2,), (3,)]  # the same pattern written down twice is the same field
    assert field == ReceptiveField(1, 1, 0).through_phases(twice, shift=4)
    assert ReceptiveField(1, Fraction(4, 2), 0).stride == 2 and ReceptiveField(3, 1, 5).centre(2) == 8


# -- adaptive bins and errors ---------------------------------------------------------------------------------------------------------


@few
@given(n_in=st.integers(1, 30), n_out=st.integers(1, 30))
def test_adaptive_bins_are_torchs(n_in: int, n_out: int) -> None:
    impulses = torch.eye(n_in, dtype=torch.float64)[None]
    read = functional.adaptive_avg_pool1d(impulses, n_out)[0].T > 0  # (n_out, n_in)
    assert adaptive_bins(n_in, n_out) == [hull(set(row.nonzero().flatten().tolist())) for row in read]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Window(0), ShapeError, "kernel"),
        (lambda: Window(3, stride=0), ShapeError, "stride"),
        (lambda: Window(3, dilation=0), ShapeError, "dilation"),
        (lambda: Window((3, 3)), DTypeError, "one Window per axis"),  # type: ignore[arg-type]
        (lambda: Window(3, padding=(1, 1, 1)), ShapeError, "padding"),  # type: ignore[arg-type]
        (lambda: Window(3, padding=0.5), DTypeError, "padding"),  # type: ignore[arg-type]
        (lambda: Window(3, output_padding=1), ShapeError, "output_padding"),
        (lambda: Window(3, 2, transposed=True, output_padding=2), ShapeError, "output_padding"),
        (lambda: Window(5).out_size(4), ShapeError, "spans 5"),
        (lambda: Window(5).out_size(0), ShapeError, "n: "),
        (lambda: Window(2, transposed=True).out_size(4, ceil_mode=True), ShapeError, "ceil_mode"),
        (lambda: Window(1).taps(4, mode="mirror"), ShapeError, "mirror"),  # type: ignore[arg-type]
        (lambda: Window(1, transposed=True).taps(4, mode="reflect"), ShapeError, "transposed"),
        (lambda: Window(9, padding=4).taps(4, mode="reflect"), ShapeError, "at most 3"),
        (lambda: Window(3).taps(4, 3, mode="circular"), ShapeError, "n_out"),
        (lambda: adaptive_bins(4, 0), ShapeError, "n_out"),
        (lambda: ReceptiveField(1, 0, 0), ShapeError, "stride"),
        (lambda: ReceptiveField(1, Fraction(1, 3), 0, phases=((0, 1), (0, 1))), ShapeError, "phases"),
        (lambda: ReceptiveField(1, 1, 0).through_phases([]), ShapeError, "taps"),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_padding_is_a_pair_and_windows_are_values() -> None:
    assert Window(3, padding=1) == Window(3, padding=(1, 1))
    assert len({Window(3, padding=1), Window(3, padding=(1, 1)), Window(3)}) == 2
    with pytest.raises(AttributeError):
        Window(3).kernel = 5  # type: ignore[misc]
