"""The names of rfa_toolbox: its documented examples run unchanged, with its numbers."""

from __future__ import annotations

import math
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sightline.compat.rfa_toolbox as rfa
import zoo
from sightline.compat.rfa_toolbox import (
    EnrichedNetworkNode,
    LayerDefinition,
    ReceptiveFieldInfo,
    create_graph_from_pytorch_model,
    input_resolution_range,
    obtain_all_critical_layers,
    obtain_border_layers,
    visualize_architecture,
)  # fmt: skip
from sightline.compat.rfa_toolbox.graphs import (
    filter_all_rf_info_with_infinite_receptive_field,
    naive_minmax_filter,
    receptive_field_provider,
)  # fmt: skip
from sightline.errors import CaptureError, MediaError, ShapeError
from sightline.torchvision_import import import_torchvision


def chain(*layers: tuple[Any, Any]) -> EnrichedNetworkNode:
    node: EnrichedNetworkNode | None = None
    for number, (kernel, stride) in enumerate(layers):
        node = EnrichedNetworkNode(f"{number}", LayerDefinition("Conv", kernel, stride), [] if node is None else [node])
    assert node is not None
    return node


# -- its documented examples ------------------------------------------------------------------------------------------------------

HAND_WRITTEN = """
from rfa_toolbox import visualize_architecture
from rfa_toolbox.graphs import EnrichedNetworkNode, LayerDefinition

conv1 = EnrichedNetworkNode(
    name="Conv1", layer_info=LayerDefinition(name="Conv3x3", kernel_size=3, stride_size=1, filters=64), predecessors=[]
)
conv2 = EnrichedNetworkNode(
    name="Conv2", layer_info=LayerDefinition(name="Conv3x3", kernel_size=3, stride_size=1, filters=128), predecessors=[conv1]
)
conv3 = EnrichedNetworkNode(
    name="Conv3", layer_info=LayerDefinition(name="Conv3x3", kernel_size=3, stride_size=1, filters=256), predecessors=[conv1]
)
conv4 = EnrichedNetworkNode(
    name="Conv4", layer_info=LayerDefinition(name="Conv3x3", kernel_size=3, stride_size=1, filters=256), predecessors=[conv2, conv3]
)
out = EnrichedNetworkNode(name="Softmax", layer_info=LayerDefinition(name="Fully Connected", units=1000), predecessors=[conv4])
visualize_architecture(out, f"example_model", input_res=32).view()
"""
ALEXNET = """
import torchvision
from rfa_toolbox import create_graph_from_pytorch_model, visualize_architecture
model = torchvision.models.alexnet()
graph = create_graph_from_pytorch_model(model)
visualize_architecture(graph, f"alexnet_32_pixel", input_res=32).view()
"""
RESNET = """
import torchvision
from rfa_toolbox import create_graph_from_pytorch_model, input_resolution_range
model = torchvision.models.resnet50()
graph = create_graph_from_pytorch_model(model)
min_res, max_res = input_resolution_range(graph, filter_all_inf_rf=False)
print("Mininum Resolution:", min_res, "Maximum Resolution:", max_res)
"""
KERAS = """
from keras.applications.vgg19 import VGG19
from rfa_toolbox import create_graph_from_tensorflow_model, visualize_architecture
from rfa_toolbox.graphs import EnrichedNetworkNode
model = VGG19(include_top=True, weights=None)
graph: EnrichedNetworkNode = create_graph_from_tensorflow_model(model)
visualize_architecture(graph, "VGG16", input_res=32).view()
"""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs an example under the original's name, in an empty folder and on no screen."""
    import_torchvision()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setitem(sys.modules, "rfa_toolbox", rfa)
    monkeypatch.setitem(sys.modules, "rfa_toolbox.graphs", sys.modules["sightline.compat.rfa_toolbox.graphs"])

    def run(text: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        with torch.device("meta"):  # weights of networks this large would take their time, and nobody looks at them
            exec(compile(text, "example", "exec"), names)
        return names

    return run


def drawn(folder: Path, name: str) -> str:
    """The Graphviz source, after a look at the drawing beside it."""
    (drawing,) = [path for path in folder.iterdir() if path.name.startswith(f"{name}.gv.")]
    if drawing.suffix == ".svg":
        ET.parse(drawing)
    assert drawing.stat().st_size > 500
    return (folder / f"{name}.gv").read_text()


def test_the_hand_written_example(example: Any, tmp_path: Path) -> None:
    names = example(HAND_WRITTEN)
    source = drawn(tmp_path, "example_model")
    assert source.count("->") == 5 and "Conv3x3, 128 filters" in source and "Fully Connected, 1000 units" in source
    assert (names["conv4"].receptive_field_min, names["conv4"].receptive_field_max) == (7, 7)
    assert names["out"].receptive_field_min == math.inf
    assert [node.name for node in names["out"].all_layers] == ["Conv1", "Conv2", "Conv3", "Conv4", "Softmax"]


def test_the_alexnet_example(example: Any, tmp_path: Path) -> None:
    names = example(ALEXNET)
    source = drawn(tmp_path, "alexnet_32_pixel")
    assert source.count("fillcolor=red") > 10 and source.count("fillcolor=white") >= 3
    assert input_resolution_range(names["graph"]) == ((195, 195), (195, 195))


def test_the_resnet_example(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = example(RESNET)
    assert (names["min_res"], names["max_res"]) == ((96, 96), (427, 427))
    assert "Maximum Resolution: (427, 427)" in capsys.readouterr().out


def test_the_keras_example(example: Any, tmp_path: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip("keras", minversion="3.0", reason="Keras 3 is not installed")
    text = KERAS.replace("weights=None)", "weights=None, input_shape=(64, 64, 3))")  # 550 MB of weights less; fields are the same
    names: dict[str, Any] = {}
    exec(compile(text, "example", "exec"), names)
    assert "fillcolor=red" in drawn(tmp_path, "VGG16")
    assert input_resolution_range(names["graph"]) == ((268, 268), (268, 268))


# -- numbers ----------------------------------------------------------------------------------------------------------------------


def test_fields_of_chains() -> None:
    assert [node.receptive_field_min for node in chain(*[(3, 1)] * 5).all_layers] == [3, 5, 7, 9, 11]
    assert [node.receptive_field_min for node in chain((3, 1), (3, 2), (3, 1), (3, 2), (3, 1)).all_layers] == [3, 5, 9, 13, 21]
    assert [node.receptive_field_min for node in chain((1, 1), (1, 2), (1, 1), (3, 2), (1, 1)).all_layers] == [1, 1, 1, 5, 5]
    vgg = [(3, 1), (3, 1), (2, 2)] * 2 + [(3, 1), (3, 1), (3, 1), (2, 2)] * 3
    wanted = [3, 5, 6, 10, 14, 16, 24, 32, 40, 44, 60, 76, 92, 100, 132, 164, 196, 212]
    assert [node.receptive_field_max for node in chain(*vgg).all_layers] == wanted


def test_branches_and_tuples() -> None:
    stem = chain((3, 1))
    left, right = (EnrichedNetworkNode(name, LayerDefinition("Conv", kernel, 2), [stem]) for name, kernel in (("l", 3), ("r", 5)))
    joint = EnrichedNetworkNode("joint", LayerDefinition("Conv", 3, 1), [left, right])
    assert (joint.receptive_field_min, joint.receptive_field_max) == (9, 11)
    after = EnrichedNetworkNode("after", LayerDefinition("Conv", 3, 1), [joint])
    assert (after.receptive_field_min, after.receptive_field_max) == (13, 15)
    assert stem.succecessors == [left, right] and stem.successors == [left, right]
    wide = chain((3, (1, 2)), (3, 1))
    assert wide.receptive_field_min == (5, 7)
    assert wide.get_maximum_scale_factor() == (1, 2)
    assert wide.compute_feature_map_size(32) == (32, 16)
    assert wide.is_in([wide]) and not wide.is_in([stem])


def test_ranges_of_chains() -> None:
    net = chain(*[(3, 1)] * 6, (1, 1))
    assert input_resolution_range(net) == ((13, 13), (13, 13))
    assert input_resolution_range(net, lower_bound=True) == ((11, 11), (13, 13))
    assert input_resolution_range(net, filter_kernel_size_1=True) == ((13, 13), (13, 13))
    assert input_resolution_range(chain(*[((3, 5), 1)] * 6)) == ((13, 25), (13, 25))
    assert input_resolution_range(chain(*[((3, 5), 1)] * 6), lower_bound=True) == ((11, 21), (13, 25))
    assert input_resolution_range(net, cardinality=1) == ((13,), (13,))
    with pytest.raises(ShapeError, match="finite receptive field"):
        input_resolution_range(chain((None, None)))


def test_border_and_critical_layers() -> None:
    net = chain(*[(3, 1)] * 6)
    assert [node.is_border(7) for node in net.all_layers] == [False, False, False, True, True, True]
    assert [node.name for node in obtain_border_layers(net, 7)] == ["3", "4", "5"]
    assert [node.name for node in obtain_all_critical_layers(net, 10)] == ["4", "5"]
    dense = EnrichedNetworkNode("fc", LayerDefinition("Dense", units=3), [net])
    assert dense not in obtain_border_layers(dense, 7)
    assert dense in obtain_border_layers(dense, 7, filter_dense=False)
    assert net.is_border(7, receptive_field_provider)
    with pytest.raises(ValueError, match="receptive_field_provider"):
        net.is_border(7, lambda node: 1)


def test_filters_and_definitions() -> None:
    infos = [ReceptiveFieldInfo(size, 1) for size in (3, 3, 3, (math.inf, 3), (math.inf, math.inf), math.inf)]
    assert len(list(filter_all_rf_info_with_infinite_receptive_field(infos))) == 3
    assert len(list(filter_all_rf_info_with_infinite_receptive_field(infos[3:]))) == 3
    assert [info.receptive_field for info in naive_minmax_filter([ReceptiveFieldInfo(size, 1) for size in (5, 3, 9)])] == [3, 9]
    layer = LayerDefinition("Dense", units=7)
    assert LayerDefinition.from_dict(**layer.to_dict()) == layer
    for kernel, stride in ((0, 1), (3, 0), ((3, 0), 1), (-1, 1), ((3, 3), (1, 1, 1))):
        with pytest.raises(ValueError, match="expected"):
            LayerDefinition("Conv", kernel, stride)


def test_models_stay_as_they_were_and_odd_ones_work() -> None:
    model = zoo.build("mobilenet_v3_small").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = create_graph_from_pytorch_model(model, "inf", input_res=(1, 3, 64, 64))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    shown = create_graph_from_pytorch_model(model, "inf", input_res=(1, 3, 64, 64), display_se_modules=True)
    assert len(shown.all_layers) > len(graph.all_layers)
    assert input_resolution_range(shown) == input_resolution_range(graph)
    assert any(node.name == "features.0.0" for node in graph.all_layers)
    dictionary = create_graph_from_pytorch_model(zoo.build("lraspp_mobilenet_v3_large"), input_res=(1, 3, 64, 64))
    assert len(dictionary.all_layers) > 50
    with pytest.raises(ValueError, match="filter_rf"):
        create_graph_from_pytorch_model(model, "all")
    with pytest.raises(CaptureError):
        create_graph_from_pytorch_model(nn.Linear(3, 4))


def test_colours_by_hand() -> None:
    net = chain(*[(3, 1)] * 6)
    assert visualize_architecture(net, "x", 7).source.count("fillcolor=red") == 3
    plain = visualize_architecture(net, "x", 7, color_border=False, color_critical=False, include_rf_info=False, include_fm_info=False)
    assert "red" not in plain.source and "r_min" not in plain.source and "map" not in plain.source
    assert visualize_architecture(chain(((1, 9), 1), (3, 1)), "x", (8, 8)).source.count("fillcolor=yellow") == 2


def test_files_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = visualize_architecture(chain((3, 1)), "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="choose another directory"):
        drawing.render(directory=tmp_path / "file")
    monkeypatch.setenv("PATH", "")
    assert Path(drawing.render(directory=tmp_path / "new")).suffix == ".svg"
    with pytest.raises(MediaError, match="dot, which is not installed"):
        drawing.render(directory=tmp_path, format="png")
