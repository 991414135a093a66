"""`KNNPool`: pooling over nearest neighbours on a sensor."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from sightline.errors import ShapeError
from sightline.fovea.layers.base import KNNLayer
from sightline.fovea.layers.function import knn_max_pool, knn_sum_pool
from sightline.fovea.neighbours import Neighbours, Space, Ties, find_neighbours
from sightline.fovea.sensor import SensorGrid

Mode = Literal["max", "avg", "sum", "gaussian"]


class KNNPool(KNNLayer):
    """Maximum, mean, sum or Gaussian mean of the k nearest inputs of every output node.

    Padding does not take part; a node all of whose neighbours are padding is zero. NaN is kept: a node that reads NaN is NaN (fovi takes
    it for padding).

    Args:
        k: neighbours per node, at least 1; at most as many as the input has points are taken.
        in_coords, out_coords: the sensors that inputs and outputs lie on.
        mode: "max", "avg", "sum" or "gaussian" (weights fall with the distance, rescaled to [0, 1] within the neighbourhood).
        gauss_sigma: standard deviation of "gaussian" in that scale, above 0.
        sample_cortex, ties: as for `KNNConv`.
        device: of the tables.

    Shape:
        (B, C, N_in) to (B, C, N_out), node-major in memory.

    Raises:
        ShapeError: an unknown mode, a sigma of 0 or below; otherwise as `KNNConv`.

    Cost: N_out * k * C values read per image; no memory beside the output.
    """

    weights: Tensor | None

    def __init__(
        self,
        k: int,
        in_coords: SensorGrid,
        out_coords: SensorGrid,
        mode: Mode = "max",
        *,
        gauss_sigma: float = 10.0,
        sample_cortex: Space = True,
        ties: Ties = "stable",
        device: Any = None,
    ) -> None:
        super().__init__(k, in_coords, out_coords, sample_cortex, ties)
        if mode not in {"max", "avg", "sum", "gaussian"}:
            raise ShapeError(f"mode: expected 'max', 'avg', 'sum' or 'gaussian', got {mode!r}")
        if mode == "gaussian" and not gauss_sigma > 0:
            raise ShapeError(f"gauss_sigma: expected a number above 0, got {gauss_sigma}")
        self.mode, self.gauss_sigma = mode, gauss_sigma
        found = find_neighbours(in_coords, out_coords, self.k, sample_cortex, ties)
        self._table("index", found.index, device)
        if mode == "gaussian":
            self._table("weights", gaussian_weights(found, gauss_sigma).to(torch.get_default_dtype()), device)
        else:
            self.weights = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N_in) to (B, C, N_out)."""
        self._check_input(x)
        if self.mode == "max":
            pooled: Tensor = knn_max_pool(x, self.index)
        else:
            pooled = knn_sum_pool(x, self.index, self.weights, self.mode == "avg")
        return pooled

    def extra_repr(self) -> str:
        """What the layer is, in one line."""
        return f"mode={self.mode}, {self._neighbours_repr()}"


def gaussian_weights(found: Neighbours, sigma: float) -> Tensor:
    """(N_out, k) weights that sum to 1 over neighbours that are not padding, as fovi's."""
    distance = found.distance
    low, high = distance.amin(1, keepdim=True), distance.amax(1, keepdim=True)
    scaled = (distance - low) / torch.where(high > low, high - low, torch.ones_like(high))
    weights = torch.exp(-(scaled**2) / (2 * sigma**2))
    weights = (weights / (weights.sum(1, keepdim=True) + 1e-8)).masked_fill(found.padding, 0)
    return weights / (weights.sum(1, keepdim=True) + 1e-8)
