"""Modules for hand-written models: layers of ``torch.nn`` that compute only inside an area, or sum over channels only.

They train like any layer and share their parameters with the dense layer that they are made from. For whole models that exist
already, `sightline.stream` needs no new layers.
"""

from sightline.nn.channel_sum import ChannelSumConv2d
from sightline.nn.focused import FocusedConv2d, HasSites

__all__ = ["ChannelSumConv2d", "FocusedConv2d", "HasSites"]
