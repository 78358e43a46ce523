"""The methods of a store, for whatever carries its requests.

`Store` turns a method call into a request and a reply into what the method returns; a
subclass says how a request travels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from zkv.errors import NotFound

Number = int | float
_RAISE: Final = object()


class Item(NamedTuple):
    """What the store holds under a key."""

    key: str
    value: Any
    version: int


class Store:
    """Keys are str of 1..1024 bytes; values are what msgpack carries: None, bool, int, float,
    str, bytes, list, dict, msgpack.Timestamp and msgpack.ExtType. A tuple comes back as a list.

    Every method may raise `zkv.Error`; the subclasses that matter to a method stand with it.
    """

    def _request(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Carries out a request; returns the reply's fields or raises its error."""
        raise NotImplementedError

    def ping(self) -> None:
        """Returns when the store answers."""
        self._request("ping", {})

    def info(self) -> dict[str, Any]:
        """What the store is and holds: `version`, `store`, `revision`, `keys`, `limits` …"""
        return self._request("info", {})

    def get(self, key: str, default: Any = _RAISE) -> Any:
        """The value of a key. Raises NotFound (a KeyError) unless a default is given."""
        try:
            return self._request("get", {"key": key})["value"]
        except NotFound:
            if default is _RAISE:
                raise
            return default

    def item(self, key: str) -> Item:
        """The value of a key with its version. Raises NotFound."""
        reply = self._request("get", {"key": key})
        return Item(key, reply["value"], reply["version"])

    def put(self, key: str, value: Any) -> int:
        """Stores a value and returns the key's new version."""
        version: int = self._request("put", {"key": key, "value": value})["version"]
        return version

    def delete(self, key: str) -> int:
        """Removes a key and returns the version it had. Raises NotFound."""
        version: int = self._request("delete", {"key": key})["version"]
        return version

    def incr(self, key: str, by: Number = 1, initial: Number = 0) -> Number:
        """Adds to a number and returns the sum; a missing key starts at `initial`.

        Raises WrongType if the value is not a number, Overflow beyond 64 bits.
        """
        fields = {"key": key, "by": by, "initial": initial}
        number: Number = self._request("incr", fields)["value"]
        return number

    def count(self, prefix: str = "") -> int:
        """How many keys begin with the prefix."""
        count: int = self._request("count", {"prefix": prefix})["count"]
        return count

    def clear(self, prefix: str) -> int:
        """Removes every key that begins with the prefix, all at once; returns how many."""
        count: int = self._request("clear", {"prefix": prefix})["count"]
        return count

    def keys(self, prefix: str = "") -> Iterator[str]:
        """The keys that begin with the prefix, in order, fetched a page at a time.

        A key that is there from beginning to end comes exactly once.
        """
        return (key for key, _ in self._pages(prefix, values=False))

    def items(self, prefix: str = "") -> Iterator[Item]:
        """Like `keys`, with values and versions."""
        return (
            Item(key, value, version) for key, version, value in self._pages(prefix, values=True)
        )

    def _pages(self, prefix: str, *, values: bool) -> Iterator[list[Any]]:
        more, after = True, ""
        while more:
            fields = {"prefix": prefix, "after": after, "values": values}
            reply = self._request("list", fields)
            yield from reply["items"]
            more = reply["more"]
            after = reply["items"][-1][0] if more else ""
