"""Pictures of filters of a convolution on sensors: in their reference frame, and where they fall in the visual field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sightline.errors import ShapeError
from sightline.fovea.pictures import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def filter_images(layer: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The filters of a `KNNConv` as upright pictures.

    Args:
        layer: its ``weight`` is (O, C * side**2); cell ``p * side + q`` lies at the p-th x from the left and the q-th y from below.

    Returns:
        (O, C, side, side), row 0 on top; and (side, side) bool: cells that some neighbour meets.

    Raises:
        ShapeError: the layer has no such weight.
    """
    weight, cell, side = getattr(layer, "weight", None), getattr(layer, "cell", None), getattr(layer, "side", 0)
    if (
        not isinstance(weight, torch.Tensor)
        or not isinstance(cell, torch.Tensor)
        or weight.ndim != 2
        or weight.shape[1] % (side * side or 1)
    ):
        raise ShapeError(f"`layer`: expected a KNNConv, got {type(layer).__name__}")
    filters = canvas.array(weight).reshape(len(weight), -1, side, side)
    met = np.zeros(side * side, dtype=bool)
    met[np.unique(canvas.array(cell)[canvas.array(layer.index) >= 0].astype(np.int64))] = True
    return filters.transpose(0, 1, 3, 2)[:, :, ::-1], met.reshape(side, side).T[::-1]


def draw_filters(layer: Any, filters: Sequence[int] | int = 48, channel: int | None = None) -> Figure:
    """Draws filters of a `KNNConv` in their reference frame, x to the right and y up.

    Filters of three channels are drawn in colour, each stretched to its own range; others as one channel, red for positive and blue for
    negative weights on a scale of their own. Cells that no neighbour ever meets stay empty.

    Args:
        layer: a `KNNConv`.
        filters: which ones, or how many of the first.
        channel: one input channel; None: colour for three channels, else the channel in which each filter's weights are largest.

    Raises:
        ShapeError: another layer, or a filter or channel that does not exist.
        MissingPackageError: matplotlib is not installed.
    """
    images, met = filter_images(layer)
    chosen = list(range(min(filters, len(images)))) if isinstance(filters, int) else list(filters)
    if not chosen or not all(0 <= one < len(images) for one in chosen) or (channel is not None and not 0 <= channel < images.shape[1]):
        raise ShapeError(
            f"`filters` lie from 0 to {len(images) - 1} and `channel` from 0 to {images.shape[1] - 1}; got {chosen} and {channel}"
        )
    columns = min(len(chosen), max(1, math.ceil(math.sqrt(1.5 * len(chosen)))))
    picture, axes = canvas.figure(columns, math.ceil(len(chosen) / columns), cell=(0.95, 1.05))
    for one, number in zip(axes, chosen, strict=False):
        weights = images[number]
        if channel is None and len(weights) == 3:
            low, high = weights[:, met].min(), weights[:, met].max()
            colour = ((weights - low) / max(high - low, 1e-12)).transpose(1, 2, 0)
            one.imshow(np.concatenate([np.clip(colour, 0, 1), met[..., None]], 2), interpolation="nearest")
        else:
            plane = weights[channel if channel is not None else int((weights[:, met] ** 2).sum(1).argmax())]
            limit = max(float(np.abs(plane[met]).max()), 1e-12)
            one.imshow(np.ma.masked_where(~met, plane), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        canvas.bare(one)
        one.set_title(str(number), fontsize=6, color=canvas.FAINT, pad=1)
    canvas.blank_rest(axes, len(chosen))
    return picture


def draw_filter_over_space(layer: Any, number: int = 0, units: Sequence[int] | int = 40) -> Figure:
    """Draws where one filter falls at several units: the neighbours of each, coloured with the weights that they meet.

    Args:
        layer: a `KNNConv`.
        number: which filter.
        units: which output points, or how many, spread over all of them.

    Raises:
        ShapeError: another layer, or a filter or unit that does not exist.
        MissingPackageError: matplotlib is not installed.
    """
    filter_images(layer)
    index, cell = layer.index.long().cpu(), layer.cell.long().cpu()
    chosen = np.linspace(0, len(index) - 1, min(units, len(index))).round().astype(int).tolist() if isinstance(units, int) else list(units)
    if not 0 <= number < len(layer.weight) or not chosen or not all(0 <= one < len(index) for one in chosen):
        raise ShapeError(f"`number` lies from 0 to {len(layer.weight) - 1}, `units` from 0 to {len(index) - 1}; got {number} and {chosen}")
    weights = layer.weight.detach().cpu().double()[number].reshape(-1, layer.side**2)
    plane = canvas.array(weights if len(weights) == 3 else weights[int((weights**2).sum(1).argmax())][None])
    low, high = plane.min(), plane.max()
    sensor = layer.in_coords
    from matplotlib import colormaps

    picture, axes = canvas.figure(2, 1, cell=(4.2, 4.2))
    places = [canvas.array(sensor.cartesian) * sensor.fov / 2, canvas.array(sensor.plotting)]
    for one, points in zip(axes, places, strict=True):
        one.scatter(points[:, 0], points[:, 1], s=1, color=canvas.FAINT, alpha=0.35, linewidths=0)
        for unit in chosen:
            there = index[unit] >= 0
            shades = (plane[:, cell[unit][there].numpy()] - low) / max(high - low, 1e-12)
            colours = shades.T if len(shades) == 3 else colormaps["RdBu_r"](shades[0])
            read = points[index[unit][there].numpy()]
            one.scatter(read[:, 0], read[:, 1], s=5, c=colours, linewidths=0)
        canvas.bare(one)
    canvas.title(axes[0], f"filter {number} at {len(chosen)} units, visual field")
    canvas.title(axes[1], "cortical layout")
    return picture
