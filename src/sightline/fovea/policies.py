"""Saccade policies by the names that configurations have for them.

What belongs here: which arguments a configuration gives to which policy. What does not: the policies (`sightline.fovea.saccades`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from sightline.errors import ConfigError
from sightline.fovea.saccades import InhibitedSaccades, NoSaccades, RandomSaccades, SaccadePolicy, SaliencySaccades
from sightline.fovea.saccades.uncertainty import UncertaintySaccades

Builder = Callable[[Any], SaccadePolicy]


class PolicyRegistry:
    """Builders of policies by name; a builder is called with the `FoviNet` (its ``settings`` and ``retinal_transform`` are there).

    >>> POLICIES.get("multi_randm")
    Traceback (most recent call last):
    sightline.errors.ConfigError: the saccade policy 'multi_randm' is unknown: did you mean 'multi_random'?
    """

    def __init__(self) -> None:
        self._builders: dict[str, Builder] = {}

    def register(self, name: str, builder_fn: Builder) -> None:
        """Add a builder, or replace the one of that name."""
        self._builders[name] = builder_fn

    def has(self, name: str) -> bool:
        """Whether there is one."""
        return name in self._builders

    def list_policies(self) -> list[str]:
        """All names."""
        return sorted(self._builders)

    def get(self, name: str) -> Builder:
        """The builder of a name.

        Raises:
            ConfigError: there is none; the nearest name is given.
        """
        if name not in self._builders:
            nearest = difflib.get_close_matches(name, self._builders, n=1, cutoff=0.0)[0]
            raise ConfigError(f"the saccade policy {name!r} is unknown: did you mean {nearest!r}?")
        return self._builders[name]

    def __repr__(self) -> str:
        return "PolicyRegistry(\n  " + "\n  ".join(self.list_policies()) + "\n)"


def random_options(net: Any) -> dict[str, Any]:
    """Arguments of `RandomSaccades` that a configuration gives."""
    look = net.settings.saccades
    return {
        "n_fixations": look.n_fixations,
        "area_range": (look.fixation_size_min_frac, look.fixation_size_max_frac),
        "aspect_range": (3 / 4, 4 / 3) if look.add_aspect_variation else None,
        "area_in_eval": look.fixation_size_frac_val,
        "first_at_center": bool(look.nonrandom_first),
    }


def _random(near: bool, centred: bool) -> Builder:
    def build(net: Any) -> SaccadePolicy:
        near_center = net.settings.saccades.nearcenter_dist if near else None
        return RandomSaccades(net.retinal_transform, near_center=near_center, center_in_eval=centred, **random_options(net))

    return build


def _uncertainty(net: Any) -> SaccadePolicy:
    see, look = net.settings.saccades, net.settings.saccades.uncertainty
    return UncertaintySaccades(
        net.retinal_transform, see.n_fixations, in_channels=net.settings.model.in_channels, channels=look.channels,
        classes=net.settings.data.num_classes, grid=look.grid, return_radius=look.return_radius, temperature=look.temperature,
        object_size=look.object_size,
    )  # fmt: skip


POLICIES = PolicyRegistry()
"""Policies that ``saccades.sup_policy`` and ``saccades.ssl_policy`` may name; `PolicyRegistry.register` adds to them."""

POLICIES.register("none", lambda net: NoSaccades(net.retinal_transform))
POLICIES.register("multi_random", _random(near=False, centred=False))
POLICIES.register("multi_random_train", _random(near=False, centred=True))
POLICIES.register("multi_random_nearcenter", _random(near=True, centred=False))
POLICIES.register("multi_random_nearcenter_train", _random(near=True, centred=True))
POLICIES.register("uncertainty", _uncertainty)
POLICIES.register("inhibition", lambda net: InhibitedSaccades(net.retinal_transform, net.settings.saccades.n_fixations))
POLICIES.register("saliency", lambda net: SaliencySaccades(net.retinal_transform, net.settings.saccades.n_fixations, margin=0.1))
# The names of the classes, as fovi has them.
POLICIES.register("NoSaccadePolicy", POLICIES.get("none"))
POLICIES.register("MultiRandomSaccadePolicy", POLICIES.get("multi_random"))
