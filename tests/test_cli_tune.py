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


def _kill_after(entries: int, checkpoint: Path, arguments: list[str]) -> None:
    """Starts a command and kills it, with no chance to clean up, once so many passes are finished."""
    with subprocess.Popen(
        [sys.executable, "-m", "sightline.cli.main", *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up and process.poll() is None:
            if checkpoint.exists() and len(json.loads(checkpoint.read_text())["entries"]) >= entries:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert process.returncode == -signal.SIGKILL


def test_a_killed_command_goes_on(tmp_path: Path, networks: Path) -> None:
    """SIGKILL twice: whatever was finished is in the file, the same command goes on, and the end is that of an undisturbed run."""
    video, output, undisturbed = make_video(tmp_path / "long.mp4", 12, 4), tmp_path / "t.json", tmp_path / "u.json"
    checkpoint = tmp_path / "t.json.checkpoint"
    arguments = ["tune", str(video), "-m", f"{networks}:segment", "-o", str(output), "--budget", "4", "--noise", "none"]
    known: dict[str, object] = {}
    for entries in (3, 9):
        _kill_after(entries, checkpoint, arguments)
        found = json.loads(checkpoint.read_text())["entries"]
        assert len(found) >= entries and known.items() <= found.items()
        known = found
        assert not output.exists()
    (tmp_path / ".t.json.4194999.partial.checkpoint").write_text('{"format"')  # of a process that was killed while writing
    result = run(*arguments)
    assert result.exit_code == 0 and f"{len(known)} of them resumed" in result.stdout, result.output
    assert not list(tmp_path.glob("*.partial*")) and not checkpoint.exists()
    assert run(*arguments[:5], str(undisturbed), *arguments[6:]).exit_code == 0
    assert dict(sl.Thresholds.read(output)) == dict(sl.Thresholds.read(undisturbed))


def test_the_checkpoint_is_whole_whenever_it_is_looked_at(tmp_path: Path) -> None:
    """A process that does nothing but write is killed at many moments; what it has reported as kept is there."""
    path = tmp_path / "c.json"
    code = (
        "import sys\nfrom pathlib import Path\nfrom sightline.tune.checkpoint import Checkpoint\n"
        "kept = Checkpoint(Path(sys.argv[1]), {})\n"
        "while True:\n    number = len(kept.entries)\n    kept.add(str(number), {'x': [0.1] * 400})\n    print(number, flush=True)"
    )
    last = -1
    for delay in (0.0, 0.007):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            told = [int(line) for line in process.stdout if line.endswith("\n")]
        last = max([last, *told])
        entries = json.loads(path.read_text())["entries"]
        assert len(entries) > last and all(entry == {"x": [0.1] * 400} for entry in entries.values())


def test_short_clips_are_told(tmp_path: Path, networks: Path) -> None:
    short = make_video(tmp_path / "short.mp4", 5, 4)
    arguments = ("-m", f"{networks}:segment", "-o", tmp_path / "t.json")
    for more, message in (((), "at least 6"), (("--start", 3), "at least 6"), (("--start", 50), "short.mp4")):
        result = run("tune", short, *arguments, *more)
        assert result.exit_code == 1 and message in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.output
    fits = make_video(tmp_path / "fits.mp4", 10, 4)
    result = run("tune", fits, *arguments, "--holdout", 0.9)
    assert result.exit_code == 1 and "leaves 1 of 10 frames" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["fits.mp4", "networks.py", "short.mp4"]


_FILES: dict[str, dict[str, Any]] = {
    "nan": {"thresholds": {"input": float("nan")}},
    "negative": {"thresholds": {"input": -0.5}},
    "text": {"thresholds": {"input": "much"}},
    "null": {"thresholds": {"input": None}},
    "list": {"thresholds": [1.0]},
    "unit": {"unit": "metres"},
    "norm": {"norm": "l7"},
    "tuning": {"tuning": [1]},
    "frontier": {"tuning": {"frontier": "steep"}},
    "point": {"tuning": {"frontier": [{"error": "a", "work": 0.5}]}},
    "name": {"thresholds": {"input": 0.1, "2": 0.1, "9": 0.1}},
}


@pytest.mark.parametrize("what", _FILES)
def test_wrong_thresholds_files(tmp_path: Path, networks: Path, video: Path, what: str) -> None:
    path = tmp_path / "t.json"
    content = {"format": "sightline-thresholds", "version": 1, "unit": "std", "thresholds": {"input": 0.1, "0": 0.1, "2": 0.1}}
    path.write_text(json.dumps({**content, **_FILES[what]}))
    result = run("stream", video, "-m", f"{networks}:segment", "--thresholds", path, "--report", tmp_path / "r.html", "-q")
    line = result.stderr.strip()
    assert result.exit_code == 1 and line.startswith("sightline: ") and "\n" not in line and ".." not in line, result.output
    assert "should not have happened" not in line and ("another network" if what == "name" else "t.json") in line
    assert not (tmp_path / "r.html").exists()
    if what in ("nan", "negative", "text", "null"):
        assert "threshold of 'input' must be a finite number, at least 0" in line


def test_a_damaged_or_missing_thresholds_file(tmp_path: Path, networks: Path, video: Path) -> None:
    half = tmp_path / "half.json"
    half.write_text('{"format": "sightline-thr')
    for path, message in ((half, "damaged"), (tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        result = run("stream", video, "-m", f"{networks}:segment", "--thresholds", path, "-q")
        assert result.exit_code == 1 and message in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.output


def test_the_frontier_travels_with_the_thresholds(tmp_path: Path, networks: Path, video: Path) -> None:
    output, page, numbers = tmp_path / "t.json", tmp_path / "r.html", tmp_path / "r.json"
    assert run("tune", video, "-m", f"{networks}:segment", "-o", output, "--budget", 4, "--noise", "none", "-q").exit_code == 0
    tuning = sl.Thresholds.read(output).tuning
    assert tuning is not None and tuning["metric"] == "noise" and tuning["budget"] == 4 and len(tuning["frontier"]) >= 2
    result = run("stream", video, "-m", f"{networks}:segment", "--thresholds", output, "--report", page, "--json", numbers, "-q")
    assert result.exit_code == 0, result.output
    assert json.loads(numbers.read_text())["tuning"] == tuning
    assert "Saving against error" in page.read_text() and "tuning, on held-back frames" in page.read_text()
