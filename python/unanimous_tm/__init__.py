"""Transactions over several stores: all of them commit or none does, also through a crash."""

from __future__ import annotations

from ._configuration import InDoubt, configure, recover, shutdown
from ._install import InstallError, install

__all__ = ["InDoubt", "InstallError", "configure", "install", "recover", "shutdown"]
