"""Classifiers behind a network: one linear layer per fixation, and ways to put fixations together.

What belongs here: from embeddings (B, F, D) to class scores (B, classes). What does not: where fixations come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.fovea.networks.mlp import LayerBlock

_RECURRENT: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
AGGREGATIONS = ("mean", "force_mean", "attn", *_RECURRENT)


def _dropout(p: float | None) -> nn.Module:
    return nn.Dropout(p) if p else nn.Identity()


class LinearProbe(nn.Module):
    """A linear classifier, with dropout before it and perhaps a narrow layer in between.

    Args:
        num_features: D.
        mlp_coeff: vectors of that many times D come in.
        num_classes: 0 or None: vectors pass as they are.
        bottleneck_dim: width of a layer in between, "infer" for D; None: none.
        layer_norm: layer norm behind that layer instead of a ReLU.
        dropout: probability; None or 0 for none.
    """

    def __init__(
        self,
        num_features: int,
        mlp_coeff: int = 1,
        num_classes: int | None = 1000,
        bottleneck_dim: int | str | None = None,
        layer_norm: bool = False,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.dropout = _dropout(dropout)
        self.probe: nn.Module
        if bottleneck_dim is not None:
            width = num_features if bottleneck_dim == "infer" else int(bottleneck_dim)
            between = nn.LayerNorm([width]) if layer_norm else nn.ReLU()
            self.probe = LayerBlock(nn.Linear(mlp_coeff * num_features, width), between, nn.Linear(width, num_classes or width))
        elif not num_classes:
            self.probe = nn.Identity()
        else:
            self.probe = nn.Linear(mlp_coeff * num_features, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (..., classes) of vectors (..., D)."""
        scores: Tensor = self.probe(self.dropout(inputs))
        return scores


class AttentionProbe(nn.Module):
    """One transformer layer over a sequence, then its mean (or one of its tokens), then a linear layer.

    Args:
        num_features: width of the vectors that come in.
        mlp_coeff: not used; there for the signature.
        num_classes: width of what goes out.
        hidden_dim: width inside.
        pooling_token: "avg", or the index of a token.
        dropout: before everything.
        kwargs: for ``nn.TransformerEncoderLayer``.
    """

    def __init__(
        self,
        num_features: int,
        mlp_coeff: int = 1,
        num_classes: int = 1000,
        hidden_dim: int = 128,
        pooling_token: str | int = "avg",
        dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        del mlp_coeff
        self.dropout = _dropout(dropout)
        self.in_projector = nn.Linear(num_features, hidden_dim)
        self.norm = nn.LayerNorm([hidden_dim])
        self.encoder = nn.TransformerEncoderLayer(hidden_dim, nhead=1, dim_feedforward=hidden_dim, batch_first=False, **kwargs)
        self.pooling_token = pooling_token
        self.projector = nn.Linear(hidden_dim, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (B, classes) of a sequence (F, B, D); every fixation attends to all fixations of its own image."""
        tokens = self.encoder(self.norm(self.in_projector(self.dropout(inputs))))
        pooled = tokens.mean(0) if self.pooling_token == "avg" else tokens[int(self.pooling_token)]
        scores: Tensor = self.projector(pooled)
        return scores


class RNNProbe(nn.Module):
    """A recurrent layer over a sequence, read at its end.

    Args:
        num_features: width of the vectors that come in.
        num_classes: width of what goes out.
        hidden_dim: width of the state.
        num_layers, bidirectional: as in ``nn.RNN``; the last layer's state is read, both directions side by side.
        rnn_type: "gru", "lstm" or "rnn".
        dropout: before everything.
        softmax_inputs: turn scores into probabilities first.
        kwargs: for the recurrent layer.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int = 1000,
        hidden_dim: int = 128,
        num_layers: int = 1,
        rnn_type: str = "gru",
        bidirectional: bool = False,
        dropout: float | None = None,
        softmax_inputs: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if rnn_type.lower() not in _RECURRENT:
            raise ConfigError(f"rnn_type must be one of {', '.join(_RECURRENT)}, not {rnn_type!r}")
        self.dropout = _dropout(dropout)
        self.norm = nn.LayerNorm([num_features])
        self.rnn = _RECURRENT[rnn_type.lower()](num_features, hidden_dim, num_layers, bidirectional=bidirectional, **kwargs)
        width = hidden_dim * (1 + bidirectional)
        self.projector = nn.Linear(width, num_classes) if width != num_classes else nn.Identity()
        self.softmax_inputs = softmax_inputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (B, classes) of a sequence (F, B, D)."""
        x = inputs.softmax(-1) if self.softmax_inputs else inputs
        _, state = self.rnn(self.norm(self.dropout(x)))
        hidden = state[0] if isinstance(state, tuple) else state  # an LSTM has a cell state too
        directions = 1 + bool(self.rnn.bidirectional)
        last = hidden[-directions:].movedim(0, 1).flatten(1)
        scores: Tensor = self.projector(last)
        return scores


class FoviNetProbe(nn.Module):
    """Class scores of an image from the embeddings of its fixations.

    Args:
        num_features: D.
        fix_agg: "mean": the mean of the fixations' logits in training and **of their probabilities in evaluation**; "force_mean":
            always the mean of logits; "attn": `AttentionProbe` over fixations; "rnn", "lstm", "gru": `RNNProbe` over them.
        num_classes: classes.
        dropout: before the linear layer.

    >>> import torch
    >>> scores = FoviNetProbe(8, "mean", 3).eval()(torch.rand(2, 5, 8))
    >>> scores.shape, bool((scores.sum(1) - 1).abs().max() < 1e-6)
    (torch.Size([2, 3]), True)
    """

    def __init__(self, num_features: int, fix_agg: str, num_classes: int, dropout: float | None = None) -> None:
        super().__init__()
        if fix_agg not in AGGREGATIONS:
            raise ConfigError(f"saccades.fix_agg must be one of {', '.join(AGGREGATIONS)}, not {fix_agg!r}")
        self.fix_agg = fix_agg
        self.fix_projector = LinearProbe(num_features, num_classes=num_classes, dropout=dropout)
        if fix_agg == "attn":
            self.fix_aggregator: nn.Module = AttentionProbe(num_classes, num_classes=num_classes, dropout=dropout)
        elif fix_agg in _RECURRENT:
            self.fix_aggregator = RNNProbe(num_classes, num_classes=num_classes, dropout=dropout, rnn_type=fix_agg, softmax_inputs=True)

    @property
    def gives_probabilities(self) -> bool:
        """Whether `forward` returns probabilities now, and not logits."""
        return self.fix_agg == "mean" and not self.training

    def per_fixation(self, x: Tensor) -> Tensor:
        """Logits (B, F, classes) of each fixation alone, from embeddings (B, F, D)."""
        scores: Tensor = self.fix_projector(x)
        return scores

    def aggregate(self, logits: Tensor) -> Tensor:
        """Put fixations together: (B, F, classes) to (B, classes)."""
        if self.fix_agg in {"mean", "force_mean"}:
            return (logits.softmax(-1) if self.gives_probabilities else logits).mean(1)
        scores: Tensor = self.fix_aggregator(logits.transpose(0, 1))
        return scores

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, classes) from embeddings (B, F, D): logits, or probabilities (see ``fix_agg``)."""
        return self.aggregate(self.per_fixation(x))


class FoviNetProbes(nn.Module):
    """A `FoviNetProbe` for every layer output, to see what each layer knows.

    Args:
        mlp_spec: sizes of the layer outputs, joined by hyphens; a FoviNet's ``mlp_spec``.
        fix_agg, num_classes, dropout: for each probe.
    """

    def __init__(self, mlp_spec: str, fix_agg: str, num_classes: int, dropout: float | None = None) -> None:
        super().__init__()
        self.mlp_spec = mlp_spec
        self.probes = nn.ModuleList(FoviNetProbe(int(size), fix_agg, num_classes, dropout) for size in mlp_spec.split("-"))

    def forward(self, list_outputs: Sequence[Tensor] | Tensor, probes_layer_inds: Sequence[int] | None = None) -> list[Tensor]:
        """Scores of some layers.

        Args:
            list_outputs: (B, F, d) for each of those layers (one tensor alone for one layer).
            probes_layer_inds: which layers they are; default: the first ones.

        Returns:
            (B, classes) for each.
        """
        outputs = [list_outputs] if isinstance(list_outputs, Tensor) else list(list_outputs)
        indices = range(len(outputs)) if probes_layer_inds is None else probes_layer_inds
        return [self.probes[index](output) for index, output in zip(indices, outputs, strict=True)]
