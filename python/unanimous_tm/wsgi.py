"""WSGI middleware that puts each request into a transaction; the interface of ``repoze.tm``.

::

    from unanimous_tm.wsgi import TM, default_commit_veto

    application = TM(application, commit_veto=default_commit_veto)

A request's transaction is committed unless the application raises, the transaction is doomed, or the veto says so. The response
starts when the outcome is known: status, headers and body are kept until then. ``stream=True`` restores the ancestor's order, in which
the client can have been sent a 200 before the commit fails.

Must not know data managers, nor how a transaction is committed.
"""

from __future__ import annotations

import importlib
import logging
import threading
from typing import Any, Callable, Iterable, Iterator, Optional

from . import transaction

__all__ = ["TM", "AfterEnd", "after_end", "default_commit_veto", "ekey", "isActive", "make_tm"]

#: The key in a request's environ that says that the middleware is there.
ekey = "repoze.tm.active"

# Shared by all copies that are made of a request's environ, so that all of them see the transaction's end.
_SCOPE = "unanimous.tm"

# What `TM(stream=None)` means: the default, which `install(stream=True)` changes for all.
_stream = False

_log = logging.getLogger(__name__)

Headers = list[tuple[str, str]]
Veto = Callable[[dict[str, Any], str, Headers], Any]


class TM:
    """Middleware that begins a transaction for each request, and ends it.

    :param application: any WSGI application.
    :param commit_veto: called with environ, status and headers of the response; a true answer aborts. It aborts also where it
        raises, and its error goes on.
    :param stream: true: the response is passed on as it comes, and the commit follows its last part. False: it is held until
        the outcome is known. None: as :func:`unanimous_tm.install` said, which is false where it said nothing.
    """

    def __init__(self, application: Callable, commit_veto: Optional[Veto] = None, stream: Optional[bool] = None) -> None:
        self.application = application
        self.commit_veto = commit_veto
        self.stream = stream

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        if self._streams():
            return self._streamed(environ, start_response)
        outer = environ.get(_SCOPE)
        if outer is not None and outer.active:
            # Applied twice: the transaction is the outer one's to end.
            return self.application(environ, start_response)
        return self._held(environ, start_response)

    def commit(self) -> None:
        """Commits the current transaction. Where that fails the transaction is aborted, and after that the error raised."""
        current = transaction.get()
        try:
            current.commit()
        except BaseException:
            # A failed transaction stays the thread's until it is aborted.
            _quietly("aborting a transaction whose commit failed", current.abort)
            _quietly("after_end", after_end.cleanup, current)
            raise
        self._ended(current)

    def abort(self) -> None:
        """Aborts the current transaction."""
        current = transaction.get()
        try:
            current.abort()
        except BaseException:
            _quietly("after_end", after_end.cleanup, current)
            raise
        self._ended(current)

    def _streams(self) -> bool:
        return _stream if self.stream is None else self.stream

    def _ended(self, ended: Any) -> None:
        if self._streams():
            after_end.cleanup(ended)
        else:
            # The outcome is known, and a callback can't change it: the client is to hear of the outcome.
            _quietly("after_end", after_end.cleanup, ended)

    def _end(self, environ: dict[str, Any], response: _Response) -> None:
        """Commits or aborts, as doom and veto say."""
        if transaction.isDoomed():
            self.abort()
            return
        if self.commit_veto is not None:
            try:
                veto = self.commit_veto(environ, *response.head())
            except BaseException:
                self.abort()
                raise
            if veto:
                self.abort()
                return
        self.commit()

    def _held(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        scope = environ[_SCOPE] = _Scope()
        environ[ekey] = True
        transaction.begin()
        response = _Response()
        body: Any = ()
        try:
            try:
                body = self.application(environ, response.start)
                kept = _keep(body, environ)
                response.head()
            except BaseException:
                _quietly("aborting a request's transaction", self.abort)
                raise
            self._end(environ, response)
        except BaseException:
            close = getattr(body, "close", None)
            if close is not None:
                _quietly("closing a response's body", close)
            raise
        finally:
            scope.active = False
        response.send(start_response)
        if kept is body and not response.written:
            return kept
        return _Body([*response.written, *kept], getattr(body, "close", None))

    def _streamed(self, environ: dict[str, Any], start_response: Callable) -> Iterator[bytes]:
        environ[ekey] = True
        transaction.begin()
        begun, thread = transaction.get(), threading.get_ident()
        response = _Response()

        def start(status: str, headers: Headers, exc_info: Any = None) -> Callable:
            response.started = (status, headers)
            return start_response(status, headers, exc_info)

        body: Any = ()
        try:
            try:
                body = self.application(environ, start)
                yield from body
            except BaseException:
                # Also when the client went away (`GeneratorExit`): else the transaction would hold its locks until the thread's next.
                # A generator that is collected may end in any thread, whose current transaction is not this one.
                abort = self.abort if threading.get_ident() == thread else begun.abort
                _quietly("aborting a request's transaction", abort)
                raise
            self._end(environ, response)
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()


class _Scope:
    """Whether a request's transaction has not ended yet."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active = True


class _Response:
    """What the application has said of its response so far."""

    __slots__ = ("started", "exc_info", "written")

    def __init__(self) -> None:
        self.started: Optional[tuple[str, Headers]] = None
        self.exc_info: Any = None
        self.written: list[bytes] = []

    def start(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], None]:
        """The `start_response` of PEP 3333. Nothing was sent yet, so that an error's head always replaces the one before."""
        if self.started is not None and exc_info is None:
            raise AssertionError("start_response was called twice; a second call needs exc_info (PEP 3333)")
        self.started = (status, headers)
        self.exc_info = exc_info
        return self.written.append

    def head(self) -> tuple[str, Headers]:
        if self.started is None:
            raise AssertionError("the application has not called start_response (PEP 3333)")
        return self.started

    def send(self, start_response: Callable) -> None:
        status, headers = self.head()
        try:
            if self.exc_info is None:
                start_response(status, headers)
            else:
                start_response(status, headers, self.exc_info)
        finally:
            # A traceback would keep all frames of the request alive.
            self.exc_info = None


class _Body:
    """A body that is there already, with the application's `close`, which is the server's to call."""

    __slots__ = ("_parts", "_close")

    def __init__(self, parts: list[bytes], close: Optional[Callable[[], Any]]) -> None:
        self._parts = parts
        self._close = close

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def __len__(self) -> int:
        # Servers add a Content-Length where there is one part.
        return len(self._parts)

    def close(self) -> None:
        close, self._close = self._close, None
        if close is not None:
            close()


def _keep(body: Iterable[bytes], environ: dict[str, Any]) -> Iterable[bytes]:
    """The body, when all of the application's work for it is done."""
    if type(body) in (list, tuple):
        return body
    wrapper = environ.get("wsgi.file_wrapper")
    if isinstance(wrapper, type) and isinstance(body, wrapper):
        # A file's bytes are no work of the application's, and the server may have its own way to send them.
        return body
    return list(body)


def _quietly(doing: str, function: Callable, *arguments: Any) -> None:
    """Calls what must not hide an error or an outcome that is there already."""
    try:
        function(*arguments)
    except Exception:
        _log.exception("an error while %s", doing)


def isActive(environ: dict[str, Any]) -> bool:
    """Whether the middleware is in front of the application that got this environ."""
    return ekey in environ


class AfterEnd:
    """What is called when a transaction has ended: after a commit, after an abort, and when a commit failed.

    Use the one that is there, :data:`after_end`. Callbacks are called by :class:`TM`: without it they are kept as long as the
    transaction is.
    """

    #: The attribute of a transaction that keeps them.
    key = "_repoze_tm_afterend"

    def register(self, func: Callable[[], Any], txn: Any) -> None:
        """Calls `func` without arguments when this transaction has ended."""
        callbacks = getattr(txn, self.key, None)
        if callbacks is None:
            setattr(txn, self.key, [func])
        else:
            callbacks.append(func)

    def unregister(self, func: Callable[[], Any], txn: Any) -> None:
        """Takes `func` away. Nothing happens where it is not registered."""
        callbacks = getattr(txn, self.key, None)
        if callbacks is None:
            return
        left = [callback for callback in callbacks if callback is not func]
        if left:
            setattr(txn, self.key, left)
        else:
            delattr(txn, self.key)

    def cleanup(self, txn: Any) -> None:
        """Calls all, in the order of their registration, each of them once. Where some raise, the first error is raised behind the last."""
        callbacks = getattr(txn, self.key, None)
        if callbacks is None:
            return
        delattr(txn, self.key)
        first = None
        for callback in callbacks:
            try:
                callback()
            except Exception as error:
                if first is None:
                    first = error
                else:
                    _log.exception("an error in an after_end callback")
        if first is not None:
            raise first


#: The registry that :class:`TM` calls.
after_end = AfterEnd()


def default_commit_veto(environ: Any, status: str, headers: Iterable[tuple[str, Any]]) -> bool:
    """Whether a response aborts its transaction.

    The first header ``X-Tm`` decides: ``commit`` commits, whatever the status, and any other value aborts. Without one, a header
    ``X-Tm-Abort`` aborts; else a status that begins with 4 or 5.
    """
    aborts = False
    for name, value in headers:
        name = name.lower()
        if name == "x-tm":
            return value.lower() != "commit"
        if name == "x-tm-abort":
            aborts = True
    return aborts or status.startswith(("4", "5"))


def make_tm(app: Callable, global_conf: Any, commit_veto: Optional[str] = None, stream: Any = None) -> TM:
    """PasteDeploy's ``filter_app_factory``.

    :param commit_veto: ``my.package:function``.
    :param stream: ``true`` or ``false``; see :class:`TM`.
    """
    veto = None if commit_veto is None else _named(commit_veto)
    return TM(app, veto, None if stream is None else str(stream).lower() in ("true", "yes", "on", "1"))


def _named(path: str) -> Any:
    module, colon, names = path.partition(":")
    if not colon or not names:
        raise ValueError(f"a commit veto is named as my.package:function, not {path!r}")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found
