"""What outputs mean: reading, drawing and comparing them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.tasks import choose_task, output_tensors
from sightline.tasks.centerface import Faces, FaceTask, decode, match, overlaps, suppress
from sightline.tasks.classify import Classes, ClassifyTask
from sightline.tasks.drawing import (
    beside,
    blend,
    blur_boxes,
    class_colours,
    colour_map,
    draw_boxes,
    draw_points,
    heat_overlay,
    write_corner,
)
from sightline.tasks.generic import MapTask

GREY = np.full((80, 120, 3), 128, np.uint8)


def face_maps(*faces: tuple[int, int, float, float, float], grid: tuple[int, int] = (16, 24)) -> list[torch.Tensor]:
    """CenterFace outputs with faces (row, column, score, height, width in pixels); landmarks in the middle of the box."""
    heat, size, offset, marks = (torch.zeros(1, channels, *grid) for channels in (1, 2, 2, 10))
    for row, column, score, height, width in faces:
        heat[0, 0, row, column] = score
        size[0, :, row, column] = torch.tensor([math.log(height / 4), math.log(width / 4)])
        offset[0, :, row, column] = torch.tensor([0.25, -0.5])
        marks[0, :, row, column] = 0.5
    return [heat, size, offset, marks]


# -- faces --------------------------------------------------------------------------------------------------------------------


def test_a_face_is_decoded_at_its_place() -> None:
    faces = decode(face_maps((5, 10, 0.9, 20.0, 12.0)), (96, 64))
    assert len(faces) == 1
    assert faces.scores[0] == pytest.approx(0.9)
    half = np.array([10.0, 6.0])
    middle = np.array([(5 + 0.25 + 0.5) * 4, (10 - 0.5 + 0.5) * 4])
    expected = np.stack([middle - half, middle + half]).ravel() / (64, 96, 64, 96)
    np.testing.assert_allclose(faces.boxes[0], expected, rtol=1e-6)
    np.testing.assert_allclose(faces.landmarks[0], np.tile(middle / (64, 96), (5, 1)), rtol=1e-6)


def test_weak_and_doubled_faces_go() -> None:
    faces = decode(face_maps((5, 10, 0.9, 20.0, 20.0), (5, 11, 0.8, 20.0, 20.0), (12, 3, 0.7, 8.0, 8.0), (2, 20, 0.3, 8.0, 8.0)), (96, 64))
    assert faces.scores == pytest.approx([0.9, 0.7])


def test_no_face_is_an_empty_finding_everywhere() -> None:
    task = FaceTask(blur=True)
    none = task.read(face_maps(), (96, 64))
    assert len(none) == 0
    assert task.caption(none) == "0 faces"
    assert np.array_equal(task.draw(GREY, none), GREY)
    assert task.agreement(none, none) == dict.fromkeys(("faces_dense", "faces_streamed", "faces_both", "sure_dense", "sure_found"), 0)
    assert {measure.key: measure.value for measure in task.measures([task.agreement(none, none)])}["face_f1"] == 1.0


def test_boxes_are_clipped_to_the_frame() -> None:
    faces = decode(face_maps((0, 0, 0.9, 40.0, 40.0)), (96, 64))
    assert faces.boxes.min() == 0.0
    assert faces.boxes.max() <= 1.0


boxes_strategy = st.lists(
    st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(1, 30), st.floats(1, 30), st.floats(0.01, 1)), min_size=1, max_size=12
)


@given(boxes_strategy, st.floats(0.05, 0.9))
def test_suppression_keeps_the_best_and_covers_the_rest(entries: list[tuple[float, ...]], overlap: float) -> None:
    array = np.array(entries)
    boxes = np.concatenate([array[:, :2], array[:, :2] + array[:, 2:4]], axis=1)
    scores = array[:, 4]
    kept = suppress(boxes, scores, overlap)
    assert scores[kept[0]] == scores.max()
    assert list(scores[kept]) == sorted(scores[kept], reverse=True)
    for place, index in enumerate(kept):
        assert (overlaps(boxes[index], boxes[kept[:place]]) <= overlap).all()
    for index in set(range(len(boxes))) - set(kept.tolist()):
        better = [other for other in kept if scores[other] >= scores[index]]
        assert (overlaps(boxes[index], boxes[better]) > overlap).any()


def test_overlap_of_equal_apart_and_half_boxes() -> None:
    box = np.array([0.0, 0.0, 2.0, 2.0])
    others = np.array([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0], [0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    assert overlaps(box, others) == pytest.approx([1.0, 0.0, 1 / 3, 0.0])


def make_faces(*boxes: tuple[float, float, float, float]) -> Faces:
    return Faces(np.array(boxes, np.float64).reshape(-1, 4), np.linspace(0.9, 0.6, len(boxes)), np.zeros((len(boxes), 5, 2)))


def test_faces_are_matched_once_each() -> None:
    first = make_faces((0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 0.7, 0.7))
    moved = make_faces((0.11, 0.1, 0.31, 0.3), (0.1, 0.11, 0.3, 0.31))
    assert match(first, first) == 2
    assert match(first, moved) == 1
    assert match(first, make_faces()) == 0
    counts = FaceTask().agreement(first, moved)
    assert counts == {"faces_dense": 2, "faces_streamed": 2, "faces_both": 1, "sure_dense": 2, "sure_found": 1}
    second: dict[str, float] = {"faces_dense": 1, "faces_streamed": 1, "faces_both": 1, "sure_dense": 0, "sure_found": 0}
    measures = {measure.key: measure.value for measure in FaceTask().measures([counts, second])}
    assert measures == {
        "faces_dense": 3, "faces_kept": 2, "faces_extra": 1, "faces_sure": 2, "faces_sure_kept": 1, "face_f1": pytest.approx(2 / 3),
    }  # fmt: skip


def test_only_sure_faces_count_as_sure() -> None:
    faces = make_faces((0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 0.7, 0.7))
    faces.scores[:] = (0.51, 0.49)
    assert FaceTask().agreement(faces, make_faces()) == {
        "faces_dense": 2,
        "faces_streamed": 0,
        "faces_both": 0,
        "sure_dense": 1,
        "sure_found": 0,
    }


def test_reference_outputs_hold_the_face_of_their_picture(shared_data: Path) -> None:
    path = shared_data / "refs" / "centerface.npz"
    if not path.is_file():
        pytest.skip("no refs/centerface.npz in the data folder")
    with np.load(path) as data:
        outputs = [torch.from_numpy(data[f"out{index}"]) for index in range(4)]
        height, width = data["image"].shape[:2]
    faces = decode(outputs, (width, height))
    best = float(outputs[0].max())
    assert len(faces) >= 1
    assert faces.scores[0] == pytest.approx(best)
    inside = (faces.landmarks[0] >= faces.boxes[0][:2]) & (faces.landmarks[0] <= faces.boxes[0][2:])
    assert inside.all()


def test_blur_changes_the_face_beyond_recognition_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (100, 100, 3), dtype=np.uint8)
    blurred = blur_boxes(image, [(0.4, 0.4, 0.6, 0.6)], margin=0.5)
    changed = (blurred != image).any(2)
    assert changed[45:55, 45:55].mean() > 0.95
    outside = np.ones((100, 100), bool)
    outside[35:65, 35:65] = False
    assert not changed[outside].any()
    assert blurred[45:55, 45:55].std() < 0.4 * image[45:55, 45:55].std()


def test_a_blurred_face_at_the_edge_or_too_small_is_no_error() -> None:
    assert blur_boxes(GREY, [(0.0, 0.0, 0.1, 0.1), (0.95, 0.9, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5)]).shape == GREY.shape


# -- classes ------------------------------------------------------------------------------------------------------------------


def test_classes_are_ranked_with_probabilities() -> None:
    task = ClassifyTask(["cat", "dog", "cow"])
    found = task.read([torch.tensor([[1.0, 3.0, 2.0]])], (32, 32))
    assert found.indices == [1, 2, 0]
    assert sum(found.scores) == pytest.approx(1.0)
    assert task.caption(found) == "dog 67 %"
    assert task.read([torch.tensor([[0.2, 0.7, 0.1]])], (32, 32)).scores[0] == pytest.approx(0.7)
    assert ClassifyTask().label(7) == "class 7"
    assert not np.array_equal(task.draw(GREY, found), GREY)


def test_agreement_of_classes() -> None:
    task = ClassifyTask()
    dense, other = Classes([1, 2, 3, 4, 5], [0.5] * 5), Classes([2, 1, 3, 9, 8], [0.5] * 5)
    assert task.agreement(dense, dense) == {"top1": 1.0, "top5": 1.0}
    assert task.agreement(dense, other) == {"top1": 0.0, "top5": 0.6}
    assert [measure.value for measure in task.measures([{"top1": 1.0, "top5": 1.0}, {"top1": 0.0, "top5": 0.6}])] == [0.5, 0.8]


# -- maps ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1, 1, 8, 8), "values"), ((1, 5, 16, 16), "classes"), ((1, 3, 64, 64), "picture"), ((1, 512, 2, 2), "features")],
)
def test_maps_are_told_apart_and_drawn(shape: tuple[int, ...], kind: str) -> None:
    task = MapTask()
    found = task.read([torch.rand(*shape)], (32, 32))
    assert found.kind == kind
    drawn = task.draw(GREY, found)
    assert drawn.shape == GREY.shape
    assert not np.array_equal(drawn, GREY)
    assert task.caption(found).endswith(f"{shape[3]}x{shape[2]}")
    same = task.agreement(found, found)
    assert same in ({"equal": 1.0, "iou": 1.0}, {"psnr": 99.0})


def test_agreement_of_segmentations() -> None:
    task = MapTask()
    dense = torch.zeros(1, 2, 4, 4)
    dense[:, 1, :, :2] = 1.0
    streamed = dense.clone()
    streamed[:, 1, 0, 2] = 1.0  # one position of sixteen turns to class 1
    counts = task.agreement(task.read([dense], (16, 16)), task.read([streamed], (16, 16)))
    assert counts == {"equal": pytest.approx(15 / 16), "iou": pytest.approx((7 / 8 + 8 / 9) / 2)}
    assert [measure.key for measure in task.measures([counts])] == ["map_equal", "map_iou"]


def test_agreement_of_pictures_is_psnr() -> None:
    task = MapTask()
    dense = task.read([torch.full((1, 3, 32, 32), 100.0)], (32, 32))
    streamed = task.read([torch.full((1, 3, 32, 32), 110.0)], (32, 32))
    assert task.agreement(dense, streamed)["psnr"] == pytest.approx(20 * math.log10(25.5))


# -- choice -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        (face_maps(), "centerface"),
        ([torch.rand(1, 10)], "classify"),
        ([torch.rand(1, 4, 8, 8)], "map"),
        ([torch.rand(1, 100, 4)], "none"),
        ([], "none"),
    ],
)
def test_the_task_follows_from_the_outputs(outputs: list[torch.Tensor], name: str) -> None:
    assert choose_task("auto", outputs, (96, 64)).name == name


def test_a_task_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'centerface' cannot read this network's output \(\(1, 10\)\); use --task auto"):
        choose_task("centerface", [torch.rand(1, 10)], (96, 64))
    with pytest.raises(ValueError, match="choose one of auto"):
        choose_task("poetry", [torch.rand(1, 10)], (96, 64))


def test_tensors_are_found_in_any_container() -> None:
    first, second, third = (torch.rand(2) for _ in range(3))
    found = output_tensors({"out": first, "aux": [second, (third, "text", None)]})
    assert [id(tensor) for tensor in found] == [id(first), id(second), id(third)]


# -- drawing ------------------------------------------------------------------------------------------------------------------


def test_drawing_leaves_its_input_alone_and_keeps_the_size() -> None:
    before = GREY.copy()
    for drawn in (
        draw_boxes(GREY, [(0.2, 0.2, 0.6, 0.5)], ["face 0.9"]),
        draw_points(GREY, np.array([[0.5, 0.5]])),
        write_corner(GREY, ["one", "two"]),
        heat_overlay(GREY, np.ones((4, 6))),
        blend(GREY, np.zeros((4, 6, 3), np.uint8), 0.5),
    ):
        assert drawn.shape == GREY.shape
        assert drawn.dtype == np.uint8
        assert (drawn != GREY).any()
    assert np.array_equal(GREY, before)


def test_a_layer_is_laid_where_it_is_asked_for() -> None:
    where = np.zeros((4, 6), bool)
    where[1, 2] = True
    changed = (blend(GREY, np.zeros((4, 6, 3), np.uint8), 0.5, where) != GREY).any(2)
    assert changed[20:40, 40:60].all()
    assert changed.sum() == 20 * 20


def test_a_box_is_drawn_where_it_belongs() -> None:
    changed = (draw_boxes(GREY, [(0.25, 0.5, 0.75, 0.75)], [""]) != GREY).any(2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max()) == (20, 60)
    assert (columns.min(), columns.max()) == (60, 90)


def test_heat_colours_worked_places_only_and_more_work_is_brighter() -> None:
    heat = np.zeros((4, 6))
    heat[0, 0], heat[3, 5] = 0.2, 1.0
    drawn = heat_overlay(GREY, heat).astype(int)
    coloured = np.ptp(drawn, axis=2) > 0
    assert coloured[:20, :20].all()
    assert coloured[60:, 100:].all()
    assert coloured.sum() == 2 * 20 * 20
    assert drawn[70, 110].sum() > drawn[10, 10].sum()


def test_panels_stand_side_by_side_with_their_captions() -> None:
    drawn = beside([GREY, GREY], ["left", "a caption that is far too long for its panel " * 3])
    assert drawn.shape == (110, 240, 3)
    assert np.array_equal(drawn[:80, :120], GREY)
    assert drawn[80:, :120].max() > 200


def test_colours_are_distinct_and_follow_the_values() -> None:
    colours = class_colours(21)
    assert len(np.unique(colours, axis=0)) == 21
    assert not colours[0].any()
    painted = colour_map(np.array([[0.0, 0.5, 1.0, np.nan]]), 0.0, 1.0).astype(int)
    assert painted[0, 0].sum() < painted[0, 1].sum() < painted[0, 2].sum()
    assert colour_map(np.zeros((2, 2)), 0.0, 0.0).shape == (2, 2, 3)
