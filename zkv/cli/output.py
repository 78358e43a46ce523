"""What a command answers, written to stdout: for a program on a pipe, for a person on a
terminal, or as JSON. Always UTF-8.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from zkv.cli import colour, json_text
from zkv.values import to_json

_AMBIGUOUS: Final = re.compile(r'^"|[\x00-\x1f\x7f-\x9f]')
_C1: Final = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""Controls that JSON leaves as they are and a terminal may obey."""


def line(text: str) -> None:
    """One line of text."""
    sys.stdout.buffer.write(text.encode() + b"\n")


def json_line(plain: Any) -> None:
    """One line of JSON."""
    line(json_text.compact(plain))


def one(plain: Any, form: str | None, text: str) -> None:
    """One answer: the text, or in JSON if a form of it is asked for."""
    if form:
        json_line(plain)
    elif text:
        line(text)


def each(
    plains: Iterable[Any], form: str | None, text: Callable[[Any], str], *, at_once: bool = False
) -> None:
    """Answers, each written when it comes: as text, as JSON Lines, or as one JSON array.

    An array that an error cuts short stays open, so that nobody takes it for all there is.
    `at_once`: nothing waits in a buffer.
    """
    before = "["
    for plain in plains:
        if form == "json":
            sys.stdout.buffer.write(f"{before}{json_text.compact(plain)}".encode())
            before = ",\n"
        else:
            line(json_text.compact(plain) if form else text(plain))
        if at_once:
            sys.stdout.flush()
    if form == "json":
        line("[]" if before == "[" else "]")


def value(given: Any) -> None:
    """A value: a str or int as it is, bytes without even a newline, anything else as JSON.

    On a terminal everything but an int is JSON, indented and in colour.
    """
    if type(given) is int:
        line(str(given))
    elif sys.stdout.isatty():
        line(json_shown(json_text.indented(to_json(given))))
    elif type(given) is bytes:
        sys.stdout.buffer.write(given)
    elif type(given) is str:
        line(given)
    else:
        json_line(to_json(given))


def json_shown(text: str) -> str:
    """JSON as it is fit for a terminal, if stdout is one."""
    return colour.painted(text.translate(_C1)) if sys.stdout.isatty() else text


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows below a head; the first column to the left, the others to the right."""
    lines = [head, *rows]
    widths = [max(len(row[column]) for row in lines) for column in range(len(head))]
    for first, *others in lines:
        cells = [f"{it:>{width}}" for it, width in zip(others, widths[1:], strict=True)]
        line("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())


def key_text(key: str) -> str:
    """A key as it is, or as a JSON string if it could be taken for another or break a line."""
    return json.dumps(key) if _AMBIGUOUS.search(key) else key


def keys_text(count: int) -> str:
    """A number of keys, in words."""
    return f"{count} key" if count == 1 else f"{count} keys"


def bytes_text(size: float) -> str:
    """A number of bytes, for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
