"""The first generation's name of ``fovi.models.knnvit``."""

from sightline.compat.fovi.models.knnvit import KNNPartitioningPatchEmbedding, KNNPatchEmbedding, KNNViT, PartitioningPatchEmbedding

__all__ = ["KNNPartitioningPatchEmbedding", "KNNPatchEmbedding", "KNNViT", "PartitioningPatchEmbedding"]
