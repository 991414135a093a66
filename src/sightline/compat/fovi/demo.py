"""Pictures to try networks with: ``fovi.demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.compat.fovi._defaults import device_or_default
from sightline.errors import MediaError
from sightline.extras import need
from sightline.fovea.looking import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["get_image_as_batch", "load_image_for_sampling"]

_Device = torch.device | str | None
_DEFAULT = "shark.png"


def _generated(side: int = 256) -> Tensor:
    """(3, side, side) in [0, 1]: a bright shape before waves, in place of the original's photograph."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    waves = 0.5 + 0.15 * torch.sin(9 * y + 2 * torch.sin(3 * x)) - 0.2 * y
    picture = torch.stack([0.35 * waves, 0.7 * waves, waves])
    body = ((x / 0.6) ** 2 + ((y - 0.1 * torch.sin(2 * x)) / 0.18) ** 2 < 1) | ((x.abs() < 0.15 - 0.5 * (y + 0.2).abs()) & (y < 0.1))
    tail = ((x - 0.68).abs() < 0.1) & ((y - 0.07).abs() < (x - 0.5).clamp_min(0))
    picture[:, body | tail] = torch.tensor([0.62, 0.66, 0.7])[:, None]
    eye = (x + 0.42) ** 2 + (y + 0.02) ** 2 < 0.0008
    picture[:, eye] = 0.05
    return picture.clamp(0, 1)


def _read(path: str | Path) -> Tensor:
    if str(path) == _DEFAULT and not Path(path).is_file():
        return _generated()
    image = need("PIL.Image", "read images")
    try:
        with image.open(path) as opened:
            pixels = bytearray(opened.convert("RGB").tobytes())
            width, height = opened.size
    except OSError as error:
        raise MediaError(f"the image {path} cannot be read: {error}") from error
    return torch.frombuffer(pixels, dtype=torch.uint8).reshape(height, width, 3).permute(2, 0, 1).float() / 255


def _square(picture: Tensor) -> Tensor:
    side = min(picture.shape[1:])
    top, left = (round((size - side) / 2) for size in picture.shape[1:])
    return picture[:, top : top + side, left : left + side]


def _normalized(picture: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (picture - mean) / std


def get_image_as_batch(path: str | Path = _DEFAULT, device: _Device = None) -> Tensor:
    """The middle square of an image, normalised as networks trained on ImageNet want it.

    Args:
        path: any image file. The default is a generated picture of 256 x 256, unless there is a file ``shark.png``.
        device: of the batch; default: a GPU where there is one.

    Returns:
        (1, 3, side, side).

    Raises:
        MediaError: a file that is not there or no image.

    >>> get_image_as_batch(device="cpu").shape
    torch.Size([1, 3, 256, 256])
    """
    return _normalized(_square(_read(path)))[None].to(device_or_default(device))


def load_image_for_sampling(
    path: str | Path = _DEFAULT, device: _Device = None, normalize: bool = True, center_crop: bool = False
) -> tuple[Tensor, Any, int, int]:
    """An image for sampling, whole or its middle square.

    Args:
        path: as in `get_image_as_batch`.
        device: as in `get_image_as_batch`.
        normalize: as networks trained on ImageNet want it.
        center_crop: the middle square.

    Returns:
        (1, 3, height, width), the picture as an array (height, width, 3) in [0, 1], height, width.
    """
    picture = _square(_read(path)) if center_crop else _read(path)
    batch = (_normalized(picture) if normalize else picture)[None].to(device_or_default(device))
    return batch, picture.permute(1, 2, 0).numpy(), picture.shape[1], picture.shape[2]
