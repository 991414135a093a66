"""What the functions that translate ATen calls share: the call, the list of nodes that grows, the table itself.

The table is filled by `aten.py` (convolution, normalisation, activations, arithmetic, pooling) and `aten_layout.py` (cutting,
joining, regrouping, calls that change nothing); `aten_walk.py` walks a traced program and asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.graph.ir import Node, Operand

Value = Any
"""A `Node` (depends on the frame), a Tensor (does not), a list of these, or a plain Python value."""

RESHAPE = torch.ops.aten.reshape.default
"""Every call that only regroups the elements (view, squeeze, unsqueeze, flatten ...) becomes a ``torch`` node with this target."""


class Call:
    """One call of an ATen overload, with its operands by name.

    Attributes:
        name: ATen name without overload and without the underscore of in-place forms, "conv2d".
        values: operands by the name that the schema gives them, defaults filled in.
        result: the traced result (fake tensors): shapes and element types.
        used: indices of the results that anybody reads (for a call with several results).
    """

    def __init__(self, name: str, values: dict[str, Value], result: Any, used: frozenset[int] = frozenset()) -> None:
        self.name = name
        self.values = values
        self.result = result
        self.used = used
        self._order = tuple(values.values())

    def __getitem__(self, key: str | int) -> Value:
        """Operand by name or by position."""
        return self._order[key] if isinstance(key, int) else self.values[key]

    def get(self, key: str, default: Value = None) -> Value:
        """Operand by name, or `default` if the overload has none of that name or it is None."""
        value = self.values.get(key)
        return default if value is None else value

    def map(self, rank: int = 4) -> Node | None:
        """First operand, if it is a floating-point node of that rank whose first result has the same element type."""
        x = self._order[0] if self._order else None
        result = self.result[0] if isinstance(self.result, (list, tuple)) else self.result
        if not isinstance(x, Node) or x.shape is None or len(x.shape) != rank or not isinstance(result, Tensor):
            return None
        return x if x.dtype == result.dtype and result.dtype.is_floating_point else None


class Emitter:
    """Collects the nodes of a graph.

    Attributes:
        nodes: all nodes so far, in execution order.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._constants: dict[int, Node] = {}
        self._kept: list[Tensor] = []  # a constant's id must not be given to another tensor while the table lives

    def emit(self, op: str, inputs: Sequence[Node], like: Any, **attrs: Any) -> Node:
        """Append a node.

        Args:
            op: canonical op.
            inputs: its operands.
            like: what has the result's shape and element type (a fake tensor or a Node); None for several results.
            **attrs: attributes of the op.

        Returns:
            The new node; its name is given at the very end of the capture.
        """
        shape = None if like is None else tuple(int(size) for size in like.shape)
        node = Node("", op, list(inputs), attrs, shape, None if like is None else like.dtype)
        self.nodes.append(node)
        return node

    def operand(self, value: Value) -> Node:
        """A node for `value`, which may be a constant tensor; equal constants (the same tensor) share one node."""
        if isinstance(value, Node):
            return value
        node = self._constants.get(id(value))
        if node is None:
            node = self._constants[id(value)] = self.emit("constant", [], value, value=value)
            self._kept.append(value)
        return node

    def torch(self, target: Callable[..., Any], args: Any, kwargs: dict[str, Any], like: Any) -> Node:
        """A node for a call without a canonical op; nodes and tensors inside `args` and `kwargs` become operands."""
        inputs: list[Node] = []
        args, kwargs = replace_tensors((args, kwargs), lambda value: self._placeholder(inputs, value))
        return self.emit("torch", inputs, like, target=target, args=args, kwargs=kwargs)

    def _placeholder(self, inputs: list[Node], value: Value) -> Operand:
        node = self.operand(value)
        if node not in inputs:
            inputs.append(node)
        return Operand(inputs.index(node))


def replace_tensors(value: Value, function: Callable[[Value], Any]) -> Any:
    """Copy of nested tuples, lists and dicts in which every Node and Tensor is replaced by ``function(it)``."""
    if isinstance(value, (Node, Tensor)):
        return function(value)
    if isinstance(value, (tuple, list)):
        items = [replace_tensors(item, function) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {key: replace_tensors(item, function) for key, item in value.items()}
    return value


def tensors_of(value: Value) -> Iterator[Value]:
    """All Nodes and Tensors inside nested tuples, lists and dicts."""
    if isinstance(value, (Node, Tensor)):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))


Handler = Callable[[Emitter, Call], Value | None]
TABLE: dict[str, Handler] = {}


def aten(*names: str) -> Callable[[Handler], Handler]:
    """Enter a function in the table under these ATen names."""

    def register(handler: Handler) -> Handler:
        TABLE.update(dict.fromkeys(names, handler))
        return handler

    return register


def pair(value: Any, default: int | None = None) -> tuple[int, int]:
    """(y, x) from an int or a list of one or two; an empty list is `default` twice."""
    items = [value] if isinstance(value, int) else list(value) or [default]
    return int(items[0]), int(items[-1])


def four(value: Any) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) from a symmetric padding."""
    y, x = pair(value, 0)
    return y, y, x, x
