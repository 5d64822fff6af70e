"""The examples, as their users run them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import psycopg2
import pytest

from conftest import HERE

EXAMPLES = HERE.parent / "examples"


@pytest.fixture
def shop(orders, billing, tmp_path):
    """Two databases of the example's own, and its environment."""
    urls = []
    for database in (orders, billing):
        database.execute(f"create database {database.table}")
        urls.append(psycopg2.extensions.make_dsn(database.url, dbname=database.table))
    yield {"ORDERS": urls[0], "BILLING": urls[1], "DECISIONS": str(tmp_path / "decisions")}
    for database in (orders, billing):
        database.execute(f"drop database {database.table} with (force)")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def gunicorn(application, environment, folder):
    """A gunicorn of 2 workers of 8 threads; its address."""
    port = free_port()
    said = (Path(folder) / "gunicorn.log").open("a")
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--workers", "2", "--threads", "8", "--bind", f"127.0.0.1:{port}", application],
        cwd=EXAMPLES,
        env={**os.environ, **environment},
        stdout=said,
        stderr=said,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            assert server.poll() is None, Path(said.name).read_text()
            try:
                answered(address + "/")
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline, Path(said.name).read_text()
                time.sleep(0.05)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        said.close()


def answered(address, **form):
    """The status and text of an answer, whatever it is."""
    data = urlencode(form).encode() if form else None
    try:
        with urllib.request.urlopen(address, data, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def rows(environment):
    found = []
    for name, table in (("ORDERS", "orders"), ("BILLING", "invoices")):
        with contextlib.closing(psycopg2.connect(environment[name])) as conn, conn.cursor() as cursor:
            cursor.execute(f"select item from {table} order by item")
            found.append([item for (item,) in cursor])
    return found


def test_plain_wsgi_writes_both_or_neither(shop, tmp_path):
    configured = {
        **shop,
        "UNANIMOUS_LOG": str(tmp_path / "decisions"),
        "UNANIMOUS_RESOURCE_ORDERS": shop["ORDERS"],
        "UNANIMOUS_RESOURCE_BILLING": shop["BILLING"],
    }
    with gunicorn("plain_wsgi", configured, tmp_path) as address:
        assert answered(address + "/", item="a lamp")[0] == 201
        assert answered(address + "/", nothing="x")[0] == 500
        assert answered(address + "/")[0] == 405
    assert rows(shop) == [["a lamp"], ["a lamp"]]
    assert any((tmp_path / "decisions").iterdir())


def test_flask_under_gunicorn_writes_both_or_neither(shop, tmp_path):
    with gunicorn("flask_shop:app", shop, tmp_path) as address:
        for id in range(20):
            assert answered(address + "/orders", id=id, item=f"item {id:02}") == (201, f"{id}\n")
        assert answered(address + "/orders", id=7, item="again")[0] == 500
        assert answered(address + "/orders", id=99, item="too many") == (409, "too many\n")
        both = list(range(20))
        assert answered(address + "/orders")[1].replace(" ", "").strip() == f'{{"both":{both},"torn":[]}}'.replace(" ", "")
    assert rows(shop) == [[f"item {id:02}" for id in range(20)]] * 2
