"""Functions of a (2, 4, 8, 6) frame that change tensors in place, each in a way that a careless capture would get wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def in_place_then_old_name(x: Tensor) -> Tensor:
    y = x * 2
    z = y.relu_()
    return y + z


def clone_is_not_changed(x: Tensor) -> Tensor:
    y = x * 2
    z = y.clone()
    y.relu_()
    return y + z


def alias_through_idle_dropout(x: Tensor) -> Tensor:
    y = x * 2
    F.dropout(y, training=False).relu_()
    return y


def view_is_changed(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:].relu_()
    return y + 1


def base_of_a_view_is_changed(x: Tensor) -> Tensor:
    y = x * 2
    view = y[:, :2]
    y.sigmoid_()
    return view + 1


def chunks_are_changed(x: Tensor) -> Tensor:
    y = x * 2
    a, b = y.chunk(2, 1)
    a.mul_(3)
    b += a
    return y


def items_are_assigned(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, ::2] = x[:, 1::2]
    y[:, 1, 2:4, 1] = 7
    return y


def idle_dropout_and_views(x: Tensor) -> Tensor:
    y = x * 2
    z = F.dropout(y, training=False)
    z[:, :1].relu_()
    return y + z


def frame_is_changed(x: Tensor) -> Tensor:
    x.sub_(0.5).mul_(2)
    return x + 1


def in_place_without_a_rule(x: Tensor) -> Tensor:
    y = x * 1
    y.masked_fill_(y > 0, -1)
    y.cumsum_(3)
    return y


def overwritten(x: Tensor) -> Tensor:
    y = x * 1
    y.copy_(torch.tensor(3.0).expand(2, 4, 8, 6))
    y.add_(x)
    return y


def constant_changed_after_use(x: Tensor) -> Tensor:
    table = torch.ones(6)
    y = x * table
    table.add_(1)
    return y + table


TRAPS = (
    in_place_then_old_name,
    clone_is_not_changed,
    alias_through_idle_dropout,
    view_is_changed,
    base_of_a_view_is_changed,
    chunks_are_changed,
    items_are_assigned,
    idle_dropout_and_views,
    frame_is_changed,
    in_place_without_a_rule,
    overwritten,
    constant_changed_after_use,
)
