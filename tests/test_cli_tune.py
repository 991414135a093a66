"""``sightline tune`` and ``sightline stream --thresholds``: what they write and print, and how they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from commands import make_video, run

NETWORKS = """
import torch

def segment():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1),
                               torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, padding=1))
    return body

def other():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
"""


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_video(tmp_path / "gate.mp4", 10, 4)


def test_tune_then_stream(tmp_path: Path, networks: Path, video: Path) -> None:
    output, numbers, picture = tmp_path / "thresholds.json", tmp_path / "numbers.json", tmp_path / "frontier.svg"
    result = run(
        "tune", video, "-m", f"{networks}:segment", "-o", output, "--budget", 4, "--json", numbers, "--picture", picture, "--frames", 10
    )
    assert result.exit_code == 0, result.output
    assert "of dense" in result.stdout and "noise" in result.stdout and str(output) in result.stdout.replace("\n", "")
    document = json.loads(numbers.read_text())
    assert 0 < document["error"] <= 4 and document["macs_share"] < 1 and document["frames_held_back"] == 2
    assert document["pixel_scale"] == pytest.approx([1 / 255] * 3)
    assert document["thresholds"] == dict(sl.Thresholds.read(output)) and document["frontier"]
    assert picture.stat().st_size > 2000 and not list(tmp_path.glob("*.checkpoint")) and not list(tmp_path.glob("*.partial*"))

    report = tmp_path / "report.json"
    result = run("stream", video, "-m", f"{networks}:segment", "--thresholds", output, "--json", report, "-q")
    assert result.exit_code == 0, result.output
    told = json.loads(report.read_text())
    assert told["settings"]["threshold"] == str(output)
    stream = sl.stream(_module(networks), sl.Thresholds.read(output))
    assert stream._norm == "rms" and stream._noise == document["noise"]

    result = run("stream", video, "-m", f"{networks}:other", "--thresholds", output, "-q")
    assert result.exit_code == 1 and "another network" in result.stderr
    result = run("stream", video, "-m", f"{networks}:segment", "--thresholds", numbers, "-q")
    assert result.exit_code == 1 and "not a thresholds file" in result.stderr


def _module(networks: Path) -> Any:
    from sightline.models import load_model

    return load_model(f"{networks}:segment").model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "0"), "--budget"), (("--budget", "-2"), "--budget"), (("--metric", "accuracy"), "--metric"),
        (("--metric", "top1"), "--budget"),
        (("--method", "magic"), "--method"), (("--noise", "median"), "--noise"), (("--holdout", "1"), "--holdout"),
        (("--picture", "frontier.gif"), "--picture"), (("--size", "big"), "--size"), (("--backend", "tpu"), "--backend"),
        (("--objective", "joules"), "--objective"),
    ],
)  # fmt: skip
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("tune", "gate.mp4", "-m", "a.py:b", "-o", tmp_path / "t.json", *arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert not list(tmp_path.iterdir())


def test_failures_are_one_sentence(tmp_path: Path, networks: Path, video: Path) -> None:
    output = tmp_path / "t.json"
    short = run("tune", video, "-m", f"{networks}:segment", "-o", output, "--frames", 5)
    missing = run("tune", tmp_path / "none.mp4", "-m", f"{networks}:segment", "-o", output)
    unwritable = run("tune", video, "-m", f"{networks}:segment", "-o", tmp_path / "nowhere" / "t.json")
    unfit = run("tune", video, "-m", f"{networks}:segment", "-o", output, "--metric", "detection_f1", "--budget", 0.1)
    foreign = tmp_path / "c.json"
    foreign.write_text("{}")
    checkpoint = run("tune", video, "-m", f"{networks}:segment", "-o", output, "--checkpoint", foreign)
    messages = (
        (short, "at least 6"),
        (missing, "none.mp4"),
        (unwritable, "--output"),
        (unfit, "cannot read this network"),
        (checkpoint, "c.json"),
    )
    for result, message in messages:
        assert result.exit_code == 1 and message in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert not output.exists()


def test_interrupt_then_resume(tmp_path: Path, networks: Path) -> None:
    """Ctrl-C in mid-search: exit code 130, a sentence, and the same command goes on."""
    video, output, checkpoint = make_video(tmp_path / "long.mp4", 16, 4), tmp_path / "t.json", tmp_path / "kept.json"
    arguments = ["tune", str(video), "-m", f"{networks}:segment", "-o", str(output), "--checkpoint", str(checkpoint), "--budget", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "sightline.cli.main", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            if checkpoint.exists() and len(json.loads(checkpoint.read_text())["entries"]) >= 3:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped after" in errors and "kept.json" in errors
    assert not output.exists()
    finished = len(json.loads(checkpoint.read_text())["entries"])
    result = run(*arguments)
    assert result.exit_code == 0 and f"{finished} of them resumed" in result.stdout, result.output
    assert output.exists() and checkpoint.exists()  # one that the user named stays
