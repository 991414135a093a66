"""Training of foveated networks: the loop, going on where it stopped, what it refuses."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fovea_small import SMALL, self_supervised, small

pytest.importorskip("lightning_fabric")
pytest.importorskip("sklearn")

from sightline.errors import CheckpointError, ConfigError, TrainingError
from sightline.fovea.training import Trainer, checkpoint
from sightline.fovea.training.data import Batch
from sightline.fovea.training.evaluation import evaluate
from sightline.fovea.training.loop import LAST


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.step.state_dict().items()}


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


class KilledError(Exception):
    """In place of a signal."""


def killed_after(steps: int) -> Any:
    def show(done: int, total: int | None, words: str) -> None:
        if done == steps:
            raise KilledError

    return show


# ------------------------------------------------------------------------------------------------------ running


def test_equal_configurations_give_equal_weights() -> None:
    one, other = Trainer(small()), Trainer(small())
    one.fit()
    other.fit()
    assert_bit_equal(weights(one), weights(other))
    seeded = Trainer(small("training.seed=2"))
    seeded.fit()
    with pytest.raises(AssertionError):
        assert_bit_equal(weights(one), weights(seeded))


def test_report_counts_what_was_done(tmp_path: Path) -> None:
    trainer = Trainer(small("logging.tensorboard=1"), tmp_path)
    report = trainer.fit()
    assert (report.epochs, report.steps, report.images) == (2, 6, 48)
    assert [entry["epoch"] for entry in report.history] == [1, 2]
    assert report.history[-1]["answer_loss"] > 0 and report.history[-1]["policy_loss"] > 0
    assert report.evaluation is not None and report.evaluation.images == 10
    assert set(report.evaluation.top1) == {1, 3}
    assert not report.interrupted
    events = list((tmp_path / "tensorboard").iterdir())
    assert len(events) == 1 and b"val_top1/3_fixations" in events[0].read_bytes()


def test_a_network_learns_what_it_is_shown() -> None:
    """Eight scenes without clutter, again and again."""
    config = small(
        "data.scenes.train=8", "data.scenes.clutter=0", "data.scenes.noise=0", "data.scenes.ramp=0", "training.epochs=90",
        "training.base_lr=0.3", "model.dropout=0", "training.eval_freq=0", "model.channel_mult=0.1", "data.scenes.val=1",
        "saccades.uncertainty.explore=1",
    )  # fmt: skip
    trainer = Trainer(config)
    first = trainer.train_source.batches(0, batch_size=8, train=True)
    batch = next(first)
    trainer.train_source.batches = lambda epoch, **options: iter([batch])  # type: ignore[method-assign]
    report = trainer.fit()
    assert report.history[-1]["answer_loss"] < 0.5 * report.history[0]["answer_loss"]


@pytest.mark.parametrize("loss", ["simclr", "vicreg", "barlow"])
def test_self_supervised_training(loss: str) -> None:
    trainer = Trainer(self_supervised(loss, "training.no_probes=0", "training.base_lr=0.05"))
    before = weights(trainer)
    report = trainer.fit()
    after = weights(trainer)
    assert report.steps == 6 and np.isfinite(report.history[-1]["answer_loss"])
    assert {"probe_0_top1", "probe_1_top1", "top1"} <= report.history[-1].keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    for part in ("network.network.backbone", "network.network.projector_ssl", "network.network.projector.", "network.head", "probes"):
        assert any(name.startswith(part) for name in moved), part
    assert report.evaluation is not None and set(report.evaluation.top1) == {1, 3}


def test_classifiers_beside_do_not_change_the_backbone() -> None:
    with_probes, without = Trainer(self_supervised("simclr", "training.no_probes=0")), Trainer(self_supervised("simclr"))
    # Dropout and other draws must be the same, so the probes are made but their loss is not what is compared.
    without.step.load_state_dict({name: value for name, value in with_probes.step.state_dict().items() if not name.startswith("probes")})
    torch.manual_seed(0)
    with_probes._move([next(with_probes.train_source.batches(0, batch_size=8, train=True))])
    torch.manual_seed(0)
    without._move([next(without.train_source.batches(0, batch_size=8, train=True))])
    one, other = weights(without), weights(with_probes)
    for name in one:
        if name.startswith("network.network.backbone"):
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_other_optimizers_move_weights(optimizer: str) -> None:
    trainer = Trainer(small(f"training.optimizer={optimizer}", "training.epochs=1", "training.warmup_epochs=0", "training.eval_freq=0"))
    before = weights(trainer)
    trainer.fit()
    assert not torch.equal(
        before["network.network.backbone.layers.0.conv.weight"], weights(trainer)["network.network.backbone.layers.0.conv.weight"]
    )


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    """Without norms and dropout, two batches of four are one batch of eight."""
    still = (
        "model.norm=none",
        "model.dropout=null",
        "saccades.sup_policy=none",
        "training.optimizer=sgd",
        "training.clip_grad=0",
        "saccades.n_fixations=1",
    )
    whole, halves = Trainer(small(*still)), Trainer(small(*still, "training.batch_size=4", "training.grad_accum_steps=2"))
    halves.step.load_state_dict(whole.step.state_dict())
    batch = next(whole.train_source.batches(0, batch_size=8, train=True))
    whole._move([batch])
    halves._move([Batch(batch.images[:4], batch.labels[:4]), Batch(batch.images[4:], batch.labels[4:])])
    assert whole.peak_rate == halves.peak_rate
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(halves)[name], value, rtol=1e-4, atol=1e-6)


def test_mixed_precision_trains(tmp_path: Path) -> None:
    trainer = Trainer(small("training.use_amp=true", "training.epochs=1", "training.warmup_epochs=0"), tmp_path)
    report = trainer.fit()
    assert np.isfinite(report.history[0]["answer_loss"])
    assert all(parameter.dtype == torch.float32 for parameter in trainer.network.parameters())
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        Trainer(small("training.use_amp=true", "training.amp_dtype=float16"))


# -------------------------------------------------------------------------------------------- stop and go on


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_resumed_run_is_bit_equal(tmp_path: Path, steps: int) -> None:
    """KilledError in the first or the second epoch, at a checkpoint or behind one."""
    config = small("logging.checkpoint_steps=2", "logging.checkpoint_freq=1", "training.clip_grad=1", "transforms.color_jitter=1")
    whole = Trainer(config)
    expected = whole.fit()
    run = Trainer(config, tmp_path, show=killed_after(steps))
    with pytest.raises(KilledError):
        run.fit()
    if not (tmp_path / LAST).exists():
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            Trainer(config, tmp_path).fit(resume=True)
        return
    random.seed(99)  # whatever the new process draws before
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    resumed = Trainer(config, tmp_path)
    report = resumed.fit(resume=True)
    assert_bit_equal(weights(resumed), weights(whole))
    assert [{**entry, "val": None} for entry in report.history] == [{**entry, "val": None} for entry in expected.history]
    assert (report.steps, report.images) == (expected.steps, expected.images)
    for one, other in zip(resumed.optimizer.state_dict()["state"].values(), whole.optimizer.state_dict()["state"].values(), strict=True):
        assert_bit_equal(one, other)


SCRIPT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from fovea_small import small
from sightline.fovea.training import Trainer
def show(done, total, words):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
Trainer(small("logging.checkpoint_steps=1"), sys.argv[1], show=show).fit()
"""


def test_killed_process_is_resumed_bit_equal(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    whole, resumed = Trainer(small("logging.checkpoint_steps=1")), Trainer(small("logging.checkpoint_steps=1"), tmp_path)
    whole.fit()
    resumed.load()
    assert (resumed.epoch, resumed.batch) == (1, 1)
    resumed.fit()
    assert_bit_equal(weights(resumed), weights(whole))


def test_stopped_run_keeps_its_place(tmp_path: Path) -> None:
    config = small()
    run = Trainer(config, tmp_path)
    run.show = lambda done, total, words: run.stop() if done == 2 else None
    report = run.fit()
    assert report.interrupted and (report.epochs, report.steps) == (0, 2)
    whole, resumed = Trainer(config), Trainer(config, tmp_path)
    whole.fit()
    assert not resumed.fit(resume=True).interrupted
    assert_bit_equal(weights(resumed), weights(whole))


def test_random_states_come_back() -> None:
    generators = {"a": torch.Generator().manual_seed(3)}

    def draws() -> list[Any]:
        return [
            random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item(),  # noqa: NPY002
            torch.rand(1, generator=generators["a"]).item(),
        ]  # fmt: skip

    random.gauss(0, 1)  # leaves a second number behind
    np.random.randn()  # noqa: NPY002 - the same
    state = checkpoint.random_state(generators)
    expected = draws()
    assert draws() != expected
    checkpoint.set_random_state(state, generators)
    assert draws() == expected


def test_checkpoint_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.write(path, {"x": torch.zeros(1)})

    class Unwritable:
        def __reduce__(self) -> str:
            raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        checkpoint.write(path, {"x": Unwritable()})
    assert checkpoint.read(path)["x"] == 0
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------------------------------------------- refusals


def test_checkpoint_of_another_geometry_is_refused(tmp_path: Path) -> None:
    Trainer(small("training.epochs=1"), tmp_path).fit()
    other = Trainer(small("training.epochs=1", "saccades.cmf_a=2"), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"another geometry: network.backbone.layers.0.conv has .*cmf_a 1,.* in it, and .*cmf_a 2,.* here"
    ):
        other.fit(resume=True)


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    Trainer(small("training.epochs=1"), tmp_path).fit()
    with pytest.raises(CheckpointError, match=r"training.base_lr=0.008, and is to go on with 0.01"):
        Trainer(small("training.epochs=1", "training.base_lr=0.01"), tmp_path).fit(resume=True)
    Trainer(small("training.epochs=1", "logging.checkpoint_freq=1"), tmp_path).fit(resume=True)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None])
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        torch.save({"weights": torch.zeros(1)}, tmp_path / LAST)
    else:
        (tmp_path / LAST).write_bytes(content)
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match=r"no readable checkpoint|no checkpoint of"):
        Trainer(small(), tmp_path).fit(resume=True)


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    trainer = Trainer(small("logging.checkpoint_steps=1"), tmp_path)

    def poisoned(epoch: int, **options: Any) -> Any:
        yield Batch(torch.rand(8, 1, 32, 32), torch.zeros(8, dtype=torch.int64))
        yield Batch(torch.full((8, 1, 32, 32), torch.nan), torch.zeros(8, dtype=torch.int64))

    trainer.train_source.batches = poisoned  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"the loss is nan in step 2: lower training.base_lr"):
        trainer.fit()
    saved = checkpoint.read(tmp_path / LAST)
    assert saved["batch"] == 1
    assert all(value.isfinite().all() for value in saved["step"].values())
    assert_bit_equal(dict(trainer.step.named_parameters()), {name: saved["step"][name] for name, _ in trainer.step.named_parameters()})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.warmup_epochs=5"], "training.warmup_epochs must be from 0 to training.epochs"),
        (["data.num_classes=5"], "10 classes, and data.num_classes is 5"),
        (["model.in_channels=3"], "images of 1 channels, and model.in_channels is 3"),
        (["saccades.fix_agg=null"], "needs a classifier"),
        (["saccades.sup_policy=null"], "needs a policy"),
        (["data.kind=folder", "data.train_dataset="], "data.train_dataset is empty: name a folder"),
        (["saccades.n_fixations_val=[0,1]"], "numbers of at least 1"),
    ],
)
def test_impossible_configurations_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(small("training.epochs=1", "training.warmup_epochs=0", *overrides)).fit()


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean training\.epochs"):
        small("training.epoch=3")
    with pytest.raises(ConfigError, match=r"unknown key training\.epoch"):
        Trainer({"training": {"epoch": 3}})


# ---------------------------------------------------------------------------------------------------- evaluation


def test_evaluating_only_changes_nothing(tmp_path: Path) -> None:
    trained = Trainer(small(), tmp_path)
    report = trained.fit()
    before = (tmp_path / LAST).read_bytes()
    again = Trainer(small("training.eval_only=1"), tmp_path)
    shown = again.fit(resume=True)
    assert shown.evaluation is not None and report.evaluation is not None
    assert shown.evaluation.to_dict() == report.evaluation.to_dict()
    assert (tmp_path / LAST).read_bytes() == before
    assert_bit_equal(weights(again), weights(trained))


def test_fewer_fixations_are_the_first_ones() -> None:
    """What one pass with many fixations says about few is what a pass with few says."""
    trainer = Trainer(small("saccades.fix_agg=mean"))

    def batches() -> Any:
        assert trainer.val_source is not None
        return trainer.val_source.batches(0, batch_size=4, train=False)

    sliced = evaluate(trainer.network, batches(), [1, 2, 3], keep_fixations=True)
    assert sliced.fixations is not None and sliced.fixations.shape == (10, 3, 2)
    for count in (1, 2, 3):
        alone = evaluate(trainer.network, batches(), [count], keep_fixations=True)
        assert alone.top1[count] == sliced.top1[count] and alone.loss[count] == pytest.approx(sliced.loss[count], rel=1e-6)
        assert alone.fixations is not None and torch.equal(alone.fixations, sliced.fixations[:, :count])
    assert sliced.loss[1] > 0 and sliced.top5[3] >= sliced.top1[3]
    assert trainer.network.training


def test_evaluation_does_not_disturb_training() -> None:
    often, never = Trainer(small()), Trainer(small("training.eval_freq=0"))
    often.fit()
    never.val_source = None
    never.fit()
    assert_bit_equal(weights(often), weights(never))


# ---------------------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_train_one_network_and_resume_bit_equal(tmp_path: Path) -> None:
    """By torchrun, as a user would; both processes end with the same weights, or the checkpoint would differ from that of the other run."""

    def torchrun(folder: str, *more: str) -> dict[str, Any]:
        arguments = [
            "fovea",
            "train",
            "digit_scenes",
            *SMALL,
            "training.batch_size=4",
            "--output",
            str(tmp_path / folder),
            "--quiet",
            *more,
        ]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "sightline.cli.main", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return checkpoint.read(tmp_path / folder / LAST)

    whole = torchrun("whole")
    torchrun("parts", "training.stop_early_epoch=1", "logging.checkpoint_freq=1")
    parts = torchrun("parts", "--resume")
    assert_bit_equal(parts["step"], whole["step"])
    assert len(whole["random"]) == 2 and whole["report"]["images"] == 48
    with pytest.raises(CheckpointError, match="began with 2 processes, and is to go on with 1"):
        Trainer(small("training.batch_size=4"), tmp_path / "whole").load()
