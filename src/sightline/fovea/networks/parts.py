"""Layers by the names that configurations have for them."""

from __future__ import annotations

from typing import Any

from sightline.errors import ConfigError
from sightline.fovea.layers import KNNConv, KNNDepthwiseConv, KNNDepthwiseSeparableConv

CONVOLUTIONS: dict[str, Any] = {"default": KNNConv, "dwsep": KNNDepthwiseSeparableConv, "dw": KNNDepthwiseConv}


def knn_conv_class(name: str) -> Any:
    """The class of a convolution on sensors.

    Args:
        name: "default", "dwsep" (depthwise separable) or "dw" (depthwise).

    Raises:
        ConfigError: another name.

    >>> knn_conv_class("dw").__name__
    'KNNDepthwiseConv'
    """
    if name not in CONVOLUTIONS:
        raise ConfigError(f"a convolution on sensors is one of {', '.join(CONVOLUTIONS)}, not {name!r}")
    return CONVOLUTIONS[name]
