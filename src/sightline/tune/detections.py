"""Boxes out of the output of a detector, in the few forms that detectors return.

What belongs here: telling the form and reading it. What does not: comparing two findings (`metrics`).

=================  =======================================================================================================
torchvision        a list of dicts with "boxes" (k, 4), "scores" (k,) and "labels" (k,), one per picture
CenterFace         heat, size, offset, landmarks, see `sightline.tasks.centerface`
SSD                probabilities (n, k, classes >= 2), the first of which is the background, and boxes (n, k, 4), decoded
UltraLight         the same as logits (n, k, 2) and offsets (n, k, 4) from its anchors, which the number k and the frame's size tell
FastestDet         one map (n, 5 + classes, h, w): objectness, four numbers of the box, class probabilities
=================  =======================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]
SCORE = 0.5
OVERLAP = 0.45
_COCO_CLASSES = 80
_ANCHORS = ((8, (10, 16, 24)), (16, (32, 48)), (32, (64, 96)), (64, (128, 192, 256)))  # of UltraLight: stride, sizes in pixels
_VARIANCES = (0.1, 0.2)


@dataclass
class Detections:
    """What was found in one picture, best first.

    Attributes:
        boxes: (k, 4); corner order and unit are those of the network, the same in both runs that are compared.
        scores: (k,).
        labels: (k,) class numbers.
    """

    boxes: Array
    scores: Array
    labels: Array


def is_detection(output: Any, size: tuple[int, int]) -> bool:
    """Whether an output has one of the forms above; `size` is the (width, height) of the frame."""
    return _form(output, size) is not None


def read_detections(output: Any, size: tuple[int, int], score: float = SCORE) -> list[Detections]:
    """The detections of every picture of a batch.

    Args:
        output: what the model returned.
        size: (width, height) of the frame.
        score: least score.

    Raises:
        ValueError: the output has none of the known forms.
    """
    form = _form(output, size)
    if form == "dicts":
        return [_of_dict(found, score) for found in output]
    if form == "faces":
        from sightline.tasks.centerface import decode

        count = output[0].shape[0]
        faces = [decode([value[i : i + 1] for value in output], size) for i in range(count)]
        return [Detections(found.boxes, found.scores, np.zeros(len(found))) for found in faces]
    if form == "ssd":
        scores, boxes = (output[0], output[1]) if output[1].shape[-1] == 4 and output[0].shape[-1] != 4 else (output[1], output[0])
        return [_suppressed(_numbers(b), _numbers(s)[:, 1:], score) for s, b in zip(scores, boxes, strict=True)]
    if form == "ultralight":
        anchors = ultralight_anchors(size)
        return [_suppressed(_from_anchors(anchors, _numbers(b)), _softmax(_numbers(s))[:, 1:], score) for s, b in zip(*output, strict=True)]
    if form == "grid":
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        return [_of_grid(_numbers(picture), score) for picture in tensor]
    raise ValueError(
        "metric='detection_f1' cannot read this network's output; it knows torchvision's dicts, CenterFace, SSD (scores, boxes) and "
        "FastestDet. Give a callable that compares two outputs."
    )


def _form(output: Any, size: tuple[int, int]) -> str | None:
    if (
        isinstance(output, list | tuple)
        and output
        and all(isinstance(item, dict) and {"boxes", "scores"} <= item.keys() for item in output)
    ):
        return "dicts"
    tensors = [output] if isinstance(output, torch.Tensor) else list(output) if isinstance(output, list | tuple) else []
    if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors):
        return None
    from sightline.tasks.centerface import is_centerface

    if is_centerface(tensors, size):
        return "faces"
    if len(tensors) == 2 and all(value.dim() == 3 for value in tensors) and tensors[0].shape[1] == tensors[1].shape[1]:
        last = [value.shape[-1] for value in tensors]
        if last == [2, 4] and bool((tensors[0] < 0).any()) and tensors[0].shape[1] == len(ultralight_anchors(size)):
            return "ultralight"
        return "ssd" if 4 in last and max(last) >= 2 else None
    if len(tensors) == 1 and tensors[0].dim() == 4 and tensors[0].shape[1] == 5 + _COCO_CLASSES:
        return "grid"
    return None


def _numbers(tensor: torch.Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _of_dict(found: dict[str, torch.Tensor], score: float) -> Detections:
    scores = _numbers(found["scores"])
    kept = np.nonzero(scores >= score)[0]
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    labels = _numbers(found["labels"]) if "labels" in found else np.zeros(len(scores))
    return Detections(_numbers(found["boxes"])[kept].reshape(-1, 4), scores[kept], labels[kept])


def ultralight_anchors(size: tuple[int, int]) -> Array:
    """(k, 4): centre x, centre y, width, height of every anchor as fractions of the frame, in the order of the outputs.

    >>> ultralight_anchors((640, 480)).shape
    (17640, 4)
    """
    width, height = size
    anchors = []
    for stride, sizes in _ANCHORS:
        rows, columns, sides = np.meshgrid(
            np.arange(-(-height // stride)), np.arange(-(-width // stride)), np.array(sizes, dtype=np.float64), indexing="ij"
        )
        x, y = (columns + 0.5) * stride / width, (rows + 0.5) * stride / height
        anchors.append(np.stack([x, y, sides / width, sides / height], axis=-1).reshape(-1, 4))
    return np.concatenate(anchors)


def _from_anchors(anchors: Array, offsets: Array) -> Array:
    centre = anchors[:, :2] + offsets[:, :2] * _VARIANCES[0] * anchors[:, 2:]
    half = anchors[:, 2:] * np.exp(np.clip(offsets[:, 2:] * _VARIANCES[1], -20, 20)) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _of_grid(picture: Array, score: float) -> Detections:
    """FastestDet: centre = cell + tanh, size = sigmoid, all as fractions of the frame."""
    _, height, width = picture.shape
    rows, columns = np.mgrid[0:height, 0:width]
    x, y = (columns + np.tanh(picture[1])) / width, (rows + np.tanh(picture[2])) / height
    w, h = 1 / (1 + np.exp(-picture[3])), 1 / (1 + np.exp(-picture[4]))
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1).reshape(-1, 4)
    strength = picture[0].clip(0) ** 0.6 * picture[5:].clip(0) ** 0.4
    best = strength.argmax(0)
    only = np.where(np.arange(len(strength))[:, None, None] == best, strength, 0.0)  # one class per cell
    return _suppressed(boxes, only.reshape(len(strength), -1).T, score)


def _suppressed(boxes: Array, scores: Array, score: float) -> Detections:
    """Non-maximum suppression within each class; `scores` is (k, classes)."""
    from sightline.tasks.centerface import suppress

    found: list[tuple[float, int, int]] = []
    for label in np.nonzero((scores >= score).any(axis=0))[0]:
        rows = np.nonzero(scores[:, label] >= score)[0]
        kept = suppress(boxes[rows], scores[rows, label], OVERLAP)
        found += [(float(scores[row, label]), int(row), int(label)) for row in rows[kept]]
    found.sort(key=lambda entry: -entry[0])
    rows = np.array([row for _, row, _ in found], dtype=np.intp)
    return Detections(boxes[rows].reshape(-1, 4), np.array([s for s, _, _ in found]), np.array([float(label) for *_, label in found]))
