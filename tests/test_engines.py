"""The contract of an engine. Whatever keeps data for zkv passes the first part; the second is
about engines on a `Disk`, and is where durability is proved against disks that stall and fail.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import call, compact

from zkv import values
from zkv.engines import TURN_BYTES, TURN_S, Call, Engine, compaction
from zkv.engines.disk import Disk
from zkv.engines.local import LocalEngine
from zkv.errors import (
    BadRequest,
    DiskFailed,
    NotFound,
    Stale,
    StartError,
    Unavailable,
    WrongType,
)
from zkv.operations import OPERATIONS
from zkv.requests import Session

PATIENCE_S = 30
BRIEFLY_S = 0.2

Open = Callable[[], Engine]


def put(key: str, value: Any = 0) -> Call:
    return call("put", key=key, value=value)


def get(key: str) -> Call:
    return call("get", key=key)


class Seen(NamedTuple):
    result: Any
    revision: int


def run(engine: Engine, *calls: Call) -> list[Seen]:
    """The outcomes, with values as a client would see them."""
    seen = []
    for outcome in engine.execute(calls):
        result = outcome.result
        if not isinstance(result, BaseException):
            result = values.unpack(values.assemble({**result}))
        seen.append(Seen(result, outcome.revision))
    return seen


def state(engine: Engine) -> list[Any]:
    (outcome,) = run(engine, call("list", values=True))
    assert not isinstance(outcome.result, BaseException)
    items: list[Any] = outcome.result["items"]
    return items


@pytest.fixture(params=["local"])
def open_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens an engine on the same data as before; one at a time."""
    opened: list[Engine] = []

    def open_() -> Engine:
        if request.param == "local":
            opened.append(LocalEngine(Disk(tmp_path / "data"), compactor=compaction.Inline))
        return opened[-1]

    yield open_
    for engine in opened:
        engine.close()


class TestContract:
    def test_outcomes_come_in_the_order_of_the_calls(self, open_engine: Open) -> None:
        outcomes = run(
            open_engine(), put("a", 1), get("a"), get("b"), put("b", 2), call("count"), get("b")
        )
        missing = outcomes.pop(2)
        assert isinstance(missing.result, NotFound)
        assert outcomes == [
            ({"version": 1}, 1),
            ({"value": 1, "version": 1}, 1),
            ({"version": 2}, 2),
            ({"count": 2}, 2),
            ({"value": 2, "version": 2}, 2),
        ]

    def test_no_calls_have_no_outcomes(self, open_engine: Open) -> None:
        assert open_engine().execute([]) == []

    def test_calls_that_take_long_wait_for_another_turn(self, open_engine: Open) -> None:
        def slow(_: Any, __: Any) -> dict[str, Any]:
            time.sleep(2 * TURN_S)
            return {}

        engine = open_engine()
        calls = [put("a"), Call(slow, None), put("b"), put("c")]
        assert len(engine.execute(calls, one_turn=True)) == 2
        assert [item[0] for item in state(engine)] == ["a"]
        assert len(engine.execute(calls)) == 4

    def test_calls_that_read_much_wait_for_another_turn(self, open_engine: Open) -> None:
        engine = open_engine()
        run(engine, put("a", bytes(TURN_BYTES - 100)))
        txn = call("txn", then=[{"op": "get", "key": "a"}])
        for much in (get("a"), call("get_many", keys=["a"]), call("list", values=True), txn):
            calls = [put("b"), get("b"), much, much, get("b")]
            assert len(engine.execute(calls, one_turn=True)) == 4
            assert len(engine.execute(calls)) == 5

    def test_each_change_takes_the_next_revision_and_nothing_else_does(
        self, open_engine: Open
    ) -> None:
        engine = open_engine()
        calls = [put("a"), call("incr", key="n"), call("delete", key="a"), call("clear", prefix="")]
        idle = [get("n"), get("no"), call("delete", key="no"), call("ping"), call("count")]
        idle += [call("list"), call("clear", prefix="no"), call("incr", key="t")]
        run(engine, put("t", "text"))
        for revision, one in enumerate(calls, 2):
            assert run(engine, one)[0].revision == revision
            for other in idle[: None if revision < 5 else -1]:
                assert run(engine, other)[0].revision <= revision
        assert run(engine, put("z"))[0].revision == 6

    def test_a_version_is_the_revision_of_the_last_change(self, open_engine: Open) -> None:
        engine = open_engine()
        run(engine, put("a"), put("b"), call("incr", key="a"), put("c"))
        assert [item[:2] for item in state(engine)] == [["a", 3], ["b", 2], ["c", 4]]

    @pytest.mark.parametrize(
        "error",
        [Exception, WrongType, MemoryError, RecursionError, SystemExit, KeyboardInterrupt],
    )
    def test_whatever_an_operation_raises_is_its_outcome(
        self, open_engine: Open, error: type[BaseException]
    ) -> None:
        """All or nothing: what it had changed is undone, and the engine goes on."""

        def fail(t: Any, _: Any) -> Any:
            t.put("a", values.pack(7))
            t.delete("b")
            raise raised

        engine, raised = open_engine(), error("no")
        run(engine, put("a", 1), put("b", 2))
        outcomes = run(engine, put("c", 3), Call(fail, {}), put("d", 4))
        assert outcomes == [
            ({"version": 3}, 3),
            (raised, outcomes[1].revision),
            ({"version": 4}, 4),
        ]
        assert state(engine) == [["a", 1, 1], ["b", 2, 2], ["c", 3, 3], ["d", 4, 4]]

    def test_many_threads_lose_no_update(self, open_engine: Open) -> None:
        """Not even where one could run while another is between its read and its write."""

        def slow_incr(t: Any, args: Any) -> Any:
            fields = OPERATIONS["get"](t, get("n").args)
            time.sleep(0.001)
            assert OPERATIONS["get"](t, get("n").args) == fields
            return OPERATIONS["incr"](t, args)

        def add(_: int) -> list[int]:
            calls = [call("incr", key="n"), Call(slow_incr, call("incr", key="n").args)]
            return [outcome.revision for _ in range(10) for outcome in run(engine, *calls)]

        engine = open_engine()
        run(engine, put("n", 1))
        with ThreadPoolExecutor(8) as pool:
            revisions = [revision for some in pool.map(add, range(8)) for revision in some]
        assert sorted(revisions) == list(range(2, 162))
        assert state(engine) == [["n", 161, 161]]

    def test_what_was_there_is_there_again(self, open_engine: Open) -> None:
        engine = open_engine()
        run(engine, put("a", {1: b"x"}), put("b", -0.0), put("c"), call("delete", key="c"))
        for revision in range(5, 8):
            before = state(engine)
            engine.close()
            engine = open_engine()
            assert state(engine) == before
            assert run(engine, put("d"))[0].revision == revision

    def test_a_closed_engine_is_unavailable(self, open_engine: Open) -> None:
        engine = open_engine()
        engine.close()
        engine.close()
        with pytest.raises(Unavailable):
            engine.execute([get("a")])

    def test_info_tells_what_it_holds(self, open_engine: Open) -> None:
        engine = open_engine()
        run(engine, put("a"), put("b"))
        info = engine.info()
        assert info["keys"] == 2
        engine.close()
        assert open_engine().info()["store"] == info["store"]


class StallingDisk(Disk):
    """Its syncs wait while it is stalled; it counts them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.going = threading.Event()
        self.going.set()
        self.stuck = threading.Event()
        self.syncs = 0

    def sync(self, handle: int) -> None:
        self.syncs += 1
        if not self.going.is_set():
            self.stuck.set()
            assert self.going.wait(PATIENCE_S)
        super().sync(handle)


class Stalled:
    """An engine that has `old` on disk and `new` in a sync that is stuck."""

    def __init__(self, folder: Path) -> None:
        self.disk = StallingDisk(folder)
        self.engine = LocalEngine(self.disk, compactor=compaction.Inline)
        self.pool = ThreadPoolExecutor(20)
        run(self.engine, put("old", 1))
        self.disk.going.clear()
        self.writing = self.start(put("new", 2))
        assert self.disk.stuck.wait(PATIENCE_S)

    def start(self, *calls: Call) -> Future[list[Seen]]:
        return self.pool.submit(run, self.engine, *calls)

    def close(self) -> None:
        self.disk.going.set()
        self.pool.shutdown()
        self.engine.close()


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[Stalled]:
    made = Stalled(tmp_path / "data")
    yield made
    made.close()


def test_what_is_on_disk_is_read_while_the_disk_is_stuck(stalled: Stalled) -> None:
    """So no lock is held over a disk write; and the reply tells only of what is durable."""
    reading = stalled.start(get("old"), call("ping"))
    assert reading.result(PATIENCE_S) == [({"value": 1, "version": 1}, 1), ({}, 1)]
    assert not stalled.writing.done()


def test_nothing_tells_of_what_is_not_on_disk(stalled: Stalled) -> None:
    """Neither the write, nor a read that saw it or missed what it may have removed."""
    reads = [get("new"), get("none"), call("list"), call("count"), call("count", prefix="z")]
    waiting = [stalled.writing, *map(stalled.start, reads)]
    waiting.append(stalled.start(get("old"), get("new")))
    assert not wait(waiting, BRIEFLY_S, "FIRST_COMPLETED").done
    stalled.disk.going.set()
    for one in waiting:
        assert one.result(PATIENCE_S)[-1].revision == 2


def test_a_session_tells_nothing_of_what_is_not_on_disk(stalled: Stalled) -> None:
    """Not even that it is past a request."""
    latest, stale = (
        Call(OPERATIONS["put"], put("k").args, Session("s", seq, False)) for seq in (2, 1)
    )
    writing = stalled.start(latest)
    refused = stalled.start(stale)
    assert not wait([writing, refused], BRIEFLY_S, "FIRST_COMPLETED").done
    stalled.disk.going.set()
    assert writing.result(PATIENCE_S)[0].revision == 3
    assert isinstance(refused.result(PATIENCE_S)[0].result, Stale)


def test_all_that_waits_for_a_sync_shares_the_next(stalled: Stalled) -> None:
    """Group commit: 16 writes that arrived during one sync need one more."""
    ran = threading.Semaphore(0)

    def counted(t: Any, args: Any) -> Any:
        ran.release()
        return OPERATIONS["put"](t, args)

    waiting = [stalled.start(Call(counted, put(f"k{n}").args)) for n in range(16)]
    for _ in waiting:
        assert ran.acquire(timeout=PATIENCE_S)
    stalled.start(get("old")).result(PATIENCE_S)  # behind the lock that the last of them held
    before = stalled.disk.syncs
    stalled.disk.going.set()
    revisions = [one.result(PATIENCE_S)[0].revision for one in waiting]
    assert sorted(revisions) == list(range(3, 19))
    assert stalled.disk.syncs <= before + 1


class ForgetfulDisk(Disk):
    """Keeps what is written in memory until it is synced, as a power failure shows."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._unsynced: dict[int, list[Callable[[], None]]] = defaultdict(list)

    def write(self, handle: int, data: bytes) -> None:
        self._unsynced[handle].append(partial(super().write, handle, data))

    def write_at(self, handle: int, data: bytes, offset: int) -> None:
        self._unsynced[handle].append(partial(super().write_at, handle, data, offset))

    def sync(self, handle: int) -> None:
        for step in self._unsynced.pop(handle, []):
            step()

    def close(self, handle: int) -> None:
        self._unsynced.pop(handle, None)
        super().close(handle)


@pytest.mark.parametrize("fsync", ["maybe", "Always", "", None])
def test_an_unknown_durability_is_refused(tmp_path: Path, fsync: Any) -> None:
    """It would be none."""
    with pytest.raises(BadRequest, match="always, interval, never") as raised:
        LocalEngine(Disk(tmp_path / "data"), fsync=fsync)
    assert raised.value.details == {"field": "fsync"}
    assert not (tmp_path / "data").exists()


def test_an_outcome_is_on_disk_before_it_is_told(tmp_path: Path) -> None:
    """Each time, the power fails right behind it; also over compactions and restarts."""
    data = tmp_path / "data"
    engine = LocalEngine(ForgetfulDisk(data), compactor=compaction.Inline)
    for number in range(20):
        outcomes = run(engine, call("incr", key="n"), put(f"k{number % 5}", number), call("list"))
        survived = LocalEngine(Disk(shutil.copytree(data, tmp_path / str(number))))
        assert survived.revision == outcomes[-1].revision == 2 * number + 2
        assert state(survived) == state(engine)
        survived.close()
        if number % 7 == 3:
            compact(engine)
        if number % 7 == 6:
            engine.close()
            engine = LocalEngine(ForgetfulDisk(data), compactor=compaction.Inline)
    engine.close()


class FailingDisk(Disk):
    """One of its writes or syncs fails; those behind it succeed, as the kernel's do."""

    failing = ""
    error: type[BaseException] = OSError

    def write_at(self, handle: int, data: bytes, offset: int) -> None:
        self._fail_in("write_at")
        super().write_at(handle, data, offset)

    def sync(self, handle: int) -> None:
        self._fail_in("sync")
        super().sync(handle)

    def _fail_in(self, step: str) -> None:
        if self.failing == step:
            self.failing = ""
            raise self.error


@pytest.mark.parametrize("step", ["write_at", "sync"])
def test_a_failed_write_or_sync_is_final(tmp_path: Path, step: str) -> None:
    """Nothing is acknowledged from then on, and what was acknowledged is there afterwards."""
    disk, failures = FailingDisk(tmp_path), list[Exception]()
    engine = LocalEngine(disk, compactor=compaction.Inline, on_failure=failures.append)
    run(engine, put("a", 1), put("b", 2))
    disk.failing = step
    for one in (put("c", 3), put("d", 4), get("c"), get("none"), get("a")):
        with pytest.raises(DiskFailed):
            engine.execute([one])
    assert failures
    with pytest.raises(StartError):
        engine.close()
    survived = LocalEngine(Disk(tmp_path), compactor=compaction.Inline)
    assert state(survived)[:2] == [["a", 1, 1], ["b", 2, 2]]
    assert len(state(survived)) <= 3
    survived.close()


@pytest.mark.parametrize("step", ["write_at", "sync"])
def test_a_lack_of_memory_leaves_no_hole_in_the_journal(tmp_path: Path, step: str) -> None:
    """What is told behind it is there after a crash, and the folder opens."""
    disk = FailingDisk(tmp_path / "data")
    engine = LocalEngine(disk, compactor=compaction.Inline)
    run(engine, put("a", 1))
    disk.failing, disk.error = step, MemoryError
    told = {"a"}
    for one in (put("b"), get("b"), put("c"), get("c")):
        with suppress(Unavailable):
            run(engine, one)
            told.add(one.args.key)
    survived = LocalEngine(
        Disk(shutil.copytree(disk.folder, tmp_path / "copy")), compactor=compaction.Inline
    )
    assert {key for key, *_ in state(survived)} >= told
    survived.close()
    assert run(engine, get("b"))[0].result == {"value": 0, "version": 2}
    engine.close()
