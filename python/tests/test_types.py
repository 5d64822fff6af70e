"""The package's types, which its users' checkers read, are right by themselves."""

import shutil
from pathlib import Path

import unanimous_tm
from conftest import python


def test_the_packages_own_types_are_right(tmp_path):
    # Elsewhere, since what is installed is not looked into.
    installed = Path(unanimous_tm.__file__).parent
    shutil.copytree(installed, tmp_path / "unanimous_tm", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    options = ["--python-version=3.10", "--ignore-missing-imports", f"--cache-dir={tmp_path / 'cache'}"]
    said = python("-m", "mypy", *options, "unanimous_tm", cwd=tmp_path)
    assert said.startswith("Success: no issues found"), said


def test_a_users_program_is_checked_by_them(tmp_path):
    (tmp_path / "program.py").write_text(
        "import unanimous_tm\n"
        "from unanimous_tm.wsgi import TM\n"
        "unanimous_tm.configure(log='decisions', resources={'orders': 'dbname=orders'})\n"
        "unanimous_tm.configure(log=7)\n"
        "TM(print, stream='no')\n"
    )
    said = python("-m", "mypy", f"--cache-dir={tmp_path / 'cache'}", "--ignore-missing-imports", "program.py", cwd=tmp_path, status=1)
    lines = [line.split(":")[1] for line in said.splitlines() if ": error:" in line]
    assert lines == ["4", "5"], said
