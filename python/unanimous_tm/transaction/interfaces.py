"""What a transaction, its manager and its data managers have to each other; and every exception.

Where ``zope.interface`` is installed the ``I...`` names are interfaces of it, so that ``implementer`` and ``verifyObject`` work with
them; elsewhere they are plain classes of the same names and methods, which only describe.

Must not know how anything is done.
"""

# Methods of interfaces have no self, which no checker understands.
# mypy: ignore-errors

from __future__ import annotations

from typing import Any

try:
    from zope.interface import Attribute, Interface
except ImportError:  # nothing here needs it

    class Interface:
        """A description; nothing is checked by it."""

    def Attribute(doc: str) -> Any:
        return property(doc=doc)


__all__ = [
    "AlreadyInTransaction",
    "DoomedTransaction",
    "IDataManager",
    "IDataManagerSavepoint",
    "IRecoverableDataManager",
    "IRetryDataManager",
    "ISavepoint",
    "ISavepointDataManager",
    "ISynchronizer",
    "ITransaction",
    "ITransactionManager",
    "InvalidSavepointRollbackError",
    "NoTransaction",
    "OutcomeUnknown",
    "TransactionError",
    "TransactionFailedError",
    "TransientError",
]


class ITransactionManager(Interface):
    """Begins and ends transactions, one after another; the current one is ``get()``.

    As a context manager: a transaction begins, and is committed, or aborted where the block raises.
    """

    explicit = Attribute("Whether a transaction must be begun with begin(), and not twice.")

    def begin():
        """Begin a transaction and return it.

        One that is there is aborted before; an explicit manager raises `AlreadyInTransaction` instead. Synchronizers are told by
        ``newTransaction``, which they are not where a transaction begins by itself.
        """

    def get():
        """The current transaction. Where there is none one begins; an explicit manager raises `NoTransaction`."""

    def commit():
        """Commit the current transaction."""

    def abort():
        """Abort the current transaction."""

    def doom():
        """Doom the current transaction: it can only be aborted."""

    def isDoomed():
        """Whether the current transaction is doomed."""

    def savepoint(optimistic=False):
        """A savepoint of the current transaction, as `ITransaction.savepoint`."""

    def registerSynch(synch):
        """Register an `ISynchronizer`, which is held weakly. It is told of a transaction that is there already."""

    def unregisterSynch(synch):
        """Take a synchronizer out again."""

    def clearSynchs():
        """Take all synchronizers out."""

    def registeredSynchs():
        """Whether any synchronizer is registered."""

    def attempts(number=3):
        """Up to ``number`` context managers, one for each try: ``for attempt in manager.attempts(): with attempt: ...``

        A block that succeeds is committed and ends the loop. An error that `ITransaction.isRetryableError` names aborts, and
        the loop goes on; the last try raises it.
        """

    def run(func=None, tries=3):
        """Call ``func()`` in a transaction and commit it; up to ``tries`` times where errors are retryable.

        Without a function it returns a decorator, which calls what it decorates at once.
        """


class ITransaction(Interface):
    """A unit of work: commits in all of its data managers or in none."""

    user = Attribute("Who does it; text.")
    description = Attribute("What it does; text, see `note`.")
    extension = Attribute("A dictionary of what the application says of it.")

    def commit():
        """Commit: the two phases over all data managers, in the order of their sort keys."""

    def abort():
        """Give it up, before the two phases have begun or after they have failed."""

    def doom():
        """From now on ``commit`` raises `DoomedTransaction`; all else goes on as before."""

    def savepoint(optimistic=False):
        """An `ISavepoint` of what was done so far.

        Data managers that have none raise ``TypeError``; with ``optimistic`` only when it is rolled back.
        """

    def join(datamanager):
        """Let an `IDataManager` take part."""

    def note(text):
        """Add a line to the description."""

    def setExtendedInfo(name, value):
        """Set one entry of `extension`."""

    def addBeforeCommitHook(hook, args=(), kws=None):
        """Call ``hook(*args, **kws)`` when commit was called and before it has begun. What it raises ends the commit."""

    def getBeforeCommitHooks():
        """The hooks to come, as ``(hook, args, kws)``."""

    def addAfterCommitHook(hook, args=(), kws=None):
        """Call ``hook(committed, *args, **kws)`` behind a commit, with whether it succeeded. What it raises is logged."""

    def getAfterCommitHooks():
        """The hooks to come, as ``(hook, args, kws)``."""

    def addBeforeAbortHook(hook, args=(), kws=None):
        """Call ``hook(*args, **kws)`` when abort was called and before it has begun. Not behind a commit that failed."""

    def getBeforeAbortHooks():
        """The hooks to come, as ``(hook, args, kws)``."""

    def addAfterAbortHook(hook, args=(), kws=None):
        """Call ``hook(*args, **kws)`` behind an abort."""

    def getAfterAbortHooks():
        """The hooks to come, as ``(hook, args, kws)``."""

    def set_data(ob, data):
        """Keep data for an object (its identity is the key) until the transaction ends."""

    def data(ob):
        """The data that was kept for an object; ``KeyError`` where there is none."""

    def isRetryableError(error):
        """Whether the transaction is worth repeating for this error: a `TransientError`, or one that a joined `IRetryDataManager` names."""


class IDataManager(Interface):
    """The part of a transaction in one store.

    The calls of a commit: ``tpc_begin commit tpc_vote (tpc_finish | tpc_abort)``.
    """

    transaction_manager = Attribute("The `ITransactionManager` that it works with.")

    def abort(transaction):
        """Forget all changes, outside of the two phases. It takes no part any more; for new changes it joins again."""

    def tpc_begin(transaction):
        """The first phase begins."""

    def commit(transaction):
        """Send the changes to the store, so that they last if ``tpc_finish`` follows, and don't if ``tpc_abort`` does."""

    def tpc_vote(transaction):
        """Promise to be able to finish; raise to say no. The last chance for that."""

    def tpc_finish(transaction):
        """It is decided: make the changes last. Must not fail; what it raises goes to the caller, and the others are finished."""

    def tpc_abort(transaction):
        """Give up all changes. Must not fail; what it raises is logged."""

    def sortKey():
        """A text; data managers are called in its order, so that two transactions lock in the same one."""


class ISavepointDataManager(IDataManager):
    """A data manager that has savepoints."""

    def savepoint():
        """An `IDataManagerSavepoint` of what was done so far."""


class IRetryDataManager(IDataManager):
    """A data manager that knows its store's passing errors."""

    def should_retry(exception):
        """Whether the transaction is worth repeating for this error."""


class IRecoverableDataManager(IDataManager):
    """A data manager whose branch another connection can finish, after a crash too. (The ancestor has none.)

    Its methods are called in place of ``tpc_vote``, ``tpc_finish`` and, once it was asked to prepare, ``tpc_abort``.
    """

    unanimous_resource = Attribute("The name of the configured resource that its branch is in; None makes it an ordinary data manager.")

    def prepare_branch(gid):
        """Prepare under this id; raise to say no."""

    def commit_branch():
        """Commit what was prepared. Where it raises, the resource commits it by its id."""

    def rollback_branch():
        """Roll back what was, or may be, prepared. Where it raises, the resource rolls it back by its id."""

    def forget_branch():
        """Nobody knows the outcome: leave what is prepared to recovery, and do nothing for it any more, also when ``abort`` is called."""


class IDataManagerSavepoint(Interface):
    """A savepoint of one data manager; for transactions' savepoints only, which know whether it is valid."""

    def rollback():
        """Undo what was done since."""


class ISavepoint(Interface):
    """A savepoint of a transaction."""

    valid = Attribute("Whether it can be rolled back to: its transaction is open, and no earlier one was rolled back.")

    def rollback():
        """Undo what was done since. `InvalidSavepointRollbackError` where it is not valid."""


class ISynchronizer(Interface):
    """Told of each transaction's begin and end."""

    def newTransaction(transaction):
        """A transaction was begun by ``begin()``."""

    def beforeCompletion(transaction):
        """A commit or an abort begins."""

    def afterCompletion(transaction):
        """A commit or an abort has ended."""


class TransactionError(Exception):
    """Something that transactions raise in the ordinary course."""


class TransactionFailedError(TransactionError):
    """The transaction has failed before; nothing but an abort is left of it."""


class DoomedTransaction(TransactionError):
    """A doomed transaction can't be committed; abort it."""


class TransientError(TransactionError):
    """It may succeed when it is tried again."""


class NoTransaction(TransactionError):
    """An explicit manager has no transaction; begin one."""


class AlreadyInTransaction(TransactionError):
    """An explicit manager has a transaction; end it before you begin another."""


class OutcomeUnknown(TransactionError):
    """Nobody can say yet whether the transaction committed; recovery will find out. Not to be repeated blindly. (The ancestor has none.)"""

    #: The transaction's id, as it is in the log and in the stores.
    transaction_id: str | None = None


class InvalidSavepointRollbackError(Exception):
    """The savepoint's transaction has ended, or an earlier savepoint was rolled back."""
