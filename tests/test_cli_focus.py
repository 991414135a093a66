"""``sightline focus``: what it measures, writes and prints, and how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import sightline as sl
from sightline.cli import focus, focus_job
from sightline.cli.app import app
from sightline.cli.focus_area import Detector
from sightline.cli.focus_split import split_network
from sightline.cli.inside import AreaChoice
from sightline.cli.pictures import natural, open_pictures, read_mask, read_picture
from sightline.errors import CaptureError, MediaError
from sightline.media import open_source
from sightline.models import load_model
from sightline.report.focus_data import FocusReport, ImageRecord
from sightline.tasks.drawing import ACCENT, spotlight

H, W = 64, 96
NETWORKS = """
import torch
from torch import nn

def body():
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))

def segment():
    return body()

class Classes(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = body()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.pool(self.features(x)).flatten(1))

def classify():
    return Classes()

class Finder(nn.Module):
    def forward(self, x):
        n = (x.mean(1)[0] > 0.9).nonzero()
        low, high = (n.amin(0), n.amax(0) + 1) if len(n) else (n, n)
        boxes = torch.tensor([[low[1], low[0], high[1], high[0]]] * 2) if len(n) else torch.zeros(0, 4)
        return [{"boxes": boxes.float(), "scores": torch.tensor([0.9, 0.2])[: len(boxes)]}]

class Heat(nn.Module):
    '''CenterFace's four maps, with a face of 16x16 where the picture, 0..255, is white.'''

    def forward(self, x):
        heat = (nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4) > 200).float() * 0.9
        like = torch.ones_like(heat)
        return heat, torch.cat([like, like], 1) * 1.3863, torch.cat([like, like], 1) * 0, torch.cat([like] * 10, 1) * 0

def grey_only():
    return nn.Conv2d(1, 4, 3)

def wants_large():
    return nn.Sequential(nn.Conv2d(3, 4, 80))
"""


def picture(white: tuple[int, int, int, int] | None = (8, 16, 24, 40), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 80, (H, W, 3), dtype=np.uint8)
    if white is not None:
        y0, x0, y1, x1 = white
        pixels[y0:y1, x0:x1] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    picture().save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good pictures, one of another size, one broken, and one that is no picture."""
    path = tmp_path / "folder"
    path.mkdir()
    for index in (10, 9, 1):
        picture((4, 8 * (index % 4), 20, 8 * (index % 4) + 16), index).save(path / f"p{index}.png")
    picture().resize((W + 16, H)).save(path / "p11.png")
    (path / "p2.jpg").write_bytes(b"not a picture")
    (path / "notes.txt").write_text("nothing")
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["focus", *map(str, arguments)])


def table_of(path: Path) -> Any:
    return json.loads(path.read_text())


def sentence(result: Any) -> str:
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("sightline: ") and "Traceback" not in result.output
    return str(lines[0])


# -- what it does ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "zero"])
def test_a_box_in_one_image(networks: Path, image: Path, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "out"
    result = run(image, "-m", f"{networks}:segment", "--box", "16,24,48,72", "--mode", mode, "--output-dir", out, "--runs", 2)
    assert result.exit_code == 0 and not result.stderr, result.output
    table = table_of(out / "report.json")
    (record,) = table["images"]
    assert record["area"] == pytest.approx(0.25) and (record["width"], record["height"]) == (W, H)
    shares = {row["site"]: row["share"] for row in table["layers"]}
    assert shares["4"] == 0.25 and (shares["0"] > 0.25) == (mode == "exact")
    assert record["mac_share"] == pytest.approx(
        sum(r["macs_done"] for r in table["layers"]) / sum(r["macs"] for r in table["layers"]), rel=1e-3
    )
    assert min(record[f"{name}_{unit}"] for name in ("focused", "dense") for unit in ("seconds", "cpu_seconds")) > 0
    model = load_model(f"{networks}:segment").model
    x = torch.from_numpy(np.asarray(Image.open(image)).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        want, got = model(x), sl.focus(model, sl.AreaOfInterest.from_boxes([(16, 24, 48, 72)], (H, W)), mode=mode)(x)
    want, got = want[..., 8:24, 12:36], got[..., 8:24, 12:36]
    assert record["relative_l2"] == pytest.approx(float((got - want).norm() / want.norm()), rel=1e-3, abs=1e-6)
    assert record["agreement"]["equal"] == pytest.approx(float((got.argmax(1) == want.argmax(1)).float().mean()), abs=1e-6)
    assert (record["relative_l2"] < 1e-5) == (mode == "exact") and record["max_abs"] > 0
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 1 and "Layer by layer" in page and "http" not in page.replace("http://www.w3.org", "")
    drawn = np.asarray(Image.open(out / "street.focus.png"))
    assert drawn.shape == (280 + 30, 3 * 420, 3)
    assert (drawn[:280, :420] == ACCENT).all(2).any() and not (drawn[:280, 840:] == ACCENT).all(2).any()
    for expected in ("speed-up", "area", "MACs saved", "CPU time of 1 thread", "street.focus.png", "report.html"):
        assert expected in result.stdout.replace("\n", "")
    assert not list(out.glob(".*partial*"))


def test_a_folder_skips_what_cannot_be_used_and_says_so(networks: Path, folder: Path, tmp_path: Path) -> None:
    result = run(
        folder,
        "-m",
        f"{networks}:segment",
        "--box",
        "0,100,10,110",
        "--box",
        "0,99,4,120",
        "--json",
        tmp_path / "r.json",
        "--quiet",
        "--runs",
        1,
    )
    assert (result.exit_code, result.stdout) == (0, "")
    table = table_of(tmp_path / "r.json")
    assert [entry["name"] for entry in table["images"]] == ["p11.png"]  # the others are too narrow for the box
    assert list(table["source"]["skipped"]) == ["p1.png", "p2.jpg", "p9.png", "p10.png"]
    assert table["summary"]["skipped"] == 4 and "lies outside" in table["source"]["skipped"]["p9.png"]
    warned = [line for line in result.stderr.splitlines() if "was skipped" in line]
    assert len(warned) == 4 and "damaged or not an image" in warned[1]
    assert sum("was cut off" in line for line in result.stderr.splitlines()) == 1


def test_all_pictures_count_and_the_report_shows_them(networks: Path, folder: Path, tmp_path: Path) -> None:
    result = run(folder, "-m", f"{networks}:classify", "--box", "0,0,32,48", "--output-dir", tmp_path / "a/b", "--images", 3, "--runs", 1)
    assert result.exit_code == 0, result.output
    table = table_of(tmp_path / "a/b/report.json")
    assert [entry["name"] for entry in table["images"]] == ["p1.png", "p9.png"] and list(table["source"]["skipped"]) == ["p2.jpg"]
    assert set(table["summary"]["measures"]) == {"top1_agreement", "top5_overlap"}
    assert table["measures"][0]["label"] == "images with the same best class"
    assert "pools over its whole map" in result.stderr and "2, 1 skipped" in result.stdout
    page = (tmp_path / "a/b/report.html").read_text()
    assert page.count("<figure>") == 2 and "p9.png" in page and "damaged or not an image" in page
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == ["p1.focus.png", "p9.focus.png", "report.html", "report.json"]


def test_exact_mode_says_when_it_saves_nothing(networks: Path, image: Path) -> None:
    result = run(image, "-m", f"{networks}:classify", "--box", "0,0,32,48", "--mode", "exact", "--runs", 1)
    assert result.exit_code == 0 and "reads a whole map" in sentence(result)
    assert re.search(r"MACs saved\s+│\s+0.0", result.stdout)


def test_masks_have_any_size_and_may_be_empty(networks: Path, image: Path, tmp_path: Path) -> None:
    small = np.zeros((2, 2), np.uint8)
    small[0, 1] = 1
    Image.fromarray(small).save(tmp_path / "small.png")
    Image.fromarray(small * 0).save(tmp_path / "empty.png")
    numbers = tmp_path / "r.json"
    result = run(image, "-m", f"{networks}:segment", "--mask", tmp_path / "small.png", "--json", numbers, "--runs", 1)
    assert result.exit_code == 0 and not result.stderr
    assert table_of(numbers)["images"][0]["area"] == 0.25 and {r["share"] for r in table_of(numbers)["layers"][1:]} == {0.25}
    result = run(
        image,
        "-m",
        f"{networks}:segment",
        "--mask",
        tmp_path / "empty.png",
        "--json",
        numbers,
        "--report",
        tmp_path / "r.html",
        "--runs",
        1,
    )
    assert result.exit_code == 0 and "the mask is empty in 1 of 1 images" in sentence(result)
    (record,) = table_of(numbers)["images"]
    assert (record["area"], record["mac_share"], record["relative_l2"], record["agreement"]) == (0, 0, None, {})
    assert "nothing was computed" in result.stdout


def test_brightness_chooses_a_layer_and_says_which(networks: Path, image: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "r.json"
    arguments = (image, "-m", f"{networks}:classify", "--json", numbers, "--runs", 1, "--brightness")
    result = run(*arguments, 0.8)
    assert result.exit_code == 0 and not result.stderr, result.output
    table = table_of(numbers)
    assert "behind 'features.1' (8 channels, 96x64" in table["area"] and "features.1" in result.stdout.replace("\n", "")
    model = load_model(f"{networks}:classify").model
    x = torch.from_numpy(np.asarray(Image.open(image)).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        brightness = model.features[:2](x).sum(1)
    share = float((brightness >= 0.8).float().mean())
    assert 0 < share < 1 and table["images"][0]["area"] == pytest.approx(share)
    assert table["images"][0]["brightness"][3] == pytest.approx(float(brightness.max()))
    result = run(*arguments, 1e9, "--split", "features.3")
    assert result.exit_code == 0 and "nothing is bright enough in 1 of 1 images" in sentence(result)
    table = table_of(numbers)
    assert table["images"][0]["area"] == table["images"][0]["mac_share"] == 1 and "behind 'features.3'" in table["area"]
    assert table["images"][0]["relative_l2"] < 1e-5


@pytest.mark.parametrize(("detector", "area"), [("Finder", 16 * 24), ("Heat", None)])
def test_boxes_of_a_detector(networks: Path, image: Path, tmp_path: Path, detector: str, area: int | None) -> None:
    numbers = tmp_path / "r.json"
    result = run(image, "-m", f"{networks}:segment", "--boxes-from", f"{networks}:{detector}", "--json", numbers, "--runs", 1)
    assert result.exit_code == 0 and not result.stderr, result.output
    (record,) = table_of(numbers)["images"]
    assert record["area"] * H * W == area or (area is None and 0.06 < record["area"] < 0.25)
    assert table_of(numbers)["area"] == f"boxes from networks.py:{detector}, score of at least 0.5"
    if area is not None:
        more = run(
            image, "-m", f"{networks}:segment", "--boxes-from", f"{networks}:{detector}", "--margin", 2, "--json", numbers, "--runs", 1,
            "--detector-size", "96x64",
        )  # fmt: skip
        assert more.exit_code == 0 and table_of(numbers)["images"][0]["area"] * H * W == 20 * 28


def test_a_detector_that_finds_nothing(networks: Path, tmp_path: Path) -> None:
    picture(None).save(tmp_path / "dark.png")
    result = run(tmp_path / "dark.png", "-m", f"{networks}:segment", "--boxes-from", f"{networks}:Finder", "--runs", 1)
    assert result.exit_code == 0 and "the detector found nothing in 1 of 1 images (dark.png)" in sentence(result)


def test_boxes_are_brought_to_the_size_of_the_picture(networks: Path, image: Path) -> None:
    choice = AreaChoice(detector=f"{networks}:Finder", detector_size=(2 * W, 2 * H))
    box = Detector(choice, torch.device("cpu"))(read_picture(image)).sites(H, W).box
    assert box is not None and np.abs(np.array(box) - (8, 16, 24, 40)).max() <= 1


def test_hold_keeps_the_previous_answer_outside(networks: Path, folder: Path, tmp_path: Path) -> None:
    arguments = (folder, "-m", f"{networks}:segment", "--box", "0,0,32,48", "--runs", 1, "--images", 4)
    for outside in ("zero", "hold"):
        assert run(*arguments, "--outside", outside, "--output-dir", tmp_path / outside).exit_code == 0
    first, second = (np.asarray(Image.open(tmp_path / outside / "p9.focus.png")).astype(int) for outside in ("zero", "hold"))
    middle = (slice(0, 280), slice(420, 840))
    assert (first[middle] != second[middle]).any() and (first[:280, :420] == second[:280, :420]).all()


# -- parts ---------------------------------------------------------------------------------------------------------------------------


def test_split_takes_the_first_layer_behind_a_twentieth_of_the_work() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()), nn.MaxPool2d(2),
        nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2),
    ).eval()  # fmt: skip
    split = split_network(model, torch.zeros(1, 3, 16, 16), None)
    assert (split.name, split.shape, split.chosen) == ("1.2", (16, 16, 16), True)
    assert split.later == [model[2], model[3], model[4]]
    macs = [256 * 3 * 2, 256 * 2 * 9 * 16, 64 * 16 * 9 * 64, 128]
    assert split.macs_share == pytest.approx(sum(macs[:2]) / sum(macs))
    named = split_network(model, torch.zeros(1, 3, 16, 16), "1.0")
    assert named.later == [model[1][1], model[1][2], model[2], model[3], model[4]] and not named.chosen
    for wrong, says in (("9", "no layer '9'"), ("5", "return a map"), ("3", "no convolution comes behind")):
        with pytest.raises(CaptureError, match=says):
            split_network(model, torch.zeros(1, 3, 16, 16), wrong)
    with pytest.raises(CaptureError, match="no layer of this network can be chosen"):
        split_network(nn.Conv2d(3, 1, 1), torch.zeros(1, 3, 8, 8), None)
    with pytest.raises(CaptureError, match="no named layers"):
        split_network(object(), torch.zeros(1, 3, 8, 8), None)


def test_split_goes_into_a_wrapper_and_by_order_of_execution() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.last(self.first(x))
            return result

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.inner(x)
            return result

    model = Outer()
    split = split_network(model, torch.zeros(1, 3, 8, 8), None)
    assert split.name == "inner.first" and split.later == [model.inner.last]


def test_masks_of_every_kind(tmp_path: Path) -> None:
    inside = np.zeros((6, 8), bool)
    inside[1:3, 2:7] = True
    grey = inside.astype(np.uint8)
    palette = Image.fromarray(grey, "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # black on white, but the first entry is outside
    alpha = np.full((6, 8, 4), 255, np.uint8)
    alpha[..., 3] = grey * 255
    kinds = {
        "l.png": Image.fromarray(grey), "one.png": Image.fromarray(inside),
        "rgb.png": Image.fromarray(np.stack([grey * 0, grey, grey * 0], 2)),
        "i.png": Image.fromarray(grey.astype(np.uint16)), "p.png": palette, "a.png": Image.fromarray(alpha),
    }  # fmt: skip
    for name, made in kinds.items():
        made.save(tmp_path / name)
        np.testing.assert_array_equal(read_mask(tmp_path / name), inside, err_msg=name)
    large = np.kron(inside, np.ones((16, 16), bool))
    Image.fromarray(large.astype(np.uint8) * 255).save(tmp_path / "l.jpg", quality=50)
    np.testing.assert_array_equal(read_mask(tmp_path / "l.jpg"), large)


def test_pictures_are_upright_and_in_natural_order(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture().save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (H, W)
    assert read_picture(tmp_path / "turned.jpg").rgb((10, 20)).shape == (20, 10, 3)
    assert sorted(["p10", "P9", "p1b", "p1"], key=natural) == ["p1", "p1b", "P9", "p10"]
    (tmp_path / "v.mp4").write_bytes(b"")
    with pytest.raises(MediaError, match="is a video"):
        open_pictures(str(tmp_path / "v.mp4"))


def test_spotlight_dims_outside_and_frames_the_area() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    inside = np.zeros((10, 10), bool)
    inside[2:5, 3:8] = True
    shown = spotlight(image, inside)
    assert (shown[30, 50] == 200).all() and (shown[80, 80] == 90).all() and (shown[19, 50] == ACCENT).all()
    assert not (shown[21:49, 31:79] == ACCENT).all(2).any()
    assert (spotlight(image, inside, np.zeros_like(image))[30, 50] == 0).all()
    assert not (spotlight(image, np.ones((1, 1), bool)) == ACCENT).all(2).any()


def test_sums_of_a_report() -> None:
    records = [
        ImageRecord("a", 4, 4, 0.5, 0.4, 0.01, 0.03, 0.01, 0.02, 0.1, 0.2),
        ImageRecord("b", 4, 4, 0.1, 0.2, 0.01, 0.05, 0.01, 0.06, None, None),
    ]
    report = _report(source={"skipped": {}}, clock="CPU time of 1 thread", images=records, dense_engine="X")
    assert (report.area_size, report.mac_share, report.relative_l2) == pytest.approx((0.3, 0.3, 0.1))
    assert report.speedup == pytest.approx(4.0) and report.wall_speedup == pytest.approx(4.0)
    assert "took 0.25 of the dense network's time (X)" in report.verdict and "0.1 (relative L2)" in report.verdict
    records[0].dense_cpu_seconds = records[1].dense_cpu_seconds = 0.005
    assert "does not pay here: it took 2.00 times" in report.verdict
    assert _report(images=[ImageRecord("e", 1, 1, 0, 0, 1, 1, 1, 1, None, None)]).verdict.startswith("Nothing")


def _report(**fields: Any) -> FocusReport:
    return FocusReport(**{"title": "t", "source": {}, "model": {}, "area": "box", "mode": "zero", "settings": {}, "versions": {}, **fields})


# -- bad input ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "with one of --box, --mask, --brightness, --boxes-from; got none"),
        (["--box", "0,0,9,9", "--brightness", "1"], "got --box and --brightness"),
        (["--box", "0,0,9"], "y0,x0,y1,x1 in whole pixels"),
        (["--box", "0,0,9,nine"], "y0,x0,y1,x1 in whole pixels"),
        (["--box", "9,0,9,9"], "y1 must be larger than y0"),
        (["--box", "0,0,9,9", "--mode", "quick"], "expected one of zero, exact"),
        (["--box", "0,0,9,9", "--outside", "grey"], "expected one of zero, hold"),
        (["--box", "0,0,9,9", "--split", "0"], "it needs --brightness"),
        (["--box", "0,0,9,9", "--score", "0.3"], "it needs --boxes-from"),
        (["--box", "0,0,9,9", "--runs", "0"], "--runs"),
        (["--box", "0,0,9,9", "--size", "big"], "WIDTHxHEIGHT"),
        (["--brightness", "9", "--mode", "exact"], "later layers can only be cut off"),
        (["--brightness", "nan"], "expected a number"),
        (["--boxes-from", "yolo"], "--boxes-from: 'yolo' is not a model"),
        (["--boxes-from", "a.onnx", "--detector-size", "1"], "--detector-size: expected WIDTHxHEIGHT"),
    ],
)
def test_wrong_usage_is_refused_with_exit_code_2(networks: Path, image: Path, options: list[str], says: str) -> None:
    result = run(image, "-m", f"{networks}:segment", *options)
    assert result.exit_code == 2
    assert says in re.sub(r"\s*[│\n]\s*", " ", result.stderr)


BAD: list[tuple[Callable[[Path], list[object]], str]] = [
    (lambda at: ["none.png", "--box", "0,0,9,9"], "there is no file or folder 'none.png'"),
    (lambda at: [at / "networks.py", "--box", "0,0,9,9"], "cannot be read (it is damaged or not an image)"),
    (lambda at: [at / "bare", "--box", "0,0,9,9"], "holds no image"),
    (lambda at: [at / "broken", "--box", "0,0,9,9"], "none of the 1 images in"),
    (lambda at: [at / "street.png", "--box", "0,96,9,99"], "lies outside 'street.png', which is 64 high and 96 wide"),
    (lambda at: [at / "street.png", "--mask", "none.png"], "--mask: there is no file"),
    (lambda at: [at / "street.png", "--mask", at / "networks.py"], "--mask: "),
    (lambda at: [at / "street.png", "--boxes-from", "none.onnx"], "--boxes-from: there is no file 'none.onnx'"),
    (lambda at: [at / "street.png", "--boxes-from", f"{at}/networks.py:segment"], "returns no boxes that can be read"),
    (lambda at: [at / "street.png", "--boxes-from", f"{at}/networks.py:grey_only"], "does not run on a picture (1, 3, 64, 96)"),
    (lambda at: [at / "street.png", "--brightness", "1", "--split", "11"], "has no layer '11'"),
    (lambda at: [at / "street.png", "--box", "0,0,9,9", "--output-dir", at / "street.png" / "x"], "--output-dir"),
    (lambda at: [at / "street.png", "--box", "0,0,9,9", "--report", at / "none" / "r.html"], "create it"),
    (lambda at: [at / "street.png", "--box", "0,0,9,9", "--device", "abacus"], "device: 'abacus' cannot be used"),
    (lambda at: [at / "street.png", "--box", "0,0,9,9", "--task", "centerface"], "use --task auto"),
    (lambda at: [at / "street.png", "--box", "0,0,9,9", "-m", f"{at}/networks.py:grey_only"], "grey_only"),
    (lambda at: [at / "street.png", "--box", "0,0,9,9", "-m", f"{at}/networks.py:wants_large"], "wants_large"),
    (lambda at: [at / "street.png", "--brightness", "1", "-m", f"{at}/networks.py:wants_large"], "try another --size"),
]


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(("arguments", "says"), BAD)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_1(
    networks: Path, tmp_path: Path, arguments: Callable[[Path], list[object]], says: str
) -> None:
    for name in ("bare", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    result = run("-m", f"{networks}:segment", *arguments(tmp_path), "--runs", 1)
    assert result.exit_code == 1, result.output
    assert says in sentence(result)


def test_ctrl_c_finishes_the_report(networks: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = focus_job._Run.step

    def step_and_stop(self: Any, one: Any) -> None:
        step(self, one)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(focus_job._Run, "step", step_and_stop)
    result = run(folder, "-m", f"{networks}:segment", "--box", "0,0,9,9", "--output-dir", tmp_path / "o", "--runs", 1)
    assert result.exit_code == 130 and "stopped after 1 images" in result.stderr
    table = table_of(tmp_path / "o" / "report.json")
    assert table["interrupted"] and len(table["images"]) == 1 and "stopped early" in (tmp_path / "o" / "report.html").read_text()


def test_the_bar_shows_on_a_terminal(
    networks: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    job = focus.make_job(focus.FocusOptions(f"{networks}:segment", box=["0,0,32,48"]), str(image))
    job.runs = 1
    assert focus.run(job, quiet=False) is False
    shown = capsys.readouterr()
    assert "focusing" in shown.err and "area 25.0 %" in shown.err and "Focusing" in shown.out


def test_help_has_an_example() -> None:
    assert "Example: sightline focus street.jpg" in re.sub(r"\s+", " ", run("--help").stdout)


@pytest.mark.slow
def test_faces_in_real_frames(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = shared_data / "models" / "centerface.onnx"
    with open_source(str(shared_data / "videos" / "asl_book.mkv"), frames=1) as source:
        Image.fromarray(next(iter(source)).rgb()).save(tmp_path / "frame.png")
    numbers = tmp_path / "r.json"
    result = run(tmp_path / "frame.png", "-m", network, "--scale", 1, "--boxes-from", network, "--margin", 60, "--json", numbers)
    assert result.exit_code == 0, result.output
    table = table_of(numbers)
    assert table["summary"]["measures"]["faces_kept"] == table["summary"]["measures"]["faces_dense"] == 1
    assert table["summary"]["mac_share"] < 0.3
