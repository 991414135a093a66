"""How a network of DeltaCNN layers is run: captured with its truncations marked, then streamed.

While a network is captured, every truncating layer leaves a mark in the graph. The marks are then taken out and become thresholds of the
steps that they stand behind. Where the stream has no threshold for a place (an output, a concatenation, a dilated test, another norm), an
explicit `Hold` node takes the mark's place. Both do the same.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sightline.compat.deltacnn.thresholds import DCThreshold, DCTruncation
from sightline.errors import CaptureError, FrameError
from sightline.graph.ir import Graph, Node, Operand
from sightline.graph.plan import make_plan
from sightline.graph.prepare import check_frame, graph_of
from sightline.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from sightline.compat.deltacnn.layers import Truncating

SIZES_KEPT = 4  # streams of one module that are kept, one per size of frames; the one that was not used for longest goes

_LIBRARY = torch.library.Library("sightline_deltacnn", "DEF")
_LIBRARY.define("truncation(Tensor x, int site) -> Tensor")
_LIBRARY.impl("truncation", lambda x, site: x.clone(), "CompositeExplicitAutograd")
_MARK = torch.ops.sightline_deltacnn.truncation.default


class _Local(threading.local):
    truncate: Callable[[Truncating, Tensor], Tensor] | None = None


_local = _Local()


def inside() -> bool:
    """Whether some module further out already runs, and sees to truncation."""
    return _local.truncate is not None


def truncated(layer: Truncating, value: Tensor) -> Tensor:
    """The output of a truncating layer: marked while a network is captured, held while one runs eagerly, else as it is."""
    return value if _local.truncate is None else _local.truncate(layer, value)


@contextlib.contextmanager
def _truncating(how: Callable[[Truncating, Tensor], Tensor]) -> Iterator[None]:
    before = _local.truncate
    _local.truncate = how
    try:
        yield
    finally:
        _local.truncate = before


class Hold:
    """Publish with a threshold, in plain PyTorch: a pixel keeps what was last published until it has moved by more than the threshold.

    With ``dilation`` k, a pixel is published if any pixel in the k x k window around it moved by more.
    """

    def __init__(self, layer: Truncating) -> None:
        self._layer = weakref.ref(layer)
        self.__name__ = f"hold[{layer.name}]" if layer.name else "hold"
        self.held: Tensor | None = None

    def __call__(self, value: Tensor) -> Tensor:
        """The published value, (n, c, ...) as given; a new tensor."""
        layer, held = self._layer(), self.held
        threshold = None if layer is None else applied_threshold(layer)
        if layer is None or threshold is None or held is None or held.shape != value.shape or held.dtype != value.dtype:
            self.held = value.clone()
        else:
            size = _distance(value - held, layer.mode)
            if layer.dilation > 1:
                size = F.max_pool2d(size, layer.dilation, 1, layer.dilation // 2)
            self.held = torch.where(~(size <= threshold), value, held)
        return self.held.clone()

    def reset(self) -> None:
        """Forgets what was published."""
        self.held = None


def _distance(delta: Tensor, mode: DCTruncation) -> Tensor:
    """Size of a change over the channels, as (n, 1, ...)."""
    if delta.dim() < 2:
        return delta.abs()
    if mode is DCTruncation.max:
        return delta.abs().amax(1, keepdim=True)
    square = delta.square()
    return (square.mean(1, keepdim=True) if mode is DCTruncation.rms else square.sum(1, keepdim=True)).sqrt()


def applied_threshold(layer: Truncating) -> float | None:
    """The absolute threshold of a layer now; None if it never truncates."""
    return None if layer.mode is DCTruncation.none else DCThreshold.effective(layer)


# -- from marks to thresholds -----------------------------------------------------------------------------------------------------


class _Marks:
    """The truncating layers of a network in the order in which they are first called."""

    def __init__(self) -> None:
        self.layers: list[Truncating] = []

    def __call__(self, layer: Truncating, value: Tensor) -> Tensor:
        if layer not in self.layers:
            self.layers.append(layer)
        marked: Tensor = _MARK(value, self.layers.index(layer))
        return marked


class _Places:
    """A captured graph without its marks: thresholds of steps, and `Hold` nodes for the rest."""

    def __init__(self, marked: Graph, layers: list[Truncating]) -> None:
        modes = [layer.mode for layer in layers if not layer.is_input and layer.mode is not DCTruncation.none]
        squares = sum(mode in {DCTruncation.norm, DCTruncation.rms} for mode in modes)
        self.norm = "rms" if squares > len(modes) - squares else "max"
        self._marked, self._layers = marked, layers
        by_hand: set[Node] = set()
        while True:
            native = self._build(by_hand)
            plan = make_plan(self.graph)
            self.steps: dict[str, tuple[Truncating, float]] = {}
            found: set[int] = set()
            for step in plan.steps:
                place = step.output.attrs.get("own_threshold")
                if place is not None and step.truncates:
                    layer = self._layers[native[place].attrs["args"][1]]
                    self.steps[step.name] = layer, self._factor(layer, step.output)
                    found.add(place)
            missing = {mark for place, mark in native.items() if place not in found}
            if not missing:
                return
            by_hand |= missing

    def _factor(self, layer: Truncating, node: Node) -> float:
        """From the layer's norm to the stream's: the root mean square is the Euclidean norm / sqrt(channels)."""
        assert node.shape is not None
        return node.shape[1] ** -0.5 if layer.mode is DCTruncation.norm else 1.0

    def _build(self, by_hand: set[Node]) -> dict[int, Node]:
        """Makes `graph` and `holds`; returns the marks that became attributes of nodes, by number."""
        users = self._marked.users()
        twins: dict[Node, Node] = {}
        nodes: list[Node] = []
        native: dict[int, Node] = {}
        self.holds: list[Hold] = []
        for node in self._marked.nodes:
            inputs = [twins[i] for i in node.inputs]
            if not _is_mark(node):
                twins[node] = Node(node.name, node.op, inputs, dict(node.attrs), node.shape, node.dtype, node.module, node.source)
                nodes.append(twins[node])
                continue
            layer, (source,) = self._layers[node.attrs["args"][1]], inputs
            if layer.mode is DCTruncation.none:
                twins[node] = source
            elif node not in by_hand and self._can_be_native(node, layer, source, users):
                source.attrs["own_threshold"] = len(native)
                native[len(native)] = node
                twins[node] = source
            else:
                hold = Hold(layer)
                self.holds.append(hold)
                attrs = {"target": hold, "args": (Operand(0),), "kwargs": {}}
                twins[node] = Node(node.name, "torch", [source], attrs, node.shape, node.dtype, node.module, node.source)
                nodes.append(twins[node])
        self.graph = Graph(nodes, [twins[node] for node in self._marked.outputs], self._marked.output_tree, self._marked.name)
        return native

    def _can_be_native(self, mark: Node, layer: Truncating, source: Node, users: dict[Node, list[Node]]) -> bool:
        """Whether the stream's threshold of the step that makes `source` does just what the layer does (the plan is asked later)."""
        (read,) = mark.inputs
        return (
            layer.dilation <= 1
            and (layer.mode is DCTruncation.max) == (self.norm == "max")
            and bool(users[mark])  # the stream does not truncate what nobody reads
            and users[read] == [mark]  # others read the value as it is
            and read not in self._marked.outputs
            and not _is_mark(read)
            and source.shape is not None
            and len(source.shape) in {2, 4}
        )


def _is_mark(node: Node) -> bool:
    return node.op == "torch" and node.attrs["target"] is _MARK


# -- running ----------------------------------------------------------------------------------------------------------------------


class _Program:
    """A network captured for frames of one size, and its stream."""

    def __init__(self, module: nn.Module, frame: Tensor) -> None:
        marks = _Marks()
        with _truncating(marks):
            marked = graph_of(module, frame)
        self._layers = [weakref.ref(layer) for layer in marks.layers]
        places = _Places(marked, marks.layers)
        self._holds = places.holds
        self._steps = {name: (weakref.ref(layer), factor) for name, (layer, factor) in places.steps.items()}
        self._limits: list[float] = []
        self.stream = Stream(places.graph, threshold_unit="absolute", norm=places.norm, example=frame)

    def run(self, frame: Tensor) -> Any:
        """Takes the next frame."""
        layers = [layer for layer in (ref() for ref in self._layers) if layer is not None]
        for layer in layers:
            DCThreshold.register(layer)
        self._apply([applied_threshold(layer) or 0.0 for layer in layers])
        try:
            return self.stream(frame)
        except FrameError:
            raise  # before anything moved
        except BaseException:
            self.reset()
            raise

    def _apply(self, limits: list[float]) -> None:
        """Hands thresholds that have changed to the stream."""
        if limits == self._limits:
            return
        if self._holds and any(new < old for new, old in zip(limits, self._limits, strict=False)):
            self.reset()  # a `Hold` runs only when its input changes, and what it holds may be too far off now
        for name, (ref, factor) in self._steps.items():
            layer = ref()
            if layer is not None:
                self.stream.thresholds[name] = (applied_threshold(layer) or 0.0) * factor
        self._limits = limits

    def memory(self) -> int:
        """Bytes of state."""
        held = sum(hold.held.nbytes for hold in self._holds if hold.held is not None)
        return int(self.stream.memory()["total"]) + held

    def reset(self) -> None:
        """Forgets all frames."""
        self.stream.reset()
        for hold in self._holds:
            hold.reset()


class _Eager:
    """Runs a module as it is, with every truncation in place; nothing is saved."""

    def __init__(self) -> None:
        self._holds: dict[tuple[Truncating, int], Hold] = {}

    def run(self, module: nn.Module, call: Callable[[], Any], values: list[Tensor]) -> Any:
        """What `call` returns; `values` are its inputs."""
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise FrameError("the input holds NaN or Inf. Clean it (torch.nan_to_num) or skip it; the module has not moved.")
        calls: dict[Truncating, int] = {}

        def hold(layer: Truncating, value: Tensor) -> Tensor:
            DCThreshold.register(layer)
            if layer.mode is DCTruncation.none:
                return value
            calls[layer] = calls.get(layer, 0) + 1
            return self._holds.setdefault((layer, calls[layer]), Hold(layer))(value)

        with torch.no_grad(), _in_eval_mode(module), _truncating(hold):
            try:
                return call()
            except BaseException:
                self.reset()
                raise

    def reset(self) -> None:
        """Forgets all frames."""
        self._holds.clear()


@contextlib.contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class Runner:
    """The state of one outermost module: its streams, one per size of frames, or the eager fallback."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._lock = threading.RLock()
        self._programs: OrderedDict[tuple[Any, ...], _Program] = OrderedDict()
        self._weights: list[tuple[dict[str, Any], str, Tensor, tuple[int, int]]] = []
        self._eager = _Eager()
        self._warned = False
        self._reason: CaptureError | None = None

    @property
    def stream(self) -> Stream | None:
        """The stream that ran last."""
        with self._lock:
            return next(reversed(self._programs.values())).stream if self._programs else None

    def __call__(self, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the module on the next frame: `call` runs it eagerly on these arguments."""
        module = self._module()
        assert module is not None  # it is calling
        with self._lock:
            if self._weights_changed():
                self._forget_programs()
            reason: CaptureError | None = None
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].dim() == 4:
                try:
                    program = self._program(module, check_frame(args[0]))
                except CaptureError as error:
                    reason = error
                else:
                    return program.run(args[0])
            values = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.is_floating_point()]
            outputs = self._eager.run(module, call, values)
            self._reason = reason  # only now: a module that fails on this input in any case fails in its own words
            self._warn(module, reason)
            return outputs

    def _program(self, module: nn.Module, frame: Tensor) -> _Program:
        if self._reason is not None:
            raise self._reason
        key = (tuple(frame.shape), frame.dtype, frame.device)
        if key not in self._programs:
            self._programs[key] = _Program(module, frame)
            self._weights = _fingerprint(module)
            if len(self._programs) > SIZES_KEPT:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]

    def _warn(self, module: nn.Module, reason: CaptureError | None) -> None:
        if self._warned or (reason is None and getattr(module, "is_layer", False)):
            return  # a layer with two inputs that is called by itself: there is nothing to save
        self._warned = True
        why = reason or f"{type(module).__name__} was called with something else than one tensor (n, c, h, w)"
        warnings.warn(
            f"this DCModule runs densely, with thresholds in place but without any saving: {why}. Make the part of it that takes one "
            "map and can be captured a DCModule of its own, called from an ordinary nn.Module.",
            RuntimeWarning,
            stacklevel=4,
        )

    def _weights_changed(self) -> bool:
        return any(table.get(name) is not tensor or _stamp(tensor) != stamp for table, name, tensor, stamp in self._weights)

    def _forget_programs(self) -> None:
        self._programs.clear()
        self._weights = []
        self._reason = None
        self._eager.reset()

    def memory(self) -> int:
        """Bytes of state."""
        with self._lock:
            return sum(program.memory() for program in self._programs.values())

    def reset(self) -> None:
        """Forgets all frames; captures and packed weights are kept."""
        with self._lock:
            for program in self._programs.values():
                program.reset()
            self._eager.reset()


def _fingerprint(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor, tuple[int, int]]]:
    """All parameters and buffers with their place and state, so that a change is seen."""
    tables = [table for part in module.modules() for table in (part._parameters, part._buffers)]
    return [(table, name, tensor, _stamp(tensor)) for table in tables for name, tensor in table.items() if tensor is not None]


def _stamp(tensor: Tensor) -> tuple[int, int]:
    return (0 if tensor.is_inference() else tensor._version), tensor.data_ptr()
