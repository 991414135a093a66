"""The focus job: pictures in, network run inside an area and dense in turns, pictures and report out.

What belongs here: the loop, the timing, the comparison inside the area. What does not: options and printing (`sightline.cli.focus`), areas
(`sightline.cli.focus_area`), drawing (`sightline.tasks`), the page (`sightline.report`).
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sightline.area import AreaOfInterest
from sightline.cli.focus_area import Finder, make_finder
from sightline.cli.focus_split import Split, split_network
from sightline.cli.inside import AreaChoice, agreement_inside, draw_inside, inside_of
from sightline.cli.job import (
    DenseNetwork,
    Preprocess,
    all_versions,
    device_of,
    difference,
    first_line,
    interruptible,
    network_settings,
    rounded,
    set_threads,
    shrunk,
    widened,
)
from sightline.cli.pictures import Picture, Pictures, open_pictures
from sightline.errors import CaptureError, MediaError, SightlineError
from sightline.extras import need
from sightline.files import whole_file
from sightline.focus import BrightnessFocused, Focused, build_focused_model, focus
from sightline.media import Image, check_writable, write_text
from sightline.models import LoadedModel, load_model
from sightline.report.data import MeasureRecord
from sightline.report.focus_data import FocusReport, ImageRecord
from sightline.report.focus_html import render_focus
from sightline.report.page import Thumbnail
from sightline.tasks import NoTask, Task, choose_task, output_tensors
from sightline.tasks.drawing import beside, spotlight
from sightline.tasks.generic import MapTask

_PANEL = (420, 640)  # least and largest width of a panel: captions fit, three of them fit a screen
_THUMBNAILS = 12
_SAMPLES = 10_000  # of a brightness map, for its quantiles


@dataclass
class FocusJob:
    """Everything that a focus job is told; see ``sightline focus --help`` for the meaning of each."""

    source: str
    model: str
    area: AreaChoice
    weights: str | None = None
    title: str = "Focus report"
    mode: str = "zero"
    outside: str = "zero"
    backend: str = "auto"
    size: tuple[int, int] | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    task: str = "auto"
    runs: int = 3
    images: int | None = None
    output_dir: Path | None = None
    report: Path | None = None
    json: Path | None = None
    device: str = "cpu"
    threads: int | None = None


@dataclass
class Progress:
    """What a job tells while it runs: pictures done and in total, and of the last one its area, work and speed-up."""

    done: int
    total: int
    area: float
    mac_share: float
    speedup: float


def run_focus_job(job: FocusJob, on_progress: Callable[[Progress], None] = lambda progress: None) -> FocusReport:
    """Run pictures through a network, inside an area and whole, and write what was asked for.

    In a folder, a picture that cannot be used is skipped, counted and named in the report. Ctrl-C ends the loop after the current picture.

    Args:
        job: what to do; its `output_dir` is made.
        on_progress: called after each picture.

    Returns:
        What was measured.

    Raises:
        SightlineError: with a sentence that names the remedy.
        KeyboardInterrupt: on Ctrl-C before the first picture is done, or a second Ctrl-C.
    """
    began = time.perf_counter()
    pictures = open_pictures(job.source, job.images)
    _prepare_outputs(job)
    set_threads(job.threads)
    run = _Run(job, pictures)
    with interruptible() as stop:
        for picture in pictures:
            try:
                run.step(picture)
            except SightlineError as error:
                if pictures.kind == "image" or isinstance(error, CaptureError):
                    raise
                pictures.skipped[picture.name] = str(error)
                continue
            last = run.report.images[-1]
            speedup = last.dense_cpu_seconds / last.focused_cpu_seconds if last.focused_cpu_seconds else 0.0
            done = len(run.report.images) + len(pictures.skipped)
            on_progress(Progress(done, len(pictures.paths), last.area, last.mac_share, speedup))
            if stop.is_set():
                run.report.interrupted = True
                break
    if not run.report.images:
        name, reason = next(iter(pictures.skipped.items()))
        raise MediaError(f"image: none of the {len(pictures.paths)} images in {job.source!r} can be used; of {name!r}: {reason}")
    run.finish(time.perf_counter() - began)
    return run.report


def _prepare_outputs(job: FocusJob) -> None:
    """Makes the folder, names the files in it, and finds out before the work whether they can be written."""
    if job.output_dir is not None:
        try:
            job.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise MediaError(f"--output-dir: the folder {str(job.output_dir)!r} cannot be made ({reason}); choose another place") from error
        job.report = job.report or job.output_dir / "report.html"
        job.json = job.json or job.output_dir / "report.json"
    for path, option in ((job.report, "--report"), (job.json, "--json")):
        if path is not None:
            check_writable(path, option)


class _Run:
    """State of a running job."""

    def __init__(self, job: FocusJob, pictures: Pictures) -> None:
        self.job, self.pictures = job, pictures
        self.device = device_of(job.device)
        self.notes: list[str] = []
        self.finder: Finder | None = None if job.area.brightness is not None else make_finder(job.area, self.device, self.notes)
        self.loaded: LoadedModel = load_model(job.model, job.weights)
        if isinstance(self.loaded.model, torch.nn.Module):
            self.loaded.model.to(self.device)
        self.preprocess = job.preprocess.completed(self.loaded.mean, self.loaded.std)
        self.dense = DenseNetwork(self.loaded)
        self.size = job.size or self.loaded.size  # None: from the first picture
        self.task: Task = NoTask()
        self.focused: Focused | None = None
        self.split: Split | None = None
        self.layers: list[dict[str, Any]] = []
        self.thumbnails: list[Thumbnail] = []
        self.files: dict[str, str] = {}
        self.clock = time.thread_time if torch.get_num_threads() == 1 and self.device.type == "cpu" else time.process_time
        count = torch.get_num_threads()
        self.report = FocusReport(
            title=job.title,
            source={"name": pictures.name, "kind": pictures.kind, "skipped": pictures.skipped},
            model={"name": self.loaded.name},
            area=job.area.text,
            mode=job.mode,
            settings={"outside": job.outside, "backend": job.backend, **network_settings(job.weights, self.preprocess, job.device)},
            versions=all_versions(),
            clock=f"CPU time of {count} thread{'' if count == 1 else 's'}",
            runs=job.runs,
            dense_engine=self.dense.engine,
        )

    # -- one picture ----------------------------------------------------------------------------------------------------------

    def step(self, picture: Picture) -> None:
        """Run one picture both ways, compare, draw."""
        area = None if self.finder is None else self.finder(picture)
        size = self.size or rounded(picture.size)
        frame = self.preprocess(picture.rgb(size), self.device)
        expected = self._dense_first(frame, size)
        focused = self.focused or self._make(frame, size)
        self.size = size
        if area is not None:
            focused.aoi = area
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty area is noted in the report
            got = widened(output_tensors(focused(frame)))  # captured and warmed up here, where nothing is timed
        if isinstance(self.task, NoTask):
            self.task = self._choose(expected, size)
        share = focused.stats.last.macs_share
        self.report.macs_dense = float(focused.stats.last.macs_dense)
        times = self._times(focused, frame)
        record = ImageRecord(picture.name, *picture.size, focused.aoi.size(), share, *times, None, None)
        self._compare(record, focused.aoi, expected, got, size)
        if isinstance(focused, BrightnessFocused):
            self._note_brightness(record, focused)
        self._add_layers(focused)
        self.report.images.append(record)
        self._draw(picture, record, focused.aoi, expected, got, size)

    def _make(self, frame: torch.Tensor, size: tuple[int, int]) -> Focused:
        job = self.job
        if job.area.brightness is None:
            everything = torch.ones(1, 1, dtype=torch.bool)
            self.focused = focus(self.loaded.model, everything, mode=job.mode, outside=job.outside, backend=job.backend)
        else:
            self.split = split_network(self.loaded.model, frame, job.area.split)
            self.focused = build_focused_model(
                self.loaded.model, [self.split.layer], job.area.brightness, self.split.later, outside=job.outside, backend=job.backend
            )[0]
            self.report.area = f"{job.area.text} {self.split.text}"
        self.report.model.update({"input_width": size[0], "input_height": size[1]})
        return self.focused

    def _dense_first(self, frame: torch.Tensor, size: tuple[int, int]) -> list[torch.Tensor]:
        """The dense answer, from which it also shows whether the network takes pictures at all."""
        try:
            outputs = widened(self.dense(frame)[0])
        except SightlineError:
            raise
        except Exception as error:
            raise CaptureError(
                f"model: {self.loaded.name} does not run on a picture (1, 3, {size[1]}, {size[0]}): {first_line(error)[:200]}; "
                "it must take one picture (n, 3, h, w); try another --size"
            ) from error
        if not outputs:
            raise CaptureError(f"model: {self.loaded.name} returned no tensor; it must return one, or a tuple, list or dict of them")
        return outputs

    def _choose(self, outputs: Sequence[torch.Tensor], size: tuple[int, int]) -> Task:
        try:
            return choose_task(self.job.task, outputs, size, self.loaded.labels)
        except ValueError as error:
            raise CaptureError(str(error)) from error

    def _times(self, focused: Focused, frame: torch.Tensor) -> tuple[float, float, float, float]:
        """Medians of wall focused, wall dense, CPU focused, CPU dense, in seconds; the two take turns."""
        taken: dict[str, list[tuple[float, float]]] = {"focused": [], "dense": []}
        for turn in range(self.job.runs):
            order = ("focused", "dense") if turn % 2 else ("dense", "focused")
            for name in order:
                cpu, wall = self.clock(), time.perf_counter()
                focused(frame) if name == "focused" else self.dense(frame)
                if frame.is_cuda:
                    torch.cuda.synchronize(frame.device)
                taken[name].append((time.perf_counter() - wall, self.clock() - cpu))
        wall_f, cpu_f = (statistics.median(column) for column in zip(*taken["focused"], strict=True))
        wall_d, cpu_d = (statistics.median(column) for column in zip(*taken["dense"], strict=True))
        return wall_f, wall_d, cpu_f, cpu_d

    # -- comparing ---------------------------------------------------------------------------------------------------------------

    def _compare(
        self, record: ImageRecord, area: AreaOfInterest, expected: list[torch.Tensor], got: list[torch.Tensor], size: tuple[int, int]
    ) -> None:
        wanted, found = self.task.read(expected, size), self.task.read(got, size)
        record.dense_note, record.focused_note = self.task.caption(wanted), self.task.caption(found)
        if record.area == 0:
            return
        record.relative_l2, record.max_abs = difference(inside_of(area, expected), inside_of(area, got))
        record.agreement = agreement_inside(self.task, area, expected, got, size)

    def _note_brightness(self, record: ImageRecord, focused: BrightnessFocused) -> None:
        brightness = focused.last_brightness().detach().float().flatten().cpu()
        values = brightness[:: max(1, brightness.numel() // _SAMPLES)]
        quantiles = torch.quantile(values, torch.tensor([0.5, 0.9])).tolist()
        record.brightness = [float(brightness.min()), *quantiles, float(brightness.max())]

    def _add_layers(self, focused: Focused) -> None:
        """Adds up what `explain` says, for a mean over the pictures."""
        explained = focused.explain()
        if explained.remark and explained.remark not in self.notes:
            self.notes.append(explained.remark)
        if not self.layers:
            keys = ("site", "kind", "executor", "macs", "note")
            self.layers = [{**{key: row[key] for key in keys}, "share": 0.0, "macs_done": 0.0} for row in explained.rows]
        for total, row in zip(self.layers, explained.rows, strict=True):
            total["share"] += row["share"]
            total["macs_done"] += row["macs_done"]
            total["note"] = total["note"] or row["note"]

    # -- drawing -----------------------------------------------------------------------------------------------------------------

    def _draw(
        self, picture: Picture, record: ImageRecord, area: AreaOfInterest, expected: list[torch.Tensor], got: list[torch.Tensor],
        size: tuple[int, int],
    ) -> None:  # fmt: skip
        wanted = self.job.report is not None and len(self.thumbnails) < _THUMBNAILS
        if not wanted and self.job.output_dir is None:
            return
        canvas = picture.rgb(_panel_size(picture.size))
        mask = area.current()[1][0].cpu().numpy()
        dense_finding = self.task.read(expected, size)
        dense = self.task.draw(canvas, dense_finding)  # first: it sets the range of colours
        finding = self.task.read(got, size)
        whole = self.job.outside == "hold" and record.area < 1 and isinstance(self.task, MapTask)
        drawn = self.task.draw(canvas, finding) if whole else draw_inside(self.task, mask, canvas, finding)
        work = f"work done {100 * record.mac_share:.1f} % of dense"
        captions = [
            f"area {100 * record.area:.1f} %, {work}",
            f"focused{': ' * bool(record.focused_note)}{record.focused_note}",
            f"dense{': ' * bool(record.dense_note)}{record.dense_note}",
        ]
        panels = beside([spotlight(canvas, mask), drawn, dense], captions)
        if wanted:
            error = "" if record.relative_l2 is None else f"; error inside {record.relative_l2:.2g}"
            caption = f"{picture.name}: area {100 * record.area:.1f} %, {work}{error}; left: area, middle: focused, right: dense"
            self.thumbnails.append(Thumbnail(shrunk(panels, 1600), caption))
        if self.job.output_dir is not None:
            self._save(panels, picture)

    def _save(self, panels: Image, picture: Picture) -> None:
        assert self.job.output_dir is not None
        path = self.job.output_dir / f"{Path(picture.name).stem}.focus.png"
        if str(path) in self.files.values():
            path = self.job.output_dir / f"{picture.name}.focus.png"
        try:
            with whole_file(path) as partial:
                need("PIL.Image", "draw on frames").fromarray(panels).save(partial)
        except OSError as error:
            raise CaptureError(f"--output-dir: {str(path)!r} cannot be written ({error.strerror}); choose another place") from error
        self.files[f"picture {picture.name}"] = str(path)

    # -- the end -------------------------------------------------------------------------------------------------------------------

    def finish(self, wall_seconds: float) -> None:
        """Fill in what is known only at the end, and write the files."""
        report, job = self.report, self.job
        report.model["task"] = self.task.name
        report.wall_seconds = wall_seconds
        report.warnings = self._warnings()
        count = len(report.images)
        report.layers = [{**row, "share": row["share"] / count, "macs_done": row["macs_done"] / count} for row in self.layers]
        counted = [image.agreement for image in report.images if image.agreement]
        words = (("frames", "images"), ("when streaming", "when focused"))
        for measure in self.task.measures(counted) if counted else []:
            label = measure.label
            for old, new in words:
                label = label.replace(old, new)
            report.measures.append(MeasureRecord(measure.key, label, measure.value, measure.text))
        paths = {"report": job.report, "json": job.json}
        report.outputs = {**self.files, **{kind: str(path) for kind, path in paths.items() if path is not None}}
        if job.report is not None:
            write_text(job.report, render_focus(report, self.thumbnails), "--report")
        if job.json is not None:
            write_text(job.json, report.to_json(), "--json")

    def _warnings(self) -> list[str]:
        images, job = self.report.images, self.job
        found = [f"the image {name!r} was skipped: {reason}" for name, reason in self.pictures.skipped.items()]
        empty = [image.name for image in images if image.area == 0]
        if empty:
            why = {True: "the detector found nothing", False: "the mask is empty"}[job.area.detector is not None]
            found.append(f"{why} in {len(empty)} of {len(images)} images ({_listed(empty)}); nothing was computed there")
        if job.area.brightness is not None:
            dark = [image for image in images if image.brightness[3] < job.area.brightness]
            if dark:
                best = max(image.brightness[3] for image in dark)
                found.append(
                    f"nothing is bright enough in {len(dark)} of {len(images)} images ({_listed([image.name for image in dark])}), which "
                    f"were computed everywhere; their brightest sum is {best:.4g}, so give a smaller --brightness"
                )
        if job.mode == "zero" and job.area.brightness is None and self.task.name == "classify":
            found.append(
                "this network pools over its whole map, which is 0 outside the area, so its scores change with the size of the area; "
                "--mode exact keeps them, at the full price"
            )
        return [*found, *self.notes]


def _panel_size(size: tuple[int, int]) -> tuple[int, int]:
    least, largest = _PANEL
    width = min(max(size[0], least), largest)
    return width, max(round(size[1] * width / size[0]), 2)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
