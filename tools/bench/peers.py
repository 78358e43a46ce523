"""What is measured: zkv, and what it is compared with. All have the same face.

A peer is started in an empty folder and ends with `stop`, which is a kill: what it holds
is thrown away. Its clients have the names of zkv.Client's methods (`get`, `put`, …), bound
to whatever does that in the peer's own client, so that no layer is added.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import redis
import zmq

import zkv
from zkv import protocol

HERE: Final = Path(__file__).resolve().parent
WAIT_S: Final = 120.0
FILL_WINDOW: Final = 60
"""Requests under way while zkv is filled. Its ROUTER holds 128 replies a connection and drops
what comes beyond; and libzmq says only of every 64th reply that it has left."""
REWRITE_LOOK_S: Final = 0.05  # seldom enough to be no load
REPLY_TIMEOUT_MS: Final = 10_000
COMPACT_AT: Final = """\
import zkv.__main__, zkv.engines.local
zkv.engines.local.JOURNAL_BYTES_MIN = %d
zkv.__main__.main()
"""
"""No option of the server sets this: only a measurement wants it."""

VALUE: Final = "0123456789" * 10


class Skipped(Exception):
    """A work cannot be measured here; says why."""


class Process:
    """A server's process, its standard error in a log beside its data."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=folder)

    def line(self) -> str:
        """The next line it prints; raises RuntimeError with its log when it has ended."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline().decode()
        if not line:
            raise RuntimeError(f"{self._popen.args!r} did not start: {self.log.read_text()}")
        return line

    def ended(self) -> bool:
        return self._popen.poll() is not None

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate()

    def cpu_s(self) -> float:
        """Seconds of CPU it has used, in user mode and in the kernel."""
        stat = Path(f"/proc/{self._popen.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Memory it holds."""
        fields = Path(f"/proc/{self._popen.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class Peer(Protocol):
    """The face. `process` and `client` are there between `start` and `stop`."""

    process: Process

    def start(self) -> None:
        """Returns when it answers."""

    def stop(self) -> None: ...

    def client(self) -> Any:
        """A client for one process, with the peer's default settings."""

    def fill(self, keys: int) -> None:
        """Stores VALUE under each of `names(keys)`."""


@contextmanager
def running(peer: Peer) -> Iterator[None]:
    """Starts a peer, and stops it whatever happens."""
    try:
        peer.start()
        yield
    finally:
        peer.stop()


def wait_until(true: Callable[[], bool], every_s: float = 0.001) -> None:
    """Returns when `true()` is; raises TimeoutError when it is not in time."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("a server is not ready in time")
        time.sleep(every_s)


def names(keys: int) -> list[str]:
    return [f"key:{n:08d}" for n in range(keys)]


class Zkv:
    """zkv-server. `compact_at` sets the journal bytes beyond which it compacts."""

    def __init__(self, folder: Path, fsync: str = "always", compact_at: int | None = None) -> None:
        self._folder = folder
        self._options = ["--data", "data", "--listen", "tcp://127.0.0.1:*", "--fsync", fsync]
        self._program = ["-m", "zkv"] if compact_at is None else ["-c", COMPACT_AT % compact_at]

    def start(self) -> None:
        command = [sys.executable, *self._program, *self._options]
        self.process = Process(command, self._folder)
        found = re.search(r"serves (\S+) from", self.process.line())
        assert found, "an unknown banner"
        self.endpoint = found[1]

    def stop(self) -> None:
        self.process.kill()

    def client(self) -> Any:
        return zkv.Client(self.endpoint)

    def fill(self, keys: int) -> None:
        """One put a key; many at a time under way, since a REQ client takes a minute for 1 M."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as server:
            server.linger, server.rcvtimeo = 0, REPLY_TIMEOUT_MS
            server.connect(self.endpoint)
            for n, key in enumerate(names(keys)):
                body = protocol.encode_request("put", {"key": key, "value": VALUE})
                server.send_multipart([b"", body])
                if n >= FILL_WINDOW:
                    server.recv_multipart()
            for _ in range(min(keys, FILL_WINDOW)):
                server.recv_multipart()
        with self.client() as client:
            assert client.count() == keys

    def rewrite(self) -> None:
        """Has everything brought into a snapshot; returns when it is."""
        with self.client() as client:
            client.compact()
            wait_until(lambda: not client.info()["compacting"], REWRITE_LOOK_S)
            assert client.info()["compaction_error"] is None


class Redis:
    """redis-server. `fsync` is its appendfsync, or None for no file at all.

    Raises Skipped where it is not installed.
    """

    def __init__(self, folder: Path, fsync: str | None = None, *options: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise Skipped("redis-server is missing (Debian: apt-get install redis-server)")
        self._folder = folder
        persistence = ("--appendonly", "yes", "--appendfsync", fsync) if fsync else ()
        plain = ("--bind", "127.0.0.1", "--save", "", "--logfile", "log")
        self._command = [program, *plain, *persistence, *options]

    def start(self) -> None:
        self._port = _free_port()
        self.process = Process([*self._command, "--port", str(self._port)], self._folder)
        wait_until(lambda: _pongs(self._port) or self.process.ended())
        if self.process.ended():
            raise RuntimeError(f"redis-server did not start: {self.process.log.read_text()}")

    def stop(self) -> None:
        self.process.kill()

    def client(self) -> Any:
        return _RedisClient(self._port)

    def fill(self, keys: int) -> None:
        with redis.Redis(port=self._port) as server:
            every = names(keys)
            for at in range(0, keys, 1000):
                pipe = server.pipeline(transaction=False)
                for key in every[at : at + 1000]:
                    pipe.set(key, VALUE)
                pipe.execute()
            assert server.dbsize() == keys

    def rewrite(self) -> None:
        """Has the append-only file rewritten as a snapshot; returns when it is."""
        with redis.Redis(port=self._port) as server:
            server.bgrewriteaof()
            state = partial(server.info, "persistence")
            wait_until(lambda: state()["aof_rewrite_in_progress"] == 0, REWRITE_LOOK_S)


class _RedisClient:
    def __init__(self, port: int) -> None:
        self._redis = redis.Redis(port=port)
        self.get = self._redis.get
        self.put = self._redis.set

    def get_many(self, keys: Sequence[str]) -> object:
        pipe = self._redis.pipeline(transaction=False)
        for key in keys:
            pipe.get(key)
        return pipe.execute()

    def put_many(self, items: Mapping[str, Any]) -> object:
        pipe = self._redis.pipeline(transaction=True)
        for key, value in items.items():
            pipe.set(key, value)
        return pipe.execute()


class Echo:
    """echo.py: the limit of what the topology and plain pyzmq allow. It holds nothing."""

    def __init__(self, folder: Path, frames: int = 1) -> None:
        """So many frames stand before a body; those of `zkv.Client` have no delimiter."""
        self._folder = folder
        self._frames = str(frames)

    def start(self) -> None:
        command = [sys.executable, str(HERE / "echo.py"), self._frames]
        self.process = Process(command, self._folder)
        self.endpoint = self.process.line().strip()

    def stop(self) -> None:
        self.process.kill()

    def client(self) -> Any:
        return zkv.Client(self.endpoint)

    def fill(self, keys: int) -> None:
        pass


class Course:
    """course.py: what is handed in at the end of a course."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self) -> None:
        self.process = Process([sys.executable, str(HERE / "course.py")], self._folder)
        self._port = int(self.process.line())

    def stop(self) -> None:
        self.process.kill()

    def client(self) -> Any:
        return _CourseClient(self._port)

    def fill(self, keys: int) -> None:
        client = self.client()
        for key in names(keys):
            client.put(key, VALUE)


class _CourseClient:
    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def put(self, key: str, value: str) -> None:
        self._connection.request("PUT", f"/{key}", value.encode())
        response = self._connection.getresponse()
        response.read()
        assert response.status == 204


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _pongs(port: int) -> bool:
    """Whether redis answers; while it loads its data it answers with an error."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
