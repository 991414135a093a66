"""What every test runs under: one thread, fixed seeds, NaN in fresh memory, warnings as errors (in pyproject.toml).

What belongs here: settings of the whole run and fixtures that more than one file uses. Case tables and assert helpers do not:
they live in modules of their own beside the tests.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch and numpy load: they read it once, and several test workers share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# A shell that runs this in the background has SIGINT ignored, and children would inherit that: tests of Ctrl-C need it to work.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Set up the process once, before any test module is imported."""
    del config
    torch.set_num_threads(1)
    _poison_fresh_memory()
    # Slowness is the machine's business, not a property of the code: no deadlines, no check for slow data.
    common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    settings.register_profile("ci", common, derandomize=True, database=None, max_examples=50)
    settings.register_profile("dev", common, max_examples=50)
    settings.register_profile("fuzz", common, max_examples=2000)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give every test the same random numbers and thread count, whichever ran before it on this worker."""
    del item
    # A hook, not a fixture: hypothesis objects to fixtures of one test around a test that runs many times.
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for code under test that uses the global generator
    torch.manual_seed(0)
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def _poison_fresh_memory() -> None:
    """Make memory that nobody has written hold NaN, so that reading it shows in a result.

    For torch this is a switch in its C++ (so it also holds under export and inside operators): floats become NaN, integers
    their largest value. For numpy only calls from the package are changed.
    """
    # In this mode torch fills (torch.utils.deterministic.fill_uninitialized_memory); its other warnings are ignored by name.
    torch.set_deterministic_debug_mode("warn")
    for name in ("empty", "empty_like"):
        setattr(np, name, _poisoned(getattr(np, name)))


def _poisoned(make: Callable[..., np.ndarray[Any, Any]]) -> Callable[..., np.ndarray[Any, Any]]:
    @functools.wraps(make)
    def wrapper(*args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        array = make(*args, **kwargs)
        if str(sys._getframe(1).f_globals.get("__name__", "")).partition(".")[0] == "sightline":
            if array.dtype.kind in "fc":
                array.fill(np.nan)
            elif array.dtype.kind in "iu":
                array.fill(np.iinfo(array.dtype).max)
        return array

    return wrapper


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real videos, images and weights; tests that need it are skipped where it is not there."""
    named = os.environ.get("SIGHTLINE_DATA")
    candidates = [Path(named)] if named else [ROOT.parent / "shared" / "data", ROOT / "shared" / "data"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip("no shared/data folder beside the checkout, and SIGHTLINE_DATA names none")


@pytest.fixture
def networks(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The test module's `NETWORKS`, a Python file of model functions for the command line."""
    path = tmp_path / "networks.py"
    path.write_text(request.module.NETWORKS)
    return path
