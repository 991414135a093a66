"""The sensors of a network: one for what comes in, and a coarser one behind every stride.

What belongs here: which sensor a layer reads and writes. What does not: the layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sightline.errors import ConfigError
from sightline.fovea.sensor import SensorGrid, match_resolution


@dataclass(frozen=True)
class Rung:
    """A sensor, and the side of the square image that it stands for (None where nothing is matched)."""

    sensor: SensorGrid
    cart_res: int | None


@dataclass(frozen=True)
class Ladder:
    """Makes the sensors of one network, all over the same field of view.

    Args:
        fov, cmf_a: degrees.
        style, manifold, field, radius_norm, plotting: as in `SensorGrid`.
        match: 1: every sensor has at most as many points as a square image whose side follows the strides; -1: only the first; 0:
            resolutions are numbers of rings and are divided by strides.
        ties: "fovi" takes that library's float32 coordinates.
        device: of the sensors.
        make: class of the sensors.

    Example:
        >>> ladder = Ladder(16, 0.5)
        >>> first = ladder.start(64)
        >>> len(first.sensor), len(ladder.below(first, 2).sensor)
        (4085, 964)
    """

    fov: float
    cmf_a: float
    style: str = "isotropic"
    manifold: str = "planar"
    field: str = "circular"
    radius_norm: float = 2.0
    plotting: str = "v1like"
    match: int = 1
    ties: str = "stable"
    device: torch.device | str | None = None
    make: Callable[..., SensorGrid] = dataclasses.field(default=SensorGrid, compare=False)

    def __post_init__(self) -> None:
        for name, value in (("fov", self.fov), ("cmf_a", self.cmf_a)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a number of degrees above 0, not {value}")

    def sensor(self, resolution: int, max_radius: float = 1.0) -> SensorGrid:
        """A sensor of this network with a given number of rings."""
        return self.make(
            self.fov,
            self.cmf_a,
            resolution,
            style=self.style,
            manifold=self.manifold,
            field=self.field,
            radius_norm=self.radius_norm,
            max_radius=max_radius,
            plotting=self.plotting,
            device=self.device,
            float32_recipe=self.ties == "fovi",
        )

    def start(self, in_res: int) -> Rung:
        """The first sensor: matched to an image of side ``in_res``, or with that many rings.

        Raises:
            ConfigError: ``in_res`` below 1.
        """
        if in_res < 1:
            raise ConfigError(f"the resolution of the first sensor must be at least 1, not {in_res}")
        if not self.match:
            return Rung(self.sensor(in_res), None)
        return Rung(self.sensor(self._matched(in_res)), in_res if self.match > 0 else None)

    def below(self, rung: Rung, stride: float, *, at_most: bool = True, max_radius: float = 1.0) -> Rung:
        """The sensor behind a stride.

        Args:
            rung: the sensor in front of it.
            stride: at least 1; 1 returns an equal sensor, unless another radius is asked for.
            at_most: False: the match may have more points than its image.
            max_radius: where the outermost points lie, 1 is the rim.

        Raises:
            ConfigError: nothing is left.
        """
        if rung.cart_res is None:
            resolution, cart_res = int(rung.sensor.resolution // stride), None
        else:
            cart_res = int(rung.cart_res // stride)
            resolution = self._matched(cart_res, at_most) if cart_res else 0
        if resolution < 1:
            raise ConfigError(f"no point is left after a stride of {stride}: take smaller strides or a larger first sensor")
        if resolution == rung.sensor.resolution and max_radius == rung.sensor.max_radius:
            return Rung(rung.sensor, cart_res)
        return Rung(self.sensor(resolution, max_radius), cart_res)

    def inside(self, rung: Rung, stride: float, *, at_most: bool = True) -> Rung:
        """As `below`, with the outermost points half-way between where the last two rings would lie: for tokens that tile the field."""
        radii = torch.unique(self.below(rung, stride, at_most=at_most).sensor.polar[:, 0])
        return self.below(rung, stride, at_most=at_most, max_radius=float((radii[-1] + radii[-2]) / 2) if len(radii) > 1 else 1.0)

    def final(self, resolution: int) -> Rung:
        """The sensor of a last pool: matched to a square of that side, or with that many rings; 1 is a single point."""
        return Rung(self.sensor(self._matched(resolution) if self.match > 0 else resolution), resolution if self.match > 0 else None)

    def _matched(self, cart_res: int, at_most: bool = True) -> int:
        if "fixn" in self.style:
            return cart_res
        found, _ = match_resolution(
            float(self.fov), float(self.cmf_a), cart_res**2, style=self.style, at_most=at_most, field=self.field, manifold=self.manifold
        )
        return found


def reference_side(k: int, ref_frame_mult: float | None, arch_flag: str | None = "") -> int | None:
    """Side of a reference kernel for k neighbours.

    Args:
        k: neighbours.
        ref_frame_mult: ceil(this * sqrt(k)); None: the layer's own rule, ceil(sqrt(k)), twice that with ``arch_flag`` "doubleres".
        arch_flag: see there.

    Returns:
        The side, or None for the layer's own rule.

    >>> reference_side(27, 2), reference_side(9, None), reference_side(9, None, "doubleres")
    (11, None, 6)
    """
    if ref_frame_mult is not None:
        return math.ceil(ref_frame_mult * math.sqrt(k))
    return 2 * math.ceil(math.sqrt(k)) if arch_flag == "doubleres" else None


def geometry_arguments(**given: Any) -> dict[str, Any]:
    """Arguments of fovi's networks under the names that `Ladder` has."""
    names = {
        "field_geometry": "manifold",
        "fov_type": "field",
        "isotropic_plotting_type": "plotting",
        "auto_match_cart_resources": "match",
    }
    return {names.get(name, name): value for name, value in given.items()}
