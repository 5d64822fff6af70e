"""Connections of psycopg2 and psycopg 3 as branches of a transaction.

::

    whose branch it is      asked once for each connection
    BEGIN                   by the driver, so that its own commit() and rollback() refuse until the end
    the mark                which tells this transaction from any other on the connection
    the application's statements
    the vote                one message, not sent or not obeyed where the transaction has failed, or is another one
    COMMIT PREPARED gid     the second phase; then what delivers the notifications
    row; COMMIT             one message instead of both, where the branch carries the decision

PostgreSQL answers PREPARE TRANSACTION in a failed transaction with the tag ROLLBACK and no error, and neither driver tells: hence the mark. A
resource's branch has its id from the begin on, as psycopg2 can't be told later; nothing is prepared under it before the core asks for it.

Must not know the protocol, nor other branches.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import time
import weakref
from typing import Any, Callable, Optional

from . import _core, transaction
from ._drivers import Driver, driver_of, literal
from ._notify import Notification, notifications
from .transaction.interfaces import TransactionError

_log = logging.getLogger("unanimous_tm.psycopg2")

#: How long a branch that nobody else could finish is tried on new connections, in seconds.
FINISH_WAIT = 5.0

# What another try of the transaction can cure: serialization failures and deadlocks.
_RETRYABLE = ("40001", "40P01")

# A statement that was prepared is not there (any more).
_NOT_KEPT = "26000"

_OPEN, _VOTING, _PREPARED, _COMMITTED, _ENDED = "open", "voting", "prepared", "committed", "ended"


class BranchError(TransactionError):
    """A connection's part of the transaction can't be committed, since its work failed, or ended the transaction by itself."""


class DataManager:
    """A connection's part of a transaction. Made, it has begun and joined.

    :param conn: of psycopg2 or psycopg 3, in no transaction, not in autocommit mode.
    :param on_complete: called once, when the branch has ended.
    """

    def __init__(
        self,
        conn: Any,
        trans: Any = None,
        on_complete: Optional[Callable[[], Any]] = None,
        reopen: Optional[Callable[[], Any]] = None,
    ) -> None:
        if trans is None:
            trans = transaction.get()
        self.conn = conn
        self.transaction_manager = getattr(trans, "_manager", None)
        #: The configured resource whose branch this is; None where nobody could finish it after a crash.
        self.unanimous_resource: Optional[str] = None
        #: The transaction's reserved ids, and this branch's number among them.
        self.unanimous_branch: Optional[tuple[_core.Ids, int]] = None
        self.notifies: list[Notification] = []
        self._mark: Optional[str] = None
        self._driver: Driver = driver_of(conn)
        self._on_complete = on_complete
        self._reopen = reopen
        self._state = _OPEN
        #: It must commit. Also set by who calls it, for all of a transaction before the first of them is called.
        self.unanimous_decided = False
        #: What :meth:`commit_alone` has raised means that nothing was committed, and will not be. Not so from the moment on in which it may send
        #: the commit, until the opposite is proved.
        self.unanimous_refused = True
        self._released = False
        self._gid = ""
        self._savepoints = 0
        #: The session is made to keep the statements of decisions by its commit.
        self._keeps = False
        #: The decision was sent by statements that the session keeps already.
        self._executes = False
        #: The work has deallocated them.
        self._has_deallocated = False
        self._started: Optional[concurrent.futures.Future] = None
        self._look()
        self._driver.begin(self._reserve(trans))
        try:
            self._driver.mark(self._mark_sql)
            trans.join(self)
        except BaseException:
            self._give_up()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._driver.dsn!r} {self._state}>"

    # The two phases, as a volatile data manager has them.

    def tpc_begin(self, trans: Any) -> None:
        pass

    def commit(self, trans: Any) -> None:
        pass

    def tpc_vote(self, trans: Any) -> None:
        """Prepares, under an id of its own: nothing that recovers knows of it."""
        self.prepare_branch(self._own_id())

    def tpc_finish(self, trans: Any) -> None:
        """Commits what is prepared; where its connection breaks and a connection string is known, on another one."""
        try:
            self.commit_branch()
        except Exception as error:
            if not self._finish_elsewhere("COMMIT", error):
                self._leave("COMMIT")
                raise

    def tpc_abort(self, trans: Any) -> None:
        """Rolls back, whatever was reached. Nothing happens where the branch has ended, or must commit."""
        try:
            self.rollback_branch()
        except Exception as error:
            if not self._finish_elsewhere("ROLLBACK", error):
                if self.unanimous_resource is None:
                    self._leave("ROLLBACK")
                raise

    abort = tpc_abort

    @property
    def has_ended(self) -> bool:
        return self._state == _ENDED

    def sortKey(self) -> str:
        return self._driver.dsn

    def should_retry(self, error: BaseException) -> bool:
        """Whether the same work can succeed when it is done again."""
        code = self._driver.sqlstate(error)
        # The next try does without the statements that the work has deallocated.
        return code in _RETRYABLE or (code == _NOT_KEPT and self._has_deallocated)

    # The two phases, as a branch of a configured resource has them.

    def prepare_branch(self, gid: str) -> None:
        """Votes: prepares the work under this id.

        :raises BranchError: the work has failed or has ended its transaction.
        """
        if self._started is None:
            self._prepare(gid)
        else:
            self._wait()

    def commit_alone(self, decision: Optional[_core.Decision] = None) -> None:
        """Commits without a vote, and notifies with that; with the rows of a decision, where it carries one. Behind an error nothing is committed
        where `unanimous_refused` says so; else nobody here knows.

        :raises BranchError: the work has failed or has ended its transaction; or a replica has perhaps not heard of the commit.
        """
        driver = self._driver
        try:
            if not driver.is_open():
                # The server says why.
                driver.run(self._guard_sql())
                raise BranchError("the work in this connection has ended its transaction")
            sql = _core.postgres_durable_sql() if decision is None else self._decision_sql(decision)
            if self.notifies:
                sql = f"{sql}; {self._notify_sql()}"
            self.unanimous_refused = False
            warning = driver.commit_alone(self._guard_sql, sql, decision is not None)
            if self._keeps:
                _kept[self.conn] = _KEEPS
        except BaseException as error:
            refused = False
            try:
                if self._executes and driver.sqlstate(error) == _NOT_KEPT:
                    self._has_deallocated = True
                    _kept[self.conn] = _KEEPS_NOTHING
                # A decision that is there already may be to commit.
                is_decided = decision is not None and driver.sqlstate(error) == "23505"
                refused = not driver.is_sent or (not is_decided and driver.has_refused(error))
            finally:
                # An interrupt of the look proves nothing.
                if not refused:
                    self._state = _ENDED
                    self._release()
            self.unanimous_refused = refused
            self._tell(error)
            raise
        self._state = _ENDED
        self._release()
        self._check_replicas(warning, "commit")

    def commit_branch(self) -> None:
        """Commits what is prepared, and delivers its notifications. An error leaves open which of it is done."""
        self.unanimous_decided = True
        try:
            if self._started is None:
                self._commit()
            else:
                self._wait()
            self._state = _ENDED
        finally:
            self._release()

    def rollback_branch(self) -> None:
        """Rolls back what is open or prepared. An error leaves open whether it is prepared."""
        if self.unanimous_decided or self._state == _ENDED:
            # Also after-commit hooks are followed by an abort of all.
            return
        if self._released:
            raise BranchError("the branch could not be rolled back by its connection, which was given back")
        if self._started is not None:
            try:
                self._wait()
            except Exception:
                _log.debug("a vote that was under way failed", exc_info=True)
        if self._state == _OPEN:
            self._give_up()
            return
        try:
            if self._state == _VOTING:
                raise BranchError("the vote's answer was lost: the branch may be prepared, now or later")
            self._driver.finish("ROLLBACK", self._gid)
            self._state = _ENDED
        finally:
            self._release()

    def forget_branch(self) -> None:
        """Leaves what may be prepared to recovery, which finds out: nothing is sent for it any more."""
        self._state = _ENDED
        self._release()

    def start_prepare(self, gid: str) -> None:
        """Begins what :meth:`prepare_branch` waits for then, in a thread of its own: another one's is called first. Nothing may use the
        connection until then."""
        self._start(self._prepare, gid)

    def start_commit(self) -> None:
        """The same for :meth:`commit_branch`."""
        self._start(self._commit)

    # Savepoints, which the ancestor has not got.

    def savepoint(self) -> Savepoint:
        self._savepoints += 1
        name = f"unanimous_{self._savepoints}"
        self._driver.run(f"SAVEPOINT {name}")
        return Savepoint(self, name, len(self.notifies))

    # How it is done.

    def _look(self) -> None:
        """Asks the server whose branch it will be, once for each connection. What reads within the transaction would keep the
        application from setting its isolation level."""
        who = _known.get(self.conn)
        if who is None and self._driver.is_idle():
            who = _known[self.conn] = tuple(self._driver.ask(_core.postgres_who_sql()))
        if who is not None:
            system, database, role, *_ = who
            self.unanimous_resource = _core.postgres_resource(system, database, role)

    def _reserve(self, trans: Any) -> str:
        """The id that the vote will ask for, if the transaction is committed by the manager that is configured now."""
        if self.unanimous_resource is None or not isinstance(trans, transaction.Transaction):
            return self._own_id()
        ids = trans._ids
        if ids is None:
            ids = trans._ids = _core.Ids()
        reserved = ids.branch(self.unanimous_resource)
        if reserved is None:
            return self._own_id()
        number, gid = reserved
        self.unanimous_branch = ids, number
        return gid

    def _own_id(self) -> str:
        return f"unanimous-volatile-{self.mark}"

    @property
    def mark(self) -> str:
        """What tells this branch from all others, where a driver needs it."""
        if self._mark is None:
            self._mark = os.urandom(16).hex()
        return self._mark

    @property
    def unanimous_carries(self) -> bool:
        """Whether its commit could carry a decision, as far as can be told: a transaction that only reads can't."""
        return self._driver.writes()

    def _mark_sql(self) -> str:
        return _core.postgres_mark_sql(self.mark)

    def _guard_sql(self) -> str:
        return _core.postgres_guard_sql(self.mark)

    def notify(self, asked: list[Notification]) -> None:
        """Notifies when the transaction has committed."""
        if asked and self.unanimous_resource is not None:
            store = _known[self.conn][:2]
            if store not in _outboxes:
                _core.postgres_ensure_outbox(self.unanimous_resource)
                _outboxes.add(store)
        self.notifies.extend(one for one in asked if one not in self.notifies)

    def _decision_sql(self, decision: _core.Decision) -> str:
        """From the second time on by statements that the session keeps: one that is closed soon is not worth it."""
        conn = self.conn
        state = _kept.get(conn)
        if state == _KEEPS:
            self._executes = True
            return decision.kept_sql()
        if state == _HAS_CARRIED:
            # Until it has succeeded nobody knows what the session keeps.
            _kept[conn] = _KEEPS_NOTHING
            self._keeps = True
            return f"{_core.postgres_keep_decisions_sql()}; {decision.kept_sql()}"
        if state is None:
            _kept[conn] = _HAS_CARRIED if self._has_own_session() else _KEEPS_NOTHING
        return decision.sql()

    def _has_own_session(self) -> bool:
        """Whether its session is nobody else's, as a pooler's may be."""
        who = _known.get(self.conn)
        return who is not None and who[4] == str(self.conn.info.backend_pid)

    def _prepare(self, gid: str) -> None:
        kept = self.notifies if self.unanimous_resource is not None else []
        outbox = _core.postgres_notifications_sql(gid, kept) if kept else None
        self._gid = gid
        if not self.conn.closed:
            self._state = _VOTING
        try:
            warning = self._driver.vote(gid, lambda: _core.postgres_vote_sql(self.mark, gid, kept), outbox)
        except BaseException as error:
            code = self._driver.sqlstate(error)
            if self._driver.is_open() or (code is not None and not self._driver.is_lost(error)):
                self._state = _OPEN
            self._tell(error)
            raise
        self._state = _PREPARED
        self._check_replicas(warning, "vote")

    def _tell(self, error: BaseException) -> None:
        """What an error of the mark's means."""
        code = self._driver.sqlstate(error)
        if code == "25P02":
            raise BranchError("a statement of the work in this connection failed, so that it can only be aborted") from error
        if code == "22012":
            raise BranchError(
                "the work in this connection has ended its transaction (COMMIT, ROLLBACK, BEGIN), or has set"
                " default_transaction_read_only, which shows that; leave both to the transaction that it has joined"
            ) from error

    def _check_replicas(self, warning: Optional[str], what: str) -> None:
        if warning is not None and (self._driver.tells_warnings or self._replicates()):
            raise BranchError(f"the {what} may not be on a replica that it must be on: {warning}")

    def _replicates(self) -> bool:
        """Whether a warning of the vote's may be about a replica. The connection can't be asked any more."""
        who = _known.get(self.conn)
        if who is None or who[3]:
            return True
        # What it was when the connection joined first may have changed; where nobody recovers the branch, that is all that is known.
        return self.unanimous_resource is not None and _core.postgres_replicates(self.unanimous_resource)

    def _commit(self) -> None:
        if self._state == _PREPARED:
            self._driver.finish("COMMIT", self._gid)
            self._state = _COMMITTED
        if self.notifies:
            recoverable = self.unanimous_resource is not None
            self._driver.run_outside(_core.postgres_deliver_sql(self._gid) if recoverable else self._notify_sql())

    def _notify_sql(self) -> str:
        sent = (f"pg_catalog.pg_notify({literal(channel)}, {literal(payload)})" for channel, payload in self.notifies)
        return f"SELECT {', '.join(sent)}"

    def _start(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._started = _threads().submit(function, *arguments)
        except RuntimeError:
            # The interpreter ends and has no threads any more: it is done in its turn.
            _log.debug("no thread could be started", exc_info=True)

    def _wait(self) -> None:
        started = self._started
        assert started is not None
        try:
            started.result()
        finally:
            # Whoever interrupts the wait leaves the thread at its work.
            if started.done():
                self._started = None

    def _give_up(self) -> None:
        """Gives up what is not prepared. Where the connection is gone the server rolls back what it held."""
        self._state = _ENDED
        try:
            self._driver.rollback()
        except Exception as error:
            if not self._driver.is_lost(error):
                raise
            _log.debug("a branch's connection was gone when it was rolled back", exc_info=True)
        finally:
            self._complete()

    def _release(self) -> None:
        """Behind the second phase, the connection is the application's again, or is closed. What fails here changes nothing of the outcome."""
        if self._started is not None or self._released:
            # Given back already, it may be in use.
            return
        self._released = True
        try:
            try:
                if self._on_complete is None:
                    self._driver.reset()
            except Exception:
                _log.debug("a connection can't be used on, and is closed", exc_info=True)
                self._driver.close()
            finally:
                self._complete()
        except Exception:
            _log.error("a connection could not be given back behind the end of its branch", exc_info=True)

    def _complete(self) -> None:
        complete, self._on_complete = self._on_complete, None
        if complete is not None:
            complete()

    def _finish_elsewhere(self, how: str, why: Exception) -> bool:
        """Whether a branch that may be prepared was finished on a connection of its own. That it is absent is an answer as well."""
        if self._reopen is None or self._state == _ENDED or self.unanimous_resource is not None:
            return False
        _log.warning("a branch is finished on another connection", exc_info=why)
        deadline, wait = time.monotonic() + FINISH_WAIT, 0.05
        while True:
            try:
                with contextlib.closing(self._reopen()) as conn:
                    self._finish_on(driver_of(conn), how)
                self._state = _ENDED
                return True
            except Exception:
                if time.monotonic() + wait > deadline:
                    _log.warning("a branch could not be finished on another connection", exc_info=True)
                    return False
                time.sleep(wait)
                wait = min(wait * 2, 1.0)

    def _finish_on(self, driver: Driver, how: str) -> None:
        try:
            driver.run_alone(f"{how} PREPARED {literal(self._gid)}")
        except Exception as error:
            if driver.sqlstate(error) != "42704":
                raise
        if how == "COMMIT" and self.notifies:
            driver.run_alone(self._notify_sql())

    def _leave(self, how: str) -> None:
        _log.critical(
            "a branch could not be finished; where it is prepared, send this to its database (%s): %s PREPARED %s",
            self._driver.dsn,
            how,
            literal(self._gid),
        )


class Savepoint:
    """A savepoint of one connection. What was to be notified since goes with a rollback to it."""

    def __init__(self, branch: DataManager, name: str, notifies: int) -> None:
        self._branch = branch
        self._name = name
        self._notifies = notifies

    def rollback(self) -> None:
        self._branch._driver.run(f"ROLLBACK TO SAVEPOINT {self._name}")
        del self._branch.notifies[self._notifies :]


def join(connect: Callable[[str], Any], conn: Any, trans: Any = None, notify: Any = None) -> Any:
    """What the modules' `join` do; `connect` opens a connection by its string."""
    if trans is None:
        trans = transaction.get()
    # What is wrong with it is told before anything has begun.
    asked = notifications(notify) if notify else []
    try:
        joined = trans.data(DataManager)
    except KeyError:
        joined = {}
        trans.set_data(DataManager, joined)
    managed = isinstance(conn, str)
    key = conn if managed else id(conn)
    branch = joined.get(key)
    if branch is None or branch.has_ended:
        # A rollback to a savepoint from before the join has ended the one that was there.
        if managed:
            opened = connect(conn)
            try:
                branch = DataManager(opened, trans, opened.close, lambda: connect(conn))
            except BaseException:
                opened.close()
                raise
        else:
            branch = DataManager(conn, trans)
        joined[key] = branch
    branch.notify(asked)
    return branch.conn if managed else None


# What the servers of connections have said of themselves.
_known: weakref.WeakKeyDictionary[Any, tuple[str, ...]] = weakref.WeakKeyDictionary()

# What is known of connections whose sessions carry decisions: from the second time on they keep the statements.
_HAS_CARRIED, _KEEPS, _KEEPS_NOTHING = "has carried", "keeps", "keeps nothing"
_kept: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

# The databases, by system and number, that have an outbox.
_outboxes: set[tuple[str, ...]] = set()

_pool: Optional[concurrent.futures.ThreadPoolExecutor] = None


def _threads() -> concurrent.futures.ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = concurrent.futures.ThreadPoolExecutor(64, "unanimous-postgres")
    return _pool


def _forked() -> None:
    # A child has none of its parent's threads.
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forked)
