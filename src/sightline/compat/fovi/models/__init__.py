"""Networks, and reading saved ones: ``fovi.models``."""

from sightline.compat.fovi.models.architectures import ARCHITECTURE_REGISTRY
from sightline.compat.fovi.models.fovinet import FoviNet
from sightline.compat.fovi.models.loading import find_config, get_model_from_base_fn, load_config

__all__ = ["ARCHITECTURE_REGISTRY", "FoviNet", "find_config", "get_model_from_base_fn", "load_config"]
