"""A store never goes backwards in silence.

What it acknowledged was synced; what was synced and is missing is refused; where writes may
be lost, no revision is given out twice; and a client that knows of a higher one says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from awaited import Connect
from harness import cut_room, serving
from wire import Wire

import zkv
from zkv.engines import line
from zkv.errors import Damaged


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path / "data") as wire:
        yield wire


def test_what_is_acknowledged_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file by its writes, and the folder by the files that came into it."""
    synced: list[str] = []

    def sync(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if not name.endswith("watermark"):
            synced.append(name)

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, sync)
    with Wire(tmp_path / "data") as wire:
        segment, folder = str(*wire.folder.glob("journal-*")), str(wire.folder)
        assert str(tmp_path) in synced
        assert synced[-2:] == [segment, folder]
        synced.clear()
        for writes in (1, 2):
            wire("put", key="a", value=writes)
            wire("get", key="a")
            assert synced == [segment] * writes
        wire.compact()
        (snapshot,) = [name for name in synced if "snapshot-" in name]
        assert synced[synced.index(snapshot) + 1] == folder


def lose_the_end(folder: Path, keep: int) -> None:
    """A power failure: the last segment keeps so many lines, and those that were synced."""
    marks = [json.loads(line) for line in (folder / "watermark").read_bytes().splitlines()]
    synced = max(mark["watermark"] for mark in marks)
    cut_room(folder)
    segment = max(folder.glob("journal-*.jsonl"))
    lines = segment.read_bytes().splitlines(keepends=True)
    kept = [one for one in lines[1 + keep :] if json.loads(one)["rev"] <= synced]
    segment.write_bytes(b"".join(lines[: 1 + keep] + kept))


@pytest.mark.parametrize("fsync", ["never", "interval"])
@pytest.mark.parametrize("keep", [0, 1, 7])
def test_no_revision_is_given_out_twice(tmp_path: Path, fsync: str, keep: int) -> None:
    """Though writes that were acknowledged are lost: again and again, also with none between."""
    folder, given = tmp_path / "data", [0]
    for writes in (10, 0, 1, 10):
        with serving(folder, "--fsync", fsync) as server, zkv.Client(server.endpoint) as store:
            for _ in range(writes):
                given.append(store.put("a", len(given)))
            server.kill()
        lose_the_end(folder, keep)
    assert given == sorted(set(given))
    with zkv.open(folder, fsync="never") as store:
        given += [store.put("b", 0), store.put("b", 1)]
    with zkv.open(folder) as store:
        given += [store.put("c", 0), store.put("c", 1)]
    assert given == sorted(set(given))


@pytest.mark.parametrize("lines", [1, 3, 5])
def test_a_store_that_lost_what_it_had_synced_is_refused(wire: Wire, lines: int) -> None:
    """Though what is left of it is whole: the journal was cut where a line ends."""
    for number in range(5):
        wire("put", key="a", value=number)
    copy = Path(shutil.copytree(wire.folder, wire.folder.parent / "copy"))
    cut_room(copy)
    segment = max(copy.glob("journal-*.jsonl"))
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:-lines]))
    with pytest.raises(Damaged, match=f"revisions? {6 - lines}"):
        zkv.open(copy)


@pytest.mark.parametrize("damaged", [2, 3, 4, 5])
def test_a_bad_line_is_no_torn_tail_when_good_batches_follow(wire: Wire, damaged: int) -> None:
    """Also where the watermark did not reach the disk, as it may lag behind."""
    wire("put", key="a", value=1)
    watermark = (wire.folder / "watermark").read_bytes()
    for number in (2, 3, 4, 5):
        wire("put", key="a", value=number)
    copy = Path(shutil.copytree(wire.folder, wire.folder.parent / "copy"))
    (copy / "watermark").write_bytes(watermark)
    segment = max(copy.glob("journal-*.jsonl"))
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[damaged] = lines[damaged].replace(b'"a"', b'"b"')
    segment.write_bytes(b"".join(lines))
    if damaged < 5:
        with pytest.raises(Damaged, match=f"revision {damaged} should stand"):
            zkv.open(copy)
    else:
        with zkv.open(copy) as store:
            assert store.item("a") == zkv.Item("a", 4, 4)


def test_what_a_kill_alone_leaves_is_all_there(tmp_path: Path) -> None:
    """A process that dies takes nothing with it, however seldom it synced."""
    with serving(tmp_path / "data", "--fsync", "never") as server:
        with zkv.Client(server.endpoint) as store:
            version = [store.put("a", number) for number in range(10)][-1]
        server.kill()
    with zkv.open(tmp_path / "data") as store:
        assert store.item("a") == zkv.Item("a", 9, version)
        assert store.put("a", 10) > version


def test_a_client_says_when_data_is_lost(tmp_path: Path, connect: Connect) -> None:
    """It has seen a higher revision than a restored backup has: it tells both."""
    folder, endpoint = tmp_path / "data", f"ipc://{tmp_path}/socket"
    with serving(folder, "--listen", endpoint) as server, connect(endpoint) as store:
        old = store.put("a", 1)
        server.stop()
        shutil.copytree(folder, tmp_path / "backup")
        with serving(folder, "--listen", endpoint) as server:
            seen = [store.put("a", number) for number in range(5)][-1]
            assert seen > old
            server.stop()
        with serving(tmp_path / "backup", "--listen", endpoint):
            for ask in (lambda: store.get("a"), lambda: store.get("none"), store.ping):
                with pytest.raises(zkv.DataLost) as raised:
                    ask()
                assert raised.value.details == {"revision": old, "seen": seen}
                assert str(old) in str(raised.value)
                assert str(seen) in str(raised.value)
            with connect(endpoint) as another:
                assert another.get("a") == 1


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A store of a snapshot and a journal that still has lines."""
    with zkv.open(tmp_path / "data") as store:
        store.put("a", 1)
    with serving(tmp_path / "data") as server:
        with zkv.Client(server.endpoint) as client:
            client.put("b", 2)
        server.kill()
    return tmp_path / "data"


@pytest.mark.parametrize("kind", ["snapshot", "journal"])
@pytest.mark.parametrize("version", [0, 2])
def test_files_of_another_version_are_refused(files: Path, kind: str, version: int) -> None:
    """With a sentence, not a traceback, and without a byte of them changed."""
    (file,) = files.glob(f"{kind}-*.jsonl")
    header, rest = file.read_bytes().split(b"\n", 1)
    fields = json.loads(header)
    del fields["crc"]
    sealed = line.seal({**fields, "zkv": version}, line.seed_of(fields["store"]))
    file.write_bytes(sealed + rest)
    before = {path: path.read_bytes() for path in files.iterdir() if path.name != "LOCK"}
    ran = subprocess.run(
        [sys.executable, "-m", "zkv", "--data", str(files)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert ran.returncode == 65
    assert "Traceback" not in ran.stderr
    (sentence,) = ran.stderr.splitlines()
    assert file.name in sentence
    assert f"format {version}" in sentence
    assert "format 1" in sentence
    assert "--repair" not in sentence
    assert {path: path.read_bytes() for path in files.iterdir() if path.name != "LOCK"} == before
    with pytest.raises(zkv.StartError, match=f"format {version}"):
        zkv.open(files)
