"""Pictures of sensors: their points in the visual field, in the flat cortical layout, on the cortical surface; layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.errors import ShapeError
from sightline.fovea.pictures import canvas
from sightline.fovea.pictures.mosaic import layout_of
from sightline.fovea.sensor import SensorGrid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAP = "viridis"


def draw_sensor(sensor: SensorGrid) -> Figure:
    """Draws the points of a sensor: in the visual field, around the fixation, and in the cortical layout.

    The colour is the eccentricity in degrees, on a scale that follows the cortex: what is a ring in the visual field is a stripe there.

    Args:
        sensor: whose points.

    Returns:
        A matplotlib figure with three axes; each shows every point (the middle one as far as it lies within an eighth of the field).

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    picture, axes = canvas.figure(3, 1, cell=(3.6, 3.7))
    eccentricity = canvas.array(sensor.polar[:, 0]) * sensor.fov / 2
    colour = np.log1p(eccentricity / sensor.cmf_a)
    field, cortex = canvas.array(layout_of(sensor, "visual")), canvas.array(layout_of(sensor, "cortical"))
    size = _dot(len(sensor))
    near = sensor.fov / 16
    for one, points, reach in ((axes[0], field, None), (axes[1], field, near)):
        one.scatter(points[:, 0], points[:, 1], s=size if reach is None else 4 * size, c=colour, cmap=_MAP, linewidths=0)
        canvas.in_degrees(one, sensor, reach)
    axes[2].scatter(cortex[:, 0], cortex[:, 1], s=size, c=colour, cmap=_MAP, linewidths=0)
    canvas.bare(axes[2])
    canvas.title(axes[0], f"visual field: {len(sensor):,} points")
    canvas.title(axes[1], f"the middle {2 * near:g} degrees")
    canvas.title(axes[2], "cortical layout")
    return picture


def draw_manifold(sensor: SensorGrid) -> Figure:
    """Draws the points of a sensor on the cortical surface, in three dimensions; colours as in `draw_sensor`.

    Raises:
        ShapeError: the sensor has no such surface (log-polar, warped and uniform styles).
        MissingPackageError: matplotlib is not installed.
    """
    points = sensor.cortical
    if points is None or points.shape[1] != 3:
        raise ShapeError(
            f"points of style {sensor.style!r} lie on no surface in three dimensions; draw an isotropic sensor, or draw_sensor"
        )
    picture, (axes,) = canvas.figure(1, 1, cell=(5, 4.6), projection="3d")
    place = canvas.array(points)
    colour = np.log1p(canvas.array(sensor.polar[:, 0]) * sensor.fov / 2 / sensor.cmf_a)
    surface: Any = axes  # its methods take three coordinates
    surface.scatter(*place.T, s=_dot(len(sensor)), c=colour, cmap=_MAP, linewidths=0)
    surface.set_box_aspect(np.ptp(place, axis=0))
    surface.view_init(elev=24, azim=-60)
    axes.tick_params(labelsize=7, colors=canvas.FAINT)
    canvas.title(axes, f"cortical surface ({sensor.manifold}), mm")
    return picture


def draw_grids(sensors: Sequence[SensorGrid], names: Sequence[str] | None = None) -> Figure:
    """Draws several sensors side by side, as the layers of a network have them: visual field above, cortical layout below.

    Args:
        sensors: at least one.
        names: one per sensor; default: "layer 0", "layer 1" ...

    Raises:
        ShapeError: no sensor, or another number of names.
        MissingPackageError: matplotlib is not installed.
    """
    if not sensors or (names is not None and len(names) != len(sensors)):
        raise ShapeError(f"`sensors` needs at least one sensor, and `names` one name each; got {len(sensors)} and {len(names or ())}")
    picture, axes = canvas.figure(len(sensors), 2, cell=(2.3, 2.5), heights=canvas.TWO_VIEWS)
    for column, sensor in enumerate(sensors):
        for row, view in enumerate(("visual", "cortical")):
            one, points = axes[row * len(sensors) + column], canvas.array(layout_of(sensor, view))
            one.scatter(points[:, 0], points[:, 1], s=_dot(len(sensor)) / 2, color=canvas.INK, linewidths=0)
            canvas.bare(one)
            if view == "visual":
                canvas.in_degrees(one, sensor, labels=False)
                one.set_xticks([])
                one.set_yticks([])
        canvas.title(axes[column], f"{names[column] if names else f'layer {column}'}: {len(sensor):,}")
    return picture


def _dot(points: int) -> float:
    """Area of a marker so that points neither vanish nor run into each other."""
    return float(np.clip(9000 / max(points, 1), 0.8, 24))
