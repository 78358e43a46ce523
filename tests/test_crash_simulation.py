"""An acknowledged write is on disk: shown by losing power at every call of the disk.

A script runs on a `CrashDisk`; before each change of the disk its state is kept, with the
highest revision that a reply has told of. Every image that a crash may leave there must
open by itself, as the state of some revision that is no lower.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from crash_disk import FATES, CrashDisk
from harness import wait_until
from msgspec.structs import replace

from zkv import requests
from zkv.engines import Call, compaction, journal, local, sessions
from zkv.engines.journal import Fsync
from zkv.engines.local import LocalEngine
from zkv.engines.recovery import recover, settle
from zkv.engines.table import Table
from zkv.errors import Unavailable
from zkv.operations import OPERATIONS
from zkv.transaction import Completed, Entry

SECONDS = 0.12
"""Of the moments of a start, in how many power fails again."""
KEYS = [f"key:{n}" for n in range(12)]
START = 1_795_377_851.0


class State(NamedTuple):
    """All that a store holds."""

    entries: dict[str, Entry | None]
    sessions: dict[str | bytes, Any]


History = dict[int, State]
"""The state at each revision."""


class Batch(NamedTuple):
    """Requests that are executed together."""

    now: float
    calls: list[Call]


class Point(NamedTuple):
    """A moment at which power may fail."""

    disk: CrashDisk
    floor: int
    """The highest revision that was acknowledged or observed, and synced if that was asked."""
    given_out: int
    """The highest revision that anybody was told of."""


class ShortDisk(CrashDisk):
    """Refuses to make another segment, in the calls that `lacks` names."""

    lacks: frozenset[str] = frozenset()
    _new = -1

    def create(self, name: str) -> int:
        self._check("create")
        handle = super().create(name)
        self._new = handle if self.lacks else -1
        return handle

    def write_at(self, handle: int, data: bytes, offset: int) -> None:
        if handle == self._new:
            self._check("write_at")
        super().write_at(handle, data, offset)

    def sync(self, handle: int) -> None:
        if handle == self._new:
            self._check("sync")
        super().sync(handle)

    def sync_folder(self) -> None:
        self._check("sync_folder")
        super().sync_folder()

    def unlink(self, name: str) -> None:
        self._check("unlink")
        super().unlink(name)

    def _check(self, name: str) -> None:
        if name in self.lacks:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


SHORTAGES = [
    frozenset(calls)
    for call in ("create", "write_at", "sync", "sync_folder")
    for calls in ({call}, {call, "unlink"})
]


class Recorder:
    """Keeps the state of a disk before each change of it."""

    def __init__(self, disk: CrashDisk, floor: int = 0, given_out: int = 0) -> None:
        self.disk = disk
        self.floor, self.given_out = floor, given_out
        self.points: list[Point] = []
        disk.before_change = self.record

    def record(self) -> None:
        self.points.append(Point(self.disk.killed(), self.floor, self.given_out))


@pytest.fixture(autouse=True)
def _only_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper does nothing by the clock, so that a seed gives the same run."""
    monkeypatch.setattr(local, "TICK_S", 3600)


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is often used up, and has no thousands of sectors to be lost."""
    monkeypatch.setattr(journal, "ROOM_BYTES", 1024)


def call(
    op: str, session: str | None = None, seq: int = 0, retry: bool = False, **given: Any
) -> Call:
    fields: dict[str, Any] = {"op": op, **given}
    if session is not None:
        fields |= {"session": session, "seq": seq, "retry": retry}
    request = requests.check(fields)
    return Call(OPERATIONS[request.args.op], request.args, request.session)


def script(rng: random.Random) -> list[Batch]:
    """About 200 requests of every kind, in batches."""
    batches, now, seqs = [], START, dict.fromkeys(("robot", "laboratory"), 0)
    for _ in range(60):
        now += rng.choice((0.01, 1.0, 5.0))
        calls = []
        for _ in range(rng.randint(1, 6)):
            calls.append(_request(rng, seqs))
            if calls[-1].session and rng.random() < 0.3:  # its reply was lost
                calls.append(replace(calls[-1], session=replace(calls[-1].session, retry=True)))
        batches.append(Batch(now, calls))
    return batches


def _request(rng: random.Random, seqs: dict[str, int]) -> Call:
    key, other = rng.sample(KEYS, 2)
    value = {"text": "x" * rng.choice((1, 30, 700)), "bytes": rng.randbytes(6)}
    fields = rng.choice(
        [
            {"op": "put", "key": key, "value": value},
            {"op": "put", "key": key, "value": value, "ttl": rng.choice((0.5, 20))},
            {"op": "put", "key": key, "value": value, "if": {"exists": False}},
            {"op": "delete", "key": key},
            {"op": "incr", "key": "number"},
            {"op": "txn", "then": [_put(key), _put(other), {"op": "incr", "key": "number"}]},
            {"op": "txn", "then": [_put(key), {"op": "get", "key": "never"}]},
            {"op": "list", "values": True},
        ]
    )
    if fields["op"] not in ("list",) and rng.random() < 0.3:
        session = rng.choice(list(seqs))
        seqs[session] += 1
        fields |= {"session": session, "seq": seqs[session]}
    return call(**fields)


def _put(key: str) -> dict[str, Any]:
    return {"op": "put", "key": key, "value": [key, 2**60, 0.5]}


def state_of(table: Table, completed: dict[str | bytes, Any] | None = None) -> State:
    if completed is None:
        completed = {one.session: sessions.to_json(one) for one, _ in table.sessions.completed()}
    return State({key: table.get(key) for key in table.keys("", "")}, completed)


def history_of(batches: list[Batch]) -> History:
    """From one request at a time and no crash, ever."""
    clock = [START]
    engine = LocalEngine(CrashDisk(), clock=lambda: clock[0], compactor=compaction.Inline)
    completed: dict[str | bytes, Any] = {}
    history = {0: State({}, {})}
    for clock[0], calls in batches:
        for one in [call("ping"), *calls]:  # before anything else, what has expired goes
            (outcome,) = engine.execute([one])
            if one.session and not isinstance(outcome.result, BaseException):
                name = sessions.digest(one.session.id)
                done = Completed(name, one.session.seq, outcome.result)
                completed[name] = sessions.to_json(done)
            table = engine._table
            history[table.revision] = state_of(table, dict(completed))
    engine.close()
    return history


def run(disk: ShortDisk, batches: list[Batch], fsync: Fsync) -> list[Point]:
    """The script with two compactions and a clean restart, and every moment of it.

    Again and again, the journal can have no other segment, and goes on with the one it has.
    """
    recorder = Recorder(disk)
    clock = [START]

    def start() -> LocalEngine:
        return LocalEngine(disk, fsync=fsync, clock=lambda: clock[0], compactor=compaction.Inline)

    engine = start()
    for number, (clock[0], calls) in enumerate(batches):
        outcomes = engine.execute(calls)
        recorder.given_out = max(recorder.given_out, *(one.revision for one in outcomes))
        if number % 4 == 3:
            engine._journal.tick()
        if fsync == "always" or (fsync == "interval" and number % 4 == 3):
            recorder.floor = recorder.given_out
        if number % 7 == 6:
            disk.lacks = SHORTAGES[number // 7 % len(SHORTAGES)]
            with suppress(Unavailable):
                engine._journal.rotate()
            disk.lacks = frozenset()
        if number in (15, 45):
            engine.compact()
            revision = engine.revision
            # A removal of expired keys that no reply told of may make it one more.
            wait_until(lambda: engine.info()["snapshot_revision"] >= revision)  # noqa: B023
            recorder.floor = revision
        if number == 30:
            engine.close()
            recorder.floor = recorder.given_out
            engine = start()
    engine.close()
    recorder.floor = recorder.given_out
    recorder.record()
    return recorder.points


def check(image: CrashDisk, point: Point, history: History) -> None:
    """Asserts what an image must be."""
    found = recover(image)
    settle(image, found)
    revision = found.table.revision
    assert revision >= point.floor, f"revision {point.floor} was acknowledged"
    assert found.table.next_revision > point.given_out, "a revision would be used twice"
    assert state_of(found.table) == history[revision]
    again = recover(image)
    assert again.tail is None or again.tail.closed
    assert not again.obsolete
    assert (again.store, again.table.revision) == (found.store, revision)


def restart(image: CrashDisk, point: Point, history: History) -> tuple[list[Point], History]:
    """The moments of a start and a clean stop on what a crash has left."""
    recorder = Recorder(image, point.floor, point.given_out)
    engine = LocalEngine(image, clock=lambda: 0.0, compactor=compaction.Inline)
    recorder.floor = engine.revision  # any read may tell of it
    table = engine._table
    history = {**history, table.next_revision - 1: history[engine.revision]}
    engine.close()
    recorder.record()
    return recorder.points, history


def torn_bytes(disk: CrashDisk) -> bytes:
    """What stands behind the last good line."""
    tail = recover(disk).tail
    return disk.read(tail.name, tail.offset, tail.torn_bytes) if tail else b""


def crashes(seed: int, fsync: Fsync) -> Iterator[None]:
    """Checks images of all moments of a run; yields after each."""
    rng = random.Random(seed)
    batches = script(rng)
    history = history_of(batches)
    exhaustive, more = (6, 12) if fsync == "always" else (0, 4)
    for point in run(ShortDisk(), batches, fsync):
        for image in point.disk.images(rng, exhaustive, more):
            check(image, point, history)
            yield
        if fsync != "always" and rng.random() > SECONDS:
            continue
        fates = rng.choices(FATES, k=point.disk.units())
        for left in point.disk.killed(), point.disk.image(fates, rng):
            torn = torn_bytes(left)
            seconds, longer = restart(left, point, history)
            for second in seconds:
                if rng.random() < SECONDS:
                    for image in second.disk.images(rng, 4, 1):
                        kept = [data for name, data in image.files().items() if ".torn-" in name]
                        assert torn in [b"", torn_bytes(image), *kept]
                        check(image, second, longer)
                        yield


@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    ("fsync", "images"), [("always", 10_000), ("interval", 1_000), ("never", 1_000)]
)
def test_every_image_of_a_crash_opens_with_all_that_was_acknowledged(
    fsync: Fsync, images: int, seed: int, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "RESERVED", 100)
    checked = 0
    while checked < images * (100 if long else 1):
        for _ in crashes(seed, fsync):
            checked += 1
        seed += 1
        print(f"{checked} images; the next has --seed {seed}")


@pytest.mark.parametrize(
    "read", [call("get", key="new"), call("get", key="old", default=None), call("list")]
)
def test_what_a_reply_tells_of_is_on_disk_also_for_a_read(read: Call) -> None:
    """A read comes while a write is on its way to the disk."""
    disk = CrashDisk()
    engine = LocalEngine(disk, compactor=compaction.Inline)
    engine.execute([call("put", key="old", value=1)])
    replies: list[int] = []
    reader = threading.Thread(
        target=lambda: replies.extend(it.revision for it in engine.execute([read]))
    )

    def begin() -> None:  # before the write
        disk.before_change = end
        reader.start()
        reader.join(0.2)

    def end() -> None:  # before the sync
        disk.before_change = lambda: None
        assert not replies

    disk.before_change = begin
    engine.execute([call("txn", then=[_put("new"), {"op": "delete", "key": "old"}])])
    reader.join()
    assert replies == [2]
    engine.close()
