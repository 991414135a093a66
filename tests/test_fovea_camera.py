"""Calibrated cameras: against what fovi 2.4 measured, there and back, and samples along rays."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sightline as sl
from sightline.fovea import CalibratedCamera, CameraSampler, RandomSaccades, RetinalTransform, SensorGrid
from sightline.fovea.gaze import gaze_rotation, retinal_rays
from sightline.fovea.sampling import sample_at

PINHOLE = CalibratedCamera("pinhole", (96, 128), (80.0, 90.0, 63.0, 48.0))
BENT = CalibratedCamera("pinhole", (96, 128), (80.0, 90.0, 63.0, 48.0), (-0.2, 0.05, 0.003, -0.002, 0.01), max_angle=60)
FISHEYE = CalibratedCamera("fisheye", (128, 128), (50.0, 50.0, 63.5, 63.5), (0.02, -0.003, 0.001, -0.0002), (63.5, 63.5, 62.0), 100)
CAMERAS = [PINHOLE, BENT, FISHEYE]
GRID = SensorGrid(40, 1.0, 7, manifold="spherical")
FIXATIONS = torch.tensor([[0.5, 0.5], [0.3, 0.7], [0.1, 0.12]], dtype=torch.float64)
# fovi 2.4.0, measured: how many of 58 points are seen at the three fixations, and pixels of some (fixation, point).
SEEN = [(0, 3), (0, 56), (1, 0), (1, 20), (1, 53)]
FOVI: list[tuple[CalibratedCamera, str, list[int], list[list[float]]]] = [
    (PINHOLE, "camera_xyz", [58, 55, 42], [[62.7533, 46.8897], [78.0498, 75.8527], [89.1, 28.3], [84.4249, 31.8553], [63.2507, 44.0704]]),
    (PINHOLE, "pan_tilt", [58, 55, 41], [[62.7533, 46.8897], [78.0507, 75.8521], [89.1, 28.3], [84.6302, 32.1723], [64.1651, 45.8374]]),
    (BENT, "camera_xyz", [58, 55, 43], [[62.7533, 46.8898], [77.664, 75.2127], [89.1, 28.3], [84.7761, 31.565], [64.045, 43.3603]]),
    (BENT, "pan_tilt", [58, 56, 42], [[62.7533, 46.8898], [77.6648, 75.2122], [89.1, 28.3], [84.9911, 31.8978], [65.0243, 45.2499]]),
    (FISHEYE, "camera_xyz", [58, 58, 0], [[63.0333, 63.1609], [72.2475, 78.6512], [89.1, 37.9], [86.2283, 39.3708], [72.5087, 44.7339]]),
    (FISHEYE, "pan_tilt", [58, 58, 0], [[63.0333, 63.1609], [72.2475, 78.6512], [89.1, 37.9], [86.7912, 40.1249], [75.1143, 48.8591]]),
]


@pytest.mark.parametrize(("camera", "convention", "counts", "wanted"), FOVI)
def test_pixels_are_those_of_fovi(camera: CalibratedCamera, convention: str, counts: list[int], wanted: list[list[float]]) -> None:
    sampler = CameraSampler(GRID, camera, "bilinear", convention)
    pixels, seen = sampler.pixels(FIXATIONS)
    assert seen.sum(1).tolist() == counts
    for (fixation, point), place in zip(SEEN, wanted, strict=True):
        assert pixels[fixation, point].tolist() == pytest.approx(place, abs=2e-4)


@given(x=st.floats(0, 127), y=st.floats(0, 95), camera=st.sampled_from([PINHOLE, BENT]))
def test_there_and_back_through_a_pinhole(x: float, y: float, camera: CalibratedCamera) -> None:
    pixel = torch.tensor([x, y], dtype=torch.float64)
    direction, known = camera.unproject(pixel)
    assert bool(known)
    assert float(direction.norm()) == pytest.approx(1)
    again, seen = camera.project(3 * direction)
    assert bool(seen)
    assert again.tolist() == pytest.approx([x, y], abs=1e-9)


@given(angle=st.floats(0, 65), turn=st.floats(0, 2 * math.pi))
def test_a_fisheye_against_its_formula(angle: float, turn: float) -> None:
    theta = math.radians(angle)
    direction = torch.tensor([math.sin(theta) * math.cos(turn), math.sin(theta) * math.sin(turn), math.cos(theta)], dtype=torch.float64)
    k1, k2, k3, k4 = FISHEYE.distortion
    r = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
    pixel, seen = FISHEYE.project(direction)
    assert pixel.tolist() == pytest.approx([63.5 + 50 * r * math.cos(turn), 63.5 + 50 * r * math.sin(turn)], abs=1e-9)
    assert bool(seen) is (50 * r <= 62)
    back, known = FISHEYE.unproject(pixel)
    assert bool(known) is bool(seen)
    torch.testing.assert_close(back, direction, atol=1e-9, rtol=0)


def test_pinhole_distortion_against_its_formula() -> None:
    k1, k2, p1, p2, k3 = BENT.distortion
    for x, y in ((0.1, -0.3), (0.5, 0.4), (-0.6, 0.05)):
        r2 = x * x + y * y
        factor = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        wanted = (x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * factor + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y)
        pixel, _ = BENT.project(torch.tensor([x, y, 1.0], dtype=torch.float64))
        assert pixel.tolist() == pytest.approx([80 * wanted[0] + 63, 90 * wanted[1] + 48], abs=1e-9)


@pytest.mark.parametrize("convention", ["camera_xyz", "pan_tilt"])
def test_the_eye_turns_to_the_direction(convention: str) -> None:
    directions = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    turned = gaze_rotation(directions, convention)
    ahead = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(turned @ ahead, directions, atol=1e-12, rtol=0)
    torch.testing.assert_close(turned @ turned.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(50, 3, 3), atol=1e-12, rtol=0)
    if convention == "pan_tilt":  # the eye's horizontal stays horizontal
        assert float(turned[:, 1, 0].abs().max()) < 1e-12


def test_rays_have_the_angles_of_the_sensor() -> None:
    rays = retinal_rays(GRID.exact.cartesian, 40)
    angle = torch.rad2deg(torch.acos(rays[:, 2].clamp(-1, 1)))
    torch.testing.assert_close(angle, GRID.exact.polar[:, 0] * 20, atol=1e-5, rtol=0)
    torch.testing.assert_close(rays.norm(dim=1), torch.ones(58, dtype=torch.float64))
    assert bool((rays[:, 1] * GRID.exact.cartesian[:, 1] <= 1e-15).all())  # up is -Y


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.model)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_samples_lie_where_the_pixels_do(camera: CalibratedCamera, mode: str) -> None:
    """An image of its own coordinates."""
    height, width = camera.image_size
    rows, cols = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    images = (1 + torch.stack((cols, rows)))[None].double().expand(3, -1, -1, -1)
    retina = RetinalTransform(GRID, sampler=mode, camera=camera)
    found = retina(images, FIXATIONS)
    pixels, seen = CameraSampler(GRID, camera, mode).pixels(FIXATIONS)
    inner = seen & (pixels > 0).all(-1) & (pixels < torch.tensor([width - 1.0, height - 1.0])).all(-1)
    assert int(inner.sum()) > 90
    gap = (found.transpose(1, 2) - 1 - pixels).abs().amax(-1)
    assert float(gap[inner].max()) < (0.501 if mode == "nearest" else 1e-9)
    assert not bool(found.transpose(1, 2)[~seen].any())
    assert found.permute(2, 0, 1).is_contiguous()
    byte = RetinalTransform(GRID, sampler=mode, camera=camera)((images * 0.9).to(torch.uint8), FIXATIONS)
    assert bool((byte.transpose(1, 2)[~seen] == 0).all())


def test_gradients_through_lens_and_eye() -> None:
    images = torch.rand(1, 1, 96, 128, dtype=torch.float64)
    retina = RetinalTransform(SensorGrid(20, 1.0, 4), sampler="bilinear", camera=BENT)
    fixations = torch.tensor([[0.43, 0.57]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: retina(images, f), (fixations,), atol=1e-4)


def test_the_fovea_sees_the_fixation_and_policies_work() -> None:
    images = torch.rand(2, 3, 96, 128)
    retina = RetinalTransform(GRID, camera=PINHOLE)
    fixations = torch.tensor([[[20.5 / 96, 30.5 / 128], [70.5 / 96, 100.5 / 128]]]).expand(2, -1, -1)
    found = retina(images, fixations)
    assert torch.equal(found[:, 0, :, 0], images[:, :, 20, 30])
    assert torch.equal(found[:, 1, :, 0], images[:, :, 70, 100])
    seen = RandomSaccades(retina, 3, near_center=0.2)(images)
    assert torch.equal(seen.samples, retina(images, seen.fixations))
    with pytest.raises(ValueError, match="angle"):
        retina(images, sizes=20)
    with pytest.raises(sl.ShapeError, match="resized"):
        retina(torch.rand(1, 3, 48, 64))


def test_resized_cameras_see_the_same() -> None:
    small = PINHOLE.resized((48, 64))
    directions = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64) * 0.2 + torch.tensor([0, 0, 1.0]), dim=-1)
    before, _ = PINHOLE.project(directions)
    after, _ = small.project(directions)
    torch.testing.assert_close(after, (before + 0.5) / 2 - 0.5)
    assert FISHEYE.resized((256, 256)).image_circle == (127.5, 127.5, 124.0)
    with pytest.raises(ValueError, match="proportions"):
        FISHEYE.resized((64, 128))


def test_positions_that_nobody_sees_are_zero() -> None:
    for dtype in (torch.float32, torch.uint8):
        images = torch.ones(1, 1, 4, 4).to(dtype)
        assert not bool(sample_at(images, torch.full((2, 1, 1, 3), -10.0), "bilinear").any())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": "orthographic"}, "model"),
        ({"image_size": (0, 128)}, "image_size"),
        ({"intrinsics": (0.0, 90.0, 63.0, 48.0)}, "intrinsics"),
        ({"intrinsics": (80.0, math.nan, 63.0, 48.0)}, "intrinsics"),
        ({"intrinsics": (80.0, 90.0, 63.0)}, "intrinsics"),
        ({"distortion": (0.1, 0.2)}, "distortion"),
        ({"distortion": (0.1, 0.2, math.inf, 0.0)}, "distortion"),
        ({"image_circle": (1.0, 2.0, 0.0)}, "image_circle"),
        ({"max_angle": 0}, "max_angle"),
        ({"max_angle": 100}, "max_angle"),
        ({"model": "fisheye", "max_angle": 180}, "max_angle"),
    ],
)
def test_bad_cameras_are_refused(change: dict[str, Any], word: str) -> None:
    arguments: dict[str, Any] = {"model": "pinhole", "image_size": (96, 128), "intrinsics": (80.0, 90.0, 63.0, 48.0)}
    with pytest.raises(ValueError, match=word):
        CalibratedCamera(**(arguments | change))


def test_bad_eyes_are_refused() -> None:
    with pytest.raises(ValueError, match="gaze"):
        RetinalTransform(GRID, camera=PINHOLE, gaze="rolling")
    with pytest.raises(ValueError, match="nearest"):
        RetinalTransform(GRID, camera=PINHOLE, sampler="pooling")
    with pytest.raises(ValueError, match="360"):
        CameraSampler(SensorGrid(400, 1.0, 5), PINHOLE)
