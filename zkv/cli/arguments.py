"""The command line as argparse knows it: COMMANDS is the one table of the commands."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from zkv import __version__
from zkv.block import Number
from zkv.cli import commands, json_text
from zkv.client import DEFAULT_ENDPOINT, DEFAULT_TIMEOUT_S
from zkv.store import Store

TIMEOUT_S_MAX: Final = 86_400.0

EPILOG: Final = (
    "Exit codes: 0 done, 1 any other error, 2 usage, 3 no such key, 4 conflict, 5 no reply in "
    "time (a write may or may not have taken effect), 6 cannot connect, 130 interrupted, "
    "141 the reader of the output has gone."
)


class Command(NamedTuple):
    """What runs, one line about it, and its arguments as `add_argument` takes them."""

    run: Callable[[Store, argparse.Namespace], None]
    about: str
    arguments: Mapping[str, Mapping[str, Any]]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= TIMEOUT_S_MAX:
        raise argparse.ArgumentTypeError(
            f"must be a number above 0 and at most {TIMEOUT_S_MAX:g}, not {text!r}"
        )
    return seconds


def _number(text: str) -> Number:
    with suppress(ValueError):
        number = json_text.parse(text)
        if type(number) is int or (type(number) is float and math.isfinite(number)):
            return number
    raise argparse.ArgumentTypeError(f"must be a finite number, not {text!r}")


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= sys.maxsize:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


_KEY: Final = {"metavar": "KEY", "help": "1..1024 bytes of UTF-8"}
_PREFIX: Final = {"metavar": "PREFIX", "help": "the beginning of keys; '' is every key"}
_ALL: Final = {**_PREFIX, "nargs": "?", "default": ""}

_IF_VERSION: Final = {
    "metavar": "N",
    "type": int,
    "help": "only if the key has this version (0: only if there is no such key)",
}

COMMANDS: Final[dict[str, Command]] = {
    "get": Command(commands.get, "print the value of a key", {"key": _KEY}),
    "put": Command(
        commands.put,
        "store a value under a key",
        {
            "key": _KEY,
            "value": {
                "metavar": "VALUE",
                "help": "JSON, or else text; - reads all of standard input",
            },
            "--text": {"action": "store_true", "help": "VALUE is text even if it is JSON"},
            "--ttl": {"metavar": "SECONDS", "type": _number, "help": "until the key expires"},
            "--if-version": _IF_VERSION,
        },
    ),
    "delete": Command(commands.delete, "remove a key", {"key": _KEY, "--if-version": _IF_VERSION}),
    "incr": Command(
        commands.incr,
        "add to a number and print the sum",
        {
            "key": _KEY,
            "--by": {
                "metavar": "N",
                "type": _number,
                "default": 1,
                "help": "what to add (default: 1)",
            },
            "--initial": {
                "metavar": "N",
                "type": _number,
                "default": 0,
                "help": "where a missing key starts (default: 0)",
            },
        },
    ),
    "list": Command(
        commands.list_,
        "print keys in order, one a line",
        {
            "prefix": _ALL,
            "--values": {"action": "store_true", "help": "a tab and the value in JSON, too"},
            "--limit": {
                "metavar": "N",
                "type": _positive,
                "help": "at most so many (default: all)",
            },
            "--after": {"metavar": "KEY", "default": "", "help": "start behind this key"},
        },
    ),
    "count": Command(commands.count, "print how many keys there are", {"prefix": _ALL}),
    "clear": Command(
        commands.clear,
        "remove every key that begins with a prefix",
        {
            "prefix": _PREFIX,
            "--yes": {"action": "store_true", "help": "do not ask, as is done on a terminal"},
        },
    ),
    "ping": Command(commands.ping, "print how long the server takes to answer", {}),
    "info": Command(commands.info, "print what the server is and what it holds", {}),
    "load": Command(
        commands.load,
        "put every key of a file of JSON Lines or of one JSON object",
        {
            "file": {
                "metavar": "FILE",
                "nargs": "?",
                "default": "-",
                "help": 'lines {"key":...,"value":...}, as dump writes them, or {"KEY":VALUE,...}; '
                "- is standard input (the default)",
            },
        },
    ),
    "dump": Command(
        commands.dump,
        "write keys and values as JSON Lines, which load takes",
        {
            "file": {
                "metavar": "FILE",
                "nargs": "?",
                "default": "-",
                "help": "replaced only when the dump is whole; - is standard output (the default)",
            },
            "--prefix": {**_PREFIX, "default": "", "help": "only keys that begin with this"},
        },
    ),
    "compact": Command(commands.compact, "have the server bring its data into one snapshot", {}),
    "backup": Command(
        commands.backup,
        "copy the data as it is now into a new folder, which zkv-server can serve",
        {"folder": {"metavar": "FOLDER"}},
    ),
}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `command` is then a key of COMMANDS."""
    parser = argparse.ArgumentParser(
        prog="zkv-client",
        description="Talks to a zkv server.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    _add_common_options(parser)
    words = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        word = words.add_parser(
            name,
            help=command.about,
            description=f"{command.about[0].upper()}{command.about[1:]}.",
            allow_abbrev=False,
        )
        for argument, settings in command.arguments.items():
            word.add_argument(argument, **settings)
        # Without defaults: they would undo what was given before the command word.
        _add_common_options(word, default=argparse.SUPPRESS)
    return parser


def _add_common_options(parser: argparse.ArgumentParser, **instead: Any) -> None:
    """The options that every command has; `instead` replaces their defaults."""
    endpoint = os.environ.get("ZKV_ENDPOINT") or DEFAULT_ENDPOINT
    parser.add_argument(
        "--endpoint",
        help=f"where the server listens (default: $ZKV_ENDPOINT or {DEFAULT_ENDPOINT})",
        **{"default": endpoint, **instead},
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        help=f"how long one request may take (default: {DEFAULT_TIMEOUT_S:g})",
        **{"default": DEFAULT_TIMEOUT_S, **instead},
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="answer in JSON, one value a line",
        **{"default": False, **instead},
    )
    parser.add_argument("--version", action="version", version=f"zkv {__version__}")
