"""A value is held as msgpack in memory and on the wire, and written as JSON on disk.

Both directions are exact: type, sign of zero and the order of a map's keys survive. What
JSON cannot say is tagged with a one-key object whose key begins with `$`:

    {"$b": base64}   bin               {"$i": "…"}        an int beyond ±(2^53 - 1)
    {"$f": "nan"}    nan, inf, -inf    {"$t": [s, ns]}    timestamp
    {"$x": [n, b64]} ext of code n     {"$m": [[k, v] …]} any other map, also one with a
                                                          str key that begins with `$`

(The method of MongoDB Extended JSON v2.) No sockets, no files, no request may live here.
"""

from __future__ import annotations

import math
import sys
from base64 import b64decode
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from itertools import chain
from typing import Annotated, Any, Final

import msgpack
import msgspec

from zkv.errors import BadRequest

DEPTH_MAX: Final = 32
"""Containers inside containers, the outermost counted as 1."""

ITEMS_MAX: Final = 131_072
"""Items of one array or map. It also bounds what a header that lies can make us allocate."""

CONTAINERS_MAX: Final = 262_144
"""Arrays, maps, bins and exts of one field in all: each takes memory, here and in every reader,
whatever little it takes on the wire. A bin and an ext are maps on disk."""

ALIKE_MAX: Final = 16
"""Keys of one map that may share a hash in Python. Of numbers and timestamps a peer can choose as
many as it likes, and each costs a look at all others, here and in every reader."""

COLLISIONS_MAX: Final = 2**23
"""How often keys of one message, in all its maps, may find their places in a dict taken. That is
as often as a message has bytes; keys that nobody chose do so about once each."""

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**64 - 1
JSON_INT_MAX: Final = 2**53 - 1  # RFC 7493: what every JSON reader keeps exact

FINITE: Final = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""The type of a float that is neither nan nor inf."""

Value = Any
"""nil, bool, int, float, str, bytes, list, dict, msgpack.Timestamp or msgpack.ExtType."""


Packed = msgspec.Raw
"""Wraps the msgpack of a value that goes into `assemble` as it stands."""


pack: Final[Callable[[Value], bytes]] = msgpack.Packer().pack
"""The msgpack of a value: the same bytes for the same value, type and order of keys.

One call into C, and so safe in threads, for what `unpack` gives: 0.2 µs, where `packb` takes
0.5 µs. A list or dict of somebody's own class may run Python in the middle of it, and then
another value would get into this one: `pack_any` is for that."""

pack_any: Final[Callable[[Value], bytes]] = msgpack.packb
"""`pack` of what a caller has made."""

assemble: Final[Callable[[Mapping[str, Any]], bytes]] = msgspec.msgpack.Encoder().encode
"""The msgpack of a map of bool, int, float, str, bytes, lists, maps, and what is `Packed`."""


def array(items: Collection[bytes]) -> bytes:
    """The msgpack of an array of these values, which are packed."""
    return _pack_array_header(len(items)) + b"".join(items)


def unpack(packed: bytes | memoryview) -> Value:
    """The value of what `pack` made, or of what a client sent.

    Raises ValueError (or a subclass) for anything that is not exactly one value of msgpack
    that a store can hold: bytes missing or left over, text that is not UTF-8, an array or
    map of more than `ITEMS_MAX` items, a map key that is a container, or keys of a map with
    others than str and bin that are equal. Of a str or bin key that comes twice the last counts.
    """
    try:
        return _unpack_plain(packed)
    except ValueError:
        return unpack_any(packed)


def unpack_sent(packed: bytes) -> Value:
    """Like `unpack`, of what no store holds yet: keys of a map must not be chosen to be slow."""
    try:
        return _unpack_plain(packed)
    except ValueError:
        return unpack_any(packed, sent=True)


def unpack_any(
    packed: bytes | memoryview, *, sent: bool = False, unicode_errors: str = "strict"
) -> Value:
    """Like `unpack`, or `unpack_sent`, which it is the slow and the thorough half of."""
    try:
        return _unpack(packed, strict_map_key=True, unicode_errors=unicode_errors)
    except ValueError as error:
        if "strict_map_key" not in str(error):
            raise
    return _unpack(
        packed,
        strict_map_key=False,
        object_pairs_hook=_dicts_of_sent() if sent else _dict_of_distinct,
        unicode_errors=unicode_errors,
    )


def unpack_number(packed: bytes) -> int | float | None:
    """The int or float of these bytes, or None if they are another value, however large."""
    if len(packed) > _NUMBER_BYTES_MAX:
        return None
    value = unpack(packed)
    return value if type(value) in (int, float) else None


def containers_at_most(packed: bytes) -> int:
    """A number that these bytes have no more arrays, maps, bins and exts than, found without
    reading them."""
    return len(packed) - len(packed.translate(None, _CONTAINER_MARKS))


def containers_of_fields(packed: bytes) -> dict[Any, int]:
    """How many arrays, maps, bins and exts each field of a map has; nothing of them is kept.

    Raises ValueError as `unpack` does.
    """
    count = 0

    def note(items: Iterable[Any]) -> None:
        nonlocal count
        count += 1
        for item in items:
            if type(item) in _IN_A_TAG:
                count += 1

    unpacker = msgpack.Unpacker(
        timestamp=0,
        strict_map_key=False,
        max_buffer_size=len(packed),
        max_array_len=ITEMS_MAX,
        max_map_len=ITEMS_MAX,
        list_hook=note,
        object_pairs_hook=lambda pairs: note(chain.from_iterable(pairs)),
        ext_hook=lambda _, data: data,
    )
    unpacker.feed(packed)
    found = {}
    for _ in range(unpacker.read_map_header()):
        name, before = unpacker.unpack(), count
        unpacker.unpack()
        found[name] = count - before
    return found


def equal(one: bytes, other: bytes) -> bool:
    """Whether two packed values are the same value of the same type.

    1, 1.0 and true differ, and so do 0.0 and -0.0; a nan equals itself; the order of a
    map's keys does not count.
    """
    if one == other:
        return True
    return len(one) == len(other) and _canonical(unpack(one)) == _canonical(unpack(other))


def check_depth(value: Value, levels: int = DEPTH_MAX) -> None:
    """Raises BadRequest when containers nest deeper than `DEPTH_MAX`."""
    kind = type(value)
    if kind is not list and kind is not dict:
        return
    if levels == 0:
        raise BadRequest(f"the value nests deeper than {DEPTH_MAX} levels", limit=DEPTH_MAX)
    for item in value if kind is list else value.values():
        if type(item) in _CONTAINERS:
            check_depth(item, levels - 1)


def to_json(value: Value) -> Any:
    """A value as what JSON can say, with tags for what it cannot; a Packed one is unpacked.

    Bytes in it stand for their base64. Whatever writes the JSON makes it, in a third of the
    time that it takes here: of 1 MiB in 1.5 ms.
    """
    return _TO_JSON[type(value)](value)


def packed_to_json(packed: bytes) -> Any:
    """`to_json` of a value that is packed: of most in one step, 0.2 µs for a short str."""
    if packed[0] in _BIN:
        return to_json(_unpack_bin(packed))
    try:
        plain = _unpack_json(packed)
    except ValueError:
        return to_json(unpack(packed))
    return to_json(plain) if TAG_MARK in packed else plain


def each_to_json(packed: Mapping[str, bytes]) -> dict[str, Any]:
    """`packed_to_json` of each value: of several in one step mostly, 0.1 µs for a short str."""
    if len(packed) > 1:
        together = array(packed.values())
        with suppress(ValueError):
            found = _unpack_json_array(together)
            return dict(zip(packed, to_json(found) if TAG_MARK in together else found, strict=True))
    plain = {}
    for key, one in packed.items():  # a comprehension takes longer for the one of most requests
        plain[key] = packed_to_json(one)
    return plain


TAG_MARK: Final = b"$"
"""Stands in all JSON of a value with a tag, and in a key that needs one. Where it does not,
`from_json` changes nothing."""


def from_json(plain: Any) -> Value:
    """The value that `to_json` was given. Raises ValueError for a tag that it never writes."""
    kind = type(plain)
    if kind is list:
        return [from_json(item) for item in plain]
    if kind is not dict:
        return plain
    if len(plain) == 1:
        ((key, content),) = plain.items()
        if key.startswith("$"):
            return _from_tag(key, content)
    elif any(key.startswith("$") for key in plain):
        raise ValueError("a tag beside other keys")
    return {key: from_json(item) for key, item in plain.items()}


_pack_array_header = msgpack.Packer().pack_array_header
_pack_map_header = msgpack.Packer().pack_map_header


def _unpack(packed: bytes | memoryview, **options: Any) -> Value:
    items_max = min(ITEMS_MAX, len(packed))  # else a header that lies has room made for items
    return msgpack.unpackb(
        packed, timestamp=0, max_array_len=items_max, max_map_len=items_max, **options
    )


def plain(levels: int) -> Any:
    """The type of what has no bin, no ext, only str as keys, and few containers in containers.

    What msgspec decodes as of this type is what `unpack` would give.
    """
    return _containers_of(str | float | int | bool | None, levels)


def _containers_of(scalar: Any, levels: int) -> Any:
    if levels == 0:
        return scalar
    item, items_max = _containers_of(scalar, levels - 1), msgspec.Meta(max_length=ITEMS_MAX)
    list_, map_ = list[item], dict[str, item]  # type: ignore[valid-type]
    return scalar | Annotated[list_, items_max] | Annotated[map_, items_max]


_unpack_bin = msgspec.msgpack.Decoder(bytes).decode
_BIN = frozenset(b"\xc4\xc5\xc6")  # what a bin begins with

_unpack_plain = msgspec.msgpack.Decoder(plain(6)).decode  # most requests: 0.4 µs, msgpack's 1.0


_Exact = Annotated[int, msgspec.Meta(ge=-JSON_INT_MAX, le=JSON_INT_MAX)]
_Json = _containers_of(str | FINITE | _Exact | bool | None, 6)  # what JSON says as it stands
_unpack_json = msgspec.msgpack.Decoder(_Json).decode
_unpack_json_array = msgspec.msgpack.Decoder(list[_Json]).decode  # type: ignore[valid-type]


_IN_A_TAG = frozenset((bytes, msgpack.Timestamp))  # and exts, where they are given as bytes
_CONTAINER_MARKS = bytes(  # what one begins with
    (*range(0x80, 0xA0), *range(0xC4, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0))
)


def _dicts_of_sent() -> Callable[[list[tuple[Any, Any]]], dict[Any, Any]]:
    """What makes the dicts of a message that a peer has sent: keys that were chosen to make them
    slow are refused before a dict is made of them.
    """
    left = COLLISIONS_MAX

    def dict_of(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        nonlocal left
        if len(pairs) > ALIKE_MAX:
            hashes = [hash(key) for key, _ in pairs if type(key) in _UNSALTED]
            if len(hashes) - len(set(hashes)) > ALIKE_MAX:
                raise ValueError(f"more than {ALIKE_MAX} keys of a map hash alike")
            if len(hashes) > _FEW:
                left -= _collisions([hash(key) for key, _ in pairs], left)
        return _dict_of_distinct(pairs)

    return dict_of


_UNSALTED = frozenset((int, float, bool, type(None), msgpack.Timestamp))
_FEW = 1024  # of which any cost little


def _collisions(hashes: list[int], at_most: int) -> int:
    """How often a dict of CPython that gets these keys finds a place taken, while it grows to them.

    Raises ValueError beyond a number. Hashes can be chosen so that all differ, in their low bits
    too, and yet send each other from place to place: only who follows them finds that.
    """
    count, size = 0, 8
    while size * 2 // 3 < len(hashes):
        size *= 2
        taken, mask = bytearray(size), size - 1
        for one in hashes[: size * 2 // 3]:
            rest = one & _WORD
            at = rest & mask
            while taken[at]:
                rest >>= 5
                at = (5 * at + rest + 1) & mask
                count += 1
            taken[at] = 1
            if count > at_most:
                raise ValueError("keys of maps collide in Python as if they were chosen to")
    return count


_WORD = 2**64 - 1


def _dict_of_distinct(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Refuses what Python would merge in silence: 1, 1.0 and true are one key to a dict. And two
    nans: they differ to a dict, but not once they have been in JSON.
    """
    try:
        distinct = dict(pairs)
    except TypeError:
        raise ValueError("a map key must not be an array or a map") from None
    if len(distinct) < len(pairs) or sum([key != key for key in distinct]) > 1:
        raise ValueError("two keys of a map are equal (1, 1.0 and true are, nan is to nan)")
    return distinct


def _canonical(value: Value) -> bytes:
    """The same msgpack for equal values: maps in one order, and nan without a payload.

    No dict is made in that order: the keys were only seen to be quick in the one they came in.
    """
    if type(value) is list:
        return array([_canonical(item) for item in value])
    if type(value) is dict:
        pairs = [_canonical(key) + _canonical(item) for key, item in value.items()]
        return _pack_map_header(len(pairs)) + b"".join(sorted(pairs))
    return pack(math.nan if value != value else value)


_CONTAINERS = frozenset((list, dict))
_NUMBER_BYTES_MAX = 9


def _int_to_json(number: int) -> Any:
    return number if -JSON_INT_MAX <= number <= JSON_INT_MAX else {"$i": str(number)}


def _float_to_json(number: float) -> Any:
    return number if math.isfinite(number) else _NOT_FINITE[str(number)]


def _needs_no_tag(map_: dict[Any, Any]) -> bool:
    return all(type(key) is str and not key.startswith("$") for key in map_)


def _dict_to_json(map_: dict[Any, Any]) -> Any:
    if _needs_no_tag(map_):
        return {key: to_json(item) for key, item in map_.items()}
    return {"$m": [[to_json(key), to_json(item)] for key, item in map_.items()]}


_NOT_FINITE = {text: {"$f": text} for text in ("nan", "inf", "-inf")}  # each is made once


def _same(plain: Any) -> Any:
    return plain


_TO_JSON: dict[type, Callable[[Any], Any]] = {
    type(None): _same,
    bool: _same,
    str: _same,
    int: _int_to_json,
    float: _float_to_json,
    bytes: lambda data: {"$b": data},
    list: lambda items: [to_json(item) for item in items],
    dict: _dict_to_json,
    Packed: lambda packed: packed_to_json(bytes(packed)),
    msgpack.Timestamp: lambda moment: {"$t": [moment.seconds, moment.nanoseconds]},
    msgpack.ExtType: lambda ext: {"$x": [ext.code, ext.data]},
}


def _from_tag(tag: str, content: Any) -> Value:
    try:
        value = _FROM_TAG[tag](content)
        exact = tag in _EXACT or msgspec.to_builtins(to_json(value)) == {tag: content}
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a value that zkv wrote: {tag}") from error
    if not exact:
        raise ValueError(f"not as zkv would write it: {tag}")
    return value


def _map_from_tag(pairs: list[Any]) -> dict[Any, Any]:
    if type(pairs) is not list or any(type(pair) is not list for pair in pairs):
        raise TypeError("not an array of arrays")
    map_ = _dict_of_distinct([(from_json(key), from_json(item)) for key, item in pairs])
    if _needs_no_tag(map_):
        raise ValueError("not as zkv would write it: $m")
    return map_


def _int_from_tag(text: str) -> int:
    number = int(text)
    if str(number) != text or -JSON_INT_MAX <= number <= JSON_INT_MAX:
        raise ValueError("not as zkv would write it: $i")
    return number


def _float_from_tag(text: str) -> float:
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text]


_EXACT = frozenset(("$i", "$f", "$m"))
"""Are looked at while they are read: else what is in a map would be again for each map round it."""

_FROM_TAG: dict[str, Callable[[Any], Value]] = {
    "$b": lambda text: b64decode(text, validate=True),
    "$i": _int_from_tag,
    "$f": _float_from_tag,
    "$t": lambda pair: msgpack.Timestamp(*pair),
    "$x": lambda pair: msgpack.ExtType(pair[0], b64decode(pair[1], validate=True)),
    "$m": _map_from_tag,
}
