"""A whole state in one file, sorted by key: `snapshot-<revision>.jsonl`.

    header    {"zkv":1,"file":"snapshot","store":"…","rev":1043,"crc":"…"}
    a key     {"key":"user:1","value":{"name":"Ada"},"version":1043,"crc":"…"}
    footer    {"end":"snapshot","rev":1043,"count":1,"crc":"…"}

It is written aside, synced, read again, and only then given its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from zkv import values
from zkv.engines import line
from zkv.engines.disk import Disk
from zkv.errors import Damaged
from zkv.transaction import Entry

PREFIX: Final = "snapshot-"
_WRITE_BYTES: Final = 2**20


def name_of(revision: int) -> str:
    return f"{PREFIX}{revision:020d}.jsonl"


def entry_line(key: str, entry: Entry, seed: int) -> bytes:
    """The line of one key."""
    fields = {
        "key": key,
        "value": values.to_json(values.unpack(entry.packed)),
        "version": entry.version,
    }
    if entry.deadline is not None:
        fields["expires"] = entry.deadline
    return line.seal(fields, seed)


def write(disk: Disk, store: str, revision: int, lines: Iterable[bytes]) -> int:
    """Makes the snapshot of these entry lines durable under its name; returns its bytes.

    The lines come sorted by key. Raises OSError; a file without its footer is then left
    under a name that no start reads.
    """
    seed, name = line.seed_of(store), name_of(revision)
    aside = name + ".tmp"
    if aside in disk.names():
        disk.unlink(aside)
    handle = disk.create(aside)
    try:
        waiting, count, size = [line.header("snapshot", store, revision)], 0, 0
        for one in lines:
            waiting.append(one)
            count += 1
            size += len(one)
            if size > _WRITE_BYTES:
                disk.write(handle, b"".join(waiting))
                waiting, size = [], 0
        waiting.append(line.seal({"end": "snapshot", "rev": revision, "count": count}, seed))
        disk.write(handle, b"".join(waiting))
        disk.sync(handle)
    finally:
        disk.close(handle)
    for _ in read_lines(disk, aside, store):
        pass
    disk.rename(aside, name)
    disk.sync_folder()
    return disk.size(name)


def read(disk: Disk, name: str, store: str) -> Iterator[tuple[str, Entry]]:
    """Each key with its entry, in order; raises Damaged unless the file is whole."""
    for fields, _ in read_lines(disk, name, store):
        packed = values.pack(values.from_json(fields["value"]))
        yield fields["key"], Entry(packed, fields["version"], fields.get("expires"))


def read_header(disk: Disk, name: str) -> tuple[str, int]:
    """The store id and the revision of a snapshot; raises Damaged."""
    try:
        store, revision = line.read_header(next(disk.lines(name), b""), "snapshot")
    except ValueError as error:
        raise Damaged(f"{name}: {error}") from None
    return store, revision


def read_lines(disk: Disk, name: str, store: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each entry line, decoded and as it stands; raises Damaged unless the file is whole."""
    seed, count, offset, last = line.seed_of(store), 0, 0, ""
    revision = read_header(disk, name)[1]
    for number, one in enumerate(disk.lines(name)):
        try:
            fields = line.unseal(one, seed)
        except ValueError as error:
            raise Damaged(f"{name}: bad line at byte {offset}: {error}") from None
        offset += len(one)
        if number == 0:
            continue
        if "end" in fields:
            if fields != {"end": "snapshot", "rev": revision, "count": count}:
                raise Damaged(f"{name}: the footer does not fit what stands before it")
            if offset != disk.size(name):
                raise Damaged(f"{name}: bytes behind the footer, at byte {offset}")
            return
        if fields["key"] <= last:
            raise Damaged(f"{name}: keys out of order at byte {offset - len(one)}")
        last = fields["key"]
        count += 1
        yield fields, one
    raise Damaged(f"{name}: it ends at byte {offset} without its footer")
