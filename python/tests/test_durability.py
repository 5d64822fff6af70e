"""Decisions that outlive their process: kill -9 at each step, forks, exits; and folders of files, which are recovered as well."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import psycopg
import psycopg2
import pytest

import unanimous_tm.psycopg2
from conftest import python
from unanimous_tm import _core, transaction
from unanimous_tm.files import FileStore
from unanimous_tm.transaction.interfaces import TransactionError, TransientError

#: Kills its own process when a method is called: sorted in front of all others by a blank, or behind them.
KILLER = """
import os, signal, sys
import unanimous_tm.psycopg2
import unanimous_tm.psycopg2
from unanimous_tm import transaction

class Killer:
    transaction_manager = None
    def __init__(self, key, when):
        self.key, self.when = key, when
    def sortKey(self):
        return self.key
    def _call(name):
        def call(self, txn):
            if self.when == name:
                os.kill(os.getpid(), signal.SIGKILL)
        return call
    tpc_begin, commit, tpc_vote, tpc_finish, tpc_abort, abort = map(
        _call, ("tpc_begin", "commit", "tpc_vote", "tpc_finish", "tpc_abort", "abort"))
"""

#: One value in both databases, and a killer.
TWO = KILLER + """
log, orders, billing, table1, table2, key, when, value = sys.argv[1:]
unanimous_tm.configure(log=log, resources={"orders": orders, "billing": billing})
for url, table in ((orders, table1), (billing, table2)):
    unanimous_tm.psycopg2.join(url).cursor().execute(f"insert into {table} values ({value})")
transaction.get().join(Killer(key, when))
transaction.commit()
"""


def until(true, within=30.0):
    """Waits until it is true; what it was at last."""
    deadline = time.monotonic() + within
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("key", "when", "left", "becomes"),
    [
        (" ", "tpc_vote", 0, []),
        ("~", "tpc_vote", 1, []),
        (" ", "tpc_finish", 1, [7]),
        ("~", "tpc_finish", 0, [7]),
    ],
    ids=["before all votes", "behind all votes", "behind the decision", "behind the end"],
)
def test_a_killed_process_is_recovered_by_the_next_start(program, tmp_path, orders, billing, key, when, left, becomes):
    log = str(tmp_path / "decisions")
    program(TWO, log, orders.url, billing.url, orders.table, billing.table, key, when, "7", status=-signal.SIGKILL)
    assert [len(orders.prepared()), len(billing.prepared())] == [left, left]
    recovered = """
import sys, unanimous_tm
log, orders, billing = sys.argv[1:]
unanimous_tm.configure(log=log, resources={"orders": orders, "billing": billing})
print(unanimous_tm.recover())
"""
    assert program(recovered, log, orders.url, billing.url) == "[]\n"
    assert orders.values() == billing.values() == becomes
    assert orders.prepared() == billing.prepared() == []


def test_the_environment_configures_as_well(program, tmp_path, orders, billing):
    log = str(tmp_path / "decisions")
    text = TWO.replace('unanimous_tm.configure(log=log, resources={"orders": orders, "billing": billing})\n', "")
    environment = {"UNANIMOUS_LOG": log, "UNANIMOUS_RESOURCE_ORDERS": orders.url, "UNANIMOUS_RESOURCE_BILLING": billing.url}
    arguments = (log, orders.url, billing.url, orders.table, billing.table, " ", "tpc_finish", "7")
    program(text, *arguments, status=-signal.SIGKILL, **environment)
    assert len(orders.prepared()) == len(billing.prepared()) == 1
    assert program("import unanimous_tm; print(unanimous_tm.recover())", **environment) == "[]\n"
    assert orders.values() == billing.values() == [7]


def test_the_ancestors_order_and_errors_stay_beside_recoverable_branches(configured, orders, billing):
    from test_calls import DataManager, raises

    configured({"orders": orders.url, "billing": billing.url})
    log = []
    for fails in (True, False):
        conns = [unanimous_tm.psycopg2.join(database.url) for database in (orders, billing)]
        for database, conn in zip((orders, billing), conns, strict=True):
            database.insert(conn, 1)
        error = ValueError("no")
        transaction.get().join(DataManager(" ", log))
        transaction.get().join(DataManager("~", log, **({"tpc_vote": raises(error)} if fails else {})))
        if not fails:
            transaction.commit()
            break
        with pytest.raises(ValueError) as raised:
            transaction.commit()
        assert raised.value is error
        assert orders.values() == billing.values() == []
        transaction.abort()
        log.clear()
    assert orders.values() == billing.values() == [1]
    assert orders.prepared() == billing.prepared() == []
    assert log == [(key, name) for name in ("tpc_begin", "commit", "tpc_vote", "tpc_finish") for key in " ~"]


def test_a_branch_whose_connection_dies_behind_its_vote_is_finished_by_its_resource(configured, orders, billing):
    from test_calls import DataManager

    configured({"orders": orders.url, "billing": billing.url})
    pids = []
    for database in (orders, billing):
        conn = unanimous_tm.psycopg2.join(database.url)
        database.insert(conn, 1)
        pids.append(conn.info.backend_pid)

    def kill(_transaction):
        for database, pid in zip((orders, billing), pids, strict=True):
            assert database.execute(f"select pg_terminate_backend({pid}, 5000)") == [(True,)]

    transaction.get().join(DataManager(" ", [], tpc_finish=kill))
    transaction.commit()
    assert until(lambda: orders.values() == billing.values() == [1])
    assert orders.prepared() == billing.prepared() == []


# Forks.

FORK = KILLER + """
log, orders, billing, table1, table2 = sys.argv[1:]
unanimous_tm.configure(log=log, resources={"orders": orders, "billing": billing})

def work(value, killer=None):
    for url, table in ((orders, table1), (billing, table2)):
        unanimous_tm.psycopg2.join(url).cursor().execute(f"insert into {table} values ({value})")
    if killer is not None:
        transaction.get().join(killer)
    transaction.commit()
"""


def test_a_forked_child_has_a_log_of_its_own_which_is_adopted_when_it_is_killed(program, tmp_path, orders, billing):
    said = program(
        FORK
        + """
import time
work(1)
print(unanimous_tm._core.open_log(), flush=True)
child = os.fork()
if child == 0:
    work(2)
    print(unanimous_tm._core.open_log(), flush=True)
    work(3, Killer(" ", "tpc_finish"))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
work(4)

def until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)

import psycopg2
conn = psycopg2.connect(orders)
conn.autocommit = True
cursor = conn.cursor()

def is_there(value):
    cursor.execute(f"select count(*) from {table1} where v = {value}")
    return cursor.fetchone() == (1,)

until(lambda: is_there(3))
# It is let go of, and adopted again when it was used again.
until(lambda: os.path.exists(os.path.join(log, "worker-1", "finished")))
if os.fork() == 0:
    work(5, Killer(" ", "tpc_finish"))
until(lambda: is_there(5))
""",
        str(tmp_path / "decisions"),
        orders.url,
        billing.url,
        orders.table,
        billing.table,
    )
    assert said.split() == [str(tmp_path / "decisions"), str(tmp_path / "decisions" / "worker-1")]
    assert until(lambda: orders.values() == billing.values() == [1, 2, 3, 4, 5])
    assert orders.prepared() == billing.prepared() == []


def test_a_child_does_not_keep_its_dead_parents_log(program, tmp_path, orders, billing):
    log = str(tmp_path / "decisions")
    arguments = (log, orders.url, billing.url, orders.table, billing.table)
    text = (
        FORK
        + """
work(1)
if os.fork() == 0:
    # Lives on behind its parent, without a transaction of its own.
    print("child", os.getpid(), flush=True)
    os.close(1), os.close(2)
    import time
    time.sleep(120)
    os._exit(0)
work(2, Killer(" ", "tpc_finish"))
"""
    )
    said = program(text, *arguments, status=-signal.SIGKILL)
    child = int(said.split()[1])
    try:
        os.kill(child, 0)
        said = program(FORK + "work(3)\nprint(unanimous_tm._core.open_log())", *arguments)
        assert said == f"{log}\n"
        assert orders.values() == billing.values() == [1, 2, 3]
    finally:
        os.kill(child, signal.SIGKILL)


def test_who_never_commits_holds_nothing(program, tmp_path):
    log = tmp_path / "decisions"
    said = program(
        f"""
import unanimous_tm.psycopg2
from unanimous_tm import transaction
unanimous_tm.configure(log={str(log)!r}, resources={{"orders": "host=127.0.0.1 port=1"}})
with transaction.manager:
    pass
transaction.begin()
transaction.abort()
print(unanimous_tm._core.is_open())
"""
    )
    assert said == "False\n" and not log.exists()


# Exits.


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "raise SystemExit(0)"])
def test_an_exit_ends_the_manager_in_order(program, tmp_path, end):
    started = time.monotonic()
    program(
        KILLER
        + f"""
import threading
unanimous_tm.configure(log={str(tmp_path / "decisions")!r})
def work():
    transaction.get().join(Killer("a", "never"))
    transaction.commit()
thread = threading.Thread(target=work)
thread.start()
thread.join()
work()
transaction.get().join(Killer("a", "never"))
{end}
"""
    )
    assert time.monotonic() - started < 30
    # Nobody has asked the stores since its last transaction: that nothing is left to do is not noted.
    assert not (tmp_path / "decisions" / "finished").exists()
    # The lock is given up: the next one has the same log.
    said = program(KILLER + f"unanimous_tm.configure(log={str(tmp_path / 'decisions')!r})\nunanimous_tm.recover()\nprint(unanimous_tm._core.open_log())")
    assert said == f"{tmp_path / 'decisions'}\n"


# Files.


@pytest.fixture
def store(tmp_path, configured):
    unanimous_tm.shutdown()
    return FileStore(tmp_path / "files")


def test_files_appear_with_the_commit_and_not_with_an_abort(store, tmp_path):
    store.write("a/one", b"heres the data")
    store.write("two", "a text")
    assert not (tmp_path / "files" / "two").exists()
    transaction.commit()
    assert (tmp_path / "files/a/one").read_bytes() == b"heres the data"
    assert (tmp_path / "files/two").read_text() == "a text"
    store.replace("two", "another")
    store.delete("a/one")
    transaction.abort()
    assert (tmp_path / "files/a/one").exists() and (tmp_path / "files/two").read_text() == "a text"
    store.replace("two", "another")
    store.delete("a/one")
    transaction.commit()
    assert not (tmp_path / "files/a/one").exists() and (tmp_path / "files/two").read_text() == "another"


def test_a_file_that_is_there_already_is_a_no_for_all(store, tmp_path):
    from test_calls import DataManager

    store.write("one", b"1")
    transaction.commit()
    log = []
    store.write("one", b"2")
    transaction.get().join(DataManager("a", log))
    with pytest.raises(FileExistsError):
        transaction.commit()
    transaction.abort()
    assert ("a", "tpc_finish") not in log and log[:2] == [("a", "abort"), ("a", "tpc_abort")]
    assert (tmp_path / "files/one").read_bytes() == b"1"
    with pytest.raises(FileNotFoundError):
        store.delete("none")
        transaction.commit()


def test_another_data_managers_no_is_the_files_no(store, tmp_path):
    from test_calls import DataManager, raises

    error = ValueError("no")
    store.write("one", b"1")
    transaction.get().join(DataManager("~", [], tpc_vote=raises(error)))
    with pytest.raises(ValueError) as raised:
        transaction.commit()
    assert raised.value is error
    assert not (tmp_path / "files/one").exists()


def test_files_have_savepoints(store, tmp_path):
    before = transaction.savepoint()
    store.write("one", b"1")
    savepoint = transaction.savepoint()
    store.write("two", b"2")
    savepoint.rollback()
    store.write("three", b"3")
    transaction.commit()
    assert sorted(os.listdir(tmp_path / "files")) == [".unanimous", "one", "three"]
    assert not before.valid
    before = transaction.savepoint()
    store.write("four", b"4")
    before.rollback()
    store.write("five", b"5")
    transaction.commit()
    assert sorted(os.listdir(tmp_path / "files")) == [".unanimous", "five", "one", "three"]


def test_a_folder_that_comes_too_late_is_refused_with_what_to_do(store, tmp_path):
    store.write("one", b"1")
    transaction.commit()
    assert FileStore(tmp_path / "files").name == store.name
    with pytest.raises(RuntimeError, match="configure"):
        FileStore(tmp_path / "others")


def test_files_are_recovered_with_the_database_beside_them(program, tmp_path, orders):
    files = tmp_path / "files"
    text = (
        KILLER
        + """
from unanimous_tm.files import FileStore
log, orders, table, files, when = sys.argv[1:]
unanimous_tm.configure(log=log, resources={"orders": orders, "files": "file:" + files})
store = FileStore(files)
if when == "recover":
    print(unanimous_tm.recover())
else:
    unanimous_tm.psycopg2.join(orders).cursor().execute(f"insert into {table} values (1)")
    store.write("one", b"heres the data")
    transaction.get().join(Killer(" ", when))
    transaction.commit()
"""
    )
    arguments = (str(tmp_path / "decisions"), orders.url, orders.table, str(files))
    program(text, *arguments, "tpc_finish", status=-signal.SIGKILL)
    assert len(orders.prepared()) == 1 and not (files / "one").exists()
    assert program(text, *arguments, "recover") == "[]\n"
    assert orders.values() == [1] and (files / "one").read_bytes() == b"heres the data"


# What is told.


def test_a_branch_of_unknown_outcome_is_left_to_recovery_also_by_an_abort(configured, orders, billing):
    configured({"orders": orders.url, "billing": billing.url})
    conn = unanimous_tm.psycopg2.join(orders.url)
    orders.insert(conn, 1)
    (manager,) = transaction.get()._resources
    assert manager.unanimous_resource == "orders"
    manager.prepare_branch("as if its log had not answered")
    manager.forget_branch()
    transaction.abort()
    assert orders.prepared() == ["as if its log had not answered"]
    orders.execute("rollback prepared 'as if its log had not answered'")


def test_what_recovery_can_not_do_is_said_in_the_log(program, tmp_path):
    said = program(
        f"""
import logging, sys
import unanimous_tm
logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
unanimous_tm.configure(log={str(tmp_path / "decisions")!r}, resources={{"orders": "host=127.0.0.1 port=1 user=nobody"}})
(doubt,) = unanimous_tm.recover()
assert doubt.resource == "orders" and doubt.transaction is None and "can't be asked" in doubt.why, doubt
"""
    )
    assert said.startswith("unanimous WARNING "), said
    assert "orders" in said


# A resource alone, which is committed in one phase.


def _cut(database, conn):
    assert database.execute(f"select pg_terminate_backend({conn.info.backend_pid}, 5000)") == [(True,)]


def _failed(conn):
    with contextlib.suppress(psycopg2.Error):
        conn.cursor().execute("select 1 / 0")


@pytest.mark.parametrize("why", ["25P02", "deferred", "lost"])
def test_a_resource_alone_that_does_not_prepare_has_aborted(configured, orders, why):
    configured({"orders": orders.url})
    orders.execute(f"alter table {orders.table} add constraint u{orders.table} unique (v) deferrable initially deferred")
    conn = unanimous_tm.psycopg2.join(orders.url)
    assert transaction.get()._resources[0].unanimous_resource == "orders"
    orders.insert(conn, 1)
    does, raised = {
        "25P02": (lambda: _failed(conn), unanimous_tm.psycopg2.BranchError),
        "deferred": (lambda: orders.insert(conn, 1), psycopg2.errors.UniqueViolation),
        "lost": (lambda: _cut(orders, conn), psycopg2.OperationalError),
    }[why]
    does()
    with pytest.raises(raised):
        transaction.commit()
    transaction.abort()
    assert orders.values() == [] and orders.prepared() == []


@pytest.mark.parametrize("driver", [psycopg2, psycopg], ids=["psycopg2", "psycopg3"])
def test_a_connection_is_given_back_once_where_its_rollback_fails(configured, orders, driver):
    """Somebody has rolled back what was prepared: psycopg 3's connection is still the application's; psycopg2's is closed, as it
    would only send the same again."""
    configured({"orders": orders.url})
    with contextlib.closing(driver.connect(orders.url)) as conn:
        unanimous_tm.psycopg2.join(conn)
        orders.insert(conn, 1)
        (manager,) = transaction.get()._resources
        prepare = manager.prepare_branch

        def prepared_and_gone(gid):
            prepare(gid)
            orders.execute(f"rollback prepared '{gid}'")
            raise ValueError("no")

        manager.prepare_branch = prepared_and_gone
        with pytest.raises(ValueError, match="no"):
            transaction.commit()
        transaction.abort()
        if driver is psycopg2:
            assert conn.closed
            return
        orders.insert(conn, 2)
        conn.commit()
    assert orders.values() == [2]


def test_a_resource_alone_is_tried_again_after_a_serialization_failure_of_its_vote(configured, orders):
    configured({"orders": orders.url})
    orders.execute(f"insert into {orders.table} values (1), (2)")
    tries = []

    def work():
        tries.append(1)
        conn = unanimous_tm.psycopg2.join(orders.url)
        cursor = conn.cursor()
        cursor.execute("set transaction isolation level serializable")
        cursor.execute(f"select sum(v) from {orders.table}")
        if len(tries) == 1:
            # Each reads what the other one writes; the other one is first.
            with contextlib.closing(psycopg2.connect(orders.url)) as other:
                other.set_session(isolation_level="serializable")
                its = other.cursor()
                its.execute(f"select sum(v) from {orders.table}")
                its.execute(f"insert into {orders.table} values (10)")
                cursor.execute(f"insert into {orders.table} values (20)")
                other.commit()
        else:
            cursor.execute(f"insert into {orders.table} values (20)")

    transaction.manager.run(work, 3)
    assert len(tries) == 2
    assert orders.values() == [1, 2, 10, 20] and orders.prepared() == []


def test_a_warned_vote_is_a_no_where_the_server_replicates_by_then(configured, orders):
    """The connection was asked when it joined first, and can't be asked again behind its vote; its resource is."""
    configured({"orders": orders.url})
    warns = "begin raise warning 'the work''s own'; return new; end"
    orders.execute(f"create function f{orders.table}() returns trigger language plpgsql as $$ {warns} $$")
    orders.execute(
        f"create constraint trigger later after insert on {orders.table} deferrable initially deferred for each row"
        f" execute function f{orders.table}()"
    )
    # It does not wait for the replica that is not there.
    local = psycopg2.extensions.make_dsn(orders.url, options="-c synchronous_commit=local")
    with contextlib.closing(psycopg2.connect(local)) as conn:
        unanimous_tm.psycopg2.join(conn)
        orders.insert(conn, 1)
        transaction.commit()
        assert orders.values() == [1]
        unanimous_tm.psycopg2.join(conn)
        orders.insert(conn, 2)
        orders.execute("alter system set synchronous_standby_names = 'nobody'")
        try:
            orders.execute("select pg_reload_conf()")
            assert until(lambda: _core.postgres_replicates("orders"))
            with pytest.raises(unanimous_tm.psycopg2.BranchError, match="the work's own"):
                transaction.commit()
            transaction.abort()
        finally:
            orders.execute("alter system reset synchronous_standby_names")
            orders.execute("select pg_reload_conf()")
    assert orders.values() == [1] and orders.prepared() == []


# The second phase.


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_in_the_second_phase_is_raised_when_all_is_committed(configured, orders, billing, monkeypatch, count):
    """It comes before the branch itself knows that it must commit; the abort behind it must not roll it back."""
    configured({"orders": orders.url, "billing": billing.url})
    for database in (orders, billing)[:count]:
        database.insert(unanimous_tm.psycopg2.join(database.url), 1)

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(transaction.get()._resources[0], "commit_branch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        transaction.commit()
    transaction.abort()
    assert orders.values() == [1] and billing.values() == [1] * (count - 1)
    assert orders.prepared() == billing.prepared() == []


def test_a_branch_that_its_connection_could_not_commit_is_its_resources_from_then_on(tmp_path, configured, orders, billing, monkeypatch):
    role = f"r{orders.table}"
    orders.execute(f"create role {role} superuser login")
    as_role = psycopg2.extensions.make_dsn(orders.url, user=role)
    resources = {"orders": as_role, "billing": billing.url}
    unanimous_tm.configure(log=tmp_path / "decisions", resources=resources, phase_two_wait=0.5)
    orders.insert(unanimous_tm.psycopg2.join(as_role), 1)
    billing.insert(unanimous_tm.psycopg2.join(billing.url), 1)
    manager = next(one for one in transaction.get()._resources if one.unanimous_resource == "orders")
    called = []

    def fails():
        called.append(1)
        orders.execute(f"alter role {role} nologin")
        orders.execute(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{role}'")
        raise psycopg2.OperationalError("the connection is gone")

    monkeypatch.setattr(manager, "commit_branch", fails)
    monkeypatch.setattr(manager, "start_commit", lambda: None)
    try:
        transaction.commit()
        assert billing.values() == [1] and orders.values() == []
    finally:
        orders.execute(f"alter role {role} login")
    assert until(lambda: orders.values() == [1])
    assert called == [1]
    assert orders.prepared() == []


# Resources that can't be reached, or are not configured any more.

NOWHERE = "host=127.0.0.1 port=1 user=nobody"


def test_a_connection_that_may_be_an_unreachable_resources_does_not_become_volatile(configured, orders, billing):
    configured({"aside": NOWHERE, "orders": orders.url})
    orders.insert(unanimous_tm.psycopg2.join(orders.url), 1)
    with pytest.raises(TransientError, match='"aside"'):
        unanimous_tm.psycopg2.join(billing.url)
    transaction.commit()
    assert orders.values() == [1]


def test_a_resource_that_hangs_holds_up_no_join_for_long(configured, orders):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as hangs:
        configured({"aside": f"host=127.0.0.1 port={hangs.getsockname()[1]} user=nobody", "orders": orders.url})
        for value in range(3):
            orders.insert(unanimous_tm.psycopg2.join(orders.url), value)
            transaction.commit()
        assert orders.values() == [0, 1, 2]


def test_a_branch_whose_resource_is_not_configured_any_more_is_refused(configured, orders, tmp_path):
    configured({"orders": orders.url})
    orders.insert(unanimous_tm.psycopg2.join(orders.url), 1)
    unanimous_tm.configure(log=tmp_path / "decisions", resources={})
    with pytest.raises(TransactionError, match='"orders"'):
        transaction.commit()
    transaction.abort()
    assert orders.values() == [] and orders.prepared() == []


# Configuration.


def test_a_file_store_stays_one_when_resources_are_configured_behind_it(configured, tmp_path):
    made, named = FileStore(tmp_path / "made"), FileStore(tmp_path / "named")
    configured({"named": f"file:{tmp_path / 'named'}"})
    made.write("one", "1")
    named.write("one", "1")
    transaction.commit()
    assert (tmp_path / "made/one").exists() and (tmp_path / "named/one").exists()
    assert named.name == "named"


def test_a_file_store_without_a_log_warns_once(program, tmp_path):
    said = program(
        f"""
import logging, sys
from unanimous_tm import transaction
from unanimous_tm.files import FileStore
logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s")
store = FileStore({str(tmp_path / "files")!r})
for name in ("one", "two"):
    store.write(name, "")
    transaction.commit()
"""
    )
    assert said == "unanimous_tm.files WARNING\n"


def test_a_childs_log_is_let_go_also_where_its_folder_is_a_link(program, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    said = program(
        f"""
import os
import unanimous_tm
unanimous_tm.configure(log={str(tmp_path / "link" / "decisions")!r})
unanimous_tm.recover()
def held():
    paths = []
    for number in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{{number}}"))
        except OSError:
            pass
    return any("decisions" in path for path in paths)
assert held()
child = os.fork()
if child == 0:
    os._exit(1 if held() else 0)
print(os.waitpid(child, 0)[1])
"""
    )
    assert said == "0\n"
