"""Requests and replies <-> msgpack, and every limit on them: PROTOCOL.md as code.

`OPS` is the one description of the operations' fields: the server checks against it, and
clients and their help are made from it. What an operation does is in `operations`. No
socket, no file and no key-value state may live here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgpack

from zkv import values
from zkv.errors import BY_CODE, BadRequest, Error, Internal, RequestError, TooLarge, UnknownOp
from zkv.values import Packed

VERSION: Final = 1
MESSAGE_BYTES_MAX: Final = 8 * 2**20
KEY_BYTES_MAX: Final = 1024
TXN_OPS_MAX: Final = 1024
ID_BYTES_MAX: Final = 64
SESSION_BYTES_MAX: Final = 64
LIST_ITEMS_MAX: Final = 10_000
ABSENT: Final = type("Absent", (), {"__repr__": lambda self: "ABSENT"})()
"""Stands for a field that was not given, since nil is a value."""


class Session(NamedTuple):
    """What makes a write happen once: whose it is, which one, and whether it is sent again."""

    id: str | bytes
    seq: int
    retry: bool


class Request(NamedTuple):
    """One request, checked: `args` holds every field of the op that was given or defaults."""

    op: str
    args: dict[str, Any]
    session: Session | None = None


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
    exclusive: tuple[str, ...] = ()
    """Fields of which at most one may be given."""

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
        if len(both := [name for name in self.exclusive if name in given]) > 1:
            raise BadRequest(f"{' and '.join(both)} exclude each other", field=both[-1])
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
    op = _take_op(fields)
    session = _take_session(fields, OPS[op]) if "session" in fields else None
    return Request(op, OPS[op].check(fields), session)


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
    """The body of a successful reply. A field that is Packed goes in as it stands."""
    extra = b"" if request_id is ABSENT else _name("id") + values.pack(request_id)
    parts = [_ok(len(fields) + bool(extra)), values.pack(revision), extra]
    for name, field in fields.items():
        parts.append(_name(name))
        parts.append(field if type(field) is Packed else values.pack(field))
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


def _take_op(fields: dict[str, Any]) -> str:
    op = fields.pop("op", ABSENT)
    if op is ABSENT:
        raise BadRequest("the field 'op' is missing", field="op")
    if type(op) is not str:
        raise BadRequest("op must be a str", field="op")
    if op not in OPS:
        raise UnknownOp(f"unknown op {_quoted(op)}", field="op")
    return op


def _take_session(fields: dict[str, Any], op: Op) -> Session:
    session, seq = fields.pop("session"), fields.pop("seq", ABSENT)
    if not op.writes:
        raise BadRequest("session is for writes", field="session")
    _check_token("session", session, SESSION_BYTES_MAX)
    if type(seq) is not int or seq < 1:
        raise BadRequest("seq must be an int of at least 1, beside session", field="seq")
    return Session(session, seq, _check_flag("retry", fields.pop("retry", False)))


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


def _check_value(name: str, given: Any) -> Packed:
    try:
        values.check_depth(given)
    except BadRequest as error:
        raise BadRequest(error.message, field=name, **error.details) from None
    return Packed(values.pack(given))


def _check_flag(name: str, given: Any) -> bool:
    if type(given) is not bool:
        raise BadRequest(f"{name} must be true or false, not {_kind(given)}", field=name)
    return given


def _check_number(name: str, given: Any) -> int | float:
    if type(given) is int or (type(given) is float and math.isfinite(given)):
        return given
    raise BadRequest(f"{name} must be an int or a finite float, not {_kind(given)}", field=name)


def _check_ttl(name: str, given: Any) -> int | float:
    seconds = _check_number(name, given)
    if seconds <= 0:
        raise BadRequest(f"{name} must be more than 0 seconds", field=name)
    return seconds


def _check_ttl_or_never(name: str, given: Any) -> int | float | None:
    return None if given is None else _check_ttl(name, given)


def _check_version(name: str, given: Any) -> int:
    if type(given) is not int or given < 0:
        raise BadRequest(f"{name} must be an int of at least 0", field=name)
    return given


def _check_conditions(name: str, given: Any) -> dict[str, Any]:
    if type(given) is not dict or not given:
        raise BadRequest(f"{name} must be a map with {', '.join(_CONDITIONS)}", field=name)
    checked = {}
    for condition, wanted in given.items():
        check = _CONDITIONS.get(condition)
        if check is None:
            raise BadRequest(f"unknown condition {_quoted(str(condition))}", field=name)
        checked[condition] = check(f"{name}.{condition}", wanted)
    return checked


def _check_guards(name: str, given: Any) -> list[tuple[str, dict[str, Any]]]:
    guards = []
    for index, guard in enumerate(_check_array(name, given)):
        if type(guard) is not dict or "key" not in guard:
            raise BadRequest(f"{name}[{index}] must be a map with a key", field=name, index=index)
        with _inside(name, index):
            key = _check_key("key", guard.pop("key"))
            guards.append((key, _check_conditions(name, guard)))
    return guards


def _check_ops(name: str, given: Any) -> list[Request]:
    requests = []
    for index, fields in enumerate(_check_array(name, given)):
        if type(fields) is not dict:
            raise BadRequest(f"{name}[{index}] must be a map", field=name, index=index)
        with _inside(name, index):
            op = _take_op(fields)
            if op not in TXN_OPS:
                raise BadRequest(f"{op} cannot stand in a txn", field="op")
            requests.append(Request(op, OPS[op].check(fields)))
    return requests


def _check_array(name: str, given: Any) -> list[Any]:
    if type(given) is not list:
        raise BadRequest(f"{name} must be an array, not {_kind(given)}", field=name)
    if len(given) > TXN_OPS_MAX:
        raise BadRequest(
            f"{name} has {len(given)} items, the limit is {TXN_OPS_MAX}",
            field=name, limit=TXN_OPS_MAX, size=len(given),
        )  # fmt: skip
    return given


@contextmanager
def _inside(name: str, index: int) -> Iterator[None]:
    """Has an error say at which item of an array it arose."""
    try:
        yield
    except RequestError as error:
        details = {**error.details, "index": index}
        raise type(error)(f"{name}[{index}]: {error.message}", **details) from None


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

_CONDITIONS: dict[str, Callable[[str, Any], Any]] = {
    "version": _check_version,
    "exists": _check_flag,
    "value": _check_value,
}

TXN_OPS: Final = frozenset(("get", "put", "delete", "incr", "expire", "list", "count"))

_KEY = Field("key", _check_key, f"1..{KEY_BYTES_MAX} bytes of UTF-8", required=True)
_PREFIX = Field("prefix", _check_prefix, "keys that begin with this; '' is every key", default="")
_VALUE = Field("value", _check_value, "nil is a value", required=True)
_IF = Field("conditions", _check_conditions, "a map: version, exists, value; all must hold")
_OLD = Field("flag", _check_flag, "reply with the value that was there", default=False)
_VERSION = "the revision that last changed the key"

OPS: Final[dict[str, Op]] = {
    "ping": Op("answers, and changes nothing", {}, {}),
    "info": Op(
        "what the server is and what it holds",
        {},
        {
            "name": "zkv",
            "version": "of the server",
            "protocol": "its version",
            "started": "seconds since 1970",
            "store": "the id of the data",
            "keys": "how many",
            "limits": "a map",
            "counters": "a map",
        },
    ),
    "get": Op(
        "the value of a key",
        {
            "key": _KEY,
            "default": _VALUE._replace(
                about="for a missing key; version is then 0", required=False
            ),
        },
        {"value": "as it was put", "version": _VERSION, "ttl": "seconds left, if it expires"},
    ),
    "put": Op(
        "stores a value under a key, whether or not it was there",
        {
            "key": _KEY,
            "value": _VALUE,
            "ttl": Field("ttl", _check_ttl, "seconds until the key expires; else it never does"),
            "keep_ttl": Field("flag", _check_flag, "it expires when it was to", default=False),
            "if": _IF,
            "return_old": _OLD,
        },
        {"version": _VERSION, "old": "what was there, if return_old and if there was"},
        writes=True,
        exclusive=("ttl", "keep_ttl"),
    ),
    "delete": Op(
        "removes a key",
        {"key": _KEY, "if": _IF, "return_old": _OLD},
        {"version": "the version that was removed", "old": "what was there, if return_old"},
        writes=True,
    ),
    "incr": Op(
        "adds to a number",
        {
            "key": _KEY,
            "by": Field("number", _check_number, "what to add", default=1),
            "initial": Field("number", _check_number, "where a missing key starts", default=0),
            "if": _IF,
        },
        {"value": "after adding", "version": _VERSION},
        writes=True,
    ),
    "expire": Op(
        "sets when a key expires",
        {
            "key": _KEY,
            "ttl": Field("ttl", _check_ttl_or_never, "seconds from now; nil: never", required=True),
            "if": _IF,
        },
        {"version": _VERSION},
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
        {
            "items": "[key, version] or [key, version, value], sorted by key",
            "more": "whether keys follow",
        },
    ),
    "count": Op("how many keys there are", {"prefix": _PREFIX}, {"count": "of keys"}),
    "clear": Op(
        "removes every key that begins with a prefix",
        {"prefix": _PREFIX._replace(required=True, default=ABSENT)},
        {"count": "of keys removed"},
        writes=True,
    ),
    "txn": Op(
        "does all of `then` if every condition holds, else all of `else`; or nothing at all",
        {
            "if": Field("guards", _check_guards, "[{key, condition…} …]", default=()),
            "then": Field("ops", _check_ops, f"up to {TXN_OPS_MAX} ops", required=True),
            "else": Field("ops", _check_ops, f"up to {TXN_OPS_MAX} ops", default=()),
        },
        {"success": "whether the conditions held", "results": "the fields of each op's reply"},
        writes=True,
    ),
}


@functools.cache
def _ok(fields: int) -> bytes:
    """The beginning of a successful reply with so many fields behind `revision`."""
    header: bytes = msgpack.Packer().pack_map_header(fields + 2)
    return header + _name("ok") + values.pack(True) + _name("revision")


_name = functools.cache(values.pack)
