"""Images and labels for training: where they come from, in which order, and how a run that stopped finds its place again.

What belongs here: the order of an epoch, batches, and `make_source`, which turns a configuration into a source. The sources themselves
are in `folders` (image folders, torchvision's datasets), `shards` (WebDataset) and `scenes` (made pictures).

The order of an epoch depends on the seed and the epoch's number alone. So a place in the data is (epoch, batch), and nothing has to
be remembered about a shuffle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from sightline.errors import ConfigError, MediaError
from sightline.fovea.training.scenes import DigitScenes

KINDS = ("folder", "torchvision", "webdataset", "digit_scenes")
"""Values of ``data.kind``."""


@dataclass
class Batch:
    """Some images with their labels.

    Attributes:
        images: (b, channels, resolution, resolution), uint8, or float32 in [0, 1] (about; noise may lead beyond).
        labels: (b,), int64.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """On another device; uint8 becomes float32 in [0, 1]."""
        images = self.images.to(device)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return Batch(images, self.labels.to(device))


@dataclass
class Broken:
    """Which files could not be read.

    Attributes:
        reasons: file -> what was wrong with it.
    """

    reasons: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reasons)

    def sentence(self, dataset: str) -> str:
        """For a report: how many, and the first of them."""
        first, reason = next(iter(self.reasons.items()))
        files = "1 broken image was" if len(self) == 1 else f"{len(self)} broken images were"
        return f"{dataset}: {files} skipped, first {first} ({reason})"


class Source(Protocol):
    """Where batches come from."""

    name: str
    channels: int
    broken: Broken

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes; a label is an index of this."""
        ...

    def steps(self, batch_size: int, world: int) -> int:
        """How many batches each of `world` processes gets in an epoch of training."""
        ...

    def batches(
        self, epoch: int, *, batch_size: int, train: bool, start: int = 0, rank: int = 0, world: int = 1, seed: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch, from batch number `start` on.

        In training: shuffled, of equal size, the same number for every process; what is left over is left out. Else: all images, in
        order, the last batch smaller, spread over the processes.
        """
        ...


def order(count: int, epoch: int, seed: int, rank: int = 0, world: int = 1) -> torch.Tensor:
    """Which images a process sees in an epoch, shuffled.

    Args:
        count: how many there are.
        epoch: every epoch has another order.
        seed: of the run.
        rank: of the process.
        world: how many processes there are; all get the same number of images, at most world - 1 are left out.

    Returns:
        Indices, int64, (count // world,).

    >>> sorted(order(4, 0, 0, 0, 2).tolist() + order(4, 0, 0, 1, 2).tolist())
    [0, 1, 2, 3]
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**62)
    shuffled = torch.randperm(count, generator=generator)
    each = count // world
    return shuffled[rank * each : (rank + 1) * each]


class Indexed:
    """A source whose images have numbers; subclasses say how one is loaded.

    Args:
        name: for reports.
        classes: names of the classes; a label is an index of this.
        channels: of the images.
        workers: processes that load images beside the training; 0: none.
    """

    def __init__(self, name: str, classes: Sequence[str], channels: int, workers: int = 0) -> None:
        self.name, self.classes, self.channels, self.workers = name, list(classes), channels, workers
        self.broken = Broken()

    def __len__(self) -> int:
        raise NotImplementedError

    def load(self, numbers: torch.Tensor, epoch: int, seed: int) -> list[tuple[torch.Tensor, int] | str]:
        """Load images.

        Args:
            numbers: (b,), indices.
            epoch: for what is made anew in every epoch.
            seed: the run's.

        Returns:
            For each number an image and its label, or, in its place, what is wrong with the file ("FILE: REASON").
        """
        raise NotImplementedError

    def steps(self, batch_size: int, world: int) -> int:
        """See `Source`."""
        return max(1, len(self) // world // batch_size)

    def batches(
        self, epoch: int, *, batch_size: int, train: bool, start: int = 0, rank: int = 0, world: int = 1, seed: int = 0
    ) -> Iterator[Batch]:
        """See `Source`. A broken image is left out; in training the next readable one takes its place."""
        if train:
            numbers = order(len(self), epoch, seed, rank, world)
            numbers = numbers[: batch_size * self.steps(batch_size, world)]
        else:
            numbers = torch.arange(rank, len(self), world)
        parts = list(numbers.split(batch_size))[start:]
        jobs = _Jobs(self, parts, epoch, seed, train)
        loader: Iterator[tuple[Batch | None, dict[str, str]]]
        if self.workers:
            # A fixed generator: the loader would otherwise draw its workers' seeds from the global one, whose state belongs to the run.
            loader = iter(DataLoader(jobs, batch_size=None, num_workers=self.workers, generator=torch.Generator()))
        else:
            loader = (jobs[index] for index in range(len(jobs)))
        for batch, reasons in loader:
            self.broken.reasons.update(reasons)
            if batch is not None:
                yield batch

    def read(self, numbers: torch.Tensor, epoch: int, seed: int, replace: bool) -> tuple[Batch | None, dict[str, str]]:
        """A batch, and what could not be read.

        Args:
            numbers: (b,), indices.
            epoch: see `load`.
            seed: see `load`.
            replace: put the next readable image where one is broken.

        Raises:
            MediaError: `replace`, and there is no readable image at all.
        """
        reasons: dict[str, str] = {}
        images, labels = [], []
        for number, first in zip(numbers.tolist(), self.load(numbers, epoch, seed), strict=True):
            item, tried = first, 1
            while isinstance(item, str):
                file, _, reason = item.rpartition(": ")
                reasons[file] = reason
                if not replace:
                    break
                if tried == len(self):
                    raise MediaError(f"{self.name}: none of the {len(self)} images can be read, the last because of {item}")
                item = self.load(torch.tensor([(number + tried) % len(self)]), epoch, seed)[0]
                tried += 1
            if not isinstance(item, str):
                images.append(item[0])
                labels.append(item[1])
        if not images:
            return None, reasons
        return Batch(torch.stack(images), torch.tensor(labels, dtype=torch.int64)), reasons


class _Jobs(Dataset[tuple[Batch | None, dict[str, str]]]):
    """The batches of an epoch, as PyTorch's loader takes them."""

    def __init__(self, source: Indexed, parts: Sequence[torch.Tensor], epoch: int, seed: int, replace: bool) -> None:
        self.source, self.parts, self.epoch, self.seed, self.replace = source, parts, epoch, seed, replace

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[Batch | None, dict[str, str]]:
        return self.source.read(self.parts[index], self.epoch, self.seed, self.replace)


class SceneSource(Indexed):
    """Made scenes; every epoch of training has new ones, evaluation always has the same."""

    def __init__(self, scenes: DigitScenes) -> None:
        super().__init__("digit scenes", [str(digit) for digit in range(10)], 1)
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def load(self, numbers: torch.Tensor, epoch: int, seed: int) -> list[tuple[torch.Tensor, int] | str]:
        """See `Indexed.load`."""
        images, labels, _ = self.scenes.batch(numbers, epoch, seed) if self.scenes.train else self.scenes.batch(numbers, self.scenes.ramp)
        return list(zip(images, labels.tolist(), strict=True))


def make_source(config: Mapping[str, Any], train: bool) -> Source:
    """The source that a configuration names.

    Args:
        config: all sections; read are ``data`` and ``training.resolution``.
        train: ``data.train_dataset``, else ``data.val_dataset``.

    Raises:
        ConfigError: nothing is named, or something that cannot be.
        MediaError: what is named is not there or holds no image.
    """
    data, resolution = config["data"], int(config["training"]["resolution"])
    kind, which = data["kind"], data["train_dataset" if train else "val_dataset"]
    if kind == "digit_scenes":
        scenes = data["scenes"]
        part = "train" if train else "val"
        made = DigitScenes(
            resolution, scenes["zoom"], scenes["clutter"], scenes["noise"], train, scenes[part], scenes["ramp"] if train else 0
        )
        return SceneSource(made)
    if kind not in KINDS:
        raise ConfigError(f"data.kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if not which:
        name = "data.train_dataset" if train else "data.val_dataset"
        what = {"folder": "a folder", "torchvision": "a name of torchvision.datasets", "webdataset": "shards, as in shards/{000..009}.tar"}
        raise ConfigError(f"{name} is empty: name {what[kind]} (data.kind={kind})")
    if kind == "webdataset":
        from sightline.fovea.training.shards import ShardSource

        samples = data["samples" if train else "val_samples"]
        return ShardSource(str(which), resolution, classes=int(data["num_classes"]), samples=samples)
    from sightline.fovea.training.folders import FolderSource, TorchvisionSource

    if kind == "torchvision":
        return TorchvisionSource(
            str(which), data["root"], resolution, train=train, download=bool(data["download"]), workers=data["num_workers"],
        )  # fmt: skip
    return FolderSource(str(which), resolution, workers=data["num_workers"], in_memory=bool(data["in_memory"]))
