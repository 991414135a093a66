"""Reading saved networks, by the name that it has beside the trainer: ``fovi.trainer``."""

from sightline.compat.fovi.models.loading import find_config, load_config

__all__ = ["find_config", "load_config"]
