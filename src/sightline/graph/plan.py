"""Groups the nodes of a graph into steps: what is computed together, published once, and held.

A step is a *head* (convolution, pooling, addition ...) followed by what is fused behind it: an addition of another map of the
same grid (the residual) and an activation, in either order. Only the last value of a step exists in memory; it is *held* from
frame to frame. Every executor runs the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sightline.graph import blocks, rules
from sightline.graph.ir import Graph, Node
from sightline.graph.simplify import simplify

# Heads behind which an addition of another map may be fused.
_TAKES_RESIDUAL = {"conv2d", "knn_conv", "affine"}
# Heads behind which nothing is fused: they do not compute new values, or somebody else runs them.
_TAKES_NOTHING = {"input", "constant", "torch", "item", "cat", "slice", "flatten", "softmax", "linear"}
# Ops that may read one vector at every position of a map.
_SPREADS = {"add", "sub", "mul", "div", "maximum", "minimum", "upsample"}
# Heads that only move values: publishing them with a threshold would add error and save nothing.
_MOVES_ONLY = {"cat", "slice", "pad", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "flatten", "item", "constant", "max_pool2d"}


@dataclass(eq=False)
class Step:
    """One unit of work.

    Attributes:
        name: call-site name of the head.
        head: the node that gives the step its kind.
        nodes: head and fused nodes, in execution order; the value of the last one is what the step holds.
        residual: the node whose value is added, or None.
        residual_after_act: the addition comes after the activation.
        act: the fused (or sole) activation node, or None.
        truncates: whether a threshold applies (some steps only move values, or feed nobody, or are not held).
        gate: its value has no positions and is multiplied, added or spread over a whole map: if it moves, that map is recomputed.
        inside: the later step that may compute this one as it goes, so that its value need not be held (see blocks.py), or None.
    """

    name: str
    head: Node
    nodes: list[Node]
    residual: Node | None = None
    residual_after_act: bool = False
    act: Node | None = None
    truncates: bool = True
    gate: bool = False
    inside: Step | None = None

    @property
    def output(self) -> Node:
        """The node whose value this step holds."""
        return self.nodes[-1]

    @property
    def inputs(self) -> list[Node]:
        """Values that the head reads (the residual not included)."""
        return self.head.inputs

    @property
    def reads(self) -> list[Node]:
        """All values that the step reads."""
        return [*self.inputs, *([self.residual] if self.residual is not None else [])]

    @property
    def kind(self) -> str:
        """Rule kind of the head."""
        return "input" if self.head.op == "input" else rules.rule_of(self.head).kind

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one dense run."""
        return sum(rules.rule_of(node).macs(node) for node in self.nodes if node.op != "input")


@dataclass(eq=False)
class Plan:
    """A graph as a list of steps; the first one is the frame.

    Attributes:
        graph: the simplified graph.
        steps: in execution order.
    """

    graph: Graph
    steps: list[Step]
    by_output: dict[Node, Step] = field(init=False)

    def __post_init__(self) -> None:
        self.by_output = {step.output: step for step in self.steps}

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one dense run of the whole network."""
        return sum(step.macs for step in self.steps)


def make_plan(graph: Graph) -> Plan:
    """Simplifies a graph, fuses what belongs together and orders the steps."""
    graph = simplify(graph)
    users = graph.users()
    position = {node: i for i, node in enumerate(graph.nodes)}
    taken: set[Node] = set()
    finished: list[tuple[int, Step]] = []
    for node in graph.nodes:
        if node in taken:
            continue
        step = Step(node.name, node, [node])
        if node.op == "act":
            step.act = node
        elif node.op not in _TAKES_NOTHING:
            _extend(step, graph, users, taken)
        taken.update(step.nodes)
        finished.append((position[step.output], step))
    finished.sort(key=lambda item: item[0])
    steps = [step for _, step in finished]
    steps.sort(key=lambda step: step.head.op not in {"input", "constant"})  # stable: constants first
    steps.sort(key=lambda step: step.head.op != "input")
    blocks.mark_blocks(graph, steps, users)
    for step in steps:
        feeds_someone = any(user for user in users[step.output])
        step.truncates = step.head.op not in _MOVES_ONLY and feeds_someone and step.inside is None
    _mark_gates(graph, steps)
    return Plan(graph, steps)


def _mark_gates(graph: Graph, steps: list[Step]) -> None:
    """Sets `gate`. Behind what only moves values (slices of an attention, say) stands the step that computed them."""
    by_output = {step.output: step for step in steps}
    waiting = [
        operand
        for node in graph.nodes
        if node.op in _SPREADS and _has_positions(node)
        for operand in node.inputs
        if operand.op != "constant" and not _has_positions(operand)
    ]
    while waiting:
        step = by_output.get(waiting.pop())
        if step is None or step.gate:
            continue
        if step.truncates:
            step.gate = True
        else:
            waiting += [node for node in step.reads if node.op != "constant" and not _has_positions(node)]


def _has_positions(node: Node) -> bool:
    return node.shape is None or len(node.shape) != 4 or node.shape[2] * node.shape[3] > 1


def _extend(step: Step, graph: Graph, users: dict[Node, list[Node]], taken: set[Node]) -> None:
    while True:
        last = step.output
        if last in graph.outputs or len(users[last]) != 1 or "own_threshold" in last.attrs:
            return
        follower = users[last][0]
        if follower in taken:
            return
        if follower.op == "act" and step.act is None and not step.residual_after_act:
            step.act = follower
        elif follower.op == "add" and step.residual is None and step.head.op in _TAKES_RESIDUAL and len(follower.inputs) == 2:
            other = follower.inputs[1] if follower.inputs[0] is last else follower.inputs[0]
            if (
                other is last
                or other.shape != last.shape
                or follower.shape != last.shape
                or other.dtype != last.dtype
                or other.op == "constant"
            ):
                return
            step.residual = other
            step.residual_after_act = step.act is not None
        else:
            return
        step.nodes.append(follower)
