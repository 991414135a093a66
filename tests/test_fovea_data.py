"""Where images for training come from: folders, torchvision, shards, made scenes; and what happens to broken files."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("sklearn")

from sightline.errors import ConfigError, MediaError
from sightline.fovea.training.augment import augment, normalize
from sightline.fovea.training.data import Batch, SceneSource, Source, make_source, order
from sightline.fovea.training.folders import FolderSource, TorchvisionSource, as_square
from sightline.fovea.training.scenes import TEST_DIGITS, DigitScenes, digits
from sightline.fovea.training.shards import ShardSource


def picture(value: int, size: tuple[int, int] = (12, 10)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of four images; the grey value tells which image it is. Two files are broken and one is no image."""
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for number in range(4):
            place = tmp_path / name / ("deeper" if number == 3 else "") / f"{number}.png"
            place.write_bytes(picture(40 * label + 10 * number))
    (tmp_path / "bee" / "1.png").write_bytes(picture(50)[:40])
    (tmp_path / "cat" / "2.png").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def values(batches: Iterable[Batch]) -> list[tuple[int, int]]:
    return [(int(image[0, 0, 0]), int(label)) for batch in batches for image, label in zip(batch.images, batch.labels, strict=True)]


GOOD = [(0, 0), (10, 0), (20, 0), (30, 0), (40, 1), (60, 1), (70, 1), (80, 2), (90, 2), (110, 2)]

# ------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("in_memory", [False, True])
def test_broken_images_are_skipped_counted_and_reported(folder: Path, in_memory: bool) -> None:
    source = FolderSource(folder, 8, in_memory=in_memory)
    assert source.classes == ["ant", "bee", "cat"] and len(source) == 12
    for _ in range(2):
        assert values(source.batches(0, batch_size=5, train=False)) == GOOD
    assert {Path(file).name for file in source.broken.reasons} == {"1.png", "2.png"}
    sentence = source.broken.sentence(source.name)
    assert "2 broken images were skipped" in sentence and str(folder / "bee" / "1.png") in sentence


def test_training_puts_the_next_image_where_one_is_broken(folder: Path) -> None:
    source = FolderSource(folder, 8)
    batches = list(source.batches(0, batch_size=4, train=True))
    assert [len(batch) for batch in batches] == [4, 4, 4] == [4] * source.steps(4, 1)
    assert Counter(values(batches)) == Counter([*GOOD, (60, 1), (110, 2)])


def test_folder_of_broken_images_is_refused(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"\x89PNG")
    source = FolderSource(folder, 8)
    with pytest.raises(MediaError, match="none of the 12 images can be read"):
        next(source.batches(0, batch_size=4, train=True))
    assert list(source.batches(0, batch_size=4, train=False)) == []
    assert len(source.broken) == 12


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such folder"):
        FolderSource(tmp_path / "nothing", 8)
    with pytest.raises(MediaError, match="holds no folder"):
        FolderSource(tmp_path, 8)
    (tmp_path / "ant").mkdir()
    with pytest.raises(MediaError, match="no image in its 1 folders"):
        FolderSource(tmp_path, 8)


def test_workers_load_the_same(folder: Path) -> None:
    alone, helped = FolderSource(folder, 8), FolderSource(folder, 8, workers=1)
    state = torch.get_rng_state()
    assert values(helped.batches(1, batch_size=4, train=True)) == values(alone.batches(1, batch_size=4, train=True))
    assert torch.equal(torch.get_rng_state(), state), "loading draws nothing that belongs to the run"
    assert helped.broken.reasons.keys() <= alone.broken.reasons.keys() and len(helped.broken) == len(alone.broken)


def test_images_become_their_middle_square() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert torch.equal(as_square(Image.fromarray(wide), 10), torch.full((3, 10, 10), 255, dtype=torch.uint8))
    palette = Image.fromarray(wide).convert("P")
    assert as_square(palette, 7).shape == (3, 7, 7)


# --------------------------------------------------------------------------------------------------------- order


@given(count=st.integers(1, 40), world=st.integers(1, 5), epoch=st.integers(0, 3), seed=st.integers(0, 3))
def test_processes_share_an_epoch(count: int, world: int, epoch: int, seed: int) -> None:
    parts = [order(count, epoch, seed, rank, world) for rank in range(world)]
    assert {len(part) for part in parts} == {count // world}
    seen = torch.cat(parts).tolist()
    assert len(set(seen)) == len(seen) > count - world


def test_epochs_and_seeds_have_their_own_orders() -> None:
    orders = {tuple(order(30, epoch, seed).tolist()) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9


def sources(folder: Path, tmp_path: Path) -> Iterator[Source]:
    yield FolderSource(folder, 8)
    yield SceneSource(DigitScenes(24, 1, 1, scenes=12))
    yield shards(tmp_path)


def test_an_epoch_can_be_entered_in_the_middle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for source in sources(folder, tmp_path_factory.mktemp("shards")):
        whole = list(source.batches(2, batch_size=3, train=True, seed=5))
        for start in range(len(whole) + 1):
            rest = list(source.batches(2, batch_size=3, train=True, start=start, seed=5))
            assert len(rest) == len(whole) - start
            for one, other in zip(rest, whole[start:], strict=True):
                assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


# -------------------------------------------------------------------------------------------------------- shards


def shards(folder: Path, broken: bool = False) -> ShardSource:
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as archive:
            for number in range(6):
                value = 100 * shard + 10 * number
                image = b"broken" if broken and number == 2 else picture(value)
                label = b"77" if broken and number == 4 else str(number % 3).encode()
                for suffix, content in (("png", image), ("cls", label), ("json", json.dumps({}).encode())):
                    member = tarfile.TarInfo(f"sample{shard}{number}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return ShardSource(str(folder / "s-{0..1}.tar"), 8, classes=3)


def test_shards_are_read_whole(tmp_path: Path) -> None:
    source = shards(tmp_path)
    assert len(source) == 12
    expected = [(100 * shard + 10 * number, number % 3) for shard in range(2) for number in range(6)]
    assert values(source.batches(0, batch_size=5, train=False)) == expected
    shuffled = values(source.batches(0, batch_size=4, train=True))
    assert shuffled != expected and sorted(shuffled) == sorted(expected)
    assert values(source.batches(1, batch_size=4, train=True)) != shuffled
    halves = [values(source.batches(0, batch_size=3, train=True, rank=rank, world=2)) for rank in range(2)]
    assert [len(half) for half in halves] == [6, 6]


def test_broken_samples_are_skipped_counted_and_reported(tmp_path: Path) -> None:
    source = shards(tmp_path, broken=True)
    assert len(values(source.batches(0, batch_size=5, train=False))) == 8
    assert len(source.broken) == 4
    assert any("label 77 is none of the 3 classes" in reason for reason in source.broken.reasons.values())
    # An epoch of training has its number of batches all the same.
    assert [len(batch) for batch in source.batches(0, batch_size=4, train=True)] == [4, 4, 4]


def test_cut_shard_is_reported(tmp_path: Path) -> None:
    source = shards(tmp_path)
    whole = (tmp_path / "s-1.tar").read_bytes()
    (tmp_path / "s-1.tar").write_bytes(whole[:2900])
    found = values(source.batches(0, batch_size=5, train=False))
    assert [value for value, _ in found][:6] == [0, 10, 20, 30, 40, 50] and len(found) < 12
    assert str(tmp_path / "s-1.tar") in source.broken.reasons


def test_shards_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such shard"):
        ShardSource(str(tmp_path / "s-{0..1}.tar"), 8, classes=3)
    (tmp_path / "s.tar").write_bytes(b"nothing like a tar file" * 100)
    with pytest.raises(MediaError, match="this is no tar file"):
        ShardSource(str(tmp_path / "s.tar"), 8, classes=3)
    with pytest.raises(ConfigError, match=r"data\.samples is missing"):
        ShardSource("http://example.org/s.tar", 8, classes=3)


# --------------------------------------------------------------------------------------------------- torchvision


def test_torchvision_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sightline.torchvision_import import import_torchvision

    try:
        datasets: Any = import_torchvision().datasets
    except ModuleNotFoundError:
        pytest.skip("torchvision is not installed")
    source = TorchvisionSource("FakeData", "", 8, train=True, arguments={"size": 6, "image_size": (3, 10, 10), "num_classes": 4})
    assert len(source) == 6 and len(source.classes) == 4
    batch = next(source.batches(0, batch_size=4, train=True))
    assert batch.images.shape == (4, 3, 8, 8) and batch.images.dtype == torch.uint8
    chosen: dict[str, Any] = {}

    class Recorded(datasets.FakeData):  # type: ignore[misc]
        def __init__(self, root: str, split: str, download: bool = False) -> None:
            chosen.update(root=root, split=split, download=download)
            super().__init__(3, (3, 8, 8), 2)

    monkeypatch.setattr(datasets, "Recorded", Recorded, raising=False)
    TorchvisionSource("torchvision:Recorded", tmp_path, 8, train=False, download=True)
    assert chosen == {"root": str(tmp_path), "split": "test", "download": True}
    with pytest.raises(ConfigError, match=r"torchvision.datasets has no FakeDate"):
        TorchvisionSource("FakeDate", "", 8, train=True)
    with pytest.raises(ConfigError, match="see data"):
        TorchvisionSource("FakeData", "", 8, train=True, arguments={"sice": 6})
    with pytest.raises(MediaError, match=r"data\.download=False"):
        TorchvisionSource("CIFAR10", tmp_path, 8, train=True)


# -------------------------------------------------------------------------------------------------------- scenes


def test_a_scene_depends_on_its_number_alone() -> None:
    scenes = DigitScenes(64, 2, 3)
    images, labels, places = scenes.batch(torch.arange(8), 4, 7)
    alone, label, place = scenes.batch(torch.tensor([5]), 4, 7)
    assert torch.equal(alone[0], images[5]) and label[0] == labels[5] and torch.equal(place[0], places[5])
    for other in (scenes.batch(torch.arange(8), 5, 7), scenes.batch(torch.arange(8), 4, 8)):
        assert not torch.equal(other[0], images)


def test_the_digit_is_where_the_scene_says() -> None:
    scenes = DigitScenes(64, 2, 0, noise=0, train=False)
    numbers = torch.arange(20)
    images, labels, places = scenes.batch(numbers)
    drawn, names = digits()
    for image, label, place, number in zip(images, labels, places, numbers, strict=True):
        row, col = (place * 64 - 8).round().long().tolist()
        cut = image[0, row : row + 16, col : col + 16]
        small = torch.nn.functional.avg_pool2d(cut[None, None], 2)[0, 0]
        digit = scenes.pool[number]
        # Enlarged bilinearly and averaged again: nearly what it was.
        assert (small - drawn[digit]).abs().max() < 0.45 and label == names[digit]
        assert float(image.sum() - cut.sum()) == pytest.approx(0, abs=1e-3)


def test_test_digits_are_never_trained_on() -> None:
    train, test = DigitScenes().pool.tolist(), DigitScenes(train=False).pool.tolist()
    assert len(test) == TEST_DIGITS and not set(train) & set(test) and len(train) + len(test) == len(digits()[1])


def test_clutter_grows() -> None:
    scenes = DigitScenes(clutter=6, ramp=3)
    assert [scenes.clutter_in(round_) for round_ in range(5)] == [0, 2, 4, 6, 6]
    ink = [float(DigitScenes(64, 1, clutter, 0.0).batch(torch.arange(30))[0].mean()) for clutter in (0, 2, 8)]
    assert ink[0] < ink[1] < ink[2]


def test_scenes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot hold a digit"):
        DigitScenes(16, 3)
    with pytest.raises(ConfigError, match="must not be negative"):
        DigitScenes(clutter=-1)


# ------------------------------------------------------------------------------------------------------- changes


EVERYTHING = {"flip": 1, "color_jitter": 1, "gray": 1, "blur": 1}


def test_changes_are_drawn_per_image_from_the_generator() -> None:
    images = torch.rand(1, 3, 9, 9).expand(32, -1, -1, -1)
    kept = images.clone()
    changed = augment(images, EVERYTHING, torch.Generator().manual_seed(1))
    assert torch.equal(images, kept) and changed.shape == images.shape and bool(changed.isfinite().all())
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 20
    assert torch.equal(changed, augment(images, EVERYTHING, torch.Generator().manual_seed(1)))
    nothing = dict.fromkeys(EVERYTHING, 0)
    assert torch.equal(augment(images, nothing, torch.Generator()), images)


def test_each_change_does_what_it_says() -> None:
    images = torch.rand(64, 3, 9, 9)
    off = dict.fromkeys(EVERYTHING, 0)
    flipped = augment(images, {**off, "flip": 1}, torch.Generator().manual_seed(0))
    turned = [torch.equal(image, before.flip(-1)) for image, before in zip(flipped, images, strict=True)]
    assert 20 < sum(turned) < 44
    assert all(torch.equal(image, before) for image, before, t in zip(flipped, images, turned, strict=True) if not t)
    grey = augment(images, {**off, "gray": 1}, torch.Generator().manual_seed(0))
    colourless = [bool((image - image[:1]).abs().max() < 1e-6) for image in grey]
    assert 4 < sum(colourless) < 24
    blurred = augment(images, {**off, "blur": 1}, torch.Generator().manual_seed(0))
    assert torch.allclose(blurred.mean((2, 3)), images.mean((2, 3)), atol=0.1)
    assert (blurred.var((1, 2, 3)) <= images.var((1, 2, 3)) + 1e-6).all()
    jittered = augment(images, {**off, "color_jitter": 1}, torch.Generator().manual_seed(0))
    assert 0 <= float(jittered.min()) and float(jittered.max()) <= 1
    one_channel = augment(images[:, :1], {**off, "color_jitter": 1, "gray": 1}, torch.Generator().manual_seed(0))
    assert one_channel.shape == (64, 1, 9, 9) and not torch.equal(one_channel, images[:, :1])


def test_hue_keeps_grey_and_lightness() -> None:
    from sightline.fovea.training.augment import _turned

    grey = torch.full((1, 3, 4, 4), 0.4)
    torch.testing.assert_close(_turned(grey, torch.tensor(0.3)), grey)
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(_turned(images, torch.tensor(0.37)).mean(1), images.mean(1))
    torch.testing.assert_close(_turned(images, torch.tensor(1 / 3)), images.roll(1, 1), rtol=1e-5, atol=1e-6)
    assert torch.equal(normalize(images[:, :1]), images[:, :1])


# -------------------------------------------------------------------------------------------------- configuration


def test_sources_by_configuration(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from sightline.fovea.config import settings

    def made(**data: Any) -> Source:
        return make_source(settings({"data": {"train_dataset": "x", **data}, "training": {"resolution": 24}}), train=True)

    assert isinstance(made(kind="folder", train_dataset=str(folder)), FolderSource)
    place = tmp_path_factory.mktemp("shards")
    shards(place)
    assert isinstance(made(kind="webdataset", train_dataset=str(place / "s-{0..1}.tar"), num_classes=3), ShardSource)
    scenes = made(kind="digit_scenes")
    assert isinstance(scenes, SceneSource) and scenes.scenes.size == 24
    with pytest.raises(ConfigError, match=r"data\.kind must be one of folder, torchvision"):
        made(kind="folders")
