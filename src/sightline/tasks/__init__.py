"""What a network's output means: reading it, drawing it, and comparing two of them.

A `Task` turns the output tensors of one frame into a finding, draws findings, and says how far two findings agree. Tasks know
nothing of streams or files. `choose_task` guesses the task from the shapes of the outputs. To add one: a class with the methods
of `Task` in a file of its own, and a line in `choose_task`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sightline.media import Image

TASKS = ("auto", "centerface", "classify", "map", "none")


@dataclass(frozen=True)
class Measure:
    """One number that says how well streamed findings agree with dense ones.

    Attributes:
        key: name in JSON.
        label: name in tables.
        value: the number.
        form: "share" (0 to 1, shown in per cent), "count" or "number".
    """

    key: str
    label: str
    value: float
    form: str = "share"

    @property
    def text(self) -> str:
        """The number as tables show it."""
        if self.form == "share":
            return f"{100 * self.value:.4g} %"
        return f"{self.value:.0f}" if self.form == "count" else f"{self.value:.4g}"


class Task(Protocol):
    """What the job needs from a task."""

    name: str

    def read(self, outputs: Sequence[torch.Tensor], size: tuple[int, int]) -> Any:
        """Finding of one frame, from its output tensors (batch 1) and the network's (width, height)."""
        ...

    def draw(self, image: Image, finding: Any) -> Image:
        """The frame with the finding drawn on it; any size, the input is not changed."""
        ...

    def caption(self, finding: Any) -> str:
        """The finding in a few words."""
        ...

    def agreement(self, dense: Any, streamed: Any) -> dict[str, float]:
        """Numbers of one frame, to be handed to `measures`."""
        ...

    def measures(self, agreements: Sequence[dict[str, float]]) -> list[Measure]:
        """The numbers of many frames, summed up."""
        ...


class NoTask:
    """The output's meaning is not known: frames are shown as they are."""

    name = "none"

    def read(self, outputs: Sequence[torch.Tensor], size: tuple[int, int]) -> None:
        """Nothing."""

    def draw(self, image: Image, finding: Any) -> Image:
        """The frame itself."""
        return image

    def caption(self, finding: Any) -> str:
        """Nothing."""
        return ""

    def agreement(self, dense: Any, streamed: Any) -> dict[str, float]:
        """Nothing: the error of the raw output is measured whatever the task."""
        return {}

    def measures(self, agreements: Sequence[dict[str, float]]) -> list[Measure]:
        """Nothing."""
        return []


def moved(finding: Any, by: tuple[float, float]) -> Any:
    """A finding with its places moved by (y, x), as fractions of the frame; those without places as they are.

    For the outputs of a stream that follows a moving camera: see `sightline.stream.Stream.output_shift`.
    """
    return finding.moved(by) if any(by) and hasattr(finding, "moved") else finding


def output_tensors(output: Any) -> list[torch.Tensor]:
    """All tensors in what a model returned (a tensor, or nested tuples, lists and dicts), in order."""
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def choose_task(
    name: str, outputs: Sequence[torch.Tensor], size: tuple[int, int], labels: Sequence[str] = (), *, blur: bool = False
) -> Task:
    """The task of a given name, or the one that fits the outputs.

    Args:
        name: one of `TASKS`.
        outputs: tensors of the first frame.
        size: (width, height) of the network's input.
        labels: class names, if known.
        blur: for centerface: blur the faces instead of framing them.

    Returns:
        The task.

    Raises:
        ValueError: if the name is unknown, or the outputs do not have the form that the named task reads.
    """
    from sightline.tasks.centerface import FaceTask, is_centerface
    from sightline.tasks.classify import ClassifyTask, is_scores
    from sightline.tasks.generic import MapTask, is_map

    if name not in TASKS:
        raise ValueError(f"task: there is no {name!r}; choose one of {', '.join(TASKS)}")
    fits = {"centerface": is_centerface(outputs, size), "classify": is_scores(outputs), "map": is_map(outputs), "none": True}
    if name == "auto":
        name = next(task for task, fit in fits.items() if fit)
    if not fits[name]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in outputs) or "no tensor"
        raise ValueError(f"task: {name!r} cannot read this network's output ({shapes}); use --task auto or none")
    if name == "centerface":
        return FaceTask(blur=blur)
    if name == "classify":
        return ClassifyTask(labels)
    return MapTask() if name == "map" else NoTask()
