"""How far a streamed output lies from the dense one, number by number."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

Pair = tuple[float, float]
"""What is wrong, and what there is."""


def tensors_of(output: Any) -> list[torch.Tensor]:
    """All tensors in what a model returned, in order."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def same_form(dense: Any, streamed: Any) -> bool:
    """Whether two outputs can be compared number by number."""
    first, second = tensors_of(dense), tensors_of(streamed)
    return [value.shape for value in first] == [value.shape for value in second]


def squares(dense: Any, streamed: Any) -> Pair:
    """(squared L2 distance, squared L2 norm of the dense output), over all tensors together.

    >>> squares(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 2.0]))
    (4.0, 25.0)
    """
    wrong = there = 0.0
    for first, second in zip(tensors_of(dense), tensors_of(streamed), strict=True):
        if first.is_floating_point():
            wrong += float((second.float() - first.float()).square().sum(dtype=torch.float64))
            there += float(first.float().square().sum(dtype=torch.float64))
    return wrong, there
