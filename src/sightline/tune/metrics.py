"""How far a streamed output is from the dense one: every metric is an error, 0 where both agree.

A metric gives two numbers per frame, (what is wrong, what there is); the error of a clip is the sum of the first over the sum of the
second (its root for "relative" and "noise"). So F1 is that of all detections of the clip, not a mean of the frames' values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sightline.difference import Pair, same_form, squares, tensors_of
from sightline.tune.detections import Detections, is_detection, read_detections

__all__ = ["METRICS", "SHARES", "Metric", "Pair", "make_metric", "same_form", "squares", "task_metric", "tensors_of"]

METRICS = ("noise", "relative", "top1", "iou", "detection_f1", "keypoints")
SHARES = frozenset({"top1", "iou", "detection_f1"})
"""Errors between 0 and 1."""
_SAME_BOX = 0.5


@dataclass(frozen=True)
class Metric:
    """An error that can be summed over frames.

    Attributes:
        name: as given to `tune`; "callable" for a function of the user's.
        compare: (dense output, streamed output) -> (what is wrong, what there is).
        root: the error is the root of the quotient.
    """

    name: str
    compare: Callable[[Any, Any], Pair]
    root: bool = False

    def error(self, pairs: Sequence[Pair]) -> float:
        """The error of a clip from the pairs of its frames; 0 where there is nothing to be wrong about."""
        wrong, there = (math.fsum(column) for column in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
        if wrong <= 0:
            return 0.0
        quotient = wrong / there if there > 0 else math.inf
        return math.sqrt(quotient) if self.root else quotient


def make_metric(metric: str | Callable[[Any, Any], float], size: tuple[int, int]) -> Metric:
    """The metric of a name, or of a function ``f(dense, streamed) -> error``.

    Args:
        metric: one of `METRICS`, or a function whose values are averaged over the frames.
        size: (width, height) of the frames.

    Raises:
        ValueError: there is no such metric.
    """
    if callable(metric):
        function = metric
        return Metric("callable", lambda dense, streamed: (_number(function(dense, streamed)), 1.0))
    comparisons: dict[str, Callable[[Any, Any], Pair]] = {
        "noise": squares,
        "relative": squares,
        "top1": top1,
        "iou": mask_iou,
        "detection_f1": lambda dense, streamed: detection_f1(dense, streamed, size),
        "keypoints": keypoints,
    }
    if metric not in comparisons:
        raise ValueError(f"`metric` must be one of {', '.join(METRICS)}, or a function f(dense, streamed) -> error; got {metric!r}.")
    return Metric(metric, comparisons[metric], root=metric in {"noise", "relative"})


def task_metric(output: Any, size: tuple[int, int]) -> str | None:
    """The metric in the task's own terms that fits an output; None where its meaning is not known."""
    if is_detection(output, size):
        return "detection_f1"
    tensors = tensors_of(output)
    if tensors and tensors[0].dim() == 2 and tensors[0].shape[1] >= 2:
        return "top1"
    if len(tensors) >= 1 and tensors[0].dim() == 4 and tensors[0].shape[2] * tensors[0].shape[3] > 1:
        channels, height = tensors[0].shape[1], tensors[0].shape[2]
        if channels != 3 and channels <= 256 and height * 8 >= size[1]:
            return "iou"
    return None


def top1(dense: Any, streamed: Any) -> Pair:
    """(pictures with another best class, pictures), from the first tensor (n, classes).

    >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([[0.4, 0.6], [0.3, 0.7]]))
    (1.0, 2.0)
    """
    first, second = (tensors_of(value)[0] for value in (dense, streamed))
    if first.dim() < 2 or first.flatten(1).shape[1] < 2:
        raise ValueError(f"metric='top1' needs scores (n, classes); this network returns {tuple(first.shape)}. Use 'noise' or 'iou'.")
    one, other = (value.flatten(1).argmax(1) for value in (first, second))
    return float((one != other).sum()), float(len(one))


def mask_iou(dense: Any, streamed: Any) -> Pair:
    """(sum of 1 - mean intersection over union of the classes, pictures), from the first map (n, c, h, w).

    The strongest channel is the class; of one channel, what lies above the middle of the dense values (0.5 if these are probabilities).

    >>> dense = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    >>> mask_iou(dense, torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]]))  # 1/2 of the ones, 2/3 of the zeros
    (0.4166..., 1.0)
    """
    maps = [next((t for t in tensors_of(value) if t.dim() == 4), None) for value in (dense, streamed)]
    if maps[0] is None or maps[1] is None:
        raise ValueError("metric='iou' needs a map (n, c, h, w) among the outputs; use 'noise' or 'top1'.")
    wrong = 0.0
    for first, second in zip(maps[0], maps[1], strict=True):
        if first.shape[0] > 1:
            one, other = first.argmax(0), second.argmax(0)
        else:
            low, high = float(first.min()), float(first.max())
            middle = 0.5 if low >= 0 and high <= 1 else (low + high) / 2
            one, other = (first[0] > middle).long(), (second[0] > middle).long()
        masks = [(one == label, other == label) for label in one.unique()]
        wrong += 1 - sum(float((a & b).sum()) / float((a | b).sum()) for a, b in masks) / len(masks)
    return wrong, float(len(maps[0]))


def detection_f1(dense: Any, streamed: Any, size: tuple[int, int]) -> Pair:
    """(detections without a partner, detections of both runs): their quotient is 1 - F1.

    Partners have the same class and overlap by at least a half.
    """
    wrong = there = 0
    for first, second in zip(read_detections(dense, size), read_detections(streamed, size), strict=True):
        both = len(pairs_of(first, second))
        there += len(first.scores) + len(second.scores)
        wrong += len(first.scores) + len(second.scores) - 2 * both
    return float(wrong), float(there)


def pairs_of(first: Detections, second: Detections) -> list[tuple[int, int]]:
    """Partners by index, each used once, the best of the first served first."""
    from sightline.tasks.centerface import overlaps

    free = np.ones(len(second.scores), dtype=bool)
    found = []
    for index, (box, label) in enumerate(zip(first.boxes, first.labels, strict=True)):
        shared = np.where(free & (second.labels == label), overlaps(box, second.boxes), 0.0)
        if shared.size and shared.max() >= _SAME_BOX:
            free[int(shared.argmax())] = False
            found.append((index, int(shared.argmax())))
    return found


def keypoints(dense: Any, streamed: Any) -> Pair:
    """(sum of distances, points): of the peaks of heat maps (n, points, h, w) in their cells, or of torchvision's "keypoints" in pixels.

    A person that only one run has found counts nothing here; "detection_f1" sees those.
    """
    if isinstance(dense, list) and dense and isinstance(dense[0], dict) and "keypoints" in dense[0]:
        return _person_points(dense, streamed)
    maps = [next((t for t in tensors_of(value) if t.dim() == 4), None) for value in (dense, streamed)]
    if maps[0] is None or maps[1] is None:
        raise ValueError("metric='keypoints' needs heat maps (n, points, h, w) or torchvision's dicts; give a callable otherwise.")
    one, other = _peaks(maps[0]), _peaks(maps[1])
    return float((one - other).square().sum(-1).sqrt().sum()), float(one.shape[0] * one.shape[1])


def _peaks(heat: torch.Tensor) -> torch.Tensor:
    place = heat.flatten(2).argmax(2)
    return torch.stack([place // heat.shape[3], place % heat.shape[3]], dim=-1).double()


def _person_points(dense: Any, streamed: Any) -> Pair:
    distance, count = 0.0, 0
    for first, second in zip(dense, streamed, strict=True):
        (one,), (other,) = read_detections([first], (0, 0)), read_detections([second], (0, 0))
        points = [found["keypoints"][found["scores"].argsort(descending=True, stable=True)] for found in (first, second)]
        for i, j in pairs_of(one, other):
            gap = (points[0][i, :, :2] - points[1][j, :, :2]).double().square().sum(-1).sqrt()
            distance, count = distance + float(gap.sum()), count + len(gap)
    return distance, float(count)


def _number(value: Any) -> float:
    number = float(value)
    if math.isnan(number) or number < 0:
        raise ValueError(f"the function given as `metric` must return a number >= 0; it returned {value!r}.")
    return number
