"""Networks on sensors, their dense controls, and the registry that configurations choose from."""

from sightline.fovea.networks.alexnet import KNNAlexNet, KNNAlexNetBlock
from sightline.fovea.networks.convnext import KNNConvNeXt, KNNConvNeXtBlock
from sightline.fovea.networks.dense import DenseAlexNet, DenseResNet, PolarPadder
from sightline.fovea.networks.ladder import Ladder, Rung
from sightline.fovea.networks.mlp import BackboneProjectorWrapper, LayerBlock, MLPWrapper, get_mlp
from sightline.fovea.networks.patches import KNNPartitioningPatchEmbedding, KNNPatchEmbedding, PartitioningPatchEmbedding
from sightline.fovea.networks.registry import ARCHITECTURES, ArchitectureRegistry
from sightline.fovea.networks.resnet import KNNResNet, KNNResNetBasicBlock, KNNResNetBottleneck
from sightline.fovea.networks.vit import KNNViT, VisionTransformer

__all__ = [
    "ARCHITECTURES",
    "ArchitectureRegistry",
    "BackboneProjectorWrapper",
    "DenseAlexNet",
    "DenseResNet",
    "KNNAlexNet",
    "KNNAlexNetBlock",
    "KNNConvNeXt",
    "KNNConvNeXtBlock",
    "KNNPartitioningPatchEmbedding",
    "KNNPatchEmbedding",
    "KNNResNet",
    "KNNResNetBasicBlock",
    "KNNResNetBottleneck",
    "KNNViT",
    "Ladder",
    "LayerBlock",
    "MLPWrapper",
    "PartitioningPatchEmbedding",
    "PolarPadder",
    "Rung",
    "VisionTransformer",
    "get_mlp",
]
