"""What a report answers: boxes, other resolutions, diagnosis, the seed's numbers; what `analyze` takes, and what it leaves alone."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sightline as sl
import zoo
from sightline.errors import CaptureError, ShapeError
from sightline.fields import RULES, Report, Sketch, analyze, analyze_graph
from sightline.fields.export import summary
from sightline.graph.capture import capture
from sightline.torchvision_import import import_torchvision


@pytest.fixture(scope="module")
def resnet18() -> Report:
    return analyze(zoo.build("resnet18"), (1, 3, 64, 96))


def by_colour(report: Report, resolution: int) -> list[int]:
    colours = list(report.seed_colours(resolution).values())
    return [colours.count(colour) for colour in ("red", "orange", "yellow", "white")]


# -- boxes ------------------------------------------------------------------------------------------------------------------------


def test_box_and_units_touching_are_adjoint(resnet18: Report) -> None:
    layer = resnet18.layers["layer1.0.conv1"]
    assert layer.shape is not None
    box = (20, 30, 24, 41)
    y0, x0, y1, x1 = resnet18.units_touching(layer.name, box)
    for row in range(layer.shape[2]):
        for column in range(layer.shape[3]):
            a0, b0, a1, b1 = resnet18.box(layer.name, (row, column))
            touches = a0 < box[2] and a1 > box[0] and b0 < box[3] and b1 > box[1]
            assert touches == (y0 <= row < y1 and x0 <= column < x1)


def test_boxes_in_the_padding_and_clipped(resnet18: Report) -> None:
    assert resnet18.box("conv1", (0, 0)) == (-3, -3, 4, 4)
    assert resnet18.box("conv1", (0, 0), clip=True) == (0, 0, 4, 4)
    assert resnet18.box("fc", (0, 0)) == (0, 0, 64, 96)
    assert resnet18.units_touching("conv1", (-3, -3, -1, -1)) == (0, 0, 1, 1)
    assert resnet18.units_touching("conv1", (70, 0, 80, 9)) == (0, 0, 0, 0)
    assert resnet18.units_touching("fc", (0, 0, 1, 1)) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.box("layer9", (0, 0)), "did you mean|lists them"),
        (lambda r: r.box("conv1", (0,)), "expected 2 indices"),
        (lambda r: r.units_touching("conv1", (0, 0)), "expected 4 numbers"),
        (lambda r: r.diagnose(0), "positive int"),
        (lambda r: r.diagnose((32, 32, 32)), "resolution"),
        (lambda r: r.diagnose(32).broken("red"), "expected one of"),
        (lambda r: r.suggest(16, goal="speed"), "goal"),
        (lambda r: r.verify(["nothing"]), "no 'nothing'"),
    ],
)
def test_wrong_questions(resnet18: Report, call: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call(resnet18)


def test_an_unknown_layer_has_no_box() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.grid_sample(x, torch.zeros(1, 8, 8, 2), align_corners=False)

    report = analyze(Net(), (1, 3, 16, 16))
    with pytest.raises(ShapeError, match="unknown"):
        report.box(report.outputs[0].name, (0, 0))


# -- what analyze takes -----------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 4, 7, padding=3), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Any]:
        image, depth = self.a(image), self.b(depth)
        return {"both": self.c(image + depth), "rest": (depth, [image])}


@pytest.mark.parametrize(
    "shape",
    [[(1, 3, 16, 16), (1, 1, 16, 16)], {"image": (1, 3, 16, 16), "depth": (1, 1, 16, 16)}, [torch.ones(1, 3, 16, 16), (1, 1, 16, 16)]],
)
def test_several_inputs_and_outputs(shape: Any) -> None:
    report = analyze(Two(), shape)
    assert [layer.name for layer in report.outputs] == ["c", "b", "a"]
    assert report.outputs[0].size == (5, 5)
    assert report.layers["b"].size == (0, 0)
    depth = analyze(Two(), shape, of=1)
    assert depth.outputs[0].size == (9, 9)
    assert depth.layers["a"].size == (0, 0)
    with pytest.raises(ShapeError, match="0 to 1"):
        analyze(Two(), shape, of=2)


def test_one_and_three_axes() -> None:
    net = nn.Sequential(nn.Conv1d(2, 4, 5, 2, 2), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 3, dilation=2))
    layer = analyze(net, (1, 2, 64)).outputs[0]
    assert (layer.size, layer.stride, layer.start) == ((13,), (2,), (-2,))
    volume = nn.Sequential(nn.Conv3d(1, 2, (1, 3, 5), padding=(0, 1, 2)), nn.MaxPool3d(2))
    assert analyze(volume, (1, 1, 8, 8, 8)).outputs[0].size == (2, 4, 6)


def test_where_layers_come_from() -> None:
    report = analyze(Two(), [(1, 3, 16, 16), (1, 1, 16, 16)])
    layer = report.layers["c"]
    assert (layer.op, layer.params, layer.shape, layer.kernel) == ("conv2d", 148, (1, 4, 16, 16), (3, 3))
    assert layer.macs == 144 * 256
    assert layer.source.partition(":")[0].endswith("test_fields_report.py")
    assert len(layer.inputs) == 1 and report.layers[layer.inputs[0]].op == "add"


def test_notes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.a(x)[:, :, :-2, :-2], self.b(x)], 1)

    layer = analyze(Net(), (1, 3, 16, 16)).outputs[0]
    assert "branches are not aligned" in layer.notes
    assert layer.size == (5, 5)
    circular = analyze(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (1, 3, 16, 16)).outputs[0]
    assert any("wraps around" in note for note in circular.notes)
    assert any("input size" in note for note in analyze(nn.AdaptiveAvgPool2d(3), (1, 3, 16, 16)).outputs[0].notes)


def test_shared_modules_get_a_name_per_call() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.conv(x)
            return x

    report = analyze(Net(), (1, 3, 16, 16))
    assert [report.layers[name].size[0] for name in ("conv", "conv:2", "conv:3")] == [3, 5, 7]
    assert report.params == 84
    assert sum(layer.params for layer in report.layers.values()) == 84


def test_files_and_programs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, dilation=2))
    program = torch.export.export(model, (torch.zeros(1, 3, 32, 32),))
    torch.export.save(program, tmp_path / "net.pt2")
    wanted = analyze(model, (1, 3, 32, 32)).outputs[0]
    for source in (program, tmp_path / "net.pt2", str(tmp_path / "net.pt2"), capture(model, torch.zeros(1, 3, 32, 32))):
        got = analyze(source).outputs[0]
        assert (got.size, got.stride, got.start, got.macs) == (wanted.size, wanted.stride, wanted.start, wanted.macs)


def test_onnx_files(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the onnx package reads .onnx files")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[5, 5], strides=[2, 2], pads=[2, 2, 2, 2], name="first"),
        helper.make_node("MaxPool", ["y"], ["z"], kernel_shape=[3, 3], strides=[2, 2], name="pool"),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 5, 5], [0.1] * 300)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", c, "h", "w"]) for name, c in (("x", 3), ("z", 4))]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    layer = analyze(tmp_path / "net.onnx", (1, 3, 33, 65)).outputs[0]
    assert (layer.size, layer.stride, layer.start) == ((9, 9), (4, 4), (-2, -2))
    assert layer.shape == (1, 4, 8, 16)


def test_the_meta_device_is_enough() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    assert analyze(model, (1, 3, 32, 32)).outputs[0].size == (5, 5)


@pytest.mark.parametrize(
    ("model", "shape", "kind", "message"),
    [
        (nn.Conv2d(3, 4, 3), (1, 3, 0, 8), ShapeError, "positive sizes"),
        (nn.Conv2d(3, 4, 3), (1, 4, 8, 8), CaptureError, "size and type that the model takes"),
        (nn.Linear(7, 3), (1, 3, 8, 8), CaptureError, "size and type that the model takes"),
        (42, (1, 3, 8, 8), CaptureError, "expected a torch.nn.Module"),
        ("missing.onnx", None, CaptureError, "no file"),
        (Path(__file__), None, CaptureError, "expected .onnx or .pt2"),
    ],
)
def test_bad_input(model: Any, shape: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        analyze(model, shape)


def test_the_layer_is_named_where_capturing_stops() -> None:
    fixed = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), nn.Linear(4 * 30 * 30, 2))
    assert analyze(fixed, (1, 3, 32, 32)).outputs[0].name == "1"
    with pytest.raises(CaptureError, match="it stopped in layer '1'"):
        analyze(fixed, (1, 3, 40, 40))
    with pytest.raises(CaptureError, match=r"it stopped in layer '0\.0'"):
        analyze(fixed, (1, 4, 32, 32))

    class Values(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"depends on values .* layer '1'"):
        analyze(nn.Sequential(nn.Conv2d(3, 4, 3), Values()), (1, 3, 16, 16))


def test_a_broken_program_file(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"nothing")
    with pytest.raises(CaptureError, match="not a program"):
        analyze(tmp_path / "net.pt2")


# -- no side effects --------------------------------------------------------------------------------------------------------------


def test_the_model_and_the_process_stay_as_they_were() -> None:
    model = zoo.build("mobilenet_v3_small").train()
    model.get_submodule("features.1").eval()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    state, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    attributes = [dict(module.__dict__) for module in model.modules()]
    grads = [parameter.grad for parameter in model.parameters()]
    random, default, enabled = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    report = analyze(model, (1, 3, 64, 64))
    report.diagnose(32)
    report.verify(["features.0.0"])
    report.suggest(32, seconds=0.0)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert flags == [module.training for module in model.modules()]
    assert [module.__dict__.keys() for module in model.modules()] == [entry.keys() for entry in attributes]
    assert all(a is b for a, b in zip(grads, [parameter.grad for parameter in model.parameters()], strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert (default, enabled) == (torch.get_default_dtype(), torch.is_grad_enabled())


def test_half_precision_and_other_settings_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).half()
    with torch.no_grad():
        assert analyze(model, (1, 3, 8, 8)).outputs[0].size == (3, 3)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float16, torch.int64}


def test_resnet101_is_analysed_in_a_tenth_of_a_second() -> None:
    import_torchvision()
    from torchvision.models import resnet101

    with torch.device("meta"):
        model = resnet101(weights=None)
    start = time.process_time()
    graph = capture(model, torch.zeros(1, 3, 224, 224, device="meta"))
    assert time.process_time() - start < 5
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        report = analyze_graph(graph, model=model)
        best = min(best, time.process_time() - start)
    assert best < 0.1
    assert report.layers["layer4.2.conv3"].size == (971, 971)


# -- diagnosis --------------------------------------------------------------------------------------------------------------------


def test_rules_on_a_chain() -> None:
    net = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6)))  # fields 3, 5, 7, 9, 11, 13
    report = analyze(net, (1, 3, 32, 32))
    at9 = report.diagnose(9)
    assert [verdict.rules for verdict in at9.verdicts] == [
        (), (), (), (), ("unproductive", "saturated"), ("unproductive", "saturated")
    ]  # fmt: skip
    assert list(report.unproductive(9)) == ["4", "5"]
    assert list(report.critical(10)) == ["4"]
    assert at9.wasted_macs == 2 * 9 * 9 * 81
    assert at9.wasted_share == pytest.approx(2 / 6)
    assert at9.wasted_params == 2 * 84
    assert list(report.small_maps(2)) == ["0", "1", "2", "3", "4", "5"]
    assert not report.diagnose(14).broken("critical")


def test_each_axis_by_itself() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 3, (1, 9), padding=(0, 4)), nn.Conv2d(3, 3, (3, 3), padding=1), nn.Conv2d(3, 3, (1, 3), padding=(0, 1))
    )
    report = analyze(net, (1, 3, 32, 32))
    assert list(report.partial(10)) == ["1"]
    assert list(report.unproductive(10)) == ["2"]  # spans columns only, where its input sees 11 already
    assert list(report.unproductive((10, 32))) == []


def test_sizes_and_work_at_another_resolution(resnet18: Report) -> None:
    there = analyze(zoo.build("resnet18"), (1, 3, 97, 131))
    sizes, macs = resnet18.map_sizes((97, 131)), resnet18.macs_at((97, 131))
    for name, layer in there.layers.items():
        assert layer.shape is not None
        if len(layer.shape) == 4:
            assert sizes[name] == layer.shape[2:], name
        assert macs[name] == layer.macs, name


def test_unproductive_layers_of_resnet18_at_16(resnet18: Report) -> None:
    found = resnet18.unproductive(16)
    assert len(found) == 8
    assert set(found) == {f"layer{i}.{j}.conv2" for i in (1, 2, 3, 4) for j in (0, 1)}
    assert len(resnet18.critical(16)) == 8
    assert "At 16 x 16: 8 of 17 convolutions unproductive" in summary(resnet18, 16)


# -- the seed's numbers -----------------------------------------------------------------------------------------------------------


def test_ranges_of_the_seed() -> None:
    report = analyze(zoo.build("resnet50"), (1, 3, 64, 64))
    assert report.resolution_range() == ((96, 96), (427, 427))
    assert report.resolution_range(filter_all_inf_rf=False) == ((96, 96), (427, 427))
    assert report.resolution_range(filter_all_inf_rf=False, feature_map_rule=False) == ((75, 75), (427, 427))


@pytest.mark.parametrize(
    ("name", "default", "predecessors", "lower"),
    [
        ("resnet18", (139, 435), (139, 435), (96, 435)),
        ("mobilenet_v2", (163, 491), (163, 491), (99, 491)),
        ("alexnet", (195, 195), (163, 195), (163, 195)),
    ],
)
def test_more_ranges_of_the_seed(name: str, default: Any, predecessors: Any, lower: Any) -> None:
    report = analyze(zoo.build(name), (1, 3, 224, 224))
    for options, wanted in (({}, default), ({"filter_all_inf_rf": False}, predecessors), ({"lower_bound": True}, lower)):
        assert report.resolution_range(**options) == tuple((size, size) for size in wanted), options


def test_a_network_without_convolutions_has_no_range() -> None:
    report = analyze(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), (1, 3, 8, 8))
    with pytest.raises(ShapeError, match="finite receptive field"):
        report.resolution_range()


def test_colours_of_the_seed_on_a_chain() -> None:
    report = analyze(nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6))), (1, 3, 32, 32))
    assert list(report.seed_colours(7).values()) == ["white", "white", "white", "red", "red", "red"]
    assert by_colour(report, 10) == [1, 1, 0, 4]
    mixed = analyze(nn.Sequential(nn.Conv2d(3, 3, (1, 9)), nn.Conv2d(3, 3, 3)), (1, 3, 32, 32))
    assert list(mixed.seed_colours(8).values()) == ["yellow", "yellow"]


# -- other forms ------------------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return all(map(_plain, value)) if isinstance(value, list) else value is None or isinstance(value, (str, int, float, bool))


def test_json_says_what_the_report_says(resnet18: Report) -> None:
    data = json.loads(resnet18.to_json(16))
    assert _plain(data)
    assert data == json.loads(json.dumps(resnet18.to_dict(16)))
    nodes = {node["name"]: node for node in data["nodes"]}
    last = nodes["layer4.1.conv2"]
    assert [axis["size"] for axis in last["fields"]] == [435, 435]
    assert [axis["start"] for axis in last["fields"]] == [-217, -217]
    assert nodes["fc"]["fields"][0]["size"] == "inf"
    judged = data["diagnosis"]["layers"]
    names = [data["nodes"][int(number)]["name"] for number, rules in judged.items() if "unproductive" in rules]
    assert names == list(resnet18.unproductive(16))
    assert set(RULES) >= {rule for rules in judged.values() for rule in rules}


def test_text_and_dot(resnet18: Report) -> None:
    text = str(resnet18)
    assert "layer4.1.conv2" in text and "435" in text
    dot = resnet18.to_dot(16)
    assert dot.startswith("digraph") and dot.count("->") == sum(len(layer.inputs) for layer in resnet18.layers.values())
    assert "#e5534b" in dot
    assert "#e5534b" not in resnet18.to_dot(1024)
    assert repr(resnet18).startswith("<fields.Report of ResNet")


def test_a_sketch_can_be_analysed_too() -> None:
    sketch = Sketch("one")
    sketch.add("conv", "conv", kernel=3)
    assert sl.analyze(sketch).layers["conv"].size == (3, 3)
