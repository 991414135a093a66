"""Foveated sensors: where an eye samples the visual field, and where its samples lie on the cortex."""

from sightline.fovea.sensor.acuity import smallest_cmf_a
from sightline.fovea.sensor.geometry import Geometry
from sightline.fovea.sensor.grid import FIELDS, STYLES, SensorGrid
from sightline.fovea.sensor.layouts import LAYOUTS, plotting_layout
from sightline.fovea.sensor.manifold import MANIFOLDS, radius_limit, to_surface
from sightline.fovea.sensor.matching import match_resolution, num_points

__all__ = [
    "FIELDS",
    "LAYOUTS",
    "MANIFOLDS",
    "STYLES",
    "Geometry",
    "SensorGrid",
    "match_resolution",
    "num_points",
    "plotting_layout",
    "radius_limit",
    "smallest_cmf_a",
    "to_surface",
]
