"""zkv-client: a store from the command line.

Runs one command on a Client; without one, a shell on a terminal, or the commands on stdin.
The commands are in `arguments`, how they end in `exits`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from zkv import Client
from zkv.cli import arguments, exits
from zkv.cli.parser import parse, parser
from zkv.errors import BadRequest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the command line says and returns its exit code; a usage error exits with 2."""
    given = sys.argv[1:] if argv is None else argv
    command_line = parser(needed=given)
    args = parse(command_line, given, arguments.defaults(sys.stdin.buffer))
    try:
        client = arguments.connect(args)
    except BadRequest as error:
        command_line.error(error.message)
    with client:
        if args.command is not None:
            return exits.code_of(lambda: arguments.COMMANDS[args.command].run(client, args))
        if sys.stdin.isatty() and sys.stdout.isatty():
            return _shell(client, args)
        from zkv.cli import script

        return script.run(client, args)


def _shell(client: Client, args: argparse.Namespace) -> int:
    try:
        from zkv.cli import shell
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "prompt_toolkit":
            raise
        return exits.fail(
            "the shell needs prompt_toolkit: pip install 'zkv[cli]' (commands do without)",
            exits.USAGE,
        )
    return shell.run(client, args)
