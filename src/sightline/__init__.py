"""Sightline runs convolutional networks only where it matters.

`stream(model)` returns a function that takes one video frame after the other and computes only what changed; `focus(model, aoi)`, one
that computes only an area of interest.
"""

from typing import TYPE_CHECKING

from sightline import fields, geometry
from sightline.area import AreaOfInterest
from sightline.budget import Budget, BudgetStats
from sightline.camera.noise import TemporalNoise
from sightline.errors import (
    BackendError,
    CaptureError,
    DeviceError,
    DTypeError,
    FrameError,
    MediaError,
    ShapeError,
    SightlineError,
)
from sightline.fields import analyze
from sightline.focus import Calibration, Focused, FocusExplanation, build_focused_model, calibrate_brightness, focus
from sightline.kernels import get_num_threads, set_num_threads
from sightline.sites import Grid, Sites
from sightline.stats import FrameStats, Stats
from sightline.stream import Stream, stream
from sightline.thresholds import Thresholds
from sightline.tune import TuneProgress, TuneReport, tune

if TYPE_CHECKING:
    from sightline import fovea, nn, ops

__version__ = "0.1.0"

__all__ = [
    "AreaOfInterest",
    "BackendError",
    "Budget",
    "BudgetStats",
    "Calibration",
    "CaptureError",
    "DTypeError",
    "DeviceError",
    "FocusExplanation",
    "Focused",
    "FrameError",
    "FrameStats",
    "Grid",
    "MediaError",
    "ShapeError",
    "SightlineError",
    "Sites",
    "Stats",
    "Stream",
    "TemporalNoise",
    "Thresholds",
    "TuneProgress",
    "TuneReport",
    "__version__",
    "analyze",
    "build_focused_model",
    "calibrate_brightness",
    "fields",
    "focus",
    "fovea",
    "geometry",
    "get_num_threads",
    "nn",
    "ops",
    "set_num_threads",
    "stream",
    "tune",
]


def __getattr__(name: str) -> object:
    """Loads `fovea`, `nn` and `ops` when first asked for: they register operators with PyTorch, which a plain stream does not need."""
    if name in {"fovea", "nn", "ops"}:
        import importlib

        return importlib.import_module(f"sightline.{name}")
    raise AttributeError(f"module 'sightline' has no attribute {name!r}")
