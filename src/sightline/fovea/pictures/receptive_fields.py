"""Pictures of receptive fields: of one unit, on the image and layer by layer, and of all units by eccentricity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from sightline.errors import ShapeError
from sightline.fovea.pictures import canvas
from sightline.fovea.pictures.mosaic import VIEWS, layout_of
from sightline.fovea.pictures.reach import layer_chain, receptive_field, rf_diameters
from sightline.fovea.pictures.samples import points_on_image, view_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAP = "inferno"


def nearest_unit(network: nn.Module, name: str, degrees: Sequence[float]) -> int:
    """Index of the unit of a layer that lies nearest to (right, up) degrees from the fixation."""
    coords = layer_chain(network)[name].out_coords
    offset = coords.cartesian.double().cpu() * (coords.fov / 2) - torch.tensor(list(degrees), dtype=torch.float64)
    return int(offset.norm(dim=1).argmin())


def draw_receptive_field(
    network: nn.Module,
    name: str,
    unit: int,
    *,
    image: torch.Tensor | None = None,
    fixation: Sequence[float] = (0.5, 0.5),
    size: Sequence[float] | None = None,
) -> Figure:
    """Draws what one unit sees: on the image, in the visual field, in the cortical layout of the first sensor.

    Args:
        network: with layers of nearest neighbours.
        name: of the unit's layer, as `layer_chain` names it.
        unit: index of the unit among the layer's points.
        image: (3, h, w) or (1, h, w), uint8 or 0..1; None: without.
        fixation: (row, col) from 0 to 1 on the image.
        size: (height, width) in pixels of the field of view; default: the image's shorter edge.

    Raises:
        ShapeError: no such layer or unit.
        MissingPackageError: matplotlib is not installed.
    """
    chain = layer_chain(network)
    if name not in chain:
        raise ShapeError(f"`name`: there is no layer {name!r} in the chain; there are {', '.join(chain)}")
    names = list(chain)
    layers = [chain[one] for one in names[: names.index(name) + 1]]
    share = canvas.array(receptive_field(layers, unit))
    sensor, coords = layers[0].in_coords, layers[-1].out_coords
    picture, axes = canvas.figure(3 if image is not None else 2, 1, cell=(3.5, 3.6))
    seen = share > 0
    if image is not None:
        pixels = canvas.picture_of(image)
        height, width = pixels.shape[:2]
        size = size if size is not None else (min(height, width),) * 2
        places = canvas.array(points_on_image(sensor, (height, width), fixation, size))
        axes[0].imshow(pixels * 0.75 + 0.05, extent=(0, width, height, 0), interpolation="bilinear")
        dots = 1.5 + 6 * canvas.array(sensor.polar[:, 0])[seen]
        axes[0].scatter(places[seen, 1], places[seen, 0], s=dots, c=share[seen], cmap=_MAP, linewidths=0, alpha=0.8)
        where = points_on_image(coords, (height, width), fixation, size)[unit].tolist()
        axes[0].plot([where[1]], [where[0]], "o", markerfacecolor="none", markeredgecolor="cyan", markersize=9)
        axes[0].set_xlim(0, width)
        axes[0].set_ylim(height, 0)
        canvas.bare(axes[0])
        canvas.title(axes[0], f"{name}, unit {unit}: {int(seen.sum()):,} points")
    for one, view in zip(axes[-2:], VIEWS, strict=True):
        view_values(one, share, sensor, view, _MAP, nothing=0.0)
        place = canvas.array(layout_of(coords, view))[unit]
        one.plot([place[0]], [place[1]], "o", markerfacecolor="none", markeredgecolor="cyan", markersize=9)
        canvas.title(one, f"{view} view")
    return picture


def draw_fields_by_layer(network: nn.Module, degrees: Sequence[float] = (0.0, 0.0)) -> Figure:
    """Draws the receptive field of the unit nearest to one place, of each layer of a network: visual view above, cortical below.

    Args:
        network: with layers of nearest neighbours.
        degrees: (right, up) from the fixation.

    Raises:
        ShapeError: the network has no such layers.
        MissingPackageError: matplotlib is not installed.
    """
    chain = layer_chain(network)
    sensor = next(iter(chain.values())).in_coords
    picture, axes = canvas.figure(len(chain), 2, cell=(2.0, 2.2), heights=canvas.TWO_VIEWS)
    for column, name in enumerate(chain):
        layers = list(chain.values())[: column + 1]
        unit = nearest_unit(network, name, degrees)
        share = canvas.array(receptive_field(layers, unit))
        for row, view in enumerate(VIEWS):
            one = axes[row * len(chain) + column]
            view_values(one, share, sensor, view, _MAP, nothing=0.0)
            place = canvas.array(layout_of(layers[-1].out_coords, view))[unit]
            one.plot([place[0]], [place[1]], ".", color="cyan", markersize=4)
        canvas.title(axes[column], name)
    return picture


def draw_rf_diameters(network: nn.Module) -> Figure:
    """Draws receptive field diameter against eccentricity, a colour per layer; the dashed line is the field of view.

    Raises:
        ShapeError: the network has no layers of nearest neighbours.
        MissingPackageError: matplotlib is not installed.
    """
    tables = rf_diameters(network)
    fov = next(iter(layer_chain(network).values())).in_coords.fov
    picture, (axes,) = canvas.figure(1, 1, cell=(5.4, 3.8))
    import matplotlib as mpl

    colours = mpl.colormaps["viridis"](np.linspace(0.05, 0.9, len(tables)))
    for table, colour in zip(tables, colours, strict=True):
        axes.scatter(canvas.array(table.eccentricity), canvas.array(table.diameter), s=9, color=[colour], linewidths=0, label=table.name)
    axes.axhline(fov, color=canvas.FAINT, linestyle="--", linewidth=1)
    axes.text(fov / 2, fov, "field of view", fontsize=7, color=canvas.FAINT, ha="right", va="bottom")
    axes.set_xlabel("eccentricity, degrees", color=canvas.INK)
    axes.set_ylabel("receptive field diameter, degrees", color=canvas.INK)
    axes.set_xlim(left=-0.02 * fov)
    axes.set_ylim(0, 1.08 * fov)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    return picture
