"""The first generation's name of ``fovi.models.knnconvnextv2``."""

from sightline.compat.fovi.models.knnconvnextv2 import GRN, ConvNeXtV2

__all__ = ["GRN", "ConvNeXtV2"]
