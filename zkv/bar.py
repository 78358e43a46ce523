"""A bar on a terminal's stderr, which shows how far something has come."""

from __future__ import annotations

import sys
from typing import Final

DRAW_EVERY_S: Final = 0.1
"""How often to draw what goes on."""

ERASE_LINE: Final = "\r\x1b[K"
_WIDTH: Final = 30


def text(part: float, done: str) -> str:
    """The bar of a part of a whole, 0 to 1, and what is said of it."""
    return f"[{'#' * int(part * _WIDTH):{_WIDTH}}] {part:4.0%}  {done}"


def draw(line: str = "") -> None:
    """Shows a line in place of the one that was shown; without one, takes it away."""
    sys.stderr.write(ERASE_LINE + line)
    sys.stderr.flush()
