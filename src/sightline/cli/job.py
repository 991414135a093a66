"""The streaming job: frames in, network streamed, annotated video and report out. `stream` and `demo` are two ways to start it.

What belongs here: the loop and what surrounds it (preprocessing, the dense network beside it, the heat overlay, Ctrl-C). What
does not: options and printing (`stream`, `demo`), decoding and encoding (`sightline.media`), drawing (`sightline.tasks`).
"""

from __future__ import annotations

import contextlib
import importlib
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from sightline.budget import Budget
from sightline.cli.inside import AreaChoice, agreement_inside, area_of, draw_inside, inside_of
from sightline.errors import CaptureError, SightlineError
from sightline.extras import need
from sightline.graph.ir import Graph
from sightline.media import Frame, Image, Source, VideoWriter, check_writable, open_source, write_text
from sightline.models import LoadedModel, load_model
from sightline.report.data import CheckRecord, FrameRecord, MeasureRecord, RunReport, SampleRecord
from sightline.report.html import render
from sightline.report.page import Thumbnail
from sightline.tasks import NoTask, Task, choose_task, output_tensors
from sightline.tasks.drawing import beside, heat_overlay
from sightline.thresholds import Thresholds

_PANEL_WIDTH = 960  # of one of two panels: side by side they still fit common screens and decoders
_HEAT_SITES = 8
_THUMBNAILS = 4


Triple = tuple[float, float, float]


@dataclass
class Preprocess:
    """How pixels become the network's input: ``(rgb * scale - mean) / std``.

    Attributes:
        scale: factor on 0..255.
        mean, std: per channel, in the units after scaling; None: what the makers of the weights ask for, else 0 and 1.
        bgr: swap red and blue, before mean and std.
    """

    scale: float = 1.0 / 255.0
    mean: Triple | None = None
    std: Triple | None = None
    bgr: bool = False

    def completed(self, mean: Triple, std: Triple) -> Preprocess:
        """The same with what was left open filled in."""
        return Preprocess(self.scale, self.mean or mean, self.std or std, self.bgr)

    @property
    def grey_level(self) -> list[float]:
        """One grey level of a picture in units of the network's input, per channel.

        >>> Preprocess(scale=1.0, std=(2.0, 4.0, 5.0)).grey_level
        [0.5, 0.25, 0.2]
        """
        return [abs(self.scale / value) for value in self.std or (1.0, 1.0, 1.0)]

    def __call__(self, image: Image, device: torch.device) -> torch.Tensor:
        """Turn (h, w, 3) uint8 RGB into a (1, 3, h, w) float32 tensor."""
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1).unsqueeze(0)
        if self.bgr:
            pixels = pixels.flip(1)
        frame = pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(self.scale)
        if self.mean is not None and any(self.mean):
            frame -= torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        if self.std is not None and any(value != 1.0 for value in self.std):
            frame /= torch.tensor(self.std, device=device).view(1, 3, 1, 1)
        return frame


@dataclass
class Job:
    """Everything that a streaming job is told; see ``sightline stream --help`` for the meaning of each.

    Attributes:
        stream: keyword arguments of `sightline.stream`; `dtype` by its name.
        thresholds: a file written by ``sightline tune``, instead of `stream`'s threshold; it brings its unit, norm and input filter.
        budget: what the stream holds; its grey level is filled in.
        check: measure the error in noise units at every so many frames; None: not. With a budget on the error, the interval of its checks.
        area: what to compute, boxes in pixels of the video or a mask; None: everything.
        refresh_keyframes: compute everything again where the video has a keyframe.
        compare: run the dense network on some frames too.
        samples: on about how many.
        view: "both" (frame and heat side by side), "frame" (full size) or "heat".
    """

    source: str
    model: str
    weights: str | None = None
    title: str = "Sightline report"
    stream: dict[str, Any] = field(default_factory=dict)
    thresholds: Path | None = None
    budget: Budget | None = None
    check: int | None = None
    area: AreaChoice | None = None
    size: tuple[int, int] | None = None
    start: int = 0
    frames: int | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    task: str = "auto"
    blur: bool = False
    view: str = "both"
    output: Path | None = None
    report: Path | None = None
    json: Path | None = None
    refresh_keyframes: bool = False
    compare: bool = False
    samples: int = 12
    device: str = "cpu"
    threads: int | None = None


@dataclass
class Progress:
    """What a job tells while it runs.

    Attributes:
        done, total: frames; total None where it is not known.
        fps: frames per second of the whole job over its last frames.
        input_density, mac_share: of the last frame.
    """

    done: int
    total: int | None
    fps: float
    input_density: float
    mac_share: float


def run_job(job: Job, on_progress: Callable[[Progress], None] = lambda progress: None, loaded: LoadedModel | None = None) -> RunReport:
    """Stream a video through a network and write what was asked for.

    Outputs appear under their names only when they are complete. Ctrl-C ends the loop after the current frame: outputs then
    hold what was done so far, and the report says so.

    Args:
        job: what to do.
        on_progress: called after each frame.
        loaded: the network, if it has been loaded already.

    Returns:
        What was measured.

    Raises:
        SightlineError: with a sentence that names the remedy.
        KeyboardInterrupt: on Ctrl-C before the first frame is done, or a second Ctrl-C; nothing is written then.
    """
    began = time.perf_counter()
    for path, option in ((job.output, "--output"), (job.report, "--report"), (job.json, "--json")):
        if path is not None:
            check_writable(path, option)
    with open_source(job.source, start=job.start, frames=job.frames) as source, contextlib.ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(job.output, source.fps)) if job.output else None
        set_threads(job.threads)
        run = _Run(job, source, loaded or load_model(job.model, job.weights), writer)
        ends = deque([time.perf_counter()], maxlen=20)  # of the last frames: the first one would spoil a mean over all
        with interruptible() as stop:
            for frame in source:
                run.step(frame)
                ends.append(time.perf_counter())
                last = run.report.frames[-1]
                fps = (len(ends) - 1) / (ends[-1] - ends[0])
                on_progress(Progress(len(run.report.frames), source.count, fps, last.input_density, last.mac_share))
                if stop.is_set():
                    run.report.interrupted = True
                    break
        if writer is not None:
            writer.close()
    run.finish(time.perf_counter() - began)
    _write_reports(job, run.report, run.thumbnails())
    return run.report


def set_threads(count: int | None) -> None:
    """Use this many threads, in torch and in the native executor; None leaves both as they are."""
    if count is None:
        return
    torch.set_num_threads(count)
    setter = getattr(importlib.import_module("sightline"), "set_num_threads", None)
    if setter is not None:
        setter(count)


class _Run:
    """State of a running job."""

    def __init__(self, job: Job, source: Source, loaded: LoadedModel, writer: VideoWriter | None) -> None:
        self.job = job
        self.source = source
        self.loaded = loaded
        self.writer = writer
        self.size = job.size or loaded.size or rounded(source.size)
        self.preprocess = job.preprocess.completed(loaded.mean, loaded.std)
        self.device = device_of(job.device)
        if isinstance(loaded.model, torch.nn.Module):
            loaded.model.to(self.device)
        self.thresholds = None if job.thresholds is None else Thresholds.read(job.thresholds)
        self.area = None if job.area is None else area_of(job.area, source.size, source.name, source.warnings, "--aoi")
        self.stream = _make_stream(loaded, job, self._stream_options())
        self.checks = job.check if job.budget is None or job.budget.error is None else None  # by this job, not by the stream itself
        self.dense = DenseNetwork(loaded) if job.compare or self.checks else None
        self.every = max(1, (source.count or 30 * job.samples) // job.samples)
        self.task: Task = NoTask()
        self.heat = HeatMap(self.stream)
        self.draws = writer is not None or job.report is not None
        self._album = _Album()
        self.report = RunReport(
            title=job.title,
            source={"name": source.name, "kind": source.kind, "width": source.size[0], "height": source.size[1], "fps": source.fps},
            model={"name": loaded.name, "input_width": self.size[0], "input_height": self.size[1]},
            settings=_settings(job, self.preprocess),
            versions=all_versions(),
            dense_engine=self.dense.engine if self.dense else "",
            tuning=None if self.thresholds is None else self.thresholds.tuning,
        )

    def _stream_options(self) -> dict[str, Any]:
        """What `sightline.stream` is given beside the job's own words."""
        job = self.job
        options: dict[str, Any] = {}
        if self.thresholds is not None:
            options["threshold"] = self.thresholds
        if self.area is not None:
            options["aoi"] = self.area
        if job.budget is not None:
            every = job.budget.every if job.check is None or job.budget.error is None else job.check
            options["budget"] = replace(job.budget, every=every, pixel_scale=self.preprocess.grey_level)
        return options

    def step(self, frame: Frame) -> None:
        """Stream one frame, compare it, draw it."""
        tensor = self.preprocess(frame.rgb(self.size), self.device)
        first = not self.report.frames
        if self.job.refresh_keyframes and frame.key:
            self.stream.refresh()
        outputs = self._first_outputs(tensor) if first else widened(output_tensors(self.stream(tensor)))
        last = self.stream.stats.last
        share = last.macs_done / last.macs_dense if last.macs_dense else 0.0
        record = FrameRecord(frame.index, float(last.seconds), float(last.density.get("input", 1.0)), float(share))
        finding = self.task.read(outputs, self.size)
        record.note = self.task.caption(finding)
        number = len(self.report.frames)
        self.report.frames.append(record)
        self._note_budget(record)
        if self.dense is not None:
            if self.job.compare and number % self.every == self.every // 2:
                self._compare(self.dense, tensor, outputs, finding, record)
            if self.checks and number % self.checks == self.checks - 1:
                self.report.checks.append(self._check(self.dense, tensor, outputs, record.index))
        if self.draws:
            self._draw(frame, finding, record)

    def finish(self, wall_seconds: float) -> None:
        """Fill in what is known only at the end."""
        report, job = self.report, self.job
        if self.source.count is not None and not report.interrupted and job.frames and len(report.frames) < job.frames:
            self.source.warnings.append(f"{job.frames} frames were asked for, but {self.source.name!r} gave {len(report.frames)}")
        stats = self.stream.stats.budget
        report.budget = None if stats is None else stats.to_dict()
        report.warnings = [*self.source.warnings, *([f"budget: {stats.remark}"] if stats is not None and stats.remark else [])]
        report.model["task"] = self.task.name
        report.layers = [dict(row) for row in self.stream.explain().rows]
        report.macs_dense = float(self.stream.stats.last.macs_dense)
        total = self.stream.stats.total
        report.restarts, report.refreshes = int(total.restarts), int(total.refreshes)
        report.state_bytes = int(self.stream.memory().get("total", 0))
        report.measures = [
            MeasureRecord(measure.key, measure.label, measure.value, measure.text)
            for measure in (self.task.measures([sample.agreement for sample in report.samples]) if report.samples else [])
        ]
        report.wall_seconds = wall_seconds
        paths = {"video": job.output, "report": job.report, "json": job.json}
        report.outputs = {kind: str(path) for kind, path in paths.items() if path is not None}

    def thumbnails(self) -> list[Thumbnail]:
        """A few pictures of the run."""
        return self._album.chosen()

    def _first_outputs(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Run the first frame, where a network shows whether it takes frames at all, and find out what it returns."""
        try:
            outputs = widened(output_tensors(self.stream(tensor)))
        except Exception as error:
            problem = self._why_not(tensor)
            if problem is None:  # the network is content, so the fault is not its own
                raise
            width, height = self.size
            raise CaptureError(
                f"model: {self.loaded.name} does not run on a frame (1, 3, {height}, {width}): {first_line(problem)}; "
                "it must take one picture (n, 3, h, w); try another --size"
            ) from error
        if not outputs:
            raise CaptureError(f"model: {self.loaded.name} returned no tensor; it must return one, or a tuple, list or dict of them")
        try:
            self.task = choose_task(self.job.task, outputs, self.size, self.loaded.labels, blur=self.job.blur)
        except ValueError as error:
            raise CaptureError(str(error)) from error
        return outputs

    def _why_not(self, tensor: torch.Tensor) -> Exception | None:
        """What the network itself says to a frame, without streaming; None if it is content or cannot be asked."""
        model = self.loaded.model
        if not isinstance(model, torch.nn.Module):
            return None
        try:
            with torch.inference_mode():
                model(tensor)
        except Exception as error:
            return error
        return None

    def _compare(
        self, dense: DenseNetwork, tensor: torch.Tensor, outputs: Sequence[torch.Tensor], finding: Any, record: FrameRecord
    ) -> None:
        expected, seconds = dense(tensor)
        relative, largest = difference(*(inside_of(self.area, tensors) for tensors in (expected, outputs)))
        if self.area is None:
            agreement = self.task.agreement(self.task.read(expected, self.size), finding)
        else:
            agreement = agreement_inside(self.task, self.area, expected, outputs, self.size)
        self.report.samples.append(SampleRecord(record.index, seconds, record.seconds, relative, largest, agreement))

    def _check(self, dense: DenseNetwork, tensor: torch.Tensor, outputs: Sequence[torch.Tensor], index: int) -> CheckRecord:
        """The error on one frame in noise units: two dense runs."""
        scale = torch.tensor(self.preprocess.grey_level, device=tensor.device).view(1, 3, 1, 1)
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.device) * scale
        expected = inside_of(self.area, dense(tensor)[0])
        unit = difference(expected, inside_of(self.area, dense(tensor + noise)[0]))[0]
        error = difference(expected, inside_of(self.area, outputs))[0]
        return CheckRecord(index, error / unit if unit > 0 else math.inf if error > 0 else 0.0, self._share_since())

    def _note_budget(self, record: FrameRecord) -> None:
        """Writes down the factor, and the check if there was one on this frame."""
        stats = self.stream.stats.budget
        if stats is None:
            return
        record.factor = stats.factor
        if stats.checks > self._checked:
            self._checked = stats.checks
            self.report.checks.append(CheckRecord(record.index, stats.error, self._share_since(skip=1), dense_output=True))

    _checked = _shared = 0

    def _share_since(self, skip: int = 0) -> float:
        """Mean share of the dense work of the frames since the last check (without this one, if it was checked itself)."""
        frames = self.report.frames[max(self._shared, 1) : len(self.report.frames) - skip]
        self._shared = len(self.report.frames)
        return sum(frame.mac_share for frame in frames) / len(frames) if frames else 1.0

    def _draw(self, frame: Frame, finding: Any, record: FrameRecord) -> None:
        number = len(self.report.frames) - 1
        wanted = self._album.wants(number)
        if self.writer is None and not wanted:
            return
        full = self.job.view == "frame"
        canvas = frame.rgb(frame.size if full else _panel_size(self.source.size))
        drawn = self._drawn(canvas, finding) if self.job.view != "heat" or wanted else canvas
        if full and not wanted:
            picture = drawn
        else:
            done = f"input changed {100 * record.input_density:.1f} %, work done {100 * record.mac_share:.1f} % of dense"
            left = " · ".join(text for text in (f"frame {record.index}", record.note) if text)
            panels = beside([drawn, heat_overlay(canvas, self.heat())], [left, f"recomputed: {done}"])
            width = canvas.shape[1]
            picture = {"both": panels, "frame": drawn, "heat": panels[:, width:]}[self.job.view]
            if wanted:
                self._album.add(
                    number, Thumbnail(shrunk(panels), f"frame {record.index}: {done}{'; ' if record.note else ''}{record.note}")
                )
        if self.writer is not None:
            self.writer.write(picture)

    def _drawn(self, canvas: Image, finding: Any) -> Image:
        if self.area is None:
            return self.task.draw(canvas, finding)
        return draw_inside(self.task, self.area.current()[1][0].cpu().numpy(), canvas, finding)


class DenseNetwork:
    """The same network without streaming, for comparison.

    An ``nn.Module`` runs as it is in PyTorch. An ONNX file runs in onnxruntime where that is installed, else by the rules of the
    captured graph in PyTorch.

    Attributes:
        engine: what runs it, for the report.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.engine, self._run = _dense_runner(loaded)
        self._warm = False

    def __call__(self, frame: torch.Tensor) -> tuple[list[torch.Tensor], float]:
        """Output tensors for a frame (1, 3, h, w), and the seconds they took (the very first run is not timed)."""
        if not self._warm:
            self._run(frame)
            self._warm = True
        began = time.perf_counter()
        outputs = self._run(frame)
        if frame.is_cuda:
            torch.cuda.synchronize(frame.device)
        return outputs, time.perf_counter() - began


def _dense_runner(loaded: LoadedModel) -> tuple[str, Callable[[torch.Tensor], list[torch.Tensor]]]:
    model = loaded.dense or loaded.model
    if callable(model):

        def run_module(frame: torch.Tensor) -> list[torch.Tensor]:
            with torch.inference_mode():
                return output_tensors(model(frame))

        return f"PyTorch {torch.__version__}", run_module
    with contextlib.suppress(ImportError):
        if loaded.path is not None and loaded.kind == "onnx":
            return _onnxruntime_runner(loaded.path)
    rules = importlib.import_module("sightline.graph.rules")

    def run_graph(frame: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode():
            graph = model if isinstance(model, Graph) else model.graph(*frame.shape)
            return output_tensors(rules.reference(graph, frame))

    return f"the captured graph in PyTorch {torch.__version__}", run_graph


def _onnxruntime_runner(path: Path) -> tuple[str, Callable[[torch.Tensor], list[torch.Tensor]]]:
    runtime: Any = importlib.import_module("onnxruntime")
    onnx: Any = importlib.import_module("onnx")
    proto = onnx.load(str(path))
    for value in [*proto.graph.input, *proto.graph.output]:  # declared sizes may be those of an example; frames have their own
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if axis != 1:
                dimension.dim_param = f"{value.name}_{axis}"
    del proto.graph.value_info[:]
    weights = {initializer.name for initializer in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run_session(frame: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in session.run(None, {inputs[0].name: frame.cpu().numpy()})]

    return f"onnxruntime {runtime.__version__}", run_session


def difference(expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Relative L2 error and largest absolute difference over all output tensors.

    Args:
        expected: the dense outputs.
        got: the streamed ones, of the same shapes.

    Returns:
        L2 norm of the difference over the L2 norm of ``expected`` (0 if both are 0), and the largest difference.
    """
    squared = reference = largest = 0.0
    for first, second in zip(expected, got, strict=True):
        if not first.numel():
            continue
        wanted = first.detach().to("cpu", torch.float64)
        gap = second.detach().to("cpu", torch.float64) - wanted
        squared += float(gap.square().sum())
        reference += float(wanted.square().sum())
        largest = max(largest, float(gap.abs().max()))
    return (math.sqrt(squared / reference) if reference else math.inf if squared else 0.0), largest


class HeatMap:
    """Where the last frame was computed: for every place, the share of some layers that recomputed it.

    Args:
        stream: the running stream.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._sites: list[str] | None = None

    def __call__(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Heat (a, b), 0 to 1, at a quarter of the input's resolution."""
        mask = self._stream.last_sites("input")[0]
        grid = (max(mask.shape[0] // 4, 1), max(mask.shape[1] // 4, 1))
        heat = _on_grid(mask, grid)
        sites = self._choose()
        for name in sites:
            heat = heat + _on_grid(self._stream.last_sites(name)[0], grid)
        return (heat / (1 + len(sites))).to("cpu", torch.float32).numpy()

    def _choose(self) -> list[str]:
        """A few heavy layers, spread over the depth of the network."""
        if self._sites is None:
            heavy = [str(row["site"]) for row in self._stream.explain().rows if float(row.get("macs") or 0) > 0]
            step = max(1, math.ceil(len(heavy) / (_HEAT_SITES - 1)))
            self._sites = [name for name in heavy[step // 2 :: step] if self._is_map(name)]
        return self._sites

    def _is_map(self, name: str) -> bool:
        try:
            mask = self._stream.last_sites(name)
        except (KeyError, SightlineError):
            return False
        return bool(mask.dim() == 3 and mask.shape[1] * mask.shape[2] > 1)


def _on_grid(mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """A mask (h, w) as the share of each grid cell that it covers."""
    values = mask.to(torch.float32)[None, None]
    finer = mask.shape[0] >= grid[0] and mask.shape[1] >= grid[1]
    resized = torch.nn.functional.adaptive_max_pool2d(values, grid) if finer else torch.nn.functional.interpolate(values, grid)
    return resized[0, 0]


class _Album:
    """Keeps a few pictures spread evenly over a run whose length is not known beforehand."""

    def __init__(self) -> None:
        self._pictures: list[tuple[int, Thumbnail]] = []
        self._every = 4

    def wants(self, number: int) -> bool:
        return number == 1 or (number > 0 and number % self._every == 0)

    def add(self, number: int, picture: Thumbnail) -> None:
        self._pictures.append((number, picture))
        if len(self._pictures) > 4 * _THUMBNAILS:
            self._every *= 2
            self._pictures = [entry for entry in self._pictures if self.wants(entry[0])]

    def chosen(self) -> list[Thumbnail]:
        if len(self._pictures) <= _THUMBNAILS:
            return [picture for _, picture in self._pictures]
        places = [round((step + 0.5) * len(self._pictures) / _THUMBNAILS - 0.5) for step in range(_THUMBNAILS)]
        return [self._pictures[place][1] for place in places]


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that a frame and the files are finished; the second one raises as usual."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def widened(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Half precision as float32: numpy knows no bfloat16, and drawing needs no other type."""
    return [value.float() if value.dtype in {torch.bfloat16, torch.float16} else value for value in outputs]


def _make_stream(loaded: LoadedModel, job: Job, more: dict[str, Any]) -> Any:
    factory = importlib.import_module("sightline").stream
    options = {**job.stream, "dtype": getattr(torch, job.stream["dtype"])} if "dtype" in job.stream else job.stream
    options = {**options, **more}
    try:
        return factory(loaded.model, **options)
    except SightlineError:
        raise
    except Exception as error:
        raise CaptureError(f"model: {loaded.name} cannot be streamed: {first_line(error)}; see 'sightline doctor'") from error


def first_line(error: Exception) -> str:
    """Class and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def device_of(name: str) -> torch.device:
    """The device of a name.

    Raises:
        CaptureError: it cannot be used here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CaptureError(f"device: {name!r} cannot be used ({reason}); use cpu, or see 'sightline doctor'") from error
    return device


def rounded(size: tuple[int, int]) -> tuple[int, int]:
    """The nearest size whose sides are multiples of 32, which every common network accepts."""
    width, height = (max(32, round(side / 32) * 32) for side in size)
    return width, height


def _panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """Size of one of two panels: the frame's own, at most `_PANEL_WIDTH` wide, both sides even."""
    width, height = size
    if width <= _PANEL_WIDTH:
        return width - width % 2 or 2, height - height % 2 or 2
    divisor = math.ceil(width / _PANEL_WIDTH)  # a whole fraction keeps thin lines and text in the frame sharp
    return max(width // divisor // 2 * 2, 2), max(height // divisor // 2 * 2, 2)


def shrunk(image: Image, width: int = 1280) -> Image:
    """The picture, no wider than that."""
    if image.shape[1] <= width:
        return image
    pillow = need("PIL.Image", "draw on frames")
    height = round(image.shape[0] * width / image.shape[1])
    return np.asarray(pillow.fromarray(image).resize((width, height), pillow.Resampling.LANCZOS))


def _settings(job: Job, preprocess: Preprocess) -> dict[str, Any]:
    return {
        **job.stream,
        **({} if job.thresholds is None else {"threshold": str(job.thresholds)}),
        **({} if job.budget is None else {"budget": job.budget.text}),
        **({} if job.check is None else {"check": f"every {job.check} frames"}),
        **({} if job.area is None else {"area": job.area.text}),
        **({"refresh": "keyframes"} if job.refresh_keyframes else {}),
        "start": job.start,
        "frames": job.frames if job.frames is not None else "all",
        **network_settings(job.weights, preprocess, job.device),
    }


def network_settings(weights: str | None, preprocess: Preprocess, device: str) -> dict[str, Any]:
    """What reports say about the network's weights, its input and what it runs on."""
    return {
        "weights": weights or "as in the file, or random",
        "scale": preprocess.scale,
        "mean": list(preprocess.mean or ()),
        "std": list(preprocess.std or ()),
        "channels": "BGR" if preprocess.bgr else "RGB",
        "device": device,
        "threads": torch.get_num_threads(),
    }


def all_versions() -> dict[str, str]:
    """Versions of what is installed, and the machine."""
    from sightline.cli.doctor import machine, versions

    found = {name: version for name, version in versions().items() if version}
    return {**found, **machine()}


def _write_reports(job: Job, report: RunReport, thumbnails: Sequence[Thumbnail]) -> None:
    if job.report is not None:
        write_text(job.report, render(report, thumbnails), "--report")
    if job.json is not None:
        write_text(job.json, report.to_json(), "--json")
