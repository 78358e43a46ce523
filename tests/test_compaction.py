"""Compaction: nobody notices it, nothing depends on it, and it takes little memory."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from crash_disk import CrashDisk
from harness import ServerProcess, call, serving, wait_until
from hypothesis import given
from hypothesis import strategies as st

import zkv
from zkv import values
from zkv.engines import compaction, journal, local
from zkv.engines.disk import Disk
from zkv.engines.journal import Journal
from zkv.engines.local import LocalEngine
from zkv.engines.recovery import recover
from zkv.engines.sessions import digest
from zkv.engines.table import Table
from zkv.errors import Damaged
from zkv.transaction import Commit, Completed, Entry

STORE = "a store"
COMPACTION_S = 60


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper looks often, and a stop leaves the journal as it is."""
    monkeypatch.setattr(local, "TICK_S", 0.01)
    monkeypatch.setattr(local, "STOP_BYTES_MAX", 0)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    """A store of 300 keys, in a snapshot, two closed segments and one that is written."""
    for number in range(3):
        engine = LocalEngine(Disk(tmp_path / "data"))
        for n in range(100):
            put(engine, f"key:{100 * number + n}", n)
        if number == 0:
            compact(engine)
        if number < 2:
            engine.close()
    yield engine
    engine.close()


def put(engine: LocalEngine, key: str, value: Any) -> None:
    (outcome,) = engine.execute([call("put", key=key, value=value)])
    assert outcome.result == {"version": outcome.revision}


def compact(engine: LocalEngine) -> None:
    engine.compact()
    wait_until(lambda: not engine.info()["compacting"], COMPACTION_S)


def contents(table: Table) -> dict[str, Any]:
    entries = [(key, table.get(key)) for key in table.keys("", "")]
    return {key: values.unpack(entry.packed) for key, entry in entries if entry is not None}


def firsts(disk: Disk) -> list[int]:
    """The first revision of each segment."""
    return [int(n.removeprefix("journal-")[:20]) for n in disk.data_files(journal.PREFIX)]


def test_writers_go_on_while_another_process_compacts(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "data")
    engine = LocalEngine(disk)
    written: dict[str, int] = {}
    enough = threading.Event()

    def write(writer: int) -> None:
        for n in count():
            put(engine, f"writer:{writer}:{n % 150}", n)
            written[f"writer:{writer}:{n % 150}"] = n
            if enough.is_set():
                return

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in writers:
        thread.start()
    for _ in range(3):
        revision = engine.revision
        wait_until(lambda: engine.revision > revision + 200)  # noqa: B023
        compact(engine)
        info = engine.info()
        assert info["compaction_error"] is None
        assert revision + 200 < info["snapshot_revision"] < engine.revision
        assert min(firsts(disk)) == info["snapshot_revision"] + 1
    enough.set()
    for thread in writers:
        thread.join()
    assert contents(engine._table) == written
    engine.close()
    assert contents(recover(disk).table) == written


def test_a_file_of_the_current_folder_is_no_module_of_a_compaction(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uuid.py").write_text("raise SystemExit('taken from the current folder')")
    (tmp_path / "heapq.py").write_text("raise SystemExit('taken from the current folder')")
    monkeypatch.chdir(tmp_path)
    compact(engine)
    assert engine.info()["compaction_error"] is None


def test_a_journal_that_outgrows_its_snapshot_is_compacted(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = engine.info()["snapshot_revision"]
    monkeypatch.setattr(local, "JOURNAL_BYTES_MIN", 1000)
    wait_until(lambda: engine.info()["snapshot_revision"] > before, COMPACTION_S)
    wait_until(lambda: engine.info()["journal_bytes"] == 0, COMPACTION_S)


def test_a_clean_stop_ends_a_compaction(engine: LocalEngine, tmp_path: Path) -> None:
    engine.compact()
    wait_until(lambda: not engine._compaction_wanted)
    engine.close()
    table = recover(Disk(tmp_path / "data")).table
    assert contents(table) == {f"key:{n}": n % 100 for n in range(300)}


def test_a_stop_leaves_nothing_of_a_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store, too, that is too large to be compacted at a stop."""
    monkeypatch.setattr(local, "STOP_BYTES_MAX", 0)
    large(tmp_path / "data")
    disk = Disk(tmp_path / "data")
    engine = LocalEngine(disk)
    engine.compact()
    wait_until(lambda: disk.leftovers() != [], COMPACTION_S)
    engine.close()
    assert disk.leftovers() == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted"])
def test_a_compaction_that_finds_damage_takes_nothing_away(
    damage: str, engine: LocalEngine, tmp_path: Path
) -> None:
    disk = Disk(tmp_path / "data")
    path = disk.folder / disk.data_files(journal.PREFIX)[0]
    data = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(b"".join(data.splitlines(keepends=True)[:50]))
    else:
        path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    names = disk.names()
    compact(engine)
    error = engine.info()["compaction_error"]
    assert "Damaged" in error
    assert " at byte " in error
    assert set(names) <= set(disk.names())
    put(engine, "after", 1)

    path.write_bytes(data)
    compact(engine)
    assert engine.info()["compaction_error"] is None
    engine.close()
    wanted = {f"key:{n}": n % 100 for n in range(300)} | {"after": 1}
    assert contents(recover(disk).table) == wanted


def test_a_server_killed_during_a_compaction_comes_up_again(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = tmp_path / "data"
    wanted = large(data)
    for kill in range(6):
        with serving(data) as server, zkv.Client(server.endpoint) as store:
            assert {it.key: it.value for it in store.items()} == wanted
            store.put(f"kill:{kill}", kill)
            wanted[f"kill:{kill}"] = kill
            store.compact()
            child = child_of(server)
            time.sleep(rng.uniform(0, 0.6))
            server.kill()
            wait_until(lambda: not runs(child))  # noqa: B023
    with zkv.open(data) as store:
        assert {it.key: it.value for it in store.items()} == wanted


def test_a_compaction_ends_with_its_server(tmp_path: Path) -> None:
    """Or it would get into the way of the next server, and of that one's compaction."""
    data = tmp_path / "data"
    large(data)
    with serving(data) as server, zkv.Client(server.endpoint) as store:
        store.compact()
        child = child_of(server)
        os.kill(child, signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        os.kill(child, signal.SIGCONT)
        server.kill()
    wait_until(lambda: not runs(child))
    assert Disk(data).data_files("snapshot-") == []


def large(data: Path) -> dict[str, Any]:
    """Makes a store that takes a while to compact."""
    wanted = {f"key:{n}": "x" * 200 for n in range(20_000)}
    with zkv.open(data) as store:
        for n in range(0, 20_000, 500):
            store.put_many({f"key:{n + i}": "x" * 200 for i in range(500)})
    return wanted


def child_of(server: ServerProcess) -> int:
    """The process that compacts, once it has begun."""
    while True:
        for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                if b"engines.compaction" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_rests_while_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    disk = Disk(tmp_path)
    (tmp_path / journal.name_of(1)).write_bytes(b"x" * 1000)
    pace, written = compaction.Pace(disk, 100), tmp_path / journal.name_of(101)

    def rested() -> bool:
        rests.clear()
        pace(1)
        return bool(rests)

    def write(size: int, seconds_ago: float) -> None:
        written.write_bytes(b"x" * size)
        when = time.time() - seconds_ago
        os.utime(written, (when, when))

    assert not rested()  # nobody has written
    write(999, seconds_ago=0)
    assert rested()
    write(999, seconds_ago=1)
    assert not rested()
    write(1001, seconds_ago=0)  # the next compaction is due
    assert not rested()


def test_a_compaction_that_cannot_begin_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: else there would never be another, and a backup would wait for it."""

    class Exhausted(compaction.Inline):
        def __init__(self, *_: Any) -> None:
            raise MemoryError

    engine = LocalEngine(Disk(tmp_path / "data"), compactor=Exhausted)
    put(engine, "k", 1)
    compact(engine)
    assert engine.info()["compaction_error"] == "MemoryError()"
    monkeypatch.setattr(engine, "_compactor", compaction.Inline)
    compact(engine)
    assert engine.info()["compaction_error"] is None
    engine.close()


def test_leftovers_go_at_the_next_start(engine: LocalEngine, tmp_path: Path) -> None:
    engine.close()
    disk = Disk(tmp_path / "data")
    leftovers = ["run-0.jsonl.tmp", "snapshot-00000000000000000250.jsonl.tmp"]
    for name in leftovers:
        (disk.folder / name).write_bytes(b"half a li")
    assert disk.leftovers() == leftovers
    LocalEngine(disk).close()
    assert disk.leftovers() == []


class Spills(CrashDisk):
    """Counts the runs that are written."""

    runs = 0

    def create(self, name: str) -> int:
        self.runs += name.startswith("run-")
        return super().create(name)


class Written:
    """A journal of a store, and what it says."""

    def __init__(self) -> None:
        self.disk = Spills()
        self.journal = Journal(self.disk, STORE, 0, 1, "always", 0)
        self.keys: dict[str, Any] = {}
        self.sessions: dict[str | bytes, int] = {}
        self.revision = 0

    def commit(self, changes: dict[str, Any], session: str | None = None) -> None:
        """A value of None is a deletion."""
        self.revision += 1
        entries: dict[str, Entry | None] = {}
        for key, value in changes.items():
            if value is None:
                self.keys.pop(key, None)
                entries[key] = None
            else:
                self.keys[key] = value
                entries[key] = Entry(values.pack(value), self.revision)
        completed = None
        if session is not None:
            self.sessions[digest(session)] = self.revision
            completed = Completed(digest(session), self.revision, {"version": self.revision})
        self.journal.append(Commit(self.revision, 1e9, entries, completed))
        self.journal.confirm(self.revision)

    def compact(self) -> None:
        first, _ = self.journal.rotate()
        compaction.compact(self.disk, STORE, first - 1)
        found = recover(self.disk)
        assert contents(found.table) == self.keys
        assert {it.session: it.seq for it, _ in found.table.sessions.completed()} == self.sessions
        assert found.table.revision == self.revision
        assert firsts(self.disk) == [self.revision + 1]
        assert self.disk.leftovers() == []


KEYS = st.sampled_from([f"key:{n}" for n in range(8)] + ["\U0010ffff", "ключ"])
CHANGES = st.dictionaries(KEYS, st.none() | st.integers(-9, 9) | st.text(max_size=50), max_size=4)
STEPS = st.one_of(
    st.tuples(CHANGES, st.sampled_from([None, None, "robot", "laboratory"])),
    st.sampled_from(["rotate", "compact"]),
)


@given(steps=st.lists(STEPS, max_size=40))
def test_runs_merge_to_what_was_written(steps: list[Any]) -> None:
    written = Written()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(compaction, "RUN_BYTES_MAX", 400)
        for step in steps:
            if step == "rotate":
                written.journal.rotate()
            elif step == "compact":
                written.compact()
            else:
                written.commit(*step)
        written.compact()


def test_a_segment_that_is_missing_at_the_end_is_noticed() -> None:
    written = Written()
    for n in range(3):
        written.commit({"key": n})
        written.journal.rotate()
    written.disk.unlink(journal.name_of(3))
    with pytest.raises(Damaged, match="revisions 3 to 3 are missing"):
        compaction.compact(written.disk, STORE, 3)


def test_more_than_a_run_is_sorted_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "RUN_BYTES_MAX", 20_000)
    written = Written()
    for n in range(1500):
        written.commit({f"key:{n * 7 % 1000}": "x" * 100, f"key:{n * 11 % 1000}": None})
        if n % 400 == 0:
            written.journal.rotate()
    written.compact()
    assert written.disk.runs >= 10
