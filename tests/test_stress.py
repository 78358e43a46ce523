"""All at once, as on a bad day: hundreds of REQ clients, full DEALERs, gathers of asyncio and
threads, while the server compacts, is stopped, is killed, and comes back. Every request is
answered, and every counter is exact.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import msgpack
import pytest
import zmq
from harness import ServerProcess

import zkv
import zkv.aio

PATIENCE_S = 60
RESEND_S = 1.0
REQS, DEALERS, UNDER_WAY, TASKS, THREADS = 300, 8, 128, 500, 16

Until = Callable[[], bool]
"""Whether a load is to end."""


def reqs(endpoint: str, over: Until) -> int:
    """REQ clients, each of which counts in a session of its own, as PROTOCOL tells them to; how
    many times in all.
    """

    class Counting:
        def __init__(self) -> None:
            self.socket = context.socket(zmq.REQ)
            self.socket.linger, self.socket.req_relaxed, self.socket.req_correlate = 0, 1, 1
            self.socket.connect(endpoint)
            self.session, self.seq = secrets.token_hex(16), 0
            self.ask({"op": "txn", "then": []})

        def ask(self, request: dict[str, object]) -> None:
            self.seq += 1
            self.request = {**request, "session": self.session, "seq": self.seq}
            self.send()

        def send(self) -> None:
            self.sent = time.monotonic()
            with suppress(zmq.Again):
                self.socket.send(msgpack.packb(self.request), zmq.NOBLOCK)
            self.request |= {"retry": self.seq > 1}

    done = 0
    with zmq.Context() as context, ExitStack() as sockets:
        context.max_sockets = REQS + 1
        clients = {one.socket: one for one in (Counting() for _ in range(REQS))}
        poller = zmq.Poller()
        for socket in clients:
            sockets.enter_context(socket)
            poller.register(socket, zmq.POLLIN)
        busy = {*clients.values()}
        heard = time.monotonic()
        while busy:
            assert time.monotonic() < heard + PATIENCE_S, f"{len(busy)} are not answered"
            for socket, _ in poller.poll(100):
                reply = msgpack.unpackb(socket.recv())
                client = clients[socket]
                if not reply["ok"] and reply["error"] in ("unavailable", "internal"):
                    continue  # it is sent again in time
                assert reply["ok"], reply
                done += client.seq > 1
                if over():
                    busy.discard(client)
                else:
                    heard = time.monotonic()
                    client.ask({"op": "incr", "key": "reqs"})
            for client in busy:
                if time.monotonic() - client.sent > RESEND_S:
                    client.send()
    return done


def dealers(endpoint: str, over: Until) -> int:
    """DEALERs that read, with as many requests under way as PROTOCOL allows; how many replies
    came. What a server that goes away had taken is not answered.
    """
    get, done = msgpack.packb({"op": "get", "key": "large", "default": None}), 0
    with zmq.Context() as context, ExitStack() as sockets:
        poller = zmq.Poller()
        for _ in range(DEALERS):
            socket = sockets.enter_context(context.socket(zmq.DEALER))
            socket.linger, socket.sndhwm, socket.rcvhwm = 0, 0, 0
            socket.connect(endpoint)
            poller.register(socket, zmq.POLLIN)
            for _ in range(UNDER_WAY):
                socket.send(get)
        while not over():
            for socket, _ in poller.poll(100):
                with suppress(zmq.Again):
                    while True:
                        socket.recv(zmq.NOBLOCK)
                        done += 1
                        socket.send(get)
    return done


def tasks(endpoint: str, over: Until) -> int:
    """Gathers, one after the other."""

    async def main() -> int:
        done = 0
        async with zkv.aio.Client(endpoint, timeout_s=PATIENCE_S, resend_after_s=RESEND_S) as store:
            while not over():
                await asyncio.gather(*(store.incr("tasks") for _ in range(TASKS)))
                done += TASKS
        return done

    return asyncio.run(main())


def threads(endpoint: str, over: Until) -> int:
    """Threads on one client."""
    with zkv.Client(endpoint, timeout_s=PATIENCE_S, resend_after_s=RESEND_S) as store:

        def count(_: int) -> int:
            done = 0
            while not over():
                store.incr("threads")
                done += 1
            return done

        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(count, range(THREADS)))


def between(load: list[Future[int]], seconds: float) -> None:
    """Lets the load go on for so long; fails with it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for one in load:
            if one.done():
                one.result()
        time.sleep(0.05)


@pytest.mark.timeout(24 * 3600)
def test_stress_loses_and_doubles_nothing(tmp_path: Path, unused: str, long: bool) -> None:
    server = ServerProcess(tmp_path / "data", "--listen", unused, "--workers", "1")
    over = threading.Event()
    try:
        with zkv.Client(unused) as store:
            store.put("large", "x" * 10_000)
        with ThreadPoolExecutor(4) as pool:
            loads = [reqs, dealers, tasks, threads]
            load = [pool.submit(one, unused, over.is_set) for one in loads]
            try:
                for _ in range(1000 if long else 1):
                    between(load, 2)
                    with zkv.Client(unused, timeout_s=PATIENCE_S) as store:
                        store.compact()
                    between(load, 2)
                    server.stop()
                    server = ServerProcess(tmp_path / "data", "--listen", unused)
                    between(load, 2)
                    server.kill()
                    server = ServerProcess(tmp_path / "data", "--listen", unused)
                between(load, 2)
            finally:
                over.set()
        done = [one.result() for one in load]
        assert min(done) > 0
        with zkv.Client(unused) as store:
            counted = store.get_many(["reqs", "tasks", "threads"])
        assert [*counted.values()] == [done[0], done[2], done[3]]
        server.stop()
    finally:
        server.kill()
