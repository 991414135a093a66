"""Areas of interest: how they are made, edited, brought to other grids, drawn; and what they refuse."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sightline as sl
from sightline.errors import DTypeError, FrameError, ShapeError

NAN = float("nan")


# -- masks ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[True, False], [False, False]]),
        torch.tensor([[1, 0], [0, 0]]),
        torch.tensor([[-0.5, 0.0], [0.0, -0.0]]),
        torch.tensor([[2, 0], [0, 0]], dtype=torch.uint8),
        torch.tensor([[1, 0], [0, 0]], dtype=torch.bfloat16),
        torch.tensor([[[1, 0], [0, 0]]]),
        np.array([[3.0, 0.0], [0.0, 0.0]]),
        [[1, 0], [0, 0]],
    ],
    ids=lambda mask: f"{type(mask).__name__} {getattr(mask, 'dtype', '')}",
)
def test_what_is_not_zero_is_inside(mask: Any) -> None:
    area = sl.AreaOfInterest(mask)
    assert area.size() == 0.25
    assert area.sites(2, 2).box == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("mask", "error", "text"),
    [
        (torch.ones(4), ShapeError, "h, w"),
        (torch.ones(1, 1, 4, 4), ShapeError, r"mask\[:, 0\]"),
        (torch.ones(0, 4), ShapeError, "no empty axis"),
        (torch.ones(2, 2, dtype=torch.complex64), DTypeError, "real"),
        (torch.tensor([[1.0, NAN]]), FrameError, "NaN"),
        (torch.ones(2, 2).to_sparse(), DTypeError, "dense"),
        ("everything", DTypeError, "tensor"),
        (None, DTypeError, "tensor"),
    ],
)
def test_bad_masks(mask: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        sl.AreaOfInterest(mask)
    area = sl.AreaOfInterest(torch.ones(2, 2))
    with pytest.raises(error, match=text):
        area.mask = mask
    assert area.size() == 1.0  # it keeps what it had


def test_an_edit_is_seen_and_counted() -> None:
    mask = torch.zeros(4, 4)
    area = sl.AreaOfInterest(mask)
    seen = [area.current()[0]]
    assert area.current()[0] == seen[0]
    mask[0, 0] = 1  # the user's own tensor
    seen.append(area.current()[0])
    area.mask[1, 1] = 0.5
    seen.append(area.current()[0])
    mask.data[2, 2] = 1  # past autograd's counter
    seen.append(area.current()[0])
    area.mask = torch.ones(2, 2)
    seen.append(area.current()[0])
    assert len(set(seen)) == 5
    area.mask[0, 0] = 7  # inside as before: nothing to do
    assert area.current()[0] == seen[-1]
    assert sl.AreaOfInterest(torch.ones(2, 2)).current()[0] not in seen


def test_an_edit_through_numpy_is_seen() -> None:
    values = np.zeros((3, 3), dtype=np.float32)
    area = sl.AreaOfInterest(values)
    before = area.current()[0]
    values[1, 1] = 1
    assert area.current()[0] != before
    assert area.size() == pytest.approx(1 / 9)


def test_a_snapshot_does_not_move() -> None:
    area = sl.AreaOfInterest(torch.zeros(3, 3, dtype=torch.bool))
    _, inside = area.current()
    area.mask[0, 0] = True
    assert not inside.any()


def test_nan_written_later_is_refused() -> None:
    area = sl.AreaOfInterest(torch.ones(2, 2))
    area.mask[0, 0] = NAN
    with pytest.raises(FrameError, match="NaN"):
        area.size()
    area.mask[0, 0] = 0
    assert area.size() == 0.75


def test_masks_per_batch_element() -> None:
    mask = torch.zeros(2, 4, 4)
    mask[1, :2] = 1
    area = sl.AreaOfInterest(mask)
    assert area.size() == 0.25
    assert area.sites(2, 2).mask.tolist() == [[[False] * 2] * 2, [[True] * 2, [False] * 2]]
    assert area.dilate(1).mask.shape == (2, 4, 4)
    assert "2 x 4 x 4" in repr(area)


def test_threads_may_edit_and_read() -> None:
    """Every snapshot is one that somebody set, whole."""
    area = sl.AreaOfInterest(torch.zeros(64, 64, dtype=torch.bool))
    halves = [torch.zeros(64, 64, dtype=torch.bool), torch.ones(64, 64, dtype=torch.bool)]
    wrong: list[int] = []

    def read() -> None:
        for _ in range(300):
            count = int(area.current()[1].sum())
            if count not in (0, 64 * 64):
                wrong.append(count)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(300):
        area.mask = halves[i % 2]
    for reader in readers:
        reader.join()
    assert not wrong


# -- other resolutions -------------------------------------------------------------------------------------------------------------


def test_the_two_ways_to_resize() -> None:
    area = sl.AreaOfInterest.from_boxes([(3, 3, 4, 4)], (8, 8))
    assert area.sites(4, 4).box == area.sites(4, 4, "any").box == (1, 1, 2, 2)
    assert area.sites(4, 4, "nearest").box is None  # lost
    assert area.resize(3, 5).mask.nonzero().tolist() == [[1, 1], [1, 2]]
    assert area.resize(16, 16, "nearest").size() == area.size()
    for call in (area.sites, area.resize):
        with pytest.raises(ShapeError, match="'any' or 'nearest'"):
            call(4, 4, "bilinear")  # type: ignore[arg-type]


@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 29), st.integers(1, 29), st.floats(0.02, 0.6), st.integers(0, 1000))
@settings(max_examples=30)
def test_any_covers_by_integers(h: int, w: int, out_h: int, out_w: int, share: float, seed: int) -> None:
    """A cell of the new grid is inside iff it overlaps one that is, as fractions of the picture; worked out in whole numbers."""
    mask = torch.rand((h, w), generator=torch.Generator().manual_seed(seed)) < share
    got = sl.AreaOfInterest(mask).sites(out_h, out_w).mask[0]
    for y in range(out_h):
        for x in range(out_w):
            want = any(
                mask[i, j]
                for i in range(h)
                for j in range(w)
                if i * out_h < (y + 1) * h and y * h < (i + 1) * out_h and j * out_w < (x + 1) * w and x * w < (j + 1) * out_w
            )
            assert bool(got[y, x]) == want


def test_a_mask_larger_than_the_picture_stands_for_the_whole_of_it() -> None:
    area = sl.AreaOfInterest.from_boxes([(999, 999, 1000, 1000)], (1000, 1000))
    assert area.sites(4, 4).mask[0].nonzero().tolist() == [[3, 3]]


def test_dilate() -> None:
    area = sl.AreaOfInterest.from_boxes([(4, 4, 5, 5)], (9, 9))
    assert area.dilate((1, 3)).sites(9, 9).box == (3, 1, 6, 8)
    assert area.size() == 1 / 81  # itself unchanged
    with pytest.raises(ShapeError, match="at least 0"):
        area.dilate(-1)


# -- boxes, polygons, detections, saliency --------------------------------------------------------------------------------------------


def test_boxes() -> None:
    assert sl.AreaOfInterest.from_boxes([(-5, -5, 2, 2), (3, 3, 99, 99)], (4, 4)).mask.sum() == 5
    assert sl.AreaOfInterest.from_boxes([(10, 10, 20, 20)], (4, 4)).size() == 0.0  # wholly outside
    assert sl.AreaOfInterest.from_boxes([], (4, 4)).size() == 0.0
    per_image = sl.AreaOfInterest.from_boxes([(1, 0, 0, 2, 2)], (4, 4), n=2)
    assert per_image.mask.flatten(1).sum(1).tolist() == [0, 4]
    with pytest.raises(ShapeError, match="y0 <= y1"):
        sl.AreaOfInterest.from_boxes([(2, 2, 1, 4)], (4, 4))
    with pytest.raises(DTypeError, match="integers"):
        sl.AreaOfInterest.from_boxes([(0.5, 0, 1, 1)], (4, 4))  # type: ignore[list-item]
    for size in ((0, 4), (4,)):
        with pytest.raises(ShapeError):
            sl.AreaOfInterest.from_boxes([], size)  # type: ignore[arg-type]


def test_polygons_that_are_boxes() -> None:
    square = [(2, 3), (2, 7), (5, 7), (5, 3)]
    for polygon in (square, square[::-1], torch.tensor(square), [*square, square[0]]):
        got = sl.AreaOfInterest.from_polygons([polygon], (8, 9)).mask
        assert torch.equal(got, sl.AreaOfInterest.from_boxes([(2, 3, 5, 7)], (8, 9)).mask)
    moved = [(y + 0.1, x - 0.1) for y, x in square]
    assert torch.equal(sl.AreaOfInterest.from_polygons([moved], (8, 9)).mask, sl.AreaOfInterest.from_boxes([(2, 2, 6, 7)], (8, 9)).mask)


def test_polygons_thin_outside_and_crossing() -> None:
    needle = sl.AreaOfInterest.from_polygons([[(0.2, 0.2), (0.3, 5.8), (0.4, 5.8)]], (4, 6)).mask
    assert needle.nonzero().tolist() == [[0, x] for x in range(6)]
    around = [(-10, -10), (-10, 99), (99, 99), (99, -10)]
    assert sl.AreaOfInterest.from_polygons([around], (4, 6)).size() == 1.0
    assert sl.AreaOfInterest.from_polygons([[(10, 10), (10, 20), (20, 10)]], (4, 6)).size() == 0.0
    assert sl.AreaOfInterest.from_polygons([], (4, 6)).size() == 0.0
    ring = [(0, 0), (0, 9), (9, 9), (9, 0), (0, 0), (3, 3), (6, 3), (6, 6), (3, 6), (3, 3)]
    mask = sl.AreaOfInterest.from_polygons([ring], (9, 9)).mask
    assert not mask[4, 4] and mask[1, 1] and mask[7, 7]


@given(st.lists(st.tuples(st.floats(-3, 9), st.floats(-3, 9)), min_size=3, max_size=5), st.integers(0, 1000))
@settings(max_examples=40)
def test_polygons_hold_every_point_inside(points: list[tuple[float, float]], seed: int) -> None:
    """Against the definition, at random points: whoever lies inside lies in a cell of the area."""
    h, w = 6, 7
    mask = sl.AreaOfInterest.from_polygons([points], (h, w)).mask
    for y, x in (torch.rand((30, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * torch.tensor([h, w])).tolist():
        turns = 0
        for (y0, x0), (y1, x1) in zip(points, [*points[1:], points[0]], strict=True):
            if (y0 <= y) != (y1 <= y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
                turns += 1
        assert turns % 2 == 0 or mask[int(y), int(x)], (y, x)


@pytest.mark.parametrize("polygon", [[(0, 0), (1, 1)], [(0, 0, 0)] * 3, [(0, 0), (0, NAN), (1, 1)], []])
def test_bad_polygons(polygon: Any) -> None:
    with pytest.raises(ShapeError, match="3 finite points"):
        sl.AreaOfInterest.from_polygons([polygon], (4, 4))


def test_detections() -> None:
    boxes, scores = torch.tensor([[1.2, 2.0, 3.0, 2.5], [0.0, 0.0, 9.0, 9.0]]), torch.tensor([0.5, NAN])
    area = sl.AreaOfInterest.from_detections(boxes, scores, size=(6, 8))
    assert area.sites(6, 8).box == (2, 1, 3, 3)  # (x, y) in, rows and columns out, rounded outwards; 0.5 counts, NaN does not
    assert sl.AreaOfInterest.from_detections(boxes, scores, size=(6, 8), margin=1).sites(6, 8).box == (1, 0, 4, 4)
    assert sl.AreaOfInterest.from_detections(boxes, size=(6, 8)).size() == 1.0
    assert sl.AreaOfInterest.from_detections(torch.zeros(0, 4), torch.zeros(0), size=(6, 8)).size() == 0.0
    assert sl.AreaOfInterest.from_detections([[1, 2, 3, 3]], [0.9], size=(6, 8)).size() == 2 / 48
    both = sl.AreaOfInterest.from_detections([boxes[:1], boxes[:0]], [scores[:1], scores[:0]], size=(6, 8))
    assert both.mask.flatten(1).sum(1).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"boxes": torch.zeros(2, 5)}, ShapeError),
        ({"boxes": torch.zeros(2, 4), "scores": torch.zeros(3)}, ShapeError),
        ({"boxes": torch.tensor([[0, 0, NAN, 1]])}, FrameError),
        ({"boxes": torch.zeros(1, 4), "margin": -1}, ShapeError),
        ({"boxes": [torch.zeros(1, 4)], "scores": [torch.zeros(1)] * 2}, ShapeError),
    ],
)
def test_bad_detections(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        sl.AreaOfInterest.from_detections(size=(4, 4), **arguments)


def test_saliency() -> None:
    saliency = torch.tensor([[0.1, 0.5], [NAN, 2.0]])
    for shaped in (saliency, saliency[None], saliency[None, None]):
        assert sl.AreaOfInterest.from_saliency(shaped, 0.5).sites(2, 2).mask[0].tolist() == [[False, True], [False, True]]
    assert sl.AreaOfInterest.from_saliency(saliency, 100).size() == 0.0
    with pytest.raises(ShapeError):
        sl.AreaOfInterest.from_saliency(torch.ones(1, 3, 4, 4), 0.5)


# -- pictures ------------------------------------------------------------------------------------------------------------------------


def test_show() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    area = sl.AreaOfInterest.from_boxes([(0, 0, 2, 2)], (4, 4))
    plain = area.show()
    shown = plain.axes[0].images[0].get_array()
    assert np.array_equal(np.asarray(shown, dtype=bool), area.mask.numpy())
    assert plain.axes[0].get_title() == "25.0%"
    image = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    on_image = np.asarray(area.show(image).axes[0].images[0].get_array())
    assert on_image.shape == (8, 8, 3)
    assert on_image[3, 3] == pytest.approx(200 / 255)  # inside as it is
    assert on_image[4, 3] == pytest.approx(0.3 * 200 / 255)  # outside dimmed
    two = sl.AreaOfInterest(torch.ones(2, 4, 4))
    assert len(two.show(torch.rand(1, 1, 4, 4)).axes) == 2
    with pytest.raises(ShapeError, match="image"):
        two.show(torch.rand(3, 3, 4, 4))
    with pytest.raises(ShapeError, match="image"):
        area.show(torch.rand(4, 4))
    pyplot.close("all")
