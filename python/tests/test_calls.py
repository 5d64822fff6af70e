"""What a transaction calls and raises: the same as the ancestor's, but for a tpc_finish that raises."""

import gc
import json
import logging
import threading
import traceback
import weakref

import pytest

from conftest import HERE, python
from unanimous_tm import transaction
from unanimous_tm.transaction.interfaces import (
    AlreadyInTransaction,
    InvalidSavepointRollbackError,
    NoTransaction,
    OutcomeUnknown,
    TransactionFailedError,
    TransientError,
)


class DataManager:
    """Writes down what is called; what is in `does` is done then."""

    def __init__(self, key, log, **does):
        self.key, self.log, self.does = key, log, does

    def sortKey(self):  # noqa: N802
        return self.key

    def _call(self, name, transaction):
        self.log.append((self.key, name))
        if name in self.does:
            self.does[name](transaction)

    def tpc_begin(self, transaction):
        self._call("tpc_begin", transaction)

    def commit(self, transaction):
        self._call("commit", transaction)

    def tpc_vote(self, transaction):
        self._call("tpc_vote", transaction)

    def tpc_finish(self, transaction):
        self._call("tpc_finish", transaction)

    def tpc_abort(self, transaction):
        self._call("tpc_abort", transaction)

    def abort(self, transaction):
        self._call("abort", transaction)


def raises(error):
    def fail(_transaction):
        raise error

    return fail


def test_everything_is_called_as_the_ancestor_calls_it():
    ours, theirs = (json.loads(python(str(HERE / "calls.py"), whose).splitlines()[-1]) for whose in ("ours", "theirs"))
    assert len(theirs) > 50
    for (case, called), (same_case, expected) in zip(ours, theirs, strict=True):
        assert case == same_case
        assert called == expected, case


def test_all_are_finished_when_one_raises_and_the_first_error_is_the_callers(caplog):
    log = []
    first, second = KeyError("first"), ValueError("second")
    manager = transaction.TransactionManager()
    txn = manager.begin()
    txn.join(DataManager("a", log))
    txn.join(DataManager("b", log, tpc_finish=raises(first)))
    txn.join(DataManager("c", log, tpc_finish=raises(second)))
    txn.join(DataManager("d", log))
    with pytest.raises(KeyError) as raised:
        txn.commit()
    assert raised.value is first
    assert log[-4:] == [(key, "tpc_finish") for key in "abcd"]
    assert "Error in tpc_finish() on manager" in caplog.text and "second" in caplog.text
    # To the program the transaction has failed, as with the ancestor: it is aborted before the next one.
    with pytest.raises(TransactionFailedError, match="first"):
        manager.commit()
    manager.abort()
    assert manager.get() is not txn


@pytest.mark.parametrize("where", ["tpc_begin", "commit", "tpc_vote", "tpc_finish"])
def test_what_is_raised_arrives_as_it_is_with_where_it_was_raised(where):
    class Own(BaseException):
        """Not even an Exception, as KeyboardInterrupt is none."""

    error = Own("as it is")
    error.__cause__ = cause = ValueError("its cause")
    txn = transaction.TransactionManager().begin()
    txn.join(DataManager("a", [], **{where: raises(error)}))
    with pytest.raises(Own) as raised:
        txn.commit()
    assert raised.value is error and error.__cause__ is cause
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][-2:] == ["_call", "fail"]


def test_a_transaction_may_be_committed_within_another_ones_commit():
    log = []
    other = transaction.TransactionManager()

    def nested(_transaction):
        txn = other.begin()
        txn.join(DataManager("inner", log))
        txn.commit()

    for where in ("tpc_begin", "tpc_vote", "tpc_finish"):
        log.clear()
        txn = transaction.TransactionManager().begin()
        txn.join(DataManager("outer", log, **{where: nested}))
        txn.commit()
        assert [name for key, name in log if key == "inner"] == ["tpc_begin", "commit", "tpc_vote", "tpc_finish"]
        assert [name for key, name in log if key == "outer"] == ["tpc_begin", "commit", "tpc_vote", "tpc_finish"]


def test_each_thread_has_a_transaction_and_other_threads_may_commit_it():
    log = []
    mine = transaction.begin()
    seen = []

    def elsewhere():
        seen.append(transaction.get())
        mine.join(DataManager("a", log, commit=lambda txn: seen.append(threading.current_thread())))
        mine.commit()
        transaction.abort()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen[0] is not mine and seen[1] is thread
    assert [name for _, name in log] == ["tpc_begin", "commit", "tpc_vote", "tpc_finish"]
    assert transaction.get() is not mine


def test_many_threads_commit_at_once():
    done = []

    def work():
        log = []
        for _ in range(50):
            txn = transaction.begin()
            for key in "cab":
                txn.join(DataManager(key, log))
            txn.commit()
        done.append(log)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    once = [(key, name) for name in ("tpc_begin", "commit", "tpc_vote", "tpc_finish") for key in "abc"]
    assert done == [once * 50] * 8


def test_an_explicit_manager_wants_to_be_told():
    manager = transaction.TransactionManager(explicit=True)
    for name in ("get", "commit", "abort", "doom", "isDoomed", "savepoint"):
        with pytest.raises(NoTransaction):
            getattr(manager, name)()
    with manager as txn:
        assert manager.get() is txn
        with pytest.raises(AlreadyInTransaction):
            manager.begin()
    with pytest.raises(NoTransaction):
        manager.get()


def test_synchronizers_are_held_weakly_and_may_come_while_one_is_open():
    class Synchronizer:
        def __init__(self):
            self.told = []

        def newTransaction(self, txn):  # noqa: N802
            self.told.append("new")

        def beforeCompletion(self, txn):  # noqa: N802
            self.told.append("before")

        def afterCompletion(self, txn):  # noqa: N802
            self.told.append("after")

    manager = transaction.TransactionManager()
    gone, stays = Synchronizer(), Synchronizer()
    manager.registerSynch(gone)
    manager.begin()
    manager.registerSynch(stays)
    reference = weakref.ref(gone)
    del gone
    gc.collect()
    assert reference() is None and manager.registeredSynchs()
    manager.commit()
    assert stays.told == ["new", "before", "after"]


def test_a_rollback_unjoins_who_joined_behind_the_savepoint():
    log = []
    txn = transaction.TransactionManager().begin()
    savepoint = txn.savepoint()
    later = txn.savepoint()
    txn.join(DataManager("a", log))
    assert savepoint.valid and later.valid
    savepoint.rollback()
    assert log == [("a", "abort")]
    assert savepoint.valid and not later.valid
    with pytest.raises(InvalidSavepointRollbackError):
        later.rollback()
    txn.commit()
    assert log == [("a", "abort")], "it takes no part any more"
    assert not savepoint.valid


def test_nothing_of_an_ended_transaction_keeps_what_took_part():
    class Kept:
        pass

    for end in ("commit", "abort"):
        kept = Kept()
        reference = weakref.ref(kept)
        manager = transaction.TransactionManager()
        txn = manager.begin()
        txn.set_data(kept, kept)
        txn.join(DataManager("a", [], tpc_finish=lambda _txn, kept=kept: None))
        txn.addAfterCommitHook(lambda *_: kept)
        getattr(txn, end)()
        del kept
        assert reference() is None, end


def test_a_failure_keeps_no_cycle_that_only_the_collector_ends():
    gc.disable()
    try:
        manager = transaction.TransactionManager()
        txn = manager.begin()

        def no(_transaction):
            raise ValueError("no")

        data_manager = DataManager("a", [], tpc_vote=no)
        reference = weakref.ref(data_manager)
        txn.join(data_manager)
        del data_manager
        try:
            txn.commit()
        except ValueError:
            pass
        manager.abort()
        del txn
        assert reference() is None
    finally:
        gc.enable()


def test_interfaces_are_those_of_zope_where_it_is_installed():
    from zope.interface.verify import verifyClass, verifyObject

    from unanimous_tm.transaction import interfaces

    verifyClass(interfaces.ITransaction, transaction.Transaction)
    verifyObject(interfaces.ITransactionManager, transaction.manager)
    verifyObject(interfaces.ISavepoint, transaction.TransactionManager().begin().savepoint())


def test_it_works_without_zope_interface(program):
    said = program(
        """
import sys
sys.modules["zope"] = sys.modules["zope.interface"] = None
from unanimous_tm import transaction
from unanimous_tm.transaction.interfaces import IDataManager, ISynchronizer, TransientError
tries = []
@transaction.manager.run(3)
def work():
    tries.append(1)
    if len(tries) < 3:
        raise TransientError
print(len(tries), IDataManager.__name__)
"""
    )
    assert said == "3 IDataManager\n"


def test_errors_of_the_cleanup_are_logged_and_change_nothing(caplog):
    caplog.set_level(logging.ERROR)
    log = []
    first = ValueError("the reason")
    txn = transaction.TransactionManager().begin()
    txn.join(DataManager("a", log, abort=raises(KeyError("in abort")), tpc_abort=raises(KeyError("in tpc_abort"))))
    txn.join(DataManager("b", log, commit=raises(first)))
    with pytest.raises(ValueError) as raised:
        txn.commit()
    assert raised.value is first
    assert log[-4:] == [("a", "abort"), ("b", "abort"), ("a", "tpc_abort"), ("b", "tpc_abort")]
    assert "in abort" in caplog.text and "in tpc_abort" in caplog.text


class Sees:
    """A synchronizer that fails behind the end."""

    def newTransaction(self, _transaction):  # noqa: N802
        pass

    beforeCompletion = newTransaction

    def afterCompletion(self, transaction):  # noqa: N802
        if transaction.status == "Committed":
            raise TransientError("behind the commit")


@pytest.mark.parametrize("where", ["tpc_finish", "synchronizer", "unknown"])
@pytest.mark.parametrize("by", ["run", "attempts"])
def test_what_has_committed_or_may_have_is_not_done_again(where, by):
    manager = transaction.TransactionManager()
    synchronizer, tries, told = Sees(), [], []
    if where == "synchronizer":
        manager.registerSynch(synchronizer)

    def work():
        tries.append(1)
        fails = {"tpc_finish": {"tpc_finish": raises(TransientError("no"))}, "unknown": {"tpc_vote": raises(OutcomeUnknown("lost"))}}
        joined = DataManager("a", [], **fails.get(where, {}))
        joined.should_retry = lambda _error: True
        manager.get().join(joined)
        manager.get().addAfterCommitHook(told.append)

    with pytest.raises(OutcomeUnknown if where == "unknown" else TransientError):
        if by == "run":
            manager.run(work, 3)
        for attempt in manager.attempts(3):
            with attempt:
                work()
    assert len(tries) == 1
    assert told == {"tpc_finish": [True], "synchronizer": [], "unknown": [False]}[where]


def test_run_goes_through_the_managers_own_commit_and_abort():
    called = []

    class Own(transaction.TransactionManager):
        def commit(self):
            called.append("commit")
            return super().commit()

        def abort(self):
            called.append("abort")
            return super().abort()

    manager = Own()
    assert manager.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        manager.run(lambda: 1 / 0)
    assert called == ["commit", "abort"]


def test_a_transactions_logger_can_be_set():
    txn = transaction.TransactionManager().begin()
    txn.log = log = logging.getLogger("mine")
    assert txn.log is log
