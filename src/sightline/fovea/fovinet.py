"""`FoviNet`: a retina, a policy that says where to look, a network, and a classifier that puts fixations together.

What belongs here: the whole. Its parts have files of their own; what a configuration may say is in `sightline.fovea.config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sightline.errors import CheckpointError, ConfigError, ShapeError
from sightline.fovea.config.field import with_field_of_view, with_geometry
from sightline.fovea.config.schema import Section, settings
from sightline.fovea.layers.base import KNNLayer
from sightline.fovea.layers.weights import geometry_of
from sightline.fovea.looking import retina_for
from sightline.fovea.networks.registry import ARCHITECTURES, ArchitectureRegistry
from sightline.fovea.policies import POLICIES, PolicyRegistry
from sightline.fovea.probes import FoviNetProbe
from sightline.fovea.retina import RetinalTransform
from sightline.fovea.saccades.base import SaccadePolicy
from sightline.fovea.sensor import SensorGrid

_Device = torch.device | str | None


class FoviNet(nn.Module):
    """A network that looks: glimpses of an image, features of each, and one answer for all of them.

    All fixations of a batch go through the network as one batch.

    Args:
        cfg: a configuration, from `sightline.fovea.config.compose`, from Hydra, or nested mappings with some of the keys of the packaged
            ``default.yaml``. It is not changed. Without ``saccades.field_geometry`` the geometry is "legacy", as fovi's checkpoints without
            that key need, and a UserWarning says so.
        device: of everything; default: the CPU.
        dtype: of parameters.

    Attributes:
        network: `BackboneProjectorWrapper`; ``network.backbone`` is the network on the sensor.
        retinal_transform: what looks. Its sensor is the backbone's.
        sup_fixator, ssl_fixator: policies for supervised and for self-supervised training (the second perhaps None).
        head: `FoviNetProbe`, or None with ``saccades.fix_agg: null``.
        settings: the configuration with all defaults, and with the field of view after ``saccades.rescale_fov``.
        mlp_spec: sizes of the layer outputs, joined by hyphens.
        num_coords: points on each sensor, see `get_num_coords`.

    Raises:
        ConfigError: unknown keys or names (the nearest one is given), values that cannot be.

    Cost: building one for 64 x 64 samples takes a fraction of a second; forward is what its network costs, times fixations.
    Source: fovi (Blauch, Alvarez and Konkle 2026); names and shapes of parameters are that library's.

    Example:
        >>> from sightline.fovea.config import compose
        >>> small = ["saccades.resize_size=16", "model.channel_mult=0.1", "model.mlp=32-32", "data.num_classes=5"]
        >>> net = FoviNet(compose("fovi_alexnet", small)).eval()
        >>> scores, outputs, seen = net(torch.rand(2, 3, 64, 64), n_fixations=3)
        >>> scores.shape, outputs[-1].shape, seen.shape
        (torch.Size([2, 5]), torch.Size([2, 3, 32]), torch.Size([2, 3, 3, 230]))
    """

    architectures: ClassVar[ArchitectureRegistry] = ARCHITECTURES
    policies: ClassVar[PolicyRegistry] = POLICIES
    probe_class: ClassVar[type[FoviNetProbe]] = FoviNetProbe
    sensor_class: ClassVar[Any] = SensorGrid
    retina: ClassVar[Any] = RetinalTransform

    def __init__(self, cfg: Any, device: _Device = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.cfg = cfg
        self.settings = see = self.read(cfg)
        self.network = type(self).architectures.get(see.model.arch)(see, device=device)
        self.retinal_transform = self.make_retina(see)
        self.default_setting = "supervised" if see.training.loss == "supervised" else "ssl"
        self.ssl_fixator = self._policy(see.saccades.ssl_policy)
        self.sup_fixator = self._policy(see.saccades.sup_policy)
        sizes = self._sizes(see)
        self.repr_size, self.num_features = sizes[0], sizes[-1]
        self.mlp_spec = "-".join(map(str, sizes))
        self.head: FoviNetProbe | None = None
        if see.saccades.fix_agg is not None:
            self.head = type(self).probe_class(sizes[-1], see.saccades.fix_agg, see.data.num_classes, see.model.dropout)
        self.to(device=device, dtype=dtype)
        self.total_embed_dim = sizes[0]
        self.num_coords = self.get_num_coords()
        self.generator: torch.Generator | None = None
        if see.saccades.seed is not None:
            self.generator = torch.Generator().manual_seed(int(see.saccades.seed))

    # ------------------------------------------------------------------------------------------------ parts
    def read(self, cfg: Any) -> Section:
        """A configuration checked and completed, with the field of view of one fixation.

        Raises:
            ConfigError: as the constructor.
        """
        return with_field_of_view(settings(with_geometry(cfg)))

    def make_retina(self, see: Section) -> nn.Module:
        """What looks, for a configuration; its sensor is the one that the network's first layer reads.

        Raises:
            ConfigError: a foveated network on a grid, or a dense one on points.
        """
        return retina_for(see, getattr(self._backbone, "in_coords", None), type(self).retina, type(self).sensor_class)

    def _policy(self, name: str | None) -> SaccadePolicy | None:
        return None if name is None else type(self).policies.get(name)(self)

    def _sizes(self, see: Section) -> list[int]:
        """Features of the backbone and of each of the projector's blocks."""
        features = getattr(getattr(self.network, "backbone", None), "total_embed_dim", None)
        if features is not None:
            widths = [int(width) for width in str(see.model.mlp).split("-")] if see.model.mlp else []
            return [int(features), *widths]
        # A network of the user's own: one small batch tells, and makes its lazy layers.
        training = self.training
        self.eval()
        with torch.no_grad():
            side = see.saccades.fixation_size
            height, width = side if isinstance(side, Sequence) else (side, side)
            samples = self.retinal_transform(torch.rand(2, see.model.in_channels, int(height), int(width)))
            _, outputs = self.network(samples, return_layer_outputs=True)
        self.train(training)
        return [output.flatten(1).shape[1] for output in outputs]

    # ---------------------------------------------------------------------------------------------- running
    def forward(
        self,
        images: Tensor,
        n_fixations: int | None = None,
        fixations: Any = None,
        *,
        setting: str | None = None,
        fixation_size: Any = None,
        area_range: Any = None,
        do_postproc: bool = True,
        fixated_inputs: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Look at images and answer.

        Args:
            images: (B, C, H, W), uint8 or floating; with ``fixated_inputs`` samples (B, F, C, N).
            n_fixations: how often to look; default: the policy's number.
            fixations: where to look instead of asking the policy: (B, F, 2) or a list of F pairs or (B, 2), rows and columns in [0, 1].
            setting: "supervised" or "ssl"; default: by ``training.loss``.
            fixation_size: pixels that the field of view covers, instead of the policy's sizes.
            area_range: share of the image that it covers, or a range to draw it from.
            do_postproc: False: return embeddings and not the head's answer.
            fixated_inputs: ``images`` are samples that a retina returned.
            generator: of the policy's random numbers; default: the network's own (``saccades.seed``), else torch's.

        Returns:
            The head's answer (B, classes): logits, or in evaluation with ``fix_agg: mean`` probabilities; embeddings (B, F, D) in the
            setting "ssl" and without ``do_postproc``. Then a list of layer outputs (B, F, d), detached: the backbone's features first,
            then each block of the projector. Then the samples (B, F, C, N).

        Raises:
            ShapeError: images or samples of another shape.
            ValueError: fixations that are NaN or outside the image.
            ConfigError: an unknown setting, or one without a policy.
        """
        setting = setting or self.default_setting
        if setting not in {"supervised", "ssl"}:
            raise ConfigError(f'setting must be "supervised" or "ssl", not {setting!r}')
        if fixated_inputs:
            samples = images
        else:
            policy = self.sup_fixator if setting == "supervised" else self.ssl_fixator
            if policy is None:
                key = "sup_policy" if setting == "supervised" else "ssl_policy"
                raise ConfigError(f"there is no policy for the setting {setting}: set saccades.{key}")
            samples = policy(
                images, n_fixations=n_fixations, fixations=fixations, generator=generator or self.generator, model=self,
                fixation_size=fixation_size, area_range=area_range,
            ).samples  # fmt: skip
        embeddings, outputs = self.encode(samples, ssl=setting == "ssl")
        if setting == "supervised" and do_postproc and self.head is not None:
            return self.head(embeddings), outputs, samples
        return embeddings, outputs, samples

    def encode(self, samples: Tensor, *, ssl: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Embeddings of samples, all fixations in one batch.

        Args:
            samples: (B, F, C, N), or (B, F, C, side, side) for a dense control.
            ssl: use the projector of self-supervised training.

        Returns:
            Embeddings (B, F, D), and a list of layer outputs (B, F, d), detached.

        Raises:
            ShapeError: samples of another shape.
        """
        if samples.ndim not in {4, 5} or (samples.ndim == 5) != (getattr(self._backbone, "in_coords", None) is None):
            kind = "(B, F, C, side, side)" if getattr(self._backbone, "in_coords", None) is None else "(B, F, C, N)"
            raise ShapeError(f"this network takes samples {kind}, not {tuple(samples.shape)}; give images without fixated_inputs")
        # Fixations first, as a retina lays samples out: so this is a view, and nothing is copied.
        folded = samples.transpose(0, 1).flatten(0, 1).to(self.dtype)
        embeddings, outputs = self.network(folded, return_layer_outputs=True, **({"ssl": True} if ssl else {}))
        return self._unfolded(embeddings, samples), [self._unfolded(output, samples) for output in outputs]

    @staticmethod
    def _unfolded(values: Tensor, samples: Tensor) -> Tensor:
        """(F * B, ...) to (B, F, ...)."""
        apart: Tensor = values.unflatten(0, (samples.shape[1], samples.shape[0]))
        return apart.transpose(0, 1)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's parameters; samples are brought to it."""
        return next(self.network.parameters()).dtype

    @property
    def _backbone(self) -> nn.Module:
        return cast(nn.Module, getattr(self.network, "backbone", self.network))

    # ------------------------------------------------------------------------------------------- looking in
    def list_available_layers(self) -> list[str]:
        """Names that `get_activations` knows: modules of ``network``, and of ``head`` behind ``head.``."""
        names = [name for name, _ in self.network.named_modules() if name]
        return names + ([f"head.{name}" for name, _ in self.head.named_modules() if name] if self.head is not None else [])

    def find_layer(self, name: str) -> tuple[str, nn.Module]:
        """A module by its name in ``network``, or by the end of it.

        Raises:
            ConfigError: there is none, or several; some names are given.
        """
        modules = dict(self.network.named_modules())
        if self.head is not None:
            modules |= {f"head.{inner}": module for inner, module in self.head.named_modules() if inner}
        name = name.removeprefix("network.")
        if name in modules:
            return name, modules[name]
        found = [candidate for candidate in modules if candidate.endswith(f".{name}")]
        if len(found) != 1:
            which = f"several layers end with it: {', '.join(found[:5])}" if found else "list_available_layers() lists them"
            raise ConfigError(f"the network has no layer {name!r}: {which}" if not found else f"the layer {name!r} is not clear: {which}")
        return found[0], modules[found[0]]

    @torch.no_grad()
    def get_activations(
        self, inputs: Tensor, layer_names: Sequence[str], setting: str = "supervised", **options: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What some layers return, for every fixation, in evaluation mode.

        Args:
            inputs: images (B, C, H, W).
            layer_names: names in ``network``, or the ends of them ("fc_block_6", "backbone.layers.0.conv").
            setting: as in `forward`.
            options: further arguments of `forward`.

        Returns:
            What `forward` returns first, and a mapping from the given names to (B, F, ...): (B, F, channels, nodes) for layers on sensors
            ((B, F, channels) where there is one node), (B, F, d) for layers on vectors.

        Raises:
            ConfigError: an unknown name.
        """
        caught: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                del module, args
                caught[name] = (output[0] if isinstance(output, tuple) else output).detach()

            return hook

        layers = [(name, self.find_layer(name)[1]) for name in layer_names]
        training = self.training
        handles = [layer.register_forward_hook(keep(name)) for name, layer in layers]
        self.eval()
        try:
            result, _, samples = self.forward(inputs, setting=setting, **options)
        finally:
            for handle in handles:
                handle.remove()
            self.train(training)
        activations = {}
        for name in layer_names:
            if name not in caught:
                raise ConfigError(f"the layer {name!r} did not run in the setting {setting}")
            values = caught[name]
            # The head takes fixations apart already; everything before it has them in its batch.
            values = values if name.startswith("head.") else self._unfolded(values, samples)
            activations[name] = values.squeeze(-1) if values.ndim == 4 and values.shape[-1] == 1 else values
        return result, activations

    def list_knn_layers(self) -> dict[str, KNNLayer]:
        """The layers on sensors, by their names in ``network``, in order."""
        return {name: module for name, module in self.network.named_modules() if isinstance(module, KNNLayer)}

    def get_num_coords(self) -> list[int] | None:
        """Points on the first sensor, then on the sensor behind each layer; None for a dense network."""
        layers = list(self.list_knn_layers().values())
        return [len(layers[0].in_coords), *(len(layer.out_coords) for layer in layers)] if layers else None

    def geometry(self) -> dict[str, str]:
        """The sensors of each layer, in words; what `load_state_dict` compares and messages name."""
        return geometry_of(self.network)

    # ---------------------------------------------------------------------------------------------- weights
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False, *, geometry: Mapping[str, str] | None = None
    ) -> Any:
        """Load weights of this network, of fovi's or of our own training.

        Args:
            state_dict: names and shapes as in `state_dict`; "module." in front of names is removed.
            strict: every parameter must be there, and none may be left over.
            assign: as in ``nn.Module.load_state_dict``.
            geometry: what `geometry` returned when the weights were saved. Weights carry no geometry, so those of another sensor may have
                the same shapes and compute something else.

        Raises:
            CheckpointError: weights of another geometry or architecture; the first difference is named.
        """
        known = {name.removeprefix("network."): words for name, words in (geometry or {}).items()}
        for name, mine in self.geometry().items() if geometry is not None else ():
            theirs = known.get(name, "no such layer")
            if theirs != mine:
                raise CheckpointError(f"the checkpoint is of another geometry: {name} has {theirs} in it, and {mine} here")
        given = {name.removeprefix("module."): value for name, value in state_dict.items()}
        ours = self.state_dict()
        for name in (name for name in ours if name in given):
            if tuple(ours[name].shape) != tuple(given[name].shape):
                raise CheckpointError(self._other_shape(name, tuple(given[name].shape), tuple(ours[name].shape)))
        missing, unknown = sorted(ours.keys() - given.keys()), sorted(given.keys() - ours.keys())
        if strict and (missing or unknown):
            lists = (("lacks", missing), ("has the unknown", unknown))
            parts = " and ".join(f"{what} {names[0]} and {len(names) - 1} more" for what, names in lists if names)
            raise CheckpointError(f"the checkpoint {parts}: it is of another architecture than {self.settings.model.arch}")
        return super().load_state_dict(given, strict=strict, assign=assign)

    def _other_shape(self, name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> str:
        layer_name = name.removeprefix("network.").rpartition(".")[0]
        layer = self.list_knn_layers().get(layer_name)
        text = f"the checkpoint is of another geometry or architecture: {name} has the shape {theirs} in it and {ours} here"
        if layer is None or len(theirs) != 2:
            return text
        channels = getattr(layer, "in_channels", 1)
        cells = theirs[1] // channels
        return f"{text}; its kernel has {cells} cells, and this network has {geometry_of(layer)['']}"
