"""From a network to its report: `analyze`, and the walk over the graph.

What belongs here: getting a graph out of whatever is given, walking it, counting parameters. What does not: what operations do
(`propagate.py`, `opaque.py`), what the report answers (`report.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from sightline.errors import CaptureError, ShapeError
from sightline.fields import views
from sightline.fields.layer import LayerField, axis_fields, worst
from sightline.fields.propagate import Step, view_of
from sightline.fields.report import Report
from sightline.fields.views import View
from sightline.graph.ir import Graph, Node
from sightline.graph.rules import rule_of, windows

InputShape = Sequence[int] | Sequence[Sequence[int] | Tensor] | Mapping[str, Sequence[int] | Tensor]


def analyze(model: Any, input_shape: InputShape | None = None, *, ignore_gates: bool = False, of: int = 0) -> Report:
    """Say what every layer of a network can see.

    Nothing is computed: the network is captured on fake tensors, in eval mode, and left as it was (flags, buffers, gradients, random
    state). A model on the meta device will do.

    Args:
        model: an ``nn.Module``, a `sightline.graph.ir.Graph`, an exported program, the path of an ``.onnx`` or ``.pt2`` file, what
            `sightline.graph.onnx_import.load_onnx` returned, a Keras 3 model, or a `sightline.fields.Sketch`.
        input_shape: (n, c, h, w); or a sequence of several such shapes or example tensors, or a mapping from parameter names of the
            model's forward to them. None: (1, 3, 224, 224), or what the model itself says.
        ignore_gates: leave out squeeze-excite gates and other products with something that sees the whole input, and
            statistics taken over whole maps (group norm, instance norm). They make every later layer global.
        of: with several inputs, the one whose cells are counted.

    Returns:
        The report.

    Raises:
        CaptureError: the model cannot be captured; the message says why and what to do.
        ShapeError: a shape that is none, or that the model does not take.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, padding=1))
        >>> report = analyze(net, (1, 3, 64, 64))
        >>> layer = report.layers["2"]
        >>> layer.size, layer.stride, layer.start, layer.status
        ((19, 19), (4, 4), (-9, -9), 'exact')
    """
    graph = graph_of(model, input_shape)
    module = model if isinstance(model, nn.Module) and not _is_keras(model) else None
    return analyze_graph(graph, ignore_gates=ignore_gates, of=of, model=module)


def graph_of(model: Any, input_shape: InputShape | None = None) -> Graph:
    """The graph of anything that `analyze` takes."""
    if isinstance(model, Graph):
        return model
    shape = (1, 3, 224, 224) if input_shape is None else input_shape
    if isinstance(model, nn.Module) and not _is_keras(model):
        return _captured(model, shape)
    if isinstance(model, torch.export.ExportedProgram):  # noqa: TID251 - only asked for its type
        from sightline.graph.capture import load_exported

        return load_exported(model)
    if isinstance(model, (str, Path)):
        return _from_file(Path(model), input_shape)
    if hasattr(model, "block") and callable(getattr(model, "graph", None)):
        return _onnx_graph(model, input_shape)
    if callable(getattr(model, "to_graph", None)):
        built: Graph = model.to_graph(None if input_shape is None else tuple(shape))
        return built
    if _is_keras(model):
        from sightline.fields.keras_import import keras_graph

        sizes = None if input_shape is None else tuple(int(size) for size in cast("Sequence[int]", input_shape))
        return keras_graph(model, sizes)
    raise CaptureError(
        f"model: expected a torch.nn.Module, a captured graph, an exported program, an .onnx or .pt2 file, a Keras model or a Sketch, "
        f"got {type(model).__name__}"
    )


def _is_keras(model: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == "keras" for kind in type(model).__mro__)


def _from_file(path: Path, input_shape: InputShape | None) -> Graph:
    if not path.is_file():
        raise CaptureError(f"model: there is no file {str(path)!r}; check the path")
    if path.suffix.lower() == ".onnx":
        from sightline.graph.onnx_import import load_onnx

        return _onnx_graph(load_onnx(path), input_shape)
    if path.suffix.lower() == ".pt2":
        from sightline.graph.capture import load_exported

        try:
            program = torch.export.load(path)  # noqa: TID251 - reads a saved program, traces nothing
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise CaptureError(f"model: {str(path)!r} is not a program saved by torch.export.save ({reason})") from error
        return load_exported(program)
    raise CaptureError(f"model: {str(path)!r} is of a kind that is not read; expected .onnx or .pt2")


def _onnx_graph(model: Any, input_shape: InputShape | None) -> Graph:
    declared = tuple(model.declared_shape)
    order = (0, 3, 1, 2) if model.channels_last else (0, 1, 2, 3)
    size = [declared[axis] or (1, 3, 224, 224)[position] for position, axis in enumerate(order)]
    size[0] = 1  # work is told per image; exporters write the batch of their example
    if input_shape is not None:
        size = [int(value) for value in input_shape]  # type: ignore[arg-type]
    graph: Graph = model.graph(*size)
    return graph


def _captured(model: nn.Module, shape: InputShape) -> Graph:
    from sightline.graph.capture import capture, capture_several

    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    def example(value: Sequence[int] | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value
        sizes = tuple(value)
        if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ShapeError(f"input_shape: expected positive sizes such as (1, 3, 224, 224), got {sizes}")
        return torch.empty(sizes, dtype=dtype, device="meta")

    def placed(tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device) if tensor.is_meta and device.type != "meta" else tensor

    def run() -> Graph:
        if isinstance(shape, Mapping):
            return capture_several(model, (), {name: placed(example(value)) for name, value in shape.items()})
        if all(isinstance(value, int) for value in shape):
            frame = placed(example(shape))  # type: ignore[arg-type]
            return capture(model, frame) if frame.dim() == 4 else capture_several(model, (frame,))
        return capture_several(model, tuple(placed(example(value)) for value in shape))  # type: ignore[arg-type]

    try:
        return run()
    except CaptureError as error:
        layer = _failing_layer(model, run)
        raise CaptureError(f"{error} (it stopped in layer {layer!r})" if layer else str(error)) from error


def _failing_layer(model: nn.Module, run: Callable[[], Graph]) -> str:
    """Path of the module in whose forward a capture that fails is at that moment; "" if in none but the model itself."""
    paths = {module: path for path, module in model.named_modules()}
    open_calls: list[nn.Module] = []

    def enter(module: nn.Module, _: Any) -> None:
        open_calls.append(module)

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        if open_calls and open_calls[-1] is module:
            open_calls.pop()

    # hooks of the process, since the model itself must not be touched; they are there only after a capture has failed
    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        run()
    except CaptureError:
        return next((paths[module] for module in reversed(open_calls) if paths.get(module)), "")
    finally:
        for handle in handles:
            handle.remove()
    return ""


# -- the walk ---------------------------------------------------------------------------------------------------------------------


def analyze_graph(graph: Graph, *, ignore_gates: bool = False, of: int = 0, model: nn.Module | None = None) -> Report:
    """As `analyze`, for a graph that is there already.

    Args:
        graph: as captured; not modified.
        ignore_gates: see `analyze`.
        of: see `analyze`.
        model: what it was captured from, to count parameters.

    Returns:
        The report.

    Raises:
        ShapeError: there is no input of that number.
    """
    inputs = [node for node in graph.nodes if node.op == "input"]
    if not 0 <= of < len(inputs):
        raise ShapeError(f"of: expected the number of an input, 0 to {len(inputs) - 1}, got {of}")
    origin = inputs[of]
    axes = max(0, len(origin.shape or ()) - 2)
    table: dict[Node, View] = {}
    layers: dict[str, LayerField] = {}
    seen: set[int] = set()
    for node in graph.nodes:
        if node is origin:
            view = views.source(node.shape or ())
        elif node.op in {"input", "constant"}:
            view = views.blank(node.shape or (), axes)
        else:
            view = _safe_view(Step(node, [table[operand] for operand in node.inputs], axes, ignore_gates))
        table[node] = view
        if node.op != "constant":
            layers[node.name] = _layer(node, view, model, seen)
    return Report(graph, layers, origin=origin, ignore_gates=ignore_gates, model=model)


def _safe_view(step: Step) -> View:
    try:
        return view_of(step)
    except Exception as error:  # one call in a form that nobody foresaw must not take the rest of the report with it
        return step.unknown(f"its arguments could not be followed ({type(error).__name__})")


def _layer(node: Node, view: View, model: nn.Module | None, seen: set[int]) -> LayerField:
    axes = axis_fields(view)
    notes = sorted(frozenset().union(*(axis.notes for axis in view.axes)))
    notes += list(dict.fromkeys(axis.unknown for axis in view.axes if axis.unknown))
    macs = 0 if node.op == "input" else rule_of(node).macs(node)
    return LayerField(
        name=node.name,
        op=op_name(node),
        status=worst([axis.status for axis in axes]),
        axes=axes,
        macs=macs,
        params=_parameters(node, model, seen),
        module=node.module,
        source=node.source,
        shape=node.shape,
        inputs=tuple(operand.name for operand in node.inputs if operand.op != "constant"),
        kernel=_kernel(node),
        notes=tuple(notes),
    )


def op_name(node: Node) -> str:
    """The op of a node, for readers: transposed convolutions and calls without a canonical op by their own names."""
    if node.op == "conv2d" and node.attrs["transposed"]:
        return "conv_transpose2d"
    if node.op == "act":
        return str(node.attrs["kind"])
    if node.op == "torch":
        schema = getattr(node.attrs["target"], "_schema", None)
        return str(schema.name).rpartition("::")[2] if schema is not None else str(getattr(node.attrs["target"], "__name__", "call"))
    return node.op


def _kernel(node: Node) -> tuple[int, ...]:
    if node.op in {"conv2d", "max_pool2d", "avg_pool2d"}:
        return tuple(window.extent for window in windows(node))
    if op_name(node) in {"conv1d", "conv3d"} and len(node.inputs) > 1:
        return tuple((node.inputs[1].shape or ())[2:])
    return ()


def _parameters(node: Node, model: nn.Module | None, seen: set[int]) -> int:
    """Parameters that this node brings in; those of a shared module count once."""
    if model is not None:
        try:
            owner: Any = model.get_submodule(node.name.partition(":")[0]) if node.op != "input" else None
        except AttributeError:
            owner = None
        if owner is not None:
            tensors = list(owner.parameters(recurse=False))
            return sum(tensor.numel() for tensor in tensors if not _known(id(tensor), seen))
    held = [value for value in node.attrs.values() if isinstance(value, Tensor) and node.op not in {"affine", "constant", "scalar"}]
    if node.op == "affine" and model is None:
        held = [node.attrs["scale"], node.attrs["shift"]]
    held += [operand.attrs["value"] for operand in node.inputs if operand.op == "constant" and operand.name.rpartition(".")[2] in _NAMES]
    return sum(math.prod(value.shape) for value in held if isinstance(value, Tensor) and not _known(value.data_ptr() or id(value), seen))


_NAMES = frozenset({"weight", "bias"})


def _known(key: int, seen: set[int]) -> bool:
    known = key in seen
    seen.add(key)
    return known
