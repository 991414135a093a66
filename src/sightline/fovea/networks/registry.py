"""Networks by name: from a configuration to a backbone with its projectors.

What belongs here: which arguments a configuration gives to which network. What does not: the networks; and what is around them
(`sightline.fovea.fovinet`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sightline.errors import ConfigError
from sightline.fovea.config.schema import Section
from sightline.fovea.networks.alexnet import KNNAlexNet
from sightline.fovea.networks.convnext import SIZES, KNNConvNeXt
from sightline.fovea.networks.dense import DenseAlexNet, DenseResNet
from sightline.fovea.networks.mlp import BackboneProjectorWrapper, get_mlp
from sightline.fovea.networks.resnet import LAYERS, KNNResNet
from sightline.fovea.networks.tables import alexnet_rows
from sightline.fovea.networks.vit import KNNViT, VisionTransformer

_Device = torch.device | str | None
Builder = Callable[..., nn.Module]

TRANSFORMERS = {"base": (768, 12), "small": (384, 6), "tiny": (192, 3)}
"""Width and heads, by name."""


class ArchitectureRegistry:
    """Builders by name; a builder is called with (configuration, device=...) and returns what `BackboneProjectorWrapper` is.

    >>> ARCHITECTURES.get("fovi_alexnt2023")
    Traceback (most recent call last):
    sightline.errors.ConfigError: model.arch 'fovi_alexnt2023' is unknown: did you mean 'fovi_alexnet2023'?
    """

    def __init__(self) -> None:
        self._builders: dict[str, Builder] = {}

    def register(self, name: str, builder_fn: Builder) -> None:
        """Add a builder, or replace the one of that name."""
        self._builders[name] = builder_fn

    def has(self, name: str) -> bool:
        """Whether there is one."""
        return name in self._builders

    def get(self, name: str) -> Builder:
        """The builder of a name.

        Raises:
            ConfigError: there is none; the nearest name is given.
        """
        if name not in self._builders:
            nearest = difflib.get_close_matches(name, self._builders, n=1, cutoff=0.0)[0]
            raise ConfigError(f"model.arch {name!r} is unknown: did you mean {nearest!r}?")
        return self._builders[name]

    def list_architectures(self) -> list[str]:
        """All names."""
        return sorted(self._builders)

    def __repr__(self) -> str:
        return "ArchitectureRegistry(\n  " + "\n  ".join(self.list_architectures()) + "\n)"


@dataclass(frozen=True)
class Classes:
    """The classes that builders make; other libraries' names put their own here."""

    alexnet: type[KNNAlexNet] = KNNAlexNet
    resnet: type[KNNResNet] = KNNResNet
    convnext: type[KNNConvNeXt] = KNNConvNeXt
    vit: type[KNNViT] = KNNViT


def wrapped(backbone: nn.Module, cfg: Section, device: _Device = None) -> BackboneProjectorWrapper:
    """A backbone with the projector that ``model.mlp`` describes, and a second one where training is self-supervised.

    Args:
        backbone: its attribute ``total_embed_dim`` says how many features it has; without, that is found at the first batch.
        cfg: the configuration.
        device: of the projectors.
    """
    norm: Any = None
    if cfg.model.norm_mlp:
        norm = nn.BatchNorm1d if cfg.model.norm == "force_batch" else partial(nn.GroupNorm, 32)
    dropout = partial(nn.Dropout, p=cfg.model.dropout) if cfg.model.dropout is not None else None
    features = getattr(backbone, "total_embed_dim", "lazy")

    def projector() -> nn.Module:
        return get_mlp(features, cfg.model.mlp, norm=norm, dropout=dropout, dropout_all=bool(cfg.model.dropout_all))

    network = BackboneProjectorWrapper(backbone, projector(), projector() if cfg.training.loss != "supervised" else None)
    return network.to(device)


def _sensor_options(cfg: Section, device: _Device) -> dict[str, Any]:
    see = cfg.saccades
    if see.mode is None:
        raise ConfigError(f"model.arch {cfg.model.arch} reads a sensor: saccades.mode must not be null")
    return {
        "fov": see.fov, "cmf_a": see.cmf_a, "style": see.mode, "auto_match_cart_resources": see.auto_match_cart_resources,
        "sample_cortex": see.sample_cortex, "isotropic_plotting_type": see.isotropic_plotting_type, "fov_type": see.fov_type,
        "field_geometry": see.field_geometry, "radius_norm": float(see.radius_norm), "ties": see.ties, "device": device,
    }  # fmt: skip


def _norm_options(cfg: Section) -> dict[str, Any]:
    return {"norm_type": cfg.model.norm, "arch_flag": cfg.model.arch_flag}


def _alexnet(cls: type[KNNAlexNet], cfg: Section, device: _Device = None) -> nn.Module:
    rows = alexnet_rows(cfg.model.arch_spec, cfg.model.channel_mult, cfg.model.k_mult)
    backbone = cls(
        cfg.saccades.resize_size, cfg.model.in_channels, [row[0] for row in rows], [row[2] for row in rows], cfg.model.pool_after,
        [row[1] ** 2 for row in rows], out_res=cfg.model.out_grid_size, layer_cls=cfg.model.conv_layer_cls,
        ref_frame_mult=cfg.model.ref_frame_mult, **_norm_options(cfg), **_sensor_options(cfg, device),
    )  # fmt: skip
    return wrapped(backbone, cfg, device)


def _resnet(
    cls: type[KNNResNet], cfg: Section, device: _Device = None, *, depth: int, conv: str | None = None, stride: int = 0
) -> nn.Module:
    backbone = cls.of_depth(
        depth, in_conv_stride=stride or cfg.model.stem_conv_stride, in_pool_stride=stride or cfg.model.stem_pool_stride,
        stem_kernel_size=cfg.model.stem_kernel_size, in_res=cfg.saccades.resize_size, out_res=cfg.model.out_grid_size,
        conv_layer=conv or cfg.model.conv_layer_cls, ref_frame_mult=cfg.model.ref_frame_mult or 1, in_channels=cfg.model.in_channels,
        **_norm_options(cfg), **_sensor_options(cfg, device),
    )  # fmt: skip
    return wrapped(backbone, cfg, device)


def _convnext(cls: type[KNNConvNeXt], cfg: Section, device: _Device = None, *, size: str) -> nn.Module:
    backbone = cls.of_size(
        size, in_res=cfg.saccades.resize_size, in_chans=cfg.model.in_channels, num_classes=None,
        first_stride=cfg.model.stem_conv_stride, **_sensor_options(cfg, device),
    )  # fmt: skip
    return wrapped(backbone, cfg, device)


def _transformer_options(cfg: Section, name: str) -> dict[str, Any]:
    vit = cfg.model.vit
    width, heads = TRANSFORMERS.get(name, (vit.embed_dim, vit.num_heads))
    if not width or not heads:
        raise ConfigError(f"model.arch {cfg.model.arch} needs model.vit.embed_dim and model.vit.num_heads")
    return {
        "img_size": cfg.saccades.resize_size, "patch_size": vit.patch_size, "in_channels": cfg.model.in_channels, "embed_dim": width,
        "num_heads": heads, "num_layers": vit.num_layers, "mlp_ratio": vit.mlp_ratio, "dropout": vit.dropout,
        "num_outputs": vit.num_outputs, "pos_emb_type": vit.pos_emb_type, "aggregation": vit.aggregation,
    }  # fmt: skip


def _vit(cls: type[KNNViT], cfg: Section, device: _Device = None, *, name: str) -> nn.Module:
    vit = cfg.model.vit
    backbone = cls(
        patch_overlap_factor=vit.patch_overlap_factor, arch_flag=cfg.model.arch_flag, ref_frame_side_length=vit.ref_frame_side_length,
        force_patches_less_than_matched=bool(vit.force_patches_less_than_matched), embedding=vit.embedding,
        **_transformer_options(cfg, name), **_sensor_options(cfg, device),
    )  # fmt: skip
    return wrapped(backbone, cfg, device)


def _polar(cfg: Section) -> bool:
    return "logpolar" in (cfg.saccades.mode or "")


def _out_grid(cfg: Section) -> int:
    grid = cfg.model.final_grid_size
    return int(cfg.model.out_grid_size if grid is None else grid)


def _dense_alexnet(cfg: Section, device: _Device = None) -> nn.Module:
    backbone = DenseAlexNet(
        cfg.model.arch_spec, cfg.model.in_channels, cfg.saccades.resize_size, _out_grid(cfg), cfg.model.norm, _polar(cfg),
        cfg.model.channel_mult, cfg.model.k_mult, cfg.model.pool_after,
    )  # fmt: skip
    return wrapped(backbone.to(device), cfg, device)


def _dense_resnet(cfg: Section, device: _Device = None, *, depth: int, matched: bool) -> nn.Module:
    polar = _polar(cfg)
    backbone = DenseResNet(
        depth, cfg.model.in_channels, 2 if matched else 1, 2 if matched or not polar else 3, max(1, _out_grid(cfg)), cfg.model.norm,
        polar, cfg.model.channel_mult,
    )  # fmt: skip
    return wrapped(backbone.to(device), cfg, device)


def _dense_vit(cfg: Section, device: _Device = None, *, name: str) -> nn.Module:
    return wrapped(VisionTransformer(**_transformer_options(cfg, name)).to(device), cfg, device)


def make_registry(classes: Classes | None = None) -> ArchitectureRegistry:
    """All networks of the package, under fovi's names (and the older ones that it still knows).

    Args:
        classes: what builders make.
    """
    made = classes or Classes()
    registry = ArchitectureRegistry()
    add = registry.register
    add("fovi_alexnet2023", partial(_alexnet, made.alexnet))
    for depth in LAYERS:
        add(f"fovi_resnet{depth}", partial(_resnet, made.resnet, depth=depth))
        add(f"fovi_resnet{depth}_lowres", partial(_resnet, made.resnet, depth=depth, stride=1))
        add(f"fovi_resnet{depth}_dwsep", partial(_resnet, made.resnet, depth=depth, conv="dwsep"))
        add(f"fovi_resnet{depth}_dwsep_lowres", partial(_resnet, made.resnet, depth=depth, conv="dwsep", stride=1))
    for size in SIZES:
        add(f"fovi_convnext_{size}", partial(_convnext, made.convnext, size=size))
    for name in (*TRANSFORMERS, "custom"):
        add(f"fovi_vit_{name}", partial(_vit, made.vit, name=name))
        add(f"vit_{name}", partial(_dense_vit, name=name))
    add("alexnet2023", _dense_alexnet)
    for depth in (18, 34, 50):
        add(f"resnet{depth}", partial(_dense_resnet, depth=depth, matched=False))
        add(f"matched_resnet{depth}", partial(_dense_resnet, depth=depth, matched=True))
    _add_older_names(registry)
    return registry


def _add_older_names(registry: ArchitectureRegistry) -> None:
    older = {"alexnet2023_baseline": "alexnet2023", "saccadenet_alexnet2023_knn": "fovi_alexnet2023"}
    for name in registry.list_architectures():
        kind, _, rest = name.partition("_")
        if kind == "fovi":
            older[f"saccadenet_knn{rest}"] = name
        elif not name.startswith("matched"):
            older[f"saccadenet_{name}" + ("" if name.startswith("vit") else "_baseline")] = name
    for alias, name in older.items():
        if not registry.has(alias):
            registry.register(alias, registry.get(name))


ARCHITECTURES = make_registry()
"""Networks that ``model.arch`` may name; `ArchitectureRegistry.register` adds to them."""
