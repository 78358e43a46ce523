"""Every write is done once, over a network that loses replies and a server that is killed."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from awaited import Connect
from harness import ServerProcess, wait_until
from relay import Relay
from wire import Wire

import zkv
from zkv.server import Server

CLIENTS = 8
LOGS = 4
LOST = 0.3
KILL_EVERY_S = 2.0
OPS_MAX = 100_000


class Worker:
    """One client: it counts up, and appends tokens to lists, until it is told to stop."""

    def __init__(self, name: int, connect: Connect, endpoint: str) -> None:
        self.name = name
        self.connect = connect
        self.endpoint = endpoint
        self.counted = 0
        self.appended: list[str] = []
        self.unresolved = ""

    def run(self, stop: threading.Event) -> None:
        with self.connect(self.endpoint, resend_after_s=0.1, timeout_s=20) as store:
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


def ordeal(folder: Path, seed: int, kills: int, connect: Connect = zkv.Client) -> Tally:
    """Has clients work behind a bad relay while the server is killed so many times."""
    print(f"--seed {seed}")
    endpoint = f"ipc://{folder}/socket"
    server = ServerProcess(folder / "data", "--listen", endpoint)
    stop, rng = threading.Event(), random.Random(seed)
    try:
        with zkv.Client(endpoint) as store:
            store.put_many({f"log-{n}": [] for n in range(LOGS)})
        with Relay(endpoint, lost=LOST, seed=seed) as relay, ThreadPoolExecutor(CLIENTS) as pool:
            workers = [Worker(n, connect, relay.endpoint) for n in range(CLIENTS)]
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
def test_each_write_is_done_once(tmp_path: Path, seed: int, long: bool, connect: Connect) -> None:
    """With 30% of the replies lost and `kill -9` every 2 s."""
    tally = ordeal(tmp_path, seed, kills=300 if long else 4, connect=connect)
    tally.check()
    assert tally.dropped > 20
    assert tally.counter > 20


def test_without_sessions_the_same_test_fails(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it can: a client that resends writes without a number is found out."""

    monkeypatch.setattr("zkv.exchange.Session.number", lambda _, fields: fields)
    monkeypatch.setattr("zkv.exchange._RETRY", {})
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
        lambda bodies, room: wire.service.handle(bodies, room),
        workers=1, message_bytes_max=2**20, unread_bytes_max=2**26, connections_max=100,
        on_crash=lambda _: None,
    )  # fmt: skip
    server.start()
    try:
        yield server.endpoints[0]
    finally:
        server.stop()


def test_a_server_that_forgot_the_session_is_not_made_to_do_it_again(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    """The caller is told that the outcome is unknown; another write is another matter."""
    monkeypatch.setattr("zkv.engines.sessions.SESSIONS_MAX", 1)
    with (
        served(wire) as endpoint,
        Relay(endpoint, lost=0, seed=0) as relay,
        connect(relay.endpoint, resend_after_s=1, timeout_s=20) as store,
        ThreadPoolExecutor(1) as pool,
    ):
        assert store.incr("n") == 1
        relay.lost = 1
        waiting = pool.submit(store.incr, "n")
        wait_until(lambda: relay.dropped == 1)
        wire("put", key="other", value=0, session="other", seq=9)
        relay.lost = 0
        with pytest.raises(zkv.SessionLost) as raised:
            waiting.result()
        assert not raised.value.outcome_known
        assert store.incr("n") == 3
