"""Sightline runs convolutional networks only where it matters.

`stream(model)` returns a function that takes one video frame after the other and computes only what changed.
"""

from typing import TYPE_CHECKING

from sightline import fields, geometry
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
from sightline.kernels import get_num_threads, set_num_threads
from sightline.sites import Grid, Sites
from sightline.stats import FrameStats, Stats
from sightline.stream import Stream, stream
from sightline.thresholds import Thresholds

if TYPE_CHECKING:
    from sightline import nn, ops

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CaptureError",
    "DTypeError",
    "DeviceError",
    "FrameError",
    "FrameStats",
    "Grid",
    "MediaError",
    "ShapeError",
    "SightlineError",
    "Sites",
    "Stats",
    "Stream",
    "Thresholds",
    "__version__",
    "analyze",
    "fields",
    "geometry",
    "get_num_threads",
    "nn",
    "ops",
    "set_num_threads",
    "stream",
]


def __getattr__(name: str) -> object:
    """Loads `nn` and `ops` when first asked for: they register operators with PyTorch, which a plain stream does not need."""
    if name in {"nn", "ops"}:
        import importlib

        return importlib.import_module(f"sightline.{name}")
    raise AttributeError(f"module 'sightline' has no attribute {name!r}")
