"""Pooling samplers: a sample is the mean of many points of a denser sensor, as a ganglion cell sums photoreceptors.

What belongs here: which points make a sample and how they are weighted. Reading them belongs to `sampling.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sightline.fovea.buffers import PreciseBuffers
from sightline.fovea.neighbours import Ties, find_neighbours
from sightline.fovea.sampling import sample
from sightline.fovea.sensor import SensorGrid


class PoolingSampler(PreciseBuffers):
    """Means over the nearest points of a denser sensor, which are read from the nearest pixels.

    Args:
        sensor: where the means lie.
        factor: rings (or the side) of the denser sensor per ring of this one, above 0.
        k: points per mean; None: as many as there are per sample, rounded.
        gauss_sigma: None: plain means. Else weights exp(-d^2 / (2 sigma^2)) of distances d scaled from 0 to 1 within each mean.

    Raises:
        ValueError: k, factor or gauss_sigma out of range.
    """

    points: torch.Tensor
    index: torch.Tensor
    starts: torch.Tensor
    weight: torch.Tensor

    def __init__(self, sensor: SensorGrid, *, factor: float = 3.0, k: int | None = None, gauss_sigma: float | None = None) -> None:
        super().__init__()
        if not factor > 0:
            raise ValueError(f"`pool_factor` must be above 0, got {factor!r}")
        if gauss_sigma is not None and not gauss_sigma > 0:
            raise ValueError(f"`gauss_sigma` must be above 0, got {gauss_sigma!r}")
        self.sensor = sensor
        self.receptors = sensor.replace(resolution=max(1, round(factor * sensor.resolution)))
        self.k = round(len(self.receptors) / len(sensor)) if k is None else k
        if not 1 <= self.k <= len(self.receptors):
            raise ValueError(f"`pool_k` must be from 1 to the {len(self.receptors)} points of the denser sensor, got {self.k}")
        self.gauss_sigma = gauss_sigma
        # On the cortex; in the visual field for sensors without one. Padding around the receptors takes places and counts for nothing.
        ties: Ties = "fovi" if sensor.float32_recipe else "stable"
        found = find_neighbours(self.receptors, sensor, self.k, space=sensor.exact.cortical is not None, ties=ties)
        index, real, distance = found.candidate, ~found.padding, found.distance.double()
        counts = real.double()
        if gauss_sigma is not None:
            low, high = distance.amin(1, keepdim=True), distance.amax(1, keepdim=True)
            span = torch.where(high > low, high - low, 1.0)
            counts = counts * torch.exp(-(((distance - low) / span) ** 2) / (2 * gauss_sigma**2))
        weight = counts / counts.sum(1, keepdim=True).clamp_min(1e-300)
        self.register_buffer("points", self.receptors.cartesian.clone(), persistent=False)
        # Lists of different lengths, without the points that count for nothing: 0 times NaN would be NaN.
        ends = real.sum(1).cumsum(0)
        self.register_buffer("index", index[real].to(sensor.device, torch.int32), persistent=False)
        self.register_buffer("starts", (ends - real.sum(1)).to(sensor.device, torch.int32), persistent=False)
        self.register_buffer("weight", weight[real].to(sensor.device, torch.float32), persistent=False)

    def forward(self, images: torch.Tensor, fixations: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """(B, F, C, N) of images (B, C, H, W), fixations (B, F, 2) and sizes (B, F or 1, 2); float32 of uint8, not divided."""
        read = sample(images, self.points.to(fixations.dtype), fixations, sizes)
        batch, glances, channels, receptors = read.shape
        rows = read.permute(3, 1, 0, 2).reshape(receptors, glances * batch * channels)
        work = torch.float64 if images.dtype == torch.float64 else torch.float32
        means = F.embedding_bag(self.index, rows.to(work), self.starts, mode="sum", per_sample_weights=self.weight.to(work))
        out = means.view(-1, glances, batch, channels).permute(2, 1, 3, 0)
        return out if images.dtype == torch.uint8 else out.to(images.dtype)

    def extra_repr(self) -> str:
        """For print()."""
        grid = self.sensor
        return (
            f"fov={grid.fov}, cmf_a={grid.cmf_a}, style={grid.style}, resolution={grid.resolution}, n={len(grid)}, "
            f"receptors={len(self.receptors)}, k={self.k}, gauss_sigma={self.gauss_sigma}"
        )
