"""The first generation's name of ``fovi.models.architectures``."""

from sightline.compat.fovi.models.architectures import ARCHITECTURE_REGISTRY, ArchitectureRegistry, arch_wrapper

__all__ = ["ARCHITECTURE_REGISTRY", "ArchitectureRegistry", "arch_wrapper"]
