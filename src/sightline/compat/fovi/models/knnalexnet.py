"""AlexNet on a sensor: ``fovi.models.knnalexnet``."""

from __future__ import annotations

from typing import Any, ClassVar

from sightline.compat.fovi._defaults import filled
from sightline.compat.fovi.arch.knn import KNNPoolingLayer, get_knn_conv_layer
from sightline.compat.fovi.sensing.coords import SamplingCoords
from sightline.fovea.networks import alexnet

__all__ = ["KNNAlexNet", "KNNAlexNetBlock"]


class KNNAlexNetBlock(alexnet.KNNAlexNetBlock):
    """`sightline.fovea.KNNAlexNetBlock` of this package's layers."""

    conv_classes = staticmethod(get_knn_conv_layer)
    pool_class: ClassVar[Any] = KNNPoolingLayer
    sensor_class = staticmethod(SamplingCoords.make)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **filled(alexnet.KNNAlexNetBlock.__init__, args, options))


class KNNAlexNet(alexnet.KNNAlexNet):
    """`sightline.fovea.KNNAlexNet` of this package's layers."""

    block_class: ClassVar[Any] = KNNAlexNetBlock

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **filled(alexnet.KNNAlexNet.__init__, args, options))
        if not isinstance(self.layers[-1], KNNPoolingLayer):
            print("no output pooling layer")  # as the original says
