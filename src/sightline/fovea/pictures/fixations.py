"""Pictures of where a policy looks, one fixation after the other, and of what more fixations are good for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sightline.errors import ShapeError
from sightline.fovea.pictures import canvas
from sightline.fovea.pictures.samples import view_samples
from sightline.fovea.sensor import SensorGrid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_fixations(
    image: torch.Tensor,
    fixations: torch.Tensor,
    sizes: torch.Tensor,
    *,
    samples: torch.Tensor | None = None,
    sensor: SensorGrid | None = None,
    notes: Sequence[str] | None = None,
) -> Figure:
    """Draws a sequence of fixations on an image: numbered, joined by arrows, each with the field of view around it.

    Args:
        image: (3, h, w) or (1, h, w), uint8 or 0..1.
        fixations: (F, 2) (row, col) from 0 to 1, in their order.
        sizes: (F, 2) (height, width) in pixels of the field of view.
        samples: (F, 3, N) or (F, 1, N) from 0 to 1: what was seen, drawn in a row below; needs `sensor`.
        sensor: the retina's.
        notes: a few words under each glimpse, what the network made of it, say.

    Raises:
        ShapeError: numbers that do not agree, or samples without a sensor.
        MissingPackageError: matplotlib is not installed.
    """
    count = len(fixations)
    if len(sizes) != count or (samples is not None and (sensor is None or len(samples) != count)) or (notes and len(notes) != count):
        raise ShapeError(f"expected {count} sizes, samples (with their sensor) and notes, one for each fixation")
    need_row = samples is not None
    pixels = canvas.picture_of(image)
    height, width = pixels.shape[:2]
    columns = count if need_row else 1
    edge = 1.9
    across = max(columns * edge, 4.5)
    tall = across * height / width
    picture, rest = canvas.figure(1, 1, cell=(across, tall + (edge + 0.35) * need_row))
    rest[0].remove()
    grid = picture.add_gridspec(2 if need_row else 1, columns, height_ratios=[tall, edge] if need_row else None)
    axes = picture.add_subplot(grid[0, :])
    axes.imshow(pixels * 0.85 + 0.1, extent=(0, width, height, 0), interpolation="bilinear")
    import matplotlib as mpl
    from matplotlib.patches import Ellipse

    colours = mpl.colormaps["plasma"](np.linspace(0.1, 0.85, count))
    places = [(col * width, row * height) for row, col in fixations.tolist()]
    for number, ((x, y), (tall_field, wide_field), colour) in enumerate(zip(places, sizes.tolist(), colours, strict=True), start=1):
        axes.add_patch(Ellipse((x, y), wide_field, tall_field, fill=False, edgecolor=colour, linewidth=1.2, alpha=0.8))
        if number > 1:
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 8, "shrinkB": 8}
            axes.annotate("", xy=(x, y), xytext=places[number - 2], arrowprops=arrow)
        axes.scatter([x], [y], s=190, color=[colour], edgecolors="white", linewidths=1.2, zorder=3)
        axes.text(x, y, str(number), color="white", fontsize=9, weight="bold", ha="center", va="center", zorder=4)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    canvas.bare(axes)
    if samples is not None and sensor is not None:
        for column in range(count):
            below = picture.add_subplot(grid[1, column])
            view_samples(below, samples[column], sensor, "visual")
            canvas.title(below, f"{column + 1}" + (f": {notes[column]}" if notes else ""))
    return picture


def draw_accuracy(curves: Mapping[str, Sequence[float]], chance: float | None = None) -> Figure:
    """Draws accuracy by number of fixations, a line per policy or model.

    Args:
        curves: name -> accuracy (0 to 1) after 1, 2, 3 ... fixations.
        chance: accuracy of guessing; a dashed line.

    Raises:
        ShapeError: no curve, or an empty one.
        MissingPackageError: matplotlib is not installed.
    """
    if not curves or not all(len(values) for values in curves.values()):
        raise ShapeError("`curves` needs at least one curve with at least one accuracy")
    picture, (axes,) = canvas.figure(1, 1, cell=(4.6, 3.4))
    from matplotlib.ticker import MaxNLocator

    for name, values in curves.items():
        axes.plot(range(1, len(values) + 1), [100 * value for value in values], "o-", markersize=4, label=name)
    if chance is not None:
        axes.axhline(100 * chance, color=canvas.FAINT, linestyle="--", linewidth=1, label="chance")
    axes.set_xlabel("fixations", color=canvas.INK)
    axes.set_ylabel("accuracy, %", color=canvas.INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    return picture
