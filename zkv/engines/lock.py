"""Whose a data folder is: one process at a time has it, and sees when it is taken away.

Both the folder and the file `LOCK` in it are locked with flock(2), so neither a LOCK that was
removed nor a folder that was replaced lets a second one in. A lock does not reach through some
mounts; so LOCK also says which process has the folder, and since when that one runs.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from zkv.errors import FolderInUse

NAME: Final = "LOCK"


class FolderLock:
    """A folder that is this process's. Close it; a fork that does so takes nothing away."""

    def __init__(self, folder: Path, handles: list[int], owner: bytes) -> None:
        self._path = folder / NAME
        self._handles = handles
        self._owner = owner
        self._pid = os.getpid()

    def is_lost(self) -> bool:
        """Whether the folder was removed or moved, or another process has come to have it."""
        try:
            return self._path.read_bytes() != self._owner
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # a shortage of files, for instance, which says nothing
            return False

    def close(self) -> None:
        """Frees the folder, also if a fork has it open; a second call does nothing."""
        ours = self._pid == os.getpid()
        if self._handles and self._owner and ours:
            with suppress(OSError):
                os.ftruncate(self._handles[-1], 0)
        while self._handles:
            handle = self._handles.pop()
            if ours:
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take(folder: Path, *, make: bool = True) -> FolderLock:
    """Locks a folder; raises FolderInUse, or OSError.

    LOCK is never unlinked: two processes could then each hold a lock on one. Unless it is to
    be made, nothing is written, and a folder without one counts as unused.
    """
    handles: list[int] = []
    try:
        handles.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        with suppress(OSError):  # some file systems lock no folders
            _lock(handles[0], folder)
        if make or NAME in os.listdir(folder):
            flags = os.O_RDWR | os.O_CREAT if make else os.O_RDONLY
            handles.append(os.open(folder / NAME, flags | os.O_CLOEXEC, 0o600))
            _lock(handles[1], folder)
            owner = os.pread(handles[1], _OWNER_BYTES_MAX, 0)
            if owner != _owner() and _runs(owner):
                raise _in_use(folder, owner)
        if make:
            owner = _owner()
            os.ftruncate(handles[1], 0)
            os.pwrite(handles[1], owner, 0)
            return FolderLock(folder, handles, owner)
        return FolderLock(folder, handles, b"")
    except BaseException:
        for handle in handles:
            os.close(handle)
        raise


_OWNER_BYTES_MAX: Final = 200


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = b""
        with suppress(OSError):
            owner = (folder / NAME).read_bytes()
        raise _in_use(folder, owner) from None


def _in_use(folder: Path, owner: bytes) -> FolderInUse:
    if owner == _owner():
        return FolderInUse(f"this process has the data folder {folder} open already")
    who = f"process {int(owner.split()[0])}" if _runs(owner) else "another process"
    return FolderInUse(f"the data folder {folder} is in use by {who}")


def _owner() -> bytes:
    """This process, as LOCK has it."""
    return b"%d %s\n" % (os.getpid(), _started(os.getpid()))


def _runs(owner: bytes) -> bool:
    """Whether the process that LOCK names still runs on this machine."""
    pid, _, started = owner.rstrip().partition(b" ")
    return bool(started) and pid.isdigit() and _started(int(pid)) == started


def _started(pid: int) -> bytes:
    """What tells a process from others of its number: when it started, in which boot. Empty if
    that is not known, or if there is no such process.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return boot + b":" + fields[19]  # field 22, "starttime": proc(5)
    except (OSError, IndexError):
        return b""
