"""Operators at chosen sites, forward and backward: dense PyTorch in both memory formats, ours natively and gathered in PyTorch.

Sites are blobs. Each contestant is timed once forward and once backward (all gradients that exist), in one interleaved run; the speed-up
is that of both together against the faster dense one. `channel sum` is compared with the patches that a user would make instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from harness import Contestant, blob_mask, main, must_agree, parser, race
from torch import Tensor

from sightline import ops
from sightline.ops import native

DENSITIES = (1.0, 0.5, 0.25, 0.1, 0.05)
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@dataclass(frozen=True)
class Layer:
    """One operator; `x` and `weight` are shapes, weight None for pooling."""

    name: str
    kind: str
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def dense(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """PyTorch's operator."""
        if self.kind == "max":
            return F.max_pool2d(x, **self.options)
        if self.kind == "avg":
            return F.avg_pool2d(x, **self.options)
        assert weight is not None
        return (F.conv_transpose2d if self.kind == "transposed" else F.conv2d)(x, weight, bias, **self.options)

    def at(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mask: Tensor) -> Tensor:
        """Ours."""
        if self.kind in {"max", "avg"}:
            pool: Callable[..., Tensor] = ops.max_pool2d_at if self.kind == "max" else ops.avg_pool2d_at
            return pool(x, sites=mask, **self.options)
        assert weight is not None
        conv: Callable[..., Tensor] = ops.conv_transpose2d_at if self.kind == "transposed" else ops.conv2d_at
        return conv(x, weight, bias, sites=mask, **self.options)


LAYERS = (
    Layer("conv 3x3 64@120x160", "conv", (1, 64, 120, 160), (64, 64, 3, 3), {"padding": 1}),
    Layer("conv 3x3 256@30x40", "conv", (1, 256, 30, 40), (256, 256, 3, 3), {"padding": 1}),
    Layer("conv 1x1 64-256@120x160", "conv", (1, 64, 120, 160), (256, 64, 1, 1), {}),
    Layer("depthwise 3x3 144@120x160", "conv", (1, 144, 120, 160), (144, 1, 3, 3), {"padding": 1, "groups": 144}),
    Layer("transposed 2x2s2 64@60x80", "transposed", (1, 64, 60, 80), (64, 64, 2, 2), {"stride": 2}),
    Layer("max pool 3s2 64@120x160", "max", (1, 64, 120, 160), None, {"kernel_size": 3, "stride": 2, "padding": 1}),
    Layer("avg pool 2 64@120x160", "avg", (1, 64, 120, 160), None, {"kernel_size": 2}),
)
QUICK = (
    Layer("quick conv 3x3 16@16x20", "conv", (1, 16, 16, 20), (16, 16, 3, 3), {"padding": 1}),
    Layer("quick max pool 2 16@16x20", "max", (1, 16, 16, 20), None, {"kernel_size": 2}),
)


class Twice:
    """A function of leaf tensors, run forward and then backward as two contestants that take turns."""

    def __init__(self, name: str, function: Callable[..., Tensor], given: Sequence[Tensor], grad: Tensor, extra: dict[str, Any]) -> None:
        self.name, self.function, self.grad, self.extra = name, function, grad, extra
        self.given = [value.detach().requires_grad_() for value in given]
        self.output: Tensor | None = None

    def forward(self) -> Tensor:
        """Runs it, keeping the graph for `backward`."""
        with torch.enable_grad():
            self.output = self.function(*self.given)
        return self.output

    def backward(self) -> tuple[Tensor, ...]:
        """Gradients with respect to all arguments."""
        assert self.output is not None
        found = torch.autograd.grad(self.output, self.given, self.grad)
        self.output = None
        return found

    def contestants(self) -> list[Contestant]:
        """Both directions; the graph for each backward is made untimed."""
        return [
            Contestant(f"{self.name}: forward", self.forward, extra={**self.extra, "phase": "forward"}),
            Contestant(f"{self.name}: backward", self.backward, before=self.forward, extra={**self.extra, "phase": "backward"}),
        ]


@contextmanager
def without_kernels() -> Iterator[None]:
    """Inside, the operators run in PyTorch."""
    usable = native.usable
    native.usable = lambda *_: False
    try:
        yield
    finally:
        native.usable = usable


class Fallback(Twice):
    """`Twice` without compiled kernels."""

    def forward(self) -> Tensor:
        """As in `Twice`."""
        with without_kernels():
            return super().forward()

    def backward(self) -> tuple[Tensor, ...]:
        """As in `Twice`."""
        with without_kernels():
            return super().backward()


def runs(layer: Layer, quick: bool) -> tuple[list[Twice], float]:
    """All contestants of a layer, each checked against the dense results, and the largest relative error."""
    torch.manual_seed(0)
    x, weight = torch.randn(layer.x), None if layer.weight is None else torch.randn(layer.weight) * 0.1
    bias = None if weight is None else torch.randn(weight.shape[1 if layer.kind == "transposed" else 0])
    given = [value for value in (x, weight, bias) if value is not None]
    y = layer.dense(x, weight, bias)
    grad = torch.randn_like(y)
    found, worst = [], 0.0

    def full(*values: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return values[0], *(values[1:] if weight is not None else (None, None))  # type: ignore[return-value]

    for form, memory in FORMATS.items():
        laid = [value.contiguous(memory_format=memory) if value.dim() == 4 else value for value in given]
        found.append(Twice(f"dense {form}", lambda *v: layer.dense(*full(*v)), laid, grad.contiguous(memory_format=memory), {"density": 1}))
    for density in DENSITIES[::3] if quick else DENSITIES:
        mask = blob_mask(*y.shape[2:], density)
        want = Twice("", lambda *v, m=mask: torch.where(m, layer.dense(*full(*v)), 0), given, grad, {})
        results = [want.forward().detach(), *want.backward()]
        for name, form, kind in (("ours", "contiguous", Twice), ("ours", "channels last", Twice), ("gathered", "contiguous", Fallback)):
            laid = [x.contiguous(memory_format=FORMATS[form]), *given[1:]]
            last = grad.contiguous(memory_format=FORMATS[form])
            extra = {"density": density, "sites": int(mask.sum())}
            run = kind(f"{name} {form} {density:g}", lambda *v, m=mask: layer.at(*full(*v), m), laid, last, extra)
            for index, (got, right) in enumerate(zip([run.forward().detach(), *run.backward()], results, strict=True)):
                worst = max(worst, must_agree(f"{layer.name}, {run.name}, result {index}", got, right))
            found.append(run)
    return found, worst


def channel_sums(quick: bool) -> tuple[str, int, list[Twice], float]:
    """The windows of a map times one filter: ours, and by patches."""
    shape, k = ((1, 8, 16, 20), 3) if quick else ((1, 32, 120, 160), 5)
    x, weight = torch.randn(shape), torch.randn(1, shape[1], k, k)

    def patches(x: Tensor, weight: Tensor) -> Tensor:
        found = F.unfold(x, k).unflatten(1, (x.shape[1], k * k))
        return (found * weight.flatten(2).transpose(0, 1)[:, 0, :, None]).sum(1).transpose(1, 2).unflatten(2, (k, k))[:, None]

    want = patches(x, weight)
    grad = torch.randn_like(want)
    given = (Twice("dense patches", patches, (x, weight), grad, {}), Twice("ours", ops.channel_sum_conv2d, (x, weight), grad, {}),
             Fallback("gathered", ops.channel_sum_conv2d, (x, weight), grad, {}))  # fmt: skip
    results = [given[0].forward().detach(), *given[0].backward()]
    worst = 0.0
    for run in given[1:]:
        for got, right in zip([run.forward().detach(), *run.backward()], results, strict=True):
            worst = max(worst, must_agree(f"channel sum, {run.name}", got, right))
    return f"channel sum {k}x{k} {shape[1]}@{shape[2]}x{shape[3]}", want.numel() * shape[1], list(given), worst


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    cases = []
    rounds, burst = (3, 1) if arguments.quick else (15, 3)
    with torch.enable_grad():
        for layer in QUICK if arguments.quick else LAYERS:
            if arguments.only not in layer.name:
                continue
            twice, error = runs(layer, arguments.quick)
            y = layer.dense(torch.empty(layer.x), *((torch.empty(layer.weight), None) if layer.weight else (None, None)))
            kernel = layer.options.get("kernel_size", 1)
            macs = y.numel() * (kernel**2 if layer.weight is None else layer.weight[1] * layer.weight[2] * layer.weight[3])
            cases.append(race_case(layer.name, macs, twice, error, arguments, rounds, burst))
        name = "channel sum"
        if arguments.only in name:
            cases.append(race_case(*channel_sums(arguments.quick), arguments, rounds, burst))
    return cases, ["Backward counts the gradients of the map, the weight and the bias, where the operator has them."]


def race_case(
    name: str, macs: int, twice: Sequence[Twice], error: float, arguments: argparse.Namespace, rounds: int, burst: int
) -> dict[str, Any]:
    """Times one case and prints a line per contestant."""
    rows = race([c for run in twice for c in run.contestants()], threads=arguments.threads, rounds=rounds, burst=burst, budget=60)
    time = {row["contestant"]: row["seconds"]["median"] for row in rows}
    both = {run.name: time[f"{run.name}: forward"] + time[f"{run.name}: backward"] for run in twice}
    dense = min(value for key, value in both.items() if key.startswith("dense"))
    print(f"\n{name}", flush=True)
    for key, value in both.items():
        forward, backward = time[f"{key}: forward"] * 1e3, time[f"{key}: backward"] * 1e3
        print(f"  {key:<28} forward {forward:8.3f} ms  backward {backward:8.3f} ms  x {dense / value:6.2f}", flush=True)
    speedup = {key: dense / value for key, value in both.items()}
    return {"case": name, "macs": macs, "relative_error": error, "speedup_forward_and_backward": speedup, "rows": rows}


if __name__ == "__main__":
    sys.exit(main(parser("ops", __doc__ or "").parse_args(), measure))
