"""The first generation's name of ``fovi.models.vit``."""

from sightline.compat.fovi.models.vit import VisionTransformer

__all__ = ["VisionTransformer"]
