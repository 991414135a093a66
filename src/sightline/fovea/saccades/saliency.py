"""Saccades to what stands out in the image itself.

What belongs here: saliency from pixels alone, without a network, and the policy that follows it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from sightline.fovea.color import luma_of
from sightline.fovea.saccades.base import Glimpses, Model
from sightline.fovea.saccades.priority import PrioritySaccades
from sightline.fovea.sampling import check_images

_SIDE = 64


def spectral_residual(images: torch.Tensor, side: int = _SIDE, blur: float = 2.5) -> torch.Tensor:
    """Saliency of every place of an image: how little its spectrum can be expected from its neighbours'.

    The image is reduced to `side` x `side`. What the logarithm of the amplitude spectrum has beyond its local mean (3 x 3), with the
    phases as they are, is turned back into an image, squared and blurred. Colour images: lightness and the two opponent colours
    (red to green, blue to yellow), each weighed by its standard deviation.

    Args:
        images: (B, C, H, W), floating or uint8, of 1, 3 or any number of channels (others than 3: each for itself). NaN and Inf count as 0.
        side: of the map, at least 8. What stands out should be at least a few cells large.
        blur: standard deviation of the last blur, in cells.

    Returns:
        (B, side, side) float32 with a mean of 1; all 1 for an image of one colour. Not differentiable.

    Cost: a Fourier transform of side * side per channel, under a millisecond per image.
    Source: Hou and Zhang 2007, "Saliency detection: a spectral residual approach".
    """
    check_images(images)
    if side < 8:
        raise ValueError(f"`side` must be at least 8, got {side}")
    values = images.detach().float().nan_to_num(0.0, 0.0, 0.0)
    small = F.adaptive_avg_pool2d(values, (side, side))
    if small.shape[1] == 3:
        red, green, blue = small.unbind(1)
        small = torch.cat(
            (luma_of(small.flatten(2)).unflatten(2, (side, side)), (red - green)[:, None], (blue - (red + green) / 2)[:, None]), 1
        )
    contrast = small.std(dim=(2, 3), keepdim=True)
    level = small.mean(dim=(2, 3), keepdim=True)
    # Rounding of averages is no contrast.
    contrast = torch.where(contrast > 1e-5 * small.abs().amax(dim=(2, 3), keepdim=True), contrast, 0.0)
    spectrum = torch.fft.fft2((small - level) / contrast.clamp_min(1e-12))
    # The 1 (amplitudes are about `side`) keeps frequencies that are missing, as in drawings, from being the greatest surprise of all.
    amplitude = torch.log(spectrum.abs() + 1)
    mean = F.avg_pool2d(F.pad(amplitude, (1, 1, 1, 1), mode="circular"), 3, stride=1)
    residual = torch.polar(torch.exp(amplitude - mean), spectrum.angle())
    found = torch.fft.ifft2(residual).abs().square()
    found = found / found.mean(dim=(2, 3), keepdim=True).clamp_min(1e-30)
    weighed = _blurred((found * contrast).sum(1, keepdim=True), blur)[:, 0]
    total = weighed.mean(dim=(1, 2), keepdim=True)
    return torch.where(total > 0, weighed / total.clamp_min(1e-30), 1.0)


def _blurred(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """(B, 1, h, w) convolved with a Gaussian, the border repeated."""
    reach = math.ceil(3 * sigma)
    place = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-(place**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(maps, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


class SaliencySaccades(PrioritySaccades):
    """Looks at what stands out in the image, the most salient place first, each place once.

    The map is that of `spectral_residual`, made once per image from all of its pixels, reduced; the network is not asked. For where a
    network is unsure there are other policies. Arguments are those of `PrioritySaccades`.

    Example:
        >>> from sightline.fovea import RetinalTransform, SensorGrid
        >>> images = torch.zeros(1, 3, 256, 256)
        >>> images[..., 180:200, 40:60] = 1
        >>> policy = SaliencySaccades(RetinalTransform(SensorGrid(16, 0.5, 13)), 1)
        >>> [round(place, 1) for place in policy(images).fixations[0, 0].tolist()]
        [0.7, 0.2]
    """

    def priority(self, images: torch.Tensor, history: Glimpses | None, model: Model | None) -> torch.Tensor:
        """The saliency of the image."""
        return spectral_residual(images)
