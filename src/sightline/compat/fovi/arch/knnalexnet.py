"""The first generation's name of ``fovi.models.knnalexnet``."""

from sightline.compat.fovi.models.knnalexnet import KNNAlexNet, KNNAlexNetBlock

__all__ = ["KNNAlexNet", "KNNAlexNetBlock"]
