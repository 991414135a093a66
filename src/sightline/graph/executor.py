"""What every executor offers to a stream, and the little that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch

from sightline.graph import rules
from sightline.graph.ir import Node
from sightline.graph.plan import Plan, Step
from sightline.graph.shift import Shifts, shifts_of


class Executor(ABC):
    """Holds the maps of one stream and brings them up to date, frame by frame.

    An executor knows thresholds as absolute numbers only; their units, names and statistics are the stream's business.
    """

    name: str
    plan: Plan
    pause: tuple[Step, Callable[[], None]] | None = None
    """(step, function): called within every frame when the step has run, and before the next one. It may call `set_needed` and `zero` for
    steps that have not run yet."""

    @abstractmethod
    def run(self, frame: torch.Tensor) -> None:
        """Takes the next frame (n, c, h, w). A frame with NaN or Inf raises FrameError and leaves everything as it was."""

    @abstractmethod
    def shift(self, dy: int, dx: int) -> None:
        """Moves what is held, before the next frame: what lay at pixel (y + dy, x + dx) of the frame lies at (y, x) afterwards.

        The next run computes what changed against the moved frame, and whatever does not read at its new place what it read at its old
        one (see `sightline.graph.shift`). So its results are what they would be had every frame so far lain there.

        Args:
            dy: pixels down; a multiple of ``shifts.stride[0]``.
            dx: pixels to the right; a multiple of ``shifts.stride[1]``.

        Raises:
            ValueError: they are not, or an area is set (`set_needed`).
        """

    @property
    def shifts(self) -> Shifts:
        """What shifts do to the maps of the plan."""
        return shifts_of(self.plan)

    @abstractmethod
    def reset(self) -> None:
        """Forgets all frames; memory is kept."""

    @property
    @abstractmethod
    def fresh(self) -> bool:
        """No frame has been run since the start or the last reset."""

    @abstractmethod
    def value(self, node: Node) -> object:
        """The held value of a node, not copied. What has never been needed holds anything; no map at all: None."""

    def holds(self, step: Step) -> bool:
        """Whether the value of a step is held; False where a later step computes it as it goes."""
        return True

    def chain(self, step: Step) -> list[Node]:
        """The nodes that lead from held values to the value of a held step, in execution order."""
        parts = [part for part in self.plan.steps if part.inside is step and not self.holds(part)]
        return [node for part in [*parts, step] for node in part.nodes]

    def copy_out(self, node: Node) -> object:
        """The held value of a node as the user gets it: a contiguous tensor that nobody else writes to."""
        value = self.value(node)
        return value.clone(memory_format=torch.contiguous_format) if isinstance(value, torch.Tensor) else value

    @property
    @abstractmethod
    def counted(self) -> list[Step]:
        """The steps that compute something; those that only rename memory are missing. Always the same."""

    @abstractmethod
    def site_counts(self) -> list[int]:
        """How many positions each of the `counted` steps computed in the last frame."""

    @abstractmethod
    def moved(self, step: Step) -> bool:
        """Whether the last frame published anything new of a step; False for what is not a map or vector."""

    @abstractmethod
    def sites_mask(self, step: Step) -> torch.Tensor:
        """Bool (n, h, w): the positions that a step computed in the last frame."""

    @abstractmethod
    def set_threshold(self, step: Step, value: float) -> None:
        """Sets the absolute threshold of a step; holds from the next frame on, which computes the step whole if it is lower than before."""

    @abstractmethod
    def set_needed(self, step: Step, mask: torch.Tensor | None) -> None:
        """Limits a step to the sites that are needed, from the next frame on.

        What is not needed is not computed, but remembered: it is computed as soon as it becomes needed. The caller sees to it that what
        the needed sites read is needed too. A step that computes no map is run if any position of it is needed. Of the frame, what is
        not needed is neither compared nor taken, and may hold anything (unless a noise filter looks at neighbours).

        Args:
            step: any step; one that only renames memory takes no notice.
            mask: bool (n, h, w) on the step's `grid` and the frames' device; None, the default: everything is needed.
        """

    @abstractmethod
    def zero(self, step: Step, mask: torch.Tensor) -> None:
        """Sets the held map of a step to 0 at these positions, bool (n, h, w), and tells nobody."""

    @abstractmethod
    def blank(self, value: float) -> None:
        """Before the first frame: fills all maps. With NaN, a site counts as changed when it is first computed, whatever the threshold."""

    @abstractmethod
    def std(self, step: Step) -> float:
        """Standard deviation of the held map of a step, over what has been computed of it."""

    @abstractmethod
    def where(self, step: Step) -> tuple[str, str]:
        """(executor that runs the step, remark or reason)."""

    @abstractmethod
    def memory(self) -> dict[str, int]:
        """Bytes of state by what they are for."""

    @staticmethod
    def grid(step: Step) -> tuple[int, int, int]:
        """Positions of a step's value as (n, h, w); anything but a map counts as one position per batch element."""
        return rules.positions_of(step.output)

    def positions(self, step: Step) -> int:
        """Number of positions of a step's value."""
        n, h, w = self.grid(step)
        return n * h * w


def own(value: object, sources: Iterable[object]) -> object:
    """Copies whatever shares memory with the sources (a reshape of another map, say), so that it can be held on its own."""
    if isinstance(value, torch.Tensor):
        return value.clone() if shares(value, sources) else value
    if isinstance(value, list | tuple):
        return [own(item, sources) for item in value]
    return value


def shares(value: torch.Tensor, sources: Iterable[object]) -> bool:
    """Whether a value shares memory with any of the sources."""
    storage = value.untyped_storage().data_ptr()
    return any(s.untyped_storage().data_ptr() == storage for s in tensors_of(list(sources)))


def tensors_of(value: object) -> list[torch.Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value for t in tensors_of(item)] if isinstance(value, list | tuple) else []


def same(a: object, b: object) -> bool:
    """Equal values, compared as a whole; nested lists and tuples too. NaN differs from everything."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a is not None and type(a) is type(b) and a == b


def run_chain(nodes: Sequence[Node], read: Callable[[Node], torch.Tensor]) -> torch.Tensor:
    """Computes a step densely in PyTorch: its nodes one after the other; `read` gives the held value of any other node."""
    values: dict[Node, torch.Tensor] = {}
    result = read(nodes[0]) if nodes[0].op in {"input", "constant"} else None
    for node in nodes:
        if result is None or node is not nodes[0]:
            result = rules.rule_of(node).run(node, [values[i] if i in values else read(i) for i in node.inputs])
        values[node] = result
    assert result is not None
    return result
