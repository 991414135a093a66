"""The table that says how many sites of every layer a focused model computes, and what that saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sightline.graph.executor import Executor
from sightline.graph.needed import Masks
from sightline.graph.plan import Plan, Step

_COLUMNS = ("call site", "kind", "runs on", "sites", "of", "share", "MACs saved", "note")


@dataclass(frozen=True)
class FocusExplanation:
    """One row per call site, in execution order, for the area as it was when asked.

    Attributes:
        rows: dictionaries with the keys site, op, kind, executor, sites (positions computed per forward), positions (of a dense run),
            share (sites / positions), macs (of a dense run), macs_done, saved (1 - macs_done / macs of this row, 0 without MACs) and note.
        mode: "exact" or "zero".
        remark: what holds for the whole network, or "".
    """

    rows: list[dict[str, Any]]
    mode: str
    remark: str = ""

    @classmethod
    def of(cls, plan: Plan, executor: Executor, masks: Masks | None, mode: str) -> FocusExplanation:
        """Collects the table; `masks` None: everything is computed."""
        rows = []
        for step in plan.steps:
            if step.head.op == "constant":
                continue
            positions = executor.positions(step)
            need = None if masks is None else masks.get(step)
            sites = positions if need is None else int(need.sum())
            share = sites / positions
            done = round(step.macs * share)
            op = step.head.op
            rows.append(
                {
                    "site": step.name,
                    "op": str(step.head.attrs["target"]) if op == "torch" else op,
                    "kind": step.kind,
                    "executor": executor.where(step)[0],
                    "sites": sites,
                    "positions": positions,
                    "share": share,
                    "macs": step.macs,
                    "macs_done": done,
                    "saved": 1 - done / step.macs if step.macs else 0.0,
                    "note": _note(step, need is None or bool(need.any()), mode),
                }
            )
        return cls(rows, mode, _remark(plan, masks, mode))

    @property
    def macs_share(self) -> float:
        """Multiply-accumulates of one forward over those of a dense one, 0 to 1."""
        dense = sum(row["macs"] for row in self.rows)
        return sum(row["macs_done"] for row in self.rows) / dense if dense else 0.0

    def __str__(self) -> str:
        cells = [list(_COLUMNS)]
        for row in self.rows:
            saved = f"{row['saved']:.1%}" if row["macs"] else ""
            numbers = [str(row["sites"]), str(row["positions"]), f"{row['share']:.1%}", saved]
            cells.append([row["site"], row["kind"], row["executor"], *numbers, row["note"]])
        widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
        end = f'mode "{self.mode}": {self.macs_share:.1%} of the dense MACs'
        return "\n".join([*lines, end, *([self.remark] if self.remark else [])])


def _is_global(step: Step) -> bool:
    return step.kind in {"global", "opaque"} and any(node.shape is not None and len(node.shape) == 4 for node in step.inputs)


def _note(step: Step, used: bool, mode: str) -> str:
    if not used or not _is_global(step):
        return ""
    kind = "global" if step.kind == "global" else "no rule for this op"
    return f"{kind}: needs its whole input" if mode == "exact" else f"{kind}: reads its whole input, which is 0 outside the area"


def _remark(plan: Plan, masks: Masks | None, mode: str) -> str:
    if mode != "exact" or masks is None:
        return ""
    reaching = [step for step in plan.steps if _is_global(step) and bool(masks[step].any())]
    if not reaching:
        return ""
    first = reaching[0]
    return (
        f"'{first.name}' reads a whole map, so in exact mode everything above it is computed for any area; "
        'mode="zero" computes the area only.'
    )
