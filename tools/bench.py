#!/usr/bin/env python3
"""Sets up .venv, and measures zkv side by side with what a user would pick instead:

python3 tools/bench.py                    everything, 5 rounds, into bench.json
python3 tools/bench.py --only get-8       some works; --list names them all
python3 tools/bench.py --quick            shows in a minute that it works, and judges nothing
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from environment import ROOT, VENV, python_with

BENCH = ROOT / "tools" / "bench"


def main() -> None:
    there = Path(sys.prefix) == VENV and importlib.util.find_spec("redis")
    python = sys.executable if there else python_with("bench")
    os.execv(python, [python, str(BENCH), *sys.argv[1:]])


if __name__ == "__main__":
    main()
