"""What the tests share: servers, tables, programs of their own.

The servers are started by ``cargo xtask python test``, which says in the environment where they are.
"""

import contextlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

import psycopg2
import pytest

import unanimous_tm
from unanimous_tm import transaction

HERE = Path(__file__).parent


def _server(number):
    name = f"UNANIMOUS_TEST_POSTGRES_{number}"
    if name not in os.environ:
        pytest.fail(f"{name} is missing: run the tests by `cargo xtask python test`, which starts two servers")
    return os.environ[name]


class Database:
    """One of the two servers' databases, and a table of the test's own: ``v int``."""

    def __init__(self, url):
        self.url = url
        self.table = "t" + uuid.uuid4().hex
        self.execute(f"create table {self.table} (v int)")

    @contextlib.contextmanager
    def _outside(self):
        conn = psycopg2.connect(self.url)
        conn.autocommit = True
        with contextlib.closing(conn), conn.cursor() as cursor:
            yield cursor

    def execute(self, sql):
        """Outside of any transaction; the rows, if there are any."""
        with self._outside() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def values(self):
        return [v for (v,) in self.execute(f"select v from {self.table} order by v")]

    def prepared(self):
        """The branches that are prepared in it and hold the test's table."""
        sql = (
            "select p.gid from pg_prepared_xacts p join pg_locks l on l.virtualtransaction = '-1/' || p.transaction"
            f" or l.transactionid = p.transaction where p.database = current_database()"
        )
        return sorted({gid for (gid,) in self.execute(sql)})

    def insert(self, conn, value):
        with conn.cursor() as cursor:
            cursor.execute(f"insert into {self.table} values ({value})")


@pytest.fixture
def orders():
    return Database(_server(1))


@pytest.fixture
def billing():
    return Database(_server(2))


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No test hands its transaction to the next one."""
    yield
    transaction.abort()


@pytest.fixture
def configured(tmp_path):
    """Configures this process for a test; afterwards it is as before."""

    def configure(resources, log=tmp_path / "decisions", **options):
        unanimous_tm.configure(log=log, resources=resources, **options)

    yield configure
    unanimous_tm.shutdown()
    unanimous_tm._configuration._log = None
    unanimous_tm._configuration._resources = {}
    unanimous_tm._configuration._carrier = None


@pytest.fixture
def program(tmp_path):
    """Runs a text as a Python program of its own; gives what it printed."""

    def run(text, *arguments, status=0, **environment):
        script = tmp_path / "program.py"
        script.write_text(text)
        return python(str(script), *arguments, status=status, **environment)

    return run


def python(*arguments, status=0, cwd=None, **environment):
    """Runs Python with these arguments; gives what it printed, errors too where it was to fail."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout if status == 0 else done.stdout + done.stderr
