"""What each operation does: a pure function of a transaction and the request's arguments.

Written once, for every engine. An operation returns the fields that its success adds to
the reply (`value` and `old` as msgpack), or raises one of `zkv.errors`; it takes what it
changes to the transaction and to nothing else. Their fields are described in `protocol`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from zkv import values
from zkv.errors import Overflow, WrongType
from zkv.transaction import Transaction

Arguments = Mapping[str, Any]
Fields = dict[str, Any]
Operation = Callable[[Transaction, Arguments], Fields]


def ping(_: Transaction, __: Arguments) -> Fields:
    return {}


def get(t: Transaction, args: Arguments) -> Fields:
    entry = t.get(args["key"])
    return {"value": entry.packed, "version": entry.version}


def put(t: Transaction, args: Arguments) -> Fields:
    entry = t.put(args["key"], args["value"])
    return {"version": entry.version}


def delete(t: Transaction, args: Arguments) -> Fields:
    entry = t.get(args["key"])
    t.delete(args["key"])
    return {"version": entry.version}


def incr(t: Transaction, args: Arguments) -> Fields:
    entry = t.find(args["key"])
    number = args["initial"] if entry is None else values.unpack(entry.packed)
    if type(number) not in (int, float):
        raise WrongType("the value is not a number")
    packed = values.pack(_in_range(number + args["by"]))
    entry = t.put(args["key"], packed, None if entry is None else entry.deadline)
    return {"value": packed, "version": entry.version}


def list_(t: Transaction, args: Arguments) -> Fields:
    items: list[list[Any]] = []
    for key, entry in t.items(args["prefix"], args["after"]):
        if len(items) == args["limit"]:
            return {"items": items, "more": True}
        items.append([key, entry.version])
        if args["values"]:
            items[-1].append(values.unpack(entry.packed))
    return {"items": items, "more": False}


def count(t: Transaction, args: Arguments) -> Fields:
    return {"count": t.count(args["prefix"])}


def clear(t: Transaction, args: Arguments) -> Fields:
    keys = [key for key, _ in t.items(args["prefix"])]
    for key in keys:
        t.delete(key)
    return {"count": len(keys)}


OPERATIONS: dict[str, Operation] = {
    "ping": ping,
    "get": get,
    "put": put,
    "delete": delete,
    "incr": incr,
    "list": list_,
    "count": count,
    "clear": clear,
}


def _in_range(number: int | float) -> int | float:
    if (
        not values.INT_MIN <= number <= values.INT_MAX
        if type(number) is int
        else not math.isfinite(number)
    ):
        raise Overflow("the result is beyond 64 bits, or not a finite float")
    return number
