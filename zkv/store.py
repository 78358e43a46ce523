"""The methods of a store, for whatever carries its requests.

`Store` turns a method call into a request and a reply into what the method returns; a
subclass says how a request travels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from zkv.backup import backup
from zkv.block import Block, Fields, Number, condition_fields, incr_fields, put_fields
from zkv.errors import NotFound
from zkv.requests import ABSENT

_RAISE: Final = object()


class Item(NamedTuple):
    """What the store holds under a key."""

    key: str
    value: Any
    version: int
    """The revision that last changed the key."""
    ttl: float | None = None
    """Seconds until the key expires; None is never, or in a listing not said."""


class Page(NamedTuple):
    """A part of a listing."""

    items: Sequence[tuple[Any, ...]]
    """(key, version), or (key, version, value)."""
    more: bool
    """Whether keys follow the last one."""


class Store:
    """Keys are str of 1..1024 bytes; values are what msgpack carries: None, bool, int, float,
    str, bytes, list, dict, msgpack.Timestamp and msgpack.ExtType. A tuple comes back as a list.

    A write takes conditions on its key, which must all hold or it raises Conflict and
    changes nothing: `if_version` (0: the key must not exist), `if_exists`, `if_value`
    (1, 1.0 and True differ). Every method may raise `zkv.Error`.
    """

    def _request(self, op: str, fields: Fields, *, writes: bool) -> Fields:
        """Carries out a request; returns the reply's fields or raises its error.

        One that `writes` must take effect once, however often it has to be sent.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of everything; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def ping(self) -> None:
        """Returns when the store answers."""
        self._read("ping", {})

    def info(self) -> Fields:
        """What the store is and holds: `version`, `store`, `revision`, `keys`, `limits` …"""
        return self._read("info", {})

    def get(self, key: str, default: Any = _RAISE) -> Any:
        """The value of a key. Raises NotFound (a KeyError) unless a default is given."""
        try:
            return self.item(key).value
        except NotFound:
            if default is _RAISE:
                raise
            return default

    def item(self, key: str) -> Item:
        """The value of a key with its version and time to live. Raises NotFound."""
        reply = self._read("get", {"key": key})
        return Item(key, reply["value"], reply["version"], reply.get("ttl"))

    def put(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | None = None,
        keep_ttl: bool = False,
        if_version: int | None = None,
        if_exists: bool | None = None,
        if_value: Any = ABSENT,
    ) -> int:
        """Stores a value and returns the key's new version.

        It expires after `ttl` seconds, or when it was to with `keep_ttl`; otherwise never.
        """
        conditions = _conditions(if_version, if_exists, if_value)
        reply = self._write("put", put_fields(key, value, ttl, keep_ttl) | conditions)
        return int(reply["version"])

    def create(self, key: str, value: Any, *, ttl: float | None = None) -> int:
        """Like `put`; raises Conflict if the key exists."""
        return self.put(key, value, ttl=ttl, if_version=0)

    def replace(self, key: str, value: Any, *, ttl: float | None = None) -> int:
        """Like `put`; raises Conflict unless the key exists."""
        return self.put(key, value, ttl=ttl, if_exists=True)

    def swap(self, key: str, value: Any, default: Any = None, *, ttl: float | None = None) -> Any:
        """Stores a value and returns the one that was there, or else the default."""
        fields = put_fields(key, value, ttl) | {"return_old": True}
        return self._write("put", fields).get("old", default)

    def delete(
        self,
        key: str,
        *,
        if_version: int | None = None,
        if_value: Any = ABSENT,
    ) -> int:
        """Removes a key and returns the version it had. Raises NotFound."""
        fields = {"key": key} | _conditions(if_version, None, if_value)
        return int(self._write("delete", fields)["version"])

    def pop(self, key: str, default: Any = _RAISE) -> Any:
        """Removes a key and returns its value. Raises NotFound unless a default is given."""
        try:
            return self._write("delete", {"key": key, "return_old": True})["old"]
        except NotFound:
            if default is _RAISE:
                raise
            return default

    def incr(self, key: str, by: Number = 1, *, initial: Number = 0) -> Number:
        """Adds to a number and returns the sum; a missing key starts at `initial`.

        The time to live stays. Raises WrongType if the value is not a number, Overflow
        beyond 64 bits.
        """
        number: Number = self._write("incr", incr_fields(key, by, initial))["value"]
        return number

    def expire(self, key: str, ttl: float | None, *, if_version: int | None = None) -> int:
        """Has a key expire after so many seconds, or never; returns its new version.

        Raises NotFound.
        """
        fields = {"key": key, "ttl": ttl} | _conditions(if_version)
        return int(self._write("expire", fields)["version"])

    def count(self, prefix: str = "") -> int:
        """How many keys begin with the prefix."""
        return int(self._read("count", {"prefix": prefix})["count"])

    def clear(self, prefix: str) -> int:
        """Removes every key that begins with the prefix, all at once; returns how many."""
        return int(self._write("clear", {"prefix": prefix})["count"])

    def keys(self, prefix: str = "") -> Iterator[str]:
        """The keys that begin with the prefix, in order, fetched a page at a time.

        A key that is there from beginning to end comes exactly once.
        """
        return (key for key, _ in self._listed(prefix, values=False))

    def items(self, prefix: str = "") -> Iterator[Item]:
        """Like `keys`, with values and versions."""
        return (Item(key, value, version) for key, version, value in self._listed(prefix, True))

    def page(
        self, prefix: str = "", *, after: str = "", limit: int = 1000, values: bool = False
    ) -> Page:
        """Up to so many of the keys that begin with the prefix and sort behind `after`."""
        fields = {"prefix": prefix, "after": after, "limit": limit, "values": values}
        reply = self._read("list", fields)
        return Page([tuple(item) for item in reply["items"]], reply["more"])

    def compact(self) -> None:
        """Has the data brought into one snapshot; returns before that is done."""
        self._read("compact", {})

    def backup(self, folder: str | os.PathLike[str], *, timeout_s: float = 600) -> int:
        """Makes a new folder of the data at one revision, which is returned.

        A server can serve it, and `zkv.open` can open it. The store serves meanwhile.
        """
        return backup(self._read, Path(folder), timeout_s)

    def transaction(self) -> Block:
        """A block whose requests are done all together, or not at all: see `Block`."""
        return Block(self._request)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that exist, of up to 1,024, at one moment."""
        asked = list(keys)
        then = [{"op": "get", "key": key, "default": None} for key in asked]
        results = self._read("txn", {"then": then})["results"]
        found = zip(asked, results, strict=True)
        return {key: result["value"] for key, result in found if result["version"]}

    def put_many(self, values: Mapping[str, Any], *, ttl: float | None = None) -> int:
        """Stores up to 1,024 values at one moment, or none; returns their version."""
        with self.transaction() as block:
            for key, value in values.items():
                block.put(key, value, ttl=ttl)
        return block.revision

    def delete_many(self, keys: Iterable[str]) -> int:
        """Removes up to 1,024 keys at one moment; returns the revision that did it.

        Raises NotFound if one does not exist, and then removes none.
        """
        with self.transaction() as block:
            for key in keys:
                block.delete(key)
        return block.revision

    def _read(self, op: str, fields: Fields) -> Fields:
        return self._request(op, fields, writes=False)

    def _write(self, op: str, fields: Fields) -> Fields:
        return self._request(op, fields, writes=True)

    def _listed(self, prefix: str, values: bool) -> Iterator[tuple[Any, ...]]:
        page = self.page(prefix, values=values)
        yield from page.items
        while page.more:
            page = self.page(prefix, after=page.items[-1][0], values=values)
            yield from page.items


def _conditions(version: int | None, exists: bool | None = None, value: Any = ABSENT) -> Fields:
    given = condition_fields(version, exists, value)
    return {"if": given} if given else {}
