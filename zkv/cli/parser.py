"""The parser of the command line, made from the table in `arguments`."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final, NoReturn

from zkv.cli import exits
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


def parser(
    prog: str = PROG, *, required: bool = False, needed: Container[str] = COMMANDS
) -> _Parser:
    """The parser of the whole command line; `command` is then a key of COMMANDS, or None.

    Of the commands only those that are `needed` have their arguments: it saves 2 ms.
    It is to be handed `arguments.defaults`: the options of COMMON have none of their own, so
    that they may stand before the command and behind it.
    """
    parser = _Parser(prog=prog, description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
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
        parser.commands[name] = word
        if name in needed:
            _add(word, command.arguments, command)
            _add(word, COMMON)
    return parser


def parse(parser: _Parser, words: Sequence[str], given: argparse.Namespace) -> argparse.Namespace:
    """The arguments in some words, on top of those that are given.

    -x stands for a last argument that is -, which is standard input. argparse cannot do this:
    a positional argument that may be left out takes no word behind an option. Nor does it see
    a word that is not UTF-8, or make anything of a second --.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            parser.error(f"an argument is not UTF-8: {word!a}")
    end = words.index("--") if "--" in words else len(words)
    if "-x" in words[:end]:
        words = [word for at, word in enumerate(words) if word != "-x" or at > end] + ["-"]
    args, unknown = parser.parse_known_args(words, given)
    if unknown:
        parser.commands.get(args.command, parser).error(f"no such argument: {' '.join(unknown)}")
    if [] in vars(args).values():
        parser.error("-- cannot be an argument")
    return args


_ELSEWHERE: Final = {
    "set": "put", "del": "delete", "rm": "delete", "keys": "list", "scan": "list", "mget": "list",
    "incrby": "incr", "ttl": "expire", "dbsize": "count", "flushall": "clear", "save": "compact",
}  # fmt: skip
"""What commands are called in redis-cli and in etcdctl."""


def no_such_command(word: str) -> str:
    """What is said of a word that is no command."""
    import difflib  # 5 ms, for a mistake only

    near = difflib.get_close_matches(word.lower(), [*COMMANDS, *_ELSEWHERE], n=1)
    if not near:
        return f"no such command: {word} (help lists the commands)"
    return f"no such command: {word} (did you mean {_ELSEWHERE.get(near[0], near[0])}?)"


class _Parser(argparse.ArgumentParser):
    """Knows its `commands`, and says what may be meant by a word that is none."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: dict[str, argparse.ArgumentParser] = {}

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"argument COMMAND: invalid choice: (.*?) \(choose from", message):
            message = no_such_command(ast.literal_eval(found[1]))
        if not self.prog:  # of the shell: each command has a usage of its own
            self.exit(exits.USAGE, f"{PROG}: {message}\n")
        super().error(message)


def _add(
    parser: argparse.ArgumentParser,
    arguments: Mapping[str, Settings],
    command: Command | None = None,
) -> None:
    groups: dict[str, Any] = {}
    for names in command.either if command else ():
        if all(name.startswith("-") for name in names):
            groups |= dict.fromkeys(names, parser.add_mutually_exclusive_group())
    for name, settings in arguments.items():
        instead = {} if command else {"default": argparse.SUPPRESS}
        groups.get(name, parser).add_argument(*name.split(), **{**settings, **instead})
