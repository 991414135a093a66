"""``sightline tune``: options checked, the clip read, thresholds searched with a progress bar, the files written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sightline.cli.console import print_files, print_table, progress_bar, tell, warn
from sightline.cli.job import Preprocess, device_of, rounded, set_threads
from sightline.cli.stream import StreamOptions, parse_preprocess, parse_size
from sightline.errors import MediaError
from sightline.media import check_writable, open_source, write_text
from sightline.models import LoadedModel, load_model, parse_spec
from sightline.thresholds import Thresholds
from sightline.tune import TuneProgress, TuneReport, tune
from sightline.tune.front import METHODS, OBJECTIVES, check_budget
from sightline.tune.metrics import METRICS
from sightline.tune.picture import SUFFIXES, draw_frontier


@dataclass
class TuneJob:
    """Everything that a tuning is told; see ``sightline tune --help`` for the meaning of each."""

    source: str
    model: str
    output: Path
    weights: str | None = None
    budget: float = 1.0
    metric: str = "noise"
    method: str = "knapsack"
    objective: str = "macs"
    noise: str | None = "search"
    holdout: float = 0.25
    frames: int = 40
    start: int = 0
    size: tuple[int, int] | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    backend: str = "auto"
    checkpoint: Path | None = None
    picture: Path | None = None
    json: Path | None = None
    device: str = "cpu"
    threads: int | None = None


def make_job(options: StreamOptions, video: str, output: Path, **rest: Any) -> TuneJob:
    """Check options that have a fixed form.

    Args:
        options: those that `stream` has too.
        video: the source.
        output: the thresholds file.
        rest: the other fields of `TuneJob`.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    parse_spec(options.model)
    noise = {"search": "search", "none": None, "vote": "vote", "block": "block"}
    choices = {"metric": METRICS, "method": METHODS, "objective": OBJECTIVES, "noise": tuple(noise)}
    for name, allowed in choices.items():
        if rest[name] not in allowed:
            raise ValueError(f"--{name}: expected one of {', '.join(allowed)}; got {rest[name]!r}")
    if options.backend not in ("auto", "native", "torch"):
        raise ValueError(f"--backend: expected one of auto, native, torch; got {options.backend!r}")
    try:
        check_budget(rest["budget"], rest["metric"])
    except ValueError as error:
        raise ValueError(f"--budget: {error}") from None
    if not 0 < rest["holdout"] < 1:
        raise ValueError(f"--holdout: expected a share between 0 and 1; got {rest['holdout']!r}")
    picture = rest["picture"]
    if picture is not None and picture.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--picture: expected a file that ends in {', '.join(SUFFIXES)}; got {str(picture)!r}")
    rest["noise"] = noise[rest["noise"]]
    size = parse_size(options.size) if options.size else None
    preprocess = parse_preprocess(options)
    return TuneJob(video, options.model, output, options.weights, size=size, preprocess=preprocess, backend=options.backend, **rest)


def run(job: TuneJob, quiet: bool) -> bool:
    """Tune, write the files, print the numbers.

    Args:
        job: what to do.
        quiet: neither bar nor table.

    Returns:
        Whether Ctrl-C stopped it; what was measured then lies in the checkpoint.
    """
    files = ((job.output, "--output"), (job.picture, "--picture"), (job.json, "--json"), (job.checkpoint, "--checkpoint"))
    for path, option in files:
        if path is not None:
            check_writable(path, option)
    checkpoint = job.checkpoint or job.output.with_name(f"{job.output.name}.checkpoint")
    set_threads(job.threads)
    loaded = load_model(job.model, job.weights)
    frames = read_frames(job, loaded)
    passes = 0
    with progress_bar(quiet, "tuning", "dense frames") as show:

        def count(told: TuneProgress) -> None:
            nonlocal passes
            passes = told.passes
            show(told.passes, told.expected, f"{told.stage}: {100 * told.work:.1f} % of the work left")

        try:
            thresholds = tune(
                loaded.model, frames, job.budget, job.metric, job.method, holdout=job.holdout, objective=job.objective, noise=job.noise,
                backend=job.backend, pixel_scale=job.preprocess.completed(loaded.mean, loaded.std).grey_level, progress=count,
                checkpoint=checkpoint,
            )  # fmt: skip
        except ValueError as error:
            raise MediaError(f"{job.source}: {error}") from error
        except KeyboardInterrupt:
            tell(f"stopped after {passes} passes; the same command goes on from '{checkpoint}'")
            return True
    report: TuneReport = thresholds.report
    thresholds.save(job.output)
    if job.json is not None:
        write_text(job.json, json.dumps(_document(job, thresholds, report), indent=1) + "\n", "--json")
    if job.picture is not None:
        draw_frontier(report, job.picture, f"{loaded.name} on {Path(job.source).name}")
    if job.checkpoint is None:
        checkpoint.unlink(missing_ok=True)  # our own file, of no use any more
    if not report.met:
        warn(["nothing can be saved within this budget; all thresholds are 0 (exact)"])
    if not quiet:
        print_summary(job, report)
    return False


def read_frames(job: TuneJob, loaded: LoadedModel) -> list[torch.Tensor]:
    """The frames of the clip as the network takes them.

    Raises:
        MediaError: there is no such clip.
    """
    device = device_of(job.device)
    if isinstance(loaded.model, torch.nn.Module):
        loaded.model.to(device)
    preprocess = job.preprocess.completed(loaded.mean, loaded.std)
    with open_source(job.source, start=job.start, frames=job.frames) as source:
        size = job.size or loaded.size or rounded(source.size)
        return [preprocess(frame.rgb(size), device) for frame in source]


def _document(job: TuneJob, thresholds: Thresholds, report: TuneReport) -> dict[str, Any]:
    return {"source": job.source, "model": job.model, **report.to_dict(), "unit": thresholds.unit, "thresholds": dict(thresholds)}


def print_summary(job: TuneJob, report: TuneReport) -> None:
    """Print what was found and where the files lie."""
    rows = [
        ("multiply-accumulates left", f"{100 * report.macs_share:.1f} % of dense"),
        ("time per frame", f"{1e3 * report.seconds:.1f} ms, dense {1e3 * report.seconds_dense:.1f} ms"),
        (f"error ({report.metric})", f"{report.error:.3g}, budget {report.budget:g}"),
    ]
    if report.error_noise is not None and report.metric != "noise":
        rows.append(("error in noise units", f"{report.error_noise:.3g}"))
    if report.task is not None and report.task != report.metric and report.task_error is not None:
        rows.append((f"error in task terms ({report.task})", f"{report.task_error:.3g}"))
    rows += [
        ("input filter", report.noise or "none"),
        ("measured on", f"{report.frames_held_back} frames held back; {report.frames_tuned} tuned on"),
        ("passes over the clip", f"{report.passes}" + (f", {report.resumed} of them resumed" if report.resumed else "")),
    ]
    print_table(f"Thresholds for {job.model}", rows)
    files = (
        ("thresholds", f"{job.output} (use: sightline stream ... --thresholds {job.output})"),
        ("picture", job.picture),
        ("json", job.json),
    )
    print_files((kind, path) for kind, path in files if path is not None)
