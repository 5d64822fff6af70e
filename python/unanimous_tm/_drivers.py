"""psycopg2 and psycopg 3, as far as a branch needs them.

Both keep a connection that has begun a two-phase transaction from being committed or rolled back by the application. Neither takes the
branch's id later than at the begin, nor the vote's guard; so the statements of both phases are sent as they are.

Must not know transactions.
"""

from __future__ import annotations

import inspect
import weakref
from typing import Any, Optional

# libpq's PGTransactionStatusType.
_IDLE, _IN_TRANSACTION, _IN_ERROR = 0, 2, 3


def driver_of(conn: Any) -> Driver:
    """
    :raises TypeError: for what is no connection of either.
    """
    driver = _drivers.get(type(conn))
    if driver is None:
        driver = _looked_for(conn)
        if hasattr(type(conn), "tpc_begin"):
            # The look costs as much as a short statement. What stands for a connection may stand for another kind next.
            _drivers[type(conn)] = driver
    return driver(conn)


def _looked_for(conn: Any) -> type[Driver]:
    if hasattr(conn, "tpc_begin") and not inspect.iscoroutinefunction(conn.tpc_begin):
        return Psycopg3 if hasattr(conn, "pgconn") and hasattr(conn, "add_notice_handler") else Psycopg2
    raise TypeError(
        f"join takes a connection string, or a connection of psycopg2 or psycopg 3 that is not asynchronous, not {conn!r}"
    )


# Of each class of connections.
_drivers: weakref.WeakKeyDictionary[type, type[Driver]] = weakref.WeakKeyDictionary()


class Driver:
    """A connection. What it raises is the driver's own."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    @property
    def dsn(self) -> str:
        """The connection string, without password."""
        raise NotImplementedError

    def is_idle(self) -> bool:
        """Whether nothing has begun on it; where something has, the driver's begin says what is wrong."""
        try:
            return int(self.conn.info.transaction_status) == _IDLE and not self.conn.autocommit
        except Exception:
            return False

    def ask(self, sql: str) -> tuple:
        """The first row that a query gives, in no transaction."""
        self.conn.autocommit = True
        try:
            return self.run(sql)[0]
        finally:
            if not self.conn.closed:
                self.conn.autocommit = False

    def begin(self, name: str) -> None:
        """Begins a transaction in which the driver refuses `commit` and `rollback`."""
        self.conn.tpc_begin(name)

    def run(self, sql: str) -> list[tuple]:
        """One message, in the transaction. The rows of its last statement, if it gives any."""
        raise NotImplementedError

    def run_outside(self, sql: str) -> None:
        """The same when the server's transaction was prepared."""
        raise NotImplementedError

    def run_alone(self, sql: str) -> None:
        """The same on a connection that has begun nothing."""
        self.conn.autocommit = True
        self.run(sql)

    def rollback(self) -> None:
        """Rolls back what was begun."""
        self.conn.tpc_rollback()

    def reset(self) -> None:
        """Makes the connection as it was before the begin; the server's transaction was prepared."""
        raise NotImplementedError

    def close(self) -> None:
        self.conn.close()

    def vote(self, sql: str) -> Optional[str]:
        """Prepares, in one message. Why the server thinks that this may not have reached a replica that it must reach, if it does."""
        raise NotImplementedError

    def is_open(self) -> bool:
        """Whether the server has answered last that it is inside of a transaction."""
        try:
            return int(self.conn.info.transaction_status) in (_IN_TRANSACTION, _IN_ERROR)
        except Exception:
            return False

    def is_lost(self, error: BaseException) -> bool:
        """Whether the connection is gone, so that an error is no answer."""
        state = self.sqlstate(error) or ""
        return bool(self.conn.closed) or state.startswith("08") or state in ("57P01", "57P02", "57P03", "57P05", "25P03")

    @staticmethod
    def sqlstate(error: BaseException) -> Optional[str]:
        """The server's code of an error; None where the server did not answer."""
        return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


class Psycopg2(Driver):
    """What it has begun it sends statements in as they are, until it is told to end."""

    @property
    def dsn(self) -> str:
        return self.conn.dsn

    def run(self, sql: str) -> list[tuple]:
        from psycopg2.extensions import cursor

        with self.conn.cursor(cursor_factory=cursor) as made:
            made.execute(sql)
            return made.fetchall() if made.description else []

    def run_outside(self, sql: str) -> None:
        self.run(sql)

    def reset(self) -> None:
        # It thinks that the transaction is open; a rollback of none would be a warning in the server's log.
        self.run("BEGIN")
        self.conn.tpc_rollback()

    def vote(self, sql: str) -> Optional[str]:
        # The application may have a list of its own there, and the driver forgets all but the last fifty.
        kept = self.conn.notices
        heard: list[str] = []
        self.conn.notices = heard
        try:
            self.run(sql)
        finally:
            self.conn.notices = kept
            for text in heard:
                kept.append(text)
        # Their severity is translated, and where they come from is not told: what does not say that it is harmless may be it.
        warning = next((text for text in heard if not text.startswith(("NOTICE", "INFO", "LOG", "DEBUG"))), None)
        if warning is not None and not self.run("SHOW synchronous_standby_names")[0][0]:
            return None
        return warning


class Psycopg3(Driver):
    """What it has begun it takes for ended when the server says so."""

    _begun = False
    _warning: Optional[str] = None

    @property
    def dsn(self) -> str:
        return self.conn.info.dsn

    def begin(self, name: str) -> None:
        super().begin(name)
        self._begun = True

    def run(self, sql: str) -> list[tuple]:
        from psycopg.rows import tuple_row

        with self.conn.cursor(row_factory=tuple_row) as made:
            made.execute(sql, prepare=False)
            while made.nextset():
                pass
            return made.fetchall() if made.description else []

    def run_outside(self, sql: str) -> None:
        self.reset()
        try:
            self.run_alone(sql)
        finally:
            if not self.conn.closed:
                self.conn.autocommit = False

    def rollback(self) -> None:
        self._begun = False
        self.conn.tpc_rollback()
        self.reset()

    def reset(self) -> None:
        if self._begun:
            self._begun = False
            # Sends nothing, as the server has ended the transaction.
            self.conn.tpc_rollback()

    def vote(self, sql: str) -> Optional[str]:
        self.conn.add_notice_handler(self._noticed)
        try:
            self.run(sql)
        finally:
            self.conn.remove_notice_handler(self._noticed)
        return self._warning

    def _noticed(self, notice: Any) -> None:
        # Names in the server's source are not translated, as texts are. One that does not say where it comes from may be it.
        if notice.severity_nonlocalized in ("WARNING", None) and notice.source_function in ("SyncRepWaitForLSN", None):
            self._warning = notice.message_primary
