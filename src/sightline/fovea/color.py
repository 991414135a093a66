"""Colour that fades with eccentricity.

What belongs here: how colours are changed by where they fall on the retina. Where samples come from belongs to `sampling.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sightline.errors import ShapeError
from sightline.fovea.buffers import PreciseBuffers

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luma_of(samples: torch.Tensor) -> torch.Tensor:
    """Lightness (..., 1, N) of red, green and blue (..., 3, N): 0.299 R + 0.587 G + 0.114 B."""
    red, green, blue = samples.unbind(-2)
    # Written as a difference from one channel, so that equal channels give exactly themselves.
    return (green + LUMA[0] * (red - green) + LUMA[2] * (blue - green)).unsqueeze(-2)


class ColorDecay(PreciseBuffers):
    """Draws colours towards grey with eccentricity and leaves their lightness alone.

    ``out = luma + exp(-r^2 / (2 sigma^2)) * (x - luma)``. (fovi's module of the same purpose darkens every channel by exp(-r / sigma).)

    Args:
        sigma: eccentricity (1 = half of the field of view) at which 61 % of the colour is left, above 0; None: nothing is changed.
        mean: per channel, and
        std: per channel: what images were normalised with before, if they were; grey is then where it was.

    Raises:
        ValueError: sigma is not above 0.

    Example:
        >>> ColorDecay(0.5)
        ColorDecay(sigma=0.5)
    """

    mean: torch.Tensor | None
    std: torch.Tensor | None

    def __init__(self, sigma: float | None, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        if sigma is not None and not sigma > 0:
            raise ValueError(f"`sigma` must be above 0, or None for full colour everywhere; got {sigma!r}")
        self.sigma = sigma
        self.register_buffer("mean", None if mean is None else torch.tensor(mean)[:, None], persistent=False)
        self.register_buffer("std", None if std is None else torch.tensor(std)[:, None], persistent=False)

    def forward(self, samples: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """Fades colours.

        Args:
            samples: (..., C, N), C of 3 (red, green, blue) or 1 (nothing to fade); floating.
            radius: (N,) eccentricities.

        Raises:
            ShapeError: another number of channels.
        """
        if self.sigma is None or samples.shape[-2] == 1:
            return samples
        if samples.shape[-2] != 3:
            raise ShapeError(f"colour can fade for 3 channels (or 1), got {samples.shape[-2]}; take sigma=None")
        kept = torch.exp(-(radius.to(samples.dtype) ** 2) / (2 * self.sigma**2))
        mean = 0.0 if self.mean is None else self.mean.to(samples.dtype)
        std = 1.0 if self.std is None else self.std.to(samples.dtype)
        light = (luma_of(samples * std + mean) - mean) / std
        # Lightness is kept exactly where a normalisation is equal for all channels, and in the original units everywhere.
        return light + kept * (samples - light)

    def extra_repr(self) -> str:
        """For print()."""
        return f"sigma={self.sigma}"
