"""Foveated vision: sensors, retinas, saccades, k-nearest-neighbour layers and networks.

Names load when first asked for. Each part of the package adds its own to `_HOMES`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.fovea.sensor import SensorGrid, match_resolution, num_points

# Public name: the module below this package that holds it.
_HOMES = {
    "SensorGrid": "sensor",
    "match_resolution": "sensor",
    "num_points": "sensor",
}

__all__ = [
    "SensorGrid",
    "match_resolution",
    "num_points",
]


def __getattr__(name: str) -> object:
    """Loads a public name, or a module of this package, when it is first used."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
