"""What is configured, and when the process's manager is opened by it: at first use, so that who never commits holds nothing open.

A forked child has none of its parent's: it opens a log of its own at its first use.

Must not know transactions.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, Union

from . import _core

__all__ = ["InDoubt", "configure", "recover", "shutdown"]

_Path = Union[str, "os.PathLike[str]"]

#: How long the interpreter's exit waits for what is under way, in seconds.
EXIT_WAIT = 5.0

_RESOURCE = "UNANIMOUS_RESOURCE_"
_CARRIER = "UNANIMOUS_CARRIER"

#: What the names of folders begin with that no configuration names.
_FOLDER = "files:"

_lock = threading.Lock()
_log: Optional[str] = None
_resources: dict[str, str] = {}
_carrier: Optional[str] = None
_options: dict[str, Any] = {}
#: The environment is looked at once, and what is said in the program goes before it.
_looked = False


class InDoubt(NamedTuple):
    """A branch, or a store, that recovery could not finish in its last pass."""

    resource: str
    #: None where the store could not be asked at all.
    transaction: Optional[str]
    #: None where its store does not list it.
    branch: Optional[str]
    why: str


def configure(
    log: Optional[_Path] = None,
    resources: Optional[Mapping[str, str]] = None,
    *,
    carrier: Optional[str] = None,
    phase_two_wait: float = 5.0,
    recovery_interval: float = 60.0,
    horizon: Optional[float] = None,
    max_log_size: Optional[int] = None,
) -> None:
    """Make decisions durable, and recover what they are about. Without it, they are in memory.

    Nothing is opened before it is used. A manager that is open is closed, in order, and opened anew.

    :param log: the folder of the decision log, which is made where it is missing. Each process has one of its own: this, or one of the folders
        ``worker-1``, ``worker-2`` in it. ``UNANIMOUS_LOG`` where it is left out. Without resources, or with a relative path, think of the
        next start: it must find the same.
    :param resources: by names that are the same over restarts: connection strings of PostgreSQL databases, and folders as ``file:/srv/receipts``.
        Each ``UNANIMOUS_RESOURCE_NAME`` of the environment is one more, ``name``.
    :param carrier: the name of a PostgreSQL database among the resources whose branch decides where it takes part with others: it is not prepared,
        but commits last, with the decision as a row, which saves a forced write. ``UNANIMOUS_CARRIER`` where it is left out. It
        needs a log, which says whose rows they are and decides the transactions that the carrier has no part in.
    :param phase_two_wait: how many seconds a commit waits, behind the decision, for branches that don't confirm; recovery goes on with them.
    :param recovery_interval: how often, in seconds, stores are asked for branches in doubt although none is known.
    :param horizon: how many seconds finished decisions are kept; a week where it is left out, and a day in a carrier.
    :param max_log_size: the bytes that a log may take; 48 MiB where it is left out.
    """
    global _log, _resources, _carrier, _options
    options = {
        "phase_two_wait": phase_two_wait,
        "recovery_interval": recovery_interval,
        "horizon": horizon,
        "max_log_size": max_log_size,
    }
    with _lock:
        _look()
        new_log, new_resources, new_carrier = _log, _resources, _carrier
        if log is not None:
            new_log = os.path.realpath(os.fspath(log))
        if resources is not None:
            made = {name: url for name, url in _resources.items() if name.startswith(_FOLDER)}
            new_resources = {**_environment(), **resources}
            # A FileStore that was made before stays one, by the name that its folder has now.
            named = {_folder_of(url) for url in new_resources.values()}
            new_resources.update({name: url for name, url in made.items() if _folder_of(url) not in named})
            # One that is no resource any more carries nothing.
            new_carrier = os.environ.get(_CARRIER) or None
        if carrier is not None:
            new_carrier = carrier
        # What is refused changes nothing.
        _check_carrier(new_log, new_resources, new_carrier)
        _core.close(EXIT_WAIT)
        _log, _resources, _carrier, _options = new_log, new_resources, new_carrier, options


def recover() -> list[InDoubt]:
    """Open the manager if it is not, let it recover now, and return what is left in doubt. Who commits needs not call it."""
    return [InDoubt(*left) for left in _core.recover()]


def shutdown(deadline: float = EXIT_WAIT) -> None:
    """End the manager: wait at most so many seconds for what is under way, and let the log go. The next commit opens it anew."""
    with _lock:
        _core.close(deadline)


def folder(root: str) -> str:
    """The name of the resource that a folder is; it becomes one where it is none and the manager is not open yet."""
    with _lock:
        _look()
        for name, url in _resources.items():
            if _folder_of(url) == root:
                return name
        if _core.is_open():
            raise RuntimeError(
                f"the transaction manager is in use and does not know the folder {root!r}: make the FileStore where the program begins, or"
                " name the folder in unanimous_tm.configure(resources={...: 'file:" + root + "'})"
            )
        name = f"{_FOLDER}{root}"
        _resources[name] = f"file:{root}"
        return name


def _folder_of(url: str) -> Optional[str]:
    return os.path.abspath(url[len("file:") :]) if url.startswith("file:") else None


def is_durable() -> bool:
    """Whether a log is configured."""
    with _lock:
        _look()
        return _log is not None


def open_engine() -> None:
    """For the core, which calls it where no manager is open."""
    with _lock:
        if not _core.is_open():
            _look()
            _check_carrier(_log, _resources, _carrier)
            _core.open(_log, _resources, carrier=_carrier, **_options)


def _check_carrier(log: Optional[str], resources: Mapping[str, str], carrier: Optional[str]) -> None:
    if carrier is None:
        return
    if resources.get(carrier, "file:").startswith("file:"):
        known = sorted(name for name, url in resources.items() if not url.startswith("file:"))
        raise ValueError(f"the carrier is one of the PostgreSQL databases that are configured ({', '.join(known)}), not {carrier!r}")
    if log is None:
        raise ValueError("a carrier needs a log, which says whose decisions its rows are: configure(log=..., carrier=...)")


def _look() -> None:
    """Takes over what the environment says, once."""
    global _log, _resources, _carrier, _looked
    if not _looked:
        _looked = True
        log = os.environ.get("UNANIMOUS_LOG")
        if log:
            _log = os.path.realpath(log)
        _resources = _environment()
        _carrier = os.environ.get(_CARRIER) or None


def _environment() -> dict[str, str]:
    return {name[len(_RESOURCE) :].lower(): url for name, url in os.environ.items() if name.startswith(_RESOURCE)}


def _forked() -> None:
    """In the child: nothing of the parent's is used, closed or written to, and its locks are not kept when it dies."""
    global _lock
    _lock = threading.Lock()
    if _log is not None:
        # Also what is being opened or closed at that moment, and the logs of dead workers that the parent has taken over.
        _let_go(_log)
    _core.forget()


def _let_go(log: str) -> None:
    # A lock lasts as long as any process has its file open.
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return
    for number in numbers:
        try:
            path = os.readlink(f"/proc/self/fd/{number}")
            if path == log or path.startswith(log + os.sep):
                os.close(int(number))
        except OSError:
            # The one that lists them is gone by now.
            continue


def _exit() -> None:
    _core.close(EXIT_WAIT)


os.register_at_fork(after_in_child=_forked)
atexit.register(_exit)
