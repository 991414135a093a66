"""Figures for pictures of sensors: how they are made, how they look, how they are saved.

What belongs here: matplotlib without global state (no pyplot, nothing is shown by itself), colours, axes in degrees. What does not: what
is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sightline.errors import DTypeError, MediaError, ShapeError
from sightline.extras import need
from sightline.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sightline.fovea.sensor import SensorGrid

INK, FAINT, PAPER, ACCENT, NOTHING = "#1d2733", "#9aa5b1", "#ffffff", "#e4572e", "#e7ebef"
TWO_VIEWS = (1.0, 0.62)  # heights of a visual and a cortical view of the same width
SUFFIXES = (".png", ".svg", ".pdf")


def figure(
    columns: int,
    rows: int,
    *,
    cell: tuple[float, float] = (3.2, 3.2),
    projection: str | None = None,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, row by row; `cell` is the size of each in inches, `heights` those of the rows in cells.

    Raises:
        MissingPackageError: matplotlib is not installed (extra "plots").
    """
    need("matplotlib", "draw pictures of sensors")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall = cell[1] * (rows if heights is None else sum(heights))
    made = Figure(figsize=(columns * cell[0], tall), facecolor=PAPER)
    FigureCanvasAgg(made)
    made.set_layout_engine("constrained", h_pad=0.08, w_pad=0.06)
    grid = {"height_ratios": list(heights)} if heights else None
    axes = made.subplots(rows, columns, squeeze=False, subplot_kw={"projection": projection} if projection else None, gridspec_kw=grid)
    return made, list(axes.ravel())


def save(picture: Figure, path: str | Path, dpi: int = 130) -> None:
    """Writes a picture, whole or not at all.

    Args:
        picture: as the ``draw_...`` functions return it.
        path: .png, .svg or .pdf.
        dpi: pixels per inch of a .png.

    Raises:
        MediaError: another suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise MediaError(f"'{path}': pictures can be written as {', '.join(SUFFIXES)}; got '{path.suffix}'.")
    try:
        with whole_file(path) as partial:
            picture.savefig(partial, dpi=dpi)
    except OSError as error:
        raise MediaError(f"cannot write the picture '{path}': {error.strerror or error}. Choose a writable path.") from error


def title(axes: Axes, words: str) -> None:
    """A title in the house style."""
    axes.set_title(words, fontsize=9.5, color=INK)


def bare(axes: Axes) -> None:
    """No frame, no ticks, equal scales."""
    axes.set_aspect("equal")
    axes.set_axis_off()


def in_degrees(axes: Axes, sensor: SensorGrid, reach: float | None = None, *, labels: bool = True) -> None:
    """Axes of the visual field: degrees from the fixation, `reach` to each side (default: the whole field)."""
    half = sensor.fov / 2 * 1.03 if reach is None else reach
    axes.set_aspect("equal")
    axes.set_xlim(-half, half)
    axes.set_ylim(-half, half)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(labelsize=7, colors=FAINT, length=2)
    if labels:
        axes.set_xlabel("degrees to the right", fontsize=8, color=INK)
        axes.set_ylabel("degrees up", fontsize=8, color=INK)


def array(values: torch.Tensor) -> NDArray[Any]:
    """On the CPU, as float64."""
    return np.asarray(values.detach().to("cpu", torch.float64).numpy())


def picture_of(image: torch.Tensor) -> NDArray[np.float64]:
    """An image (3, h, w) or (1, h, w), floating 0..1 or uint8, as (h, w, 3) from 0 to 1.

    Raises:
        ShapeError: another shape.
        DTypeError: another type.
    """
    if not isinstance(image, torch.Tensor) or image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        shape = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
        raise ShapeError(f"`image` must be (3, h, w) or (1, h, w), got {shape}; take one image out of a batch with images[0]")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise DTypeError(f"`image` must be uint8 or floating, got {image.dtype}; convert it with .float() / 255")
    values = array(image) / (255.0 if image.dtype == torch.uint8 else 1.0)
    return np.asarray(np.clip(np.broadcast_to(values, (3, *values.shape[1:])).transpose(1, 2, 0), 0.0, 1.0))


def colours_of(samples: torch.Tensor) -> NDArray[np.float64]:
    """Samples (3, N) or (1, N) from 0 to 1 as colours (N, 3).

    Raises:
        ShapeError: another shape.
    """
    if samples.ndim != 2 or samples.shape[0] not in (1, 3):
        raise ShapeError(f"`samples` must be (3, N) or (1, N), got {tuple(samples.shape)}; take one glimpse: samples[0, 0]")
    values = array(samples)
    return np.asarray(np.clip(np.broadcast_to(values, (3, values.shape[1])).T, 0.0, 1.0))


def blank_rest(axes: Sequence[Axes], used: int) -> None:
    """Hides the axes that nothing was drawn on."""
    for one in axes[used:]:
        one.set_visible(False)
