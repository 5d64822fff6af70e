"""psycopg2 and psycopg 3, as far as a branch needs them.

Both keep a connection that has begun a two-phase transaction from being committed or rolled back by the application.

psycopg 3 sees by itself that a transaction was prepared, so that the statements of both phases are sent as they are. psycopg2 only believes its own
calls: ``tpc_prepare`` and ``tpc_commit`` take the id from the begin, and send a bare PREPARE TRANSACTION. What would keep that from lying (the
mark, see ``_postgres``) is looked at without a message then: the server reports a setting whenever it changes, and
``SET LOCAL`` undoes itself with the transaction, whoever ends it.

Must not know transactions.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Optional

# libpq's PGTransactionStatusType.
_IDLE, _IN_TRANSACTION, _IN_ERROR = 0, 2, 3

# It is reported from PostgreSQL 14 on, and means nothing to a transaction that has begun.
_REPORTED = "default_transaction_read_only"


def literal(text: str) -> str:
    """A string literal, whatever ``standard_conforming_strings`` says (PostgreSQL 15, 4.1.2.2)."""
    quoted = text.replace("'", "''")
    return " E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in quoted else f"'{quoted}'"


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

    #: A vote's warning is certainly about replicas.
    tells_warnings = False

    #: A commit was sent.
    is_sent = False

    #: It can be found out whether that has committed.
    _can_ask = False

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

    def begin(self, gid: str) -> None:
        """Begins a transaction in which the driver refuses `commit` and `rollback`; it is most likely prepared under this id."""
        self.conn.tpc_begin(gid)

    def mark(self, sql: Callable[[], str]) -> None:
        """Marks what has begun, by this statement or in the driver's own way."""
        self.run(sql())

    def writes(self) -> bool:
        """Whether what has begun may write, as the connection was told."""
        raise NotImplementedError

    def run(self, sql: str) -> list[tuple]:
        """One message, in the transaction. The rows of its last statement, if it gives any."""
        raise NotImplementedError

    def run_outside(self, sql: str) -> None:
        """The same when the server's transaction was prepared."""
        raise NotImplementedError

    def finish(self, how: str, gid: str) -> None:
        """`COMMIT` or `ROLLBACK` of what the vote has prepared."""
        self.run_outside(f"{how} PREPARED {literal(gid)}")

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

    def vote(self, gid: str, sql: Callable[[], str], outbox: Optional[str]) -> Optional[str]:
        """Prepares, by this message or in the driver's own way, which sends the notifications' statement before. A warning of the server's
        which may say that this has not reached a replica, if there is one."""
        raise NotImplementedError

    def commit_alone(self, guard: Callable[[], str], sql: str, can_ask: bool) -> Optional[str]:
        """Commits behind these statements, in one message, guarded by this statement or in the driver's own way. With `can_ask` it can be found out
        whether it has, so that an error may leave it open. A warning, as :meth:`vote`."""
        raise NotImplementedError

    def has_refused(self, error: BaseException) -> bool:
        """Whether an error of :meth:`commit_alone` says that it has not committed, and will not."""
        code = self.sqlstate(error)
        # 40003: statement completion unknown.
        if code == "40003" or self.is_lost(error):
            return False
        status = int(self.conn.info.transaction_status)
        if status == _IN_ERROR:
            return True
        # The commit itself has failed, if nothing came behind it: what can be asked is not believed.
        return status == _IDLE and code is not None and not self._can_ask

    def is_open(self) -> bool:
        """Whether the server has answered last that it is inside of a transaction."""
        try:
            return int(self.conn.info.transaction_status) in (_IN_TRANSACTION, _IN_ERROR)
        except Exception:
            return False

    def is_lost(self, error: BaseException) -> bool:
        """Whether the connection is gone, so that an error is no answer."""
        state = self.sqlstate(error) or ""
        severity = getattr(getattr(error, "diag", None), "severity_nonlocalized", None)
        return (
            bool(self.conn.closed)
            or severity in ("FATAL", "PANIC")
            or state.startswith("08")
            or state in ("57P01", "57P02", "57P03", "57P05", "25P03")
        )

    @staticmethod
    def sqlstate(error: BaseException) -> Optional[str]:
        """The server's code of an error; None where the server did not answer."""
        return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


class Psycopg2(Driver):
    """What it has begun it sends statements in as they are, until it is told to end."""

    _gid = ""
    #: What the reported setting is within the transaction; None where it was marked by a statement that only the server can look at.
    _marked: Optional[str] = None
    #: It has prepared by its own call, and waits for the end of that.
    _waits = False
    #: It has ended that, and is in no transaction.
    _ended = False

    def begin(self, gid: str) -> None:
        super().begin(gid)
        self._gid = gid

    def mark(self, sql: Callable[[], str]) -> None:
        was = self.conn.get_parameter_status(_REPORTED)
        if was is not None:
            marked = "off" if was == "on" else "on"
            self.run(f"SET LOCAL {_REPORTED} = {marked}")
            # A pooler may keep such reports to itself.
            if self.conn.get_parameter_status(_REPORTED) == marked:
                self._marked = marked
                return
        self.run(sql())

    def writes(self) -> bool:
        reads = self.conn.readonly
        # The mark is what the default was not.
        return not reads if reads is not None else self._marked != "off"

    @property
    def dsn(self) -> str:
        return self.conn.dsn

    def run(self, sql: str) -> list[tuple]:
        with self.conn.cursor(cursor_factory=_plain_cursor()) as made:
            made.execute(sql)
            return made.fetchall() if made.description else []

    def run_outside(self, sql: str) -> None:
        if not self._ended:
            self.run(sql)
            return
        try:
            self.run_alone(sql)
        finally:
            if not self.conn.closed:
                self.conn.autocommit = False

    def finish(self, how: str, gid: str) -> None:
        if not self._waits:
            super().finish(how, gid)
            return
        if how == "COMMIT":
            self.conn.tpc_commit()
        else:
            self.conn.tpc_rollback()
        self._waits, self._ended = False, True

    def reset(self) -> None:
        if self._ended:
            return
        if self._waits:
            # Its only other way out is to send the opposite of what was decided.
            raise RuntimeError("psycopg2 can't be told that what it has prepared has ended elsewhere")
        # It thinks that the transaction is open; a rollback of none would be a warning in the server's log.
        if self.conn.get_transaction_status() == _IDLE:
            self.run("BEGIN")
        self.conn.tpc_rollback()

    def rollback(self) -> None:
        self.reset()

    def vote(self, gid: str, sql: Callable[[], str], outbox: Optional[str]) -> Optional[str]:
        conn = self.conn
        with self._hearing() as heard:
            if not self._is_marked():
                # Where the driver has marked it, this fails, and the server says why.
                self.run(sql())
            else:
                if outbox is not None:
                    self.run(outbox)
                if gid == self._gid:
                    conn.tpc_prepare()
                    self._waits = True
                    # It takes in what the server has said beside its answer; nothing is sent.
                    conn.poll()
                else:
                    self.run(f"PREPARE TRANSACTION {literal(gid)}")
        return self._warning(heard)

    def commit_alone(self, guard: Callable[[], str], sql: str, can_ask: bool) -> Optional[str]:
        if not self._is_marked():
            # Where the driver has marked it, this fails, and the server says why.
            sql = f"{guard()}; {sql}"
        with self._hearing() as heard:
            self.is_sent, self._can_ask = True, can_ask
            # It takes the transaction for open until it has rolled back one.
            self.run(f"{sql}; COMMIT; BEGIN" if can_ask else f"{sql}; COMMIT")
        return self._warning(heard)

    @contextlib.contextmanager
    def _hearing(self) -> Iterator[list[str]]:
        """What the server says meanwhile beside its answers."""
        conn = self.conn
        # The application may have a list of its own there, and the driver forgets all but the last fifty.
        kept = conn.notices
        heard: list[str] = []
        conn.notices = heard
        try:
            yield heard
        finally:
            conn.notices = kept
            for text in heard:
                kept.append(text)

    @staticmethod
    def _warning(heard: list[str]) -> Optional[str]:
        if not heard:
            return None
        # Their severity is translated, and where they come from is not told: what does not say that it is harmless may be it.
        return next((text for text in heard if not text.startswith(("NOTICE", "INFO", "LOG", "DEBUG"))), None)

    def _is_marked(self) -> bool:
        """Whether the server has answered last within the transaction that was marked, and nothing in it has failed."""
        conn = self.conn
        return (
            self._marked is not None
            and conn.get_transaction_status() == _IN_TRANSACTION
            and conn.get_parameter_status(_REPORTED) == self._marked
        )


@functools.cache
def _plain_cursor() -> type:
    """Whatever the connection makes for the application."""
    from psycopg2.extensions import cursor

    return cursor


class Psycopg3(Driver):
    """What it has begun it takes for ended when the server says so."""

    tells_warnings = True

    _begun = False
    _warning: Optional[str] = None

    def writes(self) -> bool:
        reads = self.conn.read_only
        return not reads if reads is not None else self.conn.info.parameter_status(_REPORTED) != "on"

    @property
    def dsn(self) -> str:
        return self.conn.info.dsn

    def begin(self, gid: str) -> None:
        super().begin(gid)
        self._begun = True

    def run(self, sql: str) -> list[tuple]:
        from psycopg import Cursor
        from psycopg.rows import tuple_row

        # Whatever the connection makes for the application: that may send more.
        with Cursor(self.conn, row_factory=tuple_row) as made:
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

    def vote(self, gid: str, sql: Callable[[], str], outbox: Optional[str]) -> Optional[str]:
        self.conn.add_notice_handler(self._noticed)
        try:
            self.run(sql())
        finally:
            self.conn.remove_notice_handler(self._noticed)
        return self._warning

    def commit_alone(self, guard: Callable[[], str], sql: str, can_ask: bool) -> Optional[str]:
        self.conn.add_notice_handler(self._noticed)
        try:
            sql = f"{guard()}; {sql}; COMMIT"
            self.is_sent, self._can_ask = True, can_ask
            self.run(sql)
        finally:
            self.conn.remove_notice_handler(self._noticed)
        return self._warning

    def _noticed(self, notice: Any) -> None:
        # Names in the server's source are not translated, as texts are. One that does not say where it comes from may be it.
        if notice.severity_nonlocalized in ("WARNING", None) and notice.source_function in ("SyncRepWaitForLSN", None):
            self._warning = notice.message_primary
