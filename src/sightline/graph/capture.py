"""From a PyTorch model, or an exported program, to a `Graph`.

The tracer is torch.export on fake tensors: nothing is computed, and the model is not touched. `aten_walk.py` turns what it
recorded into nodes. This file and the ``aten`` files are the only ones that know the tracer.

What belongs here: running the tracer, leaving the model as it was, the form of the model's output, errors. What does not: what
calls mean (`aten.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from sightline.errors import CaptureError, DeviceError, ShapeError
from sightline.graph.aten_layout import is_idle_dropout
from sightline.graph.aten_walk import NeedsFunctional, Walk, aten_name, bind
from sightline.graph.ir import Graph, Node

_INNER = "model"  # the name of the user's model inside the wrapper that is traced


def capture(model: nn.Module, example: Tensor) -> Graph:
    """Record what a model does to a frame.

    The model is captured as in eval mode, whatever its flags say, and is left exactly as it was: flags, weights, buffers, hooks,
    gradients, random state. Forward hooks run once, on fake tensors, since they are part of what the model computes. Nothing
    is computed densely; only what does not depend on the frame (position tables, say) is.

    The graph holds references to the model's own parameters, so that later changes of weights are seen; what was folded (batch norm)
    is not updated. Sizes are those of the example: capture again for another one.

    Args:
        model: a module that takes one float tensor (n, c, h, w), or points of a sensor (n, c, N). On any device, of any
            floating-point type.
        example: a tensor like the frames to come: its shape, element type and device count, its values do not. The graph of a model
            on points takes maps of one row, (n, c, 1, N).

    Returns:
        The graph. Its nodes hold no ``identity``; calls without a canonical op are ``torch`` nodes.

    Raises:
        CaptureError: the model cannot be traced: its control flow depends on values, it keeps state between calls, it returns
            something that holds no tensors, it is not a module.
        ShapeError: the example is neither (n, c, h, w) nor (n, c, N).
        DeviceError: the example is not where the model's parameters are.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> print(capture(model, torch.zeros(1, 3, 16, 16)))
        input = input() -> (1, 3, 16, 16)
        0 = conv2d(input) -> (1, 8, 16, 16)
        1 = act(0) -> (1, 8, 16, 16)
        2 = global_avg_pool(1) -> (1, 8, 1, 1)
        3 = flatten(2) -> (1, 8)
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    _check_arguments(model, example)
    name = type(model).__name__
    points = example.dim() == 3
    wrapper = _PointsWrapper(model) if points else _Wrapper(model)
    frame = torch.zeros((example[:, :, None] if points else example).shape, dtype=example.dtype, device=example.device)
    with _untouched(model, frame), _as_capture_error(name), torch.no_grad(), _quietly():
        program = torch.export.export(wrapper, (frame,), strict=False)
        tensors = {f"{_INNER}.{key}": value.detach() for key, value in _own_tensors(model)}
        outputs, walk = _walk(program, tensors, lambda path: path.partition(".")[2] if path else "")
        nodes = [walk.operand(value) for value in outputs]
        graph = walk.finish(nodes, name)
        graph.output_tree = wrapper.form.tree
    return graph


def capture_several(model: nn.Module, examples: Sequence[Tensor], named: Mapping[str, Tensor] | None = None) -> Graph:
    """As `capture`, for a model with several inputs, or one that is not an image.

    Args:
        model: a module; takes the examples by position, then the named ones by keyword.
        examples: tensors like the inputs to come; their values do not count.
        named: the same by the names of the parameters of the model's forward.

    Returns:
        The graph, with one ``input`` node per tensor, in that order: "input", "input:2" ..., also for one that nothing reads.

    Raises:
        CaptureError: see `capture`.
        ShapeError: an example is empty, or there is none.
    """
    model = getattr(model, "_orig_mod", model)
    named = named or {}
    values = [*examples, *named.values()]
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model: expected a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module's forward")
    if not values or any(value.numel() == 0 for value in values):
        raise ShapeError(f"examples: expected tensors that are not empty, got {[tuple(value.shape) for value in values]}")
    name, wrapper = type(model).__name__, _SeveralWrapper(model, tuple(named))
    frames = tuple(torch.zeros(value.shape, dtype=value.dtype, device=value.device) for value in values)
    with _untouched(model, frames[0]), _as_capture_error(name), torch.no_grad(), _quietly():
        program = torch.export.export(wrapper, frames, strict=False)
        tensors = {f"{_INNER}.{key}": value.detach() for key, value in _own_tensors(model)}
        places = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
        others = {
            place: Node(f"input:{number}", "input", shape=tuple(frame.shape), dtype=frame.dtype)
            for number, (place, frame) in enumerate(zip(places[1:], frames[1:], strict=True), start=2)
        }
        outputs, walk = _walk(program, tensors, lambda path: path.partition(".")[2] if path else "", others)
        graph = walk.finish([walk.operand(value) for value in outputs], name)
        graph.nodes[1:1] = others.values()
        graph.output_tree = wrapper.form.tree
    return graph


def is_exported(model: object) -> TypeGuard[ExportedProgram]:
    """Whether this is an exported program, as ``torch.export.load`` returns it."""
    return isinstance(model, ExportedProgram)


def load_exported(program: ExportedProgram) -> Graph:
    """The graph of an exported program, as ``torch.export.load("file.pt2")`` returns it.

    Args:
        program: exported from a model that takes one tensor (n, c, h, w). With dynamic sizes, the graph is for the sizes that
            it was exported with.

    Returns:
        The graph, as from `capture`; its name is that of the root module where the program knows it, else "model".

    Raises:
        CaptureError: the program takes something else than one tensor (n, c, h, w), or keeps state between calls.
    """
    name = _root_class(program)
    with _as_capture_error(name), torch.no_grad(), _quietly():
        frame = _frame_of(program)
        sizes = program.graph_module.graph.find_nodes(op="placeholder")
        value = next(node.meta["val"] for node in sizes if node.name == frame)
        if value.dim() != 4:
            raise CaptureError(f"program: expected one input (n, c, h, w), got shape {tuple(value.shape)}; export with a batch of images")
        if any(not isinstance(size, int) for size in value.shape):
            hints = [size if isinstance(size, int) else size.node.hint for size in value.shape]
            example = torch.zeros(hints, dtype=value.dtype, device=value.device)
            program = torch.export.export(program.module(), (example,), strict=False)
        outputs, walk = _walk(program, {}, str)
        nodes, tree = _rebuild_tree(program, outputs)
        graph = walk.finish([walk.operand(node) for node in nodes], name)
        graph.output_tree = tree
    return graph


def _check_arguments(model: object, example: object) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model: expected a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module's forward")
    if not isinstance(example, Tensor) or example.dim() not in {3, 4} or 0 in example.shape:
        shape = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ShapeError(f"example: expected a non-empty tensor (n, c, h, w), got {shape}; pass frame[None] for a single image")
    if example.dim() == 3 and not on_points(model):
        raise ShapeError(f"example: expected (n, c, h, w), got {tuple(example.shape)}; pass frame[None] for a single image")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) == 1 and example.device not in devices:
        device = devices.pop()
        raise DeviceError(
            f"example: expected a tensor on {device}, where the model is, got one on {example.device}; use example.to({str(device)!r})"
        )


def on_points(model: object) -> bool:
    """Whether a model has layers on sensor points, so that it may take (n, c, N)."""
    return isinstance(model, nn.Module) and any(hasattr(module, "in_coords") for module in model.modules())


# -- the model stays as it was ----------------------------------------------------------------------------------------------------


def _own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


@contextlib.contextmanager
def _untouched(model: nn.Module, frame: Tensor) -> Iterator[None]:
    """Switch to eval mode inside; give back every attribute of every module, and the random state, at the end."""
    found = [(module, dict(module.__dict__), _copies(module.__dict__)) for module in model.modules()]
    devices = {tensor.device for _, tensor in _own_tensors(model)} | {frame.device}
    accelerator = next((device.type for device in devices if device.type not in {"cpu", "meta"}), "cuda")
    indices = [device.index for device in devices if device.type == accelerator and device.index is not None]
    try:
        with torch.random.fork_rng(indices, device_type=accelerator):
            for module, _, _ in found:
                module.training = False  # not eval(), which a model may have overridden
            yield
    finally:
        for module, attributes, copies in found:
            for key in [key for key in module.__dict__ if key not in attributes]:
                del module.__dict__[key]
            module.__dict__.update(attributes)
            for container, content in copies:
                _restore(container, content)


def _copies(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The containers among a module's attributes (parameters, buffers, hooks, the user's own lists), each with a shallow copy."""
    return [(value, value.copy()) for value in attributes.values() if isinstance(value, (dict, list, set))]


def _restore(container: Any, content: Any) -> None:
    """Put back the content of a container, unless it is still the same."""
    if isinstance(container, dict):
        if list(container) != list(content) or any(container[key] is not content[key] for key in content):
            container.clear()
            container.update(content)
    elif isinstance(container, list):
        if len(container) != len(content) or any(a is not b for a, b in zip(container, content, strict=True)):
            container[:] = content
    elif len(container) != len(content):
        container.clear()
        container.update(content)


_LOUD = ("torch.export._trace", "torch.fx.experimental.symbolic_shapes")


def _drop(_record: logging.LogRecord) -> bool:
    return False


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the tracer's remarks about itself from the user: warnings, log lines, and the program that it prints when it fails.

    What the model itself writes to stderr is passed on, unless it fails.
    """
    written = io.StringIO()
    for name in _LOUD:
        logging.getLogger(name).addFilter(_drop)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(written):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in _LOUD:
            logging.getLogger(name).removeFilter(_drop)
    sys.stderr.write(written.getvalue())


# -- errors -----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _as_capture_error(name: str) -> Iterator[None]:
    """Turn whatever the tracer raises into one sentence with the remedy."""
    try:
        yield
    except CaptureError as error:
        message = str(error).replace("model:", f"model ({name}):", 1)
        raise CaptureError(message) from error.__cause__
    except NeedsFunctional as error:
        raise CaptureError(f"model ({name}): it changes views in place in a way that cannot be followed; write it out of place") from error
    except Exception as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "data-dependent" in str(error).lower() or "DataDependent" in type(error).__name__ or "GuardOn" in type(error).__name__:
            remedy = "it depends on values of tensors: capture the largest sub-modules that do not (a detector's backbone, say)"
        else:
            remedy = "pass an example of the size and type that the model takes; if it is one, capture the largest sub-modules that work"
        raise CaptureError(f"model ({name}): cannot be traced: {type(error).__name__}: {cause}; {remedy}") from error


# -- the form of the output -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Literal:
    """A value in the output that is not a tensor; holds no leaves, so that it survives in the tree alone."""

    value: Any


@dataclasses.dataclass
class _Record:
    """An instance of a dataclass that pytree does not know, taken apart."""

    kind: type
    names: tuple[str, ...]
    values: list[Any]


def _make_record(values: Any, context: tuple[type, tuple[str, ...]]) -> Any:
    record: Any = object.__new__(context[0])
    for name, value in zip(context[1], values, strict=True):
        object.__setattr__(record, name, value)  # also for frozen ones
    return record


pytree.register_pytree_node(_Literal, lambda literal: ([], literal.value), lambda _, value: value)
pytree.register_pytree_node(_Record, lambda record: (record.values, (record.kind, record.names)), _make_record)


def _boxed(value: Any) -> Any:
    """Stand-ins for what is neither a tensor nor a container that pytree knows."""
    if isinstance(value, Tensor):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in dataclasses.fields(value))
        return _Record(type(value), names, [pytree.tree_map(_boxed, getattr(value, name)) for name in names])
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
        return _Literal(value)
    raise CaptureError(
        f"model: it returns a {type(value).__name__}, which cannot be taken apart; return tensors, numbers, and tuples, lists, "
        "dicts or dataclasses of these, or register the class with torch.utils._pytree.register_pytree_node"
    )


class _Form:
    """The spec of an output; None for a single tensor."""

    tree: Any = None


class _Wrapper(nn.Module):
    """Calls the model and returns a flat tuple of tensors, so that the tracer need not know the model's return type.

    Attributes:
        form: holds the form of the output after a call (the tracer resets what a module assigns to itself).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False
        self.form = _Form()

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        return self._flat(self.model(frame))

    def _flat(self, output: Any) -> tuple[Tensor, ...]:
        leaves, tree = pytree.tree_flatten(pytree.tree_map(_boxed, output))
        if not leaves:
            raise CaptureError(f"model: it returns no tensor but {type(output).__name__}; return at least one tensor")
        self.form.tree = None if isinstance(output, Tensor) else tree
        return tuple(leaves)


class _PointsWrapper(_Wrapper):
    """The same for a model that takes the points of a map of one row."""

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        return self._flat(self.model(frame.squeeze(2)))


class _SeveralWrapper(_Wrapper):
    """The same for several inputs, the last of them by keyword."""

    def __init__(self, model: nn.Module, keywords: Sequence[str]) -> None:
        super().__init__(model)
        self.keywords = keywords

    def forward(self, *frames: Tensor) -> tuple[Tensor, ...]:
        count = len(frames) - len(self.keywords)
        output = self.model(*frames[:count], **dict(zip(self.keywords, frames[count:], strict=True)))
        return self._flat(output)


def _rebuild_tree(program: ExportedProgram, outputs: Sequence[Any]) -> tuple[list[Any], Any]:
    """Tensors among the outputs of a program, and the spec that puts them, and its plain values, back in place."""
    spec = program.call_spec.out_spec
    boxed = [value if isinstance(value, (Node, Tensor)) else _Literal(value) for value in outputs]
    if spec is None or (len(boxed) == 1 and spec == pytree.tree_structure(0)):
        return list(outputs), None
    leaves, tree = pytree.tree_flatten(pytree.tree_unflatten(boxed, spec))
    if not leaves:
        raise CaptureError("model: it returns no tensor; export one that returns at least one")
    return leaves, tree


# -- reading an exported program --------------------------------------------------------------------------------------------------


def _walk(
    program: ExportedProgram, tensors: dict[str, Tensor], path_of: Callable[[str], str], others: Mapping[str, Node] | None = None
) -> tuple[list[Any], Walk]:
    """Walk a program as it is, or in functional form where that is needed; returns the user's outputs.

    `others` holds nodes for all placeholders that are inputs, but the first.
    """
    try:
        return _walk_once(program, tensors, path_of, others or {})
    except NeedsFunctional:
        with _without_dropouts(program):
            functional = program.run_decompositions({})
        return _walk_once(functional, tensors, path_of, others or {})


def _walk_once(
    program: ExportedProgram, tensors: dict[str, Tensor], path_of: Callable[[str], str], others: Mapping[str, Node]
) -> tuple[list[Any], Walk]:
    constants: dict[str, Any] = dict(others)
    owners: dict[str, str] = {}
    signature = program.graph_signature
    for spec in signature.input_specs:
        name, target = spec.arg.name, spec.target
        if isinstance(spec.arg, ConstantArgument):
            constants[name] = spec.arg.value
        elif spec.kind in {InputKind.PARAMETER, InputKind.BUFFER} and target is not None:
            owners[name] = path_of(target)
            value = tensors[target] if target in tensors else _stored(program, target)
            constants[name] = value
        elif target is not None:
            constants[name] = _stored(program, target)
    changed = {spec.target for spec in signature.output_specs if spec.kind in {OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION}}
    stateful = [spec.arg.name for spec in signature.input_specs if spec.target in changed]
    walk = Walk(constants, owners, _frame_of(program, others), stateful, path_of)
    values = walk.run(program.graph_module.graph)
    kinds = [spec.kind for spec in signature.output_specs]
    return [value for value, kind in zip(values, kinds, strict=True) if kind == OutputKind.USER_OUTPUT], walk


def _stored(program: ExportedProgram, target: str) -> Any:
    value = program.state_dict[target] if target in program.state_dict else program.constants[target]
    return value.detach() if isinstance(value, Tensor) else value


def _frame_of(program: ExportedProgram, others: Collection[str] = ()) -> str:
    """Name of the placeholder that is the frame."""
    inputs = [spec.arg for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    frames = [argument.name for argument in inputs if isinstance(argument, TensorArgument) and argument.name not in others]
    if len(frames) != 1:
        raise CaptureError(f"model: expected a program with one tensor input (n, c, h, w), got {len(frames)}; fix the others")
    return frames[0]


@contextlib.contextmanager
def _without_dropouts(program: ExportedProgram) -> Iterator[None]:
    """Take out dropouts that are switched off while inside: they return their operand itself, which the functional form denies."""
    undo: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    for node in program.graph_module.graph.nodes:
        name = aten_name(node.target).removesuffix("_") if node.op == "call_function" else ""
        if name and is_idle_dropout(name, bind(node.target, node.args, node.kwargs)):
            undo += [(user, user.args, user.kwargs) for user in node.users]
            node.replace_all_uses_with(node.args[0])
    try:
        if undo:
            program.graph_module.recompile()
        yield
    finally:
        for user, args, kwargs in reversed(undo):
            user.args, user.kwargs = args, kwargs
        if undo:
            program.graph_module.recompile()


def _root_class(program: ExportedProgram) -> str:
    for node in program.graph_module.graph.nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            if not path:
                return str(kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
    return "model"
