"""What each operation does: a pure function of a transaction and the request's arguments.

Written once, for every engine. An operation returns the fields that its success adds to
the reply, or raises one of `zkv.errors`; what it changes goes to the transaction and to
nothing else. The fields are described, and were checked, in `requests`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from zkv import values
from zkv.errors import Conflict, Error, Overflow, TooLarge, WrongType
from zkv.fields import ABSENT
from zkv.protocol import MESSAGE_BYTES_MAX
from zkv.transaction import Entry, Transaction, missing
from zkv.values import Packed

Arguments = Any
"""A struct of `zkv.arguments`, made at run time: mypy does not know its attributes."""
Fields = dict[str, Any]
Operation = Callable[[Transaction, Arguments], Fields]

PAGE_BYTES_MAX: Final = MESSAGE_BYTES_MAX // 2
"""A page of `list` ends with the value that brings it over this."""


def ping(_: Transaction, __: Arguments) -> Fields:
    return {}


def get(t: Transaction, args: Arguments) -> Fields:
    key = args.key
    entry = t.find(key)
    if entry is None:
        if args.default is ABSENT:
            raise missing(key)
        return {"value": Packed(args.default), "version": 0}
    fields: Fields = {"value": Packed(entry.packed), "version": entry.version}
    t.bytes_read += len(entry.packed)
    if entry.deadline is not None:
        fields["ttl"] = entry.deadline - t.now
    return fields


def get_many(t: Transaction, args: Arguments) -> Fields:
    entries, size = t.pairs(args.keys)
    if size > MESSAGE_BYTES_MAX:
        raise TooLarge("the values are too large for a reply", limit=MESSAGE_BYTES_MAX, size=size)
    t.bytes_read += size
    return {"entries": entries}


def put(t: Transaction, args: Arguments) -> Fields:
    key, deadline, old = args.key, None, None
    _check(t, args)
    if args.keep_ttl or args.return_old:
        old = t.find(key)
    if args.ttl is not ABSENT:
        deadline = t.now + args.ttl
    elif args.keep_ttl and old is not None:
        deadline = old.deadline
    entry = t.put(key, args.value, deadline)
    return _with_old(t, {"version": entry.version}, args, old)


def put_many(t: Transaction, args: Arguments) -> Fields:
    deadline = t.now + args.ttl if args.ttl is not ABSENT else None
    t.put_many(args.items, deadline)
    return {"version": t.revision if t.changes else 0}


def delete(t: Transaction, args: Arguments) -> Fields:
    _check(t, args)
    entry = t.get(args.key)
    t.delete(args.key)
    return _with_old(t, {"version": entry.version}, args, entry)


def incr(t: Transaction, args: Arguments) -> Fields:
    _check(t, args)
    entry = t.find(args.key)
    number = args.initial if entry is None else values.unpack_number(entry.packed)
    if number is None:
        raise WrongType(f"the value of {args.key} is not a number")
    packed = values.pack(_in_range(args.key, number + args.by))
    entry = t.put(args.key, packed, None if entry is None else entry.deadline)
    return {"value": Packed(packed), "version": entry.version}


def expire(t: Transaction, args: Arguments) -> Fields:
    _check(t, args)
    deadline = None if args.ttl is None else t.now + args.ttl
    entry = t.put(args.key, t.get(args.key).packed, deadline)
    return {"version": entry.version}


def list_(t: Transaction, args: Arguments) -> Fields:
    items: list[list[Any]] = []
    size, more = 0, False
    for key, entry in t.items(args.prefix, args.after):
        if len(items) == args.limit or size > PAGE_BYTES_MAX:
            more = True
            break
        items.append([key, entry.version])
        if args.values:
            items[-1].append(Packed(entry.packed))
            size += len(entry.packed)
        if args.ttls:
            items[-1].append(None if entry.deadline is None else entry.deadline - t.now)
    t.bytes_read += size
    return {"items": items, "more": more}


def count(t: Transaction, args: Arguments) -> Fields:
    return {"count": t.count(args.prefix)}


def clear(t: Transaction, args: Arguments) -> Fields:
    keys = [key for key, _ in t.items(args.prefix)]
    for key in keys:
        t.delete(key)
    return {"count": len(keys)}


def txn(t: Transaction, args: Arguments) -> Fields:
    success = all(_failing(t.find(key), conditions) is None for key, conditions in args.if_)
    results: list[bytes] = []
    size = 0
    for index, one in enumerate(args.then if success else args.else_):
        try:
            packed = values.assemble(OPERATIONS[one.op](t, one))
            size += len(packed)
            if size > MESSAGE_BYTES_MAX:
                raise TooLarge("the results are too large for a reply", limit=MESSAGE_BYTES_MAX)
        except Error as error:
            raise type(error)(error.message, **{**error.details, "index": index}) from None
        results.append(packed)
    return {"success": success, "results": Packed(values.array(results))}


OPERATIONS: Final[dict[str, Operation]] = {
    "ping": ping,
    "get": get,
    "get_many": get_many,
    "put": put,
    "put_many": put_many,
    "delete": delete,
    "incr": incr,
    "expire": expire,
    "list": list_,
    "count": count,
    "clear": clear,
    "txn": txn,
}


def _check(t: Transaction, args: Arguments) -> None:
    """Raises Conflict, with the key's version now, unless every condition holds."""
    if args.if_ is not ABSENT:
        entry = t.find(args.key)
        failing = _failing(entry, args.if_)
        if failing is not None:
            raise _conflict(args.key, entry, failing, args.if_[failing])


def _conflict(key: str, entry: Entry | None, failing: str, wanted: Any) -> Conflict:
    if entry is None:
        return Conflict(f"no such key: {key}", version=0)
    if failing == "value":
        sentence = f"{key} has another value"
    elif failing == "version" and wanted:
        sentence = f"{key} has version {entry.version}, not {wanted}"
    else:
        sentence = f"{key} exists already, with version {entry.version}"
    return Conflict(sentence, version=entry.version)


def _failing(entry: Entry | None, conditions: Mapping[str, Any]) -> str | None:
    """The first condition that does not hold."""
    for name, wanted in conditions.items():
        if not _HOLDS[name](entry, wanted):
            return name
    return None


_HOLDS: Final[dict[str, Callable[[Entry | None, Any], bool]]] = {
    "version": lambda entry, wanted: (0 if entry is None else entry.version) == wanted,
    "exists": lambda entry, wanted: (entry is not None) is wanted,
    "value": lambda entry, wanted: entry is not None and values.equal(entry.packed, wanted),
}


def _with_old(t: Transaction, fields: Fields, args: Arguments, old: Entry | None) -> Fields:
    if args.return_old and old is not None:
        fields["old"] = Packed(old.packed)
        t.bytes_read += len(old.packed)
    return fields


def _in_range(key: str, number: int | float) -> int | float:
    if not (
        values.INT_MIN <= number <= values.INT_MAX if type(number) is int else math.isfinite(number)
    ):
        raise Overflow(f"{key} would be beyond 64 bits, or not a finite float")
    return number
