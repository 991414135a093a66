"""Shapes of the AlexNets, shared by the foveated network and its dense control.

A row per convolution: (channels, kernel side, stride, padding). On a sensor, a kernel of side s is s**2 neighbours, and padding is the
sensor's own.
"""

from __future__ import annotations

import difflib

from sightline.errors import ConfigError

Row = tuple[int, int, int, int]

ALEXNETS: dict[str, tuple[Row, ...]] = {
    "base_": ((96, 11, 4, 2), (256, 5, 1, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1)),
    "base": ((96, 11, 4, 5), (256, 5, 1, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1)),
    "base_4layer": ((96, 11, 4, 5), (256, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1)),
    "base_lowres": ((96, 11, 2, 5), (256, 5, 1, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1)),
    "base_lowres_smallrf": ((96, 5, 2, 2), (256, 5, 1, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1)),
    "4layer_lowres": ((96, 5, 2, 2), (256, 5, 2, 2), (384, 3, 1, 1), (256, 3, 1, 1)),
    "4layer_nostride": ((96, 5, 1, 2), (256, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1)),
}

POOL_AFTER = (0, 1, 4)
"""Blocks of an AlexNet that end with a max pool of side 3 and stride 2."""


def alexnet_rows(spec: str, channel_mult: float = 1.0, k_mult: float = 1.0) -> list[Row]:
    """The rows of an AlexNet, with other widths and kernel sides.

    Args:
        spec: a name in `ALEXNETS`.
        channel_mult: times the channels (at least 1 remains).
        k_mult: times the kernel side (at least 1 remains); strides and paddings stay.

    Raises:
        ConfigError: an unknown name.

    >>> alexnet_rows("base_lowres", channel_mult=0.5)[0]
    (48, 11, 2, 5)
    """
    if spec not in ALEXNETS:
        nearest = difflib.get_close_matches(spec, ALEXNETS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"model.arch_spec {spec!r} is unknown: did you mean {nearest!r}?")
    return [(max(1, int(c * channel_mult)), max(1, int(k * k_mult)), stride, pad) for c, k, stride, pad in ALEXNETS[spec]]
