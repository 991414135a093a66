"""Layers on sensors as users meet them: definitions in float64, padding, NaN, dense weights, checkpoints, tracing, wrong arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from knn_cases import KNN_CASES, loop_conv, loop_depthwise, loop_pool
from oracle import assert_bits_equal
from sightline.errors import DTypeError, ShapeError
from sightline.fovea import (
    KNNBatchNorm,
    KNNChannelNorm,
    KNNConv,
    KNNCoordNorm,
    KNNDepthwiseConv,
    KNNDepthwiseSeparableConv,
    KNNGroupNorm,
    KNNLayerNorm,
    KNNPool,
    SensorGrid,
    get_norm,
    load_fovi_state_dict,
)
from sightline.fovea.layers import function
from sightline.fovea.layers.norm import find_valid_num_groups
from sightline.fovea.layers.weights import geometry_of
from sightline.fovea.neighbours import find_neighbours

FINE, COARSE = SensorGrid(16, 0.5, 9), SensorGrid(16, 0.5, 5)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


# -- definitions --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels", [3, 20])
def test_convolution_is_the_loop(channels: int, bias: bool) -> None:
    layer = KNNConv(channels, 6, 9, FINE, COARSE, side=6, bias=bias, dtype=torch.float64)
    assert layer.weight.shape == (6, channels * 36) and (layer.bias is not None) == bias
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = randn(2, channels, len(FINE), dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(y, loop_conv(x, layer.weight, layer.bias, layer.index, layer.cell))
    assert y.permute(2, 0, 1).is_contiguous()
    torch.testing.assert_close(copy.deepcopy(layer).float()(x.float()).double(), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["max", "avg", "sum", "gaussian"])
def test_pooling_is_the_loop(mode: Any) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        layer = KNNPool(9, FINE, COARSE, mode, gauss_sigma=0.7)
    finally:
        torch.set_default_dtype(before)
    x = randn(2, 4, len(FINE), dtype=torch.float64)
    torch.testing.assert_close(layer(x), loop_pool(x, layer.index, mode, layer.weights), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x.float()).double(), layer(x), rtol=1e-5, atol=1e-6)


def test_gaussian_weights_fall_with_distance_and_skip_padding() -> None:
    layer = KNNPool(9, FINE, COARSE, "gaussian", gauss_sigma=0.5)
    assert layer.weights is not None
    found = find_neighbours(FINE, COARSE, 9)
    torch.testing.assert_close(layer.weights.sum(1), (layer.index >= 0).any(1).float())
    assert not layer.weights[found.padding].any()
    inner = ~found.padding.any(1)
    steps = layer.weights[inner].diff(dim=1)
    assert inner.any() and (steps <= 1e-6).all() and (steps.sum(1) < 0).all()


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_is_the_loop(multiplier: int) -> None:
    """fovi 2.4 fails when these layers are called."""
    layer = KNNDepthwiseConv(3, 3 * multiplier, 9, FINE, COARSE, side=4, bias=True, dtype=torch.float64)
    assert layer.weight.shape == (3, 16, multiplier) and layer.bias is not None
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = randn(2, 3, len(FINE), dtype=torch.float64)
    wanted = loop_depthwise(x, layer.weight, layer.index, layer.cell) + layer.bias[:, None]
    torch.testing.assert_close(layer(x), wanted)


def test_depthwise_separable_is_the_loop() -> None:
    layer = KNNDepthwiseSeparableConv(3, 6, 9, FINE, COARSE, bias=True, dtype=torch.float64)
    for value in layer.parameters():
        nn.init.normal_(value)
    x = randn(2, 3, len(FINE), dtype=torch.float64)
    spread = loop_depthwise(x, layer.dw_conv, layer.index, layer.cell)
    torch.testing.assert_close(layer(x), layer.p_conv(spread.transpose(1, 2)).transpose(1, 2))


NORMS: list[tuple[Any, Callable[[Tensor], Tensor]]] = [
    (KNNBatchNorm, lambda x: (x - x.mean((0, 2), True)) / (x.var((0, 2), unbiased=False, keepdim=True) + 1e-5).sqrt()),
    (KNNChannelNorm, lambda x: (x - x.mean(1, True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()),
    (KNNCoordNorm, lambda x: (x - x.mean(2, True)) / (x.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()),
    (KNNLayerNorm, lambda x: (x - x.mean((1, 2), True)) / (x.var((1, 2), unbiased=False, keepdim=True) + 1e-5).sqrt()),
    (KNNGroupNorm, lambda x: nn.functional.group_norm(x, 2)),
]


@pytest.mark.parametrize(("norm", "formula"), NORMS, ids=lambda value: getattr(value, "__name__", ""))
def test_norms(norm: Any, formula: Callable[[Tensor], Tensor]) -> None:
    layer = norm(31, 8).double()
    x = randn(3, 8, 31, dtype=torch.float64) * 3 + 1
    for given in (x, x.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        y = layer(given)
        torch.testing.assert_close(y, formula(x))
        assert y.permute(2, 0, 1).is_contiguous()
    with pytest.raises(ShapeError, match=norm.__name__):
        layer(randn(3, 8, 31, 1, dtype=torch.float64))
    if norm is not KNNCoordNorm:
        with pytest.raises(ShapeError, match="8"):
            layer(randn(3, 7, 31, dtype=torch.float64))
    if norm in {KNNCoordNorm, KNNLayerNorm}:
        with pytest.raises(ShapeError, match="31"):
            layer(randn(3, 8, 30, dtype=torch.float64))


def test_batch_norm_keeps_statistics_as_torch_does() -> None:
    ours, theirs = KNNBatchNorm(31, 8), nn.BatchNorm1d(8)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x = randn(4, 8, 31) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_norms_by_name() -> None:
    kinds = {
        "batch": KNNBatchNorm,
        "sync_batch": KNNBatchNorm,
        "channel": KNNChannelNorm,
        "layer_chan": KNNChannelNorm,
        "coord": KNNCoordNorm,
        "layer_space": KNNCoordNorm,
        "layer": KNNLayerNorm,
        "layer_all": KNNLayerNorm,
        "group": KNNGroupNorm,
    }
    for name, kind in kinds.items():
        assert type(get_norm(name, 31, 8)) is kind
    assert get_norm("none", 31, 8) is None
    with pytest.raises(ShapeError, match="'batch'"):
        get_norm("instance", 31, 8)
    assert [find_valid_num_groups(*given) for given in ((96, 32), (100, 32), (7, 32), (3, 32), (128, 32))] == [24, 25, 1, 1, 32]


# -- padding and NaN ----------------------------------------------------------------------------------------------------------------------


def test_nodes_without_inputs_are_zero_bias_and_all() -> None:
    source = SensorGrid(16, 0.5, 6, style="warped_cartesian")
    x = randn(2, 3, len(source)) + 5
    outside = ~source.valid_mask
    assert outside.any()
    for layer in (
        KNNConv(3, 4, 9, source, source, bias=True),
        KNNDepthwiseConv(3, 6, 9, source, source, bias=True),
        KNNDepthwiseSeparableConv(3, 6, 9, source, source, bias=True),
        *(KNNPool(9, source, source, mode) for mode in ("max", "avg", "sum", "gaussian")),
    ):
        for value in layer.parameters():
            nn.init.normal_(value)
        y = layer(x)
        assert not y[:, :, outside].any() and (y[:, :, ~outside] != 0).any(0).any(0).all()


def test_padding_adds_nothing_and_masked_inputs_are_not_read() -> None:
    source = SensorGrid(16, 0.5, 6, style="warped_cartesian")
    x = randn(2, 3, len(source))
    poisoned = x.masked_fill(~source.valid_mask, torch.nan)
    for layer in (KNNConv(3, 4, 9, source, source), KNNPool(9, source, source), KNNPool(9, source, source, "avg")):
        assert_bits_equal(layer(poisoned), layer(x))


def test_nan_is_kept_and_not_taken_for_padding() -> None:
    x = randn(1, 2, len(FINE))
    x[0, 1, 4] = torch.nan
    for mode in ("max", "avg", "sum", "gaussian"):
        layer = KNNPool(9, FINE, COARSE, mode)
        reads = (layer.index == 4).any(1)
        assert reads.any()
        for given in (x, x.double()):
            y = layer(given)
            assert torch.equal(y[0, 1].isnan(), reads) and not y[0, 0].isnan().any()
    infinite = torch.full((1, 1, len(FINE)), -torch.inf, requires_grad=True)
    pooled = KNNPool(9, FINE, COARSE)(infinite)
    assert pooled.isneginf().all()
    pooled.nan_to_num().sum().backward()


# -- gradients and tracing ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [KNN_CASES[1], KNN_CASES[3], KNN_CASES[6]], ids=lambda case: case.name)
def test_gradients_of_both_orders(case: Any) -> None:
    index, cell = case.table()
    x, weight, bias = (value.requires_grad_() for value in case.tensors(dtype=torch.float64))
    depthwise = torch.randn(case.cin, case.cells, 2, dtype=torch.float64, requires_grad=True)
    shares = torch.rand(index.shape, dtype=torch.float64)
    runs: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (lambda x, w, b: function.knn_conv(x, w, b, index, cell), (x, weight, bias)),
        (lambda x, w: function.knn_depthwise(x, w, index, cell), (x, depthwise)),
        (lambda x: function.knn_max_pool(x, index), (x,)),
        (lambda x: function.knn_sum_pool(x, index, shares, False), (x,)),
        (lambda x: function.knn_sum_pool(x, index, None, True), (x,)),
    ]
    for run, given in runs:
        assert gradcheck(run, given, fast_mode=True)
        assert gradgradcheck(run, given, fast_mode=True)


def test_numerical_gradients_in_full() -> None:
    index, cell = torch.tensor([[0, 2, -1], [1, 1, 0]], dtype=torch.int32), torch.tensor([[0, 1, 1], [1, 1, 0]], dtype=torch.int32)
    x, w, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2, 3), (2, 4), (2,)))
    assert gradcheck(lambda x, w, b: function.knn_conv(x, w, b, index, cell), (x, w, b))
    assert gradgradcheck(lambda x, w, b: function.knn_conv(x, w, b, index, cell), (x, w, b))


def test_frozen_parts_get_no_gradient() -> None:
    layer = KNNConv(3, 4, 9, FINE, COARSE, bias=True)
    layer.weight.requires_grad_(False)
    x = randn(1, 3, len(FINE)).requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias is not None and layer.bias.grad is not None and x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_registration(dtype: torch.dtype) -> None:
    case = KNN_CASES[3]
    index, cell = case.table()
    x, weight, bias = (value.requires_grad_(dtype != torch.bfloat16) for value in case.tensors(dtype=dtype))
    checks = (
        ("test_schema", "test_faketensor") if dtype == torch.bfloat16 else ("test_schema", "test_autograd_registration", "test_faketensor")
    )
    depthwise = torch.randn(case.cin, case.cells, 2).to(dtype)
    for op, given in (
        (function.knn_conv, (x, weight, bias, index, cell)),
        (function.knn_conv, (x, weight, None, index, cell)),
        (function.knn_depthwise, (x, depthwise, index, cell)),
        (function.knn_max_pool, (x, index)),
        (function.knn_sum_pool, (x, index, None, True)),
        (function.knn_sum_pool, (x, index, torch.rand(index.shape), False)),
    ):
        torch.library.opcheck(op, given, test_utils=checks)


def network() -> Any:
    return nn.Sequential(KNNConv(3, 8, 9, FINE, FINE, side=6), KNNBatchNorm(len(FINE), 8), nn.ReLU(), KNNPool(9, FINE, COARSE))


def test_exported_networks_have_one_node_per_layer() -> None:
    net, x = network().eval(), randn(2, 3, len(FINE))
    program = torch.export.export(net, (x,))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [name for name in names if "sightline" in name] == ["sightline.knn_conv.default", "sightline.knn_max_pool.default"]
    given = randn(2, 3, len(FINE))
    torch.testing.assert_close(program.module()(given), net(given))


def test_exported_layers_take_any_batch() -> None:
    for layer in (KNNConv(3, 8, 9, FINE, FINE), KNNPool(9, FINE, COARSE), KNNPool(9, FINE, COARSE, "gaussian")):
        program = torch.export.export(layer, (randn(2, 3, len(FINE)),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
        for batch in (1, 5):
            given = randn(batch, 3, len(FINE))
            torch.testing.assert_close(program.module()(given), layer(given))


def test_tables_are_no_part_of_checkpoints_and_survive_conversions() -> None:
    net = network()
    assert [name for name in net.state_dict() if "index" in name or "cell" in name] == []
    for other in (copy.deepcopy(net), copy.deepcopy(net).double(), copy.deepcopy(net).to(torch.bfloat16)):
        assert other[0].index.dtype == torch.int32 and torch.equal(other[0].index, net[0].index)
    twice = KNNConv(3, 8, 9, FINE, FINE, side=6)
    twice.index.fill_(0)
    assert torch.equal(KNNConv(3, 8, 9, FINE, FINE, side=6).index, net[0].index)


def test_half_precision_is_summed_in_float32() -> None:
    layer = KNNConv(40, 16, 9, FINE, COARSE, bias=True)
    x = randn(2, 40, len(FINE))
    for dtype, off in ((torch.bfloat16, 2**-8), (torch.float16, 2**-11)):
        low = copy.deepcopy(layer).to(dtype)
        given = x.to(dtype)
        exact = copy.deepcopy(low).double()(given.double())
        assert low(given).dtype == dtype
        torch.testing.assert_close(low(given).double(), exact, rtol=off, atol=off / 16)
        for mode in ("max", "avg", "gaussian"):
            pool = KNNPool(9, FINE, COARSE, mode)
            torch.testing.assert_close(pool(given).double(), pool(given.double()), rtol=2 * off, atol=off / 8)


# -- weights from elsewhere ---------------------------------------------------------------------------------------------------------------


def test_weights_of_a_dense_convolution() -> None:
    """Columns become x, rows from the top become -y: W[o, i, p, q] = K[o, i, side - 1 - q, p]."""
    conv, layer = nn.Conv2d(2, 3, 3), KNNConv(2, 3, 9, FINE, COARSE, bias=True)
    layer.load_conv_weights(conv, strict=True)
    ours = layer.weight.reshape(3, 2, 3, 3)
    for p in range(3):
        for q in range(3):
            assert torch.equal(ours[:, :, p, q], conv.weight[:, :, 2 - q, p])
    assert layer.bias is not None and conv.bias is not None and torch.equal(layer.bias, conv.bias)


def test_a_ramp_in_the_image_stays_one_on_the_sensor() -> None:
    """A kernel that takes the right column minus the left one answers to x, one of rows to -y."""
    sensor = SensorGrid(16, 0.5, 16)
    layer = KNNConv(1, 2, 25, sensor, sensor, side=5)
    conv = nn.Conv2d(1, 2, 3, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, :, 0], conv.weight[0, 0, :, 2] = -1, 1
        conv.weight[1, 0, 0, :], conv.weight[1, 0, 2, :] = -1, 1
    layer.load_conv_weights(conv)
    x, y = sensor.cartesian.unbind(1)
    inner = (torch.linalg.vector_norm(sensor.cartesian, dim=1) < 0.3).nonzero()[:, 0]
    along_x, along_y = layer(x[None, None])[0], layer(-y[None, None])[0]
    assert (along_x[0, inner] > 0).all() and (along_y[1, inner] > 0).all()
    assert along_x[1, inner].abs().mean() < 0.3 * along_x[0, inner].mean()


def test_other_sizes_are_resized_and_norms_kept_on_demand() -> None:
    conv, layer = nn.Conv2d(2, 3, 3, bias=False), KNNConv(2, 3, 9, FINE, COARSE, side=6)
    with pytest.raises(ShapeError, match="6x6"):
        layer.load_conv_weights(conv, strict=True)
    layer.load_conv_weights(conv)
    corner = layer.weight.reshape(3, 2, 6, 6)[:, :, 0, 0]
    torch.testing.assert_close(corner, conv.weight[:, :, 2, 0])  # corners meet corners
    layer.load_conv_weights(conv, preserve_kernel_norm=True)
    torch.testing.assert_close(layer.weight.norm(dim=1), conv.weight.flatten(1).norm(dim=1))


def test_frames_of_three_dimensional_convolutions() -> None:
    conv, layer = nn.Conv3d(2, 3, (4, 3, 3), bias=False), KNNConv(2, 3, 9, FINE, COARSE)
    flat = nn.Conv2d(2, 3, 3, bias=False)
    for strategy, kernel in (("average", conv.weight.mean(2)), ("select_first", conv.weight[:, :, 0])):
        layer.load_conv_weights(conv, temporal_strategy=strategy)
        other = KNNConv(2, 3, 9, FINE, COARSE)
        flat.weight.data.copy_(kernel)
        other.load_conv_weights(flat)
        assert torch.equal(layer.weight, other.weight)
    for wrong in (nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(3, 3, 3, bias=False), nn.Conv2d(2, 3, 3), nn.Conv2d(2, 2, 3, groups=2)):
        with pytest.raises(ShapeError):
            layer.load_conv_weights(wrong)
    with pytest.raises(ShapeError, match="temporal_strategy"):
        layer.load_conv_weights(conv, temporal_strategy="last")


def checkpoint(net: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(value) if value.is_floating_point() else value.clone() for name, value in net.state_dict().items()}


def test_checkpoints_load_by_name() -> None:
    net = network()
    state = checkpoint(net)
    extra = {"0._knn_output_valid_mask": torch.ones(3, dtype=torch.bool)}
    left_out = load_fovi_state_dict(net, {"state_dict": {f"module.{name}": value for name, value in (state | extra).items()}})
    assert left_out == ["0._knn_output_valid_mask"]
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])
    other = network()
    load_fovi_state_dict(
        other, {f"network.{name}": value for name, value in state.items()} | {"head.weight": torch.zeros(1)}, prefix="network."
    )
    assert torch.equal(other[0].weight, net[0].weight)


def test_checkpoints_of_another_geometry_are_refused_with_both_named() -> None:
    net = network()
    state = checkpoint(net)
    state["0.weight"] = torch.zeros(8, 3 * 9)
    before = net[0].weight.clone()
    with pytest.raises(ShapeError, match=r"3x3 cells.*kernel 6x6.*fov 16"):
        load_fovi_state_dict(net, state)
    assert torch.equal(net[0].weight, before)
    other = nn.Sequential(KNNConv(3, 8, 9, *(SensorGrid(20, 0.5, 9, manifold="legacy"),) * 2, side=6), *list(network())[1:])
    with pytest.raises(ShapeError, match=r"(?s)fov 20.*legacy.*fov 16.*planar"):
        load_fovi_state_dict(net, checkpoint(net), geometry=geometry_of(other))
    load_fovi_state_dict(net, checkpoint(net), geometry=geometry_of(network()))


def test_checkpoints_with_other_names_are_refused() -> None:
    net = network()
    state = checkpoint(net)
    state["0.kernel"] = state.pop("0.weight")
    with pytest.raises(KeyError, match=r"0\.weight.*0\.kernel"):
        load_fovi_state_dict(net, state)
    load_fovi_state_dict(net, state, strict=False)
    assert torch.equal(net[1].weight, state["1.weight"])


# -- arguments ----------------------------------------------------------------------------------------------------------------------------


def test_more_neighbours_than_points_are_all_of_them() -> None:
    tiny = SensorGrid(16, 0.5, 2)
    layer = KNNConv(3, 4, 49, tiny, tiny)
    assert layer.k == 2 and layer.k_asked == 49 and "of 49" in repr(layer)
    assert layer(randn(1, 3, 2)).shape == (1, 4, 2)
    assert "of 9" in repr(KNNPool(9, tiny, tiny))


def test_wrong_arguments() -> None:
    for wrong in (
        lambda: KNNConv(3, 4, 0, FINE, COARSE),
        lambda: KNNConv(3, 4, 9, FINE, COARSE, side=0),
        lambda: KNNConv(3, 4, 9, FINE, COARSE, ties="random"),  # type: ignore[arg-type]
        lambda: KNNConv(3, 4, 9, FINE, COARSE, sample_cortex="no"),  # type: ignore[arg-type]
        lambda: KNNPool(9, FINE, COARSE, "median"),  # type: ignore[arg-type]
        lambda: KNNPool(9, FINE, COARSE, "gaussian", gauss_sigma=0),
        lambda: KNNPool(0, FINE, COARSE),
        lambda: KNNDepthwiseConv(3, 4, 9, FINE, COARSE),
    ):
        with pytest.raises(ShapeError):
            wrong()


def test_wrong_maps() -> None:
    layer, pool = KNNConv(3, 4, 9, FINE, COARSE), KNNPool(9, FINE, COARSE)
    for shape in ((3, len(FINE)), (1, 4, len(FINE)), (1, 3, len(COARSE)), (1, 3, len(FINE), 1)):
        with pytest.raises(ShapeError, match=f"3, {len(FINE)}"):
            layer(torch.zeros(shape))
    with pytest.raises(ShapeError, match=str(len(FINE))):
        pool(torch.zeros(1, 3, len(COARSE)))
    with pytest.raises(DTypeError, match="float64"):
        layer(torch.zeros(1, 3, len(FINE), dtype=torch.float64))
    with pytest.raises(DTypeError, match="float"):
        pool(torch.zeros(1, 3, len(FINE), dtype=torch.int64))
    index, cell = layer.index, layer.cell
    x = torch.zeros(1, 3, len(FINE))
    with pytest.raises(ShapeError, match="weight"):
        function.knn_conv(x, torch.zeros(4, 10), None, index, cell)
    with pytest.raises(ShapeError, match="bias"):
        function.knn_conv(x, layer.weight, torch.zeros(5), index, cell)
    with pytest.raises(DTypeError, match="int32"):
        function.knn_conv(x, layer.weight, None, index.long(), cell)
    with pytest.raises(ShapeError, match="tables"):
        function.knn_conv(x, layer.weight, None, index, cell[1:])
    with pytest.raises(ShapeError, match="weights"):
        function.knn_sum_pool(x, index, torch.zeros(2, 2), False)
