"""The fully connected end of a network: a projector of named blocks, and the pairing of a backbone with projectors.

What belongs here: layers on vectors. What does not: layers on sensors (`sightline.fovea.layers`), classifiers (`sightline.fovea.probes`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

_Layer = Callable[..., nn.Module]
_RELU = partial(nn.ReLU, inplace=True)
_HALF = partial(nn.Dropout, p=0.5)


class LayerBlock(nn.Sequential):
    """A sequence without the layers that are None.

    >>> len(LayerBlock(nn.Linear(2, 3), None, nn.ReLU()))
    2
    """

    def __init__(self, *layers: nn.Module | None) -> None:
        super().__init__(*(layer for layer in layers if layer is not None))


class LPNormalize(nn.Module):
    """Divide (n, d) vectors by their p-norm.

    Args:
        power: p; 2 for the Euclidean length.

    Zero vectors stay zero.
    """

    def __init__(self, power: float = 2) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (n, d) of length 1."""
        return nn.functional.normalize(x, p=self.power, dim=1)


class MLPWrapper(nn.Module):
    """Run the blocks of a multi-layer perceptron and keep what each returned.

    Args:
        mlp: the blocks, in order; none for a projector that only flattens.
    """

    def __init__(self, mlp: nn.Module | list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*mlp) if isinstance(mlp, list) else mlp

    def forward(self, x: Tensor, return_layer_outputs: bool = True) -> Any:
        """Project features.

        Args:
            x: (n, ...), flattened to (n, d).
            return_layer_outputs: also return what comes in and what each block returns.

        Returns:
            The embedding (n, e); or that and a list of (n, d), the flattened input first, detached from the graph.
        """
        x = x.flatten(start_dim=1)
        outputs = [x.detach()]
        for block in self.layers.children():
            x = block(x)
            outputs.append(x.detach())
        return (x, outputs) if return_layer_outputs else x


def get_mlp(
    repr_size: int | str = 9216,
    mlp: str | int | None = "8192-8192-8192",
    inp: Callable[[int, bool], nn.Module | None] | None = None,
    linear: _Layer = nn.Linear,
    act: _Layer = _RELU,
    norm: _Layer | None = nn.BatchNorm1d,
    dropout: _Layer | None = _HALF,
    dropout_all: bool = False,
    proj_relu: bool = False,
    output_bias: bool = False,
    l2norm: bool = False,
    out: Callable[[int, bool], nn.Module | None] | None = None,
    offset_idx: int = 5,
) -> MLPWrapper:
    """Build a projector: blocks ``fc_block_6``, ``fc_block_7`` ... of dropout, linear, norm, activation.

    The last of several blocks has no norm, bias or activation (and no dropout) unless asked for. A single block has dropout and an
    activation, and no norm.

    Args:
        repr_size: features that come in, or "lazy": taken from the first batch.
        mlp: widths joined by hyphens, ``"1024-1024"``; empty or None: only flattens.
        inp: makes a first layer of a block from (its index, whether it is the last), or None.
        linear: class of the linear layers.
        act: class of the activations.
        norm: class of the norms; None: none.
        dropout: class of the dropouts; None: none.
        dropout_all: dropout in the last block too.
        proj_relu: an activation in the last block too.
        output_bias: a bias in the last block.
        l2norm: unit length at the end.
        out: like ``inp``, for a last layer.
        offset_idx: the first block is ``fc_block_{offset_idx + 1}``.

    >>> import torch
    >>> get_mlp(256, "64-10")(torch.rand(4, 256, 1))[0].shape
    torch.Size([4, 10])
    """
    if mlp is None or not str(mlp):
        return MLPWrapper([])
    widths = [int(width) for width in str(mlp).split("-")]
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    in_features = repr_size
    for index, width in enumerate(widths):
        last = index == len(widths) - 1
        closing = last and len(widths) > 1
        bias = output_bias if last else True
        lazy = index == 0 and repr_size == "lazy"
        blocks[f"fc_block_{index + 1 + offset_idx}"] = LayerBlock(
            inp(index, last) if inp is not None else None,
            dropout() if dropout is not None and (dropout_all or not closing) else None,
            nn.LazyLinear(width, bias=bias) if lazy else linear(in_features, width, bias=bias),
            norm(width) if norm is not None and not last else None,
            act() if proj_relu or not closing else None,
            LPNormalize(2) if last and l2norm else None,
            out(index, last) if out is not None else None,
        )
        in_features = width
    return MLPWrapper(nn.Sequential(blocks))


class BackboneProjectorWrapper(nn.Module):
    """A backbone and what comes behind it: a projector, and another one for self-supervised training.

    Args:
        backbone: (n, c, nodes) or (n, c, h, w) to features.
        projector: features to (embedding, list of layer outputs), see `MLPWrapper`.
        projector_ssl: the same, used in self-supervised training; None: there is none.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, projector_ssl: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.projector_ssl = projector_ssl

    def forward(self, x: Tensor, return_layer_outputs: bool = False, apply_mlp: bool = True, *, ssl: bool = False) -> Any:
        """Features, projected.

        Args:
            x: what the backbone takes.
            return_layer_outputs: also return the list of the projector's layer outputs (None without ``apply_mlp``).
            apply_mlp: False: the backbone's features as they are.
            ssl: use the self-supervised projector, if there is one.

        Returns:
            (n, d), or that and the list.
        """
        features = self.backbone(x)
        outputs: list[Tensor] | None = None
        if apply_mlp:
            projector = self.projector_ssl if ssl and self.projector_ssl is not None else self.projector
            features, outputs = projector(features)
        return (features, outputs) if return_layer_outputs else features
