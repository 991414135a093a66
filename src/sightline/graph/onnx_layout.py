"""Chains of Reshape, Transpose and Gather as one strided view, so that what they do to a map can be named.

Exporters write a channel shuffle, a pixel shuffle or "every second channel" as several ops that pass through tensors of three,
five or six axes. Taken one by one none of them keeps rows and columns apart; taken together they only move channels. A `Layout`
follows such a chain by arithmetic on strides, and `name_steps` says which canonical ops the whole chain amounts to.

What belongs here: integers only. What does not: nodes, tensors, ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Atom = tuple[int, int]  # (size, stride in elements of the source)
Step = tuple[str, dict[str, Any]]  # a canonical op and its attributes; ("take", {"order": [...]}) for any other choice of channels


@dataclass(frozen=True)
class Layout:
    """A view of a contiguous source tensor.

    Attributes:
        axes: for every axis of the view the atoms that make it up, the slowest first; axes of size 1 have none.
        offset: element of the source at which the view's first element lies.
    """

    axes: tuple[tuple[Atom, ...], ...]
    offset: int = 0

    @classmethod
    def of(cls, shape: Sequence[int]) -> Layout:
        """The source itself."""
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return cls(tuple(((size, stride),) if size != 1 else () for size, stride in zip(shape, strides, strict=True)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        return tuple(math.prod(size for size, _ in axis) for axis in self.axes)

    def reshape(self, shape: Sequence[int]) -> Layout | None:
        """The view with its elements, in order, in another shape of the same size; None if it is no strided view any more."""
        rest = _merge([atom for axis in self.axes for atom in axis])
        if math.prod(shape) == 0:
            return None
        axes = []
        for size in shape:
            taken: list[Atom] = []
            missing = size
            while missing > 1:
                have, stride = rest.pop(0)
                if missing % have == 0:
                    taken.append((have, stride))
                    missing //= have
                elif have % missing == 0:
                    taken.append((missing, stride * (have // missing)))
                    rest.insert(0, (have // missing, stride))
                    missing = 1
                else:
                    return None
            axes.append(tuple(_merge(taken)))
        return Layout(tuple(axes), self.offset)

    def permute(self, order: Sequence[int]) -> Layout:
        """The view with its axes in another order."""
        return Layout(tuple(self.axes[axis] for axis in order), self.offset)

    def select(self, axis: int, index: int) -> Layout:
        """Element ``index`` of an axis, without that axis."""
        offset = self.offset + int(_places(self.axes[axis])[index])
        return Layout(self.axes[:axis] + self.axes[axis + 1 :], offset)


def _merge(atoms: Sequence[Atom]) -> list[Atom]:
    """Neighbouring atoms that step through the source like one become one."""
    merged: list[Atom] = []
    for size, stride in atoms:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged


def _places(axis: Sequence[Atom]) -> NDArray[np.int64]:
    """Distance in the source of every index of an axis from index 0."""
    places = np.zeros(1, np.int64)
    for size, stride in axis:
        places = (places[:, None] + np.arange(size) * stride).ravel()
    return places


def name_steps(source: Sequence[int], layout: Layout) -> list[Step] | None:
    """Name what a view does to maps.

    Args:
        source: shape of the tensor that is viewed.
        layout: the view.

    Returns:
        Canonical ops to apply in this order (none if the view is the source itself), or None if it is none of: the source,
        flatten, a choice of channels, a pixel shuffle or unshuffle with a choice of channels.

    >>> name_steps((1, 6, 4, 4), Layout.of((1, 6, 4, 4)).reshape((1, 2, 3, 4, 4)).permute((0, 2, 1, 3, 4)).reshape((1, 6, 4, 4)))
    [('channel_shuffle', {'groups': 2})]
    """
    whole = Layout.of(source)
    if layout == whole:
        return []
    if len(source) != 4 or math.prod(source) == 0:
        return None
    n, c, h, w = source
    if layout == whole.reshape((n, c * h * w)):
        return [("flatten", {})]
    if len(layout.axes) != 4 or not np.array_equal(_places(layout.axes[0]), np.arange(n) * c * h * w):
        return None
    if layout.shape[2] >= h:
        return _name_shuffle((c, h, w), layout)
    return _name_unshuffle((c, h, w), layout)


def _name_shuffle(source: tuple[int, int, int], layout: Layout) -> list[Step] | None:
    """Channels in any order, then spread over blocks of r x r pixels (r = 1: not spread)."""
    c, h, w = source
    rows, columns = _places(layout.axes[2]), _places(layout.axes[3])
    r = len(rows) // h
    if len(rows) != r * h or len(columns) != r * w:
        return None
    down, across = rows.reshape(h, r) - np.arange(h)[:, None] * w, columns.reshape(w, r) - np.arange(w)[:, None]
    if (down != down[0]).any() or (across != across[0]).any():
        return None
    places = layout.offset + _places(layout.axes[1])[:, None, None] + down[0][:, None] + across[0]
    order = (places // (h * w)).ravel()
    if (places % (h * w)).any() or order.min() < 0 or order.max() >= c:
        return None
    return name_order(order.tolist(), c) + ([("pixel_shuffle", {"factor": r})] if r > 1 else [])


def _name_unshuffle(source: tuple[int, int, int], layout: Layout) -> list[Step] | None:
    """Blocks of r x r pixels into channels, then these in any order."""
    c, h, w = source
    rows, columns = _places(layout.axes[2]), _places(layout.axes[3])
    r = h // len(rows)
    if h % r or w % r or not np.array_equal(rows, np.arange(h // r) * r * w) or not np.array_equal(columns, np.arange(w // r) * r):
        return None
    channel, place = np.divmod(layout.offset + _places(layout.axes[1]), h * w)
    down, across = np.divmod(place, w)
    if channel.min() < 0 or channel.max() >= c or down.max() >= r or across.max() >= r:
        return None
    return [("pixel_unshuffle", {"factor": r}), *name_order((channel * r * r + down * r + across).tolist(), c * r * r)]


def name_order(order: Sequence[int], channels: int) -> list[Step]:
    """Name a choice of channels.

    Args:
        order: for every channel of the result, the channel that it takes.
        channels: number of channels there are.

    Returns:
        No step, a ``slice``, a ``channel_shuffle``, or a ``take``.

    >>> name_order([1, 3], 4)
    [('slice', {'dim': 1, 'start': 1, 'stop': 4, 'step': 2})]
    """
    count = len(order)
    if list(order) == list(range(channels)):
        return []
    step = order[1] - order[0] if count > 1 else 1
    if step > 0 and list(order) == list(range(order[0], order[0] + count * step, step)):
        return [("slice", {"dim": 1, "start": order[0], "stop": order[-1] + 1, "step": step})]
    if count == channels and step > 1 and channels % step == 0:
        groups = channels // step
        if list(order) == np.arange(channels).reshape(groups, step).T.ravel().tolist():
            return [("channel_shuffle", {"groups": groups})]
    return [("take", {"order": list(order)})]
