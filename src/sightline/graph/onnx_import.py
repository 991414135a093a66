"""ONNX files onto the canonical graph: reading and checking the file, and the model object that makes a graph per input size.

What belongs here: the file, its parsed form, and everything that can be said before a size is known. What does not: the meaning of
ops (`onnx_layers.py`, `onnx_structure.py`) and building the graph (`onnx_builder.py`).

The package ``onnx`` is used for parsing only, and imported only when a file is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.errors import BackendError, CaptureError, MediaError, ShapeError
from sightline.graph import onnx_layers, onnx_structure
from sightline.graph.ir import Graph
from sightline.graph.onnx_builder import HANDLERS, Block, Builder, Call

# Importing the two modules registers their handlers.
_HANDLER_MODULES = (onnx_layers, onnx_structure)
_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class OnnxModel:
    """A network read from an ONNX file, ready to be mapped onto a graph for any input size.

    Use it through `load_onnx`. It holds parsed values only (no protocol buffer), so it can be copied and pickled; all graphs made
    from it share its weights.

    Attributes:
        name: file name, for messages and reports.
        input_name: ONNX name of the frame.
        output_names: ONNX names of the results, in the order of the graph's outputs.
        declared_shape: shape of the frame that the file declares, in the file's own order of axes, None where it leaves a size
            open. Only the number of channels binds: exporters write the size of their example there.
        opset: version of ONNX's op set that the file asks for.
        channels_last: whether the network itself reads (n, h, w, c). Graphs take (n, c, h, w) all the same.
        block: the parsed network.
    """

    name: str
    input_name: str
    output_names: tuple[str, ...]
    declared_shape: tuple[int | None, ...]
    opset: int
    channels_last: bool
    block: Block

    @property
    def channels(self) -> int | None:
        """Number of channels of the frame; None if the file leaves it open."""
        return self.declared_shape[3 if self.channels_last else 1]

    def graph(self, n: int, c: int, h: int, w: int) -> Graph:
        """Map the network onto the canonical graph for one input size.

        Everything that depends only on the size (Shape, Gather, Concat, sizes of Resize and Reshape ...) is computed here. Batch
        norm in training mode is taken in eval mode; half and double precision become float32.

        Args:
            n: number of frames in a batch.
            c: channels.
            h: height in pixels.
            w: width in pixels.

        Returns:
            A graph whose input is a float32 frame (n, c, h, w). Several outputs come as a tuple.

        Raises:
            ShapeError: if the network cannot take this size; the message names the op at which it fails.
            CaptureError: if an op is used in a form that is not supported.
        """
        for label, value in zip("nchw", (n, c, h, w), strict=True):
            if value < 1:
                raise ShapeError(f"{label}: expected a positive number, got {value}")
        if self.channels is not None and c != self.channels:
            raise ShapeError(f"c: {self.name} takes frames of {self.channels} channels, got {c}")
        order = (0, 3, 1, 2) if self.channels_last else (0, 1, 2, 3)
        builder = Builder(self.name, (n, c, h, w), tuple(self.declared_shape[axis] for axis in order))
        with torch.no_grad():
            return builder.build(self.block, self.input_name, self.channels_last)


def load_onnx(path: str | os.PathLike[str], size: tuple[int, int, int, int] | None = None) -> OnnxModel:
    """Read a convolutional network from an ONNX file.

    Initializers of any float type become float32 tensors. Weights in separate files beside the model (external data) are read too.

    Args:
        path: the file.
        size: (n, c, h, w); if given, the network is mapped onto a graph for this size once, so that whatever stands against it is
            raised here and not later.

    Returns:
        The model; ``.graph(n, c, h, w)`` gives the graph for a size.

    Raises:
        MediaError: if the file cannot be read.
        CaptureError: if it is no ONNX file, is damaged, has no image input or several inputs, or uses an op that is not known.
        ShapeError: if ``size`` does not fit.
        BackendError: if the package onnx is not installed.
    """
    file = Path(path)
    if not file.is_file():
        what = "it is a folder" if file.is_dir() else "there is no such file"
        raise MediaError(f"path: cannot read {str(path)!r}: {what}; give the path of an .onnx file")
    try:
        import onnx
        import onnx.external_data_helper
        import onnx.inliner
        import onnx.numpy_helper
    except ImportError as error:
        raise BackendError(f"reading {file.name} needs the package onnx ({error}): pip install 'sightline[onnx]'") from error
    proto = _read(onnx, file)
    model = _parse(_Parser(onnx, file, {entry.domain: entry.version for entry in proto.opset_import}), proto)
    if size is not None:
        model.graph(*size)
    return model


def _read(onnx: ModuleType, file: Path) -> Any:
    """The protocol buffer, with external data and with local functions written out."""
    try:
        proto = onnx.load(file, load_external_data=False)
    except OSError as error:
        raise MediaError(f"path: cannot read {str(file)!r}: {error.strerror or error}") from error
    except Exception as error:  # the protocol buffer library has several errors of its own for damaged content
        raise CaptureError(f"{file.name} is not an ONNX file, or is damaged ({_first_line(error)}); export or download it again") from error
    if not proto.graph.node or not proto.opset_import:
        raise CaptureError(f"{file.name} is not an ONNX file, or is damaged (it holds no network); export or download it again")
    try:
        onnx.external_data_helper.load_external_data_for_model(proto, str(file.parent))
    except Exception as error:  # missing, too short, or outside of the folder: each another class
        reason = _first_line(error)
        raise MediaError(
            f"{file.name} keeps its weights in another file that cannot be read ({reason}); put it beside the model"
        ) from error
    if proto.functions:
        try:
            proto = onnx.inliner.inline_local_functions(proto)
        except Exception as error:
            raise CaptureError(f"{file.name}: its local functions cannot be written out ({_first_line(error)})") from error
    return proto


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Parser:
    """Protocol buffers to plain values."""

    def __init__(self, onnx: ModuleType, file: Path, opsets: dict[str, int]) -> None:
        self.onnx = onnx
        self.file = file.name
        self.opsets = opsets

    def tensor(self, proto: Any) -> Tensor:
        """A TensorProto as a tensor: floats as float32, integers that torch does not compute with as int64."""
        try:
            array = np.asarray(self.onnx.numpy_helper.to_array(proto))
        except Exception as error:
            raise CaptureError(f"{self.file}: the constant {proto.name!r} is damaged ({_first_line(error)}); export it again") from error
        dtype = onnx_structure.DTYPES.get(proto.data_type)
        if dtype is None:
            kind = self.onnx.TensorProto.DataType.Name(proto.data_type)
            raise CaptureError(f"{self.file}: the constant {proto.name!r} is of type {kind}, which is not supported; export it in float32")
        if dtype.is_floating_point:
            return torch.from_numpy(np.array(array, dtype=np.float32))
        return torch.from_numpy(np.array(array, dtype=str(dtype).removeprefix("torch.")))

    def attribute(self, proto: Any) -> Any:
        """The value of an attribute, None for kinds that no op here uses."""
        kinds = self.onnx.AttributeProto
        if proto.type == kinds.TENSOR:
            return self.tensor(proto.t)
        if proto.type == kinds.GRAPH:
            return self.block(proto.g)
        if proto.type in (kinds.FLOAT, kinds.INT, kinds.STRING, kinds.FLOATS, kinds.INTS):
            value = self.onnx.helper.get_attribute_value(proto)
            return value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, (int, float)) else list(value)
        return None

    def call(self, proto: Any) -> Call:
        """One node."""
        attrs = {attribute.name: self.attribute(attribute) for attribute in proto.attribute}
        domain = "" if proto.domain in _DOMAINS else proto.domain
        name = proto.name or next(filter(None, proto.output), proto.op_type)
        version = self.opsets.get(domain, self.opsets.get("ai.onnx", 1))
        return Call(proto.op_type, domain, version, name, tuple(proto.input), tuple(proto.output), attrs)

    def block(self, proto: Any) -> Block:
        """A graph or sub-graph, without nodes that its outputs do not need."""
        outputs = tuple(output.name for output in proto.output)
        if proto.sparse_initializer:
            raise CaptureError(f"{self.file} holds sparse constants, which are not supported; export it with dense ones")
        needed, kept = set(outputs), []
        for node in reversed(proto.node):
            if needed.intersection(node.output):
                call = self.call(node)
                needed.update(call.reads())
                kept.append(call)
        constants = {entry.name: self.tensor(entry) for entry in proto.initializer if entry.name in needed}
        return Block(tuple(reversed(kept)), constants, outputs)


def _parse(parser: _Parser, proto: Any) -> OnnxModel:
    block = parser.block(proto.graph)
    if not block.outputs:
        raise CaptureError(f"{parser.file} names no outputs, so it computes nothing; export it again")
    _check_ops(parser.file, block)
    entry = _frame_input(parser, proto.graph, block)
    declared = _declared_shape(entry)
    if declared is not None and len(declared) != 4:
        raise CaptureError(f"{parser.file}: its input {entry.name!r} has {_words(declared)}; expected an image (n, c, h, w)")
    shape = declared or (None,) * 4
    last = _channels_last(shape, entry.name, block)
    opset = parser.opsets.get("", parser.opsets.get("ai.onnx", 1))
    return OnnxModel(parser.file, entry.name, block.outputs, shape, opset, last, block)


def _check_ops(file: str, block: Block) -> None:
    for call in block.calls:
        if call.domain or call.op not in HANDLERS:
            raise CaptureError(
                f"{file}: the op {call.op!r} (domain {call.domain or 'ai.onnx'!r}, version {call.version}, node {call.name!r}) is not "
                "supported; export the network without it, for example without its postprocessing"
            )
        for value in call.attrs.values():
            if isinstance(value, Block):
                _check_ops(file, value)


def _frame_input(parser: _Parser, graph: Any, block: Block) -> Any:
    """The one input that is not an initializer and that something reads."""
    read = Counter(name for call in block.calls for name in call.reads()) + Counter(block.outputs)
    stored = {entry.name for entry in graph.initializer}
    inputs = [entry for entry in graph.input if entry.name not in stored and read[entry.name]]
    if not inputs:
        raise CaptureError(f"{parser.file} has no input, so there is nothing to show it; export it with an image as its input")
    if len(inputs) > 1:
        listed = ", ".join(f"{entry.name!r} {_words(_declared_shape(entry))}" for entry in inputs)
        raise CaptureError(f"{parser.file} has {len(inputs)} inputs ({listed}); only networks with one image as their input are supported")
    return inputs[0]


def _declared_shape(entry: Any) -> tuple[int | None, ...] | None:
    """Declared shape of an input, None for open sizes; None altogether if it declares none."""
    kind = entry.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim)


def _words(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return "of any shape"
    return f"{len(shape)} axes ({', '.join('?' if size is None else str(size) for size in shape)})"


def _channels_last(shape: Sequence[int | None], name: str, block: Block) -> bool:
    """Whether the frame is (n, h, w, c): its last axis looks like channels, its second does not, or it is turned at once."""
    readers = [call for call in block.calls if name in call.inputs]
    turned = bool(readers) and all(call.op == "Transpose" and list(call.attrs.get("perm") or ()) == [0, 3, 1, 2] for call in readers)
    return turned or (shape[3] in (1, 3, 4) and shape[1] not in (None, 1, 3, 4))
