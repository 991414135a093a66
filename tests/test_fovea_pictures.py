"""Pictures of foveated vision: that they show the right things in the right places."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.patches import Ellipse
from torch import Tensor, nn

from sightline.errors import DTypeError, MediaError, ShapeError
from sightline.fovea import KNNAlexNet, KNNConv, KNNPool, RetinalTransform, SensorGrid, pictures
from sightline.fovea.pictures import canvas
from sightline.fovea.pictures.mosaic import layout_of, paint, shown_points

SENSOR = SensorGrid.matched(16, 0.5, 16)
STYLES = ["isotropic", "logpolar", "warped_cartesian", "uniform"]


def network() -> KNNAlexNet:
    return KNNAlexNet(16, 3, [4, 4], [1, 1], [0], [9, 9], auto_match_cart_resources=1)


def drawn(axes: Any) -> list[np.ndarray[Any, Any]]:
    """Places of the points of all scatter plots."""
    return [np.asarray(part.get_offsets()) for part in axes.collections if isinstance(part, PathCollection)]


@pytest.mark.parametrize("style", STYLES)
def test_a_sensor_is_drawn_point_by_point(style: str) -> None:
    sensor = SensorGrid.matched(10, 0.5, 12, style=style)
    field, near, cortex = pictures.draw_sensor(sensor).axes
    wanted = sensor.cartesian.double().numpy() * 5
    np.testing.assert_allclose(drawn(field)[0], wanted)
    np.testing.assert_allclose(drawn(near)[0], wanted)
    np.testing.assert_allclose(drawn(cortex)[0], sensor.plotting.double().numpy())
    assert field.get_title() == f"visual field: {len(sensor)} points"
    assert near.get_xlim() == (-0.625, 0.625)


def test_the_surface_and_the_layers() -> None:
    axes = pictures.draw_manifold(SENSOR).axes[0]
    assert len(drawn(axes)[0]) == len(SENSOR)
    with pytest.raises(ShapeError, match="isotropic"):
        pictures.draw_manifold(SensorGrid(16, 0.5, 4, style="logpolar"))
    sensors = [SENSOR, SensorGrid.matched(16, 0.5, 8)]
    picture = pictures.draw_grids(sensors)
    assert [len(drawn(one)[0]) for one in picture.axes] == 2 * [len(one) for one in sensors]
    assert [one.get_title() for one in picture.axes[:2]] == ["layer 0: 230", "layer 1: 60"]
    for wrong in ([], sensors):
        with pytest.raises(ShapeError, match="names"):
            pictures.draw_grids(wrong, ["one"])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("view", ["visual", "cortical"])
def test_every_pixel_of_a_view_shows_the_nearest_point(style: str, view: str) -> None:
    sensor = SensorGrid.matched(16, 0.5, 12, style=style)
    shown, (left, right, bottom, top) = shown_points(sensor, view, 40)
    points = layout_of(sensor, view).numpy()
    rows, columns = shown.shape
    assert max(rows, columns) == 40
    seen = shown >= 0
    assert seen.any()
    for row, column in zip(*np.nonzero(seen), strict=True):
        x, y = left + (column + 0.5) * (right - left) / columns, top - (row + 0.5) * (top - bottom) / rows
        distance = np.hypot(points[:, 0] - x, points[:, 1] - y)
        assert distance[shown[row, column]] <= distance.min() + 1e-5
    if style == "isotropic" and view == "visual":
        assert seen.mean() == pytest.approx(math.pi / 4, abs=0.03)  # a disc
        assert not seen[0, 0] and seen[rows // 2, columns // 2]
    colours = np.random.default_rng(0).random((len(sensor), 3))
    painted = paint(shown, colours)
    np.testing.assert_array_equal(painted[seen][:, :3], colours[shown[seen]])
    np.testing.assert_array_equal(painted[..., 3], seen)
    with pytest.raises(ValueError, match="view"):
        shown_points(sensor, "other")


def test_points_lie_where_the_retina_samples() -> None:
    height, width = 40, 60
    place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()[None]
    fixation, size = (0.4, 0.6), (30.0, 36.0)
    retina = RetinalTransform(SENSOR, fixation_size=size)
    seen = retina(torch.cat([place, torch.ones(1, 1, height, width)], 1), fixation)[0]
    on_image = pictures.points_on_image(SENSOR, (height, width), fixation, size)
    inside = seen[2] > 0
    offset = (on_image.T - 0.5 - seen[:2].double())[:, inside]
    assert int(inside.sum()) > 200 and float(offset.abs().max()) <= 0.5 + 1e-4


def glimpses() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image = (torch.rand(3, 48, 64) * 255).to(torch.uint8)
    fixations = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.25, 0.5]])
    sizes = torch.full((3, 2), 40.0)
    return image, RetinalTransform(SENSOR)(image[None], fixations[None], sizes[None])[0], fixations, sizes


def test_samples_show_the_points_on_the_image_and_two_views_of_each_glimpse() -> None:
    image, samples, fixations, sizes = glimpses()
    picture = pictures.draw_samples(image, samples, SENSOR, fixations, sizes)
    assert len(picture.axes) == 9
    for row in range(3):
        first, visual, _ = picture.axes[3 * row : 3 * row + 3]
        places = pictures.points_on_image(SENSOR, (48, 64), fixations[row].tolist(), sizes[row].tolist()).numpy()
        inside = ((places >= 0) & (places < (48, 64))).all(1)
        np.testing.assert_allclose(drawn(first)[0], places[inside][:, ::-1])
        assert first.get_title().startswith(f"{inside.sum()} of 230 points")
        pixels = np.asarray(visual.images[0].get_array())
        shown, _ = shown_points(SENSOR, "visual")
        np.testing.assert_allclose(pixels[shown >= 0][:, :3], samples[row].T.numpy()[shown[shown >= 0]], atol=1e-6)
    assert np.isclose(drawn(picture.axes[3])[0][:, 0].min(), 64, atol=20)  # a fixation in the corner: only the part inside
    for wrong in (samples[:, :, 1:], samples[:2], samples[0]):
        with pytest.raises(ShapeError, match="samples"):
            pictures.draw_samples(image, wrong, SENSOR, fixations, sizes)
    with pytest.raises(ShapeError, match="image"):
        pictures.draw_samples(image[None], samples, SENSOR, fixations, sizes)
    with pytest.raises(DTypeError, match="uint8"):
        pictures.draw_samples(image.int(), samples, SENSOR, fixations, sizes)


def test_fixations_are_numbered_and_framed_by_their_field() -> None:
    image, samples, fixations, sizes = glimpses()
    picture = pictures.draw_fixations(image, fixations, sizes, samples=samples, sensor=SENSOR, notes=["a", "b", "c"])
    main, *below = picture.axes
    fields: list[Any] = [patch for patch in main.patches if isinstance(patch, Ellipse)]
    assert [field.get_center() for field in fields] == [(32.0, 24.0), (64.0, 0.0), (32.0, 12.0)]
    assert {(field.get_width(), field.get_height()) for field in fields} == {(40.0, 40.0)}
    assert [text.get_text() for text in main.texts if text.get_text()] == ["1", "2", "3"]
    assert [one.get_title() for one in below] == ["1: a", "2: b", "3: c"]
    assert len(pictures.draw_fixations(image, fixations, sizes).axes) == 1
    with pytest.raises(ShapeError, match="3 sizes"):
        pictures.draw_fixations(image, fixations, sizes, samples=samples)


def test_activations_choose_the_channels_that_vary_most() -> None:
    values = torch.randn(5, len(SENSOR)) * torch.tensor([1.0, 3.0, 0.1, 5.0, 2.0])[:, None]
    picture = pictures.draw_activations(values, SENSOR, 3)
    assert [one.get_title() for one in picture.axes] == ["channel 3", "channel 1", "channel 4", "", "", ""]
    shown, _ = shown_points(SENSOR, "cortical")
    pixels = picture.axes[3].images[0].get_array()
    assert pixels is not None
    np.testing.assert_allclose(np.asarray(pixels)[shown >= 0], values[3].double().numpy()[shown[shown >= 0]])
    assert [one.get_title() for one in pictures.draw_activations(values, SENSOR, [2]).axes] == ["channel 2", ""]
    for channels in ([5], [], [-1]):
        with pytest.raises(ShapeError, match="channels"):
            pictures.draw_activations(values, SENSOR, channels)
    with pytest.raises(ShapeError, match="values"):
        pictures.draw_activations(values[:, 1:], SENSOR)


class Means(nn.Module):
    """Pools that average: each output is the mean of its neighbours, so gradients are shares of paths."""

    def __init__(self) -> None:
        super().__init__()
        other = SensorGrid.matched(16, 0.5, 8)
        self.first, self.second = KNNPool(9, SENSOR, other, mode="avg"), KNNPool(5, other, other, mode="avg")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def test_a_receptive_field_is_the_gradient_of_means() -> None:
    model = Means()
    layers = list(pictures.layer_chain(model).values())
    for unit in (0, 7, 59):
        x = torch.zeros(1, 1, len(SENSOR), requires_grad=True)
        model(x)[0, 0, unit].backward()
        assert x.grad is not None
        wanted = x.grad[0, 0].double()
        torch.testing.assert_close(pictures.receptive_field(layers, unit), wanted / wanted.sum())
    with pytest.raises(ShapeError, match="unit"):
        pictures.receptive_field(layers, 60)
    with pytest.raises(ShapeError, match="in order"):
        pictures.receptive_field(layers[::-1], 0)
    with pytest.raises(ShapeError, match="at least one"):
        pictures.receptive_field([], 0)


def test_diameters_are_the_greatest_distances_within_receptive_fields() -> None:
    net = network()
    chain = pictures.layer_chain(net)
    assert list(chain) == ["layers.0.conv", "layers.0.pool", "layers.1.conv"]
    points = SENSOR.cartesian.double() * 8
    for number, table in enumerate(pictures.rf_diameters(net)):
        layers = list(chain.values())[: number + 1]
        coords = layers[-1].out_coords
        torch.testing.assert_close(table.eccentricity, coords.polar[:, 0].double() * 8)
        for unit in range(0, len(coords), 9):
            seen = points[pictures.receptive_field(layers, unit) > 0]
            wanted = float(torch.cdist(seen, seen).max())
            assert wanted * 0.998 <= float(table.diameter[unit]) <= wanted + 1e-9
    axes = pictures.draw_rf_diameters(net).axes[0]
    assert [len(places) for places in drawn(axes)] == [len(layer.out_coords) for layer in chain.values()]
    with pytest.raises(ShapeError, match="backbone"):
        pictures.rf_diameters(nn.Linear(2, 2))


def test_receptive_fields_on_the_image() -> None:
    net = network()
    name = "layers.0.pool"
    unit = pictures.nearest_unit(net, name, (4.0, -3.0))
    coords = pictures.layer_chain(net)[name].out_coords
    assert float((coords.cartesian[unit] * 8 - torch.tensor([4.0, -3.0])).norm()) < 3
    picture = pictures.draw_receptive_field(net, name, unit, image=torch.rand(3, 40, 40), size=(40, 40))
    places = drawn(picture.axes[0])[0]
    share = pictures.receptive_field(list(pictures.layer_chain(net).values())[:2], unit)
    assert len(places) == int((share > 0).sum())
    assert (places.mean(0) > 20).all()  # to the right, and down
    assert len(pictures.draw_receptive_field(net, name, unit).axes) == 2
    assert len(pictures.draw_fields_by_layer(net).axes) == 6
    with pytest.raises(ShapeError, match="no layer"):
        pictures.draw_receptive_field(net, "other", 0)


def test_filters_stand_upright_in_their_frame() -> None:
    layer = KNNConv(3, 4, 9, SENSOR, SENSOR, side=5)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[2, 1 * 25 + 4 * 5 + 0] = 1.0  # channel 1, the rightmost x, the lowest y
    images, met = pictures.filter_images(layer)
    assert images.shape == (4, 3, 5, 5)
    assert np.argwhere(images).tolist() == [[2, 1, 4, 4]]  # row 4 is the lowest
    cells = np.unique(layer.cell.numpy()[layer.index.numpy() >= 0])
    assert met.sum() == len(cells)
    # in memory: a neighbour to the right of its node meets a cell on the right
    right = SENSOR.cartesian[layer.index.long().clamp(min=0)][..., 0] - SENSOR.cartesian[:, None, 0]
    column = layer.cell.long() // 5
    middle = (SENSOR.polar[:, 0] > 0.2) & (SENSOR.polar[:, 0] < 0.6)
    assert float(torch.corrcoef(torch.stack([right[middle].flatten(), column[middle].flatten().float()]))[0, 1]) > 0.6
    picture = pictures.draw_filters(layer, [2, 0])
    assert [one.get_title() for one in picture.axes if one.get_visible()] == ["2", "0"]
    single = pictures.draw_filters(layer, 4, channel=1)
    assert sum(one.get_visible() for one in single.axes) == 4
    over = pictures.draw_filter_over_space(layer, 2, [0, 100])
    assert len(over.axes[0].collections) == 3
    np.testing.assert_allclose(drawn(over.axes[0])[2], SENSOR.cartesian.double().numpy()[layer.index[100][layer.index[100] >= 0]] * 8)
    for which, channel in (([4], None), ([0], 3)):
        with pytest.raises(ShapeError, match="filters"):
            pictures.draw_filters(layer, which, channel)
    with pytest.raises(ShapeError, match="units"):
        pictures.draw_filter_over_space(layer, 0, [10**6])
    with pytest.raises(ShapeError, match="KNNConv"):
        pictures.draw_filters(nn.Linear(2, 2))


def test_accuracy_by_fixations() -> None:
    axes = pictures.draw_accuracy({"random": [0.5, 0.6], "uncertainty": [0.5, 0.75, 0.8]}, chance=0.1).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [[50.0, 60.0], [50.0, 75.0, 80.0]]  # type: ignore[union-attr]
    with pytest.raises(ShapeError, match="at least one"):
        pictures.draw_accuracy({"empty": []})


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    picture, _ = canvas.figure(1, 1)
    for suffix in (".png", ".svg", ".pdf"):
        pictures.save(picture, tmp_path / f"a{suffix}")
        assert (tmp_path / f"a{suffix}").stat().st_size > 500
    with pytest.raises(MediaError, match="png"):
        pictures.save(picture, tmp_path / "a.bmp")
    with pytest.raises(MediaError, match="writable"):
        pictures.save(picture, tmp_path / "nowhere" / "a.png")
