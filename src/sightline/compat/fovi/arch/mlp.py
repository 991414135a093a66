"""Projectors: ``fovi.arch.mlp``."""

from sightline.fovea.networks.mlp import LayerBlock, LPNormalize, MLPWrapper, get_mlp

__all__ = ["LPNormalize", "LayerBlock", "MLPWrapper", "get_mlp"]
