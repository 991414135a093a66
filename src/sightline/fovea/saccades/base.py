"""What every saccade policy is: images in, glimpses out.

What belongs here: the common form. Where a policy looks belongs to its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from sightline.errors import ShapeError
from sightline.fovea.retina import RetinalTransform
from sightline.fovea.sampling import batch_of_fixations, batch_of_sizes, check_images, coordinate_dtype

Model = Callable[..., Any]


class Glimpses(NamedTuple):
    """What was seen and where.

    samples (B, F, C, N), nodes first in memory (or (B, F, C, side, side)); fixations (B, F, 2) row and column from 0 to 1; sizes
    (B, F, 2) height and width in pixels of the field of view; deltas (B, F, 2): the step from the fixation before, 0 for the first.
    """

    samples: torch.Tensor
    fixations: torch.Tensor
    sizes: torch.Tensor
    deltas: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[Glimpses]) -> Glimpses:
        """Glimpses after each other, as one."""
        if len(parts) == 1:
            return parts[0]
        fixations = torch.cat([part.fixations for part in parts], dim=1)
        return cls(_side_by_side([part.samples for part in parts]), fixations, torch.cat([p.sizes for p in parts], 1), _steps(fixations))


def _steps(fixations: torch.Tensor) -> torch.Tensor:
    return torch.diff(fixations, dim=1, prepend=fixations[:, :1])


def _side_by_side(samples: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenates (B, F, C, N) along F and keeps nodes first in memory."""
    if samples[0].ndim != 4:
        return torch.cat(list(samples), dim=1)
    return torch.cat([part.permute(3, 1, 0, 2) for part in samples], dim=1).permute(2, 1, 3, 0)


class SaccadePolicy(nn.Module):
    """Chooses where to look and looks there.

    A subclass overrides `plan`, where all fixations are known beforehand, or `next`, where each depends on what was seen.

    Args:
        retina: what looks.
        n_fixations: how often, unless a call says otherwise; at least 1.
    """

    def __init__(self, retina: RetinalTransform, n_fixations: int = 1) -> None:
        super().__init__()
        if n_fixations < 1:
            raise ValueError(f"`n_fixations` must be at least 1, got {n_fixations}")
        self.retinal_transform = retina
        self.n_fixations = n_fixations

    @property
    def retina(self) -> RetinalTransform:
        """What looks."""
        return self.retinal_transform

    # ---------------------------------------------------------------------------------------------- for subclasses
    def plan(
        self, images: torch.Tensor, n_fixations: int, generator: torch.Generator | None, area_range: float | tuple[float, float] | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """All fixations (B, F, 2) and sizes (B, F, 2) at once; None: this policy goes step by step with `next`."""
        return None

    def next(
        self, images: torch.Tensor, history: Glimpses | None, model: Model | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where to look after what was seen.

        Args:
            images: (B, C, H, W).
            history: everything seen so far; None before the first glimpse.
            model: the network that looks, for policies that ask it.
            generator: of random numbers.

        Returns:
            Fixations (B, 2) and sizes (B, 2).
        """
        planned = self.plan(images, 1, generator, None)
        if planned is None:
            raise NotImplementedError(f"{type(self).__name__} must override `plan` or `next`")
        return planned[0][:, 0], planned[1][:, 0]

    # ---------------------------------------------------------------------------------------------- helpers
    def usual_sizes(self, images: torch.Tensor, n_fixations: int) -> torch.Tensor:
        """(B, F, 2): the retina's own size, for every fixation."""
        return batch_of_sizes(None, images, self.retina.default_size).expand(-1, n_fixations, -1)

    def centre(self, images: torch.Tensor, n_fixations: int = 1) -> torch.Tensor:
        """(B, F, 2): the middle of the image, for every fixation."""
        return torch.full((len(images), n_fixations, 2), 0.5, dtype=coordinate_dtype(images), device=images.device)

    def look(self, images: torch.Tensor, fixations: torch.Tensor, sizes: torch.Tensor) -> Glimpses:
        """Glimpses at fixations (B, F, 2) with sizes (B, F, 2); behind a calibrated camera sizes only help to choose places."""
        through_camera = getattr(self.retina, "camera", None) is not None  # other modules may stand in for a retina
        seen = self.retina(images, fixations, None if through_camera else sizes)
        return Glimpses(seen, fixations, sizes, _steps(fixations))

    # ---------------------------------------------------------------------------------------------- for users
    def forward(
        self,
        images: torch.Tensor,
        n_fixations: int | None = None,
        fixations: torch.Tensor | Sequence[Any] | None = None,
        generator: torch.Generator | None = None,
        *,
        model: Model | None = None,
        fixation_size: torch.Tensor | Sequence[float] | float | None = None,
        area_range: float | tuple[float, float] | None = None,
    ) -> Glimpses:
        """Looks at images.

        Args:
            images: (B, C, H, W).
            n_fixations: how often; None: as often as the policy was made for, or as `fixations` says.
            fixations: where to look instead: (B, F, 2), or a list of F fixations, each a pair or (B, 2). Never changed.
            generator: of random numbers, on the CPU; None: PyTorch's own (`torch.manual_seed`).
            model: the network, for policies that ask it between fixations.
            fixation_size: pixels that the field of view covers, instead of what the policy draws.
            area_range: share of the image's area that the field of view covers, or a range to draw it from; for policies that draw sizes.

        Returns:
            `Glimpses`.

        Raises:
            ShapeError: another shape, or another number of fixations than `n_fixations`.
            ValueError: fixations that are NaN or outside the image.
        """
        check_images(images)
        given = None if fixations is None else self._given(fixations, images)
        count = n_fixations or (self.n_fixations if given is None else given.shape[1])
        if given is not None and given.shape[1] != count:
            raise ShapeError(f"`fixations` holds {given.shape[1]} fixations per image and `n_fixations` is {count}; give as many")
        wanted = None if fixation_size is None else batch_of_sizes(fixation_size, images, (1, 1)).expand(-1, count, -1)
        planned = self.plan(images, count, generator, area_range)
        if planned is None and given is not None:
            planned = given, self.usual_sizes(images, count)
        if planned is not None:
            where, sizes = planned
            return self.look(images, where if given is None else given, sizes if wanted is None else wanted)
        history: Glimpses | None = None
        for step in range(count):
            fixation, size = self.next(images, history, model, generator=generator)
            glimpse = self.look(images, fixation[:, None], size[:, None] if wanted is None else wanted[:, step : step + 1])
            history = glimpse if history is None else Glimpses.joined((history, glimpse))
        assert history is not None
        return history

    def _given(self, fixations: torch.Tensor | Sequence[Any], images: torch.Tensor) -> torch.Tensor:
        if isinstance(fixations, torch.Tensor):
            if fixations.ndim != 3:
                raise ShapeError(f"`fixations` must be (B, F, 2) or a list of F fixations, got {tuple(fixations.shape)}")
            return batch_of_fixations(fixations, images)
        return torch.cat([batch_of_fixations(one, images) for one in fixations], dim=1)

    def _settings(self) -> dict[str, object]:
        """What print() shows, in order."""
        return {"n_fixations": self.n_fixations}

    def __repr__(self) -> str:
        inner = repr(self.retinal_transform).replace("\n", "\n  ")
        lines = [f"retinal_transform={inner}", *(f"{name}={value}" for name, value in self._settings().items())]
        return f"{type(self).__name__}(\n  " + ",\n  ".join(lines) + "\n)"
