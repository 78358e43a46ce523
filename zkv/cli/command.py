"""What one command is, and its usage in words: the parser, help and completion read this."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

from zkv.store import Store

KEYS: Final = frozenset(("KEY", "PREFIX"))
FILES: Final = frozenset(("FILE", "FOLDER"))
"""What can be completed, by the metavar of an argument."""

Run = Callable[[Store, argparse.Namespace], None]

Settings = Mapping[str, Any]
"""As `add_argument` takes them."""


def later(module: str, name: str) -> Run:
    """A function of a module of zkv.cli, which is imported when it is called.

    A command then waits for what it needs, and not for what all the others do (10 ms).
    """

    def run(store: Store, args: argparse.Namespace) -> None:
        getattr(import_module(f"zkv.cli.{module}"), name)(store, args)

    return run


class Command(NamedTuple):
    """What runs, one line about it, and its arguments by name.

    Of the arguments in one tuple of `either` only one may be given.
    """

    run: Run
    about: str
    arguments: Mapping[str, Settings]
    either: tuple[tuple[str, ...], ...] = ()


def positionals(command: Command) -> Iterator[Settings]:
    """The arguments that have no name on the command line, in order."""
    return (it for name, it in command.arguments.items() if not name.startswith("-"))


def options(arguments: Mapping[str, Settings]) -> Iterator[tuple[list[str], Settings]]:
    """The arguments that have names, each with all its names, short ones first."""
    for name, settings in arguments.items():
        if name.startswith("-"):
            yield name.split(), settings


def takes_value(settings: Settings) -> bool:
    """Whether a word follows the option."""
    return "action" not in settings


def usage(name: str, command: Command) -> str:
    """A command on one line: `put KEY (VALUE | -x) [--ttl SECONDS]`."""
    parts = [name]
    done: set[str] = set()
    for argument, settings in command.arguments.items():
        group = next((it for it in command.either if argument in it), (argument,))
        if argument in done:
            continue
        done.update(group)
        forms = " | ".join(_form(it, command.arguments[it]) for it in group)
        if any(not it.startswith("-") for it in group) and not _is_optional(group, settings):
            parts.append(f"({forms})" if len(group) > 1 else forms)
        else:
            parts.append(f"[{forms}]")
    return " ".join(parts)


def _is_optional(group: tuple[str, ...], settings: Settings) -> bool:
    return len(group) == 1 and settings.get("nargs") == "?"


def _form(argument: str, settings: Settings) -> str:
    if not argument.startswith("-"):
        return _metavar(argument, settings)
    name = argument.split()[0]
    return f"{name} {_metavar(name, settings)}" if takes_value(settings) else name


def _metavar(name: str, settings: Settings) -> str:
    return str(settings.get("metavar") or name.lstrip("-").upper())
