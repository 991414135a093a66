"""Norms for maps (batch, channels, nodes): all take (num_coords, num_channels), as in fovi, and return node-major maps.

Parameter names and shapes are those of the `torch.nn` norms that they derive from, so fovi's checkpoints fit.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sightline.errors import ShapeError
from sightline.fovea.layers.function import as_map, node_major


def _check(norm: nn.Module, x: Tensor, channels: int | None, coords: int | None) -> None:
    if x.dim() != 3 or (channels is not None and x.shape[1] != channels) or (coords is not None and x.shape[2] != coords):
        wanted = f"(batch, {'channels' if channels is None else channels}, {'nodes' if coords is None else coords})"
        raise ShapeError(f"{type(norm).__name__}: expected a map {wanted}, got shape {tuple(x.shape)}")


class KNNBatchNorm(nn.BatchNorm1d):
    """Batch norm: each channel over batch and nodes. `num_coords` is not used. Further arguments as `BatchNorm1d`.

    Shape: (B, C, N) to (B, C, N). Raises ShapeError for other channels.
    """

    def __init__(self, num_coords: int, num_channels: int, **options: Any) -> None:
        del num_coords
        super().__init__(num_channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) to (B, C, N)."""
        _check(self, x, self.num_features, None)
        batch, channels, nodes = x.shape
        # As channels-last pixels of one row, where PyTorch's kernel runs along channels; a view of node-major maps. Not as one image per
        # node: the gradient of that comes out wrong (the kernel misreads the layout of what comes back).
        pixels = node_major(x).view(1, nodes * batch, 1, channels).permute(0, 3, 1, 2)
        normed: Tensor = super().forward(pixels)
        return as_map(normed.permute(0, 2, 3, 1).reshape(nodes, batch, channels))

    def _check_input_dim(self, input: Tensor) -> None:
        """Nothing: `forward` has checked what it was given."""


class KNNChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each node. `num_coords` is not used. Further arguments as `LayerNorm`.

    Shape: (B, C, N) to (B, C, N). Raises ShapeError for other channels.
    """

    def __init__(self, num_coords: int, num_channels: int, **options: Any) -> None:
        del num_coords
        super().__init__([num_channels], **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) to (B, C, N)."""
        _check(self, x, self.normalized_shape[0], None)
        return as_map(super().forward(node_major(x)))


class KNNCoordNorm(nn.LayerNorm):
    """Layer norm over the nodes of each channel. `num_channels` is not used. Further arguments as `LayerNorm`.

    Shape: (B, C, N) to (B, C, N). Raises ShapeError for other nodes.
    """

    def __init__(self, num_coords: int, num_channels: int, **options: Any) -> None:
        del num_channels
        super().__init__([num_coords], **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) to (B, C, N)."""
        _check(self, x, None, self.normalized_shape[0])
        return as_map(node_major(super().forward(x)))


class KNNLayerNorm(nn.LayerNorm):
    """Layer norm over channels and nodes of each image. Further arguments as `LayerNorm`.

    Shape: (B, C, N) to (B, C, N). Raises ShapeError for other channels or nodes.
    """

    def __init__(self, num_coords: int, num_channels: int, **options: Any) -> None:
        super().__init__([num_channels, num_coords], **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) to (B, C, N)."""
        _check(self, x, *self.normalized_shape)
        return as_map(node_major(super().forward(x)))


class KNNGroupNorm(nn.GroupNorm):
    """Group norm: groups of channels over all nodes of each image; the number of groups by `find_valid_num_groups`.

    `num_coords` is not used. Further arguments as `GroupNorm`.

    Shape: (B, C, N) to (B, C, N). Raises ShapeError for other channels.
    """

    def __init__(self, num_coords: int, num_channels: int, base_groups: int = 32, min_channels_per_group: int = 4, **options: Any) -> None:
        del num_coords
        super().__init__(find_valid_num_groups(num_channels, base_groups, min_channels_per_group), num_channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) to (B, C, N)."""
        _check(self, x, self.num_channels, None)
        return as_map(node_major(super().forward(x)))


def find_valid_num_groups(num_channels: int, base_groups: int, min_channels_per_group: int = 4) -> int:
    """The largest divisor of `num_channels` that is at most `base_groups` and leaves that many channels per group (1 if none does)."""
    most = min(base_groups, max(1, num_channels // min_channels_per_group))
    return next((groups for groups in range(most, 0, -1) if num_channels % groups == 0), 1)


def get_norm(
    norm_type: str, num_coords: int, num_channels: int, base_groups: int = 32, min_channels_per_group: int = 4, **options: Any
) -> nn.Module | None:
    """The norm of a name, as fovi's configurations use them.

    Args:
        norm_type: "channel" or "layer_chan", "coord" or "layer_space", "layer" or "layer_all", "group", any name with "batch" in it, or
            "none".
        num_coords: nodes of the maps.
        num_channels: channels of the maps.
        base_groups: for "group": at most so many groups.
        min_channels_per_group: for "group".
        options: for the norm's constructor, e.g. device.

    Returns:
        The norm; None for "none".

    Raises:
        ShapeError: another name.
    """
    if norm_type == "group":
        return KNNGroupNorm(num_coords, num_channels, base_groups, min_channels_per_group, **options)
    names: dict[str, Any] = {
        "channel": KNNChannelNorm,
        "layer_chan": KNNChannelNorm,
        "coord": KNNCoordNorm,
        "layer_space": KNNCoordNorm,
        "layer": KNNLayerNorm,
        "layer_all": KNNLayerNorm,
    }
    if norm_type == "none":
        return None
    made = names.get(norm_type, KNNBatchNorm if "batch" in norm_type else None)
    if made is None:
        raise ShapeError(f"norm_type: expected 'batch', 'group', 'none', {', '.join(map(repr, names))}; got {norm_type!r}")
    norm: nn.Module = made(num_coords, num_channels, **options)
    return norm
