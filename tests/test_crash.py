"""kill -9 under load, again and again on one folder: what was acknowledged is there.

The page cache outlives the process, so this cannot show that a sync is missing.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import load
import msgpack
import zmq
from harness import ServerProcess, ask, raw_socket, serving

WRITERS = 4
KEYS = 20
GROUP = 10
"""Keys that a transaction sets together."""


class Writer:
    """A client without retries, and what each of its keys may hold after a crash."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        self.may_hold: dict[str, list[Any]] = {}
        self.acknowledged = 0
        self.increments = [0, 0]
        """How many of the common counter are certain, and how many were asked for."""
        self.revision = 0

    def run(self, endpoint: str, rng: random.Random, dead: threading.Event) -> None:
        """Makes one request after another, until one is not answered."""
        with raw_socket(zmq.REQ, endpoint) as socket:
            while self._ask(socket, rng, dead):
                self.acknowledged += 1

    def _ask(self, socket: zmq.Socket[bytes], rng: random.Random, dead: threading.Event) -> bool:
        self.number += 1
        key, value = f"{self.name}.{rng.randrange(KEYS)}", [self.name, self.number]
        op = rng.choice(("put", "put", "put", "delete", "incr", "txn"))
        if op == "put":
            request = {"op": op, "key": key, "value": value}
        elif op == "delete":
            request, value = {"op": op, "key": key}, None
        elif op == "incr":
            request, key = {"op": op, "key": "counter"}, "counter"
            self.increments[1] += 1
        else:
            key = f"{self.name}.group"
            puts = [{"op": "put", "key": f"{key}.{n}", "value": value} for n in range(GROUP)]
            request = {"op": op, "then": puts}
        before = self.may_hold.get(key, [None])
        if op != "incr":
            self.may_hold[key] = [*before, value]
        socket.send(msgpack.packb(request))
        while not socket.poll(50):
            if dead.is_set():
                return False
        reply = msgpack.unpackb(socket.recv())
        if not reply["ok"] and reply["error"] != "not_found":
            assert reply["error"] == "unavailable", reply
            return False
        if op == "incr":
            self.increments[0] += 1
        else:
            self.may_hold[key] = [value]
        assert reply["revision"] >= self.revision
        self.revision = reply["revision"]
        return True

    def assert_kept(self, held: dict[str, Any]) -> None:
        """Takes what the store holds of this writer; afterwards no key is in doubt."""
        group = [held.pop(f"{self.name}.group.{n}", None) for n in range(GROUP)]
        assert group == group[:1] * GROUP
        held[f"{self.name}.group"] = group[0]
        for key, possible in self.may_hold.items():
            value = held.pop(key, None)
            assert value in possible, key
            self.may_hold[key] = [value]
        assert not [key for key, value in held.items() if value is not None]


def assert_all_kept(server: ServerProcess, writers: list[Writer]) -> None:
    with raw_socket(zmq.REQ, server.endpoint) as socket:
        revision = ask(socket, {"op": "info"})["revision"]
        held = {key: value for key, _, value in load.everything(socket)}
    certain, asked = (sum(writer.increments[n] for writer in writers) for n in range(2))
    count = held.pop("counter", 0)
    assert certain <= count <= asked
    for writer in writers:
        assert revision >= writer.revision
        writer.increments, writer.revision = [0, 0], revision
        writer.assert_kept({k: v for k, v in held.items() if k.startswith(f"{writer.name}.")})
    writers[0].increments = [count, count]
    assert {key.partition(".")[0] for key in held} <= {writer.name for writer in writers}


@contextmanager
def running(writers: list[Writer], server: ServerProcess, rng: random.Random) -> Iterator[None]:
    """All writers for a random moment, and then until the caller has killed the server."""
    dead = threading.Event()
    threads = [
        threading.Thread(
            target=writer.run, args=(server.endpoint, random.Random(rng.random()), dead)
        )
        for writer in writers
    ]
    for thread in threads:
        thread.start()
    time.sleep(rng.uniform(0.05, 0.3))
    try:
        yield
    finally:
        dead.set()
        for thread in threads:
            thread.join()


def test_kill_9_takes_nothing_that_was_acknowledged(tmp_path: Path, seed: int, long: bool) -> None:
    rng = random.Random(seed)
    writers = [Writer(f"w{number}") for number in range(WRITERS)]
    cycles = 1000 if long else 30
    for cycle in range(cycles):
        with serving(tmp_path / "data") as server:
            assert_all_kept(server, writers)
            with running(writers, server, rng):
                if cycle % 5 == 4:  # it is killed while it stops, while it compacts, or later
                    server.process.terminate()
                    time.sleep(rng.choice((0, 0.02, 0.05, 0.1, 1)))
                server.kill()
    with serving(tmp_path / "data") as server:
        assert_all_kept(server, writers)
    assert sum(writer.acknowledged for writer in writers) >= 50 * cycles
