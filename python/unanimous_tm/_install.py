"""Puts this package's modules under the ancestors' import names.

Must not know what is in the modules.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import types
from typing import Optional

#: The ancestors' names, and ours.
_NAMES = {
    "transaction": "unanimous_tm.transaction",
    "repoze.tm": "unanimous_tm.wsgi",
    "psycopg2transaction": "unanimous_tm.psycopg2",
}


class InstallError(RuntimeError):
    """An ancestor was imported before :func:`install` was called, so that both would be in use."""


def install(stream: Optional[bool] = None) -> None:
    """Makes ``import transaction`` (with its submodules), ``import repoze.tm`` and ``import psycopg2transaction`` give this
    package's modules, in this process from now on. Call it before anything is imported that imports one of them; called again
    it changes nothing.

    :param stream: true: WSGI responses start before the outcome is known, as ``repoze.tm`` does it. None: as it was; held back at first.
    :raises InstallError: where one of the originals has been imported. Nothing is changed then.
    """
    modules = _modules()
    for name in list(sys.modules):
        if name.partition(".")[0] in ("transaction", "psycopg2transaction") or name == "repoze.tm" or name.startswith("repoze.tm."):
            found = sys.modules[name]
            if found is not None and found is not modules.get(name):
                raise InstallError(_refusal(name, found))
    if stream is not None:
        setattr(modules["repoze.tm"], "_stream", bool(stream))
    sys.modules.update(modules)
    # `import repoze.tm` asks the package for its module.
    setattr(_repoze(), "tm", modules["repoze.tm"])


def is_installed() -> bool:
    """Whether the ancestors' names lead here."""
    return all(
        name in sys.modules and sys.modules[name] is sys.modules.get(ours) for name, ours in _NAMES.items()
    )


def _modules() -> dict[str, types.ModuleType]:
    modules = {}
    for name, ours in _NAMES.items():
        module = modules[name] = importlib.import_module(ours)
        for part in pkgutil.iter_modules(getattr(module, "__path__", ())):
            modules[f"{name}.{part.name}"] = importlib.import_module(f"{ours}.{part.name}")
    return modules


def _repoze() -> types.ModuleType:
    """The namespace package, which other distributions share."""
    try:
        return importlib.import_module("repoze")
    except ImportError:
        package = types.ModuleType("repoze", "Made by unanimous_tm.install().")
        package.__path__ = []
        sys.modules["repoze"] = package
        return package


def _refusal(name: str, found: types.ModuleType) -> str:
    where = getattr(found, "__file__", None) or "unknown place"
    return (
        f"{name} has been imported already, from {where}, and both can't be in use in one process: call unanimous_tm.install() before"
        " whatever imports it, or start the program by `python -m unanimous_tm run`"
    )
