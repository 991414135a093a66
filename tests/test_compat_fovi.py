"""fovi's names: its tutorial as it is, both generations of paths, `install`, and what the original does wrong."""

from __future__ import annotations

import hashlib
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sightline.compat.fovi import install
from sightline.compat.fovi.arch.knn import (
    KNNConvLayer,
    KNNDepthwiseConvLayer,
    KNNDepthwiseSeparableConvLayer,
    KNNGetterLayer,
    KNNPoolingLayer,
    compute_binary_receptive_field,
    compute_receptive_field,
    get_in_out_coords,
    get_knn_conv_layer,
)
from sightline.compat.fovi.demo import get_image_as_batch, load_image_for_sampling
from sightline.compat.fovi.models import ARCHITECTURE_REGISTRY, FoviNet
from sightline.compat.fovi.models.knnalexnet import KNNAlexNet
from sightline.compat.fovi.models.knnconvnextv2 import ConvNeXtV2
from sightline.compat.fovi.models.knnresnet import KNNResNet, KNNResNetBottleneck
from sightline.compat.fovi.models.knnvit import KNNPartitioningPatchEmbedding, KNNViT
from sightline.compat.fovi.sensing.coords import SamplingCoords, auto_match_num_coords, find_desired_res, num_sampling_coords
from sightline.compat.fovi.sensing.policies import MultiRandomSaccadePolicy, NoSaccadePolicy
from sightline.compat.fovi.sensing.retina import GaussianColorDecay, RetinalTransform, get_min_cmf_a
from sightline.errors import ConfigError, MediaError
from sightline.fovea.config import compose, copy_to

# The cells of fovi's tutorial on networks, with "fovi" in import lines as a placeholder. What they print is marked, so that it can be
# compared; the saved network is one that the test puts where the last cell looks.
TUTORIAL = """
    from PACKAGE.arch.knn import KNNPoolingLayer, KNNConvLayer, get_in_out_coords
    from PACKAGE.arch.norm import KNNBatchNorm
    import torch.nn as nn
    fov = 16
    cmf_a = 0.5
    device = 'cpu'
    cartesian_res = 64
    conv_kernel_cartesian = [7, 7]
    pool_kernel_cartesian = [3, 3]
    conv_stride = 1
    pool_stride = 2
    channels = 128
    k_conv = conv_kernel_cartesian[0]*conv_kernel_cartesian[1]
    k_pool = pool_kernel_cartesian[0]*pool_kernel_cartesian[1]
    in_cart_res = cartesian_res
    sensor_coords, conv_coords, out_cart_res = get_in_out_coords(in_cart_res, fov, cmf_a, conv_stride,
    in_cart_res=in_cart_res, device=device)
    in_cart_res = out_cart_res
    _, pool_coords, _ = get_in_out_coords(in_cart_res, fov, cmf_a, pool_stride,
    in_cart_res=in_cart_res, in_coords=conv_coords, device=device)
    conv_layer = KNNConvLayer(3, channels, k_conv, sensor_coords, conv_coords,
    ref_frame_side_length=2*conv_kernel_cartesian[0],
    device=device,
    )
    pool_layer = KNNPoolingLayer(k_pool, conv_coords, pool_coords, mode='max', device=device)
    full_layer = nn.Sequential(
    conv_layer,
    pool_layer,
    nn.ReLU(),
    KNNBatchNorm(len(pool_coords), channels, device=device),
    ).to(device)
    import torch
    x_sensor = torch.rand([64, 3, len(sensor_coords)]).to(device)
    layer_output = full_layer(x_sensor)
    show(3, layer_output.shape)
    from PACKAGE.arch.knnalexnet import KNNAlexNetBlock
    block = KNNAlexNetBlock(3, channels, k_conv, fov, cmf_a, cartesian_res, conv_stride, cart_res=cartesian_res,
    pool=True, pool_k=k_pool, pool_stride=pool_stride, norm_type='batch', auto_match_cart_resources=1, device=device, ref_frame_mult=2)
    block_output = block(x_sensor)
    show(5, block_output.shape)
    from PACKAGE.arch.knnalexnet import KNNAlexNet
    model = KNNAlexNet(
    cartesian_res,
    3,
    [96, 256, 384, 256, 256],
    [4,1,1,1,1],
    [1,4],
    [11**2, 5**2, 3**2, 3**3, 3**2],
    n_classes=1000,
    out_res=None,
    auto_match_cart_resources=1,
    norm_type='batch',
    ref_frame_mult=2,
    fov=fov,
    cmf_a=cmf_a,
    device=device,
    )
    show(7, model)
    from PACKAGE.fovinet import FoviNet
    from hydra import compose, initialize
    with initialize(version_base=None, config_path="../config"):
        config = compose(config_name="fovi_alexnet.yaml")
    show(8, type(config))
    fovinet = FoviNet(config, device=device)
    show(9, fovinet)
    from PACKAGE.demo import get_image_as_batch
    data = get_image_as_batch(device=device)
    show(10, data.shape)
    category_logits, layer_outputs, x_fixs = fovinet(data)
    show(11, layer_outputs[0].shape, layer_outputs[-1].shape, category_logits.shape, x_fixs.shape)
    save(config, fovinet)
    from PACKAGE import load_config
    base_fn = 'fovi-alexnet_a-1_res-64_in1k'
    config, state_dict, model_key = load_config(base_fn, load=True, folder='../models', device='cpu')
    model = FoviNet(config, device='cpu')
    show(12, model.load_state_dict(state_dict[model_key]))
"""

FRAME = """
    import warnings
    warnings.simplefilter("error")
    def show(cell, *values):
        print(f"<<{cell}>>", *values, "<<end>>")
    def save(config, net):
        import torch
        from omegaconf import OmegaConf
        from pathlib import Path
        folder = Path("../models/fovi-alexnet_a-1_res-64_in1k")
        folder.mkdir(parents=True)
        OmegaConf.save(config, folder / "config.yaml")
        torch.save({"state_dict": net.state_dict()}, folder / "state_dict.pth")
"""


def _run(tmp_path: Path) -> dict[int, str]:
    """Run the tutorial from a folder beside the copied configurations; what it shows, by cell, and under 0 what else it prints."""
    copy_to(tmp_path / "config")
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    script = notebooks / "tutorial.py"
    script.write_text(textwrap.dedent(FRAME) + textwrap.dedent(TUTORIAL).replace("PACKAGE", "sightline.compat.fovi"))
    done = subprocess.run([sys.executable, "tutorial.py"], cwd=notebooks, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = {int(cell): text.strip() for cell, text in re.findall(r"<<(\d+)>>(.*?)<<end>>", done.stdout, re.DOTALL)}
    return {**shown, 0: re.sub(r"<<(\d+)>>.*?<<end>>", "", done.stdout, flags=re.DOTALL)}


def _hash(text: str) -> str:
    # torch 2.13 prints whether a batch norm has a bias; older ones, as in the tutorial, do not.
    text = re.sub(r"\s+", "", text).replace("bias=True,track_running_stats", "track_running_stats")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_tutorial_runs_after_its_import_lines_change(tmp_path: Path) -> None:
    shown = _run(tmp_path)
    assert shown[3] == shown[5] == "torch.Size([64, 128, 964])"
    assert _hash(shown[7]) == "82cd2771b8032b94"  # the tutorial's printout without white space
    assert shown[8] == "<class 'omegaconf.dictconfig.DictConfig'>"
    assert _hash(shown[9]) == "45c6b7f23226fba5"
    assert shown[10] == "torch.Size([1, 3, 256, 256])"
    assert shown[11] == "torch.Size([1, 4, 256]) torch.Size([1, 4, 1024]) torch.Size([1, 1000]) torch.Size([1, 4, 3, 4085])"
    assert shown[12] == "<All keys matched successfully>"
    printed = ["no output pooling layer"]
    printed += 2 * [
        "adjusting FOV for fixation: 16.0 (full: 16.0)",
        "Number of coords per layer: [4085, 964, 230, 230, 60, 60, 60, 60, 16, 1]",
    ]
    assert shown[0].split("\n") == [*printed, ""] or [line for line in shown[0].splitlines() if line.strip()] == printed


def test_the_printouts_are_those_of_the_tutorial(shared_data: Path) -> None:
    seeds = list((shared_data.parent / "seeds").glob("003_*.txt"))
    if not seeds:
        pytest.skip("needs the tutorial's text beside the shared data")
    lines = seeds[0].read_text().splitlines()
    assert _hash("".join(lines[86:170])) == "82cd2771b8032b94"
    assert _hash("".join(lines[188:333])) == "45c6b7f23226fba5"
    # All code of its cells is in the script above, import lines aside.
    script = re.sub(r"\s+", "", TUTORIAL.replace("PACKAGE", "fovi"))
    code = [line for line in lines[6:86] + lines[173:186] + lines[334:362] if re.match(r"^[\w.,\[\] ]+ = |^from |^import |^with ", line)]
    missing = [line for line in code if re.sub(r"\s+|#.*", "", line) not in script]
    assert not missing
    assert len(code) > 30


def test_both_generations_of_paths_are_there() -> None:
    pairs = {
        "arch.knnalexnet": "models.knnalexnet", "arch.knnresnet": "models.knnresnet", "arch.knnvit": "models.knnvit",
        "arch.knnconvnextv2": "models.knnconvnextv2", "arch.architectures": "models.architectures", "arch.vit": "models.vit",
        "fovinet": "models.fovinet", "probes": "models.probes", "trainer": "models.loading",
    }  # fmt: skip
    for old, new in pairs.items():
        first, second = (importlib.import_module(f"sightline.compat.fovi.{name}") for name in (old, new))
        for name in first.__all__:
            assert getattr(first, name) is getattr(second, name)
    root, arch = importlib.import_module("sightline.compat.fovi"), importlib.import_module("sightline.compat.fovi.arch")
    assert root.FoviNet is FoviNet and arch.ARCHITECTURE_REGISTRY is ARCHITECTURE_REGISTRY
    for module in ("arch.mlp", "arch.wrapper", "arch.polar", "arch.norm", "sensing.samplers"):
        found = importlib.import_module(f"sightline.compat.fovi.{module}")
        assert all(hasattr(found, name) for name in found.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = root.Trainer


def test_install_makes_import_fovi_work_and_leaves_modules_as_they_are() -> None:
    code = """
        import sys
        from sightline.compat.fovi import install
        assert install() and install()
        import fovi.arch.knn
        import sightline.compat.fovi.arch.knn as ours
        assert fovi.arch.knn is ours and fovi.arch.knn.KNNConvLayer is ours.KNNConvLayer
        assert ours.__name__ == "sightline.compat.fovi.arch.knn" and ours.__spec__.name == ours.__name__
        from fovi.models import FoviNet
        import importlib
        assert importlib.import_module("fovi.models.fovinet").FoviNet is FoviNet
        try:
            import fovi.nothing
        except ModuleNotFoundError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "No module named 'fovi.nothing'" in done.stdout


def test_an_installed_fovi_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fovi").mkdir()
    (tmp_path / "fovi" / "__init__.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    assert not install()
    assert sys.meta_path == before


# ---------------------------------------------------------------------------------------------------------- layers
def _coords() -> tuple[SamplingCoords, SamplingCoords]:
    first, second, side = get_in_out_coords(16, 16, 0.5, 2, in_cart_res=16, device="cpu")
    assert (len(first), len(second), side) == (230, 60, 8)
    return first, second


def test_sensors_by_fovis_names() -> None:
    first, second = _coords()
    assert repr(first) == "SamplingCoords(length=230, fov=16, cmf_a=0.5, resolution=13, style=isotropic)"
    assert isinstance(second, SamplingCoords) and second.cartesian_pad_coords.shape[1] == 2
    other, rings, side = first.get_strided_coords(2, 1, 16)
    assert (other, rings, side) == (second, 7, 8)
    assert first.get_strided_coords(2)[1:] == (6, None)
    assert find_desired_res(16, 0.5, 64**2, "isotropic", force_less_than=True, quiet=True) == (53, 4085)
    assert auto_match_num_coords(16, 0.5, 64, "isotropic", 1, "cpu") == (53, 64)
    assert num_sampling_coords(16, 0.5, 53) == 4085
    _, inner, _ = get_in_out_coords(16, 16, 0.5, 4, in_cart_res=16, max_out_coord_val="auto")
    assert float(inner.polar[:, 0].max()) < 1
    with pytest.raises(ConfigError, match="lies on the planar manifold"):
        get_in_out_coords(16, 16, 0.5, 2, in_coords=first, field_geometry="legacy")


def test_layers_by_fovis_names() -> None:
    first, second = _coords()
    conv = KNNConvLayer(3, 8, 9, first, second, "cpu", "", True, True, 6, None, "baseline")
    assert repr(conv).split() == [
        "KNNConvLayer(", "in_channels=3", "out_channels=8", "k=9", "n_ref=36", "in_coords=SamplingCoords(length=230,", "fov=16,",
        "cmf_a=0.5,", "resolution=13,", "style=isotropic)", "out_coords=SamplingCoords(length=60,", "fov=16,", "cmf_a=0.5,",
        "resolution=7,", "style=isotropic)", "sample_cortex=True", ")",
    ]  # fmt: skip
    assert conv.knn_indices_pad_token.shape == (9, 60) and int(conv.knn_indices_pad_token.max()) == 230
    assert conv.ref_coords.shape == (36, 2) and conv.local_rf.shape == (60, 9, 36)
    x = torch.rand(2, 3, 230)
    # The definition, with fovi's tensors: gather, one-hot, one matrix product.
    padded = torch.cat([x, torch.zeros(2, 3, 1)], 2)
    taken = padded[:, :, conv.knn_indices_pad_token]
    framed = torch.einsum("bckn,nkv->bcvn", taken, conv.local_rf)
    expected = torch.einsum("bcvn,ocv->bon", framed, conv.weight.reshape(8, 3, 36)) + conv.bias[:, None]  # type: ignore[index]
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-6)
    getter = KNNGetterLayer(9, first, second, "cpu")
    torch.testing.assert_close(getter(x).nan_to_num(0), taken)
    assert bool(getter(x).isnan().any())
    assert "mode=avg" in repr(KNNPoolingLayer(9, first, second, "avg", "cpu"))
    conv2d = nn.Conv2d(3, 8, 6)
    conv.load_conv2d_weights(conv2d, strict=True)
    assert conv.bias is not None and torch.equal(conv.bias, conv2d.bias)  # type: ignore[arg-type]
    conv.load_conv3d_weights(nn.Conv3d(3, 8, (2, 3, 3)), "select_first")
    conv.clear_optimized_cache()


@pytest.mark.parametrize("cls", [KNNDepthwiseConvLayer, KNNDepthwiseSeparableConvLayer])
def test_depthwise_layers_run(cls: Any) -> None:
    first, second = _coords()
    layer = cls(4, 8, 9, first, second, device="cpu", bias=True)
    assert layer(torch.rand(2, 4, 230)).shape == (2, 8, 60)
    assert cls.__name__ in repr(layer)
    assert get_knn_conv_layer("dwsep") is KNNDepthwiseSeparableConvLayer
    with pytest.raises(ConfigError):
        get_knn_conv_layer("sep")


def test_receptive_fields_count_paths() -> None:
    first, second = _coords()
    third = second.get_strided_coords(2, 1, 8)[0]
    layers = [KNNPoolingLayer(9, first, second, "sum", "cpu"), KNNPoolingLayer(5, second, third, "sum", "cpu")]
    tables = [layer.knn_indices_pad_token for layer in layers]
    x = torch.zeros(1, 1, 230, requires_grad=True)
    layers[1](layers[0](x))[0, 0, 3].backward()
    assert x.grad is not None
    counts = compute_receptive_field(tables, 1, 3, 230)
    np.testing.assert_array_equal(counts, x.grad[0, 0].numpy())
    np.testing.assert_array_equal(compute_binary_receptive_field(tables, 1, 3, 230), counts > 0)
    assert compute_receptive_field(tables, 1, 3, 60, plot_layer=1).sum() == int((layers[1].index[3] >= 0).sum())


# -------------------------------------------------------------------------------------------- retina and policies
def test_retina_and_policies_by_fovis_names() -> None:
    retina = RetinalTransform(16, start_res=64, device="cpu", sigma=0.5)
    assert repr(retina.foveal_color) == "GaussianColorDecay(sigma=0.5)" and isinstance(retina.foveal_color, GaussianColorDecay)
    assert len(retina.coords) == 230
    images = torch.rand(2, 3, 64, 64)
    assert retina(images, (0.5, 0.5)).shape == (2, 3, 230)
    policy = MultiRandomSaccadePolicy(retina, 3, [0.2, 0.4], add_aspect_variation=True, nonrandom_first=True)
    fixations = [torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.3])]
    before = [fixation.clone() for fixation in fixations]
    seen = policy(images, fixations=fixations)
    assert set(seen) == {"x_fixs", "fixations", "fixation_sizes", "fix_deltas"} and seen["x_fixs"].shape == (2, 2, 3, 230)
    assert all(torch.equal(a, b) for a, b in zip(fixations, before, strict=True))
    assert (policy(images)["fixations"][:, 0] == 0.5).all()
    assert (policy(images, fixation_size=32)["fixation_sizes"] == 32).all()
    area = policy(images, area_range=[0.25, 0.25])["fixation_sizes"]
    assert ((area.prod(-1) - 1024).abs() < 64).all()
    trained_only = MultiRandomSaccadePolicy(retina, 2, nonrandom_val=True, norm_dist_from_center=0.25).eval()
    assert (trained_only(images)["fixations"] == 0.5).all()
    assert NoSaccadePolicy(retina)(images)["x_fixs"].shape == (2, 1, 3, 230)
    assert abs(get_min_cmf_a(256, 64, 256, 16) - 0.7628) < 1e-4
    with pytest.raises(ConfigError, match="calibrated camera"):
        RetinalTransform(16, device="cpu", camera_model={"model": "pinhole"})


def test_colour_fades_and_lightness_stays() -> None:
    """The original multiplies all channels, so its picture gets dark towards the rim."""
    retina = RetinalTransform(16, start_res=64, device="cpu", sigma=0.2)
    grey = torch.full((1, 3, 64, 64), 0.7)
    assert torch.allclose(retina(grey)[..., :200], torch.tensor(0.7))


# --------------------------------------------------------------------------------------------------------- networks
def test_networks_by_fovis_names_are_made_of_fovis_layers() -> None:
    nets: list[Any] = [
        KNNAlexNet(16, 3, [4, 4], [1, 1], [0], [9, 9], out_res=1, auto_match_cart_resources=1, device="cpu"),
        KNNResNet(KNNResNetBottleneck, [1, 1, 1, 1], in_res=16, in_conv_stride=1, auto_match_cart_resources=1, device="cpu"),
        ConvNeXtV2(16, 16, 0.5, "isotropic", first_stride=1, depths=[1, 1, 1, 1], dims=[4, 4, 4, 4], device="cpu"),
        KNNViT(
            16,
            0.5,
            "isotropic",
            img_size=16,
            patch_size=4,
            embed_dim=8,
            num_heads=2,
            num_layers=1,
            sample_cortex=True,
            attn_backend="flash",
        ),
    ]
    for net in nets:
        layers = [module for module in net.modules() if hasattr(module, "in_coords") and hasattr(module, "index")]
        assert layers
        assert all(isinstance(layer.in_coords, SamplingCoords) and layer.ties == "fovi" for layer in layers)
        assert net(torch.rand(2, 3, len(net.in_coords))).shape[0] == 2
    assert isinstance(nets[1].maxpool, KNNPoolingLayer) and isinstance(nets[0].layers[0].conv, KNNConvLayer)
    patches = KNNPartitioningPatchEmbedding(3, 4, 16, 16, 0.5, in_cart_res=16, cart_patch_size=4)
    assert patches.sample_cortex == "geodesic" and patches(torch.rand(1, 3, 230)).shape == (1, len(patches.out_coords), 4)
    assert patches.ties == "fovi" and isinstance(patches.in_coords, SamplingCoords)


def test_a_configuration_says_whose_ties() -> None:
    small = ["saccades.resize_size=16", "model.channel_mult=0.1"]
    stable = FoviNet(compose("fovi_alexnet", small), device="cpu")
    assert {layer.ties for layer in stable.list_knn_layers().values()} == {"stable"}
    config = compose("fovi_alexnet", small)
    del config.saccades.ties
    theirs = FoviNet(config, device="cpu")
    assert {layer.ties for layer in theirs.list_knn_layers().values()} == {"fovi"}
    assert "ties" not in config.saccades


def test_the_forward_pass_takes_fovis_order_of_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    net = FoviNet(compose("fovi_alexnet", ["saccades.resize_size=16", "model.channel_mult=0.1", "data.num_classes=4"]), "cpu").eval()
    assert "Number of coords per layer: [230, 60, 16, 16, 2, 2, 2, 2, 1, 1]" in capsys.readouterr().out
    images = torch.rand(2, 3, 64, 64)
    scores, _, seen = net(images, 2, 32, None, [torch.tensor([0.5, 0.5])] * 2)
    assert scores.shape == (2, 4) and seen.shape[1] == 2 and torch.equal(seen[:, 0], seen[:, 1])
    hooks = net.setup_activation_hooks("fc_block_6")
    with pytest.raises(RuntimeError, match="has not run"):
        net.get_captured_activations(hooks)
    net(images)
    assert net.get_captured_activations(hooks).shape == (8, 1024)
    net.cleanup_activation_hooks(hooks)
    assert net.get_activations(images, ["fc_block_6"])[1]["fc_block_6"].shape == (2, 4, 1024)
    assert ARCHITECTURE_REGISTRY.has("saccadenet_knnresnet18") and ARCHITECTURE_REGISTRY.has("saccadenet_alexnet2023_baseline")
    assert "fovi_alexnet2023" in repr(ARCHITECTURE_REGISTRY)


# ------------------------------------------------------------------------------------------------------------- demo
def test_pictures_for_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    batch = get_image_as_batch(device="cpu")
    assert batch.shape == (1, 3, 256, 256) and torch.equal(batch, get_image_as_batch(device="cpu"))
    assert batch.std() > 0.3
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    square = get_image_as_batch(tmp_path / "a.png", device="cpu")
    assert square.shape == (1, 3, 20, 20)
    back = square[0] * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    np.testing.assert_allclose(back.permute(1, 2, 0).numpy() * 255, pixels[:, 5:25], atol=1e-3)
    whole, shown, height, width = load_image_for_sampling(tmp_path / "a.png", "cpu", normalize=False)
    assert whole.shape == (1, 3, 20, 30) and shown.shape == (20, 30, 3) and (height, width) == (20, 30)
    image.fromarray(pixels).save(tmp_path / "shark.png")
    assert get_image_as_batch(device="cpu").shape == (1, 3, 20, 20)
    with pytest.raises(MediaError, match=r"none\.png cannot be read"):
        get_image_as_batch("none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(MediaError):
        get_image_as_batch(tmp_path / "text.png")
