"""Decides which maps are not held because a later step computes them as it goes.

A depthwise convolution does little work on wide maps; around it stand a convolution that widens and one that narrows
(MobileNets, EfficientNets and their kin). Held, the wide maps cost more in memory traffic than in arithmetic. So the three are
computed in one pass, and only the last map is held and has a threshold. An executor may still hold the maps in between, with
threshold 0: the results are the same.

What it costs: the first convolution runs wherever a window reads, also where nothing changed, and two thresholds are gone that would
have stopped some changes. On small maps that outweighs the traffic, which stays in a cache anyway; there all maps are held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sightline.graph.ir import Graph, Node

if TYPE_CHECKING:
    from sightline.graph.plan import Step

# Positions from which the output and the input of a depthwise convolution are not held, and bytes for either.
LEAST_POSITIONS_AFTER = 1024
LEAST_POSITIONS_BEFORE = 2048
LEAST_BYTES = 1 << 20


def mark_blocks(graph: Graph, steps: list[Step], users: dict[Node, list[Node]]) -> None:
    """Sets `inside` of the steps whose maps are not held."""
    by_output = {step.output: step for step in steps}
    by_head = {step.head: step for step in steps}

    def only_reader(step: Step) -> Step | None:
        if step.output in graph.outputs or len(users[step.output]) != 1 or "own_threshold" in step.output.attrs:
            return None
        return by_head.get(users[step.output][0])

    ends: set[Step] = set()  # a step that computes others must be held itself
    for step in steps:
        if not is_depthwise(step):
            continue
        last = step
        follower = only_reader(step)
        if follower is not None and step.residual is None and _is_pointwise(follower) and _is_large(step.output, LEAST_POSITIONS_AFTER):
            last = follower
            step.inside = last
        source = by_output.get(step.inputs[0])
        if (
            source is not None
            and source not in ends
            and _widens(source)
            and only_reader(source) is step
            and _is_large(source.output, LEAST_POSITIONS_BEFORE)
        ):
            source.inside = last
        if last is not step or (source is not None and source.inside is last):
            ends.add(last)


def _is_conv(step: Step) -> bool:
    shape = step.output.shape
    return step.head.op == "conv2d" and not step.head.attrs.get("transposed", False) and shape is not None and len(shape) == 4


def is_depthwise(step: Step) -> bool:
    """One filter per channel."""
    if not _is_conv(step):
        return False
    weight, groups = step.head.attrs["weight"], step.head.attrs["groups"]
    return bool(groups == weight.shape[0] and weight.shape[1] == 1 and groups > 1)


def _is_pointwise(step: Step) -> bool:
    if not _is_conv(step):
        return False
    a = step.head.attrs
    return bool(tuple(a["weight"].shape[2:]) == (1, 1) and tuple(a["stride"]) == (1, 1) and not any(a["padding"]) and a["groups"] == 1)


def _widens(step: Step) -> bool:
    return _is_conv(step) and not is_depthwise(step) and step.residual is None


def _is_large(node: Node, positions: int) -> bool:
    assert node.shape is not None
    _, channels, h, w = node.shape
    return h * w >= positions and 4 * channels * h * w >= LEAST_BYTES
