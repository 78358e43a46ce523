"""The state in memory: keys, with a sorted index beside them, and sessions.

`apply` is deterministic and is the only way in, so the same commits always give the same
table; recovery, before there is an index, loads what comes to the same. No lock and no file
may live here: the engine that owns the table guards it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Final

from sortedcontainers import SortedList

from zkv.engines.sessions import Sessions
from zkv.transaction import Commit, Entry
from zkv.values import Packed


class Table:
    """A `State` for transactions. Sorted means by code point, which is the order of UTF-8."""

    def __init__(self) -> None:
        self.revision = 0
        self.next_revision = 1
        self.sessions = Sessions()
        self._entries: dict[str, Entry | bytes] = {}
        self._index: SortedList[str] = SortedList()
        self._deadlines: list[tuple[float, str]] = []  # a heap; some are of entries long gone

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, key: str, packed: bytes, version: int, deadline: float | None) -> None:
        """Holds an entry, and leaves the index alone: all there is to do before there is one."""
        small = len(packed) <= _COMPACT_BYTES_MAX and version <= _COMPACT_VERSION_MAX
        if small and deadline is None:
            self._entries[key] = packed + _VERSION.pack(_UINT32, version)
        else:
            self._entries[key] = Entry(packed, version, deadline)

    def drop(self, key: str) -> None:
        """Undoes `load`."""
        self._entries.pop(key, None)

    def apply(self, commit: Commit) -> None:
        """Takes one revision, which is the version of every entry in it.

        Each entry is held as by `load`; to call that for each would take twice as long.
        """
        entries, index = self._entries, self._index
        compact = commit.revision <= _COMPACT_VERSION_MAX
        version = _VERSION.pack(_UINT32, commit.revision) if compact else b""
        for key, entry in commit.changes.items():
            if entry is None:
                if entries.pop(key, None) is not None:
                    index.remove(key)
                continue
            if key not in entries:
                index.add(key)
            held: Entry | bytes = entry
            if entry.deadline is not None:
                self._note_deadline(key, entry.deadline)
            elif compact and len(entry.packed) <= _COMPACT_BYTES_MAX:
                held = entry.packed + version
            entries[key] = held
        if commit.completed is not None:
            self.sessions.remember(commit.completed, commit.revision)
        self.revision = commit.revision
        self.next_revision = commit.revision + 1

    def build_index(self) -> None:
        """Makes `keys`, `count` and `due` work; until then there is only `load`."""
        self._index = SortedList(self._entries)
        self._index_deadlines()

    def get(self, key: str) -> Entry | None:
        entry = self._entries.get(key)
        if isinstance(entry, bytes):
            return Entry(entry[:_VERSION_AT], _VERSION.unpack_from(entry, _VERSION_AT)[1])
        return entry

    def pairs(self, keys: Sequence[str]) -> tuple[list[Any], int]:
        pairs: list[Any] = []
        size = 0
        for key in keys:
            entry = self._entries.get(key)
            if isinstance(entry, bytes):
                pairs.append(Packed(_PAIR + entry))
                size += len(entry)
            elif entry is None:
                pairs.append(None)
            else:
                pairs.append([Packed(entry.packed), entry.version])
                size += len(entry.packed)
        return pairs, size

    def keys(self, prefix: str, after: str) -> Iterator[str]:
        if after >= prefix:
            found = self._index.irange(after, _end_of(prefix), inclusive=(False, False))
        else:
            found = self._index.irange(prefix, _end_of(prefix), inclusive=(True, False))
        return iter(found)

    def count(self, prefix: str) -> int:
        if not prefix:
            return len(self._entries)
        end = _end_of(prefix)
        stop = len(self._index) if end is None else self._index.bisect_left(end)
        return stop - int(self._index.bisect_left(prefix))

    def is_due(self, now: float) -> bool:
        """Whether a deadline has come, though maybe one that was put off since."""
        return bool(self._deadlines) and self._deadlines[0][0] <= now

    def due(self, now: float, at_most: int) -> list[str]:
        """Takes out keys whose deadline has come; the caller must delete them."""
        keys: list[str] = []
        while self._deadlines and self._deadlines[0][0] <= now and len(keys) < at_most:
            deadline, key = heapq.heappop(self._deadlines)
            entry = self.get(key)
            if entry is not None and entry.deadline == deadline:
                keys.append(key)
        return keys

    def _note_deadline(self, key: str, deadline: float) -> None:
        old = self.get(key)
        if old is None or old.deadline != deadline:
            if len(self._deadlines) > 2 * len(self._entries) + 1000:
                self._index_deadlines()  # of what is held, which this one is not yet
            heapq.heappush(self._deadlines, (deadline, key))

    def _index_deadlines(self) -> None:
        """Finds all deadlines again, without those that no entry has any more."""
        self._deadlines[:] = [
            (entry.deadline, key)
            for key, entry in self._entries.items()
            if type(entry) is Entry and entry.deadline is not None
        ]
        heapq.heapify(self._deadlines)


_COMPACT_BYTES_MAX: Final = 1024
_COMPACT_VERSION_MAX: Final = 2**32 - 1
"""A small entry without a deadline is one object, the msgpack of its value and its version: for
a value of 100 bytes 144 bytes of memory, where an Entry has 224; and `get_many` replies with it
as it stands. Beyond 4,294,967,295 revisions a version is larger, and so is the entry."""
_VERSION: Final = Struct(">BI")
_VERSION_AT: Final = -_VERSION.size
_UINT32: Final = 0xCE  # of 5 bytes whatever the version: so it is known where the value ends
_PAIR: Final = b"\x92"


def _end_of(prefix: str) -> str | None:
    """The lowest str above all that begin with the prefix; None when there is no such."""
    kept = prefix.rstrip("\U0010ffff")
    return kept[:-1] + chr(ord(kept[-1]) + 1) if kept else None
