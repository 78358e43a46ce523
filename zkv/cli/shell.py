"""The shell: commands typed on a terminal, with history, completion and hints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.formatted_text.utils import split_lines
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.lexers import Lexer

from zkv import Client
from zkv.cli import colour, exits, output, words
from zkv.cli.arguments import COMMANDS, connect
from zkv.cli.completer import LineCompleter, usage_of
from zkv.cli.runner import Runner
from zkv.errors import BadRequest, Error

KEYS_MAX: Final = 100
"""Offered at a time to complete one that is typed."""

ASIDE_TIMEOUT_S: Final = 1.0
"""For what nobody asked for: the greeting, and keys to complete."""

LEAVE: Final = (["exit"], ["quit"])
HINT: Final = "TAB completes, help lists the commands, Ctrl-D leaves"


def run(client: Client, given: argparse.Namespace) -> int:
    """Reads commands until Ctrl-D, and runs each. Ctrl-C ends a command or drops a line."""
    runner = Runner(client, given)
    with connect(given, timeout_s_max=ASIDE_TIMEOUT_S) as aside:
        prompt = _prompt(aside)
        print(_greeting(aside), file=sys.stderr)
        while True:
            try:
                typed = words.closed(prompt())
            except KeyboardInterrupt:
                continue
            except EOFError:
                return 0
            except BadRequest as error:  # Alt-Enter ends a line that is still open
                exits.fail(error.message, exits.USAGE)
                continue
            if typed in LEAVE:
                return 0
            code = runner.run(typed) if typed else 0
            if code == exits.INTERRUPTED:
                print(file=sys.stderr)  # the terminal has shown ^C
            elif code == exits.PIPE_CLOSED:
                return code


def history_file() -> Path:
    """Where the typed lines are kept, by the XDG Base Directory Specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "zkv" / "history"


def _prompt(aside: Client) -> Callable[[], str]:
    session: PromptSession[str] = PromptSession(
        [("ansibrightblack", aside.endpoint.removeprefix("tcp://")), ("", "> ")],
        multiline=Condition(lambda: words.read(get_app().current_buffer.text).open),
        prompt_continuation=lambda width, _, __: "… ".rjust(width),
        completer=LineCompleter(lambda prefix: _keys(aside, prefix)),
        complete_while_typing=False,  # each letter would ask the server
        complete_in_thread=True,
        auto_suggest=AutoSuggestFromHistory(),
        enable_history_search=True,
        history=_history(),
        lexer=_LineLexer(),
        bottom_toolbar=lambda: usage_of(get_app().current_buffer.text) or HINT,
        enable_open_in_editor=True,
    )
    return session.prompt


def _keys(aside: Client, prefix: str) -> Iterable[str]:
    """Some keys with the prefix; none, if the server does not say so at once."""
    try:
        return [key for key, _ in aside.page(prefix, limit=KEYS_MAX).items]
    except Error:
        return []


def _greeting(aside: Client) -> str:
    try:
        info = aside.info()
    except Error as error:
        return f"zkv-client: {error.message}"
    keys = output.keys_text(info["keys"])
    return f"zkv {info['version']}: {keys}, revision {info['revision']}. {HINT}."


def _history() -> History:
    """Lines of earlier sessions. They may hold what is nobody else's business."""
    file = history_file()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
        file.chmod(0o600)
    except OSError as error:
        print(f"zkv-client: no history is kept: {file}: {error.strerror}", file=sys.stderr)
        return InMemoryHistory()
    return FileHistory(file)


class _LineLexer(Lexer):
    """Commands in bold; JSON, from its first bracket on, in the colours of the output."""

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        text = document.text
        begin = min((at for at in map(text.find, "{[") if at >= 0), default=len(text))
        word = text[:begin].partition(" ")[0]
        command = word if word in COMMANDS else ""
        fragments: StyleAndTextTuples = [("bold", command), ("", text[len(command) : begin])]
        for kind, piece in colour.tokens(text[begin:]):
            fragments.append((colour.COLOURS[kind].name if kind else "", piece))
        lines = list(split_lines(fragments))
        return lambda number: lines[number] if number < len(lines) else []
