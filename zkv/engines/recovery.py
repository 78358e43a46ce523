"""What a data folder holds, read without changing it; and then made fit to go on from.

`recover` finds the full state, or the state before a torn tail, or raises Damaged. A tail
is torn when nothing behind the first bad line proves that the line was ever synced (see
`batch` in `journal`): it is then part of the last batch, which no reply has told of.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from zkv.engines import journal, line, snapshot
from zkv.engines.disk import Disk
from zkv.engines.table import Table
from zkv.errors import Damaged


class Tail(NamedTuple):
    """Where the good lines of a segment end whose writer died, and what stands behind."""

    name: str
    offset: int
    torn_bytes: int
    revision: int


class Recovered(NamedTuple):
    """What a folder holds. `store` is None when it holds nothing yet."""

    store: str | None
    table: Table
    tail: Tail | None
    obsolete: list[str]
    """Files that nothing needs; a crash may leave some."""
    journal_bytes: int
    snapshot_bytes: int


class _Segment(NamedTuple):
    store: str | None
    offset: int
    closed: bool


def recover(disk: Disk) -> Recovered:
    """Reads the folder and changes nothing. Raises Damaged, naming the file and the byte."""
    names = disk.names()
    snapshots = [name for name in names if _is_one_of(name, snapshot.PREFIX)]
    segments = [name for name in names if _is_one_of(name, journal.PREFIX)]
    obsolete = [name for name in names if name.endswith(".jsonl.tmp")] + snapshots[:-1]
    table, store, tail, journal_bytes = Table(), None, None, 0
    if snapshots:
        store, table.revision = snapshot.read_header(disk, snapshots[-1])
        for key, entry in snapshot.read(disk, snapshots[-1], store):
            table.load(key, entry)
    saved = table.revision
    for name in segments:
        segment = _replay(disk, name, store, table)
        store = segment.store or store
        if not segment.closed:
            if name != segments[-1]:
                raise Damaged(f"{name}: it ends at byte {segment.offset} without its footer")
            tail = Tail(name, segment.offset, disk.size(name) - segment.offset, table.revision)
        elif table.revision <= saved:
            obsolete.append(name)
            continue
        journal_bytes += segment.offset
    table.build_index()
    snapshot_bytes = disk.size(snapshots[-1]) if snapshots else 0
    return Recovered(store, table, tail, obsolete, journal_bytes, snapshot_bytes)


def settle(disk: Disk, found: Recovered) -> str | None:
    """Makes the folder one that was closed cleanly; returns the name of what was set aside.

    The segment of a writer that died is written anew, never appended to: after a failed
    sync the page cache may show lines that the disk does not hold. Raises OSError.
    """
    set_aside = None
    for name in found.obsolete:
        disk.unlink(name)
    if found.tail is not None:
        tail = found.tail
        if tail.torn_bytes:
            set_aside = f"{tail.name}.torn-{time.time_ns()}"
            _copy(disk, tail.name, set_aside, range(tail.offset, tail.offset + tail.torn_bytes))
        _close_segment(disk, found, tail)
    disk.sync_folder()
    return set_aside


def _is_one_of(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.endswith(".jsonl")


def _replay(disk: Disk, name: str, store: str | None, table: Table) -> _Segment:
    """Applies a segment's revisions that the table has not seen yet."""
    lines = disk.lines(name)
    head = next(lines, b"")
    try:
        own, first = line.read_header(head, "journal")
    except ValueError as error:
        if isinstance(error, line.OtherFormat) or _has_lines(head, *lines):
            raise Damaged(f"{name}: {error}") from None
        return _Segment(None, 0, False)  # its writer died while making it
    if store is not None and own != store:
        raise Damaged(f"{name}: it belongs to another store")
    if first > table.revision + 1:
        raise Damaged(f"{name}: revisions {table.revision + 1} to {first - 1} are missing")
    seed, offset, expected = line.seed_of(own), len(head), first
    for one in lines:
        try:
            fields = line.unseal(one, seed)
            if "end" in fields:
                if fields["rev"] != expected - 1 or offset + len(one) != disk.size(name):
                    raise Damaged(f"{name}: the footer does not fit what stands around it")
                return _Segment(own, offset + len(one), True)
            record = journal.read_record(fields)
        except ValueError:
            _refuse_if_synced(disk, name, offset, seed, expected)
            break
        if record.commit.revision != expected:
            raise Damaged(
                f"{name}: revision {record.commit.revision} at byte {offset}, "
                f"where {expected} should stand"
            )
        if expected > table.revision:
            table.apply(record.commit)
        offset += len(one)
        expected += 1
    return _Segment(own, offset, False)


def _has_lines(*lines: bytes) -> bool:
    """Whether a segment without a good header ever had more than that."""
    return any(b'"batch":' in one or b'"end":' in one for one in lines)


def _refuse_if_synced(disk: Disk, name: str, offset: int, seed: int, expected: int) -> None:
    """Raises Damaged if a line behind the bad one proves that it was once on disk."""
    for candidate in journal.lines_behind(b"".join(disk.lines(name, offset))):
        try:
            fields = line.unseal(candidate, seed)
        except ValueError:
            continue
        if "end" in fields or fields.get("batch", 0) > expected:
            raise Damaged(
                f"{name}: bad line at byte {offset}, where revision {expected} should stand; "
                f"lines behind it are good, so it was acknowledged"
            )


def _close_segment(disk: Disk, found: Recovered, tail: Tail) -> None:
    empty = found.store is None or tail.name == journal.name_of(tail.revision + 1)
    if empty:
        disk.unlink(tail.name)
        return
    assert found.store is not None
    aside = tail.name + ".tmp"
    footer = journal.footer(tail.revision, line.seed_of(found.store))
    _copy(disk, tail.name, aside, range(tail.offset), footer)
    disk.rename(aside, tail.name)


def _copy(disk: Disk, name: str, new: str, part: range, end: bytes = b"") -> None:
    """Writes a part of a file, and an end, to a new file, and syncs it."""
    handle = disk.create(new)
    try:
        left = len(part)
        for one in disk.lines(name, part.start):
            disk.write(handle, one[:left])
            left -= min(left, len(one))
        disk.write(handle, end)
        disk.sync(handle)
    finally:
        disk.close(handle)
