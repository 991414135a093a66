"""The truth about receptive fields: back-propagation in float64 through the model's own forward.

Inside `positive`, every function that a model calls keeps what it reads but becomes a mean (or a sum) with positive factors, so that an
input cell has a gradient above 0 exactly if the layer reads it: activations and norms pass on, maxima average, products add. With a
strip axis, convolutions and pools work along that axis alone and all channels see the mean, which makes a whole network cheap
(a strip of some thousand cells) and leaves its fields along that axis as they are.

What belongs here: the truth. What does not: anything of `sightline.fields`, which is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Span = tuple[int, int]

_PASS = {
    F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.silu, F.hardswish, F.hardsigmoid, F.gelu, F.sigmoid, F.tanh, F.elu, F.mish, F.dropout,
    F.batch_norm, F.prelu, F.softplus, torch.relu, torch.sigmoid, torch.tanh, torch.relu_, F.local_response_norm, Tensor.sigmoid,
    Tensor.relu, Tensor.tanh, Tensor.clamp, torch.clamp, F.alpha_dropout, F.feature_dropout if hasattr(F, "feature_dropout") else F.dropout,
}  # fmt: skip
_PRODUCTS = {torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class positive(TorchFunctionMode):  # noqa: N801 - used as a context
    """See the module.

    Args:
        axis: 0 or 1 to work on a strip along rows or columns, None for whole maps.
        ignore_gates: products of a map with a map of one cell leave the first as it is.
    """

    def __init__(self, axis: int | None = None, *, ignore_gates: bool = False) -> None:
        super().__init__()
        self.axis = axis
        self.ignore_gates = ignore_gates

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PASS:
            return args[0]
        if func in _PRODUCTS and len(args) == 2:
            return self._product(*args)
        handler = _TABLE.get(func)
        return func(*args, **kwargs) if handler is None else handler(self, *args, **kwargs)

    def _product(self, a: Any, b: Any) -> Any:
        if not (isinstance(a, Tensor) and a.requires_grad) or not (isinstance(b, Tensor) and b.requires_grad):
            first, other = (a, b) if isinstance(a, Tensor) and a.requires_grad else (b, a)
            if not isinstance(other, Tensor) or not isinstance(first, Tensor) or not first.requires_grad:
                return torch.mul(a, b) if isinstance(a, Tensor) or isinstance(b, Tensor) else a * b
            return first + torch.zeros_like(other, dtype=first.dtype)
        if self.ignore_gates and a.dim() == b.dim() == 4:
            cells = a.shape[2] * a.shape[3], b.shape[2] * b.shape[3]
            if cells[0] != cells[1] and 1 in cells:
                map_ = a if cells[0] > 1 else b
                return map_ + torch.zeros(torch.broadcast_shapes(a.shape, b.shape), dtype=map_.dtype)
        return a + b

    def pair(self, value: Any, idle: int) -> tuple[int, int]:
        """A setting per axis; on a strip the other axis is idle."""
        pair = _pair(value)
        return pair if self.axis is None else (pair[0], idle) if self.axis == 0 else (idle, pair[1])


def _conv(
    strip: positive, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    del bias
    kernel = strip.pair(tuple(weight.shape[2:]), 1)
    dilation = strip.pair(dilation, 1)
    if isinstance(padding, str):
        spans = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        x = F.pad(x, [spans[1] // 2, spans[1] - spans[1] // 2, spans[0] // 2, spans[0] - spans[0] // 2])
        padding = 0
    n, c, h, w = x.shape
    folded = x.reshape(n, groups, c // groups, h, w).mean(2)
    ones = torch.full((groups, 1, *kernel), 1 / (kernel[0] * kernel[1]), dtype=x.dtype)
    y = torch.conv2d(folded, ones, None, strip.pair(stride, 1), strip.pair(padding, 0), dilation, groups)
    out = weight.shape[0]
    return y[:, :, None].expand(n, groups, out // groups, *y.shape[2:]).reshape(n, out, *y.shape[2:]).clone()  # changed in place later


def _transposed(
    strip: positive, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    del bias
    kernel = strip.pair(tuple(weight.shape[2:]), 1)
    n, c, h, w = x.shape
    folded = x.reshape(n, groups, c // groups, h, w).mean(2)
    ones = torch.full((groups, 1, *kernel), 1.0, dtype=x.dtype)
    y = torch.conv_transpose2d(
        folded, ones, None, strip.pair(stride, 1), strip.pair(padding, 0), strip.pair(output_padding, 0), groups, strip.pair(dilation, 1)
    )
    out = weight.shape[1]
    return y[:, :, None].expand(n, groups, out, *y.shape[2:]).reshape(n, groups * out, *y.shape[2:]).clone()


def _max_pool(
    strip: positive, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False, **_: Any
) -> Tensor:
    c = x.shape[1]
    stride = kernel_size if stride is None or stride == [] else stride
    kernel, stride, padding = strip.pair(kernel_size, 1), strip.pair(stride, 1), strip.pair(padding, 0)
    if ceil_mode:
        return F.avg_pool2d(x, kernel, stride, padding, ceil_mode=True)
    ones = torch.full((c, 1, *kernel), 1 / (kernel[0] * kernel[1]), dtype=x.dtype)
    return torch.conv2d(x, ones, None, stride, padding, strip.pair(dilation, 1), c)


def _avg_pool(
    strip: positive, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, *_: Any, **__: Any
) -> Tensor:
    stride = kernel_size if stride is None or stride == [] else stride
    return torch._C._nn.avg_pool2d(x, strip.pair(kernel_size, 1), strip.pair(stride, 1), strip.pair(padding, 0), ceil_mode)


def _adaptive(strip: positive, x: Tensor, output_size: Any, **_: Any) -> Tensor:
    size = _pair(output_size)
    return torch._C._nn.adaptive_avg_pool2d(x, size if strip.axis is None else ((size[0], 1) if strip.axis == 0 else (1, size[1])))


def _linear(strip: positive, x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    del strip, bias
    return x.mean(-1, keepdim=True).expand(*x.shape[:-1], weight.shape[0]).clone()


def _softmax(strip: positive, x: Tensor, dim: int = -1, **_: Any) -> Tensor:
    del strip
    return x.mean(dim, keepdim=True).expand_as(x)


def _pad(strip: positive, x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor:
    del value
    pad = list(pad)
    if strip.axis == 0 and len(pad) >= 4:
        pad[:2] = [0, 0]
    if strip.axis == 1 and len(pad) >= 4:
        pad[2:4] = [0, 0]
    return torch._C._nn.pad(x, pad, mode, 0.0 if mode == "constant" else None)


def _layer_norm(strip: positive, x: Tensor, normalized_shape: Any, *_: Any, **__: Any) -> Tensor:
    del strip
    dims = list(range(x.dim() - len(normalized_shape), x.dim()))
    return x + x.mean(dims, keepdim=True)


def _spatial_norm(strip: positive, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x if strip.ignore_gates else x + x.mean(list(range(1, x.dim())), keepdim=True)


def _matmul(strip: positive, a: Tensor, b: Tensor) -> Tensor:
    del strip
    if not a.requires_grad or not b.requires_grad:
        return torch.matmul(a if a.requires_grad else torch.ones_like(a), b if b.requires_grad else torch.ones_like(b))
    return torch.matmul(a, torch.ones_like(b)) + torch.matmul(torch.ones_like(a), b)


_TABLE: dict[Any, Callable[..., Any]] = {
    F.conv2d: _conv, torch.conv2d: _conv, F.conv_transpose2d: _transposed, F.max_pool2d: _max_pool, torch.max_pool2d: _max_pool,
    torch._jit_internal.boolean_dispatch: _max_pool, F.avg_pool2d: _avg_pool, F.adaptive_avg_pool2d: _adaptive,
    F.adaptive_max_pool2d: _adaptive, F.linear: _linear, F.softmax: _softmax, Tensor.softmax: _softmax, torch.softmax: _softmax,
    F.pad: _pad, F.layer_norm: _layer_norm, F.group_norm: _spatial_norm, F.instance_norm: _spatial_norm, torch.matmul: _matmul,
    Tensor.matmul: _matmul, Tensor.__matmul__: _matmul, torch.bmm: _matmul,
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What back-propagation says of one convolution along one axis; size None: the box reaches the border however long the strip is."""

    size: int | None
    stride: int
    start: int


@contextmanager
def _recording(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Results of all convolutions by call-site name: the module path, ":2" appended for its second call."""
    seen: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, result: Tensor) -> None:
            counts[name] = counts.get(name, 0) + 1
            seen[name if counts[name] == 1 else f"{name}:{counts[name]}"] = result

        return hook

    convs = [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    handles = [module.register_forward_hook(note(name)) for name, module in convs]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def strip_truth(
    model: nn.Module, axis: int, *, ignore_gates: bool = False, length: int = 512, longest: int = 8192, most: int = 10**6
) -> dict[str, Truth]:
    """Size, stride and start of every convolution along one axis.

    Args:
        model: any; run in eval mode on a strip, weights without effect.
        axis: 0 rows, 1 columns.
        ignore_gates: see `positive`.
        length: first length of the strip; doubled until boxes are far from its ends and no longer change.
        longest: last length; boxes that still come near the ends are endless.
        most: number of convolutions, evenly spread and the last among them; the rest are left out.
    """
    found: dict[str, Truth] = {}
    before: dict[str, Truth] = {}
    model = model.eval()
    while True:
        size = (length, 1) if axis == 0 else (1, length)
        x = torch.ones(2, 3, *size, dtype=torch.float64, requires_grad=True)
        with _recording(model) as layers, positive(axis, ignore_gates=ignore_gates), torch.enable_grad():
            model(x)
        step = -(-len(layers) // most)
        layers = dict(list(layers.items())[::-1][::step])
        now = {name: _truth(_spans(y, x, axis), y.shape[2 + axis], length) for name, y in layers.items() if name not in found}
        found |= {name: truth for name, truth in now.items() if length >= longest or (truth.size and truth == before.get(name))}
        length, before = 2 * length, now
        if found.keys() >= now.keys() or length > longest:
            return found


def _spans(y: Tensor, x: Tensor, axis: int) -> list[Span]:
    """Boxes of the unit in the middle and of the next one: one in each of the two samples."""
    middle = y.shape[2 + axis] // 2
    seed = torch.zeros_like(y)
    for sample in range(2):
        seed[sample].select(1 + axis, min(middle + sample, y.shape[2 + axis] - 1)).fill_(1)
    (gradient,) = torch.autograd.grad(y, x, seed, retain_graph=True)
    rows = gradient.sum((1, 3 - axis)) != 0
    return [(int(row.nonzero()[0]), int(row.nonzero()[-1]) + 1) for row in rows]


def _truth(spans: list[Span], count: int, length: int) -> Truth:
    (lo, hi), (after, _) = spans
    if lo < length // 8 or hi > length - length // 8:
        return Truth(None, 0, 0)
    return Truth(hi - lo, after - lo, lo - (count // 2) * (after - lo))


def boxes(run: Callable[[Tensor], Tensor], x: Tensor, unit: tuple[int, int]) -> tuple[int, int, int, int]:
    """Input cells (y0, x0, y1, x1) that one unit of a map reads, all its channels together; all zeros for none.

    Args:
        run: gives the map (1, c, h, w); called inside `positive` by the caller.
        x: float64 (1, c, h, w) that requires a gradient.
        unit: (row, col).
    """
    y = run(x)
    if not y.requires_grad:
        return 0, 0, 0, 0
    (gradient,) = torch.autograd.grad(y[0, :, unit[0], unit[1]].sum(), x, retain_graph=True, allow_unused=True)
    if gradient is None:
        return 0, 0, 0, 0
    rows, columns = (gradient[0].abs().sum((0, 2)) != 0).nonzero(), (gradient[0].abs().sum((0, 1)) != 0).nonzero()
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
