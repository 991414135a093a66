"""The house around the code: what an import costs, what a wheel holds, which layer a module is in, what tests run under."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "sightline"

# Packages that one command or one extra needs, and none that only wants to run a network.
HEAVY = {
    "IPython", "PIL", "av", "cv2", "hydra", "jinja2", "matplotlib", "networkx", "onnx", "onnxruntime", "openvino", "pandas",
    "pytest", "ray", "rich", "scipy", "sympy", "timm", "torchvision", "triton", "typer",
}  # fmt: skip
# Parts of torch that it does not load by itself and that take seconds.
HEAVY_TORCH = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.onnx", "torch.utils.tensorboard"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return loaded


def modules_after(statement: str) -> set[str]:
    """The names in sys.modules after running the statement in a fresh interpreter."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(run.stdout.splitlines()[-1]))


def roots(modules: set[str]) -> set[str]:
    """The top-level names among module names."""
    return {name.partition(".")[0] for name in modules}


def heavy_among(modules: set[str], baseline: set[str]) -> set[str]:
    """Which heavy packages, or parts of torch, came on top of the baseline."""
    new = modules - baseline
    return (roots(new) & HEAVY) | (new & HEAVY_TORCH)


# ------------------------------------------------------------------------------------------------- importing


def test_import_brings_only_torch_and_numpy() -> None:
    baseline = modules_after("import numpy, torch")
    loaded = modules_after("import sightline")
    assert heavy_among(loaded, baseline) == set()
    third_party = roots(loaded) - roots(baseline) - set(sys.stdlib_module_names) - {"sightline"}
    assert third_party == set(), "import sightline may load torch, numpy and what they load"


def test_heavy_import_would_be_noticed() -> None:
    assert heavy_among({"torch", "onnx.helper", "torch._dynamo"}, {"torch"}) == {"onnx", "torch._dynamo"}
    assert "rich" in roots(modules_after("import rich.table"))


def test_import_writes_nothing_and_warns_of_nothing() -> None:
    run = subprocess.run([sys.executable, "-W", "error", "-c", "import sightline"], capture_output=True, text=True, check=True, timeout=120)
    assert (run.stdout, run.stderr) == ("", "")


# ------------------------------------------------------------------------------------------------- metadata


def test_versions_agree(project: dict[str, Any]) -> None:
    version = project["project"]["version"]
    assert importlib.metadata.version("sightline") == version
    assert importlib.import_module("sightline").__version__ == version
    released = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] in {"Unreleased", version}
    assert version in released


def test_command_exists(project: dict[str, Any]) -> None:
    module, _, function = project["project"]["scripts"]["sightline"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_type_marker_is_there() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_constraints_pin_every_direct_requirement(project: dict[str, Any]) -> None:
    table = project["project"]
    wanted = [*table["dependencies"], *project["build-system"]["requires"]]
    for extra in table["optional-dependencies"].values():
        wanted += [requirement for requirement in extra if not requirement.startswith("sightline[")]
    names = {canonical(re.split(r"[<>=!~ ;\[]", requirement)[0]) for requirement in wanted}
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert names - {canonical(name) for name in pins} == set()


def canonical(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


# --------------------------------------------------------------------------------------------------- layers


def test_every_module_has_a_layer(project: dict[str, Any]) -> None:
    contract = next(entry for entry in project["tool"]["importlinter"]["contracts"] if entry["id"] == "layers")
    listed = {re.sub(r"[() ]", "", name) for layer in contract["layers"] for name in re.split(r"[:|]", layer)}
    present = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert present - {"__init__", "__main__"} - listed == set(), "name the new module in a layer of pyproject.toml"


# ---------------------------------------------------------------------------------------------- distributions


def build(hook: str, target: Path, **environment: str) -> Path:
    """Call one hook of the build backend on a checkout, as pip does, and return the file that it made."""
    code = f"import sys; from scikit_build_core import build; print(build.{hook}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(target)]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    return target / run.stdout.splitlines()[-1].strip()


def test_pure_wheel_holds_the_package_only(tmp_path: Path) -> None:
    wheel = build("build_wheel", tmp_path, SIGHTLINE_NO_NATIVE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    left_out = re.compile(r"/csrc/|/__pycache__/|\.so$")
    assert {name for name in names if name.startswith("sightline/")} == {name for name in sources if not left_out.search(name)}
    assert "sightline/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names} == {"sightline", wheel.name.partition("-py3")[0] + ".dist-info"}


def test_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "CMakeLists.txt", "LICENSE", "src/sightline/__init__.py"} <= names
    assert any(name.startswith("src/sightline/kernels/csrc/") and name.endswith(".cpp") for name in names)
    assert [name for name in names if name.endswith((".so", ".pyc", ".mp4"))] == []


def test_one_wheel_for_python_3_12_and_later(project: dict[str, Any]) -> None:
    """The stable ABI that nanobind can build begins there; a wheel without the module holds for every Python 3."""
    settings = project["tool"]["scikit-build"]
    assert settings["wheel"]["py-api"] == "cp312"
    assert [override["wheel"]["py-api"] for override in settings["overrides"] if override["wheel"]["cmake"] is False] == ["py3", "py3"]


def test_compiled_module_is_small() -> None:
    from sightline import kernels

    module = kernels.native()
    if module is None:
        pytest.skip(str(kernels.native_status()["reason"]))
    assert Path(str(module.__file__)).stat().st_size < 10 * 2**20


def test_wheel_script_rejects_what_it_does_not_know() -> None:
    script = ROOT / "scripts" / "build_wheel.sh"
    run = subprocess.run([str(script), "--nonsense"], capture_output=True, text=True, check=False, env={**os.environ, "VENV": sys.prefix})
    assert run.returncode == 2 and "--nonsense" in run.stderr


@pytest.mark.slow
def test_wheel_has_the_native_module(tmp_path: Path) -> None:
    wheel = build("build_wheel", tmp_path)
    modules = [
        entry for entry in zipfile.ZipFile(wheel).infolist() if re.fullmatch(r"sightline/kernels/_native\.[^/]+\.so", entry.filename)
    ]
    assert len(modules) == 1 and modules[0].file_size < 10 * 2**20
    assert not wheel.name.endswith("any.whl")
    assert ("-cp312-abi3-" in wheel.name) == (sys.version_info >= (3, 12))


@pytest.mark.slow
def test_wheel_without_a_compiler_is_pure(tmp_path: Path) -> None:
    wheel = build("build_wheel", tmp_path, CXX="/nonexistent/compiler")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")] == []


# ------------------------------------------------------------------------------------------ what tests run under


def test_fresh_memory_is_nan() -> None:
    assert torch.empty(3).isnan().all()
    assert torch.empty_like(torch.zeros(3)).isnan().all()
    assert torch.zeros(1).new_empty(3).isnan().all()
    assert (torch.empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


def test_fresh_numpy_memory_is_nan_for_the_package() -> None:
    scope: dict[str, Any] = {"__name__": "sightline.somewhere", "np": np}
    exec("a = np.empty(3); b = np.empty_like(np.zeros(3, np.uint8))", scope)
    assert np.isnan(scope["a"]).all()
    assert (scope["b"] == 255).all()


def test_one_thread() -> None:
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("_again", [1, 2])
def test_seeds_are_fixed(_again: int) -> None:
    assert torch.rand(1).item() == pytest.approx(0.4962565899, abs=1e-9)
    assert np.random.random() == pytest.approx(0.5488135039, abs=1e-9)  # noqa: NPY002


def test_warnings_are_errors() -> None:
    import warnings

    with pytest.raises(UserWarning, match="anything"):
        warnings.warn("anything", UserWarning, stacklevel=1)
