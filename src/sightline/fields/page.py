"""The interactive page of a report: one HTML file that needs neither a network nor a server.

The page judges the network again, at whatever resolution its sliders say, from the report's plain data; see `export.document`.

What belongs here: putting data, style and script into one file. What does not: where things stand (`picture.py`), how they look
(`page.css`), how layers are judged (`page_rules.js`), what happens on the page (`page.js`).
"""

from __future__ import annotations

import base64
import html
import io
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.errors import MediaError, ShapeError
from sightline.extras import need
from sightline.fields import picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sightline.fields.report import Report

_PARTS = {"style": "page.css", "rules": "page_rules.js", "script": "page.js"}
_WIDEST = 960  # pixels of an embedded picture: enough for a panel, small enough for a page
Image = str | Path | np.ndarray[Any, Any]


def render(report: Report, resolution: int | Sequence[int] | None = None, *, image: Image | None = None, name: str | None = None) -> str:
    """Write a report as one self-contained interactive HTML page.

    The page shows the network as a graph (zoom, search, groups that fold) or a table, coloured by diagnosis at the resolution that its
    sliders say, with all figures of each layer, and on a picture the box that one of its units sees.

    Args:
        report: from `sightline.analyze`.
        resolution: where the sliders stand at first: an int, or one size per axis; None: as captured.
        image: a picture to draw boxes on, embedded in the page: a file, or an array (h, w, 3) of uint8; None: a neutral grid.

        name: of the network, as the title shows it; None: as captured.

    Returns:
        The page as text, to be written as UTF-8.

    Raises:
        ShapeError: a resolution or an array of another form.
        MediaError: the picture cannot be read.
        MissingPackageError: with a picture, if Pillow is not installed.
    """
    data = report.to_dict(resolution)
    data["picture"] = picture.arrange(data).plain()
    if image is not None:
        data["image"] = _embedded(image)
    parts = {"title": html.escape(f"Receptive fields of {name or report.name}"), "data": _json(data)}
    folder = resources.files("sightline.fields")
    parts |= {name: folder.joinpath(file).read_text(encoding="utf-8") for name, file in _PARTS.items()}
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    pieces = page.split("{{")  # not one replacement after another: what was put in is never looked at again
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def _json(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def read_image(image: Image) -> Any:
    """Read a picture as an RGB image of Pillow.

    Args:
        image: a file, or an array (h, w, 3) of uint8.

    Returns:
        A ``PIL.Image.Image``.

    Raises:
        ShapeError: an array of another form.
        MediaError: the file cannot be read.
        MissingPackageError: if Pillow is not installed.
    """
    pillow = need("PIL.Image", "read a picture")
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ShapeError(f"image: expected an array (h, w, 3) of uint8, got shape {image.shape} of {image.dtype}; convert it")
        return pillow.fromarray(image)
    try:
        with pillow.open(image) as opened:
            return opened.convert("RGB")
    except FileNotFoundError:
        raise MediaError(f"image: there is no file {str(image)!r}; check the path") from None
    except (OSError, ValueError, pillow.DecompressionBombError) as error:
        raise MediaError(f"image: {str(image)!r} cannot be read as a picture ({error}); give a PNG or JPEG file") from error


def _embedded(image: Image) -> str:
    """A picture as an address that holds it."""
    opened = read_image(image)
    opened.thumbnail((_WIDEST, _WIDEST))
    memory = io.BytesIO()
    opened.save(memory, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")
