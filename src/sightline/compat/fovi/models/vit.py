"""The dense transformer: ``fovi.models.vit``."""

from sightline.fovea.networks.vit import MultiHeadSelfAttention, PatchEmbedding, TransformerBlock, VisionTransformer

__all__ = ["MultiHeadSelfAttention", "PatchEmbedding", "TransformerBlock", "VisionTransformer"]
