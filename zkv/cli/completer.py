"""What may come next on a line of the shell, and how its command is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from zkv.cli import words
from zkv.cli.arguments import COMMANDS, COMMON
from zkv.cli.command import FILES, KEYS, Settings, options, positionals, takes_value, usage
from zkv.cli.completion import words_of
from zkv.cli.words import Word

Keys = Callable[[str], Iterable[str]]
"""Some of the keys that begin with a prefix."""


class LineCompleter(Completer):
    """Completes commands, options, files and keys."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        before, current = _split(document.text_before_cursor)
        place = _place(before)
        if place.argument.get("metavar") in FILES:
            yield from self._files.get_completions(Document(current.text), event)
            return
        start = current.start - len(document.text_before_cursor)
        for word, about in self._candidates(place, current.text).items():
            if word.startswith(current.text):
                yield Completion(words.quoted(word), start, display=word, display_meta=about)

    def _candidates(self, place: _Place, begun: str) -> dict[str, str]:
        """Words, each with what it is."""
        if begun.startswith("-") and not place.in_option:
            return {name: str(it.get("help", "")) for name, it in _named(place.command).items()}
        if place.command is None and not place.in_option:
            return {name: command.about for name, command in COMMANDS.items()}
        if place.argument.get("metavar") in KEYS:
            return dict.fromkeys(self._keys(begun), "")
        return dict.fromkeys(words_of(place.argument, COMMANDS), "")


def usage_of(line: str) -> str:
    """How the command of a line is used; '' if it has none yet."""
    before, current = _split(line)
    name = _place([*before, current.text]).command
    return usage(name, COMMANDS[name]) if name in COMMANDS else ""


class _Place(NamedTuple):
    """The command that is typed, and what is said of its argument at the cursor, if anything.

    `in_option`: that is the word behind an option.
    """

    command: str | None
    argument: Settings
    in_option: bool


def _split(line: str) -> tuple[list[str], Word]:
    """The words before the cursor, and the one that it stands in."""
    found = words.read(line)
    texts = [word.text for word in found.words]
    if found.words and (found.open or not line[-1].isspace()):
        return texts[:-1], found.words[-1]
    return texts, Word("", len(line))


def _place(before: Sequence[str]) -> _Place:
    command: str | None = None
    option: Settings = {}
    number = 0
    for word in before:
        if option:
            option = {}
        elif word.startswith("-"):
            settings = _named(command).get(word, {})
            option = settings if settings and takes_value(settings) else {}
        elif command is None:
            command = word
        else:
            number += 1
    own = positionals(COMMANDS[command]) if command in COMMANDS else iter(())
    return _Place(command, option or next(islice(own, number, None), {}), bool(option))


def _named(command: str | None) -> Mapping[str, Settings]:
    """The options that may stand there, by every name they have."""
    own = COMMANDS[command].arguments if command in COMMANDS else {}
    return {name: it for names, it in options({**own, **COMMON}) for name in names}
