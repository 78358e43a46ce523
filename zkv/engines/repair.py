"""Makes a store out of whatever lines of a damaged folder are good. Nothing is deleted.

Every line says what it does by itself, so a bad one takes nothing else with it: the good
lines are applied in order, the result becomes a snapshot, and the old files are renamed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from zkv.engines import journal, line, snapshot, watermark
from zkv.engines.disk import Disk
from zkv.engines.line import Record
from zkv.engines.table import Table
from zkv.errors import Damaged, OtherFormat


class Repaired(NamedTuple):
    """What became of a folder."""

    keys: int
    revision: int
    lost: list[str]
    """A sentence for each thing that could not be read."""
    set_aside: list[str]
    """The new names of the old files."""


def repair(
    disk: Disk, *, accept_empty: bool = False, before_change: Callable[[], None] = lambda: None
) -> Repaired:
    """Repairs the folder, which must be locked.

    `before_change` is called when all is read: from then on it should not be broken off, since
    a start could take the old files away before they are renamed.

    Raises Damaged if no file says whose it is, or if no key is left, unless that is accepted;
    OtherFormat, and OSError.
    """
    snapshots, segments = disk.data_files(snapshot.PREFIX), disk.data_files(journal.PREFIX)
    store, lost = _store_of(disk, snapshots + segments), list[str]()
    table = Table()
    used = 0
    for name in snapshots[-1:]:
        table.revision = snapshot.revision_of(name)
        for saved in _good_records(disk, name, store, lost, snapshot.Record[Any]):
            try:
                snapshot.take(table, name, [saved])
            except Damaged as error:
                lost.append(str(error))
    for name in segments:
        for record, _, offset in _good_records(disk, name, store, lost, journal.Record[Any]):
            used = max(used, record.reserved or 0)
            if record.batch and record.rev > table.revision:
                used = max(used, record.rev)
                _note_gap(table.revision, record.rev, lost)
                try:
                    journal.replay(record, Table())  # all of it can be read, or nothing is done
                    journal.replay(record, table)
                except ValueError as error:
                    lost.append(f"{name}: not a line of zkv at byte {offset}: {error}")
            elif record.end is not None and record.rev >= table.revision:
                _note_gap(table.revision, record.rev + 1, lost)
                table.revision = record.reserved or record.rev
    mark = watermark.read(disk)
    if mark is not None and mark.store == store:
        _note_gap(table.revision, mark.revision + 1, lost)
        used = max(used, mark.revision)
    if lost and not len(table) and not accept_empty:
        raise Damaged(
            "not one key can be read; zkv-server --repair --accept-empty makes an empty store of it"
        )
    table.build_index()
    revision = max(used, table.revision) + 1
    before_change()
    snapshot.write(disk, store, revision, snapshot.lines_of(table, line.seed_of(store)))
    set_aside = []
    for name in snapshots + segments + [watermark.NAME] * (watermark.NAME in disk.names()):
        set_aside.append(f"{name}.damaged-{time.time_ns()}")
        disk.rename(name, set_aside[-1])
    disk.sync_folder()
    return Repaired(len(table), revision, lost, set_aside)


def _store_of(disk: Disk, names: list[str]) -> str:
    for name in names:
        kind = "snapshot" if name.startswith(snapshot.PREFIX) else "journal"
        try:
            return str(line.read_header(next(disk.lines(name), b""), kind)["store"])
        except line.OtherFormat as error:
            raise OtherFormat(f"{name}: {error}") from None
        except ValueError:
            continue
    mark = watermark.read(disk)
    if mark is None:
        raise Damaged("no file of the folder has a header that says which store it is")
    return mark.store


def _good_records(
    disk: Disk, name: str, store: str, lost: list[str], kind: type[Record]
) -> Iterator[tuple[Record, bytes, int]]:
    """What each good line says, the line, and its offset; a bad one may hold good ones."""
    seed, offset = line.seed_of(store), 0
    for one in disk.lines(name):
        try:
            found = [line.unseal(one, seed)]
        except ValueError:
            if name.startswith(journal.PREFIX) and not one.strip(b" "):
                return  # room for lines to come
            lost.append(f"{name}: bad line at byte {offset}")
            found = list(journal.good_lines(one, seed))
        for fields in found:
            try:
                record = msgspec.convert(fields, kind)
            except msgspec.ValidationError:
                lost.append(f"{name}: not a line of such a file at byte {offset}")
            else:
                yield record, one, offset
        offset += len(one)


def _note_gap(last: int, following: int, lost: list[str]) -> None:
    if following > last + 1:
        lost.append(f"revisions {last + 1} to {following - 1}")
