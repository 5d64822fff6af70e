"""Configured, PostgreSQL branches of Python programs are decided in the log, and finished after a crash by the next start."""

import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from conftest import python
from test_postgres import Listener

# A program that dies by its own SIGKILL at a moment of its commit. Its arguments: the log, the two databases, the table in both, the moment.
DIES = """
import os, signal, sys
import unanimous_tm
from unanimous_tm import {module} as branches, _postgres, transaction
log, orders, billing, table, moment = sys.argv[1:]
unanimous_tm.configure(log=log, resources=dict(orders=orders, billing=billing))

def die(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)

class Dies:
    def tpc_begin(self, _transaction): pass
    commit = abort = tpc_abort = tpc_finish = tpc_begin
    tpc_vote = die
    def sortKey(self): return "~"

for url in (orders, billing):
    conn = branches.join(url, notify=[f"{{table}}, 'one'", f"{{table}}, 'two'"])
    assert transaction.get()._resources[-1].unanimous_resource == {{orders: "orders", billing: "billing"}}[url]
    conn.cursor().execute(f"insert into {{table}} values (1)")
if moment == "voted":
    transaction.get().join(Dies())
elif moment == "decided":
    _postgres.DataManager._commit = die
elif moment == "one committed":
    commit = _postgres.DataManager._commit
    def one(self):
        if self.unanimous_resource == "orders":
            commit(self)
            die()
        import threading
        threading.Event().wait(10)
    _postgres.DataManager._commit = one
elif moment == "not notified":
    _postgres._core = type(sys)("core")
    from unanimous_tm import _core
    for name in dir(_core):
        setattr(_postgres._core, name, getattr(_core, name))
    _postgres._core.postgres_deliver_sql = die
transaction.commit()
"""

STARTS = """
import sys
import unanimous_tm
log, orders, billing = sys.argv[1:]
unanimous_tm.configure(log=log, resources=dict(orders=orders, billing=billing))
print(unanimous_tm.recover())
"""


@pytest.fixture(params=["psycopg2", "psycopg"])
def dies(request, tmp_path, orders, billing):
    """Runs the program until it dies; gives what starts it anew."""
    billing.execute(f"create table {orders.table} (v int)")
    billing.table = orders.table
    for database in (orders, billing):
        database.execute("drop schema if exists unanimous cascade")

    def run(moment):
        program = tmp_path / "dies.py"
        program.write_text(DIES.format(module=request.param))
        log = str(tmp_path / "decisions")
        died = subprocess.run(
            [sys.executable, str(program), log, orders.url, billing.url, orders.table, moment], capture_output=True, text=True
        )
        assert died.returncode == -signal.SIGKILL, died.stderr

        def start():
            again = tmp_path / "starts.py"
            again.write_text(STARTS)
            return python(str(again), log, orders.url, billing.url)

        return start

    return run


def test_what_was_prepared_and_not_decided_is_rolled_back(dies, orders, billing):
    start = dies("voted")
    assert len(orders.prepared()) == len(billing.prepared()) == 1
    assert start() == "[]\n"
    assert orders.prepared() == billing.prepared() == []
    assert orders.values() == billing.values() == []


@pytest.mark.parametrize("moment", ["decided", "one committed"])
def test_what_was_decided_is_committed_and_notified(dies, orders, billing, moment):
    listener = Listener(orders, orders.table)
    start = dies(moment)
    assert len(billing.prepared()) == 1
    assert start() == "[]\n"
    assert orders.prepared() == billing.prepared() == []
    assert orders.values() == billing.values() == [1]
    assert listener.heard(2) == ["one", "two"]


def test_notifications_of_a_committed_branch_are_not_lost(dies, orders, billing):
    listener = Listener(orders, orders.table)
    start = dies("not notified")
    assert listener.heard(1, within=0.2) == []
    assert start() == "[]\n"
    assert orders.values() == billing.values() == [1]
    assert listener.heard(2) == ["one", "two"]
    assert orders.execute("select * from unanimous.outbox") == []


def test_a_connection_that_breaks_behind_the_vote_is_finished_by_the_resource(program, orders, billing, tmp_path):
    """The application's own connections, whose string nobody knows here."""
    billing.execute(f"create table {orders.table} (v int)")
    billing.table = orders.table
    said = program(
        """
import sys
import psycopg2
import unanimous_tm
from unanimous_tm import psycopg2 as branches, transaction
log, orders, billing, table = sys.argv[1:]
unanimous_tm.configure(log=log, resources=dict(orders=orders, billing=billing))
conns = [psycopg2.connect(url) for url in (orders, billing)]
for conn in conns:
    branches.join(conn, notify=table)
    conn.cursor().execute(f"insert into {table} values (1)")

class Cuts:
    def tpc_begin(self, _transaction): pass
    commit = abort = tpc_abort = tpc_finish = tpc_begin
    def tpc_vote(self, _transaction):
        with psycopg2.connect(orders) as other:
            other.cursor().execute(f"select pg_terminate_backend({conns[0].info.backend_pid}, 5000)")
    def sortKey(self): return "~"

transaction.get().join(Cuts())
transaction.commit()
print(conns[0].closed != 0, conns[1].closed)
""",
        str(tmp_path / "log"),
        orders.url,
        billing.url,
        orders.table,
    )
    assert said == "True 0\n"
    assert orders.values() == billing.values() == [1]
    assert orders.prepared() == billing.prepared() == []


def test_a_role_that_could_not_be_recovered_is_refused(program, orders, tmp_path):
    role = orders.table
    orders.execute(f"create role {role} login")
    other = psycopg.conninfo.make_conninfo(orders.url, user=role)
    said = program(
        """
import sys
import unanimous_tm
from unanimous_tm import psycopg2 as branches
log, orders, other = sys.argv[1:]
unanimous_tm.configure(log=log, resources=dict(orders=orders))
try:
    branches.join(other)
except OSError as error:
    print(error)
""",
        str(tmp_path / "log"),
        orders.url,
        other,
    )
    assert role in said and "role" in said


def test_unconfigured_nothing_recovers_and_nothing_is_written_beside_the_work(program, orders, tmp_path):
    orders.execute("drop schema if exists unanimous cascade")
    program(
        """
import os, sys
from unanimous_tm import psycopg2 as branches, transaction
(orders, table) = sys.argv[1:]
conn = branches.join(orders, notify=table)
assert transaction.get()._resources[-1].unanimous_resource is None
conn.cursor().execute(f"insert into {table} values (1)")
transaction.commit()
""",
        orders.url,
        orders.table,
    )
    assert orders.values() == [1]
    assert orders.execute("select 1 from pg_namespace where nspname = 'unanimous'") == []
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["program.py"]
