"""Which edits make a network fit an input resolution: a search over the captured graph.

Designs are tried on the meta device: every set of strides taken out or moved, with the stem's kernel as it is or smaller; and of each
of these the network as it is, with its unproductive kernels narrowed to 1 x 1, and with its tail cut in front of the first unproductive
layer. Of all designs only those are kept that no other beats in unproductive layers, work, depth and number of edits at once.

What belongs here: designs and their ranking. What does not: the edits themselves (`edits.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from sightline.errors import ShapeError
from sightline.fields.diagnosis import Diagnosis, resolution_of
from sightline.fields.edits import Canvas, Edit, edited
from sightline.graph.ir import Graph, Node

if TYPE_CHECKING:
    from sightline.fields.report import Report

Goal = Literal["efficiency", "performance"]
Progress = Callable[[int, int], None]
HYPOTHESIS = "a hypothesis: train it and compare before you trust it"
_STRIDED = frozenset({"conv2d", "max_pool2d", "avg_pool2d"})
_GROUPS = 6  # strides that are tried in all combinations; more would take the search beyond a minute


@dataclass(frozen=True)
class Figures:
    """What a design amounts to at the resolution.

    Attributes:
        unproductive: number of unproductive layers.
        critical: number of critical layers.
        layers: convolutions with a window of more than one cell.
        macs: multiply-accumulates.
        params: parameters.
        field: largest finite field per axis.
    """

    unproductive: int
    critical: int
    layers: int
    macs: int
    params: int
    field: tuple[int, ...]


@dataclass(frozen=True)
class Suggestion:
    """One design.

    Attributes:
        edits: what to change.
        consequences: "resize" edits that follow from a cut.
        before: figures of the network as it is.
        after: figures that are predicted.
        input_shape: of the input that it is meant for.
    """

    edits: tuple[Edit, ...]
    consequences: tuple[Edit, ...]
    before: Figures
    after: Figures
    input_shape: tuple[int, ...]

    hypothesis = HYPOTHESIS

    @property
    def macs_ratio(self) -> float:
        """Predicted work as a share of the work before."""
        return self.after.macs / max(self.before.macs, 1)

    @property
    def params_ratio(self) -> float:
        """Predicted parameters as a share of those before."""
        return self.after.params / max(self.before.params, 1)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        figures = {name: asdict(getattr(self, name)) for name in ("before", "after")}
        return {
            "edits": [edit.to_dict() for edit in self.edits],
            "consequences": [edit.to_dict() for edit in self.consequences],
            **figures,
            "macs_ratio": self.macs_ratio,
            "params_ratio": self.params_ratio,
            "note": HYPOTHESIS,
        }

    def __str__(self) -> str:
        after, before = self.after, self.before
        return (
            f"{'; '.join(map(str, self.edits))}: {self.macs_ratio:.3g} x MACs, {self.params_ratio:.3g} x parameters, unproductive "
            f"layers {before.unproductive} -> {after.unproductive}, critical {before.critical} -> {after.critical}, convolutions "
            f"{before.layers} -> {after.layers} ({HYPOTHESIS})"
        )


def suggest(
    report: Report,
    resolution: int | Sequence[int],
    *,
    goal: Goal = "efficiency",
    limit: int = 10,
    seconds: float = 60.0,
    progress: Progress | None = None,
) -> list[Suggestion]:
    """Edits that make a network fit an input resolution.

    Args:
        report: of an image network. Where it was made from an ``nn.Module``, only layers that are modules are edited, so that
            `sightline.fields.apply` can do the same.
        resolution: of the inputs to come; an int for square ones, or (h, w).
        goal: "efficiency" puts designs without unproductive layers and with little work first; "performance" those that, in
            addition, keep the whole depth.
        limit: number of suggestions, at most.
        seconds: the search ends after this time with what it has.
        progress: called with (designs tried, designs in all).

    Returns:
        Suggestions, best first; empty if the network is fine as it is or nothing helps. Each is a hypothesis until trained.

    Raises:
        ShapeError: a resolution that is none, a goal that does not exist, or a network that is not about images.
    """
    if goal not in {"efficiency", "performance"}:
        raise ShapeError(f"goal: expected 'efficiency' or 'performance', got {goal!r}")
    if report.axes != 2:
        raise ShapeError(f"report: expected a network with inputs (n, c, h, w), got {report.input_shape}")
    search = _Search(report, resolution_of(resolution, 2))
    return search.run(goal, limit, time.monotonic() + seconds, progress)


class _Search:
    def __init__(self, report: Report, resolution: tuple[int, ...]) -> None:
        self.report = report
        self.resolution = resolution
        self.canvas = Canvas(report.graph)
        self.passages = _passages(self.canvas.graph, self.canvas.users)
        outer_first = sorted(self.canvas.modules, key=lambda path: path.count("."))  # stable: in order of execution otherwise
        self.modules = [path for path in outer_first if self._is_module(path)]
        self.found: dict[tuple[Edit, ...], Suggestion] = {}
        base = self._tried(())
        self.base = base[1] if base is not None else _figures(report, report.diagnose(resolution), resolution)
        self.outputs = None if base is None else [node.shape for node in base[0].graph.outputs]

    def run(self, goal: Goal, limit: int, deadline: float, progress: Progress | None) -> list[Suggestion]:
        designs = list(self._designs())
        for number, edits in enumerate(designs):
            self._explore(edits)
            if progress is not None:
                progress(number + 1, len(designs))
            if time.monotonic() > deadline:
                break
        kept = _undominated([s for s in self.found.values() if s.edits and self._helps(s.after)])
        if goal == "performance":
            kept.sort(key=lambda s: (s.after.unproductive, -s.after.layers, s.after.macs, len(s.edits)))
        else:
            kept.sort(key=lambda s: (s.after.unproductive, s.after.macs, -s.after.layers, len(s.edits)))
        return kept[:limit]

    def _helps(self, figures: Figures) -> bool:
        return figures.unproductive < self.base.unproductive or (
            figures.unproductive == self.base.unproductive and figures.critical < self.base.critical
        )

    # -- one design ---------------------------------------------------------------------------------------------------------------

    def _tried(self, edits: Sequence[Edit]) -> tuple[Report, Figures, list[Edit]] | None:
        """The report on a design and its figures; None if it cannot be built."""
        from sightline.fields.analysis import analyze_graph

        try:
            graph, resized = edited(self.canvas, edits, self.resolution, self.report.origin.name)
        except ShapeError:
            return None
        inputs = [node.name for node in graph.nodes if node.op == "input"]
        report = analyze_graph(graph, ignore_gates=self.report.ignore_gates, of=inputs.index(self.report.origin.name))
        return report, _figures(report, report.diagnose(), self.resolution), resized

    def _enter(self, edits: Sequence[Edit], figures: Figures, resized: Sequence[Edit]) -> None:
        shape = (*self.report.input_shape[:2], *self.resolution)
        self.found[tuple(edits)] = Suggestion(tuple(edits), tuple(resized), self.base, figures, shape)

    def _explore(self, edits: Sequence[Edit]) -> None:
        """One set of strides and kernels: as it is, narrowed, and cut."""
        tried = self._tried(edits)
        if tried is None:
            return
        report, figures, _ = tried
        self._enter(edits, figures, ())
        if not figures.unproductive:
            return
        wasted = [verdict.layer for verdict in report.diagnose().broken("unproductive")]
        if all(self._is_module(name) for name in wasted) and all(report.layers[name].op == "conv2d" for name in wasted):
            narrow = Edit("kernel", tuple(wasted), (1, 1))
            narrowed = self._tried([*edits, narrow])
            if narrowed is not None:
                self._enter([*edits, narrow], narrowed[1], ())
        for cut in self._cuts(wasted):
            shortened = self._tried([*edits, cut])
            if shortened is None or shortened[1].unproductive:
                continue
            fits = self.outputs is None or [node.shape for node in shortened[0].graph.outputs] == self.outputs
            sees_all = all(size >= r for size, r in zip(shortened[1].field, self.resolution, strict=True))
            if fits and sees_all and all(self._is_module(name) for edit in shortened[2] for name in edit.layers):
                self._enter([*edits, cut], shortened[1], shortened[2])
                break

    def _is_module(self, name: str) -> bool:
        model = self.report._model
        if model is None:
            return True
        try:
            model.get_submodule(name)
        except AttributeError:
            return False
        return True

    # -- designs ------------------------------------------------------------------------------------------------------------------

    def _designs(self) -> Iterator[tuple[Edit, ...]]:
        """Sets of strides taken out or moved, each with the stem as it is and narrower."""
        stems: list[tuple[Edit, ...]] = [(), *((edit,) for edit in self._stems())]
        groups = self._stride_groups()[:_GROUPS]
        places = self._pool_places()
        for count in range(len(groups) + 1):
            for chosen in combinations(groups, count):
                strides = tuple(edit for group in chosen for edit in group)
                for stem in stems:
                    if strides or stem or not self.found:
                        yield (*stem, *strides)
        order = {node.name: number for node, number in self.canvas.order.items()}
        for group in groups:
            last = max(order[name] for edit in group for name in edit.layers)
            for place in places:
                if max(self.canvas.order[node] for node in self.canvas.inside(place.layers[0])) > last:  # only later: fields get smaller
                    for stem in stems:
                        yield (*stem, *group, place)

    def _stems(self) -> list[Edit]:
        """Smaller kernels for the convolutions that read the input itself."""
        seen: set[Node] = {node for node in self.canvas.graph.nodes if node.op == "input"}
        wide = []
        for node in self.canvas.graph.nodes:
            if node.op == "conv2d" and node.inputs[0] in seen and not node.attrs["transposed"]:
                kernel = tuple(node.attrs["weight"].shape[2:])
                if min(kernel) > 3 and all(k % 2 for k in kernel) and self._is_module(node.name):
                    wide.append(node.name)
            elif node.op in {"affine", "scalar", "act", "identity", "pad"} and node.inputs[0] in seen:
                seen.add(node)
        return [Edit("kernel", tuple(wide), (3, 3))] if wide else []

    def _stride_groups(self) -> list[tuple[Edit, ...]]:
        """Layers with a stride, those on parallel branches together."""
        sites = [n for n in self.canvas.graph.nodes if n.op in _STRIDED and max(n.attrs["stride"]) > 1 and not n.attrs.get("transposed")]
        before: dict[Node, int] = {}
        for number, node in enumerate(self.canvas.graph.nodes):
            mask = 1 << number
            for operand in node.inputs:
                mask |= before[operand]
            before[node] = mask
        index = self.canvas.order
        groups: list[list[Node]] = []
        for site in sites:
            near = [g for g in groups if any(not before[site] >> index[other] & 1 for other in g)]
            groups = [g for g in groups if g not in near] + [[site, *(node for g in near for node in g)]]
        groups.sort(key=lambda group: min(index[node] for node in group))
        result = []
        for group in groups:
            convs = tuple(sorted((n.name for n in group if n.op == "conv2d"), key=lambda name: name))
            pools = tuple(n.name for n in group if n.op != "conv2d")
            if all(self._is_module(name) for name in (*convs, *pools)):
                edits = [Edit("stride", convs, (1, 1))] if convs else []
                result.append((*edits, *([Edit("remove", pools)] if pools else [])))
        return result

    def _pool_places(self, most: int = 8) -> list[Edit]:
        """Modules behind which a pool can stand: all paths lead through them."""
        points, places = set(self.passages), dict[Node, Edit]()
        for path in self.modules:
            found = self.canvas.region(path)
            if found is not None and found[1] in points and "pool" not in found[1].op:
                places.setdefault(found[1], Edit("pool", (path,), (2, 2)))  # of modules that end here, the outermost
        edits = [places[node] for node in sorted(places, key=lambda node: self.canvas.order[node])]
        return edits if len(edits) <= most else edits[:: -(-len(edits) // most)]

    # -- cuts ---------------------------------------------------------------------------------------------------------------------

    def _cuts(self, wasted: Sequence[str]) -> Iterator[Edit]:
        """Ways to end the trunk in front of the first wasted layer, the deepest first."""
        order = self.canvas.order
        first = min(number for node, number in order.items() if node.name in wasted)
        for start, cut in reversed(self._all_cuts):
            if order[start] < first:
                yield cut

    @cached_property
    def _all_cuts(self) -> list[tuple[Node, Edit]]:
        """All ways to end the trunk early, in the order of where it then ends."""
        points = [node for node in self.passages if len(node.shape or ()) == 4]
        head = next((number for number, node in enumerate(points) if _ends_trunk(node, self.canvas.users)), None)
        if head is None:
            return []
        convs = [node.inputs[0] for node in reversed(points[:head]) if node.op == "conv2d"]
        ends = [points[head], *convs[:1]]  # some networks end in a convolution that gives the classes: it must stay
        cuts = ((start, self._cut(start, end)) for start in points[:head] for end in reversed(ends))
        return [(start, cut) for start, cut in cuts if cut is not None]

    def _cut(self, start: Node, end: Node) -> Edit | None:
        """Take out all between two values, in whole modules; None if that cannot be done."""
        order = self.canvas.order
        left = dict.fromkeys(n for n in self.canvas.graph.nodes if order[start] < order[n] <= order[end] and n.op != "constant")
        paths: list[str] = []
        for path in self.modules:
            own = self.canvas.inside(path)
            if own.keys() <= left.keys() and self.canvas.region(path) is not None:
                paths.append(path)
                left = dict.fromkeys(node for node in left if node not in own)
        if not paths or any(node.op not in {"act", "identity", "scalar"} for node in left):
            return None
        return Edit("cut", tuple(sorted(paths, key=lambda path: order[next(iter(self.canvas.inside(path)))])))


def _ends_trunk(node: Node, users: dict[Node, list[Node]]) -> bool:
    """Whether what follows no longer is a map: a global pool, or flattening."""
    after = users[node]
    if not after:
        return False
    return all(
        user.op in {"global_avg_pool", "flatten", "adaptive_avg_pool2d", "adaptive_max_pool2d"} or len(user.shape or ()) < 4
        for user in after
    )


def _passages(graph: Graph, users: dict[Node, list[Node]]) -> list[Node]:
    """Nodes through which every path from the input to the outputs leads, in order."""
    index = {node: number for number, node in enumerate(graph.nodes)}
    result, furthest = [], -1
    outputs = set(graph.outputs)
    for node in graph.nodes:
        if node.op == "constant":
            continue
        if furthest <= index[node]:
            result.append(node)
        reach = len(graph.nodes) if node in outputs else max((index[user] for user in users[node]), default=-1)
        furthest = max(furthest, reach)
    return result


def _figures(report: Report, diagnosis: Diagnosis, resolution: Sequence[int]) -> Figures:
    del resolution
    exact = [layer for layer in report.layers.values() if layer.status == "exact"]
    field = tuple(int(max((layer.size[axis] or 0 for layer in exact), default=0)) for axis in range(report.axes))
    return Figures(
        unproductive=len(diagnosis.broken("unproductive")),
        critical=len(diagnosis.broken("critical")),
        layers=len(diagnosis.verdicts),
        macs=diagnosis.macs,
        params=sum(layer.params for layer in report.layers.values()),
        field=field,
    )


def _undominated(suggestions: Sequence[Suggestion]) -> list[Suggestion]:
    """Those that no other beats in every respect."""

    def cost(s: Suggestion) -> tuple[int, int, int, int]:
        return s.after.unproductive, s.after.macs, -s.after.layers, len(s.edits)

    kept: list[Suggestion] = []
    for one in sorted(suggestions, key=cost):
        if not any(all(a <= b for a, b in zip(cost(other), cost(one), strict=True)) for other in kept):
            kept.append(one)
    return kept
