"""A folder opens with all that was acknowledged, or is refused and left as it is.

What single bytes of a journal may do is in `test_journal`; here it is lines, files, and a
disk that fails at every step.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness import compact
from test_engines import ForgetfulDisk
from test_journal import (
    BATCH_BEGINS,
    BATCHES,
    GONE,
    REVISIONS,
    STATES,
    STORE,
    Choose,
    abandon,
    change,
    cuts,
    damages,
    died,
    open_engine,
    other_bytes,
    revision_in,
    segment,
    state_in,
    unsure,
    write_history,
)
from test_snapshot import faults

from zkv.engines import compaction, journal, line, snapshot, watermark
from zkv.engines.disk import Disk
from zkv.engines.journal import Fsync
from zkv.engines.local import LocalEngine
from zkv.errors import Damaged, OtherFormat, StartError

__all__ = ["died", "other_bytes", "unsure"]  # fixtures

CUTS = (3, 7)
"""Behind how many batches a segment ends."""


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The history in three segments; the writer of the last one died."""
    engine = open_engine(tmp_path / "parts")
    for number, batch in enumerate(BATCHES):
        if number in CUTS:
            engine._journal.rotate()
        engine.execute([change(*one) for one in batch])
    abandon(engine)
    return sorted((tmp_path / "parts").glob("journal-*"))


@pytest.fixture
def compacted(tmp_path: Path) -> Path:
    """The history in a snapshot and a segment whose writer died."""
    engine = write_history(tmp_path / "compacted", BATCHES[:7])
    compact(engine)
    for batch in BATCHES[7:]:
        engine.execute([change(*one) for one in batch])
    abandon(engine)
    return tmp_path / "compacted"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def other_store(folder: Path) -> Path:
    """A folder with the same history in a closed segment, and another id."""
    engine = open_engine(folder, STORE[::-1])
    for batch in BATCHES:
        engine.execute([change(*one) for one in batch])
    engine._journal.rotate()
    abandon(engine)
    return folder


def refused(folder: Path, *words: str) -> None:
    """A start is refused with these words, and changes nothing."""
    before = contents(folder)
    with pytest.raises((Damaged, OtherFormat)) as caught:
        LocalEngine(Disk(folder), compactor=compaction.Inline)
    for word in words:
        assert word in str(caught.value)
    assert contents(folder) | {"LOCK": b""} == before | {"LOCK": b""}


def test_all_folders_of_these_tests_hold_the_full_state(parts: list[Path], compacted: Path) -> None:
    assert len(parts) == 3
    assert revision_in(parts[0].parent) == revision_in(compacted) == REVISIONS


def damaged_lines(lines: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Each line missing, doubled, or swapped with the next; with the first place touched."""
    for at in range(len(lines)):
        yield at, lines[:at] + lines[at + 1 :]
        yield at + 1, [*lines[: at + 1], *lines[at:]]
        if at + 1 < len(lines):
            yield at, [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]


def test_lines_missing_doubled_or_swapped_are_refused(died: Path, unsure: Path) -> None:
    """A last line that is missing behind the watermark was never written, as far as we know."""
    lines = segment(died).read_bytes().splitlines(keepends=True)
    for at, damaged in damaged_lines(lines):
        segment(died).write_bytes(b"".join(damaged))
        assert revision_in(died) is None, f"line {at}"
        segment(unsure).write_bytes(b"".join(damaged))
        revision = revision_in(unsure)
        if at <= BATCH_BEGINS or len(damaged) >= len(lines):
            assert revision is None, f"line {at}"
        else:
            assert revision in (None, at - 1), f"line {at}"


def test_lines_of_a_closed_segment_missing_doubled_or_swapped_are_refused(
    parts: list[Path],
) -> None:
    for path in parts[:-1]:
        whole = path.read_bytes()
        for at, damaged in damaged_lines(whole.splitlines(keepends=True)):
            path.write_bytes(b"".join(damaged))
            assert revision_in(path.parent) is None, f"{path.name}, line {at}"
        path.write_bytes(whole)


@pytest.mark.parametrize("sector", [64, 512])
def test_a_sector_of_zeros_is_refused_or_is_of_the_last_batch(
    died: Path, unsure: Path, sector: int
) -> None:
    whole = segment(died).read_bytes()
    for start in range(0, len(whole), sector):
        end = min(start + sector, len(whole))
        zeroed = whole[:start] + bytes(end - start) + whole[end:]
        segment(died).write_bytes(zeroed)
        assert revision_in(died) is None, f"byte {start}"
        segment(unsure).write_bytes(zeroed)
        revision = revision_in(unsure)
        first = whole.count(b"\n", 0, start)
        if first <= BATCH_BEGINS and whole.count(b"\n", end) > len(BATCHES[-1]):
            assert revision is None
        else:
            assert revision in (None, *range(first - 1, REVISIONS)), f"byte {start}"


@pytest.mark.parametrize(
    "tail",
    [b"\0", b"\n", b"{", b"\0" * 4096, b"\xff" * 600, b'{"rev":31}\n{"rev":32}\n', b"\n{}\n"],
)
def test_what_a_crash_left_behind_the_last_line_is_kept_aside(tmp_path: Path, tail: bytes) -> None:
    """For ever: compactions and restarts leave it alone, and take nothing from it."""
    folder = tmp_path / "data"
    abandon(write_history(folder))
    with segment(folder).open("ab") as file:
        file.write(tail)
    for _ in range(3):
        engine = open_engine(folder)
        assert state_in(folder) == STATES[-1]
        engine.execute([change("new", 1)])
        engine.execute([change("new", GONE)])
        compact(engine)
        engine.close()
        assert [path.read_bytes() for path in folder.glob("*.torn-*")] == [tail]


def test_good_lines_behind_a_torn_one_never_come_back(unsure: Path) -> None:
    """They are of a batch that was not acknowledged, and go aside with it."""
    folder, whole = unsure, segment(unsure).read_bytes()
    torn = whole.index(b'{"rev":%d,' % (BATCH_BEGINS + 1))
    segment(folder).write_bytes(whole[:torn] + b"\0" + whole[torn + 1 :])
    for revision in range(1, 4):
        engine = open_engine(folder)
        assert engine.execute([change("new", 1)])[0].revision == BATCH_BEGINS + revision
        engine.close()
        new = {"new": (b"\1", BATCH_BEGINS + revision)}
        assert state_in(folder) == STATES[BATCH_BEGINS] | new


def test_a_missing_segment_is_refused(parts: list[Path]) -> None:
    for path in parts:
        aside = path.rename(path.with_suffix(".away"))
        refused(path.parent, "missing")
        aside.rename(path)
    assert revision_in(parts[0].parent) == REVISIONS


def test_no_data_where_there_was_some_is_refused(died: Path) -> None:
    segment(died).unlink()
    refused(died, watermark.NAME, "1 to 30 are missing")


def test_a_damaged_watermark_only_knows_of_less(died: Path, other_bytes: Choose) -> None:
    """It never makes a good folder bad; its other line still proves what is missing."""
    mark, lines = died / watermark.NAME, segment(died).read_bytes().splitlines(keepends=True)
    assert {revision_in(died) for _ in damages(mark, other_bytes)} == {REVISIONS}
    assert {revision_in(died) for _ in cuts(mark)} == {REVISIONS}
    segment(died).write_bytes(b"".join(lines[:-1]))
    assert {revision_in(died) for _ in damages(mark, other_bytes)} == {None, REVISIONS - 1}
    segment(died).write_bytes(b"".join(lines[:BATCH_BEGINS]))
    assert {revision_in(died) for _ in damages(mark, other_bytes)} == {None}


def test_a_watermark_of_another_store_is_refused(died: Path, tmp_path: Path) -> None:
    shutil.copy(other_store(tmp_path / "other") / watermark.NAME, died)
    refused(died, watermark.NAME, "another store")


def test_a_missing_snapshot_is_refused(compacted: Path) -> None:
    next(compacted.glob("snapshot-*")).unlink()
    refused(compacted, "missing")


def test_files_under_each_others_names_are_refused(parts: list[Path], compacted: Path) -> None:
    one, other, _ = (path.read_bytes() for path in parts)
    parts[0].write_bytes(other)
    parts[1].write_bytes(one)
    refused(parts[0].parent, "missing")
    (saved,) = compacted.glob("snapshot-*")
    saved.write_bytes(one)
    refused(compacted, saved.name, "journal")


def test_a_file_of_another_store_is_refused(
    parts: list[Path], compacted: Path, tmp_path: Path
) -> None:
    other = other_store(tmp_path / "other")
    shutil.copy(segment(other), parts[0])
    refused(parts[0].parent, "another store")
    engine = open_engine(other, STORE[::-1])
    compact(engine)
    abandon(engine)
    (saved,) = other.glob("snapshot-*")
    shutil.copy(saved, compacted)
    refused(compacted, "another store")


@pytest.mark.parametrize("kind", ["journal", "snapshot"])
def test_a_newer_format_is_refused_with_a_sentence(
    compacted: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the header is all there is, which could be taken for a crash."""
    (path,) = compacted.glob(f"{kind}-*")
    monkeypatch.setattr(line, "FORMAT", 2)
    lines = path.read_bytes().splitlines(keepends=True)
    first = int(path.name[-26:-6])
    for rest in (lines[1:], []):
        path.write_bytes(b"".join([line.header(kind, STORE, first), *rest]))
        with monkeypatch.context() as patch:
            patch.setattr(line, "FORMAT", 1)
            refused(compacted, path.name, "format 2", "format 1")


def test_a_torn_header_is_a_segment_that_never_began(parts: list[Path]) -> None:
    """Its writer died before it could acknowledge anything from it."""
    whole = line.header("journal", STORE, REVISIONS + 1)
    path = parts[0].parent / journal.name_of(REVISIONS + 1)
    engine = open_engine(path.parent)
    engine._journal.rotate()
    abandon(engine)
    for torn in (*(whole[:size] for size in range(len(whole) + 1)), bytes(len(whole))):
        path.write_bytes(torn)
        assert revision_in(path.parent) == REVISIONS
        engine = open_engine(path.parent)
        assert state_in(path.parent) == STATES[-1]
        abandon(engine)


def test_what_a_crash_left_and_nothing_needs_is_removed(compacted: Path, tmp_path: Path) -> None:
    engine = write_history(tmp_path / "early", BATCHES[:5])
    engine._journal.rotate()
    abandon(engine)
    shutil.copy(segment(tmp_path / "early"), compacted)
    engine = open_engine(tmp_path / "early")
    compact(engine)
    abandon(engine)
    shutil.copy(next((tmp_path / "early").glob("snapshot-*")), compacted)
    (compacted / "snapshot-00000000000000000099.jsonl.tmp").write_bytes(b"half of i")
    assert revision_in(compacted) == REVISIONS
    engine = open_engine(compacted)
    assert state_in(compacted) == STATES[-1]
    engine.close()
    assert [path.name for path in compacted.glob("*-*")] == [snapshot.name_of(REVISIONS)]


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """The history, with a torn line behind it and a snapshot that was never finished."""
    abandon(write_history(tmp_path / "torn"))
    (tmp_path / "torn" / "snapshot-00000000000000000099.jsonl.tmp").write_bytes(b"half of i")
    with segment(tmp_path / "torn").open("ab") as file:
        file.write(b'{"rev":')
    return tmp_path / "torn"


def test_a_crash_at_any_step_of_a_recovery_is_recovered_from(torn: Path) -> None:
    for disk in faults(torn):
        with suppress(OSError, StartError):
            abandon(LocalEngine(disk, compactor=compaction.Inline))
        assert state_in(disk.folder) == STATES[-1]
        open_engine(disk.folder).close()
        assert state_in(disk.folder) == STATES[-1]
        assert b'{"rev":' in [path.read_bytes() for path in disk.folder.glob("*.torn-*")]


def test_a_disk_that_fails_at_the_start_is_an_error_of_the_start(torn: Path) -> None:
    """So the server can say what happened and exit with a code of its own."""
    for disk in faults(torn):
        try:
            abandon(LocalEngine(disk, compactor=compaction.Inline))
        except StartError:
            assert disk.left <= 0


@pytest.mark.parametrize("fsync", ["interval", "never"])
def test_no_revision_is_given_out_twice(tmp_path: Path, fsync: Fsync) -> None:
    """Where writes are told of before they are synced, a power failure leaves a gap."""
    folder, told, versions = tmp_path / "0", 0, dict[str, int]()
    for life in range(1, 4):
        engine = LocalEngine(ForgetfulDisk(folder), compactor=compaction.Inline, fsync=fsync)
        lived = {key: version for key, (_, version) in state_in(folder).items()}
        assert lived.items() <= versions.items()
        for key in "abc":
            revision = engine.execute([change(key, life)])[0].revision
            assert revision > told
            told = versions[key] = revision
        if life == 2:
            engine._journal.rotate()  # which syncs
        folder = Path(shutil.copytree(folder, tmp_path / str(life)))
        abandon(engine)
