"""Foveated vision: sensors, retinas, saccades, k-nearest-neighbour layers and networks.

Names load when first asked for. Each part of the package adds its own to `_HOMES`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.fovea.color import ColorDecay
    from sightline.fovea.retina import GridSampler, RetinalTransform
    from sightline.fovea.saccades import Glimpses, NoSaccades, RandomSaccades, SaccadePolicy
    from sightline.fovea.sensor import SensorGrid, match_resolution, num_points

# Public name: the module below this package that holds it.
_HOMES = {
    "ColorDecay": "color",
    "Glimpses": "saccades",
    "GridSampler": "retina",
    "NoSaccades": "saccades",
    "RandomSaccades": "saccades",
    "RetinalTransform": "retina",
    "SaccadePolicy": "saccades",
    "SensorGrid": "sensor",
    "match_resolution": "sensor",
    "num_points": "sensor",
}

__all__ = [
    "ColorDecay",
    "Glimpses",
    "GridSampler",
    "NoSaccades",
    "RandomSaccades",
    "RetinalTransform",
    "SaccadePolicy",
    "SensorGrid",
    "match_resolution",
    "num_points",
]


def __getattr__(name: str) -> object:
    """Loads a public name, or a module of this package, when it is first used."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _HOMES.values():
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
