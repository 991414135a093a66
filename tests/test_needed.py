"""What executors do when only part of every map is needed: right inside, nothing computed outside, nothing served stale, nothing leaks.

Maps start as NaN here (`blank`, and conftest's poisoned memory), and frames are NaN wherever nothing is needed of them, so whatever reads a
position that was never computed shows it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import oracle
from cases import Apply
from networks import RandomNetwork, video
from random_cases import blocks_on_small_maps
from sightline import kernels
from sightline.errors import FrameError
from sightline.graph.capture import capture
from sightline.graph.executor import Executor, run_chain
from sightline.graph.ir import Node
from sightline.graph.lower import lower
from sightline.graph.native import NativeExecutor
from sightline.graph.needed import Masks, Needs, area_on
from sightline.graph.plan import Plan, Step, make_plan
from sightline.graph.rules import positions_of
from sightline.graph.torch_executor import TorchExecutor

NAN = float("nan")


def executors(plan: Plan, norm: str = "rms") -> dict[str, Executor]:
    made: dict[str, Executor] = {"torch": TorchExecutor(plan, norm, None)}
    module = kernels.native()
    if module is not None:
        made["native"] = NativeExecutor(lower(plan, module, kernels.isa()), norm, None)
    for executor in made.values():
        executor.blank(NAN)
    return made


def plan_of(model: nn.Module, shape: tuple[int, ...]) -> Plan:
    return make_plan(capture(model.eval(), torch.zeros(shape)))


def limit(executor: Executor, masks: Masks | None) -> None:
    for step in executor.plan.steps:
        executor.set_needed(step, None if masks is None else masks.get(step))


def step_of(plan: Plan, op: str, which: int = 0) -> Step:
    return [step for step in plan.steps if step.head.op == op][which]


def assert_close(got: Tensor, want: Tensor, where: str) -> None:
    torch.testing.assert_close(got, want, msg=lambda text: f"{where}: {text}")


def box(h: int, w: int, y0: int, x0: int, y1: int, x1: int) -> Tensor:
    mask = torch.zeros(1, h, w, dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    return mask


def inside(area: Tensor, node: Node, value: Tensor) -> Tensor:
    """Bool like the value: where it must be right."""
    mask = area_on(area, node)
    if value.dim() == 4:
        return mask[:, None].expand_as(value)
    return mask.reshape(-1, 1).expand_as(value) if value.dim() == 2 else mask.any().expand_as(value)


def assert_right_inside(executor: Executor, area: Tensor, plain: list[Tensor], exact: list[Tensor], where: str) -> None:
    for index, node in enumerate(executor.plan.graph.outputs):
        value = executor.value(node)
        mask = inside(area, node, exact[index])
        if not isinstance(value, Tensor):
            assert value is None and not mask.any(), where
            continue
        got, theirs, truth = (torch.where(mask, v, torch.zeros((), dtype=v.dtype)) for v in (value, plain[index], exact[index]))
        oracle.assert_law(got, theirs, truth, f"{where}, output {index}")


def poisoned(frame: Tensor, masks: Masks | None, plan: Plan) -> Tensor:
    """The frame with NaN wherever nothing is needed of it."""
    return frame if masks is None else torch.where(masks[plan.steps[0]][:, None], frame, NAN)


def check(seed: int) -> None:
    """One random network, one random video, an area that jumps about, and now and then no area at all."""
    network = RandomNetwork(seed)
    with blocks_on_small_maps(seed):
        plan = plan_of(network, network.shape)
    needs, rng, generator = Needs(plan), random.Random(seed), torch.Generator().manual_seed(seed)
    double = copy.deepcopy(network).double()
    area = torch.ones(1, 1, 1, dtype=torch.bool)
    runs = executors(plan)
    size = (rng.randint(1, 12), rng.randint(1, 12))
    for index, frame in enumerate(video(network.shape, 6, seed)):
        if index != 1:
            area = torch.rand((rng.choice([1, network.shape[0]]), *size), generator=generator) < rng.choice([0, 0.02, 0.1, 0.3, 1.0])
        masks: Masks | None = needs.exact(area)
        if index and rng.random() < 0.15:
            masks, area = None, torch.ones(1, 1, 1, dtype=torch.bool)
        with torch.no_grad():
            exact = oracle.tensors(double(frame.double()))
        plain = oracle.plain_results(network, frame, exact)
        for name, executor in runs.items():
            where = f"seed {seed}, {name}, frame {index}"
            # what is concatenated in place moves with its parts, which others may need elsewhere
            before = {} if executor.fresh else {s: v for s, v in oracle.snapshot(executor).items() if s.head.op != "cat"}
            limit(executor, masks)
            executor.run(poisoned(frame, masks, plan))
            assert_right_inside(executor, area, plain, exact, where)
            oracle.assert_untouched_outside_sites(executor, before, where)
            if masks is not None:
                assert_only_needed(executor, masks, first=not before, where=where)
            executor.run(poisoned(frame, masks, plan))
            assert not any(executor.site_counts()), f"{where}: a static frame is not free"


def assert_only_needed(executor: Executor, masks: Masks, first: bool, where: str) -> None:
    for step, count in zip(executor.counted, executor.site_counts(), strict=True):
        need = masks[step]
        value = step.output
        is_map = value.shape is not None and len(value.shape) in {2, 4} and value.dtype is not None and value.dtype.is_floating_point
        if is_map:
            assert not (executor.sites_mask(step) & ~need).any(), f"{where}: {step.name} computes more than is needed"
        if first:
            want = int(need.sum()) if is_map else executor.positions(step) * bool(need.any())
            assert count == want, f"{where}: {step.name} computes {count} sites, the backward walk says {want}"


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_networks_and_areas(first: int) -> None:
    for seed in range(first, first + 10):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(40, 2040, 20))
def test_more_random_networks_and_areas(first: int) -> None:
    for seed in range(first, first + 20):
        check(seed)


@pytest.mark.parametrize("broken", ["keeps nothing stale", "needs too little"])
def test_the_check_can_fail(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "needs too little":
        original = Needs._back

        def back(self: Needs, step: Step, mask: Tensor, wanted: dict[Node, Tensor], only: Node | None = None) -> None:
            part: dict[Node, Tensor] = {}
            original(self, step, mask, part, only)
            for node, need in part.items():
                thinner = need.clone()
                thinner[:, 0, 0] = False
                wanted[node] = thinner if node not in wanted else wanted[node] | thinner

        monkeypatch.setattr(Needs, "_back", back)
    else:
        find = TorchExecutor._find_sites

        def forgetful(self: TorchExecutor, step: Step, fresh: bool) -> Tensor | bool:
            sites = find(self, step, fresh)
            self._stale.clear()
            return sites

        monkeypatch.setattr(TorchExecutor, "_find_sites", forgetful)
    seen = 0
    for seed in range(12):
        try:
            check(seed)
        except (AssertionError, FrameError, KeyError):
            seen += 1
    assert seen >= 3


# -- thresholds ---------------------------------------------------------------------------------------------------------------------


def assert_within_where_needed(executor: Executor, masks: Masks, limits: dict[Step, float], norm: str, where: str) -> None:
    """Law 2 at every position that is needed now."""
    for step in executor.plan.steps:
        held, head = executor.value(step.output), step.head.op
        if head in {"input", "constant"} or not isinstance(held, Tensor) or held.dim() not in {2, 4} or not held.is_floating_point():
            continue
        need = masks[step]
        if not need.any():
            continue

        def of_type(dtype: torch.dtype) -> Callable[[Node], Tensor]:
            def read(node: Node) -> Tensor:
                value = executor.value(node)
                return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value  # type: ignore[return-value]

            return read

        exact, plain = (run_chain(executor.chain(step), of_type(dtype)) for dtype in (torch.float64, torch.float32))
        size = positions_of(step.output)[1:]
        exact, plain, held = (value.reshape(*value.shape[:2], *size).movedim(1, -1)[need] for value in (exact, plain, held))
        delta = oracle.distance(exact - held.double(), norm)
        slack = oracle.allowed(plain, exact) + 1e-5 * float(exact.abs().max())
        assert float(delta.max()) <= limits.get(step, 0.0) + slack * exact.shape[1] ** 0.5, f"{where}: {step.name} ({head})"


@pytest.mark.parametrize("norm", ["rms", "max", "l2"])
def test_law_2_holds_where_needed_while_the_area_moves(norm: str) -> None:
    for seed in range(40, 46):
        network = RandomNetwork(seed)
        with blocks_on_small_maps(seed):
            plan = plan_of(network, network.shape)
        needs, generator = Needs(plan), torch.Generator().manual_seed(seed)
        for name, executor in executors(plan, norm).items():
            limits: dict[Step, float] = {}
            for index, frame in enumerate(video(network.shape, 5, seed)):
                area = torch.rand((1, 5, 5), generator=generator) < 0.3
                masks = needs.exact(area)
                limit(executor, masks)
                if index == 1:
                    limits = {step: 0.2 * executor.std(step) for step in plan.steps if step.truncates}
                    assert not any(value != value for value in limits.values())  # noqa: PLR0124
                    for step, value in limits.items():
                        executor.set_threshold(step, value)
                noise = 0.03 * torch.randn(frame.shape, generator=generator)
                executor.run(poisoned(frame + noise, masks, plan))
                assert_within_where_needed(executor, masks, limits, norm, f"seed {seed}, {name}, frame {index}")


@pytest.mark.parametrize("name", ["torch", "native"])
def test_what_is_computed_for_the_first_time_counts_as_changed_whatever_the_threshold(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
    plan = plan_of(model, (1, 1, 4, 6))
    executor = executors(plan).get(name)
    if executor is None:
        pytest.skip("no native executor here")
    needs = Needs(plan)
    for step in plan.steps:
        executor.set_threshold(step, 1e6)
    limit(executor, needs.exact(box(4, 6, 0, 0, 4, 3)))
    frame = torch.randn(1, 1, 4, 6)
    executor.run(frame)
    limit(executor, needs.exact(box(4, 6, 0, 0, 4, 6)))
    executor.run(frame)
    assert executor.site_counts() == [12, 12, 12]
    want = oracle.tensors(model(frame))
    got = executor.value(plan.graph.outputs[0])
    assert isinstance(got, Tensor)
    torch.testing.assert_close(got, want[0].detach())


@pytest.mark.parametrize("name", ["torch", "native"])
def test_the_standard_deviation_is_that_of_what_was_computed(name: str) -> None:
    model = nn.Conv2d(1, 3, 1)
    plan = plan_of(model, (2, 1, 8, 8))
    executor = executors(plan).get(name)
    if executor is None:
        pytest.skip("no native executor here")
    area = torch.rand(2, 8, 8) < 0.3
    limit(executor, Needs(plan).exact(area))
    frame = torch.randn(2, 1, 8, 8)
    executor.run(frame)
    with torch.no_grad():
        values = copy.deepcopy(model).double()(frame.double()).movedim(1, -1)[area]
    assert executor.std(plan.steps[-1]) == pytest.approx(float(values.std(correction=0)), rel=1e-5)
    assert executor.std(plan.steps[0]) == pytest.approx(float(frame[:, 0][area].double().std(correction=0)), rel=1e-5)


# -- kinds of steps -----------------------------------------------------------------------------------------------------------------


def test_a_mean_that_was_not_needed_sees_rows_that_changed_meanwhile() -> None:
    """Rows are summed up once and kept; which of them changed while nobody asked is not known any more."""
    model = Apply(lambda x: x.mean((2, 3)))
    plan = plan_of(model, (2, 3, 6, 5))
    needs = Needs(plan)
    everything, first_only = torch.ones(2, 1, 1, dtype=torch.bool), torch.tensor([True, False])[:, None, None]
    for name, executor in executors(plan).items():
        frame = torch.randn(2, 3, 6, 5)
        for area, row in ((everything, 0), (first_only, 1), (first_only, 2), (everything, 3)):
            frame = frame.clone()
            frame[:, :, row] += 1
            masks = needs.exact(area)
            limit(executor, masks)
            # as when another layer needs the maps: the frame is taken whole, the mean is not needed
            executor.set_needed(plan.steps[0], None)
            executor.run(frame)
            got = executor.value(plan.graph.outputs[0])
            assert isinstance(got, Tensor)
            want = frame.mean((2, 3))
            wanted = area[:, 0, 0]
            assert_close(got[wanted], want[wanted], f"{name}, {row}")


def test_a_concatenation_tells_of_changes_when_it_becomes_needed() -> None:
    """Its parts are needed by others all the time, its own reader only later."""

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        a = F.relu(x * 2 + 1)
        joined = torch.cat([a, x, a[:, :1]], 1)
        return a, F.max_pool2d(joined[:, 1:], 2)

    model = Apply(forward)
    plan = plan_of(model, (1, 3, 8, 8))
    needs = Needs(plan)
    for name, executor in executors(plan).items():
        frame = torch.randn(1, 3, 8, 8)
        whole = needs.exact(torch.ones(1, 1, 1, dtype=torch.bool))
        for index in range(4):
            frame = frame.clone()
            frame[:, :, index * 2] += 1
            masks = dict(whole)
            if index in (1, 2):
                for step in plan.steps:
                    if step.head.op in {"max_pool2d", "cat", "slice"} and step.output not in plan.graph.outputs[:1]:
                        masks[step] = torch.zeros_like(masks[step])
            limit(executor, masks)
            executor.run(frame)
            wanted = forward(frame)
            for node, want in zip(plan.graph.outputs, wanted, strict=True):
                if index not in (1, 2) or node is plan.graph.outputs[0]:
                    got = executor.value(node)
                    assert isinstance(got, Tensor)
                    assert_close(got, want, f"{name}, {index}")


def test_a_torch_step_rests_until_it_is_needed() -> None:
    """An op without a rule stands between native ones: not run while nobody needs it, run densely and at the needed sites after that."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), Apply(torch.sin), nn.Conv2d(3, 2, 1))
    plan = plan_of(model, (1, 2, 6, 6))
    needs = Needs(plan)
    opaque = step_of(plan, "torch")
    for name, executor in executors(plan).items():
        frame = torch.randn(1, 2, 6, 6)
        limit(executor, needs.exact(torch.zeros(1, 1, 1, dtype=torch.bool)))
        executor.run(torch.full_like(frame, NAN))
        assert not any(executor.site_counts()), name
        part = needs.exact(box(6, 6, 0, 0, 2, 2))
        limit(executor, part)
        executor.run(frame)
        assert int(executor.sites_mask(opaque).sum()) == int(part[opaque].sum()) == 4
        got = executor.value(plan.graph.outputs[0])
        assert isinstance(got, Tensor)
        torch.testing.assert_close(got[..., :2, :2], model(frame).detach()[..., :2, :2])


def test_a_lower_threshold_reaches_what_was_not_needed_at_the_time() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    plan = plan_of(model, (1, 1, 4, 4))
    needs = Needs(plan)
    for name, executor in executors(plan).items():
        first = plan.steps[1]
        executor.set_threshold(first, 10.0)
        frame = torch.randn(1, 1, 4, 4)
        executor.run(frame)
        executor.run(frame + 0.1)  # below the threshold: left alone
        limit(executor, needs.exact(box(4, 4, 0, 0, 2, 4)))
        executor.set_threshold(first, 0.0)
        executor.run(frame + 0.1)
        limit(executor, None)
        executor.run(frame + 0.1)
        got = executor.value(plan.graph.outputs[0])
        assert isinstance(got, Tensor)
        assert_close(got, model(frame + 0.1).detach(), name)


def test_busy_steps_stay_right_under_an_area() -> None:
    """Where nearly every needed site changes, steps stop comparing for some frames; stale sites must survive that."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    plan = plan_of(model, (1, 1, 12, 12))
    needs = Needs(plan)
    for name, executor in executors(plan).items():
        for index in range(24):
            area = box(12, 12, 0, 0, 6, 6) if index % 12 < 9 else box(12, 12, 3, 3, 11, 11)
            limit(executor, needs.exact(area))
            frame = torch.randn(1, 1, 12, 12)
            executor.run(frame)
            got, want = executor.value(plan.graph.outputs[0]), model(frame).detach()
            assert isinstance(got, Tensor)
            mask = area[:, None].expand_as(want)
            assert_close(got[mask], want[mask], f"{name}, {index}")


def test_bad_values_matter_only_where_the_frame_is_needed() -> None:
    plan = plan_of(nn.Conv2d(1, 1, 3, padding=1), (1, 1, 8, 8))
    masks = Needs(plan).exact(box(8, 8, 0, 0, 3, 3))
    for executor in executors(plan).values():
        limit(executor, masks)
        frame = torch.randn(1, 1, 8, 8)
        frame[0, 0, 3, 3] = NAN  # in the halo of the area
        with pytest.raises(FrameError, match="NaN"):
            executor.run(frame)
        assert executor.fresh
        frame[0, 0, 3, 3] = 0
        frame[0, 0, 3, 4] = NAN
        frame[0, 0, 7] = float("inf")
        executor.run(frame)
        limit(executor, None)
        with pytest.raises(FrameError, match="NaN"):
            executor.run(frame)


def test_a_pause_comes_between_steps() -> None:
    """Within a frame, after one step: masks of later steps may be set there."""
    sine, cosine = Apply(torch.sin), Apply(torch.cos)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), sine, nn.ReLU(), nn.Conv2d(2, 2, 1), cosine, nn.Conv2d(2, 1, 1))
    plan = plan_of(model, (1, 1, 5, 5))
    frame = torch.randn(1, 1, 5, 5)
    for name, executor in executors(plan).items():
        for at, step in enumerate(plan.steps):
            executor.reset()
            limit(executor, None)
            seen: list[int] = []

            def halfway(at: int = at, executor: Executor = executor, seen: list[int] = seen) -> None:
                seen.append(at)
                for later in plan.steps[at + 1 :]:
                    executor.set_needed(later, box(5, 5, 1, 1, 3, 4))

            executor.pause = (step, halfway)
            executor.run(frame)
            assert seen == [at]
            assert executor.site_counts() == [25 if index <= at else 6 for index in range(len(plan.steps))], f"{name}, {step.name}"
            got, want = executor.value(plan.graph.outputs[0]), model(frame).detach()
            assert isinstance(got, Tensor)
            torch.testing.assert_close(got[..., 1:3, 1:4], want[..., 1:3, 1:4])


# -- masks --------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 400), st.integers(0, 10_000))
def test_what_is_needed_is_what_is_read(seed: int, pick: int) -> None:
    """Against the definition: an input outside the needed set of the frame never moves a wanted output."""
    network = RandomNetwork(seed, 5)
    plan = plan_of(network, network.shape)
    area = torch.rand((1, 4, 4), generator=torch.Generator().manual_seed(pick)) < 0.15
    need = Needs(plan).exact(area)[plan.steps[0]]
    frame = video(network.shape, 1, seed)[0].double()
    double = copy.deepcopy(network).double()
    with torch.no_grad():
        one = oracle.tensors(double(frame))
        other = oracle.tensors(double(torch.where(need[:, None], frame, frame + 1)))
    for node, a, b in zip(plan.graph.outputs, one, other, strict=True):
        mask = inside(area, node, a)
        assert torch.allclose(a[mask], b[mask], rtol=1e-9, atol=1e-9)


def test_covering_masks_cover_on_every_grid_and_read_a_true_halo() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 5, stride=2, padding=2), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1))
    plan = plan_of(model, (1, 1, 16, 16))
    masks = Needs(plan).covering(box(16, 16, 5, 5, 6, 6))
    frame, conv, pool, last = (masks[step] for step in plan.steps)
    assert [mask.nonzero().tolist() for mask in (conv, pool, last)] == [[[0, 2, 2]], [[0, 1, 1]], [[0, 1, 1]]]
    assert torch.equal(frame, box(16, 16, 2, 2, 7, 7))


def test_an_area_on_values_of_every_kind() -> None:
    area = torch.zeros(2, 3, 3, dtype=torch.bool)
    area[1, 0, 0] = True
    assert area_on(area, Node("map", "x", shape=(2, 5, 6, 6))).nonzero().tolist() == [[1, y, x] for y in range(2) for x in range(2)]
    assert area_on(area, Node("vector", "x", shape=(2, 5))).flatten().tolist() == [False, True]
    assert area_on(area, Node("tokens", "x", shape=(2, 5, 7))).flatten().tolist() == [False, True]
    assert area_on(area, Node("other batch", "x", shape=(3, 5))).all()
    assert area_on(area[:1], Node("vector", "x", shape=(4, 5))).flatten().tolist() == [False] * 4
