"""A snapshot is the whole state or no snapshot, and making one loses nothing at any step."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from harness import call, compact
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_engines import ForgetfulDisk
from test_journal import (
    BATCHES,
    REVISIONS,
    STATES,
    STORE,
    Choose,
    QuickDisk,
    abandon,
    change,
    cuts,
    damages,
    open_engine,
    other_bytes,
    revision_in,
    state_in,
    write_history,
)
from test_values import VALUES, same

from zkv import values
from zkv.engines import compaction, journal, line, snapshot
from zkv.engines.local import LocalEngine
from zkv.errors import Damaged, StartError

PATIENCE_S = 30
SEED = line.seed_of(STORE)
ENDS = [sum(map(len, BATCHES[: n + 1])) for n in range(len(BATCHES))]
"""The last revision of each batch."""


__all__ = ["other_bytes"]  # a fixture


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The snapshot of a folder that was closed cleanly."""
    write_history(tmp_path / "saved").close()
    return tmp_path / "saved" / snapshot.name_of(REVISIONS)


def test_a_snapshot_is_these_lines(tmp_path: Path) -> None:
    """Sorted by key, between a header and a footer that counts them."""
    engine = open_engine(tmp_path)
    engine.execute([change("b", b"\xff"), change("a", {"n": 1}), change("c", 0), change("b", 2)])
    engine.close()
    bodies = [
        {"zkv": 1, "file": "snapshot", "store": STORE, "rev": 4},
        {"key": "a", "value": {"n": 1}, "version": 2},
        {"key": "b", "value": 2, "version": 4},
        {"key": "c", "value": 0, "version": 3},
        {"end": "snapshot", "rev": 4, "count": 3},
    ]
    assert [path.name for path in tmp_path.glob("*-*")] == ["snapshot-00000000000000000004.jsonl"]
    assert next(tmp_path.glob("*-*")).read_bytes() == b"".join(
        line.seal(one, SEED) for one in bodies
    )


@settings(max_examples=60)
@given(st.lists(VALUES, min_size=1, max_size=8), st.booleans())
@example([{"$b": "AA=="}, 1], True)
def test_what_is_put_comes_back_from_a_journal_and_from_snapshots(
    stored: list[Any], all_at_once: bool
) -> None:
    items = {str(number): value for number, value in enumerate(stored)}
    with TemporaryDirectory() as folder:
        engine = open_engine(Path(folder))
        if all_at_once:
            engine.execute([call("put_many", items=items)])
        else:
            engine.execute([change(*item) for item in items.items()])
        abandon(engine)
        for _ in range(3):
            engine = open_engine(Path(folder))
            found = {int(key): entry for key, entry in state_in(Path(folder)).items()}
            assert same([values.unpack(found[number][0]) for number in sorted(found)], stored)
            engine.close()


def test_a_changed_byte_is_refused(saved: Path, other_bytes: Choose) -> None:
    assert revision_in(saved.parent) == REVISIONS
    for offset in damages(saved, other_bytes):
        assert revision_in(saved.parent) is None, f"byte {offset}"


def test_a_cut_is_refused(saved: Path) -> None:
    for size in cuts(saved):
        assert revision_in(saved.parent) is None, f"byte {size}"


HEADER = {"zkv": 1, "file": "snapshot", "store": STORE, "rev": 9}
A, B = ({"key": key, "value": 0, "version": 9} for key in "ab")
FOOTER = {"end": "snapshot", "rev": 9, "count": 2}


@pytest.mark.parametrize(
    "bodies",
    [
        [HEADER, B, A, FOOTER],
        [HEADER, A, A, FOOTER],
        [HEADER, A, B],
        [HEADER],
        [],
        [A, B, FOOTER],
        [HEADER, A, FOOTER],
        [HEADER, A, B, {**FOOTER, "count": 3}],
        [HEADER, A, B, {**FOOTER, "rev": 8}],
        [HEADER, A, B, {**FOOTER, "end": "journal"}],
        [HEADER, A, B, FOOTER, FOOTER],
        [HEADER, A, FOOTER, B],
        [HEADER, A, HEADER, FOOTER],
        [HEADER, A, {"rev": 9, "put": {"b": 0}, "batch": 9}, FOOTER],
        [HEADER, A, {"key": "b", "value": 0}, FOOTER],
        [HEADER, A, {**B, "value": {"$q": 0}}, FOOTER],
        [{**HEADER, "file": "journal"}, A, B, FOOTER],
        [{**HEADER, "store": "another"}, A, B, FOOTER],
    ],
)
def test_good_lines_that_are_no_snapshot_are_refused(tmp_path: Path, bodies: list[Any]) -> None:
    path = tmp_path / snapshot.name_of(9)
    path.write_bytes(b"".join(line.seal(one, SEED) for one in (HEADER, A, B, FOOTER)))
    assert state_in(tmp_path) == {"a": (b"\0", 9), "b": (b"\0", 9)}
    path.write_bytes(b"".join(line.seal(one, SEED) for one in bodies))
    with pytest.raises(Damaged, match=path.name):
        state_in(tmp_path)


def counted(name: str) -> Any:
    def method(self: FaultDisk, *args: Any) -> Any:
        self.left -= 1
        if self.fails():
            raise OSError(5, "Input/output error")
        return getattr(QuickDisk if self.keeps else ForgetfulDisk, name)(self, *args)

    return method


class FaultDisk(ForgetfulDisk):
    """Raises in the call of this number, and in each one behind it, as if the process died.

    Of what was not synced it either keeps everything or nothing.
    """

    def __init__(self, folder: Path, number: int, keeps: bool) -> None:
        super().__init__(folder)
        self.left = number
        self.keeps = keeps

    def fails(self) -> bool:
        return self.left <= 0

    create = counted("create")
    open = counted("open")
    write = counted("write")
    write_at = counted("write_at")
    sync = counted("sync")
    rename = counted("rename")
    unlink = counted("unlink")
    sync_folder = counted("sync_folder")


def faults(
    folder: Path, kind: type[FaultDisk] = FaultDisk, keeps: bool = True
) -> Iterator[FaultDisk]:
    """A copy of the folder for each call that can fail, until none does."""
    number, disk = 0, kind(folder, 0, keeps)
    while disk.left <= 0:
        number += 1
        copy = shutil.copytree(folder, folder.with_name(f"fault-{number}"))
        disk = kind(copy, number, keeps)
        yield disk
    assert number > 8


@pytest.mark.parametrize("keeps", [True, False])
def test_what_was_acknowledged_before_the_disk_failed_is_there(tmp_path: Path, keeps: bool) -> None:
    """And if more is there, then what was sent next; also over compactions and a clean stop."""
    (tmp_path / "empty").mkdir()
    for disk in faults(tmp_path / "empty", keeps=keeps):
        told = 0
        with suppress(OSError, StartError):
            engine = LocalEngine(disk, compactor=compaction.Inline)
            try:
                for number, batch in enumerate(BATCHES):
                    told = engine.execute([change(*one) for one in batch])[-1].revision
                    if number in (3, 7):
                        compact(engine)
            finally:
                engine.close()
        revision = revision_in(disk.folder)
        assert revision is not None
        sent = next((end for end in ENDS if end > told), told)
        assert told <= revision <= sent
        open_engine(disk.folder).close()
        assert revision_in(disk.folder) == revision


class FlakyDisk(FaultDisk):
    """Raises in the call of this number only, as when there is no space for a moment."""

    def fails(self) -> bool:
        return self.left == 0


@pytest.mark.parametrize("kind", [FaultDisk, FlakyDisk])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_compaction_that_fails_at_any_step_loses_nothing(
    tmp_path: Path, kind: type[FaultDisk], keeps: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The store goes on, if it is the snapshot that cannot be written; and so does a restart."""
    caplog.set_level(logging.CRITICAL)
    write_history(tmp_path / "data", BATCHES[:4]).close()
    for disk in faults(tmp_path / "data", kind, keeps):
        number, disk.left = disk.left, 10**9
        engine = LocalEngine(disk, compactor=compaction.Inline)
        for batch in BATCHES[4:]:
            engine.execute([change(*one) for one in batch])
        disk.left = number
        told, sent = STATES[-1], STATES[-1] | {"new": (b"\1", REVISIONS + 1)}
        with suppress(StartError):
            compact(engine)
            if kind is FlakyDisk:
                engine.execute([change("new", 1)])
                told = sent
                compact(engine)
        found = state_in(disk.folder)
        assert found in (told, sent)
        abandon(engine)
        open_engine(disk.folder).close()
        assert state_in(disk.folder) == found


def test_a_compaction_leaves_one_snapshot_and_an_empty_journal(tmp_path: Path) -> None:
    engine = write_history(tmp_path)
    for _ in range(2):
        compact(engine)
        names = [path.name for path in sorted(tmp_path.glob("*-*"))]
        assert names == [journal.name_of(REVISIONS + 1), snapshot.name_of(REVISIONS)]
        assert engine.info()["snapshot_bytes"] == (tmp_path / names[1]).stat().st_size
        assert engine.info()["journal_bytes"] < 200
    engine.close()


def test_a_compaction_does_not_stop_the_store(tmp_path: Path) -> None:
    """Reads and writes go on while it is stuck, and what they did is there afterwards."""
    stuck, going = threading.Event(), threading.Event()

    class StuckDisk(QuickDisk):
        def rename(self, old: str, new: str) -> None:
            stuck.set()
            assert going.wait(PATIENCE_S)
            super().rename(old, new)

    write_history(tmp_path, BATCHES[:6]).close()
    engine = LocalEngine(StuckDisk(tmp_path), compactor=compaction.Inline)
    with ThreadPoolExecutor(2) as pool:
        engine.execute([change(*one) for one in BATCHES[6]])
        compacting = pool.submit(compact, engine)
        try:
            assert stuck.wait(PATIENCE_S)
            for batch in BATCHES[7:]:
                pool.submit(engine.execute, [change(*one) for one in batch]).result(PATIENCE_S)
            assert state_in(tmp_path) == STATES[-1]
        finally:
            going.set()
        compacting.result(PATIENCE_S)
    assert state_in(tmp_path) == STATES[-1]
    engine.close()
    assert state_in(tmp_path) == STATES[-1]


def test_a_compaction_of_damaged_data_keeps_all_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be read whole is not replaced, and the damage is logged."""
    engine = write_history(tmp_path)
    engine._journal.rotate()
    path = tmp_path / journal.name_of(1)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"Ada", b"Eve"))
    before = sorted(tmp_path.glob("*.jsonl"))
    compact(engine)
    assert sorted(tmp_path.glob("*.jsonl")) == before
    assert "compaction failed" in caplog.text
    abandon(engine)
    path.write_bytes(whole)
    assert state_in(tmp_path) == STATES[-1]


def test_a_snapshot_that_was_written_wrong_replaces_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read again before anything is removed."""

    class WrongDisk(QuickDisk):
        def write(self, handle: int, data: bytes) -> None:
            super().write(handle, data.replace(b'"key":"a"', b'"key":"A"'))

    write_history(tmp_path, BATCHES[:6]).close()
    engine = LocalEngine(WrongDisk(tmp_path), compactor=compaction.Inline)
    for batch in BATCHES[6:]:
        engine.execute([change(*one) for one in batch])
    compact(engine)
    assert "compaction failed" in caplog.text
    assert [path.name for path in tmp_path.glob("snapshot-*")] == [snapshot.name_of(ENDS[5])]
    assert state_in(tmp_path) == STATES[-1]
    abandon(engine)
