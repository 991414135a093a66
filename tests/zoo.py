"""The model zoo of the tests: torchvision and timm networks of many families, small inputs, random but lively weights.

What belongs here: building networks and frames. What does not: assertions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sightline.torchvision_import import import_torchvision


@dataclass(frozen=True)
class Entry:
    """One network.

    Attributes:
        library: "torchvision" or "timm".
        size: (h, w) of the frames, odd ones among them.
        canonical: whether its graph must not hold any ``torch`` node.
        narrow: replace a classifier of 50 to 120 million weights, which would only cost time.
        options: for the constructor.
    """

    library: str
    size: tuple[int, int] = (64, 64)
    canonical: bool = False
    narrow: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def _vision(h: int = 64, w: int = 64, *, canonical: bool = False, narrow: bool = False, **options: Any) -> Entry:
    return Entry("torchvision", (h, w), canonical, narrow, {"weights": None, **options})


def _timm(h: int = 64, w: int = 64, *, canonical: bool = False, **options: Any) -> Entry:
    return Entry("timm", (h, w), canonical, False, {"pretrained": False, **options})


ZOO: dict[str, Entry] = {
    "resnet18": _vision(64, 96, canonical=True),
    "resnet50": _vision(canonical=True),
    "resnext50_32x4d": _vision(canonical=True),
    "mobilenet_v2": _vision(65, 47, canonical=True),
    "mobilenet_v3_small": _vision(canonical=True),
    "efficientnet_b0": _vision(canonical=True),
    "vgg11_bn": _vision(32, 32, canonical=True, narrow=True),
    "densenet121": _vision(canonical=True),
    "shufflenet_v2_x0_5": _vision(canonical=True),
    "squeezenet1_1": _vision(canonical=True),
    "googlenet": _vision(canonical=True, init_weights=False, aux_logits=False),
    "inception_v3": _vision(80, 80, canonical=True, init_weights=False),
    "regnet_y_400mf": _vision(canonical=True),
    "mnasnet0_5": _vision(canonical=True),
    "alexnet": _vision(canonical=True, narrow=True),
    "lraspp_mobilenet_v3_large": _vision(weights_backbone=None),
    "deeplabv3_mobilenet_v3_large": _vision(weights_backbone=None),
    "convnext_tiny": _vision(32, 32),
    "swin_t": _vision(32, 32),
    "ghostnet_050": _timm(canonical=True),
    "tf_mobilenetv3_small_minimal_100": _timm(49, 63, canonical=True),  # asymmetric "same" padding
    "lcnet_035": _timm(canonical=True),
    "tinynet_e": _timm(canonical=True),
    "mobilenetv4_conv_small_050": _timm(canonical=True),
    "repvgg_a0": _timm(canonical=True),
    "rexnet_100": _timm(canonical=True),
    "resnest14d": _timm(),
    "res2net50_14w_8s": _timm(),
    "seresnet18": _timm(canonical=True),
    "skresnet18": _timm(),
    "ecaresnet26t": _timm(),
    "resnetv2_18": _timm(),
    "nf_resnet26": _timm(),
    "dla46_c": _timm(canonical=True),
    "hrnet_w18_small": _timm(),
    "ese_vovnet19b_slim_dw": _timm(),
    "cs3darknet_s": _timm(),
    "dpn48b": _timm(),
    "mixnet_s": _timm(),
    "efficientvit_b0": _timm(),
    "fastvit_t8": _timm(),
    "poolformer_s12": _timm(32, 32),
    "convnextv2_atto": _timm(32, 32),
    "edgenext_xx_small": _timm(),
    "starnet_s1": _timm(),
    "repvit_m0_9": _timm(),
    "mobilevit_xxs": _timm(),
    "vit_tiny_patch16_224": _timm(img_size=64),
    "pvt_v2_b0": _timm(),
    "hgnetv2_b0": _timm(),
    "regnetx_002": _timm(canonical=True),
}


def build(name: str) -> nn.Module:
    """A network of the zoo in eval mode; weights and batch-norm statistics are random, the same ones every time."""
    entry = ZOO[name]
    with torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the libraries
        torch.manual_seed(1)
        import_torchvision()  # timm imports torchvision too
        if entry.library == "torchvision":
            from torchvision.models import get_model

            model: nn.Module = get_model(name, **entry.options)
        else:
            import timm

            model = timm.create_model(name, **entry.options)
        if entry.narrow:
            first = next(module for module in model.get_submodule("classifier").modules() if isinstance(module, nn.Linear))
            model.add_module("classifier", nn.Linear(first.in_features, 10))
        enliven(model, entry.size)
    return model.eval()


def frame(name: str, seed: int = 0, batch: int = 1) -> Tensor:
    """A random float32 frame of the size of that network, (batch, 3, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *ZOO[name].size, generator=generator)


def enliven(model: nn.Module, size: tuple[int, int]) -> None:
    """Make every part of a freshly built network matter for its output, from torch's global random numbers.

    Parameters that start at (nearly) zero, such as layer scales and the last gamma of a residual branch, get ordinary values; batch-norm
    statistics are measured on noise and then shaken, so that activations neither die nor explode on the way.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and float(parameter.abs().max()) < 1e-3:
                parameter.normal_(0, 0.2)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        model.eval()
        with _measuring(norms):
            model(torch.randn(2, 3, *size))
        for norm in norms:
            if norm.running_mean is None or norm.running_var is None:
                continue
            spread = norm.running_var.clamp(min=1e-4).sqrt()
            norm.running_mean.add_(0.2 * spread * torch.randn_like(spread))
            norm.running_var.copy_((spread * (0.8 + 0.6 * torch.rand_like(spread))).square())
            if norm.affine:
                norm.weight.mul_(0.7 + 0.6 * torch.rand_like(norm.weight))
                norm.bias.add_(0.2 * torch.randn_like(norm.bias))


@contextmanager
def _measuring(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Let batch norms, and them alone, take the statistics of what they see."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.training, norm.momentum = False, momentum
