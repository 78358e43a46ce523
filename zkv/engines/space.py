"""Whether the disk has room for a write, known before anything is done.

A journal that runs into a full disk can acknowledge nothing any more, not even a delete.
So puts are refused while there is still a reserve, which deletes and a clean stop use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zkv.engines.disk import Disk
from zkv.errors import NoSpace

RESERVE_BYTES_MAX: Final = 32 * 2**20
"""Kept free, or an eighth of the file system if that is less."""

_STEP_BYTES: Final = 16 * 2**20


def room(disk: Disk) -> int:
    """Bytes that may be written beside the reserve."""
    free, total = disk.free_bytes()
    return free - min(RESERVE_BYTES_MAX, total // 8)


class Space:
    """Counts what is written, and measures anew every few megabytes and at each `measure`.

    `journal_bytes` tells what may have to be written once more, at a start or a stop: there
    must be room for that too.
    """

    def __init__(self, disk: Disk, journal_bytes: Callable[[], int]) -> None:
        self._disk = disk
        self._journal_bytes = journal_bytes
        self.measure()

    def measure(self) -> None:
        """Looks how much is free: others write to the disk too."""
        self._free = (room(self._disk) - self._journal_bytes()) // 2
        self._left = min(self._free, _STEP_BYTES)

    def take(self, at_most: int, exactly: Callable[[], int]) -> None:
        """Counts so many bytes as written; raises NoSpace when they must not be.

        How many they are is asked only where `at_most` is too much.
        """
        self._left -= at_most
        if self._left < 0:  # it may be time to look again
            self.measure()
            size = at_most if at_most <= self._free else exactly()
            self._left -= size
            if self._free < size:
                raise NoSpace(
                    "the disk is too full for this write; reads and deletes still work",
                    size=size,
                    limit=max(0, self._free),
                )
