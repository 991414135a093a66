"""Exposure: one gain and one offset per channel between a frame and what a stream holds.

What belongs here: estimating both, applying them, and saying when the held exposure is out of date. What does not: what a stream does then.
"""

from __future__ import annotations

import math
from collections import deque

import torch

from sightline.camera.sample import sampled

_SAMPLES = 1024  # pixels
_ROUNDS = 3  # of leaving out what does not fit
_OUTLIER = 3.0  # times the median residual
_LARGEST = 2.0  # gain, up or down, that is compensated
_WINDOW = 64  # frames over which a change must last to be taken over
_CLIPPED = 0.02  # share of values at the largest one
_FLAT = 1e-6


class ExposureFilter:
    """Brings the frames of a video to the exposure of the first one, or of the last one that was taken over.

    For lamps that flicker and cameras that adjust themselves. Estimated per batch element and channel, from about a thousand pixels;
    pixels that moved do not fit and are left out. Where what would be corrected is less than the noise, the frame passes as it is.

    Cost: one pass over the frame where it is corrected, otherwise next to nothing.
    """

    def __init__(self) -> None:
        self._held: torch.Tensor | None = None  # (n, c, k): samples, at the held exposure
        self._next: torch.Tensor | None = None
        self._out: torch.Tensor | None = None
        self._last: torch.Tensor | None = None  # the frame before, if pixels were clipped
        self._clipped = False
        self._shift: float = 0.0
        self._shifts: deque[float] = deque(maxlen=_WINDOW)

    def __call__(self, frame: torch.Tensor, limit: float = 0.0) -> torch.Tensor | None:
        """The frame, float (n, c, h, w), at the held exposure; nothing is remembered before `keep`.

        Args:
            frame: not modified.
            limit: a correction by less than a quarter of this, on the average, is not made.

        Returns:
            The frame itself, or a tensor of the same size and type that is valid until the next call; None if the held exposure should be
            given up: `reset`, and start again with this frame.
        """
        sample = _sample(frame)
        self._shift = 0.0
        if self._held is None or not bool(torch.isfinite(sample).all()):
            self._next = sample
            self._remember(frame, sample)
            return frame
        held = self._held
        if torch.equal(held, sample):
            self._next = held
            self._remember(frame, sample)
            return frame
        gain, offset, residual = _fit(held, sample)
        effect = (gain * sample + offset - sample).abs().mean((1, 2))
        if not bool((effect > torch.clamp(residual / 2, min=limit / 4)).any()):
            gain, offset = torch.ones_like(gain), torch.zeros_like(offset)
        deviation = (sample - sample.mean(2, keepdim=True)).abs().mean((1, 2)).clamp(min=_FLAT)
        shifts = ((gain - 1) * sample.mean(2, keepdim=True) + offset).mean((1, 2)) / deviation
        self._shift = float(shifts[shifts.abs().argmax()])
        if bool((gain > _LARGEST).any()) or bool((gain < 1 / _LARGEST).any()) or self._lasts():
            return None
        near = _OUTLIER * torch.clamp(residual, min=limit / 2)[:, None, None]
        if not bool((gain != 1).any()) and not bool((offset != 0).any()):
            self._remember(frame, sample)
            self._next = torch.where((sample - held).abs() > near, sample, held)
            return frame
        if self._out is None or self._out.shape != frame.shape:
            self._out = torch.empty_like(frame, memory_format=torch.contiguous_format)
        torch.addcmul(offset.to(frame.dtype)[..., None], frame, gain.to(frame.dtype)[..., None], out=self._out)
        white, held_white = _white(sample), _white(held)
        if held_white is not None:  # what is held knows nothing above
            self._out.clamp_(max=held_white.to(frame.dtype))
        if white is not None and self._last is not None:  # a clipped pixel is at least as bright as it says
            lit = frame >= white.to(frame.dtype)
            torch.where(lit, torch.maximum(self._out, self._last), self._out, out=self._out)
        self._clipped = white is not None or held_white is not None
        shown = _sample(self._out)
        self._next = torch.where((shown - held).abs() > near, shown, held)
        return self._out

    def _remember(self, frame: torch.Tensor, sample: torch.Tensor) -> None:
        """Keeps a frame that passes as it is, if later ones may have to look up what their clipped pixels were."""
        self._clipped = _white(sample) is not None
        if self._clipped:
            if self._out is None or self._out.shape != frame.shape:
                self._out = torch.empty_like(frame, memory_format=torch.contiguous_format)
            self._out.copy_(frame)

    def keep(self) -> None:
        """The frame that was corrected has become part of the video."""
        if self._next is not None:
            self._shifts.append(self._shift)
            self._held, self._next = self._next, None
            if self._clipped:
                self._last, self._out = self._out, self._last
            else:
                self._last = None

    def reset(self) -> None:
        """Forgets all frames."""
        self._held = self._next = self._last = None
        self._shifts.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        return sum(value.nbytes for value in (self._held, self._out, self._last) if value is not None)

    def _lasts(self) -> bool:
        """Whether the exposure has been elsewhere for a long time, and has not just gone to and fro."""
        shifts = [*self._shifts, self._shift][-_WINDOW:]
        if len(shifts) < _WINDOW:
            return False
        mean = math.fsum(shifts) / _WINDOW
        spread = math.sqrt(math.fsum((shift - mean) ** 2 for shift in shifts) / _WINDOW)
        return abs(mean) > 0.05 and abs(mean) > 2 * spread


def _fit(held: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gain and offset (n, c, 1) with ``held = gain * sample + offset`` where nothing moved, and the usual residual (n,).

    Least squares over what fits; the first guess are the medians of the difference, at gain 1, and of the ratio, at offset 0, whichever is
    nearer.
    """
    shift = (held - sample).median(2, keepdim=True).values
    ratio = (held / torch.where(sample.abs() > _FLAT, sample, _FLAT)).median(2, keepdim=True).values
    ratio = ratio.clamp(1 / (2 * _LARGEST), 2 * _LARGEST)
    added, scaled = sample + shift - held, ratio * sample - held
    nearer = added.abs().median(2, keepdim=True).values <= scaled.abs().median(2, keepdim=True).values
    gain, offset = torch.where(nearer, 1.0, ratio), torch.where(nearer, shift, 0.0)
    low, high = sample.amin(2, keepdim=True), sample.amax(2, keepdim=True)
    unclipped = (sample > low) & (sample < high) & (held > held.amin(2, keepdim=True)) & (held < held.amax(2, keepdim=True))
    for _ in range(_ROUNDS):
        off = (gain * sample + offset - held).abs()
        usual = off.median(2, keepdim=True).values
        fits = ((off <= _OUTLIER * usual) & unclipped).to(sample.dtype)
        count = fits.sum(2, keepdim=True).clamp(min=1)
        x, y = (fits * sample).sum(2, keepdim=True) / count, (fits * held).sum(2, keepdim=True) / count
        dx = (sample - x) * fits
        spread = dx.square().sum(2, keepdim=True)
        slope = (dx * (held - y)).sum(2, keepdim=True) / spread.clamp(min=_FLAT)
        usable = (spread > _FLAT * count) & (count > 16)
        gain = torch.where(usable, slope, gain)
        offset = torch.where(usable, y - slope * x, offset)
    residual = (gain * sample + offset - held).abs().flatten(1).median(1).values
    return gain, offset, residual


def _white(sample: torch.Tensor) -> torch.Tensor | None:
    """The largest value per channel (n, c, 1, 1), if so many pixels have it that brighter ones must have been clipped."""
    largest = sample.amax(2, keepdim=True)
    if float((sample == largest).float().mean()) < _CLIPPED:
        return None
    return largest[..., None]


def _sample(frame: torch.Tensor) -> torch.Tensor:
    """(n, c, k) float32 or float64: pixels on a regular grid."""
    sample = sampled(frame, _SAMPLES).flatten(2)
    return sample.clone() if sample.dtype == torch.float64 else sample.to(torch.float32, copy=True)
