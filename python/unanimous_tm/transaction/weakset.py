"""A set of weak references, by identity: what is in it is not kept by it, and need not be hashable.

Must not know what it holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["WeakSet"]


class WeakSet:
    """Objects that are in it as long as somebody else holds them."""

    def __init__(self) -> None:
        #: By their ids. An entry goes with its object, before the id can be another's.
        self.data: dict[int, weakref.ref[Any]] = {}

    def __len__(self) -> int:
        return len(self.data)

    def __contains__(self, ob: object) -> bool:
        return id(ob) in self.data

    def add(self, ob: Any) -> None:
        data, key = self.data, id(ob)
        # The set itself is not held by what is in it.
        data[key] = weakref.ref(ob, lambda gone: data.pop(key, None))

    def remove(self, ob: Any) -> None:
        del self.data[id(ob)]

    def clear(self) -> None:
        self.data.clear()

    def map(self, func: Callable[[Any], Any]) -> None:
        """Call it with each; those that are added meanwhile are left out."""
        for reference in self.as_weakref_list():
            ob = reference()
            if ob is not None:
                func(ob)

    def as_weakref_list(self) -> list[weakref.ref[Any]]:
        return list(self.data.values())
