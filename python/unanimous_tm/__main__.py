"""``python -m unanimous_tm run``: a program that must not be touched, with :func:`unanimous_tm.install` in front of it.

Must not know what the program does.
"""

from __future__ import annotations

import os
import runpy
import sys

from ._install import InstallError, install

USAGE = """\
usage: python -m unanimous_tm run [--stream] SCRIPT [ARGUMENT ...]
       python -m unanimous_tm run [--stream] -m MODULE [ARGUMENT ...]

Runs the script or module as python would, with unanimous in the place of transaction, repoze.tm and psycopg2transaction.

--stream   WSGI responses start before the outcome is known, as with repoze.tm

Decisions are durable where the environment says so: UNANIMOUS_LOG=FOLDER, and UNANIMOUS_RESOURCE_NAME=DSN for each database."""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"], ["help"]):
        print(USAGE)
        return 0
    if arguments[:1] != ["run"]:
        return _wrong("which command?" if not arguments else f"there is no command {arguments[0]!r}")
    arguments = arguments[1:]
    stream = arguments[:1] == ["--stream"]
    if stream:
        arguments = arguments[1:]
    if not arguments or arguments == ["-m"]:
        return _wrong("run what?")
    is_module = arguments[0] == "-m"
    if arguments[0].startswith("-") and not is_module:
        return _wrong(f"unexpected option {arguments[0]!r}")
    try:
        install(stream=True if stream else None)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if is_module:
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        if not getattr(sys.flags, "safe_path", False):
            # As `python SCRIPT` has it, in the place of `python -m`'s current folder.
            sys.path[0] = os.path.dirname(os.path.realpath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


def _wrong(what: str) -> int:
    print(f"error: {what}\n\n{USAGE}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
