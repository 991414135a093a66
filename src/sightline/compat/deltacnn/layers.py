"""DeltaCNN's layers: each computes the plain dense op; `DCSparsify` and `DCActivation` are where truncation happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.compat.deltacnn.module import DCModule
from sightline.compat.deltacnn.program import truncated
from sightline.compat.deltacnn.thresholds import DCBackend, DCThreshold, DCTruncation, checked
from sightline.errors import DTypeError, ShapeError

LEAKY_SLOPE = 0.1  # the original's kernels; its first frame alone has 0.01

_ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky": lambda x: F.leaky_relu(x, LEAKY_SLOPE),
    "sigmoid": torch.sigmoid,
    "swish": F.silu,
}


def _activation_name(name: str | None) -> str | None:
    if name is not None and name not in _ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {', '.join(_ACTIVATIONS)}, or None; got {name!r}.")
    return name


def _activated(x: Tensor, name: str | None) -> Tensor:
    result: Tensor = x if name is None else _ACTIVATIONS[name](x)
    return result


class Layer(DCModule):
    """What all layers share: a name for messages.

    Attributes:
        is_layer: tells layers from networks.
    """

    is_layer: ClassVar[bool] = True
    name: str = ""


class Truncating(Layer):
    """A layer that publishes a pixel only when it has moved by more than a threshold.

    Attributes:
        mode: how a change is measured.
        dilation: window around a pixel in which a change counts; 1 is the pixel alone.
        is_input: whether this is a `DCSparsify`.
    """

    mode: DCTruncation = DCTruncation.max
    dilation: int = 1
    is_input: ClassVar[bool] = False
    _own_threshold: float | None = None

    @property
    def delta_threshold(self) -> float | None:
        """The layer's own threshold; None: `DCThreshold.t_default`. May be set at any time."""
        return self._own_threshold

    @delta_threshold.setter
    def delta_threshold(self, value: float | None) -> None:
        self._own_threshold = None if value is None else checked(value, "`delta_threshold`")
        if self in DCThreshold.t:
            DCThreshold.t[self] = checked(DCThreshold.t_default, "DCThreshold.t_default") if value is None else value

    def extra_repr(self) -> str:
        """What distinguishes this layer."""
        return f"delta_threshold={self.delta_threshold}"


class DCSparsify(Truncating):
    """Begins the streamed part of a network: of a map, lets through the pixels that changed.

    A pixel counts as changed iff ``max over channels of abs(new - last let through) > threshold``.

    Args:
        name: for messages.
        delta_threshold: in units of the map, >= 0; None: `DCThreshold.t_default`.
        dilation: odd diameter, in pixels, of the window in which a change counts; below 2: the pixel alone.

    Raises:
        ValueError: a negative threshold, or an even window.
    """

    is_input: ClassVar[bool] = True

    def __init__(self, name: str = "", delta_threshold: float | None = None, dilation: int = -1) -> None:
        super().__init__()
        if dilation > 1 and dilation % 2 == 0:
            raise ValueError(f"`dilation` is the diameter of a window around a pixel and must be odd; got {dilation}.")
        self.name, self.delta_threshold, self.dilation = name, delta_threshold, max(int(dilation), 1)

    def forward(self, x: Tensor) -> Tensor:
        """A map (n, c, h, w) of floats; returns the map as the layers behind see it."""
        kind = x.dtype if isinstance(x, Tensor) else type(x)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise DTypeError(f"DCSparsify takes a float tensor (n, c, h, w); got {kind}. Convert it, e.g. frame.float() / 255.")
        if x.dim() != 4:
            raise ShapeError(f"DCSparsify takes a map (n, c, h, w); got {tuple(x.shape)}.")
        return truncated(self, x)


class DCDensify(Layer):
    """Ends the streamed part of a network; maps are dense here anyway.

    Args:
        activation: applied to the result, without truncation.
        name: for messages.
        clone_out: without effect: results always belong to the caller.
    """

    def __init__(self, activation: str | None = None, name: str = "", clone_out: bool = True) -> None:
        super().__init__()
        self.activation, self.name, self.clone_out = _activation_name(activation), name, clone_out

    def forward(self, x: Tensor) -> Tensor:
        """Any map; returns it, activated."""
        return _activated(x, self.activation)


class DCActivation(Truncating):
    """An activation, and behind it a truncation.

    Args:
        name: for messages.
        inplace: without effect: inputs are never modified.
        delta_threshold: in units of the activation, >= 0; None: `DCThreshold.t_default`.
        activation: relu, relu6, leaky (slope 0.1), sigmoid or swish; None: truncation alone.
        truncation_mode: a `DCTruncation`; None: max.

    Raises:
        ValueError: an unknown activation or mode, or a negative threshold.
    """

    def __init__(
        self,
        name: str = "",
        inplace: bool = True,
        delta_threshold: float | None = None,
        activation: str | None = "relu",
        truncation_mode: DCTruncation | int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.inplace, self.delta_threshold = name, inplace, delta_threshold
        self.activation = _activation_name(activation)
        self.mode = DCTruncation.max if truncation_mode is None else DCTruncation(truncation_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Any map or vector; returns it activated, as the layers behind see it."""
        return truncated(self, _activated(x, self.activation))

    def extra_repr(self) -> str:
        """What distinguishes this layer."""
        return f"{self.activation}, delta_threshold={self.delta_threshold}, mode={self.mode.name}"


class _Convolution(Layer):
    """What convolutions have behind them: an activation, truncated, or a dense one."""

    def _set_end(self, name: str | None, activation: str | None, threshold: float | None, dense_out: bool, backend: Any) -> None:
        self.name, self.dense_out = name or "", dense_out
        _activation_name(activation)
        self.activation: nn.Module | None = None
        if dense_out:
            self.activation = DCDensify(activation, self.name)
        elif activation is not None:
            self.activation = DCActivation(self.name, delta_threshold=threshold, activation=activation)
        if backend is not None:
            self.__dict__["backend"] = DCBackend(backend)

    def _end(self, x: Tensor) -> Tensor:
        result: Tensor = x if self.activation is None else self.activation(x)
        return result

    @property
    def delta_threshold(self) -> float | None:
        """The threshold of the activation behind it; None where there is none."""
        return self.activation.delta_threshold if isinstance(self.activation, DCActivation) else None

    @delta_threshold.setter
    def delta_threshold(self, value: float | None) -> None:
        if self.activation is None or self.dense_out:
            raise ValueError("this convolution does not truncate: only one with an activation, and without dense_out, does.")
        self.activation.delta_threshold = value  # type: ignore[assignment]


class DCConv2d(_Convolution, nn.Conv2d):
    """A convolution, with an activation and a truncation behind it if wanted. Parameters as those of ``nn.Conv2d``, in name and shape.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, padding_mode, device, dtype: as for ``nn.Conv2d``.
        padding: the same, or four numbers (left, right, top, bottom).
        delta_threshold: of the activation; None: `DCThreshold.t_default`.
        name: for messages.
        activation: as for `DCActivation`; None: none, and no truncation.
        dense_out: the end of the streamed part: the activation is not truncated.
        backend: accepted; only the class attribute counts.
        use_logging: without effect.

    Attributes:
        backend: a `DCBackend`; set it on the class to switch all networks between dense and streamed.

    Raises:
        ValueError: an unknown activation, or what ``nn.Conv2d`` refuses.
    """

    backend: ClassVar[DCBackend] = DCBackend.deltacnn

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        delta_threshold: float | None = None,
        name: str | None = None,
        activation: str | None = None,
        dense_out: bool = False,
        backend: DCBackend | None = None,
        use_logging: bool | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        del use_logging
        sides = None if isinstance(padding, int | str) else tuple(padding)
        within: Any = (0 if len(sides) == 4 else sides) if sides is not None else padding
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, within, dilation, groups, bias, padding_mode, device=device, dtype=dtype
        )
        self.sides = sides if sides is not None and len(sides) == 4 else None
        self._set_end(name, activation, delta_threshold, dense_out, backend)

    def forward(self, x: Tensor) -> Tensor:
        """A map (n, c, h, w)."""
        if self.sides is not None:
            x = F.pad(x, self.sides, "constant" if self.padding_mode == "zeros" else self.padding_mode)
        return self._end(nn.Conv2d.forward(self, x))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Also takes weights that the original has re-ordered, (in, kh, kw, out), where their shape tells."""
        weight = state_dict.get(f"{prefix}weight")
        o, i, kh, kw = self.weight.shape
        if isinstance(weight, Tensor) and weight.shape != self.weight.shape and tuple(weight.shape) == (i, kh, kw, o):
            if weight.dtype == torch.float16:
                raise DTypeError(
                    f"'{prefix}weight' was saved after process_filters in float16, which pairs channels in a way that cannot be told from "
                    "the file. Save the network before process_filters, or in float32."
                )
            state_dict[f"{prefix}weight"] = weight.permute(3, 0, 1, 2)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class DCConvTranspose2d(_Convolution, nn.ConvTranspose2d):
    """A transposed convolution, with the same ends as `DCConv2d`; any kernel and stride.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode: as for
            ``nn.ConvTranspose2d``.
        delta_threshold, name, activation, dense_out, backend, use_logging: as for `DCConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        delta_threshold: float | None = None,
        name: str | None = None,
        activation: str | None = None,
        dense_out: bool = False,
        backend: DCBackend | None = None,
        use_logging: bool | None = None,
    ) -> None:
        del use_logging
        nn.ConvTranspose2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode
        )
        self._set_end(name, activation, delta_threshold, dense_out, backend)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """A map (n, c, h, w)."""
        return self._end(nn.ConvTranspose2d.forward(self, x, output_size))


class DCBatchNorm2d(Layer, nn.BatchNorm2d):
    """Batch norm with its running statistics, whatever the module's flag; folded into the convolution before it.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as for ``nn.BatchNorm2d``.
        inplace: without effect: inputs are never modified.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        inplace: bool = True,
    ) -> None:
        nn.BatchNorm2d.__init__(self, num_features, eps, momentum, affine, track_running_stats)
        self.inplace = inplace
        if not track_running_stats:
            raise ValueError("`track_running_stats` must be True: a stream has no batch to take statistics of.")

    def forward(self, x: Tensor) -> Tensor:
        """A map (n, c, h, w)."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class DCAdd(Layer):
    """A weighted sum of two maps; an activation behind it is not truncated.

    Args:
        activation: as for `DCActivation`.
        dense_out: without effect: results are dense.
        weight_a: factor of the first map; None: 1.
        weight_b: factor of the second map; None: 1.
        name: for messages.
    """

    def __init__(
        self,
        activation: str | None = None,
        dense_out: bool = False,
        weight_a: float | Tensor | None = None,
        weight_b: float | Tensor | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        self.activation, self.dense_out, self.name = _activation_name(activation), dense_out, name
        self.weight_a, self.weight_b = weight_a, weight_b

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two maps of one shape."""
        a = a if self.weight_a is None else a * self.weight_a
        return _activated(a + (b if self.weight_b is None else b * self.weight_b), self.activation)


class DCConcatenate(Layer):
    """Joins maps along their channels.

    Args:
        name: for messages.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name = name

    def forward(self, *maps: Tensor) -> Tensor:
        """Two maps, or more."""
        return torch.cat(maps, 1)


class DCMaxPooling(Layer):
    """Maximum over windows; the default stride is 1, as in the original, and not the kernel's size, as in PyTorch.

    Args:
        kernel_size, stride, padding, dilation: as for ``nn.MaxPool2d``.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = (1, 1),
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        """A map (n, c, h, w)."""
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation)


class DCAdaptiveAveragePooling(Layer):
    """Mean over areas so that the result has a given size (any; the original: 1 x 1).

    Args:
        output_size: (h, w) or one number.
    """

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """A map (n, c, h, w)."""
        return F.adaptive_avg_pool2d(x, self.output_size)


class DCUpsamplingNearest2d(Layer):
    """Repeats pixels.

    Args:
        scale_factor: any (the original: 2, 4, 8, 16).
    """

    def __init__(self, scale_factor: int = 2) -> None:
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, x: Tensor) -> Tensor:
        """A map (n, c, h, w)."""
        return F.interpolate(x, scale_factor=self.scale_factor, mode="nearest")
