"""Lowers a plan to a native program: one C++ step per plan step, or a torch step in between where there is none.

A map (n, c, h, w) lives channels last in a storage of its own; a vector (n, c) is a map of 1x1. Three ops cost nothing because they
only rename memory: `cat` (its inputs are written straight into it where possible), `slice` of channels, and `flatten` before a
linear layer (which becomes a convolution as large as the map).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch

from sightline.footprint import WindowFootprint
from sightline.graph import rules
from sightline.graph.blocks import is_depthwise
from sightline.graph.ir import Node
from sightline.graph.plan import Plan, Step

# Same order as enum Act in csrc/isa.h.
_ACTS = (
    "none", "relu", "clamp", "leaky_relu", "prelu", "silu", "hardswish", "sigmoid", "hardsigmoid", "gelu", "gelu_tanh", "tanh", "elu",
    "mish", "softplus", "exp", "sqrt", "abs", "neg",
)  # fmt: skip
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")  # enum Binary
_SLACK = 64  # elements behind the last pixel of a storage, see csrc/isa.h
_LARGEST = 2**31 - 1
_RESHAPES = {"reshape", "view", "_unsafe_view", "unsqueeze", "squeeze"}  # targets that keep values in their order
_VIEWS = _RESHAPES | {"permute", "transpose"}  # targets that only show values differently
NOT_HELD = -1  # in place of a storage: a map that a later step computes as it goes


class Unsupported(Exception):  # noqa: N818  (control flow inside this file, never seen outside)
    """A step that has no native form; the text says why."""


@dataclass
class Segment:
    """A stretch of native steps [first, last), or one torch step."""

    first: int = 0
    last: int = 0
    torch_step: Step | None = None
    native_id: int = -1  # of the torch step, where its value is a map


@dataclass(eq=False)
class Lowered:
    """What the streams of one plan share.

    Attributes:
        program: the C++ program.
        segments: in execution order.
        dtype: element type of maps and weights, float32 or bfloat16; sums are float32.
        tensors: node -> tensor id, for every value that is a map or a vector of the frame's element type.
        views: tensor id -> (storage, offset, (n, h, w, c), ld).
        step_ids: plan step -> native step id; steps that only rename memory are missing.
        constants: storage id -> its content.
        reasons: plan step -> why it runs on torch.
        renamed: plan step -> what it is, for steps that cost nothing.
        flat: flattened vector -> the map that stands for it.
        copies: plan step of a concatenation -> ids of the native steps that copy parts into it; not counted as steps of the plan.
    """

    plan: Plan
    program: Any
    dtype: torch.dtype = torch.float32
    segments: list[Segment] = field(default_factory=list)
    tensors: dict[Node, int] = field(default_factory=dict)
    views: dict[int, tuple[int, int, tuple[int, int, int, int], int]] = field(default_factory=dict)
    step_ids: dict[Step, int] = field(default_factory=dict)
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    reasons: dict[Step, str] = field(default_factory=dict)
    renamed: dict[Step, str] = field(default_factory=dict)
    flat: dict[Node, Node] = field(default_factory=dict)
    copies: dict[Step, list[int]] = field(default_factory=dict)


def lower(plan: Plan, module: ModuleType, isa: str, dtype: torch.dtype = torch.float32) -> Lowered:
    """Lowers a plan; weights are packed here, once for all streams.

    Args:
        plan: what to lower; values of the frame's element type become maps, whichever it is.
        module: the compiled library.
        isa: one of its instruction sets.
        dtype: what to compute in: float32 or bfloat16.
    """
    return _Lowering(plan, module, isa, dtype).run()


def _nhwc(node: Node, dtype: torch.dtype | None) -> tuple[int, int, int, int] | None:
    """Size as a channels-last map, or None if the value is not a map or vector of this element type."""
    shape = node.shape
    if shape is None or node.dtype != dtype or 0 in shape:
        return None
    if len(shape) == 4:
        n, c, h, w = shape
    elif len(shape) == 2:
        (n, c), h, w = shape, 1, 1
    else:
        return None
    if h > 65535 or w > 65535 or n * h * w > _LARGEST:
        return None
    return n, h, w, c


def _floats(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().to("cpu", torch.float32).contiguous()


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class _Lowering:
    def __init__(self, plan: Plan, module: ModuleType, isa: str, dtype: torch.dtype) -> None:
        self.plan = plan
        self.out = Lowered(plan, module.Program(isa, dtype == torch.bfloat16), dtype)
        self.captured = plan.graph.input.dtype  # of the values that become maps
        self.program = self.out.program
        self.users = plan.graph.users()
        self.places: dict[Node, tuple[int, int, int]] = {}  # node -> (storage, channel offset, ld)
        self.keep: list[Any] = []  # arrays whose addresses C++ is reading at the moment
        self.steps = 0
        self.blocks = self._blocks()
        self.inside = {part for parts in self.blocks.values() for part in parts}

    def run(self) -> Lowered:
        self._place_concatenations()
        for step in self.plan.steps:
            before = self.steps
            try:
                self._native(step)
            except Unsupported as reason:
                assert self.steps == before, "a step must not be half lowered"
                self.out.reasons[step] = str(reason)
                self._external(step)
            self.keep.clear()
        self._segments()
        return self.out

    # -- memory ----------------------------------------------------------------------------------------------

    def _place_concatenations(self) -> None:
        """Lets the inputs of a channel-wise cat be written straight into it; outermost first."""
        for step in reversed(self.plan.steps):
            node = step.head
            size = _nhwc(node, self.captured)
            if node.op != "cat" or node.attrs["dim"] != 1 or size is None or any(_nhwc(i, self.captured) is None for i in node.inputs):
                continue
            storage, base, ld = self._place(node, size)
            channel = base
            for part in node.inputs:
                producer = self.plan.by_output.get(part)
                width = _nhwc(part, self.captured)[3]  # type: ignore[index]
                if part not in self.places and node.inputs.count(part) == 1 and producer is not None and self._writes(producer):
                    self.places[part] = (storage, channel, ld)
                channel += width

    def _writes(self, step: Step) -> bool:
        """Whether a step fills memory of its own, so that it can as well be another's; slices of adjacent channels are views."""
        a = step.head.attrs
        if step.head.op == "slice":
            return bool(a["dim"] != 1 or a.get("step", 1) != 1)
        return step.head.op not in {"input", "constant", "flatten"} and not self._reshapes_vector(step)

    def _place(self, node: Node, size: tuple[int, int, int, int]) -> tuple[int, int, int]:
        if node not in self.places:
            n, h, w, c = size
            self.places[node] = (self.program.add_storage(n * h * w * c + _SLACK), 0, c)
        return self.places[node]

    def _blocks(self) -> dict[Step, list[Step]]:
        """Step -> the steps that it computes as it goes, in execution order, where all of them have native steps."""
        blocks: dict[Step, list[Step]] = {}
        for step in self.plan.steps:
            if step.inside is not None:
                blocks.setdefault(step.inside, []).append(step)
        return {
            last: parts
            for last, parts in blocks.items()
            if all(_nhwc(s.output, self.captured) is not None and (s.act is None or s.act.attrs["kind"] in _ACTS) for s in [last, *parts])
        }

    def _tensor(self, node: Node, mask_of: int = -1) -> int:
        size = _nhwc(node, self.captured)
        if size is None:
            raise Unsupported(f"its value is {node.dtype} of shape {node.shape}, not a map or vector of {self.captured}")
        step = self.plan.by_output.get(node)
        storage, channel, ld = (NOT_HELD, 0, size[3]) if step in self.inside else self._place(node, size)
        n, h, w, c = size
        tensor = self.program.add_tensor(storage, channel, n, h, w, c, ld, mask_of)
        self.out.tensors[node] = tensor
        self.out.views[tensor] = (storage, channel, size, ld)
        return int(tensor)

    def _read(self, node: Node) -> int:
        if node not in self.out.tensors:
            raise Unsupported(f"it reads '{node.name}', which is not a map or vector of {self.captured}")
        return self.out.tensors[node]

    def _axes(self, rows: np.ndarray[Any, Any], cols: np.ndarray[Any, Any], h: int, w: int) -> tuple[int, int]:
        ids = []
        for table, n_in in ((rows, h), (cols, w)):
            index = np.ascontiguousarray(table, dtype=np.int32)
            self.keep.append(index)
            ids.append(int(self.program.add_axis(n_in, index.shape[0], index.shape[1], index.ctypes.data)))
        return ids[0], ids[1]

    def _array(self, values: Any) -> int:
        array = np.ascontiguousarray(values, dtype=np.float32)
        self.keep.append(array)
        return int(array.ctypes.data)

    # -- steps -------------------------------------------------------------------------------------------------

    def _native(self, step: Step) -> None:
        head = step.head
        if head.op == "constant":
            return self._constant(step)
        if _nhwc(step.output, self.captured) is None:
            raise Unsupported(f"its value is {step.output.dtype} of shape {step.output.shape}, not a map or vector of {self.captured}")
        if head.op == "input":
            if len(head.shape or ()) != 4:
                raise Unsupported("the frame is not (n, c, h, w)")
            return self._done(step, self.program.add_input(self._tensor(head)))
        emit = getattr(self, f"_emit_{head.op}", None)
        if emit is None and head.op in _BINARY:
            emit = self._emit_binary
        if emit is None or (head.op == "torch" and not self._reshapes_vector(step)):
            raise Unsupported("there is no native step for this op" if head.op != "torch" else f"unknown op {_target(head)}")
        for node in step.reads:
            if node not in self.out.flat:
                self._read(node)
        emit(step)
        return None

    def _done(self, step: Step, native_id: int) -> None:
        assert native_id == self.steps
        self.steps += 1
        self.out.step_ids[step] = native_id
        self._close_block(step, native_id)
        act, slope = 0, None
        params: tuple[float, ...] = (0.0, 0.0)
        if step.act is not None:
            kind = step.act.attrs["kind"]
            act = _ACTS.index(kind)
            given = tuple(float(p) for p in step.act.attrs.get("params", ()))
            params = (*given, 0.0, 0.0)[:2]
            slope = _floats(step.act.attrs.get("slope")) if kind == "prelu" else None
        residual = self._read(step.residual) if step.residual is not None else -1
        if act or residual >= 0:
            self.program.set_epilogue(
                native_id,
                act,
                params[0],
                params[1],
                _address(slope),
                0 if slope is None else slope.numel(),
                residual,
                step.residual_after_act,
            )

    def _close_block(self, last: Step, native_id: int) -> None:
        if last not in self.blocks:
            return
        middle = first = -1
        for part in self.blocks[last]:
            if part.output is last.inputs[0] and not is_depthwise(last):
                middle = self.out.step_ids[part]
            else:
                first = self.out.step_ids[part]
        self.program.fuse_block(native_id, middle, first)

    def _check_act(self, step: Step) -> None:
        if step.act is not None and step.act.attrs["kind"] not in _ACTS:
            raise Unsupported(f"there is no native activation '{step.act.attrs['kind']}'")

    def _constant(self, step: Step) -> None:
        node = step.head
        value = node.attrs["value"]
        if not isinstance(value, torch.Tensor) or value.dtype != self.captured:
            return
        # Broadcasting aligns the last axes, so where they lie in a map depends on who reads them.
        ranks = {len(user.shape or ()) for user in self.users[node]} or {value.dim()}
        rank = ranks.pop()
        if ranks or rank not in {2, 4} or value.dim() > rank:
            return
        shape = (*(1,) * (rank - value.dim()), *value.shape, *(1,) * (4 - rank))
        stand_in = Node(node.name, "constant", shape=shape, dtype=self.captured)
        if _nhwc(stand_in, self.captured) is None:
            return
        tensor = self.out.tensors[node] = self._tensor(stand_in)
        del self.out.tensors[stand_in]
        storage, _, size, _ = self.out.views[tensor]
        content = torch.zeros(int(np.prod(size)) + _SLACK, dtype=self.out.dtype)
        content[:-_SLACK] = value.detach().cpu().reshape(shape).permute(0, 2, 3, 1).reshape(-1)
        self.out.constants[storage] = content

    def _external(self, step: Step) -> None:
        if _nhwc(step.output, self.captured) is None or self._is_view_for_torch(step):
            return
        native_id = self.program.add_external(self._tensor(step.output))
        assert native_id == self.steps
        self.steps += 1
        self.out.step_ids[step] = native_id

    def _is_view_for_torch(self, step: Step) -> bool:
        """Whether a step shows values in another order and torch steps alone read it: then it is left where it is."""
        users = self.users[step.output]
        return (
            _target_name(step.head) in _VIEWS
            and len(step.nodes) == 1
            and bool(users)
            and step.output not in self.plan.graph.outputs
            and all(user.op == "torch" and not self._reshapes_vector(self.plan.by_output.get(user)) for user in users)
        )

    def _segments(self) -> None:
        first = 0
        for step in self.plan.steps:
            if step not in self.out.reasons:
                continue
            native_id = self.out.step_ids.get(step, -1)
            # A torch step without a native id runs before the next native step of the plan.
            at = native_id if native_id >= 0 else self._next_id(step)
            if at > first:
                self.out.segments.append(Segment(first, at))
            self.out.segments.append(Segment(torch_step=step, native_id=native_id))
            first = at + 1 if native_id >= 0 else at
        if self.steps > first:
            self.out.segments.append(Segment(first, self.steps))

    def _next_id(self, step: Step) -> int:
        where = self.plan.steps.index(step)
        return next((self.out.step_ids[s] for s in self.plan.steps[where:] if s in self.out.step_ids), self.steps)

    # -- convolutions ----------------------------------------------------------------------------------------------

    def _emit_conv2d(self, step: Step) -> None:
        self._check_act(step)
        node, source = step.head, self._read(step.inputs[0])
        a = node.attrs
        weight = _floats(a["weight"])
        bias = _floats(a.get("bias"))
        assert weight is not None
        groups, transposed = a["groups"], a.get("transposed", False)
        kh, kw = weight.shape[2:]
        if transposed:
            grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
            weight = grouped.transpose(1, 2).reshape(-1, weight.shape[0] // groups, kh, kw).contiguous()
        cout, cin_group = weight.shape[:2]
        _, h, w, cin = self.out.views[source][2]
        target = self._tensor(step.output)
        plain = kh == kw == 1 and not transposed and tuple(a["stride"]) == (1, 1) and not any(a["padding"])
        depthwise = groups == cin == cout and not transposed
        rows = cols = -1
        if depthwise or not plain:
            footprint = rules.rule_of(node).footprint(node)
            assert isinstance(footprint, WindowFootprint)
            rows, cols = self._axes(footprint.rows.index, footprint.cols.index, h, w)
        self.keep += [weight, bias]
        if depthwise:
            self._done(step, self.program.add_depthwise(target, source, rows, cols, _address(weight), _address(bias), kh, kw))
            return
        period = tuple(a["stride"]) if transposed else (1, 1)
        self._done(
            step,
            self.program.add_conv(target, source, rows, cols, _address(weight), _address(bias), cout, cin_group, kh, kw, groups, *period),
        )

    def _emit_linear(self, step: Step) -> None:
        node, source = step.head, step.inputs[0]
        if len(node.shape or ()) != 2:
            raise Unsupported("a linear layer on more than one axis")
        weight, bias = _floats(node.attrs["weight"]), _floats(node.attrs.get("bias"))
        assert weight is not None
        origin = self.out.flat.get(source, source)
        tensor = self._read(origin)
        _, h, w, c = self.out.views[tensor][2]
        target = self._tensor(step.output)
        rows = cols = -1
        if h * w > 1:
            rows, cols = self._axes(np.arange(h)[None], np.arange(w)[None], h, w)
        self.keep += [weight, bias]
        self._done(
            step, self.program.add_conv(target, tensor, rows, cols, _address(weight), _address(bias), weight.shape[0], c, h, w, 1, 1, 1)
        )

    def _emit_knn_conv(self, step: Step) -> None:
        target, source, _, cols, _ = self._window(step)
        a = step.head.attrs
        weight, bias = _floats(a["weight"]), _floats(a["bias"])
        assert weight is not None
        channels = self.out.views[source][2][3]
        cell = np.ascontiguousarray(a["cell"].cpu().numpy(), dtype=np.int32)
        self.keep += [weight, bias, cell]
        cells = weight.shape[1] // channels
        native_id = self.program.add_knn(target, source, cols, _address(weight), _address(bias), weight.shape[0], cells, cell.ctypes.data)
        self._done(step, native_id)

    def _emit_knn_depthwise(self, step: Step) -> None:
        a = step.head.attrs
        target, source, _, cols, _ = self._window(step)
        weight, cell = _floats(a["weight"].transpose(1, 2)), np.ascontiguousarray(a["cell"].cpu().numpy(), dtype=np.int32)
        self.keep += [weight, cell]
        native_id = self.program.add_knn_depthwise(target, source, cols, _address(weight), a["weight"].shape[1], cell.ctypes.data)
        self._done(step, native_id)

    # -- windows -----------------------------------------------------------------------------------------------------

    def _window(self, step: Step) -> tuple[int, int, int, int, WindowFootprint]:
        self._check_act(step)
        source = self._read(step.inputs[0])
        footprint = rules.rule_of(step.head).footprint(step.head)
        if not isinstance(footprint, WindowFootprint):
            raise Unsupported("it has no window")
        _, h, w, _ = self.out.views[source][2]
        rows, cols = self._axes(footprint.rows.index, footprint.cols.index, h, w)
        return self._tensor(step.output), source, rows, cols, footprint

    def _emit_max_pool2d(self, step: Step) -> None:
        target, source, rows, cols, _ = self._window(step)
        self._done(step, self.program.add_max_pool(target, source, rows, cols))

    _emit_adaptive_max_pool2d = _emit_max_pool2d

    def _emit_knn_pool(self, step: Step) -> None:
        target, source, rows, cols, footprint = self._window(step)
        present = footprint.cols.index >= 0
        if step.head.attrs["mode"] == "max":
            return self._done(step, self.program.add_max_pool(target, source, rows, cols, 0.0))
        weight = step.head.attrs["weight"]
        factors = present if weight is None else np.where(present, weight.detach().cpu().numpy(), 0)
        counts = np.maximum(present.sum(1), 1) if step.head.attrs["mode"] == "avg" else np.ones(len(present))
        one, weights, divisors = self._array([1.0]), self._array(factors), self._array(counts)
        return self._done(step, self.program.add_weighted(target, source, rows, cols, one, weights, one, divisors, 0.0))

    def _emit_avg_pool2d(self, step: Step) -> None:
        target, source, rows, cols, footprint = self._window(step)
        a = step.head.attrs
        divisors = []
        size_in = self.out.views[source][2][1:3]
        for axis, taps in enumerate((footprint.rows, footprint.cols)):
            if a["count_include_pad"]:
                before, after = a["padding"][2 * axis : 2 * axis + 2]
                starts = np.arange(taps.n_out) * a["stride"][axis] - before
                divisors.append(np.minimum(starts + a["kernel"][axis], size_in[axis] + after) - starts)
            else:
                divisors.append((taps.index >= 0).sum(axis=1))
        fixed = float(a["divisor_override"] or 0)
        self._done(
            step, self.program.add_weighted(target, source, rows, cols, 0, 0, self._array(divisors[0]), self._array(divisors[1]), fixed)
        )

    def _emit_adaptive_avg_pool2d(self, step: Step) -> None:
        target, source, rows, cols, footprint = self._window(step)
        counts = [self._array((taps.index >= 0).sum(axis=1)) for taps in (footprint.rows, footprint.cols)]
        self._done(step, self.program.add_weighted(target, source, rows, cols, 0, 0, counts[0], counts[1], 0.0))

    def _emit_upsample(self, step: Step) -> None:
        footprint = rules.rule_of(step.head).footprint(step.head)
        assert isinstance(footprint, WindowFootprint)
        if footprint.rows.weights is None or footprint.cols.weights is None:
            return self._gather(step)
        target, source, rows, cols, footprint = self._window(step)
        wy, wx = self._array(footprint.rows.weights), self._array(footprint.cols.weights)
        return self._done(step, self.program.add_weighted(target, source, rows, cols, wy, wx, 0, 0, 1.0))

    def _emit_global_avg_pool(self, step: Step) -> None:
        self._check_act(step)
        source = self._read(step.inputs[0])
        self._done(step, self.program.add_mean(self._tensor(step.output), source))

    # -- element-wise ---------------------------------------------------------------------------------------------------

    def _emit_affine(self, step: Step) -> None:
        self._check_act(step)
        source = self._read(step.inputs[0])
        scale, shift = _floats(step.head.attrs["scale"]), _floats(step.head.attrs["shift"])
        self.keep += [scale, shift]
        self._done(step, self.program.add_pointwise(self._tensor(step.output), source, _address(scale), _address(shift)))

    def _emit_channel_norm(self, step: Step) -> None:
        self._check_act(step)
        source = self._read(step.inputs[0])
        a = step.head.attrs
        scale, shift = _floats(a["scale"]), _floats(a["shift"])
        self.keep += [scale, shift]
        target = self._tensor(step.output)
        self._done(step, self.program.add_channel_norm(target, source, _address(scale), _address(shift), a["epsilon"]))

    def _emit_softmax(self, step: Step) -> None:
        if step.head.attrs["dim"] != 1:
            raise Unsupported("a softmax over positions")
        source = self._read(step.inputs[0])
        self._done(step, self.program.add_softmax(self._tensor(step.output), source))

    def _emit_act(self, step: Step) -> None:
        self._check_act(step)
        source = self._read(step.inputs[0])
        self._done(step, self.program.add_pointwise(self._tensor(step.output), source, 0, 0))

    def _emit_binary(self, step: Step) -> None:
        self._check_act(step)
        if len(step.inputs) != 2:
            raise Unsupported("two operands are needed")
        out = _nhwc(step.head, self.captured)
        operands = [self._read(node) for node in step.inputs]
        for tensor, node in zip(operands, step.inputs, strict=True):
            same_rank = node.op == "constant" or len(node.shape or ()) == len(step.head.shape or ())
            if (
                out is None
                or not same_rank
                or any(have not in (1, want) for have, want in zip(self.out.views[tensor][2], out, strict=True))
            ):
                raise Unsupported(f"operand '{node.name}' of shape {node.shape} does not broadcast along (n, c, h, w)")
        self._done(step, self.program.add_binary(self._tensor(step.output), *operands, _BINARY.index(step.head.op)))

    # -- moving values ----------------------------------------------------------------------------------------------------

    def _gather(self, step: Step, fill: float = 0.0) -> None:
        """All channels of one source, from one position each."""
        target, source, rows, cols, _ = self._window(step)
        channels = self.out.views[source][2][3]
        native_id = self.program.add_gather(target, fill)
        self.program.add_gather_part(native_id, source, rows, cols, 1, 1, [0, 0, 0, channels])
        self._done(step, native_id)

    def _emit_pad(self, step: Step) -> None:
        self._gather(step, float(step.head.attrs.get("value") or 0.0))

    def _emit_slice(self, step: Step) -> None:
        node, source = step.head, step.inputs[0]
        a = node.attrs
        base = self._read(source)
        if len(source.shape or ()) == 4 and a["dim"] in {2, 3}:
            return self._gather(step)
        if a["dim"] != 1:
            raise Unsupported("a slice along the batch")
        if a.get("step", 1) != 1:
            return self._channels(step, base, range(a["start"], a["stop"], a["step"]))
        storage, offset, (n, h, w, _), ld = self.out.views[base]
        channels = (node.shape or (0, 0))[1]
        start = offset + a["start"]
        tensor = self.program.add_tensor(storage, start, n, h, w, channels, ld, base)
        self.out.tensors[node] = tensor
        self.out.views[tensor] = (storage, start, (n, h, w, channels), ld)
        self.out.renamed[step] = "a view"
        return None

    def _emit_flatten(self, step: Step) -> None:
        node, source = step.head, step.inputs[0]
        base = self._read(source)
        _, h, w, _ = self.out.views[base][2]
        if h * w == 1:
            return self._renamed(step, base)
        if node not in self.plan.graph.outputs and all(user.op == "linear" for user in self.users[node]):
            self.out.flat[node] = source
        else:
            raise Unsupported("flattening a map changes its layout")
        self.out.renamed[step] = "a view"
        return None

    def _reshapes_vector(self, step: Step | None) -> bool:
        """Whether a step without a canonical op turns a vector (n, c) into a map of one position (n, c, 1, 1), or back."""
        if step is None or _target_name(step.head) not in _RESHAPES or len(step.nodes) > 1 or len(step.inputs) != 1:
            return False
        size = _nhwc(step.head, self.captured)
        return size is not None and size[1:3] == (1, 1) and _nhwc(step.inputs[0], self.captured) == size

    def _emit_torch(self, step: Step) -> None:
        self._renamed(step, self._read(step.inputs[0]))

    def _renamed(self, step: Step, base: int) -> None:
        storage, offset, size, ld = self.out.views[base]
        tensor = self.program.add_tensor(storage, offset, *size, ld, base)
        self.out.tensors[step.head] = tensor
        self.out.views[tensor] = (storage, offset, size, ld)
        self.out.renamed[step] = "a view"

    def _emit_cat(self, step: Step) -> None:
        node = step.head
        dim = node.attrs["dim"]
        if dim != 1:
            return self._cat_spatial(step, dim)
        parts = [self._read(part) for part in node.inputs]
        storage, channel, ld = self.places[node]
        target_parts = []
        for part, tensor in zip(node.inputs, parts, strict=True):
            n, h, w, c = self.out.views[tensor][2]
            if self.places.get(part) != (storage, channel, ld) or self.out.views[tensor][:2] != (storage, channel):
                copy = self.program.add_tensor(storage, channel, n, h, w, c, ld)
                native_id = self.program.add_gather(copy, 0.0)
                self.program.add_gather_part(native_id, tensor, -1, -1, 1, 1, [0, 0, 0, c])
                assert native_id == self.steps
                self.steps += 1
                self.out.copies.setdefault(step, []).append(native_id)
                target_parts.append(copy)
            else:
                target_parts.append(tensor)
            channel += c
        target = self._tensor(node)
        self._done(step, self.program.add_union(target, target_parts))
        return None

    def _cat_spatial(self, step: Step, dim: int) -> None:
        node = step.head
        if len(node.shape or ()) != 4 or dim not in {2, 3}:
            raise Unsupported("a concatenation along the batch")
        parts = [self._read(part) for part in node.inputs]
        target = self._tensor(node)
        native_id = self.program.add_gather(target, 0.0)
        _, out_h, out_w, _ = self.out.views[target][2]
        at = 0
        for tensor in parts:
            _, h, w, c = self.out.views[tensor][2]
            rows, cols = np.arange(out_h), np.arange(out_w)
            shifted = (rows if dim == 2 else cols) - at
            shifted[(shifted < 0) | (shifted >= (h if dim == 2 else w))] = -1
            ids = self._axes((shifted if dim == 2 else rows)[:, None], (cols if dim == 2 else shifted)[:, None], h, w)
            self.program.add_gather_part(native_id, tensor, *ids, 1, 1, [0, 0, 0, c])
            at += h if dim == 2 else w
        self._done(step, native_id)

    def _emit_channel_shuffle(self, step: Step) -> None:
        self._check_act(step)
        source = self._read(step.inputs[0])
        channels = self.out.views[source][2][3]
        self._channels(step, source, np.arange(channels).reshape(step.head.attrs["groups"], -1).T.reshape(-1).tolist())

    def _channels(self, step: Step, source: int, order: Iterable[int]) -> None:
        """Picks channels of one source, in this order."""
        native_id = self.program.add_gather(self._tensor(step.output), 0.0)
        self.program.add_gather_part(native_id, source, -1, -1, 1, 1, [v for i, c in enumerate(order) for v in (0, i, c, 1)])
        self._done(step, native_id)

    def _emit_pixel_shuffle(self, step: Step) -> None:
        r = step.head.attrs["factor"]
        target, source, rows, cols, _ = self._window(step)
        channels = self.out.views[target][2][3]
        runs = [v for p in range(r * r) for c in range(channels) for v in (p, c, c * r * r + p, 1)]
        native_id = self.program.add_gather(target, 0.0)
        self.program.add_gather_part(native_id, source, rows, cols, r, r, runs)
        self._done(step, native_id)

    def _emit_pixel_unshuffle(self, step: Step) -> None:
        self._check_act(step)
        r = step.head.attrs["factor"]
        source = self._read(step.inputs[0])
        target = self._tensor(step.output)
        _, out_h, out_w, _ = self.out.views[target][2]
        _, h, w, channels = self.out.views[source][2]
        native_id = self.program.add_gather(target, 0.0)
        for i in range(r):
            for j in range(r):
                rows, cols = self._axes((np.arange(out_h) * r + i)[:, None], (np.arange(out_w) * r + j)[:, None], h, w)
                runs = [v for c in range(channels) for v in (0, c * r * r + i * r + j, c, 1)]
                self.program.add_gather_part(native_id, source, rows, cols, 1, 1, runs)
        self._done(step, native_id)


def _target_name(node: Node) -> str:
    """Of a `torch` node: reshape, permute ..., whoever captured it."""
    return str(getattr(node.attrs.get("target"), "__name__", "")).split(".")[0] if node.op == "torch" else ""


def _target(node: Node) -> str:
    target = node.attrs.get("target")
    return str(getattr(target, "__name__", target))
