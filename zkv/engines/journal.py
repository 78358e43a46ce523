"""What happened, one line a revision: `journal-<first revision>.jsonl`.

    header      {"zkv":1,"file":"journal","store":"…","rev":1000,"crc":"…"}
    a revision  {"rev":1043,"time":"2026-11-22T19:04:11.123456Z","put":{"user:1":{"name":"Ada"}},
                 "delete":["x"],"expires":{"user:1":1795377851.1},
                 "session":["worker-7",12,{"version":1043}],"batch":1040,"crc":"…"}
    footer      {"end":"journal","rev":1043,"crc":"…"}

The header's `rev` is the first revision that may follow. Empty fields are left out. `batch`
is the first revision of the lines that were synced together: a line of batch B proves that
everything before B was on disk before it was written. A footer closes a segment; only the
segment that is being written has none, or the one whose writer died.

A segment may end with spaces, which are no part of its data: they were room for lines to
come, as to sync what does not make a file longer takes 130 µs instead of 190 µs.

Where writes are acknowledged before they are synced, the header also has `reserved`: the
last revision that may be given out from this segment. If its writer dies, the footer that
the next start writes has it too, and revisions go on behind it: none is ever used twice.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from zkv.errors import DiskFailed
from zkv.transaction import Commit

PREFIX: Final = "journal-"
RESERVED: Final = 1_000_000
"""Revisions that a segment may give out before they are synced."""

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


class Journal:
    """The segment that is being written.

    Many threads append and wait; whichever comes first writes and syncs for all of them
    (group commit), and meanwhile others append. `confirmed` is the revision up to which
    the asked-for durability holds; it only grows.
    """

    def __init__(
        self, disk: Disk, store: str, revision: int, first: int, fsync: Fsync, bytes_before: int
    ) -> None:
        """Starts the segment of the revisions from `first` on.

        `revision` is the latest, and on disk; `bytes_before` what no snapshot has taken in.
        """
        self.confirmed = revision
        self.bytes = bytes_before
        """Of the segments that no snapshot has taken in yet."""
        self.first = first
        self._disk = disk
        self._store = store
        self._seed = line.seed_of(store)
        self._fsync = fsync
        # Appended to under the engine's lock, popped under `_writing`: both are atomic.
        self._pending: deque[Commit] = deque()
        self._writing = threading.Lock()
        self._failure: BaseException | None = None
        self._synced = revision
        self._watermark = Watermark(disk, store, revision)
        self._end = self._size = 0
        self._handle = self._start_segment()

    def append(self, commit: Commit) -> None:
        """Takes one revision; the caller sees to it that they come in order."""
        self._pending.append(commit)

    def confirm(self, revision: int) -> None:
        """Returns when `confirmed` has reached the revision.

        Raises DiskFailed once the disk has failed. That is final: after a failed sync the page
        cache may show what the disk does not hold, so nothing is ever written again.
        (Rebello et al., ATC'20.)
        """
        if self.confirmed < revision or self._failure is not None:
            with self._writing:
                if self.confirmed < revision or self._failure is not None:
                    self._guarded(self._write_pending)

    def tick(self) -> None:
        """What has to be done once in a while: with `interval`, the sync."""
        with self._writing:
            if self._fsync == "interval" and self._synced < self.confirmed:
                self._guarded(self._sync)
            self._guarded(self._watermark.sync)

    def rotate(self) -> tuple[int, int]:
        """Closes the segment and starts the next one.

        Returns the revision before which all segments are closed, and their `bytes`.
        """
        with self._writing:
            self._guarded(self._write_pending)
            self._guarded(self._next_segment)
            return self.first, self.bytes

    def forget(self, size: int) -> None:
        """A snapshot has taken in so many bytes of closed segments."""
        with self._writing:
            self.bytes -= size

    def close(self) -> None:
        """Writes what is pending and closes the segment; an empty one goes."""
        with self._writing:
            self._guarded(self._write_pending)
            self._guarded(self._end_segment if self.confirmed >= self.first else self._drop_segment)
            self._guarded(self._watermark.sync)
            self._watermark.close()

    def _write_pending(self) -> None:
        commits = [self._pending.popleft() for _ in range(len(self._pending))]
        if not commits:
            return
        batch = max(self._synced + 1, self.first)
        self._write(b"".join([record_line(commit, batch, self._seed) for commit in commits]))
        last = commits[-1].revision
        if self._fsync == "always":
            self._sync(last)
        self.confirmed = last
        # No batch is ever as large as the other half.
        if self._reserved is not None and self.confirmed > self._reserved - RESERVED // 2:
            self._next_segment()

    def _sync(self, last: int | None = None) -> None:
        """Moves the watermark to `last`, or to what is confirmed, once that is on disk."""
        self._synced = self.confirmed if last is None else last
        self._disk.sync(self._handle)
        self._watermark.advance(self._synced)

    def _write(self, data: bytes) -> None:
        """Writes lines into the room; those that need more bring it along."""
        start, self._end = self._end, self._end + len(data)
        self.bytes += len(data)
        if self._end > self._size:
            self._size = -(-self._end // ROOM_BYTES) * ROOM_BYTES
            data = data.ljust(self._size - start)
        self._disk.write_at(self._handle, data, start)

    def _start_segment(self) -> int:
        self._reserved = None if self._fsync == "always" else self.first + RESERVED - 1
        head = header(self._store, self.first, self._reserved)
        self._end = self._size = len(head)
        handle = self._disk.create(name_of(self.first))
        self._disk.write_at(handle, head, 0)
        self._disk.sync(handle)
        self._disk.sync_folder()
        return handle

    def _next_segment(self) -> None:
        if self.confirmed >= self.first:
            self._end_segment()
            self.first = self.confirmed + 1
            self._handle = self._start_segment()

    def _end_segment(self) -> None:
        if self._synced < self.confirmed:
            self._sync()  # a footer says that all before it is on disk
        end = footer(self.confirmed, self._seed)
        # It brings no room, which a crash could tear. What there is stays: to cut it off, a file
        # system may fill the last block with zeros, and those may be on disk before the cut is.
        self._disk.write_at(self._handle, end, self._end)
        self.bytes += len(end)
        self._sync()
        self._disk.close(self._handle)

    def _drop_segment(self) -> None:
        self._disk.close(self._handle)
        self._disk.unlink(name_of(self.first))
        self._disk.sync_folder()

    def _guarded(self, step: Callable[[], None]) -> None:
        if self._failure is None:
            try:
                step()
                return
            except BaseException as error:  # whatever it is, the lines are not on disk
                self._failure = error
        raise DiskFailed(f"the journal cannot be written: {self._failure!r}")


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
