"""torchvision beside a torch that its compiled part was not built for, and as it is where it imports by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from commands import make_video
from sightline.torchvision_import import nms

INSTALLED = """
import importlib.util, sys
sys.exit(0 if importlib.util.find_spec("torchvision") and importlib.util.find_spec("timm") else 3)
"""


def python(code: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    more = {} if path is None else {"PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, **more}, check=False)


@pytest.fixture(scope="module")
def libraries() -> None:
    if python(INSTALLED).returncode:
        pytest.skip("torchvision or timm is not installed")


def slow_nms(boxes: Tensor, scores: Tensor, limit: float) -> list[int]:
    """By the definition, box by box, in Python's floats."""
    order = sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i))
    kept: list[int] = []
    for i in order:
        a = boxes[i].tolist()
        for j in kept:
            b = boxes[j].tolist()
            sides = [max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)]
            both = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - sides[0] * sides[1]
            if sides[0] * sides[1] / both > limit:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("limit", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_suppression_by_its_definition(count: int, limit: float) -> None:
    corner = torch.rand(count, 2, dtype=torch.float64) * 20
    boxes = torch.cat([corner, corner + 1 + 10 * torch.rand(count, 2, dtype=torch.float64)], 1)
    scores = torch.rand(count, dtype=torch.float64).mul(8).round()  # with ties
    got = nms(boxes, scores, limit)
    assert got.dtype == torch.int64
    assert got.tolist() == slow_nms(boxes, scores, limit)
    assert count < 60 or limit > 0.8 or 1 < len(got) < 60


def test_networks_by_name(libraries: None, tmp_path: Path) -> None:
    """In a process that has not imported torchvision, first from a user's file; then suppression works through torchvision's own name."""
    (tmp_path / "nets.py").write_text("from torchvision.models import resnet18 as make\n")
    code = """
import sys
from sightline.models import load_model
for name in sys.argv[1:]:
    print(type(load_model(name).model).__name__)
import torch, torchvision
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
print(torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist())
print(torchvision.ops.batched_nms(boxes, torch.tensor([0.5, 0.9, 0.1]), torch.tensor([0, 1, 1]), 0.5).tolist())
"""
    done = python(code, f"{tmp_path / 'nets.py'}:make", "torchvision:squeezenet1_1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:4] == ["ResNet", "SqueezeNet", "[1, 2]", "[1, 0, 2]"]


def test_a_torchvision_that_imports_is_left_alone(tmp_path: Path) -> None:
    """A stand-in on the path: no operator is declared for it."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("whole = True\n")
    code = """
import torch
from sightline.torchvision_import import import_torchvision
assert import_torchvision().whole and import_torchvision() is import_torchvision()
assert not hasattr(torch.ops.torchvision, "nms")
"""
    done = python(code, path=tmp_path)
    assert done.returncode == 0, done.stderr


def test_other_failures_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('no disk')\n")
    done = python("from sightline.torchvision_import import import_torchvision; import_torchvision()", path=tmp_path)
    assert "RuntimeError: no disk" in done.stderr


@pytest.mark.parametrize("model", ["torchvision:mobilenet_v3_small", "timm:lcnet_035"])
def test_the_command_streams_networks_by_name(libraries: None, model: str, tmp_path: Path) -> None:
    video, numbers = make_video(tmp_path / "gate.mp4", 4), tmp_path / "r.json"
    code = "import sys; from sightline.cli.main import main; sys.argv[0] = 'sightline'; main()"
    options = ("--size", "64x64", "--json", str(numbers), "--quiet", "--global-ops", "hold")
    done = python(code, "stream", str(video), "--model", model, *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(numbers.read_text())
    assert len(told["frames"]) == 4
    assert told["settings"]["global_ops"] == "hold"


def test_the_command_refuses_other_words(tmp_path: Path) -> None:
    code = "import sys; from sightline.cli.main import main; sys.argv[0] = 'sightline'; main()"
    done = python(code, "stream", "x.mp4", "--model", "timm:lcnet_035", "--global-ops", "never")
    assert done.returncode == 2
    assert "--global-ops: expected one of exact, hold; got 'never'" in " ".join(done.stderr.split())
