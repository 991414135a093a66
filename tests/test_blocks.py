"""Blocks: [convolution ->] depthwise convolution [-> pointwise convolution] in one pass, of which only the last map is held."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import oracle
from networks import video
from sightline import kernels
from sightline.graph import blocks, rules
from sightline.graph.capture import capture
from sightline.graph.executor import Executor
from sightline.graph.lower import lower
from sightline.graph.native import NativeExecutor
from sightline.graph.plan import Plan, make_plan
from sightline.sites import Sites


@pytest.fixture(autouse=True)
def _every_block(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small maps too, else none of these networks would have a block."""
    if kernels.native() is None:
        pytest.skip(str(kernels.native_status()["reason"]))
    for name in ("LEAST_POSITIONS_AFTER", "LEAST_POSITIONS_BEFORE", "LEAST_BYTES"):
        monkeypatch.setattr(blocks, name, 0)
    yield
    kernels.native().set_num_threads(1)  # type: ignore[union-attr]


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return x + y


def inverted(
    cin: int, wide: int, cout: int, kernel: int = 3, stride: int = 1, dilation: int = 1, act: type[nn.Module] = nn.ReLU6
) -> nn.Sequential:
    reach = (kernel - 1) * dilation
    return nn.Sequential(
        nn.Conv2d(cin, wide, 1),
        nn.BatchNorm2d(wide),
        act(),
        nn.Conv2d(wide, wide, kernel, stride, reach // 2, dilation, groups=wide, bias=False),
        act(),
        nn.Conv2d(wide, cout, 1),
    )


# name -> (network, shape of the frame, how many maps are not held)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int, int], int]] = {
    "inverted residual": (lambda: Residual(inverted(5, 24, 5)), (1, 5, 17, 19), 2),
    "stride 2": (lambda: inverted(4, 18, 7, stride=2), (1, 4, 20, 17), 2),
    "stride 3": (lambda: inverted(4, 18, 7, stride=3), (1, 4, 16, 23), 2),
    "stride 3, one inner column": (lambda: inverted(4, 18, 7, stride=3), (1, 4, 8, 6), 2),
    "5x5": (lambda: inverted(6, 33, 9, 5), (1, 6, 14, 15), 2),
    "5x5, stride 2, hardswish": (lambda: inverted(6, 33, 9, 5, 2, act=nn.Hardswish), (1, 6, 15, 14), 2),
    "7x7, silu": (lambda: inverted(6, 20, 9, 7, act=nn.SiLU), (1, 6, 13, 12), 2),
    "dilated": (lambda: inverted(6, 20, 9, 3, dilation=3), (1, 6, 19, 16), 2),
    "batch": (lambda: Residual(inverted(3, 40, 3)), (3, 3, 11, 12), 2),
    "kernel larger than the map": (lambda: inverted(3, 17, 5, 7), (1, 3, 3, 4), 2),
    "wide map, several strips": (lambda: inverted(3, 200, 5), (1, 3, 6, 260), 2),
    "prelu": (lambda: nn.Sequential(nn.Conv2d(4, 12, 1), nn.PReLU(12), nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.PReLU(12),
                                    nn.Conv2d(12, 6, 1), nn.PReLU(6)), (1, 4, 12, 13), 2),
    "stem": (lambda: nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
                                   nn.Conv2d(16, 8, 1)), (1, 3, 30, 34), 2),
    "grouped before": (lambda: nn.Sequential(nn.Conv2d(8, 24, 3, padding=1, groups=2), nn.ReLU(),
                                             nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 5, 1)), (1, 8, 12, 11), 2),
    "separable": (lambda: nn.Sequential(nn.Conv2d(12, 12, 3, 2, 1, groups=12), nn.ReLU(), nn.Conv2d(12, 20, 1), nn.ReLU()),
                  (1, 12, 18, 17), 1),
    "without a last convolution": (lambda: nn.Sequential(nn.Conv2d(6, 20, 1), nn.ReLU(), nn.Conv2d(20, 20, 3, padding=1, groups=20),
                                                         nn.SiLU(), nn.MaxPool2d(2)), (1, 6, 14, 13), 1),
    "separable, one after the other": (lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 9, 1), nn.ReLU(),
        nn.Conv2d(9, 9, 3, 2, 1, groups=9), nn.ReLU(), nn.Conv2d(9, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)), (1, 3, 15, 18), 3),
    "two blocks": (lambda: nn.Sequential(inverted(3, 20, 6), inverted(6, 30, 4, stride=2)), (2, 3, 18, 21), 4),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Plan, tuple[int, int, int, int]]:
    make, shape, missing = NETWORKS[name]
    with torch.random.fork_rng([]):
        torch.manual_seed(len(name))
        model = make().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0, (1.5 / parameter[0].numel()) ** 0.5)
    plan = make_plan(capture(model, torch.zeros(shape)))
    assert sum(step.inside is not None for step in plan.steps) == missing
    return model, plan, shape


def native(plan: Plan, isa: str | None = None, norm: str = "rms") -> NativeExecutor:
    module = kernels.native()
    assert module is not None
    return NativeExecutor(lower(plan, module, isa or module.usable_isas()[0]), norm, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_in_one_pass_or_map_by_map_the_bits_are_the_same(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan, shape = build(name)
    monkeypatch.setattr(blocks, "LEAST_BYTES", 1 << 40)
    held = make_plan(capture(model, torch.zeros(shape)))
    assert not any(step.inside for step in held.steps)
    module = kernels.native()
    assert module is not None
    for isa in module.usable_isas():
        one, other = (NativeExecutor(lower(p, module, isa, dtype), "rms", None) for p in (plan, held))
        for frame in video(shape, 4, 9):
            one.run(frame)
            other.run(frame)
            oracle.assert_bits_equal([v + 0 for v in result(one)], [v + 0 for v in result(other)], f"{isa}, {dtype}")


def result(executor: Executor) -> list[Tensor]:
    return [value.clone() for value in (executor.value(node) for node in executor.plan.graph.outputs) if isinstance(value, Tensor)]


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_dense_and_itself(name: str) -> None:
    model, plan, shape = build(name)
    exact = copy.deepcopy(model).double()
    frames = video(shape, 5, 3)
    module = kernels.native()
    assert module is not None
    for isa in module.usable_isas():
        executor = native(plan, isa)
        for index, frame in enumerate(frames):
            before = {} if executor.fresh else oracle.snapshot(executor)
            executor.run(frame)
            where = f"{isa}, frame {index}"
            with torch.no_grad():
                oracle.assert_law(result(executor), [model(frame)], [exact(frame.double())], where)
            oracle.assert_untouched_outside_sites(executor, before, where)
            dense = native(plan, isa)
            dense.run(frame)
            oracle.assert_bits_equal([v + 0 for v in result(executor)], [v + 0 for v in result(dense)], where)
        executor.run(frames[-1].clone())
        assert not any(executor.site_counts()), "a static frame is not free"


@pytest.mark.parametrize("name", NETWORKS)
def test_threads_and_runs_are_bit_equal(name: str) -> None:
    _, plan, shape = build(name)
    module = kernels.native()
    assert module is not None
    runs = []
    for threads in (1, 2, 3, 1):
        module.set_num_threads(threads)
        executor = native(plan)
        values, counts = [], []
        for frame in video(shape, 4, 5):
            executor.run(frame)
            values += result(executor)
            counts.append(executor.site_counts())
        runs.append((values, counts))
    for values, counts in runs[1:]:
        oracle.assert_bits_equal(values, runs[0][0], name)
        assert counts == runs[0][1]


@pytest.mark.parametrize("norm", ["rms", "max", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_held_map_stays_within_its_threshold(name: str, norm: str) -> None:
    _, plan, shape = build(name)
    executor = native(plan, norm=norm)
    thresholds = {}
    for index, frame in enumerate(video(shape, 4, 2)):
        executor.run(frame)
        if index == 0:
            thresholds = {step: 0.3 * executor.std(step) for step in plan.steps if step.truncates}
            for step, value in thresholds.items():
                executor.set_threshold(step, value)
        else:
            oracle.assert_within(executor, thresholds, norm, f"frame {index}")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_convolution_computes_what_the_windows_read(name: str) -> None:
    """No more, no less: `inputs_of` of the sites of the depthwise convolution."""
    _, plan, shape = build(name)
    executor = native(plan)
    frames = video(shape, 3, 7)
    for frame in frames:
        executor.run(frame)
        for step in plan.steps:
            if step.inside is None or blocks.is_depthwise(step):
                continue
            middle = next(s for s in plan.steps if s.inputs and s.inputs[0] is step.output)
            footprint = rules.rule_of(middle.head).footprint(middle.head)
            assert footprint is not None
            wanted = footprint.inputs_of(Sites.from_mask(executor.sites_mask(middle)))
            assert torch.equal(executor.sites_mask(step), wanted.mask), step.name


def test_a_lower_threshold_reaches_what_was_left_alone() -> None:
    _, plan, shape = build("inverted residual")
    executor = native(plan)
    first, second = video(shape, 2, 1)
    last = plan.steps[-1]
    executor.run(first)
    executor.set_threshold(last, 1e9)
    executor.run(second)
    executor.set_threshold(last, 0.0)
    executor.run(second.clone())
    dense = native(plan)
    dense.run(second)
    oracle.assert_bits_equal([v + 0 for v in result(executor)], [v + 0 for v in result(dense)])


def test_maps_inside_a_block_take_no_memory_and_no_threshold() -> None:
    _, plan, shape = build("inverted residual")
    executor = native(plan)
    executor.run(video(shape, 1, 1)[0])
    inside = [step for step in plan.steps if step.inside is not None]
    assert not any(step.truncates or executor.holds(step) for step in inside)
    assert not {step.output.name for step in inside} & set(executor.memory())
    assert all("not held" in executor.where(step)[1] for step in inside)


def test_no_step_is_both_an_end_and_inside() -> None:
    for name in NETWORKS:
        _, plan, _ = build(name)
        ends = {step.inside for step in plan.steps if step.inside is not None}
        assert not any(step.inside is not None for step in ends), name


def test_small_maps_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    make, shape, _ = NETWORKS["inverted residual"]
    assert not any(step.inside for step in make_plan(capture(make().eval(), torch.zeros(shape))).steps)
    large = make_plan(capture(inverted(3, 96, 8).eval(), torch.zeros(1, 3, 64, 64)))
    assert sum(step.inside is not None for step in large.steps) == 2
