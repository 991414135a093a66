"""The reference executor: plain PyTorch on any device and in any float type.

Readable before fast. A convolution with few sites gathers its windows and multiplies them; everything else is computed densely and
merged. A step whose inputs did not change is not computed at all.
"""

from __future__ import annotations

import functools

import torch

from sightline.errors import FrameError
from sightline.footprint import WindowFootprint
from sightline.graph import rules
from sightline.graph.executor import Executor, own, run_chain, same
from sightline.graph.ir import Node
from sightline.graph.plan import Plan, Step
from sightline.sites import Sites

# Below this density a gathered matrix product beats the library's dense convolution (measured on CPU, see docs/design.md).
GATHER_BELOW = 0.25


class TorchExecutor(Executor):
    """Holds one tensor per step and one bool mask (n, h, w) of what changed in it."""

    name = "torch"

    def __init__(self, plan: Plan, norm: str, noise: str | None, dtype: torch.dtype | None = None) -> None:
        self.plan = plan
        self._dtype = dtype  # to compute in; None: the frame's
        self._norm = norm
        self._noise = noise
        self._held: dict[Node, torch.Tensor] = {}
        self._changed: dict[Node, torch.Tensor | bool] = {}
        self._sites: dict[Step, torch.Tensor | bool] = {}
        self._thresholds: dict[Step, float] = {}
        self._whole: set[Step] = set()  # to be computed at all positions once
        self._needed: dict[Step, torch.Tensor] = {}  # missing: everything is needed
        self._stale: dict[Step, torch.Tensor] = {}  # to be computed once needed
        self._never: dict[Step, torch.Tensor] = {}  # not computed since the start
        self._kernels: dict[Node, torch.Tensor] = {}
        self._device: torch.device | None = None

    # -- running --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, frame: torch.Tensor) -> None:
        if self._dtype is not None:
            frame = frame.to(self._dtype)
        if not bool(self._taken(frame).all()):
            raise FrameError(
                "`frame` holds NaN or Inf. Clean it (torch.nan_to_num) or skip it; the stream has not moved and takes the next frame."
            )
        fresh = self.fresh
        self._device = frame.device
        for step in self.plan.steps:
            node = step.output
            if step.head.op == "constant":
                if fresh:
                    self._held[node] = self._constant(node, frame)
                self._changed[node] = False
                continue
            sites = self._frame_sites(step, frame) if step.head.op == "input" else self._find_sites(step, fresh)
            self._sites[step] = sites
            self._changed[node] = False
            if fresh:
                self._first(step, sites, frame)
            elif bool(sites.any()) if isinstance(sites, torch.Tensor) else sites:
                self._update(step, sites, frame)
            if self.pause is not None and step is self.pause[0]:
                self.pause[1]()

    def _taken(self, frame: torch.Tensor) -> torch.Tensor:
        """Bool: is finite, for whatever is taken of the frame."""
        finite = torch.isfinite(frame)
        need = self._needed.get(self.plan.steps[0])
        return finite if need is None or self._noise else finite.all(1)[need]

    def _first(self, step: Step, sites: torch.Tensor | bool, frame: torch.Tensor) -> None:
        """The first frame: nothing is compared, and what is not needed becomes 0."""
        node, is_input = step.output, step.head.op == "input"
        if not isinstance(sites, torch.Tensor) or bool(sites.all()):
            if isinstance(sites, torch.Tensor) or sites:
                self._held[node] = self._own(step, frame.clone() if is_input else run_chain(step.nodes, self._read))
                self._changed[node] = sites
            return
        self._never[step] = ~sites
        assert node.shape is not None
        dtype = frame.dtype if node.dtype == self.plan.graph.input.dtype else node.dtype
        held = torch.zeros(node.shape, dtype=dtype, device=frame.device)
        if is_input or bool(sites.any()):
            new = self._as_map(frame if is_input else self._compute(step, sites, held))
            held = torch.where(sites[:, None], new, self._as_map(held)).reshape(held.shape)
        self._held[node], self._changed[node] = held, sites

    def _compute(self, step: Step, sites: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """The step's value, right at these sites at least."""
        if not self._gathers(step, sites):
            return run_chain(step.nodes, self._read)
        index = sites.nonzero()
        rows = self._compute_rows(step, index)
        value = held.clone()
        self._as_map(value)[index[:, 0], :, index[:, 1], index[:, 2]] = rows.to(value.dtype)
        return value

    def _constant(self, node: Node, frame: torch.Tensor) -> torch.Tensor:
        value = node.attrs["value"]
        if not isinstance(value, torch.Tensor):
            return value  # type: ignore[no-any-return]
        dtype = frame.dtype if value.dtype == self.plan.graph.input.dtype else value.dtype
        return value.to(device=frame.device, dtype=dtype)

    def _own(self, step: Step, value: torch.Tensor) -> torch.Tensor:
        return own(value, [self._held[node] for node in step.reads])  # type: ignore[return-value]

    def _update(self, step: Step, sites: torch.Tensor | bool, frame: torch.Tensor) -> None:
        node = step.output
        if not isinstance(sites, torch.Tensor):  # not a map: recompute and compare as a whole
            value = run_chain(step.nodes, self._read)
            if not same(value, self._held.get(node)):
                self._held[node], self._changed[node] = self._own(step, value), True
            return
        held = self._held[node]
        value = frame if step.head.op == "input" else self._compute(step, sites, held)
        new, old = self._as_map(value), self._as_map(held)
        changed = sites & self._differs(new - old, self._thresholds.get(step, 0.0), new, old)
        if step in self._never:  # what is computed for the first time counts as changed, however near it is to 0
            changed |= sites & self._never[step]
            self._never[step] &= ~sites
        if step.head.op == "input" and self._noise:
            changed = sites  # the filter has already decided, position by position
        self._held[node] = torch.where(changed[:, None], new, old).reshape(held.shape)
        self._changed[node] = changed

    def _differs(self, delta: torch.Tensor, threshold: float, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """Bool (n, h, w): not (norm over channels <= threshold), so that NaN counts as changed."""
        if threshold <= 0:
            return ~(new == old).all(1)
        if self._norm == "max":
            size = delta.abs().amax(1)
        else:
            size = delta.square().sum(1)
            size = (size / delta.shape[1]).sqrt() if self._norm == "rms" else size.sqrt()
        return ~(size <= threshold)

    # -- sites -------------------------------------------------------------------------------------------------------

    def _frame_sites(self, step: Step, frame: torch.Tensor) -> torch.Tensor:
        need = None if self._noise else self._needed.get(step)  # filters look at neighbours: then the whole frame is taken
        if step.output not in self._held:
            return torch.ones(rules.positions_of(step.output), dtype=torch.bool, device=frame.device) if need is None else need
        held = self._held[step.output]
        sites = self._differs(frame - held, self._thresholds.get(step, 0.0), frame, held)
        if step in self._never:
            sites |= self._never[step]
        if need is not None:
            return sites & need
        if self._noise == "vote":
            votes = torch.nn.functional.avg_pool2d(sites[:, None].float(), 5, 1, 2, divisor_override=1)
            return votes[:, 0] > 4.5
        if self._noise == "block":
            _, h, w = sites.shape
            blocks = torch.nn.functional.max_pool2d(sites[:, None].float(), 8, 8, ceil_mode=True)
            return blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, 0, :h, :w] > 0.5
        return sites

    def _find_sites(self, step: Step, fresh: bool) -> torch.Tensor | bool:
        sites = self._pending(step, fresh)
        if step not in self._needed and step not in self._stale:
            return sites
        if not isinstance(sites, torch.Tensor):
            grid = rules.positions_of(step.output)
            sites = torch.full(grid, sites, device=self._device)
        if step in self._stale:
            sites = sites | self._stale.pop(step)
        if step in self._needed:
            need = self._needed[step] if self._is_map(step.output) else self._needed[step].any().expand(sites.shape)
            self._stale[step] = sites & ~need
            sites = sites & need
        return sites if self._is_map(step.output) else bool(sites.any())

    def _pending(self, step: Step, fresh: bool) -> torch.Tensor | bool:
        """What has to be computed before anybody reads it: whatever can have changed in this frame."""
        node = step.output
        if fresh or step in self._whole:
            self._whole.discard(step)
            return self._all(node)
        is_map = self._is_map(node)
        sites: torch.Tensor | None = None
        for source in step.reads:
            changed = self._changed[source]
            if not (bool(changed.any()) if isinstance(changed, torch.Tensor) else changed):
                continue
            if not is_map:
                return True
            part = self._project(step, source, changed)
            sites = part if sites is None else sites | part
        if sites is None:
            return torch.zeros(rules.positions_of(node), dtype=torch.bool, device=self._device) if is_map else False
        return sites

    def _project(self, step: Step, source: Node, changed: torch.Tensor | bool) -> torch.Tensor:
        """Positions of the step that can change when `source` changed like this."""
        grid = rules.positions_of(step.output)
        sites = torch.zeros(grid, dtype=torch.bool, device=self._device)
        if source is step.residual and isinstance(changed, torch.Tensor):
            sites |= changed
        for operand, node in enumerate(step.inputs):
            if node is not source:
                continue
            footprint = rules.rule_of(step.head).footprint(step.head, operand)
            if footprint is None or not isinstance(changed, torch.Tensor):
                return torch.ones_like(sites)
            sites |= footprint.outputs_of(Sites.from_mask(changed)).mask
        return sites

    def _is_map(self, node: Node) -> bool:
        return node.shape is not None and len(node.shape) in {2, 4} and node.dtype is not None and node.dtype.is_floating_point

    def _all(self, node: Node) -> torch.Tensor | bool:
        return torch.ones(rules.positions_of(node), dtype=torch.bool, device=self._device) if self._is_map(node) else True

    @staticmethod
    def _as_map(value: torch.Tensor) -> torch.Tensor:
        return value if value.dim() == 4 else value[:, :, None, None]

    # -- convolution at few sites ---------------------------------------------------------------------------------------

    @staticmethod
    def _gathers(step: Step, sites: torch.Tensor) -> bool:
        head = step.head
        if head.op not in {"knn_conv", "knn_depthwise", "knn_pool"} and (head.op != "conv2d" or head.attrs["groups"] != 1):
            return False
        return float(sites.sum()) < GATHER_BELOW * sites.numel()

    def _compute_rows(self, step: Step, index: torch.Tensor) -> torch.Tensor:
        """(k, c_out): the step's values at k positions (n, y, x), computed together, then what is fused behind."""
        head = step.head
        x = self._read(head.inputs[0])
        values = self._compute_windows(head, x, index) if head.op == "conv2d" else self._compute_points(head, x, index)
        read: dict[Node, torch.Tensor] = {head: values[:, :, None, None]}
        if step.residual is not None:
            read[step.residual] = self._read(step.residual)[index[:, 0], :, index[:, 1], index[:, 2]][:, :, None, None]
        for node in step.nodes[1:]:
            read[node] = rules.rule_of(node).run(node, [read[i] for i in node.inputs])
        return read[step.output][:, :, 0, 0]

    @staticmethod
    def _compute_points(head: Node, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """(k, c_out): a layer on sensor points, as if those of all batch elements were one set."""
        image, point = index[:, :1], index[:, 2].to(head.attrs["index"].device)
        table = head.attrs["index"][point].to(x.device)
        table = torch.where(table < 0, -1, table + image * x.shape[3]).to(torch.int32)
        cell = None if head.op == "knn_pool" else head.attrs["cell"][point]
        weight = head.attrs["weight"] if head.op == "knn_pool" else None
        joined = x.transpose(0, 1).reshape(1, x.shape[1], -1)
        return rules.on_points(head, joined, table, cell, None if weight is None else weight[point])[0].T

    def _compute_windows(self, head: Node, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """(k, c_out): a convolution; windows gathered, one matrix product."""
        footprint = rules.rule_of(head).footprint(head)
        assert isinstance(footprint, WindowFootprint)
        rows = torch.tensor(footprint.rows.index, device=x.device, dtype=torch.long)[index[:, 1]]
        cols = torch.tensor(footprint.cols.index, device=x.device, dtype=torch.long)[index[:, 2]]
        windows = x[index[:, 0, None, None], :, rows[:, :, None].clamp(min=0), cols[:, None, :].clamp(min=0)]  # (k, kh, kw, c)
        outside = (rows < 0)[:, :, None] | (cols < 0)[:, None, :]
        windows = windows.masked_fill(outside[..., None], 0.0)
        bias = head.attrs.get("bias")
        return torch.nn.functional.linear(windows.flatten(1), self._kernel(head, x), None if bias is None else bias.to(x))

    def _kernel(self, head: Node, x: torch.Tensor) -> torch.Tensor:
        if head not in self._kernels:
            weight = head.attrs["weight"].detach().to(x)
            # (o, i, kh, kw) or, transposed, (i, o, kh, kw) -> (o, kh * kw * i)
            order = (1, 2, 3, 0) if head.attrs.get("transposed") else (0, 2, 3, 1)
            self._kernels[head] = weight.permute(order).flatten(1)
        return self._kernels[head]

    # -- shifting --------------------------------------------------------------------------------------------------------

    def shift(self, dy: int, dx: int) -> None:
        if self._needed:
            raise ValueError("maps cannot be shifted under an area; take it away with set_needed first.")
        moves = self.shifts.moves(dy, dx)
        if self.fresh:
            return
        for step, move in moves.items():
            if step.head.op == "constant":
                continue
            held = self._held.get(step.output)
            if isinstance(held, torch.Tensor) and held.dim() == 4 and any(move.by):
                self._held[step.output] = _moved(held, move.by)
            stale = self._stale.pop(step, None)
            if stale is not None:
                stale = _moved(stale, move.by)
            if move.stale and step.head.op != "input":
                mask = move.mask().to(self._device).expand(self.grid(step))
                stale = mask.clone() if stale is None else stale | mask
            if stale is not None:
                self._stale[step] = stale

    # -- what Executor asks for ------------------------------------------------------------------------------------------

    def _read(self, node: Node) -> torch.Tensor:
        return self._held[node]

    @property
    def fresh(self) -> bool:
        return not self._held

    def reset(self) -> None:
        self._held.clear()
        self._changed.clear()
        self._sites.clear()
        self._whole.clear()
        self._stale.clear()
        self._never.clear()

    def value(self, node: Node) -> object:
        return self._held.get(node)

    @functools.cached_property
    def counted(self) -> list[Step]:
        return [step for step in self.plan.steps if step.head.op != "constant"]

    def site_counts(self) -> list[int]:
        sites = [self._sites[step] for step in self.counted]
        return [
            int(mask.sum()) if isinstance(mask, torch.Tensor) else self.positions(step) * int(mask)
            for step, mask in zip(self.counted, sites, strict=True)
        ]

    def moved(self, step: Step) -> bool:
        changed = self._changed.get(step.output, False)
        return bool(changed.any()) if isinstance(changed, torch.Tensor) else False

    def sites_mask(self, step: Step) -> torch.Tensor:
        sites = self._sites.get(step, False)
        return sites.clone() if isinstance(sites, torch.Tensor) else torch.full(self.grid(step), sites)

    def set_threshold(self, step: Step, value: float) -> None:
        if value < self._thresholds.get(step, 0.0):
            self._whole.add(step)  # positions that were left alone under the old threshold may be too far off under the new one
        self._thresholds[step] = value

    def set_needed(self, step: Step, mask: torch.Tensor | None) -> None:
        if mask is None:
            self._needed.pop(step, None)
        else:
            self._needed[step] = mask.to(torch.bool, copy=True)

    def zero(self, step: Step, mask: torch.Tensor) -> None:
        held = self._held.get(step.output)
        if held is not None and self._is_map(step.output):
            self._held[step.output] = self._as_map(held).masked_fill(mask.to(held.device)[:, None], 0).reshape(held.shape)

    def blank(self, value: float) -> None:
        del value  # what was never computed is 0 and known by its mask: library kernels may touch it, and NaN would spread

    def std(self, step: Step) -> float:
        value = self._held.get(step.output)
        if step in self._never and isinstance(value, torch.Tensor):
            value = self._as_map(value).movedim(1, -1)[~self._never[step]]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
            return 0.0
        return float(value.to(torch.float64).std(correction=0))

    def where(self, step: Step) -> tuple[str, str]:
        return "torch", ""

    def memory(self) -> dict[str, int]:
        table = {node.name: value.nbytes for node, value in self._held.items() if isinstance(value, torch.Tensor) and node.op != "constant"}
        masks = [*self._changed.values(), *self._sites.values(), *self._needed.values(), *self._stale.values(), *self._never.values()]
        table["masks and scratch"] = sum(m.nbytes for m in masks if isinstance(m, torch.Tensor)) + sum(
            k.nbytes for k in self._kernels.values()
        )
        return table


def _moved(value: torch.Tensor, by: tuple[int, int]) -> torch.Tensor:
    """A copy in which cell (y, x) of the last two axes holds what (y + by[0], x + by[1]) held; cells that nothing moves to keep theirs."""
    result = value.clone()
    h, w = value.shape[-2:]
    (y0, y1), (x0, x1) = ((max(0, -d), min(size, size - d)) for size, d in zip((h, w), by, strict=True))
    if y1 > y0 and x1 > x0:
        result[..., y0:y1, x0:x1] = value[..., y0 + by[0] : y1 + by[0], x0 + by[1] : x1 + by[1]]
    return result
