"""The graph that every importer produces and every client reads: nodes, values, call-site names.

A `Graph` is a list of `Node`s in execution order. It holds no module and no tracing object, only plain data, so that
torch.export (`capture.py`) and ONNX (`onnx_import.py`) produce the same thing and nothing downstream knows which it was.
What a node computes, and which inputs one of its outputs reads, is said by its rule (`rules.py`), not here.

Canonical ops and their attributes (everything not listed has none). Maps are `(n, c, h, w)`, vectors `(n, c)`.

=================  =====================================================================================================
``input``          the frame
``constant``       ``value``: a tensor that does not depend on the frame
``conv2d``         ``weight`` (o, i/groups, kh, kw) or, transposed, (i, o/groups, kh, kw); ``bias`` or None; ``stride`` (sy, sx);
                   ``padding`` (top, bottom, left, right); ``dilation`` (dy, dx); ``groups``; ``padding_mode`` zeros | reflect |
                   replicate | circular; ``transposed``; ``output_padding`` (y, x)
``linear``         ``weight`` (o, i), ``bias`` or None; on the last axis of a vector (n, i) or of any other tensor
``affine``         ``scale`` (c,), ``shift`` (c,): x * scale + shift per channel (batch norm in eval mode, layer scale)
``channel_norm``   ``scale`` (c,), ``shift`` (c,), ``epsilon``: layer norm over the channels of each position of a map
``act``            ``kind``: one of `ACTIVATIONS`; ``params``: tuple of floats; ``slope``: tensor (c,) or (1,) for prelu
``add`` ``sub`` ``mul`` ``div`` ``maximum`` ``minimum``   two inputs, broadcast as in torch
``scalar``         ``kind`` add | sub | rsub | mul | div | rdiv | pow, ``value``: one float operand
``max_pool2d``     ``kernel``, ``stride``, ``padding`` (4 ints as above), ``dilation``, ``ceil_mode``
``avg_pool2d``     as max_pool2d, with ``count_include_pad``, ``divisor_override`` (int or None)
``adaptive_avg_pool2d`` ``adaptive_max_pool2d``   ``output_size`` (h, w)
``global_avg_pool``   mean over h and w; ``keepdim``
``upsample``       ``mode`` nearest | bilinear | bicubic; ``align_corners``; ``scales`` (y, x) or None (then from the sizes)
``cat``            ``dim`` (always positive)
``slice``          ``dim``, ``start``, ``stop``, ``step``
``pad``            ``padding`` (top, bottom, left, right), ``mode`` constant | reflect | replicate | circular, ``value``
``channel_shuffle``   ``groups``
``pixel_shuffle`` ``pixel_unshuffle``   ``factor``
``knn_conv``       on points (n, c, N), after `simplify` maps of one row (n, c, 1, N): ``weight`` (o, c * cells), ``bias`` or None;
                   ``index`` (N_out, k), the points that each output point reads, -1 for none; ``cell`` (N_out, k), the part of the weight
                   that each of them meets. An output point that reads none is 0, bias included
``knn_depthwise``  likewise, each channel for itself: ``weight`` (c, cells, g); output channel c * g + i reads channel c
``knn_pool``       likewise: ``index``; ``mode`` max | avg | sum; ``weight`` (N_out, k) or None (not with max). One that reads none is 0
``flatten``        (n, c, h, w) -> (n, c*h*w)
``softmax``        ``dim``
``identity``       dropout in eval mode, contiguous, clone ...
``torch``          any other op: ``target`` (a callable), ``args``, ``kwargs`` (nested tuples, lists and dicts in which an `Operand(i)`
                   stands for the i-th input)
``item``           ``index``: the index-th result of a ``torch`` node with several results
=================  =====================================================================================================

Any node may carry the attribute ``own_threshold``: its value must be held, because somebody sets a threshold for just this value.
Nothing is fused or folded across it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

ACTIVATIONS = (
    "relu",  # ()
    "clamp",  # (low, high): relu6 and hardtanh
    "leaky_relu",  # (negative_slope,)
    "prelu",  # (), with attribute ``slope``
    "silu",
    "hardswish",
    "sigmoid",
    "hardsigmoid",
    "gelu",  # exact, with erf
    "gelu_tanh",
    "tanh",
    "elu",  # (alpha,)
    "mish",
    "softplus",  # (beta, threshold)
    "exp",
    "sqrt",
    "abs",
    "neg",
)


@dataclass(frozen=True)
class Operand:
    """Stands for the index-th input of a ``torch`` node inside its ``args`` and ``kwargs``."""

    index: int


@dataclass(eq=False)
class Node:
    """One operation at one call site; also stands for the value that it produces.

    Attributes:
        name: call-site name, unique in the graph: the module path where there is one ("layer1.0.conv1"), ":2" and so on
            appended for later calls of the same module.
        op: canonical op, see the module docstring.
        inputs: nodes whose values it reads.
        attrs: parameters of the op.
        shape: shape of the value; None if it is not one tensor (a ``torch`` node with several results).
        dtype: element type of the value; None as for shape.
        module: path of the module in whose forward the call stands ("" for the root).
        source: "file:line" of the call, or "".
    """

    name: str
    op: str
    inputs: list[Node] = field(default_factory=list)
    attrs: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    module: str = ""
    source: str = ""

    def __repr__(self) -> str:
        operands = ", ".join(node.name for node in self.inputs)
        return f"{self.name} = {self.op}({operands}) -> {self.shape}"


@dataclass
class Graph:
    """A captured network.

    Attributes:
        nodes: all nodes in execution order; ``input`` and ``constant`` nodes come before their first use.
        outputs: the values that the model returns, flat.
        output_tree: a torch.utils._pytree TreeSpec that rebuilds the model's own return type from `outputs`, or None for
            a single tensor.
        name: what it was captured from (class name or file name), for messages and reports.
    """

    nodes: list[Node]
    outputs: list[Node]
    output_tree: Any = None
    name: str = "model"

    @property
    def input(self) -> Node:
        """The frame."""
        return next(node for node in self.nodes if node.op == "input")

    def users(self) -> dict[Node, list[Node]]:
        """For every node, the nodes that read it (once per use), in execution order."""
        table: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for operand in node.inputs:
                table[operand].append(node)
        return table

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __str__(self) -> str:
        return "\n".join(map(repr, self.nodes))


class Namer:
    """Hands out unique call-site names: the second use of a name becomes "name:2", the third "name:3"."""

    def __init__(self, reserved: Sequence[str] = ()) -> None:
        self._used: dict[str, int] = dict.fromkeys(reserved, 1)

    def __call__(self, wanted: str) -> str:
        """The wanted name, or the next free variant of it."""
        count = self._used.get(wanted, 0) + 1
        self._used[wanted] = count
        return wanted if count == 1 else self(f"{wanted}:{count}")
