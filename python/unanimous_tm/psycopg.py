"""The same as :mod:`unanimous_tm.psycopg2`, with connection strings opened by psycopg 3.

Must not know how a branch is prepared or committed.
"""

from __future__ import annotations

from typing import Any, Iterable, Optional, Union

from ._postgres import BranchError, DataManager
from ._postgres import join as _join

__all__ = ["BranchError", "DataManager", "join"]


def join(conn: Any, trans: Any = None, notify: Optional[Union[str, Iterable[str]]] = None) -> Any:
    """As :func:`unanimous_tm.psycopg2.join`; a connection string is opened by psycopg 3."""
    return _join(_connect, conn, trans, notify)


def _connect(dsn: str) -> Any:
    import psycopg

    return psycopg.connect(dsn)
