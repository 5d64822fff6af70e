"""The two-database request of `cargo xtask bench --group ancestors`, with the ancestors' own packages: it adds one to a row of either database.

Each thread keeps its connections.
"""

import os
import random
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import ancestors  # noqa: E402

sys.path[:0] = ancestors.sources()
import psycopg2  # noqa: E402
import psycopg2transaction  # noqa: E402
import repoze.tm  # noqa: E402
import transaction  # noqa: E402

assert "unanimous" not in transaction.__file__ + repoze.tm.__file__ + psycopg2transaction.__file__

DSNS = [os.environ[f"BENCH_POSTGRES_{number}"] for number in (1, 2)]
ROWS = int(os.environ["BENCH_ROWS"])

mine = threading.local()


def update(environ, start_response):
    if not hasattr(mine, "connections"):
        mine.connections = [psycopg2.connect(dsn) for dsn in DSNS]
    for conn in mine.connections:
        psycopg2transaction.join(conn)
        with conn.cursor() as cursor:
            cursor.execute("update account set balance = balance + 1 where id = %s", (random.randint(1, ROWS),))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


application = repoze.tm.TM(update, commit_veto=repoze.tm.default_commit_veto)
