"""Transactions with the interface of the package ``transaction`` 5.1, on the core of unanimous.

``manager`` is the current thread's; the functions here are its methods. Decisions are the core's: durable and recovered once
`unanimous_tm.configure` was called, in memory before.
"""

from __future__ import annotations

from ._manager import Attempt, ThreadTransactionManager, TransactionManager
from ._transaction import Savepoint, Transaction
from .interfaces import TransientError

__all__ = [
    "Attempt",
    "Savepoint",
    "ThreadTransactionManager",
    "Transaction",
    "TransactionManager",
    "TransientError",
    "abort",
    "attempts",
    "begin",
    "commit",
    "doom",
    "get",
    "isDoomed",
    "manager",
    "run",
    "savepoint",
]

#: Each thread's manager.
manager: ThreadTransactionManager = ThreadTransactionManager()

get = __enter__ = manager.get
begin = manager.begin
commit = manager.commit
abort = manager.abort
__exit__ = manager.__exit__
doom = manager.doom
isDoomed = manager.isDoomed  # noqa: N816
savepoint = manager.savepoint
attempts = manager.attempts
run = manager.run
