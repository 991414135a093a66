"""Where to look: ``fovi.sensing.policies``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.fovea.policies import POLICIES, PolicyRegistry
from sightline.fovea.retina import RetinalTransform
from sightline.fovea.saccades import Glimpses, NoSaccades, RandomSaccades, SaccadePolicy

__all__ = ["FIXATION_POLICY_REGISTRY", "MultiRandomSaccadePolicy", "NoSaccadePolicy", "PolicyRegistry"]


class Glances(dict[str, Tensor]):
    """What a policy of fovi returns: x_fixs (B, F, C, N), fixations, fixation_sizes, fix_deltas (B, F, 2)."""

    @classmethod
    def of(cls, seen: Glimpses) -> Glances:
        """From `Glimpses`."""
        return cls(x_fixs=seen.samples, fixations=seen.fixations, fixation_sizes=seen.sizes, fix_deltas=seen.deltas)

    @property
    def samples(self) -> Tensor:
        """``x_fixs``."""
        return self["x_fixs"]

    @property
    def fixations(self) -> Tensor:
        """Where it looked."""
        return self["fixations"]


class _Policy(SaccadePolicy):
    """fovi's call: a dictionary comes back."""

    def forward(  # type: ignore[override]  # the original's names and its dictionary
        self,
        x: Tensor,
        n_fixations: int | None = None,
        fixations: Tensor | Sequence[Any] | None = None,
        fixation_size: Any = None,
        area_range: Any = None,
        cmf_indices: None = None,
        generator: torch.Generator | None = None,
        *,
        model: Any = None,
    ) -> Glances:
        """Look at images (B, C, H, W); arguments as in `SaccadePolicy`, ``cmf_indices`` has no meaning here."""
        del cmf_indices
        area = tuple(area_range) if isinstance(area_range, list) else area_range
        return Glances.of(super().forward(x, n_fixations, fixations, generator, model=model, fixation_size=fixation_size, area_range=area))


class NoSaccadePolicy(_Policy, NoSaccades):
    """Looks at the middle."""


class MultiRandomSaccadePolicy(_Policy, RandomSaccades):
    """Looks at random places, see `RandomSaccades`.

    Args:
        retinal_transform: what looks.
        n_fixations: how often.
        crop_area_range: share of the image's area in training, a pair.
        add_aspect_variation: aspects between 3/4 and 4/3 in training.
        nonrandom_val: the middle, in evaluation.
        val_crop_size: share of the area in evaluation.
        nonrandom_first: the first fixation is the middle.
        norm_dist_from_center: places this near to the middle; None: those of random crops.
    """

    def __init__(
        self,
        retinal_transform: RetinalTransform,
        n_fixations: int = 2,
        crop_area_range: Sequence[float] = (0.08, 1),
        add_aspect_variation: bool | None = False,
        nonrandom_val: bool = False,
        val_crop_size: float = 1,
        nonrandom_first: bool = False,
        norm_dist_from_center: float | None = None,
    ) -> None:
        low, high = crop_area_range
        RandomSaccades.__init__(
            self, retinal_transform, n_fixations, area_range=(low, high), aspect_range=(3 / 4, 4 / 3) if add_aspect_variation else None,
            area_in_eval=val_crop_size, near_center=norm_dist_from_center, first_at_center=nonrandom_first, center_in_eval=nonrandom_val,
        )  # fmt: skip
        self.crop_area_range, self.add_aspect_variation, self.val_crop_size = [low, high], add_aspect_variation, val_crop_size
        self.nonrandom_first, self.nonrandom_val, self.norm_dist_from_center = nonrandom_first, nonrandom_val, norm_dist_from_center

    def _settings(self) -> dict[str, object]:
        names = (
            "n_fixations", "nonrandom_first", "nonrandom_val", "crop_area_range", "add_aspect_variation", "val_crop_size",
            "norm_dist_from_center",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def _random(near: bool, centred: bool) -> Any:
    def build(net: Any) -> SaccadePolicy:
        look = net.settings.saccades
        return MultiRandomSaccadePolicy(
            net.retinal_transform, look.n_fixations, [look.fixation_size_min_frac, look.fixation_size_max_frac], look.add_aspect_variation,
            centred, look.fixation_size_frac_val, bool(look.nonrandom_first), look.nearcenter_dist if near else None,
        )  # fmt: skip

    return build


def _registry() -> PolicyRegistry:
    registry = PolicyRegistry()
    for name in POLICIES.list_policies():
        registry.register(name, POLICIES.get(name))
    registry.register("none", lambda net: NoSaccadePolicy(net.retinal_transform))
    for near, middle in ((False, ""), (True, "_nearcenter")):
        for centred, end in ((False, ""), (True, "_train")):
            registry.register(f"multi_random{middle}{end}", _random(near, centred))
    registry.register("NoSaccadePolicy", registry.get("none"))
    registry.register("MultiRandomSaccadePolicy", registry.get("multi_random"))
    return registry


FIXATION_POLICY_REGISTRY = _registry()
"""Policies by name; `PolicyRegistry.register` adds to them."""
