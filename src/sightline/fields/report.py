"""The report: what `analyze` returns, and the questions that it answers.

What belongs here: the object and its short answers. What does not: how fields come about (`propagate.py`), the judging
(`diagnosis.py`), other forms of output (`export.py`), and the searches (`suggest.py`, `verify.py`), which it only calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sightline.errors import CaptureError, ShapeError
from sightline.fields import diagnosis, grids
from sightline.fields.layer import LayerField, box_of, touching
from sightline.graph.ir import Graph, Node

if TYPE_CHECKING:
    from sightline.fields.effective import EffectiveField
    from sightline.fields.suggest import Suggestion
    from sightline.fields.verify import Verification

Resolution = int | Sequence[int]


class Report:
    """What every layer of a network can see.

    Attributes:
        graph: the network.
        layers: call-site name -> `LayerField`, in execution order, the input included.
        origin: the input whose cells are counted.
        ignore_gates: whether gates were left out.
    """

    def __init__(
        self, graph: Graph, layers: Mapping[str, LayerField], *, origin: Node, ignore_gates: bool = False, model: nn.Module | None = None
    ) -> None:
        self.graph = graph
        self.layers = dict(layers)
        self.origin = origin
        self.ignore_gates = ignore_gates
        self._model = model

    # -- the whole network ------------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.graph.name

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape that the network was captured with."""
        return self.origin.shape or ()

    @property
    def resolution(self) -> tuple[int, ...]:
        """Size of the input per axis, as captured."""
        return self.input_shape[2:]

    @property
    def axes(self) -> int:
        """Number of axes of the input."""
        return len(self.resolution)

    @property
    def outputs(self) -> tuple[LayerField, ...]:
        """The layers whose values the model returns."""
        return tuple(self.layers[node.name] for node in self.graph.outputs if node.name in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call, as captured."""
        return sum(layer.macs for layer in self.layers.values())

    @cached_property
    def params(self) -> int:
        """Parameters of the network."""
        if self._model is not None:
            return sum(parameter.numel() for parameter in self._model.parameters())
        return sum(layer.params for layer in self.layers.values())

    @property
    def largest(self) -> LayerField:
        """The layer with the largest finite field; the input if there is none."""
        exact = [layer for layer in self.layers.values() if layer.status == "exact"]
        return max(exact, key=lambda layer: math.prod(size or 0 for size in layer.size))

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerField:
        layer = self.layers.get(name)
        if layer is None:
            import difflib

            close = difflib.get_close_matches(name, self.layers, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(close)}?" if close else "report.layers lists them"
            raise ShapeError(f"layer: there is no {name!r} in {self.name}; {hint}")
        return layer

    # -- units and cells --------------------------------------------------------------------------------------------------------------

    def box(self, layer: str, unit: Sequence[int], *, clip: bool = False) -> tuple[int, ...]:
        """Input cells that one unit of a layer sees.

        Args:
            layer: its name.
            unit: index (row, col) on its map.
            clip: leave out what lies in the padding.

        Returns:
            Half-open (y0, x0, y1, x1), the smallest box; negative, or beyond the input, in the padding. For a global layer the
            whole input.

        Raises:
            ShapeError: no such layer; another number of indices; where the units look is not known.
        """
        return box_of(self[layer], unit, self.resolution, clip=clip)

    def units_touching(self, layer: str, box: Sequence[int]) -> tuple[int, ...]:
        """Units of a layer that see any of some input cells: what must be computed again if they change.

        Args:
            layer: its name.
            box: half-open (y0, x0, y1, x1).

        Returns:
            Half-open box of units (y0, x0, y1, x1), the smallest around them, clipped to the map; all zeros if there are none.

        Raises:
            ShapeError: no such layer; a box of another form; where the units look is not known.
        """
        field = self[layer]
        if len(box) != 2 * self.axes:
            raise ShapeError(f"box: expected {2 * self.axes} numbers (y0, x0, y1, x1), got {tuple(box)}")
        spans = [touching(field, axis, (box[i], box[i + self.axes])) for i, axis in enumerate(field.axes)]
        if any(lo == hi for lo, hi in spans):
            return (0,) * (2 * self.axes)
        return (*(lo for lo, _ in spans), *(hi for _, hi in spans))

    # -- another resolution -----------------------------------------------------------------------------------------------------------

    @cached_property
    def recipes(self) -> list[dict[str, Any]]:
        """How the size of every map follows from that of the input; see `sightline.fields.grids`."""
        return grids.recipes(self.graph, self.origin)

    def map_sizes(self, resolution: Resolution) -> dict[str, tuple[int, ...] | None]:
        """Map size of every layer at a resolution; None for what is not a map."""
        sizes = grids.size_at(self.recipes, diagnosis.resolution_of(resolution, self.axes), self.resolution)
        return {node.name: size for node, size in zip(self.graph.nodes, sizes, strict=True)}

    def macs_at(self, resolution: Resolution) -> dict[str, int]:
        """Multiply-accumulates of every layer at a resolution. Layers that are not maps keep those they were captured with."""
        sizes, captured = self.map_sizes(resolution), self.map_sizes(self.resolution)
        result = {}
        for name, layer in self.layers.items():
            size, before = sizes[name], captured[name]
            if layer.op == "conv_transpose2d" and layer.inputs:
                size, before = sizes[layer.inputs[0]], captured[layer.inputs[0]]
            scale = (math.prod(size), math.prod(before)) if size and before else (1, 1)
            result[name] = layer.macs * scale[0] // max(scale[1], 1)
        return result

    def diagnose(self, resolution: Resolution | None = None) -> diagnosis.Diagnosis:
        """Judge all layers at a resolution (None: as captured); the rules are listed in `sightline.fields.diagnosis`."""
        return diagnosis.diagnose(self, self.resolution if resolution is None else resolution)

    def _broken(self, resolution: Resolution | None, rule: diagnosis.Rule) -> dict[str, LayerField]:
        return {verdict.layer: self.layers[verdict.layer] for verdict in self.diagnose(resolution).broken(rule)}

    def unproductive(self, resolution: Resolution | None = None) -> dict[str, LayerField]:
        """Layers that cannot add context at this resolution: what they read sees the whole input already.

        Args:
            resolution: an int for square inputs, or (h, w); None: as captured.

        Returns:
            Name -> layer, in execution order.
        """
        return self._broken(resolution, "unproductive")

    def critical(self, resolution: Resolution | None = None) -> dict[str, LayerField]:
        """Layers whose shortest path sees more than the input on every axis, though what they read does not yet."""
        return self._broken(resolution, "critical")

    def partial(self, resolution: Resolution | None = None) -> dict[str, LayerField]:
        """Layers whose shortest path sees more than the input on one axis only."""
        return self._broken(resolution, "partial")

    def small_maps(self, resolution: Resolution | None = None) -> dict[str, LayerField]:
        """Layers whose map is smaller than their window."""
        return self._broken(resolution, "small_map")

    # -- the seed's numbers -----------------------------------------------------------------------------------------------------------

    @cached_property
    def seed_nodes(self) -> list[diagnosis.SeedNode]:
        """The nodes as rfa_toolbox 1.7.0 counts them, to compare with; images only."""
        from sightline.fields.seed_rules import seed_nodes

        return seed_nodes(self.graph)

    def seed_colours(self, resolution: Resolution | None = None, *, filter_kernel_size_1: bool = False) -> dict[str, diagnosis.Colour]:
        """Colour of every node by the rules of rfa_toolbox 1.7.0 (which also colours norms and activations)."""
        sizes = diagnosis.resolution_of(self.resolution if resolution is None else resolution, self.axes)
        return {node.name: node.colour(sizes, filter_kernel_size_1=filter_kernel_size_1) for node in self.seed_nodes}

    def resolution_range(
        self,
        *,
        filter_all_inf_rf: bool = True,
        filter_kernel_size_1: bool = False,
        lower_bound: bool = False,
        feature_map_rule: bool = True,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Input sizes at which the network uses all of its layers, by the rules of rfa_toolbox 1.7.0.

        Below the first, some layer is unproductive; above the second, patterns may be larger than any field. ResNet-50 gives
        ((96, 96), (427, 427)); with ``feature_map_rule=False``, as up to version 1.4, ((75, 75), (427, 427)).

        Args:
            filter_all_inf_rf: take the layers' own smallest fields, those with a finite one; else those of their predecessors.
            filter_kernel_size_1: leave out 1 x 1 windows.
            lower_bound: only windows over more than one cell, by what their predecessors see.
            feature_map_rule: also ask that no map gets smaller than its window.

        Returns:
            Smallest and largest size, each per axis. The first can exceed the second.

        Raises:
            ShapeError: no layer has a finite field.
        """
        return diagnosis.seed_range(
            self.seed_nodes,
            filter_all_inf_rf=filter_all_inf_rf,
            filter_kernel_size_1=filter_kernel_size_1,
            lower_bound=lower_bound,
            feature_map_rule=feature_map_rule,
        )

    # -- searches -----------------------------------------------------------------------------------------------------------------------

    def verify(self, layers: Sequence[str] | None = None) -> Verification:
        """Check fields by back-propagation in float64; see `sightline.fields.verify`."""
        from sightline.fields.verify import verify

        return verify(self, layers)

    def suggest(self, resolution: Resolution, **options: Any) -> list[Suggestion]:
        """Edits that make the network fit a resolution, best first; see `sightline.fields.suggest.suggest`."""
        from sightline.fields.suggest import suggest

        return suggest(self, resolution, **options)

    # -- other forms --------------------------------------------------------------------------------------------------------------------

    def to_json(self, resolution: Resolution | None = None, **options: Any) -> str:
        """All of it as JSON; the schema stands in `sightline.fields.export.document`."""
        from sightline.fields.export import to_json

        return to_json(self, resolution, **options)

    def to_dict(self, resolution: Resolution | None = None) -> dict[str, Any]:
        """What `to_json` writes, as plain data."""
        from sightline.fields.export import document

        return document(self, resolution)

    def to_dot(self, resolution: Resolution | None = None) -> str:
        """The network as a Graphviz graph, coloured by diagnosis."""
        from sightline.fields.export import to_dot

        return to_dot(self, resolution)

    def to_svg(self, resolution: Resolution | None = None) -> str:
        """The network as a drawing, coloured by diagnosis."""
        from sightline.fields.svg import render

        return render(self, resolution)

    def to_html(self, path: str | Path | None = None, resolution: Resolution | None = None, **options: Any) -> str:
        """One interactive page that needs nothing else, not even a network; see `sightline.fields.page`.

        Args:
            path: where to write it; None: nowhere.
            resolution: that it opens with; None: as captured.
            **options: see `sightline.fields.page.render`.

        Returns:
            The page.
        """
        from sightline.fields.page import render

        text = render(self, resolution, **options)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def effective(self, layer: str | None = None, **options: Any) -> EffectiveField:
        """The effective field of a layer, from gradients of the model that was analysed; see `sightline.fields.effective.measure`.

        Raises:
            CaptureError: the report was not made from an ``nn.Module``.
        """
        from sightline.fields.effective import measure

        if self._model is None:
            raise CaptureError(f"report: the effective field needs the torch.nn.Module itself, but {self.name} was analysed from a graph")
        return measure(self._model, layer, **{"input_shape": self.input_shape} | options)

    def __str__(self) -> str:
        from sightline.fields.export import table

        return table(self)

    def __repr__(self) -> str:
        return f"<fields.Report of {self.name}, {len(self.layers)} layers, input {self.input_shape}>"
