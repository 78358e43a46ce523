"""The methods of a store, each written once, for whatever carries their requests.

A plan asks for requests and is given their replies; see `Plan`. `Store` makes a method that
waits of each, and `aio.Client` one to be awaited: signature, help and meaning are those here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from zkv.block import (
    READS,
    WRITES,
    Fields,
    Number,
    Plan,
    Txn,
    condition_fields,
    incr_fields,
    put_fields,
)
from zkv.errors import BadRequest, NotFound
from zkv.fields import ABSENT

T = TypeVar("T")
RAISE: Final = type("Raise", (), {"__repr__": lambda self: "RAISE"})()
"""Stands for no default: a missing key is an error."""


class Item(NamedTuple):
    """What the store holds under a key."""

    key: str
    value: Any
    version: int
    """The revision that last changed the key."""
    ttl: float | None = None
    """Seconds until the key expires; None is never, or in a listing not asked for."""


class Page(NamedTuple):
    """A part of a listing."""

    items: Sequence[tuple[Any, ...]]
    """(key, version), then the value, then the ttl, as far as they were asked for."""
    more: bool
    """Whether keys follow the last one."""


def ping() -> Plan[None]:
    """Returns when the store answers."""
    yield "ping", {}, READS


def info() -> Plan[Fields]:
    """What the store is and holds: `version`, `store`, `revision`, `keys`, `limits` …"""
    return (yield "info", {}, READS)


def get(key: str, default: Any = RAISE) -> Plan[Any]:
    """The value of a key. Raises NotFound (a KeyError) unless a default is given."""
    try:
        return (yield "get", {"key": key}, READS)["value"]
    except NotFound:
        if default is RAISE:
            raise
        return default


def item(key: str) -> Plan[Item]:
    """The value of a key with its version and time to live. Raises NotFound."""
    reply = yield "get", {"key": key}, READS
    return Item(key, reply["value"], reply["version"], reply.get("ttl"))


def put(
    key: str,
    value: Any,
    *,
    ttl: float | None = None,
    keep_ttl: bool = False,
    if_version: int | None = None,
    if_exists: bool | None = None,
    if_value: Any = ABSENT,
) -> Plan[int]:
    """Stores a value and returns the key's new version.

    It expires after `ttl` seconds, or when it was to with `keep_ttl`; otherwise never.
    """
    conditions = _conditions(if_version, if_exists, if_value)
    reply = yield "put", put_fields(key, value, ttl, keep_ttl) | conditions, WRITES
    return int(reply["version"])


def create(key: str, value: Any, *, ttl: float | None = None) -> Plan[int]:
    """Like `put`; raises Conflict if the key exists."""
    return put(key, value, ttl=ttl, if_version=0)


def replace(key: str, value: Any, *, ttl: float | None = None) -> Plan[int]:
    """Like `put`; raises Conflict unless the key exists."""
    return put(key, value, ttl=ttl, if_exists=True)


def swap(key: str, value: Any, default: Any = None, *, ttl: float | None = None) -> Plan[Any]:
    """Stores a value and returns the one that was there, or else the default."""
    reply = yield "put", put_fields(key, value, ttl) | {"return_old": True}, WRITES
    return reply.get("old", default)


def delete(
    key: str,
    *,
    if_version: int | None = None,
    if_value: Any = ABSENT,
) -> Plan[int]:
    """Removes a key and returns the version it had. Raises NotFound."""
    fields = {"key": key} | _conditions(if_version, None, if_value)
    return int((yield "delete", fields, WRITES)["version"])


def pop(key: str, default: Any = RAISE) -> Plan[Any]:
    """Removes a key and returns its value. Raises NotFound unless a default is given."""
    try:
        return (yield "delete", {"key": key, "return_old": True}, WRITES)["old"]
    except NotFound:
        if default is RAISE:
            raise
        return default


def incr(key: str, by: Number = 1, *, initial: Number = 0) -> Plan[Number]:
    """Adds to a number and returns the sum; a missing key starts at `initial`.

    The time to live stays. Raises WrongType if the value is not a number, Overflow
    beyond 64 bits.
    """
    number: Number = (yield "incr", incr_fields(key, by, initial), WRITES)["value"]
    return number


def expire(key: str, ttl: float | None, *, if_version: int | None = None) -> Plan[int]:
    """Has a key expire after so many seconds, or never; returns its new version.

    Raises NotFound.
    """
    fields = {"key": key, "ttl": ttl} | _conditions(if_version)
    return int((yield "expire", fields, WRITES)["version"])


def count(prefix: str = "") -> Plan[int]:
    """How many keys begin with the prefix."""
    return int((yield "count", {"prefix": prefix}, READS)["count"])


def clear(prefix: str) -> Plan[int]:
    """Removes every key that begins with the prefix, all at once; returns how many."""
    return int((yield "clear", {"prefix": prefix}, WRITES)["count"])


def keys(prefix: str = "") -> Iterator[Plan[list[str]]]:
    """The keys that begin with the prefix, in order, fetched a page at a time.

    A key that is there from beginning to end comes exactly once.
    """
    return _pages(prefix, False, lambda key, _: key)


def items(prefix: str = "", *, ttls: bool = False) -> Iterator[Plan[list[Item]]]:
    """Like `keys`, with values and versions, and if asked to with times to live."""

    def made(key: str, version: int, value: Any, ttl: float | None = None) -> Item:
        return Item(key, value, version, ttl)

    return _pages(prefix, True, made, ttls=ttls)


def page(
    prefix: str = "",
    *,
    after: str = "",
    limit: int = 1000,
    values: bool = False,
    ttls: bool = False,
) -> Plan[Page]:
    """Up to so many of the keys that begin with the prefix and sort after `after`."""
    fields: Fields = {"prefix": prefix, "after": after, "limit": limit, "values": values}
    if ttls:  # which a server of 0.1.0 does not know
        fields["ttls"] = True
    reply = yield "list", fields, READS
    return Page([tuple(item) for item in reply["items"]], reply["more"])


def compact() -> Plan[None]:
    """Has the data brought into one snapshot; returns before that is done."""
    yield "compact", {}, READS


def get_many(keys: Iterable[str]) -> Plan[dict[str, Any]]:
    """The values of those keys that exist, of up to 1,024, at one moment."""
    asked = _several(keys)
    entries = (yield "get_many", {"keys": asked}, READS)["entries"]
    return {key: entry[0] for key, entry in zip(asked, entries, strict=True) if entry}


def put_many(values: Mapping[str, Any], *, ttl: float | None = None) -> Plan[int]:
    """Stores up to 1,024 values at one moment, or none; returns their version."""
    fields: Fields = {"items": values if type(values) is dict else dict(values)}
    if ttl is not None:
        fields["ttl"] = ttl
    return int((yield "put_many", fields, WRITES)["version"])


def delete_many(keys: Iterable[str]) -> Plan[int]:
    """Removes up to 1,024 keys at one moment; returns the revision that did it.

    Raises NotFound if one does not exist, and then removes none.
    """
    txn = Txn()
    for key in _several(keys):
        txn.delete(key)
    return (yield from txn.commit()).revision


def method_of(plan: Callable[..., Any], method: Callable[..., Any], returns: str = "{}") -> None:
    """Gives a method the name, the help and the signature of its plan.

    `returns` is what it returns, said with what the plan, or one of many plans, results in.
    """
    signature = inspect.signature(plan)
    parameters = [it for name, it in signature.parameters.items() if name != "read"]
    result = _RESULT.sub(r"\1", str(signature.return_annotation))
    method.__name__, method.__qualname__, method.__doc__ = (
        plan.__name__,
        plan.__name__,
        plan.__doc__,
    )
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[_SELF, *parameters], return_annotation=returns.format(result)
    )


def _pages(
    prefix: str, values: bool, made: Callable[..., T], after: str = "", *, ttls: bool = False
) -> Iterator[Plan[list[T]]]:
    """A plan for one page after another; each must have been run before the next is taken."""
    more = True

    def next_page() -> Plan[list[T]]:
        nonlocal after, more
        found = yield from page(prefix, after=after, values=values, ttls=ttls)
        more = found.more
        if more:
            after = found.items[-1][0]
        return [made(*item) for item in found.items]

    while more:
        yield next_page()


def _several(keys: Iterable[str]) -> list[str]:
    if isinstance(keys, str):  # whose characters would be taken for keys
        raise BadRequest("keys must be several, not one str", field="keys")
    return list(keys)


def _conditions(version: int | None, exists: bool | None = None, value: Any = ABSENT) -> Fields:
    given = condition_fields(version, exists, value)
    return {"if": given} if given else {}


_SELF: Final = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
_RESULT: Final = re.compile(r"^(?:Iterator\[Plan\[list\[(?=.*\]{3}$)|Plan\[)(.*?)\]+$")
