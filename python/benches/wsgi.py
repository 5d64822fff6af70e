"""What a WSGI request costs beside the ancestors', in one process and in alternation: without branches, and with two PostgreSQL branches.

::

    cargo xtask python bench wsgi

Prints medians of rounds, in microseconds of the clock: requests with branches mostly wait for the servers' disks. Ours are decided in a log on the disk; the
ancestors' decisions are nowhere. Both keep their connections over the requests.
"""

import argparse
import concurrent.futures
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psycopg2

HERE = Path(__file__).parent
URLS = {name: os.environ[f"UNANIMOUS_TEST_POSTGRES_{number}"] for name, number in (("orders", 1), ("billing", 2))}
ENVIRON = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}


def start_response(status, headers, exc_info=None):
    pass


def theirs():
    """The originals under their own names, from their source distributions."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import ancestors

    sys.path[:0] = ancestors.sources()
    import psycopg2transaction
    import repoze.tm
    import transaction

    assert "unanimous" not in transaction.__file__ + repoze.tm.__file__ + psycopg2transaction.__file__
    return repoze.tm.TM, psycopg2transaction.join


def ours(folder):
    import unanimous_tm
    from unanimous_tm.psycopg2 import join
    from unanimous_tm.wsgi import TM

    unanimous_tm.configure(log=folder, resources=URLS)
    return TM, join


def without(_join, _table):
    def application(environ, respond):
        respond("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    return application


def with_two(join, table):
    mine = threading.local()

    def application(environ, respond):
        if not hasattr(mine, "connections"):
            mine.connections = [psycopg2.connect(url) for url in URLS.values()]
        for conn in mine.connections:
            join(conn)
            with conn.cursor() as cursor:
                cursor.execute(f"insert into {table} values (1)")
        respond("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    return application


def requests(application, count, threads, pool):
    """The seconds that a request took, of so many in each thread."""
    all_there = threading.Barrier(threads)

    def work():
        all_there.wait()
        for _ in range(count):
            for _part in application(dict(ENVIRON), start_response):
                pass

    start = time.perf_counter()
    for done in [pool.submit(work) for _ in range(threads)]:
        done.result()
    return (time.perf_counter() - start) / count / threads


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    table = "bench_" + uuid.uuid4().hex
    for url in URLS.values():
        with psycopg2.connect(url) as conn, conn.cursor() as cursor:
            cursor.execute(f"create table {table} (v int)")
    with tempfile.TemporaryDirectory(prefix="unanimous-bench-") as folder:
        sides = {"theirs": theirs(), "ours": ours(folder)}
        for name, make, count, threads in (
            ("without branches", without, 2000, 1),
            ("two PostgreSQL branches", with_two, 20, 1),
            ("two PostgreSQL branches, 8 threads", with_two, 10, 8),
        ):
            applications = {side: middleware(make(join, table)) for side, (middleware, join) in sides.items()}
            took = {side: [] for side in applications}
            # Threads that stay, so that they keep their connections.
            pools = {side: concurrent.futures.ThreadPoolExecutor(threads) for side in applications}
            for side, application in applications.items():
                requests(application, count, threads, pools[side])
            for number in range(arguments.rounds):
                # Each begins as often as the other.
                for side in list(took)[:: 1 if number % 2 else -1]:
                    took[side].append(requests(applications[side], count, threads, pools[side]) * 1e6)
            medians = {side: statistics.median(times) for side, times in took.items()}
            ratio = medians["theirs"] / medians["ours"]
            print(f"{name}: theirs {medians['theirs']:.1f}, ours {medians['ours']:.1f} microseconds a request; ours {ratio:.2f} times as fast", flush=True)
        import unanimous_tm._configuration

        unanimous_tm._configuration.shutdown()


if __name__ == "__main__":
    main()
