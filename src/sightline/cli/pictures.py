"""Single images and folders of them as pictures with names, each in its own size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sightline.errors import MediaError
from sightline.extras import need
from sightline.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Image


@dataclass
class Picture:
    """One image, upright as its camera meant it.

    Attributes:
        name: of its file.
        size: (width, height) in pixels.
    """

    name: str
    size: tuple[int, int]
    _image: Any

    def rgb(self, size: tuple[int, int] | None = None) -> Image:
        """The image as (h, w, 3) uint8; `size` (width, height) to resize to, bilinear."""
        resized = (
            self._image if size in (None, self.size) else self._image.resize(size, need("PIL.Image", "read images").Resampling.BILINEAR)
        )
        return np.array(resized, dtype=np.uint8)


@dataclass
class Pictures:
    """The images of a job; iterate over them once.

    Attributes:
        name: what the user gave.
        kind: "image" or "folder".
        paths: of the files, in natural order.
        skipped: name of each file that could not be used, and why; complete once the iteration has ended.
    """

    name: str
    kind: str
    paths: list[Path]
    skipped: dict[str, str]

    def __iter__(self) -> Iterator[Picture]:
        for path in self.paths:
            try:
                picture = read_picture(path)
            except MediaError as error:
                if self.kind == "image":
                    raise
                self.skipped[path.name] = str(error.__cause__ or error)
                continue
            yield picture


def open_pictures(source: str, limit: int | None = None) -> Pictures:
    """The images that a path names.

    Args:
        source: path of an image, or of a folder, of which files with the suffix of an image are taken.
        limit: only the first so many; None: all.

    Raises:
        MediaError: there is nothing there, a folder without images, or a video.
    """
    path = Path(source)
    if path.is_dir():
        paths = sorted((entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES), key=lambda entry: natural(entry.name))
        if not paths:
            raise MediaError(f"image: the folder {source!r} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); give a folder of images")
        return Pictures(source, "folder", paths[:limit], {})
    if not path.exists():
        raise MediaError(f"image: there is no file or folder {source!r}; check the path")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise MediaError(f"image: {source!r} is a video; give an image or a folder of images, or use 'sightline stream'")
    return Pictures(source, "image", [path], {})


def read_picture(path: Path) -> Picture:
    """One image file, turned upright by what its camera noted.

    Raises:
        MediaError: it cannot be read.
    """
    pillow, ops = need("PIL.Image", "read images"), need("PIL.ImageOps", "read images")
    try:
        with pillow.open(path) as image:
            upright = ops.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        reason = "it is damaged or not an image" if isinstance(error, pillow.UnidentifiedImageError) else str(error).rstrip(".")
        raise MediaError(f"image: {str(path)!r} cannot be read ({reason}); give another one") from ValueError(reason)
    return Picture(path.name, upright.size, upright)


def read_mask(path: Path, option: str = "--mask") -> npt.NDArray[np.bool_]:
    """A mask from an image file: what is neither black nor transparent (for a JPEG: brighter than mid-grey) is inside.

    Args:
        path: of any size; of a picture with a palette, every entry but the first is inside.
        option: for messages.

    Returns:
        Bool (h, w).

    Raises:
        MediaError: it is missing, or cannot be read.
    """
    pillow = need("PIL.Image", "read images")
    if not path.is_file():
        raise MediaError(f"{option}: there is no file {str(path)!r}; check the path")
    try:
        with pillow.open(path) as image:
            return _inside(image)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        reason = "it is damaged or not an image" if isinstance(error, pillow.UnidentifiedImageError) else str(error).rstrip(".")
        raise MediaError(f"{option}: {str(path)!r} cannot be read ({reason}); give a black and white image") from error


def _inside(image: Any) -> npt.NDArray[np.bool_]:
    if image.mode == "P":
        return np.array(np.asarray(image) != 0)
    level = 127 if image.format == "JPEG" else 0  # JPEG leaves grey specks around white
    values = np.asarray(image if image.mode in ("I", "I;16", "F") else image.convert("RGB"))
    inside = np.array(values > level)
    if inside.ndim == 3:
        inside = np.array(inside.any(2))
    return np.array(inside & (np.asarray(image.getchannel("A")) > 0)) if "A" in image.getbands() else inside


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which frame10 follows frame9."""
    parts: list[tuple[int, str]] = []
    for letter in name.lower():
        digit = letter.isdecimal()
        if parts and digit and parts[-1][0] >= 0:
            parts[-1] = (10 * parts[-1][0] + int(letter), "")
        else:
            parts.append((int(letter), "") if digit else (-1, letter))
    return parts
