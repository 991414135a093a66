"""Layers, and in the first generation of names networks too: ``fovi.arch``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.compat.fovi.models.architectures import ARCHITECTURE_REGISTRY

__all__ = ["ARCHITECTURE_REGISTRY"]


def __getattr__(name: str) -> object:
    """The registry, when it is first used: it needs the layers of this package."""
    if name == "ARCHITECTURE_REGISTRY":
        from sightline.compat.fovi.models.architectures import ARCHITECTURE_REGISTRY

        return ARCHITECTURE_REGISTRY
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
