"""Where to look in each picture of a focus job: boxes, a mask, or what a detector finds.

What belongs here: from an option to an area, with the sentence about what is wrong with it. What does not: areas that a network finds by
itself (`sightline.cli.focus_split`), and running networks on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sightline.area import AreaOfInterest
from sightline.cli.inside import AreaChoice, area_of_boxes
from sightline.cli.job import Preprocess, first_line, rounded
from sightline.cli.pictures import Picture, read_mask
from sightline.errors import CaptureError, SightlineError
from sightline.models import load_model
from sightline.tasks import output_tensors
from sightline.tasks.centerface import decode, is_centerface

Finder = Callable[[Picture], AreaOfInterest]


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
        return lambda picture: area_of_boxes(choice.boxes, picture.size, picture.name, notes)
    if choice.mask is not None:
        area = AreaOfInterest(torch.from_numpy(read_mask(choice.mask)))
        return lambda picture: area
    assert choice.detector is not None
    return Detector(choice, device)


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
