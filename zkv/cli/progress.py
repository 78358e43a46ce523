"""How far a long command has come, on stderr when that is a terminal."""

from __future__ import annotations

import sys
import time
from typing import Final

from zkv.cli.output import keys_text

WIDTH: Final = 30
DRAW_EVERY_S: Final = 0.1
_ERASE_LINE: Final = "\r\x1b[K"


class Progress:
    """Counts keys, and shows how much of a total they are.

    `total` is in any unit (bytes of a file, keys); 0 stands for not known. `shown` False
    only counts.
    """

    def __init__(self, total: int, *, shown: bool = True) -> None:
        self.keys = 0
        self._total = total
        self._done = 0
        self._shown = shown and sys.stderr.isatty()
        self._started = time.monotonic()
        self._draw_at = self._started

    def advance(self, amount: int = 1, *, keys: int = 1) -> None:
        """So many more keys are done, and so much of the total."""
        self.keys += keys
        self._done += amount
        if self._shown and time.monotonic() >= self._draw_at:
            self._draw_at = time.monotonic() + DRAW_EVERY_S
            sys.stderr.write(_ERASE_LINE + self._line())
            sys.stderr.flush()

    def end(self) -> float:
        """Takes the bar away and returns the seconds since the start."""
        if self._shown:
            sys.stderr.write(_ERASE_LINE)
            sys.stderr.flush()
        return time.monotonic() - self._started

    def _line(self) -> str:
        if not self._total:
            return keys_text(self.keys)
        part = min(self._done / self._total, 1)
        return f"[{'#' * int(part * WIDTH):{WIDTH}}] {part:4.0%}  {keys_text(self.keys)}"
