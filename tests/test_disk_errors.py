"""A disk error is never turned into an acknowledgement.

Every call of the disk is made to fail, once or for good, one after the other, until a whole
run gets by without the failure. What a real process does is sampled with `strace`, and on a
disk that is full.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
import zmq
from awaited import BOTH, Connect
from crash_disk import CrashDisk
from harness import ask, call, raw_socket, serving, wait_until

import zkv
from zkv import values
from zkv.engines import compaction, local, snapshot
from zkv.engines.local import LocalEngine
from zkv.engines.recovery import recover
from zkv.engines.table import Table
from zkv.errors import DiskFailed, Shortage

KINDS: Final = (
    "names", "size", "lines", "read", "free_bytes", "create", "open", "write", "write_at",
    "short_write", "short_write_at", "sync", "rename", "unlink", "sync_folder",
)  # fmt: skip
ERRNOS: Final = (
    errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN,
)  # fmt: skip


class FaultDisk(CrashDisk):
    """Fails the nth call of a kind; with `for_good` all later ones too."""

    def __init__(self, kind: str, nth: int, number: int, for_good: bool) -> None:
        super().__init__()
        self.calls = 0
        self._fault = kind, nth, number, for_good

    def check(self, name: str, args: tuple[Any, ...]) -> None:
        """Called before each call of the disk; raises if it is to fail."""
        kind, nth, number, for_good = self._fault
        if kind.removeprefix("short_") != name:
            return
        self.calls += 1
        if self.calls == nth or (for_good and self.calls > nth):
            if kind.startswith("short_"):
                handle, data, *offset = args
                getattr(super(), name)(handle, data[: len(data) // 2], *offset)
            if kind == "sync":
                self.lose(*args)
            raise OSError(number, os.strerror(number))


def _checked(name: str) -> Callable[..., Any]:
    def method(self: FaultDisk, *args: Any) -> Any:
        self.check(name, args)
        return getattr(CrashDisk, name)(self, *args)

    return method


for _name in {kind.removeprefix("short_") for kind in KINDS}:
    setattr(FaultDisk, _name, _checked(_name))


class Told:
    """What was written, what was acknowledged, and what the disk was like."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, int]] = []  # one a revision
        self.acknowledged = 0
        self.failures: list[Exception] = []
        self.compaction_errors: list[str] = []
        self.disks: list[tuple[CrashDisk, int]] = []

    def write(self, engine: LocalEngine) -> None:
        """Two writes in one batch; raises DiskFailed."""
        pairs = [(f"key:{n % 5}", n) for n in range(len(self.writes), len(self.writes) + 2)]
        self.writes += pairs
        for outcome in engine.execute([call("put", key=key, value=n) for key, n in pairs]):
            assert not isinstance(outcome.result, BaseException)
            self.acknowledged = outcome.revision

    def compact(self, engine: LocalEngine) -> None:
        engine.compact()
        wait_until(lambda: self.failures or not engine.info()["compacting"])
        if error := engine.info()["compaction_error"]:
            self.compaction_errors.append(error)

    def check(self) -> None:
        """Whatever the disk was like: another start finds all, and power may fail after it."""
        for disk, acknowledged in self.disks:
            self.holds(recover(without_power(disk)).table, acknowledged)
            engine = LocalEngine(disk, clock=lambda: 1e6, compactor=compaction.Inline)
            found = self.holds(recover(disk).table, acknowledged)
            self.holds(recover(without_power(disk)).table, found)
            engine.execute([call("delete", key="key:0"), call("put", key="key:0", value=0)])
            assert recover(without_power(disk)).table.revision > found
            engine.close()

    def holds(self, table: Table, floor: int) -> int:
        assert table.revision >= floor
        wanted = dict(self.writes[: table.revision])
        entries = {key: table.get(key) for key in table.keys("", "")}
        assert {key: values.unpack(it.packed) for key, it in entries.items() if it} == wanted
        return table.revision


def without_power(disk: CrashDisk) -> CrashDisk:
    """The folder after a power failure: nothing is there that was not synced."""
    return disk.image(["dropped"] * disk.units(), random.Random(0))


def run(disk: CrashDisk, told: Told) -> None:
    """Two starts with writes, a compaction and a stop; ends when the disk has failed."""
    for _ in range(2):
        engine = LocalEngine(
            disk, clock=lambda: 1e6, on_failure=told.failures.append, compactor=compaction.Inline
        )
        try:
            told.write(engine)
            told.compact(engine)
            told.write(engine)
            told.write(engine)
        except DiskFailed:
            for _ in range(2):
                with pytest.raises(DiskFailed):
                    told.write(engine)
            with pytest.raises(DiskFailed):
                engine.execute([call("ping")])
            raise
        finally:
            told.disks.append((disk.killed(), told.acknowledged))
            with suppress(DiskFailed):
                engine.close()
            told.disks.append((disk.killed(), told.acknowledged))


@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_call_is_never_an_acknowledgement(
    kind: str, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TICK_S", 3600)
    for nth in count(1):
        for for_good in False, True:
            for number in ERRNOS if long else [ERRNOS[(nth + 3 * for_good) % len(ERRNOS)]]:
                disk, told = FaultDisk(kind, nth, number, for_good), Told()
                with suppress(DiskFailed, Shortage):
                    run(disk, told)
                told.check()
        if disk.calls < nth:
            break
    assert nth > 1


@pytest.mark.parametrize("kind", ["create", "lines", "write", "sync", "rename", "unlink"])
def test_a_failed_compaction_is_told_of_and_harms_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TICK_S", 3600)
    told = Told()
    nth = count(1)
    while not told.compaction_errors:
        disk, told = FaultDisk(kind, next(nth), errno.ENOSPC, for_good=False), Told()
        with suppress(DiskFailed):
            run(disk, told)
    (error,) = told.compaction_errors  # the next one came off
    assert os.strerror(errno.ENOSPC) in error
    assert told.acknowledged == len(told.writes) == 12
    assert not told.failures
    told.check()


class SmallDisk(CrashDisk):
    """A disk of 1 MiB."""

    def free_bytes(self) -> tuple[int, int]:
        return 2**20 - sum(len(data) for data in self.files().values()), 2**20


def test_a_compaction_leaves_the_journal_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "TICK_S", 3600)
    monkeypatch.setattr(snapshot, "_WRITE_BYTES", 50_000)
    disk, told, free = SmallDisk(), Told(), list[int]()
    engine = LocalEngine(disk, compactor=compaction.Inline)
    for number in range(10):
        engine.execute([call("put", key=f"key:{number}", value="x" * 50_000)])
        if number == 5:
            told.compact(engine)
    disk.before_change = lambda: free.append(disk.free_bytes()[0])
    told.compact(engine)
    assert told.compaction_errors == [f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"]
    assert 2**20 // 8 <= min(free) < 2**20 // 4
    assert disk.leftovers() == []
    (outcome,) = engine.execute([call("delete", key="key:0")])
    assert outcome.result == {"version": 1}
    engine.close()


def test_what_fails_once_ends_no_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would sync nothing any more, while writes are acknowledged."""
    monkeypatch.setattr(local, "TICK_S", 0.01)
    disk = FaultDisk("free_bytes", 2, errno.EIO, for_good=False)
    engine = LocalEngine(disk, fsync="interval", compactor=compaction.Inline)
    wait_until(lambda: disk.calls > 2)
    engine.execute([call("put", key="k", value=1)])
    wait_until(lambda: recover(without_power(disk)).table.revision == 1)
    engine.close()


@contextmanager
def failing(process: subprocess.Popen[str], inject: str) -> Iterator[None]:
    """Has system calls of a running process fail."""
    if shutil.which("strace") is None:
        pytest.skip("needs the Debian package strace")
    command = ["strace", "-f", "-o", os.devnull, "-p", str(process.pid), "-e", inject]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        try:
            said = strace.stderr.readline()
            if "attached" not in said:
                pytest.skip(f"ptrace is refused: {said}")
            yield
        finally:
            strace.terminate()
            strace.communicate()


@pytest.mark.parametrize(
    "inject",
    [
        "inject=fdatasync:error=EIO:when=3",
        "inject=fdatasync:error=ENOSPC:when=7",
        "inject=pwrite64:error=EIO:when=5",
        "inject=pwrite64:error=ENOSPC:when=1+",
    ],
)
def test_a_server_whose_disk_fails_exits_and_has_lost_nothing(inject: str, tmp_path: Path) -> None:
    data, acknowledged, number = tmp_path / "data", dict[str, int](), 0
    with serving(data) as server, zkv.Client(server.endpoint, timeout_s=1) as store:
        with failing(server.process, inject):
            while server.process.poll() is None:
                number += 1
                with suppress(zkv.Timeout, zkv.CannotConnect):
                    acknowledged[f"key:{number}"] = store.put(f"key:{number}", number)
        server.process.communicate()
        assert server.process.returncode == DiskFailed.exit_code
        assert "cannot be written" in server.log.read_text()
    with zkv.open(data) as store:
        assert acknowledged.items() <= {it.key: it.version for it in store.items()}.items()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "zkv-test", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root, to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(store: zkv.Store, prefix: str) -> dict[str, int]:
    """Writes until there is no room; the keys that were acknowledged, with their versions."""
    written: dict[str, int] = {}
    with suppress(zkv.NoSpace):
        while True:
            key = f"{prefix}:{len(written)}"
            written[key] = store.put(key, "x" * 50_000)
    return written


@pytest.mark.parametrize(
    "request_of_session",
    [
        {
            "op": "txn",
            "then": [{"op": "get", "key": "large"}, {"op": "put", "key": "small", "value": 1}],
        },
        {"op": "put", "key": "large", "value": "y", "return_old": True},
    ],
    ids=["get", "old"],
)
def test_a_reply_that_is_kept_takes_room_as_well(
    small_disk: Path, request_of_session: dict[str, Any]
) -> None:
    """Else the journal would run into the full disk, and with it even a delete."""
    with serving(small_disk) as server, raw_socket(zmq.REQ, server.endpoint) as socket:
        large = {"op": "put", "key": "large", "value": "x" * 2**20}
        codes = []
        for seq in range(1, 30):
            codes.append(ask(socket, large).get("error"))
            in_session = {**request_of_session, "session": "s", "seq": seq}
            codes.append(ask(socket, in_session).get("error"))
        assert codes[0] is codes[1] is None
        assert set(codes) == {None, "no_space"}
        assert ask(socket, {"op": "delete", "key": "large"})["ok"]


def test_a_value_that_is_much_larger_in_json_takes_as_much_room(small_disk: Path) -> None:
    with serving(small_disk) as server, zkv.Client(server.endpoint) as store:
        with suppress(zkv.NoSpace):
            for number in range(100):
                store.put(f"{number}", "\1" * 2**20)  # in JSON \\u0001
        assert 0 < store.count() < 4
        assert store.put("small", [False] * 1000) > 0
        store.delete("0")


@pytest.mark.parametrize("connect", BOTH.values(), ids=BOTH)
def test_a_new_client_deletes_on_a_full_disk(small_disk: Path, connect: Connect) -> None:
    """The request that opens its session has a reply to keep, too."""
    with serving(small_disk) as server:
        with zkv.Client(server.endpoint) as store:
            fill(store, "first")
            small = fill_small(store)
        for remove in (
            lambda store: store.delete("first:0"),
            lambda store: store.delete_many(small[:1000]),
            lambda store: store.pop("first:1"),
        ):
            with connect(server.endpoint) as store:
                remove(store)


@pytest.mark.parametrize("connect", BOTH.values(), ids=BOTH)
def test_what_a_full_disk_refuses_takes_no_new_session(small_disk: Path, connect: Connect) -> None:
    with serving(small_disk) as server, connect(server.endpoint) as store:
        fill(store, "first")
        before = store.info()
        for _ in range(20):
            with pytest.raises(zkv.NoSpace):
                store.put("more", "x" * 2**20)
        after = store.info()
        assert after["sessions"] == before["sessions"] == 1
        assert after["revision"] == before["revision"]


def fill_small(store: zkv.Store) -> list[str]:
    """Writes small values, too, until there is no room."""
    keys = [f"small:{n}" for n in range(100_000)]
    with suppress(zkv.NoSpace):
        for at in range(0, len(keys), 1000):
            store.put_many(dict.fromkeys(keys[at : at + 1000], "x" * 50))
    with suppress(zkv.NoSpace):
        for number in range(10_000):
            store.put(f"last:{number}", "x")
    return list(store.keys("small"))


def test_a_full_disk_refuses_writes_until_there_is_room(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(6 * 2**20))
    with serving(small_disk) as server, zkv.Client(server.endpoint) as store:
        written = fill(store, "first")
        assert len(store.get("first:0")) == 50_000
        for number in range(3):
            store.delete(f"first:{number}")
            del written[f"first:{number}"]
        filler.unlink()
        written["small"] = store.put("small", "x")
        written |= fill(store, "second")
        server.kill()
    for stop in (False, True):  # a start after kill -9, and one after a clean stop
        with serving(small_disk) as server, zkv.Client(server.endpoint) as store:
            assert {it.key: it.version for it in store.items()} == written
            fill(store, "third")
            store.clear("third")
            if stop:
                server.stop()
