"""The WSGI middleware: when a response starts, what ends the transaction how, and what is called then."""

import gc
import io
import logging
import sys
import threading
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest

from unanimous_tm import transaction, wsgi
from unanimous_tm.wsgi import TM, after_end, default_commit_veto, isActive, make_tm

TEXT = [("Content-Type", "text/plain")]


class Work:
    """A data manager that notes what becomes of it, in a journal that others write too."""

    def __init__(self, journal, fails=None):
        self.journal = journal
        self.fails = fails

    def tpc_begin(self, _transaction):
        pass

    def commit(self, _transaction):
        pass

    def tpc_vote(self, _transaction):
        if self.fails is not None:
            raise self.fails

    def tpc_finish(self, _transaction):
        self.journal.append("committed")

    def tpc_abort(self, _transaction):
        pass

    def abort(self, _transaction):
        self.journal.append("aborted")

    def sortKey(self):  # noqa: N802
        return "work"


class Request:
    """One request to an application, as a server makes it; what happens is journalled in order."""

    def __init__(self):
        self.journal = []
        self.environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}

    def start_response(self, status, headers, exc_info=None):
        self.journal.append(status)
        return lambda data: self.journal.append(data)

    def work(self, fails=None):
        transaction.get().join(Work(self.journal, fails))

    def send(self, application):
        body = application(self.environ, self.start_response)
        try:
            for part in body:
                self.journal.append(part)
        finally:
            if hasattr(body, "close"):
                body.close()
        return self.journal


@pytest.fixture
def request_():
    return Request()


def test_a_response_starts_when_the_outcome_is_known(request_):
    def application(environ, start_response):
        request_.work()
        start_response("200 OK", TEXT)
        return [b"done"]

    assert request_.send(TM(application)) == ["committed", "200 OK", b"done"]


def test_streamed_it_starts_before(request_):
    def application(environ, start_response):
        request_.work()
        start_response("200 OK", TEXT)
        return [b"one", b"two"]

    assert request_.send(TM(application, stream=True)) == ["200 OK", b"one", b"two", "committed"]


def test_what_a_body_does_while_it_is_made_is_in_the_transaction(request_):
    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"one"
        request_.work()
        yield b"two"

    assert request_.send(TM(application)) == ["committed", "200 OK", b"one", b"two"]


def test_a_commit_that_fails_starts_no_response(request_):
    failure = ValueError("no")

    def application(environ, start_response):
        request_.work(failure)
        after_end.register(lambda: request_.journal.append("after"), transaction.get())
        start_response("200 OK", TEXT)
        return [b"done"]

    with pytest.raises(ValueError) as raised:
        request_.send(TM(application))
    assert raised.value is failure
    # The data manager is told twice, as the ancestors do, and again by the abort of the failed transaction.
    assert request_.journal[-1] == "after" and set(request_.journal[:-1]) == {"aborted"}
    # The thread's next request is not in its way.
    assert Request().send(TM(lambda environ, start: start("200 OK", TEXT) and [b"next"])) == ["200 OK", b"next"]


def test_an_application_that_raises_aborts_and_its_error_goes_on(request_):
    failure = KeyError("of the application")

    def application(environ, start_response):
        request_.work()
        start_response("200 OK", TEXT)
        raise failure

    for stream, journal in ((False, ["aborted"]), (True, ["200 OK", "aborted"])):
        request_.journal.clear()
        with pytest.raises(KeyError) as raised:
            request_.send(TM(application, stream=stream))
        assert raised.value is failure
        assert request_.journal == journal


def test_an_application_that_exits_aborts(request_):
    def application(environ, start_response):
        request_.work()
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        request_.send(TM(application))
    assert request_.journal == ["aborted"]


def test_a_doomed_transaction_is_aborted_and_the_response_sent(request_):
    def application(environ, start_response):
        request_.work()
        transaction.doom()
        start_response("200 OK", TEXT)
        return [b"a preview"]

    assert request_.send(TM(application)) == ["aborted", "200 OK", b"a preview"]


def test_a_veto_aborts_and_the_response_is_sent(request_):
    seen = []

    def application(environ, start_response):
        request_.work()
        start_response("404 Not Found", TEXT)
        return [b"nothing"]

    def veto(environ, status, headers):
        seen.append((environ is request_.environ, status, headers))
        return True

    assert request_.send(TM(application, commit_veto=veto)) == ["aborted", "404 Not Found", b"nothing"]
    assert seen == [(True, "404 Not Found", TEXT)]
    request_.journal.clear()
    assert request_.send(TM(application, commit_veto=lambda *_: None))[0] == "committed"


def test_without_a_veto_an_error_page_commits(request_):
    def application(environ, start_response):
        request_.work()
        start_response("500 Oops", TEXT)
        return [b"sorry"]

    assert request_.send(TM(application))[0] == "committed"


def test_a_veto_that_raises_aborts_and_its_error_goes_on(request_):
    failure = RuntimeError("of the veto")

    def application(environ, start_response):
        request_.work()
        start_response("200 OK", TEXT)
        return [b"done"]

    def veto(environ, status, headers):
        raise failure

    with pytest.raises(RuntimeError) as raised:
        request_.send(TM(application, commit_veto=veto))
    assert raised.value is failure
    assert request_.journal == ["aborted"]


@pytest.mark.parametrize(
    ("status", "headers", "vetoes"),
    [
        ("200 OK", [], False),
        ("302 Found", [], False),
        ("404 Not Found", [], True),
        ("503 Service Unavailable", [], True),
        ("503 Service Unavailable", [("X-Tm", "commit")], False),
        ("503 Service Unavailable", [("x-tm", "COMMIT"), ("X-Tm-Abort", "1")], False),
        ("503 Service Unavailable", [("X-Tm-Abort", "1"), ("X-TM", "Commit")], False),
        ("200 OK", [("X-Tm", "abort")], True),
        ("200 OK", [("X-Tm", "anything")], True),
        ("200 OK", [("X-Tm", "")], True),
        ("200 OK", [("X-Tm", "abort"), ("X-Tm", "commit")], True),
        ("200 OK", [("X-Tm-Abort", "0")], True),
    ],
)
def test_the_default_veto_follows_the_ancestors(status, headers, vetoes):
    assert default_commit_veto({}, status, headers) is vetoes


def test_an_application_that_never_starts_a_response_aborts(request_):
    def application(environ, start_response):
        request_.work()
        return [b"done"]

    with pytest.raises(AssertionError, match="start_response"):
        request_.send(TM(application))
    assert request_.journal == ["aborted"]


def test_what_is_written_comes_first(request_):
    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        request_.work()
        write(b"one")
        write(b"two")
        return [b"three"]

    assert request_.send(TM(application)) == ["committed", "200 OK", b"one", b"two", b"three"]


def test_a_head_is_replaced_by_an_errors(request_):
    told = []

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        try:
            raise ValueError("late")
        except ValueError:
            start_response("500 Oops", TEXT, sys.exc_info())
        with pytest.raises(AssertionError):
            start_response("200 OK", TEXT)
        return [b"sorry"]

    def start_response(status, headers, exc_info=None):
        told.append((status, exc_info and exc_info[0]))

    TM(application)(request_.environ, start_response)
    assert told == [("500 Oops", ValueError)]


def test_the_body_is_closed_by_the_server_behind_the_end(request_):
    class Body:
        def __iter__(self):
            request_.work()
            yield b"done"

        def close(self):
            request_.journal.append("closed")

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        return Body()

    assert request_.send(TM(application)) == ["committed", "200 OK", b"done", "closed"]


def test_the_body_is_closed_where_the_commit_fails(request_):
    class Body(list):
        def close(self):
            request_.journal.append("closed")

    def application(environ, start_response):
        request_.work(ValueError("no"))
        start_response("200 OK", TEXT)
        return Body([b"done"])

    with pytest.raises(ValueError):
        request_.send(TM(application))
    assert request_.journal.count("closed") == 1


def test_a_file_is_left_to_the_server(request_):
    file = FileWrapper(io.BytesIO(b"a long file"))
    request_.environ["wsgi.file_wrapper"] = FileWrapper

    def application(environ, start_response):
        request_.work()
        start_response("200 OK", TEXT)
        return file

    assert TM(application)(request_.environ, request_.start_response) is file
    assert request_.journal == ["committed", "200 OK"]


def test_applied_twice_the_inner_one_steps_aside(request_):
    def application(environ, start_response):
        request_.work()
        start_response("200 OK", TEXT)
        return [b"done"]

    inner = TM(application, commit_veto=lambda *_: pytest.fail("the inner one was to step aside"))
    assert request_.send(TM(inner)) == ["committed", "200 OK", b"done"]
    # A copy of the environ, used again behind the end, is a request of its own.
    request_.journal.clear()
    request_.environ = dict(request_.environ)
    assert request_.send(TM(application)) == ["committed", "200 OK", b"done"]


def test_it_says_that_it_is_active(request_):
    def application(environ, start_response):
        start_response("200 OK", TEXT)
        return [str(isActive(environ)).encode()]

    assert not isActive(request_.environ)
    assert request_.send(TM(application))[-1] == b"True"
    assert request_.environ["repoze.tm.active"] is True


def test_after_end_is_called_behind_commit_and_abort(request_):
    def application(environ, start_response):
        request_.work()
        current = transaction.get()
        for name in ("one", "two", "three"):
            after_end.register(lambda name=name: request_.journal.append(name), current)
        gone = lambda: pytest.fail("it was unregistered")  # noqa: E731
        after_end.register(gone, current)
        after_end.unregister(gone, current)
        start_response("200 OK", TEXT)
        return [b"done"]

    assert request_.send(TM(application)) == ["committed", "one", "two", "three", "200 OK", b"done"]
    request_.journal.clear()
    assert request_.send(TM(application, lambda *_: True)) == ["aborted", "one", "two", "three", "200 OK", b"done"]


def test_an_after_end_callback_that_raises_changes_nothing(request_, caplog):
    def application(environ, start_response):
        current = transaction.get()
        after_end.register(lambda: 1 / 0, current)
        after_end.register(lambda: request_.journal.append("the next"), current)
        start_response("200 OK", TEXT)
        return [b"done"]

    with caplog.at_level(logging.ERROR):
        assert request_.send(TM(application)) == ["the next", "200 OK", b"done"]
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]


def test_a_client_that_goes_away_while_it_is_streamed_to_aborts(request_):
    def application(environ, start_response):
        request_.work()
        start_response("200 OK", TEXT)
        yield b"one"
        yield b"two"

    body = TM(application, stream=True)(request_.environ, request_.start_response)
    assert next(body) == b"one"
    body.close()
    assert request_.journal == ["200 OK", "aborted"]


def test_a_streamed_body_that_another_thread_drops_leaves_that_threads_transaction(request_):
    def application(environ, start_response):
        request_.work()
        start_response("200 OK", TEXT)
        yield b"one"
        yield b"two"

    body = TM(application, stream=True)(request_.environ, request_.start_response)
    next(body)
    bodies, others = [body], Request()
    del body

    def drop():
        others.work()
        bodies.clear()
        gc.collect()
        transaction.commit()

    thread = threading.Thread(target=drop)
    thread.start()
    thread.join()
    assert others.journal == ["committed"]
    assert request_.journal == ["200 OK", "aborted"]


def test_the_server_sees_wsgi_by_the_letter():
    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"done"

    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "QUERY_STRING": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    body = validator(TM(validator(application)))(environ, lambda status, headers, exc_info=None: lambda data: None)
    assert list(body) == [b"done"]
    body.close()


def veto_of_the_tests(environ, status, headers):
    return True


def test_make_tm_takes_a_vetos_name():
    assert make_tm("application", {}).commit_veto is None
    made = make_tm("application", {}, commit_veto=f"{__name__}:veto_of_the_tests", stream="true")
    assert made.commit_veto is veto_of_the_tests and made.stream is True
    assert make_tm("application", {}, stream="false").stream is False
    with pytest.raises(ValueError, match="my.package:function"):
        make_tm("application", {}, commit_veto="no.colon")


INI = """
[pipeline:main]
pipeline =
    {filter}
    mine

[filter:named]
paste.filter_app_factory = unanimous_tm.wsgi:make_tm
commit_veto = unanimous_tm.wsgi:default_commit_veto

[app:mine]
paste.app_factory = test_wsgi:application_of_an_ini_file
"""


def application_of_an_ini_file(global_conf):
    def application(environ, start_response):
        start_response("404 Not Found", TEXT)
        return [str(isActive(environ)).encode()]

    return application


@pytest.mark.parametrize("name", ["named", "egg:unanimous-tm#tm"])
def test_a_pipeline_of_an_ini_file_has_it(name, tmp_path, request_):
    from paste.deploy import loadapp

    (tmp_path / "it.ini").write_text(INI.format(filter=name))
    pipeline = loadapp(f"config:{tmp_path / 'it.ini'}")
    assert isinstance(pipeline, TM)
    assert pipeline.commit_veto is (default_commit_veto if name == "named" else None)
    assert request_.send(pipeline) == ["404 Not Found", b"True"]


def test_what_install_said_counts_for_those_that_say_nothing(monkeypatch):
    monkeypatch.setattr(wsgi, "_stream", True)
    assert TM(None)._streams() and not TM(None, stream=False)._streams()
