"""Places for requests that are under way. Who finds none waits in line, first come, first served.

An asyncio.Semaphore, for a sixth of its price while there are places. No socket may live here.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Places:
    """So many; for the tasks of one event loop."""

    def __init__(self, free: int) -> None:
        self._free = free  # below 0 where some were taken that there were not
        self._line: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Takes a place, if there is one."""
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    def take_in_advance(self) -> None:
        """Takes the next place that is given back, before anyone in line."""
        self._free -= 1

    async def wait(self) -> None:
        """Returns when there is a place, and it is taken."""
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came at the same moment
                self.give_back()
            raise

    def give_back(self) -> None:
        self._free += 1
        while self._free > 0 and self._line:
            turn = self._line.popleft()
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
