"""zkv-client as tests run it: on pipes, on a terminal, and against a peer that is no zkv."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import zmq
from harness import EXIT_S

COMMAND = [sys.executable, "-m", "zkv.cli"]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: bytes = b""


Run = Callable[..., Ended]


def run_client(endpoint: str, *args: str | bytes, stdin: bytes = b"") -> Ended:
    """Runs zkv-client on pipes."""
    ended = subprocess.run(
        [*COMMAND, *args],
        input=stdin,
        capture_output=True,
        env=environment(endpoint),
        timeout=EXIT_S,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def environment(endpoint: str) -> dict[str, str]:
    # Unbuffered output would hide what can go wrong when the buffer is written out at the end.
    return {**os.environ, "ZKV_ENDPOINT": endpoint, "COLUMNS": "80", "PYTHONUNBUFFERED": ""}


def on_terminal(endpoint: str, *args: str, typed: bytes = b"") -> tuple[int, bytes]:
    """Runs zkv-client with a terminal as its stdin, stdout and stderr.

    What is typed is there before it starts, so that its echo comes first.
    """
    terminal, its_end = pty.openpty()
    os.write(terminal, typed)
    process = subprocess.Popen(
        [*COMMAND, *args], stdin=its_end, stdout=its_end, stderr=its_end, env=environment(endpoint)
    )
    os.close(its_end)
    shown = b""
    while select.select([terminal], [], [], EXIT_S)[0]:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # nobody has the other end any more
            break
    os.close(terminal)
    return process.wait(EXIT_S), shown


@contextmanager
def peer(tmp_path: Path) -> Iterator[tuple[zmq.Socket[bytes], str]]:
    """A ROUTER that answers what a test has it answer, and its endpoint."""
    endpoint = f"ipc://{tmp_path}/peer"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.rcvtimeo = EXIT_S * 1000
        socket.bind(endpoint)
        yield socket, endpoint


def one_sentence(err: bytes) -> bool:
    return re.fullmatch(rb"zkv-client: [^\n]+\n", err) is not None
