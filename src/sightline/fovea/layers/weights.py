"""Weights from elsewhere: dense convolutions, and checkpoints of fovi.

What belongs here: names, shapes and orientations. What does not: files and downloads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.errors import ShapeError


def kernel_from_conv(
    conv: nn.Conv2d | nn.Conv3d,
    out_channels: int,
    in_channels: int,
    side: int,
    *,
    has_bias: bool,
    strict: bool = False,
    preserve_kernel_norm: bool = False,
    temporal_strategy: str = "average",
) -> tuple[Tensor, Tensor | None]:
    """The weights of a dense convolution as `KNNConv` stores them: columns become x, rows (from the top) become -y.

    Args:
        conv: its kernel is resized to ``side x side`` (bilinear, corners to corners) where it differs.
        out_channels: of the layer.
        in_channels: of the layer.
        side: of the layer.
        has_bias: whether the layer has a bias.
        strict: refuse to resize.
        preserve_kernel_norm: after resizing, every filter keeps its L2 norm.
        temporal_strategy: what becomes of a `Conv3d`'s frames: "average" or "select_first".

    Returns:
        (out_channels, in_channels * side**2) and the bias or None.

    Raises:
        ShapeError: other channels, groups, a bias that the layer has no place for, a kernel of another size under `strict`.
    """
    kernel = conv.weight.detach()
    if conv.groups != 1 or tuple(kernel.shape[:2]) != (out_channels, in_channels):
        raise ShapeError(
            f"conv: expected {in_channels} -> {out_channels} channels without groups, got {conv.in_channels} -> {conv.out_channels} with "
            f"{conv.groups} group(s)"
        )
    if conv.bias is not None and not has_bias:
        raise ShapeError("conv has a bias and the layer has none; make the layer with bias=True")
    if kernel.dim() == 5:
        if temporal_strategy not in {"average", "select_first"}:
            raise ShapeError(f"temporal_strategy: expected 'average' or 'select_first', got {temporal_strategy!r}")
        kernel = kernel.mean(2) if temporal_strategy == "average" else kernel[:, :, 0]
    kernel = kernel.transpose(-1, -2).flip(-1)
    if tuple(kernel.shape[2:]) != (side, side):
        if strict:
            raise ShapeError(
                f"conv: expected a kernel of {side}x{side}, got {kernel.shape[3]}x{kernel.shape[2]}; pass strict=False to resize"
            )
        norm = kernel.flatten(1).norm(dim=1).clamp_min(1e-12)
        kernel = F.interpolate(kernel, size=(side, side), mode="bilinear", align_corners=True)
        if preserve_kernel_norm:
            kernel = kernel * (norm / kernel.flatten(1).norm(dim=1).clamp_min(1e-12))[:, None, None, None]
    return kernel.reshape(out_channels, -1), None if conv.bias is None else conv.bias.detach()


def geometry_of(module: nn.Module) -> dict[str, str]:
    """The sensors of a network's layers, in words, by module name: what its weights belong to.

    Save it beside a state dict and give it to `load_fovi_state_dict`, which refuses weights of another geometry.
    """
    from sightline.fovea.layers.base import KNNLayer

    return {name: _describe(layer) for name, layer in module.named_modules() if isinstance(layer, KNNLayer)}


def _describe(layer: Any) -> str:
    def words(sensor: Any) -> str:
        return (
            f"{sensor.style} sensor of {len(sensor)} points (fov {sensor.fov:g}, cmf_a {sensor.cmf_a:g}, resolution {sensor.resolution}, "
            f"{sensor.manifold}, {sensor.field})"
        )

    side = f", kernel {layer.side}x{layer.side}" if hasattr(layer, "side") else ""
    return f"k {layer.k}{side}, {words(layer.in_coords)} to {words(layer.out_coords)}, ties {layer.ties}"


def load_fovi_state_dict(
    module: nn.Module, state_dict: Mapping[str, Any], *, strict: bool = True, prefix: str = "", geometry: Mapping[str, str] | None = None
) -> list[str]:
    """Loads a checkpoint of fovi into a network of the same architecture: names and shapes are the same, what fovi adds is dropped.

    fovi stores parameters only: its tables are rebuilt from the configuration, so weights of another geometry can load without a word and
    compute something else. Shapes give most mistakes away; `geometry` the rest.

    Args:
        module: made with ``ties="fovi"`` and the configuration's manifold ("legacy" where it names none).
        state_dict: of a fovi network, or a dict that holds one under "state_dict" or "model". "module." in front of names (of
            data-parallel training) is removed.
        strict: every parameter must be there, and none may be left over.
        prefix: takes only names that begin with it, and removes it ("network." and the like).
        geometry: what `geometry_of` said when the weights were saved, if known.

    Returns:
        Names of the checkpoint that were left out: buffers that are tables here.

    Raises:
        ShapeError: another geometry or other shapes; names both.
        KeyError: with `strict`, names that are missing or unknown.
    """
    for key in ("state_dict", "model"):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    given = {name.removeprefix("module."): value for name, value in state_dict.items() if isinstance(value, Tensor)}
    given = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    if geometry is not None:
        ours = geometry_of(module)
        for name in sorted({*ours, *geometry}):
            mine, theirs = ours.get(name, "no such layer"), geometry.get(name, "no such layer")
            if mine != theirs:
                raise ShapeError(f"checkpoint of another geometry at {name!r}: it has {theirs}; the network has {mine}")
    wanted = module.state_dict(keep_vars=True)
    left_out = [name for name in given if name not in wanted and name.rpartition(".")[2] in _TABLES]
    missing = sorted(wanted.keys() - given.keys())
    unknown = sorted(given.keys() - wanted.keys() - set(left_out))
    if strict and (missing or unknown):
        raise KeyError(
            f"checkpoint does not fit: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}; strict=False loads the rest"
        )
    for name in wanted.keys() & given.keys():
        if wanted[name].shape != given[name].shape:
            raise ShapeError(_other_shape(module, name, tuple(given[name].shape), tuple(wanted[name].shape)))
    with torch.no_grad():
        for name in wanted.keys() & given.keys():
            wanted[name].copy_(given[name])
    return left_out


# Tensors that fovi keeps as buffers in some versions, and that are tables here.
_TABLES = {
    "_knn_output_valid_mask",
    "knn_indices",
    "knn_indices_pad_mask",
    "knn_indices_pad_token",
    "local_rf",
    "ref_coords",
    "knn_distances",
}


def _other_shape(module: nn.Module, name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> str:
    from sightline.fovea.layers.base import KNNLayer

    layer = dict(module.named_modules()).get(name.rpartition(".")[0])
    text = f"checkpoint of another geometry or architecture: {name} has shape {theirs} there and {ours} here"
    if not isinstance(layer, KNNLayer):
        return text
    channels = getattr(layer, "in_channels", 0)
    if len(theirs) == 2 and channels and theirs[1] % channels == 0:
        cells = theirs[1] // channels
        side = round(cells**0.5)
        text += f"; it has a kernel of {f'{side}x{side}' if side * side == cells else cells} cells"
    return f"{text}; the layer here has {_describe(layer)}"
