"""One line of a data file: a JSON object that ends with a CRC of all that stands before it.

    {"rev":7,…,"crc":"5d1f0a3e"}\n

The CRC-32 covers the bytes before `,"crc"` and is seeded with the CRC-32 of the store's
id, so that a line of another store is no line of this one. Each line stands for itself:
a chain would make it impossible to find good lines behind a bad one.
"""

from __future__ import annotations

from typing import Any, Final
from zlib import crc32

import msgspec

FORMAT: Final = 1
"""The version of the data files. It stands in the first line of each, whose form never changes."""


class OtherFormat(ValueError):
    """A data file of another version of zkv."""


_TAIL_BYTES: Final = len(',"crc":"5d1f0a3e"}\n')
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def seed_of(store: str) -> int:
    """What the CRCs of a store's lines start from."""
    return crc32(store.encode())


def seal(fields: dict[str, Any], seed: int) -> bytes:
    """The line of these fields, which must be what JSON can say, exactly."""
    body = _encode(fields)[:-1]
    return b'%b,"crc":"%08x"}\n' % (body, crc32(body, seed))


def unseal(line: bytes, seed: int) -> dict[str, Any]:
    """The fields of a line; raises ValueError for a bad one, also one without its newline."""
    body = line[:-_TAIL_BYTES]
    if line[-_TAIL_BYTES:] != b',"crc":"%08x"}\n' % crc32(body, seed):
        raise ValueError("the CRC does not fit")
    return peek(body + b"}")


def peek(line: bytes) -> dict[str, Any]:
    """The fields of a line whose CRC cannot be checked yet, since the store is in it."""
    try:
        fields = _decode(line)
    except msgspec.DecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if type(fields) is not dict:
        raise ValueError("not a JSON object")
    return fields


def header(kind: str, store: str, revision: int, **more: int) -> bytes:
    """The first line of a file: its kind, whose it is, and where it stands in history."""
    fields = {"zkv": FORMAT, "file": kind, "store": store, "rev": revision, **more}
    return seal(fields, seed_of(store))


def read_header(line: bytes, kind: str) -> dict[str, Any]:
    """The fields of a header; raises ValueError with a sentence."""
    try:
        fields = unseal(line, seed_of(peek(line)["store"]))
    except (KeyError, AttributeError):
        raise ValueError("it is not a header of zkv") from None
    if fields["zkv"] != FORMAT:
        raise OtherFormat(f"it has format {fields['zkv']}, and this zkv reads format {FORMAT}")
    if fields["file"] != kind:
        raise ValueError(f"it is a {fields['file']}, not a {kind}")
    return fields
