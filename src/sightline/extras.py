"""Optional packages: import one when it is needed, or say which extra brings it.

What belongs here: the table from package to extra, and the one error about a package that is missing. What does not: using
the package. The library itself (``import sightline``) needs none of these.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from sightline.errors import SightlineError

_EXTRA_OF = {
    "av": "video",
    "rich": "video",
    "typer": "video",
    "jinja2": "video",
    "PIL": "video",
    "matplotlib": "plots",
    "onnx": "onnx",
    "hydra": "fovea",
    "omegaconf": "fovea",
    "yaml": "fovea",
    "lightning_fabric": "fovea",
    "sklearn": "fovea",
    "tensorboard": "fovea",
    "webdataset": "fovea",
}


class MissingPackageError(SightlineError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


def need(package: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        package: name as in ``import package``.
        purpose: what it is needed for, to follow "is needed to".

    Returns:
        The module.

    Raises:
        MissingPackageError: if it cannot be imported.

    >>> need("json", "read numbers").__name__
    'json'
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        root = package.partition(".")[0]
        extra = _EXTRA_OF.get(root)
        command = f"pip install 'sightline[{extra}]'" if extra else f"pip install {root}"
        raise MissingPackageError(f"the package {root} is needed to {purpose} ({error}): {command}") from error
