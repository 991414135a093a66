"""From an area to what every step of a plan has to compute.

Two answers. *Exact*: the area says which outputs are wanted; walking back over the plan, every step computes what the steps behind it
read (`footprint.inputs_of`), so the wanted outputs are those of a dense run. *Covering*: every step computes the area as it lies on the
step's own grid, and nothing else; cheapest, and approximate where a layer reads across the border.

What belongs here: masks per step. What does not: areas as users give them (`sightline.area`), and running anything.
"""

from __future__ import annotations

import torch

from sightline.footprint import Footprint
from sightline.graph import rules
from sightline.graph.ir import Node
from sightline.graph.plan import Plan, Step
from sightline.sites import Sites

Masks = dict[Step, torch.Tensor]
"""Step -> bool (n, h, w) on the grid of its value."""


def area_on(area: torch.Tensor, node: Node) -> torch.Tensor:
    """An area as it lies on the grid of a value: every cell that it touches.

    Args:
        area: bool (n, h, w) at any resolution; n is 1 or the batch size of the frames.
        node: the value; anything but a map counts as one cell per batch element, and what has another batch size than the area as one
            picture of all its elements.

    Returns:
        Bool (n, h, w), on the area's device.
    """
    n, h, w = rules.positions_of(node)
    if area.shape[0] not in (1, n):
        area = area.any(0, keepdim=True)
    return Sites(area).resize(h, w).mask.expand(n, h, w).contiguous()


def over(mask: torch.Tensor, value: torch.Tensor) -> tuple[int, ...]:
    """Shape in which the mask of a value's positions, bool (n, h, w), broadcasts over the value."""
    if value.dim() == 4:
        n, h, w = mask.shape
        return n, 1, h, w
    return (mask.shape[0], *[1] * (value.dim() - 1)) if value.dim() else ()


class Needs:
    """Works out masks for one plan; footprints are looked up once.

    Example:
        >>> from sightline.graph.capture import capture
        >>> from sightline.graph.plan import make_plan
        >>> plan = make_plan(capture(torch.nn.Conv2d(1, 1, 3, padding=1), torch.zeros(1, 1, 8, 8)))
        >>> corner = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> corner[0, 0, 0] = True
        >>> {step.head.op: int(mask.sum()) for step, mask in Needs(plan).exact(corner).items()}
        {'input': 4, 'conv2d': 1}
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._footprints: dict[Step, list[tuple[Node, Footprint | None]]] = {}
        for step in plan.steps:
            if step.head.op not in {"input", "constant"}:
                rule = rules.rule_of(step.head)
                reads = [(node, rule.footprint(step.head, i)) for i, node in enumerate(step.inputs) if node.op != "constant"]
                self._footprints[step] = reads

    def exact(self, area: torch.Tensor) -> Masks:
        """What every step must compute for the area of every output of the graph to be right.

        Args:
            area: bool (n, h, w), as for `area_on`.

        Returns:
            A mask for every step but constants. Whatever has no known footprint needs all that it reads.

        Cost: a few passes over bool maps per layer.
        """
        wanted: dict[Node, torch.Tensor] = {}
        for node in self.plan.graph.outputs:
            _add(wanted, node, area_on(area, node))
        masks: Masks = {}
        for step in reversed(self.plan.steps):
            if step.head.op != "constant":
                masks[step] = self._of(wanted, step, area)
                if step.head.op != "input":
                    self._back(step, masks[step], wanted)
        return dict(reversed(masks.items()))

    def covering(self, area: torch.Tensor, first: int = 0) -> Masks:
        """The area as it lies on the grid of every step, and of the frame what these steps read.

        Args:
            area: bool (n, h, w), as for `area_on`.
            first: index in ``plan.steps`` from which on steps are limited; those before compute everything.
        """
        on_grid: dict[tuple[int, int, int], torch.Tensor] = {}
        masks: Masks = {}
        for step in self.plan.steps[first:]:
            if step.head.op not in {"input", "constant"}:
                grid = rules.positions_of(step.output)
                if grid not in on_grid:
                    on_grid[grid] = area_on(area, step.output)
                masks[step] = on_grid[grid]
        frame = self.plan.steps[0]
        if first == 0:
            wanted: dict[Node, torch.Tensor] = {}
            for step, reads in self._footprints.items():
                if any(node is frame.output for node, _ in reads) or step.residual is frame.output:
                    self._back(step, masks[step], wanted, only=frame.output)
            masks[frame] = self._of(wanted, frame, area)
        return masks

    @staticmethod
    def _of(wanted: dict[Node, torch.Tensor], step: Step, area: torch.Tensor) -> torch.Tensor:
        mask = wanted.get(step.output)
        return torch.zeros(rules.positions_of(step.output), dtype=torch.bool, device=area.device) if mask is None else mask

    def _back(self, step: Step, mask: torch.Tensor, wanted: dict[Node, torch.Tensor], only: Node | None = None) -> None:
        """Adds what these sites of a step read."""
        if not bool(mask.any()):
            return
        for node, footprint in self._footprints[step]:
            if only is None or node is only:
                if footprint is None or footprint.out_grid.shape != tuple(mask.shape):
                    _add(wanted, node, torch.ones(rules.positions_of(node), dtype=torch.bool, device=mask.device))
                else:
                    _add(wanted, node, footprint.inputs_of(Sites(mask)).mask)
        if step.residual is not None and (only is None or step.residual is only):
            _add(wanted, step.residual, mask)


def _add(wanted: dict[Node, torch.Tensor], node: Node, mask: torch.Tensor) -> None:
    known = wanted.get(node)
    wanted[node] = mask if known is None else known | mask
