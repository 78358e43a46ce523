"""A start that takes long says how far it has come, and serves nothing before it is done."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket as tcp
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from harness import EXIT_S, ask, raw_socket, serving

KEYS = 3000

AT_ONCE = """\
import zkv.__main__, zkv.loading
zkv.loading.QUIET_S = 0
zkv.bar.DRAW_EVERY_S = zkv.loading.LOG_EVERY_S = 0
zkv.__main__.main()
"""
"""A server that shows every step, however quick it is."""

STOPPED_HALFWAY = """\
import os, signal, zkv.__main__, zkv.engines.snapshot as snapshot
take = snapshot.take
def take_and_stop(*args):
    take(*args)
    os.kill(os.getpid(), signal.SIGSTOP)
snapshot.take = take_and_stop
zkv.__main__.main()
"""
"""A server that is stopped when it has loaded its snapshot, and nothing of its journal."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A snapshot of many keys, and a journal that has changed one of them."""
    folder = tmp_path / "data"
    with serving(folder) as server:
        with raw_socket(zmq.REQ, server.endpoint) as socket:
            for start in range(0, KEYS, 1000):
                puts = [
                    {"op": "put", "key": f"key:{n}", "value": 0} for n in range(start, start + 1000)
                ]
                assert ask(socket, {"op": "txn", "then": puts})["ok"]
        server.stop()
    with serving(folder) as server, raw_socket(zmq.REQ, server.endpoint) as socket:
        assert ask(socket, {"op": "put", "key": "key:7", "value": 1})["ok"]
    return folder


@contextmanager
def started(program: str, data: Path, *options: str, **streams: int) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", program, "--data", str(data), *options]
    process = subprocess.Popen(command, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_terminal_shows_a_bar_which_is_gone_in_the_end(data: Path) -> None:
    terminal, its_end = pty.openpty()
    anywhere = ("--listen", "tcp://127.0.0.1:*")
    with started(AT_ONCE, data, *anywhere, stdout=its_end, stderr=its_end):
        os.close(its_end)
        shown = b""
        while b"serves" not in shown:
            assert select.select([terminal], [], [], EXIT_S)[0], shown
            shown += os.read(terminal, 65536)
    os.close(terminal)
    *bars, end = shown.decode().split("\r\x1b[K")[1:]
    assert len(bars) >= KEYS // 512
    steps = [re.fullmatch(r"\[(#*) *\] +(\d+)%  (\d+) keys", bar) for bar in bars]
    percents = [int(step[2]) for step in steps if step]
    assert len(percents) == len(bars)
    assert percents == sorted(percents)
    assert 0 < percents[0] < percents[-1] <= 100
    assert end.startswith("zkv ")


def test_a_log_has_lines_instead(data: Path) -> None:
    anywhere = ("--listen", "tcp://127.0.0.1:*")
    with started(
        AT_ONCE, data, *anywhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:
        assert server.stdout.readline().startswith(b"zkv ")
        server.terminate()
        _, log = server.communicate(timeout=EXIT_S)
    lines = [line for line in log.decode().splitlines() if "loading" in line]
    assert len(lines) >= KEYS // 512
    for line in lines:
        assert re.search(r" INFO loading: \d+% of 0 MB, \d+ keys$", line), line


def test_a_check_shows_it_too(data: Path) -> None:
    command = [sys.executable, "-c", AT_ONCE, "--check", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=EXIT_S, check=True)
    assert "good" in done.stdout
    assert "loading: " in done.stderr


def test_what_is_quick_shows_nothing(data: Path) -> None:
    terminal, its_end = pty.openpty()
    program = AT_ONCE.replace("QUIET_S = 0", "QUIET_S = 3600")
    with started(program, data, "--check", stderr=its_end, stdout=subprocess.DEVNULL) as server:
        os.close(its_end)
        assert server.wait(EXIT_S) == 0
        with pytest.raises(OSError, match="Errno 5"):  # nothing, and nobody has the other end
            os.read(terminal, 65536)
    os.close(terminal)


def test_nothing_is_served_before_all_is_loaded(data: Path) -> None:
    with tcp.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"tcp://127.0.0.1:{port}"
    with started(STOPPED_HALFWAY, data, "--listen", endpoint, stdout=subprocess.PIPE) as server:
        _, status = os.waitpid(server.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with pytest.raises(ConnectionRefusedError):
            tcp.create_connection(("127.0.0.1", port), timeout=EXIT_S)
        server.send_signal(signal.SIGCONT)
        assert server.stdout.readline().startswith(b"zkv ")
        with raw_socket(zmq.REQ, endpoint) as socket:
            assert ask(socket, {"op": "get", "key": "key:7"})["value"] == 1
            assert ask(socket, {"op": "count"})["count"] == KEYS
