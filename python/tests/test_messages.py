"""What a branch sends to its server, in its order: each message is a round trip that the ancestor's stack has to be compared with."""

import contextlib
import re
import socket
import struct
import threading

import psycopg2
import psycopg2.extensions
import pytest

import unanimous_tm.psycopg2
from unanimous_tm import transaction


class Wire:
    """Passes a connection on to a server, and writes down the simple queries."""

    def __init__(self, url):
        self.sent = []
        self._server = psycopg2.extensions.parse_dsn(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        changes = {"host": "127.0.0.1", "port": self._listener.getsockname()[1], "sslmode": "disable", "gssencmode": "disable"}
        self.url = psycopg2.extensions.make_dsn(url, **changes)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self):
        self._listener.close()

    def taken(self):
        """What was sent since the last look."""
        sent, self.sent = self.sent, []
        return sent

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((self._server["host"], int(self._server["port"])))
                threading.Thread(target=self._questions, args=(client, server), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client), daemon=True).start()

    def _questions(self, client, server):
        with contextlib.suppress(OSError, EOFError), client, server:
            stream = client.makefile("rb")
            server.sendall(self._body(stream, b""))
            while kind := stream.read(1):
                message = self._body(stream, kind)
                if kind == b"Q":
                    self.sent.append(message[5:-1].decode())
                server.sendall(message)

    @staticmethod
    def _body(stream, kind):
        # PostgreSQL 15, 55.7: a length that counts itself; only the first message has no kind.
        length = stream.read(4)
        if len(length) < 4:
            raise EOFError
        return kind + length + stream.read(struct.unpack("!i", length)[0] - 4)

    @staticmethod
    def _pass(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)


@pytest.fixture
def wire(orders):
    with contextlib.closing(Wire(orders.url)) as wire:
        yield wire


@pytest.fixture
def recovered(configured, orders):
    configured({"orders": orders.url})


def work(orders, conn, value):
    unanimous_tm.psycopg2.join(conn)
    orders.insert(conn, value)


MARK = "SET LOCAL default_transaction_read_only = on"


def test_a_branch_of_psycopg2_needs_one_message_more_than_the_ancestors(recovered, orders, wire):
    with contextlib.closing(psycopg2.connect(wire.url)) as conn:
        ids = set()
        for value in (1, 2):
            # Whose branch it is, is asked at the first join.
            work(orders, conn, value)
            transaction.commit()
            *work_sent, prepare, commit = wire.taken()
            assert work_sent[-3:] == ["BEGIN", MARK, f"insert into {orders.table} values ({value})"]
            assert len(work_sent) == 3 or value == 1
            gid = re.fullmatch(r"PREPARE TRANSACTION '(u1:.+:log\.0)';?", prepare)[1]
            assert re.fullmatch(r"COMMIT PREPARED '(.+)';?", commit)[1] == gid
            ids.add(gid)
        assert len(ids) == 2
        assert conn.status == psycopg2.extensions.STATUS_READY
    assert orders.values() == [1, 2]


def test_an_abort_of_psycopg2_before_the_vote_is_one_message(recovered, orders, wire):
    with contextlib.closing(psycopg2.connect(wire.url)) as conn:
        work(orders, conn, 1)
        wire.taken()
        transaction.abort()
        assert wire.taken() == ["ROLLBACK"]
        assert conn.status == psycopg2.extensions.STATUS_READY


def test_an_unconfigured_branch_of_psycopg2_needs_no_more(orders, wire):
    with contextlib.closing(psycopg2.connect(wire.url)) as conn:
        work(orders, conn, 1)
        transaction.commit()
        *_, prepare, commit = wire.taken()
        gid = re.fullmatch(r"PREPARE TRANSACTION '(unanimous-volatile-[0-9a-f]+)';?", prepare)[1]
        assert re.fullmatch(r"COMMIT PREPARED '(.+)';?", commit)[1] == gid
    assert orders.values() == [1]


def test_a_commit_by_another_manager_than_the_joins_has_that_ones_ids(recovered, orders, wire, tmp_path):
    """psycopg2 has begun under an id that is nobody's any more."""
    with contextlib.closing(psycopg2.connect(wire.url)) as conn:
        work(orders, conn, 1)
        begun = transaction.get()._resources[0]._driver._gid
        unanimous_tm.configure(log=tmp_path / "other log", resources={"orders": orders.url})
        wire.taken()
        transaction.commit()
        prepare, commit, begin, rollback = wire.taken()
        gid = re.fullmatch(r"PREPARE TRANSACTION '(u1:.+:log\.0)'", prepare)[1]
        assert commit == f"COMMIT PREPARED '{gid}'" and begun != gid
        assert [begin, rollback] == ["BEGIN", "ROLLBACK"]
        orders.insert(conn, 2)
        conn.commit()
    assert orders.values() == [1, 2] and orders.prepared() == []


def test_work_that_changes_the_setting_that_marks_it_is_a_no(recovered, orders, wire):
    with contextlib.closing(psycopg2.connect(wire.url)) as conn:
        work(orders, conn, 1)
        conn.cursor().execute("set default_transaction_read_only = off")
        with pytest.raises(unanimous_tm.psycopg2.BranchError, match="default_transaction_read_only"):
            transaction.commit()
        transaction.abort()
    assert orders.values() == [] and orders.prepared() == []


def test_a_session_that_only_reads_by_default_is_marked_the_other_way(recovered, orders, wire):
    reads = psycopg2.extensions.make_dsn(wire.url, options="-c default_transaction_read_only=on")
    with contextlib.closing(psycopg2.connect(reads)) as conn:
        conn.set_session(readonly=False)
        work(orders, conn, 1)
        assert "SET LOCAL default_transaction_read_only = off" in wire.taken()
        transaction.commit()
    assert orders.values() == [1]


def test_a_connection_whose_server_finished_the_branch_is_closed(recovered, orders, wire):
    """psycopg2 could only be told so by the opposite of what was decided."""
    with contextlib.closing(psycopg2.connect(wire.url)) as conn:
        work(orders, conn, 1)
        (manager,) = transaction.get()._resources
        prepare = manager.prepare_branch

        def prepared_and_committed(gid):
            prepare(gid)
            orders.execute(f"commit prepared '{gid}'")

        manager.prepare_branch = prepared_and_committed
        wire.taken()
        transaction.commit()
        prepare, commit = wire.taken()
        assert prepare.startswith("PREPARE") and commit.startswith("COMMIT PREPARED")
        assert conn.closed
    assert orders.values() == [1] and orders.prepared() == []
