"""``sightline fovea show``: options checked, a picture looked at, pictures written, numbers printed."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sightline.cli.console import print_files, print_table
from sightline.cli.pictures import read_picture
from sightline.errors import MediaError

if TYPE_CHECKING:
    from sightline.fovea.networks import KNNAlexNet
    from sightline.fovea.saccades import Glimpses, SaccadePolicy
    from sightline.fovea.sensor import SensorGrid

POLICIES = ("center", "random", "near_center", "inhibition", "saliency")
_STYLES = ("isotropic", "logpolar", "warped_cartesian", "uniform")
_SAMPLERS = ("nearest", "bilinear", "pooling", "gaussian_pooling")


@dataclass(frozen=True)
class ShowJob:
    """What ``sightline fovea show`` is told; see its ``--help``. `fixations`: (row, col) each; empty where the policy decides."""

    image: Path
    output: Path
    fixations: tuple[tuple[float, float], ...]
    policy: str
    count: int
    fov: float
    cmf_a: float
    res: int
    style: str
    sampler: str
    field_size: float | None
    seed: int


def make_job(
    image: Path, output: Path, *, fixation: Sequence[str], policy: str | None, fixations: int, fov: float, cmf_a: float, res: int,
    style: str, sampler: str, field_size: float | None, seed: int,
) -> ShowJob:  # fmt: skip
    """Checks options that have a fixed form.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    for name, value, allowed in (("policy", policy, POLICIES), ("style", style, _STYLES), ("sampler", sampler, _SAMPLERS)):
        if value is not None and value not in allowed:
            raise ValueError(f"--{name}: expected one of {', '.join(allowed)}; got {value!r}")
    for name, number in (("fov", fov), ("cmf-a", cmf_a), ("field-size", field_size)):
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"--{name}: expected a number above 0; got {number:g}")
    if fov > 180:
        raise ValueError(f"--fov: expected at most 180 degrees; got {fov:g}")
    if fixation and policy is not None:
        raise ValueError("--fixation and --policy: give one of them; a policy decides where to look by itself")
    places = tuple(_parse_fixation(text) for text in fixation)
    return ShowJob(image, output, places, policy or "center", fixations, fov, cmf_a, res, style, sampler, field_size, seed)


def _parse_fixation(text: str) -> tuple[float, float]:
    parts = text.split(",")
    try:
        row, col = (float(part) for part in parts)
    except ValueError:
        raise ValueError(f"--fixation: expected ROW,COL, two numbers from 0 to 1 like 0.5,0.25; got {text!r}") from None
    if not (0 <= row <= 1 and 0 <= col <= 1):
        raise ValueError(f"--fixation: expected a place in the picture, from 0 to 1; got {text!r}. Divide pixels by its height and width.")
    return row, col


def run(job: ShowJob, json: bool) -> None:
    """Looks at the picture, writes pictures, and prints what was seen."""
    from sightline.fovea import pictures
    from sightline.fovea.sensor import SensorGrid

    if not job.image.is_file():
        raise MediaError(f"image: there is no file '{job.image}'; check the path.")
    image = torch.from_numpy(read_picture(job.image).rgb()).permute(2, 0, 1)
    sensor = SensorGrid.matched(job.fov, job.cmf_a, job.res, style=job.style)
    glimpses = _look(job, image, sensor)
    fixations, sizes, samples = glimpses.fixations[0], glimpses.sizes[0], glimpses.samples[0]
    try:
        job.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"--output: the folder '{job.output}' cannot be made ({error.strerror}); choose another one.") from error
    drawn: dict[str, Any] = {
        "sensor": pictures.draw_sensor(sensor),
        "samples": pictures.draw_samples(image, samples, sensor, fixations, sizes),
        "fixations": pictures.draw_fixations(image, fixations, sizes, samples=samples, sensor=sensor),
    }
    if sensor.cortical is not None and sensor.cortical.shape[1] == 3:
        drawn["surface"] = pictures.draw_manifold(sensor)
    network = _network(job)
    chain = pictures.layer_chain(network)
    coords = [sensor, *(layer.out_coords for layer in chain.values())]
    drawn["layers"] = pictures.draw_grids(coords, ["samples", *(_short(name) for name in chain)])
    middle = list(chain)[len(chain) // 2]
    unit = pictures.nearest_unit(network, middle, (job.fov / 6, job.fov / 12))
    place, size = fixations[0].tolist(), sizes[0].tolist()
    drawn["receptive_field"] = pictures.draw_receptive_field(network, middle, unit, image=image, fixation=place, size=size)
    drawn["rf_diameters"] = pictures.draw_rf_diameters(network)
    files = {name: job.output / f"{name}.png" for name in drawn}
    for name, picture in drawn.items():
        pictures.save(picture, files[name])
    numbers = _numbers(job, image, sensor, glimpses, {_short(name): len(layer.out_coords) for name, layer in chain.items()}, files)
    if json:
        print(json_module.dumps(numbers, indent=2))
        return
    _print(numbers)
    print_files((name.replace("_", " "), path) for name, path in files.items())


def _look(job: ShowJob, image: torch.Tensor, sensor: SensorGrid) -> Glimpses:
    from sightline.fovea.retina import RetinalTransform
    from sightline.fovea.saccades import InhibitedSaccades, NoSaccades, RandomSaccades, SaliencySaccades

    size = job.field_size or float(min(image.shape[1:]))
    retina = RetinalTransform(sensor, sampler=job.sampler, fixation_size=size)
    makers: dict[str, SaccadePolicy] = {
        "center": NoSaccades(retina),
        "random": RandomSaccades(retina, near_center=0.5),
        "near_center": RandomSaccades(retina, near_center=0.25),
        "inhibition": InhibitedSaccades(retina),
        "saliency": SaliencySaccades(retina, margin=0.1),  # half of what is seen from a border is not there
    }
    policy = makers[job.policy].eval()
    given = torch.tensor([job.fixations]) if job.fixations else None
    count = len(job.fixations) or (1 if job.policy == "center" else job.count)
    generator = torch.Generator().manual_seed(job.seed)
    with torch.no_grad():
        seen: Glimpses = policy(image[None], n_fixations=count, fixations=given, fixation_size=size, generator=generator)
    return seen


def _network(job: ShowJob) -> KNNAlexNet:
    """Layers on this sensor; only their tables are looked at."""
    from sightline.fovea.networks import KNNAlexNet

    convolutions = [(121, 2), (25, 1), (9, 1)] if job.res >= 32 else [(9, 1), (9, 1)]
    return KNNAlexNet(
        job.res, 1, [1] * len(convolutions), [stride for _, stride in convolutions], [0, 1], [k for k, _ in convolutions],
        auto_match_cart_resources=1, style=job.style, fov=job.fov, cmf_a=job.cmf_a, sample_cortex=job.style != "uniform",
    )  # fmt: skip


def _short(name: str) -> str:
    return name.removeprefix("layers.")


def _numbers(
    job: ShowJob, image: torch.Tensor, sensor: SensorGrid, seen: Glimpses, layers: dict[str, int], files: dict[str, Path]
) -> dict[str, Any]:
    from sightline.fovea.pictures import points_on_image

    height, width = image.shape[1:]
    looks = []
    for fixation, size in zip(seen.fixations[0].tolist(), seen.sizes[0].tolist(), strict=True):
        places = points_on_image(sensor, (height, width), fixation, size)
        inside = (places >= 0).all(1) & (places[:, 0] < height) & (places[:, 1] < width)
        looks.append({"row": fixation[0], "col": fixation[1], "field_pixels": size, "points_inside": int(inside.sum())})
    return {
        "image": {"file": str(job.image), "height": height, "width": width},
        "sensor": {
            "style": sensor.style, "fov": sensor.fov, "cmf_a": sensor.cmf_a, "resolution": sensor.resolution, "points": len(sensor),
            "share_of_pixels": len(sensor) / (height * width),
        },
        "policy": "given" if job.fixations else job.policy,
        "fixations": looks,
        "layers": layers,
        "files": {name: str(path) for name, path in files.items()},
    }  # fmt: skip


def _print(numbers: dict[str, Any]) -> None:
    sensor, image = numbers["sensor"], numbers["image"]
    rows = [
        ("picture", f"{image['width']}x{image['height']}"),
        ("sensor", f"{sensor['style']}, {sensor['points']:,} points over {sensor['fov']:g} degrees, a = {sensor['cmf_a']:g}"),
        ("samples / pixels", f"{100 * sensor['share_of_pixels']:.1f} %"),
    ]
    for number, look in enumerate(numbers["fixations"], start=1):
        words = f"row {look['row']:.2f}, col {look['col']:.2f}; {look['points_inside']:,} points on the picture"
        rows.append((f"fixation {number}", words))
    rows.append(("points per layer", ", ".join(f"{name} {count}" for name, count in numbers["layers"].items())))
    print_table(f"Foveated view of {Path(image['file']).name}", rows)
