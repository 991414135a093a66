"""ConvNeXt V2 on a sensor: `KNNConvNeXt`.

The original's does not run (its depthwise layers crash); this one has its names and shapes of parameters, and strides that leave
something of a small sensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.fovea.networks.ladder import Ladder
from sightline.fovea.networks.parts import knn_conv_class
from sightline.fovea.sensor import SensorGrid

SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "huge": ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}
"""Blocks and channels per stage."""


class GRN(nn.Module):
    """Global response normalisation: channels that respond strongly over all points are raised, the others lowered.

    Args:
        dim: channels.

    Forward: (N, B, C) to the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to the same."""
        strength = torch.linalg.vector_norm(x, dim=0, keepdim=True)
        share = strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)
        raised: Tensor = self.gamma * (x * share) + self.beta + x
        return raised


class _PointNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, N)."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, node-major."""
        return super().forward(x.permute(2, 0, 1)).permute(1, 2, 0)


class StochasticDepth(nn.Module):
    """In training, drop the whole branch of an image with probability p and scale the others by 1 / (1 - p).

    Args:
        p: in [0, 1).

    Forward: (N, B, C) to the same.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to the same."""
        if not self.training or self.p == 0:
            return x
        kept = torch.rand(1, x.shape[1], 1, device=x.device, dtype=x.dtype) >= self.p
        return x * kept / (1 - self.p)


class KNNConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer norm, two linear layers with GELU and `GRN`, and the way around.

    Args:
        dim: channels.
        coords: the sensor; it does not change.
        drop_path: see `StochasticDepth`.
        k: neighbours of the depthwise convolution.
        sample_cortex, ties, device: of the convolution.
        conv: class of the convolution.

    Forward: (B, dim, N) to the same.
    """

    def __init__(
        self,
        dim: int,
        coords: SensorGrid,
        drop_path: float = 0.0,
        k: int = 49,
        sample_cortex: bool | str = True,
        ties: str = "stable",
        device: torch.device | str | None = None,
        conv: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        make = conv or knn_conv_class("dw")
        self.dwconv = make(dim, dim, k, coords, coords, bias=True, sample_cortex=sample_cortex, ties=ties, device=device)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.grn = GRN(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.drop_path = StochasticDepth(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, N) to the same."""
        y = self.norm(self.dwconv(x).permute(2, 0, 1))
        y = self.pwconv2(self.grn(self.act(self.pwconv1(y))))
        branch: Tensor = self.drop_path(y)
        return x + branch.permute(1, 2, 0)


class KNNConvNeXt(nn.Module):
    """ConvNeXt V2 whose convolutions read nearest neighbours on a foveated sensor.

    Args:
        in_res: side of the square image that the first sensor is matched to.
        fov, cmf_a, style: of the sensor.
        auto_match_cart_resources: as in `KNNAlexNet`.
        device: of parameters and tables.
        in_chans: channels of the samples.
        num_classes: classes of a linear layer; None: features.
        first_stride: of the stem.
        depths, dims: blocks and channels of the four stages; `SIZES` names some.
        drop_path_rate: of the last block; it grows from 0.
        head_init_scale: times the linear layer's first weights.
        isotropic_plotting_type, fov_type, field_geometry, radius_norm, sample_cortex, ties: as in `KNNAlexNetBlock`.
        stage_stride: in front of stages 2 to 4.

    Forward: (B, in_chans, N) to (B, num_classes), or features (B, channels, 1), the mean over points.

    Example:
        >>> net = KNNConvNeXt(16, 16, 0.5, depths=[1, 1, 1, 1], dims=[4, 4, 8, 8], num_classes=3, first_stride=1)
        >>> net(torch.rand(2, 3, len(net.in_coords))).shape
        torch.Size([2, 3])
    """

    conv_classes: ClassVar[Any] = staticmethod(knn_conv_class)
    sensor_class: ClassVar[Any] = SensorGrid

    def __init__(
        self,
        in_res: int,
        fov: float,
        cmf_a: float,
        style: str = "isotropic",
        auto_match_cart_resources: int = 1,
        device: torch.device | str | None = None,
        in_chans: int = 3,
        num_classes: int | None = 1000,
        first_stride: int = 4,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        drop_path_rate: float = 0.0,
        head_init_scale: float = 1.0,
        isotropic_plotting_type: str = "v1like",
        fov_type: str = "circular",
        field_geometry: str = "planar",
        radius_norm: float = 2.0,
        sample_cortex: bool | str = True,
        *,
        ties: str = "stable",
        stage_stride: int = 2,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or len(dims) != 4:
            raise ConfigError(f"depths and dims must have one entry for each of the 4 stages, not {len(depths)} and {len(dims)}")
        conv, depthwise = type(self).conv_classes("default"), type(self).conv_classes("dw")
        ladder = Ladder(
            fov, cmf_a, style, field_geometry, fov_type, radius_norm, isotropic_plotting_type, auto_match_cart_resources, ties, device,
            type(self).sensor_class,
        )  # fmt: skip
        rung = ladder.start(in_res)
        self.in_coords, self.in_channels = rung.sensor, in_chans
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        rates, block = torch.linspace(0, drop_path_rate, sum(depths)).tolist(), 0
        for index, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            below = ladder.below(rung, stage_stride if index else first_stride)
            channels, k = (dims[index - 1], 4) if index else (in_chans, 49)
            reduce = conv(channels, dim, k, rung.sensor, below.sensor, bias=True, sample_cortex=sample_cortex, ties=ties, device=device)
            norm = _PointNorm(channels if index else dim, eps=1e-6)
            self.downsample_layers.append(nn.Sequential(norm, reduce) if index else nn.Sequential(reduce, norm))
            rung = below
            own_rates = rates[block : block + depth]
            blocks = [KNNConvNeXtBlock(dim, rung.sensor, rate, 49, sample_cortex, ties, device, depthwise) for rate in own_rates]
            self.stages.append(nn.Sequential(*blocks))
            block += depth
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes is not None else None
        self.out_coords, self.out_channels, self.total_embed_dim = ladder.final(1).sensor, dims[-1], dims[-1]
        for module in self.modules():
            if isinstance(module, nn.Linear | depthwise):
                nn.init.trunc_normal_(cast(Tensor, module.weight), std=0.02)
        if self.head is not None:
            with torch.no_grad():
                self.head.weight.mul_(head_init_scale)
        self.to(device)

    @classmethod
    def of_size(cls, size: str, **options: object) -> KNNConvNeXt:
        """The network of a named size, see `SIZES`.

        Args:
            size: "atto" to "huge".
            options: further arguments of the constructor.
        """
        if size not in SIZES:
            raise ConfigError(f"a KNNConvNeXt has size {', '.join(SIZES)}, not {size!r}")
        depths, dims = SIZES[size]
        return cls(depths=depths, dims=dims, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, N) to (B, num_classes), or (B, channels, 1)."""
        for reduce, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(reduce(x))
        x = self.norm(x.mean(-1))
        return x.unsqueeze(-1) if self.head is None else self.head(x)
