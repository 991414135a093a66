"""Streams over networks on sensor points: the laws of docs/design.md, the native layer, points as maps of one row."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import oracle
import points
import sightline as sl
from sightline import kernels
from sightline.footprint import WindowFootprint
from sightline.fovea.layers.function import knn_depthwise
from sightline.graph import rules
from sightline.graph.capture import capture
from sightline.graph.plan import make_plan
from sightline.sites import Sites
from streams import Backend, absolute_thresholds, assert_equals_dense, both_executors, dense, every_backend, executor_of

SHAPE = (2, 3, 1, 90)
MODES = ["max", "avg", "sum", "gaussian"]


@every_backend
def test_threshold_0_equals_dense_at_every_frame(backend: Backend) -> None:
    model = points.net().to(backend.dtype)
    stream = sl.stream(model, backend=backend.name)
    for index, frame in enumerate(points.video(SHAPE, 8, 1, backend.dtype)):
        assert_equals_dense(stream(frame), model, frame, f"frame {index}")
        assert index == 0 or 0 < stream.stats.last.macs_share < 0.6


@both_executors
@pytest.mark.parametrize("empty", [False, True], ids=["all have neighbours", "some have none"])
@pytest.mark.parametrize("pool", MODES)
def test_every_pool_and_points_without_neighbours(backend: Backend, pool: str, empty: bool) -> None:
    model = points.net(pool, empty)
    stream = sl.stream(model, backend=backend.name)
    for frame in points.video(SHAPE, 4, 2):
        got = stream(frame)
        assert_equals_dense(got, model, frame)
    # no bias where nothing is read; the norm behind the stem moves even that point
    assert bool((got["points"][:, :, 0] == 0).all()) == empty


@both_executors
def test_native_equals_its_own_dense_run_to_the_bit(backend: Backend) -> None:
    model = points.net(empty=True)
    stream = sl.stream(model, backend=backend.name)
    for frame in points.video(SHAPE, 12, 3):
        got, fresh = stream(frame), stream.clone()(frame)
        if backend.name == "native":
            oracle.assert_bits_equal(got, fresh)
        else:
            oracle.assert_law(got, fresh, dense(copy.deepcopy(model).double(), frame.double()))


@pytest.mark.skipif(not kernels.native_status()["available"], reason=str(kernels.native_status()["reason"]))
def test_native_results_do_not_depend_on_threads() -> None:
    model = nn.Sequential(nn.Flatten(2), points.Conv(16, 96, 700, 700, 12, 4, 5))
    frames = [torch.randn(1, 16, 1, 700)]
    frames.append(frames[0].clone())
    frames[1][..., 100:300] += 1
    results = []
    before = sl.get_num_threads()
    try:
        for threads in (1, 3):
            sl.set_num_threads(threads)
            stream = sl.stream(model)
            results.append([stream(frame) for frame in frames])
    finally:
        sl.set_num_threads(before)
    oracle.assert_bits_equal(results[0], results[1])


@every_backend
def test_a_static_frame_costs_nothing_and_elements_are_apart(backend: Backend) -> None:
    stream = sl.stream(points.net().to(backend.dtype), backend=backend.name)
    frame = points.video(SHAPE, 1, 4, backend.dtype)[0]
    first = stream(frame)
    oracle.assert_bits_equal(stream(frame.clone()), first)
    assert stream.stats.last.macs_done == 0
    frame[1, :, :, 40] += 1
    second = stream(frame)
    oracle.assert_bits_equal(second["points"][0], first["points"][0])
    assert not stream.last_sites("stem")[0].any() and stream.last_sites("stem")[1].any()


@both_executors
@pytest.mark.parametrize("norm", ["rms", "max"])
def test_every_map_stays_within_its_threshold(backend: Backend, norm: str) -> None:
    stream = sl.stream(points.net(empty=True), 0.1, norm=norm, backend=backend.name)
    for index, frame in enumerate(points.video(SHAPE, 5, 5)):
        stream(frame + 0.05 * torch.randn(SHAPE))
        if index:
            limits = absolute_thresholds(stream)
            assert min(limits[step] for step in limits if step.truncates) > 0
            oracle.assert_within(executor_of(stream), limits, norm, f"frame {index}")


def test_points_become_maps_and_layers_take_in_what_follows_them() -> None:
    plan = make_plan(capture(points.net(), torch.zeros(SHAPE)))
    steps = {step.name: [node.op for node in step.nodes] for step in plan.steps}
    assert steps["first"] == ["knn_conv", "add", "act"] and steps["wide"] == ["knn_conv", "act"]
    assert steps["stem"] == ["knn_conv", "act"]  # the norm is folded
    assert [node.op for node in plan.graph.outputs] == ["torch", "global_avg_pool", "linear"]
    assert {node.shape for node in plan.graph.nodes if node.op == "knn_conv"} == {(2, 12, 1, 60), (2, 70, 1, 24)}


def test_a_norm_behind_a_point_without_neighbours_is_not_folded() -> None:
    plan = make_plan(capture(points.net(empty=True), torch.zeros(SHAPE)))
    assert [[node.op for node in step.nodes] for step in plan.steps if step.name == "norm"] == [["affine", "act"]]


class Between(nn.Module):
    """Ops on points that have no map form between layers that have one, and points that come from a map of several rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = points.Conv(3, 8, 30, 20, 4, 2, 1)
        self.second = points.Conv(8, 4, 20, 20, 4, 2, 2)
        self.scale = nn.Parameter(torch.rand(1, 1, 20))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.first(F.max_pool2d(x, 2).flatten(2))) * self.scale
        y = torch.cat([self.second(torch.cumsum(x, 2)), x[:, :4]], 1)
        return y.unsqueeze(2), self.second(x).max(2).values


@both_executors
def test_other_ops_on_points_run_densely_and_stay_exact(backend: Backend) -> None:
    model = Between()
    stream = sl.stream(model, backend=backend.name)
    frame = torch.randn(1, 3, 10, 12)
    for _ in range(3):
        frame = frame.clone()
        frame[..., 3:5, 4:6] += 1
        assert_equals_dense(stream(frame), model, frame)
    assert 0 < stream.stats.last.density["first"] < 0.5


class Orders(nn.Module):
    """What lies between layers works on points in other orders of their axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = points.Conv(3, 8, 40, 30, 4, 2, 1), points.Conv(12, 4, 30, 20, 4, 2, 2)
        self.norm, self.rows = points.NodeMajorNorm(8), points.Rows(8, 12)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.rows(self.norm(self.first(x.squeeze(2)))))
        return y


@both_executors
def test_norms_and_linear_layers_follow_in_whichever_order_of_axes(backend: Backend) -> None:
    model = Orders().eval()
    stream = sl.stream(model, backend=backend.name)
    for frame in points.video((2, 3, 1, 40), 4, 7):
        assert_equals_dense(stream(frame), model, frame)
    ops = [step.head.op for step in executor_of(stream).plan.steps]
    assert ops == ["input", "knn_conv", "channel_norm", "conv2d", "knn_conv", "torch"]
    assert 0 < stream.stats.last.density["rows.mix"] < 0.6


class Depthwise(nn.Module):
    """Each channel for itself, with one output or two, between constants that differ from point to point."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.index = points.table(40, 30, 5, 3)
        self.cell = torch.randint(0, 4, self.index.shape).to(torch.int32)
        self.weight = nn.Parameter(torch.randn(8, 4, outputs))
        self.first, self.last = points.Conv(3, 8, 40, 40, 4, 2, 1), points.Conv(8 * outputs, 4, 30, 20, 4, 2, 2)
        self.shift = nn.Parameter(torch.randn(8 * outputs, 30))
        self.scale = nn.Parameter(torch.rand(1, 1, 30))
        self.offset = nn.Parameter(torch.randn(8 * outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = knn_depthwise(self.first(x.squeeze(2)), self.weight, self.index, self.cell) + self.shift
        y = self.offset + (self.scale * y).permute(2, 0, 1)
        strength = torch.linalg.vector_norm(y, dim=0, keepdim=True)
        out: Tensor = self.last((y * strength / strength.mean(-1, keepdim=True)).permute(1, 2, 0))
        return out


@every_backend
@pytest.mark.parametrize("outputs", [1, 2])
def test_depthwise_layers_constants_and_response_norms(backend: Backend, outputs: int) -> None:
    torch.manual_seed(8)
    model = Depthwise(outputs).to(backend.dtype)
    stream = sl.stream(model, backend=backend.name)
    for frame in points.video((2, 3, 1, 40), 4, 9, backend.dtype):
        assert_equals_dense(stream(frame), model, frame)
    on_torch = [row["op"] for row in stream.explain().rows if row["executor"] == "torch"]
    if backend.name == "native":
        assert len(on_torch) == 1  # the output's own order of axes
        oracle.assert_bits_equal(stream(frame), stream.clone()(frame))


@given(st.integers(0, 2**31), st.floats(0.02, 1.0))
def test_sites_are_those_that_read_what_changed(seed: int, share: float) -> None:
    """On random tables and changes, natively (few changes go another way than many) and by the footprint."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 60, (2,), generator=generator).tolist()
    layer = points.Conv(2, 3, sizes[0], sizes[1], 1 + seed % 9, 2, seed)
    model = nn.Sequential(nn.Flatten(2), layer)
    frame = torch.randn((2, 2, 1, sizes[0]), generator=generator)
    changed = torch.rand((2, sizes[0]), generator=generator) < share
    moved = frame + changed[:, None, None]
    index = layer.index.numpy()
    wanted = np.where(index >= 0, changed.numpy()[:, index.clip(min=0)], False).any(2)
    for backend in ["torch", *(["native"] if kernels.native_status()["available"] else [])]:
        stream = sl.stream(model, backend=backend, scene_cuts=False)
        stream(frame)
        stream(moved)
        assert (stream.last_sites("1")[:, 0].numpy() == wanted).all(), backend
    head = next(step.head for step in make_plan(capture(model, frame)).steps if step.name == "1")
    footprint = rules.rule_of(head).footprint(head)
    assert isinstance(footprint, WindowFootprint)
    assert (footprint.outputs_of(Sites(changed[:, None])).mask[:, 0].numpy() == wanted).all()


def test_multiply_accumulates_of_padding_are_not_counted() -> None:
    layer = points.Conv(3, 5, 30, 20, 4, 2, 1)
    stream = sl.stream(nn.Sequential(nn.Flatten(2), layer))
    stream(torch.randn(2, 3, 1, 30))
    assert stream.stats.last.macs_dense == 2 * 3 * 5 * int((layer.index >= 0).sum()) < 2 * 3 * 5 * layer.index.numel()
