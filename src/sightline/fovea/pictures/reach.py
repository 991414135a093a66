"""What a unit of a network on sensors can see at all, by following the layers' tables back to the first sensor.

What belongs here: receptive fields as numbers per sensor point, and their diameters. What does not: drawing them (`receptive_fields.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from sightline.errors import ShapeError
from sightline.fovea.sensor import SensorGrid

_DIRECTIONS = 32  # the diameter is exact to 1 - cos(pi / 64), about a thousandth


class Layer(Protocol):
    """A layer with a table of neighbours: `KNNConv`, `KNNPool` and their kin."""

    in_coords: SensorGrid
    out_coords: SensorGrid
    index: torch.Tensor


@dataclass(frozen=True)
class Diameters:
    """Receptive fields of all units of one layer.

    Attributes:
        name: of the layer in the network.
        eccentricity: (N_out,) degrees from the fixation to each unit.
        diameter: (N_out,) degrees, the greatest distance between two sensor points that the unit reads; 0 for a single one.
    """

    name: str
    eccentricity: torch.Tensor
    diameter: torch.Tensor


def layer_chain(network: nn.Module) -> dict[str, Any]:
    """The layers of a network that follow on one another, from the sensor to the last: name -> layer.

    A layer beside the chain (the 1-neighbour path around a residual block) is left out: it reads no more than the chain does.

    Raises:
        ShapeError: the network has no such layers.
    """
    chain: dict[str, Any] = {}
    here: SensorGrid | None = None
    for name, module in network.named_modules():
        if isinstance(getattr(module, "index", None), torch.Tensor) and hasattr(module, "out_coords"):
            layer: Any = module
            if here is None or layer.in_coords == here:
                chain[name] = layer
                here = layer.out_coords
    if not chain:
        raise ShapeError(f"`network`: {type(network).__name__} has no layer of nearest neighbours; take its backbone")
    return chain


def receptive_field(layers: Iterable[Layer], unit: int) -> torch.Tensor:
    """How much each point of the first sensor counts for one unit of the last layer.

    Args:
        layers: in order, each on the points that the one before leaves.
        unit: index of a point of the last layer's output.

    Returns:
        (N,) float64 that sum to 1: the share of all paths through the layers' neighbours; 0 where there is none. All 0 if the unit
        reads padding only.

    Raises:
        ShapeError: no layers, layers that do not follow on one another, or no such unit.
    """
    chain = _checked(layers)
    if not 0 <= unit < len(chain[-1].index):
        raise ShapeError(f"`unit` must lie from 0 to {len(chain[-1].index) - 1}, got {unit}")
    share = torch.zeros(len(chain[-1].index), dtype=torch.float64)
    share[unit] = 1
    for layer in reversed(chain):
        index = layer.index.long().cpu()
        here = index >= 0
        parts = (share / here.sum(1).clamp(min=1))[:, None].expand(index.shape)
        share = torch.zeros(len(layer.in_coords), dtype=torch.float64).index_add_(0, index[here], parts[here])
    total = share.sum()
    return share / total if total > 0 else share


def rf_diameters(network: nn.Module) -> list[Diameters]:
    """Receptive field diameters of all units of all layers of a network, in degrees; see `Diameters`.

    Raises:
        ShapeError: the network has no layers of nearest neighbours.

    Cost: 32 values per neighbour and layer; no receptive field is written out.
    """
    chain = layer_chain(network)
    sensor = next(iter(chain.values())).in_coords
    angles = torch.arange(_DIRECTIONS, dtype=torch.float64) * (math.pi / _DIRECTIONS)
    axes = torch.stack([angles.cos(), angles.sin()])
    furthest = sensor.cartesian.double().cpu() @ axes * (sensor.fov / 2)
    nearest = furthest
    result = []
    for name, layer in chain.items():
        index = layer.index.long().cpu()
        gone = (index < 0)[..., None]
        index = index.clamp(min=0)
        furthest = furthest[index].masked_fill(gone, -math.inf).amax(1)
        nearest = nearest[index].masked_fill(gone, math.inf).amin(1)
        widest = (furthest - nearest).amax(1).clamp(min=0)
        coords = layer.out_coords
        result.append(Diameters(name, coords.polar[:, 0].double().cpu() * coords.fov / 2, widest))
    return result


def _checked(layers: Iterable[Layer]) -> Sequence[Layer]:
    chain = list(layers)
    if not chain:
        raise ShapeError("`layers`: at least one layer is needed")
    for before, after in itertools.pairwise(chain):
        if len(before.index) != len(after.in_coords):
            raise ShapeError(
                f"`layers`: one leaves {len(before.index)} points, the next reads {len(after.in_coords)}; give them in order (layer_chain)"
            )
    return chain
