"""What you store is what you get: msgpack and JSON carry every value exactly."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import msgpack
import msgspec
import pytest
from harness import steps
from hypothesis import example, given
from hypothesis import strategies as st

from zkv import values
from zkv.errors import BadRequest

TEXTS = st.text(st.sampled_from('\0\u2028\x85"\\$\n\r\U0010ffff') | st.characters(codec="utf-8"))
INTS = st.integers(values.INT_MIN, values.INT_MAX) | st.sampled_from(
    [2**53 - 1, 2**53, -(2**53) + 1, -(2**53), values.INT_MIN, values.INT_MAX]
)
FLOATS = st.floats() | st.sampled_from([-0.0, 5e-324, 1.0, 2.0**53, 1e300, math.nan, -math.inf])
TIMESTAMPS = st.builds(
    msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 999_999_999)
)
EXTS = st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
SCALARS = st.none() | st.booleans() | INTS | FLOATS | TEXTS | st.binary() | TIMESTAMPS | EXTS
TAGS = st.sampled_from(["$b", "$i", "$f", "$t", "$x", "$m", "$", "$?"])


def containers(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(items, max_size=4)
        | st.dictionaries(TEXTS, items, max_size=4)
        | st.dictionaries(TAGS | TEXTS, items, max_size=2)
        | st.dictionaries(st.binary() | INTS, items, max_size=4)
        | st.dictionaries(SCALARS, items, max_size=4).filter(lambda map_: nans_in(map_) < 2)
    )


def nans_in(keys: Iterable[Any]) -> int:
    return sum(key != key for key in keys)


def nested(value: Any, levels: list[str]) -> Any:
    for level in levels:
        value = [value] if level == "list" else {1 if level == "int" else "$m": value}
    return value


LEVELS = st.sampled_from(["list", "map", "int"])
SHALLOW = st.recursive(SCALARS, containers, max_leaves=12)
DEEP = st.builds(nested, SCALARS, st.lists(LEVELS, max_size=values.DEPTH_MAX))
VALUES = SHALLOW | DEEP


def same(one: Any, other: Any) -> bool:
    """Equal in type, sign of zero and order of keys; nan is nan."""
    if type(one) is not type(other):
        return False
    if type(one) is float:
        if math.isnan(one):
            return math.isnan(other)
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    if type(one) is list:
        return len(one) == len(other) and all(map(same, one, other))
    if type(one) is dict:
        return same([*one.keys(), *one.values()], [*other.keys(), *other.values()])
    return bool(one == other)


def strict_json(text: bytes) -> Any:
    """What a reader makes of it that knows no NaN and no Infinity."""

    def refuse(token: str) -> NoReturn:
        raise AssertionError(f"{token} is not JSON")

    return json.loads(text, parse_constant=refuse)


UNLIKE: list[tuple[Any, Any]] = [
    (1, 1.0), (1, True), (0, False), (1.0, True), (0.0, -0.0), ("a", b"a"), (None, False),
    ([1], [True]), ({"a": 1}, {"a": 1.0}), ({1: 0}, {True: 0}), ({"a": 0}, {b"a": 0}),
    ([], {}), (math.nan, math.inf),
    (msgpack.ExtType(1, b"a"), msgpack.ExtType(2, b"a")),
    (msgpack.Timestamp(1, 0), msgpack.Timestamp(1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), UNLIKE)
def test_the_comparison_of_these_tests_tells_types_apart(one: Any, other: Any) -> None:
    assert same(one, one)
    assert same(other, other)
    assert not same(one, other)


def test_the_comparison_of_these_tests_minds_the_order_of_keys() -> None:
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1})


@given(VALUES)
def test_msgpack_is_exact(value: Any) -> None:
    assert same(values.unpack(values.pack(value)), value)


@given(VALUES, TEXTS)
def test_what_is_packed_is_assembled_as_it_stands(value: Any, name: str) -> None:
    part = values.Packed(values.pack(value))
    wanted = values.pack({"n": 2**64 - 1, "s": [{name: value}], "b": b"b"})
    assert values.assemble({"n": 2**64 - 1, "s": [{name: part}], "b": b"b"}) == wanted


@given(VALUES)
@example({"$b": "x"})
@example({"$m": []})
@example({"a": 1, "$b": 2})
@example(nested(-0.0, ["int", "map", "list", "map"] * 8))
def test_json_is_exact_and_strict(value: Any) -> None:
    """For the reader of zkv, and for that of the standard library."""
    text = msgspec.json.encode(values.to_json(value))
    assert b"\n" not in text
    assert same(values.from_json(msgspec.json.decode(text)), value)
    assert same(values.from_json(strict_json(text)), value)


@given(VALUES)
@example({"a": [1, "x", None]})
@example("$")
def test_json_without_the_mark_of_a_tag_is_the_value_itself(value: Any) -> None:
    text = msgspec.json.encode(values.to_json(value))
    if values.TAG_MARK not in text:
        assert same(msgspec.json.decode(text), value)


@given(VALUES)
def test_a_journal_and_a_restart_give_the_same_bytes(value: Any) -> None:
    """Packed, written, read and packed again; the payload of a nan apart."""
    packed = values.pack(value)
    text = msgspec.json.encode(values.to_json(values.unpack(packed)))
    again = values.pack(values.from_json(msgspec.json.decode(text)))
    assert same(values.unpack(again), value)


NANS = [b"\xcb\x7f\xf8" + bytes(6), b"\xcb\xff\xf8" + bytes(6), b"\xca\x7f\xc0\0\0"]


@pytest.mark.parametrize("one", NANS)
@pytest.mark.parametrize("other", NANS)
def test_a_nan_equals_a_nan_whatever_its_payload(one: bytes, other: bytes) -> None:
    """So a map has one as a key at most, and what a condition says does not change when the
    payload goes, which JSON cannot say: at a restart."""
    with pytest.raises(ValueError, match="two keys of a map are equal"):
        values.unpack(b"\x82" + one + b"\1" + other + b"\2")
    stored, wanted = (values.pack(values.unpack(it)) for it in (one, other))
    assert values.equal(stored, wanted)
    assert values.equal(b"\x81" + stored + stored, b"\x81" + wanted + wanted)
    assert not values.equal(stored, values.pack(math.inf))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (True, "true"), (7, "7"), (7.0, "7.0"), (-0.0, "-0.0"), ("é", '"é"'),
        (2**53 - 1, "9007199254740991"), (2**53, '{"$i":"9007199254740992"}'),
        (-(2**63), '{"$i":"-9223372036854775808"}'), (b"\xff", '{"$b":"/w=="}'),
        (math.nan, '{"$f":"nan"}'), (-math.inf, '{"$f":"-inf"}'),
        (msgpack.Timestamp(5, 6), '{"$t":[5,6]}'), (msgpack.ExtType(3, b"a"), '{"$x":[3,"YQ=="]}'),
        ({"$a": 1}, '{"$m":[["$a",1]]}'), ({2: 1, "a": b""}, '{"$m":[[2,1],["a",{"$b":""}]]}'),
        ({"a$": [{}]}, '{"a$":[{}]}'),
    ],
)  # fmt: skip
def test_the_json_of_a_value_is_this(value: Any, text: str) -> None:
    """People's files depend on it."""
    assert msgspec.json.encode(values.to_json(value)).decode() == text
    assert same(values.from_json(json.loads(text)), value)


@pytest.mark.parametrize(
    "text",
    [
        '{"$":1}', '{"$z":1}', '{"$b":"a"}', '{"$b":"*"}', '{"$b":1}', '{"$b":null}',
        '{"$i":"x"}', '{"$i":null}', '{"$i":"5"}',
        '{"$i":"0x20000000000000"}', '{"$i":"+9007199254740992"}', '{"$i":9007199254740992}',
        '{"$f":"1.0"}', '{"$f":"Nan"}', '{"$f":[]}', '{"$t":5}',
        '{"$t":["1",2]}', '{"$t":[1,1000000000]}', '{"$x":[200,""]}', '{"$x":7}',
        '{"$x":[5]}', '{"$m":5}', '{"$m":[]}', '{"$m":{}}', '{"$m":["ab"]}',
        '{"$m":[["a",1]]}', '{"$m":[[1]]}', '{"$m":[[[],1]]}', '{"$m":[[1,0],[true,0]]}',
        '{"$b":"YQ==","a":1}', '{"a":{"$q":1}}', '[{"$q":1}]',
    ],
)  # fmt: skip
def test_a_tag_that_zkv_never_writes_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whoever reads the line adds where it stands
        values.from_json(json.loads(text))


@pytest.mark.parametrize(
    "packed",
    [
        b"", b"\xc1", b"\x01\x02", b"\x92\x01", b"\xa2a", b"\xa1\xff", b"\xc4\x05a",
        b"\x81\x90\x01", b"\x81\x80\x01", b"\x82\x01\x01\xc3\x01", b"\x82\x01\x01\x01\x02",
        b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
        b"\xdd" + (values.ITEMS_MAX + 1).to_bytes(4, "big") + b"\xc0" * (values.ITEMS_MAX + 1),
    ],
)  # fmt: skip
def test_what_is_not_one_value_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgpack has one error for each
        values.unpack(packed)


def test_of_a_text_key_that_comes_twice_the_last_counts() -> None:
    assert values.unpack(b"\x82\xa1a\x01\xa1a\x02") == {"a": 2}
    assert values.unpack(b"\x82\xc4\x01a\x01\xc4\x01a\x02") == {b"a": 2}


def test_any_other_key_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="equal"):
        values.unpack(b"\x82\x01\x01\x01\x02")


def test_an_array_of_the_most_items_is_one_value() -> None:
    items = [None] * values.ITEMS_MAX
    assert values.unpack(values.pack(items)) == items


def reversed_maps(value: Any) -> Any:
    if type(value) is list:
        return [reversed_maps(item) for item in value]
    if type(value) is dict:
        return {key: reversed_maps(value[key]) for key in reversed(value)}
    return value


@given(VALUES)
def test_a_value_equals_itself_in_any_order_of_keys(value: Any) -> None:
    assert values.equal(values.pack(value), values.pack(value))
    assert values.equal(values.pack(value), values.pack(reversed_maps(value)))


@pytest.mark.parametrize(("one", "other"), UNLIKE)
def test_values_of_other_types_or_signs_are_not_equal(one: Any, other: Any) -> None:
    assert not values.equal(values.pack(one), values.pack(other))


@pytest.mark.parametrize("level", ["list", "map", "int"])
def test_depth_is_limited_to_the_level(level: str) -> None:
    values.check_depth(nested(0, [level] * values.DEPTH_MAX))
    with pytest.raises(BadRequest) as caught:
        values.check_depth(nested(0, [level] * (values.DEPTH_MAX + 1)))
    assert caught.value.details["limit"] == values.DEPTH_MAX


def value_or_refusal(unpack: Callable[[bytes], Any], packed: bytes) -> Any:
    try:
        return unpack(packed)
    except ValueError:
        return ValueError


@given(st.binary(max_size=60))
def test_bytes_are_a_value_or_a_value_error(packed: bytes) -> None:
    value = value_or_refusal(values.unpack, packed)
    if value is not ValueError:
        assert same(values.unpack(values.pack(value)), value)


@given(
    VALUES.map(values.pack), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=2)
)
def test_the_fast_way_to_unpack_finds_what_the_thorough_one_does(
    packed: bytes, damages: list[tuple[int, int]]
) -> None:
    damaged = bytearray(packed)
    for at, byte in damages:
        damaged[at % len(damaged)] = byte
    found = [value_or_refusal(it, bytes(damaged)) for it in (values.unpack, values.unpack_any)]
    assert same(*found)


def test_keys_of_a_map_that_hash_alike_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that nothing salts: with these, which hash as 0 to 2, in threes."""
    alike = [n + times * (2**61 - 1) for n in range(3) for times in range(3)]
    packed = values.pack(dict.fromkeys(alike))
    monkeypatch.setattr(values, "ALIKE_MAX", 6)
    assert values.unpack_sent(packed) == dict.fromkeys(alike)
    monkeypatch.setattr(values, "ALIKE_MAX", 5)
    with pytest.raises(ValueError, match="more than 5 keys of a map hash alike"):
        values.unpack_sent(packed)
    assert values.unpack(packed) == dict.fromkeys(alike)
    assert values.from_json(values.to_json(dict.fromkeys(alike))) == dict.fromkeys(alike)


def test_keys_of_a_map_may_be_many(seed: int) -> None:
    rng = random.Random(seed)
    for keys in (
        range(-1000, 50_000),
        [rng.randrange(2**63) for _ in range(50_000)],
        [rng.random() for _ in range(50_000)],
        [msgpack.Timestamp(rng.randrange(2**34), rng.randrange(10**9)) for _ in range(50_000)],
    ):
        map_ = dict.fromkeys(keys)
        assert values.unpack_sent(values.pack(map_)) == map_


def test_collisions_count_in_all_maps_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [n << 44 for n in range(2000)]
    cost = values._collisions([*map(hash, keys)], at_most=10**9)
    monkeypatch.setattr(values, "COLLISIONS_MAX", 3 * cost)
    values.unpack_sent(values.pack([dict.fromkeys(keys)] * 3))
    with pytest.raises(ValueError, match="collide"):
        values.unpack_sent(values.pack([dict.fromkeys(keys)] * 4))


def test_a_header_that_lies_has_no_room_made_for_items() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="exceeds"):
            values.unpack(b"\xdd\0\2\0\0" * 900)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_is_in_a_map_is_read_once_however_many_maps_are_round_it() -> None:
    def steps_of(levels: int) -> int:
        value: Any = [2**60] * 1000
        for _ in range(levels):
            value = {1: value}
        plain = msgspec.json.decode(msgspec.json.encode(values.to_json(value)))
        return steps(lambda: values.from_json(plain))

    assert steps_of(30) < 1.5 * steps_of(1)
