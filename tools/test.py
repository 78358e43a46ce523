#!/usr/bin/env python3
"""Sets up .venv, and what the tests talk to, and runs every test. Options go to pytest:

python3 tools/test.py              what every change must pass
python3 tools/test.py --long       the random tests for hours instead of minutes
python3 tools/test.py -k journal   some of them
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from environment import ROOT, install_debian, python_with
from languages import LANGUAGES, install

DEBIAN_PACKAGES = {
    "iso-codes": Path("/usr/share/iso-codes/json"),  # real data to load
    "redis-server": Path("/usr/bin/redis-server"),  # the bench's peer
    "fish": Path("/usr/bin/fish"),  # shells whose completion is tried
    "zsh": Path("/usr/bin/zsh"),
}


def main() -> int:
    # Tests whose package is still missing afterwards skip themselves, and say so.
    install_debian([name for name, path in DEBIAN_PACKAGES.items() if not path.exists()])
    install(LANGUAGES)
    python = python_with("test", "bench")
    return subprocess.run([python, "-m", "pytest", *sys.argv[1:]], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
