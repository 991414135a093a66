"""Losses of training: supervised, SimCLR, VICReg and Barlow Twins, on one process or on many.

What belongs here: formulas on embeddings and labels. What does not: where the two views come from (`sightline.fovea.training.data`)
and what is done with the gradients (`sightline.fovea.training.loop`).

The self-supervised losses compare images with each other, so with several processes they need every process's embeddings: `gather`
brings them, with gradients (`Fabric.all_gather(..., sync_grads=True)`). Each process then computes the loss of the whole batch, and the
mean of the processes' gradients, which data-parallel training takes, is the gradient of that loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sightline.errors import ConfigError, ShapeError

Gather = Callable[[torch.Tensor], torch.Tensor]
"""From the (b, d) of one process to the (world * b, d) of all, differentiable."""

LOSSES = ("supervised", "simclr", "vicreg", "barlow")
"""Names that `make_loss` knows."""


def alone(embeddings: torch.Tensor) -> torch.Tensor:
    """The `Gather` of a single process: what came."""
    return embeddings


def gather_of(fabric: Any) -> Gather:
    """The `Gather` of a Fabric: all processes' embeddings, in the order of their ranks, with gradients.

    Args:
        fabric: a ``lightning_fabric.Fabric`` that was launched.
    """
    if fabric.world_size == 1:
        return alone
    return lambda embeddings: fabric.all_gather(embeddings, sync_grads=True).flatten(0, 1)


class SimCLRLoss(nn.Module):
    """Normalised-temperature cross entropy (NT-Xent): a view must find the other view of its image among all views.

    Args:
        temperature: > 0; cosines are divided by it.
        gather: see `Gather`.

    Source: Chen et al. 2020, "A simple framework for contrastive learning of visual representations".
    """

    def __init__(self, temperature: float = 0.5, gather: Gather = alone) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"simclr.temperature must be greater than 0, not {temperature}")
        self.temperature, self.gather = temperature, gather

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The mean over both views of all images.

        Args:
            first: (b, d), one view of each image; need not be normalised.
            second: (b, d), another view of the same images.

        Returns:
            A scalar.

        Cost: (2 * world * b)^2 * d multiply-accumulates.
        """
        _check(first, second, "SimCLRLoss", least=1)
        views = torch.cat([self.gather(F.normalize(view.float(), dim=1)) for view in (first, second)])
        half = len(views) // 2
        cosines = views @ views.t() / self.temperature
        itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
        other_view = torch.arange(len(views), device=views.device).roll(half)
        return F.cross_entropy(cosines.masked_fill(itself, -torch.inf), other_view)


class VICRegLoss(nn.Module):
    """Invariance of the two views, variance of every feature, no covariance between features.

    Args:
        similarity: weight of the mean squared difference of the views.
        variance: weight of how far a feature's standard deviation lies below 1, mean over features and views.
        covariance: weight of the squared covariances between features, their sum divided by d, summed over views.
        gather: see `Gather`; the variances and covariances are those of all processes' images.

    Source: Bardes, Ponce, LeCun 2022, "VICReg".
    """

    def __init__(self, similarity: float = 25.0, variance: float = 25.0, covariance: float = 1.0, gather: Gather = alone) -> None:
        super().__init__()
        self.similarity, self.variance, self.covariance, self.gather = similarity, variance, covariance, gather

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the three terms.

        Args:
            first: (b, d), one view of each image.
            second: (b, d), another view of the same images. At least two images in all processes together.

        Returns:
            A scalar.
        """
        _check(first, second, "VICRegLoss")
        first, second = self.gather(first.float()), self.gather(second.float())
        loss = self.similarity * F.mse_loss(first, second)
        for view in (first, second):
            centred = view - view.mean(0)
            deviation = (centred.square().sum(0) / (len(view) - 1) + 1e-4).sqrt()
            covariance = centred.t() @ centred / (len(view) - 1)
            between = covariance.square().sum() - covariance.diagonal().square().sum()
            loss = loss + self.variance * F.relu(1 - deviation).mean() / 2 + self.covariance * between / view.shape[1]
        return loss


class BarlowTwinsLoss(nn.Module):
    """The correlation of the views, feature by feature, must be the identity matrix.

    Args:
        off_diagonal: weight of correlations between different features ("lambda").
        gather: see `Gather`; means and deviations are those of all processes' images.

    Source: Zbontar et al. 2021, "Barlow Twins".
    """

    def __init__(self, off_diagonal: float = 0.0051, gather: Gather = alone) -> None:
        super().__init__()
        self.off_diagonal, self.gather = off_diagonal, gather

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Squared distance of the correlations from the identity.

        Args:
            first: (b, d), one view of each image.
            second: (b, d), another view of the same images. At least two images in all processes together.

        Returns:
            A scalar.
        """
        _check(first, second, "BarlowTwinsLoss")
        first, second = (_standardised(self.gather(view.float())) for view in (first, second))
        correlation = first.t() @ second / len(first)
        diagonal = correlation.diagonal()
        between = correlation.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + self.off_diagonal * between


def make_loss(config: Mapping[str, Any], gather: Gather = alone) -> nn.Module:
    """The loss that a configuration names in ``training.loss``.

    Args:
        config: all sections; read are ``training`` and that of the loss.
        gather: for the self-supervised ones, see `Gather`.

    Returns:
        A module: (logits, labels) -> scalar for "supervised", else (first view, second view) -> scalar.

    Raises:
        ConfigError: an unknown name.
    """
    name = config["training"]["loss"]
    if name == "supervised":
        return nn.CrossEntropyLoss(label_smoothing=config["training"]["label_smoothing"])
    if name == "simclr":
        return SimCLRLoss(config["simclr"]["temperature"], gather)
    if name == "vicreg":
        return VICRegLoss(config["vicreg"]["sim_coeff"], config["vicreg"]["std_coeff"], config["vicreg"]["cov_coeff"], gather)
    if name == "barlow":
        return BarlowTwinsLoss(config["barlow"]["lambd"], gather)
    raise ConfigError(f"training.loss must be one of {', '.join(LOSSES)}, not {name!r}")


def _standardised(view: torch.Tensor) -> torch.Tensor:
    return (view - view.mean(0)) / (view.var(0, correction=0) + 1e-5).sqrt()


def _check(first: torch.Tensor, second: torch.Tensor, loss: str, least: int = 2) -> None:
    if first.shape != second.shape or first.dim() != 2:
        raise ShapeError(f"{loss}: expected two views of one shape (images, features); got {tuple(first.shape)} and {tuple(second.shape)}")
    if len(first) < least:
        raise ShapeError(f"{loss}: expected at least {least} images in a batch, got {len(first)}: use a larger training.batch_size")
