"""What happened, one line a revision: `journal-<first revision>.jsonl`.

    header      {"zkv":1,"file":"journal","store":"…","rev":1000,"crc":"…"}
    a revision  {"rev":1043,"time":"2026-11-22T19:04:11.123456Z","put":{"user:1":{"name":"Ada"}},
                 "delete":["x"],"expires":{"user:1":1795377851.1},
                 "session":["worker-7",12,{"version":1043}],"batch":1040,"crc":"…"}
    footer      {"end":"journal","rev":1043,"crc":"…"}

The header's `rev` is the first revision that may follow. Empty fields are left out. `batch`
is the first revision of the lines that were synced together: a line of batch B proves that
everything before B was on disk before it was written; the header of the next segment proves
the same. A footer closes a segment; only the segment that is being written has none, or the one
whose writer died.

The next segment is there before the footer of the last one is: so where there is no file to be
had, the old one goes on. One that is empty, behind one without a footer, counts for nothing.

A segment may end with spaces, which are no part of its data: they were room for lines to
come, as to sync what does not make a file longer takes 130 µs instead of 190 µs.

Where writes are acknowledged before they are synced, the header also has `reserved`: the
last revision that may be given out from this segment. If its writer dies, the footer that
the next start writes has it too, and revisions go on behind it: none is ever used twice.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Any, Final, Generic, Literal, TypeVar
from zlib import crc32

import msgspec

from zkv import values
from zkv.engines import line, sessions
from zkv.engines.disk import Disk
from zkv.engines.table import Table
from zkv.engines.watermark import Watermark
from zkv.errors import DiskFailed, Unavailable
from zkv.transaction import Commit

PREFIX: Final = "journal-"
RESERVED: Final = 1_000_000
"""Revisions that a segment may give out before they are synced."""

LOOK_S: Final = 0.05
"""How often a writer looks whether its file is still there."""

ROOM_BYTES: Final = 64 * 2**10
"""A segment grows by so much at a time."""

Value = TypeVar("Value")
Fsync = Literal["always", "interval", "never"]


class Record(msgspec.Struct, Generic[Value], gc=False):
    """What a line says: a revision; or the footer, which has an `end`.

    The time is for people who read the file: nothing depends on it, and it is not read back.
    """

    rev: int
    put: dict[str, Value] = {}
    delete: Sequence[str] = ()
    expires: dict[str, float] | None = None
    session: list[Any] | None = None
    batch: int = 0
    end: str | None = None
    reserved: int | None = None
    crc: str = ""


def name_of(first: int) -> str:
    return f"{PREFIX}{first:020d}.jsonl"


def header(store: str, first: int, reserved: int | None = None) -> bytes:
    """The first line of a segment."""
    return line.header("journal", store, first, **_given(reserved=reserved))


def record_line(commit: Commit, batch: int, seed: int) -> bytes:
    """The line of one revision."""
    put, delete, expires = {}, [], {}
    for key, entry in commit.changes.items():
        if entry is None:
            delete.append(key)
            continue
        put[key] = entry.packed
        if entry.deadline is not None:
            expires[key] = entry.deadline
    fields: dict[str, Any] = {"rev": commit.revision, "time": _iso(commit.time)}
    if put:
        fields["put"] = values.each_to_json(put)
    if delete:
        fields["delete"] = delete
    if expires:
        fields["expires"] = expires
    if commit.completed is not None:
        fields["session"] = sessions.to_json(commit.completed)
    fields["batch"] = batch
    return line.seal(fields, seed)


def replay(record: Record[Any], table: Table, *, tagged: bool = True) -> None:
    """Does to a table that has no index yet what the revision once did to another one.

    `tagged` False if no value in it has a tag, which is quicker. Raises ValueError for what
    zkv never writes; the table is of no use then.
    """
    revision, expires = record.rev, record.expires
    for key, plain in record.put.items():
        try:
            packed = values.pack(values.from_json(plain) if tagged else plain)
        except (TypeError, OverflowError) as error:
            raise ValueError(str(error)) from None
        table.load(key, packed, revision, None if expires is None else expires.get(key))
    for key in record.delete:
        table.drop(key)
    if record.session is not None:
        table.sessions.remember(sessions.from_json(record.session), revision)
    table.revision = revision


def data_bytes(disk: Disk, name: str) -> int:
    """The size of a segment without the room at its end."""
    size = disk.size(name)
    while size:
        start = max(0, size - ROOM_BYTES)
        data = disk.read(name, start, size - start).rstrip(b" ")
        if data:
            return start + len(data)
        size = start
    return 0


def footer(revision: int, seed: int, reserved: int | None = None) -> bytes:
    """The line that closes a segment whose last revision is this one."""
    return line.seal({"end": "journal", "rev": revision, **_given(reserved=reserved)}, seed)


class _Segment:
    """A segment that is being written: its lines end at `end`, and its room at `size`."""

    __slots__ = ("end", "first", "handle", "reserved", "size")

    def __init__(self, handle: int, first: int, reserved: int | None, size: int) -> None:
        self.handle = handle
        self.first = first
        self.reserved = reserved
        self.end = self.size = size


class Journal:
    """The segment that is being written.

    Many threads append and wait; whichever comes first writes and syncs for all of them
    (group commit), and meanwhile others append. `confirmed` is the revision up to which
    the asked-for durability holds; it only grows.

    A write or sync of the segment that fails is final. Whatever else goes wrong is a shortage
    that may pass: what waits is still waiting, and the segment as good as before.
    """

    def __init__(
        self,
        disk: Disk,
        store: str,
        revision: int,
        first: int,
        fsync: Fsync,
        bytes_before: int,
        ahead: float = 0.0,
    ) -> None:
        """Starts the segment of the revisions from `first` on.

        `revision` is the latest, and on disk; `bytes_before` what no snapshot has taken in;
        `ahead` is for the watermark.
        """
        self.confirmed = revision
        self.bytes = bytes_before
        """Of the segments that no snapshot has taken in yet."""
        self.reserved = _ANY
        """The last revision that may be appended, until another segment is begun."""
        self._disk = disk
        self._store = store
        self._seed = line.seed_of(store)
        self._fsync = fsync
        # Appended to under the engine's lock, popped under `_writing`: both are atomic.
        self._pending: deque[Commit] = deque()
        self._writing = threading.Lock()
        self._failure: Exception | None = None
        self._written = self._synced = revision
        self._half_made: str | None = None
        self._look_at = 0.0
        self._watermark = Watermark(disk, store, revision, ahead)
        try:
            self._segment = self._create_segment(first)
        except BaseException:
            self._watermark.close()
            raise
        self._next: _Segment | None = None
        self._reserve()

    def append(self, commit: Commit) -> None:
        """Takes one revision; the caller sees to it that they come in order, up to `reserved`."""
        self._pending.append(commit)

    def confirm(self, revision: int) -> None:
        """Returns when `confirmed` has reached the revision.

        Raises Unavailable for a shortage: what was appended goes with the next batch. Raises
        DiskFailed once the disk has failed. That is final: after a failed sync the page
        cache may show what the disk does not hold, so nothing is ever written again.
        (Rebello et al., ATC'20.)
        """
        if self.confirmed < revision or self._failure is not None:
            with self._writing:
                if self.confirmed < revision or self._failure is not None:
                    self._guarded(self._write_pending)

    def tick(self) -> None:
        """What has to be done once in a while: the sync of `interval`, and what a shortage left."""
        with self._writing:
            self._guarded(self._write_pending)
            if self._fsync == "interval" and self._synced < self.confirmed:
                self._guarded(self._sync)
            self._guarded(self._watermark.sync)
            if self._half_reserved():
                self._guarded(self._next_segment)

    def note_clock(self, ahead: float) -> None:
        """Keeps how far the clock of the store is ahead of the wall clock."""
        with self._writing:
            self._watermark.ahead = ahead
            for _ in range(2):  # either line may be the one that counts
                self._guarded(lambda: self._watermark.advance(self._synced))

    def rotate(self) -> tuple[int, int]:
        """Closes the segment and starts the next one.

        Returns the revision before which all segments are closed, and their `bytes`. Raises
        Unavailable when no segment can be started; the old one is not closed then.
        """
        with self._writing:
            self._guarded(self._write_pending)
            self._guarded(self._next_segment)
            return self._segment.first, self.bytes

    def forget(self, size: int) -> None:
        """A snapshot has taken in so many bytes of closed segments."""
        with self._writing:
            self.bytes -= size

    def close(self) -> None:
        """Writes what is pending and closes the segment; an empty one goes."""
        with self._writing:
            self._guarded(self._write_pending)
            self._guarded(self._close)

    def _write_pending(self) -> None:
        """Writes what waits, which stays in the queue until then, so that it can be done again."""
        if self._next is not None:
            self._end_segment()
        pending = self._pending
        while pending and pending[0].revision <= self._written:  # this was broken off here
            pending.popleft()
        commits = list(pending)
        if commits:
            batch = max(self._synced + 1, self._segment.first)
            lines = [record_line(commit, batch, self._seed) for commit in commits]
            self._write(b"".join(lines), commits[-1].revision)
            for _ in commits:
                pending.popleft()
        if self.confirmed < self._written:
            if self._fsync == "always":
                self._sync()
            self.confirmed = self._written
            if self.confirmed > self._rotate_after:
                self._rotate_after += RESERVED // 16
                with suppress(Unavailable):  # `tick` says so, and tries again
                    self._next_segment()

    def _sync(self) -> None:
        """Moves the watermark to what is written, once that is on disk."""
        self._disk.sync(self._segment.handle)
        now = time.monotonic()
        if now > self._look_at:  # each time, it would take a sixth as long as the rest
            self._look_at = now + LOOK_S
            if not self._disk.has_name(self._segment.handle):
                raise FileNotFoundError(errno.ENOENT, "the data folder was removed or replaced")
        self._synced = self._written
        self._watermark.advance(self._synced)

    def _write(self, data: bytes, last: int) -> None:
        """Writes the lines up to a revision into the room; those that need more bring it along."""
        segment, size = self._segment, len(data)
        start, end, room_ends = segment.end, segment.end + size, segment.size
        if end > room_ends:
            room_ends = -(-end // ROOM_BYTES) * ROOM_BYTES
            data = data.ljust(room_ends - start)
        self._disk.write_at(segment.handle, data, start)
        # All at once: broken off before, the same lines are written again, in the same place.
        segment.end, segment.size, self._written, self.bytes = (
            end, room_ends, last, self.bytes + size,
        )  # fmt: skip

    def _create_segment(self, first: int) -> _Segment:
        """Makes a segment durable, with nothing in it."""
        reserved = None if self._fsync == "always" else first + RESERVED - 1
        head = header(self._store, first, reserved)
        handle = self._disk.create(name_of(first))
        try:
            self._disk.write_at(handle, head, 0)
            self._disk.sync(handle)
            self._disk.sync_folder()
            return _Segment(handle, first, reserved, len(head))
        except BaseException:
            self._disk.close(handle)
            raise

    def _next_segment(self) -> None:
        """Starts the next segment, and only then ends this one, unless nothing is in it.

        What was started and is not to be had after all is removed: at the latest before
        another one is, and that is durable before this one ends. Until then a start takes it
        for what it is, since it is empty and this one has no footer.
        """
        if self.confirmed < self._segment.first:
            return
        if self._synced < self.confirmed:
            self._sync()  # the next header says that all before it is on disk
        try:
            self._remove_half_made()
            first = self.confirmed + 1
            self._half_made = name_of(first)
            created = self._create_segment(first)
            self._next, self._half_made = created, None  # at once: it is not to be removed
        except OSError as error:
            with suppress(OSError):
                self._remove_half_made()
            reason = error.strerror or repr(error)
            raise Unavailable(f"the journal cannot have another file: {reason}") from error
        self._end_segment()

    def _remove_half_made(self) -> None:
        if self._half_made is not None:
            with suppress(FileNotFoundError):
                self._disk.unlink(self._half_made)
            self._half_made = None

    def _end_segment(self) -> None:
        """Goes on to the segment that was started; does it again if it was broken off."""
        assert self._next is not None
        size = self._write_footer()
        old = self._segment
        self._segment, self._next, self.bytes = self._next, None, self.bytes + size
        self._reserve()
        with suppress(OSError):  # all of it is on disk
            self._disk.close(old.handle)

    def _write_footer(self) -> int:
        """Returns its size."""
        if self._synced < self.confirmed:
            self._sync()  # a footer says that all before it is on disk
        end = footer(self.confirmed, self._seed)
        # It brings no room, which a crash could tear. What there is stays: to cut it off, a file
        # system may fill the last block with zeros, and those may be on disk before the cut is.
        self._disk.write_at(self._segment.handle, end, self._segment.end)
        self._sync()
        return len(end)

    def _reserve(self) -> None:
        """Lets as many revisions be appended as the segment may have."""
        reserved = self._segment.reserved
        self.reserved = _ANY if reserved is None else reserved
        self._rotate_after = self.reserved - RESERVED // 2

    def _half_reserved(self) -> bool:
        """Whether it is time for another segment, before `reserved` is used up."""
        return self.confirmed > self.reserved - RESERVED // 2

    def _close(self) -> None:
        with suppress(OSError):
            self._remove_half_made()
        if self.confirmed >= self._segment.first:
            self.bytes += self._write_footer()
        else:
            with suppress(OSError):  # the next start removes it
                self._disk.unlink(name_of(self._segment.first))
                self._disk.sync_folder()
        with suppress(OSError):
            self._disk.close(self._segment.handle)
        self._watermark.sync()
        self._watermark.close()

    def _guarded(self, step: Callable[[], None]) -> None:
        """Does a step; what it raises is a shortage, or final."""
        if self._failure is None:
            try:
                step()
                return
            except Unavailable:
                raise
            except (MemoryError, RecursionError) as error:
                raise Unavailable(f"the journal cannot be written now: {error!r}") from error
            except Exception as error:
                self._failure = error
        raise DiskFailed(f"the journal cannot be written: {self._failure!r}") from self._failure


_ANY: Final = 2**63 - 1  # more revisions than there will be


def _given(**fields: int | None) -> dict[str, int]:
    return {name: it for name, it in fields.items() if it is not None}


@lru_cache(maxsize=1)  # the revisions of a batch have the same time
def _iso(seconds: float) -> str:
    whole = int(seconds)
    return f"{_iso_second(whole)}.{int((seconds - whole) * 1e6):06d}Z"


@lru_cache(maxsize=1)
def _iso_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def good_lines(data: bytes, seed: int) -> Iterator[dict[str, Any]]:
    """The fields of every good line in damaged bytes, wherever it starts.

    A bad newline glues two lines together, and a value may look like the end of a line.
    """
    for one in data.split(b"\n"):
        starts = [0, *(found.start() for found in islice(_START.finditer(one, 1), _STARTS_MAX))]
        ends = [found.start() for found in _END.finditer(one)]
        done = 0
        for start in starts:
            crc, summed = seed, start
            for end in ends if start >= done else ():
                if end > start:
                    crc, summed = crc32(one[summed:end], crc), end
                    if one.startswith(b',"crc":"%08x"}' % crc, end):
                        done = end
                        yield line.peek(one[start:end] + b"}")
                        break


_START: Final = re.compile(rb'\{"(?:rev":\d|end":"|key":"|session":\[)')
_END: Final = re.compile(rb',"crc":"[0-9a-f]{8}"}')
_STARTS_MAX: Final = 16  # of values that look like a line there may be any number
