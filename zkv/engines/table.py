"""The keys in memory: a dict, with a sorted index beside it.

`apply` is deterministic and is the only way in, so replaying the same commits always gives
the same table. No lock and no file may live here: the engine that owns the table guards it.
"""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedList

from zkv.transaction import Commit, Entry


class Table:
    """A `State` for transactions. Sorted means by code point, which is the order of UTF-8."""

    def __init__(self) -> None:
        self.revision = 0
        self._entries: dict[str, Entry] = {}
        self._index: SortedList[str] | None = None
        self.get = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, key: str, entry: Entry) -> None:
        """Takes an entry of a snapshot."""
        self._entries[key] = entry

    def apply(self, commit: Commit) -> None:
        """Takes one revision."""
        for key, entry in commit.changes.items():
            if entry is not None:
                if self._index is not None and key not in self._entries:
                    self._index.add(key)
                self._entries[key] = entry
            elif self._entries.pop(key, None) is not None and self._index is not None:
                self._index.remove(key)
        self.revision = commit.revision

    def build_index(self) -> None:
        """Sorts the keys. Until then `apply` is cheaper, and `keys` and `count` do not work."""
        self._index = SortedList(self._entries)

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


def _end_of(prefix: str) -> str | None:
    """The lowest str above all that begin with the prefix; None when there is no such."""
    kept = prefix.rstrip("\U0010ffff")
    return kept[:-1] + chr(ord(kept[-1]) + 1) if kept else None
