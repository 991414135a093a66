"""One step of training: from a batch to a loss and what is counted.

What belongs here: which losses a batch has, as one module, so that data-parallel training sees a single forward. What does not: the
optimiser and the order of things (`sightline.fovea.training.loop`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sightline.errors import ConfigError
from sightline.fovea.config.schema import Section
from sightline.fovea.fovinet import FoviNet
from sightline.fovea.probes import FoviNetProbes
from sightline.fovea.saccades.base import Glimpses, SaccadePolicy
from sightline.fovea.saccades.uncertainty import UncertaintySaccades, certainty

Measures = dict[str, torch.Tensor]
"""Name -> sum over the images of a batch, without gradients."""


class SupervisedStep(nn.Module):
    """Looks, answers, compares with the labels.

    The loss is that of the answer from all fixations, plus ``training.fixation_loss`` times the mean of those of each fixation alone,
    plus that of the policy's map where the policy learns, plus those of the online probes.

    Args:
        network: the network; its policy learns too if it is `UncertaintySaccades`.
        settings: complete ones.
        loss: (logits, labels) -> scalar.
        probes: linear classifiers on the layers' outputs, which do not change the network; None: none.
    """

    def __init__(self, network: FoviNet, settings: Section, loss: nn.Module, probes: FoviNetProbes | None = None) -> None:
        super().__init__()
        if network.head is None:
            raise ConfigError("supervised training needs a classifier: saccades.fix_agg must not be null")
        if network.sup_fixator is None:
            raise ConfigError("supervised training needs a policy: set saccades.sup_policy")
        self.network, self.loss, self.probes = network, loss, probes
        self.fixation_loss = float(settings.training.fixation_loss)

    @property
    def policy(self) -> SaccadePolicy:
        """What chooses the fixations."""
        assert self.network.sup_fixator is not None
        return self.network.sup_fixator

    def forward(
        self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, second: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Measures]:
        """The loss of a batch.

        Args:
            images: (b, c, h, w), normalised.
            labels: (b,).
            generator: of the policy's draws.
            second: not used; for the signature.

        Returns:
            The loss, a scalar, and sums over the batch.
        """
        del second
        head = self.network.head
        assert head is not None
        glimpses = _look(self.policy, images, generator, self.network)
        embeddings, outputs = self.network.encode(glimpses.samples)
        logits = head.per_fixation(embeddings)
        scores = head.aggregate(logits)
        loss = self.loss(scores, labels)
        count = len(labels)
        measures = {"top1": (scores.argmax(-1) == labels).sum(), "answer_loss": loss.detach() * count}
        if self.fixation_loss:
            alone = self.loss(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))
            loss = loss + self.fixation_loss * alone
            measures["fixation_loss"] = alone.detach() * count
        if isinstance(self.policy, UncertaintySaccades):
            expected = self.policy.loss(glimpses, certainty(logits, labels), (images.shape[-2], images.shape[-1]))
            loss = loss + expected
            measures["policy_loss"] = expected.detach() * count
        if self.probes is not None:
            loss = loss + _probe(self.probes, outputs, labels, measures, 1)
        return loss, measures


class SelfSupervisedStep(nn.Module):
    """Looks at two views of each image and compares them; a classifier behind the backbone learns beside it without changing it.

    The embedding of a view is the mean of its fixations'.

    Args:
        network: with a projector for self-supervised training.
        settings: complete ones.
        loss: (first view, second view) -> scalar.
        probes: see `SupervisedStep`; here on the outputs of the backbone and of the self-supervised projector.
    """

    def __init__(self, network: FoviNet, settings: Section, loss: nn.Module, probes: FoviNetProbes | None = None) -> None:
        super().__init__()
        if network.ssl_fixator is None:
            raise ConfigError(f"training.loss={settings.training.loss} needs a policy: set saccades.ssl_policy")
        self.network, self.loss, self.probes = network, loss, probes
        # Data-parallel training waits for the gradient of everything that could have one.
        if network.sup_fixator is not None and network.sup_fixator is not network.ssl_fixator:
            network.sup_fixator.requires_grad_(False)
        network.ssl_fixator.requires_grad_(False)
        if network.head is None:
            network.network.projector.requires_grad_(False)

    @property
    def policy(self) -> SaccadePolicy:
        """What chooses the fixations."""
        assert self.network.ssl_fixator is not None
        return self.network.ssl_fixator

    def forward(
        self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, second: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Measures]:
        """The loss of a batch.

        Args:
            images: (b, c, h, w), one view, normalised.
            labels: (b,), for the classifiers that learn beside.
            generator: of the policy's draws.
            second: (b, c, h, w), another view.

        Returns:
            The loss, a scalar, and sums over the batch.
        """
        assert second is not None
        count = len(labels)
        # Both views as one batch: norms then see the same statistics, and there is one pass.
        glimpses = _look(self.policy, torch.cat([images, second]), generator, self.network)
        embeddings, outputs = self.network.encode(glimpses.samples, ssl=True)
        loss = self.loss(*embeddings.mean(1).split(count))
        measures = {"answer_loss": loss.detach() * count}
        labels = labels.repeat(2)
        head = self.network.head
        if head is not None:
            features = outputs[0]
            projected, _ = self.network.network.projector(features.flatten(0, 1))  # type: ignore[operator]  # an attribute of a module
            scores = head(projected.unflatten(0, features.shape[:2]))
            loss = loss + F.cross_entropy(scores, labels)
            measures["top1"] = (scores.argmax(-1) == labels).sum() / 2
        if self.probes is not None:
            loss = loss + _probe(self.probes, outputs, labels, measures, 2)
        return loss, measures


def _look(policy: SaccadePolicy, images: torch.Tensor, generator: torch.Generator, network: FoviNet) -> Glimpses:
    with torch.no_grad():
        glimpses: Glimpses = policy(images, generator=generator, model=network)
    return glimpses


def _probe(probes: FoviNetProbes, outputs: list[torch.Tensor], labels: torch.Tensor, measures: Measures, views: int) -> torch.Tensor:
    """The probes' loss; layer outputs come without gradients, so nothing but the probes learns from it."""
    total = torch.zeros((), device=labels.device)
    for index, scores in enumerate(probes([output.detach() for output in outputs])):
        total = total + F.cross_entropy(scores, labels)
        measures[f"probe_{index}_top1"] = (scores.argmax(-1) == labels).sum() / views
    return total
