"""What is configured, and when the process's manager is opened by it: at first use, so that who never commits holds nothing open.

Must not know transactions.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping

from . import _core

__all__ = ["configure", "open_engine"]

_lock = threading.Lock()
_log: str | None = None
_resources: dict[str, str] = {}


def configure(log: str | os.PathLike[str] | None = None, resources: Mapping[str, str] | None = None) -> None:
    """Make decisions durable in this log, and recover these PostgreSQL databases."""
    global _log, _resources
    with _lock:
        _log = None if log is None else os.fspath(log)
        _resources = dict(resources or {})


def open_engine() -> None:
    """For the core, which calls it where no manager is open."""
    with _lock:
        if not _core.is_open():
            _core.open(_log, _resources)


@atexit.register
def _close() -> None:
    _core.close(5.0)
