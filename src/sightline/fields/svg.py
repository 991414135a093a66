"""A report as a drawing: the static twin of the page's graph.

What belongs here: SVG text from the positions of `picture.py`. What does not: the positions, the interactive page (`page.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from sightline.fields import picture
from sightline.fields.diagnosis import RULES
from sightline.fields.export import COLOURS, shown, summary

if TYPE_CHECKING:
    from sightline.fields.report import Report

_STYLE = """
text { font-family: ui-monospace, monospace; font-size: 12.5px; fill: #1b2028 }
.op { font-family: system-ui, sans-serif; font-size: 11.5px; fill: #59626f }
.title { font-family: system-ui, sans-serif; font-size: 14px }
.frame { fill: #eceff4; stroke: #cfd5de } .card { fill: #fff; stroke: #aab3c0 } .edge { fill: none; stroke: #8791a0; stroke-width: 1.3 }
.unknown { stroke-dasharray: 4 3 }
"""
_NAMES = {"unproductive": "unproductive", "critical": "critical", "partial": "beyond one axis", "small_map": "map below kernel"}
_LINE = 20  # pixels of one line of the heading


def render(report: Report, resolution: int | Sequence[int] | None = None, *, folded: Collection[str] = (), name: str | None = None) -> str:
    """Draw a report as an SVG picture, coloured by diagnosis.

    Args:
        report: from `sightline.analyze`.
        resolution: at which layers are judged: an int, or one size per axis; None: as captured.
        folded: ids of groups (as `sightline.fields.picture.arrange` numbers them) to draw as one card each; default: none.
        name: of the network, as the title shows it; None: as captured.

    Returns:
        The drawing as text, to be written as UTF-8.

    Raises:
        ShapeError: a resolution of another form.
    """
    document = report.to_dict(resolution)
    drawn = picture.arrange(document)
    boxes, lines, (width, height) = picture.place(drawn, folded)
    heading = [f"{name or report.name}: receptive fields", *_wrapped(summary(report, resolution), max(48, int(width / 7)))]
    top = _LINE * (len(heading) + 1 + len(COLOURS)) + 8
    wide = max(width, 7.6 * max(map(len, heading)) + 24)
    left = (wide - width) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(wide)} {_n(height + top)}" width="{_n(wide)}" '
        f'height="{_n(height + top)}" role="img" aria-label="{escape(heading[0], _QUOTES)}">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" '
        'orient="auto"><path d="M0,0.8L8,4L0,7.2z" fill="#8791a0"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    parts += [f'<text class="title" x="12" y="{_LINE * (row + 1)}">{escape(text)}</text>' for row, text in enumerate(heading)]
    for row, (rule, colour) in enumerate(COLOURS.items(), start=len(heading)):
        parts.append(f'<rect x="12" y="{_LINE * row + 9}" width="14" height="14" rx="3" fill="{colour}"/>')
        parts.append(f'<text class="title" x="34" y="{_LINE * (row + 1)}">{_NAMES[rule]}</text>')
    parts.append(f'<g transform="translate({_n(left)},{top})">')
    parts += [_frame(box) for box in boxes if box.open]
    parts += [f'<path class="edge" marker-end="url(#arrow)" d="{path(line.points)}"/>' for line in lines]
    parts += [_card(box, document) for box in boxes if not box.open]
    return "\n".join([*parts, "</g>", "</svg>", ""])


_QUOTES = {'"': "&quot;"}


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def path(points: Sequence[tuple[float, float]]) -> str:
    """The line through the points of an edge: straight along lanes, bent between them."""
    pieces = [f"M{_n(points[0][0])},{_n(points[0][1])}"]
    for number, ((x, y), (u, v)) in enumerate(pairwise(points), start=1):
        bend = min((v - y) / 2, 40)
        curve = "" if number % 2 == 0 or x == u else f"C{_n(x)},{_n(y + bend)} {_n(u)},{_n(v - bend)} "
        pieces.append(f"{curve or 'L'}{_n(u)},{_n(v)}")
    return "".join(pieces)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: int(length * 0.4) - 1]}…{text[len(text) - int(length * 0.6) :]}"


def _area(box: picture.Box) -> str:
    return f'x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}"'


def _frame(box: picture.Box) -> str:
    label = _cut(box.item.label, int(box.width / 8) - 4) + (f" ×{box.item.repeat}" if box.item.repeat else "")
    return (
        f'<g><title>{escape(box.item.path or box.item.label)}</title><rect class="frame" {_area(box)} rx="10"/>'
        f'<text x="{_n(box.x + 12)}" y="{_n(box.y + 19)}">{escape(label)}</text></g>'
    )


def _card(box: picture.Box, document: dict[str, Any]) -> str:
    item, nodes = box.item, document["nodes"]
    found = {rule for node in item.nodes for rule in document["diagnosis"]["layers"].get(str(node), ())}
    colour = next((colour for rule, colour in COLOURS.items() if rule in found), None)
    head, last = nodes[item.nodes[0]], nodes[item.nodes[-1]]
    unknown = " unknown" if any(nodes[node]["status"] == "unknown" for node in item.nodes) else ""
    paint = f' style="fill:{colour};fill-opacity:.35;stroke:{colour}"' if colour else ""
    name = f"{item.label} ×{item.repeat}" if item.repeat else item.label
    what = f"{len(item.nodes)} layers" if item.children else _operation(head) + (f" +{len(item.nodes) - 1}" if len(item.nodes) > 1 else "")
    field = _field(last, "size")
    words = [item.path or item.label, what, f"field {field}, shortest {_field(last, 'min_size')}, step {_field(last, 'stride')}"]
    words += [", ".join(rule for rule in RULES if rule in found)] if found else []
    x, y = box.x, box.y
    return (
        f'<g><title>{escape(chr(10).join(words))}</title><rect {_area(box)} rx="7" fill="#fff"/>'
        f'<rect class="card{unknown}" {_area(box)} rx="7"{paint}/>'
        f'<text x="{_n(x + 12)}" y="{_n(y + 18)}">{escape(_cut(name, 23))}</text>'
        f'<text class="op" x="{_n(x + 12)}" y="{_n(y + 35)}">{escape(_cut(what, max(8, 26 - len(field))))}</text>'
        f'<text class="op" x="{_n(x + box.width - 10)}" y="{_n(y + 35)}" text-anchor="end">{escape(_cut(field, 13))}</text></g>'
    )


def _operation(node: dict[str, Any]) -> str:
    rows = node["grid"].get("axes")
    if not rows or node["op"] == "pad":
        return str(node["op"])
    strides, dilation = shown([row[1] for row in rows]), shown([row[4] for row in rows])
    text = f"{node['op']} {'×'.join(str(row[0]) for row in rows)}"
    return text + (f" /{strides}" if strides != "1" else "") + (f" d{dilation}" if dilation != "1" else "")


def _field(node: dict[str, Any], key: str) -> str:
    values = [axis[key] for axis in node.get("fields") or ()]
    words = ["?" if v is None else "all" if v == "inf" else f"{v[0]}/{v[1]}" if isinstance(v, list) else str(v) for v in values]
    return "" if not words else words[0] if len(set(words)) == 1 else " × ".join(words)
