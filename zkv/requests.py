"""What a request may be: every operation with its fields, and what its reply adds.

`OPS` is the one description: the server checks against it, and clients and their help are
made from it. What each kind of field may hold is in `fields`, what an operation does in
`operations`. No byte of a message may be read or made here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Union

from msgspec import Struct

from zkv.arguments import Arguments, attribute_of, pack, request_type_of, type_of
from zkv.errors import BadRequest, Error, RequestError, UnknownOp
from zkv.fields import (
    ABSENT,
    KEY_BYTES_MAX,
    LIST_ITEMS_MAX,
    PLAIN,
    PLAIN_BIN,
    TXN_OPS_MAX,
    Field,
    check_array,
    check_conditions,
    check_flag,
    check_guards,
    check_items,
    check_key,
    check_keys,
    check_limit,
    check_number,
    check_prefix,
    check_token,
    check_ttl,
    check_ttl_or_never,
    check_value,
    check_version,
    inside,
    quoted,
    shortened,
)

ANY_ERRORS: Final = ("bad_request", "too_large", "unavailable", "internal")
"""Codes that any request may fail with."""
SESSION_ERRORS: Final = ("stale", "session_lost")


class Session(Struct, frozen=True):
    """What makes a write happen once: whose it is, which one, and whether it is sent again."""

    id: str | bytes
    seq: int
    retry: bool


class Request(Struct, frozen=True):
    """One request, checked."""

    args: Arguments
    session: Session | None = None
    id: Any = ABSENT


@dataclass(frozen=True)
class Op:
    """One operation as the wire knows it."""

    about: str
    fields: Mapping[str, Field]
    replies: Mapping[str, str]
    writes: bool = False
    exclusive: tuple[str, ...] = ()
    """Fields of which at most one may be given."""
    sometimes: tuple[str, ...] = ()
    """Fields that a successful reply may lack."""
    errors: tuple[str, ...] = ()
    """Codes of its own, besides ANY_ERRORS and, of a write in a session, SESSION_ERRORS."""

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """These fields of a request, checked; raises BadRequest or TooLarge."""
        args: dict[str, Any] = {}
        for name, value in given.items():
            check = self._checks.get(name)
            if check is None:
                raise _unknown_field(name)
            args[name] = check(name, value)
        for name in self._required:
            if name not in args:
                raise BadRequest(f"the field {name!r} is missing", field=name)
        if self.exclusive and len(both := [n for n in self.exclusive if n in given]) > 1:
            raise BadRequest(f"{' and '.join(both)} exclude each other", field=both[-1])
        return args

    @cached_property
    def always(self) -> frozenset[str]:
        """The fields that every successful reply has, behind `ok` and `revision`."""
        return frozenset(self.replies).difference(self.sometimes)

    @cached_property
    def _checks(self) -> dict[str, Callable[[str, Any], Any]]:
        return {name: field.check for name, field in self.fields.items()}

    @cached_property
    def _required(self) -> tuple[str, ...]:
        return tuple(name for name, field in self.fields.items() if field.required)


def check(fields: dict[str, Any], request_id: Any = ABSENT) -> Request:
    """The request in a decoded map without its `id`; raises UnknownOp, BadRequest, TooLarge."""
    op = fields.pop("op", ABSENT)
    if type(op) is not str or op not in OPS:
        raise _unknown_op(op)
    session = _take_session(fields, OPS[op]) if "session" in fields else None
    return Request(_check_fields(op, fields), session, request_id)


def take(plain: Any) -> Request | None:
    """The request in what was decoded as a plain one; None if `check` has to see it."""
    session = None
    if plain.writes:
        if plain.session is not ABSENT and plain.seq is not ABSENT:
            if not plain.session.isascii():
                return None
            session = Session(plain.session, plain.seq, plain.retry is True)
        elif any(it is not ABSENT for it in (plain.session, plain.seq, plain.retry)):
            return None
    return Request(pack(plain), session, plain.id)


def _check_fields(op: str, given: dict[str, Any]) -> Arguments:
    checked = OPS[op].check(given)
    return _ARGUMENTS[op](**{attribute_of(name): it for name, it in checked.items()})


def _unknown_op(op: Any) -> Error:
    if op is ABSENT:
        return BadRequest("the field 'op' is missing", field="op")
    if type(op) is not str:
        return BadRequest("op must be a str", field="op")
    return UnknownOp(f"unknown op {quoted(op)}", field="op")


def _unknown_field(name: Any) -> Error:
    if type(name) is not str:
        return BadRequest("a key of the request map is not a str")
    return BadRequest(f"unknown field {quoted(name)}", field=shortened(name))


def _take_session(fields: dict[str, Any], op: Op) -> Session:
    session, seq = fields.pop("session"), fields.pop("seq", ABSENT)
    if not op.writes:
        raise BadRequest("session is for writes", field="session")
    check_token("session", session)
    if type(seq) is not int or seq < 1:
        raise BadRequest("seq must be an int of at least 1, beside session", field="seq")
    return Session(session, seq, check_flag("retry", fields.pop("retry", False)))


def _check_ops(name: str, given: Any) -> list[Arguments]:
    ops = []
    for index, fields in enumerate(check_array(name, given)):
        if type(fields) is not dict:
            raise BadRequest(f"{name}[{index}] must be a map", field=name, index=index)
        try:
            op = fields.pop("op", ABSENT)
            if type(op) is not str or op not in TXN_OPS:
                raise _not_in_txn(op)
            ops.append(_check_fields(op, fields))
        except RequestError as error:
            raise inside(error, name, index) from None
    return ops


def _not_in_txn(op: Any) -> Error:
    if type(op) is not str or op not in OPS:
        return _unknown_op(op)
    return BadRequest(f"{op} cannot stand in a txn", field="op")


TXN_OPS: Final = frozenset(("get", "put", "delete", "incr", "expire", "list", "count"))

_KEY = Field("key", check_key, f"1..{KEY_BYTES_MAX} bytes of UTF-8", required=True)
_PREFIX = Field("prefix", check_prefix, "keys that begin with this; '' is every key", default="")
_VALUE = Field("value", check_value, "nil is a value", required=True)
_IF = Field("conditions", check_conditions, "a map: version, exists, value; all must hold")
_OLD = Field("flag", check_flag, "reply with the value that was there", default=False)
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
            "fsync": "always, interval or never",
            "sessions": "how many",
            "sessions_max": "how many at most",
            "sessions_forgotten": "since the start, as there were more",
            "replies_bytes": "of large replies that sessions keep",
            "replies_bytes_max": "how many at most",
            "replies_given_up": "large replies, since the start",
            "journal_bytes": "that no snapshot has taken in yet",
            "snapshot_bytes": "of the newest snapshot",
            "snapshot_revision": "of the newest snapshot",
            "compacting": "whether a snapshot is being made",
            "compaction_error": "nil, or why the last one did not come about",
            "connections": "a map: how many, and what they leave unread",
            "limits": "a map",
            "counters": "requests by op, errors by code",
        },
        sometimes=(
            "fsync",
            "sessions",
            "sessions_max",
            "sessions_forgotten",
            "replies_bytes",
            "replies_bytes_max",
            "replies_given_up",
            "journal_bytes",
            "snapshot_bytes",
            "connections",
        ),
    ),
    "compact": Op("has the data brought into one snapshot, which `info` tells of", {}, {}),
    "read_snapshot": Op(
        "a part of a snapshot file, for a backup",
        {
            "revision": Field("int", check_version, "of the snapshot", required=True),
            "offset": Field("int", check_version, "where the part begins", default=0),
        },
        {"data": "bin", "bytes": "the size of the file"},
        errors=("not_found",),
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
        sometimes=("ttl",),
        errors=("not_found",),
    ),
    "get_many": Op(
        "the values of several keys at one moment",
        {"keys": Field("keys", check_keys, f"up to {TXN_OPS_MAX} keys", required=True)},
        {"entries": "[value, version] for each key in turn, or nil if it is missing"},
    ),
    "put": Op(
        "stores a value under a key, whether or not it was there",
        {
            "key": _KEY,
            "value": _VALUE,
            "ttl": Field("ttl", check_ttl, "seconds until the key expires; else it never does"),
            "keep_ttl": Field("flag", check_flag, "it expires when it was to", default=False),
            "if": _IF,
            "return_old": _OLD,
        },
        {"version": _VERSION, "old": "what was there, if return_old and if there was"},
        writes=True,
        exclusive=("ttl", "keep_ttl"),
        sometimes=("old",),
        errors=("conflict", "no_space"),
    ),
    "put_many": Op(
        "stores several values at one moment, or none",
        {
            "items": Field("items", check_items, f"a map of up to {TXN_OPS_MAX}", required=True),
            "ttl": Field("ttl", check_ttl, "seconds until the keys expire; else they never do"),
        },
        {"version": "of each of the keys; 0 if there are none"},
        writes=True,
        errors=("no_space",),
    ),
    "delete": Op(
        "removes a key",
        {"key": _KEY, "if": _IF, "return_old": _OLD},
        {"version": "the version that was removed", "old": "what was there, if return_old"},
        writes=True,
        sometimes=("old",),
        errors=("conflict", "not_found", "no_space"),
    ),
    "incr": Op(
        "adds to a number",
        {
            "key": _KEY,
            "by": Field("number", check_number, "what to add", default=1),
            "initial": Field("number", check_number, "where a missing key starts", default=0),
            "if": _IF,
        },
        {"value": "after adding", "version": _VERSION},
        writes=True,
        errors=("conflict", "wrong_type", "overflow", "no_space"),
    ),
    "expire": Op(
        "sets when a key expires",
        {
            "key": _KEY,
            "ttl": Field("ttl", check_ttl_or_never, "seconds from now; nil: never", required=True),
            "if": _IF,
        },
        {"version": _VERSION},
        writes=True,
        errors=("conflict", "not_found", "no_space"),
    ),
    "list": Op(
        "keys in order, a page at a time",
        {
            "prefix": _PREFIX,
            "after": Field("prefix", check_prefix, "start behind this key", default=""),
            "limit": Field("limit", check_limit, f"1..{LIST_ITEMS_MAX} items", default=1000),
            "values": Field("flag", check_flag, "values too", default=False),
            "ttls": Field("flag", check_flag, "seconds left too, or nil for ever", default=False),
        },
        {
            "items": "[key, version], then the value, then the ttl, sorted by key",
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
            "if": Field("guards", check_guards, "[{key, condition…} …]", default=()),
            "then": Field("ops", _check_ops, f"up to {TXN_OPS_MAX} ops", required=True),
            "else": Field("ops", _check_ops, f"up to {TXN_OPS_MAX} ops", default=()),
        },
        {"success": "whether the conditions held", "results": "the fields of each op's reply"},
        writes=True,
        errors=("conflict", "not_found", "wrong_type", "overflow", "no_space"),
    ),
}


def _arguments_of(plain: Mapping[str, Any]) -> dict[str, type[Arguments]]:
    arguments: dict[str, type[Arguments]] = {}
    for name, op in OPS.items():  # txn is behind what it may carry
        within = [it for other, it in arguments.items() if other in TXN_OPS]
        # Of fields that exclude each other one is plain, so two never come together unchecked.
        arguments[name] = type_of(
            name, op.fields, within, plain, writes=op.writes, not_plain=op.exclusive[1:]
        )
    return arguments


def _request_of(arguments: Mapping[str, type[Arguments]]) -> Any:
    return Union[tuple(map(request_type_of, arguments.values()))]  # noqa: UP007


_ARGUMENTS: Final = _arguments_of(PLAIN)

PLAIN_REQUESTS: Final = (_request_of(_ARGUMENTS), _request_of(_arguments_of(PLAIN_BIN)))
"""The types of requests that are plain, see `arguments`: first of most, then of those whose
values are all bin."""
