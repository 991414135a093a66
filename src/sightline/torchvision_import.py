"""torchvision beside a torch that its compiled part was not built for.

torchvision's Python imports only if its operators exist; the compiled part that brings them is missing where torch is another build (a
CPU wheel, a newer version). Networks need none of them but `nms`, and that only behind detectors. What belongs here: declaring what is
missing, and a plain `nms`. A torchvision that imports by itself is left as it is.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_OPERATORS = ("nms", "qnms")  # those whose absence stops the import
_KEPT: list[torch.library.Library] = []  # a library is withdrawn when it is garbage-collected


def import_torchvision() -> ModuleType:
    """Imports torchvision, with stand-ins for operators that are missing.

    Call it before anything that imports torchvision itself (timm does).

    Returns:
        The module ``torchvision``. Where its compiled part could not be loaded, ``torchvision.ops.nms`` works all the same, in plain
        PyTorch: sequential, slower, equal results; the other compiled operators (deformable convolution, RoI pooling) still raise
        torchvision's own error. `RoIAlign` has a Python form of torchvision's own.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    known = sys.modules.get("torchvision")
    if known is not None:
        return known
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed attempt left half imported
    _declare_missing()
    module = importlib.import_module("torchvision")
    boxes = importlib.import_module("torchvision.ops.boxes")
    if not importlib.import_module("torchvision.extension")._has_ops():
        # `nms` asks this first whether the compiled part is there; the operator that it goes on to call is ours now.
        boxes._assert_has_ops = lambda: None  # type: ignore[attr-defined]
    return module


def _declare_missing() -> None:
    for name in _OPERATORS:
        if hasattr(torch.ops.torchvision, name):
            continue
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        if name == "nms":
            library.impl(name, nms, "CompositeExplicitAutograd")
        _KEPT.append(library)


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression: a box stays unless one that scores higher, and stays, overlaps it by more than the threshold.

    Args:
        boxes: (k, 4) as (x0, y0, x1, y1).
        scores: (k,).
        iou_threshold: largest intersection over union that two boxes may keep.

    Returns:
        Indices of the boxes that stay, best first; among equal scores the earlier box is better. int64.

    Cost: one pass over the boxes for each that stays; memory in proportion to k.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        >>> nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
        [1, 2]
    """
    order = scores.sort(descending=True, stable=True).indices
    ranked = boxes[order]
    area = (ranked[:, 2] - ranked[:, 0]) * (ranked[:, 3] - ranked[:, 1])
    alive = torch.ones(len(ranked), dtype=torch.bool, device=boxes.device)
    kept: list[int] = []
    for index in range(len(ranked)):
        if not alive[index]:
            continue
        kept.append(index)
        rest = slice(index + 1, None)
        corner = torch.maximum(ranked[index, :2], ranked[rest, :2])
        sides = (torch.minimum(ranked[index, 2:], ranked[rest, 2:]) - corner).clamp(min=0)
        shared = sides[:, 0] * sides[:, 1]
        alive[rest] &= ~(shared / (area[index] + area[rest] - shared) > iou_threshold)
    return order[torch.tensor(kept, dtype=torch.long, device=boxes.device)]
