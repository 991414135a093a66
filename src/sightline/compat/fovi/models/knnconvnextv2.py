"""ConvNeXt V2 on a sensor: ``fovi.models.knnconvnextv2``."""

from __future__ import annotations

from typing import Any

from sightline.compat.fovi._defaults import filled
from sightline.compat.fovi.arch.knn import get_knn_conv_layer
from sightline.compat.fovi.sensing.coords import SamplingCoords
from sightline.fovea.networks import convnext
from sightline.fovea.networks.convnext import GRN

__all__ = ["GRN", "ConvNeXtV2"]


class ConvNeXtV2(convnext.KNNConvNeXt):
    """`sightline.fovea.KNNConvNeXt` of this package's layers."""

    conv_classes = staticmethod(get_knn_conv_layer)
    sensor_class = staticmethod(SamplingCoords.make)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **filled(convnext.KNNConvNeXt.__init__, args, options))
