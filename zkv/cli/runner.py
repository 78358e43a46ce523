"""Commands that are typed, or piped in, run as those of the command line are."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

from zkv import Client
from zkv.cli import exits
from zkv.cli.arguments import COMMANDS, connect
from zkv.cli.parser import no_such_command, parse, parser


class Runner:
    """Runs commands by their words.

    What `given` has of the options that every command takes holds for each that does not say
    otherwise.
    """

    def __init__(self, client: Client, given: argparse.Namespace) -> None:
        self._client = client
        self._given = given
        self._parser = parser(prog="", required=True)

    def run(self, words: Sequence[str], where: str = "") -> int:
        """The exit code of one command; `where` is put before what is said of an error."""
        if words[0] not in COMMANDS and not words[0].startswith("-"):
            return exits.fail(f"{where}{no_such_command(words[0])}", exits.USAGE)
        return exits.code_of(lambda: self._run(words), where)

    def _run(self, words: Sequence[str]) -> None:
        args = parse(self._parser, words, copy.copy(self._given))
        command = COMMANDS[args.command]
        if (args.endpoint, args.timeout) == (self._given.endpoint, self._given.timeout):
            command.run(self._client, args)
        else:
            with connect(args) as client:
                command.run(client, args)
