"""``sightline fovea train``: a configuration composed, a network trained with a progress bar, numbers printed and written."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli.console import print_files, print_table, progress_bar, tell, warn
from sightline.errors import CheckpointError, ConfigError, SightlineError

if TYPE_CHECKING:
    from sightline.fovea.training.loop import Trainer
    from sightline.fovea.training.report import TrainingReport

EXAMPLE = "Example: sightline fovea train digit_scenes training.epochs=10 --output run --json run.json"
"""For the end of ``--help``."""


@dataclass
class TrainJob:
    """Everything that a training is told; see ``sightline fovea train --help`` for the meaning of each.

    Attributes:
        name: of the configuration.
        config: the composed configuration.
    """

    name: str
    config: Any
    output: Path
    resume: bool = False
    json: Path | None = None
    threads: int | None = None


def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A packaged configuration (digit_scenes, fovi_alexnet ...) or a .yaml file.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys to set, as in training.epochs=10 data.kind=folder.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for checkpoints and logs. Default: fovea-runs/CONFIG.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --output, in the middle of an epoch too.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Numbers of the run as JSON.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network. Default: torch's.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no closing table.")] = False,
) -> None:
    """Train a foveated network: supervised, SimCLR, VICReg or Barlow Twins, on an image folder, a torchvision dataset or shards."""
    from sightline.cli.app import _INTERRUPTED, plain_errors

    try:
        job = make_job(config, overrides or [], output, resume=resume, json=json, threads=threads)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    except SightlineError as error:  # no Hydra
        tell(str(error))
        raise typer.Exit(1) from None
    with plain_errors():
        interrupted = run(job, quiet)
    if interrupted:
        raise typer.Exit(_INTERRUPTED)


def make_job(config: str, overrides: list[str], output: Path | None = None, **rest: Any) -> TrainJob:
    """Compose the configuration.

    Args:
        config: a packaged name, or a file.
        overrides: in Hydra's language.
        output: the folder.
        rest: the other fields of `TrainJob`.

    Raises:
        ConfigError: no such configuration, unknown keys, impossible values.
    """
    from sightline.fovea.config.compose import compose, names

    path = Path(config)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"there is no file {config}; packaged configurations are {', '.join(names())}")
        composed = compose(path.stem, overrides, folder=path.parent)
    else:
        composed = compose(config, overrides)
    name = path.stem
    return TrainJob(name, composed, output or Path("fovea-runs") / name, **rest)


def run(job: TrainJob, quiet: bool) -> bool:
    """Train, write the files, print the numbers.

    Args:
        job: what to do.
        quiet: neither bar nor table.

    Returns:
        Whether Ctrl-C stopped it; the checkpoint then holds what was done.

    Raises:
        CheckpointError: there is a checkpoint already and it is not to be resumed, or the other way round.
    """
    from sightline.cli.job import interruptible, set_threads
    from sightline.fovea.training.loop import LAST, Trainer
    from sightline.media import check_writable, write_text

    if job.json is not None:
        check_writable(job.json, "--json")
    last = job.output / LAST
    if last.exists() and not job.resume:
        raise CheckpointError(f"{last}: there is a run in this folder already: go on with --resume, or take another --output")
    set_threads(job.threads)
    with progress_bar(quiet, "training", "reading data") as bar, interruptible() as stop:

        def show(done: int, total: int | None, words: str) -> None:
            bar(done, total, words)
            if stop.is_set():
                trainer.stop()

        trainer = Trainer(job.config, job.output, show=show)
        report = trainer.fit(resume=job.resume)
    if not trainer.fabric.is_global_zero:
        return report.interrupted
    warn(report.broken)
    if report.interrupted:
        tell(f"stopped after {report.steps} of {trainer.total_steps} steps; the same command with --resume goes on")
    if job.json is not None:
        document = {"config": job.name, "output": str(job.output), **report.to_dict(), "settings": _plain(trainer.settings)}
        write_text(job.json, json_module.dumps(document, indent=1) + "\n", "--json")
    if not quiet:
        print_table(f"Training: {job.name}", summary(trainer, report))
        print_files([("checkpoint", last), *([("numbers", job.json)] if job.json is not None else [])])
    return report.interrupted


def summary(trainer: Trainer, report: TrainingReport) -> list[tuple[str, str]]:
    """Rows of the closing table."""
    rows = [
        ("epochs", f"{report.epochs} of {trainer.settings.training.epochs}"),
        ("images", f"{report.images}, with repetitions, in {report.seconds:.0f} s"),
    ]
    if report.history:
        last = report.history[-1]
        rows.append(("loss", f"{last['answer_loss']:.4f}"))
        if "top1" in last:
            rows.append(("right in training", f"{100 * last['top1']:.1f} %"))
    if report.evaluation is not None:
        for count, share in report.evaluation.top1.items():
            fixations = "1 fixation" if count == 1 else f"{count} fixations"
            rows.append((f"right with {fixations}", f"{100 * share:.1f} % of {report.evaluation.images}"))
    return rows


def _plain(settings: Any) -> Any:
    from sightline.fovea.training.checkpoint import plain

    return plain(settings)
