"""``sightline.compat.focusedconv``: the documented examples, what is kept, and where the original is wrong."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.compat import focusedconv
from sightline.compat.focusedconv import AoI, AoIThresholder, FocusedConv2d
from sightline.compat.focusedconv.convolution import FOCUSED_CONV_OP_MODES
from sightline.errors import CaptureError, DTypeError, ShapeError
from sightline.torchvision_import import import_torchvision

# The two examples of focusedconv's README, as its users would write them. The import line is the only one that changes here,
# and in the first the two names that are defined nowhere.
BASIC = """
import copy
import focusedconv
from torchvision.models import vgg16, VGG16_Weights
original_vgg = vgg16(weights=VGG16_Weights.IMAGENET1K_V1).eval()
print("ORIGINAL VGG:", original_vgg)
NUM_TOP_LAYERS = 4 # Let's say you want to use the first 4 layers of VGG as EARLY_LAYERS
BRIGHTNESS_THRESHOLD = 90 # Let's say your activation brightness threshold is 90
EARLY_LAYERS = copy.deepcopy(original_vgg.features[0: NUM_TOP_LAYERS])
vgg16_remaining_layers = copy.deepcopy(original_vgg.features[NUM_TOP_LAYERS: ])
focused_vgg = copy.deepcopy(original_vgg)
# Produces fVGG with focused convolutions, allowing you to get similar accuracy as the original VGG,
# but with efficient focused convolutions for faster inference speed and reduced energy use
# Also generates an AoI object for you to use
focused_vgg, aoi = focusedconv.build_focused_model(focused_vgg, vgg16_top_layers, ACTIVATION_BRIGHTNESS_THRESHOLD, vgg16_remaining_layers)
print("fVGG with FOCUSED CONVOLUTIONS:", focused_vgg)
"""
ADVANCED = """
import focusedconv
import copy
import torch
import torch.nn as nn
# Let's say you have this simple CNN that does 1x1 convolutions on
# a 3-channel RGB image and produces a 1-channel grayscale image
cnn = nn.Sequential(
nn.Conv2d(3, 1, (1,1)),
nn.ReLU(),
)
print("Original CNN:", cnn)
# Make an area of interest (AoI) mask that only keeps the top left 25% of the image:
aoi_mask = torch.as_tensor([
[1, 0],
[0, 0]
])
# Initialize an AoI object with this mask
aoi = focusedconv.areaofinterest.AoI(aoi_mask)
# Produce a model that shares the weights and biases of the CNN
# but uses Focused Convolutions instead with the specified AoI mask
focused_cnn = copy.deepcopy(cnn)
focusedconv.focusify_all_conv2d(focused_cnn, aoi)
print("Focused CNN:", focused_cnn)
# Your input image
input_img = torch.rand([1, 3, 4, 4])
# AoI size is calculated as 25% of the image
print("AoI size is:", aoi.calculate_aoi_size())
aoi.imshow() # Can be used to display the AoI
# Observe that the focused CNN only provides output in the
# top left corner of the output
print("Output of original CNN:\\n", cnn(input_img))
print("Output of focused CNN:\\n", focused_cnn(input_img))
# Change the AoI so that it now includes the entire top half of the image:
aoi.mask_tensor[0, 1] = 1
# Observe that the focused CNN's output now provides the entire top half
print("New AoI size is:", aoi.calculate_aoi_size())
print("Now, output of focused CNN:\\n", focused_cnn(input_img))
"""


def box(h: int, w: int, y0: int, x0: int, y1: int, x1: int) -> Tensor:
    mask = torch.zeros(h, w)
    mask[y0:y1, x0:x1] = 1
    return mask


def run_example(text: str) -> dict[str, Any]:
    changed = text.replace("import focusedconv", "from sightline.compat import focusedconv")
    assert changed.count("\n") == text.count("\n") and "sightline" in changed
    scope: dict[str, Any] = {}
    exec(changed, scope)
    return scope


# -- the documented examples ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pyplot() -> Any:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    yield importlib.import_module("matplotlib.pyplot")
    importlib.import_module("matplotlib.pyplot").close("all")


def test_the_advanced_example_runs(pyplot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = run_example(ADVANCED)
    text = capsys.readouterr().out
    assert "AoI size is: 0.25" in text and "New AoI size is: 0.5" in text and "FocusedConv2d(3, 1" in text
    with torch.no_grad():  # the ReLU of the example may hide everything
        made["focused_cnn"][0].bias.fill_(3.0)
        made["cnn"][0].bias.fill_(3.0)
        got, dense = made["focused_cnn"](made["input_img"]), made["cnn"](made["input_img"])
    torch.testing.assert_close(got[..., :2, :], dense[..., :2, :])
    assert got[..., 2:, :].abs().max() == 0 < dense[..., 2:, :].min()
    assert len(pyplot.get_fignums()) == 1


def test_the_basic_example_runs_with_its_two_names_set_right(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import_torchvision()
    models = pytest.importorskip("torchvision.models")
    vgg = importlib.import_module("torchvision.models.vgg")

    class Vgg(nn.Module):  # the layers that the example talks about, with a classifier that is quick to make
        def __init__(self) -> None:
            super().__init__()
            self.features = vgg.make_layers(vgg.cfgs["D"])
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(512, 10)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
            return result

    monkeypatch.setattr(models, "vgg16", lambda weights: Vgg())
    text = BASIC.replace("vgg16_top_layers", "EARLY_LAYERS").replace("ACTIVATION_BRIGHTNESS_THRESHOLD", "BRIGHTNESS_THRESHOLD")
    made = run_example(text)
    assert capsys.readouterr().out.count("FocusedConv2d(") == 11
    image = torch.zeros(1, 3, 64, 64)
    image[..., 20:36, 8:30] = 40.0
    with torch.no_grad():
        dense, none_bright = made["original_vgg"](image / 100), made["focused_vgg"](image / 100)
        assert made["aoi"].calculate_aoi_size() == 1.0 and torch.equal(dense, none_bright)
        top = made["original_vgg"].features[:4](image).sum(1)
        made["focused_vgg"].features[1].threshold = float(top.max()) * 0.9
        dense, focused = made["original_vgg"](image), made["focused_vgg"](image)
    assert torch.equal(made["aoi"].mask_tensor, top[0] >= float(top.max()) * 0.9)
    assert 0 < made["aoi"].calculate_aoi_size() < 0.5 and not torch.allclose(focused, dense)


def test_names() -> None:
    for name in ("AoI", "AoIThresholder", "FocusedConv2d", "build_fcnn", "build_focused_model", "focusify_all_conv2d"):
        assert callable(getattr(focusedconv, name))
    assert focusedconv.areaofinterest.AoI is AoI and focusedconv.convolution.FocusedConv2d is FocusedConv2d
    assert focusedconv.build_fcnn is focusedconv.build_focused_model
    assert [(mode.name, mode.value) for mode in FOCUSED_CONV_OP_MODES] == [("AOI_GENERAL_MODE", 0), ("AOI_RECT_MODE", 1)]
    assert focusedconv.__doc__ is not None and "halo" not in AoI.__doc__ and "pads its crop" in focusedconv.__doc__  # type: ignore[operator]


# -- areas -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "size"),
    [
        (torch.Tensor(), 1.0),
        (torch.zeros(3, 5), 1.0),
        (torch.eye(4), 1.0),  # two opposite corners: a box around everything
        (torch.tensor([[1, 0], [0, 0]]), 0.25),
        (torch.tensor([[-1.0, 0], [0, float("nan")]]), 1.0),
        (torch.tensor([[False, True, True, False]]), 0.5),
        (torch.stack([box(4, 4, 0, 0, 2, 2), torch.zeros(4, 4)]), 0.625),
        (box(4, 4, 0, 0, 2, 2)[None, None], 0.25),
    ],
)
def test_size_is_that_of_the_bounding_box(mask: Tensor, size: float) -> None:
    assert AoI(mask).calculate_aoi_size() == size


def test_an_area_is_live_whatever_way_it_is_edited() -> None:
    mask = torch.zeros(4, 4)
    aoi = AoI(mask)
    layer = FocusedConv2d(1, 1, 1, aoi=aoi, bias=False)
    x = torch.ones(1, 1, 4, 4)
    for edit, cells in (
        (lambda: mask[0, :1].fill_(1), 1),
        (lambda: mask.numpy().__setitem__((1, 0), 1), 2),  # no counter of torch's sees this one
        (lambda: setattr(aoi, "mask_tensor", box(2, 2, 0, 0, 1, 2)), 8),
        (lambda: setattr(layer, "aoi", AoI(box(4, 4, 1, 1, 4, 4))), 9),
    ):
        edit()
        assert int((layer(x) != 0).sum()) == cells


def test_inference_mode_masks_and_pickles() -> None:
    with torch.inference_mode():
        aoi = AoI(torch.zeros(4, 4))
        aoi.mask_tensor[0, 0] = 1
        assert aoi.calculate_aoi_size() == 1 / 16
        aoi.mask_tensor[1, 1] = 1
        assert aoi.calculate_aoi_size() == 4 / 16
    assert pickle.loads(pickle.dumps(aoi)).calculate_aoi_size() == 0.25
    assert repr(aoi) == "AoI(4 x 4, size 25.0%)" and repr(AoI()) == "AoI(unset, size 100.0%)"


def test_bad_masks() -> None:
    for bad in (torch.ones(3), torch.ones(1, 3, 4, 4), torch.ones(1, 1, 1, 4, 4)):
        with pytest.raises(ShapeError, match="mask_tensor"):
            AoI(bad).calculate_aoi_size()
    with pytest.raises(ShapeError, match="batch elements"):
        FocusedConv2d(1, 1, 1, aoi=AoI(torch.stack([box(4, 4, 0, 0, 1, 1)] * 3)))(torch.rand(2, 1, 4, 4))


def test_pictures_show_the_mask_and_what_is_computed(pyplot: Any) -> None:
    mask = torch.eye(8)[None].repeat(2, 1, 1)
    mask[1, 4:] = 0
    axis = AoI(mask).imshow()
    figure = axis.figure
    assert [one.get_title() for one in figure.axes] == ["100.0% computed", "25.0% computed"]
    assert torch.equal(torch.as_tensor(figure.axes[1].images[0].get_array()).float(), mask[1])
    assert sorted({float(x) for x in figure.axes[1].lines[0].get_xdata()}) == [-0.5, 3.5]
    assert AoI().imshow() is not None
    assert len(pyplot.get_fignums()) == 2


def test_thresholder_finds_an_area_per_picture() -> None:
    layer = AoIThresholder(2.0)
    x = torch.zeros(2, 2, 4, 4, requires_grad=True)
    with torch.no_grad():
        x[0, :, 1, 2] = 1.0  # a sum of exactly the threshold is inside
        x[1, :, 3, 3] = 0.9
        x[1, :, 0, 0] = float("nan")
    assert layer(x) is x
    want = torch.zeros(2, 4, 4, dtype=torch.bool)
    want[0, 1, 2] = True
    assert torch.equal(layer.aoi.mask_tensor, want)
    assert layer.aoi.boxes() == [(1, 2, 2, 3), (0, 0, 4, 4)]  # nothing bright: all of it
    layer(x[:1])
    assert layer.aoi.mask_tensor.shape == (4, 4)
    assert AoIThresholder(1.0).aoi is not layer.aoi
    with pytest.raises(ShapeError, match="map"):
        layer(torch.zeros(3))
    assert "threshold=2.0" in repr(layer)


# -- convolutions --------------------------------------------------------------------------------------------------------------


def covering(aoi_box: tuple[int, int, int, int], mask: tuple[int, int], out: tuple[int, int]) -> tuple[int, int, int, int]:
    """Cells of a map that a box of another grid touches, by the formula of integers."""
    (y0, x0, y1, x1), (mh, mw), (h, w) = aoi_box, mask, out
    return y0 * h // mh, x0 * w // mw, -(-y1 * h // mh), -(-x1 * w // mw)


@given(data=st.data())
def test_inside_the_box_it_is_the_dense_convolution_and_outside_zero(data: st.DataObject) -> None:
    draw = data.draw
    mh, mw = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    y0, x0 = draw(st.integers(0, mh - 1)), draw(st.integers(0, mw - 1))
    y1, x1 = draw(st.integers(y0 + 1, mh)), draw(st.integers(x0 + 1, mw))
    kernel, dilation = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 2]))
    settings: dict[str, Any] = {
        "kernel_size": kernel, "stride": draw(st.integers(1, 3)), "padding": draw(st.integers(0, 2)), "dilation": dilation,
        "groups": draw(st.sampled_from([1, 2])), "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }  # fmt: skip
    x = torch.rand(2, 4, 13, 11)
    dense = nn.Conv2d(4, 6, **settings)
    focused = FocusedConv2d(4, 6, **settings, aoi=AoI(box(mh, mw, y0, x0, y1, x1)))
    focused.load_state_dict(dense.state_dict())
    want, got = dense(x), focused(x)
    oy0, ox0, oy1, ox1 = covering((y0, x0, y1, x1), (mh, mw), (want.shape[2], want.shape[3]))
    inside = torch.zeros(want.shape[2:], dtype=torch.bool)
    inside[oy0:oy1, ox0:ox1] = True
    assert inside.any()
    torch.testing.assert_close(got, torch.where(inside, want, 0), rtol=1e-4, atol=1e-5)


def test_general_mode_computes_the_true_shape() -> None:
    mask = torch.eye(8)
    layer = FocusedConv2d(2, 3, 3, padding=1, aoi=AoI(mask), focused_conv_op_mode=FOCUSED_CONV_OP_MODES.AOI_GENERAL_MODE)
    x = torch.rand(1, 2, 8, 8)
    dense = F.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), torch.where(mask.bool(), dense, 0))
    layer.focused_conv_op_mode = 1
    torch.testing.assert_close(layer(x), dense)
    assert layer.focused_conv_op_mode is FOCUSED_CONV_OP_MODES.AOI_RECT_MODE
    with pytest.raises(ValueError, match="7"):
        FocusedConv2d(1, 1, 1, focused_conv_op_mode=7)


def test_pictures_of_a_batch_have_their_own_boxes() -> None:
    masks = torch.stack([box(8, 8, 0, 0, 2, 3), torch.zeros(8, 8), box(8, 8, 5, 5, 8, 8)])
    layer = FocusedConv2d(1, 2, 3, padding=1, aoi=AoI(masks))
    x = torch.rand(3, 1, 8, 8)
    counts = (layer(x) != 0).any(1).flatten(1).sum(1).tolist()
    assert counts == [6, 64, 9]


@pytest.mark.parametrize("aoi", [None, AoI(), AoI(torch.zeros(3, 3)), AoI(torch.ones(3, 3))])
def test_everything_is_the_dense_layer_itself(aoi: AoI | None) -> None:
    layer = FocusedConv2d(3, 4, 3, stride=2, padding=1, aoi=aoi)
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 1))


def test_types_layouts_and_unbatched_maps() -> None:
    aoi = AoI(box(4, 4, 1, 1, 3, 3))
    for dtype in (torch.float64, torch.bfloat16):
        layer = FocusedConv2d(2, 2, 3, padding="same", dtype=dtype, aoi=aoi)
        assert layer(torch.rand(1, 2, 8, 8, dtype=dtype)).dtype == dtype
    layer = FocusedConv2d(2, 2, 3, padding="valid", aoi=aoi)
    x = torch.rand(1, 2, 8, 8)
    assert torch.equal(layer(x[0]), layer(x)[0])
    assert layer(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with pytest.raises(DTypeError, match="AoI"):
        FocusedConv2d(1, 1, 1, aoi=torch.ones(2, 2))  # type: ignore[arg-type]


def test_gradients_come_from_inside_only() -> None:
    layer = FocusedConv2d(1, 1, 3, padding=1, aoi=AoI(box(8, 8, 0, 0, 2, 2)))
    x = torch.rand(1, 1, 8, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.bias is not None and layer.bias.grad is not None
    assert int((x.grad != 0).sum()) == 9 and float(layer.bias.grad) == 4


# -- models ----------------------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """What trips a careless replacement: a tied layer, a missing child, a subclass, hooks, a padding mode."""

    class Own(nn.Conv2d):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
        self.again = self.first
        self.downsample = None
        self.deep = nn.ModuleList([nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))])
        self.own = Odd.Own(2, 2, 1)
        self.register_module("none", None)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.own(self.deep[0](self.again(self.first(x))))
        return result


def test_focusify_shares_weights_and_keeps_what_belongs_to_layers() -> None:
    model: Any = Odd().eval()
    calls: list[str] = []
    model.first.register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))
    parameters, names = {id(p) for p in model.parameters()}, list(model.state_dict())
    aoi = AoI(box(8, 8, 2, 2, 6, 6))
    with pytest.warns(UserWarning, match=r"1 convolutions stay dense: own \(Own\)"):
        focusedconv.focusify_all_conv2d(model, aoi)
    assert {id(p) for p in model.parameters()} == parameters and list(model.state_dict()) == names
    assert type(model.first) is FocusedConv2d and model.first is model.again and model.first.padding_mode == "reflect"
    assert type(model.deep[0][0]) is FocusedConv2d and type(model.own) is Odd.Own and not model.first.training
    x = torch.rand(1, 2, 8, 8)
    model(x)
    assert calls == ["FocusedConv2d"] * 2
    inside = box(8, 8, 2, 2, 6, 6).bool()
    reflected = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), model.first.weight, model.first.bias)
    torch.testing.assert_close(model.first(x), torch.where(inside, reflected, 0))


def test_layers_outside_the_module_stay_dense_and_train_along() -> None:
    dense: Any = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    part = dense[1:]
    focusedconv.focusify_all_conv2d(part, AoI(box(2, 2, 0, 0, 1, 1)))
    assert type(dense[2]) is nn.Conv2d and type(part[1]) is FocusedConv2d
    assert part[1].weight is dense[2].weight
    other = AoI(box(2, 2, 1, 1, 2, 2))
    focusedconv.focusify_all_conv2d(part, other)  # once more: points to the new area
    assert part[1].aoi is other


def test_focused_models_are_copied_saved_and_cast() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    aoi = AoI(box(4, 4, 0, 0, 2, 2))
    focusedconv.focusify_all_conv2d(model, aoi)
    x = torch.rand(1, 1, 8, 8)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x)) and twin[0].aoi is twin[2].aoi is not aoi
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), model(x))
    assert model.double()(x.double()).dtype == torch.float64


def test_a_lone_convolution_cannot_be_replaced() -> None:
    with pytest.warns(UserWarning, match="the module itself"):
        focusedconv.focusify_all_conv2d(nn.Conv2d(1, 1, 1), AoI())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        focusedconv.focusify_all_conv2d(FocusedConv2d(1, 1, 1), AoI())


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.features(x)
        return result


@pytest.mark.parametrize("build", [focusedconv.build_focused_model, focusedconv.build_fcnn])
def test_build_returns_the_same_model_and_its_area(build: Callable[..., Any]) -> None:
    model: Any = Features()
    nn.init.ones_(model.features[0].weight)
    copied = copy.deepcopy(model)
    top, rest = model.features[:1], model.features[1:]
    fcnn, aoi = build(model, top, 2.0, rest)
    assert fcnn is model and fcnn.features[0] is top and fcnn.features[2] is rest and fcnn.features[1].aoi is aoi
    x = torch.zeros(2, 1, 8, 8)
    x[0, 0, 3:5, 2] = 0.5  # sum over channels is exactly 2
    y = fcnn(x)
    assert torch.equal(aoi.mask_tensor, x[:, 0] == 0.5)
    counts = (y != 0).any(1).flatten(1).sum(1).tolist()
    assert counts[0] == 2 and counts[1] == 16
    first = torch.where(aoi.sites(8, 8).mask[:, None], copied.features[1](copied.features[0](x)), 0)
    torch.testing.assert_close(y, torch.where(aoi.sites(4, 4).mask[:, None], copied.features[2](first), 0))


def test_a_model_without_features_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"sightline\.build_focused_model"):
        focusedconv.build_focused_model(nn.Sequential(nn.Conv2d(1, 1, 1)), nn.ReLU(), 1.0, nn.Sequential(nn.Conv2d(1, 1, 1)))
