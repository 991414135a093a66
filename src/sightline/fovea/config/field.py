"""The field of view that a configuration means: whose geometry, how large, how strongly foveated.

What belongs here: what follows from several keys together. What does not: which keys there are (`schema`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.errors import ConfigError
from sightline.fovea.config.schema import Section, plain
from sightline.fovea.sensor import smallest_cmf_a


def with_geometry(cfg: Any) -> dict[str, Any]:
    """A configuration as plain mappings; one whose ``saccades`` lacks ``field_geometry`` gets "legacy", and a warning says so.

    Args:
        cfg: see `settings`.
    """
    given = plain(cfg)
    saccades = given.get("saccades")
    if isinstance(saccades, Mapping) and "field_geometry" not in saccades and len(saccades) > 0 and "mode" in saccades:
        warnings.warn(
            "saccades.field_geometry is missing: taking legacy, which fovi's checkpoints without that key were trained with; "
            "set it to planar for new networks",
            UserWarning,
            stacklevel=5,
        )
        given = {**given, "saccades": {**saccades, "field_geometry": "legacy"}}
    return given


def with_field_of_view(see: Section) -> Section:
    """A configuration whose field of view and magnification are those of one fixation.

    With ``saccades.rescale_fov`` (or an automatic ``cmf_a``) a crop sees the square root of its share of the area; otherwise the field of
    view is that of ``fixation_size`` in an image of ``training.resolution``.

    Args:
        see: complete settings; not changed.

    Returns:
        A copy with ``saccades.fov`` and ``saccades.cmf_a`` as floats.

    Raises:
        ConfigError: crops of several sizes, which have no one field of view.
    """
    look = Section(see.saccades)
    automatic = look.cmf_a in {-1, "auto"}
    side = look.fixation_size[0] if isinstance(look.fixation_size, Sequence) else look.fixation_size
    fov, cmf_a = float(look.fov), look.cmf_a
    if automatic or look.rescale_fov:
        smallest, largest = look.fixation_size_min_frac, look.fixation_size_max_frac
        if smallest != largest:
            raise ConfigError(
                f"saccades.rescale_fov and cmf_a: auto need crops of one size, not fixation_size_min_frac={smallest} and "
                f"fixation_size_max_frac={largest}"
            )
        fraction = math.sqrt(smallest)
        if automatic:
            cmf_a = smallest_cmf_a(fraction * side, look.resize_size, fov=fov, image_size=side)
        fov *= fraction
    else:
        fov *= side / see.training.resolution
    look["fov"], look["cmf_a"] = fov, None if cmf_a is None else float(cmf_a)
    return Section({**see, "saccades": look})
