"""A database that carries the decision: its branch commits last, with the decision as a row, and the others are what the row says."""

import contextlib
import re
import signal
import socket
import struct
import threading

import psycopg
import psycopg2
import psycopg2.extensions
import pytest

import unanimous_tm.psycopg2
from test_durability import KILLER, until
from test_messages import MARK, Wire
from test_postgres import Listener, Psycopg2, Psycopg2Unreported, Psycopg3, Refuses, execute
from unanimous_tm import _postgres, transaction
from unanimous_tm.psycopg2 import BranchError
from unanimous_tm.transaction.interfaces import DoomedTransaction, OutcomeUnknown


@pytest.fixture(params=[Psycopg2, Psycopg2Unreported, Psycopg3], ids=["psycopg2", "unreported", "psycopg3"])
def driver(request):
    return request.param


@pytest.fixture
def carried(configured, orders, billing):
    configured({"orders": orders.url, "billing": billing.url}, carrier="billing")


@pytest.fixture
def wires(carried, orders, billing):
    with contextlib.closing(Wire(orders.url)) as one, contextlib.closing(Wire(billing.url)) as other:
        yield one, other


def both(driver, orders, billing, value=1):
    """Both databases have written; their connections."""
    conns = []
    # The order of joining is not that of committing.
    for database in (billing, orders):
        conn = driver.join(database.url)
        database.insert(conn, value)
        conns.insert(0, conn)
    return conns


def decision(billing, id):
    """What the carrier's rows say of a transaction: outcomes and resources."""
    sql = "select outcome, resource from unanimous.decision left join unanimous.participant using (transaction_id)"
    return billing.execute(f"{sql} where transaction_id = '{id}' order by number")


def prepares():
    """The branch beside the carrier."""
    branches = transaction.get()._resources
    return next(one for one in branches if getattr(one, "unanimous_resource", None) == "orders")


def nothing_is_left(orders, billing):
    return orders.prepared() == billing.prepared() == []


# What is sent.


def test_the_carrier_of_psycopg2_is_not_prepared_and_commits_with_the_row(wires, orders, billing):
    one, other = wires
    with contextlib.closing(psycopg2.connect(one.url)) as first, contextlib.closing(psycopg2.connect(other.url)) as second:
        rows = []
        for value in range(1, 5):
            for database, conn in ((orders, first), (billing, second)):
                unanimous_tm.psycopg2.join(conn)
                database.insert(conn, value)
            transaction.commit()
            assert first.status == second.status == psycopg2.extensions.STATUS_READY
            *_, begin, mark, work, row, rollback = other.taken()
            assert [begin, mark, work] == ["BEGIN", MARK, f"insert into {billing.table} values ({value})"]
            assert row.endswith("; COMMIT; BEGIN") and rollback == "ROLLBACK"
            rows.append(row)
            sent = one.taken()
            if value == 1:
                # Who decides was not known at its begin.
                assert sent[-2:] == ["BEGIN", "ROLLBACK"]
                continue
            *_, begin, mark, work, prepare, commit = sent
            assert [begin, mark, work] == ["BEGIN", MARK, f"insert into {orders.table} values ({value})"]
            gid = re.fullmatch(r"PREPARE TRANSACTION '(u1:(.+):pg-.+\.0)';?", prepare)
            assert re.fullmatch(r"COMMIT PREPARED '(.+)';?", commit)[1] == gid[1]
            assert f"'{gid[2]}'" in row
    # The session keeps the statements from its second decision on.
    assert ["INSERT INTO unanimous.decision" in row for row in rows] == [True, True, False, False]
    assert ["PREPARE" in row for row in rows] == [False, True, False, False]
    assert orders.values() == billing.values() == [1, 2, 3, 4]


def test_the_carrier_of_psycopg_3_commits_with_the_row_in_one_message(wires, orders, billing):
    one, other = wires
    with contextlib.closing(psycopg.connect(one.url)) as first, contextlib.closing(psycopg.connect(other.url)) as second:
        for database, conn in ((orders, first), (billing, second)):
            unanimous_tm.psycopg2.join(conn)
            database.insert(conn, 1)
        transaction.commit()
        assert [text.split()[0] for text in one.taken()[-2:]] == ["SELECT", "COMMIT"]
        *_, begin, mark, _work, row = other.taken()
        assert begin == "BEGIN" and mark.startswith("SET LOCAL unanimous.branch")
        assert row.startswith("SELECT 1/") and row.endswith("; COMMIT")
    assert orders.values() == billing.values() == [1]


def test_the_carrier_alone_commits_in_one_phase_and_writes_no_row(wires, orders, billing):
    _, other = wires
    with contextlib.closing(psycopg2.connect(other.url)) as conn:
        for value in (1, 2):
            unanimous_tm.psycopg2.join(conn)
            billing.insert(conn, value)
            transaction.commit()
            *_, commit, begin, rollback = other.taken()
            assert commit.endswith("; COMMIT") and "synchronous_commit" in commit and "INSERT" not in commit
            assert [begin, rollback] == ["BEGIN", "ROLLBACK"]
    assert billing.values() == [1, 2]


def test_without_the_carrier_the_log_decides(wires, orders):
    one, _ = wires
    with contextlib.closing(psycopg2.connect(one.url)) as first, contextlib.closing(psycopg2.connect(orders.url)) as second:
        for conn in (first, second):
            unanimous_tm.psycopg2.join(conn)
            orders.insert(conn, 1)
        transaction.commit()
        assert re.search(r":log\.\d", next(text for text in one.taken() if text.startswith("PREPARE")))
    assert orders.values() == [1, 1]


# What is promised.


def test_both_commit_and_the_connections_are_the_applications_again(driver, carried, orders, billing):
    with contextlib.closing(driver.connect(orders.url)) as one, contextlib.closing(driver.connect(billing.url)) as other:
        for value in (1, 2, 3):
            for database, conn in ((orders, one), (billing, other)):
                driver.join(conn)
                database.insert(conn, value)
            transaction.commit()
            assert orders.values() == billing.values() == list(range(1, value + 1))
        for number, database, conn in ((4, orders, one), (4, billing, other)):
            database.insert(conn, number)
            conn.rollback()
            database.insert(conn, number + 1)
            conn.commit()
            assert database.values() == [1, 2, 3, 5]
    assert nothing_is_left(orders, billing)


def test_the_rows_are_marked_as_finished(driver, carried, orders, billing):
    both(driver, orders, billing)
    ours = prepares()
    transaction.commit()
    id = ours._gid.split(":")[1]
    assert decision(billing, id) == [("commit", "orders")]
    finished = f"select finished_at from unanimous.decision where transaction_id = '{id}' and finished_at is null"
    assert until(lambda: billing.execute(finished) == [])


def test_a_no_of_another_undoes_both_and_writes_no_row(driver, carried, orders, billing):
    both(driver, orders, billing)
    transaction.get().join(Refuses())
    ours = prepares()
    with pytest.raises(ValueError, match="no"):
        transaction.commit()
    transaction.abort()
    assert orders.values() == billing.values() == [] and nothing_is_left(orders, billing)
    assert decision(billing, ours._gid.split(":")[1]) == []


def test_a_doomed_transaction_and_an_abort_undo_both(driver, carried, orders, billing):
    both(driver, orders, billing)
    transaction.doom()
    with pytest.raises(DoomedTransaction):
        transaction.commit()
    transaction.abort()
    both(driver, orders, billing)
    transaction.abort()
    assert orders.values() == billing.values() == []


def test_savepoints_and_notifications(driver, carried, orders, billing):
    """The carrier notifies with its commit: nothing is kept for that."""
    listener = Listener(billing, billing.table)
    one, other = both(driver, orders, billing)
    driver.join(billing.url, notify=f"{billing.table}, 'first'")
    savepoint = transaction.savepoint()
    orders.insert(one, 2)
    billing.insert(other, 2)
    driver.join(billing.url, notify=f"{billing.table}, 'undone'")
    savepoint.rollback()
    driver.join(billing.url, notify=f"{billing.table}, E'it\\'s\\tlast'")
    assert listener.heard(1, within=0.1) == []
    transaction.commit()
    assert orders.values() == billing.values() == [1]
    assert listener.heard(3, within=0.5) == ["first", "it's\tlast"]
    assert billing.execute("select * from unanimous.outbox") == []


def test_a_failed_statement_in_the_carrier_that_nobody_saw_is_a_no(driver, carried, orders, billing):
    _, other = both(driver, orders, billing)
    with contextlib.suppress(psycopg.errors.DivisionByZero, psycopg2.errors.DivisionByZero):
        execute(other, "select 1/0")
    with pytest.raises(BranchError, match="failed"):
        transaction.commit()
    transaction.abort()
    assert orders.values() == billing.values() == [] and nothing_is_left(orders, billing)


@pytest.mark.parametrize("alone", [False, True], ids=["beside others", "alone"])
@pytest.mark.parametrize("ends", ["rollback", "commit; begin", "rollback and chain"])
def test_carried_work_that_ends_its_transaction_is_a_no(driver, carried, orders, billing, ends, alone):
    other = driver.join(billing.url)
    if not alone:
        orders.insert(driver.join(orders.url), 1)
    execute(other, ends)
    if ends != "rollback":
        billing.insert(other, 1)
    with pytest.raises(BranchError, match="ended its transaction"):
        transaction.commit()
    transaction.abort()
    assert orders.values() == billing.values() == [] and nothing_is_left(orders, billing)


@pytest.mark.parametrize("alone", [False, True], ids=["beside others", "alone"])
def test_what_fails_at_the_carriers_commit_itself_aborts_all(driver, carried, orders, billing, alone):
    billing.execute(f"alter table {billing.table} add unique (v) deferrable initially deferred")
    with contextlib.closing(driver.connect(billing.url)) as other:
        driver.join(other)
        for value in (1, 1):
            billing.insert(other, value)
        if not alone:
            orders.insert(driver.join(orders.url), 1)
        with pytest.raises((psycopg.errors.UniqueViolation, psycopg2.errors.UniqueViolation)):
            transaction.commit()
        transaction.abort()
        assert orders.values() == billing.values() == [] and nothing_is_left(orders, billing)
        # The connection is good for the next one.
        driver.join(other)
        billing.insert(other, 1)
        transaction.commit()
        billing.insert(other, 2)
        other.commit()
    assert billing.values() == [1, 2]


def test_a_conflict_in_the_carrier_is_tried_again(driver, carried, orders, billing):
    billing.execute(f"insert into {billing.table} values (1)")
    tries = []

    def work():
        orders.insert(driver.join(orders.url), len(tries))
        conn = driver.join(billing.url)
        execute(conn, "set transaction isolation level repeatable read")
        execute(conn, f"select v from {billing.table}")
        if not tries:
            billing.execute(f"update {billing.table} set v = v + 10")
        tries.append(1)
        execute(conn, f"update {billing.table} set v = v + 1")

    transaction.manager.run(work, 3)
    assert len(tries) == 2
    assert billing.values() == [12] and orders.values() == [1]


def test_a_snapshot_from_the_begin_on_carries_from_the_first_transaction_on(driver, carried, orders, billing):
    """What the carrier must know of a run, its first branch has to see."""
    orders.insert(driver.join(orders.url), 1)
    conn = driver.join(billing.url)
    execute(conn, "set transaction isolation level serializable")
    billing.insert(conn, 1)
    transaction.commit()
    assert orders.values() == billing.values() == [1]


def test_a_second_connection_to_the_carrier_prepares(driver, carried, orders, billing):
    conns = [driver.connect(billing.url) for _ in range(2)]
    with contextlib.closing(conns[0]), contextlib.closing(conns[1]):
        for value, conn in enumerate(conns):
            driver.join(conn)
            billing.insert(conn, value)
        orders.insert(driver.join(orders.url), 2)
        transaction.commit()
    assert billing.values() == [0, 1] and orders.values() == [2]
    assert nothing_is_left(orders, billing)


def test_one_that_only_reads_prepares_and_the_log_decides(driver, carried, orders, billing):
    with contextlib.closing(driver.connect(billing.url)) as other:
        if driver is Psycopg3:
            other.read_only = True
        else:
            other.set_session(readonly=True)
        driver.join(other)
        assert execute(other, f"select v from {billing.table}") == []
        orders.insert(driver.join(orders.url), 1)
        ours = prepares()
        transaction.commit()
        assert ":log." in ours._gid
    assert orders.values() == [1]


def test_work_that_has_deallocated_what_the_session_keeps_is_done_again(driver, carried, orders, billing):
    with contextlib.closing(driver.connect(billing.url)) as other:
        tries = []

        def work(deallocate=False):
            tries.append(1)
            driver.join(other)
            if deallocate:
                execute(other, "deallocate all")
            billing.insert(other, len(tries))
            orders.insert(driver.join(orders.url), len(tries))

        for _ in range(3):
            transaction.manager.run(work, 1)
        transaction.manager.run(lambda: work(deallocate=True), 2)
        transaction.manager.run(work, 1)
    assert orders.values() == billing.values() == [1, 2, 3, 5, 6]


def test_beside_data_managers_of_pythons_the_order_of_calls_stays(carried, orders, billing):
    from test_calls import DataManager

    log = []
    both(Psycopg2, orders, billing)
    for key in (" ", "~"):
        transaction.get().join(DataManager(key, log, tpc_vote=lambda _: billing.values() and log.append("late")))
    transaction.commit()
    assert log == [(key, name) for name in ("tpc_begin", "commit", "tpc_vote", "tpc_finish") for key in " ~"]
    assert orders.values() == billing.values() == [1]


# Lost answers.


class Cut(Wire):
    """Breaks the connection when a text is sent, before or behind its server."""

    def __init__(self, url, text, behind):
        self.text, self.behind = text.encode(), behind
        self.silent, self.answered = False, threading.Event()
        super().__init__(url)

    def _questions(self, client, server):
        with contextlib.suppress(OSError, EOFError), client, server:
            stream = client.makefile("rb")
            server.sendall(self._body(stream, b""))
            while kind := stream.read(1):
                message = self._body(stream, kind)
                if self.text in message:
                    if self.behind:
                        self.silent = True
                        server.sendall(message)
                        assert self.answered.wait(30)
                    # Another thread reads from them: closing would not end them.
                    client.shutdown(socket.SHUT_RDWR)
                    server.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(message)

    def _pass(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.silent:
                    self.answered.set()
                else:
                    target.sendall(data)


class Fails(Wire):
    """What is sent behind a commit fails, as when it is cancelled then."""

    def _body(self, stream, kind):
        message = Wire._body(stream, kind)
        for end in (b"; COMMIT; BEGIN\0", b"; COMMIT\0"):
            if kind == b"Q" and message.endswith(end):
                text = message[5:].replace(end, b"; COMMIT; SELECT 1/0\0")
                return kind + struct.pack("!i", len(text) + 4) + text
        return message


def test_an_error_behind_the_commit_does_not_say_that_it_failed(driver, carried, orders, billing):
    with contextlib.closing(Fails(billing.url)) as wire, contextlib.closing(driver.connect(wire.url)) as other:
        for value in (1, 2):
            driver.join(other)
            billing.insert(other, value)
            orders.insert(driver.join(orders.url), value)
            transaction.commit()
            # It is the application's again.
            other.rollback()
            assert orders.values() == billing.values() == list(range(1, value + 1))
    assert nothing_is_left(orders, billing)


@pytest.fixture(params=[False, True], ids=["not committed", "committed"])
def cut(request, carried, billing):
    with contextlib.closing(Cut(billing.url, "COMMIT", request.param)) as cut:
        yield cut


def test_a_lost_answer_of_the_carriers_is_asked_for(driver, orders, billing, cut):
    with contextlib.closing(driver.connect(cut.url)) as other:
        driver.join(other)
        billing.insert(other, 1)
        orders.insert(driver.join(orders.url), 1)
        if cut.behind:
            transaction.commit()
        else:
            with pytest.raises((psycopg.OperationalError, psycopg2.OperationalError)):
                transaction.commit()
            transaction.abort()
        assert other.closed
    assert orders.values() == billing.values() == [1] * cut.behind
    assert nothing_is_left(orders, billing)


def test_a_lost_answer_of_the_carrier_alone_is_an_unknown_outcome(driver, orders, billing, cut):
    with contextlib.closing(driver.connect(cut.url)) as other:
        driver.join(other)
        billing.insert(other, 1)
        with pytest.raises(OutcomeUnknown):
            transaction.commit()
        transaction.abort()
    assert billing.values() == [1] * cut.behind


def test_a_connection_that_is_gone_before_the_commit_aborts(driver, carried, orders, billing):
    _, other = both(driver, orders, billing)
    other.close()
    with pytest.raises((psycopg.Error, psycopg2.Error), match="closed"):
        transaction.commit()
    transaction.abort()
    assert orders.values() == billing.values() == [] and nothing_is_left(orders, billing)


def test_an_interrupt_behind_the_carriers_commit_is_raised_when_all_is_committed(driver, carried, orders, billing, monkeypatch):
    both(driver, orders, billing)
    carrier = next(one for one in transaction.get()._resources if one is not prepares())
    commit = carrier._driver.commit_alone

    def interrupted(*arguments):
        commit(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(carrier._driver, "commit_alone", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transaction.commit()
    transaction.abort()
    assert orders.values() == billing.values() == [1] and nothing_is_left(orders, billing)


def test_an_interrupt_of_the_carriers_commit_alone_says_that_the_outcome_is_unknown(driver, carried, billing, monkeypatch):
    billing.insert(driver.join(billing.url), 1)
    (carrier,) = transaction.get()._resources
    commit = carrier._driver.commit_alone

    def interrupted(*arguments):
        commit(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(carrier._driver, "commit_alone", interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        transaction.commit()
    assert isinstance(raised.value.__cause__, OutcomeUnknown)
    transaction.abort()
    assert billing.values() == [1]


def test_a_carrier_that_is_late_meets_the_fence(driver, carried, orders, billing, monkeypatch):
    """Somebody has asked, found nothing, and made sure that no commit follows."""
    both(driver, orders, billing)
    ours = prepares()
    carrier = next(one for one in transaction.get()._resources if one is not ours)
    commit = carrier.commit_alone

    def late(decision):
        id = ours._gid.split(":")[1]
        log, counter, *_ = id.split(".")
        billing.execute(
            "insert into unanimous.decision (transaction_id, decider, log, counter, outcome, decided_at, finished_at)"
            f" values ('{id}', 'carrier', '{log}', {counter}, 'abort', 1, 1)"
        )
        commit(decision)

    monkeypatch.setattr(carrier, "commit_alone", late)
    with pytest.raises((psycopg.errors.UniqueViolation, psycopg2.errors.UniqueViolation)):
        transaction.commit()
    transaction.abort()
    assert orders.values() == billing.values() == [] and nothing_is_left(orders, billing)


# Crashes.

DIES = KILLER + """
log, orders, billing, table1, table2, module, moment = sys.argv[1:]
import importlib
from unanimous_tm import _postgres
branches = importlib.import_module("unanimous_tm." + module)
unanimous_tm.configure(log=log, resources={"orders": orders, "billing": billing}, carrier="billing")
for url, table in ((orders, table1), (billing, table2)):
    branches.join(url).cursor().execute(f"insert into {table} values (7)")
if moment == "before the row":
    _postgres.DataManager.commit_alone = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
elif moment == "behind the row":
    _postgres.DataManager._release = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
elif moment == "before the others":
    transaction.get().join(Killer(" ", "tpc_finish"))
transaction.commit()
"""

STARTS = """
import sys, unanimous_tm
log, orders, billing = sys.argv[1:]
unanimous_tm.configure(log=log, resources={"orders": orders, "billing": billing}, carrier="billing")
print(unanimous_tm.recover())
"""


@pytest.mark.parametrize(
    ("moment", "becomes"), [("before the row", []), ("behind the row", [7]), ("before the others", [7])], ids=lambda one: str(one)
)
@pytest.mark.parametrize("named", [True, False], ids=["a carrier still", "no carrier any more"])
@pytest.mark.parametrize("module", ["psycopg2", "psycopg"])
def test_a_killed_process_is_recovered_by_what_the_row_says(program, tmp_path, orders, billing, module, moment, becomes, named):
    log = str(tmp_path / "decisions")
    program(DIES, log, orders.url, billing.url, orders.table, billing.table, module, moment, status=-signal.SIGKILL)
    assert len(orders.prepared()) == 1 and billing.prepared() == []
    assert billing.values() == becomes
    starts = STARTS if named else STARTS.replace(', carrier="billing"', "")
    assert program(starts, log, orders.url, billing.url) == "[]\n"
    assert orders.values() == billing.values() == becomes
    assert nothing_is_left(orders, billing)


def test_the_environment_names_the_carrier(program, tmp_path, orders, billing):
    log = str(tmp_path / "decisions")
    text = DIES.replace('unanimous_tm.configure(log=log, resources={"orders": orders, "billing": billing}, carrier="billing")\n', "")
    environment = {
        "UNANIMOUS_LOG": log,
        "UNANIMOUS_RESOURCE_ORDERS": orders.url,
        "UNANIMOUS_RESOURCE_BILLING": billing.url,
        "UNANIMOUS_CARRIER": "billing",
    }
    arguments = (log, orders.url, billing.url, orders.table, billing.table, "psycopg2", "behind the row")
    program(text, *arguments, status=-signal.SIGKILL, **environment)
    assert billing.values() == [7] and orders.values() == []
    assert program("import unanimous_tm; print(unanimous_tm.recover())", **environment) == "[]\n"
    assert orders.values() == [7]


# Configuration.


def test_a_carrier_that_is_no_database_or_has_no_log_is_refused(configured, orders, tmp_path):
    resources = {"orders": orders.url, "files": f"file:{tmp_path}"}
    with pytest.raises(ValueError, match="needs a log"):
        configured(resources, log=None, carrier="orders")
    for carrier in ("nobody", "files"):
        with pytest.raises(ValueError, match=r"\(orders\), not"):
            configured(resources, carrier=carrier)


def test_a_role_that_may_not_make_the_tables_is_told_so(configured, orders, billing):
    billing.execute("drop schema if exists unanimous cascade")
    role = f"r{billing.table}"
    billing.execute(f"create role {role} login")
    billing.execute(f"grant all on {billing.table} to {role}")
    as_role = psycopg2.extensions.make_dsn(billing.url, user=role)
    configured({"orders": orders.url, "billing": as_role}, carrier="billing")
    orders.insert(unanimous_tm.psycopg2.join(orders.url), 1)
    with pytest.raises(transaction.interfaces.TransactionError, match="unanimous sql postgres"):
        unanimous_tm.psycopg2.join(as_role)
    transaction.abort()
    assert orders.values() == billing.values() == [] and nothing_is_left(orders, billing)


def test_a_warning_of_the_carriers_commit_is_asked_about_where_the_server_replicates(carried, orders, billing, monkeypatch):
    """A replica may not have heard of it: the row that was read is written again."""
    warns = "begin raise warning 'the work''s own'; return new; end"
    billing.execute(f"create function f{billing.table}() returns trigger language plpgsql as $$ {warns} $$")
    billing.execute(
        f"create constraint trigger later after insert on {billing.table} deferrable initially deferred for each row"
        f" execute function f{billing.table}()"
    )
    with contextlib.closing(psycopg2.connect(billing.url)) as other:
        for replicas, asked in (("", 0), ("one", 1)):
            unanimous_tm.psycopg2.join(other)
            monkeypatch.setitem(_postgres._known, other, (*_postgres._known[other][:3], replicas, *_postgres._known[other][4:]))
            billing.insert(other, 1)
            orders.insert(unanimous_tm.psycopg2.join(orders.url), 1)
            ours = prepares()
            transaction.commit()
            id = ours._gid.split(":")[1]
            assert billing.execute(f"select asked from unanimous.decision where transaction_id = '{id}'") == [(asked,)]
    assert orders.values() == billing.values() == [1, 1]
