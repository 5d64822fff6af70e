"""Transactions over several stores: all of them commit or none does, also through a crash."""

from __future__ import annotations

from ._configuration import configure
from ._install import InstallError, install

__all__ = ["InstallError", "configure", "install"]
