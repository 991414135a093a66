"""What a configuration may hold: known names, possible values, and the reading of whatever holds them.

``default.yaml`` beside this file is the one list of names and defaults. What belongs here: checking against it, and `Section`, the
plain form that networks read. What does not: composing files (`compose`), and what a value means.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from sightline.errors import ConfigError
from sightline.extras import need

FOLDER = Path(__file__).resolve().parent

# Names that configurations of fovi hold and that mean nothing here: they are accepted, so that its files load, and not used.
FOVI_ONLY = frozenset(
    {
        "saccades.circular", "saccades.fixation_noise", "saccades.fix_temp", "saccades.fix_ior_width", "saccades.sampler_backend",
        "transforms.foveal_color", "validation.do_roc", "validation.no_fov_color_val", "logging.use_wandb", "logging.wandb", "dist",
        "training.from_checkpoint", "training.lr_schedule", "training.standard_probe_optim", "training.distributed", "training.num_crops",
        "training.train_probes_only", "training.last_layer_probes_only", "training.subset", "training.load_cpu", "training.balance_loss",
        "training.allow_nans", "training.lr_decay_factor", "training.patience_epochs", "data.subset", "logging.folder", "logging.base_fn",
        "logging.log_level", "validation.repeats", "validation.val_every", "transforms.where",
        "pretrained_model", "hydra", "model.vit.attn_backend",
    }
)  # fmt: skip

# Names that change what a network computes and that nothing here can do: only None is accepted.
_NOT_HERE = {"saccades.camera_model": None, "saccades.gaze_convention": "camera_xyz", "saccades.fov_reference_side": "long"}

_CHOICES: dict[str, tuple[Any, ...]] = {
    "model.arch_flag": ("", "doubleres", None),
    "model.conv_layer_cls": ("default", "dwsep"),
    "model.norm": (
        "batch", "force_batch", "channel", "layer_chan", "coord", "layer_space", "layer", "layer_all", "group", "none", None,
    ),
    "model.vit.embedding": ("knn", "partition", "knn_partition"),
    "model.vit.pos_emb_type": ("absolute", "rope"),
    "model.vit.aggregation": ("cls_token", "avg_pool", "flatten"),
    "saccades.mode": (
        "isotropic", "isotropic_fixn", "logpolar", "logpolar_as_grid", "warped_cartesian", "warped_cartesian_as_grid", "uniform",
        "uniform_as_grid", None,
    ),
    "saccades.field_geometry": ("planar", "legacy", "spherical"),
    "saccades.fov_type": ("circular", "square", "wang"),
    "saccades.sample_cortex": (True, False, "geodesic"),
    "saccades.ties": ("stable", "fovi"),
    "saccades.sampler": ("grid_nn", "grid_bilinear", "pooling", "gaussian_pooling"),
    "saccades.fix_agg": ("mean", "force_mean", "attn", "rnn", "lstm", "gru", None),
    "data.kind": ("folder", "torchvision", "webdataset", "digit_scenes"),
    "training.optimizer": ("adamw", "sgd", "lars"),
    "training.lr_scheduler": ("cosine_decay_with_warmup", "constant"),
    "training.loss": ("supervised", "simclr", "vicreg", "barlow"),
    "training.amp_dtype": ("float16", "bfloat16", "float32"),
}  # fmt: skip

_POSITIVE = (
    "model.in_channels", "model.channel_mult", "model.k_mult", "model.ref_frame_mult", "model.stem_kernel_size", "model.stem_conv_stride",
    "model.stem_pool_stride", "model.vit.patch_size", "model.vit.patch_overlap_factor", "model.vit.num_layers", "saccades.fov",
    "saccades.resize_size", "saccades.fixation_size", "saccades.fixation_size_min_frac", "saccades.fixation_size_max_frac",
    "saccades.fixation_size_frac_val", "saccades.n_fixations", "saccades.color_sigma", "saccades.pool_factor", "data.num_classes",
    "training.resolution", "training.batch_size", "training.epochs", "training.base_lr", "training.grad_accum_steps",
    "validation.batch_size",
    "saccades.uncertainty.channels", "saccades.uncertainty.grid", "saccades.uncertainty.temperature", "saccades.uncertainty.object_size",
    "data.scenes.zoom", "data.scenes.train", "data.scenes.val", "data.samples", "data.val_samples",
)  # fmt: skip


class Section(dict[str, Any]):
    """A mapping whose keys are attributes too, as in OmegaConf, without needing it.

    >>> Section(fov=16.0).fov
    16.0
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"a configuration has no key {name!r} here; it has {', '.join(map(str, self))}") from None


@functools.cache
def _defaults() -> Mapping[str, Any]:
    yaml = need("yaml", "read configurations")
    return cast("Mapping[str, Any]", yaml.safe_load((FOLDER / "default.yaml").read_text(encoding="utf-8")))


@functools.cache
def known_names() -> tuple[str, ...]:
    """All dotted names that a configuration may hold, for example ``saccades.fov``.

    >>> "saccades.fov" in known_names()
    True
    """
    return tuple(_names(_defaults()))


def _names(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}.")


def refuse_unknown(name: str) -> None:
    """Refuse a dotted name that no configuration may hold.

    Raises:
        ConfigError: naming the nearest known name.

    >>> refuse_unknown("saccades.cmf_b")
    Traceback (most recent call last):
    sightline.errors.ConfigError: unknown key saccades.cmf_b in the configuration: did you mean saccades.cmf_a?
    """
    known = known_names()
    parents = name.split(".")
    if name in known or name in _NOT_HERE or any(".".join(parents[: i + 1]) in FOVI_ONLY for i in range(len(parents))):
        return
    raise ConfigError(f"unknown key {name} in the configuration: did you mean {_nearest(name, known)}?")


def _nearest(name: str, known: tuple[str, ...]) -> str:
    same_key = [candidate for candidate in known if candidate.rpartition(".")[2] == name.rpartition(".")[2]]
    if same_key:  # the right key in the wrong section
        return same_key[0]
    section = name.rpartition(".")[0]
    inside = [candidate for candidate in known if candidate.rpartition(".")[0] == section] or list(known)
    return difflib.get_close_matches(name, inside, n=1, cutoff=0.0)[0]


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, lists and values.

    Args:
        config: a DictConfig of OmegaConf (interpolations are resolved), or nested mappings.

    Raises:
        ConfigError: if it is neither.
    """
    if hasattr(config, "_content"):  # OmegaConf's mark; the package itself need not be there for plain mappings
        omegaconf = need("omegaconf", "read this configuration")
        config = omegaconf.OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if not isinstance(config, Mapping):
        raise ConfigError(f"a configuration must be a mapping, not {type(config).__name__}: take one from sightline.fovea.config.compose")
    return _copied(config)


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): _copied(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def settings(config: Any) -> Section:
    """Check a configuration and fill in what it leaves out.

    Args:
        config: from `compose`, from a file of fovi, or nested mappings with some of the keys of ``default.yaml``.

    Returns:
        All keys of ``default.yaml``, as nested `Section` objects; the given configuration is not changed.

    Raises:
        ConfigError: for an unknown key (the nearest known one is named) and for values that cannot be.

    >>> settings({"saccades": {"fov": 20}}).saccades.fov
    20
    >>> settings({"saccades": {"fov": -1}})
    Traceback (most recent call last):
    sightline.errors.ConfigError: saccades.fov must be greater than 0, not -1
    """
    given = plain(config)
    for name in _names(given):
        refuse_unknown(name)
    merged = _merged(_defaults(), given)
    _check_values(merged)
    return merged


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Section:
    result = Section()
    for key, default in defaults.items():
        value = given.get(key, default)
        if isinstance(default, Mapping):
            value = _merged(default, value if isinstance(value, Mapping) else {})
        result[key] = value
    for key, value in given.items():
        result.setdefault(key, Section(value) if isinstance(value, Mapping) else value)
    return result


def _value(tree: Mapping[str, Any], name: str) -> Any:
    for key in name.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _check_values(tree: Section) -> None:
    for name, choices in _CHOICES.items():
        value = _value(tree, name)
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")
    for name in _POSITIVE:
        value = _value(tree, name)
        if value is not None and not _all_positive(value):
            raise ConfigError(f"{name} must be greater than 0, not {value}")
    cmf_a = tree.saccades.cmf_a
    if cmf_a not in {None, -1, "auto"} and not _all_positive(cmf_a):
        raise ConfigError(f'saccades.cmf_a must be greater than 0 (degrees) or "auto", not {cmf_a}')
    for name, only in _NOT_HERE.items():
        value = _value(tree, name)
        if value is not None and value != only:
            raise ConfigError(f"{name}: a configuration cannot make a calibrated camera; leave it out, and see RetinalTransform(camera=)")


def _all_positive(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in values)
