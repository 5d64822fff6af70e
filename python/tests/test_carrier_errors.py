"""A carrier's commit that fails, seems to fail, or is interrupted: what that says of the outcome, and what it does not."""

import contextlib
import struct

import psycopg
import psycopg2
import psycopg2.extensions
import pytest

import unanimous_tm.psycopg
import unanimous_tm.psycopg2
from test_carrier import Cut, carried, driver, nothing_is_left, prepares  # noqa: F401
from unanimous_tm import _core, _postgres, transaction
from unanimous_tm.transaction.interfaces import OutcomeUnknown, TransientError

both_forms = pytest.mark.parametrize("alone", [False, True], ids=["beside others", "alone"])


def at_commit(database, body):
    """Each row that is inserted runs this when its transaction commits."""
    body = f"begin {body}; return new; end"
    database.execute(f"create function f{database.table}() returns trigger language plpgsql as $$ {body} $$")
    database.execute(
        f"create constraint trigger later after insert on {database.table} deferrable initially deferred for each row"
        f" execute function f{database.table}()"
    )


class Dies(Cut):
    """Its server commits, and then says that its process ends, in a failed transaction."""

    def _questions(self, client, server):
        with contextlib.suppress(OSError, EOFError), client, server:
            stream = client.makefile("rb")
            server.sendall(self._body(stream, b""))
            while kind := stream.read(1):
                message = self._body(stream, kind)
                self.silent = self.silent or self.text in message
                server.sendall(message)

    def _pass(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.silent:
                    fields = b"SFATAL\0VFATAL\0CXX000\0Mit ends\0\0"
                    data = b"E" + struct.pack("!i", len(fields) + 4) + fields + b"Z" + struct.pack("!i", 5) + b"E"
                    self.silent = False
                target.sendall(data)


@both_forms
def test_a_fatal_error_is_no_answer_whatever_its_code_is(driver, carried, orders, billing, alone):  # noqa: F811
    with contextlib.closing(Dies(billing.url, "; COMMIT", True)) as wire, contextlib.closing(driver.connect(wire.url)) as other:
        driver.join(other)
        billing.insert(other, 1)
        if alone:
            with pytest.raises(OutcomeUnknown):
                transaction.commit()
        else:
            orders.insert(driver.join(orders.url), 1)
            transaction.commit()
            assert orders.values() == [1]
    assert billing.values() == [1] and nothing_is_left(orders, billing)


class Meddles(psycopg.Cursor):
    """An application's own."""

    def execute(self, *arguments, **options):
        super().execute(*arguments, **options)
        return super().execute("select 1/0")


@both_forms
def test_the_applications_cursors_are_not_used(carried, orders, billing, alone):  # noqa: F811
    with contextlib.closing(psycopg.connect(billing.url)) as other:
        unanimous_tm.psycopg.join(other)
        billing.insert(other, 1)
        if not alone:
            orders.insert(unanimous_tm.psycopg.join(orders.url), 1)
        other.cursor_factory = Meddles
        transaction.commit()
    assert billing.values() == [1] and orders.values() == [1] * (not alone) and nothing_is_left(orders, billing)


@both_forms
def test_an_interrupt_of_the_look_at_an_error_proves_nothing(driver, carried, orders, billing, monkeypatch, alone):  # noqa: F811
    """As when it is the second one, behind a commit."""
    with contextlib.closing(driver.connect(billing.url)) as other:
        driver.join(other)
        billing.insert(other, 1)
        (carrier,) = transaction.get()._resources
        if not alone:
            orders.insert(driver.join(orders.url), 1)
        commit = carrier._driver.commit_alone

        def interrupted(*arguments):
            commit(*arguments)
            raise KeyboardInterrupt

        def again(_error):
            raise KeyboardInterrupt

        monkeypatch.setattr(carrier._driver, "commit_alone", interrupted)
        monkeypatch.setattr(carrier._driver, "has_refused", again)
        with pytest.raises(KeyboardInterrupt) as raised:
            transaction.commit()
        assert isinstance(raised.value.__cause__, OutcomeUnknown) == alone
        transaction.abort()
        assert orders.values() == [1] * (not alone) and billing.values() == [1]
        assert nothing_is_left(orders, billing)
        # The connection is the application's again.
        billing.insert(other, 2)
        other.commit()
    assert billing.values() == [1, 2]


@both_forms
def test_what_fails_behind_a_known_commit_does_not_make_it_unknown(driver, carried, orders, billing, caplog, alone):  # noqa: F811
    conn = driver.connect(billing.url)
    completed = []

    def complete():
        conn.close()
        completed.append(1)
        raise ValueError("the pool is closed")

    _postgres.DataManager(conn, on_complete=complete)
    billing.insert(conn, 1)
    if not alone:
        orders.insert(driver.join(orders.url), 1)
    ours = None if alone else prepares()
    # Alone it would be an unknown outcome.
    transaction.commit()
    assert billing.values() == [1] and orders.values() == [1] * (not alone) and completed == [1]
    if ours is not None:
        id = ours._gid.split(":")[1]
        assert billing.execute(f"select asked from unanimous.decision where transaction_id = '{id}'") == [(0,)]
    assert "could not be given back" in caplog.text


@both_forms
def test_a_commit_lasts_whatever_the_databases_setting_is(driver, carried, orders, billing, alone):  # noqa: F811
    """Decisions in any session, in one that is made to keep the statements, and in one that keeps them."""
    billing.execute(f"create table s{billing.table} (n serial, v text)")
    at_commit(billing, f"insert into s{billing.table} (v) values (current_setting('synchronous_commit'))")
    ((name,),) = billing.execute("select current_database()")
    billing.execute(f'alter database "{name}" set synchronous_commit = off')
    try:
        with contextlib.closing(driver.connect(billing.url)) as other:
            for value in range(4):
                driver.join(other)
                billing.insert(other, value)
                if not alone:
                    orders.insert(driver.join(orders.url), value)
                transaction.commit()
            billing.insert(other, 4)
            other.commit()
    finally:
        billing.execute(f'alter database "{name}" reset synchronous_commit')
    assert billing.execute(f"select v from s{billing.table} order by n") == [("on",)] * 4 + [("off",)]


def test_an_error_of_the_works_own_with_the_code_of_what_was_deallocated_is_not_tried_again(driver, carried, orders, billing):  # noqa: F811
    at_commit(billing, "raise 'the work''s own' using errcode = '26000'")
    tries = []

    def work():
        tries.append(1)
        billing.insert(driver.join(billing.url), 1)
        orders.insert(driver.join(orders.url), 1)

    with pytest.raises((psycopg.Error, psycopg2.Error), match="the work's own"):
        transaction.manager.run(work, 3)
    assert len(tries) == 1 and orders.values() == billing.values() == []


# Configuration.


def test_a_configuration_that_is_refused_changes_nothing(configured, orders, billing, tmp_path):
    configured({"orders": orders.url, "billing": billing.url})
    orders.insert(unanimous_tm.psycopg2.join(orders.url), 1)
    with pytest.raises(ValueError, match="the carrier is one of"):
        configured({"others": orders.url}, log=tmp_path / "other", carrier="nobody")
    # What was configured goes on, and is in use.
    billing.insert(unanimous_tm.psycopg2.join(billing.url), 1)
    assert {one.unanimous_resource for one in transaction.get()._resources} == {"orders", "billing"}
    transaction.commit()
    unanimous_tm.shutdown()
    assert unanimous_tm.recover() == []
    assert str(_core.open_log()) == str(tmp_path / "decisions")
    assert orders.values() == billing.values() == [1]


def test_a_carrier_that_can_not_be_reached_before_its_first_branch_is_worth_another_try(driver, configured, billing):  # noqa: F811
    with contextlib.closing(Cut(billing.url, "INSERT INTO unanimous.incarnation", False)) as wire:
        port = psycopg2.extensions.parse_dsn(wire.url)["port"]
        configured({"billing": psycopg2.extensions.make_dsn(billing.url, port=port, sslmode="disable")}, carrier="billing")
        with pytest.raises(TransientError, match="registering"):
            driver.join(billing.url)
        transaction.abort()
        # It can be reached again.
        wire.text = b"nothing like that"
        billing.insert(driver.join(billing.url), 1)
        transaction.commit()
    assert billing.values() == [1]
