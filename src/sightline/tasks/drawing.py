"""Drawing on RGB frames: boxes, blur, text, heat. Pillow does the pixels; positions are fractions of the picture.

Boxes are (y0, x0, y1, x1) with 0 at the top left and 1 at the bottom right, so one finding can be drawn at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sightline.extras import need
from sightline.media import Image

Box = tuple[float, float, float, float]

ACCENT = (64, 224, 208)
_BAR = (16, 18, 24)
_BAR_TEXT = (235, 238, 245)
_BAR_HEIGHT = 30
# Anchors of the heat scale, dark violet to pale yellow: order stays readable for colour-blind eyes, because lightness rises too.
_HEAT = ((70, 20, 120), (160, 35, 120), (225, 75, 80), (250, 150, 50), (255, 235, 130))


def draw_boxes(image: Image, boxes: Sequence[Box], texts: Sequence[str]) -> Image:
    """Frame some boxes and write a text above each.

    Args:
        image: (h, w, 3) RGB.
        boxes: fractions of the picture.
        texts: one per box; "" writes nothing.

    Returns:
        A new picture.
    """
    canvas, pen = _canvas(image)
    height, width = image.shape[:2]
    line = max(2, round(min(height, width) / 250))
    for (y0, x0, y1, x1), text in zip(boxes, texts, strict=True):
        corners = (x0 * width, y0 * height, x1 * width, y1 * height)
        pen.rectangle(corners, outline=ACCENT, width=line)
        if text:
            _tag(pen, text, (corners[0], corners[1]), max(12, height // 40))
    return np.asarray(canvas)


def draw_points(image: Image, points: npt.NDArray[np.float64]) -> Image:
    """Mark points with dots.

    Args:
        image: (h, w, 3) RGB.
        points: (k, 2), fractions (y, x).

    Returns:
        A new picture.
    """
    canvas, pen = _canvas(image)
    height, width = image.shape[:2]
    radius = max(1.0, min(height, width) / 400)
    for y, x in points:
        pen.ellipse((x * width - radius, y * height - radius, x * width + radius, y * height + radius), fill=ACCENT)
    return np.asarray(canvas)


def blur_boxes(image: Image, boxes: Sequence[Box], margin: float = 0.3) -> Image:
    """Make the inside of boxes unrecognisable: an ellipse around each is averaged down to a few pixels and scaled up again.

    Args:
        image: (h, w, 3) RGB.
        boxes: fractions of the picture.
        margin: by how much of its size each box is enlarged, so that hair and chin are covered too.

    Returns:
        A new picture.
    """
    pillow, drawing = need("PIL.Image", "draw on frames"), need("PIL.ImageDraw", "draw on frames")
    canvas = pillow.fromarray(image)
    height, width = image.shape[:2]
    for y0, x0, y1, x1 in boxes:
        grow_y, grow_x = (y1 - y0) * margin / 2, (x1 - x0) * margin / 2
        top, bottom = max(round((y0 - grow_y) * height), 0), min(round((y1 + grow_y) * height), height)
        left, right = max(round((x0 - grow_x) * width), 0), min(round((x1 + grow_x) * width), width)
        if bottom - top < 2 or right - left < 2:
            continue
        part = canvas.crop((left, top, right, bottom))
        coarse = part.resize((4, 5), pillow.Resampling.BOX).resize(part.size, pillow.Resampling.BICUBIC)
        mask = pillow.new("L", part.size, 0)
        drawing.Draw(mask).ellipse((0, 0, part.width - 1, part.height - 1), fill=255)
        canvas.paste(coarse, (left, top), mask)
    return np.asarray(canvas)


def heat_overlay(image: Image, heat: npt.NDArray[np.floating[Any]]) -> Image:
    """Show where work was done: the frame in dim grey, the worked-on places in colour.

    Args:
        image: (h, w, 3) RGB.
        heat: (a, b), 0 (nothing was done) to 1; scaled to the picture without smoothing.

    Returns:
        A new picture.
    """
    pillow = need("PIL.Image", "draw on frames")
    grey = pillow.fromarray(image).convert("L").point([int(8 + 0.6 * level) for level in range(256)]).convert("RGB")
    levels = np.clip(np.nan_to_num(heat) * 255, 0, 255).astype(np.uint8)
    scaled = pillow.fromarray(levels).resize(grey.size, pillow.Resampling.NEAREST)
    colour = scaled.convert("L")
    colour = pillow.merge("RGB", [colour.point(channel) for channel in heat_table()])
    # Even a little work must be visible, hence the jump from 0 to a third.
    opacity = scaled.point([0] + [int(80 + 90 * level / 255) for level in range(1, 256)])
    return np.asarray(pillow.composite(colour, grey, opacity))


def spotlight(image: Image, inside: npt.NDArray[np.bool_], drawn: Image | None = None) -> Image:
    """Show an area: the picture as it is inside, dim grey outside, with a line around it.

    Args:
        image: (h, w, 3) RGB.
        inside: (a, b), the area; scaled to the picture without smoothing.
        drawn: (h, w, 3), what to show inside; None: the picture.

    Returns:
        A new picture.
    """
    pillow, filters = need("PIL.Image", "draw on frames"), need("PIL.ImageFilter", "draw on frames")
    base = pillow.fromarray(image)
    mask = pillow.fromarray(inside.astype(np.uint8) * 255).resize(base.size, pillow.Resampling.NEAREST)
    dim = base.convert("L").point([int(20 + 0.35 * level) for level in range(256)]).convert("RGB")
    shown = np.array(pillow.composite(base if drawn is None else pillow.fromarray(drawn), dim, mask))
    width = 2 * max(1, round(min(base.size) / 250)) + 1
    shown[np.asarray(mask.filter(filters.MaxFilter(width))) != np.asarray(mask)] = ACCENT
    return shown


def colour_map(values: npt.NDArray[np.floating[Any]], low: float, high: float) -> Image:
    """Paint a map of numbers in the heat scale.

    Args:
        values: (h, w).
        low: value that gets the first colour.
        high: value that gets the last colour.

    Returns:
        (h, w, 3) RGB.
    """
    span = high - low if high > low else 1.0
    levels = np.clip(np.nan_to_num((values - low) / span) * 255, 0, 255).astype(np.uint8)
    table = np.array(heat_table(), dtype=np.uint8).T
    painted: Image = table[levels]
    return painted


@lru_cache(maxsize=1)
def heat_table() -> tuple[list[int], list[int], list[int]]:
    """The heat scale as three lists of 256 levels (red, green, blue)."""
    anchors = np.array(_HEAT, dtype=np.float64)
    places = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    red, green, blue = ([int(level) for level in channel] for channel in channels)
    return red, green, blue


def class_colours(count: int) -> Image:
    """A colour for each of ``count`` classes, (count, 3) uint8; class 0 is black; maps leave it out, as background."""
    hues = (np.arange(count) * 0.61803398875) % 1.0  # golden ratio: neighbours in number are far apart in hue
    offsets = np.array([0.0, 2.0 / 3.0, 1.0 / 3.0])
    wheel = np.abs(((hues[:, None] + offsets) % 1.0) * 6.0 - 3.0) - 1.0
    colours: Image = (np.clip(wheel, 0.0, 1.0) * 200 + 40).astype(np.uint8)
    colours[0] = 0
    return colours


def blend(image: Image, layer: Image, opacity: float, where: npt.NDArray[np.bool_] | None = None) -> Image:
    """Lay one picture over another of any size.

    Args:
        image: (h, w, 3) RGB.
        layer: (a, b, 3) RGB, scaled to the picture.
        opacity: 0 to 1.
        where: (a, b), positions of the layer to lay; None: all.

    Returns:
        A new picture.
    """
    pillow = need("PIL.Image", "draw on frames")
    base = pillow.fromarray(image)
    mixed = pillow.blend(base, pillow.fromarray(layer).resize(base.size, pillow.Resampling.NEAREST), opacity)
    if where is not None:
        mask = pillow.fromarray(where.astype(np.uint8) * 255).resize(base.size, pillow.Resampling.NEAREST)
        mixed = pillow.composite(mixed, base, mask)
    return np.asarray(mixed)


def beside(panels: Sequence[Image], captions: Sequence[str]) -> Image:
    """Put pictures of one size side by side, each with a line of text below.

    Args:
        panels: (h, w, 3) RGB each.
        captions: one per panel.

    Returns:
        (h + bar, sum of widths, 3) RGB.
    """
    pillow, drawing = need("PIL.Image", "draw on frames"), need("PIL.ImageDraw", "draw on frames")
    height, width = panels[0].shape[:2]
    canvas = pillow.new("RGB", (width * len(panels), height + _BAR_HEIGHT), _BAR)
    pen = drawing.Draw(canvas)
    for place, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        canvas.paste(pillow.fromarray(panel), (place * width, 0))
        size = 16
        while size > 9 and pen.textlength(caption, font=_font(size)) > width - 20:
            size -= 1
        pen.text((place * width + 10, height + _BAR_HEIGHT / 2), caption, font=_font(size), fill=_BAR_TEXT, anchor="lm")
    return np.asarray(canvas)


def write_corner(image: Image, lines: Sequence[str]) -> Image:
    """Write lines of text into the top left corner, on a dark ground."""
    canvas, pen = _canvas(image)
    size = max(13, image.shape[0] // 28)
    for row, line in enumerate(lines):
        _tag(pen, line, (8, 8 + (row + 1) * (size + 8)), size)
    return np.asarray(canvas)


def _canvas(image: Image) -> tuple[Any, Any]:
    canvas = need("PIL.Image", "draw on frames").fromarray(image)
    return canvas, need("PIL.ImageDraw", "draw on frames").Draw(canvas)


def _tag(pen: Any, text: str, bottom_left: tuple[float, float], size: int) -> None:
    """Text on a dark ground whose bottom left corner is given, moved down if it would leave the picture."""
    x, y = max(bottom_left[0], 0), max(bottom_left[1], size + 6)
    length = pen.textlength(text, font=_font(size))
    pen.rectangle((x, y - size - 6, x + length + 8, y), fill=_BAR)
    pen.text((x + 4, y - size / 2 - 3), text, font=_font(size), fill=_BAR_TEXT, anchor="lm")


@lru_cache(maxsize=32)
def _font(size: int) -> Any:
    return need("PIL.ImageFont", "draw on frames").load_default(size)
