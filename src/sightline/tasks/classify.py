"""Classification: the most likely classes of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sightline.media import Image
from sightline.tasks import Measure
from sightline.tasks.drawing import write_corner

_SHOWN = 3


@dataclass
class Classes:
    """The best classes of one frame, best first.

    Attributes:
        indices: class numbers.
        scores: probabilities, 0 to 1.
    """

    indices: list[int]
    scores: list[float]


def is_scores(outputs: Sequence[torch.Tensor]) -> bool:
    """Whether the first output is one row of at least two scores."""
    return bool(outputs) and outputs[0].dim() == 2 and outputs[0].shape[0] == 1 and outputs[0].shape[1] >= 2


class ClassifyTask:
    """Name the most likely classes.

    Args:
        labels: names of the classes; numbers are shown where they are missing.
    """

    name = "classify"

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self.labels = list(labels)

    def read(self, outputs: Sequence[torch.Tensor], size: tuple[int, int]) -> Classes:
        """The five best classes of a frame; scores become probabilities unless they are some already."""
        scores = outputs[0][0].detach().to("cpu", torch.float64)
        are_probabilities = bool((scores >= 0).all()) and abs(float(scores.sum()) - 1.0) < 1e-3
        best = (scores if are_probabilities else scores.softmax(0)).topk(min(5, scores.numel()))
        return Classes(best.indices.tolist(), best.values.tolist())

    def draw(self, image: Image, finding: Classes) -> Image:
        """The frame with its best classes in a corner."""
        shown = zip(finding.indices[:_SHOWN], finding.scores[:_SHOWN], strict=True)
        return write_corner(image, [f"{self.label(index)}  {100 * score:.1f} %" for index, score in shown])

    def caption(self, finding: Classes) -> str:
        """The best class and its probability."""
        return f"{self.label(finding.indices[0])} {100 * finding.scores[0]:.0f} %"

    def label(self, index: int) -> str:
        """Name of a class."""
        return self.labels[index] if index < len(self.labels) else f"class {index}"

    def agreement(self, dense: Classes, streamed: Classes) -> dict[str, float]:
        """Whether the best class is the same, and the share of the best five that are."""
        same = len(set(dense.indices) & set(streamed.indices)) / len(dense.indices)
        return {"top1": float(dense.indices[0] == streamed.indices[0]), "top5": same}

    def measures(self, agreements: Sequence[dict[str, float]]) -> list[Measure]:
        """Means over the frames."""
        count = max(len(agreements), 1)
        return [
            Measure("top1_agreement", "frames with the same best class", sum(entry["top1"] for entry in agreements) / count),
            Measure("top5_overlap", "overlap of the best five classes", sum(entry["top5"] for entry in agreements) / count),
        ]
