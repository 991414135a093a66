"""Networks on sensors: shapes, gradients, names of parameters, and fovi's numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fovea_reference import NUMBERS, OF_CONFIGS, OF_TUTORIAL, fill, names_and_shapes, samples
from sightline.errors import ConfigError, ShapeError
from sightline.fovea import (
    ARCHITECTURES,
    DenseAlexNet,
    DenseResNet,
    FoviNet,
    KNNAlexNet,
    KNNAlexNetBlock,
    KNNConv,
    KNNConvNeXt,
    KNNPartitioningPatchEmbedding,
    KNNPatchEmbedding,
    KNNResNet,
    KNNResNetBottleneck,
    KNNViT,
    PartitioningPatchEmbedding,
    SensorGrid,
    VisionTransformer,
)
from sightline.fovea.config import compose, settings
from sightline.fovea.networks.convnext import GRN, StochasticDepth
from sightline.fovea.networks.dense import PolarPadder
from sightline.fovea.networks.ladder import Ladder, reference_side
from sightline.fovea.networks.mlp import get_mlp
from sightline.fovea.networks.vit import RoPEPositionalEncoding

MATCHED: dict[str, Any] = {"auto_match_cart_resources": 1}


def _alexnet(**options: Any) -> KNNAlexNet:
    return KNNAlexNet(16, 3, [6, 6, 12], [1, 1, 2], [0], [9, 9, 9], **{**MATCHED, **options})


def _vit(**options: Any) -> KNNViT:
    return KNNViT(16, 0.5, img_size=16, patch_size=4, embed_dim=16, num_heads=2, sample_cortex=True, **options)


NETWORKS: dict[str, Any] = {
    "alexnet, classes": lambda: (_alexnet(n_classes=5), (2, 5)),
    "alexnet, features": lambda: (_alexnet(), (2, 12, 16)),
    "alexnet, averaged": lambda: (_alexnet(out_res=1, layer_cls="dwsep", ref_frame_mult=2), (2, 12, 1)),
    "alexnet, rings": lambda: (_alexnet(auto_match_cart_resources=0, n_classes=2), (2, 2)),
    "alexnet, first sensor matched": lambda: (_alexnet(auto_match_cart_resources=-1), None),
    "resnet 9": lambda: (KNNResNet.of_depth(9, in_res=16, in_conv_stride=1, num_classes=4, **MATCHED), (2, 4)),
    "bottlenecks": lambda: (KNNResNet(KNNResNetBottleneck, [1, 1, 1, 1], in_res=16, in_conv_stride=1, **MATCHED), (2, 2048, 1)),
    "convnext": lambda: (KNNConvNeXt(16, 16, 0.5, dims=[4, 4, 6, 8], depths=[1, 2, 1, 1], num_classes=3, first_stride=1), (2, 3)),
    "vit": lambda: (_vit(num_layers=2, num_outputs=5), (2, 1, 5)),
    "vit, rope": lambda: (_vit(num_layers=1, num_outputs=None, pos_emb_type="rope", aggregation="flatten"), None),
    "dense alexnet": lambda: (DenseAlexNet("base_lowres", 3, 64, channel_mult=0.1), (2, 25, 1, 1)),
    "dense alexnet, polar": lambda: (DenseAlexNet("base", 3, 64, -1, "none", polar=True, channel_mult=0.1), (2, 25, 2, 2)),
    "dense resnet 34": lambda: (DenseResNet(34, channel_mult=0.1), (2, 51)),
    "dense resnet 50, polar": lambda: (DenseResNet(50, channel_mult=0.1, polar=True, norm="none"), (2, 204)),
    "dense vit": lambda: (VisionTransformer(16, 4, 3, 16, 2, 1, num_outputs=0), (2, 16)),
}


def _input(net: nn.Module) -> Tensor:
    coords = getattr(net, "in_coords", None)
    if coords is not None:
        return torch.rand(2, 3, len(coords))
    side = 16 if isinstance(net, VisionTransformer) else 64
    return torch.rand(2, 3, side, side)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_run_forward_and_every_parameter_gets_a_gradient(name: str) -> None:
    net, shape = NETWORKS[name]()
    x = _input(net).requires_grad_()
    y = net(x)
    if shape is not None:
        assert tuple(y.shape) == shape
    assert y.flatten(1).shape[1] == (net.total_embed_dim if len(y.shape) > 2 or shape is None else shape[-1])
    (y * torch.rand_like(y)).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    still = [key for key, value in net.named_parameters() if value.grad is None]
    assert not still
    assert torch.isfinite(torch.cat([value.grad.flatten() for value in net.parameters() if value.grad is not None])).all()


@pytest.mark.parametrize("name", ["alexnet, classes", "bottlenecks", "convnext", "vit"])
def test_gradients_are_those_of_small_steps(name: str) -> None:
    """In training mode, in float64: the slope along a random direction of all parameters."""
    net = NETWORKS[name]()[0].double()
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _module, _args, output: nn.functional.softplus(output))  # no corners near a step
    x = torch.rand(3, 3, len(net.in_coords), dtype=torch.float64)
    wanted = torch.rand_like(net(x))
    directions = [torch.randn_like(value) for value in net.parameters()]

    def loss(step: float) -> Tensor:
        moved = {key: value + step * way for (key, value), way in zip(net.named_parameters(), directions, strict=True)}
        result: Tensor = (torch.func.functional_call(net, moved, (x,)) * wanted).sum()
        return result

    loss(0.0).backward()
    slope = sum(float((value.grad * way).sum()) for value, way in zip(net.parameters(), directions, strict=True))
    with torch.no_grad():
        measured = float(loss(1e-7) - loss(-1e-7)) / 2e-7
    assert abs(slope - measured) <= 1e-4 * abs(measured) + 1e-4


@pytest.mark.parametrize("name", ["alexnet, classes", "resnet 9", "convnext", "vit"])
def test_images_of_a_batch_do_not_touch_each_other_in_evaluation(name: str) -> None:
    net = NETWORKS[name]()[0].eval()
    x = torch.rand(3, 3, len(net.in_coords))
    whole = net(x)
    torch.testing.assert_close(torch.cat([net(x[i : i + 1]) for i in range(3)]), whole, rtol=1e-5, atol=1e-6)
    x[1] = float("nan")
    again = net(x)
    assert torch.isfinite(again[[0, 2]]).all() and torch.isnan(again[1]).any()


@pytest.mark.parametrize("name", OF_CONFIGS)
def test_names_and_shapes_of_parameters_are_fovis(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("kaiming_normal_", "kaiming_uniform_"):  # values do not matter here
        monkeypatch.setattr(nn.init, slow, lambda tensor, *_, **__: tensor)
    hashed, count, points = OF_CONFIGS[name]
    net = FoviNet(compose(name))
    assert names_and_shapes(net) == hashed
    assert sum(value.numel() for value in net.parameters()) == count
    assert net.num_coords == points


def test_the_tutorials_network_has_fovis_names_and_shapes() -> None:
    widths, k = [96, 256, 384, 256, 256], [121, 25, 9, 27, 9]
    net = KNNAlexNet(64, 3, widths, [4, 1, 1, 1, 1], [1, 4], k, n_classes=1000, ref_frame_mult=2, **MATCHED)
    assert (names_and_shapes(net), sum(value.numel() for value in net.parameters())) == OF_TUTORIAL
    convolutions = [layer for layer in net.modules() if isinstance(layer, KNNConv)]
    assert [(layer.k, layer.side**2) for layer in convolutions] == [(121, 484), (25, 100), (9, 36), (27, 121), (9, 36)]


@pytest.mark.parametrize("name", NUMBERS)
def test_networks_give_fovis_numbers(name: str) -> None:
    config, overrides, expected = NUMBERS[name]
    net = FoviNet(compose(config, overrides)).eval()
    fill(net)
    with torch.no_grad():
        x = samples((net.num_coords or [0])[0])
        embeddings, outputs, seen = net(x, fixated_inputs=True, do_postproc=False)
        scores = net(x, fixated_inputs=True)[0]
    found = torch.cat([embeddings.flatten()[:8], scores.flatten()])
    reference = torch.tensor(expected)
    # Relative to the largest number of each kind.
    for part in (slice(0, 8), slice(8, None)):
        assert (found[part] - reference[part]).abs().max() <= 1e-5 * reference[part].abs().max()
    assert torch.equal(seen, x)
    assert torch.equal(outputs[-1], embeddings)


def test_the_comparison_with_fovi_can_fail() -> None:
    config, overrides, expected = NUMBERS["alexnet, square field, layer norm"]
    net = FoviNet(compose(config, [*overrides, "saccades.ties=stable", "saccades.field_geometry=legacy"])).eval()
    fill(net)
    with torch.no_grad():
        scores = net(samples((net.num_coords or [0])[0]), fixated_inputs=True)[0]
    assert (scores.flatten() - torch.tensor(expected[8:])).abs().max() > 1e-3


def test_depthwise_separable_and_34_layers_run_where_fovi_does_not() -> None:
    for arch in ("fovi_resnet9_dwsep_lowres", "fovi_resnet34_lowres", "fovi_convnext_atto"):
        cfg = compose("fovi_resnet18_rf1", [f"model.arch={arch}", "saccades.resize_size=16", "model.stem_conv_stride=1"])
        net = FoviNet(cfg).eval()
        assert net(torch.rand(1, 3, 32, 32))[0].shape == (1, 1000)


def test_sensors_follow_the_strides_as_square_images_would() -> None:
    ladder = Ladder(16, 0.5)
    rung, points = ladder.start(64), []
    for stride in (1, 2, 2, 2, 2):
        rung = ladder.below(rung, stride)
        points.append((rung.cart_res, len(rung.sensor)))
    assert points == [(64, 4085), (32, 964), (16, 230), (8, 60), (4, 16)]
    assert len(ladder.final(1).sensor) == 1
    assert ladder.below(ladder.start(64), 1).sensor is ladder.start(64).sensor or ladder.below(rung, 1).sensor is rung.sensor
    unmatched = Ladder(16, 0.5, match=0)
    assert unmatched.below(unmatched.start(20), 2).sensor.resolution == 10
    with pytest.raises(ConfigError, match="no point is left after a stride of 8"):
        ladder.below(rung, 8)
    with pytest.raises(ConfigError, match="at least 1"):
        ladder.start(0)


def test_the_outermost_tokens_may_lie_inside_the_rim() -> None:
    ladder = Ladder(16, 0.5)
    first = ladder.start(32)
    outer, inner = ladder.below(first, 4).sensor, ladder.inside(first, 4).sensor
    radii = torch.unique(outer.polar[:, 0])
    assert len(outer) == len(inner)
    assert math.isclose(float(inner.polar[:, 0].max()), float((radii[-1] + radii[-2]) / 2), rel_tol=1e-5)


@pytest.mark.parametrize(("k", "mult", "flag", "side"), [(121, 2, "", 22), (27, 2, "", 11), (9, None, "", None), (9, None, "doubleres", 6)])
def test_sides_of_reference_kernels(k: int, mult: float | None, flag: str, side: int | None) -> None:
    assert reference_side(k, mult, flag) == side


# ------------------------------------------------------------------------------------------------------- patches
def _patches(cls: type[KNNPatchEmbedding], **options: Any) -> KNNPatchEmbedding:
    return cls(3, 8, 0, 16, 0.5, in_cart_res=32, cart_patch_size=8, **{"sample_cortex": True, **options})


@pytest.mark.parametrize("cortex", [True, False])
def test_partition_gives_every_sample_to_its_nearest_token(cortex: bool) -> None:
    net = _patches(PartitioningPatchEmbedding, sample_cortex=cortex)
    index = net.index[net.index >= 0].long()
    assert torch.equal(index.sort().values, torch.arange(len(net.in_coords)))  # each exactly once
    source, target = net.in_coords.exact, net.out_coords.exact
    places = (source.cortical, target.cortical) if cortex else (source.cartesian, target.cartesian)
    distance = torch.cdist(places[0], places[1], compute_mode="donot_use_mm_for_euclid_dist")  # type: ignore[arg-type]
    own = torch.full((len(net.in_coords),), -1)
    for token, row in enumerate(net.index.long()):
        own[row[row >= 0]] = token
    assert (distance[torch.arange(len(own)), own] <= distance.amin(1) * (1 + 1e-5) + 1e-9).all()


def test_every_sample_of_a_partition_reaches_the_tokens() -> None:
    for cls in (PartitioningPatchEmbedding, KNNPartitioningPatchEmbedding):
        net = _patches(cls)
        x = torch.rand(1, 3, len(net.in_coords), requires_grad=True)
        net(x).sum().backward()
        assert x.grad is not None and (x.grad.abs().sum((0, 1)) > 0).all(), cls


def test_the_smallest_number_of_neighbours_that_covers_all_samples() -> None:
    net = _patches(KNNPartitioningPatchEmbedding, max_coord_val="auto")
    covered = torch.unique(net.index[net.index >= 0])
    fewer = torch.unique(net.index[:, :-1][net.index[:, :-1] >= 0])
    assert len(covered) == len(net.in_coords) > len(fewer)


def test_patches_may_overlap_or_be_more() -> None:
    plain, wide = _patches(KNNPatchEmbedding), _patches(KNNPatchEmbedding, patch_overlap_factor=1.5)
    many = _patches(KNNPatchEmbedding, patch_overlap_factor=2, new_parameterization=True)
    assert wide.k == int((8 * 4 / math.sqrt(len(wide.out_coords)) * 1.5) ** 2) > plain.k
    assert many.k == 64 and len(many.out_coords) > len(plain.out_coords)
    x = torch.rand(2, 3, len(plain.in_coords))
    assert plain(x).shape == (2, len(plain.out_coords), 8)
    transposed = _patches(KNNPatchEmbedding, transposed=True)
    assert transposed(x).shape == (2, 8, len(plain.out_coords))
    with pytest.raises(ShapeError, match="belong together"):
        _patches(KNNPatchEmbedding, in_coords=plain.in_coords)


@pytest.mark.parametrize("embedding", ["partition", "knn_partition"])
def test_transformers_take_other_patches_by_configuration(embedding: str) -> None:
    overrides = [
        f"model.vit.embedding={embedding}", "saccades.resize_size=32", "model.vit.num_layers=1", "data.num_classes=3", "model.mlp=''",
    ]  # fmt: skip
    net = FoviNet(compose("fovi-vit", overrides)).eval()
    assert net(torch.rand(1, 3, 64, 64), n_fixations=2)[0].shape == (1, 3)


# ------------------------------------------------------------------------------------------------- transformers
def test_rotary_positions_make_attention_relative() -> None:
    """The product of a turned query and a turned key depends on the difference of their places only."""
    torch.manual_seed(1)
    points = torch.rand(40, 2).double()
    points[0], points[1] = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])  # the unit square: nothing is rescaled
    points[2:4], points[4:6] = torch.tensor([[0.1, 0.2], [0.3, 0.25]]), torch.tensor([[0.5, 0.6], [0.7, 0.65]])
    rope = RoPEPositionalEncoding(16, 2, points).double()
    q, k = torch.rand(1, 1, 1, 8).double().expand(1, 1, 40, 8), torch.rand(1, 1, 1, 8).double().expand(1, 1, 40, 8)
    turned_q, turned_k = rope(q, k)
    product = turned_q[0, 0] @ turned_k[0, 0].T
    torch.testing.assert_close(product[2, 3], product[4, 5], rtol=1e-7, atol=0)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    as_fovi = RoPEPositionalEncoding(16, 2, points, as_fovi=True).double()
    assert not torch.allclose(as_fovi.rotate(q).norm(dim=-1), q.norm(dim=-1))


def test_attention_is_the_formula() -> None:
    net = VisionTransformer(8, 4, 3, 8, 2, 1, num_outputs=0)
    attention: Any = net.blocks[0].attn
    x = torch.rand(2, 5, 8)
    q, k, v = attention.qkv(x).reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
    torch.testing.assert_close(attention(x), attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 8)))


# ---------------------------------------------------------------------------------------------------- small parts
def test_log_polar_padding_wraps_angles_and_not_radii() -> None:
    x = torch.arange(12.0).reshape(1, 1, 4, 3)
    padded = PolarPadder(1)(x)
    assert padded.shape == (1, 1, 6, 5)
    assert torch.equal(padded[0, 0, 0, 1:4], x[0, 0, 3]) and torch.equal(padded[0, 0, 5, 1:4], x[0, 0, 0])
    assert (padded[..., 0] == 0).all() and (padded[..., -1] == 0).all()


def test_polar_controls_do_not_care_where_angles_begin() -> None:
    net = DenseAlexNet("4layer_nostride", 3, 16, polar=True, channel_mult=0.1).eval()
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(net(x.roll(4, dims=2)), net(x))


def test_response_norm_and_stochastic_depth() -> None:
    norm = GRN(3)
    x = torch.rand(7, 2, 3)
    assert torch.equal(norm(x), x)  # both parameters start at 0
    nn.init.ones_(norm.gamma)
    strength = x.pow(2).sum(0).sqrt()
    torch.testing.assert_close(norm(x), x + x * (strength / (strength.mean(-1, keepdim=True) + 1e-6)))
    drop = StochasticDepth(0.5)
    kept = drop(torch.ones(4, 1000, 2))
    assert set(kept.unique().tolist()) == {0.0, 2.0} and (kept == kept[:1, :, :1]).all()
    assert 350 < int((kept[0, :, 0] > 0).sum()) < 650
    assert torch.equal(drop.eval()(x), x)


def test_projectors_are_built_block_by_block() -> None:
    net = get_mlp(6, "5-4", norm=nn.BatchNorm1d)
    assert [type(layer).__name__ for layer in net.layers[0]] == ["Dropout", "Linear", "BatchNorm1d", "ReLU"]  # type: ignore[index]
    assert [type(layer).__name__ for layer in net.layers[1]] == ["Linear"] and net.layers[1][0].bias is None  # type: ignore[index]
    embedding, outputs = net(torch.rand(3, 6, 1))
    assert embedding.shape == (3, 4) and [output.shape[1] for output in outputs] == [6, 5, 4]
    assert not any(output.requires_grad for output in outputs)
    lengths = get_mlp(6, 4, l2norm=True, norm=None, act=nn.Identity)(torch.rand(3, 6))[0].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(3))
    nothing, outputs = get_mlp(6, "")(torch.rand(3, 2, 3))
    assert nothing.shape == (3, 6) and len(outputs) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KNNAlexNet(16, 3, [4, 4], [1], [], [9, 9]), "one entry per block, got 2, 1 and 2"),
        (lambda: KNNAlexNet(16, 3, [], [], [], []), "one entry per block"),
        (lambda: KNNAlexNet(16, 3, [4], [1], [], [9], layer_cls="conv"), "is one of default, dwsep, dw, not 'conv'"),
        (lambda: KNNAlexNet(4, 3, [4] * 4, [2] * 4, [], [9] * 4, **MATCHED), "no point is left"),
        (lambda: KNNAlexNet(16, 3, [4], [1], [], [9], fov=0, **MATCHED), "fov"),
        (lambda: KNNAlexNet(16, 3, [4], [1], [], [9], cmf_a=-1, **MATCHED), "cmf_a"),
        (lambda: KNNResNet.of_depth(20), "depth 9, 18, 34, 50, not 20"),
        (lambda: KNNResNet(layers=[1, 1]), "each of the 4 stages, not 2"),
        (lambda: KNNResNet(stem_kernel_size=0), "stem_kernel_size must be at least 1"),
        (lambda: KNNResNet(arch_flag="doubleres", ref_frame_mult=2, in_res=16, **MATCHED), "give one of them"),
        (lambda: KNNConvNeXt.of_size("giant", in_res=16), "not 'giant'"),
        (lambda: VisionTransformer(16, 4, pos_emb_type="learned"), "absolute or rope"),
        (lambda: VisionTransformer(16, 4, embed_dim=10, num_heads=3), "multiple of num_heads = 3"),
        (lambda: KNNViT(16, 0.5, "isotropic", 16, 4, embed_dim=18, num_heads=3, pos_emb_type="rope"), "multiple of 4 \\* num_heads"),
        (lambda: KNNViT(16, 0.5, embedding="hex"), "model.vit.embedding must be one of"),
        (lambda: DenseResNet(20), "depth 18, 34, 50, not 20"),
        (lambda: DenseAlexNet("base_lowre"), "did you mean 'base_lowres'"),
        (lambda: DenseAlexNet("base", grid=4, norm="layer"), "takes batch, group or none"),
        (lambda: ARCHITECTURES.get("fovi_resnet19"), "did you mean 'fovi_resnet9'"),
        (lambda: ARCHITECTURES.get("fovi_vit_custom")(settings({}), device=None), "needs model.vit.embed_dim"),
    ],
)
def test_impossible_networks_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_network_refuses_samples_of_another_sensor() -> None:
    net = _alexnet(n_classes=5)
    with pytest.raises(ShapeError, match="expected a map"):
        net(torch.rand(2, 3, 100))
    with pytest.raises(ShapeError, match="expected a map"):
        net(torch.rand(2, 1, len(net.in_coords)))


def test_blocks_can_do_without_convolution_norm_or_activation() -> None:
    block = KNNAlexNetBlock(3, 3, 9, 16, 0.5, 16, 1, conv_layer=None, norm_type=None, activation=None, pool_mode="avg", **MATCHED)
    x = torch.rand(2, 3, len(block.in_coords))
    assert block(x).shape == (2, 3, len(block.out_coords)) == (2, 3, 60)
    assert not list(block.parameters())


def test_sensors_are_shared_where_they_are_equal() -> None:
    net = _alexnet()
    assert isinstance(net.in_coords, SensorGrid)
    layers = [layer for layer in net.modules() if isinstance(layer, KNNConv)]
    assert layers[1].in_coords == layers[1].out_coords
