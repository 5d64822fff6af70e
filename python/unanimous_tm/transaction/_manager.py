"""Managers: which transaction is the current one, of an object or of a thread.

Must not know how a transaction ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from ._transaction import Savepoint, Transaction
from .interfaces import AlreadyInTransaction, ITransactionManager, NoTransaction, OutcomeUnknown, TransientError
from .weakset import WeakSet

try:
    from zope.interface import implementer
except ImportError:

    def implementer(*_interfaces: Any) -> Callable[[Any], Any]:  # type: ignore[no-redef,unused-ignore]
        return lambda implemented: implemented


__all__ = ["Attempt", "ThreadTransactionManager", "TransactionManager"]


@implementer(ITransactionManager)
class TransactionManager:
    """Has at most one current transaction, whatever thread asks."""

    def __init__(self, explicit: bool = False) -> None:
        self.explicit = explicit
        self._txn: Transaction | None = None
        self._synchs = WeakSet()

    def begin(self) -> Transaction:
        txn = self._txn
        if txn is not None:
            if self.explicit:
                raise AlreadyInTransaction("end the transaction that is there before you begin another")
            txn.abort()
        txn = self._txn = Transaction(self._synchs, self)
        if self._synchs.data:
            self._synchs.map(lambda synch: synch.newTransaction(txn))
        return txn

    def get(self) -> Transaction:
        txn = self._txn
        if txn is None:
            if self.explicit:
                raise NoTransaction("begin a transaction first")
            txn = self._txn = Transaction(self._synchs, self)
        return txn

    def free(self, txn: Transaction) -> None:
        """For transactions, which are not current any more when they have ended."""
        if txn is not self._txn:
            raise ValueError("the transaction is not the current one")
        self._txn = None

    def commit(self) -> None:
        return self.get().commit()

    def abort(self) -> None:
        return self.get().abort()

    def doom(self) -> None:
        return self.get().doom()

    def isDoomed(self) -> bool:  # noqa: N802
        return self.get().isDoomed()

    def savepoint(self, optimistic: bool = False) -> Savepoint:
        return self.get().savepoint(optimistic)

    def registerSynch(self, synch: Any) -> None:  # noqa: N802
        self._synchs.add(synch)
        if self._txn is not None:
            synch.newTransaction(self._txn)

    def unregisterSynch(self, synch: Any) -> None:  # noqa: N802
        self._synchs.remove(synch)

    def clearSynchs(self) -> None:  # noqa: N802
        self._synchs.clear()

    def registeredSynchs(self) -> bool:  # noqa: N802
        return bool(self._synchs)

    def __enter__(self) -> Transaction:
        return self.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and kind is None:
            self.commit()
        else:
            self.abort()

    def _retryable(self, kind: type[BaseException], error: Any) -> bool:
        txn = self._txn
        if issubclass(kind, OutcomeUnknown) or getattr(txn, "is_committed", False) is True:
            # It would be done twice.
            return False
        if issubclass(kind, TransientError):
            return True
        for datamanager in self.get()._resources:
            should_retry = getattr(datamanager, "should_retry", None)
            if should_retry is not None and should_retry(error):
                return True
        return False

    def attempts(self, number: int = 3) -> Iterator[Attempt | TransactionManager]:
        if number <= 0:
            raise ValueError("the number of attempts must be positive")
        for _ in range(number - 1):
            attempt = Attempt(self)
            yield attempt
            if attempt.success:
                return
        # What the last one raises goes to the caller.
        yield self

    def run(self, func: Any = None, tries: int = 3) -> Any:
        if isinstance(func, int):
            func, tries = None, func
        if func is None:
            return lambda func: self.run(func, tries)
        if tries <= 0:
            raise ValueError("the number of tries must be positive")
        description = _description(func)
        for tried in range(1, tries + 1):
            txn = self.begin()
            if description:
                txn.note(description)
            try:
                result = func()
                self.commit()
                return result
            except BaseException as error:
                # Asked before the abort: the data managers that know have joined.
                again = tried < tries and isinstance(error, Exception) and self._retryable(type(error), error)
                self.abort()
                if not again:
                    raise


def _description(func: Any) -> str:
    """What is noted of a function that is run: its name, where it has one, and its documentation."""
    name, doc = (_text(getattr(func, attribute, None)) for attribute in ("__name__", "__doc__"))
    return "\n\n".join(part for part in (name if name != "_" else "", doc) if part)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


class Attempt:
    """One try of `TransactionManager.attempts`: swallows errors that are worth another one."""

    success = False

    def __init__(self, manager: Any) -> None:
        self.manager = manager

    def __enter__(self) -> Any:
        return self.manager.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if kind is None:
            try:
                self.manager.commit()
            except BaseException as failed:
                if not self._again(type(failed), failed):
                    raise
                return True
            self.success = True
            return False
        if not self._again(kind, error):
            raise error if error is not None else kind
        return True

    def _again(self, kind: type[BaseException], error: BaseException | None) -> bool:
        again = self.manager._retryable(kind, error)
        self.manager.abort()
        return bool(again)


@implementer(ITransactionManager)
class ThreadTransactionManager(threading.local):
    """Each thread has a manager of its own, which is `manager` there. That one may be used by other threads too."""

    def __init__(self) -> None:
        self.manager = TransactionManager()

    @property
    def explicit(self) -> bool:
        """Of this thread's manager."""
        return self.manager.explicit

    @explicit.setter
    def explicit(self, explicit: bool) -> None:
        self.manager.explicit = explicit

    def begin(self) -> Transaction:
        return self.manager.begin()

    def get(self) -> Transaction:
        return self.manager.get()

    def __enter__(self) -> Transaction:
        return self.manager.__enter__()

    def commit(self) -> None:
        return self.manager.commit()

    def abort(self) -> None:
        return self.manager.abort()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return self.manager.__exit__(kind, error, traceback)

    def doom(self) -> None:
        return self.manager.doom()

    def isDoomed(self) -> bool:  # noqa: N802
        return self.manager.isDoomed()

    def savepoint(self, optimistic: bool = False) -> Savepoint:
        return self.manager.savepoint(optimistic)

    def registerSynch(self, synch: Any) -> None:  # noqa: N802
        self.manager.registerSynch(synch)

    def unregisterSynch(self, synch: Any) -> None:  # noqa: N802
        self.manager.unregisterSynch(synch)

    def clearSynchs(self) -> None:  # noqa: N802
        self.manager.clearSynchs()

    def registeredSynchs(self) -> bool:  # noqa: N802
        return self.manager.registeredSynchs()

    def attempts(self, number: int = 3) -> Iterator[Attempt | TransactionManager]:
        return self.manager.attempts(number)

    def run(self, func: Any = None, tries: int = 3) -> Any:
        return self.manager.run(func, tries)
