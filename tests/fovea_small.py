"""Configurations that train within a second, for the tests of training."""

from __future__ import annotations

from typing import Any

from sightline.fovea.config import compose

SMALL = (
    "saccades.resize_size=6", "saccades.fixation_size=48", "saccades.n_fixations=3", "saccades.n_fixations_val=[1,3]",
    "saccades.uncertainty.grid=8", "saccades.uncertainty.channels=4", "model.channel_mult=0.05", "data.scenes.zoom=2",
    "data.scenes.clutter=1", "data.scenes.train=24", "data.scenes.val=10", "data.scenes.ramp=2", "training.resolution=32",
    "training.batch_size=8", "training.epochs=2", "training.warmup_epochs=1", "logging.tensorboard=0", "validation.batch_size=8",
)  # fmt: skip


def small(*overrides: str) -> Any:
    """The packaged `digit_scenes`, small, with overrides."""
    return compose("digit_scenes", [*SMALL, *overrides])


def self_supervised(loss: str, *overrides: str) -> Any:
    """The same with a loss that needs no labels."""
    return small(
        f"training.loss={loss}", "model.mlp=8", "saccades.ssl_policy=multi_random_nearcenter", "saccades.nearcenter_dist=0.5",
        "saccades.sup_policy=multi_random_nearcenter", "training.fixation_loss=0", *overrides,
    )  # fmt: skip
