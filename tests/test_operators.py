"""What an operator does: check, repair, back up, and start a server too many."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import EXIT_S, cut_room, serving, wait_until

import zkv
from zkv import backup
from zkv.engines import disk, journal, line, local
from zkv.engines.disk import Disk

SERVERS = 50


class Ended(NamedTuple):
    """How zkv-server ended."""

    code: int
    out: list[str]
    err: list[str]


def server(*options: str) -> Ended:
    command = [sys.executable, "-m", "zkv", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout.splitlines(), done.stderr.splitlines())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(store: zkv.Store) -> dict[str, object]:
    return {item.key: item.value for item in store.items()}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of keys 1 to 9, at revision 9: a snapshot of 3, and two segments of 3."""
    monkeypatch.setattr(local, "STOP_BYTES_MAX", 0)
    folder = tmp_path / "data"
    for segment in range(3):
        with zkv.open(folder) as store:
            for n in range(3 * segment + 1, 3 * segment + 4):
                store.put(f"key:{n}", n)
        if segment == 0:
            monkeypatch.setattr(local, "STOP_BYTES_MAX", 2**20)
            zkv.open(folder).close()
            monkeypatch.setattr(local, "STOP_BYTES_MAX", 0)
    assert len(Disk(folder).data_files(journal.PREFIX)) == 2
    return folder


def segment(data: Path, number: int) -> Path:
    return data / Disk(data).data_files(journal.PREFIX)[number]


def store_of(data: Path) -> str:
    return str(line.peek(segment(data, 0).read_bytes().splitlines()[0])["store"])


def replace(path: Path, old: bytes, new: bytes) -> int:
    """Damages a file; returns where."""
    before = path.read_bytes()
    assert before.count(old) == 1
    path.write_bytes(before.replace(old, new))
    return before.index(old)


def test_check_says_what_is_there_and_changes_nothing(data: Path) -> None:
    before = files_of(data)
    assert server("--check", str(data)) == (0, [f"{data}: good, 9 keys, revision 9"], [])
    assert server("--data", str(data), "--check").code == 0
    assert files_of(data) == before


def test_check_tells_of_a_torn_tail(data: Path) -> None:
    cut_room(data)
    with segment(data, 1).open("ab") as file:
        file.write(b'{"rev":10,"time":"20')
    (data / "watermark").unlink()
    path = segment(data, 1)
    path.write_bytes(re.sub(rb'\{"end".*\n', b"", path.read_bytes()))
    done = server("--check", str(data))
    assert done.code == 0
    assert done.out[1:] == ["its last 20 bytes are a torn tail, to be set aside at start"]


def test_check_names_the_first_bad_line_and_the_repair(data: Path) -> None:
    path = segment(data, 0)
    line = path.read_bytes().index(b'{"rev":5')
    replace(path, b'"key:5":5', b'"key:5":6')
    assert server("--check", str(data)) == (
        65,
        [],
        [
            f"zkv-server: {path.name}: bad line at byte {line}, where revision 5 should stand; "
            "lines behind it are good, so it was acknowledged; "
            "a copy of a folder in use may look so, and zkv-client backup makes one that does not; "
            f"to go on with what is good: zkv-server --repair {data}",
        ],
    )
    assert server("--data", str(data)).code == 65  # and it is not served


def test_check_of_a_store_that_is_served_is_refused(data: Path) -> None:
    with serving(data) as running:
        done = server("--check", str(data))
    user = f"process {running.process.pid}"
    assert done == (75, [], [f"zkv-server: the data folder {data} is in use by {user}"])


def test_repair_keeps_every_good_line_and_every_file(data: Path) -> None:
    path = segment(data, 0)
    line = path.read_bytes().index(b'{"rev":5')
    replace(path, b'"key:5":5', b'"key:5":6')
    before = files_of(data)
    done = server("--repair", str(data))
    assert (done.code, done.err) == (0, [])
    assert done.out[:2] == [f"lost: {path.name}: bad line at byte {line}", "lost: revisions 5 to 5"]
    assert done.out[-1] == f"{data}: repaired, 8 keys, revision 10"

    after = files_of(data)
    assert {f"set aside: {name}" for name in after if ".damaged-" in name} == set(done.out[2:-1])
    aside = {name.partition(".damaged-")[0]: text for name, text in after.items()}
    assert before.items() <= aside.items()
    with zkv.open(data) as store:
        assert contents(store) == {f"key:{n}": n for n in range(1, 10) if n != 5}
        assert store.put("key:10", 10) > 9


def test_repair_finds_lines_that_a_bad_newline_glued_together(data: Path) -> None:
    path = segment(data, 1)
    text = path.read_bytes()
    end = text.index(b'{"rev":9') - 1
    path.write_bytes(text[:end] + b"\x8a" + text[end + 1 :])
    assert server("--check", str(data)).code == 65
    done = server("--repair", str(data))
    assert [line for line in done.out if "revisions" in line] == []
    assert done.out[-1] == f"{data}: repaired, 9 keys, revision 10"
    with zkv.open(data) as store:
        assert contents(store) == {f"key:{n}": n for n in range(1, 10)}


def test_repair_takes_a_snapshot_without_its_bad_line(data: Path) -> None:
    (name,) = Disk(data).data_files("snapshot-")
    replace(data / name, b'"key":"key:2"', b'"key":"key:X"')
    assert server("--repair", str(data)).out[0].startswith(f"lost: {name}: bad line at byte ")
    with zkv.open(data) as store:
        assert contents(store) == {f"key:{n}": n for n in range(1, 10) if n != 2}


def test_repair_goes_on_behind_a_line_of_another_kind_of_file(data: Path) -> None:
    """Its CRC is good, so it is the store's own: a line of a snapshot in a journal."""
    (name,) = Disk(data).data_files("snapshot-")
    of_a_key = (data / name).read_bytes().splitlines(keepends=True)[1]
    path = segment(data, 0)
    first = path.read_bytes().index(b'{"rev":5')
    replace(path, b'{"rev":5', of_a_key + b'{"rev":5')
    done = server("--repair", str(data))
    assert done.out[0] == f"lost: {path.name}: not a line of such a file at byte {first}"
    with zkv.open(data) as store:
        assert contents(store) == {f"key:{n}": n for n in range(1, 10)}


@pytest.mark.parametrize("kind", ["journal", "snapshot"])
def test_a_line_that_is_whole_and_makes_no_sense_is_damage_and_costs_only_itself(
    kind: str, data: Path
) -> None:
    """Its CRC is good, so no crash has torn it, also where it is the last; and a repair does
    nothing of it, not even what could be read."""
    last = kind == "journal"
    path = segment(data, 1) if last else data / Disk(data).data_files("snapshot-")[0]
    n = 9 if last else 2
    (old,) = [line for line in path.read_bytes().splitlines(True) if b'"key:%d"' % n in line]
    fields = line.peek(old)
    del fields["crc"]
    nans = {"$m": [[{"$f": "nan"}, 1], [{"$f": "nan"}, 2]]}
    fields |= {"put": {"key:8": "half of it", f"key:{n}": nans}} if last else {"value": nans}
    at = replace(path, old, line.seal(fields, line.seed_of(store_of(data))))
    done = server("--check", str(data))
    assert done.code == 65
    assert (
        f"{path.name}: not a line of zkv at byte {at}: two keys of a map are equal" in done.err[0]
    )
    assert server("--repair", str(data)).out[0].startswith(f"lost: {path.name}: not a line of zkv")
    with zkv.open(data) as store:
        assert contents(store) == {f"key:{n}": n for n in range(1, 10) if n != (9 if last else 2)}
        assert store.put("new", 1) > 10  # behind the revision that was lost


def test_repair_makes_no_empty_store_unless_told_twice(data: Path) -> None:
    """As of a copy that was made while a compaction took the old files away."""
    for path in [*data.glob("snapshot-*"), *data.glob("journal-*")]:
        head = path.read_bytes().splitlines(keepends=True)[0]
        path.write_bytes(head)
    before = files_of(data)
    done = server("--repair", str(data))
    assert done.code == 65
    assert "not one key can be read" in done.err[0]
    assert files_of(data) == before | {"LOCK": b""}
    assert server("--repair", str(data), "--accept-empty").code == 0


def test_repair_leaves_a_good_folder_alone(data: Path) -> None:
    before = files_of(data)
    assert server("--repair", str(data)) == (0, [f"{data}: good, nothing to repair"], [])
    assert files_of(data) == before


@pytest.mark.parametrize("gone", ["journal", "snapshot"])
def test_repair_says_which_revisions_are_missing(gone: str, data: Path) -> None:
    if gone == "journal":
        segment(data, 1).unlink()
    else:
        (data / Disk(data).data_files("snapshot-")[0]).unlink()
    assert server("--check", str(data)).code == 65
    lost = "7 to 9" if gone == "journal" else "1 to 3"
    done = server("--repair", str(data))
    assert done.out[0] == f"lost: revisions {lost}"
    assert done.out[-1] == f"{data}: repaired, 6 keys, revision 10"


def test_repair_gives_out_no_revision_again(data: Path) -> None:
    """Not even one that may have been given out and never reached the disk."""
    with serving(data, "--fsync", "interval") as running:
        running.kill()
    with zkv.open(data) as store:
        revision = store.put("key:10", 10)
        assert revision > journal.RESERVED
    with serving(data, "--fsync", "interval") as running:
        running.kill()
    replace(segment(data, 0), b'"key:5":5', b'"key:5":6')
    done = server("--repair", str(data))
    assert [line for line in done.out if "revisions" in line] == ["lost: revisions 5 to 5"]
    with zkv.open(data) as store:
        assert store.put("key:11", 11) > revision + journal.RESERVED


def test_repair_of_a_folder_without_a_store(tmp_path: Path) -> None:
    (tmp_path / "journal-00000000000000000001.jsonl").write_bytes(20 * b"no store\n")
    before = files_of(tmp_path)
    done = server("--repair", str(tmp_path))
    assert done.code == 65
    assert "--repair" not in done.err[0]  # it has just been tried
    assert before.items() <= files_of(tmp_path).items()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[zkv.Client]:
    """A store whose `one` and `other` are always equal, and always growing."""
    done = threading.Event()

    def write(client: zkv.Client, number: int) -> None:
        for n in count():
            if done.is_set():
                return
            with client.transaction() as block:
                block.incr("one")
                block.put(f"filler:{number}:{n % 500}", "x" * 100)
                block.incr("other")

    with serving(tmp_path / "busy") as running, zkv.Client(running.endpoint) as client:
        writers = [threading.Thread(target=write, args=(client, n)) for n in range(3)]
        for thread in writers:
            thread.start()
        wait_until(lambda: client.count() > 300)
        yield client
        done.set()
        for thread in writers:
            thread.join()


def test_a_backup_of_a_busy_server_is_the_store_at_one_revision(
    busy: zkv.Client, tmp_path: Path
) -> None:
    for number in range(3):
        folder = tmp_path / f"backup-{number}"
        before = busy.info()["revision"]
        revision = busy.backup(folder)
        assert before <= revision <= busy.info()["revision"]
        with zkv.open(folder) as store:
            assert store.info()["revision"] == revision
            assert store.get("one") == store.get("other") > 0
            found = contents(store)
            newest = max(store.item(key).version for key in found)
            assert newest == store.item("one").version <= revision
        with serving(folder) as server, zkv.Client(server.endpoint) as store:
            assert contents(store) == found


def test_a_backup_of_a_quiet_store_is_equal(data: Path, tmp_path: Path) -> None:
    with zkv.open(data) as store:
        assert store.backup(tmp_path / "deep" / "copy") == 9
        with zkv.open(tmp_path / "deep" / "copy") as copy:
            assert list(copy.items()) == list(store.items())
            assert copy.info()["store"] == store.info()["store"]


def test_a_backup_never_touches_a_folder_that_is_there(data: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with zkv.open(data) as store, pytest.raises(zkv.BadRequest, match="cannot make the folder"):
        store.backup(tmp_path / "there")
    assert files_of(tmp_path / "there") == {}


def test_a_backup_after_a_failed_compaction(data: Path, tmp_path: Path) -> None:
    """The failure of before is no failure of this one, nor is its folder in the way."""
    with zkv.open(data) as store:
        path = segment(data, 0)
        text = path.read_bytes()
        path.write_bytes(b"")
        with pytest.raises(zkv.ServerError, match="cannot make a snapshot"):
            store.backup(tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        path.write_bytes(text)
        assert store.backup(tmp_path / "copy") == 9


@pytest.mark.parametrize(("error", "raised"), [("no space", zkv.ServerError), (None, zkv.Timeout)])
def test_a_backup_of_a_store_without_a_snapshot_ends(
    tmp_path: Path, error: str | None, raised: type[Exception]
) -> None:
    """An empty one is at revision 0, as if there were a snapshot of it."""

    def read(op: str, fields: dict[str, Any]) -> dict[str, Any]:
        if op == "read_snapshot":
            raise zkv.NotFound("there is no snapshot of revision 0")
        none = {"revision": 0, "snapshot_revision": 0, "compacting": False}
        return {**none, "compaction_error": error}

    with pytest.raises(raised):
        backup.backup(read, tmp_path / "copy", timeout_s=0.2)
    assert not (tmp_path / "copy").exists()


def test_a_backup_needs_no_other_snapshot_than_the_one_that_is_there(tmp_path: Path) -> None:
    """Though there is no room to make another one."""
    made = zkv.open(tmp_path / "data")
    made.put("k", 1)
    made.close()
    (name,) = Disk(tmp_path / "data").data_files("snapshot-")
    data = (tmp_path / "data" / name).read_bytes()

    def read(op: str, fields: dict[str, Any]) -> dict[str, Any]:
        if op == "read_snapshot":
            return {"data": data[fields["offset"] :], "bytes": len(data)}
        there = {"revision": 1, "snapshot_revision": 1, "compacting": False}
        return {**there, "compaction_error": "no space"}

    assert backup.backup(read, tmp_path / "copy", timeout_s=5) == 1
    with zkv.open(tmp_path / "copy") as store:
        assert contents(store) == {"k": 1}


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), "5"], ids=repr)
def test_a_backup_has_seconds(data: Path, tmp_path: Path, timeout_s: Any) -> None:
    with zkv.open(data) as store, pytest.raises(zkv.BadRequest, match="timeout_s") as raised:
        store.backup(tmp_path / "copy", timeout_s=timeout_s)
    assert raised.value.details == {"field": "timeout_s"}
    assert not (tmp_path / "copy").exists()


def test_behind_the_end_of_a_snapshot_there_is_nothing(data: Path) -> None:
    with zkv.open(data) as store:
        engine = store._engine
        size = engine.read_snapshot(3, 0, 1)[1]
        assert (
            engine.read_snapshot(3, size, 1) == engine.read_snapshot(3, 2**64 - 1, 1) == (b"", size)
        )


def test_a_store_that_is_dropped_says_so_and_frees_its_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    dropped = zkv.open(data)
    dropped.put("k", 1)
    with pytest.warns(ResourceWarning, match="was not closed"):
        del dropped

    def can_be_opened() -> bool:
        try:
            with zkv.open(data) as store:
                return bool(store.get("k") == 1)
        except zkv.StartError:
            return False

    wait_until(can_be_opened)


def test_a_fork_leaves_the_store_to_its_parent(tmp_path: Path) -> None:
    """Else what the parent is acknowledged would be gone."""
    with zkv.open(tmp_path / "data") as store:
        store.put("before", 1)
        if not (child := os.fork()):
            refused = 0
            try:
                store.put("child", 1)
            except zkv.BadRequest:
                refused = 1
            store.close()
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        store.put("after", 2)
    with zkv.open(tmp_path / "data") as store:
        assert contents(store) == {"before": 1, "after": 2}


def test_a_new_folder_is_durable_and_so_are_those_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(disk, "_sync_folder", synced.append)
    Disk(tmp_path / "a" / "b" / "c").make()
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    Disk(tmp_path / "a" / "b" / "c").make()
    assert len(synced) == 3
    Disk(tmp_path / "new" / ".." / "data").make()
    assert (tmp_path / "data").is_dir()


def test_of_many_servers_on_one_folder_one_serves(data: Path) -> None:
    command = [sys.executable, "-m", "zkv", "--data", str(data), "--listen", "tcp://127.0.0.1:*"]
    before = files_of(data)
    servers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(SERVERS)
    ]
    try:
        wait_until(lambda: sum(one.poll() is None for one in servers) <= 1, timeout_s=60)
        (winner,) = (one for one in servers if one.poll() is None)
        assert winner.stdout is not None
        assert " serves " in winner.stdout.readline()
        after = files_of(data)
    finally:
        for one in servers:
            one.terminate()
        ended = [(*one.communicate(timeout=EXIT_S), one.returncode) for one in servers]
    refused = f"zkv-server: the data folder {data} is in use by "
    assert sum(err.startswith(refused) and code == 75 for _, err, code in ended) == SERVERS - 1
    assert [code for _, _, code in ended].count(0) == 1
    before["LOCK"] = after["LOCK"]
    before["watermark"] = after["watermark"]  # the one that serves moves it, and starts a segment
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
