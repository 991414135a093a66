"""How strong a foveation makes sense: where the fovea is as sharp as the image.

What belongs here: choosing the constant a of the cortical magnification. Sensors themselves belong to `grid.py`.
"""

from __future__ import annotations

import math

BOUNDS = (0.01, 1000.0)


def smallest_cmf_a(fixation_size: float, resolution: int, *, fov: float = 16.0, image_size: float | None = None) -> float:
    """The smallest cmf_a at which no two rings are nearer to each other than one pixel.

    Below it the fovea reads pixels twice; above it sharpness is lost there.

    Args:
        fixation_size: pixels that the field of view covers, above 0.
        resolution: side of the square image whose budget the sensor has; it counts as ``resolution // 2`` rings. At least 4.
        fov: degrees that `image_size` pixels cover.
        image_size: pixels that `fov` covers; None: `fixation_size`. Where it is larger, a part of the field is fixated, and the
            degrees shrink with it.

    Returns:
        Degrees, from 0.01 to 1000 (the answer too where even equally spaced rings are nearer than a pixel).

    Raises:
        ValueError: an argument out of its range.

    Source: fovi 2.4 (`get_min_cmf_a`), which minimises |1 - step| numerically; here the root is found by bisection.

    Example:
        >>> round(smallest_cmf_a(256, 64), 4)
        0.7628
    """
    image_size = fixation_size if image_size is None else image_size
    for name, value in (("fixation_size", fixation_size), ("fov", fov), ("image_size", image_size)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be a finite number above 0, got {value!r}")
    if resolution < 4:
        raise ValueError(f"`resolution` must be at least 4 (two rings), got {resolution!r}")
    degrees = fov * fixation_size / image_size
    steps = resolution // 2 - 1

    def first_step(cmf_a: float) -> float:
        """Pixels from the centre to the first ring, the smallest step of all."""
        return cmf_a * math.expm1(math.log1p(degrees / 2 / cmf_a) / steps) * fixation_size / degrees

    low, high = BOUNDS
    if first_step(low) >= 1:
        return low
    if first_step(high) <= 1:
        return high
    while high - low > 1e-12 * high:
        middle = math.sqrt(low * high)
        if not low < middle < high:
            break
        low, high = (middle, high) if first_step(middle) < 1 else (low, middle)
    return high
