"""The time by which keys expire: nobody can set it, and a machine that sleeps does not stop it.

The wall clock is asked once, at the start, for how long the store was down. When it is set
meanwhile, this clock goes on as before; how far it is `ahead` then is kept (see `watermark`), so
that the next start goes on from there too.
"""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # of Linux: sleep counts


class Clock:
    """Called, it gives the seconds since 1970, if the wall clock was never set."""

    def __init__(self, ahead: float = 0.0) -> None:
        """It starts so many seconds ahead of the wall clock."""
        self._offset = time.time() + ahead - time.clock_gettime(_CLOCK)

    def __call__(self) -> float:
        return self._offset + time.clock_gettime(_CLOCK)

    def ahead(self) -> float:
        """How many seconds it is ahead of the wall clock."""
        return self() - time.time()
