"""The examples in the ancestors' documents, and our own, as doctests."""

import re

import pytest

from conftest import HERE

RUN = """
import contextlib, doctest, os, sys, types
import unanimous_tm
unanimous_tm.install()
path, dsn, table, folder = sys.argv[1:]

def mywsgiapp(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]

otherplace = sys.modules["otherplace"] = types.ModuleType("otherplace")
otherplace.mywsgiapp = mywsgiapp

def request(application, **environ):
    told = []
    body = application(environ, lambda status, headers, exc_info=None: told.append(status))
    return told[0], b"".join(body)

def values():
    import psycopg2
    with contextlib.closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute(f"select v from {table} order by v")
        return [v for v, in cursor]

@contextlib.contextmanager
def listening(channel):
    import psycopg
    with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as conn:
        conn.execute(f"listen {channel}")
        yield lambda within: [n.channel for n in conn.notifies(timeout=within, stop_after=1)]

known = dict(mydsn=dsn, dsn=dsn, table=table, folder=folder, os=os, request=request, values=values, listening=listening)
parsed = doctest.DocTestParser().get_doctest(open(path).read(), known, path, path, 0)
runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
runner.run(parsed)
print("failed", runner.failures, "of", runner.tries)
"""


@pytest.mark.parametrize("name", ["psycopg2transaction", "repoze_tm2"])
def test_the_examples_of_the_ancestors_documents(name, orders, program, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    said = program(RUN, str(HERE / "documents" / f"{name}.md"), orders.url, orders.table, str(folder))
    tried = int(re.search(r"failed (\d+) of (\d+)\n\Z", said).group(2))
    assert said == f"failed 0 of {tried}\n", said
    assert tried > 15


def test_the_examples_of_our_own_document(orders, program, tmp_path):
    document = HERE.parent.parent / "docs" / "python.md"
    said = program(RUN, str(document), orders.url, orders.table, str(tmp_path))
    assert re.fullmatch(r"failed 0 of \d+\n", said), said
