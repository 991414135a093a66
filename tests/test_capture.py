"""Captured graphs compute what their models compute, are named after them, and leave the models alone."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphs import Function, assert_agrees, captured, flat, only, ops, rebuilt
from sightline.errors import CaptureError, DeviceError, ShapeError
from sightline.graph.capture import capture
from sightline.graph.ir import ACTIVATIONS, Graph, Namer, Node
from sightline.graph.rules import RULES, reference, rule_of
from zoo import ZOO, build, frame

# -- the helpers can fail ---------------------------------------------------------------------------------------------------------


def test_assert_agrees_sees_a_wrong_weight() -> None:
    model = nn.Conv2d(3, 4, 3)
    graph = capture(model, torch.zeros(1, 3, 8, 8))
    only(graph, "conv2d").attrs["weight"] = model.weight.detach() * (1 + 1e-4)
    with pytest.raises(AssertionError):
        assert_agrees(model, graph, torch.randn(1, 3, 8, 8))


def test_assert_agrees_sees_a_missing_output() -> None:
    graph = captured(lambda x: (x + 1, x * 2))
    with pytest.raises(AssertionError):
        assert_agrees(Function(lambda x: x + 1), graph, torch.randn(2, 4, 8, 6))


def test_the_zoo_is_alive_and_reproducible() -> None:
    first, second = build("mobilenet_v3_small"), build("mobilenet_v3_small")
    with torch.no_grad():
        a, b = first(frame("mobilenet_v3_small", 0)), first(frame("mobilenet_v3_small", 1))
        assert torch.equal(a, second(frame("mobilenet_v3_small", 0)))
    assert (a - b).abs().max() > 0.05 * a.abs().max()


# -- the zoo ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print(f"\n{'network':36}{'nodes':>6}{'torch':>6}  calls without a canonical op")
    print("\n".join(rows))


def test_the_zoo_is_wide() -> None:
    assert len(ZOO) >= 40
    families = ("resnet", "mobilenet_v2", "mobilenet_v3", "efficientnet", "vgg", "densenet", "shufflenet", "squeezenet", "googlenet")
    for family in (*families, "regnet", "mnasnet"):
        assert any(name.startswith(family) and entry.canonical for name, entry in ZOO.items()), family


@pytest.mark.parametrize("name", ZOO)
def test_network(name: str, table: list[str]) -> None:
    model = build(name)
    graph = capture(model, frame(name))
    unmapped = Counter(str(node.attrs["target"]).removeprefix("aten.") for node in graph if node.op == "torch")
    row = f"{name:36}{len(graph.nodes):6}{sum(unmapped.values()):6}  "
    table.append(row + ", ".join(f"{count}x {op}" for op, count in unmapped.most_common()))
    assert_agrees(model, graph, frame(name, seed=1))
    if ZOO[name].canonical:
        assert not unmapped
    assert_well_formed(graph)


def assert_well_formed(graph: Graph) -> None:
    """Names are unique, operands come first, nothing is dead, attributes are what the docstring of `ir` says."""
    names = [node.name for node in graph]
    assert len(set(names)) == len(names)
    assert all(names)
    seen: set[Node] = set()
    for node in graph:
        assert all(operand in seen for operand in node.inputs)
        seen.add(node)
        assert node.op in RULES or node.op == "input"
        assert node.op != "identity"
        if node.op == "act":
            assert node.attrs["kind"] in ACTIVATIONS
        for value in node.attrs.values():
            assert not (isinstance(value, Tensor) and value.requires_grad)
    users = graph.users()
    assert all(users[node] or node in graph.outputs or node.op == "input" for node in graph)


def test_assert_well_formed_sees_a_dead_node() -> None:
    graph = captured(lambda x: x + 1)
    graph.nodes.append(Node("dead", "act", [graph.input], {"kind": "relu", "params": ()}))
    with pytest.raises(AssertionError):
        assert_well_formed(graph)


# -- names ------------------------------------------------------------------------------------------------------------------------


def test_names_follow_the_modules() -> None:
    names = [node.name for node in capture(build("resnet18"), frame("resnet18"))]
    assert names[:5] == ["input", "conv1", "bn1", "relu", "maxpool"]
    assert {
        "layer1.0.conv1",
        "layer1.0.relu",
        "layer1.0.relu:2",
        "layer1.0.add",
        "layer2.0.downsample.1",
        "avgpool",
        "flatten",
        "fc",
    } <= set(names)


def test_names_of_norms_with_children() -> None:
    names = {node.name: node.op for node in capture(build("seresnet18"), frame("seresnet18"))}
    assert names["layer1.0.bn1"] == "affine"
    assert names["layer1.0.se.fc1"] == "conv2d"
    assert names["layer1.0.se.mul"] == "mul"


def test_two_captures_give_the_same_names() -> None:
    model = build("ghostnet_050")
    first, second = (capture(model, frame("ghostnet_050")) for _ in range(2))
    assert [node.name for node in first] == [node.name for node in second]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.head(x)
        return x + 1


def test_a_module_called_again_is_another_site() -> None:
    model = Shared()
    graph = capture(model, torch.zeros(1, 3, 8, 8))
    assert [node.name for node in graph] == ["input", "head.0", "head.1", "head.0:2", "head.1:2", "head.0:3", "head.1:3", "add"]
    convs = [node for node in graph if node.op == "conv2d"]
    assert len({node.attrs["weight"].data_ptr() for node in convs}) == 1
    assert_agrees(model, graph, torch.randn(1, 3, 8, 8))


def test_sources_and_modules() -> None:
    graph = capture(Shared(), torch.zeros(1, 3, 8, 8))
    nodes = {node.name: node for node in graph}
    line = Shared.forward.__code__.co_firstlineno
    assert nodes["add"].source.endswith(f"test_capture.py:{line + 3}")
    assert nodes["head.0:2"].source.endswith(f"test_capture.py:{line + 2}")
    assert (nodes["add"].module, nodes["head.0"].module) == ("", "head.0")


def test_namer_never_repeats() -> None:
    namer = Namer(["input"])
    assert [namer(name) for name in ("a", "a:2", "a", "input", "a")] == ["a", "a:2", "a:2:2", "input:2", "a:3"]


# -- outputs ----------------------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclasses.dataclass(frozen=True)
class Detections:
    boxes: Tensor
    count: int
    extra: dict[str, Any]


def test_outputs_are_rebuilt() -> None:
    def function(x: Tensor) -> Any:
        y = x + 1
        return {"y": y, "pair": Pair(x, (y, 3, None, "name")), "list": [x * 2, []], "same": y, "flag": True}

    graph = captured(function)
    x = torch.randn(2, 4, 8, 6)
    got, wanted = rebuilt(graph, x), function(x)
    assert list(got) == list(wanted)
    assert isinstance(got["pair"], Pair)
    assert got["pair"].second[1:] == (3, None, "name")
    assert got["flag"] is True
    assert got["list"][1] == []
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert torch.equal(a, b)


def test_dataclasses_are_rebuilt() -> None:
    graph = capture(Function(lambda x: [Detections(x + 1, 5, {"mask": x * 2, "label": "face"})]), torch.zeros(1, 2, 3, 4))
    x = torch.randn(1, 2, 3, 4)
    (record,) = rebuilt(graph, x)
    assert isinstance(record, Detections)
    assert len(graph.outputs) == 2
    assert torch.equal(record.boxes, x + 1)
    assert (record.count, record.extra["label"]) == (5, "face")


@pytest.mark.parametrize("function", [lambda x: x, lambda x: (x, x), lambda x: x.contiguous(), lambda x: F.dropout(x, training=False)])
def test_output_is_the_input(function: Callable[[Tensor], Any]) -> None:
    graph = capture(Function(function), torch.zeros(1, 2, 3, 4))
    assert ops(graph) == []
    assert all(node is graph.input for node in graph.outputs)
    x = torch.randn(1, 2, 3, 4)
    assert torch.equal(flat(rebuilt(graph, x))[0], x)


def test_a_single_tensor_has_no_tree() -> None:
    assert captured(lambda x: x + 1).output_tree is None
    assert captured(lambda x: (x + 1,)).output_tree is not None


class WithScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, self.scale


def test_constant_outputs() -> None:
    model = WithScale()
    graph = capture(model, torch.zeros(1, 3, 4, 4))
    assert [node.op for node in graph.outputs] == ["scalar", "constant"]
    assert graph.outputs[1].name == "scale"
    assert torch.equal(reference(graph, torch.zeros(1, 3, 4, 4))[1], model.scale)


# -- the model stays as it was ----------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.Conv2d(4, 4, 1).eval()
        self.frozen.weight.requires_grad_(False)
        self.calls: list[Any] = []
        self.cache: dict[str, Any] = {}
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.drop(self.bn(self.conv(x))))
        self.calls.append(x.shape)
        self.cache["x"] = 1
        self.fresh = "set in forward"
        return x + torch.rand(1).to(x) * 0


def test_the_model_is_left_as_it_was() -> None:
    model = Everything().train()
    model.frozen.eval()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    del model.fresh
    model.calls.clear()
    model.cache.clear()
    handle = model.conv.register_forward_hook(lambda *_: None)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    grads = {key: None if value.grad is None else value.grad.clone() for key, value in model.named_parameters()}
    identities = {key: id(value) for key, value in model.named_parameters()}
    flags = {name: module.training for name, module in model.named_modules()}
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    graph = capture(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {key: id(value) for key, value in model.named_parameters()} == identities
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not model.frozen.weight.requires_grad
    assert model.conv.weight.requires_grad
    assert all(torch.equal(value.grad, grads[key]) for key, value in model.named_parameters() if value.grad is not None)  # type: ignore[arg-type]
    assert (x.grad, model.calls, model.cache, model.last) == (None, [], {}, None)
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    assert list(model.conv._forward_hooks) == [handle.id]
    assert [node.op for node in graph if node.name in {"conv", "bn", "drop", "frozen"}] == ["conv2d", "affine", "conv2d"]
    assert torch.is_grad_enabled()


def test_hooks_are_part_of_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model[0].register_forward_hook(lambda _module, _args, output: output * 2)
    graph = capture(model, torch.zeros(1, 3, 8, 8))
    assert ops(graph) == ["conv2d", "scalar", "act"]
    assert len(model[0]._forward_hooks) == 1


def test_computed_weights_are_constants() -> None:
    conv = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(conv), nn.ReLU())
    graph = capture(model, torch.zeros(1, 3, 8, 8))
    assert [(node.name, node.op) for node in graph] == [("input", "input"), ("0", "conv2d"), ("1", "act")]
    assert torch.equal(only(graph, "conv2d").attrs["weight"], conv.weight)


def test_weights_are_references() -> None:
    conv, head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)
    graph = capture(nn.Sequential(conv, nn.Flatten(), head), torch.zeros(1, 3, 8, 8))
    nodes = {node.name: node for node in graph}
    assert nodes["0"].attrs["weight"].data_ptr() == conv.weight.data_ptr()
    assert nodes["2"].attrs["bias"].data_ptr() == head.bias.data_ptr()


def test_eval_flags_come_back_after_a_failure() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            self.junk = x
            raise ValueError("first line\nsecond line")

    model = Fails()
    with pytest.raises(CaptureError, match=r"model \(Fails\): cannot be traced: ValueError: first line; ") as caught:
        capture(model, torch.zeros(1, 3, 8, 8))
    assert "second line" not in str(caught.value)
    assert model.training
    assert model.drop.training
    assert not hasattr(model, "junk")


# -- element types, devices, errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_element_types(dtype: torch.dtype) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    model.to(dtype)
    graph = capture(model, torch.zeros(1, 3, 8, 8, dtype=dtype))
    assert ops(graph) == ["conv2d", "affine", "act", "global_avg_pool", "flatten", "linear"]
    assert {node.dtype for node in graph} == {dtype}
    x = torch.randn(1, 3, 8, 8, dtype=dtype)
    exact = copy.deepcopy(model).double()(x.double())
    error, plain = ((y.double() - exact).abs().max() for y in (reference(graph, x)[0], model(x)))
    assert error <= 2 * plain + torch.finfo(dtype).eps * exact.abs().max()


def test_meta_models_can_be_captured() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    graph = capture(model, torch.zeros(1, 3, 9, 9, device="meta"))
    assert ops(graph) == ["conv2d", "affine", "act"]
    node = only(graph, "conv2d")
    assert rule_of(node).macs(node) == 4 * 4 * 8 * 27


def test_a_wrong_example_is_named() -> None:
    model = nn.Conv2d(3, 4, 3)
    with pytest.raises(ShapeError, match=r"example: expected \(n, c, h, w\), got \(3, 8, 8\)"):
        capture(model, torch.zeros(3, 8, 8))
    with pytest.raises(DeviceError, match="example: expected a tensor on cpu"):
        capture(model, torch.zeros(1, 3, 8, 8, device="meta"))
    with pytest.raises(CaptureError, match=r"model \(Conv2d\): cannot be traced.*pass an example"):
        capture(model, torch.zeros(1, 5, 8, 8))
    with pytest.raises(CaptureError, match=r"model: expected a torch\.nn\.Module, got function"):
        capture(F.relu, torch.zeros(1, 3, 8, 8))  # type: ignore[arg-type]


def test_control_flow_on_values_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError, match=r"depends on values of tensors: capture the largest sub-modules"):
        capture(Function(lambda x: x + 1 if x.sum() > 0 else x), torch.zeros(1, 3, 8, 8))
    assert capfd.readouterr().err == ""


def test_a_model_may_write_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    capture(Function(lambda x: x if print("hello", file=sys.stderr) else x + 1), torch.zeros(1, 3, 8, 8))
    assert "hello" in capsys.readouterr().err


def test_outputs_without_tensors_are_named() -> None:
    with pytest.raises(CaptureError, match="returns no tensor"):
        capture(Function(lambda x: (1, None)), torch.zeros(1, 3, 8, 8))
    with pytest.raises(CaptureError, match=r"returns a Unknown, which cannot be taken apart.*register_pytree_node"):
        capture(Function(lambda x: (x, Unknown())), torch.zeros(1, 3, 8, 8))


class Unknown:
    """Neither a tensor nor a container."""


def test_compiled_models_are_unwrapped() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert [node.name for node in capture(torch.compile(model, backend="eager"), torch.zeros(1, 3, 8, 8))] == ["input", "0", "1"]  # type: ignore[arg-type]
