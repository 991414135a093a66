"""Random changes of images: flips, colours, grey, blur.

What belongs here: what is done to a whole batch, each image with its own draws. Crops are the business of fixations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LUMA = (0.299, 0.587, 0.114)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Colour images (b, 3, h, w) as networks for ImageNet take them; others as they are."""
    if images.shape[1] != 3:
        return images
    return (images - images.new_tensor(_MEAN).view(3, 1, 1)) / images.new_tensor(_STD).view(3, 1, 1)


def augment(images: torch.Tensor, config: Mapping[str, Any], generator: torch.Generator) -> torch.Tensor:
    """Change each image of a batch at random.

    Args:
        images: (b, c, h, w), float in [0, 1]. Not changed itself.
        config: the section ``transforms``: flip (probability 0.5), color_jitter (0.8: brightness and contrast by up to 40 %, and of
            colour images saturation by up to 20 % and hue by up to 0.1 turns), gray (0.2), blur (0.5: a standard deviation of 0.1 to 2
            pixels). Which are done; digits and the like must not be flipped.
        generator: of the draws, on the CPU. Equal generators change equal batches equally.

    Returns:
        As `images`.
    """
    count, channels = images.shape[:2]

    def draw(low: float, high: float) -> torch.Tensor:
        return (low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)).to(images.device)

    def chosen(probability: float) -> torch.Tensor:
        return draw(0, 1) < probability

    if config["flip"]:
        images = torch.where(chosen(0.5), images.flip(-1), images)
    if config["color_jitter"]:
        images = torch.where(chosen(0.8), _jitter(images, draw(0.6, 1.4), draw(0.6, 1.4), draw(0.8, 1.2), draw(-0.1, 0.1)), images)
    if config["gray"] and channels == 3:
        images = torch.where(chosen(0.2), _gray(images).expand_as(images), images)
    if config["blur"]:
        images = torch.where(chosen(0.5), _blurred(images, draw(0.1, 2.0)), images)
    return images


def _gray(images: torch.Tensor) -> torch.Tensor:
    return (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def _jitter(
    images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor, hue: torch.Tensor
) -> torch.Tensor:
    colour = images.shape[1] == 3
    images = images * brightness
    mean = (_gray(images) if colour else images).mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    if colour:
        gray = _gray(images)
        images = _turned(gray + (images - gray) * saturation, hue)
    return images.clamp(0, 1)


def _turned(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Hue by a rotation around the grey axis (Rodrigues), which keeps the sum of the channels."""
    angle = turns * (2 * torch.pi)
    cos, sin = torch.cos(angle), torch.sin(angle) / 3**0.5
    red, green, blue = images.unbind(1)
    along = images.mean(1, keepdim=True)
    across = torch.stack([blue - green, red - blue, green - red], dim=1)
    return images * cos + across * sin + along * (1 - cos)


def _blurred(images: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    reach = 4
    along = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(along**2) / (2 * deviation.view(-1, 1) ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    count, channels, height, width = images.shape
    each = kernel.repeat_interleave(channels, 0)
    rows = F.pad(images.reshape(1, -1, height, width), (0, 0, reach, reach), mode="replicate")
    rows = F.conv2d(rows, each[:, None, :, None], groups=count * channels)
    cols = F.pad(rows, (reach, reach, 0, 0), mode="replicate")
    return F.conv2d(cols, each[:, None, None, :], groups=count * channels).view_as(images)
