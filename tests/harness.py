"""What tests share: servers as processes, raw sockets, and the data folder's files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgpack
import zmq

from zkv import requests
from zkv.engines import Call, journal
from zkv.engines.local import LocalEngine
from zkv.operations import OPERATIONS

EXIT_S = 10


class ServerProcess:
    """zkv-server on a free port of loopback, as a process of its own.

    It has more workers than by default, so that requests overtake each other. `before` stands
    in front of its command.
    """

    def __init__(self, data: Path, *options: str, before: Sequence[str] = ()) -> None:
        self.data = data
        self.log = data.with_name(f"{data.name}.log")
        command = [*before, sys.executable, "-m", "zkv", "--data", str(data), "--workers", "4"]
        if "--listen" not in options:
            command += ["--listen", "tcp://127.0.0.1:*"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *options], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        self.banner = self.process.stdout.readline()
        found = re.search(r"serves (.+?) from", self.banner)
        if found is None:
            self.kill()
            raise AssertionError(f"the server did not start: {self.log.read_text()}")
        self.endpoints = found[1].split()
        self.endpoint = self.endpoints[0]

    def kill(self) -> None:
        """kill -9; returns when the process is gone."""
        self.process.kill()
        self.process.communicate()

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Stops it as an operator would."""
        self.process.send_signal(signum)
        self.process.communicate(timeout=EXIT_S)
        assert self.process.returncode == 0, self.log.read_text()

    def resident_bytes(self) -> int:
        """Memory that the process holds."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(data: Path, *options: str, before: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """A server that is killed at the end if it still runs."""
    server = ServerProcess(data, *options, before=before)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


@contextmanager
def raw_socket(kind: int, endpoint: str, timeout_s: float = 5) -> Iterator[zmq.Socket[bytes]]:
    """A plain ZeroMQ socket, as a client in another language has it."""
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.linger = 0
        socket.sndtimeo = socket.rcvtimeo = int(timeout_s * 1000)
        socket.connect(endpoint)
        yield socket


def ask(socket: zmq.Socket[bytes], request: Any) -> dict[str, Any]:
    """One exchange on a REQ socket; bytes are sent as they are, anything else as msgpack."""
    socket.send(request if isinstance(request, bytes) else msgpack.packb(request))
    reply: dict[str, Any] = msgpack.unpackb(socket.recv(), timestamp=0, strict_map_key=False)
    return reply


def wait_until(true: Any, timeout_s: float = 10) -> None:
    """Returns when `true()` is; fails when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def steps(work: Callable[[], Any]) -> int:
    """How many calls, of Python and of C, some work takes: what does not hang on the machine."""
    count = 0

    def note(_: FrameType, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def cut_room(folder: Path) -> None:
    """Takes the room from the end of each segment; a crash may do so."""
    for path in folder.glob(f"{journal.PREFIX}*.jsonl"):
        os.truncate(path, len(path.read_bytes().rstrip(b" ")))


def call(op: str, **fields: Any) -> Call:
    """A request as an engine gets it."""
    return Call(OPERATIONS[op], requests.check({"op": op, **fields}).args)


def compact(engine: LocalEngine) -> None:
    """Has the engine compact, and waits until it has, or has failed."""
    engine.compact()
    wait_until(lambda: not (engine.info()["compacting"] and engine._keeper.is_alive()))
