"""How far a long command has come, on stderr when that is a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zkv import bar
from zkv.cli.output import keys_text


class Progress:
    """Counts keys, and shows how much of a total they are.

    `total` is in any unit (bytes of a file, keys); 0 stands for not known. `shown` False
    only counts. `text` says for a person how many are done.
    """

    def __init__(
        self, total: int, *, shown: bool = True, text: Callable[[int], str] = keys_text
    ) -> None:
        self.keys = 0
        self._text = text
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
            self._draw_at = time.monotonic() + bar.DRAW_EVERY_S
            bar.draw(self._line())

    def note(self, sentence: str) -> None:
        """A line on stderr, which the bar does not stand in the way of."""
        print(f"{bar.ERASE_LINE if self._shown else ''}{sentence}", file=sys.stderr)

    @contextmanager
    def watching(self, done: Callable[[], int]) -> Iterator[None]:
        """Shows how much `done` says is done, while something else does it."""
        if not self._shown:
            yield
            return
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(bar.DRAW_EVERY_S):
                more = done() - self._done
                self.advance(more, keys=more)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            self.end()

    def end(self) -> float:
        """Takes the bar away and returns the seconds since the start."""
        if self._shown:
            bar.draw()
        return time.monotonic() - self._started

    def _line(self) -> str:
        if not self._total:
            return self._text(self.keys)
        part = min(self._done / self._total, 1)
        return bar.text(part, self._text(self.keys))
