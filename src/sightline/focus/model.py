"""`focus`: a model that computes only inside an area."""

from __future__ import annotations

import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sightline.area import AreaOfInterest
from sightline.errors import DTypeError, FrameError, ShapeError
from sightline.focus.explain import FocusExplanation
from sightline.graph import native
from sightline.graph.executor import Executor
from sightline.graph.ir import Graph, Node
from sightline.graph.needed import Masks, Needs, area_on, over
from sightline.graph.plan import Plan, make_plan
from sightline.graph.prepare import check_frame, graph_of
from sightline.graph.torch_executor import TorchExecutor
from sightline.stats import Site, Stats

if TYPE_CHECKING:
    from torch.export import ExportedProgram  # noqa: TID251  (a name for the type checker only)

    from sightline.graph.onnx_import import OnnxModel


def focus(
    model: nn.Module | Graph | OnnxModel | ExportedProgram,
    aoi: AreaOfInterest | torch.Tensor,
    *,
    mode: str = "zero",
    outside: str = "zero",
    backend: str = "auto",
    example: torch.Tensor | None = None,
) -> Focused:
    """Makes a drop-in replacement of a model that computes only inside an area.

    Use it where the interesting part of the picture is known: a lane, a table, what a detector or an earlier layer found. It is not for
    video of which only what changed is to be computed; that is ``sightline.stream(model, aoi=aoi)``, which takes both savings at once.
    Every forward stands for itself: nothing of an earlier picture is used inside the area.

    Args:
        model: an nn.Module that takes one float tensor (n, c, h, w); it is captured as in eval mode and never modified. Its weights are
            shared: when they change, the model is captured again by itself. Or a captured `Graph`, an exported program, an `OnnxModel`.
        aoi: the area, at any resolution; live, so edit it or set ``focused.aoi`` between forwards. A mask is wrapped in one. With masks per
            batch element, as many as the frame has elements.
        mode: "exact": inside the area, as it lies on the grid of each output (every cell that it touches), the output is that of the dense
            model, because every layer computes exactly what the area needs. Whatever reads a whole map (a classifier's pooling,
            squeeze-excite, attention) needs all of it, so then nothing is saved; `explain` says so.
            "zero": every layer computes the area as it lies on its own grid, from its own input with a true halo, and is 0 elsewhere
            (its bias too). Cheapest, and approximate: what stood outside is missing near the border, more so with depth, and a pooling over
            the whole map counts the zeros. An output whose receptive field lies inside the area is exact.
        outside: what outputs hold outside the area: "zero", or "hold", the previous answer of this model (0 where there was none).
            An output that is not a map is inside if its batch element has any area.
        backend: "auto" (native where it can, else torch), "native" or "torch".
        example: a tensor like the frames to come; if given, the model is captured now and not at the first forward.

    Returns:
        A `Focused`, called like the model. It returns what the model returns, as new tensors. No gradients flow through it.

    Raises:
        ValueError: an argument is outside its range.
        DTypeError: `aoi` is neither an area nor a mask.
        CaptureError: the model cannot be captured.
        BackendError: backend="native" cannot run this model here.

    Exact when: mode="exact", inside the area; outside="zero" is then exactly 0.
    Cost: of each layer the share of its sites that `explain` names; plus one copy of every map. A new area costs a walk over the layers
    (mode "exact"), a frame of another size or type a new capture.
    Source: focused convolutions (arXiv 2207.10741), with the halo that the original leaves out; docs/design.md.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3, padding=1)).eval()
        >>> area = AreaOfInterest.from_boxes([(8, 8, 16, 16)], (32, 32))
        >>> focused = focus(model, area, mode="exact")
        >>> frame = torch.rand(1, 3, 32, 32)
        >>> y = focused(frame)
        >>> bool(torch.allclose(y[..., 8:16, 8:16], model(frame)[..., 8:16, 8:16], atol=1e-5)), float(y[..., :8, :].abs().max())
        (True, 0.0)
        >>> [row["sites"] for row in focused.explain().rows]
        [144, 100, 64]
    """
    return Focused(model, aoi, mode=mode, outside=outside, backend=backend, example=example)


class Running:
    """One plan, its executor, and what area it is set up for."""

    def __init__(self, plan: Plan, executor: Executor, signature: tuple[object, ...]) -> None:
        self.plan = plan
        self.executor = executor
        self.signature = signature
        self.needs = Needs(plan)
        self.area = -1  # version
        self.masks: Masks | None = None  # None: everything
        self.inside: dict[Node, torch.Tensor] = {}
        self.previous: dict[Node, torch.Tensor] = {}
        self.answers = list(plan.graph.outputs)  # what the user gets
        self.sites = [Site(step.name, executor.positions(step), step.macs) for step in executor.counted]


class Focused(nn.Module):
    """A model that computes only inside an area; made by `focus`.

    A module in use (``focused(frame)``, parameters and all), always as in eval mode: `train` and `eval` do not reach the model inside.
    Forwards from several threads are taken one after the other.

    Attributes:
        model: the model as given.
        stats: counters of the last forward and of all of them.
    """

    def __init__(
        self,
        model: Any,
        aoi: AreaOfInterest | torch.Tensor,
        *,
        mode: str = "zero",
        outside: str = "zero",
        backend: str = "auto",
        example: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        _one_of("mode", mode, ("zero", "exact"))
        _one_of("outside", outside, ("zero", "hold"))
        _one_of("backend", backend, ("auto", "native", "torch"))
        self.model = model
        self.mode, self.outside, self.backend = mode, outside, backend
        self.aoi = aoi
        self.stats = Stats()
        self._lock = threading.RLock()
        self._running: Running | None = None
        self._warned = False
        self.training = False
        if example is not None:
            self._ready(check_frame(example))

    @property
    def aoi(self) -> AreaOfInterest:
        """The area; edit it in place, or set another one (an `AreaOfInterest` or a mask)."""
        return self._aoi

    @aoi.setter
    def aoi(self, aoi: AreaOfInterest | torch.Tensor) -> None:
        if not isinstance(aoi, AreaOfInterest | torch.Tensor):
            raise DTypeError(f"`aoi` must be a sightline.AreaOfInterest or a mask tensor; got {type(aoi).__name__}.")
        self._aoi = aoi if isinstance(aoi, AreaOfInterest) else AreaOfInterest(aoi)

    def train(self, mode: bool = True) -> Focused:
        """Does nothing: a focused model always runs as in eval mode, and the model inside keeps its own flag."""
        del mode
        return self

    # -- forward --------------------------------------------------------------------------------------------------------------

    def forward(self, frame: torch.Tensor) -> Any:
        """Runs the model inside the area.

        Args:
            frame: float tensor (n, c, h, w), as for the model. Another size, type or device than before plans anew.

        Returns:
            The model's outputs, as new tensors, in the structure that the model returns.

        Raises:
            ShapeError, DTypeError: the frame is none, or the area has masks for another number of batch elements.
            FrameError: the frame holds NaN or Inf in the part that is needed.
        """
        with self._lock, torch.no_grad():
            frame = check_frame(frame)
            running = self._ready(frame)
            start = time.perf_counter()
            self._before(running, frame)
            if running.masks is not None and not any(bool(mask.any()) for mask in running.inside.values()):
                return self._nothing(running, start)
            self._run(running, frame)
            outputs = self._outputs(running)
            self.stats.add(running.sites, running.executor.site_counts(), time.perf_counter() - start)
            return outputs

    def _run(self, running: Running, frame: torch.Tensor) -> None:
        executor = running.executor
        executor.reset()  # nothing of the last frame is used; what lies outside keeps its value (0, in mode "zero")
        try:
            executor.run(frame)
        except FrameError:
            raise  # found before anything was written
        except BaseException:
            self._running = None  # stopped in the middle: what stands outside is not known any more
            raise

    def _nothing(self, running: Running, start: float) -> Any:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "The area of interest is empty: nothing is computed, and outputs are what they are outside it. (Said once.)", stacklevel=4
            )
        self.stats.add(running.sites, [0] * len(running.sites), time.perf_counter() - start)
        return self._packed(running, [self._beyond(running, node) for node in running.answers])

    def _before(self, running: Running, frame: torch.Tensor) -> None:
        """Called before each forward."""
        self._set_area(running, frame)

    def _set_area(self, running: Running, frame: torch.Tensor) -> None:
        """Works out what every layer has to compute, if the area is another than before."""
        version, area = self._aoi.current()
        if area.shape[0] not in (1, frame.shape[0]):
            raise ShapeError(f"`aoi` has masks for {area.shape[0]} batch elements; the frame has {frame.shape[0]}. Give 1 or as many.")
        if version == running.area:
            return
        area = area.to(frame.device)
        if self.mode == "exact":
            masks = None if bool(area.all()) else running.needs.exact(area)
        else:
            masks = None if bool(area.all()) else running.needs.covering(area)
        self._limit(running, masks)
        running.inside = {node: area_on(area, node) for node in running.answers}
        running.area = version

    def _limit(self, running: Running, masks: Masks | None) -> None:
        """Hands masks to the executor; in mode "zero", what has left the area becomes 0."""
        executor, old = running.executor, running.masks
        for step in running.plan.steps:
            mask = None if masks is None else masks.get(step)
            executor.set_needed(step, mask)
            if self.mode == "zero" and mask is not None and step.head.op != "input":
                before = None if old is None else old.get(step)
                gone = ~mask if before is None else before & ~mask
                if bool(gone.any()):
                    executor.zero(step, gone)
        running.masks = masks

    # -- outputs ----------------------------------------------------------------------------------------------------------------

    def _outputs(self, running: Running) -> Any:
        values: list[Any] = []
        for node in running.answers:
            value, inside = running.executor.value(node), running.inside[node]
            if not isinstance(value, torch.Tensor):
                values.append(self._beyond(running, node))
                continue
            if not bool(inside.all()):
                beyond = running.previous.get(node) if self.outside == "hold" else None
                zero = torch.zeros((), dtype=value.dtype, device=value.device)
                value = torch.where(inside.reshape(over(inside, value)), value, zero if beyond is None else beyond)
                values.append(value.contiguous())
            else:
                values.append(running.executor.copy_out(node))
            if self.outside == "hold":
                running.previous[node] = values[-1].clone()
        return self._packed(running, values)

    def _beyond(self, running: Running, node: Node) -> torch.Tensor:
        """An output outside the area, everywhere."""
        previous = running.previous.get(node)
        if previous is not None:
            return previous.clone()
        _, dtype, device = running.signature[:3]
        same = node.dtype == running.plan.graph.input.dtype
        return torch.zeros(node.shape or (), dtype=dtype if same else node.dtype, device=device)  # type: ignore[call-overload,no-any-return]

    def _packed(self, running: Running, values: list[torch.Tensor]) -> Any:
        tree = running.plan.graph.output_tree
        return values[0] if tree is None else pytree.tree_unflatten(values, tree)

    # -- capture -----------------------------------------------------------------------------------------------------------------

    def _ready(self, frame: torch.Tensor) -> Running:
        signature = (tuple(frame.shape), frame.dtype, frame.device, _fingerprint(self.model))
        if self._running is None or self._running.signature != signature:
            plan = self._plan(frame)
            running = Running(plan, self._executor(plan), signature)
            if self.mode == "zero":
                running.executor.blank(0.0)
            self._running = running
        return self._running

    def _plan(self, frame: torch.Tensor) -> Plan:
        return make_plan(graph_of(self.model, frame))

    def _executor(self, plan: Plan) -> Executor:
        lowered = native.lowered_for(plan, self.backend)
        return TorchExecutor(plan, "rms", None) if lowered is None else native.NativeExecutor(lowered, "rms", None)

    # -- what it does ------------------------------------------------------------------------------------------------------------

    def explain(self) -> FocusExplanation:
        """How many sites of every layer the area needs as it is now, and what that saves. Nothing is run.

        Raises:
            ValueError: the model has not been captured yet.
        """
        with self._lock:
            running = self._captured()
            frame = running.plan.graph.input
            assert frame.shape is not None
            self._before(running, torch.empty(frame.shape[0], device=running.signature[2]))  # type: ignore[call-overload]
            return FocusExplanation.of(running.plan, running.executor, running.masks, self.mode)

    def memory(self) -> dict[str, Any]:
        """Bytes of state.

        Returns:
            "total"; "tensors": name -> bytes of each map, masks and scratch memory as one entry; "shared_weights": bytes of packed
            weights, not part of the total. All 0 before the model has been captured.
        """
        with self._lock:
            running = self._running
            if running is None:
                return {"total": 0, "tensors": {}, "shared_weights": 0}
            table = running.executor.memory()
            if running.previous:
                table["previous outputs"] = sum(value.nbytes for value in running.previous.values())
            shared = running.executor.weight_bytes if isinstance(running.executor, native.NativeExecutor) else 0
            return {"total": sum(table.values()), "tensors": table, "shared_weights": shared}

    def _captured(self) -> Running:
        if self._running is None:
            raise ValueError("the model has not been captured yet; call it on a frame or pass `example`.")
        return self._running

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: everything but what is worked out anew."""
        return {**self.__dict__, "_running": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Counterpart of `__getstate__`."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.RLock()

    def extra_repr(self) -> str:
        """The settings, for ``print(focused)``."""
        return f"mode={self.mode!r}, outside={self.outside!r}, aoi={self._aoi!r}"


def _fingerprint(model: Any) -> tuple[object, ...]:
    """Differs when weights or buffers of the model have been written to or replaced."""
    if not isinstance(model, nn.Module):
        return (id(model),)
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((id(t), t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
