"""Whose a data folder is: one process has it, and notices when it has it no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import EXIT_S, ServerProcess, serving, wait_until

import zkv
from zkv.engines.journal import LOOK_S
from zkv.errors import FolderInUse


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def refused(data: Path) -> str:
    """What a second server says."""
    command = [sys.executable, "-m", "zkv", "--data", str(data), "--listen", "tcp://127.0.0.1:*"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=EXIT_S, check=False)
    assert done.returncode == 75
    return done.stderr


def test_a_folder_that_is_open_here_already_is_refused_in_those_words(data: Path) -> None:
    with (
        zkv.open(data),
        pytest.raises(FolderInUse, match="this process has the data folder"),
        zkv.open(data),
    ):
        pass


def test_a_folder_in_use_names_the_process_that_has_it(data: Path) -> None:
    with serving(data) as server:
        assert f"in use by process {server.process.pid}\n" in refused(data)


def test_a_lock_file_that_is_removed_lets_no_second_server_in(data: Path) -> None:
    with serving(data) as server:
        (data / "LOCK").unlink()
        assert "in use by " in refused(data)
        assert server.process.poll() in (None, 74)


def test_a_lock_that_does_not_reach_a_second_server_stops_it_all_the_same(data: Path) -> None:
    """As through a mount that keeps its locks to itself: the files are others."""
    with serving(data) as server:
        copy = data.with_name("copy")
        shutil.copytree(data, copy)
        assert f"in use by process {server.process.pid}\n" in refused(copy)


def assert_fails(server: ServerProcess) -> None:
    server.process.communicate(timeout=EXIT_S)
    assert server.process.returncode == 74
    assert "removed or replaced" in server.log.read_text()


@pytest.mark.parametrize("fsync", ["always", "never"])
def test_a_folder_that_is_removed_or_moved_is_a_failed_disk(data: Path, fsync: str) -> None:
    """Which is noticed soon: by a write that is synced sooner."""
    with serving(data, "--fsync", fsync) as server:
        data.rename(f"{data}-moved")
        assert_fails(server)
    with serving(data, "--fsync", fsync) as server:
        with zkv.Client(server.endpoint, timeout_s=5) as store:
            store.put("k", 1)
            shutil.rmtree(data)
            time.sleep(2 * LOOK_S)
            if fsync == "always":
                with pytest.raises(zkv.Error):
                    store.put("k", "lost")
        assert_fails(server)


def test_a_folder_that_another_has_taken_is_a_failed_disk(data: Path) -> None:
    with serving(data) as server:
        (data / "LOCK").write_text("1 another\n")
        assert_fails(server)


def test_a_store_that_is_closed_is_free_though_a_fork_has_it_open(data: Path) -> None:
    store = zkv.open(data)
    store.put("k", 1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)  # until the parent closes its end
        os._exit(0)
    os.close(read)
    try:
        store.close()
        with zkv.open(data) as again:
            assert again.get("k") == 1
    finally:
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0


def test_a_lock_of_a_process_that_is_gone_is_taken_over(data: Path) -> None:
    with serving(data) as server:
        server.kill()
    with serving(data) as again:
        wait_until(lambda: (data / "LOCK").read_text().startswith(f"{again.process.pid} "))
