"""A typed line as the words of a command.

Words are quoted as in sh, with '…', "…" and \\. A word that begins with { or [ needs no
quotes: it is JSON, and goes on to its closing bracket, over spaces and over lines.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from zkv.errors import BadRequest

_SPACE: Final = re.compile(r"(?:\s|\\\n)*")
_PIECE: Final = re.compile(
    r"""'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|\\(?P<escaped>.)|(?P<plain>[^\s'"\\]+)""",
    re.DOTALL,
)
_CONTINUED: Final = re.compile(r"\\\n\Z")
_IN_DOUBLE: Final = re.compile(r'\\([\\"$`])')
_IN_JSON: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|"', re.DOTALL)
_OPEN_QUOTE: Final = re.compile(r"""['"]|\\""")
_SAFE: Final = re.compile(r"[^\s'\"\\{\[#-][^\s'\"\\]*")


class Word(NamedTuple):
    """A word without its quotes, and where it began."""

    text: str
    start: int


class Line(NamedTuple):
    """The words of a line. When it is `open`, its last word is not complete."""

    words: list[Word]
    open: bool


def read(line: str) -> Line:
    """The words of a line; a line that begins with # has none."""
    words: list[Word] = []
    at = _skip_space(line, 0)
    if line.startswith("#", at):
        return Line([], open=False)
    while at < len(line):
        start = at
        if line[at] in "{[":
            at = _json_end(line, at)
            if at < 0:
                return Line([*words, Word(line[start:], start)], open=True)
            text = line[start:at]
        else:
            text = ""
        while not _CONTINUED.match(line, at) and (piece := _PIECE.match(line, at)):
            text += _unquoted(piece)
            at = piece.end()
        if _OPEN_QUOTE.match(line, at):
            return Line([*words, Word(text + line[at + 1 :], start)], open=True)
        words.append(Word(text, start))
        at = _skip_space(line, space := at)
        if at == len(line) and line.endswith("\\\n", space):
            return Line([*words, Word("", at)], open=True)
    return Line(words, open=False)


def closed(line: str) -> list[str]:
    """The words of a line, as a command is given them. Raises BadRequest for an open line."""
    found = read(line)
    if found.open:
        raise BadRequest("a bracket or a quote is never closed")
    return [word.text for word in found.words]


def quoted(text: str) -> str:
    """A word that is read as this text."""
    return text if _SAFE.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"


def _skip_space(line: str, at: int) -> int:
    found = _SPACE.match(line, at)
    return found.end() if found else at


def _json_end(line: str, start: int) -> int:
    """Where the bracket at `start` is closed, or -1."""
    depth = 0
    for token in _IN_JSON.finditer(line, start):
        if token[0] == '"':  # a string without its end
            return -1
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
        if depth == 0:
            return token.end()
    return -1


def _unquoted(piece: re.Match[str]) -> str:
    if piece.lastgroup == "double":
        return _IN_DOUBLE.sub(r"\1", piece["double"]).replace("\\\n", "")
    if piece.lastgroup == "escaped":
        return "" if piece["escaped"] == "\n" else piece["escaped"]
    return piece[piece.lastgroup or 0]
