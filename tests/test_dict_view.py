"""A part of a store as a dict, on every kind of store that has one."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from harness import serving

import zkv


@pytest.fixture(params=["embedded", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[zkv.Store]:
    if request.param == "embedded":
        with zkv.open(tmp_path / "data") as store:
            yield store
    else:
        with serving(tmp_path / "data") as server, zkv.Client(server.endpoint) as store:
            yield store


def test_it_is_the_part_behind_the_prefix(store: zkv.Store) -> None:
    store.put_many({"a:1": "one", "a:2": "two", "a": 0, "b:1": 1})
    view = store.as_dict("a:")
    assert isinstance(view, MutableMapping)
    assert view == {"1": "one", "2": "two"}
    assert dict(view) == {"1": "one", "2": "two"}
    assert (len(view), list(view), bool(view)) == (2, ["1", "2"], True)
    assert list(view.items()) == [("1", "one"), ("2", "two")]
    assert list(view.values()) == ["one", "two"]
    assert ("1", "one") in view.items()
    assert "two" in view.values()
    view["3"] = None
    assert store.get("a:3", 7) is None
    del view["1"]
    assert list(store.keys()) == ["a", "a:2", "a:3", "b:1"]
    assert len(store.as_dict()) == 4
    assert not store.as_dict("none")


def test_a_missing_key_is_a_key_error(store: zkv.Store) -> None:
    view = store.as_dict("a:")
    for ask in (lambda: view["x"], lambda: view.pop("x"), lambda: view.__delitem__("x")):
        with pytest.raises(KeyError, match="x"):
            ask()
    with pytest.raises(KeyError):
        view.popitem()
    assert view.get("x") is None
    assert view.get("x", 1) == 1
    assert view.pop("x", 2) == 2
    assert view.pop("x", None) is None


def test_in_asks_for_the_key_itself(store: zkv.Store) -> None:
    store.put_many({"a:1": None, "a:22": 1})
    view = store.as_dict("a:")
    assert ["1" in view, "22" in view, "2" in view, "" in view] == [True, True, False, False]
    assert 1 not in view  # type: ignore[comparison-overlap]


def test_a_key_that_is_no_str_is_refused(store: zkv.Store) -> None:
    view: Any = store.as_dict()
    for ask in (lambda: view[1], lambda: view.pop(None), lambda: view.update({1: 2})):
        with pytest.raises(zkv.BadRequest, match="key must be a str"):
            ask()
    with pytest.raises(zkv.BadRequest, match="prefix must be a str"):
        store.as_dict(1)  # type: ignore[arg-type]
    with pytest.raises(zkv.BadRequest):
        view[""] = 1
    with pytest.raises(zkv.TooLarge):
        view["k" * 1025] = 1


def test_clear_leaves_what_does_not_begin_with_the_prefix(store: zkv.Store) -> None:
    store.put_many({"a:1": 1, "a:2": 2, "b": 3})
    store.as_dict("a:").clear()
    assert list(store.keys()) == ["b"]


def test_update_takes_what_a_dict_takes_however_much(store: zkv.Store) -> None:
    view = store.as_dict("a:")
    view.update({"x": 1}, y=2)
    view.update([("z", 3)])
    view.update(w=4)
    view.update()
    assert view == {"w": 4, "x": 1, "y": 2, "z": 3}
    many = {f"k{n:04}": n for n in range(2500)}
    view.update(many)
    assert {key: view[key] for key in ("k0000", "k1024", "k2499")} == {
        "k0000": 0, "k1024": 1024, "k2499": 2499,
    }  # fmt: skip
    assert len({item.version for item in store.items("a:k")}) == 3
    assert len(view) == 2504


def test_update_divides_what_is_too_much_for_one_message(store: zkv.Store) -> None:
    """And refuses what is too large by itself."""
    view = store.as_dict()
    view.update({f"{n}": bytes(3 * 2**20) for n in range(5)})
    assert len(view) == 5
    with pytest.raises(zkv.TooLarge):
        view.update({"a": 1, "b": bytes(9 * 2**20)})


def test_setdefault_gives_what_is_there(store: zkv.Store) -> None:
    view = store.as_dict("a:")
    assert view.setdefault("x", [1]) == [1]
    assert view.setdefault("x", 2) == [1]
    assert view.setdefault("y") is None
    assert view == {"x": [1], "y": None}


def test_popitem_takes_each_once(store: zkv.Store) -> None:
    """Also when many do it."""
    view = store.as_dict("a:")
    view.update({f"{n}": n for n in range(60)})
    taken: list[tuple[str, Any]] = []

    def take() -> None:
        while True:
            try:
                taken.append(view.popitem())
            except KeyError:
                return

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted((f"{n}", n) for n in range(60))


def test_setdefault_has_one_winner(store: zkv.Store) -> None:
    view = store.as_dict()
    for round_ in range(20):
        got: list[int] = []
        start = threading.Barrier(4)

        def ask(number: int, key: str = f"{round_}", got: list[int] = got) -> None:
            start.wait()  # noqa: B023
            got.append(view.setdefault(key, number))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(got) == {store.get(f"{round_}")}


def test_it_is_like_a_dict(store: zkv.Store, seed: int) -> None:
    """Whatever is done, at random."""
    rng = random.Random(seed)
    store.put_many({"a": 1, "c": 2})
    view, model = store.as_dict("b:"), dict[str, Any]()

    def both(do: Any) -> None:
        results = []
        for one in (view, model):
            try:
                results.append(do(one))
            except KeyError:
                results.append(KeyError)
        assert results[0] == results[1]

    for n in range(300):
        key = rng.choice("uvwxyz")
        both(
            rng.choice(
                [
                    lambda it: it[key],  # noqa: B023
                    lambda it: it.__setitem__(key, n),  # noqa: B023
                    lambda it: it.__delitem__(key),  # noqa: B023
                    lambda it: it.pop(key, n),  # noqa: B023
                    lambda it: it.pop(key),  # noqa: B023
                    lambda it: it.setdefault(key, n),  # noqa: B023
                    lambda it: it.get(key, n),  # noqa: B023
                    lambda it: key in it,  # noqa: B023
                    lambda it: it.update({key: n, "q": n}),  # noqa: B023
                    len,
                    *([lambda it: it.clear()] if n % 10 == 0 else []),
                ]
            )
        )
        if rng.random() < 0.2:
            assert list(view.items()) == sorted(model.items())
    assert store.get_many(["a", "c"]) == {"a": 1, "c": 2}
