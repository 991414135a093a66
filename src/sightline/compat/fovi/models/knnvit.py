"""Transformers on a sensor: ``fovi.models.knnvit``. Patches are cut along the surface ("geodesic") unless something else is said."""

from __future__ import annotations

from typing import Any, ClassVar

from sightline.compat.fovi._defaults import filled
from sightline.compat.fovi.sensing.coords import SamplingCoords
from sightline.fovea.networks import patches, vit

__all__ = ["KNNPartitioningPatchEmbedding", "KNNPatchEmbedding", "KNNViT", "PartitioningPatchEmbedding"]


class KNNPatchEmbedding(patches.KNNPatchEmbedding):
    """`sightline.fovea.KNNPatchEmbedding` by fovi's defaults."""

    sensor_class: ClassVar[Any] = staticmethod(SamplingCoords.make)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **filled(patches.KNNPatchEmbedding.__init__, args, options, sample_cortex="geodesic"))


class PartitioningPatchEmbedding(patches.PartitioningPatchEmbedding):
    """`sightline.fovea.PartitioningPatchEmbedding` by fovi's defaults."""

    sensor_class: ClassVar[Any] = staticmethod(SamplingCoords.make)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **filled(patches.KNNPatchEmbedding.__init__, args, options, sample_cortex="geodesic"))


class KNNPartitioningPatchEmbedding(patches.KNNPartitioningPatchEmbedding):
    """`sightline.fovea.KNNPartitioningPatchEmbedding` by fovi's defaults."""

    sensor_class: ClassVar[Any] = staticmethod(SamplingCoords.make)

    def __init__(self, *args: Any, **options: Any) -> None:
        wanted = filled(patches.KNNPatchEmbedding.__init__, args, options, sample_cortex="geodesic", max_coord_val="auto")
        super().__init__(*args, **wanted)


class KNNViT(vit.KNNViT):
    """`sightline.fovea.KNNViT` by fovi's defaults; ``attn_backend`` has no effect."""

    embeddings: ClassVar[Any] = {
        "knn": KNNPatchEmbedding,
        "partition": PartitioningPatchEmbedding,
        "knn_partition": KNNPartitioningPatchEmbedding,
    }

    def __init__(self, *args: Any, attn_backend: str = "standard", **options: Any) -> None:
        del attn_backend
        super().__init__(*args, **filled(vit.KNNViT.__init__, args, options, sample_cortex="geodesic"))
