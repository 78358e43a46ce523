"""`help`: the commands, or one of them, or an operation of the protocol as the server checks it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from zkv.cli import json_text, output
from zkv.cli.arguments import COMMANDS
from zkv.cli.command import Command, takes_value, usage
from zkv.cli.commands import Arguments
from zkv.errors import BY_CODE, BadRequest
from zkv.fields import ABSENT, Field
from zkv.requests import ANY_ERRORS, OPS, SESSION_ERRORS, Op
from zkv.store import Store

_INDENT: Final = "  "


def show(_: Store, args: Arguments) -> None:
    if args.topic is None:
        _show({name: it.about for name, it in COMMANDS.items()})
        output.line("\nhelp COMMAND tells more, and so it does of the operations of the protocol:")
        output.line(_INDENT + " ".join(OPS))
        return
    if args.topic not in COMMANDS and args.topic not in OPS:
        raise BadRequest(f"no such command or operation: {args.topic} (help lists them)")
    if args.topic in COMMANDS:
        _show_command(args.topic, COMMANDS[args.topic])
    if args.topic in OPS:
        if args.topic in COMMANDS:
            output.line("")
        _show_op(args.topic, OPS[args.topic])


def _show_command(name: str, command: Command) -> None:
    output.line(f"{usage(name, command)}\n{_INDENT}{command.about}")
    arguments = {}
    for argument, settings in command.arguments.items():
        metavar = settings.get("metavar") or ""
        word = argument.replace(" ", ", ") if argument.startswith("-") else ""
        if takes_value(settings):
            word = f"{word} {metavar}".strip()
        arguments[word] = settings.get("help", "")
    _show(arguments)


def _show_op(name: str, op: Op) -> None:
    output.line(f"The operation {name} of the protocol: {op.about}")
    if op.fields:
        output.line("request")
        _show({field: _field(it) for field, it in op.fields.items()})
    if op.exclusive:
        output.line(f"{_INDENT}only one of: {', '.join(op.exclusive)}")
    if op.replies:
        output.line("reply")
        _show({
            field: about + (" (not always there)" if field in op.sometimes else "")
            for field, about in op.replies.items()
        })  # fmt: skip
    output.line("errors")
    _show({code: _meaning(code) for code in _errors(op)})


def _field(field: Field) -> str:
    if field.required:
        given = "required"
    elif field.default is ABSENT:
        given = "optional"
    else:
        given = f"default: {json_text.compact(field.default)}"
    return f"{field.kind}, {given}: {field.about}"


def _errors(op: Op) -> Iterator[str]:
    yield from op.errors
    yield from ANY_ERRORS
    if op.writes:
        yield from SESSION_ERRORS


def _meaning(code: str) -> str:
    error = BY_CODE[code]
    sentence = re.split("[.;]", error.__doc__ or "", maxsplit=1)[0]
    return sentence if error.outcome_known else f"{sentence} (outcome not known)"


def _show(rows: Mapping[str, str]) -> None:
    width = max((len(name) for name in rows), default=0)
    for name, about in rows.items():
        output.line(f"{_INDENT}{name:<{width}}  {about}".rstrip())
