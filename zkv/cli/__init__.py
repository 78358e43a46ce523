"""zkv-client: a store from the command line.

Runs one command on a Client, and turns what goes wrong into one sentence and an exit code.
The command line is read in `arguments`; what a command does is in `commands`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from zkv import Client
from zkv.cli import arguments
from zkv.errors import BadRequest, CannotConnect, Conflict, Error, NotFound, Timeout

EXIT_CODES: Final[dict[type[Error], int]] = {NotFound: 3, Conflict: 4, Timeout: 5, CannotConnect: 6}
EXIT_OTHER: Final = 1
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell counts
EXIT_PIPE_CLOSED: Final = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a usage error exits with 2."""
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # here, where a failure can still be told
    except Error as error:
        return _fail(error.message, EXIT_CODES.get(type(error), EXIT_OTHER))
    except BrokenPipeError:
        _drop_output()
        return EXIT_PIPE_CLOSED
    except OSError as error:
        _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", EXIT_OTHER)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(argv: Sequence[str]) -> int:
    parser = arguments.parser()
    args = parser.parse_args(argv)
    _check_utf8(parser, [*argv, args.endpoint])
    if [] in vars(args).values():  # what argparse makes of a second `--`
        parser.error("-- cannot be an argument")
    try:
        client = Client(args.endpoint, timeout_s=args.timeout)
    except BadRequest as error:
        parser.error(error.message)
    with client:
        arguments.COMMANDS[args.command].run(client, args)
    return 0


def _check_utf8(parser: argparse.ArgumentParser, given: Sequence[str]) -> None:
    for argument in given:
        try:
            argument.encode()
        except UnicodeEncodeError:
            parser.error(f"an argument is not UTF-8: {argument!a}")


def _fail(sentence: str, code: int) -> int:
    print(f"zkv-client: {sentence}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """What is still buffered goes nowhere: at exit, Python would fail to write it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
