"""A temporal filter against noise: every pixel that did not move is averaged over time.

What belongs here: the filter's settings, its state, its two forms (native and PyTorch). What does not: what counts as a change of the
filtered frame, which is the executor's business.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

import torch
from torch.nn import functional

from sightline import kernels
from sightline.camera.sample import sampled
from sightline.errors import FrameError

NOT_FINITE = "`frame` holds NaN or Inf. Clean it (torch.nan_to_num) or skip it; the stream has not moved and takes the next frame."
_VOTES = 3  # of the 5x5 neighbourhood: isolated pixels do not move
_RATE = 1 / 16  # of the recursion of the spread
_SAMPLES = 4096  # pixels of a frame from which the kind of noise is estimated
_STAGGER = 80  # elements between maps: an odd number of cache lines
_DECAY = 0.8  # per four frames, of that estimate
_MEDIAN = 0.6  # of the mean square of a few Gaussian channels, in units of its mean; roughly, for 1 to 4 channels


@dataclass(frozen=True)
class TemporalNoise:
    """Settings of the temporal noise filter, for ``stream(noise=...)``; ``noise="temporal"`` stands for the defaults.

    Attributes:
        strength: a pixel may have moved if it is further than this many times its noise from its mean; > 0.
        dilation: rim around what moved that is taken over too, in pixels, 0 to 16.
        memory: frames over which a pixel that did not move is averaged, >= 1. None: estimated from the video, anew with every frame. The
            noise of a sensor is new in every frame, and long means remove it; the noise of a video codec stays until the codec sends a
            block again, and a mean over old frames would be further from the truth than the last one.

    Raises:
        ValueError: a value is outside its range.
    """

    strength: float = 3.0
    dilation: int = 1
    memory: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength < math.inf:
            raise ValueError(f"`strength` must be a finite number > 0; got {self.strength!r}.")
        if not isinstance(self.dilation, int) or not 0 <= self.dilation <= 16:
            raise ValueError(f"`dilation` must be a whole number of pixels from 0 to 16; got {self.dilation!r}.")
        if self.memory is not None and not 1 <= self.memory < math.inf:
            raise ValueError(f"`memory` must be a number of frames >= 1, or None; got {self.memory!r}.")

    def __str__(self) -> str:
        """The name under which files and reports know these settings; `parse_noise` reads it."""
        given = [f"{f.name}={getattr(self, f.name):g}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"temporal({', '.join(given)})" if given else "temporal"


Noise = str | TemporalNoise | None


def parse_noise(noise: object) -> Noise:
    """What `stream` takes as `noise`: None, "vote", "block", a `TemporalNoise` or its name, "temporal".

    Raises:
        ValueError: it is none of these.

    >>> parse_noise("temporal(strength=4, memory=16)")
    TemporalNoise(strength=4.0, dilation=1, memory=16.0)
    """
    if noise is None or isinstance(noise, TemporalNoise) or (isinstance(noise, str) and noise in {"vote", "block"}):
        return noise
    match = re.fullmatch(r"temporal(?:\(([^()]*)\))?", noise) if isinstance(noise, str) else None
    if match is None:
        raise ValueError(f"`noise` must be one of None, 'vote', 'block', 'temporal' or a TemporalNoise; got {noise!r}.")
    given: dict[str, float | int] = {}
    for part in filter(None, re.split(r"\s*,\s*", (match[1] or "").strip())):
        key, _, value = part.partition("=")
        if key not in {f.name for f in fields(TemporalNoise)}:
            raise ValueError(f"`noise`: temporal takes strength, dilation and memory; got {part!r}.")
        try:
            given[key] = int(value) if key == "dilation" else float(value)
        except ValueError:
            raise ValueError(f"`noise`: {key} must be a number; got {value!r}.") from None
    return TemporalNoise(**given)  # type: ignore[arg-type]


@dataclass
class _State:
    """What is known about each pixel."""

    mean: torch.Tensor  # (n, c, h, w): what the network sees
    spread: torch.Tensor  # (n, 1, h, w): mean square of the noise
    age: torch.Tensor  # (n, 1, h, w) uint8: frames that the mean stands for, at most 255; 0: one, and the pixel has just moved

    @classmethod
    def like(cls, frame: torch.Tensor, shift: int) -> _State:
        """Memory for a frame. No two maps begin at the same place of a page: planes of common sizes would, and evict each other."""
        n, c, h, w = frame.shape
        plane = -(-h * w // 16) * 16 + _STAGGER
        memory = torch.zeros(n * (c + 1) * plane + shift * (c + 1) * _STAGGER, dtype=frame.dtype, device=frame.device)
        memory = memory[shift * (c + 1) * _STAGGER :]
        maps = memory.as_strided((n, c + 1, h, w), ((c + 1) * plane, plane, w, 1), memory.storage_offset())
        return cls(maps[:, :c], maps[:, c:], torch.ones((n, 1, h, w), dtype=torch.uint8, device=frame.device))


class TemporalFilter:
    """The filter of one video; batch elements are videos of their own.

    Every pixel has a mean and a noise level. A pixel *moved* iff at least 3 of its 5x5 neighbourhood are further from their means than
    `strength` times their noise; it and a rim of `dilation` pixels are taken over as they are. All others are averaged; one that
    stays away from its mean is followed within a few frames.

    Args:
        settings: see `TemporalNoise`.
        native: may use the compiled kernels (float32, bfloat16 and float16 on the CPU; everything else runs on PyTorch).
    """

    def __init__(self, settings: TemporalNoise, *, native: bool = True) -> None:
        self.settings = settings
        self._native = native
        self._state: _State | None = None
        self._spare: _State | None = None
        self._frames = 0
        self._kind = _NoiseKind(settings.memory)

    def __call__(self, frame: torch.Tensor, limit: float = 0.0) -> torch.Tensor:
        """Takes the next frame.

        Args:
            frame: float (n, c, h, w), always of the same size, type and device; not modified.
            limit: deviations below it, root mean square over channels, are noise whatever else is known.

        Returns:
            The filtered frame, valid until the next call. float32 for half precision.

        Raises:
            FrameError: the frame holds NaN or Inf; the filter stays as it was.

        Cost: natively 2.0 to 2.4 times that of comparing the frame (measured at 320x240 to 1920x1080); 2.8 frames as state.
        """
        if frame.dtype in {torch.bfloat16, torch.float16}:
            frame = frame.float()
        if self._state is None:
            return self._start(frame)
        if self._frames == 1:
            self._guess_spread(frame, self._state)
        if self._native and frame.dtype == torch.float32 and frame.device.type == "cpu" and kernels.native() is not None:
            self._step_native(frame, limit, self._state)
        else:
            self._step(frame, limit, self._state)
        self._frames += 1
        self._kind.see(frame, self._state.age)
        return self._state.mean

    def reset(self) -> None:
        """Forgets all frames."""
        self._state = self._spare = None
        self._frames = 0
        self._kind = _NoiseKind(self.settings.memory)

    @property
    def moved(self) -> torch.Tensor | None:
        """Bool (n, h, w): what moved in the last frame, rims included; None before the second."""
        return None if self._state is None or self._frames < 2 else self._state.age[:, 0] == 0

    @property
    def gain(self) -> list[float]:
        """Least weight of a frame in the means, per batch element: 1 / memory."""
        return self._kind.gain

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        states = [state for state in (self._state, self._spare) if state is not None]
        return sum(t.nbytes for s in states for t in (s.mean, s.spread, s.age))

    def _start(self, frame: torch.Tensor) -> torch.Tensor:
        if not bool(torch.isfinite(frame).all()):
            raise FrameError(NOT_FINITE)
        self._state = _State.like(frame, 0)
        self._state.mean.copy_(frame)
        self._frames = 1
        self._kind.see(frame, None)
        return self._state.mean

    def _guess_spread(self, frame: torch.Tensor, state: _State) -> None:
        """From the second frame: most pixels did not move."""
        median = (sampled(frame, _SAMPLES) - sampled(state.mean, _SAMPLES)).square().mean(1).flatten(1).median(1).values
        state.spread.copy_((median / (2 * _MEDIAN)).nan_to_num(0.0, 0.0)[:, None, None, None].expand_as(state.spread))

    # -- native ---------------------------------------------------------------------------------------------------------

    def _step_native(self, frame: torch.Tensor, limit: float, state: _State) -> None:
        module = kernels.native()
        assert module is not None
        if self._spare is None:
            self._spare = _State.like(frame, 1)
        if frame.stride(3) != 1 and frame.shape[3] > 1:
            frame = frame.contiguous()
        kernels.apply_num_threads()
        finite = module.filter_noise(
            kernels.isa(), frame.data_ptr(), frame.stride()[:3], tuple(frame.shape),
            (self.settings.strength, limit, _RATE, _VOTES, self.settings.dilation), self.gain,
            _addresses(state), _addresses(self._spare),
        )  # fmt: skip
        if not finite:
            raise FrameError(NOT_FINITE)
        self._state, self._spare = self._spare, state

    # -- PyTorch --------------------------------------------------------------------------------------------------------

    def _step(self, frame: torch.Tensor, limit: float, state: _State) -> None:
        if not bool(torch.isfinite(frame).all()):
            raise FrameError(NOT_FINITE)
        delta = frame - state.mean
        square = delta.square().mean(1, keepdim=True)
        age = state.age.clamp(min=1).to(frame.dtype)
        noise = state.spread.clamp(min=limit * limit)
        fired = square * age > self.settings.strength**2 * noise * (age + 1)
        votes = functional.avg_pool2d(fired.to(frame.dtype), 5, 1, 2, divisor_override=1)
        moved = votes > _VOTES - 0.5
        rim = self.settings.dilation
        if rim:
            moved = functional.max_pool2d(moved.to(frame.dtype), 2 * rim + 1, 1, rim) > 0.5
        gain = torch.tensor(self.gain, dtype=frame.dtype, device=frame.device).view(-1, 1, 1, 1)
        weight = torch.maximum(1 / (age + 1), gain)
        seen = torch.minimum(square * age / (age + 1), 4 * noise)  # one odd frame says little
        self._state = _State(
            torch.where(moved, frame, state.mean + weight * delta).contiguous(),
            torch.where(moved, state.spread, state.spread + _RATE * (seen - state.spread)),
            torch.where(moved, 0, torch.where(fired, 1, (age + 1).clamp(max=255))).to(torch.uint8),
        )


class _NoiseKind:
    """How long the noise of a pixel lasts, from a few thousand pixels that did not move.

    A pixel that shows s + e, with noise e of variance r that is new in every frame and an s that wanders by a variance q per frame, differs
    from itself k frames ago by 2 r + k q in the mean square. With k = 1 and 2 both are known, and so is the best recursive filter, whose
    gain is (sqrt(a^2 + 4 a) - a) / 2 with a = q / r (Kalman).
    """

    def __init__(self, memory: float | None) -> None:
        self._memory = memory
        self._count = 0
        self._frames: list[torch.Tensor] = []
        self._moved: list[torch.Tensor] = []
        self._sums: torch.Tensor | None = None  # (n, 2) float64: mean squares over one and over two frames
        self.gain: list[float] = []

    def see(self, frame: torch.Tensor, age: torch.Tensor | None) -> None:
        """Takes a frame (n, c, h, w) and the ages of its pixels, 0 where they moved. Of four frames, it looks at three."""
        self.gain = self.gain or [0.5 if self._memory is None else 1 / self._memory] * frame.shape[0]
        self._count += 1
        if self._memory is not None or self._count % 4 == 0:
            return
        self._frames.append(sampled(frame, _SAMPLES).clone())
        if age is not None:
            self._moved.append(sampled(age, _SAMPLES) == 0)
        if self._count % 4 == 3:
            self._add()
            self._frames, self._moved = [], []

    def _add(self) -> None:
        still = ~torch.stack(self._moved[-2:]).any(0)
        *before, last = self._frames
        squares = [((last - sample).square().mean(1, keepdim=True) * still).sum((1, 2, 3)) for sample in reversed(before)]
        new = torch.stack(squares, 1).double()
        self._sums = new if self._sums is None else self._sums * _DECAY + new
        self.gain = [_best_gain(*row) for row in self._sums.tolist()]


def _best_gain(one: float, two: float) -> float:
    """The Kalman gain of a pixel that differs by these mean squares from itself one and two frames ago (times any factor)."""
    if not one > 0:
        return 1.0
    ratio = max(two - one, 0.0) / max(one - two / 2, 1e-3 * one)
    return max((math.sqrt(ratio * ratio + 4 * ratio) - ratio) / 2, 1 / 64)


def _addresses(state: _State) -> tuple[int, int, int]:
    """Of the maps, from one to the next, of the ages."""
    return state.mean.data_ptr(), state.mean.stride(1), state.age.data_ptr()
