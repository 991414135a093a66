"""Reading pixels: ``fovi.sensing.samplers``."""

from sightline.fovea.pooling import PoolingSampler as KNNGridSampler
from sightline.fovea.retina import GridSampler

__all__ = ["GridSampler", "KNNGridSampler"]
