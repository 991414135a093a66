"""Saccade policies: where a foveated sensor looks."""

from sightline.fovea.saccades.base import Glimpses, SaccadePolicy
from sightline.fovea.saccades.priority import InhibitedSaccades, PrioritySaccades, inhibition
from sightline.fovea.saccades.random import NoSaccades, RandomSaccades, random_crops
from sightline.fovea.saccades.saliency import SaliencySaccades, spectral_residual

__all__ = [
    "Glimpses",
    "InhibitedSaccades",
    "NoSaccades",
    "PrioritySaccades",
    "RandomSaccades",
    "SaccadePolicy",
    "SaliencySaccades",
    "inhibition",
    "random_crops",
    "spectral_residual",
]
