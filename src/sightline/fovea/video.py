"""`stream`: a network that looks, on video. Points whose pixels did not change, at fixations that did not move, are not computed again.

What belongs here: frames and fixations in, answers out. Computing only what changed belongs to `sightline.stream`, to which every fixation
is a video of its own: the points that the retina reads there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sightline.errors import ShapeError
from sightline.explain import Explanation
from sightline.fovea.fovinet import FoviNet
from sightline.fovea.retina import RetinalTransform
from sightline.fovea.saccades.random import NoSaccades
from sightline.stats import Stats
from sightline.stream import Stream
from sightline.thresholds import Thresholds

_Fixations = Tensor | Sequence[Any] | None


def stream(
    network: nn.Module,
    threshold: float | Mapping[str, float] = 0.0,
    *,
    retina: RetinalTransform | None = None,
    threshold_unit: str = "std",
    input_threshold: float | str | None = None,
    norm: str = "rms",
    refresh: int | None = None,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
) -> FoveaStream:
    """Makes a function of a network that looks, to be called frame by frame; it computes only what changed since the frame before.

    Use it where the camera stands still and the eye rests for some frames. At a fixation that moves, every point is new and is computed;
    the other fixations of that frame are not touched by it. For points that you sample yourself, or a network without a retina,
    take `sightline.stream`, whose frames may be points (n, c, N).

    Args:
        network: a `FoviNet`; or a network on sensor points (n, c, N), a `KNNAlexNet` say, with its `retina`. Run as in eval mode, and never
            modified. Weights are copied when the first frame comes.
        threshold: as for `sightline.stream`: how much a point of a layer may move before it counts; 0 is exact.
        retina: what looks, for networks other than `FoviNet`.
        threshold_unit: "std" (of each layer's values on the first frame) or "absolute".
        input_threshold: the same for the samples themselves; default: `threshold`.
        norm: over channels: "rms", "max" or "l2".
        refresh: every so many frames, everything is computed again; None: never by itself.
        backend: "auto", "native" or "torch".
        dtype: element type to compute in; default: the samples'.

    Returns:
        A `FoveaStream`.

    Raises:
        ShapeError: a network without a retina.
        ValueError: an argument is outside its range.

    Exact when: the threshold is 0; the native executor is then bit-equal to its own dense run.
    Cost: per fixation, the retina's samples, and of each layer the share of its points that read something that changed.
    Source: hold-and-recompute, docs/design.md.

    Example:
        >>> from sightline.fovea import FoviNet, compose
        >>> small = ["saccades.resize_size=16", "model.channel_mult=0.1", "model.mlp=32", "data.num_classes=5"]
        >>> video = stream(FoviNet(compose("fovi_alexnet", small)))
        >>> frame = torch.rand(1, 3, 64, 64)
        >>> scores, outputs, samples = video(frame, fixations=[(0.5, 0.5), (0.25, 0.75)])
        >>> samples.shape, video.stats.last.macs_share
        (torch.Size([1, 2, 3, 230]), 1.0)
        >>> _ = video(frame)
        >>> video.stats.last.macs_share
        0.0
    """
    return FoveaStream(
        network,
        threshold,
        retina=retina,
        threshold_unit=threshold_unit,
        input_threshold=input_threshold,
        norm=norm,
        refresh=refresh,
        backend=backend,
        dtype=dtype,
    )


class _Encoder(nn.Module):
    """The part of a `FoviNet` behind its retina: (n, c, N) to embeddings and layer outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, samples: Tensor) -> Any:
        return self.network(samples, return_layer_outputs=True)


class FoveaStream:
    """One video through one network that looks; made by `stream`.

    Attributes:
        network: the stream of points behind the retina (`sightline.Stream`), whose batch elements are the fixations of all images.
        fixations: (B, F, 2) where the last frame was looked at; None before the first.
        sizes: (B, F, 2) pixels that the field of view covered there.
    """

    def __init__(self, network: nn.Module, threshold: float | Mapping[str, float] = 0.0, **options: Any) -> None:
        retina = options.pop("retina", None)
        self._given = network
        if isinstance(network, FoviNet):
            if retina is not None:
                raise ShapeError("`retina`: a FoviNet has its own; leave it out.")
            encoder: nn.Module = _Encoder(network.network)
            policy = network.sup_fixator or network.ssl_fixator
            if policy is None:
                raise ShapeError("`network`: its configuration has no saccade policy; set saccades.sup_policy.")
            self._head = copy.deepcopy(network.head).eval() if network.head is not None else None
        else:
            if not isinstance(retina, RetinalTransform):
                raise ShapeError("`network`: only a FoviNet has a retina of its own; pass retina=RetinalTransform(...).")
            encoder, policy, self._head = network, NoSaccades(retina), None
        # Copies in eval mode: the user's own may be in training, whose augmentation would change every point of every frame.
        self._policy = copy.deepcopy(policy).eval()
        self._options = options
        self.network = Stream(encoder, threshold, scene_cuts=False, **options)
        self.fixations: Tensor | None = None
        self.sizes: Tensor | None = None
        self._ask = True

    def __repr__(self) -> str:
        glances = 0 if self.fixations is None else self.fixations.shape[1]
        return f"FoveaStream({type(self._given).__name__}, {glances} fixations, {self.stats.total.frames} frames)"

    def __call__(
        self,
        images: Tensor,
        fixations: _Fixations = None,
        *,
        n_fixations: int | None = None,
        fixation_size: Tensor | Sequence[float] | float | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Looks at the next frame.

        Args:
            images: (B, C, H, W), floating or uint8: the next frame of B videos, of any size.
            fixations: (row, col) from 0 to 1: (B, F, 2), or a list of F fixations, each a pair or (B, 2). None: those of the frame
                before; on the first frame, or after `look_again`, those of the network's policy.
            n_fixations: how many the policy is asked for.
            fixation_size: pixels that the field of view covers. None: as in the frame before, at first the policy's.
            generator: of the policy's random numbers.

        Returns:
            What ``network(images)`` returns: for a `FoviNet` its answer in eval mode, the layer outputs (B, F, d) and the samples
            (B, F, C, N). For another network, its own outputs with (B, F) in place of the batch.

        Raises:
            ShapeError: another number of images or fixations than before; call `reset` first.
            ValueError: fixations that are NaN or outside the image.
            FrameError: samples that are NaN or infinite. In all cases the stream stays as it was.
        """
        glimpses = self._look(images, fixations, n_fixations, fixation_size, generator)
        batch, glances = glimpses.fixations.shape[:2]
        if self.fixations is not None and tuple(self.fixations.shape[:2]) != (batch, glances):
            ran, looked = self.fixations.shape[:2]
            raise ShapeError(f"{batch} images with {glances} fixations came, this stream runs {ran} with {looked}; call reset() first.")
        outputs = self.network(glimpses.samples.flatten(0, 1))
        self.fixations, self.sizes, self._ask = glimpses.fixations.detach(), glimpses.sizes.detach(), False
        outputs = pytree.tree_map(lambda value: value.unflatten(0, (batch, glances)), outputs)
        if not isinstance(self._given, FoviNet):
            return outputs
        embeddings, layers = outputs
        with torch.no_grad():
            answer = embeddings if self._head is None else self._head(embeddings)
        return answer, layers, glimpses.samples

    @torch.no_grad()
    def _look(self, images: Tensor, fixations: _Fixations, n_fixations: int | None, size: Any, generator: torch.Generator | None) -> Any:
        if fixations is None and n_fixations is None and self.fixations is not None and self.sizes is not None and not self._ask:
            fixations = self.fixations
            if size is None and isinstance(images, Tensor) and len(images) == len(fixations):
                return self._policy.look(images, fixations, self.sizes)
        if size is None and fixations is not None and self.sizes is not None:
            count = fixations.shape[1] if isinstance(fixations, Tensor) and fixations.ndim == 3 else len(fixations)
            size = self.sizes if self.sizes.shape[:2] == (len(images), count) else None
        network = self._given if isinstance(self._given, FoviNet) else None
        generator = generator or getattr(network, "generator", None)
        return self._policy(images, n_fixations=n_fixations, fixations=fixations, fixation_size=size, generator=generator, model=network)

    def look_again(self) -> None:
        """Lets the policy choose the fixations of the next frame, if that comes without any."""
        self._ask = True

    def reset(self) -> None:
        """Forgets all frames and fixations."""
        self.network.reset()
        self.fixations = self.sizes = None
        self._ask = True

    def clone(self) -> FoveaStream:
        """A new stream over the same capture and the same packed weights, with the same thresholds and no frames yet."""
        twin = copy.copy(self)
        twin.network = self.network.clone()
        twin.fixations = twin.sizes = None
        twin._ask = True
        return twin

    @property
    def thresholds(self) -> Thresholds:
        """Call-site name -> threshold, editable at any time; known once the first frame has come."""
        return self.network.thresholds

    @property
    def stats(self) -> Stats:
        """Counters of the last frame and of all frames since the last reset; what the retina and the head cost is not part of them."""
        return self.network.stats

    def explain(self) -> Explanation:
        """A table of all call sites behind the retina."""
        return self.network.explain()

    def memory(self) -> dict[str, Any]:
        """Bytes of this stream's state, see `sightline.Stream.memory`."""
        return self.network.memory()
