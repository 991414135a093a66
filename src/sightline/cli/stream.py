"""``sightline stream``: options checked and turned into a `Job`, the job run with a progress bar, its numbers printed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sightline.budget import Budget
from sightline.camera.noise import parse_noise
from sightline.cli.console import check_choices, print_files, print_report, progress_bar
from sightline.cli.inside import parse_area
from sightline.cli.job import Job, Preprocess, Progress, run_job
from sightline.models import parse_spec
from sightline.tasks import TASKS

_CHOICES = {
    "threshold_unit": ("std", "absolute"),
    "motion": (None, "translation", "affine"),
    "norm": ("rms", "max", "l2"),
    "global_ops": ("exact", "hold"),
    "exposure": (None, "global"),
    "compare": (None, "dense"),
    "task": TASKS,
    "view": ("both", "frame", "heat"),
    "backend": ("auto", "native", "torch"),
    "dtype": (None, "float32", "bfloat16", "float16", "float64"),
}


@dataclass
class StreamOptions:
    """Options as they stand on the command line, before they are checked."""

    model: str
    weights: str | None = None
    threshold: float = 0.03
    threshold_unit: str = "std"
    input_threshold: str | None = None
    noise: str | None = None
    motion: str | None = None
    global_ops: str = "exact"
    exposure: str | None = None
    scene_cuts: bool = True
    refresh: str | None = None
    norm: str = "rms"
    size: str | None = None
    mean: str | None = None
    std: str | None = None
    scale: float | None = None
    bgr: bool = False
    compare: str | None = None
    task: str = "auto"
    view: str = "both"
    backend: str = "auto"
    dtype: str | None = None
    budget: str | None = None
    check: int | None = None
    aoi: Sequence[str] = ()


def make_job(options: StreamOptions, video: str) -> Job:
    """Check options that have a fixed form.

    Args:
        options: as given.
        video: the source.

    Returns:
        The job, without its files.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    parse_spec(options.model)
    check_choices(options, _CHOICES)
    try:
        parse_noise(options.noise)
    except ValueError as error:
        raise ValueError(f"--noise: expected vote, block or temporal; got {options.noise!r}") from error
    clashes = {"--aoi": options.aoi, "--exposure": options.exposure, "--noise temporal": (options.noise or "").startswith("temporal")}
    for name in (name for name, given in clashes.items() if given and options.motion is not None):
        raise ValueError(f"--motion: cannot be combined with {name}; leave one of them out")
    if not 0 <= options.threshold < math.inf:
        raise ValueError(f"--threshold: expected a finite number, 0 or more; got {options.threshold!r}")
    return Job(
        source=video,
        model=options.model,
        title=f"Streaming report: {video.rstrip('/').rsplit('/', 1)[-1]}",
        stream={
            "threshold": options.threshold,
            "threshold_unit": options.threshold_unit,
            "input_threshold": parse_input_threshold(options.input_threshold),
            "noise": options.noise,
            "exposure": options.exposure,
            "scene_cuts": options.scene_cuts,
            "refresh": parse_refresh(options.refresh),
            "norm": options.norm,
            **({} if options.motion is None else {"motion": options.motion}),
            "global_ops": options.global_ops,
            "backend": options.backend,
            **({} if options.dtype is None else {"dtype": options.dtype}),
        },
        size=parse_size(options.size) if options.size else None,
        preprocess=parse_preprocess(options),
        task=options.task,
        view=options.view,
        compare=options.compare == "dense",
        budget=parse_budget(options.budget) if options.budget is not None else None,
        check=options.check,
        area=parse_area(options.aoi, "--aoi") if options.aoi else None,
        refresh_keyframes=options.refresh == "keyframes",
    )


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """Read ``WxH``.

    >>> parse_size("896x512")
    (896, 512)
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise ValueError(f"{option}: expected WIDTHxHEIGHT, for example 896x512; got {text!r}")
    return int(width), int(height)


def parse_budget(text: str) -> Budget:
    """Read an error in noise units, or a time per frame with its unit.

    >>> parse_budget("1.5").error, parse_budget("20ms").seconds, parse_budget("0.1s").seconds
    (1.5, 0.02, 0.1)
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[-+]?[0-9]+)?)\s*(ms|s)?\s*", text, re.IGNORECASE)
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if match is None or not 0 < number < float("inf"):
        raise ValueError(f"--budget: expected noise units (1.0) or a time per frame (20ms), more than 0; got {text!r}")
    if match[2] is None:
        return Budget(error=number)
    return Budget(seconds=number / 1000 if match[2].lower() == "ms" else number)


def parse_input_threshold(text: str | None) -> float | str | None:
    """Read a number in the threshold's unit, or one with "abs" behind it in the network's input units, which stays text.

    >>> parse_input_threshold("0.05"), parse_input_threshold("15abs"), parse_input_threshold(None)
    (0.05, '15abs', None)
    """
    if text is None:
        return None
    try:
        number = float(text.removesuffix("abs"))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ValueError(f"--input-threshold: expected a number that is not negative, for example 0.05 or 15abs; got {text!r}")
    return text if text.endswith("abs") else number


def parse_refresh(text: str | None) -> int | None:
    """Read a number of frames; "keyframes" is not one, and the job's own business.

    >>> parse_refresh("250"), parse_refresh("keyframes"), parse_refresh(None)
    (250, None, None)
    """
    if text is None or text == "keyframes":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--refresh: expected a number of frames, at least 1, or keyframes; got {text!r}")
    return int(text)


def parse_triple(text: str, option: str) -> tuple[float, float, float]:
    """Read one number for all channels, or three with commas between.

    >>> parse_triple("0.5", "--mean")
    (0.5, 0.5, 0.5)
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3 or (option == "--std" and 0.0 in values):
        raise ValueError(
            f"{option}: expected one number or three, for example 0.485,0.456,0.406{', none 0' * (option == '--std')}; got {text!r}"
        )
    return values[0], values[1], values[2]


def parse_preprocess(options: StreamOptions) -> Preprocess:
    """What the options say about pixels."""
    return Preprocess(
        scale=1.0 / 255.0 if options.scale is None else options.scale,
        mean=None if options.mean is None else parse_triple(options.mean, "--mean"),
        std=None if options.std is None else parse_triple(options.std, "--std"),
        bgr=options.bgr,
    )


def run(job: Job, quiet: bool) -> bool:
    """Run a job with a progress bar, and print its numbers.

    Args:
        job: what to do.
        quiet: neither bar nor table; warnings still come.

    Returns:
        Whether the user stopped it early.
    """
    with progress_bar(quiet, "streaming", "reading the video and preparing the network") as show:

        def on_progress(progress: Progress) -> None:
            saved = 100 * (1 - progress.mac_share)
            words = f"{progress.fps:.1f} fps  input changed {100 * progress.input_density:.1f} %  MACs saved {saved:.1f} %"
            show(progress.done, progress.total, words)

        report = run_job(job, on_progress)
    print_report(report, f"{len(report.frames)} frames", quiet)
    if not quiet:
        print_files(report.outputs.items())
    return report.interrupted
