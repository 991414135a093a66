"""ResNet on a sensor: ``fovi.models.knnresnet``."""

from __future__ import annotations

from typing import Any, ClassVar

from sightline.compat.fovi._defaults import filled
from sightline.compat.fovi.arch.knn import KNNPoolingLayer, get_knn_conv_layer
from sightline.compat.fovi.sensing.coords import SamplingCoords
from sightline.fovea.networks import resnet

__all__ = ["KNNResNet", "KNNResNetBasicBlock", "KNNResNetBottleneck"]


class KNNResNetBasicBlock(resnet.KNNResNetBasicBlock):
    """`sightline.fovea.KNNResNetBasicBlock` of this package's layers."""

    conv_classes = staticmethod(get_knn_conv_layer)
    sensor_class = staticmethod(SamplingCoords.make)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **filled(resnet.KNNResNetBasicBlock.__init__, args, options))


class KNNResNetBottleneck(resnet.KNNResNetBottleneck):
    """`sightline.fovea.KNNResNetBottleneck` of this package's layers."""

    conv_classes = staticmethod(get_knn_conv_layer)
    sensor_class = staticmethod(SamplingCoords.make)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **filled(resnet.KNNResNetBottleneck.__init__, args, options))


class KNNResNet(resnet.KNNResNet):
    """`sightline.fovea.KNNResNet` of this package's layers."""

    conv_classes = staticmethod(get_knn_conv_layer)
    sensor_class = staticmethod(SamplingCoords.make)
    blocks: ClassVar[Any] = {"basic": KNNResNetBasicBlock, "bottleneck": KNNResNetBottleneck}

    def __init__(self, block: Any = KNNResNetBasicBlock, *args: Any, **options: Any) -> None:
        filled_in = filled(resnet.KNNResNet.__init__, (block, *args), options)
        if len(args) < 10 and "pool_layer" not in filled_in:
            filled_in["pool_layer"] = KNNPoolingLayer
        super().__init__(block, *args, **filled_in)
