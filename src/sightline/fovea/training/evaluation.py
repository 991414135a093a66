"""Evaluation by number of fixations: one pass with the most, smaller numbers by slicing.

What belongs here: accuracies of a trained network. A smaller number of fixations means the first so many: what a policy looks at first
does not depend on how often it may look.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from sightline.errors import ConfigError
from sightline.fovea.fovinet import FoviNet
from sightline.fovea.saccades.base import SaccadePolicy
from sightline.fovea.training.augment import normalize
from sightline.fovea.training.data import Batch


@dataclass
class Evaluation:
    """How well a network answers.

    Attributes:
        images: how many were shown.
        top1: number of fixations -> share of right answers.
        top5: the same for "among the five likeliest" (all, where there are no more than five classes).
        loss: number of fixations -> mean negative log-likelihood of the right answer.
        fixations: (images, F, 2), where it looked, if asked for.
    """

    images: int = 0
    top1: dict[int, float] = field(default_factory=dict)
    top5: dict[int, float] = field(default_factory=dict)
    loss: dict[int, float] = field(default_factory=dict)
    fixations: torch.Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"images": self.images, "top1": self.top1, "top5": self.top5, "loss": self.loss}


@torch.no_grad()
def evaluate(
    network: FoviNet,
    batches: Iterable[Batch],
    counts: Sequence[int],
    *,
    policy: SaccadePolicy | None = None,
    normalized: bool = True,
    generator: torch.Generator | None = None,
    fixations: Sequence[torch.Tensor] | None = None,
    keep_fixations: bool = False,
) -> Evaluation:
    """Shows images to a network and compares its answers with the labels.

    Args:
        network: set to evaluation mode meanwhile.
        batches: images and labels; moved to the network's device.
        counts: numbers of fixations, each at least 1.
        policy: where to look; default: the network's own for supervised training.
        normalized: normalise colour images as in training (``transforms.normalize``).
        generator: of the policy's random numbers.
        fixations: for each batch (B, F, 2), F at least the largest count, instead of a policy.
        keep_fixations: return where it looked.

    Returns:
        An `Evaluation`.

    Raises:
        ConfigError: counts below 1, no classifier, or no image.

    Cost: that of the largest count; the smaller ones take a mean each.
    """
    wanted = sorted({int(count) for count in counts})
    if not wanted or wanted[0] < 1:
        raise ConfigError(f"saccades.n_fixations_val must be numbers of at least 1, not {list(counts)}")
    if network.head is None:
        raise ConfigError("the network has no classifier (saccades.fix_agg: null), so there is nothing to evaluate")
    policy = policy or network.sup_fixator
    if policy is None:
        raise ConfigError("there is no policy to evaluate with: set saccades.sup_policy")
    device = next(network.parameters()).device
    training, policy_training = network.training, policy.training
    network.eval()
    policy.eval()
    result = Evaluation(top1=dict.fromkeys(wanted, 0.0), top5=dict.fromkeys(wanted, 0.0), loss=dict.fromkeys(wanted, 0.0))
    looked = []
    try:
        for number, raw in enumerate(batches):
            batch = raw.to(device)
            images = normalize(batch.images) if normalized else batch.images
            given = None if fixations is None else fixations[number][:, : wanted[-1]]
            glimpses = policy(images, n_fixations=wanted[-1], fixations=given, generator=generator, model=network)
            logits = network.head.per_fixation(network.encode(glimpses.samples)[0])
            for count in wanted:
                _add(result, count, network, logits[:, :count], batch.labels)
            result.images += len(batch)
            if keep_fixations:
                looked.append(glimpses.fixations.cpu())
    finally:
        network.train(training)
        policy.train(policy_training)
    if not result.images:
        raise ConfigError("there is no image to evaluate on")
    for sums in (result.top1, result.top5, result.loss):
        for count in wanted:
            sums[count] /= result.images
    result.fixations = torch.cat(looked) if looked else None
    return result


def _add(result: Evaluation, count: int, network: FoviNet, logits: torch.Tensor, labels: torch.Tensor) -> None:
    head = network.head
    assert head is not None
    scores = head.aggregate(logits).float()
    likeliest = scores.topk(min(5, scores.shape[-1]), dim=-1).indices
    right = likeliest == labels[:, None]
    log_p = scores.clamp_min(1e-12).log() if head.gives_probabilities else scores.log_softmax(-1)
    result.top1[count] += float(right[:, 0].sum())
    result.top5[count] += float(right.sum())
    result.loss[count] += float(F.nll_loss(log_p, labels, reduction="sum"))
