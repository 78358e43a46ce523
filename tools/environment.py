"""The .venv beside pyproject.toml: made when it is missing, brought up to date when
pyproject.toml has changed, left alone otherwise. Needs nothing but Python itself.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"


def python_with(*extras: str) -> str:
    """The .venv's Python, with zkv and these extras of it installed."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this runs before anything is installed
        sys.exit("zkv needs Python 3.11 or newer")
    python = VENV / "bin" / "python"
    if not python.exists():
        print(f"making {VENV.name} ...", file=sys.stderr, flush=True)
        venv.create(VENV, with_pip=True)
    stamp = VENV / "-".join(["installed", *extras])
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        what = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
        print(f"installing zkv{what.removeprefix(str(ROOT))} ...", file=sys.stderr, flush=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--editable", what], check=True)
        stamp.write_text(wanted)
    return str(python)
