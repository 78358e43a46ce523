"""The two forms that `load` takes, told apart by their first line.

{"key":"user:1","value":{"name":"Ada"}}    JSON Lines, as `dump` writes them; further
…                                          fields are ignored, tags are decoded
{"user:1": {"name": "Ada"}, …}             one object of plain JSON, each member a key,
                                           on one line or many
"""

from __future__ import annotations

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


def read(name: str, source: BinaryIO) -> Iterator[Entry | BadEntry]:
    """The entries of either form, in order; of JSON Lines, one line at a time.

    A line that is no entry comes as a BadEntry, which says where, and the next lines come
    after it. Raises BadEntry for what is neither form.
    """
    lines = ((number, line) for number, line in enumerate(source, 1) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if _is_one_object(first[1], lines):
        yield from _members(name, first[0], first[1] + source.read())
    else:
        for number, line in chain([first], lines):
            try:
                yield _entry(f"{name}:{number}", line)
            except BadEntry as error:
                yield error


def _is_one_object(line: bytes, further: Iterator[Any]) -> bool:
    """Whether a first line is an object's beginning, or all there is of one."""
    try:
        plain = json_text.parse(line.decode())
    except json.JSONDecodeError as error:
        return json_text.is_cut_short(error)
    except ValueError:
        return False
    return type(plain) is dict and not plain.keys() >= ENTRY_FIELDS and next(further, None) is None


def _entry(where: str, line: bytes) -> Entry:
    try:
        fields = json_text.parse(line.rstrip().decode())
        if type(fields) is not dict or not fields.keys() >= ENTRY_FIELDS:
            raise ValueError('a line must be {"key":…,"value":…}')
        if type(fields["key"]) is not str:
            raise ValueError("key must be a str")
        return Entry(fields["key"], from_json(fields["value"]), where, len(line))
    except json.JSONDecodeError as error:
        raise BadEntry(f"{where}: {_reason(error)}") from None
    except ValueError as error:
        raise BadEntry(f"{where}: {error}") from None
    except RecursionError:
        raise BadEntry(f"{where}: the value nests too deep") from None


def _members(name: str, number: int, data: bytes) -> Iterator[Entry]:
    try:
        members = json_text.parse(data.decode())
        if type(members) is not dict:
            raise ValueError("neither JSON Lines nor one JSON object")
    except json.JSONDecodeError as error:
        where = f"{name}:{number + error.lineno - 1}" if error.doc else name
        raise BadEntry(f"{where}: {_reason(error)}") from None
    except ValueError as error:
        raise BadEntry(f"{name}: {error}") from None
    for key, value in members.items():
        yield Entry(key, value, f"{name}: {json_text.compact(key)}", len(data) // len(members))


def _reason(error: json.JSONDecodeError) -> str:
    return f"{error.msg}, column {error.colno}" if error.doc else error.msg
