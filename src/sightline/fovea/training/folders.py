"""Image folders and torchvision's datasets as sources of training.

What belongs here: finding files, decoding them, and saying what is wrong with those that cannot be decoded.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.errors import ConfigError, MediaError
from sightline.extras import MissingPackageError, need
from sightline.fovea.training.data import Indexed

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Files that count as images."""


def as_square(image: Any, resolution: int) -> torch.Tensor:
    """The middle square of a picture, at a resolution.

    Args:
        image: of Pillow.
        resolution: side in pixels.

    Returns:
        (3, resolution, resolution), uint8.
    """
    pil = need("PIL.Image", "read images")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").resize(
        (resolution, resolution), pil.Resampling.BILINEAR, box=(left, top, left + side, top + side), reducing_gap=None
    )
    return torch.from_numpy(np.array(square, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def decode(file: Any, resolution: int) -> torch.Tensor:
    """Read a picture.

    Args:
        file: a path or an open file.
        resolution: see `as_square`.

    Raises:
        ValueError: it cannot be read; the message says why, in a few words.
    """
    pil = need("PIL.Image", "read images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; what matters is whether there are pixels
            with pil.open(file) as image:
                return as_square(image, resolution)
    except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
        reason = " ".join(str(error).split()).replace(": ", ", ")
        raise ValueError(reason or type(error).__name__) from error


class FolderSource(Indexed):
    """A folder with a folder of images per class: ``ROOT/CLASS/anything/IMAGE.jpg``.

    Args:
        root: the folder.
        resolution: see `as_square`.
        workers: see `Indexed`.
        in_memory: keep decoded images, 3 * resolution^2 bytes each (not with workers, which have memories of their own).

    Raises:
        MediaError: no such folder, no folder of a class in it, or no image.
    """

    def __init__(self, root: str | Path, resolution: int, *, workers: int = 0, in_memory: bool = False) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise MediaError(f"{self.root}: there is no such folder; it should hold a folder of images for each class")
        classes = sorted(path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not classes:
            raise MediaError(f"{self.root}: it should hold a folder of images for each class, and holds no folder")
        super().__init__(str(self.root), classes, 3, workers)
        self.resolution = resolution
        self.files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((self.root / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES and path.is_file()
        ]
        if not self.files:
            raise MediaError(f"{self.root}: there is no image in its {len(classes)} folders; known are {', '.join(sorted(SUFFIXES))}")
        self._kept: dict[int, torch.Tensor | str] | None = {} if in_memory and not workers else None

    def __len__(self) -> int:
        return len(self.files)

    def load(self, numbers: torch.Tensor, epoch: int, seed: int) -> list[tuple[torch.Tensor, int] | str]:
        """See `Indexed.load`."""
        del epoch, seed
        return [self._item(number) for number in numbers.tolist()]

    def _item(self, number: int) -> tuple[torch.Tensor, int] | str:
        path, label = self.files[number]
        image = None if self._kept is None else self._kept.get(number)
        if image is None:
            try:
                image = decode(path, self.resolution)
            except ValueError as error:
                image = f"{path}: {error}"
            if self._kept is not None:
                self._kept[number] = image
        return image if isinstance(image, str) else (image, label)


class TorchvisionSource(Indexed):
    """A dataset of ``torchvision.datasets`` that gives a picture and a whole number.

    Args:
        name: of the class, for example "CIFAR10".
        root: where its files lie.
        resolution: see `as_square`.
        train: its training part, else its test part (``train=`` or ``split=`` of the class, where it has one).
        download: fetch it if it is not there.
        workers: see `Indexed`.
        arguments: others of the class.

    Raises:
        ConfigError: no such dataset, or it does not take these arguments.
        MediaError: it is not there.
    """

    def __init__(
        self, name: str, root: str | Path, resolution: int, *, train: bool, download: bool = False, workers: int = 0,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        from sightline.torchvision_import import import_torchvision

        try:
            datasets = import_torchvision().datasets
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"the package torchvision is needed to read its datasets ({error}): pip install torchvision"
            ) from error
        kind = getattr(datasets, name.removeprefix("torchvision:"), None)
        if not inspect.isclass(kind):
            raise ConfigError(f"torchvision.datasets has no {name}: it has, for example, CIFAR10, FashionMNIST, ImageFolder")
        known = inspect.signature(kind).parameters
        chosen: dict[str, Any] = dict(arguments or {})
        if "root" in known and root:
            chosen.setdefault("root", str(root))
        if "download" in known:
            chosen.setdefault("download", download)
        if "train" in known:
            chosen.setdefault("train", train)
        elif "split" in known:
            chosen.setdefault("split", "train" if train else "test")
        try:
            self.dataset: Any = kind(**chosen)
        except TypeError as error:
            raise ConfigError(f"torchvision.datasets.{name}: {error}: see data.arguments") from error
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise MediaError(f"torchvision.datasets.{name}: {reason} (data.root={root!r}, data.download={download})") from error
        classes = getattr(self.dataset, "classes", None)
        if classes is None:
            classes = [str(label) for label in range(int(getattr(self.dataset, "num_classes", 0)))]
        super().__init__(f"torchvision:{name}", [str(label) for label in classes], 3, workers)
        self.resolution = resolution

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, numbers: torch.Tensor, epoch: int, seed: int) -> list[tuple[torch.Tensor, int] | str]:
        """See `Indexed.load`."""
        del epoch, seed
        return [self._item(number) for number in numbers.tolist()]

    def _item(self, number: int) -> tuple[torch.Tensor, int] | str:
        try:
            image, label = self.dataset[number]
        except (OSError, SyntaxError, ValueError) as error:
            return f"{self.name}[{number}]: {' '.join(str(error).split()).replace(': ', ', ')}"
        return as_square(image, self.resolution), int(label)
