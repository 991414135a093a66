"""Layers on sensors: convolution and pooling over nearest neighbours, and norms; maps are (batch, channels, nodes)."""

from sightline.fovea.layers.conv import KNNConv
from sightline.fovea.layers.depthwise import KNNDepthwiseConv, KNNDepthwiseSeparableConv
from sightline.fovea.layers.norm import (
    KNNBatchNorm,
    KNNChannelNorm,
    KNNCoordNorm,
    KNNGroupNorm,
    KNNLayerNorm,
    find_valid_num_groups,
    get_norm,
)
from sightline.fovea.layers.pool import KNNPool
from sightline.fovea.layers.weights import kernel_from_conv, load_fovi_state_dict

__all__ = [
    "KNNBatchNorm",
    "KNNChannelNorm",
    "KNNConv",
    "KNNCoordNorm",
    "KNNDepthwiseConv",
    "KNNDepthwiseSeparableConv",
    "KNNGroupNorm",
    "KNNLayerNorm",
    "KNNPool",
    "find_valid_num_groups",
    "get_norm",
    "kernel_from_conv",
    "load_fovi_state_dict",
]
