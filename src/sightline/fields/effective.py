"""The effective receptive field: how much each input cell really counts for one unit, by gradients of the network itself.

The theoretical field says what a unit *can* see. What it *does* see is concentrated in the middle, roughly as a Gaussian, and grows only
with the square root of the depth; it depends on the weights and on the input, so it is measured: on images, or on noise.

What belongs here: measuring, figures of the heat map, drawing it. What does not: theoretical fields (`analysis.py`).

Source: Luo, Li, Urtasun, Zemel, "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", 2016; the squares
follow the practice of papers on large kernels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sightline.errors import CaptureError, MediaError, ShapeError
from sightline.extras import need

SHARES = (0.2, 0.3, 0.5, 0.99)
"""Shares of the heat for which the smallest square is reported."""
_EDGE = 0.0455  # of the peak: what lies below is beyond two sigma of a Gaussian that holds all
Magnitude = Literal["absolute", "positive"]
Heat = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class EffectiveField:
    """What one unit of a layer really sees.

    Attributes:
        layer: its name.
        unit: the unit (row, col) of its map that was asked.
        heat: (h, w), float64: share of each input cell in the unit's gradient, sums to 1.
        center: (row, col) of the middle of the theoretical box, or of the heat where that is not known; squares are put around it.
        theoretical: half-open box (y0, x0, y1, x1) of the theoretical field, beyond the input where it looks at padding; None if not known.
        images: number of inputs that the heat is the mean of.
    """

    layer: str
    unit: tuple[int, int]
    heat: Heat = field(repr=False)
    center: tuple[float, float]
    theoretical: tuple[int, int, int, int] | None
    images: int

    @property
    def mean(self) -> tuple[float, float]:
        """Centre of gravity (row, col) of the heat, in cells."""
        rows, columns = self._marginals()
        return float(rows @ np.arange(len(rows))), float(columns @ np.arange(len(columns)))

    @property
    def sigma(self) -> tuple[float, float]:
        """Standard deviation (row, col) of the heat, in cells: the Gaussian with the same moments."""
        spread = []
        for marginal, middle in zip(self._marginals(), self.mean, strict=True):
            spread.append(math.sqrt(max(0.0, float(marginal @ (np.arange(len(marginal)) - middle) ** 2))))
        return spread[0], spread[1]

    @property
    def gaussian(self) -> Heat:
        """The Gaussian of the same mean and standard deviation on the input's cells, (h, w), sums to 1."""
        bells = []
        for size, middle, sigma in zip(self.heat.shape, self.mean, self.sigma, strict=True):
            bell = np.exp(-0.5 * ((np.arange(size) - middle) / max(sigma, 1e-6)) ** 2)
            bells.append(bell / bell.sum())
        return np.outer(bells[0], bells[1])

    @property
    def fit(self) -> float:
        """How well the Gaussian describes the heat: the share of its variance that is explained; 1 is perfect, 0 and below is useless."""
        rest = float(((self.heat - self.gaussian) ** 2).sum())
        total = float(((self.heat - self.heat.mean()) ** 2).sum())
        return 1.0 - rest / total if total else 0.0

    @property
    def extent(self) -> tuple[int, int]:
        """Cells (rows, columns) from the first to the last whose marginal is above 4.55 % of its peak."""
        found = []
        for marginal in self._marginals():
            above = np.flatnonzero(marginal >= _EDGE * marginal.max())
            found.append(int(above[-1] - above[0] + 1))
        return found[0], found[1]

    @property
    def share(self) -> float | None:
        """Effective area over theoretical area, by `extent`; None where the theoretical field is not known."""
        if self.theoretical is None:
            return None
        y0, x0, y1, x1 = self.theoretical
        return self.extent[0] * self.extent[1] / max(1, (y1 - y0) * (x1 - x0))

    def square(self, share: float) -> int:
        """Side of the smallest centred square that holds a share of the heat.

        Args:
            share: above 0, at most 1.

        Returns:
            The side in cells. Squares grow by one cell on each side around the cell of `center`, so it is odd.

        Raises:
            ShapeError: a share outside (0, 1].
        """
        if not 0.0 < share <= 1.0:
            raise ShapeError(f"share: expected a number above 0 and at most 1, got {share}")
        for half in range(max(self.heat.shape) + 1):
            if self._held(half) >= share - 1e-12:
                return 2 * half + 1
        return 2 * int(max(self.heat.shape)) + 1

    def _held(self, half: int) -> float:
        row, column = self._middle()
        return float(self.heat[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1].sum())

    def _middle(self) -> tuple[int, int]:
        row, column = (min(max(math.floor(value + 0.5), 0), size - 1) for value, size in zip(self.center, self.heat.shape, strict=True))
        return row, column

    def _marginals(self) -> tuple[Heat, Heat]:
        return self.heat.sum(axis=1), self.heat.sum(axis=0)

    @property
    def squares(self) -> dict[float, int]:
        """Side of the smallest centred square that holds 20, 30, 50 and 99 % of the heat."""
        return {share: self.square(share) for share in SHARES}

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data, without the heat map."""
        return {
            "layer": self.layer,
            "unit": list(self.unit),
            "images": self.images,
            "resolution": list(self.heat.shape),
            "theoretical": None if self.theoretical is None else list(self.theoretical),
            "mean": list(self.mean),
            "sigma": list(self.sigma),
            "fit": self.fit,
            "extent": list(self.extent),
            "share": self.share,
            "squares": {f"{share:.0%}": side for share, side in self.squares.items()},
        }

    def __str__(self) -> str:
        squares = ", ".join(f"{share:.0%} in {side} x {side}" for share, side in self.squares.items())
        field_ = "not known" if self.theoretical is None else "{2} x {3}".format(*self.theoretical[:2], *_extent(self.theoretical))
        return (
            f"{self.layer}, unit {self.unit}: theoretical field {field_}, effective {self.extent[0]} x {self.extent[1]}; Gaussian of sigma "
            f"{self.sigma[0]:.2f} x {self.sigma[1]:.2f} (explains {self.fit:.0%}); {squares}"
        )

    # -- drawing ------------------------------------------------------------------------------------------------------------------

    def overlay(self, image: Any = None, *, width: int = 640) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Draw the heat, the squares and the theoretical box over a picture.

        Args:
            image: a picture to draw on, stretched to the input: a file, or an array (h, w, 3) of uint8; None: grey.
            width: of the result in pixels, at least that of the input.

        Returns:
            RGB, uint8. White: the theoretical box (left out where it lies outside); cyan: the squares.

        Raises:
            ShapeError: an array of another form.
            MediaError: the picture cannot be read.
            MissingPackageError: if Pillow is not installed.
        """
        from sightline.fields.page import read_image

        pillow = need("PIL.Image", "draw an effective field")
        height, wide = self.heat.shape
        scale = max(1, round(width / wide))
        size = (wide * scale, height * scale)
        base = pillow.new("RGB", size, (96, 96, 96)) if image is None else read_image(image).resize(size, pillow.Resampling.BICUBIC)
        level = np.sqrt(self.heat / max(float(self.heat.max()), 1e-300)).repeat(scale, 0).repeat(scale, 1)[..., None]
        dimmed = np.asarray(base, np.float64) * 0.55
        mixed = pillow.fromarray((dimmed * (1 - level) + _colours(level[..., 0]) * level).round().clip(0, 255).astype(np.uint8))
        draw = need("PIL.ImageDraw", "draw an effective field").Draw(mixed)
        line = max(1, scale // 3, round(size[0] / 320))
        row, column = self._middle()
        for share, side in self.squares.items():
            half = side // 2
            _outline(draw, (row - half, column - half, row + half + 1, column + half + 1), scale, (70, 225, 240), line)
            corner = ((column - half) * scale + line + 2, (row - half) * scale + line + 1)
            if share in (min(SHARES), max(SHARES)) and min(corner) >= 0:
                draw.text(corner, f"{share:.0%}", fill=(70, 225, 240))
        if self.theoretical is not None:
            _outline(draw, self.theoretical, scale, (255, 255, 255), line + 1)
        return np.asarray(mixed)

    def to_png(self, path: str | Path, image: Any = None, *, width: int = 640) -> None:
        """Write `overlay` as a PNG file.

        Args:
            path: the file.
            image: see `overlay`.
            width: see `overlay`.

        Raises:
            MediaError: the file cannot be written, or the picture cannot be read.
            MissingPackageError: if Pillow is not installed.
        """
        drawn = need("PIL.Image", "write a picture").fromarray(self.overlay(image, width=width))
        try:
            drawn.save(Path(path), format="PNG")
        except OSError as error:
            raise MediaError(f"path: {str(path)!r} cannot be written ({error.strerror or error}); choose another place") from error


def _extent(box: Sequence[int]) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


def _colours(level: Heat) -> Heat:
    """From dark red over orange to light yellow, (h, w, 3)."""
    stops = np.array([[120, 0, 40], [220, 40, 20], [255, 150, 20], [255, 250, 180]], np.float64)
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(level, places, stops[:, channel]) for channel in range(3)], axis=-1)


def _outline(draw: Any, box: Sequence[int], scale: int, colour: tuple[int, int, int], line: int) -> None:
    y0, x0, y1, x1 = (value * scale for value in box)
    draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=line)


# -- measuring --------------------------------------------------------------------------------------------------------------------


def measure(
    model: nn.Module,
    layer: str | None = None,
    images: Tensor | Iterable[Tensor] | None = None,
    *,
    input_shape: Sequence[int] = (1, 3, 224, 224),
    count: int = 8,
    unit: Sequence[int] | None = None,
    magnitude: Magnitude = "absolute",
    seed: int = 0,
) -> EffectiveField:
    """Measure the effective receptive field of one unit of a layer.

    The gradient of the unit, all its channels together, with respect to the input: its magnitude, summed over the input's channels, is
    averaged over the inputs. A copy of the model runs in eval mode; the model itself stays as it was.

    Args:
        model: an ``nn.Module`` that takes one image tensor.
        layer: module path of the layer, with ":2" appended for the second call of a module, as `sightline.analyze` names it; None: the
            model's first output.
        images: inputs (n, c, h, w) as the network takes them (normalised), or several such tensors, all of one size; None: noise.
        input_shape: of the noise, (n, c, h, w), n ignored.
        count: number of noise inputs, at least 1.
        unit: (row, col) on the layer's map; None: the middle.
        magnitude: "absolute"; or "positive", which leaves out cells that count against the unit, as papers on large kernels do.
        seed: of the noise.

    Returns:
        The heat map with its figures.

    Raises:
        ShapeError: an input, a unit or a count that does not fit; a layer whose value is not a map.
        CaptureError: there is no such layer, it is not reached, or the model cannot be copied or run.

    Cost:
        One forward and one backward pass of the network for each input, and a copy of its weights.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(*(nn.Conv2d(1, 1, 3, bias=False) for _ in range(10)))
        >>> for conv in net:
        ...     _ = nn.init.ones_(conv.weight)
        >>> field = measure(net, "9", input_shape=(1, 1, 31, 31), count=1)
        >>> round(field.sigma[0], 6), field.extent
        (2.581989, (13, 13))
    """
    if magnitude not in {"absolute", "positive"}:
        raise ShapeError(f"magnitude: expected 'absolute' or 'positive', got {magnitude!r}")
    network = _copied(model)
    inputs = _inputs(network, images, input_shape, count, seed)
    probe = _Probe(network, layer)
    heat: Heat | None = None
    chosen: tuple[int, int] | None = None
    total = 0
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), probe:
        for image in inputs:
            frame = image.detach().clone().requires_grad_(True)
            value = probe.run(frame)
            chosen = _unit(probe.name, value, unit)
            target = value[:, :, chosen[0], chosen[1]].sum()
            gradient = torch.autograd.grad(target, frame, allow_unused=True)[0] if target.requires_grad else None
            seen = torch.zeros_like(frame) if gradient is None else gradient.clamp(min=0) if magnitude == "positive" else gradient.abs()
            part = seen.to(torch.float64).sum((0, 1)).cpu().numpy()
            if heat is not None and heat.shape != part.shape:
                raise ShapeError(f"images: expected one size, got {heat.shape} and {part.shape}; resize them")
            heat = part if heat is None else heat + part
            total += len(frame)
    if heat is None or chosen is None:
        raise ShapeError("images: expected at least one image, got none")
    whole = float(heat.sum())
    if not math.isfinite(whole) or whole <= 0:
        raise ShapeError(
            f"layer: the unit {chosen} of {probe.name!r} does not depend on the input (its gradient sums to {whole}); try others"
        )
    heat = heat / whole
    box = _theoretical(model, probe.name, chosen, inputs[0])
    center = ((box[0] + box[2] - 1) / 2, (box[1] + box[3] - 1) / 2) if box is not None else _gravity(heat)
    return EffectiveField(probe.name, chosen, heat, center, box, total)


def _copied(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model: expected a torch.nn.Module, whose gradients can be taken, got {type(model).__name__}")
    try:
        network = copy.deepcopy(model).eval()
    except Exception as error:
        raise CaptureError(f"model: it cannot be copied ({type(error).__name__}: {error}); give one that copy.deepcopy takes") from error
    return network.requires_grad_(False)


def _inputs(model: nn.Module, images: Tensor | Iterable[Tensor] | None, shape: Sequence[int], count: int, seed: int) -> list[Tensor]:
    floats = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    device, dtype = (floats[0].device, floats[0].dtype) if floats else (torch.device("cpu"), torch.float32)
    if device.type == "meta":
        raise CaptureError("model: it lies on the meta device, where nothing can be computed; load it on a real one")
    if images is None:
        if len(shape) != 4 or min(shape) < 1 or count < 1:
            raise ShapeError(f"input_shape, count: expected (n, c, h, w) and at least 1, got {tuple(shape)} and {count}")
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(1, *shape[1:], generator=generator).to(device, dtype) for _ in range(count)]
    batches = [images] if isinstance(images, Tensor) else list(images)
    for batch in batches:
        if not isinstance(batch, Tensor) or batch.dim() != 4 or not batch.is_floating_point():
            form = f"{batch.dtype} of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
            raise ShapeError(f"images: expected float tensors (n, c, h, w), normalised as the network takes them, got {form}")
    return [image[None].to(device, dtype) for batch in batches for image in batch]


class _Probe:
    """Catches the value of one call of a module while the network runs."""

    def __init__(self, network: nn.Module, layer: str | None) -> None:
        self._network, self.name = network, "output" if layer is None else layer
        self._value: Any = None
        self._calls = 0
        self._wanted = 1
        self._module: nn.Module | None = None
        self._handle: Any = None
        if layer is None:
            return
        path, _, call = layer.partition(":")
        modules = dict(network.named_modules())
        if path not in modules or not path or (call and not call.isdecimal()):
            import difflib

            close = difflib.get_close_matches(path, modules, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(close)}?" if close else "print(model) lists them"
            raise CaptureError(f"layer: there is no module {layer!r} in {type(network).__name__}; {hint}")
        self._module, self._wanted = modules[path], int(call or 1)

    def __enter__(self) -> _Probe:
        if self._module is not None:
            self._handle = self._module.register_forward_hook(self._catch)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _catch(self, module: nn.Module, args: Any, value: Any) -> Any:
        del module, args
        self._calls += 1
        if self._calls != self._wanted:
            return value
        self._value = value
        # what follows may work in place (a ReLU does): it gets a copy, and the caught value stays what it was
        return value.clone() if isinstance(value, Tensor) else value

    def run(self, frame: Tensor) -> Tensor:
        """Value of the layer for one input."""
        self._calls, self._value = 0, None
        try:
            result = self._network(frame)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise CaptureError(f"model: it fails on an input of shape {tuple(frame.shape)} ({type(error).__name__}: {reason})") from error
        value = _first_tensor(result if self._module is None else self._value)
        if value is None:
            why = "the model returns no tensor" if self._module is None else f"it was called {self._calls} times and gave no tensor"
            raise CaptureError(f"layer: {self.name!r} has no value: {why}; choose another layer")
        return value


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return next((found for part in value if (found := _first_tensor(part)) is not None), None)
    return None


def _unit(name: str, value: Tensor, unit: Sequence[int] | None) -> tuple[int, int]:
    if value.dim() != 4:
        raise ShapeError(f"layer: {name!r} gives a tensor of shape {tuple(value.shape)}, not a map (n, c, h, w); choose an earlier layer")
    height, width = int(value.shape[2]), int(value.shape[3])
    if unit is None:
        return height // 2, width // 2
    if len(unit) != 2 or not (0 <= unit[0] < height and 0 <= unit[1] < width):
        raise ShapeError(f"unit: expected (row, col) within the map {height} x {width} of {name!r}, got {tuple(unit)}")
    return int(unit[0]), int(unit[1])


def _theoretical(model: nn.Module, name: str, unit: tuple[int, int], image: Tensor) -> tuple[int, int, int, int] | None:
    """The box by analysis; None where the model cannot be captured or the layer has no box."""
    from sightline.errors import SightlineError
    from sightline.fields.analysis import analyze

    try:
        report = analyze(model, tuple(image.shape))
        layer = report.outputs[0].name if name == "output" else name
        y0, x0, y1, x1 = report.box(layer, unit)
    except (SightlineError, IndexError, ValueError):
        return None
    return y0, x0, y1, x1


def _gravity(heat: Heat) -> tuple[float, float]:
    rows, columns = heat.sum(axis=1), heat.sum(axis=0)
    return float(rows @ np.arange(len(rows))), float(columns @ np.arange(len(columns)))
