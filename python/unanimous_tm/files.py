"""Files that appear when the transaction commits, and don't when it aborts; also through a crash.

::

    from unanimous_tm import transaction
    from unanimous_tm.files import FileStore

    receipts = FileStore("/srv/receipts")
    receipts.write("7.json", b"heres the data")
    transaction.commit()

Must not know how files are prepared or committed.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Optional, Union

from . import _configuration, transaction

__all__ = ["FileStore"]

_log = logging.getLogger("unanimous_tm.files")

_warned = False

Content = Union[bytes, bytearray, memoryview, str]


class FileStore:
    """A folder whose files take part in transactions. It is made where it is missing.

    Contents are kept in memory until the commit. What others have in the folder stays as it is; several files don't change at the same moment for
    who reads them meanwhile.

    The folder is a resource of the process's manager: configured by `unanimous_tm.configure`, or by being made here before the
    manager is used first. So make it where the program begins.

    Without a configured log a process that dies behind the decision leaves its files claimed: nobody knows the decision, so that the folder takes no
    part in later transactions on these files. That is warned of once, at the first write.

    :param root: the folder.
    :raises RuntimeError: when the manager is in use and does not know the folder.
    """

    def __init__(self, root: Union[str, os.PathLike[str]]) -> None:
        #: The folder, absolute.
        self.root = os.path.abspath(os.fspath(root))
        _configuration.folder(self.root)

    @property
    def name(self) -> str:
        """The name of its resource, as it is configured now."""
        return _configuration.folder(self.root)

    def write(self, path: str, content: Content, trans: Any = None) -> None:
        """Create a file, which must not exist: else the commit raises ``FileExistsError``. Folders on its way are made.

        :param path: relative to the folder.
        :param trans: the transaction; the thread's own where it is left out.
        """
        self._gather("write", path, content, trans)

    def replace(self, path: str, content: Content, trans: Any = None) -> None:
        """Create a file, or replace what is in it."""
        self._gather("replace", path, content, trans)

    def delete(self, path: str, trans: Any = None) -> None:
        """Delete a file, which must exist: else the commit raises ``FileNotFoundError``."""
        self._gather("delete", path, b"", trans)

    def _gather(self, kind: str, path: str, content: Content, trans: Any) -> None:
        global _warned
        if not _warned and not _configuration.is_durable():
            _warned = True
            _log.warning(
                "files are written without a configured log: a process that dies in its commit leaves them claimed for ever;"
                " call unanimous_tm.configure(log=...)"
            )
        if trans is None:
            trans = transaction.get()
        written = content.encode() if isinstance(content, str) else bytes(content)
        try:
            gathered: Optional[_Gathered] = trans.data(self)
        except KeyError:
            gathered = None
        if gathered is None or not gathered.joined:
            gathered = _Gathered(self)
            trans.join(gathered)
            trans.set_data(self, gathered)
        gathered.operations.append((kind, os.fspath(path), written))


class _Gathered:
    """What one transaction does in one folder. The core takes it over at the commit: none of the two phases is called here."""

    transaction_manager = None

    def __init__(self, store: FileStore) -> None:
        #: The core looks for these two.
        self.unanimous_files = store.name
        self.operations: list[tuple[str, str, bytes]] = []
        self.joined = True
        self._root = store.root

    def __repr__(self) -> str:
        return f"<{len(self.operations)} operations in {self._root!r}>"

    def sortKey(self) -> str:  # noqa: N802
        return f"files:{self._root}"

    def abort(self, trans: Any) -> None:
        # Also a rollback to a savepoint from before the join.
        self.operations = []
        self.joined = False

    tpc_begin = commit = tpc_vote = tpc_finish = lambda self, trans: None
    tpc_abort = abort

    def savepoint(self) -> _Savepoint:
        return _Savepoint(self)


class _Savepoint:
    def __init__(self, gathered: _Gathered) -> None:
        self._gathered = gathered
        self._count = len(gathered.operations)

    def rollback(self) -> None:
        del self._gathered.operations[self._count :]
