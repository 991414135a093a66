"""What the pages of all jobs share: templates, pictures inside the page, how numbers and settings are shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from typing import Any

from sightline.extras import need
from sightline.media import Image
from sightline.report.data import JobReport


@dataclass
class Thumbnail:
    """A picture for the page.

    Attributes:
        image: (h, w, 3) RGB.
        caption: a line below it.
    """

    image: Image
    caption: str


def render_page(
    template: str, report: JobReport, thumbnails: Sequence[Thumbnail], facts: Sequence[tuple[str, dict[str, Any]]], **rest: Any
) -> str:
    """A page from one of this package's templates.

    Args:
        template: file name.
        report: what was measured.
        thumbnails: pictures to embed as JPEG.
        facts: the tables at the end: title, name to value.
        rest: what this template needs beside that; text is escaped, `Markup` is not.

    Raises:
        MissingPackageError: without jinja2 or Pillow.
    """
    page: str = (
        templates()
        .get_template(template)
        .render(
            report=report,
            source_name=PurePath(str(report.source.get("name", ""))).name,
            summary=report.summary(),
            thumbnails=[(data_uri(thumbnail.image), thumbnail.caption, thumbnail.image.shape) for thumbnail in thumbnails],
            facts=[(title, [(str(key).replace("_", " "), shown(value)) for key, value in table.items()]) for title, table in facts],
            **rest,
        )
    )
    return page


def templates() -> Any:
    """The environment that finds this package's templates.

    Raises:
        MissingPackageError: without jinja2.
    """
    jinja2 = need("jinja2", "write the HTML report")
    folder = resources.files("sightline.report")
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
    )  # fmt: skip


def markup(html: str) -> Any:
    """HTML of our own, which templates take as it is.

    Raises:
        MissingPackageError: without jinja2.
    """
    filters: Any = need("jinja2", "write the HTML report").filters
    return (filters if hasattr(filters, "Markup") else need("markupsafe", "write the HTML report")).Markup(html)


def engineering(number: float) -> str:
    """A large number with three digits and k, M or G."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {suffix}"
    return f"{number:.3g}"


def shown(value: Any) -> str:
    """A setting as tables show it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value)
    return "none" if value is None or value == "" else str(value)


def data_uri(image: Image) -> str:
    """A picture as the address of itself, to stand in a page."""
    buffer = io.BytesIO()
    need("PIL.Image", "write the HTML report").fromarray(image).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
