"""What each operation does, on a table in memory. Preconditions and the like stand on these."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkv import requests, values
from zkv.engines.table import Table
from zkv.errors import NotFound, Overflow, TooLarge, WrongType
from zkv.operations import OPERATIONS
from zkv.transaction import Commit, Transaction

INT_MIN, INT_MAX = -(2**63), 2**64 - 1
FLOAT_MAX = 1.7976931348623157e308


class Memory:
    """A table, with a transaction upon it that lasts until `commit`."""

    def __init__(self, *keys: str, **pairs: Any) -> None:
        self.table = Table()
        self.table.build_index()
        self.begin()
        for key, value in {**dict.fromkeys(keys), **pairs}.items():
            self("put", key=key, value=value)
            self.commit()

    def begin(self) -> None:
        self.transaction = Transaction(self.table, 0.0, self.table.next_revision)

    def commit(self) -> None:
        t = self.transaction
        self.table.apply(Commit(t.revision, t.now, t.changes))
        self.begin()

    def __call__(self, op: str, **fields: Any) -> Any:
        """The fields of the reply, as a client would see them."""
        request = requests.check({"op": op, **fields})
        return values.unpack(values.assemble(OPERATIONS[op](self.transaction, request.args)))

    def keys(self, **fields: Any) -> list[str]:
        return [item[0] for item in self("list", **fields)["items"]]


def test_what_is_put_all_at_once_is_got_all_at_once() -> None:
    store = Memory(a=1)
    assert store("put_many", items={"b": None, "a": [2]}) == {"version": 2}
    store.commit()
    assert store("get_many", keys=["b", "none", "a", "b"]) == {
        "entries": [[None, 2], None, [[2], 2], [None, 2]]
    }
    assert store("put_many", items={}) == {"version": 0}
    assert store("get_many", keys=[]) == {"entries": []}


@pytest.mark.parametrize("more", [{}, {"ttl": 7}], ids=str)
@pytest.mark.parametrize("value", [7, "x" * 100, b"x" * 10_000, {"a": [None]}], ids=type)
def test_one_of_many_is_what_it_is_alone(value: Any, more: dict[str, Any]) -> None:
    store = Memory("other")
    assert store("put", key="a", value=value, **more) == {"version": 2}
    store.commit()
    assert store("get_many", keys=["other", "a"]) == {"entries": [[None, 1], [value, 2]]}
    assert store("get", key="a") == {"value": value, "version": 2, **more}


def test_what_a_reply_has_no_room_for_is_not_copied() -> None:
    store = Memory(a=bytes(5 * 2**20))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            store("get_many", keys=["a"] * 1024)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20


@pytest.mark.parametrize("revision", [2**7, 2**16, 2**32 - 1, 2**32, 2**53])
def test_versions_of_any_size_are_told(revision: int) -> None:
    store = Memory()
    store.table.next_revision = revision
    store.begin()
    assert store("put_many", items={"a": 1, "b": [2]}) == {"version": revision}
    store.commit()
    assert store("get", key="a") == {"value": 1, "version": revision}
    assert store("get_many", keys=["a", "b"]) == {"entries": [[1, revision], [[2], revision]]}


def test_as_many_as_may_be_are_got_at_once() -> None:
    keys = [str(number) for number in range(1024)]
    store = Memory(*keys)
    entries = [[None, number + 1] for number in range(1024)]
    assert store("get_many", keys=keys) == {"entries": entries}


def test_all_that_is_put_at_once_expires_at_once() -> None:
    store = Memory("old")
    store("put_many", items={"old": 1, "new": 2}, ttl=7)
    assert [store("get", key=key)["ttl"] for key in ("old", "new")] == [7, 7]


def test_more_values_than_a_reply_has_room_for_are_too_large() -> None:
    store = Memory(a=bytes(5 * 2**20))
    assert store("get_many", keys=["a"])["entries"] != [None]
    with pytest.raises(TooLarge) as caught:
        store("get_many", keys=["a", "a"])
    assert caught.value.details == {"limit": 8 * 2**20, "size": 10 * 2**20 + 10}


def test_what_is_put_is_got_with_its_version() -> None:
    store = Memory(a=1, b=None)
    assert store("get", key="a") == {"value": 1, "version": 1}
    assert store("get", key="b") == {"value": None, "version": 2}
    assert store("put", key="a", value=[2]) == {"version": 3}
    assert store("get", key="a") == {"value": [2], "version": 3}


@pytest.mark.parametrize("op", ["get", "delete"])
def test_a_missing_key_is_not_found(op: str) -> None:
    store = Memory(a=1)
    with pytest.raises(NotFound, match="nope"):
        store(op, key="nope")
    assert store.transaction.changes == {}


def test_delete_tells_the_version_it_removed() -> None:
    store = Memory(a=1, b=2)
    assert store("delete", key="a") == {"version": 1}
    with pytest.raises(NotFound):
        store("get", key="a")
    store.commit()
    assert store.keys() == ["b"]
    assert store("put", key="a", value=1) == {"version": 4}


@pytest.mark.parametrize(
    ("value", "fields", "sum_"),
    [
        (1, {}, 2), (1, {"by": -3}, -2), (1, {"by": 0}, 1), (1, {"initial": 7}, 2),
        (1, {"by": 0.5}, 1.5), (0.5, {"by": 1}, 1.5), (2.0, {"by": 1}, 3.0), (-0.0, {"by": 0}, 0.0),
        (INT_MAX - 1, {}, INT_MAX), (INT_MIN + 1, {"by": -1}, INT_MIN),
        (INT_MIN, {"by": INT_MAX}, 2**63 - 1), (FLOAT_MAX, {"by": 1}, FLOAT_MAX),
    ],
)  # fmt: skip
def test_incr_adds(value: Any, fields: dict[str, Any], sum_: Any) -> None:
    store = Memory(n=value)
    reply = store("incr", key="n", **fields)
    assert reply == {"value": sum_, "version": 2}
    assert type(reply["value"]) is type(sum_)
    assert store("get", key="n") == reply


@pytest.mark.parametrize(
    ("fields", "sum_"),
    [({}, 1), ({"by": 5}, 5), ({"initial": 10}, 11), ({"by": 0.5, "initial": 1}, 1.5)],
)
def test_incr_starts_a_missing_key_at_initial(fields: dict[str, Any], sum_: Any) -> None:
    store = Memory()
    assert store("incr", key="n", **fields) == {"value": sum_, "version": 1}
    assert store("get", key="n")["value"] == sum_


@pytest.mark.parametrize(
    "value", [None, True, False, "1", b"1", [1], {"n": 1}, msgpack.Timestamp(1, 0)]
)
def test_incr_of_what_is_no_number_is_the_wrong_type(value: Any) -> None:
    store = Memory(n=value)
    with pytest.raises(WrongType):
        store("incr", key="n")
    assert store.transaction.changes == {}


@pytest.mark.parametrize(
    ("value", "by"),
    [
        (INT_MAX, 1), (INT_MIN, -1), (INT_MAX, INT_MAX), (INT_MIN, INT_MIN), (1, INT_MAX),
        (FLOAT_MAX, FLOAT_MAX), (-FLOAT_MAX, -FLOAT_MAX), (math.inf, 1), (math.nan, 1),
    ],
)  # fmt: skip
def test_incr_beyond_64_bits_overflows(value: Any, by: Any) -> None:
    store = Memory(n=value)
    with pytest.raises(Overflow):
        store("incr", key="n", by=by)
    assert store.transaction.changes == {}


def test_list_gives_keys_with_versions_and_values_if_asked() -> None:
    store = Memory(b=1, a=[2])
    assert store("list") == {"items": [["a", 2], ["b", 1]], "more": False}
    assert store("list", values=True)["items"] == [["a", 2, [2]], ["b", 1, 1]]


def test_keys_are_in_the_order_of_their_utf8() -> None:
    """Which is that of code points; UTF-16 would put U+10000 before U+E000."""
    keys = ["\0", " ", "A", "a", "a\0", "aa", "é", "\ud7ff", "\ue000", "\uffff", "𐀀", "\U0010ffff"]
    store = Memory(*reversed(keys))
    assert store.keys() == keys
    assert sorted(keys, key=str.encode) == keys


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("", ["a", "a:1", "a:2", "b", "\U0010ffff", "\U0010ffffz"]),
        ("a", ["a", "a:1", "a:2"]), ("a:", ["a:1", "a:2"]), ("a:1", ["a:1"]), ("c", []),
        ("\U0010ffff", ["\U0010ffff", "\U0010ffffz"]), ("\U0010ffff\U0010ffff", []),
        ("\ud7ff", []), ("a\U0010ffff", []),
    ],
)  # fmt: skip
def test_a_prefix_finds_the_keys_that_begin_with_it(prefix: str, found: list[str]) -> None:
    store = Memory("b", "a:2", "a", "\U0010ffffz", "a:1", "\U0010ffff")
    assert store.keys(prefix=prefix) == found
    assert store("count", prefix=prefix) == {"count": len(found)}


@pytest.mark.parametrize(
    ("after", "found"),
    [("", ["a", "b", "c"]), ("a", ["b", "c"]), ("aa", ["b", "c"]), ("c", []), ("\U0010ffff", [])],
)
def test_after_starts_behind_a_key_that_need_not_exist(after: str, found: list[str]) -> None:
    assert Memory("c", "a", "b").keys(after=after) == found


def test_after_and_prefix_both_hold() -> None:
    store = Memory("a1", "a2", "b1", "b2")
    assert store.keys(prefix="b", after="a1") == ["b1", "b2"]
    assert store.keys(prefix="a", after="b1") == []
    assert store.keys(prefix="a", after="a1") == ["a2"]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 10_000])
def test_pages_give_each_key_once_and_end(limit: int) -> None:
    store = Memory("a", "b", "c", "d", "e")
    found: list[str] = []
    more, after = True, ""
    while more:
        reply = store("list", limit=limit, after=after)
        assert 0 < len(reply["items"]) <= limit
        found += [key for key, _ in reply["items"]]
        more, after = reply["more"], found[-1]
    assert found == ["a", "b", "c", "d", "e"]


def test_more_is_false_when_the_page_is_full_and_nothing_follows() -> None:
    assert Memory("a", "b")("list", limit=2)["more"] is False
    assert Memory("a", "b", "c")("list", limit=2)["more"] is True


def test_clear_removes_what_begins_with_the_prefix() -> None:
    store = Memory("a", "a1", "b")
    assert store("clear", prefix="a") == {"count": 2}
    assert store.keys() == ["b"]
    assert store("clear", prefix="a") == {"count": 0}
    assert store("clear", prefix="") == {"count": 1}
    store.commit()
    assert store("count") == {"count": 0}


def test_a_transaction_sees_its_own_changes() -> None:
    """And the table below sees none of them before the commit."""
    store = Memory("a", "b", "c")
    store("put", key="aa", value=1)
    store("put", key="b", value=2)
    store("delete", key="c")
    assert store("list")["items"] == [["a", 1], ["aa", 4], ["b", 4]]
    assert store("count") == {"count": 3}
    assert store("count", prefix="a") == {"count": 2}
    assert store("count", prefix="c") == {"count": 0}
    assert store.keys(prefix="a", after="a") == ["aa"]
    assert list(store.table.keys("", "")) == ["a", "b", "c"]
    store("delete", key="aa")
    assert store("clear", prefix="") == {"count": 2}
    assert store("count") == {"count": 0}
    assert store.table.revision == 3


KEYS = st.text("ab\uffff\U0010ffff", min_size=1, max_size=3)
CHANGES = st.lists(st.tuples(KEYS, st.booleans()), max_size=8)


@given(CHANGES, CHANGES, st.text("ab\uffff\U0010ffff", max_size=2), KEYS | st.just(""))
def test_list_and_count_are_right_on_any_overlay(
    below: list[tuple[str, bool]], above: list[tuple[str, bool]], prefix: str, after: str
) -> None:
    store, model = Memory(), set[str]()
    for key, there in [*below, ("", False), *above]:
        if there:
            store("put", key=key, value=0)
            model.add(key)
        elif key in model:
            store("delete", key=key)
            model.remove(key)
        elif not key:
            store.commit()
    found = sorted(key for key in model if key.startswith(prefix))
    assert store("count", prefix=prefix) == {"count": len(found)}
    assert store.keys(prefix=prefix, after=after) == [key for key in found if key > after]
    store.commit()
    assert store("count", prefix=prefix) == {"count": len(found)}
    assert store.keys(prefix=prefix) == found
