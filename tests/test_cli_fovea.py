"""``sightline fovea show``: what it writes and prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import run
from sightline.cli import fovea_show
from sightline.fovea import SensorGrid

FILES = ["sensor", "samples", "fixations", "surface", "layers", "receptive_field", "rf_diameters"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_given_fixations(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = run("fovea", "show", picture, "--fixation", "0.5,0.5", "--fixation", "0,1", "--res", "16", "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    numbers = json.loads(result.stdout)
    assert numbers["sensor"]["points"] == 230 and numbers["sensor"]["share_of_pixels"] == 230 / (48 * 64)
    assert [(look["row"], look["col"]) for look in numbers["fixations"]] == [(0.5, 0.5), (0.0, 1.0)]
    assert numbers["fixations"][0]["points_inside"] == 230 and numbers["fixations"][0]["field_pixels"] == [48.0, 48.0]
    assert 230 / 5 < numbers["fixations"][1]["points_inside"] < 230 / 2  # about a quarter of the field
    assert list(numbers["files"]) == FILES
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{name}.png" for name in FILES)
    for path in out.iterdir():
        with Image.open(path) as drawn:
            assert min(drawn.size) > 200


@pytest.mark.parametrize("policy", fovea_show.POLICIES)
def test_policies(policy: str) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 48, 64), dtype=np.uint8))
    sensor = SensorGrid.matched(16, 0.5, 8)
    seen = []
    for seed in (3, 3, 4):
        job = fovea_show.make_job(
            Path("x.png"), Path("out"), fixation=(), policy=policy, fixations=2, fov=16.0, cmf_a=0.5, res=8, style="isotropic",
            sampler="nearest", field_size=None, seed=seed,
        )  # fmt: skip
        seen.append(fovea_show._look(job, image, sensor).fixations)
    assert seen[0].shape == (1, 1 if policy == "center" else 2, 2)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2]) == (policy in {"center", "saliency"})


def test_a_table_for_people_and_another_style(picture: Path, tmp_path: Path) -> None:
    result = run("fovea", "show", picture, "--res", "12", "--style", "uniform", "--policy", "saliency", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "144 points over 16 degrees" in result.stdout and "fixation 1" in result.stdout
    assert not (tmp_path / "out" / "surface.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fixation", "0.5,1.5"], "from 0 to 1"),
        (["--fixation", "nan,0.5"], "from 0 to 1"),
        (["--fixation", "120"], "ROW,COL"),
        (["--fov", "0"], "--fov: expected a number above 0"),
        (["--fov", "nan"], "--fov"),
        (["--fov", "400"], "at most 180"),
        (["--cmf-a", "-1"], "--cmf-a"),
        (["--res", "2"], "--res"),
        (["--field-size", "0"], "--field-size"),
        (["--policy", "other"], "--policy: expected one of"),
        (["--style", "hexagonal"], "--style"),
        (["--sampler", "cubic"], "--sampler"),
        (["--policy", "random", "--fixation", "0.5,0.5"], "one of them"),
    ],
)
def test_wrong_usage(picture: Path, tmp_path: Path, options: list[str], words: str) -> None:
    result = run("fovea", "show", picture, *options, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "file").write_text("")
    for image, output, words in (
        (tmp_path / "missing.png", tmp_path / "out", "there is no file"),
        (tmp_path / "broken.png", tmp_path / "out", "not an image"),
        (picture, tmp_path / "file" / "out", "cannot be made"),
    ):
        result = run("fovea", "show", image, "-o", output)
        assert result.exit_code == 1
        assert words in result.stderr and result.stderr.count("\n") == 1
    assert "sightline fovea show street.jpg" in " ".join(run("fovea", "show", "--help").stdout.split())
