"""One table of geometries for the operators at chosen sites, and how to run a case in any type, layout and backend.

What belongs here: cases, masks, inputs whose unread values are NaN. What does not: assertions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline import ops


@dataclass(frozen=True)
class Case:
    """One operator on maps of one size.

    Attributes:
        name: unique.
        kind: "conv", "transposed", "max" or "avg".
        x: shape (n, c, h, w).
        weight: shape, or None for pooling.
        options: as the operator takes them (kernel_size for pooling).
    """

    name: str
    kind: str
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def dense(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The dense operator of torch."""
        options = dict(self.options)
        if self.kind == "max":
            return F.max_pool2d(x, **options)  # type: ignore[no-any-return]
        if self.kind == "avg":
            return F.avg_pool2d(x, **options)
        assert weight is not None
        if self.kind == "transposed":
            return F.conv_transpose2d(x, weight, bias, **options)
        mode = options.pop("padding_mode", "zeros")
        if mode != "zeros":
            y, z = options.pop("padding")
            x = F.pad(x, (z, z, y, y), mode)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
            return F.conv2d(x, weight, bias, **options)

    def at(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mask: Tensor, held: Tensor | None = None) -> Tensor:
        """Ours."""
        if self.kind in ("max", "avg"):
            pool: Callable[..., Tensor] = ops.max_pool2d_at if self.kind == "max" else ops.avg_pool2d_at
            return pool(x, sites=mask, held=held, **self.options)
        assert weight is not None
        conv: Callable[..., Tensor] = ops.conv2d_at if self.kind == "conv" else ops.conv_transpose2d_at
        return conv(x, weight, bias, sites=mask, held=held, **self.options)

    def tensors(self, seed: int = 0) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """float64 (x, weight, bias)."""
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64).float().double()  # the same values in float32

        if self.weight is None:
            return normal(*self.x), None, None
        channels = self.weight[1] * self.options.get("groups", 1) if self.kind == "transposed" else self.weight[0]
        return normal(*self.x), normal(*self.weight), normal(channels)


CASES: list[Case] = []


def _conv(name: str, cin: int, cout: int, k: Any, size: tuple[int, int] = (9, 11), n: int = 1, **options: Any) -> None:
    kh, kw = k if isinstance(k, tuple) else (k, k)
    CASES.append(Case(f"conv {name}", "conv", (n, cin, *size), (cout, cin // options.get("groups", 1), kh, kw), options))


def _transposed(name: str, cin: int, cout: int, k: Any, size: tuple[int, int] = (6, 7), n: int = 1, **options: Any) -> None:
    kh, kw = k if isinstance(k, tuple) else (k, k)
    CASES.append(Case(f"transposed {name}", "transposed", (n, cin, *size), (cin, cout // options.get("groups", 1), kh, kw), options))


def _pool(kind: str, name: str, c: int, size: tuple[int, int], n: int = 1, **options: Any) -> None:
    CASES.append(Case(f"{kind} {name}", kind, (n, c, *size), None, options))


_conv("3x3", 4, 6, 3, padding=1)
_conv("1x1", 5, 7, 1)
_conv("wide, one channel in", 1, 3, 3, (5, 40), padding=1)
_conv("wide, three channels in, stride 2", 3, 8, 7, (15, 70), stride=2, padding=3)
_conv("64 to 64 channels", 64, 64, 3, (6, 20), padding=1)
_conv("65 to 81 channels", 65, 81, 3, (5, 6), padding=1)
_conv("130 to 100 channels, 1x1", 130, 100, 1, (5, 6))
_conv("one channel out", 17, 1, 3, padding=1)
_conv("batch of 3, stride 2", 4, 6, 5, n=3, padding=2, stride=2)
_conv("strides 3 and 4 with rests", 4, 6, 3, (14, 17), stride=(3, 4), padding=(0, 2))
_conv("stride beyond the kernel", 4, 6, 2, (13, 14), stride=5)
_conv("dilation 2 and 3", 4, 6, 3, (11, 17), dilation=(2, 3), padding=(2, 3))
_conv("same, even kernel", 4, 6, (4, 2), padding="same")
_conv("same, dilation", 4, 6, 3, padding="same", dilation=2)
_conv("valid", 4, 6, (2, 5), padding="valid")
_conv("padding beyond the kernel", 3, 4, 3, (4, 5), padding=5)
_conv("kernel larger than the map", 3, 4, 7, (3, 2), padding=3)
_conv("one pixel", 3, 4, 3, (1, 1), padding=1)
_conv("maps of one row", 3, 4, (1, 3), (1, 6), n=3, padding=(0, 1))
_conv("maps of one pixel", 3, 4, 1, (1, 1), n=4)
_conv("2 groups", 6, 10, 3, padding=1, groups=2)
_conv("4 groups of 20", 80, 40, 3, (5, 6), padding=1, groups=4, n=2)
_conv("3 groups of one channel in", 3, 9, 3, padding=1, groups=3)
_conv("depthwise", 6, 6, 3, n=2, padding=1, groups=6)
_conv("depthwise 40, stride 2, dilation 2", 40, 40, 3, stride=2, padding=2, dilation=2, groups=40)
_conv("reflect", 4, 6, 5, padding=(2, 1), padding_mode="reflect")
_conv("replicate, stride 2", 4, 6, 3, padding=(2, 3), stride=2, padding_mode="replicate")
_conv("circular, depthwise", 5, 5, 3, padding=(1, 1), groups=5, padding_mode="circular")
_transposed("stride 2", 4, 6, 4, stride=2, padding=1)
_transposed("stride 2, output padding", 5, 3, 3, stride=2, padding=1, output_padding=1, n=2)
_transposed("strides 3 and 1, dilation", 4, 6, (3, 2), stride=(3, 1), dilation=(2, 1))
_transposed("stride beyond the kernel", 4, 3, 2, stride=4)
_transposed("stride 1, padding", 33, 20, 3, padding=2)
_transposed("2 groups", 6, 10, 3, stride=2, groups=2)
_transposed("depthwise", 7, 7, 3, stride=2, groups=7, output_padding=1)
_pool("max", "2", 5, (8, 10), kernel_size=2)
_pool("max", "3, stride 2, padding 1", 33, (9, 12), n=2, kernel_size=3, stride=2, padding=1)
_pool("max", "dilation, ceil", 4, (11, 12), kernel_size=(2, 3), stride=(2, 3), padding=(1, 1), dilation=2, ceil_mode=True)
_pool("max", "overlapping 5", 70, (8, 9), kernel_size=5, stride=1, padding=2)
_pool("avg", "2", 5, (8, 10), kernel_size=2)
_pool("avg", "3, padding, ceil", 33, (9, 12), n=2, kernel_size=3, stride=2, padding=1, ceil_mode=True)
_pool("avg", "padding not counted", 4, (9, 11), kernel_size=(3, 2), stride=2, padding=1, count_include_pad=False)
_pool("avg", "divisor", 4, (9, 11), kernel_size=3, stride=1, divisor_override=5)

LAYOUTS = ("contiguous", "channels_last", "cropped", "channels_last cropped", "every other")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout, with NaN in the memory between them."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    n, c, h, w = x.shape
    if layout == "every other":
        big = x.new_full((n, 2 * c, 2 * h, 2 * w), torch.nan)
        view = big[:, ::2, 1::2, ::2]
    else:
        big = x.new_full((n, c + 1, h + 3, w + 2), torch.nan)
        if layout == "channels_last cropped":
            big = big.contiguous(memory_format=torch.channels_last)
        view = big[:, 1:, 2 : 2 + h, 1 : 1 + w]
    view.copy_(x)
    return view


def random_mask(like: Tensor, density: float, seed: int) -> Tensor:
    """Bool (n, h, w) for an output (n, c, h, w): scattered sites and, in half of it, whole stretches."""
    n, _, h, w = like.shape
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, h, w, generator=random) < density
    if density < 1:
        mask[:, h // 2 :, : w // 2] |= torch.rand(n, 1, 1, generator=random) < density
    return mask


def read_by(case: Case, x: Tensor, weight: Tensor | None, mask: Tensor) -> Tensor:
    """Bool (n, 1, h, w): inputs that some site reads, found by differentiating the dense operator (an average for a maximum)."""
    probe = torch.zeros_like(x).requires_grad_()
    ones = None if weight is None else torch.ones_like(weight)
    options = {k: v for k, v in case.options.items() if k not in {"dilation", "kernel_size"}}
    if case.kind == "max":  # every cell of the window: a convolution with ones
        k, d = case.options["kernel_size"], case.options.get("dilation", 1)
        kh, kw = k if isinstance(k, tuple) else (k, k)
        stride, padding = options.get("stride", k), options.get("padding", 0)
        found = F.conv2d(F.pad(probe, (0, 8, 0, 8)), probe.new_ones(x.shape[1], 1, kh, kw), None, stride, padding, d, x.shape[1])
        found = found[:, :, : mask.shape[1], : mask.shape[2]]
    else:
        found = case.dense(probe, ones, None)
    (reads,) = torch.autograd.grad(found, probe, mask[:, None].expand_as(found).to(found.dtype))
    return (reads != 0).any(1, keepdim=True)
