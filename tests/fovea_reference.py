"""What fovi 2.4.0 has and gives: names and shapes of parameters, and numbers of networks with weights that a formula makes.

What belongs here: figures measured with fovi 2.4.0 on a CPU (torch 2.13, x86-64), and the formula. Tests that compare need no fovi.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn


def fill(module: nn.Module) -> None:
    """Give every parameter and running statistic values that depend on its name and place only."""
    with torch.no_grad():
        for name, value in module.state_dict(keep_vars=True).items():
            if not value.is_floating_point() or name.endswith(("_emb", "pos_encoding")):
                continue
            waves = torch.sin(torch.arange(value.numel(), dtype=torch.float64) ** 1.3 + 0.11 * len(name)).reshape(value.shape)
            if value.ndim > 1:
                filled = 2 * waves / math.sqrt(value[0].numel())
            elif name.endswith(("weight", "running_var")):
                filled = 1 + 0.5 * waves
            else:
                filled = 0.02 * waves
            value.copy_(filled)


def samples(points: int, channels: int = 3, batch: int = 2, glances: int = 2) -> Tensor:
    """(batch, glances, channels, points) of a formula."""
    count = batch * glances * channels * points
    return (3 * torch.cos(0.7 * torch.arange(count, dtype=torch.float64) ** 1.1)).float().reshape(batch, glances, channels, points)


def names_and_shapes(module: nn.Module) -> str:
    """A hash of the names and shapes in a state dict, in order."""
    lines = "\n".join(f"{name} {tuple(value.shape)}" for name, value in module.state_dict().items())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


SMALL = ("saccades.resize_size=16", "model.mlp=12-8", "data.num_classes=4", "saccades.ties=fovi")
NARROW = (*SMALL, "model.channel_mult=0.1")
VIT = (
    *SMALL, "model.arch=fovi_vit_custom", "model.vit.embed_dim=16", "model.vit.num_heads=2", "model.vit.num_layers=2",
    "model.vit.patch_size=4",
)  # fmt: skip

# name of a packaged configuration: (hash of names and shapes, parameters, points on the sensors)
OF_CONFIGS: dict[str, tuple[str, int, list[int] | None]] = {
    "fovi_alexnet": ("19b931154717411c", 17324840, [4085, 964, 230, 230, 60, 60, 60, 60, 16, 1]),
    "lp-fovi-alexnet": ("19b931154717411c", 17324840, [4096, 1024, 256, 256, 64, 64, 64, 64, 16, 1]),
    "fovi_resnet18_rf1": ("40a48a22d1de39de", 9845288, [4085, 964, *[230] * 5, *[60] * 5, *[16] * 5, *[2] * 5, 1]),
    "fovi_resnet18_rf2": ("d6a773ba64604066", 46762088, [4085, 964, *[230] * 5, *[60] * 5, *[16] * 5, *[2] * 5, 1]),
    "fovi_resnet50_rf2": (
        "88005f64ae0f070c",
        61661800,
        [4085, 964, *[230] * 12, *[60] * 13, *[16] * 19, *[2] * 9, 1],
    ),
    "fovi-vit": ("218876fe57feefa5", 7672680, [4085, 83]),
    "resnet18_logpolar_control": ("f38ff5fc9200a84b", 13777448, None),
    "resnet18_warped_cartesian_control": ("c1a969a2bd853a35", 13777448, None),
    "resnet50_logpolar_control": ("4f890e10165f3f89", 27681832, None),
}

# The tutorial's KNNAlexNet.
OF_TUTORIAL = ("906fd97368b71329", 24489512)

# fmt: off
# what: (configuration, overrides, [the first 8 numbers of the embeddings, then all scores (2 images, 4 classes) in evaluation])
NUMBERS: dict[str, tuple[str, tuple[str, ...], list[float]]] = {
    "alexnet": (
        "fovi_alexnet",
        NARROW,
        [
            0.049257141,
            0.013875857,
            0.024770569,
            0.043755874,
            0.044643357,
            -0.021124473,
            0.0046956902,
            -0.022333754,
            0.25442067,
            0.24171856,
            0.25879616,
            0.24506463,
            0.25490588,
            0.2424511,
            0.2582927,
            0.24435031,
        ],
    ),
    "alexnet, legacy, one cell per neighbour, group norm": (
        "fovi_alexnet",
        (
            *SMALL,
            "model.channel_mult=0.25",
            "saccades.field_geometry=legacy",
            "model.ref_frame_mult=1",
            "model.norm=group",
            "model.norm_mlp=0",
            "model.out_grid_size=2",
        ),
        [
            0.56452,
            1.2206895,
            0.065550834,
            -0.25995559,
            -1.0526806,
            1.1620063,
            0.78142262,
            -0.70601809,
            0.080705769,
            0.4299013,
            0.15470663,
            0.33468622,
            0.041167393,
            0.40303999,
            0.084322155,
            0.47147048,
        ],
    ),
    "alexnet, square field, layer norm": (
        "fovi_alexnet",
        (*NARROW, "saccades.fov_type=square", "model.norm=layer", "model.norm_mlp=0"),
        [
            0.059196882,
            0.053663701,
            0.40722567,
            -0.036127955,
            -0.16579108,
            -0.0099070854,
            -0.30288225,
            0.25433743,
            0.14860432,
            0.14710292,
            0.26719376,
            0.43709901,
            0.072750062,
            0.062176086,
            0.27699047,
            0.58808339,
        ],
    ),
    "alexnet, log-polar, channel norm": (
        "lp-fovi-alexnet",
        (*NARROW, "model.norm=channel", "model.norm_mlp=0"),
        [
            1.6704893,
            -1.5998907,
            1.730885,
            0.56795263,
            0.94834971,
            0.13306084,
            0.51697683,
            -0.13518229,
            0.17134537,
            0.007462088,
            0.76709753,
            0.054094985,
            0.11134377,
            0.0028637806,
            0.86227643,
            0.023516018,
        ],
    ),
    "alexnet, warped, coordinate norm": (
        "fovi_alexnet",
        (*NARROW, "saccades.mode=warped_cartesian", "model.norm=coord", "model.norm_mlp=0"),
        [
            1.1196864,
            -1.3060261,
            1.4446367,
            -0.19411708,
            0.030808393,
            -0.21038416,
            -0.31584787,
            0.23210701,
            0.13194738,
            0.01252765,
            0.73372996,
            0.12179501,
            0.19762625,
            0.021672592,
            0.68202937,
            0.098671779,
        ],
    ),
    "alexnet, uniform, no norm": (
        "fovi_alexnet",
        (*NARROW, "saccades.mode=uniform", "saccades.sample_cortex=false", "model.norm=none", "model.norm_mlp=0"),
        [
            0.049379334,
            0.063628569,
            0.050419442,
            -0.022906458,
            -0.00095319888,
            -0.025271906,
            -0.063413911,
            0.07729248,
            0.23101427,
            0.24060467,
            0.25216991,
            0.27621114,
            0.23527065,
            0.24198128,
            0.25286847,
            0.26987961,
        ],
    ),
    "alexnet, gru": (
        "fovi_alexnet",
        (*NARROW, "saccades.fix_agg=gru"),
        [
            0.049257141,
            0.013875857,
            0.024770569,
            0.043755874,
            0.044643357,
            -0.021124473,
            0.0046956902,
            -0.022333754,
            -0.33490935,
            -0.21219465,
            -0.28649771,
            -0.043201338,
            -0.41954246,
            0.044454623,
            -0.34010461,
            -0.37914038,
        ],
    ),
    "resnet9": (
        "fovi_resnet18_rf2",
        (*SMALL, "model.arch=fovi_resnet9_lowres"),
        [
            -1.8131249,
            -2.2917471,
            0.49959812,
            -0.76374793,
            -0.8404119,
            4.1400681,
            2.6603448,
            1.1065575,
            0.36296183,
            0.03668496,
            0.19024917,
            0.41010407,
            0.29849261,
            0.023413096,
            0.52261585,
            0.1554784,
        ],
    ),
    "vit, rope": (
        "fovi-vit",
        VIT,
        [
            0.8832821, 0.6763958, 0.1628409, -0.06102169, 1.1365, -1.865153, -2.513329, 2.550762,
            0.1344413, 0.04127023, 0.1797536, 0.6445349, 0.02263256, 0.04946147, 0.4166908, 0.5112152,
        ],
    ),
    "vit, absolute": (
        "fovi-vit",
        (*VIT, "model.vit.pos_emb_type=absolute", "model.vit.aggregation=avg_pool", "model.vit.patch_overlap_factor=1.0"),
        [
            0.5541168, 0.04712999, 0.257473, -0.6622621, -0.1352772, 0.151718, 0.6648157, -0.9450875,
            0.1075569, 0.1634983, 0.4475491, 0.2813957, 0.1323627, 0.1748082, 0.2753186, 0.4175105,
        ],
    ),
}
# fmt: on
