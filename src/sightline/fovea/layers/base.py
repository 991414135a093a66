"""What layers on sensors share: their two sensors, their table, and the check of what comes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import ShapeError
from sightline.fovea.neighbours import Space, Ties
from sightline.fovea.sensor import SensorGrid


def cast_alike(x: Tensor, *values: Tensor | None) -> tuple[Any, ...]:
    """Under autocast all of them in its type, as with PyTorch's own convolutions; else as they are."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind) or not x.is_floating_point():
        return x, *values
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), *(None if value is None else value.to(dtype) for value in values)


class KNNLayer(nn.Module):
    """A layer from one sensor to another.

    Attributes:
        in_coords, out_coords: the sensors.
        k: neighbours that each node has; at most as many as the input has points.
        k_asked: what the constructor was given.
        index: (N_out, k) int32 buffer, -1 for padding; not part of the state dict.
    """

    index: Tensor

    def __init__(self, k: int, in_coords: SensorGrid, out_coords: SensorGrid, sample_cortex: Space, ties: Ties) -> None:
        super().__init__()
        if k < 1:
            raise ShapeError(f"k: a node needs at least 1 neighbour, got {k}")
        if ties not in {"stable", "fovi"}:
            raise ShapeError(f"ties: expected 'stable' or 'fovi', got {ties!r}")
        if sample_cortex not in {True, False, "geodesic"}:
            raise ShapeError(f"sample_cortex: expected True, False or 'geodesic', got {sample_cortex!r}")
        self.in_coords, self.out_coords = in_coords, out_coords
        self.k_asked, self.k = k, min(k, len(in_coords))
        self.sample_cortex, self.ties = sample_cortex, ties

    def _table(self, name: str, values: Tensor, device: Any) -> None:
        """Registers a table; a copy, because equal layers share what is cached."""
        self.register_buffer(name, values.to(device=device, copy=True), persistent=False)

    def _check_input(self, x: Tensor, channels: int | None = None) -> None:
        nodes = len(self.in_coords)
        if x.dim() != 3 or x.shape[2] != nodes or (channels is not None and x.shape[1] != channels):
            wanted = f"(batch, {'channels' if channels is None else channels}, {nodes})"
            raise ShapeError(f"{type(self).__name__}: expected a map {wanted}, got shape {tuple(x.shape)}")

    def _neighbours_repr(self) -> str:
        asked = "" if self.k == self.k_asked else f" (of {self.k_asked}: the input has no more points)"
        return f"k={self.k}{asked}, nodes={len(self.in_coords)} -> {len(self.out_coords)}"


def factory(device: Any, dtype: torch.dtype | None) -> dict[str, Any]:
    """Where and as what parameters are made."""
    return {"device": device, "dtype": dtype}
