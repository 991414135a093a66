"""What must hold of one random network on one random video, checked on every executor.

What belongs here: the checks of one case, which is one seed. What does not: which seeds are run (test_fuzz.py: some in every test run;
fuzz.py: as many as wanted), and what a network looks like (networks.py).

The laws: dense float64 within the tolerance law; sites outside hold the same bits; a second run gives the same bits, and so does any
number of threads and a run that begins at the last frame; a static frame costs nothing; with thresholds, every held map is within its
threshold of the recomputed one.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

import oracle
from networks import RandomNetwork, video
from sightline import kernels
from sightline.graph import blocks
from sightline.graph.capture import capture
from sightline.graph.executor import Executor
from sightline.graph.lower import Lowered, lower
from sightline.graph.native import NativeExecutor
from sightline.graph.plan import Plan, make_plan
from sightline.graph.torch_executor import TorchExecutor

FRAMES = 4
THREADS = (1, 2, 3)
_NORMS = ("rms", "max", "l2")


def check(seed: int, everything: bool = False) -> int:
    """Checks one network and one video.

    Args:
        seed: of both.
        everything: on every instruction set, with every number of threads. Else the best instruction set and one of the others in turn,
            one number of threads in turn, and thresholds on one executor in turn.

    Returns:
        How many runs of the video were compared.
    """
    case = _Case(seed)
    isas = case.isas if everything else list(dict.fromkeys([*case.isas[:1], *case.isas[seed % max(len(case.isas), 1) :][:1]]))
    runs = case.exact("torch")
    for isa in isas:
        runs += case.exact(isa) + case.repeated(isa, THREADS if everything else THREADS[seed % 3 :][:1])
    within = ["torch", *case.isas]
    for name in within if everything else within[seed % len(within) :][:1]:
        runs += case.within_thresholds(name)
    return runs


def check_bfloat16(seed: int) -> None:
    """The same in bfloat16, step by step: over a whole deep network either error is luck at three digits.

    Every other seed computes a float32 network and frames in bfloat16; the rest are of bfloat16 throughout.
    """
    network = RandomNetwork(seed)
    captured = torch.bfloat16 if seed % 2 else torch.float32
    network.to(captured)
    with blocks_on_small_maps(seed):
        plan = make_plan(capture(network, torch.zeros(network.shape, dtype=captured)))
    frames = video(network.shape, 3, seed, captured)
    module = kernels.native()
    isas = module.usable_isas() if module is not None else []
    for isa in {*isas[:1], *isas[seed // 2 % max(len(isas), 1) :][:1]}:
        assert module is not None
        lowered = lower(plan, module, isa, torch.bfloat16)
        executor, again = (NativeExecutor(lowered, "rms", None) for _ in range(2))
        for index, frame in enumerate(frames):
            where = f"seed {seed}, bfloat16, {isa}, frame {index}"
            before = {} if executor.fresh else oracle.snapshot(executor)
            executor.run(frame)
            oracle.assert_within(executor, {}, "rms", where)
            oracle.assert_untouched_outside_sites(executor, before, where)
            again.run(frame)
            oracle.assert_bits_equal(outputs(executor), outputs(again), f"{where}: two runs")
        fresh = NativeExecutor(lowered, "rms", None)
        fresh.run(frames[-1])
        oracle.assert_bits_equal(
            list(map(_unsigned_zeros, outputs(executor))),
            list(map(_unsigned_zeros, outputs(fresh))),
            f"seed {seed}, bfloat16, {isa}: its own dense run",
        )
        executor.run(frames[-1].clone())
        assert not any(executor.site_counts()), f"seed {seed}, bfloat16, {isa}: a static frame is not free"


class _Case:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.network = RandomNetwork(seed)
        with blocks_on_small_maps(seed):
            self.plan: Plan = make_plan(capture(self.network, torch.zeros(self.network.shape)))
        self.frames = video(self.network.shape, FRAMES, seed)
        with torch.no_grad():
            double = copy.deepcopy(self.network).double()
            self.truth = [oracle.tensors(double(frame.double())) for frame in self.frames]
        self.plain = [oracle.plain_results(self.network, frame, truth) for frame, truth in zip(self.frames, self.truth, strict=True)]
        # the law for the video as one tensor: what one frame's errors are is partly luck, where an output has few values
        self.limits = [
            oracle.allowed(torch.stack(plain), torch.stack(truth))
            for plain, truth in zip(zip(*self.plain, strict=True), zip(*self.truth, strict=True), strict=True)
        ]
        self.module: ModuleType | None = kernels.native()
        self.isas: list[str] = [] if self.module is None else self.module.usable_isas()
        self.lowered: dict[str, Lowered] = {}
        self.held: dict[str, list[list[Tensor]]] = {}  # outputs of every frame, of the run with one thread

    def executor(self, name: str, norm: str = "rms") -> Executor:
        if name == "torch":
            return TorchExecutor(self.plan, norm, None)
        if name not in self.lowered:
            assert self.module is not None
            self.lowered[name] = lower(self.plan, self.module, name)
        return NativeExecutor(self.lowered[name], norm, None)

    def exact(self, name: str) -> int:
        """Threshold 0 on one thread: the tolerance law, nothing outside the sites moves, a static frame is free."""
        executor = self.executor(name)
        self.held[name] = []
        with threads(1):
            for index, frame in enumerate(self.frames):
                where = f"seed {self.seed}, {name}, frame {index}"
                before = {} if executor.fresh else oracle.snapshot(executor)
                executor.run(frame)
                oracle.assert_law(outputs(executor), self.plain[index], self.truth[index], where, self.limits)
                oracle.assert_untouched_outside_sites(executor, before, where)
                self.held[name].append(outputs(executor))
            executor.run(self.frames[-1].clone())
        assert not any(executor.site_counts()), f"seed {self.seed}, {name}: a static frame is not free"
        return 1

    def repeated(self, name: str, numbers: Sequence[int]) -> int:
        """The same video again, with these numbers of threads, and the last frame alone: the same bits."""
        for number in numbers:
            executor = self.executor(name)
            with threads(number):
                for index, frame in enumerate(self.frames):
                    executor.run(frame)
                    where = f"seed {self.seed}, {name}, frame {index}: again, on {number} threads"
                    oracle.assert_bits_equal(outputs(executor), self.held[name][index], where)
        fresh = self.executor(name)
        fresh.run(self.frames[-1])
        ours, dense = (list(map(_unsigned_zeros, values)) for values in (self.held[name][-1], outputs(fresh)))
        oracle.assert_bits_equal(ours, dense, f"seed {self.seed}, {name}: its own dense run")
        return len(numbers) + 1

    def within_thresholds(self, name: str) -> int:
        """Thresholds on every step: held maps stay within them, on any number of threads the same bits."""
        rng = random.Random(self.seed)
        norm, share = rng.choice(_NORMS), rng.choice([0.01, 0.1, 0.4])
        first: list[list[Tensor]] = []
        runs = [1] if name == "torch" else [1, rng.choice([2, 3])]
        for number in runs:
            executor = self.executor(name, norm)
            limits = {}
            with threads(number):
                for index, frame in enumerate(self.frames):
                    where = f"seed {self.seed}, {name}, {norm}, {share} deviations, frame {index}, {number} threads"
                    before = {} if executor.fresh else oracle.snapshot(executor)
                    executor.run(frame)
                    oracle.assert_untouched_outside_sites(executor, before, where)
                    if index == 0:
                        limits = {step: share * executor.std(step) for step in self.plan.steps}
                        for step, limit in limits.items():
                            executor.set_threshold(step, limit)
                    elif number == 1:
                        oracle.assert_within(executor, limits, norm, where)
                    if number == 1:
                        first.append(outputs(executor))
                    else:
                        oracle.assert_bits_equal(outputs(executor), first[index], where)
        return len(runs)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """The native executor on this many threads."""
    before = kernels.get_num_threads()
    kernels.set_num_threads(number)
    try:
        yield
    finally:
        kernels.set_num_threads(before)


@contextmanager
def blocks_on_small_maps(seed: int) -> Iterator[None]:
    """Every other seed computes depthwise blocks in one pass, as networks on large maps do."""
    least = 0 if seed % 2 else 1 << 40
    with mock.patch.multiple(blocks, LEAST_POSITIONS_AFTER=0, LEAST_POSITIONS_BEFORE=0, LEAST_BYTES=least):
        yield


def outputs(executor: Executor) -> list[Tensor]:
    """Copies of what the network returns."""
    values = [executor.value(node) for node in executor.plan.graph.outputs]
    return [value.clone() for value in values if isinstance(value, Tensor)]


def _unsigned_zeros(value: Tensor) -> Tensor:
    """-0 equals 0 and so does not count as changed: which of the two is held depends on the past."""
    return value + 0 if value.is_floating_point() else value
