"""A txn is done as one revision, or not at all; and what a bad one is told."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import zmq
from harness import ask, raw_socket, serving
from wire import Wire, decoded, op, request

import zkv
from zkv import values
from zkv.engines import Call

A, B = "a", "b"
GUARDS: list[tuple[list[dict[str, Any]], bool]] = [
    ([], True),
    ([{"key": A, "version": 1}], True),
    ([{"key": A, "version": 2}], False),
    ([{"key": A, "exists": True}, {"key": B, "exists": True}], True),
    ([{"key": A, "exists": True}, {"key": B, "exists": False}], False),
    ([{"key": A, "exists": False}, {"key": B, "exists": True}], False),
    ([{"key": A, "version": 1}, {"key": A, "value": 1}], True),
    ([{"key": A, "version": 1, "exists": True, "value": 1}], True),
    ([{"key": A, "version": 1, "exists": True, "value": 2}], False),
    ([{"key": A, "version": 2, "exists": True, "value": 1}], False),
    ([{"key": "none", "version": 0, "exists": False}], True),
    ([{"key": "none", "version": 0, "exists": True}], False),
    ([{"key": "none", "value": None}], False),
]

TOO_DEEP: Any = reduce(lambda inner, _: [inner], range(values.DEPTH_MAX + 1), 0)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    """A store with a = 1 of version 1 and b = [2] of version 2."""
    with Wire(tmp_path / "data") as wire:
        wire("put", key=A, value=1)
        wire("put", key=B, value=[2])
        yield wire


@pytest.mark.parametrize(("guards", "hold"), GUARDS)
def test_all_conditions_must_hold(wire: Wire, guards: list[Any], hold: bool) -> None:
    """Then `then` is done, and otherwise `else`; never both."""
    reply = wire("txn", if_=guards, then=[op("put", "yes", value=0)], else_=[op("incr", "no")])
    assert reply["success"] is hold
    assert reply["results"] == [{"version": 3} if hold else {"value": 1, "version": 3}]
    assert {key for key, *_ in wire.state()} == {A, B, "yes" if hold else "no"}


def test_without_an_else_nothing_is_done(wire: Wire) -> None:
    reply = wire("txn", if_=[{"key": A, "version": 9}], then=[op("delete", A)])
    assert reply == {"ok": True, "revision": 2, "success": False, "results": []}
    assert wire.state() == [[A, 1, 1], [B, 2, [2]]]


def test_each_op_sees_what_those_before_it_did(wire: Wire) -> None:
    ops = [
        op("put", "c", value="x"), op("get", "c"), op("put", "c", value=5, return_old=True),
        op("incr", "c", by=2), op("get", "c"), op("delete", "c", return_old=True),
        op("get", "c", default=None), op("put", "c", value=0, if_={"version": 0}),
        op("put", "c", value=1, if_={"version": 3, "value": 0}), op("expire", "c", ttl=8),
        op("get", "c"),
    ]  # fmt: skip
    assert wire("txn", then=ops)["results"] == [
        {"version": 3}, {"value": "x", "version": 3}, {"version": 3, "old": "x"},
        {"value": 7, "version": 3}, {"value": 7, "version": 3}, {"version": 3, "old": 7},
        {"value": None, "version": 0}, {"version": 3}, {"version": 3}, {"version": 3},
        {"value": 1, "version": 3, "ttl": 8.0},
    ]  # fmt: skip


def test_list_and_count_see_the_puts_and_deletes_before_them(wire: Wire) -> None:
    look = [{"op": "list", "values": True}, {"op": "count"}, {"op": "count", "prefix": "b"}]
    ops = [op("put", "bb", value=3), op("put", A, value=4), *look, op("delete", B), *look]
    both, after = [[A, 3, 4], [B, 2, [2]], ["bb", 3, 3]], [[A, 3, 4], ["bb", 3, 3]]
    results = wire("txn", then=ops)["results"]
    assert results[2:5] == [{"items": both, "more": False}, {"count": 3}, {"count": 2}]
    assert results[6:] == [{"items": after, "more": False}, {"count": 2}, {"count": 1}]
    assert wire.state() == after


@pytest.mark.parametrize("branch", ["then", "else"])
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize(
    ("failing", "error", "details"),
    [
        (op("get", "none"), "not_found", {}),
        (op("delete", "none"), "not_found", {}),
        (op("expire", "none", ttl=1), "not_found", {}),
        (op("incr", B), "wrong_type", {}),
        (op("incr", A, by=2**64 - 1), "overflow", {}),
        (op("put", A, value=2, if_={"version": 9}), "conflict", {"version": 1}),
    ],
)
def test_one_op_that_fails_undoes_all(
    wire: Wire, branch: str, index: int, failing: Any, error: str, details: dict[str, Any]
) -> None:
    ops = [op("put", "c", value=1), op("put", B, value="x"), op("delete", A)]
    ops.insert(index, failing)
    branches = {"then": [], "else": [], branch: ops}
    reply = wire("txn", if_=[{"key": A, "exists": branch == "then"}], **branches)
    assert not reply["ok"]
    assert reply["error"] == error
    assert reply["index"] == index
    assert reply.items() >= details.items()
    assert wire.state() == [[A, 1, 1], [B, 2, [2]]]
    assert len(wire.journal()) == 2
    assert wire("put", key="next", value=0)["version"] == 3


def test_it_is_one_revision_and_one_line(wire: Wire) -> None:
    ops = [op("put", f"k{n}", value=n) for n in range(1022)] + [op("delete", A), op("incr", "n")]
    reply = wire("txn", then=ops)
    assert reply["ok"]
    assert reply["revision"] == 3
    assert [line["rev"] for line in wire.journal()] == [1, 2, 3]
    last = wire.journal()[-1]
    assert len(last["put"]) == 1023
    assert last["delete"] == [A]
    assert {version for key, version, _ in wire.state() if key != B} == {3}
    assert wire("txn", then=[op("get", B), {"op": "count"}])["revision"] == 3
    assert len(wire.journal()) == 3


@pytest.mark.parametrize("field", ["if", "then", "else"])
def test_more_than_1024_are_refused(wire: Wire, field: str) -> None:
    one = {"key": A, "exists": True} if field == "if" else op("get", A)
    fields: dict[str, Any] = {"then": [], field: [one] * 1024}
    assert wire("txn", **fields)["ok"]
    reply = wire("txn", **{**fields, field: [one] * 1025})
    told = {"error": "bad_request", "field": field, "limit": 1024, "size": 1025}
    assert reply.items() >= told.items()


PUT = op("put", "c", value=1)
BAD: list[tuple[str, dict[str, Any], str]] = [
    *[("put", {**PUT, "ttl": ttl}, "ttl") for ttl in (0, -1, -0.5, float("nan"), float("inf"))],
    *[("expire", op("expire", A, ttl=ttl), "ttl") for ttl in (0, -1, float("nan"), True, "1")],
    ("put", {**PUT, "ttl": 1, "keep_ttl": True}, "keep_ttl"),
    ("put", {**PUT, "if": {"newer": 1}}, "if"),
    ("put", {**PUT, "if": {}}, "if"),
    ("put", {**PUT, "if": {"version": -1}}, "if.version"),
    ("put", {**PUT, "if": {"version": True}}, "if.version"),
    ("put", {**PUT, "if": {"exists": 1}}, "if.exists"),
    ("get", op("get", A, if_={"version": 1}), "if"),
    ("list", {"op": "list", "if": {"version": 1}}, "if"),
    ("put", {**PUT, "session": "s", "seq": 0}, "seq"),
    ("put", {**PUT, "session": "s", "seq": -1}, "seq"),
    ("put", {**PUT, "session": "s", "seq": True}, "seq"),
    ("put", {**PUT, "session": "s"}, "seq"),
    ("put", {**PUT, "seq": 1}, "seq"),
    ("put", {**PUT, "retry": True}, "retry"),
    ("put", {**PUT, "session": "s", "seq": 1, "retry": 1}, "retry"),
    ("put", {**PUT, "session": "s" * 65, "seq": 1}, "session"),
    ("put", {**PUT, "session": b"s" * 65, "seq": 1}, "session"),
    ("put", {**PUT, "session": "é" * 33, "seq": 1}, "session"),
    ("put", {**PUT, "session": "", "seq": 1}, "session"),
    ("put", {**PUT, "session": 7, "seq": 1}, "session"),
    ("get", op("get", A, session="s", seq=1), "session"),
    ("txn", {"then": [{"op": "txn", "then": []}]}, "op"),
    ("txn", {"then": [{"op": "clear", "prefix": ""}]}, "op"),
    ("txn", {"then": [{**PUT, "session": "s", "seq": 1}]}, "session"),
    ("txn", {"then": [op("get", A, if_={"version": 1})]}, "if"),
    ("txn", {"then": [], "if": [{"key": A, "newer": 1}]}, "if"),
    ("txn", {"then": [], "if": [{"key": A}]}, "if"),
    ("txn", {"then": [], "if": [{"version": 1}]}, "if"),
    ("txn", {"then": [], "if": {"key": A, "version": 1}}, "if"),
    ("txn", {"then": [7]}, "then"),
    ("txn", {"else": []}, "then"),
]


@pytest.mark.parametrize(("op_", "fields", "field"), BAD)
def test_a_bad_request_is_told_where(
    wire: Wire, op_: str, fields: dict[str, Any], field: str
) -> None:
    """And nothing comes of it, also not when it is one of the ops of a txn."""
    reply = wire(**{"op": op_, **fields})
    assert (reply["error"], reply["field"]) == ("bad_request", field)
    if op_ != "txn" and field not in ("session", "seq", "retry"):
        reply = wire("txn", then=[PUT, {"op": op_, **fields}])
        assert (reply["error"], reply["field"], reply["index"]) == ("bad_request", field, 1)
    assert wire.state() == [[A, 1, 1], [B, 2, [2]]]
    assert wire("put", key="next", value=0)["version"] == 3


def test_an_unknown_condition_is_named(wire: Wire) -> None:
    assert "newer" in wire("put", key=A, value=1, if_={"newer": 1})["message"]


CONDITIONS: list[tuple[dict[str, Any], bool]] = [
    ({"version": 1}, True),
    ({"version": 0}, False),
    ({"version": 2}, False),
    ({"exists": True}, True),
    ({"exists": False}, False),
    ({"value": 1}, True),
    ({"value": 1.0}, False),
    ({"value": True}, False),
    ({"value": None}, False),
    ({"version": 1, "value": 1, "exists": True}, True),
    ({"version": 1, "value": 2, "exists": True}, False),
]


@pytest.mark.parametrize(("conditions", "hold"), CONDITIONS)
@pytest.mark.parametrize(
    "write", [op("put", A, value=1), op("delete", A), op("incr", A), op("expire", A, ttl=9)]
)
def test_every_write_takes_conditions(
    wire: Wire, write: dict[str, Any], conditions: dict[str, Any], hold: bool
) -> None:
    reply = wire(**write, if_=conditions)
    if hold:
        assert reply["ok"]
        assert reply["revision"] == 3
        return
    assert (reply["error"], reply["version"], reply["revision"]) == ("conflict", 1, 2)
    assert wire.state() == [[A, 1, 1], [B, 2, [2]]]
    assert len(wire.journal()) == 2


def test_transactions_never_interleave(wire: Wire) -> None:
    """Each of two that would meet in the middle finds itself alone there."""
    middle = threading.Barrier(2)

    def add(t: Any, _: Any) -> dict[str, Any]:
        number = values.unpack(t.get(A).packed)
        with suppress(threading.BrokenBarrierError):
            middle.wait(0.2)
        t.put(A, values.pack(number + 1))
        return {}

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(wire.engine.execute, [[Call(add, {})]] * 2))
    assert wire("get", key=A)["value"] == 3


class TestBlock:
    """`with store.transaction() as block`."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[zkv.Store]:
        with zkv.open(tmp_path / "store") as store:
            store.put(A, 1)
            yield store

    def test_its_results_are_there_behind_it(self, store: zkv.Store) -> None:
        with store.transaction() as block:
            block.check(A, version=1, exists=True, value=1)
            block.get(A)
            block.incr(A, 2)
            block.put("c", "x", ttl=60)
            block.expire("c", None)
            block.delete("c")
            block.count()
            assert store.get(A) == 1
        assert block.success
        assert block.revision == 2
        assert block.results == [
            {"value": 1, "version": 1}, {"value": 3, "version": 2}, {"version": 2},
            {"version": 2}, {"version": 2}, {"count": 1},
        ]  # fmt: skip

    def test_an_exception_inside_sends_nothing(self, store: zkv.Store) -> None:
        block = store.transaction()
        block.put(A, 2)
        with pytest.raises(ZeroDivisionError), block:
            raise ZeroDivisionError
        assert store.item(A) == zkv.Item(A, 1, 1)
        assert not block.success
        assert not block.results

    def test_what_is_on_otherwise_is_done_when_a_check_does_not_hold(
        self, store: zkv.Store
    ) -> None:
        with store.transaction() as block:
            block.check(A, version=7)
            block.put(A, 2)
            block.otherwise.get(A)
            block.otherwise.incr("refused")
        assert not block.success
        assert block.results == [{"value": 1, "version": 1}, {"value": 1, "version": 2}]

    def test_with_nothing_on_otherwise_it_raises_conflict(self, store: zkv.Store) -> None:
        block = store.transaction()
        block.check(A, exists=False)
        block.put(A, 2)
        with pytest.raises(zkv.Conflict), block:
            pass
        assert list(store.items()) == [zkv.Item(A, 1, 1)]

    def test_an_op_that_fails_is_told_by_its_index(self, store: zkv.Store) -> None:
        block = store.transaction()
        block.put("c", 1)
        block.delete("none")
        with pytest.raises(zkv.NotFound) as raised, block:
            pass
        assert raised.value.details["index"] == 1
        assert list(store.keys()) == [A]

    def test_it_is_sent_once(self, store: zkv.Store) -> None:
        block = store.transaction()
        with block:
            block.incr(A)
        with pytest.raises(zkv.BadRequest, match="has been sent"), block:
            block.incr("b")
        assert list(store.items()) == [zkv.Item(A, 2, 2)]

    def test_nothing_but_puts_is_one_revision(self, store: zkv.Store) -> None:
        with store.transaction() as block:
            block.put(A, 2)
            block.put("b", {"deep": [b"bin"]})
            block.put(A, 3)
        assert (block.success, block.revision) == (True, 2)
        assert block.results == [{"version": 2}] * 3
        assert list(store.items()) == [zkv.Item(A, 3, 2), zkv.Item("b", {"deep": [b"bin"]}, 2)]

    @pytest.mark.parametrize(
        ("key", "value"),
        [("", 1), (7, 1), (["b"], 1), ("k" * 1025, 1), ("b", TOO_DEEP)],
        ids=["empty key", "int as key", "list as key", "long key", "deep value"],
    )
    def test_of_nothing_but_puts_the_bad_one_is_told_by_its_index(
        self, store: zkv.Store, key: Any, value: Any
    ) -> None:
        block = store.transaction()
        block.put("b", 1)
        block.put(key, value)
        with pytest.raises(zkv.RequestError) as raised, block:
            pass
        assert raised.value.details["index"] == 1
        assert list(store.keys()) == [A]

    def test_what_comes_behind_puts_sees_them(self, store: zkv.Store) -> None:
        with store.transaction() as block:
            block.put(A, 5)
            block.put("b", 1)
            block.incr(A)
            block.put("b", 2)
        assert block.results == [{"version": 2}] * 2 + [{"value": 6, "version": 2}, {"version": 2}]
        assert list(store.items()) == [zkv.Item(A, 6, 2), zkv.Item("b", 2, 2)]

    @pytest.mark.parametrize("more", [{"ttl": 60}, {"keep_ttl": True}], ids=str)
    def test_puts_keep_what_else_was_said(self, store: zkv.Store, more: dict[str, Any]) -> None:
        store.expire(A, 60)
        with store.transaction() as block:
            block.put(A, 2, **more)
            block.put("b", 1)
        assert store.item(A).ttl is not None
        assert store.item("b").ttl is None

    def test_nothing_but_a_put_still_waits_for_its_checks(self, store: zkv.Store) -> None:
        block = store.transaction()
        block.check(A, version=7)
        block.put(A, 2)
        with pytest.raises(zkv.Conflict), block:
            pass
        assert store.get(A) == 1

    def test_an_empty_one_does_nothing(self, store: zkv.Store) -> None:
        with store.transaction() as block:
            pass
        assert (block.success, block.results, block.revision) == (True, [], 1)


@pytest.mark.timeout(3600)
def test_of_a_txn_under_kill_9_there_is_all_or_nothing(
    tmp_path: Path, long: bool, seed: int
) -> None:
    """1,000 puts of one number; each time, the number is the last acknowledged or the next."""
    rng, number = random.Random(seed), 0
    keys = [f"k{n:03}" for n in range(1000)]

    def txn(number: int) -> bytes:
        return request("txn", then=[op("put", key, value=number) for key in keys])

    for _ in range(100 if long else 10):
        with serving(tmp_path / "data") as server, raw_socket(zmq.REQ, server.endpoint) as socket:
            number += 1
            assert ask(socket, txn(number))["ok"]
            killer = threading.Timer(rng.uniform(0, 0.2), server.kill)
            killer.start()
            while killer.is_alive():
                socket.send(txn(number + 1))
                while not socket.poll(10) and killer.is_alive():
                    pass
                if socket.poll(0):
                    assert decoded(socket.recv())["ok"]
                    number += 1
        with zkv.open(tmp_path / "data") as store:
            found = store.get_many(keys)
        assert list(found) == keys
        assert set(found.values()) in ({number}, {number + 1})
        number = found[keys[0]]
