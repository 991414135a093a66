"""The table that says what a stream does at each call site, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sightline.graph.executor import Executor
from sightline.graph.plan import Plan
from sightline.stats import FrameStats

_COLUMNS = ("call site", "kind", "runs on", "density", "MACs", "note")


@dataclass(frozen=True)
class Explanation:
    """One row per call site, in execution order.

    Attributes:
        rows: dictionaries with the keys site, op, kind, executor, density (mean, 0 to 1), macs (of a dense run), share (of the
            network's dense MACs), moved (of a global gate: the share of frames in which it moved; else None), fused (names of call sites
            computed in the same step) and note (why it is dense, if it is).
    """

    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, plan: Plan, executor: Executor, stats: FrameStats) -> Explanation:
        """Collects the table from a plan, the executor that runs it and its counters."""
        total = max(plan.macs, 1)
        rows = []
        for step in plan.steps:
            if step.head.op == "constant":
                continue
            where, note = executor.where(step)
            fused = [node.name for node in step.nodes[1:]]
            if not note and step.head.op in {"torch", "item"}:
                note = "no rule for this op: computed densely, then compared with what is held"
            op = step.head.op
            rows.append(
                {
                    "site": step.name,
                    "op": str(step.head.attrs["target"]) if op == "torch" else op,
                    "kind": step.kind,
                    "executor": where,
                    "density": stats.density.get(step.name, 0.0),
                    "macs": step.macs,
                    "share": step.macs / total,
                    "moved": stats.gates.get(step.name, 0.0) if step.gate else None,
                    "fused": fused,
                    "note": note or (f"with {', '.join(fused)}" if fused else ""),
                }
            )
        return cls(rows)

    @classmethod
    def joined(cls, parts: dict[str, Explanation], reason: str) -> Explanation:
        """One table for a model that was captured in parts; the reason stands in the first row."""
        total = max(sum(row["macs"] for part in parts.values() for row in part.rows), 1)
        outside = {"site": "(outside the parts below)", "op": "python", "kind": "opaque", "executor": "torch", "density": 1.0, "macs": 0}
        rows: list[dict[str, Any]] = [{**outside, "share": 0.0, "moved": None, "fused": [], "note": f"runs as it is: {reason}"}]
        for prefix, part in parts.items():
            rows += [{**row, "site": f"{prefix}.{row['site']}", "share": row["macs"] / total} for row in part.rows]
        return cls(rows)

    @property
    def dense(self) -> list[dict[str, Any]]:
        """The rows that have no rule or no native step, with the reason in ``note``."""
        return [row for row in self.rows if row["kind"] == "opaque" or (row["executor"] == "torch" and row["note"])]

    def __str__(self) -> str:
        cells = [list(_COLUMNS)]
        for row in self.rows:
            gate = "" if row["moved"] is None else f"gate, moved in {row['moved']:.0%} of the frames"
            note = "; ".join(filter(None, (gate, row["note"])))
            cells.append([row["site"], row["kind"], row["executor"], f"{row['density']:.1%}", f"{row['share']:.1%}", note])
        widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)
