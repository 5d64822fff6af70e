"""A Flask application over two PostgreSQL databases, for gunicorn.

    export ORDERS="host=127.0.0.1 dbname=orders" BILLING="host=127.0.0.1 dbname=billing"
    gunicorn --chdir python/examples --workers 2 --threads 8 flask_shop:app

Each worker has a decision log of its own below ``DECISIONS`` (``./decisions``), and what a dead one left is taken over by the next. Each thread
keeps its two connections over its requests.
"""

import os
import threading

import psycopg2
from flask import Flask, request

import unanimous_tm
from unanimous_tm import psycopg2 as branches
from unanimous_tm import transaction
from unanimous_tm.wsgi import TM, after_end, default_commit_veto

ORDERS, BILLING = os.environ["ORDERS"], os.environ["BILLING"]

# Nothing is opened before a worker's first commit, so that this can stand in a module that gunicorn loads before it forks.
unanimous_tm.configure(log=os.environ.get("DECISIONS", "decisions"), resources={"orders": ORDERS, "billing": BILLING})

app = Flask(__name__)
mine = threading.local()


def connection(dsn):
    """The thread's own connection, as a part of the request's transaction."""
    kept = mine.__dict__.setdefault("connections", {})
    if dsn not in kept or kept[dsn].closed:
        kept[dsn] = psycopg2.connect(dsn)
    branches.join(kept[dsn])
    return kept[dsn]


@app.post("/orders")
def order():
    id, item = int(request.form["id"]), request.form["item"]
    with connection(ORDERS).cursor() as cursor:
        cursor.execute("insert into orders values (%s, %s)", (id, item))
    with connection(BILLING).cursor() as cursor:
        cursor.execute("insert into invoices values (%s, %s)", (id, item))
    after_end.register(lambda: app.logger.info("order %s has ended", id), transaction.get())
    # The veto's: nothing is kept of what is answered by a 4xx or 5xx.
    return ("too many\n", 409) if item == "too many" else (f"{id}\n", 201)


@app.get("/orders")
def orders():
    """The ids that are in both databases, and those that are in one."""
    found = []
    for dsn, table in ((ORDERS, "orders"), (BILLING, "invoices")):
        with connection(dsn).cursor() as cursor:
            cursor.execute(f"select id from {table}")
            found.append({id for (id,) in cursor})
    return {"both": sorted(found[0] & found[1]), "torn": sorted(found[0] ^ found[1])}


def make_tables():
    for dsn, table in ((ORDERS, "orders"), (BILLING, "invoices")):
        with psycopg2.connect(dsn) as conn, conn.cursor() as cursor:
            cursor.execute("select pg_advisory_xact_lock(1)")
            cursor.execute(f"create table if not exists {table} (id bigint primary key, item text not null)")


make_tables()
app.wsgi_app = TM(app.wsgi_app, commit_veto=default_commit_veto)
