"""Learning rates over time, parameter groups, and the optimisers.

What belongs here: everything between a gradient and a weight. What does not: the loop that calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sightline.errors import ConfigError

OPTIMIZERS = ("adamw", "sgd", "lars")
"""Names that `make_optimizer` knows."""


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, end_ratio: float = 0.0) -> float:
    """Linear warm-up, then half a cosine down to the end.

    Args:
        step: of the optimiser, from 0.
        peak: the rate behind the warm-up.
        warmup_steps: how many steps rise; the first has peak / warmup_steps.
        total_steps: how many there are; the last and all later ones have the end's rate.
        end_ratio: the end's rate, as a share of the peak.

    Returns:
        The rate of this step.

    >>> [round(learning_rate(s, peak=1.0, warmup_steps=2, total_steps=5, end_ratio=0.1), 3) for s in range(6)]
    [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    falling = max(1, total_steps - 1 - warmup_steps)
    done = min(1.0, (step - warmup_steps) / falling)
    return peak * (end_ratio + (1 - end_ratio) * (1 + math.cos(math.pi * done)) / 2)


class LARS(torch.optim.Optimizer):
    """SGD whose step for each matrix is scaled to the norm of that matrix, for very large batches.

    Vectors (biases, norms) take plain SGD steps without weight decay.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: of tensors with more than one dimension.
        eta: trust coefficient: a matrix moves by ``lr * eta * |weights| / |gradient|`` along its gradient.

    Source: You, Gitman, Ginsburg 2017, "Large batch training of convolutional networks".
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, eta: float = 1e-3) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0 or eta <= 0:
            raise ConfigError(
                f"LARS: expected lr >= 0, momentum in [0, 1), weight_decay >= 0, eta > 0; got {(lr, momentum, weight_decay, eta)}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: computes the loss again; called first, with gradients.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    self._move(weights, weights.grad, group)
        return loss

    def _move(self, weights: torch.Tensor, gradient: torch.Tensor, group: Mapping[str, Any]) -> None:
        if weights.dim() > 1:
            gradient = gradient.add(weights, alpha=group["weight_decay"])
            size, slope = weights.norm(), gradient.norm()
            trust = torch.where((size > 0) & (slope > 0), group["eta"] * size / slope, 1.0)
            gradient = gradient * trust
        state = self.state[weights]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weights)
        state["momentum"].mul_(group["momentum"]).add_(gradient)
        weights.add_(state["momentum"], alpha=-group["lr"])


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Weights with decay, and vectors (biases, norms) without.

    Args:
        modules: whose parameters are trained; those that need no gradient are left out, shared ones are taken once.
        weight_decay: for tensors with more than one dimension.

    Returns:
        Two groups for an optimiser, in the order of the modules' parameters.
    """
    known: dict[int, nn.Parameter] = {}
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                known.setdefault(id(parameter), parameter)
    matrices = [parameter for parameter in known.values() if parameter.dim() > 1]
    vectors = [parameter for parameter in known.values() if parameter.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def make_optimizer(config: Mapping[str, Any], modules: Iterable[nn.Module]) -> torch.optim.Optimizer:
    """The optimiser that a configuration names in ``training.optimizer``.

    Args:
        config: the section ``training``.
        modules: whose parameters are trained.

    Raises:
        ConfigError: an unknown name, or nothing to train.
    """
    groups = parameter_groups(modules, config["weight_decay"])
    if not any(group["params"] for group in groups):
        raise ConfigError("there is no parameter to train: all are frozen (training.freeze_backbone)")
    name, rate = config["optimizer"], config["base_lr"]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, eps=config["eps"])
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config["momentum"])
    if name == "lars":
        return LARS(groups, lr=rate, momentum=config["momentum"])
    raise ConfigError(f"training.optimizer must be one of {', '.join(OPTIMIZERS)}, not {name!r}")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
