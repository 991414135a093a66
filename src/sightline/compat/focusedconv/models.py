"""Whole models turned into focused ones, in place, as focusedconv does it."""

from __future__ import annotations

import warnings

from torch import nn

from sightline.compat.focusedconv.areaofinterest import AoI, AoIThresholder
from sightline.compat.focusedconv.convolution import FocusedConv2d
from sightline.errors import CaptureError


def focusify_all_conv2d(m: nn.Module, aoi: AoI) -> None:
    """Replaces all ``Conv2d`` layers inside a module, in place, by focused ones with the same Parameters.

    Names of parameters stay as they are. The replaced layers themselves are not touched, so other modules that hold them stay dense.
    Layers that are focused already are pointed to the new area. A warning names the convolutions that stay dense: subclasses of ``Conv2d``
    (which may compute something else), and `m` itself, which cannot be replaced inside anything.

    Args:
        m: the module.
        aoi: the area.

    Example:
        >>> from torch import rand, tensor
        >>> cnn = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())
        >>> weight = cnn[0].weight
        >>> focusify_all_conv2d(cnn, AoI(tensor([[1, 0], [0, 0]])))
        >>> type(cnn[0]).__name__, cnn[0].weight is weight, cnn(rand(1, 3, 4, 4))[..., 2:].abs().max().item()
        ('FocusedConv2d', True, 0.0)
    """
    twins: dict[nn.Module, FocusedConv2d] = {}
    dense: list[str] = []
    for name, module in list(m.named_modules()):
        if isinstance(module, FocusedConv2d):
            module.aoi = aoi
        elif isinstance(module, nn.Conv2d) and (module is m or type(module) is not nn.Conv2d):
            dense.append(f"{name or 'the module itself'} ({type(module).__name__})")
        for child, layer in module._modules.items():
            if type(layer) is nn.Conv2d:
                module._modules[child] = twins.setdefault(layer, FocusedConv2d.of(layer, aoi))
    if dense:
        warnings.warn(
            f"{len(dense)} convolutions stay dense: {', '.join(dense[:5])}{', ...' if len(dense) > 5 else ''}. Only layers of type "
            "torch.nn.Conv2d inside a module are replaced; sightline.focus(model, area) runs any model inside an area.",
            stacklevel=2,
        )


def build_focused_model(
    m: nn.Module, top_layers: nn.Module, activation_brightness_threshold: float, remaining_layers: nn.Module
) -> tuple[nn.Module, AoI]:
    """Makes an fCNN in place: where the activation of the top layers is bright, the convolutions of the remaining layers compute.

    `remaining_layers` is focusified in place, and ``m.features`` becomes the sequence of the top layers, an `AoIThresholder` and the
    remaining layers, which changes the names of their parameters. `sightline.build_focused_model` changes nothing, takes any model,
    focuses all operations and not only convolutions, and is faster; it is not for training.

    Args:
        m: a model whose forward uses ``self.features`` (VGG, AlexNet, MobileNetV2, DenseNet, EfficientNet, SqueezeNet).
        top_layers: its first layers.
        activation_brightness_threshold: least sum over channels of what they return, to be inside.
        remaining_layers: the layers behind them.

    Returns:
        (m, aoi): the same model, and the area, which every forward sets anew.

    Raises:
        CaptureError: `m` has no ``features``.
    """
    if not isinstance(getattr(m, "features", None), nn.Module):
        raise CaptureError(
            f"m: {type(m).__name__} has no layers named `features`, so that its forward cannot be focused this way; "
            "sightline.build_focused_model(model, [first layers], threshold, [later layers]) takes any model."
        )
    aoi = AoI()
    focusify_all_conv2d(remaining_layers, aoi)
    m.features = nn.Sequential(top_layers, AoIThresholder(activation_brightness_threshold, aoi), remaining_layers)
    return m, aoi


build_fcnn = build_focused_model
"""The name that focusedconv's README uses."""
