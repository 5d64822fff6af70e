"""PostgreSQL connections that take part in a transaction; the interface of ``psycopg2transaction``.

::

    import psycopg2
    from unanimous_tm import psycopg2 as branches, transaction

    conn = psycopg2.connect("dbname=orders")
    branches.join(conn)
    conn.cursor().execute("insert into orders (item) values ('a lamp')")
    transaction.commit()

Must not know how a branch is prepared or committed.
"""

from __future__ import annotations

from typing import Any, Iterable, Optional, Union

from ._postgres import BranchError, DataManager
from ._postgres import join as _join

__all__ = ["BranchError", "DataManager", "join"]


def join(conn: Any, trans: Any = None, notify: Optional[Union[str, Iterable[str]]] = None) -> Any:
    """Makes a connection's work a part of a transaction, from now until the transaction ends.

    :param conn: a connection of psycopg2 or psycopg 3, in no transaction and not in autocommit mode. Or a connection string: a
        connection is then opened by psycopg2 (by psycopg 3 where that is not installed), returned, and closed when the transaction ends; the
        same string gives the same connection within a transaction.
    :param trans: the transaction; the thread's own where it is left out.
    :param notify: channels that are notified when the transaction has committed, and only then: a name, or several, each as it would
        follow ``NOTIFY`` in SQL: ``"jobs"``, ``"jobs, 'some data'"``.
    :returns: the connection, for a connection string; else None.
    :raises ValueError: for a notification that PostgreSQL would refuse.
    """
    return _join(_connect, conn, trans, notify)


def _connect(dsn: str) -> Any:
    try:
        import psycopg2
    except ImportError:
        import psycopg

        return psycopg.connect(dsn)
    return psycopg2.connect(dsn)
