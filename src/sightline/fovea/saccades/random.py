"""Policies that look anywhere: in the middle, at random, at random near the middle.

What belongs here: fixations that are drawn or fixed beforehand. Policies that look at the image belong to `saliency.py`.
"""

from __future__ import annotations

import math

import torch

from sightline.fovea.retina import RetinalTransform
from sightline.fovea.saccades.base import SaccadePolicy
from sightline.fovea.sampling import coordinate_dtype

_TRIES = 10
Range = float | tuple[float, float]


class NoSaccades(SaccadePolicy):
    """Looks at the middle of the image, every time."""

    def plan(
        self, images: torch.Tensor, n_fixations: int, generator: torch.Generator | None, area_range: Range | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The middle, with the retina's own size."""
        return self.centre(images, n_fixations), self.usual_sizes(images, n_fixations)


class RandomSaccades(SaccadePolicy):
    """Looks at random places with fields of view of random sizes.

    Without `near_center`, field and place are those of a random resized crop: a rectangle of a share of the image's area that lies within
    it; the fixation is its middle. With `near_center`, fixations are uniform in a square around the middle, whatever the size.

    Args:
        retina: what looks.
        n_fixations: how often.
        area_range: share of the image's area (width times height) that the field of view covers, drawn between two numbers in training.
        aspect_range: width by height of the field, drawn log-uniformly between two numbers in training; None: the image's pixels
            square (1).
        area_in_eval: the share in eval mode.
        near_center: how far from the middle fixations may be, in image heights and widths, from 0 to 0.5; None: random crops.
        first_at_center: the first fixation is the middle.
        center_in_eval: all fixations are the middle in eval mode.

    Raises:
        ValueError: a range that is empty or not above 0; `near_center` outside 0 to 0.5.

    Reproducible: the same generator gives the same fixations, on any device.
    Source: fovi 2.4 (`MultiRandomSaccadePolicy`), and torchvision's RandomResizedCrop.
    """

    def __init__(
        self,
        retina: RetinalTransform,
        n_fixations: int = 2,
        *,
        area_range: Range = (0.08, 1.0),
        aspect_range: tuple[float, float] | None = None,
        area_in_eval: Range = 1.0,
        near_center: float | None = None,
        first_at_center: bool = False,
        center_in_eval: bool = False,
    ) -> None:
        super().__init__(retina, n_fixations)
        self.area_range = _checked("area_range", area_range)
        self.aspect_range = _checked("aspect_range", 1.0 if aspect_range is None else aspect_range)
        self.area_in_eval = _checked("area_in_eval", area_in_eval)
        if near_center is not None and not 0 <= near_center <= 0.5:
            raise ValueError(f"`near_center` must be from 0 to 0.5 (half of the image), or None; got {near_center!r}")
        self.near_center = near_center
        self.first_at_center = first_at_center
        self.center_in_eval = center_in_eval

    def plan(
        self, images: torch.Tensor, n_fixations: int, generator: torch.Generator | None, area_range: Range | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All places and sizes, drawn on the CPU."""
        height, width = images.shape[2:]
        areas = self.area_range if self.training else self.area_in_eval
        if area_range is not None:
            areas = _checked("area_range", area_range)
        aspects = self.aspect_range if self.training else (1.0, 1.0)
        shape = (len(images), n_fixations)
        if self.near_center is None:
            where, sizes = random_crops(shape, height, width, areas, aspects, generator)
        else:
            numbers = torch.rand((*shape, 4), generator=generator, dtype=torch.float64)
            sizes = _rectangles(numbers[..., :1], numbers[..., 1:2], height, width, areas, aspects)[..., 0, :]
            where = 0.5 + self.near_center * (2 * numbers[..., 2:] - 1)
        if self.center_in_eval and not self.training:
            where = torch.full_like(where, 0.5)
        elif self.first_at_center:
            where[:, 0] = 0.5
        kind = coordinate_dtype(images)
        return where.to(images.device, kind), sizes.to(images.device, kind)

    def _settings(self) -> dict[str, object]:
        return {
            **super()._settings(),
            "first_at_center": self.first_at_center,
            "center_in_eval": self.center_in_eval,
            "area_range": self.area_range,
            "aspect_range": self.aspect_range,
            "area_in_eval": self.area_in_eval,
            "near_center": self.near_center,
        }


def random_crops(
    shape: tuple[int, int],
    height: int,
    width: int,
    areas: tuple[float, float],
    aspects: tuple[float, float],
    generator: torch.Generator | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Middles (B, F, 2) and sizes (B, F, 2) of random rectangles within an image, float64.

    Of ten tries per rectangle the first that fits is taken; if none does, the largest in the middle of the image whose aspect is allowed.
    """
    numbers = torch.rand((*shape, 4, _TRIES), generator=generator, dtype=torch.float64)
    tries = _rectangles(numbers[..., 0, :], numbers[..., 1, :], height, width, areas, aspects)
    image = torch.tensor([height, width], dtype=torch.float64)
    fits = ((tries > 0) & (tries <= image)).all(dim=-1)
    first = fits.int().argmax(dim=-1)[..., None, None]
    size = torch.take_along_dim(tries, first.expand(*shape, 1, 2), dim=-2)[..., 0, :]
    room = numbers[..., 2:, :].transpose(-1, -2)
    drawn = torch.take_along_dim(room, first.expand(*shape, 1, 2), dim=-2)[..., 0, :]
    corner = torch.floor(drawn * (image - size + 1))
    # The same whether a crop fits by luck or by being cut to the allowed aspect.
    aspect = min(max(width / height, aspects[0]), aspects[1])
    fallback = torch.tensor([min(height, round(width / aspect)), min(width, round(height * aspect))], dtype=torch.float64)
    none = ~fits.any(dim=-1, keepdim=True)
    size = torch.where(none, fallback, size)
    corner = torch.where(none, torch.floor((image - fallback) / 2), corner)
    return (corner + size / 2) / image, size


def _rectangles(
    area: torch.Tensor, aspect: torch.Tensor, height: int, width: int, areas: tuple[float, float], aspects: tuple[float, float]
) -> torch.Tensor:
    """(..., 2) heights and widths in whole pixels, from numbers between 0 and 1."""
    surface = height * width * (areas[0] + (areas[1] - areas[0]) * area)
    ratio = torch.exp(math.log(aspects[0]) + (math.log(aspects[1]) - math.log(aspects[0])) * aspect)
    return torch.stack((torch.sqrt(surface / ratio), torch.sqrt(surface * ratio)), dim=-1).round().clamp_min(1)


def _checked(name: str, given: Range) -> tuple[float, float]:
    low, high = (float(given), float(given)) if isinstance(given, (int, float)) else (float(given[0]), float(given[1]))
    if not (0 < low <= high < math.inf):
        raise ValueError(f"`{name}` must be a number above 0 or a pair (low, high), low first; got {given!r}")
    return low, high
