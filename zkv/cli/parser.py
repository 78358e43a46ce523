"""The parser of the command line, made from the table in `arguments`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

from zkv.cli.arguments import COMMANDS, COMMON
from zkv.cli.command import Command, Settings, usage

PROG: Final = "zkv-client"
DESCRIPTION: Final = (
    "Talks to a zkv server. Without a COMMAND it is a shell on a terminal, and else reads "
    "commands from standard input, one a line."
)
EPILOG: Final = (
    "Exit codes: 0 done, 1 any other error, 2 usage, 3 no such key, 4 conflict, 5 no reply in "
    "time (a write may or may not have taken effect), 6 cannot connect, 130 interrupted, "
    "141 the reader of the output has gone."
)


def parser(prog: str = PROG, *, required: bool = False) -> argparse.ArgumentParser:
    """The parser of the whole command line; `command` is then a key of COMMANDS, or None.

    It is to be handed `arguments.defaults`: the options of COMMON have none of their own, so
    that they may stand before the command and behind it.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False
    )
    _add(parser, COMMON)
    words = parser.add_subparsers(dest="command", metavar="COMMAND", required=required)
    for name, command in COMMANDS.items():
        word = words.add_parser(
            name,
            prog=f"{prog} {name}".strip(),
            usage=f"{prog} {usage(name, command)}".strip(),
            help=command.about,
            description=f"{command.about[0].upper()}{command.about[1:]}.",
            allow_abbrev=False,
        )
        _add(word, command.arguments, command)
        _add(word, COMMON)
    return parser


def _add(
    parser: argparse.ArgumentParser,
    arguments: Mapping[str, Settings],
    command: Command | None = None,
) -> None:
    groups: dict[str, Any] = {}
    for names in command.either if command else ():
        required = any(not name.startswith("-") for name in names)
        groups |= dict.fromkeys(names, parser.add_mutually_exclusive_group(required=required))
    for name, settings in arguments.items():
        instead = {} if command else {"default": argparse.SUPPRESS}
        groups.get(name, parser).add_argument(*name.split(), **{**settings, **instead})
