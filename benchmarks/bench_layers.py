"""One convolution at a time: dense PyTorch, dense oneDNN with prepacked weights, and Sightline at six densities.

Layers of ResNet-50, MobileNetV2 and VGG at 224x224, and some at larger frames. Ours is timed as inside a program: the step's sites
are given, so listing them, computing and publishing are timed, finding them is not (bench_networks.py has the whole). Every site counts
as changed. "F.conv2d" reorders its weight on every call; "prepacked" does not, and is the peer to compare with.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from harness import Contestant, blob_mask, main, must_agree, parser, race
from torch import Tensor, nn

import sightline as sl

DENSITIES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01)


@dataclass(frozen=True)
class Layer:
    """One convolution; `size` is that of its input."""

    name: str
    cin: int
    cout: int
    kernel: int
    size: tuple[int, int]
    stride: int = 1
    groups: int = 1


LAYERS = (
    Layer("r50 3x3 64@56", 64, 64, 3, (56, 56)),
    Layer("r50 3x3 128@28", 128, 128, 3, (28, 28)),
    Layer("r50 3x3 256@14", 256, 256, 3, (14, 14)),
    Layer("r50 3x3 512@7", 512, 512, 3, (7, 7)),
    Layer("r50 3x3s2 128@56", 128, 128, 3, (56, 56), 2),
    Layer("r50 1x1 64-256@56", 64, 256, 1, (56, 56)),
    Layer("r50 1x1 256-64@56", 256, 64, 1, (56, 56)),
    Layer("r50 1x1 1024-256@14", 1024, 256, 1, (14, 14)),
    Layer("r50 1x1 512-2048@7", 512, 2048, 1, (7, 7)),
    Layer("stem 7x7s2 3-64@224", 3, 64, 7, (224, 224), 2),
    Layer("vgg 3x3 64@224", 64, 64, 3, (224, 224)),
    Layer("vgg 3x3 512@28", 512, 512, 3, (28, 28)),
    Layer("mbv2 stem 3x3s2 3-32@224", 3, 32, 3, (224, 224), 2),
    Layer("mbv2 1x1 16-96@112", 16, 96, 1, (112, 112)),
    Layer("mbv2 1x1 24-144@56", 24, 144, 1, (56, 56)),
    Layer("mbv2 1x1 144-24@56", 144, 24, 1, (56, 56)),
    Layer("mbv2 1x1 32-192@28", 32, 192, 1, (28, 28)),
    Layer("mbv2 1x1 384-64@14", 384, 64, 1, (14, 14)),
    Layer("mbv2 dw 144@56", 144, 144, 3, (56, 56), 1, 144),
    Layer("mbv2 dw s2 96@112", 96, 96, 3, (112, 112), 2, 96),
    Layer("mbv2 dw 384@14", 384, 384, 3, (14, 14), 1, 384),
    Layer("vga 3x3 64@120x160", 64, 64, 3, (120, 160)),
    Layer("vga 3x3 256@30x40", 256, 256, 3, (30, 40)),
    Layer("vga dw 144@120x160", 144, 144, 3, (120, 160), 1, 144),
    Layer("1080p 3x3 64@270x480", 64, 64, 3, (270, 480)),
    Layer("1080p 1x1 64-256@270x480", 64, 256, 1, (270, 480)),
)
QUICK = (Layer("quick 3x3 32@16", 32, 32, 3, (16, 16)), Layer("quick dw 32@16", 32, 32, 3, (16, 16), 1, 32))


def prepacked(conv: nn.Conv2d, x: Tensor) -> Any:
    """A function that runs the layer in oneDNN with its weight already in oneDNN's own layout."""
    geometry = [list(conv.padding), list(conv.stride), list(conv.dilation)]  # type: ignore[arg-type]
    packed = torch._C._nn.mkldnn_reorder_conv2d_weight(conv.weight.to_mkldnn(), *geometry, conv.groups, list(x.shape))
    pointwise = torch.ops.mkldnn._convolution_pointwise
    return lambda: pointwise(x, packed, conv.bias, *geometry, conv.groups, "none", [], "")


def contestants(layer: Layer) -> tuple[list[Contestant], float]:
    """The dense peers and ours at every density, and our largest relative error."""
    torch.manual_seed(0)
    conv = nn.Conv2d(layer.cin, layer.cout, layer.kernel, layer.stride, layer.kernel // 2, groups=layer.groups).eval()
    frame = torch.randn(1, layer.cin, *layer.size)
    x = frame.to(memory_format=torch.channels_last)
    weight = conv.weight.to(memory_format=torch.channels_last)
    want = conv(frame)
    packed = prepacked(conv, x)
    must_agree(f"{layer.name}: prepacked oneDNN", packed(), want)
    rivals = [
        Contestant("F.conv2d", lambda: F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)),
        Contestant("prepacked", packed),
    ]
    stream = sl.stream(conv, backend="native")
    stream(frame)
    executor: Any = stream._executor
    step = executor.plan.steps[-1]
    held = executor.value(step.output)
    native_id = executor._lowered.step_ids[step]
    worst = 0.0
    for density in DENSITIES:
        mask = blob_mask(*want.shape[2:], density)
        where = mask[None, None].expand_as(want)

        def prepare(mask: Tensor = mask) -> None:
            executor.force_sites(step, mask)

        def spoil(mask: Tensor = mask) -> None:
            held[0, 0].masked_fill_(mask, 1e30)  # so that every site has changed, as in a real frame

        prepare()
        held.fill_(1e30)
        executor._state.run(native_id, native_id + 1)
        worst = max(worst, must_agree(f"{layer.name} at density {density}", held[where], want[where]))
        if not (held[~where] == 1e30).all():
            must_agree(f"{layer.name} at density {density}: sites outside were written", torch.ones(1), torch.zeros(1))
        rivals.append(
            Contestant(
                f"sightline {density:g}",
                lambda: executor._state.run(native_id, native_id + 1),
                prepare=prepare,
                before=spoil,
                extra={"density": density, "sites": int(mask.sum())},
            )
        )
    return rivals, worst


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    cases = []
    for layer in QUICK if arguments.quick else LAYERS:
        if arguments.only not in layer.name:
            continue
        rivals, error = contestants(layer)
        rounds, burst = (3, 1) if arguments.quick else (15, 4)
        rows = race(rivals, threads=arguments.threads, rounds=rounds, burst=burst, budget=20)
        h, w = (-(-s // layer.stride) for s in layer.size)
        macs = h * w * layer.cout * layer.cin // layer.groups * layer.kernel**2
        cases.append({"case": layer.name, "macs": macs, "relative_error": error, "rows": rows})
        summarise(layer.name, macs, rows)
    return cases, []


def summarise(name: str, macs: int, rows: list[dict[str, Any]]) -> None:
    """Prints a line per layer: GFLOP/s of the dense runs, then speed-ups over the prepacked peer."""
    time = {row["contestant"]: row["seconds"]["median"] for row in rows}
    dense = " ".join(f"{2e-9 * macs / time[key]:5.0f}" for key in ("F.conv2d", "prepacked", "sightline 1"))
    ratios = " ".join(f"{time['prepacked'] / time[f'sightline {d:g}']:6.2f}" for d in DENSITIES)
    print(f"{name:<26} {dense}  |  {ratios}", flush=True)


if __name__ == "__main__":
    sys.exit(main(parser("layers", __doc__ or "").parse_args(), measure))
