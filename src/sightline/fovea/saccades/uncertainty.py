"""`UncertaintySaccades`: looks next where the network, by its own experience, will be least uncertain of its answer.

What belongs here: the map of expected certainty, how it is learned and how the next fixation is taken from it. Policies that follow
contrast alone belong to `saliency.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sightline.errors import ShapeError
from sightline.fovea.layers import KNNBatchNorm, KNNConv
from sightline.fovea.retina import RetinalTransform
from sightline.fovea.saccades.base import Glimpses, Model, SaccadePolicy
from sightline.fovea.sensor import SensorGrid

_SIDE = 129  # of the table from places on the retina to nodes
_SHARPNESS = 12.0  # of contrast, while exploring: the most salient place is e^12 times as likely as an empty one


def certainty(logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """How certain answers are, from 0 to 1.

    Args:
        logits: (..., classes).
        labels: int64 (...), or fewer axes, from the front; the certainty is then the right answer's probability. None: it is
            1 - entropy / log(classes).

    Returns:
        (...), without gradients.

    >>> certainty(torch.tensor([[0.0, 0.0], [50.0, 0.0]]))
    tensor([0., 1.])
    """
    log_p = logits.detach().float().log_softmax(-1)
    if labels is not None:
        labels = labels.view(*labels.shape, *[1] * (logits.dim() - 1 - labels.dim())).expand(logits.shape[:-1])
        return log_p.gather(-1, labels[..., None])[..., 0].exp()
    entropy = -(log_p.exp() * log_p).sum(-1)
    return (1 - entropy / math.log(logits.shape[-1])).clamp(0, 1)


class UncertaintySaccades(SaccadePolicy):
    """Looks next where the network will be least uncertain, as far as one can tell from what was seen so far.

    From a glimpse, a small network on the sensor says for every node: how certain will the answer be if the next fixation is there? The
    coarse periphery suffices to tell candidates from nothing; the fovea then recognises them. It learns from the network's own answers:
    each pair of fixations of an image tells how certain the answer was at the second and what the first saw there. So no place is ever
    labelled, and nothing is differentiated through fixations. Maps of all glimpses are put together, nearer ones counting more.

    In evaluation the first fixation is the middle, and each further one the best place that was not looked at (inhibition of return). In
    training the first is anywhere, and further ones are drawn: by expected certainty, or, for a share `explore` of them, by contrast.

    Args:
        retina: what looks; its sensor is one of points, not a grid.
        n_fixations: how often.
        in_channels: of the images.
        channels: of the small network.
        classes: of the answers; a place that nothing is known of is expected to give 1 / classes.
        grid: candidates are the middles of grid x grid cells of the image.
        return_radius: places within this distance of an earlier fixation (in image sides) are not looked at again.
        temperature: of the draws in training, in logits.
        object_size: side of what is looked for, as a share of the image's; maps are averaged over it.
        follow: "certainty", or "contrast": the same looking, with contrast in the glimpses instead of the learned map, to compare with.

    Attributes:
        explore: share of the fixations that follow contrast, in training. 1 until told otherwise: before the network can answer anything
            its certainty says nothing. The training loop lowers it.

    Raises:
        ShapeError: a retina that samples grids.
        ValueError: another `follow`.

    Cost: the small network once per glimpse so far and fixation, grid^2 look-ups each.
    Source: ours; after Najemnik and Geisler 2005 ("Optimal eye movement strategies in visual search"), who look where uncertainty falls.
    """

    nodes: torch.Tensor
    seen: torch.Tensor
    cells: torch.Tensor

    def __init__(
        self,
        retina: RetinalTransform,
        n_fixations: int = 4,
        *,
        in_channels: int = 3,
        channels: int = 16,
        classes: int = 10,
        grid: int = 32,
        return_radius: float = 0.04,
        temperature: float = 0.5,
        object_size: float = 0.15,
        follow: str = "certainty",
    ) -> None:
        super().__init__(retina, n_fixations)
        sensor: SensorGrid = retina.sensor
        if sensor.style.endswith("_as_grid"):
            raise ShapeError(
                f"UncertaintySaccades needs a sensor of points, not {sensor.style}: take {sensor.style.removesuffix('_as_grid')}"
            )
        if follow not in {"certainty", "contrast"}:
            raise ValueError(f"`follow` must be 'certainty' or 'contrast', got {follow!r}")
        self.follow = follow
        self.grid, self.return_radius, self.temperature, self.object_size = grid, return_radius, temperature, object_size
        self.explore = 1.0
        self.prior = math.log(1 / max(1, classes - 1))  # the logit of 1 / classes
        near, nearer = min(25, len(sensor)), min(9, len(sensor))
        on_cortex = sensor.cortical is not None
        self.expectation = nn.Sequential(
            KNNConv(in_channels, channels, near, sensor, sensor, sample_cortex=on_cortex),
            KNNBatchNorm(len(sensor), channels),
            nn.ReLU(),
            KNNConv(channels, channels, nearer, sensor, sensor, sample_cortex=on_cortex),
            KNNBatchNorm(len(sensor), channels),
            nn.ReLU(),
        )
        self.readout = nn.Linear(channels, 1)
        nn.init.constant_(self.readout.bias, self.prior)
        nodes, seen = _retina_table(sensor)
        self.register_buffer("nodes", nodes, persistent=False)
        self.register_buffer("seen", seen, persistent=False)
        middles = (torch.arange(grid) + 0.5) / grid
        cells = torch.stack(torch.meshgrid(middles, middles, indexing="ij"), dim=-1).view(-1, 2)
        self.register_buffer("cells", cells, persistent=False)

    # ------------------------------------------------------------------------------------------------ the map
    def values(self, samples: torch.Tensor) -> torch.Tensor:
        """Expected certainty at every node, as logits.

        Args:
            samples: (B, F, C, N).

        Returns:
            (B, F, N).
        """
        batch, glances = samples.shape[:2]
        features: torch.Tensor = self.expectation(samples.flatten(0, 1))
        values: torch.Tensor = self.readout(features.permute(2, 0, 1))[..., 0]  # nodes first, as they lie in memory
        return values.t().reshape(batch, glances, -1)

    def _at(self, places: torch.Tensor, history: Glimpses, image: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which node of each glimpse sees places (B, P, 2): indices (B, F, P), and how well: weights, 0 outside the field of view."""
        size = places.new_tensor(image)
        offset = (places[:, None] - history.fixations[:, :, None].to(places.dtype)) * size  # (B, F, P, 2) in pixels, row and column
        on_retina = offset / (history.sizes[:, :, None].to(places.dtype) / 2)
        table = ((on_retina + 1) / 2 * (_SIDE - 1)).round().long()
        inside = ((table >= 0) & (table < _SIDE)).all(-1)
        row, col = table.clamp(0, _SIDE - 1).unbind(-1)
        # As fine as the sensor is there: the inverse area of a node.
        return self.nodes[row, col], self.seen[row, col] * inside

    def map(self, values: torch.Tensor, history: Glimpses, image: tuple[int, int], prior: float) -> torch.Tensor:
        """Values of all glimpses on the cells of the image.

        Args:
            values: (B, F, N), one per node.
            history: the glimpses.
            image: height and width.
            prior: the value of cells that no glimpse saw.

        Returns:
            (B, grid * grid), row by row: means over glimpses, weighted by how fine the sensor is there.
        """
        nodes, weight = self._at(self.cells.expand(len(values), -1, -1), history, image)
        total = weight.sum(1)
        mean = (weight * values.gather(2, nodes)).sum(1) / total.clamp_min(1e-30)
        return torch.where(total > 0, mean, prior)

    # --------------------------------------------------------------------------------------------- where next
    def next(
        self, images: torch.Tensor, history: Glimpses | None, model: Model | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `SaccadePolicy.next`; `model` is not asked, its answers were learned from."""
        del model
        sizes = self.usual_sizes(images, 1)[:, 0]
        if history is None:
            fixations = self.centre(images)[:, 0]
            return (self._anywhere(fixations, generator) if self.training else fixations), sizes
        with torch.no_grad():
            score = self._score(images, history) if self.follow == "certainty" else self._contrast(images, history)
            if self.training and self.follow == "certainty":
                by_contrast = self._contrast(images, history)
                explored = self._uniform((len(images), 1), score, generator) < self.explore
                score = torch.where(explored, by_contrast, score / self.temperature)
            # A glimpse of NaN tells nothing about where to look.
            score = score.nan_to_num(0.0) - 1e3 * self._looked_at(history)
            if not self.training:
                return self.cells[score.argmax(1)].to(sizes.dtype), sizes
            # Drawn on the CPU, so that a generator gives the same fixations on any device.
            drawn = torch.multinomial(score.softmax(1).cpu(), 1, generator=generator)[:, 0].to(score.device)
            jitter = self._uniform((len(images), 2), score, generator) - 0.5
            return (self.cells[drawn] + jitter / self.grid).clamp(0, 1).to(sizes.dtype), sizes

    def _score(self, images: torch.Tensor, history: Glimpses) -> torch.Tensor:
        # In evaluation mode whatever the policy's: running averages of the norms belong to `loss`.
        training = self.expectation.training
        self.expectation.eval()
        values = self.values(history.samples)
        self.expectation.train(training)
        height, width = images.shape[-2:]
        return self._blurred(self.map(values, history, (height, width), self.prior).sigmoid()).logit(1e-4)

    def _contrast(self, images: torch.Tensor, history: Glimpses) -> torch.Tensor:
        """Contrast of each cell, averaged over the size of an object, from 0 to `_SHARPNESS`."""
        samples = history.samples.float()
        contrast = (samples - samples.mean(-1, keepdim=True)).abs().mean(2)  # (B, F, N)
        height, width = images.shape[-2:]
        cells = self._blurred(self.map(contrast, history, (height, width), 0.0))
        low, high = cells.amin(1, keepdim=True), cells.amax(1, keepdim=True)
        return (cells - low) / (high - low).clamp_min(1e-30) * _SHARPNESS

    def _blurred(self, cells: torch.Tensor) -> torch.Tensor:
        """Cells (B, grid * grid) averaged over the size of an object: what lies between coarse nodes is found there, not at one of them."""
        spread = max(0.5, self.object_size * self.grid / 2.5)
        reach = min(self.grid - 1, math.ceil(2.5 * spread))
        along = torch.arange(-reach, reach + 1, device=cells.device, dtype=cells.dtype)
        kernel = torch.exp(-(along**2) / (2 * spread**2))
        kernel = kernel / kernel.sum()
        square = F.pad(cells.view(-1, 1, self.grid, self.grid), (reach, reach, reach, reach), mode="replicate")
        return F.conv2d(F.conv2d(square, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)).flatten(1)

    def _looked_at(self, history: Glimpses) -> torch.Tensor:
        """Whether each cell (B, grid * grid) lies next to an earlier fixation."""
        distance = torch.cdist(self.cells.expand(len(history.fixations), -1, -1), history.fixations.to(self.cells.dtype))
        return (distance.amin(2) < self.return_radius).float()

    def _anywhere(self, like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return self._uniform(tuple(like.shape), like, generator)

    def _uniform(self, shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return torch.rand(shape, generator=generator).to(like.device, like.dtype)

    # ----------------------------------------------------------------------------------------------- learning
    def loss(self, glimpses: Glimpses, certain: torch.Tensor, image: tuple[int, int]) -> torch.Tensor:
        """How wrong the map was about the certainty that the fixations brought.

        Args:
            glimpses: F fixations of each image.
            certain: (B, F), how certain the answer of each fixation alone was, from 0 to 1: see `certainty`.
            image: height and width.

        Returns:
            A scalar: cross entropy between what each glimpse expected at the place of each fixation in its field of view (its own included)
            and what came.

        Raises:
            ShapeError: another number of certainties than of fixations.
        """
        if certain.shape != glimpses.fixations.shape[:2]:
            raise ShapeError(f"expected a certainty per fixation {tuple(glimpses.fixations.shape[:2])}, got {tuple(certain.shape)}")
        values = self.values(glimpses.samples.detach())
        places = glimpses.fixations.detach().to(self.cells.dtype)
        nodes, weight = self._at(places, glimpses, image)
        expected = values.gather(2, nodes)  # (B, F glimpses, F places)
        target = certain.detach().to(expected.dtype)[:, None].expand_as(expected)
        wrong = F.binary_cross_entropy_with_logits(expected, target, reduction="none")
        visible = (weight > 0).to(wrong.dtype)
        return (wrong * visible).sum() / visible.sum().clamp_min(1)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "grid": self.grid, "return_radius": self.return_radius, "temperature": self.temperature}


def _retina_table(sensor: SensorGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """For the cells of a square around the field of view: the nearest node, int64, and its inverse area; 0 outside the field.

    Row and column grow downwards and to the right, as in images.
    """
    points = sensor.exact.cartesian.float()
    along = torch.linspace(-1, 1, _SIDE)
    row, col = torch.meshgrid(along, along, indexing="ij")
    places = torch.stack([col, -row], dim=-1).view(-1, 2)
    nearest = torch.cat([torch.cdist(part, points).argmin(1) for part in places.split(max(1, 4_000_000 // len(points)))])
    radius = places.norm(dim=1)
    scale = 2 * sensor.cmf_a / sensor.fov if sensor.cmf_a else 1.0
    weight = 1 / (radius + scale) ** 2
    outside = radius > 1 if sensor.field == "circular" else places.abs().amax(1) > 1
    return nearest.view(_SIDE, _SIDE), weight.masked_fill(outside, 0.0).view(_SIDE, _SIDE)
