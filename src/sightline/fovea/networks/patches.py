"""Tokens from a sensor: patch embeddings whose patches are neighbourhoods.

Three ways to cut a sensor into patches: the k nearest samples of each token (patches may overlap, or leave samples out), every sample to
its nearest token, and the smallest k at which no sample is left out. What belongs here: from (B, C, N) to tokens (B, T, D). What does
not: what a transformer does with them (`vit`).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from sightline.errors import ShapeError
from sightline.fovea.layers import KNNConv
from sightline.fovea.neighbours import Neighbours, NeighbourTable, Points, find_neighbours, kernel_cells, nearest
from sightline.fovea.networks.ladder import Ladder
from sightline.fovea.sensor import SensorGrid

_Device = torch.device | str | None


class KNNPatchEmbedding(KNNConv):
    """A token for the k nearest samples of each point of a coarser sensor: a kNN convolution whose stride is the patch.

    Args:
        in_channels: channels of the samples.
        embed_dim: D, width of a token.
        in_res: rings of the sensor, where resources are not matched.
        fov, cmf_a, style: of the sensor.
        auto_match_cart_resources: as in `KNNAlexNet`.
        in_cart_res: side of the square image that the sensor is matched to.
        cart_patch_size: p; there is a token for every p x p samples.
        patch_overlap_factor: k is this times the side of a patch, squared; with ``new_parameterization`` k stays p * p and there are
            more tokens instead.
        device: of parameters and tables.
        force_patches_less_than_matched: at most as many tokens as a square image would have; False: just more.
        new_parameterization: see there.
        transposed: return (B, D, T) instead of (B, T, D).
        max_coord_val: where the outermost tokens lie: 1 on the rim, "auto" half-way to the ring before it.
        sample_cortex: see `KNNConv`.
        ref_frame_side_length: side of the reference kernel; default ceil(sqrt(k)).
        isotropic_plotting_type, fov_type, field_geometry, radius_norm: of the sensors.
        in_coords, out_coords: sensors that are there already; both or none.
        bias, arch_flag, ties: as in `KNNAlexNetBlock`.

    Forward: (B, in_channels, N) (or a grid (B, in_channels, h, w) with h * w = N) to (B, T, D).
    """

    sensor_class: ClassVar[Any] = SensorGrid

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        in_res: int,
        fov: float,
        cmf_a: float,
        style: str = "isotropic",
        auto_match_cart_resources: int = 1,
        in_cart_res: int = 224,
        cart_patch_size: int = 16,
        patch_overlap_factor: float = 1,
        device: _Device = None,
        force_patches_less_than_matched: bool = True,
        new_parameterization: bool = False,
        transposed: bool = False,
        max_coord_val: float | str = 1,
        sample_cortex: bool | str = True,
        ref_frame_side_length: int | None = None,
        isotropic_plotting_type: str = "v1like",
        fov_type: str = "circular",
        field_geometry: str = "planar",
        radius_norm: float = 2.0,
        *,
        in_coords: SensorGrid | None = None,
        out_coords: SensorGrid | None = None,
        bias: bool = False,
        arch_flag: str | None = "",
        ties: str = "stable",
    ) -> None:
        if (in_coords is None) != (out_coords is None):
            raise ShapeError("in_coords and out_coords belong together: give both, or neither")
        cart_out: float = 0
        if in_coords is None or out_coords is None:
            ladder = Ladder(
                fov, cmf_a, style, field_geometry, fov_type, radius_norm, isotropic_plotting_type, int(auto_match_cart_resources), ties,
                device, type(self).sensor_class,
            )  # fmt: skip
            first = ladder.start(in_cart_res if auto_match_cart_resources else in_res)
            stride = cart_patch_size / patch_overlap_factor if new_parameterization else cart_patch_size
            at_most = force_patches_less_than_matched
            if max_coord_val == "auto":
                below = ladder.inside(first, stride, at_most=at_most)
            else:
                below = ladder.below(first, stride, at_most=at_most, max_radius=float(max_coord_val))
            in_coords, out_coords = first.sensor, below.sensor
            cart_out = below.cart_res or 0
        cart_out = cart_out or math.sqrt(len(in_coords)) / cart_patch_size
        if new_parameterization:
            k = cart_patch_size**2
        else:
            k = int((cart_patch_size * cart_out / math.sqrt(len(out_coords)) * patch_overlap_factor) ** 2)
        space: Any = sample_cortex
        table = self.cut(in_coords, out_coords, max(1, k), ref_frame_side_length, space, ties, arch_flag)
        super().__init__(
            in_channels, embed_dim, table.index.shape[1], in_coords, out_coords, side=table.side, bias=bias, sample_cortex=space,
            ties=cast(Any, ties), device=device,
        )  # fmt: skip
        self.k = table.index.shape[1]
        self._table("index", table.index, device)
        self._table("cell", table.cell, device)
        self.transposed = transposed

    @staticmethod
    def neighbours(source: SensorGrid, target: SensorGrid, k: int, space: Any, ties: Any) -> Neighbours:
        """Which samples belong to which token; subclasses choose."""
        return find_neighbours(source, target, k, space, ties)

    @classmethod
    def cut(
        cls, source: SensorGrid, target: SensorGrid, k: int, side: int | None, space: Any, ties: Any, arch_flag: str | None
    ) -> NeighbourTable:
        """The table of the convolution: the samples of each token, and the cell of the kernel that each meets."""
        found = cls.neighbours(source, target, k, space, ties)
        width = found.candidate.shape[1]
        if side is None:
            side = math.ceil(math.sqrt(width)) * (2 if arch_flag == "doubleres" else 1)
        cells = kernel_cells(Points.of(source, ties), Points.of(target, ties), found, side, space, ties)
        return NeighbourTable(found.index, cells, side)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D)."""
        tokens: Tensor = super().forward(x.flatten(2) if x.ndim == 4 else x)
        return tokens if self.transposed else tokens.transpose(1, 2)


class PartitioningPatchEmbedding(KNNPatchEmbedding):
    """A token for the samples that are nearer to its point than to any other: each sample belongs to exactly one token.

    Args and forward as in `KNNPatchEmbedding`; ``patch_overlap_factor`` has no meaning here. Tokens have different numbers of samples; the
    kernel of each is stretched to its own.
    """

    @staticmethod
    def neighbours(source: SensorGrid, target: SensorGrid, k: int, space: Any, ties: Any) -> Neighbours:
        """Every sample at its nearest token; lists are filled up to the longest with padding."""
        del k
        samples, tokens = Points.of(source, ties), Points.of(target, ties)
        only_real = tokens._replace(
            pad_cartesian=tokens.pad_cartesian[:0], pad_cortical=None if tokens.pad_cortical is None else tokens.pad_cortical[:0]
        )
        owner = nearest(only_real, samples, 1, space, ties)
        token, distance = owner.candidate[:, 0], owner.distance[:, 0]
        order = torch.argsort(token, stable=True)
        counts = torch.bincount(token, minlength=len(target))
        if int(counts.min()) == 0:
            empty = int((counts == 0).sum())
            raise ShapeError(f"{empty} of {len(target)} tokens are nearest to no sample: take larger patches")
        starts = counts.cumsum(0) - counts
        slot = torch.arange(int(counts.max()))
        # Slots behind a list's end repeat its first sample, which does not change the box that its kernel is stretched to.
        inside = slot < counts[:, None]
        at = order[(starts[:, None] + slot).where(inside, starts[:, None])]
        padding = ~inside
        if samples.valid_mask is not None:
            padding |= ~samples.valid_mask[at]
        if tokens.valid_mask is not None:
            padding |= ~tokens.valid_mask[:, None]
        return Neighbours(at, distance[at], padding)


class KNNPartitioningPatchEmbedding(KNNPatchEmbedding):
    """A token for the k nearest samples of each point, with the smallest k at which every sample belongs to some token.

    Args and forward as in `KNNPatchEmbedding`; ``patch_overlap_factor`` has no meaning here. ``max_coord_val="auto"`` wastes fewest.
    """

    @staticmethod
    def neighbours(source: SensorGrid, target: SensorGrid, k: int, space: Any, ties: Any) -> Neighbours:
        """The k nearest, with the smallest k that covers all samples."""
        del k
        count = len(source)
        enough = max(1, math.ceil(count / len(target)))
        while not _covers(found := find_neighbours(source, target, enough, space, ties), count, enough):
            if enough >= count:
                raise ShapeError("no number of neighbours reaches every sample of this sensor")
            enough = min(2 * enough, count)
        low, high = 1, found.candidate.shape[1]
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _covers(found, count, middle) else (middle + 1, high)
        return Neighbours(found.candidate[:, :low], found.distance[:, :low], found.padding[:, :low])


def _covers(found: Neighbours, count: int, k: int) -> bool:
    reached = torch.zeros(count, dtype=torch.bool)
    candidates = found.candidate[:, :k]
    reached[candidates[candidates < count]] = True
    return bool(reached.all())


PATCH_EMBEDDINGS: dict[str, type[KNNPatchEmbedding]] = {
    "knn": KNNPatchEmbedding,
    "partition": PartitioningPatchEmbedding,
    "knn_partition": KNNPartitioningPatchEmbedding,
}
