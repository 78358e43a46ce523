"""A whole state in one file: `snapshot-<revision>.jsonl`.

    header    {"zkv":1,"file":"snapshot","store":"…","rev":1043,"crc":"…"}
    a key     {"key":"user:1","value":{"name":"Ada"},"version":1043,"crc":"…"}
    a session {"session":["worker-7",12,{"version":1043}],"rev":1043,"crc":"…"}
    footer    {"end":"snapshot","rev":1043,"count":2,"crc":"…"}

Keys come sorted; then sessions, the one unused for longest first. It is written aside,
synced, read again, and only then given its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from zkv import values
from zkv.engines import line, sessions
from zkv.engines.disk import Disk
from zkv.engines.table import Table
from zkv.errors import Damaged
from zkv.transaction import Completed, Entry
from zkv.values import Packed

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


def session_line(completed: Completed, revision: int, seed: int) -> bytes:
    """The line of one session."""
    return line.seal({"session": sessions.to_json(completed), "rev": revision}, seed)


def write(disk: Disk, store: str, revision: int, lines: Iterable[bytes]) -> int:
    """Makes the snapshot of these lines durable under its name; returns its bytes.

    Raises OSError or Damaged; what was written then has a name that no start reads.
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
    for _ in read(disk, aside, store):
        pass
    disk.rename(aside, name)
    disk.sync_folder()
    return disk.size(name)


def load(disk: Disk, name: str) -> tuple[str, Table]:
    """The store id and the state in a snapshot; raises Damaged unless the file is whole."""
    header = read_header(disk, name)
    table = Table()
    for fields, _ in read(disk, name, header["store"]):
        if "key" in fields:
            packed = Packed(values.pack(values.from_json(fields["value"])))
            table.load(fields["key"], Entry(packed, fields["version"], fields.get("expires")))
        else:
            session, seq, reply = sessions.from_json(fields["session"])
            table.sessions.remember(session, seq, reply, fields["rev"])
    table.revision = header["rev"]
    table.next_revision = table.revision + 1
    return header["store"], table


def read_header(disk: Disk, name: str) -> dict[str, Any]:
    """The fields of a snapshot's header; raises Damaged."""
    try:
        return line.read_header(next(disk.lines(name), b""), "snapshot")
    except ValueError as error:
        raise Damaged(f"{name}: {error}") from None


def read(disk: Disk, name: str, store: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each line of a key or session, decoded and as it stands.

    Raises Damaged, at the latest at the end, unless the file is whole.
    """
    header = read_header(disk, name)
    if header["store"] != store:
        raise Damaged(f"{name}: it belongs to another store")
    seed, count, offset, last = line.seed_of(store), 0, 0, ""
    for number, one in enumerate(disk.lines(name)):
        try:
            fields = line.unseal(one, seed)
        except ValueError as error:
            raise Damaged(f"{name}: bad line at byte {offset}: {error}") from None
        offset += len(one)
        if number == 0:
            continue
        if "end" in fields:
            wanted = {"end": "snapshot", "rev": header["rev"], "count": count}
            if fields != wanted or offset != disk.size(name):
                raise Damaged(f"{name}: the footer at byte {offset - len(one)} does not fit")
            return
        key = fields.get("key", _BEHIND_KEYS)
        if key <= last and key != _BEHIND_KEYS:
            raise Damaged(f"{name}: out of order at byte {offset - len(one)}")
        last = key
        count += 1
        yield fields, one
    raise Damaged(f"{name}: it ends at byte {offset} without its footer")


_BEHIND_KEYS: Final = "\U0010ffff" * 1024  # sorts behind every key
