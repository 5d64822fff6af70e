"""PostgreSQL connections of both drivers as branches: what they promise while everything works, and when their work goes wrong."""

import contextlib

import psycopg
import psycopg2
import psycopg2.extensions
import pytest

import unanimous_tm.psycopg
import unanimous_tm.psycopg2
from unanimous_tm import _postgres, transaction
from unanimous_tm._notify import notifications
from unanimous_tm.psycopg2 import BranchError


class Psycopg2:
    join = staticmethod(unanimous_tm.psycopg2.join)
    connect = staticmethod(psycopg2.connect)
    kind = psycopg2.extensions.connection


class Psycopg3:
    join = staticmethod(unanimous_tm.psycopg.join)
    connect = staticmethod(psycopg.connect)
    kind = psycopg.Connection


class Unreported(psycopg2.extensions.connection):
    """As behind a pooler, or of a server before PostgreSQL 14, that does not report what its settings become."""

    def get_parameter_status(self, name):
        return None if name == "default_transaction_read_only" else super().get_parameter_status(name)


class Psycopg2Unreported(Psycopg2):
    @staticmethod
    def connect(url):
        return psycopg2.connect(url, connection_factory=Unreported)

    @classmethod
    def join(cls, conn, trans=None, notify=None):
        return _postgres.join(cls.connect, conn, trans, notify)


@pytest.fixture(params=[Psycopg2, Psycopg2Unreported, Psycopg3], ids=["psycopg2", "unreported", "psycopg3"])
def driver(request):
    return request.param


class Refuses:
    """A data manager that votes no, behind all connections."""

    def tpc_begin(self, _transaction):
        pass

    commit = abort = tpc_abort = tpc_finish = tpc_begin

    def tpc_vote(self, _transaction):
        raise ValueError("no")

    def sortKey(self):  # noqa: N802
        return "~"


class Listener:
    """A session that listens to a channel."""

    def __init__(self, database, channel):
        self.conn = psycopg.connect(database.url, autocommit=True)
        self.conn.execute(f'listen "{channel}"')

    def heard(self, count, within=5.0):
        """The payloads of this many notifications; fewer after this many seconds."""
        got = self.conn.notifies(timeout=within, stop_after=count) if count else self.conn.notifies(timeout=within)
        return [notice.payload for notice in got]


def execute(conn, sql):
    with conn.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else []


def test_both_commit_and_the_connections_are_the_applications_again(driver, orders, billing):
    with contextlib.closing(driver.connect(orders.url)) as one, contextlib.closing(driver.connect(billing.url)) as other:
        for value in (1, 2, 3):
            assert driver.join(one) is None
            driver.join(other)
            orders.insert(one, value)
            billing.insert(other, value)
            transaction.commit()
            assert orders.values() == billing.values() == list(range(1, value + 1))
        orders.insert(one, 4)
        one.rollback()
        orders.insert(one, 5)
        one.commit()
        assert orders.values() == [1, 2, 3, 5]
    assert orders.prepared() == billing.prepared() == []


def test_an_abort_undoes_both_and_the_connections_are_the_applications_again(driver, orders, billing):
    with contextlib.closing(driver.connect(orders.url)) as one, contextlib.closing(driver.connect(billing.url)) as other:
        driver.join(one)
        driver.join(other)
        orders.insert(one, 1)
        billing.insert(other, 1)
        transaction.abort()
        assert execute(one, f"select v from {orders.table}") == []
        one.rollback()
    assert orders.values() == billing.values() == []


def test_a_no_of_another_undoes_what_was_prepared(driver, orders, billing):
    for conn, database in ((driver.join(orders.url), orders), (driver.join(billing.url), billing)):
        database.insert(conn, 1)
    transaction.get().join(Refuses())
    with pytest.raises(ValueError, match="no"):
        transaction.commit()
    transaction.abort()
    assert orders.values() == billing.values() == []
    assert orders.prepared() == billing.prepared() == []


def test_a_strings_connection_is_reused_within_the_transaction_and_closed_at_its_end(driver, orders):
    conn = driver.join(orders.url)
    assert isinstance(conn, driver.kind)
    orders.insert(conn, 1)
    assert driver.join(orders.url) is conn
    transaction.commit()
    assert conn.closed
    other = driver.join(orders.url)
    assert other is not conn and not other.closed
    transaction.abort()
    assert other.closed
    assert orders.values() == [1]


def test_a_connection_that_joins_twice_is_one_branch(driver, orders):
    with contextlib.closing(driver.connect(orders.url)) as conn:
        driver.join(conn)
        driver.join(conn)
        orders.insert(conn, 1)
        transaction.commit()
    assert orders.values() == [1]


def test_a_transaction_of_the_applications_own_manager_can_be_named(driver, orders):
    manager = transaction.TransactionManager()
    conn = driver.join(orders.url, manager.get())
    orders.insert(conn, 1)
    transaction.commit()
    assert orders.values() == []
    manager.commit()
    assert orders.values() == [1]


def test_two_connections_to_one_database_are_two_branches(driver, orders):
    with contextlib.closing(driver.connect(orders.url)) as one, contextlib.closing(driver.connect(orders.url)) as other:
        for value, conn in enumerate((one, other)):
            driver.join(conn)
            orders.insert(conn, value)
        transaction.commit()
    assert orders.values() == [0, 1]


@pytest.mark.parametrize("before", ["select 1", "savepoint s"])
def test_a_failed_statement_that_nobody_saw_is_a_no(driver, orders, billing, before):
    """PostgreSQL answers the PREPARE TRANSACTION of a failed transaction without an error, and prepares nothing. Within a savepoint, what
    was set before it stays."""
    one, other = driver.join(orders.url), driver.join(billing.url)
    orders.insert(one, 1)
    execute(one, before)
    billing.insert(other, 1)
    with contextlib.suppress(psycopg.errors.DivisionByZero, psycopg2.errors.DivisionByZero):
        execute(one, "select 1/0")
    with pytest.raises(BranchError, match="failed") as raised:
        transaction.commit()
    assert (getattr(raised.value.__cause__, "sqlstate", None) or raised.value.__cause__.pgcode) == "25P02"
    transaction.abort()
    assert orders.values() == billing.values() == []
    assert orders.prepared() == billing.prepared() == []


@pytest.mark.parametrize("ends", ["rollback", "commit; begin", "rollback and chain"])
def test_work_that_ends_its_transaction_is_a_no(driver, orders, billing, ends):
    one, other = driver.join(orders.url), driver.join(billing.url)
    billing.insert(other, 1)
    execute(one, ends)
    if ends != "rollback":
        orders.insert(one, 1)
    with pytest.raises(BranchError, match="ended its transaction"):
        transaction.commit()
    transaction.abort()
    assert orders.values() == billing.values() == []
    assert orders.prepared() == billing.prepared() == []


def test_the_drivers_own_commit_and_rollback_refuse_until_the_end(driver, orders):
    conn = driver.join(orders.url)
    orders.insert(conn, 1)
    for method in (conn.commit, conn.rollback):
        with pytest.raises((psycopg.ProgrammingError, psycopg2.ProgrammingError)):
            method()
    transaction.commit()
    assert orders.values() == [1]


def test_what_is_no_connection_or_not_fit_for_it_is_refused(driver, orders):
    with pytest.raises(TypeError, match="psycopg2 or psycopg 3"):
        driver.join(object())
    with contextlib.closing(driver.connect(orders.url)) as conn:
        execute(conn, "select 1")
        with pytest.raises((psycopg.ProgrammingError, psycopg2.ProgrammingError)):
            driver.join(conn)
        conn.rollback()
        conn.autocommit = True
        with pytest.raises((psycopg.ProgrammingError, psycopg2.ProgrammingError)):
            driver.join(conn)
    assert list(transaction.get()._resources) == []


def test_a_connection_that_a_failed_transaction_refuses_is_as_it_was(driver, orders):
    transaction.get().join(Refuses())
    with pytest.raises(ValueError):
        transaction.commit()
    with contextlib.closing(driver.connect(orders.url)) as conn:
        with pytest.raises(transaction.interfaces.TransactionFailedError):
            driver.join(conn)
        assert execute(conn, "select 1") == [(1,)]


def test_a_rollback_to_a_savepoint_undoes_work_and_notifications(driver, orders):
    listener = Listener(orders, orders.table)
    conn = driver.join(orders.url, notify=f"{orders.table}, 'before'")
    orders.insert(conn, 1)
    savepoint = transaction.savepoint()
    orders.insert(conn, 2)
    driver.join(orders.url, notify=f"{orders.table}, 'behind'")
    savepoint.rollback()
    orders.insert(conn, 3)
    transaction.commit()
    assert orders.values() == [1, 3]
    assert listener.heard(2, within=0.5) == ["before"]


def test_a_failed_statement_is_cured_by_a_savepoint(driver, orders):
    conn = driver.join(orders.url)
    orders.insert(conn, 1)
    savepoint = transaction.savepoint()
    with contextlib.suppress(psycopg.errors.DivisionByZero, psycopg2.errors.DivisionByZero):
        execute(conn, "select 1/0")
    savepoint.rollback()
    transaction.commit()
    assert orders.values() == [1]


def test_who_joined_behind_a_savepoint_leaves_with_its_rollback_and_can_join_again(driver, orders, billing):
    one = driver.join(orders.url)
    savepoint = transaction.savepoint()
    left = driver.join(billing.url)
    billing.insert(left, 1)
    savepoint.rollback()
    assert left.closed
    again = driver.join(billing.url)
    assert not again.closed
    billing.insert(again, 2)
    orders.insert(one, 2)
    transaction.commit()
    assert orders.values() == billing.values() == [2]


def test_a_serialization_failure_is_tried_again(driver, orders):
    orders.execute(f"insert into {orders.table} values (1)")
    tries = []

    def work():
        conn = driver.join(orders.url)
        execute(conn, "set transaction isolation level repeatable read")
        execute(conn, f"select v from {orders.table}")
        if not tries:
            orders.execute(f"update {orders.table} set v = v + 10")
        tries.append(1)
        execute(conn, f"update {orders.table} set v = v + 1")

    transaction.manager.run(work, 3)
    assert len(tries) == 2
    assert orders.values() == [12]


def test_notifications_go_out_behind_the_commit_and_only_then(driver, orders):
    listener = Listener(orders, orders.table)
    names = [f"{orders.table}, 'one'", f"{orders.table} , E'it\\'s\\ttwo'", f"{orders.table}"]
    driver.join(orders.url, notify=names)
    driver.join(orders.url, notify=names[0])
    assert listener.heard(1, within=0.2) == []
    transaction.commit()
    assert listener.heard(4, within=1.0) == ["one", "it's\ttwo", ""]
    driver.join(orders.url, notify=names)
    transaction.abort()
    assert listener.heard(1, within=0.2) == []


def test_a_connection_of_the_applications_notifies_too(driver, orders):
    listener = Listener(orders, orders.table)
    with contextlib.closing(driver.connect(orders.url)) as conn:
        driver.join(conn, notify=orders.table)
        transaction.commit()
        assert listener.heard(1) == [""]


def test_what_can_be_notified_is_what_follows_notify_in_sql():
    asked = ["jobs", "Jobs", ' "Jo""bs" ', "jobs , 'it''s, done'", "jobs, $$it's$$", "jobs, $a$$$$a$", r"jobs, E'\x41\u00e4\n\\'"]
    assert notifications(asked) == [
        ("jobs", ""),
        ('Jo"bs', ""),
        ("jobs", "it's, done"),
        ("jobs", "it's"),
        ("jobs", "$$"),
        ("jobs", "A\u00e4\n\\"),
    ]
    assert notifications("jobs") == [("jobs", "")]
    for wrong in ("", "a b", "1a", "jobs; drop table t", "jobs, data", "jobs, 'a' || 'b'", "jobs,", "j" * 64, f"jobs, '{'x' * 8000}'"):
        with pytest.raises(ValueError):
            notifications(wrong)


def test_a_wrong_notification_is_refused_before_anything_has_begun(driver, orders):
    with pytest.raises(ValueError, match="quoted string"):
        driver.join(orders.url, notify="jobs, data")
    assert list(transaction.get()._resources) == []


class Cuts:
    """A data manager that ends the sessions of others when it votes, behind them."""

    def __init__(self, database, conn, moment):
        self.database, self.pid, self.moment = database, conn.info.backend_pid, moment

    def __getattr__(self, name):
        if name.startswith("tpc_") or name in ("commit", "abort"):
            return lambda _transaction: self.cut() if name == self.moment else None
        raise AttributeError(name)

    def cut(self):
        self.database.execute(f"select pg_terminate_backend({self.pid}, 5000)")

    def sortKey(self):  # noqa: N802
        return "" if self.moment == "commit" else "~"


def test_a_strings_branch_whose_connection_breaks_behind_the_vote_is_committed_on_another(driver, orders, billing):
    one, other = driver.join(orders.url, notify=orders.table), driver.join(billing.url)
    listener = Listener(orders, orders.table)
    orders.insert(one, 1)
    billing.insert(other, 1)
    transaction.get().join(Cuts(orders, one, "tpc_vote"))
    transaction.commit()
    assert orders.values() == billing.values() == [1]
    assert orders.prepared() == billing.prepared() == []
    assert listener.heard(1) == [""]


def test_a_connection_that_breaks_before_the_vote_aborts(driver, orders, billing):
    one, other = driver.join(orders.url), driver.join(billing.url)
    orders.insert(one, 1)
    billing.insert(other, 1)
    transaction.get().join(Cuts(orders, one, "commit"))
    with pytest.raises((psycopg.OperationalError, psycopg2.OperationalError)):
        transaction.commit()
    transaction.abort()
    assert orders.values() == billing.values() == []
    assert orders.prepared() == billing.prepared() == []


def test_a_connection_that_the_application_closes_aborts(driver, orders, billing):
    one, other = driver.join(orders.url), driver.join(billing.url)
    orders.insert(one, 1)
    billing.insert(other, 1)
    one.close()
    with pytest.raises((psycopg.Error, psycopg2.Error), match="closed"):
        transaction.commit()
    transaction.abort()
    assert orders.values() == billing.values() == []


def test_a_server_that_can_prepare_no_more_aborts_both_and_says_why(driver, orders, billing):
    (size,) = orders.execute("show max_prepared_transactions")[0]
    taken = [f"{orders.table}-{number}" for number in range(int(size))]
    try:
        for name in taken:
            orders.execute(f"begin; insert into {orders.table} values (0); prepare transaction '{name}'")
        for database in (orders, billing):
            database.insert(driver.join(database.url), 1)
        with pytest.raises((psycopg.Error, psycopg2.Error), match="maximum number of prepared transactions"):
            transaction.commit()
        transaction.abort()
    finally:
        for name in taken:
            orders.execute(f"rollback prepared '{name}'")
    assert orders.values() == billing.values() == []
    assert billing.prepared() == []


def test_many_threads_commit_at_once(driver, orders, billing):
    import threading

    failed = []

    def work(first):
        try:
            for value in range(first, first + 10):
                orders.insert(driver.join(orders.url), value)
                billing.insert(driver.join(billing.url), value)
                if value % 3:
                    transaction.commit()
                else:
                    transaction.abort()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 60, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert orders.values() == billing.values() == [value for value in range(60) if value % 3]


def test_the_drivers_notices_are_left_as_they_were(orders):
    """A reset by the driver alone would leave a warning in the server's log for each commit."""
    with contextlib.closing(psycopg2.connect(orders.url)) as conn:
        unanimous_tm.psycopg2.join(conn)
        orders.insert(conn, 1)
        transaction.commit()
        assert conn.notices == []
        assert conn.status == psycopg2.extensions.STATUS_READY


def test_a_warning_of_the_vote_is_seen_whatever_the_application_does_with_notices(orders, monkeypatch):
    """As when a replica was not waited for; the driver keeps the last fifty notices only."""
    raises = "raise warning 'the vote''s own'; for n in 1 .. 5 loop raise notice '%', n; end loop; return new;"
    orders.execute(f"create function f{orders.table}() returns trigger language plpgsql as $$ begin {raises} end $$")
    orders.execute(
        f"create constraint trigger later after insert on {orders.table} deferrable initially deferred for each row"
        f" execute function f{orders.table}()"
    )
    with contextlib.closing(psycopg2.connect(orders.url)) as conn:
        # Where there are no replicas, it is the work's own.
        unanimous_tm.psycopg2.join(conn)
        execute(conn, "do $$ begin for n in 1 .. 60 loop raise notice '%', n; end loop; end $$")
        kept = conn.notices
        orders.insert(conn, 1)
        transaction.commit()
        assert conn.notices is kept
        assert orders.values() == [1]
        monkeypatch.setitem(_postgres._known, conn, (*_postgres._known[conn][:3], "one", ""))
        unanimous_tm.psycopg2.join(conn)
        orders.insert(conn, 2)
        conn.notices = []
        with pytest.raises(BranchError, match="the vote's own"):
            transaction.commit()
        transaction.abort()
    assert orders.values() == [1] and orders.prepared() == []
