"""Composing configurations: packaged files, defaults lists and overrides, by Hydra.

What belongs here: finding files and handing them to Hydra. What does not: which keys there are (`schema`).
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sightline.errors import ConfigError
from sightline.extras import need
from sightline.fovea.config.schema import FOLDER, refuse_unknown, settings


def names() -> list[str]:
    """The packaged configurations.

    >>> "fovi_alexnet" in names()
    True
    """
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "default")


def compose(config_name: str = "fovi_alexnet", overrides: Sequence[str] = (), *, folder: str | Path | None = None) -> Any:
    """Compose a configuration from its file, the files that it names in ``defaults``, and overrides.

    The same as ``hydra.compose`` inside ``initialize_config_module("sightline.fovea.config")``, and it refuses what no network
    would read. It may be called inside a Hydra application.

    Args:
        config_name: a file's name, with or without ``.yaml``; `names` lists the packaged ones.
        overrides: in Hydra's language, for example ``["saccades.fov=20", "data=IN100", "model.dropout=null"]``.
        folder: where the files lie; default: the packaged ones.

    Returns:
        An ``omegaconf.DictConfig``.

    Raises:
        ConfigError: no such file (the nearest name is given), an unknown key (the same), a malformed override, an impossible value.
        MissingPackageError: without hydra-core: ``pip install 'sightline[fovea]'``.

    >>> cfg = compose("fovi_alexnet", ["saccades.fov=20"])
    >>> cfg.saccades.fov, cfg.data.num_classes
    (20, 1000)
    >>> compose("fovi_alexnet", ["saccades.fove=20"])
    Traceback (most recent call last):
    sightline.errors.ConfigError: unknown key saccades.fove in the configuration: did you mean saccades.fov?
    """
    need("hydra", "compose configurations")
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    where = FOLDER if folder is None else Path(folder)
    name = config_name.removesuffix(".yaml")
    if not (where / f"{name}.yaml").is_file():
        raise ConfigError(_no_such_file(name, where))
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        # Groups ("data=IN100") are folders, not keys; so is what is chosen for a package ("data@x").
        if not (where / key.partition("@")[0]).is_dir():
            refuse_unknown(key)
    with _own_hydra():
        try:
            with initialize_config_dir(version_base=None, config_dir=str(where.resolve())):
                config = hydra_compose(config_name=name, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"the configuration {name} cannot be composed: {str(error).splitlines()[0]}") from error
    settings(config)
    return config


def copy_to(folder: str | Path) -> Path:
    """Copy the packaged YAML files into a folder, to edit them or for ``hydra.initialize(config_path=...)``.

    Args:
        folder: is made if it is not there; files of the same names are replaced.

    Returns:
        The folder.
    """
    target = Path(folder)
    for path in sorted(FOLDER.rglob("*.yaml")):
        destination = target / path.relative_to(FOLDER)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, destination)
    return target


def _no_such_file(name: str, where: Path) -> str:
    there = sorted(path.stem for path in where.glob("*.yaml"))
    if not there:
        return f"no configuration {name} in {where}: the folder holds no .yaml file"
    return f"no configuration {name} in {where}: did you mean {difflib.get_close_matches(name, there, n=1, cutoff=0.0)[0]}?"


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Set an application's own Hydra aside: there is one per process, and composing while it is set up is an error."""
    from hydra.core.global_hydra import GlobalHydra

    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:  # Hydra's own context has put another instance in place
        GlobalHydra.instance().clear()
        if outer is not None:
            GlobalHydra.instance().initialize(outer)
