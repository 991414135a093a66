"""Foveated sensors: against what fovi 2.4 measured, against formulas in float64, and the laws of rings, lattices and paddings."""

from __future__ import annotations

import cmath
import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sightline as sl
from fovi_table import CMF_A, COUNTS, FOVS, MATCHES, POINTS, RESOLUTIONS
from sightline.fovea import SensorGrid, match_resolution, num_points
from sightline.fovea.sensor import radius_limit, smallest_cmf_a, to_surface
from sightline.fovea.sensor.geometry import build
from sightline.fovea.sensor.manifold import SCALE_MM, _heights
from sightline.fovea.sensor.matching import inside_field
from sightline.fovea.sensor.rings import ring_counts

# ------------------------------------------------------------------------------------------------ against fovi


@pytest.mark.parametrize(("field", "manifold"), COUNTS)
def test_numbers_of_points_are_those_of_fovi(field: str, manifold: str) -> None:
    wanted = [int(number) for number in COUNTS[field, manifold].split()]
    cases = list(itertools.product(FOVS, CMF_A, RESOLUTIONS))
    assert len(wanted) == len(cases) > 300
    wrong = {
        case: (n, number)
        for case, number in zip(cases, wanted, strict=True)
        if (n := num_points(*case, field=field, manifold=manifold)) != number
    }
    assert not wrong


def test_matches_are_those_of_fovi() -> None:
    wrong = {}
    for (fov, cmf_a, wanted, style, field, manifold, at_most), answer in MATCHES.items():
        found = match_resolution(fov, cmf_a, wanted, style=style, at_most=at_most, field=field, manifold=manifold)
        if found != answer:
            wrong[fov, cmf_a, wanted, style, field, manifold, at_most] = (found, answer)
    assert len(MATCHES) > 100
    assert not wrong


@pytest.mark.parametrize("recipe", [False, True], ids=["exact", "recipe"])
@pytest.mark.parametrize("case", POINTS, ids=lambda case: "-".join(map(str, case)))
def test_points_are_those_of_fovi(case: tuple[float, float, int, str, str, str, float, str], recipe: bool) -> None:
    fov, cmf_a, resolution, style, manifold, field, norm, plotting = case
    points, padding, (n, valid, pads) = POINTS[case]
    grid = SensorGrid(
        fov,
        cmf_a,
        resolution,
        style=style,
        manifold=manifold,
        field=field,
        radius_norm=norm,
        plotting=plotting,
        float32_recipe=recipe,
    )
    assert (len(grid), int(grid.valid_mask.sum()), len(grid.pad_cartesian)) == (n, valid, pads)
    for index, x, y, across, along, *cortical in points:
        assert grid.cartesian[index].tolist() == pytest.approx((x, y), abs=1e-5)
        # On the vertical meridian rounding chooses the half that fovi draws a point in.
        if abs(x) > 1e-5 or style != "isotropic" or plotting == "warp":
            assert grid.plotting[index].tolist() == pytest.approx((across, along), abs=2e-5)
        _close(grid.cortical, index, cortical)
    for index, x, y, *cortical in padding:
        assert grid.pad_cartesian[index].tolist() == pytest.approx((x, y), abs=1e-4)
        _close(grid.pad_cortical, index, cortical, floor=5e-5)


def _close(cortical: torch.Tensor | None, index: int, wanted: list[float], floor: float = 1e-5) -> None:
    """Within 1e-5 of the surface's size."""
    if cortical is None:
        assert not wanted
    else:
        largest = max(1.0, float(cortical.abs().max()))
        assert cortical[index].tolist() == pytest.approx(wanted, abs=floor * largest)


def test_the_tutorial_sensor() -> None:
    grid = SensorGrid(16, 0.5, 53)
    assert ring_counts(16.0, 0.5, 53, "circular", "planar")[1].tolist()[:14] == [1, 7, 12, 18, 23, 28, 33, 37, 41, 45, 49, 52, 56, 59]
    assert (len(grid), len(grid.pad_cartesian)) == (4085, 1008)
    sides = [224, 128, 96, 64, 32, 16, 8, 4, 2, 1]
    assert [len(SensorGrid.matched(16, 0.5, side)) for side in sides] == [49877, 16183, 9127, 4085, 964, 230, 60, 16, 2, 1]


# ------------------------------------------------------------------------------------------------ against formulas


@pytest.mark.parametrize(("fov", "cmf_a", "rings"), [(16, 0.5, 13), (60, 3.0, 9), (4, 20.0, 6)])
def test_rings_lie_where_the_formula_says(fov: float, cmf_a: float, rings: int) -> None:
    grid = SensorGrid(fov, cmf_a, rings)
    delta = math.log(1 + fov / 2 / cmf_a) / (rings - 1)
    wanted, index = [], 0
    for i in range(rings):
        r = cmf_a * (math.exp(i * delta) - 1)
        n = 1 if i == 0 else math.ceil(2 * math.pi * (1 - math.exp(-i * delta)) / math.sinh(delta))
        for j in range(n):
            theta = 2 * math.pi * j / n
            wanted.append((r * math.cos(theta) / (fov / 2), r * math.sin(theta) / (fov / 2)))
            index += 1
    assert len(grid) == index
    torch.testing.assert_close(grid.exact.cartesian, torch.tensor(wanted, dtype=torch.float64), atol=1e-13, rtol=0)
    assert torch.equal(grid.cartesian, grid.exact.cartesian.float())


def test_planar_surface_against_its_formula() -> None:
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (500, 2))
    fov, a = 16.0, 0.5
    surface = to_surface(points, fov, a)
    for (x, y), found in zip(points, surface, strict=True):
        r, theta = math.hypot(x, y) * fov / 2, math.atan2(y, x)
        u = r / a + 1
        t = math.sqrt(u * u - 1)
        rho, z = 10 * r / (a + r), 10 * (math.asinh(t) - t / math.sqrt(1 + t * t))
        assert found.tolist() == pytest.approx((rho * math.cos(theta), rho * math.sin(theta), z), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("manifold", ["planar", "legacy"])
@pytest.mark.parametrize(("fov", "cmf_a"), [(16.0, 0.5), (60.0, 2.78)])
def test_surface_lengths_are_magnified_lengths(manifold: str, fov: float, cmf_a: float) -> None:
    """Along a radius the surface is as long as the integral of m = k / (a + r), which is k ln((r + a) / a)."""
    r = np.linspace(0, 1, 20001)
    line = to_surface(np.stack((r, np.zeros_like(r)), axis=1), fov, cmf_a, manifold)
    length = np.linalg.norm(np.diff(line, axis=0), axis=1).sum()
    assert length == pytest.approx(SCALE_MM * math.log((fov / 2 + cmf_a) / cmf_a), rel=1e-5)


def test_legacy_height_against_quadrature() -> None:
    """Gauss-Legendre, 400 nodes, against the trapezoids on a mesh."""
    a, r = 0.5, 6.0
    nodes, weights = np.polynomial.legendre.leggauss(400)
    # r = s^2 takes the square root at the fovea out of the integrand.
    s = math.sqrt(r) * (nodes + 1) / 2
    e = s * s
    m, sine = 10 / (a + e), np.sin(np.deg2rad(e)) * 180 / math.pi
    slope = -10 / (a + e) ** 2 * sine + m * np.cos(np.deg2rad(e))
    height = float(np.sum(weights * np.sqrt(m * m - slope * slope) * 2 * s) * math.sqrt(r) / 2)
    found = to_surface(np.array([[r / 8, 0.0]]), 16.0, a, "legacy")[0]
    assert found[2] == pytest.approx(height, rel=1e-6)
    assert found[0] == pytest.approx(10 / (a + r) * math.sin(math.radians(r)) * 180 / math.pi, rel=1e-12)


def test_spherical_limit_is_the_root() -> None:
    for a in (0.05, 0.5, 10.0, 300.0):
        r = radius_limit(a) + 1e-4
        assert (a + r) * math.cos(math.radians(r / 2)) == pytest.approx(180 / math.pi * math.sin(math.radians(r / 2)), abs=1e-8)
        assert 90 < r < 180


@pytest.mark.parametrize("layout", ["v1like", "schwartz", "warp"])
def test_layouts_against_their_formulas(layout: str) -> None:
    fov, a = 16.0, 0.5
    grid = SensorGrid(fov, a, 9, plotting=layout, dtype=torch.float64)
    w = [cmath.log(abs(x) * fov / 2 + a + 1j * y * fov / 2) for x, y in grid.cartesian.tolist()]
    s = float(np.std([value.real for value in w], ddof=1)) / 2
    for (x, y), value, found in zip(grid.cartesian.tolist(), w, grid.plotting.tolist(), strict=True):
        left, top = x < -1e-7, math.log(fov / 2 + a)
        if layout == "v1like":
            wanted = ((s + top - value.real) if left else (value.real - s - top), -value.imag)
        elif layout == "schwartz":
            inner = value.real - math.log(a) + 0.1 * s
            wanted = (-inner if left else inner, value.imag)
        else:
            r, theta = math.hypot(x, y) * fov / 2, math.atan2(y, x)
            radius = math.log((r + a) / a) / math.log((fov / 2 + a) / a)
            wanted = (radius * math.cos(theta), radius * math.sin(theta))
        assert found == pytest.approx(wanted, abs=1e-12)


# ------------------------------------------------------------------------------------------------ laws

_FOVS = st.floats(0.5, 170)
_CMF = st.floats(0.02, 100)


@given(fov=_FOVS, cmf_a=_CMF, rings=st.integers(2, 40))
def test_laws_of_rings(fov: float, cmf_a: float, rings: int) -> None:
    grid = SensorGrid(fov, cmf_a, rings)
    radius = grid.exact.polar[:, 0]
    assert len(grid) == num_points(fov, cmf_a, rings)
    assert float(radius[0]) == 0
    assert float(radius[-1]) == pytest.approx(1, abs=1e-12)
    assert bool((radius.diff() >= 0).all())
    assert bool(grid.valid_mask.all())
    # Rings are evenly spaced along the surface.
    assert grid.exact.cortical is not None
    assert grid.exact.cortical.isfinite().all()
    # Padding lies beyond the rim, and reaches half of the field at least.
    away = torch.linalg.vector_norm(grid.exact.pad_cartesian, dim=1)
    assert float(away.min()) > 1
    assert float(away.max()) >= 1.5 - 1e-3
    assert grid.exact.pad_cortical is not None
    assert grid.exact.pad_cortical.isfinite().all()


@given(fov=_FOVS, cmf_a=_CMF, rings=st.integers(2, 24))
def test_laws_of_square_fields(fov: float, cmf_a: float, rings: int) -> None:
    grid = SensorGrid(fov, cmf_a, rings, field="square")
    reach = grid.exact.cartesian.abs().amax(1)
    assert float(reach.max()) <= 1 + 1e-5
    assert bool((grid.exact.field_padding.abs().amax(1) > 1 - 1e-5).all())
    assert torch.equal(grid.exact.pad_cartesian[: len(grid.exact.field_padding)], grid.exact.field_padding)
    for corner in itertools.product((-1.0, 1.0), repeat=2):
        gap = (grid.exact.cartesian - torch.tensor(corner, dtype=torch.float64)).norm(dim=1).min()
        assert float(gap) < 1e-5


@given(fov=_FOVS, cmf_a=_CMF, wanted=st.integers(1, 6000), at_most=st.booleans())
def test_a_match_is_on_its_side(fov: float, cmf_a: float, wanted: int, at_most: bool) -> None:
    resolution, n = match_resolution(fov, cmf_a, wanted, at_most=at_most)
    assert n == num_points(fov, cmf_a, resolution)
    assert n <= wanted if at_most else n >= wanted


@given(fov=_FOVS, cmf_a=_CMF, norm=st.sampled_from([2.0, math.inf]), field=st.sampled_from(["circular", "square", "wang"]))
def test_warped_lattices_map_there_and_back(fov: float, cmf_a: float, norm: float, field: str) -> None:
    norm = 2.0 if field == "wang" else norm
    grid = SensorGrid(fov, cmf_a, 7, style="warped_cartesian", field=field, radius_norm=norm, dtype=torch.float64)
    assert grid.cortical is not None
    torch.testing.assert_close(grid.native_to_visual(grid.cortical), grid.cartesian, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(grid.visual_to_native(grid.cartesian), grid.cortical, atol=1e-9, rtol=1e-9)
    # The middle of a side of the whole lattice: on the rim of the field.
    edge = grid.native_to_visual(torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert edge[:, 0].tolist() == pytest.approx((1, 0), abs=1e-9)
    if norm == math.inf:
        assert bool(grid.replace(field="square").valid_mask.all())


def test_log_polar_lattices() -> None:
    grid = SensorGrid(16, 0.5, 12, style="logpolar_as_grid", dtype=torch.float64)
    assert grid.cortical is not None
    angle = grid.as_grid(grid.polar[:, 1])
    radius = grid.as_grid(grid.polar[:, 0])
    assert torch.equal(angle, angle[:, :1].expand(-1, 12))
    assert torch.equal(radius, radius[:1].expand(12, -1))
    rho, phi = grid.cortical.unbind(1)
    torch.testing.assert_close(grid.as_grid(rho)[0], torch.linspace(0, 1, 12, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(grid.as_grid(phi)[:, 0], torch.arange(12, dtype=torch.float64) / 12, atol=1e-12, rtol=0)
    assert len(grid.pad_cartesian) == 2 * 6 * 12


@pytest.mark.parametrize("style", ["uniform", "warped_cartesian"])
def test_lattices_stand_upright(style: str) -> None:
    grid = SensorGrid(16, 0.5, 8, style=style)
    x, y = grid.as_grid(grid.cartesian[:, 0]), grid.as_grid(grid.cartesian[:, 1])
    assert bool((x.diff(dim=1) > 0).all())
    assert bool((y.diff(dim=0) < 0).all())
    both = grid.as_grid(grid.cartesian, dim=0)
    assert torch.equal(both, torch.stack((x, y), dim=-1))


def test_fixed_numbers_of_points() -> None:
    first = SensorGrid(16, 0.5, 21, style="isotropic_fixn", seed=1)
    same = SensorGrid(16, 0.5, 21, style="isotropic_fixn", seed=1)
    other = SensorGrid(16, 0.5, 21, style="isotropic_fixn", seed=2)
    assert len(first) == len(other) == 441
    assert first == same
    assert torch.equal(first.cartesian, same.cartesian)
    assert first != other
    assert not torch.equal(first.cartesian, other.cartesian)
    plain = SensorGrid(16, 0.5, match_resolution(16, 0.5, 441, at_most=False)[0])
    fovea = int((ring_counts(16.0, 0.5, plain.resolution, "circular", "planar")[1][: int(0.2 * plain.resolution)]).sum())
    assert fovea > 10
    assert torch.equal(first.cartesian[:fovea], plain.cartesian[:fovea])
    assert len(SensorGrid(16, 0.5, 20, style="isotropic_fixn", field="square")) == 400


def test_strided_sensors() -> None:
    grid, side, sizes = SensorGrid.matched(16, 0.5, 64), 64, []
    for stride in (2, 2, 1, 2, 2, 4, 1):
        grid, next_side = grid.strided(stride, in_cart_res=side)
        side //= stride
        assert next_side == side
        sizes.append(len(grid))
    assert sizes == [964, 230, 230, 60, 16, 1, 1]
    halved, none = SensorGrid(16, 0.5, 53).strided(2)
    assert (halved.resolution, none) == (26, None)
    assert SensorGrid(16, 0.5, 53).strided(2, match=False, in_cart_res=64)[0].resolution == 26
    small = SensorGrid(16, 0.5, 13).strided(1, max_radius=0.9)[0]
    assert float(small.exact.polar[:, 0].max()) == pytest.approx(0.9)
    fixed, fixed_side = SensorGrid(16, 0.5, 16, style="isotropic_fixn").strided(2, in_cart_res=16)
    assert (len(fixed), fixed_side) == (64, 8)


def test_equal_sensors_share_their_points() -> None:
    grid = SensorGrid(16, 0.5, 13)
    same = SensorGrid(16.0, 0.5, 13, dtype=torch.float64, plotting="warp")
    assert grid == same
    assert hash(grid) == hash(same)
    assert grid.exact is same.exact
    assert len({grid, same, SensorGrid(16, 0.5, 14)}) == 2
    assert grid != "sensor"
    assert repr(grid) == "SensorGrid(length=230, fov=16, cmf_a=0.5, resolution=13, style=isotropic)"
    # What a user does to an attribute stays in that object.
    grid.cartesian.zero_()
    assert float(same.cartesian.abs().max()) == 1
    half = same.to(dtype=torch.float16)
    assert half.cartesian.dtype == torch.float16
    assert half.exact is same.exact


def test_one_point() -> None:
    for style, width in (("isotropic", 3), ("logpolar", 2), ("warped_cartesian", 2), ("uniform", None)):
        grid = SensorGrid(16, 0.5, 1, style=style)
        assert grid.cartesian.tolist() == [[0.0, 0.0]]
        assert (None if grid.cortical is None else grid.cortical.shape[1]) == width
        assert len(grid.pad_cartesian) == 0
        assert grid.plotting.tolist() == [[0.0, 0.0]]


def test_masks_of_lattices() -> None:
    warped = SensorGrid(16, 0.5, 21, style="warped_cartesian")
    assert torch.equal(warped.valid_mask, torch.linalg.vector_norm(warped.cartesian, dim=1) <= 1 + 2e-6)
    assert 0 < int((~warped.valid_mask).sum()) < 441
    assert bool(SensorGrid(16, 0.5, 21, style="warped_cartesian", field="wang").valid_mask.all())
    assert inside_field(torch.tensor([[1.0, 1.0], [1.1, 0.0]]), "square", 1.0).tolist() == [True, False]


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"fov": 0}, "fov"),
        ({"fov": -16}, "fov"),
        ({"fov": math.nan}, "fov"),
        ({"fov": math.inf}, "fov"),
        ({"cmf_a": 0}, "cmf_a"),
        ({"cmf_a": -0.5}, "cmf_a"),
        ({"cmf_a": math.nan}, "cmf_a"),
        ({"resolution": 0}, "resolution"),
        ({"resolution": 2.5}, "resolution"),
        ({"resolution": True}, "resolution"),
        ({"max_radius": 0}, "max_radius"),
        ({"style": "hexagonal"}, "style"),
        ({"style": "isotropic_as_grid"}, "style"),
        ({"manifold": "flat"}, "manifold"),
        ({"field": "wang"}, "wang"),
        ({"field": "round"}, "field"),
        ({"plotting": "pretty"}, "plotting"),
        ({"radius_norm": 1.0}, "radius_norm"),
        ({"radius_norm": math.inf}, "radius_norm"),
        ({"style": "warped_cartesian", "field": "wang", "radius_norm": math.inf}, "radius_norm"),
        ({"style": "logpolar", "manifold": "spherical"}, "spherical"),
        ({"fov": 200, "manifold": "spherical"}, "180"),
        ({"fov": 180, "manifold": "spherical", "resolution": 7}, "fov"),
        ({"fov": 180, "manifold": "legacy", "resolution": 60}, "planar"),
        ({"fov": 179, "style": "warped_cartesian", "field": "wang", "manifold": "spherical"}, "180"),
    ],
)
def test_bad_parameters_are_refused(change: dict[str, object], word: str) -> None:
    arguments: dict[str, object] = {"fov": 16, "cmf_a": 0.5, "resolution": 13}
    with pytest.raises(ValueError, match=word):
        SensorGrid(**(arguments | change))  # type: ignore[arg-type]


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="cmf_a"):
        SensorGrid.matched(16, -1, 64)
    with pytest.raises(ValueError, match="at least 1"):
        match_resolution(16, 0.5, 0)
    grid = SensorGrid(16, 0.5, 13)
    with pytest.raises(ValueError, match="stride"):
        grid.strided(32, in_cart_res=16)
    with pytest.raises(ValueError, match="stride"):
        grid.strided(14)
    with pytest.raises(ValueError, match="in_cart_res"):
        SensorGrid(16, 0.5, 8, style="isotropic_fixn").strided(2)
    with pytest.raises(TypeError, match="circular"):
        grid.replace(circular=True)
    with pytest.raises(sl.ShapeError, match="rows and columns"):
        grid.as_grid(torch.zeros(230))
    with pytest.raises(sl.ShapeError, match="64"):
        SensorGrid(16, 0.5, 8, style="uniform").as_grid(torch.zeros(3, 63))
    with pytest.raises(sl.ShapeError, match="warped"):
        grid.native_to_visual(torch.zeros(3, 2))
    with pytest.raises(sl.ShapeError, match="axis of 2"):
        SensorGrid(16, 0.5, 8, style="warped_cartesian").visual_to_native(torch.zeros(3, 3))


# ------------------------------------------------------------------------------------------------ cost


@pytest.mark.parametrize("manifold", ["planar", "legacy", "spherical"])
@pytest.mark.parametrize("field", ["circular", "square"])
def test_fifty_thousand_points_take_less_than_half_a_second(manifold: str, field: str) -> None:
    build.cache_clear()
    ring_counts.cache_clear()
    _heights.cache_clear()
    start = time.thread_time()
    grid = SensorGrid(16, 0.5, 185 if field == "circular" else 203, manifold=manifold, field=field)
    everything = (grid.cartesian, grid.polar, grid.cortical, grid.plotting, grid.valid_mask, grid.pad_cartesian, grid.pad_cortical)
    assert time.thread_time() - start < 0.5
    assert len(grid) > 50_000
    assert all(part is not None for part in everything)


# ------------------------------------------------------------------------------------------------ how strong a foveation


def test_the_smallest_sensible_cmf_a() -> None:
    # What fovi 2.4 finds, where its search does not stop on a plateau (it returns 0.5166 for whatever lies below that).
    for (size, resolution, whole, fov), wanted in {
        (256, 64, 256, 16): 0.7628003,
        (224, 64, 224, 16): 0.9533036,
        (128, 64, 256, 16): 1.4096797,
        (256, 96, 512, 60): 3.0300477,
        (256, 128, 256, 16): 2.9985599,
        (64, 64, 64, 16): 118.653042,
    }.items():
        assert smallest_cmf_a(size, resolution, fov=fov, image_size=whole) == pytest.approx(wanted, rel=1e-5)
    assert smallest_cmf_a(256, 512) == 1000
    assert smallest_cmf_a(10**6, 4, fov=1) == 0.01


@given(size=st.floats(8, 4000), resolution=st.integers(4, 400), fov=st.floats(1, 120))
def test_the_smallest_step_is_one_pixel(size: float, resolution: int, fov: float) -> None:
    cmf_a = smallest_cmf_a(size, resolution, fov=fov)
    rings = np.exp(np.linspace(math.log(cmf_a), math.log(cmf_a + fov / 2), resolution // 2)) - cmf_a
    step = float(np.diff(rings).min()) * size / fov
    if cmf_a == 0.01:
        assert step > 1 - 1e-6
    elif cmf_a == 1000:
        assert step < 1 + 1e-6
    else:
        assert step == pytest.approx(1, abs=1e-5)


def test_bad_sizes_are_refused() -> None:
    for arguments in ((0, 64), (-1, 64), (math.nan, 64), (256, 3)):
        with pytest.raises(ValueError, match="must be"):
            smallest_cmf_a(*arguments)
    with pytest.raises(ValueError, match="fov"):
        smallest_cmf_a(256, 64, fov=0)
