"""Bytes in, bytes out: whatever the engine does, each request gets its reply, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
from harness import steps

from zkv.engines import Call, Outcome
from zkv.engines.disk import Disk
from zkv.engines.local import LocalEngine
from zkv.errors import DiskFailed, Unavailable
from zkv.service import Service


class FakeEngine:
    """Remembers its calls, and does what it is told for each."""

    revision = 7

    def __init__(self, outcome: Callable[[Call], Outcome]) -> None:
        self.outcome = outcome
        self.calls: list[Call] = []

    def execute(self, calls: Sequence[Call], *, one_turn: bool = False) -> list[Outcome]:
        self.calls += calls
        return [self.outcome(call) for call in calls]

    def info(self) -> dict[str, Any]:
        return {"store": "fake", "keys": 3}

    def close(self) -> None:
        raise AssertionError("the engine is not the service's to close")


def run(call: Call) -> Outcome:
    """What an engine does with an operation that raises."""
    try:
        return Outcome(call.run(None, call.args), 7)  # type: ignore[arg-type]
    except BaseException as error:
        return Outcome(error, 7)


def raising(error: BaseException) -> Callable[[Call], Outcome]:
    def outcome(call: Call) -> Outcome:
        raise error

    return outcome


def exchange(service: Service, *requests: Any) -> list[dict[str, Any]]:
    bodies = [it if isinstance(it, bytes) else msgpack.packb(it) for it in requests]
    return [msgpack.unpackb(reply) for reply in service.handle(bodies)]


def get(number: int) -> dict[str, Any]:
    return {"op": "get", "key": f"k{number}", "id": number}


def test_replies_are_in_the_order_of_the_requests() -> None:
    def outcome(call: Call) -> Outcome:
        return Outcome({"value": call.args.key, "version": 1}, 5)

    service = Service(FakeEngine(outcome), "1.2.3")
    replies = exchange(service, *[get(number) for number in range(64)])
    assert replies == [
        {"ok": True, "revision": 5, "id": n, "value": f"k{n}", "version": 1} for n in range(64)
    ]


def test_a_batch_reaches_the_engine_at_once_and_in_order() -> None:
    batches = []

    class OneBatch(FakeEngine):
        def execute(self, calls: Sequence[Call], *, one_turn: bool = False) -> list[Outcome]:
            batches.append([call.args.key for call in calls])
            return [Outcome({}, 1) for _ in calls]

    exchange(Service(OneBatch(run), "1.2.3"), get(1), get(2), get(3))
    assert batches == [["k1", "k2", "k3"]]


def test_no_request_is_spoiled_by_its_neighbours() -> None:
    service = Service(FakeEngine(run), "1.2.3")
    ping = {"op": "ping"}
    replies = exchange(service, ping, b"\xc1", ping, b"", {"op": "nonsense"}, {"op": "get"}, ping)
    codes = [reply.get("error") for reply in replies]
    assert codes == [
        None, "bad_request", None, "bad_request", "unknown_op", "bad_request", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "request_",
    [{"op": "nonsense"}, {"op": "get"}, {"op": "ping", "more": 1}, {}, get(1) | {"key": ""}],
    ids=str,
)
@pytest.mark.parametrize("id_", [0, -(2**63), 2**64 - 1, "é", b"\xff" * 64])
def test_an_error_carries_the_id_of_its_request(request_: dict[str, Any], id_: Any) -> None:
    (reply,) = exchange(Service(FakeEngine(run), "1.2.3"), request_ | {"id": id_})
    assert (reply["ok"], reply["id"]) == (False, id_)


def test_a_failure_of_the_engine_is_told_to_all_that_waited_for_it() -> None:
    service = Service(FakeEngine(raising(DiskFailed("EIO"))), "1.2.3")
    replies = exchange(service, *[get(number) for number in range(5)])
    assert [(reply["error"], reply["id"]) for reply in replies] == [
        ("unavailable", number) for number in range(5)
    ]
    assert all("not known" in reply["message"] for reply in replies)


def test_an_engine_that_is_closed_says_so() -> None:
    service = Service(FakeEngine(raising(Unavailable("the store is closed"))), "1.2.3")
    (reply,) = exchange(service, get(1))
    assert (reply["error"], reply["message"]) == ("unavailable", "the store is closed")


@pytest.mark.parametrize(
    "defect", [ValueError("secret"), MemoryError(), RecursionError(), OSError(5, "I/O")], ids=repr
)
def test_a_batch_that_fails_is_a_reply_each_and_one_traceback(
    defect: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(FakeEngine(raising(defect)), "1.2.3")
    replies = exchange(service, get(1), get(2))
    assert [(it["error"], it["id"]) for it in replies] == [("unavailable", 1), ("unavailable", 2)]
    assert all("not known" in reply["message"] for reply in replies)
    assert not any("secret" in reply["message"] for reply in replies)
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [defect]


@pytest.mark.parametrize("defect", [ValueError(), MemoryError(), SystemExit(), KeyboardInterrupt()])
def test_an_operation_that_raises_anything_is_answered(
    defect: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    fails = iter([Outcome({}, 1), Outcome(defect, 1), Outcome({}, 1)])
    replies = exchange(Service(FakeEngine(lambda _: next(fails)), "1"), get(1), get(2), get(3))
    assert [reply.get("error") for reply in replies] == [None, "internal", None]
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [defect]


def test_info_says_what_is_served_and_what_was_asked() -> None:
    service = Service(FakeEngine(run), "1.2.3")
    exchange(service, {"op": "ping"}, {"op": "ping"}, {"op": "nonsense"}, b"\xc1")
    exchange(service, {"op": "get"}, {"op": "info"})
    (info,) = exchange(service, {"op": "info"})
    assert (info["name"], info["version"], info["protocol"]) == ("zkv", "1.2.3", 1)
    assert (info["store"], info["keys"]) == ("fake", 3)
    assert info["limits"]["message_bytes"] == 8 * 2**20
    assert info["limits"]["key_bytes"] == 1024
    requests, errors = info["counters"]["requests"], info["counters"]["errors"]
    assert (requests["ping"], requests["info"]) == (2, 1)
    assert errors == {"bad_request": 2, "unknown_op": 1}


def put(number: int, **more: Any) -> dict[str, Any]:
    return {"op": "put", "key": f"k{number:04}", "value": [number], **more}


def txn(ops: Iterable[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"op": "txn", "then": [*ops], **more}


OTHERS = [msgpack.Timestamp(1), msgpack.ExtType(1, b"x"), {1: math.nan}, b"bin", 2**60, {"$": 0}]
OPERATIONS_BY_SIZE: dict[str, Callable[[int], dict[str, Any]]] = {
    "put": lambda n: {"op": "put", "key": "k", "value": [*range(n)]},
    "put others": lambda n: {"op": "put", "key": "k", "value": OTHERS * n},
    "put in 30 maps": lambda n: {"op": "put", "key": "k", "value": deep(OTHERS * n, 30)},
    "put a map": lambda n: {"op": "put", "key": "k", "value": dict.fromkeys(range(10 * n))},
    "put if": lambda n: put(0, **{"if": {"value": dict.fromkeys(range(10 * n))}}),
    "put old": lambda n: put(0, return_old=True),
    "incr": lambda n: {"op": "incr", "key": "large"},
    "get": lambda n: {"op": "get", "key": "large"},
    "expire": lambda n: {"op": "expire", "key": "k0000", "ttl": n},
    "put_many": lambda n: {"op": "put_many", "items": {f"i{i}": i for i in range(n)}, "ttl": 9},
    "get_many": lambda n: {"op": "get_many", "keys": [f"k{i:04}" for i in range(n)]},
    "get_many of one": lambda n: {"op": "get_many", "keys": ["large"] * n},
    "count": lambda n: {"op": "count", "prefix": "k"},
    "list": lambda n: {"op": "list", "values": True, "ttls": True, "limit": n},
    "list the last": lambda n: {"op": "list", "after": f"k{n - 2:04}"},
    "clear": lambda n: {"op": "clear", "prefix": "k"},
    "txn put": lambda n: txn(put(i) for i in range(n)),
    "txn put one": lambda n: txn(put(0, ttl=i + 1) for i in range(n)),
    "txn delete": lambda n: txn({"op": "delete", "key": f"k{i:04}"} for i in range(n)),
    "txn incr one": lambda n: txn({"op": "incr", "key": "i"} for i in range(n)),
    "txn get": lambda n: txn({"op": "get", "key": "large"} for _ in range(n)),
    "txn count": lambda n: txn({"op": "count"} for _ in range(n)),
    "txn list": lambda n: txn({"op": "list", "limit": 1} for _ in range(n)),
    "txn if": lambda n: txn([], **{"if": [{"key": f"k{i:04}", "exists": True} for i in range(n)]}),
    "unknown fields": lambda n: {"op": "ping"} | {f"f{i}": [{}] for i in range(n)},
}


OF_ONE_KEY = ("put old", "incr", "get", "expire", "count", "list the last")


def deep(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = {0: value}
    return value


@pytest.mark.parametrize("name", OPERATIONS_BY_SIZE)
def test_an_operation_takes_steps_as_its_request_is_large(name: str, tmp_path: Path) -> None:
    """Or the keys that it changes: twice as large, twice as many steps at most. And what a key
    holds makes no difference to those that ask for one.
    """
    request = OPERATIONS_BY_SIZE[name]

    def steps_of(size: int) -> int:
        engine = LocalEngine(Disk(tmp_path / f"{size}"), fsync="never")
        try:
            service = Service(engine, "1")
            exchange(service, txn(put(i, ttl=1000) for i in range(size)))
            exchange(service, {"op": "put", "key": "large", "value": OTHERS * size})
            body = msgpack.packb(request(size))
            return steps(lambda: service.handle([body]))
        finally:
            engine.close()

    steps_of(16)  # what is made only once
    growth = 1 if name in OF_ONE_KEY else 2
    assert steps_of(512) <= growth * steps_of(256) + 100


@pytest.mark.parametrize("op", ["count", "list"])
def test_a_txn_that_counts_what_it_changes_is_bounded(op: str, tmp_path: Path) -> None:
    """It looks at each change again, of which there are 1,023 at most."""
    engine = LocalEngine(Disk(tmp_path / "store"), fsync="never")
    try:
        ops = [put(i) for i in range(512)] + [{"op": op}] * 512
        body = msgpack.packb(txn(ops))
        assert steps(lambda: Service(engine, "1").handle([body])) < 2_000_000
    finally:
        engine.close()
