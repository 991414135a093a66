"""Where everything stands in a drawing of a network: cards, groups that fold, rows, columns and lanes.

The page (`page.py`) and the static drawing (`svg.py`) show the same picture. What needs thought is done here once, on the plain data of
`sightline.fields.export.document`; what depends on which groups are folded is arithmetic of a few lines (`place`), which the page repeats
in JavaScript.

* A *card* is a layer with what follows it element by element (norm, activation), as long as nobody else reads in between.
* A *group* holds cards and groups that follow each other: a module, or blocks that repeat ("repeat", also found by the sequence of
  operations where a file names no modules). Groups are intervals of the execution order, so folding one never makes a cycle.
* Within a group every child has a row (its rank: behind everything that it reads) and a column. A value that is read further down than
  in the next row runs along a *lane*: a straight vertical line beside a column (lane 1, 2, ...) or in it (lane 0). What enters or leaves
  a group in the middle has a lane in it too. Neither depends on what is folded.

What belongs here: structure and positions. What does not: colours, text, drawing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.graph.ir import ACTIVATIONS

CARD_WIDTH, CARD_HEIGHT = 196, 44
METRICS = {"width": CARD_WIDTH, "height": CARD_HEIGHT, "row": 26, "column": 26, "lane": 10, "pad": 12, "head": 26}
"""Lengths in pixels: of a card, between rows, between columns, of a lane, around the inside of a group, of its header."""

_FOLLOWERS = frozenset({"affine", "identity", "layer_norm", "scalar", *ACTIVATIONS})
_LONGEST_BLOCK = 48  # cards of one repeated block, where they are found by the sequence of operations
_MOST_CARDS = 90  # that are shown at first, if folding can help it


@dataclass(eq=False)
class Item:
    """A card or a group.

    Attributes:
        id: "n12" (the number of the first node) or "g3".
        nodes: ids of the nodes inside, in execution order.
        label: short name.
        path: full module path; of a card the name of its first node.
        signature: equal for what is built alike.
        children: of a group, in execution order.
        row, column: in the group around it.
        repeat: number of blocks that are alike, 0 for other groups.
        rows, columns: of a group.
        lanes: of a group: (card id of the source, column, lane, first row, last row).
    """

    id: str
    nodes: list[int]
    label: str
    path: str
    signature: object = None
    children: list[Item] = field(default_factory=list)
    row: int = 0
    column: int = 0
    repeat: int = 0
    rows: int = 0
    columns: int = 0
    lanes: list[tuple[str, int, int, int, int]] = field(default_factory=list)

    def walk(self) -> Iterable[Item]:
        """This item and all inside it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        data: dict[str, Any] = {"id": self.id, "nodes": self.nodes, "label": self.label, "path": self.path}
        data |= {"row": self.row, "column": self.column}
        if self.children:
            data |= {"repeat": self.repeat, "rows": self.rows, "columns": self.columns, "lanes": [list(lane) for lane in self.lanes]}
            data["children"] = [child.plain() for child in self.children]
        return data


@dataclass(frozen=True, eq=False)
class Picture:
    """A network ready to be drawn.

    Attributes:
        root: the group that holds everything.
        edges: pairs of card ids.
        folded: ids of the groups that are folded at first.
    """

    root: Item
    edges: tuple[tuple[str, str], ...]
    folded: frozenset[str]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"root": self.root.plain(), "edges": [list(edge) for edge in self.edges], "folded": sorted(self.folded), "metrics": METRICS}


def arrange(document: dict[str, Any]) -> Picture:
    """Turn a report's plain data into cards, groups, rows, columns and lanes.

    Args:
        document: from `sightline.fields.export.document`.

    Returns:
        The picture; empty networks give a root without children.
    """
    nodes = document["nodes"]
    cards, edges = _cards(document)
    maker = _Groups({(int(a[1:]), int(b[1:])) for a, b in edges})
    paths = _paths(nodes)
    children = maker.repeats(maker.nested([(card, paths[card.nodes[0]]) for card in cards], 0))
    root = Item("root", [node for card in cards for node in card.nodes], document["name"], "", children=children)
    while len(root.children) == 1 and root.children[0].children:  # a wrapper around everything says nothing
        root.children = root.children[0].children
    _arrange(root, edges)
    return Picture(root, tuple(edges), frozenset(_folded(root)))


# -- cards ------------------------------------------------------------------------------------------------------------------------


def _cards(document: dict[str, Any]) -> tuple[list[Item], list[tuple[str, str]]]:
    nodes, paths = document["nodes"], _paths(document["nodes"])
    readers: dict[int, set[int]] = {number: set() for number in range(len(nodes))}
    for source, target in document["edges"]:
        readers[source].add(target)
    card_of: dict[int, Item] = {}
    cards: list[Item] = []
    for number, node in enumerate(nodes):
        if node["hidden"]:
            continue
        before = [source for source in dict.fromkeys(node["inputs"]) if not nodes[source]["hidden"]]
        head = card_of.get(before[0]) if len(before) == 1 else None
        alone = head is not None and len(readers[before[0]]) == 1 and before[0] not in document["outputs"]
        follows = alone and node["op"] in _FOLLOWERS and nodes[before[0]]["op"] != "input"
        if head is not None and follows and paths[head.nodes[0]] == paths[number]:
            head.nodes.append(number)
            card_of[number] = head
            continue
        card = Item(f"n{number}", [number], _tail(node["name"]), node["name"])
        card_of[number] = card
        cards.append(card)
    for card in cards:
        card.signature = tuple(_signature(nodes[number]) for number in card.nodes)
    pairs = ((card_of[a], card_of[b]) for a, b in document["edges"] if a in card_of and b in card_of)
    return cards, list(dict.fromkeys((a.id, b.id) for a, b in pairs if a is not b))


def _signature(node: dict[str, Any]) -> tuple[Any, ...]:
    windows = node["grid"].get("axes")
    return node["op"], None if windows is None else tuple(tuple(row) for row in windows)


def _paths(nodes: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Per node the modules around it, outermost first."""
    split = [tuple(part for part in _modules(node).split(".") if part) for node in nodes]
    names = [tuple(node["name"].partition(":")[0].split(".")) for node in nodes]
    containers = {name[:end] for name in names for end in range(1, len(name))} | {
        parts[:end] for parts in split for end in range(1, len(parts))
    }
    return [parts if parts in containers else parts[:-1] for parts in split]


def _modules(node: dict[str, Any]) -> str:
    if node["module"]:
        return str(node["module"])
    # names of ONNX nodes often hold the module: /layer1/layer1.0/conv1/Conv
    return ".".join(part.replace(".", "_") for part in node["name"].split("/") if part) if "/" in node["name"] else ""


def _tail(path: str) -> str:
    """The last part of a path, with as many parts before it as it needs to begin with a word: layer1.0."""
    parts = path.split(".")
    start = len(parts) - 1
    while start > 0 and parts[start].partition(":")[0].isdecimal():
        start -= 1
    return ".".join(parts[start:])


# -- groups -----------------------------------------------------------------------------------------------------------------------


class _Groups:
    """Makes groups out of cards.

    Args:
        edges: pairs of cards, by the numbers of their first nodes.
    """

    def __init__(self, edges: Collection[tuple[int, int]]) -> None:
        self._readers: dict[int, set[int]] = {}
        for source, target in edges:
            self._readers.setdefault(source, set()).add(target)
        self._made = 0

    def nested(self, cards: Sequence[tuple[Item, tuple[str, ...]]], depth: int) -> list[Item]:
        """Cards that follow each other in one module become a group, module by module."""
        result: list[Item] = []
        start = 0
        while start < len(cards):
            card, path = cards[start]
            if len(path) <= depth:
                result.append(card)
                start += 1
                continue
            end = start
            while end < len(cards) and cards[end][1][: depth + 1] == path[: depth + 1]:
                end += 1
            inside = self.repeats(self.nested(cards[start:end], depth + 1))
            full = ".".join(path[: depth + 1])
            result.append(self._alone(inside[0], full, depth) if len(inside) == 1 else self._group(inside, full))
            start = end
        return result

    @staticmethod
    def _alone(only: Item, path: str, depth: int) -> Item:
        """A group of one says nothing; but what stands alone in a module takes the module's name."""
        if only.children:
            only.label, only.path = _tail(path), path
        else:
            own = ".".join(only.path.split(".")[depth:])
            only.label = only.label if own[:1].isdecimal() else own
        return only

    def _group(self, children: list[Item], path: str, *, repeat: int = 0, label: str = "") -> Item:
        signature = tuple(child.signature for child in children)
        nodes = [node for child in children for node in child.nodes]
        self._made += 1
        return Item(f"g{self._made}", nodes, label or _tail(path), path, signature, children, repeat=repeat)

    def repeats(self, items: list[Item]) -> list[Item]:
        """Put stretches that repeat right behind each other, each reading the one before, into groups of their own."""
        result: list[Item] = []
        start = 0
        while start < len(items):
            period, count = self._longest_run(items, start)
            if count < 2:
                result.append(items[start])
                start += 1
                continue
            blocks = []
            for number in range(count):
                block = items[start + number * period : start + (number + 1) * period]
                label = f"block {number + 1}: from {block[0].label}"
                blocks.append(self._group(block, block[0].path, label=label) if period > 1 else block[0])
            last = blocks[-1].children[0] if period > 1 else blocks[-1]
            label = _from_to(items[start].label, last.label)
            result.append(self._group(blocks, _from_to(blocks[0].path, last.path), repeat=count, label=label))
            start += period * count
        return result

    def _longest_run(self, items: Sequence[Item], start: int) -> tuple[int, int]:
        """Length of the block that repeats from here on, and how often; the one that covers most, the shortest of those."""
        near = items[start : start + 12 * _LONGEST_BLOCK]
        signatures = [item.signature for item in near]
        best = (1, 1)
        for period in range(1, min(_LONGEST_BLOCK, len(near) // 2) + 1):
            if not near[0].children and len(set(map(repr, signatures[:period]))) == 1:  # a row of equal cards is no block
                continue
            count = 1
            while signatures[count * period : (count + 1) * period] == signatures[:period] and self._reads(
                near[(count - 1) * period : count * period], near[count * period : (count + 1) * period]
            ):
                count += 1
            if count > 1 and count * period > best[0] * best[1]:
                best = (period, count)
        return best

    def _reads(self, before: Sequence[Item], behind: Sequence[Item]) -> bool:
        """Whether something in a block reads something in the block before it."""
        inside = {node for item in behind for node in item.nodes}
        return any(self._readers.get(node, set()) & inside for item in before for node in item.nodes)


def _from_to(first: str, last: str) -> str:
    """Names of the first and the last, short: layer3.1–5."""
    if first == last:
        return first
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    while same and first[same - 1].isdecimal():
        same -= 1
    return f"{first}–{last[same:]}" if same else f"{first} – {last}"


def _folded(root: Item) -> set[str]:
    """Groups to fold at first: none if all fits, else blocks that are alike, else the innermost groups, else all."""
    groups = [item for item in root.walk() if item.children and item is not root]
    innermost = {item.id for item in groups if not any(child.children for child in item.children)}
    steps: list[set[str]] = [set(), {item.id for item in groups if item.repeat}]
    steps += [steps[1] | innermost, {item.id for item in groups}]
    return next((step for step in steps if len(_shown(root, step)) <= _MOST_CARDS), steps[-1])


def _shown(item: Item, folded: Collection[str]) -> list[Item]:
    if not item.children or item.id in folded:
        return [item]
    return [shown for child in item.children for shown in _shown(child, folded)]


# -- rows, columns, lanes ---------------------------------------------------------------------------------------------------------


def _arrange(group: Item, edges: Sequence[tuple[str, str]]) -> None:
    home = {card.id: child for child in group.children for card in child.walk() if not card.children}
    local = [(home.get(source), home.get(target), source) for source, target in edges if source in home or target in home]
    before: dict[Item, list[Item]] = {child: [] for child in group.children}
    for source, target, _ in local:
        if source is not None and target is not None and source is not target:
            before[target].append(source)
    for child in group.children:
        child.row = max((source.row + 1 for source in before[child]), default=0)
    group.rows = max((child.row for child in group.children), default=-1) + 1
    spans = _spans(group, local, home)
    inside = _columns(group, before, spans, home)
    _lanes(group, spans, inside, home, local)
    shift = min((child.column for child in group.children), default=0)
    for child in group.children:
        child.column -= shift
    group.lanes = [(source, column - shift, lane, first, last) for source, column, lane, first, last in group.lanes]
    group.columns = max((child.column for child in group.children), default=-1) + 1
    for child in group.children:
        if child.children:
            _arrange(child, edges)


_Local = Sequence[tuple[Item | None, Item | None, str]]


def _spans(group: Item, local: _Local, home: dict[str, Item]) -> dict[str, tuple[int, int]]:
    """Rows that a value must pass beside what stands there: per source its first and last."""
    last: dict[str, int] = {}
    for source, target, name in local:
        if source is not target:
            last[name] = max(last.get(name, -1), group.rows - 1 if target is None else target.row - 1)
    first = {name: home[name].row + 1 if name in home else 0 for name in last}
    return {name: (first[name], last[name]) for name in last if first[name] <= last[name]}


def _columns(group: Item, before: dict[Item, list[Item]], spans: dict[str, tuple[int, int]], home: dict[str, Item]) -> set[str]:
    """Give every child a column; returns the sources whose value runs down in the column itself."""
    taken: set[tuple[int, int]] = set()
    inside: set[str] = set()
    read_next = {source for child in group.children for source in before[child] if child.row == source.row + 1}
    for child in sorted(group.children, key=lambda child: child.row):
        main = max(before[child], key=lambda source: (source.row, -abs(source.column)), default=None)
        wish = 0 if main is None else main.column
        steps = (wish + step for distance in range(len(group.children) + len(spans) + 1) for step in (distance, -distance))
        child.column = next(column for column in steps if (child.row, column) not in taken)
        taken.add((child.row, child.column))
        sources = [name for name in spans if home.get(name) is child]
        if len(sources) == 1 and child not in read_next:
            first, last = spans[sources[0]]
            taken |= {(row, child.column) for row in range(first, last + 1)}
            inside.add(sources[0])
    return inside


def _lanes(group: Item, spans: dict[str, tuple[int, int]], inside: set[str], home: dict[str, Item], local: _Local) -> None:
    busy: set[tuple[int, int, int]] = set()
    for name, (first, last) in sorted(spans.items(), key=lambda entry: entry[1][1] - entry[1][0]):
        if name in inside:
            group.lanes.append((name, home[name].column, 0, first, last))
            continue
        child = home.get(name) or next(target for _, target, source in local if source == name and target is not None)
        rows = range(first, last + 1)
        lane = next(lane for lane in range(1, len(spans) + 2) if not any((child.column, lane, row) in busy for row in rows))
        busy |= {(child.column, lane, row) for row in rows}
        group.lanes.append((name, child.column, lane, first, last))


# -- positions --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A card, a folded group or the frame of an open one, in pixels."""

    item: Item
    x: float
    y: float
    width: float
    height: float
    open: bool


@dataclass(frozen=True)
class Line:
    """An edge: the boxes that it joins, and points through which it runs; it is straight from every odd point to the next."""

    source: str
    target: str
    points: tuple[tuple[float, float], ...]


Track = tuple[float, float, tuple[float, ...]]  # x and y where a lane begins, and where each of its rows ends


def place(picture: Picture, folded: Collection[str]) -> tuple[list[Box], list[Line], tuple[float, float]]:
    """Positions of everything that is to be seen.

    Args:
        picture: from `arrange`.
        folded: ids of folded groups.

    Returns:
        Boxes, outer ones first; lines; width and height.
    """
    boxes: list[Box] = []
    tracks: dict[str, dict[str, Track]] = {}
    sizes: dict[str, tuple[float, float]] = {}
    _measure(picture.root, folded, sizes)
    _put(picture.root, 0.0, 0.0, folded, sizes, boxes, tracks)
    return boxes, _lines(picture, folded, boxes, tracks), sizes["root"]


def _is_open(item: Item, folded: Collection[str]) -> bool:
    return bool(item.children) and item.id not in folded


def _grid(group: Item, sizes: dict[str, tuple[float, float]]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Starts and extents of columns and rows, counted from the corner of the group."""
    widths, heights, lanes = [0.0] * group.columns, [0.0] * group.rows, [0] * group.columns
    for child in group.children:
        widths[child.column] = max(widths[child.column], sizes[child.id][0])
        heights[child.row] = max(heights[child.row], sizes[child.id][1])
    for _, column, lane, _, _ in group.lanes:
        lanes[column] = max(lanes[column], lane)
    xs, x = [], float(METRICS["pad"])
    for width, lane in zip(widths, lanes, strict=True):
        xs.append(x)
        x += width + lane * METRICS["lane"] + METRICS["column"]
    ys, y = [], float(METRICS["pad"] if group.id == "root" else METRICS["head"] + METRICS["pad"])
    for height in heights:
        ys.append(y)
        y += height + METRICS["row"]
    return [*xs, x], widths, [*ys, y], heights


def _measure(item: Item, folded: Collection[str], sizes: dict[str, tuple[float, float]]) -> None:
    if item.id != "root" and not _is_open(item, folded):
        sizes[item.id] = (CARD_WIDTH, CARD_HEIGHT)
        return
    for child in item.children:
        _measure(child, folded, sizes)
    xs, _, ys, _ = _grid(item, sizes)
    sizes[item.id] = (xs[-1] - METRICS["column"] + METRICS["pad"], ys[-1] - METRICS["row"] + METRICS["pad"])


def _put(
    item: Item,
    x: float,
    y: float,
    folded: Collection[str],
    sizes: dict[str, tuple[float, float]],
    boxes: list[Box],
    tracks: dict[str, dict[str, Track]],
) -> None:
    opened = item.id == "root" or _is_open(item, folded)
    if item.id != "root":
        boxes.append(Box(item, x, y, *sizes[item.id], opened))
    if not opened:
        return
    xs, widths, ys, heights = _grid(item, sizes)
    for child in item.children:
        width, height = sizes[child.id]
        left = x + xs[child.column] + (widths[child.column] - width) / 2
        _put(child, left, y + ys[child.row] + (heights[child.row] - height) / 2, folded, sizes, boxes, tracks)
    for name, column, lane, first, last in item.lanes:
        middle = widths[column] / 2 if lane == 0 else widths[column] + lane * METRICS["lane"]
        ends = tuple(y + ys[row] + heights[row] for row in range(first, last + 1))
        tracks.setdefault(item.id, {})[name] = (x + xs[column] + middle, y + ys[first], ends)


def _lines(picture: Picture, folded: Collection[str], boxes: Sequence[Box], tracks: dict[str, dict[str, Track]]) -> list[Line]:
    chains: dict[str, list[Item]] = {}

    def remember(item: Item, above: list[Item]) -> None:
        if not item.children:
            chains[item.id] = [*above, item]
        for child in item.children:
            remember(child, [*above, item])

    remember(picture.root, [])
    seen = {box.item.id: box for box in boxes}
    first_rows = {(group.id, lane[0]): lane[3] for group in picture.root.walk() for lane in group.lanes}
    lines: dict[tuple[object, ...], Line] = {}
    for source, target in picture.edges:
        up, down = _visible(chains[source], folded), _visible(chains[target], folded)
        if up[-1] is down[-1]:
            continue
        common = sum(1 for a, b in zip(up, down, strict=False) if a is b)
        start, end = seen[up[-1].id], seen[down[-1].id]
        points = [(start.x + start.width / 2, start.y + start.height)]
        for group in reversed(up[common:-1]):
            points += _pass(tracks, first_rows, group.id, source, None)
        for depth in range(common - 1, len(down) - 1):
            points += _pass(tracks, first_rows, down[depth].id, source, down[depth + 1].row - 1)
        points.append((end.x + end.width / 2, end.y))
        lines[up[-1].id, down[-1].id, tuple(points)] = Line(up[-1].id, down[-1].id, tuple(points))
    return list(lines.values())


def _visible(chain: Sequence[Item], folded: Collection[str]) -> list[Item]:
    """From the root down to what is seen of a card."""
    for depth, item in enumerate(chain):
        if item.id in folded:
            return list(chain[: depth + 1])
    return list(chain)


def _pass(
    tracks: dict[str, dict[str, Track]], first_rows: dict[tuple[str, str], int], group: str, source: str, last: int | None
) -> list[tuple[float, float]]:
    """The piece of a lane that an edge runs along in a group, up to a row."""
    track = tracks.get(group, {}).get(source)
    if track is None:
        return []
    x, top, ends = track
    index = len(ends) - 1 if last is None else last - first_rows[group, source]
    return [] if index < 0 else [(x, top), (x, ends[index])]
