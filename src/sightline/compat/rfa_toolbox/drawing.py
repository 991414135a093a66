"""Drawings of networks in the colours of rfa_toolbox: as Graphviz source, and as an SVG where Graphviz is not installed."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from sightline.compat.rfa_toolbox.graphs import EnrichedNetworkNode
from sightline.errors import MediaError

_FILL = {"red": "red", "orange": "orange", "yellow": "yellow", "white": "white"}
_WIDTH, _HEIGHT, _GAP, _LINE = 220, 78, 26, 15  # pixels of a box, between boxes, and per line of text


@dataclass(frozen=True)
class _Box:
    name: str
    lines: tuple[str, ...]
    colour: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """A drawing of a network.

    Attributes:
        name: of the files.
        source: in Graphviz' language.
    """

    name: str
    source: str
    _boxes: tuple[_Box, ...] = field(repr=False, default=())

    @property
    def filename(self) -> str:
        """Name of the file that `render` writes the source to."""
        return f"{self.name}.gv"

    def render(self, filename: str | Path | None = None, directory: str | Path | None = None, format: str | None = None) -> str:
        """Write the source, and the drawing beside it.

        Args:
            filename: of the source; None: the name with ".gv".
            directory: to write into; None: the current one.
            format: of the drawing: "svg", or any that Graphviz knows; None: "pdf" where Graphviz' ``dot`` is installed, else "svg".

        Returns:
            Path of the drawing.

        Raises:
            MediaError: a file cannot be written, ``dot`` fails, or it is needed for that format and missing.
        """
        path = Path(directory or ".") / (filename or self.filename)
        program = shutil.which("dot")
        kind = format or ("pdf" if program else "svg")
        target = path.with_name(f"{path.name}.{kind}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.source, encoding="utf-8")
            if program is None:
                if kind != "svg":
                    raise MediaError(f"format: {kind!r} needs Graphviz' dot, which is not installed; use format='svg'")
                target.write_text(self.to_svg(), encoding="utf-8")
        except OSError as error:
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"filename: {str(path)!r} cannot be written ({error.strerror}); choose another directory") from error
        if program is not None:
            done = subprocess.run([program, f"-T{kind}", "-o", str(target), str(path)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise MediaError(f"format: dot could not draw {kind!r}: {done.stderr.strip()}")
        return str(target)

    def view(self, filename: str | Path | None = None, directory: str | Path | None = None) -> str:
        """Write the drawing and show it, where there is a screen; returns its path."""
        target = self.render(filename, directory)
        if sys.platform in {"darwin", "win32"} or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            webbrowser.open(Path(target).resolve().as_uri())
        return target

    def to_svg(self) -> str:
        """The drawing as SVG: one row of boxes per step of the longest path."""
        depth: dict[str, int] = {}
        rows: dict[int, list[str]] = {}
        for box in self._boxes:
            depth[box.name] = 1 + max((depth[name] for name in box.inputs if name in depth), default=-1)
            rows.setdefault(depth[box.name], []).append(box.name)
        wide = max(map(len, rows.values()), default=1)
        corner = {
            name: (_GAP + ((wide - len(row)) / 2 + place) * (_WIDTH + _GAP), _GAP + level * (_HEIGHT + _GAP))
            for level, row in rows.items()
            for place, name in enumerate(row)
        }
        parts = []
        for box in self._boxes:
            x, y = corner[box.name]
            for name in box.inputs:
                left, top = corner[name]
                ends = f'x1="{left + _WIDTH / 2:g}" y1="{top + _HEIGHT:g}" x2="{x + _WIDTH / 2:g}" y2="{y:g}"'
                parts.append(f'<line {ends} stroke="black"/>')
        for box in self._boxes:
            x, y = corner[box.name]
            parts.append(f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" fill="{box.colour}" stroke="black"/>')
            parts += [
                f'<text x="{x + _WIDTH / 2:g}" y="{y + 18 + number * _LINE:g}" text-anchor="middle">{escape(line)}</text>'
                for number, line in enumerate(box.lines)
            ]
        width, height = wide * (_WIDTH + _GAP) + _GAP, len(rows) * (_HEIGHT + _GAP) + _GAP
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">'
        return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def visualize_architecture(
    output_node: EnrichedNetworkNode,
    model_name: str,
    input_res: int | Sequence[int] = 224,
    color_critical: bool = True,
    color_border: bool = True,
    include_rf_info: bool = True,
    filter_kernel_size_1: bool = False,
    include_fm_info: bool = True,
) -> Drawing:
    """Draw a network: unproductive layers red, critical ones orange, those beyond the input on one axis only yellow.

    Args:
        output_node: of the network.
        model_name: name of the files.
        input_res: of the input, an int or one per axis.
        color_critical: colour orange and yellow.
        color_border: colour red.
        include_rf_info: write the fields into the boxes.
        filter_kernel_size_1: layers with a kernel of 1 are not red for their field's sake.
        include_fm_info: write the sizes of maps into the boxes.

    Returns:
        The drawing; ``.view()`` or ``.render()`` it.
    """
    nodes = output_node.all_layers
    ids = {node: f"n{number}" for number, node in enumerate(nodes)}
    boxes = []
    for node in nodes:
        seed = node.seed
        resolution = tuple(input_res) if isinstance(input_res, Sequence) else (input_res,) * len(seed.paths)
        colour = seed.colour(resolution, filter_kernel_size_1=filter_kernel_size_1)
        wanted = color_border if colour == "red" else color_critical
        lines = _lines(node, resolution, fields=include_rf_info, maps=include_fm_info)
        reads = tuple(ids[before] for before in (*node.predecessors, *node.gates))
        boxes.append(_Box(ids[node], lines, _FILL[colour] if wanted else "white", reads))
    return Drawing(model_name, _source(model_name, boxes), tuple(boxes))


def _lines(node: EnrichedNetworkNode, resolution: tuple[int, ...], *, fields: bool, maps: bool) -> tuple[str, ...]:
    info = node.layer_info
    what = info.name if info.stride_size in {1, (1, 1)} else f"{info.name} / {_text(info.stride_size)}"
    if info.filters or info.units:
        what += f", {info.filters or info.units} {'filters' if info.filters else 'units'}"
    lines = [node.name if len(node.name) <= 34 else f"...{node.name[-31:]}", what]
    if maps:
        lines.append("map " + _text(node.compute_feature_map_size(resolution)) if math.inf not in node.seed.smallest else "map 1")
    if fields:
        lines.append(f"r_min {_text(node.receptive_field_min)}, r_max {_text(node.receptive_field_max)}")
    return tuple(lines)


def _text(value: Any) -> str:
    values = ["inf" if size == math.inf else str(size) for size in (value if isinstance(value, tuple) else (value,))]
    return values[0] if len(set(values)) == 1 else " x ".join(values)


def _source(name: str, boxes: Sequence[_Box]) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    lines = [f"digraph {quoted(name)} {{", "  node [shape=box, style=filled];"]
    for box in boxes:
        text = "\n".join(box.lines)
        lines.append(f"  {box.name} [label={quoted(text)}, fillcolor={box.colour}];")
        lines += [f"  {before} -> {box.name};" for before in box.inputs]
    return "\n".join([*lines, "}", ""])
