"""Maps of any network: segmentations, single-channel maps, pictures, feature maps.

The first output with four dimensions is read as

* a **picture**, if it has three channels and is at least as large as the input (super-resolution, restoration);
* a **value map**, if it has one channel (heat, depth, saliency);
* a **segmentation**, if it has 2 to 256 channels and at least an eighth of the input's resolution: the strongest channel wins;
* **features** otherwise: the root mean square over channels is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sightline.media import Image
from sightline.tasks import Measure
from sightline.tasks.drawing import blend, class_colours, colour_map


@dataclass
class Map:
    """A map of one frame.

    Attributes:
        kind: "picture", "values", "classes" or "features".
        values: (h, w) float32, (h, w) int64 class numbers, or (h, w, 3) uint8.
        channels: channels of the output that it came from.
    """

    kind: str
    values: npt.NDArray[Any]
    channels: int


def is_map(outputs: Sequence[torch.Tensor]) -> bool:
    """Whether one of the outputs is a map (1, c, h, w) of more than one position."""
    return any(_usable(tensor) for tensor in outputs)


def _usable(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 4 and tensor.shape[0] == 1 and tensor.shape[1] >= 1 and tensor.shape[2] * tensor.shape[3] > 1


class MapTask:
    """Show the output map over the frame."""

    name = "map"

    def __init__(self) -> None:
        self._range: tuple[float, float] | None = None
        self._picture_scale: float | None = None

    def read(self, outputs: Sequence[torch.Tensor], size: tuple[int, int]) -> Map:
        """The first map among the outputs, see the module's list."""
        tensor = next(tensor for tensor in outputs if _usable(tensor))[0].detach().to("cpu", torch.float32)
        channels, height, width = tensor.shape
        if channels == 3 and height >= size[1] and width >= size[0]:
            if self._picture_scale is None:  # decided once, or a dark frame of 0..255 would flash
                self._picture_scale = 255.0 if float(tensor.abs().max()) <= 4.0 else 1.0
            pixels = (tensor * self._picture_scale).round().clamp(0, 255).to(torch.uint8)
            return Map("picture", pixels.permute(1, 2, 0).contiguous().numpy(), channels)
        if channels == 1:
            return Map("values", tensor[0].numpy(), channels)
        if channels <= 256 and height * 8 >= size[1]:
            return Map("classes", tensor.argmax(0).numpy(), channels)
        return Map("features", tensor.square().mean(0).sqrt().numpy(), channels)

    def draw(self, image: Image, finding: Map) -> Image:
        """The map over the frame; a picture instead of it."""
        if finding.kind == "picture":
            return blend(image, finding.values, 1.0)
        if finding.kind == "classes":
            return blend(image, class_colours(finding.channels)[finding.values], 0.5, finding.values > 0)
        if self._range is None:  # kept from the first frame on, so that colours mean the same all along
            self._range = _value_range(finding.values)
        return blend(image, colour_map(finding.values, *self._range), 0.55)

    def caption(self, finding: Map) -> str:
        """What is shown."""
        height, width = finding.values.shape[:2]
        words = {"picture": "output picture", "values": "output map", "classes": "strongest class", "features": "feature strength"}
        return f"{words[finding.kind]} {width}x{height}"

    def agreement(self, dense: Map, streamed: Map) -> dict[str, float]:
        """Share of equal classes and their mean intersection over union; for values, the same of what lies above the middle."""
        if dense.kind == "picture":
            error = np.mean(np.square(dense.values.astype(np.float64) - streamed.values))
            return {"psnr": min(10 * math.log10(255.0**2 / error), 99.0) if error else 99.0}
        first, second = dense.values, streamed.values
        if dense.kind != "classes":
            low, high = _value_range(first)
            middle = 0.5 if low >= 0.0 and high <= 1.0 else (low + high) / 2
            first, second = (first > middle).astype(np.int64), (second > middle).astype(np.int64)
        masks = [(first == label, second == label) for label in np.unique(first)]
        ratios = [np.sum(one & other) / np.sum(one | other) for one, other in masks]
        return {"equal": float(np.mean(first == second)), "iou": float(np.mean(ratios))}

    def measures(self, agreements: Sequence[dict[str, float]]) -> list[Measure]:
        """Means over the frames."""
        names = {"equal": "positions with the same class", "iou": "mean intersection over union of the classes"}
        found: list[Measure] = []
        for key, label in names.items():
            values = [entry[key] for entry in agreements if key in entry]
            if values:
                found.append(Measure(f"map_{key}", label, float(np.mean(values))))
        ratios = [entry["psnr"] for entry in agreements if "psnr" in entry]
        if ratios:
            found.append(Measure("psnr_db", "PSNR against dense in dB (99 = equal)", float(np.mean(ratios)), "number"))
        return found


def _value_range(values: npt.NDArray[Any]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
