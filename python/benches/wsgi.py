"""What a WSGI request costs beside the ancestors', in alternation: without branches, and with two PostgreSQL branches.

::

    cargo xtask python bench wsgi

Each side is a process of its own, and keeps its connections over the requests. `theirs` decides nowhere; `ours` in a log on the disk; `carrier` by a row in
the second database, with what is committed there. Prints medians of rounds, in microseconds of the clock; and the processors' time of a request, in the
side's process and in the servers: requests with branches wait for disks where these are slow, and for processors where they are not.
"""

import argparse
import concurrent.futures
import contextlib
import json
import logging
import os
import statistics
import subprocess
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

#: Name, whether it has branches, requests of each thread in a round, threads.
CASES = (
    ("without branches", False, 2000, 1),
    ("two PostgreSQL branches", True, 40, 1),
    ("two PostgreSQL branches, 8 threads", True, 20, 8),
)


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


def ours(folder, carrier):
    import unanimous_tm
    from unanimous_tm.psycopg2 import join
    from unanimous_tm.wsgi import TM

    unanimous_tm.configure(log=folder, resources=URLS, carrier=carrier)
    return TM, join


def without(environ, respond):
    respond("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


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
    """The seconds that a request took, of so many in each thread, and those of this process's processors."""
    all_there = threading.Barrier(threads)

    def work():
        all_there.wait()
        for _ in range(count):
            for _part in application(dict(ENVIRON), start_response):
                pass

    start, busy = time.perf_counter(), time.process_time()
    for done in [pool.submit(work) for _ in range(threads)]:
        done.result()
    took, busy = time.perf_counter() - start, time.process_time() - busy
    return took / count / threads, busy / count / threads


def serve(side, table, folder):
    """One side: does a round of a case for each line that it reads, and prints what it took."""
    # Each side's recovery sees the others' branches.
    logging.basicConfig(level=logging.ERROR)
    middleware, join = theirs() if side == "theirs" else ours(folder, "billing" if side == "carrier" else None)
    applications = {branches: middleware(with_two(join, table) if branches else without) for branches in (False, True)}
    # Threads that stay, so that they keep their connections.
    pools = {threads: concurrent.futures.ThreadPoolExecutor(threads) for _, _, _, threads in CASES}
    for line in sys.stdin:
        _, branches, count, threads = CASES[int(line)]
        print(json.dumps(requests(applications[branches], count, threads, pools[threads])), flush=True)


def _fields(pid):
    """What Linux says of a process, from its state on (proc(5), /proc/pid/stat)."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def servers():
    """The processes above the servers' sessions."""
    parents = set()
    for url in URLS.values():
        with contextlib.closing(psycopg2.connect(url)) as conn:
            parents.add(_fields(conn.info.backend_pid)[1])
    return parents


def processors(parents):
    """The processors' seconds of the servers' sessions, which stay."""
    took = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = _fields(pid)
            if fields[1] in parents:
                took += int(fields[11]) + int(fields[12])
    return took / os.sysconf("SC_CLK_TCK")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        serve(*arguments.side)
        return
    table = "bench_" + uuid.uuid4().hex
    for url in URLS.values():
        with psycopg2.connect(url) as conn, conn.cursor() as cursor:
            cursor.execute(f"create table {table} (v int)")
    with tempfile.TemporaryDirectory(prefix="unanimous-bench-") as folder, contextlib.ExitStack() as stack:
        sides = {}
        for side in ("theirs", "ours", "carrier"):
            run = [sys.executable, __file__, "--side", side, table, str(Path(folder) / side)]
            sides[side] = stack.enter_context(subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        parents = servers()
        for case, (name, branches, count, threads) in enumerate(CASES):
            took = {side: ([], [], []) for side in sides}
            for number in range(arguments.rounds + 1):
                # Each begins as often as the other.
                for side in list(sides)[:: 1 if number % 2 else -1]:
                    before = processors(parents)
                    print(case, file=sides[side].stdin, flush=True)
                    clock, here = json.loads(sides[side].stdout.readline())
                    there = (processors(parents) - before) / count / threads
                    # The first round makes connections.
                    if number > 0:
                        for times, seconds in zip(took[side], (clock, here, there), strict=True):
                            times.append(seconds * 1e6)
            print(name)
            base = statistics.median(took["theirs"][0])
            for side, (clock, here, there) in took.items():
                median, here, there = statistics.median(clock), statistics.mean(here), statistics.mean(there)
                busy = f"processors {here + there:.0f} ({here:.0f} + {there:.0f})" if branches else f"processors {here:.1f}"
                print(f"  {side:8} {median:8.1f} microseconds a request, {base / median:.2f} times as fast; {busy}", flush=True)


if __name__ == "__main__":
    main()
