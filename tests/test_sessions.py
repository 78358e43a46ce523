"""A request that is numbered within a session is done once, however often it is sent, also
across restarts, crashes and compactions; and no session is remembered for ever.
"""

from __future__ import annotations

import gc
import random
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
from wire import Wire, decoded, op, request

import zkv
from zkv.engines import Call
from zkv.engines.disk import Disk
from zkv.engines.local import LocalEngine
from zkv.errors import NotFound
from zkv.requests import Session
from zkv.service import Service

S: dict[str, Any] = {"session": "robot-7"}
RETRY: dict[str, Any] = {"retry": True}

Life = Callable[[Wire], None]
LIVES: list[Life] = [Wire.go_on, Wire.restart, Wire.crash, Wire.compact]


def compacted_and_crashed(wire: Wire) -> None:
    wire.compact()
    wire.crash()


def crashed_and_compacted(wire: Wire) -> None:
    wire.crash()
    wire.compact()
    wire.restart()


LIVES += [compacted_and_crashed, crashed_and_compacted]
lives = pytest.mark.parametrize(
    "life", LIVES, ids=["-", "restart", "crash", "compact", "compact-crash", "crash-compact"]
)
"""What may happen to a store between a request and its retry."""


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    """A store with a = 5, which expires, and b, which holds an ext; it is at revision 2."""
    with Wire(tmp_path / "data") as wire:
        wire("put", key="a", value=5, ttl=60)
        wire(
            "put", key="b", value={"x": [1.5, b"y", msgpack.ExtType(1, b"z"), msgpack.Timestamp(2)]}
        )
        yield wire


WRITES: list[dict[str, Any]] = [
    op("put", "a", value=1),
    op("put", "b", value=1, return_old=True),
    op("put", "c", value=float("nan"), return_old=True),
    op("delete", "b", return_old=True),
    op("incr", "a", by=2.5),
    op("incr", "new", by=2**63),
    op("expire", "a", ttl=7),
    {"op": "clear", "prefix": ""},
    {"op": "clear", "prefix": "none"},
    {"op": "txn", "then": []},
    {"op": "txn", "then": [op("get", "b"), op("get", "a"), op("incr", "a"), {"op": "list"}]},
    {"op": "txn", "if": [{"key": "a", "version": 9}], "then": [], "else": [op("incr", "a")]},
]


@lives
@pytest.mark.parametrize("write", WRITES, ids=str)
def test_a_request_sent_again_gets_the_same_reply_and_is_not_run(
    wire: Wire, write: dict[str, Any], life: Life
) -> None:
    """The same to the byte, the revision and the id too."""
    first = wire.send(**write, **S, seq=1, id=9)
    assert decoded(first)["ok"]
    assert decoded(first)["revision"] == 3
    state = wire.send("list", values=True)
    life(wire)
    assert wire.send(**write, **S, seq=1, id=9, retry=True) == first
    assert wire.send(**write, **S, seq=1, id=9) == first
    assert wire.send("list", values=True) == state
    assert wire("put", key="next", value=0)["version"] == 4


@lives
def test_a_lower_number_is_stale(wire: Wire, life: Life) -> None:
    for seq in (1, 2, 7):
        assert wire("incr", key="a", **S, seq=seq)["ok"]
    life(wire)
    for seq in (1, 2, 6):
        for retry in (True, False):
            assert wire("incr", key="a", **S, seq=seq, retry=retry)["error"] == "stale"
    assert wire("incr", key="a", **S, seq=7, retry=True)["value"] == 8
    assert wire("incr", key="a", **S, seq=8, retry=True)["value"] == 9


@lives
def test_a_retry_of_an_unknown_session_is_not_run(wire: Wire, life: Life) -> None:
    """It may have run: nobody knows. One that was never sent before is run."""
    life(wire)
    for seq in (1, 5):
        reply = wire("incr", key="a", **S, seq=seq, retry=True)
        assert (reply["error"], reply["revision"]) == ("session_lost", 2)
    assert wire("get", key="a")["value"] == 5
    assert wire("incr", key="a", **S, seq=5)["value"] == 6


def test_a_session_is_a_str_or_a_bin(wire: Wire) -> None:
    """Which are not the same, and need not be text."""
    for number, session in enumerate(["s", b"s", b"\xff\0", "é" * 32, "$b", b"s" * 64]):
        assert wire("incr", key="n", session=session, seq=1)["value"] == number + 1
    wire.restart()
    for number, session in enumerate(["s", b"s", b"\xff\0", "é" * 32, "$b", b"s" * 64]):
        reply = wire("incr", key="n", session=session, seq=1, **RETRY)
        assert reply["value"] == number + 1


def test_a_request_twice_in_one_batch_is_done_once(wire: Wire) -> None:
    body = request("incr", key="n", **S, seq=1)
    replies = wire.service.handle([body, body, request("get", key="n"), body])
    assert replies[0] == replies[1] == replies[3]
    assert decoded(replies[2])["value"] == 1


@lives
def test_a_write_that_changes_nothing_is_remembered(wire: Wire, life: Life) -> None:
    """Here is the difference between running it and not."""
    nothing: dict[str, Any] = {
        "op": "txn",
        "if": [{"key": "a", "exists": False}],
        "then": [op("incr", "a")],
    }
    assert wire(**nothing, **S, seq=1)["success"] is False
    life(wire)
    wire("delete", key="a")
    assert wire(**nothing, **S, seq=1, **RETRY)["success"] is False
    assert wire("count", prefix="a")["count"] == 0


FAILING: list[dict[str, Any]] = [
    op("delete", "none"),
    op("put", "a", value=1, if_={"version": 9}),
    op("incr", "b"),
    {"op": "txn", "then": [op("put", "none", value=1), op("delete", "nope")]},
]


@pytest.mark.parametrize("write", FAILING, ids=str)
def test_a_failure_takes_no_revision_and_is_told_again(wire: Wire, write: dict[str, Any]) -> None:
    """Though by then it would succeed."""
    first = wire.send(**write, **S, seq=1)
    assert decoded(first)["revision"] == 2
    assert len(wire.journal()) == 2
    changed = [op("put", "none", value=0), op("put", "nope", value=0), op("put", "b", value=0)]
    wire("txn", then=changed)
    assert wire.send(**write, **S, seq=1, **RETRY) == first
    assert wire("incr", key="n", **S, seq=2, **RETRY)["value"] == 1
    assert wire(**write, **S, seq=1)["error"] == "stale"


@pytest.mark.parametrize("life", [Wire.restart, Wire.crash])
def test_a_failure_is_not_remembered_over_a_restart(wire: Wire, life: Life) -> None:
    """It had no effect, so its retry may run; the session is known from what it did before."""
    wire("incr", key="n", **S, seq=1)
    assert wire("delete", key="later", **S, seq=2)["error"] == "not_found"
    life(wire)
    assert wire("incr", key="n", **S, seq=1, **RETRY)["value"] == 1
    wire("put", key="later", value=0)
    assert wire("delete", key="later", **S, seq=2, **RETRY)["ok"]


def test_a_bad_request_uses_up_no_number(wire: Wire) -> None:
    assert wire("put", key="", value=0, **S, seq=1)["error"] == "bad_request"
    assert wire("incr", key="n", **S, seq=1)["value"] == 1


@pytest.fixture
def three_sessions_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkv.engines.sessions.SESSIONS_MAX", 3)
    monkeypatch.setattr("zkv.engines.local.SESSIONS_MAX", 3)


@lives
@pytest.mark.usefixtures("three_sessions_at_most")
def test_the_session_unused_for_longest_leaves(wire: Wire, life: Life) -> None:
    for session, seq in (("a", 1), ("b", 1), ("c", 1), ("a", 2), ("d", 1)):
        assert wire("incr", key="n", session=session, seq=seq)["ok"]
    life(wire)
    info = wire("info")
    assert (info["sessions"], info["sessions_max"]) == (3, 3)
    for session, seq, value in (("c", 1, 3), ("a", 2, 4), ("d", 1, 5)):
        assert wire("incr", key="n", session=session, seq=seq, **RETRY)["value"] == value
    assert wire("incr", key="n", session="b", seq=1, **RETRY)["error"] == "session_lost"
    assert wire("incr", key="n", session="e", seq=1)["value"] == 6
    life(wire)
    assert wire("incr", key="n", session="c", seq=1, **RETRY)["error"] == "session_lost"
    assert wire("incr", key="n", session="a", seq=2, **RETRY)["value"] == 4


def test_info_shows_the_bound(wire: Wire) -> None:
    wire("incr", key="n", **S, seq=1)
    info = wire("info")
    assert (info["sessions"], info["sessions_max"]) == (1, 100_000)


def test_without_a_session_nothing_is_remembered(wire: Wire) -> None:
    assert wire("incr", key="n")["value"] == 1
    assert wire("incr", key="n")["value"] == 2
    assert wire("info")["sessions"] == 0


def test_a_remembered_failure_does_not_hold_on_to_its_request(wire: Wire) -> None:
    """An error knows its traceback, that its frames, and those what was sent: up to 8 MiB
    for each of 100,000 sessions.
    """

    class Sent:
        pass

    def fail(t: Any, args: Any) -> Any:
        raise NotFound("none")

    sent = Sent()
    still_there = weakref.ref(sent)
    wire.engine.execute([Call(fail, {"value": sent}, Session("s", 1, False))])
    del sent
    gc.collect()
    assert still_there() is None


class GatedDisk(Disk):
    """Its syncs wait while the gate is shut."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate, self.waiting = threading.Event(), threading.Event()
        self.gate.set()

    def sync(self, handle: int) -> None:
        self.waiting.set()
        assert self.gate.wait(30)
        super().sync(handle)


def test_a_retry_waits_for_the_disk_like_the_first(tmp_path: Path) -> None:
    disk = GatedDisk(tmp_path)
    engine = LocalEngine(disk)
    service = Service(engine, "0")
    body = request("incr", key="n", **S, seq=1)
    with ThreadPoolExecutor(2) as pool:
        disk.gate.clear()
        disk.waiting.clear()
        first = pool.submit(service.handle, [body])
        assert disk.waiting.wait(30)
        again = pool.submit(service.handle, [body])
        with pytest.raises(TimeoutError):
            again.result(0.2)
        disk.gate.set()
        assert first.result(30) == again.result(30)
    engine.close()


def test_an_embedded_store_writes_once_without_sessions(tmp_path: Path) -> None:
    """Nothing can be lost on the way, so there is nothing to remember."""
    with zkv.open(tmp_path) as store:
        assert [store.incr("n") for _ in range(3)] == [1, 2, 3]
        assert store.info()["sessions"] == 0


# What is kept, and for how long


def incr_in(wire: Wire, session: str, seq: int, **fields: Any) -> Any:
    return wire("incr", key="n", session=session, seq=seq, **fields)


@lives
def test_a_session_in_use_stays_though_others_come_without_end(
    wire: Wire, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkv.engines.sessions.SESSIONS_MAX", 20)
    for seq in (1, 2, 3):
        incr_in(wire, "used", seq)
    value = incr_in(wire, "used", 4)["value"]
    for number in range(100):
        incr_in(wire, f"careless {number}", 1)
        incr_in(wire, f"careless {number}", 2)
    life(wire)
    assert wire("info")["sessions"] == 20
    assert incr_in(wire, "used", 4, **RETRY)["value"] == value
    assert incr_in(wire, "careless 0", 2, **RETRY)["error"] == "session_lost"


def test_sessions_in_use_leave_when_all_are(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkv.engines.sessions.SESSIONS_MAX", 20)
    for number in range(25):
        incr_in(wire, f"used {number}", 3)
    assert wire("info")["sessions"] == 20
    assert wire("info")["sessions_forgotten"] == 5
    assert incr_in(wire, "used 4", 3, **RETRY)["error"] == "session_lost"
    assert incr_in(wire, "used 5", 3, **RETRY)["ok"]


@lives
def test_a_session_that_was_forgotten_is_not_known_again(
    wire: Wire, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was before its latest request, which would be done twice then."""
    monkeypatch.setattr("zkv.engines.sessions.SESSIONS_MAX", 20)
    incr_in(wire, "forgotten", 1)
    wire.compact()
    assert incr_in(wire, "forgotten", 2)["value"] == 2
    for seq in (1, 2, 3):
        for number in range(25):
            incr_in(wire, f"careless {number}", seq)
    assert incr_in(wire, "forgotten", 2, **RETRY)["error"] == "session_lost"
    life(wire)
    assert incr_in(wire, "forgotten", 2, **RETRY)["error"] == "session_lost"


def known_sessions(wire: Wire) -> list[Any]:
    return [(it.session, it.seq) for it, _ in wire.engine._table.sessions.completed()]


@lives
def test_the_same_sessions_are_known_in_the_same_order(
    wire: Wire, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever came since the last snapshot, which more were known at than have room."""
    monkeypatch.setattr("zkv.engines.sessions.SESSIONS_MAX", 20)
    for seed in range(20):
        print("seed", seed)
        rng = random.Random(seed)
        seqs = dict.fromkeys(range(40), 0)
        for _ in range(rng.randrange(300)):
            number = rng.randrange(rng.randrange(1, 41))
            seqs[number] += 1
            incr_in(wire, f"{seed} {number}", seqs[number])
        before = known_sessions(wire)
        life(wire)
        assert known_sessions(wire) == before


MIB = 2**20


@lives
def test_large_replies_are_bounded_in_bytes_and_their_numbers_stay(
    wire: Wire, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkv.engines.sessions.REPLIES_BYTES_MAX", 3 * MIB)
    for number in range(5):
        wire("put", key="big", value=bytes(MIB - 100))
        assert wire("delete", key="big", return_old=True, session=f"s{number}", seq=1)["ok"]
    life(wire)
    assert wire("info")["replies_bytes"] <= 3 * MIB
    for number in range(5):
        reply = wire("delete", key="big", session=f"s{number}", seq=1, **RETRY)
        assert reply.get("error") == (None if number > 1 else "session_lost")
        assert "was done" in reply["message"] if number < 2 else len(reply["old"]) == MIB - 100
    assert incr_in(wire, "s0", 2)["value"] == 1
    assert wire("delete", key="big", session="s1", seq=0 + 1)["error"] == "session_lost"


def test_large_replies_are_given_up_when_they_are_old(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire("put", key="big", value=bytes(MIB))
    wire("delete", key="big", return_old=True, **S, seq=1)
    wire("incr", key="n", session="small", seq=1)
    assert wire("info")["replies_bytes"] > MIB
    for _ in range(2):
        wire.engine._age_at = 0.0
        wire.engine._age_replies()
    info = wire("info")
    assert (info["replies_bytes"], info["replies_given_up"], info["sessions"]) == (0, 1, 2)
    assert wire("delete", key="big", **S, seq=1, **RETRY)["error"] == "session_lost"
    assert incr_in(wire, "small", 1, **RETRY)["value"] == 1


def test_old_replies_are_given_up_a_few_at_a_time(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait meanwhile."""
    monkeypatch.setattr("zkv.engines.local.GIVE_UP_MAX", 3)
    for number in range(5):
        wire("put", key="big", value=bytes(1000))
        wire("delete", key="big", return_old=True, session=f"s{number}", seq=1)
    wire.engine._age_at = 0.0
    wire.engine._age_replies()
    wire.engine._age_at = 0.0
    given_up = []
    for _ in range(3):
        wire.engine._age_replies()
        given_up.append(wire("info")["replies_given_up"])
    assert given_up == [3, 5, 5]
    assert wire("delete", key="big", session="s4", seq=1, **RETRY)["error"] == "session_lost"


def test_large_replies_that_are_kept_end_a_turn(wire: Wire) -> None:
    """As those that are read do: else all of a batch are in memory at once."""
    wire("put", key="big", value=bytes(7 * MIB))
    fields = {"key": "big", "return_old": True, **S, "seq": 1}
    assert wire("delete", **fields)["ok"]
    replies = wire.service.handle([request("delete", **fields, **RETRY)] * 64, 64 * MIB)
    assert len(replies) == 2
    assert all(len(decoded(reply)["old"]) == 7 * MIB for reply in replies)


def test_a_transaction_that_only_reads_is_not_kept(wire: Wire) -> None:
    wire("put", key="big", value=bytes(MIB))
    reads = {"then": [op("get", "big"), {"op": "count"}, {"op": "list"}]}
    before = wire("info")
    assert wire("txn", **reads, **S, seq=1)["success"]
    after = wire("info")
    kept = ("replies_bytes", "sessions", "journal_bytes")
    assert [before[name] for name in kept] == [after[name] for name in kept]
    assert wire("txn", **reads, **S, seq=1, **RETRY)["success"]


def test_no_file_holds_the_name_of_a_session(wire: Wire) -> None:
    incr_in(wire, "robot-7", 1)
    wire("incr", key="n", session=b"robot-7", seq=1)
    wire.compact()
    incr_in(wire, "robot-7", 2)
    for path in wire.folder.iterdir():
        assert b"robot-7" not in path.read_bytes()


def test_sessions_of_a_folder_that_holds_names_go_on(tmp_path: Path) -> None:
    """As version 0.1.0 wrote it."""
    shutil.copytree(Path(__file__).with_name("folder-0.1.0"), tmp_path, dirs_exist_ok=True)
    with Wire(tmp_path) as wire:
        for session, value in (("in the snapshot", 1), ("in the journal", 2), (b"\xff", 3)):
            reply = wire("incr", key="n", session=session, seq=2, **RETRY)
            assert reply.get("value") == value
        assert incr_in(wire, "in the journal", 3)["value"] == 4
