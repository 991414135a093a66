"""Every layer on every executor and every instruction set of this CPU: against float64, with and without thresholds."""

from __future__ import annotations

import copy
import functools
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import oracle
from cases import CASES, Apply, Case
from networks import video
from sightline import kernels
from sightline.graph.capture import capture
from sightline.graph.executor import Executor
from sightline.graph.lower import lower
from sightline.graph.native import NativeExecutor
from sightline.graph.plan import Plan, make_plan
from sightline.graph.rules import reference
from sightline.graph.torch_executor import TorchExecutor

ISAS = ("avx512", "avx2", "baseline")


@functools.cache
def _module() -> ModuleType:
    module = kernels.native()
    if module is None:
        pytest.skip(str(kernels.native_status()["reason"]))
    return module


def executors(plan: Plan, norm: str = "rms") -> dict[str, Executor]:
    """The torch executor, and a native one per instruction set that this CPU has."""
    module = _module()
    native = {isa: NativeExecutor(lower(plan, module, isa), norm, None) for isa in module.usable_isas()}
    return {"torch": TorchExecutor(plan, norm, None), **native}


def bfloat16_executors(plan: Plan, norm: str = "rms", turn: int = 0) -> dict[str, Executor]:
    """Native executors in bfloat16: the best instruction set, and one of the others (which emulate) in turn."""
    best, *others = _module().usable_isas()
    isas = [best, others[turn % len(others)]] if others else [best]
    return {f"bfloat16, {isa}": NativeExecutor(lower(plan, _module(), isa, torch.bfloat16), norm, None) for isa in isas}


def plan_of(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Plan:
    return make_plan(capture(model, torch.zeros(shape, dtype=dtype)))


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_set(isa: str) -> None:
    module = _module()
    if isa not in module.usable_isas():
        with pytest.raises(ValueError, match=isa):
            module.Program(isa)
        pytest.skip(f"this CPU has no {isa}")
    assert module.Program(isa).isa == isa
    assert module.Program(isa).lanes == {"avx512": 16, "avx2": 8, "baseline": 4}[isa]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(case: Case) -> None:
    """Dense, then sparse: outputs obey the tolerance law, and nothing outside the sites moves by a bit."""
    model = case.model()
    plan = plan_of(model, case.shape)
    exact, frames = copy.deepcopy(model).double(), video(case.shape, 4, 1)
    for name, executor in executors(plan).items():
        for index, frame in enumerate(frames):
            before = {} if executor.fresh else oracle.snapshot(executor)
            executor.run(frame)
            where = f"{name}, frame {index}"
            with torch.no_grad():
                oracle.assert_law([executor.value(node) for node in plan.graph.outputs], model(frame), exact(frame.double()), where)
            oracle.assert_untouched_outside_sites(executor, before, where)
    if case.native:
        assert not [step for step in plan.steps if executor.where(step)[0] != "native"], executor
    else:
        assert [step for step in plan.steps if executor.where(step)[0] != "native"], "give the case native=True"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity_in_bfloat16(case: Case) -> None:
    """The same for a model and frames of bfloat16; and sparse is what dense is, to the bit."""
    model = case.model().to(torch.bfloat16)
    plan = plan_of(model, case.shape, torch.bfloat16)
    exact, frames = copy.deepcopy(model).double(), video(case.shape, 3, 1, torch.bfloat16)
    with torch.no_grad():
        plain, truth = [model(frame) for frame in frames], [exact(frame.double()) for frame in frames]
    for name, executor in bfloat16_executors(plan, turn=CASES.index(case)).items():
        for index, frame in enumerate(frames):
            before = {} if executor.fresh else oracle.snapshot(executor)
            executor.run(frame)
            where = f"{name}, frame {index}"
            oracle.assert_law([executor.value(node) for node in plan.graph.outputs], plain[index], truth[index], where)
            oracle.assert_untouched_outside_sites(executor, before, where)
        sparse = [_unsigned_zeros(executor.value(node)) for node in plan.graph.outputs]
        executor.reset()
        executor.run(frames[-1])
        oracle.assert_bits_equal(
            sparse, [_unsigned_zeros(executor.value(node)) for node in plan.graph.outputs], f"{name}: its own dense run"
        )
    # a float32 tensor inside the function makes float32 of what it meets, in PyTorch and here
    mixed = any(node.dtype == torch.float32 for node in plan.graph.nodes)
    assert (case.native and not mixed) == (not [step for step in plan.steps if executor.where(step)[0] != "native"])


def _unsigned_zeros(value: object) -> object:
    """-0 equals 0 and so does not count as changed: which of the two is held depends on the past."""
    return value + 0 if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_held_maps_stay_within_their_thresholds(case: Case) -> None:
    """Law 2, layer by layer; recomputed from what is held. A small threshold, so that nothing hides behind it, and a large one."""
    norms = ["rms", "max", "l2"]
    first = CASES.index(case) % 3
    plan = plan_of(case.model(), case.shape)
    for norm, share in ((norms[first], 0.4), (norms[first - 1], 0.01)):
        for name, executor in executors(plan, norm).items():
            thresholds = {}
            for index, frame in enumerate(video(case.shape, 4, 2)):
                executor.run(frame)
                if index == 0:
                    thresholds = {step: share * executor.std(step) for step in plan.steps}  # those that a stream leaves at 0 too
                    for step, value in thresholds.items():
                        executor.set_threshold(step, value)
                else:
                    oracle.assert_within(executor, thresholds, norm, f"{name}, {norm}, frame {index}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_held_maps_of_bfloat16_stay_within_their_thresholds(case: Case) -> None:
    """A model of float32 computed in bfloat16; frames of float32."""
    norm = ["rms", "max", "l2"][CASES.index(case) % 3]
    plan = plan_of(case.model(), case.shape)
    both = list(bfloat16_executors(plan, norm, CASES.index(case)).items())
    for name, executor in both[CASES.index(case) % len(both) :][:1]:
        thresholds = {}
        for index, frame in enumerate(video(case.shape, 3, 2)):
            executor.run(frame)
            if index == 0:
                thresholds = {step: 0.2 * executor.std(step) for step in plan.steps}
                for step, value in thresholds.items():
                    executor.set_threshold(step, value)
            else:
                oracle.assert_within(executor, thresholds, norm, f"{name}, {norm}, frame {index}")


def test_long_sums_are_as_exact_as_plain_pytorch() -> None:
    """The tolerance law for the root mean square, which luck cannot hide: one sum over thousands of products loses digits."""
    for kernel, channels in ((1, 512), (1, 2048), (3, 64), (3, 256), (3, 512)):
        model = nn.Conv2d(channels, 32, kernel).eval()
        shape = (1, channels, 8, 8)
        plan, frame = plan_of(model, shape), torch.randn(shape)
        with torch.no_grad():
            exact, plain = copy.deepcopy(model).double()(frame.double()), model(frame)
        for name, executor in executors(plan).items():
            executor.run(frame)
            got = executor.value(plan.graph.outputs[0])
            assert isinstance(got, Tensor)
            ours, theirs = (float((value.double() - exact).square().mean().sqrt()) for value in (got, plain))
            assert ours <= 2 * theirs, f"{name}: {kernel}x{kernel} of {channels} channels: {ours / theirs:.1f} times the error"


def test_executors_agree_on_what_changes() -> None:
    """With one threshold on the frame and on the layers, both executors compute the same sites."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 20, 3, stride=2), nn.Hardswish()).eval()
    plan = plan_of(model, (2, 3, 20, 22))
    for norm in ("rms", "max", "l2"):
        masks: dict[str, list[Tensor]] = {}
        for name, executor in executors(plan, norm).items():
            for step in plan.steps:
                executor.set_threshold(step, 0.05)
            for frame in video((2, 3, 20, 22), 4, 3):
                executor.run(frame)
            masks[name] = [executor.sites_mask(step) for step in plan.steps]
            assert 0 < sum(int(mask.sum()) for mask in masks[name])
        for name, found in masks.items():
            for step, ours, wanted in zip(plan.steps, found, masks["torch"], strict=True):
                assert torch.equal(ours, wanted), f"{name}: {step.name}"


def test_standard_deviation_of_a_nearly_constant_map() -> None:
    """A large mean must not drown it: it is the unit of thresholds."""
    plan = plan_of(nn.ReLU(), (1, 3, 16, 16))
    frame = 1000 + 0.01 * torch.randn(1, 3, 16, 16)
    for name, executor in executors(plan).items():
        executor.run(frame)
        for step in plan.steps:
            assert executor.std(step) == pytest.approx(float(frame.double().std(correction=0)), rel=1e-6), name
    for executor in executors(plan).values():
        executor.run(torch.full((1, 3, 16, 16), 0.1))
        assert executor.std(plan.steps[-1]) == pytest.approx(0, abs=1e-12)


def test_sites_can_be_given() -> None:
    """Benchmarks force sites: exactly those are computed, from the inputs as they are."""
    model = nn.Conv2d(2, 3, 3, padding=1).eval()
    plan = plan_of(model, (1, 2, 8, 9))
    executor = NativeExecutor(lower(plan, _module(), kernels.isa()), "rms", None)
    first, second = torch.randn(2, 1, 2, 8, 9)
    executor.run(first)
    step, mask = plan.steps[-1], torch.rand(1, 8, 9) < 0.3
    executor.force_sites(step, mask)
    executor.run(second)
    with torch.no_grad():
        wanted = torch.where(mask[:, None], model(second), model(first))
    assert oracle.error(executor.value(step.output), wanted) < 1e-5  # type: ignore[arg-type]
    assert torch.equal(executor.sites_mask(step), mask)
    executor.force_sites(step, None)
    executor.run(first)
    executor.run(second)
    oracle.assert_law(executor.value(step.output), model(second), reference(plan.graph, second.double()))


class TestThreads:
    """Any number of threads gives the same bits."""

    @pytest.fixture(autouse=True)
    def _threads_as_before(self) -> object:
        before = kernels.get_num_threads()
        yield
        kernels.set_num_threads(before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        ("model", "shape"),
        [
            pytest.param(lambda: nn.Conv2d(64, 256, 3, padding=1), (1, 64, 12, 12), id="wide"),
            pytest.param(lambda: nn.Conv2d(62, 62, 3, padding=1, groups=2), (2, 62, 24, 24), id="panels that overlap"),
            pytest.param(lambda: nn.Conv2d(3, 32, 7, 2, 3), (1, 3, 64, 64), id="stem"),
            pytest.param(lambda: nn.ConvTranspose2d(40, 90, 4, 2, 1), (1, 40, 15, 15), id="transposed"),
            pytest.param(lambda: nn.Conv2d(96, 96, 5, padding=2, groups=96), (1, 96, 30, 30), id="depthwise"),
            pytest.param(
                lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3), nn.Upsample(scale_factor=3.0, mode="bicubic")),
                (1, 64, 48, 48),
                id="windows",
            ),
            pytest.param(
                lambda: Apply(lambda x: torch.cat([x * x.mean((2, 3), keepdim=True), x], 1)), (2, 64, 40, 40), id="mean, gate, cat"
            ),
            pytest.param(
                lambda: nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 300), nn.ReLU(), nn.Linear(300, 200)), (1, 1, 64, 64), id="head"
            ),
        ],
    )
    def test_bits_do_not_depend_on_threads(self, model: type[nn.Module], shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        plan = plan_of(model().eval(), shape)
        lowered = lower(plan, _module(), kernels.isa(), dtype)
        results: dict[int, list[Tensor]] = {}
        for threads in (1, 2, 3):
            kernels.set_num_threads(threads)
            executor = NativeExecutor(lowered, "rms", None)
            results[threads] = []
            for frame in video(shape, 4, 1):
                executor.run(frame)
                results[threads] += [
                    value.clone() for value in (executor.value(node) for node in plan.graph.outputs) if isinstance(value, Tensor)
                ]
        assert len(results[1]) == 4
        for threads in (2, 3):
            oracle.assert_bits_equal(results[threads], results[1], f"{threads} threads")
