"""The calls of the two phases, on several data managers one after another: loops that the interpreter is quicker at than its callers.

Must not know when they are called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional


def begin(transaction: Any, managers: Iterable[Any]) -> None:
    for manager in managers:
        manager.tpc_begin(transaction)


def flush(transaction: Any, managers: Iterable[Any]) -> None:
    for manager in managers:
        manager.commit(transaction)


def vote(transaction: Any, managers: Iterable[Any]) -> Optional[tuple[int, BaseException]]:
    """How many voted before one said no, and how it said it."""
    voted = 0
    try:
        for manager in managers:
            manager.tpc_vote(transaction)
            voted += 1
    except BaseException as error:
        return voted, error
    return None


def finish(transaction: Any, managers: Iterable[Any]) -> Optional[BaseException]:
    """All of them are finished; the first error is the caller's, and those behind it are logged."""
    failed: Optional[BaseException] = None
    for manager in managers:
        try:
            manager.tpc_finish(transaction)
        except BaseException as error:
            if failed is None:
                failed = error
            else:
                transaction.log.error("Error in tpc_finish() on manager %s", manager, exc_info=True)
    return failed
