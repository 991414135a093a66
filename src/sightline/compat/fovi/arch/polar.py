"""Padding of log-polar maps: ``fovi.arch.polar``."""

from sightline.fovea.networks.dense import PolarPadder

__all__ = ["PolarPadder"]
