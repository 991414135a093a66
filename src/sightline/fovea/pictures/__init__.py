"""Pictures of foveated vision, drawn with matplotlib (extra "plots"): sensors, samples, activations, fixations, receptive fields, filters.

Every ``draw_...`` function returns a figure; `save` writes it. Nothing is shown by itself.
"""

from sightline.fovea.pictures.canvas import save
from sightline.fovea.pictures.filters import draw_filter_over_space, draw_filters, filter_images
from sightline.fovea.pictures.fixations import draw_accuracy, draw_fixations
from sightline.fovea.pictures.reach import Diameters, layer_chain, receptive_field, rf_diameters
from sightline.fovea.pictures.receptive_fields import draw_fields_by_layer, draw_receptive_field, draw_rf_diameters, nearest_unit
from sightline.fovea.pictures.samples import draw_activations, draw_samples, points_on_image
from sightline.fovea.pictures.sensors import draw_grids, draw_manifold, draw_sensor

__all__ = [
    "Diameters",
    "draw_accuracy",
    "draw_activations",
    "draw_fields_by_layer",
    "draw_filter_over_space",
    "draw_filters",
    "draw_fixations",
    "draw_grids",
    "draw_manifold",
    "draw_receptive_field",
    "draw_rf_diameters",
    "draw_samples",
    "draw_sensor",
    "filter_images",
    "layer_chain",
    "nearest_unit",
    "points_on_image",
    "receptive_field",
    "rf_diameters",
    "save",
]
