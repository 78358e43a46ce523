"""The two forms that `load` takes, told apart by their first line.

{"key":"user:1","value":{"name":"Ada"}}    JSON Lines, as `dump` writes them; tags are decoded,
…                                          `expires` counts, further fields are ignored
{"user:1": {"name": "Ada"}, …}             one object of plain JSON, each member a key,
                                           on one line or many
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, Final, NamedTuple

from zkv.cli import json_text
from zkv.errors import BadRequest
from zkv.values import from_json

ENTRY_FIELDS: Final = {"key", "value"}


class BadEntry(BadRequest):
    """A part of the input is not what it should be; the message says where."""


class Entry(NamedTuple):
    """A key and its value, where they stood, and their share of the input in bytes."""

    key: str
    value: Any
    where: str
    size: int
    expires: float | None = None
    """In seconds since 1970."""


def read(name: str, source: BinaryIO) -> Iterator[Entry | BadEntry]:
    """The entries of either form, in order; of JSON Lines, one line at a time.

    A line that is no entry comes as a BadEntry, which says where, and the next lines come
    after it. Raises BadEntry for what is neither form.
    """
    begin: list[bytes] = []
    full: list[bytes] = []
    for line in source:
        begin.append(line)
        if line.strip():
            full.append(line)
            if len(full) == 2 or _is_entry(line):
                break
    if full and _begins_object(full[0], alone=len(full) == 1):
        data = b"".join(begin) + source.read()
        try:
            yield from _members(name, data)
            return
        except BadEntry:
            if not any(map(_is_entry, full[1:])):
                raise
        begin, source = [], io.BytesIO(data)  # lines, of which the first is cut short
    for number, line in enumerate(chain(begin, source), 1):
        if line.strip():
            try:
                yield _entry(f"{name}:{number}", line)
            except BadEntry as error:
                yield error


def _begins_object(line: bytes, *, alone: bool) -> bool:
    """Whether a first line is the beginning of one object, or, if it is alone, all of it."""
    try:
        plain = json_text.parse(line.decode())
    except json.JSONDecodeError as error:
        return json_text.is_cut_short(error)
    except ValueError:
        return False
    return alone and type(plain) is dict and not plain.keys() >= ENTRY_FIELDS


def _is_entry(line: bytes) -> bool:
    """Whether it is a good line of JSON Lines."""
    try:
        return isinstance(_entry("", line), Entry)
    except BadEntry:
        return False


def _entry(where: str, line: bytes) -> Entry:
    try:
        fields = json_text.parse(line.rstrip().decode())
        if type(fields) is not dict or not fields.keys() >= ENTRY_FIELDS:
            raise ValueError('a line must be {"key":…,"value":…}')
        if type(fields["key"]) is not str:
            raise ValueError("key must be a str")
        expires = fields.get("expires")
        if expires is not None and type(expires) not in (int, float):
            raise ValueError("expires must be seconds since 1970")
        return Entry(fields["key"], from_json(fields["value"]), where, len(line), expires)
    except json.JSONDecodeError as error:
        raise BadEntry(f"{where}: {_reason(error)}") from None
    except ValueError as error:
        raise BadEntry(f"{where}: {error}") from None
    except RecursionError:
        raise BadEntry(f"{where}: the value nests too deep") from None


def _members(name: str, data: bytes) -> Iterator[Entry]:
    try:
        members = json_text.parse(data.decode())
        if type(members) is not dict:
            raise ValueError("neither JSON Lines nor one JSON object")
    except json.JSONDecodeError as error:
        where = f"{name}:{error.lineno}" if error.doc else name
        raise BadEntry(f"{where}: {_reason(error)}") from None
    except ValueError as error:
        raise BadEntry(f"{name}: {error}") from None
    for key, value in members.items():
        yield Entry(key, value, f"{name}: {json_text.compact(key)}", len(data) // len(members))


def _reason(error: json.JSONDecodeError) -> str:
    return f"{error.msg}, column {error.colno}" if error.doc else error.msg
