"""``sightline fields``: what every layer of a network can see, as a table, a page, a drawing or numbers; and a gate for CI."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.cli.console import tell, warn
from sightline.errors import CaptureError, SightlineError
from sightline.media import write_text
from sightline.models import LoadedModel, load_model, parse_spec

if TYPE_CHECKING:
    from sightline.fields import Diagnosis, Report
    from sightline.fields.effective import EffectiveField

_FORMS = ("json", "dot", "svg")
_NAMED = 12  # layers that a sentence of the gate lists


@dataclass
class FieldsOptions:
    """Options as they stand on the command line, before they are checked."""

    model: str
    weights: str | None = None
    res: str | None = None
    input_shape: str | None = None
    ignore_gates: bool = False
    html: Path | None = None
    image: Path | None = None
    json: bool = False
    dot: bool = False
    svg: bool = False
    effective: str | None = None
    png: Path | None = None
    max_unproductive: int | None = None
    max_critical: int | None = None
    max_unknown: int | None = None
    max_wasted_macs: str | None = None
    max_wasted_params: str | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Request:
    """What to do, checked.

    Attributes:
        options: as given.
        resolution: at which layers are judged; None: as captured.
        input_shape: to capture with; None: the model's own, or 1 x 3 x 224 x 224.
        shares: limits of "macs" and "params" that may be wasted, 0 to 1.
    """

    options: FieldsOptions
    resolution: int | tuple[int, ...] | None
    input_shape: tuple[int, ...] | None
    shares: dict[str, float]


def make_request(options: FieldsOptions) -> Request:
    """Check options that have a fixed form.

    Args:
        options: as given.

    Returns:
        What to do.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    parse_spec(options.model)
    chosen = [name for name in _FORMS if getattr(options, name)]
    if len(chosen) > 1:
        raise ValueError(f"--{chosen[1]}: it goes to standard output, and so does --{chosen[0]}; give one of them")
    if options.image is not None and options.html is None and options.effective is None:
        raise ValueError("--image: it is drawn on by --html or --effective; add one of them")
    if options.png is not None and options.effective is None:
        raise ValueError("--png: it takes the picture of --effective; add --effective LAYER")
    limits = {"macs": options.max_wasted_macs, "params": options.max_wasted_params}
    shares = {kind: parse_share(text, f"--max-wasted-{kind}") for kind, text in limits.items() if text is not None}
    return Request(
        options,
        None if options.res is None else parse_resolution(options.res),
        None if options.input_shape is None else parse_shape(options.input_shape),
        shares,
    )


def parse_resolution(text: str) -> int | tuple[int, ...]:
    """Read one size for all axes, or one per axis, height first.

    >>> parse_resolution("32"), parse_resolution("480x640")
    (32, (480, 640))
    """
    parts = text.lower().split("x")
    if not all(part.isdecimal() and 0 < int(part) < 1 << 20 for part in parts) or len(parts) > 3:
        raise ValueError(f"--res: expected a size or HEIGHTxWIDTH, for example 32 or 480x640; got {text!r}")
    sizes = tuple(map(int, parts))
    return sizes[0] if len(sizes) == 1 else sizes


def parse_shape(text: str) -> tuple[int, ...]:
    """Read the shape of an input.

    >>> parse_shape("1x3x224x224"), parse_shape("1,1,28,28")
    ((1, 3, 224, 224), (1, 1, 28, 28))
    """
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) < 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--input-shape: expected sizes (n, c, h, w) such as 1x3x224x224; got {text!r}")
    return tuple(map(int, parts))


def parse_share(text: str, option: str) -> float:
    """Read a share: per cent, or a number from 0 to 1.

    >>> parse_share("10%", "--max-wasted-macs"), parse_share("0.1", "--max-wasted-macs")
    (0.1, 0.1)
    """
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{option}: expected a share such as 10% or 0.1; got {text!r}")
    return value


def run(request: Request) -> bool:
    """Analyse the network, write what was asked for, and judge.

    Args:
        request: what to do.

    Returns:
        Whether all limits are kept.

    Raises:
        SightlineError: the network cannot be loaded or analysed, or a file not be written.
    """
    options = request.options
    loaded = load_model(options.model, options.weights)
    report = _analyse(loaded, request)
    diagnosis = report.diagnose(request.resolution)
    effective = None if options.effective is None else _effective(loaded, report, diagnosis, options)
    if options.html is not None:
        from sightline.fields import page

        write_text(options.html, page.render(report, request.resolution, image=options.image, name=loaded.name), "--html")
    _print(report, loaded, request, effective)
    return _gate(diagnosis, request)


def _analyse(loaded: LoadedModel, request: Request) -> Report:
    from sightline.fields import analyze
    from sightline.graph.ir import Graph

    shape = request.input_shape
    if shape is not None and isinstance(loaded.model, Graph):
        raise CaptureError(f"input_shape: {loaded.name} was captured with a shape of its own; leave --input-shape out")
    if shape is None and loaded.size is not None and not isinstance(loaded.model, Graph):
        shape = (1, 3, loaded.size[1], loaded.size[0])
    try:
        return analyze(loaded.model, shape, ignore_gates=request.options.ignore_gates)
    except SightlineError as error:
        if request.input_shape is not None:
            raise
        raise CaptureError(f"{str(error).rstrip('.')}; if it wants another input than 1x3x224x224, say so with --input-shape") from error


def _effective(loaded: LoadedModel, report: Report, diagnosis: Diagnosis, options: FieldsOptions) -> EffectiveField:
    from sightline.fields.effective import measure

    images, shape = None, (*report.input_shape[:2], *diagnosis.resolution)
    if options.image is not None:
        images = _as_input(loaded, options.image, diagnosis.resolution)
    result = measure(loaded.model, options.effective, images, input_shape=shape)
    if options.png is not None:
        result.to_png(options.png, options.image)
    return result


def _as_input(loaded: LoadedModel, path: Path, size: tuple[int, ...]) -> Any:
    """A picture as the network takes it: (1, 3, h, w), normalised."""
    import numpy as np
    import torch

    from sightline.fields.page import read_image

    if len(size) != 2:
        raise CaptureError(f"image: a picture has two axes, the input of {loaded.name} has {len(size)}; leave --image out")
    pixels = np.array(read_image(path).resize((size[1], size[0])), np.float32) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (loaded.mean, loaded.std))
    return ((torch.from_numpy(pixels).permute(2, 0, 1) - mean) / std)[None]


# -- output -----------------------------------------------------------------------------------------------------------------------


def _print(report: Report, loaded: LoadedModel, request: Request, effective: EffectiveField | None) -> None:
    from sightline.fields import svg

    options = request.options
    if options.json:
        document = report.to_dict(request.resolution) | {"name": loaded.name}
        print(json.dumps(document | ({} if effective is None else {"effective": effective.to_dict()}), allow_nan=False))
    elif options.dot:
        print(report.to_dot(request.resolution), end="")
    elif options.svg:
        print(svg.render(report, request.resolution, name=loaded.name), end="")
    elif not options.quiet:
        _table(report, loaded.name, request)
        if effective is not None:
            print(effective)
        for kind, path in (("page", options.html), ("picture", options.png)):
            if path is not None:
                print(f"{kind}: {path}")


def _table(report: Report, name: str, request: Request) -> None:
    from sightline.fields.export import rows, summary, table

    if not sys.stdout.isatty():  # full width, for files and other programs
        print(table(report, request.resolution))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = rows(report, request.resolution)
    shape = " x ".join(map(str, report.input_shape))
    drawn = Table(title=f"{name}, captured with {shape}", title_justify="left", row_styles=("", "dim"))
    for key in lines[0] if lines else ():
        drawn.add_column(key, justify="right" if key in {"field", "shortest", "stride", "start", "MACs", "parameters"} else "left")
    colours = {"unproductive": "red", "critical": "dark_orange", "partial": "yellow", "small_map": "magenta"}
    for line in lines:
        rules = line["at this size"].split()
        style = next((colour for rule, colour in colours.items() if rule in rules), "")
        drawn.add_row(*(Text(text, style=style) for text in line.values()))
    console = Console()
    console.print(drawn)
    console.print(summary(report, request.resolution), soft_wrap=True, highlight=False)


# -- the gate ---------------------------------------------------------------------------------------------------------------------


def _gate(diagnosis: Diagnosis, request: Request) -> bool:
    """Say on standard error which limits are broken, and by which layers."""
    options, size = request.options, " x ".join(map(str, diagnosis.resolution))
    unproductive = [verdict.layer for verdict in diagnosis.broken("unproductive")]
    counted = (
        ("unproductive", unproductive, options.max_unproductive),
        ("critical", [verdict.layer for verdict in diagnosis.broken("critical")], options.max_critical),
        ("unknown", list(diagnosis.undecided), options.max_unknown),
    )
    broken = [
        f"{len(layers)} {kind} {'layer' if len(layers) == 1 else 'layers'} at {size}, at most {limit} allowed: {_listed(layers)}"
        for kind, layers, limit in counted
        if limit is not None and len(layers) > limit
    ]
    wasted = {"macs": (diagnosis.wasted_macs, diagnosis.macs, "MACs"), "params": (diagnosis.wasted_params, diagnosis.params, "parameters")}
    for kind, limit in request.shares.items():
        part, whole, unit = wasted[kind]
        if whole and part / whole > limit:
            broken.append(f"{part / whole:.1%} of the {unit} wasted at {size}, at most {limit:.1%} allowed: by {_listed(unproductive)}")
    for sentence in broken:
        tell(sentence)
    limited = bool(request.shares) or any(limit is not None for _, _, limit in counted[:2])
    if limited and diagnosis.undecided and options.max_unknown is None:
        layers = list(diagnosis.undecided)
        warn([f"{len(layers)} layers could not be judged, because their fields are unknown: {_listed(layers)}"])
    return not broken


def _listed(layers: list[str]) -> str:
    more = len(layers) - _NAMED
    return ", ".join(layers[:_NAMED]) + (f" and {more} more" if more > 0 else "")
