"""Backbone and projectors: ``fovi.arch.wrapper``."""

from sightline.fovea.networks.mlp import BackboneProjectorWrapper

__all__ = ["BackboneProjectorWrapper"]
