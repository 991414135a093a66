"""Networks by name: every form of ``--model`` and ``--weights``, and what is said when one does not work."""

from __future__ import annotations

import importlib
import os
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline import models
from sightline.errors import CaptureError
from sightline.models import ModelSpec, load_model, load_weights, parse_spec

NETWORK = """
import torch

def small():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())

ready = small()
number = 7

def broken():
    raise RuntimeError("no weights here")

def text():
    return "network"
"""


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.py"
    path.write_text(NETWORK)
    return path


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())


# -- the forms ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("torchvision:resnet50", ModelSpec("torchvision", "resnet50")),
        ("timm:vit_tiny.augreg", ModelSpec("timm", "vit_tiny.augreg")),
        ("a/b.py:make", ModelSpec("python", "a/b.py", "make")),
        ("C:/models/b.py:make", ModelSpec("python", "C:/models/b.py", "make")),
        ("x.pt2", ModelSpec("pt2", "x.pt2")),
        ("dir/X.ONNX", ModelSpec("onnx", "dir/X.ONNX")),
    ],
)
def test_each_form_is_understood(spec: str, parsed: ModelSpec) -> None:
    assert parse_spec(spec) == parsed


@pytest.mark.parametrize("spec", ["resnet50", "torchvision:", "weights.pth", "keras:x", ""])
def test_other_forms_are_refused_with_the_list(spec: str) -> None:
    with pytest.raises(ValueError, match=r"expected torchvision:NAME, timm:NAME, path\.py:callable"):
        parse_spec(spec)


def test_a_python_file_without_a_name_says_how_to_write_it() -> None:
    with pytest.raises(ValueError, match=r"write a\.py:NAME"):
        parse_spec("a.py")


@pytest.mark.parametrize("attribute", ["small", "ready"])
def test_a_python_file_gives_a_network_in_eval_mode(network: Path, attribute: str) -> None:
    loaded = load_model(f"{network}:{attribute}")
    assert isinstance(loaded.model, torch.nn.Module)
    assert not loaded.model.training
    assert loaded.name == f"network.py:{attribute}"


def test_a_python_file_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_network.py").write_text("CHANNELS = 5\n")
    path = tmp_path / "own.py"
    path.write_text("import torch\nfrom neighbour_of_network import CHANNELS\nnet = torch.nn.Conv2d(3, CHANNELS, 1)\n")
    assert load_model(f"{path}:net").model.out_channels == 5


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("smal", r"has no 'smal'; did you mean small\?"),
        ("broken", r"broken\(\) of .* failed: RuntimeError: no weights here \(line 11\)"),
        ("text", "gave str; expected a torch.nn.Module"),
        ("number", "gave int; expected a torch.nn.Module"),
    ],
)
def test_what_a_python_file_lacks_is_named(network: Path, attribute: str, says: str) -> None:
    with pytest.raises(CaptureError, match=says):
        load_model(f"{network}:{attribute}")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import torch\nimport no_such_module\n", r"does not import: ModuleNotFoundError: No module named 'no_such_module' \(line 2\)"),
        ("x = = 1\n", r"does not import: SyntaxError: .* \(line 1\)"),
        ("raise SystemExit(3)\n", "does not import: SystemExit: 3"),
    ],
)
def test_a_python_file_that_does_not_import_is_named_with_its_line(tmp_path: Path, source: str, says: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(CaptureError, match=says) as caught:
        load_model(f"{path}:make")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["none.py:make", "none.pt2", "none.onnx"])
def test_a_missing_file_is_named(spec: str) -> None:
    with pytest.raises(CaptureError, match="there is no file 'none"):
        load_model(spec)


def test_an_exported_program_gives_its_graph_its_size_and_a_dense_run(tmp_path: Path) -> None:
    model = small().eval()
    program = torch.export.export(model, (torch.rand(1, 3, 20, 30),))
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = load_model(str(tmp_path / "net.pt2"))
    frame = torch.rand(1, 3, 20, 30)
    assert loaded.size == (30, 20)
    assert loaded.dense is not None
    torch.testing.assert_close(loaded.dense(frame), model(frame))
    with pytest.raises(CaptureError, match="leave --weights out"):
        load_model(str(tmp_path / "net.pt2"), "weights.pth")


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"no program")
    with pytest.raises(CaptureError, match=r"not a program saved by torch\.export\.save"):
        load_model(str(tmp_path / "net.pt2"))


# -- weights ------------------------------------------------------------------------------------------------------------------


def _plain(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path)


def _wrapped(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)


def _safetensors(state: dict[str, torch.Tensor], path: Path) -> None:
    pytest.importorskip("safetensors.torch").save_file(state, path)


@pytest.mark.parametrize(("save", "name"), [(_plain, "w.pth"), (_wrapped, "w.ckpt"), (_safetensors, "w.safetensors")])
def test_weights_are_loaded(network: Path, tmp_path: Path, save: Callable[[dict[str, torch.Tensor], Path], None], name: str) -> None:
    original = small()
    save(original.state_dict(), tmp_path / name)
    loaded = load_model(f"{network}:small", str(tmp_path / name))
    for key, value in original.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)


def test_a_weights_file_never_runs_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    for name, data in (("a.pth", pickle.dumps(Evil())), ("b.pth", None)):
        if data is None:
            torch.save({"weight": Evil()}, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(CaptureError, match="holds no plain state dict"):
            load_weights(small(), tmp_path / name)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"0.weight": torch.zeros(4, 3, 3, 3)}, r"5 tensors missing, 0 unexpected \(first missing: 0\.bias\)"),
        ({"0.weight": torch.zeros(9, 3, 3, 3)}, r"does not fit the network: size mismatch for 0\.weight"),
        ({"epoch": 3}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, state: Any, says: str) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CaptureError, match=says) as caught:
        load_weights(small(), tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_missing_weights_are_named(network: Path) -> None:
    with pytest.raises(CaptureError, match=r"weights: there is no file 'none\.pth'"):
        load_model(f"{network}:small", "none.pth")


# -- the libraries, played by small stand-ins (the real ones are streamed in the model zoo test) ----------------------------------


class Entry:
    meta = {"categories": ["cat", "dog"]}  # noqa: RUF012

    @staticmethod
    def transforms() -> types.SimpleNamespace:
        return types.SimpleNamespace(mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1])


class Weights:
    __members__ = {"V1": Entry()}  # noqa: RUF012
    V1 = Entry()
    DEFAULT = Entry()


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def build(name: str, **options: Any) -> torch.nn.Module:
        calls.append({"name": name, **options, "forced": os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")})
        model = small()
        model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 2.0), "fixed_input_size": True, "input_size": (3, 224, 192)}  # type: ignore[assignment]
        return model

    def names() -> list[str]:
        return ["resnet18", "resnet50"]

    fakes = {
        "torchvision.models": types.SimpleNamespace(list_models=names, get_model=build, get_model_weights=lambda name: Weights()),
        "timm": types.SimpleNamespace(is_model=lambda name: name in names(), list_models=names, create_model=build),
    }
    monkeypatch.setattr(models, "_import", lambda module, package: fakes[module])
    return calls


def test_torchvision_with_its_own_weights_brings_preprocessing_and_labels(libraries: list[dict[str, Any]]) -> None:
    loaded = load_model("torchvision:resnet50", "DEFAULT")
    assert loaded.mean == (0.5, 0.4, 0.3)
    assert loaded.std == (0.2, 0.2, 0.1)
    assert loaded.labels == ["cat", "dog"]
    assert libraries[0]["forced"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_torchvision_without_weights_and_with_a_file(libraries: list[dict[str, Any]], tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "w.pth")
    assert load_model("torchvision:resnet18").labels == []
    load_model("torchvision:resnet18", str(tmp_path / "w.pth"))
    assert [call["weights"] for call in libraries] == [None, None]


def test_timm_loads_its_weights_by_tag(libraries: list[dict[str, Any]]) -> None:
    loaded = load_model("timm:resnet50", "a1_in1k")
    assert loaded.mean == (0.1, 0.2, 0.3)
    assert loaded.size == (192, 224)
    load_model("timm:resnet50", "pretrained")
    load_model("timm:resnet50")
    assert [(call["name"], call["pretrained"]) for call in libraries] == [
        ("resnet50.a1_in1k", True),
        ("resnet50", True),
        ("resnet50", False),
    ]


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("spec", "weights", "says"),
    [
        ("torchvision:resnet5", None, r"no network 'resnet5'; did you mean resnet50"),
        ("torchvision:resnet50", "V9", "neither a file nor one of torchvision's weights: V1"),
        ("timm:resnet5", None, "timm has no network 'resnet5'"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(spec: str, weights: str | None, says: str) -> None:
    with pytest.raises(CaptureError, match=says):
        load_model(spec, weights)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "torchvision is not installed: pip install torchvision"),
        (ModuleNotFoundError("No module named 'PIL'", name="PIL"), "torchvision is installed but lacks PIL: pip install PIL"),
        (RuntimeError("operator torchvision::nms does not exist"), "does not import beside torch .* install the torchvision made for it"),
    ],
)
def test_a_library_that_does_not_import_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(CaptureError, match=says):
        load_model("torchvision:resnet50")
