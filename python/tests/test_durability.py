"""Decisions that outlive their process: kill -9 at each step, forks, exits; and folders of files, which are recovered as well."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import unanimous_tm.psycopg2
from conftest import python
from unanimous_tm import _core, transaction
from unanimous_tm.files import FileStore

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


@pytest.fixture
def configured(tmp_path):
    """Configures this process for a test; afterwards it is as before."""

    def configure(resources, log=tmp_path / "decisions"):
        unanimous_tm.configure(log=log, resources=resources)

    yield configure
    unanimous_tm.shutdown()
    unanimous_tm._configuration._log = None
    unanimous_tm._configuration._resources = {}


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
import psycopg2
conn = psycopg2.connect(orders)
conn.autocommit = True
cursor = conn.cursor()
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    cursor.execute(f"select count(*) from {table1} where v = 3")
    if cursor.fetchone() == (1,):
        break
    time.sleep(0.05)
""",
        str(tmp_path / "decisions"),
        orders.url,
        billing.url,
        orders.table,
        billing.table,
    )
    assert said.split() == [str(tmp_path / "decisions"), str(tmp_path / "decisions" / "worker-1")]
    assert until(lambda: orders.values() == billing.values() == [1, 2, 3, 4])
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
