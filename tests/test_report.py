"""Reports: the numbers derived from the records, the JSON, and the page."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.report import html
from sightline.report.data import FrameRecord, MeasureRecord, RunReport, SampleRecord
from sightline.report.html import Line, axis_ticks, line_chart, render, thin
from sightline.report.page import Thumbnail


def make_report(frames: int = 10, samples: int = 3, streamed: float = 0.01, dense: float = 0.05) -> RunReport:
    report = RunReport(
        title="Streaming report: gate <1>.mp4",
        source={"name": "dir/gate.mp4", "kind": "file", "width": 64, "height": 48, "fps": 25.0},
        model={"name": "net.py:<make>", "input_width": 64, "input_height": 32, "task": "map"},
        settings={"threshold": 0.03, "noise": None, "mean": [0.1, 0.2, 0.3]},
        versions={"python": "3.11", "torch": "2.13"},
        dense_engine="PyTorch 2.13",
        macs_dense=2e9,
        state_bytes=5 << 20,
        wall_seconds=2.0,
    )
    report.frames = [FrameRecord(0, 0.4, 1.0, 1.0)]
    report.frames += [FrameRecord(index, streamed, 0.1, 0.25, "two") for index in range(1, frames)]
    report.samples = [SampleRecord(index + 1, dense, streamed, 0.01 * (index + 1), 0.5, {"equal": 1.0}) for index in range(samples)]
    report.measures = [MeasureRecord("map_equal", "same class", 0.99, "99 %")] if samples else []
    keys = ("site", "kind", "executor", "density", "macs", "share", "note")
    rows = [("conv1", "window", "native", 0.2, 1.5e9, 0.75, ""), ("odd<op>", "global", "torch", 1.0, 5e8, 0.25, "no rule")]
    report.layers = [dict(zip(keys, row, strict=True)) for row in rows]
    return report


class Page(HTMLParser):
    """Checks that elements nest, and collects what a page refers to and says."""

    VOID = frozenset({"meta", "br", "img", "line", "circle", "polyline", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.targets: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


# -- data ---------------------------------------------------------------------------------------------------------------------


def test_the_first_frame_does_not_count_in_the_means() -> None:
    report = make_report()
    assert report.mac_share == pytest.approx(0.25)
    assert report.input_density == pytest.approx(0.1)
    assert report.streamed_seconds == pytest.approx(0.01)
    assert report.speedup == pytest.approx(5.0)


def test_the_verdict_says_when_streaming_pays_and_when_not() -> None:
    assert "left out 75.0\N{NO-BREAK SPACE}%" in make_report().verdict
    assert "5.0 times as fast" in make_report().verdict
    assert "does not pay here: it took 2.00 times as long" in make_report(streamed=0.1).verdict
    assert "times" not in make_report(samples=0).verdict


def test_a_report_of_one_frame_and_of_none() -> None:
    one, none = make_report(frames=1, samples=0), make_report(frames=1, samples=0)
    none.frames = []
    assert one.mac_share == 1.0
    assert none.mac_share == 0.0
    assert none.speedup is None
    for report in (one, none):
        assert json.loads(report.to_json())["summary"]["speedup"] is None
        assert dict(report.summary())["frames"] == str(len(report.frames))


def test_json_is_strict_and_complete() -> None:
    report = make_report()
    report.samples[0].relative_l2 = math.inf
    report.settings["path"] = object()
    table = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert table["schema_version"] == 1
    assert len(table["frames"]) == 10
    assert table["samples"][0]["relative_l2"] is None
    assert table["summary"]["dense_seconds_median"] == pytest.approx(0.05)
    assert table["summary"]["measures"] == {"map_equal": 0.99}
    assert table["layers"][1]["site"] == "odd<op>"


def test_the_summary_has_every_number_once() -> None:
    rows = make_report().summary()
    names = [name for name, _ in rows]
    assert len(set(names)) == len(names)
    assert {"frames", "MACs saved", "speed-up", "same class", "whole job", "state held"} <= set(names)
    stopped = make_report()
    stopped.interrupted = True
    assert dict(stopped.summary())["frames"] == "10 (stopped early)"


def test_records_need_no_torch() -> None:
    # Importing the package itself brings torch; the file alone must not.
    code = (
        "import sys, importlib.util as u\n"
        f"spec = u.spec_from_file_location('data', {html.__file__.replace('html.py', 'data.py')!r})\n"
        "module = u.module_from_spec(spec); sys.modules['data'] = module; spec.loader.exec_module(module)\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


# -- page ---------------------------------------------------------------------------------------------------------------------


def test_the_page_is_complete_in_itself() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    text = render(make_report(), [Thumbnail(picture, "frame 3: <b>two</b>")])
    page = Page(text)
    assert page.open == []
    assert all(target.startswith("data:image/jpeg;base64,") for target in page.targets)
    assert len(page.targets) == 1
    assert "link" not in page.tags
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    assert "url(" not in text


def test_the_page_shows_everything_and_escapes_it() -> None:
    report = make_report()
    report.warnings = ["the file <script>alert(1)</script> is cut off"]
    text = render(report)
    page = Page(text)
    words = " ".join(page.words)
    assert "<script>alert(1)" not in text
    for expected in ("conv1", "odd<op>", "no rule", "net.py:<make>", report.verdict, "gate <1>.mp4", "cut off", "0.03", "PyTorch 2.13"):
        assert expected in words
    assert page.tags.count("svg") == 2
    assert page.tags.count("script") == 1


def test_the_page_without_samples_layers_or_pictures() -> None:
    report = make_report(frames=1, samples=0)
    report.layers = []
    text = render(report)
    assert Page(text).open == []
    assert "frame by frame" not in text
    assert "Layer by layer" not in text


def test_a_chart_keeps_its_values_and_stays_inside() -> None:
    svg = line_chart([Line("a", "c1", [0.0, 1.0, 2.0], [0.0, 50.0, 120.0]), Line("b", "c2", [1.0], [30.0], dots=True)], "title", 100.0)
    assert 'data-values="0,0 1,50 2,120"' in svg
    assert "<circle" in svg
    points: Any = svg.split(' points="')[1].split('"')[0]
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert all(0 <= x <= 960 and 0 <= y <= 260 for x, y in places)


@given(st.floats(1e-6, 1e9))
def test_axis_ticks_cover_the_range_with_few_steps(top: float) -> None:
    ticks = axis_ticks(top)
    assert ticks[0] == 0.0
    assert ticks[-1] >= top * (1 - 1e-6)
    assert 3 <= len(ticks) <= 7


def test_thinning_keeps_order_and_extremes() -> None:
    points = [(float(index), float(index % 7)) for index in range(10_000)]
    points[5_003] = (5003.0, 99.0)
    kept = thin(points)
    assert len(kept) <= 1300
    assert kept == sorted(kept)
    assert (5003.0, 99.0) in kept
    assert thin(points[:100]) == points[:100]
