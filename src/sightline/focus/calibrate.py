"""Choosing the brightness threshold of an fCNN from pictures like those to come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from sightline.errors import ShapeError
from sightline.extras import need
from sightline.focus.fcnn import BrightnessFocused

_CANDIDATES = 12
_FINE = 256


@dataclass(frozen=True)
class Calibration:
    """Thresholds that were tried, and the one chosen; ``float(calibration)`` is that one.

    Attributes:
        threshold: chosen.
        size: mean share of the picture that is computed with it.
        agreement: mean agreement with the dense model with it, 0 to 1.
        thresholds: tried, ascending; the first keeps everything.
        sizes: for each, the mean share of the picture inside.
        agreements: for each, the mean agreement with the dense model.
    """

    threshold: float
    size: float
    agreement: float
    thresholds: tuple[float, ...]
    sizes: tuple[float, ...]
    agreements: tuple[float, ...]

    def __float__(self) -> float:
        return self.threshold

    def plot(self) -> Any:
        """Draws agreement over size, with the chosen threshold marked; returns a matplotlib figure.

        Raises:
            MissingPackageError: matplotlib is not installed (extra "plots").
        """
        pyplot = need("matplotlib.pyplot", "draw a calibration")
        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        order = sorted(range(len(self.sizes)), key=lambda i: (self.sizes[i], self.agreements[i]))
        axes.plot([self.sizes[i] for i in order], [self.agreements[i] for i in order], marker="o", color="#2066a8")
        axes.plot([self.size], [self.agreement], marker="o", markersize=11, fillstyle="none", color="#c0392b", linestyle="none")
        axes.annotate(f"threshold {self.threshold:.4g}", (self.size, self.agreement), xytext=(8, -14), textcoords="offset points")
        axes.set_xlabel("size of the area (share of the picture)")
        axes.set_ylabel("agreement with the dense model")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(min(0.0, *self.agreements) - 0.02, 1.02)
        axes.grid(alpha=0.3)
        return figure


def calibrate_brightness(
    model: BrightnessFocused,
    images: torch.Tensor | Iterable[torch.Tensor],
    *,
    target_size: float | None = None,
    target_agreement: float | None = None,
    agreement: Callable[[Any, Any], float] | None = None,
) -> Calibration:
    """Picks the brightness threshold of an fCNN from pictures.

    Args:
        model: from `build_focused_model`; left with the threshold that it has. Set ``model.threshold = float(calibration)`` to use it.
        images: (n, c, h, w), or several such batches (the sizes may differ; each size is captured anew).
        target_size: mean share of the picture to compute, 0 to 1: the lowest threshold whose areas are that large at most, on the mean.
            Pictures in which nothing is bright enough count as 1, as they are computed.
        target_agreement: mean agreement with the dense model, 0 to 1: of the thresholds tried that reach it, the one with the smallest
            areas. Give one of the two targets.
        agreement: ``agreement(focused, dense)`` of the outputs of one batch, 0 to 1. None: the share of equal largest entries along the
            channels, over batch elements and positions; for outputs of one channel, the share of equal signs.

    Returns:
        A `Calibration`, with what was tried and a plot.

    Raises:
        ValueError: neither or both targets, or one out of range; or no threshold reaches the target (positions of equal brightness are kept
            or dropped together, and pictures without any bright one count as 1).
        ShapeError: no images.

    Cost: one forward per batch that is almost dense, and 12 focused ones.
    """
    if not isinstance(model, BrightnessFocused):
        raise TypeError(f"`model` must come from build_focused_model; got {type(model).__name__}.")
    if (target_size is None) == (target_agreement is None):
        raise ValueError("give one of `target_size` and `target_agreement`.")
    for name, value in (("target_size", target_size), ("target_agreement", target_agreement)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be from 0 to 1; got {value!r}.")
    batches = [images] if isinstance(images, torch.Tensor) else list(images)
    if not batches or any(batch.shape[0] == 0 for batch in batches):
        raise ShapeError("images: expected at least one batch (n, c, h, w) that is not empty")
    with _threshold_of(model):
        return _calibrate(model, batches, target_size, target_agreement, agreement or _same_answers)


def _calibrate(
    model: BrightnessFocused,
    batches: list[torch.Tensor],
    target_size: float | None,
    target_agreement: float | None,
    agreement: Callable[[Any, Any], float],
) -> Calibration:
    dense, bright = [], []
    model.threshold = float("-inf")
    for batch in batches:
        dense.append(model(batch))
        bright += [_ascending(one) for one in model.last_brightness()]
    fine = _quantiles(bright, _FINE)
    all_sizes = [_mean_size(bright, threshold) for threshold in fine]
    chosen = _for_size(fine, all_sizes, target_size) if target_size is not None else None
    picks = sorted({float("-inf"), *_spread(fine, all_sizes), *([chosen] if chosen is not None else [])})
    agreements = [0.0] * len(picks)
    for batch, wanted in zip(batches, dense, strict=True):  # batches outside: another size of batch is captured anew
        for i, threshold in enumerate(picks):
            model.threshold = threshold
            agreements[i] += agreement(model(batch), wanted) * len(batch)
    agreements = [value / sum(map(len, batches)) for value in agreements]
    sizes = [_mean_size(bright, threshold) for threshold in picks]
    if chosen is None:
        assert target_agreement is not None
        reaching = [i for i, value in enumerate(agreements) if value >= target_agreement]
        if not reaching:  # everything agrees with itself, unless `agreement` says otherwise
            raise ValueError(f"no threshold reaches an agreement of {target_agreement:.3g}; the best is {max(agreements):.3g}.")
        best = min(reaching, key=lambda i: sizes[i])
    else:
        best = picks.index(chosen)
    return Calibration(picks[best], sizes[best], agreements[best], tuple(picks), tuple(sizes), tuple(agreements))


class _threshold_of:  # noqa: N801  (used as a function)
    """Puts the threshold back."""

    def __init__(self, model: BrightnessFocused) -> None:
        self.model, self.value = model, model.threshold

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.model.threshold = self.value


def _ascending(brightness: torch.Tensor) -> torch.Tensor:
    values = brightness.flatten().float().cpu()
    return values[~values.isnan()].sort().values if bool(values.isnan().any()) else values.sort().values


def _mean_size(bright: list[torch.Tensor], threshold: float) -> float:
    """Mean share of positions that are bright enough; 1 for a picture without any, which is computed whole."""
    shares = []
    for values in bright:
        kept = values.numel() - int(torch.searchsorted(values, threshold))
        shares.append(kept / values.numel() if kept else 1.0)
    return sum(shares) / len(shares)


def _quantiles(bright: list[torch.Tensor], count: int) -> list[float]:
    """Ascending values of the brightness between which few positions lie, of all pictures and of each one's brightest end."""
    pooled = torch.cat(bright).sort().values
    where = torch.linspace(0, 1, count).square().mul(-1).add(1).mul(len(pooled) - 1).round().long()
    return sorted(set(pooled[where].tolist()))


def _for_size(thresholds: list[float], sizes: list[float], target: float) -> float:
    for threshold, size in zip(thresholds, sizes, strict=True):
        if size <= target:
            return threshold
    raise ValueError(f"no threshold gives areas of {target:.3g} or less: the smallest are {min(sizes):.3g}. Raise `target_size`.")


def _spread(thresholds: list[float], sizes: list[float]) -> Iterator[float]:
    """Some of the thresholds, at about even steps of size."""
    for index in range(_CANDIDATES):
        wanted = 1 - (index + 0.5) / _CANDIDATES
        yield min(zip(thresholds, sizes, strict=True), key=lambda pair: abs(pair[1] - wanted))[0]


def _same_answers(focused: Any, dense: Any) -> float:
    """Share of equal largest entries along the channels; of equal signs where there is one channel."""
    shares = []
    for got, want in zip(pytree.tree_leaves(focused), pytree.tree_leaves(dense), strict=True):
        if got.dim() < 2 or got.shape[1] == 1:
            shares.append(float(((got > 0) == (want > 0)).float().mean()))
        else:
            shares.append(float((got.argmax(1) == want.argmax(1)).float().mean()))
    return sum(shares) / len(shares)
