"""Policies that look where a map of priorities is highest, and not twice at the same place.

What belongs here: choosing fixations from a map, inhibition of return, and the policy that has nothing but inhibition. Maps that
come from the image belong to `saliency.py`, those that come from the network to files of their own.
"""

from __future__ import annotations

import math

import torch

from sightline.fovea.retina import RetinalTransform
from sightline.fovea.saccades.base import Glimpses, Model, SaccadePolicy
from sightline.fovea.sampling import coordinate_dtype


def inhibition(
    fixations: torch.Tensor, shape: tuple[int, int], aspect: float, radius: float, strength: float = 1.0, recovery: float | None = None
) -> torch.Tensor:
    """How much of the priority is left after places were looked at.

    ``product over visited v of 1 - strength * exp(-age / recovery) * exp(-d_v^2 / (2 radius^2))``, age 0 for the last fixation.

    Args:
        fixations: (B, F, 2) row and column from 0 to 1, oldest first.
        shape: rows and columns of the map.
        aspect: width by height of the image.
        radius: in units of the image's shorter side, above 0.
        strength: 1: nothing is left at a place itself; 0: no inhibition.
        recovery: fixations after which inhibition has faded to 1 / e; None: it stays.

    Returns:
        (B, rows, columns) from 0 to 1.

    Source: Posner and Cohen 1984; Itti and Koch 2001 (the Gaussian form).
    """
    rows, columns = shape
    # Distances in units of the shorter side.
    high, wide = (1.0, aspect) if aspect >= 1 else (1 / aspect, 1.0)
    y = (torch.arange(rows, dtype=fixations.dtype, device=fixations.device) + 0.5) / rows
    x = (torch.arange(columns, dtype=fixations.dtype, device=fixations.device) + 0.5) / columns
    down = ((y - fixations[..., :1]) * high).square()
    across = ((x - fixations[..., 1:]) * wide).square()
    spread = torch.exp(-(down[..., :, None] + across[..., None, :]) / (2 * radius**2))
    age = torch.arange(fixations.shape[1] - 1, -1, -1, dtype=fixations.dtype, device=fixations.device)
    kept = strength * (torch.exp(-age / recovery) if recovery is not None else torch.ones_like(age))
    return (1 - kept[:, None, None] * spread).prod(dim=1)


class PrioritySaccades(SaccadePolicy):
    """Looks where a map of priorities is highest, with inhibition of return.

    A subclass overrides `priority`. Where it needs what was seen or the network, it sets ``from_image = False`` and is asked before every
    fixation; otherwise the map is made once.

    Args:
        retina: what looks.
        n_fixations: how often.
        radius: of inhibition, in units of the image's shorter side, above 0; see `inhibition`.
        strength: of inhibition, from 0 to 1.
        recovery: fixations after which inhibition has faded; None: it stays.
        draw: False: the highest place. True: a place at random, with the priorities as probabilities.
        margin: share of the image's height and width at each border in which nothing is looked at, from 0 to below 0.5.
        first_at_center: the first fixation is the middle, whatever the map says.

    Raises:
        ValueError: an argument out of its range.
    """

    from_image = True

    def __init__(
        self,
        retina: RetinalTransform,
        n_fixations: int = 4,
        *,
        radius: float = 0.15,
        strength: float = 1.0,
        recovery: float | None = None,
        draw: bool = False,
        margin: float = 0.0,
        first_at_center: bool = False,
    ) -> None:
        super().__init__(retina, n_fixations)
        for name, value, valid in (
            ("radius", radius, 0 < radius < math.inf),
            ("strength", strength, 0 <= strength <= 1),
            ("recovery", recovery, recovery is None or recovery > 0),
            ("margin", margin, 0 <= margin < 0.5),
        ):
            if not valid:
                raise ValueError(f"`{name}` is out of its range: {value!r}; see the docstring of {type(self).__name__}")
        self.radius, self.strength, self.recovery = radius, strength, recovery
        self.draw, self.margin, self.first_at_center = draw, margin, first_at_center

    def priority(self, images: torch.Tensor, history: Glimpses | None, model: Model | None) -> torch.Tensor:
        """How much each place of the image deserves a look.

        Args:
            images: (B, C, H, W).
            history: what was seen; None at first, and always where `from_image` is True.
            model: the network, where the caller gave one.

        Returns:
            (B, rows, columns) of numbers >= 0, of any resolution, floating.
        """
        raise NotImplementedError(f"{type(self).__name__} must override `priority`")

    def plan(
        self, images: torch.Tensor, n_fixations: int, generator: torch.Generator | None, area_range: float | tuple[float, float] | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """All fixations, from one map; None where the map depends on what was seen."""
        if not self.from_image:
            return None
        priorities = self.priority(images, None, None)
        visited = self.centre(images)[:, :0]
        for _ in range(n_fixations):
            visited = torch.cat((visited, self._choose(images, priorities, visited, generator)[:, None]), dim=1)
        return visited, self.usual_sizes(images, n_fixations)

    def next(
        self, images: torch.Tensor, history: Glimpses | None, model: Model | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The place of the highest priority that was not looked at yet."""
        visited = self.centre(images)[:, :0] if history is None else history.fixations
        priorities = self.priority(images, history, model)
        return self._choose(images, priorities, visited, generator), self.usual_sizes(images, 1)[:, 0]

    def _choose(
        self, images: torch.Tensor, priorities: torch.Tensor, visited: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """(B, 2)."""
        batch, rows, columns = priorities.shape
        kind = coordinate_dtype(images)
        if self.first_at_center and visited.shape[1] == 0:
            return self.centre(images)[:, 0]
        aspect = images.shape[3] / images.shape[2]
        left = inhibition(visited.detach(), (rows, columns), aspect, self.radius, self.strength, self.recovery)
        allowed = _inside((rows, columns), self.margin, images.device)
        # A trace of priority is everywhere, so that inhibition decides where the map says nothing.
        given = priorities.detach().to(kind).nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
        highest = given.amax((1, 2), keepdim=True)
        score = (given + torch.where(highest > 0, 1e-6 * highest, 1.0)) * left * allowed
        flat = score.flatten(1)
        if self.draw:
            # On the CPU, so that a generator gives the same places on any device.
            cell = torch.multinomial(flat.cpu().double(), 1, generator=generator)[:, 0]
            jitter = torch.rand(batch, 2, generator=generator, dtype=torch.float64).to(images.device, kind)
            cell = cell.to(images.device)
        else:
            # Of equal places the one nearest to the middle, rather than the first.
            cell = (flat * (1 - 1e-5 * _from_middle((rows, columns), images.device).flatten())).argmax(dim=1)
            jitter = torch.full((batch, 2), 0.5, dtype=kind, device=images.device)
        place = torch.stack((cell // columns, cell % columns), dim=1).to(kind)
        return (place + jitter) / place.new_tensor([rows, columns])

    def _settings(self) -> dict[str, object]:
        names = ("radius", "strength", "recovery", "draw", "margin", "first_at_center")
        return {**super()._settings(), **{name: getattr(self, name) for name in names}}


class InhibitedSaccades(PrioritySaccades):
    """Looks at random places, but not where it looked already.

    All places are equal but for inhibition of return, so fixations cover the image. See `PrioritySaccades` for the arguments; places are
    always drawn.
    """

    cells = 64

    def __init__(
        self,
        retina: RetinalTransform,
        n_fixations: int = 4,
        *,
        radius: float = 0.15,
        strength: float = 1.0,
        recovery: float | None = None,
        margin: float = 0.0,
        first_at_center: bool = False,
    ) -> None:
        super().__init__(
            retina,
            n_fixations,
            radius=radius,
            strength=strength,
            recovery=recovery,
            draw=True,
            margin=margin,
            first_at_center=first_at_center,
        )

    def priority(self, images: torch.Tensor, history: Glimpses | None, model: Model | None) -> torch.Tensor:
        """1 everywhere."""
        return torch.ones(len(images), self.cells, self.cells, dtype=coordinate_dtype(images), device=images.device)


def _inside(shape: tuple[int, int], margin: float, device: torch.device) -> torch.Tensor:
    """(rows, columns) of 1 and, within the margin, 0; the cells in the middle always stay."""
    sides = []
    for count in shape:
        place = ((torch.arange(count, device=device) + 0.5) / count - 0.5).abs()
        sides.append((place <= max(0.5 - margin, float(place.min()))).float())
    return sides[0][:, None] * sides[1]


def _from_middle(shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """(rows, columns) squared distances from the middle."""
    y, x = ((torch.arange(count, device=device) + 0.5) / count - 0.5 for count in shape)
    return y[:, None] ** 2 + x**2
