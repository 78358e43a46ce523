"""How far the store certainly is on disk: a lower bound, kept apart from the data itself.

Without it a file that was cut at the end of a line would look like a shorter history.
(Alagappan et al., FAST'18.) The file `watermark` has two lines of 512 bytes, written in
turn, so that one is whole whatever happens to the other; the higher one counts:

    {"watermark":1043,"store":"…","crc":"…"}                                      …

A line is written only after the revision has been synced, so it may lag but never lead. When
the wall clock was set while the store was open, it also has `ahead`, see `clock`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from zkv.engines import line
from zkv.engines.disk import Disk

NAME: Final = "watermark"
_SLOT_BYTES: Final = 512


class Mark(NamedTuple):
    """What the file says."""

    store: str
    revision: int
    ahead: float = 0.0
    """How many seconds the clock of the store was ahead of the wall clock."""


def read(disk: Disk) -> Mark | None:
    """The higher line of the file, or None if there is none."""
    if NAME not in disk.names():
        return None
    data = disk.read(NAME, 0, 2 * _SLOT_BYTES)
    marks = [_read_slot(data[:_SLOT_BYTES]), _read_slot(data[_SLOT_BYTES:])]
    return max((mark for mark in marks if mark), key=lambda mark: mark.revision, default=None)


class Watermark:
    """The file, open to be moved up."""

    def __init__(self, disk: Disk, store: str, revision: int, ahead: float = 0.0) -> None:
        self.ahead = ahead
        self._disk = disk
        self._store = store
        self._seed = line.seed_of(store)
        self._slot = 0
        self._unsynced = True
        self._handle = disk.open(NAME)
        try:
            for _ in range(2):
                self.advance(revision)
            self.sync()
            disk.sync_folder()
        except BaseException:
            self.close()
            raise

    def advance(self, revision: int) -> None:
        """Says that everything up to this revision has been synced."""
        fields: dict[str, Any] = {"watermark": revision, "store": self._store}
        if self.ahead:
            fields["ahead"] = self.ahead
        slot = line.seal(fields, self._seed)[:-1].ljust(_SLOT_BYTES - 1) + b"\n"
        self._disk.write_at(self._handle, slot, self._slot * _SLOT_BYTES)
        self._slot ^= 1
        self._unsynced = True

    def sync(self) -> None:
        """Returns when the last line written is on disk itself."""
        if self._unsynced:
            self._disk.sync(self._handle)
            self._unsynced = False

    def close(self) -> None:
        self._disk.close(self._handle)


def _read_slot(slot: bytes) -> Mark | None:
    try:
        text = slot.rstrip(b" \n") + b"\n"
        store = line.peek(text)["store"]
        fields = line.unseal(text, line.seed_of(store))
        return Mark(store, fields["watermark"], fields.get("ahead", 0.0))
    except (ValueError, KeyError):
        return None
