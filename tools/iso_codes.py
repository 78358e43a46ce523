#!/usr/bin/env python3
"""Prints the languages, countries, currencies and scripts of Debian's package iso-codes as
JSON Lines that `zkv-client load` takes: one key a record, such as `639-3/deu`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path("/usr/share/iso-codes/json")
NAMES = ("alpha_4", "alpha_3", "alpha_2", "code")
"""The field that names a record: the first of these that it has."""


def main() -> None:
    if not FOLDER.is_dir():
        sys.exit(f"{FOLDER} is missing: apt-get install iso-codes")
    for path in sorted(FOLDER.glob("iso_*.json")):
        for standard, records in json.loads(path.read_text()).items():
            for record in records:
                name = next(record[field] for field in NAMES if field in record)
                line = {"key": f"{standard}/{name}", "value": record}
                print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
