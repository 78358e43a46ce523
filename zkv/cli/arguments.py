"""The command line: COMMANDS is the one table of the commands, COMMON what all of them take."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, Final

from zkv import __version__
from zkv.block import Number
from zkv.cli import commands, json_text
from zkv.cli.command import Command, Settings, later
from zkv.client import Client
from zkv.endpoint import DEFAULT_ENDPOINT, DEFAULT_TIMEOUT_S, VARIABLE, find
from zkv.fields import TXN_OPS_MAX

SECONDS_MAX: Final = 86_400.0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(
            f"must be a number above 0 and at most {SECONDS_MAX:g}, not {text!r}"
        )
    return seconds


def _number(text: str) -> Number:
    with suppress(ValueError):
        number = json_text.parse(text)
        if type(number) is int or (type(number) is float and math.isfinite(number)):
            return number
    raise argparse.ArgumentTypeError(f"must be a finite number, not {text!r}")


def _ttl(text: str) -> Number | None:
    return None if text == "never" else _number(text)


def _whole(limit: int = sys.maxsize) -> Callable[[str], int]:
    def check(text: str) -> int:
        if not text.isdecimal() or not 0 < int(text) <= limit:
            at_most = "" if limit == sys.maxsize else f" and at most {limit}"
            raise argparse.ArgumentTypeError(
                f"must be a whole number above 0{at_most}, not {text!r}"
            )
        return int(text)

    return check


def _tests(text: str) -> list[str]:
    from zkv.cli.bench import TESTS

    names = text.split(",")
    for name in names:
        if name not in TESTS:
            known = ", ".join(TESTS)
            raise argparse.ArgumentTypeError(f"no such test: {name!r}; there are {known}")
    return names


_KEY: Final = {"metavar": "KEY", "help": "1..1024 bytes of UTF-8"}
_PREFIX: Final = {"metavar": "PREFIX", "help": "the beginning of keys; '' is every key"}
_ALL: Final = {**_PREFIX, "nargs": "?", "default": ""}
_FILE: Final = {"metavar": "FILE", "nargs": "?", "default": "-"}
_FLAG: Final = {"action": "store_true"}

_IF_VERSION: Final = {
    "metavar": "N",
    "type": int,
    "help": "only if the key has this version (0: only if there is no such key)",
}


def _n(about: str, default: int | None = None, limit: int = sys.maxsize) -> dict[str, Any]:
    """How often, or how many."""
    shown = "" if default is None else f" (default: {default})"
    return {"metavar": "N", "type": _whole(limit), "default": default, "help": about + shown}


def _every(default: float) -> Settings:
    return {
        "metavar": "SECONDS",
        "type": _seconds,
        "default": default,
        "help": f"between two of them (default: {default:g})",
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
            "-x": {**_FLAG, "help": "VALUE is -, as in redis-cli"},
            "--text": {**_FLAG, "help": "VALUE is text even if it is JSON"},
            "--bytes": {**_FLAG, "help": "VALUE is bytes, stored as they are"},
            "--ttl": {"metavar": "SECONDS", "type": _number, "help": "until the key expires"},
            "--if-version": _IF_VERSION,
        },
        either=(("value", "-x"), ("--text", "--bytes")),
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
    "expire": Command(
        commands.expire,
        "set when a key expires",
        {
            "key": _KEY,
            "ttl": {"metavar": "SECONDS", "type": _ttl, "help": "from now, or the word never"},
            "--if-version": _IF_VERSION,
        },
    ),
    "list": Command(
        commands.list_,
        "print keys in order, one a line",
        {
            "prefix": _ALL,
            "--values": {**_FLAG, "help": "a tab and the value in JSON, too"},
            "--limit": _n("at most so many; else all"),
            "--after": {"metavar": "KEY", "default": "", "help": "start behind this key"},
        },
    ),
    "count": Command(commands.count, "print how many keys there are", {"prefix": _ALL}),
    "clear": Command(
        commands.clear,
        "remove every key that begins with a prefix",
        {"prefix": _PREFIX, "--yes": {**_FLAG, "help": "do not ask, as is done on a terminal"}},
    ),
    "ping": Command(commands.ping, "print how long the server takes to answer", {}),
    "info": Command(commands.info, "print what the server is and what it holds", {}),
    "stat": Command(
        later("stat", "stat"),
        "print what the server does, a line every second, until interrupted",
        {"-i --interval": _every(1), "-n --count": _n("end after so many lines")},
    ),
    "latency": Command(
        later("latency", "latency"),
        "measure round trips to the server",
        {"-i --interval": _every(0.01), "-n --count": _n("so many round trips", 100)},
    ),
    "bigkeys": Command(
        later("bigkeys", "bigkeys"),
        "find the largest values, by reading all of them page by page",
        {"prefix": _ALL, "-n --count": _n("how many to name", 10)},
    ),
    "bench": Command(
        later("bench", "bench"),
        "measure the server under load, with keys of its own that are removed at the end",
        {
            "-c": {**_n("clients, a thread each", 8, 256), "dest": "clients"},
            "-n": {**_n("operations of each test", 10_000), "dest": "operations"},
            "-d": {**_n("bytes of a value", 100, 2**20), "dest": "bytes"},
            "-P": {**_n("operations in one transaction", 1, TXN_OPS_MAX), "dest": "batch"},
            "-r": {**_n("different keys", 1000), "dest": "keys"},
            "-t": {
                "metavar": "TESTS",
                "type": _tests,
                "dest": "tests",
                "help": "some of ping,put,get,incr,list (default: all)",
            },
            "-q": {**_FLAG, "dest": "quiet", "help": "one line a test"},
            "--csv": {**_FLAG, "help": "as redis-benchmark writes it"},
        },
        either=(("-q", "--csv"),),
    ),
    "load": Command(
        later("transfer", "load"),
        "put every key of a file of JSON Lines or of one JSON object",
        {
            "file": {
                **_FILE,
                "help": 'lines {"key":...,"value":...}, as dump writes them, or {"KEY":VALUE,...}; '
                "- is standard input (the default)",
            },
            "--skip-bad": {**_FLAG, "help": "name what cannot be loaded, go on, and exit with 1"},
        },
    ),
    "dump": Command(
        later("transfer", "dump"),
        "write keys and values as JSON Lines, which load takes",
        {
            "file": {
                **_FILE,
                "help": "replaced only when the dump is whole; - is standard output (the default)",
            },
            "--prefix": {**_PREFIX, "default": "", "help": "only keys that begin with this"},
        },
    ),
    "compact": Command(commands.compact, "have the server bring its data into one snapshot", {}),
    "backup": Command(
        later("transfer", "backup"),
        "copy the data as it is now into a new folder, which zkv-server can serve",
        {"folder": {"metavar": "FOLDER"}},
    ),
    "completion": Command(
        later("completion", "completion"),
        "print the script that has a shell complete commands, options and keys",
        {
            "shell": {
                "metavar": "SHELL",
                "choices": ("bash", "zsh", "fish"),
                "help": "bash, zsh or fish",
            }
        },
    ),
    "help": Command(
        later("manual", "show"),
        "print the commands, or all about one command or operation",
        {
            "topic": {
                "metavar": "COMMAND",
                "nargs": "?",
                "help": "or an operation of the protocol",
            },
        },
    ),
}

COMMON: Final[dict[str, Settings]] = {
    "--endpoint": {
        "help": f"of the server, or a zkv:// URL (default: ${VARIABLE} or {DEFAULT_ENDPOINT})",
    },
    "--timeout": {
        "metavar": "SECONDS",
        "type": _seconds,
        "help": f"how long one request may take (default: the URL's or {DEFAULT_TIMEOUT_S:g})",
    },
    "--json": {"action": "store_const", "const": "json", "dest": "form", "help": "answer in JSON"},
    "--jsonl": {
        "action": "store_const",
        "const": "jsonl",
        "dest": "form",
        "help": "answer in JSON Lines: one of many answers a line, where --json makes an array",
    },
    "--version": {"action": "version", "version": f"zkv {__version__}", "help": "print it"},
}


def connect(args: argparse.Namespace, *, timeout_s_max: float = math.inf) -> Client:
    """A client of the server that is asked for. Raises BadRequest for an endpoint that is none."""
    found = find(args.endpoint, args.timeout)
    timeout_s = min(found.timeout_s, timeout_s_max)
    return Client(found.address, timeout_s=timeout_s, resend_after_s=found.resend_after_s)


def defaults(stdin: BinaryIO | None) -> argparse.Namespace:
    """What COMMON is when nothing is given; `stdin` is what a command may read."""
    return argparse.Namespace(
        endpoint=None,
        timeout=None,
        form=None,
        stdin=stdin,
    )
