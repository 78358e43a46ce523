"""What a command answers, written to stdout: for a program on a pipe, for a person on a
terminal, or as JSON. Always UTF-8.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Final

from zkv.cli import json_text
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


def value(given: Any, *, as_json: bool) -> None:
    """A value: a str or int as it is, bytes without even a newline, anything else as JSON.

    On a terminal everything but an int is JSON, indented.
    """
    if as_json:
        json_line(to_json(given))
    elif type(given) is int:
        line(str(given))
    elif sys.stdout.isatty():
        line(json_text.indented(to_json(given)).translate(_C1))
    elif type(given) is bytes:
        sys.stdout.buffer.write(given)
    elif type(given) is str:
        line(given)
    else:
        json_line(to_json(given))


def key_text(key: str) -> str:
    """A key as it is, or as a JSON string if it could be taken for another or break a line."""
    return json.dumps(key) if _AMBIGUOUS.search(key) else key


def keys_text(count: int) -> str:
    """A number of keys, in words."""
    return f"{count} key" if count == 1 else f"{count} keys"
