"""`focus`: exact inside, a true halo in mode "zero", zeros or the previous answer outside; and streams with an area."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import oracle
import sightline as sl
from areas import box, cut, masked
from networks import RandomNetwork, video
from random_cases import blocks_on_small_maps
from sightline.errors import BackendError, CaptureError, DTypeError, FrameError, ShapeError
from sightline.graph import rules
from sightline.graph.capture import capture
from sightline.graph.ir import Node
from sightline.graph.needed import Needs
from sightline.graph.plan import Plan, make_plan
from streams import SHAPE, Backend, absolute_thresholds, both_executors, dense, every_backend, executor_of, net

NAN = float("nan")


def assert_exact_inside(got: Any, model: nn.Module, frame: Tensor, area: Tensor, where: str = "") -> None:
    """The law inside the area, exactly 0 outside."""
    exact = dense(copy.deepcopy(model).double(), frame.double())
    plain = oracle.plain_results(model, frame, exact)
    oracle.assert_law(got, cut(area, plain), cut(area, exact), where)
    for value in oracle.tensors(got):
        assert torch.equal(value, masked(area, value)), f"{where}: not zero outside"


# -- exact --------------------------------------------------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("opaque", [False, True], ids=["all rules", "with a torch step"])
def test_exact_equals_dense_inside(backend: Backend, opaque: bool) -> None:
    """Maps, nested outputs, gates that need everything; the area moves between forwards."""
    model = net(opaque).to(backend.dtype)
    focused = sl.focus(model, torch.zeros(4, 4), mode="exact", backend=backend.name)
    for index, frame in enumerate(video(SHAPE, 4, 1, backend.dtype)):
        focused.aoi.mask.zero_()
        focused.aoi.mask[index, index : index + 2] = 1
        got = focused(frame)
        assert list(got) == ["map", "scores"] and isinstance(got["scores"], tuple)
        area = focused.aoi.current()[1]
        exact = dense(copy.deepcopy(model).double(), frame.double())
        oracle.assert_law(got, cut(area, dense(model, frame)), cut(area, exact), f"frame {index}")
        assert torch.equal(got["map"], masked(area, got["map"]))


@both_executors
def test_exact_on_random_networks_and_areas(backend: Backend) -> None:
    for seed in range(200, 212):
        network = RandomNetwork(seed)
        with blocks_on_small_maps(seed):
            focused = sl.focus(network, torch.ones(1, 1), mode="exact", backend=backend.name, example=torch.zeros(network.shape))
            needs = Needs(make_plan(capture(network, torch.zeros(network.shape))))
        generator = torch.Generator().manual_seed(seed)
        for index, frame in enumerate(video(network.shape, 3, seed)):
            n = network.shape[0] if index % 2 else 1
            focused.aoi = sl.AreaOfInterest(torch.rand((n, 5, 7), generator=generator) < (0.1, 0.4, 1.0)[index])
            area = focused.aoi.current()[1]
            if not area.any():
                continue
            need = needs.exact(area)[needs.plan.steps[0]]
            need |= area.all()
            got = focused(torch.where(need[:, None], frame, NAN))  # what is not needed may hold anything
            assert_exact_inside(got, network, frame, area, f"seed {seed}, frame {index}")


def test_exact_computes_what_the_backward_walk_says() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1)).eval()
    focused = sl.focus(model, box((4, 4), 1, 1, 2, 2), mode="exact", example=torch.zeros(1, 1, 16, 16))
    rows = focused.explain().rows
    # a quarter cell of the output, 2x2: halo 1 -> 4x4, pooled from 8x8, halo 1 -> 10x10 of the frame
    assert [row["sites"] for row in rows] == [10 * 10, 8 * 8, 4 * 4, 2 * 2]
    focused(torch.rand(1, 1, 16, 16))
    last = focused.stats.last
    assert last.density == {row["site"]: row["sites"] / row["positions"] for row in rows}
    assert focused.explain().macs_share == pytest.approx(last.macs_share)


def test_exact_ignores_bad_values_that_are_not_needed() -> None:
    focused = sl.focus(nn.Conv2d(1, 1, 3, padding=1), box((8, 8), 0, 0, 2, 2), mode="exact")
    frame = torch.rand(1, 1, 8, 8)
    frame[..., 3:, 3:] = NAN
    assert focused(frame).isfinite().all()
    frame[..., 2, 2] = NAN
    with pytest.raises(FrameError, match="NaN"):
        focused(frame)
    frame[..., 2, 2] = 0
    assert focused(frame).isfinite().all()  # the bad one left nothing behind


def test_a_classifier_needs_everything_and_explain_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    frame = torch.rand(1, 3, 12, 12)
    exact = sl.focus(model, box((12, 12), 4, 4, 8, 8), mode="exact", example=frame)
    torch.testing.assert_close(exact(frame), model(frame).detach())
    table = exact.explain()
    assert table.macs_share == 1.0
    assert "reads a whole map" in table.remark and 'mode="zero"' in str(table)
    zero = sl.focus(model, box((12, 12), 4, 4, 8, 8), mode="zero", example=frame)
    assert zero.explain().macs_share < 0.12
    with torch.no_grad():  # the mean counts the zeros
        pooled = masked(zero.aoi.current()[1], model[1](model[0](frame))).mean((2, 3))
        torch.testing.assert_close(zero(frame), model[4](pooled))


# -- mode "zero" ---------------------------------------------------------------------------------------------------------------------


def zero_reference(plan: Plan, frame: Tensor, area: Tensor) -> list[Tensor]:
    """Every step computed densely from its own input and cut to the area on its own grid: the definition, in float64."""
    values: dict[Node, Any] = {plan.graph.input: frame}
    fused = {node for step in plan.steps for node in step.nodes[:-1]}
    for node in plan.graph.nodes:
        if node.op == "input":
            continue
        value = _run_one(node, [values[i] for i in node.inputs])
        values[node] = value if node in fused or not _is_map(node) else masked(area, value)
    return [values[node] for node in plan.graph.outputs]


def _is_map(node: Node) -> bool:
    return (
        node.op != "constant" and node.shape is not None and len(node.shape) in {2, 4} and bool(node.dtype and node.dtype.is_floating_point)
    )


def _run_one(node: Node, inputs: list[Any]) -> Any:
    if node.op == "constant":
        value = node.attrs["value"]
        return value.double() if value.is_floating_point() else value
    return rules.rule_of(node).run(node, inputs)


@both_executors
def test_zero_is_what_it_says_layer_by_layer(backend: Backend) -> None:
    for seed in range(300, 310):
        network = RandomNetwork(seed)
        generator = torch.Generator().manual_seed(seed)
        with blocks_on_small_maps(seed):
            plan = make_plan(capture(network, torch.zeros(network.shape)))
            focused = sl.focus(network, torch.ones(1, 1), mode="zero", backend=backend.name, example=torch.zeros(network.shape))
        for index, frame in enumerate(video(network.shape, 4, seed)):
            mask = torch.rand((1, 4, 5), generator=generator) < (0.2, 1.0, 0.4, 0.1)[index]
            mask[0, 1, 1] = True
            focused.aoi = sl.AreaOfInterest(mask)
            got = focused(frame)
            exact = cut(mask, zero_reference(plan, frame.double(), mask))
            scale = [1e-4 * (1 + float(value.abs().max())) for value in exact]
            for value, want, slack in zip(oracle.tensors(got), exact, scale, strict=True):
                assert oracle.error(value, want) <= slack, f"seed {seed}, frame {index}"


def test_zero_has_a_true_halo_and_the_right_grid() -> None:
    """Where focusedconv is wrong: a ring of the box, and everything behind a strided layer whose box begins at an odd pixel."""
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    frame = torch.rand(1, 2, 32, 32)
    for y0 in range(8, 12):
        area = box((32, 32), y0, 9, y0 + 11, 20)
        assert_exact_inside(sl.focus(conv, area)(frame), conv, frame, area.current()[1], f"row {y0}")


def test_zero_inside_is_dense_where_the_receptive_field_lies_inside() -> None:
    model = nn.Sequential(*[nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)]).eval()
    frame = torch.rand(1, 2, 20, 20)
    got, want = sl.focus(model, box((20, 20), 4, 4, 16, 16))(frame), model(frame).detach()
    torch.testing.assert_close(got[..., 6:14, 6:14], want[..., 6:14, 6:14])
    assert not torch.allclose(got[..., 4:16, 4:16], want[..., 4:16, 4:16])


def test_zero_keeps_no_trace_of_an_earlier_area() -> None:
    model = net(opaque=True)
    frames = video(SHAPE, 5, 7)
    areas = [box((8, 8), i, i, i + 3, i + 3) for i in range(5)]
    for backend in ("native", "torch") if sl.kernels.native_status()["available"] else ("torch",):
        moving = sl.focus(model, areas[0], backend=backend)
        for frame, area in zip(frames, areas, strict=True):
            moving.aoi = area
            oracle.assert_bits_equal(moving(frame), sl.focus(model, area, backend=backend)(frame), backend)


def test_masks_per_batch_element() -> None:
    model = net()
    frame = torch.rand(SHAPE)
    mask = torch.zeros(2, 4, 4)
    mask[0, 1:3, 1:3] = 1
    mask[1, 3, 0] = 1
    focused = sl.focus(model, mask)
    both = focused(frame)["map"]
    for i in range(2):
        alone = sl.focus(model, mask[i])(frame)["map"]
        oracle.assert_bits_equal(both[i], alone[i])


# -- outside ------------------------------------------------------------------------------------------------------------------------


@both_executors
@pytest.mark.parametrize("mode", ["exact", "zero"])
def test_hold_keeps_the_previous_answer_outside(backend: Backend, mode: str) -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    focused = sl.focus(conv, box((8, 8), 0, 0, 8, 4), mode=mode, outside="hold", backend=backend.name)
    first, second, third = torch.rand(3, 1, 1, 8, 8)
    one = focused(first)
    assert (one[..., 4:] == 0).all()
    focused.aoi = box((8, 8), 0, 2, 8, 8)
    two = focused(second)
    torch.testing.assert_close(two[..., 2:], conv(second).detach()[..., 2:])
    oracle.assert_bits_equal(two[..., :2], one[..., :2])
    two.zero_()  # it is the caller's
    focused.aoi.mask.zero_()
    with pytest.warns(UserWarning, match="empty"):
        three = focused(third)
    torch.testing.assert_close(three[..., 2:], conv(second).detach()[..., 2:])


def test_an_empty_area_does_no_work_and_warns_once() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid())
    focused = sl.focus(model, torch.zeros(4, 4))
    with pytest.warns(UserWarning, match="empty") as seen:
        got = focused(torch.rand(1, 1, 8, 8))
    assert len(seen) == 1
    assert got.shape == (1, 2, 6, 6) and (got == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        focused(torch.full((1, 1, 8, 8), NAN))  # not even read
    assert focused.stats.total.frames == 2 and focused.stats.total.macs_done == 0
    focused.aoi.mask[0, 0] = 1
    assert (focused(torch.rand(1, 1, 8, 8)) > 0).any()
    nested = sl.focus(net(), torch.zeros(1, 1))
    with pytest.warns(UserWarning, match="empty"):
        result = nested(torch.rand(SHAPE))
    want = dense(net(), torch.rand(SHAPE))
    assert pytree.tree_structure(result) == pytree.tree_structure(want)
    assert [v.shape for v in oracle.tensors(result)] == [v.shape for v in oracle.tensors(want)]


@both_executors
@pytest.mark.parametrize("mode", ["exact", "zero"])
def test_the_whole_picture_is_the_dense_model(backend: Backend, mode: str) -> None:
    model = net()
    focused = sl.focus(model, box((4, 4), 1, 1, 2, 2), mode=mode, backend=backend.name)
    frame = torch.rand(SHAPE)
    focused(frame)
    focused.aoi = torch.ones(3, 3)  # a mask is wrapped
    got = focused(frame)
    oracle.assert_law(got, dense(model, frame), dense(copy.deepcopy(model).double(), frame.double()))
    assert focused.explain().macs_share == focused.stats.last.macs_share == 1.0


# -- a drop-in -----------------------------------------------------------------------------------------------------------------------


def test_the_model_stays_as_it_was_and_its_weights_are_shared() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    focused = sl.focus(model, box((6, 6), 0, 0, 6, 3), mode="exact")
    assert not focused.training
    focused.train()
    frame = torch.rand(1, 1, 6, 6)
    kept = frame.clone()
    got = focused(frame)
    assert torch.equal(frame, kept)
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(a is b for a, b in zip(focused.parameters(), model.parameters(), strict=True))
    with torch.no_grad():
        model[0].weight.mul_(2)  # type: ignore[operator]
    changed = focused(frame)
    assert not torch.equal(changed, got)
    model.eval()
    torch.testing.assert_close(changed[..., :3], model(frame).detach()[..., :3])
    model.load_state_dict(before)
    oracle.assert_bits_equal(focused(frame), got)


def test_another_size_batch_or_type_plans_anew() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()).eval()
    focused = sl.focus(model, box((10, 10), 0, 0, 5, 10), mode="exact")
    for shape in ((1, 1, 10, 10), (2, 1, 10, 10), (1, 1, 7, 13), (1, 1, 10, 10)):
        frame = torch.rand(shape)
        assert_exact_inside(focused(frame), model, frame, focused.aoi.current()[1], str(shape))


def test_graphs_are_taken_too() -> None:
    model = nn.Conv2d(1, 1, 3, padding=1)
    graph, frame = capture(model, torch.zeros(1, 1, 6, 6)), torch.rand(1, 1, 6, 6)
    area = box((6, 6), 0, 0, 3, 3)
    oracle.assert_bits_equal(sl.focus(graph, area)(frame), sl.focus(model, area)(frame))


def test_explain_memory_and_repr() -> None:
    focused = sl.focus(net(opaque=True), box((4, 4), 0, 0, 1, 1))
    with pytest.raises(ValueError, match="captured"):
        focused.explain()
    assert focused.memory()["total"] == 0
    focused(torch.rand(SHAPE))
    table = focused.explain()
    assert {row["site"] for row in table.rows} >= {"input", "down", "side"}
    assert all(0 <= row["saved"] <= 1 and row["sites"] <= row["positions"] for row in table.rows)
    assert "reads its whole input" in next(row["note"] for row in table.rows if row["kind"] == "opaque")
    text = str(table)
    assert "MACs saved" in text and f"{table.macs_share:.1%} of the dense MACs" in text
    memory = focused.memory()
    assert memory["total"] == sum(memory["tensors"].values()) > 0
    assert "mode='zero'" in repr(focused)


def test_copies_and_pickles_stand_for_themselves() -> None:
    model = nn.Conv2d(1, 1, 3, padding=1)
    focused = sl.focus(model, box((6, 6), 0, 0, 6, 3), mode="exact")
    frame = torch.rand(1, 1, 6, 6)
    got = focused(frame)
    for twin in (copy.deepcopy(focused), pickle.loads(pickle.dumps(focused))):
        oracle.assert_bits_equal(twin(frame), got)
        twin.aoi.mask.fill_(1)
        twin.model.weight.data.zero_()
    oracle.assert_bits_equal(focused(frame), got)
    assert copy.copy(focused.aoi).mask is focused.aoi.mask


def test_a_bad_frame_costs_no_new_capture() -> None:
    focused = sl.focus(nn.Conv2d(1, 1, 1), torch.ones(2, 2), example=torch.zeros(1, 1, 4, 4))
    running = focused._running
    with pytest.raises(FrameError):
        focused(torch.full((1, 1, 4, 4), NAN))
    assert focused._running is running


def test_one_area_in_two_threads_and_one_model_in_two() -> None:
    """Forwards of one model wait for each other; each works with the area as it is at its start."""
    area = sl.AreaOfInterest(torch.ones(1, 2, dtype=torch.bool))
    models = [nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 3, 3, padding=1)]
    focused = [sl.focus(model, area, mode="exact", example=torch.zeros(1, 1, 16, 16)) for model in models]
    halves = [torch.tensor([[True, False]]), torch.tensor([[False, True]])]
    failures: list[str] = []

    def work(which: int) -> None:
        generator = torch.Generator().manual_seed(which)
        with torch.no_grad():
            for _ in range(25):
                frame = torch.rand(1, 1, 16, 16, generator=generator)
                got, want = focused[which % 2](frame), models[which % 2](frame)
                left, right = torch.isclose(got, want, atol=1e-5)[..., :8].all(), torch.isclose(got, want, atol=1e-5)[..., 8:].all()
                if not (left or right):
                    failures.append(f"thread {which}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for i in range(60):
        area.mask = halves[i % 2]
    for thread in threads:
        thread.join()
    assert not failures


# -- bad input --------------------------------------------------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    model, area = nn.Conv2d(1, 1, 3), torch.ones(2, 2)
    for name, value in (("mode", "fast"), ("outside", "mean"), ("backend", "gpu")):
        with pytest.raises(ValueError, match=name):
            sl.focus(model, area, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match="aoi"):
        sl.focus(model, [[1]])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="h, w"):
        sl.focus(model, torch.ones(1, 1, 2, 2))
    with pytest.raises(CaptureError, match="model"):
        sl.focus(lambda x: x, area)(torch.rand(1, 1, 4, 4))  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="float64"):
        sl.focus(model.double(), area, backend="native")(torch.rand(1, 1, 4, 4, dtype=torch.float64))


def test_bad_frames_and_batches() -> None:
    focused = sl.focus(nn.Conv2d(1, 1, 3), torch.ones(2, 4, 4))
    for frame, error in (
        (torch.rand(1, 8, 8), ShapeError),
        (torch.rand(0, 1, 8, 8), ShapeError),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), DTypeError),
        ("frame", DTypeError),
    ):
        with pytest.raises(error, match="frame"):
            focused(frame)
    with pytest.raises(ShapeError, match="2 batch elements; the frame has 3"):
        focused(torch.rand(3, 1, 8, 8))
    assert focused(torch.rand(2, 1, 8, 8)).shape == (2, 1, 6, 6)
    focused.aoi.mask[0, 0, 0] = NAN
    with pytest.raises(FrameError, match="mask"):
        focused(torch.rand(2, 1, 8, 8))


# -- streams with an area ----------------------------------------------------------------------------------------------------------------


@both_executors
@pytest.mark.parametrize("opaque", [False, True], ids=["all rules", "with a torch step"])
def test_a_stream_is_exact_inside_while_the_area_moves(backend: Backend, opaque: bool) -> None:
    model = net(opaque)
    area = sl.AreaOfInterest(torch.zeros(6, 6))
    stream = sl.stream(model, aoi=area, backend=backend.name)
    for index, frame in enumerate(video(SHAPE, 10, 3)):
        if index % 3 == 0:
            area.mask.zero_()
            area.mask[index // 2 : index // 2 + 2, 1:4] = 1
        got = stream(frame)
        inside = area.current()[1]
        exact = dense(copy.deepcopy(model).double(), frame.double())
        oracle.assert_law(cut(inside, got), cut(inside, dense(model, frame)), cut(inside, exact), f"frame {index}")
        assert all(value.isfinite().all() for value in oracle.tensors(got))


@both_executors
def test_a_stream_over_random_networks_and_areas(backend: Backend) -> None:
    for seed in range(400, 408):
        network = RandomNetwork(seed)
        area = sl.AreaOfInterest(torch.zeros(5, 4))
        stream = sl.stream(network, aoi=area, backend=backend.name)
        generator = torch.Generator().manual_seed(seed)
        for index, frame in enumerate(video(network.shape, 6, seed)):
            if index != 2:
                area.mask = torch.rand((5, 4), generator=generator) < (0, 0.1, 0.1, 0.5, 1, 0.2)[index]
            inside = area.current()[1]
            exact = dense(copy.deepcopy(network).double(), frame.double())
            plain = oracle.plain_results(network, frame, exact)
            oracle.assert_law(cut(inside, stream(frame)), cut(inside, plain), cut(inside, exact), f"seed {seed}, frame {index}")


@both_executors
def test_a_stream_computes_what_changed_and_is_needed(backend: Backend) -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    area = box((10, 10), 0, 0, 10, 5)
    stream = sl.stream(conv, aoi=area, backend=backend.name)
    frame = torch.rand(1, 1, 10, 10)
    first = stream(frame)
    name = list(stream.stats.last.density)[-1]
    assert stream.last_sites(name).sum() == 50
    assert (first[..., 5:] == 0).all()  # never computed
    frame = frame.clone()
    frame[..., 2, 4] += 1
    frame[..., 7, 7] += 1
    stream(frame)
    assert stream.last_sites(name)[0].nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (3, 4)]
    area.mask[:, 5:] = True
    got = stream(frame)
    assert stream.last_sites(name).sum() == 50  # what had never been computed; the rest is up to date
    torch.testing.assert_close(got, conv(frame).detach())


@both_executors
def test_a_stream_holds_outside_and_catches_up(backend: Backend) -> None:
    conv = nn.Conv2d(1, 1, 1)
    area = sl.AreaOfInterest(torch.ones(4, 4))
    stream = sl.stream(conv, aoi=area, backend=backend.name)
    one, two = torch.rand(2, 1, 1, 4, 4)
    first = stream(one)
    area.mask[:, 2:] = 0
    second = stream(two)
    oracle.assert_bits_equal(second[..., 2:], first[..., 2:])
    torch.testing.assert_close(second[..., :2], conv(two).detach()[..., :2])
    area.mask.fill_(1)
    torch.testing.assert_close(stream(two), conv(two).detach())
    stream(two)
    assert stream.stats.last.macs_done == 0


@both_executors
@pytest.mark.parametrize("unit", ["std", "absolute"])
def test_a_stream_with_thresholds_stays_within_them_inside(backend: Backend, unit: str) -> None:
    """The unit is the deviation of what the first frame computed; an empty first area only delays it."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).eval()
    for start in (0, 1):
        area = sl.AreaOfInterest(torch.zeros(4, 4))
        area.mask[0, :2] = start
        stream = sl.stream(model, 0.1, threshold_unit=unit, aoi=area, backend=backend.name)
        generator = torch.Generator().manual_seed(5)
        for index in range(5):
            if index == 2:
                area.mask[:, 1:] = 1
            frame = torch.rand(1, 1, 12, 12, generator=generator)
            got = stream(frame)
            limits = absolute_thresholds(stream)
            assert all(value == value for value in limits.values())  # noqa: PLR0124  (not NaN)
            truth = dense(model, frame)
            inside = masked(area.current()[1], torch.ones_like(truth)) > 0
            error = float(((got - truth) * inside).abs().max())
            worst = [float(layer.weight.detach().abs().sum((1, 2, 3)).max()) for layer in (model[0], model[2])]  # type: ignore[operator]
            steps = list(limits.values())
            assert error <= worst[1] * (worst[0] * steps[0] + 2 * steps[1]) + 1e-5
        assert max(limits.values()) > 0
        assert executor_of(stream).std(executor_of(stream).plan.steps[0]) > 0


@pytest.mark.parametrize("noise", ["vote", "block"])
def test_a_noise_filter_takes_the_frame_whole(noise: str) -> None:
    area = box((16, 16), 0, 0, 4, 4)
    stream = sl.stream(nn.Conv2d(1, 1, 3, padding=1), aoi=area, noise=noise)
    frame = torch.rand(1, 1, 16, 16)
    stream(frame)
    bad = frame.clone()
    bad[..., 15, 15] = NAN
    with pytest.raises(FrameError):
        stream(bad)
    frame[..., :8, :8] += 1
    got = stream(frame)
    torch.testing.assert_close(got[..., :4, :4], stream._model(frame).detach()[..., :4, :4])


def test_streams_with_areas_clone_reset_and_refuse() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    area = box((6, 6), 0, 0, 3, 6)
    stream = sl.stream(conv, aoi=area)
    frame = torch.rand(1, 1, 6, 6)
    got = stream(frame)
    oracle.assert_bits_equal(stream.clone()(frame), got)
    stream.reset()
    larger = torch.rand(2, 1, 9, 9)
    again = stream(larger)
    torch.testing.assert_close(again[:, :, :5], conv(larger).detach()[:, :, :5])
    assert (again[:, :, 5:] == 0).all()
    area.mask = torch.ones(3, 2, 2)
    with pytest.raises(ShapeError, match="3 batch elements; the frame has 2"):
        stream(larger)
    area.mask = torch.ones(2, 2)
    torch.testing.assert_close(stream(larger), conv(larger).detach())
    with pytest.raises(DTypeError, match="AreaOfInterest"):
        sl.stream(conv, aoi=torch.ones(2, 2))  # type: ignore[arg-type]


def test_a_bad_first_frame_leaves_a_stream_with_an_area_usable() -> None:
    conv = nn.Conv2d(1, 1, 1)
    stream = sl.stream(conv, 0.5, threshold_unit="absolute", aoi=box((4, 4), 0, 0, 4, 2))
    with pytest.raises(FrameError):
        stream(torch.full((1, 1, 4, 4), NAN))
    frame = torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(stream(frame)[..., :2], conv(frame).detach()[..., :2])


def test_models_in_parts_take_no_area() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            scores = self.trunk(x)
            found: Tensor = scores[scores > float(scores.mean())]
            return found

    with pytest.raises(CaptureError, match="captured whole"):
        sl.stream(Detector().eval(), aoi=box((4, 4), 0, 0, 2, 2))(torch.rand(1, 1, 8, 8))
