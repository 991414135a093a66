"""The first generation's name of ``fovi.models.knnresnet``."""

from sightline.compat.fovi.models.knnresnet import KNNResNet, KNNResNetBasicBlock, KNNResNetBottleneck

__all__ = ["KNNResNet", "KNNResNetBasicBlock", "KNNResNetBottleneck"]
