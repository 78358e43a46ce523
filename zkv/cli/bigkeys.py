"""The largest values of a store, and how much each type takes: `bigkeys`."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgpack

from zkv.cli import output
from zkv.cli.commands import Arguments
from zkv.cli.output import bytes_text, key_text, keys_text
from zkv.cli.progress import Progress
from zkv.store import Store
from zkv.values import pack

TYPES: Final[dict[type, str]] = {
    type(None): "nil", bool: "bool", int: "int", float: "float", str: "str", bytes: "bin",
    list: "array", dict: "map", msgpack.Timestamp: "timestamp", msgpack.ExtType: "ext",
}  # fmt: skip


class _Found(NamedTuple):
    """A key, and the bytes of its value in msgpack; ordered by them."""

    bytes: int
    key: str
    type: str


class _Type:
    """What all the values of one type take."""

    def __init__(self) -> None:
        self.keys = self.bytes = 0
        self.largest = _Found(-1, "", "")

    def add(self, found: _Found) -> None:
        self.keys += 1
        self.bytes += found.bytes
        self.largest = max(self.largest, found)


def bigkeys(store: Store, args: Arguments) -> None:
    """Reads every value, page by page: a store of gigabytes sends gigabytes."""
    progress = Progress(store.count(args.prefix))
    types: dict[str, _Type] = {}
    try:
        largest = heapq.nlargest(args.count, _all(store, args.prefix, types, progress))
    finally:
        progress.end()
    keys = sum(it.keys for it in types.values())
    size = sum(it.bytes for it in types.values())
    if args.form:
        output.json_line({
            "keys": keys,
            "bytes": size,
            "largest": [found._asdict() for found in largest],
            "types": {name: _facts(types[name]) for name in sorted(types)},
        })  # fmt: skip
    else:
        _show(largest, types)
        output.line(f"{keys_text(keys)}, {bytes_text(size)} of values")


def _all(
    store: Store, prefix: str, types: dict[str, _Type], progress: Progress
) -> Iterator[_Found]:
    for item in store.items(prefix):
        found = _Found(len(pack(item.value)), item.key, TYPES[type(item.value)])
        types.setdefault(found.type, _Type()).add(found)
        progress.advance()
        yield found


def _facts(of: _Type) -> dict[str, Any]:
    return {"keys": of.keys, "bytes": of.bytes, "largest": of.largest.key}


def _show(largest: list[_Found], types: dict[str, _Type]) -> None:
    output.table(
        ("largest values", "type", "size"),
        [(key_text(it.key), it.type, bytes_text(it.bytes)) for it in largest],
    )
    output.line("")
    output.table(
        ("type", "keys", "size", "average", "largest"),
        [
            (name, f"{it.keys:,}", bytes_text(it.bytes), bytes_text(it.bytes / it.keys),
             bytes_text(it.largest.bytes))
            for name, it in sorted(types.items())
        ],
    )  # fmt: skip
    output.line("")
