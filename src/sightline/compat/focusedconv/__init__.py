"""The names of focusedconv 1.0.1 on top of Sightline: change the import line, keep the rest.

    from sightline.compat import focusedconv

As there: the mask may have any resolution and is read afresh at every forward; by default its bounding box is computed; outside there
is 0, bias included; where the mask is empty everything is computed, and the size is 1.0; a brightness threshold is compared with the
sum of the channels, unscaled, so that published thresholds keep their meaning.

Differences, where the original is wrong:

* Windows at the border of the area see the true input around it; the original pads its crop with zeros.
* Strided layers compute on the grid of the whole map; the original's grid starts at the crop, a pixel off for odd corners.
* An area is brought to a layer's resolution with every cell that it touches, in integers: it never loses a row nor vanishes.
* Nothing falls back to the dense convolution unnoticed, writes a single value over a region, or swallows exceptions.
* Weights are shared, as its README says, not copied: training either model trains both, tied layers stay tied, hooks stay, a checkpoint
  loads. So keep ``copy.deepcopy`` where independent weights are wanted. Focused models can be copied themselves.
* ``padding_mode``, "same", "valid", any float type, autocast, channels last and unbatched maps work as in ``torch.nn.Conv2d``.
* ``AOI_GENERAL_MODE`` computes the true shape of the mask, with the layer's weights, bias, stride, dilation and groups.
* With several pictures `AoIThresholder` finds an area for each; one made without an area has one of its own.
* An area that is not set means everything, and layers without one are dense; the original raises errors.
* ``imshow`` draws the mask and the box that is computed, not the mask's convex hull; an unset area can be drawn too.
* ``build_focused_model`` refuses models without ``features`` (ResNet) instead of returning a dense one twice as large.
* ``build_fcnn``, the name in that library's README, exists.

Not different: only layers of exactly the type ``torch.nn.Conv2d`` are focused (what is left dense is named in a warning); other layers
run on whole maps, so a batch norm turns the 0 outside into its own constant. `sightline.focus` and `sightline.build_focused_model` run
whole networks inside an area, faster than layer by layer, without retraining too, and `sightline.focus(mode="exact")` without any error.
"""

from __future__ import annotations

from sightline.compat.focusedconv import areaofinterest, convolution
from sightline.compat.focusedconv.areaofinterest import AoI, AoIThresholder
from sightline.compat.focusedconv.convolution import FOCUSED_CONV_OP_MODES, FocusedConv2d
from sightline.compat.focusedconv.models import build_fcnn, build_focused_model, focusify_all_conv2d

__all__ = [
    "FOCUSED_CONV_OP_MODES",
    "AoI",
    "AoIThresholder",
    "FocusedConv2d",
    "areaofinterest",
    "build_fcnn",
    "build_focused_model",
    "convolution",
    "focusify_all_conv2d",
]
