"""CenterFace: faces from a heat map, box sizes, offsets and landmarks; framing them or blurring them.

The network returns, at a quarter of the input's resolution: heat (1 channel, 0 to 1, a peak at the centre of each face), log of
the box height and width in units of 4 pixels (2), offset of the centre from its cell in cells, y and x (2), and five landmarks
as fractions of the box, y and x each (10).

Source: Xu et al., CenterFace: Joint Face Detection and Alignment Using Face as Point, 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sightline.media import Image
from sightline.tasks import Measure
from sightline.tasks.drawing import Box, blur_boxes, draw_boxes, draw_points

STRIDE = 4
SCORE = 0.35
"""Least score of a face: low enough that faces are rarely missed, which is what blurring asks for."""
SURE = 0.5
"""Score from which the network is sure of a face; weaker ones come and go with the noise of the camera."""
OVERLAP = 0.3
_SAME_FACE = 0.5  # overlap from which two boxes mean the same face


@dataclass
class Faces:
    """The faces of one frame, best first.

    Attributes:
        boxes: (k, 4) float64, (y0, x0, y1, x1) as fractions of the frame, clipped to it.
        scores: (k,) float64, 0 to 1.
        landmarks: (k, 5, 2) float64, (y, x) fractions: eyes, nose, corners of the mouth.
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    landmarks: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Faces:
        """Those with a higher score."""
        strong = self.scores > score
        return Faces(self.boxes[strong], self.scores[strong], self.landmarks[strong])

    def moved(self, by: tuple[float, float]) -> Faces:
        """The same faces elsewhere: by (y, x), fractions of the frame; boxes are clipped to it."""
        step = np.array(by, dtype=np.float64)
        return Faces(np.clip(self.boxes + np.tile(step, 2), 0.0, 1.0), self.scores, self.landmarks + step)

    def box_list(self) -> list[Box]:
        """The boxes as plain tuples."""
        return [(float(box[0]), float(box[1]), float(box[2]), float(box[3])) for box in self.boxes]


def is_centerface(outputs: Sequence[torch.Tensor], size: tuple[int, int]) -> bool:
    """Whether output tensors have CenterFace's form for an input of (width, height)."""
    if len(outputs) != 4 or any(tensor.dim() != 4 for tensor in outputs):
        return False
    grid = (size[1] // STRIDE, size[0] // STRIDE)
    return [tensor.shape[1] for tensor in outputs] == [1, 2, 2, 10] and all(tuple(tensor.shape[2:]) == grid for tensor in outputs)


def decode(outputs: Sequence[torch.Tensor], size: tuple[int, int], score: float = SCORE, overlap: float = OVERLAP) -> Faces:
    """Read faces from CenterFace's four outputs.

    Args:
        outputs: heat (1, 1, h/4, w/4), log-size (1, 2, ...), offset (1, 2, ...), landmarks (1, 10, ...).
        size: (width, height) of the network's input in pixels.
        score: least heat of a face, 0 to 1.
        overlap: of two boxes that overlap by more than this (intersection over union) the weaker one goes, 0 to 1.

    Returns:
        The faces.
    """
    heat, log_size, offset, marks = (tensor[0].detach().to("cpu", torch.float64).numpy() for tensor in outputs)
    rows, columns = np.nonzero(heat[0] > score)
    scores = heat[0, rows, columns]
    heights, widths = np.exp(log_size[0, rows, columns]) * STRIDE, np.exp(log_size[1, rows, columns]) * STRIDE
    top = (rows + offset[0, rows, columns] + 0.5) * STRIDE - heights / 2
    left = (columns + offset[1, rows, columns] + 0.5) * STRIDE - widths / 2
    boxes = np.stack([top, left, top + heights, left + widths], axis=1)
    kept = suppress(boxes, scores, overlap)
    at = marks[:, rows, columns].T.reshape(-1, 5, 2)
    points = np.stack([at[..., 0] * heights[:, None] + top[:, None], at[..., 1] * widths[:, None] + left[:, None]], axis=2)
    width, height = size
    return Faces(np.clip(boxes[kept] / (height, width, height, width), 0.0, 1.0), scores[kept], points[kept] / (height, width))


def suppress(boxes: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], overlap: float) -> npt.NDArray[np.intp]:
    """Greedy non-maximum suppression.

    Args:
        boxes: (k, 4), (y0, x0, y1, x1).
        scores: (k,).
        overlap: largest intersection over union that a kept box may have with a better one.

    Returns:
        Indices of the boxes to keep, best first.
    """
    left = np.argsort(-scores, kind="stable")
    kept: list[np.intp] = []
    while left.size:
        best = left[0]
        kept.append(best)
        left = left[1:][overlaps(boxes[best], boxes[left[1:]]) <= overlap]
    return np.array(kept, dtype=np.intp)


def overlaps(box: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intersection over union of one box (4,) with each of (k, 4) others."""
    top_left = np.maximum(box[:2], others[:, :2])
    bottom_right = np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(bottom_right - top_left, 0.0, None), axis=1)
    area = np.prod(np.clip(others[:, 2:] - others[:, :2], 0.0, None), axis=1)
    union = np.prod(np.clip(box[2:] - box[:2], 0.0, None)) + area - shared
    ratio: npt.NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def match(first: Faces, second: Faces) -> int:
    """Number of faces that both have: pairs with overlap of at least a half, each face used once, best first."""
    free = np.ones(len(second), dtype=bool)
    pairs = 0
    for box in first.boxes:
        shared = np.where(free, overlaps(box, second.boxes), 0.0)
        if shared.size and shared.max() >= _SAME_FACE:
            free[int(shared.argmax())] = False
            pairs += 1
    return pairs


class FaceTask:
    """Find faces; frame them, or blur them.

    Args:
        blur: blur the faces beyond recognition instead of framing them.
        score: least score of a face, 0 to 1.
    """

    name = "centerface"

    def __init__(self, *, blur: bool = False, score: float = SCORE) -> None:
        self.blur = blur
        self.score = score

    def read(self, outputs: Sequence[torch.Tensor], size: tuple[int, int]) -> Faces:
        """The faces of a frame."""
        return decode(outputs, size, self.score)

    def draw(self, image: Image, finding: Faces) -> Image:
        """The frame with its faces blurred, or framed with score and landmarks."""
        if self.blur:
            return draw_boxes(blur_boxes(image, finding.box_list()), finding.box_list(), [""] * len(finding))
        framed = draw_boxes(image, finding.box_list(), [f"{score:.2f}" for score in finding.scores])
        return draw_points(framed, finding.landmarks.reshape(-1, 2))

    def caption(self, finding: Faces) -> str:
        """How many faces there are."""
        count = len(finding)
        return f"{count} face{'' if count == 1 else 's'}{' blurred' if self.blur and count else ''}"

    def agreement(self, dense: Faces, streamed: Faces) -> dict[str, float]:
        """Faces in each finding and in both; and of the faces of which the dense network is sure, how many were found."""
        sure = dense.above(SURE)
        return {
            "faces_dense": len(dense),
            "faces_streamed": len(streamed),
            "faces_both": match(dense, streamed),
            "sure_dense": len(sure),
            "sure_found": match(sure, streamed),
        }

    def measures(self, agreements: Sequence[dict[str, float]]) -> list[Measure]:
        """Faces found again, and F1 against the dense network."""
        keys = ("faces_dense", "faces_streamed", "faces_both", "sure_dense", "sure_found")
        dense, streamed, both, sure, sure_found = (sum(entry[key] for entry in agreements) for key in keys)
        f1 = 2 * both / (dense + streamed) if dense + streamed else 1.0
        return [
            Measure("faces_dense", "faces found by the dense network", dense, "count"),
            Measure("faces_kept", "of these also found when streaming", both, "count"),
            Measure("faces_extra", "found only when streaming", streamed - both, "count"),
            Measure("faces_sure", f"faces that the dense network is sure of (score over {SURE})", sure, "count"),
            Measure("faces_sure_kept", "of the sure ones found when streaming", sure_found, "count"),
            Measure("face_f1", "F1 of the faces against dense", f1),
        ]
