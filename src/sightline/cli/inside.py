"""An area as told on the command line, and what a job does with one: outputs compared inside it, pictures drawn with it.

What belongs here: what `focus` and `stream` share. What does not: areas that a network finds (`sightline.cli.focus_area`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sightline.area import AreaOfInterest
from sightline.cli.pictures import read_mask
from sightline.errors import ShapeError
from sightline.media import Image
from sightline.tasks import Task
from sightline.tasks.drawing import spotlight
from sightline.tasks.generic import Map, MapTask

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class AreaChoice:
    """Where to look, as told on the command line; exactly one of the first four is set.

    Attributes:
        boxes: (y0, x0, y1, x1) in pixels of the picture.
        mask: image file, of any size.
        brightness: threshold of an fCNN; `split` is the layer whose output is compared with it, None: chosen.
        detector: model whose boxes are the area, with its `detector_weights` and the (width, height) of its input, `detector_size`;
            boxes of at least `score` count, larger by `margin` pixels.
    """

    boxes: tuple[Box, ...] = ()
    mask: Path | None = None
    brightness: float | None = None
    detector: str | None = None
    split: str | None = None
    detector_weights: str | None = None
    detector_size: tuple[int, int] | None = None
    score: float = 0.5
    margin: int = 0

    @property
    def text(self) -> str:
        """The choice in a few words."""
        if self.boxes:
            return f"{'box' if len(self.boxes) == 1 else 'boxes'} {' and '.join(','.join(map(str, box)) for box in self.boxes)}"
        if self.mask is not None:
            return f"mask {self.mask.name}"
        if self.detector is not None:
            return f"boxes from {self.detector.replace(chr(92), '/').rpartition('/')[2]}, score of at least {self.score:g}"
        return f"brightness of at least {self.brightness:g}"


def parse_box(text: str, option: str = "--box") -> Box:
    """Read ``y0,x0,y1,x1``: whole pixels, the end not included.

    >>> parse_box("10,20,110,220")
    (10, 20, 110, 220)
    """
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 4:
        raise ValueError(f"{option}: expected y0,x0,y1,x1 in whole pixels, for example 100,200,300,500; got {text!r}")
    y0, x0, y1, x1 = values
    if y1 <= y0 or x1 <= x0:
        raise ValueError(f"{option}: y1 must be larger than y0 and x1 than x0 (top, left, bottom, right); got {text!r}")
    return y0, x0, y1, x1


def parse_area(texts: Sequence[str], option: str) -> AreaChoice:
    """Read boxes ``y0,x0,y1,x1``, or the path of one mask.

    Raises:
        ValueError: it is neither.

    >>> parse_area(["10,20,110,220"], "--aoi").text
    'box 10,20,110,220'
    """
    boxes = [text for text in texts if re.fullmatch(r"[-+0-9., ]*", text)]
    if boxes and len(boxes) == len(texts):
        return AreaChoice(boxes=tuple(parse_box(text, option) for text in texts))
    if len(texts) == 1:
        return AreaChoice(mask=Path(texts[0]))
    raise ValueError(f"{option}: expected boxes y0,x0,y1,x1 or one image of a mask; got {' and '.join(texts)}")


def area_of(choice: AreaChoice, size: tuple[int, int], name: str, notes: list[str], option: str) -> AreaOfInterest:
    """The area that boxes or a mask name.

    Args:
        choice: boxes or a mask.
        size: (width, height) of the picture that boxes are in pixels of.
        name: of the picture, for messages.
        notes: gets a sentence about what was cut off.
        option: for messages.

    Raises:
        ShapeError: a box lies outside.
        MediaError: the mask cannot be read.
    """
    if choice.mask is not None:
        return AreaOfInterest(torch.from_numpy(read_mask(choice.mask, option)))
    return area_of_boxes(choice.boxes, size, name, notes, option)


def area_of_boxes(boxes: Sequence[Box], size: tuple[int, int], name: str, notes: list[str], option: str = "--box") -> AreaOfInterest:
    """The area of boxes in a picture of this (width, height).

    Raises:
        ShapeError: one of them lies outside.
    """
    width, height = size
    for y0, x0, y1, x1 in boxes:
        if y0 >= height or x0 >= width or y1 <= 0 or x1 <= 0:
            raise ShapeError(
                f"{option}: {y0},{x0},{y1},{x1} lies outside {name!r}, which is {height} high and {width} wide; "
                "give y0,x0,y1,x1 in its pixels"
            )
        note = f"the box {y0},{x0},{y1},{x1} reaches beyond a picture {height} high and {width} wide; that part was cut off"
        if (y0 < 0 or x0 < 0 or y1 > height or x1 > width) and note not in notes:
            notes.append(note)
    return AreaOfInterest.from_boxes(boxes, (height, width))


def inside_of(area: AreaOfInterest | None, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Of every map among these outputs, what lies inside the area; anything else has no inside and stays whole."""
    if area is None:
        return list(tensors)
    masks = [_inside(area, tensor) for tensor in tensors]
    return [tensor if mask is None else tensor[:, :, mask] for tensor, mask in zip(tensors, masks, strict=True)]


def agreement_inside(
    task: Task, area: AreaOfInterest, expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor], size: tuple[int, int]
) -> dict[str, float]:
    """What the task counts when only the inside of the area is looked at.

    Args:
        task: of the network.
        area: where to look.
        expected: the dense outputs.
        got: those to judge.
        size: (width, height) of the network's input.
    """
    wanted, found = task.read(expected, size), task.read(got, size)
    if isinstance(wanted, Map) and isinstance(found, Map):
        mask = area.sites(*wanted.values.shape[:2]).mask[0].cpu().numpy()
        wanted, found = replace(wanted, values=wanted.values[mask]), replace(found, values=found.values[mask])
    else:  # what the task finds in the area: nothing stands outside for either
        blanked = [[_blanked(tensor, _inside(area, tensor)) for tensor in tensors] for tensors in (expected, got)]
        wanted, found = task.read(blanked[0], size), task.read(blanked[1], size)
    return task.agreement(wanted, found)


def draw_inside(task: Task, mask: npt.NDArray[np.bool_], canvas: Image, finding: Any) -> Image:
    """A picture with what was found, and dim outside the area."""
    if isinstance(task, MapTask):
        return spotlight(canvas, mask, task.draw(canvas, finding))
    return task.draw(spotlight(canvas, mask), finding)


def _inside(area: AreaOfInterest, tensor: torch.Tensor) -> torch.Tensor | None:
    """The area on the grid of an output map (1, c, h, w), bool (h, w); None for anything else, which has no inside."""
    if tensor.dim() != 4 or tensor.shape[0] != 1 or tensor.shape[2] * tensor.shape[3] <= 1:
        return None
    return area.sites(tensor.shape[2], tensor.shape[3]).mask[0].to(tensor.device)


def _blanked(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return tensor if mask is None else torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
