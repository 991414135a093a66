"""The typer application: options of each command, turned into calls of the command's own file."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.console import tell
from sightline.cli.fovea import group as fovea_group
from sightline.errors import SightlineError

app = typer.Typer(
    name="sightline",
    help="Run convolutional networks on video, computing only what changed.",
    epilog="Exit codes: 0 done, 1 could not be done (one sentence says why), 2 wrong usage, 130 stopped by Ctrl-C with complete files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
"""The application; `sightline.cli.main.main` runs it."""

app.add_typer(fovea_group, name="fovea")

_INTERRUPTED = 130


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Show an error as one sentence on standard error and leave with exit code 1 (130 after Ctrl-C)."""
    if os.environ.get("SIGHTLINE_DEBUG") == "1":
        yield
        return
    torch_log = logging.getLogger("torch")  # a network that cannot be captured makes it print tracebacks of its own
    level = torch_log.level
    torch_log.setLevel(logging.CRITICAL)
    try:
        yield
    except SightlineError as error:
        tell(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        tell("stopped; no file was written")
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains again at exit
        raise typer.Exit(1) from None
    except MemoryError:
        tell("the memory is exhausted; use a smaller --size or network")
        raise typer.Exit(1) from None
    except Exception as error:
        reason = " ".join(str(error).split())
        tell(f"this should not have happened ({type(error).__name__}: {reason}); SIGHTLINE_DEBUG=1 shows where, please report it")
        raise typer.Exit(1) from None
    finally:
        torch_log.setLevel(level)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sightline {importlib.metadata.version('sightline')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    """Run convolutional networks on video, computing only what changed."""


Video = Annotated[str, typer.Argument(metavar="VIDEO", help="Video file, folder of images, camera number, or RTSP/HTTP address.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Annotated video to write (.mp4, .mkv, .mov, .avi).")]
Report = Annotated[Path | None, typer.Option("--report", "-r", help="HTML report to write, one self-contained file.")]
Json = Annotated[Path | None, typer.Option("--json", help="Numbers of the report as JSON.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the network. Default: torch's.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no closing table.")]
Backend = Annotated[str, typer.Option(help="Executor: auto, native or torch.")]


@app.command(
    "stream", epilog="Example: sightline stream gate.mp4 --model torchvision:resnet50 --weights DEFAULT --report gate.html --compare dense"
)
def stream_command(
    video: Video,
    model: Annotated[str, typer.Option("--model", "-m", help="torchvision:NAME, timm:NAME, path.py:callable, file.pt2 or file.onnx.")],
    weights: Annotated[str | None, typer.Option(help="State dict or safetensors file, or the library's name for its weights.")] = None,
    threshold: Annotated[
        float, typer.Option(min=0.0, help="How much a value may move before it counts: 0 exact, 0.03 mild, 0.1 strong.")
    ] = 0.03,
    threshold_unit: Annotated[str, typer.Option(help="std (of each map on the first frame) or absolute.")] = "std",
    thresholds: Annotated[
        Path | None, typer.Option(help="File of `sightline tune`, instead of --threshold; brings unit and noise.")
    ] = None,
    input_threshold: Annotated[
        str | None, typer.Option(help="The same for the input frame; '15abs' is in the network's input units. Default: --threshold.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="1.0|20ms", help="Hold this error (noise units) or time per frame by scaling the thresholds.")
    ] = None,
    check: Annotated[
        int | None, typer.Option(min=2, help="Measure the error in noise units at every so many frames (two dense runs each).")
    ] = None,
    aoi: Annotated[
        list[str] | None,
        typer.Option(metavar="Y0,X0,Y1,X1|MASK", help="Compute only what this box (may be repeated), or mask image, needs."),
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="Input filter: vote (of 5x5 pixels), block (8x8) or temporal (mean of what stands still).")
    ] = None,
    motion: Annotated[str | None, typer.Option(help="Follow a moving camera: translation, or affine (turns, zooms).")] = None,
    exposure: Annotated[str | None, typer.Option(help="global: undo flicker and automatic exposure of the camera.")] = None,
    scene_cuts: Annotated[bool, typer.Option(help="Start anew where the video shows something else at once.")] = True,
    refresh: Annotated[
        str | None, typer.Option(metavar="N", help="Compute everything again every N frames, or at keyframes (of the video's codec).")
    ] = None,
    norm: Annotated[str, typer.Option(help="Over channels: rms, max or l2.")] = "rms",
    global_ops: Annotated[
        str, typer.Option(help="Squeeze-excite and other global gates: exact, or hold (until they moved by more than their own threshold).")
    ] = "exact",
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Input of the network. Default: the video's, in multiples of 32.")] = None,
    output: Output = None,
    report: Report = None,
    json: Json = None,
    compare: Annotated[str | None, typer.Option(help="dense: run the whole network on some frames too and compare.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="On about how many frames to compare.")] = 12,
    frames: Frames = None,
    start: Annotated[int, typer.Option(min=0, help="Frames to skip first.")] = 0,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Subtracted after scaling. Default: as the weights ask, else 0.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Divided by after that. Default: as the weights ask, else 1.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor on the pixels 0..255. Default: 1/255.")] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="The network wants blue first; --mean and --std then come in that order too.")] = False,
    task: Annotated[str, typer.Option(help="What the output means: auto, centerface, classify, map or none.")] = "auto",
    blur: Annotated[bool, typer.Option("--blur", help="Blur faces instead of framing them (task centerface).")] = False,
    view: Annotated[str, typer.Option(help="Picture of the video: both, frame (full size) or heat.")] = "both",
    backend: Backend = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="Compute in: float32, bfloat16 (half the state; `doctor` says whether it is fast here) ...")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Stream a video through a network, computing only what changed."""
    from sightline.cli import stream

    options = stream.StreamOptions(
        model=model, threshold=threshold, threshold_unit=threshold_unit, input_threshold=input_threshold, noise=noise, motion=motion,
        exposure=exposure, scene_cuts=scene_cuts, refresh=refresh, norm=norm, size=size, mean=mean, std=std, scale=scale, bgr=bgr,
        compare=compare, task=task, view=view, backend=backend, dtype=dtype,
        global_ops=global_ops, budget=budget, check=check, aoi=aoi or (),
    )  # fmt: skip
    try:
        job = stream.make_job(options, video)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    job.weights, job.thresholds, job.output, job.report, job.json = weights, thresholds, output, report, json
    job.samples, job.frames, job.start, job.blur, job.device, job.threads = samples, frames, start, blur, device, threads
    with plain_errors():
        interrupted = stream.run(job, quiet)
    _finish(interrupted)


@app.command(
    "focus", epilog="Example: sightline focus street.jpg -m torchvision:vgg16 --weights DEFAULT --box 120,200,360,520 --output-dir out"
)
def focus_command(
    source: Annotated[str, typer.Argument(metavar="IMAGE_OR_FOLDER", help="An image, or a folder of them.")],
    model: Annotated[str, typer.Option("--model", "-m", help="torchvision:NAME, timm:NAME, path.py:callable, file.pt2 or file.onnx.")],
    weights: Annotated[str | None, typer.Option(help="State dict or safetensors file, or the library's name for its weights.")] = None,
    box: Annotated[
        list[str] | None, typer.Option(metavar="Y0,X0,Y1,X1", help="Look in this box: top, left, bottom, right in pixels. May be repeated.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Look where this image, of any size, is not black.")] = None,
    brightness: Annotated[
        float | None, typer.Option(help="Look where the channels of an early layer add up to at least this; the table says what is usual.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="LAYER", help="That layer. Default: the first behind 5 % of the work.")] = None,
    boxes_from: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Look in the boxes that this detector finds (CenterFace, or as torchvision's).")
    ] = None,
    detector_weights: Annotated[str | None, typer.Option(help="As --weights, of the detector.")] = None,
    detector_size: Annotated[str | None, typer.Option(metavar="WxH", help="Its input. Default: the image's, in multiples of 32.")] = None,
    score: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Least score of its boxes. Default: 0.5.")] = None,
    margin: Annotated[int | None, typer.Option(min=0, help="Pixels to add around them. Default: 0.")] = None,
    mode: Annotated[str, typer.Option(help="zero (cheapest, approximate) or exact (as the dense network inside the area).")] = "zero",
    outside: Annotated[str, typer.Option(help="Outputs outside the area: zero, or hold (those of the image before).")] = "zero",
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Input of the network. Default: the image's, in multiples of 32.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Folder for pictures, report.html and report.json; made if not there.")] = None,
    report: Report = None,
    json: Json = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs per image, focused and dense in turns.")] = 3,
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many of a folder.")] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Subtracted after scaling. Default: as the weights ask, else 0.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Divided by after that. Default: as the weights ask, else 1.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor on the pixels 0..255. Default: 1/255.")] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="The network wants blue first; --mean and --std then come in that order too.")] = False,
    task: Annotated[str, typer.Option(help="What the output means: auto, centerface, classify, map or none.")] = "auto",
    backend: Backend = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Run images through a network only inside an area, and compare with the dense network."""
    from sightline.cli import focus

    options = focus.FocusOptions(
        model=model, box=box or (), mask=mask, brightness=brightness, split=split, boxes_from=boxes_from,
        detector_weights=detector_weights, detector_size=detector_size, score=score, margin=margin, mode=mode, outside=outside,
        size=size, mean=mean, std=std, scale=scale, bgr=bgr, task=task, backend=backend,
    )  # fmt: skip
    try:
        job = focus.make_job(options, source)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    job.weights, job.output_dir, job.report, job.json = weights, output_dir, report, json
    job.runs, job.images, job.device, job.threads = runs, images, device, threads
    with plain_errors():
        interrupted = focus.run(job, quiet)
    _finish(interrupted)


@app.command("tune", epilog="Example: sightline tune gate.mp4 --model torchvision:resnet50 --weights DEFAULT --output thresholds.json")
def tune_command(
    video: Video,
    model: Annotated[str, typer.Option("--model", "-m", help="torchvision:NAME, timm:NAME, path.py:callable, file.pt2 or file.onnx.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Thresholds file to write, for `sightline stream --thresholds`.")],
    weights: Annotated[str | None, typer.Option(help="State dict or safetensors file, or the library's name for its weights.")] = None,
    budget: Annotated[float, typer.Option(help="Largest error on held-back frames, in units of --metric.")] = 1.0,
    metric: Annotated[str, typer.Option(help="noise (of one grey level), relative, top1, iou, detection_f1 or keypoints.")] = "noise",
    method: Annotated[str, typer.Option(help="knapsack, or greedy (front to back).")] = "knapsack",
    objective: Annotated[str, typer.Option(help="What is saved: macs or seconds (measured).")] = "macs",
    noise: Annotated[str, typer.Option(help="Input filter: search, none, vote or block.")] = "search",
    frames: Annotated[int, typer.Option(min=1, help="Frames to tune on and to verify on, together.")] = 40,
    start: Annotated[int, typer.Option(min=0, help="Frames to skip first.")] = 0,
    holdout: Annotated[float, typer.Option(help="Share of the frames, at the end, that is only verified on.")] = 0.25,
    checkpoint: Annotated[Path | None, typer.Option(help="Where finished passes are kept. Default: beside --output, until done.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Picture of saving against error to write (.png, .svg, .pdf).")] = None,
    json: Json = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Input of the network. Default: the video's, in multiples of 32.")] = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="As for stream.")] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="As for stream.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor on the pixels 0..255. Default: 1/255.")] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="The network wants blue first; --mean and --std then come in that order too.")] = False,
    backend: Backend = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Find thresholds that save most while the error stays within a budget."""
    from sightline.cli import stream, tune

    options = stream.StreamOptions(model=model, weights=weights, size=size, mean=mean, std=std, scale=scale, bgr=bgr, backend=backend)
    try:
        job = tune.make_job(
            options, video, output, budget=budget, metric=metric, method=method, objective=objective, noise=noise, frames=frames,
            start=start, holdout=holdout, checkpoint=checkpoint, picture=picture, json=json, device=device, threads=threads,
        )  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with plain_errors():
        interrupted = tune.run(job, quiet)
    _finish(interrupted)


@app.command("demo", epilog="Example: sightline demo --output-dir out")
def demo_command(
    output_dir: Annotated[Path, typer.Option(help="Folder for the video and the report; made if it is not there.")] = Path("demo-output"),
    frames: Frames = None,
    backend: Backend = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Find every face on a fixed camera and blur it, with a network and a clip from two packages."""
    from sightline.cli import demo, stream

    with plain_errors():
        job = demo.make_job(output_dir)
        job.frames, job.threads, job.stream["backend"] = frames, threads, backend
        interrupted = stream.run(job, quiet)
    _finish(interrupted)


@app.command(
    "fields",
    epilog="Example: sightline fields torchvision:resnet18 --res 32 --html resnet18.html --max-unproductive 0 --max-wasted-macs 10%",
)
def fields_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="torchvision:NAME, timm:NAME, path.py:callable, file.pt2 or file.onnx.")],
    res: Annotated[
        str | None, typer.Option(metavar="32|HxW", help="Input resolution to judge at, height first. Default: as captured.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="As for stream; only --effective looks at them.")] = None,
    input_shape: Annotated[
        str | None, typer.Option(metavar="NxCxHxW", help="Input to capture with. Default: the model's own, or 1x3x224x224.")
    ] = None,
    ignore_gates: Annotated[bool, typer.Option("--ignore-gates", help="Leave squeeze-excite gates out of the fields.")] = False,
    html: Annotated[Path | None, typer.Option(help="Interactive page to write, one self-contained file.")] = None,
    image: Annotated[Path | None, typer.Option(help="Picture for --html and --effective to draw on.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output instead of the table.")] = False,
    dot: Annotated[bool, typer.Option("--dot", help="Graphviz on standard output instead of the table.")] = False,
    svg: Annotated[bool, typer.Option("--svg", help="A drawing on standard output instead of the table.")] = False,
    effective: Annotated[
        str | None, typer.Option(metavar="LAYER", help="Measure the effective field of this layer, on --image or on noise.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Picture of the effective field to write.")] = None,
    max_unproductive: Annotated[int | None, typer.Option(min=0, help="Leave with 1 if more layers are unproductive.")] = None,
    max_critical: Annotated[int | None, typer.Option(min=0, help="Leave with 1 if more layers are critical.")] = None,
    max_unknown: Annotated[int | None, typer.Option(min=0, help="Leave with 1 if more layers cannot be judged.")] = None,
    max_wasted_macs: Annotated[str | None, typer.Option(metavar="10%", help="Leave with 1 if unproductive layers take more.")] = None,
    max_wasted_params: Annotated[str | None, typer.Option(metavar="10%", help="Leave with 1 if unproductive layers hold more.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No table.")] = False,
) -> None:
    """Show what every layer of a network can see, and which layers do not pay at a resolution."""
    from sightline.cli import fields

    options = fields.FieldsOptions(
        model=model, weights=weights, res=res, input_shape=input_shape, ignore_gates=ignore_gates, html=html, image=image, json=json,
        dot=dot, svg=svg, effective=effective, png=png, max_unproductive=max_unproductive, max_critical=max_critical,
        max_unknown=max_unknown, max_wasted_macs=max_wasted_macs, max_wasted_params=max_wasted_params, quiet=quiet,
    )  # fmt: skip
    try:
        request = fields.make_request(options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with plain_errors():
        kept = fields.run(request)
    if not kept:
        raise typer.Exit(1)


@app.command("doctor", epilog="Example: sightline doctor --json")
def doctor_command(
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output instead of tables.")] = False,
) -> None:
    """Show versions, processor features, and which executors are usable."""
    from sightline.cli import doctor

    with plain_errors():
        doctor.show(doctor.examine(), json)


def _finish(interrupted: bool) -> None:
    if interrupted:
        raise typer.Exit(_INTERRUPTED)
