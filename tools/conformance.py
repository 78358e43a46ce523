#!/usr/bin/env python3
"""Shows that any language is a client: sets up .venv, takes each language of tools/clients
through the test vectors with a real server, and runs its example client where the first reply
to every request is lost.

python3 tools/conformance.py             every language that is there; tells how to get the others
python3 tools/conformance.py --install   gets them, by apt and npm
python3 tools/conformance.py C Ruby      some of them
"""

from __future__ import annotations

import argparse
import os

from environment import ROOT, python_with
from languages import LANGUAGES, install


def main() -> None:
    names = [it.name for it in LANGUAGES]
    parser = argparse.ArgumentParser(description="Takes languages through zkv's test vectors.")
    parser.add_argument("--install", action="store_true", help="what is missing, by apt and npm")
    parser.add_argument("language", nargs="*", help=f"some of {', '.join(names)}")
    args = parser.parse_args()
    if unknown := {*args.language} - {*names}:
        parser.error(f"not here: {', '.join(sorted(unknown))}")
    chosen = args.language or names
    if args.install:
        install([it for it in LANGUAGES if it.name in chosen])
    python = python_with()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    os.execve(python, [python, str(ROOT / "tools" / "exam.py"), *chosen], environment)


if __name__ == "__main__":
    main()
