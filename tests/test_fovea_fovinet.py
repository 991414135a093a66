"""`FoviNet`: fixations in one batch, heads, policies, activations, saved weights, and wrong input."""

from __future__ import annotations

import copy
import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from sightline.errors import CheckpointError, ConfigError, ShapeError
from sightline.fovea import FoviNet, FoviNetProbe, FoviNetProbes, LinearProbe, find_config, get_model_from_base_fn, load_config
from sightline.fovea.config import compose
from sightline.fovea.networks.mlp import BackboneProjectorWrapper, get_mlp
from sightline.fovea.probes import AGGREGATIONS, AttentionProbe, RNNProbe

SMALL = ["saccades.resize_size=16", "model.channel_mult=0.1", "model.mlp=12-8", "data.num_classes=5"]


def _config(*overrides: str, name: str = "fovi_alexnet") -> Any:
    return compose(name, [*SMALL, *overrides])


def _net(*overrides: str, name: str = "fovi_alexnet") -> FoviNet:
    return FoviNet(_config(*overrides, name=name)).eval()


@pytest.fixture(scope="module")
def net() -> FoviNet:
    return _net()


def test_shapes_of_what_comes_back(net: FoviNet) -> None:
    scores, outputs, seen = net(torch.rand(3, 3, 48, 64))
    assert scores.shape == (3, 5) and seen.shape == (3, 4, 3, 230)
    assert [tuple(output.shape) for output in outputs] == [(3, 4, 25), (3, 4, 12), (3, 4, 8)]
    assert net.mlp_spec == "25-12-8" and (net.repr_size, net.num_features) == (25, 8)
    assert net(torch.rand(3, 3, 48, 64), n_fixations=1)[2].shape == (3, 1, 3, 230)
    assert net(torch.rand(1, 3, 48, 64), fixations=[(0.1, 0.2), (0.5, 0.5)])[1][0].shape == (1, 2, 25)


def test_fixations_in_one_batch_are_fixations_one_by_one(net: FoviNet) -> None:
    images, where = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 2)
    _, outputs, seen = net(images, fixations=where)
    for f in range(3):
        _, alone, one = net(images, fixations=where[:, f : f + 1])
        assert torch.equal(one[:, 0], seen[:, f])
        for whole, part in zip(outputs, alone, strict=True):
            torch.testing.assert_close(part[:, 0], whole[:, f], rtol=1e-5, atol=1e-6)


def test_samples_reach_the_network_without_a_copy(net: FoviNet) -> None:
    seen = net(torch.rand(2, 3, 64, 64), n_fixations=3)[2]
    folded = seen.transpose(0, 1).flatten(0, 1)
    assert folded.data_ptr() == seen.data_ptr()
    assert folded.permute(2, 0, 1).is_contiguous()  # node-major


def test_evaluation_returns_the_mean_of_probabilities_and_training_of_logits(net: FoviNet) -> None:
    embeddings = torch.rand(2, 4, 8)
    assert net.head is not None and net.head.gives_probabilities
    logits = net.head.per_fixation(embeddings)
    torch.testing.assert_close(net.head(embeddings), logits.softmax(-1).mean(1))
    training = FoviNetProbe(8, "mean", 5)
    training.load_state_dict(net.head.state_dict())
    torch.testing.assert_close(training(embeddings), logits.mean(1))
    forced = FoviNetProbe(8, "force_mean", 5).eval()
    forced.load_state_dict(net.head.state_dict())
    torch.testing.assert_close(forced(embeddings), logits.mean(1))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_way_to_put_fixations_together_keeps_images_apart(aggregation: str) -> None:
    head = FoviNetProbe(8, aggregation, 5, dropout=0.2).eval()
    x = torch.rand(3, 4, 8)
    whole = head(x)
    assert whole.shape == (3, 5)
    torch.testing.assert_close(torch.cat([head(x[i : i + 1]) for i in range(3)]), whole, rtol=1e-5, atol=1e-6)
    assert head(x[:, :1]).shape == (3, 5)
    head(x).sum().backward()
    assert all(value.grad is not None for value in head.parameters())


def test_order_of_fixations_matters_to_recurrent_heads_only() -> None:
    x = torch.rand(2, 4, 8)
    for aggregation in AGGREGATIONS:
        head = FoviNetProbe(8, aggregation, 5).eval()
        same = torch.allclose(head(x.flip(1)), head(x), rtol=1e-4, atol=1e-6)
        assert same != (aggregation in {"rnn", "lstm", "gru"})


def test_probes_of_other_shapes() -> None:
    assert LinearProbe(6, num_classes=3, bottleneck_dim="infer", layer_norm=True, dropout=0.1)(torch.rand(2, 6)).shape == (2, 3)
    x = torch.rand(2, 6)
    assert torch.equal(LinearProbe(6, num_classes=0)(x), x)
    assert RNNProbe(6, 3, num_layers=2, bidirectional=True, hidden_dim=4)(torch.rand(5, 2, 6)).shape == (2, 3)
    assert AttentionProbe(6, num_classes=3, hidden_dim=8, pooling_token=0)(torch.rand(5, 2, 6)).shape == (2, 3)
    probes = FoviNetProbes("25-12-8", "mean", 5)
    outputs = [torch.rand(2, 4, 25), torch.rand(2, 4, 12), torch.rand(2, 4, 8)]
    assert [tuple(scores.shape) for scores in probes(outputs)] == [(2, 5)] * 3
    assert probes(outputs[2], [2])[0].shape == (2, 5)
    with pytest.raises(ConfigError, match="not 'median'"):
        FoviNetProbe(8, "median", 5)
    with pytest.raises(ConfigError, match="not 'tcn'"):
        RNNProbe(6, rnn_type="tcn")


def test_seeds_make_fixations_repeat() -> None:
    images = torch.rand(2, 3, 64, 64)
    one, two = _net("saccades.seed=3"), _net("saccades.seed=3")
    assert torch.equal(one(images)[2], two(images)[2])
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    assert torch.equal(one(images, generator=generators[0])[2], one(images, generator=generators[1])[2])
    assert not torch.equal(one(images)[2], one(images)[2])


@pytest.mark.parametrize(
    "policy", ["none", "multi_random", "multi_random_train", "multi_random_nearcenter_train", "inhibition", "saliency"]
)
def test_policies_by_name_run_in_training_and_evaluation(policy: str) -> None:
    net = _net(f"saccades.sup_policy={policy}", "saccades.n_fixations=2")
    images = torch.rand(2, 3, 40, 56)
    for training in (False, True):
        scores, _, _ = net.train(training)(images)
        assert scores.shape == (2, 5) and torch.isfinite(scores).all()
    assert net.sup_fixator is not None
    where = net.eval().sup_fixator(images).fixations  # type: ignore[misc]
    if policy in {"none", "multi_random_train", "multi_random_nearcenter_train"}:
        assert (where == 0.5).all()
    assert ((where >= 0) & (where <= 1)).all()


def test_a_policy_may_ask_the_network_between_fixations(net: FoviNet) -> None:
    from sightline.fovea.saccades import Glimpses, SaccadePolicy

    asked = []

    class Asking(SaccadePolicy):
        def next(self, images: Tensor, history: Glimpses | None, model: Any = None, **options: Any) -> tuple[Tensor, Tensor]:
            if history is None:
                return self.centre(images)[:, 0], self.usual_sizes(images, 1)[:, 0]
            scores = model(history.samples, fixated_inputs=True)[0]
            asked.append(tuple(history.samples.shape[:2]))
            return scores[:, :2].clamp(0, 1), self.usual_sizes(images, 1)[:, 0]

    old, net.sup_fixator = net.sup_fixator, Asking(net.retinal_transform, 3)  # type: ignore[arg-type]
    try:
        assert net(torch.rand(2, 3, 64, 64))[2].shape == (2, 3, 3, 230)
    finally:
        net.sup_fixator = old
    assert asked == [(2, 1), (2, 2)]


@pytest.mark.parametrize("loss", ["simclr", "vicreg", "barlow"])
def test_self_supervised_training_uses_its_own_projector(loss: str) -> None:
    net = _net(f"training.loss={loss}", "saccades.ssl_policy=multi_random")
    images = torch.rand(2, 3, 64, 64)
    embeddings, outputs, seen = net(images, n_fixations=2)
    assert embeddings.shape == (2, 2, 8) and seen.shape[:2] == (2, 2)
    own = net.network.projector_ssl(outputs[0].flatten(0, 1))[0].unflatten(0, (2, 2))  # type: ignore[operator]
    torch.testing.assert_close(embeddings, own)
    embeddings.sum().backward()
    touched = {name.partition(".")[0] for name, value in net.network.named_parameters() if value.grad is not None}
    assert touched == {"backbone", "projector_ssl"}
    assert net(images, setting="supervised")[0].shape == (2, 5)


def test_training_moves_every_parameter() -> None:
    net = FoviNet(_config())
    images = torch.rand(4, 3, 64, 64)
    net(images)[0].logsumexp(1).sum().backward()
    still = [name for name, value in net.named_parameters() if value.grad is None]
    assert not still


@pytest.mark.parametrize(
    ("name", "overrides", "kind"),
    [
        ("cnnalexnet", [], 64),
        ("lp-cnn-alexnet", ["model.arch=alexnet2023_baseline"], 64),
        ("cnnalexnet", ["saccades.mode=null"], 64),
        ("vit_uniform_control", ["model.arch=vit_custom", "model.vit.embed_dim=16", "model.vit.num_heads=2"], 16),
        ("resnet18_logpolar_control", ["model.arch=resnet18"], 64),
    ],
)
def test_dense_controls_look_too(name: str, overrides: list[str], kind: int) -> None:
    net = FoviNet(compose(name, [*SMALL, f"saccades.resize_size={kind}", *overrides])).eval()
    scores, outputs, seen = net(torch.rand(2, 3, 64, 64), n_fixations=2)
    assert scores.shape == (2, 5) and seen.shape == (2, 2, 3, kind, kind)
    assert net.num_coords is None and net.geometry() == {}
    assert [output.shape[2] for output in outputs][1:] == [12, 8]
    with pytest.raises(ShapeError, match=r"\(B, F, C, side, side\)"):
        net(torch.rand(2, 2, 3, 64), fixated_inputs=True)


def test_activations_of_any_layer(net: FoviNet) -> None:
    images, where = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 2)
    net.train()
    scores, caught = net.get_activations(
        images, ["backbone.layers.0.conv", "fc_block_6", "backbone", "head.fix_projector"], fixations=where
    )
    assert net.training
    net.eval()
    assert scores.shape == (2, 5)
    assert caught["backbone.layers.0.conv"].shape == (2, 3, 9, 60)
    assert caught["fc_block_6"].shape == (2, 3, 12)
    assert caught["backbone"].shape == (2, 3, 25)  # one node: its axis is gone
    assert caught["head.fix_projector"].shape == (2, 3, 5)
    torch.testing.assert_close(caught["fc_block_6"], net(images, fixations=where)[1][1])
    assert "backbone.layers.0.conv" in net.list_available_layers()
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(ConfigError, match="has no layer 'fc_block_9'"):
        net.get_activations(images, ["fc_block_9"])
    with pytest.raises(ConfigError, match="several layers end with it"):
        net.get_activations(images, ["conv"])


def test_layers_on_sensors_are_listed_in_order(net: FoviNet) -> None:
    layers = net.list_knn_layers()
    assert list(layers)[:2] == ["backbone.layers.0.conv", "backbone.layers.0.pool"]
    assert net.num_coords == net.get_num_coords() == [230, 60, 16, 16, 2, 2, 2, 2, 1, 1]


def test_uint8_images_are_those_divided_by_255(net: FoviNet) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    where = torch.rand(2, 2, 2)
    torch.testing.assert_close(net(images, fixations=where)[0], net(images / 255.0, fixations=where)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_networks_of_other_types(net: FoviNet, dtype: torch.dtype, tolerance: float) -> None:
    other = FoviNet(net.cfg, dtype=dtype).eval()
    other.load_state_dict(net.state_dict())
    images, where = torch.rand(2, 3, 64, 64), torch.rand(2, 2, 2)
    scores = other(images, fixations=where)[0]
    assert scores.dtype == dtype
    torch.testing.assert_close(scores.float(), net(images, fixations=where)[0], rtol=0, atol=tolerance)


def test_networks_can_be_copied_and_pickled(net: FoviNet) -> None:
    x = torch.rand(1, 2, 3, 230)
    expected = net(x, fixated_inputs=True)[0]
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert torch.equal(other(x, fixated_inputs=True)[0], expected)
    assert len(file.getvalue()) < 2_000_000  # a sensor's points are made again, not stored several times


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fixations": torch.tensor([[[0.5, float("nan")]] * 1] * 2)}, ValueError, "NaN|nan"),
        ({"fixations": torch.full((2, 1, 2), 1.5)}, ValueError, "must lie in the image"),
        ({"fixations": torch.rand(2, 3, 2), "n_fixations": 2}, ShapeError, "n_fixations"),
        ({"setting": "semi"}, ConfigError, 'must be "supervised" or "ssl"'),
        ({"fixation_size": -3}, ValueError, "size"),
    ],
)
def test_wrong_requests_are_refused(net: FoviNet, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        net(torch.rand(2, 3, 64, 64), **arguments)


def test_wrong_images_are_refused_and_nan_is_kept(net: FoviNet) -> None:
    with pytest.raises(ShapeError):
        net(torch.rand(3, 64, 64))
    with pytest.raises(ShapeError, match="expected a map"):
        net(torch.rand(2, 4, 64, 64))
    with pytest.raises(TypeError):
        net(torch.randint(0, 9, (2, 3, 64, 64)))
    with pytest.raises(ShapeError, match=r"takes samples \(B, F, C, N\)"):
        net(torch.rand(2, 3, 230), fixated_inputs=True)
    images = torch.rand(2, 3, 64, 64)
    images[0] = float("nan")
    scores = net(images, fixations=[(0.5, 0.5)])[0]
    assert torch.isnan(scores[0]).all() and torch.isfinite(scores[1]).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["saccades.sup_policy=randm"], "is unknown: did you mean"),
        (["model.arch=fovi_alexnt2023"], "did you mean 'fovi_alexnet2023'"),
        (["saccades.mode=logpolar_as_grid"], "reads points: take saccades.mode=logpolar"),
        (["saccades.mode=null"], "mode must not be null"),
        (["model.arch=alexnet2023"], "reads a grid: take saccades.mode=uniform_as_grid"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _net(*overrides)


def test_a_setting_without_a_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set saccades\.ssl_policy"):
        _net("saccades.ssl_policy=null")(torch.rand(1, 3, 64, 64), setting="ssl")


def test_a_plain_mapping_is_a_configuration() -> None:
    cfg = OmegaConf.to_container(_config(), resolve=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = FoviNet(cfg)
    assert net.num_coords == [230, 60, 16, 16, 2, 2, 2, 2, 1, 1]
    assert net.cfg is cfg


def test_a_network_of_the_users_own_can_be_registered() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x.mean((2, 3)))  # type: ignore[no-any-return]

    class Own(FoviNet):
        pass

    from sightline.fovea.networks.registry import make_registry

    Own.architectures = make_registry()
    Own.architectures.register("mine", lambda cfg, device=None: BackboneProjectorWrapper(Mine(), get_mlp("lazy", cfg.model.mlp, norm=None)))
    net = Own(compose("cnnalexnet", [*SMALL, "model.arch=mine"])).eval()
    assert net.mlp_spec == "7-12-8"
    assert net(torch.rand(2, 3, 64, 64), n_fixations=2)[0].shape == (2, 5)


# --------------------------------------------------------------------------------------------------------- saved
def _save(folder: Path, net: FoviNet, config: Any, *, layout: str) -> Path:
    base = folder / "mine"
    base.mkdir()
    state = net.state_dict()
    if layout == "shards":
        names = list(state)
        parts = {"a.pth": names[: len(names) // 2], "b.pth": names[len(names) // 2 :]}
        for file, keys in parts.items():
            torch.save({key: state[key] for key in keys}, base / file)
        index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
        (base / "state_dict.index.json").write_text(json.dumps(index))
        OmegaConf.save(config, base / "resolved_config.yaml")
    elif layout == "model":
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, base / "model.pth")
        (base / "hydra").mkdir()
        OmegaConf.save(config, base / "hydra" / "config.yaml")
    elif layout == "params":
        torch.save({"state_dict": state}, base / "final_weights.pth")
        (base / "params.json").write_text(json.dumps(OmegaConf.to_container(config)))
    else:
        torch.save({"state_dict": state}, base / "state_dict.pth")
        OmegaConf.save(config, base / "config.yaml")
    return base


@pytest.mark.parametrize("layout", ["plain", "shards", "model", "params"])
def test_folders_in_fovis_layout_load(tmp_path: Path, layout: str) -> None:
    config = _config()
    del config.saccades.ties  # as in fovi's checkpoints
    saved = _net("saccades.ties=fovi")
    _save(tmp_path, saved, config, layout=layout)
    cfg, checkpoint, key = load_config("mine", load=True, folder=tmp_path)
    assert cfg.saccades.ties == "fovi" and checkpoint is not None and key is not None
    net = FoviNet(cfg).eval()
    assert str(net.load_state_dict(checkpoint[key])) == "<All keys matched successfully>"
    x = torch.rand(2, 1, 3, 230)
    assert torch.equal(net(x, fixated_inputs=True)[0], saved(x, fixated_inputs=True)[0])
    again = get_model_from_base_fn("mine", model_dirs=[tmp_path / "nowhere", tmp_path]).eval()
    assert torch.equal(again(x, fixated_inputs=True)[0], saved(x, fixated_inputs=True)[0])
    assert load_config("mine", load=False, folder=tmp_path)[1:] == (None, None)


def test_another_number_of_classes_leaves_the_heads_weights_out(tmp_path: Path) -> None:
    saved = _net()
    _save(tmp_path, saved, _config(), layout="plain")
    classes: dict[str, Any] = {"data.num_classes": 3}
    wrong: dict[str, Any] = {"data.num_class": 3}
    net = get_model_from_base_fn("mine", model_dirs=[tmp_path], **classes).eval()
    x = torch.rand(1, 1, 3, 230)
    assert net(x, fixated_inputs=True)[0].shape == (1, 3)
    assert torch.equal(net(x, fixated_inputs=True)[1][-1], saved(x, fixated_inputs=True)[1][-1])
    with pytest.raises(ConfigError, match=r"did you mean data\.num_classes"):
        get_model_from_base_fn("mine", model_dirs=[tmp_path], **wrong)


def test_weights_of_another_geometry_are_refused_with_both_named() -> None:
    net, other = _net(), _net("model.ref_frame_mult=1")
    with pytest.raises(CheckpointError) as error:
        net.load_state_dict(other.state_dict())
    text = str(error.value)
    assert "another geometry" in text and "has 121 cells" in text and "kernel 22x22" in text and "230 points" in text
    with pytest.raises(CheckpointError, match=r"lacks head\.fix_projector"):
        net.load_state_dict({key: value for key, value in net.state_dict().items() if not key.startswith("head.")})
    with pytest.raises(CheckpointError, match=r"has the unknown extra\.weight"):
        net.load_state_dict({**net.state_dict(), "extra.weight": torch.zeros(1)})
    result = net.load_state_dict({**net.state_dict(), "extra.weight": torch.zeros(1)}, strict=False)
    assert result.unexpected_keys == ["extra.weight"]


def test_weights_of_the_same_shapes_from_another_sensor_are_refused_where_their_geometry_is_known(tmp_path: Path) -> None:
    net, other = _net(), _net("saccades.field_geometry=legacy")
    assert net.load_state_dict(other.state_dict()).missing_keys == []  # weights alone do not tell
    with pytest.raises(CheckpointError, match=r"another geometry: backbone\.layers\.0\.conv has .*legacy.*in it, and .*planar.* here"):
        net.load_state_dict(other.state_dict(), geometry=other.geometry())
    assert net.load_state_dict(other.state_dict(), geometry=net.geometry()).missing_keys == []
    base = _save(tmp_path, other, _config(), layout="plain")
    torch.save({"state_dict": other.state_dict(), "geometry": other.geometry()}, base / "state_dict.pth")
    with pytest.raises(CheckpointError, match="another geometry"):
        get_model_from_base_fn("mine", model_dirs=[tmp_path])


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        load_config("nowhere", load=True, folder=tmp_path)
    with pytest.raises(ConfigError, match="there is no network nowhere"):
        find_config("nowhere", True, [tmp_path])
    base = tmp_path / "mine"
    base.mkdir()
    OmegaConf.save(_config(), base / "config.yaml")
    with pytest.raises(CheckpointError, match="there are no weights of mine"):
        load_config("mine", load=True, folder=tmp_path)
    torch.save({"epoch": 1}, base / "model.pth")
    with pytest.raises(CheckpointError, match="holds no weights under 'model'"):
        load_config("mine", load=True, folder=tmp_path)
    (base / "state_dict.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_config("mine", load=True, folder=tmp_path)
    (base / "state_dict.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret.pth"}}))
    with pytest.raises(CheckpointError, match="lies outside that folder"):
        load_config("mine", load=True, folder=tmp_path)
    (base / "config.yaml").write_text("- a list\n")
    with pytest.raises(ConfigError, match="is not a mapping"):
        load_config("mine", load=False, folder=tmp_path)


class _Danger:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_weights_that_hold_code_are_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "mine"
    base.mkdir()
    OmegaConf.save(_config(), base / "config.yaml")
    torch.save({"state_dict": _Danger()}, base / "state_dict.pth")
    with pytest.raises(CheckpointError):
        load_config("mine", load=True, folder=tmp_path)
    assert "code ran" not in capsys.readouterr().out
