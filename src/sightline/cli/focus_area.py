"""Where to look in each picture of a focus job: boxes, a mask, or what a detector finds.

What belongs here: from an option to an area, with the sentence about what is wrong with it. What does not: areas that a network finds by
itself (`sightline.cli.focus_split`), and running networks on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.area import AreaOfInterest
from sightline.cli.job import Preprocess, first_line, rounded
from sightline.cli.pictures import Picture, read_mask
from sightline.errors import CaptureError, ShapeError, SightlineError
from sightline.models import load_model
from sightline.tasks import output_tensors
from sightline.tasks.centerface import decode, is_centerface

Box = tuple[int, int, int, int]
Finder = Callable[[Picture], AreaOfInterest]


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


def make_finder(choice: AreaChoice, device: torch.device, notes: list[str]) -> Finder:
    """A function from a picture to its area.

    Args:
        choice: anything but brightness.
        device: of a detector.
        notes: gets a sentence about what was cut off.

    Raises:
        MediaError: the mask cannot be read.
        CaptureError: the detector cannot be loaded.
    """
    if choice.boxes:
        return lambda picture: _from_boxes(choice.boxes, picture, notes)
    if choice.mask is not None:
        area = AreaOfInterest(torch.from_numpy(read_mask(choice.mask)))
        return lambda picture: area
    assert choice.detector is not None
    return Detector(choice, device)


def _from_boxes(boxes: Sequence[Box], picture: Picture, notes: list[str]) -> AreaOfInterest:
    width, height = picture.size
    for y0, x0, y1, x1 in boxes:
        if y0 >= height or x0 >= width or y1 <= 0 or x1 <= 0:
            raise ShapeError(
                f"--box: {y0},{x0},{y1},{x1} lies outside {picture.name!r}, which is {height} high and {width} wide; "
                "give y0,x0,y1,x1 in its pixels"
            )
        note = f"the box {y0},{x0},{y1},{x1} reaches beyond a picture {height} high and {width} wide; that part was cut off"
        if (y0 < 0 or x0 < 0 or y1 > height or x1 > width) and note not in notes:
            notes.append(note)
    return AreaOfInterest.from_boxes(boxes, (height, width))


class Detector:
    """Boxes of a detector as an area: CenterFace's four maps, or boxes and scores as torchvision's detectors return them.

    Args:
        choice: the detector, its weights, the least score and the margin.
        device: to run on.

    Raises:
        CaptureError: it cannot be loaded.
    """

    def __init__(self, choice: AreaChoice, device: torch.device) -> None:
        assert choice.detector is not None
        try:
            self._loaded = load_model(choice.detector, choice.detector_weights)
        except SightlineError as error:
            raise CaptureError(f"--boxes-from: {str(error).removeprefix('model: ')}") from error
        self._choice, self._device = choice, device
        if isinstance(self._loaded.model, torch.nn.Module):
            self._loaded.model.to(device)
        self._run: Callable[[torch.Tensor], Any] | None = None
        self._faces: bool | None = None

    def __call__(self, picture: Picture) -> AreaOfInterest:
        """The area of one picture; empty where nothing is found.

        Raises:
            CaptureError: the detector does not run on it, or its output cannot be read.
        """
        size = self._choice.detector_size or self._loaded.size or rounded(picture.size)
        width, height = picture.size
        if self._faces is None:
            self._faces = is_centerface(self._outputs(picture, size, 1.0), size)
        if self._faces:  # CenterFace takes 0..255, whoever exported it
            faces = decode(self._outputs(picture, size, 1.0), size, self._choice.score)
            found = [(x0 * width, y0 * height, x1 * width, y1 * height) for y0, x0, y1, x1 in faces.box_list()]
            boxes, scores = torch.tensor(found, dtype=torch.float64).reshape(-1, 4), None
        else:
            table = _detections(self._raw(picture, size, 1.0 / 255.0))
            if table is None:
                raise CaptureError(
                    f"--boxes-from: {self._loaded.name} returns no boxes that can be read; use CenterFace (file.onnx), or a network that "
                    "returns a dict with boxes (k, 4) as x0, y0, x1, y1 and scores (k,), as torchvision's detectors do"
                )
            scale = torch.tensor([width / size[0], height / size[1]] * 2, dtype=torch.float64)
            boxes, scores = table["boxes"].detach().cpu().double() * scale, table.get("scores")
        return AreaOfInterest.from_detections(boxes, scores, size=(height, width), threshold=self._choice.score, margin=self._choice.margin)

    def _outputs(self, picture: Picture, size: tuple[int, int], scale: float) -> list[torch.Tensor]:
        return output_tensors(self._raw(picture, size, scale))

    def _raw(self, picture: Picture, size: tuple[int, int], scale: float) -> Any:
        frame = Preprocess(scale).completed(self._loaded.mean, self._loaded.std)(picture.rgb(size), self._device)
        try:
            with torch.inference_mode():
                return self._runner()(frame)
        except SightlineError:
            raise
        except Exception as error:
            raise CaptureError(
                f"--boxes-from: {self._loaded.name} does not run on a picture (1, 3, {size[1]}, {size[0]}): {first_line(error)[:160]}; "
                "try another --detector-size"
            ) from error

    def _runner(self) -> Callable[[torch.Tensor], Any]:
        if self._run is None:
            model = self._loaded.dense or self._loaded.model
            if callable(model):
                self._run = model
            else:
                from sightline.cli.job import DenseNetwork

                network = DenseNetwork(self._loaded)
                self._run = lambda frame: network(frame)[0]
        return self._run


def _detections(output: Any) -> dict[str, torch.Tensor] | None:
    """The table of boxes in what a detector returned: a dict, or a list of them for the pictures of a batch."""
    table = output[0] if isinstance(output, list | tuple) and len(output) == 1 else output
    boxes = table.get("boxes") if isinstance(table, dict) else None
    return table if isinstance(boxes, torch.Tensor) and boxes.dim() == 2 and boxes.shape[1] == 4 else None
