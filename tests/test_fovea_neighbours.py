"""Neighbours and kernel cells: against loops written from the formulas, fovi's own tables, padding, wraps, lengths along the surface."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor

from sightline import kernels
from sightline.errors import BackendError, ShapeError
from sightline.fovea import SensorGrid
from sightline.fovea.geodesic import planar_distances
from sightline.fovea.neighbours import Points, find_neighbours, kernel_cells, nearest, neighbour_table

PAIRS = [
    (SensorGrid(16, 0.5, 7), SensorGrid(16, 0.5, 7), 9, 6),
    (SensorGrid(16, 0.5, 13), SensorGrid(16, 0.5, 7), 25, 5),
    (SensorGrid(16, 0.5, 7, manifold="legacy"), SensorGrid(16, 0.5, 4, manifold="legacy"), 9, 3),
    (SensorGrid(16, 0.5, 9, field="square"), SensorGrid(16, 0.5, 5, field="square"), 9, 4),
    (SensorGrid(16, 0.5, 12, style="warped_cartesian"), SensorGrid(16, 0.5, 6, style="warped_cartesian"), 9, 3),
    (SensorGrid(16, 0.5, 9, style="logpolar"), SensorGrid(16, 0.5, 5, style="logpolar"), 9, 3),
]


def rounded(value: float) -> float:
    """To 20 binary digits after the first."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.floor(mantissa * 2**21 + 0.5), exponent - 21)


def loop_table(source: Points, target: Points, k: int, side: int, cortex: bool) -> tuple[Tensor, Tensor]:
    """(index, cell) by the definitions, one node at a time."""
    count = len(source.cartesian)
    places = torch.cat((source.cartesian, source.pad_cartesian)).tolist()
    searched, nodes = (source.candidates(cortex).tolist(), target.candidates(cortex)[: len(target.cartesian)].tolist())
    assert source.valid_mask is not None and target.valid_mask is not None
    index, cell = [], []
    for n, node in enumerate(nodes):

        def apart(point: list[float], node: list[float] = node) -> float:
            gaps = [abs(a - b) for a, b in zip(point, node, strict=True)]
            if cortex and source.wraps:
                gaps[1] = min(gaps[1], 1 - gaps[1])
            return math.sqrt(sum(gap * gap for gap in gaps))

        chosen = sorted(range(len(searched)), key=lambda m: (rounded(apart(searched[m])), m))[:k]
        x0, y0 = target.cartesian[n].tolist()
        laid = []
        for m in chosen:
            x, y = places[m]
            angle = math.atan2(y - y0, x - x0) if math.hypot(x - x0, y - y0) > 1e-9 else 0.0
            far = apart(searched[m])
            laid.append((far * math.cos(angle), far * math.sin(angle)) if cortex else (x, y))
        steps = []
        for axis in range(2):
            values = [point[axis] for point in laid]
            low, high = min(values), max(values)
            steps.append([(value - low) / (high - low + 1e-6) * (side - 1) for value in values])
        cell.append([
            min(range(side), key=lambda p: (abs(p - x), p)) * side + min(range(side), key=lambda q: (abs(q - y), q))
            for x, y in zip(*steps, strict=True)
        ])  # fmt: skip
        index.append([m if m < count and source.valid_mask[m] and target.valid_mask[n] else -1 for m in chosen])
    return torch.tensor(index, dtype=torch.int32), torch.tensor(cell, dtype=torch.int32)


@pytest.mark.parametrize("cortex", [True, False])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].style}-{pair[0].manifold}-{pair[0].field}-{len(pair[0])}")
def test_tables_are_the_definition(pair: tuple[SensorGrid, SensorGrid, int, int], cortex: bool) -> None:
    source, target, k, side = pair
    table = neighbour_table(source, target, k, side, cortex)
    index, cell = loop_table(Points.of(source, "stable"), Points.of(target, "stable"), k, side, cortex)
    assert torch.equal(table.index, index)
    assert torch.equal(table.cell, cell)
    assert table.index.dtype == table.cell.dtype == torch.int32 and table.side == side


def test_without_the_native_library_the_tables_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for source, target, k, side in PAIRS:
        points = Points.of(source, "stable"), Points.of(target, "stable")
        for cortex in (True, False):
            native = nearest(*points, k, cortex)
            cells = kernel_cells(*points, native, side, cortex)
            with monkeypatch.context() as patch:
                patch.setattr(kernels, "native", lambda: None)
                assert torch.equal(native.candidate, nearest(*points, k, cortex).candidate)
                assert torch.equal(cells, kernel_cells(*points, native, side, cortex))


# Measured by running fovi 2.4.0: (manifold, resolutions in and out, k, side), a digest of its (index, cell), a digest of the float32
# distances that it decides by, and nodes whose set of neighbours is not that of exact geometry with our ties.
FOVI = [
    ("planar", 53, 53, 49, 14, "6e933c5bc17cc020", "464c166fff4f9547", 273),
    ("planar", 53, 26, 121, 22, "cb61463bd7ad1aa2", "a10b436e695da7f3", 29),
    ("planar", 13, 13, 25, 10, "a11c9fbbd41643a0", "de452b8d4e008d9b", 30),
    ("planar", 7, 7, 9, 6, "23b71c28c9349f0b", "ff15a5b36736f102", 2),
    ("legacy", 53, 53, 49, 14, "ab43cca9c5cd9c10", "73a43cbaa0c366b7", 266),
    ("legacy", 53, 26, 121, 22, "894abc6e3f267a11", "2c195581ddc542c0", 31),
    ("legacy", 13, 13, 25, 10, "7746b1ebb14d5312", "a719a787ccddc3fb", 26),
    ("legacy", 7, 7, 9, 6, "7869da521d6c5665", "a6e4f6445439b182", 2),
]


def digest(*values: Tensor) -> str:
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in values)).hexdigest()[:16]


@pytest.mark.parametrize("case", FOVI, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_ties_of_fovi_are_its_tables(case: tuple[str, int, int, int, int, str, str, int]) -> None:
    """To the last entry where float32 rounds as on the machine that measured; elsewhere (as with fovi itself) the same ties may fall."""
    manifold, rings, out_rings, k, side, tables, distances, other = case
    source, target = (SensorGrid(16, 0.5, resolution, manifold=manifold) for resolution in (rings, out_rings))
    theirs, ours = neighbour_table(source, target, k, side, ties="fovi"), neighbour_table(source, target, k, side)
    sets = [table.index.sort(1).values for table in (theirs, ours)]
    differing = int((sets[0] != sets[1]).any(1).sum())
    assert other * 0.5 <= differing <= other * 1.5 + 2
    points = Points.of(source, "fovi"), Points.of(target, "fovi")
    assert points[1].cortical is not None
    if digest(torch.cdist(points[0].candidates(True), points[1].cortical)) == distances:
        assert differing == other
        assert digest(theirs.index, theirs.cell) == tables


def test_fovi_differs_by_ties_only() -> None:
    source, target = SensorGrid(16, 0.5, 26), SensorGrid(16, 0.5, 13)
    exact, theirs = (find_neighbours(source, target, 25, True, ties) for ties in ("stable", "fovi"))
    cortex, nodes = Points.of(source, "stable").candidates(True), Points.of(target, "stable").cortical
    assert nodes is not None
    far = torch.linalg.vector_norm(cortex[theirs.candidate] - nodes[:, None], dim=2)
    assert float((far.sort(1).values - exact.distance.sort(1).values).max()) < 1e-4  # of a spacing of about 0.5
    cells = kernel_cells(Points.of(source, "stable"), Points.of(target, "stable"), theirs, 10)
    as_fovi = kernel_cells(Points.of(source, "fovi"), Points.of(target, "fovi"), theirs, 10, True, "fovi")
    assert float((cells != as_fovi).double().mean()) < 0.005


def test_neighbours_beyond_the_rim_are_padding() -> None:
    source, target = SensorGrid(16, 0.5, 13), SensorGrid(16, 0.5, 7)
    table = neighbour_table(source, target, 25)
    share = (table.index < 0).double().mean(1)
    radius = torch.linalg.vector_norm(target.cartesian, dim=1)
    assert share[radius > 0.99].min() > 0.2 and not share[radius < 0.5].any()
    masked = SensorGrid(16, 0.5, 6, style="warped_cartesian")
    assert not masked.valid_mask.all()
    index = neighbour_table(masked, masked, 9).index
    assert (index[~masked.valid_mask] == -1).all() and masked.valid_mask[index[index >= 0].long()].all()


def test_cells_do_not_jump_where_angles_begin() -> None:
    """fovi measures the long way round there: its neighbours across angle 0 fall into few cells."""
    grid = SensorGrid(16, 0.5, 16, style="logpolar")
    table = neighbour_table(grid, grid, 9, 3)
    angle = torch.arange(len(grid)) // 16
    cells = torch.tensor([len(set(row.tolist())) for row in table.cell]).double()
    first, inside = cells[angle == 0], cells[(angle > 2) & (angle < 13)]
    assert first.mean() > 0.8 * inside.mean()


def test_more_neighbours_than_points() -> None:
    small = SensorGrid(16, 0.5, 3)
    assert neighbour_table(small, small, 100).index.shape == (8, 8)
    one = SensorGrid(16, 0.5, 1)
    table = neighbour_table(small, one, 9)
    assert table.index.shape == (1, 8) and neighbour_table(one, small, 9, 3).index.shape == (8, 1)


def test_what_makes_no_table_is_refused() -> None:
    grid = SensorGrid(16, 0.5, 3)
    for wrong in ({"k": 0}, {"k": 9, "side": 0}, {"k": 9, "space": "sideways"}):
        with pytest.raises(ShapeError):
            neighbour_table(grid, grid, **wrong)
    flat = SensorGrid(16, 0.5, 4, style="uniform")
    with pytest.raises(ShapeError, match="sample_cortex=False"):
        neighbour_table(flat, flat, 4)
    assert neighbour_table(flat, flat, 4, space=False).index.shape == (16, 4)


# -- along the surface --------------------------------------------------------------------------------------------------------------------


def polyline(start: Tensor, end: Tensor, pieces: int = 32) -> float:
    """The shortest way in the visual field, in degrees, under ds = k / (a + r) |dp|, found numerically."""
    t = torch.linspace(0, 1, pieces + 1, dtype=torch.float64)[:, None]
    path = (start * (1 - t) + end * t)[1:-1].clone().requires_grad_()
    solver = torch.optim.LBFGS([path], max_iter=120, history_size=40, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def lengths() -> Tensor:
        points = torch.cat((start[None], path, end[None]))
        ends, middles = (torch.linalg.vector_norm(p, dim=1) for p in (points, (points[1:] + points[:-1]) / 2))
        index = 10 / (0.5 + ends)
        pieces: Tensor = torch.linalg.vector_norm(points[1:] - points[:-1], dim=1) * (index[1:] + index[:-1] + 40 / (0.5 + middles)) / 6
        return pieces

    def closure() -> Tensor:
        solver.zero_grad()
        energy: Tensor = lengths().square().sum()
        energy.backward()
        return energy

    solver.step(closure)
    return float(lengths().detach().sum())


def test_lengths_along_the_surface_are_the_shortest() -> None:
    grid = SensorGrid(16, 0.5, 20)
    cortex, visual = grid.exact.cortical, grid.exact.cartesian * 8
    assert cortex is not None
    for i, j in ((3, 9), (20, 30), (5, 300)):
        assert float(planar_distances(cortex[i], cortex[j])) == pytest.approx(polyline(visual[i], visual[j]), rel=1e-4)
    everything = planar_distances(cortex[:, None], cortex[None])
    chords = torch.linalg.vector_norm(cortex[:, None] - cortex[None], dim=2)
    torch.testing.assert_close(everything, everything.T)
    assert (everything >= chords).all() and not everything.diagonal().any()
    assert everything.isfinite().all() and everything.max() < 2 * 10 * math.log(17) + 1e-9  # never longer than through the fovea


def test_neighbours_along_the_surface() -> None:
    source, target = SensorGrid(16, 0.5, 26), SensorGrid(16, 0.5, 7)
    found = find_neighbours(source, target, 49, "geodesic")
    points, nodes = Points.of(source, "stable").candidates(True), Points.of(target, "stable").cortical
    assert nodes is not None
    exact = planar_distances(nodes[:, None], points[None])
    torch.testing.assert_close(found.distance, exact.sort(1).values[:, :49], rtol=1e-9, atol=1e-9)
    assert not torch.equal(found.index, find_neighbours(source, target, 49).index)
    lattice = SensorGrid(16, 0.5, 8, style="warped_cartesian")
    assert torch.equal(find_neighbours(lattice, lattice, 9, "geodesic").index, find_neighbours(lattice, lattice, 9).index)
    legacy = SensorGrid(16, 0.5, 7, manifold="legacy")
    with pytest.raises(BackendError, match="sample_cortex=True"):
        find_neighbours(legacy, legacy, 9, "geodesic")
