"""The application of the crash rounds, in the ancestors' words: it runs unchanged with them, and with this package in their place.

A request writes its id into both databases. Each thread keeps its connections.
"""

import os
import threading

import psycopg2
import psycopg2transaction
from repoze.tm import TM, default_commit_veto

DSNS = (os.environ["UNANIMOUS_TEST_POSTGRES_1"], os.environ["UNANIMOUS_TEST_POSTGRES_2"])
TABLE = os.environ["CRASH_TABLE"]

mine = threading.local()


def write(environ, start_response):
    if not hasattr(mine, "connections"):
        mine.connections = [psycopg2.connect(dsn) for dsn in DSNS]
    id = int(environ["PATH_INFO"].strip("/"))
    try:
        for conn in mine.connections:
            psycopg2transaction.join(conn)
            with conn.cursor() as cursor:
                cursor.execute(f"insert into {TABLE} values (%s)", (id,))
    except Exception:
        # What is wrong with them the next request need not have.
        del mine.connections
        raise
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


application = TM(write, commit_veto=default_commit_veto)
