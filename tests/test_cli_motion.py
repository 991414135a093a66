"""The command line with a moving camera: the path in numbers and in the report, and boxes that lie in the frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sightline.cli.app import app
from sightline.report.camera_path import joined, path_chart, path_length
from sightline.report.data import FrameRecord
from sightline.tasks import moved
from sightline.tasks.centerface import Faces
from test_motion import scene, view

NETWORK = """
import torch

def spot():
    '''Faces where it is bright, in CenterFace's form.'''
    class Spot(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = torch.nn.AvgPool2d(4)

        def forward(self, x):
            heat = (self.pool(x.mean(1, keepdim=True)) > 0.97).float()
            size = torch.cat([heat * 0 + 1.79] * 2, 1)
            return heat, size, size * 0, torch.cat([size] * 5, 1) * 0
    return Spot()
"""


@pytest.fixture
def pan(tmp_path: Path) -> Path:
    """Pictures of a camera that pans by 3 pixels, over a scene with a bright spot."""
    image = pytest.importorskip("PIL.Image")
    picture = scene(seed=2).clamp(0, 200)
    picture[:, :, 150:162, 200:212] = 255
    folder = tmp_path / "pan"
    folder.mkdir()
    for i in range(12):
        frame = view(picture, 120, 120 + 3 * i)[0].permute(1, 2, 0).to(torch.uint8).numpy()
        image.fromarray(frame).save(folder / f"{i:03}.png")
    return folder


def test_the_path_is_reported_and_boxes_lie_in_the_frame(pan: Path, tmp_path: Path) -> None:
    network = tmp_path / "networks.py"
    network.write_text(NETWORK)
    numbers, page, video = (tmp_path / name for name in ("run.json", "run.html", "run.mp4"))
    command = ["stream", pan, "--model", f"{network}:spot", "--size", "128x96", "--threshold", 0, "--motion", "translation"]
    done = CliRunner().invoke(app, [str(part) for part in [*command, "--json", numbers, "--report", page, "--output", video]])
    assert done.exit_code == 0, done.output
    run = json.loads(numbers.read_text())
    assert run["settings"]["motion"] == "translation"
    assert [round(frame["camera"][1]) for frame in run["frames"]] == [3 * i for i in range(12)]
    assert not any(frame["restart"] for frame in run["frames"])
    assert all(frame["mac_share"] <= 1 and "1 face" in frame["note"] for frame in run["frames"])
    text = page.read_text()
    assert "Path of the camera" in text
    assert "moved 33 pixels" in text
    assert video.exists()


def test_a_camera_that_stands_still_has_no_path(tmp_path: Path) -> None:
    record = FrameRecord(0, 0.0, 0.0, 0.0)
    assert joined([record, record]) == []
    assert path_length([record]) == 0


def test_the_path_is_drawn_with_its_restarts() -> None:
    frames = [FrameRecord(i, 0, 0, 0, camera=(float(i), 2.0 * i), restart=False) for i in range(4)]
    frames += [FrameRecord(4, 0, 0, 0, camera=(0.0, 0.0), restart=True), FrameRecord(5, 0, 0, 0, camera=(0.0, 5.0))]
    assert joined(frames)[1] == [(6.0, 3.0), (11.0, 3.0)]
    svg = path_chart(frames, (64, 48))
    assert svg.count("<polyline") == 2
    assert svg.count("<circle") == 1
    assert svg.count("<rect") == 2


def test_findings_move_with_the_frame() -> None:
    faces = Faces(np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([0.9]), np.full((1, 5, 2), 0.25))
    elsewhere = moved(faces, (0.1, -0.25))
    assert np.allclose(elsewhere.boxes, [[0.2, 0.0, 0.4, 0.15]])
    assert np.allclose(elsewhere.landmarks, [[[0.35, 0.0]] * 5])
    assert moved(faces, (0.0, 0.0)) is faces
    assert moved("a caption", (0.5, 0.5)) == "a caption"


def test_an_unknown_motion_is_wrong_usage(pan: Path) -> None:
    done = CliRunner().invoke(app, ["stream", str(pan), "--model", "torchvision:resnet18", "--motion", "sideways"])
    assert done.exit_code == 2
    assert "--motion: expected one of translation, affine" in " ".join(done.output.split())


@pytest.mark.parametrize("other", [("--aoi", "0,0,10,10"), ("--exposure", "global"), ("--noise", "temporal")])
def test_motion_with_what_it_excludes_is_wrong_usage(pan: Path, other: tuple[str, str]) -> None:
    done = CliRunner().invoke(app, ["stream", str(pan), "--model", "x.onnx", "--motion", "affine", *other])
    assert done.exit_code == 2
    assert f"--motion: cannot be combined with {other[0]}" in " ".join(done.output.split())
