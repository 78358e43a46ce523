"""What a field of a request may hold: one check for each kind of field, and the limits.

`check_…(name, given)` returns what an operation gets, or raises BadRequest or TooLarge with
the field's name in a sentence and in the details. Which op has which fields is described in
`requests`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sized
from typing import Annotated, Any, Final, NamedTuple

from msgspec import Meta

from zkv import values
from zkv.errors import BadRequest, RequestError, TooLarge

KEY_BYTES_MAX: Final = 1024
TXN_OPS_MAX: Final = 1024
LIST_ITEMS_MAX: Final = 10_000
TOKEN_BYTES_MAX: Final = 64
"""Of the `id` and the `session` of a request."""

ABSENT: Final = type("Absent", (), {"__repr__": lambda self: "ABSENT"})()
"""Stands for a field that was not given, since nil is a value."""


class Field(NamedTuple):
    """One field of a request: `check(name, given)` returns what the operation gets."""

    kind: str
    check: Callable[[str, Any], Any]
    about: str
    required: bool = False
    default: Any = ABSENT


_PLAIN_KEY = Annotated[str, Meta(min_length=1, max_length=KEY_BYTES_MAX // 4)]


def _plain_items(value: Any) -> Any:
    return Annotated[dict[_PLAIN_KEY, value], Meta(max_length=TXN_OPS_MAX)]


PLAIN: Final[Mapping[str, Any]] = {
    "key": _PLAIN_KEY,
    "prefix": Annotated[str, Meta(max_length=KEY_BYTES_MAX // 4)],
    "value": values.plain(5),
    "flag": bool,
    "number": int | values.FINITE,
    "ttl": Annotated[int, Meta(gt=0)] | Annotated[float, Meta(gt=0, le=sys.float_info.max)],
    "limit": Annotated[int, Meta(ge=1, le=LIST_ITEMS_MAX)],
    "keys": Annotated[list[_PLAIN_KEY], Meta(max_length=TXN_OPS_MAX)],
    "items": _plain_items(values.plain(4)),
}
"""By kind of field, the type of what its check takes, and gives back as it stands or packed.

It need not be all that the check takes, but nothing else may be of it."""

PLAIN_BIN: Final[Mapping[str, Any]] = {**PLAIN, "value": bytes, "items": _plain_items(bytes)}
"""The same where all values are bin: msgspec knows no type of both str and bin."""

PLAIN_ID: Final = int | Annotated[str, Meta(min_length=1, max_length=TOKEN_BYTES_MAX // 4)]
"""The same of an `id`."""

PLAIN_SESSION: Final = Annotated[str, Meta(min_length=1, max_length=TOKEN_BYTES_MAX)]
"""The same of a `session`, as far as it is ASCII: a UUID has 36 characters."""


def check_key(name: str, given: Any) -> str:
    if type(given) is str and 0 < len(given) <= KEY_BYTES_MAX // 4:  # no character has more
        return given
    if given == "":
        raise BadRequest(f"{name} must be a str of 1..{KEY_BYTES_MAX} bytes", field=name)
    return check_prefix(name, given)


def check_prefix(name: str, given: Any) -> str:
    if type(given) is not str:
        raise BadRequest(f"{name} must be a str, not {_kind(given)}", field=name)
    if len(given) * 4 > KEY_BYTES_MAX and (size := len(given.encode())) > KEY_BYTES_MAX:
        raise TooLarge(
            f"{name} has {size} bytes, the limit is {KEY_BYTES_MAX}",
            field=name, limit=KEY_BYTES_MAX, size=size,
        )  # fmt: skip
    return given


def check_value(name: str, given: Any) -> bytes:
    """Returns the value packed."""
    try:
        values.check_depth(given)
    except BadRequest as error:
        raise BadRequest(error.message, field=name, **error.details) from None
    return values.pack(given)


def check_flag(name: str, given: Any) -> bool:
    if type(given) is not bool:
        raise BadRequest(f"{name} must be true or false, not {_kind(given)}", field=name)
    return given


def check_number(name: str, given: Any) -> int | float:
    if type(given) is int or (type(given) is float and math.isfinite(given)):
        return given
    found = f"{given}" if type(given) is float else _kind(given)
    raise BadRequest(f"{name} must be an int or a finite float, not {found}", field=name)


def check_ttl(name: str, given: Any) -> int | float:
    seconds = check_number(name, given)
    if seconds <= 0:
        raise BadRequest(f"{name} must be more than 0 seconds", field=name)
    return seconds


def check_ttl_or_never(name: str, given: Any) -> int | float | None:
    return None if given is None else check_ttl(name, given)


def check_version(name: str, given: Any) -> int:
    if type(given) is not int or given < 0:
        raise BadRequest(f"{name} must be an int of at least 0", field=name)
    return given


def check_conditions(name: str, given: Any) -> dict[str, Any]:
    if type(given) is not dict or not given:
        known = ", ".join(_CONDITIONS)
        raise BadRequest(f"{name} must be a map with at least one of {known}", field=name)
    checked = {}
    for condition, wanted in given.items():
        check = _CONDITIONS.get(condition)
        if check is None:
            raise BadRequest(f"unknown condition {quoted(str(condition))}", field=name)
        checked[condition] = check(f"{name}.{condition}", wanted)
    return checked


def check_guards(name: str, given: Any) -> list[tuple[str, dict[str, Any]]]:
    guards = []
    for index, guard in enumerate(check_array(name, given)):
        if type(guard) is not dict or "key" not in guard:
            raise BadRequest(f"{name}[{index}] must be a map with a key", field=name, index=index)
        try:
            key = check_key("key", guard.pop("key"))
            guards.append((key, check_conditions(name, guard)))
        except RequestError as error:
            raise inside(error, name, index) from None
    return guards


def check_keys(name: str, given: Any) -> list[str]:
    keys = check_array(name, given)
    for index, key in enumerate(keys):
        try:
            check_key("key", key)
        except RequestError as error:
            error.details["field"] = name
            raise inside(error, name, index) from None
    return keys


def check_items(name: str, given: Any) -> dict[str, bytes]:
    """Returns the values packed."""
    if type(given) is not dict:
        raise BadRequest(f"{name} must be a map, not {_kind(given)}", field=name)
    _check_count(name, given)
    items = {}
    for key, value in given.items():
        try:
            check_key("the key", key)
            items[key] = check_value(name, value)
        except RequestError as error:
            details = {**error.details, "field": name}
            raise type(error)(f"{name}[{quoted(str(key))}]: {error.message}", **details) from None
    return items


def check_array(name: str, given: Any) -> list[Any]:
    if type(given) is not list:
        raise BadRequest(f"{name} must be an array, not {_kind(given)}", field=name)
    _check_count(name, given)
    return given


def _check_count(name: str, given: Sized) -> None:
    if len(given) > TXN_OPS_MAX:
        raise BadRequest(
            f"{name} has {len(given)} items, the limit is {TXN_OPS_MAX}",
            field=name, limit=TXN_OPS_MAX, size=len(given),
        )  # fmt: skip


def inside(error: RequestError, name: str, index: int) -> RequestError:
    """The error of an item of an array: it says which item that is."""
    return type(error)(f"{name}[{index}]: {error.message}", **{**error.details, "index": index})


def check_limit(name: str, given: Any) -> int:
    if type(given) is not int or not 1 <= given <= LIST_ITEMS_MAX:
        raise BadRequest(f"{name} must be an int, 1..{LIST_ITEMS_MAX}", field=name)
    return given


def check_token(name: str, given: Any, or_else: str = "") -> None:
    if type(given) is str:
        size = len(given.encode())
    elif type(given) is bytes:
        size = len(given)
    else:
        size = 0
    if not 1 <= size <= TOKEN_BYTES_MAX:
        raise BadRequest(
            f"{name} must be {or_else}a str or bin of 1..{TOKEN_BYTES_MAX} bytes", field=name
        )


def _kind(given: Any) -> str:
    return _KINDS.get(type(given), "an ext")


def shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"


def quoted(text: str) -> str:
    return repr(shortened(text))


_KINDS: dict[type, str] = {
    type(None): "nil", bool: "a bool", int: "an int", float: "a float", str: "a str",
    bytes: "a bin", list: "an array", dict: "a map",
}  # fmt: skip

_CONDITIONS: dict[str, Callable[[str, Any], Any]] = {
    "version": check_version,
    "exists": check_flag,
    "value": check_value,
}
