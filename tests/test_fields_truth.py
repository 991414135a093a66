"""Receptive fields are what back-propagation in float64 through the model's own forward says."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import field_truth
import zoo
from graphs import Function
from sightline.fields import LayerField, Report, analyze, analyze_graph
from sightline.torchvision_import import import_torchvision


def assert_every_unit(report: Report, model: nn.Module, layer: LayerField, *, ignore_gates: bool = False, margin: int = 0) -> None:
    """Every unit of the first output has the box that its gradient has; within a margin at the border it may be larger."""
    x = torch.ones(report.input_shape, dtype=torch.float64, requires_grad=True)
    with field_truth.positive(ignore_gates=ignore_gates):
        y = model.eval()(x)
    assert layer.shape is not None and y.shape == layer.shape
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            truth = field_truth.boxes(lambda _: y, x, (row, column))
            got = report.box(layer.name, (row, column), clip=True)
            got = (0, 0, 0, 0) if got[0] >= got[2] or got[1] >= got[3] else got
            if margin and (min(got[:2]) < margin or max(got[2:]) > min(report.resolution) - margin):
                assert truth[0] >= got[0] and truth[1] >= got[1] and truth[2] <= got[2] and truth[3] <= got[3], (row, column)
            else:
                assert got == truth, (row, column)


def assert_convolutions(report: Report, model: nn.Module, *, ignore_gates: bool = False, longest: int = 2048, most: int = 10**6) -> int:
    """Size, stride and start of every convolution, on both axes, are the truth; returns how many there were."""
    count = 0
    for axis in (0, 1):
        for name, truth in field_truth.strip_truth(model, axis, ignore_gates=ignore_gates, longest=longest, most=most).items():
            own = report.layers[name].axes[axis]
            if truth.size is None:
                assert own.status == "global" or (own.size or 0) > longest // 2, name
            else:
                assert own.status == "exact", (name, axis)
                assert (own.size, own.stride, own.start) == (truth.size, truth.stride, truth.start), (name, axis)
            count += 1
    return count


# -- the helpers can fail ---------------------------------------------------------------------------------------------------------


def test_the_truth_sees_a_wrong_dilation() -> None:
    right, wrong = nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.Conv2d(3, 4, 3, padding=2, dilation=2)
    wrong.dilation, wrong.padding = (1, 1), (1, 1)
    report = analyze(right, (1, 3, 12, 12))
    assert_every_unit(report, right, report.outputs[0])
    with pytest.raises(AssertionError):
        assert_every_unit(report, wrong, report.outputs[0])


def test_the_truth_of_convolutions_sees_a_wrong_stride_and_a_wrong_start() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 4, 3, padding=1))
    report = analyze(model, (1, 3, 64, 64))
    assert assert_convolutions(report, model) == 4
    first = model[0]
    assert isinstance(first, nn.Conv2d)
    first.stride = (2, 2)
    with pytest.raises(AssertionError):
        assert_convolutions(report, model)
    first.stride, first.padding = (1, 1), (1, 1)
    with pytest.raises(AssertionError):
        assert_convolutions(report, model)


# -- by hand ----------------------------------------------------------------------------------------------------------------------


def conv(kernel: Any = 3, stride: Any = 1, padding: Any = None, **options: Any) -> nn.Conv2d:
    pads = kernel // 2 if padding is None and isinstance(kernel, int) else padding or 0
    return nn.Conv2d(options.pop("i", 4), options.pop("o", 4), kernel, stride, pads, **options)


def stem() -> nn.Conv2d:
    return conv(3, i=3)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.squeeze, self.excite, self.after = stem(), conv(1), conv(1), conv(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        y: Tensor = self.after(x * gate)
        return y


class Windows(nn.Module):
    """Attention inside 4 x 4 windows, shifted by 2 the second time."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.stem, self.shift = stem(), shift

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        x = x.roll((-self.shift, -self.shift), (2, 3)) if self.shift else x
        tokens = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        tokens = torch.matmul((tokens @ tokens.transpose(1, 2)).softmax(-1), tokens)
        x = tokens.reshape(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        return x.roll((self.shift, self.shift), (2, 3)) if self.shift else x


def function(call: Callable[..., Tensor], **parts: nn.Module) -> nn.Module:
    """A model from a function of the frame and of its parts."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                self.add_module(name, part)

        def forward(self, x: Tensor) -> Tensor:
            return call(x, *(getattr(self, name) for name in parts))

    return Model()


CASES: dict[str, Callable[[], nn.Module]] = {
    "dilated": lambda: nn.Sequential(stem(), conv(3, padding=2, dilation=2), conv(3, padding=4, dilation=4)),
    "rectangular": lambda: nn.Sequential(nn.Conv2d(3, 4, (1, 7), (2, 1), (0, 3)), nn.Conv2d(4, 4, (5, 2), (1, 3), (1, 0), (1, 2))),
    "stride beyond the kernel": lambda: nn.Sequential(nn.Conv2d(3, 4, 1, 3), conv(3)),
    "grouped and depthwise": lambda: nn.Sequential(stem(), conv(3, groups=2), conv(5, 2, groups=4)),
    "transposed": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 4, 2, 1), conv(3)),
    "transposed with output padding": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), conv(3)),
    "transposed with holes": lambda: nn.Sequential(stem(), nn.ConvTranspose2d(4, 2, 2, 3, 1)),
    "transposed and dilated": lambda: nn.Sequential(stem(), nn.ConvTranspose2d(4, 4, 3, 2, 2, 1, dilation=2)),
    "max pool, ceil": lambda: nn.Sequential(stem(), nn.MaxPool2d(3, 2, ceil_mode=True), conv(3)),
    "max pool, dilated": lambda: nn.Sequential(stem(), nn.MaxPool2d(2, 1, dilation=3)),
    "average pool": lambda: nn.Sequential(stem(), nn.AvgPool2d(3, 2, 1), conv(3)),
    "pixel shuffle": lambda: nn.Sequential(stem(), nn.PixelShuffle(2), conv(3, i=1)),
    "pixel unshuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(3, i=12)),
    "unshuffle and shuffle": lambda: nn.Sequential(stem(), nn.PixelUnshuffle(4), nn.PixelShuffle(4)),
    "unshuffle and more shuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(1, i=12, o=16), nn.PixelShuffle(4)),
    "channel shuffle": lambda: nn.Sequential(stem(), nn.ChannelShuffle(2), conv(3)),
    "adaptive, even": lambda: nn.Sequential(stem(), nn.AdaptiveAvgPool2d(4), conv(3)),
    "adaptive, uneven": lambda: nn.Sequential(stem(), nn.AdaptiveAvgPool2d((5, 3)), conv(3)),
    "adaptive to one": lambda: nn.Sequential(stem(), nn.AdaptiveMaxPool2d(1)),
    "nearest": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample(scale_factor=2), conv(3)),
    "nearest to an odd size": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample((13, 11)), conv(3)),
    "bilinear": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear"), conv(3)),
    "bilinear, corners": lambda: nn.Sequential(stem(), nn.Upsample((9, 31), mode="bilinear", align_corners=True), conv(3)),
    "bilinear, down": lambda: nn.Sequential(stem(), nn.Upsample((7, 10), mode="bilinear")),
    "bicubic": lambda: nn.Sequential(stem(), nn.Upsample(scale_factor=2, mode="bicubic")),
    "odd factor": lambda: nn.Sequential(stem(), nn.Upsample(scale_factor=1.7, mode="bilinear"), conv(3)),
    "reflect": lambda: nn.Sequential(stem(), conv(5, padding_mode="reflect")),
    "replicate": lambda: nn.Sequential(conv(5, i=3, padding_mode="replicate"), conv(3, 2)),
    "circular": lambda: nn.Sequential(stem(), conv(5, padding_mode="circular"), conv(3)),
    "asymmetric padding": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), conv(4, 2, padding=0, i=3), nn.ReLU(), conv(3)),
    "strided slice": lambda: function(lambda x, a, b: b(a(x)[:, :, 1::2, ::3]), a=stem(), b=conv(3)),
    "crop": lambda: function(lambda x, a, b: b(a(x)[:, :, 3:-2, 1:]), a=stem(), b=conv(3)),
    "roll": lambda: function(lambda x, a, b: b(a(x).roll((2, -3), (2, 3))), a=stem(), b=conv(3)),
    "flip": lambda: function(lambda x, a, b: b(a(x).flip(2)), a=conv(3, 2, i=3), b=conv(3)),
    "misaligned cat": lambda: function(
        lambda x, a, b: torch.cat([a(x), b(x)[:, :, :-2, :-2]], 1), a=conv(5, padding=0, i=3), b=conv(3, padding=0, i=3)
    ),
    "misaligned add": lambda: function(lambda x, a, b: b(F.pad(a(x), (2, 0, 2, 0))[:, :, :16, :16] + a(x)), a=stem(), b=conv(3)),
    "cat along rows": lambda: function(lambda x, a, b: b(torch.cat([a(x), a(x)[:, :, :5]], 2)), a=stem(), b=conv(3)),
    "residual": lambda: function(lambda x, a, b: F.relu(b(F.relu(a(x))) + a(x)), a=conv(3, 2, i=3), b=conv(5)),
    "shared module, loop": lambda: function(lambda x, a, b: b(b(b(a(x)))), a=stem(), b=conv(3)),
    "unfold and fold": lambda: function(
        lambda x, a, b: F.fold(
            b(F.unfold(a(x), 3, padding=1, stride=2).transpose(1, 2)).transpose(1, 2), (16, 16), 3, padding=1, stride=2
        ),
        a=stem(), b=nn.Linear(36, 36),
    ),
    "mean over one axis": lambda: function(lambda x, a: a(x).mean(3, keepdim=True), a=stem()),
    "to the last axis and back": lambda: function(
        lambda x, a, b: b(a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=stem(), b=nn.Linear(4, 6)
    ),
    "transposed map": lambda: function(
        lambda x, a, b: b(a(x).transpose(2, 3)).transpose(2, 3), a=conv((1, 5), padding=(0, 2), i=3), b=conv(3)
    ),
    "layer norm over channels": lambda: function(
        lambda x, a, b: b(a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=conv(3, 2, i=3), b=nn.LayerNorm(4)
    ),
    "group norm": lambda: nn.Sequential(stem(), nn.GroupNorm(2, 4)),
    "windowed attention": lambda: Windows(0),
    "shifted windows": lambda: Windows(2),
    "mini U-Net": lambda: function(
        lambda x, a, b, c: c(
            torch.cat([F.interpolate(b(a(x)), size=x.shape[-2:]), a(x).repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
        ),
        a=conv(3, 2, i=3), b=conv(3, 2), c=conv(3, i=8),
    ),
}  # fmt: skip


# units of inner maps that do not exist leave gaps at the border, which only cropping moves inside the input
CROPPED = {"crop": 4, "misaligned add": 4}


@pytest.mark.parametrize("name", CASES)
def test_every_unit_sees_what_its_gradient_reaches(name: str) -> None:
    model = CASES[name]()
    report = analyze(model, (1, 3, 16, 16))
    layer = report.outputs[0]
    assert layer.status in {"exact", "global"}, layer.notes
    assert_every_unit(report, model, layer, margin=CROPPED.get(name, 0))


@pytest.mark.parametrize("ignore_gates", [False, True])
def test_gates_both_ways(ignore_gates: bool) -> None:
    model = Gate()
    report = analyze(model, (1, 3, 16, 16), ignore_gates=ignore_gates)
    after = report.layers["after"]
    assert after.status == ("exact" if ignore_gates else "global")
    assert after.size == ((5, 5) if ignore_gates else (math.inf, math.inf))
    assert after.min_size == (5, 5)
    assert_every_unit(report, model, after, ignore_gates=ignore_gates)


def test_known_figures() -> None:
    chain = nn.Sequential(*(conv(3, s, padding=0, i=3 if i == 0 else 4) for i, s in enumerate((1, 2, 1, 2, 1))))
    report = analyze(chain, (1, 3, 64, 64))
    assert [report.layers[str(i)].size[0] for i in range(5)] == [3, 5, 9, 13, 21]
    dilated = analyze(CASES["dilated"](), (1, 3, 64, 64)).outputs[0]
    assert dilated.size == (15, 15)
    assert analyze(CASES["transposed"](), (1, 3, 64, 64)).outputs[0].size == (7, 7)
    holes = analyze(CASES["stride beyond the kernel"](), (1, 3, 64, 64)).outputs[0]
    assert holes.size == (7, 7)
    assert [share == pytest.approx(3 / 7) for share in holes.support] == [True, True]
    branches = function(lambda x, a, b, c: c(b(x) + a(x)), a=conv(3, 2, i=3), b=conv(5, 2, i=3), c=conv(3))
    last = analyze(branches, (1, 3, 64, 64)).outputs[0]
    assert (last.size, last.min_size) == ((9, 9), (7, 7))


def test_unknown_operations_give_no_numbers() -> None:
    grid = torch.zeros(1, 8, 8, 2)
    model = Function(lambda x: F.conv2d(F.grid_sample(F.relu(x), grid, align_corners=False), torch.ones(4, 3, 3, 3)))
    report = analyze(model, (1, 3, 16, 16))
    last = report.outputs[0]
    assert last.status == "unknown"
    assert last.size == (None, None) and last.stride == (None, None) and last.start == (None, None)
    assert any("grid_sampl" in note for note in last.notes)
    assert next(layer for layer in report.layers.values() if layer.op == "relu").status == "exact"


# -- networks ---------------------------------------------------------------------------------------------------------------------

QUICK = (
    "resnet18", "resnet50", "mobilenet_v3_small", "inception_v3", "googlenet", "shufflenet_v2_x0_5", "squeezenet1_1", "alexnet",
    "dla46_c", "repvgg_a0",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_convolutions_of_networks(name: str) -> None:
    model = zoo.build(name)
    report = analyze(model, (1, 3, *zoo.ZOO[name].size))
    gated = any(layer.op == "mul" for layer in report.layers.values())
    assert assert_convolutions(report, model, longest=1024 if gated else 2048) > 8
    if gated:
        assert_convolutions(analyze_graph(report.graph, ignore_gates=True), model, ignore_gates=True)


@pytest.mark.slow
def test_convolutions_of_a_segmentation_network() -> None:
    model = zoo.build("deeplabv3_mobilenet_v3_large")
    report = analyze(model, (1, 3, 64, 64), ignore_gates=True)
    assert assert_convolutions(report, model, ignore_gates=True, longest=8192) > 100


def test_figures_of_resnet50() -> None:
    report = analyze(zoo.build("resnet50"), (1, 3, 64, 64))
    last = report.layers["layer4.2.conv3"]
    assert (last.size, last.stride, last.start) == ((427, 427), (32, 32), (-213, -213))
    assert report.layers["layer3.5.conv3"].size == (267, 267)
    assert report.outputs[0].status == "global"


# -- sweeps -----------------------------------------------------------------------------------------------------------------------


def _classifiers() -> list[str]:
    import_torchvision()
    import torchvision

    return list(torchvision.models.list_models(torchvision.models))


def _on_meta(name: str, library: str) -> nn.Module:
    if name.startswith("regnet") and library == "torchvision":
        return _regnet(name)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries: names and defaults that will change
        if library == "timm":
            import timm

            model: nn.Module = timm.create_model(name)
        else:
            from torchvision.models import get_model

            options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
            model = get_model(name, weights=None, **options)
    return model.eval()


def _regnet(name: str) -> nn.Module:
    """On the meta device too, but for the tensors that its constructor computes widths with."""
    from torchvision.models import get_model
    from torchvision.models.regnet import BlockParams

    original = BlockParams.from_init_params

    def concrete(**options: Any) -> Any:
        with torch.device("cpu"):
            return original(**options)

    BlockParams.from_init_params = concrete
    try:
        with torch.device("meta"):
            model: nn.Module = get_model(name, weights=None)
    finally:
        BlockParams.from_init_params = original
    return model.eval()


# attention and swin-like networks: their convolutions are few, and strips of one column do not fit their windows
_NO_STRIPS = ("vit", "swin", "convnext")


@pytest.mark.slow
@pytest.mark.parametrize("name", _classifiers())
def test_every_classifier_of_torchvision(name: str) -> None:
    model = _on_meta(name, "torchvision")
    report = analyze(model, (1, 3, 224, 224))
    assert report.params == sum(parameter.numel() for parameter in model.parameters())
    assert all(layer.status != "unknown" for layer in report.layers.values())
    without_gates = analyze_graph(report.graph, ignore_gates=True)
    for one in (report, without_gates):  # every convolution and pool, through the graph
        checked = one.verify([layer.name for layer in one.layers.values() if "conv" in layer.op or "pool" in layer.op])
        assert checked.differing == () and checked.agreeing
    if not any(word in name for word in _NO_STRIPS):  # some of them, through the model's own forward
        model = model.to_empty(device="cpu")
        assert assert_convolutions(without_gates, model, ignore_gates=True, longest=4096, most=8) > 8


TIMM = """
adv_inception_v3 bat_resnext26ts beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_tiny coatnet_0_rw_224
convformer_s18 convit_tiny convmixer_768_32 convnext_atto convnextv2_femto crossvit_9_240 cs3darknet_focus_m cs3edgenet_x
cs3se_edgenet_x cspdarknet53 cspresnet50 cspresnext50 davit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224 densenet121
densenetblur121d dla34 dla60_res2net dm_nfnet_f0 dpn68 eca_botnext26ts_256 eca_halonext26ts eca_nfnet_l0 ecaresnet50t edgenext_small
efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t efficientvit_b1 efficientvit_m0
ese_vovnet39b fastvit_sa12 fbnetc_100 fbnetv3_b focalnet_tiny_srf gcresnet50t gernet_s gc_efficientnetv2_rw_t ghostnet_100
ghostnetv2_100 gmixer_24_224 gmlp_s16_224 halonet26t hardcorenas_a hgnet_tiny hgnetv2_b2 hiera_tiny_224 hrnet_w18 inception_next_tiny
inception_resnet_v2 inception_v4 lambda_resnet26t lcnet_050 legacy_senet154 legacy_seresnet18 legacy_xception levit_128s
maxvit_tiny_rw_224 mixer_s32_224 mixnet_m mnasnet_small mobilenet_edgetpu_100 mobilenetv1_100 mobilenetv2_050 mobilenetv3_large_100
mobilenetv4_conv_medium mobilenetv4_hybrid_medium mobileone_s0 mobilevit_s mobilevitv2_050 mvitv2_tiny nasnetalarge nest_tiny
nextvit_small nf_regnet_b1 nfnet_f0 pit_ti_224 pnasnet5large poolformerv2_s12 pvt_v2_b1 rdnet_tiny regnetv_040 regnetx_004 regnety_004
regnetz_b16 repghostnet_050 repvgg_b0 repvit_m1 res2net50_26w_4s resmlp_12_224 resnest50d resnet101 resnet10t resnet50d resnetaa50
resnetblur50 resnetrs50 resnetv2_50 resnext50_32x4d rexnet_130 rexnetr_100 sebotnet33ts_256 sehalonet33ts selecsls42 selecsls60
semnasnet_050 seresnet50 seresnext26ts sequencer2d_s skresnet34 spnasnet_100 starnet_s2 swinv2_tiny_window8_256
swin_tiny_patch4_window7_224 tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mixnet_s tiny_vit_5m_224 tinynet_a tresnet_m twins_pcpvt_small
vgg11_bn visformer_tiny vit_tiny_patch16_224 vovnet39a wide_resnet50_2 xception41 xcit_nano_12_p16_224
""".split()  # noqa: SIM905


@pytest.mark.slow
def test_the_list_of_timm_networks_is_long() -> None:
    assert len(TIMM) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name: str) -> None:
    model = _on_meta(name, "timm")
    size = model.default_cfg["input_size"]  # type: ignore[index]
    report = analyze(model, (1, *size))
    assert len(report.layers) > 10
    assert report.outputs[0].status in {"global", "exact", "unknown", "bounded"}
    assert report.verify([layer.name for layer in report.layers.values() if layer.op == "conv2d"][:12]).differing == ()
