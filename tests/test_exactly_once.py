"""Every write is done once, over a network that loses replies and a server that is killed.

And a store never goes backwards in silence: no revision is given out twice, and a client
that knows of a higher one than the server has says so.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import ServerProcess, serving, wait_until
from relay import Relay
from wire import Wire

import zkv
from zkv import client as client_module
from zkv.errors import Damaged
from zkv.server import Server

CLIENTS = 8
LOGS = 4
LOST = 0.3
KILL_EVERY_S = 2.0
OPS_MAX = 100_000


class Worker:
    """One client: it counts up, and appends tokens to lists, until it is told to stop."""

    def __init__(self, name: int, endpoint: str) -> None:
        self.name = name
        self.endpoint = endpoint
        self.counted = 0
        self.appended: list[str] = []
        self.unresolved = ""

    def run(self, stop: threading.Event) -> None:
        with zkv.Client(self.endpoint, resend_after_s=0.1, timeout_s=20) as store:
            try:
                while not stop.is_set() and self.counted < OPS_MAX:
                    self.unresolved = "counter"
                    store.incr("counter")
                    self.counted += 1
                    self.unresolved = f"{self.name}-{self.counted}"
                    self._append(store, self.unresolved)
                    self.appended.append(self.unresolved)
                    self.unresolved = ""
            except zkv.Error as error:
                if error.outcome_known:
                    raise

    def _append(self, store: zkv.Store, token: str) -> None:
        log = f"log-{self.counted % LOGS}"
        done = False
        while not done:
            item = store.item(log)
            with suppress(zkv.Conflict), store.transaction() as block:
                block.check(log, version=item.version)
                block.put(log, [*item.value, token])
            done = block.success


class Tally(NamedTuple):
    """What the clients were told, and what the store holds in the end."""

    workers: list[Worker]
    counter: int
    tokens: list[str]
    dropped: int

    def check(self) -> None:
        """Each acknowledged write took effect once; each unresolved one, once at most."""
        unresolved = [worker.unresolved for worker in self.workers if worker.unresolved]
        acknowledged = sum(worker.counted for worker in self.workers)
        assert acknowledged <= self.counter <= acknowledged + unresolved.count("counter")
        times = Counter(self.tokens)
        assert set(times.values()) == {1}
        appended = {token for worker in self.workers for token in worker.appended}
        assert appended <= set(times) <= appended | set(unresolved)


def ordeal(folder: Path, seed: int, kills: int) -> Tally:
    """Has clients work behind a bad relay while the server is killed so many times."""
    print(f"--seed {seed}")
    endpoint = f"ipc://{folder}/socket"
    server = ServerProcess(folder / "data", "--listen", endpoint)
    stop, rng = threading.Event(), random.Random(seed)
    try:
        with zkv.Client(endpoint) as store:
            store.put_many({f"log-{n}": [] for n in range(LOGS)})
        with Relay(endpoint, lost=LOST, seed=seed) as relay, ThreadPoolExecutor(CLIENTS) as pool:
            workers = [Worker(n, relay.endpoint) for n in range(CLIENTS)]
            running = [pool.submit(worker.run, stop) for worker in workers]
            try:
                for _ in range(kills):
                    stop.wait(KILL_EVERY_S * rng.uniform(0.5, 1.5))
                    server.kill()
                    server = ServerProcess(folder / "data", "--listen", endpoint)
            finally:
                stop.set()
            for one in running:
                one.result()
        with zkv.Client(endpoint) as store:
            logs = store.get_many([f"log-{n}" for n in range(LOGS)])
            tokens = [token for log in logs.values() for token in log]
            return Tally(workers, store.get("counter"), tokens, relay.dropped)
    finally:
        if server.process.poll() is None:
            server.kill()


@pytest.mark.timeout(3600)
def test_each_write_is_done_once(tmp_path: Path, seed: int, long: bool) -> None:
    """With 30% of the replies lost and `kill -9` every 2 s."""
    tally = ordeal(tmp_path, seed, kills=300 if long else 4)
    tally.check()
    assert tally.dropped > 20
    assert tally.counter > 20


def test_without_sessions_the_same_test_fails(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it can: a client that resends writes without a number is found out."""

    def exchange_again(connection: Any, op: str, fields: Any, deadline: float) -> Any:
        return connection.exchange(op, fields, deadline, resend={})

    monkeypatch.setattr(client_module._Connection, "exchange_once", exchange_again)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        tally = ordeal(folder, seed + attempt, kills=1)
        try:
            tally.check()
        except AssertionError:
            return
    pytest.fail("nothing was done twice")


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path / "data") as wire:
        yield wire


@contextmanager
def served(wire: Wire) -> Iterator[str]:
    """The endpoint of a server in this process."""
    server = Server(
        ["tcp://127.0.0.1:*"],
        lambda bodies: wire.service.handle(bodies),
        workers=1, message_bytes_max=2**20, on_crash=lambda _: None,
    )  # fmt: skip
    server.start()
    try:
        yield server.endpoints[0]
    finally:
        server.stop()


def test_a_server_that_forgot_the_session_is_not_made_to_do_it_again(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told that the outcome is unknown; another write is another matter."""
    monkeypatch.setattr("zkv.engines.sessions.SESSIONS_MAX", 1)
    with (
        served(wire) as endpoint,
        Relay(endpoint, lost=0, seed=0) as relay,
        zkv.Client(relay.endpoint, resend_after_s=1, timeout_s=20) as store,
        ThreadPoolExecutor(1) as pool,
    ):
        assert store.incr("n") == 1
        relay.lost = 1
        waiting = pool.submit(store.incr, "n")
        wait_until(lambda: relay.dropped == 1)
        wire("put", key="other", value=0, session="other", seq=1)
        relay.lost = 0
        with pytest.raises(zkv.SessionLost) as raised:
            waiting.result()
        assert not raised.value.outcome_known
        assert store.incr("n") == 3


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
    segment = max(copy.glob("journal-*.jsonl"))
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:-lines]))
    with pytest.raises(Damaged, match=f"revisions? {6 - lines}"):
        zkv.open(copy)


def test_what_a_kill_alone_leaves_is_all_there(tmp_path: Path) -> None:
    """A process that dies takes nothing with it, however seldom it synced."""
    with serving(tmp_path / "data", "--fsync", "never") as server:
        with zkv.Client(server.endpoint) as store:
            version = [store.put("a", number) for number in range(10)][-1]
        server.kill()
    with zkv.open(tmp_path / "data") as store:
        assert store.item("a") == zkv.Item("a", 9, version)
        assert store.put("a", 10) > version


def test_a_client_says_when_data_is_lost(tmp_path: Path) -> None:
    """It has seen a higher revision than a restored backup has: it tells both."""
    folder, endpoint = tmp_path / "data", f"ipc://{tmp_path}/socket"
    with serving(folder, "--listen", endpoint) as server, zkv.Client(endpoint) as store:
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
            with zkv.Client(endpoint) as another:
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
    content = file.read_bytes()
    assert content.startswith(b'{"zkv":1,')
    file.write_bytes(content.replace(b'{"zkv":1,', b'{"zkv":%d,' % version, 1))
    before = {path: path.read_bytes() for path in files.iterdir()}
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
    assert {path: path.read_bytes() for path in files.iterdir()} == before
    with pytest.raises(zkv.StartError, match=f"format {version}"):
        zkv.open(files)
