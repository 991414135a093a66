"""What every frame of a stream goes through before the network: exposure, scene cuts, refreshes, the temporal noise filter.

What belongs here: the order of these, and when everything is to be computed again. What does not: how each of them decides (the
modules beside this one), the canvas of a moving camera, and computing.
"""

from __future__ import annotations

import torch

from sightline.camera.cuts import CutDetector
from sightline.camera.exposure import ExposureFilter
from sightline.camera.noise import NOT_FINITE, Noise, TemporalFilter, TemporalNoise
from sightline.errors import FrameError


class Intake:
    """The frames of one video on their way to the network.

    A frame is passed to `arrive`, what that returns to `filtered`, and `taken` is called when the network has run. A frame that was refused
    on the way leaves everything as it was.

    Args:
        exposure: None or "global", see `stream`.
        scene_cuts: whether cuts restart the video.
        looks_for_cuts: whether that is decided here.
        refresh: frames after which everything is computed again; None: never by itself.

    Attributes:
        exposure, scene_cuts, refresh: as given.
        restarted: the frame that arrived last shows another scene, or the same at another exposure for good.
        refreshed: it is computed whole because that was asked for.
        due: the next frame is to be computed whole.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, exposure: str | None, scene_cuts: bool, refresh: int | None, *, looks_for_cuts: bool = True) -> None:
        if exposure not in (None, "global"):
            raise ValueError(f"`exposure` must be one of None, 'global'; got {exposure!r}.")
        if scene_cuts not in (True, False):
            raise ValueError(f"`scene_cuts` must be one of True, False; got {scene_cuts!r}.")
        if refresh is not None and (isinstance(refresh, bool) or not isinstance(refresh, int) or refresh < 1):
            raise ValueError(f"`refresh` must be a number of frames >= 1, or None; got {refresh!r}.")
        self.exposure, self.scene_cuts, self.refresh = exposure, scene_cuts, refresh
        self.restarted = self.refreshed = self.due = False
        self._exposure = ExposureFilter() if exposure else None
        self._cuts = CutDetector() if scene_cuts and looks_for_cuts else None
        self._filter: TemporalFilter | None = None
        self._since = 0  # frames since everything was computed

    def set_noise(self, noise: Noise, *, native: bool) -> None:
        """Sets the temporal filter; other noise filters are the executor's. `native`: it may use the compiled kernels."""
        self._filter = TemporalFilter(noise, native=native) if isinstance(noise, TemporalNoise) else None

    @property
    def filters(self) -> bool:
        """Whether there is a temporal filter."""
        return self._filter is not None

    @property
    def running(self) -> bool:
        """Whether the video has begun."""
        return self._since > 0

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of state by what they are for."""
        parts = {"noise filter": self._filter, "exposure": self._exposure, "scene cuts": self._cuts}
        return {name: part.nbytes for name, part in parts.items() if part is not None}

    def arrive(self, frame: torch.Tensor, limit: float) -> torch.Tensor:
        """Takes the next frame (n, c, h, w) and returns it at the held exposure; sets `restarted` and `refreshed`.

        Args:
            frame: not modified.
            limit: absolute threshold of the frame.

        Raises:
            FrameError: everything would be computed again, but the frame holds NaN or Inf.
        """
        self.restarted = self.refreshed = False
        cut = self._cuts is not None and self._cuts.look(frame, limit) and self.running
        exposed = self._exposure(frame, limit) if self._exposure is not None else frame
        due = self.running and (self.due or self._since == self.refresh)
        if exposed is not None and not cut and not due:
            return exposed
        if not bool(torch.isfinite(frame).all()):
            raise FrameError(NOT_FINITE)
        self.restarted = cut or exposed is None
        self.refreshed = not self.restarted
        if self.restarted:
            self.forget_noise()
        if self._exposure is None:
            return frame
        self._exposure.reset()
        exposed = self._exposure(frame)
        assert exposed is not None
        return exposed

    def filtered(self, frame: torch.Tensor, limit: float) -> torch.Tensor:
        """What the network is to see of a frame; valid until the next one. `limit`: root mean square over channels."""
        return frame if self._filter is None else self._filter(frame, limit / 2).to(frame.dtype)

    def restart(self) -> None:
        """The frame that arrived last turns out to show another scene."""
        self.restarted, self.refreshed = True, False
        self.forget_noise()

    def taken(self) -> None:
        """The frame that arrived last has become part of the video."""
        for part in (self._cuts, self._exposure):
            if part is not None:
                part.keep()
        self._since = 1 if self.restarted or self.refreshed else self._since + 1
        self.due = False

    def forget_noise(self) -> None:
        """Lets the temporal filter start anew: the next frame shows another scene, or this one was not run to its end."""
        if self._filter is not None:
            self._filter.reset()

    def reset(self) -> None:
        """Forgets all frames."""
        for part in (self._filter, self._exposure, self._cuts):
            if part is not None:
                part.reset()
        self._since, self.due = 0, False
