"""The tolerance law, and what else is said of computed values; one table of floors for the whole test run.

The law: the error against float64 is at most twice that of plain PyTorch in the same element type, plus a floor per type. Errors are
the largest absolute difference of a tensor; the floor is relative to its largest exact value.

What belongs here: assert helpers on values (each has a test that it can fail, in test_oracle.py). What does not: what is computed
(cases.py, networks.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sightline.graph.executor import Executor, run_chain
from sightline.graph.ir import Node
from sightline.graph.plan import Step

# A few units in the last place of the largest value: what another order of additions costs where plain PyTorch happens to be exact.
FLOORS: dict[torch.dtype, float] = {
    torch.float64: 16 * torch.finfo(torch.float64).eps,
    torch.float32: 16 * torch.finfo(torch.float32).eps,
    torch.bfloat16: 1 * torch.finfo(torch.bfloat16).eps,
    torch.float16: 1 * torch.finfo(torch.float16).eps,
}


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a nested result, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def error(got: Tensor, exact: Tensor) -> float:
    """Largest absolute difference; infinite where one is NaN or infinite and the other is something else."""
    assert got.shape == exact.shape, f"shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    ours, theirs = got.detach().to(torch.float64), exact.detach().to(torch.float64)
    if not ours.numel():
        return 0.0
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = torch.where(same, 0.0, (ours - theirs).abs())
    return float(torch.where(difference.isnan(), torch.inf, difference).max())


def allowed(plain: Tensor, exact: Tensor) -> float:
    """The largest error that the law lets pass."""
    finite = exact.detach().to(torch.float64).nan_to_num(0.0, 0.0, 0.0)
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return 2 * error(plain, exact) + FLOORS[plain.dtype] * scale


def plain_results(model: nn.Module, frame: Tensor, exact: Any) -> list[Tensor]:
    """What plain PyTorch gives for a whole network: with channels first and with channels last, the worse of the two per output.

    torch's own ops differ in exactness between the two (group norm, say), and in a deep network either error is partly luck.
    """
    with torch.no_grad():
        first, last = tensors(model(frame)), tensors(model(frame.to(memory_format=torch.channels_last)))
    return [max(pair, key=lambda value, t=truth: error(value, t)) for *pair, truth in zip(first, last, tensors(exact), strict=True)]  # type: ignore[misc]


def assert_law(got: Any, plain: Any, exact: Any, where: str = "", limits: Sequence[float] = ()) -> None:
    """Fails unless every tensor of a result obeys the tolerance law.

    Args:
        got: what is tested; any nesting of tensors.
        plain: the same from PyTorch in the same element type.
        exact: the same in float64.
        where: what the message begins with.
        limits: per tensor, the largest error that the law allows for all frames of a video, taken as one tensor; counts where it is
            larger. An output of one number, a sum that cancels, say, is as exact in any single frame as luck will have it.
    """
    results = [tensors(value) for value in (got, plain, exact)]
    assert len({len(result) for result in results}) == 1, f"{where}: {[len(result) for result in results]} tensors"
    assert results[0], f"{where}: no tensors at all"
    for index, (ours, theirs, truth) in enumerate(zip(*results, strict=True)):
        assert ours.dtype == theirs.dtype, f"{where}: output {index} is {ours.dtype}, PyTorch's is {theirs.dtype}"
        if not ours.is_floating_point():
            assert torch.equal(ours, theirs), f"{where}: output {index} (not of floats) differs"
            continue
        ours_off, most = error(ours, truth), allowed(theirs, truth)
        if limits:
            most = max(most, limits[index])
        assert ours_off <= most, f"{where}: output {index} of {tuple(ours.shape)}: error {ours_off:.3g}, allowed {most:.3g}"


def assert_sums_law(got: Any, plain: Any, exact: Any, magnitude: Any, where: str = "") -> None:
    """The law for sums whose terms may cancel: the floor is relative to the largest sum of the terms' absolute values.

    Args:
        got: what is tested; any nesting of tensors.
        plain: the same from PyTorch in the same element type.
        exact: the same in float64.
        magnitude: the same in float64 with every term replaced by its absolute value.
        where: what the message begins with.
    """
    results = [tensors(value) for value in (got, plain, exact, magnitude)]
    assert len({len(result) for result in results}) == 1, f"{where}: {[len(result) for result in results]} tensors"
    for index, (ours, theirs, truth, size) in enumerate(zip(*results, strict=True)):
        assert ours.dtype == theirs.dtype, f"{where}: output {index} is {ours.dtype}, PyTorch's is {theirs.dtype}"
        most = 2 * error(theirs, truth) + FLOORS[theirs.dtype] * (float(size.abs().max()) if size.numel() else 0.0)
        off = error(ours, truth)
        assert off <= most, f"{where}: output {index} of {tuple(ours.shape)}: error {off:.3g}, allowed {most:.3g}"


def assert_bits_equal(got: Any, wanted: Any, where: str = "") -> None:
    """Fails unless both results hold the same bits (NaN equals NaN of the same bits)."""
    ours, theirs = tensors(got), tensors(wanted)
    assert len(ours) == len(theirs), f"{where}: {len(ours)} tensors, expected {len(theirs)}"
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{where}: output {index}"
        differs = bits(a) != bits(b)
        assert not differs.any(), f"{where}: output {index} differs at {int(differs.sum())} of {differs.numel()} values"


def bits(value: Tensor) -> Tensor:
    """The same memory as integers."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.detach().contiguous().view(kinds[value.element_size()])


def distance(delta: Tensor, norm: str) -> Tensor:
    """Size of a difference (n, c, h, w) or (n, c) at every position, in the norm that thresholds are measured with."""
    if norm == "max":
        return delta.abs().amax(1)
    size = delta.square().sum(1)
    return (size / delta.shape[1]).sqrt() if norm == "rms" else size.sqrt()


def assert_within(executor: Executor, thresholds: Mapping[Step, float], norm: str, where: str = "") -> None:
    """Law 2: what every step holds lies within its threshold of what its inputs, as held, give.

    Recomputed twice: in float64, and in the element type of the map, whose error is forgiven by the tolerance law.
    """

    def exact_input(node: Node) -> Tensor:
        value = executor.value(node)
        return value.to(torch.float64) if isinstance(value, Tensor) and value.is_floating_point() else value  # type: ignore[return-value]

    for step in executor.plan.steps:
        if step.head.op in {"input", "constant"} or not executor.holds(step):
            continue
        held = executor.value(step.output)
        if not isinstance(held, Tensor) or not held.is_floating_point() or not held.numel():
            continue
        chain = executor.chain(step)
        exact, plain = run_chain(chain, exact_input), run_chain(chain, executor.value)  # type: ignore[arg-type]
        reads = {node for part in chain for node in part.inputs if node not in chain}
        channels = held.dim() in {2, 4}
        limit = thresholds.get(step, 0.0) if channels else 0.0
        delta = exact - held.to(torch.float64)
        worst = float((distance(delta, norm) if channels else delta.abs()).max())
        # forgiven: rounding of every channel, also where large inputs cancel, and of the comparison, which is done in the map's own type
        given = [value for value in map(executor.value, reads) if isinstance(value, Tensor) and value.is_floating_point() and value.numel()]
        cancelled = FLOORS[held.dtype] * max((float(value.nan_to_num(0, 0, 0).abs().max()) for value in given), default=0.0)
        slack = (allowed(plain, exact) + cancelled) * (
            held.shape[1] ** 0.5 if norm == "l2" and channels else 1.0
        ) + limit * 64 * torch.finfo(held.dtype).eps
        assert worst <= limit + slack, f"{where}: {step.name} ({step.head.op}) is {worst:.4g} away, threshold {limit:.4g}"


def snapshot(executor: Executor) -> dict[Step, Tensor]:
    """Copies of all maps and vectors that steps hold, to be compared with later."""
    held = {step: executor.value(step.output) for step in executor.plan.steps if step.head.op != "constant" and executor.holds(step)}
    return {step: value.clone() for step, value in held.items() if isinstance(value, Tensor) and value.dim() in {2, 4}}


def assert_untouched_outside_sites(executor: Executor, before: Mapping[Step, Tensor], where: str = "") -> None:
    """Fails unless every position that a step did not compute in the last frame holds the same bits as before."""
    counts = dict(zip(executor.counted, executor.site_counts(), strict=True))
    for step, old in before.items():
        if step not in counts:  # only renames memory
            continue
        new = executor.value(step.output)
        assert isinstance(new, Tensor)
        outside = ~executor.sites_mask(step)
        assert int(counts[step]) == int((~outside).sum()), f"{where}: {step.name} counts {counts[step]} sites"
        if old.numel():
            differs = (bits(new) != bits(old)).any(1).reshape(outside.shape)
            assert not (differs & outside).any(), f"{where}: {step.name} ({step.head.op}) moved outside its sites"
