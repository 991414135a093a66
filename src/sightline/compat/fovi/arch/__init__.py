"""Layers, and in the first generation of names networks too: ``fovi.arch``."""

from sightline.compat.fovi.models.architectures import ARCHITECTURE_REGISTRY

__all__ = ["ARCHITECTURE_REGISTRY"]
