"""python -m zkv.cli"""

from __future__ import annotations

import sys

from zkv.cli import main

if __name__ == "__main__":
    sys.exit(main())
