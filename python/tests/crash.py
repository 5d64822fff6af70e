"""kill -9 of a gunicorn with 2 workers of 8 threads under load over two PostgreSQL servers: ``crash.py --rounds N [--seed S] [--carrier | --ancestors]``.

In each round one worker, or all of them with their master, die at a random moment. What was prepared then must be gone within 30 seconds, while
requests go on; then the load pauses, and each id is in both databases or in neither, and those that were acknowledged are there.

With ``--carrier`` the second database carries the decisions. With ``--ancestors`` the application runs with the ancestors' own packages, for comparison: what is violated is counted, and no failure.

Must not know how anything is recovered: it sees processes, answers and tables.
"""

import argparse
import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psycopg2

import ancestors

WORKERS, THREADS, CLIENTS = 2, 8, 16

#: Until then nothing may be in doubt.
IN_DOUBT = 30.0

HERE = Path(__file__).parent


class Databases:
    def __init__(self, table):
        self.table = table
        self.urls = [os.environ[f"UNANIMOUS_TEST_POSTGRES_{number}"] for number in (1, 2)]
        for number in (0, 1):
            self.ask(number, f"create table {table} (id bigint primary key)")

    def ask(self, number, sql):
        with contextlib.closing(psycopg2.connect(self.urls[number])) as conn:
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute(sql)
                return [value for (value,) in cursor] if cursor.description else []

    def ids(self):
        return [set(self.ask(number, f"select id from {self.table}")) for number in (0, 1)]

    def prepared(self):
        return {(number, gid) for number in (0, 1) for gid in self.ask(number, "select gid from pg_prepared_xacts")}


class Server:
    """gunicorn, as often as it is started."""

    def __init__(self, whose, table, folder):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port = taken.getsockname()[1]
        self.log = folder / "gunicorn.log"
        environment = {**os.environ, "CRASH_TABLE": table, "PYTHONDONTWRITEBYTECODE": "1"}
        run = [sys.executable]
        if whose != "theirs":
            run += ["-m", "unanimous_tm", "run"]
            environment["UNANIMOUS_LOG"] = str(folder / "decisions")
            for name, number in (("ORDERS", 1), ("BILLING", 2)):
                environment[f"UNANIMOUS_RESOURCE_{name}"] = os.environ[f"UNANIMOUS_TEST_POSTGRES_{number}"]
            if whose == "carrier":
                environment["UNANIMOUS_CARRIER"] = "billing"
        else:
            environment["PYTHONPATH"] = os.pathsep.join(ancestors.sources())
        address = f"127.0.0.1:{self.port}"
        concurrency = ["--workers", str(WORKERS), "--threads", str(THREADS), "--worker-class", "gthread"]
        self.command = [*run, "-m", "gunicorn", *concurrency, "--bind", address, "--chdir", str(HERE), "crash_app"]
        self.environment = environment
        self.master = None

    def start(self):
        with self.log.open("ab") as log:
            self.master = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)

    def workers(self):
        children = Path(f"/proc/{self.master.pid}/task/{self.master.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def kill(self, everything, choose):
        """kill -9, of one worker or of all and the master."""
        workers = self.workers()
        if everything:
            os.kill(self.master.pid, signal.SIGKILL)
        for pid in workers if everything else [choose.choice(workers)]:
            os.kill(pid, signal.SIGKILL)
        if everything:
            self.master.wait()

    def stop(self):
        if self.master is not None and self.master.poll() is None:
            self.master.terminate()
            self.master.wait(60)


class Load:
    """Clients, each of which sends one request after the other, with ids that nobody else has."""

    def __init__(self, port):
        self.port = port
        self.go, self.over = threading.Event(), threading.Event()
        self.idle = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.acknowledged, self.refused, self.unanswered = set(), 0, 0
        self.threads = [threading.Thread(target=self.client, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def client(self, number):
        id = number
        while not self.over.is_set():
            if not self.go.is_set():
                self.idle.release()
                self.go.wait()
                continue
            id += CLIENTS
            self.request(id)

    def request(self, id):
        status = None
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", f"/{id}")
            answer = connection.getresponse()
            if answer.read() == b"ok":
                status = answer.status
            else:
                status = 500
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)
        finally:
            connection.close()
        with self.lock:
            if status == 200:
                self.acknowledged.add(id)
            elif status is None:
                self.unanswered += 1
            else:
                self.refused += 1

    def pause(self):
        """Returns when no request is under way any more."""
        self.go.clear()
        for _ in self.threads:
            self.idle.acquire()

    def wait_answered(self, within=60):
        """Until a request is acknowledged again."""
        count, deadline = len(self.acknowledged), time.monotonic() + within
        while len(self.acknowledged) == count:
            if time.monotonic() > deadline:
                raise RuntimeError("no request was acknowledged for a minute")
            time.sleep(0.01)


def rounds(count, seed, whose, say):
    """Runs them; what was counted."""
    choose = random.Random(seed)
    databases = Databases("crash_" + uuid.uuid4().hex)
    before = databases.prepared()
    counted = {"torn": 0, "lost": 0, "in doubt": 0, "longest": 0.0, "caught": 0}
    with tempfile.TemporaryDirectory(prefix="unanimous-crash-") as folder:
        server = Server(whose, databases.table, Path(folder))
        load = Load(server.port)
        try:
            server.start()
            for number in range(count):
                load.go.set()
                load.wait_answered()
                time.sleep(choose.uniform(0.2, 1.0))
                everything = choose.random() < 0.5
                server.kill(everything, choose)
                caught = databases.prepared() - before
                since = time.monotonic()
                if everything:
                    server.start()
                load.wait_answered()
                wait = 1.0 if whose == "theirs" else IN_DOUBT
                left = caught
                while left and time.monotonic() < since + wait:
                    time.sleep(0.05)
                    left = left & databases.prepared()
                took = time.monotonic() - since
                load.pause()
                left = left | settled(databases, before, wait)
                ids = databases.ids()
                counted["caught"] += len(caught)
                counted["longest"] = max(counted["longest"], took if caught else 0.0)
                # An orphan of the ancestors' stays one: it is counted once.
                counted["in doubt"] += len(left)
                counted["torn"] = len(ids[0] ^ ids[1])
                counted["lost"] = len(load.acknowledged - (ids[0] & ids[1]))
                before |= left
                kind = "all" if everything else "one worker"
                say(f"round {number + 1}: killed {kind}, prepared then {len(caught)}, left {len(left)}, {counted['torn']} torn, {counted['lost']} lost")
        except BaseException:
            say(server.log.read_text()[-8000:])
            raise
        finally:
            load.over.set()
            load.go.set()
            server.stop()
    counted.update(acknowledged=len(load.acknowledged), refused=load.refused, unanswered=load.unanswered)
    return counted


def settled(databases, before, within):
    """What is prepared still, when no request is under way for so long."""
    deadline = time.monotonic() + within
    while (left := databases.prepared() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def main():
    parser = argparse.ArgumentParser(prog="cargo xtask python crash")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--ancestors", dest="whose", action="store_const", const="theirs", default="ours")
    parser.add_argument("--carrier", dest="whose", action="store_const", const="carrier")
    asked = parser.parse_args()
    whose = asked.whose

    def say(line):
        print(line, flush=True)

    say(f"seed {asked.seed}")
    start = time.monotonic()
    counted = rounds(asked.rounds, asked.seed, whose, say)
    say(
        f"{whose}: rounds {asked.rounds}, requests acknowledged {counted['acknowledged']}, refused {counted['refused']},"
        f" unanswered {counted['unanswered']}; prepared when it was killed {counted['caught']}, left in doubt {counted['in doubt']},"
        f" torn {counted['torn']}, acknowledged and lost {counted['lost']}; all finished within {counted['longest']:.1f} s of the kill;"
        f" {time.monotonic() - start:.0f} s"
    )
    if whose != "theirs" and (counted["torn"] or counted["lost"] or counted["in doubt"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
