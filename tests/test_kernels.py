"""Choosing and refusing instruction sets, each in a process of its own: the choice is made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import sightline as sl
from sightline import kernels
from sightline.graph.native import NativeExecutor
from sightline.graph.torch_executor import TorchExecutor

CODE = "import json; from sightline import kernels; kernels.native(); print(json.dumps(kernels.native_status()))"


def status(**environment: str) -> dict[str, Any]:
    """What a fresh process says of its kernels."""
    clean = {key: value for key, value in os.environ.items() if key not in {"SIGHTLINE_ISA", "SIGHTLINE_NO_NATIVE"}}
    run = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120, env={**clean, **environment}
    )
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_isa_in_use_is_the_one_asked_for() -> None:
    """Under SIGHTLINE_ISA this very run must use it, or none: what `make test-isas` relies on."""
    wanted = os.environ.get("SIGHTLINE_ISA", "")
    assert kernels.isa() in ({wanted, ""} if wanted else {*kernels.native_status()["isas"][:1], ""})
    stream = sl.stream(torch.nn.Conv2d(3, 20, 3, padding=1).eval())
    stream(torch.rand(1, 3, 9, 11))
    executor = stream._executor
    if kernels.isa():
        assert isinstance(executor, NativeExecutor) and executor._lowered.program.isa == kernels.isa()
    else:
        assert isinstance(executor, TorchExecutor)


@pytest.mark.skipif(not kernels.native_status()["available"], reason=str(kernels.native_status()["reason"]))
@pytest.mark.parametrize("isa", ["avx2", "baseline", "quantum"])
def test_isa_switch(isa: str) -> None:
    found = status(SIGHTLINE_ISA=isa)
    if isa in kernels.native_status()["isas"]:
        assert found["available"] and found["isa"] == isa
    else:
        assert isa in found["reason"] and found["isa"] == "" and not found["available"]


def test_no_native_switches_all_instruction_sets_off() -> None:
    found = status(SIGHTLINE_NO_NATIVE="1")
    assert found["isa"] == "" and not found["available"] and "SIGHTLINE_NO_NATIVE" in found["reason"]
