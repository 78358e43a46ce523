"""SIGTERM, SIGINT and SIGHUP: a clean stop of what serves, and the end of all else, at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from crash_disk import CrashDisk
from harness import EXIT_S, ServerProcess, ask, call, raw_socket, serving, wait_until
from test_main import MIB, content_of, crashed, exit_code_of, put_some

import zkv
from zkv.engines import compaction
from zkv.engines.local import LocalEngine
from zkv.engines.recovery import recover
from zkv.engines.repair import repair
from zkv.errors import Damaged

__all__ = ["crashed"]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

SLOW = """\
import sys, time, zkv.__main__, zkv.engines.{module} as module
original = module.{function}
def slow(*args, **kwargs):
    result = original(*args, **kwargs)
    print("reached", flush=True)
    time.sleep({seconds})
    return result
module.{function} = slow
sys.exit(zkv.__main__.main())
"""
"""A server that stays for a while behind a step."""

ANYWHERE = ("--listen", "tcp://127.0.0.1:*")


def wait_for(process: subprocess.Popen[str], said: str) -> None:
    assert process.stdout is not None
    while said not in (line := process.stdout.readline()):
        assert line


@contextmanager
def slow_behind(
    step: str, *options: Any, seconds: float = 3600, before: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """zkv-server, which says when it has reached that step."""
    module, _, function = step.partition(".")
    program = SLOW.format(module=module, function=function, seconds=seconds)
    command = [*before, sys.executable, "-c", program, *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        try:
            yield it
        finally:
            it.kill()


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("step", ["journal.replay", "recovery._recover", "watermark.read"])
def test_a_start_ends_at_once(step: str, signum: signal.Signals, crashed: Path) -> None:
    """It is a stop like another: nothing was acknowledged, and all is there at the next start."""
    with slow_behind(step, "--data", crashed, *ANYWHERE) as server:
        wait_for(server, "reached")
        server.send_signal(signum)
        assert server.wait(EXIT_S) == 0
        assert server.communicate() == ("", "")
    with zkv.open(crashed) as store:
        assert store.count() == 3


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("option", ["--check", "--repair"])
def test_what_was_not_looked_through_is_not_said_to_be_good(
    option: str, signum: signal.Signals, crashed: Path
) -> None:
    before = content_of(crashed)
    with slow_behind("watermark.read", option, crashed) as process:
        wait_for(process, "reached")
        process.send_signal(signum)
        assert process.wait(EXIT_S) == 128 + signum
    assert content_of(crashed) == before


@pytest.mark.parametrize("step", ["snapshot.write", "snapshot.write_lines"])
def test_a_repair_that_has_begun_to_change_the_folder_goes_on(step: str, crashed: Path) -> None:
    (journal,) = crashed.glob("journal-*.jsonl")
    journal.write_bytes(journal.read_bytes().replace(b'"k1":1', b'"k1":7'))
    with slow_behind(step, "--repair", crashed, seconds=0.5) as process:
        wait_for(process, "reached")
        process.terminate()
        said, _ = process.communicate(timeout=EXIT_S)
        assert process.returncode == 0
    assert "repaired, 2 keys" in said
    assert len(list(crashed.glob("journal-*.damaged-*"))) == 1
    with zkv.open(crashed) as store:
        assert list(store.keys("")) == ["k0", "k2"]


def test_a_repair_reads_all_before_it_changes_anything() -> None:
    disk, changes = CrashDisk(), list[str]()
    engine = LocalEngine(disk, compactor=compaction.Inline)
    engine.execute([call("put", key=key, value=1) for key in "abc"])
    name = disk.data_files("journal-")[0]
    damaged = CrashDisk({**disk.files(), name: disk.files()[name].replace(b'"b":1', b'"b":2')})
    engine.close()
    with pytest.raises(Damaged):
        recover(damaged)
    damaged.before_change = lambda: changes.append("change")
    done = repair(damaged, before_change=lambda: changes.append("told"))
    assert changes[0] == "told"
    assert changes[1:] == ["change"] * (len(changes) - 1)
    assert done.keys == 2


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_server_stops_cleanly(signum: signal.Signals, server: ServerProcess) -> None:
    put_some(server)
    server.stop(signum)
    assert f"stopping on {signum.name}\n" in server.log.read_text()
    assert "stopped at revision 3\n" in server.log.read_text()


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_signal_ends_a_compaction_at_the_stop(
    first: signal.Signals, signum: signal.Signals, crashed: Path
) -> None:
    with slow_behind("compaction.compact", "--data", crashed, *ANYWHERE) as server:
        wait_for(server, "serves")
        server.send_signal(first)
        wait_for(server, "reached")
        server.send_signal(signum)
        assert server.wait(EXIT_S) == 128 + signum
    with zkv.open(crashed) as store:
        assert store.count() == 3


def leave_replies_unread(socket: zmq.Socket[bytes]) -> None:
    """Asks for more than the buffers between hold, and reads nothing."""
    socket.send_multipart([b"", msgpack.packb({"op": "put", "key": "k", "value": bytes(MIB)})])
    socket.recv_multipart()
    for _ in range(60):
        socket.send_multipart([b"", msgpack.packb({"op": "get", "key": "k"})])


def requests_of(socket: zmq.Socket[bytes]) -> dict[str, int]:
    requests: dict[str, int] = ask(socket, {"op": "info"})["counters"]["requests"]
    return requests


def unread_bytes(socket: zmq.Socket[bytes]) -> int:
    told: int = ask(socket, {"op": "info"})["connections"]["unread_bytes"]
    return told


@pytest.fixture
def stuck(server: ServerProcess) -> Any:
    """A server that is stopping, and waits a second for a client that does not read."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger, socket.rcvhwm, socket.rcvbuf = 0, 1, 4096
        socket.connect(server.endpoint)
        leave_replies_unread(socket)
        with raw_socket(zmq.REQ, server.endpoint) as honest:
            wait_until(lambda: unread_bytes(honest) > 2**24)
        server.process.terminate()
        wait_until(lambda: "stopping" in server.log.read_text())
        yield server


def test_a_stuck_client_does_not_hold_up_a_stop(stuck: ServerProcess) -> None:
    assert exit_code_of(stuck) == 0


def test_a_second_signal_ends_it_at_once(stuck: ServerProcess) -> None:
    stuck.process.terminate()
    assert exit_code_of(stuck) == 128 + signal.SIGTERM


@pytest.mark.parametrize("signum", SIGNALS)
def test_process_1_is_ended_by_a_second_signal_too(signum: signal.Signals, crashed: Path) -> None:
    """The kernel gives it no signal that it only has the default for."""
    unshare = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs root, and unshare, of Debian's util-linux")
    options = ("--data", crashed, *ANYWHERE)
    with slow_behind("compaction.compact", *options, before=unshare) as server:
        wait_for(server, "serves")
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        wait_for(server, "reached")
        os.kill(int(children[0]), signum)
        assert server.wait(EXIT_S) == 128 + signum


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_when_it_starts_stays_ignored(
    ignored: signal.Signals, tmp_path: Path
) -> None:
    """As by nohup, or in the background of a script."""
    trap = ("sh", "-c", f"trap '' {ignored.name.removeprefix('SIG')}; exec \"$@\"", "sh")
    with serving(tmp_path / "data", before=trap) as server:
        with raw_socket(zmq.REQ, server.endpoint) as socket:
            for _ in range(3):
                server.process.send_signal(ignored)
                assert ask(socket, {"op": "ping"})["ok"]
        server.stop(signal.SIGTERM)
    assert "stopping on SIGTERM" in server.log.read_text()


@pytest.mark.skipif(not shutil.which("nohup"), reason="there is no nohup")
def test_nohup_keeps_a_server_alive(tmp_path: Path) -> None:
    with serving(tmp_path / "data", before=("nohup",)) as server:
        server.process.send_signal(signal.SIGHUP)
        put_some(server)
        server.stop()
