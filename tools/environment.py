"""The .venv beside pyproject.toml: made when it is missing, brought up to date when
pyproject.toml has changed, left alone otherwise. And what comes from outside of Python.
Needs nothing but Python itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
INSTALL_S = 300


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


def install_debian(packages: Sequence[str]) -> None:
    """Installs packages of Debian if that is possible here; what fails is not there afterwards."""
    if not packages or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        _try(["apt-get", "--quiet=2", *command], environment)


def install_npm(folder: Path) -> None:
    """Installs what a package.json names, as `install_debian` does."""
    if shutil.which("npm"):
        _try(["npm", "install", "--silent", "--prefix", str(folder)], {**os.environ})


def _try(command: Sequence[str], environment: dict[str, str]) -> None:
    print(f"{' '.join(command)} ...", file=sys.stderr, flush=True)
    try:
        subprocess.run(
            command, check=False, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, timeout=INSTALL_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"not done within {INSTALL_S} s", file=sys.stderr, flush=True)
