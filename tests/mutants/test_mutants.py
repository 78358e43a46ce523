"""The tests can fail: each mutant in tools/mutants.py is caught by those that are for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parents[2] / "tools" / "mutants.py"


@pytest.mark.timeout(3600)
def test_every_mutant_is_caught(long: bool) -> None:
    """With --long; otherwise only that the lines to be changed are still there."""
    options = [] if long else ["--list"]
    ran = subprocess.run(
        [sys.executable, str(RUNNER), *options], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
