"""How far a start has come, on stderr: a bar on a terminal, else a line of the log now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from zkv import bar

QUIET_S: Final = 1.0
"""What takes less shows nothing."""

LOG_EVERY_S: Final = 5.0


@contextmanager
def shown(log: logging.Logger) -> Iterator[Callable[[int, int, int], None]]:
    """Gives what is to be told the bytes done, of how many, and the keys; takes the bar away."""
    terminal, drawn = sys.stderr.isatty(), False
    due = time.monotonic() + QUIET_S

    def show(done: int, total: int, keys: int) -> None:
        nonlocal due, drawn
        now = time.monotonic()
        if now < due:
            return
        part = done / total
        if terminal:
            bar.draw(bar.text(part, f"{keys} keys"))
            due, drawn = now + bar.DRAW_EVERY_S, True
        else:
            log.info("loading: %.0f%% of %d MB, %d keys", 100 * part, total / 1e6, keys)
            due = now + LOG_EVERY_S

    try:
        yield show
    finally:
        if drawn:
            bar.draw()
