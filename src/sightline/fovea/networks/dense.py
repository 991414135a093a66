"""Dense controls: ordinary convolutional networks of the same shape, on grids of as many samples.

They answer whether a foveated network is better for its sensor or only for its size. On log-polar grids rows are angles, so padding
wraps there. What belongs here: AlexNet and ResNet with ``nn.Conv2d``. The transformer control is in `vit`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sightline.errors import ShapeError
from sightline.fovea.networks.tables import POOL_AFTER, alexnet_rows

_Norm = Callable[[int], nn.Module]


class PolarPadder(nn.Module):
    """Pad a log-polar map (n, c, angles, radii): angles wrap, radii get zeros.

    Args:
        pad: cells on each side.
    """

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def extra_repr(self) -> str:
        """The padding."""
        return str(self.pad)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, c, angles + 2 pad, radii + 2 pad)."""
        wrapped = nn.functional.pad(inputs, (0, 0, self.pad, self.pad), mode="circular")
        return nn.functional.pad(wrapped, (self.pad, self.pad, 0, 0))


def grid_norm(name: str | None) -> _Norm | None:
    """The norm of a dense control, from the name that the foveated network's norm has.

    Args:
        name: "batch", "force_batch", "group", or "none"; norms over coordinates have no counterpart here.

    Raises:
        ShapeError: for those.
    """
    if name is None or name == "none":
        return None
    if "batch" in name:
        return nn.BatchNorm2d
    if name == "group":
        return lambda channels: nn.GroupNorm(32, channels)
    raise ShapeError(f"model.norm {name!r} is for sensors: a dense control takes batch, group or none")


class DenseAlexNet(nn.Sequential):
    """AlexNet on a grid, the control of `KNNAlexNet`: convolution, norm, ReLU, max pool after blocks 0, 1 and 4.

    Args:
        spec: shape, a name in `tables.ALEXNETS`.
        in_channels: channels of the grid.
        grid: its side (it is square).
        out_grid: side that the last average pool makes; None or -1: no such pool.
        norm: see `grid_norm`.
        polar: the grid is log-polar.
        channel_mult, k_mult: width and kernel sides.
        pool_after: indices of the blocks that end with a max pool.

    Forward: (n, in_channels, grid, grid) to (n, channels, out_grid, out_grid).
    """

    def __init__(
        self,
        spec: str = "base_lowres",
        in_channels: int = 3,
        grid: int = 64,
        out_grid: int | None = 1,
        norm: str | None = "batch",
        polar: bool = False,
        channel_mult: float = 1.0,
        k_mult: float = 1.0,
        pool_after: Sequence[int] = POOL_AFTER,
    ) -> None:
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        make_norm, channels, side = grid_norm(norm), in_channels, grid
        for index, (width, kernel, stride, pad) in enumerate(alexnet_rows(spec, channel_mult, k_mult)):
            pooled = index in pool_after
            blocks[f"conv_block_{index + 1}"] = _alexnet_block(channels, width, kernel, stride, pad, make_norm, pooled, polar)
            side = (side + 2 * (kernel // 2 if polar else pad) - kernel) // stride + 1
            side = (side - 1) // 2 + 1 if pooled else side
            channels = width
            if side < 1:
                raise ShapeError(f"a grid of side {grid} is too small for this AlexNet: block {index + 1} would have no output")
        if out_grid is not None and out_grid != -1:
            blocks["avgpool"] = nn.AdaptiveAvgPool2d(out_grid)
            side = out_grid
        super().__init__(blocks)
        self.in_channels, self.out_channels = in_channels, channels
        self.total_embed_dim = channels * side * side


def _alexnet_block(
    channels: int, width: int, kernel: int, stride: int, pad: int, norm: _Norm | None, pooled: bool, polar: bool
) -> nn.Sequential:
    layers: list[nn.Module] = [PolarPadder(kernel // 2)] if polar else []
    layers.append(nn.Conv2d(channels, width, kernel, stride, 0 if polar else pad, bias=norm is None))
    if norm is not None:
        layers.append(norm(width))
    layers.append(nn.ReLU(inplace=True))
    if pooled:
        layers += [PolarPadder(1), nn.MaxPool2d(3, 2)] if polar else [nn.MaxPool2d(3, 2, padding=1)]
    return nn.Sequential(*layers)


def _conv3x3(channels: int, width: int, stride: int, polar: bool) -> nn.Module:
    if polar:
        return nn.Sequential(PolarPadder(1), nn.Conv2d(channels, width, 3, stride, bias=False))
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)


class _Block(nn.Module):
    """What both residual blocks do with their branch; ``expansion`` times ``planes`` channels come out."""

    expansion = 1

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to (n, expansion * planes, h / stride, w / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu(self.branch(x) + identity))


class DenseBasicBlock(_Block):
    """Two 3x3 convolutions and the identity."""

    def __init__(self, channels: int, planes: int, stride: int, norm: _Norm, polar: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(channels, planes, stride, polar), norm(planes)
        self.conv2, self.bn2 = _conv3x3(planes, planes, 1, polar), norm(planes)

    def branch(self, x: Tensor) -> Tensor:
        """Without the identity."""
        return cast(Tensor, self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class DenseBottleneck(_Block):
    """1x1, 3x3 (with the stride), 1x1 to four times the channels, and the identity."""

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int, norm: _Norm, polar: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, planes, 1, bias=False), norm(planes)
        self.conv2, self.bn2 = _conv3x3(planes, planes, stride, polar), norm(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), norm(4 * planes)

    def branch(self, x: Tensor) -> Tensor:
        """Without the identity."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return cast(Tensor, self.bn3(self.conv3(x)))


class DenseResNet(nn.Module):
    """ResNet on a grid, the control of `KNNResNet`; torchvision's names.

    Args:
        depth: 18, 34 or 50.
        in_channels: channels of the grid.
        stage_stride: of stages 2 to 4; 2 as usual, 1 keeps larger maps.
        pool_stride: of the first max pool.
        out_grid: side that the last average pool makes.
        norm: see `grid_norm`.
        polar: the grid is log-polar.
        channel_mult: times the channels of the stages.

    Forward: (n, in_channels, h, w) to (n, channels * out_grid**2).
    """

    def __init__(
        self,
        depth: int = 18,
        in_channels: int = 3,
        stage_stride: int = 2,
        pool_stride: int = 2,
        out_grid: int = 1,
        norm: str | None = "batch",
        polar: bool = False,
        channel_mult: float = 1.0,
    ) -> None:
        super().__init__()
        if depth not in _RESNETS:
            raise ShapeError(f"a dense ResNet has depth {', '.join(map(str, _RESNETS))}, not {depth}")
        block, counts = _RESNETS[depth]
        make_norm = grid_norm(norm) or (lambda _: nn.Identity())
        self.in_channels = in_channels
        stem = nn.Conv2d(in_channels, 64, 7, 2, padding=0 if polar else 3, bias=False)
        self.conv1 = nn.Sequential(PolarPadder(3), stem) if polar else stem
        self.bn1 = make_norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, pool_stride, padding=0 if polar else 1)
        if polar:
            self.maxpool = nn.Sequential(PolarPadder(1), self.maxpool)
        channels = 64
        for index, count in enumerate(counts):
            planes, stride = int(channel_mult * 64 * 2**index), stage_stride if index else 1
            stage, channels = _stage(block, channels, planes, count, stride, make_norm, polar)
            setattr(self, f"layer{index + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(out_grid)
        self.out_channels = channels
        self.total_embed_dim = channels * out_grid**2
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, channels * out_grid**2)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, name)(x)
        return torch.flatten(self.avgpool(x), 1)


_RESNETS: dict[int, tuple[type[DenseBasicBlock | DenseBottleneck], Sequence[int]]] = {
    18: (DenseBasicBlock, (2, 2, 2, 2)),
    34: (DenseBasicBlock, (3, 4, 6, 3)),
    50: (DenseBottleneck, (3, 4, 6, 3)),
}


def _stage(
    block: type[DenseBasicBlock | DenseBottleneck], channels: int, planes: int, count: int, stride: int, norm: _Norm, polar: bool
) -> tuple[nn.Sequential, int]:
    blocks = []
    for index in range(count):
        step, width = stride if index == 0 else 1, planes * block.expansion
        one = block(channels, planes, step, norm, polar)
        if step != 1 or channels != width:
            one.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, step, bias=False), norm(width))
        blocks.append(one)
        channels = width
    return nn.Sequential(*blocks), channels
