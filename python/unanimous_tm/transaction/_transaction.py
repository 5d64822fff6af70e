"""One transaction: what has joined it, its hooks, savepoints and notes. Its two phases are the core's.

``commit`` calls the before-hooks, hands the joined data managers to the core in one call, and calls the after-hooks. Nothing here decides
anything.

Must not know the protocol, nor how a decision is made durable.
"""

from __future__ import annotations

import logging
import operator
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import StringIO
from typing import Any

from .. import _core
from .interfaces import (
    DoomedTransaction,
    InvalidSavepointRollbackError,
    ISavepoint,
    ITransaction,
    TransactionFailedError,
)
from .weakset import WeakSet

try:
    from zope.interface import implementer
except ImportError:

    def implementer(*_interfaces: Any) -> Callable[[Any], Any]:  # type: ignore[no-redef,unused-ignore]
        return lambda implemented: implemented


__all__ = ["AbortSavepoint", "NoRollbackSavepoint", "Savepoint", "Status", "Transaction"]

Hook = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

#: Where the traceback of a failure is kept, where a test wants to have it.
_TB_BUFFER: Any = None

#: The logger of transactions, where a test wants to have it; else it is the thread's.
_LOGGER: Any = None


class Status:
    """What a transaction is in."""

    ACTIVE = "Active"
    COMMITTING = "Committing"
    COMMITTED = "Committed"
    DOOMED = "Doomed"
    COMMITFAILED = "Commit failed"


_ACTIVE, _COMMITTING, _COMMITTED = Status.ACTIVE, Status.COMMITTING, Status.COMMITTED
_DOOMED, _COMMITFAILED = Status.DOOMED, Status.COMMITFAILED
_commit = _core.commit


#: What data managers are sorted by, where all have it.
_sort_key = operator.methodcaller("sortKey")


def rm_key(datamanager: Any) -> Any:
    """What data managers are sorted by."""
    sort_key = getattr(datamanager, "sortKey", None)
    return None if sort_key is None else sort_key()


def _order(datamanager: Any) -> tuple[bool, Any]:
    # Those without a key come last, as they have joined: the data manager in the ancestor's document has none.
    key = rm_key(datamanager)
    return key is None, key


@implementer(ITransaction)
class Transaction:
    """A unit of work. Most need none of what is None here, so that it costs them nothing."""

    status: str = _ACTIVE

    _user = ""
    _description = ""
    _extension_made: dict[str, Any] | None = None
    _data: dict[int, Any] | None = None
    _before_commit: list[Hook] | None = None
    _after_commit: list[Hook] | None = None
    _before_abort: list[Hook] | None = None
    _after_abort: list[Hook] | None = None
    #: Those that are valid, with their order.
    _savepoints: weakref.WeakKeyDictionary[Savepoint, int] | None = None
    _savepoint_index = 0
    _failure_traceback: Any = None
    _log: Any = None
    #: The ids of its branches that must know them before the commit.
    _ids: Any = None
    #: It was decided to commit, although a data manager has raised behind that.
    _decided = False

    def __init__(self, synchronizers: Any = None, manager: Any = None) -> None:
        self._synchronizers = synchronizers
        self._manager = manager
        self._resources: list[Any] = []

    @property
    def log(self) -> Any:
        """The logger of the thread's transactions, where no other was set."""
        return self._log or _LOGGER or logging.getLogger(f"txn.{threading.get_ident()}")

    @log.setter
    def log(self, log: Any) -> None:
        self._log = log

    @property
    def is_committed(self) -> bool:
        """Whether it has committed, also where ``commit`` has raised what a data manager, a hook or a synchronizer did behind that."""
        return self._decided or self.status == _COMMITTED

    # What takes part.

    def join(self, resource: Any) -> None:
        status = self.status
        if status is not _ACTIVE and status is not _DOOMED:
            if status == _COMMITFAILED:
                self._prior_operation_failed()
            if status != _DOOMED:
                raise ValueError(f"expected txn status {_ACTIVE!r} or {_DOOMED!r}, but it's {status!r}")
        self._resources.append(resource)
        if self._savepoints:
            # For them it is not there: a rollback to one of them aborts it.
            undo = AbortSavepoint(resource, self)
            for savepoint in list(self._savepoints):
                savepoint._savepoints.append(undo)

    def _unjoin(self, resource: Any) -> None:
        self._resources = [joined for joined in self._resources if joined is not resource]

    # Commit.

    def commit(self) -> None:
        if self.status == _DOOMED:
            raise DoomedTransaction("transaction doomed, cannot commit")
        if self._savepoints is not None:
            self._invalidate_all_savepoints()
        if self.status == _COMMITFAILED:
            self._prior_operation_failed()
        if self._before_commit:
            self._call_hooks("_before_commit")
        synchronizers = self._synchronizers
        if synchronizers is not None and (type(synchronizers) is not WeakSet or synchronizers.data):
            synchronizers.map(self._before_completion)
        self.status = _COMMITTING
        resources = self._resources
        if resources:
            try:
                if len(resources) > 1:
                    try:
                        resources = sorted(resources, key=_sort_key)
                    except AttributeError:
                        resources = sorted(resources, key=_order)
                failed = _commit(self, resources)
                if failed is not None:
                    # What a tpc_finish has raised: it is committed all the same.
                    self._decided = True
                    self.log.critical("A storage error occurred during the second phase of the two-phase commit.")
                    raise failed
            except BaseException as error:
                self._commit_failed(error)
                raise
        self.status = _COMMITTED
        if synchronizers is not None and (type(synchronizers) is not WeakSet or synchronizers.data):
            self._after_completion(synchronizers)
        if self._after_commit:
            self._call_hooks("_after_commit", True)
        self._free()

    def _commit_failed(self, error: BaseException) -> None:
        try:
            self._after_completion(self._synchronizers)
        except BaseException as other:
            # It is the caller's error now.
            self._fail(other)
            raise
        else:
            self._fail(error)
        finally:
            if self._after_commit:
                self._call_hooks("_after_commit", self._decided)

    def _fail(self, error: BaseException) -> None:
        """From here on nothing but an abort is left of it."""
        self.status = _COMMITFAILED
        buffer = _TB_BUFFER
        if buffer is None:
            buffer = StringIO()
        buffer.writelines(traceback.format_exception(type(error), error, error.__traceback__))
        self._failure_traceback = buffer

    def _prior_operation_failed(self) -> None:
        told = self._failure_traceback.getvalue()
        raise TransactionFailedError(f"An operation previously failed, with traceback:\n\n{told}")

    # Abort.

    def abort(self) -> None:
        failed: BaseException | None = None
        try:
            if self._before_abort:
                self._call_hooks("_before_abort")
            if self._savepoints is not None:
                self._invalidate_all_savepoints()
            synchronizers = self._synchronizers
            if synchronizers is not None:
                try:
                    synchronizers.map(self._before_completion)
                except BaseException as error:
                    failed = error
                    self.log.error("Failed to call beforeCompletion", exc_info=True)
            for resource in self._resources:
                try:
                    resource.abort(self)
                except BaseException as error:
                    if failed is None:
                        failed = error
                    self.log.error("Failed to abort resource manager: %s", resource, exc_info=True)
            if self._after_abort:
                self._call_hooks("_after_abort")
            self._free_manager()
            self._after_completion(synchronizers)
            if failed is not None:
                raise failed
        finally:
            self._free()
            del failed

    def _free_manager(self) -> None:
        manager = self._manager
        if manager is not None:
            self._manager = None
            manager.free(self)

    def _free(self) -> None:
        """It has ended: lets go of everything."""
        manager = self._manager
        if manager is not None:
            self._manager = None
            manager.free(self)
        self._synchronizers = None
        if self._resources:
            self._resources = []
        if self._data is not None:
            self._data = None
        if self._before_commit is not None:
            self._before_commit = None
        if self._after_commit is not None:
            self._after_commit = None
        if self._before_abort is not None:
            self._before_abort = None
        if self._after_abort is not None:
            self._after_abort = None

    # Synchronizers.

    def _before_completion(self, synchronizer: Any) -> None:
        synchronizer.beforeCompletion(self)

    def _after_completion(self, synchronizers: Any) -> None:
        if synchronizers is not None:
            synchronizers.map(lambda synchronizer: synchronizer.afterCompletion(self))

    # Doom.

    def doom(self) -> None:
        if self.status != _DOOMED:
            if self.status != _ACTIVE:
                raise ValueError("non-doomable")
            self.status = _DOOMED

    def isDoomed(self) -> bool:  # noqa: N802
        return self.status == _DOOMED

    # Savepoints.

    def savepoint(self, optimistic: bool = False) -> Savepoint:
        if self.status == _COMMITFAILED:
            self._prior_operation_failed()
        try:
            savepoint = Savepoint(self, optimistic, *self._resources)
        except BaseException as error:
            _core.clean_up(self, self._resources)
            self._fail(error)
            raise
        if self._savepoints is None:
            self._savepoints = weakref.WeakKeyDictionary()
        self._savepoint_index += 1
        self._savepoints[savepoint] = self._savepoint_index
        return savepoint

    def _remove_and_invalidate_after(self, savepoint: Savepoint) -> None:
        """Those that were made behind it are valid no more."""
        savepoints = self._savepoints
        if savepoints is None:
            raise KeyError(savepoint)
        index = savepoints[savepoint]
        for other, its_index in list(savepoints.items()):
            if its_index > index:
                other.transaction = None
                del savepoints[other]

    def _invalidate_all_savepoints(self) -> None:
        if self._savepoints is not None:
            for savepoint in list(self._savepoints):
                savepoint.transaction = None
            self._savepoints.clear()

    # Hooks.

    def _add_hook(self, moment: str, hook: Callable[..., Any], args: Iterable[Any], kws: Mapping[str, Any] | None) -> None:
        hooks = getattr(self, moment)
        if hooks is None:
            hooks = []
            setattr(self, moment, hooks)
        hooks.append((hook, tuple(args), dict(kws) if kws else {}))

    def addBeforeCommitHook(  # noqa: N802
        self, hook: Callable[..., Any], args: Iterable[Any] = (), kws: Mapping[str, Any] | None = None
    ) -> None:
        self._add_hook("_before_commit", hook, args, kws)

    def addAfterCommitHook(  # noqa: N802
        self, hook: Callable[..., Any], args: Iterable[Any] = (), kws: Mapping[str, Any] | None = None
    ) -> None:
        self._add_hook("_after_commit", hook, args, kws)

    def addBeforeAbortHook(  # noqa: N802
        self, hook: Callable[..., Any], args: Iterable[Any] = (), kws: Mapping[str, Any] | None = None
    ) -> None:
        self._add_hook("_before_abort", hook, args, kws)

    def addAfterAbortHook(  # noqa: N802
        self, hook: Callable[..., Any], args: Iterable[Any] = (), kws: Mapping[str, Any] | None = None
    ) -> None:
        self._add_hook("_after_abort", hook, args, kws)

    def getBeforeCommitHooks(self) -> Iterator[Hook]:  # noqa: N802
        return iter(self._before_commit or ())

    def getAfterCommitHooks(self) -> Iterator[Hook]:  # noqa: N802
        return iter(self._after_commit or ())

    def getBeforeAbortHooks(self) -> Iterator[Hook]:  # noqa: N802
        return iter(self._before_abort or ())

    def getAfterAbortHooks(self) -> Iterator[Hook]:  # noqa: N802
        return iter(self._after_abort or ())

    def _call_hooks(self, moment: str, *first: Any) -> None:
        """Calls the hooks of a moment, also those that they add; afterwards there are none.

        Before a commit and behind an abort the first error goes to the caller; else it is logged, and the next one called. Behind the end, data managers
        abort once more what hooks may have done in them.
        """
        hooks = getattr(self, moment)
        try:
            # Grows while it is gone through.
            for hook, args, kws in hooks:
                try:
                    hook(*first, *args, **kws)
                except BaseException:
                    if moment in ("_before_commit", "_after_abort"):
                        raise
                    self.log.error("Error in hook exec in %s ", hook, exc_info=True)
        finally:
            if moment in ("_after_commit", "_after_abort"):
                for resource in self._resources:
                    try:
                        resource.abort(self)
                    except BaseException:
                        self.log.error("Error in abort() on manager %s", resource, exc_info=True)
            setattr(self, moment, None)
            if moment == "_after_commit":
                self._before_commit = None

    # Notes.

    @property
    def user(self) -> str:
        return self._user

    @user.setter
    def user(self, user: Any) -> None:
        if user is None:
            raise ValueError("user must not be None")
        self._user = _text(user)

    def setUser(self, user_name: Any, path: Any = "/") -> None:  # noqa: N802
        user_name, path = _text(user_name), _text(path)
        self._user = f"{path} {user_name}"

    @property
    def description(self) -> str:
        return self._description

    @description.setter
    def description(self, text: Any) -> None:
        if text is not None:
            self._description = _text(text)

    def note(self, text: Any) -> None:
        if text is None:
            return
        text = _text(text).strip()
        self._description = f"{self._description}\n{text}" if self._description else text

    @property
    def extension(self) -> dict[str, Any]:
        made = self._extension_made
        if made is None:
            made = self._extension_made = {}
        return made

    @extension.setter
    def extension(self, extension: dict[str, Any]) -> None:
        self._extension_made = extension

    # ZEO sets it.
    _extension = extension

    def setExtendedInfo(self, name: str, value: Any) -> None:  # noqa: N802
        self.extension[name] = value

    def data(self, ob: Any) -> Any:
        kept = (self._data or {}).get(id(ob))
        if kept is None:
            raise KeyError(ob)
        return kept[1]

    def set_data(self, ob: Any, data: Any) -> None:
        if self._data is None:
            self._data = {}
        # The object is kept too, or its id could become another's.
        self._data[id(ob)] = (ob, data)

    def isRetryableError(self, error: BaseException) -> bool:  # noqa: N802
        return self._manager is not None and self._manager._retryable(type(error), error)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    # Behind the method or property that was given it.
    warnings.warn("Expected text", DeprecationWarning, stacklevel=3)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@implementer(ISavepoint)
class Savepoint:
    """A transaction's savepoint: one of each data manager."""

    def __init__(self, transaction: Any, optimistic: bool, *resources: Any) -> None:
        self.transaction = transaction
        self._savepoints: list[Any] = []
        for resource in resources:
            make = getattr(resource, "savepoint", None)
            if make is not None:
                self._savepoints.append(make())
            elif optimistic:
                self._savepoints.append(NoRollbackSavepoint(resource))
            else:
                raise TypeError("Savepoints unsupported", resource)

    @property
    def valid(self) -> bool:
        return self.transaction is not None

    def rollback(self) -> None:
        transaction = self.transaction
        if transaction is None:
            raise InvalidSavepointRollbackError("invalidated by a later savepoint")
        transaction._remove_and_invalidate_after(self)
        try:
            for savepoint in self._savepoints:
                savepoint.rollback()
        except BaseException as error:
            transaction._fail(error)
            raise


class AbortSavepoint:
    """Of a data manager that joined behind the savepoint: a rollback aborts it, and it takes no part any more."""

    def __init__(self, datamanager: Any, transaction: Any) -> None:
        self.datamanager = datamanager
        self.transaction = transaction

    def rollback(self) -> None:
        self.datamanager.abort(self.transaction)
        self.transaction._unjoin(self.datamanager)


class NoRollbackSavepoint:
    """Of a data manager without savepoints, made optimistically."""

    def __init__(self, datamanager: Any) -> None:
        self.datamanager = datamanager

    def rollback(self) -> None:
        raise TypeError("Savepoints unsupported", self.datamanager)

