"""What a data folder holds, read without changing it; and then made fit to go on from.

`recover` finds the full state, or the state before a torn tail, or raises Damaged. A tail
is torn when nothing behind the first bad line proves that the line was ever synced (see
`batch` in `journal`): it is then part of the last batch, which no reply has told of.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from zkv import values
from zkv.engines import journal, line, snapshot, watermark
from zkv.engines.disk import Disk
from zkv.engines.line import OnBytes
from zkv.engines.table import Table
from zkv.errors import Damaged, OtherFormat

OnProgress = Callable[[int, int, int], None]
"""Is told how many bytes were read, of how many, and how many keys that makes."""

_HEADER_BYTES_MAX: Final = 150
"""Of a segment; with a line behind it, it is longer, and then the header was on disk."""


class Segment(NamedTuple):
    """What a segment holds, up to the end of its last good line."""

    name: str
    store: str | None
    """None if its writer died before the header was on disk."""
    offset: int
    """Where the good lines end."""
    torn_bytes: int = 0
    """What stands behind them."""
    closed: bool = False
    empty: bool = True
    revision: int = 0
    reserved: int | None = None


class Recovered(NamedTuple):
    """What a folder holds. `store` is None when it holds nothing yet."""

    store: str | None
    table: Table
    ends: list[Segment]
    """The last segment; where it is empty, nothing proves that the one before it is on disk."""
    obsolete: list[str]
    """Files that nothing needs; a crash may leave some."""
    segments: int
    journal_bytes: int
    """Of the segments that no snapshot has taken in yet."""
    snapshot: snapshot.Written

    @property
    def tail(self) -> Segment | None:
        return self.ends[-1] if self.ends else None


def holds_store(disk: Disk) -> bool:
    """Whether the folder has any file of a store, good or bad."""
    files = disk.data_files(snapshot.PREFIX) + disk.data_files(journal.PREFIX)
    return bool(files) or watermark.NAME in disk.names()


def recover(disk: Disk, on_progress: OnProgress = lambda *_: None) -> Recovered:
    """Reads the folder and changes nothing.

    Raises Damaged, naming the file and the byte, OtherFormat, and OSError.
    """
    # It only makes objects that stay: looking for garbage among them took a third of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _recover(disk, on_progress)
    finally:
        if collecting:
            gc.enable()


def _recover(disk: Disk, on_progress: OnProgress) -> Recovered:
    snapshots, segments = disk.data_files(snapshot.PREFIX), disk.data_files(journal.PREFIX)
    obsolete = disk.leftovers() + snapshots[:-1]
    store, ends, journal_bytes, saved = None, list[Segment](), 0, 0
    table = Table()
    sizes = {name: journal.data_bytes(disk, name) for name in segments}
    done, total = 0, sum(map(disk.size, snapshots[-1:])) + sum(sizes.values())

    def on_bytes(size: int) -> None:
        nonlocal done
        done += size
        on_progress(done, total, len(table))

    if snapshots:
        store = snapshot.load(disk, snapshots[-1], table, on_bytes)
        saved = table.revision
    for name, size in sizes.items():
        is_open = ends != [] and not ends[-1].closed
        if ends and _is_left_over(disk, name, size, ends[-1], table.revision):
            obsolete.append(name)
            continue
        if is_open:
            raise Damaged(f"{ends[-1].name}: it ends at byte {ends[-1].offset} without its footer")
        segment = _replay(disk, name, size, store, table, on_bytes)
        store = segment.store or store
        if segment.closed and table.next_revision <= saved + 1:
            obsolete.append(name)
            continue
        ends = [*ends[-1:], segment] if segment.empty else [segment]
        journal_bytes += segment.offset
    last = segments[-1] if segments else snapshots[-1] if snapshots else watermark.NAME
    store = _check_watermark(disk, store, table.revision, ends[-1] if ends else None, last)
    table.build_index()
    size = disk.size(snapshots[-1]) if snapshots else 0
    written = snapshot.Written(saved, size)
    return Recovered(store, table, ends, obsolete, len(segments), journal_bytes, written)


def _check_watermark(
    disk: Disk, store: str | None, revision: int, tail: Segment | None, last: str
) -> str | None:
    """Raises Damaged if something is missing that was on disk once; returns the store id."""
    mark = watermark.read(disk)
    if mark is None:
        return store
    if store is not None and mark.store != store:
        raise Damaged(f"{watermark.NAME}: it belongs to another store")
    if revision < mark.revision:
        where = f"behind {last}"
        if tail is not None and not tail.closed:
            where = f"{tail.name}: cut or damaged at byte {tail.offset}"
        raise Damaged(f"{where}: revisions {revision + 1} to {mark.revision} are missing")
    return mark.store


def settle(disk: Disk, found: Recovered) -> str | None:
    """Makes the folder one that was closed cleanly; returns the name of what was set aside.

    The segment of a writer that died is written anew, never appended to: after a failed
    sync the page cache may show lines that the disk does not hold. The same goes for the
    footer of one that was closed, and for the names of files. Raises OSError.
    """
    set_aside = None
    disk.sync_folder()
    for name in found.obsolete:
        disk.unlink(name)
    for end in found.ends:
        if end.torn_bytes:
            set_aside = f"{end.name}.torn-{time.time_ns()}"
            _copy(disk, end.name, set_aside, end.offset, end.offset + end.torn_bytes)
            disk.sync_folder()
        _close(disk, end)
    disk.sync_folder()
    return set_aside


def _replay(
    disk: Disk, name: str, size: int, store: str | None, table: Table, on_bytes: OnBytes
) -> Segment:
    """Applies a segment's revisions that the table has not seen yet; `size` is without room."""
    lines = disk.lines(name)
    head = next(lines, b"")
    try:
        header = line.read_header(head, "journal")
    except line.OtherFormat as error:
        raise OtherFormat(f"{name}: {error}") from None
    except ValueError as error:
        if size > _HEADER_BYTES_MAX:
            raise Damaged(f"{name}: header at byte 0: {error}") from None
        return Segment(name, None, 0, size)
    seed, first, reserved = line.seed_of(header["store"]), header["rev"], header.get("reserved")
    if store is not None and header["store"] != store:
        raise Damaged(f"{name}: it belongs to another store")
    if first > table.next_revision:
        raise Damaged(f"{name}: revisions {table.next_revision} to {first - 1} are missing")
    offset, expected, closed = len(head), first, False
    try:
        for record, one in line.records(lines, seed, journal.Record[Any], on_bytes):
            if record.end is not None:
                if record.rev != expected - 1 or offset + len(one) != size:
                    raise Damaged(f"{name}: the footer at byte {offset} does not fit")
                closed, reserved = True, record.reserved
                offset = size
                break
            if record.rev != expected:
                raise Damaged(
                    f"{name}: revision {record.rev} at byte {offset}, where {expected} should stand"
                )
            if expected > table.revision:
                try:
                    journal.replay(record, table, tagged=values.TAG_MARK in one)
                except ValueError as error:  # its CRC is good: it is not torn
                    raise Damaged(f"{name}: not a line of zkv at byte {offset}: {error}") from None
            offset += len(one)
            expected += 1
    except ValueError:
        _refuse_if_synced(disk, name, offset, seed, expected)
    table.next_revision = max(table.next_revision, expected, 1 + (reserved or 0))
    return Segment(
        name,
        header["store"],
        offset,
        torn_bytes=size - offset,
        closed=closed,
        empty=expected == first,
        revision=expected - 1,
        reserved=reserved,
    )


def _is_left_over(disk: Disk, name: str, size: int, before: Segment, revision: int) -> bool:
    """Whether a segment was started, and then the one before it went on, up to this revision.

    Nothing is in it, and all that its header says was there. If that one was ended it is more
    than that, since otherwise this one may have been gone over to.
    """
    if size > _HEADER_BYTES_MAX:
        return False
    head = next(disk.lines(name), b"")
    try:
        header = line.read_header(head, "journal")
    except line.OtherFormat:
        return False
    except ValueError:  # its writer died while making it
        return True
    if len(head) != size or header["store"] != before.store:
        return False
    return bool(header["rev"] <= revision + (not before.closed))


def _refuse_if_synced(disk: Disk, name: str, offset: int, seed: int, expected: int) -> None:
    """Raises Damaged if a line behind the bad one proves that it was once on disk."""
    for fields in journal.good_lines(b"".join(disk.lines(name, offset)), seed):
        synced = fields["rev"] if "end" in fields else fields.get("batch", 0) - 1
        if synced >= expected:
            raise Damaged(
                f"{name}: bad line at byte {offset}, where revision {expected} should stand; "
                f"lines behind it are good, so it was acknowledged"
            )


def _close(disk: Disk, tail: Segment) -> None:
    """Ends a segment with the footer that its writer could not write, or not sync."""
    if tail.store is None or (tail.empty and tail.reserved is None):
        disk.unlink(tail.name)
        return
    footer = journal.footer(tail.revision, line.seed_of(tail.store), tail.reserved)
    if tail.closed:
        handle = disk.open(tail.name)
        try:
            disk.write_at(handle, footer, tail.offset - len(footer))
            disk.sync(handle)
        finally:
            disk.close(handle)
        return
    aside = tail.name + ".tmp"
    _copy(disk, tail.name, aside, 0, tail.offset, footer)
    disk.rename(aside, tail.name)


def _copy(disk: Disk, name: str, new: str, start: int, stop: int, end: bytes = b"") -> None:
    """Writes the bytes from start to stop, and an end, to a new file, and syncs it."""
    handle = disk.create(new)
    try:
        for one in disk.lines(name, start):
            disk.write(handle, one[: stop - start])
            start += min(len(one), stop - start)
        disk.write(handle, end)
        disk.sync(handle)
    finally:
        disk.close(handle)
