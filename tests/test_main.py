"""zkv-server as an operator meets it: options, exit codes, signals, and what it says."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket as tcp
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from harness import EXIT_S, ServerProcess, ask, cut_room, raw_socket, serving, wait_until

import zkv

MIB = 2**20
SCRIPT = Path(sys.executable).with_name("zkv-server")
NOT_ENDPOINTS = (
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:80a",
    "tcp://127.0.0.1:99999",
    "udp://127.0.0.1:1",
    "zkv://127.0.0.1",
    "nonsense",
)
SECRET = "a value that nobody may read in a log"


def run(*options: Any, command: tuple[Any, ...] = (sys.executable, "-m", "zkv"), **kwargs: Any):
    """zkv-server until it ends by itself, which it must."""
    return subprocess.run(
        [*map(str, [*command, *options])],
        capture_output=True,
        text=True,
        timeout=EXIT_S,
        env={**os.environ, "COLUMNS": "1000"},
        **kwargs,
    )


def assert_refused(done: subprocess.CompletedProcess[str], exit_code: int, *words: Any) -> None:
    """One sentence on stderr that names what is wrong, and the exit code of its kind."""
    assert (done.returncode, done.stdout) == (exit_code, ""), done.stderr
    assert re.fullmatch(r"zkv-server: [^\n]+\n", done.stderr), done.stderr
    for word in words:
        assert str(word) in done.stderr


def content_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Of all but LOCK, which says who has the folder, or had it last."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
        if path.name != "LOCK"
    }


def exit_code_of(server: ServerProcess) -> int:
    """What it ended with, within 5 seconds."""
    server.process.communicate(timeout=5)
    return server.process.returncode


def put_some(server: ServerProcess) -> None:
    with raw_socket(zmq.REQ, server.endpoint) as socket:
        for number in range(3):
            assert ask(socket, {"op": "put", "key": f"k{number}", "value": number})["ok"]


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """The folder of a server that was killed: three keys, and a journal without its end."""
    with serving(tmp_path / "data") as server:
        put_some(server)
    return server.data


def journal_of(data: Path) -> Path:
    (path,) = data.glob("journal-*.jsonl")
    return path


# Options


@pytest.mark.parametrize(
    "command", [(sys.executable, "-m", "zkv"), (SCRIPT,)], ids=["-m", "script"]
)
def test_version(command: tuple[Any, ...]) -> None:
    done = run("--version", command=command)
    assert (done.returncode, done.stdout) == (0, f"zkv {zkv.__version__}\n")


def test_help_tells_every_default_and_every_exit_code() -> None:
    text = run("--help").stdout
    for default in (
        "--data DIR data folder (default: ./zkv-data)",
        "(default: tcp://127.0.0.1:5757)",
        "--workers N worker threads (default: 1)",
        "before they are acknowledged (always, the default)",
        "(default: info)",
        "(default: text)",
    ):
        assert default in " ".join(text.split())
    codes = re.findall(r"(\d+) [\w+]", text.partition("Exit codes: ")[2])
    assert codes == ["0", "2", "65", "69", "70", "71", "73", "74", "75", "128"]


@pytest.mark.parametrize(
    "options",
    [
        ["--colour"],
        ["--workers", "0"],
        ["--workers", "x"],
        ["--fsync", "maybe"],
        ["--data", ""],
        ["--check", ""],
        ["--repair", ""],
        *(["--listen", endpoint] for endpoint in NOT_ENDPOINTS),
    ],
)
def test_a_wrong_option_is_refused(options: list[str], tmp_path: Path) -> None:
    done = run(*options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"zkv-server: error: argument {options[0]}" in done.stderr or len(options) == 1
    assert f"{options[-1]!r}" in done.stderr or options[-1] in ("", "--colour")
    assert list(tmp_path.iterdir()) == []


def test_the_banner_tells_where_and_what(crashed: Path) -> None:
    with serving(crashed) as server:
        assert re.fullmatch(
            rf"zkv {re.escape(zkv.__version__)} serves tcp://127\.0\.0\.1:\d+ "
            rf"from {re.escape(str(crashed))}: 3 keys, revision 3, loaded in \d+\.\d\d s\n",
            server.banner,
        )


def test_it_listens_wherever_it_is_told(tmp_path: Path) -> None:
    ipc = f"ipc://{tmp_path}/zkv.ipc"
    with serving(tmp_path / "data", "--listen", "tcp://127.0.0.1:*", "--listen", ipc) as server:
        assert server.endpoints[1] == ipc
        for endpoint in server.endpoints:
            with raw_socket(zmq.REQ, endpoint) as socket:
                assert ask(socket, {"op": "ping"})["ok"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is only one CPU")
@pytest.mark.parametrize("options", [[], ["--any-cpu"]])
def test_what_hands_requests_on_stays_on_one_cpu(tmp_path: Path, options: list[str]) -> None:
    """The keeper does not: a compaction that it starts must not get into the way. And signals."""
    every = os.sched_getaffinity(0)
    with serving(tmp_path / "data", *options) as server:
        threads = os.listdir(f"/proc/{server.process.pid}/task")
        allowed = [os.sched_getaffinity(int(thread)) for thread in threads]
    pinned = [cpus for cpus in allowed if cpus != every]
    if options:
        assert pinned == []
    else:
        assert len(pinned) == len(threads) - 2
        assert len(pinned[0]) == 1
        assert pinned == pinned[:1] * len(pinned)


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_a_mode_that_can_lose_data_says_so(tmp_path: Path, fsync: str) -> None:
    with serving(tmp_path / "data", "--fsync", fsync) as server:
        with raw_socket(zmq.REQ, server.endpoint) as socket:
            assert ask(socket, {"op": "info"})["fsync"] == fsync
        server.stop()
    assert ("acknowledged" in server.log.read_text()) == (fsync != "always")


# What it refuses to start on


def test_an_address_in_use_is_exit_69(tmp_path: Path) -> None:
    with tcp.create_server(("127.0.0.1", 0)) as other:
        endpoint = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        done = run("--data", tmp_path / "data", "--listen", endpoint)
    assert_refused(done, 69, endpoint)


def test_an_address_of_another_machine_is_exit_69(tmp_path: Path) -> None:
    endpoint = "tcp://192.0.2.1:5757"  # RFC 5737: nobody's
    assert_refused(run("--data", tmp_path / "data", "--listen", endpoint), 69, endpoint)


def test_a_folder_in_use_is_exit_75_and_not_touched(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        put_some(server)
        (tmp_path / "link").symlink_to(server.data)
        before = content_of(server.data)
        for data in (server.data, tmp_path / "link"):
            for options in (["--listen", "tcp://127.0.0.1:*"], ["--check"]):
                assert_refused(run("--data", data, *options), 75, data)
        assert content_of(server.data) == before
        put_some(server)


def test_of_many_that_start_on_a_folder_one_serves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zkv", "--listen", "tcp://127.0.0.1:*"]
    starts = [
        subprocess.Popen(
            [*command, "--data", str(tmp_path / "data")],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for _ in range(8)
    ]
    try:
        wait_until(lambda: sum(start.poll() is not None for start in starts) == 7)
        assert sorted(start.returncode for start in starts if start.returncode) == [75] * 7
    finally:
        for start in starts:
            start.kill()
            start.wait()


def test_a_folder_that_cannot_be_used_is_exit_73(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "odd" / "LOCK").mkdir(parents=True)
    for data in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "odd"):
        assert_refused(run("--data", data), 73, data)
        assert_refused(run("--data", data, "--check"), 73, data)


@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_folder_without_permission_is_exit_73(tmp_path: Path, mode: int) -> None:
    data, prefix = tmp_path / "data", []
    if os.geteuid() == 0:  # root may read and write everything, unless that right is taken
        prefix = [shutil.which("setpriv"), "--bounding-set=-dac_override,-dac_read_search"]
        if not prefix[0]:
            pytest.skip("root needs setpriv, of Debian's util-linux, to be refused anything")
    data.mkdir(mode=mode)
    assert_refused(run("--data", data, command=(*prefix, sys.executable, "-m", "zkv")), 73, data)


def test_a_disk_that_refuses_a_write_is_exit_74(server: ServerProcess) -> None:
    put_some(server)
    size = journal_of(server.data).stat().st_size
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size + 50, size + 50))
    with raw_socket(zmq.REQ, server.endpoint) as socket:
        socket.send(msgpack.packb({"op": "put", "key": "k3", "value": "not acknowledged" * size}))
        assert exit_code_of(server) == 74
    assert "Traceback" not in server.log.read_text()
    with serving(server.data) as again, raw_socket(zmq.REQ, again.endpoint) as socket:
        assert ask(socket, {"op": "count"})["count"] == 3
        assert "torn" in server.log.read_text()


def test_damaged_data_is_exit_65_and_not_touched(crashed: Path) -> None:
    journal = journal_of(crashed)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:1], lines[1].replace(b"k0", b"k9"), *lines[2:]]))
    before = content_of(crashed)
    for options in (["--listen", "tcp://127.0.0.1:*"], ["--check"]):
        assert_refused(run("--data", crashed, *options), 65, journal.name, f"byte {len(lines[0])}")
    assert content_of(crashed) == before


def test_a_clean_stop_closes_the_files(server: ServerProcess) -> None:
    put_some(server)
    server.stop()
    last = max(path for path in server.data.iterdir() if path.suffix == ".jsonl")
    assert "end" in json.loads(last.read_bytes().splitlines()[-1])
    assert "torn" not in server.log.read_text()


# The check


def test_check_finds_a_good_folder_good(crashed: Path) -> None:
    with serving(crashed) as server:
        server.stop()
    before = content_of(crashed)
    for options in (["--data", crashed, "--check"], ["--check", crashed]):
        done = run(*options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{crashed}: good, 3 keys, revision 3\n"
    assert content_of(crashed) == before


def test_check_tells_of_a_torn_tail_and_leaves_it(crashed: Path) -> None:
    cut_room(crashed)
    journal = journal_of(crashed)
    with journal.open("ab") as file:
        torn = file.write(b'{"rev":4,"time":')
    before = content_of(crashed)
    done = run("--data", crashed, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{crashed}: good, 3 keys, revision 3\n")
    assert f"{torn} bytes" in done.stdout
    assert content_of(crashed) == before


@pytest.mark.parametrize("option", ["--check", "--repair"])
@pytest.mark.parametrize("name", ["empty", "other"])
def test_a_folder_without_a_store_is_not_said_to_be_good(
    tmp_path: Path, option: str, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.png").write_bytes(b"no store")
    before = content_of(tmp_path / name)
    assert_refused(run(option, tmp_path / name), 73, tmp_path / name, "no store")
    assert content_of(tmp_path / name) == before


def test_nobody_else_may_read_the_files(server: ServerProcess) -> None:
    put_some(server)
    assert {path.stat().st_mode & 0o777 for path in server.data.iterdir()} == {0o600}


def test_check_does_not_make_a_folder(tmp_path: Path) -> None:
    assert_refused(run("--data", tmp_path / "data", "--check"), 73, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_check_adds_nothing_to_a_copy(crashed: Path) -> None:
    (crashed / "LOCK").unlink()  # as in a backup of the data files alone
    before = content_of(crashed)
    assert run("--data", crashed, "--check").returncode == 0
    assert content_of(crashed) == before


# Signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_keeps_every_acknowledged_put(tmp_path: Path, signum: int) -> None:
    acknowledged: list[str] = []

    def load(endpoint: str, writer: int) -> None:
        with raw_socket(zmq.REQ, endpoint) as socket:
            for number in range(100_000):
                key = f"{writer}.{number}"
                socket.send(msgpack.packb({"op": "put", "key": key, "value": number}))
                while not socket.poll(100):
                    if stopped.is_set():
                        return
                if not msgpack.unpackb(socket.recv())["ok"]:
                    return
                acknowledged.append(key)

    for _ in range(3):
        stopped = threading.Event()
        with serving(tmp_path / "data") as server:
            writer = len(acknowledged)
            clients = [
                threading.Thread(target=load, args=(server.endpoint, writer + n)) for n in range(4)
            ]
            for client in clients:
                client.start()
            enough = len(acknowledged) + 100
            wait_until(lambda enough=enough: len(acknowledged) > enough)
            server.process.send_signal(signum)
            assert exit_code_of(server) == 0
            stopped.set()
            for client in clients:
                client.join()
    done = run("--data", tmp_path / "data", "--check")
    assert (done.returncode, "torn" in done.stdout) == (0, False)
    with serving(tmp_path / "data") as server, raw_socket(zmq.REQ, server.endpoint) as socket:
        for key in acknowledged:
            assert ask(socket, {"op": "get", "key": key})["value"] == int(key.partition(".")[2])


# The log


def records_of(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def test_stopping_is_logged_and_operations_are_not(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--log-format", "json") as server:
        put_some(server)
        server.stop(signal.SIGINT)
    assert [(one["level"], one["message"]) for one in records_of(server)] == [
        ("info", "stopping on SIGINT"),
        ("info", "stopped at revision 3"),
    ]
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["time"])
        for one in records_of(server)
    )


def test_debug_logs_every_operation(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--log-format", "json", "--log-level", "debug") as server:
        with raw_socket(zmq.REQ, server.endpoint) as socket:
            for request in (
                {"op": "put", "key": "é\n", "value": 1},
                {"op": "get", "key": "é\n"},
                {"op": "get", "key": "missing"},
                {"op": "count", "prefix": "p"},
                {"op": "ping"},
                {"op": "nonsense"},
            ):
                ask(socket, request)
        server.stop()
    operations = [one for one in records_of(server) if "op" in one]
    assert [(one["op"], one["key"], one["outcome"], one["revision"]) for one in operations] == [
        ("put", "é\n", "ok", 1),
        ("get", "é\n", "ok", 1),
        ("get", "missing", "not_found", 1),
        ("count", "p", "ok", 1),
        ("ping", None, "ok", 1),
        (operations[5]["op"], None, "unknown_op", 1),
    ]
    assert all(one["microseconds"] > 0 for one in operations)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_value_is_ever_logged(tmp_path: Path, log_format: str) -> None:
    deep: Any = SECRET
    for _ in range(40):
        deep = [deep]
    with serving(tmp_path / "data", "--log-level", "debug", "--log-format", log_format) as server:
        with raw_socket(zmq.REQ, server.endpoint) as socket:
            for request in (
                {"op": "put", "key": "k", "value": SECRET},
                {"op": "put", "key": "k", "value": {SECRET: [SECRET, SECRET.encode()]}},
                {"op": "put", "key": "", "value": SECRET},
                {"op": "put", "key": "k", "value": deep},
                {"op": "put", "key": "k", "value": msgpack.ExtType(1, SECRET.encode())},
                {"op": "get", "key": "k"},
                {"op": "incr", "key": "k"},
                {"op": "incr", "key": "k", "by": SECRET},
                {"op": "list", "values": True},
                {"op": "delete", "key": "k"},
                [SECRET],
                msgpack.packb({"op": "put", "key": "k", "value": SECRET}) + b"\xc1",
            ):
                ask(socket, request)
        server.stop()
    log = server.log.read_text()
    assert "put 'k' ok " in log
    assert SECRET[:10] not in log


def test_a_stopped_server_leaves_no_ipc_socket_behind(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(tmp_path / "data", "--listen", f"ipc://{path}") as server:
        assert path.exists()
        server.stop()
    assert not path.exists()
