"""fCNN: the first layers of a network, by the brightness of their activation, decide where the later ones look.

What belongs here: finding the given layers inside a model, and running them in two halves. What does not: areas that are known
beforehand (`sightline.focus.model`), and the choice of a threshold (`sightline.focus.calibrate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sightline.area import AreaOfInterest
from sightline.errors import CaptureError, ShapeError
from sightline.focus.model import Focused, Running
from sightline.graph.ir import Node
from sightline.graph.needed import area_on
from sightline.graph.plan import Plan, Step, make_plan
from sightline.graph.prepare import graph_of
from sightline.partial import copy_tree

Layers = nn.Module | Sequence[nn.Module]


def build_focused_model(
    model: nn.Module,
    top_layers: Layers,
    activation_brightness_threshold: float,
    remaining_layers: Layers,
    *,
    outside: str = "zero",
    backend: str = "auto",
) -> tuple[BrightnessFocused, AreaOfInterest]:
    """Makes an fCNN: where the first layers' activation is bright, the later layers compute; elsewhere they are 0.

    Use it for pictures with plain backgrounds, when no area is known beforehand and approximate answers will do. No retraining; choose the
    threshold with `sightline.calibrate_brightness`. Every picture, and every batch element, has its own area.

    Args:
        model: an nn.Module that takes one float tensor (n, c, h, w); not modified.
        top_layers: the first layers: modules of `model`, in an ``nn.Sequential`` or a list, or one module; computed everywhere. Their last
            one must return a map (n, c, h, w).
        activation_brightness_threshold: a position of that map is inside iff the sum of its channels is at least this. The sum is of
            raw values, so the number that is right depends on the layer. A sum of NaN is outside.
        remaining_layers: the layers to be focused, given in the same way. What is in neither (a classifier) runs as always.
            Instead of the model's own modules, both may be copies of them (as in the example of focusedconv); the copies are then used in
            place of the originals and their weights are shared.
        outside: as for `sightline.focus`.
        backend: as for `sightline.focus`.

    Returns:
        (fcnn, aoi): the model, a `Focused` in mode "zero"; and its area, whose mask is that of the last forward: bool (n, h, w) at the
        resolution of the map. Before the first forward it is everything. A batch element where nothing is bright enough is computed
        everywhere, and its mask is full: a threshold set too high still gives an answer, with nothing saved (``aoi.size()`` is 1.0).

    Raises:
        CaptureError: the layers are not found in the model, or (at the first forward) it cannot be captured.
        ValueError: the threshold is NaN.

    Source: fCNN (arXiv 2310.07782) and its package focusedconv, with halos, grids and batches right.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3, padding=1)).eval()
        >>> _ = torch.nn.init.constant_(model[0].weight, 1.0), torch.nn.init.zeros_(model[0].bias)
        >>> fcnn, aoi = build_focused_model(model, model[:2], 4.0, model[2:])
        >>> frame = torch.zeros(1, 1, 8, 8)
        >>> frame[..., 2, 2] = 1.0
        >>> fcnn(frame).shape, aoi.size()
        (torch.Size([1, 2, 8, 8]), 0.140625)
    """
    top, rest = _listed(top_layers, "top_layers"), _listed(remaining_layers, "remaining_layers")
    copies: dict[nn.Module, nn.Module] = {}
    twin = copy_tree(model, copies)
    own = set(model.modules())
    of_model = [_within(layer, own) for layer in (top_layers, remaining_layers)]
    if all(of_model):
        last = copies[of_model[0][-1]]
        later = [copies[layer] for layer in of_model[1]]
    else:
        _put_in(twin, top, rest)
        last, later = top[-1], rest
    fcnn = BrightnessFocused(twin, last, later, activation_brightness_threshold, outside=outside, backend=backend)
    return fcnn, fcnn.aoi


class BrightnessFocused(Focused):
    """A model whose first layers decide where the later ones compute; made by `build_focused_model`.

    As `Focused` in mode "zero". Its `aoi` is written by every forward, so edits of it do not last.
    """

    def __init__(
        self, model: nn.Module, last: nn.Module, later: Sequence[nn.Module], threshold: float, *, outside: str, backend: str
    ) -> None:
        super().__init__(model, AreaOfInterest(torch.ones(1, 1, dtype=torch.bool)), mode="zero", outside=outside, backend=backend)
        self._last = [last]  # in a list, so that it is not registered twice
        names = {module: name for name, module in model.named_modules()}
        self._later = tuple(names[layer] for layer in later)
        self._answers = 0  # how many tensors the model returns
        self.threshold = threshold

    @property
    def threshold(self) -> float:
        """Least sum of channels that counts as bright; may be set between forwards."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if math.isnan(float(value)):
            raise ValueError("`activation_brightness_threshold` must be a number; got NaN.")
        self._threshold = float(value)

    def last_brightness(self) -> torch.Tensor:
        """(n, h, w): what the threshold was compared with in the last forward.

        Raises:
            ValueError: there has been none.
        """
        with self._lock:
            return self._brightness(self._captured())

    # -- running ---------------------------------------------------------------------------------------------------------------

    def _plan(self, frame: torch.Tensor) -> Plan:
        with_map = _WithMap(self.model, self._last[0])
        graph = graph_of(with_map, frame)
        for node in graph.nodes:
            node.name, node.module = node.name.removeprefix("model."), node.module.removeprefix("model").removeprefix(".")
        if len(graph.outputs[-1].shape or ()) != 4:
            raise CaptureError(f"`top_layers` must end with a map (n, c, h, w); they return {graph.outputs[-1].shape}.")
        self._answers = len(graph.outputs) - 1
        # As outputs, what leaves the remaining layers is held by itself, and nothing that must be whole is fused behind it.
        users = graph.users()
        graph.outputs += [n for n in graph.nodes if self._focused(n) and not all(self._focused(user) for user in users[n])]
        return make_plan(graph)

    def _before(self, running: Running, frame: torch.Tensor) -> None:
        del frame
        if running.executor.pause is None:
            running.answers = running.plan.graph.outputs[: self._answers]
            running.executor.pause = self._boundary(running), lambda: self._halfway(running)
            running.inside = {node: area_on(torch.ones(1, 1, 1, dtype=torch.bool), node) for node in running.answers}

    def _boundary(self, running: Running) -> Step:
        """The step that ends the first layers."""
        return running.plan.by_output[running.plan.graph.outputs[self._answers]]

    def _brightness(self, running: Running) -> torch.Tensor:
        value = running.executor.value(self._boundary(running).output)
        assert isinstance(value, torch.Tensor)
        return value.sum(1)

    def _halfway(self, running: Running) -> None:
        """The first layers have run: sets the area of the later ones."""
        mask = self._brightness(running) >= self._threshold
        mask |= ~mask.flatten(1).any(1)[:, None, None]
        self._aoi.mask = mask
        version, area = self._aoi.current()
        if version == running.area:
            return
        first = running.plan.steps.index(self._boundary(running)) + 1
        masks = {step: m for step, m in running.needs.covering(area, first).items() if self._focused(step.head)}
        self._limit(running, None if bool(area.all()) else masks)
        everywhere = torch.ones(1, 1, 1, dtype=torch.bool, device=area.device)
        running.inside = {node: area_on(area if self._limits(running, node) else everywhere, node) for node in running.answers}
        running.area = version

    def _focused(self, node: Node) -> bool:
        """Whether a node belongs to the remaining layers."""
        return any(node.module == path or node.module.startswith(f"{path}.") for path in self._later)

    def _limits(self, running: Running, node: Node) -> bool:
        step = running.plan.by_output.get(node)
        return step is not None and running.masks is not None and step in running.masks

    def _packed(self, running: Running, values: list[torch.Tensor]) -> Any:
        tree = running.plan.graph.output_tree
        return pytree.tree_unflatten([*values, None], tree)[0]  # (what the model returns, the map)


class _WithMap(nn.Module):
    """Returns what the model returns, and what one of its modules returned on the way."""

    def __init__(self, model: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._module = [module]

    def forward(self, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
        seen: list[torch.Tensor] = []

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                seen.append(output.clone())  # what comes next may work in place

        handle = self._module[0].register_forward_hook(note)
        try:
            result = self.model(x)
        finally:
            handle.remove()
        if not seen:
            raise CaptureError("`top_layers`: their last module is not called, or does not return a tensor.")
        return result, seen[0]


# -- finding layers in a model ------------------------------------------------------------------------------------------------------


def _listed(layers: object, name: str) -> list[nn.Module]:
    """The layers one by one: children of a Sequential, items of a list, or the module itself."""
    items = list(layers.children()) if isinstance(layers, nn.Sequential | nn.ModuleList) else layers
    items = [items] if isinstance(items, nn.Module) else items
    if not isinstance(items, list | tuple) or not items or not all(isinstance(item, nn.Module) for item in items):
        raise ShapeError(f"{name}: expected a module, an nn.Sequential or a list of modules, not empty; got {type(layers).__name__}")
    return list(items)


def _within(layers: Layers, own: set[nn.Module]) -> list[nn.Module]:
    """The layers as modules of the model itself; [] if they are not."""
    if isinstance(layers, nn.Module) and layers in own:
        return [layers]
    if isinstance(layers, nn.Module) and not isinstance(layers, nn.Sequential | nn.ModuleList):
        return []
    parts = [_within(layer, own) for layer in (layers.children() if isinstance(layers, nn.Module) else layers)]
    return [layer for part in parts for layer in part] if all(parts) else []


def _put_in(twin: nn.Module, top: list[nn.Module], rest: list[nn.Module]) -> None:
    """Replaces the Sequential of which the layers are copies; ``features`` first, if there are several."""
    wanted = [_kind(layer) for layer in (*top, *rest)]
    found = [
        name for name, module in twin.named_modules() if type(module) is nn.Sequential and [_kind(c) for c in module.children()] == wanted
    ]
    if not found:
        raise CaptureError(
            "`top_layers` and `remaining_layers` are neither modules of `model` nor, put together, copies of one of its nn.Sequential. "
            "Pass the model's own modules, e.g. [model.conv1, model.layer1] and [model.layer2, model.layer3]."
        )
    name = "features" if "features" in found else found[0]
    if not name:
        raise CaptureError("`model` is itself the nn.Sequential of which the layers are copies. Pass its own layers: model[:4], model[4:].")
    parent = twin.get_submodule(name.rpartition(".")[0])
    keys = list(twin.get_submodule(name)._modules)
    sequence = nn.Sequential()
    for key, layer in zip(keys, (*top, *rest), strict=True):
        sequence.add_module(key, layer)
    parent._modules[name.rpartition(".")[2]] = sequence


def _kind(layer: nn.Module) -> tuple[object, ...]:
    return type(layer), [tuple(parameter.shape) for parameter in layer.parameters()]
