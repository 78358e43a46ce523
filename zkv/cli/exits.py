"""How a command ends: an exit code, and one sentence if something went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from zkv.errors import CannotConnect, Conflict, Error, NotFound, Timeout

EXIT_CODES: Final[dict[type[Error], int]] = {NotFound: 3, Conflict: 4, Timeout: 5, CannotConnect: 6}
OTHER: Final = 1
USAGE: Final = 2
CANNOT_CONNECT: Final = EXIT_CODES[CannotConnect]
INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell counts
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE

_ADVICE: Final = "start one with zkv-server, or name another with --endpoint or $ZKV_ENDPOINT"


def code_of(run: Callable[[], None], where: str = "") -> int:
    """Runs something, says in one sentence what went wrong, and returns the exit code.

    `where` is put before the sentence.
    """
    try:
        try:
            run()
        finally:
            sys.stdout.flush()  # here, where a failure can still be told
    except Error as error:
        advice = f"; {_ADVICE}" if type(error) is CannotConnect else ""
        return fail(f"{where}{error.message}{advice}", EXIT_CODES.get(type(error), OTHER))
    except SystemExit as ended:  # argparse has said why, but not where
        code = ended.code if type(ended.code) is int else OTHER
        return fail(f"{where}not run", code) if where and code else code
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except OSError as error:
        _drop_output()
        file = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{file}{error.strerror or error}", OTHER)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def fail(sentence: str, code: int) -> int:
    """Says what is wrong, and returns the code."""
    print(f"zkv-client: {sentence}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """What cannot be written goes nowhere: at exit, Python would fail to write it once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
