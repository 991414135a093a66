"""Runs a lowered plan natively: one call per frame, or one per stretch between torch steps."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import torch

from sightline import kernels
from sightline.errors import BackendError, FrameError
from sightline.graph.arena import arena
from sightline.graph.executor import Executor, own, run_chain, same, shares, tensors_of
from sightline.graph.ir import Node
from sightline.graph.lower import NOT_HELD, Lowered, Segment, lower
from sightline.graph.outputs import Outputs
from sightline.graph.plan import Plan, Step
from sightline.graph.shift import Move

_NORMS = {"rms": 0, "max": 1, "l2": 2}
_FILTERS = {None: 0, "vote": 1, "block": 2}
_TYPES = (torch.float32, torch.bfloat16)  # what the native executor computes in


def why_not(plan: Plan, dtype: torch.dtype | None = None) -> str:
    """Why a plan cannot run natively in this element type (None: the frame's own), or "" if it can."""
    frame = plan.graph.input
    if kernels.native() is None:
        return str(kernels.native_status()["reason"])
    if dtype is None and frame.dtype not in _TYPES:
        return f"the frame is {frame.dtype}; the native executor computes in float32 or bfloat16"
    if dtype is not None and dtype not in _TYPES:
        return f"dtype={dtype}; the native executor computes in float32 or bfloat16"
    if frame.shape is None or len(frame.shape) != 4:
        return f"the frame has shape {frame.shape}; the native executor takes (n, c, h, w)"
    tensors = (value for node in plan.graph.nodes for value in node.attrs.values() if isinstance(value, torch.Tensor))
    if next((value.device.type for value in tensors), "cpu") != "cpu":
        return "the model is not on the CPU"
    return ""


def computed_type(frame: torch.dtype) -> torch.dtype:
    """What frames of a type are computed in natively: float16 in float32, which is more exact; others as they are."""
    return torch.float32 if frame == torch.float16 else frame


def lower_natively(plan: Plan, dtype: torch.dtype | None = None) -> Lowered:
    """Lowers a plan, against which `why_not` has nothing to say, for this process's instruction set."""
    module = kernels.native()
    assert module is not None
    dtype = dtype or plan.graph.input.dtype
    assert dtype is not None
    return lower(plan, module, kernels.isa(), dtype)


def lowered_for(plan: Plan, backend: str, dtype: torch.dtype | None = None) -> Lowered | None:
    """The native program for a plan, or None where the torch executor is to run it.

    Raises:
        BackendError: the backend is "native" and the plan cannot run natively.
    """
    if backend == "torch":
        return None
    reason = why_not(plan, dtype)
    if reason and backend == "native":
        raise BackendError(f"backend='native' cannot run this model: {reason}. Use backend='auto' or 'torch'.")
    return None if reason else lower_natively(plan, dtype)


class NativeExecutor(Executor):
    """One stream's maps and masks over a shared program."""

    name = "native"

    def __init__(self, lowered: Lowered, norm: str, noise: str | None) -> None:
        self.plan = lowered.plan
        self._lowered = lowered
        module = kernels.native()
        assert module is not None
        program = lowered.program
        sizes = [0 if i in lowered.constants else int(size) for i, size in enumerate(program.storages)]
        self._storages = [lowered.constants.get(i, memory) for i, memory in enumerate(arena(sizes, lowered.dtype))]
        self._state = module.State(program, [s.data_ptr() for s in self._storages])
        self._state.set_norm(_NORMS[norm])
        self._state.set_filter(_FILTERS[noise])
        self._views: dict[Node, torch.Tensor] = {
            node: self._view(tensor, node) for node, tensor in lowered.tensors.items() if lowered.views[tensor][0] != NOT_HELD
        }
        for step in self.plan.steps:
            if step.head.op == "constant" and step.head not in self._views:
                value = step.head.attrs["value"]
                captured = self.plan.graph.input.dtype
                self._views[step.head] = value.to(lowered.dtype) if isinstance(value, torch.Tensor) and value.dtype == captured else value
        self._opaque: dict[Node, object] = {}
        self._opaque_changed: set[Node] = set()
        self._opaque_views: set[Node] = set()  # those that share memory with what they read
        self._opaque_ran: set[Step] = set()
        self._opaque_needless: set[Step] = set()
        self._opaque_stale: set[Step] = set()
        self._outputs: dict[Node, Outputs] = {}
        self._blanked = False
        self._paused: tuple[Step, list[Segment]] | None = None

    def _view(self, tensor: int, node: Node) -> torch.Tensor:
        storage, offset, (n, h, w, c), ld = self._lowered.views[tensor]
        flat = self._storages[storage]
        view = flat.as_strided((n, c, h, w), (h * w * ld, 1, w * ld, ld), offset)
        if node.op == "constant":
            return view.reshape(node.attrs["value"].shape)
        return view if len(node.shape or ()) == 4 else view.reshape(n, c) if ld == c else flat.as_strided((n, c), (h * w * ld, 1), offset)

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, frame: torch.Tensor) -> None:
        computed = self._lowered.dtype
        if frame.dtype not in {computed, torch.float32}:
            frame = frame.to(computed)
        if frame.stride(3) != 1 and frame.shape[3] > 1:
            frame = frame.contiguous()
        kernels.apply_num_threads()
        state = self._state
        image, plane, row, _ = frame.stride()
        if not state.begin(frame.data_ptr(), image, plane, row, frame.dtype != computed):
            raise FrameError(
                "`frame` holds NaN or Inf. Clean it (torch.nan_to_num) or skip it; the stream has not moved and takes the next frame."
            )
        self._opaque_changed.clear()
        self._opaque_ran.clear()
        for segment in self._segments():
            if segment.torch_step is not None:
                self._run_torch(segment.torch_step, segment.native_id)
            elif segment.last > segment.first:
                state.run(segment.first, segment.last)
            elif self.pause is not None:
                self.pause[1]()
        state.end()

    def _segments(self) -> list[Segment]:
        if self.pause is None:
            return self._lowered.segments
        if self._paused is None or self._paused[0] is not self.pause[0]:
            self._paused = self.pause[0], self._segments_around(self.pause[0])
        return self._paused[1]

    def _segments_around(self, step: Step) -> list[Segment]:
        """The segments with an empty one where a step has run."""
        before = self.plan.steps[: self.plan.steps.index(step) + 1]
        done = max((self._lowered.step_ids[s] + 1 for s in before if s in self._lowered.step_ids), default=0)
        waiting: set[Step | None] = {s for s in before if s in self._lowered.reasons}
        result: list[Segment] = []
        stop = Segment(done, done)
        for segment in self._lowered.segments:
            ahead = not waiting and (segment.first if segment.torch_step is None else max(segment.native_id, done)) >= done
            if ahead and stop not in result:
                result.append(stop)
            if segment.torch_step is None and segment.first < done < segment.last:
                result += [Segment(segment.first, done), stop, Segment(done, segment.last)]
            else:
                result.append(segment)
            waiting.discard(segment.torch_step)
        return result if stop in result else [*result, stop]

    def _run_torch(self, step: Step, native_id: int) -> None:
        state = self._state
        changed = any(self._has_changed(node) for node in step.reads)
        if not (state.wants_external(native_id, changed) if native_id >= 0 else self._wants_opaque(step, changed)):
            if native_id >= 0:
                state.skip_external(native_id)
            return
        self._opaque_ran.add(step)
        node = step.output
        if node in self._opaque_views and len(step.reads) == 1 and step.reads[0] in self._views:
            self._opaque_changed.add(node)  # still what it reads, which lies where it lay; results of torch steps do not
            return
        value = run_chain(step.nodes, self._read)
        if native_id >= 0:
            result = value.to(torch.float32)
            n, c, h, w = result.stride() if result.dim() == 4 else (result.stride(0), result.stride(1), 0, 0)
            state.publish_external(native_id, result.data_ptr(), n, c, h, w)
            return
        sources = [self._read(source) for source in step.reads]
        if isinstance(value, torch.Tensor) and shares(value, sources):  # it is what it reads, seen otherwise: nothing to hold or compare
            self._opaque[node] = value
            self._opaque_views.add(node)
            self._opaque_changed.add(node)
        elif not same(self._opaque.get(node), value):
            self._opaque[node] = own(value, sources)
            self._opaque_views.discard(node)
            self._opaque_changed.add(node)

    def _wants_opaque(self, step: Step, inputs_changed: bool) -> bool:
        wanted = self._state.fresh or inputs_changed or step in self._opaque_stale
        (self._opaque_stale.add if wanted and step in self._opaque_needless else self._opaque_stale.discard)(step)
        return wanted and step not in self._opaque_needless

    def _has_changed(self, node: Node) -> bool:
        tensor = self._lowered.tensors.get(node)
        return bool(self._state.tensor_changed(tensor)) if tensor is not None else node in self._opaque_changed

    def _read(self, node: Node) -> torch.Tensor:
        if node in self._views:
            return self._views[node]
        return self._opaque[node]  # type: ignore[return-value]

    # -- shifting ------------------------------------------------------------------------------------------------

    def shift(self, dy: int, dx: int) -> None:
        moves = self.shifts.moves(dy, dx)
        if self.fresh:
            return
        self._state.shift(self._map_shifts(moves), *moves[self.plan.steps[0]].by)
        for step, move in moves.items():
            if step.head.op in {"input", "constant"}:  # compared whole; never changes
                continue
            native_id = self._lowered.step_ids.get(step)
            marked = [] if native_id is None else [native_id]
            if step.head.op == "cat" and step.head.attrs["dim"] == 1 and step not in self._lowered.reasons:
                marked = self._lowered.copies.get(step, [])  # it computes nothing itself: its parts are marked
            rows, cols = (np.ascontiguousarray(marks, dtype=np.uint8) for marks in (move.rows, move.cols))
            for i in marked:
                self._state.expire(i, *move.by, rows.ctypes.data, cols.ctypes.data)
            if native_id is None and step in self._lowered.reasons and move.stale:
                self._opaque_stale.add(step)

    def _map_shifts(self, moves: dict[Step, Move]) -> list[tuple[int, ...]]:
        """(storage, n, h, w, ld, dy, dx) of every storage that moves; values that share one move alike."""
        table: dict[int, tuple[int, ...]] = {}
        for step, move in moves.items():
            tensor = self._lowered.tensors.get(step.output)
            if tensor is None or step.head.op == "constant" or not any(move.by):
                continue
            storage, _, (n, h, w, _), ld = self._lowered.views[tensor]
            if storage != NOT_HELD:
                table[storage] = (storage, n, h, w, ld, *move.by)
        return list(table.values())

    # -- what Executor asks for ------------------------------------------------------------------------------------

    @property
    def fresh(self) -> bool:
        return bool(self._state.fresh)

    def reset(self) -> None:
        self._state.reset()
        self._opaque.clear()
        self._opaque_views.clear()
        self._opaque_stale.clear()

    def value(self, node: Node) -> object:
        source = self._lowered.flat.get(node)
        if source is not None:
            return self._read(source).flatten(1)
        return self._views[node] if node in self._views else self._opaque.get(node)

    def copy_out(self, node: Node) -> object:
        tensor = self._lowered.tensors.get(node)
        shape = node.shape
        if tensor is None or self._lowered.dtype != torch.float32 or shape is None or len(shape) != 4 or node not in self._views:
            return super().copy_out(node)
        if node not in self._outputs:
            self._outputs[node] = Outputs(tuple(shape), torch.float32)
        out = self._outputs[node].take()
        self._state.copy_planar(tensor, out.data_ptr())
        return out

    def holds(self, step: Step) -> bool:
        tensor = self._lowered.tensors.get(step.output)
        return tensor is None or self._lowered.views[tensor][0] != NOT_HELD

    @functools.cached_property
    def counted(self) -> list[Step]:
        native = [step for step, _ in sorted(self._lowered.step_ids.items(), key=lambda item: item[1])]
        return native + [step for step in self._lowered.reasons if step not in self._lowered.step_ids]

    @functools.cached_property
    def _native_ids(self) -> list[int]:
        return sorted(self._lowered.step_ids.values())

    def site_counts(self) -> list[int]:
        counts = self._state.site_counts()
        known = [counts[i] for i in self._native_ids]
        return known + [self.positions(step) if step in self._opaque_ran else 0 for step in self.counted[len(known) :]]

    def moved(self, step: Step) -> bool:
        tensor = self._lowered.tensors.get(step.output)
        return tensor is not None and bool(self._state.tensor_changed(tensor))

    def sites_mask(self, step: Step) -> torch.Tensor:
        n, h, w = self.grid(step)
        native_id = self._lowered.step_ids.get(step)
        if native_id is None:
            return torch.full((n, h, w), step in self._opaque_ran)
        raw = (ctypes.c_uint8 * (n * h * w)).from_address(self._state.sites_address(native_id))
        return torch.frombuffer(raw, dtype=torch.uint8).reshape(n, h, w).to(torch.bool)

    def set_threshold(self, step: Step, value: float) -> None:
        native_id = self._lowered.step_ids.get(step)
        if native_id is not None:
            self._state.set_threshold(native_id, value)

    def set_needed(self, step: Step, mask: torch.Tensor | None) -> None:
        native_id = self._lowered.step_ids.get(step)
        if native_id is not None:
            data = None if mask is None else mask.to("cpu", torch.uint8).contiguous()
            self._state.set_needed(native_id, 0 if data is None else data.data_ptr())
            for copied in self._lowered.copies.get(step, ()):
                self._state.set_needed(copied, 0 if data is None else data.data_ptr())
        elif step in self._lowered.reasons:
            (self._opaque_needless.discard if mask is None or bool(mask.any()) else self._opaque_needless.add)(step)

    def zero(self, step: Step, mask: torch.Tensor) -> None:
        native_id = self._lowered.step_ids.get(step)
        if native_id is not None:
            data = mask.to("cpu", torch.uint8).contiguous()
            self._state.zero_sites(native_id, data.data_ptr())

    def blank(self, value: float) -> None:
        for i, storage in enumerate(self._storages):
            if i not in self._lowered.constants:
                storage.fill_(value)
        self._state.blank_frame(value)
        self._blanked = value != value  # noqa: PLR0124  (NaN)

    def std(self, step: Step) -> float:
        tensor = self._lowered.tensors.get(step.output)
        return float(self._state.tensor_std(tensor, self._blanked)) if tensor is not None and self.holds(step) else 0.0

    def where(self, step: Step) -> tuple[str, str]:
        if step in self._lowered.reasons:
            return "torch", self._lowered.reasons[step]
        if step.inside is not None and not self.holds(step):
            return "native", f"not held: computed inside {step.inside.name}"
        if step.head.op == "input" and self._lowered.dtype == torch.bfloat16:
            return "native", f"bfloat16, {kernels.bfloat16_status()}"
        if step.head.op == "input" and self.plan.graph.input.dtype == torch.float16 and self._lowered.dtype == torch.float32:
            return "native", "float16, computed in float32"
        return "native", self._lowered.renamed.get(step, "")

    def memory(self) -> dict[str, int]:
        table: dict[str, int] = {}
        seen: set[int] = {NOT_HELD, *self._lowered.constants}
        for node, tensor in self._lowered.tensors.items():
            storage = self._lowered.views[tensor][0]
            if storage not in seen:
                seen.add(storage)
                table[node.name] = self._storages[storage].nbytes
        for node, value in self._opaque.items():
            if node not in self._opaque_views:
                table[node.name] = sum(t.nbytes for t in tensors_of(value))
        if any(outputs.nbytes for outputs in self._outputs.values()):
            table["returned outputs"] = sum(outputs.nbytes for outputs in self._outputs.values())
        table["masks and scratch"] = int(self._state.bytes)
        return table

    def force_sites(self, step: Step, mask: torch.Tensor | None) -> None:
        """Makes a step compute exactly these sites from now on (benchmarks); None gives control back."""
        native_id = self._lowered.step_ids.get(step)
        if native_id is not None:
            data = None if mask is None else mask.to(torch.uint8).contiguous()
            self._state.force_sites(native_id, 0 if data is None else data.data_ptr())

    @functools.cached_property
    def weight_bytes(self) -> int:
        """Bytes of packed weights, shared by all streams of the plan."""
        return int(self._lowered.program.weight_bytes) + sum(c.nbytes for c in self._lowered.constants.values())
