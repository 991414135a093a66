"""ResNet on a sensor: `KNNResNet` and its two residual blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.fovea.layers import KNNPool, get_norm
from sightline.fovea.networks.alexnet import average_pool
from sightline.fovea.networks.ladder import Ladder, Rung, reference_side
from sightline.fovea.networks.parts import knn_conv_class
from sightline.fovea.sensor import SensorGrid

_Device = torch.device | str | None
_Conv = Callable[..., nn.Module]

LAYERS: dict[int, tuple[str, tuple[int, ...]]] = {
    9: ("basic", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
}
"""Blocks and their numbers per stage, by depth."""


class _ResidualBlock(nn.Module):
    """The residual blocks' common half: sensors, convolutions with norms, and the way around.

    Args:
        in_channels: channels that come in.
        out_channels: channels of the narrow convolutions; ``expansion`` times as many come out.
        k: neighbours of the spatial convolutions.
        in_res: rings of the sensor that comes in; not used where resources are matched.
        stride: of the block.
        fov, cmf_a, style, conv_layer, cart_res, norm_type, arch_flag, sample_cortex, device, auto_match_cart_resources,
            isotropic_plotting_type, fov_type, radius_norm, ref_frame_mult, field_geometry, ties: as in `KNNAlexNetBlock`; convolutions of
            one neighbour have one cell, whatever ``ref_frame_mult`` is.

    Forward: (B, in_channels, N_in) to (B, expansion * out_channels, N_out).
    """

    expansion: ClassVar[int] = 1
    conv_classes: ClassVar[Any] = staticmethod(knn_conv_class)
    sensor_class: ClassVar[Any] = SensorGrid

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        k: int,
        in_res: int,
        stride: int,
        fov: float,
        cmf_a: float,
        style: str = "isotropic",
        conv_layer: str | _Conv = "default",
        cart_res: int | None = None,
        norm_type: str | None = "batch",
        arch_flag: str | None = "",
        sample_cortex: bool | str = True,
        device: _Device = None,
        auto_match_cart_resources: int = 0,
        isotropic_plotting_type: str = "v1like",
        fov_type: str = "circular",
        radius_norm: float = 2.0,
        ref_frame_mult: float = 1,
        field_geometry: str = "planar",
        *,
        ties: str = "stable",
        ladder: Ladder | None = None,
        rung: Rung | None = None,
    ) -> None:
        super().__init__()
        if ref_frame_mult != 1 and arch_flag:
            raise ConfigError("arch_flag and ref_frame_mult both set the side of reference kernels: give one of them")
        ladder = ladder or Ladder(
            fov, cmf_a, style, field_geometry, fov_type, radius_norm, isotropic_plotting_type, auto_match_cart_resources, ties, device,
            type(self).sensor_class,
        )  # fmt: skip
        rung = rung or ladder.start(in_res if cart_res is None or not auto_match_cart_resources else cart_res)
        below = ladder.below(rung, stride)
        self.in_coords, self.out_coords, self.out_cart_res = rung.sensor, below.sensor, below.cart_res
        self.rung = below
        make = type(self).conv_classes(conv_layer) if isinstance(conv_layer, str) else conv_layer
        shared: dict[str, Any] = {"sample_cortex": sample_cortex, "ties": ties, "device": device}

        def conv(channels: int, width: int, taps: int, source: SensorGrid, target: SensorGrid) -> nn.Module:
            side = reference_side(taps, None if ref_frame_mult == 1 or taps <= 1 else ref_frame_mult, arch_flag)
            return make(channels, width, taps, source, target, side=side, **shared)

        def norm(sensor: SensorGrid, width: int) -> nn.Module:
            return get_norm(norm_type or "none", len(sensor), width, device=device) or nn.Identity()

        self.build(conv, norm, in_channels, out_channels, k)
        width = out_channels * self.expansion
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != width:
            self.downsample = nn.Sequential(conv(in_channels, width, 1, self.in_coords, self.out_coords), norm(self.out_coords, width))
        self.relu = nn.ReLU(inplace=True)

    def build(self, conv: Callable[..., nn.Module], norm: Callable[..., nn.Module], channels: int, width: int, k: int) -> None:
        """Make the block's own convolutions and norms."""
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        """The block without the way around."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, N_in) to (B, expansion * out_channels, N_out)."""
        identity = x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu(self.branch(x) + identity))


class KNNResNetBasicBlock(_ResidualBlock):
    """Two convolutions of k neighbours, the first with the stride, and the way around them."""

    def build(self, conv: Callable[..., nn.Module], norm: Callable[..., nn.Module], channels: int, width: int, k: int) -> None:
        """Make the block's own convolutions and norms."""
        self.conv1 = conv(channels, width, k, self.in_coords, self.out_coords)
        self.norm1 = norm(self.out_coords, width)
        self.conv2 = conv(width, width, k, self.out_coords, self.out_coords)
        self.norm2 = norm(self.out_coords, width)

    def branch(self, x: Tensor) -> Tensor:
        """The block without the way around."""
        return cast(Tensor, self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))))


class KNNResNetBottleneck(_ResidualBlock):
    """One neighbour to fewer channels, k neighbours with the stride, one neighbour to four times as many, and the way around."""

    expansion: ClassVar[int] = 4

    def build(self, conv: Callable[..., nn.Module], norm: Callable[..., nn.Module], channels: int, width: int, k: int) -> None:
        """Make the block's own convolutions and norms."""
        self.conv1 = conv(channels, width, 1, self.in_coords, self.in_coords)
        self.norm1 = norm(self.in_coords, width)
        self.conv2 = conv(width, width, k, self.in_coords, self.out_coords)
        self.norm2 = norm(self.out_coords, width)
        self.conv3 = conv(width, 4 * width, 1, self.out_coords, self.out_coords)
        self.norm3 = norm(self.out_coords, 4 * width)

    def branch(self, x: Tensor) -> Tensor:
        """The block without the way around."""
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        return cast(Tensor, self.norm3(self.conv3(x)))


class KNNResNet(nn.Module):
    """ResNet whose convolutions and pools read nearest neighbours on a foveated sensor.

    Args:
        block: `KNNResNetBasicBlock` or `KNNResNetBottleneck`.
        layers: blocks in each of the four stages (64, 128, 256 and 512 channels).
        in_conv_stride, in_pool_stride: of the stem's convolution and max pool.
        stem_kernel_size: the stem reads its square of neighbours.
        fov, cmf_a: of the sensor, degrees.
        in_res: side of the square image that the first sensor is matched to, or its rings without matching.
        out_res: side of the grid that the last average pool is matched to; None or -1: no such pool.
        conv_layer: of the blocks: "default", "dwsep", or a class with the constructor of `KNNConv`. The stem is always `KNNConv`.
        pool_layer: class of the pools.
        num_classes: classes of a linear layer on everything that is left; None: features are returned.
        style, norm_type, arch_flag, sample_cortex, device, auto_match_cart_resources, isotropic_plotting_type, fov_type, radius_norm,
            ref_frame_mult, field_geometry, ties: as in `KNNAlexNetBlock`.
        in_channels: channels of the samples.

    Forward: (B, in_channels, N) to (B, num_classes), or features (B, 512 * expansion, N_out).

    Where the sensor of a stage has fewer points than a convolution has neighbours, it reads all there are, so parameter shapes depend
    on the sensor: at ``in_res=64`` the last stage has 2 points.

    Source: fovi; names and shapes of parameters are that library's.

    Example:
        >>> net = KNNResNet(layers=[1, 1, 1, 1], in_res=32, auto_match_cart_resources=1, in_conv_stride=1, num_classes=5)
        >>> net(torch.rand(2, 3, len(net.in_coords))).shape
        torch.Size([2, 5])
    """

    conv_classes: ClassVar[Any] = staticmethod(knn_conv_class)
    sensor_class: ClassVar[Any] = SensorGrid
    blocks: ClassVar[dict[str, type[_ResidualBlock]]] = {"basic": KNNResNetBasicBlock, "bottleneck": KNNResNetBottleneck}

    def __init__(
        self,
        block: type[_ResidualBlock] = KNNResNetBasicBlock,
        layers: Sequence[int] = (2, 2, 2, 2),
        in_conv_stride: int = 2,
        in_pool_stride: int = 2,
        stem_kernel_size: int = 7,
        fov: float = 16,
        cmf_a: float = 0.5,
        in_res: int = 64,
        out_res: int | None = 1,
        style: str = "isotropic",
        conv_layer: str | _Conv = "default",
        pool_layer: type[KNNPool] = KNNPool,
        norm_type: str | None = "batch",
        arch_flag: str | None = "",
        sample_cortex: bool | str = True,
        device: _Device = None,
        auto_match_cart_resources: int = 0,
        num_classes: int | None = None,
        isotropic_plotting_type: str = "v1like",
        fov_type: str = "circular",
        radius_norm: float = 2.0,
        ref_frame_mult: float = 1,
        field_geometry: str = "planar",
        *,
        ties: str = "stable",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if stem_kernel_size < 1:
            raise ConfigError(f"stem_kernel_size must be at least 1, not {stem_kernel_size}")
        if len(layers) != 4:
            raise ConfigError(f"layers must have a number of blocks for each of the 4 stages, not {len(layers)}")
        ladder = Ladder(
            fov, cmf_a, style, field_geometry, fov_type, radius_norm, isotropic_plotting_type, auto_match_cart_resources, ties, device,
            type(self).sensor_class,
        )  # fmt: skip
        first = ladder.start(in_res)
        stem, pooled = (rung := ladder.below(first, in_conv_stride)), ladder.below(rung, in_pool_stride)
        self.in_coords, self.in_channels = first.sensor, in_channels
        shared: dict[str, Any] = {"sample_cortex": sample_cortex, "ties": ties, "device": device}
        side = None if ref_frame_mult == 1 else reference_side(stem_kernel_size**2, ref_frame_mult)
        self.conv1 = type(self).conv_classes("default")(
            in_channels, 64, stem_kernel_size**2, first.sensor, stem.sensor, side=side, **shared
        )
        self.bn1 = get_norm(norm_type or "none", len(stem.sensor), 64, device=device) or nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = pool_layer(9, stem.sensor, pooled.sensor, mode="max", **shared)
        options: dict[str, Any] = {
            "fov": fov, "cmf_a": cmf_a, "style": style, "conv_layer": conv_layer, "norm_type": norm_type, "arch_flag": arch_flag,
            "sample_cortex": sample_cortex, "device": device, "ref_frame_mult": ref_frame_mult, "ties": ties, "ladder": ladder,
        }  # fmt: skip
        channels, rung = 64, pooled
        for index, count in enumerate(layers):
            blocks: list[_ResidualBlock] = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(channels, 64 * 2**index, 9, in_res, stride, rung=rung, **options))
                channels, rung = 64 * 2**index * block.expansion, blocks[-1].rung
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        self.avgpool: nn.Module | None = None
        if out_res is not None and out_res != -1:
            self.avgpool = average_pool(ladder, rung, out_res, pool_layer, sample_cortex, device)
            rung = Rung(self.avgpool.out_coords, out_res)
        self.out_coords, self.out_channels, self.num_classes = rung.sensor, channels, num_classes
        self.total_embed_dim = channels * len(self.out_coords)
        if num_classes is not None:
            self.fc = nn.Linear(self.total_embed_dim, num_classes, device=device)

    @classmethod
    def of_depth(cls, depth: int, **options: Any) -> KNNResNet:
        """The ResNet of a depth: 9, 18, 34 or 50.

        Args:
            depth: see there.
            options: further arguments of the constructor.
        """
        if depth not in LAYERS:
            raise ConfigError(f"a KNNResNet has depth {', '.join(map(str, LAYERS))}, not {depth}")
        kind, layers = LAYERS[depth]
        return cls(cls.blocks[kind], layers, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, N) to (B, num_classes), or features (B, 512 * expansion, N_out)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, name)(x)
        if self.avgpool is not None:
            x = self.avgpool(x)
        return x if self.num_classes is None else self.fc(x.flatten(1))
