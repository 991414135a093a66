"""Networks written down by hand, and Keras models: the same fields as the same networks in torch."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.errors import CaptureError, ShapeError
from sightline.fields import Report, Sketch, analyze


def assert_same(report: Report, name: str, model: nn.Module, shape: tuple[int, ...]) -> None:
    """A layer has the field, size, work and shape of a torch model's output."""
    own, wanted = report.layers[name], analyze(model, shape).outputs[0]
    assert own.shape == wanted.shape
    assert (own.size, own.min_size, own.stride, own.start, own.status) == (
        wanted.size, wanted.min_size, wanted.stride, wanted.start, wanted.status
    )  # fmt: skip
    assert report.macs == sum(layer.macs for layer in analyze(model, shape).layers.values())


CASES: list[tuple[str, dict[str, Any], nn.Module]] = [
    ("conv", {"kernel": 5, "stride": 2, "padding": 2, "channels": 6}, nn.Conv2d(4, 6, 5, 2, 2)),
    ("conv", {"kernel": (1, 7), "padding": "same"}, nn.Conv2d(4, 4, (1, 7), padding="same")),
    ("conv", {"kernel": 3, "dilation": 2, "padding": "valid", "groups": 2}, nn.Conv2d(4, 4, 3, dilation=2, groups=2)),
    ("depthwise", {"kernel": 3, "multiplier": 2}, nn.Conv2d(4, 8, 3, padding=1, groups=4)),
    ("conv_transpose", {"kernel": 4, "stride": 2, "padding": "same", "channels": 3}, nn.ConvTranspose2d(4, 3, 4, 2, 1)),
    ("conv_transpose", {"kernel": 3, "stride": 2, "padding": "valid"}, nn.ConvTranspose2d(4, 4, 3, 2)),
    ("max_pool", {"kernel": 3, "stride": 2, "padding": 1}, nn.MaxPool2d(3, 2, 1)),
    ("avg_pool", {"kernel": 2, "ceil": True}, nn.AvgPool2d(2, ceil_mode=True)),
    ("adaptive_pool", {"size": 5}, nn.AdaptiveAvgPool2d(5)),
    ("global_pool", {"keep": True}, nn.AdaptiveAvgPool2d(1)),
    ("upsample", {"factor": (2, 3)}, nn.Upsample(scale_factor=(2, 3))),
    ("upsample", {"factor": 2, "mode": "bilinear"}, nn.Upsample(scale_factor=2, mode="bilinear")),
    ("pad", {"amount": (1, 2, 3, 0)}, nn.ZeroPad2d((3, 0, 1, 2))),
    ("crop", {"amount": 2}, nn.ZeroPad2d(-2)),
    ("norm", {}, nn.BatchNorm2d(4)),
    ("act", {}, nn.ReLU()),
    ("flatten", {}, nn.Flatten()),
]


@pytest.mark.parametrize(("op", "options", "module"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_op_is_its_torch_counterpart(op: Any, options: dict[str, Any], module: nn.Module) -> None:
    sketch = Sketch("net", size=(17, 22))
    sketch.add("stem", "conv", kernel=3, channels=4, padding=1)
    sketch.add("layer", op, **options)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), module).eval()
    assert_same(analyze(sketch), "layer", model, (1, 3, 17, 22))


def test_same_padding_depends_on_the_stride_as_in_keras() -> None:
    sketch = Sketch(size=(16, 17))
    sketch.add("conv", "conv", kernel=3, stride=2)
    layer = analyze(sketch).layers["conv"]
    assert layer.shape == (1, 3, 8, 9)
    assert layer.start == (0, -1)


def test_branches_gates_and_heads() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 4, 1)
            self.last, self.fc = nn.Conv2d(8, 4, 3, padding=1), nn.Linear(4, 9)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            both = a + b + F.relu(a)
            gate = self.gate(both.mean((2, 3), keepdim=True))
            y: Tensor = self.fc(self.last(torch.cat([both * gate, b], 1)).mean((2, 3)))
            return y

    sketch = Sketch(size=12)
    a = sketch.add("a", "conv", "input", kernel=3, channels=4)
    b = sketch.add("b", "conv", "input", kernel=5, channels=4)
    sketch.add("relu", "act", a)
    both = sketch.add("both", "add", [a, b, "relu"])
    pooled = sketch.add("pooled", "global_pool", both)
    sketch.add("squeezed", "as_map", pooled)
    gate = sketch.add("gate", "conv", kernel=1)
    sketch.add("gated", "mul", [both, gate])
    sketch.add("cat", "cat", ["gated", b])
    sketch.add("last", "conv", kernel=3, channels=4)
    sketch.add("mean", "global_pool")
    sketch.add("fc", "linear", units=9)
    model = Net()
    for ignore_gates in (False, True):
        own, wanted = analyze(sketch, ignore_gates=ignore_gates), analyze(model, (1, 3, 12, 12), ignore_gates=ignore_gates)
        assert (own.layers["last"].size, own.layers["last"].min_size) == (wanted.layers["last"].size, wanted.layers["last"].min_size)
        assert own.layers["fc"].status == "global"
        assert own.macs == wanted.macs
    assert analyze(sketch).layers["last"].min_size == (5, 5)


def test_layers_may_be_added_in_any_order_and_unknown_ones_are_said() -> None:
    sketch = Sketch(size=16)
    sketch.add("second", "conv", "first", kernel=3)
    sketch.add("first", "conv", "input", kernel=3)
    sketch.add("odd", "unknown", "second")
    sketch.add("behind", "conv", "odd", kernel=3)
    report = analyze(sketch)
    assert report.layers["second"].size == (5, 5)
    assert report.layers["behind"].status == "unknown"
    assert report.layers["behind"].size == (None, None)
    assert [layer.name for layer in report.outputs] == ["behind"]


def test_an_input_shape_overrides_the_sketch() -> None:
    sketch = Sketch(size=16)
    sketch.add("conv", "conv", kernel=3)
    assert analyze(sketch, (2, 5, 9, 11)).layers["conv"].shape == (2, 5, 9, 11)


@pytest.mark.parametrize("bad", [0, -1, (3, 0), "three", 2.5, True, (1, 2, 3)])
@pytest.mark.parametrize("option", ["kernel", "stride", "dilation"])
def test_sizes_below_one(option: str, bad: Any) -> None:
    with pytest.raises(ShapeError, match=f"{option} of layer 'x'"):
        Sketch().add("x", "conv", **{"kernel": 3, option: bad})


def test_circles_gaps_and_wrong_words() -> None:
    circle = Sketch()
    circle.add("a", "add", ["input", "c"])
    circle.add("b", "conv", "a", kernel=3)
    circle.add("c", "conv", "b", kernel=3)
    with pytest.raises(CaptureError, match="circle: a <- c <- b <- a"):
        analyze(circle)
    alone = Sketch()
    alone.add("a", "conv", "nowhere", kernel=3)
    with pytest.raises(CaptureError, match="'a' reads 'nowhere', which does not exist"):
        analyze(alone)
    sketch = Sketch()
    sketch.add("a", "conv", kernel=3)
    wrong: list[tuple[str, Any, dict[str, Any], str]] = [
        ("a", "conv", {"kernel": 3}, "is taken"),
        ("input", "conv", {"kernel": 3}, "is taken"),
        ("b", "convolution", {}, "expected one of"),
        ("b", "conv", {}, "needs a kernel"),
        ("b", "conv", {"kernel": 3, "units": 3}, "no option 'units'"),
        ("b", "conv", {"kernel": 3, "inputs": []}, "at least one name"),
    ]
    for name, op, options, message in wrong:
        with pytest.raises(ShapeError, match=message):
            sketch.add(name, op, **options)


def test_maps_that_do_not_fit_together() -> None:
    joins: list[Any] = ["add", "cat"]
    for op in joins:
        sketch = Sketch(size=16)
        sketch.add("a", "conv", "input", kernel=3, stride=2)
        sketch.add("b", op, ["a", "input"])
        with pytest.raises(ShapeError, match="'b': its inputs do not fit together"):
            analyze(sketch)
    flat = Sketch(size=16)
    flat.add("flat", "flatten")
    flat.add("conv", "conv", kernel=3)
    with pytest.raises(ShapeError, match="'conv': conv reads a map"):
        analyze(flat)
    small = Sketch(size=4)
    small.add("conv", "conv", kernel=7, padding="valid")
    with pytest.raises(ShapeError):
        analyze(small)
    groups = Sketch(size=4)
    groups.add("conv", "conv", kernel=1, groups=2)
    with pytest.raises(ShapeError, match="groups"):
        analyze(groups)


# -- Keras ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", minversion="3.0", reason="Keras 3 is not installed")


def test_a_keras_model_has_the_fields_of_its_torch_twin(keras: Any) -> None:
    layers = keras.layers
    image = keras.Input((33, 40, 3))
    x = layers.ZeroPadding2D(((3, 3), (2, 4)))(image)
    x = layers.Conv2D(8, 7, strides=2, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D(3, 2)(x)
    left = layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", use_bias=False)(x)
    right = layers.SeparableConv2D(8, 5, padding="same", use_bias=False)(x)
    x = layers.Add()([left, right, x])
    x = layers.UpSampling2D(2)(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="valid", use_bias=False)(x)
    x = layers.Cropping2D(1)(layers.Concatenate()([x, x]))
    model = keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 8, 7, 2, bias=False), nn.BatchNorm2d(8)
            self.b = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False)
            self.c, self.d = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), nn.Conv2d(8, 8, 1, bias=False)
            self.e, self.fc = nn.ConvTranspose2d(8, 4, 3, 2, bias=False), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Any:
            x = F.max_pool2d(F.relu(self.norm(self.a(F.pad(x, (2, 4, 3, 3))))), 3, 2)
            x = self.e(F.interpolate(self.b(x) + self.d(self.c(x)) + x, scale_factor=2.0))
            x = torch.cat([x, x], 1)[:, :, 1:-1, 1:-1]
            return self.fc(x.mean((2, 3))), x

    own, wanted = analyze(model), analyze(Twin(), (1, 3, 33, 40))
    crop, twin = (
        next(layer for layer in own.layers.values() if layer.op == "pad" and len(layer.inputs) and "crop" in layer.name),
        wanted.outputs[1],
    )
    assert (crop.shape, crop.size, crop.min_size, crop.stride, crop.start) == (
        twin.shape,
        twin.size,
        twin.min_size,
        twin.stride,
        twin.start,
    )
    assert own.macs == wanted.macs
    assert own.params == model.count_params() - 16  # two statistics of 8 channels, which are no parameters
    assert own.outputs[0].status == "global"


def test_sequential_nested_and_channels_first_models(keras: Any) -> None:
    layers = keras.layers
    inner = keras.Sequential([keras.Input((16, 16, 8)), layers.Conv2D(8, 3, padding="same"), layers.Conv2D(8, 3, padding="same")])
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(8, 3, padding="same"), inner, inner, layers.Flatten(), layers.Dense(2)]
    )
    report = analyze(model)
    assert max(layer.size for layer in report.layers.values() if layer.status == "exact") == (11, 11)
    assert report.outputs[0].shape == (1, 2)
    first = keras.Sequential([keras.Input((3, 16, 20)), layers.Conv2D(4, (1, 3), data_format="channels_first")])
    assert analyze(first).outputs[0].shape == (1, 4, 16, 18)
    assert analyze(first, (1, 3, 32, 32)).outputs[0].shape == (1, 4, 32, 30)


def test_gates_of_keras_models(keras: Any) -> None:
    layers = keras.layers
    image = keras.Input((16, 16, 4))
    x = layers.Conv2D(4, 3, padding="same")(image)
    gate = layers.Conv2D(4, 1, activation="sigmoid")(layers.Reshape((1, 1, 4))(layers.GlobalAveragePooling2D()(x)))
    model = keras.Model(image, layers.Conv2D(2, 3, padding="same")(layers.Multiply()([x, gate])))
    assert analyze(model).outputs[0].status == "global"
    assert analyze(model, ignore_gates=True).outputs[0].size == (5, 5)


def test_unknown_keras_layers_and_models(keras: Any) -> None:
    layers = keras.layers
    image = keras.Input((16, 16, 3))
    x = layers.Permute((2, 1, 3))(layers.Conv2D(4, 3)(image))
    report = analyze(keras.Model(image, layers.Conv2D(2, 3)(x)))
    assert report.outputs[0].status == "unknown"
    assert any(layer.status == "exact" and layer.size == (3, 3) for layer in report.layers.values())
    with pytest.raises(CaptureError, match="one image input"):
        analyze(keras.Sequential([keras.Input((16,)), layers.Dense(3)]))
    with pytest.raises(CaptureError, match="not a built"):
        analyze(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(ShapeError, match="input_shape"):
        analyze(keras.Model(image, x), (1, 16))


@pytest.mark.parametrize(
    ("name", "largest", "span"),
    [("VGG16", 212, (212, 212)), ("ResNet50", 483, (96, 483)), ("MobileNetV2", 491, (163, 491))],
)
def test_networks_of_keras(keras: Any, name: str, largest: int, span: tuple[int, int]) -> None:
    from sightline.fields.keras_import import keras_graph

    report = analyze(
        keras_graph(getattr(keras.applications, name)(weights=None, classes=3, input_shape=(96, 96, 3), include_top=name != "VGG16"))
    )
    assert report.largest.size == (largest, largest)
    assert report.resolution_range() == ((span[0],) * 2, (span[1],) * 2)
    assert all(layer.status != "unknown" for layer in report.layers.values())
