"""The whole: ``fovi.models.fovinet``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sightline.compat.fovi._defaults import device_or_default
from sightline.compat.fovi.models.architectures import ARCHITECTURE_REGISTRY
from sightline.compat.fovi.sensing.coords import SamplingCoords
from sightline.compat.fovi.sensing.policies import FIXATION_POLICY_REGISTRY
from sightline.compat.fovi.sensing.retina import RetinalTransform
from sightline.fovea import fovinet
from sightline.fovea.config.schema import Section, plain

__all__ = ["FoviNet"]


class FoviNet(fovinet.FoviNet):
    """`sightline.fovea.FoviNet` of this package's layers, with fovi's order of arguments; it prints what the original prints.

    Args:
        cfg: as in the base class; without ``saccades.ties`` it is "fovi".
        device: of everything; default: a GPU where there is one.
        dtype: of parameters.
    """

    architectures: ClassVar[Any] = ARCHITECTURE_REGISTRY
    policies: ClassVar[Any] = FIXATION_POLICY_REGISTRY
    sensor_class: ClassVar[Any] = staticmethod(SamplingCoords.make)
    retina: ClassVar[Any] = staticmethod(RetinalTransform.around)

    def __init__(self, cfg: Any, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(cfg, device_or_default(device), dtype)
        print(f"Number of coords per layer: {self.num_coords}")

    def read(self, cfg: Any) -> Section:
        """The configuration, with fovi's ties where it does not name any."""
        given = plain(cfg)
        saccades = given.get("saccades")
        if isinstance(saccades, Mapping):
            given = {**given, "saccades": {"ties": "fovi", **saccades}}
        full = given.get("saccades", {}).get("fov", 16.0)
        see = super().read(given)
        print(f"adjusting FOV for fixation: {see.saccades.fov} (full: {full})")
        return see

    def forward(  # type: ignore[override]  # the original's order of arguments
        self,
        inputs: Tensor,
        n_fixations: int | None = None,
        fixation_size: Any = None,
        area_range: Any = None,
        fixations: Any = None,
        do_postproc: bool = True,
        fixated_inputs: bool = False,
        cmf_indices: None = None,
        *,
        setting: str | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """As in the base class; ``cmf_indices`` has no meaning here."""
        del cmf_indices
        return super().forward(
            inputs, n_fixations, fixations, setting=setting, fixation_size=fixation_size, area_range=area_range, do_postproc=do_postproc,
            fixated_inputs=fixated_inputs, generator=generator,
        )  # fmt: skip

    def setup_activation_hooks(self, layer_name: str) -> dict[str, Any]:
        """Start to keep what a layer returns; `get_captured_activations` gives it, `cleanup_activation_hooks` ends it."""
        kept: dict[str, Tensor] = {}

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            kept["activation"] = (output[0] if isinstance(output, tuple) else output).detach()

        name, layer = self.find_layer(layer_name)
        return {"handle": layer.register_forward_hook(hook), "activations": kept, "target_layer_name": name}

    def get_captured_activations(self, hooks: dict[str, Any], layer_name: str | None = None) -> Tensor:
        """What the layer returned last."""
        del layer_name
        if "activation" not in hooks["activations"]:
            raise RuntimeError("the layer has not run since setup_activation_hooks: call the network first")
        kept: Tensor = hooks["activations"]["activation"]
        return kept

    def cleanup_activation_hooks(self, hooks: dict[str, Any]) -> None:
        """Stop keeping."""
        hooks["handle"].remove()
