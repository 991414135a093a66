"""Pictures of what a sensor sees and of what a network makes of it: samples and activations, as the eye and as the cortex lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sightline.errors import ShapeError
from sightline.fovea.pictures import canvas
from sightline.fovea.pictures.mosaic import VIEWS, paint, shown_points
from sightline.fovea.sensor import SensorGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def points_on_image(sensor: SensorGrid, image_size: tuple[int, int], fixation: Sequence[float], size: Sequence[float]) -> torch.Tensor:
    """Where the points of a sensor lie on an image.

    Args:
        sensor: whose points.
        image_size: (height, width) in pixels.
        fixation: (row, col) from 0 to 1.
        size: (height, width) in pixels of the whole field of view.

    Returns:
        (N, 2) float64 (row, col) in pixels from the image's upper left corner, so that the first pixel's centre is (0.5, 0.5).
    """
    x, y = sensor.cartesian.double().cpu().unbind(1)
    height, width = image_size
    return torch.stack([-y * size[0] / 2 + fixation[0] * height, x * size[1] / 2 + fixation[1] * width], 1)


def on_image(axes: Axes, image: NDArray[Any], sensor: SensorGrid, fixation: Sequence[float], size: Sequence[float]) -> int:
    """Draws the points that lie on an image; returns how many do."""
    height, width = image.shape[:2]
    places = canvas.array(points_on_image(sensor, (height, width), fixation, size))
    inside = (places >= 0).all(1) & (places[:, 0] < height) & (places[:, 1] < width)
    axes.imshow(image * 0.72 + 0.1, extent=(0, width, height, 0), interpolation="bilinear")
    dots = 0.35 + 2.2 * canvas.array(sensor.polar[:, 0])[inside]
    axes.scatter(places[inside, 1], places[inside, 0], s=dots, color="white", linewidths=0, alpha=0.9)
    axes.plot([fixation[1] * width], [fixation[0] * height], "+", color=canvas.ACCENT, markersize=9, markeredgewidth=1.6)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    canvas.bare(axes)
    return int(inside.sum())


def view_samples(axes: Axes, samples: torch.Tensor, sensor: SensorGrid, view: str) -> None:
    """Draws samples (3, N) or (1, N) from 0 to 1 in one view."""
    shown, box = shown_points(sensor, view)
    axes.imshow(paint(shown, canvas.colours_of(samples)), extent=box, interpolation="nearest")
    canvas.bare(axes)


def draw_samples(image: torch.Tensor, samples: torch.Tensor, sensor: SensorGrid, fixations: torch.Tensor, sizes: torch.Tensor) -> Figure:
    """Draws each glimpse of an image in a row: its points on the image, what the eye sees, what arrives in the cortex.

    Args:
        image: (3, h, w) or (1, h, w), uint8 or 0..1.
        samples: (F, 3, N) or (F, 1, N) from 0 to 1, as a `RetinalTransform` returns them for that image (without the batch axis).
        sensor: the retina's.
        fixations: (F, 2) (row, col) from 0 to 1.
        sizes: (F, 2) (height, width) in pixels of the field of view.

    Returns:
        A matplotlib figure with three axes per glimpse.

    Raises:
        ShapeError: the numbers of glimpses or points do not agree.
        MissingPackageError: matplotlib is not installed.
    """
    count = len(fixations)
    if samples.ndim != 3 or len(samples) != count or len(sizes) != count or samples.shape[2] != len(sensor):
        raise ShapeError(
            f"expected samples (F, c, {len(sensor)}), fixations (F, 2) and sizes (F, 2), got {tuple(samples.shape)}, "
            f"{tuple(fixations.shape)} and {tuple(sizes.shape)}; take one image out of the batch"
        )
    pixels = canvas.picture_of(image)
    wide = float(np.clip(pixels.shape[1] / pixels.shape[0], 0.6, 2.0))
    picture, axes = canvas.figure(3, count, cell=(2.2 + wide * 0.9, 3.3))
    for row in range(count):
        first, second, third = axes[3 * row : 3 * row + 3]
        fixation, size = fixations[row].tolist(), sizes[row].tolist()
        inside = on_image(first, pixels, sensor, fixation, size)
        view_samples(second, samples[row], sensor, "visual")
        view_samples(third, samples[row], sensor, "cortical")
        canvas.title(first, f"{inside:,} of {len(sensor):,} points, fixation ({fixation[0]:.2f}, {fixation[1]:.2f})")
        canvas.title(second, f"visual view, {sensor.fov:g} degrees")
        canvas.title(third, "cortical view")
    return picture


def draw_activations(values: torch.Tensor, sensor: SensorGrid, channels: Sequence[int] | int = 6) -> Figure:
    """Draws channels of a layer's output: visual view above, cortical view below, each channel on its own scale.

    Args:
        values: (C, N), of one image and fixation.
        sensor: the layer's output points.
        channels: which ones, or how many of those that vary most.

    Raises:
        ShapeError: another shape, or a channel that does not exist.
        MissingPackageError: matplotlib is not installed.
    """
    if values.ndim != 2 or values.shape[1] != len(sensor):
        raise ShapeError(f"`values` must be (channels, {len(sensor)}), got {tuple(values.shape)}; take one image: values[0]")
    if isinstance(channels, int):
        spread = values.detach().float().var(1, correction=0)
        channels = spread.argsort(descending=True, stable=True)[:channels].tolist()
    if not channels or not all(0 <= channel < len(values) for channel in channels):
        raise ShapeError(f"`channels` must lie from 0 to {len(values) - 1}, at least one; got {list(channels)}")
    picture, axes = canvas.figure(len(channels), 2, cell=(2.1, 2.3), heights=canvas.TWO_VIEWS)
    for column, channel in enumerate(channels):
        for row, view in enumerate(VIEWS):
            view_values(axes[row * len(channels) + column], canvas.array(values[channel]), sensor, view)
        canvas.title(axes[column], f"channel {channel}")
    return picture


def view_values(
    axes: Axes, values: NDArray[np.float64], sensor: SensorGrid, view: str, colours: str = "magma", *, nothing: float | None = None
) -> None:
    """Draws one number per point in one view; points of the value `nothing` become grey."""
    shown, box = shown_points(sensor, view)
    if nothing is not None:
        from matplotlib.colors import ListedColormap

        axes.imshow(np.ma.masked_where(shown < 0, shown * 0), extent=box, interpolation="nearest", cmap=ListedColormap([canvas.NOTHING]))
    filled = np.ma.masked_where((shown < 0) | (values[shown] == nothing), values[shown])
    axes.imshow(filled, extent=box, interpolation="nearest", cmap=colours, vmin=nothing)
    canvas.bare(axes)
