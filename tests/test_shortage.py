"""A shortage of files, memory, processes or threads ends nothing: whoever needed them is told so,
and the rest goes on; when it is over, so does what could not be done.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import zmq
from crash_disk import CrashDisk
from harness import EXIT_S, ask, call, compact, raw_socket, serving, wait_until
from test_crash_simulation import SHORTAGES, ShortDisk
from test_disk_errors import FaultDisk, without_power
from test_engines import run

import zkv
from zkv.engines import compaction, journal, local
from zkv.engines.disk import Disk
from zkv.engines.journal import Journal
from zkv.engines.local import LocalEngine
from zkv.engines.recovery import recover
from zkv.errors import DiskFailed, Shortage, StartError, Unavailable
from zkv.service import Service

NUMBERS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


@pytest.fixture(autouse=True)
def _only_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "TICK_S", 3600)


@pytest.fixture
def failures() -> Iterator[list[Exception]]:
    """What ended an engine, which nothing may."""
    failures: list[Exception] = []
    yield failures
    assert failures == []


def put(engine: LocalEngine, key: str) -> int:
    (outcome,) = engine.execute([call("put", key=key, value=1)])
    assert not isinstance(outcome.result, BaseException), outcome.result
    return outcome.revision


def keys_in(disk: CrashDisk) -> list[str]:
    return list(recover(disk).table.keys("", ""))


class LackingDisk(FaultDisk):
    """Fails all calls of one name with one error, but for those of a few files."""

    def __init__(self) -> None:
        super().__init__("", 0, 0, False)
        self.enough()

    def lack(self, name: str, number: int, *spared: int) -> None:
        self._lacking = name, number, spared

    def enough(self) -> None:
        self.lack("", 0)

    def check(self, name: str, args: tuple[Any, ...]) -> None:
        lacking, number, spared = self._lacking
        if name == lacking and args[:1] not in [(handle,) for handle in spared]:
            raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    "name",
    ["names", "lines", "create", "write", "write_at", "sync", "rename", "unlink", "sync_folder"],
)
def test_a_shortage_fails_a_compaction_and_nothing_else(
    name: str, number: int, failures: list[Exception]
) -> None:
    disk = LackingDisk()
    engine = LocalEngine(disk, compactor=compaction.Inline, on_failure=failures.append)
    for again in "abc":
        put(engine, again)
        written = engine._journal._segment.handle, engine._journal._watermark._handle
        disk.lack(name, number, *written)
        compact(engine)
        disk.enough()
        assert os.strerror(number) in engine.info()["compaction_error"]
        put(engine, again * 2)
        assert keys_in(without_power(disk))[-1] == again * 2
    compact(engine)
    assert engine.info()["compaction_error"] is None
    put(engine, "d")
    engine.close()
    assert keys_in(disk) == ["a", "aa", "b", "bb", "c", "cc", "d"]


class Refusing:
    """A compactor for which there is no process."""

    error: BaseException

    def __init__(self, *_: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [*(OSError(number, os.strerror(number)) for number in NUMBERS), MemoryError()],
    ids=repr,
)
def test_a_compaction_without_a_process_is_one_that_failed(
    error: BaseException, failures: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    compactor: Any = type("Refusing", (Refusing,), {"error": error})
    engine = LocalEngine(CrashDisk(), compactor=compactor, on_failure=failures.append)
    put(engine, "a")
    compact(engine)
    assert engine.info()["compaction_error"] == (str(error) or repr(error))
    put(engine, "b")
    monkeypatch.setattr(engine, "_compactor", compaction.Inline)
    compact(engine)
    assert engine.info()["compaction_error"] is None
    engine.close()


def test_a_compaction_whose_end_is_not_learned_of_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of one folder would get into each other's way."""

    def poll(self: compaction.Process) -> None:
        started.append(self._process)
        raise MemoryError

    monkeypatch.setattr(local, "TICK_S", 0.05)
    started: list[subprocess.Popen[str]] = []
    engine = LocalEngine(Disk(tmp_path / "data"))
    put(engine, "a")
    with monkeypatch.context() as patched:
        patched.setattr(compaction.Process, "poll", poll)
        compact(engine)
    assert engine.info()["compaction_error"] == "MemoryError()"
    assert started[0].returncode is not None
    compact(engine)
    assert engine.info()["compaction_error"] is None
    engine.close()


@pytest.mark.parametrize("lacks", SHORTAGES, ids=lambda lacks: "+".join(sorted(lacks)))
def test_revisions_are_not_given_out_beyond_what_was_reserved(
    lacks: frozenset[str], failures: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes are refused before; reads are not; and all goes on when there is a file again."""
    monkeypatch.setattr(journal, "RESERVED", 64)
    disk = ShortDisk()
    now = [1e6]
    engine = LocalEngine(
        disk,
        fsync="never",
        clock=lambda: now[0],
        compactor=compaction.Inline,
        on_failure=failures.append,
    )
    assert run(engine, call("put", key="soon gone", value=1, ttl=9))[0].revision == 1
    disk.lacks = lacks
    for number in range(2, 65):
        assert put(engine, f"key:{number}") == number
    for refused in (call("put", key="x", value=1), call("delete", key="key:2")):
        (outcome,) = engine.execute([refused])
        assert isinstance(outcome.result, Unavailable)
        assert "another file" in str(outcome.result)
    assert run(engine, call("get", key="key:2"))[0].result["version"] == 2
    now[0] += 10
    with pytest.raises(Unavailable):  # rather than tell of what has expired
        engine.execute([call("get", key="soon gone")])
    engine._wake.set()
    disk.lacks = frozenset()
    wait_until(lambda: engine._wake.set() or engine._journal.reserved > 64)
    assert run(engine, call("count"))[0].result == {"count": 63}
    last = put(engine, "more")
    crashed = recover(without_power(disk)).table
    assert crashed.next_revision > last
    assert recover(disk.killed()).table.revision == last
    engine.close()


def test_another_segment_is_there_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is reserved is left when it is tried first, and it is tried again in time."""
    monkeypatch.setattr(journal, "RESERVED", 64)
    disk = ShortDisk()
    engine = LocalEngine(disk, fsync="never", compactor=compaction.Inline)
    disk.lacks = frozenset({"create"})
    for number in range(40):
        put(engine, f"key:{number}")
    assert engine._journal.reserved == 64
    disk.lacks = frozenset()
    for number in range(40, 50):
        put(engine, f"key:{number}")
    assert engine._journal.reserved > 100
    engine.close()


def test_a_write_that_no_memory_was_left_for_goes_with_the_next(
    failures: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been done, so nothing tells of it, or of a later one, before it is on disk."""

    def fail(*_: Any) -> bytes:
        raise MemoryError

    disk = CrashDisk()
    engine = LocalEngine(disk, compactor=compaction.Inline, on_failure=failures.append)
    put(engine, "a")
    with monkeypatch.context() as patched:
        patched.setattr(journal, "record_line", fail)
        for one in (call("put", key="b", value=2), call("get", key="b"), call("count")):
            with pytest.raises(Unavailable, match="MemoryError"):
                engine.execute([one])
        assert run(engine, call("get", key="a"))[0] == ({"value": 1, "version": 1}, 1)
        assert engine.revision == 1
    assert run(engine, call("get", key="b"))[0] == ({"value": 2, "version": 2}, 2)
    assert put(engine, "c") == 3
    assert keys_in(without_power(disk)) == ["a", "b", "c"]
    engine.close()


def test_what_no_memory_was_left_for_is_written_though_nobody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, enough = CrashDisk(), threading.Event()
    engine = LocalEngine(disk, compactor=compaction.Inline)
    line_of = journal.record_line
    monkeypatch.setattr(
        journal, "record_line", lambda *args: line_of(*args) if enough.is_set() else _no_memory()
    )
    with pytest.raises(Unavailable):
        put(engine, "a")
    enough.set()
    engine._wake.set()
    wait_until(lambda: engine.revision == 1)
    assert keys_in(without_power(disk)) == ["a"]
    engine.close()


def _no_memory() -> bytes:
    raise MemoryError


class Broken:
    """Raises at the nth line of the journal that this thread comes to."""

    def __init__(self, nth: int, error: type[BaseException]) -> None:
        self.left, self._error = nth, error

    def __enter__(self) -> Broken:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        inside = code.co_filename == journal.__file__ and code.co_qualname.startswith("Journal._")
        return self._line if inside else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise self._error
        return self._line


@pytest.mark.parametrize("error", [MemoryError, RecursionError, KeyboardInterrupt])
@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_journal_goes_on_wherever_it_was_broken_off(
    fsync: journal.Fsync, error: type[BaseException], failures: list[Exception]
) -> None:
    """Every revision is there once, and what was acknowledged is on disk."""
    for nth in count(1):
        disk = CrashDisk()
        engine = LocalEngine(
            disk, fsync=fsync, compactor=compaction.Inline, on_failure=failures.append
        )
        floor = put(engine, "a")
        steps: list[Callable[[], Any]] = [
            partial(put, engine, "b"),
            engine._journal.rotate,
            partial(put, engine, "c"),
            engine._journal.tick,
            engine._journal.rotate,
        ]
        with Broken(nth, error) as broken:
            for step in steps:
                try:
                    done = step()
                    floor = done if type(done) is int else floor
                except (Unavailable, error):
                    recover(disk.killed())
                    if fsync == "always":
                        assert recover(without_power(disk)).table.revision >= floor
        floor = put(engine, "d")
        engine._journal.rotate()
        assert recover(without_power(disk)).table.revision >= floor
        assert recover(disk).obsolete == []
        assert keys_in(disk.killed()) == ["a", "b", "c", "d"]
        engine.close()
        assert keys_in(without_power(disk)) == ["a", "b", "c", "d"]
        if broken.left > 0:
            break
    assert nth > 50


@pytest.mark.parametrize("step", ["_expire", "_measure", "_tend_compaction", "_rest"])
@pytest.mark.parametrize("error", [MemoryError, OSError, SystemExit, KeyboardInterrupt])
def test_the_keeper_ends_for_nothing_but_a_failed_disk(
    step: str,
    error: type[BaseException],
    failures: list[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Any) -> None:
        failed.set()
        raise error

    failed = threading.Event()
    monkeypatch.setattr(local, "TICK_S", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, step, fail)
        engine = LocalEngine(CrashDisk(), compactor=compaction.Inline, on_failure=failures.append)
        assert failed.wait(EXIT_S)
    put(engine, "a")
    compact(engine)
    assert engine.info()["snapshot_revision"] == 1
    engine.close()


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_a_snapshot_that_cannot_be_opened_is_unavailable(number: int) -> None:
    disk = LackingDisk()
    engine = LocalEngine(disk, compactor=compaction.Inline)
    put(engine, "a")
    compact(engine)
    whole, size = engine.read_snapshot(1, 0, 1000)
    assert len(whole) == size
    disk.lack("read", number)
    with pytest.raises(Unavailable, match=os.strerror(number)):
        engine.read_snapshot(1, 0, 1000)
    disk.enough()
    assert engine.read_snapshot(1, 0, 1000) == (whole, size)
    engine.close()


def test_a_reply_that_no_memory_is_left_for_is_one_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not an exception, which would end the server."""
    engine = LocalEngine(CrashDisk(), compactor=compaction.Inline)
    service = Service(engine, "1.2.3")
    with monkeypatch.context() as patched:
        patched.setattr("zkv.protocol.encode_reply", lambda *_: _no_memory())
        (reply,) = service.handle([zkv.protocol.encode_request("ping", {})])  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="memory"):
        zkv.protocol.decode_reply(reply)  # type: ignore[attr-defined]
    engine.close()


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["names", "create", "open", "sync_folder"])
def test_a_start_without_files_is_told_from_a_failed_disk(name: str, number: int) -> None:
    disk = LackingDisk()
    disk.lack(name, number)
    with pytest.raises(Shortage, match=os.strerror(number)):
        LocalEngine(disk, compactor=compaction.Inline)
    disk.enough()
    engine = LocalEngine(disk, compactor=compaction.Inline)
    put(engine, "a")
    engine.close()


def test_a_start_that_fails_keeps_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def fail_to_start(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    zkv.open(tmp_path / "data").close()
    before = os.listdir("/proc/self/fd")
    for owner, name, instead in (
        (Disk, "create", fail),
        (Disk, "open", fail),
        (Disk, "sync_folder", fail),
        (Journal, "_create_segment", fail),
        (threading.Thread, "start", fail_to_start),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, instead)
            with pytest.raises(StartError) as raised:
                zkv.open(tmp_path / "data")
        assert type(raised.value) is Shortage
        del raised
        assert os.listdir("/proc/self/fd") == before
    zkv.open(tmp_path / "data").close()


def set_files(pid: int, most: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, hard))


@pytest.mark.parametrize("fsync", ["always", "never"])
def test_a_server_without_files_lives(tmp_path: Path, fsync: str) -> None:
    with serving(tmp_path / "data", "--fsync", fsync) as server:
        with raw_socket(zmq.REQ, server.endpoint) as socket:

            def compacted() -> str | None:
                assert ask(socket, {"op": "compact"})["ok"]
                wait_until(lambda: not ask(socket, {"op": "info"})["compacting"])
                error: str | None = ask(socket, {"op": "info"})["compaction_error"]
                return error

            for number in range(100):
                assert ask(socket, {"op": "put", "key": f"k{number}", "value": number})["ok"]
            assert compacted() is None
            ask(socket, {"op": "put", "key": "last", "value": 1})
            opened = os.listdir(f"/proc/{server.process.pid}/fd")
            free = next(number for number in count() if str(number) not in opened)
            # None for the segment; none to sync its folder; too few for the pipes of a process.
            for spare in (0, 1, 2, 5):
                set_files(server.process.pid, free + spare)
                error = compacted()
                assert error is not None
                assert os.strerror(errno.EMFILE) in error
                assert ask(socket, {"op": "put", "key": "k0", "value": spare})["ok"]
            set_files(server.process.pid, free)
            revision = ask(socket, {"op": "info"})["snapshot_revision"]
            part = {"op": "read_snapshot", "revision": revision, "offset": 0}
            refused = ask(socket, part)
            assert refused["error"] == "unavailable"
            assert os.strerror(errno.EMFILE) in refused["message"]
            set_files(server.process.pid, 1024)
            assert ask(socket, part)["bytes"] > 0
            assert compacted() is None
            assert ask(socket, {"op": "get", "key": "k0"})["value"] == 5
        server.stop()
    with zkv.open(tmp_path / "data") as store:
        assert store.count() == 101


def test_a_start_without_files_is_exit_71(tmp_path: Path) -> None:
    zkv.open(tmp_path / "data").close()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6))

    done = subprocess.run(
        [sys.executable, "-m", "zkv", "--data", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=EXIT_S,
        preexec_fn=limit,
    )
    assert done.returncode == 71, done.stderr
    assert done.stderr.endswith(f"{os.strerror(errno.EMFILE)}\n") or "[Errno 24]" in done.stderr
    assert "Traceback" not in done.stderr
    with zkv.open(tmp_path / "data") as store:
        assert store.count() == 0


DEFECTIVE = """\
import zkv.__main__, zkv.engines.journal as journal
def record_line(*_):
    raise TypeError("a defect")
journal.record_line = record_line
zkv.__main__.main()
"""


def test_a_journal_that_cannot_go_on_by_a_defect_is_exit_70(tmp_path: Path) -> None:
    """No disk is to blame."""
    command = [sys.executable, "-c", DEFECTIVE, "--data", str(tmp_path / "data")]
    command += ["--listen", "tcp://127.0.0.1:*"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            endpoint = server.stdout.readline().split()[3].decode()
            with pytest.raises(zkv.Error), zkv.Client(endpoint, timeout_s=1) as store:
                store.put("a", 1)
            assert server.wait(EXIT_S) == 70
        finally:
            server.kill()
    with pytest.raises(DiskFailed):
        raise DiskFailed("is what an embedded store says")
