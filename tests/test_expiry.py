"""What has a time to live is gone when it is over: before any sweep, over restarts and clock
jumps, and at no cost for those keys that are not due.
"""

from __future__ import annotations

import heapq
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import wait_until
from wire import Wire, op

import zkv
from zkv.engines.table import Table
from zkv.transaction import Commit, Entry
from zkv.values import Packed

YEAR_S = 365 * 86_400.0


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    """A store with a, which expires in 10 s, and b, which never does."""
    with Wire(tmp_path / "data") as wire:
        wire("put", key="a", value=1, ttl=10)
        wire("put", key="b", value=2)
        yield wire


def keys(wire: Wire) -> list[str]:
    return [key for key, *_ in wire.state()]


def test_get_tells_the_time_that_remains(wire: Wire) -> None:
    assert wire("get", key="a") == {"ok": True, "revision": 2, "value": 1, "version": 1, "ttl": 10}
    wire.now += 9.75
    assert wire("get", key="a")["ttl"] == 0.25
    assert "ttl" not in wire("get", key="b")


READS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"op": "get", "key": "a"}, {"error": "not_found"}),
    ({"op": "get", "key": "a", "default": 7}, {"value": 7, "version": 0}),
    ({"op": "list"}, {"items": [["b", 2]], "more": False}),
    ({"op": "list", "limit": 1}, {"items": [["b", 2]], "more": False}),
    ({"op": "count"}, {"count": 1}),
    ({"op": "count", "prefix": "a"}, {"count": 0}),
    ({"op": "clear", "prefix": "a"}, {"count": 0}),
    ({"op": "delete", "key": "a"}, {"error": "not_found"}),
    ({"op": "expire", "key": "a", "ttl": None}, {"error": "not_found"}),
    ({"op": "incr", "key": "a"}, {"value": 1, "version": 4}),
    ({"op": "put", "key": "a", "value": 0, "if": {"exists": True}}, {"error": "conflict"}),
    ({"op": "put", "key": "a", "value": 0, "if": {"version": 1}}, {"version": 0}),
    ({"op": "put", "key": "a", "value": 0, "if": {"version": 0}}, {"version": 4}),
]


@pytest.mark.parametrize(("asked", "told"), READS, ids=str)
def test_nothing_sees_an_expired_key(
    wire: Wire, asked: dict[str, Any], told: dict[str, Any]
) -> None:
    """Be it the very first request behind its deadline."""
    wire.now += 10
    assert wire(**asked).items() >= told.items()


def test_a_txn_sees_no_expired_key(wire: Wire) -> None:
    wire.now += 10
    ops = [op("get", "a", default=None), {"op": "count"}, {"op": "list"}, op("incr", "a")]
    reply = wire("txn", if_=[{"key": "a", "exists": False}], then=ops)
    assert reply["success"]
    assert [result.get("count", result.get("value")) for result in reply["results"]] == [
        None, 1, None, 1,
    ]  # fmt: skip
    assert reply["results"][2]["items"] == [["b", 2]]


def test_a_key_lives_until_its_deadline(wire: Wire) -> None:
    wire.now += 9.75
    assert keys(wire) == ["a", "b"]
    wire.now += 0.25
    assert keys(wire) == ["b"]


def test_removal_takes_one_revision_of_its_own(wire: Wire) -> None:
    """One for all that are due."""
    for key in ("c", "d"):
        wire("put", key=key, value=0, ttl=5)
    wire.now += 10
    assert wire("put", key="e", value=0)["version"] == 6
    swept = wire.journal()[4]
    assert swept["rev"] == 5
    assert sorted(swept["delete"]) == ["a", "c", "d"]
    assert "put" not in swept
    assert wire("put", key="f", value=0)["version"] == 7


def test_it_leaves_the_disk_without_being_asked(wire: Wire) -> None:
    wire.now += 10
    wait_until(lambda: len(wire.journal()) == 3)
    assert wire.journal()[-1]["delete"] == ["a"]


WRITES: list[tuple[dict[str, Any], float | None]] = [
    (op("put", "a", value=2), None),
    (op("put", "a", value=2, ttl=3.5), 3.5),
    (op("put", "a", value=2, keep_ttl=True), 8.0),
    (op("put", "a", value=2, keep_ttl=False), None),
    (op("put", "a", value=2, return_old=True), None),
    (op("put", "b", value=2, keep_ttl=True), None),
    (op("put", "new", value=2, keep_ttl=True), None),
    (op("incr", "a"), 8.0),
    (op("incr", "b"), None),
    (op("expire", "a", ttl=None), None),
    (op("expire", "a", ttl=1), 1.0),
    (op("expire", "b", ttl=0.5), 0.5),
    (op("put", "a", value=2, ttl=8.0), 8.0),
]


@pytest.mark.parametrize(("write", "left"), WRITES, ids=str)
@pytest.mark.parametrize("again", [Wire.go_on, Wire.restart, Wire.crash])
def test_what_a_write_does_to_the_time_to_live(
    wire: Wire, write: dict[str, Any], left: float | None, again: Callable[[Wire], None]
) -> None:
    """And the key goes then, not when it was to go before."""
    key = write["key"]
    wire.now += 2
    assert wire(**write)["ok"]
    again(wire)
    assert wire("get", key=key).get("ttl") == left
    wire.now += (left or YEAR_S) - 0.25
    assert key in keys(wire)
    wire.now += 0.25
    assert (key in keys(wire)) is (left is None)


def test_a_key_put_again_with_the_deadline_it_had_expires(wire: Wire) -> None:
    for _ in range(3):
        wire("delete", key="a")
        wire("put", key="a", value=3, ttl=10)
    wire.now += 10
    assert keys(wire) == ["b"]


@pytest.mark.parametrize("again", [Wire.restart, Wire.crash])
def test_deadlines_are_absolute_on_disk(wire: Wire, again: Callable[[Wire], None]) -> None:
    deadline = wire.now + 10
    assert wire.journal()[0]["expires"] == {"a": deadline}
    wire.now += 4
    wire.compact()
    assert wire.snapshot()[0].items() >= {"key": "a", "expires": deadline}.items()
    assert "expires" not in wire.snapshot()[1]
    again(wire)
    assert wire("get", key="a")["ttl"] == 6
    again(wire)
    wire.now += 1
    assert wire("get", key="a")["ttl"] == 5


@pytest.mark.parametrize("again", [Wire.restart, Wire.crash])
@pytest.mark.parametrize("compacted", [False, True])
def test_what_expires_while_nothing_runs_does_not_come_back(
    wire: Wire, again: Callable[[Wire, float], None], compacted: bool
) -> None:
    if compacted:
        wire.compact()
    again(wire, 3)
    again(wire, 7)
    assert wire("get", key="a")["error"] == "not_found"
    assert keys(wire) == ["b"]
    again(wire, 0)
    assert keys(wire) == ["b"]
    assert wire("put", key="a", value=1)["version"] == 4


def test_what_has_expired_stays_gone_when_the_clock_goes_back(wire: Wire) -> None:
    wire.now += 10
    assert keys(wire) == ["b"]
    for again in (wire.go_on, wire.restart, wire.crash):
        wire.now -= YEAR_S
        again()
        assert keys(wire) == ["b"]


@pytest.mark.parametrize("again", [Wire.go_on, Wire.restart, Wire.crash])
def test_the_clock_may_jump_back_a_year(wire: Wire, again: Callable[[Wire], None]) -> None:
    """A deadline is a time of the day: what had 10 s has a year and 10 s now, and goes then."""
    wire.now -= YEAR_S
    again(wire)
    assert wire("get", key="a")["ttl"] == YEAR_S + 10
    assert wire("put", key="c", value=0, ttl=1)["version"] == 3
    wire.now += 1
    assert keys(wire) == ["a", "b"]
    wire.now += YEAR_S + 9
    assert keys(wire) == ["b"]


@pytest.mark.parametrize("again", [Wire.go_on, Wire.restart, Wire.crash])
def test_the_clock_may_jump_forward_a_year(wire: Wire, again: Callable[[Wire], None]) -> None:
    """All that was to expire within the year is gone; what is put then lives as it should."""
    wire.now += YEAR_S
    again(wire)
    assert keys(wire) == ["b"]
    wire("put", key="c", value=0, ttl=1)
    assert wire("get", key="c")["ttl"] == 1
    wire.now += 1
    assert keys(wire) == ["b"]


@pytest.mark.parametrize("ttl", [1e-300, 1e-7, 1e12, 1e300, 1.7e308, 2**63, 2**64 - 1])
def test_any_time_to_live_can_be_put_and_read_back(wire: Wire, ttl: float) -> None:
    assert wire("put", key="c", value=0, ttl=ttl)["ok"]
    wire.now += 0.25
    for again in (wire.go_on, wire.restart, wire.compact, wire.crash):
        again()
        assert ("c" in keys(wire)) is (ttl > 1)


class Work:
    """Counts what is taken off heaps and put on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        for name in ("heappop", "heappush"):
            monkeypatch.setattr(heapq, name, self._counted(getattr(heapq, name)))
        monkeypatch.setattr(heapq, "heapify", self._whole(heapq.heapify))

    def _counted(self, function: Any) -> Any:
        def count(*args: Any) -> Any:
            self.steps += 1
            return function(*args)

        return count

    def _whole(self, function: Any) -> Any:
        def count(heap: list[Any]) -> Any:
            self.steps += len(heap)
            return function(heap)

        return count


def change(table: Table, **deadlines: float | None) -> None:
    """One revision that puts these keys."""
    revision = table.next_revision
    changes = {key: Entry(Packed(b"\0"), revision, it) for key, it in deadlines.items()}
    table.apply(Commit(revision, 0.0, changes))


def sweep(table: Table, now: float) -> list[str]:
    """All keys that are due, removed, as the engine does it: some at a time."""
    gone: list[str] = []
    while due := table.due(now, 100):
        table.apply(Commit(table.next_revision, now, dict.fromkeys(due)))
        gone += due
    return gone


def test_only_what_is_due_costs_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at 20,000 keys of which none is due is one step, and no scan."""
    table = Table()
    table.build_index()
    change(table, **{f"k{n}": 1000.0 + n for n in range(20_000)})
    work = Work(monkeypatch)
    for _ in range(100):
        assert sweep(table, 999.0) == []
    assert work.steps == 0
    assert len(sweep(table, 1249.0)) == 250
    assert work.steps == 250
    assert len(table) == 19_750


def test_putting_a_key_again_and_again_keeps_the_heap_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And costs a few steps each time; and still it goes at its last deadline only."""
    table = Table()
    table.build_index()
    change(table, other=5.0)
    work = Work(monkeypatch)
    for n in range(10_000):
        change(table, again=10.0 + n)
        assert len(table._deadlines) < 2000
    assert work.steps < 50_000
    assert sweep(table, 10_008.0) == ["other"]
    assert sweep(table, 10_009.0) == ["again"]


def test_a_key_goes_at_its_last_deadline_however_often_that_was_moved() -> None:
    """Also where the heap is made anew just as it is moved: with one key, at 1,003 deadlines."""
    for times in range(995, 1010):
        table = Table()
        table.build_index()
        for n in range(times):
            change(table, lease=10.0 + n)
        assert sweep(table, 8.0 + times) == []
        assert sweep(table, 9.0 + times) == ["lease"], f"{times} times"


def test_a_store_copied_while_it_runs_keeps_its_deadlines(wire: Wire) -> None:
    """A backup opened later, by another process with the right time."""
    copy = shutil.copytree(wire.folder, wire.folder.parent / "backup")
    with Wire(Path(copy)) as backup:
        backup.now = wire.now + 9
        assert backup("get", key="a")["ttl"] == 1
        backup.now += 1
        assert keys(backup) == ["b"]


# A wall clock that is set


class WallClock:
    """The one of the machine, as it would be had it been set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set_by = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.set_by)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(monkeypatch)


def noted(store: zkv.Store) -> None:
    """Returns when the store has seen what the wall clock says."""
    engine = store._engine  # type: ignore[attr-defined]
    wait_until(lambda: abs(engine._steady.ahead() - engine._ahead) < 1)


HOUR = 3600


@pytest.mark.parametrize("hours", [1, -1, 24 * 365])
def test_a_clock_that_is_set_ends_and_stretches_nothing(
    tmp_path: Path, wall: WallClock, hours: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither while the store is open, nor over a restart."""
    with zkv.open(tmp_path) as store:
        store.put("lock", 1, ttl=1000)
        store.put("short", 1, ttl=0.3)
        wall.set_by = hours * HOUR
        assert 900 < (store.item("lock").ttl or 0) <= 1000
        wait_until(lambda: store.get("short", None) is None)
        noted(store)
        assert f"was set by {hours * HOUR:+}" in caplog.text
    for _ in range(2):
        with zkv.open(tmp_path) as store:
            assert 900 < (store.item("lock").ttl or 0) <= 1000
    wall.set_by += 2 * HOUR  # it was down for so long
    with zkv.open(tmp_path) as store:
        assert store.get("lock", None) is None


def test_a_clock_that_is_set_is_remembered_by_a_store_that_crashes(
    tmp_path: Path, wall: WallClock
) -> None:
    with zkv.open(tmp_path / "a") as store:
        store.put("lock", 1, ttl=1000)
        wall.set_by = HOUR
        noted(store)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    with zkv.open(tmp_path / "b") as store:
        assert 900 < (store.item("lock").ttl or 0) <= 1000
        store.put("another", 1, ttl=1000)
        wall.set_by = 0
        noted(store)
        assert 900 < (store.item("another").ttl or 0) <= 1000
