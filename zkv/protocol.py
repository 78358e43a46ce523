"""Requests and replies <-> msgpack, and every limit on them: PROTOCOL.md as code.

`OPS` is the one description of the operations' fields: the server checks against it, and
clients and their help are made from it. What an operation does is in `operations`. No
socket, no file and no key-value state may live here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgpack

from zkv import values
from zkv.errors import BY_CODE, BadRequest, Error, Internal, TooLarge, UnknownOp

VERSION: Final = 1
MESSAGE_BYTES_MAX: Final = 8 * 2**20
KEY_BYTES_MAX: Final = 1024
ID_BYTES_MAX: Final = 64
SESSION_BYTES_MAX: Final = 64
LIST_ITEMS_MAX: Final = 10_000
ABSENT: Final = type("Absent", (), {"__repr__": lambda self: "ABSENT"})()
"""Stands for a field that was not given, since nil is a value."""


class Request(NamedTuple):
    """One request, checked: `args` holds every field of the op that was given or defaults."""

    op: str
    args: dict[str, Any]


class Field(NamedTuple):
    """One field of a request: `check(name, given)` returns what the operation gets."""

    kind: str
    check: Callable[[str, Any], Any]
    about: str
    required: bool = False
    default: Any = ABSENT


class Op(NamedTuple):
    """One operation as the wire knows it."""

    about: str
    fields: Mapping[str, Field]
    replies: Mapping[str, str]
    writes: bool = False

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a request with these fields; raises BadRequest or TooLarge."""
        args = {}
        for name, value in given.items():
            field = self.fields.get(name)
            if field is None:
                raise BadRequest(f"unknown field {_quoted(name)}", field=_shortened(name))
            args[name] = field.check(name, value)
        for name, field in self.fields.items():
            if name not in args:
                if field.required:
                    raise BadRequest(f"the field {name!r} is missing", field=name)
                if field.default is not ABSENT:
                    args[name] = field.default
        return args


def decode_map(body: bytes, message_bytes_max: int = MESSAGE_BYTES_MAX) -> dict[str, Any]:
    """The map of a message body; raises BadRequest, or TooLarge for a body over the limit."""
    if len(body) > message_bytes_max:
        raise TooLarge(
            f"the message has {len(body)} bytes, the limit is {message_bytes_max}",
            limit=message_bytes_max,
            size=len(body),
        )
    if not body:
        raise BadRequest("a request is one non-empty body frame, behind an empty delimiter")
    try:
        fields = values.unpack(body)
    except UnicodeDecodeError:
        raise BadRequest(
            "a str in the request is not UTF-8 (send bytes as bin)", field=_field_not_utf8(body)
        ) from None
    except ValueError as error:
        raise BadRequest(f"the body is not one msgpack value: {_reason(error)}") from None
    if type(fields) is not dict:
        raise BadRequest("the body is not a msgpack map")
    for name in fields:
        if type(name) is not str:
            raise BadRequest("a key of the request map is not a str")
    return fields


def check_request(fields: dict[str, Any]) -> Request:
    """The request in a decoded map without its `id`; raises UnknownOp, BadRequest, TooLarge."""
    op = fields.pop("op", ABSENT)
    if op is ABSENT:
        raise BadRequest("the field 'op' is missing", field="op")
    if type(op) is not str:
        raise BadRequest("op must be a str", field="op")
    described = OPS.get(op)
    if described is None:
        raise UnknownOp(f"unknown op {_quoted(op)}", field="op")
    return Request(op, described.check(fields))


def check_id(given: Any) -> None:
    """Raises BadRequest for an `id` that is not an int, or a str or bin of 1..64 bytes."""
    if type(given) is not int:
        _check_token("id", given, ID_BYTES_MAX, "an int, ")


def encode_request(op: str, fields: Mapping[str, Any]) -> bytes:
    """The body of a request; raises BadRequest for what msgpack cannot carry."""
    try:
        return values.pack({"op": op, **fields})
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"msgpack cannot carry this: {error}", field="value") from None


def encode_reply(request_id: Any, revision: int, fields: Mapping[str, Any]) -> bytes:
    """The body of a successful reply. `value` and `old` are given as msgpack already."""
    extra = b"" if request_id is ABSENT else _name("id") + values.pack(request_id)
    parts = [_ok(len(fields) + bool(extra)), values.pack(revision), extra]
    for name, field in fields.items():
        parts.append(_name(name))
        parts.append(field if name in PACKED else values.pack(field))
    return b"".join(parts)


def encode_error(request_id: Any, revision: int, error: Error) -> bytes:
    """The body of the reply that says why a request failed."""
    reply = {
        "ok": False,
        "revision": revision,
        "error": error.code,
        "message": error.message,
        **error.details,
    }
    if request_id is not ABSENT:
        reply["id"] = request_id
    return values.pack(reply)


def decode_reply(body: bytes) -> dict[str, Any]:
    """The fields of a successful reply, `revision` among them; raises the reply's error.

    Raises ValueError for a body that is not a zkv reply.
    """
    reply = values.unpack(body)
    if type(reply) is not dict or type(reply.get("ok")) is not bool:
        raise ValueError("no map with a bool 'ok'")
    if reply.pop("ok"):
        return reply
    code, message = reply.pop("error", None), reply.pop("message", None)
    if type(code) is not str or type(message) is not str:
        raise ValueError("a failure without 'error' and 'message'")
    raise BY_CODE.get(code, Internal)(message, **reply)


PACKED: Final = frozenset(("value", "old"))


def _check_key(name: str, given: Any) -> str:
    if not given:
        raise BadRequest(f"{name} must be a str of 1..{KEY_BYTES_MAX} bytes", field=name)
    return _check_prefix(name, given)


def _check_prefix(name: str, given: Any) -> str:
    if type(given) is not str:
        raise BadRequest(f"{name} must be a str, not {_kind(given)}", field=name)
    if len(given) * 4 > KEY_BYTES_MAX and (size := len(given.encode())) > KEY_BYTES_MAX:
        raise TooLarge(
            f"{name} has {size} bytes, the limit is {KEY_BYTES_MAX}",
            field=name, limit=KEY_BYTES_MAX, size=size,
        )  # fmt: skip
    return given


def _check_value(name: str, given: Any) -> bytes:
    try:
        values.check_depth(given)
    except BadRequest as error:
        raise BadRequest(error.message, field=name, **error.details) from None
    return values.pack(given)


def _check_flag(name: str, given: Any) -> bool:
    if type(given) is not bool:
        raise BadRequest(f"{name} must be true or false, not {_kind(given)}", field=name)
    return given


def _check_number(name: str, given: Any) -> int | float:
    if type(given) is int or (type(given) is float and math.isfinite(given)):
        return given
    raise BadRequest(f"{name} must be an int or a finite float, not {_kind(given)}", field=name)


def _check_limit(name: str, given: Any) -> int:
    if type(given) is not int or not 1 <= given <= LIST_ITEMS_MAX:
        raise BadRequest(f"{name} must be an int, 1..{LIST_ITEMS_MAX}", field=name)
    return given


def _check_token(name: str, given: Any, bytes_max: int, or_else: str = "") -> None:
    if type(given) is str:
        size = len(given.encode())
    elif type(given) is bytes:
        size = len(given)
    else:
        size = 0
    if not 1 <= size <= bytes_max:
        raise BadRequest(
            f"{name} must be {or_else}a str or bin of 1..{bytes_max} bytes", field=name
        )


def _kind(given: Any) -> str:
    return _KINDS.get(type(given), "an ext")


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"


def _quoted(text: str) -> str:
    return repr(_shortened(text))


def _reason(error: ValueError) -> str:
    """msgpack's own words; two of its errors have none."""
    kind = type(error).__name__
    return str(error) or {"StackError": "nested too deep"}.get(kind, "not a msgpack format")


def _field_not_utf8(body: bytes) -> str:
    """The first field of a request in which a str is not UTF-8."""
    fields = msgpack.unpackb(body, strict_map_key=False, unicode_errors="surrogateescape")
    for name, given in fields.items() if type(fields) is dict else ():
        try:
            str([name, given]).encode()
            msgpack.packb([name, given])
        except (UnicodeEncodeError, ValueError):
            return _shortened(ascii(name))
    return "?"


_KINDS: dict[type, str] = {
    type(None): "nil", bool: "a bool", int: "an int", float: "a float", str: "a str",
    bytes: "a bin", list: "an array", dict: "a map",
}  # fmt: skip

_KEY = Field("key", _check_key, f"1..{KEY_BYTES_MAX} bytes of UTF-8", required=True)
_PREFIX = Field("prefix", _check_prefix, "keys that begin with this; '' is every key", default="")
_VALUE = Field("value", _check_value, "what to store; nil is a value", required=True)

OPS: Final[dict[str, Op]] = {
    "ping": Op("answers, and changes nothing", {}, {}),
    "info": Op(
        "what the server is and what it holds",
        {},
        {"name": "zkv", "version": "of zkv", "protocol": "its version", "store": "its id",
         "keys": "how many", "limits": "a map", "counters": "a map"},
    ),
    "get": Op(
        "the value of a key",
        {"key": _KEY},
        {"value": "as it was put", "version": "the revision that last changed the key"},
    ),
    "put": Op(
        "stores a value under a key, whether or not it was there",
        {"key": _KEY, "value": _VALUE},
        {"version": "the key's new version"},
        writes=True,
    ),
    "delete": Op(
        "removes a key",
        {"key": _KEY},
        {"version": "the version that was removed"},
        writes=True,
    ),
    "incr": Op(
        "adds to a number",
        {
            "key": _KEY,
            "by": Field("number", _check_number, "what to add", default=1),
            "initial": Field("number", _check_number, "where a missing key starts", default=0),
        },
        {"value": "after adding", "version": "the key's new version"},
        writes=True,
    ),
    "list": Op(
        "keys in order, a page at a time",
        {
            "prefix": _PREFIX,
            "after": Field("prefix", _check_prefix, "start behind this key", default=""),
            "limit": Field("limit", _check_limit, f"1..{LIST_ITEMS_MAX} items", default=1000),
            "values": Field("flag", _check_flag, "values too", default=False),
        },
        {"items": "[key, version] or [key, version, value], sorted by key",
         "more": "whether keys follow"},
    ),
    "count": Op("how many keys there are", {"prefix": _PREFIX}, {"count": "of keys"}),
    "clear": Op(
        "removes every key that begins with a prefix",
        {"prefix": _PREFIX._replace(required=True, default=ABSENT)},
        {"count": "of keys removed"},
        writes=True,
    ),
}  # fmt: skip


@functools.cache
def _ok(fields: int) -> bytes:
    """The beginning of a successful reply with so many fields behind `revision`."""
    header: bytes = msgpack.Packer().pack_map_header(fields + 2)
    return header + _name("ok") + values.pack(True) + _name("revision")


_name = functools.cache(values.pack)
