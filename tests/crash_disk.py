"""A data folder in memory that can lose power: what is not synced is kept apart.

At a crash each 512-byte sector of each write since a file's last sync is by itself kept,
dropped, zeroed or garbled, and the file's new length is kept or not; each creation, rename
and removal since the folder's last sync is by itself kept or dropped. (The method of
SQLite's crash tests.) What was synced stays, also beside new bytes in the same sector:
disks write a sector whole or not at all.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from zkv.engines.disk import Disk
from zkv.engines.lock import FolderLock

Fate = Literal["kept", "dropped", "zeroed", "garbled"]
FATES: Final[tuple[Fate, ...]] = ("kept", "dropped", "zeroed", "garbled")
_SECTOR_BYTES: Final = 512


class Write(NamedTuple):
    """A part of a file, within one sector, that was written and not synced."""

    offset: int
    data: bytes


class Unlocked(FolderLock):
    """Of a folder that no other process sees."""

    def __init__(self) -> None:
        super().__init__(Path("/"), [], b"")

    def is_lost(self) -> bool:
        return False


class File:
    """What a process reads, what the disk holds, and what may come to it."""

    def __init__(self, data: bytes) -> None:
        self.content = data
        self.durable = data
        self.pending: list[Write] = []

    def write(self, data: bytes, offset: int) -> None:
        self.content = _put(self.content, data, offset)
        while data:
            size = _SECTOR_BYTES - offset % _SECTOR_BYTES
            self.pending.append(Write(offset, data[:size]))
            data, offset = data[size:], offset + size

    def sync(self) -> None:
        for one in self.pending:
            self.durable = _put(self.durable, one.data, one.offset)
        self.pending = []

    def copy(self) -> File:
        other = File(self.content)
        other.durable, other.pending = self.durable, self.pending[:]
        return other

    def after_crash(self, fates: Iterator[Fate], rng: random.Random) -> bytes:
        """What is left; it takes a fate for each pending write, and one for the length."""
        data = self.durable
        for (offset, written), fate in zip(self.pending, fates, strict=False):
            if fate != "dropped":
                data = _put(data, _damaged(written, fate, rng), offset)
        if self.pending and next(fates) == "kept":
            data = data.ljust(len(self.content), b"\0")
        return data


class Move(NamedTuple):
    """A file that got or lost a name: all of a creation, a removal, or a rename."""

    file: File
    old: str | None = None
    new: str | None = None

    def apply(self, names: dict[str, File]) -> None:
        if self.old is not None and names.get(self.old) is self.file:
            del names[self.old]
        if self.new is not None:
            names[self.new] = self.file


class CrashDisk(Disk):
    """A `Disk` of these files, which are durable. `before_change` is called before a change."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        super().__init__("crash-disk")
        self.before_change: Callable[[], None] = lambda: None
        self._names = {name: File(data) for name, data in (files or {}).items()}
        self._durable = dict(self._names)
        self._moves: list[Move] = []
        self._handles: dict[int, File] = {}
        self._numbers = itertools.count(1000)

    # What a crash leaves.

    def files(self) -> dict[str, bytes]:
        """What a process reads."""
        return {name: file.content for name, file in self._names.items()}

    def save(self, folder: Path) -> None:
        """Makes a real folder of it."""
        folder.mkdir()
        for name, data in self.files().items():
            (folder / name).write_bytes(data)

    def killed(self) -> CrashDisk:
        """The folder after kill -9: all is there for the next process, synced or not."""
        copies = {file: file.copy() for file in self._all_files()}
        other = CrashDisk()
        other._names = {name: copies[file] for name, file in self._names.items()}
        other._durable = {name: copies[file] for name, file in self._durable.items()}
        other._moves = [move._replace(file=copies[move.file]) for move in self._moves]
        return other

    def units(self) -> int:
        """How many fates an image takes."""
        return len(self._moves) + sum(len(f.pending) + 1 for f in self._all_files() if f.pending)

    def image(self, fates: Sequence[Fate], rng: random.Random) -> CrashDisk:
        """The folder after a power failure in which each pending unit had this fate."""
        each = iter(fates)
        names = dict(self._durable)
        for move, fate in zip(self._moves, each, strict=False):
            if fate == "kept":
                move.apply(names)
        left = {file: file.after_crash(each, rng) for file in self._all_files()}
        return CrashDisk({name: left[file] for name, file in names.items()})

    def images(self, rng: random.Random, exhaustive: int, more: int) -> Iterator[CrashDisk]:
        """All images of kept and dropped if there are so few units, and some at random."""
        units = self.units()
        if units <= exhaustive:
            for fates in itertools.product(FATES[:2], repeat=units):
                yield self.image(fates, rng)
        for _ in range(more if units else 0):
            weights = rng.choice(((8, 1, 1, 1), (1, 1, 1, 1), (4, 4, 0, 0), (1, 8, 1, 1)))
            yield self.image(rng.choices(FATES, weights, k=units), rng)

    # What an engine does.

    def make(self) -> None:
        pass

    def lock(self, *, make: bool = True) -> FolderLock:
        return Unlocked()

    def has_name(self, handle: int) -> bool:
        return True

    def names(self) -> list[str]:
        return sorted(self._names)

    def size(self, name: str) -> int:
        return len(self._found(name).content)

    def lines(self, name: str, offset: int = 0) -> Iterator[bytes]:
        yield from io.BytesIO(self._found(name).content[offset:])

    def read(self, name: str, offset: int, bytes_max: int) -> bytes:
        return self._found(name).content[offset : offset + bytes_max]

    def free_bytes(self) -> tuple[int, int]:
        return 2**40, 2**40

    def create(self, name: str) -> int:
        if name in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self._move(Move(File(b""), new=name))
        return self._handle(name)

    def open(self, name: str) -> int:
        if name not in self._names:
            self._move(Move(File(b""), new=name))
        return self._handle(name)

    def write(self, handle: int, data: bytes) -> None:
        self.before_change()
        file = self._handles[handle]
        file.write(data, len(file.content))

    def write_at(self, handle: int, data: bytes, offset: int) -> None:
        self.before_change()
        self._handles[handle].write(data, offset)

    def sync(self, handle: int) -> None:
        self.before_change()
        self._handles[handle].sync()

    def lose(self, handle: int) -> None:
        """What a failed sync does: pages are shown, but count as written, and never will be."""
        self._handles[handle].pending = []

    def close(self, handle: int) -> None:
        del self._handles[handle]

    def rename(self, old: str, new: str) -> None:
        self._move(Move(self._found(old), old=old, new=new))

    def unlink(self, name: str) -> None:
        self._move(Move(self._found(name), old=name))

    def sync_folder(self) -> None:
        self.before_change()
        self._durable = dict(self._names)
        self._moves = []

    def _handle(self, name: str) -> int:
        handle = next(self._numbers)
        self._handles[handle] = self._names[name]
        return handle

    def _found(self, name: str) -> File:
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self._names[name]

    def _move(self, move: Move) -> None:
        self.before_change()
        move.apply(self._names)
        self._moves.append(move)

    def _all_files(self) -> dict[File, None]:
        """Every file that has a name, or may have one after a crash."""
        named = [*self._durable.values(), *self._names.values()]
        return dict.fromkeys(named + [move.file for move in self._moves])


def _put(data: bytes, written: bytes, offset: int) -> bytes:
    return data[:offset].ljust(offset, b"\0") + written + data[offset + len(written) :]


def _damaged(written: bytes, fate: Fate, rng: random.Random) -> bytes:
    if fate == "zeroed":
        return bytes(len(written))
    return rng.randbytes(len(written)) if fate == "garbled" else written
