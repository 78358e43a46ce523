"""Commands from standard input, one a line; JSON and quotes may go on over lines."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from zkv import Client
from zkv.cli import exits, words
from zkv.cli.runner import Runner
from zkv.errors import BadRequest

_ENDS_IT: Final = (exits.CANNOT_CONNECT, exits.INTERRUPTED, exits.PIPE_CLOSED)


class _Typed(NamedTuple):
    """One command as it was typed, and the number of its first line."""

    text: bytes
    number: int


def run(client: Client, given: argparse.Namespace) -> int:
    """Runs every command; returns the exit code of the first that failed, or 0.

    A command that fails does not keep the next from running, unless nothing can be reached,
    somebody interrupts, or nobody reads the output.
    """
    within = copy.copy(given)
    within.stdin = None  # what it holds are the commands
    runner = Runner(client, within)
    failed = 0
    for typed in _commands(given.stdin):
        where = f"line {typed.number}: "
        try:
            found = _words(typed)
        except BadRequest as error:
            code = exits.fail(f"{where}{error.message}", exits.USAGE)
        else:
            code = runner.run(found, where) if found else 0
        failed = failed or code
        if code == exits.CANNOT_CONNECT:
            exits.fail(f"stopped at line {typed.number}", code)
        if code in _ENDS_IT:
            return code
    return failed


def _commands(source: BinaryIO) -> Iterator[_Typed]:
    held, begun = b"", 0
    for number, line in enumerate(source, 1):
        begun = begun if held else number
        held += line
        if not words.read(held.decode(errors="replace")).open:
            yield _Typed(held, begun)
            held = b""
    if held:
        yield _Typed(held, begun)


def _words(typed: _Typed) -> list[str]:
    try:
        return words.closed(typed.text.decode())
    except UnicodeDecodeError:
        raise BadRequest("the command is not UTF-8") from None
