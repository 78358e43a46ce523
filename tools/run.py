#!/usr/bin/env python3
"""Sets up .venv, and runs zkv-server in it with whatever options are given."""

from __future__ import annotations

import os
import sys

from environment import VENV, python_with

TALK = """\
Talk to it from another terminal, in this folder:
  .venv/bin/zkv-client put user:1 '{"name": "Ada"}'
  .venv/bin/zkv-client get user:1
  .venv/bin/zkv-client                    a shell, where TAB completes commands and keys
Ctrl-C stops it; the data stays in ./zkv-data.
"""


def main() -> None:
    python = python_with("cli")
    if len(sys.argv) == 1:  # with options it may be elsewhere
        print(TALK, flush=True)
    os.execv(python, [str(VENV / "bin" / "python"), "-m", "zkv", *sys.argv[1:]])


if __name__ == "__main__":
    main()
