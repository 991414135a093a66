"""From a Keras 3 model to a graph: layer by layer from its structure, whatever backend it runs on; nothing is computed.

What belongs here: reading Keras layers. What does not: the graph that comes of it (`sketch.py`). Keras itself is not imported: the
model brings it. Maps are (n, c, h, w) in the graph, whatever the data format of the model; weights are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sightline.errors import CaptureError, ShapeError
from sightline.fields.sketch import Sketch
from sightline.graph.ir import Graph

_SAME = frozenset(
    (
        *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout"),
        *("AlphaDropout", "ActivityRegularization", "Rescaling", "Normalization", "Identity", "Softmax"),
        *("Relu", "Relu6", "Sigmoid", "HardSigmoid", "Silu", "HardSilu", "Gelu", "Tanh", "Elu"),  # keras.ops called as they are
    )
)
"""Layers that keep every unit where it is."""


def keras_graph(model: Any, input_shape: Sequence[int] | None = None) -> Graph:
    """The graph of a functional or sequential Keras 3 model.

    Args:
        model: built, with one image input (n, h, w, c), or (n, c, h, w) if its layers say so.
        input_shape: (n, c, h, w) or (n, h, w, c); None: what the model says, with 224 where it leaves sizes open.

    Returns:
        The graph. A layer without a counterpart makes what follows unknown.

    Raises:
        CaptureError: a subclassed model, one that is not built, or one with several inputs.
        ShapeError: an input shape that is none.
    """
    inputs = getattr(model, "inputs", None)
    model = getattr(model, "_functional", None) or model  # what a sequential model is inside
    if not inputs or not hasattr(model, "_nodes_by_depth"):
        kind = type(model).__name__
        raise CaptureError(f"model: {kind} is not a built functional or sequential Keras model; build it, or export it and pass the file")
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise CaptureError(f"model: expected one image input, got {[tuple(tensor.shape) for tensor in inputs]}")
    first = any(getattr(layer, "data_format", None) == "channels_first" for layer in _layers(model))
    shape = _shape(inputs[0].shape, input_shape, channels_first=first)
    walk = _Walk(Sketch(str(model.name), channels=shape[1], size=shape[2:]), channels_first=first)
    walk.enter(inputs[0], "input")
    walk.follow(model, "")
    return walk.sketch.to_graph(shape)


def _layers(model: Any) -> list[Any]:
    found = []
    for operation in model.operations:
        found += _layers(operation) if getattr(operation, "operations", None) else [operation]
    return found


def _shape(declared: Sequence[int | None], given: Sequence[int] | None, *, channels_first: bool) -> tuple[int, ...]:
    sizes = list(given) if given is not None else [1, *(size or 224 for size in declared[1:])]
    if len(sizes) != 4 or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ShapeError(f"input_shape: expected four positive sizes, got {given!r}")
    channels = declared[1] if channels_first else declared[3]
    last = not channels_first if given is None else sizes[1] != channels and sizes[3] == channels
    return (sizes[0], sizes[3], sizes[1], sizes[2]) if last else tuple(sizes)


class _Walk:
    """Adds the layers of a model, and of models in it, to a sketch."""

    def __init__(self, sketch: Sketch, *, channels_first: bool) -> None:
        self.sketch = sketch
        self.channels_first = channels_first
        self._names: dict[int, str] = {}
        self._used: dict[str, int] = {}
        self._alive: list[Any] = []  # tensors are known by their ids

    def enter(self, tensor: Any, name: str) -> None:
        """A tensor is the value of that layer."""
        self._names[id(tensor)] = name
        self._alive.append(tensor)

    def add(self, name: str, op: Any, inputs: Sequence[str], **options: Any) -> str:
        """A layer of the sketch; the second of a name gets ":2"."""
        count = self._used[name] = self._used.get(name, 0) + 1
        return self.sketch.add(name if count == 1 else f"{name}:{count}", op, inputs, **options)

    def follow(self, model: Any, prefix: str) -> None:
        """All operations of a model, those that read others behind them."""
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                operation = node.operation
                if type(operation).__name__ == "InputLayer" or not node.input_tensors:
                    continue
                inputs = [self._names[id(tensor)] for tensor in node.input_tensors]
                path = f"{prefix}{operation.name}"
                nested = getattr(operation, "_functional", None) or operation
                if hasattr(nested, "_nodes_by_depth"):
                    for inner, name in zip(nested.inputs, inputs, strict=True):
                        self.enter(inner, name)
                    self.follow(nested, path + ".")
                    names = [self._names[id(tensor)] for tensor in nested.outputs]
                else:
                    names = [self._layer(operation, path, inputs, node)] * len(node.output_tensors)
                for tensor, name in zip(node.output_tensors, names, strict=True):
                    self.enter(tensor, name)

    def _layer(self, layer: Any, path: str, inputs: list[str], node: Any) -> str:
        kind = type(layer).__name__
        before, after = tuple(node.input_tensors[0].shape), tuple(node.output_tensors[0].shape)
        own_format = getattr(layer, "data_format", None)
        if own_format is not None and (own_format == "channels_first") != self.channels_first:
            return self.add(path, "unknown", inputs)
        if kind in {"Reshape", "Flatten"}:
            return self.add(path, _reshape(before, after), inputs)
        if kind in {"Dense", "LayerNormalization", "Softmax"} and len(after) == 4:
            return self._on_channels(layer, kind, path, inputs)
        builder = _BUILDERS.get(kind)
        if builder is None or len(node.output_tensors) != 1:
            return self.add(path, "act" if kind in _SAME and before == after else "unknown", inputs)
        return builder(self, layer, path, inputs)

    def _on_channels(self, layer: Any, kind: str, path: str, inputs: list[str]) -> str:
        """Layers that work along the last axis, or a given one: of maps only followed where that is the axis of channels."""
        axis = getattr(layer, "axis", -1)
        axes = [axis] if isinstance(axis, int) else list(axis)
        if [value % 4 for value in axes] != [1 if self.channels_first else 3]:
            return self.add(path, "unknown", inputs)
        if kind == "Dense":
            return self.add(path, "conv", inputs, kernel=1, channels=int(layer.units), bias=bool(layer.use_bias))
        return self.add(path, "norm" if kind == "LayerNormalization" else "act", inputs)


def _reshape(before: tuple[int | None, ...], after: tuple[int | None, ...]) -> Any:
    if before == after:
        return "act"
    if len(after) == 2 and len(before) > 2:
        return "flatten"
    return "as_map" if len(before) == 2 and len(after) == 4 and 1 in {after[1] if after[1] == after[2] else 0, after[2]} else "unknown"


def _window(layer: Any) -> dict[str, Any]:
    if hasattr(layer, "pool_size"):
        return {"kernel": tuple(layer.pool_size), "stride": tuple(layer.strides), "padding": layer.padding}
    return {
        "bias": bool(layer.use_bias),
        "kernel": tuple(layer.kernel_size),
        "stride": tuple(layer.strides),
        "dilation": tuple(layer.dilation_rate),
        "padding": layer.padding,
    }


def _conv(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    op = "conv_transpose" if "Transpose" in type(layer).__name__ else "conv"
    return walk.add(path, op, inputs, channels=int(layer.filters), groups=int(getattr(layer, "groups", 1)), **_window(layer))


def _depthwise(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    return walk.add(path, "depthwise", inputs, multiplier=int(layer.depth_multiplier), **_window(layer))


def _separable(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    options = _window(layer) | {"bias": False}
    spatial = walk.add(f"{path}.depthwise", "depthwise", inputs, multiplier=int(layer.depth_multiplier), **options)
    return walk.add(path, "conv", [spatial], kernel=1, channels=int(layer.filters), bias=bool(layer.use_bias))


def _pool(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    return walk.add(path, "max_pool" if "Max" in type(layer).__name__ else "avg_pool", inputs, **_window(layer))


def _global_pool(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    return walk.add(path, "global_pool", inputs, keep=bool(layer.keepdims))


def _edges(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    crop = "Crop" in type(layer).__name__
    rows, columns = layer.cropping if crop else layer.padding
    return walk.add(path, "crop" if crop else "pad", inputs, amount=(*rows, *columns))


def _upsample(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    if layer.interpolation not in {"nearest", "bilinear"}:
        return walk.add(path, "unknown", inputs)
    return walk.add(path, "upsample", inputs, factor=tuple(layer.size), mode=layer.interpolation)


def _add(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    return walk.add(path, "mul" if type(layer).__name__ == "Multiply" else "add", inputs)


def _cat(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    axis = int(layer.axis)
    channels = axis in ({1} if walk.channels_first else {-1, 3})
    return walk.add(path, "cat" if channels else "unknown", inputs)


def _dense(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    return walk.add(path, "linear", inputs, units=int(layer.units), bias=bool(layer.use_bias))


def _norm(walk: _Walk, layer: Any, path: str, inputs: list[str]) -> str:
    axis = int(layer.axis)
    return walk.add(path, "norm" if axis in {-1, 3} or (walk.channels_first and axis == 1) else "unknown", inputs)


_BUILDERS: dict[str, Callable[[_Walk, Any, str, list[str]], str]] = {
    **dict.fromkeys(("Conv2D", "Conv2DTranspose"), _conv),
    "DepthwiseConv2D": _depthwise,
    "SeparableConv2D": _separable,
    **dict.fromkeys(("MaxPooling2D", "AveragePooling2D"), _pool),
    **dict.fromkeys(("GlobalAveragePooling2D", "GlobalMaxPooling2D"), _global_pool),
    **dict.fromkeys(("ZeroPadding2D", "Cropping2D"), _edges),
    "UpSampling2D": _upsample,
    **dict.fromkeys(("Add", "Subtract", "Average", "Maximum", "Minimum", "Multiply"), _add),
    "Concatenate": _cat,
    "Dense": _dense,
    "BatchNormalization": _norm,
}
