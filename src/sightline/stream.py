"""`stream`: run a model on video and compute only what changed.

What belongs here: what a stream promises to its user (frames, thresholds and their units, statistics). How a network is run
belongs to the executors (`sightline.graph`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sightline.area import AreaOfInterest
from sightline.budget import Budget, Control
from sightline.camera.intake import Intake
from sightline.camera.moving import MODES, MovingCamera
from sightline.camera.noise import NOT_FINITE, Noise, TemporalNoise, parse_noise
from sightline.checks import Checks
from sightline.errors import CaptureError, DeviceError, DTypeError, FrameError, ShapeError
from sightline.explain import Explanation
from sightline.follow import Layout, View, lay_out
from sightline.graph import native
from sightline.graph.capture import is_exported, on_points
from sightline.graph.executor import Executor
from sightline.graph.ir import Graph, Node
from sightline.graph.lower import Lowered
from sightline.graph.needed import Needs, area_on, over
from sightline.graph.plan import Plan, Step, make_plan
from sightline.graph.prepare import check_frame, copy_weights, graph_of
from sightline.graph.torch_executor import TorchExecutor
from sightline.partial import PartialModel
from sightline.stats import Site, Stats
from sightline.thresholds import Thresholds
from sightline.units import Units

if TYPE_CHECKING:
    from torch.export import ExportedProgram  # noqa: TID251  (a name for the type checker only)

    from sightline.graph.onnx_import import OnnxModel

_Signature = tuple[tuple[int, ...], torch.dtype, torch.device]


def stream(
    model: nn.Module | Graph | OnnxModel | ExportedProgram,
    threshold: float | Mapping[str, float] = 0.0,
    *,
    threshold_unit: str = "std",
    input_threshold: float | str | None = None,
    norm: str = "rms",
    noise: Noise = None,
    aoi: AreaOfInterest | None = None,
    motion: str | None = None,
    exposure: str | None = None,
    scene_cuts: bool = True,
    refresh: int | None = None,
    global_ops: str = "exact",
    budget: float | Budget | None = None,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    example: torch.Tensor | None = None,
) -> Stream:
    """Makes a function of a model that is called frame by frame and computes only what changed since the frame before.

    Use it where a camera stands still or most of the picture does. It is not for unrelated images: each call then costs a little
    more than the dense model. The first frame is computed densely.

    Args:
        model: an nn.Module that takes one float tensor (n, c, h, w), or the points of a sensor (n, c, N) (`sightline.fovea`; frames then
            have that shape); it is captured as in eval mode and never modified. Or a captured `Graph`, an exported program (.pt2), or an
            `OnnxModel`. Weights are copied when the first frame comes: later changes of the model are not seen.
        threshold: a site counts as changed iff ``not (norm(new - held) <= threshold)``. One number >= 0 for all call sites, or a
            mapping by name (missing names: 0); a `Thresholds` brings its own unit, and those of `tune` their
            norm and noise filter too. 0, the default, is exact.
        threshold_unit: "std": in units of each map's own standard deviation on the first frame (0.03 is mild, 0.1 strong);
            "absolute": in the map's own units.
        input_threshold: the same for the frame itself; default: `threshold`, if that is one number. A string like "15abs" is
            absolute whatever the unit.
        norm: over the channels of a site: "rms" (default), "max" or "l2".
        noise: which changes of the frame count. None: each pixel for itself. "block": aligned 8x8 blocks change as a whole, as codecs
            make errors. "vote": a pixel counts iff 5 of its 5x5 neighbourhood changed; isolated specks are dropped, so single
            pixels may then stay further than the threshold from the true frame. "temporal", or a `TemporalNoise` with its settings: pixels
            that did not move are averaged over time first, as far as their noise is new in every frame; the network sees the means.
            For noisy sensors. Never exact.
        aoi: compute only what changed and is needed for this area of every output; it may be edited or moved between frames. Inside the
            area the output is that of a stream without one, at every frame; outside it holds what was last computed there, or 0.
            Of the frame, only what the area needs is read. None: everywhere.
        motion: how the camera moves. None: it stands still. "translation": each frame is laid, whole pixels, where its content lies in the
            scene, on a canvas that is larger than the frame by one of the network's total strides (at least 32 pixels); held maps are
            shifted when the frame would leave it. So a pan costs what comes into view and what changed, not everything. Around the frame
            the network sees what was last seen there, or the border continued, instead of padding. Outputs that are maps are cut to
            the frame at the nearest cell, and `Stream.camera` and `Stream.output_shift` say where they lie; other outputs refer to
            the canvas, which is then no larger than the frame (up to half a stride of it may lie beyond). "affine": frames are also
            turned, scaled and moved between pixels (bilinearly), and maps turned back; for cameras that rotate or zoom. Where the motion
            cannot be told, as at a cut, the canvas starts again. One video per stream (n = 1); not with `aoi`,
            `exposure` or noise="temporal".
        exposure: None, or "global": gain and offset between a frame and what is held are estimated (per channel, from pixels that stand
            still), and the frame is brought to the held exposure before anything looks at it, for lamps that flicker and cameras
            that adjust themselves. The output is then that for the frame at the exposure of the first frame; a change by more than a
            factor of 2, or one that stays for 64 frames, restarts the stream at the new exposure. Not exact where it corrects.
        scene_cuts: whether a frame that shows something else than the one before restarts the stream: it is computed as a first frame is,
            nothing is compared, and standard deviations are measured anew. Without it, such a frame costs a little more and thresholds keep
            the units of the old scene. Of a batch, most elements must have changed. Exact either way. Not looked for with an `aoi`.
        refresh: every so many frames, everything is computed again, so that no error of a threshold is older; thresholds keep their units.
            None: never by itself; see `Stream.refresh`.
        global_ops: what to do with global gates: values without positions that are multiplied, added or spread over a whole map
            (squeeze-excite, pooled context), which must be recomputed whole whenever the gate moves. "exact": gates have thresholds like
            any call site. "hold": a gate keeps its value until it has moved by more than a threshold of its own: 0.25 standard deviations
            over its channels, or the ordinary one where that is larger. `thresholds` shows it under the gate's name; a mapping
            that names a gate decides. `stats` and `explain()` say how often gates moved.
        budget: what to hold by scaling all thresholds together while frames come: a number, the largest error in noise units (1.0: as much
            as invisible noise of one grey level would change), or a `Budget` with another metric or a time per frame. Where all thresholds
            are 0, a mild family of them takes their place on the first frame. An error is held by comparing with a dense run at every
            hundredth frame, more often at the start; that frame's output is the dense one (with `aoi`: 0 outside the area). `stats.budget`
            says how it stands. None: thresholds stay as they are.
        backend: "auto" (native where it can, else torch), "native" or "torch".
        dtype: element type to compute in, and of the outputs (those of a model that is captured in parts keep their own); default: the
            frame's, which must be that of the model's weights. The native executor takes float32 and bfloat16 (maps and weights; sums are
            float32). bfloat16 halves the state and, where the CPU has instructions for it (`sightline doctor`), the time; elsewhere it is
            emulated and slower than float32. float16 models and frames are computed in float32, and only outputs are rounded to float16.
            float64, float16 if it is asked for here, and other devices run on the torch executor.
        example: a tensor like the frames to come; if given, the model is captured now and not at the first frame.

    Returns:
        A `Stream`. ``stream(frame)`` returns what ``model(frame)`` returns.

    Raises:
        ValueError: an argument is outside its range.
        CaptureError: the model cannot be captured.
        BackendError: backend="native" cannot run this model here.

    Exact when: every threshold is 0, noise is None or "block", there is no `exposure` and no gate is held; the native executor is then
        bit-equal to its own dense run. With `motion`, to its dense run on the same canvas: that is another picture than the frame
        alone, and lies differently on the grids of layers with strides, so `model(frame)` differs, by several times what invisible
        noise does to it (benchmarks/bench_motion.py).
    Cost: of each layer, the share of its sites that can have changed; one copy of every held map as state.
    Source: hold-and-recompute, docs/design.md; compare CBinfer (arXiv 1704.04313) and DeltaCNN (arXiv 2203.03996).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> video = stream(model)
        >>> frame = torch.rand(1, 3, 32, 32)
        >>> first = video(frame)
        >>> frame[:, :, 10:12, 10:12] += 1
        >>> second = video(frame)
        >>> video.stats.last.density["input"]
        0.00390625
        >>> bool(torch.allclose(second, model(frame), atol=1e-6))
        True
    """
    return Stream(
        model,
        threshold,
        threshold_unit=threshold_unit,
        input_threshold=input_threshold,
        norm=norm,
        noise=noise,
        aoi=aoi,
        motion=motion,
        exposure=exposure,
        scene_cuts=scene_cuts,
        refresh=refresh,
        global_ops=global_ops,
        budget=budget,
        backend=backend,
        dtype=dtype,
        example=example,
    )


class Stream:
    """One video through one model; made by `stream`.

    Independent of every other stream; calls from several threads are taken one after the other.

    Attributes:
        thresholds: call-site name -> threshold, editable at any time; known once the first frame has come (or with `example`).
        stats: counters of the last frame and of all frames since the last reset.
    """

    def __init__(
        self,
        model: Any,
        threshold: float | Mapping[str, float] = 0.0,
        *,
        threshold_unit: str = "std",
        input_threshold: float | str | None = None,
        norm: str = "rms",
        noise: Noise = None,
        aoi: AreaOfInterest | None = None,
        motion: str | None = None,
        exposure: str | None = None,
        scene_cuts: bool = True,
        refresh: int | None = None,
        global_ops: str = "exact",
        budget: float | Budget | None = None,
        backend: str = "auto",
        dtype: torch.dtype | None = None,
        example: torch.Tensor | None = None,
    ) -> None:
        if isinstance(threshold, Thresholds):  # they mean something else under another norm or filter
            norm, noise = threshold.norm or norm, noise or threshold.noise
        _one_of("threshold_unit", threshold_unit, ("std", "absolute"))
        _one_of("norm", norm, ("rms", "max", "l2"))
        parse_noise(noise)
        _one_of("global_ops", global_ops, ("exact", "hold"))
        _one_of("backend", backend, ("auto", "native", "torch"))
        if aoi is not None and not isinstance(aoi, AreaOfInterest):
            raise DTypeError(f"`aoi` must be a sightline.AreaOfInterest or None; got {type(aoi).__name__}. Wrap a mask in one.")
        _check_motion(motion, aoi, noise, exposure)
        if dtype is not None and not dtype.is_floating_point:
            raise DTypeError(f"`dtype` must be a floating-point type or None; got {dtype}.")
        self._model = model
        self._norm, self._noise, self._backend, self._dtype = norm, noise, backend, dtype
        self._global_ops = global_ops
        self._aoi = aoi
        self._layout: Layout | None = None  # of the plan on a canvas, with `motion`
        self._camera: MovingCamera | None = None
        self._motion = motion
        # A moving camera knows by itself where it is lost, and an area may leave out what has changed.
        self._intake = Intake(exposure, scene_cuts, refresh, looks_for_cuts=motion is None and aoi is None)
        budget = Budget.of(budget)
        self._checks = None if budget is None else Checks(Control(budget))
        self._needs: Needs | None = None
        self._area = -1  # version of the area that the executor works with
        self._shown: dict[Node, torch.Tensor] = {}  # bool: where an output has been computed since the start
        self._lock = threading.RLock()
        self._signature: _Signature | None = None
        self._on_points = False  # frames are points (n, c, N), as maps of one row
        self._plan: Plan | None = None
        self._lowered: Lowered | None = None
        self._executor: Executor | None = None
        self._partial: PartialModel | None = None
        self._sites: list[Site] = []
        self._gates: list[Step] = []  # those among them
        self.thresholds = Thresholds(unit=threshold.unit if isinstance(threshold, Thresholds) else threshold_unit)
        self._units = Units(threshold, input_threshold, self.thresholds.unit, holds_gates=global_ops == "hold")
        self.stats = self._new_stats()
        if example is not None:
            self._prepare(self._checked(example))

    def __repr__(self) -> str:
        where = self._executor.name if self._executor is not None else "not captured yet"
        return f"Stream({self._name()}, {where}, {self.stats.total.frames} frames)"

    # -- frames -------------------------------------------------------------------------------------------------------

    def __call__(self, frame: torch.Tensor) -> Any:
        """Takes the next frame and returns what the model returns for it.

        Args:
            frame: float tensor (n, c, h, w), as for the model; same size, type and device as the frames before. Not modified. Batch
                elements are independent videos.

        Returns:
            The model's outputs, as new tensors that belong to the caller, in the structure that the model returns.

        Raises:
            ShapeError, DTypeError, DeviceError: the frame does not fit the stream; call `reset` before a video of another size.
            FrameError: the frame holds NaN or Inf. In all cases the stream stays as it was.
        """
        with self._lock, torch.no_grad():
            frame = self._checked(frame)
            if self._signature is None:
                self._prepare(frame)
            if self._partial is not None:
                return self._run_partial(self._partial, frame)
            executor = self._executor
            assert executor is not None
            start = self._clock()
            frame = self._arrived(frame)
            if self._camera is not None:
                frame = self._on_canvas(self._camera, executor, frame)
            if self._aoi is not None:
                self._apply_area(self._aoi, executor, frame)
            self._apply_thresholds()
            first = executor.fresh
            self._run(executor, frame)
            outputs = self._outputs()
            seconds = self._clock() - start
            self._intake.taken()
            if first:
                self._units.begun()
                self._apply_thresholds()
            self._count(seconds)
            return outputs if self._checks is None else self._hold_budget(self._checks, frame, outputs, seconds)

    _clock = staticmethod(time.perf_counter)

    # -- what a frame goes through before the executor ------------------------------------------------------------------------

    def _arrived(self, frame: torch.Tensor) -> torch.Tensor:
        """The frame at the held exposure; lets everything be computed again where that is due."""
        frame = self._intake.arrive(frame, self._units.frame)
        if self._intake.restarted or self._intake.refreshed:
            self._start_over(keep_units=self._intake.refreshed)
        return frame

    def _start_over(self, keep_units: bool) -> None:
        """Lets the next frame be computed whole. Maps stay where they are, as memory."""
        for stream in [self] if self._partial is None else [part for _, part in self._partial.streams()]:
            if stream._executor is None or stream._plan is None:
                continue
            for step in stream._plan.steps:
                stream._executor.set_threshold(step, 0.0)  # lowering one after that frame would have the step computed whole once more
            stream._executor.reset()
            stream._units.keep = keep_units

    def refresh(self) -> None:
        """Lets the next frame be computed whole: its output is that of a first frame, whatever the thresholds.

        Thresholds keep their units. With noise="temporal" the network still sees the means of what stood still.
        """
        with self._lock:
            self._intake.due = True

    def _run(self, executor: Executor, frame: torch.Tensor, *, raw: bool = False) -> None:
        """Brings the executor up to date; `raw`: with the frame itself, not with what a noise filter makes of it."""
        try:
            executor.run(frame if raw else self._filtered(frame))
        except FrameError:
            if executor.fresh and not self._intake.running:
                self._signature = None  # a bad first frame does not fix the size either
            raise
        except BaseException:
            executor.reset()  # stopped in the middle (by an operator that raised, by Ctrl-C): what is held no longer fits together
            self._intake.forget_noise()
            raise

    def _on_canvas(self, camera: MovingCamera, executor: Executor, frame: torch.Tensor) -> torch.Tensor:
        """Lays a frame on the canvas and shifts what is held with it; where the camera is lost, everything is computed again."""
        # one pass; only finite numbers of a sum that overflows are looked at again
        if not math.isfinite(float(frame.sum())) and not bool(torch.isfinite(frame).all()):
            if executor.fresh and not self._intake.running:
                self._signature = None
            raise FrameError(NOT_FINITE)
        restarts = camera.restarts
        shift = camera(frame)
        if camera.restarts > restarts and self._intake.scene_cuts:
            self._start_over(keep_units=False)
            self._intake.restart()
        elif any(shift):
            executor.shift(*shift)
        assert camera.canvas.pixels is not None
        return camera.canvas.pixels

    def _filtered(self, frame: torch.Tensor) -> torch.Tensor:
        """What the network is to see of a frame; valid until the next one."""
        return self._intake.filtered(frame, self._units.frame / (frame.shape[1] ** 0.5 if self._norm == "l2" else 1.0))

    def _outputs(self) -> Any:
        assert self._plan is not None
        assert self._executor is not None
        graph = self._plan.graph
        if self._camera is not None and self._layout is not None:
            view = View(self._layout, self._camera)
            values = [view.of(index, self._executor.value(node)) for index, node in enumerate(graph.outputs)]
        else:
            values = [self._output(self._executor, node) for node in graph.outputs]
        if self._dtype is None and graph.input.dtype == torch.float16:  # natively that is computed in float32
            values = [v.to(n.dtype) if isinstance(v, torch.Tensor) and n.dtype else v for v, n in zip(values, graph.outputs, strict=True)]
        return values[0] if graph.output_tree is None else pytree.tree_unflatten(values, graph.output_tree)

    def _output(self, executor: Executor, node: Node) -> object:
        shown = self._shown.get(node)
        if shown is None or bool(shown.all()):
            return executor.copy_out(node)
        value = executor.value(node)
        if not isinstance(value, torch.Tensor):
            return torch.zeros(node.shape or (), dtype=node.dtype, device=shown.device)
        return torch.where(shown.reshape(over(shown, value)), value, torch.zeros((), dtype=value.dtype, device=value.device))

    def _apply_area(self, aoi: AreaOfInterest, executor: Executor, frame: torch.Tensor) -> None:
        """Tells the executor what the area needs, if that is not what it needed before."""
        version, area = aoi.current()
        if area.shape[0] not in (1, frame.shape[0]):
            raise ShapeError(f"`aoi` has masks for {area.shape[0]} batch elements; the frame has {frame.shape[0]}. Give 1 or as many.")
        if executor.fresh:
            executor.blank(float("nan"))  # so that whatever is computed for the first time counts as changed
            self._shown.clear()
        elif version == self._area:
            return
        assert self._plan is not None
        if self._needs is None or self._needs.plan is not self._plan:
            self._needs = Needs(self._plan)
        area = area.to(frame.device)
        masks = self._needs.exact(area)
        for step, mask in masks.items():
            executor.set_needed(step, None if bool(area.all()) else mask)
        for node in self._plan.graph.outputs:
            inside = masks[self._plan.by_output[node]] if node in self._plan.by_output and node.op != "constant" else area_on(area, node)
            self._shown[node] = inside | self._shown[node] if node in self._shown else inside
        self._area = version

    def _count(self, seconds: float) -> None:
        assert self._executor is not None
        if not self._sites:
            counted = self._executor.counted
            self._sites = [Site(step.name, self._executor.positions(step), step.macs, step.gate) for step in counted]
            self._gates = [step for step in counted if step.gate]
        moved = [self._executor.moved(step) for step in self._gates]
        self._add_stats(self._executor.site_counts(), seconds, moved)

    def _add_stats(self, counts: list[int], seconds: float, moved: Sequence[bool]) -> None:
        self.stats.add(self._sites, counts, seconds, moved, restarted=self._intake.restarted, refreshed=self._intake.refreshed)

    # -- budget -----------------------------------------------------------------------------------------------------------

    def _new_stats(self) -> Stats:
        stats = Stats()
        stats.budget = None if self._checks is None else self._checks.control.stats
        return stats

    def _hold_budget(self, checks: Checks, frame: torch.Tensor, outputs: Any, seconds: float) -> Any:
        """Takes account of a frame, checks it if a check is due, and scales the thresholds; returns what the user gets."""
        control = checks.control
        assert self._executor is not None
        held = {gate.name for gate in self._gates} if self._global_ops == "hold" else set()
        if self.thresholds and not any(value for name, value in self.thresholds.items() if name not in held):
            family = checks.starting_thresholds(self._executor, frame, self.thresholds.unit)
            self.thresholds.update({name: max(value, self.thresholds[name]) for name, value in family.items()})
        if self._intake.restarted or self._intake.refreshed:
            control.begun_anew(another_scene=self._intake.restarted)
        elif control.due:
            outputs = checks.check(frame, lambda: self._inside(outputs), self._run_densely)
        control.frame(seconds, self.stats.last_share)
        if control.factor != self._units.factor:
            self._units.again()
        return outputs

    def _run_densely(self, frame: torch.Tensor) -> Any:
        """Starts anew with a frame; its cost is part of the last frame's."""
        executor = self._executor
        assert executor is not None
        start = self._clock()
        executor.reset()
        if self._aoi is not None:
            self._apply_area(self._aoi, executor, frame)
        for step in executor.plan.steps:
            executor.set_threshold(step, 0.0)  # whatever they are set to next is then no reduction, which would cost a whole frame
        self._units.again()
        self._run(executor, frame, raw=True)
        outputs = self._outputs()
        self.stats.add_to_last(executor.site_counts(), self._clock() - start)
        return outputs

    def _inside(self, outputs: Any) -> Any:
        """What a dense run can be compared with: with an area, nothing outside it."""
        if self._aoi is None:
            return outputs
        assert self._plan is not None
        values = [outputs] if self._plan.graph.output_tree is None else pytree.tree_leaves(outputs)
        shown = [self._shown.get(node) for node in self._plan.graph.outputs]
        return [
            value if mask is None else torch.where(mask.reshape(over(mask, value)), value, torch.zeros((), dtype=value.dtype))
            for value, mask in zip(values, shown, strict=True)
        ]

    def _checked(self, frame: torch.Tensor) -> torch.Tensor:
        if isinstance(frame, torch.Tensor) and frame.dim() == 3 and (self._on_points or on_points(self._model)):
            self._need_no_neighbours()
            frame, self._on_points = frame.unsqueeze(2), True
        frame = check_frame(frame)
        if self._signature is not None:
            shape, dtype, device = self._signature
            if tuple(frame.shape) != shape:
                raise ShapeError(
                    f"`frame` has shape {tuple(frame.shape)}; this stream runs {shape}. Call reset() before a video of another size."
                )
            if frame.dtype != dtype:
                raise DTypeError(f"`frame` is {frame.dtype}; this stream runs {dtype}. Convert it, or call reset() first.")
            if frame.device != device:
                raise DeviceError(f"`frame` lies on {frame.device}; this stream runs on {device}. Move it, or call reset() first.")
        return frame

    def _need_no_neighbours(self) -> None:
        """Refuses what looks at the neighbours of a pixel: points in memory are none."""
        asked = {"noise": self._noise, "motion": self._motion, "aoi": self._aoi, "exposure": self._intake.exposure}
        for name, value in asked.items():
            if value is not None:
                raise ValueError(f"`{name}` is for pictures; frames of sensor points (n, c, N) have no rows and columns. Leave it out.")

    # -- capture --------------------------------------------------------------------------------------------------------

    def _prepare(self, frame: torch.Tensor) -> None:
        signature = (tuple(frame.shape), frame.dtype, frame.device)
        self._intake.set_noise(parse_noise(self._noise), native=self._backend != "torch")
        if self._signature_of_plan != signature:
            try:
                plan = make_plan(graph_of(self._model, frame.squeeze(2) if self._on_points else frame))
                if self._motion is not None:
                    self._layout = lay_out(plan, self._resized(), frame)
                    plan = self._layout.plan
            except CaptureError as error:
                if not isinstance(self._model, nn.Module) or self._backend == "native" or self._on_points:
                    raise
                needs_all = {"aoi": self._aoi, "motion": self._motion, "budget": self._checks}
                which = next((name for name, value in needs_all.items() if value is not None), None)
                if which is not None:
                    raise CaptureError(f"{error} With `{which}`, a model must be captured whole.") from error
                self._partial = PartialModel(self._model, frame, self._part, error)
                self._signature = self._signature_of_plan = signature
                return
            self._lowered = native.lowered_for(plan, self._backend, self._dtype or native.computed_type(frame.dtype))
            copy_weights(plan.steps if self._lowered is None else self._lowered.reasons)
            self._plan, self._signature_of_plan, self._partial = plan, signature, None
        if self._partial is not None:
            self._signature = signature
            return
        assert self._plan is not None
        self._init_thresholds(self._plan)
        if self._lowered is not None:
            self._executor = native.NativeExecutor(self._lowered, self._norm, self._votes)
        else:
            self._executor = TorchExecutor(self._plan, self._norm, self._votes, self._dtype)
        self._camera = self._layout.camera(self._motion) if self._layout is not None and self._motion is not None else None
        self._signature = signature
        self._units.again()

    def _resized(self) -> Callable[[torch.Tensor], Plan] | None:
        """Captures the model for another example; None where it is fixed to one size."""
        if isinstance(self._model, Graph) or is_exported(self._model):
            return None
        return lambda example: make_plan(graph_of(self._model, example))

    _signature_of_plan: _Signature | None = None

    @property
    def _votes(self) -> str | None:
        """The executor's part of the noise filter: which changes of what it is given count."""
        return None if self._intake.filters or self._noise is None else str(self._noise)

    # -- models that are captured in parts -----------------------------------------------------------------------------

    def _part(self, module: nn.Module) -> Stream:
        """A stream of one part of the model, with this stream's settings."""
        part = Stream(
            module,
            0.0 if isinstance(self._units.default, Mapping) else self._units.default,  # a mapping is applied by full name, below
            threshold_unit=self.thresholds.unit,
            norm=self._norm,
            global_ops=self._global_ops,
            scene_cuts=False,  # cuts, exposure and refreshes are those of the frame
            noise=None if self._intake.filters else self._noise,  # that one takes frames, not maps
            backend=self._backend,
            dtype=self._dtype,
        )
        part._strict = False
        return part

    _strict = True  # an unknown name in the mapping is an error

    def _run_partial(self, partial: PartialModel, frame: torch.Tensor) -> Any:
        if not self._units.is_current(self.thresholds):
            for prefix, part in partial.streams():
                for name in part.thresholds:
                    value = self.thresholds.get(f"{prefix}.{name}")
                    if value is not None and value != part.thresholds[name]:
                        part.thresholds[name] = value
            self._units.seen(self.thresholds)
        start = self._clock()
        seen = self._filtered(self._arrived(frame))
        outputs = partial.run(seen if seen is frame else seen.clone())  # it may return what it was given
        seconds = self._clock() - start
        self._intake.taken()
        parts = list(partial.streams())
        if len(self._sites) != sum(len(part._sites) for _, part in parts):
            self._sites = [replace(site, name=f"{prefix}.{site.name}") for prefix, part in parts for site in part._sites]
        moved = [value for _, part in parts for value in part.stats.last_moved]
        self._add_stats([count for _, part in parts for count in part.stats.last_counts], seconds, moved)
        names = {f"{prefix}.{name}": value for prefix, part in partial.streams() for name, value in part.thresholds.items()}
        if list(self.thresholds) != list(names):
            known = {**(self._units.default if isinstance(self._units.default, Mapping) else {}), **self.thresholds}
            self.thresholds = Thresholds({name: known.get(name, value) for name, value in names.items()}, self.thresholds.unit)
            self.thresholds._fix()
            self._units.again()
        return outputs

    def _name(self) -> str:
        return getattr(self._model, "name", None) or type(self._model).__name__

    # -- thresholds -------------------------------------------------------------------------------------------------------

    def _init_thresholds(self, plan: Plan) -> None:
        self.thresholds = self._units.start(plan.steps, self.thresholds, strict=self._strict)
        self.thresholds.norm, self.thresholds.noise = self._norm, str(self._noise) if self._noise else None

    def _apply_thresholds(self) -> None:
        if self._executor is not None:
            factor = 1.0 if self._checks is None else self._checks.control.factor
            self._units.apply(self.thresholds, self._executor, factor=factor, area=self._aoi is not None)

    # -- state --------------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets all frames and counters. The next frame may have another size, type or device; it is computed densely."""
        with self._lock:
            self._signature, self._on_points = None, False
            if self._checks is not None:
                self._checks = Checks(self._checks.control.restarted())
            self.stats = self._new_stats()
            self._sites = []
            self._units.forget()
            self._executor = self._camera = None
            if self._partial is not None:
                self._partial.reset()
            self._intake.reset()

    def clone(self) -> Stream:
        """A new stream over the same capture and the same packed weights, with the same thresholds and no frames yet."""
        with self._lock:
            twin = Stream(
                self._model,
                self._units.default,
                threshold_unit=self.thresholds.unit,
                norm=self._norm,
                noise=self._noise,
                aoi=self._aoi,
                motion=self._motion,
                exposure=self._intake.exposure,
                scene_cuts=self._intake.scene_cuts,
                refresh=self._intake.refresh,
                global_ops=self._global_ops,
                backend=self._backend,
                dtype=self._dtype,
            )
            twin._units = self._units.twin(self.thresholds.unit)
            if self._checks is not None:
                twin._checks = Checks(self._checks.control.restarted())
                twin.stats = twin._new_stats()
            twin.thresholds.update(self.thresholds)
            if self._partial is not None:
                return twin  # its parts are captured again
            twin._plan, twin._lowered, twin._signature_of_plan = self._plan, self._lowered, self._signature_of_plan
            twin._layout = self._layout
            if self.thresholds.fixed:
                twin.thresholds._fix()
            return twin

    @property
    def camera(self) -> MovingCamera | None:
        """Where the camera looks, with ``motion=``; None without, and before the first frame."""
        return self._camera

    @property
    def output_shift(self) -> tuple[float, float]:
        """(y, x) pixels to be added to coordinates that were read off the last outputs, to get coordinates in the frame.

        (0, 0) without ``motion=``. With "translation", maps are cut out at the nearest cell, and other outputs refer to the canvas. With
        "affine", maps are turned back to the frame; for other outputs ``stream.camera.to_frame`` is the exact answer.
        """
        with self._lock:
            if self._camera is None or self._layout is None or self._camera.canvas.pixels is None:
                return 0.0, 0.0
            return View(self._layout, self._camera).shift

    def last_sites(self, name: str = "input") -> torch.Tensor:
        """Bool (n, h, w): which positions of a call site were computed in the last frame; with ``motion=``, those in the frame.

        Raises:
            KeyError: there is no such call site, or it only renames memory.
        """
        with self._lock:
            if self._partial is not None and self.stats.total.frames:
                for prefix, part in self._partial.streams():
                    if name.startswith(f"{prefix}.") and name[len(prefix) + 1 :] in part.stats.last.density:
                        return part.last_sites(name[len(prefix) + 1 :])
                if name == "input":
                    return next(part for _, part in self._partial.streams()).last_sites()
                raise KeyError(f"there is no call site '{name}' that computes anything; `explain()` lists them.")
            if self._executor is None or self._plan is None or not self.stats.total.frames:
                raise ValueError("no frame has been run yet; call the stream first.")
            for step in self._plan.steps:
                if step.name == name and name in self.stats.last.density:
                    mask = self._executor.sites_mask(step)
                    follows = self._camera is not None and self._layout is not None and mask.shape[1] * mask.shape[2] > 1
                    return View(self._layout, self._camera).mask(mask) if follows else mask  # type: ignore[arg-type]
        raise KeyError(f"there is no call site '{name}' that computes anything; `explain()` lists them.")

    def explain(self) -> Explanation:
        """A table of all call sites: rule kind, executor, mean density, share of MACs, and why something runs densely.

        Raises:
            ValueError: the model has not been captured yet.
        """
        with self._lock:
            if self._partial is not None:
                return Explanation.joined({prefix: part.explain() for prefix, part in self._partial.streams()}, self._partial.reason)
            if self._executor is None or self._plan is None:
                raise ValueError("the model has not been captured yet; call the stream on a frame or pass `example`.")
            return Explanation.of(self._plan, self._executor, self.stats.total)

    def memory(self) -> dict[str, Any]:
        """Bytes of this stream's state.

        Returns:
            "total"; "tensors": name -> bytes of each held map, with masks and scratch memory as one entry; "shared_weights": bytes of
            packed weights, shared by all clones and not part of the total.
        """
        with self._lock:
            if self._partial is not None:
                parts = {prefix: part.memory() for prefix, part in self._partial.streams()}
                tensors = {f"{prefix}.{name}": size for prefix, m in parts.items() for name, size in m["tensors"].items()}
                tensors |= self._intake.nbytes
                return {
                    "total": sum(tensors.values()),
                    "tensors": tensors,
                    "shared_weights": sum(m["shared_weights"] for m in parts.values()),
                }
            table = {**(self._executor.memory() if self._executor is not None else {}), **self._intake.nbytes}
            shared = self._executor.weight_bytes if isinstance(self._executor, native.NativeExecutor) else 0
            return {"total": sum(table.values()), "tensors": table, "shared_weights": shared}


def _check_motion(motion: str | None, aoi: AreaOfInterest | None, noise: Noise, exposure: str | None) -> None:
    """What cannot be told, or means nothing, while the frame moves over the scene."""
    _one_of("motion", motion, (None, *MODES))
    clashes = (
        ("`aoi`", aoi is not None, "an area is one of the frame, which moves"),
        ("`exposure`", exposure is not None, "exposure is read off pixels that stand still"),
        ("noise='temporal'", isinstance(parse_noise(noise), TemporalNoise), "its means are of pixels that stand still"),
    )
    for name, given, why in clashes:
        if motion is not None and given:
            raise ValueError(f"{name} and `motion` cannot be combined: {why}. Leave one of them out.")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
