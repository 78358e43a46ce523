"""PROTOCOL.md as tests: what is a request, what is refused and with which words."""

from __future__ import annotations

import math
import resource
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkv import errors, protocol, requests, values
from zkv.arguments import attribute_of
from zkv.fields import ABSENT
from zkv.operations import OPERATIONS
from zkv.requests import OPS, Session

# By kind of field: what is taken, and what is refused with the field's name.
TAKEN: dict[str, list[Any]] = {
    "key": ["k", "é", "\0", "\U0010ffff"],
    "prefix": ["", "k"],
    "value": [None, 1, 1.0, True, "", b"", [{}], {1: 2}, math.nan, msgpack.Timestamp(1, 2)],
    "number": [1, -1, 0, 0.5, 2**64 - 1, -(2**63)],
    "limit": [1, 10_000],
    "flag": [True, False],
    "ttl": [1, 0.001, 2**40],
    "conditions": [{"version": 0}, {"exists": True, "value": None}],
    "guards": [[], [{"key": "k", "version": 7}]],
    "int": [0, 1, 2**64 - 1],
    "ops": [[], [{"op": "put", "key": "k", "value": 1}]],
    "keys": [[], ["k", "k"], ["k"] * 1024],
    "items": [{}, {"k": None, "é": [b"", {1: 2}]}],
}
NO_NUMBER = [None, True, "1", b"1", [], {}, math.nan, math.inf, -math.inf]
NO_ARRAY = [None, 1, "", {}, [1], [[]], [{}]]
REFUSED: dict[str, list[Any]] = {
    "key": ["", None, True, 0, 1, 1.5, b"k", [], ["k"], {}, msgpack.ExtType(1, b"")],
    "prefix": [None, False, 0, 1.5, b"", [], {}, msgpack.Timestamp(0, 0)],
    "value": [[0]],  # made too deep below
    "number": NO_NUMBER,
    "int": [-1, 1.0, True, None, "1", []],
    "limit": [0, -1, 10_001, 2**64 - 1, 1.0, True, None, "1", []],
    "flag": [None, 0, 1, "true", "", [], {}],
    "ttl": [*NO_NUMBER[1:], 0, -1, -0.5],  # nil is never, where there is such a ttl
    "conditions": [None, 1, "", [], {}, {"version": -1}, {"version": 1.0}, {"exists": 1}, {"x": 1},
                   {1: 1}],
    "guards": [*NO_ARRAY, [{"version": 1}], [{"key": ""}], [{"key": "k"}], [{"key": "k", "x": 1}]],
    "ops": [*NO_ARRAY, [{"op": 1}], [{"op": "clear", "prefix": ""}], [{"op": "txn", "then": []}]],
    "keys": [*NO_ARRAY, [""], ["k", b"k"], ["k" * 1025], ["k"] * 1025],
    "items": [None, 1, "k", ["k"], {"": 1}, {1: 1}, {b"k": 1}, {"k" * 1025: 1},
              {str(n): n for n in range(1025)}],
}  # fmt: skip
ID = st.integers(values.INT_MIN, values.INT_MAX) | st.text("ab", min_size=1) | st.binary(min_size=1)


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


REFUSED["value"] = [deep(values.DEPTH_MAX + 1)]


def required(op: str) -> dict[str, Any]:
    return {name: TAKEN[it.kind][0] for name, it in OPS[op].fields.items() if it.required}


def cases(examples: dict[str, list[Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    """Each op, with each field, with each example of its kind; the other fields are right."""
    return [
        (op, name, {**required(op), name: value})
        for op, described in OPS.items()
        for name, field in described.fields.items()
        for value in examples[field.kind]
    ]


def parse(body: bytes) -> requests.Request:
    """The request, checked field by field. A plain one is decoded in one step to the same."""
    plain = protocol.decode_plain(body)
    try:
        fields = protocol.decode_map(body)
        request_id = fields.pop("id", ABSENT)
        if request_id is not ABSENT:
            protocol.check_id(request_id)
        request = requests.check(fields, request_id)
    except errors.RequestError:
        assert plain is None
        raise
    if plain is not None:
        assert plain.session == request.session
        assert same(plain.id, request.id)
        assert plain.args.op == request.args.op
        for name in OPS[request.args.op].fields:
            assert same(argument(plain, name), argument(request, name))
    return request


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # 1, 1.0 and True differ, and 0.0 and -0.0


def argument(request: requests.Request, name: str) -> Any:
    return getattr(request.args, attribute_of(name))


def refusal(body: bytes) -> errors.RequestError:
    with pytest.raises(errors.RequestError) as caught:
        parse(body)
    assert caught.value.message
    return caught.value


def test_every_op_is_described_and_done() -> None:
    assert OPS.keys() - {"info", "compact", "read_snapshot"} == OPERATIONS.keys()


def test_every_code_that_travels_has_its_class() -> None:
    for family in (errors.RequestError, errors.ServerError):
        for error in family.__subclasses__():
            assert errors.BY_CODE[error.code] is error
    assert set(errors.BY_CODE) == {error.code for error in errors.BY_CODE.values()}


@pytest.mark.parametrize(("op", "name", "fields"), cases(TAKEN))
def test_a_field_takes_what_is_of_its_kind(op: str, name: str, fields: dict[str, Any]) -> None:
    assert argument(parse(protocol.encode_request(op, fields)), name) is not ABSENT


@pytest.mark.parametrize(("op", "name", "fields"), cases(REFUSED))
def test_a_field_refuses_anything_else_by_name(op: str, name: str, fields: dict[str, Any]) -> None:
    error = refusal(protocol.encode_request(op, fields))
    assert error.code in ("bad_request", "too_large")
    assert error.details["field"].startswith(name) or "index" in error.details


@pytest.mark.parametrize("op", OPS)
def test_a_field_too_many_or_too_few_is_named(op: str) -> None:
    enough = required(op)
    parse(protocol.encode_request(op, enough))
    error = refusal(protocol.encode_request(op, {**enough, "colour": 1}))
    assert error.details == {"field": "colour"}
    for name in enough:
        few = {other: enough[other] for other in enough if other != name}
        assert refusal(protocol.encode_request(op, few)).details == {"field": name}


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"", "bad_request", None),
        (b"\xc0", "bad_request", None),
        (b"\x90", "bad_request", None),
        (b"\xa1a", "bad_request", None),
        (b"\x80", "bad_request", "op"),
        (b"\x80\x80", "bad_request", None),
        (b"\x81\xa2op", "bad_request", None),
        (msgpack.packb({1: 2}), "bad_request", None),
        (msgpack.packb({b"op": "ping"}), "bad_request", None),
        (msgpack.packb({"op": b"ping"}), "bad_request", "op"),
        (msgpack.packb({"op": None}), "bad_request", "op"),
        (msgpack.packb({"op": "PING"}), "unknown_op", "op"),
        (msgpack.packb({"op": ""}), "unknown_op", "op"),
        (msgpack.packb({"op": "x" * 10_000}), "unknown_op", "op"),
        (b"\x82\xa2op\xa3get\xa3key\xa1\xff", "bad_request", "key"),
        (b"\x82\xa2op\xa3get\xa1\xff\xa1k", "bad_request", None),
        (b"\x81\xa1\xff\xc0\xc0", "bad_request", None),
        (b"\x82\xa1\xff\xc0\x90\xc0", "bad_request", None),
        (b"\x81\x00\xa1\xff", "bad_request", None),
        (b"\x81\xa1\xff\xc1", "bad_request", None),
        (b"\x81\xa1\xff" + b"\x91" * 1000 + b"\xc0", "bad_request", None),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, code: str, field: str | None) -> None:
    error = refusal(body)
    assert error.code == code
    assert len(error.message) < 200
    if field is not None:
        assert error.details["field"] == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"op": "get", "session": "s", "seq": 1}, "session"),
        ({"session": "", "seq": 1}, "session"),
        ({"session": b"", "seq": 1}, "session"),
        ({"session": 1, "seq": 1}, "session"),
        ({"session": None, "seq": 1}, "session"),
        ({"session": "é" * 32 + "s", "seq": 1}, "session"),
        ({"session": "s" * 65, "seq": 1}, "session"),
        ({"session": "s"}, "seq"),
        ({"session": "s", "seq": 0}, "seq"),
        ({"session": "s", "seq": True}, "seq"),
        ({"session": "s", "seq": 1.0}, "seq"),
        ({"session": "s", "seq": 1, "retry": 1}, "retry"),
        ({"seq": 1}, "seq"),
        ({"retry": True}, "retry"),
    ],
)
def test_a_bad_session_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    error = refusal(msgpack.packb({"op": "clear", "prefix": "", **fields}))
    assert (error.code, error.details["field"]) == ("bad_request", field)


@pytest.mark.parametrize("session", ["s", b"\xff", "é" * 32, b"s" * 64, "s" * 64])
def test_a_session_comes_with_the_request(session: Any) -> None:
    request = parse(msgpack.packb({"op": "clear", "prefix": "", "session": session, "seq": 7}))
    assert request.session == Session(session, 7, False)


def test_a_bad_op_of_a_txn_is_told_by_its_index() -> None:
    ops = [{"op": "get", "key": "k"}, {"op": "put", "key": "k"}]
    error = refusal(protocol.encode_request("txn", {"then": ops}))
    assert error.details == {"field": "value", "index": 1}


def test_a_txn_has_at_most_1024_ops() -> None:
    ops = [{"op": "get", "key": "k"}] * 1024
    assert len(parse(protocol.encode_request("txn", {"then": ops})).args.then) == 1024
    error = refusal(protocol.encode_request("txn", {"then": [*ops, ops[0]]}))
    assert error.details == {"field": "then", "limit": 1024, "size": 1025}


def test_a_message_over_the_limit_is_too_large() -> None:
    """The error tells the limit and the size."""
    limit = protocol.MESSAGE_BYTES_MAX
    body = msgpack.packb({"op": "put", "key": "k", "value": bytes(limit - 32)})
    most = body + bytes(limit - len(body))
    with pytest.raises(errors.BadRequest, match="not one msgpack value"):
        protocol.decode_map(most)
    with pytest.raises(errors.TooLarge) as caught:
        protocol.decode_map(most + b"\0")
    assert caught.value.details == {"limit": limit, "size": limit + 1}
    with pytest.raises(errors.TooLarge):
        protocol.encode_request("put", {"key": "k", "value": bytes(limit)})


@pytest.mark.parametrize("letter", ["k", "é", "€", "𝄞"])
def test_a_key_has_at_most_1024_bytes_of_utf8(letter: str) -> None:
    size = len(letter.encode())
    longest = letter * (1024 // size) + "k" * (1024 % size)
    for op in ("get", "delete"):
        assert parse(protocol.encode_request(op, {"key": longest})).args.key == longest
        error = refusal(protocol.encode_request(op, {"key": longest + "k"}))
        assert error.code == "too_large"
        assert error.details == {"field": "key", "limit": 1024, "size": 1025}


@pytest.mark.parametrize("field", ["prefix", "after"])
def test_a_prefix_is_as_long_as_a_key(field: str) -> None:
    parse(protocol.encode_request("list", {field: "k" * 1024}))
    assert refusal(protocol.encode_request("list", {field: "k" * 1025})).details["field"] == field


def test_a_value_nests_32_deep() -> None:
    parse(protocol.encode_request("put", {"key": "k", "value": deep(32)}))
    error = refusal(protocol.encode_request("put", {"key": "k", "value": deep(33)}))
    assert (error.code, error.details) == ("bad_request", {"field": "value", "limit": 32})


@pytest.mark.parametrize("given", [0, -(2**63), 2**64 - 1, "a", "é" * 32, b"\xff" * 64])
def test_an_id_is_an_int_or_a_short_token(given: Any) -> None:
    protocol.check_id(given)


@pytest.mark.parametrize("given", [None, True, 1.0, "", b"", "a" * 65, "é" * 33, b"a" * 65, [], {}])
def test_any_other_id_is_refused(given: Any) -> None:
    with pytest.raises(errors.BadRequest) as caught:
        protocol.check_id(given)
    assert caught.value.details["field"] == "id"


@pytest.mark.parametrize("head", [b"\xdd\xff\xff\xff\xff", b"\xdd\x00\x02\x00\x00"])
@pytest.mark.parametrize("before", [b"", b"\x82\xa1\xff\xc0\xa1a"], ids=["plain", "not_utf8"])
def test_headers_that_claim_gigabytes_cost_no_memory(before: bytes, head: bytes) -> None:
    """Each level of nesting claims an array; msgpack would make room for all of them."""
    body = before + head * 1000 + b"\xc0" * (protocol.MESSAGE_BYTES_MAX - 6000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(body).code == "bad_request"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 256 * 2**10  # KiB


@given(st.sampled_from(cases(TAKEN)))
def test_a_request_arrives_as_it_was_sent(case: tuple[str, str, dict[str, Any]]) -> None:
    op, _, fields = case
    request = parse(protocol.encode_request(op, fields))
    assert request.args.op == op
    for name, given_ in fields.items():
        if OPS[op].fields[name].kind == "value":
            assert argument(request, name) == values.pack(given_)
        elif OPS[op].fields[name].kind in ("key", "prefix", "number", "limit", "flag"):
            assert argument(request, name) == given_
    for name, field in OPS[op].fields.items():
        if name not in fields:
            assert argument(request, name) == field.default


@given(st.just(ABSENT) | ID, st.integers(0, 2**63), st.dictionaries(st.text("abc"), ID))
def test_a_reply_arrives_as_it_was_sent(given: Any, revision: int, fields: dict[str, Any]) -> None:
    sent = dict(fields, revision=revision)
    if given is not ABSENT:
        sent["id"] = given
    assert protocol.decode_reply(protocol.encode_reply(given, revision, fields)) == sent


@given(st.just(ABSENT) | ID, st.integers(0, 2**63), st.sampled_from([*errors.BY_CODE.values()]))
def test_a_failure_arrives_as_its_class(
    given: Any, revision: int, error: type[errors.Error]
) -> None:
    body = protocol.encode_error(given, revision, error("A sentence.", limit=1))
    with pytest.raises(error) as caught:
        protocol.decode_reply(body)
    sent = {"revision": revision, "limit": 1} | ({} if given is ABSENT else {"id": given})
    assert (caught.value.message, caught.value.details) == ("A sentence.", sent)


def test_a_code_from_a_newer_server_leaves_the_outcome_unknown() -> None:
    body = msgpack.packb({"ok": False, "revision": 1, "error": "tired", "message": "Not now."})
    with pytest.raises(errors.ProtocolError, match="Not now") as caught:
        protocol.decode_reply(body)
    assert not caught.value.outcome_known


@pytest.mark.parametrize(
    "reply", [None, [], {}, {"ok": 1}, {"ok": False}, {"ok": False, "error": 1}]
)
def test_a_body_that_is_no_reply_is_a_value_error(reply: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the client has its own words for it
        protocol.decode_reply(msgpack.packb(reply))


@pytest.mark.parametrize("value", [object(), 2**64, {(): 1, (1,): [object()]}, "\ud800"])
def test_what_msgpack_cannot_carry_is_refused_before_it_is_sent(value: Any) -> None:
    with pytest.raises(errors.BadRequest):
        protocol.encode_request("put", {"key": "k", "value": value})


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "get", "key": "é", "id": 7},
        {"op": "get", "key": "k", "id": "seven"},
        {"op": "put", "key": "k", "value": [1, {"a": None}], "ttl": 0.5, "return_old": True},
        {"op": "put", "key": "k", "value": 2**64 - 1, "session": "s", "seq": 1, "retry": True},
        {"op": "list", "prefix": "k", "limit": 10, "values": True},
        {"op": "txn", "then": [{"op": "incr", "key": "k", "by": -0.5}], "else": []},
        {"op": "get_many", "keys": ["k"]},
        {"op": "put_many", "items": {"k": 1}},
        {"op": "put", "key": "k", "value": b"\xff", "session": "s", "seq": 1},
        {"op": "put_many", "items": {"k": b"", "l": b"x" * 300}, "ttl": 7},
        {"op": "txn", "then": [{"op": "put", "key": "k", "value": b"x"}, {"op": "count"}]},
    ],
    ids=lambda fields: fields["op"],
)
def test_what_most_requests_are_is_plain(fields: dict[str, Any]) -> None:
    body = values.pack(fields)
    parse(body)
    assert protocol.decode_plain(body) is not None


BODIES = [protocol.encode_request(op, fields) for op, _, fields in cases(TAKEN)]


def assert_request_or_refusal(body: bytes) -> None:
    with suppress(errors.RequestError):
        assert parse(body).args.op in OPS


@given(st.binary(max_size=40))
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    assert_request_or_refusal(body)


@given(st.sampled_from(BODIES), st.integers(0, 99), st.binary(max_size=4), st.integers(0, 4))
def test_a_damaged_request_is_a_request_or_a_refusal(
    body: bytes, at: int, new: bytes, gone: int
) -> None:
    """Some of its bytes are replaced by others."""
    assert_request_or_refusal(body[:at] + new + body[at + gone :])
