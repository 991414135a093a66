"""``sightline fovea train`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fovea_small import SMALL

pytest.importorskip("lightning_fabric")
pytest.importorskip("sklearn")
pytest.importorskip("typer")

import typer
from typer.testing import CliRunner

from sightline.cli import fovea_train
from sightline.fovea.training.loop import LAST, Trainer

app = typer.Typer()
app.command("train")(fovea_train.train)
app.command("other")(lambda: None)  # with one command alone, typer takes no name


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_trains_and_writes_everything(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    done = run("digit_scenes", *SMALL, "logging.tensorboard=1", "--output", tmp_path / "run", "--json", numbers, "--threads", 1)
    assert done.exit_code == 0, done.output
    assert "right with 3 fixations" in done.output and "2 of 2" in done.output
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LAST, "tensorboard"}
    document = json.loads(numbers.read_text())
    assert document["epochs"] == 2 and set(document["evaluation"]["top1"]) == {"1", "3"}
    assert document["settings"]["data"]["kind"] == "digit_scenes" and len(document["history"]) == 2


def test_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Trainer.fit

    def stopped(trainer: Trainer, resume: bool = False) -> Any:
        show = trainer.show

        def show_and_stop(done: int, total: int | None, words: str) -> None:
            show(done, total, words)
            if done == 2:
                trainer.stop()  # what Ctrl-C does

        trainer.show = show_and_stop
        return usual(trainer, resume)

    arguments = ("digit_scenes", *SMALL, "--output", tmp_path, "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", stopped)
        done = run(*arguments)
    assert done.exit_code == 130 and "stopped after 2 of 6 steps; the same command with --resume goes on" in done.output
    refused = run(*arguments)
    assert refused.exit_code == 1 and "go on with --resume" in refused.output
    resumed = run(*arguments, "--resume", "--json", tmp_path / "numbers.json")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads((tmp_path / "numbers.json").read_text())["steps"] == 6


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["digits_scene"], 2, "did you mean digit_scenes"),
        (["digit_scenes", "training.epoch=1"], 2, "unknown key training.epoch"),
        (["digit_scenes", "training.epochs=0"], 2, "training.epochs must be greater than 0"),
        (["nothing.yaml"], 2, "there is no file nothing.yaml"),
        (["digit_scenes", "--resume"], 1, "no such checkpoint"),
        (["digit_scenes", "data.kind=folder", "data.train_dataset=nowhere"], 1, "nowhere: there is no such folder"),
        (["digit_scenes", "data.num_classes=3"], 1, "data.num_classes is 3"),
        (["digit_scenes", "--json", "no/such/folder.json"], 1, "no/such"),
        ([], 2, "CONFIG"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert words in " ".join(done.output.replace("│", " ").split())
    assert "Traceback" not in done.output


def test_configuration_of_ones_own_and_broken_images(tmp_path: Path) -> None:
    from PIL import Image

    from sightline.fovea.config import copy_to

    for number, name in enumerate(("ant", "bee")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (40, 30), (100 * number, 10 * index, 0)).save(tmp_path / "images" / name / f"{index}.png")
    (tmp_path / "images" / "bee" / "1.png").write_bytes(b"broken")
    configs = copy_to(tmp_path / "configs")
    (configs / "mine.yaml").write_text(
        "defaults:\n  - digit_scenes\n  - _self_\nmodel:\n  in_channels: 3\ndata:\n  kind: folder\n  num_classes: 2\n"
    )
    small = [override for override in SMALL if not override.startswith("data.")]
    place = tmp_path / "images"
    overrides = [*small, f"data.train_dataset={place}", f"data.val_dataset={place}", "transforms.color_jitter=1", "transforms.flip=1"]
    done = run(configs / "mine.yaml", *overrides, "--output", tmp_path / "run", "--json", tmp_path / "numbers.json")
    assert done.exit_code == 0, done.output
    assert "1 broken image was skipped" in done.output
    document = json.loads((tmp_path / "numbers.json").read_text())
    assert document["evaluation"]["images"] == 7 and "bee/1.png" in document["broken"][0]
    assert document["config"] == "mine"
