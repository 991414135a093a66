"""The interactive page and its static twin: structure of the picture, and the page itself in a headless browser."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import browser
import zoo
from sightline.errors import MediaError, ShapeError
from sightline.fields import Report, analyze, page, picture, svg
from sightline.fields.diagnosis import RULES
from sightline.torchvision_import import import_torchvision

BIG = 112  # resolution that the networks are captured at


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x + self.conv2(self.relu(self.bn(self.conv1(x)))))  # type: ignore[no-any-return]


class Net(nn.Module):
    """A stem, three blocks that are alike, two branches, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2, 3)
        self.stage = nn.Sequential(*(Block(8) for _ in range(3)))
        self.left, self.right = nn.Conv2d(8, 8, (1, 5), padding=(0, 2)), nn.Conv2d(8, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage(self.stem(x))
        return self.head(torch.cat([self.left(x), self.up(self.right(x))], 1).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def report() -> Report:
    return analyze(Net(), (1, 3, 64, 64))


@pytest.fixture(scope="module")
def resnet() -> Report:
    import_torchvision()
    from torchvision.models import resnet18

    return analyze(resnet18(), (1, 3, BIG, BIG))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, resnet: Report) -> Path:
    path = tmp_path_factory.mktemp("page") / "resnet18.html"
    path.write_text(page.render(resnet, 32, name="ResNet-18 <b>&amp;</b>"), encoding="utf-8")
    return path


# -- the picture --------------------------------------------------------------------------------------------------------------


def groups(root: picture.Item) -> dict[str, picture.Item]:
    return {item.path: item for item in root.walk() if item.children}


def test_modules_become_groups_and_blocks_that_are_alike_one_of_them(report: Report) -> None:
    drawn = picture.arrange(report.to_dict())
    found = groups(drawn.root)
    assert found["stage"].repeat == 3
    assert [child.label for child in found["stage"].children] == ["stage.0", "stage.1", "stage.2"]
    assert [child.label for child in found["stage.1"].children] == ["conv1", "conv2", "add"]
    names = [node["name"] for node in report.to_dict()["nodes"]]
    first = found["stage.1"].children[0]
    assert [names[node] for node in first.nodes] == ["stage.1.conv1", "stage.1.bn", "stage.1.relu"]


def test_every_node_stands_on_exactly_one_card_and_nothing_overlaps(report: Report, resnet: Report) -> None:
    for one in (report, resnet):
        document = one.to_dict()
        drawn = picture.arrange(document)
        cards = [item for item in drawn.root.walk() if not item.children]
        wanted = [number for number, node in enumerate(document["nodes"]) if not node["hidden"]]
        assert sorted(node for card in cards for node in card.nodes) == wanted
        for folded in ((), [item.id for item in drawn.root.walk() if item.repeat]):
            boxes, lines, (width, height) = picture.place(drawn, folded)
            solid = [box for box in boxes if not box.open]
            for number, a in enumerate(solid):
                assert a.x >= 0 and a.y >= 0 and a.x + a.width <= width and a.y + a.height <= height
                for b in solid[number + 1 :]:
                    assert a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
            crossing = []
            for line in lines:
                assert all(y0 <= y1 for (_, y0), (_, y1) in zip(line.points, line.points[1:], strict=False)), "edges run downwards"
                for (x, y0), (_, y1) in zip(line.points[1:-1:2], line.points[2:-1:2], strict=True):
                    crossing += [box for box in solid if box.x < x < box.x + box.width and y0 < box.y + box.height and box.y < y1]
            assert not crossing, "lanes run beside what they pass"


def test_without_modules_blocks_are_found_by_their_operations() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for number in range(8):
                setattr(self, f"a{number}", nn.Conv2d(3, 3, 3 - 2 * (number % 2), padding=1 - number % 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for number in range(0, 8, 2):
                x = x + getattr(self, f"a{number + 1}")(getattr(self, f"a{number}")(x).relu())
            return x

    root = picture.arrange(analyze(Flat(), (1, 3, 16, 16)).to_dict()).root
    repeated = [item for item in root.walk() if item.repeat]
    assert [(item.repeat, len(item.children[0].children)) for item in repeated] == [(4, 3)]


def test_parallel_branches_are_no_repetition() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.paths = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([path(x) for path in self.paths], 1)

    root = picture.arrange(analyze(Branches(), (1, 3, 16, 16)).to_dict()).root
    assert not any(item.repeat for item in root.walk())


def test_large_networks_start_folded() -> None:
    net = nn.Sequential(*(Block(4) for _ in range(60)))
    drawn = picture.arrange(analyze(net, (1, 4, 16, 16)).to_dict())
    boxes, _, _ = picture.place(drawn, drawn.folded)
    assert drawn.folded and len(boxes) <= 90
    assert not picture.arrange(analyze(Net(), (1, 3, 64, 64)).to_dict()).folded


# -- files that other programs read -------------------------------------------------------------------------------------------


def test_svg_is_well_formed_and_coloured(report: Report) -> None:
    text = svg.render(report, 8)
    root = ET.fromstring(text)
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("stage.2.conv2") and "unproductive" in title for title in titles)
    assert "#e5534b" in text
    plain = svg.render(report, 4096)
    assert plain.count("#e5534b") == 1, "only the legend is left"
    assert len(svg.render(report, 8, folded=[item.id for item in picture.arrange(report.to_dict()).root.walk() if item.repeat])) < len(text)


def test_page_is_one_file_that_cannot_be_broken_out_of(report: Report, tmp_path: Path) -> None:
    text = page.render(report, (16, 24), name="</script><script>alert(1)</script>{{data}}")
    assert "<script>alert(1)" not in text
    addresses = set(re.findall(r"https?://[^\s\"'`<>)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of a namespace, which nobody fetches"
    data = json.loads(text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    assert data["diagnosis"]["resolution"] == [16, 24]
    from PIL import Image

    Image.new("RGB", (1500, 40), (9, 8, 7)).save(tmp_path / "wide.png")
    assert 'image":"data:image/jpeg;base64,' in page.render(report, image=tmp_path / "wide.png")
    assert 'image":"data:image/jpeg;base64,' in page.render(report, image=np.zeros((4, 5, 3), np.uint8))


def test_pictures_that_are_none(report: Report, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(MediaError, match="no file"):
        page.render(report, image=tmp_path / "missing.png")
    with pytest.raises(MediaError, match="cannot be read as a picture"):
        page.render(report, image=tmp_path / "text.png")
    with pytest.raises(ShapeError, match="of uint8"):
        page.render(report, image=np.zeros((4, 5), np.float32))
    with pytest.raises(ShapeError, match="resolution"):
        page.render(report, 0)


# -- the page in a browser ----------------------------------------------------------------------------------------------------


def classes(tab: browser.Page, name: str) -> str:
    found = tab.evaluate(f"drawn.get(cardOf.get(nodes.findIndex(n => n.name === {name!r})).id).getAttribute('class')")
    assert isinstance(found, str)
    return found


def slide(tab: browser.Page, axis: int, value: int) -> None:
    tab.evaluate(f"(r => {{ r.value = {value}; r.dispatchEvent(new Event('input')); }})($('range-{axis}'))")
    tab.settle()


def test_opens_without_a_complaint_or_a_request(tab: browser.Page, file: Path, resnet: Report) -> None:
    tab.open(file)
    assert not tab.complaints
    assert [address for address in tab.requests if not address.startswith("data:")] == [file.resolve().as_uri()]
    assert tab.evaluate("document.title") == "Receptive fields of ResNet-18 <b>&amp;</b>"
    assert tab.evaluate("document.querySelectorAll('.box.card').length") > 20
    wanted = len(resnet.unproductive(32))
    assert wanted and f"At 32 × 32: {wanted} of 17" in tab.evaluate("$('verdict').textContent")
    shown = tab.picture()
    assert shown[:4] == b"\x89PNG" and len(shown) > 20_000


def test_a_broken_page_is_noticed(tab: browser.Page, file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(file.read_text(encoding="utf-8").replace("function judge(", "function misjudge(", 1), encoding="utf-8")
    tab.open(broken)
    assert tab.complaints


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "swin_t", "lraspp_mobilenet_v3_large", "googlenet"])
def test_judges_as_the_library_does_at_any_resolution(tab: browser.Page, tmp_path: Path, name: str) -> None:
    report = analyze(zoo.build(name), tuple(zoo.frame(name).shape))
    path = tmp_path / "page.html"
    path.write_text(page.render(report), encoding="utf-8")
    tab.open(path)
    assert not tab.complaints
    for size in ((7, 7), (32, 32), (33, 65), (224, 48), (1024, 1024)):
        got: dict[str, Any] = tab.evaluate(f"judge({list(size)})")
        wanted = report.diagnose(size)
        names = [node.name for node in report.graph.nodes]
        assert {names[int(i)]: tuple(rules) for i, rules in got["rules"].items()} == {v.layer: v.rules for v in wanted.verdicts}
        maps = report.map_sizes(size)
        assert [None if m is None else tuple(m) for m in got["maps"]] == [maps[node] for node in names]
        assert (got["total"], got["wasted"], got["params"]) == (wanted.macs, wanted.wasted_macs, wanted.wasted_params)
        assert got["undecided"] == len(wanted.undecided)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet"])
def test_stands_where_the_library_puts_it_however_folded(tab: browser.Page, tmp_path: Path, name: str) -> None:
    report = analyze(zoo.build(name), tuple(zoo.frame(name).shape))
    path = tmp_path / "page.html"
    path.write_text(page.render(report), encoding="utf-8")
    tab.open(path)
    drawn = picture.arrange(report.to_dict())
    everything = {item.id for item in drawn.root.walk() if item.children and item.id != "root"}
    for folded in (drawn.folded, frozenset(), everything, {item.id for item in drawn.root.walk() if item.repeat}):
        tab.evaluate(f"state.folded = new Set({sorted(folded)}); draw()")
        boxes, lines, size = picture.place(drawn, folded)
        assert tab.evaluate("[...boxes.values()].map(b => [b.item.id, b.x, b.y, b.width, b.height, b.open])") == [
            [box.item.id, box.x, box.y, box.width, box.height, box.open] for box in boxes
        ]
        assert tab.evaluate("edges.map(e => e.points)") == [[list(point) for point in line.points] for line in lines]
        assert tab.evaluate("sizes.get('root')") == list(size)


def test_sliders_recolour_at_once_also_when_not_square(tab: browser.Page, file: Path, resnet: Report) -> None:
    tab.open(file)
    last = "layer4.1.conv2"
    assert "unproductive" in classes(tab, last)
    slide(tab, 0, 500)
    assert tab.evaluate("state.size") == [500, 500]
    assert not set(RULES) & set(classes(tab, last).split())
    fill = tab.evaluate("getComputedStyle(document.querySelector('.box.card .face')).fill")
    tab.evaluate("$('link').click()")
    slide(tab, 1, 16)
    assert tab.evaluate("state.size") == [500, 16]
    wanted = resnet.diagnose((500, 16))
    assert f"{len(wanted.broken('unproductive'))} of 17" in tab.evaluate("$('verdict').textContent")
    partial = wanted.broken("partial")
    assert partial and "partial" in classes(tab, partial[0].layer)
    assert (
        tab.evaluate(
            f"getComputedStyle(drawn.get(cardOf.get(nodes.findIndex(n => n.name === '{partial[0].layer}')).id).querySelector('.face')).fill"
        )
        != fill
    )
    tab.evaluate("(e => { e.value = 16; e.dispatchEvent(new Event('input')); })($('exact-0'))")
    tab.settle()
    assert "unproductive" in classes(tab, last)
    assert not tab.complaints


def test_search_finds_and_unfolds(tab: browser.Page, file: Path) -> None:
    tab.open(file)
    tab.evaluate("$('fold-all').click()")
    assert not tab.evaluate("boxes.has(cardOf.get(nodes.findIndex(n => n.name === 'layer3.0.downsample.0')).id)")
    tab.press("/")
    assert tab.evaluate("document.activeElement.id") == "search"
    tab.call("Input.insertText", text="layer3 downsample")
    tab.settle()
    assert tab.evaluate("$('hits').textContent") == "2 found"
    tab.press("Enter")
    assert tab.evaluate("$('hits').textContent") == "1 of 2"
    assert tab.evaluate("$('details').querySelector('h2').textContent") == "layer3.0.downsample.0"
    assert "hit" in classes(tab, "layer3.0.downsample.0") and "dim" in classes(tab, "conv1")
    seen = tab.evaluate(
        "(({left, right, top, bottom}) => [left, right, top, bottom])(document.querySelector('.box.hit').getBoundingClientRect())"
    )
    area = tab.evaluate("(({left, right, top, bottom}) => [left, right, top, bottom])(port())")
    assert area[0] <= seen[0] and seen[1] <= area[1] and area[2] <= seen[2] and seen[3] <= area[3]
    tab.evaluate("$('search').value = 'no such layer'; $('search').dispatchEvent(new Event('input'))")
    assert tab.evaluate("$('hits').textContent") == "none found"


def test_groups_fold_and_unfold(tab: browser.Page, file: Path) -> None:
    tab.open(file)
    count = "document.querySelectorAll('.box').length"
    everything = tab.evaluate(count)
    x, y = tab.evaluate("(r => [r.left + 20, r.top + 10])([...document.querySelectorAll('.box.frame')][0].getBoundingClientRect())")
    tab.click(x, y)
    assert tab.evaluate(count) < everything
    assert tab.evaluate("document.querySelector('.box.folded').getAttribute('aria-expanded')") == "false"
    assert tab.evaluate("document.querySelectorAll('.box.folded .tile').length") > 0
    tab.evaluate("$('fold-repeats').click()")
    assert "×" in tab.evaluate("document.querySelector('.box.folded .name').textContent")
    tab.evaluate("$('unfold').click()")
    assert tab.evaluate(count) == everything
    assert not tab.complaints


def test_keys_walk_open_and_zoom(tab: browser.Page, file: Path) -> None:
    tab.open(file)
    assert tab.evaluate("document.querySelectorAll('.box[tabindex=\"0\"]').length") == 1, "one stop for the tab key"
    for _ in range(30):
        tab.press("Tab")
        if tab.evaluate("document.activeElement.classList.contains('box')"):
            break
    focused = "document.activeElement.getAttribute('aria-label')"
    assert tab.evaluate(focused).startswith("input")
    outline = tab.evaluate("getComputedStyle(document.activeElement.querySelector('.face')).strokeWidth")
    assert outline == "3px", "the focus is seen"
    tab.press("ArrowDown")
    assert tab.evaluate(focused).startswith("conv1, conv2d, sees 7")
    tab.press("Enter")
    assert tab.evaluate("$('details').querySelector('h2').textContent") == "conv1"
    assert tab.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    tab.press("ArrowUp")
    assert tab.evaluate(focused).startswith("input")
    tab.press("End")
    assert tab.evaluate(focused).startswith("fc")
    scale = tab.evaluate("look.k")
    tab.press("+")
    assert tab.evaluate("look.k") > scale
    tab.evaluate("$('fold-all').click(); focusBox([...boxes.values()].find(b => b.item.children).item.id)")
    tab.press("Enter")
    assert tab.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    tab.press("ArrowLeft")
    assert tab.evaluate("document.activeElement.getAttribute('aria-expanded')") == "false"
    assert not tab.complaints


def test_every_layer_can_be_reached_by_the_arrow_keys(tab: browser.Page, file: Path) -> None:
    tab.open(file)
    reached = tab.evaluate("""(() => {
        const seen = new Set(), open = [[...boxes.keys()][0]];
        while (open.length) {
            const id = open.pop();
            if (seen.has(id)) continue;
            seen.add(id);
            for (const key of ['ArrowDown', 'ArrowUp', 'ArrowLeft', 'ArrowRight']) {
                if (boxes.get(id).item.children && (key === 'ArrowLeft' || key === 'ArrowRight')) continue;
                drawn.get(id).focus();
                walk(id, key);
                open.push(document.activeElement.dataset.id);
            }
        }
        return [...boxes.values()].filter(b => !b.open && !seen.has(b.item.id)).map(b => b.item.label);
    })()""")
    assert reached == []


def test_hovering_shows_all_figures(tab: browser.Page, file: Path) -> None:
    tab.open(file)
    x, y = tab.evaluate(
        "(r => [r.left + 30, r.top + 15])(drawn.get(cardOf.get(nodes.findIndex(n => n.name === 'maxpool')).id).getBoundingClientRect())"
    )
    tab.mouse("mouseMoved", x, y)
    tab.settle()
    text = tab.evaluate("$('tip').hidden ? '' : $('tip').textContent")
    for part in ("maxpool", "max_pool2d 3×3 /2", "field (longest path)11", "step4", "starts at-5", "8 × 8", "exact"):
        assert part in text


def test_choosing_draws_the_box_of_a_unit(tab: browser.Page, file: Path, resnet: Report) -> None:
    tab.open(file)
    slide(tab, 0, BIG)
    tab.evaluate("go(nodes.findIndex(n => n.name === 'layer2.0.conv2'))")
    y0, x0, y1, x1 = resnet.box("layer2.0.conv2", (7, 7))
    assert f"Unit (7, 7) of 14 × 14 sees height {y0} to {y1 - 1}, width {x0} to {x1 - 1}." in tab.evaluate("$('where').textContent")
    place = "frameOf.x + c * frameOf.scale, frameOf.y + r * frameOf.scale"
    pixel = f"(r, c) => [...$('canvas').getContext('2d').getImageData({place}, 1, 1).data]"
    row, column = (y0 + y1) // 2, (x0 + x1) // 2
    inside, outside, edge = (tab.evaluate(f"({pixel})({r}, {c})") for r, c in ((row, column), (4, 4), (row, x0)))
    assert sum(inside) > sum(outside) + 100
    assert edge[0] > 150 > edge[2], "yellow"
    left, top, width, height = tab.evaluate("(r => [r.left, r.top, r.width, r.height])($('canvas').getBoundingClientRect())")
    tab.click(left + width * 0.1, top + height * 0.9)
    row, column = tab.evaluate("state.unit")
    assert row > 10 and column < 3
    tab.evaluate("go(nodes.findIndex(n => n.name === 'fc'))")
    assert f"height 0 to {BIG - 1}" in tab.evaluate("$('where').textContent")
    assert not [complaint for complaint in tab.complaints if "getImageData" not in complaint], "the test reads pixels, the page does not"


def test_the_picture_is_the_one_given_or_chosen(tab: browser.Page, report: Report, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 40), (250, 0, 0)).save(tmp_path / "red.png")
    Image.new("RGB", (40, 40), (0, 0, 250)).save(tmp_path / "blue.png")
    path = tmp_path / "page.html"
    path.write_text(page.render(report, image=tmp_path / "red.png"), encoding="utf-8")
    tab.open(path)
    tab.evaluate("go(nodes.findIndex(n => n.name === 'stem'))")
    tab.evaluate("new Promise(done => { const wait = () => image ? done() : setTimeout(wait, 10); wait(); })")
    middle = "[...$('canvas').getContext('2d').getImageData($('canvas').width / 2, $('canvas').height / 2, 1, 1).data]"
    red, _, blue, _ = tab.evaluate(middle)
    assert red > 200 and blue < 60
    handle = tab.call("Runtime.evaluate", expression="$('file')")["result"]["objectId"]
    tab.evaluate("globalThis.first = image")
    tab.call("DOM.setFileInputFiles", files=[str(tmp_path / "blue.png")], objectId=handle)
    tab.evaluate("new Promise(done => { const wait = () => image !== first ? done() : setTimeout(wait, 10); wait(); })")
    red, _, blue, _ = tab.evaluate(middle)
    assert red < 60 and blue > 200
    assert [address for address in tab.requests if not address.startswith(("data:", "blob:"))] == [path.resolve().as_uri()]


def test_boxes_agree_with_the_library(tab: browser.Page, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3, 2), nn.ConvTranspose2d(1, 1, 3, 3), nn.Conv2d(1, 1, 3, dilation=2), nn.AdaptiveAvgPool2d(5))
    report = analyze(net, (1, 1, 23, 31))
    path = tmp_path / "odd.html"
    path.write_text(page.render(report), encoding="utf-8")
    tab.open(path)
    for layer in report.layers.values():
        assert layer.shape is not None
        for unit in ((0, 0), (1, 2), (layer.shape[2] - 1, layer.shape[3] - 1)):
            y0, x0, y1, x1 = report.box(layer.name, unit)
            call = f"[0, 1].map(a => spanOf(nodes.find(n => n.name === {layer.name!r}), a, {list(unit)}[a], {[23, 31]}[a]))"
            assert tab.evaluate(call) == [[y0, y1], [x0, x1]]


def test_table_sorts_filters_and_leads_to_a_layer(tab: browser.Page, file: Path, resnet: Report) -> None:
    tab.open(file)
    tab.evaluate("$('show-table').click()")
    rows = "[...$('table').tBodies[0].rows].map(r => r.cells[0].textContent)"
    names = [node.name for node in resnet.graph.nodes if node.name in resnet.layers]
    assert tab.evaluate(rows) == names
    head = "[...$('table').tHead.querySelectorAll('button')].find(b => b.textContent === 'MACs')"
    tab.evaluate(head + ".click()")
    tab.evaluate(head + ".click()")
    assert tab.evaluate(head + ".parentElement.getAttribute('aria-sort')") == "descending"
    macs = resnet.macs_at(32)
    assert tab.evaluate(rows)[:3] == sorted(names, key=lambda name: -macs[name])[:3]
    tab.evaluate("$('filter').value = 'judged'; $('filter').onchange()")
    assert set(tab.evaluate(rows)) == {verdict.layer for verdict in resnet.diagnose(32).verdicts}
    tab.evaluate("$('search').value = 'layer1'; $('search').oninput()")
    assert sorted(tab.evaluate(rows)) == [f"layer1.{b}.conv{c}" for b in (0, 1) for c in (1, 2)]
    tab.evaluate("$('table').tBodies[0].rows[0].querySelector('button').click()")
    assert "layer1" in tab.evaluate("$('details').querySelector('h2').textContent")
    assert not tab.complaints


def test_dark_by_the_system_and_by_the_button(tab: browser.Page, file: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    tab.open(file)
    assert tab.evaluate(background) > 600
    tab.prefer(dark=True)
    tab.settle()
    assert tab.evaluate(background) < 150
    tab.evaluate("$('theme').click()")
    assert tab.evaluate(background) > 600
    tab.open(file, dark=True)
    assert tab.evaluate(background) < 150
    assert tab.evaluate("$('theme').getAttribute('aria-pressed')") == "true"


def test_narrow_screens_need_no_sideways_scrolling(tab: browser.Page, file: Path) -> None:
    tab.open(file, width=360, height=740)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    x, y = tab.evaluate(
        "(r => [r.left + 30, r.top + 10])(drawn.get(cardOf.get(nodes.findIndex(n => n.name === 'conv1')).id).getBoundingClientRect())"
    )
    tab.click(x, y)
    assert tab.evaluate("$('panel').getBoundingClientRect().top") < 740, "the figures come into sight"
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("shape", [(1, 4, 50), (1, 2, 9, 10, 11)])
def test_other_numbers_of_axes(tab: browser.Page, tmp_path: Path, shape: tuple[int, ...]) -> None:
    conv = nn.Conv1d if len(shape) == 3 else nn.Conv3d
    report = analyze(nn.Sequential(conv(shape[1], 2, 3), nn.ReLU(), conv(2, 2, 3)), shape)
    path = tmp_path / "axes.html"
    path.write_text(page.render(report), encoding="utf-8")
    tab.open(path)
    assert tab.evaluate("document.querySelectorAll('#sliders input[type=range]').length") == len(shape) - 2
    tab.evaluate("go(nodes.length - 1)")
    assert "Unit" in tab.evaluate("$('where').textContent")
    assert not tab.complaints
    ET.fromstring(svg.render(report))


@pytest.mark.parametrize(
    ("model", "shape"), [(nn.Linear(6, 2), (1, 6)), (nn.Identity(), (1, 3, 8, 8)), (nn.Sequential(nn.ReLU(), nn.Sigmoid()), (1, 3, 8, 8))]
)
def test_networks_with_next_to_nothing_to_show(tab: browser.Page, tmp_path: Path, model: nn.Module, shape: tuple[int, ...]) -> None:
    report = analyze(model, shape)
    path = tmp_path / "small.html"
    path.write_text(page.render(report), encoding="utf-8")
    tab.open(path)
    tab.evaluate("go(0); $('show-table').click(); $('show-graph').click(); $('fold-all').click(); $('fit').click()")
    tab.settle()
    assert tab.evaluate("document.querySelectorAll('.box').length") >= 1
    assert not tab.complaints
    ET.fromstring(svg.render(report))


def test_cuts_of_the_network_that_are_not_connected(tab: browser.Page, tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 5)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.a(x), self.b(y)

    path = tmp_path / "two.html"
    path.write_text(page.render(analyze(Two(), [(1, 3, 16, 16), (1, 3, 16, 16)])), encoding="utf-8")
    tab.open(path)
    assert tab.evaluate("document.querySelectorAll('.box').length") == 4
    assert not tab.complaints
