"""Footprints: the two directions are adjoint, and they agree with what torch's operators really depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from sightline.errors import DTypeError, ShapeError
from sightline.footprint import AxisTaps, Footprint, Global, Pointwise, ResampleMode, WindowFootprint, union
from sightline.geometry import PaddingMode, Window
from sightline.sites import Grid, Sites

few = settings(max_examples=100, deadline=None)
Op = Callable[[torch.Tensor], torch.Tensor]
resample_modes = st.sampled_from(get_args(ResampleMode))


def scattered(grid: Grid) -> st.SearchStrategy[Sites]:
    """Random sites, sparse to dense."""

    def build(seed: int, density: float) -> Sites:
        return Sites.from_mask(torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed)) < density)

    return st.builds(build, st.integers(0, 2**31), st.sampled_from([0.05, 0.2, 0.6]))


def meet(a: Sites, b: Sites) -> bool:
    return (a & b).count() > 0


def read_by(op: Op, outputs: Sites, in_grid: Grid) -> Sites:
    """Inputs on which autograd says that these outputs of `op` depend (a map of one channel; weights that cannot cancel)."""
    x = torch.zeros(in_grid.n, 1, in_grid.h, in_grid.w, dtype=torch.float64, requires_grad=True)
    y = op(x)
    (gradient,) = torch.autograd.grad(y, x, outputs.mask[:, None].to(y.dtype), materialize_grads=True)
    return Sites.from_mask(gradient[:, 0] != 0)


def changed_by(op: Op, inputs: Sites) -> Sites:
    """Outputs of a linear `op` without bias that are not 0 when just these inputs are not 0."""
    return Sites.from_mask(op(inputs.mask[:, None].double())[:, 0] != 0)


def assert_equals_truth(footprint: Footprint, op: Op, inputs: Sites, outputs: Sites) -> None:
    assert footprint.outputs_of(inputs) == changed_by(op, inputs)
    assert footprint.inputs_of(outputs) == read_by(op, outputs, footprint.in_grid)


def assert_covers_truth(footprint: Footprint, op: Op, inputs: Sites, outputs: Sites) -> None:
    assert not (changed_by(op, inputs) - footprint.outputs_of(inputs)).count()
    assert not (read_by(op, outputs, footprint.in_grid) - footprint.inputs_of(outputs)).count()


@st.composite
def axis_windows(draw: st.DrawFn, transposed: bool, limit: int) -> Window:
    """One axis; padding at most `limit` on a side, so that a padding mode has cells to take."""
    stride, dilation, side = draw(st.integers(1, 4)), draw(st.integers(1, 3)), st.integers(0, limit)
    spare = draw(st.integers(0, max(stride, dilation) - 1)) if transposed else 0
    return Window(draw(st.integers(1, 5)), stride, (draw(side), draw(side)), dilation, transposed, spare)


def fitting_windows(transposed: bool, limit: int, n: int) -> st.SearchStrategy[Window]:
    """Those that leave at least one output of `n` inputs."""

    def fits(window: Window) -> bool:
        try:
            return window.out_size(n) > 0
        except ShapeError:
            return False

    return axis_windows(transposed, limit).filter(fits)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[WindowFootprint, Op]:
    """A footprint and the convolution of one channel with random positive weights that has it."""
    n, h, w = draw(st.integers(1, 2)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    transposed = draw(st.booleans())
    modes: list[PaddingMode] = ["zeros"] if transposed else ["zeros", "reflect", "replicate", "circular"]
    mode = draw(st.sampled_from(modes))
    limits = [size - 1 if mode == "reflect" else size if mode == "circular" else 4 for size in (h, w)]
    wy, wx = (draw(fitting_windows(transposed, min(limit, 4), size)) for limit, size in zip(limits, (h, w), strict=True))
    footprint = WindowFootprint.from_windows(wy, wx, n, h, w, mode)
    weight = torch.rand(1, 1, wy.kernel, wx.kernel, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    stride, dilation = (wy.stride, wx.stride), (wy.dilation, wx.dilation)
    out = footprint.out_grid

    def transposed_conv(x: torch.Tensor) -> torch.Tensor:
        full = functional.conv_transpose2d(x, weight, None, stride, 0, 0, 1, dilation)
        full = functional.pad(full, (0, wx.output_padding, 0, wy.output_padding))
        return full[:, :, wy.before : wy.before + out.h, wx.before : wx.before + out.w]

    def conv(x: torch.Tensor) -> torch.Tensor:
        pads = [wx.before, wx.after, wy.before, wy.after]
        padded = functional.pad(x, pads) if mode == "zeros" else functional.pad(x, pads, mode=mode)
        return functional.conv2d(padded, weight, None, stride, 0, dilation)

    return footprint, transposed_conv if transposed else conv


@st.composite
def footprints(draw: st.DrawFn) -> Footprint:
    """Any footprint there is."""
    grid = Grid(draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    size = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    kind = draw(st.sampled_from(["window", "resample", "adaptive", "gather", "pointwise", "global"]))
    if kind == "window":
        return draw(convolutions())[0]
    if kind == "resample":
        return WindowFootprint.resample(draw(resample_modes), grid, size, align_corners=draw(st.booleans()))
    if kind == "adaptive":
        return WindowFootprint.adaptive(grid, size)
    if kind == "gather":
        rows, cols = (
            AxisTaps.gather(np.array(draw(st.lists(st.integers(-1, n - 1), min_size=1, max_size=12))), n) for n in (grid.h, grid.w)
        )
        return WindowFootprint.separable(rows, cols, grid.n)
    return Pointwise(grid) if kind == "pointwise" else Global(grid, Grid(grid.n, *size))


# -- laws -----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(footprint=footprints(), data=st.data())
def test_both_directions_are_adjoint(footprint: Footprint, data: st.DataObject) -> None:
    inputs, outputs = data.draw(scattered(footprint.in_grid)), data.draw(scattered(footprint.out_grid))
    forward, backward = footprint.outputs_of(inputs), footprint.inputs_of(outputs)
    assert forward.grid == footprint.out_grid and backward.grid == footprint.in_grid
    assert meet(forward, outputs) == meet(inputs, backward)


def test_adjoint_where_a_transposed_window_would_lose_rows() -> None:
    # kernel 1, stride 2, padding 1 on 4 cells: the outputs read cells 1 and 3 only, and the last row is a remainder
    window = Window(1, stride=2, padding=1)
    footprint = WindowFootprint.from_windows(window, window, 1, 4, 4)
    assert footprint.rows.index.ravel().tolist() == [-1, 1, 3]
    assert footprint.rows.inverse.index.ravel().tolist() == [-1, 1, -1, 2]
    assert footprint.inputs_of(Sites.full(footprint.out_grid)).index().tolist() == [[0, y, x] for y in (1, 3) for x in (1, 3)]


@settings(max_examples=30, deadline=None)
@given(footprint=footprints(), data=st.data())
def test_more_sites_never_need_less(footprint: Footprint, data: st.DataObject) -> None:
    some, more = data.draw(scattered(footprint.in_grid)), data.draw(scattered(footprint.in_grid))
    assert footprint.outputs_of(some | more) == footprint.outputs_of(some) | footprint.outputs_of(more)
    assert footprint.outputs_of(Sites.empty(footprint.in_grid)).count() == 0
    assert footprint.inputs_of(Sites.empty(footprint.out_grid)).count() == 0


# -- truth ----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(case=convolutions(), data=st.data())
def test_convolutions_read_exactly_this(case: tuple[WindowFootprint, Op], data: st.DataObject) -> None:
    footprint, op = case
    assert_equals_truth(footprint, op, data.draw(scattered(footprint.in_grid)), data.draw(scattered(footprint.out_grid)))


@few
@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    k=st.integers(1, 5),
    s=st.integers(1, 4),
    ceil=st.booleans(),
    half=st.booleans(),
    data=st.data(),
)
def test_pools_read_exactly_this(h: int, w: int, k: int, s: int, ceil: bool, half: bool, data: st.DataObject) -> None:
    window = Window(k, s, k // 2 if half else 0)
    try:
        footprint = WindowFootprint.from_windows(window, window, 2, h, w, ceil_mode=ceil)
    except ShapeError:
        with pytest.raises(RuntimeError):
            functional.avg_pool2d(torch.zeros(2, 1, h, w), k, s, window.before, ceil)
        return

    def pool(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, k, s, window.before, ceil)

    assert_equals_truth(footprint, pool, data.draw(scattered(footprint.in_grid)), data.draw(scattered(footprint.out_grid)))


@few
@given(h=st.integers(1, 9), w=st.integers(1, 9), oh=st.integers(1, 12), ow=st.integers(1, 12), data=st.data())
def test_adaptive_pools_read_exactly_this(h: int, w: int, oh: int, ow: int, data: st.DataObject) -> None:
    footprint = WindowFootprint.adaptive(Grid(2, h, w), (oh, ow))
    inputs, outputs = data.draw(scattered(footprint.in_grid)), data.draw(scattered(footprint.out_grid))
    assert_equals_truth(footprint, lambda x: functional.adaptive_avg_pool2d(x, (oh, ow)), inputs, outputs)


@pytest.mark.parametrize(
    ("rows", "cols", "op"),
    [
        (np.roll(np.arange(6), 2), np.roll(np.arange(5), -1), lambda x: torch.roll(x, (2, -1), (2, 3))),
        (np.arange(6)[::-1], np.arange(5), lambda x: x.flip(2)),
        (np.arange(12) // 2, np.arange(10) // 2, lambda x: functional.pixel_shuffle(x.expand(-1, 4, -1, -1), 2)),
        (np.arange(1, 6, 2), np.arange(3), lambda x: x[:, :, 1::2, :3]),
        (np.array([-1, 0, 1, 2, 3, 4, 5, -1]), np.arange(5), lambda x: functional.pad(x, (0, 0, 1, 1))),
    ],
    ids=["roll", "flip", "pixel_shuffle", "slice", "pad"],
)
def test_rearrangements_read_exactly_this(rows: NDArray[np.int64], cols: NDArray[np.int64], op: Op) -> None:
    footprint = WindowFootprint.separable(AxisTaps.gather(rows, 6), AxisTaps.gather(cols, 5), 2)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        inputs, outputs = (
            Sites.from_mask(torch.rand(grid.shape, generator=generator) < 0.2) for grid in (footprint.in_grid, footprint.out_grid)
        )
        assert_equals_truth(footprint, op, inputs, outputs)


@few
@given(mode=resample_modes, align=st.booleans(), data=st.data())
def test_resampling_reads_no_more_than_this(mode: ResampleMode, align: bool, data: st.DataObject) -> None:
    grid, size = (
        Grid(2, *data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))),
        data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20))),
    )
    footprint = WindowFootprint.resample(mode, grid, size, align_corners=align, dtype=np.float64)
    corners = None if mode == "nearest" else align
    inputs, outputs = data.draw(scattered(grid)), data.draw(scattered(footprint.out_grid))
    assert_covers_truth(footprint, lambda x: functional.interpolate(x, size, mode=mode, align_corners=corners), inputs, outputs)


def test_batch_elements_do_not_mix() -> None:
    one = Sites.from_boxes(Grid(3, 4, 4), [(1, 0, 0, 4, 4)])
    window = Window(3, padding=1)
    for footprint in (Global(one.grid, one.grid), Pointwise(one.grid), WindowFootprint.from_windows(window, window, 3, 4, 4)):
        assert footprint.outputs_of(one) == one and footprint.inputs_of(one) == one


def test_the_truth_helpers_can_fail() -> None:
    def op(x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, torch.ones(1, 1, 3, 3, dtype=x.dtype), padding=1)

    pixel = Sites.from_boxes(Grid(1, 5, 5), [(2, 2, 3, 3)])
    narrow, right, wide = (WindowFootprint.from_windows(w, w, 1, 5, 5) for w in (Window(1), Window(3, padding=1), Window(5, padding=2)))
    assert_equals_truth(right, op, pixel, pixel)
    assert_covers_truth(wide, op, pixel, pixel)
    for footprint, check in ((narrow, assert_covers_truth), (narrow, assert_equals_truth), (wide, assert_equals_truth)):
        with pytest.raises(AssertionError):
            check(footprint, op, pixel, pixel)


# -- interpolation tables -------------------------------------------------------------------------------------------------------------


def apply_tables(x: torch.Tensor, footprint: WindowFootprint) -> torch.Tensor:
    """Compute a map (n, c, h, w) from the tables alone."""
    for dim, taps in ((3, footprint.cols), (2, footprint.rows)):
        weights = np.ones(taps.index.shape) if taps.weights is None else taps.weights
        shape = [-1, 1] if dim == 2 else [-1]
        x = sum(  # type: ignore[assignment]
            x.index_select(dim, torch.from_numpy(taps.index[:, j].copy())) * torch.from_numpy(weights[:, j].copy()).to(x.dtype).view(shape)
            for j in range(taps.k)
        )
    return x


sizes = st.one_of(st.integers(1, 40), st.sampled_from([82, 97, 129, 224, 270]))


def assert_interpolates(ours: torch.Tensor, theirs: torch.Tensor, mode: ResampleMode) -> None:
    """The same values, as far as the order of the operations allows; of maps with values from 0 to 1.

    nearest copies, so it is exact. Tables for bilinear have torch's own float32 weights, which leaves the rounding of two weighted means:
    2 * 2 * 3 operations on numbers up to 1. The polynomial of bicubic has intermediate values up to 6, in about 8 operations per weight, 4
    weights per axis, on both sides. In float64 the positions (up to 270) are rounded once more than in torch.
    """
    if mode == "nearest":
        assert torch.equal(ours, theirs)
        return
    eps = torch.finfo(theirs.dtype).eps / 2
    operations = 12 if mode == "bilinear" else 6 * 8 * 4 * 2 * 2
    positions = 0 if theirs.dtype == torch.float32 else 4 * 270
    torch.testing.assert_close(ours, theirs, rtol=0, atol=(operations + positions) * eps)


@settings(max_examples=200, deadline=None)
@given(mode=resample_modes, h=sizes, w=sizes, oh=sizes, ow=sizes, align=st.booleans(), single=st.booleans(), last=st.booleans())
@example(mode="bilinear", h=1, w=5, oh=1, ow=1, align=True, single=True, last=False)
@example(mode="nearest", h=2, w=45, oh=82, ow=129, align=False, single=True, last=False)
@example(mode="nearest", h=2, w=45, oh=82, ow=129, align=False, single=False, last=False)
@example(mode="nearest", h=2, w=45, oh=82, ow=129, align=False, single=False, last=True)
@example(mode="nearest", h=2, w=3, oh=196, ow=2, align=False, single=False, last=False)
def test_tables_give_the_values_of_interpolate(
    mode: ResampleMode, h: int, w: int, oh: int, ow: int, align: bool, single: bool, last: bool
) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.rand(1, 4, h, w, generator=torch.Generator().manual_seed(1)).to(
        torch.float32 if single else torch.float64, memory_format=layout
    )
    theirs = functional.interpolate(x, (oh, ow), mode=mode, align_corners=None if mode == "nearest" else align)
    dtype = np.float32 if single else np.float64
    footprint = WindowFootprint.resample(mode, Grid(1, h, w), (oh, ow), align_corners=align, dtype=dtype, channels_last=last)
    assert_interpolates(apply_tables(x, footprint), theirs, mode)


@few
@given(mode=resample_modes, h=st.integers(2, 30), w=st.integers(2, 30), scales=st.tuples(st.floats(0.5, 4), st.floats(0.5, 4)))
@example(mode="nearest", h=5, w=5, scales=(1.1, 1.19))  # scales that keep the size
@example(mode="bilinear", h=5, w=5, scales=(1.1, 1.19))
@example(mode="bicubic", h=5, w=5, scales=(1.1, 1.19))
@example(mode="nearest", h=5, w=20, scales=(2.125, 4.0))  # twice as large, but not by a scale of 2: small map
@example(mode="nearest", h=5, w=30, scales=(2.125, 4.0))  # the same on a large one
def test_tables_use_a_given_scale_as_torch_does(mode: ResampleMode, h: int, w: int, scales: tuple[float, float]) -> None:
    x = torch.rand(1, 1, h, w, generator=torch.Generator().manual_seed(2))
    theirs = functional.interpolate(x, scale_factor=scales, mode=mode, align_corners=None if mode == "nearest" else False)
    footprint = WindowFootprint.resample(mode, Grid(1, h, w), (theirs.shape[2], theirs.shape[3]), scales=scales)
    assert_interpolates(apply_tables(x, footprint), theirs, mode)


def test_the_interpolation_helper_can_fail() -> None:
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    for mode in get_args(ResampleMode):
        right = functional.interpolate(x, (13, 13), mode=mode)
        assert_interpolates(right, right, mode)
        with pytest.raises(AssertionError):
            assert_interpolates(right + 1e-3, right, mode)


@few
@given(n_in=sizes, n_out=sizes, align=st.booleans())
def test_weights_are_a_weighted_mean(n_in: int, n_out: int, align: bool) -> None:
    for dtype in (np.float32, np.float64):
        linear = AxisTaps.linear(n_in, n_out, align_corners=align, dtype=dtype).weights
        cubic = AxisTaps.cubic(n_in, n_out, align_corners=align, dtype=dtype).weights
        assert linear is not None and cubic is not None
        assert linear.dtype == cubic.dtype == dtype
        assert (linear >= 0).all()
        eps = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(linear.sum(axis=1), 1, rtol=0, atol=eps)
        np.testing.assert_allclose(cubic.sum(axis=1), 1, rtol=0, atol=6 * 8 * 4 * eps)  # as in assert_interpolates


# -- tables and errors ----------------------------------------------------------------------------------------------------------------


def test_tables_are_int32_read_only_and_dense() -> None:
    footprint = WindowFootprint.from_windows(Window(3, 2, 1), Window(4, 2, 1, transposed=True), 1, 1080, 1920)
    for table, shape in ((footprint.rows.index, (540, 3)), (footprint.cols.index, (3840, 4))):
        assert table.dtype == np.int32 and table.shape == shape and table.flags.c_contiguous and not table.flags.writeable
    assert footprint.rows.inverse.index.dtype == np.int32
    assert footprint.out_grid == Grid(1, 540, 3840)


@few
@given(
    n_in=st.integers(1, 12), rows=st.lists(st.lists(st.integers(-1, 0), min_size=3, max_size=3), min_size=1, max_size=12), data=st.data()
)
def test_inverse_lists_each_reader_once(n_in: int, rows: list[list[int]], data: st.DataObject) -> None:
    index = np.array([[data.draw(st.integers(-1, n_in - 1)) for _ in row] for row in rows])
    taps = AxisTaps(index, n_in)
    for cell, readers in enumerate(taps.inverse.index.tolist()):
        real = [output for output in readers if output >= 0]
        assert real == [output for output in range(len(rows)) if cell in index[output]]


def test_many_taps_take_the_same_answer_as_few() -> None:
    mask = torch.rand(2, 70, 5, generator=torch.Generator().manual_seed(3)) < 0.02
    taps = AxisTaps.adaptive(70, 2)
    assert taps.k == 35
    assert torch.equal(taps.any(mask, 1), torch.stack([mask[:, :35].any(1), mask[:, 35:].any(1)], 1))
    assert torch.equal(taps.any(mask.transpose(1, 2), 2), taps.any(mask, 1).transpose(1, 2))


def test_identity_does_no_work() -> None:
    taps = AxisTaps.window(Window(1), 7)
    mask = torch.zeros(1, 7, 7, dtype=torch.bool)
    assert taps.is_identity and taps.any(mask, 1) is mask
    assert not AxisTaps.window(Window(1, padding=(1, -1)), 7).is_identity


def test_union_of_operands() -> None:
    grid = Grid(1, 3, 3)
    a, b = Sites.from_boxes(grid, [(0, 0, 1, 3)]), Sites.from_boxes(grid, [(0, 0, 3, 1)])
    assert union([a, b, Sites.empty(grid)]) == a | b
    assert union(iter([a])) == a


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: AxisTaps(np.zeros((2, 1)), 3), DTypeError, "integers"),  # type: ignore[arg-type]
        (lambda: AxisTaps(np.zeros(3, np.int32), 3), ShapeError, "n_out, k"),
        (lambda: AxisTaps(np.full((2, 1), 3, np.int32), 3), ShapeError, "-1 to 2"),
        (lambda: AxisTaps(np.full((2, 1), -2, np.int32), 3), ShapeError, "-1 to 2"),
        (lambda: AxisTaps(np.zeros((2, 1), np.int32), 3, np.ones((1, 2))), ShapeError, "weights"),
        (lambda: AxisTaps.nearest(0, 3), ShapeError, "n_in"),
        (lambda: AxisTaps.linear(3, 3, scale=-1.0), ShapeError, "scale"),
        (lambda: AxisTaps.cubic(3, 6, dtype=np.float16), DTypeError, "half"),
        (lambda: WindowFootprint.resample("area", Grid(1, 2, 2), (4, 4)), ShapeError, "area"),  # type: ignore[arg-type]
        (lambda: Global(Grid(1, 2, 2), Grid(2, 2, 2)), ShapeError, "batch"),
        (
            lambda: WindowFootprint(AxisTaps.nearest(2, 4), AxisTaps.nearest(2, 4), Grid(1, 2, 2), Grid(1, 4, 5)),
            ShapeError,
            "rows, cols",
        ),
        (lambda: Pointwise(Grid(1, 2, 2)).outputs_of(Sites.full(Grid(1, 2, 3))), ShapeError, "input"),
        (lambda: WindowFootprint.adaptive(Grid(1, 8, 8), (2, 2)).inputs_of(Sites.full(Grid(1, 8, 8))), ShapeError, "output"),
        (lambda: union([]), ShapeError, "at least one"),
        (lambda: WindowFootprint.from_windows(Window(9), Window(1), 1, 4, 4), ShapeError, "spans 9"),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
