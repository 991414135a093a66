"""Walks a program traced by torch.export and builds the `Graph`: aliasing, in-place calls, constants, unmapped calls, names.

Three things make this more than a loop over calls:

* **In-place calls.** ``y.relu_()`` changes y for everybody who reads it later, and so for its exact aliases (``detach``, a dropout that
  is switched off). Those are handed the new value. If a *view* of what was changed is read later, `NeedsFunctional` is raised, and
  `capture.py` starts again from torch's own functional form of the program.
* **Constants.** Whatever does not depend on the frame is computed here, once, by running the calls on the model's own tensors.
* **State.** A parameter or buffer that the program changes makes the model more than a function of the frame. That is an error,
  unless nothing that the model returns depends on it (a call counter).

What belongs here: the above. What does not: what a single call means (`aten.py`), running the tracer (`capture.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import getitem
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node as Traced

from sightline.errors import CaptureError
from sightline.graph import aten as _aten  # noqa: F401 - fills the table
from sightline.graph.aten_base import TABLE, Call, Emitter, Value, tensors_of
from sightline.graph.aten_layout import DROPOUTS, is_idle_dropout
from sightline.graph.aten_points import OPERATORS
from sightline.graph.ir import Graph, Namer, Node

_TORCH = str(Path(torch.__file__).parent) + os.sep
_FRAME = re.compile(r'File "(.+?)", line (\d+)')

# calls that read no values, only the shape or element type of their operand
_SHAPE_ONLY = {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}
# calls that read values of their first operand only
_SHAPE_SECOND = {"expand_as", "view_as", "reshape_as", "type_as", "to"}
# checks without a result that anybody reads
_CHECKS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size"}
# results that are their operand itself, whatever the schema says
_SAME = {"alias", "detach", "detach_", "lift_fresh", "positive", "resolve_conj", "resolve_neg"}
# results that may be their operand, which the schema does not say
_MAYBE = {"broadcast_tensors", "type_as", "meshgrid", "atleast_1d", "atleast_2d", "atleast_3d", "einsum"}
# layers with weights: one of these gives its call site the module's name even if the module has children
_LAYERS = re.compile(r"(conv|knn_conv|linear|addmm|batch_norm|.*_batch_norm|layer_norm|native_layer_norm|group_norm|instance_norm|prelu)")


class NeedsFunctional(Exception):  # noqa: N818 - a signal between two files, never seen by users
    """The program changes memory in a way that can only be followed in functional form."""


@dataclass
class _Origin:
    """Where a node comes from: `key` tells calls of one module apart, `label` names the op, `layer`: holds the module's weights."""

    path: str
    key: str
    label: str
    source: str
    layer: bool


@dataclass
class _Aliases:
    """Which values of the traced program share memory.

    Attributes:
        same: group of values that are one and the same tensor, by representative.
        memory: group of values that may share memory.
        changed: placeholders whose memory some call changes.
    """

    same: dict[Traced, list[Traced]] = field(default_factory=dict)
    memory: dict[Traced, list[Traced]] = field(default_factory=dict)
    changed: set[Traced] = field(default_factory=set)

    def add(self, node: Traced, same_as: Traced | None, memory_of: Sequence[Traced]) -> None:
        """Enter a value that is another one, or that may share the memory of others."""
        self.same[node] = self.same[same_as] if same_as is not None else []
        self.same[node].append(node)
        group = self.memory[memory_of[0]] if memory_of else []
        for other in memory_of[1:]:
            if self.memory[other] is not group:
                group.extend(self.memory[other])
                for member in self.memory[other]:
                    self.memory[member] = group
        group.append(node)
        self.memory[node] = group


def aten_name(target: Any) -> str:
    """Name of an ATen overload without namespace and overload: "relu_"."""
    schema = getattr(target, "_schema", None)
    return "" if schema is None else str(schema.name).rpartition("::")[2]


def _written(target: Any) -> list[int]:
    """Positions of the operands that a call changes."""
    schema = getattr(target, "_schema", None)
    if schema is None or aten_name(target) in {"detach_", "requires_grad_"}:
        return []
    return [index for index, argument in enumerate(schema.arguments) if argument.alias_info is not None and argument.alias_info.is_write]


def bind(target: Any, args: Sequence[Value], kwargs: Mapping[str, Value]) -> dict[str, Value]:
    """Operands of a call by the names of its schema, defaults filled in."""
    values: dict[str, Value] = {}
    for index, argument in enumerate(target._schema.arguments):
        if index < len(args):
            values[argument.name] = args[index]
        elif argument.name in kwargs:
            values[argument.name] = kwargs[argument.name]
        else:
            values[argument.name] = argument.default_value
    return values


def _same_as(node: Traced) -> Traced | None:
    """The operand that the result of this call is, if it surely is one."""
    target: Any = node.target
    name = aten_name(target)
    if not name:
        return None
    values = bind(target, node.args, node.kwargs)
    written = _written(target)
    if written or name in _SAME or is_idle_dropout(name.removesuffix("_"), values):
        operand = list(values.values())[written[0] if written else 0]
        return operand if isinstance(operand, Traced) else None
    return None


def _memory_of(node: Traced) -> list[Traced]:
    """The operands whose memory the result of this call may share."""
    if node.target is getitem:
        return [operand for operand in node.args if isinstance(operand, Traced)]
    schema = getattr(node.target, "_schema", None)
    if schema is None or aten_name(node.target) in _MAYBE:
        return list(node.all_input_nodes)
    values = list(bind(node.target, node.args, node.kwargs).values())
    if not any(result.alias_info is not None for result in schema.returns):
        return []
    shared = [value for value, argument in zip(values, schema.arguments, strict=True) if argument.alias_info is not None]
    return [value for value in shared if isinstance(value, Traced)]


def analyse_aliases(nodes: Sequence[Traced]) -> _Aliases:
    """Group the values of a program by the memory that they share, and find the placeholders that it changes."""
    table = _Aliases()
    for node in nodes:
        same = _same_as(node) if node.op == "call_function" else None
        memory = _memory_of(node) if node.op == "call_function" else []
        table.add(node, same, ([same] if same is not None else []) + memory)
        for index in _written(node.target) if node.op == "call_function" else []:
            operand = list(bind(node.target, node.args, node.kwargs).values())[index]
            for part in operand if isinstance(operand, (list, tuple)) else [operand]:
                if isinstance(part, Traced):
                    table.changed.update(member for member in table.memory[part] if member.op == "placeholder")
    return table


class _Results:
    """The results of a ``torch`` node with several: an ``item`` node for each that is read."""

    def __init__(self, walk: Walk, node: Node, results: Sequence[Any]) -> None:
        self._walk = walk
        self._node = node
        self._results = results
        self._items: dict[int, Value] = {}

    def __getitem__(self, index: int) -> Value:
        index %= len(self._results)
        if index not in self._items:
            like = self._results[index]
            self._items[index] = self._walk.emit("item", [self._node], like, index=index) if isinstance(like, Tensor) else like
        return self._items[index]

    def all(self) -> list[Value]:
        """All results, in order."""
        return [self[index] for index in range(len(self._results))]


class _OutOfPlace:
    """An in-place call without a functional form, made to work on a copy of what it would change."""

    def __init__(self, target: Any, position: int) -> None:
        self.target = target
        self.position = position
        self.__name__ = aten_name(target)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        copied: Tensor = args[self.position].clone()
        self.target(*args[: self.position], copied, *args[self.position + 1 :], **kwargs)
        return copied


class Walk(Emitter):
    """Builds the nodes of one traced program.

    Args:
        constants: value of every placeholder that is not the frame: a tensor, or a plain value.
        owners: for placeholders that are parameters or buffers, their name in the model.
        frame: the placeholder that is the frame.
        stateful: placeholders that the program is known to change (beside those found by looking).
        path_of: module path from the path that the tracer saw.
    """

    def __init__(
        self,
        constants: Mapping[str, Any],
        owners: Mapping[str, str],
        frame: str,
        stateful: Sequence[str] = (),
        path_of: Callable[[str], str] = str,
    ) -> None:
        super().__init__()
        self._constants_by_name = constants
        self._owners = owners
        self._frame = frame
        self._stateful = stateful
        self._path_of = path_of
        self._env: dict[Traced, Value] = {}
        self._published: set[int] = set()  # memory of constants that the graph already holds
        self._origins: dict[Node, _Origin] = {}
        self._origin: _Origin | None = None
        self._parents: set[str] = set()
        self._constant_names: dict[int, str] = {}  # by id of the tensor, for parameters and buffers

    def emit(self, op: str, inputs: Sequence[Node], like: Any, **attrs: Any) -> Node:
        """Append a node and remember which call it comes from."""
        node = super().emit(op, inputs, like, **attrs)
        if self._origin is not None:
            self._origins[node] = self._origin
            node.module, node.source = self._origin.path, self._origin.source
        return node

    # -- the loop -----------------------------------------------------------------------------------------------------------------

    def run(self, program: Any) -> list[Value]:
        """Walk a torch.fx.Graph; returns the values of its output node, in order."""
        traced = list(program.nodes)
        aliases = analyse_aliases(traced)
        for node in traced:
            if node.op == "placeholder":
                self._env[node] = self._placeholder_value(node, node in aliases.changed)
        return self._body(program, traced, aliases)

    def _inline(self, program: Any, operands: Sequence[Value]) -> list[Value]:
        """Walk the program inside a call that only sets a mode, as if its calls stood here; returns its results."""
        traced = list(program.nodes)
        aliases = analyse_aliases(traced)
        if aliases.changed:
            raise NeedsFunctional
        self._env.update(zip((node for node in traced if node.op == "placeholder"), operands, strict=True))
        return self._body(program, traced, aliases)

    def _body(self, program: Any, traced: Sequence[Traced], aliases: _Aliases) -> list[Value]:
        position = {node: index for index, node in enumerate(traced)}
        last_use = {node: max((position[user] for user in node.users), default=-1) for node in traced}
        for index, node in enumerate(traced):
            if node.op == "get_attr":
                self._env[node] = _attribute(program.owning_module, str(node.target))
            elif node.op == "output":
                return [self._resolve(value) for value in _flat(node.args[0])]
            elif node.op == "call_function":
                self._origin = self._origin_of(node)
                self._env[node] = result = self._call(node)
                for written in _written(node.target):
                    self._spread_change(node, written, result, index, aliases, last_use)
        raise CaptureError("model: the traced program returns nothing; return at least one tensor")

    def _placeholder_value(self, node: Traced, changed: bool) -> Value:
        if node.name == self._frame:
            frame = self.emit("input", [], node.meta["val"])
            frame.name = "input"
            return frame
        value = self._constants_by_name[node.name]
        if changed or node.name in self._stateful:
            return self.emit("state", [], value, name=self._owners.get(node.name, node.name))
        if isinstance(value, Tensor):
            self._published.add(_memory(value))
            self._constant_names[id(value)] = self._owners.get(node.name, "")
        return value

    def _resolve(self, value: Any) -> Value:
        if isinstance(value, Traced):
            return self._env[value]
        if isinstance(value, (tuple, list)):
            return [self._resolve(item) for item in value]
        if isinstance(value, dict):
            return {key: self._resolve(item) for key, item in value.items()}
        return value

    def _spread_change(
        self, node: Traced, position: int, result: Value, index: int, aliases: _Aliases, last_use: Mapping[Traced, int]
    ) -> None:
        """Hand the new value of a changed tensor to everything that is the same tensor."""
        changed = list(bind(node.target, node.args, node.kwargs).values())[position]
        if not isinstance(changed, Traced):
            raise NeedsFunctional
        old = self._env[changed]
        in_memory = isinstance(old, Tensor) and old is result  # really changed, and with it all its views
        same = aliases.same[changed]
        for member in same:
            if member in self._env:
                self._env[member] = result
        if in_memory:
            return
        members = set(same)
        for other in aliases.memory[changed]:
            if other not in members and other in self._env and last_use[other] > index:
                raise NeedsFunctional

    # -- one call -----------------------------------------------------------------------------------------------------------------

    def _call(self, node: Traced) -> Value:
        target: Any = node.target
        args, kwargs = self._resolve(tuple(node.args)), self._resolve(dict(node.kwargs))
        if target is getitem:
            return args[0][args[1]]
        args, kwargs = _spread_results(args), _spread_results(kwargs)
        name, result = aten_name(target), node.meta.get("val")
        if name in _CHECKS:
            return None
        inner = _mode_only(target, args)
        if inner is not None:
            return self._inline(args[inner].graph, args[inner + 1 :])
        operands = list(tensors_of((args, kwargs)))
        random = name not in DROPOUTS and torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
        if name in _SHAPE_ONLY and len(operands) == 1 and isinstance(args[0], Node):
            return target(_stand_in(args[0], result), *args[1:], **kwargs)
        if name in _SHAPE_SECOND and isinstance(args[0], Tensor) and len(args) > 1 and isinstance(args[1], Node):
            return target(args[0], _stand_in(args[1], result), *args[2:], **kwargs)
        if not random and not any(isinstance(value, Node) for value in operands):
            return self._evaluate(target, args, kwargs)
        self._published.update(_memory(value) for value in operands if isinstance(value, Tensor))
        written = _written(target)
        mixed = written and len({value.dtype for value in operands}) > 1
        if name and not mixed:
            plain = name.removesuffix("_") if written else name
            values = bind(target, args, kwargs)
            handler = TABLE.get(plain)
            if handler is not None and self._is_known(target):
                value = handler(self, Call(plain, values, result, _used(node)))
                if value is not None:
                    return value
        if written:
            target = _functional(target, written, mixed=bool(mixed))
        return self._unmapped(target, args, kwargs, result)

    @staticmethod
    def _is_known(target: Any) -> bool:
        name = str(target._schema.name)
        return name.startswith("aten::") or name in OPERATORS

    def _unmapped(self, target: Any, args: Any, kwargs: Any, result: Any) -> Value:
        if isinstance(result, Tensor):
            return self.torch(target, tuple(args), kwargs, result)
        if isinstance(result, (tuple, list)):
            return _Results(self, self.torch(target, tuple(args), kwargs, None), result)
        return self.torch(target, tuple(args), kwargs, None)

    def _evaluate(self, target: Any, args: Any, kwargs: Any) -> Value:
        """Run a call whose operands do not depend on the frame."""
        for position in _written(target):
            value = list(bind(target, args, kwargs).values())[position]
            if not isinstance(value, Tensor) or _memory(value) in self._published:
                raise NeedsFunctional
        with torch.no_grad():
            return target(*args, **kwargs)

    # -- names --------------------------------------------------------------------------------------------------------------------

    def _origin_of(self, node: Traced) -> _Origin:
        stack = [(key, self._path_of(entry[0])) for key, entry in (node.meta.get("nn_module_stack") or {}).items()]
        self._parents.update(path for _, path in stack[:-1])
        key, path = stack[-1] if stack else ("", "")
        name = aten_name(node.target).removesuffix("_") or getattr(node.target, "__name__", "call")
        operands = [operand.name for operand in node.all_input_nodes]
        owned = any(self._owners[operand].rpartition(".")[0] == path for operand in operands if operand in self._owners)
        return _Origin(path, key, name, _source(node.meta.get("stack_trace")), owned and _LAYERS.match(name) is not None)

    def finish(self, outputs: list[Node], name: str) -> Graph:
        """Remove what no output needs, fold pads, name the rest.

        Args:
            outputs: the values that the model returns.
            name: of the graph.

        Returns:
            The graph, without an output tree.

        Raises:
            CaptureError: an output depends on a buffer that the model changes.
        """
        nodes = _alive(self.nodes, outputs)
        _fold_pads(nodes, outputs)
        nodes = _alive(nodes, outputs)
        for node in nodes:
            if node.op == "state":
                raise CaptureError(
                    f"model: it changes its buffer or parameter {node.attrs['name']!r} in forward and its output depends on it, "
                    "so that it is not a function of the frame alone; capture the sub-modules that keep no state"
                )
        self._name(nodes)
        return Graph(nodes, outputs, None, name)

    def _name(self, nodes: Sequence[Node]) -> None:
        namer = Namer(["input"])
        primary: dict[str, Node] = {}
        for node in nodes:
            origin = self._origins.get(node)
            if origin is None or node.op == "constant" or not origin.path:
                continue
            held = primary.get(origin.key)
            if origin.layer:
                primary[origin.key] = node if held is None or not self._origins[held].layer else held
            elif held is None and origin.path not in self._parents:
                primary[origin.key] = node
        for node in nodes:
            origin = self._origins.get(node)
            if node.op == "input" or origin is None:
                continue
            if primary.get(origin.key) is node:
                node.name = namer(origin.path)
                continue
            known = self._constant_names.get(id(node.attrs["value"])) if node.op == "constant" else None
            if known:
                node.name, node.module, node.source = namer(known), known.rpartition(".")[0], ""
            else:
                node.name = namer(".".join(filter(None, (origin.path, _label(node, origin)))))


def _label(node: Node, origin: _Origin) -> str:
    if node.op in {"act", "scalar"}:
        return str(node.attrs["kind"])
    return origin.label if node.op == "torch" else node.op


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module.detach() if isinstance(module, Tensor) else module


def _used(node: Traced) -> frozenset[int]:
    """Indices of the results that are read; a reader that takes them all counts as one that reads beyond the first."""
    readers = [user for user in node.users if user.target is not getitem or user.users]
    return frozenset(cast("int", user.args[1]) if user.target is getitem else 99 for user in readers)


def _memory(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _stand_in(node: Node, result: Any) -> Tensor:
    """A tensor with a node's shape and element type, for calls that read nothing else; takes no memory."""
    return torch.empty(1, dtype=node.dtype, device=result.device).expand(node.shape or ())


def _mode_only(target: Any, args: Sequence[Value]) -> int | None:
    """Position of the program inside a call that sets a mode without effect on values: gradients on or off, autocast off."""
    name = getattr(target, "__name__", "")
    if name.startswith("wrap_with_set_grad_enabled"):
        return 1
    return 4 if name.startswith("wrap_with_autocast") and args[2] is False else None


def _spread_results(value: Any) -> Any:
    """Write several results that are passed on together as a list of them."""
    if isinstance(value, _Results):
        return value.all()
    if isinstance(value, (tuple, list)):
        return type(value)(_spread_results(item) for item in value)
    return {key: _spread_results(item) for key, item in value.items()} if isinstance(value, dict) else value


def _functional(target: Any, written: Sequence[int], *, mixed: bool) -> Any:
    """A callable that returns what an in-place call would have stored."""
    name = aten_name(target)
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") and not name.endswith("__") else None
    twin = getattr(packet, target._overloadname, None) if packet is not None else None
    if twin is not None and not mixed:
        names = [[argument.name for argument in schema.arguments] for schema in (twin._schema, target._schema)]
        if names[0] == names[1] and not _written(twin):
            return twin
    if len(written) != 1:
        raise CaptureError(f"model: {target} changes several tensors at once, which cannot be captured; rewrite it out of place")
    return _OutOfPlace(target, written[0])


def _source(trace: str | None) -> str:
    """Innermost call in the user's code, as "file:line"; empty if there is none."""
    here = str(Path(__file__).parent) + os.sep
    for file, line in reversed(_FRAME.findall(trace or "")):
        if not file.startswith((_TORCH, here)) and "/torch/nn/modules/" not in file.replace("\\", "/"):
            return f"{file}:{line}"
    return ""


def _alive(nodes: Sequence[Node], outputs: Sequence[Node]) -> list[Node]:
    """The nodes that some output needs, and the frame."""
    needed = set(outputs)
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.inputs)
    return [node for node in nodes if node in needed or node.op == "input"]


def _fold_pads(nodes: Sequence[Node], outputs: Sequence[Node]) -> None:
    """Give a window op the padding of the pad in front of it, where that is the same thing."""
    uses: dict[Node, int] = dict.fromkeys(outputs, 1)
    for node in nodes:
        for operand in node.inputs:
            uses[operand] = uses.get(operand, 0) + 1
    for node in nodes:
        if node.op not in {"conv2d", "max_pool2d", "avg_pool2d"}:
            continue
        pad = node.inputs[0]
        if pad.op == "pad" and uses[pad] == 1 and _takes_padding(node, pad):
            node.attrs["padding"] = tuple(a + b for a, b in zip(node.attrs["padding"], pad.attrs["padding"], strict=True))
            node.inputs[0] = pad.inputs[0]


def _takes_padding(node: Node, pad: Node) -> bool:
    """Whether a pad can become the padding of `node`; changes the attributes that say what the padding is."""
    mode, value, attrs = pad.attrs["mode"], pad.attrs["value"], node.attrs
    bare = not any(attrs["padding"])
    if node.op == "conv2d":
        if attrs["transposed"] or attrs["padding_mode"] != "zeros":
            return False
        if mode == "constant":
            return bool(value == 0)
        attrs["padding_mode"] = mode if bare else attrs["padding_mode"]
        return bare
    if mode != "constant" or attrs["ceil_mode"]:
        return False
    if node.op == "max_pool2d":
        return bool(value == float("-inf"))
    if value == 0 and (bare or attrs["count_include_pad"]):
        attrs["count_include_pad"] = True
        return True
    return False
