"""The colours of JSON on a terminal, in the output and while it is typed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    r"""(?P<key>"(?:[^"\\]|\\.)*"(?=\s*:))|(?P<string>"(?:[^"\\]|\\.)*"?)"""
    r"""|(?P<number>-?\b\d+(?:\.\d+)?(?:[eE][-+]?\d+)?\b)|(?P<constant>\b(?:true|false|null)\b)""",
    re.DOTALL,
)


class Colour(NamedTuple):
    """One colour, as a terminal takes it and by its name in prompt_toolkit."""

    sgr: str
    name: str


COLOURS: Final = {
    "key": Colour("34", "ansiblue"),
    "string": Colour("32", "ansigreen"),
    "number": Colour("36", "ansicyan"),
    "constant": Colour("35", "ansimagenta"),
}


def tokens(json: str) -> Iterator[tuple[str, str]]:
    """The text in pieces, each with a key of COLOURS, or "" for what has none."""
    at = 0
    for token in _TOKEN.finditer(json):
        if token.start() > at:
            yield "", json[at : token.start()]
        yield token.lastgroup or "", token[0]
        at = token.end()
    if at < len(json):
        yield "", json[at:]


def painted(json: str) -> str:
    """The text with the sequences that colour it; as it is where colour is not wanted."""
    if not _is_wanted():
        return json
    return "".join(
        f"\x1b[{COLOURS[kind].sgr}m{text}\x1b[0m" if kind else text for kind, text in tokens(json)
    )


def _is_wanted() -> bool:
    """By the convention of NO_COLOR, and of terminals that name themselves dumb."""
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    return sys.stdout.isatty() and not dumb and not os.environ.get("NO_COLOR")
