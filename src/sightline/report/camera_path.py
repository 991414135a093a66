"""The path of a moving camera as a picture: SVG in the page's own colours.

What belongs here: drawing. What does not: estimating motion (`sightline.camera`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from sightline.report.data import FrameRecord

_WIDTH, _HEIGHT, _MARGIN = 960, 360, 40


def joined(frames: Sequence[FrameRecord]) -> list[list[tuple[float, float]]]:
    """The path in stretches (x, y) between restarts; each begins where the one before ended.

    Args:
        frames: those without a camera are left out.

    >>> from sightline.report.data import FrameRecord
    >>> record = lambda y, x, restart=False: FrameRecord(0, 0.0, 0.0, 0.0, camera=(y, x), restart=restart)
    >>> joined([record(0, 0), record(1, 5), record(0, 0, True), record(0, 2)])
    [[(0.0, 0.0), (5.0, 1.0)], [(5.0, 1.0), (7.0, 1.0)]]
    """
    stretches: list[list[tuple[float, float]]] = []
    origin = (0.0, 0.0)
    for frame in frames:
        if frame.camera is None:
            continue
        y, x = frame.camera
        if not stretches or frame.restart:
            origin = stretches[-1][-1] if stretches else (0.0, 0.0)
            stretches.append([])
        stretches[-1].append((origin[0] + x, origin[1] + y))
    return stretches


def path_length(frames: Sequence[FrameRecord]) -> float:
    """How far the middle of the view went, in pixels of the network's input."""
    return sum(math.dist(a, b) for part in joined(frames) for a, b in itertools.pairwise(part))


def path_chart(frames: Sequence[FrameRecord], size: tuple[float, float]) -> str:
    """The path that the middle of the view took, with the view at its start and at its end.

    Args:
        frames: with cameras.
        size: (width, height) of the view, in the pixels of the path.

    Returns:
        An ``<svg>`` element.
    """
    stretches = joined(frames)
    points = [point for part in stretches for point in part]
    ends = [points[0], points[-1]]
    half = size[0] / 2, size[1] / 2
    low = [min([p[i] for p in points] + [e[i] - half[i] for e in ends]) for i in (0, 1)]
    high = [max([p[i] for p in points] + [e[i] + half[i] for e in ends]) for i in (0, 1)]
    scale = min((_WIDTH - 2 * _MARGIN) / max(high[0] - low[0], 1), (_HEIGHT - 2 * _MARGIN) / max(high[1] - low[1], 1))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return tuple(round(_MARGIN + (point[i] - low[i]) * scale, 1) for i in (0, 1))  # type: ignore[return-value]

    parts = [f'<svg class="chart path" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Path of the camera">']
    for end, words in zip(ends, ("first view", "last view"), strict=True):
        x, y = place((end[0] - half[0], end[1] - half[1]))
        parts.append(f'<rect class="grid" fill="none" x="{x}" y="{y}" width="{size[0] * scale:.1f}" height="{size[1] * scale:.1f}"/>')
        parts.append(f'<text class="tick" x="{x + 4}" y="{y + (16 if words == "first view" else size[1] * scale - 6):.1f}">{words}</text>')
    for i, part in enumerate(stretches):
        drawn = [place(point) for point in part]
        parts.append(f'<polyline class="line c1" fill="none" points="{" ".join(f"{x},{y}" for x, y in drawn)}"/>')
        if i:
            parts.append(f'<g class="dots c3"><circle cx="{drawn[0][0]}" cy="{drawn[0][1]}" r="5"/></g>')
    parts.append("</svg>")
    return "".join(parts)
