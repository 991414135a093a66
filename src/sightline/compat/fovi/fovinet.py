"""The first generation's name of ``fovi.models.fovinet``."""

from sightline.compat.fovi.models.fovinet import FoviNet

__all__ = ["FoviNet"]
