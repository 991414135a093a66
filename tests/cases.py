"""One table of layers: geometry of every kind, small maps. Parity tests run it on every executor and instruction set.

What belongs here: layers as a user would write them, and the sizes that have tripped implementations. What does not: assertions
(oracle.py), whole networks (networks.py, zoo.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """One layer on one map.

    Attributes:
        name: unique.
        build: makes the module; weights come from torch's global random numbers.
        shape: of the frame, (n, c, h, w).
        native: whether every step must have a native form.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    native: bool = True

    def model(self) -> nn.Module:
        """The module in eval mode, the same weights every time."""
        with torch.random.fork_rng([]):
            torch.manual_seed(len(self.name) + sum(map(ord, self.name)))
            return self.build().eval()


class Apply(nn.Module):
    """A function as a module, with submodules for whatever has weights."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.parts)


CASES: list[Case] = []


def _add(name: str, build: Callable[[], nn.Module], shape: tuple[int, int, int, int], native: bool = True) -> None:
    CASES.append(Case(name, build, shape, native))


def _function(
    name: str, function: Callable[..., Any], shape: tuple[int, int, int, int], *parts: Callable[[], nn.Module], native: bool = True
) -> None:
    _add(name, lambda: Apply(function, *(part() for part in parts)), shape, native)


def _conv(name: str, cin: int, cout: int, kernel: Any, size: tuple[int, int] = (9, 11), n: int = 1, **options: Any) -> None:
    _add(f"conv {name}", lambda: nn.Conv2d(cin, cout, kernel, **options), (n, cin, *size))


def _transposed(name: str, cin: int, cout: int, kernel: Any, size: tuple[int, int] = (6, 7), n: int = 1, **options: Any) -> None:
    _add(f"transposed {name}", lambda: nn.ConvTranspose2d(cin, cout, kernel, **options), (n, cin, *size))


# -- convolution -----------------------------------------------------------------------------------------------------------------

for _k in range(1, 12):
    _conv(f"{_k}x{_k}", 3, 5, _k, (13, 12), padding=_k // 2)
for _channels in ((1, 1), (1, 7), (2, 17), (5, 33), (17, 16), (33, 31), (64, 3), (65, 64), (70, 130), (3, 49), (4, 80)):
    _conv(f"{_channels[0]} to {_channels[1]} channels", *_channels, 3, padding=1)
    _conv(f"pointwise, {_channels[0]} to {_channels[1]} channels", *_channels, 1)
_conv("1x7", 4, 6, (1, 7), padding=(0, 3))
_conv("11x2", 4, 6, (11, 2), (17, 9), padding=(5, 0))
_conv("without bias", 4, 6, 3, bias=False)
_conv("stride 2", 4, 6, 3, stride=2, padding=1)
_conv("stride 2, odd rest", 4, 6, 3, (10, 12), stride=2)
_conv("stride 3 and 4, rests", 4, 6, 3, (14, 17), stride=(3, 4), padding=(0, 2))
_conv("stride beyond the kernel", 4, 6, 2, (13, 14), stride=5)
_conv("1x1 with stride", 4, 6, 1, stride=2)
_conv("1x1 with padding", 4, 6, 1, padding=2)
_conv("padding beyond the kernel", 4, 6, 3, padding=5)
_conv("same padding, even kernel", 4, 6, 4, padding="same")
_conv("dilation 2", 4, 6, 3, dilation=2, padding=2)
_conv("dilation 3 and 4, stride 2", 4, 6, 3, (19, 21), dilation=(3, 4), stride=2, padding=4)
_conv("kernel larger than the map", 3, 4, 7, (3, 2), padding=3)
_conv("kernel as large as the map", 3, 4, (5, 6), (5, 6))
_conv("kernel larger than the padded map's rest", 3, 4, 11, (4, 5), padding=4)
_conv("one row", 3, 4, 3, (1, 12), padding=1)
_conv("one column", 3, 4, 3, (12, 1), padding=1)
_conv("one pixel", 3, 4, 3, (1, 1), padding=1)
_conv("one wide row", 3, 4, 3, (2, 300), padding=1)
_conv("batch of 3", 4, 6, 3, n=3, padding=1)
_conv("batch of 3, stride 2", 4, 6, 5, n=3, padding=2, stride=2)
for _mode in ("reflect", "replicate", "circular"):
    _conv(f"{_mode} padding", 4, 6, 5, padding=2, padding_mode=_mode)
    _conv(f"{_mode} padding, stride and dilation", 4, 6, 3, (11, 13), padding=(2, 3), stride=2, dilation=2, padding_mode=_mode)
    _conv(f"{_mode} padding, depthwise", 6, 6, 3, padding=1, groups=6, padding_mode=_mode)
    _conv(f"{_mode} padding as wide as it may be", 2, 3, 3, (4, 4), padding=3, padding_mode=_mode)
for _groups, _cin, _cout in (
    (2, 4, 6), (2, 14, 14), (2, 30, 30), (2, 62, 62), (2, 34, 62), (3, 9, 21), (3, 60, 60), (4, 4, 20), (5, 5, 15), (7, 21, 63),
    (8, 32, 32), (16, 32, 64),
):  # fmt: skip
    _conv(f"{_groups} groups, {_cin} to {_cout}", _cin, _cout, 3, padding=1, groups=_groups)
    _conv(f"pointwise, {_groups} groups, {_cin} to {_cout}", _cin, _cout, 1, groups=_groups)
for _wide in (1, 3, 8, 16, 17, 40):
    _conv(f"depthwise 3x3, {_wide} channels", _wide, _wide, 3, padding=1, groups=_wide)
_conv("depthwise 5x5, stride 2", 12, 12, 5, (15, 38), stride=2, padding=2, groups=12)
_conv("depthwise 3x3, stride 2, batch", 12, 12, 3, (15, 38), n=2, stride=2, padding=1, groups=12)
_conv("depthwise 3x3, stride 3", 12, 12, 3, (15, 38), stride=3, groups=12)
_conv("depthwise 7x7", 12, 12, 7, padding=3, groups=12)
_conv("depthwise 2x5", 12, 12, (2, 5), padding=(1, 2), groups=12)
_conv("depthwise 3x3, dilation 2", 12, 12, 3, padding=2, dilation=2, groups=12)
_conv("depthwise 3x3, long rows", 5, 5, 3, (3, 70), padding=1, groups=5)
_conv("depthwise 5x5 on a narrow map", 5, 5, 5, (9, 3), padding=2, groups=5)
_conv("depthwise with multiplier 2", 6, 12, 3, padding=1, groups=6)
_conv("depthwise with multiplier 3", 17, 51, 3, padding=1, groups=17)
_conv("depthwise 11x11, larger than the map", 3, 3, 11, (5, 6), padding=5, groups=3)

_transposed("2x2, stride 2", 4, 6, 2, stride=2)
_transposed("3x3", 4, 6, 3, padding=1)
_transposed("3x3, stride 2, output padding", 4, 6, 3, stride=2, padding=1, output_padding=1)
_transposed("4x4, stride 2", 4, 6, 4, stride=2, padding=1)
_transposed("kernel below stride", 4, 6, 2, stride=3)
_transposed("kernel below stride, output padding", 4, 6, 2, stride=4, output_padding=3)
_transposed("5x3, stride 3 and 1, dilation 2", 4, 6, (5, 3), stride=(3, 1), dilation=(1, 2), padding=(1, 2))
_transposed("dilation 2, stride 2, output padding", 4, 6, 3, stride=2, dilation=2, output_padding=(1, 0))
_transposed("2 groups", 6, 10, 3, stride=2, groups=2, padding=1, output_padding=1)
_transposed("depthwise", 6, 6, 4, stride=2, groups=6, padding=1)
_transposed("depthwise with multiplier", 5, 15, 3, stride=2, groups=5)
_transposed("1x1, stride 2", 4, 6, 1, stride=2)
_transposed("batch of 2, no bias", 4, 20, 4, n=2, stride=2, padding=1, bias=False)
_transposed("all of a pixel cut away but one", 3, 4, 5, (1, 1), padding=2)
_transposed("many channels", 40, 37, 4, stride=2, padding=1)

# -- pooling -----------------------------------------------------------------------------------------------------------------------

_POOLS: dict[str, dict[str, Any]] = {
    "2x2": {"kernel_size": 2},
    "3x3, stride 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "3x2, stride 2 and 3": {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)},
    "ceil mode": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "ceil mode with padding": {"kernel_size": 3, "stride": 3, "padding": 1, "ceil_mode": True},
    "ceil mode, last window in the padding": {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True},
    "5x5, stride 1": {"kernel_size": 5, "stride": 1, "padding": 2},
}
for _kind, _pool in (("max", nn.MaxPool2d), ("avg", nn.AvgPool2d)):
    for _name, _options in _POOLS.items():
        for _size in ((9, 11), (10, 8)):
            _add(f"{_kind} pool {_name} on {_size[0]}x{_size[1]}", partial(_pool, **_options), (2, 5, *_size))
_add("max pool, dilation 2", lambda: nn.MaxPool2d(3, 2, 1, dilation=2), (1, 5, 11, 12))
_add("max pool, dilation 2, ceil mode", lambda: nn.MaxPool2d(2, 3, 1, dilation=2, ceil_mode=True), (1, 5, 11, 12))
_add("avg pool, padding not counted", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), (1, 5, 9, 10))
_add("avg pool, padding not counted, ceil mode", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (1, 5, 10, 8))
_add("avg pool, divisor", lambda: nn.AvgPool2d(3, 2, 1, divisor_override=4), (1, 5, 9, 10))
_add("avg pool, 37 channels", lambda: nn.AvgPool2d(2, 2), (1, 37, 6, 6))
_add("max pool, 37 channels", lambda: nn.MaxPool2d(2, 2), (1, 37, 6, 6))
for _kind, _adaptive in (("avg", nn.AdaptiveAvgPool2d), ("max", nn.AdaptiveMaxPool2d)):
    for _out in ((1, 1), (2, 3), (5, 7), (1, 4), (12, 15)):
        _add(f"adaptive {_kind} pool to {_out[0]}x{_out[1]}", partial(_adaptive, _out), (2, 5, 7, 9))
_function("mean over the map", lambda x: x.mean((2, 3)), (3, 21, 6, 7))
_function("mean over the map, kept", lambda x: x.mean((2, 3), keepdim=True), (2, 5, 6, 7))
_function("mean of a large map", lambda x: x.mean((2, 3)), (1, 3, 70, 90))

# -- resampling, moving values -----------------------------------------------------------------------------------------------------

for _resample in ("nearest", "bilinear", "bicubic"):
    for _corners in (None,) if _resample == "nearest" else (False, True):
        _tag = f"{_resample}{', corners aligned' if _corners else ''}"
        for _factor in (2, 1.5, (3.0, 0.7)):
            _add(
                f"upsample {_tag} by {_factor}",
                partial(nn.Upsample, scale_factor=_factor, mode=_resample, align_corners=_corners),
                (1, 5, 6, 7),
            )
        for _to in ((11, 5), (1, 1), (6, 7), (3, 20)):
            _add(
                f"upsample {_tag} to {_to[0]}x{_to[1]}",
                partial(nn.Upsample, size=_to, mode=_resample, align_corners=_corners),
                (2, 17, 6, 7),
            )
        _function(
            f"upsample {_tag}, scale recomputed",
            lambda x, m=_resample, a=_corners: F.interpolate(x, scale_factor=2.3, mode=m, align_corners=a, recompute_scale_factor=True),
            (1, 5, 6, 7),
        )
_add("pixel shuffle", lambda: nn.PixelShuffle(2), (2, 12, 5, 6))
_add("pixel shuffle by 3, one channel left", lambda: nn.PixelShuffle(3), (1, 9, 5, 6))
_add("pixel unshuffle", lambda: nn.PixelUnshuffle(2), (2, 3, 6, 8))
_add("pixel unshuffle by 3", lambda: nn.PixelUnshuffle(3), (1, 2, 6, 9))
_add("channel shuffle", lambda: nn.ChannelShuffle(3), (2, 12, 5, 6))
_add("channel shuffle, from two places", lambda: nn.ChannelShuffle(2), (1, 70, 5, 6))
_add("channel shuffle, from anywhere", lambda: nn.ChannelShuffle(5), (2, 60, 5, 6))
for _few in (1, 2, 3, 8):  # few channels: pixels share vectors
    _add(f"{_few} channels upsampled", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, _few, 7, 19))
    _add(
        f"{_few} channels at the same size",
        lambda: nn.Upsample(size=(7, 19), mode="bilinear", align_corners=True),
        (1, _few, 7, 19),
    )
    _add(f"{_few} channels downsampled", lambda: nn.Upsample(scale_factor=0.3, mode="bilinear"), (1, _few, 9, 39))
    _function(f"{_few} channels upsampled, relu", lambda x: F.relu(F.interpolate(x, (11, 40), mode="bilinear")), (1, _few, 7, 19))
for _cin, _cout in ((1, 1), (1, 8), (2, 2), (2, 4), (3, 3), (4, 2), (5, 1), (1, 5)):
    for _stride in (1, 2):
        _conv(f"{_cin} to {_cout}, stride {_stride}", _cin, _cout, 3, (9, 41), 2, stride=_stride, padding=1)
    _conv(f"{_cin} to {_cout}, wide", _cin, _cout, (1, 5), (3, 40), padding=(0, 2), bias=False)
    _function(
        f"{_cin} to {_cout}, clamped and added",
        lambda x, f, g: F.relu6(4 * f(x)) + F.relu(g(x) + f(x)),
        (1, _cin, 9, 41),
        partial(nn.Conv2d, _cin, _cout, 3, padding=1),
        partial(nn.Conv2d, _cin, _cout, 3, padding=1),
    )
for _cout in (6, 8, 24, 23, 40, 72, 85):  # half a vector is left over
    _conv(f"1x1 to {_cout}", 24, _cout, 1, n=2)
    _conv(f"3x3 to {_cout}", 5, _cout, 3, padding=1)
    _function(
        f"3x3 to {_cout}, added, relu",
        lambda x, f, g: F.relu(f(x) + g(x)),
        (1, 20, 9, 11),
        partial(nn.Conv2d, 20, _cout, 1),
        partial(nn.Conv2d, 20, _cout, 3, padding=1),
    )
    _function(f"1x1 to {_cout}, silu", lambda x, f: F.silu(f(x)), (1, 17, 9, 11), partial(nn.Conv2d, 17, _cout, 1))
for _name, _slice in {"every second": slice(None, None, 2), "odd": slice(1, None, 2), "every third": slice(2, 40, 3)}.items():
    _function(
        f"cat of slices, {_name} channel",
        lambda x, f, at=_slice: torch.cat([f(x)[:, at], x, f(x)[:, :, :, :7]], 1),
        (2, 5, 6, 7),
        partial(nn.Conv2d, 5, 40, 1),
    )
_function("max pooling of large values", lambda x: F.max_pool2d(1e15 * x - 5e14, 3, 2, 1), (1, 20, 9, 11))
for _kernel, _stride in ((3, 1), (3, 2), (5, 1), (7, 1)):
    _function(
        f"depthwise {_kernel}x{_kernel}, prelu, stride {_stride}",
        lambda x, f, g: g(f(x)),
        (2, 19, 9, 23),
        partial(nn.Conv2d, 19, 19, _kernel, _stride, _kernel // 2, groups=19),
        lambda: _shaken(nn.PReLU(19)),
    )
_function(
    "a gate as a vector", lambda x, f: x * torch.sigmoid(f(x.mean((2, 3)))).reshape(2, 5, 1, 1), (2, 5, 6, 7), lambda: nn.Linear(5, 5)
)
_function(
    "views for torch",
    lambda x, f: torch.cat([f(x).permute(0, 2, 3, 1).reshape(2, -1, 2), x.permute(0, 2, 3, 1).reshape(2, -1, 2)], 1),
    (2, 4, 6, 7),
    lambda: nn.Conv2d(4, 4, 3),
    native=False,
)
for _fill in ("constant", "reflect", "replicate", "circular"):
    _function(f"pad, {_fill}", lambda x, m=_fill: F.pad(x, (1, 2, 3, 0), m), (2, 5, 6, 7))
_function("pad with a value", lambda x: F.pad(x, (1, 2, 0, 1), value=-1.5), (1, 5, 6, 7))
_function("pad by less than nothing", lambda x: F.pad(x, (-1, 2, -2, -1)), (1, 5, 6, 7), native=False)
_function("crop", lambda x: x[:, :, 1:5, 2:], (2, 5, 6, 7))
_function("every other pixel", lambda x: x[:, :, ::2, 1::3], (2, 5, 6, 7))
_function("slice of channels", lambda x: x[:, 2:4] * 2, (2, 5, 6, 7))
_function("slice of channels, returned", lambda x: x[:, 2:4], (2, 5, 6, 7))
_function("slice of the batch", lambda x: x[1:] * 2, (2, 5, 6, 7), native=False)
_function("cat", lambda x, f, g: torch.cat([f(x), x, g(x)], 1), (2, 5, 6, 7), lambda: nn.Conv2d(5, 3, 3, padding=1), nn.ReLU)
_function("cat of a map with itself", lambda x, f: torch.cat([f(x)] * 3, 1), (1, 5, 6, 7), lambda: nn.Conv2d(5, 3, 1))
_function(
    "cat in a cat",
    lambda x, f, g: torch.cat([x, torch.cat([f(x), g(x)], 1), f(x)], 1),
    (1, 5, 6, 7),
    lambda: nn.Conv2d(5, 3, 3, padding=1),
    lambda: nn.Conv2d(5, 4, 1),
)
_function(
    "a map in two cats",
    lambda x, f, g: torch.cat([torch.cat([f(x), g(x)], 1), f(x), x], 1),
    (1, 5, 6, 7),
    lambda: nn.Conv2d(5, 3, 1),
    lambda: nn.Conv2d(5, 17, 1),
)
_function("cat of rows", lambda x: torch.cat([x, x * 2], 2), (2, 5, 6, 7))
_function("cat of columns", lambda x: torch.cat([x[:, :, :, 3:], x], 3), (2, 5, 6, 7))
_function("cat of batches", lambda x: torch.cat([x, x * 2], 0), (2, 5, 6, 7), native=False)
_function("cat, then activation", lambda x, f: F.relu(torch.cat([f(x), x], 1)), (1, 5, 6, 7), lambda: nn.Conv2d(5, 3, 1))
_function("cat of vectors", lambda x: torch.cat([x.mean((2, 3)), x[:, :2].mean((2, 3))], 1), (3, 5, 6, 7))


def _parts_of_a_cat(x: Tensor, f: nn.Module, g: nn.Module) -> tuple[Tensor, ...]:
    """Parts are outputs and read by others; slices reach over the seam between them."""
    a, b = f(x), g(x)
    both = torch.cat([a, b], 1)
    return a, both[:, 2:5], F.relu(both[:, 1:4] + a), torch.cat([both[:, 3:], b], 1), b


_function(
    "parts of a cat are read, sliced and returned",
    _parts_of_a_cat,
    (2, 4, 6, 7),
    lambda: nn.Conv2d(4, 3, 3, padding=1),
    lambda: nn.Conv2d(4, 5, 1),
)
_function("slices in a cat", lambda x, f: torch.cat([f(x)[:, 4:], f(x)[:, :4]], 1), (1, 3, 5, 6), lambda: nn.Conv2d(3, 8, 1))
_function("slice of a slice", lambda x, f: f(x)[:, 2:9][:, 1:4] + 1, (1, 3, 5, 6), lambda: nn.Conv2d(3, 12, 3, padding=1))
_function(
    "convolution on a slice",
    lambda x, f, g: g(f(x)[:, 3:7]),
    (1, 3, 5, 6),
    lambda: nn.Conv2d(3, 12, 1),
    lambda: nn.Conv2d(4, 5, 3, padding=1),
)
_function(
    "depthwise on a slice",
    lambda x, f, g: g(f(x)[:, 3:7]),
    (1, 3, 5, 26),
    lambda: nn.Conv2d(3, 12, 1),
    lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
)
_function("chunks", lambda x, f: torch.mul(*f(x).chunk(2, 1)), (2, 3, 5, 6), lambda: nn.Conv2d(3, 14, 1))

# -- element-wise --------------------------------------------------------------------------------------------------------------------


def _shaken(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def _before(act: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 19, 3, padding=1), act())


def _prelu(slopes: int) -> nn.Module:
    return _shaken(nn.PReLU(slopes))


def _silu_behind_groups(groups: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 1, groups=groups), nn.SiLU())


_ACTS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "hardtanh": lambda: nn.Hardtanh(-0.4, 0.7), "leaky relu": lambda: nn.LeakyReLU(0.2),
    "leaky relu, negative": lambda: nn.LeakyReLU(-0.3), "prelu, one slope": nn.PReLU, "prelu": partial(_prelu, 19), "silu": nn.SiLU,
    "hardswish": nn.Hardswish, "sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid, "gelu": nn.GELU, "gelu tanh": lambda: nn.GELU("tanh"),
    "tanh": nn.Tanh, "elu": lambda: nn.ELU(0.7), "mish": nn.Mish, "softplus": nn.Softplus, "softplus, beta": lambda: nn.Softplus(2.0, 3.0),
}  # fmt: skip


def _norm(channels: int) -> nn.Module:
    norm = _shaken(nn.BatchNorm2d(channels))
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


for _name, _act in _ACTS.items():
    _add(f"{_name} alone", _act, (2, 19, 5, 6))
    _add(f"{_name} behind a convolution", partial(_before, _act), (1, 3, 5, 6))
for _name, _of in {
    "exp": torch.exp,
    "abs": torch.abs,
    "neg": torch.neg,
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.5),
    "clamp": lambda x: x.clamp(-0.2, 0.9),
}.items():
    _function(_name, _of, (2, 5, 6, 7))
for _name, _slopes in (("one slope", 1), ("slopes", 7)):
    _function(f"prelu of a vector, {_name}", lambda x, f: f(x.mean((2, 3))), (3, 7, 4, 4), partial(_prelu, _slopes))
_add("batch norm alone", lambda: _norm(19), (2, 19, 5, 6))
for _groups, _wide in ((2, 62), (2, 30), (2, 14), (3, 69), (5, 85)):  # rows of channels that end inside a vector
    _add(f"{_groups} groups to {_wide} channels, silu", partial(_silu_behind_groups, _groups, _wide), (1, _wide, 6, 7))
_add("convolution, batch norm, relu", lambda: nn.Sequential(nn.Conv2d(3, 19, 3), _norm(19), nn.ReLU()), (2, 3, 5, 6))
_add("transposed, batch norm", lambda: nn.Sequential(nn.ConvTranspose2d(6, 8, 3, 2, groups=2), _norm(8)), (1, 6, 5, 6))
for _name, _pair in {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "maximum": torch.maximum, "minimum": torch.minimum}.items():
    _function(f"{_name} of two maps", lambda x, f, op=_pair: op(f(x), x), (2, 5, 6, 7), lambda: nn.Conv2d(5, 5, 3, padding=1))
    _function(f"{_name} of a map and itself", lambda x, op=_pair: op(x, x), (2, 5, 6, 7))
_function("div", lambda x, f: x / (f(x).abs() + 1), (2, 5, 6, 7), lambda: nn.Conv2d(5, 5, 1))
_function("gate per channel", lambda x, f: x * torch.sigmoid(f(x.mean((2, 3), keepdim=True))), (3, 5, 6, 7), lambda: nn.Conv2d(5, 5, 1))
_function("gate per pixel", lambda x, f: torch.sigmoid(f(x)) * x, (3, 5, 6, 7), lambda: nn.Conv2d(5, 1, 3, padding=1))
_function("gate per row", lambda x: x * F.adaptive_avg_pool2d(x, (6, 1)), (2, 5, 6, 7))
_function("gate per column", lambda x: x - F.adaptive_avg_pool2d(x, (1, 7)), (2, 5, 6, 7))
_function("row times column", lambda x: F.adaptive_avg_pool2d(x, (6, 1)) * F.adaptive_avg_pool2d(x, (1, 7)), (2, 5, 6, 7))
_function("scalars", lambda x: (3 - (x * 0.5 + 0.25) / 3) * 0.1 - 2, (2, 5, 6, 7))
_function("scalar divided by a map", lambda x: 2 / (x.abs() + 0.5), (1, 5, 6, 7), native=False)
_function("power", lambda x: (x.abs() + 0.1) ** 1.5, (1, 5, 6, 7), native=False)


class WithConstant(nn.Module):
    """x and a tensor of the model, in either order."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], first: bool = False) -> None:
        super().__init__()
        self.op, self.first = op, first
        self.constant = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x)
        return self.op(self.constant, y) if self.first else self.op(y, self.constant)


for _shape in (
    (),
    (1,),
    (6,),
    (6, 6),
    (1, 6),
    (6, 1),
    (5, 1, 1),
    (1, 6, 6),
    (5, 6, 6),
    (1, 5, 1, 1),
    (1, 1, 6, 6),
    (2, 5, 6, 6),
    (2, 1, 1, 1),
    (5, 6, 1),
):
    _shown = "x".join(map(str, _shape)) or "scalar"
    _map = (2, 5 if 5 in _shape else 6, 6, 6)
    _add(f"plus a constant of {_shown}", partial(WithConstant, torch.add, _shape), _map)
    _add(f"a constant of {_shown} minus", partial(WithConstant, torch.sub, _shape, True), _map)
_function(
    "cat with a constant",
    lambda x: torch.cat([x * 2, torch.linspace(0, 1, x.shape[0] * 2 * 42).reshape(x.shape[0], 2, 6, 7)], 1),
    (2, 5, 6, 7),
)
_function("vector plus a constant", lambda x, f: f.bias + x.mean((2, 3)), (2, 5, 6, 7), lambda: nn.Linear(5, 5))


def _shaken_norm(channels: int) -> nn.Module:
    return _shaken(nn.LayerNorm(channels, 1e-3))


def _norm_of_last(x: Tensor, norm: nn.Module) -> Tensor:
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


for _width in (1, 5, 16, 70):
    _function(f"norm over {_width} channels", _norm_of_last, (2, _width, 5, 6), partial(_shaken_norm, _width))
_function("norm over channels, then an activation", lambda x, norm: F.gelu(_norm_of_last(x, norm)), (1, 24, 5, 6), lambda: nn.LayerNorm(24))
_function("root of the sum of squares of a map", lambda x: x * torch.linalg.vector_norm(x, 2, (2, 3), keepdim=True), (2, 7, 5, 6))

# -- residuals -----------------------------------------------------------------------------------------------------------------------


def _same(k: int = 3, i: int = 5, o: int = 5) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(i, o, k, padding=k // 2)


_function("residual", lambda x, f: F.relu(f(x) + x), (2, 5, 6, 7), _same())
_function("residual before the frame", lambda x, f: F.relu(x + f(x)), (2, 5, 6, 7), _same())
_function("residual behind the activation", lambda x, f: x + F.silu(f(x)), (2, 5, 6, 7), _same())
_function("residual of the same convolution, twice", lambda x, f: f(F.relu(f(x) + x)) + f(x), (2, 5, 6, 7), _same())
_function("two residuals", lambda x, f, g: f(x) + g(x) + x, (2, 5, 6, 7), _same(), _same(1))
_function("residual from a slice", lambda x, f, g: f(x) + g(x)[:, 3:8], (2, 5, 6, 7), _same(), _same(1, 5, 12))
_function("residual from a cat", lambda x, f, g: f(x) + torch.cat([g(x), x[:, :2]], 1), (2, 5, 6, 7), _same(), _same(1, 5, 3))
_function("residual that is the convolution itself", lambda x, f: torch.add(*[f(x)] * 2), (2, 5, 6, 7), _same())
_function("residual onto a batch norm", lambda x, f, n: F.relu(n(F.relu(f(x))) + x), (2, 5, 6, 7), _same(), lambda: _norm(5))
_function(
    "depthwise with a residual and a clamp",
    lambda x, f: F.relu6(f(x) + x),
    (2, 17, 6, 7),
    lambda: nn.Conv2d(17, 17, 3, padding=1, groups=17),
)

# -- heads -------------------------------------------------------------------------------------------------------------------------

_function("linear", lambda x, f: f(x.mean((2, 3))), (3, 21, 6, 7), lambda: nn.Linear(21, 10))
_function("linear on a flat map", lambda x, f: f(torch.flatten(x, 1)), (2, 5, 4, 3), lambda: nn.Linear(60, 10))
_function("linear on a flat slice", lambda x, f: f(torch.flatten(x[:, 1:4], 1)), (2, 5, 4, 3), lambda: nn.Linear(36, 10))
_function("flat map, returned", lambda x: torch.flatten(x * 2, 1), (2, 5, 4, 3), native=False)
_function(
    "flat map, read by a linear and another",
    lambda x, f: (f(torch.flatten(x, 1)), torch.flatten(x, 1).relu()),
    (2, 5, 4, 3),
    lambda: nn.Linear(60, 10),
    native=False,
)
_function("flat pixel", lambda x, f: f(F.relu(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))), (2, 21, 4, 3), lambda: nn.Linear(21, 7))
_function(
    "two linears", lambda x, f, g: g(F.hardswish(f(x.mean((2, 3))))), (3, 21, 6, 7), lambda: nn.Linear(21, 33), lambda: nn.Linear(33, 3)
)
_function("softmax over channels", lambda x: torch.softmax(x, 1), (2, 5, 6, 7))
_function("softmax of many channels", lambda x: torch.softmax(30 * x, 1), (1, 37, 6, 7))
_function("softmax of a vector", lambda x: torch.softmax(x.mean((2, 3)), 1), (2, 5, 6, 7))
_function("softmax over columns", lambda x: torch.softmax(x, 3), (2, 5, 6, 7), native=False)

# -- ops without a rule, between native ones ---------------------------------------------------------------------------------------------

_function("sine between convolutions", lambda x, f, g: g(torch.sin(f(x))), (2, 5, 6, 7), _same(), _same(), native=False)
_function("sine into a cat", lambda x, f: torch.cat([torch.sin(f(x)), f(x), x], 1), (2, 5, 6, 7), _same(), native=False)
_function("sine of a part of a cat", lambda x, f: f(torch.sin(torch.cat([f(x), x], 1)[:, 3:8])), (2, 5, 6, 7), _same(), native=False)
_function("sine as residual", lambda x, f: F.relu(f(x) + torch.sin(x)), (2, 5, 6, 7), _same(), native=False)
_function("several results", lambda x, f: f(torch.max(f(x), dim=1, keepdim=True)[0] * x), (2, 5, 6, 7), _same(), native=False)
_function("through three dimensions", lambda x, f: f(x.flatten(2).softmax(-1).reshape(x.shape)) + x, (2, 5, 6, 7), _same(), native=False)
_function(
    "through five dimensions and a cat",
    lambda x, f: torch.cat([f(x), f(x).reshape(2, 5, 1, 6, 7).cumsum(1)[:, :, 0]], 1),
    (2, 5, 6, 7),
    _same(),
    native=False,
)
_function(
    "attention",
    lambda x: ((x.flatten(2) @ x.flatten(2).transpose(1, 2)).softmax(-1) @ x.flatten(2)).reshape(x.shape),
    (2, 5, 4, 4),
    native=False,
)
_function("group norm", lambda x, f, g: f(g(f(x))), (2, 6, 6, 7), _same(3, 6, 6), lambda: nn.GroupNorm(3, 6), native=False)
_function("empty channels", lambda x: torch.cat([x[:, :0], x], 1) + x[:, 5:].sum(), (2, 5, 6, 7), native=False)
_function("an empty result", lambda x: (x[:, :0] * 2, x * 2), (2, 5, 6, 7), native=False)
_function("integers", lambda x, f: f(x) + (x > 0).sum(1, keepdim=True).float(), (2, 5, 6, 7), _same(), native=False)
