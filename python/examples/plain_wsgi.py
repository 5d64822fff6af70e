"""A WSGI application over two PostgreSQL databases: a request's order and invoice are there both, or neither is.

    export ORDERS="host=127.0.0.1 dbname=orders" BILLING="host=127.0.0.1 dbname=billing"
    export UNANIMOUS_LOG=./decisions UNANIMOUS_RESOURCE_ORDERS="$ORDERS" UNANIMOUS_RESOURCE_BILLING="$BILLING"
    python python/examples/plain_wsgi.py
    curl -d 'item=a lamp' http://127.0.0.1:8000/

Both servers need max_prepared_transactions above 0. Under gunicorn: ``gunicorn --chdir python/examples --workers 2 --threads 8 plain_wsgi``.
"""

import os
from urllib.parse import parse_qs
from wsgiref.simple_server import make_server

import psycopg2

from unanimous_tm.psycopg2 import join
from unanimous_tm.wsgi import TM, default_commit_veto

ORDERS, BILLING = os.environ["ORDERS"], os.environ["BILLING"]


def make_tables():
    for dsn, table in ((ORDERS, "orders"), (BILLING, "invoices")):
        with psycopg2.connect(dsn) as conn, conn.cursor() as cursor:
            # Two workers that start at once would both make it.
            cursor.execute("select pg_advisory_xact_lock(1)")
            cursor.execute(f"create table if not exists {table} (id bigint primary key, item text not null)")


def order(environ, start_response):
    """Writes an order and its invoice. Without an item the second insert fails, and the first one is undone with it."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    form = parse_qs(environ["wsgi.input"].read(length).decode())
    id = int.from_bytes(os.urandom(7), "big")
    if environ["REQUEST_METHOD"] != "POST":
        start_response("405 Method Not Allowed", [("Content-Type", "text/plain")])
        return [b"POST item=...\n"]
    with join(ORDERS).cursor() as cursor:
        cursor.execute("insert into orders values (%s, %s)", (id, form.get("item", [""])[0]))
    with join(BILLING, notify=f"invoices, '{id}'").cursor() as cursor:
        cursor.execute("insert into invoices values (%s, %s)", (id, form["item"][0] if "item" in form else None))
    start_response("201 Created", [("Content-Type", "text/plain")])
    return [f"{id}\n".encode()]


make_tables()
application = TM(order, commit_veto=default_commit_veto)

if __name__ == "__main__":
    make_server("127.0.0.1", 8000, application).serve_forever()
