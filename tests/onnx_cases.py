"""Small ONNX networks, one per op and form of it: the case table of `test_onnx_import.py`.

What belongs here: the table and what builds a file from an entry. What does not: assertions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Step = tuple[str, str, str, dict[str, Any]]  # op, input names, output names ("_" for none), attributes

_rng = np.random.default_rng(7)
_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(np.int64): TensorProto.INT64}


def floats(*shape: int, scale: float = 0.5) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random weights."""
    return (_rng.standard_normal(shape) * scale).astype(np.float32)


def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A one-dimensional constant of integers."""
    return np.array(values, dtype=np.int64)


def number(value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A float without axes."""
    return np.array(value, dtype=np.float32)


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        name: what it is about.
        opset: version of ONNX's op set.
        steps: its nodes; the frame is "x".
        consts: its initializers.
        shape: of the frame.
        ops: the ops of the graph that must come out behind the frame, an act or torch node as "act:KIND" and "torch:FUNCTION";
            None where it does not matter.
        outputs: value names.
        low: smallest value in the frame (the largest is low + 4).
    """

    name: str
    opset: int
    steps: Sequence[Step]
    consts: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (2, 4, 6, 9)
    ops: str | None = None
    outputs: str = "y"
    low: float = -2.0


def names(text: str) -> list[str]:
    """Value names of a step; "_" is an absent one."""
    return ["" if name == "_" else name for name in text.split()]


def build(case: Case, input_shape: Sequence[int | str | None] = ("n", "c", "h", "w")) -> onnx.ModelProto:
    """The file of a case; sizes of the frame are open."""
    nodes = [helper.make_node(op, names(reads), names(writes), **attrs) for op, reads, writes, attrs in case.steps]
    frame = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(input_shape))
    outputs = [helper.make_empty_tensor_value_info(name) for name in names(case.outputs)]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in case.consts.items()]
    graph = helper.make_graph(nodes, case.name, [frame], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8)


def one(name: str, opset: int, op: str, ops: str | None = None, /, **attrs: Any) -> Case:
    """A case of one node whose further inputs are the constants ``extra`` (a mapping; None for an absent one)."""
    extra: Mapping[str, Any] = attrs.pop("extra", {})
    consts = {key: value for key, value in extra.items() if value is not None}
    reads = " ".join(["x", *(key if key in consts else "_" for key in extra)])
    settings = {key: attrs.pop(key) for key in ("shape", "low") if key in attrs}
    return Case(name, opset, [(op, reads, "y", attrs)], consts, ops=ops, **settings)


W, B = floats(6, 4, 3, 3), floats(6)
CONVOLUTIONS = [
    one("conv", 11, "Conv", "conv2d", extra={"w": W, "b": B}, pads=[1, 1, 1, 1]),
    one("conv without attributes", 11, "Conv", "conv2d", extra={"w": W}),
    one("conv asymmetric", 11, "Conv", "conv2d", extra={"w": W, "b": B}, pads=[0, 2, 1, 3], strides=[2, 1], dilations=[1, 2]),
    one("conv groups", 11, "Conv", "conv2d", extra={"w": floats(8, 2, 3, 2), "b": floats(8)}, group=2, kernel_shape=[3, 2]),
    one("conv same upper", 11, "Conv", "conv2d", extra={"w": floats(6, 4, 4, 3)}, auto_pad="SAME_UPPER", strides=[2, 2]),
    one("conv same lower", 11, "Conv", "conv2d", extra={"w": floats(6, 4, 4, 3)}, auto_pad="SAME_LOWER", strides=[2, 2]),
    one("conv valid", 11, "Conv", "conv2d", extra={"w": W}, auto_pad="VALID"),
    one("conv half precision", 11, "Cast", "", to=TensorProto.FLOAT),
    one("deconv", 11, "ConvTranspose", "conv2d", extra={"w": floats(4, 6, 3, 3), "b": B}, strides=[2, 2], pads=[1, 1, 1, 1]),
    one("deconv output padding", 11, "ConvTranspose", "conv2d", extra={"w": floats(4, 6, 3, 3), "b": B}, strides=[2, 3],
        output_padding=[1, 2], pads=[1, 0, 0, 2]),
    one("deconv groups", 11, "ConvTranspose", "conv2d", extra={"w": floats(4, 3, 2, 2)}, strides=[2, 2], group=2),
    one("deconv dilated", 11, "ConvTranspose", "conv2d", extra={"w": floats(4, 3, 3, 2)}, dilations=[2, 3], strides=[1, 2]),
    one("deconv output shape", 11, "ConvTranspose", "conv2d", extra={"w": floats(4, 3, 3, 4), "b": floats(3)}, strides=[2, 2],
        output_shape=[12, 17]),
    one("deconv output shape upper", 11, "ConvTranspose", "conv2d", extra={"w": floats(4, 3, 3, 4)}, strides=[2, 2],
        output_shape=[12, 17], auto_pad="SAME_UPPER"),
    one("deconv same upper", 11, "ConvTranspose", "conv2d", extra={"w": floats(4, 3, 3, 4)}, strides=[2, 2], auto_pad="SAME_UPPER"),
    one("deconv same lower", 11, "ConvTranspose", "conv2d", extra={"w": floats(4, 3, 3, 4)}, strides=[2, 2], auto_pad="SAME_LOWER"),
    Case("conv with computed weights", 13, [("ReduceMean", "x", "m", {"axes": [0, 2, 3], "keepdims": 1}), ("Mul", "w m", "v", {}),
                                            ("Conv", "x v b", "y", {"pads": [1, 0, 0, 1]})], {"w": W, "b": B}),
    Case("deconv with computed weights", 13, [
        ("ReduceMean", "x", "m", {"axes": [0, 1, 2, 3], "keepdims": 1}), ("Mul", "w m", "v", {}),
        ("ConvTranspose", "x v b", "y", {"pads": [1, 0, 0, 1], "strides": [2, 3], "output_padding": [1, 2]})],
        {"w": floats(4, 6, 3, 3), "b": B}),
    Case("conv over one axis", 13, [("Flatten", "x", "f", {"axis": 2}), ("Unsqueeze", "f one", "u", {}), ("Conv", "u w", "y", {})],
         {"one": ints(1), "w": floats(2, 1, 5)}),
]  # fmt: skip

POOLS = [
    one("max pool", 12, "MaxPool", "max_pool2d", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    one("max pool dilated", 12, "MaxPool", "max_pool2d", kernel_shape=[2, 3], dilations=[2, 2]),
    one("max pool same upper", 12, "MaxPool", "max_pool2d", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    one("max pool same lower", 12, "MaxPool", "max_pool2d", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    one("max pool whole map", 12, "MaxPool", "adaptive_max_pool2d", kernel_shape=[6, 9]),
    one("mean pool", 11, "AveragePool", "avg_pool2d", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    one("mean pool counts padding", 11, "AveragePool", "avg_pool2d", kernel_shape=[3, 2], pads=[1, 0, 2, 1], count_include_pad=1),
    one("mean pool dilated", 19, "AveragePool", "torch:average_pool", kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 1, 0, 1]),
    one("mean pool dilated counts", 19, "AveragePool", None, kernel_shape=[3, 2], dilations=[2, 3], pads=[1] * 4, count_include_pad=1),
    one("mean pool same", 11, "AveragePool", "avg_pool2d", kernel_shape=[3, 4], strides=[2, 2], auto_pad="SAME_UPPER"),
    one("mean pool whole map", 11, "AveragePool", "global_avg_pool", kernel_shape=[6, 9]),
    one("global mean", 11, "GlobalAveragePool", "global_avg_pool"),
    one("global max", 11, "GlobalMaxPool", "adaptive_max_pool2d"),
    *[
        one(f"{op} ceil {size} {pads} {count}", 19, op, None, kernel_shape=[3, 2], strides=[2, 3], pads=list(pads), ceil_mode=1,
            shape=(1, 2, *size), **({"count_include_pad": count} if op == "AveragePool" else {}))
        for op, count in (("MaxPool", 0), ("AveragePool", 0), ("AveragePool", 1))
        for size, pads in (((6, 9), (0, 0, 0, 0)), ((7, 8), (1, 1, 1, 1)), ((6, 7), (0, 1, 1, 0)))
    ],
]  # fmt: skip

NORMS = [
    one("batch norm", 9, "BatchNormalization", "affine", extra={"s": floats(4), "b": floats(4), "m": floats(4), "v": floats(4) ** 2},
        epsilon=1e-3),
    Case("batch norm of a vector", 15, [("GlobalAveragePool", "x", "g", {}), ("Flatten", "g", "f", {}),
                                        ("BatchNormalization", "f s b m v", "y", {})],
         {"s": floats(4), "b": floats(4), "m": floats(4), "v": floats(4) ** 2}, ops="global_avg_pool flatten affine"),
    Case("batch norm of a sequence", 15, [("Reshape", "x to", "f", {}), ("BatchNormalization", "f s b m v", "y", {})],
         {"s": floats(4), "b": floats(4), "m": floats(4), "v": floats(4) ** 2, "to": ints(0, 0, -1)}),
    one("instance norm", 6, "InstanceNormalization", "torch:instance_norm", extra={"s": floats(4), "b": floats(4)}, epsilon=1e-4),
    one("layer norm", 17, "LayerNormalization", "torch:layer_norm", extra={"s": floats(6, 9), "b": floats(6, 9)}, axis=2),
    one("layer norm last axis", 17, "LayerNormalization", None, extra={"s": floats(9)}),
    one("group norm", 21, "GroupNormalization", None, extra={"s": floats(4), "b": floats(4)}, num_groups=2),
    one("lrn odd", 13, "LRN", "torch:local_response_norm", size=3, alpha=0.3, beta=0.6, bias=1.5),
    one("mean variance norm", 13, "MeanVarianceNormalization", None),
    one("lp norm", 11, "LpNormalization", None, axis=1, p=1),
    one("softmax 1", 11, "Softmax", "torch:softmax_flat"),
    one("softmax 1 last axis", 11, "Softmax", "softmax", axis=3),
    one("softmax 13", 13, "Softmax", "softmax"),
    one("softmax 13 channels", 13, "Softmax", "softmax", axis=1),
    one("log softmax 13", 13, "LogSoftmax", None, axis=-3),
    one("log softmax 1", 11, "LogSoftmax", None, axis=2),
]  # fmt: skip

SIXTH = 1 / 6
ACTIVATIONS = [
    one("relu", 13, "Relu", "act:relu"),
    one("leaky relu", 13, "LeakyRelu", "act:leaky_relu", alpha=0.2),
    one("leaky relu default", 13, "LeakyRelu", "act:leaky_relu"),
    one("prelu channels", 9, "PRelu", "act:prelu", extra={"s": floats(4, 1, 1)}),
    one("prelu one", 9, "PRelu", "act:prelu", extra={"s": floats(1)}),
    one("prelu columns", 9, "PRelu", "torch:prelu", extra={"s": floats(9)}),
    one("sigmoid", 13, "Sigmoid", "act:sigmoid"),
    one("hard sigmoid", 6, "HardSigmoid", "scalar scalar act:clamp"),
    one("hard sigmoid of torch", 6, "HardSigmoid", "act:hardsigmoid", alpha=SIXTH, low=-5.0),
    one("hard swish", 14, "HardSwish", "act:hardswish", low=-4.0),
    one("tanh", 13, "Tanh", "act:tanh"),
    one("elu", 6, "Elu", "act:elu", alpha=0.7),
    one("selu", 6, "Selu"),
    one("celu", 12, "Celu", alpha=0.6),
    one("thresholded relu", 10, "ThresholdedRelu", alpha=0.4),
    one("softplus", 1, "Softplus", "act:softplus"),
    one("softsign", 1, "Softsign"),
    one("mish", 18, "Mish", "act:mish"),
    one("gelu", 20, "Gelu", "act:gelu"),
    one("gelu tanh", 20, "Gelu", "act:gelu_tanh", approximate="tanh"),
    one("clip 6", 6, "Clip", "act:clamp", min=0.0, max=1.5),
    one("clip 6 low only", 6, "Clip", "act:relu", min=0.0),
    one("clip 11", 11, "Clip", "act:clamp", extra={"low": number(-0.5), "high": number(1.0)}),
    one("clip 11 high only", 11, "Clip", "act:clamp", extra={"low": None, "high": number(1.0)}),
    one("clip 11 no limits", 11, "Clip", ""),
    Case("clip with a computed limit", 13, [("ReduceMean", "x", "m", {"keepdims": 0}), ("Clip", "x m", "y", {})]),
    Case("silu", 13, [("Sigmoid", "x", "s", {}), ("Mul", "x s", "y", {})], ops="act:silu"),
    Case("silu turned, gate read twice", 13, [("Sigmoid", "x", "s", {}), ("Mul", "s x", "z", {}), ("Add", "z s", "y", {})],
         ops="act:sigmoid act:silu add"),
    Case("hardswish from hardsigmoid", 13, [("HardSigmoid", "x", "s", {"alpha": SIXTH}), ("Mul", "x s", "y", {})], ops="act:hardswish"),
    Case("hardswish from clip, divided first", 11, [("Add", "x three", "a", {}), ("Clip", "a zero six", "c", {}), ("Div", "c six", "d", {}),
                                                    ("Mul", "x d", "y", {})],
         {"three": number(3), "six": number(6), "zero": number(0)}, ops="act:hardswish", low=-4.0),
    Case("hardswish from clip, divided last", 11, [("Add", "three x", "a", {}), ("Clip", "a zero six", "c", {}), ("Mul", "x c", "d", {}),
                                                   ("Div", "d six", "y", {})],
         {"three": number(3), "six": number(6), "zero": number(0)}, ops="act:hardswish", low=-4.0),
    Case("gelu from erf, half last", 13, [("Div", "x r", "d", {}), ("Erf", "d", "e", {}), ("Add", "e one", "a", {}), ("Mul", "x a", "m",
        {}),
                                          ("Mul", "m half", "y", {})],
         {"r": number(2**0.5), "one": number(1), "half": number(0.5)}, ops="act:gelu"),
    Case("gelu from erf, half first", 13, [("Mul", "x r", "d", {}), ("Erf", "d", "e", {}), ("Add", "e one", "a", {}), ("Mul", "x half",
        "m", {}),
                                           ("Mul", "m a", "y", {})],
         {"r": number(0.5**0.5), "one": number(1), "half": number(0.5)}, ops="act:gelu"),
    Case("gelu from erf, half of the gate", 13, [("Mul", "x r", "d", {}), ("Erf", "d", "e", {}), ("Add", "e one", "a", {}),
                                                 ("Mul", "a half", "m", {}), ("Mul", "x m", "y", {})],
         {"r": number(0.5**0.5), "one": number(1), "half": number(0.5)}, ops="act:gelu"),
    Case("mish from softplus", 13, [("Softplus", "x", "s", {}), ("Tanh", "s", "t", {}), ("Mul", "x t", "y", {})], ops="act:mish"),
    Case("no gelu with another factor", 13, [("Div", "x r", "d", {}), ("Erf", "d", "e", {}), ("Add", "e one", "a", {}), ("Mul", "x a", "m",
        {}),
                                             ("Mul", "m half", "y", {})], {"r": number(1.5), "one": number(1), "half": number(0.5)}),
]  # fmt: skip

ARITHMETIC = [
    *[one(f"{op} scalar", 13, op, ops, extra={"k": number(1.7)}) for op, ops in (
        ("Add", "scalar"), ("Sub", "scalar"), ("Mul", "scalar"), ("Div", "scalar"), ("Max", "act:clamp"), ("Min", "act:clamp"))],
    *[Case(f"scalar {op} x", 13, [(op, "k x", "y", {})], {"k": floats(1, 1, 1)}, ops="scalar", low=0.5)
        for op in ("Add", "Sub", "Mul", "Div")],
    *[one(f"{op} channels", 13, op, "affine", extra={"k": floats(1, 4, 1, 1)}) for op in ("Add", "Sub", "Mul", "Div")],
    *[Case(f"channels {op} x", 13, [(op, "k x", "y", {})], {"k": floats(4, 1, 1)}, ops=ops, low=0.5) for op, ops in (
        ("Add", "affine"), ("Sub", "affine"), ("Mul", "affine"), ("Div", "div"))],
    *[one(f"{op} map", 13, op, None, extra={"k": floats(4, 6, 9)}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")],
    *[Case(f"{op} of two", 13, [("Tanh", "x", "t", {}), (op, "x t", "y", {})], ops=f"act:tanh {ops}") for op, ops in (
        ("Add", "add"), ("Sub", "sub"), ("Mul", "mul"), ("Div", "div"), ("Max", "maximum"), ("Min", "minimum"))],
    one("pow", 13, "Pow", "scalar", extra={"k": number(3.0)}),
    one("pow channels", 13, "Pow", None, extra={"k": floats(4, 1, 1)}, low=0.5),
    Case("two to the x", 13, [("Pow", "k x", "y", {})], {"k": number(2.0)}),
    Case("x to the x", 13, [("Pow", "x x", "y", {})], low=0.5),
    one("times one", 13, "Mul", "", extra={"k": number(1.0)}),
    one("max with zero", 13, "Max", "act:relu", extra={"k": number(0.0)}),
    Case("max of three", 13, [("Neg", "x", "n", {}), ("Max", "x n k", "y", {})], {"k": number(0.3)}),
    Case("sum and mean of three", 13, [("Neg", "x", "n", {}), ("Abs", "x", "a", {}), ("Sum", "x n a", "s", {}), ("Mean", "x a s", "y",
        {})]),
    Case("constant of more axes", 13, [("Reshape", "x to", "r", {}), ("Add", "r k", "y", {})], {"to": ints(-1), "k": floats(2, 1)}),
    *[one(f"{op}", 13, op, f"act:{op.lower()}", low=0.1) for op in ("Exp", "Sqrt", "Abs", "Neg")],
    *[one(f"{op}", 13, op, None, low=0.1) for op in ("Floor", "Ceil", "Round", "Sign", "Log", "Erf", "Sin", "Cos", "Reciprocal")],
    Case("where", 16, [("Greater", "x k", "g", {}), ("Neg", "x", "n", {}), ("Where", "g x n", "y", {})], {"k": number(0.2)}),
    Case("comparisons", 16, [("LessOrEqual", "x k", "g", {}), ("Not", "g", "n", {}), ("Cast", "n", "y", {"to": TensorProto.FLOAT})],
         {"k": number(0.2)}),
    Case("modulo", 13, [("Mod", "x k", "y", {"fmod": 1})], {"k": number(0.7)}),
]  # fmt: skip

PRODUCTS = [
    *[Case(f"mean {opset} {keep}", opset, [("ReduceMean", "x" if opset < 18 else "x a", "y",
        {"keepdims": keep, **({"axes": [2, 3]} if opset < 18 else {})})],
           {"a": ints(2, 3)}, ops="global_avg_pool") for opset in (13, 18) for keep in (0, 1)],
    *[Case(f"max {keep}", 13, [("ReduceMax", "x", "y", {"axes": [-1, -2], "keepdims": keep})], ops=ops) for keep, ops in (
        (0, "adaptive_max_pool2d flatten"), (1, "adaptive_max_pool2d"))],
    Case("sum 13", 13, [("ReduceSum", "x a", "y", {})], {"a": ints(2, 3)}, ops="global_avg_pool scalar"),
    Case("sum 11", 11, [("ReduceSum", "x", "y", {"axes": [1]})], ops="torch:reduce"),
    Case("reduce nothing", 18, [("ReduceSum", "x", "y", {"noop_with_empty_axes": 1})]),
    *[one(f"{op}", 13, op, None, axes=[1, 3], keepdims=0, low=0.5) for op in (
        "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
            "ReduceLogSumExp")],
    one("reduce all", 13, "ReduceMean", None, keepdims=0),
    one("arg max", 13, "ArgMax", None, axis=1),
    one("arg min last", 13, "ArgMin", None, axis=2, select_last_index=1, keepdims=0),
    Case("gemm", 13, [("GlobalAveragePool", "x", "g", {}), ("Flatten", "g", "f", {}), ("Gemm", "f w b", "y", {"transB": 1})],
         {"w": floats(5, 4), "b": floats(5)}, ops="global_avg_pool flatten linear"),
    Case("gemm with factors", 13, [("GlobalAveragePool", "x", "g", {}), ("Flatten", "g", "f", {}),
                                   ("Gemm", "f w b", "y", {"alpha": 0.5, "beta": 2.0})],
         {"w": floats(4, 5), "b": floats(1)}, ops="global_avg_pool flatten linear"),
    Case("gemm turned", 13, [("GlobalAveragePool", "x", "g", {}), ("Flatten", "g", "f", {}), ("Gemm", "f w", "y", {"transA": 1})],
         {"w": floats(2, 5)}),
    Case("matmul", 13, [("MatMul", "x w", "y", {})], {"w": floats(9, 5)}, ops="linear"),
    Case("matmul and bias", 13, [("MatMul", "x w", "m", {}), ("Add", "b m", "y", {})], {"w": floats(9, 5), "b": floats(5)}, ops="linear"),
    Case("matmul read twice", 13, [("MatMul", "x w", "m", {}), ("Add", "b m", "a", {}), ("Mul", "a m", "y", {})],
         {"w": floats(9, 5), "b": floats(5)}, ops="linear add mul"),
    Case("matmul from the left", 13, [("MatMul", "w x", "y", {})], {"w": floats(5, 6)}),
    Case("matmul of two", 13, [("Transpose", "x", "t", {"perm": [0, 1, 3, 2]}), ("MatMul", "x t", "y", {})]),
]  # fmt: skip

TO_SHUFFLE = {"a": ints(0, 2, 2, 6, 9), "b": ints(0, -1, 6, 9)}
STRUCTURE = [
    one("flatten", 13, "Flatten", "flatten"),
    one("flatten last axes", 13, "Flatten", "torch:reshape", axis=-1),
    one("reshape to a vector", 13, "Reshape", "flatten", extra={"s": ints(0, -1)}),
    one("reshape nothing", 13, "Reshape", "", extra={"s": ints(0, 4, -1, 9)}),
    one("reshape", 13, "Reshape", "torch:reshape", extra={"s": ints(0, 2, -1, 3)}),
    one("transpose", 13, "Transpose", "torch:permute", perm=[0, 2, 3, 1]),
    one("transpose all", 13, "Transpose", "torch:permute"),
    Case("transpose there and back", 13, [("Transpose", "x", "t", {"perm": [0, 2, 3, 1]}), ("Transpose", "t", "u", {"perm": [0, 3, 1, 2]}),
                                          ("Relu", "u", "y", {})], ops="act:relu"),
    one("squeeze 1", 11, "Squeeze", None, axes=[1], shape=(2, 1, 3, 4)),
    one("squeeze 13", 13, "Squeeze", None, extra={"a": ints(-3)}, shape=(2, 1, 3, 4)),
    one("squeeze all", 13, "Squeeze", None, shape=(1, 3, 1, 4)),
    one("unsqueeze 1", 11, "Unsqueeze", None, axes=[0, 3]),
    one("unsqueeze 13", 13, "Unsqueeze", None, extra={"a": ints(-1, 1)}),
    Case("pool, squeeze", 13, [("GlobalAveragePool", "x", "g", {}), ("Squeeze", "g a", "y", {})], {"a": ints(2, 3)},
         ops="global_avg_pool flatten"),
    Case("channel shuffle", 13, [("Reshape", "x a", "r", {}), ("Transpose", "r", "t", {"perm": [0, 2, 1, 3, 4]}), ("Reshape", "t b", "y",
        {})],
         TO_SHUFFLE, ops="channel_shuffle"),
    Case("every second channel of one frame", 13, [
        ("Reshape", "x a", "r", {}), ("Transpose", "r", "t", {"perm": [1, 0, 2]}), ("Reshape", "t b", "s", {}),
        ("Gather", "s zero", "p", {"axis": 0}), ("Gather", "s one", "q", {"axis": 0}), ("Sub", "p q", "y", {})],
        {"a": ints(2, 2, 54), "b": ints(2, -1, 2, 6, 9), "zero": np.array(0),
            "one": np.array(1)}, shape=(1, 4, 6, 9), ops="slice slice sub"),
    Case("rows and columns exchanged", 13, [("Reshape", "x a", "r", {}), ("Transpose", "r", "t", {"perm": [0, 2, 1]}), ("Reshape", "t b",
        "y", {})],
         {"a": ints(0, 4, 54), "b": ints(0, 4, 6, 9)}),
    Case("pixel shuffle by hand", 13, [("Reshape", "x a", "r", {}), ("Transpose", "r", "t", {"perm": [0, 1, 4, 2, 5, 3]}),
                                       ("Reshape", "t b", "y", {})],
         {"a": ints(0, 1, 2, 2, 6, 9), "b": ints(0, 1, 12, 18)}, ops="pixel_shuffle"),
    Case("pixel unshuffle by hand", 13, [("Reshape", "x a", "r", {}), ("Transpose", "r", "t", {"perm": [0, 1, 3, 5, 2, 4]}),
                                         ("Reshape", "t b", "y", {})],
         {"a": ints(0, 4, 3, 2, 4, 2), "b": ints(0, 16, 3, 4)}, shape=(2, 4, 6, 8), ops="pixel_unshuffle"),
    *[one(f"depth to space {mode} {c}", 13, "DepthToSpace", ops, blocksize=2, mode=mode, shape=(2, c, 3, 4)) for mode, c, ops in (
        ("DCR", 12, "channel_shuffle pixel_shuffle"), ("CRD", 12, "pixel_shuffle"), ("DCR", 4, "pixel_shuffle"))],
    *[one(f"space to depth {c}", 13, "SpaceToDepth", ops, blocksize=2, shape=(2, c, 6, 4)) for c, ops in (
        (3, "pixel_unshuffle channel_shuffle"), (1, "pixel_unshuffle"))],
    one("identity", 13, "Identity", ""),
    one("dropout", 13, "Dropout", ""),
    one("cast", 13, "Cast", None, to=TensorProto.INT64, low=-3.5),
    Case("concat", 13, [("Relu", "x", "r", {}), ("Concat", "x r k", "y", {"axis": -3})], {"k": floats(2, 1, 6, 9)}, ops="act:relu cat"),
    Case("split 11", 11, [("Split", "x", "a b", {"axis": 1, "split": [1, 3]}), ("Mul", "a b", "y", {})], ops="slice slice mul"),
    Case("split 13", 13, [("Split", "x s", "a b", {"axis": 3})], {"s": ints(4, 5)}, outputs="a b"),
    Case("split in halves", 13, [("Split", "x", "a b", {"axis": 1})], outputs="b a"),
    Case("split 18", 18, [("Split", "x", "a b", {"axis": 3, "num_outputs": 2})], outputs="a b"),
    Case("slice 1", 9, [("Slice", "x", "y", {"starts": [1, -4], "ends": [9999, -1], "axes": [1, 3]})], ops="slice slice"),
    one("slice 10", 10, "Slice", "slice slice", extra={"s": ints(1, 0), "e": ints(-1, 2**62), "a": ints(1, -1), "t": ints(1, 2)}),
    one("slice all axes", 13, "Slice", None, extra={"s": ints(0, 1, 2, 3), "e": ints(2, 3, 4, 5)}),
    one("slice backwards", 13, "Slice", None, extra={"s": ints(-1, 7), "e": ints(-(2**62), 1), "a": ints(1, 3), "t": ints(-1, -2)}),
    one("gather one", 13, "Gather", None, extra={"i": np.array(-1)}, axis=1),
    one("gather range", 13, "Gather", "slice", extra={"i": ints(1, 3)}, axis=1),
    one("gather shuffle", 13, "Gather", "channel_shuffle", extra={"i": ints(0, 2, 1, 3)}, axis=1),
    one("gather any", 13, "Gather", None, extra={"i": ints(3, 0, 0)}, axis=1),
    one("gather table", 13, "Gather", None, extra={"i": np.array([[0, -1], [2, 1]])}, axis=2),
    one("gather elements", 13, "GatherElements", None, extra={"i": np.zeros((2, 4, 6, 2), np.int64) - 1}, axis=3),
    one("expand", 13, "Expand", "torch:expand", extra={"s": ints(4, 6, 9)}, shape=(2, 1, 6, 1)),
    one("expand nothing", 13, "Expand", "", extra={"s": ints(1, 1, 9)}),
    one("tile", 13, "Tile", None, extra={"r": ints(1, 2, 1, 3)}),
    one("cumulative sum", 14, "CumSum", None, extra={"a": np.array(2)}, exclusive=1, reverse=1),
    *[one(f"pad {mode} {opset}", opset, "Pad", "pad", mode=mode, **(
        {"pads": [0, 0, 1, 2, 0, 0, 3, 0]} if opset < 11 else {"extra": {"p": ints(0, 0, 1, 2, 0, 0, 3, 0)}}))
      for mode, opset in (("constant", 2), ("reflect", 2), ("edge", 2), ("constant", 11), ("reflect", 13), ("edge", 13), ("wrap", 19))],
    one("pad value 2", 2, "Pad", "pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=1.5),
    one("pad value 11", 11, "Pad", "pad", extra={"p": ints(0, 0, 1, 1, 0, 0, 1, 1), "v": number(-0.5)}),
    one("pad axes 18", 18, "Pad", "pad", extra={"p": ints(1, 2, 0, 3), "v": number(0.5), "a": ints(-1, 2)}),
    one("pad channels", 13, "Pad", "torch:pad", extra={"p": ints(0, 1, 0, 0, 0, 2, 0, 0)}),
    one("pad crops", 13, "Pad", "torch:pad", extra={"p": ints(0, 0, -1, 1, 0, 0, 0, -2)}),
    *[one(f"pad channels {mode}", 19, "Pad", None, extra={"p": ints(0, 1, 2, 0, 0, 2, 0, 0)}, mode=mode)
        for mode in ("reflect", "edge", "wrap")],
    one("pad nothing", 13, "Pad", "", extra={"p": ints(*[0] * 8)}),
    Case("scatter", 13, [("ScatterND", "x i u", "y", {})], {"i": np.array([[0, 1], [1, 3]]), "u": floats(2, 6, 9)}),
    Case("sizes computed from shapes", 13, [
        ("Shape", "x", "s", {}), ("Gather", "s two", "h", {"axis": 0}), ("Gather", "s three", "w", {"axis": 0}), ("Mul", "h w", "hw", {}),
        ("Unsqueeze", "hw zero", "u", {}), ("Concat", "nc u", "to", {"axis": 0}), ("Reshape", "x to", "r", {}),
        ("ConstantOfShape", "s", "one", {"value": helper.make_tensor("v", TensorProto.FLOAT, [1], [0.25])}),
        ("Size", "x", "n", {}), ("Cast", "n", "nf", {"to": TensorProto.FLOAT}), ("Reshape", "r s", "b", {}), ("Add", "b one", "c", {}),
        ("Div", "c nf", "y", {})],
        {"two": np.array(2), "three": np.array(3), "zero": ints(0), "nc": ints(2, 4)}),
    Case("integer arithmetic of sizes", 15, [
        ("Shape", "x", "hw", {"start": 2}), ("Div", "hw two", "d", {}), ("Sub", "d hw", "s", {}), ("Max", "s zero", "m", {}), ("Add",
            "m d", "e", {}),
        ("Range", "z three one", "g", {}), ("ReduceProd", "e", "p", {"keepdims": 0}), ("Equal", "e e", "q", {}), ("Where", "q e d", "f",
            {}),
        ("Slice", "x zz f hwaxes", "y", {})],
        {"two": ints(2, 2), "zero": ints(0, 0), "z": np.array(0), "three": np.array(3), "one": np.array(1), "zz": ints(0, 0),
            "hwaxes": ints(2, 3)}),
    Case("grid sample", 16, [("Slice", "x s e", "a", {}), ("Transpose", "a", "g", {"perm": [0, 2, 3, 1]}),
                             ("GridSample", "x g", "y", {"mode": "bilinear", "padding_mode": "border"})], {"s": ints(0, 0),
                             "e": ints(9, 2)}),
]  # fmt: skip


def _resize(opset: int, mode: str, factor: tuple[float, float] | None, ops: str | None, **attrs: Any) -> Case:
    """Resize by factors, or to (11, 5) if there are none."""
    name = f"resize {opset} {mode} {factor or 'sizes'} " + " ".join(map(str, attrs.values()))
    scales = None if factor is None else np.array([1, 1, *factor], np.float32)
    if opset == 10:
        return one(name, 10, "Resize", ops, extra={"s": scales}, mode=mode)
    absent = np.zeros(0, np.float32) if opset < 13 else None  # how an input is left out: by no elements, later by no name
    extra: dict[str, Any] = {"roi": absent, "s": absent if scales is None else scales}
    if scales is None:
        extra["to"] = ints(2, 4, 11, 5)
    return one(name, opset, "Resize", ops, extra=extra, mode=mode, **attrs)


_CTM = "coordinate_transformation_mode"
RESIZES = [
    *[one(f"upsample 9 {mode} {f}", 9, "Upsample", ops, extra={"s": np.array([1, 1, *f], np.float32)}, mode=mode)
      for mode, f, ops in (("nearest", (2, 3), "upsample"), ("linear", (2, 2), "torch:resample"), ("nearest", (1.5, 2), "upsample"))],
    one("upsample 7", 7, "Upsample", "upsample", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"),
    _resize(10, "nearest", (2, 2), "upsample"),
    _resize(10, "nearest", (0.5, 0.7), None),
    _resize(10, "linear", (2, 2), "torch:resample"),
    *[_resize(opset, "nearest", (2, 2), "upsample", **{_CTM: "asymmetric", "nearest_mode": "floor"}) for opset in (11, 13, 18)],
    *[_resize(13, "nearest", f, ops, **{_CTM: c, "nearest_mode": m})
      for c in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
          for m in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
      for f, ops in (((2, 3), None), ((0.6, 1.5), None), (None, None))],
    *[_resize(13, "nearest", (2, 2), "upsample", **{_CTM: "half_pixel", "nearest_mode": m})
        for m in ("round_prefer_floor", "round_prefer_ceil")],
    *[_resize(opset, mode, f, "upsample", **{_CTM: c}) for opset, mode, c in (
        (11, "linear", "half_pixel"), (13, "linear", "align_corners"), (18, "linear", "pytorch_half_pixel"), (13, "cubic", "half_pixel"),
        (13, "cubic", "align_corners")) for f in ((2, 2), (1.5, 3), None)],
    *[_resize(13, mode, f, None, **{_CTM: c}) for mode in ("linear", "cubic") for c in ("asymmetric", "half_pixel")
        for f in ((0.5, 0.4), (1.3, 2.1))],
    _resize(13, "cubic", (2, 2), "torch:resample", cubic_coeff_a=-0.5),
    _resize(13, "cubic", (2, 2), "torch:resample", exclude_outside=1),
    _resize(19, "linear", (1.3, 0.7), None, **{_CTM: "half_pixel_symmetric"}),
    _resize(18, "linear", (0.4, 0.5), "torch:resample", antialias=1),
    _resize(18, "cubic", (0.4, 0.5), None, antialias=1),
    one("resize axes 18", 18, "Resize", "upsample", extra={"roi": None, "s": np.array([2, 3], np.float32)}, mode="nearest", axes=[2, 3],
        **{_CTM: "asymmetric", "nearest_mode": "floor"}),
    *[one(f"resize aspect {policy}", 18, "Resize", None, extra={"roi": None, "s": None, "to": ints(12, 13)}, mode="linear", axes=[2, 3],
          keep_aspect_ratio_policy=policy) for policy in ("not_larger", "not_smaller")],
    one("resize nothing", 13, "Resize", None, extra={"roi": None, "s": np.ones(4, np.float32)}, mode="linear"),
]  # fmt: skip

CASES = [*CONVOLUTIONS, *POOLS, *NORMS, *ACTIVATIONS, *ARITHMETIC, *PRODUCTS, *STRUCTURE, *RESIZES]
