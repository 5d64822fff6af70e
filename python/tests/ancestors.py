"""Runs an ancestor's own tests, and prints their results as JSON: ``ancestors.py ours|theirs SUITE``.

``theirs`` is the original code, ``ours`` is this package under the ancestors' names, by ``install(stream=True)``. The source distributions are
in the folder UNANIMOUS_TEST_ANCESTORS; only their tests and documents are used with ours.

Must not know which results are right: test_ancestors.py does.
"""

import doctest
import importlib
import io
import json
import os
import sys
import tarfile
import types
import unittest
from pathlib import Path

DOCUMENTS = ("savepoint", "doom", "hooks", "datamanager", "convenience", "integrations")


def unpacked(name):
    """The folder of a source distribution, unpacked beside it."""
    folder = Path(os.environ["UNANIMOUS_TEST_ANCESTORS"])
    (archive,) = folder.glob(f"{name}-*.tar.gz")
    made = folder / archive.name.removesuffix(".tar.gz")
    if not made.exists():
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(folder, filter="data")
            else:
                tar.extractall(folder)
    return made


def sources():
    """Where the originals can be imported from, after a path to each."""
    return [str(unpacked(name) / "src") for name in ("transaction", "psycopg2transaction", "repoze_tm2")]


def arrange(whose):
    if whose == "theirs":
        sys.path[:0] = sources()
        return
    import unanimous_tm

    unanimous_tm.install(stream=True)
    import transaction

    # The ancestor's tests are part of its package.
    tests = types.ModuleType("transaction.tests")
    tests.__path__ = [str(unpacked("transaction") / "src/transaction/tests")]
    sys.modules["transaction.tests"] = transaction.tests = tests


def documents():
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL | doctest.DONT_ACCEPT_TRUE_FOR_1  # as Sphinx has them
    results = {}
    for name in DOCUMENTS:
        path = unpacked("transaction") / "docs" / f"{name}.rst"
        parsed = doctest.DocTestParser().get_doctest(path.read_text(), {}, name, str(path), 0)
        runner, said = doctest.DocTestRunner(optionflags=flags), io.StringIO()
        runner.run(parsed, out=said.write)
        results[name] = [runner.tries, runner.failures, said.getvalue()]
        import transaction

        transaction.abort()
    return results


class Results(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.all = {}

    def startTest(self, test):  # noqa: N802
        super().startTest(test)
        self.all[test.id()] = "passed"

    def addError(self, test, error):  # noqa: N802
        self.all[test.id()] = "error: " + self._exc_info_to_string(error, test)

    addFailure = addError

    def addSkip(self, test, reason):  # noqa: N802
        self.all[test.id()] = "skipped: " + reason


def suite(*modules):
    results = Results()
    loader = unittest.TestLoader()
    for module in modules:
        loader.loadTestsFromModule(importlib.import_module(module)).run(results)
    return results.all


def psycopg2transaction():
    folder = unpacked("psycopg2transaction") / "src/psycopg2transaction"
    sys.path.insert(0, str(folder))
    return suite("tests")


def main(whose, what):
    arrange(whose)
    if what == "documents":
        results = documents()
    elif what == "transaction":
        names = ("test__manager", "test__transaction", "test_savepoint", "test_weakset")
        results = suite(*(f"transaction.tests.{name}" for name in names))
    else:
        results = psycopg2transaction()
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
