"""Messages <-> msgpack: the framing of PROTOCOL.md as code.

What a request may hold is in `requests` and `fields`, what an operation does in
`operations`. No socket and no file may live here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from zkv import requests, values
from zkv.errors import BY_CODE, BadRequest, Error, ProtocolError, TooLarge
from zkv.fields import (
    ABSENT,
    KEY_BYTES_MAX,
    LIST_ITEMS_MAX,
    TOKEN_BYTES_MAX,
    TXN_OPS_MAX,
    check_token,
    shortened,
)
from zkv.requests import Request

VERSION: Final = 1
MESSAGE_BYTES_MAX: Final = 8 * 2**20

LIMITS: Final = {
    "message_bytes": MESSAGE_BYTES_MAX,
    "key_bytes": KEY_BYTES_MAX,
    "id_bytes": TOKEN_BYTES_MAX,
    "session_bytes": TOKEN_BYTES_MAX,
    "value_depth": values.DEPTH_MAX,
    "value_items": values.ITEMS_MAX,
    "containers": values.CONTAINERS_MAX,
    "list_items": LIST_ITEMS_MAX,
    "txn_ops": TXN_OPS_MAX,
}
"""What `info` tells of them."""

_TOO_MANY: Final = re.compile(r"(\d+) exceeds max_(?:array|map)_len")  # as msgpack says it

_PLAIN_DECODERS: Final = [msgspec.msgpack.Decoder(kind) for kind in requests.PLAIN_REQUESTS]
_LARGE_DECODERS: Final = _PLAIN_DECODERS[::-1]  # of bin first: it needs no look at what is in it


def decode_plain(body: bytes) -> Request | None:
    """The request of a body, checked; or None if `decode_map` and `check` have to see to it."""
    large = len(body) > values.CONTAINERS_MAX  # a smaller one cannot have so many containers
    if len(body) > MESSAGE_BYTES_MAX:
        return None
    for decoder in _LARGE_DECODERS if large else _PLAIN_DECODERS:
        try:
            return requests.take(decoder.decode(body))
        except (ValueError, RecursionError):
            if large and _may_have_too_many(body):
                return None
    return None


def decode_map(body: bytes) -> dict[str, Any]:
    """The map of a message body; raises BadRequest, or TooLarge for a body over the limit."""
    if len(body) > MESSAGE_BYTES_MAX:
        raise _too_large(body)
    if not body:
        raise BadRequest("a request has one body, a frame that is not empty")
    try:
        counts = _containers_of_fields(body)
        fields = {} if counts else values.unpack_sent(body)
    except UnicodeDecodeError:
        raise BadRequest(
            "a str in the request is not UTF-8 (send bytes as bin)", field=_field_not_utf8(body)
        ) from None
    except ValueError as error:
        if (found := _TOO_MANY.match(str(error))) and int(found[1]) > values.ITEMS_MAX:
            raise BadRequest(
                f"an array or map has {found[1]} items, the limit is {values.ITEMS_MAX}",
                limit=values.ITEMS_MAX,
                size=int(found[1]),
            ) from None
        raise BadRequest(f"the body is not one msgpack value: {_reason(error)}") from None
    if type(fields) is not dict:
        raise BadRequest("the body is not a msgpack map")
    for name, count in counts.items():
        raise BadRequest(
            f"{name} has {count} arrays, maps, bins and exts, the limit is {values.CONTAINERS_MAX}",
            field=name, limit=values.CONTAINERS_MAX, size=count,
        )  # fmt: skip
    return fields


def _may_have_too_many(body: bytes) -> bool:
    return (
        not body[_HEAD_BYTES:].isascii()  # text, which is quicker to tell
        and values.containers_at_most(body) > values.CONTAINERS_MAX
    )


def _containers_of_fields(body: bytes) -> dict[str, int]:
    """The fields of a request that have too many arrays, maps, bins and exts, and how many."""
    if len(body) <= values.CONTAINERS_MAX or not _may_have_too_many(body):
        return {}
    counts = values.containers_of_fields(body)
    return {shortened(str(n)): it for n, it in counts.items() if it > values.CONTAINERS_MAX}


_HEAD_BYTES: Final = 4096  # of a request with one large value, the rest


def check_id(given: Any) -> None:
    """Raises BadRequest for an `id` that is not an int, or a str or bin of 1..64 bytes."""
    if type(given) is not int:
        check_token("id", given, "an int, ")


def encode_request(op: str, fields: Mapping[str, Any]) -> bytes:
    """The body of a request; raises BadRequest for what msgpack cannot carry, and TooLarge."""
    try:
        body = values.pack_any({"op": op, **fields})
    except (TypeError, ValueError, OverflowError):
        raise _not_msgpack(fields) from None
    if len(body) > MESSAGE_BYTES_MAX:
        raise _too_large(body)
    return body


def encode_reply(request_id: Any, revision: int, fields: Mapping[str, Any]) -> bytes:
    """The body of a successful reply. What is `Packed` goes in as it stands."""
    reply = {"ok": True, "revision": revision, **fields}
    if request_id is not ABSENT:
        reply["id"] = request_id
    return values.assemble(reply)


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


def decode_reply(body: bytes | memoryview) -> dict[str, Any]:
    """The fields of a successful reply, `revision` among them; raises the reply's error.

    Raises ValueError for a body that is not a zkv reply.
    """
    reply = values.unpack(body)
    if type(reply) is not dict or type(reply.get("ok")) is not bool:
        raise ValueError("no map with a bool 'ok'")
    if type(reply.get("revision")) is not int:
        raise ValueError("no int 'revision'")
    if reply.pop("ok"):
        return reply
    code, message = reply.pop("error", None), reply.pop("message", None)
    if type(code) is not str or type(message) is not str:
        raise ValueError("a failure without 'error' and 'message'")
    if code not in BY_CODE:
        raise ProtocolError(f"an error that this client does not know, {code}: {message}", **reply)
    raise BY_CODE[code](message, **reply)


def _too_large(body: bytes) -> TooLarge:
    return TooLarge(
        f"the message has {len(body)} bytes, the limit is {MESSAGE_BYTES_MAX}",
        limit=MESSAGE_BYTES_MAX,
        size=len(body),
    )


def _not_msgpack(fields: Mapping[str, Any]) -> BadRequest:
    """Why a request cannot be packed, and the first field that is at fault."""
    for name, given in fields.items():
        try:
            values.pack_any(given)
        except UnicodeEncodeError:
            reason = "a str in it is not Unicode text: it has half of a surrogate pair"
        except OverflowError:
            reason = f"an int in it is not {values.INT_MIN}..{values.INT_MAX}"
        except (TypeError, ValueError) as error:
            reason = str(error)
        else:
            continue
        return BadRequest(f"{name} cannot be sent: {reason}", field=name)
    return BadRequest("the request cannot be sent")  # its values change while they are packed


def _reason(error: ValueError) -> str:
    """msgpack's own words; two of its errors have none."""
    kind = type(error).__name__
    return str(error) or {"StackError": "nested too deep"}.get(kind, "not a msgpack format")


def _field_not_utf8(body: bytes) -> str:
    """The first field of a request in which a str is not UTF-8."""
    try:
        fields = values.unpack_any(body, sent=True, unicode_errors="surrogateescape")
    except ValueError:
        return "?"
    for name, given in fields.items() if type(fields) is dict else ():
        try:
            values.pack([name, given])
        except UnicodeEncodeError:
            return shortened(str(name).encode("ascii", "backslashreplace").decode())
    return "?"
