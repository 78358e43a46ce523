"""A part of a store as a dict. It holds nothing: each use is a request."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, MutableMapping, ValuesView
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

from zkv import plans
from zkv.block import Plan, Run, Txn
from zkv.errors import BadRequest, NotFound, TooLarge
from zkv.fields import TXN_OPS_MAX

T = TypeVar("T")


class DictView(MutableMapping[str, Any]):
    """The keys that begin with a prefix, without it, and their values.

    Everything that a dict does with one key is one request, and happens at one moment: also
    `setdefault` and `pop`. So do `clear` and `len`, which counts on the server. Iteration
    fetches a page at a time, in the order of the keys, while the store may change; `update`
    puts up to 1,024 keys at one moment. A missing key is a KeyError; a value that is changed
    in place must be put again.
    """

    def __init__(self, run: Run, prefix: str) -> None:
        if type(prefix) is not str:
            raise BadRequest(f"prefix must be a str, not {prefix!r}", field="prefix")
        self._run = run
        self._prefix = prefix

    def __getitem__(self, key: str) -> Any:
        return self._run(plans.get(self._full(key)))

    def __setitem__(self, key: str, value: Any) -> None:
        self._run(plans.put(self._full(key), value))

    def __delitem__(self, key: str) -> None:
        self._run(plans.delete(self._full(key)))

    def __contains__(self, key: object) -> bool:
        if type(key) is not str:
            return False
        full = self._full(key)  # sorts before all that it is a prefix of; no value is fetched
        page = self._run(plans.page(full, limit=1))
        return any(found == full for found, *_ in page.items)

    def __iter__(self) -> Iterator[str]:
        cut = len(self._prefix)
        return (key[cut:] for key in self._listed(plans.keys))

    def __len__(self) -> int:
        return self._run(plans.count(self._prefix))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of the keys that begin with {self._prefix!r}>"

    def items(self) -> ItemsView[str, Any]:
        """Keys and values, fetched a page at a time."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """The values, fetched a page at a time."""
        return _Values(self)

    def clear(self) -> None:
        """Removes every key that begins with the prefix, at one moment."""
        self._run(plans.clear(self._prefix))

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of a key, which is the default from now on if there was none."""
        return self._run(_setdefault(self._full(key), default))

    def pop(self, key: str, default: Any = plans.RAISE) -> Any:
        """Removes a key and returns its value. Raises KeyError unless a default is given."""
        return self._run(plans.pop(self._full(key), default))

    def popitem(self) -> tuple[str, Any]:
        """Removes the first key and returns it with its value. Raises KeyError if none is left."""
        while page := self._run(plans.page(self._prefix, limit=1)).items:
            full = page[0][0]
            with suppress(NotFound):  # somebody else took it: the next one, then
                return full[len(self._prefix) :], self._run(plans.pop(full))
        raise KeyError(f"no key begins with {self._prefix!r}")

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Puts the keys of a mapping, or pairs; up to 1,024 at one moment, not all together."""
        given = dict(other, **more)
        full = ((self._full(key), value) for key, value in given.items())
        while some := dict(islice(full, TXN_OPS_MAX)):
            self._put(some)

    def _put(self, values: dict[str, Any]) -> None:
        try:
            self._run(plans.put_many(values))
        except TooLarge:  # nothing was sent, or nothing done
            if len(values) == 1:
                raise
            pairs = iter(values.items())
            self._put(dict(islice(pairs, len(values) // 2)))
            self._put(dict(pairs))

    def _full(self, key: str) -> str:
        if type(key) is not str:
            raise BadRequest(f"key must be a str, not {key!r}", field="key")
        return self._prefix + key

    def _listed(self, pages: Callable[[str], Iterator[Plan[list[T]]]]) -> Iterator[T]:
        for page in pages(self._prefix):
            yield from self._run(page)


class _Items(ItemsView[str, Any]):
    _mapping: DictView

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        view = self._mapping
        cut = len(view._prefix)
        return ((item.key[cut:], item.value) for item in view._listed(plans.items))


class _Values(ValuesView[Any]):
    _mapping: DictView

    def __iter__(self) -> Iterator[Any]:
        view = self._mapping
        return (item.value for item in view._listed(plans.items))


def _setdefault(key: str, default: Any) -> Plan[Any]:
    txn = Txn()
    txn.check(key, exists=False)
    txn.put(key, default)
    txn.otherwise.get(key)
    done = yield from txn.commit()
    return default if done.success else done.results[0]["value"]
