"""Many processes on the same keys: every reply fits one order of events, and so does the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import load
import pytest
import zmq
from harness import ServerProcess, raw_socket, serving

PROCESSES = 16
THREADS = 2
HASTY = "import sys\nsys.setswitchinterval(1e-6)\n"


class Event(NamedTuple):
    """One request and its reply, as in `load`."""

    op: str
    key: str
    begin: int
    end: int
    version: int
    value: Any


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    """A server whose threads take turns a thousand times as often as usual: races show."""
    (tmp_path / "hasty").mkdir()
    (tmp_path / "hasty" / "sitecustomize.py").write_text(HASTY)
    with ExitStack() as stack:
        with monkeypatch.context() as patched:
            patched.setenv("PYTHONPATH", str(tmp_path / "hasty"))
            hasty = stack.enter_context(serving(tmp_path / "data"))
        yield hasty


def run_load(endpoint: str, operations: int, seed: int) -> list[Event]:
    command = [sys.executable, str(Path(load.__file__)), endpoint]
    processes = [
        subprocess.Popen(
            [*command, str(number), str(THREADS), str(operations), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [Event(*event) for one in told for event in json.loads(one)]


def state_of(server: ServerProcess) -> list[list[Any]]:
    with raw_socket(zmq.REQ, server.endpoint) as socket:
        return load.everything(socket)


def test_what_many_processes_do_at_once_is_one_history(
    server: ServerProcess, seed: int, long: bool
) -> None:
    operations = 5000 if long else 300
    events = run_load(server.endpoint, operations, seed)
    assert len(events) == PROCESSES * THREADS * operations
    before = state_of(server)

    assert_counters_are_exact(events, before)
    assert_reads_were_written(events, before)
    assert_no_reply_is_stale(events)

    server.kill()
    with serving(server.data) as again:
        assert state_of(again) == before
        again.stop()
    with serving(server.data) as again:
        assert state_of(again) == before


def assert_counters_are_exact(events: list[Event], state: list[list[Any]]) -> None:
    """Each counter has passed through every number once, up to the last."""
    counted = defaultdict(list)
    for event in events:
        if event.op == "incr":
            counted[event.key].append(event.value)
    for key, numbers in counted.items():
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), key
    held = {key: value for key, _, value in state if key.startswith("counter:")}
    assert held == {key: len(numbers) for key, numbers in counted.items()}


def assert_reads_were_written(events: list[Event], state: list[list[Any]]) -> None:
    """A value is where it was put, with the version that its writer was told."""
    written = {
        (event.key, event.version, tuple(event.value)) for event in events if event.op == "put"
    }
    read = {
        (event.key, event.version, tuple(event.value))
        for event in events
        if event.op == "get" and event.value is not None
    }
    assert read
    assert read <= written
    assert {(k, v, tuple(it)) for k, v, it in state if k.startswith("key:")} <= written


def assert_no_reply_is_stale(events: list[Event]) -> None:
    """A reply knows of every write that was acknowledged before its request was made."""
    by_key = defaultdict(list)
    for event in events:
        by_key[event.key].append(event)
    for history in by_key.values():
        acknowledged = sorted((event.end, event.version) for event in history if event.op != "get")
        newest, position = 0, 0
        for event in sorted(history, key=lambda event: event.begin):
            while position < len(acknowledged) and acknowledged[position][0] < event.begin:
                newest = max(newest, acknowledged[position][1])
                position += 1
            assert event.version >= newest, event
