"""install(), and programs that are run with it in front of them."""

import textwrap

from conftest import HERE, python

SHOW = """
import sys, transaction, transaction.interfaces, transaction._manager, repoze.tm, psycopg2transaction
from transaction.interfaces import TransientError
from repoze.tm import TM, after_end
print(transaction.__name__, transaction.interfaces.__name__, transaction._manager.__name__, repoze.tm.__name__, psycopg2transaction.__name__)
"""

OURS = (
    "unanimous_tm.transaction unanimous_tm.transaction.interfaces unanimous_tm.transaction._manager"
    " unanimous_tm.wsgi unanimous_tm.psycopg2\n"
)


def test_the_ancestors_names_lead_here(program):
    assert program("import unanimous_tm; unanimous_tm.install()\n" + SHOW) == OURS


def test_a_second_install_changes_nothing(program):
    twice = "import unanimous_tm; unanimous_tm.install(stream=True); unanimous_tm.install()\n"
    assert program(twice + "import repoze.tm\nprint(repoze.tm.TM(None)._streams())") == "True\n"


def test_an_original_that_was_imported_is_refused_and_nothing_is_changed(program, tmp_path):
    for name in ("transaction", "psycopg2transaction", "repoze/tm"):
        original = tmp_path / "originals" / f"{name}.py"
        original.parent.mkdir(parents=True, exist_ok=True)
        original.touch()
    for name in ("transaction", "psycopg2transaction", "repoze.tm"):
        said = program(
            f"""
import sys
sys.path.insert(0, {str(tmp_path / "originals")!r})
import {name}
import unanimous_tm
before = dict(sys.modules)
try:
    unanimous_tm.install()
except unanimous_tm.InstallError as error:
    print(error)
print([name for name, module in before.items() if sys.modules[name] is not module])
print([name for name in ("transaction", "psycopg2transaction", "repoze.tm") if name in sys.modules])
"""
        )
        told, changed, there = said.splitlines()
        assert told.startswith(f"{name} has been imported already, from {tmp_path}") and "before" in told
        assert (changed, there) == ("[]", f"['{name}']")


def test_other_packages_of_the_repoze_namespace_stay(program, tmp_path):
    other = tmp_path / "site" / "repoze" / "lru.py"
    other.parent.mkdir(parents=True)
    other.write_text("what = 'a cache'")
    said = program(f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
import unanimous_tm; unanimous_tm.install()
import repoze.lru, repoze.tm
print(repoze.lru.what, repoze.tm.__name__)
""")
    assert said == "a cache unanimous_tm.wsgi\n"


def test_run_puts_it_in_front_of_a_script(tmp_path):
    script = tmp_path / "folder" / "script.py"
    script.parent.mkdir()
    script.with_name("beside.py").write_text("what = 'imported'")
    script.write_text(SHOW + "import beside\nprint(__name__, sys.argv[1:], beside.what)")
    said = python("-m", "unanimous_tm", "run", str(script), "--stream", "-m", "x")
    assert said == OURS + "__main__ ['--stream', '-m', 'x'] imported\n"


def test_run_puts_it_in_front_of_a_module(tmp_path):
    (tmp_path / "mine.py").write_text(SHOW + "print(__name__, sys.argv[1:], repoze.tm.TM(None)._streams())")
    said = python("-m", "unanimous_tm", "run", "--stream", "-m", "mine", "a", cwd=tmp_path)
    assert said == OURS + "__main__ ['a'] True\n"


def test_run_tells_the_programs_status(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(7)")
    python("-m", "unanimous_tm", "run", str(script), status=7)
    script.write_text("raise ValueError('of the script')")
    assert "ValueError: of the script" in python("-m", "unanimous_tm", "run", str(script), status=1)


def test_wrong_command_lines_say_what_is_wrong():
    for line, part in (
        ("", "which command"),
        ("rum x.py", "'rum'"),
        ("run", "run what"),
        ("run -m", "run what"),
        ("run --straem x.py", "'--straem'"),
    ):
        said = python("-m", "unanimous_tm", *line.split(), status=2)
        assert part in said and "usage:" in said, said
    assert python("-m", "unanimous_tm", "--help").startswith("usage:")


def test_threads_of_a_script_outlive_its_last_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import threading, time
            import transaction
            done = threading.Event()
            def work():
                done.wait()
                print("still", transaction.__name__)
            threading.Thread(target=work).start()
            threading.Timer(0.1, done.set).start()
        """)
    )
    assert python("-m", "unanimous_tm", "run", str(script)) == "still unanimous_tm.transaction\n"


def test_each_file_of_tests_says_what_it_is_for():
    for path in HERE.glob("*.py"):
        assert path.read_text().startswith('"""'), path
