"""What ``join(notify=...)`` may say: a channel, or a channel and a payload as they follow ``NOTIFY`` in SQL.

Must not know connections.
"""

from __future__ import annotations

import re
from typing import Iterable, Union

Notification = tuple[str, str]

# PostgreSQL 15, 4.1.1 and 4.1.2: identifiers, quoted ones, and the kinds of string constants.
_CHANNEL = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\W\d][\w$]*))\s*(?:,\s*(.+?)\s*)?\Z', re.DOTALL)
_PLAIN = re.compile(r"'((?:[^']|'')*)'\Z", re.DOTALL)
_ESCAPED = re.compile(r"[eE]'((?:[^'\\]|''|\\.)*)'\Z", re.DOTALL)
_DOLLAR = re.compile(r"(\$(?:[^\W\d]\w*)?\$)(.*)\1\Z", re.DOTALL)
_ESCAPE = re.compile(r"''|\\([0-7]{1,3}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def notifications(notify: Union[str, Iterable[str]]) -> list[Notification]:
    """The channels and payloads, each pair once, in the order in which they were asked for.

    :raises ValueError: for what PostgreSQL would refuse.
    """
    texts = [notify] if isinstance(notify, str) else notify
    return list(dict.fromkeys(map(_parse, texts)))


def _parse(text: str) -> Notification:
    found = _CHANNEL.match(text)
    if found is None:
        raise ValueError(f"a notification is a channel's name, or a name, a comma and a quoted string, not {text!r}")
    quoted, plain, data = found.groups()
    channel = _folded(plain) if quoted is None else quoted.replace('""', '"')
    payload = "" if data is None else _string(data, text)
    # Limits of PostgreSQL's NOTIFY: NAMEDATALEN, and "shorter than 8000 bytes".
    if len(channel.encode()) > 63:
        raise ValueError(f"a notification's channel has at most 63 bytes; choose another name: {channel!r}")
    if len(payload.encode()) > 7999:
        raise ValueError("a notification's payload is shorter than 8000 bytes; put the data into a table and notify its key")
    if "\0" in channel or "\0" in payload:
        raise ValueError("PostgreSQL's texts have no NUL; encode the notification")
    return channel, payload


def _folded(name: str) -> str:
    # Without quotes a name is folded, as far as it is ASCII.
    return re.sub("[A-Z]", lambda upper: upper.group().lower(), name)


def _string(data: str, text: str) -> str:
    if found := _PLAIN.match(data):
        return found.group(1).replace("''", "'")
    if found := _ESCAPED.match(data):
        return _ESCAPE.sub(_unescaped, found.group(1))
    if (found := _DOLLAR.match(data)) and found.group(1) not in found.group(2):
        return found.group(2)
    raise ValueError(f"a notification's data is a quoted string, as in \"jobs, 'data'\", not what follows the comma in {text!r}")


def _unescaped(escape: re.Match) -> str:
    code = escape.group(1)
    if code is None:
        return "'"
    if code[0] in "01234567":
        return chr(int(code, 8))
    if code[0] in "xuU" and len(code) > 1:
        return chr(int(code[1:], 16))
    return _SHORT.get(code, code)
