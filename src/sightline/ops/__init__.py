"""Operators that compute only where they are told to: eager, functional, differentiable, and one graph under torch.compile.

Each takes `sites` (a `sightline.Sites` or a bool mask on the output's grid) and `held`, what the output is elsewhere. Work follows the
number of sites, forward and backward. `channel_sum_conv2d` is the odd one: all windows, but summed over channels only.

What does not belong here: whole networks (`sightline.stream`), modules (`sightline.nn`). Importing this package registers
``torch.ops.sightline``.
"""

from sightline.ops.channel_sum import channel_sum_conv2d
from sightline.ops.convolution import conv2d_at, conv_transpose2d_at
from sightline.ops.pooling import avg_pool2d_at, max_pool2d_at

__all__ = ["avg_pool2d_at", "channel_sum_conv2d", "conv2d_at", "conv_transpose2d_at", "max_pool2d_at"]
