"""Damage is never served in silence: it is refused, or it made no difference.

One thing is done to one file of a store with a snapshot and three segments, in every place.
Only the last batch of a store that was not stopped may be missing, if it was not yet known
to be on disk: a crash leaves the same. Two damages at once are not covered.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from crash_disk import CrashDisk
from harness import wait_until

from zkv import requests, values
from zkv.engines import Call, compaction, journal, local, watermark
from zkv.engines.disk import Disk
from zkv.engines.local import LocalEngine
from zkv.engines.recovery import Recovered, recover, settle
from zkv.engines.sessions import digest
from zkv.engines.table import Table
from zkv.errors import Damaged
from zkv.operations import OPERATIONS

Files = dict[str, bytes]
SHARE = 0.2
"""Of the places, in how many a short run does the damage."""
SNAPSHOT, LAST = 6, 28
"""Revisions; three segments of six follow the snapshot, and the last has a batch more."""
DELETED = 20
PLACE = r"byte \d+|revisions? \d+|another store"


class Store(NamedTuple):
    """The files of a store, and from which revision on it may be found."""

    files: Files
    floor: int


def write(n: int) -> Call:
    """The request of revision n, in a session; what the snapshot has is not written again."""
    if n == DELETED:
        fields: dict[str, Any] = {"op": "delete", "key": "key:1"}
    else:
        fields = {"op": "put", "key": key_of(n), "value": {"ü": n, "crc": "5d1f0a3e"}}
    if n % 3 == 0:
        fields["ttl"] = 1000
    request = requests.check({**fields, "session": session_of(n), "seq": n})
    return Call(OPERATIONS[request.args.op], request.args, request.session)


def key_of(n: int) -> str:
    return f"key:{n % 9}" if n > SNAPSHOT else f"old:{n}"


def session_of(n: int) -> str:
    return f"session:{n % 4}" if n > SNAPSHOT else f"old:{n % 2}"


def state_at(revision: int) -> Any:
    """The keys, with value, version and deadline, and the sessions."""
    keys: dict[str, Any] = {}
    for n in range(1, revision + 1):
        if n == DELETED:
            del keys["key:1"]
        else:
            deadline = 1_001_000.0 if n % 3 == 0 else None
            keys[key_of(n)] = ({"ü": n, "crc": "5d1f0a3e"}, n, deadline)
    return keys, {digest(session_of(n)): n for n in range(1, revision + 1)}


def state_of(table: Table) -> Any:
    entries = [(key, table.get(key)) for key in table.keys("", "")]
    keys = {key: (values.unpack(e.packed), e.version, e.deadline) for key, e in entries if e}
    return keys, {one.session: one.seq for one, _ in table.sessions.completed()}


def make(folder: Path, *, clean: bool) -> Store:
    """A store that was stopped, or that was copied while it runs, before its last watermark."""

    def start() -> LocalEngine:
        return LocalEngine(Disk(folder), clock=lambda: 1e6, compactor=compaction.Inline)

    def two(engine: LocalEngine, first: int) -> None:
        engine.execute([write(first), write(first + 1)])

    engine = start()
    for first in range(1, SNAPSHOT, 2):
        two(engine, first)
    engine.compact()
    wait_until(lambda: engine.info()["snapshot_revision"] == SNAPSHOT)
    for segment in range(3):
        for first in range(SNAPSHOT * (segment + 1) + 1, SNAPSHOT * (segment + 2), 2):
            two(engine, first)
        if segment < 2:
            engine.close()
            engine = start()
    mark = (folder / watermark.NAME).read_bytes()
    engine.execute([write(n) for n in range(25, LAST + 1)])
    running = Store({**files_of(folder), watermark.NAME: mark}, floor=24)
    engine.close()
    return Store(files_of(folder), floor=LAST) if clean else running


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "LOCK"}


def last_segment(store: Store) -> str:
    return max(name for name in store.files if name.startswith("journal-"))


@pytest.fixture(scope="module", params=["clean", "running"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(local, "STOP_BYTES_MAX", 0)
        monkeypatch.setattr(journal, "ROOM_BYTES", 512)
        made = make(tmp_path_factory.mktemp("store") / "data", clean=request.param == "clean")
    assert len(made.files) == 5
    assert check(made, made.files) == LAST
    return made


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of another store, with the same names."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(local, "STOP_BYTES_MAX", 0)
        return make(tmp_path_factory.mktemp("stranger") / "data", clean=True).files


def check(store: Store, damaged: Files) -> int | None:
    """Asserts what must come of damage; the revision, or None if it is refused."""
    disk = CrashDisk(damaged)
    found = recovered(disk)
    if isinstance(found, Damaged):
        assert re.search(r"(journal|snapshot)-\d+\.jsonl|watermark", found.message)
        assert re.search(PLACE, found.message)
        return None
    revision = found.table.revision
    assert revision >= store.floor
    assert state_of(found.table) == state_at(revision)
    aside = settle(disk, found)
    if found.tail is not None and found.tail.torn_bytes:
        assert aside is not None
        torn = damaged[found.tail.name][found.tail.offset :][: found.tail.torn_bytes]
        assert disk.files()[aside] == torn
    assert recover(disk).table.revision == revision
    return revision


def recovered(disk: CrashDisk) -> Recovered | Damaged:
    try:
        return recover(disk)
    except Damaged as error:
        return error


def bytes_changed(files: Files) -> Iterator[Files]:
    for name, data in files.items():
        for n, byte in enumerate(data):
            for changed in {byte ^ 1 << n % 8, 0, 0xFF} - {byte}:
                yield {**files, name: data[:n] + bytes([changed]) + data[n + 1 :]}


def sectors_zeroed(files: Files) -> Iterator[Files]:
    for name, data in files.items():
        for n in range(0, len(data), 512):
            size = len(data[n : n + 512])
            yield {**files, name: data[:n] + bytes(size) + data[n + size :]}


def truncated(files: Files) -> Iterator[Files]:
    for name, data in files.items():
        for n in range(len(data)):
            yield {**files, name: data[:n]}


def lines_changed(files: Files) -> Iterator[Files]:
    """Deleted, doubled, and swapped with the next one."""
    for name, data in files.items():
        lines = data.splitlines(keepends=True)
        for n, line in enumerate(lines):
            yield {**files, name: b"".join(lines[:n] + lines[n + 1 :])}
            yield {**files, name: b"".join([*lines[:n], line, *lines[n:]])}
        for n, (line, following) in enumerate(pairwise(lines)):
            yield {**files, name: b"".join([*lines[:n], following, line, *lines[n + 2 :]])}


def files_changed(files: Files) -> Iterator[Files]:
    """Deleted, and swapped."""
    for name in files:
        yield {other: data for other, data in files.items() if other != name}
    for one, other in combinations(files, 2):
        yield {**files, one: files[other], other: files[one]}


@pytest.mark.parametrize("damages", [bytes_changed, truncated], ids=lambda it: it.__name__)
def test_a_damaged_byte_is_refused_or_makes_no_difference(
    damages: Any, store: Store, seed: int, long: bool
) -> None:
    rng = random.Random(seed)
    found = [
        check(store, damaged) for damaged in damages(store.files) if long or rng.random() < SHARE
    ]
    assert found.count(None) > len(found) / 2
    assert set(found) == {None, *range(store.floor, LAST + 1)}


@pytest.mark.parametrize(
    "damages", [sectors_zeroed, lines_changed, files_changed], ids=lambda it: it.__name__
)
def test_a_larger_damage_is_refused_or_makes_no_difference(damages: Any, store: Store) -> None:
    refused = [check(store, damaged) is None for damaged in damages(store.files)]
    assert sum(refused) > len(refused) / 2


def test_lines_behind_a_bad_one_prove_that_it_was_on_disk(store: Store, seed: int) -> None:
    """Also when the watermark lags. (Before the last batch; a value may look like a line's end.)"""
    rng = random.Random(seed)
    name = last_segment(store)
    data = store.files[name]
    header, last = data.index(b"\n") + 1, data.index(b'{"rev":25')
    for damaged in bytes_changed({name: data}):
        n = next(n for n, byte in enumerate(data) if damaged[name][n] != byte)
        if header <= n < last and rng.random() < SHARE:
            files = {**store.files, **damaged}
            del files[watermark.NAME]
            assert check(store, files) is None


def test_a_footer_cut_short_is_no_reason_to_refuse(store: Store) -> None:
    if store.floor == LAST:
        name = last_segment(store)
        data = store.files[name]
        for n in range(data.index(b'{"end"'), len(data)):
            assert check(store, {**store.files, name: data[:n]}) == LAST


def test_a_file_of_another_store_is_refused(store: Store, stranger: Files) -> None:
    for name in store.files:
        assert check(store, {**store.files, name: stranger[name]}) is None


def test_two_damages_at_once_are_not_covered(store: Store) -> None:
    """The watermark gone, and the journal cut at the end of a line: a shorter history."""
    name = last_segment(store)
    cut = b"".join(store.files[name].splitlines(keepends=True)[:3])
    damaged = {other: data for other, data in store.files.items() if other != watermark.NAME}
    assert recover(CrashDisk({**damaged, name: cut})).table.revision == 20


def test_the_command_line_refuses_and_names_the_repair(store: Store, tmp_path: Path) -> None:
    rng = random.Random(1)
    for damaged in rng.sample([*lines_changed(store.files)], 3):
        folder = tmp_path / str(rng.random())
        CrashDisk(damaged).save(folder)
        command = [sys.executable, "-m", "zkv", "--check", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check(store, damaged) is None:
            assert done.returncode == 65
            assert re.search(PLACE, done.stderr)
            assert done.stderr.endswith(f": zkv-server --repair {folder}\n")
        else:
            assert done.returncode == 0
