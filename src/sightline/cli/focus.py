"""``sightline focus``: options checked and turned into a `FocusJob`, the job run with a progress bar, its numbers printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sightline.cli.console import check_choices, print_files, print_report, progress_bar
from sightline.cli.focus_job import FocusJob, Progress, run_focus_job
from sightline.cli.inside import AreaChoice, parse_box
from sightline.cli.job import Preprocess
from sightline.cli.stream import parse_size, parse_triple
from sightline.models import parse_spec
from sightline.report.focus_data import FocusReport
from sightline.tasks import TASKS

_CHOICES = {
    "mode": ("zero", "exact"),
    "outside": ("zero", "hold"),
    "task": TASKS,
    "backend": ("auto", "native", "torch"),
}
_SHOWN_FILES = 6


@dataclass
class FocusOptions:
    """Options as they stand on the command line, before they are checked."""

    model: str
    box: Sequence[str] = ()
    mask: Path | None = None
    brightness: float | None = None
    split: str | None = None
    boxes_from: str | None = None
    detector_weights: str | None = None
    detector_size: str | None = None
    score: float | None = None
    margin: int | None = None
    mode: str = "zero"
    outside: str = "zero"
    size: str | None = None
    mean: str | None = None
    std: str | None = None
    scale: float | None = None
    bgr: bool = False
    task: str = "auto"
    backend: str = "auto"


def make_job(options: FocusOptions, source: str) -> FocusJob:
    """Check options that have a fixed form.

    Args:
        options: as given.
        source: image or folder.

    Returns:
        The job, without its files.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    parse_spec(options.model)
    check_choices(options, _CHOICES)
    return FocusJob(
        source=source,
        model=options.model,
        area=_area(options),
        title=f"Focus report: {source.rstrip('/').rsplit('/', 1)[-1]}",
        mode=options.mode,
        outside=options.outside,
        backend=options.backend,
        size=parse_size(options.size) if options.size else None,
        preprocess=Preprocess(
            scale=1.0 / 255.0 if options.scale is None else options.scale,
            mean=None if options.mean is None else parse_triple(options.mean, "--mean"),
            std=None if options.std is None else parse_triple(options.std, "--std"),
            bgr=options.bgr,
        ),
        task=options.task,
    )


def _area(options: FocusOptions) -> AreaChoice:
    ways = {
        "--box": bool(options.box),
        "--mask": options.mask is not None,
        "--brightness": options.brightness is not None,
        "--boxes-from": options.boxes_from is not None,
    }
    given = [name for name, wanted in ways.items() if wanted]
    if len(given) != 1:
        came = f"got {' and '.join(given)}" if given else "got none"
        raise ValueError(f"say where to look with one of {', '.join(ways)}; {came}")
    if options.split is not None and options.brightness is None:
        raise ValueError("--split: it names the layer whose brightness decides, so it needs --brightness")
    for name in ("detector_weights", "detector_size", "score", "margin"):
        if getattr(options, name) is not None and options.boxes_from is None:
            raise ValueError(f"--{name.replace('_', '-')}: it is about the boxes of a detector, so it needs --boxes-from")
    if options.brightness is not None and options.mode == "exact":
        raise ValueError("--mode exact: brightness is found on the way, so later layers can only be cut off; leave it out, or use --mask")
    if options.brightness is not None and math.isnan(options.brightness):
        raise ValueError("--brightness: expected a number; got nan")
    if options.boxes_from is not None:
        try:
            parse_spec(options.boxes_from)
        except ValueError as error:
            raise ValueError(f"--boxes-from: {error}") from None
    return AreaChoice(
        boxes=tuple(parse_box(text) for text in options.box),
        mask=options.mask,
        brightness=options.brightness,
        detector=options.boxes_from,
        split=options.split,
        detector_weights=options.detector_weights,
        detector_size=parse_size(options.detector_size, "--detector-size") if options.detector_size else None,
        score=0.5 if options.score is None else options.score,
        margin=options.margin or 0,
    )


def run(job: FocusJob, quiet: bool) -> bool:
    """Run a job with a progress bar, and print its numbers.

    Args:
        job: what to do.
        quiet: neither bar nor table; warnings still come.

    Returns:
        Whether the user stopped it early.
    """
    with progress_bar(quiet, "focusing", "reading the images and preparing the network") as show:

        def on_progress(progress: Progress) -> None:
            words = f"area {100 * progress.area:.1f} %  MACs {100 * progress.mac_share:.1f} %  {progress.speedup:.1f}x"
            show(progress.done, progress.total, words)

        report = run_focus_job(job, on_progress)
    print_report(report, f"{len(report.images)} images", quiet)
    if not quiet:
        _print_outputs(report)
    return report.interrupted


def _print_outputs(report: FocusReport) -> None:
    pictures = [(kind, path) for kind, path in report.outputs.items() if kind.startswith("picture ")]
    others = [item for item in report.outputs.items() if item not in pictures]
    print_files((kind.partition(" ")[0], path) for kind, path in [*pictures[:_SHOWN_FILES], *others])
    if len(pictures) > _SHOWN_FILES:
        print(f"... and {len(pictures) - _SHOWN_FILES} more pictures beside them")
