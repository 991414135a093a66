"""Foveated vision: sensors, retinas, saccades, k-nearest-neighbour layers and networks.

Names load when first asked for. Each part of the package adds its own to `_HOMES`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.fovea.color import ColorDecay
    from sightline.fovea.config import compose
    from sightline.fovea.fovinet import FoviNet
    from sightline.fovea.gaze import CameraSampler
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
    from sightline.fovea.lens import CalibratedCamera
    from sightline.fovea.load import find_config, get_model_from_base_fn, load_config
    from sightline.fovea.neighbours import NeighbourTable, neighbour_table
    from sightline.fovea.networks import (
        ARCHITECTURES,
        DenseAlexNet,
        DenseResNet,
        KNNAlexNet,
        KNNAlexNetBlock,
        KNNConvNeXt,
        KNNPartitioningPatchEmbedding,
        KNNPatchEmbedding,
        KNNResNet,
        KNNResNetBasicBlock,
        KNNResNetBottleneck,
        KNNViT,
        PartitioningPatchEmbedding,
        VisionTransformer,
    )
    from sightline.fovea.policies import POLICIES
    from sightline.fovea.probes import FoviNetProbe, FoviNetProbes, LinearProbe
    from sightline.fovea.retina import GridSampler, RetinalTransform
    from sightline.fovea.saccades import (
        Glimpses,
        InhibitedSaccades,
        NoSaccades,
        PrioritySaccades,
        RandomSaccades,
        SaccadePolicy,
        SaliencySaccades,
    )
    from sightline.fovea.saccades.uncertainty import UncertaintySaccades
    from sightline.fovea.sensor import SensorGrid, match_resolution, num_points
    from sightline.fovea.video import FoveaStream, stream

# Public name: the module below this package that holds it.
_HOMES = {
    "CalibratedCamera": "lens",
    "CameraSampler": "gaze",
    "ColorDecay": "color",
    "compose": "config",
    "FoviNet": "fovinet",
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
    "find_config": "load",
    "get_model_from_base_fn": "load",
    "load_config": "load",
    "NeighbourTable": "neighbours",
    "neighbour_table": "neighbours",
    "ARCHITECTURES": "networks",
    "DenseAlexNet": "networks",
    "DenseResNet": "networks",
    "KNNAlexNet": "networks",
    "KNNAlexNetBlock": "networks",
    "KNNConvNeXt": "networks",
    "KNNPartitioningPatchEmbedding": "networks",
    "KNNPatchEmbedding": "networks",
    "KNNResNet": "networks",
    "KNNResNetBasicBlock": "networks",
    "KNNResNetBottleneck": "networks",
    "KNNViT": "networks",
    "PartitioningPatchEmbedding": "networks",
    "VisionTransformer": "networks",
    "POLICIES": "policies",
    "FoviNetProbe": "probes",
    "FoviNetProbes": "probes",
    "LinearProbe": "probes",
    "GridSampler": "retina",
    "RetinalTransform": "retina",
    "Glimpses": "saccades",
    "NoSaccades": "saccades",
    "RandomSaccades": "saccades",
    "SaccadePolicy": "saccades",
    "FoveaStream": "video",
    "InhibitedSaccades": "saccades",
    "PrioritySaccades": "saccades",
    "SaliencySaccades": "saccades",
    "UncertaintySaccades": "saccades.uncertainty",
    "SensorGrid": "sensor",
    "match_resolution": "sensor",
    "num_points": "sensor",
    "stream": "video",
}

__all__ = [
    "ARCHITECTURES",
    "POLICIES",
    "CalibratedCamera",
    "CameraSampler",
    "ColorDecay",
    "DenseAlexNet",
    "DenseResNet",
    "FoveaStream",
    "FoviNet",
    "FoviNetProbe",
    "FoviNetProbes",
    "Glimpses",
    "GridSampler",
    "InhibitedSaccades",
    "KNNAlexNet",
    "KNNAlexNetBlock",
    "KNNBatchNorm",
    "KNNChannelNorm",
    "KNNConv",
    "KNNConvNeXt",
    "KNNCoordNorm",
    "KNNDepthwiseConv",
    "KNNDepthwiseSeparableConv",
    "KNNGroupNorm",
    "KNNLayerNorm",
    "KNNPartitioningPatchEmbedding",
    "KNNPatchEmbedding",
    "KNNPool",
    "KNNResNet",
    "KNNResNetBasicBlock",
    "KNNResNetBottleneck",
    "KNNViT",
    "LinearProbe",
    "NeighbourTable",
    "NoSaccades",
    "PartitioningPatchEmbedding",
    "PrioritySaccades",
    "RandomSaccades",
    "RetinalTransform",
    "SaccadePolicy",
    "SaliencySaccades",
    "SensorGrid",
    "UncertaintySaccades",
    "VisionTransformer",
    "compose",
    "find_config",
    "get_model_from_base_fn",
    "get_norm",
    "load_config",
    "load_fovi_state_dict",
    "match_resolution",
    "neighbour_table",
    "num_points",
    "stream",
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
