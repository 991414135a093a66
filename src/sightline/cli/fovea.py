"""``sightline fovea``: the group of commands about foveated vision, and the options of ``show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli import fovea_train

group = typer.Typer(help="Foveated vision: look at what a retina sees.", no_args_is_help=True, rich_markup_mode=None)
"""The commands behind ``sightline fovea``."""


@group.command("show", epilog="Example: sightline fovea show street.jpg --fixation 0.4,0.3 --fixation 0.6,0.7 --res 64 --output pictures")
def show_command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture to look at.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures; made if it is not there.")],
    fixation: Annotated[
        list[str] | None, typer.Option(metavar="ROW,COL", help="Where to look, from 0 to 1 of height and width. May be repeated.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Who decides instead: center, random, near_center, inhibition or saliency. Default: center.")
    ] = None,
    fixations: Annotated[int, typer.Option(min=1, max=20, help="How often the policy looks.")] = 4,
    fov: Annotated[float, typer.Option(help="Field of view in degrees.")] = 16.0,
    cmf_a: Annotated[float, typer.Option(help="Degrees up to which the fovea reaches; small: strong foveation.")] = 0.5,
    res: Annotated[int, typer.Option(min=4, max=256, help="Side of the square image with as many pixels as there are samples.")] = 64,
    style: Annotated[str, typer.Option(help="Points: isotropic, logpolar, warped_cartesian or uniform.")] = "isotropic",
    sampler: Annotated[str, typer.Option(help="nearest, bilinear, pooling or gaussian_pooling.")] = "nearest",
    field_size: Annotated[
        float | None, typer.Option(metavar="PIXELS", help="Of the picture, what the field of view covers. Default: its shorter edge.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of policies that draw.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output instead of the table.")] = False,
) -> None:
    """Draw a sensor, what it sees of a picture at each fixation, and how far the layers of a network on it see."""
    from sightline.cli import fovea_show
    from sightline.cli.app import plain_errors

    try:
        job = fovea_show.make_job(
            image, output, fixation=fixation or (), policy=policy, fixations=fixations, fov=fov, cmf_a=cmf_a, res=res, style=style,
            sampler=sampler, field_size=field_size, seed=seed,
        )  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with plain_errors():
        fovea_show.run(job, json)


group.command("train", epilog=fovea_train.EXAMPLE)(fovea_train.train)
