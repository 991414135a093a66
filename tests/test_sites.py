"""Sites against plain Python sets of positions, and against the definitions of resizing and growing."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sightline.errors import DTypeError, ShapeError
from sightline.sites import Grid, Sites

few = settings(max_examples=100, deadline=None)
small = st.integers(1, 7)
grids = st.builds(Grid, st.integers(1, 3), small, small)

Positions = set[tuple[int, int, int]]


def positions(sites: Sites) -> Positions:
    return {(n, y, x) for n, y, x in sites.index().tolist()}


def sites_on(grid: Grid) -> st.SearchStrategy[Sites]:
    """Random sites, from none to all."""

    def build(seed: int, density: float) -> Sites:
        return Sites.from_mask(torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed)) < density)

    return st.builds(build, st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]))


some_sites = grids.flatmap(sites_on)
pairs = grids.flatmap(lambda grid: st.tuples(sites_on(grid), sites_on(grid)))


@few
@given(pairs)
def test_algebra_is_that_of_sets(pair: tuple[Sites, Sites]) -> None:
    a, b = pair
    whole = set(product(*map(range, a.grid.shape)))
    assert positions(a & b) == positions(a) & positions(b)
    assert positions(a | b) == positions(a) | positions(b)
    assert positions(a - b) == positions(a) - positions(b)
    assert positions(~a) == whole - positions(a)
    assert (a == b) == (positions(a) == positions(b))
    assert a != ~a
    assert Sites.full(a.grid) == a | ~a and Sites.empty(a.grid) == a & ~a


@few
@given(some_sites)
def test_numbers_agree_with_the_positions(sites: Sites) -> None:
    found = positions(sites)
    assert sites.count() == len(found) == sites.index().shape[0]
    assert sites.density == pytest.approx(len(found) / sites.grid.size, abs=1e-12)
    rows, columns = [y for _, y, _ in found], [x for _, _, x in found]
    assert sites.box == ((min(rows), min(columns), max(rows) + 1, max(columns) + 1) if found else None)
    assert sites.index().dtype == torch.int64 and sites.mask.dtype == torch.bool


@few
@given(grid=grids, data=st.data())
def test_boxes_hold_what_lies_in_any_of_them(grid: Grid, data: st.DataObject) -> None:
    def span() -> tuple[int, int]:
        lo, hi = sorted((data.draw(st.integers(-3, 10)), data.draw(st.integers(-3, 10))))
        return lo, hi

    boxes, wanted = [], set()
    for _ in range(data.draw(st.integers(0, 3))):
        (y0, y1), (x0, x1) = span(), span()
        batch = data.draw(st.none() | st.integers(0, grid.n - 1))
        boxes.append((y0, x0, y1, x1) if batch is None else (batch, y0, x0, y1, x1))
        wanted |= {(n, y, x) for n, y, x in product(*map(range, grid.shape)) if y0 <= y < y1 and x0 <= x < x1 and batch in (None, n)}
    assert positions(Sites.from_boxes(grid, boxes)) == wanted


def test_a_box_wholly_outside_holds_nothing() -> None:
    outside = [(-3, 0, -1, 5), (0, -4, 5, -2), (5, 0, 9, 5), (0, 7, 5, 9)]
    assert Sites.from_boxes(Grid(2, 5, 5), outside).count() == 0


def test_boxes_may_come_as_a_tensor() -> None:
    grid = Grid(1, 5, 5)
    assert Sites.from_boxes(grid, torch.tensor([[0, 1, 2, 3]])) == Sites.from_boxes(grid, [(0, 1, 2, 3)])


@few
@given(sites=some_sites, h=st.integers(1, 12), w=st.integers(1, 12))
def test_resize_any_keeps_every_overlapped_cell(sites: Sites, h: int, w: int) -> None:
    def overlap(target: int, n_target: int, source: int, n_source: int) -> bool:
        lo, hi = Fraction(target, n_target), Fraction(target + 1, n_target)
        return lo < Fraction(source + 1, n_source) and Fraction(source, n_source) < hi

    _, rows, columns = sites.grid.shape
    found = positions(sites)
    wanted = {
        (n, y, x)
        for n, y, x in product(range(sites.grid.n), range(h), range(w))
        if any(m == n and overlap(y, h, v, rows) and overlap(x, w, u, columns) for m, v, u in found)
    }
    assert positions(sites.resize(h, w)) == wanted


@few
@given(sites=some_sites, h=st.integers(1, 12), w=st.integers(1, 12), data=st.data())
def test_resize_any_is_its_own_adjoint(sites: Sites, h: int, w: int, data: st.DataObject) -> None:
    there = data.draw(sites_on(Grid(sites.grid.n, h, w)))
    back = there.resize(sites.grid.h, sites.grid.w)
    assert bool((sites.resize(h, w) & there).count()) == bool((sites & back).count())


@few
@given(sites=some_sites, h=st.integers(1, 12), w=st.integers(1, 12))
def test_resize_nearest_is_torchs(sites: Sites, h: int, w: int) -> None:
    theirs = functional.interpolate(sites.mask[:, None].float(), size=(h, w))[:, 0] > 0.5
    assert torch.equal(sites.resize(h, w, mode="nearest").mask, theirs)


@few
@given(sites=some_sites, ry=st.integers(0, 8), rx=st.integers(0, 8))
def test_grow_takes_everything_within_the_radius(sites: Sites, ry: int, rx: int) -> None:
    found = positions(sites)
    wanted = {
        (n, y, x)
        for n, y, x in product(*map(range, sites.grid.shape))
        if any(m == n and abs(y - v) <= ry and abs(x - u) <= rx for m, v, u in found)
    }
    assert positions(sites.grow((ry, rx))) == wanted
    assert sites.grow(ry) == sites.grow((ry, ry))


def test_mask_is_copied_and_broadcast() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    sites, plain = Sites.from_mask(mask, Grid(3, 2, 2)), Sites.from_mask(mask)
    mask.fill_(True)
    assert positions(plain) == {(0, 0, 0)}
    assert positions(sites) == {(0, 0, 0), (1, 0, 0), (2, 0, 0)}
    assert Sites.from_mask(mask).grid == Grid(1, 2, 2)
    assert Sites.from_mask(mask[None], Grid(2, 2, 2)).count() == 8


def test_sites_are_immutable_and_stay_on_their_device() -> None:
    sites = Sites.full(Grid(1, 2, 2))
    with pytest.raises(AttributeError):
        sites.grid = Grid(1, 1, 1)  # type: ignore[misc]
    assert sites.to("cpu") is sites
    assert sites.device == torch.device("cpu")
    with pytest.raises(TypeError):
        hash(sites)
    with pytest.raises(TypeError):
        sites & torch.ones(1, 2, 2)  # type: ignore[operator]
    assert sites != "sites"


def test_repr_and_shape_changes_do_not_read_the_device() -> None:
    sites = Sites(torch.empty(2, 6, 8, dtype=torch.bool, device="meta"))  # a meta tensor raises when its values are read
    assert repr(sites) == "Sites(n=2, h=6, w=8, device='meta')"
    assert ((sites | ~sites) - sites).grow(1).resize(3, 4).grid == Grid(2, 3, 4)
    with pytest.raises((NotImplementedError, RuntimeError)):
        sites.count()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Grid(0, 1, 1), ShapeError, "Grid.n"),
        (lambda: Grid(1, 2.0, 1), DTypeError, "Grid.h"),  # type: ignore[arg-type]
        (lambda: Sites.from_mask([[True]]), DTypeError, "as_tensor"),  # type: ignore[arg-type]
        (lambda: Sites.from_mask(torch.zeros(2, 2)), DTypeError, "mask != 0"),
        (lambda: Sites.from_mask(torch.zeros(1, 1, 2, 2, dtype=torch.bool)), ShapeError, "channel"),
        (lambda: Sites.from_mask(torch.zeros(2, 2, dtype=torch.bool), Grid(1, 2, 3)), ShapeError, "resize"),
        (lambda: Sites.from_mask(torch.zeros(2, 2, 2, dtype=torch.bool), Grid(3, 2, 2)), ShapeError, "batch"),
        (lambda: Sites(torch.zeros(1, 2, 2)), DTypeError, "torch.bool"),
        (lambda: Sites(torch.zeros(2, 2, dtype=torch.bool)), ShapeError, r"\(n, h, w\)"),
        (lambda: Sites.from_boxes(Grid(1, 4, 4), [(0, 0, 1)]), ShapeError, "boxes"),
        (lambda: Sites.from_boxes(Grid(1, 4, 4), [(2, 0, 1, 1)]), ShapeError, "y0 <= y1"),
        (lambda: Sites.from_boxes(Grid(1, 4, 4), [(1, 0, 0, 1, 1)]), ShapeError, "batch element 1"),
        (lambda: Sites.from_boxes(Grid(1, 4, 4), [(0.5, 0, 1, 1)]), DTypeError, "integers"),  # type: ignore[list-item]
        (lambda: Sites.full(Grid(1, 2, 2)) & Sites.full(Grid(1, 2, 3)), ShapeError, "resize"),
        (lambda: Sites.full(Grid(1, 2, 2)) | Sites.full(Grid(1, 2, 2), "meta"), ValueError, "device"),
        (lambda: Sites.full(Grid(1, 2, 2)).resize(2, 2, mode="linear"), ShapeError, "mode"),  # type: ignore[arg-type]
        (lambda: Sites.full(Grid(1, 2, 2)).resize(0, 2), ShapeError, "Grid.h"),
        (lambda: Sites.full(Grid(1, 2, 2)).grow(-1), ShapeError, "radius"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
