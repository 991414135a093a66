"""Foveated vision: sensors, retinas, saccades, k-nearest-neighbour layers and networks.

Names load when first asked for. Each part of the package adds its own to `_HOMES`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.fovea.color import ColorDecay
    from sightline.fovea.layers import (
        KNNBatchNorm,
        KNNChannelNorm,
        KNNConv,
        KNNCoordNorm,
        KNNDepthwiseConv,
        KNNDepthwiseSeparableConv,
        KNNGroupNorm,
        KNNLayerNorm,
        KNNPool,
        get_norm,
        load_fovi_state_dict,
    )
    from sightline.fovea.neighbours import NeighbourTable, neighbour_table
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
    "KNNBatchNorm": "layers",
    "KNNChannelNorm": "layers",
    "KNNConv": "layers",
    "KNNCoordNorm": "layers",
    "KNNDepthwiseConv": "layers",
    "KNNDepthwiseSeparableConv": "layers",
    "KNNGroupNorm": "layers",
    "KNNLayerNorm": "layers",
    "KNNPool": "layers",
    "get_norm": "layers",
    "load_fovi_state_dict": "layers",
    "NeighbourTable": "neighbours",
    "neighbour_table": "neighbours",
    "SensorGrid": "sensor",
    "match_resolution": "sensor",
    "num_points": "sensor",
}

__all__ = [
    "ColorDecay",
    "Glimpses",
    "GridSampler",
    "KNNBatchNorm",
    "KNNChannelNorm",
    "KNNConv",
    "KNNCoordNorm",
    "KNNDepthwiseConv",
    "KNNDepthwiseSeparableConv",
    "KNNGroupNorm",
    "KNNLayerNorm",
    "KNNPool",
    "NeighbourTable",
    "NoSaccades",
    "RandomSaccades",
    "RetinalTransform",
    "SaccadePolicy",
    "SensorGrid",
    "get_norm",
    "load_fovi_state_dict",
    "match_resolution",
    "neighbour_table",
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
