"""The loop of training, on Lightning Fabric: one process or many, any precision, and going on where it stopped.

What belongs here: the order of things. Its parts have files of their own: `data` and `augment` (what comes in), `step` and `losses` (what
is compared), `schedule` (what moves the weights), `checkpoint`, `evaluation`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.errors import CheckpointError, ConfigError, TrainingError
from sightline.fovea.config.schema import Section, settings
from sightline.fovea.fovinet import FoviNet
from sightline.fovea.layers.weights import geometry_of
from sightline.fovea.probes import FoviNetProbes
from sightline.fovea.saccades.uncertainty import UncertaintySaccades
from sightline.fovea.training import checkpoint
from sightline.fovea.training.augment import augment, normalize
from sightline.fovea.training.data import Batch, Source, make_source
from sightline.fovea.training.evaluation import Evaluation, evaluate
from sightline.fovea.training.losses import gather_of, make_loss
from sightline.fovea.training.processes import make_fabric, seed_everything
from sightline.fovea.training.report import Log, TrainingReport
from sightline.fovea.training.schedule import learning_rate, make_optimizer, set_learning_rate
from sightline.fovea.training.step import Measures, SelfSupervisedStep, SupervisedStep

Show = Callable[[int, int | None, str], None]
LAST = "last.ckpt"
"""Name of the checkpoint that a run goes on from."""


class Trainer:
    """Trains a `FoviNet` as a configuration says.

    Args:
        config: from `sightline.fovea.config.compose`, or nested mappings.
        folder: for checkpoints and logs, made if it is not there; None: nothing is written.
        train: images to train on; default: what ``data`` names.
        val: images to evaluate on; default: what ``data`` names, or none if ``data.val_dataset`` is empty.
        network: default: a new one, from ``training.seed``.
        fabric: default: `make_fabric`. It is launched here if it was not.
        show: told (done, total, words) after each step.

    Attributes:
        network: what is trained.
        report: what was done so far.

    Raises:
        ConfigError: unknown keys or values that cannot be.
        MediaError: images that are not there.

    Equal configurations give equal weights, bit for bit, on one machine's CPU with one number of threads; so does a run that was stopped
    and resumed.
    """

    def __init__(
        self, config: Any, folder: str | Path | None = None, *, train: Source | None = None, val: Source | None = None,
        network: FoviNet | None = None, fabric: Any = None, show: Show | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings(config)
        _check(self.settings)
        self.folder = None if folder is None else Path(folder)
        self.show = show or (lambda done, total, words: None)
        self.fabric = fabric or make_fabric(self.settings)
        self.fabric.launch()
        section = self.settings.training
        self.train_source = train or make_source(self.settings, train=True)
        self.val_source = val
        if val is None and (self.settings.data.val_dataset or self.settings.data.kind == "digit_scenes"):
            self.val_source = make_source(self.settings, train=False)
        _check_data(self.settings, self.train_source)
        seed_everything(int(section.seed))
        self.network = network or FoviNet(config)
        self.step = self._make_step()
        if section.freeze_backbone:
            self.network.network.backbone.requires_grad_(False)
        optimizer = make_optimizer(section, [self.step])
        self.module, self.optimizer = self.fabric.setup(self.step, optimizer)
        self.generators = {
            name: torch.Generator().manual_seed((int(section.seed) * 1000 + self.fabric.global_rank) * 2 + index)
            for index, name in enumerate(("looking", "changing"))
        }
        self.batches_per_epoch = self.train_source.steps(section.batch_size, self.fabric.world_size)
        self.accumulated = int(section.grad_accum_steps)
        self.steps_per_epoch = -(-self.batches_per_epoch // self.accumulated)
        self.epoch = self.batch = 0
        self.sums: dict[str, float] = {}
        self.report = TrainingReport()
        logs = self.folder is not None and bool(self.settings.logging.tensorboard) and self.fabric.is_global_zero
        self._log = Log(self.folder / "tensorboard" if self.folder is not None and logs else None)
        self._stopping = False

    # ----------------------------------------------------------------------------------------------- making
    def _make_step(self) -> SupervisedStep | SelfSupervisedStep:
        section = self.settings.training
        loss = make_loss(self.settings, gather_of(self.fabric))
        supervised = section.loss == "supervised"
        probes = None
        if not section.no_probes:
            sizes = self.network.mlp_spec
            probes = FoviNetProbes(sizes, "mean", int(self.settings.data.num_classes), self.settings.model.dropout_probes)
        return (SupervisedStep if supervised else SelfSupervisedStep)(self.network, self.settings, loss, probes)

    @property
    def total_steps(self) -> int:
        """Steps of the optimiser, of the whole run."""
        return int(self.settings.training.epochs) * self.steps_per_epoch

    @property
    def peak_rate(self) -> float:
        """``base_lr`` is meant for 256 images per step."""
        section = self.settings.training
        return float(section.base_lr) * int(section.batch_size) * self.accumulated * int(self.fabric.world_size) / 256

    # ---------------------------------------------------------------------------------------------- running
    def fit(self, resume: bool = False) -> TrainingReport:
        """Trains to the last epoch; with ``training.eval_only`` evaluates only.

        Args:
            resume: go on from the folder's checkpoint, in the middle of an epoch too.

        Returns:
            `report`. After `stop`, one that says so.

        Raises:
            CheckpointError: `resume`, and there is no checkpoint, or one of another geometry or other settings.
            TrainingError: the loss is no number any more; the last checkpoint is of before.
            MediaError: no image can be read.
        """
        section = self.settings.training
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        if resume:
            self.load()
        elif not self.report.steps:  # another stream in every process, whatever was drawn before
            seed_everything(int(section.seed) + 1 + self.fabric.global_rank)
        if section.eval_only:
            self.report.evaluation = self.evaluate()
            return self.report
        before, started = self.report.seconds, time.perf_counter()
        last = min(int(section.epochs), int(section.stop_early_epoch) or int(section.epochs))
        self.network.train()
        self._stopping = False
        try:
            while self.epoch < last and not self._stopping:
                self._train_epoch(before, started)
            self.report.interrupted = self._stopping and self.epoch < last
        finally:
            self.report.seconds = before + time.perf_counter() - started
            sources = [source for source in (self.train_source, self.val_source) if source is not None]
            self.report.broken = [source.broken.sentence(source.name) for source in sources if len(source.broken)]
            self._log.close()
        return self.report

    def stop(self) -> None:
        """Ends `fit` behind the step that runs now, with a checkpoint; may be called from a signal handler or another thread."""
        self._stopping = True

    def _train_epoch(self, before: float, started: float) -> None:
        section = self.settings.training
        batches = self.train_source.batches(
            self.epoch, batch_size=int(section.batch_size), train=True, start=self.batch, rank=self.fabric.global_rank,
            world=self.fabric.world_size, seed=int(section.seed),
        )  # fmt: skip
        save_every = int(self.settings.logging.checkpoint_steps)
        while self.batch < self.batches_per_epoch:
            group = []
            for _ in range(min(self.accumulated, self.batches_per_epoch - self.batch)):
                batch = next(batches, None)
                if batch is None:
                    raise TrainingError(f"{self.train_source.name}: the data ended after {self.batch} of {self.batches_per_epoch} batches")
                group.append(batch)
            self._move(group)
            self.batch += len(group)
            self.report.steps += 1
            done = self.report.steps
            self.show(done, self.total_steps, self._words())
            if (self._stopping or (save_every and done % save_every == 0)) and self.batch < self.batches_per_epoch:
                self.report.seconds = before + time.perf_counter() - started
                self.save()
                if self._stopping:
                    return
        self._finish_epoch(before, started)

    def _move(self, group: list[Batch]) -> None:
        """One step of the optimiser on these batches."""
        rate = learning_rate(
            self.report.steps, peak=self.peak_rate, warmup_steps=round(float(self.settings.training.warmup_epochs) * self.steps_per_epoch),
            total_steps=self.total_steps, end_ratio=float(self.settings.training.end_lr_ratio),
        ) if self.settings.training.lr_scheduler != "constant" else self.peak_rate  # fmt: skip
        set_learning_rate(self.optimizer, rate)
        self._explore()
        self.optimizer.zero_grad()
        for index, raw in enumerate(group):
            batch = raw.to(self.fabric.device)
            images, second = self._views(batch)
            with self.fabric.no_backward_sync(self.module, enabled=index < len(group) - 1):
                loss, measures = self.module(images, batch.labels, self.generators["looking"], second)
                self.fabric.backward(loss / len(group))
            self._count(measures, len(batch))
        if self.settings.training.clip_grad:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=float(self.settings.training.clip_grad))
        self.optimizer.step()

    def _views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The batch changed at random, twice for self-supervised training."""
        views = []
        for _ in range(1 if isinstance(self.step, SupervisedStep) else 2):
            images = augment(batch.images, self.settings.transforms, self.generators["changing"])
            views.append(normalize(images) if self.settings.transforms.normalize else images)
        return views[0], views[1] if len(views) > 1 else None

    def _explore(self) -> None:
        """A policy that learns follows contrast at first, and its own map more and more."""
        policy = self.step.policy
        if isinstance(policy, UncertaintySaccades):
            look = self.settings.saccades.uncertainty
            share = self.report.steps / max(1.0, float(look.explore_until) * self.total_steps)
            policy.explore = max(float(look.explore), 1.0 - share)

    def _count(self, measures: Measures, images: int) -> None:
        for name, value in {**measures, "images": torch.tensor(float(images))}.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        # NaN + anything is NaN, so this also sees earlier batches.
        if not np.isfinite(self.sums["answer_loss"]):
            raise TrainingError(
                f"the loss is {self.sums['answer_loss']} in step {self.report.steps + 1}: lower training.base_lr or set training.clip_grad"
            )
        self.report.images += images * self.fabric.world_size

    def _words(self) -> str:
        means = self._means()
        accuracy = f", {100 * means['top1']:.1f} % right" if "top1" in means else ""
        return f"epoch {self.epoch + 1}/{self.settings.training.epochs}: loss {means['answer_loss']:.3f}{accuracy}"

    def _means(self) -> dict[str, float]:
        images = self.sums.get("images", 0.0)
        return {name: value / images for name, value in self.sums.items() if name != "images"} if images else {}

    def _finish_epoch(self, before: float, started: float) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        entry: dict[str, Any] = {"epoch": self.epoch + 1, "lr": rate, **self._summed_means()}
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, {}
        self.report.epochs = self.epoch
        section = self.settings.training
        due = self.epoch % int(section.eval_freq) == 0 if section.eval_freq else False
        if self.val_source is not None and (due or self.epoch == int(section.epochs)):
            self.report.evaluation = self.evaluate()
            entry["val"] = self.report.evaluation.to_dict()
        self.report.history.append(entry)
        self._log.write(entry)
        self.report.seconds = before + time.perf_counter() - started
        every = int(self.settings.logging.checkpoint_freq)
        if (every and self.epoch % every == 0) or self.epoch == int(section.epochs):
            self.save()

    def _summed_means(self) -> dict[str, float]:
        """Means over the images of all processes."""
        if self.fabric.world_size > 1:
            names = sorted(self.sums)
            total = self.fabric.all_reduce(
                torch.tensor([self.sums[name] for name in names], dtype=torch.float64, device=self.fabric.device), reduce_op="sum"
            )
            self.sums = dict(zip(names, total.tolist(), strict=True))
        return self._means()

    def evaluate(self) -> Evaluation:
        """Shows all images of the evaluation to the network, with the policy of supervised training.

        Returns:
            An `Evaluation` over the images of all processes, for each number in ``saccades.n_fixations_val``.

        Raises:
            ConfigError: there are none.
        """
        if self.val_source is None:
            raise ConfigError("there is nothing to evaluate on: set data.val_dataset")
        counts = self.settings.saccades.n_fixations_val
        world = self.fabric.world_size
        batches = self.val_source.batches(
            0, batch_size=int(self.settings.validation.batch_size), train=False, rank=self.fabric.global_rank, world=world
        )
        counts = counts if isinstance(counts, list | tuple) else [counts]
        normalized = bool(self.settings.transforms.normalize)
        result = evaluate(self.network, batches, counts, normalized=normalized, generator=torch.Generator().manual_seed(0))
        return result if world == 1 else self._over_processes(result)

    def _over_processes(self, mine: Evaluation) -> Evaluation:
        counts = list(mine.top1)
        sums = [[table[count] * mine.images for count in counts] for table in (mine.top1, mine.top5, mine.loss)]
        flat = torch.tensor([*sums[0], *sums[1], *sums[2], mine.images], dtype=torch.float64, device=self.fabric.device)
        total = self.fabric.all_reduce(flat, reduce_op="sum").tolist()
        images = total.pop()
        tables = [dict(zip(counts, (value / images for value in total[i * len(counts) :]), strict=False)) for i in range(3)]
        return Evaluation(int(images), tables[0], tables[1], tables[2])

    # ------------------------------------------------------------------------------------------ checkpoints
    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint holds."""
        random_states: list[Any] = [checkpoint.random_state(self.generators)]
        if self.fabric.world_size > 1:
            random_states = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(random_states, checkpoint.random_state(self.generators))
        report = self.report.to_dict()
        return {
            "settings": checkpoint.plain(self.settings),
            "geometry": geometry_of(self.network),
            "step": self.step.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "random": random_states,
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": dict(self.sums),
            "report": report,
        }

    def save(self) -> None:
        """Writes the folder's checkpoint, whole or not at all; without a folder nothing."""
        if self.folder is None:
            return
        state = self.state()  # all processes take part
        if self.fabric.is_global_zero:
            checkpoint.write(self.folder / LAST, state)
        self.fabric.barrier()

    def load(self) -> None:
        """Puts the run where the folder's checkpoint was written.

        Raises:
            CheckpointError: there is none, or it is of another geometry, other settings or another number of processes.
        """
        if self.folder is None:
            raise ConfigError("there is no folder to resume from")
        path = self.folder / LAST
        content = checkpoint.read(path)
        checkpoint.check_geometry(path, content, self.network)
        checkpoint.check_settings(path, content, self.settings)
        if len(content["random"]) != self.fabric.world_size:
            raise CheckpointError(
                f"{path}: the run began with {len(content['random'])} processes, and is to go on with {self.fabric.world_size}: use as many"
            )
        self.step.load_state_dict(content["step"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.fabric.strategy.precision.load_state_dict(content["precision"])
        checkpoint.set_random_state(content["random"][self.fabric.global_rank], self.generators)
        self.epoch, self.batch, self.sums = content["epoch"], content["batch"], dict(content["sums"])
        told = content["report"]
        self.report = TrainingReport(told["epochs"], told["steps"], told["images"], told["seconds"], list(told["history"]))
        if told["evaluation"] is not None:
            self.report.evaluation = Evaluation(**told["evaluation"])


def _check(config: Section) -> None:
    section = config.training
    if int(section.grad_accum_steps) < 1:
        raise ConfigError(f"training.grad_accum_steps must be at least 1, not {section.grad_accum_steps}")
    if not 0 <= float(section.warmup_epochs) <= float(section.epochs):
        raise ConfigError(f"training.warmup_epochs must be from 0 to training.epochs ({section.epochs}), not {section.warmup_epochs}")
    if section.loss == "supervised" and section.freeze_backbone and config.saccades.fix_agg is None:
        raise ConfigError("training.freeze_backbone leaves nothing to train without a classifier (saccades.fix_agg: null)")


def _check_data(config: Section, source: Source) -> None:
    if source.channels != int(config.model.in_channels):
        raise ConfigError(f"{source.name} has images of {source.channels} channels, and model.in_channels is {config.model.in_channels}")
    if len(source.classes) > int(config.data.num_classes):
        raise ConfigError(
            f"{source.name} has {len(source.classes)} classes, and data.num_classes is {config.data.num_classes}: set it to as many"
        )
