#!/usr/bin/env python3
"""What a change must pass: format, lint, types, then the tests (the import ladder is one)."""

from __future__ import annotations

import subprocess
import sys

from environment import ROOT, python_with

STEPS = (
    ["-m", "ruff", "format", "--check", "."],
    ["-m", "ruff", "check", "."],
    ["-m", "mypy"],
)


def main() -> int:
    python = python_with("check")
    for step in STEPS:
        print("·", " ".join(step[1:]), file=sys.stderr, flush=True)
        if code := subprocess.run([python, *step], cwd=ROOT, check=False).returncode:
            return code
    return subprocess.run(
        [sys.executable, "tools/test.py", *sys.argv[1:]], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
