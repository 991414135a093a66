"""Networks by name: ``fovi.models.architectures``."""

from __future__ import annotations

from sightline.compat.fovi.models.knnalexnet import KNNAlexNet
from sightline.compat.fovi.models.knnconvnextv2 import ConvNeXtV2
from sightline.compat.fovi.models.knnresnet import KNNResNet
from sightline.compat.fovi.models.knnvit import KNNViT
from sightline.fovea.networks.registry import ArchitectureRegistry, Classes, make_registry
from sightline.fovea.networks.registry import wrapped as arch_wrapper

__all__ = ["ARCHITECTURE_REGISTRY", "ArchitectureRegistry", "arch_wrapper"]

ARCHITECTURE_REGISTRY = make_registry(Classes(KNNAlexNet, KNNResNet, ConvNeXtV2, KNNViT))
"""Networks that ``model.arch`` may name; a builder is called with (configuration, device=...)."""
