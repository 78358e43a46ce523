#!/usr/bin/env python3
"""Sets up .venv, and what the tests talk to, and runs every test. Options go to pytest:

python3 tools/test.py              what every change must pass
python3 tools/test.py --long       the random tests for hours instead of minutes
python3 tools/test.py -k journal   some of them
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from environment import ROOT, python_with

DEBIAN_PACKAGES = {
    "iso-codes": Path("/usr/share/iso-codes/json"),  # real data to load
    "redis-server": Path("/usr/bin/redis-server"),  # the bench's peer
}


def install_debian_packages() -> None:
    """Tests whose package is still missing afterwards skip themselves, and say so."""
    missing = [name for name, path in DEBIAN_PACKAGES.items() if not path.exists()]
    if not missing or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        print(f"apt-get {' '.join(command)} ...", file=sys.stderr, flush=True)
        subprocess.run(
            ["apt-get", "--quiet=2", *command],
            check=False,
            env=environment,
            stdout=subprocess.DEVNULL,
        )


def main() -> int:
    install_debian_packages()
    python = python_with("test", "bench")
    return subprocess.run([python, "-m", "pytest", *sys.argv[1:]], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
