"""Makes one snapshot of a snapshot and the closed segments behind it.

It reads files and writes a file: the table, its lock and the journal that is being
written have no part in it. Old files go only when the new snapshot is durable.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from zkv.engines import journal, line, snapshot
from zkv.engines.disk import Disk
from zkv.transaction import Entry


class Merged(NamedTuple):
    """What a compaction came to."""

    revision: int
    bytes: int


def compact(disk: Disk, store: str, upto: int) -> Merged:
    """Brings everything up to this revision, where a segment must end, into one snapshot.

    Raises Damaged, ValueError or OSError; the folder then holds all that it held before.
    """
    names = disk.names()
    snapshots = [n for n in names if n.startswith(snapshot.PREFIX) and n.endswith(".jsonl")]
    segments = [n for n in names if journal.PREFIX < n <= journal.name_of(upto)]
    changes = _changes(disk, store, segments)
    base = _entry_lines(disk, snapshots[-1], store) if snapshots else iter(())
    size = snapshot.write(disk, store, upto, _merge(base, changes, line.seed_of(store)))
    for name in snapshots + segments:
        if name != snapshot.name_of(upto):
            disk.unlink(name)
    disk.sync_folder()
    return Merged(upto, size)


def _changes(disk: Disk, store: str, segments: list[str]) -> dict[str, Entry | None]:
    """The last change of each key in closed segments."""
    seed, changes = line.seed_of(store), dict[str, Entry | None]()
    for name in segments:
        for one in islice(disk.lines(name), 1, None):
            fields = line.unseal(one, seed)
            if "end" not in fields:
                changes.update(journal.read_record(fields).commit.changes)
    return changes


def _entry_lines(disk: Disk, name: str, store: str) -> Iterator[tuple[str, bytes]]:
    for fields, one in snapshot.read_lines(disk, name, store):
        yield fields["key"], one


def _merge(
    base: Iterator[tuple[str, bytes]], changes: dict[str, Entry | None], seed: int
) -> Iterator[bytes]:
    """The lines of the base, with the changes in their places."""
    kept = (pair for pair in base if pair[0] not in changes)
    changed = (
        (key, snapshot.entry_line(key, entry, seed))
        for key, entry in sorted(changes.items())
        if entry is not None
    )
    for _, one in heapq.merge(kept, changed):
        yield one
