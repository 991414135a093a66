"""WebDataset shards as a source of training: tar files, local or behind a URL, that are read from front to back.

What belongs here: the order of shards and samples, counting, and samples that cannot be decoded.
"""

from __future__ import annotations

import io
import itertools
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sightline.errors import ConfigError, MediaError
from sightline.extras import need
from sightline.fovea.training.data import Batch, Broken
from sightline.fovea.training.folders import SUFFIXES, decode

_IMAGES = tuple(suffix[1:] for suffix in sorted(SUFFIXES))
_BUFFER = 1000  # samples that are shuffled among each other


class ShardSource:
    """Samples of WebDataset shards: files of one name, an image (``.jpg``, ``.png`` ...) and its label as digits (``.cls``).

    Args:
        pattern: shards, with braces: ``shards/train-{000..099}.tar``; or URLs and pipes, as the package webdataset takes them.
        resolution: see `sightline.fovea.training.folders.as_square`.
        classes: how many there are.
        samples: how many samples all shards hold together; None: counted, which needs local files.

    Every process reads all shards and keeps its share of the samples. To go on in the middle of an epoch, the samples before are read again
    and dropped.

    Raises:
        ConfigError: remote shards, and no number of samples.
        MediaError: a local shard is not there or holds no sample.
    """

    def __init__(self, pattern: str, resolution: int, *, classes: int, samples: int | None = None) -> None:
        self.webdataset = need("webdataset", "read WebDataset shards")
        self.name, self.resolution, self.channels = pattern, resolution, 3
        self.classes = [str(label) for label in range(classes)]
        self.broken = Broken()
        self.shards = [str(shard) for shard in self.webdataset.shardlists.expand_urls(pattern)]
        remote = [shard for shard in self.shards if "://" in shard or shard.startswith("pipe:")]
        missing = [shard for shard in self.shards if shard not in remote and not Path(shard).is_file()]
        if missing or not self.shards:
            raise MediaError(f"{missing[0] if missing else pattern}: there is no such shard")
        if samples is None and remote:
            raise ConfigError(f"data.samples is missing: shards that are not local files ({remote[0]}) are not counted")
        self.samples = sum(map(_count, self.shards)) if samples is None else samples
        if self.samples < 1:
            raise MediaError(f"{pattern}: there is no sample in the {len(self.shards)} shards: an image and a .cls of the same name")

    def __len__(self) -> int:
        return self.samples

    def steps(self, batch_size: int, world: int) -> int:
        """See `Source`."""
        return max(1, self.samples // world // batch_size)

    def batches(
        self, epoch: int, *, batch_size: int, train: bool, start: int = 0, rank: int = 0, world: int = 1, seed: int = 0
    ) -> Iterator[Batch]:
        """See `Source`. Where broken samples leave too few for an epoch, the shards are read on from the front."""
        steps = self.steps(batch_size, world)
        generator = random.Random((seed * 1_000_003 + epoch) % 2**62)
        samples = self._again_and_again(generator, rank, world) if train else self._pass(self.shards, rank, world)
        done = 0
        while not train or done < steps:
            taken = list(itertools.islice(samples, batch_size))
            if not taken:
                return
            if done >= start:
                yield Batch(torch.stack([image for image, _ in taken]), torch.tensor([label for _, label in taken], dtype=torch.int64))
            done += 1

    def _again_and_again(self, generator: random.Random, rank: int, world: int) -> Iterator[tuple[torch.Tensor, int]]:
        """Passes over shuffled shards, the samples of each shuffled within a buffer."""
        while True:
            shards = list(self.shards)
            generator.shuffle(shards)
            found = 0
            for sample in self.webdataset.filters.shuffle(_BUFFER, rng=generator)(self._pass(shards, rank, world)):
                found += 1
                yield sample
            if not found:
                reason = self.broken.sentence(self.name) if len(self.broken) else "the shards are empty"
                raise MediaError(f"{self.name}: none of the {self.samples} samples can be read; {reason}")

    def _pass(self, shards: list[str], rank: int, world: int) -> Iterator[tuple[torch.Tensor, int]]:
        """One process's readable samples, in order."""
        number = 0
        for shard in shards:
            for sample in self._of(shard):
                if number % world == rank:
                    decoded = self._decoded(sample)
                    if decoded is not None:
                        yield decoded
                number += 1

    def _of(self, shard: str) -> Iterator[dict[str, Any]]:
        def note(error: Exception) -> bool:
            self.broken.reasons[shard] = " ".join(str(error.args[0] if error.args else error).split()) or type(error).__name__
            return True  # go on behind it

        tar = self.webdataset.tariterators
        try:
            with self.webdataset.gopen(shard) as stream:
                yield from tar.group_by_keys(tar.tar_file_expander([{"url": shard, "stream": stream}], handler=note))
        except OSError as error:
            note(error)

    def _decoded(self, sample: dict[str, Any]) -> tuple[torch.Tensor, int] | None:
        name = f"{sample.get('__url__', self.name)}/{sample['__key__']}"
        image = next((sample[suffix] for suffix in _IMAGES if suffix in sample), None)
        if image is None or "cls" not in sample:
            self.broken.reasons[name] = "there is no image" if image is None else "there is no label (.cls)"
            return None
        try:
            label = int(sample["cls"].decode())
            pixels = decode(io.BytesIO(image), self.resolution)
        except ValueError as error:
            self.broken.reasons[name] = str(error)
            return None
        if not 0 <= label < len(self.classes):
            self.broken.reasons[name] = f"label {label} is none of the {len(self.classes)} classes (data.num_classes)"
            return None
        return pixels, label


def _count(shard: str) -> int:
    """Samples in a local shard: names without their suffixes."""
    try:
        with tarfile.open(shard) as archive:
            return len({member.name.partition(".")[0] for member in archive if member.isfile() and member.name.endswith(".cls")})
    except tarfile.TarError as error:
        raise MediaError(f"{shard}: this is no tar file ({error})") from error
