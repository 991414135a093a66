"""The retina: samples against a direct formula in float64, gradients, NaN, layouts, colour, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import sightline as sl
from sightline.fovea import ColorDecay, RetinalTransform, SensorGrid
from sightline.fovea.color import luma_of
from sightline.fovea.pooling import PoolingSampler
from sightline.fovea.sampling import sample

SENSOR = SensorGrid(16, 0.5, 13)


def direct(
    images: torch.Tensor, points: torch.Tensor, fixations: torch.Tensor, sizes: torch.Tensor, mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples (B, F, C, N) in float64, value by value, and whether a nearest sample is safe from rounding (B, F, N)."""
    batch, channels, height, width = images.shape
    glances = fixations.shape[1]
    pixels = images.double().numpy()
    out = torch.zeros(batch, glances, channels, len(points), dtype=torch.float64)
    safe = torch.ones(batch, glances, len(points), dtype=torch.bool)
    for b in range(batch):
        for f in range(glances):
            row, col = fixations[b, f].tolist()
            h, w = sizes[b, min(f, sizes.shape[1] - 1)].tolist()
            for n, (x, y) in enumerate(points.tolist()):
                r, c = -y * h / 2 + row * height - 0.5, x * w / 2 + col * width - 0.5
                if mode == "nearest":
                    i, j = round(r), round(c)  # half to even
                    safe[b, f, n] = min(abs(r % 1 - 0.5), abs(c % 1 - 0.5)) > 1e-4
                    if 0 <= i < height and 0 <= j < width:
                        out[b, f, :, n] = torch.from_numpy(pixels[b, :, i, j])
                    continue
                i, j = math.floor(r), math.floor(c)
                for di, dj in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    weight = (1 - abs(r - i - di)) * (1 - abs(c - j - dj))
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        out[b, f, :, n] += weight * torch.from_numpy(pixels[b, :, i + di, j + dj])
    return out, safe


def some_images(dtype: torch.dtype, batch: int = 2, channels: int = 3, height: int = 37, width: int = 50) -> torch.Tensor:
    images = torch.rand(batch, channels, height, width, dtype=torch.float64)
    return (images * 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearest_is_the_pixel_that_the_formula_names(dtype: torch.dtype) -> None:
    images = some_images(dtype)
    fixations = torch.rand(2, 3, 2, dtype=torch.float64)
    sizes = torch.tensor([[[40.0, 30.0]], [[15.5, 90.0]]], dtype=torch.float64)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    found = sample(images, SENSOR.exact.cartesian.to(kind), fixations.to(kind), sizes.to(kind))
    wanted, safe = direct(images, SENSOR.exact.cartesian, fixations, sizes, "nearest")
    assert found.dtype == dtype
    assert float(safe.float().mean()) > 0.9
    mask = safe[:, :, None].expand_as(found)
    assert torch.equal(found.double()[mask], wanted[mask])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bilinear_against_float64(dtype: torch.dtype) -> None:
    images = some_images(dtype)
    fixations = torch.rand(2, 3, 2, dtype=torch.float64)
    sizes = torch.tensor([[[40.0, 30.0]], [[15.5, 90.0]]], dtype=torch.float64)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    points = SENSOR.exact.cartesian
    found = sample(images, points.to(kind), fixations.to(kind), sizes.to(kind), "bilinear")
    wanted, _ = direct(images, points.to(kind).double(), fixations.to(kind).double(), sizes, "bilinear")
    error = (found.double() - wanted).abs().max()
    # The plain operator in the same type on a grid of the same positions.
    rows = fixations[..., :1] * 37 - points[:, 1] * sizes[..., :1] / 2
    cols = fixations[..., 1:] * 50 + points[:, 0] * sizes[..., 1:] / 2
    grid = torch.stack((2 * cols / 50 - 1, 2 * rows / 37 - 1), dim=-1).to(kind)
    plain = F.grid_sample(images.to(kind), grid, align_corners=False).permute(0, 2, 1, 3)
    plain = plain if dtype == torch.uint8 else plain.to(dtype)
    floor = {torch.float64: 1e-14, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.uint8: 2e-3}[dtype]
    assert found.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    assert float(error) <= 2 * float((plain.double() - wanted).abs().max()) + floor


def test_between_two_pixels_the_even_one_is_taken() -> None:
    images = torch.arange(8.0).view(1, 1, 1, 8)
    for col, pixel in ((2, 2), (3, 2), (4, 4), (5, 4)):  # a border between pixels col - 1 and col
        for kind in (torch.float32, torch.float16):
            found = sample(images.to(kind), torch.zeros(1, 2), torch.tensor([[[0.5, col / 8]]]), torch.full((1, 1, 2), 8.0))
            assert found.item() == pixel


@given(
    row=st.floats(0, 1), col=st.floats(0, 1), size=st.floats(0.5, 500), dtype=st.sampled_from([torch.float32, torch.uint8, torch.float16])
)
def test_every_sample_is_a_pixel_or_zero(row: float, col: float, size: float, dtype: torch.dtype) -> None:
    images = torch.arange(1, 1 + 12 * 17).view(1, 1, 12, 17).to(dtype)
    retina = RetinalTransform(SENSOR, fixation_size=size)
    found = sample(images, SENSOR.cartesian, torch.tensor([[[row, col]]]), torch.full((1, 1, 2), size))
    assert set(found.flatten().tolist()) <= {0.0, *images.flatten().tolist()}
    whole = retina(images, (row, col))
    assert torch.equal(whole[:, 0], found[:, 0, 0].float() / 255 if dtype == torch.uint8 else found[:, 0, 0])


def test_outside_is_zero_and_nan_stays_where_it_is() -> None:
    for dtype in (torch.float32, torch.float16):
        images = torch.ones(1, 1, 20, 20, dtype=dtype)
        images[0, 0, 0] = math.nan  # the top row, next to what lies outside
        for mode in ("nearest", "bilinear"):
            retina = RetinalTransform(SENSOR, sampler=mode, fixation_size=16)
            found = retina(images, (0.0, 0.5))[0, 0]
            y = SENSOR.cartesian[:, 1] * 8  # rows above the border
            assert bool((found[y > 0.51] == 0).all())
            torch.testing.assert_close(found[y < -1.6].float(), torch.ones(int((y < -1.6).sum())), atol=1e-3, rtol=0)
            assert bool(found[(y < -0.6) & (y > -0.9)].isnan().all())
            assert int(found.isnan().sum()) > 3


@pytest.mark.parametrize("sampler", ["nearest", "bilinear", "pooling", "gaussian_pooling"])
def test_nodes_come_first_in_memory(sampler: str) -> None:
    retina = RetinalTransform(SENSOR, sampler=sampler, fixation_size=32)
    images = some_images(torch.float32, batch=3)
    before = images.clone()
    single, several = retina(images), retina(images, torch.full((3, 2, 2), 0.5))
    assert single.shape == (3, 3, 230)
    assert single.permute(2, 0, 1).is_contiguous()
    assert several.shape == (3, 2, 3, 230)
    # Fixations folded into the batch, fixation-major, are node-major too without a copy.
    folded = several.transpose(0, 1).flatten(0, 1)
    assert folded.permute(2, 0, 1).is_contiguous()
    assert folded.data_ptr() == several.data_ptr()
    assert torch.equal(several[:, 0], single)
    assert torch.equal(several[:, 1], single)
    assert torch.equal(images, before)


@pytest.mark.parametrize("sampler", ["nearest", "bilinear", "pooling"])
def test_batches_of_fixations_are_single_ones_side_by_side(sampler: str) -> None:
    retina = RetinalTransform(SENSOR, sampler=sampler)
    images = some_images(torch.float32, batch=3)
    fixations, sizes = torch.rand(3, 4, 2), 10 + 50 * torch.rand(3, 4, 2)
    together = retina(images, fixations, sizes)
    for b in range(3):
        for f in range(4):
            alone = retina(images[b : b + 1], fixations[b, f], sizes[b, f])
            torch.testing.assert_close(together[b, f], alone[0], atol=1e-6, rtol=1e-6)
    one_fixation = retina(images, fixations[:, 0], sizes)
    torch.testing.assert_close(one_fixation[:, 0], together[:, 0], atol=1e-6, rtol=1e-6)


def test_strides_of_images_do_not_matter() -> None:
    for dtype in (torch.float32, torch.uint8):
        images = some_images(dtype)
        retina = RetinalTransform(SENSOR, fixation_size=30)
        wanted = retina(images)
        assert torch.equal(retina(images.contiguous(memory_format=torch.channels_last)), wanted)
        assert torch.equal(retina(images.flip(3).contiguous().flip(3)), wanted)
        wide = torch.zeros(2, 3, 37, 70, dtype=dtype)
        wide[..., 10:60] = images
        assert torch.equal(retina(wide[..., 10:60]), wanted)


def test_uint8_is_a_255th() -> None:
    images = some_images(torch.uint8)
    for sampler, exact in (("nearest", True), ("bilinear", False), ("pooling", False)):
        retina = RetinalTransform(SENSOR, sampler=sampler, fixation_size=30)
        found, wanted = retina(images), retina(images.float() / 255)
        assert found.dtype == torch.float32
        # Positions are rounded to about 1e-5 pixels, in two ways.
        torch.testing.assert_close(found, wanted, atol=0 if exact else 2e-5, rtol=0)


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("sampler", ["nearest", "bilinear", "pooling", "gaussian_pooling"])
def test_gradients_of_images(sampler: str) -> None:
    retina = RetinalTransform(SensorGrid(16, 0.5, 4), sampler=sampler, fixation_size=9)
    images = torch.rand(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    fixations = torch.rand(2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: retina(x, fixations), (images,))


def test_gradients_of_fixations_and_sizes() -> None:
    retina = RetinalTransform(SensorGrid(16, 0.5, 4), sampler="bilinear")
    images = torch.rand(2, 2, 40, 50, dtype=torch.float64)
    fixations = (0.3 + 0.4 * torch.rand(2, 3, 2, dtype=torch.float64)).requires_grad_()
    sizes = torch.tensor([11.3, 13.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, s: retina(images, f, s), (fixations, sizes))


def test_half_precision_and_uint8_carry_gradients_to_the_fixation() -> None:
    for dtype in (torch.float16, torch.uint8):
        retina = RetinalTransform(SENSOR, sampler="bilinear", fixation_size=20)
        images = some_images(dtype)
        fixation = torch.full((2, 2), 0.5, requires_grad=True)
        retina(images, fixation).sum().backward()
        reference = torch.full((2, 2), 0.5, requires_grad=True)
        retina(images.float() / 255 if dtype == torch.uint8 else images.float(), reference).sum().backward()
        assert fixation.grad is not None
        assert reference.grad is not None
        assert float(reference.grad.abs().min()) > 0
        torch.testing.assert_close(fixation.grad, reference.grad, atol=0.02, rtol=0.02)


def test_gradient_descent_finds_what_it_looks_for() -> None:
    """A bright blob: moving the fixation uphill brings it to the middle of the blob."""
    row, col = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    images = torch.exp(-((row - 40) ** 2 + (col - 22) ** 2) / 200)[None, None]
    retina = RetinalTransform(SENSOR, sampler="bilinear", fixation_size=20)
    fixation = torch.tensor([0.5, 0.5], requires_grad=True)
    optimizer = torch.optim.Adam([fixation], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        (-retina(images, fixation).mean()).backward()
        optimizer.step()
    assert fixation.detach().tolist() == pytest.approx((40.5 / 64, 22.5 / 64), abs=0.01)


# ------------------------------------------------------------------------------------------------ pooling


@pytest.mark.parametrize("sigma", [None, 0.5])
@pytest.mark.parametrize("style", ["isotropic", "logpolar", "uniform"])
def test_pooling_against_brute_force(sigma: float | None, style: str) -> None:
    grid = SensorGrid(16, 0.5, 5, style=style)
    sampler = PoolingSampler(grid, factor=2.6, k=7, gauss_sigma=sigma)
    dense = sampler.receptors
    assert dense.resolution == 13
    images = some_images(torch.float64)
    fixations, sizes = torch.rand(2, 1, 2, dtype=torch.float64), torch.full((1, 1, 2), 30.0, dtype=torch.float64).expand(2, 1, 2)
    read = sample(images, dense.cartesian.double(), fixations, sizes)[:, 0]
    found = sampler(images, fixations, sizes)[:, 0]
    places = dense.exact.cortical if dense.exact.cortical is not None else dense.exact.cartesian
    padding = dense.exact.pad_cortical if dense.exact.pad_cortical is not None else dense.exact.pad_cartesian
    here = grid.exact.cortical if grid.exact.cortical is not None else grid.exact.cartesian
    everywhere = torch.cat((places, padding))
    for n, place in enumerate(here):
        gap = (everywhere - place).abs()
        if style == "logpolar":
            gap[:, 1] = torch.minimum(gap[:, 1], 1 - gap[:, 1])
        distance = gap.square().sum(1).sqrt()
        unit = 1e-6 * distance.sort().values[:40].max()
        nearest = torch.round(distance / unit).argsort(stable=True)[:7]
        if distance.sort().values[7] - distance.sort().values[6] < 1e-5:
            continue  # a tie at the last place
        weight = torch.ones(7, dtype=torch.float64)
        if sigma is not None:
            d = distance[nearest]
            weight = torch.exp(-(((d - d.min()) / (d.max() - d.min())) ** 2) / (2 * sigma**2))
        real = nearest < len(dense)
        wanted = (read[..., nearest[real]] * weight[real]).sum(-1) / weight[real].sum()
        torch.testing.assert_close(found[..., n], wanted, atol=1e-6, rtol=1e-6)


def test_pooling_keeps_light_and_drops_no_nan_elsewhere() -> None:
    retina = RetinalTransform(SENSOR, sampler="pooling", fixation_size=64)
    images = torch.full((1, 3, 128, 128), 0.7)
    torch.testing.assert_close(retina(images), torch.full((1, 3, 230), 0.7))
    images[0, 0, 64, 64] = math.nan  # what the fovea sees
    found = retina(images)
    assert 0 < int(found.isnan().sum()) < 60
    assert not bool(found[:, :, -20:].isnan().any())


# ------------------------------------------------------------------------------------------------ colour


def test_colour_fades_and_light_stays() -> None:
    samples = torch.rand(4, 3, 230, dtype=torch.float64)
    radius = SENSOR.exact.polar[:, 0]
    faded = ColorDecay(0.3)(samples, radius)
    torch.testing.assert_close(luma_of(faded), luma_of(samples), atol=1e-14, rtol=0)
    kept = torch.exp(-(radius**2) / (2 * 0.09))
    light = 0.299 * samples[:, 0] + 0.587 * samples[:, 1] + 0.114 * samples[:, 2]
    torch.testing.assert_close(faded, light[:, None] + kept * (samples - light[:, None]), atol=1e-14, rtol=0)
    assert torch.equal(faded[..., 0], samples[..., 0])
    # At the rim there is next to no colour, and light is what it was.
    spread = (faded.amax(1) - faded.amin(1))[:, -1]
    assert float(spread.max()) < 0.01
    gray = torch.rand(4, 1, 230, dtype=torch.float64).expand(-1, 3, -1)
    assert torch.equal(ColorDecay(0.3)(gray, radius), gray)


def test_colour_of_normalised_images() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    samples = torch.rand(2, 3, 230)
    m, s = torch.tensor(mean)[:, None], torch.tensor(std)[:, None]
    radius = SENSOR.cartesian.norm(dim=1)
    found = ColorDecay(0.4, mean=mean, std=std)((samples - m) / s, radius) * s + m
    torch.testing.assert_close(found, ColorDecay(0.4)(samples, radius), atol=2e-6, rtol=0)


def test_colour_of_one_channel_or_none() -> None:
    retina = RetinalTransform(SENSOR, color_sigma=0.2, fixation_size=30)
    images = some_images(torch.float32)
    assert torch.equal(retina(images[:, :1]), RetinalTransform(SENSOR, fixation_size=30)(images[:, :1]))
    with pytest.raises(sl.ShapeError, match="3 channels"):
        retina(images[:, :2])
    assert repr(ColorDecay(None)) == "ColorDecay(sigma=None)"
    for sigma in (0, -1, math.nan):
        with pytest.raises(ValueError, match="sigma"):
            ColorDecay(sigma)


def test_grey_in_eval_only() -> None:
    retina = RetinalTransform(SENSOR, gray_in_eval=True, fixation_size=30)
    plain = RetinalTransform(SENSOR, fixation_size=30)
    images = some_images(torch.float32)
    assert torch.equal(retina.train()(images), plain(images))
    torch.testing.assert_close(retina.eval()(images), luma_of(plain(images)).expand(-1, 3, -1))


# ------------------------------------------------------------------------------------------------ the rest


def test_transforms_in_training_only() -> None:
    seen: list[tuple[int, ...]] = []

    def post(samples: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(samples.shape))
        return samples + 1

    retina = RetinalTransform(SENSOR, pre_transforms=lambda x: 2 * x, post_transforms=post, fixation_size=16)
    plain = RetinalTransform(SENSOR, fixation_size=16)
    for images in (some_images(torch.float32), some_images(torch.uint8)):
        wanted = plain(images, torch.full((2, 3, 2), 0.5))
        torch.testing.assert_close(retina.train()(images, torch.full((2, 3, 2), 0.5)), 2 * wanted + 1)
        assert seen.pop() == (6, 3, 230, 1)
        assert torch.equal(retina.eval()(images, torch.full((2, 3, 2), 0.5)), wanted)
        assert not seen


def test_maps_stand_upright() -> None:
    row, col = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    images = torch.stack((row, col))[None]
    for style, norm in (("uniform_as_grid", 2.0), ("warped_cartesian_as_grid", math.inf)):
        retina = RetinalTransform(SensorGrid(16, 0.5, 8, style=style, field="square", radius_norm=norm), fixation_size=32)
        maps = retina(images)
        assert maps.shape == (1, 2, 8, 8)
        assert bool((maps[0, 0].diff(dim=0) > 0).all())
        assert bool((maps[0, 1].diff(dim=1) > 0).all())
        assert retina(images, torch.full((1, 5, 2), 0.5)).shape == (1, 5, 2, 8, 8)
    uniform = RetinalTransform(SensorGrid(16, 0.5, 32, style="uniform_as_grid"), fixation_size=32)
    assert torch.equal(uniform(images), images)


def test_cells_outside_the_field_are_zero_even_beside_nan() -> None:
    grid = SensorGrid(16, 0.5, 9, style="warped_cartesian")
    for sampler in ("nearest", "pooling"):
        retina = RetinalTransform(grid, sampler=sampler, fixation_size=16)
        found = retina(torch.full((1, 1, 64, 64), math.nan))
        assert torch.equal(found.isnan()[0, 0], grid.valid_mask)
        assert torch.equal(found[0, 0] == 0, ~grid.valid_mask)


def test_no_state_and_moves_between_types() -> None:
    retina = RetinalTransform(SENSOR, sampler="pooling", color_sigma=0.5, color_mean=(0, 0, 0), color_std=(1, 1, 1))
    assert retina.state_dict() == {}
    assert "GridSampler(fov=16, cmf_a=0.5, style=isotropic, resolution=13, mode=nearest, n=230)" in repr(RetinalTransform(SENSOR))
    images = some_images(torch.float32)
    kept = RetinalTransform(SENSOR, fixation_size=30)
    wanted = kept(images)
    # Positions in half precision would be whole pixels away.
    assert torch.equal(kept.half()(images), wanted)


def test_export_holds_the_same_samples() -> None:
    retina = RetinalTransform(SENSOR, fixation_size=30).eval()
    images, fixations = some_images(torch.float32), torch.rand(2, 2)
    program = torch.export.export(retina, (images, fixations))
    other = torch.rand(2, 2)
    assert torch.equal(program.module()(images, other), retina(images, other))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"images": torch.zeros(3, 8, 8)}, sl.ShapeError, "batch, channels"),
    ({"images": torch.zeros(1, 3, 0, 8)}, sl.ShapeError, "length 0"),
    ({"images": torch.zeros(1, 0, 8, 8)}, sl.ShapeError, "length 0"),
    ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}, sl.DTypeError, "uint8"),
    ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.complex64)}, sl.DTypeError, "uint8"),
    ({"images": [[1.0]]}, sl.DTypeError, "torch.Tensor"),
    ({"fixations": (0.5, math.nan)}, ValueError, "NaN"),
    ({"fixations": (1.2, 0.5)}, ValueError, "0 to 1"),
    ({"fixations": (-0.1, 0.5)}, ValueError, "0 to 1"),
    ({"fixations": (120.0, 80.0)}, ValueError, "divide pixels"),
    ({"fixations": (math.inf, 0.5)}, ValueError, "0 to 1"),
    ({"fixations": (0.1, 0.2, 0.3)}, sl.ShapeError, "pair"),
    ({"fixations": torch.zeros(3, 2)}, sl.ShapeError, "2 images"),
    ({"fixations": torch.zeros(2, 0, 2)}, sl.ShapeError, "2 images"),
    ({"sizes": 0}, ValueError, "above 0"),
    ({"sizes": (256, -1)}, ValueError, "above 0"),
    ({"sizes": math.nan}, ValueError, "above 0"),
    ({"sizes": math.inf}, ValueError, "above 0"),
    ({"sizes": torch.zeros(5)}, sl.ShapeError, "pair"),
]


@pytest.mark.parametrize(("change", "error", "word"), BAD)
def test_bad_input_is_refused(change: dict[str, Any], error: type[Exception], word: str) -> None:
    arguments: dict[str, Any] = {"images": torch.zeros(2, 3, 8, 8), "fixations": None, "sizes": None}
    with pytest.raises(error, match=word):
        RetinalTransform(SENSOR)(**(arguments | change))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="sampler"):
        RetinalTransform(SENSOR, sampler="grid_nn")
    with pytest.raises(ValueError, match="pool_k"):
        RetinalTransform(SENSOR, sampler="pooling", pool_k=10**6)
    with pytest.raises(ValueError, match="pool_factor"):
        RetinalTransform(SENSOR, sampler="pooling", pool_factor=0)
    with pytest.raises(ValueError, match="gauss_sigma"):
        RetinalTransform(SENSOR, sampler="gaussian_pooling", gauss_sigma=-1)
