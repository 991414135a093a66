"""Networks as rfa_toolbox writes them down: `EnrichedNetworkNode` and `LayerDefinition`, with its recursion and its names.

Its arithmetic knows kernels and strides alone (no padding, dilation, transposed convolution or upsampling): it is here to reproduce its
numbers. `sightline.analyze` gives the right ones; `sightline.fields.Sketch` writes networks down for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.fields.diagnosis import SeedNode

Size = int | float | Sequence[int] | None
_MOST = 512  # fields per node that are told apart; of more only the extremes matter


def _sizes(name: str, value: Any) -> tuple[float, ...] | float | None:
    if value is None:
        return None
    sizes = tuple(value) if isinstance(value, (tuple, list)) else value
    if any(size < 1 for size in (sizes if isinstance(sizes, tuple) else (sizes,))):
        raise ValueError(f"{name}: expected at least 1, got {value!r}")
    return sizes


@dataclass(frozen=True)
class LayerDefinition:
    """One layer.

    Attributes:
        name: what is written into its box.
        kernel_size: int, or one per axis; None: all of its input, as of a fully connected layer.
        stride_size: int, or one per axis; None: 1.
        filters: channels of a convolution, for display.
        units: of a fully connected layer, for display.

    Raises:
        ValueError: a kernel or stride below 1, or of different lengths.

    Example:
        >>> LayerDefinition("Conv3x3", kernel_size=3, stride_size=2).to_dict()
        {'name': 'Conv3x3', 'kernel_size': 3, 'stride_size': 2, 'filters': None, 'units': None}
    """

    name: str
    kernel_size: Any = None
    stride_size: Any = None
    filters: int | None = None
    units: int | None = None

    def __post_init__(self) -> None:
        kernel, stride = _sizes("kernel_size", self.kernel_size), _sizes("stride_size", self.stride_size)
        if isinstance(kernel, tuple) and isinstance(stride, tuple) and len(kernel) != len(stride):
            raise ValueError(f"kernel_size, stride_size: expected one length, got {self.kernel_size!r} and {self.stride_size!r}")
        object.__setattr__(self, "kernel_size", math.inf if kernel is None else kernel)
        object.__setattr__(self, "stride_size", 1 if stride is None else stride)

    @classmethod
    def from_dict(cls, **values: Any) -> LayerDefinition:
        """The layer that `to_dict` wrote."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; unlike in the original with filters and units, and without an infinite number."""
        kernel = None if self.kernel_size == math.inf else self.kernel_size
        return {"name": self.name, "kernel_size": kernel, "stride_size": self.stride_size, "filters": self.filters, "units": self.units}

    def axes(self, count: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Kernel and stride, one per axis."""
        kernel, stride = (tuple(value) if isinstance(value, tuple) else (value,) * count for value in (self.kernel_size, self.stride_size))
        return kernel, tuple(int(value) for value in stride)


@dataclass(frozen=True)
class ReceptiveFieldInfo:
    """A receptive field that some path leads to, and the product of strides on it; an int, or one per axis."""

    receptive_field: Any
    multiplicator: Any


RFFilter = Callable[[Sequence[ReceptiveFieldInfo]], Iterable[ReceptiveFieldInfo]]


def noop_filter(infos: Sequence[ReceptiveFieldInfo]) -> Iterable[ReceptiveFieldInfo]:
    """All."""
    return infos


def filter_all_rf_info_with_infinite_receptive_field(infos: Sequence[ReceptiveFieldInfo]) -> Iterable[ReceptiveFieldInfo]:
    """Only finite ones; all, if none is.

    >>> len(list(filter_all_rf_info_with_infinite_receptive_field([ReceptiveFieldInfo(3, 1), ReceptiveFieldInfo(math.inf, 1)])))
    1
    """
    finite = [info for info in infos if math.inf not in _tuple(info.receptive_field)]
    return finite or infos


def naive_minmax_filter(infos: Sequence[ReceptiveFieldInfo]) -> Iterable[ReceptiveFieldInfo]:
    """Only the smallest and the largest."""
    ordered = sorted(infos, key=lambda info: math.prod(_tuple(info.receptive_field)))
    return ordered[:1] + ordered[-1:] if len(ordered) > 1 else ordered


KNOWN_FILTER_MAPPING: dict[str | None, RFFilter] = {"inf": filter_all_rf_info_with_infinite_receptive_field, None: noop_filter}


def _tuple(value: Any, count: int = 1) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * count


@dataclass(eq=False)
class EnrichedNetworkNode:
    """One layer of a network, with the layers that it reads and the receptive fields that follow.

    Args:
        name: of the node.
        layer_info: what it does.
        predecessors: nodes that it reads; none for the first.
        receptive_field_info_filter: thins out the fields of all paths.
    """

    name: str
    layer_info: LayerDefinition
    predecessors: list[EnrichedNetworkNode] = field(default_factory=list)
    receptive_field_info_filter: RFFilter = noop_filter
    gates: list[EnrichedNetworkNode] = field(default_factory=list)
    successors: list[EnrichedNetworkNode] = field(default_factory=list, init=False, repr=False)
    receptive_field_info: list[ReceptiveFieldInfo] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        axes = max([2, *(len(_tuple(info.receptive_field)) for node in self.predecessors for info in node.receptive_field_info)])
        kernel, stride = self.layer_info.axes(axes)
        before = [info for node in self.predecessors for info in node.receptive_field_info]
        before = before or [ReceptiveFieldInfo((1,) * axes, (1,) * axes)]
        infos: dict[ReceptiveFieldInfo, None] = {}
        for info in before:
            sizes, scales = _tuple(info.receptive_field, axes), _tuple(info.multiplicator, axes)
            size = tuple(math.inf if k == math.inf else r + (k - 1) * m for r, m, k in zip(sizes, scales, kernel, strict=True))
            scale = tuple(1 if k == math.inf else m * s for m, s, k in zip(scales, stride, kernel, strict=True))
            infos[ReceptiveFieldInfo(size, scale)] = None
        found = list(infos)
        if len(found) > _MOST:
            found = _extremes(found, axes)
        self.receptive_field_info = list(self.receptive_field_info_filter(found))
        for node in (*self.predecessors, *self.gates):
            node.successors.append(self)

    @property
    def succecessors(self) -> list[EnrichedNetworkNode]:
        """Nodes that read it; the original spells it so."""
        return self.successors

    @property
    def kernel_size(self) -> Any:
        """Kernel of the layer; inf for a fully connected one."""
        return self.layer_info.kernel_size

    @property
    def stride_size(self) -> Any:
        """Stride of the layer."""
        return self.layer_info.stride_size

    @property
    def seed(self) -> SeedNode:
        """The node as `sightline.fields` counts for that library."""
        axes = len(self.receptive_field_info[0].receptive_field)
        before = tuple(node.paths for node in self.predecessors)
        return SeedNode(self.name, self.paths, before, self.layer_info.axes(axes)[0])

    @property
    def paths(self) -> tuple[frozenset[tuple[float, int]], ...]:
        """Per axis the (size, product of strides) of all paths."""
        axes = range(len(self.receptive_field_info[0].receptive_field))
        return tuple(frozenset((i.receptive_field[axis], i.multiplicator[axis]) for i in self.receptive_field_info) for axis in axes)

    @property
    def receptive_field_min(self) -> Any:
        """Smallest field of all paths; one number where the axes agree."""
        return _plain([min(size for size, _ in axis) for axis in self.paths])

    @property
    def receptive_field_max(self) -> Any:
        """Largest field of all paths."""
        return _plain([max(size for size, _ in axis) for axis in self.paths])

    @property
    def receptive_field_sizes(self) -> list[Any]:
        """Fields of all paths."""
        return [info.receptive_field for info in self.receptive_field_info]

    @property
    def all_layers(self) -> list[EnrichedNetworkNode]:
        """All nodes of the network up to this one, first to last; those of every branch and every input."""
        seen: dict[EnrichedNetworkNode, None] = {}
        stack: list[tuple[EnrichedNetworkNode, bool]] = [(self, False)]
        while stack:
            node, done = stack.pop()
            if done:
                seen[node] = None
            elif node not in seen:
                stack.append((node, True))
                stack.extend((before, False) for before in reversed([*node.predecessors, *node.gates]) if before not in seen)
        return list(seen)

    def get_maximum_scale_factor(self) -> Any:
        """Largest product of strides."""
        return _plain([max(scale for _, scale in axis) for axis in self.paths])

    def compute_feature_map_size(self, resolution: int | Sequence[int]) -> tuple[int, ...]:
        """Size of its map by the product of strides, rounded down, as the original does; exact sizes are in a `Report`."""
        scales = [max(scale for _, scale in axis) for axis in self.paths]
        return tuple(r // m for r, m in zip(_tuple(resolution, len(scales)), scales, strict=True))

    def is_border(
        self,
        input_resolution: int | Sequence[int],
        receptive_field_provider: Callable[[EnrichedNetworkNode], Any] | None = None,
        filter_kernel_size_1: bool = False,
    ) -> bool:
        """Whether it is a border layer ("unproductive") by the rules of rfa_toolbox 1.7.0.

        Args:
            input_resolution: an int, or one per axis.
            receptive_field_provider: only the smallest field of all paths is supported, the original's default.
            filter_kernel_size_1: layers with a kernel of 1 are not, unless their map is a single cell.
        """
        if receptive_field_provider is not None and receptive_field_provider(self) != self.receptive_field_min:
            raise ValueError("receptive_field_provider: only receptive_field_provider, the smallest field of all paths, is known here")
        resolution = _tuple(input_resolution, len(self.paths))
        return self.seed.colour(resolution, filter_kernel_size_1=filter_kernel_size_1) == "red"

    def is_in(self, container: Iterable[EnrichedNetworkNode]) -> bool:
        """Whether a node of this name is among others."""
        return any(node.name == self.name for node in container)


def receptive_field_provider(node: EnrichedNetworkNode) -> Any:
    """Smallest field of all paths."""
    return node.receptive_field_min


def _plain(values: list[float]) -> Any:
    return values[0] if len(set(values)) == 1 else tuple(values)


def _extremes(infos: list[ReceptiveFieldInfo], axes: int) -> list[ReceptiveFieldInfo]:
    kept: dict[ReceptiveFieldInfo, None] = {}
    for scale in {info.multiplicator for info in infos}:
        same = [info for info in infos if info.multiplicator == scale]
        for axis in range(axes):
            for pick in (min, max):
                kept[pick(same, key=lambda info, axis=axis: info.receptive_field[axis])] = None  # type: ignore[misc]
    return list(kept)


def obtain_all_nodes(output: EnrichedNetworkNode) -> list[EnrichedNetworkNode]:
    """All nodes of a network."""
    return output.all_layers


def obtain_border_layers(
    output: EnrichedNetworkNode, input_resolution: int | Sequence[int], filter_dense: bool = True
) -> list[EnrichedNetworkNode]:
    """Border layers ("unproductive"), without fully connected ones if so asked."""
    return [node for node in output.all_layers if node.is_border(input_resolution) and not (filter_dense and node.kernel_size == math.inf)]


def obtain_all_critical_layers(
    output: EnrichedNetworkNode, input_resolution: int | Sequence[int], filter_dense: bool = True
) -> list[EnrichedNetworkNode]:
    """Layers whose smallest field exceeds the input on every axis, without fully connected ones if so asked."""
    found = []
    for node in output.all_layers:
        sizes = node.seed.smallest
        if all(size > r for size, r in zip(sizes, _tuple(input_resolution, len(sizes)), strict=True)):
            found.append(node)
    return [node for node in found if not (filter_dense and node.kernel_size == math.inf)]
