"""Configurations of foveated networks: the packaged YAML files, `compose`, and what a configuration may hold.

With Hydra alone::

    with hydra.initialize_config_module("sightline.fovea.config", version_base=None):
        cfg = hydra.compose("fovi_alexnet")

or in one call, with a check of all names::

    cfg = sightline.fovea.config.compose("fovi_alexnet", ["saccades.fov=20"])

`FOLDER` is where the files lie; `copy_to` copies them.
"""

from sightline.fovea.config.compose import compose, copy_to, names
from sightline.fovea.config.schema import FOLDER, Section, known_names, settings

__all__ = ["FOLDER", "Section", "compose", "copy_to", "known_names", "names", "settings"]
