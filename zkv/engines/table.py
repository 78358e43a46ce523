"""The state in memory: keys, with a sorted index beside them, and sessions.

`apply` is deterministic and is the only way in, so the same commits always give the same
table; recovery, before there is an index, loads what comes to the same. No lock and no file
may live here: the engine that owns the table guards it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from sortedcontainers import SortedList

from zkv.engines.sessions import Sessions
from zkv.transaction import Commit, Entry


class Table:
    """A `State` for transactions. Sorted means by code point, which is the order of UTF-8."""

    def __init__(self) -> None:
        self.revision = 0
        self.next_revision = 1
        self.sessions = Sessions()
        self._entries: dict[str, Entry] = {}
        self._index: SortedList[str] | None = None
        self._deadlines: list[tuple[float, str]] = []  # a heap; some are of entries long gone
        self.get = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, key: str, entry: Entry) -> None:
        """Takes what a file holds, while there is no index yet."""
        self._entries[key] = entry

    def drop(self, key: str) -> None:
        """Undoes `load`."""
        self._entries.pop(key, None)

    def apply(self, commit: Commit) -> None:
        """Takes one revision."""
        for key, entry in commit.changes.items():
            if entry is not None:
                self._put(key, entry)
            elif self._entries.pop(key, None) is not None and self._index is not None:
                self._index.remove(key)
        if commit.completed is not None:
            session, seq, fields = commit.completed
            self.sessions.remember(session, seq, fields, commit.revision)
        self.revision = commit.revision
        self.next_revision = commit.revision + 1

    def build_index(self) -> None:
        """Makes `keys`, `count` and `due` work; until then there is only `load`."""
        self._index = SortedList(self._entries)
        self._index_deadlines()

    def keys(self, prefix: str, after: str) -> Iterator[str]:
        assert self._index is not None
        if after >= prefix:
            found = self._index.irange(after, _end_of(prefix), inclusive=(False, False))
        else:
            found = self._index.irange(prefix, _end_of(prefix), inclusive=(True, False))
        return iter(found)

    def count(self, prefix: str) -> int:
        if not prefix:
            return len(self._entries)
        assert self._index is not None
        end = _end_of(prefix)
        stop = len(self._index) if end is None else self._index.bisect_left(end)
        return stop - int(self._index.bisect_left(prefix))

    def due(self, now: float, at_most: int) -> list[str]:
        """Takes out keys whose deadline has come; the caller must delete them."""
        keys: list[str] = []
        while self._deadlines and self._deadlines[0][0] <= now and len(keys) < at_most:
            deadline, key = heapq.heappop(self._deadlines)
            entry = self._entries.get(key)
            if entry is not None and entry.deadline == deadline:
                keys.append(key)
        return keys

    def _put(self, key: str, entry: Entry) -> None:
        old = self._entries.get(key)
        self._entries[key] = entry
        if self._index is None:
            return
        if old is None:
            self._index.add(key)
        if entry.deadline is not None and (old is None or old.deadline != entry.deadline):
            heapq.heappush(self._deadlines, (entry.deadline, key))
            if len(self._deadlines) > 2 * len(self._entries) + 1000:
                self._index_deadlines()

    def _index_deadlines(self) -> None:
        self._deadlines[:] = [
            (entry.deadline, key)
            for key, entry in self._entries.items()
            if entry.deadline is not None
        ]
        heapq.heapify(self._deadlines)


def _end_of(prefix: str) -> str | None:
    """The lowest str above all that begin with the prefix; None when there is no such."""
    kept = prefix.rstrip("\U0010ffff")
    return kept[:-1] + chr(ord(kept[-1]) + 1) if kept else None
