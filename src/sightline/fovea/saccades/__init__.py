"""Saccade policies: where a foveated sensor looks."""

from sightline.fovea.saccades.base import Glimpses, SaccadePolicy
from sightline.fovea.saccades.random import NoSaccades, RandomSaccades, random_crops

__all__ = ["Glimpses", "NoSaccades", "RandomSaccades", "SaccadePolicy", "random_crops"]
