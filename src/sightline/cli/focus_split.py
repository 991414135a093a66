"""Where an fCNN looks at its own activation: the layer that ``--split`` names, or one that is chosen."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sightline.cli.job import first_line
from sightline.errors import CaptureError

_EARLY = 0.05  # of the MACs: enough layers that brightness means something, few enough that most of the work can still be saved
_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d,
    nn.Identity,
)  # fmt: skip
_LOCAL = (*_POINTWISE, nn.MaxPool2d, nn.AvgPool2d)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Split:
    """A network in two parts.

    Attributes:
        name: module path of the last layer of the first part.
        layer: that module.
        later: modules behind it, to be focused.
        shape: (c, h, w) of the map between.
        macs_share: multiply-accumulates of the first part over all.
        chosen: whether it was chosen here.
    """

    name: str
    layer: nn.Module
    later: list[nn.Module]
    shape: tuple[int, int, int]
    macs_share: float
    chosen: bool

    @property
    def text(self) -> str:
        """The split in a few words."""
        c, h, w = self.shape
        return f"behind {self.name!r} ({c} channels, {w}x{h}, {100 * self.macs_share:.1f} % of the MACs before it)"


@dataclass
class _Seen:
    """What one module did in a forward: how often, when (start, end), with what output, after how many MACs."""

    calls: int = 0
    start: int = 0
    end: int = 0
    shape: tuple[int, ...] = ()
    macs: float = 0.0


def split_network(model: Any, frame: torch.Tensor, wanted: str | None) -> Split:
    """Splits a network in two for a brightness threshold.

    Args:
        model: the network; run once on the frame.
        frame: (1, 3, h, w).
        wanted: module path of the last layer of the first part; None: the first one along the network behind which at least 5 % of the
            multiply-accumulates are done, with the activation and norm that follow it.

    Raises:
        CaptureError: a network without modules, an unknown or unusable layer.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError("--brightness: this file has no named layers to split; give the network as torchvision:, timm: or path.py:NAME")
    seen, total = _watch(model, frame)
    names = {name: module for name, module in model.named_modules() if name}
    if wanted is not None:
        if wanted not in names:
            close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4) or list(names)[:5]
            raise CaptureError(f"--split: the network has no layer {wanted!r}; did you mean {', '.join(close)}?")
        if not _is_map(seen[names[wanted]]):
            raise CaptureError(f"--split: {wanted!r} does not run exactly once and return a map; name a layer that does")
        name = wanted
    else:
        name = _choose(model, seen, total)
    later = _later(model, name, seen)
    if not later:
        raise CaptureError(f"--split: no convolution comes behind {name!r}; name an earlier layer")
    found = seen[names[name]]
    _, c, h, w = found.shape
    return Split(name, names[name], later, (c, h, w), found.macs / total if total else 0.0, wanted is None)


def _watch(model: nn.Module, frame: torch.Tensor) -> tuple[dict[nn.Module, _Seen], float]:
    """Runs the network; what each module did, and all MACs."""
    seen = {module: _Seen() for module in model.modules()}
    clock, macs = 0, 0.0

    def before(module: nn.Module, _args: Any) -> None:
        nonlocal clock
        clock += 1
        seen[module].start = clock

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal clock, macs
        clock += 1
        if isinstance(module, nn.Conv2d | nn.Linear) and isinstance(output, torch.Tensor):
            macs += output.numel() * module.weight[0].numel()
        note = seen[module]
        note.calls, note.end, note.macs = note.calls + 1, clock, macs
        note.shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()

    handles = [h for module in seen for h in (module.register_forward_pre_hook(before), module.register_forward_hook(after))]
    try:
        with torch.no_grad():
            model(frame)
    except Exception as error:
        shape = tuple(frame.shape)
        raise CaptureError(f"model: it does not run on a frame {shape}: {first_line(error)}; try another --size") from error
    finally:
        for handle in handles:
            handle.remove()
    return seen, macs


def _is_map(note: _Seen) -> bool:
    return note.calls == 1 and len(note.shape) == 4 and note.shape[2] * note.shape[3] > 1


def _choose(model: nn.Module, seen: dict[nn.Module, _Seen], total: float) -> str:
    chain = sorted(_chain(model), key=lambda item: seen[item[1]].end)
    usable = [place for place, (name, module) in enumerate(chain) if _is_map(seen[module]) and _later(model, name, seen)]
    if not usable:
        raise CaptureError("--split: no layer of this network can be chosen by itself; name one")
    place = next((at for at in usable if seen[chain[at][1]].macs >= _EARLY * total), usable[-1])
    while place + 1 in usable and isinstance(chain[place + 1][1], _POINTWISE):
        place += 1
    return chain[place][0]


def _chain(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers one behind the other: children, those of sequences instead of these, and of the one child that holds everything."""
    children = [(name, child) for name, child in model.named_children() if any(True for _ in child.modules())]
    working = [child for _, child in children if _convolves(child)]
    for name, child in children:
        if isinstance(child, nn.Sequential) or (working == [child] and not isinstance(child, _CONVOLUTIONS)):
            yield from _chain(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _later(model: nn.Module, path: str, seen: dict[nn.Module, _Seen]) -> list[nn.Module]:
    """Modules that run behind one: its later siblings and those of its parents, up to the last convolution and what is local behind it."""
    end = seen[model.get_submodule(path)].end
    parts = path.split(".")
    found: list[nn.Module] = []
    for depth in range(len(parts), 0, -1):
        parent = model.get_submodule(".".join(parts[: depth - 1]))
        found += [child for child in parent.children() if seen[child].calls and seen[child].start > end]
    found.sort(key=lambda module: seen[module].start)
    last = max((place for place, module in enumerate(found) if _convolves(module)), default=-1)
    while 0 <= last < len(found) - 1 and isinstance(found[last + 1], _LOCAL):
        last += 1
    return found[: last + 1]


def _convolves(module: nn.Module) -> bool:
    return any(isinstance(part, _CONVOLUTIONS) for part in module.modules())
