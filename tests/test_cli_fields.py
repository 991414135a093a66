"""``sightline fields``: what it prints and writes, the gate, and how it fails."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from sightline.cli import fields
from sightline.cli.app import app

NETWORKS = """
import torch
from torch import nn

def deep():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(12)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))

def grey():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())

class Mystery(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        return self.second(nn.functional.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False))

class Unruly(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x
"""


@pytest.fixture
def networks(tmp_path: Path) -> str:
    path = tmp_path / "nets.py"
    path.write_text(NETWORKS)
    return str(path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fields", *map(str, arguments)])


def test_table(networks: str) -> None:
    result = call(f"{networks}:deep", "--res", 16, "--input-shape", "1x3x32x32")
    assert result.exit_code == 0 and not result.stderr
    lines = result.stdout.splitlines()
    assert any(line.split()[:4] == ["4", "conv2d", "11", "11"] for line in lines)
    assert "At 16 x 16: 4 of 12 convolutions unproductive" in result.stdout
    assert sum("unproductive" in line for line in lines[:-1]) == 4


def test_table_on_a_terminal(networks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    kept = fields.run(fields.make_request(fields.FieldsOptions(f"{networks}:deep", res="16", input_shape="1,3,32,32")))
    text = capsys.readouterr().out
    assert kept and "conv2d" in text and "unproductive" in text and "At 16 x 16" in text


def test_json_is_the_document(networks: str) -> None:
    result = call(f"{networks}:deep", "--res", "16x40", "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 0 and data["schema_version"] == 1 and data["name"] == "nets.py:deep"
    assert data["diagnosis"]["resolution"] == [16, 40] and data["resolution"] == [224, 224]


def test_dot_and_svg(networks: str) -> None:
    dot = call(f"{networks}:deep", "--res", 8, "--dot")
    assert dot.exit_code == 0 and dot.stdout.startswith("digraph") and dot.stdout.rstrip().endswith("}")
    svg = call(f"{networks}:deep", "--res", 8, "--svg")
    assert svg.exit_code == 0 and ET.fromstring(svg.stdout).tag.endswith("svg") and "nets.py:deep" in svg.stdout


def test_html_with_a_picture(networks: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / "p.png")
    result = call(f"{networks}:deep", "--html", tmp_path / "out.html", "--image", tmp_path / "p.png", "--quiet")
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert result.exit_code == 0 and not result.stdout
    assert "Receptive fields of nets.py:deep" in text and "data:image/jpeg;base64" in text


def test_effective_field(networks: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / "p.png")
    common = (f"{networks}:deep", "--res", "32x48", "--effective", "5", "--png", tmp_path / "e.png")
    result = call(*common)
    assert result.exit_code == 0 and "5, unit (16, 24): theoretical field 13 x 13" in result.stdout
    with Image.open(tmp_path / "e.png") as opened:
        assert opened.size[0] / opened.size[1] == pytest.approx(1.5)
    noise = json.loads(call(*common, "--json").stdout)["effective"]
    image = json.loads(call(*common, "--json", "--image", tmp_path / "p.png").stdout)["effective"]
    assert noise["resolution"] == image["resolution"] == [32, 48]
    assert (noise["images"], image["images"]) == (8, 1)


def test_onnx_and_exported_programs(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, c, 12, 12]) for name, c in (("x", 3), ("y", 2))]
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight]), opset_imports=opset), tmp_path / "m.onnx"
    )
    torch.export.save(torch.export.export(nn.Sequential(nn.Conv2d(3, 2, 5)).eval(), (torch.zeros(1, 3, 12, 12),)), tmp_path / "m.pt2")
    for file, size in (("m.onnx", 3), ("m.pt2", 5)):
        data = json.loads(call(tmp_path / file, "--json").stdout)
        assert data["name"] == file
        assert [node["fields"][0]["size"] for node in data["nodes"] if node["op"] == "conv2d"] == [size]
    refused = call(tmp_path / "m.pt2", "--input-shape", "1x3x9x9")
    assert refused.exit_code == 1 and "leave --input-shape out" in refused.stderr


# -- the gate ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (("--max-unproductive", 3), "sightline: 4 unproductive layers at 16 x 16, at most 3 allowed: 8, 9, 10, 11"),
        (("--max-unproductive", 4), ""),
        (("--max-critical", 0), "sightline: 1 critical layer at 16 x 16, at most 0 allowed: 7"),
        (("--max-wasted-macs", "10%"), "sightline: 33.3% of the MACs wasted at 16 x 16, at most 10.0% allowed: by 8, 9, 10, 11"),
        (("--max-wasted-macs", "0.34"), ""),
        (("--max-wasted-params", "5%"), "of the parameters wasted at 16 x 16, at most 5.0% allowed: by 8, 9, 10, 11"),
    ],
)
def test_gate(networks: str, limits: tuple[Any, ...], sentence: str) -> None:
    result = call(f"{networks}:deep", "--res", 16, "--quiet", *limits)
    assert result.exit_code == (1 if sentence else 0)
    assert sentence in result.stderr if sentence else not result.stderr


def test_gate_says_each_limit_and_still_writes(networks: str, tmp_path: Path) -> None:
    result = call(
        f"{networks}:deep", "--res", 16, "--max-unproductive", 0, "--max-wasted-macs", "10%", "--json", "--html", tmp_path / "o.html"
    )
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 2
    assert json.loads(result.stdout) and (tmp_path / "o.html").is_file()


def test_gate_does_not_pass_over_what_is_unknown_in_silence(networks: str) -> None:
    result = call(f"{networks}:Mystery", "--res", 16, "--quiet", "--max-unproductive", 0)
    assert result.exit_code == 0 and "1 layers could not be judged" in result.stderr and "second" in result.stderr
    assert call(f"{networks}:Mystery", "--res", 16, "--quiet", "--max-unknown", 0).exit_code == 1


# -- failures ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--res", "0"), "--res: expected a size or HEIGHTxWIDTH"),
        (("--res", "32x"), "--res"),
        (("--input-shape", "3"), "--input-shape: expected sizes (n, c, h, w)"),
        (("--max-wasted-macs", "10"), "--max-wasted-macs: expected a share"),
        (("--max-wasted-params", "lots"), "--max-wasted-params"),
        (("--json", "--dot"), "--dot: it goes to standard output"),
        (("--image", "p.png"), "--image"),
        (("--png", "p.png"), "--png"),
        (("--max-unproductive", "-1"), "--max-unproductive"),
    ],
)
def test_wrong_usage(networks: str, arguments: tuple[str, ...], words: str) -> None:
    result = call(f"{networks}:deep", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_no_such_form_of_a_model() -> None:
    assert call("resnet18").exit_code == 2


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("missing.onnx", (), "there is no file"),
        ("{nets}:grey", (), "say so with --input-shape"),
        ("{nets}:Unruly", ("--input-shape", "1x3x8x8"), "model"),
        ("{nets}:deep", ("--res", "8x8x8"), "resolution: expected"),
        ("{nets}:deep", ("--html", "{tmp}/missing/out.html"), "--html"),
        ("{nets}:deep", ("--html", "{tmp}/o.html", "--image", "{tmp}/none.png"), "there is no file"),
        ("{nets}:deep", ("--effective", "99"), "there is no module '99'"),
    ],
)
def test_one_sentence_and_exit_code_1(networks: str, tmp_path: Path, model: str, arguments: tuple[str, ...], words: str) -> None:
    result = call(model.format(nets=networks), *(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 1
    assert words in result.stderr and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("sightline: ") and "this should not have happened" not in result.stderr


def test_grey_networks_with_their_own_shape(networks: str) -> None:
    assert call(f"{networks}:grey", "--input-shape", "1x1x28x28").exit_code == 0


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["fields", "--help"])
    assert result.exit_code == 0 and "Example: sightline fields torchvision:resnet18" in result.stdout
    assert "fields" in CliRunner().invoke(app, ["--help"]).stdout
