"""Scenes in which looking matters: a real handwritten digit somewhere in a large picture, among pieces of other digits.

What belongs here: making such pictures from the 1,797 digits that scikit-learn brings (8 x 8 pixels, written by 43 people). They are the
task on which `benchmarks/train_fovea.py` and the tests train. It is the "cluttered translated" task of Mnih et al. 2014 ("Recurrent
models of visual attention") with other digits: what is to be named covers a few per cent of the picture, and everything else is
made of the same strokes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sightline.errors import ConfigError
from sightline.extras import need

TEST_DIGITS = 450
"""So many of the 1,797 digits are never trained on."""


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Scikit-learn's handwritten digits.

    Returns:
        Images (1797, 8, 8), float32 in [0, 1], and labels (1797,), int64. Not to be written to.

    Raises:
        MissingPackageError: without scikit-learn: ``pip install 'sightline[fovea]'``.

    Source: Alpaydin, Kaynak 1998, "Optical recognition of handwritten digits" (UCI), its test part, as scikit-learn packs it.
    """
    datasets = need("sklearn.datasets", "make scenes of digits")
    loaded = datasets.load_digits()
    return torch.tensor(loaded.images, dtype=torch.float32) / 16, torch.tensor(loaded.target, dtype=torch.int64)


@dataclass(frozen=True)
class DigitScenes:
    """Scenes by number: scene ``i`` of a round shows digit ``i % digits`` at a place drawn from the round and the number.

    Equal settings, round and numbers give equal scenes, whatever was made before and in whatever batches.

    Args:
        size: side of the pictures in pixels.
        zoom: a digit is ``8 * zoom`` pixels wide (bilinear).
        clutter: how many pieces, each a quarter of some digit, lie about. A piece may touch or cover the digit; the brighter counts.
        noise: standard deviation of the pixel noise; the strokes are 1 bright.
        train: of the digits that are trained on, or of the `TEST_DIGITS` that are not.
        scenes: how many scenes make a round; default: one per digit.
        ramp: a picture's clutter grows to `clutter` over so many rounds, and is absent in round 0. 0: full from the start.

    Raises:
        ConfigError: settings that cannot be.
    """

    size: int = 128
    zoom: int = 3
    clutter: int = 6
    noise: float = 0.05
    train: bool = True
    scenes: int | None = None
    ramp: int = 0

    def __post_init__(self) -> None:
        if self.zoom < 1 or self.size < 8 * self.zoom:
            raise ConfigError(f"scenes of {self.size} pixels cannot hold a digit of 8 * {self.zoom}: use a larger size or a smaller zoom")
        if self.clutter < 0 or self.noise < 0 or self.ramp < 0 or (self.scenes is not None and self.scenes < 1):
            raise ConfigError("scenes: clutter, noise and ramp must not be negative, and there must be at least one scene")

    @property
    def pool(self) -> torch.Tensor:
        """Indices of the digits that these scenes are made of."""
        everything = torch.randperm(len(digits()[1]), generator=torch.Generator().manual_seed(0))
        return everything[TEST_DIGITS:] if self.train else everything[:TEST_DIGITS]

    def __len__(self) -> int:
        return len(self.pool) if self.scenes is None else self.scenes

    def clutter_in(self, round_: int) -> int:
        """How many pieces lie about in a round."""
        return self.clutter if round_ >= self.ramp else self.clutter * round_ // self.ramp

    def batch(self, numbers: torch.Tensor, round_: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Make some scenes.

        Args:
            numbers: (b,) int64, each in [0, len(self)).
            round_: the epoch: other places, other clutter.
            seed: other places and clutter too.

        Returns:
            Images (b, 1, size, size), float32, strokes 1 and paper 0, with noise beyond; labels (b,); and where the digit's middle
            lies, (b, 2) as (row, column) in [0, 1], which training does not use.

        Cost: about b * size^2 draws of noise.
        """
        _, labels = digits()
        chosen = self.pool[numbers % len(self.pool)]
        draws = _Draws(numbers, round_, seed)
        wide = 8 * self.zoom
        scenes = torch.zeros(len(numbers), self.size, self.size)
        for _ in range(self.clutter_in(round_)):
            other = enlarged(self.zoom)[self.pool[draws.below(len(self.pool))]]
            half = wide // 2
            piece = _cut(other, draws.below(wide - half + 1), draws.below(wide - half + 1), half)
            _lay(scenes, piece, draws.below(self.size - half + 1), draws.below(self.size - half + 1))
        row, col = draws.below(self.size - wide + 1), draws.below(self.size - wide + 1)
        _lay(scenes, enlarged(self.zoom)[chosen], row, col)
        if self.noise:
            scenes += self.noise * draws.normal(self.size, self.size)
        place = (torch.stack([row, col], 1) + wide / 2) / self.size
        return scenes[:, None], labels[chosen], place


@functools.lru_cache(maxsize=4)
def enlarged(zoom: int) -> torch.Tensor:
    """All digits, (1797, 8 * zoom, 8 * zoom)."""
    return F.interpolate(digits()[0][:, None], scale_factor=zoom, mode="bilinear", align_corners=False)[:, 0]


class _Draws:
    """Random numbers that depend on the scene's number alone, not on the batch that it is made in."""

    def __init__(self, numbers: torch.Tensor, round_: int, seed: int) -> None:
        # One generator per scene; a large odd factor keeps neighbouring numbers, rounds and seeds apart.
        keys = [((int(number) * 1_000_003 + round_) * 1_000_003 + seed) % 2**62 for number in numbers]
        self.generators = [torch.Generator().manual_seed(key) for key in keys]

    def below(self, end: int) -> torch.Tensor:
        """Whole numbers in [0, end), one per scene."""
        return torch.cat([torch.randint(end, (1,), generator=generator) for generator in self.generators])

    def normal(self, *shape: int) -> torch.Tensor:
        """Normal numbers, (scenes, *shape)."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])


def _cut(images: torch.Tensor, row: torch.Tensor, col: torch.Tensor, side: int) -> torch.Tensor:
    """A square of each image, at its own place."""
    rows, cols = _square(row, col, side)
    return images[torch.arange(len(images))[:, None, None], rows, cols]


def _lay(scenes: torch.Tensor, pieces: torch.Tensor, row: torch.Tensor, col: torch.Tensor) -> None:
    """Draws a square into each scene; the brighter of the two stays."""
    rows, cols = _square(row, col, pieces.shape[-1])
    which = torch.arange(len(scenes))[:, None, None]
    scenes[which, rows, cols] = torch.maximum(scenes[which, rows, cols], pieces)


def _square(row: torch.Tensor, col: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    along = torch.arange(side)
    return row[:, None, None] + along[:, None], col[:, None, None] + along
