"""Norms on sensors: ``fovi.arch.norm``."""

from sightline.fovea.layers import (
    KNNBatchNorm,
    KNNChannelNorm,
    KNNCoordNorm,
    KNNGroupNorm,
    KNNLayerNorm,
    find_valid_num_groups,
    get_norm,
)

__all__ = [
    "KNNBatchNorm",
    "KNNChannelNorm",
    "KNNCoordNorm",
    "KNNGroupNorm",
    "KNNLayerNorm",
    "find_valid_num_groups",
    "get_norm",
]
