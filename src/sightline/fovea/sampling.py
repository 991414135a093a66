"""Sampling an image at points around fixations.

What belongs here: from points of the visual field, fixations and sizes to values of pixels. Which points there are belongs to `sensor`,
what is done with the values (colour, pooling, augmentation) to `retina.py`.

A fixation is (row, col) from 0 to 1 of the image's height and width; its size is (height, width) in pixels of the whole field of view.
A point (x, y) of the sensor then lies at row = -y * height / 2 + fixation_row * H - 0.5 and col = x * width / 2 + fixation_col * W - 0.5,
with whole numbers in the middle of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from sightline.errors import DTypeError, ShapeError

MODES = ("nearest", "bilinear")
# What grid_sample computes in; everything else is gathered first, so that only samples are converted and not whole images.
_DIRECT = (torch.float32, torch.float64)
_GATHERED = (torch.uint8, torch.float16, torch.bfloat16)

Fixation = torch.Tensor | Sequence[float] | float | None


def check_images(images: torch.Tensor) -> None:
    """Raises ShapeError or DTypeError unless images are (B, C, H, W), not empty, and of a type that can be sampled."""
    if not isinstance(images, torch.Tensor):
        raise DTypeError(f"`images` must be a torch.Tensor (B, C, H, W), got {type(images).__name__}; convert it with torch.as_tensor")
    if images.ndim != 4:
        raise ShapeError(f"`images` must be (batch, channels, height, width), got shape {tuple(images.shape)}; add the missing axes")
    if 0 in images.shape[1:]:
        raise ShapeError(f"`images` has an axis of length 0: {tuple(images.shape)}; leave out empty images")
    if images.dtype not in _DIRECT + _GATHERED:
        raise DTypeError(f"`images` must be uint8 or floating, got {images.dtype}; convert them, for example with .float()")


def batch_of_fixations(fixations: Fixation, images: torch.Tensor) -> torch.Tensor:
    """Brings fixations into the form (B, F, 2).

    Args:
        fixations: None (the centre), one number (row and column), (row, col), (B, 2), or (B, F, 2); each from 0 to 1.
        images: (B, C, H, W), for B, the device and the type.

    Returns:
        (B, F, 2), float64 for float64 images, else float32; differentiable.

    Raises:
        ShapeError: another shape.
        ValueError: NaN, or outside the image. Not looked for while a model is compiled or exported; on a GPU this waits for the device.
    """
    fixed = torch.as_tensor(0.5 if fixations is None else fixations, dtype=coordinate_dtype(images), device=images.device)
    batch = _broadcast("fixations", fixed, len(images))
    if not torch.compiler.is_compiling() and not bool(((batch >= -1e-6) & (batch <= 1 + 1e-6)).all()):
        what = "NaN" if bool(batch.isnan().any()) else f"{batch.detach().min():.4g} to {batch.detach().max():.4g}"
        raise ValueError(f"`fixations` must lie in the image, (row, col) from 0 to 1, got {what}; clamp them, or divide pixels by the size")
    return batch


def batch_of_sizes(sizes: Fixation, images: torch.Tensor, default: Sequence[float]) -> torch.Tensor:
    """Brings sizes of the field of view, in pixels, into the form (B, F, 2); F is 1 where they are the same for all fixations.

    Args:
        sizes: None (`default`), one number, (height, width), (B, 2) or (B, F, 2); above 0.
        images: (B, C, H, W).
        default: (height, width).

    Raises:
        ShapeError: another shape.
        ValueError: NaN, infinite, or not above 0.
    """
    given = torch.as_tensor(default if sizes is None else sizes, dtype=coordinate_dtype(images), device=images.device)
    batch = _broadcast("sizes", given, len(images))
    if not torch.compiler.is_compiling() and not bool(((batch > 0) & (batch < math.inf)).all()):
        raise ValueError("`sizes` of the field of view must be finite numbers of pixels above 0; a NaN, infinite or smaller one came")
    return batch


def coordinate_dtype(images: torch.Tensor) -> torch.dtype:
    """The type in which positions are computed: float64 for float64 images, else float32."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32


def _broadcast(name: str, given: torch.Tensor, batch: int) -> torch.Tensor:
    if given.ndim == 0:
        given = given.expand(2)
    if given.ndim == 1 and len(given) == 2:
        return given.expand(batch, 1, 2)
    if given.ndim == 2 and given.shape == (batch, 2):
        return given[:, None]
    if given.ndim == 3 and given.shape[0] == batch and given.shape[1] >= 1 and given.shape[2] == 2:
        return given
    raise ShapeError(f"`{name}` must be a number, a pair, ({batch}, 2) or ({batch}, F, 2) for {batch} images, got {tuple(given.shape)}")


def positions(points: torch.Tensor, fixations: torch.Tensor, sizes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Where points lie in the image, in pixels; whole numbers are the middles of pixels.

    Args:
        points: (N, 2) x to the right and y up, 1 = half of the size.
        fixations: (B, F, 2) from 0 to 1.
        sizes: (B, F or 1, 2) pixels.
        height: of the image.
        width: of the image.

    Returns:
        (2, B, F, N): columns, then rows, apart in memory, as grid_sample reads them fastest.
    """
    axes = torch.stack((points[:, 0], -points[:, 1]))[:, None, None]
    centre, half = fixations * fixations.new_tensor([height, width]) - 0.5, sizes / 2
    return torch.addcmul(centre.permute(2, 0, 1).flip(0)[..., None], axes, half.permute(2, 0, 1).flip(0)[..., None])


def sample(images: torch.Tensor, points: torch.Tensor, fixations: torch.Tensor, sizes: torch.Tensor, mode: str = "nearest") -> torch.Tensor:
    """Reads images at the points of a sensor around fixations.

    Args:
        images: (B, C, H, W), uint8 or floating.
        points: (N, 2) x to the right and y up.
        fixations: (B, F, 2).
        sizes: (B, F or 1, 2).
        mode: "nearest": the pixel whose centre is nearest, between two the one with the even index; differentiable in the image.
            "bilinear": differentiable in the image and in fixations and sizes.

    Returns:
        (B, F, C, N), in memory (N, F, B, C). Nearest keeps the images' type; bilinear does for floating types and gives float32 of uint8,
        not divided. Outside the image: 0. NaN pixels stay NaN.

    Cost: B F C N values read (four times that for bilinear). Nothing is copied for float32 and float64 images, whatever their strides.
    """
    return sample_at(images, positions(points, fixations, sizes, *images.shape[2:]), mode)


def sample_at(images: torch.Tensor, places: torch.Tensor, mode: str = "nearest") -> torch.Tensor:
    """Reads images at positions; what `sample` says holds here too.

    Args:
        images: (B, C, H, W), uint8 or floating.
        places: (2, B, F, N) columns and rows in pixels, as `positions` gives them; finite.
        mode: "nearest" or "bilinear".

    Returns:
        (B, F, C, N), in memory (N, F, B, C).
    """
    if mode == "nearest":
        # Rounded here, so that grid_sample's own rounding cannot choose other pixels.
        places = torch.round(places.detach())
    if images.dtype in _DIRECT:
        height, width = images.shape[2:]
        # grid_sample counts from -1 to 1 between the image's borders.
        scale = places.new_tensor([1 / width, 1 / height])[:, None, None, None]
        grid = torch.addcmul(scale - 1, places, 2 * scale).movedim(0, -1)
        values = F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
    elif mode == "nearest":
        values = _gathered(images, places[1], places[0])
    else:
        values = _bilinear(images, places[1], places[0])
    return node_major(values)


def node_major(values: torch.Tensor) -> torch.Tensor:
    """(B, C, F, N) to (B, F, C, N) that lies in memory as (N, F, B, C): a point's values of all images side by side."""
    batch, channels, glances, nodes = values.shape
    # PyTorch transposes matrices by blocks, and nothing else; so a matrix it is.
    rows = values.permute(2, 0, 1, 3).reshape(glances * batch * channels, nodes)
    return rows.t().contiguous().view(nodes, glances, batch, channels).permute(2, 1, 3, 0)


def _gathered(images: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """Pixels (B, C, F, N) at whole numbers (B, F, N); 0 outside."""
    batch, channels, height, width = images.shape
    row, col = rows.clamp(0, height - 1), cols.clamp(0, width - 1)
    outside = (row != rows) | (col != cols)
    # Half as wide where that suffices: building the index is most of the work.
    kind = torch.int32 if images.numel() < 2**31 else torch.int64
    planes = torch.arange(0, images.numel(), height * width, dtype=kind, device=images.device).view(batch, channels, 1, 1)
    index = torch.add(col.to(kind), row.to(kind), alpha=width)[:, None] + planes
    values = images.reshape(-1).index_select(0, index.view(-1)).view(index.shape)
    return values.masked_fill_(outside[:, None], 0)


def _bilinear(images: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """Weighted means (B, C, F, N) of four pixels, in float32."""
    top, left = rows.detach().floor(), cols.detach().floor()
    down, right = (rows - top)[:, None], (cols - left)[:, None]
    first = torch.lerp(_gathered(images, top, left).float(), _gathered(images, top, left + 1).float(), right)
    second = torch.lerp(_gathered(images, top + 1, left).float(), _gathered(images, top + 1, left + 1).float(), right)
    values = torch.lerp(first, second, down)
    return values if images.dtype == torch.uint8 else values.to(images.dtype)
