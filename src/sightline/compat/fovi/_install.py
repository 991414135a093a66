"""``import fovi`` without fovi: a finder that answers with the modules of this package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_OURS = "sightline.compat.fovi"


class _Alias(Loader):
    """Loads a module by giving out another one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The other module, loaded under its own name."""
        del spec
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run; the import system has put its own spec into the module, which keeps the one it had."""
        module.__spec__ = self.spec


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A spec for ``fovi`` and what is below it, where this package has it."""
        del path, target
        if fullname != "fovi" and not fullname.startswith("fovi."):
            return None
        ours = _OURS + fullname.removeprefix("fovi")
        if importlib.util.find_spec(ours) is None:
            return None
        return ModuleSpec(fullname, _Alias(ours), is_package=True)


def install() -> bool:
    """Let ``import fovi`` and ``from fovi.X import Y`` find this package's modules where fovi is not installed.

    Call it once, before such imports. Nothing is written to disk. Where fovi is installed it stays as it is.

    Returns:
        Whether ``fovi`` is this package now.

    >>> install()
    True
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return True
    if importlib.util.find_spec("fovi") is not None:
        return False
    # In front of all others: they would find the files of submodules too, and load them a second time.
    sys.meta_path.insert(0, _Finder())
    return True
