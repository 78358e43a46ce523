"""Every file operation of an engine goes through one `Disk`: tests put a failing one here.

A disk is one folder. Files are named by their bare names; a handle is a file descriptor.
Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from zkv.engines import lock
from zkv.engines.lock import FolderLock
from zkv.errors import FolderUnusable, Shortage, StartError

SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""What says nothing of the disk: others hold too many files, or too much memory."""


class Disk:
    """The data folder. Raises OSError for whatever the operating system refuses."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def make(self) -> None:
        """Makes the folder, and makes that durable. Raises FolderUnusable, or Shortage."""
        try:
            make_folder(self.folder, exist_ok=True)
            os.listdir(self.folder)
        except OSError as error:
            raise self._unusable(error) from None

    def lock(self, *, make: bool = True) -> FolderLock:
        """Takes the folder for this process; raises FolderInUse, FolderUnusable, or Shortage.

        Unless it is to be made, nothing is written, and a folder without a lock counts as unused.
        """
        try:
            return lock.take(self.folder, make=make)
        except OSError as error:
            raise self._unusable(error) from None

    def has_name(self, handle: int) -> bool:
        """Whether a file that is open has not been removed."""
        return os.fstat(handle).st_nlink > 0

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        return sorted(os.listdir(self.folder))

    def data_files(self, prefix: str) -> list[str]:
        """The names of the data files of a kind, in the order of their revisions."""
        return [n for n in self.names() if n.startswith(prefix) and n.endswith(".jsonl")]

    def leftovers(self) -> list[str]:
        """The names of files that were never finished."""
        return [n for n in self.names() if n.endswith(".jsonl.tmp")]

    def size(self, name: str) -> int:
        """Bytes in a file."""
        return os.stat(self._path(name)).st_size

    def modified(self, name: str) -> int:
        """When a file was last written to, in nanoseconds since 1970."""
        return os.stat(self._path(name)).st_mtime_ns

    def lines(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """The lines of a file from a byte offset on, each with its newline if it has one."""
        file: IO[bytes]
        with open(self._path(name), "rb", buffering=2**20) as file:
            file.seek(offset)
            yield from file

    def read(self, name: str, offset: int, bytes_max: int) -> bytes:
        """Up to so many bytes of a file, fewer only at its end."""
        with open(self._path(name), "rb", buffering=0) as file:
            return os.pread(file.fileno(), bytes_max, offset)

    def free_bytes(self) -> tuple[int, int]:
        """What may still be written to the file system of the folder, and its size."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def create(self, name: str) -> int:
        """A handle for a new file, for `write` or for `write_at`; the name must be free."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(self._path(name), flags, 0o600)

    def open(self, name: str) -> int:
        """A handle for `write_at`; the file is made if it is missing."""
        return os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write_at(self, handle: int, data: bytes, offset: int) -> None:
        """Puts all of the data in its place, or raises."""
        while data:
            written = os.pwrite(handle, data, offset)
            data, offset = data[written:], offset + written

    def write(self, handle: int, data: bytes) -> None:
        """Appends all of the data, or raises."""
        while data:
            data = data[os.write(handle, data) :]

    def sync(self, handle: int) -> None:
        """Returns when what was written is on disk, with the length of the file."""
        os.fdatasync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def rename(self, old: str, new: str) -> None:
        """Renames; durable after `sync_folder`."""
        os.replace(self._path(old), self._path(new))

    def unlink(self, name: str) -> None:
        """Removes a file; durable after `sync_folder`."""
        os.unlink(self._path(name))

    def sync_folder(self) -> None:
        """Returns when all creations, renames and removals so far are on disk."""
        _sync_folder(self.folder)

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _unusable(self, error: OSError) -> StartError:
        kind = Shortage if error.errno in SHORTAGES else FolderUnusable
        return kind(f"the data folder {self.folder} cannot be used: {error.strerror}")


def make_folder(folder: Path, *, exist_ok: bool) -> None:
    """Makes a folder and those above it, each for its owner alone, and makes them durable."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if exist_ok:
            return
        raise
    except FileNotFoundError:
        make_folder(folder.absolute().parent, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=exist_ok)
    _sync_folder(folder.absolute().parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
