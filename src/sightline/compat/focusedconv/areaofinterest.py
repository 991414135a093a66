"""The area of interest under its names in focusedconv, and the layer that finds it by brightness."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import ShapeError
from sightline.extras import need
from sightline.sites import Grid, Sites


class AoI:
    """Where focused convolutions compute: a mask that is not zero inside.

    Live: edit `mask_tensor` in place or set another one, and the next forward sees it. Every layer that points to it shares it, and it
    stays in force until it is changed. `sightline.AreaOfInterest` is the same idea with more ways to make one.

    Args:
        mask_tensor: (h, w) at any resolution, of any type, not zero (NaN too) = inside; also (n, h, w) or (n, 1, h, w) with one mask per
            batch element. A tensor without elements: no area is set, everything is computed.

    Attributes:
        mask_tensor: the tensor itself.

    Example:
        >>> aoi = AoI(torch.tensor([[1, 0], [0, 0]]))
        >>> aoi.calculate_aoi_size()
        0.25
        >>> aoi.mask_tensor[0, 1] = 1
        >>> aoi.calculate_aoi_size(), aoi.boxes()
        (0.5, [(0, 0, 1, 2)])
    """

    def __init__(self, mask_tensor: Tensor = torch.Tensor()) -> None:  # noqa: B008 - never written to
        self.mask_tensor = mask_tensor
        self._lock = threading.Lock()
        self._seen: Tensor | None = None  # held, so that no other tensor gets its place in memory
        self._edits = -1
        self._content: Tensor | None = None
        self._inside = torch.ones(1, 1, 1, dtype=torch.bool)
        self._box = self._inside
        self._on_grid: dict[tuple[int, int, bool], Sites] = {}

    def calculate_aoi_size(self) -> float:
        """Share of the mask inside its bounding box, which is what is computed; 1.0 for an empty or an unset mask.

        The mean over batch elements, where there is one mask for each.
        """
        with self._lock:
            self._refresh()
            return int(self._box.count_nonzero()) / self._box.numel()

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """The bounding box (y0, x0, y1, x1), half-open in cells of the mask, of each batch element; the whole mask where it is empty."""
        with self._lock:
            self._refresh()
            found = [Sites(one[None]).box for one in self._box]
            return [box for box in found if box is not None]

    def sites(self, h: int, w: int, rect: bool = True) -> Sites:
        """Where to compute on a map of another resolution: every cell that the area touches.

        Args:
            h: rows of the map.
            w: columns of the map.
            rect: the bounding box of the mask; False: its true shape. An element whose mask is empty gets everything.
        """
        with self._lock:
            self._refresh()
            key = (h, w, rect)
            if key not in self._on_grid:
                self._on_grid[key] = Sites(self._box if rect else self._inside).resize(h, w)
            return self._on_grid[key]

    def everything(self, rect: bool = True) -> bool:
        """Whether all of the mask is inside (with `rect`, inside its bounding box), so that a dense convolution is the answer."""
        with self._lock:
            self._refresh()
            return bool((self._box if rect else self._inside).all())

    def imshow(self) -> Any:
        """Draws the mask, white inside, with the bounding box framed; returns the matplotlib axes.

        Raises:
            MissingPackageError: matplotlib is not installed (extra "plots").
        """
        pyplot = need("matplotlib.pyplot", "draw an area")
        boxes = self.boxes()
        with self._lock:
            masks = self._inside.cpu()
        for axis, mask, (y0, x0, y1, x1) in zip(pyplot.subplots(1, len(masks), squeeze=False)[1][0], masks, boxes, strict=True):
            axis.imshow(mask.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            corners = ([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0])
            axis.plot(*([at - 0.5 for at in line] for line in corners), color="#c0392b", linewidth=2)
            axis.set_title(f"{(y1 - y0) * (x1 - x0) / mask.numel():.1%} computed")
        return axis

    def _refresh(self) -> None:
        """Looks whether the mask is another one than before, and works out the boxes if so."""
        mask = self.mask_tensor
        if not isinstance(mask, Tensor):
            self.mask_tensor = mask = torch.as_tensor(mask)
        edits = -1 if mask.is_inference() else mask._version
        # On the CPU a mask may also have been edited through NumPy, which no counter shows; comparing it costs little.
        visible = mask.device.type == "cpu" or mask.is_inference()
        same = mask is self._seen and edits == self._edits
        if same and (not visible or (self._content is not None and torch.equal(mask, self._content))):
            return
        inside = _inside(mask)
        self._inside, self._box = inside, torch.stack([_filled(one) for one in inside])
        self._on_grid, self._seen, self._edits = {}, mask, edits
        self._content = mask.detach().clone() if visible else None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the mask."""
        return {"mask_tensor": self.mask_tensor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Counterpart of `__getstate__`."""
        self.__init__(state["mask_tensor"])  # type: ignore[misc]

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.mask_tensor.shape)) if self.mask_tensor.numel() else "unset"
        return f"AoI({shape}, size {self.calculate_aoi_size():.1%})"


class AoIThresholder(nn.Module):
    """Passes a map on as it is, and sets an area to where the map is bright.

    A position is inside iff the sum of its channels, raw values, is at least the threshold; a sum of NaN is outside.

    Args:
        threshold: least sum.
        aoi: the area to set, to a bool mask (h, w), or (n, h, w) for more than one picture; None: one of its own.

    Example:
        >>> layer = AoIThresholder(3.0)
        >>> _ = layer(torch.tensor([[[[1.0, 2.0]], [[1.0, 1.0]]]]))
        >>> layer.aoi.mask_tensor.tolist()
        [[False, True]]
    """

    def __init__(self, threshold: float, aoi: AoI | None = None) -> None:
        super().__init__()
        self.threshold = threshold
        self.aoi = AoI() if aoi is None else aoi

    def forward(self, x: Tensor) -> Tensor:
        """Sets the area and returns x, a map (n, c, h, w) or (c, h, w).

        Raises:
            ShapeError: x is no map.
        """
        if x.dim() not in (3, 4):
            raise ShapeError(f"x: expected a map (n, c, h, w) or (c, h, w), got {tuple(x.shape)}")
        bright = x.detach().sum(-3) >= self.threshold
        self.aoi.mask_tensor = bright[0] if bright.dim() == 3 and bright.shape[0] == 1 else bright
        return x

    def extra_repr(self) -> str:
        """The threshold."""
        return f"threshold={self.threshold}"


def _inside(mask: Tensor) -> Tensor:
    """Bool (n, h, w); everything for elements without any cell inside."""
    if not mask.numel():
        return torch.ones(1, 1, 1, dtype=torch.bool, device=mask.device)
    planes = mask[:, 0] if mask.dim() == 4 and mask.shape[1] == 1 else mask
    if planes.dim() not in (2, 3):
        raise ShapeError(f"mask_tensor: expected (h, w), (n, h, w) or (n, 1, h, w), got {tuple(mask.shape)}")
    inside = planes.detach().reshape(-1, *planes.shape[-2:]) != 0
    return inside | ~inside.flatten(1).any(1)[:, None, None]


def _filled(mask: Tensor) -> Tensor:
    """The bounding box of a mask (h, w), as a mask."""
    box = Sites(mask[None]).box
    return Sites.from_boxes(Grid(1, *mask.shape), [] if box is None else [box], mask.device).mask[0]
