"""Some pixels of a frame, for estimates that need not look at all of them."""

from __future__ import annotations

import math

import torch


def sampled(frame: torch.Tensor, pixels: int) -> torch.Tensor:
    """About `pixels` positions on a regular grid, at most, as a view (n, c, h', w') of a frame (n, c, h, w).

    >>> sampled(torch.zeros(1, 3, 480, 640), 4096).shape
    torch.Size([1, 3, 53, 71])
    """
    step = max(1, math.ceil(math.sqrt(frame.shape[2] * frame.shape[3] / pixels)))
    return frame[:, :, step // 2 :: step, step // 2 :: step]
