"""Makes one snapshot of a snapshot and the closed segments behind it.

It reads files and writes a file: the table, its lock and the journal that is being
written have no part in it. Old files go only when the new snapshot is durable.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from zkv.engines import journal, line, snapshot
from zkv.engines.disk import Disk
from zkv.engines.sessions import Sessions, from_json
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
    changes, used = _changes(disk, store, segments)
    base = snapshot.read(disk, snapshots[-1], store) if snapshots else iter(())
    size = snapshot.write(disk, store, upto, _merge(base, changes, used, line.seed_of(store)))
    for name in snapshots + segments:
        if name != snapshot.name_of(upto):
            disk.unlink(name)
    disk.sync_folder()
    return Merged(upto, size)


Changes = dict[str, Entry | None]


def _changes(disk: Disk, store: str, segments: list[str]) -> tuple[Changes, Sessions]:
    """The last change of each key, and the sessions, in closed segments."""
    seed, changes, used = line.seed_of(store), Changes(), Sessions()
    for name in segments:
        for one in islice(disk.lines(name), 1, None):
            fields = line.unseal(one, seed)
            if "end" not in fields:
                commit = journal.read_record(fields).commit
                changes.update(commit.changes)
                if commit.completed is not None:
                    used.remember(*commit.completed, commit.revision)
    return changes, used


def _merge(
    base: Iterator[tuple[dict[str, Any], bytes]], changes: Changes, used: Sessions, seed: int
) -> Iterator[bytes]:
    """The lines of the base, with the changes in their places."""
    sessions = Sessions()

    def kept() -> Iterator[tuple[str, bytes]]:
        for fields, one in base:
            if "session" in fields:
                sessions.remember(*from_json(fields["session"]), fields["rev"])
            elif fields["key"] not in changes:
                yield fields["key"], one

    changed = (
        (key, snapshot.entry_line(key, entry, seed))
        for key, entry in sorted(changes.items())
        if entry is not None
    )
    for _, one in heapq.merge(kept(), changed):
        yield one
    for completed, revision in used.completed():
        sessions.remember(*completed, revision)
    for completed, revision in sessions.completed():
        yield snapshot.session_line(completed, revision, seed)
