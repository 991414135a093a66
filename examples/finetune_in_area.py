"""Fine-tune a small network inside an area only: the same gradients as dense training there, for a fraction of the work.

A three-layer network has learned to pass images through. Now it shall darken and blur them, but only what lies inside a box matters.
Each layer gets the area that the next one reads, so inside the box the network is exact, and forward and backward cost what the
areas cost.

    python examples/finetune_in_area.py --steps 60
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl

SIZE = (96, 128)
BOX = (30, 40, 62, 84)  # y0, x0, y1, x1: about a ninth of the image


def network() -> nn.Sequential:
    """The dense network; nearly the identity, with a little noise for the weights to grow from."""
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 3, 3, padding=1)]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(0.5)
                assert layer.bias is not None
                layer.bias.zero_()
                for channel in range(3):
                    layer.weight[channel, channel, 1, 1] += 1
    return nn.Sequential(*layers)


def focus(dense: nn.Sequential, area: sl.Sites) -> nn.Sequential:
    """The same network, sharing all parameters, whose layers compute only what the area needs."""
    layers: list[nn.Module] = []
    for layer in reversed(dense):
        if isinstance(layer, nn.Conv2d):
            layers.append(sl.nn.FocusedConv2d.from_dense(layer, area=area))
            area = area.grow(1)  # what a 3x3 window reads
        else:
            layers.append(layer)
    return nn.Sequential(*reversed(layers))


def wanted(images: Tensor) -> Tensor:
    """What the network shall learn: darker, and blurred."""
    return 0.7 * F.avg_pool2d(images, 3, stride=1, padding=1)


def train(model: nn.Module, inside: Tensor, steps: int) -> tuple[list[float], float]:
    """Trains in place; returns the loss at every step and the CPU seconds that all steps took."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    random = torch.Generator().manual_seed(1)
    losses, began = [], time.thread_time()
    for _ in range(steps):
        images = F.interpolate(torch.rand(2, 3, 24, 32, generator=random), SIZE, mode="bilinear")
        loss = (model(images) - wanted(images)).square().mul(inside).sum() / inside.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses, time.thread_time() - began


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains the focused network and, from the same start, the dense one; returns the figures that it prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args(arguments).steps
    torch.manual_seed(0)
    area = sl.Sites.from_boxes(sl.Grid(1, *SIZE), [BOX])
    inside = area.mask[:, None].expand(2, 3, -1, -1).float()

    dense = network()
    start = {name: value.clone() for name, value in dense.state_dict().items()}
    losses, seconds = train(focus(dense, area), inside, steps)
    tuned = {name: value.clone() for name, value in dense.state_dict().items()}  # shared: the dense network has learned
    dense.load_state_dict(start)
    dense_losses, dense_seconds = train(dense, inside, steps)

    apart = max(float((tuned[name] - value).abs().max()) for name, value in dense.state_dict().items())
    figures = {
        "area": area.density, "first loss": losses[0], "last loss": losses[-1], "dense last loss": dense_losses[-1],
        "weights apart": apart, "seconds": seconds, "dense seconds": dense_seconds,
    }  # fmt: skip
    print(f"area: {area.density:.0%} of the image")
    print(f"loss inside the area: {losses[0]:.5f} -> {losses[-1]:.5f} (dense training: {dense_losses[-1]:.5f})")
    print(f"largest difference of a weight from dense training: {apart:.2g}")
    print(f"CPU seconds for {steps} steps: {seconds:.2f}, dense {dense_seconds:.2f}")
    return figures


if __name__ == "__main__":
    main()
