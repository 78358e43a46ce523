"""The methods of a store. Whatever carries its requests passes all of this: to have another
pass it, add to `STORES` how one is opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
from awaited import Connect, connect_awaited
from harness import serving

import zkv
from zkv import protocol
from zkv.store import Store

Open = Callable[[], Store]


@contextmanager
def embedded(folder: Path) -> Iterator[Open]:
    """Each on a folder of its own."""
    yield lambda: zkv.open(folder / str(len(list(folder.iterdir()))))


@contextmanager
def remote(folder: Path, connect: Connect = zkv.Client) -> Iterator[Open]:
    """All on one server, which is emptied each time."""
    with serving(folder / "data") as server:

        def open_() -> Store:
            client = connect(server.endpoint)
            client.clear("")
            return client

        yield open_


STORES: dict[str, Callable[[Path], AbstractContextManager[Open]]] = {
    "embedded": embedded,
    "remote": remote,
    "awaited": partial(remote, connect=connect_awaited),
}
"""How a store of each kind is opened; it is empty then."""


@pytest.fixture(scope="module", params=STORES)
def opening(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Open]:
    with STORES[request.param](tmp_path_factory.mktemp("stores")) as opening:
        yield opening


@pytest.fixture
def store(opening: Open) -> Iterator[Store]:
    with opening() as store:
        yield store


VALUES: list[Any] = [
    None, True, False, 0, 1, -(2**63), 2**64 - 1, 0.0, -0.0, 1.0, 1e308, float("inf"),
    "", "é\0\u2028", b"", b"\xff\0", [], [1, [2.0, [b"3"]]], {}, {"$b": "no tag"},
    {"z": 1, "a": {"n": None}}, {1: "int", b"b": "bin", 2.5: "float"}, msgpack.Timestamp(1, 999),
    msgpack.ExtType(5, b"ext"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_put_is_got_with_its_type(store: Store, value: Any) -> None:
    store.put("a", value)
    for got in (store.get("a"), store.get_many(["a"])["a"], next(store.items()).value):
        assert repr(got) == repr(value)
    assert repr(store.swap("a", 0)) == repr(value)


def test_a_tuple_comes_back_as_a_list(store: Store) -> None:
    store.put("a", (1, (2,)))
    assert store.get("a") == [1, [2]]


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, 2**64, 1j, "\ud800", {"a": [object]}], ids=repr
)
def test_what_msgpack_cannot_carry_is_refused(store: Store, value: Any) -> None:
    """And the store goes on."""
    with pytest.raises(zkv.BadRequest):
        store.put("a", value)
    assert store.put("a", 1) == store.item("a").version


class Interrupted(list[Any]):
    """A list of somebody's own: in the middle of it, another request is made."""

    def __iter__(self) -> Iterator[Any]:
        self.other = protocol.encode_request("put", {"key": "other", "value": "put meanwhile"})
        return super().__iter__()


def test_a_value_that_runs_python_gets_into_no_other(store: Store) -> None:
    value = Interrupted([1, 2])
    store.put("k", value)
    assert store.get("k") == [1, 2]
    other = protocol.decode_map(value.other)
    assert other == {"op": "put", "key": "other", "value": "put meanwhile"}


@pytest.mark.parametrize(
    ("ask", "field", "words"),
    [
        (lambda store: store.put("\ud800", 1), "key", "surrogate"),
        (lambda store: store.put("k", "\ud800"), "value", "surrogate"),
        (lambda store: store.put("k", 2**64), "value", r"an int in it is not -9223372036854775808"),
        (lambda store: store.put("k", 1, ttl=2**64), "ttl", "an int"),
        (lambda store: store.put("k", object()), "value", "object"),
        (lambda store: store.incr("k", 2**64), "by", "an int"),
        (lambda store: store.count("\udcff"), "prefix", "surrogate"),
    ],
)
def test_the_field_that_cannot_be_sent_is_named(
    store: Store, ask: Callable[[Store], Any], field: str, words: str
) -> None:
    with pytest.raises(zkv.BadRequest, match=f"^{field} cannot be sent: .*{words}") as raised:
        ask(store)
    assert raised.value.details["field"] == field


def test_each_write_has_the_next_version(store: Store) -> None:
    first = store.put("a", 1)
    assert store.item("a") == zkv.Item("a", 1, first, None)
    assert store.put("a", 2) == store.item("a").version == first + 1
    assert store.incr("a") == 3
    assert store.item("a").version == first + 2


def test_a_missing_key_is_not_found(store: Store) -> None:
    """Which is a KeyError, and is told the key."""
    for method in (store.get, store.item, store.delete, store.pop):
        with pytest.raises(zkv.NotFound, match="nope") as raised:
            method("nope")
        assert isinstance(raised.value, KeyError)
    with pytest.raises(zkv.NotFound):
        store.expire("nope", 1)


def test_a_default_stands_for_a_missing_key_only(store: Store) -> None:
    assert store.get("nope", 7) == 7
    assert store.get("nope", None) is None
    assert store.pop("nope", 7) == 7
    store.put("a", None)
    assert store.get("a", 7) is None
    assert store.pop("a", 7) is None


def test_create_and_replace(store: Store) -> None:
    with pytest.raises(zkv.Conflict):
        store.replace("a", 1)
    version = store.create("a", 2)
    with pytest.raises(zkv.Conflict) as raised:
        store.create("a", 3)
    assert raised.value.details["version"] == version
    assert store.get("a") == 2
    assert store.replace("a", 4, ttl=60) > version
    assert store.get("a") == 4
    assert store.item("a").ttl is not None


def test_swap_gives_what_was_there(store: Store) -> None:
    assert store.swap("a", 1) is None
    assert store.swap("b", 1, "default") == "default"
    assert store.swap("a", 2) == 1
    assert store.get("a") == 2


def test_pop_and_delete_remove(store: Store) -> None:
    version = store.put("a", [1])
    store.put("b", 2)
    assert store.delete("a") == version
    assert store.pop("b") == 2
    assert store.count() == 0


def test_incr_adds(store: Store) -> None:
    assert store.incr("n") == 1
    assert store.incr("n", 5) == 6
    assert store.incr("n", -2.5) == 3.5
    assert store.incr("m", initial=10) == 11
    store.put("t", "text")
    with pytest.raises(zkv.WrongType):
        store.incr("t")
    store.put("n", 2**64 - 1)
    with pytest.raises(zkv.Overflow):
        store.incr("n")


def test_a_time_to_live_is_set_kept_told_and_taken_away(store: Store) -> None:
    store.put("a", 1, ttl=100)
    assert 0 < (store.item("a").ttl or 0) <= 100
    store.put("a", 2, keep_ttl=True)
    assert 0 < (store.item("a").ttl or 0) <= 100
    assert store.expire("a", 1000) == store.item("a").version
    assert 100 < (store.item("a").ttl or 0) <= 1000
    store.expire("a", None)
    assert store.item("a").ttl is None
    store.expire("a", 100)
    store.put("a", 3)
    assert store.item("a").ttl is None


def test_what_has_expired_is_gone(store: Store) -> None:
    store.put("a", 1, ttl=0.001)
    while store.get("a", None) is not None:
        pass
    assert list(store.keys()) == []
    assert store.create("a", 2)


def test_a_condition_that_holds_lets_the_write_through(store: Store) -> None:
    version = store.put("a", 1)
    version = store.put("a", 2, if_version=version)
    version = store.put("a", 3, if_value=2, if_exists=True, if_version=version)
    version = store.expire("a", 60, if_version=version)
    assert store.delete("a", if_version=version, if_value=3) == version
    store.put("a", 4, if_version=0)
    store.delete("a", if_value=4)
    store.put("a", None, if_exists=False)
    store.put("a", 5, if_value=None)


@pytest.mark.parametrize("conditions", [{"if_version": 0}, {"if_exists": False}, {"if_value": 2}])
def test_a_conflict_tells_the_version_and_changes_nothing(
    store: Store, conditions: dict[str, Any]
) -> None:
    """And takes no revision."""
    version = store.put("a", 1)
    with pytest.raises(zkv.Conflict) as raised:
        store.put("a", 2, **conditions)
    assert raised.value.details["version"] == version
    if "if_exists" not in conditions:
        with pytest.raises(zkv.Conflict):
            store.delete("a", **conditions)
    with pytest.raises(zkv.Conflict):
        store.expire("a", 1, if_version=version + 1)
    assert store.item("a") == zkv.Item("a", 1, version)
    assert store.put("a", 2) == version + 1


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda store: store.put("k", 2, if_version=99), r"k has version \d+, not 99"),
        (lambda store: store.put("k", 2, if_value=7), "k has another value"),
        (lambda store: store.create("k", 2), r"k exists already, with version \d+"),
        (lambda store: store.replace("none", 2), "no such key: none"),
        (lambda store: store.delete("none", if_version=1), "no such key: none"),
    ],
)
def test_a_conflict_says_which_key_is_how(
    store: Store, ask: Callable[[Store], Any], sentence: str
) -> None:
    store.put("k", 1)
    with pytest.raises(zkv.Conflict, match=f"^{sentence}$"):
        ask(store)


@pytest.mark.parametrize(
    ("ask", "error", "sentence"),
    [
        (lambda store: store.incr("text"), zkv.WrongType, "the value of text is not a number"),
        (lambda store: store.incr("large", 1), zkv.Overflow, "large would be beyond 64 bits"),
        (lambda store: store.put_many({"": 1}), zkv.BadRequest, r"items\[''\]: the key must be"),
        (lambda store: store.put_many({7: 1}), zkv.BadRequest, r"items\['7'\]: the key must be"),
        (lambda store: store.put_many({"k" * 1025: 1}), zkv.TooLarge, "the key has 1025 bytes"),
        (lambda store: store.get_many("abc"), zkv.BadRequest, "keys must be several"),
        (lambda store: store.delete_many("abc"), zkv.BadRequest, "keys must be several"),
        (lambda store: store.put("k", 1, ttl=math.nan), zkv.BadRequest, "ttl must .*, not nan"),
        (
            lambda store: store.put("k", [0] * 131_073),
            zkv.BadRequest,
            "an array or map has 131073 items, the limit is 131072",
        ),
    ],
)
def test_an_error_names_what_is_wrong(
    store: Store, ask: Callable[[Store], Any], error: type[zkv.Error], sentence: str
) -> None:
    store.put_many({"text": "x", "large": 2**64 - 1})
    with pytest.raises(error, match=sentence):
        ask(store)


def test_a_conflict_on_a_missing_key_tells_version_0(store: Store) -> None:
    for conditions in ({"if_version": 1}, {"if_exists": True}, {"if_value": None}):
        with pytest.raises(zkv.Conflict) as raised:
            store.put("a", 1, **conditions)
        assert raised.value.details["version"] == 0
    assert store.count() == 0


SAME: list[tuple[Any, Any]] = [
    ({"a": 1, "b": {"x": 1, "y": 2}}, {"b": {"y": 2, "x": 1}, "a": 1}),
    ([{1: "a", "k": None}], [{"k": None, 1: "a"}]),
    (float("nan"), float("nan")),
    ((1, 2), [1, 2]),
]
DIFFERENT: list[tuple[Any, Any]] = [
    (1, 1.0), (1, True), (0, False), (1.0, True), (0.0, -0.0), ("a", b"a"), (None, False),
    ([1], [1.0]), ({"a": [1]}, {"a": [True]}), ([1, 2], [2, 1]), ({1: "a"}, {1.0: "a"}),
    ({}, []), ("", b""), ("a", "A"), (msgpack.Timestamp(1, 0), 1), ([[]], [{}]), (0, None),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_a_value_is_compared_without_the_order_of_its_maps(
    store: Store, one: Any, other: Any
) -> None:
    store.put("a", one)
    store.put("a", one, if_value=other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_a_value_is_compared_with_its_type(store: Store, one: Any, other: Any) -> None:
    for value, wanted in ((one, other), (other, one)):
        store.put("a", value)
        with pytest.raises(zkv.Conflict):
            store.put("a", 0, if_value=wanted)
        store.put("a", 0, if_value=value)


def test_keys_and_items_come_in_order_over_many_pages(store: Store) -> None:
    names = [f"k{n:04}" for n in range(2500)]
    versions: dict[str, int] = {}
    for start in range(0, 2500, 500):
        some = {name: int(name[1:]) for name in reversed(names[start : start + 500])}
        versions |= dict.fromkeys(some, store.put_many(some))
    store.put("other", None)
    assert list(store.keys("k")) == names
    assert list(store.keys()) == [*names, "other"]
    assert list(store.items("k")) == [zkv.Item(n, int(n[1:]), versions[n]) for n in names]
    assert list(store.items("none")) == []
    assert store.count("k") == 2500
    assert store.count("k00") == 100


def test_a_key_that_stays_comes_once_while_others_come_and_go(store: Store) -> None:
    store.put_many({f"{n:04}": n for n in range(0, 2000, 2)})
    store.put_many({f"{n:04}": n for n in range(2000, 4000, 2)})
    seen = []
    for key, *_ in store.items():
        seen.append(key)
        if len(seen) == 500:
            store.clear("1")
            store.put_many({f"{n:04}": n for n in range(1, 2000, 2)})
    assert seen == sorted(set(seen))
    assert {f"{n:04}" for n in [*range(0, 1000, 2), *range(2000, 4000, 2)]} <= set(seen)


def test_clear_removes_what_begins_with_the_prefix(store: Store) -> None:
    store.put_many({"a": 1, "a1": 2, "b": 3})
    assert store.clear("a") == 2
    assert list(store.keys()) == ["b"]
    assert store.clear("a") == 0
    assert store.clear("") == 1


def test_get_many_gives_those_that_exist(store: Store) -> None:
    store.put_many({"a": 1, "b": None})
    assert store.get_many(["b", "none", "a"]) == {"b": None, "a": 1}
    assert store.get_many(iter([])) == {}


def test_put_many_is_one_version(store: Store) -> None:
    version = store.put_many({f"k{n}": n for n in range(1024)}, ttl=100)
    assert {item.version for item in store.items()} == {version}
    assert store.item("k0").ttl is not None
    with pytest.raises(zkv.BadRequest) as raised:
        store.put_many({f"x{n}": n for n in range(1025)})
    assert raised.value.details["limit"] == 1024
    with pytest.raises(zkv.BadRequest):
        store.put_many({"x": 1, "": 2})
    assert store.count("x") == 0


def test_delete_many_removes_all_or_none(store: Store) -> None:
    version = store.put_many({"a": 1, "b": 2, "c": 3})
    with pytest.raises(zkv.NotFound) as raised:
        store.delete_many(["a", "none", "b"])
    assert raised.value.details["index"] == 1
    assert store.delete_many(iter(["a", "b"])) == version + 1
    assert list(store.keys()) == ["c"]


def test_what_was_given_or_got_can_be_changed_by_its_caller(store: Store) -> None:
    given: dict[str, Any] = {"list": [1], "map": {}}
    version = store.put("a", given)
    given["list"].append(2)
    wanted = {"list": [1], "map": {}}
    for _ in range(2):
        for got in (store.get("a"), store.get_many(["a"])["a"], next(store.items()).value):
            assert got == wanted
            got["list"].append(3)
            got["map"]["x"] = 1
    assert store.item("a") == zkv.Item("a", wanted, version)
    default: list[Any] = []
    assert store.get("none", default) is default


def test_info_tells_what_the_store_is_and_holds(store: Store) -> None:
    store.put_many({"a": 1, "b": 2})
    store.ping()
    info = store.info()
    assert info["name"] == "zkv"
    assert info["version"] == zkv.__version__
    assert info["keys"] == 2
    assert info["revision"] == store.item("a").version
    assert info["limits"]["key_bytes"] == 1024


@pytest.mark.parametrize("key", ["", "k" * 1025, "é" * 513, 7, None, b"a"])
def test_a_bad_key_is_refused_by_every_method(store: Store, key: Any) -> None:
    for method in (store.get, store.item, store.delete, store.pop, store.incr):
        with pytest.raises((zkv.BadRequest, zkv.TooLarge)) as raised:
            method(key)
        assert raised.value.details["field"] == "key"
    for write in (store.put, store.create, store.replace, store.swap, store.expire):
        with pytest.raises((zkv.BadRequest, zkv.TooLarge)):
            write(key, 1)


def test_a_closed_store_refuses_everything(opening: Open) -> None:
    """And closing it again does nothing."""
    with ExitStack() as stack:
        store = stack.enter_context(opening())
        store.close()
        store.close()
        for ask in (store.ping, store.info, lambda: store.get("a"), lambda: store.put("a", 1),
                    lambda: list(store.keys()), lambda: store.get("a", None)):  # fmt: skip
            with pytest.raises(zkv.Error, match="closed"):
                ask()
