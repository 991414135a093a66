"""Which inputs each node of a k-nearest-neighbour layer reads, and through which cell of its kernel: integers from two sets of points.

What belongs here: neighbours, kernel cells and their ties. What is computed with them belongs to `sightline.fovea.layers`.

**Ties.** Sensors of rings are symmetric, so many candidates are exactly equally far, and many neighbours lie exactly half-way between two
cells. ``ties="stable"`` computes in float64, rounds distances to 20 binary digits (a relative 1e-6) and then takes the smaller index,
and the lower cell: the same on every machine. ``ties="fovi"`` computes in float32 with the operations of fovi 2.4 in their order, whose
rounding decides: its checkpoints then give its numbers, on machines where fovi itself would give them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline import kernels
from sightline.errors import BackendError, ShapeError
from sightline.fovea.geodesic import planar_distances
from sightline.fovea.sensor import SensorGrid

Space = bool | Literal["geodesic"]
"""True: by chords between points of the cortical surface; False: in the visual field; "geodesic": along the surface."""
Ties = Literal["stable", "fovi"]
_COINCIDE = 1e-9  # in units of the field's radius
_PAIRS = 4_000_000  # distances computed at a time
_FOVI_PAIRS = 500_000_000  # fovi's own chunks: the matrix product of another size might round otherwise


class Points(NamedTuple):
    """A sensor as the search sees it, on the CPU.

    cartesian (N, 2); cortical (N, 2 or 3) or None; pad_cartesian, pad_cortical: what lies around it and counts as padding; valid_mask (N,)
    bool or None: points that count as padding although they are candidates; wraps: whether the second cortical axis has period 1;
    manifold: name of the surface that cortical points with three coordinates lie on.
    """

    cartesian: Tensor
    cortical: Tensor | None
    pad_cartesian: Tensor
    pad_cortical: Tensor | None
    valid_mask: Tensor | None = None
    wraps: bool = False
    manifold: str = "planar"

    @classmethod
    def of(cls, sensor: SensorGrid, ties: Ties) -> Points:
        """The points of a sensor, as these ties need them: float64, or what fovi computes in float32."""
        if ties == "fovi" and not sensor.float32_recipe:
            sensor = sensor.replace(float32_recipe=True)
        g = sensor.exact
        points = cls(
            g.cartesian, g.cortical, g.pad_cartesian, g.pad_cortical, g.valid_mask, sensor.style.startswith("logpolar"), sensor.manifold
        )  # fmt: skip
        if ties != "fovi":
            return points
        return points._replace(
            cartesian=g.cartesian.float(),
            cortical=None if g.cortical is None else g.cortical.float(),
            pad_cartesian=g.pad_cartesian.float(),
            pad_cortical=None if g.pad_cortical is None else g.pad_cortical.float(),
        )

    def candidates(self, space: Space) -> Tensor:
        """Coordinates that neighbours are searched by, padding last."""
        parts = (self.cortical, self.pad_cortical) if space else (self.cartesian, self.pad_cartesian)
        if parts[0] is None or parts[1] is None:
            raise ShapeError("sample_cortex: this sensor has no cortical coordinates (style 'uniform'); pass sample_cortex=False")
        return torch.cat(parts)  # type: ignore[arg-type]

    def places(self) -> Tensor:
        """Visual coordinates of the candidates, padding last."""
        return torch.cat((self.cartesian, self.pad_cartesian))


@dataclass(frozen=True)
class Neighbours:
    """The k nearest candidates of every output node, nearest first.

    Attributes:
        candidate: (N_out, k) int64; N_in and more: padding points.
        distance: (N_out, k) in the units of the search.
        padding: (N_out, k) bool: slots that count as nothing.
    """

    candidate: Tensor
    distance: Tensor
    padding: Tensor

    @property
    def index(self) -> Tensor:
        """(N_out, k) int32, -1 where padding."""
        return self.candidate.masked_fill(self.padding, -1).to(torch.int32)


@dataclass(frozen=True)
class NeighbourTable:
    """What a convolution layer needs: inputs and kernel cells.

    Attributes:
        index: (N_out, k) int32, the neighbours of each output node, nearest first; -1: padding, which adds nothing.
        cell: (N_out, k) int32 in [0, side**2): the cell of the kernel that each neighbour meets. Cell ``p * side + q`` lies at the p-th x
            from the left and the q-th y from below.
        side: cells of the kernel per axis.
    """

    index: Tensor
    cell: Tensor
    side: int


def find_neighbours(in_coords: SensorGrid, out_coords: SensorGrid, k: int, space: Space = True, ties: Ties = "stable") -> Neighbours:
    """`nearest` for two sensors; the latest 64 results are kept: do not write to them."""
    return _find(in_coords, out_coords, k, space, ties)


@lru_cache(maxsize=64)
def _find(in_coords: SensorGrid, out_coords: SensorGrid, k: int, space: Space, ties: Ties) -> Neighbours:
    return nearest(Points.of(in_coords, ties), Points.of(out_coords, ties), k, space, ties)


def neighbour_table(
    in_coords: SensorGrid, out_coords: SensorGrid, k: int, side: int | None = None, space: Space = True, ties: Ties = "stable"
) -> NeighbourTable:
    """The table of a convolution from one sensor to another; the latest 64 are kept: do not write to them.

    Args:
        in_coords: the sensor of inputs.
        out_coords: the sensor of outputs.
        k: neighbours per node, at least 1; at most as many as the input has points are taken.
        side: cells of the kernel per axis; default: ceil(sqrt(k)).
        space: True: distances on the cortical surface (chords); False: in the visual field; "geodesic": the 4k nearest by chord, ranked by
            their distance along the surface (planar manifold; the flat cortices of lattices as True). fovi ranks by distances on a
            mesh, from the candidate nearest to the node.
        ties: see the module.

    Raises:
        ShapeError: k or side below 1, or a sensor without cortical coordinates where they are needed.

    Cost: 50,000 to 50,000 points with k = 49 take about 0.3 s.
    """
    return _table(in_coords, out_coords, k, side, space, ties)


@lru_cache(maxsize=64)
def _table(in_coords: SensorGrid, out_coords: SensorGrid, k: int, side: int | None, space: Space, ties: Ties) -> NeighbourTable:
    found = _find(in_coords, out_coords, k, space, ties)
    side = math.ceil(math.sqrt(found.candidate.shape[1])) if side is None else side
    cell = kernel_cells(Points.of(in_coords, ties), Points.of(out_coords, ties), found, side, space, ties)
    return NeighbourTable(found.index, cell, side)


def nearest(source: Points, target: Points, k: int, space: Space = True, ties: Ties = "stable") -> Neighbours:
    """The min(k, N_in) nearest points of `source`, its padding included, to each point of `target`.

    Raises:
        ShapeError: k below 1, or no cortical coordinates where they are needed.
    """
    if k < 1:
        raise ShapeError(f"k: a node needs at least 1 neighbour, got {k}")
    count = len(source.cartesian)
    k = min(k, count)
    if space not in {True, False, "geodesic"}:
        raise ShapeError(f"sample_cortex: expected True, False or 'geodesic', got {space!r}")
    candidates, queries = source.candidates(space), target.candidates(space)[: len(target.cartesian)]
    search = _search_as_fovi if ties == "fovi" else _search
    along = space == "geodesic" and queries.shape[1] == 3  # a cortex of two axes is flat
    candidate, distance = search(candidates, queries, min(4 * k, count) if along else k, bool(space) and source.wraps)
    if along:
        candidate, distance = _nearest_along(source, candidates, queries, candidate, k)
    padding = candidate >= count
    if source.valid_mask is not None:
        padding |= ~source.valid_mask[candidate.clamp(max=count - 1)]
    if target.valid_mask is not None:
        padding |= ~target.valid_mask[:, None]
    return Neighbours(candidate, distance, padding)


def _nearest_along(source: Points, candidates: Tensor, queries: Tensor, candidate: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k of some candidates that are nearest along the surface."""
    if source.manifold != "planar":
        raise BackendError(
            f"sample_cortex='geodesic': lengths along the surface are known for manifold='planar', this sensor has {source.manifold!r}; "
            "pass sample_cortex=True, or a planar sensor"
        )
    chord = torch.linalg.vector_norm(candidates[candidate].double() - queries[:, None].double(), dim=2)
    distance = torch.full_like(chord, torch.inf)
    distance[:, :k] = planar_distances(candidates[candidate[:, :k]], queries[:, None])
    # No length is below its chord, so most of the others cannot come in.
    node, slot = torch.nonzero(chord[:, k:] <= distance[:, :k].amax(1, keepdim=True), as_tuple=True)
    distance[node, slot + k] = planar_distances(candidates[candidate[node, slot + k]], queries[node])
    rounded = (distance.view(torch.int64) + (1 << 31)) & -(1 << 32)
    order = (rounded | candidate).sort(1).indices[:, :k]
    return candidate.gather(1, order), distance.gather(1, order)


def _search(candidates: Tensor, queries: Tensor, k: int, wraps: bool) -> tuple[Tensor, Tensor]:
    """Exact distances in float64, rounded to 20 binary digits; then the smaller index."""
    candidates, queries = candidates.double().contiguous(), queries.double().contiguous()
    module = kernels.native()
    if module is not None and not wraps:
        index = torch.empty(len(queries), k, dtype=torch.int64)
        distance = torch.empty(len(queries), k, dtype=torch.float64)
        kernels.apply_num_threads()
        sizes = (len(candidates), len(queries), candidates.shape[1], k)
        module.knn_search(sizes, candidates.data_ptr(), queries.data_ptr(), index.data_ptr(), distance.data_ptr())
        return index, distance
    return search_in_torch(candidates, queries, k, wraps)


def search_in_torch(candidates: Tensor, queries: Tensor, k: int, wraps: bool = False) -> tuple[Tensor, Tensor]:
    """What the compiled search computes, by brute force: (index, distance), each (N_out, k)."""
    step = max(1, _PAIRS // len(candidates))
    number = torch.arange(len(candidates))
    index, distance = [], []
    for part in queries.split(step):
        squares = 0
        for axis in range(candidates.shape[1]):
            apart = (part[:, axis, None] - candidates[None, :, axis]).abs_()
            if wraps and axis == 1:
                apart = torch.minimum(apart, 1 - apart)
            squares = squares + apart * apart
        far = squares.sqrt()  # type: ignore[attr-defined]
        # the upper half of the bits of a positive double, rounded, grows with it
        order = ((far.view(torch.int64) + (1 << 31)) & -(1 << 32)) | number
        chosen = np.sort(np.partition(order.numpy(), k - 1, axis=1)[:, :k], axis=1)  # several times as fast as topk
        found = torch.from_numpy(chosen) & 0xFFFFFFFF
        index.append(found)
        distance.append(far.gather(1, found))
    return torch.cat(index), torch.cat(distance)


def _search_as_fovi(candidates: Tensor, queries: Tensor, k: int, wraps: bool) -> tuple[Tensor, Tensor]:
    """fovi's choices: its distances in float32 and its selection among equal ones."""
    share = max(0.0001, len(candidates) * len(queries) / _FOVI_PAIRS)
    index, distance = [], []
    for part in queries.split(max(1, int(min(len(queries) / share, len(queries))))):
        if wraps:
            first = torch.cdist(candidates[:, :1], part[:, :1], p=1)
            second = torch.cdist(candidates[:, 1:2], part[:, 1:2], p=1)
            far = (first**2 + torch.minimum(second, 1.0 - second) ** 2) ** (1 / 2)
        else:
            far = torch.cdist(candidates, part)
        found = torch.topk(far, k, dim=0, largest=False)
        index.append(found.indices.t())
        distance.append(found.values.t())
    return torch.cat(index), torch.cat(distance)


def kernel_cells(source: Points, target: Points, found: Neighbours, side: int, space: Space = True, ties: Ties = "stable") -> Tensor:
    """The cell of a side x side kernel that each neighbour meets: (N_out, k) int32.

    Neighbours are laid out around the node by their distance on the cortex and their direction in the visual field (without cortex: by
    their visual coordinates), stretched to fill the kernel, padding included, and each takes the nearest cell.

    Raises:
        ShapeError: side below 1.
    """
    if side < 1:
        raise ShapeError(f"side: the kernel needs at least 1 cell per axis, got {side}")
    if ties == "fovi":
        places = source.places()[found.candidate]
        laid = _laid_out_as_fovi(source, target, found, places) if space else places
        low, high = laid.amin(1, keepdim=True), laid.amax(1, keepdim=True)
        return _nearest_cell_as_fovi(2 * (laid - low) / (high - low + 1e-6) - 1, side)
    module = kernels.native()
    if module is None:
        return cells_in_torch(source, target, found.candidate, side, bool(space))
    candidate = found.candidate.contiguous()
    cell = torch.empty(candidate.shape, dtype=torch.int32)
    parts = [source.places(), target.cartesian]
    if space:
        parts += [source.candidates(space), target.candidates(space)]
    given = [part.double().contiguous() for part in parts]
    axes = given[2].shape[1] if space else 0
    kernels.apply_num_threads()
    module.knn_cells(
        (len(given[0]), *candidate.shape, side, axes, source.wraps),
        (given[0].data_ptr(), given[1].data_ptr(), given[2].data_ptr() if space else 0, given[3].data_ptr() if space else 0),
        candidate.data_ptr(),
        cell.data_ptr(),
    )
    return cell


def cells_in_torch(source: Points, target: Points, candidate: Tensor, side: int, cortex: bool) -> Tensor:
    """What the compiled function computes for `kernel_cells`."""
    laid = source.places().double()[candidate]
    if cortex:
        distance = _chords(source, target, candidate)
        offset = laid - target.cartesian.double()[:, None]
        length = torch.linalg.vector_norm(offset, dim=2, keepdim=True)
        # Where two points of the visual field coincide (the centre of a log-polar sensor), there is no direction but rounding's.
        to_the_right = offset.new_tensor([1.0, 0.0])
        laid = distance[..., None] * torch.where(length > _COINCIDE, offset / length.clamp_min(_COINCIDE), to_the_right)
    low, high = laid.amin(1, keepdim=True), laid.amax(1, keepdim=True)
    # Half-way values fall to the lower cell: the 1e-6 shifts them a little to that side.
    steps = (laid - low) / (high - low + 1e-6) * (side - 1)
    cells = (steps - 0.5).ceil().clamp(0, side - 1).to(torch.int32)
    return cells[..., 0] * side + cells[..., 1]


def _chords(source: Points, target: Points, candidate: Tensor) -> Tensor:
    """Distances on the cortex from nodes to their neighbours, the short way round."""
    assert target.cortical is not None
    apart = (source.candidates(space=True).double()[candidate] - target.cortical.double()[:, None]).abs()
    if source.wraps:
        apart[..., 1] = torch.minimum(apart[..., 1], 1 - apart[..., 1])
    length: Tensor = torch.linalg.vector_norm(apart, dim=2)
    return length


def _laid_out_as_fovi(source: Points, target: Points, found: Neighbours, places: Tensor) -> Tensor:
    assert target.cortical is not None
    places, centres = places.transpose(0, 1), target.cartesian
    angle = torch.arctan2(places[:, :, 1] - centres[:, 1], places[:, :, 0] - centres[:, 0])
    cortex = source.candidates(space=True)[found.candidate.t()]
    # One node at a time, as fovi: a batched matrix product may round otherwise.
    radius = torch.stack([torch.cdist(target.cortical[i : i + 1], cortex[:, i])[0] for i in range(len(centres))], dim=1)
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=2).transpose(0, 1)


def _nearest_cell_as_fovi(laid: Tensor, side: int) -> Tensor:
    axis = torch.linspace(-1, 1, side)
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    # One slot at a time: all at once would take side**2 floats per slot.
    return torch.stack([torch.cdist(slot[None], cells)[0].argmin(1) for slot in laid.unbind(1)], dim=1).to(torch.int32)
