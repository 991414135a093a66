"""Saved networks: folders that hold a configuration and weights, in the layout that fovi has. Nothing is downloaded.

What belongs here: finding and reading such folders. What does not: writing checkpoints while training.

A folder's configuration is the first of ``resolved_config.yaml``, ``hydra/config.yaml``, ``config.yaml``, ``NAME.yaml`` beside the folder
(composed) and ``params.json``; its weights the first of ``state_dict.index.json`` (shards), ``state_dict.pth``, ``final_weights.pth``,
``model.pth``. Weights are read with ``weights_only=True``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.errors import CheckpointError, ConfigError
from sightline.extras import need
from sightline.fovea.config import compose
from sightline.fovea.config.schema import refuse_unknown

_CONFIGS = ("resolved_config.yaml", "hydra/config.yaml", "config.yaml")
_WEIGHTS = (("state_dict.pth", "state_dict"), ("final_weights.pth", "state_dict"), ("model.pth", "model"))
_Device = torch.device | str | None


def load_config(base_fn: str, load: bool, folder: str | Path, device: _Device = None) -> tuple[Any, dict[str, Any] | None, str | None]:
    """Read a saved network's configuration, and its weights.

    Args:
        base_fn: the folder's name, or that of a configuration without ``.yaml``.
        load: read weights too.
        folder: where the folder lies.
        device: of the weights; default: the CPU.

    Returns:
        The configuration (a DictConfig), the checkpoint (a mapping; None without ``load``), and the key of the weights in it. In a
        configuration that does not say ``saccades.ties``, as none of fovi does, it becomes "fovi", so that its weights give its numbers.

    Raises:
        ConfigError: no configuration there, or one that is no mapping.
        CheckpointError: no weights there, or a file that does not hold them.
    """
    base = Path(folder) / base_fn
    config = _read_config(base, Path(folder), base_fn)
    saccades = config.get("saccades")
    if saccades is not None and "ties" not in saccades:
        omegaconf = need("omegaconf", "read configurations")
        with omegaconf.open_dict(config):
            config.saccades.ties = "fovi"
    if not load:
        return config, None, None
    checkpoint, key = _read_weights(base, base_fn, torch.device(device or "cpu"))
    return config, checkpoint, key


def _read_config(base: Path, folder: Path, name: str) -> Any:
    omegaconf = need("omegaconf", "read configurations")
    for relative in _CONFIGS:
        if (base / relative).is_file():
            config = omegaconf.OmegaConf.load(base / relative)
            break
    else:
        if (folder / f"{name}.yaml").is_file():
            return compose(name, folder=folder)
        if not (base / "params.json").is_file():
            looked = ", ".join((*_CONFIGS, f"../{name}.yaml", "params.json"))
            raise ConfigError(f"there is no configuration in {base}: looked for {looked}; nothing is downloaded, so put the folder there")
        config = omegaconf.OmegaConf.create(json.loads((base / "params.json").read_text(encoding="utf-8")))
    if not isinstance(config, omegaconf.DictConfig):
        raise ConfigError(f"the configuration in {base} is not a mapping")
    return config


def _read_weights(base: Path, name: str, device: torch.device) -> tuple[dict[str, Any], str]:
    index = base / "state_dict.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        weights: dict[str, Any] = {}
        for shard in shards:
            weights.update(_read(_inside(base, shard), device))
        return {"state_dict": weights}, "state_dict"
    for file, key in _WEIGHTS:
        if (base / file).is_file():
            checkpoint = _read(base / file, device)
            if not isinstance(checkpoint.get(key), Mapping):
                raise CheckpointError(f"{base / file} holds no weights under {key!r}: it has {', '.join(map(str, list(checkpoint)[:5]))}")
            return checkpoint, key
    looked = ", ".join(["state_dict.index.json", *(file for file, _ in _WEIGHTS)])
    raise CheckpointError(f"there are no weights of {name} in {base}: looked for {looked}")


def _inside(base: Path, shard: str) -> Path:
    path = (base / shard).resolve()
    if base.resolve() not in path.parents:
        raise CheckpointError(f"the index of shards in {base} names {shard}, which lies outside that folder")
    return path


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, and the index of shards names it")
    try:
        read = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds, and pickle its own
        raise CheckpointError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
    if not isinstance(read, dict):
        raise CheckpointError(f"{path} holds a {type(read).__name__}, not a mapping of weights")
    return read


def find_config(
    base_fn: str, load: bool, model_dirs: Sequence[str | Path] | None = None, device: _Device = None
) -> tuple[Any, dict[str, Any] | None, str | None]:
    """`load_config` in the first of several folders that has the network.

    Args:
        base_fn: as in `load_config`.
        load: as in `load_config`.
        model_dirs: the folders, in order; default: ``../models``.
        device: as in `load_config`.

    Raises:
        ConfigError: none of them has it.
    """
    folders = [Path(folder) for folder in (model_dirs or ("../models",))]
    for folder in folders:
        if (folder / base_fn).exists() or (folder / f"{base_fn}.yaml").is_file():
            return load_config(base_fn, load, folder, device)
    raise ConfigError(f"there is no network {base_fn} in {', '.join(map(str, folders))}; nothing is downloaded, so put its folder there")


def get_model_from_base_fn(
    base_fn: str,
    load: bool = True,
    load_strict: bool = True,
    quiet: bool = False,
    device: _Device = None,
    model_dirs: Sequence[str | Path] = ("../models",),
    fovinet_cls: type[nn.Module] | None = None,
    **overrides: Any,
) -> nn.Module:
    """Build a saved network, with its weights.

    Args:
        base_fn: as in `load_config`.
        load: read weights too.
        load_strict: every parameter must be there, and none may be left over.
        quiet: not used; nothing is printed.
        device: of everything; default: the CPU.
        model_dirs: folders to look in.
        fovinet_cls: another class than `FoviNet`.
        overrides: dotted keys of the configuration. Another ``data.num_classes`` leaves out the head's weights.

    Returns:
        The network, in training mode as it is built.

    Raises:
        ConfigError: no such network, or unknown keys.
        CheckpointError: weights that are missing, unreadable, or of another geometry.
    """
    from sightline.fovea.fovinet import FoviNet

    del quiet
    config, checkpoint, key = find_config(base_fn, load, model_dirs, device)
    omegaconf = need("omegaconf", "read configurations")
    head = True
    for name, value in overrides.items():
        refuse_unknown(name)
        head = head and not (name == "data.num_classes" and config.data.num_classes != value)
        with omegaconf.open_dict(config):
            omegaconf.OmegaConf.update(config, name, value)
    model = (fovinet_cls or FoviNet)(config, device=device)
    if checkpoint is not None and key is not None:
        weights = {name.removeprefix("module."): value for name, value in checkpoint[key].items()}
        if not head:
            ours = {name: value for name, value in model.state_dict().items() if name.startswith("head.")}
            weights = {name: value for name, value in weights.items() if not name.startswith("head.")} | ours
        geometry = checkpoint.get("geometry")
        told = {"geometry": geometry} if geometry is not None and isinstance(model, FoviNet) else {}
        model.load_state_dict(weights, strict=load_strict, **told)
    return model
