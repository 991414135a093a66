"""AlexNet on a sensor: `KNNAlexNet` and the block that it repeats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sightline.errors import ShapeError
from sightline.fovea.layers import KNNPool, get_norm
from sightline.fovea.networks.ladder import Ladder, Rung, reference_side
from sightline.fovea.networks.parts import knn_conv_class
from sightline.fovea.sensor import SensorGrid

_Device = torch.device | str | None


class KNNAlexNetBlock(nn.Module):
    """kNN convolution, norm, activation and perhaps a pool.

    Args:
        in_channels, out_channels: channels.
        k: neighbours of each output point.
        fov, cmf_a: of the sensor, degrees.
        in_res: rings of the sensor that comes in; not used where resources are matched.
        stride: 1 keeps the number of points.
        style: of the sensor.
        conv_layer: "default", "dwsep" (depthwise separable), a class with the constructor of `KNNConv`, or None for no convolution.
        cart_res: side of the square image whose number of pixels the sensor is matched to (None: ``in_res``).
        pool, pool_mode, pool_k, pool_stride: the pool: whether, "max" or "avg", its neighbours, its stride.
        norm_type: see `get_norm`.
        arch_flag: "doubleres" doubles the side of the reference kernel.
        activation: class, or None.
        sample_cortex: neighbours on the cortex (True), in the visual field (False), "geodesic".
        device: of parameters and tables.
        auto_match_cart_resources: 1: sensors are matched to square images; -1: the first only; 0: resolutions are rings.
        ref_frame_mult: side of the reference kernel = ceil(this * sqrt(k)).
        isotropic_plotting_type, fov_type, field_geometry, radius_norm: of the sensors, see `SensorGrid`.
        ties: see `KNNConv`.

    Forward: (B, in_channels, N_in) to (B, out_channels, N_out).
    """

    conv_classes: ClassVar[Any] = staticmethod(knn_conv_class)
    pool_class: ClassVar[type[KNNPool]] = KNNPool
    sensor_class: ClassVar[Any] = SensorGrid

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        k: int,
        fov: float,
        cmf_a: float,
        in_res: int,
        stride: int,
        style: str = "isotropic",
        conv_layer: str | type[nn.Module] | None = "default",
        cart_res: int | None = None,
        pool: bool = True,
        pool_mode: str = "max",
        pool_k: int = 9,
        pool_stride: int = 2,
        norm_type: str | None = "batch",
        arch_flag: str | None = "",
        activation: Callable[[], nn.Module] | None = nn.ReLU,
        sample_cortex: bool | str = True,
        device: _Device = None,
        auto_match_cart_resources: int = 0,
        ref_frame_mult: float | None = None,
        isotropic_plotting_type: str = "v1like",
        fov_type: str = "circular",
        field_geometry: str = "planar",
        radius_norm: float = 2.0,
        *,
        ties: str = "stable",
        ladder: Ladder | None = None,
        rung: Rung | None = None,
    ) -> None:
        super().__init__()
        if ladder is None:
            ladder = Ladder(
                fov, cmf_a, style, field_geometry, fov_type, radius_norm, isotropic_plotting_type, auto_match_cart_resources, ties, device,
                type(self).sensor_class,
            )  # fmt: skip
        if rung is None:
            rung = ladder.start(in_res if cart_res is None or not auto_match_cart_resources else cart_res)
        make: Any = type(self).conv_classes(conv_layer) if isinstance(conv_layer, str) else conv_layer
        shared: dict[str, Any] = {"sample_cortex": sample_cortex, "ties": ties, "device": device}
        below = ladder.below(rung, stride) if make is not None else rung
        self.in_coords = rung.sensor
        self.conv: nn.Module | None = None
        if make is not None:
            side = reference_side(k, ref_frame_mult, arch_flag)
            self.conv = make(in_channels, out_channels, k, rung.sensor, below.sensor, side=side, **shared)
        self.norm = get_norm(norm_type or "none", len(below.sensor), out_channels, device=device)
        self.activation = activation() if activation is not None else None
        self.pool: nn.Module | None = None
        if pool:
            pooled = ladder.below(below, pool_stride)
            self.pool = type(self).pool_class(pool_k, below.sensor, pooled.sensor, mode=cast(Any, pool_mode), **shared)
            below = pooled
        self.rung = below
        self.out_coords = below.sensor
        self.out_res = below.sensor.resolution
        self.out_cart_res = below.cart_res

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, N_in) to (B, out_channels, N_out)."""
        for layer in (self.conv, self.norm, self.activation, self.pool):
            if layer is not None:
                x = layer(x)
        return x


class KNNAlexNet(nn.Module):
    """AlexNet whose convolutions and pools read nearest neighbours on a foveated sensor.

    Args:
        in_res: side of the square image that the first sensor is matched to (64: 4085 points), or its rings without matching.
        in_channels: channels of the samples.
        features_per_layer, stride_per_layer, k_per_layer: one number per block.
        pool_after: indices of the blocks that end with a max pool (9 neighbours, stride 2).
        n_classes: classes of a linear layer on everything that is left; None: features are returned.
        out_res: side of the grid that a last average pool is matched to (1: a single point); None or -1: no such pool.
        auto_match_cart_resources, style, norm_type, arch_flag, fov, cmf_a, device, sample_cortex, ref_frame_mult,
            isotropic_plotting_type, fov_type, field_geometry, radius_norm, ties: as in `KNNAlexNetBlock`.
        layer_cls: "default", "dwsep", or a class with the constructor of `KNNConv`.

    Forward: (B, in_channels, N) to (B, n_classes), or features (B, channels, N_out).

    Raises:
        ShapeError: lists of different lengths.

    Cost: building takes about as long as its tables; equal sensors share them.
    Source: fovi (Blauch, Alvarez and Konkle 2026); names and shapes of parameters are that library's.

    Example:
        >>> net = KNNAlexNet(16, 3, [8, 8], [1, 1], [0], [9, 9], n_classes=10, auto_match_cart_resources=1)
        >>> net(torch.rand(2, 3, len(net.in_coords))).shape
        torch.Size([2, 10])
    """

    block_class: ClassVar[type[KNNAlexNetBlock]] = KNNAlexNetBlock

    def __init__(
        self,
        in_res: int,
        in_channels: int,
        features_per_layer: Sequence[int],
        stride_per_layer: Sequence[int],
        pool_after: Sequence[int],
        k_per_layer: Sequence[int],
        n_classes: int | None = None,
        out_res: int | None = None,
        auto_match_cart_resources: int = 0,
        style: str = "isotropic",
        layer_cls: str | type[nn.Module] = "default",
        norm_type: str | None = "batch",
        arch_flag: str | None = "",
        fov: float = 16,
        cmf_a: float = 0.5,
        device: _Device = None,
        sample_cortex: bool | str = True,
        ref_frame_mult: float | None = None,
        isotropic_plotting_type: str = "v1like",
        fov_type: str = "circular",
        field_geometry: str = "planar",
        radius_norm: float = 2.0,
        *,
        ties: str = "stable",
    ) -> None:
        super().__init__()
        counts = {len(features_per_layer), len(stride_per_layer), len(k_per_layer)}
        if len(counts) != 1 or not features_per_layer:
            raise ShapeError(
                f"features_per_layer, stride_per_layer and k_per_layer must have one entry per block, got "
                f"{len(features_per_layer)}, {len(stride_per_layer)} and {len(k_per_layer)}"
            )
        block = type(self).block_class
        ladder = Ladder(
            fov, cmf_a, style, field_geometry, fov_type, radius_norm, isotropic_plotting_type, auto_match_cart_resources, ties, device,
            block.sensor_class,
        )  # fmt: skip
        rung = ladder.start(in_res)
        self.in_coords, self.in_channels = rung.sensor, in_channels
        layers: list[nn.Module] = []
        channels = in_channels
        for index, (width, stride, k) in enumerate(zip(features_per_layer, stride_per_layer, k_per_layer, strict=True)):
            one = block(
                channels, width, k, fov, cmf_a, in_res, stride, style, layer_cls, pool=index in pool_after, norm_type=norm_type,
                arch_flag=arch_flag, sample_cortex=sample_cortex, device=device, ref_frame_mult=ref_frame_mult, ties=ties, ladder=ladder,
                rung=rung,
            )  # fmt: skip
            layers.append(one)
            rung, channels = one.rung, width
        if out_res is not None and out_res != -1:
            layers.append(average_pool(ladder, rung, out_res, block.pool_class, sample_cortex, device))
            rung = Rung(layers[-1].out_coords, out_res)  # type: ignore[arg-type]  # an attribute of a layer
        self.layers = nn.ModuleList(layers)
        self.out_coords, self.out_channels, self.n_classes = rung.sensor, channels, n_classes
        self.total_embed_dim = channels * len(self.out_coords)
        if n_classes is not None:
            self.classifier = nn.Linear(self.total_embed_dim, n_classes, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, N) to (B, n_classes), or features (B, channels, N_out)."""
        for layer in self.layers:
            x = layer(x)
        if self.n_classes is not None:
            x = self.classifier(x.flatten(1))
        return x


def average_pool(ladder: Ladder, rung: Rung, out_res: int, pool: type[KNNPool], sample_cortex: bool | str, device: _Device) -> KNNPool:
    """The pool at the end of a network: the mean of (2 * downsampling)**2 neighbours around each point that is left."""
    last = ladder.final(out_res)
    k = (2 * math.ceil(rung.sensor.resolution / last.sensor.resolution)) ** 2
    shared: dict[str, Any] = {"sample_cortex": sample_cortex, "ties": ladder.ties, "device": device}
    return pool(k, rung.sensor, last.sensor, mode="avg", **shared)
