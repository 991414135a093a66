"""Random networks and random videos, each from a seed.

What belongs here: generators. A network is a list of calls on earlier values, drawn so that every call fits; each op that has a native
step comes up, and now and then one without a rule, so that torch steps stand between native ones. What does not: assertions.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MOST_VALUES = 40_000  # of one map: networks stay tiny
Call = tuple[str, Callable[..., Tensor], list[int]]  # what is printed, function of (module list, operands), numbers of the operands


def _weights(module: nn.Module) -> nn.Module:
    """Livelier than torch's own: values neither die nor explode over a dozen layers."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias") or parameter.dim() == 1:
            nn.init.normal_(parameter, 0, 0.3)
        else:
            fan = parameter[0].numel()
            nn.init.normal_(parameter, 0, (1.5 / max(fan, 1)) ** 0.5)
    return module


class RandomNetwork(nn.Module):
    """A network drawn from a seed; ``str(network)`` lists its calls."""

    def __init__(self, seed: int, calls: int | None = None) -> None:
        super().__init__()
        rng = random.Random(seed)
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self.calls: list[Call] = []
        h, w = (rng.randint(1, 2) if rng.random() < 0.07 else rng.randint(1, 18) for _ in range(2))
        self.shape = (rng.choice([1, 1, 1, 2, 3]), rng.randint(1, 6), h, w)
        with torch.no_grad():
            self._draw(rng, rng.randint(2, 10) if calls is None else calls)
        torch.random.set_rng_state(generator_state)
        self.eval()

    def _draw(self, rng: random.Random, wanted: int) -> None:
        values = [torch.randn(self.shape)]
        for _ in range(wanted * 12):
            if len(self.calls) >= wanted:
                break
            # mostly the newest value, so that networks are deep
            index = len(values) - 1 if rng.random() < 0.6 else rng.randrange(len(values))
            before = len(self.layers)
            call = self._propose(rng, values, index)
            value = self._try(call, values) if call is not None else None
            if value is None or call is None:
                del self.layers[before:]
                continue
            self.calls.append(call)
            values.append(value)
        read = {index for _, _, operands in self.calls for index in operands}
        loose = [index for index in range(len(values)) if index not in read]
        extra = [index for index in range(1, len(values)) if rng.random() < 0.1]
        self.results = sorted({*loose, *extra})

    def _try(self, call: Call, values: list[Tensor]) -> Tensor | None:
        try:
            result = call[1](self.layers, *(values[i] for i in call[2]))
        except (RuntimeError, ValueError):
            return None  # does not fit: draw again
        fits = 0 < result.numel() <= _MOST_VALUES and bool(result.isfinite().all()) and float(result.abs().max()) < 1e3
        return result if fits else None

    def _propose(self, rng: random.Random, values: list[Tensor], index: int) -> Call | None:
        x = values[index]
        if x.dim() == 2:
            return _vector_call(rng, x, self.layers, index)
        if x.dim() != 4:
            return None
        roll = rng.random()
        if roll < 0.12 and self.layers:  # a module called again
            which = rng.randrange(len(self.layers))
            return f"layer {which} again", lambda layers, v: layers[which](v), [index]
        if roll < 0.34:
            return _two_operands(rng, values, index)
        make = rng.choices([make for make, _ in _MAKERS], [weight for _, weight in _MAKERS])[0]
        return make(rng, x, self.layers, index)

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for _, function, operands in self.calls:
            values.append(function(self.layers, *(values[i] for i in operands)))
        outputs = tuple(values[i] for i in self.results)
        return outputs[0] if len(outputs) == 1 else outputs

    def __str__(self) -> str:
        lines = [f"v0: frame {self.shape}"] + [f"v{i + 1}: {text} of {operands}" for i, (text, _, operands) in enumerate(self.calls)]
        return "\n".join([*lines, f"returns {self.results}"])


# -- calls with one operand ---------------------------------------------------------------------------------------------------------


def _layer(layers: nn.ModuleList, module: nn.Module, index: int) -> Call:
    layers.append(_weights(module))
    number = len(layers) - 1
    return f"{number}: {module}", lambda held, x: held[number](x), [index]


def _plain(text: str, function: Callable[[Tensor], Tensor], index: int) -> Call:
    return text, lambda _, x: function(x), [index]


def _size(rng: random.Random) -> int:
    return rng.choice([1, 1, 2, 3, 3, 3, 4, 5, 5, 7, 11])


def _pair(rng: random.Random, draw: Callable[[random.Random], int]) -> tuple[int, int]:
    first = draw(rng)
    return (first, first) if rng.random() < 0.6 else (first, draw(rng))


def _channels(rng: random.Random) -> int:
    return rng.choice([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 31, 33, 48, 66, 100])


def _conv(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    cin = x.shape[1]
    dividers = [g for g in range(1, cin + 1) if cin % g == 0]
    groups = rng.choice([1, 1, 1, cin, rng.choice(dividers)])
    cout = cin if groups == cin and rng.random() < 0.6 else groups * rng.randint(1, 4) if groups > 1 else _channels(rng)
    kernel, dilation = _pair(rng, _size), _pair(rng, lambda r: r.choice([1, 1, 1, 2, 3]))
    mode: Any = rng.choice(["zeros"] * 4 + ["reflect", "replicate", "circular"])
    half = [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
    padding = rng.choice([(half[0], half[1]), (half[0], half[1]), (0, 0), (half[0] + 1, half[1]), (rng.randint(0, 3), rng.randint(0, 3))])
    stride = _pair(rng, lambda r: r.choice([1, 1, 1, 2, 2, 3]))
    return _layer(
        layers,
        nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups, bias=rng.random() < 0.8, padding_mode=mode),
        index,
    )


def _block(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    """Widen, convolve depthwise, narrow: what MobileNets are made of; either end may be missing, and another may follow."""
    c, parts = x.shape[1], []
    for _ in range(rng.choice([1, 1, 2])):
        widens, narrows = rng.choice([(True, True), (True, True), (True, False), (False, True)])
        wide = min(100, c * rng.choice([2, 3, 6])) if widens else c
        first = rng.choice([1, 1, 3])
        kernel, dilation = _pair(rng, _size), _pair(rng, lambda r: r.choice([1, 1, 1, 2]))
        stride = _pair(rng, lambda r: r.choice([1, 1, 2, 3]))
        half = [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
        act = rng.choice([nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.PReLU, nn.Identity])
        parts += [nn.Conv2d(c, wide, first, rng.choice([1, 1, 2]), first // 2), nn.BatchNorm2d(wide), act()] if widens else []
        parts += [nn.Conv2d(wide, wide, kernel, stride, (half[0], half[1]), dilation, groups=wide, bias=rng.random() < 0.5), act()]
        out = rng.choice([c, _channels(rng)])
        parts += [nn.Conv2d(wide, out, 1)] if narrows else []
        c = out if narrows else wide
    return _layer(layers, nn.Sequential(*parts), index)


def _same_conv(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    """Keeps the map, so that residuals and second calls of one module find a partner."""
    c, k = x.shape[1], rng.choice([1, 3, 5])
    return _layer(layers, nn.Conv2d(c, c, k, padding=k // 2, groups=rng.choice([1, 1, c])), index)


def _transposed(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    cin = x.shape[1]
    groups = rng.choice([1, 1, cin, rng.choice([g for g in range(1, cin + 1) if cin % g == 0])])
    kernel, stride = _pair(rng, lambda r: r.choice([1, 2, 3, 4, 5])), _pair(rng, lambda r: r.choice([1, 2, 2, 3]))
    dilation = _pair(rng, lambda r: r.choice([1, 1, 1, 2]))
    padding = (rng.randint(0, kernel[0] - 1), rng.randint(0, kernel[1] - 1))
    extra: Any = tuple(rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    cout = groups * rng.choice([1, 2, 3, 5])
    return _layer(layers, nn.ConvTranspose2d(cin, cout, kernel, stride, padding, extra, groups, rng.random() < 0.8, dilation), index)


def _residual(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    """A block with a shortcut around it; the activation before the addition, after it, or nowhere."""
    c, k = x.shape[1], rng.choice([1, 3])
    layers.append(_weights(nn.Conv2d(c, c, k, padding=k // 2, groups=rng.choice([1, c]))))
    acts: list[Callable[[Tensor], Tensor]] = [F.relu, F.silu, F.hardswish, torch.tanh]
    number, act, last = len(layers) - 1, rng.choice(acts), rng.choice([0, 1, 1, 2])
    if last == 0:
        return f"{number}: {layers[number]} around which a shortcut", lambda held, v: v + held[number](v), [index]
    if last == 1:
        return (
            f"{getattr(act, '__name__', act)} of {number}: {layers[number]} plus shortcut",
            lambda held, v: act(held[number](v) + v),
            [index],
        )
    return f"shortcut plus {getattr(act, '__name__', act)} of {number}: {layers[number]}", lambda held, v: v + act(held[number](v)), [index]


def _norm(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    norm = nn.BatchNorm2d(x.shape[1])
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.5, 2)
    call = _layer(layers, norm, index)
    norm.weight.uniform_(0.5, 1.5)
    return call


def _act(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    makers: list[Callable[[], nn.Module]] = [
        nn.ReLU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.GELU, lambda: nn.GELU("tanh"), nn.Tanh,
        lambda: nn.ELU(0.8), nn.Mish, nn.Softplus, lambda: nn.LeakyReLU(0.1), lambda: nn.Hardtanh(-0.5, 0.5), nn.PReLU,
        lambda: nn.PReLU(x.shape[1]),
    ]  # fmt: skip
    if rng.random() < 0.3:
        text, function = rng.choice(
            [
                ("exp of tanh", lambda v: torch.exp(torch.tanh(v))),
                ("sqrt", lambda v: torch.sqrt(v.abs() + 0.5)),
                ("abs", torch.abs),
                ("neg", torch.neg),
                ("scalars", lambda v: (1.5 - v * 0.5) / 3 + 0.25),
                ("x * sigmoid(x)", lambda v: v * torch.sigmoid(v)),
                ("power", lambda v: (v.abs() + 0.5) ** 0.7),
            ]
        )
        return _plain(text, function, index)
    return _layer(layers, rng.choice(makers)(), index)


def _pool(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    kernel = _pair(rng, lambda r: r.choice([1, 2, 3, 5]))
    stride, padding = _pair(rng, lambda r: r.choice([1, 2, 3])), (rng.randint(0, kernel[0] // 2), rng.randint(0, kernel[1] // 2))
    ceil = rng.random() < 0.4
    kind = rng.random()
    if kind < 0.4:
        return _layer(layers, nn.MaxPool2d(kernel, stride, padding, rng.choice([1, 1, 2]), ceil_mode=ceil), index)
    if kind < 0.7:
        divisor = rng.choice([None, None, None, 3])
        return _layer(layers, nn.AvgPool2d(kernel, stride, padding, ceil, rng.random() < 0.5, divisor), index)
    size = (rng.randint(1, x.shape[2] + 2), rng.randint(1, x.shape[3] + 2))
    return _layer(layers, rng.choice([nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])(size), index)


def _resample(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    mode = rng.choice(["nearest", "bilinear", "bicubic"])
    corners = None if mode == "nearest" else rng.random() < 0.5
    if rng.random() < 0.5:
        size = (rng.randint(1, 20), rng.randint(1, 20))
        return _plain(f"{mode} to {size}, {corners}", lambda v: F.interpolate(v, size, mode=mode, align_corners=corners), index)
    scale: Any = rng.choice([2.0, 2.0, 1.5, 0.6, (2.0, 1.0), (1.3, 2.7)])
    return _plain(f"{mode} by {scale}, {corners}", lambda v: F.interpolate(v, scale_factor=scale, mode=mode, align_corners=corners), index)


def _structure(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    c, h, w = x.shape[1:]
    kind = rng.randrange(8)
    if kind == 0:
        start = rng.randrange(c)
        stop = rng.randint(start + 1, c)
        every = rng.choice([1, 1, 2, 3])
        return _plain(f"channels {start}:{stop}:{every}", lambda v: v[:, start:stop:every], index)
    if kind == 1:
        y, dx, step = rng.randrange(h), rng.randrange(w), rng.randint(1, 3)
        return _plain(f"rows {y}::{step}, columns {dx}:", lambda v: v[:, :, y::step, dx:], index)
    if kind == 2:
        return _pad(rng, x, layers, index)
    if kind == 3:
        groups = rng.choice([g for g in range(1, c + 1) if c % g == 0])
        return _plain(f"channel shuffle {groups}", lambda v: F.channel_shuffle(v, groups), index)
    if kind == 4:
        factors = [r for r in (2, 3) if c % (r * r) == 0]
        if factors:
            factor = rng.choice(factors)
            return _plain(f"pixel shuffle {factor}", lambda v: F.pixel_shuffle(v, factor), index)
    if kind in {4, 5}:
        factors = [r for r in (2, 3) if h % r == 0 and w % r == 0]
        if factors:
            factor = rng.choice(factors)
            return _plain(f"pixel unshuffle {factor}", lambda v: F.pixel_unshuffle(v, factor), index)
    if kind == 6:
        return _spread(rng, x, layers, index)
    half = c // 2
    return _plain("halves multiplied", lambda v: v[:, :half] * v[:, half : 2 * half], index)


def _pad(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    sides, mode = [rng.randint(-1, 3) for _ in range(4)], rng.choice(["constant"] * 3 + ["reflect", "replicate", "circular"])
    if mode != "constant" or rng.random() < 0.5:
        sides = [max(side, 0) for side in sides]
    value = rng.choice([0.0, 0.5]) if mode == "constant" else None
    return _plain(f"pad {sides} {mode} {value}", lambda v: F.pad(v, sides, mode, value), index)


def _spread(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    """Channels enough for a pixel shuffle by 3 (or 2), and the shuffle."""
    factor = rng.choice([2, 3])
    layers.append(_weights(nn.Conv2d(x.shape[1], factor * factor * rng.randint(1, 3), rng.choice([1, 3]), padding=rng.randint(0, 1))))
    number = len(layers) - 1
    return f"{number}: {layers[number]}, pixel shuffle {factor}", lambda held, v: F.pixel_shuffle(held[number](v), factor), [index]


class _Constant(nn.Module):
    """An operand that does not depend on the frame, held as a parameter."""

    def __init__(self, shape: tuple[int, ...], text: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(shape).uniform_(0.5, 1.5))
        self.text, self.function = text, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.value)

    def extra_repr(self) -> str:
        return f"{self.text}, {tuple(self.value.shape)}"


def _constant(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    c, h, w = x.shape[1:]
    shape = rng.choice([(c, 1, 1), (1, c, 1, 1), (1, 1, h, w), (1, c, h, w), (h, w), (1, 1, 1, 1), (c, h, 1)])
    text, function = rng.choice(_BINARY)
    layers.append(_Constant(shape, text, function if rng.random() < 0.5 else lambda a, b: function(b, a)))
    number = len(layers) - 1
    return f"{number}: {layers[number]}", lambda held, v: held[number](v), [index]


def _gate(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    """Squeeze and excite."""
    layers.append(_weights(nn.Conv2d(x.shape[1], x.shape[1], 1)))
    number = len(layers) - 1
    squeezes: list[Callable[[Tensor], Tensor]] = [lambda v: v.mean((2, 3), keepdim=True), lambda v: F.adaptive_avg_pool2d(v, 1)]
    gates: list[Callable[[Tensor], Tensor]] = [torch.sigmoid, F.hardsigmoid]
    squeeze, gate = rng.choice(squeezes), rng.choice(gates)
    return f"squeeze and excite with {number}", lambda held, v: v * gate(held[number](squeeze(v))), [index]


def _head(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    c, h, w = x.shape[1:]
    if rng.random() < 0.4 and c * h * w <= 600:
        layers.append(_weights(nn.Linear(c * h * w, rng.choice([1, 5, 18]))))
        number = len(layers) - 1
        return f"flatten, linear {number}", lambda held, v: held[number](torch.flatten(v, 1)), [index]
    return rng.choice(
        [_plain("mean", lambda v: v.mean((2, 3)), index), _plain("pool, flatten", lambda v: F.adaptive_avg_pool2d(v, 1).flatten(1), index)]
    )


def _opaque(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    """Ops without a rule, through two to five dimensions."""
    n, c, h, w = x.shape
    text, function = rng.choice(
        [
            ("sine", torch.sin),
            ("flip", lambda v: v.flip(3)),
            ("roll", lambda v: v.roll((1, -1), (2, 3))),
            ("cumulated", lambda v: v.cumsum(1) / 3),
            ("largest and where", lambda v: v.max(1, keepdim=True)[0] + v),
            ("layer norm", lambda v: F.layer_norm(v.permute(0, 2, 3, 1), (c,), eps=0.1).permute(0, 3, 1, 2)),
            ("group norm", lambda v: F.group_norm(v, 1, eps=0.1)),
            ("softmax over channels", lambda v: v.softmax(1)),
            (
                "attention",
                lambda v: (
                    (v.flatten(2).transpose(1, 2).softmax(-1) @ v.flatten(2)[:, :, :c].transpose(1, 2)[:, :c])
                    .transpose(1, 2)
                    .reshape(n, -1, h, w)
                ),
            ),
            ("five dimensions", lambda v: v.reshape(n, 1, c, h, w).cos().squeeze(1)),
            ("transposed", lambda v: v.transpose(2, 3)),
            ("sorted", lambda v: v.sort(1)[0]),
        ]
    )
    return _plain(text, function, index)


def _vector_call(rng: random.Random, x: Tensor, layers: nn.ModuleList, index: int) -> Call:
    kind = rng.randrange(6)
    if kind < 2:
        return _layer(layers, nn.Linear(x.shape[1], rng.choice([1, 4, 10, 17])), index)
    if kind == 5:
        return _plain("scalars", lambda v: 0.5 - v / 3, index)
    if kind == 2:
        return _layer(layers, rng.choice([nn.ReLU(), nn.PReLU(), nn.PReLU(x.shape[1]), nn.SiLU(), nn.Hardswish()]), index)
    if kind == 3:
        return _plain("to a map", lambda v: v[:, :, None, None].expand(-1, -1, 3, 2), index)
    return _plain("softmax, scaled", lambda v: v.softmax(1) * 2 + 1, index)


_MAKERS: list[tuple[Callable[[random.Random, Tensor, nn.ModuleList, int], Call], int]] = [
    (_conv, 9), (_same_conv, 5), (_block, 3), (_transposed, 3), (_norm, 3), (_act, 9), (_pool, 5), (_resample, 4), (_structure, 8),
    (_gate, 2),     (_head, 3), (_opaque, 2), (_constant, 2), (_residual, 2), (_pad, 2),
]  # fmt: skip


# -- calls with several operands ------------------------------------------------------------------------------------------------------

_BINARY: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = [
    ("add", torch.add),
    ("add", torch.add),
    ("add", torch.add),
    ("relu of sum", lambda a, b: F.relu(a + b)),
    ("sub", torch.sub),
    ("mul", lambda a, b: a * b),
    ("maximum", torch.maximum),
    ("minimum", torch.minimum),
    ("div", lambda a, b: a / (b.abs() + 1)),
]


def _two_operands(rng: random.Random, values: list[Tensor], index: int) -> Call | None:
    x = values[index]
    same = [i for i, v in enumerate(values) if v.shape == x.shape]
    grid = [i for i, v in enumerate(values) if v.dim() == 4 and v.shape[0] == x.shape[0] and v.shape[2:] == x.shape[2:]]
    if rng.random() < 0.45:
        parts = [rng.choice(grid) for _ in range(rng.randint(1, 3))] + [index]
        rng.shuffle(parts)
        return "cat", lambda _, *v: torch.cat(v, 1), parts
    if rng.random() < 0.2:
        dim = rng.choice([2, 3])
        return f"cat along {dim}", lambda _, *v: torch.cat(v, dim), [rng.choice(same), index]
    partners = same if rng.random() < 0.8 else [i for i in range(len(values)) if values[i].dim() == 4]
    other = rng.choice(partners)
    text, function = rng.choice(_BINARY)
    operands = [index, other] if rng.random() < 0.5 else [other, index]
    return text, lambda _, a, b: function(a, b), operands


# -- videos ----------------------------------------------------------------------------------------------------------------------------


def video(shape: tuple[int, int, int, int], frames: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Frames of noise on which a patch or two move; the last frame of a longer one repeats the one before.

    Args:
        shape: (n, c, h, w). Patches lie in one batch element at a time, as a rule.
        frames: number of frames.
        seed: of the random numbers.
        dtype: of the frames.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    current = torch.randn(shape, generator=generator)
    result = [current.to(dtype)]
    for _ in range(frames - 1):
        current = current.clone()
        for _ in range(rng.choice([1, 1, 2])):
            high, wide = rng.randint(1, max(1, h // 3)), rng.randint(1, max(1, w // 3))
            y, x = rng.randint(0, h - high), rng.randint(0, w - wide)
            image = rng.randrange(n)
            fresh = torch.randn((c, high, wide), generator=generator)
            channels = slice(None) if rng.random() < 0.8 else slice(rng.randrange(c), None)
            current[image, channels, y : y + high, x : x + wide] = fresh[channels]
        result.append(current.to(dtype))
    return result
